//! What an image offers, and what becomes of its layers on this node; and the route for it.

use axum::{Json, extract::State};
use penstock_blob::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Problem,
    extract::Body,
    routes::{Result, Shared},
};

/// An image that is to be looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Inspect {
    /// The image.
    #[schema(example = "registry.example/app:1")]
    pub reference: String,
    /// Which image of an index, as `os/architecture`; the agent's own when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

/// An image, as containerd would get it from this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Inspection {
    /// The image as it was asked for.
    pub reference: String,
    /// Digest of its manifest.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The platform that was taken from an index.
    pub platform: String,
    /// Bytes of all layers.
    pub size_bytes: u64,
    /// How many of its layers are read on demand.
    pub lazy_layers: u64,
    /// Its layers, the lowest first.
    pub layers: Vec<InspectedLayer>,
}

/// One layer of an inspected image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InspectedLayer {
    /// Its blob.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Bytes of its blob.
    pub size_bytes: u64,
    /// What becomes of it.
    pub fate: Fate,
    /// How, or why, in words.
    #[schema(example = "an ordinary tar+gzip layer, by a layer index that this node made")]
    pub why: String,
    /// What verifies what is read of it, in words.
    pub verified_by: String,
    /// Bytes that are fetched before anything of it can be read; absent when that is known only once it is opened.
    pub open_bytes: Option<u64>,
    /// The ways in which it can be read, as they are offered, and in the order in which they would be taken.
    pub ways: Vec<InspectedWay>,
}

/// What becomes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It is read on demand.
    Lazy,
    /// It is shown at once, but decodes only from its beginning: it is prefetched in parallel, in order.
    Streamed,
    /// containerd fetches and unpacks it.
    Unpacked,
    /// It cannot be shown, and unpacked it would be empty: the pull fails.
    Refused,
}

impl Fate {
    /// Its name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Streamed => "streamed",
            Self::Unpacked => "unpacked",
            Self::Refused => "refused",
        }
    }
}

/// One way to read a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InspectedWay {
    /// `native` (a disk in the layer's own format), one of `layers.prefer`'s (`own`, `toc`, `soci`, `pushed`), `first_pull` (unpacked now, and indexed for
    /// the next pull), `unpack`.
    pub way: String,
    /// Whether it is taken.
    pub state: WayState,
    /// What there is, or why not, in words; empty when there is nothing to say.
    pub detail: String,
    /// Bytes of its index, where there is one.
    pub index_bytes: Option<u64>,
    /// Bytes that are fetched before the layer can be read so; absent when that is not known, or it cannot be.
    pub open_bytes: Option<u64>,
}

/// Whether a way is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WayState {
    /// It is.
    Used,
    /// It could be, but another goes before it.
    Spare,
    /// The config, or the image's wish, leaves it out.
    Off,
    /// There is none.
    Absent,
    /// There is one, and it is not used.
    Refused,
}

impl WayState {
    /// Its name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Spare => "spare",
            Self::Off => "off",
            Self::Absent => "absent",
            Self::Refused => "refused",
        }
    }
}

/// What an image offers for reading it on demand, what of that this node takes when containerd pulls it, and what it costs.
///
/// No index is fetched, and of layers at most the first and the last bytes. It is no GET, because the agent asks the registry that the
/// request names, with its own credentials: a listener that cannot tell who asks must not have it do that.
#[utoipa::path(post, path = "/v1/inspect", tag = "containerd", request_body = Inspect, responses(
    (status = 200, body = Inspection, description = "The image"),
    (status = 400, body = Problem, content_type = "application/problem+json", description = "The request is wrong"),
    (status = 404, body = Problem, content_type = "application/problem+json", description = "The registry has no such image"),
    (status = 429, body = Problem, content_type = "application/problem+json", description = "As many inspections as the agent makes are under way"),
    (status = 502, body = Problem, content_type = "application/problem+json", description = "The registry refused or did not answer"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
pub(crate) async fn inspect(State(node): State<Shared>, Body(request): Body<Inspect>) -> Result<Json<Inspection>> {
    Ok(Json(node.inspect(request).await?))
}
