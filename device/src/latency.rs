//! How long reads take, by where their bytes came from: buckets of atomics on a logarithmic scale. Counting takes three relaxed additions
//! at most, no lock and no memory.
//!
//! A bucket is a quarter of an octave wide, from about a microsecond to about a minute: a percentile read from it is wrong by an eighth at most.

use std::{
    array, fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder, MetricEncoder},
    metrics::{MetricType, TypedMetric},
};

/// The first bucket holds what takes less than 2^10 ns, a microsecond: below that a system call is measured, not a read.
const FIRST: u32 = 10;
/// The last bucket holds what takes 2^36 ns (69 s) and more: more than twice the usual deadline.
const LAST: u32 = 36;
/// Buckets to an octave.
const PARTS: usize = 4;
/// What is shorter, the octaves, what is longer.
const BUCKETS: usize = (LAST - FIRST) as usize * PARTS + 2;

/// Where the bytes of a read came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// All of them were in this machine's memory.
    Memory,
    /// All of them were on this node, and a disk was waited for.
    Disk,
    /// Some came from a mirror.
    Mirror,
    /// Some came from the registry that the reference names.
    Origin,
    /// Something else was waited for, such as a part of a map that was being made; or who gave them is not known any more.
    Other,
}

impl Tier {
    /// All of them, the nearest first.
    pub const ALL: [Self; 5] = [Self::Memory, Self::Disk, Self::Mirror, Self::Origin, Self::Other];

    /// As labels and JSON have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Mirror => "mirror",
            Self::Origin => "origin",
            Self::Other => "other",
        }
    }

    /// Whether nothing but this node was needed.
    pub(crate) const fn is_hit(self) -> bool {
        matches!(self, Self::Memory | Self::Disk)
    }
}

impl EncodeLabelValue for Tier {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.name().encode(encoder)
    }
}

/// The bucket of what took so many nanoseconds.
fn bucket(nanos: u64) -> usize {
    if nanos < 1 << FIRST {
        return 0;
    }
    let octave = nanos.ilog2();
    if octave >= LAST {
        return BUCKETS - 1;
    }
    let part = usize::try_from((nanos >> (octave - PARTS.ilog2())) % PARTS as u64).unwrap_or(0);
    1 + (octave - FIRST) as usize * PARTS + part
}

/// The nanoseconds from which on something is in a bucket.
const fn lower(bucket: usize) -> u64 {
    if bucket == 0 {
        return 0;
    }
    let (octave, part) = ((bucket - 1) / PARTS, (bucket - 1) % PARTS);
    (1 << FIRST << octave) / PARTS as u64 * (PARTS + part) as u64
}

/// The times of one tier.
#[derive(Debug)]
struct Times {
    counts: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

/// The times of one device, by tier: about 4 KiB.
#[derive(Debug)]
pub(crate) struct Clocks([Times; Tier::ALL.len()]);

impl Clocks {
    pub(crate) fn new() -> Self {
        let times = |_| Times { counts: array::from_fn(|_| AtomicU64::new(0)), nanos: AtomicU64::new(0) };
        Self(array::from_fn(times))
    }

    /// A read took so long.
    pub(crate) fn add(&self, tier: Tier, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let times = &self.0[tier as usize];
        times.counts[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        times.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// How it stands.
    pub(crate) fn read(&self) -> Latencies {
        let counted = |times: &Times| Counted {
            counts: times.counts.each_ref().map(|count| count.load(Ordering::Relaxed)),
            nanos: times.nanos.load(Ordering::Relaxed),
        };
        Latencies(self.0.each_ref().map(counted))
    }
}

/// The reads of one tier, as they were at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counted {
    counts: [u64; BUCKETS],
    nanos: u64,
}

impl Counted {
    const fn none() -> Self {
        Self { counts: [0; BUCKETS], nanos: 0 }
    }

    fn reads(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The time that so many of a thousand reads stay below, spread evenly over its bucket. `None` without reads.
    fn quantile(&self, per_mille: u64) -> Option<Duration> {
        let reads = self.reads();
        let rank = (u128::from(reads) * u128::from(per_mille)).div_ceil(1000).max(1);
        let mut before = 0_u128;
        for (nth, &count) in self.counts.iter().enumerate() {
            let behind = before + u128::from(count);
            if rank <= behind && count > 0 {
                let from = lower(nth);
                // Of what is longer than the scale it is known only that it is.
                let width = if nth + 1 < BUCKETS { lower(nth + 1) - from } else { 0 };
                let into = u128::from(width) * (rank - before) / u128::from(count);
                return Some(Duration::from_nanos(from + u64::try_from(into).unwrap_or(u64::MAX)));
            }
            before = behind;
        }
        None
    }

    fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
        self.nanos = self.nanos.saturating_add(other.nanos);
    }
}

/// How long the reads of each tier took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latencies([Counted; Tier::ALL.len()]);

/// How long the reads of one tier took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Where their bytes came from.
    pub tier: Tier,
    /// How many there were.
    pub reads: u64,
    /// How long all of them took together.
    pub took: Duration,
    /// Half of them took no longer.
    pub p50: Duration,
    /// 99 of 100 took no longer.
    pub p99: Duration,
    /// 999 of 1000 took no longer.
    pub p999: Duration,
}

impl Latencies {
    const fn none() -> Self {
        Self([const { Counted::none() }; Tier::ALL.len()])
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, counted)| sum.add(counted));
    }

    /// The tiers that had reads, the nearest first.
    #[must_use]
    pub fn by_tier(&self) -> Vec<Latency> {
        let latency = |(tier, counted): (Tier, &Counted)| {
            let reads = counted.reads();
            let [p50, p99, p999] = [500, 990, 999].map(|per_mille| counted.quantile(per_mille));
            let took = Duration::from_nanos(counted.nanos);
            Some(Latency { tier, reads, took, p50: p50?, p99: p99?, p999: p999? })
        };
        Tier::ALL.into_iter().zip(&self.0).filter_map(latency).collect()
    }
}

/// The times of all devices of a node: of those there are, and of those there were.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node(Arc<Mutex<Devices>>);

#[derive(Debug)]
struct Devices {
    here: Vec<Weak<Clocks>>,
    gone: Latencies,
}

impl Default for Devices {
    fn default() -> Self {
        Self { here: Vec::new(), gone: Latencies::none() }
    }
}

impl Node {
    /// From now on these are counted, also once their device is gone.
    pub(crate) fn add(&self) -> Kept {
        let clocks = Arc::new(Clocks::new());
        self.0.lock().here.push(Arc::downgrade(&clocks));
        Kept { clocks, node: self.clone() }
    }

    /// Those of all devices together.
    pub(crate) fn read(&self) -> Latencies {
        let devices = self.0.lock();
        let mut sum = devices.gone.clone();
        devices.here.iter().filter_map(Weak::upgrade).for_each(|clocks| sum.add(&clocks.read()));
        sum
    }
}

/// The times of one device, which go into those of devices that are gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Kept {
    clocks: Arc<Clocks>,
    node: Node,
}

impl std::ops::Deref for Kept {
    type Target = Clocks;

    fn deref(&self) -> &Clocks {
        &self.clocks
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut devices = self.node.0.lock();
        devices.here.retain(|clocks| !Weak::ptr_eq(clocks, &Arc::downgrade(&self.clocks)));
        devices.gone.add(&self.clocks.read());
    }
}

/// The label of the node's histograms.
#[derive(Debug, EncodeLabelSet)]
struct TierLabel {
    tier: Tier,
}

impl TypedMetric for Node {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Node {
    /// A bound for each octave: Prometheus finds percentiles between them by itself.
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (tier, counted) in Tier::ALL.into_iter().zip(&self.read().0) {
            let octave = |nth: usize| {
                let counts = if nth == 0 { 0..1 } else { 1 + (nth - 1) * PARTS..1 + nth * PARTS };
                let bound = Duration::from_nanos(1 << FIRST << nth).as_secs_f64();
                (bound, counted.counts[counts].iter().sum())
            };
            let mut buckets: Vec<(f64, u64)> = (0..=(LAST - FIRST) as usize).map(octave).collect();
            buckets.push((f64::INFINITY, counted.counts[BUCKETS - 1]));
            let seconds = Duration::from_nanos(counted.nanos).as_secs_f64();
            let label = TierLabel { tier };
            let mut encoder = encoder.encode_family(&label)?;
            encoder.encode_histogram::<TierLabel>(seconds, counted.reads(), &buckets, None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        for nth in 1..BUCKETS {
            assert_eq!((bucket(lower(nth) - 1), bucket(lower(nth))), (nth - 1, nth));
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn a_percentile_is_wrong_by_an_eighth_at_most() {
        for nanos in (11..35).flat_map(|octave| [1_u64 << octave, 3 << (octave - 1), (2 << octave) - 1]) {
            let clocks = Clocks::new();
            (0..1000).for_each(|_| clocks.add(Tier::Disk, Duration::from_nanos(nanos)));
            let [latency] = clocks.read().by_tier()[..] else { panic!("one tier was used") };
            assert_eq!((latency.tier, latency.reads), (Tier::Disk, 1000));
            let p50 = u64::try_from(latency.p50.as_nanos()).unwrap();
            assert!(p50.abs_diff(nanos) <= nanos / 8 + 1, "{p50} for {nanos}");
        }
    }

    #[test]
    fn percentiles_tell_the_usual_from_the_rare() {
        let clocks = Clocks::new();
        for n in 0..1000 {
            let took = if n < 985 {
                20
            } else if n < 998 {
                1000
            } else {
                900_000
            };
            clocks.add(Tier::Origin, Duration::from_micros(took));
        }
        let [latency] = clocks.read().by_tier()[..] else { panic!("one tier was used") };
        let near = |time: Duration, micros: u128| time.as_micros().abs_diff(micros) <= micros / 4;
        assert!(near(latency.p50, 20) && near(latency.p99, 1000) && near(latency.p999, 900_000), "{latency:?}");
    }

    #[test]
    fn what_is_off_the_scale_is_still_counted() {
        let clocks = Clocks::new();
        clocks.add(Tier::Other, Duration::MAX);
        let [latency] = clocks.read().by_tier()[..] else { panic!("one tier was used") };
        assert_eq!((latency.reads, latency.p999), (1, Duration::from_nanos(1 << LAST)));
    }

    #[test]
    fn a_device_that_goes_leaves_its_reads_to_the_node() {
        let node = Node::default();
        let (one, other) = (node.add(), node.add());
        one.add(Tier::Memory, Duration::from_micros(3));
        other.add(Tier::Memory, Duration::from_micros(3));
        let before = node.read();
        assert_eq!(before.by_tier()[0].reads, 2);
        drop(one);
        assert_eq!(node.read(), before);
        assert_eq!(node.0.lock().here.len(), 1);
    }

    #[test]
    fn the_exposition_has_cumulative_buckets_with_every_read_in_the_last() {
        let (node, mut registry) = (Node::default(), Registry::default());
        registry.register("request_seconds", "Time of reads", node.clone());
        let kept = node.add();
        for took in [Duration::from_nanos(500), Duration::from_micros(3), Duration::MAX] {
            kept.add(Tier::Mirror, took);
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let bucket = |le: &str| {
            let start = format!("request_seconds_bucket{{le=\"{le}\",tier=\"mirror\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&start)).map(|count| count.parse::<u64>().unwrap())
        };
        assert_eq!(
            (bucket("0.000001024"), bucket("0.000004096"), bucket("+Inf")),
            (Some(1), Some(2), Some(3)),
            "{text}"
        );
        assert!(text.contains("request_seconds_count{tier=\"mirror\"} 3"), "{text}");
    }
}
