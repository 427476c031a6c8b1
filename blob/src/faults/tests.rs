//! The wrappers do what they say, and keep the seam's promise while they pass on.

use super::*;
use crate::conformance;

fn sample() -> (Arc<Memory>, Vec<(Blob, Bytes)>) {
    let blobs: Vec<Bytes> =
        vec![Bytes::from((0..600_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()), Bytes::from_static(b"x")];
    let memory = Memory::new(blobs.clone());
    let pairs = blobs.into_iter().enumerate().map(|(i, bytes)| (memory.blob(i), bytes)).collect();
    (memory, pairs)
}

fn first(pairs: &[(Blob, Bytes)]) -> (Blob, ByteRange) {
    (pairs[0].0, ByteRange::new(10, 20).unwrap())
}

#[tokio::test]
async fn memory_conforms_resident_or_not() {
    let (memory, pairs) = sample();
    conformance::check(memory.clone(), &pairs).await;
    memory.resident(true);
    conformance::check(memory.clone(), &pairs).await;
    assert!(memory.reads() > 0 && memory.bytes_read() > 0);
}

#[tokio::test]
async fn flaky_fails_as_often_as_told_then_conforms() {
    let (memory, pairs) = sample();
    let (blob, range) = first(&pairs);
    let flaky = Flaky::new(memory, 2);
    assert!(flaky.read(blob, range, Purpose::Demand).await.unwrap_err().is_transient());
    assert!(flaky.read(blob, range, Purpose::Demand).await.unwrap_err().is_transient());
    conformance::check(flaky, &pairs).await;
}

#[tokio::test(start_paused = true)]
async fn slow_waits_its_delay_and_conforms() {
    let (memory, pairs) = sample();
    let (blob, range) = first(&pairs);
    let slow = Slow::new(memory, Duration::from_secs(2));
    let before = tokio::time::Instant::now();
    slow.read(blob, range, Purpose::Demand).await.unwrap();
    assert_eq!(before.elapsed(), Duration::from_secs(2));
    conformance::check(slow, &pairs).await;
}

#[tokio::test]
async fn corrupt_changes_bytes_only_while_on() {
    let (memory, pairs) = sample();
    let (blob, range) = first(&pairs);
    let corrupt = Corrupt::new(memory);
    assert_ne!(corrupt.read(blob, range, Purpose::Demand).await.unwrap(), pairs[0].1.slice(10..20));
    corrupt.set(false);
    conformance::check(corrupt, &pairs).await;
}

#[tokio::test]
#[should_panic(expected = "other bytes than the blob's")]
async fn the_suite_finds_corruption() {
    let (memory, pairs) = sample();
    conformance::check(Corrupt::new(memory), &pairs).await;
}

#[tokio::test]
async fn stuck_holds_only_what_it_was_told_and_counts_who_waits() {
    let (memory, pairs) = sample();
    let (blob, range) = first(&pairs);
    let stuck = Stuck::only(memory, blob.digest, range);
    stuck.read(blob, ByteRange::new(20, 30).unwrap(), Purpose::Demand).await.unwrap();
    let mut held = Box::pin(stuck.read(blob, range, Purpose::Demand));
    tokio::select! {
        biased;
        _ = &mut held => panic!("a held read was answered"),
        () = stuck.until_waiting(1) => {}
    }
    drop(held);
    assert_eq!(stuck.waiting(), 0);
    stuck.release();
    conformance::check(stuck, &pairs).await;
}

#[tokio::test]
async fn framed_reads_whole_frames_and_conforms() {
    let (memory, pairs) = sample();
    let framed = Framed::new(memory.clone(), 100_000);
    let (blob, bytes) = pairs.iter().find(|(blob, _)| blob.size_bytes > 200_000).unwrap();
    let range = ByteRange::new(150_000, 150_001).unwrap();
    assert_eq!(framed.widen(blob, range), ByteRange::new(100_000, 200_000).unwrap());
    assert_eq!(framed.read(*blob, range, Purpose::Demand).await.unwrap(), bytes.slice(150_000..150_001));
    assert_eq!(memory.bytes_read(), 100_000);
    conformance::check(framed, &pairs).await;
}
