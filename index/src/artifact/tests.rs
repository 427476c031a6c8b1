//! An index is read as it was written; one of another image, or one that lies about its lists, is refused.

use super::*;
use crate::{
    beside::{MANIFEST_TYPE, MAX_BYTES},
    testing::grid,
};

fn blob(name: &str, size_bytes: u64) -> Blob {
    Blob { digest: Digest::of(name.as_bytes()), size_bytes }
}

fn listed(name: &str, size_bytes: u64) -> Listed {
    let blob = blob(name, size_bytes);
    let list_bytes = Listed::list_bytes(blob, grid()).unwrap();
    let root = format!("blake3:{}", Digest::of(name.as_bytes()).to_hex()).parse().unwrap();
    Listed { blob, grid: grid(), list: self::blob(&format!("list of {name}"), list_bytes), root }
}

fn artifact() -> Artifact {
    let subject = Subject { media_type: MANIFEST_TYPE.to_owned(), manifest: blob("manifest", 1234) };
    Artifact { subject, lists: vec![listed("bottom", 5), listed("top", 100 << 20)] }
}

fn blobs() -> Vec<Blob> {
    vec![blob("bottom", 5), blob("top", 100 << 20), blob("bottom", 5), blob("empty", 0)]
}

#[test]
fn an_index_is_read_as_it_was_written() {
    let artifact = artifact();
    let bytes = artifact.to_manifest().unwrap();
    assert_eq!(bytes, artifact.to_manifest().unwrap(), "the same index has the same bytes");
    let read = Artifact::parse(&bytes).unwrap();
    assert_eq!(read, artifact);
    assert_eq!(read.lists_of(blob("manifest", 0).digest, &blobs()).unwrap(), artifact.lists);
}

#[test]
fn the_golden_manifest_is_the_one_written_today() {
    let golden = include_str!("../../golden/manifest-v1.json");
    assert_eq!(String::from_utf8(artifact().to_manifest().unwrap()).unwrap(), golden.trim_end());
}

#[test]
fn indexes_that_do_not_fit_their_image_are_refused() {
    type Change = fn(&mut Artifact);
    let table: [(Change, &str); 9] = [
        (|a| a.subject.manifest.digest = Digest::of(b"another"), "is the index of"),
        (|a| a.lists[0].blob.size_bytes = 6, "which the image does not have"),
        (|a| a.lists[0].blob.digest = Digest::of(b"foreign"), "which the image does not have"),
        (|a| a.lists.push(a.lists[0]), "twice"),
        (|a| a.lists[1] = a.lists[0], "twice"),
        (|a| a.lists.truncate(1), "does not list"),
        (|a| a.lists.clear(), "does not list"),
        (|a| a.lists[1].list.size_bytes -= 4096, "bytes; for that blob"),
        (|a| a.lists[1].list.size_bytes = u64::MAX, "bytes; for that blob"),
    ];
    for (nth, (change, says)) in table.into_iter().enumerate() {
        let mut artifact = artifact();
        change(&mut artifact);
        let read = Artifact::parse(&artifact.to_manifest().unwrap()).unwrap();
        let refused = read.lists_of(blob("manifest", 0).digest, &blobs()).unwrap_err().to_string();
        assert!(refused.contains(says), "{nth}: {refused}");
    }
    let huge = blob("huge", u64::MAX);
    let mut artifact = artifact();
    artifact.lists = vec![Listed { blob: huge, ..artifact.lists[0] }];
    let refused = artifact.lists_of(blob("manifest", 0).digest, &[huge]).unwrap_err();
    assert!(matches!(refused, ArtifactError::ListSize { expected: None, .. }), "{refused}");
}

#[test]
fn bytes_that_are_no_index_are_refused() {
    let good = String::from_utf8(artifact().to_manifest().unwrap()).unwrap();
    for (from, to, says) in [
        (ARTIFACT_TYPE, "application/other", "artifact of type"),
        ("\"subject\"", "\"object\"", "missing field"),
        ("\"size\":1234", "\"size\":-1", "cannot be read"),
        ("\"size\":1234", "\"size\":1e99", "cannot be read"),
        ("blake3:", "blake2:", "annotation \"io.penstock.index.root\""),
        ("\"65536\"", "\"65537\"", "annotation \"io.penstock.index.chunk.size\""),
        ("\"65536\"", "\"+65536\"", "annotation \"io.penstock.index.chunk.size\""),
        (
            "\"io.penstock.index.blob.size\":\"5\"",
            "\"io.penstock.index.blob.size\":\"99999999999999999999\"",
            "blob.size",
        ),
        ("io.penstock.index.blob.digest", "io.penstock.index.blob", "blob.digest"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good, "{from}");
        let refused = Artifact::parse(bad.as_bytes()).unwrap_err().to_string();
        assert!(refused.contains(says), "{from} -> {to}: {refused}");
    }
    for cut in 0..good.len() {
        assert!(Artifact::parse(&good.as_bytes()[..cut]).is_err(), "cut at {cut}");
    }
    assert_eq!(Artifact::parse(&vec![b' '; MAX_BYTES + 1]), Err(BesideError::TooLarge.into()));
    let many = Artifact { lists: vec![artifact().lists[0]; MAX_LISTS + 1], ..artifact() };
    assert_eq!(many.to_manifest(), Err(ArtifactError::TooMany(MAX_LISTS + 1)));
}
