//! The fetcher's endpoints as the admin API shows them.

use penstock_api as api;
use penstock_fetcher::{EndpointState, EndpointStatus, RegistryStatus};

pub(super) fn registry(status: RegistryStatus) -> api::RegistryHosts {
    api::RegistryHosts {
        registry: status.registry,
        hosts_dir: status.hosts_dir,
        hosts_fault: status.hosts_fault,
        endpoints: status.endpoints.into_iter().map(endpoint).collect(),
    }
}

fn endpoint(status: EndpointStatus) -> api::Endpoint {
    api::Endpoint {
        url: status.url,
        role: if status.is_server { api::Role::Server } else { api::Role::Mirror },
        capabilities: status.capabilities.into_iter().map(str::to_owned).collect(),
        breaker: match status.state {
            EndpointState::Closed => api::Breaker::Closed,
            EndpointState::Open => api::Breaker::Open,
            EndpointState::HalfOpen => api::Breaker::HalfOpen,
        },
        retry_in_seconds: status.retry_in.map(|time| time.as_secs_f64()),
        quiet_seconds: status.quiet.map(|time| time.as_secs_f64()),
        stalling: status.is_stalling,
        latency_seconds: status.latency.map(|time| time.as_secs_f64()),
        hedge_after_seconds: status.hedge_after.as_secs_f64(),
        in_flight: status.in_flight,
        requests: status.fetched.requests,
        hedges: status.hedges,
        received_bytes: status.fetched.bytes,
        failures: status.fetched.failures,
        rejects: status.fetched.rejects,
        last_failure: status.last_failure,
    }
}
