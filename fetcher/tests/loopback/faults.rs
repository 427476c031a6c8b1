//! Each fault of the design's table, between the fetcher and a registry.

use std::time::Duration;

use futures_util::future::join_all;
use penstock_blob::{BlobSource as _, Purpose, ReadError};
use penstock_fetcher::Config;
use penstock_registry::{Config as RegistryConfig, Fault, Redirect};

use crate::support::{Scene, hasty, range, reference};

#[tokio::test]
async fn faults_that_pass_are_survived() {
    for fault in [
        Fault::Status(500),
        Fault::Status(502),
        Fault::Status(503),
        Fault::TooMany { retry_after: None },
        Fault::TooMany { retry_after: Some(Duration::ZERO) },
        Fault::ResetMidBody { after_bytes: 0 },
        Fault::ResetMidBody { after_bytes: 50_000 },
        Fault::ShortBody,
        Fault::WrongContentRange,
        Fault::IgnoreRange,
        Fault::Status(400),
        Fault::Status(416),
    ] {
        let scene = Scene::plain(300_000).await;
        scene.registry.fail(fault.clone().times(2));
        scene.good(10, 250_000).await;
        assert_eq!(scene.registry.pending_faults(), 0, "{fault:?}");
        assert_eq!(scene.downloads().len(), 3, "{fault:?}");
        assert_eq!(scene.fetcher.fetched().failures, 2, "{fault:?}");
    }
}

#[tokio::test]
async fn what_came_before_a_break_is_not_fetched_again() {
    let scene = Scene::plain(1 << 20).await;
    scene.registry.fail(Fault::ShortBody.times(3));
    scene.good(0, 1 << 20).await;
    let starts: Vec<u64> = scene.downloads().iter().map(|r| r.range.unwrap().start()).collect();
    assert_eq!(starts, [0, 1 << 19, (1 << 19) + (1 << 18), (1 << 19) + (1 << 18) + (1 << 17)]);
    assert_eq!(scene.fetcher.fetched().bytes, 1 << 20);
}

#[tokio::test]
async fn a_whole_blob_for_a_range_is_refused_without_reading_it() {
    let scene = Scene::plain(10).await;
    let blob = scene.registry.put_blob(vec![7; 128 << 20]);
    scene.fetcher.serve(blob, &reference(&scene.registry, "team/app:1"));
    scene.registry.fail(Fault::IgnoreRange.always());
    let error = scene.fetcher.read(blob, range(0, 1000), Purpose::Demand).await.unwrap_err();
    assert!(matches!(&error, ReadError::WrongBytes { reason, .. } if reason.contains("200")), "{error}");
    assert!(scene.fetcher.fetched().bytes == 0, "bytes of a refused answer were taken");
    // Socket buffers take some; the three answers together would be 384 MiB.
    assert!(scene.registry.counts().blob_bytes < 64 << 20, "{:?}", scene.registry.counts());
}

#[tokio::test]
async fn wrong_answers_end_in_wrong_bytes_and_name_the_endpoint() {
    for fault in [Fault::WrongContentRange, Fault::Status(416)] {
        let scene = Scene::plain(10_000).await;
        scene.registry.fail(fault.clone().always());
        let error = scene.read(5, 1000).await.unwrap_err();
        let host = scene.registry.host();
        assert!(matches!(&error, ReadError::WrongBytes { endpoint, .. } if *endpoint == host), "{fault:?}: {error}");
        assert!(error.is_transient());
        assert_eq!(scene.downloads().len(), 3, "{fault:?}: a few tries, not the whole deadline");
    }
}

#[tokio::test]
async fn what_is_gone_is_not_found_at_once() {
    for status in [404, 410] {
        let scene = Scene::plain(10_000).await;
        scene.registry.fail(Fault::Status(status).always());
        let error = scene.read(0, 10).await.unwrap_err();
        assert!(matches!(error, ReadError::NotFound { .. }), "{error}");
        assert_eq!(scene.downloads().len(), 1);
    }
}

#[tokio::test]
async fn refused_access_is_denied_at_once() {
    let scene = Scene::plain(10_000).await;
    scene.registry.fail(Fault::Status(403).always());
    let error = scene.read(0, 10).await.unwrap_err();
    assert!(matches!(error, ReadError::Denied { .. }), "{error}");
    assert_eq!(scene.downloads().len(), 1);
}

#[tokio::test]
async fn a_server_that_keeps_failing_ends_at_the_deadline_with_the_last_reason() {
    let scene = Scene::new(10_000, RegistryConfig::default(), hasty()).await;
    scene.registry.fail(Fault::Status(503).always());
    let error = scene.read(0, 10).await.unwrap_err();
    assert!(matches!(&error, ReadError::Deadline { last, .. } if last.contains("503")), "{error}");
    assert!(scene.downloads().len() > 3, "it was tried until then");
}

#[tokio::test]
async fn a_black_hole_ends_at_the_deadline() {
    let scene = Scene::new(10_000, RegistryConfig::default(), hasty()).await;
    scene.registry.fail(Fault::Stall.always());
    let error = scene.read(0, 10).await.unwrap_err();
    assert!(matches!(&error, ReadError::Deadline { last, .. } if last.contains("sent nothing more")), "{error}");
}

#[tokio::test]
async fn a_stalled_answer_is_asked_for_again() {
    let config = Config { deadline: Duration::from_secs(60), ..hasty() };
    let scene = Scene::new(10_000, RegistryConfig::default(), config).await;
    scene.registry.fail(Fault::Stall);
    scene.good(0, 10_000).await;
}

#[tokio::test]
async fn retry_after_is_honoured_by_every_reader_of_the_endpoint() {
    let scene = Scene::new(1 << 20, RegistryConfig::default(), hasty()).await;
    scene.registry.fail(Fault::TooMany { retry_after: Some(Duration::from_secs(600)) });
    let error = scene.read(0, 10).await.unwrap_err();
    assert!(matches!(error, ReadError::Deadline { .. }), "{error}");
    let error = scene.read(900_000, 900_010).await.unwrap_err();
    assert!(matches!(error, ReadError::Deadline { .. }), "{error}");
    assert_eq!(scene.registry.counts().requests, 1, "nobody asked again");
}

#[tokio::test]
async fn a_registry_that_comes_back_is_found_again() {
    let config = Config { deadline: Duration::from_secs(60), ..hasty() };
    let scene = Scene::new(1 << 20, RegistryConfig::default(), config).await;
    scene.good(0, 10).await;
    scene.registry.set_down(true);
    let read = scene.good(10, 20);
    let back = async {
        crate::support::until("a try has failed", || scene.fetcher.fetched().failures > 0).await;
        scene.registry.set_down(false);
    };
    tokio::join!(read, back);
}

#[tokio::test]
async fn an_unreachable_registry_ends_at_the_deadline() {
    let scene = Scene::new(1 << 20, RegistryConfig::default(), hasty()).await;
    scene.registry.set_down(true);
    let error = scene.read(0, 10).await.unwrap_err();
    assert!(matches!(error, ReadError::Deadline { .. }), "{error}");
}

fn redirecting() -> RegistryConfig {
    let redirect = Some(Redirect { ttl: Duration::from_secs(600), other_port: true });
    RegistryConfig { redirect, ..RegistryConfig::default() }
}

#[tokio::test]
async fn an_expired_address_is_asked_for_again_once_for_all() {
    let config = Config { join_gap_bytes: 0, ..crate::support::config() };
    let scene = Scene::new(1 << 20, redirecting(), config).await;
    scene.good(0, 10).await;
    scene.registry.fail(Fault::ExpiredRedirect.times(8));
    join_all((0..8).map(|at| scene.good(at * 100_000, at * 100_000 + 10))).await;
    let counts = scene.registry.counts();
    assert_eq!((counts.blob_requests, counts.storage_requests), (2, 1 + 8 + 8));
    assert_eq!(scene.fetcher.fetched().failures, 0, "an address that ends is no failure");
}

#[tokio::test]
async fn an_address_that_fails_fresh_is_not_denied_for_good() {
    let scene = Scene::new(1 << 20, redirecting(), crate::support::config()).await;
    scene.registry.fail(Fault::ExpiredRedirect.times(2));
    scene.good(0, 10).await;
    scene.registry.fail(Fault::ExpiredRedirect.always());
    let error = scene.read(0, 10).await.unwrap_err();
    assert!(matches!(error, ReadError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn no_error_shows_the_query_of_an_address() {
    let scene = Scene::new(1 << 20, redirecting(), hasty()).await;
    scene.good(0, 10).await;
    for fault in
        [Fault::Status(500), Fault::ResetMidBody { after_bytes: 0 }, Fault::WrongContentRange, Fault::ExpiredRedirect]
    {
        scene.registry.clear_faults();
        scene.registry.fail(fault.always());
        let error = scene.read(0, 10).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains('?'), "{error}");
    }
}

#[tokio::test]
async fn bytes_read_before_and_after_a_fault_are_the_blob() {
    let scene = Scene::plain(600_000).await;
    scene.registry.fail(Fault::ResetMidBody { after_bytes: 100_000 }.times(4));
    let wanted = [(0, 200_000), (200_000, 400_000), (350_000, 600_000)];
    join_all(wanted.map(|(a, b)| scene.good(a, b))).await;
}
