//! A table of contents as a layer index: entries as they are, and the pieces of files as the frames of the payload.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use penstock_blob::{Blob, ByteRange, Digest};

use super::{ForeignError, Format, time, toc::TocEntry};
use crate::{
    entry::{Content, DeviceNumber, Entry, EntryError, EntryPath, Kind, LinkTarget, Piece, Time, Xattrs},
    frame::{Coding, MAX_FRAME_BYTES, MAX_PACKED_BYTES, Proof, Start},
    index::{
        build::Built,
        format::{Layer, MAX_ENTRIES, MAX_FRAMES, MAX_LAYER_BYTES, Record, Shape},
        write::Writer,
    },
    whiteout::{NameError, Named},
};

/// Names at the root of a layer that are the format's own.
const TOC_NAME: &[u8] = b"stargz.index.json";
/// Everything before it is read by a start of the image.
const PREFETCH_LANDMARK: &[u8] = b".prefetch.landmark";
/// No such thing is known of the image.
const NO_PREFETCH_LANDMARK: &[u8] = b".no.prefetch.landmark";
/// Most pieces that begin in the same gzip member or Zstandard frame.
const MAX_SHARING: usize = 1 << 16;

/// A file whose pieces are coming.
struct Open {
    name: String,
    entry: Entry,
    size: u64,
    /// Bytes of it that came, holes included.
    covered: u64,
    pieces: Vec<Piece>,
    digest: Option<String>,
    is_hidden: bool,
}

/// A piece of a file whose end in the compressed layer is not known yet.
struct Waiting {
    at: u64,
    before: u32,
    digest: Digest,
}

/// The index that is being written.
pub(super) struct Payload {
    packed: Blob,
    writer: Writer,
    /// Where pieces end in the compressed layer at the latest.
    pieces_end: u64,
    /// Bytes of the payload so far.
    at: u64,
    /// Entries so far.
    nth: u64,
    file: Option<Open>,
    /// Pieces that begin at byte `offset` of the compressed layer.
    waiting: Vec<Waiting>,
    offset: u64,
    first_bytes: u64,
}

impl Payload {
    pub(super) fn create(path: &Path, packed: Blob, pieces_end: u64) -> Result<Self, ForeignError> {
        if packed.size_bytes > MAX_LAYER_BYTES {
            return Err(ForeignError::NotLazy { reason: format!("it has {} bytes", packed.size_bytes) });
        }
        let writer = Writer::create(path)?;
        let (at, nth, offset) = (0, 0, 0);
        Ok(Self { packed, writer, pieces_end, at, nth, file: None, waiting: Vec::new(), offset, first_bytes: 0 })
    }

    /// The next entry.
    pub(super) fn add(&mut self, entry: &TocEntry) -> Result<(), ForeignError> {
        if entry.kind == "chunk" {
            self.piece(entry)?;
        } else {
            self.close()?;
            self.open(entry)?;
        }
        self.nth += 1;
        if self.nth > MAX_ENTRIES.saturating_add(MAX_FRAMES) || self.writer.entries() > MAX_ENTRIES {
            return Err(ForeignError::NotLazy { reason: format!("it has more than {MAX_ENTRIES} paths") });
        }
        Ok(())
    }

    fn open(&mut self, toc: &TocEntry) -> Result<(), ForeignError> {
        let named = Named::of(toc.name.as_bytes()).map_err(|error| match error {
            NameError::Nothing => self.nonsense("it is a whiteout of nothing"),
            NameError::Path(error) => self.wrong(error),
        })?;
        let (path, kind) = match named {
            Named::Whiteout(path) => (path, Kind::Whiteout),
            Named::Opaque(path) => (path, Kind::Opaque),
            Named::Itself(path) => (path, self.kind(toc)?),
        };
        let is_regular = matches!(kind, Kind::Regular(_));
        if path.is_root() && !matches!(kind, Kind::Directory | Kind::Opaque) {
            return Err(self.nonsense("it would replace the root by something that is no directory"));
        }
        let is_hidden = [TOC_NAME, PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK].contains(&path.as_bytes());
        if path.as_bytes() == PREFETCH_LANDMARK {
            self.first_bytes = self.at;
        }
        let entry = self.entry(path, kind, toc)?;
        if !is_regular {
            return if is_hidden { Ok(()) } else { Ok(self.writer.entry(&entry)?) };
        }
        let (name, size, digest) = (toc.name.clone(), toc.size, toc.digest.clone());
        self.file = Some(Open { name, entry, size, covered: 0, pieces: Vec::new(), digest, is_hidden });
        if size > 0 { self.piece(toc) } else { Ok(()) }
    }

    fn entry(&self, path: EntryPath, kind: Kind, toc: &TocEntry) -> Result<Entry, ForeignError> {
        let mtime = match toc.modtime.as_deref() {
            None | Some("") => Time::default(),
            Some(text) => time::rfc3339(text).ok_or_else(|| self.nonsense("its time is none"))?,
        };
        let decode = |(name, value): (&String, &String)| {
            let value = STANDARD.decode(value).map_err(|_| self.nonsense("an extended attribute is not in base64"))?;
            Ok((name.clone().into_bytes(), value))
        };
        let xattrs: Result<Vec<_>, ForeignError> = toc.xattrs.iter().flatten().map(decode).collect();
        let xattrs = Xattrs::new(xattrs?).map_err(|error| self.wrong(error))?;
        let mode = u16::try_from(toc.mode & 0o7777).unwrap_or_default();
        Ok(Entry { path, kind, mode, uid: toc.uid, gid: toc.gid, mtime, xattrs })
    }

    fn kind(&self, toc: &TocEntry) -> Result<Kind, ForeignError> {
        let wrong = |error| self.wrong(error);
        let device = || DeviceNumber::new(toc.dev_major, toc.dev_minor).map_err(wrong);
        Ok(match toc.kind.as_str() {
            "reg" => Kind::Regular(Content::default()),
            "dir" => Kind::Directory,
            "symlink" => Kind::Symlink(LinkTarget::new(toc.link_name.as_bytes()).map_err(wrong)?),
            "hardlink" => Kind::HardLink(EntryPath::new(toc.link_name.as_bytes()).map_err(wrong)?),
            "char" => Kind::CharDevice(device()?),
            "block" => Kind::BlockDevice(device()?),
            "fifo" => Kind::Fifo,
            _ => return Err(self.nonsense("it is of an unknown type")),
        })
    }

    /// A piece of the file that is open.
    fn piece(&mut self, toc: &TocEntry) -> Result<(), ForeignError> {
        let Some(file) = self.file.as_mut().filter(|file| file.name == toc.name) else {
            return Err(self.nonsense("it is a piece of another file than the one before"));
        };
        let left = file.size - file.covered;
        let len = if toc.chunk_size == 0 { left } else { toc.chunk_size };
        let (at, covered) = (self.at, file.covered);
        if toc.chunk_offset != covered || len == 0 || len > left {
            return Err(self.nonsense("its pieces do not follow each other"));
        }
        file.covered += len;
        if toc.chunk_type == "zeros" || file.is_hidden {
            return if file.is_hidden { self.end_waiting(toc.offset) } else { Ok(()) };
        }
        // The digest of the file is that of its only piece.
        let whole = file.digest.as_ref().filter(|_| len == file.size);
        let digest = toc.chunk_digest.as_ref().filter(|digest| !digest.is_empty()).or(whole);
        let digest: Option<Digest> = digest.and_then(|digest| digest.parse().ok());
        let range = ByteRange::at(at, len).ok();
        match (file.pieces.last_mut(), range) {
            (Some(last), Some(range)) if last.end() == covered => last.range = last.range.cover(range),
            (_, Some(range)) => file.pieces.push(Piece { at: covered, range }),
            (_, None) => {}
        }
        let digest = digest.ok_or_else(|| self.nonsense("a piece has no sha256"))?;
        self.end_waiting(toc.offset)?;
        let total = toc.inner_offset.checked_add(len).filter(|&total| total <= MAX_FRAME_BYTES);
        let before =
            u32::try_from(toc.inner_offset).ok().filter(|_| total.is_some()).ok_or_else(|| ForeignError::NotLazy {
                reason: format!("a piece of a file needs more than {MAX_FRAME_BYTES} bytes decoded"),
            })?;
        self.at = at.checked_add(len).filter(|&at| at <= MAX_LAYER_BYTES).ok_or_else(|| ForeignError::NotLazy {
            reason: format!("its files have more than {MAX_LAYER_BYTES} bytes"),
        })?;
        if self.waiting.len() >= MAX_SHARING {
            return Err(self.nonsense("too many pieces begin at the same place"));
        }
        self.waiting.push(Waiting { at, before, digest });
        Ok(())
    }

    /// What comes next begins at byte `offset` of the compressed layer: pieces that begin before it end there at the latest.
    fn end_waiting(&mut self, offset: u64) -> Result<(), ForeignError> {
        if offset < self.offset || offset >= self.pieces_end {
            return Err(self.nonsense("its piece lies before the one before it, or beyond the layer's end"));
        }
        if offset > self.offset {
            self.flush(offset)?;
            self.offset = offset;
        }
        Ok(())
    }

    fn flush(&mut self, end: u64) -> Result<(), ForeignError> {
        let start = Start::at(self.offset);
        let packed_bytes = (end - self.offset).min(MAX_PACKED_BYTES);
        for Waiting { at, before, digest } in self.waiting.drain(..) {
            let shape = Shape::Part { before, packed_bytes };
            self.writer.record(&Record { at, start, shape, proof: Proof::Decoded(digest), is_first: false })?;
        }
        if self.writer.frames() > MAX_FRAMES {
            return Err(ForeignError::NotLazy { reason: format!("it has more than {MAX_FRAMES} pieces") });
        }
        Ok(())
    }

    /// The file that is open has no more pieces.
    fn close(&mut self) -> Result<(), ForeignError> {
        let Some(Open { entry, size, covered, pieces, is_hidden, .. }) = self.file.take() else { return Ok(()) };
        if covered != size {
            return Err(self.nonsense("the pieces of the file before it are not all of it"));
        }
        if is_hidden {
            return Ok(());
        }
        let content = Content::new(size, pieces).map_err(|error| self.wrong(error))?;
        Ok(self.writer.entry(&Entry { kind: Kind::Regular(content), ..entry })?)
    }

    /// No more entries come: writes the rest of the index. `toc` is the digest that binds the table to the manifest.
    pub(super) fn finish(mut self, format: Format, toc: Digest) -> Result<Built, ForeignError> {
        self.close()?;
        self.flush(self.pieces_end)?;
        let coding = match format {
            Format::Estargz => Coding::Gzip,
            Format::ZstdChunked => Coding::Zstd,
        };
        let name = super::archive(format, &self.packed.digest, &toc);
        let layer = Layer {
            coding,
            packed: self.packed,
            unpacked: Blob { digest: name, size_bytes: self.at },
            frames: self.writer.frames(),
            entries: self.writer.entries(),
            is_translated: true,
            is_streamed: false,
            first_bytes: self.first_bytes,
        };
        let index = self.writer.finish(layer, self.packed.size_bytes)?;
        Ok(Built { layer, index })
    }

    fn nonsense(&self, what: &'static str) -> ForeignError {
        ForeignError::Nonsense { nth: self.nth, what }
    }

    fn wrong(&self, error: EntryError) -> ForeignError {
        ForeignError::Entry { nth: self.nth, error }
    }
}
