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
    /// The most disk space that everything here and [beside](Config::beside) may take, in bytes: data files, slot headers, descriptions,
    /// index. Beyond it chunks are evicted; what cannot be stored is served all the same.
    pub cap_bytes: u64,
    /// When eviction begins and ends.
    pub watermarks: Watermarks,
    /// What is to stay free of the file system, in bytes: below it nothing is stored and chunks are evicted. `None`: 1 GiB, or a
    /// twentieth of the file system if that is less.
    pub reserve_bytes: Option<u64>,
    /// Directories whose files are within the cap too: what others keep for the blobs cached here. Measured once a minute.
    pub beside: Vec<PathBuf>,
    /// Chunk size of blobs that are new to the cache. Blobs already there keep theirs.
    pub chunk_size: ChunkSize,
    /// Most bytes under way that nobody asked for yet, of all blobs together: what is read ahead around misses and of those who read in order. One reader
    /// has a quarter of it in a batch. 0: nothing is read ahead.
    pub ahead_bytes: u64,
    /// Bytes that were fetched and wait to be written to disk. Beyond it a fill is served but not stored: a slow disk must
    /// not turn into unbounded memory.
    pub pending_bytes: u64,
    /// Whether bytes that were read stay in the page cache as the kernel sees fit. They are dropped otherwise, because who reads through a device has
    /// them in the page cache of the device; who reads it past that (`O_DIRECT`, as most virtual machines do) has not.
    pub keep_pages: bool,
    /// How long it may take until everything on disk has been read again in the background and compared with its checksums; at most 16 MiB
    /// are read in a second. `None`: never.
    pub scrub_interval: Option<Duration>,
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
    /// 10 GiB in `/var/lib/penstock/cache`, watermarks of 95 and 90 %, 128 KiB chunks, 32 MiB ahead, 64 MiB pending, scrubbed in 7 days, 5 s drain, 20 s watchdog.
    fn default() -> Self {
        Self {
            dir: "/var/lib/penstock/cache".into(),
            cap_bytes: 10 << 30,
            watermarks: Watermarks::default(),
            reserve_bytes: None,
            beside: Vec::new(),
            chunk_size: ChunkSize::DEFAULT,
            ahead_bytes: 32 << 20,
            pending_bytes: 64 << 20,
            keep_pages: false,
            scrub_interval: Some(Duration::from_secs(7 * 24 * 3600)),
            drain: Duration::from_secs(5),
            watchdog: Duration::from_secs(20),
        }
    }
}

/// When eviction begins and when it ends, in percent of the room there is. It runs in the background between the two, so that reads
/// seldom wait for it; at 100 % they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    high: u8,
    low: u8,
}

impl Watermarks {
    /// Eviction from `high` down to `low` percent; `None` unless 1 <= low <= high <= 100.
    #[must_use]
    pub const fn new(high: u8, low: u8) -> Option<Self> {
        if low >= 1 && low <= high && high <= 100 { Some(Self { high, low }) } else { None }
    }

    /// Where it begins, in percent.
    #[must_use]
    pub const fn high(self) -> u8 {
        self.high
    }

    /// Where it ends, in percent.
    #[must_use]
    pub const fn low(self) -> u8 {
        self.low
    }

    pub(crate) fn high_of(self, bytes: u64) -> u64 {
        percent(bytes, self.high)
    }

    pub(crate) fn low_of(self, bytes: u64) -> u64 {
        percent(bytes, self.low)
    }
}

impl Default for Watermarks {
    /// 95 and 90 %.
    fn default() -> Self {
        Self { high: 95, low: 90 }
    }
}

fn percent(bytes: u64, percent: u8) -> u64 {
    (bytes / 100).saturating_mul(percent.into()) + bytes % 100 * u64::from(percent) / 100
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
