//! Images with an index: whoever lies, readers get the right bytes or an error; images without are refused where that is wanted.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser as _;
use penstock_agent::{
    Agent, Config,
    cli::{Cli, Command},
    index,
};
use penstock_api::{self as api, DeviceState, NodeError};
use penstock_blob::Digest;
use penstock_registry::{Artifact, Fault, Kind, Layer, Registry, Rule, Target};

/// Skips the test, visibly, unless this process can show images through FUSE.
macro_rules! require_fuse {
    () => {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            println!("skipped: {}: needs root and /dev/fuse", std::thread::current().name().unwrap_or("a test"));
            return;
        }
    };
}

/// Bytes of the raw disk.
const DISK_BYTES: usize = 3 << 20;

/// A disk that begins as a squashfs does; nothing more of it is looked at.
fn disk() -> Vec<u8> {
    let words = (0..DISK_BYTES as u64 / 8).map(|at| (at + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    bytes[..4].copy_from_slice(b"hsqs");
    bytes
}

/// A registry with a raw disk, which no checksum of its own guards, and a place for an agent.
struct Bench {
    dir: tempfile::TempDir,
    registry: Registry,
}

impl Bench {
    async fn new() -> Self {
        let registry = Registry::start(penstock_registry::Config::default()).await.unwrap();
        let blob = registry.put_blob(disk());
        let layer = Layer { blob, media_type: "application/octet-stream".to_owned(), annotations: [].into() };
        let image = Artifact { config: "{}".into(), layers: vec![layer], ..Artifact::default() };
        registry.put_image("disks/raw", "1", image).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), registry }
    }

    fn config(&self) -> Config {
        let (drain_deadline, fetch_deadline) = (Duration::from_secs(60), Duration::from_secs(5));
        Config {
            transport: "fuse".parse().unwrap(),
            drain_deadline,
            fetch_deadline,
            cache_read_ahead_bytes: 0,
            ..Config::in_dir(self.dir.path())
        }
    }

    fn image(&self) -> String {
        format!("{}/disks/raw:1", self.registry.host())
    }

    /// Runs `penstock index` on the image.
    async fn index(&self, more: &[&str]) -> Result<(), index::IndexError> {
        let image = self.image();
        let typed = ["penstock", "index", &image].into_iter().chain(more.iter().copied());
        let Command::Index(args) = Cli::try_parse_from(typed).unwrap().command else { panic!("another command") };
        tokio::task::spawn_blocking(move || index::run(&args)).await.unwrap()
    }

    async fn attach(&self, agent: &Agent, require_verified: bool) -> Result<api::Device, NodeError> {
        let reference = self.image();
        let request = api::Attach {
            reference,
            mount: None,
            transport: api::Wanted::Auto,
            platform: None,
            require_verified,
            policy: api::PolicyChange::default(),
        };
        agent.node().attach(request).await
    }

    fn indexes(&self) -> PathBuf {
        self.dir.path().join("state/indexes")
    }
}

/// The whole device, read where waiting is allowed.
async fn read(device: &api::Device) -> std::io::Result<Vec<u8>> {
    let path = device.device_path.clone().unwrap();
    let read = move || {
        let mut bytes = Vec::new();
        fs::File::open(path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

async fn has_event(agent: &Agent, kind: &str) -> bool {
    agent.node().events(0, 1000).await.unwrap().events.iter().any(|event| event.kind == kind)
}

#[tokio::test(flavor = "multi_thread")]
async fn bits_flipped_on_the_way_never_reach_the_reader() {
    require_fuse!();
    let bench = Bench::new().await;
    bench.index(&[]).await.unwrap();
    let agent = Agent::start(bench.config()).await.unwrap();
    bench.registry.fail(Fault::WrongBytes.times(5));
    let device = bench.attach(&agent, true).await.unwrap();
    assert!(device.verified_by.contains("by the image's index"), "{}", device.verified_by);
    assert_eq!(device.blobs[0].verified_by, "index (BLAKE3 / 64 KiB), digest once whole");
    bench.registry.fail(Fault::WrongBytes.times(5));
    assert!(read(&device).await.unwrap() == disk(), "other bytes than the image's");
    assert_eq!(bench.registry.pending_faults(), 0, "all lies were told");
    assert!(has_event(&agent, "index.wrong_bytes").await);
    agent.node().detach(&device.id, false).await.unwrap();
    assert_eq!(fs::read_dir(bench.indexes()).unwrap().count(), 0, "nothing is kept of an image that is gone");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_always_lies_gets_an_error_through_and_no_byte() {
    require_fuse!();
    let bench = Bench::new().await;
    bench.index(&[]).await.unwrap();
    let agent = Agent::start(bench.config()).await.unwrap();
    let device = bench.attach(&agent, true).await.unwrap();
    bench.registry.fail(Fault::WrongBytes.always());
    assert!(read(&device).await.is_err());
    bench.registry.clear_faults();
    assert!(read(&device).await.unwrap() == disk(), "it heals");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_an_index_is_refused_where_one_is_required() {
    require_fuse!();
    let bench = Bench::new().await;
    bench.index(&["--dry-run"]).await.unwrap();
    let agent = Agent::start(Config { verify_require: true, ..bench.config() }).await.unwrap();
    let refused = bench.attach(&agent, false).await.unwrap_err();
    assert!(matches!(&refused, NodeError::Unsupported(text) if text.contains("run `penstock index")), "{refused}");
    assert!(has_event(&agent, "index.missing").await);
    assert!(agent.node().devices().await.unwrap().is_empty());
    bench.index(&[]).await.unwrap();
    let before = bench.registry.requests().len();
    bench.index(&[]).await.unwrap();
    let again = bench.registry.requests().split_off(before);
    assert!(again.iter().all(|request| request.method != "POST"), "the same index again uploads nothing");
    assert_eq!(bench.attach(&agent, false).await.unwrap().state, DeviceState::Attached);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_answer_for_its_indexes_holds_nobody_up_for_long() {
    require_fuse!();
    let bench = Bench::new().await;
    bench.index(&[]).await.unwrap();
    bench.registry.fail(Fault::Stall.on(Target::Kind(Kind::Referrers)).always());
    let config = Config { verify_deadline: Duration::from_millis(300), ..bench.config() };
    let agent = Agent::start(config).await.unwrap();
    let refused = bench.attach(&agent, true).await.unwrap_err();
    assert!(refused.to_string().contains("no answer within 300ms"), "{refused}");
    let device = bench.attach(&agent, false).await.unwrap();
    assert!(device.verified_by.contains("looking for one failed"), "{}", device.verified_by);
    assert!(read(&device).await.unwrap() == disk());
    bench.registry.clear_faults();
    bench.registry.release();
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_remembered_over_a_restart_without_a_network() {
    require_fuse!();
    let bench = Bench::new().await;
    bench.index(&[]).await.unwrap();
    let agent = Agent::start(bench.config()).await.unwrap();
    let device = bench.attach(&agent, true).await.unwrap();
    assert!(read(&device).await.unwrap() == disk());
    agent.stop().await.unwrap();
    bench.registry.set_down(true);
    for damage in [false, true] {
        if damage {
            for entry in fs::read_dir(bench.indexes()).unwrap() {
                fs::write(entry.unwrap().path(), "damaged").unwrap();
            }
        }
        let config = Config { verify_deadline: Duration::from_millis(300), ..bench.config() };
        let agent = Agent::start(config).await.unwrap();
        let device = agent.node().devices().await.unwrap().remove(0);
        assert_eq!(device.state, DeviceState::Attached, "{device:?}");
        assert_eq!(device.blobs[0].verified_by.starts_with("index"), !damage);
        assert!(read(&device).await.unwrap() == disk(), "what is cached is served");
        agent.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_another_image_is_refused_by_name() {
    require_fuse!();
    let bench = Bench::new().await;
    let saved = tempfile::tempdir().unwrap();
    bench.index(&["--dry-run", "--save", saved.path().to_str().unwrap()]).await.unwrap();
    let made = fs::read_to_string(saved.path().join("manifest.json")).unwrap();
    let _config = bench.registry.put_blob("{}");
    for entry in fs::read_dir(saved.path()).unwrap() {
        bench.registry.put_file(&entry.unwrap().path()).await.unwrap();
    }
    let size = format!("\"io.penstock.index.blob.size\":\"{DISK_BYTES}\"");
    let hostile = made.replace(&size, &size.replace("3145728", "3145729"));
    assert_ne!(hostile, made);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    bench.registry.put_manifest("disks/raw", None, kind, hostile).unwrap();
    let agent = Agent::start(bench.config()).await.unwrap();
    let refused = bench.attach(&agent, true).await.unwrap_err();
    assert!(refused.to_string().contains("which the image does not have"), "{refused}");
    assert!(has_event(&agent, "index.refused").await);
    let device = bench.attach(&agent, false).await.unwrap();
    assert!(device.verified_by.contains("which the image does not have"), "{}", device.verified_by);
    agent.node().detach(&device.id, false).await.unwrap();
    bench.registry.put_manifest("disks/raw", None, kind, made).unwrap();
    bench.attach(&agent, true).await.unwrap();
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cached_before_there_was_an_index_is_compared_with_it() {
    require_fuse!();
    let bench = Bench::new().await;
    let agent = Agent::start(bench.config()).await.unwrap();
    // One chunk is read of a registry that lies, and kept: nothing can tell.
    let unverified = bench.attach(&agent, false).await.unwrap();
    bench.registry.fail(Rule::from(Fault::WrongBytes));
    let path = unverified.device_path.clone().unwrap();
    let first = tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::FileExt as _;
        let mut bytes = vec![0; 4096];
        fs::File::open(path).unwrap().read_exact_at(&mut bytes, 1 << 20).map(|()| bytes)
    });
    first.await.unwrap().unwrap();
    bench.index(&[]).await.unwrap();
    let device = bench.attach(&agent, true).await.unwrap();
    assert!(read(&device).await.unwrap() == disk(), "what the lie left was dropped");
    assert!(has_event(&agent, "cache.corrupt").await);
    assert_eq!(Digest::of(&disk()), device.blobs[0].digest);
    agent.stop().await.unwrap();
}
