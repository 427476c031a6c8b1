//! The language, by table.

use super::*;
use crate::record::{Content, Labels, Stamp};

fn record() -> Record {
    Record {
        number: 1,
        name: "k8s.io/2/sha256:abc".into(),
        kind: crate::Kind::Committed,
        parent: Some("k8s.io/1/base".into()),
        labels: Labels::from([
            ("plain".into(), "value".into()),
            ("a.b/c".into(), "x,y \"z\"".into()),
            ("dotted.name".into(), "1".into()),
        ]),
        created: Stamp::now(),
        updated: Stamp::now(),
        content: Content::Directory { why: None },
        usage: None,
    }
}

fn passes(filters: &[&str]) -> bool {
    Filters::parse(filters).unwrap_or_else(|error| panic!("{error}")).pass(&record())
}

#[test]
fn filters_hold_as_containerds_do() {
    let table: [(&[&str], bool); 34] = [
        (&[], true),
        (&[""], true),
        (&["name"], true),
        (&["name==k8s.io/2/sha256:abc"], true),
        (&["name==k8s.io/2/sha256"], false),
        (&["name!=other"], true),
        (&["kind==committed"], true),
        (&["kind == committed"], true),
        (&["kind==active"], false),
        (&["kind==active", "kind==committed"], true),
        (&["kind==committed,parent==other"], false),
        (&["kind==committed , parent==\"k8s.io/1/base\""], true),
        (&["parent~=base$"], true),
        (&["parent~=/^k8s.io\\/1/"], true),
        (&["parent~=|^k8s\\.io|"], true),
        (&["parent~=\"^k8s\\\\.io\""], true),
        (&["parent~='1/b'"], true),
        (&["parent~=/^base/"], false),
        (&["labels.plain"], true),
        (&["labels.plain==value"], true),
        (&["labels.\"plain\"==value"], true),
        (&["labels.missing"], false),
        (&["labels.missing==\"\""], false),
        (&["labels.missing!=x"], true),
        (&["labels.missing!=\"\""], false),
        (&["labels.missing~=/.*/"], false),
        (&["labels.\"a.b/c\"==\"x,y \\\"z\\\"\""], true),
        (&["labels.dotted.name==1"], true),
        (&["labels"], false),
        (&["unknown"], false),
        (&["unknown==x"], false),
        (&["unknown!=x"], true),
        (&["name==\"k8s.io/2/sha256\\x3aabc\""], true),
        (&["name==\"k8s.io/2/sha256\\u003aabc\""], true),
    ];
    for (filters, expected) in table {
        assert_eq!(passes(filters), expected, "{filters:?}");
    }
}

#[test]
fn what_is_not_of_the_language_is_refused() {
    for wrong in [
        " ",
        "==x",
        "name=",
        "name=x",
        "name==",
        "name==,kind",
        "name==x,",
        ",name",
        "name kind",
        "name=~x",
        "1name",
        "name.",
        ".name",
        "name==\"x",
        "name==\"x\\q\"",
        "name==\"\\x80\"",
        "name==/x/ y",
        "name~=/(/",
        "name~=(",
        "labels.\"a",
        "name==\"a\nb\"",
        "name==a\"b\"",
        "name~=/x{9999}{9999}/",
    ] {
        assert!(Filters::parse(&[wrong]).is_err(), "{wrong:?}");
    }
    assert!(Filters::parse(&["x".repeat(MAX_FILTER_BYTES + 1)]).is_err());
    assert!(Filters::parse(&vec!["name"; MAX_FILTERS + 1]).is_err());
    let error = Filters::parse(&["kind==active", "kind=view"]).expect_err("the second");
    assert!(error.to_string().starts_with("filter \"kind=view\": expected =="), "{error}");
}
