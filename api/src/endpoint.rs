//! Whom this node asks for content: registries, and their mirrors.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whom the content of one registry is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RegistryHosts {
    /// The registry, as references name it.
    #[schema(example = "docker.io")]
    pub registry: String,
    /// The directory whose files say whom to ask; none when no such directory is there.
    #[schema(value_type = Option<String>)]
    pub hosts_dir: Option<PathBuf>,
    /// Why its files cannot be used. What they said before holds, else the registry itself is asked.
    pub hosts_fault: Option<String>,
    /// Whom to ask, in this order.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint, and what the agent lived to see with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Endpoint {
    /// Its base URL.
    pub url: String,
    /// What it is to the registry.
    pub role: Role,
    /// What it may be asked for: `pull`, `resolve`, `push`.
    pub capabilities: Vec<String>,
    /// Whether it is asked.
    pub breaker: Breaker,
    /// How long it is passed over still, in seconds.
    pub retry_in_seconds: Option<f64>,
    /// How long it still asks to be left alone (`Retry-After`), in seconds.
    pub quiet_seconds: Option<f64>,
    /// Whether it has requests in flight of which nothing comes.
    pub stalling: bool,
    /// Average time to an answer over the last ten seconds, in seconds.
    pub latency_seconds: Option<f64>,
    /// Time to an answer when nothing queues on the way, in seconds.
    pub delay_seconds: Option<f64>,
    /// The most that was received from it lately, in bytes in a second, once that says something about the way to it.
    pub bytes_per_second: Option<u64>,
    /// Bytes that it may have in flight: enough to keep the way full.
    pub allowed_bytes: u64,
    /// After how long the next endpoint is asked too, for a request of 128 KiB, in seconds.
    pub hedge_after_seconds: f64,
    /// Requests in flight.
    pub in_flight: u32,
    /// Requests sent there, or where it redirected to.
    pub requests: u64,
    /// Of these, those sent because another endpoint was slow.
    pub hedges: u64,
    /// Bytes of blobs received.
    pub received_bytes: u64,
    /// Tries that failed.
    pub failures: u64,
    /// Ranges that turned out to be wrong.
    pub rejects: u64,
    /// What happened at the last try that failed.
    pub last_failure: Option<String>,
}

/// What an endpoint is to a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Another one for the same content.
    Mirror,
    /// The registry's own, the last to be asked.
    Server,
}

/// The state of an endpoint's circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Breaker {
    /// It is asked.
    Closed,
    /// It is passed over while there is somebody else.
    Open,
    /// One request is trying it.
    HalfOpen,
}
