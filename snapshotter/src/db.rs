//! sled, and nothing else in this crate that knows of it. Why this version, and what is worked around:
//! `docs/decisions/0002-sled.md`. Everything here may panic, hang or lie; [`crate::keeper`] stands between it and the snapshots.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// Small leaves: a commit rewrites few records. Stored in the database: never change it in place.
const LEAF_FANOUT: usize = 64;
/// sled's object cache, in bytes: all that the metadata may hold in memory. Nothing reads it after the start.
const CACHE_BYTES: usize = 4 << 20;
/// A frame of sled's metadata log larger than this (bytes) is damage: that of a million snapshots stays below it. Checked before sled sees it,
/// because sled would try to allocate what the damaged length says and abort the process.
const MAX_FRAME_BYTES: u64 = 64 << 20;
/// The key of the last commit's [`Mark`]; other keys are snapshots' numbers, 8 bytes big-endian.
const MARK_KEY: &[u8] = b"last commit";

/// Why the metadata cannot be used. The reason becomes part of a sentence for operators.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DbError(pub(crate) String);

impl DbError {
    pub(crate) fn new(what: &str, error: &dyn std::fmt::Display) -> Self {
        Self(format!("{what}: {error}"))
    }
}

/// What each commit says of all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Its number.
    pub(crate) generation: u64,
    /// How many records there are after it. What has no record is deleted from disk: sled must not be able to lose one unnoticed.
    pub(crate) records: u64,
}

impl Mark {
    fn encode(self) -> Vec<u8> {
        [self.generation.to_be_bytes(), self.records.to_be_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (generation, records) = bytes.split_first_chunk()?;
        let records = records.try_into().ok()?;
        Some(Self { generation: u64::from_be_bytes(*generation), records: u64::from_be_bytes(records) })
    }
}

/// Everything that was found at open.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// Of the last commit. None in a new database; and in one that sled found empty because it was damaged.
    pub(crate) mark: Option<Mark>,
    /// Written records by snapshots' numbers.
    pub(crate) records: Vec<(u64, Vec<u8>)>,
}

/// Durable records of snapshots.
pub(crate) struct Db(sled::Db<LEAF_FANOUT>);

impl Db {
    /// Opens or creates the database in `dir`. May take long (sled runs `sync` twice), panic or hang.
    pub(crate) fn open(dir: &Path) -> Result<Self, DbError> {
        let metadata = dir.join("metadata");
        unlocked(dir)
            .and_then(|()| unlocked(&metadata))
            .map_err(|e| DbError::new("its lock could not be taken", &e))?;
        preopen(&metadata)?;
        let config = sled::Config::new().path(dir).flush_every_ms(None).cache_capacity_bytes(CACHE_BYTES);
        config.open().map(Self).map_err(|e| DbError::new("sled could not open it", &e))
    }

    /// Reads everything.
    pub(crate) fn load(&self) -> Result<Loaded, DbError> {
        let mut loaded = Loaded::default();
        for pair in self.0.iter() {
            let (key, value) = pair.map_err(|e| DbError::new("a record could not be read", &e))?;
            let number = <[u8; 8]>::try_from(&*key).map(u64::from_be_bytes);
            match (number, Mark::decode(&value)) {
                (Ok(number), _) => loaded.records.push((number, value.to_vec())),
                (Err(_), Some(mark)) if &*key == MARK_KEY => loaded.mark = Some(mark),
                // Damage: what it was is missing now, which the mark shows.
                _ => {}
            }
        }
        Ok(loaded)
    }

    /// Writes and deletes all of it or nothing, as the commit of `mark`, and returns when it is durable.
    pub(crate) fn commit(&self, mark: Mark, writes: Vec<(u64, Option<Vec<u8>>)>) -> Result<(), DbError> {
        let mut batch = sled::Batch::default();
        batch.insert(MARK_KEY, mark.encode());
        for (number, value) in writes {
            let key = number.to_be_bytes().to_vec();
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.0.apply_batch(batch).map_err(|e| DbError::new("a batch was refused", &e))?;
        self.0.flush().map(drop).map_err(|e| DbError::new("a flush failed", &e))
    }
}

/// Waits until nobody holds sled's lock on `dir`. The lock of the root says that nobody works here; what may be left of a database just
/// closed is a copy of its files in a child that another thread is starting, until that execs.
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
fn preopen(metadata: &Path) -> Result<(), DbError> {
    let failed = |e: io::Error| DbError::new("its files could not be inspected", &e);
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
