//! The source of an image whose tables are still being made: answers for their parts, and passes everything else on.

use std::sync::Arc;

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource, ByteRange, Giver, Located, Purpose, ReadError, ReadFuture};

use crate::{stack::Stack, units::in_memory};

/// See [`crate::Image::over`].
#[derive(Debug)]
pub(crate) struct Over {
    stack: Arc<Stack>,
    below: Arc<dyn BlobSource>,
}

impl Over {
    pub(crate) const fn new(stack: Arc<Stack>, below: Arc<dyn BlobSource>) -> Self {
        Self { stack, below }
    }

    /// Waits for a part of a table; a byte stands for each of its pages or sectors and says nothing.
    async fn wait(&self, table: Blob, part: ByteRange) -> Result<Bytes, ReadError> {
        table.check(part)?;
        self.stack.wait(&table, part).await?;
        Ok(vec![0; in_memory(part.len())].into())
    }
}

impl BlobSource for Over {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        self.below.locate(blob, range)
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        if self.stack.is_table(&blob) {
            Box::pin(self.wait(blob, range))
        } else {
            self.below.read(blob, range, purpose)
        }
    }

    fn widen(&self, blob: &Blob, range: ByteRange) -> ByteRange {
        self.below.widen(blob, range)
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.below.reject(blob, range);
    }

    fn giver(&self, blob: &Blob, range: ByteRange) -> Option<Giver> {
        self.below.giver(blob, range)
    }
}
