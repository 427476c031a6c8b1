//! Where frames are stored, from their lengths: the jump table added up from its start and from its end towards each other.
//!
//! The jump table holds lengths only, so the place of a frame is the sum of all lengths before it, or the end of the frames less all
//! lengths behind it. What was added up so far is final, whichever end it was added from. Pure: takes bytes of the jump table, gives pages of the frame table.

use std::ops::Range;

use penstock_blob::{ByteRange, Digest};

use crate::{
    crc,
    frames::{FRAMES_PER_PAGE, Shape, page_of_lengths},
    layer::LayerError,
    pages::{PAGE_BYTES, PageKind, seal},
    units::in_memory,
    zfile::{Header, MAX_STORED_BYTES},
};

/// Bytes of a jump table's entry.
const ENTRY_BYTES: u64 = 4;

/// One of the two ends of the jump table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Its start.
    Front,
    /// Its end.
    Back,
}

/// How far was added up from one side.
#[derive(Debug, Clone, Copy)]
struct Reached {
    /// Front: the first page that is not there. Back: the first one that is.
    page: u32,
    /// Where in the blob the frames of the other pages begin, or end.
    at: u64,
    /// Check of the bytes of the jump table that were added up.
    crc: u32,
    /// How many those are.
    bytes: u64,
}

/// Pages that were made.
#[derive(Debug)]
pub(crate) struct Made {
    /// Number of the first in the file.
    pub(crate) first: u32,
    /// The sealed pages, one after the other.
    pub(crate) pages: Vec<u8>,
}

/// A jump table that is being added up.
#[derive(Debug, Clone)]
pub(crate) struct Sums {
    shape: Shape,
    identity: Digest,
    /// Where the jump table starts in the blob; the frames end there.
    table_start: u64,
    /// Check of the whole jump table, if the header states one that is to be believed.
    expected_crc: Option<u32>,
    front: Reached,
    back: Reached,
}

impl Sums {
    /// Nothing added up yet of the ZFile with this header, which was checked against its file.
    pub(crate) fn new(shape: Shape, header: &Header, identity: Digest) -> Self {
        let table_start = shape.file.start() + header.index_offset;
        let nothing = Reached { page: 0, at: shape.data_start, crc: 0, bytes: 0 };
        Self {
            shape,
            identity,
            table_start,
            expected_crc: header.has_index_crc().then_some(header.index_crc),
            front: nothing,
            back: Reached { page: shape.pages(), at: table_start, ..nothing },
        }
    }

    pub(crate) const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The first page that is not there, and the first one behind it that is.
    pub(crate) const fn reached(&self) -> (u32, u32) {
        (self.front.page, self.back.page)
    }

    /// The side from which `page` is reached with fewer bytes.
    pub(crate) const fn nearer(&self, page: u32) -> Side {
        if page.saturating_sub(self.front.page) <= self.back.page.saturating_sub(page) {
            Side::Front
        } else {
            Side::Back
        }
    }

    /// Whether every page was made.
    pub(crate) const fn is_complete(&self) -> bool {
        self.front.page == self.back.page
    }

    /// The next pages of a side, at most `most` of them and `skip` later ones passed over: their bytes of the blob. `None` when there are none left.
    pub(crate) fn next(&self, side: Side, skip: u32, most: u32) -> Option<ByteRange> {
        let Range { start, end } = self.front.page..self.back.page;
        let pages = match side {
            Side::Front => {
                let first = start.saturating_add(skip).min(end);
                first..first.saturating_add(most).min(end)
            }
            Side::Back => {
                let last = end.saturating_sub(skip).max(start);
                last.saturating_sub(most).max(start)..last
            }
        };
        let entry = |page: u32| (u64::from(page) * FRAMES_PER_PAGE).min(self.shape.frames);
        let at = |page| self.table_start + entry(page) * ENTRY_BYTES;
        ByteRange::new(at(pages.start), at(pages.end)).ok()
    }

    /// Takes the next bytes of a side: whole pages, as [`Sums::next`] names them.
    ///
    /// # Errors
    /// [`LayerError`], for lengths that no encoder makes; nothing was taken then.
    pub(crate) fn take(&mut self, side: Side, bytes: &[u8]) -> Result<Made, LayerError> {
        let entries = bytes.len() as u64 / ENTRY_BYTES;
        let pages = u32::try_from(entries.div_ceil(FRAMES_PER_PAGE)).unwrap_or(u32::MAX);
        let first = match side {
            Side::Front => self.front.page,
            Side::Back => self.back.page - pages,
        };
        let stored = self.check(u64::from(first) * FRAMES_PER_PAGE, bytes)?;
        let start = match side {
            Side::Front => Some(self.front.at),
            Side::Back => self.back.at.checked_sub(stored),
        };
        let room = start.filter(|&start| start >= self.front.at && start + stored <= self.back.at);
        let start = room.ok_or_else(|| self.disagree(stored))?;
        let made = self.pages(first, start, bytes);
        let (crc, len) = (crc::raw(0, bytes), bytes.len() as u64);
        match side {
            Side::Front => {
                let Reached { page, crc: before, bytes, .. } = self.front;
                let crc = crc::joined(before, crc, len);
                self.front = Reached { page: page + pages, at: start + stored, crc, bytes: bytes + len };
            }
            Side::Back => {
                let Reached { crc: behind, bytes, .. } = self.back;
                let crc = crc::joined(crc, behind, bytes);
                self.back = Reached { page: first, at: start, crc, bytes: bytes + len };
            }
        }
        Ok(Made { first: first + 1, pages: made })
    }

    /// Checks what can be said only of the whole: the sum, and the jump table's check.
    ///
    /// # Errors
    /// [`LayerError::FramesEnd`], [`LayerError::JumpTableCrc`].
    pub(crate) fn finish(&self) -> Result<(), LayerError> {
        let computed = crc::joined(self.front.crc, self.back.crc, self.back.bytes);
        if let Some(expected) = self.expected_crc
            && computed != expected
        {
            return Err(LayerError::JumpTableCrc { expected, computed });
        }
        if self.front.at == self.back.at { Ok(()) } else { Err(self.disagree(0)) }
    }

    /// The stored bytes of all frames in `bytes`, the first of which is frame `nth`.
    fn check(&self, nth: u64, bytes: &[u8]) -> Result<u64, LayerError> {
        let possible = self.shape.format.min_stored_bytes()..=MAX_STORED_BYTES;
        let mut sum = 0;
        for (nth, entry) in (nth..).zip(bytes.as_chunks::<4>().0) {
            let stored_bytes = u32::from_le_bytes(*entry);
            if !possible.contains(&stored_bytes) {
                return Err(LayerError::FrameLength { nth, stored_bytes });
            }
            sum += u64::from(stored_bytes);
        }
        Ok(sum)
    }

    /// The pages of these lengths, the first frame of which is stored at `base`.
    fn pages(&self, first: u32, mut base: u64, bytes: &[u8]) -> Vec<u8> {
        let page_entries = in_memory(FRAMES_PER_PAGE);
        let (entries, _) = bytes.as_chunks::<4>();
        let mut pages = Vec::with_capacity(entries.len().div_ceil(page_entries) * PAGE_BYTES);
        for (number, lengths) in (first + 1..).zip(entries.chunks(page_entries)) {
            let lengths = lengths.iter().map(|entry| u32::from_le_bytes(*entry));
            let (mut page, held, end) = page_of_lengths(base, lengths);
            seal(&mut page, PageKind::Frames, number, held, &self.identity);
            pages.extend_from_slice(&page);
            base += u64::from(end);
        }
        pages
    }

    /// The frames do not fill the space that they have: told as where they would end.
    fn disagree(&self, stored: u64) -> LayerError {
        let file = self.shape.file.start();
        let missing = self.back.at.saturating_sub(self.front.at);
        let end = (self.table_start - file).saturating_add(stored).saturating_sub(missing);
        LayerError::FramesEnd { end, index_offset: self.table_start - file }
    }
}

#[cfg(test)]
mod tests;
