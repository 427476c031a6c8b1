//! What of the node's memory the agent's indexes and buffers take, and the route for it.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    Problem,
    routes::{Result, Shared},
};

/// What memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MemoryUser {
    /// Reads of devices being put together and decoded.
    Devices,
    /// Bytes asked of registries and not handed out.
    Fetching,
    /// Bytes that were fetched and wait to be written to the cache.
    Writing,
    /// Frames of ordinary layers that were decoded lately.
    Frames,
    /// What of each blob is cached: bits, checksums, pins.
    Presence,
    /// Pages of the cache's index.
    Index,
}

impl MemoryUser {
    /// As JSON and people read it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Fetching => "fetching",
            Self::Writing => "writing",
            Self::Frames => "frames",
            Self::Presence => "presence",
            Self::Index => "index",
        }
    }
}

/// One part of the budget, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryPart {
    /// What it is for.
    pub name: MemoryUser,
    /// What it takes now, at most: what is lent or asked for counts as used.
    pub used_bytes: u64,
    /// What it never takes more than. `null`: it follows what is cached, and is only counted.
    pub limit_bytes: Option<u64>,
}

/// The budget of memory for all indexes and buffers, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Memory {
    /// The budget, `memory.budget`.
    pub budget_bytes: u64,
    /// What the parts take together now, at most.
    pub used_bytes: u64,
    /// What the process has in memory beside files, everything counted: code's data, stacks, connections. `null` when the kernel does not say.
    pub resident_bytes: Option<u64>,
    /// The parts.
    pub parts: Vec<MemoryPart>,
}

/// What of the node's memory the agent's indexes and buffers take, by part.
#[utoipa::path(get, path = "/v1/memory", tag = "node", responses(
    (status = 200, body = Memory, description = "The budget and its parts"),
    (status = "default", body = Problem, content_type = "application/problem+json", description = "A problem"),
))]
pub(crate) async fn memory(State(node): State<Shared>) -> Result<Json<Memory>> {
    Ok(Json(node.memory().await?))
}
