//! Manifests and indexes, by table.

use serde_json::{Value, json};

use super::*;

fn descriptor(media_type: &str, name: &str) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(name.as_bytes()).to_string(), "size": name.len() })
}

fn image() -> Value {
    json!({
        "schemaVersion": 2, "mediaType": OCI_IMAGE,
        "config": descriptor("application/vnd.oci.image.config.v1+json", "config"),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "layer")],
        "annotations": {"a": "b"},
    })
}

fn entry(name: &str, platform: Value) -> Value {
    let mut entry = descriptor(OCI_IMAGE, name);
    entry["platform"] = platform;
    entry
}

fn parse(value: &Value, content_type: Option<&str>) -> Result<Document, ManifestError> {
    Document::parse(value.to_string().as_bytes(), content_type)
}

#[test]
fn an_image_manifest_of_either_kind_is_read() {
    for media_type in [OCI_IMAGE, DOCKER_IMAGE] {
        let mut value = image();
        value["mediaType"] = media_type.into();
        let Document::Image(image) = parse(&value, Some("application/json")).unwrap() else { panic!("an index") };
        assert_eq!(image.media_type, media_type);
        assert_eq!(image.layers[0].blob(), Blob { digest: Digest::of(b"layer"), size_bytes: 5 });
        assert_eq!(image.annotations["a"], "b");
    }
}

#[test]
fn the_header_speaks_when_the_document_does_not() {
    let mut value = image();
    value.as_object_mut().unwrap().remove("mediaType");
    let with = parse(&value, Some(&format!("{DOCKER_IMAGE}; charset=utf-8"))).unwrap();
    assert!(matches!(with, Document::Image(image) if image.media_type == DOCKER_IMAGE));
    let without = parse(&value, Some("text/plain")).unwrap();
    assert!(matches!(without, Document::Image(image) if image.media_type == OCI_IMAGE));
    assert!(matches!(parse(&value, Some(OCI_INDEX)), Err(ManifestError::Ambiguous { .. })));
}

#[test]
fn what_is_two_things_or_none_is_refused() {
    let mut both = image();
    both["manifests"] = json!([]);
    let mut lies = image();
    lies["mediaType"] = OCI_INDEX.into();
    for value in [both, lies, json!({"schemaVersion": 2}), json!({"schemaVersion": 2, "mediaType": OCI_IMAGE})] {
        assert!(matches!(parse(&value, None), Err(ManifestError::Ambiguous { .. })), "{value}");
    }
}

#[test]
fn retired_and_foreign_kinds_are_named() {
    let schema1 = json!({"schemaVersion": 1, "fsLayers": []});
    assert!(matches!(parse(&schema1, None), Err(ManifestError::Unsupported { .. })));
    let mut foreign = image();
    foreign["mediaType"] = "application/vnd.cncf.helm".into();
    assert_eq!(
        parse(&foreign, None),
        Err(ManifestError::Unsupported { media_type: "application/vnd.cncf.helm".to_owned() })
    );
}

#[test]
fn hostile_documents_give_typed_errors() {
    let with = |pointer: &str, value: Value| {
        let mut document = image();
        *document.pointer_mut(pointer).unwrap() = value;
        parse(&document, None)
    };
    for (pointer, value) in [
        ("/layers/0/size", json!(-1)),
        ("/layers/0/size", json!(1.5)),
        ("/layers/0/size", json!("1")),
        ("/layers/0/digest", json!("sha256:00")),
        ("/layers/0/digest", json!("md5:00")),
        ("/layers/0/digest", json!(Digest::derived("x", &[]))),
        ("/layers/0", json!({})),
        ("/config", Value::Null),
        ("/annotations", json!({"a": 1})),
        ("/layers", json!("x")),
    ] {
        let answer = with(pointer, value.clone());
        assert!(matches!(answer, Err(ManifestError::Malformed { .. })), "{pointer} = {value}: {answer:?}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for bytes in [&b""[..], b"null", b"[]", b"{", b"\xff\xfe", deep.as_bytes()] {
        assert!(matches!(Document::parse(bytes, None), Err(ManifestError::Malformed { .. })));
    }
    let layers = vec![descriptor("x", "layer"); MAX_LAYERS + 1];
    assert!(matches!(with("/layers", layers.into()), Err(ManifestError::TooMany { what: "layers", .. })));
    let entries = vec![descriptor(OCI_IMAGE, "x"); MAX_ENTRIES + 1];
    let index = json!({"schemaVersion": 2, "manifests": entries});
    assert!(matches!(parse(&index, None), Err(ManifestError::TooMany { what: "entries", .. })));
    assert_eq!(Document::parse(&vec![b' '; MAX_MANIFEST_BYTES + 1], None), Err(ManifestError::TooLarge));
}

#[test]
fn the_best_entry_is_chosen_and_attestations_never_are() {
    let mut attestation = entry("attestation", json!({"os": "unknown", "architecture": "unknown"}));
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let mut disguised = entry("disguised", json!({"os": "linux", "architecture": "amd64"}));
    disguised["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let index = json!({"schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": [
        attestation, disguised,
        entry("v6", json!({"os": "linux", "architecture": "arm", "variant": "v6"})),
        entry("amd64", json!({"os": "linux", "architecture": "amd64", "os.features": ["x"]})),
        entry("second", json!({"os": "linux", "architecture": "amd64"})),
        descriptor(OCI_IMAGE, "unsaid"),
        descriptor("application/vnd.example+json", "artifact"),
    ]});
    let Document::Index(entries) = parse(&index, None).unwrap() else { panic!("an image") };
    let chosen = |wanted: &str| choose(&entries, &wanted.parse().unwrap()).map(|entry| entry.digest);
    assert_eq!(chosen("linux/amd64"), Some(Digest::of(b"amd64")));
    assert_eq!(chosen("linux/arm/v7"), Some(Digest::of(b"v6")));
    assert_eq!(chosen("linux/s390x"), Some(Digest::of(b"unsaid")));
    assert_eq!(choose(&entries[..2], &"linux/amd64".parse().unwrap()), None);
    assert_eq!(offered(&entries), "linux/arm/v6, linux/amd64, linux/amd64");
    assert_eq!(offered(&entries[..1]), "nothing");
}
