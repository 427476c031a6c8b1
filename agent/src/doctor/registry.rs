//! Whether a registry can be reached at all.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::check::Check;

/// Longest time for a connection; what takes longer is as good as not there.
const DEADLINE: Duration = Duration::from_secs(10);
/// Where registries answer unless said otherwise.
const PORT: u16 = 443;

/// What was seen.
#[derive(Debug, Clone)]
pub(super) struct Registry {
    /// Host and port.
    pub(super) address: String,
    /// How long the connection took to be made, or why there is none.
    pub(super) connected: Result<Duration, String>,
}

pub(super) async fn look(host: Option<&str>) -> Option<Registry> {
    let address = address(host?);
    let begun = Instant::now();
    let connecting = tokio::time::timeout(DEADLINE, TcpStream::connect(&address)).await;
    let connected = match connecting {
        Ok(Ok(_)) => Ok(begun.elapsed()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no connection within {} s", DEADLINE.as_secs())),
    };
    Some(Registry { address, connected })
}

/// `host` with its port: its own, or that of registries.
pub(super) fn address(host: &str) -> String {
    let after_name = host.rsplit(']').next().unwrap_or(host);
    if after_name.contains(':') { host.to_owned() } else { format!("{host}:{PORT}") }
}

pub(super) fn judge(registry: Option<&Registry>) -> Check {
    let name = "registry";
    match registry.map(|registry| (&registry.address, &registry.connected)) {
        None => Check::skipped(name, "none was named with --registry"),
        Some((address, Ok(took))) => {
            Check::ok(name, format!("{address} took a connection within {} ms", took.as_millis() + 1))
        }
        Some((address, Err(reason))) => {
            let next = "check the name, the network, and fetch.proxy; hosts.toml may name a mirror instead";
            Check::failed(name, format!("{address}: {reason}"), next)
        }
    }
}
