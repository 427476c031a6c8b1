//! Latency, bandwidth, and the registry going away. Times are of the paused clock: no test waits for a wall clock.

use std::time::Duration;

use penstock_registry::Config;
use reqwest::Method;
use tokio::time::Instant;

use crate::client::{Pair, noise};

#[tokio::test(start_paused = true)]
async fn every_request_waits_the_latency() {
    let latency = Duration::from_millis(80);
    let pair = Pair::start(Config { latency, ..Config::default() }).await;
    let begin = Instant::now();
    for _ in 0..3 {
        pair.ask(Method::GET, "/v2/").await;
    }
    let took = begin.elapsed();
    assert!(took >= 3 * latency && took < 4 * latency, "{took:?}");
    pair.registry.set_latency(Duration::ZERO);
    let begin = Instant::now();
    pair.ask(Method::GET, "/v2/").await;
    assert!(begin.elapsed() < latency);
}

#[tokio::test(start_paused = true)]
async fn connections_share_the_link() {
    let pair = Pair::start(Config { bandwidth_bytes_per_second: Some(1_000_000), ..Config::default() }).await;
    let blob = pair.registry.put_blob(noise(500_000));
    let path = format!("/v2/a/blobs/{}", blob.digest);
    let fetch = async || pair.pull(&path).await.bytes().await.unwrap();
    let begin = Instant::now();
    let (a, b, c, d) = tokio::join!(fetch(), fetch(), fetch(), fetch());
    let took = begin.elapsed();
    assert_eq!([a, b, c, d].iter().map(|bytes| bytes.len()).sum::<usize>(), 2_000_000);
    assert!(took > Duration::from_millis(1900) && took < Duration::from_millis(2200), "{took:?}");
    pair.registry.set_bandwidth(None);
    let begin = Instant::now();
    fetch().await;
    assert!(begin.elapsed() < Duration::from_millis(100));
}

#[tokio::test]
async fn a_registry_that_is_down_keeps_its_content() {
    let pair = Pair::start(Config::default()).await;
    let blob = pair.registry.put_blob(noise(100_000));
    let path = format!("/v2/a/blobs/{}", blob.digest);
    pair.registry.fail(penstock_registry::Fault::Stall);
    let under_way = pair.pull(&path).await;
    pair.registry.until_stalled(1).await;
    pair.registry.set_down(true);
    assert!(under_way.bytes().await.is_err());
    assert!(pair.request(Method::GET, &path).send().await.is_err());
    pair.registry.set_down(false);
    assert_eq!(pair.pull(&path).await.bytes().await.unwrap(), noise(100_000));
}

#[tokio::test]
async fn a_stopped_registry_leaves_nothing_behind() {
    let pair = Pair::start(Config::default()).await;
    let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let blob = pair.registry.put_blob(noise(100_000));
    let host = pair.registry.host();
    pair.registry.fail(penstock_registry::Fault::Stall);
    let mut peer = tokio::net::TcpStream::connect(&host).await.unwrap();
    let request = format!("GET /v2/a/blobs/{} HTTP/1.1\r\nhost: x\r\n\r\n", blob.digest);
    tokio::io::AsyncWriteExt::write_all(&mut peer, request.as_bytes()).await.unwrap();
    pair.registry.until_stalled(1).await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), before + 1);
    pair.registry.stop().await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), before - 1);
    assert!(tokio::net::TcpStream::connect(&host).await.is_err());
    let mut rest = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut peer, &mut rest).await.unwrap();
    assert!(rest.ends_with(b"\r\n\r\n"), "the head, and no byte of the body");
}

#[tokio::test]
async fn a_dropped_registry_stops_listening() {
    let pair = Pair::start(Config::default()).await;
    let host = pair.registry.host();
    drop(pair);
    while tokio::net::TcpStream::connect(&host).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_registry_comes_back_on_its_port() {
    let pair = Pair::start(Config::default()).await;
    let host = pair.registry.host();
    pair.pull("/v2/").await.bytes().await.unwrap();
    pair.registry.stop().await;
    let port = host.rsplit(':').next().unwrap().parse().unwrap();
    let again = Pair::start(Config { port, ..Config::default() }).await;
    assert_eq!(again.registry.host(), host);
    assert_eq!(again.pull("/v2/").await.status(), 200);
}
