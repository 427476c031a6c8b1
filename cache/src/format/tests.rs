//! The encodings, against golden files and damage.

use std::path::Path;

use penstock_blob::{Blob, ChunkSize, Digest};
use proptest::prelude::*;

use super::*;

fn blob() -> Blob {
    Blob { digest: Digest::of(b"penstock"), size_bytes: 0x0102_0304_0506 }
}

fn size() -> ChunkSize {
    ChunkSize::new(256 << 10).unwrap()
}

fn meta() -> Meta {
    Meta { no: 0x0a0b_0c0d, uuid: *b"0123456789abcdef", blob: blob(), chunk_size: size() }
}

fn segment() -> SegmentRecord {
    let mut record = SegmentRecord::default();
    record.put(0, 0x1122_3344);
    record.put(9, 0x5566_7788);
    record.put(255, 0x99aa_bbcc);
    record
}

fn sys() -> SysRecord {
    SysRecord { uuid: *b"0123456789abcdef", commits: 0x0102_0304_0506_0708, next_no: 9, starts: 3 }
}

/// Compares with a file in `cache/golden/`: these bytes are on people's disks.
fn golden(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    let want = std::fs::read(&path).unwrap_or_default();
    assert!(
        want == bytes,
        "{} differs from what the code writes; a format change needs a new layout version",
        path.display()
    );
}

#[test]
fn what_is_written_is_what_the_golden_files_hold() {
    golden("blob.meta", &meta().encode());
    golden("segment.record", &segment().encode(segment_key(7, 1)));
    golden("blob.record", &BlobRecord { blob: blob(), chunk_size: size(), verified: true }.encode(7));
    golden("sys.record", &sys().encode());
    golden("clean.marker", &sys().mark().encode(CLEAN_MAGIC));
    golden("commits.marker", &sys().mark().encode(COMMITS_MAGIC));
    let sealer = Sealer::new(&blob(), size());
    let headers: Vec<u8> =
        [(0, 0x1122_3344), (1, 0), (2, u32::MAX)].iter().flat_map(|&(c, crc)| sealer.header(c, crc)).collect();
    golden("blob.slots", &headers);
}

#[test]
fn keys_sort_a_blob_before_its_segments_and_blobs_apart() {
    let keys: [&[u8]; 4] = [&blob_key(7), &segment_key(7, 0), &segment_key(7, 256), &blob_key(8)];
    assert!(keys.is_sorted());
    assert_eq!(segment_key(0x0102_0304, 0x0506_0708), [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn every_record_round_trips_and_has_its_stated_size() {
    assert_eq!(Meta::decode(&meta().encode()), Some(meta()));
    assert_eq!(meta().encode().len(), META_BYTES);
    let key = segment_key(7, 1);
    assert_eq!(SegmentRecord::decode(key, &segment().encode(key)), Some(segment()));
    assert_eq!(segment().encode(key).len(), SEGMENT_BYTES);
    for verified in [false, true] {
        let record = BlobRecord { blob: blob(), chunk_size: size(), verified };
        assert_eq!(BlobRecord::decode(7, &record.encode(7)), Some(record));
        assert_eq!(record.encode(7).len(), BLOB_BYTES);
    }
    assert_eq!(SysRecord::decode(&sys().encode()), Some(sys()));
    assert_eq!(sys().encode().len(), SYS_BYTES);
    let mark = sys().mark();
    assert_eq!(Mark::decode(CLEAN_MAGIC, &mark.encode(CLEAN_MAGIC)), Some(mark));
    assert_eq!(Mark::decode(CLEAN_MAGIC, &mark.encode(COMMITS_MAGIC)), None, "one is not taken for the other");
    assert_eq!(mark.encode(CLEAN_MAGIC).len(), MARK_BYTES);
}

#[test]
fn a_record_under_another_key_is_refused() {
    assert_eq!(SegmentRecord::decode(segment_key(7, 2), &segment().encode(segment_key(7, 1))), None);
    let record = BlobRecord { blob: blob(), chunk_size: size(), verified: true };
    assert_eq!(BlobRecord::decode(8, &record.encode(7)), None);
}

#[test]
fn an_empty_slot_is_no_header_and_a_header_fits_one_slot_of_one_blob() {
    let sealer = Sealer::new(&blob(), size());
    assert_eq!(sealer.open(0, [0; HEADER_BYTES]), None);
    for crc in [0, 1, u32::MAX] {
        assert_eq!(sealer.open(5, sealer.header(5, crc)), Some(crc));
        assert_eq!(sealer.open(6, sealer.header(5, crc)), None);
    }
    let other = Sealer::new(&Blob { digest: Digest::of(b"other"), ..blob() }, size());
    assert_eq!(other.open(5, sealer.header(5, 1)), None);
}

proptest! {
    #[test]
    fn one_flipped_bit_anywhere_is_noticed(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let key = segment_key(7, 1);
        let flip = |mut bytes: Vec<u8>| {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            bytes
        };
        prop_assert_eq!(Meta::decode(&flip(meta().encode())), None);
        prop_assert_eq!(SegmentRecord::decode(key, &flip(segment().encode(key))), None);
        prop_assert_eq!(SysRecord::decode(&flip(sys().encode())), None);
    }

    #[test]
    fn any_bytes_are_decoded_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
        prop_assert_eq!(Meta::decode(&bytes), None);
        prop_assert_eq!(SegmentRecord::decode([0; 8], &bytes), None);
        prop_assert_eq!(BlobRecord::decode(0, &bytes), None);
        prop_assert_eq!(SysRecord::decode(&bytes), None);
        prop_assert_eq!(Mark::decode(CLEAN_MAGIC, &bytes), None);
    }
}
