//! From a blob's bytes to its list. The blob is read once, in order, in pieces; its own digest is verified on the way.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_blob::{Blob, BlobSource, ByteRange, ChunkSize, Digest, Hasher, Purpose, ReadError};

use crate::shape::{Hash, Listed, PAGE_BYTES, Page, Shape, hash};

/// Bytes of one read: long enough to amortise a request.
const PIECE_BYTES: u64 = 4 << 20;
/// Reads under way at once: hides the registry's latency; a blob holds at most this many pieces in memory.
const PIECES_AT_ONCE: usize = 4;

/// A list that was computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Computed {
    /// What an index says of it.
    pub listed: Listed,
    /// The file that holds the list.
    pub path: PathBuf,
}

/// Why a list could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComputeError {
    /// The blob's bytes could not be had.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The bytes that came are not the blob's.
    #[error(
        "the bytes of blob {expected} have digest {actual}; they must not be trusted, nor the registry that sent them"
    )]
    Digest {
        /// By the manifest.
        expected: Digest,
        /// Of what came.
        actual: Digest,
    },
    /// The blob is empty or too large to have a list.
    #[error("blob {} of {} bytes cannot have a list; it must have from 1 to {} bytes", .0.digest, .0.size_bytes, crate::MAX_BLOB_BYTES)]
    Size(Blob),
    /// The list cannot be written.
    #[error("cannot write the list {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        error: io::Error,
    },
}

/// Computes the list of `blob` in chunks of `grid`, as the file `path`, which is replaced. `progress` is told the bytes done.
/// Holds at most 20 MiB of the blob at a time.
///
/// # Errors
/// [`ComputeError`]; the file is then of no use.
pub async fn compute(
    source: &dyn BlobSource,
    blob: Blob,
    grid: ChunkSize,
    path: &Path,
    progress: impl Fn(u64) + Send,
) -> Result<Computed, ComputeError> {
    let shape = Shape::new(blob, grid).ok_or(ComputeError::Size(blob))?;
    let (file, failed) = (path.to_owned(), io_error(path));
    let mut builder = blocking(move || Builder::create(shape, &file)).await.map_err(&failed)?;
    let pieces = (0..blob.size_bytes.div_ceil(PIECE_BYTES)).filter_map(|nth| {
        let start = nth * PIECE_BYTES;
        ByteRange::new(start, (start + PIECE_BYTES).min(blob.size_bytes)).ok()
    });
    let mut pieces =
        stream::iter(pieces.map(|piece| source.read(blob, piece, Purpose::Demand))).buffered(PIECES_AT_ONCE);
    let mut done = 0;
    while let Some(piece) = pieces.try_next().await? {
        done += piece.len() as u64;
        builder = blocking(move || builder.take(&piece)).await.map_err(&failed)?;
        progress(done);
    }
    let (actual, listed) = blocking(move || builder.finish()).await.map_err(failed)?;
    if actual != blob.digest {
        return Err(ComputeError::Digest { expected: blob.digest, actual });
    }
    Ok(Computed { listed, path: path.to_owned() })
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> ComputeError {
    let path = path.to_owned();
    move |error| ComputeError::Io { path: path.clone(), error }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Takes a blob's bytes in order and writes its list, a page at a time.
#[derive(Debug)]
struct Builder {
    shape: Shape,
    file: File,
    whole: Hasher,
    /// The chunk that is not complete yet, and how many of its bytes came.
    chunk: blake3::Hasher,
    chunk_bytes: usize,
    /// For each level, the top first: its open page and how many hashes of it came.
    open: Vec<(Box<Page>, u64)>,
}

impl Builder {
    fn create(shape: Shape, path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
        file.set_len(shape.list_bytes())?;
        let open = (0..shape.depth()).map(|_| (Box::new([0; PAGE_BYTES]), 0)).collect();
        Ok(Self { shape, file, whole: Hasher::new(), chunk: blake3::Hasher::new(), chunk_bytes: 0, open })
    }

    fn take(mut self, bytes: &Bytes) -> io::Result<Self> {
        self.whole.update(bytes);
        let grid = self.shape.grid.bytes() as usize;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(grid - self.chunk_bytes));
            self.chunk.update(now);
            self.chunk_bytes += now.len();
            rest = later;
            if self.chunk_bytes == grid {
                self.end_chunk()?;
            }
        }
        Ok(self)
    }

    fn end_chunk(&mut self) -> io::Result<()> {
        let hash = *self.chunk.finalize().as_bytes();
        self.chunk.reset();
        self.chunk_bytes = 0;
        self.push(self.shape.depth() - 1, &hash)
    }

    /// Adds the next hash of level `nth`; a page that is full by it is written, and its own hash goes one level up.
    fn push(&mut self, mut nth: usize, hash: &Hash) -> io::Result<()> {
        let mut hash = *hash;
        loop {
            let (page, count) = &mut self.open[nth];
            let too_many = || io::Error::new(io::ErrorKind::InvalidInput, "more bytes than the blob has");
            let place = self.shape.place(nth, *count).filter(|place| place.page < self.shape.pages());
            place.ok_or_else(too_many)?.put(page, &hash);
            *count += 1;
            if nth == 0 || !count.is_multiple_of((PAGE_BYTES / hash.len()) as u64) {
                return Ok(());
            }
            hash = self.close(nth)?;
            nth -= 1;
        }
    }

    /// Writes the open page of level `nth` and begins the next one: its hash.
    fn close(&mut self, nth: usize) -> io::Result<Hash> {
        let (page, count) = &mut self.open[nth];
        let place = self.shape.place(nth, count.saturating_sub(1));
        let number = place.ok_or_else(|| io::Error::other("a level without pages"))?.page;
        self.file.write_all_at(&page[..], number * PAGE_BYTES as u64)?;
        let own = hash(&page[..]);
        page.fill(0);
        Ok(own)
    }

    /// The digest of the bytes taken, and the finished list.
    fn finish(mut self) -> io::Result<(Digest, Listed)> {
        if self.chunk_bytes > 0 {
            self.end_chunk()?;
        }
        for nth in (1..self.shape.depth()).rev() {
            if !self.open[nth].1.is_multiple_of((PAGE_BYTES / crate::shape::HASH_BYTES) as u64) {
                let own = self.close(nth)?;
                self.push(nth - 1, &own)?;
            }
        }
        let top = self.close(0)?;
        self.file.write_all_at(&self.shape.header(&top), 0)?;
        self.file.sync_all()?;
        let list = Blob { digest: digest_of(&self.file)?, size_bytes: self.shape.list_bytes() };
        let listed = Listed { blob: self.shape.blob, grid: self.shape.grid, list, root: self.shape.root(&top) };
        Ok((self.whole.finish(), listed))
    }
}

/// sha256 of a file, read in pieces.
fn digest_of(file: &File) -> io::Result<Digest> {
    let (mut hasher, mut at) = (Hasher::new(), 0);
    let mut piece = vec![0; 1 << 18];
    loop {
        match file.read_at(&mut piece, at)? {
            0 => return Ok(hasher.finish()),
            read => {
                hasher.update(&piece[..read]);
                at += read as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests;
