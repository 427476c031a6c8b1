//! The one seam: anything that can be asked for bytes of blobs.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;

use crate::{ByteRange, Digest, Located, ReadError};

/// A blob as a manifest describes it: its name and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Blob {
    /// sha256 of the bytes as served.
    pub digest: Digest,
    /// How many bytes there are.
    pub size_bytes: u64,
}

impl Blob {
    /// Refuses a range that does not lie inside the blob: the first line of every `read`.
    ///
    /// # Errors
    /// [`ReadError::OutOfBounds`].
    pub const fn check(&self, range: ByteRange) -> Result<(), ReadError> {
        if range.end() <= self.size_bytes {
            return Ok(());
        }
        Err(ReadError::OutOfBounds { blob: self.digest, range, size_bytes: self.size_bytes })
    }

    /// All bytes of the blob; `None` when it is empty.
    #[must_use]
    pub fn all(&self) -> Option<ByteRange> {
        ByteRange::new(0, self.size_bytes).ok()
    }
}

/// What a read is for. Budgets and queues of a source go by it; the bytes are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Somebody waits for the bytes: it goes before everything that is read ahead.
    Demand,
    /// Nobody waits yet: it takes what demand leaves over. A later read of the same bytes with [`Purpose::Demand`] makes it one:
    /// the two share what is under way, and it is hurried along.
    Ahead,
}

/// Who gave bytes of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Giver {
    /// Somebody who is asked in the place of the registry.
    Mirror,
    /// The registry that the reference names.
    Origin,
}

/// What [`BlobSource::read`] returns: boxed, because it is the miss path, where a network is waited for.
pub type ReadFuture<'a> = Pin<Box<dyn Future<Output = Result<Bytes, ReadError>> + Send + 'a>>;

/// Anything that can be asked for bytes of blobs. The crate's documentation states the contract.
pub trait BlobSource: fmt::Debug + Send + Sync + 'static {
    /// Where the bytes of `range` already are, all of them, or `None`. Never blocks.
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located>;

    /// The bytes of `range`, from wherever they can be had, within the source's deadline. A source that reads from another one passes
    /// `purpose` on.
    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_>;

    /// The reader found that bytes it was given fail a check of the format that holds them. A source that keeps bytes drops
    /// its copy, so that the next read asks the one below; others pass it on. Never blocks.
    fn reject(&self, blob: &Blob, range: ByteRange);

    /// What a read of `range` makes this source fetch or decode anyway: whole hashed chunks, whole frames. Who keeps bytes asks for all of
    /// it at once. Holds `range`, lies inside the blob when `range` does, and is its own answer. Never blocks.
    fn widen(&self, _: &Blob, range: ByteRange) -> ByteRange {
        range
    }

    /// Who gave bytes of `range` lately, as far as is known; a source that reads from another one passes this on. For those who count. Never
    /// blocks.
    fn giver(&self, _: &Blob, _: ByteRange) -> Option<Giver> {
        None
    }
}

impl<S: BlobSource + ?Sized> BlobSource for Arc<S> {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        (**self).locate(blob, range)
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        (**self).read(blob, range, purpose)
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        (**self).reject(blob, range);
    }

    fn widen(&self, blob: &Blob, range: ByteRange) -> ByteRange {
        (**self).widen(blob, range)
    }

    fn giver(&self, blob: &Blob, range: ByteRange) -> Option<Giver> {
        (**self).giver(blob, range)
    }
}
