//! How long a device's readers wait for bytes that are not on this node: as one stretch of time however many wait at once, by the ranges that
//! were waited for, and by the bursts in which they come. Only who waits anyway comes here; a hit does not. The clock is an argument.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use penstock_blob::ByteRange;

use crate::stats::Counters;

/// Ranges kept, about 50 bytes each: a start of a large program waits a few hundred times. Of more ranges than this the least waited for are
/// forgotten; their time is not.
pub const MAX_RANGES: usize = 256;
/// Waits that are less than this apart are of one burst. A program that computes for longer without needing anything new has started.
pub const QUIET: Duration = Duration::from_secs(2);

/// One range of the device that readers waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeWait {
    /// Bytes of the device.
    pub range: ByteRange,
    /// How often somebody waited for it.
    pub waits: u64,
    /// How long, each wait counted.
    pub waited: Duration,
}

/// A run of waits less than [`QUIET`] apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst {
    /// From the begin of its first wait to the end of its last.
    pub took: Duration,
    /// How much of that at least one reader waited.
    pub stalled: Duration,
    /// How many reads waited.
    pub waits: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How the readers of a device have waited.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Waits {
    /// How long at least one reader waited: reads that wait together count once.
    pub stalled: Duration,
    /// How many reads waited, those that still do included.
    pub waits: u64,
    /// Bytes that those have read whose wait is over.
    pub bytes: u64,
    /// The burst with the longest stall: mostly the start of what is on the device. `None` before the first wait.
    pub longest: Option<Burst>,
    /// Whether that burst is over: that nothing was waited for since, for [`QUIET`], or that another has begun.
    pub is_over: bool,
    /// The most waited-for ranges, the longest wait first; [`MAX_RANGES`] at most.
    pub ranges: Vec<RangeWait>,
    /// The time of ranges that are forgotten.
    pub elsewhere: Duration,
}

/// The waits of one device.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<State>);

impl Waiting {
    /// How it stands.
    pub(crate) fn read(&self) -> Waits {
        self.0.lock().read(Instant::now())
    }

    /// How long at least one reader waited.
    pub(crate) fn stalled(&self) -> Duration {
        self.0.lock().stalled(Instant::now())
    }
}

#[derive(Debug, Default)]
struct State {
    readers: u32,
    /// Since when somebody waits.
    since: Option<Instant>,
    stalled: Duration,
    waits: u64,
    bytes: u64,
    now: Option<Running>,
    longest: Option<Burst>,
    /// By their first byte.
    ranges: HashMap<u64, RangeWait>,
    elsewhere: Duration,
}

/// A burst that may go on.
#[derive(Debug, Clone, Copy)]
struct Running {
    begun: Instant,
    /// When the last wait ended, or the time of the last look while one is going on.
    last: Instant,
    burst: Burst,
}

/// One reader waits for as long as this lives.
#[derive(Debug)]
pub(crate) struct Wait {
    counters: Arc<Counters>,
    range: ByteRange,
    begun: Instant,
}

impl Wait {
    /// Somebody waits for `range` of the device from now on.
    pub(crate) fn begin(counters: Arc<Counters>, range: ByteRange) -> Self {
        let begun = Instant::now();
        counters.waiting.0.lock().begin(begun);
        Self { counters, range, begun }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        // One clock for both: all waits together are no shorter than the time in which somebody waited.
        let now = Instant::now();
        let stalled = self.counters.waiting.0.lock().end(self.range, self.begun, now);
        self.counters.stalled(stalled);
        self.counters.waited(now.duration_since(self.begun));
    }
}

impl State {
    fn begin(&mut self, now: Instant) {
        if self.readers == 0 && self.now.is_some_and(|running| now.duration_since(running.last) >= QUIET) {
            self.longest = self.longest(now);
            self.now = None;
        }
        self.waits += 1;
        self.readers += 1;
        self.since.get_or_insert(now);
        let fresh = Burst { took: Duration::ZERO, stalled: Duration::ZERO, waits: 0, bytes: 0 };
        self.now.get_or_insert(Running { begun: now, last: now, burst: fresh }).burst.waits += 1;
    }

    /// One wait is over; the stall that is over with it.
    fn end(&mut self, range: ByteRange, begun: Instant, now: Instant) -> Duration {
        self.bytes = self.bytes.saturating_add(range.len());
        self.readers = self.readers.saturating_sub(1);
        let since = if self.readers == 0 { self.since.take() } else { None };
        let stalled = since.map_or(Duration::ZERO, |since| now.duration_since(since));
        self.stalled += stalled;
        if let Some(running) = &mut self.now {
            running.last = now;
            running.burst.stalled += stalled;
            running.burst.bytes = running.burst.bytes.saturating_add(range.len());
        }
        self.keep(range, now.duration_since(begun));
        stalled
    }

    fn stalled(&self, now: Instant) -> Duration {
        self.stalled + self.since.map_or(Duration::ZERO, |since| now.duration_since(since))
    }

    /// Adds a wait to those of its range, in the place of the least waited-for one when there is none left.
    fn keep(&mut self, range: ByteRange, waited: Duration) {
        let is_full = self.ranges.len() >= MAX_RANGES;
        match self.ranges.entry(range.start()) {
            Entry::Occupied(mut same) => {
                let same = same.get_mut();
                same.range = same.range.cover(range);
                same.waits += 1;
                same.waited += waited;
                return;
            }
            Entry::Vacant(place) if !is_full => {
                place.insert(RangeWait { range, waits: 1, waited });
                return;
            }
            Entry::Vacant(_) => {}
        }
        let least =
            self.ranges.values().min_by_key(|range| range.waited).map(|least| (least.range.start(), least.waited));
        match least {
            Some((start, least)) if least < waited => {
                self.ranges.remove(&start);
                self.ranges.insert(range.start(), RangeWait { range, waits: 1, waited });
                self.elsewhere += least;
            }
            _ => self.elsewhere += waited,
        }
    }

    /// The burst with the longest stall, the one that may go on included.
    fn longest(&self, now: Instant) -> Option<Burst> {
        let running = self.now.map(|running| {
            let waiting = self.since.map_or(Duration::ZERO, |since| now.duration_since(since));
            let until = if self.readers > 0 { now } else { running.last };
            let took = until.duration_since(running.begun);
            Burst { took, stalled: running.burst.stalled + waiting, ..running.burst }
        });
        // Of two that are alike the first one: that is the start.
        [running, self.longest].into_iter().flatten().max_by_key(|burst| burst.stalled)
    }

    fn read(&self, now: Instant) -> Waits {
        let longest = self.longest(now);
        let goes_on = self.now.is_some_and(|running| self.readers > 0 || now.duration_since(running.last) < QUIET);
        let mut ranges: Vec<RangeWait> = self.ranges.values().copied().collect();
        ranges.sort_unstable_by_key(|range| (std::cmp::Reverse(range.waited), range.range.start()));
        Waits {
            stalled: self.stalled(now),
            waits: self.waits,
            bytes: self.bytes,
            longest,
            is_over: longest.is_some() && (!goes_on || longest == self.longest),
            ranges,
            elsewhere: self.elsewhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn range(start: u64) -> ByteRange {
        ByteRange::at(start, 4096).unwrap()
    }

    #[test]
    fn reads_that_wait_together_stall_once() {
        let (mut state, start) = (State::default(), Instant::now());
        state.begin(start);
        state.begin(start + ms(5));
        state.end(range(0), start, start + ms(10));
        state.end(range(4096), start + ms(5), start + ms(20));
        let waits = state.read(start + ms(20));
        assert_eq!((waits.stalled, waits.waits, waits.bytes), (ms(20), 2, 8192));
        assert_eq!(waits.ranges.iter().map(|range| range.waited).collect::<Vec<_>>(), [ms(15), ms(10)]);
        assert_eq!(waits.longest, Some(Burst { took: ms(20), stalled: ms(20), waits: 2, bytes: 8192 }));
        assert!(!waits.is_over && state.read(start + ms(20) + QUIET).is_over);
    }

    #[test]
    fn every_wait_counts_and_all_together_are_no_shorter_than_the_stall() {
        let metrics = crate::Metrics::new(&mut prometheus_client::registry::Registry::default());
        let counters = metrics.device(&"t".parse().unwrap(), crate::Transport::Fuse);
        let waits = [0, 4096].map(|start| Wait::begin(counters.clone(), range(start)));
        let both = Instant::now();
        while both.elapsed() < ms(1) {
            std::hint::spin_loop();
        }
        drop(waits);
        let stats = counters.stats();
        assert!(stats.stalled >= ms(1) && stats.waited >= stats.stalled + ms(1), "{stats:?}");
    }

    #[test]
    fn who_still_waits_is_counted_up_to_now() {
        let (mut state, start) = (State::default(), Instant::now());
        state.begin(start);
        let waits = state.read(start + ms(3000));
        assert_eq!((waits.stalled, waits.longest.map(|burst| burst.took)), (ms(3000), Some(ms(3000))));
        assert!(!waits.is_over, "somebody waits");
    }

    #[test]
    fn the_burst_that_stalled_longest_is_kept_whatever_comes_after() {
        let (mut state, start) = (State::default(), Instant::now());
        let mut wait = |at: u64, took: u64| {
            state.begin(start + ms(at));
            state.end(range(at), start + ms(at), start + ms(at + took));
        };
        // A mount, the start of a program, and a small read much later.
        wait(0, 20);
        wait(10_000, 100);
        wait(11_000, 200);
        wait(60_000, 50);
        let waits = state.read(start + ms(60_100));
        assert_eq!(waits.longest, Some(Burst { took: ms(1200), stalled: ms(300), waits: 2, bytes: 8192 }));
        assert!(waits.is_over, "another one has begun");
        assert_eq!((waits.stalled, waits.waits), (ms(370), 4));
    }

    #[test]
    fn no_more_ranges_are_kept_than_the_bound_and_the_most_waited_for_stay() {
        let (mut state, start) = (State::default(), Instant::now());
        for nth in 0..MAX_RANGES as u64 + 50 {
            state.begin(start);
            state.end(range(nth * 4096), start, start + ms(nth + 1));
        }
        let waits = state.read(start);
        assert_eq!(waits.ranges.len(), MAX_RANGES);
        assert_eq!(waits.ranges[0].waited, ms(MAX_RANGES as u64 + 50));
        assert_eq!(waits.elsewhere, ms((1..=50).sum()));
        state.begin(start);
        state.end(range(0), start, start);
        assert_eq!(state.read(start).ranges.len(), MAX_RANGES, "one that waited less finds no place");
    }
}
