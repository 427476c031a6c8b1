//! containerd's content store, as a client of it: an image's blobs are written there, so that exporting, pushing and committing the image
//! work although its layers were never fetched whole.
//!
//! # Contract
//!
//! 1. Each blob that containerd does not have is written and committed against its digest; one that it has is not read.
//! 2. A write that broke off goes on where it ended, also from another process: containerd keeps what it was given for [`LEASE`].
//! 3. Nothing that was written is collected before the image that it belongs to refers to it: a lease holds it meanwhile, and manifests
//!    get the labels by which containerd's collector follows them. An image that has no name yet gets its own at the end.
//! 4. Bytes that are not those of their digest are refused by containerd, dropped, and said to the source.
//!
//! # Layout
//!
//! `plan` decides purely what an image consists of, `store` asks containerd, `write` writes one blob, `read` reads what it has, `error` says what to do.

mod error;
mod lease;
mod plan;
mod proto;
mod read;
mod store;
#[cfg(test)]
mod tests;
mod write;

pub use error::StoreError;
pub use lease::LEASE;
pub use plan::{Child, Content, Piece};
pub use read::Stored;
pub use store::{Materialised, Outcome, Progress, Store, Target, Written};
