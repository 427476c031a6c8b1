//! Mirrors as hosts.toml describes them: whom a read asks, whom it asks next, and who is passed over.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use penstock_blob::{Blob, BlobSource as _, Giver, Purpose, ReadError};
use penstock_fetcher::{Config, EndpointState, EndpointStatus, Event, Fetcher, Reference};
use penstock_registry::{Fault, Registry, Rule};
use tokio::sync::broadcast;

use crate::support::{config, content, fetcher, range, reference, registry, until};

/// An origin, its mirrors, and a fetcher whose hosts.toml names them in this order.
pub(crate) struct Mirrored {
    pub(crate) origin: Registry,
    pub(crate) mirrors: Vec<Registry>,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) events: broadcast::Receiver<Event>,
    certs: tempfile::TempDir,
}

impl Mirrored {
    pub(crate) async fn new(mirrors: usize, config: Config) -> Self {
        let origin = registry(penstock_registry::Config::default()).await;
        let mut all = Vec::new();
        for _ in 0..mirrors {
            all.push(registry(penstock_registry::Config::default()).await);
        }
        let certs = tempfile::tempdir().unwrap();
        let fetcher = fetcher(Config {
            hosts_dirs: vec![certs.path().to_owned()],
            hosts_recheck: Duration::from_nanos(1),
            ..config
        });
        let events = fetcher.events();
        let scene = Self { origin, mirrors: all, fetcher, events, certs };
        scene.write(&scene.mirrors.iter().map(|mirror| host(mirror, "")).collect::<String>());
        scene
    }

    /// Writes the origin's hosts.toml.
    pub(crate) fn write(&self, text: &str) -> PathBuf {
        let dir = self.certs.path().join(format!("{}_", self.origin.host().replace(':', "_")));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("hosts.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn from(&self) -> Reference {
        reference(&self.origin, "team/app:1")
    }

    /// A blob that all have.
    fn blob(&self, len: usize, seed: u64) -> (Blob, Bytes) {
        let bytes = content(len, seed);
        let blob = self.origin.put_blob(bytes.clone());
        for mirror in &self.mirrors {
            let _same = mirror.put_blob(bytes.clone());
        }
        self.fetcher.serve(blob, &self.from());
        (blob, bytes)
    }

    async fn good(&self, (blob, bytes): &(Blob, Bytes), start: u64, end: u64) {
        let read = self.fetcher.read(*blob, range(start, end), Purpose::Demand).await.unwrap();
        let index = |at: u64| usize::try_from(at).unwrap();
        assert!(read == bytes.slice(index(start)..index(end)), "other bytes than the blob's for {start}..{end}");
    }

    /// Requests that the mirrors saw, and the origin.
    fn asked(&self) -> (Vec<u64>, u64) {
        let mirrors = self.mirrors.iter().map(|mirror| mirror.counts().requests).collect();
        (mirrors, self.origin.counts().requests)
    }

    pub(crate) fn endpoint(&self, at: usize) -> EndpointStatus {
        self.fetcher.registries()[0].endpoints[at].clone()
    }

    pub(crate) fn said(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }
}

pub(crate) fn host(registry: &Registry, fields: &str) -> String {
    format!("[host.\"http://{}\"]\n{fields}\n", registry.host())
}

/// A config with which waiting for a stuck connection to time out would be too late for every reader.
fn patient() -> Config {
    Config { idle_timeout: Duration::from_secs(600), ..config() }
}

#[tokio::test]
async fn mirrors_are_asked_in_the_order_of_the_file_and_the_origin_last() {
    let scene = Mirrored::new(2, config()).await;
    let blob = scene.blob(10_000, 1);
    scene.good(&blob, 0, 100).await;
    assert_eq!(scene.asked(), (vec![1, 0], 0));
    let giver = |start, end| scene.fetcher.giver(&blob.0, range(start, end));
    assert_eq!((giver(50, 60), giver(200, 300)), (Some(Giver::Mirror), None));
    scene.write(&[host(&scene.mirrors[1], ""), host(&scene.mirrors[0], "")].concat());
    scene.good(&blob, 0, 100).await;
    assert_eq!(scene.asked(), (vec![1, 1], 0));
    scene.write("");
    scene.good(&blob, 0, 100).await;
    assert_eq!(scene.asked(), (vec![1, 1], 1));
    assert_eq!(giver(99, 200), Some(Giver::Origin), "who gave them last");
}

#[tokio::test]
async fn a_read_goes_on_at_the_next_endpoint_when_one_fails() {
    for fault in [
        Fault::Status(500),
        Fault::Status(401),
        Fault::Status(403),
        Fault::Status(404),
        Fault::Status(418),
        Fault::TooMany { retry_after: Some(Duration::from_secs(3600)) },
        Fault::ResetMidBody { after_bytes: 20_000 },
        Fault::ShortBody,
        Fault::WrongContentRange,
        Fault::IgnoreRange,
    ] {
        let scene = Mirrored::new(2, config()).await;
        let blob = scene.blob(100_000, 1);
        scene.mirrors[0].fail(fault.clone().always());
        scene.mirrors[1].set_down(true);
        scene.good(&blob, 0, 100_000).await;
        assert_eq!(scene.asked().1, 1, "{fault:?}");
        assert_eq!(scene.fetcher.fetched().failures, 2, "{fault:?}");
    }
}

#[tokio::test]
async fn what_a_mirror_lacks_is_no_failure_of_its_and_not_found_is_said_when_nobody_has_it() {
    let mut scene = Mirrored::new(1, config()).await;
    let bytes = content(1000, 1);
    let blob = scene.origin.put_blob(bytes.clone());
    scene.fetcher.serve(blob, &scene.from());
    for _ in 0..10 {
        scene.good(&(blob, bytes.clone()), 0, 10).await;
    }
    assert_eq!(scene.asked(), (vec![1], 10), "it is not asked again for a while");
    assert_eq!(scene.endpoint(0).state, EndpointState::Closed);
    scene.origin.remove_blob(&blob.digest);
    let error = scene.fetcher.read(blob, range(0, 10), Purpose::Demand).await.unwrap_err();
    assert!(matches!(error, ReadError::NotFound { .. }), "{error}");
    assert_eq!(scene.asked().0, [2], "all were asked before that was said");
    let said = scene.said();
    assert!(matches!(&said[..], [Event::FetchFailed { reason, .. }] if reason.contains("404")), "{said:?}");
}

#[tokio::test]
async fn a_mirror_that_keeps_failing_is_passed_over_and_comes_back() {
    let mut scene = Mirrored::new(1, config()).await;
    let blob = scene.blob(100_000, 1);
    scene.mirrors[0].fail(Fault::Status(503).always());
    for at in 0..20 {
        scene.good(&blob, at, at + 1).await;
    }
    // Within the first second, in which the reads above are most likely done, nobody probes; a probe later is one request.
    assert!(scene.asked().0[0] < 10, "{:?}", scene.asked());
    let name = scene.mirrors[0].host();
    let said = scene.said();
    assert!(
        matches!(&said[..], [Event::EndpointBroken { endpoint, reason }] if *endpoint == name && reason.contains("503")),
        "{said:?}"
    );
    scene.mirrors[0].clear_faults();
    while scene.endpoint(0).state != EndpointState::Closed {
        scene.good(&blob, 0, 10).await;
    }
    assert_eq!(scene.said(), [Event::EndpointHealed { endpoint: name }]);
    let before = scene.asked().1;
    scene.good(&blob, 0, 10).await;
    assert_eq!(scene.asked().1, before);
}

#[tokio::test]
async fn one_request_tries_a_broken_endpoint_and_the_others_pass_it_over() {
    let scene = Mirrored::new(1, patient()).await;
    let blob = scene.blob(400_000, 1);
    scene.mirrors[0].fail(Fault::Status(503).times(5));
    for at in 0..5 {
        scene.good(&blob, at, at + 1).await;
    }
    scene.mirrors[0].fail(Fault::Stall.always());
    while scene.asked().0[0] == 5 {
        join_all((0..20).map(|at| scene.good(&blob, at * 20_000, at * 20_000 + 100))).await;
    }
    assert_eq!(scene.asked().0, [6]);
}

#[tokio::test]
async fn a_broken_endpoint_is_still_asked_when_there_is_nobody_else() {
    let scene = Mirrored::new(1, config()).await;
    let blob = scene.blob(1000, 1);
    scene.origin.set_down(true);
    scene.mirrors[0].fail(Fault::Status(503).times(12));
    scene.good(&blob, 0, 10).await;
    assert_eq!(scene.mirrors[0].pending_faults(), 0);
    assert_eq!(scene.endpoint(1).state, EndpointState::Open);
}

#[tokio::test]
async fn who_gave_wrong_bytes_is_named_and_avoided_for_that_blob() {
    let mut scene = Mirrored::new(1, config()).await;
    let (bad, other) = (scene.blob(10_000, 1), scene.blob(10_000, 2));
    scene.mirrors[0].fail(Rule::from(Fault::WrongBytes).digest(bad.0.digest).always());
    let wrong = scene.fetcher.read(bad.0, range(0, 1000), Purpose::Demand).await.unwrap();
    assert!(wrong != bad.1.slice(0..1000));
    scene.good(&other, 0, 1000).await;
    scene.fetcher.reject(&bad.0, range(400, 600));
    let name = scene.mirrors[0].host();
    let said = scene.said();
    assert!(
        matches!(&said[..], [Event::WrongBytes { endpoint, blob, shared: false, .. }] if *endpoint == name && *blob == bad.0.digest),
        "{said:?}"
    );
    scene.good(&bad, 0, 1000).await;
    scene.good(&other, 0, 1000).await;
    assert_eq!(scene.asked(), (vec![3], 1), "the other blob is still asked there");
    let rejects: Vec<u64> = scene.fetcher.registries()[0].endpoints.iter().map(|e| e.fetched.rejects).collect();
    assert_eq!(rejects, [1, 0]);
}

#[tokio::test]
async fn the_blame_is_on_who_gave_the_bytes_and_not_on_who_gave_last() {
    let mut scene = Mirrored::new(1, config()).await;
    let blob = scene.blob(10_000, 1);
    scene.good(&blob, 0, 1000).await;
    scene.mirrors[0].fail(Fault::Status(500));
    scene.good(&blob, 5000, 6000).await;
    scene.fetcher.reject(&blob.0, range(0, 100));
    scene.fetcher.reject(&blob.0, range(8000, 8100));
    let said = scene.said();
    assert!(
        matches!(&said[..], [Event::WrongBytes { endpoint, .. }] if *endpoint == scene.mirrors[0].host()),
        "nobody gave the second range: {said:?}"
    );
}

#[tokio::test]
async fn a_mirror_that_gives_wrong_bytes_of_several_blobs_is_passed_over_for_all() {
    let mut scene = Mirrored::new(1, config()).await;
    scene.mirrors[0].fail(Fault::WrongBytes.times(3));
    for seed in 1..=3 {
        let blob = scene.blob(1000, seed);
        let _wrong = scene.fetcher.read(blob.0, range(0, 1000), Purpose::Demand).await.unwrap();
        scene.fetcher.reject(&blob.0, range(0, 1000));
    }
    assert!(matches!(scene.said().last(), Some(Event::EndpointBroken { .. })));
    let good = scene.blob(1000, 9);
    scene.good(&good, 0, 1000).await;
    assert_eq!(scene.asked(), (vec![3], 1));
}

#[tokio::test]
async fn a_slow_request_is_asked_at_the_next_endpoint_too() {
    let scene = Mirrored::new(1, patient()).await;
    let blob = scene.blob(100_000, 1);
    for at in 0..10 {
        scene.good(&blob, at, at + 1).await;
    }
    scene.mirrors[0].fail(Fault::Stall);
    scene.good(&blob, 0, 50_000).await;
    assert_eq!(scene.asked(), (vec![11], 1));
    assert_eq!(scene.endpoint(1).hedges, 1);
    until("who lost was dropped", || scene.mirrors[0].stalled() == 0).await;
}

#[tokio::test]
async fn a_slow_request_is_not_asked_again_in_another_repository_of_the_same_endpoint() {
    let scene = Mirrored::new(0, patient()).await;
    let blob = scene.blob(100_000, 1);
    for image in 0..20 {
        scene.fetcher.serve(blob.0, &reference(&scene.origin, &format!("on-base/{image}:1")));
    }
    for at in 0..10 {
        scene.good(&blob, at, at + 1).await;
    }
    scene.origin.fail(Fault::Delay(Duration::from_millis(400)));
    scene.good(&blob, 0, 50_000).await;
    assert_eq!(scene.asked(), (vec![], 11));
    assert_eq!(scene.endpoint(0).hedges, 0);
}

#[tokio::test]
async fn hedges_cost_no_more_than_their_share_of_bytes() {
    // The mirror is slower than hedging waits, but not so slow that it is passed over.
    let scene = Mirrored::new(1, Config { max_request_bytes: 1000, ..patient() }).await;
    let blob = scene.blob(400_000, 1);
    scene.mirrors[0].fail(Fault::Delay(Duration::from_millis(80)).always());
    for round in 0..10 {
        join_all((0..20).map(|at| scene.good(&blob, (round * 20 + at) * 2000, (round * 20 + at) * 2000 + 1000))).await;
    }
    let extra = scene.endpoint(1).hedges * 1000;
    let read = scene.fetcher.fetched().bytes;
    assert!(extra <= 1000 + read / 20, "{extra} of {read} bytes were asked for twice");
}

#[tokio::test]
async fn a_mirror_that_is_stuck_stalls_nobody_for_long() {
    let scene = Mirrored::new(1, Config { max_requests: 8, join_gap_bytes: 0, ..patient() }).await;
    let blob = scene.blob(400_000, 1);
    scene.mirrors[0].fail(Fault::Stall.always());
    join_all((0..40).map(|at| scene.good(&blob, at * 10_000, at * 10_000 + 100))).await;
    assert_eq!(scene.fetcher.fetched().bytes, 40 * 100);
}

#[tokio::test]
async fn a_stuck_blob_stalls_only_its_own_readers() {
    let scene = Mirrored::new(0, Config { max_requests: 8, ..patient() }).await;
    let (stuck, other) = (scene.blob(400_000, 1), scene.blob(400_000, 2));
    scene.origin.fail(Rule::from(Fault::Stall).digest(stuck.0.digest).always());
    let readers =
        join_all((0..40).map(|at| scene.fetcher.read(stuck.0, range(at * 10_000, at * 10_000 + 100), Purpose::Demand)));
    let others = async {
        scene.origin.until_stalled(1).await;
        join_all((0..40).map(|at| scene.good(&other, at * 10_000, at * 10_000 + 100))).await;
    };
    tokio::select! { biased; _ = readers => panic!("answered by a stalled registry"), () = others => {} }
}

#[tokio::test]
async fn a_stuck_registry_stalls_only_its_own_readers() {
    let scene = Mirrored::new(0, Config { max_requests: 8, ..patient() }).await;
    let stuck: Vec<_> = (0..8).map(|seed| scene.blob(100_000, seed)).collect();
    let second = registry(penstock_registry::Config::default()).await;
    let bytes = content(100_000, 99);
    let other = (second.put_blob(bytes.clone()), bytes);
    scene.fetcher.serve(other.0, &reference(&second, "other/app:1"));
    scene.origin.fail(Fault::Stall.always());
    let readers = join_all(stuck.iter().flat_map(|(blob, _)| {
        (0..8).map(|at| scene.fetcher.read(*blob, range(at * 10_000, at * 10_000 + 100), Purpose::Demand))
    }));
    let others = async {
        scene.origin.until_stalled(4).await;
        join_all((0..10).map(|at| scene.good(&other, at * 10_000, at * 10_000 + 100))).await;
    };
    tokio::select! { biased; _ = readers => panic!("answered by a stalled registry"), () = others => {} }
}

#[tokio::test]
async fn edits_hold_without_a_restart_and_bad_ones_do_no_harm() {
    let mut scene = Mirrored::new(2, config()).await;
    let blob = scene.blob(10_000, 1);
    let origin = scene.origin.host();
    scene.write(&host(&scene.mirrors[0], ""));
    scene.good(&blob, 0, 10).await;
    assert_eq!(scene.said(), []);
    let path = scene.write(&host(&scene.mirrors[1], "capabilities = [\"pul\"]"));
    scene.good(&blob, 0, 10).await;
    scene.good(&blob, 0, 10).await;
    let said = scene.said();
    assert!(
        matches!(&said[..], [Event::HostsRefused { registry, reason }]
            if *registry == origin && reason.contains(path.to_str().unwrap()) && reason.contains("line 2")),
        "said once, with the file: {said:?}"
    );
    assert!(scene.fetcher.registries()[0].hosts_fault.is_some());
    assert_eq!(scene.asked(), (vec![3, 0], 0), "what held before still does");
    scene.write(&host(&scene.mirrors[1], ""));
    scene.good(&blob, 0, 10).await;
    assert_eq!(scene.asked(), (vec![3, 1], 0));
    let endpoints = [&scene.mirrors[1], &scene.origin].map(|r| format!("http://{}/v2", r.host())).to_vec();
    assert_eq!(scene.said(), [Event::HostsTaken { registry: origin, endpoints }]);
    assert_eq!(scene.fetcher.registries()[0].hosts_fault, None);
}

#[tokio::test]
async fn a_mirror_may_only_be_asked_for_what_it_can() {
    let scene = Mirrored::new(2, config()).await;
    let blob = scene.blob(10_000, 1);
    scene.write(
        &[
            host(&scene.mirrors[0], "capabilities = [\"resolve\"]"),
            host(&scene.mirrors[1], "capabilities = [\"pull\"]"),
        ]
        .concat(),
    );
    scene.good(&blob, 0, 10).await;
    assert_eq!(scene.asked(), (vec![0, 1], 0));
}

#[tokio::test]
async fn a_host_that_is_spoken_to_as_if_it_had_tls_is_spoken_to_without_when_it_has_none() {
    let scene = Mirrored::new(1, config()).await;
    let blob = scene.blob(10_000, 1);
    scene.write(&host(&scene.mirrors[0], "skip_verify = true"));
    for _ in 0..3 {
        scene.good(&blob, 0, 10).await;
    }
    assert_eq!(scene.asked(), (vec![3], 0));
}
