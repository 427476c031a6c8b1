//! LSMT: the layer file, raw sectors and a sorted index of the extents that they fill.
//!
//! Pure. The trailer is the truth; every index entry goes through an [`IndexCheck`], which holds one number, so an
//! index of any length is read in pieces. Format: docs/formats/overlaybd.md, section 3.

use crate::units::{SECTOR_BYTES, field, u32_at, u64_at};

/// First bytes of a header and of a trailer.
pub const MAGIC: [u8; 24] = [
    b'L', b'S', b'M', b'T', 0, 1, 2, 0, 0x65, 0x7e, 0x63, 0xd2, 0x94, 0x44, 0x08, 0x4c, 0xa2, 0xd2, 0xc8, 0xec, 0x4f,
    0xcf, 0xae, 0x8a,
];
/// Bytes of a header and of a trailer.
pub const HEADER_BYTES: u64 = 4096;
/// Bytes of an index entry.
pub const ENTRY_BYTES: usize = 16;
/// Longest extent that an entry can describe, in sectors.
pub const MAX_EXTENT_SECTORS: u32 = (1 << 14) - 1;
/// Largest device, in bytes: sector numbers have 50 bits, and the last one marks padding.
pub const MAX_DEVICE_BYTES: u64 = ((1 << 50) - 1) * SECTOR_BYTES;
/// Most index entries of one layer, padding included. Upstream refuses 1 000 000 since 2026-08 and read more before;
/// nothing is kept per entry here, so the bound only keeps the map file (16 bytes per extent) within 256 MiB.
pub const MAX_LAYER_ENTRIES: u64 = 1 << 24;

const OFFSET_BITS: u32 = 50;
const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;
const MOFFSET_MASK: u64 = (1 << 55) - 1;
const ZEROED_BIT: u64 = 1 << 55;
const TAG_SHIFT: u32 = 56;

pub(crate) const FLAG_HEADER: u32 = 1;
pub(crate) const FLAG_DATA: u32 = 1 << 1;
pub(crate) const FLAG_SEALED: u32 = 1 << 2;

/// Sectors of a header: no extent is stored before this one.
pub(crate) const FIRST_DATA_SECTOR: u64 = HEADER_BYTES / SECTOR_BYTES;

/// Why a layer file is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LsmtError {
    /// The file is too short for a header and a trailer.
    #[error("{0} bytes are too few for a layer file")]
    Short(u64),
    /// The header lacks the magic number or the flags of a data file.
    #[error("this is not the header of a layer's data file")]
    Header,
    /// The trailer lacks the magic number.
    #[error("there is no trailer at the end of the file: the layer was not committed or sealed")]
    NoTrailer,
    /// The trailer does not have the flags of a sealed data file.
    #[error("the trailer's flags {0:#x} are not those of a sealed layer; commit or seal it first")]
    Unsealed(u32),
    /// The index does not lie between the header and the trailer.
    #[error("an index of {entries} entries at byte {offset} does not fit in a file of {file_bytes} bytes")]
    Index {
        /// Where it starts.
        offset: u64,
        /// How many entries it has.
        entries: u64,
        /// Size of the layer file.
        file_bytes: u64,
    },
    /// The index has more entries than are supported.
    #[error("the index has {entries} entries, more than the {MAX_LAYER_ENTRIES} supported")]
    TooManyEntries {
        /// How many.
        entries: u64,
    },
    /// The device size is not a whole number of sectors or beyond what sector numbers reach.
    #[error("a device of {0} bytes is not a whole number of 512-byte sectors below 2^59")]
    DeviceSize(u64),
    /// An entry is empty.
    #[error("index entry {nth} is empty")]
    EmptyEntry {
        /// Which, counted from 0.
        nth: u64,
    },
    /// An entry starts before the one before it ends.
    #[error("index entry {nth} starts at sector {start}, before the entry before it ends ({previous_end})")]
    Order {
        /// Which, counted from 0.
        nth: u64,
        /// Its first sector.
        start: u64,
        /// Where the last one ended.
        previous_end: u64,
    },
    /// An entry of TurboOCI metadata is of neither of its two kinds, or points beyond what can be counted.
    #[error(
        "index entry {nth} has tag {tag} and points at sectors {moffset}+{sectors}; tags are 0 and 1, sectors below 2^55"
    )]
    Outside {
        /// Which, counted from 0.
        nth: u64,
        /// Its tag.
        tag: u8,
        /// First sector in the archive.
        moffset: u64,
        /// How many.
        sectors: u32,
    },
    /// An entry points outside the data section.
    #[error("index entry {nth} points at sectors {moffset}+{sectors}, outside the data (8 to {data_end})")]
    Data {
        /// Which, counted from 0.
        nth: u64,
        /// First sector in the file.
        moffset: u64,
        /// How many.
        sectors: u32,
        /// First sector that is not data.
        data_end: u64,
    },
}

/// What the trailer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Device size in bytes; 0 takes it over from a lower layer.
    pub device_bytes: u64,
    /// Where the index starts in the layer file.
    pub index_offset: u64,
    /// Entries of the index, padding included.
    pub entries: u64,
}

impl Trailer {
    /// Bytes of the index.
    #[must_use]
    pub const fn index_bytes(&self) -> u64 {
        self.entries * ENTRY_BYTES as u64
    }
}

/// Checks the first 390 bytes or more of a layer file.
///
/// # Errors
/// [`LsmtError::Header`].
pub fn check_header(block: &[u8]) -> Result<(), LsmtError> {
    let wanted = FLAG_HEADER | FLAG_DATA;
    let right = block.len() >= 32 && block.starts_with(&MAGIC) && u32_at(block, 28) & wanted == wanted;
    right.then_some(()).ok_or(LsmtError::Header)
}

/// Reads the last 4096 bytes (the first 56 of them suffice) of a layer file of `file_bytes`.
///
/// # Errors
/// [`LsmtError`], for anything about the file as a whole.
pub fn parse_trailer(block: &[u8], file_bytes: u64) -> Result<Trailer, LsmtError> {
    if file_bytes < 2 * HEADER_BYTES || block.len() < 56 {
        return Err(LsmtError::Short(file_bytes));
    }
    if !block.starts_with(&MAGIC) {
        return Err(LsmtError::NoTrailer);
    }
    let flags = u32_at(block, 28);
    if flags & (FLAG_HEADER | FLAG_DATA | FLAG_SEALED) != FLAG_DATA | FLAG_SEALED {
        return Err(LsmtError::Unsealed(flags));
    }
    let trailer =
        Trailer { index_offset: u64_at(block, 32), entries: u64_at(block, 40), device_bytes: u64_at(block, 48) };
    let Trailer { device_bytes, index_offset, entries } = trailer;
    if entries > MAX_LAYER_ENTRIES {
        return Err(LsmtError::TooManyEntries { entries });
    }
    let end = trailer.index_bytes().checked_add(index_offset);
    if index_offset < HEADER_BYTES || end.is_none_or(|end| end > file_bytes - HEADER_BYTES) {
        return Err(LsmtError::Index { offset: index_offset, entries, file_bytes });
    }
    if !device_bytes.is_multiple_of(SECTOR_BYTES) || device_bytes > MAX_DEVICE_BYTES {
        return Err(LsmtError::DeviceSize(device_bytes));
    }
    Ok(trailer)
}

/// One entry of an index: `sectors` of the device from `start` on are the file's sectors from `moffset` on, or zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// First sector on the device, below 2^50.
    pub start: u64,
    /// How many, 1 to 16383.
    pub sectors: u32,
    /// First sector in the layer file, below 2^55.
    pub moffset: u64,
    /// Whether the range reads as zeros, whatever `moffset` says.
    pub zeroed: bool,
    /// The layer's number in a merged map. In a layer file 0, and in TurboOCI metadata 1 for what lies in the original archive.
    pub tag: u8,
}

impl Entry {
    /// First sector behind it on the device.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start + self.sectors as u64
    }

    /// As stored.
    #[must_use]
    pub fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let low = self.start & OFFSET_MASK | u64::from(self.sectors) << OFFSET_BITS;
        let zeroed = if self.zeroed { ZEROED_BIT } else { 0 };
        let high = self.moffset & MOFFSET_MASK | zeroed | u64::from(self.tag) << TAG_SHIFT;
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&high.to_le_bytes());
        bytes
    }

    /// From its 16 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; ENTRY_BYTES]) -> Self {
        let (low, high) = (u64_at(bytes, 0), u64_at(bytes, 8));
        let [.., tag] = high.to_le_bytes();
        Self {
            start: low & OFFSET_MASK,
            sectors: u32::from_le_bytes(field(&(low >> OFFSET_BITS).to_le_bytes(), 0)),
            moffset: high & MOFFSET_MASK,
            zeroed: high & ZEROED_BIT != 0,
            tag,
        }
    }

    /// What fills an index up to a multiple of 4 KiB.
    pub(crate) const PADDING: Self = Self { start: OFFSET_MASK, sectors: 0, moffset: 0, zeroed: false, tag: 0 };
}

/// Checks the entries of one index, in order, with the rules that upstream's reader enforces.
#[derive(Debug, Clone)]
pub struct IndexCheck {
    nth: u64,
    previous_end: u64,
    data_end: u64,
    /// Whether entries may point into another file.
    outside: bool,
}

impl IndexCheck {
    /// Nothing seen yet of the index that `trailer` describes.
    #[must_use]
    pub const fn new(trailer: &Trailer) -> Self {
        Self { nth: 0, previous_end: 0, data_end: trailer.index_offset / SECTOR_BYTES, outside: false }
    }

    /// As [`IndexCheck::new`], of TurboOCI metadata: entries with tag 1 point into the original archive, of which nothing is known here. What they
    /// point at beyond its end reads as zeros.
    #[must_use]
    pub const fn with_archive(trailer: &Trailer) -> Self {
        Self { outside: true, ..Self::new(trailer) }
    }

    /// The next entry, `None` for padding. Its tag is cleared, unless there is an archive: a layer file's tags mean nothing.
    ///
    /// # Errors
    /// [`LsmtError`], for what is wrong with this entry.
    pub fn admit(&mut self, bytes: &[u8; ENTRY_BYTES]) -> Result<Option<Entry>, LsmtError> {
        let nth = self.nth;
        self.nth += 1;
        let mut entry = Entry::from_bytes(bytes);
        if !self.outside {
            entry.tag = 0;
        }
        if entry.start == OFFSET_MASK {
            return Ok(None);
        }
        let Entry { start, sectors, moffset, zeroed, tag } = entry;
        if sectors == 0 {
            return Err(LsmtError::EmptyEntry { nth });
        }
        if start < self.previous_end {
            return Err(LsmtError::Order { nth, start, previous_end: self.previous_end });
        }
        let end = if zeroed { moffset } else { moffset + u64::from(sectors) };
        if tag > 1 || tag == 1 && end > MOFFSET_MASK {
            return Err(LsmtError::Outside { nth, tag, moffset, sectors });
        }
        if tag == 0 && (moffset < FIRST_DATA_SECTOR || end > self.data_end) {
            return Err(LsmtError::Data { nth, moffset, sectors, data_end: self.data_end });
        }
        self.previous_end = entry.end();
        Ok(Some(entry))
    }
}

#[cfg(test)]
mod tests;
