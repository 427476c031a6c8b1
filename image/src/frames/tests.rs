//! Frame tables: look-ups, and tables that lie.

use super::*;
use crate::{
    draft::Draft,
    sums::{Side, Sums},
    zfile::Header,
};

fn shape(frames: u64) -> Shape {
    let format = Format { codec: Codec::Zstd, crc: true, block_bytes: 4096 };
    let blob = Blob { digest: Digest::of(b"blob"), size_bytes: 1 << 40 };
    let file = ByteRange::new(1536, 1 << 39).unwrap();
    Shape { blob, file, data_start: 2048, frames, original_bytes: frames * 4096 - 100, format }
}

/// Stored lengths that differ, the largest possible among them.
fn length(i: u64) -> u32 {
    if i.is_multiple_of(7) { MAX_STORED_BYTES } else { 5 + u32::try_from(i % 4000).unwrap() }
}

fn build(dir: &Path, shape: Shape) -> Frames {
    let lengths: Vec<u32> = (0..shape.frames).map(length).collect();
    let data: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
    let header = Header {
        format: shape.format,
        flags: 0,
        index_offset: 512 + data,
        frames: shape.frames,
        original_bytes: shape.original_bytes,
        index_crc: 0,
        dict_bytes: 0,
    };
    let mut sums = Sums::new(shape, &header, identity(&shape.blob.digest));
    let table: Vec<u8> = lengths.iter().flat_map(|length| length.to_le_bytes()).collect();
    let made = sums.take(Side::Front, &table).unwrap();
    sums.finish().unwrap();
    let draft = Draft::new(&path(dir, &shape.blob.digest), identity(&shape.blob.digest)).unwrap();
    draft.write(made.first, &made.pages).unwrap();
    draft.seal(shape.pages() + 1, &mut shape.header_page()).unwrap().persist().unwrap();
    Frames::open(dir, &shape.blob).unwrap().unwrap()
}

#[test]
fn frames_are_found_where_the_sum_of_lengths_puts_them() {
    for frames in [1, 1017, 1018, 1019, 5000] {
        let dir = tempfile::tempdir().unwrap();
        let table = build(dir.path(), shape(frames));
        assert_eq!(*table.shape(), shape(frames));
        let mut starts = vec![2048_u64];
        (0..frames).for_each(|i| starts.push(starts[starts.len() - 1] + u64::from(length(i))));
        for first in [0, 1, 1016, 1017, 1018, 1019, 2035, 2036, frames - 1] {
            for count in [1, 2, 3, 1018, 2500] {
                let Some(place) = starts.get(in_memory(first)..=in_memory(first) + count) else { continue };
                // What is there already is another run's.
                let mut stored = vec![7];
                assert_eq!(table.stored(first, count, &mut stored).unwrap(), place[0]);
                let ends: Vec<u64> = stored[1..].iter().map(|&end| place[0] + u64::from(end)).collect();
                assert_eq!(ends, place[1..], "{count} frames from {first} of {frames}");
            }
        }
    }
}

#[test]
fn the_last_frame_may_be_short() {
    let shape = shape(3);
    assert_eq!([0, 1, 2, 3].map(|i| shape.frame_bytes(i)), [4096, 4096, 3996, 0]);
    let range = |start, end| ByteRange::new(start, end).unwrap();
    assert_eq!(shape.frames_of(range(0, 1)), (0, 1));
    assert_eq!(shape.frames_of(range(4095, 4097)), (0, 2));
    assert_eq!(shape.frames_of(range(4096, 12_188)), (1, 2));
}

#[test]
fn ends_that_make_no_sense_are_refused_though_the_checksum_is_right() {
    let shape = shape(3);
    let page = |base: u64, ends: &[u32]| {
        let mut page = [0; PAGE_BYTES];
        put(&mut page, PAGE_HEAD, &base.to_le_bytes());
        ends.iter().enumerate().for_each(|(i, end)| put(&mut page, ENDS + 4 * i, &end.to_le_bytes()));
        page
    };
    let read = |base, ends: &[u32]| {
        let (mut origin, mut found) = (None, Vec::new());
        read_ends(&page(base, ends), 0..ends.len(), &shape, (&mut origin, &mut found)).map(|_| found)
    };
    assert_eq!(read(2048, &[10, 20, 25]), Ok(vec![10, 20, 25]));
    assert!(read(2048, &[10, 9]).unwrap_err().contains("length"));
    assert!(read(2048, &[4]).unwrap_err().contains("length"));
    assert!(read(2048, &[MAX_STORED_BYTES + 1]).unwrap_err().contains("length"));
    assert!(read(u64::MAX, &[10]).unwrap_err().contains("outside"));
    assert!(read(1 << 39, &[10]).unwrap_err().contains("outside"));
    assert!(read(2048, &[]).unwrap_err().contains("number"));
}
