//! A cache behaves as a map with a size: whatever is done to it, a read gives the blob's bytes, and the cap holds.

use std::sync::{Arc, atomic::Ordering};

use penstock_blob::{BlobSource, Purpose, faults::Framed};
use proptest::prelude::*;

use crate::{
    Cache,
    config::Seams,
    testing::{Bench, CHUNK, FailingDisk, crash, located, part, range},
};

/// Sizes of the model's blobs in bytes; together more than the cap.
const SIZES: [u64; 3] = [9 * CHUNK + 1, 20 * CHUNK, 70];
const CAP: u64 = 17 * CHUNK;
/// Size of a frame of the source below in bytes.
const FRAME_BYTES: u64 = 3 * CHUNK + 1000;

#[derive(Debug, Clone)]
enum Step {
    Read(usize, u64, u64),
    /// Nobody waits for it.
    ReadAhead(usize, u64, u64),
    Locate(usize, u64, u64),
    Reject(usize, u64, u64),
    Remove(usize),
    /// By name, also when it is attached.
    Evict(usize),
    Verify(bool),
    Retain(usize),
    /// Others fill the disk, or make room again.
    Full(bool),
    Settle,
    Restart,
    Crash,
    LoseIndex,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = || (0..SIZES.len(), any::<u64>(), 1..6 * CHUNK);
    let step = prop_oneof![
        12 => place().prop_map(|(b, at, len)| Step::Read(b, at, len)),
        4 => place().prop_map(|(b, at, len)| Step::ReadAhead(b, at, len)),
        6 => place().prop_map(|(b, at, len)| Step::Locate(b, at, len)),
        2 => place().prop_map(|(b, at, len)| Step::Reject(b, at, len)),
        1 => (0..SIZES.len()).prop_map(Step::Remove),
        1 => (0..SIZES.len()).prop_map(Step::Evict),
        1 => any::<bool>().prop_map(Step::Verify),
        1 => (0..SIZES.len()).prop_map(Step::Retain),
        2 => any::<bool>().prop_map(Step::Full),
        3 => Just(Step::Settle),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
        1 => Just(Step::LoseIndex),
    ];
    proptest::collection::vec(step, 1..25)
}

/// A range inside a blob of `size` bytes.
fn inside(size: u64, at: u64, len: u64) -> penstock_blob::ByteRange {
    let start = at % size;
    range(start, (start + len).min(size))
}

/// A directory with blobs, on a disk that can be full.
struct Model {
    bench: Bench,
    disk: Arc<FailingDisk>,
}

impl Model {
    fn new() -> Self {
        let mut bench = Bench::new(&SIZES);
        bench.config.cap_bytes = CAP;
        bench.config.ahead_bytes = 8 * CHUNK;
        Self { bench, disk: Arc::default() }
    }

    /// While the disk is full nothing is stored; once it is not, storing goes on at the next look.
    fn fill(&self, cache: &Cache, full: bool) {
        self.disk.writes.store(full, Ordering::SeqCst);
        cache.look();
    }

    /// A kill or restart comes with room: what a start on a full disk does is told by other tests.
    fn free(&self) {
        self.disk.writes.store(false, Ordering::SeqCst);
    }
}

/// Opens, and notes how many chunks only their headers know: the index does not speak of them until somebody reads them.
async fn start(model: &Model, adopted: &mut u64) -> Arc<Cache> {
    model.free();
    let bench = &model.bench;
    let index = Seams::real(&bench.config).index;
    // Frames that fit no grid: reads bring more than they are asked for.
    let upstream = Framed::new(bench.memory.clone(), FRAME_BYTES);
    let cache = bench.open_seams(upstream, model.disk.clone(), index).await;
    let usage = cache.usage();
    *adopted = usage.present_chunks - usage.durable_chunks;
    cache
}

/// Closes the cache and opens it again: all is there but what had to go for the index, which grew meanwhile and is within the cap.
async fn restart(model: &Model, cache: Arc<Cache>, adopted: &mut u64) -> Arc<Cache> {
    model.free();
    cache.look();
    cache.close().await;
    let counts = |cache: &Cache| (cache.usage().present_chunks, cache.usage().durable_chunks);
    let had = counts(&cache);
    crash(cache).await;
    let cache = start(model, adopted).await;
    let (has, evicted) = (counts(&cache), cache.usage().evicted_chunks);
    assert_eq!(has.0 + evicted, had.0);
    assert!(has.1 <= had.1 && has.1 + evicted >= had.1, "{had:?}, {has:?}, {evicted} evicted");
    cache
}

/// Kills the cache, may be loses the index, and opens it again: what was durable is there but what had to go. Leaving chunks come back when
/// their holes were not punched yet, so more may be there than before.
async fn die(model: &Model, cache: Arc<Cache>, adopted: &mut u64, lose_index: bool) -> Arc<Cache> {
    // The committer may be evicting all the while.
    let evicted = cache.metrics().evicted_chunks.clone();
    let before = evicted.get();
    let had = cache.usage().durable_chunks;
    crash(cache).await;
    let had = had.saturating_sub(evicted.get() - before);
    if lose_index {
        std::fs::remove_dir_all(model.bench.path().join("index")).unwrap();
    }
    let cache = start(model, adopted).await;
    let has = cache.usage();
    assert!(has.present_chunks + has.evicted_chunks >= had, "a durable chunk was lost");
    cache
}

/// Waits until all is durable. What a full disk refused may still be tried again when it has room, and nobody waits for that.
async fn settle(cache: &Cache, adopted: u64) {
    cache.settle().await;
    let (usage, metrics) = (cache.usage(), cache.metrics());
    let is_sure = metrics.write_failures.get() + metrics.commit_failures.get() == 0;
    let late = usage.present_chunks - usage.durable_chunks;
    assert!(!is_sure || late <= adopted, "{usage:?}, {adopted} adopted");
}

async fn run(steps: Vec<Step>) {
    let model = Model::new();
    let bench = &model.bench;
    let mut adopted = 0;
    let mut cache = start(&model, &mut adopted).await;
    for step in steps {
        match step {
            Step::Read(blob, at, len) => {
                let (blob, bytes) = &bench.blobs[blob];
                let want = inside(blob.size_bytes, at, len);
                assert!(cache.read(*blob, want, Purpose::Demand).await.unwrap() == part(bytes, want));
            }
            Step::ReadAhead(blob, at, len) => {
                let (blob, bytes) = &bench.blobs[blob];
                let want = inside(blob.size_bytes, at, len);
                assert!(cache.read(*blob, want, Purpose::Ahead).await.unwrap() == part(bytes, want));
            }
            Step::Locate(blob, at, len) => {
                let (blob, bytes) = &bench.blobs[blob];
                let want = inside(blob.size_bytes, at, len);
                let found = located(&cache, blob, want);
                assert!(found.is_none_or(|found| found == part(bytes, want)));
            }
            Step::Reject(blob, at, len) => {
                let blob = bench.blobs[blob].0;
                let want = inside(blob.size_bytes, at, len);
                cache.reject(&blob, want);
                assert!(cache.locate(&blob, want).is_none());
            }
            Step::Remove(blob) => {
                let digest = bench.blobs[blob].0.digest;
                if cache.remove(&digest).await.is_ok() {
                    assert!(cache.blob(&digest).is_none());
                }
            }
            Step::Evict(blob) => {
                let digest = bench.blobs[blob].0.digest;
                // What is being written at this moment may be there afterwards.
                cache.settle().await;
                let cleared = cache.clear(Some(&[digest]), true).await;
                let stays = cleared.kept.iter().any(|(kept, _)| *kept == digest);
                assert!(stays || cache.blob(&digest).is_none_or(|blob| blob.present_chunks == 0), "{cleared:?}");
            }
            Step::Verify(repair) => {
                let found = cache.verify(repair).await;
                assert!(found.is_clean(), "{found:?}");
            }
            Step::Full(full) => model.fill(&cache, full),
            Step::Retain(blob) => cache.retain(&bench.blobs[blob].0.digest),
            Step::Settle => settle(&cache, adopted).await,
            Step::Restart => cache = restart(&model, cache, &mut adopted).await,
            Step::Crash => cache = die(&model, cache, &mut adopted, false).await,
            Step::LoseIndex => cache = die(&model, cache, &mut adopted, true).await,
        }
        let usage = cache.usage();
        assert!(usage.used_bytes <= CAP && bench.blocks() <= CAP, "{usage:?}, {} on disk", bench.blocks());
        assert!(usage.durable_chunks <= usage.present_chunks, "{usage:?}");
    }
    bench.read_all(&cache).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_read_gives_the_blobs_bytes_and_the_cap_holds(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
