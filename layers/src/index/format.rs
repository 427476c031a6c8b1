//! The fixed parts of a layer index: its header and the pages of its frame table. Pure. Format: docs/formats/layer-index.md.

use penstock_blob::{Blob, ByteRange, Digest};

use crate::frame::{Coding, Frame, MAX_FRAME_BYTES, MAX_PACKED_BYTES, Start};

/// Bytes of the header and of each page of the frame table.
pub(crate) const PAGE_BYTES: usize = 4096;
/// A page.
pub(crate) type Page = [u8; PAGE_BYTES];
/// Bytes of one record of the table.
pub(crate) const RECORD_BYTES: usize = 64;
/// Records of a page; what follows them is its checksum.
pub(crate) const PAGE_RECORDS: usize = (PAGE_BYTES - 4) / RECORD_BYTES;
/// Where the checksum of a page stands: CRC-32C of all bytes before it.
const CRC_AT: usize = PAGE_BYTES - 4;
const MAGIC: &[u8; 8] = b"PNSTKLYR";
const VERSION: u32 = 1;
/// Largest layer in bytes, compressed or not: what an index lists of a blob elsewhere in Penstock.
pub(crate) const MAX_LAYER_BYTES: u64 = 16 << 40;
/// Most frames of a layer: as many as [`MAX_LAYER_BYTES`] has of the size that frames are made of.
pub(crate) const MAX_FRAMES: u64 = MAX_LAYER_BYTES >> 20;
/// Most paths of a layer.
pub(crate) const MAX_ENTRIES: u64 = 1 << 24;
/// Largest window as it is stored, in bytes: zstd adds little to what it cannot compress.
pub(crate) const MAX_STORED_WINDOW_BYTES: u32 = 40 << 10;
/// The flag of a record whose frame begins inside a gzip member.
const INSIDE: u32 = 1;

/// Why a file is not a layer index, or a damaged one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// It does not begin as a layer index does.
    #[error("it is not a layer index")]
    Magic,
    /// A version that is not read here.
    #[error("it is a layer index of version {0}; only version {VERSION} is read: a newer Penstock made it")]
    Version(u32),
    /// A part does not have its checksum.
    #[error("its {0} is damaged; fetch or build it again")]
    Damaged(&'static str),
    /// A number makes no sense.
    #[error("its {0} makes no sense")]
    Nonsense(&'static str),
}

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// How the archive is packed.
    pub coding: Coding,
    /// The layer in the registry.
    pub packed: Blob,
    /// The archive: its diff ID and its size.
    pub unpacked: Blob,
    /// How many frames there are.
    pub frames: u64,
    /// How many entries there are.
    pub entries: u64,
}

/// The header of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) layer: Layer,
    /// Bytes of the windows, which follow the header.
    pub(crate) windows_bytes: u64,
    /// Bytes of the entries, which follow the frame table.
    pub(crate) entries_bytes: u64,
    /// Where the last frame ends in the compressed layer.
    pub(crate) packed_end: u64,
}

impl Header {
    /// Where the frame table starts.
    pub(crate) const fn table_at(&self) -> u64 {
        PAGE_BYTES as u64 + self.windows_bytes
    }

    /// How many pages the frame table has.
    pub(crate) const fn pages(&self) -> u64 {
        self.layer.frames.div_ceil(PAGE_RECORDS as u64)
    }

    /// Where the entries start.
    pub(crate) const fn entries_at(&self) -> u64 {
        self.table_at() + self.pages() * PAGE_BYTES as u64
    }

    /// Size of the whole index.
    pub(crate) const fn file_bytes(&self) -> u64 {
        self.entries_at() + self.entries_bytes
    }

    pub(crate) fn to_page(self) -> Page {
        let mut page = [0; PAGE_BYTES];
        page[..8].copy_from_slice(MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let coding: u32 = match self.layer.coding {
            Coding::Plain => 0,
            Coding::Gzip => 1,
            Coding::Zstd => 2,
        };
        page[12..16].copy_from_slice(&coding.to_le_bytes());
        page[16..48].copy_from_slice(self.layer.packed.digest.as_bytes());
        page[56..88].copy_from_slice(self.layer.unpacked.digest.as_bytes());
        let numbers = [
            (48, self.layer.packed.size_bytes),
            (88, self.layer.unpacked.size_bytes),
            (96, self.layer.frames),
            (104, self.layer.entries),
            (112, self.windows_bytes),
            (120, self.entries_bytes),
            (128, self.packed_end),
        ];
        numbers.iter().for_each(|(at, number)| page[*at..at + 8].copy_from_slice(&number.to_le_bytes()));
        seal(&mut page);
        page
    }

    pub(crate) fn parse(page: &Page) -> Result<Self, FormatError> {
        if !page.starts_with(MAGIC) {
            return Err(FormatError::Magic);
        }
        match u32_at(page, 8) {
            VERSION => {}
            other => return Err(FormatError::Version(other)),
        }
        check(page, "header")?;
        let coding = match u32_at(page, 12) {
            0 => Coding::Plain,
            1 => Coding::Gzip,
            2 => Coding::Zstd,
            _ => return Err(FormatError::Nonsense("coding")),
        };
        let blob =
            |digest: usize, size: usize| Blob { digest: digest_at(page, digest), size_bytes: u64_at(page, size) };
        let (packed, unpacked) = (blob(16, 48), blob(56, 88));
        let layer = Layer { coding, packed, unpacked, frames: u64_at(page, 96), entries: u64_at(page, 104) };
        let [windows_bytes, entries_bytes, packed_end] = [112, 120, 128].map(|at| u64_at(page, at));
        let bounds = [
            (packed.size_bytes, MAX_LAYER_BYTES, "layer's size"),
            (unpacked.size_bytes, MAX_LAYER_BYTES, "archive's size"),
            (layer.frames, MAX_FRAMES, "number of frames"),
            (layer.entries, MAX_ENTRIES, "number of entries"),
            (windows_bytes, layer.frames.saturating_mul(MAX_STORED_WINDOW_BYTES.into()), "windows' size"),
            (entries_bytes, MAX_LAYER_BYTES, "entries' size"),
            (packed_end, packed.size_bytes, "end of the last frame"),
        ];
        if let Some((.., what)) = bounds.iter().find(|(number, most, _)| number > most) {
            return Err(FormatError::Nonsense(what));
        }
        if (layer.frames == 0) != (unpacked.size_bytes == 0) || page[136..CRC_AT].iter().any(|&byte| byte != 0) {
            return Err(FormatError::Nonsense("header"));
        }
        Ok(Self { layer, windows_bytes, entries_bytes, packed_end })
    }
}

/// Where a window is stored, counted from the first one; without a length there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Window {
    pub(crate) at: u64,
    pub(crate) stored_bytes: u32,
}

/// One record of the frame table. Where the frame ends is where the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its first byte in the archive.
    pub(crate) at: u64,
    pub(crate) start: Start,
    pub(crate) window: Window,
    pub(crate) digest: Digest,
}

impl Record {
    pub(crate) fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&self.at.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.start.bit.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.window.at.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.window.stored_bytes.to_le_bytes());
        bytes[28..32].copy_from_slice(&(if self.start.is_inside { INSIDE } else { 0 }).to_le_bytes());
        bytes[32..].copy_from_slice(self.digest.as_bytes());
        bytes
    }

    fn parse(bytes: &[u8], header: &Header) -> Result<Self, FormatError> {
        let flags = u32_at(bytes, 28);
        let start = Start { bit: u64_at(bytes, 8), is_inside: flags == INSIDE };
        let window = Window { at: u64_at(bytes, 16), stored_bytes: u32_at(bytes, 24) };
        let window_end = window.at.checked_add(window.stored_bytes.into());
        let is_gzip = header.layer.coding == Coding::Gzip;
        let makes_sense = flags <= INSIDE
            && (is_gzip || !start.is_inside)
            && (start.is_inside || (start.bit.is_multiple_of(8) && window.stored_bytes == 0))
            && window.stored_bytes <= MAX_STORED_WINDOW_BYTES
            && window_end.is_some_and(|end| end <= header.windows_bytes);
        if !makes_sense {
            return Err(FormatError::Nonsense("frame table"));
        }
        Ok(Self { at: u64_at(bytes, 0), start, window, digest: digest_at(bytes, 32) })
    }

    /// The frame that begins here and ends where `next` begins, or with the layer.
    pub(crate) fn frame(&self, next: Option<&Self>, header: &Header) -> Result<Frame, FormatError> {
        let wrong = FormatError::Nonsense("frame table");
        let end = next.map_or(header.layer.unpacked.size_bytes, |next| next.at);
        let packed_end = next.map_or(header.packed_end, |next| next.start.bit.div_ceil(8));
        let bytes = ByteRange::new(self.at, end).map_err(|_| wrong.clone())?;
        let packed = ByteRange::new(self.start.bit / 8, packed_end).map_err(|_| wrong.clone())?;
        let is_exact = header.layer.coding != Coding::Plain || bytes == packed;
        let is_bounded = bytes.len() <= MAX_FRAME_BYTES && packed.len() <= MAX_PACKED_BYTES;
        if !is_bounded || !is_exact || packed.end() > header.packed_end {
            return Err(wrong);
        }
        Ok(Frame { bytes, start: self.start, packed, digest: self.digest })
    }
}

/// A page of the table with these records, at most [`PAGE_RECORDS`] of them.
pub(crate) fn table_page(records: &[u8]) -> Page {
    let mut page = [0; PAGE_BYTES];
    page[..records.len()].copy_from_slice(records);
    seal(&mut page);
    page
}

/// The records of page `number` of the table.
pub(crate) fn records(page: &Page, number: u64, header: &Header) -> Result<Vec<Record>, FormatError> {
    check(page, "frame table")?;
    let left = header.layer.frames.saturating_sub(number.saturating_mul(PAGE_RECORDS as u64));
    let count = usize::try_from(left).unwrap_or(usize::MAX).min(PAGE_RECORDS);
    page.chunks_exact(RECORD_BYTES).take(count).map(|bytes| Record::parse(bytes, header)).collect()
}

fn seal(page: &mut Page) {
    let crc = crc32c::crc32c(&page[..CRC_AT]);
    page[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
}

fn check(page: &Page, what: &'static str) -> Result<(), FormatError> {
    let is_right = u32_at(page, CRC_AT) == crc32c::crc32c(&page[..CRC_AT]);
    is_right.then_some(()).ok_or(FormatError::Damaged(what))
}

/// The number at `at`; the callers' offsets lie within their pages and records.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |number| u64::from_le_bytes(*number))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |number| u32::from_le_bytes(*number))
}

fn digest_at(bytes: &[u8], at: usize) -> Digest {
    Digest::from_bytes(bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default())
}
