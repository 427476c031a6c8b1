//! This test program once more, as a process that works on a cache until it is killed; and what is looked at afterwards.
//!
//! A test that needs such a process starts itself: with an order in the environment it is the child, without it the parent.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead as _, BufReader, Lines},
    os::unix::{fs::FileExt as _, process::ExitStatusExt as _},
    process::{ChildStdout, Command, Stdio},
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::registry::Registry;

use super::*;
use crate::{
    Cache,
    bits::Bits,
    config::Seams,
    disk::Kernel,
    format::Meta,
    index::{Index, IndexError, SledIndex, Snapshot, Write},
};

/// Where a child finds its order.
const ORDER: &str = "PENSTOCK_CACHE_TEST_ORDER";
/// Begins the lines that a child says: the harness prints too.
const SAYS: &str = "@ ";

/// What this process is to do, if it is a child.
#[expect(clippy::disallowed_methods, reason = "a test talks to itself in another process")]
pub(super) fn order() -> Option<String> {
    std::env::var(ORDER).ok()
}

/// Says a line to the parent.
pub(super) fn say(text: &str) {
    // The harness may have begun a line.
    println!("\n{SAYS}{text}");
}

/// A child at work. Killed when dropped.
pub(super) struct Child {
    process: std::process::Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts the test `name` of this file's folder with an order.
    pub(super) fn start(name: &str, order: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("cache::tests::{name}"), "--nocapture", "--test-threads=1"]);
        let mut process = command.env(ORDER, order).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    /// The next thing it says; `None` when it has ended.
    pub(super) fn hear(&mut self) -> Option<String> {
        loop {
            let line = self.lines.next()?.unwrap();
            if let Some((_, said)) = line.split_once(SAYS) {
                return Some(said.to_owned());
            }
        }
    }

    /// Whether SIGKILL ended it. Waits for its end.
    pub(super) fn was_killed(mut self) -> bool {
        while self.hear().is_some() {}
        self.process.wait().unwrap().signal() == Some(9)
    }

    /// SIGKILL; what it had said and nobody had heard yet. The last of that may be cut off.
    pub(super) fn kill(mut self) -> Vec<String> {
        self.process.kill().unwrap();
        let unheard = std::iter::from_fn(|| self.hear()).collect();
        self.process.wait().unwrap();
        unheard
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Says which chunks of the blob are durable.
pub(super) fn say_durable(cache: &Cache, blob: &Blob) {
    let table = cache.store.table.load();
    let slots = table.get(blob).and_then(|entry| entry.slots.get());
    let chunks = slots.into_iter().flat_map(|slots| {
        let of = |(n, s): (u32, &crate::slots::Segment)| s.durable.load().iter().map(|slot| n * 256 + slot).collect();
        slots.known_segments().flat_map(of as fn(_) -> Vec<u32>).collect::<Vec<_>>()
    });
    let chunks: Vec<String> = chunks.map(|chunk| chunk.to_string()).collect();
    say(&format!("durable {}", chunks.join(",")));
}

/// The chunks that such a line names.
pub(super) fn heard_durable(line: &str) -> Option<BTreeSet<u32>> {
    let chunks = line.strip_prefix("durable ")?;
    Some(chunks.split(',').filter(|chunk| !chunk.is_empty()).map(|chunk| chunk.parse().unwrap()).collect())
}

/// What was found after a crash.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Found {
    /// Chunks that the index called present, compared byte for byte.
    pub(super) compared: u64,
    /// Those of them that were wrong.
    pub(super) wrong: u64,
    /// Chunks that were durable, as the child said, and were not there.
    pub(super) lost: u64,
    /// Chunks that were read through the cache, all of them right.
    pub(super) read: u64,
    /// Chunks known by their headers whose checksum failed.
    pub(super) dropped: u64,
}

impl Found {
    /// Says it to the parent.
    pub(super) fn say(self) {
        let Self { compared, wrong, lost, read, dropped } = self;
        say(&format!("found {compared} {wrong} {lost} {read} {dropped}"));
    }

    /// What a child said.
    pub(super) fn heard(line: &str) -> Self {
        let numbers = line.strip_prefix("found ").unwrap().split(' ').map(|n| n.parse().unwrap());
        let [compared, wrong, lost, read, dropped] = numbers.collect::<Vec<_>>().try_into().unwrap();
        Self { compared, wrong, lost, read, dropped }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.compared += other.compared;
        self.wrong += other.wrong;
        self.lost += other.lost;
        self.read += other.read;
        self.dropped += other.dropped;
    }
}

/// sled, with a note of what it held when it was opened.
struct Noting(SledIndex, Arc<Mutex<Vec<(u32, u32, Bits)>>>);

impl Index for Noting {
    fn load(&mut self) -> Result<Snapshot, IndexError> {
        let snapshot = self.0.load()?;
        self.1.lock().extend(snapshot.segments.iter().map(|(no, segment, record)| (*no, *segment, record.bits)));
        Ok(snapshot)
    }

    fn commit(&mut self, batch: Vec<Write>) -> Result<(), IndexError> {
        self.0.commit(batch)
    }
}

/// Opens what a crash left, in front of nothing: what the index calls present, and what was durable of the first blob, is compared with
/// the files, and every chunk is read.
pub(super) async fn look(bench: &Bench, durable: &BTreeSet<u32>, close: bool) -> Found {
    let noted = Arc::new(Mutex::new(Vec::new()));
    let (dir, note) = (bench.path().join("index"), noted.clone());
    let index = Arc::new(move || Ok(Box::new(Noting(SledIndex::open(&dir)?, note.clone())) as Box<dyn Index>));
    let seams = Seams { disk: Arc::new(Kernel), index, backoff: Duration::from_millis(1) };
    let mut config = bench.config.clone();
    // The whole of it is looked at before anything is evicted.
    config.cap_bytes = 1 << 40;
    let cache = Cache::open_with(config, refusing(), &mut Registry::default(), seams).await.unwrap();
    let mut found = Found::default();
    for (no, segment, bits) in noted.lock().iter() {
        compare(bench, (*no, *segment, *bits), &mut found);
    }
    for (at, (blob, bytes)) in bench.blobs.iter().enumerate() {
        let slots = cache.store.table.load().get(blob).and_then(|entry| entry.slots.get().cloned());
        let is_present = |chunk: u32| slots.as_ref().is_some_and(|slots| slots.is_present(chunk));
        for chunk in 0..bench.config.chunk_size.count(blob).unwrap() {
            found.lost += u64::from(at == 0 && durable.contains(&chunk) && !is_present(chunk));
            if !is_present(chunk) {
                continue;
            }
            let want = bench.config.chunk_size.range(blob, chunk).unwrap();
            match cache.read(*blob, want, Purpose::Demand).await {
                Ok(read) => {
                    assert!(read == part(bytes, want), "the cache served wrong bytes");
                    found.read += 1;
                }
                Err(_) => found.dropped += 1,
            }
        }
    }
    // Blobs that are whole are hashed meanwhile, which may find a chunk before it is read here.
    assert!(cache.usage().corrupt_chunks >= found.dropped, "what is dropped is counted");
    if close {
        cache.close().await;
    }
    crash(cache).await;
    found
}

/// Compares what the index calls present of a segment with the files. A blob without files is none.
fn compare(bench: &Bench, (no, segment, bits): (u32, u32, Bits), found: &mut Found) {
    let blobs = bench.path().join("blobs");
    let meta = fs::read(blobs.join(format!("{no}.meta"))).ok().and_then(|bytes| Meta::decode(&bytes));
    let Some(meta) = meta else { return };
    let (_, truth) = bench.blobs.iter().find(|(blob, _)| *blob == meta.blob).unwrap();
    let data = File::open(blobs.join(format!("{no}.data"))).unwrap();
    for slot in bits.iter() {
        let want = meta.chunk_size.range(&meta.blob, segment * 256 + slot).unwrap();
        let mut bytes = vec![0; usize::try_from(want.len()).unwrap()];
        let read = data.read_exact_at(&mut bytes, want.start());
        found.compared += 1;
        found.wrong += u64::from(read.is_err() || part(truth, want) != bytes);
    }
}
