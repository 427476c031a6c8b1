//! The source as a device asks it: counts the bytes, and how long was waited for them.

use std::{sync::Arc, time::Instant};

use penstock_blob::{Blob, BlobSource, ByteRange, Located, Purpose, ReadFuture};

use crate::stats::Counters;

/// Counts the bytes that its reads got from the source below, and the time that they took.
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

/// Counts itself when it is over, also when nobody wants the bytes any more.
struct Wait<'a> {
    counters: &'a Counters,
    begun: Instant,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.counters.waited(self.begun.elapsed());
    }
}

impl BlobSource for Counted {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        self.below.locate(blob, range)
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let _wait = Wait { counters: &self.counters, begun: Instant::now() };
            let bytes = self.below.read(blob, range, purpose).await?;
            self.counters.asked(range.len());
            Ok(bytes)
        })
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.below.reject(blob, range);
    }
}
