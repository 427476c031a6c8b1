//! What is known about an endpoint, for operators.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::Instant;

use super::{Endpoint, EndpointFetched};
use crate::breaker::State;

/// Whether an endpoint is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointState {
    /// It is.
    Closed,
    /// It is passed over while there is somebody else.
    Open,
    /// One request is trying it.
    HalfOpen,
}

/// One endpoint, and what we lived to see with it.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointStatus {
    /// Its base URL.
    pub url: String,
    /// What it may be asked for: `pull`, `resolve`, `push`.
    pub capabilities: Vec<&'static str>,
    /// Whether it is the registry's own server, the last to be asked, and not a mirror.
    pub is_server: bool,
    /// Whether it is asked.
    pub state: EndpointState,
    /// How long it is passed over still.
    pub retry_in: Option<Duration>,
    /// How long it still asks to be left alone (`Retry-After`).
    pub quiet: Option<Duration>,
    /// Whether it has requests in flight of which nothing comes.
    pub is_stalling: bool,
    /// Average time to an answer, of the last ten seconds.
    pub latency: Option<Duration>,
    /// Time to an answer when nothing queues on the way.
    pub delay: Option<Duration>,
    /// The most that was received from it lately, in bytes in a second: what the way carries, as far as it was used.
    pub bytes_per_second: Option<u64>,
    /// Bytes that it may have in flight: enough to keep the way full.
    pub allowed_bytes: u64,
    /// After how long somebody else is asked too, for a request of 128 KiB.
    pub hedge_after: Duration,
    /// Requests in flight.
    pub in_flight: u32,
    /// Requests sent there because another endpoint was slow.
    pub hedges: u64,
    /// The last failure.
    pub last_failure: Option<String>,
    /// What was fetched from it.
    pub fetched: EndpointFetched,
}

/// Whom the content of one registry is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct RegistryStatus {
    /// The registry, as references name it.
    pub registry: String,
    /// The directory that says whom to ask; `None` when none does.
    pub hosts_dir: Option<std::path::PathBuf>,
    /// Why what it says cannot be used.
    pub hosts_fault: Option<String>,
    /// Whom to ask, in this order.
    pub endpoints: Vec<EndpointStatus>,
}

/// The size of request for which [`EndpointStatus::hedge_after`] is shown: the usual chunk.
const SHOWN_BYTES: u64 = 128 << 10;

impl Endpoint {
    pub(crate) fn status(&self, capabilities: Vec<&'static str>, is_server: bool) -> EndpointStatus {
        let now = Instant::now();
        let quiet = self.quiet();
        let health = self.health.lock();
        let (state, retry_in) = match health.breaker.state() {
            State::Closed { .. } => (EndpointState::Closed, None),
            State::Open { until, .. } => (EndpointState::Open, Some(until.saturating_duration_since(now))),
            State::HalfOpen { .. } => (EndpointState::HalfOpen, None),
        };
        EndpointStatus {
            url: self.web.spec().base.shown(),
            capabilities,
            is_server,
            state,
            retry_in,
            quiet: (!quiet.is_zero()).then_some(quiet),
            is_stalling: health.is_stalling(now),
            latency: health.latency.average(now),
            delay: health.pace.delay(),
            bytes_per_second: health.pace.bytes_per_second(),
            allowed_bytes: health.pace.allowed_bytes(now),
            hedge_after: health.latency.hedge_after(SHOWN_BYTES),
            in_flight: health.in_flight,
            hedges: self.hedges.load(Ordering::Relaxed),
            last_failure: health.last_failure.clone(),
            fetched: self.fetched(),
        }
    }
}
