//! Every fault, and that it meets the right requests.

use std::{error::Error as _, io, time::Duration};

use penstock_blob::{Blob, Digest};
use penstock_registry::{Config, Fault, Kind, Redirect, Rule, Target};
use reqwest::Method;

use crate::client::{Pair, code, header, noise};

const SIZE: usize = 2_000_000;

async fn start() -> (Pair, Blob, String) {
    let pair = Pair::start(Config::default()).await;
    let blob = pair.registry.put_blob(noise(SIZE));
    let path = format!("/v2/a/blobs/{}", blob.digest);
    (pair, blob, path)
}

/// The body's bytes up to where it broke, and the system's reason.
async fn broken(mut answer: reqwest::Response) -> (usize, Option<io::ErrorKind>) {
    let mut count = 0;
    loop {
        match answer.chunk().await {
            Ok(Some(piece)) => count += piece.len(),
            Ok(None) => return (count, None),
            Err(error) => {
                let mut cause = error.source();
                while let Some(next) = cause {
                    if let Some(error) = next.downcast_ref::<io::Error>() {
                        return (count, Some(error.kind()));
                    }
                    cause = next.source();
                }
                panic!("no system error in {error:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_status_is_answered_as_often_as_asked() {
    let (pair, _, path) = start().await;
    pair.registry.fail(Fault::Status(503).times(2));
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(pair.pull(&path).await.status().as_u16());
    }
    assert_eq!((seen, pair.registry.pending_faults()), (vec![503, 503, 200], 0));
    pair.registry.fail(Fault::Status(500).on(Target::Kind(Kind::Manifest)).always());
    assert_eq!(pair.pull(&path).await.status(), 200);
    assert_eq!(code(pair.pull("/v2/a/manifests/1").await).await, "UNKNOWN");
    pair.registry.clear_faults();
    assert_eq!(pair.pull("/v2/a/manifests/1").await.status(), 404);
}

#[tokio::test]
async fn too_many_says_when_to_come_back() {
    let (pair, _, path) = start().await;
    pair.registry.fail(Fault::TooMany { retry_after: Some(Duration::from_millis(2500)) });
    pair.registry.fail(Fault::TooMany { retry_after: None });
    let first = pair.pull(&path).await;
    assert_eq!((first.status().as_u16(), header(&first, "retry-after")), (429, "3"));
    let second = pair.pull(&path).await;
    assert_eq!((second.status().as_u16(), header(&second, "retry-after")), (429, ""));
}

#[tokio::test]
async fn a_reset_comes_after_the_bytes_asked_for() {
    let (pair, _, path) = start().await;
    for after_bytes in [0, 1, 50_000] {
        pair.registry.reset_counts();
        pair.registry.fail(Fault::ResetMidBody { after_bytes });
        let answer = pair.pull(&path).await;
        assert_eq!((answer.status().as_u16(), header(&answer, "content-length")), (200, "2000000"));
        let (count, reason) = broken(answer).await;
        assert_eq!(reason, Some(io::ErrorKind::ConnectionReset));
        assert!(count as u64 <= after_bytes, "{count} > {after_bytes}");
        assert_eq!(pair.registry.requests()[0].bytes, after_bytes);
    }
    assert_eq!(pair.pull(&path).await.bytes().await.unwrap().len(), SIZE);
}

#[tokio::test]
async fn a_short_body_ends_half_way() {
    let (pair, _, path) = start().await;
    pair.registry.fail(Fault::ShortBody);
    let answer = pair.range(&path, "bytes=0-999").await;
    assert_eq!((answer.status().as_u16(), header(&answer, "content-length")), (206, "1000"));
    assert_eq!(broken(answer).await, (500, Some(io::ErrorKind::UnexpectedEof)));
}

#[tokio::test]
async fn a_range_is_misstated_or_ignored() {
    let (pair, _, path) = start().await;
    pair.registry.fail(Fault::WrongContentRange);
    let moved = pair.range(&path, "bytes=10-19").await;
    assert_eq!((moved.status().as_u16(), header(&moved, "content-range")), (206, "bytes 11-20/2000000"));
    assert_eq!(moved.bytes().await.unwrap(), noise(SIZE)[10..20]);
    pair.registry.fail(Fault::IgnoreRange);
    let whole = pair.range(&path, "bytes=10-19").await;
    assert_eq!((whole.status().as_u16(), header(&whole, "content-range")), (200, ""));
    assert_eq!(whole.bytes().await.unwrap().len(), SIZE);
}

#[tokio::test]
async fn wrong_bytes_differ_in_one_bit() {
    let (pair, _, path) = start().await;
    pair.registry.fail(Fault::WrongBytes);
    let got = pair.range(&path, "bytes=500000-1499999").await.bytes().await.unwrap();
    let bits: u32 = got.iter().zip(&noise(SIZE)[500_000..1_500_000]).map(|(a, b)| (a ^ b).count_ones()).sum();
    assert_eq!((got.len(), bits), (1_000_000, 1));
}

#[tokio::test]
async fn credentials_and_signed_urls_are_refused() {
    let (pair, _, path) = start().await;
    pair.registry.fail(Fault::Unauthorized);
    let answer = pair.pull(&path).await;
    assert_eq!((answer.status().as_u16(), header(&answer, "www-authenticate")), (401, "Basic realm=\"penstock\""));

    let redirect = Some(Redirect { ttl: Duration::from_secs(60), other_port: false });
    let pair = Pair::start(Config { redirect, ..Config::default() }).await;
    let blob = pair.registry.put_blob(noise(10));
    pair.registry.fail(Fault::ExpiredRedirect);
    let answer = pair.pull(&format!("/v2/a/blobs/{}", blob.digest)).await;
    assert_eq!(answer.status(), 307);
    let url = header(&answer, "location");
    assert_eq!(pair.pull(url).await.status(), 403);
    assert_eq!(pair.pull(url).await.status(), 200);
}

#[tokio::test]
async fn a_stalled_answer_goes_on_when_released() {
    let (pair, _, path) = start().await;
    pair.registry.fail(Fault::Stall.times(2));
    let first = pair.pull(&path).await;
    let second = pair.pull(&path).await;
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200), "the heads came");
    pair.registry.until_stalled(2).await;
    assert!(pair.registry.requests().iter().all(|request| request.bytes == 0));
    pair.registry.release();
    assert_eq!(first.bytes().await.unwrap().len() + second.bytes().await.unwrap().len(), 2 * SIZE);
    assert_eq!(pair.registry.stalled(), 0);
}

#[tokio::test]
async fn a_stalled_answer_ends_when_the_client_hangs_up() {
    let (pair, _, path) = start().await;
    pair.registry.fail(Fault::Stall);
    let answer = pair.pull(&path).await;
    pair.registry.until_stalled(1).await;
    drop(answer);
    while pair.registry.stalled() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_delayed_answer_is_right_and_late() {
    let (pair, _, path) = start().await;
    pair.registry.fail(Fault::Delay(Duration::from_secs(7)));
    let begin = tokio::time::Instant::now();
    assert_eq!(pair.pull(&path).await.bytes().await.unwrap().len(), SIZE);
    assert!(begin.elapsed() >= Duration::from_secs(7));
}

#[tokio::test]
async fn a_rule_names_its_requests() {
    let (pair, blob, path) = start().await;
    let other = pair.registry.put_blob(noise(10));
    pair.registry.fail(Rule::from(Fault::Status(500)).digest(blob.digest).skip(1));
    assert_eq!(pair.pull(&format!("/v2/a/blobs/{}", other.digest)).await.status(), 200);
    assert_eq!(pair.ask(Method::HEAD, &path).await.status(), 200);
    assert_eq!(pair.pull(&path).await.status(), 200);
    assert_eq!(pair.pull(&path).await.status(), 500);
    pair.registry.fail(Fault::Status(502).on(Target::Any));
    assert_eq!(pair.pull(&format!("/v2/a/blobs/{}", Digest::of(b"no"))).await.status(), 502);
}
