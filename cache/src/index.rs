//! sled, and nothing else in this crate that knows of it. Why this version, and what is worked around:
//! `docs/decisions/0002-sled.md`. Everything here may panic, hang or lie; [`crate::keeper`] stands between it and the cache.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::format::{BlobRecord, SYS_KEY, SegmentRecord, SysRecord, segment_key};

#[cfg(test)]
mod tests;

/// Small leaves: a commit rewrites few records, a flush stays near 17 ms. Stored in the database: never change it in place.
const LEAF_FANOUT: usize = 64;
/// sled's object cache, in bytes: all that the index may hold in memory. Nothing reads it after the start.
pub(crate) const CACHE_BYTES: usize = 16 << 20;
/// A frame of sled's metadata log larger than this (bytes) is damage: an index of 16 TiB of chunks stays below it.
/// Checked before sled sees it, because sled would try to allocate what the damaged length says and abort the process.
const MAX_FRAME_BYTES: u64 = 256 << 20;

/// Why the index cannot be used. The reason becomes part of a sentence for operators.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct IndexError(pub(crate) String);

impl IndexError {
    pub(crate) fn new(what: &str, error: &dyn std::fmt::Display) -> Self {
        Self(format!("{what}: {error}"))
    }
}

/// One record to write, or to delete when there is no value.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

/// Everything an index held when it was opened. Records that do not decode are only counted: for their chunks the slot
/// headers speak.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) sys: Option<SysRecord>,
    pub(crate) blobs: Vec<(u32, BlobRecord)>,
    pub(crate) segments: Vec<(u32, u32, SegmentRecord)>,
    pub(crate) damaged: u64,
}

/// Durable records. Used from one thread only, never while somebody waits for bytes.
pub(crate) trait Index {
    /// Reads every record.
    fn load(&mut self) -> Result<Snapshot, IndexError>;

    /// Writes all of `batch` or nothing, and returns when it is durable.
    fn commit(&mut self, batch: Vec<Write>) -> Result<(), IndexError>;
}

/// An index on sled, in one directory.
pub(crate) struct SledIndex(sled::Db<LEAF_FANOUT>);

impl SledIndex {
    /// Opens or creates the index in `dir`. May take long (sled runs `sync` twice), panic or hang.
    pub(crate) fn open(dir: &Path) -> Result<Self, IndexError> {
        let metadata = dir.join("metadata");
        unlocked(dir)
            .and_then(|()| unlocked(&metadata))
            .map_err(|e| IndexError::new("its lock could not be taken", &e))?;
        preopen(&metadata)?;
        let config = sled::Config::new().path(dir).flush_every_ms(None).cache_capacity_bytes(CACHE_BYTES);
        config.open().map(Self).map_err(|e| IndexError::new("sled could not open it", &e))
    }
}

impl Index for SledIndex {
    fn load(&mut self) -> Result<Snapshot, IndexError> {
        let mut snapshot = Snapshot::default();
        for pair in self.0.iter() {
            let (key, value) = pair.map_err(|e| IndexError::new("a record could not be read", &e))?;
            snapshot.add(&key, &value);
        }
        Ok(snapshot)
    }

    fn commit(&mut self, batch: Vec<Write>) -> Result<(), IndexError> {
        self.apply(batch)?;
        self.flush()
    }
}

impl SledIndex {
    /// Makes a batch visible, all of it or nothing; not durable yet.
    pub(crate) fn apply(&self, batch: Vec<Write>) -> Result<(), IndexError> {
        let mut writes = sled::Batch::default();
        for write in batch {
            match write.value {
                Some(value) => writes.insert(write.key, value),
                None => writes.remove(write.key),
            }
        }
        self.0.apply_batch(writes).map_err(|e| IndexError::new("a batch was refused", &e))
    }

    /// Makes what was applied durable.
    pub(crate) fn flush(&self) -> Result<(), IndexError> {
        self.0.flush().map(drop).map_err(|e| IndexError::new("a flush failed", &e))
    }
}

impl Snapshot {
    /// Adds one raw record. The key's length says its kind.
    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) {
        let known = if key == SYS_KEY {
            self.sys = SysRecord::decode(value);
            self.sys.is_some()
        } else if let Ok(key) = <[u8; 4]>::try_from(key) {
            let no = u32::from_be_bytes(key);
            BlobRecord::decode(no, value).map(|record| self.blobs.push((no, record))).is_some()
        } else if let Ok(key) = <[u8; 8]>::try_from(key) {
            let [n0, n1, n2, n3, s0, s1, s2, s3] = key;
            let (no, segment) = (u32::from_be_bytes([n0, n1, n2, n3]), u32::from_be_bytes([s0, s1, s2, s3]));
            let record = SegmentRecord::decode(segment_key(no, segment), value);
            record.map(|record| self.segments.push((no, segment, record))).is_some()
        } else {
            false
        };
        self.damaged += u64::from(!known);
    }
}

/// Waits until nobody holds sled's lock on `dir`. The lock of the cache directory says that nobody works here; what may be left
/// of an index just closed is a copy of its files in a child that another thread is starting, until that execs.
fn unlocked(dir: &Path) -> io::Result<()> {
    match File::open(dir) {
        Ok(dir) => {
            flock(&dir, FlockOperation::LockExclusive)?;
            Ok(flock(&dir, FlockOperation::Unlock)?)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Repairs what this sled version gets wrong before it opens its metadata directory.
///
/// With a snapshot N and no log beyond N, sled writes snapshot N again and then deletes it as "the old one": the next open
/// finds an empty database. An empty log N+1 prevents that.
fn preopen(metadata: &Path) -> Result<(), IndexError> {
    let failed = |e: io::Error| IndexError::new("its metadata could not be inspected", &e);
    let (mut snapshot, mut log) = (None, None);
    for path in files(metadata).map_err(failed)? {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let number = |prefix: &str| u64::from_str_radix(name.strip_prefix(prefix)?, 16).ok();
        let (as_snapshot, as_log) = (number("snapshot_"), number("log_"));
        if as_snapshot.is_some() || as_log.is_some() {
            check_frames(&path).map_err(failed)?;
        }
        snapshot = snapshot.max(as_snapshot);
        log = log.max(as_log);
    }
    if let Some(snapshot) = snapshot.filter(|_| log <= snapshot) {
        let next = metadata.join(format!("log_{:016x}", snapshot.saturating_add(1)));
        File::create(next).and_then(|f| f.sync_all()).map_err(failed)?;
        File::open(metadata).and_then(|d| d.sync_all()).map_err(failed)?;
    }
    Ok(())
}

/// The files in `dir`; none when it does not exist yet.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|e| e.map(|e| e.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Walks the frames of a sled metadata file: 6 bytes length, 2 bytes checksum, the payload, 4 bytes checksum. A frame cut
/// short at the end is what a crash leaves, and fine; a length beyond reason is damage.
fn check_frames(path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut at = 0;
    while at + 8 <= size {
        file.seek(SeekFrom::Start(at))?;
        let mut head = [0; 8];
        file.read_exact(&mut head)?;
        head[6..].fill(0);
        let len = u64::from_le_bytes(head);
        if len > MAX_FRAME_BYTES {
            let text = format!("{} holds a frame of {len} bytes", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        at += len + 12;
    }
    Ok(())
}
