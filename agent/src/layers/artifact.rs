//! The OCI manifest that holds the layer indexes of one image: written and read. Pure. Format: docs/formats/layer-index.md, section 7.

use std::collections::BTreeMap;

use penstock_blob::{Blob, Digest};
use penstock_index::beside::{Beside, Descriptor};

use crate::beside;

/// The artifact type of an image's layer indexes.
pub(crate) const ARTIFACT_TYPE: &str = "application/vnd.penstock.layers.v1";
/// The media type of a layer index.
const INDEX_TYPE: &str = "application/vnd.penstock.layer-index.v1";
/// Annotations of an index's descriptor: the layer that it is of, and the layer's archive.
const LAYER: &str = "io.penstock.layer.digest";
const LAYER_SIZE: &str = "io.penstock.layer.size";
const DIFF_ID: &str = "io.penstock.layer.diff-id";
/// Most indexes in one: as many as an image may have layers elsewhere in Penstock.
const MAX_INDEXES: usize = 1000;

/// One layer, and its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listed {
    /// The layer in the registry.
    pub(crate) layer: Blob,
    /// The digest of its archive.
    pub(crate) diff_id: Digest,
    /// The index.
    pub(crate) index: Blob,
}

/// The manifest of these indexes, beside the image `subject` of this media type: the same bytes for the same indexes.
pub(crate) fn manifest(listed: &[Listed], subject: (&str, Blob)) -> Result<Vec<u8>, String> {
    let index = |listed: &Listed| Descriptor {
        annotations: BTreeMap::from([
            (LAYER.to_owned(), listed.layer.digest.to_string()),
            (LAYER_SIZE.to_owned(), listed.layer.size_bytes.to_string()),
            (DIFF_ID.to_owned(), listed.diff_id.to_string()),
        ]),
        ..Descriptor::new(INDEX_TYPE, listed.index)
    };
    let (image, layers) = (Descriptor::new(subject.0, subject.1), listed.iter().map(index).collect());
    let bytes = Beside { subject: image, layers }.to_manifest(ARTIFACT_TYPE).map_err(|error| error.to_string())?;
    self::listed(&bytes, subject.1.digest)?;
    Ok(bytes)
}

/// The indexes in a manifest that was found for the image with manifest `image`.
///
/// # Errors
/// Why it holds none, or not those of this image.
pub(crate) fn listed(manifest: &[u8], image: Digest) -> Result<Vec<Listed>, String> {
    let layers = beside::read(manifest, ARTIFACT_TYPE, image)?;
    if layers.len() > MAX_INDEXES {
        return Err(format!("it has {} indexes; at most {MAX_INDEXES} are read", layers.len()));
    }
    layers.iter().filter(|layer| layer.media_type == INDEX_TYPE).map(one).collect()
}

fn one(layer: &Descriptor) -> Result<Listed, String> {
    let missing = |key: &str| format!("an index has no usable annotation {key}");
    let text = |key: &'static str| layer.annotations.get(key).ok_or_else(|| missing(key));
    let digest = |key: &'static str| text(key)?.parse::<Digest>().map_err(|_| missing(key));
    let size = text(LAYER_SIZE)?;
    let digits = size.bytes().all(|byte| byte.is_ascii_digit());
    let size_bytes = size.parse().ok().filter(|_| digits).ok_or_else(|| missing(LAYER_SIZE))?;
    Ok(Listed { layer: Blob { digest: digest(LAYER)?, size_bytes }, diff_id: digest(DIFF_ID)?, index: layer.blob() })
}

#[cfg(test)]
mod tests {
    use penstock_index::beside::{MANIFEST_TYPE, MAX_BYTES};

    use super::*;

    fn blob(text: &str) -> Blob {
        Blob { digest: Digest::of(text.as_bytes()), size_bytes: text.len() as u64 }
    }

    fn two() -> [Listed; 2] {
        ["one", "two"].map(|name| Listed {
            layer: blob(name),
            diff_id: Digest::of(format!("archive {name}").as_bytes()),
            index: blob(&format!("index {name}")),
        })
    }

    #[test]
    fn what_is_written_is_read_and_the_bytes_are_those_of_the_golden_file() {
        let bytes = manifest(&two(), (MANIFEST_TYPE, blob("image"))).unwrap();
        assert_eq!(listed(&bytes, blob("image").digest).unwrap(), two());
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/layers-v1.json");
        assert_eq!(String::from_utf8(bytes).unwrap(), std::fs::read_to_string(golden).unwrap().trim_end());
    }

    #[test]
    fn what_holds_no_indexes_of_the_image_is_refused() {
        let sound = manifest(&two(), (MANIFEST_TYPE, blob("image"))).unwrap();
        let changed = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value: serde_json::Value = serde_json::from_slice(&sound).unwrap();
            change(&mut value);
            listed(&serde_json::to_vec(&value).unwrap(), blob("image").digest).unwrap_err()
        };
        let reason = changed(&|v| v["artifactType"] = "application/x".into());
        assert!(reason.contains("application/x"), "{reason}");
        let reason = changed(&|v| v["subject"]["digest"] = Digest::of(b"other").to_string().into());
        assert!(reason.contains("it is of image"), "{reason}");
        for key in [LAYER, LAYER_SIZE, DIFF_ID] {
            for value in [serde_json::json!("x"), serde_json::json!("-1")] {
                let reason = changed(&|v| v["layers"][1]["annotations"][key] = value.clone());
                assert!(reason.contains(key), "{reason}");
            }
        }
        let many = vec![serde_json::json!({}); MAX_INDEXES + 1];
        assert!(!changed(&|v| v["layers"] = many.clone().into()).is_empty());
        assert!(listed(b"[]", blob("image").digest).is_err());
        assert!(listed(&vec![b' '; MAX_BYTES + 1], blob("image").digest).unwrap_err().contains("larger"));
    }
}
