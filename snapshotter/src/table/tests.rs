//! Parents, children, pages.

use super::*;
use crate::record::tests::lazy;

fn record(number: u64, name: &str, kind: Kind, parent: Option<&str>) -> Record {
    let content = crate::record::Content::Directory { why: None };
    Record { number, name: name.into(), kind, parent: parent.map(str::to_owned), content, ..lazy() }
}

#[test]
fn a_chain_goes_from_the_parent_down_and_refuses_what_is_not_committed_or_lost() {
    let mut table = Table::default();
    table.insert(record(1, "base", Kind::Committed, None));
    table.insert(record(2, "top", Kind::Committed, Some("base")));
    table.insert(record(3, "active", Kind::Active, Some("top")));
    let names = |parent| table.chain(parent).map(|chain| chain.iter().map(|r| r.name.clone()).collect::<Vec<_>>());
    assert_eq!(names(Some("top")).expect("a chain"), ["top", "base"]);
    assert!(names(None).expect("a chain").is_empty());
    assert!(matches!(names(Some("missing")), Err(SnapshotError::NotFound { .. })));
    assert!(matches!(names(Some("active")), Err(SnapshotError::Invalid { .. })));
    table.remove("base");
    assert!(matches!(table.chain(Some("top")), Err(SnapshotError::Precondition { .. })), "not its own fault");
    table.insert(record(1, "base", Kind::Committed, Some("top")));
    assert!(matches!(table.chain(Some("top")), Err(SnapshotError::Precondition { .. })), "damage ends");
}

#[test]
fn children_are_counted_through_every_change() {
    let mut table = Table::default();
    table.insert(record(1, "base", Kind::Committed, None));
    table.insert(record(2, "a", Kind::Active, Some("base")));
    table.insert(record(3, "b", Kind::Active, Some("base")));
    assert_eq!(table.children("base"), 2);
    table.insert(record(2, "a", Kind::Active, Some("base")));
    assert_eq!(table.children("base"), 2, "the same one again");
    table.remove("a");
    table.remove("a");
    assert_eq!(table.children("base"), 1);
    table.remove("b");
    assert_eq!(table.children("base"), 0);
}

#[test]
fn a_lazy_layer_is_found_by_chain_and_parent_while_it_is_there() {
    let mut table = Table::default();
    let layer = lazy();
    let (chain, parent) = (layer.labels[TARGET].clone(), layer.parent.clone());
    table.insert(layer.clone());
    assert_eq!(table.find_lazy(&chain, parent.as_deref()), Some(layer.name.as_str()));
    assert_eq!(table.find_lazy(&chain, None), None);
    table.remove(&layer.name);
    assert_eq!(table.find_lazy(&chain, parent.as_deref()), None);
}

#[test]
fn thousands_come_in_pages_and_whole() {
    let mut table = Table::default();
    for number in 0..5000 {
        table.insert(record(number, &format!("{number:05}"), Kind::Committed, None));
    }
    let filters = Filters::parse(&["name~=/[05]$/"]).expect("a filter");
    let (mut after, mut names, mut pages) = (None, Vec::new(), 0);
    loop {
        let (page, next) = table.page(after.as_deref(), &filters, 100);
        names.extend(page.iter().map(|record| record.name.clone()));
        pages += 1;
        match next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(names, (0..1000).map(|i| format!("{:05}", i * 5)).collect::<Vec<_>>());
    assert_eq!(pages, 11, "ten full ones, and one that finds nothing more");
}

#[test]
fn a_directory_is_an_orphan_when_nobody_speaks_of_it_or_works_on_it() {
    let mut table = Table::default();
    table.insert(record(1, "a", Kind::Active, None));
    table.begin(2);
    assert!(!table.is_orphan(1) && !table.is_orphan(2) && table.is_orphan(3));
    table.end(2);
    table.remove("a");
    assert!(table.is_orphan(1) && table.is_orphan(2));
}
