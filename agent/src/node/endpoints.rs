//! The fetcher's endpoints as the admin API shows them.

use penstock_api as api;
use penstock_fetcher::{EndpointState, EndpointStatus, RegistryStatus};

/// Why only what is cached can be served, of some registries at least: nobody who has their content answered when last asked. `None` when that is not so.
pub(super) fn degraded(all: &[RegistryStatus]) -> Option<String> {
    let is_away = |one: &&RegistryStatus| {
        let mut pulls = one.endpoints.iter().filter(|endpoint| endpoint.capabilities.contains(&"pull")).peekable();
        pulls.peek().is_some() && pulls.all(|endpoint| endpoint.state != EndpointState::Closed)
    };
    let away: Vec<&str> = all.iter().filter(is_away).map(|one| one.registry.as_str()).collect();
    let (first, more) = away.split_first()?;
    let others = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    Some(format!(
        "nobody answered for {first}{others} when last asked; what is cached is served (`penstock endpoints` says more)"
    ))
}

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
        delay_seconds: status.delay.map(|time| time.as_secs_f64()),
        bytes_per_second: status.bytes_per_second,
        allowed_bytes: status.allowed_bytes,
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
