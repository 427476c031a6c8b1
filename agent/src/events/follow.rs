//! Those who want to know what happens as it happens.
//!
//! A follower reads the ring at its own pace and is only told that there is more: a slow one costs no memory, holds nobody up, and
//! learns how much it missed.

use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::Events;

/// Most followers at once: some dashboards and some people. Each holds a connection for as long as it likes.
pub const FOLLOWERS: usize = 32;

/// Most events handed over at once: bounds what a follower holds to about 100 KiB, however far behind it is.
const BATCH: usize = 100;

/// What followers wait for.
#[derive(Debug, Clone, Copy, Default)]
struct Tip {
    newest: u64,
    is_last: bool,
}

/// The followers' side of the ring.
#[derive(Debug, Clone)]
pub(super) struct Audience {
    tip: Arc<watch::Sender<Tip>>,
    seats: Arc<Semaphore>,
}

impl Default for Audience {
    fn default() -> Self {
        Self { tip: Arc::new(watch::Sender::default()), seats: Arc::new(Semaphore::new(FOLLOWERS)) }
    }
}

impl Audience {
    /// Wakes the followers: `newest` is in the ring.
    pub(super) fn tell(&self, newest: u64) {
        self.tip.send_modify(|tip| tip.newest = tip.newest.max(newest));
    }
}

/// One follower's place.
struct Follower {
    events: Events,
    since: u64,
    tip: watch::Receiver<Tip>,
    /// Given back with the follower.
    _seat: OwnedSemaphorePermit,
}

impl Events {
    /// The kept events after `since` and then those that happen, until [`end`](Self::end). `None` when [`FOLLOWERS`] follow already.
    #[must_use]
    pub fn follow(&self, since: u64) -> Option<impl Stream<Item = penstock_api::Events> + Send + use<>> {
        let seat = Arc::clone(&self.audience.seats).try_acquire_owned().ok()?;
        let follower = Follower { events: self.clone(), since, tip: self.audience.tip.subscribe(), _seat: seat };
        Some(stream::unfold(follower, |mut follower| async {
            let batch = follower.next().await?;
            Some((batch, follower))
        }))
    }

    /// Lets followers have what is in the ring, and ends their streams.
    pub fn end(&self) {
        self.audience.tip.send_modify(|tip| tip.is_last = true);
    }
}

impl Follower {
    async fn next(&mut self) -> Option<penstock_api::Events> {
        loop {
            // Seen before the ring is read: what comes in between wakes the wait below.
            let tip = *self.tip.borrow_and_update();
            let batch = self.events.since(self.since, BATCH);
            if let Some(last) = batch.events.last() {
                self.since = last.sequence;
                return Some(batch);
            }
            if tip.is_last || self.tip.changed().await.is_err() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::{super::KEPT, *};
    use crate::events::Kind;

    fn say(events: &Events, times: usize) {
        for n in 0..times {
            events.record(Kind::AgentReady, &n.to_string(), &[]);
        }
    }

    fn sequences(batch: &penstock_api::Events) -> Vec<u64> {
        batch.events.iter().map(|event| event.sequence).collect()
    }

    #[tokio::test]
    async fn a_follower_gets_what_is_kept_then_what_happens_and_then_the_end() {
        let events = Events::new();
        say(&events, 3);
        let mut follower = Box::pin(events.follow(1).unwrap());
        assert_eq!(sequences(&follower.next().await.unwrap()), [2, 3]);
        let (next, ()) = tokio::join!(follower.next(), async { say(&events, 1) });
        assert_eq!(sequences(&next.unwrap()), [4]);
        say(&events, 1);
        events.end();
        assert_eq!(sequences(&follower.next().await.unwrap()), [5]);
        assert!(follower.next().await.is_none());
        assert!(Box::pin(events.follow(5).unwrap()).next().await.is_none());
    }

    #[tokio::test]
    async fn a_slow_follower_learns_how_much_it_missed() {
        let events = Events::new();
        let mut follower = Box::pin(events.follow(0).unwrap());
        say(&events, KEPT + 7);
        let batch = follower.next().await.unwrap();
        assert_eq!((batch.lost, batch.events.len(), batch.events[0].sequence), (7, BATCH, 8));
        assert_eq!(follower.next().await.unwrap().lost, 0);
    }

    #[tokio::test]
    async fn seats_are_bounded_and_given_back() {
        let events = Events::new();
        let mut all: Vec<_> = (0..FOLLOWERS).map(|_| events.follow(0).unwrap()).collect();
        assert!(events.follow(0).is_none());
        all.pop();
        assert!(events.follow(0).is_some());
    }
}
