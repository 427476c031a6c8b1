//! What is counted. Names are registered as they are: the registry handed in carries the prefix.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// The counters of an [`super::Unpacked`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    /// Bytes decoded and found right.
    pub(crate) decoded_bytes: Counter,
    /// Frames that did not decode to what their index says.
    pub(crate) wrong_frames: Counter,
    /// Frames that were at hand from a read before.
    pub(crate) recent_frames: Counter,
    /// Decoders that began at the beginning of a run of pieces.
    pub(crate) passes: Counter,
    /// Layers that can be read now.
    pub(crate) layers: Gauge,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "decoded_bytes",
            "Bytes of layers decoded and verified before they were passed on",
            metrics.decoded_bytes.clone(),
        );
        registry.register(
            "wrong_frames",
            "Frames of layers that are not what their index says; they were thrown away",
            metrics.wrong_frames.clone(),
        );
        registry.register(
            "recent_frames",
            "Frames that were still in memory and were not decoded again",
            metrics.recent_frames.clone(),
        );
        registry.register(
            "passes",
            "Times that a layer which decodes only from its beginning was begun to be decoded",
            metrics.passes.clone(),
        );
        registry.register("layers", "Layers that are read by a layer index", metrics.layers.clone());
        metrics
    }
}
