//! What a cache tells about itself: usage, blobs, events.

use std::fmt;

use penstock_blob::{ChunkSize, Digest};

use crate::{
    error::RemoveError,
    index::CACHE_BYTES,
    policy::Ghosts,
    slots::{extents_in, presence_bytes},
};

/// Bytes of chunks for each byte of the index: about 17 MB per TiB, as measured (`docs/decisions/0002-sled.md`).
const INDEXED_BYTES: u64 = 64 << 10;

/// How the index stands. Reads never depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexState {
    /// In use since it was opened.
    Good,
    /// It was lost or damaged; presence was rebuilt from the slot headers, and a new index is in use.
    Rebuilt {
        /// What was wrong with it.
        reason: String,
    },
    /// It failed. Chunks are found again after a restart by their slot headers; until then there is no index.
    Abandoned {
        /// What was wrong with it.
        reason: String,
    },
}

impl fmt::Display for IndexState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Good => f.write_str("index in use"),
            Self::Rebuilt { reason } => write!(f, "index rebuilt: {reason}"),
            Self::Abandoned { reason } => {
                write!(f, "index set aside until the next start, slot headers stand in for it: {reason}")
            }
        }
    }
}

/// A cache at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Most bytes on disk.
    pub cap_bytes: u64,
    /// Most bytes that blobs may take now: the cap less index and what is beside, or what the file system has to give.
    pub limit_bytes: u64,
    /// Bytes that blobs take on disk now, with those reserved for writes under way.
    pub used_bytes: u64,
    /// Bytes that the index takes, when it was measured last (once a minute).
    pub index_bytes: u64,
    /// Bytes that the files [beside](crate::Config::beside) take, when they were measured last.
    pub beside_bytes: u64,
    /// Chunks on disk.
    pub present_chunks: u64,
    /// Chunks on disk that neither a crash nor a power cut can lose: synced, and recorded where the next start looks.
    pub durable_chunks: u64,
    /// Blobs with at least one file.
    pub blobs: u64,
    /// `locate` said yes.
    pub hits: u64,
    /// Fills that got bytes from the source below.
    pub fills: u64,
    /// Fills or reads that were served but not stored.
    pub bypasses: u64,
    /// Chunks dropped because they failed a check or could not be read.
    pub corrupt_chunks: u64,
    /// Chunks evicted.
    pub evicted_chunks: u64,
    /// How the index stands. Its text is a sentence for operators.
    pub index: IndexState,
}

/// What a cache takes of memory at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What of each blob is here: bits, checksums, pins, and what is remembered of what was evicted. Follows what is cached.
    pub presence_bytes: u64,
    /// Bytes that were fetched and wait to be written: at most [`crate::Config::pending_bytes`].
    pub pending_bytes: u64,
    /// Pages of the index: what it takes on disk, at most the 16 MiB that sled keeps.
    pub index_bytes: u64,
}

impl Memory {
    /// What a cache whose `cap_bytes` are full of chunks of this size takes, with nothing that waits to be written. Blobs that are
    /// larger than what is cached of them take some more.
    #[must_use]
    pub fn of_full(cap_bytes: u64, chunk_size: ChunkSize) -> Self {
        Self {
            presence_bytes: presence_bytes(cap_bytes, chunk_size)
                .saturating_add(Ghosts::bytes_for(extents_in(cap_bytes))),
            pending_bytes: 0,
            index_bytes: (cap_bytes / INDEXED_BYTES).min(CACHE_BYTES as u64),
        }
    }
}

/// Whether a blob's digest was checked as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Whole {
    /// Not all chunks are here, or the blob's name is a derived one ([`Digest::is_derived`]) that nothing can be compared with; each was
    /// checked as far as it can be alone.
    Partial,
    /// All chunks are here, and are being hashed.
    Verifying,
    /// All chunks are here, and their sha256 is the digest.
    Verified,
    /// All chunks were here, and their sha256 was not the digest. They were dropped; this stays until the blob is whole again.
    Mismatch,
}

/// One blob of a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobUsage {
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its chunk size here.
    pub chunk_size: ChunkSize,
    /// Its bytes on disk.
    pub present_bytes: u64,
    /// Its chunks on disk.
    pub present_chunks: u32,
    /// Those of them that a crash cannot lose.
    pub durable_chunks: u32,
    /// All chunks it has.
    pub chunks: u32,
    /// Bytes of it that were fetched since this process opened the cache.
    pub fetched_bytes: u64,
    /// Whether it was verified as a whole.
    pub whole: Whole,
    /// How many attachments retain it.
    pub users: u32,
}

/// What reading chunks again found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Blobs that were read.
    pub blobs: u64,
    /// Their chunks on disk.
    pub chunks: u64,
    /// And the bytes of those.
    pub bytes: u64,
    /// Chunks whose checksum was wrong, or that could not be read. They were dropped.
    pub corrupt_chunks: u64,
    /// Whole blobs that are not their digest. They were dropped.
    pub mismatched_blobs: u64,
    /// Ranges of dropped chunks that were fetched again.
    pub repaired_ranges: u64,
    /// Ranges that were to be fetched again, and did not come.
    pub not_repaired_ranges: u64,
}

impl Scrubbed {
    /// Whether anything was wrong.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.corrupt_chunks == 0 && self.mismatched_blobs == 0
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.blobs += other.blobs;
        self.chunks += other.chunks;
        self.bytes += other.bytes;
        self.corrupt_chunks += other.corrupt_chunks;
        self.mismatched_blobs += other.mismatched_blobs;
        self.repaired_ranges += other.repaired_ranges;
        self.not_repaired_ranges += other.not_repaired_ranges;
    }
}

/// What clearing a cache, or a part of it, freed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleared {
    /// What each blob that went gave back, in bytes.
    pub freed: Vec<(Digest, u64)>,
    /// The blobs that stayed, whole or in part, and why.
    pub kept: Vec<(Digest, RemoveError)>,
}

/// Something that an operator should hear of once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Presence was rebuilt from slot headers.
    IndexRebuilt {
        /// What was wrong with the index.
        reason: String,
        /// Chunks found by their headers.
        chunks: u64,
    },
    /// The index failed for good; the cache goes on without it.
    IndexAbandoned {
        /// What was wrong with it.
        reason: String,
    },
    /// A blob's files were inconsistent and have been deleted.
    BlobDropped {
        /// The blob's number in the cache directory.
        number: u32,
        /// What was wrong.
        reason: String,
    },
    /// A whole blob was hashed and is what its digest says.
    BlobVerified {
        /// The blob.
        digest: Digest,
    },
    /// A whole blob was hashed and is not what its digest says. Its chunks were dropped: what served them lies, or the disk.
    BlobMismatch {
        /// The blob.
        digest: Digest,
        /// What its bytes hash to.
        found: Digest,
    },
    /// Chunks of a blob failed a check and were dropped. Said once for each blob.
    Corrupt {
        /// The blob.
        digest: Digest,
    },
    /// Chunks cannot be stored: what is fetched is served and not kept.
    Bypass {
        /// What the disk said.
        reason: String,
    },
    /// The file system has less free than its reserve, and not by the cache's doing: nothing is stored, and chunks are evicted.
    Pressure {
        /// What it has, in bytes.
        free_bytes: u64,
        /// What it should have, in bytes.
        reserve_bytes: u64,
    },
    /// Everything on disk has been read again in the background.
    Scrubbed(Scrubbed),
    /// What a `Bypass` or `Pressure` told of is over.
    Healed {
        /// A sentence.
        what: &'static str,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IndexRebuilt { reason, chunks } => {
                write!(f, "cache index rebuilt ({chunks} chunks found by their slot headers): {reason}")
            }
            Self::IndexAbandoned { reason } => write!(f, "cache index set aside until the next start: {reason}"),
            Self::BlobDropped { number, reason } => write!(f, "cached blob number {number} dropped: {reason}"),
            Self::BlobVerified { digest } => write!(f, "cached blob {digest} is whole and verified"),
            Self::BlobMismatch { digest, found } => write!(
                f,
                "cached blob {digest} hashes to {found}: its chunks were dropped; check the registry or mirror that serves it, and this disk"
            ),
            Self::Corrupt { digest } => write!(
                f,
                "cached chunks of blob {digest} failed a check: they are dropped, and fetched again when wanted; `penstock cache verify` looks at all others"
            ),
            Self::Bypass { reason } => {
                write!(
                    f,
                    "fetched chunks cannot be stored and are served without ({reason}); free some disk space, or look at this disk"
                )
            }
            Self::Pressure { free_bytes, reserve_bytes } => write!(
                f,
                "the file system of the cache has {} MiB free of the {} MiB that cache.reserve keeps for others: nothing is stored, and chunks are evicted",
                free_bytes >> 20,
                reserve_bytes >> 20
            ),
            Self::Scrubbed(found) => write!(
                f,
                "{} cached chunks of {} blobs have been read again: {} were damaged and are dropped, {} whole blobs were not their digest",
                found.chunks, found.blobs, found.corrupt_chunks, found.mismatched_blobs
            ),
            Self::Healed { what } => f.write_str(what),
        }
    }
}
