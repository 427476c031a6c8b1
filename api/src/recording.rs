//! Recordings of what images read while starting, how an image is read because of them, and their routes.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use penstock_blob::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Problem, Timestamp,
    extract::{Body, Id},
    routes::{Result, Shared},
};

/// A recording on this node: what an image read while starting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Recording {
    /// The digest of the image's manifest.
    #[schema(value_type = String, example = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")]
    pub manifest: Digest,
    /// How many ranges of its blobs were read.
    pub ranges: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the recording itself.
    pub file_bytes: u64,
    /// When it was written last.
    pub recorded_at: Timestamp,
    /// Whether this call has put it beside the image in its registry.
    pub pushed: bool,
}

/// What is to become of a recording that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndRecording {
    /// Put it beside the image in its registry, too, with the agent's credentials.
    #[serde(default)]
    pub push: bool,
}

/// How an image is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReadingMode {
    /// What is needed is fetched when it is.
    Lazy,
    /// What its recording says is fetched ahead.
    Prefetch,
    /// All of it is fetched, behind what is needed.
    Full,
}

impl ReadingMode {
    /// As JSON and people read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Prefetch => "prefetch",
            Self::Full => "full",
        }
    }
}

/// How an image is read since it was attached in this agent's life, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reading {
    /// How.
    pub mode: ReadingMode,
    /// Why, in words.
    #[schema(example = "its recording says that a start reads 7 % of it")]
    pub why: String,
    /// Where its recording was had from: `node`, `registry`, `trace` (OverlayBD's own) or `landmark` (eStargz's); absent without one.
    #[schema(example = "node")]
    pub recording_from: Option<String>,
    /// Bytes that the recording says a start needs.
    pub recording_bytes: u64,
    /// How many of them were needed so far, while the start was watched.
    pub recording_used_bytes: u64,
    /// Whether the program did something else, so that the rest was not fetched.
    pub diverged: bool,
    /// Bytes fetched along the recording.
    pub replayed_bytes: u64,
    /// Bytes fetched to complete the image.
    pub filled_bytes: u64,
}

/// The recordings on this node, the newest first.
#[utoipa::path(get, path = "/v1/recordings", tag = "recordings", responses(
    (status = 200, body = Vec<Recording>, description = "The recordings"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
pub(crate) async fn recordings(State(node): State<Shared>) -> Result<Json<Vec<Recording>>> {
    Ok(Json(node.recordings().await?))
}

/// Removes the recording of an image from this node.
#[utoipa::path(delete, path = "/v1/recordings/{manifest}", tag = "recordings",
    params(("manifest" = String, Path, description = "The digest of the image's manifest")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "There is none"),
        (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
    ))]
pub(crate) async fn remove(State(node): State<Shared>, Path(manifest): Path<String>) -> Result<StatusCode> {
    node.remove_recording(&manifest).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Records what a device reads until its recording is ended, however long that takes. Only while its start is being watched.
#[utoipa::path(put, path = "/v1/devices/{id}/recording", tag = "recordings",
    params(("id" = String, Path, description = "The device")),
    responses(
        (status = 204, description = "It is recorded until asked for"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "There is no such device"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "Its start is over"),
        (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
    ))]
pub(crate) async fn record(State(node): State<Shared>, Id(id): Id) -> Result<StatusCode> {
    node.record(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends the recording of a device and keeps it on this node, in place of what was recorded of the image before.
#[utoipa::path(post, path = "/v1/devices/{id}/recording", tag = "recordings", request_body = EndRecording,
    params(("id" = String, Path, description = "The device")),
    responses(
        (status = 200, body = Recording, description = "The recording"),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "There is no such device"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "It has read nothing"),
        (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
    ))]
pub(crate) async fn end(
    State(node): State<Shared>,
    Id(id): Id,
    Body(request): Body<EndRecording>,
) -> Result<Json<Recording>> {
    Ok(Json(node.end_recording(&id, request).await?))
}
