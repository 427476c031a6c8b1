//! A layer index that lies in a local file.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    ops::Range,
    os::unix::fs::FileExt,
    sync::Arc,
};

use penstock_blob::{ByteRange, Digest};

use super::{
    entries::{Decoder, EntriesError},
    format::{FormatError, Header, Layer, PAGE_BYTES, PAGE_RECORDS, Page, Record, Shape, Window, records},
};
use crate::{
    entry::Entry,
    frame::{Frame, WINDOW_BYTES},
};

/// Bytes of the entries read at once.
const BUFFER_BYTES: usize = 64 << 10;
/// Largest window of the entries' compression, as a power of two: what the level that they are written with uses.
const ENTRIES_WINDOW_LOG: u32 = 23;

/// Most frames that a start reads, as far as they are told: 16 GiB in spans of 4 MiB.
const MAX_FIRST: usize = 4096;

/// Why an index cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The file cannot be read.
    #[error("the layer index cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is not a layer index, or damaged.
    #[error("the file is no usable layer index: {0}")]
    Format(#[from] FormatError),
    /// It has fewer or more bytes than its header says.
    #[error("the layer index has {actual} bytes, and by its header {expected}; fetch or build it again")]
    Size {
        /// By the header.
        expected: u64,
        /// Of the file.
        actual: u64,
    },
}

/// An index in a file. Holds eight bytes for each frame, that is eight MiB for a TiB of archives, and as many again of a layer that is streamed; the
/// rest is read when it is needed.
#[derive(Debug)]
pub struct Index {
    file: Arc<File>,
    header: Header,
    /// Where each frame begins in the archive.
    starts: Box<[u64]>,
    /// What a start reads.
    first: Box<[ByteRange]>,
    /// Where the compressed bytes of each frame begin, of a layer that is streamed; of others empty.
    packed: Box<[u64]>,
    /// The frames, by number, that are pieces of one run each: decoded in order, from its first one on.
    runs: Box<[Range<usize>]>,
}

/// What the whole table says.
#[derive(Debug, Default)]
struct Table {
    starts: Vec<u64>,
    first: Vec<usize>,
    packed: Vec<u64>,
    runs: Vec<Range<usize>>,
}

/// A frame, and what is needed to decode it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed {
    pub(crate) frame: Frame,
    window: Window,
}

impl Index {
    /// The index in `file`. Its header and its whole frame table are checked; that it is the index of the right layer is not: compare
    /// [`Index::layer`].
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn open(file: File) -> Result<Self, IndexError> {
        let mut page = [0; PAGE_BYTES];
        let actual = file.metadata()?.len();
        if actual < PAGE_BYTES as u64 {
            return Err(FormatError::Magic.into());
        }
        file.read_exact_at(&mut page, 0)?;
        let header = Header::parse(&page)?;
        let expected = header.file_bytes();
        if actual != expected {
            return Err(IndexError::Size { expected, actual });
        }
        let (starts, first, packed, runs) = Default::default();
        let mut index = Self { file: Arc::new(file), header, starts, first, packed, runs };
        let Table { starts, first, packed, runs } = index.check_table()?;
        (index.starts, index.packed, index.runs) = (starts.into(), packed.into(), runs.into());
        let landmark = ByteRange::new(0, index.header.layer.first_bytes).ok();
        index.first = landmark.into_iter().chain(first.into_iter().filter_map(|nth| index.bytes_of(nth))).collect();
        Ok(index)
    }

    /// Reads the whole table: every frame lies after the one before and within its bounds.
    fn check_table(&self) -> Result<Table, IndexError> {
        let (mut table, mut last): (Table, Option<Record>) = (Table::default(), None);
        for number in 0..self.header.pages() {
            for record in self.page(number)? {
                let (nth, is_continued) = (table.starts.len(), record.shape == Shape::Continued);
                match &last {
                    Some(last) => last.frame(Some(&record), &self.header).map(drop)?,
                    None if record.at != 0 || is_continued => {
                        return Err(FormatError::Nonsense("frame table").into());
                    }
                    None => {}
                }
                if record.is_first && table.first.len() < MAX_FIRST {
                    table.first.push(nth);
                }
                match table.runs.last_mut().filter(|run| run.end == nth) {
                    Some(run) if is_continued => run.end = nth + 1,
                    _ if is_continued => table.runs.push(nth - 1..nth + 1),
                    _ => {}
                }
                table.starts.push(record.at);
                if self.header.layer.is_streamed {
                    table.packed.push(record.start.bit / 8);
                }
                last = Some(record);
            }
        }
        last.map_or(Ok(()), |last| last.frame(None, &self.header).map(drop))?;
        Ok(table)
    }

    /// The bytes of the archive that a start reads, as whoever made the layer's table says, in order; at most 4096 ranges and one.
    #[must_use]
    pub fn first(&self) -> &[ByteRange] {
        &self.first
    }

    /// The layer that it says it is of.
    #[must_use]
    pub const fn layer(&self) -> &Layer {
        &self.header.layer
    }

    /// The same index, whose archive is called `archive` from now on: by whoever keeps apart what this index gives from what others do that say to be of
    /// the same archive.
    #[must_use]
    pub fn renamed(mut self, archive: Digest) -> Self {
        self.header.layer.unpacked.digest = archive;
        self
    }

    #[cfg(test)]
    pub(crate) const fn header(&self) -> &Header {
        &self.header
    }

    /// The entries, in the order of the archive. Each call reads them anew.
    ///
    /// # Errors
    /// What the first read of the file says.
    pub fn entries(&self) -> io::Result<Entries> {
        let section =
            Section { file: self.file.clone(), at: self.header.entries_at(), left: self.header.entries_bytes };
        let mut decoder = zstd::stream::read::Decoder::new(section)?;
        decoder.window_log_max(ENTRIES_WINDOW_LOG)?;
        let decoder = BufReader::with_capacity(BUFFER_BYTES, decoder);
        let layer = self.layer();
        Ok(Entries { decoder: Some(Decoder::new(decoder, layer.entries, layer.unpacked.size_bytes)) })
    }

    /// The frames that hold the bytes of `range`, which lies within the archive: by number.
    pub(crate) fn span(&self, range: ByteRange) -> Range<usize> {
        let first = self.starts.partition_point(|&start| start <= range.start()).saturating_sub(1);
        first..self.starts.partition_point(|&start| start < range.end())
    }

    /// The bytes of the archive that the frame with this number holds.
    pub(crate) fn bytes_of(&self, number: usize) -> Option<ByteRange> {
        let end = self.starts.get(number + 1).copied().unwrap_or(self.header.layer.unpacked.size_bytes);
        ByteRange::new(*self.starts.get(number)?, end).ok()
    }

    /// The frames that are decoded in order with this one, if it is a piece of a run.
    pub(crate) fn run(&self, number: usize) -> Option<Range<usize>> {
        let at = self.runs.partition_point(|run| run.end <= number);
        self.runs.get(at).filter(|run| run.contains(&number)).cloned()
    }

    /// The compressed bytes of a piece of a run.
    pub(crate) fn packed_of(&self, number: usize) -> Option<ByteRange> {
        let end = self.packed.get(number + 1).copied().unwrap_or(self.header.packed_end);
        ByteRange::new(*self.packed.get(number)?, end).ok()
    }

    /// The bytes of the archive that whole frames around `range` hold.
    pub(crate) fn widen(&self, range: ByteRange) -> ByteRange {
        let span = self.span(range);
        let start = self.starts.get(span.start).copied().unwrap_or(range.start());
        let end = self.starts.get(span.end).copied().unwrap_or(self.header.layer.unpacked.size_bytes);
        ByteRange::new(start, end).unwrap_or(range)
    }

    /// The frames with these numbers. Reads the file.
    pub(crate) fn frames(&self, span: Range<usize>) -> Result<Vec<Placed>, IndexError> {
        let mut found: Vec<Record> = Vec::with_capacity(span.len() + 1);
        // One more, to know where the last one ends.
        let until = (span.end + 1).min(self.starts.len());
        let mut number = span.start / PAGE_RECORDS;
        while found.len() < until.saturating_sub(span.start) {
            let first = number * PAGE_RECORDS;
            let page = self.page(number as u64)?;
            let wanted = span.start.max(first) - first..until.min(first + PAGE_RECORDS) - first;
            found.extend_from_slice(page.get(wanted).ok_or(FormatError::Damaged("frame table"))?);
            number += 1;
        }
        let placed = |(nth, record): (usize, &Record)| {
            let frame = record.frame(found.get(nth + 1), &self.header)?;
            Ok(Placed { frame, window: record.shape.window() })
        };
        found.iter().enumerate().take(span.len()).map(placed).collect()
    }

    /// What a frame refers to. Reads the file.
    pub(crate) fn window(&self, placed: &Placed) -> Result<Vec<u8>, IndexError> {
        let Window { at, stored_bytes } = placed.window;
        if stored_bytes == 0 {
            return Ok(Vec::new());
        }
        let mut stored = vec![0; stored_bytes as usize];
        self.file.read_exact_at(&mut stored, PAGE_BYTES as u64 + at)?;
        zstd::bulk::decompress(&stored, WINDOW_BYTES).map_err(|_| FormatError::Damaged("window").into())
    }

    fn page(&self, number: u64) -> Result<Vec<Record>, IndexError> {
        let mut page: Page = [0; PAGE_BYTES];
        self.file.read_exact_at(&mut page, self.header.table_at() + number * PAGE_BYTES as u64)?;
        Ok(records(&page, number, &self.header)?)
    }
}

/// The entries of an index.
pub struct Entries {
    /// None after an error.
    decoder: Option<Decoder<BufReader<zstd::stream::read::Decoder<'static, BufReader<Section>>>>>,
}

impl std::fmt::Debug for Entries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entries").finish_non_exhaustive()
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, EntriesError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.decoder.as_mut()?.entry().transpose();
        if !matches!(next, Some(Ok(_))) {
            self.decoder = None;
        }
        next
    }
}

/// Part of a file, read from its start to its end.
#[derive(Debug)]
struct Section {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let read = self.file.read_at(&mut buf[..most], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
