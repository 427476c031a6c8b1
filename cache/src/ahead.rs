//! Reading ahead: which chunks are fetched before anybody asks. Pure: state and numbers in, chunks out.
//!
//! A miss brings its *place* along: the aligned part of the blob, [`Limits::place`] long, that it lies in, both what is behind it and what is before
//! it. Programs come back to where they were, forwards and backwards alike: of 250 first needs of a start of Python, half began before the end of
//! the last one nearby, and all of them lay in sixteen such places of 128 MiB. It goes on as long as what was fetched in this way is used often enough
//! ([`Streams::is_worth`]), so that who reads at random soon fetches nothing but what he asks for. While much of a blob is waited for at once
//! ([`BUSY`]) a miss brings nothing along: many latencies pass at the same time then, and what is waited for is the bandwidth.
//!
//! A *stream* is a spot where somebody may read forward. Who misses the chunk right behind what was read there, or behind its place, is followed, at
//! first to the end of the place that he has come to. One chunk of each batch is marked, and when it is used the next batch is asked for, twice as
//! large if most of this one was used, up to [`Limits::window`]. A reader in order so finds several batches in flight, as with the kernel's read-ahead
//! (`PG_readahead`).

/// Streams kept of one blob; the one that was used longest ago makes room for another. Programs read from a few files at once.
const MOST_STREAMS: usize = 8;
/// Places whose chunks need not be used: what is fetched while nothing is known.
const TRIAL: u32 = 6;
/// One in so many chunks beyond that has to be used. A chunk costs a tenth of what a miss does, with 20 ms and 100 MB/s: below that reading ahead
/// costs more than it saves.
const WORTH: u64 = 5;
/// Fills of a blob that somebody waits for, with which its link is half in use: eight chunks of 128 KiB are half of what 20 ms at 100 MB/s hold. A
/// program that starts waits for one to three.
pub(crate) const BUSY: usize = 8;
/// Misses after which what is known counts half.
const MEMORY: u32 = 128;

/// What holds for all streams of a blob, in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Chunks of the blob.
    pub(crate) chunks: u32,
    /// Chunks of a place: at least one, at most the window.
    pub(crate) place: u32,
    /// The largest batch.
    pub(crate) window: u32,
}

/// Chunks `first..=last`.
pub(crate) type Run = (u32, u32);

/// Chunks to be read ahead, and the one whose use asks for the next batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Batch {
    first: u32,
    last: u32,
    /// `None`: the stream goes on at the miss right behind the batch.
    mark: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    /// One past what was read.
    next: u32,
    batch: Option<Batch>,
    /// When it was used last, in calls.
    at: u32,
}

impl Stream {
    /// One past what was read or speculated on.
    fn end(&self) -> u32 {
        self.batch.map_or(self.next, |batch| self.next.max(batch.last.saturating_add(1)))
    }

    fn is_marked(&self, chunk: u32) -> bool {
        self.batch.is_some_and(|batch| batch.mark == Some(chunk))
    }
}

/// The streams of one blob.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: Vec<Stream>,
    calls: u32,
    /// Chunks speculated on, and how many of them were used, lately.
    spent: u32,
    used: u32,
}

impl Streams {
    /// So many chunks that were speculated on were used.
    pub(crate) fn used(&mut self, chunks: u32) {
        self.used = self.used.saturating_add(chunks);
    }

    /// So many chunks are speculated on.
    pub(crate) fn spent(&mut self, chunks: u32) {
        self.spent = self.spent.saturating_add(chunks);
    }

    /// Whether the use of a chunk asks for the next batch.
    pub(crate) fn is_marked(&self, chunk: u32) -> bool {
        self.streams.iter().any(|stream| stream.is_marked(chunk))
    }

    /// Somebody waits for chunks `first..=last`, of which some were not here; with this one, so many fills of the blob are waited for. What is read
    /// ahead, in the order in which it is asked for.
    pub(crate) fn missed(
        &mut self,
        (first, last): Run,
        waited_for: usize,
        limits: Limits,
    ) -> impl Iterator<Item = Run> + use<> {
        self.calls = self.calls.wrapping_add(1);
        if self.calls.is_multiple_of(MEMORY) {
            (self.spent, self.used) = (self.spent / 2, self.used / 2);
        }
        let next = last.saturating_add(1);
        let is_alone = waited_for >= BUSY || !self.is_worth(limits);
        let follows = |stream: &Stream| (stream.next..=stream.end()).contains(&first);
        let (behind, before) = match self.streams.iter().position(follows) {
            Some(at) => {
                let batch = self.streams.swap_remove(at).batch;
                // Nothing is known of a stream that is one chunk long.
                let (had, end) =
                    batch.map_or((1, 0), |batch| (batch.last - batch.first + 1, batch.last.saturating_add(1)));
                // Programs come back to the place that he has come to, whether they read on or not.
                let rest = if is_alone { 0 } else { place_end(next, limits).saturating_sub(next.max(end)) };
                (self.follow((next, end), had.max(rest), limits), None)
            }
            None if is_alone => (self.stay(next), None),
            None => self.place((first, next), limits),
        };
        behind.into_iter().chain(before)
    }

    /// A marked chunk was used. `used` counts those of a run of chunks that were used. What is read ahead.
    pub(crate) fn touched(&mut self, chunk: u32, limits: Limits, used: impl Fn(u32, u32) -> u32) -> Option<Run> {
        self.calls = self.calls.wrapping_add(1);
        let at = self.streams.iter().position(|stream| stream.is_marked(chunk))?;
        let batch = self.streams.swap_remove(at).batch?;
        let end = batch.last.saturating_add(1);
        let most = used(batch.first, chunk).saturating_mul(4) >= (chunk - batch.first + 1).saturating_mul(3);
        if most {
            self.follow((chunk.saturating_add(1), end), (end - batch.first).saturating_mul(2), limits)
        } else {
            self.stay(end)
        }
    }

    /// Whether the neighbours of what is missed are worth asking for: one in [`WORTH`] was used of those before, but for [`TRIAL`] places.
    fn is_worth(&self, limits: Limits) -> bool {
        u64::from(self.spent) < u64::from(self.used) * WORTH + u64::from(TRIAL) * u64::from(limits.place)
    }

    /// The rest of the place, or places, of what is missed, `first..next`: what is behind it, what is before it.
    fn place(&mut self, (first, next): Run, limits: Limits) -> (Option<Run>, Option<Run>) {
        let (start, end) = (first / limits.place * limits.place, place_end(next, limits));
        let run = |start: u32, end: u32| (start < end).then(|| (start, end - 1));
        let behind = run(next, end);
        self.push(next, behind.map(|(first, last)| Batch { first, last, mark: None }));
        (behind, run(start, first))
    }

    /// A stream that was read up to `next` asks for `size` chunks from there, or from `from` if that is later.
    fn follow(&mut self, (next, from): (u32, u32), size: u32, limits: Limits) -> Option<Run> {
        let first = next.max(from);
        let size = size.min(limits.window);
        let end = first.saturating_add(size).min(limits.chunks);
        if end <= first {
            return self.stay(next);
        }
        // A small batch has to prove itself up to its middle; a larger one goes on as soon as it is reached.
        let mark = if size > limits.place / 2 { first } else { first.saturating_add(size / 2).min(end - 1) };
        self.push(next, Some(Batch { first, last: end - 1, mark: Some(mark) }));
        Some((first, end - 1))
    }

    /// A stream that asks for nothing, and waits for a miss right behind what was read.
    fn stay(&mut self, next: u32) -> Option<Run> {
        self.push(next, None);
        None
    }

    fn push(&mut self, next: u32, batch: Option<Batch>) {
        if self.streams.len() == MOST_STREAMS {
            let age = |stream: &Stream| self.calls.wrapping_sub(stream.at);
            let oldest = (0..MOST_STREAMS).max_by_key(|&at| self.streams.get(at).map(age));
            oldest.map(|at| self.streams.swap_remove(at));
        }
        self.streams.push(Stream { next, batch, at: self.calls });
    }
}

/// Where the place ends that lies before chunk `next`.
fn place_end(next: u32, limits: Limits) -> u32 {
    let end = u64::from(next).next_multiple_of(u64::from(limits.place)).min(u64::from(limits.chunks));
    u32::try_from(end).unwrap_or(limits.chunks)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { chunks: 1000, place: 8, window: 32 };

    /// A cache with nothing but chunks and streams.
    #[derive(Default)]
    struct Model {
        streams: Streams,
        here: BTreeSet<u32>,
        unused: BTreeSet<u32>,
        misses: u32,
        fetched: u32,
    }

    impl Model {
        fn read(&mut self, chunk: u32) {
            let runs = if self.here.insert(chunk) {
                self.misses += 1;
                self.fetched += 1;
                self.streams.missed((chunk, chunk), 1, LIMITS).collect()
            } else if self.unused.remove(&chunk) {
                self.streams.used(1);
                let used = |first, last| (first..=last).filter(|chunk| !self.unused.contains(chunk)).count();
                let used = |first, last| u32::try_from(used(first, last)).unwrap();
                let is_marked = self.streams.is_marked(chunk);
                if is_marked { self.streams.touched(chunk, LIMITS, used).into_iter().collect() } else { Vec::new() }
            } else {
                Vec::new()
            };
            for (first, last) in runs {
                assert!(first <= last && last < LIMITS.chunks && last - first < LIMITS.window, "{first}..={last}");
                assert!(!(first..=last).contains(&chunk), "what is asked for is not read ahead");
                self.bring(first, last);
            }
        }

        fn bring(&mut self, first: u32, last: u32) {
            for chunk in first..=last {
                if self.here.insert(chunk) {
                    self.unused.insert(chunk);
                    self.fetched += 1;
                    self.streams.spent(1);
                }
            }
        }
    }

    #[test]
    fn a_miss_brings_its_place_what_is_behind_it_first() {
        let asks = |run: Run, limits: Limits| -> Vec<Run> {
            let mut streams = Streams::default();
            streams.missed(run, 1, limits).collect()
        };
        let table: [(Run, &[Run]); 6] = [
            ((44, 44), &[(45, 47), (40, 43)]),
            ((40, 40), &[(41, 47)]),
            ((47, 47), &[(40, 46)]),
            ((40, 47), &[]),
            // Two places.
            ((46, 49), &[(50, 55), (40, 45)]),
            ((999, 999), &[(992, 998)]),
        ];
        for (run, asked) in table {
            assert_eq!(asks(run, LIMITS), asked, "{run:?}");
        }
        assert_eq!(asks((44, 44), Limits { chunks: 46, ..LIMITS }), [(45, 45), (40, 43)], "a place ends with the blob");
        assert_eq!(asks((44, 44), Limits { place: 1, ..LIMITS }), [], "chunks as large as a place");
    }

    #[test]
    fn who_goes_on_in_the_next_place_brings_that_along() {
        let mut streams = Streams::default();
        let mut asks = |chunk| streams.missed((chunk, chunk), 1, LIMITS).collect::<Vec<_>>();
        assert_eq!(asks(46), [(47, 47), (40, 45)]);
        assert_eq!(asks(48), [(49, 55)]);
        assert_eq!(asks(56), [(57, 63)]);
        assert_eq!(asks(71), [(64, 70)], "its place was left out");
    }

    #[test]
    fn a_reader_in_order_waits_twice_and_batches_grow_to_the_window() {
        let mut model = Model::default();
        (100..900).for_each(|chunk| model.read(chunk));
        assert_eq!(model.misses, 2);
        assert!(model.fetched <= 800 + 2 * LIMITS.window, "{}", model.fetched);
    }

    #[test]
    fn several_readers_in_order_wait_twice_each() {
        let mut model = Model::default();
        for step in 0..100 {
            (0..8).for_each(|reader| model.read(reader * 120 + step));
        }
        assert_eq!(model.misses, 16);
    }

    #[test]
    fn a_reader_backwards_waits_once_for_each_place() {
        let mut model = Model::default();
        (200..900).rev().for_each(|chunk| model.read(chunk));
        assert!(model.misses <= 700 / LIMITS.place + 1, "{}", model.misses);
        assert!(model.fetched <= 700 + 2 * LIMITS.place, "{}", model.fetched);
    }

    #[test]
    fn who_comes_back_to_a_few_places_waits_once_for_each() {
        let mut model = Model::default();
        let mut random = fastrand::Rng::with_seed(1);
        let mut needs: Vec<u32> = (0..10).flat_map(|place| place * 80..place * 80 + LIMITS.place).collect();
        random.shuffle(&mut needs);
        needs.iter().for_each(|&chunk| model.read(chunk));
        assert_eq!((model.misses, model.fetched), (10, 10 * LIMITS.place));
    }

    #[test]
    fn who_reads_at_random_soon_fetches_what_he_asks_for_only() {
        let mut model = Model::default();
        let mut random = fastrand::Rng::with_seed(1);
        let mut places: Vec<u32> = (0..1000).step_by(10).collect();
        random.shuffle(&mut places);
        places.iter().for_each(|&chunk| model.read(chunk));
        let wasted = model.fetched - u32::try_from(places.len()).unwrap();
        assert!(wasted <= (TRIAL + 2) * LIMITS.place, "{wasted} chunks that nobody asked for");
    }

    #[test]
    fn who_waits_for_much_at_once_brings_nothing_along_but_is_followed() {
        let asks = |waited_for: usize| -> Vec<Run> {
            let mut streams = Streams::default();
            streams.missed((44, 44), waited_for, LIMITS).chain(streams.missed((45, 45), waited_for, LIMITS)).collect()
        };
        assert_eq!(asks(BUSY), [(46, 46)]);
        assert_eq!(asks(BUSY - 1)[..2], [(45, 47), (40, 43)]);
    }

    #[test]
    fn a_reader_that_was_random_and_reads_in_order_now_is_followed() {
        let mut model = Model::default();
        (0..400).step_by(9).for_each(|chunk| model.read(chunk));
        let misses = model.misses;
        (500..700).for_each(|chunk| model.read(chunk));
        assert!(model.misses - misses <= 2, "{} misses", model.misses - misses);
    }

    proptest! {
        #[test]
        fn whatever_is_read_streams_and_batches_stay_within_their_bounds(reads in prop::collection::vec(0u32..1000, 0..300)) {
            let mut model = Model::default();
            for chunk in reads {
                model.read(chunk);
                prop_assert!(model.streams.streams.len() <= MOST_STREAMS);
            }
        }
    }
}
