//! How many bytes one endpoint may have in flight: enough that the way to it is never idle, and no more than that, so that what is wanted
//! next does not wait behind what was asked for before. Pure; the clock is an argument.
//!
//! The way is modelled as by BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 2016): its *rate* is the most that was
//! received lately, its *delay* the time to an answer when nothing queues; what fits on it is their product. While more in flight brings more, the
//! rate found grows, and with it what is allowed; once the way is full it stops, however much queues. When less is received although as much is
//! asked for, the rate found shrinks, within two times [`RATE_AGE`].
//!
//! Only who fills the way learns its rate: what was found with little in flight counts when it is better than what is known, and never makes it
//! worse. Only who does not fill it learns its delay, which is an average, because registries answer unevenly. When everybody has filled it for
//! [`DELAY_AGE`], the delay known may be a queue of our own: then little is allowed for a moment, and the delay found anew.

use std::time::Duration;

use tokio::time::Instant;

/// What may be in flight, in products of rate and delay. One would keep the way full, if its rate were known. That more in flight brings more
/// is found with two: whoever leaves the way idle is then allowed more than he has used ([`tests`] has the argument). Reading ahead gets half of
/// what is allowed, so it is four.
const FILL: u64 = 4;
/// So many bytes more, a few chunks: what fits on a short way is less than the time in which a request can be made.
const LEAST_BYTES: u64 = 1 << 20;
/// What is allowed before anything is known: what fits on a gigabit with 30 ms. It grows twofold with each answer while that brings more.
const UNKNOWN_BYTES: u64 = 4 << 20;
/// The rate is the best of the last one to two of these.
const RATE_AGE: Duration = Duration::from_secs(1);
/// The delay is looked for after so long without a request that met no queue.
const DELAY_AGE: Duration = Duration::from_secs(10);
/// How much the newest time counts in the delay, one part in so many; and how many times a delay that is found anew is the average of.
const DELAY_WEIGHT: u32 = 8;
/// With one part in so many of what fits in flight, nothing queues.
const FREE_PART: u64 = 2;
/// With one part in so many of what is allowed in flight, the way is full: reading ahead alone gets half of it.
const FULL_PART: u64 = 3;
/// No time is taken for shorter than this: timers and schedulers are not better.
const SHORTEST: Duration = Duration::from_millis(1);

/// What is known about the way to one endpoint.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pace {
    /// Bytes received so far.
    received: u64,
    /// Bytes asked for that have not come and still may, and since when there are any.
    in_flight: u64,
    busy_since: Option<Instant>,
    rate: Best,
    /// Whether somebody has filled the way. Until then the rate is no more than what was asked for.
    was_full: bool,
    /// The average time to an answer of those who met no queue, and when there was one last.
    delay: Option<(Duration, Instant)>,
    /// The delay that is being found anew: the sum of some times, and how many.
    anew: (Duration, u32),
}

/// The best rate of this period and of the one before, in bytes in a second.
#[derive(Debug, Clone, Copy, Default)]
struct Best {
    before: u64,
    now: u64,
    since: Option<Instant>,
}

/// One request, as it was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    at: Instant,
    /// Bytes that have not come yet.
    left: u64,
    received_before: u64,
    /// Whether so much was in flight that the way was full, as far as it was known.
    fills: bool,
    /// Whether so little was in flight before that it met no queue.
    is_free: bool,
    answered: Option<Instant>,
}

impl Best {
    fn best(self) -> u64 {
        self.now.max(self.before)
    }

    /// A rate was found. What filled the way makes older ones forgotten.
    fn take(&mut self, rate: u64, fills: bool, now: Instant) {
        if !fills && rate <= self.best() {
            return;
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= RATE_AGE {
            (self.before, self.now, self.since) = (self.now, 0, Some(now));
        }
        self.now = self.now.max(rate);
    }
}

impl Pace {
    /// Bytes are asked for.
    pub(crate) fn sent(&mut self, bytes: u64, now: Instant) -> Sent {
        let before = self.in_flight;
        self.in_flight = before.saturating_add(bytes);
        self.busy_since.get_or_insert(now);
        Sent {
            at: now,
            left: bytes,
            received_before: self.received,
            // While the delay is looked for, little is in flight on purpose.
            fills: !self.is_looking(now) && self.in_flight >= self.allowed_bytes(now) / FULL_PART,
            is_free: before <= self.fits_bytes().unwrap_or(0) / FREE_PART,
            answered: None,
        }
    }

    /// The head of the answer came.
    pub(crate) fn answered(&mut self, sent: &mut Sent, now: Instant) {
        sent.answered = Some(now);
        if !sent.is_free {
            return;
        }
        let took = now.saturating_duration_since(sent.at).max(SHORTEST);
        let average = match self.delay {
            None => took,
            Some((average, at)) if sent.at.saturating_duration_since(at) < DELAY_AGE => {
                (average * (DELAY_WEIGHT - 1) + took) / DELAY_WEIGHT
            }
            // One that nobody has confirmed for long was a queue, or the way has changed: it counts no more.
            Some(_) => {
                self.anew = (self.anew.0 + took, self.anew.1 + 1);
                if self.anew.1 < DELAY_WEIGHT {
                    return;
                }
                self.anew.0 / self.anew.1
            }
        };
        (self.delay, self.anew) = (Some((average, now)), (Duration::ZERO, 0));
    }

    /// Some bytes of a request came: they are in flight no more.
    pub(crate) fn came(&mut self, sent: &mut Sent, bytes: u64) {
        self.received = self.received.saturating_add(bytes);
        let bytes = bytes.min(sent.left);
        sent.left -= bytes;
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }

    /// All that was asked for came.
    pub(crate) fn finished(&mut self, sent: Sent, now: Instant) {
        let took = now.saturating_duration_since(sent.at).max(SHORTEST);
        let rate = u128::from(self.received.saturating_sub(sent.received_before)) * 1_000_000_000 / took.as_nanos();
        self.rate.take(u64::try_from(rate).unwrap_or(u64::MAX), sent.fills, now);
        // A body that takes longer than its way is long has filled it.
        let body = sent.answered.map(|at| now.saturating_duration_since(at));
        self.was_full |= sent.fills || body.zip(self.delay()).is_some_and(|(body, delay)| body >= delay);
    }

    /// A request is over, whatever came of it.
    pub(crate) fn over(&mut self, sent: Sent) {
        self.in_flight = self.in_flight.saturating_sub(sent.left);
        self.busy_since = self.busy_since.filter(|_| self.in_flight > 0);
    }

    /// How many bytes may be in flight before another request is sent; one always may.
    pub(crate) fn allowed_bytes(&self, now: Instant) -> u64 {
        match self.fits_bytes() {
            None => UNKNOWN_BYTES,
            Some(fits) if self.is_looking(now) => fits / FREE_PART,
            Some(fits) => fits.saturating_mul(FILL).saturating_add(LEAST_BYTES),
        }
    }

    /// Whether the way was busy and nobody has met it empty for so long that its delay is not known any more.
    fn is_looking(&self, now: Instant) -> bool {
        let since = self.delay.zip(self.busy_since).map(|((_, met), busy)| met.max(busy));
        since.is_some_and(|since| now.saturating_duration_since(since) >= DELAY_AGE)
    }

    /// What fits on the way: rate times delay.
    fn fits_bytes(&self) -> Option<u64> {
        let product = u128::from(self.bytes_per_second()?) * self.delay()?.as_nanos() / 1_000_000_000;
        Some(u64::try_from(product).unwrap_or(u64::MAX))
    }

    /// The most that was received lately, once that says something about the way.
    pub(crate) fn bytes_per_second(&self) -> Option<u64> {
        Some(self.rate.best()).filter(|rate| self.was_full && *rate > 0)
    }

    /// The time to an answer when nothing queues, once it is known.
    pub(crate) fn delay(&self) -> Option<Duration> {
        self.delay.map(|(average, _)| average)
    }
}

#[cfg(test)]
mod tests;
