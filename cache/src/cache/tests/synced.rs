//! The store over a disk that keeps only what was synced: a small run is recorded step by step, and every prefix of it is replayed as
//! a power cut would leave it. What was not synced is dropped, kept, or kept in part: steps, and pages of a write, by lot.
//!
//! The index keeps its contract here (a commit is durable when it returns); that sled does is what `power.rs` shows.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tempfile::TempDir;

use super::*;
use crate::{
    Cache,
    config::Seams,
    disk::{Disk, Kernel},
    format::Meta,
    index::{Index, IndexError, Snapshot, Write},
    testing::{FakeIndex, Mood},
};

/// The unit in which a disk keeps or loses a write.
const PAGE: u64 = 4096;
/// Lots drawn for each prefix.
const LOTS: u64 = 2;

/// One step of a run. Files go by a number, as names come and go; paths are below the cache directory.
#[derive(Debug, Clone)]
enum Step {
    Create(PathBuf, usize),
    Write(usize, u64, Vec<u8>),
    Len(usize, u64),
    Punch(usize, u64, u64),
    /// What was done to the file before the step of this number is on the device.
    Sync(usize, usize),
    MakeDir(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    /// As `Sync`, for the names in a directory.
    SyncDir(PathBuf, usize),
    Commit(Vec<Write>),
    Committed,
    /// A place in the run that a test asks for.
    Note(&'static str),
}

#[derive(Debug, Default)]
struct Record {
    steps: Vec<Step>,
    files: usize,
    inodes: HashMap<u64, usize>,
}

/// A disk that does as it is told, and remembers.
#[derive(Debug)]
struct Recorder {
    dir: PathBuf,
    record: Mutex<Record>,
}

impl Recorder {
    fn of(file: &File, record: &Record) -> Option<usize> {
        record.inodes.get(&file.metadata().unwrap().ino()).copied()
    }

    /// Records a step on a file that was made here (the lock file was not).
    fn on(&self, file: &File, step: impl FnOnce(usize) -> Step) {
        let mut record = self.record.lock();
        if let Some(file) = Self::of(file, &record) {
            record.steps.push(step(file));
        }
    }

    fn push(&self, step: Step) {
        self.record.lock().steps.push(step);
    }

    fn now(&self) -> usize {
        self.record.lock().steps.len()
    }

    fn below(&self, path: &Path) -> Option<PathBuf> {
        path.strip_prefix(&self.dir).ok().map(Path::to_owned)
    }
}

impl Disk for Recorder {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        Kernel.write_at(file, bytes, offset)?;
        self.on(file, |no| Step::Write(no, offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let covers = self.now();
        self.on(file, |no| Step::Sync(no, covers));
        Ok(())
    }

    fn punch(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        Kernel.punch(file, offset, len)?;
        self.on(file, |no| Step::Punch(no, offset, len));
        Ok(())
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        Kernel.set_len(file, len)?;
        self.on(file, |no| Step::Len(no, len));
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        assert!(!path.exists(), "nothing is overwritten in place: {}", path.display());
        let file = Kernel.create(path)?;
        let mut record = self.record.lock();
        let no = record.files;
        record.files += 1;
        record.inodes.insert(file.metadata()?.ino(), no);
        record.steps.push(Step::Create(self.below(path).unwrap(), no));
        Ok(file)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        if !path.exists() {
            Kernel.make_dir(path)?;
            self.push(Step::MakeDir(self.below(path).unwrap()));
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Kernel.rename(from, to)?;
        self.push(Step::Rename(self.below(from).unwrap(), self.below(to).unwrap()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Kernel.remove(path)?;
        self.push(Step::Remove(self.below(path).unwrap()));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let covers = self.now();
        if let Some(dir) = self.below(path) {
            self.push(Step::SyncDir(dir, covers));
        }
        Ok(())
    }
}

/// An index that records when its commits begin and return.
struct Journal(Arc<Recorder>, Arc<FakeIndex>);

impl Index for Journal {
    fn load(&mut self) -> Result<Snapshot, IndexError> {
        Ok(self.1.snapshot())
    }

    fn commit(&mut self, batch: Vec<Write>) -> Result<(), IndexError> {
        self.0.push(Step::Commit(batch.clone()));
        self.1.commit(batch)?;
        self.0.push(Step::Committed);
        Ok(())
    }
}

/// A run under record: a directory that is opened, used, crashed and opened again.
struct Run {
    bench: Bench,
    recorder: Arc<Recorder>,
    index: Arc<FakeIndex>,
}

impl Run {
    fn new(sizes: &[u64], cap_bytes: u64) -> Self {
        let mut bench = Bench::new(sizes);
        bench.config.cap_bytes = cap_bytes;
        let recorder = Arc::new(Recorder { dir: bench.path().to_owned(), record: Mutex::default() });
        Self { bench, recorder, index: FakeIndex::new(Mood::Good) }
    }

    async fn open(&self, upstream: Arc<dyn BlobSource>) -> Arc<Cache> {
        let (recorder, index) = (self.recorder.clone(), self.index.clone());
        let index = Arc::new(move || Ok(Box::new(Journal(recorder.clone(), index.clone())) as Box<dyn Index>));
        let seams = Seams { disk: self.recorder.clone(), index, backoff: Duration::from_millis(1) };
        Cache::open_with(self.bench.config.clone(), upstream, &mut Registry::default(), seams).await.unwrap()
    }

    async fn read(&self, cache: &Cache, blob: usize, first: u64, last: u64) {
        let (blob, bytes) = &self.bench.blobs[blob];
        let want = range(first * CHUNK, ((last + 1) * CHUNK).min(blob.size_bytes));
        assert!(cache.read(*blob, want, Purpose::Demand).await.unwrap() == part(bytes, want));
    }

    fn note(&self, note: &'static str) {
        self.recorder.push(Step::Note(note));
    }
}

/// What a power cut left.
#[derive(Debug, Default)]
struct Left {
    dirs: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, usize>,
    files: HashMap<usize, Vec<u8>>,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Blobs whose removal had begun.
    removed: BTreeSet<u32>,
}

/// Which steps of `steps` are on the device whatever happens.
fn durable(steps: &[Step]) -> Vec<bool> {
    let mut durable = vec![false; steps.len()];
    for (at, step) in steps.iter().enumerate() {
        let covers = match step {
            Step::Sync(_, covers) | Step::SyncDir(_, covers) => *covers,
            Step::Committed => at,
            _ => continue,
        };
        for (before, durable) in steps.iter().zip(&mut durable).take(covers) {
            *durable |= makes_durable(step, before);
        }
    }
    durable
}

fn makes_durable(step: &Step, before: &Step) -> bool {
    match (step, before) {
        (Step::Sync(file, _), Step::Write(no, ..) | Step::Len(no, _) | Step::Punch(no, ..)) => no == file,
        (
            Step::SyncDir(dir, _),
            Step::Create(path, _) | Step::MakeDir(path) | Step::Rename(_, path) | Step::Remove(path),
        ) => path.parent() == Some(dir),
        // There is one commit at a time.
        (Step::Committed, Step::Commit(_)) => true,
        _ => false,
    }
}

fn write(file: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let (at, end) = (usize::try_from(at).unwrap(), usize::try_from(at).unwrap() + bytes.len());
    file.resize(file.len().max(end), 0);
    file[at..end].copy_from_slice(bytes);
}

/// Plays `steps`; those that are not durable when `keep` says so.
fn replay(steps: &[Step], keep: &mut dyn FnMut() -> bool) -> Left {
    let mut left = Left::default();
    for (step, durable) in steps.iter().zip(durable(steps)) {
        if let Step::Remove(path) = step {
            let no = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse::<u32>().ok());
            left.removed.extend(no);
        }
        match step {
            Step::Write(no, at, bytes) => {
                let mut start = *at;
                while start < at + bytes.len() as u64 {
                    let end = ((start / PAGE + 1) * PAGE).min(at + bytes.len() as u64);
                    if durable || keep() {
                        let part = usize::try_from(start - at).unwrap()..usize::try_from(end - at).unwrap();
                        write(left.files.entry(*no).or_default(), start, &bytes[part]);
                    }
                    start = end;
                }
            }
            _ if !durable && !keep() => {}
            Step::Create(path, no) => {
                left.names.insert(path.clone(), *no);
            }
            Step::Len(no, len) => left.files.entry(*no).or_default().resize(usize::try_from(*len).unwrap(), 0),
            Step::Punch(no, at, len) => {
                let file = left.files.entry(*no).or_default();
                let end = usize::try_from(at + len).unwrap().min(file.len());
                file.get_mut(usize::try_from(*at).unwrap()..end).unwrap_or_default().fill(0);
            }
            Step::MakeDir(path) => {
                left.dirs.insert(path.clone());
            }
            Step::Rename(from, to) => {
                if let Some(no) = left.names.remove(from) {
                    left.names.insert(to.clone(), no);
                }
            }
            Step::Remove(path) => {
                left.names.remove(path);
            }
            Step::Commit(batch) => {
                for Write { key, value } in batch {
                    match value {
                        Some(value) => left.records.insert(key.clone(), value.clone()),
                        None => left.records.remove(key),
                    };
                }
            }
            Step::Sync(..) | Step::SyncDir(..) | Step::Committed | Step::Note(_) => {}
        }
    }
    left
}

impl Left {
    fn file(&self, path: &str) -> Option<Vec<u8>> {
        self.dirs.contains(Path::new("blobs")).then_some(())?;
        self.names.get(Path::new(path)).map(|no| self.files.get(no).cloned().unwrap_or_default())
    }

    /// Compares every chunk that the index calls present with the truth: how many bytes there are.
    fn check_indexed(&self, bench: &Bench, totals: &mut Totals) -> u64 {
        let mut snapshot = Snapshot::default();
        self.records.iter().for_each(|(key, value)| snapshot.add(key, value));
        self.check(&snapshot, |path| self.file(path), bench, totals)
    }

    fn check(
        &self,
        snapshot: &Snapshot,
        file: impl Fn(&str) -> Option<Vec<u8>>,
        bench: &Bench,
        totals: &mut Totals,
    ) -> u64 {
        assert_eq!(snapshot.damaged, 0);
        let mut indexed = 0;
        for (no, segment, record) in &snapshot.segments {
            let chunks = record.bits.count();
            let Some(meta) = file(&format!("blobs/{no}.meta")).and_then(|bytes| Meta::decode(&bytes)) else {
                totals.lost += if self.removed.contains(no) { 0 } else { u64::from(chunks) };
                continue;
            };
            let (_, truth) = bench.blobs.iter().find(|(blob, _)| *blob == meta.blob).unwrap();
            // Gone data means gone chunks, and that is how they are found: no file, no blob.
            let Some(data) = file(&format!("blobs/{no}.data")) else {
                assert!(self.removed.contains(no), "blob {no} has lost its data");
                continue;
            };
            for slot in record.bits.iter() {
                let want = meta.chunk_size.range(&meta.blob, segment * 256 + slot).unwrap();
                let found = data.get(usize::try_from(want.start()).unwrap()..usize::try_from(want.end()).unwrap());
                totals.compared += 1;
                totals.wrong += u64::from(found.is_none_or(|found| part(truth, want) != found));
                indexed += want.len();
            }
        }
        indexed
    }

    /// Makes the directory that a start would find.
    fn write_to(&self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        self.dirs.iter().for_each(|below| fs::create_dir_all(dir.join(below)).unwrap());
        for (path, no) in &self.names {
            // A directory that is not there holds no files.
            if dir.join(path).parent().unwrap().exists() {
                fs::write(dir.join(path), self.files.get(no).map_or(&[][..], Vec::as_slice)).unwrap();
            }
        }
    }
}

#[derive(Debug, Default)]
struct Totals {
    replays: u64,
    compared: u64,
    wrong: u64,
    lost: u64,
    read_bytes: u64,
    fetched_again: u64,
}

/// Replays every prefix from `from` on, every way, and opens what is left.
async fn every_prefix(run: &Run, from: usize) -> Totals {
    let steps = run.recorder.record.lock().steps.clone();
    let mut totals = Totals::default();
    let mut lots = fastrand::Rng::with_seed(11);
    // In memory where there is such a place: a thousand starts would wait for the disk.
    let memory = Some(Path::new("/dev/shm")).filter(|dir| dir.is_dir());
    let place = memory.map_or_else(TempDir::new, TempDir::new_in).unwrap();
    for end in from..=steps.len() {
        for lot in 0..2 + LOTS {
            let mut keep = || match lot {
                0 => false,
                1 => true,
                _ => lots.bool(),
            };
            let left = replay(&steps[..end], &mut keep);
            let before = (totals.wrong, totals.lost);
            let indexed = left.check_indexed(&run.bench, &mut totals);
            let last = format!("{:?}", steps[..end].last());
            assert_eq!((totals.wrong, totals.lost), before, "prefix {end}, lot {lot}: {:.80}", last);
            let dir = place.path().join(format!("{end}-{lot}"));
            left.write_to(&dir);
            reopen(run, &dir, left, (indexed, &mut totals)).await;
            fs::remove_dir_all(dir).unwrap();
            totals.replays += 1;
        }
    }
    totals
}

/// Opens what was left, reads everything, and compares.
async fn reopen(run: &Run, dir: &Path, left: Left, (indexed, totals): (u64, &mut Totals)) {
    let bench = &run.bench;
    let mut config = bench.config.clone();
    config.dir = dir.to_owned();
    // Nothing is evicted while it is read: what is fetched then was not there.
    config.cap_bytes = 1 << 30;
    let index = FakeIndex::with(left.records.clone());
    let seams = Seams { disk: Arc::new(Kernel), index: index.opener(), backoff: Duration::from_millis(1) };
    let cache = Cache::open_with(config, bench.memory.clone(), &mut Registry::default(), seams).await.unwrap();
    // What a start records of what it found is as right as what was recorded before.
    cache.settle().await;
    let found = |path: &str| fs::read(dir.join(path)).ok();
    left.check(&index.snapshot(), found, bench, totals);
    assert_eq!((totals.wrong, totals.lost), (0, 0), "a start recorded what is not there");
    let before = bench.memory.bytes_read();
    bench.read_all(&cache).await;
    let all: u64 = bench.blobs.iter().map(|(blob, _)| blob.size_bytes).sum();
    let fetched = bench.memory.bytes_read() - before;
    // What was being removed need not be there.
    assert!(
        !left.removed.is_empty() || fetched <= all - indexed,
        "{fetched} bytes fetched of {all}, {indexed} were indexed"
    );
    totals.read_bytes += all;
    totals.fetched_again += fetched;
    crash(cache).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_power_cut_leaves_of_a_run_no_indexed_chunk_is_wrong_or_lost() {
    let run = Run::new(&[5 * CHUNK + 100, 20 * CHUNK, 3 * CHUNK], 18 * CHUNK);
    let cache = run.open(run.bench.memory.clone()).await;
    run.read(&cache, 0, 0, 1).await;
    run.read(&cache, 0, 3, 5).await;
    cache.settle().await;
    run.read(&cache, 2, 1, 1).await;
    run.read(&cache, 1, 0, 3).await;
    cache.settle().await;
    // More than the cap.
    run.read(&cache, 1, 6, 15).await;
    cache.settle().await;
    run.read(&cache, 1, 16, 19).await;
    cache.reject(&run.bench.blobs[1].0, range(17 * CHUNK, 18 * CHUNK));
    run.read(&cache, 1, 17, 17).await;
    cache.settle().await;
    crash(cache).await;
    let cache = run.open(run.bench.memory.clone()).await;
    run.read(&cache, 0, 2, 4).await;
    cache.settle().await;
    run.read(&cache, 2, 0, 0).await;
    cache.settle().await;
    cache.close().await;
    crash(cache).await;
    let cache = run.open(run.bench.memory.clone()).await;
    let blob = run.bench.blobs[2].0.digest;
    assert!(cache.remove(&blob).await.is_ok(), "it is there, and never was whole: nobody hashes it");
    run.read(&cache, 2, 1, 1).await;
    run.read(&cache, 1, 4, 5).await;
    cache.settle().await;
    cache.close().await;
    assert!(cache.usage().evicted_chunks > 0 || run.recorder.has_punched());
    let totals = every_prefix(&run, 0).await;
    println!("{} steps: {totals:?}", run.recorder.now());
    assert!(totals.replays > 400 && totals.compared > 1000, "{totals:?}");
    assert!(totals.fetched_again < totals.read_bytes, "nothing ever survived: {totals:?}");
}

impl Recorder {
    fn has_punched(&self) -> bool {
        self.record.lock().steps.iter().any(|step| matches!(step, Step::Punch(..)))
    }

    fn place(&self, note: &str) -> usize {
        let place = |step: &Step| matches!(step, Step::Note(n) if *n == note);
        self.record.lock().steps.iter().position(place).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_chunk_does_not_come_back_with_a_power_cut() {
    let run = Run::new(&[4 * CHUNK, 4 * CHUNK], 1 << 30);
    let corrupt = Corrupt::new(run.bench.memory.clone());
    let cache = run.open(corrupt.clone()).await;
    let (blob, bytes) = run.bench.blobs[0].clone();
    let all = range(0, 3 * CHUNK);
    assert!(cache.read(blob, all, Purpose::Demand).await.unwrap() != part(&bytes, all), "the mirror lies");
    cache.settle().await;
    corrupt.set(false);
    cache.reject(&blob, all);
    cache.settle().await;
    run.note("rejected");
    run.read(&cache, 0, 0, 1).await;
    run.read(&cache, 1, 0, 1).await;
    cache.settle().await;
    cache.close().await;
    let totals = every_prefix(&run, run.recorder.place("rejected")).await;
    println!("{} steps: {totals:?}", run.recorder.now());
    assert!(totals.replays > 0 && totals.compared > 0);
}
