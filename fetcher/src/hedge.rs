//! How many bytes may be asked for twice. Pure.

use parking_lot::Mutex;

/// One byte in so many may be asked for a second time: 5 of 100.
const SHARE: u64 = 20;
/// Most bytes saved up, as a multiple of the largest request: a stall after a quiet time is met by some requests at once, not by
/// doubling the load.
const SAVED_REQUESTS: u64 = 4;

/// The bytes that hedges may cost. Every byte received earns its share; every hedge takes what it asks for.
#[derive(Debug)]
pub(crate) struct Allowance {
    /// In `SHARE`ths of a byte, so that nothing is lost by rounding.
    saved: Mutex<u64>,
    most: u64,
}

impl Allowance {
    /// Starts with one largest request, so that the first reader is helped too.
    pub(crate) fn new(max_request_bytes: u64) -> Self {
        let one = max_request_bytes.saturating_mul(SHARE);
        Self { saved: Mutex::new(one), most: one.saturating_mul(SAVED_REQUESTS) }
    }

    /// Bytes were received.
    pub(crate) fn earn(&self, bytes: u64) {
        let mut saved = self.saved.lock();
        *saved = saved.saturating_add(bytes).min(self.most);
    }

    /// Takes the bytes of a hedge, if there are so many.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let mut saved = self.saved.lock();
        let left = saved.checked_sub(bytes.saturating_mul(SHARE));
        *saved = left.unwrap_or(*saved);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedges_cost_one_request_and_then_five_of_a_hundred_bytes() {
        let allowance = Allowance::new(1000);
        assert!(allowance.take(1000));
        assert!(!allowance.take(1));
        let mut hedged = 0;
        for _ in 0..1_000 {
            allowance.earn(100);
            if allowance.take(50) {
                hedged += 50;
            }
        }
        assert_eq!(hedged, 100_000 / 20);
        allowance.earn(u64::MAX);
        for _ in 0..SAVED_REQUESTS {
            assert!(allowance.take(1000));
        }
        assert!(!allowance.take(1000), "no more is saved up");
    }
}
