//! Eviction on traces: the hit ratio of the cache's own policy (`penstock_cache::policy`) against FIFO, LRU, CLOCK and SIEVE, all holding the
//! same number of extents. Pure computation on made-up traces; the same seed gives the same numbers on every machine.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use penstock_cache::policy::{Clock, Extents, Ghosts, ROUNDS, Standing, Tier, choose, key};
use serde::Serialize;

/// Days of a trace.
const DAYS: u64 = 30;
/// Containers started in a day.
const STARTS_A_DAY: u64 = 200;
/// Images, of which some are started often and most seldom (Zipf, exponent 0.9).
const IMAGES: usize = 400;
/// Base layers that images share, and the extents of each.
const BASES: u64 = 8;
const BASE_EXTENTS: u64 = 60;
/// Images scanned from end to end in a night, and how many of a hundred extents a start reads.
const SCANNED_A_NIGHT: usize = 10;
const START_PERCENT: u64 = 7;

/// One line of the result.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The trace: `zipf`, or `scan`, which is the same with a scan every night.
    pub trace: &'static str,
    /// How many extents the cache holds, in percent of those that starts ever read.
    pub cache_percent: u64,
    /// Who chooses what goes.
    pub policy: &'static str,
    /// Extents read by starts. Those read by scans are not counted.
    pub reads: u64,
    /// How many of them were there.
    pub hits: u64,
}

impl Row {
    /// The share of reads that were hits.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        f64::from(u32::try_from(self.hits).unwrap_or(u32::MAX))
            / f64::from(u32::try_from(self.reads).unwrap_or(u32::MAX))
    }
}

/// A read of one extent.
#[derive(Debug, Clone, Copy)]
struct Read {
    minute: u64,
    extent: u64,
    is_scan: bool,
}

/// A cache of so many extents.
trait Policy {
    /// Reads an extent; whether it was there. It is there afterwards.
    fn read(&mut self, read: Read) -> bool;
}

/// Runs every policy over both traces.
#[must_use]
pub fn run(seed: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    for trace in ["zipf", "scan"] {
        let reads = make(seed, trace == "scan");
        let started: HashSet<u64> = reads.iter().filter(|read| !read.is_scan).map(|read| read.extent).collect();
        for cache_percent in [5, 10, 30] {
            let extents = started.len() * cache_percent / 100;
            let policies: [(&'static str, Box<dyn Policy>); 5] = [
                ("FIFO", Box::new(Fifo::new(extents))),
                ("LRU", Box::new(Lru::new(extents))),
                ("CLOCK", Box::new(SecondChance::new(extents))),
                ("SIEVE", Box::new(Sieve::new(extents))),
                ("Penstock", Box::new(Own::new(extents))),
            ];
            for (policy, mut it) in policies {
                let mut row = Row { trace, cache_percent: cache_percent as u64, policy, reads: 0, hits: 0 };
                for &read in &reads {
                    let hit = it.read(read);
                    row.reads += u64::from(!read.is_scan);
                    row.hits += u64::from(hit && !read.is_scan);
                }
                rows.push(row);
            }
        }
    }
    rows
}

/// The rows as a table.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut table = penstock_agent::output::Table::new(&["TRACE", ">CACHE", "POLICY", ">READS", ">HIT RATIO"]);
    for row in rows {
        table.row([
            row.trace.to_owned(),
            format!("{}%", row.cache_percent),
            row.policy.to_owned(),
            row.reads.to_string(),
            format!("{:.3}", row.ratio()),
        ]);
    }
    table.to_string()
}

/// A month of container starts, in order of time. The extents of image `i` are numbered from `i << 32`, those of bases from `(1 << 31)` up.
fn make(seed: u64, scans: bool) -> Vec<Read> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let sizes: Vec<u64> = (0..IMAGES).map(|_| rng.u64(20..400)).collect();
    let sets: Vec<Vec<u64>> = (0_u64..).zip(&sizes).map(|(image, size)| start_set(&mut rng, image, *size)).collect();
    let weights: Vec<f64> = (1..=IMAGES).map(|rank| (rank as f64).powf(-0.9)).collect();
    let total: f64 = weights.iter().sum();
    let mut reads = Vec::new();
    for day in 0..DAYS {
        for start in 0..STARTS_A_DAY {
            let minute = (day * STARTS_A_DAY + start) * 1440 / STARTS_A_DAY;
            let mut left = rng.f64() * total;
            let image = weights.iter().position(|weight| {
                left -= weight;
                left <= 0.0
            });
            let image = image.unwrap_or(IMAGES - 1);
            reads.extend(sets[image].iter().map(|&extent| Read { minute, extent, is_scan: false }));
            let first = (image as u64) << 32;
            let tail = (0..sizes[image] / 50).map(|_| first + rng.u64(0..sizes[image]));
            reads.extend(tail.map(|extent| Read { minute, extent, is_scan: false }));
        }
        for _ in 0..if scans { SCANNED_A_NIGHT } else { 0 } {
            let image = rng.usize(0..IMAGES);
            let (minute, first) = ((day + 1) * 1440, (image as u64) << 32);
            reads.extend((first..first + sizes[image]).map(|extent| Read { minute, extent, is_scan: true }));
        }
    }
    reads
}

/// What a start of an image reads each time: some of its own extents, and some of its base's.
fn start_set(rng: &mut fastrand::Rng, image: u64, size: u64) -> Vec<u64> {
    let own = (0..(size * START_PERCENT).div_ceil(100)).map(|_| (image << 32) + rng.u64(0..size)).collect::<Vec<_>>();
    let base = (1 << 31) + image % BASES * BASE_EXTENTS;
    let shared = (0..BASE_EXTENTS / 3).map(|extent| base + extent);
    let mut seen = HashSet::new();
    shared.chain(own).filter(|extent| seen.insert(*extent)).collect()
}

/// Out in the order of coming in.
struct Fifo {
    extents: usize,
    order: VecDeque<u64>,
    held: HashSet<u64>,
}

impl Fifo {
    fn new(extents: usize) -> Self {
        Self { extents, order: VecDeque::new(), held: HashSet::new() }
    }
}

impl Policy for Fifo {
    fn read(&mut self, read: Read) -> bool {
        if !self.held.insert(read.extent) {
            return true;
        }
        self.order.push_back(read.extent);
        if self.order.len() > self.extents {
            self.order.pop_front().map(|gone| self.held.remove(&gone));
        }
        false
    }
}

/// Out in the order of the last read.
struct Lru {
    extents: usize,
    now: u64,
    held: HashMap<u64, u64>,
    order: BTreeMap<u64, u64>,
}

impl Lru {
    fn new(extents: usize) -> Self {
        Self { extents, now: 0, held: HashMap::new(), order: BTreeMap::new() }
    }
}

impl Policy for Lru {
    fn read(&mut self, read: Read) -> bool {
        self.now += 1;
        let before = self.held.insert(read.extent, self.now);
        if let Some(before) = before {
            self.order.remove(&before);
        }
        self.order.insert(self.now, read.extent);
        if self.held.len() > self.extents {
            self.order.pop_first().map(|(_, gone)| self.held.remove(&gone));
        }
        before.is_some()
    }
}

/// What the cache did before: a second chance for what was hit. Each fill ends with a hit, as on a device.
struct SecondChance {
    extents: usize,
    order: VecDeque<u64>,
    held: HashMap<u64, bool>,
}

impl SecondChance {
    fn new(extents: usize) -> Self {
        Self { extents, order: VecDeque::new(), held: HashMap::new() }
    }
}

impl Policy for SecondChance {
    fn read(&mut self, read: Read) -> bool {
        if self.held.insert(read.extent, true).is_some() {
            return true;
        }
        self.order.push_back(read.extent);
        while self.held.len() > self.extents {
            let Some(oldest) = self.order.pop_front() else { break };
            match self.held.get_mut(&oldest) {
                Some(hot) if *hot => {
                    *hot = false;
                    self.order.push_back(oldest);
                }
                _ => {
                    self.held.remove(&oldest);
                }
            }
        }
        false
    }
}

/// SIEVE (Zhang et al., NSDI '24), with the rule that a read within two minutes of the last is the same use: else it is a CLOCK here.
struct Sieve {
    extents: usize,
    /// Newest last; the hand goes from the oldest on.
    order: BTreeMap<u64, u64>,
    hand: u64,
    next: u64,
    /// Place in `order`, minute of the last use, visited.
    held: HashMap<u64, (u64, u64, bool)>,
}

impl Sieve {
    fn new(extents: usize) -> Self {
        Self { extents, order: BTreeMap::new(), hand: 0, next: 0, held: HashMap::new() }
    }

    fn evict(&mut self) {
        while self.held.len() > self.extents {
            let Some((&place, &extent)) = self.order.range(self.hand..).next() else {
                self.hand = 0;
                continue;
            };
            self.hand = place + 1;
            match self.held.get_mut(&extent) {
                Some((.., visited)) if *visited => *visited = false,
                _ => {
                    self.order.remove(&place);
                    self.held.remove(&extent);
                }
            }
        }
    }
}

impl Policy for Sieve {
    fn read(&mut self, read: Read) -> bool {
        if let Some((_, last, visited)) = self.held.get_mut(&read.extent) {
            *visited |= read.minute >= *last + 2;
            *last = read.minute;
            return true;
        }
        self.order.insert(self.next, read.extent);
        self.held.insert(read.extent, (self.next, read.minute, false));
        self.next += 1;
        self.evict();
        false
    }
}

/// The cache's own policy, evicting as the cache does: from 95 down to 90 % of what it may hold.
struct Own {
    extents: usize,
    clock: Clock,
    minute: u64,
    ghosts: Ghosts,
    /// In the order of names: the same on every machine.
    held: BTreeMap<u64, Standing>,
}

impl Own {
    fn new(extents: usize) -> Self {
        let cap = extents as u64;
        let (clock, ghosts) = (Clock::new(cap), Ghosts::new(cap));
        Self { extents, clock, minute: 0, ghosts, held: BTreeMap::new() }
    }

    fn key(extent: u64) -> u64 {
        key(extent.to_le_bytes(), 0)
    }

    fn evict(&mut self) {
        if self.held.len() <= self.extents * 95 / 100 {
            return;
        }
        for _ in 0..ROUNDS {
            let over = self.held.len().saturating_sub(self.extents * 90 / 100);
            for gone in choose(self, &self.clock, over as u64) {
                let standing = self.held.remove(&gone);
                if standing.is_some_and(|standing| standing.tier() == Tier::Probation) {
                    self.ghosts.add(Self::key(gone));
                }
            }
        }
    }
}

impl Extents for Own {
    type Id = u64;

    fn each(&self, see: &mut dyn FnMut(u64, &Standing, u64)) {
        for (extent, standing) in &self.held {
            see(*extent, standing, 1);
        }
    }
}

impl Policy for Own {
    fn read(&mut self, read: Read) -> bool {
        while self.minute < read.minute {
            self.clock.advance();
            self.minute += 1;
        }
        if let Some(standing) = self.held.get(&read.extent) {
            standing.hit(&self.clock);
            return true;
        }
        let standing = Standing::default();
        self.clock.place(&standing, self.ghosts.tier(Self::key(read.extent)));
        // The miss ends with a hit of what was just filled.
        standing.hit(&self.clock);
        self.held.insert(read.extent, standing);
        self.evict();
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_s_policy_beats_lru_and_fifo_on_both_traces() {
        let rows = run(1);
        let ratio = |trace: &str, percent: u64, policy: &str| {
            let found = rows.iter().find(|r| (r.trace, r.cache_percent, r.policy) == (trace, percent, policy));
            found.unwrap().ratio()
        };
        for (trace, percent) in [("zipf", 5), ("zipf", 10), ("scan", 5), ("scan", 10), ("scan", 30)] {
            let own = ratio(trace, percent, "Penstock");
            assert!(own > ratio(trace, percent, "LRU") && own > ratio(trace, percent, "FIFO"), "{trace} {percent}");
        }
    }
}
