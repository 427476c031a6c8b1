//! TurboOCI: a small layer beside an ordinary one, with the metadata of a file system and an index of the ordinary one's gzip stream. Format:
//! docs/formats/turbooci.md.
//!
//! The small layer is an ordinary archive, and is read by an index of its own ([`crate::Builder`]). Of the large one it has `gzip.meta`, which
//! becomes a layer index without entries: what the files are is the file system's business. Its frames have no digests, for the format has none.

use std::{ops::Range, path::Path, sync::Arc};

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Purpose, ReadError};
use zlib_rs::{Inflate, InflateFlush, Status};

use super::ForeignError;
use crate::{
    entry::{Entry, Kind},
    frame::{Coding, MAX_FRAME_BYTES, MAX_PACKED_BYTES, Proof, Start, WINDOW_BYTES},
    index::{
        build::Built,
        entries::EntriesError,
        format::{Layer, MAX_LAYER_BYTES, Record, Shape, Window},
        write::Writer,
    },
};

/// The files of a small layer that are the metadata of a file system, the one that upstream prefers first.
const METADATA: [&[u8]; 2] = [b"erofs.fs.meta", b"ext4.fs.meta"];
/// The file that is the index of the gzip stream.
const GZIP_INDEX: &[u8] = b"gzip.meta";
/// Most bytes of a `gzip.meta` that are fetched: that of 16 GiB of archive that does not compress at all.
const MAX_INDEX_BYTES: u64 = 512 << 20;
/// Bytes of windows, all but a few of a `gzip.meta`, that are read and held at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Most checkpoints, and frames of a layer that is not compressed: those of a TiB of archive. Their table takes 29 MiB while it is read, and as much as it is stored.
const MAX_POINTS: usize = 1 << 20;
/// Bytes of a frame of a layer that is not compressed.
const PLAIN_BYTES: usize = 1 << 20;
const MAGIC: &[u8] = b"ddgzidx\0";
/// Bytes of the header, and those before its check.
const HEADER_BYTES: usize = 333;
const CHECKED_BYTES: usize = 329;
/// Bytes of a checkpoint: where in the archive (8), in the layer (8), of its window in the file (8), bits (1), the window's stored bytes (4).
const POINT_BYTES: usize = 29;
/// Bits of zlib's window.
const WINDOW_BITS: u8 = 15;

/// Where the files of a small layer are in its archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// The metadata: an LSMT file, in a ZFile or not.
    pub metadata: ByteRange,
    /// The index of the gzip stream; `None` when the ordinary layer is not compressed.
    pub gzip_index: Option<ByteRange>,
}

impl Parts {
    /// The parts of a small layer with these entries.
    ///
    /// # Errors
    /// [`ForeignError::Turbo`].
    pub fn of(entries: impl IntoIterator<Item = Result<Entry, EntriesError>>) -> Result<Self, ForeignError> {
        let (mut metadata, mut gzip_index) = ([None; METADATA.len()], None);
        for entry in entries {
            let entry = entry.map_err(|error| ForeignError::Turbo { reason: error.to_string() })?;
            let Kind::Regular(content) = &entry.kind else { continue };
            let all = match content.pieces() {
                [piece] if piece.range.len() == content.size_bytes() => Some(piece.range),
                _ => None,
            };
            match entry.path.as_bytes() {
                GZIP_INDEX => gzip_index = all,
                path => {
                    if let Some(nth) = METADATA.iter().position(|name| *name == path) {
                        metadata[nth] = all;
                    }
                }
            }
        }
        let metadata = metadata.into_iter().flatten().next();
        let metadata = metadata.ok_or_else(|| broken("it has neither an erofs.fs.meta nor an ext4.fs.meta"))?;
        Ok(Self { metadata, gzip_index })
    }
}

/// The name of the archive of the ordinary layer `target`, as the small layer `metadata` says that it is decoded.
#[must_use]
pub fn archive(target: &Digest, metadata: &Digest) -> Digest {
    Digest::derived("archive by TurboOCI", &[*target, *metadata])
}

/// A small layer, and the ordinary one that it is about: their digests in the manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// The small layer.
    pub metadata: Digest,
    /// The ordinary layer.
    pub target: Digest,
}

/// Reads a `gzip.meta`, bytes `index` of the small layer's archive, from `source`, and writes it as a layer index of the ordinary layer to
/// `path`, which is replaced. It has no entries.
///
/// # Errors
/// [`ForeignError`]; the file is of no use then.
pub async fn translate(
    source: &dyn BlobSource,
    (archive, index): (Blob, ByteRange),
    pair: Pair,
    path: &Path,
) -> Result<Built, ForeignError> {
    if index.len() > MAX_INDEX_BYTES {
        return Err(ForeignError::NotLazy { reason: format!("its gzip.meta has {} bytes", index.len()) });
    }
    let read = async |at: u64, len: u64| {
        let part = ByteRange::at(index.start().saturating_add(at), len).ok().filter(|part| index.contains(*part));
        let part = part.ok_or_else(|| broken("a part of its gzip.meta lies beyond its end"))?;
        Ok::<Bytes, ForeignError>(source.read(archive, part, Purpose::Demand).await?)
    };
    let header = Header::parse(&read(0, HEADER_BYTES as u64).await?, index.len())?;
    let stored = if header.points == 0 { Bytes::new() } else { read(header.table.0, header.table.1).await? };
    let index = blocking(move || GzipIndex::new(header, &stored)).await?;
    let (index, path) = (Arc::new(index), path.to_owned());
    let mut writer = blocking(move || Ok(Writer::create(&path)?)).await?;
    let mut next = 0;
    while next < index.header.points {
        let (points, windows) = index.piece(next)?;
        next = points.end;
        let bytes = match windows {
            Some(windows) => read(windows.start(), windows.len()).await?,
            None => Bytes::new(),
        };
        let (at, index) = (windows.map_or(0, ByteRange::start), Arc::clone(&index));
        writer = blocking(move || index.write(points, (at, &bytes), writer)).await?;
    }
    blocking(move || index.finish(pair, writer)).await
}

/// Writes an index of an ordinary layer of so many bytes that is not compressed, its own archive, as [`translate`] does.
///
/// # Errors
/// [`ForeignError`]; the file is of no use then.
pub async fn plain(size_bytes: u64, pair: Pair, path: &Path) -> Result<Built, ForeignError> {
    if size_bytes.div_ceil(PLAIN_BYTES as u64) > MAX_POINTS as u64 {
        return Err(ForeignError::NotLazy { reason: format!("its original layer has {size_bytes} bytes") });
    }
    let path = path.to_owned();
    let write = move || {
        let mut writer = Writer::create(&path)?;
        for at in (0..size_bytes).step_by(PLAIN_BYTES) {
            let shape = Shape::Whole(Window::default());
            writer.record(&Record { at, start: Start::at(at), shape, proof: Proof::None, is_first: false })?;
        }
        finish(pair, (Coding::Plain, size_bytes, size_bytes), writer)
    };
    blocking(write).await
}

/// Writes the header, of a layer of so many bytes whose archive has so many.
fn finish(
    pair: Pair,
    (coding, packed_bytes, archive_bytes): (Coding, u64, u64),
    writer: Writer,
) -> Result<Built, ForeignError> {
    let layer = Layer {
        coding,
        packed: Blob { digest: pair.target, size_bytes: packed_bytes },
        unpacked: Blob { digest: archive(&pair.target, &pair.metadata), size_bytes: archive_bytes },
        frames: writer.frames(),
        entries: 0,
        is_translated: true,
        is_streamed: false,
        first_bytes: 0,
    };
    let index = writer.finish(layer, packed_bytes)?;
    Ok(Built { layer, index })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ForeignError> + Send + 'static,
) -> Result<T, ForeignError> {
    // An error: the runtime is stopping.
    tokio::task::spawn_blocking(work).await.map_err(|_| ForeignError::Read(ReadError::Stopping))?
}

pub(super) fn broken(reason: &str) -> ForeignError {
    ForeignError::Turbo { reason: reason.to_owned() }
}

/// The header of a `gzip.meta`, when it is right.
#[derive(Debug, Clone, Copy)]
struct Header {
    /// Whether windows and the table are in zlib's format.
    is_deflated: bool,
    points: usize,
    packed_bytes: u64,
    archive_bytes: u64,
    /// Where the table is, and how many bytes it has as it is stored.
    table: (u64, u64),
}

/// A `gzip.meta` with a right header, and its checkpoints as they are written.
#[derive(Debug)]
struct GzipIndex {
    header: Header,
    table: Vec<u8>,
}

/// A checkpoint.
#[derive(Debug, Clone, Copy)]
struct Point {
    at: u64,
    start: Start,
    window_at: u64,
    window_bytes: u64,
}

impl Header {
    /// The header of a file of `own_bytes`.
    fn parse(bytes: &[u8], own_bytes: u64) -> Result<Self, ForeignError> {
        let (header, _) =
            bytes.split_first_chunk::<HEADER_BYTES>().ok_or_else(|| broken("its gzip.meta is too short"))?;
        if !header.starts_with(MAGIC) || header[8] != 1 {
            return Err(broken("its gzip.meta is no index of version 1"));
        }
        // CRC-32C without its inversions, as everywhere in this format.
        let check = !crc32c::crc32c_append(u32::MAX, &header[..CHECKED_BYTES]);
        if number(header, CHECKED_BYTES, 4) != Some(check.into()) {
            return Err(broken("the header of its gzip.meta does not have its checksum"));
        }
        let numbers = [25, 33, 41, 49, 313, 321].map(|at| number(header, at, 8).filter(|&n| n <= MAX_LAYER_BYTES));
        let [Some(points), Some(packed_bytes), Some(says), Some(archive_bytes), Some(at), Some(len)] = numbers else {
            return Err(broken("a number of its gzip.meta makes no sense"));
        };
        let is_deflated = match header[10] {
            0 => false,
            1 => true,
            _ => return Err(broken("its gzip.meta is compressed in an unknown way")),
        };
        if own_bytes != says || number(header, 21, 4) != Some(POINT_BYTES as u64) {
            return Err(broken("its gzip.meta has another size than its header says"));
        }
        let points = usize::try_from(points).ok().filter(|&points| points <= MAX_POINTS);
        let points = points.ok_or_else(|| ForeignError::NotLazy {
            reason: format!("its gzip.meta has more than {MAX_POINTS} checkpoints"),
        })?;
        if (points == 0) != (archive_bytes == 0) {
            return Err(broken("its gzip.meta has no checkpoints"));
        }
        if len > most_stored((points * POINT_BYTES) as u64) {
            return Err(broken("the table of its gzip.meta is larger than its checkpoints"));
        }
        Ok(Self { is_deflated, points, packed_bytes, archive_bytes, table: (at, len) })
    }
}

/// Most bytes that so many take in zlib's format: its stored blocks are larger by less than a thousandth.
const fn most_stored(bytes: u64) -> u64 {
    bytes + bytes / 1000 + 64
}

impl GzipIndex {
    fn new(header: Header, stored: &[u8]) -> Result<Self, ForeignError> {
        let len = header.points * POINT_BYTES;
        let table = match header.is_deflated {
            true if len > 0 => unzlib(stored, len),
            _ => Some(stored.to_vec()),
        };
        let table = table.filter(|table| table.len() == len);
        Ok(Self { header, table: table.ok_or_else(|| broken("the table of its gzip.meta is damaged"))? })
    }

    /// A checkpoint; `None` behind the last one.
    fn get(&self, nth: usize) -> Result<Option<Point>, ForeignError> {
        self.table.as_chunks().0.get(nth).map(|bytes| self.point(bytes)).transpose()
    }

    /// As many checkpoints from this one on as have their windows in one piece of the file, and that piece.
    fn piece(&self, first: usize) -> Result<(Range<usize>, Option<ByteRange>), ForeignError> {
        let (mut next, mut windows) = (first, None::<ByteRange>);
        while let Some(point) = self.get(next)? {
            let window = self.stored(&point)?;
            let both = windows.into_iter().chain(window).reduce(ByteRange::cover);
            if next > first && both.is_some_and(|both| both.len() > PIECE_BYTES) {
                break;
            }
            (next, windows) = (next + 1, both);
        }
        Ok((first..next, windows))
    }

    /// Where in the file the window of a checkpoint is. Nothing comes before the first one.
    fn stored(&self, point: &Point) -> Result<Option<ByteRange>, ForeignError> {
        if point.at == 0 || (point.window_bytes == 0 && !self.header.is_deflated) {
            return Ok(None);
        }
        let most = if self.header.is_deflated { most_stored(WINDOW_BYTES as u64) } else { WINDOW_BYTES as u64 };
        let window = ByteRange::at(point.window_at, point.window_bytes).ok().filter(|window| window.len() <= most);
        window.map(Some).ok_or_else(|| broken("a window of its gzip.meta is damaged"))
    }

    /// Writes these checkpoints as frames, whose windows are in `bytes`, which begin at `at` of the file.
    fn write(
        &self,
        points: Range<usize>,
        (at, bytes): (u64, &[u8]),
        mut writer: Writer,
    ) -> Result<Writer, ForeignError> {
        for nth in points {
            let Some(point) = self.get(nth)? else { break };
            if nth == 0 && point.at != 0 {
                return Err(broken("its first checkpoint is not at the beginning"));
            }
            self.check(&point, self.get(nth + 1)?.as_ref())?;
            let window = match self.window(&point, (at, bytes))? {
                window if window.iter().any(|&byte| byte != 0) => writer.window(&window)?,
                _ => Window::default(),
            };
            let (at, start, shape) = (point.at, point.start, Shape::Whole(window));
            writer.record(&Record { at, start, shape, proof: Proof::None, is_first: false })?;
        }
        Ok(writer)
    }

    fn finish(&self, pair: Pair, writer: Writer) -> Result<Built, ForeignError> {
        finish(pair, (Coding::Gzip, self.header.packed_bytes, self.header.archive_bytes), writer)
    }

    fn point(&self, bytes: &[u8; POINT_BYTES]) -> Result<Point, ForeignError> {
        let wrong = || broken("a checkpoint of its gzip.meta makes no sense");
        let [at, byte, window_at] = [0, 8, 16].map(|at| number(bytes, at, 8).filter(|&n| n <= MAX_LAYER_BYTES));
        let bits = u64::from(bytes[24]);
        let bit = byte.and_then(|byte| (byte * 8).checked_sub(bits)).filter(|_| bits < 8).ok_or_else(wrong)?;
        let (window_at, window_bytes) = (window_at.ok_or_else(wrong)?, number(bytes, 25, 4).ok_or_else(wrong)?);
        Ok(Point { at: at.ok_or_else(wrong)?, start: Start { bit, is_inside: true }, window_at, window_bytes })
    }

    /// That a checkpoint lies before the next one and in the layer, and is not too far from it: what [`crate::Index`] asks of a frame, with a reason.
    fn check(&self, point: &Point, next: Option<&Point>) -> Result<(), ForeignError> {
        let bytes = ByteRange::new(point.at, next.map_or(self.header.archive_bytes, |next| next.at));
        let packed_end = next.map_or(self.header.packed_bytes, |next| next.start.bit.div_ceil(8));
        let packed = ByteRange::new(point.start.bit / 8, packed_end);
        let (Ok(bytes), Ok(packed)) = (bytes, packed) else {
            return Err(broken("the checkpoints of its gzip.meta do not follow each other"));
        };
        if bytes.end() > self.header.archive_bytes || packed.end() > self.header.packed_bytes {
            return Err(broken("a checkpoint of its gzip.meta lies beyond the layer's end"));
        }
        if bytes.len() > MAX_FRAME_BYTES || packed.len() > MAX_PACKED_BYTES {
            return Err(ForeignError::NotLazy {
                reason: format!("two of its checkpoints are {} bytes apart", bytes.len()),
            });
        }
        Ok(())
    }

    /// What comes before a checkpoint in the archive.
    fn window(&self, point: &Point, (at, bytes): (u64, &[u8])) -> Result<Vec<u8>, ForeignError> {
        let Some(stored) = self.stored(point)? else { return Ok(Vec::new()) };
        let stored = stored.start().checked_sub(at).and_then(|from| part(bytes, from, stored.len()));
        let window = match stored {
            Some(stored) if self.header.is_deflated => unzlib(stored, WINDOW_BYTES),
            stored => stored.map(<[u8]>::to_vec),
        };
        window.ok_or_else(|| broken("a window of its gzip.meta is damaged"))
    }
}

/// So many bytes from `at` on.
fn part(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(at).ok()?..)?.get(..usize::try_from(len).ok()?)
}

/// The little-endian number of `len` bytes at `at`, when it is not negative.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let mut number = [0; 8];
    number[..len].copy_from_slice(bytes.get(at..)?.get(..len)?);
    u64::try_from(i64::from_le_bytes(number)).ok()
}

/// What zlib's format holds (RFC 1950), when that is at most `most` bytes with the right checksum.
pub(super) fn unzlib(stored: &[u8], most: usize) -> Option<Vec<u8>> {
    // One byte more than wanted, so that what holds more is found out.
    let mut bytes = vec![0; most + 1];
    let mut inflate = Inflate::new(true, WINDOW_BITS);
    let status = inflate.decompress(stored, &mut bytes, InflateFlush::Finish).ok()?;
    let len = usize::try_from(inflate.total_out()).ok().filter(|&len| len <= most)?;
    bytes.truncate(len);
    (status == Status::StreamEnd).then_some(bytes)
}
