//! Endpoints: one base URL each, and what we lived to see with it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use reqwest::Url;
use tokio::time::Instant;

use crate::{config::Config, failure::Failure};

/// One registry's API. (A mirror will be another endpoint for the same repository.)
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// The host, with its port if one was written: the name used in errors and reports.
    pub(crate) host: String,
    base: Url,
    requests: AtomicU64,
    bytes: AtomicU64,
    failures: AtomicU64,
    rejects: AtomicU64,
    /// Until when the endpoint asked not to be asked.
    quiet_until: Mutex<Option<Instant>>,
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
    /// The endpoint of a host. `None` when no URL can be made of it, which no [`crate::Reference`] leads to.
    pub(crate) fn new(host: &str, config: &Config) -> Option<Self> {
        let scheme = if config.is_plain(host) { "http" } else { "https" };
        Some(Self {
            host: host.to_owned(),
            base: Url::parse(&format!("{scheme}://{host}/v2/")).ok()?,
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            rejects: AtomicU64::new(0),
            quiet_until: Mutex::new(None),
        })
    }

    /// The URL of `repository/kind/name`; the parts are already of a URL's path.
    pub(crate) fn url(&self, repository: &str, kind: &str, name: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{repository}/{kind}/{name}"));
        url
    }

    /// The API's root, where a registry says how it wants to be asked.
    pub(crate) fn root(&self) -> Url {
        self.base.clone()
    }

    pub(crate) fn sent(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn rejected(&self) {
        self.rejects.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a failure. A `Retry-After` holds for everybody who wants to ask here.
    pub(crate) fn failed(&self, failure: &Failure) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if let Some(wait) = failure.retry_after {
            let until = Instant::now() + wait;
            let mut quiet = self.quiet_until.lock();
            *quiet = Some(quiet.map_or(until, |before| before.max(until)));
        }
    }

    /// How long the endpoint still asks not to be asked.
    pub(crate) fn quiet(&self) -> Duration {
        let until = *self.quiet_until.lock();
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Class;

    #[test]
    fn urls_have_the_scheme_of_their_host() {
        let url =
            |host: &str| Endpoint::new(host, &Config::default()).unwrap().url("a/b", "blobs", "sha256:00").to_string();
        assert_eq!(url("ghcr.io"), "https://ghcr.io/v2/a/b/blobs/sha256:00");
        assert_eq!(url("127.0.0.1:5000"), "http://127.0.0.1:5000/v2/a/b/blobs/sha256:00");
        assert_eq!(url("[::1]:5000"), "http://[::1]:5000/v2/a/b/blobs/sha256:00");
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_quiet_asked_for_holds() {
        let endpoint = Endpoint::new("ghcr.io", &Config::default()).unwrap();
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
}
