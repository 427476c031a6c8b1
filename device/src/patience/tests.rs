//! A device's patience, on tokio's clock, which is paused: nothing here waits.

use bytes::Bytes;
use penstock_blob::{
    Purpose, conformance,
    faults::{Flaky, Memory, Stuck},
};
use tokio::task::JoinSet;

use super::*;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn eio(deadline: u64) -> Patience {
    Patience { deadline: seconds(deadline), then: Then::Eio }
}

const fn wait(deadline: u64, at_most: u64) -> Patience {
    Patience { deadline: seconds(deadline), then: Then::Wait { at_most: seconds(at_most) } }
}

fn memory() -> (Arc<Memory>, Blob, ByteRange) {
    let memory = Memory::new(vec![Bytes::from_static(&[7; 100])]);
    let blob = memory.blob(0);
    (memory, blob, ByteRange::new(1, 4).unwrap())
}

/// A read on its way.
fn reading(source: &Arc<Patient>, blob: Blob, range: ByteRange) -> JoinSet<Result<Bytes, ReadError>> {
    let (source, mut tasks) = (source.clone(), JoinSet::new());
    tasks.spawn(async move { source.read(blob, range, Purpose::Demand).await });
    tasks
}

#[tokio::test]
async fn a_patient_source_keeps_the_promise_of_sources() {
    let bytes = Bytes::from(vec![5; 100_000]);
    let memory = Memory::new(vec![bytes.clone()]);
    let blob = memory.blob(0);
    conformance::check(Patient::new(memory, Patience::default()), &[(blob, bytes)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_read_without_an_answer_fails_at_its_deadline_and_is_told_once() {
    let (memory, blob, range) = memory();
    let source = Patient::new(Stuck::new(memory), eio(30));
    let mut notices = source.notices();
    let begun = Instant::now();
    for _ in 0..3 {
        let error = source.read(blob, range, Purpose::Demand).await.unwrap_err();
        assert!(matches!(error, ReadError::Deadline { after, .. } if after == seconds(30)), "{error}");
    }
    assert_eq!(begun.elapsed(), seconds(90));
    let told = notices.try_recv().unwrap();
    assert_eq!(told, Notice::PolicyEio { blob: blob.digest, range, waited: seconds(30), last: None });
    assert!(notices.try_recv().is_err(), "said for each read");
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_may_pass_is_asked_again_within_the_deadline() {
    let (memory, blob, range) = memory();
    let source = Patient::new(Flaky::new(memory.clone(), 5), eio(30));
    assert_eq!(source.read(blob, range, Purpose::Demand).await.unwrap(), &[7; 3][..]);
    let source = Patient::new(Flaky::new(memory, u32::MAX), eio(30));
    let error = source.read(blob, range, Purpose::Demand).await.unwrap_err();
    assert!(error.to_string().contains("injected failure"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_will_not_pass_is_an_error_at_once_unless_the_device_waits() {
    let (memory, _, range) = memory();
    let nowhere = Blob { digest: Digest::of(b"nowhere"), size_bytes: 100 };
    let begun = Instant::now();
    let source = Patient::new(memory.clone(), eio(30));
    assert!(matches!(source.read(nowhere, range, Purpose::Demand).await, Err(ReadError::NotFound { .. })));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let source = Patient::new(memory, wait(30, 3600));
    assert!(matches!(source.read(nowhere, range, Purpose::Demand).await, Err(ReadError::Deadline { .. })));
    assert_eq!(begun.elapsed(), seconds(3600));
    let beyond = ByteRange::new(99, 101).unwrap();
    assert!(matches!(source.read(nowhere, beyond, Purpose::Demand).await, Err(ReadError::OutOfBounds { .. })));
    assert_eq!(begun.elapsed(), seconds(3600), "what can never be had is not waited for");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_waits_says_so_and_serves_when_the_bytes_come() {
    let (memory, blob, range) = memory();
    let stuck = Stuck::new(memory);
    let source = Patient::new(stuck.clone(), wait(30, 3600));
    let mut notices = source.notices();
    let mut reading = self::reading(&source, blob, range);
    let told = notices.recv().await.unwrap();
    assert_eq!(told, Notice::Waiting { blob: blob.digest, range, at_most: seconds(3600), last: None });
    tokio::time::advance(seconds(1000)).await;
    stuck.release();
    assert_eq!(reading.join_next().await.unwrap().unwrap().unwrap(), &[7; 3][..]);
    assert_eq!(notices.recv().await.unwrap(), Notice::Healed { blob: blob.digest });
}

#[tokio::test(start_paused = true)]
async fn a_changed_patience_holds_for_reads_that_wait_already() {
    let (memory, blob, range) = memory();
    let stuck = Stuck::new(memory);
    let source = Patient::new(stuck.clone(), wait(30, 3600));
    let begun = Instant::now();
    let mut notices = source.notices();
    let mut reading = self::reading(&source, blob, range);
    notices.recv().await.unwrap();
    // Shorter than it has waited already: over at once.
    source.set(eio(10));
    reading.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!(begun.elapsed(), seconds(30));
    let mut reading = self::reading(&source, blob, range);
    stuck.until_waiting(1).await;
    tokio::time::advance(seconds(9)).await;
    source.set(eio(100));
    reading.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!(begun.elapsed(), seconds(130));
}

#[test]
fn patience_has_bounds() {
    for good in [eio(1), eio(600), wait(30, 30), wait(1, 86_400)] {
        good.check().unwrap();
    }
    for bad in [eio(0), eio(601), wait(30, 29), wait(30, 86_401), wait(0, 10)] {
        bad.check().unwrap_err();
    }
}

#[tokio::test(start_paused = true)]
async fn trouble_that_comes_and_goes_is_not_told_each_time() {
    let start = Instant::now();
    let (refused, told) = Trouble::apply(None, Turn::Refused, start);
    assert!(told);
    let soon = start + QUIET / 2;
    assert_eq!(Trouble::apply(refused, Turn::Served, soon), (refused, false));
    assert_eq!(Trouble::apply(refused, Turn::Refused, soon), (Some(Trouble::Refused(soon)), false));
    assert_eq!(Trouble::apply(refused, Turn::Served, start + QUIET), (None, true));
    assert_eq!(Trouble::apply(None, Turn::Served, start), (None, false));
}
