//! The cache of an agent: what removing an image frees, and what the disk says of the figures.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use penstock_agent::{Agent, Config};
use penstock_api as api;
use penstock_blob::{Blob, Digest};
use penstock_registry::{Artifact, Layer, Registry};

/// Bytes of the device that are read: file system metadata and the beginning of the files.
const READ_BYTES: usize = 64 << 20;
/// The repository of the fixtures, and the tag of the image whose layers the others have too.
const REPOSITORY: &str = "fixtures/overlaybd";
const WHOLE: &str = "obd-lz4";

/// Why these tests cannot run here.
fn cannot() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root to serve through FUSE");
    }
    (!Path::new("/dev/fuse").exists()).then_some("there is no /dev/fuse")
}

fn config(dir: &Path) -> Config {
    Config {
        transport: "fuse".parse().unwrap(),
        drain_deadline: Duration::from_secs(60),
        cache_read_ahead_bytes: 0,
        ..Config::in_dir(dir)
    }
}

async fn registry() -> Registry {
    let registry = Registry::start(penstock_registry::Config::default()).await.unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/overlaybd");
    registry.load_layout(&fixtures.join("oci-layout"), REPOSITORY).await.unwrap();
    registry
}

/// Attaches an image and reads of its device.
async fn attach_and_read(agent: &Agent, reference: &str) -> api::Device {
    let request = api::Attach {
        reference: reference.to_owned(),
        mount: None,
        transport: api::Wanted::Auto,
        platform: None,
        require_verified: false,
        policy: api::PolicyChange::default(),
    };
    let device = agent.node().attach(request).await.unwrap();
    let path = PathBuf::from(&device.device_path.clone().unwrap());
    let read = move || {
        let mut bytes = vec![0; READ_BYTES];
        std::io::Read::read_exact(&mut fs::File::open(path).unwrap(), &mut bytes).unwrap();
    };
    tokio::task::spawn_blocking(read).await.unwrap();
    device
}

/// Bytes of disk below `path`, as `du` counts them.
fn du(path: &Path) -> u64 {
    let metadata = fs::symlink_metadata(path).unwrap();
    let below: u64 = match metadata.is_dir() {
        true => fs::read_dir(path).unwrap().map(|entry| du(&entry.unwrap().path())).sum(),
        false => 0,
    };
    metadata.blocks() * 512 + below
}

/// Evicts an image, once nothing is read any more to verify it, and answers whose chunks went, and whose did not.
async fn evict(agent: &Agent, reference: &str) -> (BTreeSet<Digest>, BTreeSet<Digest>) {
    let is_read =
        |usage: api::CacheUsage| usage.blobs.iter().any(|blob| blob.verification == api::Verification::Running);
    while is_read(agent.node().cache().await.unwrap()) {
        tokio::task::yield_now().await;
    }
    let what = api::EvictCache { reference: Some(reference.to_owned()), digest: None, platform: None };
    let answer = agent.node().evict(what).await.unwrap();
    let kept = answer.kept.iter().map(|blob| blob.digest).collect();
    (answer.freed.iter().map(|blob| blob.digest).collect(), kept)
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_an_image_frees_what_no_attached_image_shares() {
    if let Some(reason) = cannot() {
        println!("skipped: removing_an_image_frees_what_no_attached_image_shares: {reason}");
        return;
    }
    let (dir, registry) = (tempfile::tempdir().unwrap(), registry().await);
    let agent = Agent::start(config(dir.path())).await.unwrap();
    let whole = format!("{}/{REPOSITORY}:{WHOLE}", registry.host());
    let device = attach_and_read(&agent, &whole).await;
    let blobs: Vec<Digest> = device.blobs.iter().map(|blob| blob.digest).collect();
    let layer = |blob: &api::Presence| Layer {
        blob: Blob { digest: blob.digest, size_bytes: blob.size_bytes },
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        annotations: std::collections::BTreeMap::new(),
    };
    let layers = device.blobs[..2].iter().map(layer).collect();
    registry.put_image(REPOSITORY, "base", Artifact { config: "{}".into(), layers, ..Artifact::default() }).unwrap();
    let base = format!("{}/{REPOSITORY}:base", registry.host());
    let below = attach_and_read(&agent, &base).await;

    let all: BTreeSet<Digest> = blobs.iter().copied().collect();
    let shared: BTreeSet<Digest> = blobs[..2].iter().copied().collect();
    assert_eq!(evict(&agent, &whole).await, (BTreeSet::new(), all.clone()), "it is attached");
    agent.node().detach(&device.id, false).await.unwrap();
    assert_eq!(evict(&agent, &whole).await, (&all - &shared, shared.clone()), "the other has two of its layers");
    agent.node().detach(&below.id, false).await.unwrap();
    assert_eq!(evict(&agent, &base).await, (shared, BTreeSet::new()));
    let usage = agent.node().cache().await.unwrap();
    assert_eq!((usage.chunks_present, usage.used_bytes), (0, 0));
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cache_says_it_takes_is_what_du_finds() {
    if let Some(reason) = cannot() {
        println!("skipped: what_the_cache_says_it_takes_is_what_du_finds: {reason}");
        return;
    }
    let (dir, registry) = (tempfile::tempdir().unwrap(), registry().await);
    let config = config(dir.path());
    let (cache, maps) = (config.cache_dir(), config.state_dir.join("maps"));
    let agent = Agent::start(config.clone()).await.unwrap();
    attach_and_read(&agent, &format!("{}/{REPOSITORY}:{WHOLE}", registry.host())).await;
    agent.stop().await.unwrap();
    // Index and maps are measured once a minute, and at the start.
    let agent = Agent::start(config).await.unwrap();
    let usage = agent.node().cache().await.unwrap();
    let (said, found) = (usage.used_bytes + usage.index_bytes + usage.maps_bytes, du(&cache) + du(&maps));
    assert!(usage.chunks_present > 0 && usage.maps_bytes > 0, "{usage:?}");
    // What is said has room for what a file system adds to files of this size, and leaves out a few small files beside the chunks.
    let (more, less) = (found / 20 + (256 << 10), 128 << 10);
    assert!(said <= found + more && said + less >= found, "{said} bytes said, {found} found: {usage:?}");
    agent.stop().await.unwrap();
}
