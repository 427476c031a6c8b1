//! What is kept on this node.

use std::path::PathBuf;

use penstock_blob::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::device::share;

/// What the cache holds, and what it has done since the agent started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CacheUsage {
    /// Where it is.
    #[schema(value_type = String, example = "/var/lib/penstock/cache")]
    pub dir: PathBuf,
    /// The most bytes that it may take of the disk.
    pub cap_bytes: u64,
    /// The bytes that it takes now.
    pub used_bytes: u64,
    /// Chunks present: whole, checked and served without the registry.
    pub chunks_present: u64,
    /// Those of them that are recorded in the index, so that they are still there after a crash.
    pub chunks_durable: u64,
    /// Reads that found their bytes here.
    pub hits: u64,
    /// Chunks fetched and stored.
    pub fills: u64,
    /// Reads served from a fetch without being stored, for want of room.
    pub bypasses: u64,
    /// Chunks evicted to make room.
    pub evicted: u64,
    /// Chunks dropped because their bytes no longer matched their checksum. They are fetched again when wanted.
    pub corrupt_dropped: u64,
    /// The state of the index.
    pub index: Index,
    /// How many blobs have bytes here.
    pub blobs_total: u64,
    /// The blobs, the most present first; at most 4096 of them.
    pub blobs: Vec<BlobUsage>,
}

/// The cache's index on disk, which can be lost without losing correctness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Index {
    /// Whether it records what is filled.
    pub state: IndexState,
    /// The same as a sentence, with the reason.
    #[schema(example = "the index is open; 3 commits wait to be flushed")]
    pub detail: String,
}

/// Whether the index records what is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum IndexState {
    /// It does.
    Open,
    /// It does, and was made anew at this start from what the data files say.
    Rebuilt,
    /// It does not until the next start, when the chunks are found again by what is written beside them.
    Lost,
}

/// How much of a blob has been compared with its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verification {
    /// The blob is not whole yet: its chunks carry the checks of the format and of the cache's own checksums.
    Partial,
    /// The blob is whole, and its digest is being computed.
    Running,
    /// The blob is whole and its bytes are those of its digest.
    Whole,
    /// The blob was whole, and its bytes were not those of its digest. They were dropped; this stays until it is whole again.
    Mismatch,
}

/// One blob in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BlobUsage {
    /// The blob.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Its size in the registry.
    pub size_bytes: u64,
    /// The size of its chunks, the last one excepted.
    pub chunk_size_bytes: u32,
    /// How many chunks it has.
    pub chunks: u64,
    /// How many of them are present.
    pub chunks_present: u64,
    /// How many of those are recorded in the index.
    pub chunks_durable: u64,
    /// Its bytes on this node.
    pub present_bytes: u64,
    /// The share of it on this node, from 0 to 1.
    pub present_share: f64,
    /// Bytes fetched for it since the agent started.
    pub fetched_bytes: u64,
    /// Whether its digest has been checked.
    pub verification: Verification,
}

impl BlobUsage {
    /// Sets `present_share` to what `present_bytes` and `size_bytes` say.
    #[must_use]
    pub fn with_share(self) -> Self {
        Self { present_share: share(self.present_bytes, self.size_bytes), ..self }
    }
}
