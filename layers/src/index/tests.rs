//! Indexes of layers of every coding, compared with the archives that they are of.

use std::{fs::File, path::Path};

use penstock_blob::Digest;
use proptest::prelude::{any, prop_oneof};
use proptest::{prop_assert, proptest};

use super::{build::BuildError, read::Index};
use crate::{
    Entry, TarReader,
    frame::{Coding, MAX_FRAME_BYTES, TARGET_BYTES},
    testing::{archive, build, gzip_member, mixed, noise, one_block, one_frame, open, piped, text, unpack, wrap},
};

fn entries_of(unpacked: &[u8]) -> Vec<Entry> {
    let (mut reader, mut entries) = (TarReader::new(), Vec::new());
    reader.push(unpacked, |entry| entries.push(entry)).unwrap();
    reader.finish().unwrap();
    entries
}

/// Builds an index of `packed` and compares all that it says with `unpacked`; how many frames there are, and their windows' bytes.
fn proven(packed: &[u8], unpacked: &[u8], coding: Coding, piece: usize) -> (u64, u64) {
    let dir = tempfile::tempdir().unwrap();
    let built = build(dir.path(), packed, unpacked, piece).unwrap();
    let index = open(dir.path());
    assert_eq!(*index.layer(), built.layer);
    assert_eq!(built.layer.coding, coding);
    assert_eq!(built.layer.unpacked.size_bytes, unpacked.len() as u64);
    assert_eq!(built.index.size_bytes, std::fs::metadata(dir.path().join("index")).unwrap().len());
    assert!(unpack(&index, packed) == unpacked, "the archive as the frames decode is another");
    let entries: Vec<Entry> = index.entries().unwrap().map(Result::unwrap).collect();
    assert_eq!(entries, entries_of(unpacked));
    assert_eq!(built.layer.entries, entries.len() as u64);
    (built.layer.frames, index.header().windows_bytes)
}

/// The archive of the golden index: three frames, of which two have windows. Packed by `gzip_blocks` in parts of 300,000 bytes.
fn golden_layer() -> Vec<u8> {
    archive(&[text(1, 20_000).repeat(130), b"hello".to_vec(), Vec::new()])
}

#[test]
fn the_golden_index_is_read_and_made_again() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let read = |name: &str| std::fs::read(golden.join(name)).unwrap();
    let (packed, unpacked) = (read("v1.tar.gz"), golden_layer());
    let index = Index::open(File::open(golden.join("v1.layer-index")).unwrap()).unwrap();
    assert_eq!((index.layer().frames, index.layer().entries), (3, 3));
    assert_eq!(index.layer().packed.digest, Digest::of(&packed));
    assert!(unpack(&index, &packed) == unpacked);
    let entries: Vec<Entry> = index.entries().unwrap().map(Result::unwrap).collect();
    assert_eq!(entries, entries_of(&unpacked));
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), &packed, &unpacked, 1000).unwrap();
    assert!(std::fs::read(dir.path().join("index")).unwrap() == read("v1.layer-index"), "the format changed, or zstd");
}

/// The archive of the golden index of a layer that is streamed: 18 pieces of one frame.
fn golden_streamed() -> Vec<u8> {
    archive(&[text(2, 20_000).repeat(900), b"hello".to_vec()])
}

#[test]
fn the_golden_index_of_a_streamed_layer_is_read_and_made_again() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let read = |name: &str| std::fs::read(golden.join(name)).unwrap();
    let (packed, unpacked) = (read("v3.tar.zst"), golden_streamed());
    let index = Index::open(File::open(golden.join("v3.layer-index")).unwrap()).unwrap();
    assert_eq!((index.layer().frames, index.layer().is_streamed, index.run(17)), (18, true, Some(0..18)));
    assert!(unpack(&index, &packed) == unpacked);
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), &packed, &unpacked, 1000).unwrap();
    assert!(std::fs::read(dir.path().join("index")).unwrap() == read("v3.layer-index"), "the format changed, or zstd");
}

#[test]
fn any_damage_to_an_index_is_found() {
    let unpacked = golden_layer();
    let packed = crate::testing::gzip_blocks(&unpacked, 300_000);
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), &packed, &unpacked, 1 << 20).unwrap();
    let path = dir.path().join("index");
    let right = std::fs::read(&path).unwrap();
    let sound = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let index = Index::open(File::open(&path).unwrap()).ok()?;
        index.entries().ok()?.collect::<Result<Vec<Entry>, _>>().ok()?;
        let frames = index.frames(0..3).ok()?;
        frames.iter().try_for_each(|placed| {
            let range = placed.frame.packed;
            let packed = packed.get(usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap())?;
            let window = index.window(placed).ok()?;
            crate::frame::decode(index.layer().coding, &placed.frame, packed, &window).ok().map(drop)
        })
    };
    assert!(sound(&right).is_some());
    for at in (0..right.len()).step_by(97).chain([0, 8, 12, 130, 4095, right.len() - 1]) {
        let mut wrong = right.clone();
        wrong[at] ^= 1;
        assert!(sound(&wrong).is_none(), "a flipped bit at {at} of {} is not noticed", right.len());
    }
    assert!(sound(&right[..right.len() - 1]).is_none() && sound(&right[..100]).is_none() && sound(b"").is_none());
}

#[test]
fn every_level_of_gzip_reads_back_through_its_index() {
    let unpacked = mixed(1, 5 << 20);
    for level in ["-1", "-2", "-3", "-4", "-5", "-6", "-7", "-8", "-9"] {
        let packed = piped("gzip", &["-c", level], &unpacked).unwrap();
        let (frames, windows) = proven(&packed, &unpacked, Coding::Gzip, 1 << 20);
        assert!(frames >= 4, "gzip {level}: {frames} frames");
        assert!(windows > 0 && windows * 50 < packed.len() as u64, "gzip {level}: windows of {windows} bytes");
    }
}

#[test]
fn what_pigz_packs_reads_back_through_its_index() {
    let unpacked = mixed(2, 4 << 20);
    for args in [&["-c", "-6"][..], &["-c", "-9", "-i"], &["-c", "-0"]] {
        let Some(packed) = piped("pigz", args, &unpacked) else {
            println!("skipped: what_pigz_packs_reads_back_through_its_index: pigz is not installed");
            return;
        };
        let (frames, _) = proven(&packed, &unpacked, Coding::Gzip, 100_000);
        assert!(frames >= 3, "pigz {args:?}: {frames} frames");
    }
}

#[test]
fn members_empty_members_and_what_follows_the_last_one() {
    let unpacked = mixed(3, 3 << 20);
    let mut packed = Vec::new();
    for (nth, part) in unpacked.chunks(700_001).enumerate() {
        packed.extend(gzip_member(part, u8::try_from(nth % 10).unwrap()));
        packed.extend(gzip_member(b"", 6));
    }
    for tail in [&b""[..], b"\0\0\0\0", b"garbage", b"\x1f", b"\x1f\x8b\x07"] {
        let packed = [&packed, tail].concat();
        let (frames, _) = proven(&packed, &unpacked, Coding::Gzip, 65_536);
        assert!((2..=4).contains(&frames), "{frames} frames");
    }
}

#[test]
fn small_members_share_frames() {
    let unpacked = mixed(4, 2 << 20);
    let packed: Vec<u8> = unpacked.chunks(1000).flat_map(|part| gzip_member(part, 1)).collect();
    let (frames, windows) = proven(&packed, &unpacked, Coding::Gzip, 4096);
    assert_eq!((frames, windows), ((unpacked.len() as u64).div_ceil(TARGET_BYTES + 976), 0));
}

#[test]
fn zstd_frames_and_skippable_frames_read_back_through_their_index() {
    let unpacked = mixed(5, 4 << 20);
    let mut packed = b"\x50\x2a\x4d\x18\x05\0\0\0hello".to_vec();
    for part in unpacked.chunks(300_000) {
        packed.extend(zstd::bulk::compress(part, 3).unwrap());
        packed.extend(b"\x5f\x2a\x4d\x18\0\0\0\0");
    }
    let (frames, windows) = proven(&packed, &unpacked, Coding::Zstd, 10_007);
    assert_eq!((frames, windows), (4, 0));
}

#[test]
fn one_large_zstd_frame_reads_back_in_pieces_however_it_comes() {
    let unpacked = mixed(11, 20 << 20);
    for (packed, piece) in [
        (one_frame(&unpacked, 1, None), 1 << 20),
        (one_frame(&unpacked, 3, Some(23)), 77_777),
        (zstd::bulk::compress(&unpacked, 1).unwrap(), 4 << 20),
    ] {
        let (frames, windows) = proven(&packed, &unpacked, Coding::Zstd, piece);
        assert!((18..=21).contains(&frames) && windows == 0, "{frames} pieces");
        let dir = tempfile::tempdir().unwrap();
        let made = [1 << 20, 10_007].map(|piece| build(dir.path(), &packed, &unpacked, piece).unwrap());
        assert!(made[0].layer.is_streamed && made[0] == made[1]);
    }
}

#[test]
fn what_tools_pack_into_one_zstd_frame_reads_back_in_pieces() {
    let unpacked = mixed(12, 18 << 20);
    for args in [&["-c"][..], &["-c", "-19"], &["-c", "--no-check", "-1"]] {
        let Some(packed) = piped("zstd", args, &unpacked) else {
            println!("skipped: what_tools_pack_into_one_zstd_frame_reads_back_in_pieces: zstd is not installed");
            return;
        };
        let (frames, _) = proven(&packed, &unpacked, Coding::Zstd, 1 << 20);
        assert!(frames >= 17, "zstd {args:?}: {frames} frames");
    }
}

#[test]
fn small_frames_between_large_ones_are_decoded_alone() {
    let parts = [mixed(13, 17 << 20), mixed(14, 2 << 20), mixed(15, 300_000), mixed(16, 18 << 20)];
    let skippable = b"\x50\x2a\x4d\x18\x05\0\0\0hello".to_vec();
    let packed: Vec<u8> =
        parts.iter().flat_map(|part| [skippable.clone(), one_frame(part, 1, None)].concat()).collect();
    let unpacked = archive(&[parts.concat()]);
    // An archive around the parts: its header and its end are frames, too.
    let (head, tail) = (&unpacked[..512], &unpacked[512 + parts.concat().len()..]);
    let packed = [&one_frame(head, 1, None)[..], &packed, &one_frame(tail, 1, None)].concat();
    proven(&packed, &unpacked, Coding::Zstd, 1 << 20);
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), &packed, &unpacked, 1 << 20).unwrap();
    let index = open(dir.path());
    let alone = (0..usize::try_from(index.layer().frames).unwrap()).filter(|nth| index.run(*nth).is_none()).count();
    assert_eq!(alone, 2, "the frame of 2 MiB, and the last one");
    assert!(index.run(0).is_some_and(|run| run.len() >= 17));
}

#[test]
fn a_large_frame_that_ends_too_early_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    let unpacked = mixed(17, 17 << 20);
    let packed = one_frame(&unpacked, 1, None);
    for cut in [packed.len() - 1, packed.len() - 5, packed.len() / 2] {
        let refused = build(dir.path(), &packed[..cut], &unpacked, 1 << 20);
        assert!(matches!(refused, Err(BuildError::Broken { .. })), "{refused:?}");
    }
}

#[test]
fn plain_archives_are_cut_where_it_suits() {
    let unpacked = mixed(6, 3 << 20);
    let (frames, windows) = proven(&unpacked, &unpacked, Coding::Plain, 333_333);
    assert_eq!((frames, windows), ((unpacked.len() as u64).div_ceil(TARGET_BYTES), 0));
}

#[test]
fn an_empty_layer_has_an_index() {
    let unpacked = archive(&[]);
    proven(&unpacked, &unpacked, Coding::Plain, 1 << 20);
    proven(&gzip_member(&unpacked, 6), &unpacked, Coding::Gzip, 1);
    assert_eq!(proven(&gzip_member(b"", 6), b"", Coding::Gzip, 1 << 20), (0, 0));
    assert_eq!(proven(b"", b"", Coding::Plain, 1), (0, 0));
}

#[test]
fn what_can_only_be_decoded_as_a_whole_is_not_lazy() {
    let dir = tempfile::tempdir().unwrap();
    let unpacked = archive(&[vec![0; 17 << 20]]);
    let refused = build(dir.path(), &one_frame(&unpacked, 1, Some(24)), &unpacked, 1 << 20);
    assert!(
        matches!(&refused, Err(BuildError::NotLazy { reason }) if reason.contains("a window of 16777216 bytes")),
        "{refused:?}"
    );
    let zeros = one_block(usize::try_from(MAX_FRAME_BYTES).unwrap() / 258 + 1);
    let refused = build(dir.path(), &wrap(&zeros, b""), b"", 1 << 20);
    assert!(matches!(refused, Err(BuildError::NotLazy { .. })), "{refused:?}");
    // Empty members without end.
    let empty = gzip_member(b"", 6);
    let many = empty.repeat((33 << 20) / empty.len());
    let refused = build(dir.path(), &many, b"", 1 << 20);
    assert!(matches!(refused, Err(BuildError::NotLazy { .. })), "{refused:?}");
}

#[test]
fn one_large_block_is_one_frame() {
    let matches = 12_000;
    let unpacked = vec![0; 1 + 258 * matches];
    let packed = wrap(&one_block(matches), &unpacked);
    assert_eq!(proven(&packed, &unpacked, Coding::Gzip, 999), (1, 0));
}

#[test]
fn bytes_that_are_not_the_image_s_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let unpacked = mixed(7, 1 << 20);
    let packed = gzip_member(&unpacked, 6);
    let other = mixed(8, 1 << 20);
    assert!(matches!(build(dir.path(), &packed, &other, 1 << 20), Err(BuildError::DiffId { .. })));
    let blob = penstock_blob::Blob { digest: penstock_blob::Digest::of(&other), size_bytes: packed.len() as u64 };
    let begin = |blob| super::build::Builder::create(&dir.path().join("x"), blob, penstock_blob::Digest::of(&unpacked));
    let mut builder = begin(blob).unwrap();
    builder.push(&packed).unwrap();
    assert!(matches!(builder.push(b"x"), Err(BuildError::Size { .. })), "more bytes");
    let mut builder = begin(blob).unwrap();
    builder.push(&packed[1..]).unwrap_err();
    let mut builder = begin(blob).unwrap();
    builder.push(&packed[..packed.len() - 1]).unwrap();
    assert!(matches!(builder.finish(), Err(BuildError::Size { .. })), "fewer bytes");
    let mut builder = begin(blob).unwrap();
    builder.push(&packed).unwrap();
    assert!(matches!(builder.finish(), Err(BuildError::Digest { .. })), "other bytes");
}

#[test]
fn a_layer_that_ends_too_early_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    let unpacked = mixed(9, 1 << 18);
    for packed in [gzip_member(&unpacked, 6), zstd::bulk::compress(&unpacked, 3).unwrap()] {
        for cut in [packed.len() / 2, packed.len() - 1] {
            let refused = build(dir.path(), &packed[..cut], &unpacked, 1 << 20);
            assert!(matches!(refused, Err(BuildError::Broken { .. })), "{refused:?}");
        }
        let mut wrong = packed.clone();
        wrong[packed.len() / 3..][..64].fill(0xff);
        assert!(build(dir.path(), &wrong, &unpacked, 1 << 20).is_err());
    }
}

#[test]
fn the_same_layer_has_the_same_index() {
    let unpacked = mixed(10, 3 << 20);
    let packed = gzip_member(&unpacked, 6);
    let dir = tempfile::tempdir().unwrap();
    let made = [1 << 20, 77_777].map(|piece| build(dir.path(), &packed, &unpacked, piece).unwrap());
    assert_eq!(made[0], made[1]);
}

/// How bytes are packed in the property test.
fn pack(unpacked: &[u8], how: u8, part: usize) -> (Vec<u8>, Coding) {
    let members = |level| unpacked.chunks(part).flat_map(|part| gzip_member(part, level)).collect();
    let frames =
        |level| unpacked.chunks(part.min(8 << 20)).flat_map(|p| zstd::bulk::compress(p, level).unwrap()).collect();
    match how % 12 {
        level @ 0..=9 => (members(level), Coding::Gzip),
        10 => (frames(3), Coding::Zstd),
        _ => (unpacked.to_vec(), Coding::Plain),
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 24, ..Default::default() })]

    #[test]
    fn any_archive_packed_in_any_way_reads_back_through_its_index(
        files in proptest::collection::vec((any::<u64>(), 0..1_500_000_usize, 0..3), 0..4),
        how in any::<u8>(),
        part in prop_oneof![1000..50_000_usize, 500_000..9_000_000_usize],
        piece in prop_oneof![1..100_usize, 1000..2_000_000_usize],
    ) {
        let files: Vec<Vec<u8>> = files
            .iter()
            .map(|&(seed, len, kind)| match kind { 0 => text(seed, len), 1 => noise(seed, len), _ => vec![7; len] })
            .collect();
        let unpacked = archive(&files);
        let (packed, coding) = pack(&unpacked, how, part);
        let (frames, _) = proven(&packed, &unpacked, coding, piece);
        prop_assert!(frames >= 1);
        prop_assert!(frames <= unpacked.len() as u64 / TARGET_BYTES + 1);
    }
}
