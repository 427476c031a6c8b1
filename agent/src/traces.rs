//! Spans for a collector of OpenTelemetry traces, when the config names one: what was attached, pulled and opened, and the reads that waited.
//!
//! The parts make spans with `tracing`, with the target [`penstock_blob::SPANS`], and know of nothing else. [`Spans`] is a layer beside the log lines that
//! turns those into records and puts them into a bounded queue: when it is full they are counted and dropped, and nobody waits. `Exporter` sends what is
//! in the queue, by OTLP over HTTP with protobuf (opentelemetry.io/docs/specs/otlp, section OTLP/HTTP). What cannot be sent is dropped too: the next batch
//! is a new try. Without a collector there is no layer, and a span costs a comparison.

mod export;
mod layer;
mod otlp;

use std::{
    fmt::Display,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::Uri;
use penstock_blob::SPANS;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::sync::mpsc;
use tracing::{Instrument as _, Metadata, Span, field::display};

pub(crate) use export::Exporter;
use layer::Finished;
pub use layer::Spans;

use crate::{client::Told, config::Config, serve::Unsafe};

/// Spans that wait to be sent: some seconds of a busy node, about a MiB. More are dropped and counted.
const QUEUE: usize = 2048;

/// Where below a collector's address traces are taken (OTLP/HTTP).
const PATH: &str = "/v1/traces";

/// Runs `work` in `span`, and records its error there. The span needs the field `error`.
pub(crate) fn traced<T, E: Display>(
    span: Span,
    work: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>> {
    // Boxed here, so that whoever awaits it is no larger for what it does.
    let work = Box::pin(work).instrument(span.clone());
    async move {
        let outcome = work.await;
        if let Err(error) = &outcome {
            span.record("error", display(error));
        }
        outcome
    }
}

/// Whether this is about a span that is meant for a collector.
pub(crate) fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target() == SPANS
}

/// Where traces are sent, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// Scheme, host and port.
    url: String,
    /// Where traces are taken there.
    path: String,
    token_file: Option<PathBuf>,
    ca: Option<PathBuf>,
}

impl Collector {
    /// The collector of the config, if it names one.
    ///
    /// # Errors
    /// [`Unsafe`] when it is no address of one, or spans would cross the network readable.
    pub(crate) fn of(config: &Config) -> Result<Option<Self>, Unsafe> {
        let Some(endpoint) = &config.traces.endpoint else { return Ok(None) };
        let refused = |reason: String| Unsafe { key: "traces.endpoint", reason };
        let wrong = || {
            refused(format!(
                "{endpoint:?} is no address of a collector; write https://host:4318, without a user or a query"
            ))
        };
        let uri: Uri = endpoint.parse().map_err(|_| wrong())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(wrong()) };
        if !["http", "https"].contains(&scheme) || authority.as_str().contains('@') || uri.query().is_some() {
            return Err(wrong());
        }
        if scheme == "http" && !is_loopback(authority.host()) && !config.traces.plain {
            return Err(refused(format!(
                "spans (and a token) would cross the network readable on their way to {authority}; write https://, or set traces.plain = true where something else encrypts"
            )));
        }
        Ok(Some(Self {
            url: format!("{scheme}://{authority}"),
            path: format!("{}{PATH}", uri.path().trim_end_matches('/')),
            token_file: config.traces.token_file.clone(),
            ca: config.traces.ca.clone(),
        }))
    }

    /// How it is reached.
    fn told(&self) -> Told {
        Told { url: self.url.clone(), token_file: self.token_file.clone(), ca: self.ca.clone(), ..Told::default() }
    }
}

/// Whether a host is this machine.
fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The layer that makes records of spans, and where they come out. Reads and fetches that took less than `slow` are left out.
#[must_use]
pub fn queue(slow: Duration) -> (Spans, Outbox) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let lost = Arc::new(AtomicU64::new(0));
    (Spans::new(sender, Arc::clone(&lost), slow), Outbox { receiver, lost })
}

/// Spans that have ended, oldest first.
#[derive(Debug)]
pub struct Outbox {
    receiver: mpsc::Receiver<Finished>,
    /// Spans that found the queue full, since this was last asked.
    lost: Arc<AtomicU64>,
}

impl Outbox {
    /// How many found it full since the last call.
    fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// What became of spans.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    sent: Counter,
    dropped: Counter,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let spans = Family::<OutcomeLabel, Counter>::default();
        let outcome = |outcome| spans.get_or_create_owned(&OutcomeLabel { outcome });
        let metrics = Self { sent: outcome("sent"), dropped: outcome("dropped") };
        registry.register("spans", "Spans that ended, by what became of them", spans);
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Traces;

    fn of(endpoint: &str, set: impl FnOnce(&mut Config)) -> Result<Option<Collector>, Unsafe> {
        let traces = Traces { endpoint: Some(endpoint.to_owned()), ..Traces::default() };
        let mut config = Config { traces, ..Config::default() };
        set(&mut config);
        Collector::of(&config)
    }

    #[test]
    fn nothing_is_sent_unless_told() {
        assert_eq!(Collector::of(&Config::default()), Ok(None));
    }

    #[test]
    fn a_collector_is_named_by_its_base_as_other_programs_name_it() {
        for (endpoint, url, path) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318", "/v1/traces"),
            ("http://localhost:4318/", "http://localhost:4318", "/v1/traces"),
            ("http://[::1]:4318", "http://[::1]:4318", "/v1/traces"),
            ("https://otel.example.com/tenant/a/", "https://otel.example.com", "/tenant/a/v1/traces"),
        ] {
            let collector = of(endpoint, |_| ()).unwrap().unwrap();
            assert_eq!((collector.url.as_str(), collector.path.as_str()), (url, path), "{endpoint}");
        }
        for endpoint in ["", "otel", "otel:4318", "ftp://127.0.0.1", "https://me:pw@otel", "https://otel?x=1"] {
            let refused = of(endpoint, |_| ()).unwrap_err();
            assert_eq!(refused.key, "traces.endpoint", "{endpoint}");
        }
    }

    #[test]
    fn beyond_loopback_spans_are_encrypted_unless_told_otherwise() {
        for endpoint in
            ["http://10.0.0.1:4318", "http://otel:4318", "http://localhost.example.com", "http://[fe80::1]:1"]
        {
            let refused = of(endpoint, |_| ()).unwrap_err();
            assert!(refused.reason.contains("traces.plain"), "{endpoint}: {refused}");
            assert!(of(endpoint, |config| config.traces.plain = true).is_ok(), "{endpoint}");
        }
    }
}
