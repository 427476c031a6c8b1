//! Where reads are put together: one set of desks for all devices of a node, within a bound of bytes.
//!
//! A desk is the buffer of an answer, what decoding needs, and the plan. A queue has one while it looks at a request, which it does without
//! waiting for a fetch, and gives it back: a thousand devices that wait, or are idle, have none. Desks that were given back are lent again, the
//! last one first, with what they have grown to: in the long run a read takes nothing from the heap.
//!
//! When all that is bounded is lent, queues wait in the order of their coming. Who has a desk waits for nothing but local files and takes no
//! second one, and one desk is lent however large it is: every wait ends.

use std::{
    collections::VecDeque,
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
    thread::{self, Thread},
};

use parking_lot::{Mutex, MutexGuard};
use penstock_image::{Plan, Scratch};

/// What a desk may take beside its buffer while it is lent: [`Scratch`]'s 608 KiB, and the plan of the largest read in its smallest
/// pieces, 2048 steps of some 200 bytes.
const AROUND_BYTES: u64 = 1 << 20;

/// Bytes of all desks together unless said otherwise: seven reads of the largest size at once, or a dozen usual ones.
pub const DESKS_BYTES: u64 = 16 << 20;

/// One set of desks; clones are the same set. Give the same one to all devices of a process.
#[derive(Clone)]
pub struct Desks(Arc<Set>);

struct Set {
    limit_bytes: u64,
    ledger: Mutex<Ledger>,
}

/// What is lent, what rests, and who waits.
#[derive(Default)]
struct Ledger {
    /// The one given back last at the end.
    resting: VecDeque<Desk>,
    resting_bytes: u64,
    lent: usize,
    lent_bytes: u64,
    next_ticket: u64,
    line: VecDeque<(u64, Thread)>,
}

/// What one look at a request needs.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    pub(crate) buffer: Vec<u8>,
    pub(crate) scratch: Scratch,
    /// Empty between requests; kept for its room.
    pub(crate) plan: Plan,
}

/// A desk that goes back when this is dropped.
pub(crate) struct Lent {
    desk: Desk,
    charge_bytes: u64,
    set: Arc<Set>,
}

impl Desk {
    fn bytes(&self) -> u64 {
        self.buffer.capacity() as u64 + self.scratch.bytes() + self.plan.bytes()
    }

    /// The most that it takes while it is lent, unless its buffer grows.
    fn most_bytes(&self) -> u64 {
        self.buffer.capacity() as u64 + AROUND_BYTES
    }
}

impl Ledger {
    /// Whether a desk of `charge` bytes may be lent now to who is first.
    fn has_room(&self, charge: u64, limit: u64) -> bool {
        self.lent == 0 || self.lent_bytes.saturating_add(charge) <= limit
    }

    /// Lends a desk for which there is room: one that rests, if its size fits. Others that rest go as far as they stand in the way.
    fn lend(&mut self, charge: u64, limit: u64) -> (Desk, u64) {
        let rested = self.resting.pop_back().inspect(|desk| self.resting_bytes -= desk.bytes());
        let fits = rested.map(|desk| (charge.max(desk.most_bytes()), desk));
        let fits = fits.filter(|(charge, _)| self.has_room(*charge, limit));
        let (charge, desk) = fits.unwrap_or_else(|| (charge, Desk::default()));
        self.lent += 1;
        self.lent_bytes += charge;
        while self.lent_bytes + self.resting_bytes > limit
            && let Some(oldest) = self.resting.pop_front()
        {
            self.resting_bytes -= oldest.bytes();
        }
        (desk, charge)
    }

    /// Takes a desk back, and keeps it if there is room.
    fn take_back(&mut self, desk: Option<Desk>, charge: u64, limit: u64) {
        self.lent -= 1;
        self.lent_bytes -= charge;
        if let Some(desk) = desk
            && self.lent_bytes + self.resting_bytes + desk.bytes() <= limit
        {
            self.resting_bytes += desk.bytes();
            self.resting.push_back(desk);
        }
    }

    /// Lets the first in the line look whether it is its turn.
    fn call_first(&self) {
        if let Some((_, thread)) = self.line.front() {
            thread.unpark();
        }
    }
}

impl Desks {
    /// Desks that together take at most `limit_bytes`; but one is lent whatever it takes.
    #[must_use]
    pub fn new(limit_bytes: u64) -> Self {
        Self(Arc::new(Set { limit_bytes, ledger: Mutex::default() }))
    }

    /// Bytes that they take now: what rests as it is, what is lent at its most.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        let ledger = self.0.ledger.lock();
        ledger.resting_bytes + ledger.lent_bytes
    }

    /// The most that they take.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.0.limit_bytes
    }

    /// A desk with a buffer of at least `len` bytes, as soon as there is one.
    pub(crate) fn lend(&self, len: usize) -> Lent {
        let (set, size) = (&self.0, len.next_power_of_two());
        let charge = size as u64 + AROUND_BYTES;
        let mut ledger = set.ledger.lock();
        if !ledger.line.is_empty() || !ledger.has_room(charge, set.limit_bytes) {
            set.wait(&mut ledger, charge);
        }
        let (desk, charge_bytes) = ledger.lend(charge, set.limit_bytes);
        // There may be room for the next one as well.
        ledger.call_first();
        drop(ledger);
        let mut lent = Lent { desk, charge_bytes, set: Arc::clone(set) };
        let buffer = &mut lent.desk.buffer;
        if buffer.len() < size {
            buffer.reserve_exact(size - buffer.len());
            buffer.resize(size, 0);
        }
        lent
    }
}

impl Set {
    /// Waits in the line until it is one's turn and there is room.
    fn wait(&self, ledger: &mut MutexGuard<'_, Ledger>, charge: u64) {
        let mine = ledger.next_ticket;
        ledger.next_ticket += 1;
        ledger.line.push_back((mine, thread::current()));
        let is_first = |ledger: &Ledger| ledger.line.front().is_some_and(|(ticket, _)| *ticket == mine);
        while !is_first(ledger) || !ledger.has_room(charge, self.limit_bytes) {
            MutexGuard::unlocked(ledger, thread::park);
        }
        ledger.line.pop_front();
    }
}

impl Default for Desks {
    /// Of [`DESKS_BYTES`].
    fn default() -> Self {
        Self::new(DESKS_BYTES)
    }
}

impl PartialEq for Desks {
    /// Whether it is the same set.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Desks {}

impl fmt::Debug for Desks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desks").field("limit_bytes", &self.0.limit_bytes).finish_non_exhaustive()
    }
}

impl Deref for Lent {
    type Target = Desk;

    fn deref(&self) -> &Desk {
        &self.desk
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Desk {
        &mut self.desk
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // What a panic left on it is not known.
        let desk = Some(std::mem::take(&mut self.desk)).filter(|_| !thread::panicking());
        let mut ledger = self.set.ledger.lock();
        ledger.take_back(desk, self.charge_bytes, self.set.limit_bytes);
        ledger.call_first();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{
            Barrier,
            atomic::{AtomicU64, Ordering},
            mpsc,
        },
    };

    use super::*;

    const KIB: usize = 1 << 10;

    #[test]
    fn a_desk_that_was_given_back_is_lent_again_with_what_it_grew_to() {
        let desks = Desks::default();
        drop(desks.lend(100 * KIB));
        assert_eq!(desks.used_bytes(), 128 * KIB as u64);
        let lent = desks.lend(KIB);
        assert_eq!(lent.buffer.len(), 128 * KIB);
        assert_eq!(desks.used_bytes(), AROUND_BYTES + 128 * KIB as u64, "at its most");
        drop(lent);
        let both = (desks.lend(KIB), desks.lend(KIB));
        assert_eq!((both.0.buffer.len(), both.1.buffer.len()), (128 * KIB, KIB), "there was one");
    }

    #[test]
    fn one_desk_is_lent_however_large_and_none_that_is_too_large_is_kept() {
        let desks = Desks::new(1000);
        let lent = desks.lend(KIB);
        assert_eq!(lent.buffer.len(), KIB);
        drop(lent);
        assert_eq!(desks.used_bytes(), 0);
    }

    #[test]
    fn what_rests_makes_room_for_what_is_lent() {
        let desks = Desks::new(2 * AROUND_BYTES + 512 * KIB as u64);
        drop((desks.lend(256 * KIB), desks.lend(256 * KIB)));
        assert_eq!(desks.used_bytes(), 512 * KIB as u64);
        let whole = desks.lend(1024 * KIB);
        assert_eq!(desks.used_bytes(), AROUND_BYTES + 1280 * KIB as u64, "the other one is not in the way");
        drop(whole);
        let more = desks.lend(2048 * KIB);
        assert_eq!(desks.used_bytes(), AROUND_BYTES + 2048 * KIB as u64, "the other one was in the way");
        assert_eq!(more.buffer.len(), 2048 * KIB);
    }

    #[test]
    fn a_desk_that_a_panic_left_is_not_lent_again() {
        let desks = Desks::default();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut lent = desks.lend(KIB);
            lent.buffer.fill(7);
            panic!("a bug");
        }));
        assert!(panicked.is_err());
        assert_eq!(desks.used_bytes(), 0);
        assert!(desks.lend(KIB).buffer.iter().all(|&byte| byte == 0));
    }

    /// Who waits is served in the order of the line, whatever the sizes: the ledger alone tells, without threads.
    #[test]
    fn the_line_is_served_in_order_and_the_bound_holds() {
        let limit = 100;
        let mut ledger = Ledger::default();
        let mut lent = VecDeque::new();
        let mut served = Vec::new();
        let wishes = [60, 30, 50, 5, 200, 10, 90, 1, 1, 1, 40, 60, 100];
        let mut line: VecDeque<(usize, u64)> = wishes.into_iter().enumerate().collect();
        while let Some(&(nth, charge)) = line.front() {
            if ledger.has_room(charge, limit) {
                line.pop_front();
                let (_, charged) = ledger.lend(charge, limit);
                assert_eq!(charged, charge);
                lent.push_back(charged);
                served.push(nth);
                assert!(ledger.lent == 1 || ledger.lent_bytes <= limit);
            } else {
                let charge = lent.pop_front().expect("with nothing lent there is room for anybody");
                ledger.take_back(None, charge, limit);
            }
        }
        assert_eq!(served, (0..wishes.len()).collect::<Vec<_>>());
        lent.into_iter().for_each(|charge| ledger.take_back(None, charge, limit));
        assert_eq!((ledger.lent, ledger.lent_bytes, ledger.resting_bytes), (0, 0, 0));
    }

    #[test]
    fn a_thousand_queues_take_turns_within_the_bound_and_all_are_served() {
        const QUEUES: usize = 1000;
        let desks = Desks::new(3 * (AROUND_BYTES + 64 * KIB as u64));
        let (most, start) = (AtomicU64::new(0), Barrier::new(QUEUES));
        thread::scope(|scope| {
            for queue in 0..QUEUES {
                let (desks, most, start) = (&desks, &most, &start);
                let work = move || {
                    start.wait();
                    for len in [KIB, 64 * KIB] {
                        let mut lent = desks.lend(len);
                        lent.buffer[..len].fill(queue.to_le_bytes()[0]);
                        most.fetch_max(desks.used_bytes(), Ordering::Relaxed);
                        assert!(lent.buffer[..len].iter().all(|&byte| byte == queue.to_le_bytes()[0]));
                    }
                };
                thread::Builder::new().stack_size(256 * KIB).spawn_scoped(scope, work).unwrap();
            }
        });
        let most = most.into_inner();
        assert!(most <= desks.limit_bytes() && most > AROUND_BYTES, "{most}");
        let ledger = desks.0.ledger.lock();
        assert_eq!((ledger.lent, ledger.lent_bytes, ledger.line.len()), (0, 0, 0));
    }

    #[test]
    fn who_waits_goes_on_when_the_last_desk_comes_back() {
        let desks = Desks::new(1);
        let first = desks.lend(KIB);
        let (told, done) = mpsc::sync_channel(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                drop(desks.lend(KIB));
                told.send(()).unwrap();
            });
            assert!(done.try_recv().is_err(), "there is one desk, and it is lent");
            drop(first);
            done.recv().unwrap();
        });
    }
}
