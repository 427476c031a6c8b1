//! How much may be in flight at once, of requests and of bytes, and how much of it for one endpoint and one blob.
//!
//! Nobody gets all of it: an endpoint holds at most [`ENDPOINT_SHARE`] times of what is then still free, and a blob there at
//! most [`BLOB_SHARE`] times ("dynamic thresholds", Choudhury and Hahne 1998, made for switches with a shared buffer). So one endpoint
//! alone uses three quarters, one blob alone two thirds, and however many are stuck, something is left for the next.
//!
//! Demand goes first: what is read ahead is granted only when no demand waits that could use it, and holds half of everything at
//! most, so that demand finds room at once also while all that is read ahead is stuck.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use penstock_blob::{Digest, Purpose};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::oneshot;

use crate::{config::Config, metrics::Metrics};

/// What an endpoint may hold, as a multiple of what is then still free.
const ENDPOINT_SHARE: u64 = 3;
/// What a blob may hold, likewise.
const BLOB_SHARE: u64 = 2;
/// What is read ahead holds one part of this many of the whole at most (but one request).
const AHEAD_PART: u64 = 2;

/// For whom something is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) endpoint: u64,
    /// `None` for manifests.
    pub(crate) blob: Option<Digest>,
    pub(crate) purpose: Purpose,
}

/// The two budgets. Both are taken in one order, requests first, and given back together, so that two holders never wait for
/// each other. First come, first served among those of one purpose, but who has had his share lets others pass.
#[derive(Debug)]
pub(crate) struct Budget {
    requests: Arc<Pool>,
    bytes: Arc<Pool>,
}

/// The right to have one request in flight. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) key: Key,
    _held: Held,
}

/// The right to have some bytes in flight. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Room {
    _held: Held,
}

#[derive(Debug)]
struct Pool {
    all: u64,
    gauge: Gauge,
    ledger: Mutex<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    free: u64,
    /// Held by what is read ahead, and how much that may be.
    ahead: u64,
    max_ahead: u64,
    endpoints: HashMap<u64, u64>,
    blobs: HashMap<(u64, Digest), u64>,
    demand: VecDeque<Waiter>,
    later: VecDeque<Waiter>,
}

/// Somebody who waits, for how much, and how he is told.
type Waiter = (Key, u64, oneshot::Sender<Held>);

/// Some of a pool. Dropping it gives it back and lets others go on.
#[derive(Debug)]
struct Held {
    pool: Arc<Pool>,
    key: Key,
    amount: u64,
}

/// Why somebody cannot have what he wants now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Denied {
    /// There is not so much.
    Empty,
    /// He has had his share.
    Share,
}

impl Ledger {
    fn may(&self, key: Key, amount: u64) -> Result<(), Denied> {
        let left = self.free.checked_sub(amount).ok_or(Denied::Empty)?;
        if key.purpose == Purpose::Ahead && self.ahead.saturating_add(amount) > self.max_ahead {
            return Err(Denied::Empty);
        }
        let fair = |held: u64, share: u64| held == 0 || held.saturating_add(amount) <= left.saturating_mul(share);
        let endpoint = self.endpoints.get(&key.endpoint).copied().unwrap_or(0);
        let blob = key.blob.and_then(|blob| self.blobs.get(&(key.endpoint, blob)).copied()).unwrap_or(0);
        if fair(endpoint, ENDPOINT_SHARE) && fair(blob, BLOB_SHARE) { Ok(()) } else { Err(Denied::Share) }
    }

    fn take(&mut self, key: Key, amount: u64) {
        self.free -= amount;
        if key.purpose == Purpose::Ahead {
            self.ahead += amount;
        }
        *self.endpoints.entry(key.endpoint).or_default() += amount;
        if let Some(blob) = key.blob {
            *self.blobs.entry((key.endpoint, blob)).or_default() += amount;
        }
    }

    fn give_back(&mut self, key: Key, amount: u64) {
        self.free += amount;
        if key.purpose == Purpose::Ahead {
            self.ahead = self.ahead.saturating_sub(amount);
        }
        less(&mut self.endpoints, key.endpoint, amount);
        if let Some(blob) = key.blob {
            less(&mut self.blobs, (key.endpoint, blob), amount);
        }
    }

    /// The first who waits and may go on. Who waits for more than is free is not overtaken, or he would wait for ever.
    fn next(&mut self) -> Option<Waiter> {
        for queue in [&mut self.demand, &mut self.later] {
            queue.retain(|(.., sender)| !sender.is_closed());
        }
        let waiter = match self.first(&self.demand) {
            Ok(at) => self.demand.remove(at)?,
            Err(Denied::Empty) => return None,
            Err(Denied::Share) => self.later.remove(self.first(&self.later).ok()?)?,
        };
        self.take(waiter.0, waiter.1);
        Some(waiter)
    }

    /// Who of a queue may go on; [`Denied::Share`] also when nobody waits there.
    fn first(&self, queue: &VecDeque<Waiter>) -> Result<usize, Denied> {
        for (index, (key, amount, _)) in queue.iter().enumerate() {
            match self.may(*key, *amount) {
                Ok(()) => return Ok(index),
                Err(Denied::Empty) => return Err(Denied::Empty),
                Err(Denied::Share) => {}
            }
        }
        Err(Denied::Share)
    }

    /// Whether somebody waits whom one of this purpose must not overtake.
    fn is_queued(&self, purpose: Purpose) -> bool {
        let waits = |queue: &VecDeque<Waiter>| queue.iter().any(|(.., sender)| !sender.is_closed());
        waits(&self.demand) || (purpose == Purpose::Ahead && waits(&self.later))
    }
}

/// Takes `amount` off the sum of `key`, which is forgotten at nothing.
fn less<K: std::hash::Hash + Eq>(sums: &mut HashMap<K, u64>, key: K, amount: u64) {
    if let Some(sum) = sums.get_mut(&key) {
        *sum = sum.saturating_sub(amount);
        if *sum == 0 {
            sums.remove(&key);
        }
    }
}

impl Pool {
    fn new(all: u64, gauge: Gauge) -> Arc<Self> {
        let ledger = Ledger {
            free: all,
            ahead: 0,
            max_ahead: (all / AHEAD_PART).max(1),
            endpoints: HashMap::new(),
            blobs: HashMap::new(),
            demand: VecDeque::new(),
            later: VecDeque::new(),
        };
        Arc::new(Self { all, gauge, ledger: Mutex::new(ledger) })
    }

    fn held(self: &Arc<Self>, key: Key, amount: u64) -> Held {
        self.gauge.inc_by(i64::try_from(amount).unwrap_or(i64::MAX));
        Held { pool: self.clone(), key, amount }
    }

    /// More than there is for a purpose counts as all there is.
    async fn take(self: &Arc<Self>, key: Key, amount: u64) -> Held {
        let receiver = {
            let mut ledger = self.ledger.lock();
            let amount = self.at_most(&ledger, key.purpose, amount);
            if !ledger.is_queued(key.purpose) && ledger.may(key, amount).is_ok() {
                ledger.take(key, amount);
                drop(ledger);
                return self.held(key, amount);
            }
            let (sender, receiver) = oneshot::channel();
            match key.purpose {
                Purpose::Demand => ledger.demand.push_back((key, amount, sender)),
                Purpose::Ahead => ledger.later.push_back((key, amount, sender)),
            }
            receiver
        };
        self.grant();
        match receiver.await {
            Ok(held) => held,
            // The sender lives in the pool until it is used.
            Err(_gone) => std::future::pending().await,
        }
    }

    fn at_most(&self, ledger: &Ledger, purpose: Purpose, amount: u64) -> u64 {
        match purpose {
            Purpose::Demand => amount.min(self.all),
            Purpose::Ahead => amount.min(ledger.max_ahead),
        }
    }

    fn try_take(self: &Arc<Self>, key: Key, amount: u64) -> Option<Held> {
        let mut ledger = self.ledger.lock();
        let amount = self.at_most(&ledger, key.purpose, amount);
        ledger.may(key, amount).ok()?;
        ledger.take(key, amount);
        drop(ledger);
        Some(self.held(key, amount))
    }

    /// Lets everybody go on who may.
    fn grant(self: &Arc<Self>) {
        loop {
            let next = self.ledger.lock().next();
            let Some((key, amount, sender)) = next else { return };
            // Who has just left gives it back by dropping it.
            let _left = sender.send(self.held(key, amount));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pool.gauge.dec_by(i64::try_from(self.amount).unwrap_or(i64::MAX));
        self.pool.ledger.lock().give_back(self.key, self.amount);
        self.pool.grant();
    }
}

impl Budget {
    pub(crate) fn new(config: &Config, metrics: &Metrics) -> Self {
        Self {
            requests: Pool::new(config.max_requests as u64, metrics.requests_in_flight.clone()),
            bytes: Pool::new(config.max_bytes, metrics.in_flight_bytes.clone()),
        }
    }

    /// Waits until one more request may be in flight.
    pub(crate) async fn turn(&self, key: Key) -> Turn {
        Turn { key, _held: self.requests.take(key, 1).await }
    }

    /// Waits until `len` more bytes may be in flight. More than the whole budget counts as the whole budget.
    pub(crate) async fn room(&self, len: u64, turn: &Turn) -> Room {
        Room { _held: self.bytes.take(turn.key, len).await }
    }

    /// Both at once, if that needs no waiting.
    pub(crate) fn at_once(&self, key: Key, len: u64) -> Option<(Turn, Room)> {
        let turn = Turn { key, _held: self.requests.try_take(key, 1)? };
        Some((turn, Room { _held: self.bytes.try_take(key, len)? }))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn budget(requests: usize, bytes: u64) -> (Budget, Metrics) {
        let config = Config { max_bytes: bytes, max_request_bytes: bytes, max_requests: requests, ..Config::default() };
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        (Budget::new(&config, &metrics), metrics)
    }

    fn key(endpoint: u64, blob: u8) -> Key {
        Key { endpoint, blob: Some(Digest::of(&[blob])), purpose: Purpose::Demand }
    }

    /// How many turns somebody gets without waiting.
    fn drain(budget: &Budget, key: impl Fn(u8) -> Key, kept: &mut Vec<Turn>) -> usize {
        let mut got = 0;
        for n in 0..=255 {
            match budget.turn(key(n)).now_or_never() {
                Some(turn) => kept.push(turn),
                None => break,
            }
            got += 1;
        }
        got
    }

    #[tokio::test]
    async fn more_than_the_whole_budget_gets_the_whole_budget() {
        let (budget, metrics) = budget(4, 100);
        let first = budget.turn(key(1, 1)).await;
        let all = budget.room(1 << 40, &first).await;
        assert_eq!(metrics.in_flight_bytes.get(), 100);
        let second = budget.turn(key(2, 2)).await;
        assert!(budget.room(1, &second).now_or_never().is_none(), "nothing is left");
        drop((all, first));
        assert!(budget.room(1, &second).now_or_never().is_some());
        drop(second);
        assert_eq!((metrics.in_flight_bytes.get(), metrics.requests_in_flight.get()), (0, 0));
    }

    #[tokio::test]
    async fn stuck_blobs_and_endpoints_leave_something_for_the_next() {
        let (budget, _) = budget(32, 100);
        let mut kept = Vec::new();
        assert_eq!(drain(&budget, |_| key(1, 1), &mut kept), 21, "one blob: two thirds");
        assert_eq!(drain(&budget, |n| key(1, n.wrapping_add(9)), &mut kept), 3, "its endpoint: three quarters");
        assert_eq!(drain(&budget, |n| key(2, n), &mut kept), 6);
        assert_eq!(drain(&budget, |n| key(3, n), &mut kept), 1);
        assert_eq!(drain(&budget, |n| key(4, n), &mut kept), 1, "the last one");
        kept.clear();
        assert_eq!(drain(&budget, |n| key(9, n), &mut kept), 24);
    }

    #[tokio::test]
    async fn who_has_had_his_share_lets_others_pass_and_goes_on_later() {
        let (budget, _) = budget(4, 100);
        let mut kept = Vec::new();
        assert_eq!(drain(&budget, |n| key(1, n), &mut kept), 3);
        let mut again = Box::pin(budget.turn(key(1, 9)));
        assert!(again.as_mut().now_or_never().is_none());
        let other = budget.turn(key(2, 2)).now_or_never().expect("another endpoint's turn");
        kept.pop();
        assert!(again.as_mut().now_or_never().is_none(), "three quarters of what is left is less now");
        drop(other);
        assert!(again.now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_wants_much_is_not_overtaken_for_ever() {
        let (budget, _) = budget(8, 100);
        let (a, b, c) = (budget.turn(key(1, 1)).await, budget.turn(key(2, 2)).await, budget.turn(key(3, 3)).await);
        let small = budget.room(20, &a).await;
        let mut large = Box::pin(budget.room(90, &b));
        assert!(large.as_mut().now_or_never().is_none());
        let mut late = Box::pin(budget.room(10, &c));
        assert!(late.as_mut().now_or_never().is_none());
        drop(small);
        let large = large.now_or_never().expect("its room");
        drop(large);
        assert!(late.now_or_never().is_some());
    }

    fn ahead(endpoint: u64, blob: u8) -> Key {
        Key { purpose: Purpose::Ahead, ..key(endpoint, blob) }
    }

    #[tokio::test]
    async fn demand_finds_room_while_all_that_is_read_ahead_is_stuck() {
        let (budget, _) = budget(32, 100);
        let mut stuck = Vec::new();
        assert_eq!(drain(&budget, |n| ahead(1, n), &mut stuck), 16, "half of all");
        let mut bytes = Vec::new();
        for turn in &stuck[..2] {
            bytes.push(budget.room(25, turn).now_or_never().expect("half of the bytes"));
        }
        assert!(budget.room(1, &stuck[2]).now_or_never().is_none());
        for blob in [0, 99] {
            let turn = budget.turn(key(1, blob)).now_or_never().expect("also for a blob that is read ahead");
            assert!(budget.room(10, &turn).now_or_never().is_some());
        }
    }

    #[tokio::test]
    async fn demand_that_comes_later_goes_before_what_is_read_ahead() {
        let (budget, _) = budget(4, 100);
        let mut kept = Vec::new();
        for endpoint in 1..=4 {
            kept.push(budget.turn(key(endpoint, 1)).await);
        }
        let mut early = Box::pin(budget.turn(ahead(5, 2)));
        assert!(early.as_mut().now_or_never().is_none());
        let mut late = Box::pin(budget.turn(key(6, 3)));
        assert!(late.as_mut().now_or_never().is_none());
        kept.pop();
        assert!(early.as_mut().now_or_never().is_none(), "demand waits");
        let late = late.now_or_never().expect("demand goes first");
        kept.pop();
        assert!(early.now_or_never().is_some(), "nobody else waits");
        drop(late);
    }

    #[tokio::test]
    async fn demand_that_has_had_its_share_does_not_hold_up_others_read_ahead() {
        let (budget, _) = budget(8, 100);
        let mut kept = Vec::new();
        assert_eq!(drain(&budget, |_| key(1, 1), &mut kept), 5);
        let mut more = Box::pin(budget.turn(key(1, 1)));
        assert!(more.as_mut().now_or_never().is_none());
        let mut other = Box::pin(budget.turn(ahead(2, 2)));
        assert!(other.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_leaves_while_waiting_takes_nothing_along() {
        let (budget, metrics) = budget(1, 100);
        let held = budget.turn(key(1, 1)).await;
        let mut left = Box::pin(budget.turn(key(2, 2)));
        assert!(left.as_mut().now_or_never().is_none());
        drop(left);
        drop(held);
        assert!(budget.turn(key(3, 3)).now_or_never().is_some());
        assert_eq!(metrics.requests_in_flight.get(), 0);
        assert!(budget.at_once(key(1, 1), 200).is_some());
        assert_eq!((metrics.in_flight_bytes.get(), metrics.requests_in_flight.get()), (0, 0));
    }
}
