//! The fixed parts of a layer index: its header and the pages of its frame table. Pure. Format: docs/formats/layer-index.md.

use penstock_blob::{Blob, ByteRange, Digest};

use crate::frame::{Coding, Frame, MAX_FRAME_BYTES, MAX_PACKED_BYTES, Proof, Start};

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
/// What Penstock makes of a layer.
const VERSION: u32 = 1;
/// What it makes of another format's table of contents: records have more flags.
const TRANSLATED: u32 = 2;
/// What Penstock makes of a Zstandard layer of which some decodes only from the beginning of a run of pieces: records have another flag.
const STREAMED: u32 = 3;
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
/// The flag of one whose frame is a part of what its compressed bytes decode to, and whose window's fields say which.
const PART: u32 = 1 << 1;
/// The flag of one whose digest is that of the compressed bytes.
const PACKED: u32 = 1 << 2;
/// The flag of one without a digest.
const UNPROVEN: u32 = 1 << 3;
/// The flag of one that a start reads, as whoever made the table says.
const FIRST: u32 = 1 << 4;
/// The flag of one that goes on where the one before ends: only the decoder of that one can decode it.
const CONTINUED: u32 = 1 << 5;

/// Why a file is not a layer index, or a damaged one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// It does not begin as a layer index does.
    #[error("it is not a layer index")]
    Magic,
    /// A version that is not read here.
    #[error("it is a layer index of version {0}; only {VERSION} to {STREAMED} are read: a newer Penstock made it")]
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
    /// Whether it is made of another format's table of contents, and not of the layer itself.
    pub is_translated: bool,
    /// Whether some of it decodes only from the beginning of a run of pieces on: it is not lazy, but read in order.
    pub is_streamed: bool,
    /// The first so many bytes of the archive are what a start of the image reads, as whoever made such a table says; 0: nobody says.
    pub first_bytes: u64,
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
        let version = match (self.layer.is_translated, self.layer.is_streamed) {
            (true, _) => TRANSLATED,
            (false, true) => STREAMED,
            (false, false) => VERSION,
        };
        page[8..12].copy_from_slice(&version.to_le_bytes());
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
            (136, self.layer.first_bytes),
        ];
        numbers.iter().for_each(|(at, number)| page[*at..at + 8].copy_from_slice(&number.to_le_bytes()));
        seal(&mut page);
        page
    }

    pub(crate) fn parse(page: &Page) -> Result<Self, FormatError> {
        if !page.starts_with(MAGIC) {
            return Err(FormatError::Magic);
        }
        let (is_translated, is_streamed) = match u32_at(page, 8) {
            VERSION => (false, false),
            TRANSLATED => (true, false),
            STREAMED => (false, true),
            other => return Err(FormatError::Version(other)),
        };
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
        let [frames, entries, first_bytes] = [96, 104, 136].map(|at| u64_at(page, at));
        let layer = Layer { coding, packed, unpacked, frames, entries, is_translated, is_streamed, first_bytes };
        let [windows_bytes, entries_bytes, packed_end] = [112, 120, 128].map(|at| u64_at(page, at));
        let bounds = [
            (packed.size_bytes, MAX_LAYER_BYTES, "layer's size"),
            (unpacked.size_bytes, MAX_LAYER_BYTES, "archive's size"),
            (layer.frames, MAX_FRAMES, "number of frames"),
            (layer.entries, MAX_ENTRIES, "number of entries"),
            (windows_bytes, layer.frames.saturating_mul(MAX_STORED_WINDOW_BYTES.into()), "windows' size"),
            (entries_bytes, MAX_LAYER_BYTES, "entries' size"),
            (packed_end, packed.size_bytes, "end of the last frame"),
            (first_bytes, if is_translated { unpacked.size_bytes } else { 0 }, "beginning"),
        ];
        if let Some((.., what)) = bounds.iter().find(|(number, most, _)| number > most) {
            return Err(FormatError::Nonsense(what));
        }
        if is_streamed && coding != Coding::Zstd {
            return Err(FormatError::Nonsense("coding"));
        }
        if (layer.frames == 0) != (unpacked.size_bytes == 0) || page[144..CRC_AT].iter().any(|&byte| byte != 0) {
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

/// How a frame comes out of its compressed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// It is all that is decoded up to where the next one begins, after this window.
    Whole(Window),
    /// It is what comes after so many decoded bytes of so many compressed ones.
    Part { before: u32, packed_bytes: u64 },
    /// It is what the decoder of the piece before makes next, up to where the next one begins.
    Continued,
}

impl Shape {
    /// The window, if there is one.
    pub(crate) fn window(self) -> Window {
        match self {
            Self::Whole(window) => window,
            Self::Part { .. } | Self::Continued => Window::default(),
        }
    }
}

/// One record of the frame table. Where the frame ends is where the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its first byte in the archive.
    pub(crate) at: u64,
    pub(crate) start: Start,
    pub(crate) shape: Shape,
    pub(crate) proof: Proof,
    /// Whether a start reads it, as whoever made the table says.
    pub(crate) is_first: bool,
}

impl Record {
    pub(crate) fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut flags = if self.start.is_inside { INSIDE } else { 0 };
        flags |= if self.is_first { FIRST } else { 0 };
        let (wide, narrow) = match self.shape {
            Shape::Whole(window) => (window.at, window.stored_bytes),
            Shape::Part { before, packed_bytes } => {
                flags |= PART;
                (packed_bytes, before)
            }
            Shape::Continued => {
                flags |= CONTINUED;
                (0, 0)
            }
        };
        let digest = match self.proof {
            Proof::Decoded(digest) => digest,
            Proof::Packed(digest) => {
                flags |= PACKED;
                digest
            }
            Proof::None => {
                flags |= UNPROVEN;
                Digest::from_bytes([0; 32])
            }
        };
        let mut bytes = [0; RECORD_BYTES];
        bytes[..8].copy_from_slice(&self.at.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.start.bit.to_le_bytes());
        bytes[16..24].copy_from_slice(&wide.to_le_bytes());
        bytes[24..28].copy_from_slice(&narrow.to_le_bytes());
        bytes[28..32].copy_from_slice(&flags.to_le_bytes());
        bytes[32..].copy_from_slice(digest.as_bytes());
        bytes
    }

    fn parse(bytes: &[u8], header: &Header) -> Result<Self, FormatError> {
        let wrong = FormatError::Nonsense("frame table");
        let flags = u32_at(bytes, 28);
        let known = match (header.layer.is_translated, header.layer.is_streamed) {
            (true, _) => INSIDE | PART | PACKED | UNPROVEN | FIRST,
            (false, true) => CONTINUED,
            (false, false) => INSIDE,
        };
        if flags & !known != 0 {
            return Err(wrong);
        }
        let start = Start { bit: u64_at(bytes, 8), is_inside: flags & INSIDE != 0 };
        let is_placed = if start.is_inside { header.layer.coding == Coding::Gzip } else { start.bit.is_multiple_of(8) };
        let (wide, narrow) = (u64_at(bytes, 16), u32_at(bytes, 24));
        let shape = if flags & CONTINUED != 0 {
            (wide == 0 && narrow == 0).then_some(Shape::Continued)
        } else if flags & PART != 0 {
            let is_bounded = wide <= MAX_PACKED_BYTES && u64::from(narrow) <= MAX_FRAME_BYTES;
            let makes_sense = is_bounded && !start.is_inside && header.layer.coding != Coding::Plain;
            makes_sense.then_some(Shape::Part { before: narrow, packed_bytes: wide })
        } else {
            let end = wide.checked_add(narrow.into()).filter(|&end| end <= header.windows_bytes);
            let makes_sense = narrow <= MAX_STORED_WINDOW_BYTES && (start.is_inside || narrow == 0);
            end.filter(|_| makes_sense).map(|_| Shape::Whole(Window { at: wide, stored_bytes: narrow }))
        };
        let digest = digest_at(bytes, 32);
        let proof = match flags & (PACKED | UNPROVEN) {
            0 => Proof::Decoded(digest),
            PACKED => Proof::Packed(digest),
            UNPROVEN => Proof::None,
            _ => return Err(wrong),
        };
        let shape = shape.filter(|_| is_placed).ok_or(wrong)?;
        Ok(Self { at: u64_at(bytes, 0), start, shape, proof, is_first: flags & FIRST != 0 })
    }

    /// The frame that begins here and ends where `next` begins, or with the layer.
    pub(crate) fn frame(&self, next: Option<&Self>, header: &Header) -> Result<Frame, FormatError> {
        let wrong = FormatError::Nonsense("frame table");
        let end = next.map_or(header.layer.unpacked.size_bytes, |next| next.at);
        let (part, packed_end) = match self.shape {
            Shape::Whole(_) | Shape::Continued => {
                (None, next.map_or(header.packed_end, |next| next.start.bit.div_ceil(8)))
            }
            Shape::Part { before, packed_bytes } => {
                (Some(before), (self.start.bit / 8).checked_add(packed_bytes).ok_or(wrong.clone())?)
            }
        };
        let bytes = ByteRange::new(self.at, end).map_err(|_| wrong.clone())?;
        let packed = ByteRange::new(self.start.bit / 8, packed_end).map_err(|_| wrong.clone())?;
        let is_exact = match (header.layer.coding, self.proof) {
            (Coding::Plain, Proof::Packed(_)) => packed.start() == bytes.start() && packed.contains(bytes),
            (Coding::Plain, _) => bytes == packed,
            (Coding::Gzip | Coding::Zstd, _) => true,
        };
        let is_bounded = bytes.len() <= MAX_FRAME_BYTES && packed.len() <= MAX_PACKED_BYTES;
        if !is_bounded || !is_exact || packed.end() > header.packed_end {
            return Err(wrong);
        }
        Ok(Frame { bytes, start: self.start, packed, part, proof: self.proof })
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
