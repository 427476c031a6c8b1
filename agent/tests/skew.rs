//! State that an earlier release wrote is read by this one: attachments, maps and cached chunks, without a registry.
//!
//! `golden/state-0.1.0.tar.gz` is the state directory of release 0.1.0 (commit e55ff8a) after `penstock agent --cache-chunk-size 64KiB`
//! attached two images, served reads of them, and was stopped by SIGTERM: `localhost:34571/disks/raw:raw`, an EROFS disk of 28672 bytes
//! mounted on `/tmp/golden/m1` and read whole, and `localhost:34571/fixtures/overlaybd:obd-lz4`, the fixture of this repository, of
//! which the first 64 KiB were read. Nothing listens on that port.
//!
//! `golden/state-record-v2.tar.gz` is the same of commit b9f297f, the last one that wrote records of version 2, with an EROFS disk of 4096 bytes
//! mounted on `/tmp/agent-golden/m1`.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use penstock_agent::{Agent, Config};
use penstock_api::DeviceState;
use penstock_blob::Digest;

/// A state directory, and what was in it.
struct Golden {
    archive: &'static str,
    version: &'static str,
    /// Names of the two attachments: of the EROFS disk, and of the fixture.
    ids: [&'static str; 2],
    /// Where the EROFS disk was mounted.
    mount: &'static str,
    /// What its file `hello` holds.
    hello: &'static str,
    /// sha256 of the EROFS disk: the name of its blob.
    raw: &'static str,
}

const V1: Golden = Golden {
    archive: "state-0.1.0.tar.gz",
    version: "\"version\": 1",
    ids: ["raw-aadb8d", "overlaybd-ef2a01"],
    mount: "\"/tmp/golden/m1\"",
    hello: "kept since 0.1.0\n",
    raw: "fca49bca92d5cc7b7ee43cd8421b9a3c23c23946c936897ad4e43a75f7b454a3",
};

const V2: Golden = Golden {
    archive: "state-record-v2.tar.gz",
    version: "\"version\": 2",
    ids: ["raw-ed623a", "overlaybd-4a4d98"],
    mount: "\"/tmp/agent-golden/m1\"",
    hello: "kept since record version 2\n",
    raw: "5c2a3b8d5c2626c9065f5316039a8d38e68b7e978340f3b6da6eefdd7cd1fa4c",
};

/// sha256 of the first 64 KiB of the OverlayBD disk, as release 0.1.0 served them.
const OVERLAYBD_HEAD: &str = "a19a4242957eb4c7ade5e572f380f8267ef34279c321e0cddfe262c13fc4bc05";

/// The golden state in `dir/state`, with its mount point at `dir/mnt` instead.
fn unpack(golden: &Golden, dir: &Path) -> PathBuf {
    let state = dir.join("state");
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(golden.archive);
    let mnt = dir.join("mnt");
    fs::create_dir_all(&state).unwrap();
    fs::create_dir_all(&mnt).unwrap();
    let tar = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(&state).status().unwrap();
    assert!(tar.success());
    let record = state.join(format!("attachments/{}.json", golden.ids[0]));
    let text = fs::read_to_string(&record).unwrap();
    assert!(text.contains(golden.mount) && text.contains(golden.version));
    fs::write(&record, text.replace(golden.mount, &format!("{mnt:?}"))).unwrap();
    mnt
}

fn sha256_of_first(path: PathBuf, most: u64) -> String {
    let mut bytes = Vec::new();
    File::open(path).unwrap().take(most).read_to_end(&mut bytes).unwrap();
    Digest::of(&bytes).to_hex()
}

fn cannot_mount() -> Option<&'static str> {
    let erofs = fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains("\terofs\n"));
    match () {
        () if !rustix::process::geteuid().is_root() => Some("needs root to mount"),
        () if !Path::new("/dev/fuse").exists() => Some("there is no /dev/fuse"),
        () if !erofs => Some("this kernel has no erofs"),
        () => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_release_0_1_0_is_attached_and_served_without_a_registry() {
    if let Some(reason) = cannot_mount() {
        println!("skipped: {}: {reason}", std::thread::current().name().unwrap_or("a test"));
        return;
    }
    check(&V1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_from_before_the_snapshotter_is_attached_and_served_without_a_registry() {
    if let Some(reason) = cannot_mount() {
        println!("skipped: {}: {reason}", std::thread::current().name().unwrap_or("a test"));
        return;
    }
    check(&V2).await;
}

async fn check(golden: &Golden) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let mnt = unpack(golden, &root);
    let config = Config { fetch_deadline: Duration::from_secs(1), ..Config::in_dir(&root) };
    let agent = Agent::start(config).await.unwrap();
    let devices = agent.node().devices().await.unwrap();
    let seen: Vec<_> = devices.iter().map(|device| (device.id.as_str(), device.state, &device.state_reason)).collect();
    assert_eq!(seen, golden.ids.map(|id| (id, DeviceState::Attached, &None)));
    let paths: Vec<PathBuf> = devices.iter().map(|device| device.device_path.clone().unwrap()).collect();
    let read = tokio::task::spawn_blocking(move || {
        let hello = fs::read_to_string(mnt.join("hello")).unwrap();
        (hello, sha256_of_first(paths[0].clone(), u64::MAX), sha256_of_first(paths[1].clone(), 64 << 10))
    });
    let expected = (golden.hello.to_owned(), golden.raw.to_owned(), OVERLAYBD_HEAD.to_owned());
    assert_eq!(read.await.unwrap(), expected);
    let cache = agent.node().cache().await.unwrap();
    assert_eq!(cache.corrupt_dropped, 0);
    agent.stop().await.unwrap();
}
