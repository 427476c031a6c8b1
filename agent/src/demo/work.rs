//! What the demo reads, through whichever door this machine and user have.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use penstock_blob::{BlobSource, ByteRange};
use penstock_image::Image;

/// Size of a piece when there is no file system: as much as a program's reads usually span.
const PIECE_BYTES: u64 = 64 << 10;
/// One piece in so many is read then: about the share of an image that a program's start reads.
const ONE_PIECE_IN: u64 = 20;

/// What is read.
#[derive(Debug, Clone)]
pub(super) enum Work {
    /// Files below a mounted directory.
    Files(Vec<PathBuf>),
    /// Pieces of a disk.
    Pieces(Vec<ByteRange>),
}

/// Through what it is read.
#[derive(Debug)]
pub(super) enum Door {
    /// A mounted directory.
    Mount(PathBuf),
    /// A device or a file that is the disk.
    Disk(PathBuf),
    /// The library, without the kernel.
    Library(Arc<Image>, Arc<dyn BlobSource>),
}

/// When reading came to its first byte and to its end, counted from the beginning of getting the image, and how much it read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    pub(super) first: Duration,
    pub(super) all: Duration,
    pub(super) bytes: u64,
}

/// Why reading failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkError {
    #[error("cannot read {path}: {reason}")]
    Read { path: String, reason: io::Error },
    #[error("cannot read the image: {0}")]
    Library(#[from] penstock_image::DeviceReadError),
    #[error("{0} in the image differs from this machine's own")]
    Differs(String),
    #[error("the reading thread ended abnormally: {0}")]
    Crashed(String),
}

/// Evenly spread pieces of a disk of `disk_bytes`, its beginning first.
pub(super) fn pieces(disk_bytes: u64) -> Vec<ByteRange> {
    let stride = usize::try_from(PIECE_BYTES * ONE_PIECE_IN).unwrap_or(usize::MAX);
    (0..disk_bytes)
        .step_by(stride)
        .filter_map(|at| ByteRange::new(at, (at + PIECE_BYTES).min(disk_bytes)).ok())
        .collect()
}

impl Work {
    /// How many files or pieces.
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::Files(files) => files.len(),
            Self::Pieces(pieces) => pieces.len(),
        }
    }

    /// Reads all of it, in order, one after the other, as a program does.
    pub(super) async fn read(&self, door: &Door, since: Instant) -> Result<Timing, WorkError> {
        let (work, place) = match (self, door) {
            (Self::Pieces(pieces), Door::Library(image, source)) => return library(image, source, pieces, since).await,
            (work, Door::Mount(place) | Door::Disk(place)) => (work.clone(), place.clone()),
            (Self::Files(_), Door::Library(..)) => (self.clone(), PathBuf::new()),
        };
        // Reads wait for the device, which this process serves: never on a thread that serves it.
        tokio::task::spawn_blocking(move || match work {
            Self::Files(files) => read_files(&place, &files, since),
            Self::Pieces(pieces) => read_pieces(&place, &pieces, since),
        })
        .await
        .map_err(|error| WorkError::Crashed(error.to_string()))?
    }

    /// Compares what is in the image with this machine's own files.
    pub(super) async fn compare(&self, door: &Door) -> Result<bool, WorkError> {
        let (Self::Files(files), Door::Mount(root)) = (self, door) else { return Ok(false) };
        let (files, root) = (files.clone(), root.clone());
        let compared = tokio::task::spawn_blocking(move || {
            files.iter().try_for_each(|file| {
                let copy = below(&root, file);
                let read = |path: &Path| std::fs::read(path).map_err(|reason| unreadable(path, reason));
                if read(&copy)? == read(file)? { Ok(()) } else { Err(WorkError::Differs(file.display().to_string())) }
            })
        });
        compared.await.map_err(|error| WorkError::Crashed(error.to_string()))?.map(|()| true)
    }
}

fn below(root: &Path, file: &Path) -> PathBuf {
    root.join(file.strip_prefix("/").unwrap_or(file))
}

fn unreadable(path: &Path, reason: io::Error) -> WorkError {
    WorkError::Read { path: path.display().to_string(), reason }
}

fn read_files(root: &Path, files: &[PathBuf], since: Instant) -> Result<Timing, WorkError> {
    let mut clock = Clock::new(since);
    let mut buf = vec![0; 128 << 10];
    for file in files {
        let path = below(root, file);
        let mut open = File::open(&path).map_err(|reason| unreadable(&path, reason))?;
        loop {
            match open.read(&mut buf).map_err(|reason| unreadable(&path, reason))? {
                0 => break,
                len => clock.read(len as u64),
            }
        }
    }
    Ok(clock.done())
}

fn read_pieces(disk: &Path, pieces: &[ByteRange], since: Instant) -> Result<Timing, WorkError> {
    let mut clock = Clock::new(since);
    let open = File::open(disk).map_err(|reason| unreadable(disk, reason))?;
    for piece in pieces {
        let mut buf = vec![0; usize::try_from(piece.len()).unwrap_or(usize::MAX)];
        open.read_exact_at(&mut buf, piece.start()).map_err(|reason| unreadable(disk, reason))?;
        clock.read(piece.len());
    }
    Ok(clock.done())
}

async fn library(
    image: &Image,
    source: &Arc<dyn BlobSource>,
    pieces: &[ByteRange],
    since: Instant,
) -> Result<Timing, WorkError> {
    let mut clock = Clock::new(since);
    for piece in pieces {
        clock.read(penstock_image::read(image, source, *piece).await?.len() as u64);
    }
    Ok(clock.done())
}

struct Clock {
    since: Instant,
    first: Option<Duration>,
    bytes: u64,
}

impl Clock {
    const fn new(since: Instant) -> Self {
        Self { since, first: None, bytes: 0 }
    }

    fn read(&mut self, bytes: u64) {
        self.first.get_or_insert_with(|| self.since.elapsed());
        self.bytes += bytes;
    }

    fn done(self) -> Timing {
        let all = self.since.elapsed();
        Timing { first: self.first.unwrap_or(all), all, bytes: self.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_a_share_of_the_disk_from_its_beginning() {
        let disk_bytes = 100 << 20;
        let pieces = pieces(disk_bytes);
        assert_eq!(pieces[0], ByteRange::new(0, PIECE_BYTES).unwrap());
        let read: u64 = pieces.iter().map(|piece| piece.len()).sum();
        assert!(read >= disk_bytes / ONE_PIECE_IN && read < disk_bytes / ONE_PIECE_IN + 2 * PIECE_BYTES, "{read}");
        assert!(super::pieces(10).iter().all(|piece| piece.end() <= 10));
    }
}
