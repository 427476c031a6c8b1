//! The frame table of one ZFile: where each frame is stored, in pages.
//!
//! The jump table in a ZFile holds lengths only, so finding a frame means adding up all lengths before it. This table
//! holds the sums: a base per page and 32-bit ends from there, so one page read finds a frame, at 4 bytes a frame like
//! the jump table itself. It is named by the blob's digest and shared by every image that has the layer. While it is being made
//! ([`crate::filling`]) its first and its last pages are there. Format: docs/formats/map.md, section 3.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use penstock_blob::{Blob, ByteRange, Digest, ReadError};

use crate::{
    making::{Making, Work},
    pages::{self, HEADER_FIELDS, PAGE_BYTES, PAGE_HEAD, Page, PageKind, Table, TableError, put},
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

    /// Pages of its frame table that hold frames.
    pub(crate) fn pages(&self) -> u32 {
        // Exact: a file of 2^32 pages would describe a blob that no digest covers; the count was compared with the blob's size.
        u32::try_from(self.frames.div_ceil(FRAMES_PER_PAGE)).unwrap_or(u32::MAX)
    }

    /// The header page of its frame table, not yet sealed.
    pub(crate) fn header_page(&self) -> Page {
        let mut page = [0; PAGE_BYTES];
        self.write(&mut page);
        page
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

/// Which pages are there, and how the others are waited for.
#[derive(Debug)]
pub(crate) struct Progress {
    /// In the upper half how many pages are there at the start, in the lower one the first that is there at the end: one value, so that both are read together.
    reached: AtomicU64,
    pub(crate) making: Making,
}

impl Progress {
    pub(crate) fn new((front, back): (u32, u32)) -> Self {
        Self { reached: AtomicU64::new(pack(front, back)), making: Making::new() }
    }

    fn whole() -> Self {
        Self { reached: AtomicU64::new(pack(u32::MAX, u32::MAX)), making: Making::over() }
    }

    /// Says which pages are there: they were written before.
    pub(crate) fn set(&self, (front, back): (u32, u32)) {
        self.reached.store(pack(front, back), Ordering::Release);
        self.making.advance();
    }

    fn has(&self, pages: &Range<u32>) -> bool {
        let reached = self.reached.load(Ordering::Acquire);
        // Both halves were 32-bit numbers.
        let (front, back) = (u32::try_from(reached >> 32), u32::try_from(reached & u64::from(u32::MAX)));
        let (front, back) = (front.unwrap_or(0), back.unwrap_or(u32::MAX));
        front >= back || pages.end <= front || pages.start >= back
    }
}

fn pack(front: u32, back: u32) -> u64 {
    u64::from(front) << 32 | u64::from(back)
}

/// An opened table.
#[derive(Debug)]
pub(crate) struct Frames {
    table: Table,
    shape: Shape,
    progress: Arc<Progress>,
    /// Makes what is not there.
    _work: Option<Work>,
}

/// What names the frame table of `blob`.
pub(crate) fn identity(blob: &Digest) -> Digest {
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
        let frames = Self { table, shape, progress: Arc::new(Progress::whole()), _work: None };
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

    /// A table that `work` is making; `table` reads it.
    pub(crate) const fn in_the_making(table: Table, shape: Shape, progress: Arc<Progress>, work: Work) -> Self {
        Self { table, shape, progress, _work: Some(work) }
    }

    pub(crate) const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Whether a page of it was found damaged, or it cannot be made.
    pub(crate) fn is_broken(&self) -> bool {
        self.table.is_broken() || self.progress.making.is_over() && !self.is_whole()
    }

    /// Whether all of it is there.
    pub(crate) fn is_whole(&self) -> bool {
        self.progress.has(&(0..self.shape.pages()))
    }

    /// What the table is asked for by while it is being made: a byte stands for each page.
    pub(crate) fn named(&self) -> Blob {
        Blob { digest: *self.table.identity(), size_bytes: u64::from(self.shape.pages()) }
    }

    /// The pages, as bytes of [`Frames::named`], that must be made before the places of `count` frames from `first` on are known; `None` when they are.
    pub(crate) fn lacking(&self, first: u64, count: usize) -> Option<ByteRange> {
        let last = (first + count as u64).saturating_sub(1);
        let pages = first / FRAMES_PER_PAGE..last / FRAMES_PER_PAGE + 1;
        let numbers = u32::try_from(pages.start).ok()?..u32::try_from(pages.end).ok()?;
        if self.progress.has(&numbers) { None } else { ByteRange::new(pages.start, pages.end).ok() }
    }

    /// Waits until these pages are there.
    pub(crate) async fn wait(&self, pages: ByteRange) -> Result<(), ReadError> {
        let number = |at: u64| u32::try_from(at).unwrap_or(u32::MAX);
        for page in [pages.start(), pages.end() - 1] {
            let wanted = number(page)..number(page).saturating_add(1);
            self.progress.making.wait(page, || self.progress.has(&wanted)).await?;
        }
        Ok(())
    }

    /// Waits until all of it is there, and has its name.
    pub(crate) async fn persisted(&self) -> Result<(), ReadError> {
        self.progress.making.ended(|| self.is_whole()).await
    }

    /// Where `count` frames from `first` on are stored; their pages are there ([`Frames::lacking`]). Adds to `ends` where each one ends, counted from the
    /// start of the first one, and answers where that is in the blob. Reads one page per 1018 frames.
    pub(crate) fn stored(&self, first: u64, count: usize, ends: &mut Vec<u32>) -> Result<u64, TableError> {
        let mut page = [0; PAGE_BYTES];
        let (known, mut start, mut nth) = (ends.len(), None, first);
        ends.reserve(count);
        while ends.len() - known < count {
            // Exact for every frame of the file: opening compared the number of pages with that of frames.
            let number = u32::try_from(1 + nth / FRAMES_PER_PAGE).unwrap_or(u32::MAX);
            let held = usize::from(self.table.read(PageKind::Frames, number, &mut page)?);
            let slot = in_memory(nth % FRAMES_PER_PAGE);
            let wanted = slot..(slot + count - (ends.len() - known)).min(held);
            let added = read_ends(&page, wanted, &self.shape, (&mut start, ends));
            nth += added.map_err(|what| self.table.damaged(number, what))?;
        }
        Ok(start.unwrap_or(0))
    }

    /// Where `count` frames from `first` on are in the blob, as one range.
    pub(crate) fn place(&self, first: u64, count: usize) -> Option<ByteRange> {
        let mut ends = Vec::new();
        let start = self.stored(first, count, &mut ends).ok()?;
        ByteRange::at(start, u64::from(*ends.last()?)).ok()
    }
}

/// Adds the ends of the frames in `slots` of a page, counted from `origin`, which the first of them sets; answers how many, at least one.
fn read_ends(
    page: &Page,
    slots: std::ops::Range<usize>,
    shape: &Shape,
    (origin, ends): (&mut Option<u64>, &mut Vec<u32>),
) -> Result<u64, &'static str> {
    if slots.is_empty() || slots.end > in_memory(FRAMES_PER_PAGE) {
        return Err("it holds another number of frames");
    }
    let base = u64_at(page, PAGE_HEAD);
    let end_of = |slot: usize| u64::from(u32_at(page, ENDS + 4 * slot));
    let mut start = if slots.start == 0 { 0 } else { end_of(slots.start - 1) };
    let origin = *origin.get_or_insert(base.saturating_add(start));
    let added = slots.len() as u64;
    for slot in slots {
        let (end, least) = (end_of(slot), u64::from(shape.format.min_stored_bytes()));
        let absolute =
            base.checked_add(end).filter(|&a| a <= shape.file.end()).ok_or("a frame lies outside the blob")?;
        if end < start + least || end > start + u64::from(MAX_STORED_BYTES) {
            return Err("a frame has an impossible length");
        }
        let end = absolute.checked_sub(origin).and_then(|e| u32::try_from(e).ok());
        ends.push(end.ok_or("its frames are not where the page before ends")?);
        start = end_of(slot);
    }
    Ok(added)
}

/// A page of frames with these stored lengths, the first of which begins at `base`: the page, not yet sealed, how many it holds, and where the last one
/// ends, counted from `base`. At most [`FRAMES_PER_PAGE`] lengths, which were checked against [`MAX_STORED_BYTES`]: their sum fits in 32 bits.
pub(crate) fn page_of_lengths(base: u64, lengths: impl Iterator<Item = u32>) -> (Page, u16, u32) {
    let mut page = [0; PAGE_BYTES];
    put(&mut page, PAGE_HEAD, &base.to_le_bytes());
    let (mut held, mut end) = (0_u16, 0_u32);
    for length in lengths.take(in_memory(FRAMES_PER_PAGE)) {
        end += length;
        put(&mut page, ENDS + 4 * usize::from(held), &end.to_le_bytes());
        held += 1;
    }
    (page, held, end)
}

#[cfg(test)]
mod tests;
