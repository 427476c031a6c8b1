//! The compressed bytes of a run in order, several reads ahead of its decoder.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use penstock_blob::{Blob, BlobSource, ByteRange, Purpose, ReadError};
use tokio::{sync::oneshot, task::JoinSet};

/// Compressed bytes of one read: long enough to amortise a request.
const READ_BYTES: u64 = 1 << 20;
/// Reads under way or at hand: with [`READ_BYTES`] each, what one pass holds of the compressed layer.
const READS_AT_ONCE: usize = 4;

#[derive(Debug)]
struct Part {
    range: ByteRange,
    purpose: Purpose,
    bytes: Option<Bytes>,
    answer: oneshot::Receiver<Result<Bytes, ReadError>>,
}

/// Reads of one blob, forward. They go on also while nobody looks at them, and end with this.
#[derive(Debug)]
pub(super) struct Reads {
    below: Arc<dyn BlobSource>,
    blob: Blob,
    /// The next byte that is not asked for.
    at: u64,
    end: u64,
    parts: VecDeque<Part>,
    tasks: JoinSet<()>,
}

impl Reads {
    /// Of these bytes of a blob; nothing is asked for yet.
    pub(super) fn new(below: Arc<dyn BlobSource>, blob: Blob, range: ByteRange) -> Self {
        let (at, end) = (range.start(), range.end());
        Self { below, blob, at, end, parts: VecDeque::new(), tasks: JoinSet::new() }
    }

    /// Has what lies before `until` asked for, as far as there is room, for this purpose. What is under way for nobody is asked for again when somebody
    /// waits: the source below has the two share it, and hurries.
    pub(super) fn ask(&mut self, until: u64, purpose: Purpose) {
        while self.tasks.try_join_next().is_some() {}
        if purpose == Purpose::Demand {
            for nth in 0..self.parts.len() {
                let late = self.parts.get(nth).filter(|part| part.purpose == Purpose::Ahead && part.bytes.is_none());
                if let Some(range) = late.map(|part| part.range) {
                    self.parts[nth] = self.part(range, purpose);
                }
            }
        }
        while self.parts.len() < READS_AT_ONCE
            && self.at < until
            && let Ok(range) = ByteRange::new(self.at, self.end.min(self.at + READ_BYTES))
        {
            let part = self.part(range, purpose);
            self.parts.push_back(part);
            self.at = range.end();
        }
    }

    fn part(&mut self, range: ByteRange, purpose: Purpose) -> Part {
        let ((tell, answer), below, blob) = (oneshot::channel(), Arc::clone(&self.below), self.blob);
        self.tasks.spawn(async move {
            // An error: it is not waited for any more.
            let _gone = tell.send(below.read(blob, range, purpose).await);
        });
        Part { range, purpose, bytes: None, answer }
    }

    /// Waits for the first bytes that were asked for and not passed. May be dropped and called again. An error comes with what they were read for; all that
    /// is under way is forgotten then.
    pub(super) async fn first(&mut self) -> Result<(ByteRange, Bytes), (Purpose, ReadError)> {
        let Some(part) = self.parts.front_mut() else { return Err((Purpose::Demand, ReadError::Stopping)) };
        if part.bytes.is_none() {
            let answer = (&mut part.answer).await.unwrap_or(Err(ReadError::Stopping));
            match answer {
                Ok(bytes) => part.bytes = Some(bytes),
                Err(error) => {
                    let (at, purpose) = (part.range.start(), part.purpose);
                    self.tasks = JoinSet::new();
                    self.parts.clear();
                    self.at = at;
                    return Err((purpose, error));
                }
            }
        }
        Ok((part.range, part.bytes.clone().unwrap_or_default()))
    }

    /// What lies before this byte is needed no more.
    pub(super) fn passed(&mut self, byte: u64) {
        while self.parts.front().is_some_and(|part| part.range.end() <= byte) {
            self.parts.pop_front();
        }
    }
}
