//! SIGKILL at each step of what a cache does to its directory. The steps are not written down here: a first run names each as it
//! passes, and for each a process then runs up to it and dies there.

use std::{collections::BTreeSet, fs::File, io, os::fd::AsRawFd as _, path::Path, time::Duration};

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use rustix::process::{Signal, getpid, kill_process};
use tempfile::TempDir;

use super::{
    child::{Child, Found, heard_durable, look, order, say, say_durable},
    *,
};
use crate::{
    Cache,
    config::Seams,
    disk::{Disk, Kernel},
    index::{Index, IndexError, SledIndex, Snapshot, Write},
};

/// The test, as its child is called.
const NAME: &str = "killed::killed_at_each_step_it_serves_right_bytes_and_keeps_what_was_durable";
/// Children at once: they mostly wait.
const AT_ONCE: usize = 4;
/// What must be among the steps, lest a seam fall out of use unseen.
const EXPECTED: [&str; 16] = [
    "first fill: before making data",
    "first fill: after syncing the names in blobs",
    "first fill: half way through writing data",
    "fill: before writing data",
    "fill: after writing data",
    "fill: after writing slots",
    "fill: after syncing data",
    "fill: after syncing slots",
    "fill: between index batch and flush",
    "fill: after index flush",
    "eviction: before clearing slots",
    "eviction: after index flush",
    "eviction: after punching data",
    "removal: after removing meta",
    "start without index: after index flush",
    "start without slots: after writing slots",
];

/// Where the run stands, and the step at which it is to die.
#[derive(Debug)]
struct Steps {
    phase: Mutex<&'static str>,
    last: Option<String>,
    seen: Mutex<BTreeSet<String>>,
}

impl Steps {
    /// Passes a step, or ends here.
    fn pass(&self, step: &str) {
        if self.is_last(step) {
            kill_process(getpid(), Signal::KILL).unwrap();
        }
    }

    fn is_last(&self, step: &str) -> bool {
        let step = format!("{}: {step}", self.phase.lock());
        if self.last.is_none() && self.seen.lock().insert(step.clone()) {
            say(&format!("step {step}"));
        }
        self.last.as_ref() == Some(&step)
    }

    fn around<T>(&self, what: &str, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.pass(&format!("before {what}"));
        let done = work()?;
        self.pass(&format!("after {what}"));
        Ok(done)
    }

    fn phase(&self, phase: &'static str) {
        *self.phase.lock() = phase;
    }
}

/// What a file is, in the words of the steps.
fn kind(path: &Path) -> &str {
    let of = |part: Option<&'_ std::ffi::OsStr>| part.and_then(|part| part.to_str()).unwrap_or("").to_owned();
    match (of(path.extension()).as_str(), of(path.file_name()).as_str()) {
        ("data", _) => "data",
        ("slots", _) => "slots",
        ("meta", _) => "meta",
        ("tmp", _) => "a temporary file",
        (_, "blobs") => "blobs",
        (_, "lock") => "lock",
        (_, "commits") => "commits",
        (_, "clean") => "clean",
        (_, "layout") => "layout",
        (_, "index") => "index",
        _ => "the directory",
    }
}

fn kind_of(file: &File) -> String {
    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    kind(&path).to_owned()
}

/// The kernel's files, step by step.
#[derive(Debug)]
struct SteppingDisk(Arc<Steps>);

impl Disk for SteppingDisk {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let verb = if bytes.iter().all(|byte| *byte == 0) { "clearing" } else { "writing" };
        let what = format!("{verb} {}", kind_of(file));
        if self.0.is_last(&format!("half way through {what}")) {
            Kernel.write_at(file, &bytes[..bytes.len() / 2], offset)?;
            kill_process(getpid(), Signal::KILL).unwrap();
        }
        self.0.around(&what, || Kernel.write_at(file, bytes, offset))
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.0.around(&format!("syncing {}", kind_of(file)), || Kernel.sync(file))
    }

    fn punch(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        self.0.around(&format!("punching {}", kind_of(file)), || Kernel.punch(file, offset, len))
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.0.around(&format!("giving {} its length", kind_of(file)), || Kernel.set_len(file, len))
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.0.around(&format!("making {}", kind(path)), || Kernel.create(path))
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.0.around(&format!("making {}", kind(path)), || Kernel.make_dir(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.around(&format!("renaming to {}", kind(to)), || Kernel.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.around(&format!("removing {}", kind(path)), || Kernel.remove(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.around(&format!("syncing the names in {}", kind(path)), || Kernel.sync_dir(path))
    }
}

/// sled, step by step.
struct SteppingIndex(Arc<Steps>, SledIndex);

impl Index for SteppingIndex {
    fn load(&mut self) -> Result<Snapshot, IndexError> {
        self.0.pass("before loading the index");
        self.1.load()
    }

    fn commit(&mut self, batch: Vec<Write>) -> Result<(), IndexError> {
        self.0.pass("before index batch");
        self.1.apply(batch)?;
        self.0.pass("between index batch and flush");
        self.1.flush()?;
        self.0.pass("after index flush");
        Ok(())
    }
}

/// The same blobs in parent and child, in `dir`.
fn bench(dir: &Path) -> Bench {
    let mut bench = Bench::new(&[10 * CHUNK + 5, 40 * CHUNK, 3 * CHUNK]);
    bench.config.dir = dir.join("cache");
    bench.config.cap_bytes = 34 * CHUNK;
    bench
}

/// The run that is killed.
struct Run {
    bench: Bench,
    steps: Arc<Steps>,
}

impl Run {
    async fn open(&self, phase: &'static str) -> Arc<Cache> {
        self.steps.phase(phase);
        let (dir, steps) = (self.bench.path().join("index"), self.steps.clone());
        let index = Arc::new(move || {
            steps.pass("before opening the index");
            Ok(Box::new(SteppingIndex(steps.clone(), SledIndex::open(&dir)?)) as Box<dyn Index>)
        });
        let seams =
            Seams { disk: Arc::new(SteppingDisk(self.steps.clone())), index, backoff: Duration::from_millis(1) };
        let memory = self.bench.memory.clone();
        let cache = Cache::open_with(self.bench.config.clone(), memory, &mut Registry::default(), seams).await.unwrap();
        // Evicted last: what was durable of it has to be there whatever happens.
        cache.retain(&self.bench.blobs[0].0.digest);
        cache
    }

    async fn read(&self, cache: &Cache, blob: usize, first: u64, last: u64) {
        let (blob, bytes) = &self.bench.blobs[blob];
        let want = range(first * CHUNK, ((last + 1) * CHUNK).min(blob.size_bytes));
        assert!(cache.read(*blob, want, Purpose::Demand).await.unwrap() == part(bytes, want));
    }

    async fn settle(&self, cache: &Cache) {
        cache.settle().await;
        say_durable(cache, &self.bench.blobs[0].0);
    }

    async fn all(&self) {
        let cache = self.open("first start").await;
        self.steps.phase("first fill");
        self.read(&cache, 0, 0, 1).await;
        self.settle(&cache).await;
        self.steps.phase("fill");
        self.read(&cache, 0, 3, 4).await;
        self.settle(&cache).await;
        self.read(&cache, 1, 0, 15).await;
        self.settle(&cache).await;
        self.steps.phase("eviction");
        self.read(&cache, 1, 20, 27).await;
        self.read(&cache, 1, 30, 37).await;
        self.settle(&cache).await;
        self.steps.phase("rejection");
        let present = (20..38).find(|chunk| located(&cache, &self.bench.blobs[1].0, chunk_range(*chunk)).is_some());
        cache.reject(&self.bench.blobs[1].0, chunk_range(present.unwrap()));
        self.settle(&cache).await;
        self.steps.phase("removal");
        self.read(&cache, 2, 0, 1).await;
        self.settle(&cache).await;
        cache.remove(&self.bench.blobs[2].0.digest).await.unwrap();
        self.settle(&cache).await;
        self.steps.phase("close");
        cache.close().await;
        drop(cache);
        self.restarts().await;
    }

    async fn restarts(&self) {
        crash(self.open("start after a close").await).await;
        let cache = self.open("start after a crash").await;
        self.read(&cache, 0, 0, 5).await;
        self.settle(&cache).await;
        crash(cache).await;
        fs::remove_dir_all(self.bench.path().join("index")).unwrap();
        let cache = self.open("start without index").await;
        self.read(&cache, 0, 0, 5).await;
        self.settle(&cache).await;
        cache.close().await;
        drop(cache);
        for slots in fs::read_dir(self.bench.path().join("blobs")).unwrap().map(|file| file.unwrap().path()) {
            if slots.extension().is_some_and(|kind| kind == "slots") {
                fs::remove_file(slots).unwrap();
            }
        }
        let cache = self.open("start without slots").await;
        self.settle(&cache).await;
        cache.close().await;
    }
}

fn chunk_range(chunk: u64) -> penstock_blob::ByteRange {
    range(chunk * CHUNK, (chunk + 1) * CHUNK)
}

/// The child: the run, up to the step it was told.
async fn child(order: &str) {
    let (dir, last) = order.split_once('|').unwrap();
    let last = Some(last.to_owned()).filter(|last| !last.is_empty());
    let steps = Arc::new(Steps { phase: Mutex::new(""), last, seen: Mutex::default() });
    Run { bench: bench(Path::new(dir)), steps }.all().await;
}

/// Lets a child run up to a step, and looks at what it left.
async fn killed_at(step: String) -> (String, Found) {
    // In memory where there is such a place: a kill loses nothing that was written, so the disk makes no difference.
    let memory = Some(Path::new("/dev/shm")).filter(|dir| dir.is_dir());
    let dir = memory.map_or_else(TempDir::new, TempDir::new_in).unwrap();
    let order = format!("{}|{step}", dir.path().display());
    let heard = tokio::task::spawn_blocking(move || {
        let mut child = Child::start(NAME, &order);
        let mut durable = BTreeSet::new();
        while let Some(line) = child.hear() {
            durable = heard_durable(&line).unwrap_or(durable);
        }
        (child.was_killed(), durable)
    });
    let (killed, durable) = heard.await.unwrap();
    assert!(killed, "{step}: the child did not come to it");
    let found = look(&bench(dir.path()), &durable, true).await;
    assert_eq!((found.wrong, found.lost, found.dropped), (0, 0, 0), "{step}: {found:?}");
    (step, found)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_step_it_serves_right_bytes_and_keeps_what_was_durable() {
    if let Some(order) = order() {
        return child(&order).await;
    }
    let dir = TempDir::new().unwrap();
    let mut first = Child::start(NAME, &format!("{}|", dir.path().display()));
    let mut steps = Vec::new();
    while let Some(line) = first.hear() {
        steps.extend(line.strip_prefix("step ").map(str::to_owned));
    }
    for expected in EXPECTED {
        assert!(steps.iter().any(|step| step == expected), "no step {expected:?} in {steps:#?}");
    }
    let (mut all, mut waiting, mut at_work) = (Found::default(), steps.clone().into_iter(), JoinSet::new());
    loop {
        while at_work.len() < AT_ONCE
            && let Some(step) = waiting.next()
        {
            at_work.spawn(killed_at(step));
        }
        let Some(done) = at_work.join_next().await else { break };
        let (step, found) = done.unwrap();
        println!("killed {step}: {} indexed chunks compared, {} read", found.compared, found.read);
        all.add(found);
    }
    println!("killed at {} steps: {all:?}", steps.len());
    assert!(all.compared > 0 && all.read > 0);
}
