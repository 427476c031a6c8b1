//! Frames: pieces of a layer that decode alone, and decoding one.

use penstock_blob::{ByteRange, Digest};

use zstd::stream::raw::Operation as _;

use crate::gzip;

/// Uncompressed bytes after which a frame ends, at the next place where one may begin. Measured (docs/formats/layer-index.md): windows cost
/// 0.7 % of the compressed layer, a cold read decodes about this much. Frames of half the size would cost twice as much index.
pub(crate) const TARGET_BYTES: u64 = 1 << 20;
/// Largest frame in uncompressed bytes. gzip never makes a block of more than 8.1 MiB; what needs more cannot be read lazily.
pub(crate) const MAX_FRAME_BYTES: u64 = 16 << 20;
/// Largest frame in compressed bytes: what decodes to so little has no business being read on demand.
pub(crate) const MAX_PACKED_BYTES: u64 = 32 << 20;
/// Largest window in bytes: deflate's (RFC 1951, section 2).
pub(crate) const WINDOW_BYTES: usize = 32 << 10;

/// Largest window of a Zstandard frame of which only a part is decoded, as a power of two: the largest that the tools of the format ask for.
/// Only as much of it is touched as is decoded.
const PART_WINDOW_LOG: u32 = 25;

/// How a layer's archive is packed. Told by its first bytes, whatever its media type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Coding {
    /// The archive as it is.
    Plain,
    /// gzip (RFC 1952), of one or more members.
    Gzip,
    /// Zstandard (RFC 8878), of one or more frames.
    Zstd,
}

impl Coding {
    /// First bytes that tell codings apart.
    pub(crate) const MAGIC_BYTES: usize = 4;

    /// The coding of what begins with these bytes: at least `MAGIC_BYTES` of them, or all there are.
    #[must_use]
    pub const fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame before the first one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// Where the decoder stands when a frame begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Which bit of the compressed layer comes next, counted from the lowest bit of byte 0. A whole byte except inside a gzip member.
    pub bit: u64,
    /// Inside a gzip member, between two of its blocks: a window is needed. Otherwise at its header.
    pub is_inside: bool,
}

impl Start {
    /// At a byte where the decoder needs to know nothing.
    #[must_use]
    pub const fn at(byte: u64) -> Self {
        Self { bit: byte * 8, is_inside: false }
    }
}

/// One frame of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Which bytes of the uncompressed layer it holds; at most 16 MiB.
    pub bytes: ByteRange,
    /// Where it begins.
    pub start: Start,
    /// The bytes of the compressed layer that it is decoded from; neighbours may share one. At most 32 MiB.
    pub packed: ByteRange,
    /// When it is only a part of what `packed` decodes to: how many decoded bytes come before it. What comes after it is nobody's. At most
    /// 16 MiB.
    pub part: Option<u32>,
    /// What its bytes are compared with.
    pub proof: Proof,
}

/// What is known of the bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// sha256 of the decoded bytes.
    Decoded(Digest),
    /// sha256 of the compressed bytes that it is decoded from. What they decode to beyond the frame is nobody's.
    Packed(Digest),
    /// Nothing: the format has no digests. The archive as a whole has one.
    None,
}

/// Why a frame could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The compressed bytes are no stream of this coding, or not one that fits the window.
    #[error("its compressed bytes cannot be decoded: {0}")]
    Broken(String),
    /// They decode to fewer or more bytes than the frame has.
    #[error("it decodes to {} than its {wanted} bytes", if *.is_longer { "more" } else { "fewer" })]
    Length {
        /// How many it has.
        wanted: u64,
        /// Whether there are more.
        is_longer: bool,
    },
    /// The decoded bytes are not those of the layer.
    #[error("its bytes have digest {actual}, not {expected}")]
    Digest {
        /// By the index.
        expected: Digest,
        /// Of what was decoded.
        actual: Digest,
    },
}

/// The bytes of `frame`, verified. `packed` are the bytes `frame.packed` of the compressed layer; `window` is what came before the frame
/// in its gzip member, as far as the frame refers to it. Allocates what the frame is said to hold, whatever `packed` would decode to.
///
/// # Errors
/// [`FrameError`].
pub(crate) fn decode(coding: Coding, frame: &Frame, packed: &[u8], window: &[u8]) -> Result<Vec<u8>, FrameError> {
    if let Proof::Packed(expected) = frame.proof {
        compare(expected, packed)?;
    }
    let wanted = frame.bytes.len();
    let before = frame.part.map_or(0, |before| u64::from(before).min(MAX_FRAME_BYTES));
    let len = usize::try_from(before + wanted.min(MAX_FRAME_BYTES)).unwrap_or(usize::MAX);
    let mut bytes = match (coding, frame.part) {
        (Coding::Plain, _) => packed.to_vec(),
        (Coding::Gzip, _) => gzip::decode(frame.start, packed, window, len)?,
        (Coding::Zstd, None) => unzstd(packed, len)?,
        (Coding::Zstd, Some(_)) => unzstd_some(packed, len)?,
    };
    if frame.part.is_some() || matches!(frame.proof, Proof::Packed(_)) {
        bytes.truncate(len);
        bytes.drain(..usize::try_from(before).unwrap_or(usize::MAX).min(bytes.len()));
    }
    if bytes.len() as u64 != wanted {
        return Err(FrameError::Length { wanted, is_longer: bytes.len() as u64 > wanted });
    }
    if let Proof::Decoded(expected) = frame.proof {
        compare(expected, &bytes)?;
    }
    Ok(bytes)
}

pub(crate) fn compare(expected: Digest, bytes: &[u8]) -> Result<(), FrameError> {
    let actual = Digest::of(bytes);
    if actual == expected { Ok(()) } else { Err(FrameError::Digest { expected, actual }) }
}

/// Decodes the first `len` bytes of Zstandard frames, which may hold more.
fn unzstd_some(packed: &[u8], len: usize) -> Result<Vec<u8>, FrameError> {
    let broken = |error: std::io::Error| FrameError::Broken(error.to_string());
    let mut decoder = zstd::stream::raw::Decoder::new().map_err(broken)?;
    decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(PART_WINDOW_LOG)).map_err(broken)?;
    let mut bytes = vec![0; len];
    let (mut taken, mut done) = (0, 0);
    while done < len && taken < packed.len() {
        let status = decoder.run_on_buffers(&packed[taken..], &mut bytes[done..]).map_err(broken)?;
        (taken, done) = (taken + status.bytes_read, done + status.bytes_written);
        if status.bytes_read == 0 && status.bytes_written == 0 {
            break;
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

/// Decodes Zstandard frames to at most `len` bytes.
fn unzstd(packed: &[u8], len: usize) -> Result<Vec<u8>, FrameError> {
    let broken = |error: std::io::Error| FrameError::Broken(error.to_string());
    let mut decoder = zstd::bulk::Decompressor::new().map_err(broken)?;
    let mut bytes = Vec::with_capacity(len);
    decoder.decompress_to_buffer(packed, &mut bytes).map_err(broken)?;
    Ok(bytes)
}
