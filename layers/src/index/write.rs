//! Writing a layer index: what comes piece by piece goes to files, and the header last.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use penstock_blob::{Blob, Hasher};

use super::{
    entries::Encoder,
    format::{Header, Layer, PAGE_BYTES, PAGE_RECORDS, RECORD_BYTES, Record, Window, table_page},
};
use crate::entry::Entry;

/// How hard windows are compressed: beyond it they shrink by less than a twentieth.
const WINDOW_LEVEL: i32 = 9;
/// How hard entries are compressed: beyond it the encoder needs tens of MiB.
const ENTRIES_LEVEL: i32 = 3;
/// Bytes written, and read back, at once.
const BUFFER_BYTES: usize = 64 << 10;

/// An index that is being written. Holds about 4 MiB.
pub(crate) struct Writer {
    index: BufWriter<File>,
    windows_bytes: u64,
    compressor: zstd::bulk::Compressor<'static>,
    /// Records of the frame table.
    table: BufWriter<File>,
    frames: u64,
    entries: Encoder<zstd::stream::write::Encoder<'static, BufWriter<File>>>,
    entry_count: u64,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("frames", &self.frames).finish_non_exhaustive()
    }
}

impl Writer {
    /// The file `path`, which is replaced. Other files live in its directory meanwhile; they have no names.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let buffered = |file| BufWriter::with_capacity(BUFFER_BYTES, file);
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let mut index = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
        index.seek(SeekFrom::Start(PAGE_BYTES as u64))?;
        let entries = zstd::stream::write::Encoder::new(buffered(tempfile::tempfile_in(dir)?), ENTRIES_LEVEL);
        let mut entries = entries?;
        entries.include_checksum(true)?;
        Ok(Self {
            index: buffered(index),
            windows_bytes: 0,
            compressor: zstd::bulk::Compressor::new(WINDOW_LEVEL)?,
            table: buffered(tempfile::tempfile_in(dir)?),
            frames: 0,
            entries: Encoder::new(entries),
            entry_count: 0,
        })
    }

    /// How many frames there are so far.
    pub(crate) const fn frames(&self) -> u64 {
        self.frames
    }

    /// How many entries there are so far.
    pub(crate) const fn entries(&self) -> u64 {
        self.entry_count
    }

    /// The window of a frame: where it is kept.
    pub(crate) fn window(&mut self, window: &[u8]) -> io::Result<Window> {
        let stored = self.compressor.compress(window)?;
        self.index.write_all(&stored)?;
        let stored_bytes = u32::try_from(stored.len()).map_err(io::Error::other)?;
        let window = Window { at: self.windows_bytes, stored_bytes };
        self.windows_bytes += stored.len() as u64;
        Ok(window)
    }

    /// The next frame.
    pub(crate) fn record(&mut self, record: &Record) -> io::Result<()> {
        self.frames += 1;
        self.table.write_all(&record.to_bytes())
    }

    /// The next entry.
    pub(crate) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.entry_count += 1;
        self.entries.put(entry)
    }

    /// Nothing more comes: the index is on disk. Its digest and size.
    pub(crate) fn finish(self, layer: Layer, packed_end: u64) -> io::Result<Blob> {
        let Self { mut index, table, entries, windows_bytes, .. } = self;
        copy_table(table, &mut index)?;
        let mut entries = entries.into_inner().finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        entries.seek(SeekFrom::Start(0))?;
        let entries_bytes = io::copy(&mut entries, &mut index)?;
        let mut index = index.into_inner().map_err(io::IntoInnerError::into_error)?;
        let header = Header { layer, windows_bytes, entries_bytes, packed_end };
        index.write_all_at(&header.to_page(), 0)?;
        index.sync_data()?;
        digest_of(&mut index)
    }
}

/// Copies records as pages.
fn copy_table(table: BufWriter<File>, to: &mut impl Write) -> io::Result<()> {
    let mut table = table.into_inner().map_err(io::IntoInnerError::into_error)?;
    table.seek(SeekFrom::Start(0))?;
    let mut table = BufReader::with_capacity(BUFFER_BYTES, table);
    loop {
        let mut records = Vec::with_capacity(PAGE_RECORDS * RECORD_BYTES);
        (&mut table).take((PAGE_RECORDS * RECORD_BYTES) as u64).read_to_end(&mut records)?;
        if records.is_empty() {
            return Ok(());
        }
        to.write_all(&table_page(&records))?;
    }
}

/// Digest and size of a file.
fn digest_of(file: &mut File) -> io::Result<Blob> {
    file.seek(SeekFrom::Start(0))?;
    let (mut hasher, mut size_bytes) = (Hasher::new(), 0);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Blob { digest: hasher.finish(), size_bytes }),
            read => {
                hasher.update(&buffer[..read]);
                size_bytes += read as u64;
            }
        }
    }
}
