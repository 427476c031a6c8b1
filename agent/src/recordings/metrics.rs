//! What recordings count.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// Where a recording was had from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Origin {
    from: &'static str,
}

/// The counters of recordings.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    replays: Family<Origin, Counter>,
    pub(super) replayed_bytes: Counter,
    pub(super) used_bytes: Counter,
    pub(super) diverged: Counter,
    pub(super) refused: Counter,
    pub(super) kept: Counter,
    pub(super) filled_bytes: Counter,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let counter = |registry: &mut Registry, name: &str, what: &str| {
            let counter = Counter::default();
            registry.register(name, what, counter.clone());
            counter
        };
        let replays = Family::default();
        registry.register("replays", "Starts along a recording, by where it was had from", replays.clone());
        Self {
            replays,
            replayed_bytes: counter(registry, "replayed_bytes", "Bytes fetched early because a recording has them"),
            used_bytes: counter(registry, "used_bytes", "Bytes of replayed recordings that the start then needed"),
            diverged: counter(registry, "diverged", "Replays stopped because the program did something else"),
            refused: counter(registry, "refused", "Recordings that are not of their image, or damaged"),
            kept: counter(registry, "kept", "Recordings written to the state directory"),
            filled_bytes: counter(registry, "filled_bytes", "Bytes fetched to complete images that are read widely"),
        }
    }

    pub(super) fn replay(&self, from: &'static str) {
        self.replays.get_or_create(&Origin { from }).inc();
    }
}
