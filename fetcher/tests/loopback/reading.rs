//! Reads that go well, and the seam's promises.

use std::{sync::Arc, time::Duration};

use penstock_blob::{Blob, BlobSource as _, Digest, Purpose, ReadError, conformance};
use penstock_fetcher::Config;
use penstock_registry::{Auth, Config as RegistryConfig, Redirect};

use crate::support::{Scene, config, content, fetcher, range, reference, registry};

/// Blobs around the usual edges.
const SIZES: [usize; 5] = [2, 4095, 262_144, 262_145, 700_001];

async fn conforms(registry_config: RegistryConfig, config: Config) {
    let registry = registry(registry_config).await;
    let fetcher = fetcher(config);
    let from = reference(&registry, "team/app");
    let blobs: Vec<_> =
        SIZES.iter().map(|&len| content(len, 7)).map(|bytes| (registry.put_blob(bytes.clone()), bytes)).collect();
    for (blob, _) in &blobs {
        fetcher.serve(*blob, &from);
    }
    conformance::check(fetcher, &blobs).await;
}

#[tokio::test]
async fn the_seam_is_kept_over_a_plain_registry() {
    conforms(RegistryConfig::default(), config()).await;
}

#[tokio::test]
async fn the_seam_is_kept_over_tokens_and_redirects() {
    let registry = RegistryConfig {
        auth: Auth::Token { credentials: None, ttl: Duration::from_secs(60) },
        redirect: Some(Redirect { ttl: Duration::from_secs(60), other_port: true }),
        ..RegistryConfig::default()
    };
    conforms(registry, config()).await;
}

#[tokio::test]
async fn the_seam_is_kept_when_every_read_is_split_and_the_budget_is_tiny() {
    let tiny =
        Config { max_requests: 2, max_bytes: 100_000, max_request_bytes: 65_537, join_gap_bytes: 1000, ..config() };
    conforms(RegistryConfig::default(), tiny).await;
}

#[tokio::test]
async fn a_read_asks_for_its_bytes_once_and_for_nothing_else() {
    let scene = Scene::plain(1_000_000).await;
    scene.good(123_456, 654_321).await;
    let requests = scene.registry.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!((requests[0].range, requests[0].status), (Some(range(123_456, 654_321)), 206));
    let fetched = scene.fetcher.fetched();
    assert_eq!((fetched.requests, fetched.bytes, fetched.failures), (1, 654_321 - 123_456, 0));
    assert_eq!(fetched.endpoints[0].host, scene.registry.host());
}

#[tokio::test]
async fn a_redirect_is_followed_once_and_remembered() {
    for other_port in [true, false] {
        let redirect = Some(Redirect { ttl: Duration::from_secs(300), other_port });
        let config = RegistryConfig { redirect, ..RegistryConfig::default() };
        let scene = Scene::new(1_000_000, config, self::config()).await;
        for start in [0, 300_000, 600_000, 10] {
            scene.good(start, start + 1000).await;
        }
        let counts = scene.registry.counts();
        assert_eq!((counts.blob_requests, counts.storage_requests), (1, 4), "other port: {other_port}");
    }
}

#[tokio::test]
async fn an_unknown_blob_is_not_found_without_a_request() {
    let scene = Scene::plain(10).await;
    let unknown = Blob { digest: Digest::of(b"unknown"), size_bytes: 10 };
    assert!(matches!(scene.fetcher.read(unknown, range(0, 1), Purpose::Demand).await, Err(ReadError::NotFound { .. })));
    scene.fetcher.forget(&scene.blob.digest, &reference(&scene.registry, "team/app:1"));
    assert!(matches!(scene.read(0, 1).await, Err(ReadError::NotFound { .. })));
    assert_eq!(scene.registry.counts().requests, 0);
}

#[tokio::test]
async fn what_one_repository_lacks_another_gives() {
    let scene = Scene::plain(1000).await;
    let other = registry(RegistryConfig::default()).await;
    let bytes = content(5000, 9);
    let blob = other.put_blob(bytes.clone());
    let fetcher = &scene.fetcher;
    fetcher.serve(blob, &reference(&scene.registry, "team/app:1"));
    fetcher.serve(blob, &reference(&other, "team/app:1"));
    assert_eq!(fetcher.read(blob, range(0, 5000), Purpose::Demand).await.unwrap(), bytes);
    assert_eq!(scene.registry.counts().requests, 1, "the first was asked first");
    assert_eq!(fetcher.read(blob, range(0, 5000), Purpose::Demand).await.unwrap(), bytes);
    assert_eq!(scene.registry.counts().requests, 1, "who failed is asked last");
}

#[tokio::test]
async fn rejected_bytes_are_blamed_on_who_gave_them() {
    let scene = Scene::plain(1000).await;
    let other = registry(RegistryConfig::default()).await;
    let blob = other.put_blob(scene.bytes.clone());
    scene.fetcher.serve(blob, &reference(&other, "mirror/app"));
    scene.good(0, 1000).await;
    scene.fetcher.reject(&scene.blob, range(0, 1000));
    scene.good(0, 1000).await;
    assert_eq!((scene.registry.counts().requests, other.counts().requests), (1, 1));
    let rejects: u64 = scene.fetcher.fetched().endpoints.iter().map(|endpoint| endpoint.rejects).sum();
    assert_eq!(rejects, 1);
}

#[tokio::test]
async fn a_stopped_fetcher_says_so() {
    let scene = Scene::plain(1000).await;
    scene.registry.fail(penstock_registry::Fault::Stall.always());
    let fetcher = Arc::clone(&scene.fetcher);
    let blob = scene.blob;
    let reading =
        tokio::task::JoinSet::from_iter([async move { fetcher.read(blob, range(0, 10), Purpose::Demand).await }]);
    scene.registry.until_stalled(1).await;
    scene.fetcher.stop().await;
    assert_eq!(reading.join_all().await, [Err(ReadError::Stopping)]);
    assert_eq!(scene.read(0, 10).await, Err(ReadError::Stopping));
}

#[tokio::test]
async fn metrics_are_registered_under_the_prefix_given() {
    let mut root = prometheus_client::registry::Registry::default();
    let fetcher = penstock_fetcher::Fetcher::new(config(), root.sub_registry_with_prefix("penstock_fetcher")).unwrap();
    let registry = registry(RegistryConfig::default()).await;
    let blob = registry.put_blob(content(1000, 1));
    fetcher.serve(blob, &reference(&registry, "a"));
    registry.fail(penstock_registry::Fault::Status(500));
    fetcher.read(blob, range(0, 1000), Purpose::Demand).await.unwrap();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &root).unwrap();
    for line in [
        "penstock_fetcher_requests_total{purpose=\"blob\"} 2",
        "penstock_fetcher_failures_total{class=\"server\"} 1",
        "penstock_fetcher_received_bytes_total 1000",
        "penstock_fetcher_retries_total 1",
        "penstock_fetcher_fetch_seconds_count 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}
