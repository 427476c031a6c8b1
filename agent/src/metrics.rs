//! What the agent itself counts. The parts register their own.

use penstock_api::DeviceState;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

/// All states, so that each has a series from the start.
const STATES: [(DeviceState, &str); 4] = [
    (DeviceState::Attaching, "attaching"),
    (DeviceState::Attached, "attached"),
    (DeviceState::Detaching, "detaching"),
    (DeviceState::Failed, "failed"),
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// The agent's metrics.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    attachments: Family<StateLabel, Gauge>,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        registry.register("build", "The agent's release", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let attachments = Family::default();
        registry.register("attachments", "Attachments by state", attachments.clone());
        Self { attachments }
    }

    /// Takes over the present numbers, just before they are shown.
    pub(crate) fn set(&self, count: impl Fn(DeviceState) -> usize) {
        for (state, name) in STATES {
            let number = i64::try_from(count(state)).unwrap_or(i64::MAX);
            self.attachments.get_or_create(&StateLabel { state: name }).set(number);
        }
    }
}
