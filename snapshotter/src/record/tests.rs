//! The format, against a golden file and damage.

use penstock_blob::Digest;

use super::*;

/// Made by hand, its checksum by a program that shares no code with this crate.
const GOLDEN: &[u8] = include_bytes!("../../golden/snapshot.json");

pub(crate) fn lazy() -> Record {
    let digest = |text: &str| Digest::of(text.as_bytes());
    Record {
        number: 7,
        name: "penstock/7/sha256:chain".into(),
        kind: Kind::Committed,
        parent: Some("k8s.io/2/sha256:base".into()),
        labels: Labels::from([("containerd.io/snapshot.ref".into(), "sha256:chain".into())]),
        created: Stamp { nanos: 1_790_000_000_123_456_789 },
        updated: Stamp { nanos: 1_790_000_001_000_000_000 },
        content: Content::Lazy {
            shape: Shape::Single,
            stack: Stack {
                reference: "registry.example/image:tag".into(),
                manifest: digest("manifest"),
                layers: vec![digest("layer")],
                first: 1,
            },
            how: "EROFS, one layer".into(),
        },
        usage: Some(Usage::default()),
    }
}

#[test]
fn a_record_is_written_as_on_peoples_disks_and_read_back() {
    let written = Written::new(42, lazy());
    assert_eq!(String::from_utf8_lossy(&written.encode().expect("text")), String::from_utf8_lossy(GOLDEN));
    assert_eq!(Written::decode(GOLDEN), Ok(written));
    let active = Record {
        kind: Kind::Active,
        parent: None,
        content: Content::Directory { why: Some("an ordinary tar".into()) },
        usage: None,
        ..lazy()
    };
    let written = Written::new(1, active);
    assert_eq!(Written::decode(&written.encode().expect("text")), Ok(written));
}

#[test]
fn a_damaged_record_is_never_read_as_another_one() {
    for at in 0..GOLDEN.len() {
        assert!(Written::decode(&GOLDEN[..at]).is_err(), "cut at {at}");
        let mut changed = GOLDEN.to_vec();
        changed[at] ^= 1;
        assert!(Written::decode(&changed).is_err(), "changed at {at}");
    }
}

#[test]
fn another_version_and_unknown_fields_are_refused() {
    let with = |from: &str, to: &str| {
        let text = String::from_utf8(GOLDEN.to_vec()).expect("text").replace(from, to);
        let json = text.lines().next().expect("a line").to_owned();
        let sum = crc32c::crc32c(json.as_bytes());
        Written::decode(format!("{json}\n{sum:08x}\n").as_bytes())
    };
    assert!(with("", "").is_ok());
    assert!(matches!(with("\"version\":1", "\"version\":2"), Err(RecordError::Format(_))));
    assert!(matches!(with("\"number\":7", "\"number\":7,\"more\":1"), Err(RecordError::Format(_))));
    assert!(matches!(with("\"single\"", "\"other\""), Err(RecordError::Format(_))));
}

#[test]
fn times_are_told_as_containerd_tells_them() {
    assert_eq!(lazy().created.parts(), (1_790_000_000, 123_456_789));
    assert!(Stamp::now() > Stamp { nanos: 0 });
}
