//! A registry, a fetcher, and what stands between them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource as _, ByteRange, Purpose, ReadError};
use penstock_fetcher::{Config, Fetcher, Reference};
use penstock_registry::{Kind, Registry, Request};

/// Settings for tests: as the defaults, but for waits that would only make a test slow.
pub(crate) fn config() -> Config {
    Config { backoff_first: Duration::from_millis(1), backoff_max: Duration::from_millis(10), ..Config::default() }
}

/// A deadline for tests that wait for it.
pub(crate) fn hasty() -> Config {
    Config { deadline: Duration::from_millis(1500), idle_timeout: Duration::from_millis(150), ..config() }
}

pub(crate) fn fetcher(config: Config) -> Arc<Fetcher> {
    Fetcher::new(config, &mut prometheus_client::registry::Registry::default()).unwrap()
}

pub(crate) async fn registry(config: penstock_registry::Config) -> Registry {
    Registry::start(config).await.unwrap()
}

/// Bytes of which every run of 8 differs from every other.
pub(crate) fn content(len: usize, seed: u64) -> Bytes {
    let words = (0..len.div_ceil(8) as u64).map(|at| (at + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed);
    let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    bytes.truncate(len);
    bytes.into()
}

pub(crate) fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).unwrap()
}

pub(crate) fn reference(registry: &Registry, rest: &str) -> Reference {
    format!("{}/{rest}", registry.host()).parse().unwrap()
}

/// A registry with one blob of `len` bytes, and a fetcher that knows where it is.
pub(crate) struct Scene {
    pub(crate) registry: Registry,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) blob: Blob,
    pub(crate) bytes: Bytes,
}

impl Scene {
    pub(crate) async fn new(len: usize, registry: penstock_registry::Config, config: Config) -> Self {
        let registry = self::registry(registry).await;
        let bytes = content(len, 1);
        let blob = registry.put_blob(bytes.clone());
        let fetcher = fetcher(config);
        fetcher.serve(blob, &reference(&registry, "team/app:1"));
        Self { registry, fetcher, blob, bytes }
    }

    pub(crate) async fn plain(len: usize) -> Self {
        Self::new(len, penstock_registry::Config::default(), config()).await
    }

    pub(crate) fn truth(&self, range: ByteRange) -> Bytes {
        let index = |byte: u64| usize::try_from(byte).unwrap();
        self.bytes.slice(index(range.start())..index(range.end()))
    }

    pub(crate) async fn read(&self, start: u64, end: u64) -> Result<Bytes, ReadError> {
        self.fetcher.read(self.blob, range(start, end), Purpose::Demand).await
    }

    /// Reads and compares.
    pub(crate) async fn good(&self, start: u64, end: u64) {
        let read = self.read(start, end).await.unwrap();
        assert!(read == self.truth(range(start, end)), "other bytes than the blob's for {start}..{end}");
    }

    /// The blob downloads that the registry saw.
    pub(crate) fn downloads(&self) -> Vec<Request> {
        self.registry
            .requests()
            .into_iter()
            .filter(|request| matches!(request.kind, Kind::Blob | Kind::Storage))
            .collect()
    }
}

/// Waits for an event that other tasks bring about.
pub(crate) async fn until(what: &str, event: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !event() {
            tokio::task::yield_now().await;
        }
    });
    assert!(waited.await.is_ok(), "never happened: {what}");
}
