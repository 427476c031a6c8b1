//! The documents of a converted image: its config, its manifest, and the index of several. Pure, and the same for the same input.

use std::collections::BTreeMap;

use penstock_blob::{Blob, Digest};
use penstock_fetcher::Platform;
use serde_json::{Value, json};

/// Media type of an image's manifest.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an index of manifests.
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A blob as a manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) blob: Blob,
    pub(super) media_type: String,
    pub(super) annotations: BTreeMap<String, String>,
}

/// The manifest that an image was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) media_type: String,
    pub(super) manifest: Blob,
}

/// The config for layers with these diff IDs. One without layers, an artifact's, stays as it is.
pub(super) fn config(source: &[u8], diff_ids: &[Digest]) -> Result<Vec<u8>, String> {
    let mut config: Value = serde_json::from_slice(source).map_err(|error| format!("cannot be read: {error}"))?;
    let Some(fields) = config.as_object_mut() else { return Err("is no JSON object".to_owned()) };
    if !fields.contains_key("rootfs") {
        return Ok(source.to_vec());
    }
    let ids: Vec<String> = diff_ids.iter().map(ToString::to_string).collect();
    fields.insert("rootfs".to_owned(), json!({"type": "layers", "diff_ids": ids}));
    let is_layer = |step: &&Value| step.get("empty_layer").and_then(Value::as_bool) != Some(true);
    let steps = fields.get("history").and_then(Value::as_array);
    // Each step that made a layer must have one.
    if steps.is_some_and(|steps| steps.iter().filter(is_layer).count() != ids.len()) {
        let made: Vec<Value> = ids.iter().map(|_| json!({"created_by": "penstock convert"})).collect();
        fields.insert("history".to_owned(), Value::from(made));
    }
    serde_json::to_vec(&config).map_err(|error| error.to_string())
}

fn descriptor(listed: &Listed) -> Value {
    let mut descriptor = json!({
        "mediaType": listed.media_type,
        "digest": listed.blob.digest.to_string(),
        "size": listed.blob.size_bytes,
    });
    if !listed.annotations.is_empty() {
        descriptor["annotations"] = json!(listed.annotations);
    }
    descriptor
}

/// A manifest of these layers. `referrer` makes it refer to the one that it was made from, as an artifact of that type.
pub(super) fn manifest(config: &Listed, layers: &[Listed], referrer: Option<(&str, &Origin)>) -> Vec<u8> {
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(config),
        "layers": layers.iter().map(descriptor).collect::<Vec<_>>(),
    });
    if let Some((artifact_type, Origin { media_type, manifest: blob })) = referrer {
        manifest["artifactType"] = artifact_type.into();
        manifest["subject"] =
            json!({"mediaType": media_type, "digest": blob.digest.to_string(), "size": blob.size_bytes});
    }
    manifest.to_string().into_bytes()
}

/// An index of manifests, each for its platform.
pub(super) fn index(manifests: &[(Platform, Blob)]) -> Vec<u8> {
    let entry = |(platform, blob): &(Platform, Blob)| {
        json!({
            "mediaType": MANIFEST,
            "digest": blob.digest.to_string(),
            "size": blob.size_bytes,
            "platform": platform,
        })
    };
    let entries: Vec<Value> = manifests.iter().map(entry).collect();
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string().into_bytes()
}

/// The chain ID of layers with these diff IDs, the lowest first (OCI image specification, "Layer ChainID").
pub(super) fn chain(diff_ids: &[Digest]) -> Option<Digest> {
    diff_ids.iter().copied().reduce(|chain, next| Digest::of(format!("{chain} {next}").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_gets_the_new_layers_and_keeps_the_rest() {
        let ids = [Digest::of(b"a")];
        let source = br#"{"os":"linux","config":{"Cmd":["x"]},"history":[{"created_by":"one"},{"created_by":"two"},{"empty_layer":true}],"rootfs":{"diff_ids":[]}}"#;
        let made: Value = serde_json::from_slice(&config(source, &ids).unwrap()).unwrap();
        assert_eq!(made["rootfs"]["diff_ids"], json!([ids[0].to_string()]));
        assert_eq!((&made["config"]["Cmd"], &made["os"]), (&json!(["x"]), &json!("linux")));
        assert_eq!(made["history"], json!([{"created_by": "penstock convert"}]));
        let two: Value = serde_json::from_slice(&config(source, &[ids[0], ids[0]]).unwrap()).unwrap();
        assert_eq!(two["history"].as_array().unwrap().len(), 3, "as many layers as before");
        assert_eq!(config(b"{}", &ids).unwrap(), b"{}");
        assert!(config(b"[]", &ids).is_err() && config(b"{", &ids).is_err());
    }

    #[test]
    fn a_manifest_refers_to_its_origin_when_asked() {
        let blob = Blob { digest: Digest::of(b"x"), size_bytes: 1 };
        let listed = Listed { blob, media_type: "m".to_owned(), annotations: BTreeMap::new() };
        let origin = Origin { media_type: "o".to_owned(), manifest: blob };
        let plain: Value = serde_json::from_slice(&manifest(&listed, std::slice::from_ref(&listed), None)).unwrap();
        assert!(plain.get("subject").is_none() && plain.get("artifactType").is_none());
        let bytes = manifest(&listed, std::slice::from_ref(&listed), Some(("t", &origin)));
        let refers: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((&refers["artifactType"], &refers["subject"]["mediaType"]), (&json!("t"), &json!("o")));
        assert_eq!(chain(&[blob.digest]), Some(blob.digest));
        assert_eq!(chain(&[]), None);
    }
}
