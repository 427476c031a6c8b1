//! Endpoints: one base URL each, how it is spoken to, and what we lived to see with it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use reqwest::Url;
use tokio::time::Instant;

use crate::{
    breaker::{Admission, Breaker, Change, Seen},
    budget::Limit,
    dial::Dialer,
    failure::{Class, Failure},
    hosts::Spec,
    latency::Latency,
    metrics::EndpointMetrics,
    pace::{Pace, Sent},
    web::Web,
};

pub(crate) mod status;

/// With requests in flight and nothing coming for this long, or three times its usual time to an answer, an endpoint stalls.
const STALL: Duration = Duration::from_secs(1);

/// One registry's or mirror's API.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Tells endpoints apart; never used again.
    pub(crate) id: u64,
    /// The host, with its port if one was written: the name used in errors, events and reports.
    pub(crate) host: String,
    pub(crate) web: Web,
    requests: AtomicU64,
    bytes: AtomicU64,
    failures: AtomicU64,
    rejects: AtomicU64,
    hedges: AtomicU64,
    metrics: EndpointMetrics,
    /// Until when the endpoint asked not to be asked.
    quiet_until: Mutex<Option<Instant>>,
    health: Mutex<Health>,
    /// Bytes that it may have in flight: what its [`Pace`] says.
    pub(crate) limit: Limit,
}

#[derive(Debug)]
struct Health {
    breaker: Breaker,
    latency: Latency,
    pace: Pace,
    in_flight: u32,
    /// When something last came while requests were in flight.
    progress: Instant,
    last_failure: Option<String>,
}

/// What was fetched from one endpoint since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointFetched {
    /// The endpoint's host.
    pub host: String,
    /// Requests sent there, or where it redirected to.
    pub requests: u64,
    /// Bytes of blobs received.
    pub bytes: u64,
    /// Tries that failed.
    pub failures: u64,
    /// Ranges that their reader found to be wrong.
    pub rejects: u64,
}

impl Endpoint {
    /// An endpoint spoken to as `spec` says.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(crate) fn new(id: u64, dialer: &Arc<Dialer>, spec: Spec) -> Result<Self, String> {
        let host = spec.base.authority.clone();
        let web = Web::new(dialer, spec)?;
        if web.url("/").is_none() {
            return Err(format!("no URL can be made of {host}"));
        }
        let health = Health {
            breaker: Breaker::new(),
            latency: Latency::new(),
            pace: Pace::default(),
            in_flight: 0,
            progress: Instant::now(),
            last_failure: None,
        };
        Ok(Self {
            id,
            metrics: dialer.metrics.of_endpoint(&host),
            host,
            web,
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            rejects: AtomicU64::new(0),
            hedges: AtomicU64::new(0),
            quiet_until: Mutex::new(None),
            limit: Arc::new(AtomicU64::new(health.pace.allowed_bytes(Instant::now()))),
            health: Mutex::new(health),
        })
    }

    /// The URL of `repository/kind/name`, whose parts are already of a URL's path; `ns` is the registry meant, for an endpoint
    /// that is another one's mirror.
    pub(crate) fn url(&self, repository: &str, kind: &str, name: &str, ns: Option<&str>) -> Option<Url> {
        let mut url = self.web.url(&format!("/{repository}/{kind}/{name}"))?;
        if let Some(ns) = ns {
            url.query_pairs_mut().append_pair("ns", ns);
        }
        Some(url)
    }

    /// The API's root, where a registry says how it wants to be asked.
    pub(crate) fn root(&self) -> Option<Url> {
        self.web.url("/")
    }

    /// The repository as the endpoint's own users call it: a proxy project of Harbor is a part of it.
    pub(crate) fn full_name(&self, repository: &str) -> String {
        let path = self.web.spec().base.path.trim_matches('/');
        match path.strip_prefix("v2").map(|rest| rest.trim_matches('/')) {
            Some(prefix) if !prefix.is_empty() => format!("{prefix}/{repository}"),
            _ => repository.to_owned(),
        }
    }

    pub(crate) fn sent(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.metrics.requests.inc();
    }

    pub(crate) fn rejected(&self) {
        self.rejects.fetch_add(1, Ordering::Relaxed);
        self.metrics.rejects.inc();
    }

    /// It was asked because another one was slow.
    pub(crate) fn hedged(&self) {
        self.hedges.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a failure. A `Retry-After` holds for everybody who wants to ask here.
    pub(crate) fn failed(&self, failure: &Failure) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.metrics.failures.inc();
        if let Some(wait) = failure.retry_after {
            let until = Instant::now() + wait;
            let mut quiet = self.quiet_until.lock();
            *quiet = Some(quiet.map_or(until, |before| before.max(until)));
        }
        self.health.lock().last_failure = Some(failure.reason.clone());
    }

    /// How long the endpoint still asks not to be asked.
    pub(crate) fn quiet(&self) -> Duration {
        let until = *self.quiet_until.lock();
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Whether it may be asked, whether it stalls, and how long it takes on average.
    pub(crate) fn standing(&self) -> (Admission, bool, Option<Duration>) {
        let now = Instant::now();
        let health = self.health.lock();
        (health.breaker.admission(now), health.is_stalling(now), health.latency.average(now))
    }

    /// Whether requests are in flight and nothing comes of any.
    pub(crate) fn is_stalling(&self) -> bool {
        self.health.lock().is_stalling(Instant::now())
    }

    /// How long to wait for `bytes` before somebody else is asked too.
    pub(crate) fn hedge_after(&self, bytes: u64) -> Duration {
        self.health.lock().latency.hedge_after(bytes)
    }

    /// Begins to ask for so many bytes. Dropped without an outcome, it was given up.
    pub(crate) fn ask(self: &Arc<Self>, bytes: u64) -> Asking {
        let now = Instant::now();
        let mut health = self.health.lock();
        if health.in_flight == 0 {
            health.progress = now;
        }
        health.in_flight += 1;
        let probe = health.breaker.ask(now);
        let sent = health.pace.sent(bytes, now);
        self.allow(&health, now);
        Asking { endpoint: self.clone(), probe, began: now, sent, answered: false, settled: false }
    }

    /// Takes over how many bytes may be in flight.
    fn allow(&self, health: &Health, now: Instant) {
        let allowed = health.pace.allowed_bytes(now);
        self.limit.store(allowed, Ordering::Relaxed);
        self.metrics.allowed_bytes.set(i64::try_from(allowed).unwrap_or(i64::MAX));
        let rate = health.pace.bytes_per_second().unwrap_or(0);
        self.metrics.bytes_per_second.set(i64::try_from(rate).unwrap_or(i64::MAX));
    }

    /// Bytes that it gave turned out to be wrong.
    pub(crate) fn was_wrong(&self) -> Option<Change> {
        let change = self.health.lock().breaker.apply(Seen::Wrong, false, Instant::now());
        self.show();
        change
    }

    fn show(&self) {
        let shut = self.health.lock().breaker.admission(Instant::now()) != Admission::Open;
        self.metrics.broken.set(i64::from(shut));
    }

    pub(crate) fn fetched(&self) -> EndpointFetched {
        EndpointFetched {
            host: self.host.clone(),
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            rejects: self.rejects.load(Ordering::Relaxed),
        }
    }
}

impl Health {
    fn is_stalling(&self, now: Instant) -> bool {
        let usual = self.latency.average(now).unwrap_or_default() * 3;
        self.in_flight > 0 && now.saturating_duration_since(self.progress) > STALL.max(usual)
    }
}

/// One request under way.
#[derive(Debug)]
pub(crate) struct Asking {
    endpoint: Arc<Endpoint>,
    probe: bool,
    began: Instant,
    sent: Sent,
    answered: bool,
    settled: bool,
}

impl Asking {
    /// The head of the answer came.
    pub(crate) fn answered(&mut self) {
        self.answered = true;
        let now = Instant::now();
        let mut health = self.endpoint.health.lock();
        health.progress = now;
        health.latency.answered(now - self.began, now);
        health.pace.answered(&mut self.sent, now);
    }

    /// So many bytes of the body came.
    pub(crate) fn came(&mut self, bytes: u64) {
        self.endpoint.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.endpoint.metrics.received_bytes.inc_by(bytes);
        let mut health = self.endpoint.health.lock();
        health.progress = Instant::now();
        health.pace.came(&mut self.sent, bytes);
    }

    /// All of `bytes` came.
    pub(crate) fn finished(&self, bytes: u64) {
        let now = Instant::now();
        let mut health = self.endpoint.health.lock();
        health.latency.finished(bytes, now - self.began);
        health.pace.finished(self.sent, now);
        self.endpoint.allow(&health, now);
    }

    /// How it ended.
    pub(crate) fn settle(mut self, outcome: Result<(), Class>) -> Option<Change> {
        self.settled = true;
        let seen = match outcome {
            // Not having something, or not giving it to us, is an answer.
            Ok(()) | Err(Class::Missing | Class::Denied | Class::Lapsed | Class::Throttled) => Seen::Success,
            // What is wrong is counted per blob, by who knows the blob.
            Err(Class::Wrong) => Seen::GivenUp,
            Err(
                Class::Connect | Class::Unresolved | Class::Timeout | Class::Broken | Class::Server | Class::Refused,
            ) => Seen::Failure,
        };
        let change = self.endpoint.health.lock().breaker.apply(seen, self.probe, Instant::now());
        self.endpoint.show();
        change
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut health = self.endpoint.health.lock();
        health.in_flight = health.in_flight.saturating_sub(1);
        health.pace.over(self.sent);
        if self.settled {
            return;
        }
        let waited = now - self.began;
        // It took at least this long: who lost to a hedge is slow.
        if !self.answered && health.latency.average(now).is_none_or(|average| waited > average) {
            health.latency.answered(waited, now);
        }
        // A probe that was given up because it was slow has shown what was to be found out.
        let slow = !self.answered && waited >= health.latency.hedge_after(0);
        let seen = if slow { Seen::Failure } else { Seen::GivenUp };
        if self.probe {
            health.breaker.apply(seen, true, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, hosts, metrics::Metrics};

    fn endpoint(base: &str) -> Arc<Endpoint> {
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        let dialer = Arc::new(Dialer::new(&Config::default(), metrics).unwrap());
        let base = hosts::Base::parse(base, true).unwrap();
        let spec = Spec { base, trust: hosts::Trust::default(), headers: Vec::new(), dial_timeout: None };
        Arc::new(Endpoint::new(1, &dialer, spec).unwrap())
    }

    #[test]
    fn urls_have_the_scheme_the_path_and_the_namespace() {
        let url = |base: &str, ns| endpoint(base).url("a/b", "blobs", "sha256:00", ns).unwrap().to_string();
        assert_eq!(url("https://ghcr.io/v2", None), "https://ghcr.io/v2/a/b/blobs/sha256:00");
        assert_eq!(
            url("http://127.0.0.1:5000/v2", Some("quay.io:443")),
            "http://127.0.0.1:5000/v2/a/b/blobs/sha256:00?ns=quay.io%3A443"
        );
        assert_eq!(url("https://[::1]:5000/v2/hub", None), "https://[::1]:5000/v2/hub/a/b/blobs/sha256:00");
        assert_eq!(url("https://r.io", None), "https://r.io/a/b/blobs/sha256:00");
    }

    #[test]
    fn a_proxy_project_is_a_part_of_the_repository() {
        for (base, name) in [
            ("https://r.io/v2", "a/b"),
            ("https://r.io/v2/hub", "hub/a/b"),
            ("https://r.io", "a/b"),
            ("https://r.io/x/v2", "a/b"),
        ] {
            assert_eq!(endpoint(base).full_name("a/b"), name, "{base}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_quiet_asked_for_holds() {
        let endpoint = endpoint("https://ghcr.io");
        let throttled = |seconds| Failure {
            retry_after: Some(Duration::from_secs(seconds)),
            ..Failure::new(Class::Throttled, "x")
        };
        assert_eq!(endpoint.quiet(), Duration::ZERO);
        endpoint.failed(&throttled(10));
        endpoint.failed(&throttled(3));
        endpoint.failed(&Failure::new(Class::Server, "x"));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(endpoint.quiet(), Duration::from_secs(6));
        assert_eq!(endpoint.fetched().failures, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_stalls_when_nothing_comes_of_any_request() {
        let endpoint = endpoint("https://ghcr.io");
        tokio::time::advance(STALL * 2).await;
        assert!(!endpoint.is_stalling(), "nobody waits");
        let mut first = endpoint.ask(1);
        tokio::time::advance(STALL * 2).await;
        assert!(endpoint.is_stalling());
        first.came(1);
        assert!(!endpoint.is_stalling());
        tokio::time::advance(STALL * 2).await;
        drop(first);
        assert!(!endpoint.is_stalling());
        let (_, _, average) = endpoint.standing();
        assert_eq!(average, Some(STALL * 4), "who was given up took at least so long");
    }

    #[tokio::test(start_paused = true)]
    async fn not_having_a_blob_is_no_failure_of_the_endpoint() {
        let endpoint = endpoint("https://ghcr.io");
        for _ in 0..4 {
            endpoint.ask(1).settle(Err(Class::Server));
        }
        endpoint.ask(1).settle(Err(Class::Missing));
        assert_eq!(endpoint.ask(1).settle(Err(Class::Server)), None);
        assert_eq!(endpoint.standing().0, Admission::Open);
    }
}
