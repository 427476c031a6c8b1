//! State that an earlier release wrote is read by this one: attachments, maps and cached chunks, without a registry.
//!
//! `golden/state-0.1.0.tar.gz` is the state directory of release 0.1.0 (commit e55ff8a) after `penstock agent --cache-chunk-size 64KiB`
//! attached two images, served reads of them, and was stopped by SIGTERM: `localhost:34571/disks/raw:raw`, an EROFS disk of 28672 bytes
//! mounted on `/tmp/golden/m1` and read whole, and `localhost:34571/fixtures/overlaybd:obd-lz4`, the fixture of this repository, of
//! which the first 64 KiB were read. Nothing listens on that port.
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

/// sha256 of the EROFS disk: the name of its blob.
const RAW: &str = "fca49bca92d5cc7b7ee43cd8421b9a3c23c23946c936897ad4e43a75f7b454a3";
/// sha256 of the first 64 KiB of the OverlayBD disk, as release 0.1.0 served them.
const OVERLAYBD_HEAD: &str = "a19a4242957eb4c7ade5e572f380f8267ef34279c321e0cddfe262c13fc4bc05";

/// The golden state in `dir/state`, with its mount point at `dir/mnt` instead.
fn unpack(dir: &Path) -> PathBuf {
    let (state, archive) = (dir.join("state"), concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/state-0.1.0.tar.gz"));
    let mnt = dir.join("mnt");
    fs::create_dir_all(&state).unwrap();
    fs::create_dir_all(&mnt).unwrap();
    let tar = Command::new("tar").args(["-xzf", archive, "-C"]).arg(&state).status().unwrap();
    assert!(tar.success());
    let record = state.join("attachments/raw-aadb8d.json");
    let text = fs::read_to_string(&record).unwrap();
    assert!(text.contains("\"/tmp/golden/m1\"") && text.contains("\"version\": 1"));
    fs::write(&record, text.replace("/tmp/golden/m1", mnt.to_str().unwrap())).unwrap();
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
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let mnt = unpack(&root);
    let config = Config { fetch_deadline: Duration::from_secs(1), ..Config::in_dir(&root) };
    let agent = Agent::start(config).await.unwrap();
    let devices = agent.node().devices().await.unwrap();
    let seen: Vec<_> = devices.iter().map(|device| (device.id.as_str(), device.state, &device.state_reason)).collect();
    assert_eq!(seen, ["raw-aadb8d", "overlaybd-ef2a01"].map(|id| (id, DeviceState::Attached, &None)));
    let paths: Vec<PathBuf> = devices.iter().map(|device| device.device_path.clone().unwrap()).collect();
    let read = tokio::task::spawn_blocking(move || {
        let hello = fs::read_to_string(mnt.join("hello")).unwrap();
        (hello, sha256_of_first(paths[0].clone(), u64::MAX), sha256_of_first(paths[1].clone(), 64 << 10))
    });
    let expected = ("kept since 0.1.0\n".to_owned(), RAW.to_owned(), OVERLAYBD_HEAD.to_owned());
    assert_eq!(read.await.unwrap(), expected);
    let cache = agent.node().cache().await.unwrap();
    assert_eq!(cache.corrupt_dropped, 0);
    agent.stop().await.unwrap();
}
