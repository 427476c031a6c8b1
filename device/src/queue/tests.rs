//! A queue answers everything once, whatever the source does.

mod hits;

use std::{
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use bytes::Bytes;
use penstock_blob::{
    Located, Pinned, Purpose, ReadFuture,
    faults::{Flaky, Memory, Stuck},
};
use penstock_image::{Layer, write};
use prometheus_client::registry::Registry;
use rustix::event::{PollFd, PollFlags, poll};
use tokio::runtime::Handle;

use super::*;
use crate::{Metrics, Transport, counted::Counted, offload::Offload, request::recorder::Recorder};

/// A disk of 64 KiB that the image crate takes for EROFS, every other byte telling its place.
fn disk() -> Bytes {
    let mut bytes: Vec<u8> = (0..64_u32 << 10).map(|at| (at / 512 + at).to_le_bytes()[0]).collect();
    bytes[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
    bytes.into()
}

struct Bench {
    queue: Queue<Recorder>,
    port: Recorder,
    inbox: Arc<Inbox>,
    counters: Arc<Counters>,
    offload: Offload,
    _maps: tempfile::TempDir,
}

impl Bench {
    /// A queue over `source`, which serves `memory`'s first blob.
    async fn new(memory: &Memory, source: Arc<dyn BlobSource>, bound: usize) -> Self {
        Self::showing(memory.blob(0), Memory::new(vec![disk()]), source, bound).await
    }

    /// A queue over `source`, for an image of the layer `blob` that is opened from `opened`.
    async fn showing(blob: Blob, opened: Arc<Memory>, source: Arc<dyn BlobSource>, bound: usize) -> Self {
        let maps = tempfile::tempdir().unwrap();
        let layer = Layer { blob, media_type: String::new(), annotations: Default::default() };
        let image = Image::open(vec![layer], opened, maps.path()).await.unwrap();
        let counters = Metrics::new(&mut Registry::default()).device(&"t".parse().unwrap(), Transport::Fuse);
        let (inbox, offload) =
            (Inbox::new().unwrap(), Offload::start(&"t".parse().unwrap(), &Handle::current(), bound));
        let setup = Setup {
            id: "t".parse().unwrap(),
            image: Some(Arc::new(image)),
            source: Counted::new(source, counters.clone()),
            counters: counters.clone(),
            misses: offload.sender(),
            bound,
            max_piece_bytes: MAX_PIECE_BYTES,
            max_io_bytes: 16 << 10,
            desks: Desks::default(),
        };
        let queue = Queue::new(setup, inbox.clone());
        Self { queue, port: Recorder::default(), inbox, counters, offload, _maps: maps }
    }

    fn read(&mut self, key: u64, start: u64, len: u64) {
        let request = Request::new(self.port.clone(), key, self.counters.clone());
        self.queue.read(request, ByteRange::at(start, len).unwrap());
    }

    /// Takes what is posted until `count` requests were answered.
    async fn until_answered(&mut self, count: usize) {
        while self.port.answers().len() < count {
            let inbox = self.inbox.clone();
            let wait = move || poll(&mut [PollFd::new(&*inbox, PollFlags::IN)], None).unwrap();
            tokio::task::spawn_blocking(wait).await.unwrap();
            self.queue.collect();
        }
    }

    /// The answer to `key`: whether it was the right bytes of the disk, or the error.
    fn answer(&self, key: u64, start: u64) -> Result<(), Errno> {
        let start = usize::try_from(start).unwrap();
        let answers = self.port.answers();
        let mut mine = answers.into_iter().filter(|(k, _)| *k == key);
        let answer = mine.next().expect("an answer").1;
        assert!(mine.next().is_none(), "request {key} was answered twice");
        answer.map(|bytes| assert_eq!(bytes, disk()[start..start + bytes.len()]))
    }
}

#[tokio::test]
async fn a_hit_is_answered_at_once_and_asks_nobody() {
    let memory = Memory::new(vec![disk()]);
    memory.resident(true);
    let mut bench = Bench::new(&memory, memory.clone(), 4).await;
    bench.read(1, 512, 4096);
    assert_eq!(bench.answer(1, 512), Ok(()));
    let stats = bench.counters.stats();
    assert_eq!((stats.hits, stats.misses, stats.asked_bytes, stats.served_bytes), (1, 0, 0, 4096));
    assert_eq!(memory.reads(), 0);
}

#[tokio::test]
async fn a_miss_is_a_hit_that_waited() {
    let memory = Memory::new(vec![disk()]);
    let mut bench = Bench::new(&memory, memory.clone(), 4).await;
    bench.read(1, 4096, 8192);
    assert_eq!(bench.port.answers(), []);
    bench.until_answered(1).await;
    assert_eq!(bench.answer(1, 4096), Ok(()));
    let stats = bench.counters.stats();
    assert_eq!((stats.hits, stats.misses, stats.asked_bytes, stats.in_flight), (0, 1, 8192, 0));
}

/// A source that knows who gives its bytes.
#[derive(Debug)]
struct Given(Arc<Memory>, Option<Giver>);

impl BlobSource for Given {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        self.0.locate(blob, range)
    }
    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        self.0.read(blob, range, purpose)
    }
    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.0.reject(blob, range);
    }
    fn giver(&self, _: &Blob, _: ByteRange) -> Option<Giver> {
        self.1
    }
}

#[tokio::test]
async fn a_read_counts_in_the_tier_that_its_bytes_came_from() {
    for (here, giver, tier) in [
        (true, None, Tier::Memory),
        (false, Some(Giver::Mirror), Tier::Mirror),
        (false, Some(Giver::Origin), Tier::Origin),
        (false, None, Tier::Other),
    ] {
        let memory = Memory::new(vec![disk()]);
        memory.resident(here);
        let mut bench = Bench::new(&memory, Arc::new(Given(memory.clone(), giver)), 4).await;
        bench.read(1, 0, 4096);
        bench.until_answered(1).await;
        let [latency] = bench.counters.latencies().by_tier()[..] else { panic!("one read has one tier") };
        assert_eq!((latency.tier, latency.reads), (tier, 1));
        let waits = bench.counters.waiting.read();
        let ranges: Vec<_> = waits.ranges.iter().map(|wait| (wait.range.len(), wait.waits)).collect();
        assert_eq!(ranges, if here { vec![] } else { vec![(4096, 1)] });
        assert_eq!((waits.waits, waits.stalled.is_zero()), (u64::from(!here), here));
    }
}

#[tokio::test]
async fn a_stuck_fetch_delays_only_its_own_readers() {
    let memory = Memory::new(vec![disk()]);
    let stuck = Stuck::only(memory.clone(), memory.blob(0).digest, ByteRange::new(0, 512).unwrap());
    let mut bench = Bench::new(&memory, stuck.clone(), 64).await;
    bench.read(0, 0, 512);
    for key in 1..32 {
        bench.read(key, key * 1024, 1024);
    }
    bench.until_answered(31).await;
    stuck.until_waiting(1).await;
    assert!((1..32).all(|key| bench.answer(key, key * 1024).is_ok()));
    stuck.release();
    bench.until_answered(32).await;
    assert_eq!(bench.answer(0, 0), Ok(()));
}

#[tokio::test]
async fn requests_beyond_the_bound_wait_and_are_answered_later() {
    let memory = Memory::new(vec![disk()]);
    let stuck = Stuck::new(memory.clone());
    let mut bench = Bench::new(&memory, stuck.clone(), 2).await;
    for key in 0..10 {
        bench.read(key, key * 4096, 4096);
    }
    stuck.until_waiting(2).await;
    assert_eq!((stuck.waiting(), bench.queue.parked.len()), (2, 8));
    stuck.release();
    bench.until_answered(10).await;
    assert!((0..10).all(|key| bench.answer(key, key * 4096).is_ok()));
    assert_eq!(bench.counters.stats().misses, 10);
}

#[tokio::test]
async fn a_request_that_lacks_too_much_is_fetched_in_pieces_and_answered_once() {
    let memory = Memory::new(vec![disk()]);
    let mut bench = Bench::new(&memory, memory.clone(), 4).await;
    bench.queue.setup.max_piece_bytes = 4096;
    bench.read(1, 512, 16_384 - 512);
    bench.read(2, 0, 16_384);
    bench.until_answered(2).await;
    assert_eq!((bench.answer(1, 512), bench.answer(2, 0)), (Ok(()), Ok(())));
    // Four pieces of the first (the last one shorter), four of the second.
    assert_eq!((memory.reads(), bench.counters.stats().misses), (8, 2));
    memory.resident(true);
    bench.read(3, 0, 16_384);
    assert_eq!((bench.answer(3, 0), bench.counters.stats().hits), (Ok(()), 1));
}

#[tokio::test]
async fn readers_of_one_stuck_blob_leave_places_to_those_of_another() {
    let blobs = Memory::new(vec![disk(), Bytes::from(vec![9; 100])]);
    let stuck = Stuck::only(blobs.clone(), blobs.blob(1).digest, ByteRange::new(0, 100).unwrap());
    let mut bench = Bench::new(&blobs, stuck.clone(), 64).await;
    // Far more readers of the stuck blob than there are places, straight to the offload.
    let range = ByteRange::new(0, 512).unwrap();
    for key in 1000..1500 {
        let request = Request::new(bench.port.clone(), key, bench.counters.clone());
        let work = Work::new(request, range);
        let held = Held::new(bench.queue.setup.source.clone());
        bench.queue.offload(work, held, vec![(blobs.blob(1), ByteRange::new(0, 100).unwrap())]);
    }
    stuck.until_waiting(48).await;
    assert_eq!(bench.queue.parked.len(), 500 - 48);
    for key in 0..32 {
        bench.read(key, key * 1024, 1024);
        bench.until_answered(usize::try_from(key).unwrap() + 1).await;
        assert_eq!(bench.answer(key, key * 1024), Ok(()));
    }
    assert_eq!(stuck.waiting(), 48);
}

#[tokio::test]
async fn a_queue_with_too_many_waiting_requests_says_that_it_is_full() {
    let memory = Memory::new(vec![disk()]);
    let mut bench = Bench::new(&memory, Stuck::new(memory.clone()), 1).await;
    for key in 0..=MAX_PARKED as u64 {
        assert!(!bench.queue.is_full());
        bench.read(key, 0, 512);
    }
    assert!(bench.queue.is_full());
    bench.inbox.fail_waiting();
    bench.queue.collect();
    assert_eq!(bench.port.answers().len(), MAX_PARKED + 1);
    assert!(!bench.queue.is_full());
}

#[tokio::test]
async fn a_queue_that_ends_answers_what_waits_and_one_that_leaves_answers_nothing() {
    for (how, answered) in [(End::Quit, 5), (End::Leave, 0)] {
        let memory = Memory::new(vec![disk()]);
        let mut bench = Bench::new(&memory, Stuck::new(memory.clone()), 2).await;
        (0..5).for_each(|key| bench.read(key, 0, 512));
        let Bench { queue, port, counters, .. } = bench;
        queue.end(how);
        assert_eq!(port.answers().len(), answered, "{how:?}");
        assert_eq!((counters.stats().in_flight, counters.stats().dropped), (0, 0));
    }
}

#[tokio::test]
async fn waiting_reads_can_be_failed_while_the_device_goes_on() {
    let memory = Memory::new(vec![disk()]);
    let stuck = Stuck::new(memory.clone());
    let mut bench = Bench::new(&memory, stuck.clone(), 2).await;
    (0..5).for_each(|key| bench.read(key, 0, 512));
    bench.inbox.fail_waiting();
    bench.until_answered(5).await;
    assert!((0..5).all(|key| bench.answer(key, 0) == Err(Errno::IO)));
    bench.read(5, 1024, 512);
    stuck.release();
    bench.until_answered(6).await;
    assert_eq!(bench.answer(5, 1024), Ok(()));
    bench.inbox.refuse();
    bench.read(6, 1024, 512);
    assert_eq!(bench.answer(6, 1024), Err(Errno::IO));
}

#[tokio::test]
async fn a_failed_fetch_is_an_error_answer_with_its_reason_kept() {
    let memory = Memory::new(vec![disk()]);
    let mut bench = Bench::new(&memory, Flaky::new(memory.clone(), 1), 4).await;
    bench.read(1, 0, 512);
    bench.until_answered(1).await;
    assert_eq!(bench.answer(1, 0), Err(Errno::IO));
    bench.read(2, 0, 512);
    bench.until_answered(2).await;
    assert_eq!(bench.answer(2, 0), Ok(()));
    let stats = bench.counters.stats();
    assert_eq!((stats.errors, stats.dropped), (1, 0));
    assert!(stats.last_error.unwrap().starts_with("bytes 0..512: "));
}

#[tokio::test]
async fn a_stop_answers_everything_and_later_misses_too() {
    let memory = Memory::new(vec![disk()]);
    let mut bench = Bench::new(&memory, Stuck::new(memory.clone()), 2).await;
    (0..5).for_each(|key| bench.read(key, 0, 512));
    bench.offload.stop();
    bench.until_answered(5).await;
    bench.read(5, 0, 512);
    bench.until_answered(6).await;
    assert!((0..6).all(|key| bench.answer(key, 0) == Err(Errno::IO)));
    assert_eq!(bench.counters.stats().in_flight, 0);
}

#[tokio::test]
async fn a_cancelled_read_is_answered_once_and_its_fetch_still_counts() {
    let memory = Memory::new(vec![disk()]);
    let stuck = Stuck::new(memory.clone());
    let mut bench = Bench::new(&memory, stuck.clone(), 1).await;
    bench.read(1, 0, 512);
    bench.read(2, 512, 512);
    bench.queue.cancel(|key| key == 1, Errno::INTR);
    bench.queue.cancel(|key| key == 1, Errno::INTR);
    assert_eq!(bench.port.answers(), [(1, Err(Errno::INTR))]);
    bench.queue.collect();
    assert_eq!(bench.queue.parked.len(), 1, "the fetch of the first holds its place");
    stuck.release();
    bench.until_answered(2).await;
    assert_eq!((bench.answer(1, 0), bench.answer(2, 512)), (Err(Errno::INTR), Ok(())));
}

#[tokio::test]
async fn reads_outside_the_device_or_its_limits_are_refused() {
    let memory = Memory::new(vec![disk()]);
    memory.resident(true);
    let mut bench = Bench::new(&memory, memory.clone(), 1).await;
    bench.read(1, 0, (16 << 10) + 512);
    bench.read(2, (64 << 10) - 512, 1024);
    assert_eq!((bench.answer(1, 0), bench.answer(2, 0)), (Err(Errno::INVAL), Err(Errno::IO)));
}

/// A source whose local copy is cut short until it is told to drop it, `lives` times.
#[derive(Debug)]
struct Rotten {
    below: Arc<Memory>,
    file: Arc<Cut>,
    present: AtomicBool,
    rejects: AtomicU32,
    lives: u32,
}

#[derive(Debug)]
struct Cut(File);

impl Pinned for Cut {
    fn file(&self) -> &File {
        &self.0
    }
    fn unpin(&self, _: ByteRange) {}
}

impl Rotten {
    fn new(below: Arc<Memory>, lives: u32) -> Arc<Self> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&disk()[..100]).unwrap();
        let (present, rejects) = (AtomicBool::new(true), AtomicU32::new(0));
        Arc::new(Self { below, file: Arc::new(Cut(file)), present, rejects, lives })
    }
}

impl BlobSource for Rotten {
    fn locate(&self, _: &Blob, range: ByteRange) -> Option<Located> {
        let present = self.present.load(Ordering::SeqCst);
        present.then(|| Located::in_file(self.file.clone(), range, range.start()))
    }
    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        self.below.read(blob, range, purpose)
    }
    fn reject(&self, _: &Blob, _: ByteRange) {
        let rejects = self.rejects.fetch_add(1, Ordering::SeqCst) + 1;
        self.present.store(rejects < self.lives, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_damaged_local_copy_is_rejected_and_fetched_again() {
    let memory = Memory::new(vec![disk()]);
    let rotten = Rotten::new(memory.clone(), 1);
    let mut bench = Bench::new(&memory, rotten.clone(), 4).await;
    bench.read(1, 0, 4096);
    bench.until_answered(1).await;
    assert_eq!(bench.answer(1, 0), Ok(()));
    assert_eq!((rotten.rejects.load(Ordering::SeqCst), memory.reads()), (1, 1));
}

/// The disk as an OverlayBD layer, whose frames have checks.
fn layer() -> Bytes {
    let (mut plain, mut out) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    plain.write_all(&disk()).unwrap();
    write::disk(&plain, out.try_clone().unwrap(), write::Options::default()).unwrap();
    let mut bytes = Vec::new();
    out.rewind().unwrap();
    out.read_to_end(&mut bytes).unwrap();
    bytes.into()
}

/// A source whose first reads have a wrong byte.
#[derive(Debug)]
struct Liars {
    below: Arc<Memory>,
    left: AtomicU32,
}

impl BlobSource for Liars {
    fn locate(&self, _: &Blob, _: ByteRange) -> Option<Located> {
        None
    }
    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        let lies = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        Box::pin(async move {
            let mut bytes = self.below.read(blob, range, purpose).await?.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= u8::from(lies);
            Ok(bytes.into())
        })
    }
    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.below.reject(blob, range);
    }
}

#[tokio::test]
async fn bytes_that_fail_their_check_are_asked_for_again_three_times_and_then_the_answer_is_eio() {
    let most = u32::try_from(MAX_REJECTED).unwrap();
    let memory = Memory::new(vec![layer()]);
    for (lies, expected) in [(most - 1, Ok(())), (most, Err(Errno::IO))] {
        let liars = Arc::new(Liars { below: memory.clone(), left: AtomicU32::new(lies) });
        let opened = Memory::new(vec![layer()]);
        let mut bench = Bench::showing(memory.blob(0), opened, liars, 4).await;
        let rejects = memory.rejects();
        bench.read(1, 512, 512);
        bench.until_answered(1).await;
        assert_eq!((bench.answer(1, 512), memory.rejects() - rejects), (expected, u64::from(lies)), "{lies} lies");
        // Whoever reads next begins anew.
        bench.read(2, 512, 512);
        bench.until_answered(2).await;
        assert_eq!(bench.answer(2, 512), Ok(()));
    }
}
