//! The source of one device, while its image starts: takes down what is needed first, and when.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Giver, Located, Purpose, ReadFuture};
use penstock_image::recording::{GRAIN_BYTES, Recorder, Recording};
use tokio::sync::Notify;

use super::course::Course;

/// Distinct bytes needed between two looks at how the image is best read: a few reads of a file system.
const LOOK_BYTES: u64 = 1 << 20;

/// A source that takes down what is needed of it, until told to stop. Then a hit costs one relaxed load more than without it, and misses are counted.
/// While it does, what is needed costs a lock held for a search in the spans so far, at most [`penstock_image::recording::MAX_RUNS`] of them.
#[derive(Debug)]
pub(super) struct Recorded {
    below: Arc<dyn BlobSource>,
    is_on: AtomicBool,
    seen: Mutex<Seen>,
    /// Bytes missed since it was stopped.
    missed_bytes: AtomicU64,
    /// Told at the first need.
    first: Notify,
    /// Told whenever [`LOOK_BYTES`] more are needed; or missed, after it was stopped.
    needed: Notify,
    /// Told when the program is found to have left its recording.
    left: Notify,
}

/// What was needed so far.
#[derive(Debug)]
struct Seen {
    recorder: Recorder,
    needed_bytes: u64,
    looked_at_bytes: u64,
    /// What is replayed; `None` without a recording.
    expected: Option<Recorder>,
    used_bytes: u64,
    course: Course,
    waiting: Waiting,
}

/// How long somebody has waited.
#[derive(Debug, Default)]
struct Waiting {
    readers: u32,
    since: Option<Instant>,
    before: Duration,
}

/// What is known of a start at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    /// Distinct bytes needed.
    pub(super) bytes: u64,
    /// How many of them are in the recording.
    pub(super) recorded_bytes: u64,
    /// How long somebody waited.
    pub(super) waited: Duration,
    /// Whether the program has left its recording.
    pub(super) has_left: bool,
}

/// One reader waits for as long as this lives.
struct Reader<'a>(&'a Recorded);

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut seen = self.0.seen.lock();
        seen.waiting.readers = seen.waiting.readers.saturating_sub(1);
        if seen.waiting.readers == 0
            && let Some(since) = seen.waiting.since.take()
        {
            seen.waiting.before += since.elapsed();
        }
    }
}

impl Recorded {
    /// Takes down what is needed of the image with this manifest.
    pub(super) fn new(below: Arc<dyn BlobSource>, manifest: Digest) -> Arc<Self> {
        let seen = Seen {
            recorder: Recorder::new(manifest),
            needed_bytes: 0,
            looked_at_bytes: 0,
            expected: None,
            used_bytes: 0,
            course: Course::default(),
            waiting: Waiting::default(),
        };
        Arc::new(Self {
            below,
            is_on: AtomicBool::new(true),
            seen: Mutex::new(seen),
            missed_bytes: AtomicU64::new(0),
            first: Notify::new(),
            needed: Notify::new(),
            left: Notify::new(),
        })
    }

    /// Takes down no more; what was.
    pub(super) fn stop(&self) -> Recording {
        self.is_on.store(false, Ordering::Relaxed);
        self.seen.lock().recorder.recording().clone()
    }

    /// Gives back the memory of what was taken down, and of what it was compared with: nobody asks for them again.
    pub(super) fn forget(&self) {
        let mut seen = self.seen.lock();
        seen.expected = None;
        seen.recorder = Recorder::new(seen.recorder.recording().manifest());
    }

    /// Compares what is needed from now on with `recording`.
    pub(super) fn expect(&self, recording: Recording) {
        self.seen.lock().expected = Some(Recorder::from(recording));
    }

    /// How it stands.
    pub(super) fn needs(&self) -> Needs {
        let seen = self.seen.lock();
        let now = seen.waiting.since.map_or(Duration::ZERO, |since| since.elapsed());
        Needs {
            bytes: seen.needed_bytes,
            recorded_bytes: seen.used_bytes,
            waited: seen.waiting.before + now,
            has_left: seen.expected.is_some() && seen.course.has_left(),
        }
    }

    /// Waits until something is needed.
    pub(super) async fn first_needed(&self) {
        self.first.notified().await;
    }

    /// Waits until much more is needed than when this ended last; after it was stopped, until much more is missed.
    pub(super) async fn more_needed(&self) {
        self.needed.notified().await;
    }

    /// Waits until the program has left its recording.
    pub(super) async fn left(&self) {
        self.left.notified().await;
    }

    fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    fn note(&self, blob: &Blob, range: ByteRange, is_miss: bool) {
        let mut seen = self.seen.lock();
        let fresh = seen.recorder.need(blob, range);
        if fresh == 0 {
            return;
        }
        let recorded = seen.expected.as_ref().map_or(0, |expected| expected.covers(blob, whole(range)).min(fresh));
        let had_left = seen.course.has_left();
        seen.course.need(is_miss, recorded > 0);
        seen.used_bytes += recorded;
        if seen.needed_bytes == 0 {
            self.first.notify_one();
        }
        seen.needed_bytes += fresh;
        if seen.needed_bytes - seen.looked_at_bytes >= LOOK_BYTES {
            seen.looked_at_bytes = seen.needed_bytes;
            self.needed.notify_one();
        }
        if seen.expected.is_some() && !had_left && seen.course.has_left() {
            self.left.notify_one();
        }
    }

    /// Counts a miss after it was stopped.
    fn note_later(&self, range: ByteRange) {
        let before = self.missed_bytes.fetch_add(range.len(), Ordering::Relaxed);
        if before / LOOK_BYTES != before.saturating_add(range.len()) / LOOK_BYTES {
            self.needed.notify_one();
        }
    }

    fn wait(&self) -> Reader<'_> {
        let mut seen = self.seen.lock();
        seen.waiting.readers += 1;
        seen.waiting.since.get_or_insert_with(Instant::now);
        Reader(self)
    }
}

/// The grains of a recording that hold `range`.
fn whole(range: ByteRange) -> ByteRange {
    let (start, end) = (range.start() / GRAIN_BYTES, range.end().div_ceil(GRAIN_BYTES));
    ByteRange::new(start * GRAIN_BYTES, end.saturating_mul(GRAIN_BYTES)).unwrap_or(range)
}

impl BlobSource for Recorded {
    /// What is here is needed, too. What is not is asked for by a read, if it is needed.
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        let located = self.below.locate(blob, range);
        if located.is_some() && self.is_on() {
            self.note(blob, range, false);
        }
        located
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        if purpose == Purpose::Ahead || blob.check(range).is_err() {
            return self.below.read(blob, range, purpose);
        }
        if !self.is_on() {
            self.note_later(range);
            return self.below.read(blob, range, purpose);
        }
        self.note(&blob, range, true);
        Box::pin(async move {
            let _waits = self.wait();
            self.below.read(blob, range, purpose).await
        })
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.below.reject(blob, range);
    }

    fn giver(&self, blob: &Blob, range: ByteRange) -> Option<Giver> {
        self.below.giver(blob, range)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use penstock_blob::{conformance, faults::Memory};

    use super::*;

    fn image() -> Digest {
        Digest::of(b"manifest")
    }

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).unwrap()
    }

    #[tokio::test]
    async fn a_recorded_source_keeps_the_promise_of_sources() {
        let bytes = bytes::Bytes::from(vec![5; 100_000]);
        let memory = Memory::new(vec![bytes.clone()]);
        let blob = memory.blob(0);
        conformance::check(Recorded::new(memory, image()), &[(blob, bytes)]).await;
    }

    #[tokio::test]
    async fn what_is_demanded_is_taken_down_once_and_in_order_until_it_is_stopped() {
        let memory = Memory::new(vec![vec![5; 100_000].into()]);
        let blob = memory.blob(0);
        let source = Recorded::new(memory, image());
        for (at, purpose) in
            [(40_000, Purpose::Demand), (80_000, Purpose::Ahead), (0, Purpose::Demand), (40_000, Purpose::Demand)]
        {
            source.read(blob, range(at, at + 1000), purpose).await.unwrap();
        }
        source.first_needed().await;
        assert_eq!(source.needs().bytes, 3 * 4096, "40,000 to 41,000 lie in two pages");
        let recording = source.stop();
        let ranges: Vec<_> = recording.ranges().map(|(_, range)| (range.start(), range.end())).collect();
        assert_eq!(ranges, [(36_864, 45_056), (0, 4096)]);
        source.read(blob, range(60_000, 60_001), Purpose::Demand).await.unwrap();
        assert_eq!(source.stop(), recording, "it was off");
        source.forget();
        assert!(source.stop().is_empty());
    }

    #[tokio::test]
    async fn much_that_is_missed_after_it_was_stopped_is_told() {
        let memory = Memory::new(vec![vec![5; 3 << 20].into()]);
        let blob = memory.blob(0);
        let source = Recorded::new(memory, image());
        source.read(blob, range(0, 4096), Purpose::Demand).await.unwrap();
        source.stop();
        let more = || source.more_needed().now_or_never().is_some();
        source.read(blob, range(0, 2 << 20), Purpose::Ahead).await.unwrap();
        source.read(blob, range(0, (1 << 20) - 1), Purpose::Demand).await.unwrap();
        assert!(!more());
        source.read(blob, range(0, 1), Purpose::Demand).await.unwrap();
        assert!(more() && !more());
        assert_eq!(source.needs().bytes, 4096, "what it was told to take down");
    }

    #[tokio::test]
    async fn who_leaves_a_recording_is_found_out() {
        let memory = Memory::new(vec![vec![5; 1 << 20].into()]);
        let blob = memory.blob(0);
        let source = Recorded::new(memory, image());
        let mut other = Recorder::new(image());
        other.need(&blob, range(0, 8192));
        source.expect(other.into_recording());
        source.read(blob, range(0, 100), Purpose::Demand).await.unwrap();
        assert_eq!((source.needs().recorded_bytes, source.needs().has_left), (4096, false));
        for page in 10..100 {
            source.read(blob, range(page * 4096, page * 4096 + 1), Purpose::Demand).await.unwrap();
        }
        source.left().await;
        assert!(source.needs().has_left);
    }
}
