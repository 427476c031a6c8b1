//! Endpoints as a table.

use penstock_api::{Breaker, Endpoint, RegistryHosts, Role};

use crate::output::{Table, escape, size};

/// Whom registries' content is asked for, a line for each endpoint in the order in which they are asked.
pub(in crate::cli) fn endpoints(all: &[RegistryHosts]) -> String {
    if all.is_empty() {
        return "no registry has been asked yet; `penstock attach REFERENCE` asks one\n".to_owned();
    }
    let titles = [
        "REGISTRY",
        "ENDPOINT",
        "ROLE",
        "STATE",
        ">LATENCY",
        ">MB/S",
        ">REQUESTS",
        ">FETCHED",
        ">FAILED",
        ">WRONG",
        ">HEDGES",
    ];
    let mut table = Table::new(&titles);
    let mut notes = String::new();
    for registry in all {
        if registry.endpoints.is_empty() {
            // Attachments that were restored fetch nothing before somebody reads what is not cached.
            let text = format!("{}: nobody has been asked since the agent started", registry.registry);
            notes.push_str(&format!("{}\n", escape(&text)));
        }
        for endpoint in &registry.endpoints {
            table.row([
                registry.registry.clone(),
                endpoint.url.clone(),
                role(endpoint.role).to_owned(),
                state(endpoint),
                endpoint.latency_seconds.map(millis).unwrap_or_default(),
                endpoint.bytes_per_second.map(|rate| (rate / 1_000_000).to_string()).unwrap_or_default(),
                endpoint.requests.to_string(),
                size(endpoint.received_bytes),
                endpoint.failures.to_string(),
                endpoint.rejects.to_string(),
                endpoint.hedges.to_string(),
            ]);
            let failure = endpoint.last_failure.as_ref().filter(|_| endpoint.breaker != Breaker::Closed);
            if let Some(failure) = failure {
                notes.push_str(&format!("{}\n", escape(&format!("{}: {failure}", endpoint.url))));
            }
        }
        if let Some(fault) = &registry.hosts_fault {
            let text = format!("{}: its hosts.toml is not used: {fault}", registry.registry);
            notes.push_str(&format!("{}\n", escape(&text)));
        }
    }
    if all.iter().all(|registry| registry.endpoints.is_empty()) { notes } else { format!("{table}{notes}") }
}

const fn role(role: Role) -> &'static str {
    match role {
        Role::Mirror => "mirror",
        Role::Server => "server",
    }
}

fn state(endpoint: &Endpoint) -> String {
    match (endpoint.breaker, endpoint.retry_in_seconds, endpoint.quiet_seconds) {
        (Breaker::Open, Some(wait), _) => format!("broken, tried in {wait:.0} s"),
        (Breaker::Open, None, _) => "broken".to_owned(),
        (Breaker::HalfOpen, ..) => "being tried".to_owned(),
        (Breaker::Closed, _, Some(wait)) => format!("quiet for {wait:.0} s"),
        (Breaker::Closed, ..) if endpoint.stalling => "stalling".to_owned(),
        (Breaker::Closed, ..) => "good".to_owned(),
    }
}

fn millis(seconds: f64) -> String {
    format!("{:.0} ms", seconds * 1000.0)
}
