//! Sources for tests: blobs in memory, and wrappers that fail on purpose.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::watch;

use crate::{Blob, BlobSource, ByteRange, Digest, Located, Purpose, ReadError, ReadFuture};

/// Blobs held in memory: the bottom of a stack in tests. Counts what is asked of it.
pub struct Memory {
    order: Vec<Blob>,
    blobs: HashMap<Digest, Bytes>,
    resident: AtomicBool,
    reads: AtomicU64,
    bytes_read: AtomicU64,
    rejects: AtomicU64,
}

impl Memory {
    /// A source of these blobs, each named by its own digest.
    #[must_use]
    pub fn new(blobs: Vec<Bytes>) -> Arc<Self> {
        let order =
            blobs.iter().map(|b| Blob { digest: Digest::of(b), size_bytes: b.len() as u64 }).collect::<Vec<_>>();
        let blobs = order.iter().map(|blob| blob.digest).zip(blobs).collect();
        Arc::new(Self {
            order,
            blobs,
            resident: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            rejects: AtomicU64::new(0),
        })
    }

    /// The `index`th blob given to [`Memory::new`].
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn blob(&self, index: usize) -> Blob {
        self.order[index]
    }

    /// Whether `locate` answers (as if everything were cached) or not (as a registry): not, at first.
    pub fn resident(&self, yes: bool) {
        self.resident.store(yes, Ordering::Relaxed);
    }

    /// Reads that were answered with bytes.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Bytes in those answers.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Calls of `reject`.
    #[must_use]
    pub fn rejects(&self) -> u64 {
        self.rejects.load(Ordering::Relaxed)
    }

    fn slice(&self, blob: &Blob, range: ByteRange) -> Result<Bytes, ReadError> {
        blob.check(range)?;
        let unknown = || ReadError::NotFound { blob: blob.digest, reason: "not in this memory source".into() };
        let all = self.blobs.get(&blob.digest).ok_or_else(unknown)?;
        let (start, end) = (usize::try_from(range.start()), usize::try_from(range.end()));
        match (start, end) {
            (Ok(start), Ok(end)) if end <= all.len() => Ok(all.slice(start..end)),
            _ => Err(ReadError::OutOfBounds { blob: blob.digest, range, size_bytes: all.len() as u64 }),
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("blobs", &self.order).finish_non_exhaustive()
    }
}

impl BlobSource for Memory {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        let resident = self.resident.load(Ordering::Relaxed);
        resident.then(|| self.slice(blob, range).ok().map(Located::in_memory)).flatten()
    }

    fn read(&self, blob: Blob, range: ByteRange, _: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let bytes = self.slice(&blob, range)?;
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            Ok(bytes)
        })
    }

    fn reject(&self, _: &Blob, _: ByteRange) {
        self.rejects.fetch_add(1, Ordering::Relaxed);
    }
}

/// Implements the parts of a wrapper that only pass on.
macro_rules! pass_on {
    () => {
        fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
            self.below.locate(blob, range)
        }

        fn reject(&self, blob: &Blob, range: ByteRange) {
            self.below.reject(blob, range);
        }

        fn widen(&self, blob: &Blob, range: ByteRange) -> ByteRange {
            self.below.widen(blob, range)
        }
    };
}

/// Fails the next reads with a transient error, then passes on.
#[derive(Debug)]
pub struct Flaky {
    below: Arc<dyn BlobSource>,
    left: AtomicU32,
}

impl Flaky {
    /// Fails the first `failures` reads.
    pub fn new(below: Arc<dyn BlobSource>, failures: u32) -> Arc<Self> {
        Arc::new(Self { below, left: AtomicU32::new(failures) })
    }

    /// From now on, fails the next `failures` reads (`u32::MAX`: as good as for ever).
    pub fn set(&self, failures: u32) {
        self.left.store(failures, Ordering::Relaxed);
    }
}

impl BlobSource for Flaky {
    pass_on!();

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let take = |left: u32| left.checked_sub(1);
            if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                let reason = "injected failure".into();
                return Err(ReadError::Unavailable { blob: blob.digest, endpoint: "flaky".into(), reason });
            }
            self.below.read(blob, range, purpose).await
        })
    }
}

/// Waits before each read, on tokio's clock, so that a test can pause it.
#[derive(Debug)]
pub struct Slow {
    below: Arc<dyn BlobSource>,
    delay: Duration,
}

impl Slow {
    /// Delays each read by `delay`.
    pub fn new(below: Arc<dyn BlobSource>, delay: Duration) -> Arc<Self> {
        Arc::new(Self { below, delay })
    }
}

impl BlobSource for Slow {
    pass_on!();

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            tokio::time::sleep(self.delay).await;
            self.below.read(blob, range, purpose).await
        })
    }
}

/// Reads by whole frames of a fixed size, as a source that decodes does, and says so.
#[derive(Debug)]
pub struct Framed {
    below: Arc<dyn BlobSource>,
    frame_bytes: u64,
}

impl Framed {
    /// Frames of `frame_bytes`, at least 1.
    pub fn new(below: Arc<dyn BlobSource>, frame_bytes: u64) -> Arc<Self> {
        Arc::new(Self { below, frame_bytes: frame_bytes.max(1) })
    }
}

impl BlobSource for Framed {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        self.below.locate(blob, range)
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            blob.check(range)?;
            let wide = self.widen(&blob, range);
            let bytes = self.below.read(blob, wide, purpose).await?;
            let index = |byte: u64| usize::try_from(byte - wide.start()).unwrap_or(usize::MAX).min(bytes.len());
            Ok(bytes.slice(index(range.start())..index(range.end())))
        })
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.below.reject(blob, range);
    }

    fn widen(&self, blob: &Blob, range: ByteRange) -> ByteRange {
        let start = range.start() / self.frame_bytes * self.frame_bytes;
        let end = range.end().div_ceil(self.frame_bytes).saturating_mul(self.frame_bytes);
        ByteRange::new(start, end.min(blob.size_bytes).max(range.end())).unwrap_or(range)
    }
}

/// Flips one bit in the middle of every answer while switched on: a mirror that lies.
#[derive(Debug)]
pub struct Corrupt {
    below: Arc<dyn BlobSource>,
    on: AtomicBool,
}

impl Corrupt {
    /// A wrapper that is switched on.
    pub fn new(below: Arc<dyn BlobSource>) -> Arc<Self> {
        Arc::new(Self { below, on: AtomicBool::new(true) })
    }

    /// Switches the corruption on or off.
    pub fn set(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }
}

impl BlobSource for Corrupt {
    pass_on!();

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            let bytes = self.below.read(blob, range, purpose).await?;
            if !self.on.load(Ordering::Relaxed) {
                return Ok(bytes);
            }
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            Ok(bytes.into())
        })
    }
}

/// Holds every read, or those that touch one range of one blob, until released: a registry that went silent.
#[derive(Debug)]
pub struct Stuck {
    below: Arc<dyn BlobSource>,
    only: Option<(Digest, ByteRange)>,
    open: watch::Sender<bool>,
    waiting: watch::Sender<u32>,
}

/// Counts a waiting read for as long as it waits, also when its future is dropped.
struct Waiting<'a>(&'a watch::Sender<u32>);

impl<'a> Waiting<'a> {
    fn enter(count: &'a watch::Sender<u32>) -> Self {
        count.send_modify(|n| *n += 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

impl Stuck {
    /// Holds every read.
    pub fn new(below: Arc<dyn BlobSource>) -> Arc<Self> {
        Self::with(below, None)
    }

    /// Holds only the reads that touch `range` of `blob`.
    pub fn only(below: Arc<dyn BlobSource>, blob: Digest, range: ByteRange) -> Arc<Self> {
        Self::with(below, Some((blob, range)))
    }

    fn with(below: Arc<dyn BlobSource>, only: Option<(Digest, ByteRange)>) -> Arc<Self> {
        Arc::new(Self { below, only, open: watch::Sender::new(false), waiting: watch::Sender::new(0) })
    }

    /// Lets all reads pass from now on.
    pub fn release(&self) {
        self.open.send_replace(true);
    }

    /// Reads held at this moment.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        *self.waiting.borrow()
    }

    /// Waits until at least `count` reads are held.
    ///
    /// # Panics
    /// Never: the sender lives as long as `self`.
    pub async fn until_waiting(&self, count: u32) {
        let mut seen = self.waiting.subscribe();
        let _ = seen.wait_for(|&n| n >= count).await;
    }

    fn holds(&self, blob: &Blob, range: ByteRange) -> bool {
        self.only.is_none_or(|(digest, held)| digest == blob.digest && held.intersection(range).is_some())
    }
}

impl BlobSource for Stuck {
    pass_on!();

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            if self.holds(&blob, range) {
                let mut open = self.open.subscribe();
                let waiting = Waiting::enter(&self.waiting);
                let _ = open.wait_for(|&open| open).await;
                drop(waiting);
            }
            self.below.read(blob, range, purpose).await
        })
    }
}

#[cfg(test)]
mod tests;
