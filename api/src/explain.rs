//! What a device did while what is on it started, why that took so long, and what would be faster; and the route for it.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Problem,
    extract::Id,
    routes::{Result, Shared},
};

/// The most ranges that an [`Explanation`] lists.
pub const RANGES_EXPLAINED: usize = 16;

/// A device, explained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The device.
    pub id: String,
    /// The image as it was asked for.
    pub reference: String,
    /// All of this in a sentence.
    #[schema(
        example = "started in 0.9 s; 0.6 s waiting on 34 reads from registries, most under /usr/lib/python3; with a recording: about 0.3 s; \
full pull: about 4.1 s"
    )]
    pub sentence: String,
    /// How long it took to open the image, and to make and mount the device, in milliseconds; absent when an earlier agent did.
    pub attached_ms: Option<u64>,
    /// The start of what is on it; absent as long as no read had to wait.
    pub start: Option<Burst>,
    /// All waits since the agent has it.
    pub waits: Waits,
    /// How long the program itself took in its start, in milliseconds: what is left of it without waits.
    pub own_ms: Option<u64>,
    /// Bytes that a start needs, by the recording that was used, or by what was needed so far.
    pub needed_bytes: u64,
    /// Where the recording was had from that it was read along: `node`, `registry`, `trace` or `landmark`; absent without one.
    pub recording_from: Option<String>,
    /// Bytes of the image's blobs.
    pub image_bytes: u64,
    /// The way to its registry, as far as it was measured.
    pub link: Link,
    /// What a start would take with a recording and nothing on this node, in milliseconds; absent when too little was measured to say.
    pub recorded_ms: Option<u64>,
    /// What a start would take after a pull of all blobs at once, unpacking not counted, in milliseconds; absent when too little was
    /// measured to say.
    pub pulled_ms: Option<u64>,
    /// What is not known, and why.
    pub unknown: Vec<String>,
    /// The directory under which most of the waiting was, as far as the files are known.
    #[schema(example = "/usr/lib/python3")]
    pub under: Option<String>,
    /// The most waited-for ranges of the device.
    pub ranges: Vec<WaitedRange>,
    /// containerd's snapshots that it is a part of: those of containers are active.
    pub snapshots: Vec<String>,
}

/// Waits that belong together: less than two seconds apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Burst {
    /// From its first wait to the end of its last, in milliseconds.
    pub took_ms: u64,
    /// How much of that at least one read waited, in milliseconds.
    pub stalled_ms: u64,
    /// How many reads waited.
    pub reads: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether it is over.
    pub over: bool,
}

/// How a device's readers have waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Waits {
    /// How long at least one read waited, in milliseconds.
    pub stalled_ms: u64,
    /// How many reads waited.
    pub reads: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The way to a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Link {
    /// From asking to the head of an answer, in microseconds; absent until somebody was asked.
    pub latency_us: Option<u64>,
    /// Bytes in a second that came at least, in the fastest fifth of a second lately; absent while too little came to say.
    pub bytes_per_second: Option<u64>,
}

/// A range of the device that was waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WaitedRange {
    /// Its first byte.
    pub start: u64,
    /// How many bytes.
    pub bytes: u64,
    /// How often somebody waited for it.
    pub waits: u64,
    /// How long, each wait counted, in milliseconds.
    pub waited_ms: u64,
    /// The file that most of it is of; a directory ends with a slash. Absent where that is not known, or where it is the file system's own.
    pub path: Option<String>,
    /// Whether it is the file system's own: inodes.
    pub metadata: bool,
}

/// Explains one device.
#[utoipa::path(get, path = "/v1/devices/{id}/explain", tag = "devices",
    params(("id" = String, Path, description = "The device")),
    responses(
        (status = 200, body = Explanation, description = "The explanation"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "There is no such device"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "It is being made or taken away, or has failed"),
        (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
    ))]
pub(crate) async fn explain(State(node): State<Shared>, Id(id): Id) -> Result<Json<Explanation>> {
    Ok(Json(node.explain(&id).await?))
}
