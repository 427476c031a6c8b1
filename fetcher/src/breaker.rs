//! Whether an endpoint is worth asking: a circuit breaker. Pure; the clock is an argument.
//!
//! ```text
//! Closed --(TRIP failures in a row, or WRONG_LIMIT wrong answers)--> Open --(its time has passed, one probe)--> HalfOpen
//!   ^                                                                 ^  |                                        |  |
//!   +------------------------- a success -----------------------------|--+----------------------------------------+  |
//!                                                                     +------------- the probe failed ---------------+
//! ```
//!
//! The breaker decides who is passed over while there is somebody else to ask. It never makes a read fail: the last one left is
//! asked whatever its breaker says, at the pace of the retry policy.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Failures in a row after which an endpoint is passed over. Below it, one bad pod behind a load balancer would open it; far above,
/// every reader would find out by itself.
const TRIP: u32 = 5;
/// How long an endpoint is passed over the first time. Doubled while probes fail.
const FIRST_OPEN: Duration = Duration::from_secs(1);
/// The longest that it is passed over for failing: half the default deadline, so that a reader who waits lives to see the probe.
const MAX_OPEN: Duration = Duration::from_secs(15);
/// Wrong answers within [`WRONG_WINDOW`] after which an endpoint is passed over for all blobs: once is a broken transfer, twice is
/// bad luck.
const WRONG_LIMIT: usize = 3;
/// How long a wrong answer counts.
const WRONG_WINDOW: Duration = Duration::from_secs(600);
/// How long an endpoint is passed over for wrong answers. Long: what stands in front of it must be mended by somebody.
const WRONG_OPEN: Duration = Duration::from_secs(300);
/// How long a probe holds its right; a probe that was given up frees it at once.
const PROBE_TIME: Duration = Duration::from_secs(30);

/// The state of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// It is asked.
    Closed {
        /// Failures since the last success.
        failures: u32,
    },
    /// It is passed over until then.
    Open {
        until: Instant,
        /// How often it was opened since it was closed.
        trips: u32,
    },
    /// One request tries it.
    HalfOpen {
        /// When the probe's right ends.
        until: Instant,
        trips: u32,
    },
}

/// What a request lived to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It answered as it should, or that it does not have it.
    Success,
    /// No answer, a broken one, or that it failed.
    Failure,
    /// An answer with other bytes than those asked for, or that were found to be wrong later.
    Wrong,
    /// Nobody wanted to know any more.
    GivenUp,
}

/// A change that operators should hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// From asked to passed over.
    Broken,
    /// From passed over to asked.
    Healed,
}

/// Whether a request may go to the endpoint now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It may.
    Open,
    /// It may as the one probe, once it has taken that right.
    Probe,
    /// It should not, while there is somebody else.
    Shut,
}

/// The breaker of one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Breaker {
    state: State,
    /// When wrong answers came, at most [`WRONG_LIMIT`].
    wrong: VecDeque<Instant>,
}

impl Breaker {
    pub(crate) const fn new() -> Self {
        Self { state: State::Closed { failures: 0 }, wrong: VecDeque::new() }
    }

    pub(crate) const fn state(&self) -> &State {
        &self.state
    }

    /// Whether a request may go there. Changes nothing.
    pub(crate) fn admission(&self, now: Instant) -> Admission {
        match self.state {
            State::Closed { .. } => Admission::Open,
            State::Open { until, .. } | State::HalfOpen { until, .. } if now >= until => Admission::Probe,
            State::Open { .. } | State::HalfOpen { .. } => Admission::Shut,
        }
    }

    /// A request goes there now; whether it is the probe.
    pub(crate) fn ask(&mut self, now: Instant) -> bool {
        let (State::Open { until, trips } | State::HalfOpen { until, trips }) = self.state else { return false };
        if now < until {
            return false;
        }
        self.state = State::HalfOpen { until: now + PROBE_TIME, trips };
        true
    }

    /// What a request saw; `probe` as [`Self::ask`] said.
    pub(crate) fn apply(&mut self, seen: Seen, probe: bool, now: Instant) -> Option<Change> {
        match (&self.state, seen) {
            (_, Seen::Wrong) => return self.wrong(probe, now),
            (State::Closed { .. }, Seen::Success) => self.state = State::Closed { failures: 0 },
            (State::Closed { failures }, Seen::Failure) if failures + 1 >= TRIP => {
                self.open(1, FIRST_OPEN, now);
                return Some(Change::Broken);
            }
            (State::Closed { failures }, Seen::Failure) => self.state = State::Closed { failures: failures + 1 },
            // Also the success of somebody who had nobody else to ask, unless wrong bytes are the reason: right ones now and then
            // are not enough.
            (State::Open { .. } | State::HalfOpen { .. }, Seen::Success) if probe || self.wrong.len() < WRONG_LIMIT => {
                self.wrong.clear();
                self.state = State::Closed { failures: 0 };
                return Some(Change::Healed);
            }
            (State::HalfOpen { trips, .. }, Seen::Failure) if probe => self.open_longer(*trips, now),
            (State::HalfOpen { trips, .. }, Seen::GivenUp) if probe => {
                self.state = State::Open { until: now, trips: *trips };
            }
            _ => {}
        }
        None
    }

    fn wrong(&mut self, probe: bool, now: Instant) -> Option<Change> {
        self.wrong.retain(|at| now.saturating_duration_since(*at) < WRONG_WINDOW);
        self.wrong.push_back(now);
        if self.wrong.len() > WRONG_LIMIT {
            self.wrong.pop_front();
        }
        let (was_closed, trips) = match self.state {
            State::Closed { .. } => (true, 1),
            State::Open { trips, .. } | State::HalfOpen { trips, .. } => (false, trips),
        };
        if self.wrong.len() == WRONG_LIMIT {
            self.open(trips, WRONG_OPEN, now);
            return was_closed.then_some(Change::Broken);
        }
        if probe {
            self.open_longer(trips, now);
        }
        None
    }

    fn open_longer(&mut self, trips: u32, now: Instant) {
        let longer = FIRST_OPEN.saturating_mul(2u32.saturating_pow(trips)).min(MAX_OPEN);
        self.open(trips.saturating_add(1), longer, now);
    }

    fn open(&mut self, trips: u32, time: Duration, now: Instant) {
        self.state = State::Open { until: now + time, trips };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn tripped(now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        for round in 1..=TRIP {
            let change = breaker.apply(Seen::Failure, false, now);
            assert_eq!(change, (round == TRIP).then_some(Change::Broken), "{round}");
        }
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_it_and_a_success_between_does_not() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        for _ in 0..10 {
            for _ in 1..TRIP {
                assert_eq!(breaker.apply(Seen::Failure, false, now), None);
            }
            assert_eq!(breaker.apply(Seen::Success, false, now), None);
        }
        assert_eq!(breaker.admission(now), Admission::Open);
        assert_eq!(tripped(now).admission(now), Admission::Shut);
    }

    #[tokio::test(start_paused = true)]
    async fn half_open_lets_one_probe_through_and_only_that_one() {
        let now = Instant::now();
        let mut breaker = tripped(now);
        assert!(!breaker.ask(after(now, 999)));
        let then = after(now, 1000);
        assert_eq!(breaker.admission(then), Admission::Probe);
        assert!(breaker.ask(then));
        assert_eq!(breaker.admission(then), Admission::Shut);
        assert!(!breaker.ask(then));
        assert_eq!(breaker.apply(Seen::Success, true, then), Some(Change::Healed));
        assert_eq!(breaker.state(), &State::Closed { failures: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn failed_probes_wait_longer_up_to_a_bound_and_are_no_news() {
        let mut now = Instant::now();
        let mut breaker = tripped(now);
        let mut waits = Vec::new();
        for _ in 0..6 {
            let &State::Open { until, .. } = breaker.state() else { panic!("{breaker:?}") };
            waits.push((until - now).as_secs());
            now = until;
            assert!(breaker.ask(now));
            assert_eq!(breaker.apply(Seen::Failure, true, now), None);
        }
        assert_eq!(waits, [1, 2, 4, 8, 15, 15]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_or_lost_is_not_the_last() {
        let now = Instant::now();
        let mut breaker = tripped(now);
        let then = after(now, 1000);
        assert!(breaker.ask(then));
        breaker.apply(Seen::GivenUp, true, then);
        assert_eq!(breaker.admission(then), Admission::Probe);
        assert!(breaker.ask(then));
        assert_eq!(breaker.admission(then + PROBE_TIME), Admission::Probe);
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_lived_to_see_does_not_end_a_probe() {
        let now = Instant::now();
        let mut breaker = tripped(now);
        for seen in [Seen::Failure, Seen::GivenUp] {
            assert_eq!(breaker.apply(seen, false, now), None);
        }
        let then = after(now, 1000);
        assert!(breaker.ask(then), "failures while open do not prolong it");
        assert_eq!(breaker.apply(Seen::Failure, false, then), None);
        assert!(matches!(breaker.state(), State::HalfOpen { .. }));
        assert_eq!(breaker.apply(Seen::Success, false, then), Some(Change::Healed));
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_answers_open_it_for_long_whatever_else_it_answers() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        assert_eq!(breaker.apply(Seen::Wrong, false, now), None);
        assert_eq!(breaker.apply(Seen::Success, false, now), None);
        assert_eq!(breaker.apply(Seen::Wrong, false, now), None);
        assert_eq!(breaker.apply(Seen::Wrong, false, now), Some(Change::Broken));
        assert_eq!(breaker.apply(Seen::Success, false, now), None, "the right bytes now and then are not enough");
        assert_eq!(breaker.admission(now + WRONG_OPEN - Duration::from_secs(1)), Admission::Shut);
        let then = now + WRONG_OPEN;
        assert!(breaker.ask(then));
        assert_eq!(breaker.apply(Seen::Success, true, then), Some(Change::Healed));
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_answers_long_ago_do_not_count() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        breaker.apply(Seen::Wrong, false, now);
        breaker.apply(Seen::Wrong, false, now);
        assert_eq!(breaker.apply(Seen::Wrong, false, now + WRONG_WINDOW), None);
        assert_eq!(breaker.admission(now + WRONG_WINDOW), Admission::Open);
    }
}
