//! What the agent itself counts. The parts register their own.

use penstock_api::{DeviceState, Memory};
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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabel {
    part: &'static str,
}

/// The agent's metrics.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    attachments: Family<StateLabel, Gauge>,
    memory_used: Family<PartLabel, Gauge>,
    memory_budget: Gauge,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        registry.register("build", "The agent's release", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let attachments = Family::default();
        registry.register("attachments", "Attachments by state", attachments.clone());
        let (memory_used, memory_budget) = (Family::default(), Gauge::default());
        registry.register(
            "memory_used_bytes",
            "Memory of indexes and buffers in use, at most, by part",
            memory_used.clone(),
        );
        registry.register("memory_budget_bytes", "Memory for all indexes and buffers", memory_budget.clone());
        Self { attachments, memory_used, memory_budget }
    }

    /// Takes over the present numbers, just before they are shown.
    pub(crate) fn set(&self, count: impl Fn(DeviceState) -> usize) {
        for (state, name) in STATES {
            let number = i64::try_from(count(state)).unwrap_or(i64::MAX);
            self.attachments.get_or_create(&StateLabel { state: name }).set(number);
        }
    }

    /// Takes over what memory is used for, just before it is shown.
    pub(crate) fn set_memory(&self, memory: &Memory) {
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.memory_budget.set(number(memory.budget_bytes));
        for part in &memory.parts {
            self.memory_used.get_or_create(&PartLabel { part: part.name.name() }).set(number(part.used_bytes));
        }
    }
}
