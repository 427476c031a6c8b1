//! The policy on extents of one byte each.

use std::cell::RefCell;

use super::*;

/// A cache of extents, each with a number and a standing; pinned ones are not shown.
struct Fake {
    clock: Clock,
    ghosts: Ghosts,
    cap: usize,
    held: RefCell<Vec<(u32, Standing)>>,
    pinned: RefCell<Vec<u32>>,
}

impl Extents for Fake {
    type Id = u32;

    fn each(&self, see: &mut dyn FnMut(u32, &Standing, u64)) {
        for (id, standing) in self.held.borrow().iter().filter(|(id, _)| !self.pinned.borrow().contains(id)) {
            see(*id, standing, 1);
        }
    }
}

impl Fake {
    fn new(cap: usize) -> Self {
        let extents = u64::try_from(cap).unwrap();
        Self {
            clock: Clock::new(extents),
            ghosts: Ghosts::new(extents),
            cap,
            held: RefCell::default(),
            pinned: RefCell::default(),
        }
    }

    fn key(id: u32) -> u64 {
        key([7; 8], id)
    }

    fn has(&self, id: u32) -> bool {
        self.held.borrow().iter().any(|(held, _)| *held == id)
    }

    /// Reads an extent 16 times in a row, as a device reads the pages of one. Says whether it was there.
    fn read(&self, id: u32) -> bool {
        let hit = self.has(id);
        if !hit {
            let standing = Standing::default();
            self.clock.place(&standing, self.ghosts.tier(Self::key(id)));
            self.held.borrow_mut().push((id, standing));
        }
        let held = self.held.borrow();
        let (_, standing) = held.iter().find(|(held, _)| *held == id).unwrap();
        (0..16).for_each(|_| standing.hit(&self.clock));
        drop(held);
        let over = self.held.borrow().len().saturating_sub(self.cap);
        self.evict(u64::try_from(over).unwrap());
        hit
    }

    fn evict(&self, want: u64) -> Vec<u32> {
        let mut gone: Vec<u32> = Vec::new();
        for _ in 0..ROUNDS {
            let left = want - u64::try_from(gone.len()).unwrap();
            if left == 0 {
                break;
            }
            for id in choose(self, &self.clock, left) {
                let mut held = self.held.borrow_mut();
                let at = held.iter().position(|(held, _)| *held == id).unwrap();
                if held.remove(at).1.tier() == Tier::Probation {
                    self.ghosts.add(Self::key(id));
                }
                gone.push(id);
            }
        }
        gone
    }

    fn minutes(&self, minutes: u32) {
        (0..minutes).for_each(|_| self.clock.advance());
    }
}

#[test]
fn what_was_read_once_goes_in_the_order_in_which_it_came() {
    let cache = Fake::new(100);
    (0..10).for_each(|id| assert!(!cache.read(id)));
    assert_eq!(cache.evict(3), [0, 1, 2]);
    assert_eq!(cache.evict(1), [3]);
    assert_eq!(cache.evict(99), [4, 5, 6, 7, 8, 9]);
}

#[test]
fn many_reads_within_two_minutes_are_one_use() {
    let cache = Fake::new(100);
    (0..10).for_each(|id| assert!(!cache.read(id)));
    cache.minutes(1);
    assert!(cache.read(0));
    assert_eq!(cache.evict(1), [0]);
    cache.minutes(1);
    assert!(cache.read(1));
    assert_eq!(cache.evict(1), [2], "1 was read again");
}

#[test]
fn a_scan_of_ten_times_the_cache_leaves_what_is_used_where_it_is() {
    let cache = Fake::new(100);
    (0..80).for_each(|id| assert!(!cache.read(id)));
    cache.minutes(5);
    (0..80).for_each(|id| assert!(cache.read(id)));
    (1000..2000).for_each(|id| assert!(!cache.read(id)));
    let kept = (0..80).filter(|&id| cache.has(id)).count();
    assert_eq!(kept, 80);
    assert!((1990..2000).all(|id| cache.has(id)));
}

#[test]
fn a_new_working_set_takes_over_though_an_old_one_was_used_much() {
    let cache = Fake::new(100);
    for _ in 0..9 {
        (0..90).for_each(|id| {
            cache.read(id);
        });
        cache.minutes(5);
    }
    let mut hits = 0;
    for _ in 0..20 {
        hits = (500..590).filter(|&id| cache.read(id)).count();
        cache.minutes(5);
    }
    assert_eq!(hits, 90, "ghosts bring the new set into main");
}

#[test]
fn what_comes_back_soon_goes_to_main_once() {
    let ghosts = Ghosts::new(100);
    ghosts.add(Fake::key(5));
    assert_eq!(ghosts.tier(Fake::key(6)), Tier::Probation);
    assert_eq!(ghosts.tier(Fake::key(5)), Tier::Main);
    assert_eq!(ghosts.tier(Fake::key(5)), Tier::Probation, "a ghost is used up");
}

#[test]
fn ghosts_take_four_bytes_an_extent_and_have_a_bound() {
    assert_eq!(Ghosts::new(1000).0.len(), 1024);
    assert_eq!(Ghosts::new(u64::MAX).0.len(), 1 << 22);
    assert_eq!(std::mem::size_of::<Standing>(), 4);
}

#[test]
fn what_is_pinned_stays_and_everything_else_can_be_had_whatever_its_credit() {
    let cache = Fake::new(100);
    (0..20).for_each(|id| assert!(!cache.read(id)));
    for _ in 0..5 {
        cache.minutes(2);
        (0..20).for_each(|id| assert!(cache.read(id)));
    }
    cache.pinned.borrow_mut().extend([3, 4]);
    let mut gone = cache.evict(99);
    gone.sort_unstable();
    assert_eq!(gone, (0..20).filter(|id| ![3, 4].contains(id)).collect::<Vec<_>>());
}

#[test]
fn what_was_found_at_the_start_is_in_main_and_its_first_hit_counts() {
    let clock = Clock::new(100);
    let standing = Standing::default();
    clock.found(&standing);
    standing.hit(&clock);
    assert_eq!((standing.tier(), standing.credits()), (Tier::Main, 1));
    standing.hit(&clock);
    assert_eq!(standing.credits(), 1);
}

#[test]
fn age_goes_on_when_the_count_of_generations_wraps() {
    let clock = Clock::new(1);
    let old = Standing::default();
    for _ in 0..0x7fff_u32 {
        clock.place(&Standing::default(), Tier::Probation);
    }
    clock.place(&old, Tier::Main);
    clock.place(&Standing::default(), Tier::Probation);
    assert_eq!(old.age(&clock), 1);
}
