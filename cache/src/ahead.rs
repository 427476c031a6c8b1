//! Reading ahead: which chunks are fetched before anybody asks. Pure: state and numbers in, chunks out.
//!
//! A *stream* is a place of a blob where somebody reads forward. It begins at a miss, with a few neighbours: how many depends on what
//! became of the neighbours before ([`Streams::level`]), so that who reads at random soon fetches nothing but what he asks for. One chunk of
//! each batch is marked. When it is used, the next batch is asked for, twice as large if most of this one was used, up to
//! [`Limits::window`]. A reader in order so finds several batches in flight, as with the kernel's read-ahead (`PG_readahead`).

/// Streams kept of one blob; the one that was used longest ago makes room for another. Programs read from a few files at once.
const MOST_STREAMS: usize = 8;
/// Chunks as if they had been speculated on before the first, half of them used: what is decided while nothing is known.
const PRIOR: u32 = 6;
/// Misses after which what is known counts half.
const MEMORY: u32 = 128;

/// What holds for all streams of a blob, in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Chunks of the blob.
    pub(crate) chunks: u32,
    /// Neighbours that a new stream asks for at most.
    pub(crate) start: u32,
    /// The largest batch.
    pub(crate) window: u32,
}

/// Chunks to be read ahead: `first..=last`, and the one whose use asks for the next batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) first: u32,
    pub(crate) last: u32,
    pub(crate) mark: u32,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    /// One past what was read.
    next: u32,
    batch: Batch,
    /// When it was used last, in calls.
    at: u32,
}

impl Stream {
    /// One past what was read or speculated on.
    fn end(&self) -> u32 {
        self.next.max(self.batch.last.saturating_add(1))
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
        self.streams.iter().any(|stream| stream.batch.mark == chunk)
    }

    /// Somebody waits for chunks `first..=last`, of which some were not here.
    pub(crate) fn missed(&mut self, (first, last): (u32, u32), limits: Limits) -> Option<Batch> {
        self.calls = self.calls.wrapping_add(1);
        if self.calls.is_multiple_of(MEMORY) {
            (self.spent, self.used) = (self.spent / 2, self.used / 2);
        }
        let follows = |stream: &Stream| (stream.next..=stream.end()).contains(&first);
        let (at, size) = match self.streams.iter().position(follows) {
            // Nothing is known of a stream that is one chunk long.
            Some(at) => {
                let batch = self.streams.swap_remove(at).batch;
                let had = (batch.last + 1).saturating_sub(batch.first);
                (batch.last.saturating_add(1), had.max(limits.start / 2).saturating_mul(2).max(1))
            }
            // The first miss is somebody who looks what the blob is.
            None if self.calls == 1 => (0, 0),
            None => (0, self.level(limits)),
        };
        self.begin((last.saturating_add(1), at), size, limits)
    }

    /// A marked chunk was used. `used` counts those of a run of chunks that were used.
    pub(crate) fn touched(&mut self, chunk: u32, limits: Limits, used: impl Fn(u32, u32) -> u32) -> Option<Batch> {
        self.calls = self.calls.wrapping_add(1);
        let at = self.streams.iter().position(|stream| stream.batch.mark == chunk)?;
        let batch = self.streams.swap_remove(at).batch;
        let size = batch.last - batch.first + 1;
        let most = used(batch.first, chunk).saturating_mul(4) >= (chunk - batch.first + 1).saturating_mul(3);
        let size = match (most, self.level(limits)) {
            (true, _) => size.saturating_mul(2),
            (false, level) => size.min(level),
        };
        self.begin((chunk.saturating_add(1), batch.last.saturating_add(1)), size, limits)
    }

    /// Neighbours worth asking for at a place of which nothing is known: as many as allowed while at least half of those before were
    /// used, a third of them while it was a fifth, none below.
    fn level(&self, limits: Limits) -> u32 {
        let (used, spent) = (u64::from(self.used) + u64::from(PRIOR / 2), u64::from(self.spent) + u64::from(PRIOR));
        if used * 2 >= spent {
            limits.start
        } else if used * 5 >= spent {
            limits.start.div_ceil(3)
        } else {
            0
        }
    }

    /// A stream that was read up to `next` asks for `size` chunks from there, or from `from` if that is later.
    fn begin(&mut self, (next, from): (u32, u32), size: u32, limits: Limits) -> Option<Batch> {
        let first = next.max(from);
        let size = size.min(limits.window);
        let end = first.saturating_add(size).min(limits.chunks);
        // The first batch has to prove itself up to its middle; a later one goes on as soon as it is reached.
        let mark = if size > limits.start { first } else { first.saturating_add(size / 2) };
        let batch = Batch { first, last: end.saturating_sub(1), mark: mark.min(end.saturating_sub(1)) };
        let is_some = end > first;
        if self.streams.len() == MOST_STREAMS {
            let age = |stream: &Stream| self.calls.wrapping_sub(stream.at);
            let oldest = (0..MOST_STREAMS).max_by_key(|&at| self.streams.get(at).map(age));
            oldest.map(|at| self.streams.swap_remove(at));
        }
        // Without a batch the stream waits for a miss right behind what was read.
        let none = Batch { first: next, last: next.saturating_sub(1), mark: u32::MAX };
        self.streams.push(Stream { next, batch: if is_some { batch } else { none }, at: self.calls });
        is_some.then_some(batch)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { chunks: 1000, start: 3, window: 32 };

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
            let batch = if self.here.insert(chunk) {
                self.misses += 1;
                self.fetched += 1;
                self.streams.missed((chunk, chunk), LIMITS)
            } else if self.unused.remove(&chunk) {
                self.streams.used(1);
                let used = |first, last| (first..=last).filter(|chunk| !self.unused.contains(chunk)).count();
                let used = |first, last| u32::try_from(used(first, last)).unwrap();
                if self.streams.is_marked(chunk) { self.streams.touched(chunk, LIMITS, used) } else { None }
            } else {
                None
            };
            let Some(batch) = batch else { return };
            assert!(batch.first <= batch.mark && batch.mark <= batch.last && batch.last < LIMITS.chunks, "{batch:?}");
            assert!(batch.last - batch.first < LIMITS.window);
            for chunk in batch.first..=batch.last {
                if self.here.insert(chunk) {
                    self.unused.insert(chunk);
                    self.fetched += 1;
                    self.streams.spent(1);
                }
            }
        }
    }

    #[test]
    fn a_reader_in_order_waits_twice_and_batches_grow_to_the_window() {
        let mut model = Model::default();
        (100..900).for_each(|chunk| model.read(chunk));
        assert_eq!(model.misses, 2);
        assert!(model.fetched <= 800 + 2 * LIMITS.window, "{}", model.fetched);
    }

    #[test]
    fn several_readers_in_order_do_not_disturb_each_other() {
        let mut model = Model::default();
        for step in 0..100 {
            (0..8).for_each(|reader| model.read(reader * 120 + step));
        }
        assert_eq!(model.misses, 9);
    }

    #[test]
    fn who_reads_at_random_soon_fetches_what_he_asks_for_only() {
        let mut model = Model::default();
        let mut random = fastrand::Rng::with_seed(1);
        let mut places: Vec<u32> = (0..1000).step_by(7).collect();
        random.shuffle(&mut places);
        places.iter().for_each(|&chunk| model.read(chunk));
        let wasted = model.fetched - u32::try_from(places.len()).unwrap();
        assert!(wasted <= 24, "{wasted} chunks that nobody asked for");
    }

    #[test]
    fn a_reader_that_was_random_and_reads_in_order_now_is_followed() {
        let mut model = Model::default();
        (0..400).step_by(7).for_each(|chunk| model.read(chunk));
        let misses = model.misses;
        (500..700).for_each(|chunk| model.read(chunk));
        assert!(model.misses - misses <= 2, "{} misses", model.misses - misses);
    }

    #[test]
    fn a_reader_backwards_or_of_every_other_chunk_is_not_followed_for_long() {
        let mut model = Model::default();
        (200..900).rev().for_each(|chunk| model.read(chunk));
        assert!(model.fetched <= 700 + 20, "{}", model.fetched);
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
