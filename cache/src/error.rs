//! Why a cache could not be opened, or a blob not removed.

use std::{io, path::PathBuf};

use penstock_blob::Digest;

/// Why [`crate::Cache::open`] failed. Nothing was changed in the directory unless it is new.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process (or another cache in this one) uses the directory.
    #[error(
        "cache directory {} is in use by {}; stop that agent, or give this one another directory",
        dir.display(),
        pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
    )]
    InUse {
        /// The process that holds the lock, when it left its number.
        pid: Option<u32>,
        /// The directory.
        dir: PathBuf,
    },
    /// The directory cannot be made or written.
    #[error("cache directory {} cannot be written: {source}; check its owner and mode, and that its file system is not mounted read-only", dir.display())]
    Unwritable {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file system is full, so that not even an empty cache can be made.
    #[error("the file system of cache directory {} is full; free some space, or choose a directory on another file system", dir.display())]
    Full {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory was written by another version.
    #[error("cache directory {} has layout {found:?}, this version knows {known:?}; delete the directory (it only holds copies), or run the version that wrote it", dir.display())]
    Layout {
        /// The directory.
        dir: PathBuf,
        /// What its `layout` file says, cut to 64 characters.
        found: String,
        /// What it would have to say.
        known: &'static str,
    },
    /// The file system cannot give back parts of a file, so that nothing could ever be evicted.
    #[error("the file system of cache directory {} cannot punch holes ({source}); use ext4, xfs, btrfs or tmpfs", dir.display())]
    NoHoles {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Any other failure of the local disk.
    #[error("cannot {step} {}: {source}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The cache was opened outside a tokio runtime, or the runtime is stopping.
    #[error("a cache needs a running tokio runtime")]
    NoRuntime,
}

/// Why [`crate::Cache::remove`] left a blob where it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// Nothing of the blob is cached.
    #[error("blob {blob} is not in the cache")]
    NotFound {
        /// The blob.
        blob: Digest,
    },
    /// Attachments use the blob.
    #[error("blob {blob} is used by {users} attached image(s); detach them first")]
    Retained {
        /// The blob.
        blob: Digest,
        /// How many.
        users: u32,
    },
    /// Somebody reads from the blob at this moment.
    #[error("blob {blob} is being read; try again")]
    Busy {
        /// The blob.
        blob: Digest,
    },
    /// The cache is closing.
    #[error("the cache is closing")]
    Closing,
}
