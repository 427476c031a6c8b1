//! What a device counts, and how a node's metrics show it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    DeviceId, Transport,
    latency::{self, Latencies, Tier},
    waits::Waiting,
};

/// The metrics of all devices of a node. Made once; clones share the same counters.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<DeviceLabels, Counter>,
    served: Family<DeviceLabels, Counter>,
    hits: Family<DeviceLabels, Counter>,
    misses: Family<DeviceLabels, Counter>,
    errors: Family<DeviceLabels, Counter>,
    asked: Family<DeviceLabels, Counter>,
    waited: Family<DeviceLabels, Counter<f64, AtomicU64>>,
    dropped: Family<DeviceLabels, Counter>,
    in_flight: Family<DeviceLabels, Gauge>,
    stalled: Family<DeviceLabels, Counter<f64, AtomicU64>>,
    seconds: latency::Node,
}

/// A node has few devices at a time, and a stopped one's series are removed: the label is bounded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeviceLabels {
    device: String,
    transport: String,
}

impl Metrics {
    /// Registers the metrics of devices. Call it once per registry.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            served: Family::default(),
            hits: Family::default(),
            misses: Family::default(),
            errors: Family::default(),
            asked: Family::default(),
            waited: Family::default(),
            dropped: Family::default(),
            in_flight: Family::default(),
            stalled: Family::default(),
            seconds: latency::Node::default(),
        };
        let m = &metrics;
        registry.register("requests", "Requests taken from the kernel", m.requests.clone());
        registry.register("served_bytes", "Bytes of the device given to the kernel", m.served.clone());
        registry.register("hits", "Reads answered from bytes on this node", m.hits.clone());
        registry.register("misses", "Reads that had to ask the source", m.misses.clone());
        registry.register("errors", "Requests answered with an error", m.errors.clone());
        registry.register("asked_bytes", "Bytes of blobs got from the source for misses", m.asked.clone());
        registry.register("waited_seconds", "Time that reads waited for the source, each counted", m.waited.clone());
        registry.register(
            "stalled_seconds",
            "Time in which at least one read waited for the source",
            m.stalled.clone(),
        );
        registry.register("dropped", "Requests answered EIO because nothing else answered them", m.dropped.clone());
        registry.register("in_flight", "Requests taken and not yet answered", m.in_flight.clone());
        registry.register("request_seconds", "Time from taking a read to answering it, by tier", m.seconds.clone());
        metrics
    }

    /// How long the reads of all devices took, of those that are gone too.
    #[must_use]
    pub fn latencies(&self) -> Latencies {
        self.seconds.read()
    }

    /// The counters of one device.
    pub(crate) fn device(&self, id: &DeviceId, transport: Transport) -> Arc<Counters> {
        let labels = DeviceLabels { device: id.to_string(), transport: transport.to_string() };
        Arc::new(Counters {
            requests: self.requests.get_or_create_owned(&labels),
            served: self.served.get_or_create_owned(&labels),
            hits: self.hits.get_or_create_owned(&labels),
            misses: self.misses.get_or_create_owned(&labels),
            errors: self.errors.get_or_create_owned(&labels),
            asked: self.asked.get_or_create_owned(&labels),
            waited: self.waited.get_or_create_owned(&labels),
            dropped: self.dropped.get_or_create_owned(&labels),
            in_flight: self.in_flight.get_or_create_owned(&labels),
            stalled: self.stalled.get_or_create_owned(&labels),
            seconds: self.seconds.add(),
            waiting: Waiting::default(),
            last_error: Mutex::new(None),
        })
    }

    /// Takes the series of a stopped device out.
    pub(crate) fn forget(&self, id: &DeviceId, transport: Transport) {
        let labels = DeviceLabels { device: id.to_string(), transport: transport.to_string() };
        for family in [&self.requests, &self.served, &self.hits, &self.misses, &self.errors, &self.asked, &self.dropped]
        {
            family.remove(&labels);
        }
        self.waited.remove(&labels);
        self.stalled.remove(&labels);
        self.in_flight.remove(&labels);
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// The counters of one device, shared by its queues and its offload.
#[derive(Debug)]
pub(crate) struct Counters {
    requests: Counter,
    served: Counter,
    hits: Counter,
    misses: Counter,
    errors: Counter,
    asked: Counter,
    waited: Counter<f64, AtomicU64>,
    dropped: Counter,
    in_flight: Gauge<i64, AtomicI64>,
    stalled: Counter<f64, AtomicU64>,
    seconds: latency::Kept,
    /// Who waits, and for what.
    pub(crate) waiting: Waiting,
    last_error: Mutex<Option<String>>,
}

impl Counters {
    pub(crate) fn taken(&self) {
        self.requests.inc();
        self.in_flight.inc();
    }

    pub(crate) fn answered(&self) {
        self.in_flight.dec();
    }

    pub(crate) fn failed(&self) {
        self.errors.inc();
    }

    pub(crate) fn dropped(&self) {
        self.dropped.inc();
    }

    pub(crate) fn asked(&self, bytes: u64) {
        self.asked.inc_by(bytes);
    }

    /// Readers waited so long for the source, whatever came of it.
    pub(crate) fn waited(&self, took: Duration) {
        self.waited.inc_by(took.as_secs_f64());
    }

    /// A read whose bytes the kernel took.
    pub(crate) fn read(&self, bytes: u64, tier: Tier, took: Duration) {
        self.served.inc_by(bytes);
        if tier.is_hit() { &self.hits } else { &self.misses }.inc();
        self.seconds.add(tier, took);
    }

    /// At least one reader waited for so long.
    pub(crate) fn stalled(&self, time: Duration) {
        self.stalled.inc_by(time.as_secs_f64());
    }

    /// How long its reads took.
    pub(crate) fn latencies(&self) -> Latencies {
        self.seconds.read()
    }

    /// Remembers why a read failed, for [`Stats::last_error`].
    pub(crate) fn explain(&self, error: String) {
        *self.last_error.lock() = Some(error);
    }

    pub(crate) fn stats(&self) -> Stats {
        // First: when none is open, the others have all that was read.
        let in_flight = u64::try_from(self.in_flight.get()).unwrap_or(0);
        Stats {
            requests: self.requests.get(),
            served_bytes: self.served.get(),
            hits: self.hits.get(),
            misses: self.misses.get(),
            errors: self.errors.get(),
            asked_bytes: self.asked.get(),
            waited: Duration::try_from_secs_f64(self.waited.get()).unwrap_or(Duration::MAX),
            stalled: self.waiting.stalled(),
            dropped: self.dropped.get(),
            in_flight,
            last_error: self.last_error.lock().clone(),
        }
    }
}

/// What a device did since it started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Requests taken from the kernel, of every kind.
    pub requests: u64,
    /// Bytes given to the kernel.
    pub served_bytes: u64,
    /// Reads answered from bytes on this node.
    pub hits: u64,
    /// Reads that had to ask the source.
    pub misses: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Bytes of blobs got from the source for misses.
    pub asked_bytes: u64,
    /// How long reads waited for the source, each counted: two that wait a second for the same bytes have waited two.
    pub waited: Duration,
    /// How long at least one read waited for the source.
    pub stalled: Duration,
    /// Requests answered EIO because the code that had them lost them: always 0, or there is a bug to report.
    pub dropped: u64,
    /// Requests taken and not yet answered.
    pub in_flight: u64,
    /// Why the last failed read failed.
    pub last_error: Option<String>,
}
