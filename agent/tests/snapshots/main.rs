//! An agent in this process that serves containerd: what containerd's unpacker and its containers ask, over the socket, with images of a registry on
//! loopback.
//!
//! What needs root, FUSE or a loop device says when it is skipped, in the line that `make test` counts.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail their test")]

mod containerd;

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use containerd::{Containerd, Image, Mount};
use futures_util::StreamExt as _;
use penstock_agent::{Agent, Config, mount::table};
use penstock_api::{self as api, DeviceState, NodeError, Owner};
use penstock_blob::Digest;
use penstock_registry::{Artifact, Layer, Registry};
use tonic::Code;

/// Skips the test, visibly, unless this process can mount through FUSE and loop devices.
macro_rules! require_mounts {
    () => {
        if let Some(reason) = cannot_mount() {
            println!("skipped: {}: {reason}", std::thread::current().name().unwrap_or("a test"));
            return;
        }
    };
}

mod attached;
mod foreign;
mod inspected;
mod ordinary;
mod pulled;
mod pushed;
mod streamed;

fn cannot_mount() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root to mount".into());
    }
    let missing = ["/dev/fuse", "/dev/loop-control"].into_iter().find(|path| !Path::new(path).exists())?;
    Some(format!("there is no {missing}"))
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/overlaybd")
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Chain IDs as containerd computes them.
fn chains(diffs: &[Digest]) -> Vec<Digest> {
    let mut chains: Vec<Digest> = Vec::new();
    for diff in diffs {
        let below = chains.last().map(|below| Digest::of(format!("{below} {diff}").as_bytes()));
        chains.push(below.unwrap_or(*diff));
    }
    chains
}

/// A registry with an OverlayBD image, and a place for agents.
struct Bench {
    dir: tempfile::TempDir,
    registry: Registry,
}

impl Bench {
    async fn new() -> Self {
        let registry = Registry::start(penstock_registry::Config::default()).await.unwrap();
        registry.load_layout(&fixtures().join("oci-layout"), "fixtures/overlaybd").await.unwrap();
        Self { dir: tempfile::tempdir().unwrap(), registry }
    }

    fn config(&self) -> Config {
        Config {
            transport: "fuse".parse().unwrap(),
            drain_deadline: Duration::from_secs(60),
            fetch_deadline: Duration::from_secs(20),
            snapshotter_enable: true,
            ..Config::in_dir(self.dir.path())
        }
    }

    async fn agent(&self) -> (Agent, Containerd) {
        let agent = Agent::start(self.config()).await.unwrap();
        let containerd = Containerd::connect(agent.snapshots().unwrap()).await;
        (agent, containerd)
    }

    /// The OverlayBD fixture as containerd knows it after it has resolved it.
    fn image(&self) -> Image {
        self.fixture("obd-lz4")
    }

    /// A fixture as containerd knows it after it has resolved it.
    fn fixture(&self, tag: &str) -> Image {
        let blobs = fixtures().join("oci-layout/blobs/sha256");
        let index = json(&fixtures().join("oci-layout/index.json"));
        let digest = |value: &serde_json::Value| value.as_str().unwrap().parse::<Digest>().unwrap();
        let named = |entry: &&serde_json::Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
        let manifest = digest(&index["manifests"].as_array().unwrap().iter().find(named).unwrap()["digest"]);
        let layers = json(&blobs.join(manifest.to_hex()));
        let config = json(&blobs.join(digest(&layers["config"]["digest"]).to_hex()));
        let digests = |list: &serde_json::Value, field: Option<&str>| -> Vec<Digest> {
            list.as_array().unwrap().iter().map(|entry| digest(field.map_or(entry, |field| &entry[field]))).collect()
        };
        Image {
            reference: format!("{}/fixtures/overlaybd:{tag}", self.registry.host()),
            manifest: Some(manifest),
            layers: digests(&layers["layers"], Some("digest")),
            chains: chains(&digests(&config["rootfs"]["diff_ids"], None)),
        }
    }

    /// An image of these layers, as containerd knows it.
    fn put(&self, name: &str, media_type: &str, layers: &[Vec<u8>]) -> Image {
        let blobs: Vec<_> = layers.iter().map(|bytes| self.registry.put_blob(bytes.clone())).collect();
        let digests: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
        let layer = |blob| Layer { blob, media_type: media_type.into(), annotations: Default::default() };
        let layers = blobs.into_iter().map(layer).collect();
        let manifest =
            self.registry.put_image(name, "1", Artifact { config: "{}".into(), layers, ..Artifact::default() });
        Image {
            reference: format!("{}/{name}:1", self.registry.host()),
            manifest: Some(manifest.unwrap().digest),
            chains: chains(&digests),
            layers: digests,
        }
    }

    /// A file system of one file, made by the tool; `None` where there is none.
    fn erofs(&self, name: &str, bytes: &[u8]) -> Option<Vec<u8>> {
        let (tree, disk) = (self.dir.path().join(name), self.dir.path().join(format!("{name}.erofs")));
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join(name), bytes).unwrap();
        let made = Command::new("mkfs.erofs").arg(&disk).arg(&tree).output();
        made.ok().filter(|made| made.status.success()).map(|_| fs::read(&disk).unwrap())
    }

    /// Mounts below this bench's directory, FUSE's own included.
    fn mounts(&self) -> Vec<PathBuf> {
        let dir = self.dir.path().canonicalize().unwrap();
        table::read().unwrap().into_iter().map(|entry| entry.dir).filter(|path| path.starts_with(&dir)).collect()
    }

    fn records(&self) -> usize {
        fs::read_dir(self.dir.path().join("state/attachments")).unwrap().count()
    }
}

/// The one directory that a container's mount shows read-only.
fn only_lower(mounts: &[Mount]) -> PathBuf {
    let [mount] = mounts else { panic!("one mount: {mounts:?}") };
    assert_eq!(mount.kind, "overlay");
    assert!(mount.option("upperdir").is_some() && mount.option("workdir").is_some(), "{mount:?}");
    let lower = mount.option("lowerdir").unwrap();
    assert!(!lower.contains(':'), "a merged image is one directory: {lower}");
    lower.into()
}

/// Whether all files below `root` are what the fixtures' list says. Off the runtime, which serves the misses.
async fn check_files(root: &Path) {
    let root = root.to_path_buf();
    let check = move || {
        let list = fs::read_to_string(fixtures().join("expected-sha256-files.txt")).unwrap();
        for line in list.lines() {
            let (digest, path) = line.split_once("  ").unwrap();
            let bytes = fs::read(root.join(path.trim_start_matches(['.', '/']))).unwrap();
            assert_eq!(Digest::of(&bytes).to_hex(), digest, "{path}");
        }
    };
    tokio::task::spawn_blocking(check).await.unwrap();
}

async fn kinds(agent: &Agent) -> Vec<(String, String)> {
    let events = agent.node().events(0, 1000).await.unwrap().events;
    events.into_iter().map(|event| (event.kind, event.text)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_reads_a_lazy_image_across_restarts_without_the_registry_until_all_is_removed() {
    require_mounts!();
    let bench = Bench::new().await;
    let (agent, containerd) = bench.agent().await;
    let image = bench.image();
    let (names, unpacked) = containerd.pull(&image).await;
    assert_eq!((names.len(), unpacked), (3, None), "every layer is lazy");
    assert_eq!(agent.node().devices().await.unwrap().len(), 0, "nothing is attached before it is needed");

    let mounts = containerd.prepare("k8s.io/9/container", &names[2], HashMap::new()).await.unwrap();
    let lower = only_lower(&mounts);
    check_files(&lower).await;
    let [device] = &agent.node().devices().await.unwrap()[..] else { panic!("one device for all three layers") };
    assert_eq!((device.owner, device.layers), (Owner::Snapshotter, api::Layers { first: 0, count: 3, of: 3 }));
    assert!(
        matches!(agent.node().detach(&device.id, false).await, Err(NodeError::Conflict(text)) if text.contains("--force"))
    );
    let shown = agent.node().snapshots().await.unwrap();
    let top = shown.iter().find(|snapshot| snapshot.name == names[2]).unwrap();
    assert!(top.lazy && top.detail.as_deref() == Some("OverlayBD, 3 layers"), "{top:?}");
    let done = top.device.as_ref().unwrap();
    assert_eq!(done.id, device.id);
    assert!(done.bytes_read > 0 && done.bytes_fetched > 0 && done.waited_ms > 0, "{done:?}");
    // By force it goes; the next who asks for the mounts gets it again.
    agent.node().detach(&device.id, true).await.unwrap();
    assert_eq!(containerd.mounts("k8s.io/9/container").await.unwrap(), mounts);
    check_files(&lower).await;
    agent.stop().await.unwrap();
    assert_eq!((bench.mounts(), bench.records()), (vec![], 1));

    bench.registry.set_down(true);
    let (agent, containerd) = bench.agent().await;
    assert_eq!(containerd.mounts("k8s.io/9/container").await.unwrap(), mounts);
    check_files(&lower).await;
    // Somebody unmounts it, as a reboot does: containerd only asks for the mounts again.
    rustix::mount::unmount(&lower, rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(containerd.mounts("k8s.io/9/container").await.unwrap(), mounts);
    check_files(&lower).await;
    assert_eq!(agent.node().devices().await.unwrap().len(), 1);

    assert_eq!(containerd.remove(&names[2]).await.unwrap_err().code(), Code::FailedPrecondition, "it has a child");
    containerd.remove("k8s.io/9/container").await.unwrap();
    for name in names.iter().rev() {
        containerd.remove(name).await.unwrap();
    }
    // What is removed is unmounted and detached before or after the answer; the service ends when it is done.
    agent.stop().await.unwrap();
    assert_eq!((bench.mounts(), bench.records()), (vec![], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_containers_at_once_and_a_layer_in_the_middle_have_a_device_each_and_no_more() {
    require_mounts!();
    let bench = Bench::new().await;
    let (agent, containerd) = bench.agent().await;
    let (names, _) = containerd.pull(&bench.image()).await;
    let mut preparing = tokio::task::JoinSet::new();
    for nth in 0..20 {
        let (containerd, parent) = (containerd.clone(), names[2].clone());
        preparing.spawn(async move {
            containerd.prepare(&format!("k8s.io/9/c{nth}"), &parent, HashMap::new()).await.unwrap()
        });
    }
    let lowers: Vec<PathBuf> = preparing.join_all().await.iter().map(|mounts| only_lower(mounts)).collect();
    assert!(lowers.iter().all(|lower| *lower == lowers[0]), "{lowers:?}");
    assert_eq!(agent.node().devices().await.unwrap().len(), 1);
    let middle = containerd.prepare("k8s.io/9/middle", &names[1], HashMap::new()).await.unwrap();
    let devices = agent.node().devices().await.unwrap();
    assert_eq!(devices.iter().map(|device| device.layers.count).collect::<Vec<_>>(), [3, 2]);
    assert!(devices.iter().all(|device| device.state == DeviceState::Attached), "{devices:?}");
    assert_ne!(only_lower(&middle), lowers[0]);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_file_systems_have_a_device_each_and_overlayfs_stacks_them() {
    require_mounts!();
    let bench = Bench::new().await;
    let disk = |name: &str| bench.erofs(name, name.repeat(50_000).as_bytes());
    let Some((below, above)) = disk("below").zip(disk("above")) else {
        println!("skipped: {}: there is no mkfs.erofs", std::thread::current().name().unwrap_or("a test"));
        return;
    };
    let image = bench.put("erofs", "application/vnd.oci.image.layer.v1.tar", &[below, above]);
    let (agent, containerd) = bench.agent().await;
    let (names, unpacked) = containerd.pull(&image).await;
    assert_eq!((names.len(), unpacked), (2, None));
    let mounts = containerd.prepare("k8s.io/9/c", &names[1], HashMap::new()).await.unwrap();
    let lowers: Vec<PathBuf> = mounts[0].option("lowerdir").unwrap().split(':').map(PathBuf::from).collect();
    let [top, bottom] = &lowers[..] else { panic!("a directory for each layer: {mounts:?}") };
    for (dir, name) in [(top, "above"), (bottom, "below")] {
        let path = dir.join(name);
        let text = tokio::task::spawn_blocking(move || fs::read_to_string(path).unwrap()).await.unwrap();
        assert_eq!(text, name.repeat(50_000));
    }
    let devices = agent.node().devices().await.unwrap();
    let layers: Vec<_> = devices.iter().map(|device| (device.layers.count, device.layers.of)).collect();
    assert_eq!(layers, [(1, 2), (1, 2)]);
    agent.stop().await.unwrap();
    assert_eq!(bench.mounts(), Vec::<PathBuf>::new());
}

/// Bytes of a file that are in the page cache, as the tool counts them.
fn cached(file: &Path) -> u64 {
    let out = Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(file).output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().parse().unwrap()
}

/// `TMPFS_MAGIC` of `<linux/magic.h>`: its pages are all that there is of a file, and stay.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_two_images_have_is_in_the_page_cache_once_however_often_both_read_it() {
    require_mounts!();
    const BYTES: usize = 32 << 20;
    let bench = Bench::new().await;
    let words = (1..=BYTES as u64 / 8).map(|at| at.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    let made = [bench.erofs("base", &bytes), bench.erofs("one", b"1"), bench.erofs("other", b"2")];
    let ([Some(base), Some(one), Some(other)], false) =
        (made, rustix::fs::statfs(bench.dir.path()).unwrap().f_type == TMPFS)
    else {
        println!("skipped: {}: there is no mkfs.erofs, or no disk", std::thread::current().name().unwrap_or("a test"));
        return;
    };
    let (agent, containerd) = bench.agent().await;
    let mut lowers: Vec<PathBuf> = Vec::new();
    for (name, top) in [("one", one), ("other", other)] {
        let image = bench.put(name, "application/vnd.oci.image.layer.v1.tar", &[base.clone(), top]);
        let (names, _) = containerd.pull(&image).await;
        let mounts = containerd.prepare(&format!("k8s.io/9/{name}"), &names[1], HashMap::new()).await.unwrap();
        let lower = mounts[0].option("lowerdir").unwrap().split(':').next_back().unwrap().to_owned();
        lowers.push(PathBuf::from(lower).join("base"));
    }
    assert_eq!(agent.node().devices().await.unwrap().len(), 3, "one of the base, one of each top");
    let blobs = bench.dir.path().join("state/cache/blobs");
    let check = move || {
        for _ in 0..2 {
            assert!(lowers.iter().all(|file| fs::read(file).unwrap() == bytes), "other bytes than the layer's");
        }
        // Whoever reads the same file of the same file system has the same pages.
        let number = |file: &PathBuf| fs::metadata(file).map(|file| (file.dev(), file.ino())).unwrap();
        assert_eq!(number(&lowers[0]), number(&lowers[1]));
        let data = || fs::read_dir(&blobs).unwrap().map(|file| file.unwrap().path());
        let all = || cached(&lowers[0]) + data().map(|file| cached(&file)).sum::<u64>();
        // Pages of the cache's files are dropped by a thread that nobody waits for, all but 6 MiB, 9 at worst.
        let began = std::time::Instant::now();
        while all() > BYTES as u64 + (10 << 20) {
            assert!(began.elapsed() < Duration::from_secs(120), "{} of {BYTES} bytes", all());
        }
    };
    tokio::task::spawn_blocking(check).await.unwrap();
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_manifest_digest_the_chain_id_decides_which_layer_is_meant() {
    let bench = Bench::new().await;
    let (agent, containerd) = bench.agent().await;
    let image = Image { manifest: None, ..bench.image() };
    let (names, unpacked) = containerd.pull(&image).await;
    assert_eq!((names.len(), unpacked), (3, None));
    let mut other = image;
    other.chains[0] = Digest::of(b"another layer");
    let (names, unpacked) = containerd.pull(&other).await;
    assert!(names.is_empty() && unpacked.is_some());
    let told = kinds(&agent).await;
    assert!(told.iter().any(|(kind, text)| kind == "snapshot.eager" && text.contains("chain ID")), "{told:?}");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_image_is_unpacked_and_it_is_said_once_why() {
    let bench = Bench::new().await;
    let image = bench.put("plain", "application/vnd.oci.image.layer.v1.tar+gzip", &[b"one".to_vec(), b"two".to_vec()]);
    let (agent, containerd) = bench.agent().await;
    for _ in 0..2 {
        let (names, unpacked) = containerd.pull(&image).await;
        let Some([mount]) = unpacked.as_deref() else { panic!("one mount to unpack into") };
        assert_eq!((names.len(), mount.kind.as_str()), (0, "bind"));
        containerd.remove(&format!("k8s.io/1/extract-0 {}", image.chains[0])).await.unwrap();
    }
    let told = kinds(&agent).await;
    let eager: Vec<_> = told.iter().filter(|(kind, _)| kind == "snapshot.eager").collect();
    assert!(
        matches!(&eager[..], [(_, text)] if text.contains("tar+gzip") && text.contains("unpacked in full")),
        "{told:?}"
    );
    let requests = bench.registry.requests();
    let of_layer = |request: &String| image.layers.iter().any(|layer| request.contains(&layer.to_string()));
    let looked = requests.iter().map(|request| format!("{request:?}")).filter(|request| request.contains("/blobs/"));
    assert_eq!(looked.filter(of_layer).count(), 0, "no layer was looked into");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down_keeps_neither_the_agent_nor_a_pull_waiting() {
    let bench = Bench::new().await;
    let image = bench.image();
    bench.registry.set_down(true);
    let config = Config { fetch_deadline: Duration::from_secs(1), ..bench.config() };
    let agent = Agent::start(config).await.unwrap();
    let containerd = Containerd::connect(agent.snapshots().unwrap()).await;
    let (names, unpacked) = containerd.pull(&image).await;
    assert!(names.is_empty() && unpacked.is_some());
    let snapshots = agent.node().snapshots().await.unwrap();
    let [snapshot] = &snapshots[..] else { panic!("one snapshot: {snapshots:?}") };
    let host = bench.registry.host().to_string();
    assert!(!snapshot.lazy && snapshot.detail.as_deref().is_some_and(|why| why.contains(&host)), "{snapshot:?}");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_whose_snapshot_was_deleted_meanwhile_is_let_go() {
    require_mounts!();
    let bench = Bench::new().await;
    let (agent, containerd) = bench.agent().await;
    let (names, _) = containerd.pull(&bench.image()).await;
    containerd.prepare("k8s.io/9/c", &names[2], HashMap::new()).await.unwrap();
    agent.stop().await.unwrap();
    assert_eq!(bench.records(), 1);
    fs::remove_dir_all(bench.dir.path().join("snapshotter")).unwrap();
    let (agent, _) = bench.agent().await;
    let mut events = agent.node().follow(0).unwrap();
    let is_gone = |events: api::Events| events.events.iter().any(|event| event.kind == "snapshot.unmounted");
    while !is_gone(events.next().await.expect("the agent runs")) {}
    assert_eq!((bench.records(), agent.node().devices().await.unwrap().len()), (0, 0));
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn an_agent_that_does_not_serve_containerd_says_how_it_would() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(Config::in_dir(dir.path())).await.unwrap();
    assert_eq!(agent.snapshots(), None);
    let refused = agent.node().snapshots().await.unwrap_err();
    assert!(matches!(&refused, NodeError::Conflict(text) if text.contains("snapshotter.enable")), "{refused:?}");
    assert!(agent.node().repair_snapshots().await.is_err());
    assert!(!dir.path().join("snapshotter").exists());
    agent.stop().await.unwrap();
}
