//! SOCI: a table of contents of an ordinary layer, a *ztoc*, in a blob of its own. Format: docs/formats/soci.md.
//!
//! The archive is the tar archive itself, up to where its last file ends: ztocs count no further. So its sha256 is not the diff ID, and it has
//! a derived name, made from the digests of the layer and of the ztoc. A frame is a span, whose sha256 is that of its compressed bytes.

mod prefetch;

use std::path::Path;

use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Purpose, ReadError};

use super::{
    ForeignError, TRIES,
    flat::{Buffer, Table},
    time,
};
use crate::{
    entry::{Content, DeviceNumber, Entry, EntryError, EntryPath, Kind, LinkTarget, Time, Xattrs},
    frame::{Coding, MAX_FRAME_BYTES, MAX_PACKED_BYTES, Proof, Start, WINDOW_BYTES},
    index::{
        build::Built,
        format::{Layer, MAX_ENTRIES, MAX_LAYER_BYTES, Record, Shape, Window},
        write::Writer,
    },
    whiteout::{NameError, Named},
};

pub use self::prefetch::{MAX_PREFETCH_BYTES, Prefetch};

/// Most bytes of a ztoc, which is held while it is read: those of a layer of 50 GiB in spans of 4 MiB, and a million paths.
const MAX_ZTOC_BYTES: u64 = 512 << 20;
/// The version that is read.
const VERSION: &[u8] = b"0.9";
/// Compression algorithms.
const GZIP: i8 = 1;
const UNCOMPRESSED: i8 = 2;
/// Bytes before the checkpoints of a gzip layer: their number (4) and the span size (8).
const HEAD_BYTES: usize = 12;
/// Bytes of a checkpoint: where in the compressed (8) and in the decoded layer (8), bits (1), window.
const CHECKPOINT_BYTES: usize = 17 + WINDOW_BYTES;
/// How the key of an extended attribute in a pax record begins, and that of a record that makes a file sparse.
const XATTR: &[u8] = b"SCHILY.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

/// Reads the ztoc of `layer` from `source` and writes it as a layer index to `path`, which is replaced. `prefetch` says what a start reads.
///
/// The ztoc is compared with its digest, and believed from there on.
///
/// # Errors
/// [`ForeignError`]; the file is of no use then.
pub async fn translate(
    source: &dyn BlobSource,
    (ztoc, prefetch): (Blob, Prefetch),
    layer: Blob,
    path: &Path,
) -> Result<Built, ForeignError> {
    let range = ztoc.all().filter(|range| range.len() <= MAX_ZTOC_BYTES);
    let range = range.ok_or(ForeignError::TocPlace { at: 0, bytes: ztoc.size_bytes })?;
    let mut tries = 1;
    let bytes = loop {
        let bytes = source.read(ztoc, range, Purpose::Demand).await?;
        let actual = Digest::of(&bytes);
        if actual == ztoc.digest {
            break bytes;
        }
        source.reject(&ztoc, range);
        if tries == TRIES {
            return Err(ForeignError::TocDigest { expected: ztoc.digest, actual });
        }
        tries += 1;
    };
    let path = path.to_owned();
    let work = tokio::task::spawn_blocking(move || write((&bytes, &prefetch), layer, &path));
    // An error: the runtime is stopping.
    work.await.map_err(|_| ForeignError::Read(ReadError::Stopping))?
}

fn broken(reason: &str) -> ForeignError {
    ForeignError::Toc { reason: reason.to_owned() }
}

/// Writes a ztoc as a layer index.
fn write((ztoc, prefetch): (&[u8], &Prefetch), packed: Blob, path: &Path) -> Result<Built, ForeignError> {
    let damaged = || broken("it is no sound ztoc");
    let buffer = Buffer::new(ztoc);
    let root = buffer.root().ok_or_else(damaged)?;
    if root.bytes(0).ok_or_else(damaged)? != VERSION {
        return Err(broken("it is of another version than 0.9"));
    }
    let [packed_bytes, archive_bytes] = [2, 3].map(|nth| root.number64(nth));
    let archive_bytes = archive_bytes.filter(|&bytes| bytes <= MAX_LAYER_BYTES).ok_or_else(damaged)?;
    if packed_bytes != Some(packed.size_bytes) || packed.size_bytes > MAX_LAYER_BYTES {
        return Err(broken("it is of another layer"));
    }
    let mut writer = Writer::create(path)?;
    let spans = root.table(5).flatten().ok_or_else(damaged)?;
    let spans = Spans { table: spans, packed_bytes: packed.size_bytes, archive_bytes, prefetch };
    let coding = spans.write(&mut writer)?;
    let toc = root.table(4).flatten().ok_or_else(damaged)?;
    for (file, nth) in toc.tables(0).ok_or_else(damaged)?.zip(0_u64..) {
        if nth >= MAX_ENTRIES {
            return Err(ForeignError::NotLazy { reason: format!("it has more than {MAX_ENTRIES} paths") });
        }
        let file = File { table: file.ok_or_else(damaged)?, nth, archive_bytes };
        writer.entry(&file.entry()?)?;
    }
    let name = Digest::derived("archive by ztoc", &[packed.digest, Digest::of(ztoc)]);
    let unpacked = Blob { digest: name, size_bytes: archive_bytes };
    let (frames, entries) = (writer.frames(), writer.entries());
    let layer =
        Layer { coding, packed, unpacked, frames, entries, is_translated: true, is_streamed: false, first_bytes: 0 };
    let index = writer.finish(layer, packed.size_bytes)?;
    Ok(Built { layer, index })
}

/// What a ztoc says of the layer's compression.
struct Spans<'b, 'a> {
    table: Table<'b, 'a>,
    packed_bytes: u64,
    archive_bytes: u64,
    prefetch: &'b Prefetch,
}

/// Where a span begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span<'a> {
    /// In the archive.
    at: u64,
    start: Start,
    window: &'a [u8],
}

impl Spans<'_, '_> {
    /// Writes a frame for each span; answers how they are coded.
    fn write(&self, writer: &mut Writer) -> Result<Coding, ForeignError> {
        let damaged = || broken("its spans make no sense");
        let count = usize::try_from(self.table.number32(1).ok_or_else(damaged)?).map_err(|_| damaged())?;
        let digests = self.table.texts(2).ok_or_else(damaged)?;
        let checkpoints = self.table.bytes(3).ok_or_else(damaged)?;
        // The number is that of the last span.
        if digests.len().checked_sub(1) != Some(count) {
            return Err(damaged());
        }
        let (coding, spans) = match self.table.byte(0, GZIP).ok_or_else(damaged)? {
            0 | GZIP => (Coding::Gzip, gzip_spans(checkpoints, digests.len())),
            UNCOMPRESSED => (Coding::Plain, plain_spans(checkpoints, digests.len())),
            _ => return Err(ForeignError::NotLazy { reason: "its ztoc is of an unknown compression".into() }),
        };
        let spans = spans.ok_or_else(damaged)?;
        for (nth, digest) in digests.enumerate() {
            let digest = digest.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
            let digest: Digest = digest.ok_or_else(|| broken("a span has no sha256"))?;
            let Some(span) = spans.get(nth) else { return Err(damaged()) };
            self.check(coding, *span, spans.get(nth + 1))?;
            let is_needed = span.window.iter().any(|&byte| byte != 0);
            let window = if is_needed { writer.window(span.window)? } else { Window::default() };
            let (shape, is_first) = (Shape::Whole(window), self.prefetch.has(nth));
            writer.record(&Record { at: span.at, start: span.start, shape, proof: Proof::Packed(digest), is_first })?;
        }
        Ok(coding)
    }

    /// That a span lies before the next one and in the layer, and is not too large: what [`crate::Index`] asks of a frame, with a reason.
    fn check(&self, coding: Coding, span: Span<'_>, next: Option<&Span<'_>>) -> Result<(), ForeignError> {
        let end = next.map_or(self.archive_bytes, |next| next.at);
        let packed_end = next.map_or(self.packed_bytes, |next| next.start.bit.div_ceil(8));
        let bytes = ByteRange::new(span.at, end);
        let packed = ByteRange::new(span.start.bit / 8, packed_end);
        let (Ok(bytes), Ok(packed)) = (bytes, packed) else { return Err(broken("its spans do not follow each other")) };
        let is_placed = coding != Coding::Plain || packed.contains(bytes);
        if packed.end() > self.packed_bytes || bytes.end() > self.archive_bytes || !is_placed {
            return Err(broken("a span lies beyond the layer's end"));
        }
        if bytes.len() > MAX_FRAME_BYTES || packed.len() > MAX_PACKED_BYTES {
            return Err(ForeignError::NotLazy { reason: format!("a span of its ztoc has {} bytes", bytes.len()) });
        }
        Ok(())
    }
}

/// The checkpoints of a gzip layer. Older tools leave out the first one, which stands behind a header of ten bytes.
fn gzip_spans(blob: &[u8], count: usize) -> Option<Vec<Span<'_>>> {
    let records = blob.get(HEAD_BYTES..)?;
    if !records.len().is_multiple_of(CHECKPOINT_BYTES) {
        return None;
    }
    let first = Span { at: 0, start: Start { bit: 80, is_inside: true }, window: &[] };
    let mut spans = match count.checked_sub(records.len() / CHECKPOINT_BYTES)? {
        0 => Vec::new(),
        1 => vec![first],
        _ => return None,
    };
    for record in records.chunks_exact(CHECKPOINT_BYTES) {
        let number = |at: usize| Some(u64::from_le_bytes(*record.get(at..)?.first_chunk()?));
        let (byte, at, bits) = (number(0)?, number(8)?, u64::from(*record.get(16)?));
        let bit = byte.checked_mul(8)?.checked_sub(bits).filter(|_| bits < 8)?;
        // Nothing comes before the first one.
        let window = if at == 0 { &[][..] } else { record.get(17..)? };
        spans.push(Span { at, start: Start { bit, is_inside: true }, window });
    }
    (spans.first()?.at == 0).then_some(spans)
}

/// The spans of a layer that is not compressed: all of one size, which a buffer of its own says.
fn plain_spans(blob: &[u8], count: usize) -> Option<Vec<Span<'_>>> {
    let buffer = Buffer::new(blob);
    let span_bytes = buffer.root()?.number64(1)?;
    let span = |nth: u64| {
        let at = nth.checked_mul(span_bytes)?;
        Some(Span { at, start: Start { bit: at.checked_mul(8)?, is_inside: false }, window: &[] })
    };
    (0..count as u64).map(span).collect()
}

/// One file of a ztoc.
struct File<'b, 'a> {
    table: Table<'b, 'a>,
    nth: u64,
    archive_bytes: u64,
}

impl<'a> File<'_, 'a> {
    fn entry(&self) -> Result<Entry, ForeignError> {
        let named = Named::of(self.text(0)?).map_err(|error| match error {
            NameError::Nothing => self.nonsense("it is a whiteout of nothing"),
            NameError::Path(error) => self.wrong(error),
        })?;
        let (path, kind) = match named {
            Named::Whiteout(path) => (path, Kind::Whiteout),
            Named::Opaque(path) => (path, Kind::Opaque),
            Named::Itself(path) => (path, self.kind()?),
        };
        if path.is_root() && !matches!(kind, Kind::Directory | Kind::Opaque) {
            return Err(self.nonsense("it would replace the root by something that is no directory"));
        }
        let time = std::str::from_utf8(self.text(10)?).unwrap_or_default();
        let mtime = if time.is_empty() { Some(Time::default()) } else { time::rfc3339(time) };
        let mtime = mtime.ok_or_else(|| self.nonsense("its time is none"))?;
        let mode = u16::try_from(self.number(5)? & 0o7777).unwrap_or_default();
        let [uid, gid] = [6, 7].map(|nth| self.table.number32(nth).ok_or_else(|| self.damaged()));
        Ok(Entry { path, kind, mode, uid: uid?, gid: gid?, mtime, xattrs: self.xattrs()? })
    }

    fn kind(&self) -> Result<Kind, ForeignError> {
        let wrong = |error| self.wrong(error);
        let device = || DeviceNumber::new(self.number(11)?, self.number(12)?).map_err(wrong);
        Ok(match self.text(1)? {
            b"reg" => Kind::Regular(self.content()?),
            b"dir" => Kind::Directory,
            b"symlink" => Kind::Symlink(LinkTarget::new(self.text(4)?).map_err(wrong)?),
            b"hardlink" => Kind::HardLink(EntryPath::new(self.text(4)?).map_err(wrong)?),
            b"char" => Kind::CharDevice(device()?),
            b"block" => Kind::BlockDevice(device()?),
            b"fifo" => Kind::Fifo,
            _ => return Err(self.nonsense("it is of an unknown type")),
        })
    }

    fn content(&self) -> Result<Content, ForeignError> {
        let (at, size) = (self.number(2)?, self.number(3)?);
        let range = match size {
            0 => None,
            _ => Some(ByteRange::at(at, size).map_err(|_| self.damaged())?),
        };
        if range.is_some_and(|range| range.end() > self.archive_bytes) {
            return Err(self.nonsense("it lies beyond the archive's end"));
        }
        Content::whole(range).map_err(|error| self.wrong(error))
    }

    /// The extended attributes among the pax records.
    fn xattrs(&self) -> Result<Xattrs, ForeignError> {
        let mut found = Vec::new();
        for record in self.table.tables(13).ok_or_else(|| self.damaged())? {
            let record = record.ok_or_else(|| self.damaged())?;
            let [key, value] = [0, 1].map(|nth| record.bytes(nth).ok_or_else(|| self.damaged()));
            let (key, value) = (key?, value?);
            if key.starts_with(SPARSE) {
                let reason = "it has a sparse file, and ztocs do not say where the parts of one are".to_owned();
                return Err(ForeignError::NotLazy { reason });
            }
            if let Some(name) = key.strip_prefix(XATTR) {
                found.push((name.to_vec(), value.to_vec()));
            }
        }
        Xattrs::new(found).map_err(|error| self.wrong(error))
    }

    fn text(&self, nth: usize) -> Result<&'a [u8], ForeignError> {
        self.table.bytes(nth).ok_or_else(|| self.damaged())
    }

    fn number(&self, nth: usize) -> Result<u64, ForeignError> {
        self.table.number64(nth).ok_or_else(|| self.damaged())
    }

    fn damaged(&self) -> ForeignError {
        self.nonsense("the buffer is broken, or a number is negative")
    }

    fn nonsense(&self, what: &'static str) -> ForeignError {
        ForeignError::Nonsense { nth: self.nth, what }
    }

    fn wrong(&self, error: EntryError) -> ForeignError {
        ForeignError::Entry { nth: self.nth, error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_read_with_and_without_the_first_one() {
        let record = |byte: i64, at: i64, bits: u8| {
            [&byte.to_le_bytes()[..], &at.to_le_bytes(), &[bits], &[7; WINDOW_BYTES]].concat()
        };
        let head = [&2_i32.to_le_bytes()[..], &4096_i64.to_le_bytes()].concat();
        let (first, second) = (record(10, 0, 0), record(500, 4100, 3));
        let todays = [&head[..], &first, &second].concat();
        let older = [&head[..], &second].concat();
        let spans = gzip_spans(&todays, 2).unwrap();
        assert_eq!(gzip_spans(&older, 2).unwrap(), spans);
        assert_eq!((spans[0].start.bit, spans[0].window.len()), (80, 0));
        assert_eq!((spans[1].at, spans[1].start.bit, spans[1].window.len()), (4100, 500 * 8 - 3, WINDOW_BYTES));
        assert_eq!(gzip_spans(&todays, 1), None, "more than there are spans");
        assert_eq!(gzip_spans(&older, 3), None, "two are missing");
        assert_eq!(gzip_spans(&older, 1), None, "the first one is not at the beginning");
        assert_eq!(gzip_spans(&todays[..todays.len() - 1], 2), None);
        for (byte, at, bits) in [(0, 0, 1), (10, 0, 8), (-1, 0, 0), (i64::MAX, 0, 0)] {
            assert_eq!(gzip_spans(&[&head[..], &record(byte, at, bits)].concat(), 1), None, "{byte} {at} {bits}");
        }
    }
}
