//! Frames: pieces of a layer that decode alone, and decoding one.

use penstock_blob::{ByteRange, Digest};

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
    /// sha256 of its decoded bytes.
    pub digest: Digest,
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
    let wanted = frame.bytes.len();
    let len = usize::try_from(wanted.min(MAX_FRAME_BYTES)).unwrap_or(usize::MAX);
    let bytes = match coding {
        Coding::Plain => packed.to_vec(),
        Coding::Gzip => gzip::decode(frame.start, packed, window, len)?,
        Coding::Zstd => unzstd(packed, len)?,
    };
    if bytes.len() as u64 != wanted {
        return Err(FrameError::Length { wanted, is_longer: bytes.len() as u64 > wanted });
    }
    let actual = Digest::of(&bytes);
    if actual != frame.digest {
        return Err(FrameError::Digest { expected: frame.digest, actual });
    }
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
