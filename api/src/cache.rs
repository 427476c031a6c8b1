//! What is kept on this node.

use std::path::PathBuf;

use penstock_blob::Digest;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::device::share;

/// What the cache holds, and what it has done since the agent started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CacheUsage {
    /// Where it is.
    #[schema(value_type = String, example = "/var/lib/penstock/cache")]
    pub dir: PathBuf,
    /// The most bytes that it may take of the disk.
    pub cap_bytes: u64,
    /// The bytes that chunks may take of that now: less the index and the maps, or what the file system has to give.
    pub limit_bytes: u64,
    /// The bytes that chunks take now, with their headers and descriptions.
    pub used_bytes: u64,
    /// The bytes of the index, measured once a minute.
    pub index_bytes: u64,
    /// The bytes of the images' maps, measured once a minute.
    pub maps_bytes: u64,
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

/// What is to go from the cache: an image's blobs, or one blob.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EvictCache {
    /// The image, as for attaching. One that was never attached here is looked up at its registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "registry.example/app:1")]
    pub reference: Option<String>,
    /// The blob. Either this or `reference`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub digest: Option<Digest>,
    /// Which image of an index, as `os/architecture`; the agent's own when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

/// What went from the cache, and what did not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CacheFreed {
    /// The bytes of disk that came free.
    pub freed_bytes: u64,
    /// The blobs that went, with the bytes of each.
    pub freed: Vec<FreedBlob>,
    /// The blobs that stayed, whole or in part.
    pub kept: Vec<KeptBlob>,
}

/// A blob that went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FreedBlob {
    /// The blob.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The bytes of disk that came free.
    pub freed_bytes: u64,
}

/// A blob that stayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeptBlob {
    /// The blob.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Why.
    pub reason: String,
}

/// What reading the cache again found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CacheVerified {
    /// Blobs that were read.
    pub blobs: u64,
    /// Their chunks on disk.
    pub chunks: u64,
    /// And the bytes of those.
    pub bytes: u64,
    /// Chunks that were damaged, and have been dropped.
    pub corrupt_chunks: u64,
    /// Whole blobs that were not their digest, and have been dropped.
    pub mismatched_blobs: u64,
    /// Ranges of dropped chunks that were fetched again.
    pub repaired_ranges: u64,
    /// Ranges that were to be fetched again, and did not come.
    pub not_repaired_ranges: u64,
}

/// What is to go though it is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ClearQuery {
    /// Also what attached images use; it is fetched again when read.
    #[serde(default)]
    #[param(default = false)]
    pub force: bool,
}

/// What becomes of what is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VerifyQuery {
    /// Fetch it again at once, and not when it is wanted.
    #[serde(default)]
    #[param(default = false)]
    pub repair: bool,
}
