//! Reading FlatBuffers that anybody may have made: every access is checked, and all of them together are bounded.
//!
//! A buffer is tables that point to each other; the same one may be pointed at a million times. Each look takes from a budget that is a small
//! multiple of the buffer's size, so that no buffer costs more than its size says.
//!
//! Why not the crate `flatbuffers`: its generated readers need a verifier run first whose bounds are numbers of tables and depth, and generated code for
//! five tables is longer than this.

use std::cell::Cell;

/// Looks that are free, for the smallest buffers.
const FREE: u64 = 1 << 16;
/// Bytes that may be looked at for each byte of the buffer.
const TIMES: u64 = 8;
/// What a look costs besides the bytes that it is at.
const LOOK_BYTES: u64 = 8;

/// A buffer that is being read.
#[derive(Debug)]
pub(super) struct Buffer<'a> {
    bytes: &'a [u8],
    budget: Cell<u64>,
}

/// A table of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'b, 'a> {
    buffer: &'b Buffer<'a>,
    at: usize,
    fields: usize,
    fields_end: usize,
}

impl<'a> Buffer<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, budget: Cell::new(FREE + TIMES * bytes.len() as u64) }
    }

    /// The table that the buffer begins with.
    pub(super) fn root(&self) -> Option<Table<'_, 'a>> {
        self.table(self.pointed(0)?)
    }

    fn look(&self, at: usize, len: usize) -> Option<&'a [u8]> {
        self.budget.set(self.budget.get().checked_sub(LOOK_BYTES + len as u64)?);
        self.bytes.get(at..at.checked_add(len)?)
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.look(at, N)?.first_chunk().copied()
    }

    fn short(&self, at: usize) -> Option<usize> {
        Some(usize::from(u16::from_le_bytes(self.array(at)?)))
    }

    fn word(&self, at: usize) -> Option<usize> {
        usize::try_from(u32::from_le_bytes(self.array(at)?)).ok()
    }

    /// Where the offset at `at` points, which is counted from there.
    fn pointed(&self, at: usize) -> Option<usize> {
        at.checked_add(self.word(at)?)
    }

    fn table(&self, at: usize) -> Option<Table<'_, 'a>> {
        let back = i32::from_le_bytes(self.array(at)?);
        let fields = usize::try_from(i64::try_from(at).ok()?.checked_sub(back.into())?).ok()?;
        let fields_end = fields.checked_add(self.short(fields)?)?;
        Some(Table { buffer: self, at, fields, fields_end })
    }
}

impl<'b, 'a> Table<'b, 'a> {
    /// Where field `nth` is; nothing when it has its default. The outer `None`: the buffer is broken.
    fn field(&self, nth: usize) -> Option<Option<usize>> {
        let at = self.fields.checked_add(4 + 2 * nth)?;
        if at.checked_add(2)? > self.fields_end {
            return Some(None);
        }
        match self.buffer.short(at)? {
            0 => Some(None),
            offset => Some(Some(self.at.checked_add(offset)?)),
        }
    }

    /// A signed byte; `default` when it is not there.
    pub(super) fn byte(&self, nth: usize, default: i8) -> Option<i8> {
        self.field(nth)?.map_or(Some(default), |at| Some(i8::from_le_bytes(self.buffer.array(at)?)))
    }

    /// A number of 32 bits, 0 when it is not there.
    pub(super) fn number32(&self, nth: usize) -> Option<u32> {
        self.field(nth)?.map_or(Some(0), |at| Some(u32::from_le_bytes(self.buffer.array(at)?)))
    }

    /// A number of 64 bits that is not negative, 0 when it is not there.
    pub(super) fn number64(&self, nth: usize) -> Option<u64> {
        self.field(nth)?.map_or(Some(0), |at| u64::try_from(i64::from_le_bytes(self.buffer.array(at)?)).ok())
    }

    /// A text or a vector of bytes, empty when it is not there.
    pub(super) fn bytes(&self, nth: usize) -> Option<&'a [u8]> {
        let Some(at) = self.field(nth)? else { return Some(&[]) };
        let at = self.buffer.pointed(at)?;
        self.buffer.look(at.checked_add(4)?, self.buffer.word(at)?)
    }

    /// The table in a field; nothing when it is not there.
    pub(super) fn table(&self, nth: usize) -> Option<Option<Table<'b, 'a>>> {
        let Some(at) = self.field(nth)? else { return Some(None) };
        self.buffer.table(self.buffer.pointed(at)?).map(Some)
    }

    /// Where the offsets of a vector of tables or texts are.
    fn vector(&self, nth: usize) -> Option<impl ExactSizeIterator<Item = usize> + use<'a>> {
        let (start, count) = match self.field(nth)? {
            None => (0, 0),
            Some(at) => {
                let at = self.buffer.pointed(at)?;
                (at.checked_add(4)?, self.buffer.word(at)?)
            }
        };
        let end = start.checked_add(count.checked_mul(4)?)?;
        (end <= self.buffer.bytes.len()).then(|| (0..count).map(move |nth| start + 4 * nth))
    }

    /// The tables of a vector.
    pub(super) fn tables(
        &self,
        nth: usize,
    ) -> Option<impl ExactSizeIterator<Item = Option<Table<'b, 'a>>> + use<'a, 'b>> {
        let buffer = self.buffer;
        Some(self.vector(nth)?.map(move |at| buffer.table(buffer.pointed(at)?)))
    }

    /// The texts of a vector.
    pub(super) fn texts(&self, nth: usize) -> Option<impl ExactSizeIterator<Item = Option<&'a [u8]>> + use<'a, 'b>> {
        let buffer = self.buffer;
        let text = move |at| {
            let at = buffer.pointed(at)?;
            buffer.look(at.checked_add(4)?, buffer.word(at)?)
        };
        Some(self.vector(nth)?.map(text))
    }
}
