//! The vocabulary of blobs, and the one seam between everything that can produce their bytes.
//!
//! A *blob* is an immutable run of bytes in a registry, named by its digest. A *source* is anything that can be asked for
//! those bytes: the fetcher (registries), the cache (this node's disk), a fault wrapper (tests). Sources are stacked, each
//! knowing only the one below it through [`BlobSource`].
//!
//! # Contract of a source
//!
//! 1. [`BlobSource::read`] answers exactly the bytes asked for, or an error: never short, never other bytes than the source
//!    believes the registry to hold.
//! 2. [`BlobSource::locate`] never blocks: no network, no index, no lock that a fill holds. It answers where bytes already
//!    are, or `None`.
//! 3. What `locate` answered stays readable and unchanged while the [`Located`] lives.
//! 4. A range outside the blob is refused with [`ReadError::OutOfBounds`], by both alike (`locate` answers `None`).
//! 5. Dropping the future of a `read` cancels the caller's interest, never another caller's read.
//! 6. A read with [`Purpose::Demand`] never waits for one with [`Purpose::Ahead`], except for one that already brings its bytes.
//!
//! No I/O and no runtime live here. With the feature `test-util` the crate also holds the fault-injecting sources and the
//! conformance suite that every source must pass.

mod chunk;
mod digest;
mod error;
mod located;
mod range;
mod source;

#[cfg(feature = "test-util")]
pub mod conformance;
#[cfg(feature = "test-util")]
pub mod faults;

pub use chunk::{ChunkId, ChunkSize, ChunkSizeError};
pub use digest::{Digest, DigestError, Hasher};
pub use error::ReadError;
pub use located::{Located, Pinned};
pub use range::{ByteRange, RangeError};
pub use source::{Blob, BlobSource, Giver, Purpose, ReadFuture};

/// Target of the `tracing` spans that are sent to a collector of OpenTelemetry traces where the agent is told one. Log lines do not show them, and
/// where there is no collector nobody looks at them.
pub const SPANS: &str = "spans";
