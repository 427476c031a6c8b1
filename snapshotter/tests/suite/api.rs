//! containerd's side of the interface, generated as the product's is.

#![expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    unreachable_pub,
    reason = "generated"
)]

pub(crate) use services::snapshots::v1::{snapshots_client::SnapshotsClient, *};

pub(crate) mod types {
    tonic::include_proto!("containerd.types");
}

pub(crate) mod services {
    pub(crate) mod snapshots {
        pub(crate) mod v1 {
            tonic::include_proto!("containerd.services.snapshots.v1");
        }
    }
}
