//! The messages and clients that are made from `proto/` at build time.
#![expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    unreachable_pub,
    reason = "generated"
)]

pub(super) mod content {
    tonic::include_proto!("containerd.services.content.v1");
}

pub(super) mod images {
    tonic::include_proto!("containerd.services.images.v1");
}

pub(super) mod leases {
    tonic::include_proto!("containerd.services.leases.v1");
}
