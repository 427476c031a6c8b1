//! Recordings: laws, bytes, and what is refused.

use proptest::prelude::*;

use super::*;

const BLOB_GRAINS: u64 = 64;

fn blob(nth: u8) -> Blob {
    Blob { digest: Digest::of(&[nth]), size_bytes: BLOB_GRAINS * GRAIN_BYTES - 1000 }
}

fn image() -> Digest {
    Digest::of(b"manifest")
}

fn range(blob: &Blob, start: u64, len: u64) -> ByteRange {
    ByteRange::new(start, (start + len).min(blob.size_bytes)).unwrap()
}

fn recorded(needs: &[(u8, u64, u64)]) -> Recording {
    let mut recorder = Recorder::new(image());
    for &(nth, start, len) in needs {
        let blob = blob(nth);
        recorder.need(&blob, range(&blob, start, len));
    }
    recorder.into_recording()
}

fn recordings() -> impl Strategy<Value = Recording> {
    let need = (0_u8..4, 0..(BLOB_GRAINS - 1) * GRAIN_BYTES, 1..4 * GRAIN_BYTES);
    prop::collection::vec(need, 0..40).prop_map(|needs| recorded(&needs))
}

/// Every grain of a recording, in its order.
fn grains(recording: &Recording) -> Vec<(Digest, u64)> {
    let grains = |(blob, range): (Blob, ByteRange)| {
        (range.start() / GRAIN_BYTES..range.end().div_ceil(GRAIN_BYTES)).map(move |grain| (blob.digest, grain))
    };
    recording.ranges().flat_map(grains).collect()
}

proptest! {
    #[test]
    fn merging_keeps_order_and_its_laws(a in recordings(), b in recordings(), c in recordings()) {
        prop_assert_eq!(a.clone().merge(&a), a.clone(), "twice the same is once");
        let none = recorded(&[]);
        prop_assert_eq!(a.clone().merge(&none), a.clone());
        prop_assert_eq!(none.merge(&a), a.clone());
        let (left, right) = (a.clone().merge(&b).merge(&c), a.clone().merge(&b.clone().merge(&c)));
        prop_assert_eq!(left, right);
        let mut expected = grains(&a);
        expected.extend(grains(&b).into_iter().filter(|grain| !grains(&a).contains(grain)));
        prop_assert_eq!(grains(&a.clone().merge(&b)), expected);
        prop_assert_eq!(a.clone().merge(&b).bytes(), b.merge(&a).bytes(), "whoever is first, the same bytes");
    }

    #[test]
    fn what_is_written_is_read_and_no_byte_is_in_it_twice(a in recordings()) {
        let bytes = a.encode();
        prop_assert_eq!(Recording::parse(&bytes).unwrap(), a.clone());
        let grains = grains(&a);
        let distinct: std::collections::BTreeSet<_> = grains.iter().collect();
        prop_assert_eq!(distinct.len(), grains.len());
    }

    #[test]
    fn a_flipped_bit_is_found(a in recordings(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let mut bytes = a.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Recording::parse(&bytes).is_err());
    }
}

#[test]
fn what_is_needed_counts_once_and_neighbours_are_one_range() {
    let (mut recorder, blob) = (Recorder::new(image()), blob(1));
    assert_eq!(recorder.need(&blob, range(&blob, 0, 1)), GRAIN_BYTES);
    assert_eq!(recorder.need(&blob, range(&blob, 4095, 2)), GRAIN_BYTES, "the second grain only");
    assert_eq!(recorder.need(&blob, range(&blob, 10, 8000)), 0);
    assert_eq!(recorder.need(&blob, range(&blob, blob.size_bytes - 1, 1)), GRAIN_BYTES);
    let ranges: Vec<_> = recorder.recording().ranges().map(|(_, range)| (range.start(), range.end())).collect();
    assert_eq!(ranges, [(0, 8192), (63 * GRAIN_BYTES, blob.size_bytes)], "and nothing beyond the end");
    assert_eq!(recorder.covers(&blob, range(&blob, 8000, 1000)), 192);
    assert_eq!(recorder.covers(&self::blob(2), range(&blob, 0, 10)), 0);
}

#[test]
fn a_recording_is_bounded() {
    let mut recorder = Recorder::new(image());
    let blob = Blob { digest: Digest::of(b"large"), size_bytes: u64::MAX };
    for nth in 0..=MAX_RUNS as u64 {
        // Far apart and back again: the longest numbers.
        let grain = if nth % 2 == 0 { nth } else { (1 << 52) - 2 - nth };
        recorder.need(&blob, ByteRange::at(grain * GRAIN_BYTES, 1).unwrap());
    }
    let recording = recorder.into_recording();
    assert_eq!(recording.len(), MAX_RUNS);
    let bytes = recording.encode();
    assert!(bytes.len() <= MAX_BYTES, "{} bytes", bytes.len());
    assert_eq!(Recording::parse(&bytes).unwrap(), recording);
    let mut recorder = Recorder::from(recording);
    assert_eq!(recorder.need(&self::blob(1), ByteRange::at(0, 1).unwrap()), 0, "no room for a range");
    let mut recorder = Recorder::new(image());
    for nth in 0..=MAX_BLOBS as u64 {
        let blob = Blob { digest: Digest::of(&nth.to_le_bytes()), size_bytes: 1 };
        let had_room = recorder.need(&blob, ByteRange::at(0, 1).unwrap()) > 0;
        assert_eq!(had_room, nth < MAX_BLOBS as u64, "room for so many blobs");
    }
}

/// A recording with a sound checksum whose part behind the header is `body`.
fn sealed(body: &[u8]) -> Vec<u8> {
    let mut bytes = recorded(&[]).encode();
    bytes.truncate(48);
    bytes.extend_from_slice(body);
    let check = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&check.to_le_bytes());
    bytes
}

#[test]
fn hostile_recordings_are_refused_by_name() {
    let one = |runs: &[u8]| {
        let mut body = vec![1];
        body.extend_from_slice(blob(1).digest.as_bytes());
        body.extend_from_slice(&[0x80, 0x40]);
        body.extend_from_slice(runs);
        Recording::parse(&sealed(&body))
    };
    // The blob has 8192 bytes: two grains.
    let digest = blob(1).digest;
    assert_eq!(one(&[1, 4, 0]).unwrap().bytes(), 8192);
    assert_eq!(one(&[1, 6, 0]), Err(RecordingError::Beyond(digest)), "three grains");
    assert_eq!(one(&[1, 0, 0]), Err(RecordingError::Beyond(digest)), "no grain");
    assert_eq!(one(&[1, 2, 1]), Err(RecordingError::Beyond(digest)), "before the start");
    assert_eq!(one(&[2, 2, 0, 2, 1]), Err(RecordingError::Twice(digest)));
    assert_eq!(one(&[1, 3, 1, 0]), Err(RecordingError::Number("blob of a range")));
    assert_eq!(one(&[2, 2, 0]), Err(RecordingError::Number("length of a range")), "fewer ranges than it says");
    assert_eq!(one(&[0, 0]), Err(RecordingError::Rest(1)));
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    assert_eq!(one(&huge), Err(RecordingError::Number("number of ranges")));
    assert_eq!(Recording::parse(&sealed(&huge)), Err(RecordingError::Number("number of blobs")));
    let long = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
    assert_eq!(Recording::parse(&sealed(&long)), Err(RecordingError::Number("number of blobs")), "over 64 bits");
    assert_eq!(Recording::parse(&vec![0; MAX_BYTES + 1]), Err(RecordingError::Size(MAX_BYTES + 1)));
    assert_eq!(Recording::parse(b"PNSTKREC"), Err(RecordingError::Size(8)));
    assert_eq!(Recording::parse(&[0; 60]), Err(RecordingError::Magic));
    let mut newer = recorded(&[]).encode();
    newer[8] = 2;
    assert_eq!(Recording::parse(&newer), Err(RecordingError::Version(2)));
}

#[test]
fn a_recording_of_another_image_is_refused_and_adds_nothing() {
    let recording = recorded(&[(1, 0, 1), (2, 0, 1)]);
    assert_eq!(recording.check(image(), &[blob(2), blob(1), blob(3)]), Ok(()));
    assert_eq!(recording.check(image(), &[blob(1)]), Err(RecordingError::Foreign(blob(2))));
    let longer = Blob { size_bytes: 1 << 30, ..blob(2) };
    assert_eq!(recording.check(image(), &[blob(1), longer]), Err(RecordingError::Foreign(blob(2))));
    let other = Digest::of(b"another");
    assert_eq!(
        recording.check(other, &[blob(1), blob(2)]),
        Err(RecordingError::Manifest { of: image(), image: other })
    );
    let mut recorder = Recorder::new(other);
    recorder.need(&blob(3), range(&blob(3), 0, 1));
    assert_eq!(recording.clone().merge(recorder.recording()), recording);
}

/// The file of docs/formats/recording.md.
#[test]
fn the_golden_file_is_what_is_written() {
    let recording = recorded(&[(1, 0, 9000), (2, 200_000, 70_000), (1, 100_000, 1), (1, 20_000, 4096), (2, 0, 1)]);
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/recording-v1.bin");
    let golden = std::fs::read(path).unwrap();
    assert_eq!(recording.encode(), golden);
    assert_eq!(Recording::parse(&golden).unwrap(), recording);
}
