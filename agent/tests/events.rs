//! That the kinds of events are those that the documents list and that something records.

use std::{collections::BTreeSet, fs, path::Path};

use penstock_agent::events::{Events, Kind};
use prometheus_client::{encoding::text::encode, registry::Registry};

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The text of every source file below `dir`.
fn sources(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a source") {
        let path = entry.expect("a source").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("events/kind.rs") {
            found.push(fs::read_to_string(&path).expect("a source"));
        }
    }
    found
}

#[test]
fn the_documents_list_every_kind_in_order() {
    let page = fs::read_to_string(repository().join("docs/events.md")).unwrap();
    let (_, kinds) = page.split_once("## Kinds").unwrap();
    let listed: Vec<&str> = kinds.lines().filter(|line| line.starts_with("| `")).collect();
    let declared: Vec<String> = Kind::ALL
        .iter()
        .map(|kind| format!("| `{}` | {} | {} |", kind.name(), kind.severity().name(), kind.what()))
        .collect();
    assert_eq!(listed, declared);
}

#[test]
fn every_kind_is_recorded_somewhere() {
    let sources = sources(&repository().join("agent/src"));
    for kind in Kind::ALL {
        let name = format!("Kind::{}", kind.variant());
        let used = |text: &String| {
            text.match_indices(&name).any(|(at, _)| !text[at + name.len()..].starts_with(char::is_alphanumeric))
        };
        assert!(sources.iter().any(used), "nothing records {name}");
    }
}

#[test]
fn names_are_distinct_and_dotted_words() {
    let names: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(names.len(), Kind::ALL.len());
    for name in names {
        let (part, what) = name.split_once('.').unwrap();
        for word in [part, what] {
            assert!(!word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        }
    }
}

#[test]
fn every_kind_is_counted_from_the_start() {
    let (events, mut registry) = (Events::new(), Registry::with_prefix("penstock"));
    events.register(&mut registry);
    events.record(Kind::DeviceForced, "forced", &[]);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for kind in Kind::ALL {
        let count = u8::from(*kind == Kind::DeviceForced);
        let (name, severity) = (kind.name(), kind.severity().name());
        let line = format!("penstock_events_total{{kind=\"{name}\",severity=\"{severity}\"}} {count}\n");
        assert!(text.contains(&line), "{line}{text}");
    }
}
