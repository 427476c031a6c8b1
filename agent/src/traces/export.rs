//! Sending spans to the collector: one batch at a time, each in one request on a connection of its own.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{Collector, Metrics, Outbox, layer::Finished, otlp};
use crate::{
    client::Remote,
    events::{Events, Kind},
};

/// Spans in one request: about 200 KiB.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// Longest time for one request, from looking up the collector's name to the end of its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for what is left when the agent stops.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// Most bytes of an answer.
const ANSWER_BYTES: usize = 64 << 10;

/// What sends spans. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct Exporter {
    stop: CancellationToken,
    task: JoinSet<()>,
}

impl Exporter {
    /// Sends what comes out of `outbox` from now on.
    pub(crate) fn start(collector: Collector, outbox: Outbox, events: Events, metrics: Metrics) -> Self {
        let (stop, mut task) = (CancellationToken::new(), JoinSet::new());
        let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let export = Export { collector, node, outbox, events, metrics, remote: None, fails: false, dropped: 0 };
        task.spawn(Box::pin(export.run(stop.clone())));
        Self { stop, task }
    }

    /// Sends what there is, for two seconds at most, and ends.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        while self.task.join_next().await.is_some() {}
    }
}

struct Export {
    collector: Collector,
    node: String,
    outbox: Outbox,
    events: Events,
    metrics: Metrics,
    /// Made from the files once, and anew after a failure: a token or an authority may be another one.
    remote: Option<Arc<Remote>>,
    /// The last request failed.
    fails: bool,
    /// Spans that were dropped since it began to.
    dropped: u64,
}

impl Export {
    async fn run(mut self, stop: CancellationToken) {
        let mut last = loop {
            let batch = self.batch(&stop).await;
            // None come when nobody makes spans any more.
            if stop.is_cancelled() || batch.is_empty() {
                break batch;
            }
            let too_late = async {
                stop.cancelled().await;
                tokio::time::sleep(LAST_PATIENCE).await;
            };
            tokio::select! {
                () = self.send(batch, PATIENCE) => {}
                () = too_late => return,
            }
        };
        let rest = async {
            while !last.is_empty() {
                self.send(last, LAST_PATIENCE).await;
                last = self.batch(&stop).await;
            }
        };
        // What does not go in time goes with the process.
        let _in_time = timeout(LAST_PATIENCE, Box::pin(rest)).await;
    }

    /// The next spans to send. When it is time to stop, what there is.
    async fn batch(&mut self, stop: &CancellationToken) -> Vec<Finished> {
        let mut batch = Vec::new();
        let mut until = None;
        while batch.len() < BATCH {
            let (receiver, room) = (&mut self.outbox.receiver, BATCH - batch.len());
            let received = tokio::select! {
                biased;
                received = waiting(until, receiver.recv_many(&mut batch, room)) => received,
                () = stop.cancelled() => 0,
            };
            if received == 0 {
                break;
            }
            until = until.or_else(|| Some(Instant::now() + GATHER));
        }
        batch
    }

    async fn send(&mut self, batch: Vec<Finished>, patience: Duration) {
        let spans = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let body = Bytes::from(otlp::request(&self.node, batch));
        let late = |_| Err(format!("no answer within {} s", patience.as_secs()));
        let outcome = timeout(patience, Box::pin(self.post(body))).await.unwrap_or_else(late);
        let lost = self.outbox.take_lost();
        match outcome {
            Ok(()) => {
                self.metrics.sent.inc_by(spans);
                self.healed(lost);
            }
            Err(reason) => {
                self.remote = None;
                self.metrics.dropped.inc_by(spans + lost);
                self.dropped = self.dropped.saturating_add(spans + lost);
                self.failed(&reason);
            }
        }
    }

    fn healed(&mut self, lost: u64) {
        self.metrics.dropped.inc_by(lost);
        let dropped = self.dropped.saturating_add(lost);
        if std::mem::take(&mut self.fails) {
            let text = format!("{} takes spans again; {dropped} were dropped meanwhile", self.collector.url);
            self.events.record(Kind::TracesTaken, &text, &[("collector", &self.collector.url)]);
        }
        self.dropped = 0;
    }

    fn failed(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.fails, true) {
            let text = format!("{} does not take spans, which are dropped until it does: {reason}", self.collector.url);
            self.events.record(Kind::TracesRefused, &text, &[("collector", &self.collector.url)]);
        }
    }

    /// The way to the collector.
    async fn remote(&mut self) -> Result<Arc<Remote>, String> {
        if let Some(remote) = &self.remote {
            return Ok(Arc::clone(remote));
        }
        let told = self.collector.told();
        // It reads files.
        let made = tokio::task::spawn_blocking(move || Remote::new(&told, None)).await;
        let made = made.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        Ok(Arc::clone(self.remote.insert(Arc::new(made))))
    }

    async fn post(&mut self, body: Bytes) -> Result<(), String> {
        let remote = self.remote().await?;
        let stream = remote.dial().await.map_err(|error: io::Error| error.to_string())?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let request = Request::post(&self.collector.path)
            .header(header::HOST, remote.authority())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, concat!("penstock/", env!("CARGO_PKG_VERSION")));
        let request = match remote.token() {
            Some(token) => request.header(header::AUTHORIZATION, token),
            None => request,
        };
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        let (head, body) = sender.send_request(request).await.map_err(|error| error.to_string())?.into_parts();
        if head.status != StatusCode::OK {
            return Err(format!("status {}", head.status.as_u16()));
        }
        let answer = Limited::new(body, ANSWER_BYTES).collect().await.map_err(|error| error.to_string())?;
        taken(&answer.to_bytes())
    }
}

/// Waits for `work`, until then at most; 0 when that comes first.
async fn waiting(until: Option<Instant>, work: impl Future<Output = usize>) -> usize {
    match until {
        Some(until) => timeout_at(until, work).await.unwrap_or(0),
        None => work.await,
    }
}

/// Whether an answer of status 200 says that all was taken.
fn taken(answer: &[u8]) -> Result<(), String> {
    // Some collectors answer JSON, or nothing, whatever they were sent.
    match otlp::Response::decode(answer).ok().and_then(|answer| answer.partial_success) {
        Some(partial) if partial.rejected_spans > 0 => {
            Err(format!("it refused {} spans: {}", partial.rejected_spans, partial.error_message))
        }
        _ => Ok(()),
    }
}
