//! A layer is read once, in order, and its index is made on the way. The digests of the layer and of its archive are verified.

use std::path::{Path, PathBuf};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Purpose, ReadError};
use penstock_layers::{BuildError, Builder, Built};

/// Bytes of one read: long enough to amortise a request.
const PIECE_BYTES: u64 = 4 << 20;
/// Reads under way at once: hides the registry's latency; a layer holds at most this many pieces in memory.
const PIECES_AT_ONCE: usize = 4;

/// Why a layer has no index.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeError {
    /// Its bytes could not be had.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// They have no index.
    #[error("layer {layer}: {error}")]
    Build {
        /// The layer.
        layer: Digest,
        /// Why not.
        #[source]
        error: BuildError,
    },
    /// A task ended abnormally.
    #[error("making a layer index failed: {0}")]
    Crashed(String),
}

impl MakeError {
    /// Whether another try may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Read(error) => error.is_transient(),
            Self::Build { error, .. } => matches!(error, BuildError::Io(_)),
            Self::Crashed(_) => false,
        }
    }

    /// Whether the layer is well, but is of a kind that has no index: it can only be pulled as a whole.
    pub(crate) const fn is_not_lazy(&self) -> bool {
        matches!(self, Self::Build { error: BuildError::NotLazy { .. }, .. })
    }
}

/// Makes the index of `packed`, whose archive is `diff_id`, as the file `to`, which is replaced. `progress` is told the bytes done. Holds some
/// 25 MiB, and of a Zstandard layer its window.
pub(crate) async fn index(
    source: &dyn BlobSource,
    (packed, diff_id): (Blob, Digest),
    to: &Path,
    progress: impl Fn(u64) + Send,
) -> Result<Built, MakeError> {
    let failed = |error| MakeError::Build { layer: packed.digest, error };
    let path: PathBuf = to.to_path_buf();
    let mut builder = blocking(move || Builder::create(&path, packed, diff_id)).await?.map_err(failed)?;
    let pieces = (0..packed.size_bytes.div_ceil(PIECE_BYTES)).filter_map(|nth| {
        let start = nth * PIECE_BYTES;
        ByteRange::new(start, (start + PIECE_BYTES).min(packed.size_bytes)).ok()
    });
    let reads = pieces.map(|piece| source.read(packed, piece, Purpose::Ahead));
    let mut pieces = stream::iter(reads).buffered(PIECES_AT_ONCE);
    let mut done = 0;
    while let Some(piece) = pieces.try_next().await? {
        done += piece.len() as u64;
        builder = blocking(move || builder.push(&piece).map(|()| builder)).await?.map_err(failed)?;
        progress(done);
    }
    blocking(move || builder.finish()).await?.map_err(failed)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, MakeError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| MakeError::Crashed(error.to_string()))
}
