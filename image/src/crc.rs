//! ZFile's CRC-32C: the Castagnoli polynomial without the usual inversions before and after.
//!
//! A standard CRC-32C is `!raw(!init, data)`; ZFile stores `raw(init, data)`, with an `init` of 0 for headers and jump
//! tables and 100007 for blocks (docs/formats/overlaybd.md).

/// What the check of a block starts from.
pub(crate) const BLOCK_SEED: u32 = 100_007;

/// The register after `data`, started at `init`. Chains: `raw(raw(i, a), b) == raw(i, ab)`.
#[must_use]
pub(crate) fn raw(init: u32, data: &[u8]) -> u32 {
    !crc32c::crc32c_append(!init, data)
}

/// The check of `a` and `b` together, from the check of each and the length of `b`. Both were started at 0.
#[must_use]
pub(crate) fn joined(a: u32, b: u32, b_bytes: u64) -> u32 {
    crc32c::crc32c_combine(a, b, usize::try_from(b_bytes).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_crc_32c_without_the_inversions() {
        // The standard check value of CRC-32C is e3069283 for "123456789" (RFC 3720, B.4).
        assert_eq!(!raw(!0, b"123456789"), 0xe306_9283);
        assert_eq!(raw(0, b"\0\0\0\0"), 0, "without inversion zeros leave a zero register alone");
        assert_eq!(joined(raw(0, b"1234"), raw(0, b"56789"), 5), raw(0, b"123456789"));
        assert_eq!(joined(raw(0, b"1234"), 0, 0), raw(0, b"1234"));
        assert_eq!(raw(raw(7, b"1234"), b"56789"), raw(7, b"123456789"));
    }
}
