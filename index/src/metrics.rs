//! What is counted. Names are registered as they are: the registry handed in carries the prefix.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// The counters of a [`crate::Verified`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    /// Bytes compared with a list and found right.
    pub(crate) verified_bytes: Counter,
    /// Chunks that were not what their list says.
    pub(crate) wrong_chunks: Counter,
    /// Bytes of lists fetched, also again.
    pub(crate) list_bytes: Counter,
    /// Blobs whose reads are verified now.
    pub(crate) listed_blobs: Gauge,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "verified_bytes",
            "Bytes compared with an index before they were passed on",
            metrics.verified_bytes.clone(),
        );
        registry.register(
            "wrong_chunks",
            "Chunks that were not what their index says; they were thrown away",
            metrics.wrong_chunks.clone(),
        );
        registry.register("list_fetched_bytes", "Bytes of indexes fetched", metrics.list_bytes.clone());
        registry.register("listed_blobs", "Blobs whose reads are verified by an index", metrics.listed_blobs.clone());
        metrics
    }
}
