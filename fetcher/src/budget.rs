//! How much may be in flight at once, of requests and of bytes, and how much of it for one endpoint and one blob.
//!
//! Nobody gets all of it: an endpoint holds at most [`ENDPOINT_SHARE`] times of what is then still free, and a blob there at
//! most [`BLOB_SHARE`] times ("dynamic thresholds", Choudhury and Hahne 1998, made for switches with a shared buffer). So one endpoint
//! alone uses three quarters, one blob alone two thirds, and however many are stuck, something is left for the next.
//!
//! Demand goes first: what is read ahead is granted only when no demand waits that could use it, and holds half of everything at
//! most, so that demand finds room at once also while all that is read ahead is stuck. Among those who wait, blobs take turns
//! ([`crate::line`]): a device that wants much does not hold up one that wants little.
//!
//! An endpoint has no more bytes in flight than its way carries ([`crate::pace`]), and what is read ahead half of that: what is wanted next
//! would wait on the way behind all that was asked for before, where nobody can let it pass. The last request may go beyond that. On the way are
//! only bytes that have not come yet; for all else, a request has its bytes until it ends, because they are in memory.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use penstock_blob::{Digest, Purpose};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::oneshot;

use crate::{
    config::Config,
    line::{At, Line},
    metrics::Metrics,
};

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

/// The most bytes that an endpoint may have in flight; changes while they are.
pub(crate) type Limit = Arc<AtomicU64>;

/// The two budgets. Both are taken in one order, requests first, and given back together, so that two holders never wait for
/// each other. Blobs take turns among those of one purpose, and who has had his share lets others pass.
#[derive(Debug)]
pub(crate) struct Budget {
    requests: Arc<Pool>,
    bytes: Arc<Pool>,
    /// For what is small, and of no blob.
    pub(crate) unlimited: Limit,
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
    held: Held,
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
    endpoints: HashMap<u64, Holding>,
    blobs: HashMap<(u64, Digest), u64>,
    demand: Line<Waiter>,
    later: Line<Waiter>,
}

/// What an endpoint holds, what of it has not come yet, and what of that is read ahead. What is of no blob never counts as coming: for a manifest the
/// most is held that one may have, and little comes.
#[derive(Debug, Clone, Copy, Default)]
struct Holding {
    all: u64,
    coming: u64,
    coming_ahead: u64,
}

/// Somebody who waits, for how much, and how he is told.
#[derive(Debug)]
struct Waiter {
    wish: Wish,
    tell: oneshot::Sender<Held>,
}

/// What somebody wants.
#[derive(Debug, Clone)]
struct Wish {
    key: Key,
    amount: u64,
    limit: Limit,
}

/// Some of a pool. Dropping it gives it back and lets others go on.
#[derive(Debug)]
struct Held {
    pool: Arc<Pool>,
    wish: Wish,
    /// What of it has not come yet.
    coming: u64,
}

/// Why somebody cannot have what he wants now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Denied {
    /// There is not so much.
    Empty,
    /// He has had his share.
    Share,
    /// The way to the endpoint is full.
    Full,
}

impl Ledger {
    fn may(&self, wish: &Wish) -> Result<(), Denied> {
        let Wish { key, amount, .. } = *wish;
        let left = self.free.checked_sub(amount).ok_or(Denied::Empty)?;
        if key.purpose == Purpose::Ahead && self.ahead.saturating_add(amount) > self.max_ahead {
            return Err(Denied::Empty);
        }
        let fair = |held: u64, share: u64| held == 0 || held.saturating_add(amount) <= left.saturating_mul(share);
        let endpoint = self.endpoints.get(&key.endpoint).copied().unwrap_or_default();
        let blob = key.blob.and_then(|blob| self.blobs.get(&(key.endpoint, blob)).copied()).unwrap_or(0);
        if !endpoint.has_room(key.purpose, wish.limit.load(Ordering::Relaxed)) {
            return Err(Denied::Full);
        }
        if fair(endpoint.all, ENDPOINT_SHARE) && fair(blob, BLOB_SHARE) { Ok(()) } else { Err(Denied::Share) }
    }

    fn take(&mut self, key: Key, amount: u64) {
        self.free -= amount;
        let endpoint = self.endpoints.entry(key.endpoint).or_default();
        endpoint.all += amount;
        endpoint.coming += key.blob.map_or(0, |_| amount);
        if key.purpose == Purpose::Ahead {
            self.ahead += amount;
            endpoint.coming_ahead += amount;
        }
        if let Some(blob) = key.blob {
            *self.blobs.entry((key.endpoint, blob)).or_default() += amount;
        }
    }

    fn give_back(&mut self, key: Key, amount: u64) {
        self.free += amount;
        if key.purpose == Purpose::Ahead {
            self.ahead = self.ahead.saturating_sub(amount);
        }
        if let Some(endpoint) = self.endpoints.get_mut(&key.endpoint) {
            endpoint.all = endpoint.all.saturating_sub(amount);
            if endpoint.all == 0 {
                self.endpoints.remove(&key.endpoint);
            }
        }
        if let Some(blob) = key.blob {
            less(&mut self.blobs, (key.endpoint, blob), amount);
        }
    }

    /// Some of what an endpoint holds came. Whether somebody may go on there now who could not before.
    fn came(&mut self, key: Key, amount: u64, limit: u64) -> bool {
        let Some(endpoint) = self.endpoints.get_mut(&key.endpoint) else { return false };
        let before = *endpoint;
        endpoint.coming = endpoint.coming.saturating_sub(key.blob.map_or(0, |_| amount));
        if key.purpose == Purpose::Ahead {
            endpoint.coming_ahead = endpoint.coming_ahead.saturating_sub(amount);
        }
        [Purpose::Demand, Purpose::Ahead]
            .into_iter()
            .any(|purpose| endpoint.has_room(purpose, limit) && !before.has_room(purpose, limit))
    }

    /// The next who waits and may go on. Who waits for more than is free is not overtaken, or he would wait for ever.
    fn next(&mut self) -> Option<Waiter> {
        for line in [&mut self.demand, &mut self.later] {
            line.retain(|waiter| !waiter.tell.is_closed());
        }
        let waiter = match self.first(&self.demand) {
            Ok((at, amount)) => self.demand.take(at, amount)?,
            Err(Denied::Empty) => return None,
            Err(Denied::Share | Denied::Full) => {
                let (at, amount) = self.first(&self.later).ok()?;
                self.later.take(at, amount)?
            }
        };
        self.take(waiter.wish.key, waiter.wish.amount);
        Some(waiter)
    }

    /// Who of a line may go on, and what he wants; [`Denied::Share`] also when nobody waits there. Nor is somebody overtaken, on the way to
    /// his endpoint, for whom it is too full.
    fn first(&self, line: &Line<Waiter>) -> Result<(At, u64), Denied> {
        let mut full: Vec<u64> = Vec::new();
        for (at, Waiter { wish, .. }) in line.in_order() {
            if full.contains(&wish.key.endpoint) {
                continue;
            }
            match self.may(wish) {
                Ok(()) => return Ok((at, wish.amount)),
                Err(Denied::Empty) => return Err(Denied::Empty),
                Err(Denied::Full) => full.push(wish.key.endpoint),
                Err(Denied::Share) => {}
            }
        }
        Err(Denied::Share)
    }

    /// Whether somebody waits whom one of this purpose must not overtake.
    fn is_queued(&self, purpose: Purpose) -> bool {
        let waits = |line: &Line<Waiter>| line.any(|waiter| !waiter.tell.is_closed());
        waits(&self.demand) || (purpose == Purpose::Ahead && waits(&self.later))
    }
}

impl Holding {
    /// Whether less is on the way than the endpoint's limit. The last request may go beyond it: a way that carries little more than one would be
    /// idle between two of them, and never be found to carry more. Where nothing is on the way, nobody is held up; what is read ahead takes nothing
    /// from demand.
    fn has_room(self, purpose: Purpose, limit: u64) -> bool {
        let within = |coming: u64, limit: u64| coming == 0 || coming < limit;
        match purpose {
            Purpose::Demand => within(self.coming.saturating_sub(self.coming_ahead), limit),
            Purpose::Ahead => within(self.coming, limit) && within(self.coming_ahead, limit / AHEAD_PART),
        }
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
            demand: Line::new(),
            later: Line::new(),
        };
        Arc::new(Self { all, gauge, ledger: Mutex::new(ledger) })
    }

    fn held(self: &Arc<Self>, wish: Wish) -> Held {
        self.gauge.inc_by(i64::try_from(wish.amount).unwrap_or(i64::MAX));
        Held { pool: self.clone(), coming: wish.amount, wish }
    }

    /// More than there is for a purpose counts as all there is.
    async fn take(self: &Arc<Self>, key: Key, amount: u64, limit: &Limit) -> Held {
        let receiver = {
            let mut ledger = self.ledger.lock();
            let wish = self.wish(&ledger, (key, amount), limit);
            if !ledger.is_queued(key.purpose) && ledger.may(&wish).is_ok() {
                ledger.take(key, wish.amount);
                drop(ledger);
                return self.held(wish);
            }
            let (tell, receiver) = oneshot::channel();
            let waiter = Waiter { wish, tell };
            match key.purpose {
                Purpose::Demand => ledger.demand.push(key.blob, waiter),
                Purpose::Ahead => ledger.later.push(key.blob, waiter),
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

    fn wish(&self, ledger: &Ledger, (key, amount): (Key, u64), limit: &Limit) -> Wish {
        let amount = match key.purpose {
            Purpose::Demand => amount.min(self.all),
            Purpose::Ahead => amount.min(ledger.max_ahead),
        };
        Wish { key, amount, limit: Arc::clone(limit) }
    }

    fn try_take(self: &Arc<Self>, key: Key, amount: u64, limit: &Limit) -> Option<Held> {
        let mut ledger = self.ledger.lock();
        let wish = self.wish(&ledger, (key, amount), limit);
        ledger.may(&wish).ok()?;
        ledger.take(key, wish.amount);
        drop(ledger);
        Some(self.held(wish))
    }

    /// Lets everybody go on who may.
    fn grant(self: &Arc<Self>) {
        loop {
            let next = self.ledger.lock().next();
            let Some(Waiter { wish, tell }) = next else { return };
            // Who has just left gives it back by dropping it.
            let _left = tell.send(self.held(wish));
        }
    }
}

impl Held {
    /// So many bytes came.
    fn came(&mut self, bytes: u64) {
        let bytes = bytes.min(self.coming);
        self.coming -= bytes;
        let limit = self.wish.limit.load(Ordering::Relaxed);
        if self.pool.ledger.lock().came(self.wish.key, bytes, limit) {
            self.pool.grant();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Wish { key, amount, .. } = self.wish;
        self.pool.gauge.dec_by(i64::try_from(amount).unwrap_or(i64::MAX));
        {
            let mut ledger = self.pool.ledger.lock();
            ledger.came(key, self.coming, 0);
            ledger.give_back(key, amount);
        }
        self.pool.grant();
    }
}

impl Room {
    /// So many bytes came: they are not on the way any more.
    pub(crate) fn came(&mut self, bytes: u64) {
        self.held.came(bytes);
    }
}

impl Budget {
    pub(crate) fn new(config: &Config, metrics: &Metrics) -> Self {
        Self {
            requests: Pool::new(config.max_requests as u64, metrics.requests_in_flight.clone()),
            bytes: Pool::new(config.max_bytes, metrics.in_flight_bytes.clone()),
            unlimited: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }

    /// Waits until one more request may be in flight.
    pub(crate) async fn turn(&self, key: Key) -> Turn {
        Turn { key, _held: self.requests.take(key, 1, &self.unlimited).await }
    }

    /// Waits until `len` more bytes may be in flight, at the endpoint too. More than the whole budget counts as the whole budget.
    pub(crate) async fn room(&self, len: u64, turn: &Turn, limit: &Limit) -> Room {
        Room { held: self.bytes.take(turn.key, len, limit).await }
    }

    /// Both at once, if that needs no waiting.
    pub(crate) fn at_once(&self, key: Key, len: u64, limit: &Limit) -> Option<(Turn, Room)> {
        let turn = Turn { key, _held: self.requests.try_take(key, 1, &self.unlimited)? };
        Some((turn, Room { held: self.bytes.try_take(key, len, limit)? }))
    }

    /// An endpoint's limit has grown.
    pub(crate) fn grown(&self) {
        self.bytes.grant();
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
        let all = budget.room(1 << 40, &first, &budget.unlimited).await;
        assert_eq!(metrics.in_flight_bytes.get(), 100);
        let second = budget.turn(key(2, 2)).await;
        assert!(budget.room(1, &second, &budget.unlimited).now_or_never().is_none(), "nothing is left");
        drop((all, first));
        assert!(budget.room(1, &second, &budget.unlimited).now_or_never().is_some());
        drop(second);
        assert_eq!((metrics.in_flight_bytes.get(), metrics.requests_in_flight.get()), (0, 0));
    }

    #[tokio::test]
    async fn a_manifest_under_way_does_not_fill_the_way_for_blobs() {
        let (budget, _) = budget(4, 100);
        let small = Key { blob: None, ..key(1, 1) };
        let first = budget.turn(small).await;
        let manifest = budget.room(40, &first, &budget.unlimited).await;
        let second = budget.turn(key(1, 1)).await;
        assert!(budget.room(8, &second, &limit(10)).now_or_never().is_some());
        drop((manifest, first));
        assert!(budget.bytes.ledger.lock().endpoints.is_empty(), "all of it was given back");
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
        let small = budget.room(20, &a, &budget.unlimited).await;
        let mut large = Box::pin(budget.room(90, &b, &budget.unlimited));
        assert!(large.as_mut().now_or_never().is_none());
        let mut late = Box::pin(budget.room(10, &c, &budget.unlimited));
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
            bytes.push(budget.room(25, turn, &budget.unlimited).now_or_never().expect("half of the bytes"));
        }
        assert!(budget.room(1, &stuck[2], &budget.unlimited).now_or_never().is_none());
        for blob in [0, 99] {
            let turn = budget.turn(key(1, blob)).now_or_never().expect("also for a blob that is read ahead");
            assert!(budget.room(10, &turn, &budget.unlimited).now_or_never().is_some());
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
        assert!(budget.at_once(key(1, 1), 200, &budget.unlimited).is_some());
        assert_eq!((metrics.in_flight_bytes.get(), metrics.requests_in_flight.get()), (0, 0));
    }

    fn limit(bytes: u64) -> Limit {
        Arc::new(AtomicU64::new(bytes))
    }

    #[tokio::test]
    async fn an_endpoint_gets_what_its_way_carries_and_who_reads_ahead_half_of_it() {
        let (budget, _) = budget(64, 10_000);
        let (way, mut kept) = (limit(100), Vec::new());
        for (blob, purpose, fit) in [(1, Purpose::Ahead, 5), (2, Purpose::Demand, 10)] {
            let key = Key { purpose, ..key(1, blob) };
            for nth in 0..=fit {
                let turn = budget.turn(key).await;
                let room = budget.room(10, &turn, &way).now_or_never();
                assert_eq!(room.is_some(), nth < fit, "{purpose:?} {nth}");
                kept.extend(room.map(|room| (turn, room)));
            }
        }
        let turn = budget.turn(key(2, 3)).await;
        assert!(budget.room(10, &turn, &limit(100)).now_or_never().is_some(), "another endpoint's way is free");
    }

    #[tokio::test]
    async fn what_has_come_leaves_room_on_the_way_and_none_in_memory() {
        for (purpose, way) in [(Purpose::Demand, limit(100)), (Purpose::Ahead, limit(200))] {
            let (budget, metrics) = budget(64, 10_000);
            let key = |blob| Key { purpose, ..key(1, blob) };
            let (a, b) = (budget.turn(key(1)).await, budget.turn(key(2)).await);
            let mut large = budget.room(1000, &a, &way).await;
            let mut next = Box::pin(budget.room(1000, &b, &way));
            large.came(900);
            assert!(next.as_mut().now_or_never().is_none(), "as much is coming as may");
            large.came(1);
            let next = next.now_or_never().expect("less is coming");
            assert_eq!(metrics.in_flight_bytes.get(), 2000);
            large.came(u64::MAX);
            drop((large, next));
            assert_eq!(metrics.in_flight_bytes.get(), 0);
        }
    }

    #[tokio::test]
    async fn one_request_always_goes_and_who_waits_for_a_full_way_is_not_overtaken() {
        let (budget, _) = budget(64, 10_000);
        let way = limit(10);
        let (a, b, c) = (budget.turn(key(1, 1)).await, budget.turn(key(1, 2)).await, budget.turn(key(1, 3)).await);
        let small = budget.room(10, &a, &way).await;
        let mut large = Box::pin(budget.room(500, &b, &way));
        assert!(large.as_mut().now_or_never().is_none());
        let mut late = Box::pin(budget.room(10, &c, &way));
        assert!(late.as_mut().now_or_never().is_none(), "somebody waits for the same");
        drop(small);
        let large = large.now_or_never().expect("alone, he may have more than the way carries");
        assert!(late.as_mut().now_or_never().is_none());
        drop(large);
        assert!(late.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_way_that_turns_out_wider_lets_those_go_on_who_wait() {
        let (budget, _) = budget(64, 10_000);
        let way = limit(10);
        let (a, b) = (budget.turn(key(1, 1)).await, budget.turn(key(1, 2)).await);
        let _held = budget.room(10, &a, &way).await;
        let mut waits = Box::pin(budget.room(10, &b, &way));
        assert!(waits.as_mut().now_or_never().is_none());
        way.store(20, Ordering::Relaxed);
        budget.grown();
        assert!(waits.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_device_that_wants_much_does_not_starve_one_that_wants_little() {
        let (budget, _) = budget(1000, 1000);
        let (way, turn) = (limit(100), budget.turn(key(1, 1)).await);
        let mut much = Vec::new();
        let mut held: Vec<Room> = Vec::new();
        for _ in 0..500 {
            let mut room = Box::pin(budget.room(10, &turn, &way));
            match room.as_mut().now_or_never() {
                Some(room) => held.push(room),
                None => much.push(room),
            }
        }
        let other = budget.turn(key(1, 2)).await;
        let mut little = Box::pin(budget.room(10, &other, &way));
        assert!(little.as_mut().now_or_never().is_none(), "the way is full");
        let mut freed = 0;
        while little.as_mut().now_or_never().is_none() {
            drop(held.pop().expect("one of ten requests"));
            freed += 1;
        }
        assert!(freed <= 2, "{freed} of the other device's went before, and 490 wait");
    }
}
