//! What every source must hold, whatever stands below it. Call [`check`] from the tests of each implementer.
#![expect(clippy::panic, reason = "the suite is an assertion")]

use std::{sync::Arc, task::Poll};

use bytes::Bytes;

use crate::{Blob, BlobSource, ByteRange, Digest, Purpose, ReadError};

/// How many reads run at once in the concurrency checks.
const CONCURRENT_READS: usize = 32;

/// Checks every promise of the seam against `source`, which must be able to serve `blobs` (each with its true bytes).
///
/// # Panics
/// With the broken promise as text. Also when `blobs` holds no blob of at least two bytes.
pub async fn check(source: Arc<dyn BlobSource>, blobs: &[(Blob, Bytes)]) {
    for (blob, bytes) in blobs {
        for range in ranges(blob) {
            exact(&*source, blob, bytes, range).await;
            widens_soundly(&*source, blob, range);
        }
        refuses_what_lies_outside(&*source, blob).await;
    }
    let (blob, bytes) = blobs.iter().max_by_key(|(blob, _)| blob.size_bytes).expect("at least one blob");
    assert!(blob.size_bytes >= 2, "the suite needs a blob of at least two bytes");
    many_at_once(&source, blob, bytes).await;
    for dropped in [Purpose::Demand, Purpose::Ahead] {
        survives_dropped_readers(&source, blob, bytes, dropped).await;
    }
    survives_a_reject(&source, blob, bytes).await;
    refuses_an_unknown_blob(&*source).await;
}

/// Ranges that meet the usual edges: first and last byte, chunk boundaries, everything.
fn ranges(blob: &Blob) -> Vec<ByteRange> {
    let size = blob.size_bytes;
    let edges =
        [0, 1, 511, 4095, 4096, 65_535, 65_536, 262_143, 262_144, 262_145, 524_288, size / 2, size.saturating_sub(1)];
    let lengths = [1, 2, 512, 4096, 65_536, 262_145, size];
    let pairs = edges.iter().flat_map(|&start| lengths.map(move |len| (start, start.saturating_add(len).min(size))));
    let mut all: Vec<ByteRange> = pairs.filter_map(|(start, end)| ByteRange::new(start, end).ok()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn truth(bytes: &Bytes, range: ByteRange) -> Bytes {
    let index = |byte: u64| usize::try_from(byte).expect("a test blob fits in memory");
    bytes.slice(index(range.start())..index(range.end()))
}

/// `read` answers exactly the bytes, before and after; `locate` answers the same bytes or nothing.
async fn exact(source: &dyn BlobSource, blob: &Blob, bytes: &Bytes, range: ByteRange) {
    let want = truth(bytes, range);
    for purpose in [Purpose::Ahead, Purpose::Demand] {
        let read = source.read(*blob, range, purpose).await;
        let read =
            read.unwrap_or_else(|e| panic!("read of {range} of a blob of {} bytes failed: {e}", blob.size_bytes));
        assert_eq!(read.len() as u64, range.len(), "a short or long answer for {range}");
        assert!(read == want, "other bytes than the blob's for {range}");
        if let Some(located) = source.locate(blob, range) {
            assert_eq!(located.len(), range.len(), "located another length than {range}");
            let mut buf = vec![0; want.len()];
            located
                .read_at(&mut buf, 0)
                .unwrap_or_else(|e| panic!("located {range}, but its bytes cannot be read: {e}"));
            assert!(buf == want, "located other bytes than the blob's for {range}");
        }
    }
}

/// `widen` holds what it was asked for, stays inside the blob and leads no further; outside the blob it answers all the same.
fn widens_soundly(source: &dyn BlobSource, blob: &Blob, range: ByteRange) {
    let wide = source.widen(blob, range);
    assert!(wide.contains(range), "{range} widened to {wide}");
    assert!(wide.end() <= blob.size_bytes, "{range} of {} bytes widened to {wide}", blob.size_bytes);
    assert_eq!(source.widen(blob, wide), wide, "{wide}, to which {range} is widened, is widened further");
    let beyond = ByteRange::new(range.start(), blob.size_bytes.saturating_add(range.len())).expect("not empty");
    assert!(source.widen(blob, beyond).contains(beyond), "{beyond}, which lies outside, lost bytes");
}

async fn refuses_what_lies_outside(source: &dyn BlobSource, blob: &Blob) {
    let size = blob.size_bytes;
    for (start, end) in [(0, size + 1), (size, size + 1), (size + 5, size + 6), (u64::MAX - 1, u64::MAX)] {
        let range = ByteRange::new(start, end).expect("not empty");
        for purpose in [Purpose::Demand, Purpose::Ahead] {
            let answer = source.read(*blob, range, purpose).await;
            assert!(matches!(answer, Err(ReadError::OutOfBounds { .. })), "{range} of {size} bytes gave {answer:?}");
        }
        assert!(source.locate(blob, range).is_none(), "located {range} of a blob of {size} bytes");
    }
}

async fn refuses_an_unknown_blob(source: &dyn BlobSource) {
    let blob = Blob { digest: Digest::of(b"a blob that nobody has"), size_bytes: 10 };
    let range = ByteRange::new(0, 10).expect("not empty");
    assert!(source.locate(&blob, range).is_none(), "located a blob that nobody has");
    let answer = source.read(blob, range, Purpose::Demand).await;
    assert!(answer.is_err(), "read a blob that nobody has");
}

/// Overlapping concurrent reads each get their own bytes.
async fn many_at_once(source: &Arc<dyn BlobSource>, blob: &Blob, bytes: &Bytes) {
    let ranges = ranges(blob);
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..CONCURRENT_READS {
        let (source, blob, range) = (source.clone(), *blob, ranges[i % ranges.len()]);
        let purpose = if i % 2 == 0 { Purpose::Demand } else { Purpose::Ahead };
        tasks.spawn(async move { (range, source.read(blob, range, purpose).await) });
    }
    while let Some(done) = tasks.join_next().await {
        let (range, read) = done.expect("a reader panicked");
        assert!(
            read.expect("a concurrent read failed") == truth(bytes, range),
            "a concurrent read of {range} got other bytes"
        );
    }
}

/// A reader that goes away takes nobody else's answer with it.
async fn survives_dropped_readers(source: &Arc<dyn BlobSource>, blob: &Blob, bytes: &Bytes, dropped: Purpose) {
    let range = blob.all().expect("not empty");
    let mut dropped = source.read(*blob, range, dropped);
    let mut kept = source.read(*blob, range, Purpose::Demand);
    let early = std::future::poll_fn(|cx| {
        let _ = dropped.as_mut().poll(cx);
        Poll::Ready(match kept.as_mut().poll(cx) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        })
    })
    .await;
    drop(dropped);
    let answer = match early {
        Some(answer) => answer,
        None => kept.await,
    };
    assert!(
        answer.expect("the reader that stayed got an error") == truth(bytes, range),
        "the reader that stayed got other bytes"
    );
}

/// After a reject the bytes are asked for again, and are right.
async fn survives_a_reject(source: &Arc<dyn BlobSource>, blob: &Blob, bytes: &Bytes) {
    let range = ByteRange::new(0, blob.size_bytes.min(4096)).expect("not empty");
    source.reject(blob, range);
    let beyond = ByteRange::new(blob.size_bytes + 1, blob.size_bytes + 2).expect("not empty");
    source.reject(blob, beyond);
    exact(&**source, blob, bytes, range).await;
}
