//! Reading device bytes from start to end: plan, fetch what is missing, plan again, execute.
//!
//! `device` runs the same parts in other places: [`Image::plan`] and [`crate::Plan::read_into`] on a queue's thread,
//! [`Held::fetch`] on the runtime in between.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_blob::{Blob, BlobSource, ByteRange, Giver, Located, Purpose, ReadError, ReadFuture};

use crate::{Image, PlanError, Scratch, StepError, units::in_memory};

/// Fetches of one request under way at once; the fetcher below has its own budget.
const FETCHES_AT_ONCE: usize = 16;
/// Most missing bytes fetched for one plan in [`read`]; a longer request is split.
const HELD_BYTES: u64 = 16 << 20;
/// Places of one piece that may fail their check and be fetched anew; what failed beyond it is dropped and is next time right.
const MAX_REJECTED: usize = 32;

/// A source, and over it the bytes that one request fetched. Answers `locate` from those bytes first, so the request
/// can be executed even if the source below kept nothing (a full disk, a cache that was bypassed). Lives as long as the
/// request.
#[derive(Debug)]
pub struct Held {
    source: Arc<dyn BlobSource>,
    pieces: Vec<(Blob, ByteRange, Bytes)>,
}

impl Held {
    /// Holds nothing yet.
    #[must_use]
    pub const fn new(source: Arc<dyn BlobSource>) -> Self {
        Self { source, pieces: Vec::new() }
    }

    /// Fetches all of `missing` (see [`crate::Plan::missing`]) through `source`, concurrently, and holds the bytes.
    /// Ranges that touch are read as one.
    ///
    /// # Errors
    /// The first error met; the other fetches are given up.
    pub async fn fetch(
        source: Arc<dyn BlobSource>,
        missing: impl IntoIterator<Item = (Blob, ByteRange)>,
    ) -> Result<Self, ReadError> {
        let mut held = Self::new(source);
        held.add(missing).await?;
        Ok(held)
    }

    /// Fetches more. What is held stays.
    ///
    /// # Errors
    /// As [`Held::fetch`].
    pub async fn add(&mut self, missing: impl IntoIterator<Item = (Blob, ByteRange)>) -> Result<(), ReadError> {
        let wanted = merge(missing.into_iter().collect());
        let source = &self.source;
        let reads = wanted.into_iter().map(|(blob, range)| async move {
            let bytes = source.read(blob, range, Purpose::Demand).await?;
            Ok::<_, ReadError>((blob, range, bytes))
        });
        let fetched: Vec<_> = stream::iter(reads).buffer_unordered(FETCHES_AT_ONCE).try_collect().await?;
        self.pieces.extend(fetched);
        Ok(())
    }
}

/// Joins ranges of a blob that touch or overlap.
fn merge(mut wanted: Vec<(Blob, ByteRange)>) -> Vec<(Blob, ByteRange)> {
    wanted.sort_unstable_by_key(|(blob, range)| (blob.digest, *range));
    wanted.dedup_by(|next, kept| {
        let touch = next.0 == kept.0 && next.1.start() <= kept.1.end();
        if touch {
            kept.1 = kept.1.cover(next.1);
        }
        touch
    });
    wanted
}

impl BlobSource for Held {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        let holds = |(of, held, _): &&(Blob, ByteRange, Bytes)| of == blob && held.contains(range);
        if let Some((_, held, bytes)) = self.pieces.iter().find(holds) {
            let start = in_memory(range.start() - held.start());
            let end = start.checked_add(in_memory(range.len())).filter(|&end| end <= bytes.len())?;
            return Some(Located::in_memory(bytes.slice(start..end)));
        }
        self.source.locate(blob, range)
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        if let Err(error) = blob.check(range) {
            return Box::pin(std::future::ready(Err(error)));
        }
        match self.locate(&blob, range).and_then(|located| located.as_memory().cloned()) {
            Some(bytes) => Box::pin(std::future::ready(Ok(bytes))),
            None => self.source.read(blob, range, purpose),
        }
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.source.reject(blob, range);
    }

    fn giver(&self, blob: &Blob, range: ByteRange) -> Option<Giver> {
        self.source.giver(blob, range)
    }
}

/// Why device bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DeviceReadError {
    /// The request could not be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Missing bytes could not be fetched.
    #[error(transparent)]
    Fetch(#[from] ReadError),
    /// The bytes were wrong, and wrong again when fetched anew.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// Reads device bytes. Decodes on the caller's thread; allocates the answer and what is missing of it, the latter at
/// most 16 MiB at a time.
///
/// # Errors
/// [`DeviceReadError`]. Bytes that fail a check are rejected and fetched anew once before.
pub async fn read(image: &Image, source: &Arc<dyn BlobSource>, range: ByteRange) -> Result<Bytes, DeviceReadError> {
    let source = &image.over(source.clone());
    // Planned before anything is allocated: a range beyond the device is refused here.
    let mut plans = vec![(range, image.plan(range, source)?)];
    let mut buf = vec![0; in_memory(range.len())];
    let mut scratch = Scratch::new();
    while let Some((piece, plan)) = plans.pop() {
        let missing: u64 = plan.missing().map(|(_, range)| range.len()).sum();
        if missing > HELD_BYTES
            && let Some((low, high)) = halves(piece)
        {
            plans.push((high, image.plan(high, source)?));
            plans.push((low, image.plan(low, source)?));
            continue;
        }
        let start = in_memory(piece.start() - range.start());
        let out = &mut buf[start..start + in_memory(piece.len())];
        // The pins go before a source is told to drop what they hold.
        drop(plan);
        let mut rejected = Vec::new();
        loop {
            let Err(error) = attempt(image, source, piece, (&mut *out, &mut scratch)).await else { break };
            let wrong = if let DeviceReadError::Step(error) = &error { error.rejected() } else { None };
            let Some((blob, wrong)) = wrong else { return Err(error) };
            source.reject(&blob, wrong);
            if rejected.contains(&(blob, wrong)) || rejected.len() == MAX_REJECTED {
                return Err(error);
            }
            tracing::warn!(%error, "bytes failed their check and are fetched again");
            rejected.push((blob, wrong));
        }
    }
    Ok(buf.into())
}

fn halves(range: ByteRange) -> Option<(ByteRange, ByteRange)> {
    let middle = range.start().midpoint(range.end());
    Some((ByteRange::new(range.start(), middle).ok()?, ByteRange::new(middle, range.end()).ok()?))
}

/// Plans and fetches until nothing is missing, then executes. Each round holds more, so the rounds end; the plan before
/// is kept until the next one is made, so what it located is not evicted in between.
async fn attempt(
    image: &Image,
    source: &Arc<dyn BlobSource>,
    range: ByteRange,
    (out, scratch): (&mut [u8], &mut Scratch),
) -> Result<(), DeviceReadError> {
    let mut held = Held::new(source.clone());
    let mut plan = image.plan(range, &held)?;
    while !plan.is_local() {
        held.add(plan.missing()).await?;
        plan = image.plan(range, &held)?;
    }
    Ok(plan.read_into(out, scratch)?)
}

#[cfg(test)]
mod tests {
    use penstock_blob::Digest;

    use super::*;

    #[test]
    fn ranges_that_touch_are_fetched_as_one() {
        let blob = |name: &[u8]| Blob { digest: Digest::of(name), size_bytes: 100 };
        let range = |start, end| ByteRange::new(start, end).unwrap();
        let (a, b) = (blob(b"a"), blob(b"b"));
        let wanted = vec![(a, range(5, 9)), (b, range(9, 12)), (a, range(0, 5)), (a, range(7, 8)), (a, range(10, 11))];
        let mut merged = merge(wanted);
        merged.sort_by_key(|(blob, range)| (blob.digest != a.digest, range.start()));
        assert_eq!(merged, [(a, range(0, 9)), (a, range(10, 11)), (b, range(9, 12))]);
    }
}
