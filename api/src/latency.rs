//! How long reads take, by where their bytes come from, and the route for it.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Problem,
    routes::{Result, Shared},
};

/// Where the bytes of a read came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// All of them were in this machine's memory.
    Memory,
    /// All of them were on this node, and a disk was waited for.
    Disk,
    /// Some came from a mirror.
    Mirror,
    /// Some came from the registry that the reference names.
    Origin,
    /// Something else was waited for, such as a part of a map; or who gave them is not known any more.
    Other,
}

impl Tier {
    /// As JSON and people read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Mirror => "mirror",
            Self::Origin => "origin",
            Self::Other => "other",
        }
    }
}

/// How long the reads of one tier took, from the kernel's question to its answer, in microseconds. Off by an eighth at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Latency {
    /// Where their bytes came from.
    pub tier: Tier,
    /// How many there were.
    pub reads: u64,
    /// How long all of them took together: from one look to the next, what a read took.
    pub took_us: u64,
    /// Half of them took no longer.
    pub p50_us: u64,
    /// 99 of 100 took no longer.
    pub p99_us: u64,
    /// 999 of 1000 took no longer.
    pub p999_us: u64,
}

/// How long the reads of all devices took since the agent started, by where their bytes came from; tiers without reads are left out.
#[utoipa::path(get, path = "/v1/latency", tag = "devices", responses(
    (status = 200, body = Vec<Latency>, description = "The tiers, the nearest first"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
pub(crate) async fn latency(State(node): State<Shared>) -> Result<Json<Vec<Latency>>> {
    Ok(Json(node.latency().await?))
}
