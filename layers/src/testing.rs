//! What the tests of this crate share: archives, and the ways in which they are packed.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use penstock_blob::{Blob, Digest};

use crate::{
    frame::{self, Proof},
    index::{
        build::{BuildError, Builder, Built},
        read::Index,
    },
    zstandard::pieces::Pieces,
};

/// Bytes that do not repeat.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Bytes like those of text: words that come again, near and far.
pub(crate) fn text(seed: u64, len: usize) -> Vec<u8> {
    let words = noise(seed, 4096 + len.min(64));
    let choices = noise(seed ^ 0xabcd, len / 4 + 16);
    let mut bytes = Vec::with_capacity(len + 16);
    for pair in choices.chunks_exact(2) {
        let at = usize::from(pair[0]) << 4;
        bytes.extend_from_slice(&words[at..at + 3 + usize::from(pair[1] % 13)]);
        if bytes.len() >= len {
            break;
        }
    }
    bytes.resize(len, b'.');
    bytes
}

/// A tar archive with files of these contents.
pub(crate) fn archive(files: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (nth, file) in files.iter().enumerate() {
        let mut header = [0_u8; 512];
        let name = format!("dir/file-{nth}");
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0001750\0");
        header[116..124].copy_from_slice(b"0001750\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", file.len()).as_bytes());
        header[136..148].copy_from_slice(b"14712345670\0");
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(file);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// An archive of about so many bytes, of which some compress well, some not, and some vanish.
pub(crate) fn mixed(seed: u64, len: usize) -> Vec<u8> {
    archive(&[text(seed, len / 2), noise(seed, len / 4), Vec::new(), vec![0; len / 8], text(seed + 1, len / 8)])
}

/// What a program makes of bytes; `None` when there is no such program.
pub(crate) fn piped(program: &str, args: &[&str], bytes: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(bytes).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program} {args:?} failed");
    Some(output.stdout)
}

/// One Zstandard frame, as most tools write it: of a size that is not said, with a checksum.
pub(crate) fn one_frame(bytes: &[u8], level: i32, window_log: Option<u32>) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level).unwrap();
    encoder.include_checksum(true).unwrap();
    window_log.map_or(Ok(()), |log| encoder.window_log(log)).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// One member of gzip around a deflate stream.
pub(crate) fn gzip_member(bytes: &[u8], level: u8) -> Vec<u8> {
    wrap(&miniz_oxide::deflate::compress_to_vec(bytes, level), bytes)
}

/// A deflate stream as a member, with every optional field.
pub(crate) fn wrap(deflate: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut member = b"\x1f\x8b\x08\x1e\x01\x02\x03\x04\x00\x03\x05\x00extraname\0comment\0cc".to_vec();
    member.extend_from_slice(deflate);
    member.extend_from_slice(&zlib_rs::crc32::crc32(0, bytes).to_le_bytes());
    member.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_le_bytes());
    member
}

/// One member of gzip in which a deflate block ends after every `part` bytes.
pub(crate) fn gzip_blocks(bytes: &[u8], part: usize) -> Vec<u8> {
    let mut deflate = zlib_rs::Deflate::new(9, false, 15);
    let (mut stream, mut room) = (Vec::new(), vec![0; bytes.len() + 4096]);
    let parts = bytes.len().div_ceil(part);
    for (nth, part) in bytes.chunks(part).enumerate() {
        let flush = if nth + 1 == parts { zlib_rs::DeflateFlush::Finish } else { zlib_rs::DeflateFlush::SyncFlush };
        let had = deflate.total_out();
        deflate.compress(part, &mut room, flush).unwrap();
        stream.extend_from_slice(&room[..usize::try_from(deflate.total_out() - had).unwrap()]);
    }
    wrap(&stream, bytes)
}

/// A deflate stream of one block with fixed codes: so many zeros, 1 + 258 for each match.
pub(crate) fn one_block(matches: usize) -> Vec<u8> {
    let mut bits: Vec<bool> = Vec::with_capacity(matches * 13 + 20);
    // A block's three bits come lowest first, codes highest first: the last block, type 1; literal 0; length 258 at distance 1.
    bits.extend([true, true, false]);
    let mut code = |value: u32, len: u32| bits.extend((0..len).rev().map(|bit| value >> bit & 1 == 1));
    code(0b0011_0000, 8);
    for _ in 0..matches {
        code(0b1100_0101, 8);
        code(0, 5);
    }
    code(0, 7);
    bits.chunks(8).map(|byte| byte.iter().enumerate().map(|(nth, &bit)| u8::from(bit) << nth).sum()).collect()
}

/// The index of packed bytes, which are pushed in pieces of `piece` bytes.
pub(crate) fn build(dir: &Path, packed: &[u8], unpacked: &[u8], piece: usize) -> Result<Built, BuildError> {
    let blob = Blob { digest: Digest::of(packed), size_bytes: packed.len() as u64 };
    let mut builder = Builder::create(&dir.join("index"), blob, Digest::of(unpacked))?;
    for piece in packed.chunks(piece) {
        builder.push(piece)?;
    }
    builder.finish()
}

/// The index that [`build`] made last.
pub(crate) fn open(dir: &Path) -> Index {
    Index::open(std::fs::File::open(dir.join("index")).unwrap()).unwrap()
}

/// The archive, as its frames decode: each from its own compressed bytes alone, or after those before it in its run.
pub(crate) fn unpack(index: &Index, packed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let frames = usize::try_from(index.layer().frames).unwrap();
    let mut pieces = Pieces::new().unwrap();
    for (nth, placed) in index.frames(0..frames).unwrap().into_iter().enumerate() {
        let range = placed.frame.packed;
        let packed = &packed[usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()];
        let window = index.window(&placed).unwrap();
        assert_eq!(placed.frame.bytes.start(), bytes.len() as u64);
        if let Some(run) = index.run(nth) {
            assert_eq!(index.packed_of(nth), Some(range));
            if run.start == nth {
                pieces = Pieces::new().unwrap();
            }
            pieces.begin(usize::try_from(placed.frame.bytes.len()).unwrap());
            pieces.feed(packed).unwrap();
            let Proof::Decoded(digest) = placed.frame.proof else { panic!("a piece without a digest") };
            bytes.extend(pieces.finish(digest).unwrap());
            continue;
        }
        bytes.extend(frame::decode(index.layer().coding, &placed.frame, packed, &window).unwrap());
    }
    bytes
}
