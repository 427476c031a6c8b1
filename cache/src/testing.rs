//! What the crate's tests share: blobs, directories, a disk and an index that fail on purpose.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use penstock_blob::{
    Blob, BlobSource, ByteRange, ChunkSize, Purpose,
    faults::{Flaky, Memory},
};
use prometheus_client::registry::Registry;
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::{
    Cache, Config, Event, OpenError,
    config::Seams,
    disk::{Disk, Kernel, Space},
    index::{Index, IndexError, Snapshot, Write},
    keeper::OpenIndex,
};

/// Chunks of the smallest size, so that tests stay small.
pub(crate) const CHUNK: u64 = 64 << 10;

/// `len` bytes that differ everywhere and for each seed.
pub(crate) fn bytes(len: u64, seed: u64) -> Bytes {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    rng.fill(&mut bytes);
    bytes.into()
}

pub(crate) fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).unwrap()
}

/// The bytes of `range` of a blob.
pub(crate) fn part(bytes: &Bytes, range: ByteRange) -> Bytes {
    bytes.slice(usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap())
}

/// An event in a word.
pub(crate) const fn kind(event: &Event) -> &'static str {
    match event {
        Event::BlobVerified { .. } => "verified",
        Event::Corrupt { .. } => "corrupt",
        Event::Bypass { .. } => "bypass",
        Event::Pressure { .. } => "pressure",
        Event::Healed { .. } => "healed",
        Event::Scrubbed(_) => "scrubbed",
        Event::IndexRebuilt { .. }
        | Event::IndexAbandoned { .. }
        | Event::BlobDropped { .. }
        | Event::BlobMismatch { .. } => "another",
    }
}

/// A source that refuses every read.
pub(crate) fn refusing() -> Arc<dyn BlobSource> {
    Flaky::new(Memory::new(Vec::new()), u32::MAX)
}

/// A directory and blobs for it.
pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    pub(crate) memory: Arc<Memory>,
    pub(crate) blobs: Vec<(Blob, Bytes)>,
    pub(crate) config: Config,
}

impl Bench {
    /// Blobs of these sizes in bytes, and a cap far above them.
    pub(crate) fn new(sizes: &[u64]) -> Self {
        let dir = TempDir::new().unwrap();
        let contents: Vec<_> = (1..).zip(sizes).map(|(seed, &len)| bytes(len, seed)).collect();
        let memory = Memory::new(contents.clone());
        let blobs = contents.into_iter().enumerate().map(|(i, bytes)| (memory.blob(i), bytes)).collect();
        let mut config = Config::new(dir.path().join("cache"), 1 << 30);
        config.chunk_size = ChunkSize::new(CHUNK).unwrap();
        // Whatever the machine has free.
        config.reserve_bytes = Some(0);
        // What is fetched is what is asked for, but in the tests of reading ahead.
        config.ahead_bytes = 0;
        Self { dir, memory, blobs, config }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.config.dir
    }

    pub(crate) async fn try_open(&self, upstream: Arc<dyn BlobSource>) -> Result<Arc<Cache>, OpenError> {
        Cache::open(self.config.clone(), upstream, &mut Registry::default()).await
    }

    /// Opened on sled and the kernel, in front of `upstream`.
    pub(crate) async fn open_on(&self, upstream: Arc<dyn BlobSource>) -> Arc<Cache> {
        self.try_open(upstream).await.unwrap()
    }

    /// Opened in front of the memory that holds the blobs.
    pub(crate) async fn open(&self) -> Arc<Cache> {
        self.open_on(self.memory.clone()).await
    }

    /// Opened with a disk and an index that may fail.
    pub(crate) async fn open_with(&self, disk: Arc<dyn Disk>, index: OpenIndex) -> Arc<Cache> {
        self.open_seams(self.memory.clone(), disk, index).await
    }

    /// As [`Bench::open_with`], in front of `upstream`.
    pub(crate) async fn open_seams(
        &self,
        upstream: Arc<dyn BlobSource>,
        disk: Arc<dyn Disk>,
        index: OpenIndex,
    ) -> Arc<Cache> {
        let seams = Seams { disk, index, backoff: Duration::from_millis(1) };
        Cache::open_with(self.config.clone(), upstream, &mut Registry::default(), seams).await.unwrap()
    }

    /// Reads all of every blob and compares.
    pub(crate) async fn read_all(&self, cache: &Cache) {
        for (blob, bytes) in &self.blobs {
            let read = cache.read(*blob, blob.all().unwrap(), Purpose::Demand).await.unwrap();
            assert!(read == *bytes, "other bytes than the blob's");
        }
    }

    /// Bytes on disk of all files of blobs.
    pub(crate) fn blocks(&self) -> u64 {
        let files = fs::read_dir(self.path().join("blobs")).unwrap();
        // A file may be deleted between being listed and being looked at.
        files.filter_map(|f| f.unwrap().metadata().ok()).map(|m| m.blocks() * 512).sum()
    }

    /// The only file of this kind in `blobs/`.
    pub(crate) fn file(&self, kind: &str) -> PathBuf {
        let files = fs::read_dir(self.path().join("blobs")).unwrap().map(|f| f.unwrap().path());
        let mut files = files.filter(|p| p.extension().is_some_and(|e| e == kind));
        let file = files.next().unwrap();
        assert!(files.next().is_none());
        file
    }

    pub(crate) fn chunks(&self) -> u64 {
        self.blobs.iter().map(|(blob, _)| blob.size_bytes.div_ceil(CHUNK)).sum()
    }
}

/// Drops a cache as a kill would, and waits until its threads let the directory go: they, and what another test of this process forked
/// meanwhile, which holds a copy of the lock until it executes its program.
pub(crate) async fn crash(cache: Arc<Cache>) {
    let (lock, path) = cache.lock_is_held();
    drop(cache);
    let is_free = || flock(File::open(&path).unwrap(), FlockOperation::NonBlockingLockExclusive).is_ok();
    while lock.strong_count() > 0 || !is_free() {
        tokio::task::yield_now().await;
    }
}

/// A located range, read.
pub(crate) fn located(cache: &Cache, blob: &Blob, range: ByteRange) -> Option<Bytes> {
    let located = cache.locate(blob, range)?;
    let mut bytes = vec![0; usize::try_from(range.len()).unwrap()];
    located.read_at(&mut bytes, 0).unwrap();
    Some(bytes.into())
}

/// A disk of which each operation can be made to fail.
#[derive(Debug, Default)]
pub(crate) struct FailingDisk {
    pub(crate) writes: AtomicBool,
    pub(crate) syncs: AtomicBool,
    pub(crate) punches: AtomicBool,
    /// Bytes that others have taken of the 1 TiB that it has free.
    pub(crate) taken: AtomicU64,
}

fn fails(flag: &AtomicBool, kind: io::ErrorKind) -> io::Result<()> {
    if flag.load(Ordering::SeqCst) { Err(kind.into()) } else { Ok(()) }
}

impl Disk for FailingDisk {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        fails(&self.writes, io::ErrorKind::StorageFull)?;
        Kernel.write_at(file, bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        fails(&self.syncs, io::ErrorKind::Other)?;
        Kernel.sync(file)
    }

    fn punch(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        fails(&self.punches, io::ErrorKind::Other)?;
        Kernel.punch(file, offset, len)
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let own = crate::health::disk_bytes(&dir.join("blobs"), 1);
        let total_bytes = 1 << 40;
        Ok(Space { free_bytes: total_bytes - own - self.taken.load(Ordering::SeqCst), total_bytes })
    }
}

/// A disk whose writes wait while it is held.
#[derive(Debug, Default)]
pub(crate) struct HeldDisk {
    held: Mutex<bool>,
    changed: Condvar,
}

impl HeldDisk {
    pub(crate) fn hold(&self, yes: bool) {
        *self.held.lock() = yes;
        self.changed.notify_all();
    }
}

impl Disk for HeldDisk {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.changed.wait_while(&mut self.held.lock(), |held| *held);
        Kernel.write_at(file, bytes, offset)
    }
}

/// How a [`FakeIndex`] behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Good,
    /// Commits fail.
    Fails,
    /// Commits panic.
    Panics,
    /// Commits wait until the mood changes.
    Stalls,
    /// The open fails.
    FailsToOpen,
    /// The open waits until the mood changes.
    StallsToOpen,
}

/// An index in memory, as good or bad as its mood.
#[derive(Debug)]
pub(crate) struct FakeIndex {
    mood: Mutex<Mood>,
    changed: Condvar,
    records: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    pub(crate) opens: AtomicU32,
}

impl FakeIndex {
    pub(crate) fn new(mood: Mood) -> Arc<Self> {
        Arc::new(Self {
            mood: Mutex::new(mood),
            changed: Condvar::new(),
            records: Mutex::default(),
            opens: AtomicU32::new(0),
        })
    }

    /// A good one that holds these records already.
    pub(crate) fn with(records: BTreeMap<Vec<u8>, Vec<u8>>) -> Arc<Self> {
        let index = Self::new(Mood::Good);
        *index.records.lock() = records;
        index
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock() = mood;
        self.changed.notify_all();
    }

    fn wait_while(&self, bad: Mood) -> Mood {
        let mut mood = self.mood.lock();
        while *mood == bad {
            self.changed.wait(&mut mood);
        }
        *mood
    }

    /// What it holds.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.records.lock().iter().for_each(|(key, value)| snapshot.add(key, value));
        snapshot
    }

    pub(crate) fn opener(self: &Arc<Self>) -> OpenIndex {
        let index = self.clone();
        Arc::new(move || {
            index.opens.fetch_add(1, Ordering::SeqCst);
            match index.wait_while(Mood::StallsToOpen) {
                Mood::FailsToOpen => Err(IndexError("told to fail".into())),
                _ => Ok(Box::new(index.clone())),
            }
        })
    }
}

impl Index for Arc<FakeIndex> {
    fn load(&mut self) -> Result<Snapshot, IndexError> {
        Ok(self.snapshot())
    }

    fn commit(&mut self, batch: Vec<Write>) -> Result<(), IndexError> {
        match self.wait_while(Mood::Stalls) {
            Mood::Fails => return Err(IndexError("told to fail".into())),
            Mood::Panics => panic!("told to panic"),
            _ => {}
        }
        let mut records = self.records.lock();
        for write in batch {
            match write.value {
                Some(value) => records.insert(write.key, value),
                None => records.remove(&write.key),
            };
        }
        Ok(())
    }
}

/// Copies a directory with everything in it; files stay sparse.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
