//! Which misses may go to the offload now: bounds for their number, for the share of one blob, and for their bytes. Pure.
//!
//! The share keeps a blob that is stuck from taking every place: its own readers wait for each other, those of the other blobs go
//! on. Bytes are bounded because an image may be made so that one small read needs many large frames.

use std::collections::HashMap;

use penstock_blob::{Blob, ByteRange, Digest};

/// Bytes that the misses of one queue may wait for together, of which those that came stay in memory until all are there: as much as a node
/// has in flight; more would wait there. A queue without misses takes any one, so that none waits for ever.
pub(crate) const MAX_BYTES: u64 = 16 << 20;

/// What a miss wants of blobs.
pub(crate) type Wanted = [(Blob, ByteRange)];

/// The places of one queue.
#[derive(Debug)]
pub(crate) struct Room {
    bound: usize,
    taken: usize,
    bytes: u64,
    by_blob: HashMap<Digest, usize>,
}

/// What one miss takes.
#[derive(Debug)]
pub(crate) struct Place {
    blobs: Vec<Digest>,
    bytes: u64,
}

impl Place {
    /// What `wanted` takes.
    pub(crate) fn of(wanted: &Wanted) -> Self {
        let mut blobs: Vec<Digest> = wanted.iter().map(|(blob, _)| blob.digest).collect();
        blobs.sort_unstable();
        blobs.dedup();
        Self { blobs, bytes: bytes(wanted) }
    }
}

/// Bytes in `wanted`, overlaps counted each time.
pub(crate) fn bytes(wanted: &Wanted) -> u64 {
    wanted.iter().fold(0, |sum, (_, range)| sum.saturating_add(range.len()))
}

impl Room {
    /// Places for `bound` misses, three quarters of them at most for one blob.
    pub(crate) fn new(bound: usize) -> Self {
        Self { bound, taken: 0, bytes: 0, by_blob: HashMap::new() }
    }

    /// Whether every place is taken, for whichever blob.
    pub(crate) const fn is_full(&self) -> bool {
        self.taken >= self.bound
    }

    /// Whether `place` can be taken now.
    pub(crate) fn has(&self, place: &Place) -> bool {
        if self.taken == 0 {
            return true;
        }
        let share = self.bound - self.bound / 4;
        let shared = |blob| self.by_blob.get(blob).is_none_or(|&misses| misses < share);
        !self.is_full() && place.blobs.iter().all(shared) && self.bytes.saturating_add(place.bytes) <= MAX_BYTES
    }

    /// Takes `place`.
    pub(crate) fn take(&mut self, place: &Place) {
        self.taken += 1;
        self.bytes = self.bytes.saturating_add(place.bytes);
        for blob in &place.blobs {
            *self.by_blob.entry(*blob).or_default() += 1;
        }
    }

    /// Gives back what was taken.
    pub(crate) fn give_back(&mut self, place: &Place) {
        self.taken = self.taken.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(place.bytes);
        for blob in &place.blobs {
            if let Some(misses) = self.by_blob.get_mut(blob) {
                *misses -= 1;
                if *misses == 0 {
                    self.by_blob.remove(blob);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(names: &[&str], bytes: u64) -> Place {
        let blob = |name: &&str| Blob { digest: Digest::of(name.as_bytes()), size_bytes: u64::MAX };
        let each = bytes / names.len() as u64;
        Place::of(&names.iter().map(|name| (blob(name), ByteRange::new(0, each).unwrap())).collect::<Vec<_>>())
    }

    #[test]
    fn a_stuck_blob_leaves_a_quarter_of_the_places_to_others() {
        let (mut room, stuck, other) = (Room::new(8), place(&["stuck"], 10), place(&["other"], 10));
        for _ in 0..6 {
            assert!(room.has(&stuck));
            room.take(&stuck);
        }
        assert!(!room.has(&stuck) && !room.has(&place(&["other", "stuck"], 20)));
        for _ in 0..2 {
            assert!(room.has(&other) && !room.is_full());
            room.take(&other);
        }
        assert!(!room.has(&other) && room.is_full());
        room.give_back(&stuck);
        assert!(room.has(&stuck) && room.has(&other));
    }

    #[test]
    fn a_single_place_can_be_taken_by_any_miss_of_any_size() {
        let mut room = Room::new(1);
        let huge = place(&["huge"], 10 * MAX_BYTES);
        assert!(room.has(&huge));
        room.take(&huge);
        assert!(!room.has(&place(&["small"], 1)));
        room.give_back(&huge);
        assert!(room.has(&huge));
    }

    #[test]
    fn the_bytes_of_all_misses_are_bounded() {
        let (mut room, half) = (Room::new(100), place(&["a", "b"], MAX_BYTES / 2));
        room.take(&half);
        assert!(room.has(&half));
        room.take(&half);
        assert!(!room.has(&place(&["c"], 1)));
        room.give_back(&half);
        room.give_back(&half);
        assert!(room.by_blob.is_empty() && room.bytes == 0);
    }
}
