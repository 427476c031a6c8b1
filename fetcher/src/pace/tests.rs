//! The controller on a simulated way: a wire with a rate, a delay, and a queue in front of it, as long as it gets.
//!
//! Why a way is filled. Let its rate be C, its delay D, what fits x = C D, a request R, and let the next request be sent when w bytes are left in
//! flight. If w >= x, it comes to the wire before that is idle. If w < x, the wire idles, but the request that was sent with w before it sees
//! w + R in the time D + R/C: it finds the rate C (w + R) / (x + R), and its delay is found to be D, for nothing queued. So reading ahead may have
//! w' = 2 x (w + R) / (x + R) + 1/2 MiB next, a line in w that is above w for w = 0 and for w = x, and so for all between: w grows until it
//! is x or more, by about a factor of two where w is much less than x and R. A count of whole requests has no such argument: of those larger than
//! w' there is one in flight at a time for ever, and half of a way may be idle.
//!
//! Why little queues. A rate that is found is too high by the piece that had begun to come before, so by a factor of r = 1 + piece / R at most.
//! A delay is taken from who had fits / 2 bytes before him at most, so it is D plus r/2 of the delay known at most, and what is known never
//! exceeds D / (1 - r/2). With pieces of R/4 or less, [`FILL`] times the product is less than 10/3 times [`FILL`] x.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A body comes in pieces of so many bytes.
const PIECE_BYTES: u64 = 16 << 10;

/// What happens to a request, in this order.
#[derive(Debug, Clone, Copy)]
enum Happens {
    Arrives(u64),
    Answered(u64),
    Came(u64, u64),
    Finished(u64),
}

/// A way to a registry, and somebody who always wants more.
struct Way<D> {
    pace: Pace,
    began: Instant,
    /// Nanoseconds since the beginning.
    now: u64,
    bytes_per_second: u64,
    /// To the answer, of each request by its number.
    delay: D,
    request_bytes: u64,
    /// One part in so many of what is allowed is used.
    part: u64,
    free_at: u64,
    events: BTreeMap<(u64, u64), Happens>,
    sent: BTreeMap<u64, Sent>,
    /// Requests and events so far.
    requests: u64,
    nth: u64,
    received: u64,
    most_in_flight: u64,
}

impl<D: Fn(u64) -> Duration> Way<D> {
    fn new(bytes_per_second: u64, delay: D) -> Self {
        Self {
            pace: Pace::default(),
            began: Instant::now(),
            now: 0,
            bytes_per_second,
            delay,
            request_bytes: 128 << 10,
            part: 1,
            free_at: 0,
            events: BTreeMap::new(),
            sent: BTreeMap::new(),
            requests: 0,
            nth: 0,
            received: 0,
            most_in_flight: 0,
        }
    }

    fn clock(&self) -> Instant {
        self.began + Duration::from_nanos(self.now)
    }

    fn at(&mut self, nanos: u64, happens: Happens) {
        self.nth += 1;
        self.events.insert((nanos, self.nth), happens);
    }

    fn send(&mut self) {
        self.requests += 1;
        let sent = self.pace.sent(self.request_bytes, self.clock());
        self.sent.insert(self.requests, sent);
        let arrives = self.now + u64::try_from((self.delay)(self.requests).as_nanos()).unwrap();
        self.at(arrives, Happens::Arrives(self.requests));
    }

    /// The registry answers: the wire is taken for that from when it is free.
    fn answer(&mut self, nth: u64) {
        let mut at = self.now.max(self.free_at);
        self.at(at, Happens::Answered(nth));
        for _ in 0..self.request_bytes / PIECE_BYTES {
            at += PIECE_BYTES * 1_000_000_000 / self.bytes_per_second;
            self.at(at, Happens::Came(nth, PIECE_BYTES));
        }
        self.free_at = at;
        self.at(at, Happens::Finished(nth));
    }

    /// Asks for as much as may be, for so long; what came in that time.
    fn run(&mut self, time: Duration) -> u64 {
        let (end, before) = (self.now + u64::try_from(time.as_nanos()).unwrap(), self.received);
        self.most_in_flight = 0;
        loop {
            let allowed = self.pace.allowed_bytes(self.clock()) / self.part;
            while self.pace.in_flight == 0 || self.pace.in_flight < allowed.min(64 << 20) {
                self.send();
            }
            self.most_in_flight = self.most_in_flight.max(self.pace.in_flight);
            let (&(at, nth), &happens) = self.events.first_key_value().unwrap();
            if at > end {
                self.now = end;
                return self.received - before;
            }
            self.events.remove(&(at, nth));
            self.now = at;
            match happens {
                Happens::Arrives(nth) => self.answer(nth),
                Happens::Answered(nth) => {
                    let now = self.clock();
                    self.pace.answered(self.sent.get_mut(&nth).unwrap(), now);
                }
                Happens::Came(nth, bytes) => {
                    self.received += bytes;
                    self.pace.came(self.sent.get_mut(&nth).unwrap(), bytes);
                }
                Happens::Finished(nth) => {
                    let sent = self.sent.remove(&nth).unwrap();
                    self.pace.finished(sent, self.clock());
                    self.pace.over(sent);
                }
            }
        }
    }

    /// The share of the wire that was used for so long, in percent.
    fn used_percent(&mut self, time: Duration) -> u64 {
        let carries = u128::from(self.bytes_per_second) * time.as_millis() / 1000;
        let came = self.run(time);
        u64::try_from(u128::from(came) * 100 / carries).unwrap()
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What fits on a way, in bytes.
fn fits(bytes_per_second: u64, delay: Duration) -> u64 {
    u64::try_from(u128::from(bytes_per_second) * delay.as_micros() / 1_000_000).unwrap()
}

const SECOND: Duration = Duration::from_secs(1);

/// How long it takes to know a way: what was asked for before has to come first.
fn known(bytes_per_second: u64) -> Duration {
    3 * SECOND + Duration::from_millis(UNKNOWN_BYTES * 1000 / bytes_per_second)
}

/// From a telephone line to a rack's own registry.
type Link = (u64, fn(u64) -> Duration);
const LINKS: [Link; 5] = [
    (500_000, |_| Duration::from_millis(150)),
    (12_500_000, |_| Duration::from_millis(40)),
    (100_000_000, |_| Duration::from_millis(20)),
    (1_000_000_000, |_| Duration::from_millis(5)),
    (1_250_000_000, |_| Duration::from_micros(300)),
];

#[test]
fn slow_and_fast_ways_are_filled_and_little_queues() {
    for (rate, delay) in LINKS {
        let mut way = Way::new(rate, delay);
        way.run(known(rate));
        let used = way.used_percent(SECOND);
        assert!(used >= 95, "{rate}: {used} %");
        let fits = fits(rate, delay(0).max(SHORTEST));
        let most = fits * FILL * 5 / 4 + LEAST_BYTES + way.request_bytes;
        assert!(way.most_in_flight <= most, "{rate}: {} in flight, {fits} fit", way.most_in_flight);
    }
}

#[test]
fn half_of_what_is_allowed_fills_the_way_too() {
    for (rate, delay) in LINKS {
        let mut way = Way { part: 2, ..Way::new(rate, delay) };
        way.run(known(rate));
        // On the slow one the delay is looked for meanwhile.
        let (time, least) = if rate < 1_000_000 { (20 * SECOND, 85) } else { (SECOND, 95) };
        let used = way.used_percent(time);
        assert!(used >= least, "{rate}: {used} %");
    }
}

#[test]
fn less_is_in_flight_soon_after_the_way_became_slow_and_more_after_it_became_fast() {
    let delay = |_| Duration::from_millis(20);
    let mut way = Way::new(100_000_000, delay);
    way.run(3 * SECOND);
    way.bytes_per_second = 5_000_000;
    way.run(5 * SECOND);
    way.run(SECOND);
    assert!(way.most_in_flight <= 2 * LEAST_BYTES, "{} in flight", way.most_in_flight);
    way.bytes_per_second = 500_000_000;
    way.run(3 * SECOND);
    let used = way.used_percent(SECOND);
    assert!(used >= 95, "{used} %");
}

#[test]
fn a_queue_of_our_own_is_not_taken_for_delay_however_long_it_lasts() {
    for (rate, delay) in LINKS.into_iter().take(3) {
        let mut way = Way::new(rate, delay);
        way.run(45 * SECOND);
        let (found, is) = (way.pace.delay().unwrap(), delay(0).max(SHORTEST));
        assert!(found <= is * 2, "{rate}: {found:?} for {is:?}");
        let used = way.used_percent(12 * SECOND);
        assert!(used >= 80, "looking for the delay costs: {used} %");
    }
}

#[test]
fn a_registry_that_answers_unevenly_is_not_taken_for_a_slow_way() {
    // One answer in five takes twenty times as long; each takes another time.
    let delays: [fn(u64) -> Duration; 2] =
        [|nth| ms(if nth % 5 == 0 { 200 } else { 10 }), |nth| ms(10 + nth * 7919 % 61)];
    for delay in delays {
        let mut way = Way::new(50_000_000, delay);
        way.run(20 * SECOND);
        let used = way.used_percent(5 * SECOND);
        assert!(used >= 80, "{used} %");
    }
}

#[test]
fn who_asks_for_little_never_makes_the_rate_worse_and_an_idle_way_is_not_looked_at() {
    let mut way = Way::new(100_000_000, |_| Duration::from_millis(20));
    way.run(3 * SECOND);
    let (rate, mut now) = (way.pace.bytes_per_second().unwrap(), way.clock());
    std::mem::take(&mut way.sent).into_values().for_each(|sent| way.pace.over(sent));
    for _ in 0..100 {
        now += SECOND;
        let allowed = way.pace.allowed_bytes(now);
        let mut sent = way.pace.sent(4096, now);
        assert_eq!(way.pace.allowed_bytes(now), allowed, "the first after a pause does not hold up those after it");
        now += ms(20);
        way.pace.answered(&mut sent, now);
        way.pace.came(&mut sent, 4096);
        way.pace.finished(sent, now);
        way.pace.over(sent);
    }
    assert_eq!(way.pace.bytes_per_second(), Some(rate));
}

#[test]
fn small_requests_say_nothing_about_a_way_that_they_do_not_fill() {
    let (mut pace, mut now) = (Pace::default(), Instant::now());
    for _ in 0..100 {
        let mut sent = pace.sent(4096, now);
        now += ms(20);
        pace.answered(&mut sent, now);
        pace.came(&mut sent, 4096);
        pace.finished(sent, now);
        pace.over(sent);
        assert_eq!((pace.bytes_per_second(), pace.allowed_bytes(now)), (None, UNKNOWN_BYTES));
    }
    assert_eq!(pace.delay(), Some(ms(20)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn on_any_even_way_all_of_it_is_used_and_what_is_in_flight_is_bounded(
        // Known and measured before the delay is looked for again, which costs a little.
        (doublings, percent) in (0_u32..=7, 100_u64..200),
        delay in (1_u64..=150).prop_map(ms),
        request_bytes in (1_u64..=64).prop_map(|n| n << 16),
        part in 1_u64..=2,
    ) {
        let rate = (10_000 << doublings) * percent;
        let mut way = Way { request_bytes, part, ..Way::new(rate, |_| delay) };
        let warm = known(rate);
        prop_assert!(warm + 2 * SECOND < DELAY_AGE);
        way.run(warm);
        // All of it but a piece at each end of the time, which is 2 % of the slowest way.
        let used = way.used_percent(2 * SECOND);
        prop_assert!(used >= 95, "{used} %");
        let most = FILL * fits(rate, delay) * 10 / 3 + LEAST_BYTES + request_bytes;
        prop_assert!(way.most_in_flight <= most, "{} in flight", way.most_in_flight);
    }
}
