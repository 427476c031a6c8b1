//! What a pull does ahead: the image is known and opened when the first container comes, whatever became of the registry or the agent meanwhile.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    process::Command,
    time::Duration,
};

use futures_util::StreamExt as _;
use penstock_agent::{Agent, Config};
use penstock_api as api;
use penstock_registry::{Fault, Request, Target};
use tokio::task::JoinSet;
use tonic::Code;

use super::{Bench, Containerd, cannot_mount, check_files, kinds, only_lower};

/// Waits until the agent says `kind`.
async fn until(agent: &Agent, kind: &str) {
    let mut events = agent.node().follow(0).unwrap();
    let said = |events: &api::Events| events.events.iter().any(|event| event.kind == kind);
    let waiting = async { while !said(&events.next().await.expect("the agent runs")) {} };
    tokio::time::timeout(Duration::from_secs(120), waiting).await.unwrap_or_else(|_| panic!("no {kind}"));
}

/// Whether a registry was asked what an image is, or what it is verified by.
fn asks_what(request: &Request) -> bool {
    request.path.contains("/manifests/") || request.path.contains("/referrers/")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_mount_after_a_restart_asks_no_registry_what_the_image_is_and_serves_what_is_cached_without_any() {
    require_mounts!();
    let bench = Bench::new().await;
    let (agent, containerd) = bench.agent().await;
    let image = bench.image();
    let (names, _) = containerd.pull(&image).await;
    until(&agent, "snapshot.opened").await;
    assert_eq!(agent.node().devices().await.unwrap().len(), 0);
    agent.stop().await.unwrap();

    bench.registry.reset_counts();
    let (agent, containerd) = bench.agent().await;
    let lower = only_lower(&containerd.prepare("k8s.io/9/first", &names[2], HashMap::new()).await.unwrap());
    let asked: Vec<_> = bench.registry.requests().into_iter().filter(asks_what).collect();
    assert_eq!(asked, [], "the first mount");
    check_files(&lower).await;
    // All is cached now. The device goes with its snapshot, which is pulled anew and not mounted.
    containerd.remove("k8s.io/9/first").await.unwrap();
    for name in names.iter().rev() {
        containerd.remove(name).await.unwrap();
    }
    assert_eq!(agent.node().devices().await.unwrap().len(), 0);
    let (names, _) = containerd.pull(&image).await;
    agent.stop().await.unwrap();

    bench.registry.set_down(true);
    let (agent, containerd) = bench.agent().await;
    let lower = only_lower(&containerd.prepare("k8s.io/9/second", &names[2], HashMap::new()).await.unwrap());
    check_files(&lower).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_comes_while_the_image_is_opened_waits_for_that_and_nothing_is_fetched_twice() {
    require_mounts!();
    let bench = Bench::new().await;
    let (agent, containerd) = bench.agent().await;
    bench.registry.fail(Fault::Stall.on(Target::BlobBytes).always());
    let (names, unpacked) = containerd.pull(&bench.image()).await;
    assert!(names.len() == 3 && unpacked.is_none(), "the pull does not wait");
    bench.registry.until_stalled(1).await;
    let (mounting, parent) = (containerd.clone(), names[2].clone());
    let mut mount = JoinSet::new();
    mount.spawn(async move { mounting.prepare("k8s.io/9/c", &parent, HashMap::new()).await });
    let asking = async {
        while !agent.node().metrics().await.unwrap().contains("{state=\"attaching\"} 1") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), asking).await.expect("the mount has begun");
    bench.registry.clear_faults();
    bench.registry.release();
    check_files(&only_lower(&mount.join_next().await.unwrap().unwrap().unwrap())).await;
    let blobs =
        bench.registry.requests().into_iter().filter(|request| request.range.is_some() && request.status == 206);
    let ranges: Vec<_> =
        blobs.filter(|request| request.bytes > 0).map(|request| (request.digest, request.range.unwrap())).collect();
    for (nth, (digest, range)) in ranges.iter().enumerate() {
        let again = ranges[..nth]
            .iter()
            .any(|(of, other)| of == digest && other.start() < range.end() && range.start() < other.end());
        assert!(!again, "{digest:?} {range:?} was fetched twice: {ranges:?}");
    }
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_index_that_is_required_a_disk_is_refused_at_the_pull_and_a_tar_unpacked() {
    let bench = Bench::new().await;
    let tar = bench.put("plain", "application/vnd.oci.image.layer.v1.tar+gzip", &[b"one".to_vec()]);
    let agent = Agent::start(Config { verify_require: true, ..bench.config() }).await.unwrap();
    let containerd = Containerd::connect(agent.snapshots().unwrap()).await;
    let image = bench.image();
    let key = format!("k8s.io/1/extract-0 {}", image.chains[0]);
    let refused = containerd.prepare(&key, "", image.labels(0)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("only images with an index are"), "{refused}");
    let told = kinds(&agent).await;
    assert!(told.iter().any(|(kind, text)| kind == "snapshot.refused" && text.contains(&image.reference)), "{told:?}");
    let (names, unpacked) = containerd.pull(&tar).await;
    assert!(names.is_empty() && unpacked.is_some(), "containerd verifies what it unpacks itself");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_nobody_describes_is_unpacked_and_an_event_says_why() {
    let bench = Bench::new().await;
    let (agent, containerd) = bench.agent().await;
    let target = HashMap::from([("containerd.io/snapshot.ref".to_owned(), bench.image().chains[0].to_string())]);
    for key in ["a", "b"] {
        containerd.prepare(key, "", target.clone()).await.unwrap();
    }
    let told = kinds(&agent).await;
    let eager: Vec<_> = told.iter().filter(|(kind, _)| kind == "snapshot.eager").collect();
    assert!(matches!(&eager[..], [(_, text)] if text.contains("no image reference")), "{told:?}");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_to_tell_a_layer_is_not_fetched_again() {
    require_mounts!();
    let bench = Bench::new().await;
    let (tree, disk) = (bench.dir.path().join("tree"), bench.dir.path().join("disk"));
    fs::create_dir_all(&tree).unwrap();
    fs::write(tree.join("file"), "file").unwrap();
    let made = Command::new("mkfs.erofs").arg(&disk).arg(&tree).output();
    if !made.is_ok_and(|made| made.status.success()) {
        println!("skipped: {}: there is no mkfs.erofs", std::thread::current().name().unwrap_or("a test"));
        return;
    }
    let image = bench.put("erofs", "application/vnd.oci.image.layer.v1.tar", &[fs::read(&disk).unwrap()]);
    let (agent, containerd) = bench.agent().await;
    let (names, _) = containerd.pull(&image).await;
    let lower = only_lower(&containerd.prepare("k8s.io/9/c", &names[0], HashMap::new()).await.unwrap()).join("file");
    let text = tokio::task::spawn_blocking(move || fs::read_to_string(lower)).await.unwrap();
    assert_eq!(text.unwrap(), "file");
    let ranges: Vec<_> = bench.registry.requests().into_iter().filter_map(|request| request.range).collect();
    let starts: BTreeSet<_> = ranges.iter().map(|range| range.start()).collect();
    assert_eq!(
        starts.len(),
        ranges.len(),
        "the disk is one chunk, and nothing of it is read past the cache: {ranges:?}"
    );
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_is_served_while_a_device_is_still_being_made_again_and_who_needs_that_waits() {
    require_mounts!();
    let bench = Bench::new().await;
    let (agent, containerd) = bench.agent().await;
    let (names, _) = containerd.pull(&bench.image()).await;
    let mounts = containerd.prepare("k8s.io/9/c", &names[2], HashMap::new()).await.unwrap();
    agent.stop().await.unwrap();
    // Nothing is left of what was read, and the registry takes its time.
    for name in ["cache", "maps"] {
        fs::remove_dir_all(bench.dir.path().join("state").join(name)).unwrap();
    }
    bench.registry.fail(Fault::Stall.on(Target::BlobBytes).always());
    let (agent, containerd) = bench.agent().await;
    let devices = agent.node().devices().await.unwrap();
    let states: Vec<_> = devices.iter().map(|device| device.state).collect();
    assert_eq!(states, [api::DeviceState::Attaching], "the agent went on before the device was made");
    let other = bench.put("plain", "application/vnd.oci.image.layer.v1.tar+gzip", &[b"one".to_vec()]);
    let (_, unpacked) = containerd.pull(&other).await;
    assert!(unpacked.is_some(), "others are served");
    let (waiting, key) = (containerd.clone(), "k8s.io/9/c");
    let mut answer = JoinSet::new();
    answer.spawn(async move { waiting.mounts(key).await });
    bench.registry.clear_faults();
    bench.registry.release();
    assert_eq!(answer.join_next().await.unwrap().unwrap().unwrap(), mounts);
    check_files(&only_lower(&mounts)).await;
    agent.stop().await.unwrap();
}
