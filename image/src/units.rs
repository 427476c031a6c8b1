//! Sectors and byte counts, and the one place where a 64-bit count becomes a size in memory.

/// Bytes of a sector. Every OverlayBD number of sectors means these, whatever the file system inside uses.
pub(crate) const SECTOR_BYTES: u64 = 512;

/// A count of bytes that is already known to be small, as a length in memory. A count that does not fit saturates, and
/// the slice or allocation made with it fails its own bounds check.
pub(crate) fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The `N` bytes at `at`. The caller's block is longer than every offset that its format names.
pub(crate) fn field<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&block[at..at + N]);
    bytes
}

/// The little-endian u32 at `at`.
pub(crate) fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(block, at))
}

/// The little-endian u64 at `at`.
pub(crate) fn u64_at(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(block, at))
}
