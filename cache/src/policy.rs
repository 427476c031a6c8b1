//! Which extents to evict: S3-FIFO by generations. Pure: it sees extents through [`Extents`] and touches nothing else.
//!
//! Two queues, as in S3-FIFO (Yang et al., SOSP '23): what is new is on [`Tier::Probation`], and goes from there to
//! [`Tier::Main`] when it was read again, or out when not; what comes back soon after it went out goes straight to main. While
//! probation holds more than a tenth of the bytes, victims come from there: so a scan, which reads everything once, pushes itself out and
//! leaves main alone. `docs/eviction.md` has the measurements against LRU, FIFO, CLOCK and SIEVE.
//!
//! Two things differ from the paper, because the units here are extents of a device and not objects:
//!
//! * A read of one extent is many requests, and each miss ends with a hit of what was just filled. So a hit counts only when at least
//!   [`APART_TICKS`] minutes went by since the extent was placed or last credited: else every scan would look like use.
//! * There are no queues. An extent carries the generation in which it was placed, a 256th of the cache's turnover; the oldest
//!   generation is the end of its queue. Four bytes an extent, nothing to keep in step when blobs come and go, and a look over all
//!   extents only when something must go.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

#[cfg(test)]
mod tests;

/// Generations in one turnover of the cache: how finely extents are told apart by age.
const GENERATIONS: u16 = 256;
/// Ages told apart when victims are chosen, in generations; what is older counts as this old.
const AGES: usize = 2 * GENERATIONS as usize;
/// Victims come from probation while it holds more than one part in this many of the bytes (the paper's tenth).
const PROBATION_SHARE: u64 = 10;
/// Credits that an extent can have.
const MAX_CREDITS: u16 = 3;
/// Hits less than this many ticks after the last credit are the same use: one whole tick lies between at least.
pub const APART_TICKS: u16 = 2;
/// Rounds of [`choose`] after which whatever may go has gone: one for each credit, one for what came from probation, one more.
pub const ROUNDS: u32 = MAX_CREDITS as u32 + 2;
/// Ghosts are remembered for at most this many extents: 16 MiB of memory, which is a turnover of 4 TiB.
const MAX_GHOSTS: u64 = 1 << 22;

const CREDIT_BITS: u32 = 2;
const TICKS: u16 = u16::MAX >> CREDIT_BITS;
const MAIN: u16 = 1 << 15;

/// Which of the two queues an extent is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// New, and not read again since.
    Probation,
    /// Read again, or found on disk at the start.
    Main,
}

/// How one extent stands with the policy: 4 bytes beside its pins.
#[derive(Debug, Default)]
pub struct Standing {
    /// Tick of the last credit or placement, above the credits. Changed by hits without a lock: a lost credit harms nobody.
    heat: AtomicU16,
    /// Tier, and generation of placement. Changed where extents are filled and evicted only.
    place: AtomicU16,
}

impl Standing {
    /// The extent was read. One relaxed load; one relaxed store when the read counts.
    pub fn hit(&self, clock: &Clock) {
        let (now, heat) = (clock.tick(), self.heat.load(Ordering::Relaxed));
        if now.wrapping_sub(heat >> CREDIT_BITS) & TICKS >= APART_TICKS {
            self.heat.store(now << CREDIT_BITS | ((heat & MAX_CREDITS) + 1).min(MAX_CREDITS), Ordering::Relaxed);
        }
    }

    /// Its tier.
    #[must_use]
    pub fn tier(&self) -> Tier {
        if self.place.load(Ordering::Relaxed) & MAIN == 0 { Tier::Probation } else { Tier::Main }
    }

    fn credits(&self) -> u16 {
        self.heat.load(Ordering::Relaxed) & MAX_CREDITS
    }

    fn set(&self, tier: Tier, clock: &Clock) {
        let bit = if tier == Tier::Main { MAIN } else { 0 };
        self.place.store(clock.generation() | bit, Ordering::Relaxed);
    }

    /// From probation to the young end of main, without credit.
    fn promote(&self, clock: &Clock) {
        self.heat.fetch_and(!MAX_CREDITS, Ordering::Relaxed);
        self.set(Tier::Main, clock);
    }

    /// Once more to the young end of main, for one credit.
    fn pay(&self, clock: &Clock) {
        self.heat.fetch_sub(1, Ordering::Relaxed);
        self.set(Tier::Main, clock);
    }

    /// Its age in generations; 0 for the present one.
    fn age(&self, clock: &Clock) -> usize {
        let age = clock.generation().wrapping_sub(self.place.load(Ordering::Relaxed)) & !MAIN;
        usize::from(age).min(AGES - 1)
    }
}

/// What time is for the policy: ticks for hits, generations for placements.
#[derive(Debug)]
pub struct Clock {
    ticks: AtomicU32,
    placed: AtomicU64,
    /// Extents in a generation.
    generation: u64,
}

impl Clock {
    /// The clock of a cache that holds `extents` extents when full.
    #[must_use]
    pub fn new(extents: u64) -> Self {
        let generation = (extents / u64::from(GENERATIONS)).max(1);
        Self { ticks: AtomicU32::new(0), placed: AtomicU64::new(0), generation }
    }

    /// A minute went by.
    pub fn advance(&self) {
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    fn tick(&self) -> u16 {
        u16::try_from(self.ticks.load(Ordering::Relaxed) & u32::from(TICKS)).unwrap_or_default()
    }

    fn generation(&self) -> u16 {
        let generation = self.placed.load(Ordering::Relaxed) / self.generation;
        u16::try_from(generation & u64::from(!MAIN)).unwrap_or_default()
    }

    /// The first chunk of an extent was stored.
    pub fn place(&self, standing: &Standing, tier: Tier) {
        self.placed.fetch_add(1, Ordering::Relaxed);
        standing.heat.store(self.tick() << CREDIT_BITS, Ordering::Relaxed);
        standing.set(tier, self);
    }

    /// An extent was found on disk at the start: it is in main, and its first hit counts.
    pub fn found(&self, standing: &Standing) {
        self.placed.fetch_add(1, Ordering::Relaxed);
        standing.heat.store(self.tick().wrapping_sub(APART_TICKS) << CREDIT_BITS, Ordering::Relaxed);
        standing.set(Tier::Main, self);
    }
}

/// Fingerprints of extents that were evicted from probation lately. Each has one place, where a later one replaces it: at 4 bytes an
/// extent of the cap this remembers about as many as the cache holds.
#[derive(Debug)]
pub struct Ghosts(Box<[AtomicU32]>);

impl Ghosts {
    /// Room for the ghosts of a cache that holds `extents` extents when full.
    #[must_use]
    pub fn new(extents: u64) -> Self {
        Self((0..Self::places(extents)).map(|_| AtomicU32::new(0)).collect())
    }

    fn places(extents: u64) -> u64 {
        extents.clamp(64, MAX_GHOSTS).next_power_of_two()
    }

    /// Bytes of memory that those of a cache of this size take.
    #[must_use]
    pub fn bytes_for(extents: u64) -> u64 {
        Self::places(extents) * size_of::<AtomicU32>() as u64
    }

    /// Bytes of memory that they take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        size_of_val(&*self.0) as u64
    }

    fn place(&self, key: u64) -> Option<(&AtomicU32, u32)> {
        let places = u64::try_from(self.0.len()).ok()?;
        let place = self.0.get(usize::try_from(key % places).ok()?)?;
        // Never 0, which is "nobody".
        Some((place, u32::try_from(key >> 32).ok()? | 1))
    }

    /// The extent with this [`key`] was evicted from probation.
    pub fn add(&self, key: u64) {
        if let Some((place, mark)) = self.place(key) {
            place.store(mark, Ordering::Relaxed);
        }
    }

    /// The extent with this [`key`] comes in: where it belongs. A ghost is used up.
    #[must_use]
    pub fn tier(&self, key: u64) -> Tier {
        let back = |(place, mark): (&AtomicU32, u32)| {
            place.compare_exchange(mark, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        if self.place(key).is_some_and(back) { Tier::Main } else { Tier::Probation }
    }
}

/// The key of an extent among ghosts: the blob's first bytes and the extent's number, mixed (the finaliser of SplitMix64) so that all bits
/// depend on both.
#[must_use]
pub const fn key(blob: [u8; 8], extent: u32) -> u64 {
    let mut z = u64::from_le_bytes(blob).wrapping_add((extent as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What may be evicted.
pub trait Extents {
    /// What names an extent.
    type Id: Copy;

    /// Shows every extent that may go: its name, its standing, and how many bytes would come free (not 0).
    fn each(&self, see: &mut dyn FnMut(Self::Id, &Standing, u64));
}

/// Bytes by age, for each way in which an extent may stand.
struct Ages {
    probation: u64,
    main: u64,
    cold_probation: [u64; AGES],
    warm_probation: [u64; AGES],
    cold_main: [u64; AGES],
}

/// From which age on extents are met; [`AGES`] for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    probation: usize,
    main: usize,
}

impl Ages {
    fn of<E: Extents>(extents: &E, clock: &Clock) -> Self {
        let none = [0; AGES];
        let mut ages = Self { probation: 0, main: 0, cold_probation: none, warm_probation: none, cold_main: none };
        extents.each(&mut |_, standing, bytes| {
            let (total, by_age) = match (standing.tier(), standing.credits()) {
                (Tier::Probation, 0) => (&mut ages.probation, Some(&mut ages.cold_probation)),
                (Tier::Probation, _) => (&mut ages.probation, Some(&mut ages.warm_probation)),
                (Tier::Main, 0) => (&mut ages.main, Some(&mut ages.cold_main)),
                (Tier::Main, _) => (&mut ages.main, None),
            };
            *total += bytes;
            if let Some(at) = by_age.and_then(|by_age| by_age.get_mut(standing.age(clock))) {
                *at += bytes;
            }
        });
        ages
    }

    /// How far both queues must be looked at, from their old ends, for `want` bytes to go.
    fn cut(mut self, want: u64) -> Cut {
        let at = |ages: &[u64; AGES], age: usize| ages.get(age).copied().unwrap_or_default();
        let mut cut = Cut { probation: AGES, main: AGES };
        let mut freed = 0;
        while freed < want {
            let over = self.probation.saturating_mul(PROBATION_SHARE) > self.probation.saturating_add(self.main);
            if cut.probation > 0 && (over || self.main == 0) {
                cut.probation -= 1;
                let (cold, warm) = (at(&self.cold_probation, cut.probation), at(&self.warm_probation, cut.probation));
                self.probation -= cold + warm;
                self.main += warm;
                freed += cold;
            } else if cut.main > 0 {
                cut.main -= 1;
                let cold = at(&self.cold_main, cut.main);
                self.main -= cold;
                freed += cold;
            } else {
                break;
            }
        }
        cut
    }
}

/// One round: chooses extents worth `want` bytes, or fewer when the others have credit; takes credit from those it passes over. [`ROUNDS`]
/// rounds, with what was chosen evicted in between, find everything that may go.
pub fn choose<E: Extents>(extents: &E, clock: &Clock, want: u64) -> Vec<E::Id> {
    let cut = Ages::of(extents, clock).cut(want);
    let (mut chosen, mut freed) = (Vec::new(), 0);
    extents.each(&mut |id, standing, bytes| {
        let tier = standing.tier();
        let from = if tier == Tier::Main { cut.main } else { cut.probation };
        if freed >= want || standing.age(clock) < from {
            return;
        }
        match (tier, standing.credits()) {
            (_, 0) => {
                freed += bytes;
                chosen.push(id);
            }
            (Tier::Probation, _) => standing.promote(clock),
            (Tier::Main, _) => standing.pay(clock),
        }
    });
    chosen
}
