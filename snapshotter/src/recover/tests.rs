//! What a start concludes from what it finds, by table.

use super::*;
use crate::record::{Content, tests::lazy};

fn record(number: u64, name: &str) -> Record {
    let content = Content::Directory { why: None };
    Record { number, name: name.into(), kind: Kind::Active, parent: None, content, ..lazy() }
}

fn stored(generation: Option<u64>, records: &[(u64, Record)]) -> Loaded {
    let encoded =
        |(at, record): &(u64, Record)| (record.number, Written::new(*at, record.clone()).encode().expect("text"));
    let mark = generation.map(|generation| Mark { generation, records: records.len() as u64 });
    Loaded { mark, records: records.iter().map(encoded).collect() }
}

fn beside(records: &[(u64, Record)]) -> Vec<Found> {
    let found = |(at, record): &(u64, Record)| Found {
        number: record.number,
        record: Some(Ok(Written::new(*at, record.clone()))),
        has_files: true,
    };
    records.iter().map(found).collect()
}

fn names(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.name.as_str()).collect()
}

#[test]
fn what_agrees_is_taken_as_it_is() {
    let all = [(1, record(1, "a")), (2, record(2, "b"))];
    let recovered = recover(stored(Some(2), &all), beside(&all));
    assert_eq!(names(&recovered.records), ["a", "b"]);
    assert!(recovered.rewrite.is_empty() && recovered.forget.is_empty() && recovered.unanswered.is_empty());
    assert_eq!(recovered.report, Repair { snapshots: 2, ..Repair::default() });
}

#[test]
fn what_was_being_written_is_taken_and_may_be_asked_for_again() {
    // 2 was prepared, 1 was committed under another name, when the power went.
    let mut committed = record(1, "committed");
    committed.kind = Kind::Committed;
    let found = beside(&[(6, committed), (6, record(2, "new"))]);
    let recovered = recover(stored(Some(5), &[(3, record(1, "active"))]), found);
    assert_eq!(names(&recovered.records), ["committed", "new"]);
    assert_eq!(names(&recovered.rewrite), ["committed", "new"]);
    assert_eq!(recovered.unanswered, ["new"]);
    assert_eq!(recovered.report.rebuilt, None);
}

#[test]
fn a_record_that_the_metadata_lost_alone_is_not_taken_for_removed() {
    let all = [(4, record(1, "a")), (5, record(2, "b"))];
    let mut loaded = stored(Some(5), &all);
    loaded.records.remove(0);
    let recovered = recover(loaded, beside(&all));
    assert_eq!(names(&recovered.records), ["a", "b"]);
    assert_eq!(names(&recovered.rewrite), ["a", "b"]);
    assert_eq!(recovered.report.rebuilt.as_deref(), Some("it held 1 records instead of 2"));
}

#[test]
fn what_was_removed_stays_removed() {
    let recovered =
        recover(stored(Some(5), &[(5, record(2, "b"))]), beside(&[(4, record(1, "a")), (5, record(2, "b"))]));
    assert_eq!(names(&recovered.records), ["b"]);
    assert_eq!(recovered.report.rebuilt, None);
}

#[test]
fn metadata_that_lost_commits_or_everything_is_rebuilt() {
    let all = [(4, record(1, "a")), (9, record(2, "b"))];
    let older = recover(stored(Some(4), &all[..1]), beside(&all));
    assert!(older.report.rebuilt.expect("a reason").contains("5 commits older"));
    for loaded in [stored(None, &[]), stored(Some(4), &all[..1]), stored(None, &all[..1])] {
        let recovered = recover(loaded, beside(&all));
        assert_eq!(names(&recovered.records), ["a", "b"]);
        assert_eq!(names(&recovered.rewrite), ["a", "b"]);
        assert!(recovered.unanswered.is_empty());
        assert!(recovered.report.rebuilt.is_some());
    }
    let mut damaged = stored(Some(9), &all);
    damaged.records[0].1[3] ^= 1;
    let recovered = recover(damaged, beside(&all));
    assert!(recovered.report.rebuilt.expect("a reason").contains("1 of its records"));
    assert_eq!(names(&recovered.records), ["a", "b"]);
}

#[test]
fn a_new_root_is_not_a_lost_one() {
    let recovered = recover(stored(None, &[]), Vec::new());
    assert_eq!(recovered.report, Repair::default());
}

#[test]
fn a_record_that_is_missing_or_damaged_beside_its_snapshot_is_written_again() {
    let all = [(1, record(1, "a")), (2, record(2, "b"))];
    let mut found = beside(&all);
    found[0].record = None;
    found[1].record = Some(Err(crate::record::RecordError::Checksum));
    let recovered = recover(stored(Some(2), &all), found);
    assert_eq!(names(&recovered.records), ["a", "b"]);
    assert_eq!(names(&recovered.rewrite), ["a", "b"]);
    assert!(recovered.report.lost.is_empty() && recovered.report.rebuilt.is_none());
}

#[test]
fn of_two_with_one_name_the_later_is_kept() {
    let recovered = recover(stored(None, &[]), beside(&[(3, record(1, "a")), (7, record(4, "a"))]));
    assert_eq!(recovered.records.iter().map(|record| record.number).collect::<Vec<_>>(), [4]);
    assert_eq!(recovered.forget, [1]);
}

#[test]
fn what_is_lost_is_told_by_name_where_that_is_known() {
    let mut child = record(3, "k8s.io/12/sha256:child");
    child.parent = Some("gone".into());
    let all = [(1, record(1, "a")), (1, child)];
    let mut found = beside(&all);
    found.remove(0);
    let nameless = |number| Found { number, record: Some(Err(crate::record::RecordError::Short)), has_files: true };
    found.push(nameless(9));
    let sound = recover(stored(Some(1), &all), found);
    assert_eq!(sound.report.lost.len(), 2, "9 was removed: {:?}", sound.report.lost);
    assert_eq!(sound.report.lost[0].why, "its directory is gone");
    assert!(sound.report.lost[0].advice.contains("pull them again"));
    assert!(sound.report.lost[1].why.contains("its parent \"gone\" is gone"));
    assert!(sound.report.lost[1].advice.contains("ctr -n k8s.io snapshots --snapshotter penstock rm 'sha256:child'"));
    let mut found = beside(&all);
    found.push(nameless(9));
    let lost = recover(stored(None, &[]), found);
    assert_eq!(lost.report.lost[0].number, 9);
    assert_eq!(lost.report.lost[0].name, None);
}
