//! Disk space: who has it, who waits for it. Space is taken before a byte is written, so the cap is never exceeded.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{metrics::Level, queue::Queue};

/// The answer to a wish for space.
#[derive(Debug)]
pub(crate) enum Taken {
    /// The space is the caller's; it gives it back with [`Room::give`].
    Now,
    /// Eviction was asked for. True: the space is the caller's. False or a closed channel: there is none to be had.
    Later(oneshot::Receiver<bool>),
    /// It could never fit.
    Never,
}

/// Space under a cap, in bytes.
#[derive(Debug)]
pub(crate) struct Room {
    cap: u64,
    state: Mutex<State>,
    queue: Arc<Queue>,
    used: Level,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    waiters: VecDeque<(u64, oneshot::Sender<bool>)>,
}

impl Room {
    /// `used` bytes are taken already; that may be more than `cap` when the cap was lowered.
    pub(crate) fn new(cap: u64, queue: Arc<Queue>, used: Level) -> Self {
        Self { cap, state: Mutex::default(), queue, used }
    }

    pub(crate) fn used(&self) -> u64 {
        self.state.lock().used
    }

    /// Counts space that is occupied already, cap or not: what was found at open.
    pub(crate) fn occupy(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.used += bytes;
        self.used.set(state.used);
    }

    /// Takes `bytes`, or asks the committer to make room.
    pub(crate) fn take(&self, bytes: u64) -> Taken {
        if bytes > self.cap {
            return Taken::Never;
        }
        let mut state = self.state.lock();
        if state.waiters.is_empty() && state.used.saturating_add(bytes) <= self.cap {
            state.used += bytes;
            self.used.set(state.used);
            return Taken::Now;
        }
        let (tell, told) = oneshot::channel();
        state.waiters.push_back((bytes, tell));
        drop(state);
        self.queue.hurry();
        Taken::Later(told)
    }

    /// Gives `bytes` back and serves those who wait, in order.
    pub(crate) fn give(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.used = state.used.saturating_sub(bytes);
        while let Some((want, _)) = state.waiters.front() {
            if state.used.saturating_add(*want) > self.cap {
                break;
            }
            let Some((want, tell)) = state.waiters.pop_front() else { break };
            // A waiter that went away takes nothing.
            if tell.send(true).is_ok() {
                state.used += want;
            }
        }
        self.used.set(state.used);
    }

    /// How many bytes must be freed for all who wait, or to get below a lowered cap.
    pub(crate) fn wanted(&self) -> u64 {
        let state = self.state.lock();
        let waiting: u64 = state.waiters.iter().map(|(bytes, _)| bytes).sum();
        state.used.saturating_add(waiting).saturating_sub(self.cap)
    }

    /// Tells everybody who waits that there is no room to be made.
    pub(crate) fn refuse(&self) {
        let waiters = std::mem::take(&mut self.state.lock().waiters);
        for (_, tell) in waiters {
            // A waiter that went away need not be told.
            let _ = tell.send(false);
        }
    }
}

/// Bytes held in memory for the disk, under a bound; given back when dropped.
#[derive(Debug)]
pub(crate) struct Pending {
    level: Level,
    bytes: u64,
}

impl Pending {
    /// `None` when `limit` would be exceeded.
    pub(crate) fn take(level: &Level, bytes: u64, limit: u64) -> Option<Self> {
        let add = |now: u64| now.checked_add(bytes).filter(|&sum| sum <= limit);
        level.inner().fetch_update(Ordering::AcqRel, Ordering::Acquire, add).ok()?;
        Some(Self { level: level.clone(), bytes })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.level.dec_by(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(cap: u64) -> Room {
        Room::new(cap, Arc::default(), Level::default())
    }

    #[test]
    fn the_cap_holds_and_those_who_wait_are_served_in_order() {
        let room = room(100);
        assert!(matches!(room.take(101), Taken::Never));
        assert!(matches!(room.take(80), Taken::Now));
        let Taken::Later(mut first) = room.take(50) else { panic!("no room for 50") };
        let Taken::Later(mut second) = room.take(11) else { panic!("11 came later than 50") };
        assert_eq!(room.wanted(), 41);
        room.give(20);
        assert!(first.try_recv().is_err() && second.try_recv().is_err());
        room.give(20);
        assert!(first.try_recv().unwrap());
        assert!(second.try_recv().is_err());
        assert_eq!(room.used(), 90);
        room.refuse();
        assert!(!second.try_recv().unwrap());
        assert_eq!((room.used(), room.wanted()), (90, 0));
    }

    #[test]
    fn a_waiter_that_left_takes_nothing() {
        let room = room(10);
        assert!(matches!(room.take(10), Taken::Now));
        drop(room.take(5));
        room.give(10);
        assert_eq!(room.used(), 0);
    }

    #[test]
    fn pending_bytes_are_bounded_and_come_back() {
        let level = Level::default();
        let held = Pending::take(&level, 6, 10).unwrap();
        assert!(Pending::take(&level, 5, 10).is_none());
        drop(held);
        assert!(Pending::take(&level, 10, 10).is_some());
        assert_eq!(level.get(), 0);
    }
}
