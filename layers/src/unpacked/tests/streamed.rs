//! Reads of layers that decode only from their beginning.

use std::sync::OnceLock;

use super::*;
use crate::testing::one_frame;

const MIB: u64 = 1 << 20;

/// A layer of one frame and its archive, made once.
fn streamed() -> Bench {
    static MADE: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    let (packed, unpacked) = MADE.get_or_init(|| {
        let unpacked = mixed(21, 24 << 20);
        (one_frame(&unpacked, 1, None), unpacked)
    });
    Bench::new(packed.clone(), unpacked.clone())
}

async fn reads_right(source: &Unpacked, bench: &Bench, start: u64, len: u64, purpose: Purpose) {
    let some = range(start, (start + len).min(bench.archive.size_bytes));
    assert!(source.read(bench.archive, some, purpose).await.unwrap() == bench.part(some), "{some}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_layer_keeps_every_promise_of_a_source() {
    let bench = streamed();
    let (source, _registered) = bench.over(bench.memory.clone());
    let other = (bench.memory.blob(1), Bytes::from_static(b"another blob"));
    conformance::check(source, &[(bench.archive, bench.unpacked.clone()), other]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_in_order_share_one_pass_which_reads_the_layer_once() {
    let bench = streamed();
    let (source, _registered) = bench.over(bench.memory.clone());
    let mut whole = penstock_blob::Hasher::new();
    for start in (0..bench.archive.size_bytes).step_by(3 << 20) {
        let some = range(start, (start + 3 * MIB).min(bench.archive.size_bytes));
        whole.update(&source.read(bench.archive, some, Purpose::Ahead).await.unwrap());
    }
    assert_eq!(whole.finish(), bench.archive.digest, "the archive is the one of the diff ID");
    assert_eq!(source.tools.metrics.passes.get(), 1);
    assert_eq!(bench.memory.bytes_read(), bench.memory.blob(0).size_bytes);
    assert_eq!(source.tools.metrics.decoded_bytes.get(), bench.archive.size_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_behind_the_pass_begins_it_anew_and_gets_the_right_bytes() {
    let bench = streamed();
    let (source, _registered) = bench.over(bench.memory.clone());
    for start in [20 * MIB + 17, 12 * MIB - 5, 6 * MIB, 0] {
        reads_right(&source, &bench, start, 100_000, Purpose::Demand).await;
    }
    assert_eq!(source.tools.metrics.passes.get(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_out_of_order_at_once_are_served_by_two_passes_at_most() {
    let bench = Arc::new(streamed());
    let (source, _registered) = bench.over(Slow::new(bench.memory.clone(), Duration::from_millis(1)));
    let mut readers = tokio::task::JoinSet::new();
    for nth in 0..40_u64 {
        let (source, bench) = (source.clone(), bench.clone());
        let purpose = if nth.is_multiple_of(3) { Purpose::Ahead } else { Purpose::Demand };
        let start = nth * 7919 * 1013 % (bench.archive.size_bytes - 5000);
        readers.spawn(async move { reads_right(&source, &bench, start, 5000, purpose).await });
    }
    while let Some(read) = readers.join_next().await {
        read.unwrap();
    }
    assert!(source.tools.metrics.passes.get() <= 2, "{}", source.tools.metrics.passes.get());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ranges_of_the_layer_are_in_flight_at_once_and_no_more_than_are_held() {
    let bench = streamed();
    let below = Arc::new(Gate { below: bench.memory.clone(), open: Semaphore::new(0), waiting: Mutex::default() });
    let (source, _registered) = bench.over(below.clone());
    let (reader, archive) = (source.clone(), bench.archive);
    let last = range(archive.size_bytes - 10, archive.size_bytes);
    let mut readers = tokio::task::JoinSet::new();
    readers.spawn(async move { reader.read(archive, last, Purpose::Demand).await });
    // All that it asks for while nothing is answered.
    while below.waiting.lock().len() < 4 {
        tokio::task::yield_now().await;
    }
    let asked = below.waiting.lock().clone();
    assert_eq!(asked.len(), 4);
    assert!(asked.windows(2).all(|pair| pair[0].end() == pair[1].start()), "{asked:?}");
    assert_eq!(asked.iter().map(|range| range.len()).sum::<u64>(), 4 * MIB);
    below.open.add_permits(1000);
    assert_eq!(readers.join_next().await.unwrap().unwrap().unwrap(), bench.part(last));
}

/// Answers no read before it is let.
#[derive(Debug)]
struct Gate {
    below: Arc<Memory>,
    open: Semaphore,
    waiting: Mutex<Vec<ByteRange>>,
}

impl BlobSource for Gate {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        self.below.locate(blob, range)
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            {
                let mut waiting = self.waiting.lock();
                let at = waiting.partition_point(|other| other.start() < range.start());
                waiting.insert(at, range);
            }
            let _one = self.open.acquire().await;
            self.below.read(blob, range, purpose).await
        })
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.below.reject(blob, range);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_takes_the_pass_from_nobody_and_the_layer_may_go_meanwhile() {
    let bench = streamed();
    let below = Arc::new(Gate { below: bench.memory.clone(), open: Semaphore::new(0), waiting: Mutex::default() });
    let (source, registered) = bench.over(below.clone());
    let archive = bench.archive;
    let mut readers = tokio::task::JoinSet::new();
    for start in [9 * MIB, 18 * MIB] {
        let source = source.clone();
        readers.spawn(async move { source.read(archive, range(start, start + 1000), Purpose::Demand).await });
    }
    let leaving = source.clone();
    let leaver =
        readers.spawn(async move { leaving.read(archive, range(5 * MIB, 5 * MIB + 10), Purpose::Demand).await });
    while below.waiting.lock().is_empty() || registered.layer.waiting.lock().readers.len() < 3 {
        tokio::task::yield_now().await;
    }
    leaver.abort();
    drop(registered);
    below.open.add_permits(1000);
    let mut served = 0;
    while let Some(read) = readers.join_next().await {
        match read {
            Ok(read) => served += read.unwrap().len(),
            Err(error) => assert!(error.is_cancelled()),
        }
    }
    assert_eq!((served, source.tools.metrics.passes.get()), (2000, 1));
    // Its task ends, and holds nothing any more.
    while source.tasks.lock().try_join_next().is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(source.passes.available_permits(), PASSES);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_pieces_are_rejected_and_read_again_and_given_up_at_last() {
    let bench = streamed();
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
    assert!(rejected.iter().all(|range| range.start() <= at + 2 * MIB && at < range.end() + 2 * MIB), "{rejected:?}");
    assert_eq!(source.tools.metrics.wrong_frames.get(), 3);
    assert!(matches!(events.try_recv(), Ok(Event::WrongBytes { .. })));
    assert!(events.try_recv().is_err(), "told once");

    let (source, _registered) = bench.over(lying(u32::MAX));
    let given_up = source.read(bench.archive, all, Purpose::Demand).await;
    assert!(matches!(given_up, Err(ReadError::WrongBytes { .. })), "{given_up:?}");
    assert_eq!(source.tools.metrics.wrong_frames.get(), u64::from(TRIES));
    reads_right(&source, &bench, 0, 4096, Purpose::Demand).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_from_below_is_told_as_it_is_and_the_pass_goes_on_from_there() {
    let bench = streamed();
    let (source, _registered) = bench.over(Flaky::new(bench.memory.clone(), 1));
    let some = range(8 * MIB, 8 * MIB + 10);
    let failed = source.read(bench.archive, some, Purpose::Demand).await.unwrap_err();
    assert!(matches!(failed, ReadError::Unavailable { .. }), "{failed}");
    assert_eq!(source.read(bench.archive, some, Purpose::Demand).await.unwrap(), bench.part(some));
    assert_eq!(source.tools.metrics.passes.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_a_streamed_layer_that_lies_is_refused_or_its_reads_fail() {
    let bench = streamed();
    let lies: [(&str, Lie); 6] = [
        ("a piece that holds more", &|nth, record| {
            if nth == 2 {
                add(record, 0, 1000)
            }
        }),
        ("a piece that begins elsewhere", &|nth, record| {
            if nth == 2 {
                add(record, 8, 8_u64.wrapping_neg())
            }
        }),
        ("another digest", &|nth, record| {
            if nth == 2 {
                record[40] ^= 1
            }
        }),
        ("a piece that decodes alone", &|nth, record| {
            if nth == 2 {
                record[28] = 0
            }
        }),
        ("a first piece that goes on", &|_, record| record[28] = 32),
        ("a piece with a window", &|nth, record| {
            if nth == 2 {
                record[24] = 1
            }
        }),
    ];
    for (what, lie) in lies {
        let Ok(index) = forged(&bench, lie) else { continue };
        let source = Unpacked::new(bench.memory.clone(), config(), &mut Registry::default());
        let _registered = source.register(index);
        let all = bench.archive.all().unwrap();
        let failed = source.read(bench.archive, all, Purpose::Demand).await.map(|bytes| bytes.len()).expect_err(what);
        assert!(matches!(failed, ReadError::WrongBytes { .. } | ReadError::Storage { .. }), "{what}: {failed}");
    }
    for what in ["a first piece that goes on", "a piece with a window"] {
        let lie = lies.iter().find(|(name, _)| *name == what).unwrap().1;
        assert!(matches!(forged(&bench, lie), Err(IndexError::Format(_))), "{what}");
    }
}

#[test]
fn a_number_of_pieces_that_cannot_be_is_refused_before_any_is_read() {
    let bench = streamed();
    let mut bytes = std::fs::read(bench.dir.path().join("index")).unwrap();
    for pieces in [u64::MAX, 1 << 40, 1 << 24, 0] {
        bytes[96..104].copy_from_slice(&pieces.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..PAGE_BYTES - 4]);
        bytes[PAGE_BYTES - 4..PAGE_BYTES].copy_from_slice(&crc.to_le_bytes());
        let forged = bench.dir.path().join("forged");
        std::fs::write(&forged, &bytes).unwrap();
        let refused = Index::open(File::open(forged).unwrap());
        assert!(matches!(refused, Err(IndexError::Format(_) | IndexError::Size { .. })), "{pieces}: {refused:?}");
    }
}
