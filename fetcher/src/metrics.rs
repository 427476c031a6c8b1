//! What the fetcher counts. Names are registered as they are: the registry handed in carries the prefix.

mod endpoint;

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

use crate::{Provider, failure::Class};

pub(crate) use endpoint::EndpointMetrics;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// A range of a blob.
    Blob,
    /// A manifest or an index.
    Manifest,
    /// A token.
    Token,
}

impl EncodeLabelValue for Purpose {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Blob => "blob",
            Self::Manifest => "manifest",
            Self::Token => "token",
        };
        name.encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct For {
    purpose: Purpose,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    class: Class,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct By {
    provider: &'static str,
}

/// The fetcher's counters, shared by its parts.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: Family<For, Counter>,
    endpoints: endpoint::Families,
    failures: Family<Of, Counter>,
    /// Bytes of blobs received.
    pub(crate) received_bytes: Counter,
    /// Further tries after a failure.
    pub(crate) retries: Counter,
    /// Reads that went into another read's request.
    pub(crate) joined: Counter,
    /// Addresses learnt from redirects.
    pub(crate) redirects: Counter,
    /// Tokens and passwords obtained.
    pub(crate) renewals: Counter,
    refusals: Family<By, Counter>,
    /// Ranges that a reader found to be wrong.
    pub(crate) rejects: Counter,
    /// Second requests for the same bytes, because the first was slow.
    pub(crate) hedges: Counter,
    /// Bytes that those asked for.
    pub(crate) hedged_bytes: Counter,
    /// Requests in flight.
    pub(crate) requests_in_flight: Gauge,
    /// Bytes in flight.
    pub(crate) in_flight_bytes: Gauge,
    /// Seconds from asking for a range to having it, without the wait for the budget.
    pub(crate) fetch_seconds: Histogram,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            failures: Family::default(),
            received_bytes: Counter::default(),
            retries: Counter::default(),
            joined: Counter::default(),
            redirects: Counter::default(),
            renewals: Counter::default(),
            refusals: Family::default(),
            rejects: Counter::default(),
            hedges: Counter::default(),
            hedged_bytes: Counter::default(),
            endpoints: endpoint::Families::default(),
            requests_in_flight: Gauge::default(),
            in_flight_bytes: Gauge::default(),
            // 1 ms to 32 s
            fetch_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
        };
        registry.register("requests", "HTTP requests sent", metrics.requests.clone());
        registry.register("failures", "Tries that failed, by class", metrics.failures.clone());
        registry.register("received_bytes", "Bytes of blobs received", metrics.received_bytes.clone());
        registry.register("retries", "Further tries after a failure", metrics.retries.clone());
        registry.register("joined_reads", "Reads that shared another read's request", metrics.joined.clone());
        registry.register("redirects", "Blob addresses learnt from redirects", metrics.redirects.clone());
        registry.register("credential_renewals", "Tokens and passwords obtained", metrics.renewals.clone());
        let refusals = metrics.refusals.clone();
        registry.register("credential_refusals", "Times that credentials were refused, by their provider", refusals);
        registry.register("rejected_ranges", "Ranges that their reader found to be wrong", metrics.rejects.clone());
        registry.register("hedges", "Second requests because the first was slow", metrics.hedges.clone());
        registry.register("hedged_bytes", "Bytes asked for by second requests", metrics.hedged_bytes.clone());
        metrics.endpoints.register(registry);
        registry.register("requests_in_flight", "HTTP requests in flight", metrics.requests_in_flight.clone());
        registry.register("in_flight_bytes", "Bytes asked for and not handed out", metrics.in_flight_bytes.clone());
        registry.register(
            "fetch_seconds",
            "Time of one ranged GET, budget wait excluded",
            metrics.fetch_seconds.clone(),
        );
        metrics
    }

    /// Those of one endpoint.
    pub(crate) fn of_endpoint(&self, host: &str) -> EndpointMetrics {
        self.endpoints.of(host)
    }

    pub(crate) fn sent(&self, purpose: Purpose) {
        self.requests.get_or_create(&For { purpose }).inc();
    }

    pub(crate) fn refused(&self, provider: Provider) {
        self.refusals.get_or_create(&By { provider: provider.name() }).inc();
    }

    pub(crate) fn failed(&self, class: Class) {
        self.failures.get_or_create(&Of { class }).inc();
    }
}
