//! The link that all connections share: a bucket of bytes that fills at a set rate, as a real network card's would.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How much unused time the link may catch up on: timers fire up to a few milliseconds late, and without this a single
/// connection would never reach the set rate.
const BURST: Duration = Duration::from_millis(5);

/// The share of a second that one grant may be worth, so that connections take turns: 10 ms.
const GRANTS_PER_SECOND: u64 = 100;

/// A grant in bytes lies between these, whatever the rate.
const GRANT_BYTES: std::ops::RangeInclusive<u64> = 1 << 10..=64 << 10;

/// A set rate, shared by all connections.
#[derive(Debug)]
pub(crate) struct Link(Mutex<Shape>);

#[derive(Debug)]
struct Shape {
    bytes_per_second: Option<u64>,
    /// When the last byte granted so far will have left.
    free_at: Instant,
}

/// Bytes that may be written once the time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) bytes: u64,
    pub(crate) at: Instant,
}

impl Link {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self(Mutex::new(Shape { bytes_per_second, free_at: Instant::now() }))
    }

    pub(crate) fn set(&self, bytes_per_second: Option<u64>) {
        *self.0.lock() = Shape { bytes_per_second, free_at: Instant::now() };
    }

    /// Reserves the link's next free time for up to `wanted` bytes; `None` when the link has no limit.
    pub(crate) fn reserve(&self, wanted: u64) -> Option<Grant> {
        let mut shape = self.0.lock();
        let rate = shape.bytes_per_second?.max(1);
        let most = (rate / GRANTS_PER_SECOND).clamp(*GRANT_BYTES.start(), *GRANT_BYTES.end());
        let bytes = wanted.min(most);
        shape.free_at = free_after(shape.free_at, Instant::now(), bytes, rate);
        Some(Grant { bytes, at: shape.free_at })
    }
}

/// When `bytes` more will have left a link that is free at `free_at`: no earlier than the burst allows.
fn free_after(free_at: Instant, now: Instant, bytes: u64, rate: u64) -> Instant {
    let floor = now.checked_sub(BURST).unwrap_or(now);
    let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
    free_at.max(floor) + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn grants_add_up_to_the_rate() {
        let link = Link::new(Some(1_000_000));
        let begin = Instant::now();
        let (mut sent, mut last) = (0, begin);
        while sent < 2_000_000 {
            let grant = link.reserve(2_000_000 - sent).unwrap();
            (sent, last) = (sent + grant.bytes, grant.at);
        }
        assert_eq!(last - begin, Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_is_not_saved_up_beyond_the_burst() {
        let link = Link::new(Some(1_000));
        tokio::time::advance(Duration::from_secs(60)).await;
        let grant = link.reserve(1_000).unwrap();
        assert_eq!(grant, Grant { bytes: 1_000, at: Instant::now() + Duration::from_secs(1) - BURST });
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rate_nothing_waits() {
        let link = Link::new(Some(1));
        link.set(None);
        assert_eq!(link.reserve(1 << 30), None);
    }
}
