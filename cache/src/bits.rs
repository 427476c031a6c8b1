//! Bitmaps of one segment: 256 chunks, as a value and as atomics.

use std::sync::atomic::{AtomicU64, Ordering};

/// Chunks in a segment: one index record each (32 MiB of a blob at 128 KiB chunks; measured in `docs/decisions/0002-sled.md`).
pub(crate) const SEGMENT_CHUNKS: u32 = 256;

/// One bit for each chunk of a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bits(pub(crate) [u64; 4]);

/// The word and the mask of chunk `slot` (0..256) of a segment.
const fn place(slot: u32) -> (usize, u64) {
    (((slot % SEGMENT_CHUNKS) / 64) as usize, 1 << (slot % 64))
}

impl Bits {
    /// Every slot.
    pub(crate) const ALL: Self = Self([u64::MAX; 4]);

    pub(crate) const fn set(&mut self, slot: u32) {
        let (word, mask) = place(slot);
        self.0[word] |= mask;
    }

    pub(crate) const fn has(&self, slot: u32) -> bool {
        let (word, mask) = place(slot);
        self.0[word] & mask != 0
    }

    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    /// The set slots, ascending.
    pub(crate) fn iter(self) -> impl Iterator<Item = u32> {
        (0..SEGMENT_CHUNKS).filter(move |&slot| self.has(slot))
    }

    /// All slots from `first` to `last` inclusive.
    pub(crate) fn span(first: u32, last: u32) -> Self {
        let mut bits = Self::default();
        for word in 0..4 {
            let base = word * 64;
            let (low, high) = (first.max(base), last.min(base + 63));
            if low <= high {
                bits.0[(word % 4) as usize] = (u64::MAX >> (63 - (high - base))) & (u64::MAX << (low - base));
            }
        }
        bits
    }

    pub(crate) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (to, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; 32]) -> Self {
        let mut bits = Self::default();
        for (word, from) in bits.0.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*from);
        }
        bits
    }
}

/// One bit for each chunk of a segment, read without a lock. Changed only under the lock of the blob's [`crate::entry::Entry`].
///
/// `SeqCst` throughout: a reader pins and then tests, an evictor clears and then looks at the pins; with anything weaker both
/// could miss the other.
#[derive(Debug, Default)]
pub(crate) struct AtomicBits([AtomicU64; 4]);

impl AtomicBits {
    pub(crate) fn load(&self) -> Bits {
        Bits(std::array::from_fn(|i| self.0[i].load(Ordering::SeqCst)))
    }

    pub(crate) fn add(&self, bits: Bits) {
        for (word, mask) in self.0.iter().zip(bits.0) {
            if mask != 0 {
                word.fetch_or(mask, Ordering::SeqCst);
            }
        }
    }

    pub(crate) fn remove(&self, bits: Bits) {
        for (word, mask) in self.0.iter().zip(bits.0) {
            if mask != 0 {
                word.fetch_and(!mask, Ordering::SeqCst);
            }
        }
    }

    pub(crate) fn has(&self, slot: u32) -> bool {
        let (word, mask) = place(slot);
        self.0[word].load(Ordering::SeqCst) & mask != 0
    }

    /// Clears bits; answers those that were set.
    pub(crate) fn take(&self, bits: Bits) -> Bits {
        Bits(std::array::from_fn(|i| match (self.0.get(i), bits.0.get(i)) {
            (Some(word), Some(&mask)) if mask != 0 => word.fetch_and(!mask, Ordering::SeqCst) & mask,
            _ => 0,
        }))
    }

    /// Whether a slot from `first` to `last` inclusive is set.
    pub(crate) fn has_any(&self, first: u32, last: u32) -> bool {
        if first == last {
            return self.has(first);
        }
        let want = Bits::span(first, last);
        self.0.iter().zip(want.0).any(|(word, mask)| mask != 0 && word.load(Ordering::SeqCst) & mask != 0)
    }

    /// Whether every slot from `first` to `last` inclusive is set.
    pub(crate) fn has_all(&self, first: u32, last: u32) -> bool {
        if first == last {
            return self.has(first);
        }
        let want = Bits::span(first, last);
        self.0.iter().zip(want.0).all(|(word, mask)| mask == 0 || word.load(Ordering::SeqCst) & mask == mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_the_set_of_its_slots() {
        for first in 0..SEGMENT_CHUNKS {
            for last in first..SEGMENT_CHUNKS {
                let span = Bits::span(first, last);
                assert_eq!(span.count(), last - first + 1, "{first}..={last}");
                assert!(span.has(first) && span.has(last));
            }
        }
        let mut one_by_one = Bits::default();
        (60..=130).for_each(|slot| one_by_one.set(slot));
        assert_eq!(Bits::span(60, 130), one_by_one);
    }

    #[test]
    fn bytes_round_trip_and_slot_0_is_the_lowest_bit_of_the_first_byte() {
        let mut bits = Bits::default();
        bits.set(0);
        bits.set(9);
        bits.set(255);
        let bytes = bits.to_bytes();
        assert_eq!((bytes[0], bytes[1], bytes[31]), (1, 2, 0x80));
        assert_eq!(Bits::from_bytes(&bytes), bits);
        assert_eq!(bits.iter().collect::<Vec<_>>(), [0, 9, 255]);
    }

    #[test]
    fn has_all_sees_one_missing_slot() {
        let atomic = AtomicBits::default();
        atomic.add(Bits::span(10, 200));
        assert!(atomic.has_all(10, 200) && !atomic.has_all(9, 200) && !atomic.has_all(10, 201));
        assert!(
            atomic.has_any(0, 10) && atomic.has_any(200, 255) && !atomic.has_any(0, 9) && !atomic.has_any(201, 255)
        );
        let mut hole = Bits::default();
        hole.set(128);
        atomic.remove(hole);
        assert!(!atomic.has_all(10, 200) && atomic.has_all(10, 127) && atomic.has_all(129, 200));
        assert_eq!(atomic.take(Bits::span(120, 130)).count(), 10);
        assert!(!atomic.has_any(120, 130) && atomic.has(119) && atomic.has(131));
    }
}
