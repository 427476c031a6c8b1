//! Never a wrong byte: whoever lies, about the blob or about its list, wherever, and whatever becomes of the local files.

use std::{fs::File, path::Path};

use penstock_blob::{
    Purpose, conformance,
    faults::{Corrupt, Flaky, Memory, Stuck},
};

use super::*;
use crate::{
    compute,
    testing::{Lying, grid, noise, with_lists},
};

fn verified(below: Arc<dyn BlobSource>, dir: &Path) -> Arc<Verified> {
    let config = Config { dir: dir.to_owned(), deadline: Duration::from_secs(30) };
    Verified::new(below, config, &mut Registry::default())
}

/// Tells it of lists as an attach does.
fn install(verified: &Arc<Verified>, lists: &[Listed]) -> Used {
    let blobs: Vec<Blob> = lists.iter().map(|listed| listed.blob).collect();
    verified.expect(&blobs).settle(Outcome::Index(lists.to_vec())).unwrap().0
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).unwrap()
}

/// A blob of 130 chunks, so that its list has two levels.
const LEN: usize = 130 * 65_536 - 100;

fn part(bytes: &Bytes, part: ByteRange) -> Bytes {
    bytes.slice(usize::try_from(part.start()).unwrap()..usize::try_from(part.end()).unwrap())
}

#[tokio::test]
async fn it_keeps_the_promise_of_sources_with_and_without_lists() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = [noise(1, 700_001), noise(2, 65_536), noise(3, 2)];
    let (memory, lists) = with_lists(&blobs, dir.path()).await;
    let verified = verified(memory.clone(), dir.path());
    let used = install(&verified, &lists[..2]);
    let named: Vec<_> = blobs.iter().enumerate().map(|(nth, bytes)| (memory.blob(nth), bytes.clone())).collect();
    conformance::check(verified.clone(), &named).await;
    assert_eq!(verified.listed(&lists[0].blob.digest), Some(lists[0]));
    drop(used);
    assert_eq!(verified.listed(&lists[0].blob.digest), None);
    conformance::check(verified, &named).await;
}

#[tokio::test]
async fn a_bit_flipped_anywhere_in_the_blob_or_its_list_is_found_and_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(1, LEN);
    let (memory, lists) = with_lists(std::slice::from_ref(&bytes), dir.path()).await;
    let (blob, list) = (lists[0].blob, lists[0].list);
    let wanted = range(65_530, 65_546);
    let in_blob = [0, 65_529, 65_530, 65_545, 65_546, 131_071].map(|at| (blob.digest, at));
    // Header (root, top), top page, both leaf pages' used parts.
    let in_list = [0, 8, 40, 64, 95, 4095, 4096, 4127, 4128, 8192, 8255].map(|at| (list.digest, at));
    for (digest, at) in in_blob.into_iter().chain(in_list) {
        let state = tempfile::tempdir().unwrap();
        let before = memory.rejects();
        let lying = Lying::new(memory.clone(), digest, at, 2);
        let verified = verified(lying.clone(), state.path());
        let _used = install(&verified, &lists);
        let read = verified.read(blob, wanted, Purpose::Demand).await.unwrap();
        assert_eq!(read, part(&bytes, wanted), "byte {at} of {digest}");
        assert_eq!(
            (lying.left(), memory.rejects() - before),
            (0, 2),
            "both lies about byte {at} were found and rejected"
        );
    }
}

#[tokio::test]
async fn bytes_that_stay_wrong_are_an_error_and_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let (memory, lists) = with_lists(&[noise(1, 300_000)], dir.path()).await;
    let lying = Lying::new(memory.clone(), lists[0].blob.digest, 70_000, u32::MAX);
    let verified = verified(lying, dir.path());
    let mut events = verified.events();
    let _used = install(&verified, &lists);
    for _ in 0..2 {
        let refused = verified.read(lists[0].blob, range(65_536, 65_537), Purpose::Demand).await.unwrap_err();
        assert!(
            matches!(refused, ReadError::WrongBytes { range: bad, .. } if bad == range(65_536, 131_072)),
            "{refused}"
        );
    }
    assert!(verified.read(lists[0].blob, range(0, 65_536), Purpose::Demand).await.is_ok(), "other chunks are served");
    assert!(matches!(events.try_recv(), Ok(Event::WrongBytes { .. })));
    assert!(events.try_recv().is_err(), "told once");
    assert_eq!(verified.metrics.wrong_chunks.get(), u64::from(2 * TRIES));
}

#[tokio::test]
async fn a_list_that_stays_wrong_serves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = [noise(1, 300_000), noise(2, 300_000)];
    let (memory, lists) = with_lists(&bytes, dir.path()).await;
    // The list of the other blob under this one's name, as a repository's owner could write it by mistake.
    let swapped = Listed { list: lists[1].list, ..lists[0] };
    let of_another = Listed { list: lists[1].list, root: lists[1].root, ..lists[0] };
    for wrong in [swapped, of_another] {
        let verified = verified(memory.clone(), dir.path());
        let _used = install(&verified, &[wrong]);
        let refused = verified.read(wrong.blob, range(0, 1), Purpose::Demand).await.unwrap_err();
        assert!(matches!(refused, ReadError::WrongBytes { blob, .. } if blob == wrong.list.digest), "{refused}");
    }
}

#[tokio::test]
async fn pages_damaged_on_disk_are_fetched_again_and_without_a_registry_fail() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(1, LEN);
    let (memory, lists) = with_lists(std::slice::from_ref(&bytes), dir.path()).await;
    let flaky = Flaky::new(memory.clone(), 0);
    let last = range(LEN as u64 - 5, LEN as u64);
    let file = dir.path().join(format!("{}.list", lists[0].root.to_hex()));
    drop(install(&verified(flaky.clone(), dir.path()), &lists));
    let listed = lists[0];
    let read = |verified: Arc<Verified>| async move {
        let _used = install(&verified, &[listed]);
        verified.read(listed.blob, last, Purpose::Demand).await
    };
    assert_eq!(read(verified(flaky.clone(), dir.path())).await.unwrap(), part(&bytes, last));
    let whole = std::fs::read(&file).unwrap();
    let reads = memory.reads();
    assert_eq!(read(verified(flaky.clone(), dir.path())).await.unwrap(), part(&bytes, last));
    assert_eq!(memory.reads() - reads, 1, "the list is here: only data was read");
    for damage in [0, 70, 4096, 3 * 4096, 3 * 4096 + 32] {
        let mut damaged = whole.clone();
        damaged[damage] ^= 1;
        std::fs::write(&file, &damaged).unwrap();
        let down = Flaky::new(memory.clone(), u32::MAX);
        assert!(read(verified(down, dir.path())).await.unwrap_err().is_transient());
        assert_eq!(read(verified(flaky.clone(), dir.path())).await.unwrap(), part(&bytes, last), "damaged at {damage}");
        assert_eq!(std::fs::read(&file).unwrap(), whole, "and healed");
    }
    for len in [0, 1, 4096, whole.len() as u64 - 1] {
        File::options().write(true).open(&file).unwrap().set_len(len).unwrap();
        assert_eq!(read(verified(flaky.clone(), dir.path())).await.unwrap(), part(&bytes, last), "cut to {len}");
        assert_eq!(std::fs::read(&file).unwrap(), whole);
    }
}

#[tokio::test]
async fn a_list_that_cannot_be_kept_is_used_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(1, LEN);
    let (memory, lists) = with_lists(std::slice::from_ref(&bytes), dir.path()).await;
    let verified = verified(memory, &dir.path().join("missing"));
    let _used = install(&verified, &lists);
    let all = lists[0].blob.all().unwrap();
    assert_eq!(verified.read(lists[0].blob, all, Purpose::Demand).await.unwrap(), bytes);
}

#[tokio::test]
async fn reads_wait_until_it_is_known_whether_there_is_a_list() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(1, 300_000);
    let (memory, lists) = with_lists(std::slice::from_ref(&bytes), dir.path()).await;
    let blob = lists[0].blob;
    for (outcome, lies, served) in [
        (Outcome::None, 0, true),
        (Outcome::Index(lists.clone()), 0, true),
        (Outcome::Index(lists.clone()), 1, true),
        (Outcome::Index(lists.clone()), u32::MAX, false),
        (Outcome::Unreadable("of a test".to_owned()), 0, false),
    ] {
        let stuck = Stuck::new(Lying::new(memory.clone(), blob.digest, 3, lies));
        let verified = verified(stuck.clone(), dir.path());
        let expected = verified.expect(&[blob]);
        for wanted in [range(0, 65_536), range(1, 5)] {
            let mut early = verified.read(blob, wanted, Purpose::Demand);
            assert!(futures_util::poll!(&mut early).is_pending());
            assert_eq!(stuck.waiting(), 1, "the bytes are on their way meanwhile");
        }
        stuck.release();
        let mut early = verified.read(blob, range(1, 5), Purpose::Demand);
        assert!(futures_util::poll!(&mut early).is_pending(), "the bytes came, and are not passed up");
        let used = expected.settle(outcome).unwrap();
        match early.await {
            Ok(read) => assert!(served && read == bytes.slice(1..5)),
            Err(error) => assert!(!served && error.is_transient(), "{error}"),
        }
        drop(used);
    }
}

#[tokio::test]
async fn reads_of_an_image_that_is_given_up_go_on_without_a_list() {
    let dir = tempfile::tempdir().unwrap();
    let (memory, lists) = with_lists(&[noise(1, 10)], dir.path()).await;
    let verified = verified(memory, dir.path());
    let expected = verified.expect(&[lists[0].blob]);
    let again = verified.expect(&[lists[0].blob]);
    let mut waiting = verified.read(lists[0].blob, range(0, 10), Purpose::Demand);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(expected);
    assert!(waiting.await.is_ok());
    let (_used, fresh) = again.settle(Outcome::Index(lists.clone())).unwrap();
    assert_eq!(fresh, [lists[0].blob], "what was read meanwhile was not verified");
}

#[tokio::test]
async fn two_indexes_that_contradict_each_other_are_not_both_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (memory, lists) = with_lists(&[noise(1, 300_000), noise(2, 300_000)], dir.path()).await;
    let verified = verified(memory.clone(), dir.path());
    let (used, fresh) = verified.expect(&[lists[0].blob]).settle(Outcome::Index(lists[..1].to_vec())).unwrap();
    assert_eq!(fresh, [lists[0].blob]);
    let hostile = Listed { root: lists[1].root, ..lists[0] };
    let conflict = verified.expect(&[lists[0].blob]).settle(Outcome::Index(vec![hostile])).unwrap_err();
    assert_eq!((conflict.known, conflict.said), (lists[0].root, lists[1].root));
    assert_eq!(verified.listed(&lists[0].blob.digest), Some(lists[0]), "the first one stays");
    let (shared, fresh) = verified.expect(&[lists[0].blob]).settle(Outcome::None).unwrap();
    assert!(fresh.is_empty());
    drop(used);
    assert!(
        verified.listed(&lists[0].blob.digest).is_some(),
        "an image without an index that shares the blob has its list"
    );
    drop(shared);
    assert!(verified.listed(&lists[0].blob.digest).is_none());
}

#[tokio::test]
async fn files_of_lists_go_with_the_last_image_that_is_detached() {
    let dir = tempfile::tempdir().unwrap();
    let (memory, lists) = with_lists(&[noise(1, 10)], dir.path()).await;
    let verified = verified(memory, dir.path());
    let file = dir.path().join(format!("{}.list", lists[0].root.to_hex()));
    let [first, second] = [install(&verified, &lists), install(&verified, &lists)];
    verified.read(lists[0].blob, range(0, 10), Purpose::Demand).await.unwrap();
    first.discard();
    drop(first);
    assert!(file.exists(), "another image uses it");
    drop(second);
    assert!(file.exists(), "the agent stops: the next one needs it");
    let third = install(&verified, &lists);
    third.discard();
    drop(third);
    assert!(!file.exists());
}

#[tokio::test]
async fn an_audit_drops_what_a_cache_kept_before_there_was_a_list() {
    /// A cache that has everything, one byte of it wrong.
    #[derive(Debug)]
    struct Stale(Bytes, parking_lot::Mutex<Vec<ByteRange>>);

    impl BlobSource for Stale {
        fn locate(&self, _: &Blob, range: ByteRange) -> Option<Located> {
            Some(Located::in_memory(part(&self.0, range)))
        }
        fn read(&self, _: Blob, range: ByteRange, _: Purpose) -> ReadFuture<'_> {
            Box::pin(async move { Ok(part(&self.0, range)) })
        }
        fn reject(&self, _: &Blob, range: ByteRange) {
            self.1.lock().push(range);
        }
    }

    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(1, 300_000);
    let (memory, lists) = with_lists(std::slice::from_ref(&bytes), dir.path()).await;
    let verified = verified(memory, dir.path());
    let mut wrong = bytes.to_vec();
    wrong[200_000] ^= 1;
    let cache = Stale(wrong.into(), parking_lot::Mutex::default());
    assert_eq!(
        verified.audit(&cache, lists[0].blob).await,
        Ok(Audit::default()),
        "without a list nothing is looked at"
    );
    let _used = install(&verified, &lists);
    let audit = verified.audit(&cache, lists[0].blob).await.unwrap();
    assert_eq!(audit, Audit { right_bytes: 300_000 - (262_144 - 196_608), wrong_bytes: 262_144 - 196_608 });
    assert_eq!(*cache.1.lock(), [range(196_608, 262_144)]);
}

#[tokio::test]
async fn a_mirror_that_corrupts_everything_gets_nothing_through() {
    let dir = tempfile::tempdir().unwrap();
    let (memory, lists) = with_lists(&[noise(1, 100_000)], dir.path()).await;
    let corrupt = Corrupt::new(memory.clone());
    let verified = verified(corrupt.clone(), dir.path());
    let _used = install(&verified, &lists);
    assert!(verified.read(lists[0].blob, range(0, 100_000), Purpose::Demand).await.is_err());
    corrupt.set(false);
    assert!(verified.read(lists[0].blob, range(0, 100_000), Purpose::Demand).await.is_ok());
    let listless = Memory::new(vec![noise(9, 50)]);
    let made = compute(&*listless, listless.blob(0), grid(), &dir.path().join("x"), |_| {}).await.unwrap();
    assert_eq!(made.listed.blob, listless.blob(0));
}
