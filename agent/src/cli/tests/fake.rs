//! A node that answers from constants, served on a socket in a directory of its own.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use penstock_api::{
    Answer, Attach, BlobUsage, BlockMap, Breaker, Burst, CacheFreed, CacheUsage, CacheVerified, Change,
    CredentialProvider, CredentialRefusal, CredentialUse, Credentials, Detached, Device, DeviceState, EndRecording,
    Endpoint, Event, EventStream, Events, EvictCache, Explanation, Fate, FreedBlob, HandOver, HandedOver, Index,
    IndexState, Inspect, InspectedLayer, InspectedWay, Inspection, KeptBlob, Latency, Layers, Link, Memory, MemoryPart,
    MemoryUser, Node, NodeError, NotDetached, OnFailure, Owner, Policy, Presence, Problem, Pull, PullMessage,
    PullProgress, PullStream, Pulled, PulledBlob, Readiness, Reading, ReadingMode, Recording, RegistryHosts, Role,
    Severity, Snapshot, SnapshotDevice, SnapshotKind, SnapshotsRepaired, Stats, Tier, Timestamp, Transport,
    Verification, Version, WaitedRange, Waits, WayState,
};
use penstock_blob::Digest;
use tokio::{net::UnixListener, task::JoinSet};

/// Answers from constants, or fails as told.
#[derive(Default)]
pub(super) struct Fake {
    pub(super) failure: Option<NodeError>,
}

/// A fake that is being served.
pub(super) struct Served {
    dir: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl Served {
    pub(super) fn new(node: Fake) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("penstock.sock")).unwrap();
        let router = penstock_api::router(Arc::new(node));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { dir, _tasks: tasks }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("penstock.sock")
    }
}

pub(super) fn time() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

pub(super) fn device() -> Device {
    Device {
        id: "d1".to_owned(),
        state: DeviceState::Attached,
        state_reason: None,
        reference: "registry.example/team/app:1.4".to_owned(),
        digest: Digest::of(b"manifest"),
        platform: "linux/amd64".to_owned(),
        image: "OverlayBD, 2 layers".to_owned(),
        owner: Owner::Operator,
        layers: Layers { first: 0, count: 2, of: 2 },
        size_bytes: 64 << 30,
        transport: Transport::Ublk,
        transport_reason: "/dev/ublk-control can be used".to_owned(),
        device_path: Some("/dev/ublkb0".into()),
        mount_point: Some("/mnt/app".into()),
        file_system: Some("ext4".to_owned()),
        verified_by: "CRC of each frame".to_owned(),
        policy: Policy { deadline_ms: 30_000, on_failure: OnFailure::Eio, wait_limit_ms: 600_000 },
        outlives_agent: true,
        attached_at: time(),
        reading: Some(reading()),
        stats: Stats {
            requests: 1234,
            bytes_served: 9_876_543,
            hits: 1200,
            misses: 34,
            bytes_fetched: 4_500_000,
            ..Stats::default()
        },
        latency: vec![
            Latency { tier: Tier::Memory, reads: 1200, took_us: 9_600, p50_us: 6, p99_us: 40, p999_us: 900 },
            Latency {
                tier: Tier::Origin,
                reads: 34,
                took_us: 900_000,
                p50_us: 21_000,
                p99_us: 1_250_000,
                p999_us: 1_250_000,
            },
        ],
        blobs: vec![
            Presence::new(
                Digest::of(b"lower"),
                200_000_000,
                4_000_000,
                "index (BLAKE3 / 64 KiB), digest once whole".to_owned(),
            ),
            Presence::new(Digest::of(b"upper"), 1_000_000, 500_000, "digest once whole".to_owned()),
        ],
    }
}

/// One that could not be restored.
pub(super) fn failed_device() -> Device {
    Device {
        id: "d12".to_owned(),
        state: DeviceState::Failed,
        state_reason: Some("the registry\x1b[31m does not answer".to_owned()),
        owner: Owner::Snapshotter,
        layers: Layers { first: 0, count: 1, of: 2 },
        reference: "alpine".to_owned(),
        transport: Transport::Fuse,
        device_path: None,
        mount_point: None,
        file_system: None,
        size_bytes: 0,
        stats: Stats::default(),
        latency: Vec::new(),
        ..device()
    }
}

pub(super) fn explanation() -> Explanation {
    Explanation {
        id: "d1".to_owned(),
        reference: "registry.example/team/app:1.4".to_owned(),
        sentence: "started in 0.9 s; 0.6 s waiting on 34 reads from registries".to_owned(),
        attached_ms: Some(80),
        start: Some(Burst { took_ms: 900, stalled_ms: 600, reads: 34, bytes: 4_500_000, over: true }),
        waits: Waits { stalled_ms: 700, reads: 40, bytes: 5_000_000 },
        own_ms: Some(300),
        needed_bytes: 4_600_000,
        recording_from: None,
        image_bytes: 201_000_000,
        link: Link { latency_us: Some(20_000), bytes_per_second: Some(100_000_000) },
        recorded_ms: Some(370),
        pulled_ms: Some(2330),
        unknown: vec!["which files were read\x1b[2J".to_owned()],
        under: Some("/usr/lib/python3".to_owned()),
        ranges: vec![WaitedRange {
            start: 8192,
            bytes: 131_072,
            waits: 2,
            waited_ms: 41,
            path: Some("/usr/lib/python3/json/decoder.py".to_owned()),
            metadata: false,
        }],
        snapshots: vec!["k8s.io/3/web".to_owned()],
    }
}

pub(super) fn credentials() -> Credentials {
    Credentials {
        providers: vec![
            CredentialProvider { provider: "api".to_owned(), path: None, problem: None },
            CredentialProvider {
                provider: "static-file".to_owned(),
                path: Some("/etc/penstock/credentials.toml".into()),
                problem: Some("its mode is 0644; `chmod 0600` it".to_owned()),
            },
        ],
        handed_over: vec![HandedOver {
            scope: "registry.example.com".to_owned(),
            kind: "password".to_owned(),
            expires_at: Some(time()),
        }],
        kept: true,
        kept_reason: None,
        in_use: vec![CredentialUse {
            scope: "registry.example.com/team/app".to_owned(),
            provider: Some("api".to_owned()),
            expires_at: Some(time()),
            refused: vec![CredentialRefusal {
                provider: "docker-config".to_owned(),
                at: time(),
                reason: "token server auth.example.com: answered 401 Unauthorized to these credentials".to_owned(),
            }],
        }],
    }
}

pub(super) fn cache() -> CacheUsage {
    let blob = BlobUsage {
        digest: Digest::of(b"lower"),
        size_bytes: 200_000_000,
        chunk_size_bytes: 256 << 10,
        chunks: 763,
        chunks_present: 16,
        chunks_durable: 15,
        present_bytes: 4_000_000,
        present_share: 0.0,
        fetched_bytes: 4_194_304,
        verification: Verification::Partial,
    };
    CacheUsage {
        dir: "/var/lib/penstock/cache".into(),
        cap_bytes: 10 << 30,
        limit_bytes: 9 << 30,
        used_bytes: 4_500_000,
        index_bytes: 320 << 10,
        maps_bytes: 64 << 10,
        chunks_present: 18,
        chunks_durable: 17,
        hits: 1200,
        fills: 18,
        bypasses: 0,
        evicted: 0,
        corrupt_dropped: 0,
        index: Index { state: IndexState::Open, detail: "1 commit waits to be flushed".to_owned() },
        blobs_total: 2,
        blobs: vec![blob.with_share()],
    }
}

pub(super) fn endpoints() -> Vec<RegistryHosts> {
    let mirror = Endpoint {
        url: "http://127.0.0.1:30020/v2".to_owned(),
        role: Role::Mirror,
        capabilities: vec!["pull".to_owned(), "resolve".to_owned()],
        breaker: Breaker::Open,
        retry_in_seconds: Some(3.6),
        quiet_seconds: None,
        stalling: false,
        latency_seconds: Some(0.0123),
        delay_seconds: Some(0.011),
        bytes_per_second: Some(98_000_000),
        allowed_bytes: 4 << 20,
        hedge_after_seconds: 0.05,
        in_flight: 0,
        requests: 120,
        hedges: 0,
        received_bytes: 30 << 20,
        failures: 5,
        rejects: 1,
        last_failure: Some("answered 503 Service Unavailable\x1b[31m".to_owned()),
    };
    let server = Endpoint {
        url: "https://registry-1.docker.io/v2".to_owned(),
        role: Role::Server,
        breaker: Breaker::Closed,
        retry_in_seconds: None,
        latency_seconds: None,
        delay_seconds: None,
        bytes_per_second: None,
        allowed_bytes: 16 << 20,
        requests: 7,
        hedges: 2,
        received_bytes: 1 << 20,
        failures: 0,
        rejects: 0,
        last_failure: None,
        ..mirror.clone()
    };
    vec![RegistryHosts {
        registry: "docker.io".to_owned(),
        hosts_dir: Some("/etc/containerd/certs.d/docker.io".into()),
        hosts_fault: Some("/etc/containerd/certs.d/docker.io/hosts.toml, line 2: ca must be a file name".to_owned()),
        endpoints: vec![mirror, server],
    }]
}

pub(super) fn events() -> Events {
    let event = |sequence, kind: &str, text: &str| Event {
        sequence,
        time: time(),
        severity: Severity::Note,
        kind: kind.to_owned(),
        text: text.to_owned(),
        fields: BTreeMap::from([("device".to_owned(), "d1".to_owned())]),
    };
    Events {
        started_at: time(),
        events: vec![event(9, "agent.started", "the agent started"), event(10, "device.attached", "attached d1")],
        newest: 12,
        lost: 8,
    }
}

pub(super) fn version() -> Version {
    Version { version: "0.1.0".to_owned(), kernel: "Linux 6.12.0 x86_64".to_owned(), pid: 42, started_at: time() }
}

/// A layer that is read on demand, a container on it, and a layer that is not.
pub(super) fn snapshots() -> Vec<Snapshot> {
    let lazy = Snapshot {
        name: "penstock/7/sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef".to_owned(),
        kind: SnapshotKind::Committed,
        parent: None,
        created_at: time(),
        directory: "/var/lib/containerd/io.containerd.snapshotter.v1.penstock/snapshots/7/fs".into(),
        usage_bytes: Some(0),
        lazy: true,
        detail: Some("OverlayBD, 7 layers".to_owned()),
        reference: Some("registry.example/team/app:1.4".to_owned()),
        manifest: Some(Digest::of(b"manifest")),
        layers: Some(7),
        merged: Some(true),
        device: Some(SnapshotDevice {
            id: "app-1a2b3c".to_owned(),
            bytes_read: 9_876_543,
            bytes_fetched: 4_500_000,
            waited_ms: 1234,
        }),
    };
    let plain = Snapshot {
        name: "k8s.io/2/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".to_owned(),
        usage_bytes: Some(1 << 20),
        lazy: false,
        detail: Some("an ordinary tar+gzip layer: unpacked in full".to_owned()),
        reference: None,
        manifest: None,
        layers: None,
        merged: None,
        device: None,
        ..lazy.clone()
    };
    let container = Snapshot {
        name: "k8s.io/3/web".to_owned(),
        kind: SnapshotKind::Active,
        parent: Some(lazy.name.clone()),
        usage_bytes: None,
        detail: None,
        ..plain.clone()
    };
    vec![plain, container, lazy]
}

/// Along a recording.
pub(super) fn reading() -> Reading {
    Reading {
        mode: ReadingMode::Prefetch,
        why: "its recording says that a start reads 7 % of it".to_owned(),
        recording_from: Some("node".to_owned()),
        recording_bytes: 14_000_000,
        recording_used_bytes: 13_000_000,
        diverged: false,
        replayed_bytes: 9_000_000,
        filled_bytes: 0,
    }
}

/// An image of an ordinary layer that is lazy and one that is not, over a disk.
pub(super) fn inspection() -> Inspection {
    let way = |way: &str, state, detail: &str, index_bytes, open_bytes| InspectedWay {
        way: way.to_owned(),
        state,
        detail: detail.to_owned(),
        index_bytes,
        open_bytes,
    };
    let layer = |name: &str, size_bytes, fate, why: &str| InspectedLayer {
        digest: Digest::of(name.as_bytes()),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        size_bytes,
        fate,
        why: why.to_owned(),
        verified_by: "sha256 of every frame".to_owned(),
        open_bytes: None,
        ways: Vec::new(),
    };
    let disk = InspectedLayer {
        verified_by: "its digest once it is whole".to_owned(),
        ways: vec![way("native", WayState::Used, "a disk, in the layer's own format", None, None)],
        ..layer("disk", 1 << 30, Fate::Lazy, "raw erofs layer")
    };
    let lazy = InspectedLayer {
        open_bytes: Some(300_000),
        ways: vec![
            way("own", WayState::Absent, "", None, None),
            way("toc", WayState::Used, "eStargz", Some(250_000), Some(300_000)),
            way("pushed", WayState::Refused, "there is one, but layers.accept does not name r\u{1b}[2J", None, None),
            way("soci", WayState::Off, "SOCI", Some(400_000), Some(400_000)),
            way("unpack", WayState::Spare, "fetched whole before a container starts", None, Some(30 << 20)),
        ],
        ..layer("lazy", 30 << 20, Fate::Lazy, "an ordinary tar+gzip layer, by its own table of contents")
    };
    let unpacked = InspectedLayer {
        open_bytes: Some(2 << 20),
        ways: vec![way("unpack", WayState::Used, "fetched whole before a container starts", None, Some(2 << 20))],
        ..layer("unpacked", 2 << 20, Fate::Unpacked, "an encrypted layer: unpacked in full")
    };
    Inspection {
        reference: "registry.example/team/app:1.4".to_owned(),
        digest: Digest::of(b"manifest"),
        platform: "linux/amd64".to_owned(),
        size_bytes: (1 << 30) + (32 << 20),
        lazy_layers: 2,
        layers: vec![disk, lazy, unpacked],
    }
}

/// A recording of that image.
pub(super) fn recording() -> Recording {
    Recording {
        manifest: Digest::of(b"manifest"),
        ranges: 300,
        bytes: 14_000_000,
        file_bytes: 1100,
        recorded_at: time(),
        pushed: false,
    }
}

impl Fake {
    fn answer<T: Send + 'static>(&self, value: T) -> Answer<'_, T> {
        let answer = self.failure.clone().map_or(Ok(value), Err);
        Box::pin(async { answer })
    }
}

impl Node for Fake {
    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }

    fn metrics(&self) -> Answer<'_, String> {
        self.answer("# EOF\n".to_owned())
    }

    fn devices(&self) -> Answer<'_, Vec<Device>> {
        self.answer(vec![device(), failed_device()])
    }

    fn device<'a>(&'a self, _: &'a str) -> Answer<'a, Device> {
        self.answer(device())
    }

    fn blocks<'a>(&'a self, id: &'a str) -> Answer<'a, BlockMap> {
        self.answer(BlockMap { id: id.to_owned(), blobs: Vec::new() })
    }

    fn explain<'a>(&'a self, _: &'a str) -> Answer<'a, Explanation> {
        self.answer(explanation())
    }

    fn inspect(&self, _: Inspect) -> Answer<'_, Inspection> {
        self.answer(inspection())
    }

    fn latency(&self) -> Answer<'_, Vec<Latency>> {
        self.answer(device().latency)
    }

    fn memory(&self) -> Answer<'_, Memory> {
        self.answer(memory())
    }

    fn attach(&self, _: Attach) -> Answer<'_, Device> {
        self.answer(device())
    }

    fn change<'a>(&'a self, _: &'a str, change: Change) -> Answer<'a, Device> {
        let mut device = device();
        device.policy.deadline_ms = change.policy.deadline_ms.unwrap_or(device.policy.deadline_ms);
        self.answer(device)
    }

    fn detach<'a>(&'a self, _: &'a str, _: bool) -> Answer<'a, ()> {
        self.answer(())
    }

    fn detach_all(&self, force: bool) -> Answer<'_, Detached> {
        let problem = Problem::from(NodeError::Conflict("/mnt/app is in use".to_owned()));
        let stays = NotDetached { id: "d1".to_owned(), problem };
        self.answer(Detached { detached: vec!["d12".to_owned()], failed: if force { Vec::new() } else { vec![stays] } })
    }

    fn credentials(&self) -> Answer<'_, Credentials> {
        self.answer(credentials())
    }

    fn hand_over(&self, request: HandOver) -> Answer<'_, ()> {
        let known = request.scope == "registry.example.com";
        Box::pin(async move { if known { Ok(()) } else { Err(NodeError::Invalid("it is no scope".to_owned())) } })
    }

    fn withdraw<'a>(&'a self, scope: &'a str) -> Answer<'a, ()> {
        let known = scope == "registry.example.com";
        Box::pin(
            async move { if known { Ok(()) } else { Err(NodeError::NotFound("none were handed over".to_owned())) } },
        )
    }

    fn cache(&self) -> Answer<'_, CacheUsage> {
        self.answer(cache())
    }

    fn evict(&self, what: EvictCache) -> Answer<'_, CacheFreed> {
        let freed = what.digest.map(|digest| FreedBlob { digest, freed_bytes: 1000 });
        self.answer(CacheFreed { freed_bytes: 1000, freed: freed.into_iter().collect(), kept: Vec::new() })
    }

    fn clear_cache(&self, force: bool) -> Answer<'_, CacheFreed> {
        let digest = penstock_blob::Digest::of(b"layer");
        let kept = KeptBlob { digest, reason: "it is used by 1 attached image".to_owned() };
        let freed = FreedBlob { digest, freed_bytes: 4096 };
        self.answer(match force {
            true => CacheFreed { freed_bytes: 4096, freed: vec![freed], kept: Vec::new() },
            false => CacheFreed { freed_bytes: 0, freed: Vec::new(), kept: vec![kept] },
        })
    }

    fn verify_cache(&self, repair: bool) -> Answer<'_, CacheVerified> {
        let found = CacheVerified { blobs: 2, chunks: 18, bytes: 4_500_000, ..CacheVerified::default() };
        let damaged = CacheVerified { corrupt_chunks: 1, repaired_ranges: 1, ..found };
        self.answer(if repair { damaged } else { found })
    }

    fn snapshots(&self) -> Answer<'_, Vec<Snapshot>> {
        self.answer(snapshots())
    }

    fn repair_snapshots(&self) -> Answer<'_, SnapshotsRepaired> {
        self.answer(SnapshotsRepaired { snapshots: 2, orphans_removed: 1, ..SnapshotsRepaired::default() })
    }

    fn recordings(&self) -> Answer<'_, Vec<Recording>> {
        self.answer(vec![recording()])
    }

    fn remove_recording<'a>(&'a self, manifest: &'a str) -> Answer<'a, ()> {
        let known = manifest == recording().manifest.to_string();
        Box::pin(async move { if known { Ok(()) } else { Err(NodeError::NotFound("there is none".to_owned())) } })
    }

    fn record<'a>(&'a self, _: &'a str) -> Answer<'a, ()> {
        self.answer(())
    }

    fn end_recording<'a>(&'a self, _: &'a str, request: EndRecording) -> Answer<'a, Recording> {
        self.answer(Recording { pushed: request.push, ..recording() })
    }

    fn endpoints(&self) -> Answer<'_, Vec<RegistryHosts>> {
        self.answer(endpoints())
    }

    fn events(&self, _: u64, _: usize) -> Answer<'_, Events> {
        self.answer(events())
    }

    fn follow(&self, _: u64) -> Result<EventStream, NodeError> {
        self.failure.clone().map_or_else(|| Ok(Box::pin(futures_util::stream::iter([events()])) as _), Err)
    }

    fn pull(&self, request: Pull) -> Answer<'_, PullStream> {
        let progress = PullProgress { blobs_done: 1, blobs: 2, bytes_done: 10, bytes: 30 };
        let blob = |bytes: &[u8], written_bytes| PulledBlob {
            digest: Digest::of(bytes),
            media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
            size_bytes: 20 << 20,
            written_bytes,
        };
        let done = Pulled {
            reference: request.reference,
            digest: Digest::of(b"manifest"),
            namespace: request.namespace,
            new: false,
            written_bytes: 20 << 20,
            blobs: vec![blob(b"one", 0), blob(b"two", 20 << 20)],
        };
        let last = self.failure.clone().map_or(PullMessage::Done(done), |error| PullMessage::Failed(error.into()));
        let stream: PullStream = Box::pin(futures_util::stream::iter([PullMessage::Progress(progress), last]));
        Box::pin(std::future::ready(Ok(stream)))
    }

    fn version(&self) -> Version {
        version()
    }
}

pub(super) fn memory() -> Memory {
    let part = |name, used_bytes, limit_bytes| MemoryPart { name, used_bytes, limit_bytes };
    Memory {
        budget_bytes: 64 << 20,
        used_bytes: (2 << 20) + (300 << 10),
        resident_bytes: Some(18 << 20),
        parts: vec![part(MemoryUser::Devices, 2 << 20, Some(12 << 20)), part(MemoryUser::Presence, 300 << 10, None)],
    }
}
