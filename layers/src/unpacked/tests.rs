//! Reads of archives through sources that fail, lie and are slow.

use std::{fs::File, sync::atomic::AtomicU32};

use penstock_blob::{
    conformance,
    faults::{Flaky, Memory, Slow},
};
use proptest::proptest;
use tempfile::TempDir;

mod streamed;

use super::*;
use crate::{
    index::format::{PAGE_BYTES, RECORD_BYTES, table_page},
    testing::{build, gzip_member, mixed, noise},
};

/// A layer in memory and its index in a directory.
struct Bench {
    dir: TempDir,
    memory: Arc<Memory>,
    unpacked: Bytes,
    archive: Blob,
}

fn config() -> Config {
    Config { deadline: Duration::from_secs(600), decodes: 2, recent_bytes: 4 << 20 }
}

impl Bench {
    fn new(packed: Vec<u8>, unpacked: Vec<u8>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let built = build(dir.path(), &packed, &unpacked, 1 << 20).unwrap();
        let memory = Memory::new(vec![packed.into(), Bytes::from_static(b"another blob")]);
        Self { dir, memory, unpacked: unpacked.into(), archive: built.layer.unpacked }
    }

    fn gzip(seed: u64, len: usize) -> Self {
        let unpacked = mixed(seed, len);
        Self::new(gzip_member(&unpacked, 6), unpacked)
    }

    fn index(&self) -> Index {
        Index::open(File::open(self.dir.path().join("index")).unwrap()).unwrap()
    }

    fn over(&self, below: Arc<dyn BlobSource>) -> (Arc<Unpacked>, Registered) {
        let unpacked = Unpacked::new(below, config(), &mut Registry::default());
        let registered = unpacked.register(self.index());
        (unpacked, registered)
    }

    fn part(&self, range: ByteRange) -> Bytes {
        self.unpacked.slice(usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap())
    }
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).unwrap()
}

#[test]
fn compressed_bytes_are_read_together_as_far_as_they_lie_together() {
    let range = |start, len| ByteRange::at(start, len).unwrap();
    let runs = |ranges: &[(u64, u64)]| {
        let runs = super::runs(ranges.iter().map(|&(start, len)| range(start, len)));
        runs.iter().map(|run| (run.range.start(), run.range.len(), run.count)).collect::<Vec<_>>()
    };
    assert_eq!(runs(&[]), []);
    assert_eq!(runs(&[(5, 10), (14, 6), (20, 1), (1000, 24)]), [(5, 1019, 4)]);
    assert_eq!(runs(&[(5, 10), (5, 10)]), [(5, 10, 2)], "of the same bytes");
    assert_eq!(runs(&[(5, 10), (15 + (64 << 10) + 1, 1)]), [(5, 10, 1), (15 + (64 << 10) + 1, 1, 1)]);
    assert_eq!(runs(&[(100, 10), (5, 10)]), [(100, 10, 1), (5, 10, 1)], "backwards");
    let half = super::MAX_RUN_BYTES / 2;
    assert_eq!(runs(&[(0, half), (half, half), (2 * half, 1)]), [(0, 2 * half, 2), (2 * half, 1, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_promise_of_a_source_is_kept_for_archives_and_for_what_passes_through() {
    let unpacked = mixed(1, 5 << 19);
    let zstd = unpacked.chunks(400_000).flat_map(|part| zstd::bulk::compress(part, 1).unwrap()).collect();
    for packed in [gzip_member(&unpacked, 6), zstd, unpacked.clone()] {
        let bench = Bench::new(packed, unpacked.clone());
        let (source, _registered) = bench.over(bench.memory.clone());
        let other = (bench.memory.blob(1), Bytes::from_static(b"another blob"));
        conformance::check(source, &[(bench.archive, bench.unpacked.clone()), other]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_read_while_it_is_registered() {
    let bench = Bench::gzip(2, 1 << 20);
    let (source, registered) = bench.over(bench.memory.clone());
    let second = source.register(bench.index());
    let some = range(100, 200);
    drop(registered);
    assert_eq!(source.read(bench.archive, some, Purpose::Demand).await.unwrap(), bench.part(some));
    assert_eq!(source.tools.metrics.layers.get(), 1);
    drop(second);
    let gone = source.read(bench.archive, some, Purpose::Demand).await;
    assert!(matches!(gone, Err(ReadError::NotFound { .. })), "{gone:?}");
    assert_eq!((source.layers.read().len(), source.tools.metrics.layers.get()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_read_fetches_one_frame_and_whoever_reads_on_fetches_nothing_twice() {
    let bench = Bench::gzip(3, 4 << 20);
    let (source, _registered) = bench.over(bench.memory.clone());
    let wide = source.widen(&bench.archive, range(2 << 20, (2 << 20) + 4096));
    assert!((1 << 20..2 << 20).contains(&wide.len()), "{wide}");
    let packed = bench.memory.blob(0).size_bytes;
    source.read(bench.archive, range(2 << 20, (2 << 20) + 4096), Purpose::Demand).await.unwrap();
    assert_eq!(bench.memory.reads(), 1);
    assert!(bench.memory.bytes_read() < packed / 2, "{} of {packed}", bench.memory.bytes_read());
    let before = bench.memory.bytes_read();
    for start in (wide.start()..wide.end()).step_by(100_000) {
        let some = range(start, wide.end().min(start + 100_000));
        assert_eq!(source.read(bench.archive, some, Purpose::Demand).await.unwrap(), bench.part(some));
    }
    assert_eq!(bench.memory.bytes_read(), before);
    assert_eq!(source.tools.metrics.decoded_bytes.get(), wide.len());
    // The whole archive, in one read: a batch at a time.
    let all = bench.archive.all().unwrap();
    assert!(source.read(bench.archive, all, Purpose::Ahead).await.unwrap() == bench.unpacked);
    assert_eq!(source.tools.metrics.decoded_bytes.get(), bench.archive.size_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_layer_that_swells_a_thousandfold_a_read_decodes_one_frame() {
    let unpacked = vec![0; 64 << 20];
    let bench = Bench::new(gzip_member(&unpacked, 9), unpacked);
    assert!(bench.memory.blob(0).size_bytes < 100_000);
    let (source, registered) = bench.over(bench.memory.clone());
    assert!(registered.index().layer().frames > 4);
    let page = range(32 << 20, (32 << 20) + 4096);
    assert_eq!(source.read(bench.archive, page, Purpose::Demand).await.unwrap(), bench.part(page));
    let decoded = source.tools.metrics.decoded_bytes.get();
    assert!(decoded <= crate::frame::MAX_FRAME_BYTES, "{decoded} bytes were decoded for a page");
}

/// Flips one bit of one byte of the first blob, so many times.
#[derive(Debug)]
struct Lying {
    below: Arc<Memory>,
    at: u64,
    left: AtomicU32,
    rejected: Mutex<Vec<ByteRange>>,
}

impl BlobSource for Lying {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        self.below.locate(blob, range)
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let bytes = self.below.read(blob, range, purpose).await?;
            let take = |left: u32| left.checked_sub(1);
            let is_here = range.start() <= self.at && self.at < range.end();
            if !is_here || self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
                return Ok(bytes);
            }
            let mut bytes = bytes.to_vec();
            bytes[usize::try_from(self.at - range.start()).unwrap()] ^= 0x10;
            Ok(bytes.into())
        })
    }

    fn reject(&self, _: &Blob, range: ByteRange) {
        self.rejected.lock().push(range);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_frames_are_rejected_below_and_read_again_told_once_and_given_up_at_last() {
    let bench = Bench::gzip(4, 4 << 20);
    let at = bench.memory.blob(0).size_bytes / 2;
    let lying = |times| {
        let (below, rejected) = (bench.memory.clone(), Mutex::default());
        Arc::new(Lying { below, at, left: AtomicU32::new(times), rejected })
    };
    let below = lying(3);
    let (source, _registered) = bench.over(below.clone());
    let mut events = source.events();
    let all = bench.archive.all().unwrap();
    assert!(source.read(bench.archive, all, Purpose::Demand).await.unwrap() == bench.unpacked);
    let rejected = std::mem::take(&mut *below.rejected.lock());
    assert_eq!(rejected.len(), 3);
    assert!(
        rejected.iter().all(|range| range.start() <= at && at < range.end() && range.len() < 3 << 19),
        "{rejected:?}"
    );
    assert_eq!(source.tools.metrics.wrong_frames.get(), 3);
    let Event::WrongBytes { layer, range, .. } = events.try_recv().unwrap();
    assert_eq!((layer, range), (bench.memory.blob(0).digest, rejected[0]));
    assert!(events.try_recv().is_err(), "told once");
    assert_eq!(source.tools.metrics.decoded_bytes.get(), bench.archive.size_bytes, "right frames are decoded once");

    let (source, _registered) = bench.over(lying(u32::MAX));
    let given_up = source.read(bench.archive, all, Purpose::Demand).await;
    assert!(matches!(given_up, Err(ReadError::WrongBytes { .. })), "{given_up:?}");
    let elsewhere = ByteRange::new(0, 4096).unwrap();
    assert_eq!(source.read(bench.archive, elsewhere, Purpose::Demand).await.unwrap(), bench.part(elsewhere));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_from_below_are_passed_on_as_they_are() {
    let bench = Bench::gzip(5, 1 << 20);
    let (source, _registered) = bench.over(Flaky::new(bench.memory.clone(), 1));
    let some = range(0, 10);
    let failed = source.read(bench.archive, some, Purpose::Demand).await.unwrap_err();
    assert!(matches!(failed, ReadError::Unavailable { .. }), "{failed}");
    assert_eq!(source.read(bench.archive, some, Purpose::Demand).await.unwrap(), bench.part(some));
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_one_frame_at_once_decode_it_once() {
    let bench = Bench::gzip(6, 1 << 20);
    let (source, _registered) = bench.over(Slow::new(bench.memory.clone(), Duration::from_millis(1)));
    let mut readers = tokio::task::JoinSet::new();
    for nth in 0..16 {
        let (source, archive) = (source.clone(), bench.archive);
        readers.spawn(async move { source.read(archive, range(nth * 100, nth * 100 + 50), Purpose::Demand).await });
    }
    while let Some(read) = readers.join_next().await {
        assert_eq!(read.unwrap().unwrap().len(), 50);
    }
    // As many as are decoded at once may not see each other.
    assert!(source.tools.metrics.decoded_bytes.get() <= 2 * source.widen(&bench.archive, range(0, 1)).len());
}

/// The index file with one change to the bytes of each record of its table, and its checksums right again.
fn forged(bench: &Bench, change: impl Fn(usize, &mut [u8])) -> Result<Index, IndexError> {
    let path = bench.dir.path().join("index");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = *bench.index().header();
    let table = usize::try_from(header.table_at()).unwrap();
    let count = usize::try_from(header.layer.frames).unwrap();
    let mut records = bytes[table..table + count * RECORD_BYTES].to_vec();
    records.chunks_mut(RECORD_BYTES).enumerate().for_each(|(nth, record)| change(nth, record));
    bytes[table..table + PAGE_BYTES].copy_from_slice(&table_page(&records));
    let forged = bench.dir.path().join("forged");
    std::fs::write(&forged, bytes).unwrap();
    Index::open(File::open(forged).unwrap())
}

/// What becomes of a record, by its number.
type Lie<'a> = &'a (dyn Fn(usize, &mut [u8]) + Sync);

fn add(record: &mut [u8], at: usize, delta: u64) {
    let number = u64::from_le_bytes(record[at..at + 8].try_into().unwrap());
    record[at..at + 8].copy_from_slice(&number.wrapping_add(delta).to_le_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lies_is_refused_or_its_reads_fail() {
    let bench = Bench::gzip(7, 4 << 20);
    let lies: [(&str, Lie); 9] = [
        ("a frame that holds more", &|nth, record| {
            if nth == 1 {
                add(record, 0, 1000)
            }
        }),
        ("a frame that holds less", &|nth, record| {
            if nth == 1 {
                add(record, 0, 1000_u64.wrapping_neg())
            }
        }),
        ("another bit", &|nth, record| {
            if nth == 1 {
                add(record, 8, 1)
            }
        }),
        ("another byte", &|nth, record| {
            if nth == 1 {
                add(record, 8, 8)
            }
        }),
        ("another window", &|nth, record| {
            if nth == 1 {
                record[16..28].fill(0)
            }
        }),
        ("a window of another frame", &|nth, record| {
            if nth == 1 {
                add(record, 16, 1_u64.wrapping_neg())
            }
        }),
        ("another digest", &|nth, record| {
            if nth == 1 {
                record[40] ^= 1
            }
        }),
        ("at a header", &|nth, record| {
            if nth == 1 {
                record[28] = 0
            }
        }),
        ("frames out of order", &|nth, record| {
            if nth == 1 {
                add(record, 0, 2 << 20)
            }
        }),
    ];
    for (what, lie) in lies {
        let Ok(index) = forged(&bench, lie) else { continue };
        let source = Unpacked::new(bench.memory.clone(), config(), &mut Registry::default());
        let _registered = source.register(index);
        let all = bench.archive.all().unwrap();
        let read = source.read(bench.archive, all, Purpose::Demand).await;
        let failed = read.map(|bytes| bytes == bench.unpacked).expect_err(what);
        assert!(matches!(failed, ReadError::WrongBytes { .. } | ReadError::Storage { .. }), "{what}: {failed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_beyond_the_bounds_are_refused_before_anything_is_read() {
    let bench = Bench::gzip(8, 4 << 20);
    for (what, at, delta) in [("bits", 8, 1 << 40), ("start", 0, 17 << 20), ("window", 16, 1 << 40)] {
        let refused = forged(&bench, |nth, record| {
            if nth == 1 {
                add(record, at, delta)
            }
        });
        assert!(matches!(refused, Err(IndexError::Format(_))), "{what}: {refused:?}");
    }
    let refused = forged(&bench, |nth, record| {
        if nth == 1 {
            record[24..28].fill(0xff)
        }
    });
    assert!(matches!(refused, Err(IndexError::Format(_))), "{refused:?}");
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 8, ..Default::default() })]

    #[test]
    fn any_read_gives_the_archive_s_bytes(seed in 0..1000_u64, reads in proptest::collection::vec((0..5_000_000_u64, 1..3_000_000_u64), 1..12)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut unpacked = mixed(seed, 3 << 20);
            unpacked.extend(noise(seed, 1024));
            let parts = unpacked.chunks(900_000 + usize::try_from(seed).unwrap() * 1000);
            let packed = parts.flat_map(|part| gzip_member(part, 6)).collect();
            let bench = Bench::new(packed, unpacked);
            let (source, _registered) = bench.over(bench.memory.clone());
            for (start, len) in reads {
                let start = start % bench.archive.size_bytes;
                let some = range(start, (start + len).min(bench.archive.size_bytes));
                assert!(source.read(bench.archive, some, Purpose::Demand).await.unwrap() == bench.part(some), "{some}");
            }
        });
    }
}
