//! ZFile: a file cut into blocks of one size, each compressed alone, with a table of their stored lengths at the end.
//!
//! This module reads the header and decodes a block; `frames` turns the jump table into one that can be looked up. In
//! Penstock's words a compressed block is a *frame*. Format: docs/formats/overlaybd.md, section 2.

use std::fmt;

use crate::{
    crc,
    units::{field, u32_at, u64_at},
};

/// First bytes of a header and of a trailer.
pub const MAGIC: [u8; 24] = *b"ZFile\0\x01\0tuji.yyf@Alibaba";
/// Bytes of a header and of a trailer.
pub const HEADER_BYTES: u64 = 512;
/// Smallest and largest frame before compression, in bytes (what upstream's tools write).
pub const BLOCK_BYTES: std::ops::RangeInclusive<u32> = (4 << 10)..=(64 << 10);
/// Most bytes that a stored frame may have, its check included. Upstream refuses more than 64 KiB; an incompressible 64
/// KiB block needs up to 65 798 (lz4). Twice the largest block leaves room for any encoder and bounds what one frame
/// costs.
pub const MAX_STORED_BYTES: u32 = 128 << 10;
/// Bytes of the check behind a stored frame.
pub(crate) const CRC_BYTES: u32 = 4;

pub(crate) const FLAG_HEADER: u64 = 1;
pub(crate) const FLAG_DATA: u64 = 1 << 1;
pub(crate) const FLAG_SEALED: u64 = 1 << 2;
pub(crate) const FLAG_OVERWRITTEN: u64 = 1 << 3;
pub(crate) const FLAG_DIGEST: u64 = 1 << 4;

/// How frames are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// An lz4 block without lz4's frame format.
    Lz4,
    /// One zstd frame.
    Zstd,
}

impl Codec {
    /// The number in the header's `algo` field.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    /// The codec of an `algo` field, if it is one that is known.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// What is needed to decode a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// How it is compressed.
    pub codec: Codec,
    /// Whether a check follows the stored bytes.
    pub crc: bool,
    /// Bytes of every frame but the last, once decoded.
    pub block_bytes: u32,
}

impl Format {
    /// Fewest bytes of a stored frame: something, and its check.
    #[must_use]
    pub const fn min_stored_bytes(self) -> u32 {
        if self.crc { CRC_BYTES + 1 } else { 1 }
    }
}

/// The fields of a header or trailer that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How frames are stored.
    pub format: Format,
    /// Flag bits as stored.
    pub flags: u64,
    /// Where the jump table starts, counted from the header.
    pub index_offset: u64,
    /// Entries of the jump table: frames.
    pub frames: u64,
    /// Bytes of all frames once decoded.
    pub original_bytes: u64,
    /// Check of the jump table's bytes.
    pub index_crc: u32,
    /// Bytes of the dictionary between header and first frame (never produced, skipped).
    pub dict_bytes: u32,
}

/// Why a ZFile header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The magic number is missing.
    #[error("no ZFile magic number")]
    Magic,
    /// The digest field does not match the header's bytes.
    #[error("the header's checksum is {found:08x}, its bytes give {computed:08x}")]
    Digest {
        /// As stored.
        found: u32,
        /// As computed.
        computed: u32,
    },
    /// The trailer does not have the flags of a finished file.
    #[error("the trailer's flags {flags:#x} are not those of a sealed data file; was the file closed?")]
    Unsealed {
        /// As stored.
        flags: u64,
    },
    /// A compression that is not supported.
    #[error("compression algorithm {0} is not supported; lz4 (1) and zstd (2) are")]
    Codec(u8),
    /// A dictionary is used.
    #[error("frames compressed with a dictionary are not supported")]
    Dictionary,
    /// The block size is not a power of two from 4 KiB to 64 KiB.
    #[error("block size {0} is not a power of two from 4096 to 65536")]
    BlockSize(u32),
    /// The parts do not fit into the file, or disagree with each other.
    #[error(
        "{frames} frames of {original_bytes} bytes with a jump table at {index_offset} do not fit in {file_bytes} bytes"
    )]
    Layout {
        /// Entries of the jump table.
        frames: u64,
        /// Decoded size.
        original_bytes: u64,
        /// Start of the jump table.
        index_offset: u64,
        /// Size of the ZFile.
        file_bytes: u64,
    },
}

impl Header {
    /// Reads a header or trailer and checks what can be checked without the file.
    ///
    /// # Errors
    /// Any [`HeaderError`] but `Layout` and `Unsealed`.
    pub fn parse(block: &[u8; 512]) -> Result<Self, HeaderError> {
        if !block.starts_with(&MAGIC) {
            return Err(HeaderError::Magic);
        }
        let flags = u64_at(block, 32);
        let found = u32_at(block, 28);
        let computed = digest(block);
        if flags & FLAG_DIGEST != 0 && found != computed {
            return Err(HeaderError::Digest { found, computed });
        }
        let codec = Codec::from_number(block[76]).ok_or(HeaderError::Codec(block[76]))?;
        let block_bytes = u32_at(block, 72);
        if !block_bytes.is_power_of_two() || !BLOCK_BYTES.contains(&block_bytes) {
            return Err(HeaderError::BlockSize(block_bytes));
        }
        if block[78] != 0 {
            return Err(HeaderError::Dictionary);
        }
        Ok(Self {
            format: Format { codec, crc: block[88] != 0, block_bytes },
            flags,
            index_offset: u64_at(block, 40),
            frames: u64_at(block, 48),
            original_bytes: u64_at(block, 56),
            index_crc: u32_at(block, 64),
            dict_bytes: u32_at(block, 84),
        })
    }

    /// Whether this header itself holds the index fields; if not, the trailer does.
    #[must_use]
    pub const fn is_truth(&self) -> bool {
        self.flags & FLAG_OVERWRITTEN != 0
    }

    /// Whether the jump table's check is to be believed.
    #[must_use]
    pub const fn has_index_crc(&self) -> bool {
        self.flags & FLAG_DIGEST != 0
    }

    /// Where the first frame starts, counted from the header.
    #[must_use]
    pub fn data_offset(&self) -> u64 {
        HEADER_BYTES + u64::from(self.dict_bytes)
    }

    /// Refuses a trailer of a file that was not finished.
    ///
    /// # Errors
    /// [`HeaderError::Unsealed`].
    pub const fn check_sealed(&self) -> Result<(), HeaderError> {
        let wanted = FLAG_DATA | FLAG_SEALED;
        if self.flags & (wanted | FLAG_HEADER) == wanted {
            Ok(())
        } else {
            Err(HeaderError::Unsealed { flags: self.flags })
        }
    }

    /// Checks the counts against each other and against the file, so that nothing sized by them is larger than the
    /// file: frames of at least a byte before the jump table, the table before the trailer, as many frames as the
    /// decoded size needs.
    ///
    /// # Errors
    /// [`HeaderError::Layout`].
    pub fn check_layout(&self, file_bytes: u64) -> Result<(), HeaderError> {
        let fits = || {
            let table_end = self.frames.checked_mul(4)?.checked_add(self.index_offset)?.checked_add(HEADER_BYTES)?;
            let least_data = self.frames.checked_mul(u64::from(self.format.min_stored_bytes()))?;
            let frames = self.original_bytes.div_ceil(u64::from(self.format.block_bytes));
            let data_end = self.data_offset().checked_add(least_data)?;
            Some(table_end <= file_bytes && data_end <= self.index_offset && frames == self.frames)
        };
        if fits() == Some(true) {
            return Ok(());
        }
        let Self { frames, original_bytes, index_offset, .. } = *self;
        Err(HeaderError::Layout { frames, original_bytes, index_offset, file_bytes })
    }
}

/// The digest field's value: the check of all 512 bytes with the field itself zero.
#[must_use]
pub fn digest(block: &[u8; 512]) -> u32 {
    crc::raw(crc::raw(crc::raw(0, &block[..28]), &[0; 4]), &block[32..])
}

/// The stored check behind a frame, and whether it is right.
///
/// # Errors
/// Says what is wrong, for a [`crate::StepError::Check`].
pub(crate) fn check_frame(stored: &[u8]) -> Result<&[u8], &'static str> {
    let Some((frame, check)) = stored.split_last_chunk::<4>() else {
        return Err("the frame is shorter than its check");
    };
    if crc::raw(crc::BLOCK_SEED, frame) == u32_at(&field::<4>(check, 0), 0) {
        Ok(frame)
    } else {
        Err("the frame's CRC-32C does not match its bytes")
    }
}

/// What zstd's context for decoding takes, as `ZSTD_sizeof_DCtx` of 1.5.7 says, rounded up.
const ZSTD_CONTEXT_BYTES: u64 = 160 << 10;

/// Decodes frames; keeps the zstd context between them.
#[derive(Default)]
pub(crate) struct Decoder {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decoder {
    /// Bytes of its context.
    pub(crate) const fn bytes(&self) -> u64 {
        if self.zstd.is_some() { ZSTD_CONTEXT_BYTES } else { 0 }
    }

    /// Decodes `stored` (check included, if the format has one) into all of `out`.
    ///
    /// # Errors
    /// Says what is wrong, for a [`crate::StepError::Check`].
    pub(crate) fn decode(&mut self, format: Format, stored: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
        let frame = if format.crc { check_frame(stored)? } else { stored };
        let decoded =
            match format.codec {
                Codec::Lz4 => lz4_flex::block::decompress_into(frame, out)
                    .map_err(|_| "the frame is not valid lz4 of its size")?,
                Codec::Zstd => {
                    let zstd = match &mut self.zstd {
                        Some(zstd) => zstd,
                        none => none
                            .insert(zstd::bulk::Decompressor::new().map_err(|_| "zstd has no memory for a context")?),
                    };
                    zstd.decompress_to_buffer(frame, out).map_err(|_| "the frame is not valid zstd of its size")?
                }
            };
        if decoded == out.len() { Ok(()) } else { Err("the frame decodes to fewer bytes than it should") }
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").field("zstd", &self.zstd.is_some()).finish()
    }
}

#[cfg(test)]
mod tests;
