//! Recordings: what an image read while starting is fetched ahead when it starts again, here and elsewhere; what is none is refused.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::StreamExt as _;
use penstock_agent::{Accept, Agent, Config};
use penstock_api::{self as api, ReadingMode};
use penstock_blob::{Blob, ByteRange, ChunkSize, Digest};
use penstock_image::recording::{Recorder, Recording};
use penstock_registry::{Artifact, Fault, Kind, Layer, Registry, Target};

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
const DISK_BYTES: u64 = 24 << 20;
/// Bytes of one read of the program.
const READ_BYTES: u64 = 64 << 10;
/// Longest wait for what must come, on the slowest machine.
const SOON: Duration = Duration::from_secs(60);

/// A disk that begins as a squashfs does; nothing more of it is looked at.
fn disk(seed: u64, bytes: u64) -> Vec<u8> {
    let words = (0..bytes / 8).map(|at| (at + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    bytes[..4].copy_from_slice(b"hsqs");
    bytes
}

/// A registry with a raw disk, and places for nodes.
struct Bench {
    dir: tempfile::TempDir,
    registry: Registry,
    disk: Vec<u8>,
    layer: Blob,
    manifest: Blob,
}

impl Bench {
    async fn new() -> Self {
        Self::of(disk(1, DISK_BYTES)).await
    }

    async fn of(disk: Vec<u8>) -> Self {
        let registry = Registry::start(penstock_registry::Config::default()).await.unwrap();
        let layer = registry.put_blob(disk.clone());
        let described =
            Layer { blob: layer, media_type: "application/octet-stream".to_owned(), annotations: [].into() };
        let image = Artifact { config: "{}".into(), layers: vec![described], ..Artifact::default() };
        let manifest = registry.put_image("disks/raw", "1", image).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), registry, disk, layer, manifest }
    }

    fn config(&self, node: &str) -> Config {
        let dir = self.dir.path().join(node);
        std::fs::create_dir_all(&dir).unwrap();
        Config {
            transport: "fuse".parse().unwrap(),
            drain_deadline: Duration::from_secs(60),
            recordings_duration: Duration::from_secs(600),
            ..Config::in_dir(&dir)
        }
    }

    async fn attach(&self, agent: &Agent) -> api::Device {
        let request = api::Attach {
            reference: format!("{}/disks/raw:1", self.registry.host()),
            mount: None,
            transport: api::Wanted::Auto,
            platform: None,
            require_verified: false,
            policy: api::PolicyChange::default(),
        };
        agent.node().attach(request).await.unwrap()
    }

    /// Reads the device at `places`, one after the other, and compares what comes with the disk.
    async fn run(&self, device: &api::Device, places: Vec<u64>) {
        let path = device.device_path.clone().unwrap();
        let read = move || -> Vec<(u64, Vec<u8>)> {
            let file = File::open(path).unwrap();
            let piece = |at: u64| {
                let mut bytes = vec![0; usize::try_from(READ_BYTES).unwrap()];
                file.read_exact_at(&mut bytes, at).unwrap();
                (at, bytes)
            };
            places.into_iter().map(piece).collect()
        };
        for (at, bytes) in tokio::task::spawn_blocking(read).await.unwrap() {
            let at = usize::try_from(at).unwrap();
            assert!(bytes == self.disk[at..at + bytes.len()], "other bytes than the image's at {at}");
        }
    }

    /// Puts a recording beside the image, as `penstock record --push` does.
    fn publish(&self, recording: &Recording) {
        let file = recording.encode();
        let blob = self.registry.put_blob(file.clone());
        let empty = self.registry.put_blob("{}");
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.penstock.recording.v1",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty.digest.to_string(), "size": 2},
            "layers": [{
                "mediaType": "application/vnd.penstock.recording.v1",
                "digest": blob.digest.to_string(),
                "size": blob.size_bytes,
                "data": STANDARD.encode(file),
            }],
            "subject": {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": self.manifest.digest.to_string(),
                "size": self.manifest.size_bytes,
            },
        });
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        self.registry.put_manifest("disks/raw", None, media_type, manifest.to_string()).unwrap();
    }

    fn file(&self, node: &str) -> PathBuf {
        let name = format!("{}.recording", self.manifest.digest.to_hex());
        self.dir.path().join(node).join("state/recordings").join(name)
    }
}

/// Forty reads in four parts of the disk, in no order.
fn places() -> Vec<u64> {
    let place = |nth: u64| (nth / 10) * (5 << 20) + (1 << 20) + (nth % 10) * 2 * READ_BYTES;
    (0..40).map(|nth| place(nth * 7 % 40)).collect()
}

/// Waits until something of this kind has happened; what was said.
async fn happened(agent: &Agent, kind: &str) -> String {
    let mut events = agent.node().follow(0).unwrap();
    let found = async {
        while let Some(list) = events.next().await {
            if let Some(event) = list.events.into_iter().find(|event| event.kind == kind) {
                return event.text;
            }
        }
        String::new()
    };
    tokio::time::timeout(SOON, found).await.unwrap_or_else(|_| unreachable!("no event {kind}"))
}

/// Waits until something of this kind has happened of which this was said.
async fn said(agent: &Agent, kind: &str, text: &str) {
    let mut events = agent.node().follow(0).unwrap();
    let found = async {
        while let Some(list) = events.next().await {
            if list.events.iter().any(|event| event.kind == kind && event.text.contains(text)) {
                return;
            }
        }
        unreachable!("the events ended without {kind}")
    };
    tokio::time::timeout(SOON, found).await.unwrap_or_else(|_| unreachable!("no event {kind}: {text}"));
}

async fn reading(agent: &Agent, device: &api::Device) -> api::Reading {
    agent.node().device(&device.id).await.unwrap().reading.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_recorded_another_one_fetches_ahead_in_few_large_requests() {
    require_fuse!();
    let bench = Bench::new().await;
    let first = Agent::start(bench.config("first")).await.unwrap();
    let device = bench.attach(&first).await;
    first.node().record(&device.id).await.unwrap();
    bench.run(&device, places()).await;
    let recorded = first.node().end_recording(&device.id, api::EndRecording { push: true }).await.unwrap();
    assert!(recorded.pushed && recorded.bytes >= 40 * READ_BYTES && recorded.file_bytes < 2000, "{recorded:?}");
    assert_eq!((recorded.manifest, first.node().recordings().await.unwrap().len()), (bench.manifest.digest, 1));
    first.stop().await.unwrap();

    let second = Agent::start(bench.config("second")).await.unwrap();
    bench.registry.reset_counts();
    let device = bench.attach(&second).await;
    happened(&second, "recording.replayed").await;
    let ahead = bench.registry.counts();
    // The head. The first window is a MiB of needs, sixteen reads: their chunks lie in eight runs, when what lies a chunk apart is read together. The other
    // chunks of the four parts lie in nine runs then. A run that is not fetched yet when the second window is looked at divides what is left as one that is.
    assert!((1..=1 + 8 + 9).contains(&ahead.blob_requests), "few requests for 40 reads: {ahead:?}");
    bench.run(&device, places()).await;
    assert_eq!(bench.registry.counts().blob_requests, ahead.blob_requests, "everything the program needs is here");
    let reading = reading(&second, &device).await;
    assert_eq!((reading.mode, reading.recording_from.as_deref()), (ReadingMode::Prefetch, Some("registry")));
    assert_eq!(reading.recording_bytes, recorded.bytes);
    assert!(reading.recording_used_bytes * 10 >= recorded.bytes * 9, "{reading:?}");
    assert!(reading.replayed_bytes >= recorded.bytes && !reading.diverged, "{reading:?}");
    let metrics = second.node().metrics().await.unwrap();
    assert!(metrics.contains("penstock_recordings_replays_total{from=\"registry\"} 1"), "{metrics}");
    second.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_read_while_starting_is_fetched_ahead_when_it_starts_again() {
    require_fuse!();
    let bench = Bench::new().await;
    let agent = Agent::start(Config { recordings_accept: Accept::None, ..bench.config("node") }).await.unwrap();
    let device = bench.attach(&agent).await;
    bench.run(&device, places()).await;
    agent.node().detach(&device.id, false).await.unwrap();
    assert!(happened(&agent, "recording.kept").await.contains(&device.id));
    assert!(bench.file("node").exists());
    agent.node().clear_cache(true).await.unwrap();
    agent.stop().await.unwrap();

    let again = Agent::start(Config { recordings_accept: Accept::None, ..bench.config("node") }).await.unwrap();
    let device = bench.attach(&again).await;
    happened(&again, "recording.replayed").await;
    bench.registry.reset_counts();
    bench.run(&device, places()).await;
    assert_eq!(bench.registry.counts().blob_requests, 0);
    assert_eq!(reading(&again, &device).await.recording_from.as_deref(), Some("node"));
    let listed = again.node().recordings().await.unwrap();
    again.node().remove_recording(&listed[0].manifest.to_string()).await.unwrap();
    assert!(again.node().recordings().await.unwrap().is_empty() && !bench.file("node").exists());
    assert!(again.node().remove_recording(&listed[0].manifest.to_string()).await.is_err());
    again.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_something_else_ends_the_replay() {
    require_fuse!();
    let bench = Bench::new().await;
    let mut other = Recorder::new(bench.manifest.digest);
    other.need(&bench.layer, ByteRange::new(12 << 20, 23 << 20).unwrap());
    bench.publish(other.recording());
    let agent = Agent::start(bench.config("node")).await.unwrap();
    // Of the image only its head comes until the replay has begun, and nothing of the replay.
    bench.registry.fail(Fault::Stall.always().skip(1));
    let device = bench.attach(&agent).await;
    // At least one of its reads: neighbours share a request.
    bench.registry.until_stalled(1).await;
    bench.registry.clear_faults();
    bench.run(&device, (0..40).map(|nth| (nth * 7 % 40) * (256 << 10)).collect()).await;
    happened(&agent, "recording.diverged").await;
    let reading = reading(&agent, &device).await;
    assert!(reading.diverged && reading.replayed_bytes < reading.recording_bytes, "{reading:?}");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_that_is_not_of_the_image_is_refused() {
    require_fuse!();
    let larger = |bench: &Bench| Blob { size_bytes: 1 << 40, ..bench.layer };
    let foreign = |_: &Bench| Blob { digest: Digest::of(b"another"), size_bytes: 1 << 20 };
    type Hostile = (&'static str, fn(&Bench) -> Blob);
    let hostile: [Hostile; 2] = [("beyond", larger), ("foreign", foreign)];
    for (case, blob) in hostile {
        let bench = Bench::new().await;
        let mut recorder = Recorder::new(bench.manifest.digest);
        recorder.need(&blob(&bench), ByteRange::at(0, 1 << 20).unwrap());
        bench.publish(recorder.recording());
        let agent = Agent::start(bench.config(case)).await.unwrap();
        let device = bench.attach(&agent).await;
        let said = happened(&agent, "recording.refused").await;
        assert!(said.contains("which the image does not have"), "{case}: {said}");
        let reading = reading(&agent, &device).await;
        assert_eq!((reading.recording_from, reading.replayed_bytes), (None, 0), "{case}");
        bench.run(&device, places()).await;
        agent.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_does_not_say_whether_there_is_a_recording_delays_no_attach() {
    require_fuse!();
    let bench = Bench::new().await;
    let config = Config { verify_deadline: Duration::from_millis(100), ..bench.config("node") };
    let agent = Agent::start(config).await.unwrap();
    bench.registry.fail(Fault::Stall.on(Target::Kind(Kind::Referrers)).always());
    let device = bench.attach(&agent).await;
    bench.registry.until_stalled(1).await;
    bench.run(&device, places()).await;
    assert_eq!(reading(&agent, &device).await.recording_from, None);
    // Who stops waits for what is under way.
    bench.registry.clear_faults();
    bench.registry.release();
    agent.stop().await.unwrap();
}

/// An image that is worth completing when a bit more than half of it was read, in chunks of [`CHUNK_SIZE`].
const WIDE_CHUNKS: u64 = 352;
/// Bytes of such a chunk.
const CHUNK_SIZE: u64 = 256 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_read_widely_only_after_its_start_is_completed() {
    require_fuse!();
    let bench = Bench::of(disk(2, WIDE_CHUNKS * CHUNK_SIZE)).await;
    let config = Config {
        // Over with the first read.
        recordings_duration: Duration::from_millis(1),
        chunk_size: ChunkSize::new(CHUNK_SIZE).unwrap(),
        cache_read_ahead_bytes: 0,
        ..bench.config("node")
    };
    let agent = Agent::start(config).await.unwrap();
    let device = bench.attach(&agent).await;
    bench.run(&device, vec![0]).await;
    said(&agent, "recording.kept", &format!("{} read while starting", device.id)).await;
    assert_eq!(reading(&agent, &device).await.mode, ReadingMode::Lazy);
    // Each read in another chunk: 54 MiB of 88 are fetched, and some MiB were missed since it was half.
    bench.run(&device, (0..216).map(|nth| nth * CHUNK_SIZE).collect()).await;
    said(&agent, "recording.chosen", &format!("{} is read by", device.id)).await;
    said(&agent, "recording.filled", &format!("{} is completed", device.id)).await;
    let device = agent.node().device(&device.id).await.unwrap();
    let reading = device.reading.unwrap();
    assert!(reading.mode == ReadingMode::Full && reading.filled_bytes >= 32 << 20, "{reading:?}");
    assert!(device.blobs.iter().all(|blob| blob.present_bytes == blob.size_bytes), "{:?}", device.blobs);
    agent.stop().await.unwrap();
}
