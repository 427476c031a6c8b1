//! Doors for the fuzzer to what reads words of others.

use crate::{
    filter::Filters,
    labels::{self, IdMap},
    record::{Content, Kind, Labels, Record, Stamp, Written},
};

/// Whether a record of no great interest passes; none: they are not filters.
#[must_use]
pub fn filtered(filters: &[String]) -> Option<bool> {
    let filters = Filters::parse(filters).ok()?;
    let record = Record {
        number: 1,
        name: "k8s.io/2/sha256:name".into(),
        kind: Kind::Committed,
        parent: Some("k8s.io/1/parent".into()),
        labels: Labels::from([("a.b/c".into(), "value".into()), ("l".into(), "1".into())]),
        created: Stamp::now(),
        updated: Stamp::now(),
        content: Content::Directory { why: None },
        usage: None,
    };
    Some(filters.pass(&record))
}

/// Whether the labels name a layer, and whether they map ids.
#[must_use]
pub fn labelled(labels: std::collections::BTreeMap<String, String>) -> Option<(bool, bool)> {
    let labels = labels::kept(labels).ok()?;
    let map = IdMap::of(&labels).ok().map(|map| (map.options().len(), map.root()));
    Some((matches!(labels::layer(&labels, 0), Some(Ok(_))), map.is_some_and(|(options, _)| options > 0)))
}

/// Whether a record, written again, is the same one; none: it is not one.
#[must_use]
pub fn record(bytes: &[u8]) -> Option<bool> {
    let written = Written::decode(bytes).ok()?;
    Some(written.encode().is_ok_and(|again| Written::decode(&again) == Ok(written)))
}
