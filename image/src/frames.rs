//! The frame table of one ZFile: where each frame is stored, in pages.
//!
//! The jump table in a ZFile holds lengths only, so finding a frame means adding up all lengths before it. This table
//! holds the sums: a base per page and 32-bit ends from there, so one page read finds a frame, at 4 bytes a frame like
//! the jump table itself. It is named by the blob's digest and shared by every image that has the layer. Format:
//! docs/formats/map.md, section 3.

use std::path::{Path, PathBuf};

use penstock_blob::{Blob, ByteRange, Digest};

use crate::{
    pages::{self, HEADER_FIELDS, PAGE_BYTES, PAGE_HEAD, Page, PageKind, Table, TableError, TableWriter, put},
    units::{field, in_memory, u32_at, u64_at},
    zfile::{Codec, Format, MAX_STORED_BYTES},
};

/// Where the ends start in a page: behind the head and the base.
const ENDS: usize = PAGE_HEAD + 8;
/// Frames per page.
pub(crate) const FRAMES_PER_PAGE: u64 = ((PAGE_BYTES - ENDS) / 4) as u64;

/// What a ZFile is, without its jump table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The blob that holds it.
    pub(crate) blob: Blob,
    /// The ZFile inside the blob (behind a tar header, say).
    pub(crate) file: ByteRange,
    /// Where the first frame starts in the blob.
    pub(crate) data_start: u64,
    /// How many frames there are.
    pub(crate) frames: u64,
    /// Bytes of all frames once decoded.
    pub(crate) original_bytes: u64,
    /// How frames are stored.
    pub(crate) format: Format,
}

impl Shape {
    fn write(&self, page: &mut Page) {
        put(page, HEADER_FIELDS, self.blob.digest.as_bytes());
        let numbers = [
            self.blob.size_bytes,
            self.file.start(),
            self.file.len(),
            self.original_bytes,
            self.data_start,
            self.frames,
        ];
        for (i, number) in numbers.into_iter().enumerate() {
            put(page, HEADER_FIELDS + 32 + 8 * i, &number.to_le_bytes());
        }
        put(page, HEADER_FIELDS + 80, &self.format.block_bytes.to_le_bytes());
        page[HEADER_FIELDS + 84] = self.format.codec.number();
        page[HEADER_FIELDS + 85] = u8::from(self.format.crc);
    }

    fn read(page: &Page) -> Option<Self> {
        let number = |i: usize| u64_at(page, HEADER_FIELDS + 32 + 8 * i);
        let blob = Blob { digest: Digest::from_bytes(field(page, HEADER_FIELDS)), size_bytes: number(0) };
        let block_bytes = u32_at(page, HEADER_FIELDS + 80);
        let codec = Codec::from_number(page[HEADER_FIELDS + 84])?;
        let format = Format { codec, crc: page[HEADER_FIELDS + 85] != 0, block_bytes };
        let file = ByteRange::at(number(1), number(2)).ok()?;
        let shape = Self { blob, file, original_bytes: number(3), data_start: number(4), frames: number(5), format };
        let block_right = block_bytes.is_power_of_two() && crate::zfile::BLOCK_BYTES.contains(&block_bytes);
        (block_right
            && file.end() <= blob.size_bytes
            && shape.frames == shape.original_bytes.div_ceil(u64::from(block_bytes)))
        .then_some(shape)
    }

    /// The frames that hold bytes `range` of the decoded file: the first, and how many.
    pub(crate) fn frames_of(&self, range: ByteRange) -> (u64, usize) {
        let block = u64::from(self.format.block_bytes);
        let first = range.start() / block;
        (first, in_memory(range.end().div_ceil(block) - first))
    }

    /// Decoded bytes of a frame: the last one may be shorter.
    pub(crate) fn frame_bytes(&self, nth: u64) -> u32 {
        let block = self.format.block_bytes;
        let rest = self.original_bytes.saturating_sub(nth.saturating_mul(u64::from(block)));
        u32::try_from(rest).map_or(block, |rest| rest.min(block))
    }
}

/// Where neighbouring frames are stored.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// Where the first one starts in the blob.
    pub(crate) start: u64,
    /// Where each one ends, counted from `start`.
    pub(crate) ends: Vec<u32>,
}

/// An opened table.
#[derive(Debug)]
pub(crate) struct Frames {
    table: Table,
    shape: Shape,
}

fn identity(blob: &Digest) -> Digest {
    pages::identity("frames", [*blob])
}

/// Where the table of `blob` is, made or not.
pub(crate) fn path(maps_dir: &Path, blob: &Digest) -> PathBuf {
    pages::path(maps_dir, blob, pages::FRAMES)
}

impl Frames {
    /// The table of `blob`, if there is one and it is sound as far as it is checked now.
    pub(crate) fn open(maps_dir: &Path, blob: &Blob) -> Result<Option<Self>, TableError> {
        let Some((table, page)) = Table::open(&path(maps_dir, &blob.digest), identity(&blob.digest))? else {
            return Ok(None);
        };
        let shape = Shape::read(&page).filter(|shape| {
            let pages = 1 + shape.frames.div_ceil(FRAMES_PER_PAGE);
            shape.blob == *blob && pages == u64::from(table.pages())
        });
        let Some(shape) = shape else {
            table.damaged(0, "its fields disagree");
            return Ok(None);
        };
        let frames = Self { table, shape };
        if frames.table.is_small() {
            for page in 1..frames.table.pages() {
                match frames.table.read(PageKind::Frames, page, &mut [0; PAGE_BYTES]) {
                    Ok(_) => {}
                    Err(TableError::Damaged { .. }) => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Some(frames))
    }

    pub(crate) const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Where `count` frames from `first` on are stored. Reads one page per 1018 frames.
    pub(crate) fn stored(&self, first: u64, count: usize) -> Result<Stored, TableError> {
        let mut page = [0; PAGE_BYTES];
        let mut stored = Stored { start: 0, ends: Vec::with_capacity(count) };
        let mut nth = first;
        while stored.ends.len() < count {
            // Exact for every frame of the file: opening compared the number of pages with that of frames.
            let number = u32::try_from(1 + nth / FRAMES_PER_PAGE).unwrap_or(u32::MAX);
            let held = usize::from(self.table.read(PageKind::Frames, number, &mut page)?);
            let slot = in_memory(nth % FRAMES_PER_PAGE);
            let wanted = slot..(slot + count - stored.ends.len()).min(held);
            let added = read_ends(&page, wanted, &self.shape, &mut stored);
            nth += added.map_err(|what| self.table.damaged(number, what))?;
        }
        Ok(stored)
    }
}

/// Adds the ends of the frames in `slots` of a page; answers how many, at least one.
fn read_ends(
    page: &Page,
    slots: std::ops::Range<usize>,
    shape: &Shape,
    stored: &mut Stored,
) -> Result<u64, &'static str> {
    if slots.is_empty() || slots.end > in_memory(FRAMES_PER_PAGE) {
        return Err("it holds another number of frames");
    }
    let base = u64_at(page, PAGE_HEAD);
    let end_of = |slot: usize| u64::from(u32_at(page, ENDS + 4 * slot));
    let mut start = if slots.start == 0 { 0 } else { end_of(slots.start - 1) };
    if stored.ends.is_empty() {
        stored.start = base.saturating_add(start);
    }
    let added = slots.len() as u64;
    for slot in slots {
        let (end, least) = (end_of(slot), u64::from(shape.format.min_stored_bytes()));
        let absolute =
            base.checked_add(end).filter(|&a| a <= shape.file.end()).ok_or("a frame lies outside the blob")?;
        if end < start + least || end > start + u64::from(MAX_STORED_BYTES) {
            return Err("a frame has an impossible length");
        }
        let end = absolute.checked_sub(stored.start).and_then(|e| u32::try_from(e).ok());
        stored.ends.push(end.ok_or("its frames are not where the page before ends")?);
        start = end_of(slot);
    }
    Ok(added)
}

/// Writes a table from the stored lengths of the frames, in order.
pub(crate) struct FramesWriter {
    writer: TableWriter,
    shape: Shape,
    page: Page,
    base: u64,
    end: u32,
    held: u16,
    frames: u64,
}

impl FramesWriter {
    pub(crate) fn new(maps_dir: &Path, shape: Shape) -> Result<Self, TableError> {
        let digest = &shape.blob.digest;
        let writer = TableWriter::new(&path(maps_dir, digest), identity(digest))?;
        Ok(Self { writer, shape, page: [0; PAGE_BYTES], base: shape.data_start, end: 0, held: 0, frames: 0 })
    }

    /// Adds the stored length of the next frame, which has been checked against [`MAX_STORED_BYTES`]: a page of ends
    /// fits in 32 bits.
    pub(crate) fn push(&mut self, stored_bytes: u32) -> Result<(), TableError> {
        self.end += stored_bytes;
        put(&mut self.page, ENDS + 4 * usize::from(self.held), &self.end.to_le_bytes());
        self.held += 1;
        self.frames += 1;
        if u64::from(self.held) == FRAMES_PER_PAGE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), TableError> {
        put(&mut self.page, PAGE_HEAD, &self.base.to_le_bytes());
        self.writer.push(PageKind::Frames, &mut self.page, self.held)?;
        self.base += u64::from(self.end);
        (self.page, self.end, self.held) = ([0; PAGE_BYTES], 0, 0);
        Ok(())
    }

    /// Makes the table appear under its name.
    pub(crate) fn finish(mut self) -> Result<(), TableError> {
        if self.held > 0 {
            self.flush()?;
        }
        let mut header = [0; PAGE_BYTES];
        self.shape.write(&mut header);
        self.writer.finish(&mut header)
    }
}

#[cfg(test)]
mod tests;
