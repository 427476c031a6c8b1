//! Digests of every chunk of an image's blobs, and a source that checks what it reads against them.
//!
//! A registry's digest proves a blob only once the whole blob is there. An *index* proves each chunk alone, so that a lazy read
//! is verified before a byte of it is served, whoever sent it. For each blob it has a *list*: a file with the BLAKE3 hash of
//! every chunk, the hashes of the pages that hold those, and so on up to one *root*. Format: docs/formats/index.md.
//!
//! # Contract
//!
//! 1. [`Verified`] is a [`penstock_blob::BlobSource`]: of a blob that has a list, no byte is passed up that was not compared
//!    with it. Bytes that differ are rejected to the source below and read again; then it is [`ReadError::WrongBytes`].
//! 2. While it is not known whether a blob has a list, its reads wait. Blobs without one pass through.
//! 3. A list is believed by its root alone. Its pages are read one at a time from a local file and verified each time that they
//!    are used; a page that is absent or damaged is fetched again from the source below.
//! 4. Memory does not grow with the image: a few hundred bytes per blob, and the pages that a read needs while it runs.
//! 5. Parsers are total: any bytes give a typed error or an index, never a panic, and nothing is sized by a count that was not
//!    compared with the blob's size.
//!
//! # Layout
//!
//! | module | does |
//! |---|---|
//! | `shape` | where in a list which hash is, and the header page; pure |
//! | `compute` | from a blob's bytes to its list, verifying the blob's own digest |
//! | [`beside`] | the OCI manifest of an artifact beside an image; pure |
//! | `artifact` | the one that holds the lists of an image; pure |
//! | `list` | a list on this node: pages, verified on use, fetched when they are not there |
//! | `verified` | the source, and which blobs have which list |
//! | `metrics` | what it counts |
//!
//! # Concurrency
//!
//! Hashing and file reads run on tokio's blocking pool. The table of lists is behind a `parking_lot` lock that is held for
//! look-ups only. Missing pages of one list are fetched by one reader at a time; the others wait for it and look again.
//!
//! [`ReadError::WrongBytes`]: penstock_blob::ReadError::WrongBytes

mod artifact;
pub mod beside;
mod compute;
mod list;
mod metrics;
mod shape;
#[cfg(test)]
mod testing;
mod verified;

pub use artifact::{ARTIFACT_TYPE, Artifact, ArtifactError, Subject};
pub use compute::{ComputeError, Computed, compute};
pub use shape::{GRID, Listed, MAX_BLOB_BYTES, Root, RootError};
pub use verified::{Audit, Config, Conflict, Event, Expected, Outcome, Used, Verified};
