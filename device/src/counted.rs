//! The source as a device asks it: counts the bytes.

use std::sync::Arc;

use penstock_blob::{Blob, BlobSource, ByteRange, Giver, Located, Purpose, ReadFuture};

use crate::stats::Counters;

/// Counts the bytes that its reads got from the source below.
#[derive(Debug)]
pub(crate) struct Counted {
    below: Arc<dyn BlobSource>,
    counters: Arc<Counters>,
}

impl Counted {
    pub(crate) fn new(below: Arc<dyn BlobSource>, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self { below, counters })
    }
}

impl BlobSource for Counted {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        self.below.locate(blob, range)
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let bytes = self.below.read(blob, range, purpose).await?;
            self.counters.asked(range.len());
            Ok(bytes)
        })
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.below.reject(blob, range);
    }

    fn giver(&self, blob: &Blob, range: ByteRange) -> Option<Giver> {
        self.below.giver(blob, range)
    }
}
