//! What a cache is told at construction.

use std::{path::PathBuf, sync::Arc, time::Duration};

use penstock_blob::ChunkSize;

use crate::{
    disk::{Disk, Kernel},
    index::SledIndex,
    keeper::OpenIndex,
};

/// How a [`crate::Cache`] keeps chunks.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory, made when missing. It belongs to one process at a time and holds nothing else.
    pub dir: PathBuf,
    /// The most disk space that data files, slot headers and blob descriptions may take, in bytes. Beyond it chunks are
    /// evicted; what cannot be stored is served all the same. The index comes on top: about 17 MB per TiB cached.
    pub cap_bytes: u64,
    /// Chunk size of blobs that are new to the cache. Blobs already there keep theirs.
    pub chunk_size: ChunkSize,
    /// Bytes that were fetched and wait to be written to disk. Beyond it a fill is served but not stored: a slow disk must
    /// not turn into unbounded memory.
    pub pending_bytes: u64,
    /// How long [`crate::Cache::close`] waits for fills before it abandons them.
    pub drain: Duration,
    /// How long one call of the index (open, commit, close) may take before the index is given up for this process.
    pub watchdog: Duration,
}

impl Config {
    /// A cache in `dir` of at most `cap_bytes`, all else as [`Config::default`].
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, cap_bytes: u64) -> Self {
        Self { dir: dir.into(), cap_bytes, ..Self::default() }
    }
}

impl Default for Config {
    /// 10 GiB in `/var/lib/penstock/cache`, 256 KiB chunks, 64 MiB pending, 5 s drain, 20 s watchdog.
    fn default() -> Self {
        Self {
            dir: "/var/lib/penstock/cache".into(),
            cap_bytes: 10 << 30,
            chunk_size: ChunkSize::DEFAULT,
            pending_bytes: 64 << 20,
            drain: Duration::from_secs(5),
            watchdog: Duration::from_secs(20),
        }
    }
}

/// The joints at which tests put something that fails.
#[derive(Clone)]
pub(crate) struct Seams {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) index: OpenIndex,
    /// First pause after a failed commit; doubled each time.
    pub(crate) backoff: Duration,
}

impl Seams {
    /// The kernel's files and a sled index in `dir/index`.
    pub(crate) fn real(config: &Config) -> Self {
        let dir = config.dir.join("index");
        Self {
            disk: Arc::new(Kernel),
            index: Arc::new(move || Ok(Box::new(SledIndex::open(&dir)?))),
            backoff: Duration::from_millis(100),
        }
    }
}
