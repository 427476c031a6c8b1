//! Making a layer index while the layer goes by, once, in order. What it is made from is verified: at the end the digests of both the
//! layer and its archive are compared with what the image says, and the index is refused when one differs.

use std::{io, path::Path};

use penstock_blob::{Blob, Digest, Hasher};

use super::{
    format::{Layer, MAX_ENTRIES, MAX_LAYER_BYTES, Record, Shape, Window},
    write::Writer,
};
use crate::{
    frame::{Coding, MAX_FRAME_BYTES, MAX_PACKED_BYTES, Proof, Start, TARGET_BYTES},
    gzip, plain,
    tar::{TarError, TarReader},
    zstandard,
};

mod pieces;

use pieces::Pieces;

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
    /// The same frame in pieces, of a coding that can be decoded in order; empty in others.
    pieces: Option<Pieces>,
    /// Whether some frame was written as pieces.
    is_streamed: bool,
    /// Where the last frame ends in the compressed layer, as far as is known.
    packed_end: u64,
    writer: Writer,
    tar: TarReader,
}

impl std::fmt::Debug for Cutter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cutter").field("at", &self.at).field("writer", &self.writer).finish_non_exhaustive()
    }
}

impl Cutter {
    fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            archive: Hasher::new(),
            frame: Hasher::new(),
            at: 0,
            open: None,
            pieces: None,
            is_streamed: false,
            packed_end: 0,
            writer: Writer::create(path)?,
            tar: TarReader::new(),
        })
    }

    /// The next bytes of the archive.
    pub(crate) fn output(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        if let Some(pieces) = self.pieces.as_mut().filter(|_| !bytes.is_empty()) {
            pieces.output(self.at, bytes);
        }
        self.at += bytes.len() as u64;
        if self.open.is_some_and(|open| self.at - open.at > MAX_FRAME_BYTES) {
            let Some(pieces) = &mut self.pieces else {
                let reason = format!("more than {MAX_FRAME_BYTES} of its bytes can only be decompressed together");
                return Err(BuildError::NotLazy { reason });
            };
            pieces.check_window()?;
            pieces.write(&mut self.writer)?;
            self.is_streamed = true;
        }
        if self.at > MAX_LAYER_BYTES {
            return Err(BuildError::NotLazy { reason: format!("its archive has more than {MAX_LAYER_BYTES} bytes") });
        }
        self.archive.update(bytes);
        self.frame.update(bytes);
        let Self { tar, writer, .. } = self;
        let mut written = Ok(());
        tar.push(bytes, |entry| {
            if written.is_ok() {
                written = writer.entry(&entry);
            }
        })?;
        written?;
        if self.writer.entries() > MAX_ENTRIES {
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

    /// A block of a Zstandard frame begins here: a piece may, if the frame becomes too large to be decoded as one. The first block of a frame comes with
    /// the frame's window.
    pub(crate) fn block(&mut self, byte: u64, window_bytes: Option<u64>) -> Result<(), BuildError> {
        self.end(byte)?;
        let Some(open) = self.open else { return Ok(()) };
        let pieces = self.pieces.get_or_insert_with(|| Pieces::new(open.at, open.start));
        pieces.block(self.at, byte, window_bytes);
        Ok(())
    }

    /// What the frame that began last refers to.
    pub(crate) fn window(&mut self, window: &[u8]) -> io::Result<()> {
        let Some(open) = self.open.as_mut().filter(|_| !window.is_empty()) else { return Ok(()) };
        open.window = self.writer.window(window)?;
        Ok(())
    }

    /// The frame ends here at the earliest, in bytes of the compressed layer.
    pub(crate) fn end(&mut self, packed_end: u64) -> Result<(), BuildError> {
        self.packed_end = packed_end;
        let pieces = self.pieces.as_ref().filter(|pieces| pieces.is_written());
        let start = pieces.map(Pieces::start).or(self.open.map(|open| open.start));
        if start.is_some_and(|start| packed_end - start.bit / 8 > MAX_PACKED_BYTES) {
            let reason = format!("more than {MAX_PACKED_BYTES} of its bytes decompress to less than a frame");
            return Err(BuildError::NotLazy { reason });
        }
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        let pieces = self.pieces.take();
        let Some(Open { at, start, window }) = self.open.take().filter(|open| open.at < self.at) else { return Ok(()) };
        let proof = Proof::Decoded(std::mem::take(&mut self.frame).finish());
        if let Some(pieces) = pieces.filter(Pieces::is_written) {
            return pieces.finish(&mut self.writer);
        }
        self.writer.record(&Record { at, start, shape: Shape::Whole(window), proof, is_first: false })
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
        let (frames, entries) = (self.writer.frames(), self.writer.entries());
        let is_streamed = self.is_streamed;
        let layer =
            Layer { coding, packed, unpacked, frames, entries, is_translated: false, is_streamed, first_bytes: 0 };
        let index = self.writer.finish(layer, self.packed_end)?;
        Ok(Built { layer, index })
    }
}
