//! containerd's messages and service, generated from `proto/` at build time. The modules are nested as the packages are.

#![expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    unreachable_pub,
    reason = "generated"
)]

/// `containerd.types`.
pub(crate) mod types {
    tonic::include_proto!("containerd.types");
}

/// `containerd.services`.
pub(crate) mod services {
    /// `containerd.services.snapshots`.
    pub(crate) mod snapshots {
        /// `containerd.services.snapshots.v1`.
        pub(crate) mod v1 {
            tonic::include_proto!("containerd.services.snapshots.v1");
        }
    }
}
