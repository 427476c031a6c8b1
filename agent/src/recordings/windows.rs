//! From a recording's ranges to few, large reads in nearly their order. Pure.

use std::collections::HashMap;

use penstock_blob::{Blob, ByteRange, Digest};

/// Bytes of the first window: what is needed first is asked for first.
const FIRST_BYTES: u64 = 1 << 20;
/// Bytes of the largest window; each is twice the one before until then. Within one, order gives way to large reads.
const MOST_BYTES: u64 = 16 << 20;
/// Bytes between two ranges that are read along: about what a link carries in the time that one more request costs (a millisecond or two of it).
const GAP_BYTES: u64 = 128 << 10;
/// Longest read, in bytes: a read is answered as a whole, and held in memory until then.
pub(super) const READ_BYTES: u64 = 2 << 20;

/// Cuts ranges, in the order of need, into windows.
pub(super) fn windows(ranges: impl IntoIterator<Item = (Blob, ByteRange)>) -> Vec<Vec<(Blob, ByteRange)>> {
    let (mut windows, mut window) = (Vec::new(), Vec::new());
    let (mut filled, mut most) = (0_u64, FIRST_BYTES);
    for (blob, range) in ranges {
        filled = filled.saturating_add(range.len());
        window.push((blob, range));
        if filled >= most {
            windows.push(std::mem::take(&mut window));
            (filled, most) = (0, (most * 2).min(MOST_BYTES));
        }
    }
    if !window.is_empty() {
        windows.push(window);
    }
    windows
}

/// What is missing of one window, as reads: per blob ascending, near neighbours together, none longer than [`READ_BYTES`]. Blobs come in the order
/// in which the window first names them.
pub(super) fn reads(missing: impl IntoIterator<Item = (Blob, ByteRange)>) -> Vec<(Blob, ByteRange)> {
    let mut order: HashMap<Digest, usize> = HashMap::new();
    let mut sorted: Vec<(usize, Blob, ByteRange)> = Vec::new();
    for (blob, range) in missing {
        let next = order.len();
        sorted.push((*order.entry(blob.digest).or_insert(next), blob, range));
    }
    sorted.sort_unstable_by_key(|(nth, _, range)| (*nth, *range));
    sorted.dedup_by(|next, kept| {
        let near = next.0 == kept.0 && next.2.start() <= kept.2.end().saturating_add(GAP_BYTES);
        if near {
            kept.2 = kept.2.cover(next.2);
        }
        near
    });
    sorted.into_iter().flat_map(|(_, blob, range)| cut(range).map(move |part| (blob, part))).collect()
}

/// A range in parts of at most [`READ_BYTES`].
pub(super) fn cut(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let count = range.len().div_ceil(READ_BYTES);
    (0..count).filter_map(move |nth| {
        let start = range.start().checked_add(nth.checked_mul(READ_BYTES)?)?;
        ByteRange::new(start, start.saturating_add(READ_BYTES).min(range.end())).ok()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blob(name: u8) -> Blob {
        Blob { digest: Digest::of(&[name]), size_bytes: 1 << 40 }
    }

    fn kib(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start << 10, end << 10).unwrap()
    }

    #[test]
    fn a_window_is_read_in_few_large_pieces() {
        let (a, b) = (blob(1), blob(2));
        let window = [(b, kib(0, 4)), (a, kib(900, 904)), (a, kib(0, 4)), (a, kib(100, 104)), (b, kib(64, 128))];
        assert_eq!(reads(window), [(b, kib(0, 128)), (a, kib(0, 104)), (a, kib(900, 904))]);
        assert_eq!(reads([(a, kib(0, 5000))]), [(a, kib(0, 2048)), (a, kib(2048, 4096)), (a, kib(4096, 5000))]);
        assert_eq!(reads([]), []);
    }

    #[test]
    fn windows_keep_the_order_and_grow() {
        let ranges: Vec<_> = (0..400).map(|nth| (blob(1), kib(nth * 1000, nth * 1000 + 128))).collect();
        let cut = windows(ranges.clone());
        assert_eq!(cut.concat(), ranges);
        let bytes: Vec<u64> = cut.iter().map(|window| window.iter().map(|(_, range)| range.len()).sum()).collect();
        assert_eq!(bytes[..5], [1 << 20, 2 << 20, 4 << 20, 8 << 20, 16 << 20]);
        assert!(bytes.iter().all(|bytes| *bytes <= 16 << 20));
    }

    proptest! {
        #[test]
        fn every_byte_of_a_window_is_in_exactly_one_read(
            ranges in prop::collection::vec((0_u8..3, 0_u64..64, 1_u64..20), 0..40),
        ) {
            let window: Vec<_> = ranges.iter().map(|&(name, at, len)| (blob(name), kib(at * 64, at * 64 + len * 64))).collect();
            let reads = reads(window.clone());
            for (blob, range) in &window {
                let mut at = range.start();
                while at < range.end() {
                    let holds = |read: &&(Blob, ByteRange)| read.0 == *blob && read.1.start() <= at && at < read.1.end();
                    prop_assert_eq!(reads.iter().filter(holds).count(), 1);
                    at += 64 << 10;
                }
            }
            prop_assert!(reads.iter().all(|(_, range)| range.len() <= READ_BYTES));
        }
    }
}
