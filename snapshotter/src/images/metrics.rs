//! What the proxy counts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

/// The metrics. Methods have a bounded set of names.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    requests: Family<MethodLabel, Counter>,
    pub(super) connections: Gauge,
    /// Connections of users who may not connect.
    pub(super) strangers: Counter,
    /// Calls that found no containerd, or lost it.
    pub(super) unavailable: Counter,
    /// Pulls whose credentials were heard.
    pub(super) heard: Counter,
    /// Pulls and removals that could not be read.
    pub(super) unread: Counter,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let this = Self::default();
        registry.register("requests", "Calls of the image service that were forwarded", this.requests.clone());
        registry.register("connections", "Connections to the image-service proxy", this.connections.clone());
        registry.register("strangers", "Connections of users who may not use the socket", this.strangers.clone());
        registry.register(
            "unavailable",
            "Calls answered UNAVAILABLE because containerd was not there",
            this.unavailable.clone(),
        );
        registry.register("credentials_heard", "Pulls that brought credentials", this.heard.clone());
        registry.register("unread", "Pulls and removals forwarded without being understood", this.unread.clone());
        this
    }

    pub(super) fn asked(&self, method: &'static str) {
        self.requests.get_or_create(&MethodLabel { method }).inc();
    }
}
