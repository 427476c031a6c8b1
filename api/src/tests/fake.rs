//! A fake node, and a way to ask it over the real router.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    Answer, Attach, BlobBlocks, BlobUsage, BlockMap, Breaker, Burst, CacheFreed, CacheUsage, CacheVerified, Change,
    CredentialProvider, CredentialRefusal, CredentialUse, Credentials, Detached, Device, DeviceState, EndRecording,
    Endpoint, Event, EventStream, Events, EvictCache, Explanation, Fate, FreedBlob, HandOver, HandedOver, Index,
    IndexState, Inspect, InspectedLayer, InspectedWay, Inspection, KeptBlob, Latency, Layers, Link, Memory, MemoryPart,
    MemoryUser, Node, NodeError, NotDetached, OnFailure, Owner, Policy, Presence, Problem, Pull, PullMessage,
    PullProgress, PullStream, Pulled, Readiness, Reading, ReadingMode, Recording, RegistryHosts, Role, Severity,
    Snapshot, SnapshotDevice, SnapshotKind, SnapshotsRepaired, Stats, Tier, Timestamp, Transport, Verification,
    Version, WaitedRange, Waits, WayState, router,
};
use axum::{
    body::Body,
    http::{Request, Response, header},
};
use http_body_util::BodyExt as _;
use penstock_blob::Digest;
use tower::ServiceExt as _;

/// Answers from memory, in the manner that a test sets.
pub(super) struct Fake {
    pub(super) devices: Vec<Device>,
    pub(super) ready: Readiness,
    /// What every call that can fail answers.
    pub(super) failure: Option<NodeError>,
    /// How many blobs the cache lists.
    pub(super) blobs: u32,
    pub(super) panics: bool,
}

impl Default for Fake {
    fn default() -> Self {
        Self { devices: vec![device("d1")], ready: Readiness::Ready, failure: None, blobs: 2, panics: false }
    }
}

pub(super) fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(super) fn device(id: &str) -> Device {
    Device {
        id: id.to_owned(),
        state: DeviceState::Attached,
        state_reason: None,
        reference: "registry.example/app:1".to_owned(),
        digest: Digest::of(b"manifest"),
        platform: "linux/amd64".to_owned(),
        image: "OverlayBD, 1 layer".to_owned(),
        owner: Owner::Operator,
        layers: Layers { first: 0, count: 1, of: 1 },
        size_bytes: 1 << 30,
        transport: Transport::Ublk,
        transport_reason: "/dev/ublk-control can be used".to_owned(),
        device_path: Some("/dev/ublkb0".into()),
        mount_point: None,
        file_system: Some("ext4".to_owned()),
        verified_by: "CRC of each frame".to_owned(),
        policy: Policy { deadline_ms: 30_000, on_failure: OnFailure::Eio, wait_limit_ms: 600_000 },
        outlives_agent: true,
        attached_at: time(1_800_000_000),
        reading: Some(reading()),
        stats: Stats { requests: 7, bytes_served: 28_672, hits: 5, misses: 2, ..Stats::default() },
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
        blobs: vec![Presence::new(Digest::of(b"layer"), 1000, 250, "digest once whole".to_owned())],
    }
}

fn blob(number: u32) -> BlobUsage {
    let usage = BlobUsage {
        digest: Digest::of(&number.to_be_bytes()),
        size_bytes: 1 << 20,
        chunk_size_bytes: 256 << 10,
        chunks: 4,
        chunks_present: 1,
        chunks_durable: 1,
        present_bytes: u64::from(number),
        present_share: 0.0,
        fetched_bytes: 256 << 10,
        verification: Verification::Partial,
    };
    usage.with_share()
}

fn event(sequence: u64) -> Event {
    Event {
        sequence,
        time: time(1_800_000_000),
        severity: Severity::Note,
        kind: "device.attached".to_owned(),
        text: "attached d1".to_owned(),
        fields: BTreeMap::from([("device".to_owned(), "d1".to_owned())]),
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
            expires_at: Some(time(1_800_000_000)),
        }],
        kept: true,
        kept_reason: None,
        in_use: vec![CredentialUse {
            scope: "registry.example.com/team/app".to_owned(),
            provider: Some("api".to_owned()),
            expires_at: Some(time(1_800_000_000)),
            refused: vec![CredentialRefusal {
                provider: "docker-config".to_owned(),
                at: time(1_800_000_000),
                reason: "token server auth.example.com: answered 401 Unauthorized to these credentials".to_owned(),
            }],
        }],
    }
}

/// A layer that is read on demand, a container on it, and a layer that is not.
fn snapshots() -> Vec<Snapshot> {
    let lazy = Snapshot {
        name: "penstock/7/sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef".to_owned(),
        kind: SnapshotKind::Committed,
        parent: None,
        created_at: time(1_800_000_000),
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
fn reading() -> Reading {
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

/// A recording of that image.
fn recording() -> Recording {
    Recording {
        manifest: Digest::of(b"manifest"),
        ranges: 300,
        bytes: 14_000_000,
        file_bytes: 1100,
        recorded_at: time(1_800_000_000),
        pushed: false,
    }
}

impl Fake {
    fn answer<T: Send + 'static>(&self, value: T) -> Answer<'_, T> {
        assert!(!self.panics, "the fake panics");
        let answer = self.failure.clone().map_or(Ok(value), Err);
        Box::pin(async { answer })
    }

    fn find(&self, id: &str) -> Result<&Device, NodeError> {
        let found = self.devices.iter().find(|device| device.id == id);
        found.ok_or_else(|| NodeError::NotFound(format!("there is no device {id}")))
    }
}

impl Node for Fake {
    fn readiness(&self) -> Readiness {
        self.ready.clone()
    }

    fn metrics(&self) -> Answer<'_, String> {
        self.answer("# EOF\n".to_owned())
    }

    fn devices(&self) -> Answer<'_, Vec<Device>> {
        self.answer(self.devices.clone())
    }

    fn device<'a>(&'a self, id: &'a str) -> Answer<'a, Device> {
        match self.find(id) {
            Ok(device) => self.answer(device.clone()),
            Err(error) => Box::pin(async { Err(error) }),
        }
    }

    fn blocks<'a>(&'a self, id: &'a str) -> Answer<'a, BlockMap> {
        let blobs = |device: &Device| {
            let of = |blob: &Presence| BlobBlocks {
                digest: blob.digest,
                size_bytes: blob.size_bytes,
                cell_bytes: 500,
                cells: "X2".to_owned(),
            };
            device.blobs.iter().map(of).collect()
        };
        let map = self.find(id).map(|device| BlockMap { id: device.id.clone(), blobs: blobs(device) });
        Box::pin(async { map })
    }

    fn explain<'a>(&'a self, id: &'a str) -> Answer<'a, Explanation> {
        let explained = |device: &Device| Explanation {
            id: device.id.clone(),
            reference: device.reference.clone(),
            sentence: "started in 0.9 s".to_owned(),
            attached_ms: Some(80),
            start: Some(Burst { took_ms: 900, stalled_ms: 600, reads: 34, bytes: 4_500_000, over: true }),
            waits: Waits { stalled_ms: 700, reads: 40, bytes: 5_000_000 },
            own_ms: Some(300),
            needed_bytes: 4_600_000,
            recording_from: None,
            image_bytes: 201_000_000,
            link: Link { latency_us: Some(20_000), bytes_per_second: None },
            recorded_ms: None,
            pulled_ms: None,
            unknown: vec!["how fast the registry is".to_owned()],
            under: Some("/usr/lib/python3".to_owned()),
            ranges: vec![WaitedRange {
                start: 8192,
                bytes: 131_072,
                waits: 2,
                waited_ms: 41,
                path: Some("/usr/lib/python3/json/decoder.py".to_owned()),
                metadata: false,
            }],
            snapshots: Vec::new(),
        };
        match self.find(id) {
            Ok(device) => self.answer(explained(device)),
            Err(error) => Box::pin(async { Err(error) }),
        }
    }

    fn latency(&self) -> Answer<'_, Vec<Latency>> {
        self.answer(device("d1").latency)
    }

    fn memory(&self) -> Answer<'_, Memory> {
        self.answer(memory())
    }

    fn attach(&self, request: Attach) -> Answer<'_, Device> {
        self.answer(Device { reference: request.reference, mount_point: request.mount, ..device("d2") })
    }

    fn change<'a>(&'a self, id: &'a str, change: Change) -> Answer<'a, Device> {
        match self.find(id) {
            Ok(device) => {
                let mut device = device.clone();
                device.policy.deadline_ms = change.policy.deadline_ms.unwrap_or(device.policy.deadline_ms);
                self.answer(device)
            }
            Err(error) => Box::pin(async { Err(error) }),
        }
    }

    fn detach<'a>(&'a self, id: &'a str, force: bool) -> Answer<'a, ()> {
        match self.find(id) {
            Ok(_) if force => self.answer(()),
            Ok(_) => Box::pin(async { Err(NodeError::Conflict("it is mounted".to_owned())) }),
            Err(error) => Box::pin(async { Err(error) }),
        }
    }

    fn detach_all(&self, force: bool) -> Answer<'_, Detached> {
        let ids = self.devices.iter().map(|device| device.id.clone());
        if force {
            return self.answer(Detached { detached: ids.collect(), failed: Vec::new() });
        }
        let problem = Problem::from(NodeError::Conflict("it is mounted".to_owned()));
        self.answer(Detached {
            detached: Vec::new(),
            failed: ids.map(|id| NotDetached { id, problem: problem.clone() }).collect(),
        })
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
        self.answer(CacheUsage {
            dir: "/var/lib/penstock/cache".into(),
            cap_bytes: 10 << 30,
            limit_bytes: 1 << 29,
            index_bytes: 4096,
            maps_bytes: 8192,
            used_bytes: 1 << 20,
            chunks_present: 4,
            chunks_durable: 3,
            hits: 9,
            fills: 4,
            bypasses: 0,
            evicted: 0,
            corrupt_dropped: 0,
            index: Index { state: IndexState::Open, detail: "the index is open".to_owned() },
            blobs_total: u64::from(self.blobs),
            blobs: (0..self.blobs).map(blob).collect(),
        })
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
        self.answer(vec![RegistryHosts {
            registry: "docker.io".to_owned(),
            hosts_dir: Some("/etc/containerd/certs.d/docker.io".into()),
            hosts_fault: None,
            endpoints: vec![Endpoint {
                url: "https://mirror.lan/v2".to_owned(),
                role: Role::Mirror,
                capabilities: vec!["pull".to_owned()],
                breaker: Breaker::HalfOpen,
                retry_in_seconds: Some(0.5),
                quiet_seconds: None,
                stalling: false,
                latency_seconds: None,
                delay_seconds: None,
                bytes_per_second: Some(98_000_000),
                allowed_bytes: 4 << 20,
                hedge_after_seconds: 1.0,
                in_flight: 1,
                requests: 7,
                hedges: 0,
                received_bytes: 1 << 20,
                failures: 5,
                rejects: 0,
                last_failure: None,
            }],
        }])
    }

    fn events(&self, since: u64, limit: usize) -> Answer<'_, Events> {
        let events = (since + 1..=3).take(limit).map(event).collect();
        self.answer(Events { started_at: time(1_700_000_000), events, newest: 3, lost: 0 })
    }

    fn follow(&self, since: u64) -> Result<EventStream, NodeError> {
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        let batch = |lost, sequences: std::ops::RangeInclusive<u64>| Events {
            started_at: time(1_700_000_000),
            events: sequences.map(event).collect(),
            newest: 9,
            lost,
        };
        // What is kept, and then one more for which some had to go.
        Ok(Box::pin(futures_util::stream::iter([batch(0, since + 1..=3), batch(5, 9..=9)])))
    }

    fn pull(&self, request: Pull) -> Answer<'_, PullStream> {
        let progress = PullProgress { blobs_done: 1, blobs: 2, bytes_done: 10, bytes: 30 };
        let last = match self.devices.is_empty() {
            true => PullMessage::Failed(Problem::from(NodeError::Unavailable("the registry\nis away".to_owned()))),
            false => PullMessage::Done(Pulled {
                reference: request.reference,
                digest: Digest::of(b"manifest"),
                namespace: request.namespace,
                new: true,
                written_bytes: 30,
                blobs: Vec::new(),
            }),
        };
        let messages = [PullMessage::Progress(progress), last];
        let stream: PullStream = Box::pin(futures_util::stream::iter(messages));
        let answer = self.failure.clone().map_or(Ok(stream), Err);
        Box::pin(async { answer })
    }

    fn inspect(&self, request: Inspect) -> Answer<'_, Inspection> {
        let way = InspectedWay {
            way: "own".to_owned(),
            state: WayState::Used,
            detail: "kept here".to_owned(),
            index_bytes: Some(1000),
            open_bytes: Some(0),
        };
        let layer = InspectedLayer {
            digest: Digest::of(b"layer"),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            size_bytes: 100_000,
            fate: Fate::Lazy,
            why: "an ordinary tar+gzip layer".to_owned(),
            verified_by: "sha256 of every frame".to_owned(),
            open_bytes: Some(0),
            ways: vec![way],
        };
        self.answer(Inspection {
            reference: request.reference,
            digest: Digest::of(b"manifest"),
            platform: request.platform.unwrap_or_else(|| "linux/amd64".to_owned()),
            size_bytes: 100_000,
            lazy_layers: 1,
            layers: vec![layer],
        })
    }

    fn version(&self) -> Version {
        Version {
            version: "0.1.0".to_owned(),
            kernel: "Linux 6.12.0 x86_64".to_owned(),
            pid: 42,
            started_at: time(1_700_000_000),
        }
    }
}

/// What came back.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) location: Option<String>,
    pub(super) allow: Option<String>,
    pub(super) body: String,
}

impl Reply {
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The problem, checked to be one whose members agree with the answer's head.
    pub(super) fn problem(&self) -> Problem {
        assert_eq!(self.content_type, crate::PROBLEM_JSON, "{}", self.body);
        let problem: Problem = self.json();
        assert_eq!(problem.status, self.status);
        let kind = problem.kind().expect("a kind of ours");
        assert_eq!((problem.title.as_str(), problem.status), (kind.title(), kind.status()));
        problem
    }
}

pub(super) async fn ask(node: Fake, request: Request<Body>) -> Reply {
    read(router(Arc::new(node)).oneshot(request).await.unwrap()).await
}

pub(super) async fn read(response: Response<Body>) -> Reply {
    let (head, body) = response.into_parts();
    let header = |name| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    Reply {
        status: head.status.as_u16(),
        content_type: header(header::CONTENT_TYPE).unwrap_or_default(),
        location: header(header::LOCATION),
        allow: header(header::ALLOW),
        body: String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap(),
    }
}

pub(super) fn request(method: &str, uri: &str) -> Request<Body> {
    Request::builder().method(method).uri(uri).body(Body::empty()).unwrap()
}

pub(super) async fn get(node: Fake, uri: &str) -> Reply {
    ask(node, request("GET", uri)).await
}

pub(super) async fn post(content_type: &str, body: impl Into<Body>) -> Reply {
    let request = Request::post("/v1/devices").header(header::CONTENT_TYPE, content_type);
    ask(Fake::default(), request.body(body.into()).unwrap()).await
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
