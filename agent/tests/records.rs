//! What is recorded of attachments: its form, and that no file makes an agent fail.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{fs, path::PathBuf};

use penstock_agent::state::{
    StateDir, StateError,
    record::{self, LayerRecord, MAX_BYTES, MAX_LAYERS, New, Owner, Part, Record, RecordError, Seen},
};
use penstock_blob::Digest;
use penstock_device::Wanted;

const GOLDEN: &str = include_str!("golden/record-v3.json");
/// As written before the snapshotter.
const GOLDEN_V2: &str = include_str!("golden/record-v2.json");
/// As release 0.1.0 wrote it.
const GOLDEN_V1: &str = include_str!("golden/record-v1.json");

fn layer(n: u64) -> LayerRecord {
    LayerRecord {
        digest: Digest::of(&n.to_le_bytes()),
        size_bytes: n,
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        annotations: [("containerd.io/snapshot/overlaybd/blob-size".to_owned(), n.to_string())].into(),
    }
}

fn record(id: &str, layers: Vec<LayerRecord>) -> Record {
    let new = New {
        id: id.parse().unwrap(),
        reference: "registry.example.com/team/app:1.4".parse().unwrap(),
        manifest: Digest::of(b"manifest"),
        platform: "linux/amd64".parse().unwrap(),
        transport: Wanted::Auto,
        layers,
        part: None,
        owner: Owner::Operator,
        policy: penstock_api::PolicyChange::default(),
    };
    let seen = Seen {
        image: "overlaybd, 2 layers".into(),
        verified_by: "CRC of each frame".into(),
        size_bytes: 1 << 30,
        file_system: Some("ext4".into()),
    };
    with(Record::new(new, Some(PathBuf::from("/mnt/app"))), |record| record.seen = seen)
}

fn with(mut record: Record, change: impl FnOnce(&mut Record)) -> Record {
    change(&mut record);
    record
}

fn golden() -> Record {
    Record::from_text(GOLDEN.as_bytes()).unwrap()
}

#[test]
fn the_form_on_disk_is_the_documented_one() {
    let mut expected = record("app-1a2b3c", vec![layer(1), layer(2)]);
    expected.attached_at = golden().attached_at;
    expected.number = Some(3);
    expected.owner = Owner::Snapshotter;
    expected.part = Some(Part { first: 0, count: 1 });
    assert_eq!(golden(), expected);
    assert_eq!(golden().to_text().unwrap(), GOLDEN);
}

#[test]
fn records_of_earlier_releases_are_read_and_written_in_todays_form() {
    let whole = with(golden(), |record| (record.owner, record.part) = (Owner::Operator, None));
    for (text, number) in [(GOLDEN_V1, None), (GOLDEN_V2, Some(3))] {
        let old = Record::from_text(text.as_bytes()).unwrap();
        assert_eq!(old, with(whole.clone(), |record| record.number = number));
        assert_eq!((old.shown(), old.shown_layers().len()), (Part::all(2), 2));
        assert_eq!(Record::from_text(old.to_text().unwrap().as_bytes()).unwrap(), old);
        assert!(old.to_text().unwrap().contains("\"version\": 3"));
    }
}

#[test]
fn what_a_record_shows_is_among_what_it_lists() {
    assert_eq!(golden().shown_layers(), &golden().layers[..1]);
    for (first, count, shown) in [(0, 2, 2), (1, 1, 1), (0, 0, 0), (1, 2, 0), (2, 1, 0), (usize::MAX, 2, 0)] {
        let record = with(golden(), |record| record.part = Some(Part { first, count }));
        assert_eq!(record.shown_layers().len(), shown);
        match record.to_text() {
            Ok(_) => assert!(shown > 0),
            Err(error) => assert!(matches!(error, RecordError::Part { layers: 2, .. }) && shown == 0, "{error}"),
        }
    }
}

#[test]
fn records_are_read_back_in_the_order_of_attaching() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let mut saved: Vec<Record> = (0..5).map(|n| record(&format!("z{}", 9 - n), vec![layer(n)])).collect();
    for record in saved.iter().rev() {
        state.save(record).unwrap();
    }
    state.remove(&saved.remove(2).id).unwrap();
    state.remove(&"never-was".parse().unwrap()).unwrap();
    let (records, unreadable) = state.records().unwrap();
    assert_eq!(records, saved);
    assert!(unreadable.is_empty());
}

#[test]
fn a_record_that_was_not_finished_is_gone_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let unfinished = {
        let _state = StateDir::open(dir.path()).unwrap();
        let path = dir.path().join("attachments/x.json.unfinished");
        fs::write(&path, "{").unwrap();
        path
    };
    let state = StateDir::open(dir.path()).unwrap();
    assert!(!unfinished.exists());
    assert!(state.records().unwrap().1.is_empty());
}

#[test]
fn a_record_with_a_flipped_bit_is_left_alone_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    state.save(&golden()).unwrap();
    let path = dir.path().join("attachments/app-1a2b3c.json");
    let text = fs::read_to_string(&path).unwrap();
    // Another manifest and another mount point, each a record like any other.
    for (from, to) in [("sha256:05b3", "sha256:05b2"), ("/mnt/app", "/mnt/apq")] {
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let (records, unreadable) = state.records().unwrap();
        assert!(records.is_empty() && matches!(unreadable[..], [ref one] if matches!(one.error, RecordError::Check)));
    }
    fs::write(&path, text).unwrap();
    assert_eq!(state.records().unwrap().0, [golden()]);
}

#[test]
fn hostile_files_are_named_and_leave_the_others_alone() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    state.save(&golden()).unwrap();
    let put = |name: &str, text: &[u8]| fs::write(dir.path().join("attachments").join(name), text).unwrap();
    put("other-name.json", GOLDEN.as_bytes());
    put("empty.json", b"");
    put("zeros.json", &[0; 4096]);
    put("future.json", br#"{"version": 4, "anything": []}"#);
    put("huge.json", &vec![b' '; usize::try_from(MAX_BYTES).unwrap() + 1]);
    put("no-extension", GOLDEN.as_bytes());
    fs::create_dir(dir.path().join("attachments/directory.json")).unwrap();
    let (records, unreadable) = state.records().unwrap();
    assert_eq!(records, [golden()]);
    assert_eq!(unreadable.len(), 7);
    let error = |name: &str| &unreadable.iter().find(|file| file.path.ends_with(name)).unwrap().error;
    assert!(matches!(error("other-name.json"), RecordError::Misnamed(id) if id.as_str() == "app-1a2b3c"));
    assert!(matches!(error("future.json"), RecordError::Version(4)));
    let refusal = error("future.json").to_string();
    assert!(refusal.contains("version 4") && refusal.contains("versions 1 to 3"), "{refusal}");
    assert!(dir.path().join("attachments/future.json").exists(), "it is left alone");
    assert!(matches!(error("huge.json"), RecordError::TooLong));
    assert!(matches!(error("directory.json"), RecordError::Read(_)));
}

#[test]
fn every_change_of_a_record_is_read_or_refused_and_never_panics() {
    // Each byte dropped, doubled, and replaced by others; each prefix.
    let bytes = GOLDEN.as_bytes();
    for at in 0..bytes.len() {
        let _ = Record::from_text(&bytes[..at]);
        for with in [&b""[..], b"\"", b"\\", b"{", b"9", b"\xff", &[bytes[at]; 2]] {
            let changed = [&bytes[..at], with, &bytes[at + 1..]].concat();
            if let Ok(record) = Record::from_text(&changed) {
                record.to_text().unwrap();
            }
        }
    }
}

#[test]
fn values_out_of_bounds_are_refused_both_ways() {
    let refused = |from: &str, to: &str| {
        assert!(GOLDEN.contains(from), "{from}");
        Record::from_text(GOLDEN.replace(from, to).as_bytes()).unwrap_err()
    };
    assert!(matches!(refused("\"/mnt/app\"", "\"mnt/app\""), RecordError::Mount));
    for (from, to) in [
        ("\"auto\"", "\"nbd\""),
        ("\"app-1a2b3c\"", "\"../../etc/passwd\""),
        ("registry.example.com/team/app:1.4", "NOT a reference"),
        ("sha256:", "md5:"),
        ("\"version\": 3,", "\"version\": 3, \"extra\": 1,"),
        ("\"size_bytes\": 1073741824", "\"size_bytes\": -1"),
    ] {
        assert!(matches!(refused(from, to), RecordError::Malformed(_)), "{to}");
    }
    for layers in [0, MAX_LAYERS + 1] {
        let record = record("x", (0..layers as u64).map(layer).collect());
        assert!(matches!(record.to_text(), Err(RecordError::Layers(n)) if n == layers));
    }
    let mut long = record("x", vec![layer(1)]);
    long.layers[0].media_type = "x".repeat(usize::try_from(MAX_BYTES).unwrap());
    assert!(matches!(long.to_text(), Err(RecordError::TooLong)));
    assert!(record::read(&PathBuf::from("/nonexistent.json")).is_err());
}

#[test]
fn a_state_directory_has_one_owner_who_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let first = StateDir::open(&dir.path().join("state")).unwrap();
    let error = StateDir::open(&dir.path().join("state")).unwrap_err();
    assert!(matches!(error, StateError::InUse { owner: Some(pid), .. } if pid == std::process::id()));
    let text = error.to_string();
    assert!(text.contains("another agent") && text.contains("--state-dir"), "{text}");
    drop(first);
    StateDir::open(&dir.path().join("state")).unwrap();
}
