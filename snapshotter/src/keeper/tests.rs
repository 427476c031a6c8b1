//! One change that cannot be written fails alone; after the end nothing is promised any more.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::{dirs::Owner, record::tests::lazy};

fn put(number: u64) -> Change {
    Change::Put(Box::new(Record { number, ..lazy() }))
}

fn keeper(dirs: &Dirs) -> (Keeper, Loaded) {
    Keeper::open(dirs.metadata(), dirs.clone(), 0).expect("it opens")
}

fn numbers(loaded: &Loaded) -> Vec<u64> {
    loaded.records.iter().map(|(number, _)| *number).collect()
}

#[tokio::test]
async fn a_record_that_cannot_be_written_fails_alone_and_what_was_answered_is_there_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let dirs = Dirs::create(dir.path()).expect("made");
    let (first, loaded) = keeper(&dirs);
    assert_eq!((loaded.mark, loaded.records.len()), (None, 0));
    let meta = std::fs::metadata(dir.path()).expect("it exists");
    let owner = Owner { mode: 0o755, uid: meta.uid(), gid: meta.gid() };
    for number in [1, 3] {
        dirs.make(number, owner, false).expect("made");
    }
    let [there, missing, deleted] = [put(1), put(2), put(3)].map(|change| first.commit(change));
    let (there, missing, deleted) = tokio::join!(there, missing, deleted);
    there.expect("written");
    deleted.expect("written");
    let error = missing.expect_err("its directory does not exist");
    assert!(error.is_transient() && error.to_string().contains("could not be written"), "{error}");
    first.commit(Change::Delete(3)).await.expect("deleted");
    assert!(first.close());
    assert!(!first.close(), "it is closed");
    let error = first.commit(put(1)).await.expect_err("it is closed");
    assert!(error.is_transient() && error.to_string().contains("restart the agent"), "{error}");
    let (second, loaded) = keeper(&dirs);
    assert_eq!(numbers(&loaded), [1]);
    let mark = loaded.mark.expect("it was written");
    assert_eq!(mark.records, loaded.records.len() as u64);
    let generation = mark.generation;
    let beside = dirs.read_record(1).expect("it can be read").expect("it exists").expect("it is whole");
    assert!((1..=generation).contains(&beside.generation));
    assert_eq!(loaded.records[0].1, beside.encode().expect("text"), "the same in both places");
    second.settle(vec![put(1), Change::Delete(7)]).expect("written");
    assert!(second.close());
    assert!(keeper(&dirs).1.mark.is_some_and(|mark| mark.generation > generation));
}
