//! Blobs of an image as files of a directory: fetched, kept for another try, and read.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Hasher, Located, Pinned, Purpose, ReadError, ReadFuture};
use penstock_fetcher::Fetcher;

use super::ConvertError;

/// Bytes of one read of a registry.
const PIECE_BYTES: u64 = 4 << 20;
/// Reads of one blob under way at once.
const PIECES_AT_ONCE: usize = 4;

/// Files that hold blobs, by digest.
#[derive(Debug, Default)]
pub(super) struct Files(HashMap<Digest, Arc<OneFile>>);

#[derive(Debug)]
struct OneFile {
    blob: Blob,
    file: Arc<File>,
}

impl Pinned for OneFile {
    fn file(&self) -> &File {
        &self.file
    }

    /// The files stay as long as they are open.
    fn unpin(&self, _range: ByteRange) {}
}

impl Files {
    /// Adds a blob that was fetched into the directory.
    pub(super) fn add(&mut self, dir: &Path, blob: Blob) -> io::Result<()> {
        let file = Arc::new(File::open(path(dir, &blob))?);
        self.0.insert(blob.digest, Arc::new(OneFile { blob, file }));
        Ok(())
    }

    fn of(&self, blob: &Blob) -> Result<&Arc<OneFile>, ReadError> {
        let found = self.0.get(&blob.digest).filter(|one| one.blob == *blob);
        found.ok_or_else(|| ReadError::NotFound { blob: blob.digest, reason: "it was not fetched".to_owned() })
    }
}

impl BlobSource for Files {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        blob.check(range).ok()?;
        let one = self.of(blob).ok()?;
        Some(Located::in_file(Arc::clone(one) as Arc<dyn Pinned>, range, range.start()))
    }

    fn read(&self, blob: Blob, range: ByteRange, _purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            blob.check(range)?;
            let file = Arc::clone(&self.of(&blob)?.file);
            let failed = |reason: String| ReadError::Storage { blob: blob.digest, reason };
            let len = usize::try_from(range.len()).map_err(|error| failed(error.to_string()))?;
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, range.start()).map(|()| Bytes::from(bytes))
            });
            read.await.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
        })
    }

    fn reject(&self, _blob: &Blob, _range: ByteRange) {}
}

/// Where a blob is kept.
pub(super) fn path(dir: &Path, blob: &Blob) -> PathBuf {
    dir.join(blob.digest.to_hex())
}

/// Fetches a blob into the directory, unless it is there; goes on where an earlier try ended. Its digest is verified. `progress` is told how many bytes
/// are done.
pub(super) async fn fetch(
    fetcher: &Arc<Fetcher>,
    dir: &Path,
    blob: Blob,
    progress: impl Fn(u64) + Send,
) -> Result<(), ConvertError> {
    let (whole, part) = (path(dir, &blob), path(dir, &blob).with_extension("part"));
    if whole.exists() {
        progress(blob.size_bytes);
        return Ok(());
    }
    let opened = {
        let part = part.clone();
        blocking(move || begun(&part, blob.size_bytes)).await??
    };
    let (mut file, mut hasher, begun) = opened;
    let mut done = begun;
    let pieces = (0..(blob.size_bytes - begun).div_ceil(PIECE_BYTES)).filter_map(|nth| {
        let start = begun + nth * PIECE_BYTES;
        ByteRange::new(start, (start + PIECE_BYTES).min(blob.size_bytes)).ok()
    });
    let reads = pieces.map(|piece| fetcher.read(blob, piece, Purpose::Ahead));
    let mut pieces = stream::iter(reads.collect::<Vec<_>>()).buffered(PIECES_AT_ONCE);
    while let Some(piece) = pieces.try_next().await? {
        done += piece.len() as u64;
        let written = move || {
            hasher.update(&piece);
            file.write_all(&piece).map(|()| (file, hasher))
        };
        (file, hasher) = blocking(written).await??;
        progress(done);
    }
    let actual = hasher.finish();
    if actual != blob.digest {
        fs::remove_file(&part)?;
        return Err(ConvertError::Digest { expected: blob.digest, actual });
    }
    blocking(move || file.sync_all().and_then(|()| fs::rename(part, whole))).await??;
    Ok(())
}

/// What an earlier try left: the file at its end, what it holds hashed, and how much that is.
fn begun(part: &Path, most: u64) -> io::Result<(File, Hasher, u64)> {
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(part)?;
    let (mut hasher, mut at, mut buf) = (Hasher::new(), 0, vec![0; 1 << 20]);
    while at < most {
        let read = file.read(&mut buf)?;
        if read == 0 {
            break;
        }
        hasher.update(&buf[..read]);
        at += read as u64;
    }
    if at > most {
        (hasher, at) = (Hasher::new(), 0);
    }
    file.set_len(at)?;
    file.seek(io::SeekFrom::Start(at))?;
    Ok((file, hasher, at))
}

/// Runs work that blocks.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}
