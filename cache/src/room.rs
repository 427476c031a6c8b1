//! Disk space: who has it, who waits for it. Space is taken before a byte is written, so the cap is never exceeded.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{config::Watermarks, metrics::Level, queue::Queue};

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
///
/// The limit is the cap less what lies beside the chunks, or less than that when the file system has no more to give ([`Room::limit`]).
#[derive(Debug)]
pub(crate) struct Room {
    cap: u64,
    marks: Watermarks,
    state: Mutex<State>,
    queue: Arc<Queue>,
    used: Level,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    /// Part of `used` whose chunks are on their way out.
    leaving: u64,
    limit: u64,
    /// Nothing more is taken: the file system has less free than the reserve, and not by our doing.
    pressed: bool,
    /// Eviction to the low mark may begin.
    is_running: bool,
    /// The high mark was passed, the low one not reached again.
    ebbing: bool,
    waiters: VecDeque<(u64, oneshot::Sender<bool>)>,
}

/// How much eviction has to free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Goal {
    /// Somebody waits for it, or a limit is passed.
    pub(crate) must: u64,
    /// To get down to the low mark; at least `must`.
    pub(crate) want: u64,
}

/// What a change of the limit began or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pressure {
    Same,
    Began,
    Ended,
}

/// What the file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Free {
    pub(crate) bytes: u64,
    /// What is to stay free.
    pub(crate) reserve: u64,
}

impl Room {
    pub(crate) fn new(cap: u64, marks: Watermarks, queue: Arc<Queue>, used: Level) -> Self {
        let state = Mutex::new(State { limit: cap, ..State::default() });
        Self { cap, marks, state, queue, used }
    }

    pub(crate) fn used(&self) -> u64 {
        self.state.lock().used
    }

    /// The most that may be used now.
    pub(crate) fn limit(&self) -> u64 {
        self.state.lock().limit
    }

    /// Counts space that is occupied already, cap or not: what was found at open.
    pub(crate) fn occupy(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.used += bytes;
        self.used.set(state.used);
    }

    /// Sets the limit from what lies beside the chunks (`beside` bytes; at most half of the cap is given up for it) and what the file system
    /// has. When that has less than seven eighths of the reserve, somebody else fills it: nothing is taken until the reserve is whole again.
    pub(crate) fn set_limit(&self, beside: u64, free: Free) -> Pressure {
        let mut state = self.state.lock();
        let own = self.cap.saturating_sub(beside).max(self.cap / 2);
        state.limit = own.min(state.used.saturating_add(free.bytes).saturating_sub(free.reserve));
        let before = state.pressed;
        state.pressed = free.bytes < free.reserve - free.reserve / 8 || (before && free.bytes < free.reserve);
        self.serve(&mut state);
        if state.pressed {
            refuse(&mut state);
        }
        match (before, state.pressed) {
            (false, true) => Pressure::Began,
            (true, false) => Pressure::Ended,
            _ => Pressure::Same,
        }
    }

    /// Whether `bytes` more would make nobody leave: they stay below the high mark.
    pub(crate) fn has_spare(&self, bytes: u64) -> bool {
        has_spare(&self.state.lock(), self.marks, bytes)
    }

    /// Takes `bytes` if that makes nobody leave; says whether it did.
    pub(crate) fn take_spare(&self, bytes: u64) -> bool {
        let mut state = self.state.lock();
        let spare = has_spare(&state, self.marks, bytes);
        if spare {
            state.used += bytes;
            self.used.set(state.used);
        }
        spare
    }

    /// Takes `bytes`, or asks the committer to make room.
    pub(crate) fn take(&self, bytes: u64) -> Taken {
        let mut state = self.state.lock();
        if bytes > self.cap || state.pressed {
            return Taken::Never;
        }
        if state.waiters.is_empty() && state.used.saturating_add(bytes) <= state.limit {
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
        self.serve(&mut state);
    }

    /// Gives those who wait what there is, in order.
    fn serve(&self, state: &mut State) {
        while let Some((want, _)) = state.waiters.front() {
            if state.pressed || state.used.saturating_add(*want) > state.limit {
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

    /// Chunks of so many bytes were dropped; their space comes back with [`Room::left`].
    pub(crate) fn leave(&self, bytes: u64) {
        self.state.lock().leaving += bytes;
    }

    /// Chunks of so many bytes have left, or their whole blob has.
    pub(crate) fn left(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.leaving = state.leaving.saturating_sub(bytes);
    }

    /// From now on there is eviction in the background. Not from the open on: those who retain blobs have not come yet.
    pub(crate) fn run(&self) {
        self.state.lock().is_running = true;
    }

    /// What has to be freed: for those who wait, to get below the limit, and from the high to the low mark.
    pub(crate) fn goal(&self) -> Goal {
        let mut state = self.state.lock();
        let waiting: u64 = state.waiters.iter().map(|(bytes, _)| bytes).sum();
        let staying = state.used.saturating_sub(state.leaving);
        let low = self.marks.low_of(state.limit);
        let ebbing = staying > self.marks.high_of(state.limit) || (state.ebbing && staying > low);
        state.ebbing = state.is_running && ebbing;
        let must = staying.saturating_add(waiting).saturating_sub(state.limit);
        let ebb = if state.ebbing || (must > 0 && state.is_running) {
            staying.saturating_add(waiting).saturating_sub(low)
        } else {
            0
        };
        Goal { must, want: ebb.max(must) }
    }

    /// Tells everybody who waits that there is no room to be made.
    pub(crate) fn refuse(&self) {
        refuse(&mut self.state.lock());
    }
}

fn has_spare(state: &State, marks: Watermarks, bytes: u64) -> bool {
    !state.pressed && state.waiters.is_empty() && state.used.saturating_add(bytes) <= marks.high_of(state.limit)
}

fn refuse(state: &mut State) {
    for (_, tell) in std::mem::take(&mut state.waiters) {
        // A waiter that went away need not be told.
        let _ = tell.send(false);
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
        Room::new(cap, Watermarks::new(100, 100).unwrap(), Arc::default(), Level::default())
    }

    const PLENTY: Free = Free { bytes: 1 << 40, reserve: 0 };

    #[test]
    fn between_the_marks_nothing_is_wanted_until_the_high_one_is_passed_again() {
        let room = Room::new(100, Watermarks::new(90, 80).unwrap(), Arc::default(), Level::default());
        room.occupy(91);
        assert_eq!(room.goal(), Goal::default(), "it does not run yet");
        room.run();
        room.give(1);
        assert_eq!(room.goal(), Goal::default());
        room.occupy(1);
        assert_eq!(room.goal(), Goal { must: 0, want: 11 });
        room.leave(6);
        assert_eq!(room.goal(), Goal { must: 0, want: 5 }, "what is leaving is not wanted twice");
        room.give(6);
        room.left(6);
        assert_eq!(room.goal(), Goal { must: 0, want: 5 });
        room.give(5);
        assert_eq!(room.goal(), Goal::default());
        room.occupy(5);
        assert_eq!(room.goal(), Goal::default());
    }

    #[test]
    fn what_lies_beside_the_chunks_is_within_the_cap_but_takes_no_more_than_half() {
        let room = room(100);
        assert_eq!(room.set_limit(30, PLENTY), Pressure::Same);
        assert_eq!(room.limit(), 70);
        room.set_limit(500, PLENTY);
        assert_eq!(room.limit(), 50);
    }

    #[test]
    fn the_reserve_stays_free_and_when_others_take_it_nothing_is_taken_and_room_is_wanted() {
        let room = room(1000);
        room.occupy(100);
        room.set_limit(0, Free { bytes: 150, reserve: 80 });
        assert_eq!((room.limit(), room.goal()), (170, Goal::default()));
        assert_eq!(
            room.set_limit(0, Free { bytes: 70, reserve: 80 }),
            Pressure::Same,
            "a little is nothing to tell of"
        );
        assert_eq!((room.limit(), room.goal().must), (90, 10));
        assert_eq!(room.set_limit(0, Free { bytes: 69, reserve: 80 }), Pressure::Began);
        assert!(matches!(room.take(1), Taken::Never));
        room.give(10);
        assert_eq!(room.set_limit(0, Free { bytes: 79, reserve: 80 }), Pressure::Same);
        assert!(matches!(room.take(1), Taken::Never));
        assert_eq!(room.set_limit(0, Free { bytes: 81, reserve: 80 }), Pressure::Ended);
        assert!(matches!(room.take(1), Taken::Now));
    }

    #[test]
    fn the_cap_holds_and_those_who_wait_are_served_in_order() {
        let room = room(100);
        assert!(matches!(room.take(101), Taken::Never));
        assert!(matches!(room.take(80), Taken::Now));
        let Taken::Later(mut first) = room.take(50) else { panic!("no room for 50") };
        let Taken::Later(mut second) = room.take(11) else { panic!("11 came later than 50") };
        assert_eq!(room.goal(), Goal { must: 41, want: 41 });
        room.give(20);
        assert!(first.try_recv().is_err() && second.try_recv().is_err());
        room.give(20);
        assert!(first.try_recv().unwrap());
        assert!(second.try_recv().is_err());
        assert_eq!(room.used(), 90);
        room.refuse();
        assert!(!second.try_recv().unwrap());
        assert_eq!((room.used(), room.goal()), (90, Goal::default()));
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
