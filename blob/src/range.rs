//! Byte ranges that cannot be empty.

use std::fmt;

/// A run of bytes: `start` inclusive, `end` exclusive, never empty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

/// Why two numbers are not a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The range would hold no byte.
    #[error("a range from {start} to {end} holds no byte")]
    Empty {
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// `start + len` does not fit in 64 bits.
    #[error("a range of {len} bytes at {start} ends beyond 2^64")]
    Overflow {
        /// First byte.
        start: u64,
        /// Bytes wanted.
        len: u64,
    },
}

impl ByteRange {
    /// The range from `start` to `end` (exclusive), in bytes.
    ///
    /// # Errors
    /// [`RangeError::Empty`] when `end <= start`.
    pub const fn new(start: u64, end: u64) -> Result<Self, RangeError> {
        if end <= start {
            return Err(RangeError::Empty { start, end });
        }
        Ok(Self { start, end })
    }

    /// The `len` bytes from `start` on.
    ///
    /// # Errors
    /// [`RangeError::Empty`] when `len` is 0, [`RangeError::Overflow`] when the end does not fit in 64 bits.
    pub const fn at(start: u64, len: u64) -> Result<Self, RangeError> {
        match start.checked_add(len) {
            Some(end) => Self::new(start, end),
            None => Err(RangeError::Overflow { start, len }),
        }
    }

    /// First byte.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Length in bytes, at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether every byte of `other` lies in this range.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The bytes common to both, if any.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end)).ok()
    }

    /// The smallest range that holds both.
    #[must_use]
    pub fn cover(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_and_overflowing_ranges_are_refused() {
        assert_eq!(ByteRange::new(5, 5), Err(RangeError::Empty { start: 5, end: 5 }));
        assert_eq!(ByteRange::new(6, 5), Err(RangeError::Empty { start: 6, end: 5 }));
        assert_eq!(ByteRange::at(0, 0), Err(RangeError::Empty { start: 0, end: 0 }));
        assert_eq!(ByteRange::at(u64::MAX, 2), Err(RangeError::Overflow { start: u64::MAX, len: 2 }));
        assert_eq!(ByteRange::at(u64::MAX - 1, 1).unwrap().end(), u64::MAX);
    }

    #[test]
    fn set_operations_agree_with_counting_bytes() {
        let all: Vec<ByteRange> = (0..7).flat_map(|s| (s + 1..8).map(move |e| ByteRange::new(s, e).unwrap())).collect();
        for &a in &all {
            for &b in &all {
                let holds = |r: ByteRange, x: u64| r.start() <= x && x < r.end();
                let common = (0..8).filter(|&x| holds(a, x) && holds(b, x)).count() as u64;
                assert_eq!(a.intersection(b).map_or(0, ByteRange::len), common, "{a} and {b}");
                assert_eq!(a.contains(b), common == b.len(), "{a} contains {b}");
                assert!(a.cover(b).contains(a) && a.cover(b).contains(b));
            }
        }
    }
}
