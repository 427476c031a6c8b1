//! A blob that the fetcher knows where to find for as long as somebody needs it.

use std::sync::Arc;

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource, ByteRange, Purpose, ReadError};
use penstock_fetcher::{Fetcher, Reference};

/// A blob that the fetcher knows where to find while this lives.
#[derive(Debug)]
pub(crate) struct Lent<'a> {
    fetcher: &'a Arc<Fetcher>,
    blob: Blob,
    from: &'a Reference,
}

impl<'a> Lent<'a> {
    /// The repository of `from` has `blob`.
    pub(crate) fn new(fetcher: &'a Arc<Fetcher>, blob: Blob, from: &'a Reference) -> Self {
        fetcher.serve(blob, from);
        Self { fetcher, blob, from }
    }

    /// Bytes of it that somebody waits for, from `source`, which is or reads the fetcher.
    pub(crate) async fn read(&self, source: &dyn BlobSource, range: ByteRange) -> Result<Bytes, ReadError> {
        source.read(self.blob, range, Purpose::Demand).await
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.fetcher.forget(&self.blob.digest, self.from);
    }
}
