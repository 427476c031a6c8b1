//! What is counted of each endpoint, by its host.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Most hosts with series of their own; those beyond share one, `other`. A node has a handful.
const MAX_HOSTS: usize = 64;
/// The label of hosts beyond [`MAX_HOSTS`].
const OTHER: &str = "other";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct At {
    endpoint: String,
}

/// The series of all endpoints.
#[derive(Debug, Clone, Default)]
pub(super) struct Families {
    hosts: Arc<Mutex<BTreeSet<String>>>,
    requests: Family<At, Counter>,
    failures: Family<At, Counter>,
    received_bytes: Family<At, Counter>,
    rejects: Family<At, Counter>,
    broken: Family<At, Gauge>,
    bytes_per_second: Family<At, Gauge>,
    allowed_bytes: Family<At, Gauge>,
}

/// The series of one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct EndpointMetrics {
    /// Requests sent there, or where it redirected to.
    pub(crate) requests: Counter,
    /// Tries that failed.
    pub(crate) failures: Counter,
    /// Bytes of blobs received.
    pub(crate) received_bytes: Counter,
    /// Ranges that turned out to be wrong.
    pub(crate) rejects: Counter,
    /// 1 while it is passed over.
    pub(crate) broken: Gauge,
    /// The most that was received from it lately.
    pub(crate) bytes_per_second: Gauge,
    /// Bytes that it may have in flight.
    pub(crate) allowed_bytes: Gauge,
}

impl Families {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("endpoint_requests", "Requests by endpoint", self.requests.clone());
        registry.register("endpoint_failures", "Tries that failed, by endpoint", self.failures.clone());
        registry.register("endpoint_received_bytes", "Bytes of blobs by endpoint", self.received_bytes.clone());
        registry.register("endpoint_rejected_ranges", "Ranges that were wrong, by endpoint", self.rejects.clone());
        registry.register("endpoint_broken", "1 while an endpoint is passed over", self.broken.clone());
        registry.register(
            "endpoint_bytes_per_second",
            "The most that was received from an endpoint lately",
            self.bytes_per_second.clone(),
        );
        registry.register(
            "endpoint_allowed_bytes",
            "Bytes that an endpoint may have in flight",
            self.allowed_bytes.clone(),
        );
    }

    pub(super) fn of(&self, host: &str) -> EndpointMetrics {
        let mut hosts = self.hosts.lock();
        let own = hosts.contains(host) || (hosts.len() < MAX_HOSTS && hosts.insert(host.to_owned()));
        let at = At { endpoint: if own { host } else { OTHER }.to_owned() };
        EndpointMetrics {
            requests: self.requests.get_or_create(&at).clone(),
            failures: self.failures.get_or_create(&at).clone(),
            received_bytes: self.received_bytes.get_or_create(&at).clone(),
            rejects: self.rejects.get_or_create(&at).clone(),
            broken: self.broken.get_or_create(&at).clone(),
            bytes_per_second: self.bytes_per_second.get_or_create(&at).clone(),
            allowed_bytes: self.allowed_bytes.get_or_create(&at).clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_beyond_the_bound_share_one_series() {
        let families = Families::default();
        for n in 0..MAX_HOSTS + 10 {
            families.of(&format!("r{n}.lan")).requests.inc();
        }
        families.of("r0.lan").requests.inc();
        assert_eq!(families.of("r0.lan").requests.get(), 2);
        assert_eq!(families.of(OTHER).requests.get(), 10);
    }
}
