//! Devices: what is asked for, and what is answered about each.

use std::{ops::RangeInclusive, path::PathBuf};

use penstock_blob::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Latency, Problem, Reading, Timestamp};

/// How a device reaches the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// A `/dev/ublkbN` block device.
    Ublk,
    /// A read-only file in a FUSE mount.
    Fuse,
}

/// Which transport the caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// ublk where the kernel has it, FUSE where not.
    #[default]
    Auto,
    /// ublk or an error.
    Ublk,
    /// FUSE or an error.
    Fuse,
}

/// Asks for an image to be attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The image, as for `docker pull`: `registry/repository:tag`, `...@sha256:...`; docker.io and `latest` by default.
    #[schema(example = "registry.example.com/team/app:1.4")]
    pub reference: String,
    /// Mount the file system found on the device here, read-only. An absolute path of a directory on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "/mnt/app")]
    pub mount: Option<PathBuf>,
    /// How the device is to reach the kernel.
    #[serde(default)]
    pub transport: Wanted,
    /// Which image of a multi-platform index: `os/architecture[/variant]`. The node's own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "linux/arm64")]
    pub platform: Option<String>,
    /// Refuse the image unless an index verifies every byte of it. The node's own policy may say so for all images.
    #[serde(default)]
    pub require_verified: bool,
    /// What its readers get while bytes cannot be fetched. What is absent follows the agent's config.
    #[serde(default, skip_serializing_if = "PolicyChange::is_empty")]
    pub policy: PolicyChange,
}

/// What a reader gets when the bytes that it needs cannot be fetched within the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// An I/O error.
    #[default]
    Eio,
    /// Nothing yet: fetching is tried again until the wait limit, then an I/O error.
    Wait,
}

/// How long readers of a device wait, and what they get then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// Longest time of one fetch, in milliseconds.
    #[schema(example = 30000)]
    pub deadline_ms: u64,
    /// What happens after that.
    pub on_failure: OnFailure,
    /// Longest time that a reader waits in all where it waits, in milliseconds.
    #[schema(example = 600_000)]
    pub wait_limit_ms: u64,
}

/// What is to be otherwise than it was, or than the agent's config says. What is absent stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyChange {
    /// Longest time of one fetch, in milliseconds: 1000 to 600000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1000, maximum = 600_000)]
    pub deadline_ms: Option<u64>,
    /// What happens after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// Longest time that a reader waits in all where it waits, in milliseconds: 1000 to 86400000 (a day).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1000, maximum = 86_400_000)]
    pub wait_limit_ms: Option<u64>,
}

/// What a deadline may be, in milliseconds: as the agent's `fetch.deadline`.
pub const DEADLINE_MS: RangeInclusive<u64> = 1_000..=600_000;
/// What a wait limit may be, in milliseconds. A reader that waits cannot be killed on every kernel; more than a day helps nobody.
pub const WAIT_LIMIT_MS: RangeInclusive<u64> = 1_000..=86_400_000;

impl PolicyChange {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether every value lies in its bounds.
    ///
    /// # Errors
    /// A sentence that names the one that does not.
    pub fn check(&self) -> Result<(), String> {
        let check = |name: &str, value: Option<u64>, bounds: RangeInclusive<u64>| match value {
            Some(ms) if !bounds.contains(&ms) => {
                Err(format!("{name} is {ms}, and may be from {} to {}", bounds.start(), bounds.end()))
            }
            _ => Ok(()),
        };
        check("deadline_ms", self.deadline_ms, DEADLINE_MS)?;
        check("wait_limit_ms", self.wait_limit_ms, WAIT_LIMIT_MS)
    }

    /// This, with what `newer` says in its place.
    #[must_use]
    pub fn with(self, newer: Self) -> Self {
        Self {
            deadline_ms: newer.deadline_ms.or(self.deadline_ms),
            on_failure: newer.on_failure.or(self.on_failure),
            wait_limit_ms: newer.wait_limit_ms.or(self.wait_limit_ms),
        }
    }
}

/// What is to be otherwise about an attached device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// What its readers get while bytes cannot be fetched. Takes effect at once, also for readers that wait now.
    #[serde(default)]
    pub policy: PolicyChange,
}

/// Where a device is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// Being resolved, opened, started or mounted.
    Attaching,
    /// Serving reads.
    Attached,
    /// Being unmounted and removed.
    Detaching,
    /// Recorded but not serving: `state_reason` says why. Detach it, or restart the agent to try again.
    Failed,
}

/// One attached image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// The device's name on this node, as used in `/v1/devices/{id}`.
    #[schema(example = "d1")]
    pub id: String,
    /// Where it is in its life.
    pub state: DeviceState,
    /// Why it is in that state, when there is something to say.
    pub state_reason: Option<String>,
    /// The image as it was asked for.
    pub reference: String,
    /// The digest of the image's manifest that the reference meant when it was attached.
    #[schema(value_type = String, example = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")]
    pub digest: Digest,
    /// The platform chosen.
    #[schema(example = "linux/amd64")]
    pub platform: String,
    /// What the image is made of, in words.
    #[schema(example = "OverlayBD, 3 layers")]
    pub image: String,
    /// Who asked for it.
    pub owner: Owner,
    /// Which layers of the image it shows.
    pub layers: Layers,
    /// Size of the device in bytes.
    pub size_bytes: u64,
    /// How it reaches the kernel.
    pub transport: Transport,
    /// Why that transport was chosen.
    pub transport_reason: String,
    /// The block device or file that holds the image's bytes; absent until there is one.
    #[schema(value_type = Option<String>, example = "/dev/ublkb0")]
    pub device_path: Option<PathBuf>,
    /// Where its file system is mounted, if it is.
    #[schema(value_type = Option<String>, example = "/mnt/app")]
    pub mount_point: Option<PathBuf>,
    /// The file system found on it.
    #[schema(example = "erofs")]
    pub file_system: Option<String>,
    /// How bytes are checked before they are served, in words.
    #[schema(example = "CRC of each frame; digest of each blob once it is whole")]
    pub verified_by: String,
    /// What its readers get while bytes cannot be fetched.
    pub policy: Policy,
    /// Whether it outlives the agent's process: its readers wait then, and go on with the next agent. False through FUSE when nobody
    /// keeps the connection.
    pub outlives_agent: bool,
    /// When it was attached.
    pub attached_at: Timestamp,
    /// How its image is read; absent until there is a device.
    pub reading: Option<Reading>,
    /// What it has served.
    pub stats: Stats,
    /// How long its reads took, by where their bytes came from, the nearest first; tiers without reads are left out.
    pub latency: Vec<Latency>,
    /// How much of each of its blobs is on this node.
    pub blobs: Vec<Presence>,
}

/// What a device has served since it was started in this agent's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// Requests taken from the kernel and answered.
    pub requests: u64,
    /// Bytes given to the kernel.
    pub bytes_served: u64,
    /// Requests answered from this node alone.
    pub hits: u64,
    /// Requests that waited for a fetch.
    pub misses: u64,
    /// Requests answered with an I/O error.
    pub errors: u64,
    /// Requests taken and not yet answered.
    pub in_flight: u64,
    /// Bytes fetched from registries for this device's blobs. A blob shared by devices counts for each.
    pub bytes_fetched: u64,
    /// How long reads waited for bytes that were not on this node, in milliseconds; reads that wait together count each.
    pub waited_ms: u64,
    /// How long at least one read waited for such bytes, in milliseconds.
    pub stalled_ms: u64,
}

/// Who asked for a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// An operator, by this API.
    Operator,
    /// The snapshotter, for containers: it goes when its snapshot is removed.
    Snapshotter,
}

/// Neighbouring layers of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Layers {
    /// How many layers of the image are below the first shown.
    pub first: usize,
    /// How many are shown.
    pub count: usize,
    /// How many the image has.
    pub of: usize,
}

impl Layers {
    /// Whether these are all layers of the image.
    #[must_use]
    pub const fn is_all(&self) -> bool {
        self.count == self.of
    }
}

/// How much of one blob is on this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Presence {
    /// The blob.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Its size in the registry.
    pub size_bytes: u64,
    /// Its bytes on this node.
    pub present_bytes: u64,
    /// The share of it on this node, from 0 to 1.
    pub present_share: f64,
    /// What each lazy read of it passes before it is served, in words; empty while there is no device.
    #[schema(example = "index (BLAKE3 / 64 KiB), zfile crc32c, digest once whole")]
    pub verified_by: String,
}

impl Presence {
    /// The presence of a blob of `size_bytes`, with `present_bytes` of them on this node.
    #[must_use]
    pub fn new(digest: Digest, size_bytes: u64, present_bytes: u64, verified_by: String) -> Self {
        Self { digest, size_bytes, present_bytes, present_share: share(present_bytes, size_bytes), verified_by }
    }
}

/// `part` of `whole` from 0 to 1; nothing of nothing is all of it.
pub(crate) fn share(part: u64, whole: u64) -> f64 {
    if part >= whole { 1.0 } else { part as f64 / whole as f64 }
}

/// What happened when all devices were asked to go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Detached {
    /// The devices that are gone.
    pub detached: Vec<String>,
    /// Those that are not.
    pub failed: Vec<NotDetached>,
}

/// A device that could not be detached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotDetached {
    /// The device.
    pub id: String,
    /// Why it is still there.
    pub problem: Problem,
}
