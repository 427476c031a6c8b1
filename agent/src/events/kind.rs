//! Every kind of event there is: one line each, from which names, severities, metrics and the page docs/events.md follow.
//!
//! To add a kind: one line here, its row in docs/events.md (a test compares them), and a place that records it (a test looks for it).

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// What becomes of an event, by how much attention it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Of use when something is looked for: counted, logged at debug level, and not kept in the ring, where it would push out others.
    Detail,
    /// The expected course of things.
    Note,
    /// Something failed or was done without.
    Warning,
}

impl Severity {
    /// As metrics and documents name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Detail => "detail",
            Self::Note => "note",
            Self::Warning => "warning",
        }
    }
}

/// Makes [`Kind`] from lines of variant, name, severity and meaning.
macro_rules! kinds {
    ($($variant:ident = $name:literal, $severity:ident, $what:literal;)+) => {
        /// What kind of thing an event is. Names are stable: programs match on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind {
            $(#[doc = $what] $variant,)+
        }

        impl Kind {
            /// All kinds, in the order of docs/events.md.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name of the variant, by which sources are searched.
            #[must_use]
            pub const fn variant(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }

            /// The name that programs see.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// How much attention it needs.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)+ }
            }

            /// What it says, in a line.
            #[must_use]
            pub const fn what(self) -> &'static str {
                match self { $(Self::$variant => $what,)+ }
            }
        }
    };
}

kinds! {
    // agent: the process.
    AgentReady = "agent.ready", Note, "the agent has started and takes work";
    AgentDraining = "agent.draining", Note, "the agent takes no more work and stops";

    // api: who asks it.
    ApiRefused = "api.refused", Warning, "who asked over TCP showed no token and no certificate that is known; said at most once a minute for each address";
    ApiReloaded = "api.reloaded", Note, "the tokens or certificates of the TCP listener were read again, because their files changed";
    ApiReloadFailed = "api.reload_failed", Warning, "changed tokens or certificates cannot be used: no token is taken any more, or the certificates from before go on";

    // traces: the collector of spans.
    TracesRefused = "traces.refused", Warning, "the collector of traces cannot be reached or does not take spans; they are dropped until it does";
    TracesTaken = "traces.taken", Note, "the collector of traces takes spans again";

    // state: the state directory.
    StateUnreadableRecord = "state.unreadable_record", Warning, "a record in the state directory is not one of this release; it is left alone and its image is not attached";
    StateLeftover = "state.leftover", Warning, "something that a killed agent left in the kernel was removed, or is still there";

    // device: attachments and their readers.
    DeviceAttached = "device.attached", Note, "an image was attached";
    DeviceAttachFailed = "device.attach_failed", Warning, "an image could not be attached; nothing of it stays";
    DeviceRestored = "device.restored", Note, "a recorded image was attached again at the start";
    DeviceRestoreFailed = "device.restore_failed", Warning, "a recorded image could not be attached again; it is listed as failed";
    DeviceDetached = "device.detached", Note, "an image was detached on request";
    DeviceDetachRefused = "device.detach_refused", Warning, "an image was not detached, because it is in use or the kernel refused";
    DeviceResumed = "device.resumed", Note, "a device was taken over from an earlier agent; its readers go on";
    DeviceLost = "device.lost", Warning, "a device of an earlier agent could not be taken over; who used it gets I/O errors";
    DeviceUnkept = "device.unkept", Warning, "nobody took the FUSE connection of a device; it ends with this agent";
    DeviceLeft = "device.left", Note, "a device was left for the next agent; its readers wait for that";
    DeviceForced = "device.forced", Warning, "a device in use was stopped, because the agent ends; its readers get I/O errors";
    DeviceLeftBehind = "device.left_behind", Warning, "a device could not be taken away when the agent ended; the next start cleans up";
    DeviceWaiting = "device.waiting", Note, "readers wait longer than the deadline for bytes that cannot be fetched";
    DevicePolicyEio = "device.policy_eio", Warning, "readers get I/O errors, because bytes could not be fetched in the time that the policy allows";
    DeviceHealed = "device.healed", Note, "readers that waited or got I/O errors get their bytes again";
    DeviceReadFailed = "device.read_failed", Warning, "a read of a device failed; said at most every 10 s for each device";
    DeviceBytesRejected = "device.bytes_rejected", Warning, "bytes from the cache failed a check of the image's format; they are fetched again";

    // snapshot: layers that containers read on demand, and those that they do not.
    SnapshotEager = "snapshot.eager", Note, "a layer that containerd pulls is not read on demand but unpacked; said once an hour for each reason and image";
    SnapshotRefused = "snapshot.refused", Warning, "a layer that containerd pulls is a disk and cannot be read on demand: its pull fails, since unpacked it would be empty";
    SnapshotOpened = "snapshot.opened", Note, "an image that containerd pulls has been opened: its first mount asks no registry what it is";
    SnapshotOpenFailed = "snapshot.open_failed", Warning, "an image that containerd pulls could not be opened: its first mount tries again, and says so if it fails too";
    SnapshotMounted = "snapshot.mounted", Note, "a device shows layers of an image to containers";
    SnapshotUnmounted = "snapshot.unmounted", Note, "layers are not shown to containers any more, because their snapshot was removed";

    // layers: ordinary layers that are read by an index of them.
    LayersIndexed = "layers.indexed", Note, "an image that was pulled without indexes of its layers has them now on this node";
    LayersIndexFailed = "layers.index_failed", Warning, "layers of an image that was pulled cannot be indexed: they are unpacked as before";
    LayersIndexRefused = "layers.index_refused", Warning, "an index of a layer is not used, because it is not trusted, not of the layer, or damaged";
    LayersPushed = "layers.pushed", Note, "indexes of layers that this node made are beside their image in the registry";
    LayersPushFailed = "layers.push_failed", Warning, "indexes of layers that this node made could not be pushed beside their image; this node keeps them";
    LayersWrongBytes = "layers.wrong_bytes", Warning, "bytes of a layer do not decode to what its index says; they are thrown away and read from elsewhere";

    // fetch, endpoint, hosts: registries and mirrors.
    FetchFailed = "fetch.failed", Warning, "reads from a registry began to fail, whoever was asked; said again after one has succeeded";
    FetchEventsLost = "fetch.events_lost", Warning, "the fetcher had more to say than was kept";
    EndpointBroken = "endpoint.broken", Warning, "an endpoint failed and is passed over while there are others";
    EndpointHealed = "endpoint.healed", Note, "an endpoint that was passed over answers again";
    EndpointWrongBytes = "endpoint.wrong_bytes", Warning, "an endpoint gave bytes that are not those of their blob; it is asked last for that blob";
    HostsRefused = "hosts.refused", Warning, "a hosts.toml or a file that it names cannot be used; what held before still does, else the registry itself is asked";
    HostsTaken = "hosts.taken", Note, "a changed hosts.toml is used";

    // credentials: what registries are shown.
    CredentialsUnusable = "credentials.unusable", Warning, "a provider of credentials that is configured cannot be used as the agent starts";
    CredentialsRefused = "credentials.refused", Warning, "a registry or its token server refuses the credentials of a provider, which it did not refuse before";
    CredentialsRefreshed = "credentials.refreshed", Detail, "credentials that were refused, or others in their place, are accepted";

    // cache: chunks on this node's disk.
    CacheIndexRebuilt = "cache.index_rebuilt", Warning, "the index was damaged or lost and was rebuilt from slot headers";
    CacheIndexAbandoned = "cache.index_abandoned", Warning, "the index failed while the agent ran; the cache goes on without it until the next start";
    CacheCorrupt = "cache.corrupt", Warning, "cached bytes are not those of their blob, or a file is inconsistent; they were dropped and are fetched again";
    CacheBlobVerified = "cache.blob_verified", Note, "a blob is whole and its digest has been checked";
    CacheBypass = "cache.bypass", Warning, "fetched chunks cannot be stored, because the disk is full or fails; they are served all the same";
    CachePressure = "cache.pressure", Warning, "the file system has less free than `cache.reserve`: nothing is stored, and chunks are evicted";
    CacheHealed = "cache.healed", Note, "what a bypass or pressure told of is over";
    CacheScrubbed = "cache.scrubbed", Note, "everything cached has been read again in the background";
    CacheEventsLost = "cache.events_lost", Warning, "the cache had more to say than was kept";

    // images: the image service between the kubelet and containerd.
    ImagesAway = "images.away", Warning, "containerd's image service cannot be reached; calls are answered UNAVAILABLE";
    ImagesBack = "images.back", Note, "containerd's image service answers again";
    ImagesUnread = "images.unread", Warning, "a pull or a removal was forwarded without being understood: its credentials are not used for reads";
    ImagesCredentials = "images.credentials", Warning, "credentials that a pull brought cannot be used to read its layers, or whose they are cannot be kept";
    ImagesPulled = "images.pulled", Note, "an image was put whole into containerd's content store on request";

    // recording: what images read while starting, and how they are read because of it.
    RecordingKept = "recording.kept", Note, "what an image read while starting was written down";
    RecordingRefused = "recording.refused", Warning, "a recording is not of its image, or is damaged; it is not used";
    RecordingChosen = "recording.chosen", Note, "an image is read along its recording, or all of it is fetched, and why";
    RecordingReplayed = "recording.replayed", Note, "what a recording says was fetched ahead of its needs";
    RecordingDiverged = "recording.diverged", Note, "a program did something else than the recording of its image says; the rest of that is not fetched";
    RecordingFilled = "recording.filled", Note, "an image that is read widely was completed in the background";

    // index: chunk-digest lists.
    IndexMissing = "index.missing", Warning, "an image was refused, because an index is required and it has none that can be used";
    IndexRefused = "index.refused", Warning, "an image's index is not of that image, is damaged, or contradicts another; it is not used";
    IndexWrongBytes = "index.wrong_bytes", Warning, "bytes that a registry or mirror sent are not those of the image's index; they were thrown away and are read from elsewhere. Said again only after right ones came";
}

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.name(), encoder)
    }
}

/// The labels of the count of events: as many values as there are kinds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabel {
    kind: Kind,
    severity: &'static str,
}

impl From<Kind> for KindLabel {
    fn from(kind: Kind) -> Self {
        Self { kind, severity: kind.severity().name() }
    }
}
