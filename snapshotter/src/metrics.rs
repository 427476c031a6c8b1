//! What the snapshotter counts. Names are registered as they are: the registry handed in carries the prefix.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tonic::Code;

use crate::{
    record::{Kind, Record},
    service::code_name,
};

/// One method of containerd's service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Method {
    Prepare,
    View,
    Mounts,
    Commit,
    Remove,
    Stat,
    Update,
    List,
    Usage,
    Cleanup,
}

impl EncodeLabelValue for Method {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Prepare => "prepare",
            Self::View => "view",
            Self::Mounts => "mounts",
            Self::Commit => "commit",
            Self::Remove => "remove",
            Self::Stat => "stat",
            Self::Update => "update",
            Self::List => "list",
            Self::Usage => "usage",
            Self::Cleanup => "cleanup",
        };
        name.encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: Method,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    method: Method,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sort {
    kind: &'static str,
    lazy: &'static str,
}

/// The snapshotter's counters.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Family<Answered, Counter>,
    seconds: Family<Of, Histogram, fn() -> Histogram>,
    snapshots: Family<Sort, Gauge<u64, AtomicU64>>,
    /// Layers that were committed without being fetched.
    pub(crate) lazy_layers: Counter,
    /// Layers that containerd had to fetch and unpack.
    pub(crate) eager_layers: Counter,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        // 1 ms to 65 s: a Stat to a Prepare that waits for a registry.
        let seconds =
            Family::new_with_constructor((|| Histogram::new(exponential_buckets(0.001, 2.0, 17))) as fn() -> _);
        let metrics = Self {
            requests: Family::default(),
            seconds,
            snapshots: Family::default(),
            lazy_layers: Counter::default(),
            eager_layers: Counter::default(),
        };
        registry.register("requests", "Calls of containerd by their answer", metrics.requests.clone());
        registry.register("request_seconds", "Time until calls of containerd were answered", metrics.seconds.clone());
        registry.register("snapshots", "Snapshots there are", metrics.snapshots.clone());
        registry.register("lazy_layers", "Layers committed without being fetched", metrics.lazy_layers.clone());
        registry.register("eager_layers", "Layers left to containerd to unpack", metrics.eager_layers.clone());
        metrics
    }

    pub(crate) fn answered(&self, method: Method, code: Code, seconds: f64) {
        self.requests.get_or_create(&Answered { method, code: code_name(code) }).inc();
        self.seconds.get_or_create(&Of { method }).observe(seconds);
    }

    pub(crate) fn came(&self, record: &Record) {
        self.snapshots.get_or_create(&sort(record)).inc();
    }

    pub(crate) fn went(&self, record: &Record) {
        self.snapshots.get_or_create(&sort(record)).dec();
    }
}

const fn sort(record: &Record) -> Sort {
    let kind = match record.kind {
        Kind::View => "view",
        Kind::Active => "active",
        Kind::Committed => "committed",
    };
    Sort { kind, lazy: if record.is_lazy() { "true" } else { "false" } }
}
