//! How long an endpoint takes: a moving average for choosing, and a percentile for deciding when to ask somebody else too. Pure;
//! the clock is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// How much the newest time counts in the average, one part in so many.
const WEIGHT: u32 = 5;
/// How long the average says anything: an endpoint that was passed over for being slow is asked again after it.
const FRESH: Duration = Duration::from_secs(10);
/// Times kept of each size of request: two are too few for a percentile, thousands would remember yesterday.
const KEPT: usize = 64;
/// Fewer times than this say nothing about a percentile.
const ENOUGH: usize = 8;
/// When to ask somebody else while there are not [`ENOUGH`] times.
const UNKNOWN: Duration = Duration::from_secs(1);
/// Never sooner: below it a second request costs more than it wins.
const SOONEST: Duration = Duration::from_millis(50);
/// Never later: a reader's deadline must leave time for the second request.
const LATEST: Duration = Duration::from_secs(5);
/// Requests up to so many bytes are alike: what they take is latency, then a mixture, then bandwidth.
const SIZES: [u64; 2] = [64 << 10, 1 << 20];

/// The times of one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Latency {
    /// From asking to the head of the answer.
    average: Option<(Duration, Instant)>,
    /// From asking to the last byte, by size of the request.
    whole: [Times; 3],
}

/// The last so many times, a ring.
#[derive(Debug, Clone, Default)]
struct Times {
    kept: Vec<Duration>,
    next: usize,
}

impl Times {
    fn push(&mut self, time: Duration) {
        if self.kept.len() < KEPT {
            self.kept.push(time);
        } else if let Some(oldest) = self.kept.get_mut(self.next) {
            *oldest = time;
        }
        self.next = (self.next + 1) % KEPT;
    }

    /// The time that 95 of 100 stay below.
    fn p95(&self) -> Option<Duration> {
        if self.kept.len() < ENOUGH {
            return None;
        }
        let mut sorted = self.kept.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * 95).div_ceil(100) - 1).copied()
    }
}

impl Latency {
    pub(crate) fn new() -> Self {
        Self { average: None, whole: <[Times; 3]>::default() }
    }

    /// The head of an answer came.
    pub(crate) fn answered(&mut self, after: Duration, now: Instant) {
        let average = match self.average {
            Some((average, at)) if now.saturating_duration_since(at) < FRESH => {
                (average * (WEIGHT - 1) + after) / WEIGHT
            }
            _ => after,
        };
        self.average = Some((average, now));
    }

    /// The last of `bytes` came.
    pub(crate) fn finished(&mut self, bytes: u64, after: Duration) {
        self.whole[size(bytes)].push(after);
    }

    /// The average time to the head of an answer, while it says anything.
    pub(crate) fn average(&self, now: Instant) -> Option<Duration> {
        let (average, at) = self.average?;
        (now.saturating_duration_since(at) < FRESH).then_some(average)
    }

    /// How long to wait for `bytes` before somebody else is asked too: half as long again as 95 of 100 take.
    pub(crate) fn hedge_after(&self, bytes: u64) -> Duration {
        let p95 = self.whole[size(bytes)].p95();
        p95.map_or(UNKNOWN, |p95| p95 * 3 / 2).clamp(SOONEST, LATEST)
    }
}

fn size(bytes: u64) -> usize {
    SIZES.iter().filter(|limit| bytes > **limit).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[tokio::test(start_paused = true)]
    async fn the_average_follows_and_ends() {
        let now = Instant::now();
        let mut latency = Latency::new();
        assert_eq!(latency.average(now), None);
        latency.answered(ms(100), now);
        latency.answered(ms(200), now);
        assert_eq!(latency.average(now), Some(ms(120)));
        assert_eq!(latency.average(now + FRESH), None);
        latency.answered(ms(10), now + FRESH);
        assert_eq!(latency.average(now + FRESH), Some(ms(10)), "what was long ago does not count");
    }

    #[test]
    fn hedging_waits_for_the_slow_few_of_the_same_size() {
        let mut latency = Latency::new();
        assert_eq!(latency.hedge_after(100), UNKNOWN);
        for n in 1..=100 {
            latency.finished(100, ms(n));
            latency.finished(2 << 20, ms(1));
        }
        // The last 64 are 37..=100 ms; 95 of 100 stay below 97.
        assert_eq!(latency.hedge_after(100), ms(97) * 3 / 2);
        assert_eq!(latency.hedge_after(64 << 10), latency.hedge_after(100));
        assert_eq!(latency.hedge_after(2 << 20), SOONEST);
        assert_eq!(latency.hedge_after(65 << 10), UNKNOWN);
        for _ in 0..KEPT {
            latency.finished(100, Duration::from_secs(60));
        }
        assert_eq!(latency.hedge_after(100), LATEST);
    }
}
