//! Chunks: fixed-size aligned pieces of a blob, the unit of fetching, presence and eviction.

use crate::{Blob, ByteRange, Digest};

/// One chunk of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkId {
    /// The blob.
    pub blob: Digest,
    /// Position of the chunk in the blob, counted in chunks from 0.
    pub index: u32,
}

/// The size of every chunk of a blob but the last, in bytes: a power of two from 64 KiB to 4 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSize(u32);

/// Why a number is not a chunk size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a chunk size is a power of two from 65536 to 4194304 bytes, not {0}")]
pub struct ChunkSizeError(pub u64);

impl ChunkSize {
    /// 128 KiB: the measured balance of index size, write throughput and read amplification (`docs/formats/cache.md`). On a link of 100 MB/s and 20 ms
    /// sixteen readers at random get more than ten times of what one gets; with twice as much the link is full before that.
    pub const DEFAULT: Self = Self(128 << 10);

    /// A chunk size of `bytes`.
    ///
    /// # Errors
    /// [`ChunkSizeError`] when `bytes` is not a power of two from 64 KiB to 4 MiB.
    pub fn new(bytes: u64) -> Result<Self, ChunkSizeError> {
        match u32::try_from(bytes) {
            Ok(b) if b.is_power_of_two() && (64 << 10..=4 << 20).contains(&b) => Ok(Self(b)),
            _ => Err(ChunkSizeError(bytes)),
        }
    }

    /// Bytes in a full chunk.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// How many chunks a blob has; `None` when the number does not fit in 32 bits (a blob beyond 256 TiB at 64 KiB).
    #[must_use]
    pub fn count(self, blob: &Blob) -> Option<u32> {
        u32::try_from(blob.size_bytes.div_ceil(u64::from(self.0))).ok()
    }

    /// The chunk indexes that hold the bytes of `range`, first to last inclusive, saturated to 32 bits.
    #[must_use]
    pub fn span(self, range: ByteRange) -> std::ops::RangeInclusive<u32> {
        let size = u64::from(self.0);
        let index = |byte: u64| u32::try_from(byte / size).unwrap_or(u32::MAX);
        index(range.start())..=index(range.end() - 1)
    }

    /// The bytes of chunk `index` of `blob`: shorter than a full chunk at the blob's end, `None` beyond it.
    #[must_use]
    pub fn range(self, blob: &Blob, index: u32) -> Option<ByteRange> {
        let start = u64::from(index) * u64::from(self.0);
        ByteRange::new(start, (start + u64::from(self.0)).min(blob.size_bytes)).ok()
    }
}

impl Default for ChunkSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two_in_bounds() {
        for good in [64 << 10, 256 << 10, 4 << 20] {
            assert_eq!(u64::from(ChunkSize::new(good).unwrap().bytes()), good);
        }
        for bad in [0, 1, 32 << 10, 100_000, 8 << 20, 1 << 40] {
            assert_eq!(ChunkSize::new(bad), Err(ChunkSizeError(bad)));
        }
    }

    #[test]
    fn chunks_cover_a_blob_once() {
        let size = ChunkSize::new(64 << 10).unwrap();
        for bytes in [1, 65_535, 65_536, 65_537, 1_000_000] {
            let blob = Blob { digest: Digest::of(b""), size_bytes: bytes };
            let count = size.count(&blob).unwrap();
            let mut at = 0;
            for index in 0..count {
                let range = size.range(&blob, index).unwrap();
                assert_eq!(range.start(), at);
                assert_eq!(size.span(range), index..=index);
                at = range.end();
            }
            assert_eq!(at, bytes);
            assert_eq!(size.range(&blob, count), None);
        }
    }
}
