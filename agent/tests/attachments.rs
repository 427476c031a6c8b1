//! An agent in this process over a registry on loopback: attach, read, detach, drain, restore.
//!
//! What needs root, FUSE or a loop device says when it is skipped, in the line that `make test` counts.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use penstock_agent::{Agent, Config, StartError, mount::table, state::StateError};
use penstock_api::{self as api, DeviceState, NodeError};
use penstock_blob::Digest;
use penstock_registry::{Artifact, Fault, Layer, Registry};

/// Skips the test, visibly, unless this process can mount through FUSE and loop devices.
macro_rules! require_mounts {
    () => {
        if let Some(reason) = cannot_mount() {
            println!("skipped: {}: {reason}", std::thread::current().name().unwrap_or("a test"));
            return;
        }
    };
}

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

/// A registry with the fixtures, and a place for agents.
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
        let transport = "fuse".parse().unwrap();
        let (drain_deadline, fetch_deadline) = (Duration::from_secs(60), Duration::from_secs(20));
        Config {
            transport,
            drain_deadline,
            fetch_deadline,
            cache_read_ahead_bytes: 0,
            ..Config::in_dir(self.dir.path())
        }
    }

    async fn agent(&self) -> Agent {
        Agent::start(self.config()).await.unwrap()
    }

    fn image(&self) -> String {
        format!("{}/fixtures/overlaybd:obd-lz4", self.registry.host())
    }

    fn mount_point(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        dir.canonicalize().unwrap()
    }

    fn records(&self) -> usize {
        fs::read_dir(self.dir.path().join("state/attachments")).unwrap().count()
    }

    /// Mounts below this bench's directory, FUSE's own included.
    fn mounts(&self) -> usize {
        let dir = self.dir.path().canonicalize().unwrap();
        table::read().unwrap().iter().filter(|entry| entry.dir.starts_with(&dir)).count()
    }
}

fn request(reference: &str, mount: Option<&Path>) -> api::Attach {
    api::Attach {
        reference: reference.to_owned(),
        mount: mount.map(Path::to_path_buf),
        transport: api::Wanted::Auto,
        platform: None,
        require_verified: false,
        policy: api::PolicyChange::default(),
    }
}

/// Runs what waits for a device where waiting is allowed: its misses are served by this runtime.
async fn off_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Whether the first `count` files below `root` are what the fixtures' list says.
async fn check_files(root: &Path, count: usize) {
    let root = root.to_path_buf();
    off_runtime(move || {
        let list = fs::read_to_string(fixtures().join("expected-sha256-files.txt")).unwrap();
        for line in list.lines().take(count) {
            let (digest, path) = line.split_once("  ").unwrap();
            let bytes = fs::read(root.join(path.trim_start_matches(['.', '/']))).unwrap();
            assert_eq!(Digest::of(&bytes).to_hex(), digest, "{path}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_attached_mounted_read_and_detached_without_a_trace() {
    require_mounts!();
    let bench = Bench::new().await;
    let agent = bench.agent().await;
    let dir = bench.mount_point("mnt");
    let device = agent.node().attach(request(&bench.image(), Some(&dir))).await.unwrap();
    assert_eq!((device.state, device.size_bytes), (DeviceState::Attached, 1 << 30));
    assert_eq!(device.mount_point.as_deref(), Some(dir.as_path()));
    assert_eq!(device.file_system.as_deref(), Some("ext4"));
    assert!(device.image.contains("3 layers"), "{}", device.image);
    check_files(&dir, usize::MAX).await;
    let shown = agent.node().device(&device.id).await.unwrap();
    assert!(shown.stats.bytes_served > 0 && shown.stats.bytes_fetched > 0 && shown.stats.errors == 0, "{shown:?}");
    assert_eq!(shown.blobs.len(), 3);
    assert_eq!(bench.records(), 1);
    let written = dir.clone();
    assert!(off_runtime(move || fs::write(written.join("x"), "x")).await.is_err(), "a mount is read-only");

    agent.node().detach(&device.id, false).await.unwrap();
    assert_eq!((bench.records(), bench.mounts()), (0, 0));
    assert!(agent.node().devices().await.unwrap().is_empty());
    assert!(matches!(agent.node().detach(&device.id, false).await, Err(NodeError::NotFound(_))));
    let kinds: Vec<String> =
        agent.node().events(0, 100).await.unwrap().events.into_iter().map(|event| event.kind).collect();
    for kind in ["agent.ready", "device.attached", "device.detached"] {
        assert!(kinds.iter().any(|k| k == kind), "{kind} is not in {kinds:?}");
    }
    let memory = agent.node().memory().await.unwrap();
    let used = |name| memory.parts.iter().find(|part| part.name == name).unwrap().used_bytes;
    assert!(used(api::MemoryUser::Devices) > 0 && used(api::MemoryUser::Presence) > 0, "{memory:?}");
    assert!(memory.used_bytes <= memory.budget_bytes && memory.resident_bytes.is_some(), "{memory:?}");
    let metrics = agent.node().metrics().await.unwrap();
    for line in [
        "penstock_memory_budget_bytes 67108864",
        "penstock_memory_used_bytes{part=\"devices\"} ",
        "penstock_attachments{state=\"attached\"} 0",
        "penstock_build_info{version=",
        "penstock_cache_",
        "penstock_fetcher_",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    agent.stop().await.unwrap();
}

/// Whether the tree at `root` has the paths of the fixtures' list and no others, each with its type, mode, owner, size and link target.
async fn check_tree(root: &Path) {
    let root = root.to_path_buf();
    off_runtime(move || {
        let list = fs::read_to_string(fixtures().join("expected-listing.tsv")).unwrap();
        let mut paths = BTreeSet::new();
        for line in list.lines() {
            let columns: [&str; 6] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
            let [path, kind, mode, owner, size, link] = columns;
            let metadata = fs::symlink_metadata(root.join(path)).unwrap();
            let found = match metadata.mode() & 0o170_000 {
                0o040_000 => "d",
                0o120_000 => "l",
                0o100_000 => "f",
                0o010_000 => "p",
                0o020_000 => "c",
                _ => "another",
            };
            assert_eq!((found, format!("{:o}", metadata.mode() & 0o7777)), (kind, mode.to_owned()), "{path}");
            assert_eq!(format!("{}:{}", metadata.uid(), metadata.gid()), owner, "{path}");
            if ["f", "l"].contains(&kind) {
                assert_eq!(metadata.len().to_string(), size, "{path}");
            }
            if kind == "l" {
                assert_eq!(fs::read_link(root.join(path)).unwrap(), Path::new(link), "{path}");
            }
            paths.insert(root.join(path));
        }
        let (mut dirs, mut found) = (vec![root.clone()], BTreeSet::new());
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                if entry.file_name() != "lost+found" {
                    found.insert(entry.path());
                    dirs.extend(entry.file_type().unwrap().is_dir().then(|| entry.path()));
                }
            }
        }
        assert_eq!(found, paths);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn turbooci_images_are_shown_over_their_original_layers_and_again_without_a_registry() {
    require_mounts!();
    let bench = Bench::new().await;
    let agent = bench.agent().await;
    let mut ids = Vec::new();
    for file_system in ["erofs", "ext4"] {
        let dir = bench.mount_point(file_system);
        let reference = format!("{}/fixtures/overlaybd:turbo-{file_system}", bench.registry.host());
        let device = agent.node().attach(request(&reference, Some(&dir))).await.unwrap();
        assert_eq!((device.image.as_str(), device.file_system.as_deref()), ("turbooci, 3 layers", Some(file_system)));
        assert!(device.verified_by.contains("not checked"), "{}", device.verified_by);
        check_tree(&dir).await;
        check_files(&dir, usize::MAX).await;
        let shown = agent.node().device(&device.id).await.unwrap();
        assert!(shown.stats.bytes_served > 0 && shown.stats.errors == 0, "{shown:?}");
        let archives = shown.blobs.iter().filter(|blob| blob.verified_by.contains("nothing")).count();
        assert_eq!((shown.blobs.len(), archives), (6, 3), "{:?}", shown.blobs);
        ids.push(device.id);
    }
    agent.stop().await.unwrap();

    bench.registry.set_down(true);
    let agent = bench.agent().await;
    for (id, file_system) in ids.iter().zip(["erofs", "ext4"]) {
        let restored = agent.node().device(id).await.unwrap();
        assert_eq!(restored.state, DeviceState::Attached, "{:?}", restored.state_reason);
        check_files(&bench.mount_point(file_system), usize::MAX).await;
    }
    agent.stop().await.unwrap();
}

/// What `gzip -dc` makes of a blob of the fixtures.
fn unzipped(hex: &str) -> Vec<u8> {
    let file = fs::File::open(fixtures().join("oci-layout/blobs/sha256").join(hex)).unwrap();
    let output = Command::new("gzip").arg("-dc").stdin(file).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// The TurboOCI image over the same layers as they are before compression, as upstream makes it of such: it has no `gzip.meta`.
fn put_uncompressed_turbo(bench: &Bench) -> String {
    let json = |hex: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(fixtures().join("oci-layout/blobs/sha256").join(hex)).unwrap()).unwrap()
    };
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(fixtures().join("oci-layout/index.json")).unwrap()).unwrap();
    let of_name =
        |entry: &&serde_json::Value| entry["annotations"]["org.opencontainers.image.ref.name"] == "turbo-erofs";
    let hex = |text: &serde_json::Value| text.as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    let manifest = json(&hex(&index["manifests"].as_array().unwrap().iter().find(of_name).unwrap()["digest"]));
    const TARGET: &str = "containerd.io/snapshot/overlaybd/turbo-oci/target-digest";
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in manifest["layers"].as_array().unwrap() {
        let file = bench.dir.path().join("small.tar");
        fs::write(&file, unzipped(&hex(&layer["digest"]))).unwrap();
        assert!(Command::new("tar").arg("--delete").arg("-f").arg(&file).arg("gzip.meta").status().unwrap().success());
        let small = bench.registry.put_blob(fs::read(&file).unwrap());
        let target = bench.registry.put_blob(unzipped(&hex(&layer["annotations"][TARGET])));
        let annotations = [(TARGET.to_owned(), target.digest.to_string())].into();
        diff_ids.push(small.digest.to_string());
        layers.push(Layer { blob: small, media_type: "application/vnd.oci.image.layer.v1.tar".into(), annotations });
    }
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids }
    });
    let image = Artifact { config: config.to_string().into(), layers, ..Artifact::default() };
    bench.registry.put_image("plain", "turbo", image).unwrap();
    format!("{}/plain:turbo", bench.registry.host())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turbooci_image_over_layers_that_are_not_compressed_is_shown_and_again_without_a_registry() {
    require_mounts!();
    let bench = Bench::new().await;
    let (agent, dir) = (bench.agent().await, bench.mount_point("plain"));
    let reference = put_uncompressed_turbo(&bench);
    let device = agent.node().attach(request(&reference, Some(&dir))).await.unwrap();
    assert_eq!((device.image.as_str(), device.file_system.as_deref()), ("turbooci, 3 layers", Some("erofs")));
    check_tree(&dir).await;
    check_files(&dir, usize::MAX).await;
    agent.stop().await.unwrap();

    bench.registry.set_down(true);
    let agent = bench.agent().await;
    let restored = agent.node().device(&device.id).await.unwrap();
    assert_eq!(restored.state, DeviceState::Attached, "{:?}", restored.state_reason);
    check_files(&dir, usize::MAX).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turbooci_image_is_refused_where_every_read_is_to_be_verified() {
    let bench = Bench::new().await;
    let agent = bench.agent().await;
    let reference = format!("{}/fixtures/overlaybd:turbo-erofs", bench.registry.host());
    let wanted = api::Attach { require_verified: true, ..request(&reference, None) };
    let refused = agent.node().attach(wanted).await.unwrap_err().to_string();
    assert!(refused.contains("original layers"), "{refused}");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_attach_is_a_second_device_and_fetches_no_blob() {
    require_mounts!();
    let bench = Bench::new().await;
    let agent = bench.agent().await;
    let (one, two) = (bench.mount_point("one"), bench.mount_point("two"));
    let first = agent.node().attach(request(&bench.image(), Some(&one))).await.unwrap();
    check_files(&one, 10).await;
    bench.registry.reset_counts();
    let second = agent.node().attach(request(&bench.image(), Some(&two))).await.unwrap();
    check_files(&two, 10).await;
    assert_ne!(first.id, second.id);
    assert_eq!(bench.registry.counts().blob_bytes, 0, "{:?}", bench.registry.requests());

    let taken = agent.node().attach(request(&bench.image(), Some(&one))).await.unwrap_err();
    assert!(matches!(&taken, NodeError::Conflict(text) if text.contains(one.to_str().unwrap())), "{taken:?}");
    assert_eq!(agent.node().devices().await.unwrap().len(), 2);
    let gone = agent.node().detach_all(false).await.unwrap();
    assert_eq!((gone.detached, gone.failed.len()), (vec![second.id, first.id], 0));
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_agent_leaves_nothing_in_the_kernel_and_its_successor_needs_no_registry() {
    require_mounts!();
    let bench = Bench::new().await;
    let agent = bench.agent().await;
    let dir = bench.mount_point("mnt");
    let device = agent.node().attach(request(&bench.image(), Some(&dir))).await.unwrap();
    check_files(&dir, 40).await;
    let socket = agent.socket().to_path_buf();
    agent.stop().await.unwrap();
    assert_eq!((bench.mounts(), bench.records(), socket.exists()), (0, 1, false));

    bench.registry.set_down(true);
    let agent = bench.agent().await;
    let restored = agent.node().device(&device.id).await.unwrap();
    assert_eq!(restored.state, DeviceState::Attached, "{:?}", restored.state_reason);
    assert_eq!((restored.digest, restored.attached_at), (device.digest, device.attached_at));
    check_files(&dir, 40).await;
    assert_eq!(restored.mount_point, device.mount_point);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_that_nothing_used_for_long_are_collected_but_none_of_an_attachment() {
    require_mounts!();
    let bench = Bench::new().await;
    let agent = bench.agent().await;
    let dir = bench.mount_point("mnt");
    agent.node().attach(request(&bench.image(), Some(&dir))).await.unwrap();
    agent.stop().await.unwrap();

    let maps = bench.config().state_dir.join("maps");
    let names = || -> BTreeSet<_> { fs::read_dir(&maps).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
    let used = names();
    assert!(!used.is_empty());
    fs::write(maps.join("0123.v1.map"), b"of an image that is attached no more").unwrap();
    for name in names() {
        fs::File::open(maps.join(name)).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }
    // It cannot be attached now, and will be.
    fs::remove_dir(&dir).unwrap();
    let agent = bench.agent().await;
    assert_eq!(agent.node().devices().await.unwrap()[0].state, DeviceState::Failed);
    assert_eq!(names(), used);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_restored_is_listed_with_its_reason_and_tried_again_when_asked() {
    require_mounts!();
    let bench = Bench::new().await;
    let agent = bench.agent().await;
    let dir = bench.mount_point("mnt");
    let device = agent.node().attach(request(&bench.image(), Some(&dir))).await.unwrap();
    let kept = agent.node().attach(request(&bench.image(), None)).await.unwrap();
    agent.stop().await.unwrap();

    fs::remove_dir(&dir).unwrap();
    let agent = bench.agent().await;
    let failed = agent.node().device(&device.id).await.unwrap();
    assert_eq!(failed.state, DeviceState::Failed);
    assert!(failed.state_reason.as_deref().is_some_and(|reason| reason.contains("make the directory")), "{failed:?}");
    assert_eq!(agent.node().device(&kept.id).await.unwrap().state, DeviceState::Attached);
    let events = agent.node().events(0, 100).await.unwrap().events;
    assert!(events.iter().any(|event| event.kind == "device.restore_failed"), "{events:?}");

    fs::create_dir(&dir).unwrap();
    let again = agent.node().attach(request(&bench.image(), Some(&dir))).await.unwrap();
    assert_eq!((again.id.as_str(), again.state), (device.id.as_str(), DeviceState::Attached));
    check_files(&dir, 3).await;
    agent.stop().await.unwrap();

    // Failed once more, it can also be let go.
    fs::remove_dir(&dir).unwrap();
    let agent = bench.agent().await;
    agent.node().detach(&device.id, false).await.unwrap();
    assert_eq!((agent.node().devices().await.unwrap().len(), bench.records()), (1, 1));
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_in_use_stays_and_its_user_is_named_unless_forced() {
    require_mounts!();
    let bench = Bench::new().await;
    let agent = bench.agent().await;
    let dir = bench.mount_point("mnt");
    let device = agent.node().attach(request(&bench.image(), Some(&dir))).await.unwrap();
    let path = dir.clone();
    let open = off_runtime(move || fs::File::open(path.join("etc")).or_else(|_| fs::File::open(path)).unwrap()).await;
    let busy = agent.node().detach(&device.id, false).await.unwrap_err();
    let pid = format!("pid {}", std::process::id());
    assert!(matches!(&busy, NodeError::Conflict(text) if text.contains(&pid) && text.contains("--force")), "{busy:?}");
    assert_eq!(agent.node().device(&device.id).await.unwrap().state, DeviceState::Attached);
    check_files(&dir, 3).await;
    agent.node().detach(&device.id, true).await.unwrap();
    assert!(table::at(&table::read().unwrap(), &dir).is_none());
    drop(open);
    agent.stop().await.unwrap();
    assert_eq!(bench.mounts(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_that_fails_leaves_nothing_behind() {
    require_mounts!();
    let bench = Bench::new().await;
    let agent = bench.agent().await;
    let refused = async |request: api::Attach| {
        let error = agent.node().attach(request).await.unwrap_err();
        assert!(!error.to_string().contains('\n'), "{error}");
        assert!(agent.node().devices().await.unwrap().is_empty());
        assert_eq!((bench.records(), bench.mounts()), (0, 0), "{error}");
        error
    };
    let missing = bench.dir.path().join("missing");
    assert!(matches!(refused(request(&bench.image(), Some(&missing))).await, NodeError::Invalid(_)));
    assert!(matches!(refused(request(&bench.image(), Some(Path::new("relative")))).await, NodeError::Invalid(_)));
    assert!(matches!(refused(request("Not A Reference", None)).await, NodeError::Invalid(_)));
    assert!(matches!(refused(request(&format!("{}-x", bench.image()), None)).await, NodeError::ImageNotFound(_)));

    // A disk that the image crate takes, with a file system that the kernel does not: its magic is right and the rest is not.
    let mut disk = vec![0; 64 << 10];
    disk[1024..1028].copy_from_slice(&0xE0F5_E1E2_u32.to_le_bytes());
    let broken = put_disk(&bench.registry, "broken", disk);
    let dir = bench.mount_point("mnt");
    assert!(matches!(refused(request(&broken, Some(&dir))).await, NodeError::Internal(text) if text.contains("dmesg")));

    // A record that cannot be written: an attach is not answered before it is on disk.
    let attachments = bench.dir.path().join("state/attachments");
    let away = bench.dir.path().join("away");
    fs::rename(&attachments, &away).unwrap();
    let error = agent.node().attach(request(&bench.image(), Some(&dir))).await.unwrap_err();
    fs::rename(&away, &attachments).unwrap();
    assert!(matches!(error, NodeError::Internal(text) if text.contains("attachments")));
    assert_eq!((bench.records(), bench.mounts()), (0, 0));
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erofs_disk_is_mounted_from_its_file() {
    require_mounts!();
    let made = std::process::Command::new("mkfs.erofs").arg("--version").output();
    if made.is_err() {
        println!("skipped: an_erofs_disk_is_mounted_from_its_file: mkfs.erofs is not installed");
        return;
    }
    let bench = Bench::new().await;
    let tree = bench.mount_point("tree");
    fs::write(tree.join("hello"), vec![7; 300_000]).unwrap();
    let disk = bench.dir.path().join("disk.erofs");
    let made = std::process::Command::new("mkfs.erofs").arg(&disk).arg(&tree).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let reference = put_disk(&bench.registry, "erofs", fs::read(&disk).unwrap());
    let agent = bench.agent().await;
    let dir = bench.mount_point("mnt");
    let device = agent.node().attach(request(&reference, Some(&dir))).await.unwrap();
    assert_eq!(device.file_system.as_deref(), Some("erofs"));
    let path = dir.join("hello");
    assert_eq!(off_runtime(move || fs::read(path).unwrap()).await, vec![7; 300_000]);
    agent.node().detach(&device.id, false).await.unwrap();
    agent.stop().await.unwrap();
    assert_eq!(bench.mounts(), 0);
}

fn put_disk(registry: &Registry, name: &str, disk: Vec<u8>) -> String {
    let layer = Layer {
        blob: registry.put_blob(disk),
        media_type: "application/octet-stream".into(),
        annotations: Default::default(),
    };
    registry
        .put_image(name, "1", Artifact { config: "{}".into(), layers: vec![layer], ..Artifact::default() })
        .unwrap();
    format!("{}/{name}:1", registry.host())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_the_same_state_or_socket_is_refused_and_the_first_goes_on() {
    let bench = Bench::new().await;
    let agent = bench.agent().await;
    let config = Config { socket: bench.dir.path().join("other.sock"), ..bench.config() };
    let error = Agent::start(config).await.unwrap_err();
    assert!(matches!(&error, StartError::State(StateError::InUse { .. })), "{error}");
    let config = Config { state_dir: bench.dir.path().join("other"), ..bench.config() };
    let error = Agent::start(config.clone()).await.unwrap_err();
    assert!(matches!(&error, StartError::Socket(_)) && error.to_string().contains("--socket"), "{error}");
    assert!(std::os::unix::net::UnixStream::connect(agent.socket()).is_ok());
    // What the refused one had taken is free again.
    let config = Config { socket: bench.dir.path().join("other.sock"), ..config };
    Agent::start(config).await.unwrap().stop().await.unwrap();
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_its_owners_and_tcp_only_shows() {
    let bench = Bench::new().await;
    let agent = Agent::start(Config { listen: Some("127.0.0.1:0".parse().unwrap()), ..bench.config() }).await.unwrap();
    assert_eq!(fs::metadata(agent.socket()).unwrap().permissions().mode() & 0o777, 0o600);
    let address = agent.listening().unwrap();
    assert_eq!(status(address, "GET", "/v1/devices").await, 200);
    assert_eq!(status(address, "GET", "/readyz").await, 200);
    assert_eq!(status(address, "DELETE", "/v1/devices").await, 403);
    assert_eq!(status(address, "POST", "/v1/devices").await, 403);
    agent.stop().await.unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

async fn status(address: std::net::SocketAddr, method: &str, path: &str) -> u16 {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let mut connections = tokio::task::JoinSet::new();
    connections.spawn(connection);
    let request = http::Request::builder().method(method).uri(path).header("host", "localhost");
    let answer = sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    answer.into_body().collect().await.unwrap();
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmounted_device_is_a_file_with_the_disk_in_it() {
    require_mounts!();
    let bench = Bench::new().await;
    let agent = bench.agent().await;
    let device = agent.node().attach(request(&bench.image(), None)).await.unwrap();
    let path = device.device_path.unwrap();
    let head = off_runtime(move || {
        let mut head = [0; 2048];
        fs::File::open(path).unwrap().read_exact(&mut head).unwrap();
        head
    });
    assert_eq!(head.await[1080..1082], [0x53, 0xEF]);
    agent.stop().await.unwrap();
    assert_eq!(bench.mounts(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_under_way_does_not_hold_up_the_drain_and_leaves_nothing() {
    require_mounts!();
    let bench = Bench::new().await;
    let agent = bench.agent().await;
    bench.registry.fail(Fault::Stall);
    let (node, reference) = (agent.node(), bench.image());
    let mut attaching = tokio::task::JoinSet::new();
    attaching.spawn(async move { node.attach(request(&reference, None)).await });
    bench.registry.until_stalled(1).await;
    agent.stop().await.unwrap();
    let outcome = attaching.join_next().await.unwrap().unwrap();
    assert!(matches!(outcome, Err(NodeError::Stopping(_))), "{outcome:?}");
    assert_eq!((bench.records(), bench.mounts()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_fails_is_an_event_of_its_device() {
    require_mounts!();
    let bench = Bench::new().await;
    let config = Config { fetch_deadline: Duration::from_secs(1), ..bench.config() };
    let agent = Agent::start(config).await.unwrap();
    let device = agent.node().attach(request(&bench.image(), None)).await.unwrap();
    bench.registry.set_down(true);
    let path = device.device_path.clone().unwrap();
    let read = off_runtime(move || fs::read(path)).await;
    assert!(read.is_err());
    let mut events = agent.node().follow(0).unwrap();
    let is_said = |event: &api::Event| event.kind == "device.policy_eio" && event.fields["device"] == device.id;
    while !events.next().await.unwrap().events.iter().any(is_said) {}
    drop(events);
    assert!(agent.node().device(&device.id).await.unwrap().stats.errors > 0);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_holds_at_once_for_readers_that_wait_and_after_a_restart() {
    require_mounts!();
    let bench = Bench::new().await;
    let config = || Config { fetch_deadline: Duration::from_secs(1), ..bench.config() };
    let agent = Agent::start(config()).await.unwrap();
    let wait = api::PolicyChange { on_failure: Some(api::OnFailure::Wait), ..api::PolicyChange::default() };
    let device = agent.node().attach(api::Attach { policy: wait, ..request(&bench.image(), None) }).await.unwrap();
    assert_eq!(device.policy.on_failure, api::OnFailure::Wait);
    assert_eq!((device.policy.deadline_ms, device.policy.wait_limit_ms), (1000, 600_000));
    bench.registry.set_down(true);
    let path = device.device_path.clone().unwrap();
    let mut reading = tokio::task::JoinSet::new();
    reading.spawn_blocking(move || fs::read(path));
    let mut events = agent.node().follow(0).unwrap();
    while !events.next().await.unwrap().events.iter().any(|event| event.kind == "device.waiting") {}
    // The reader waits now, and would for ten minutes.
    let eio = api::Change { policy: api::PolicyChange { on_failure: Some(api::OnFailure::Eio), ..wait } };
    let changed = agent.node().change(&device.id, eio).await.unwrap();
    assert_eq!(changed.policy.on_failure, api::OnFailure::Eio);
    assert!(reading.join_next().await.unwrap().unwrap().is_err());
    let out_of_bounds = api::Change { policy: api::PolicyChange { deadline_ms: Some(1), ..wait } };
    assert!(matches!(agent.node().change(&device.id, out_of_bounds).await, Err(NodeError::Invalid(_))));
    drop(events);
    agent.stop().await.unwrap();

    let agent = Agent::start(config()).await.unwrap();
    assert_eq!(agent.node().device(&device.id).await.unwrap().policy, changed.policy);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_agent_takes_no_work() {
    let bench = Bench::new().await;
    let agent = bench.agent().await;
    let node = agent.node();
    agent.stop().await.unwrap();
    assert!(matches!(node.readiness(), api::Readiness::NotReady(_)));
    assert!(matches!(node.attach(request(&bench.image(), None)).await, Err(NodeError::Stopping(_))));
    assert!(matches!(node.detach("x", false).await, Err(NodeError::Stopping(_))));
}
