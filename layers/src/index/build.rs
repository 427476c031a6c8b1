//! Making a layer index while the layer goes by, once, in order. What it is made from is verified: at the end the digests of both the
//! layer and its archive are compared with what the image says, and the index is refused when one differs.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use penstock_blob::{Blob, Digest, Hasher};

use super::{
    entries::Encoder,
    format::{
        Header, Layer, MAX_ENTRIES, MAX_LAYER_BYTES, PAGE_BYTES, PAGE_RECORDS, RECORD_BYTES, Record, Window, table_page,
    },
};
use crate::{
    frame::{Coding, MAX_FRAME_BYTES, MAX_PACKED_BYTES, Start, TARGET_BYTES},
    gzip, plain,
    tar::{TarError, TarReader},
    zstandard,
};

/// How hard windows are compressed: beyond it they shrink by less than a twentieth.
const WINDOW_LEVEL: i32 = 9;
/// How hard entries are compressed: beyond it the encoder needs tens of MiB.
const ENTRIES_LEVEL: i32 = 3;
/// Bytes written, and read back, at once.
const BUFFER_BYTES: usize = 64 << 10;

/// Why a layer has no index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// What came is not the layer that the manifest names.
    #[error(
        "the layer's bytes have digest {actual}, not {expected}; they must not be trusted, nor the registry that sent them"
    )]
    Digest {
        /// By the manifest.
        expected: Digest,
        /// Of what came.
        actual: Digest,
    },
    /// More or fewer bytes came than the manifest says.
    #[error("the layer has {expected} bytes by its manifest, and {actual} came")]
    Size {
        /// By the manifest.
        expected: u64,
        /// So far, when there are more.
        actual: u64,
    },
    /// The archive is not the one that the image's config names.
    #[error(
        "the layer's archive has digest {actual}, and the image's config says {expected}: the image contradicts itself"
    )]
    DiffId {
        /// By the config.
        expected: Digest,
        /// Of what was decoded.
        actual: Digest,
    },
    /// The layer cannot be decompressed.
    #[error("the layer cannot be decompressed at byte {at}: {reason}")]
    Broken {
        /// Where, in the compressed layer.
        at: u64,
        /// What the decoder says.
        reason: String,
    },
    /// The layer is well, but cannot be read piece by piece.
    #[error("the layer cannot be read lazily: {reason}; it can only be pulled as a whole")]
    NotLazy {
        /// Why not.
        reason: String,
    },
    /// The archive is none.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The index cannot be written.
    #[error("the layer index cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// An index that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// The layer it is of.
    pub layer: Layer,
    /// The index's own digest and size.
    pub index: Blob,
}

/// The decoder of each coding.
#[derive(Debug)]
enum Scan {
    /// The first bytes, which tell the coding.
    Unknown(Vec<u8>),
    Plain(plain::Scan),
    Gzip(gzip::scan::Scan),
    Zstd(zstandard::Scan),
}

/// Takes a layer's bytes in order and makes its index. Holds about 5 MiB, and of a Zstandard layer the window that its frames ask for, at most
/// 128 MiB; what grows with the layer goes to files.
#[derive(Debug)]
pub struct Builder {
    packed: Blob,
    diff_id: Digest,
    whole: Hasher,
    taken: u64,
    scan: Scan,
    cutter: Cutter,
}

impl Builder {
    /// The index of `packed`, whose archive is `diff_id`, as the file `path`, which is replaced. Other files live in its directory while
    /// it is made; they have no names.
    ///
    /// # Errors
    /// [`BuildError::Io`]; [`BuildError::NotLazy`] for a layer of more than 16 TiB.
    pub fn create(path: &Path, packed: Blob, diff_id: Digest) -> Result<Self, BuildError> {
        if packed.size_bytes > MAX_LAYER_BYTES {
            return Err(BuildError::NotLazy { reason: format!("it has {} bytes", packed.size_bytes) });
        }
        let cutter = Cutter::create(path)?;
        Ok(Self { packed, diff_id, whole: Hasher::new(), taken: 0, scan: Scan::Unknown(Vec::new()), cutter })
    }

    /// The next bytes of the compressed layer. After an error the file is of no use.
    ///
    /// # Errors
    /// [`BuildError`], as soon as it is known.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.taken = self.taken.saturating_add(bytes.len() as u64);
        if self.taken > self.packed.size_bytes {
            return Err(BuildError::Size { expected: self.packed.size_bytes, actual: self.taken });
        }
        self.whole.update(bytes);
        if let Scan::Unknown(head) = &mut self.scan {
            head.extend_from_slice(bytes);
            if head.len() < Coding::MAGIC_BYTES {
                return Ok(());
            }
            let head = std::mem::take(head);
            return self.begin(&head);
        }
        self.decode(bytes)
    }

    /// The first bytes, which tell the coding.
    fn begin(&mut self, head: &[u8]) -> Result<(), BuildError> {
        self.scan = match Coding::of(head) {
            Coding::Plain => Scan::Plain(plain::Scan::default()),
            Coding::Gzip => Scan::Gzip(gzip::scan::Scan::new()),
            Coding::Zstd => Scan::Zstd(zstandard::Scan::new()?),
        };
        self.decode(head)
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        match &mut self.scan {
            Scan::Unknown(_) => Ok(()),
            Scan::Plain(scan) => scan.push(bytes, &mut self.cutter),
            Scan::Gzip(scan) => scan.push(bytes, &mut self.cutter),
            Scan::Zstd(scan) => scan.push(bytes, &mut self.cutter),
        }
    }

    /// All bytes came: writes the rest of the file.
    ///
    /// # Errors
    /// [`BuildError`]: above all when the bytes are not those that the image names.
    pub fn finish(mut self) -> Result<Built, BuildError> {
        if let Scan::Unknown(head) = &mut self.scan {
            let head = std::mem::take(head);
            self.begin(&head)?;
        }
        let actual = std::mem::take(&mut self.whole).finish();
        if self.taken != self.packed.size_bytes {
            return Err(BuildError::Size { expected: self.packed.size_bytes, actual: self.taken });
        }
        if actual != self.packed.digest {
            return Err(BuildError::Digest { expected: self.packed.digest, actual });
        }
        let coding = match &self.scan {
            Scan::Unknown(_) | Scan::Plain(_) => Coding::Plain,
            Scan::Gzip(scan) => scan.finish().map(|()| Coding::Gzip)?,
            Scan::Zstd(scan) => scan.finish().map(|()| Coding::Zstd)?,
        };
        self.cutter.finish(coding, self.packed, self.diff_id)
    }
}

/// A frame that has not ended.
#[derive(Debug, Clone, Copy)]
struct Open {
    at: u64,
    start: Start,
    window: Window,
}

/// Cuts what a decoder makes into frames, and writes down what must be known of them.
pub(crate) struct Cutter {
    archive: Hasher,
    frame: Hasher,
    /// Bytes of the archive so far.
    at: u64,
    open: Option<Open>,
    /// Where the last frame ends in the compressed layer, as far as is known.
    packed_end: u64,
    index: BufWriter<File>,
    windows_bytes: u64,
    compressor: zstd::bulk::Compressor<'static>,
    /// Records of the frame table.
    table: BufWriter<File>,
    frames: u64,
    tar: TarReader,
    entries: Encoder<zstd::stream::write::Encoder<'static, BufWriter<File>>>,
    entry_count: u64,
}

impl std::fmt::Debug for Cutter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cutter").field("at", &self.at).field("frames", &self.frames).finish_non_exhaustive()
    }
}

impl Cutter {
    fn create(path: &Path) -> io::Result<Self> {
        let buffered = |file| BufWriter::with_capacity(BUFFER_BYTES, file);
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let mut index = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
        index.seek(SeekFrom::Start(PAGE_BYTES as u64))?;
        let entries = zstd::stream::write::Encoder::new(buffered(tempfile::tempfile_in(dir)?), ENTRIES_LEVEL);
        let mut entries = entries?;
        entries.include_checksum(true)?;
        Ok(Self {
            archive: Hasher::new(),
            frame: Hasher::new(),
            at: 0,
            open: None,
            packed_end: 0,
            index: buffered(index),
            windows_bytes: 0,
            compressor: zstd::bulk::Compressor::new(WINDOW_LEVEL)?,
            table: buffered(tempfile::tempfile_in(dir)?),
            frames: 0,
            tar: TarReader::new(),
            entries: Encoder::new(entries),
            entry_count: 0,
        })
    }

    /// The next bytes of the archive.
    pub(crate) fn output(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.at += bytes.len() as u64;
        if self.open.is_some_and(|open| self.at - open.at > MAX_FRAME_BYTES) {
            let reason = format!("more than {MAX_FRAME_BYTES} of its bytes can only be decompressed together");
            return Err(BuildError::NotLazy { reason });
        }
        if self.at > MAX_LAYER_BYTES {
            return Err(BuildError::NotLazy { reason: format!("its archive has more than {MAX_LAYER_BYTES} bytes") });
        }
        self.archive.update(bytes);
        self.frame.update(bytes);
        let Self { tar, entries, entry_count, .. } = self;
        let mut written = Ok(());
        tar.push(bytes, |entry| {
            *entry_count += 1;
            if written.is_ok() {
                written = entries.put(&entry);
            }
        })?;
        written?;
        if self.entry_count > MAX_ENTRIES {
            return Err(BuildError::NotLazy { reason: format!("it has more than {MAX_ENTRIES} paths") });
        }
        Ok(())
    }

    /// A frame may begin here. True: one does.
    pub(crate) fn boundary(&mut self, start: Start) -> Result<bool, BuildError> {
        self.end(start.bit.div_ceil(8))?;
        if self.open.is_some_and(|open| self.at - open.at < TARGET_BYTES) {
            return Ok(false);
        }
        self.close()?;
        self.open = Some(Open { at: self.at, start, window: Window::default() });
        Ok(true)
    }

    /// What the frame that began last refers to.
    pub(crate) fn window(&mut self, window: &[u8]) -> io::Result<()> {
        let Some(open) = self.open.as_mut().filter(|_| !window.is_empty()) else { return Ok(()) };
        let stored = self.compressor.compress(window)?;
        self.index.write_all(&stored)?;
        let stored_bytes = u32::try_from(stored.len()).map_err(io::Error::other)?;
        open.window = Window { at: self.windows_bytes, stored_bytes };
        self.windows_bytes += stored.len() as u64;
        Ok(())
    }

    /// The frame ends here at the earliest, in bytes of the compressed layer.
    pub(crate) fn end(&mut self, packed_end: u64) -> Result<(), BuildError> {
        self.packed_end = packed_end;
        if self.open.is_some_and(|open| packed_end - open.start.bit / 8 > MAX_PACKED_BYTES) {
            let reason = format!("more than {MAX_PACKED_BYTES} of its bytes decompress to less than a frame");
            return Err(BuildError::NotLazy { reason });
        }
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        let Some(Open { at, start, window }) = self.open.take().filter(|open| open.at < self.at) else { return Ok(()) };
        let digest = std::mem::take(&mut self.frame).finish();
        self.table.write_all(&Record { at, start, window, digest }.to_bytes())?;
        self.frames += 1;
        Ok(())
    }

    fn finish(mut self, coding: Coding, packed: Blob, diff_id: Digest) -> Result<Built, BuildError> {
        if let Some(open) = self.open.filter(|open| open.at == self.at) {
            // Nothing is decoded from what follows the last frame.
            self.packed_end = open.start.bit.div_ceil(8);
        }
        self.close()?;
        self.tar.finish()?;
        let actual = std::mem::take(&mut self.archive).finish();
        if actual != diff_id {
            return Err(BuildError::DiffId { expected: diff_id, actual });
        }
        let unpacked = Blob { digest: diff_id, size_bytes: self.at };
        let layer = Layer { coding, packed, unpacked, frames: self.frames, entries: self.entry_count };
        copy_table(self.table, &mut self.index)?;
        let mut entries = self.entries.into_inner().finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        entries.seek(SeekFrom::Start(0))?;
        let entries_bytes = io::copy(&mut entries, &mut self.index)?;
        let mut index = self.index.into_inner().map_err(io::IntoInnerError::into_error)?;
        let header = Header { layer, windows_bytes: self.windows_bytes, entries_bytes, packed_end: self.packed_end };
        index.write_all_at(&header.to_page(), 0)?;
        index.sync_data()?;
        Ok(Built { layer, index: digest_of(&mut index)? })
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
