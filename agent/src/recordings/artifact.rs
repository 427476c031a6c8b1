//! The OCI manifest that holds the recording of one image: written and read. Pure. Format: docs/formats/recording.md.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use penstock_blob::{Blob, Digest};
use penstock_image::recording::{MAX_BYTES, Recording};
use serde::{Deserialize, Serialize};

/// The artifact type of a recording.
pub(super) const ARTIFACT_TYPE: &str = "application/vnd.penstock.recording.v1";
/// The media type of its manifest: an OCI image manifest.
pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The content of its config: the empty descriptor of the OCI image specification.
pub(super) const EMPTY_CONFIG: &[u8] = b"{}";
/// The media type of the recording itself.
const RECORDING_TYPE: &str = "application/vnd.penstock.recording.v1";
/// The media type of the empty descriptor.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// Largest manifest read, in bytes: what registries must take at least.
const MOST_BYTES: usize = 4 << 20;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: Digest,
    size: u64,
    /// The bytes themselves in base64 (image specification 1.1, "Embedded Content").
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    config: RawDescriptor,
    layers: Vec<RawDescriptor>,
    subject: RawDescriptor,
}

fn plain(media_type: &str, blob: Blob) -> RawDescriptor {
    RawDescriptor { media_type: media_type.to_owned(), digest: blob.digest, size: blob.size_bytes, data: None }
}

/// The blob that `bytes` are.
pub(super) fn blob_of(bytes: &[u8]) -> Blob {
    Blob { digest: Digest::of(bytes), size_bytes: bytes.len() as u64 }
}

/// The manifest of a recording whose file is `file`, beside the image `subject`. It embeds the file, so that a node needs no third request.
pub(super) fn manifest(file: &[u8], (media_type, subject): (&str, Blob)) -> Result<Vec<u8>, String> {
    let raw = RawManifest {
        schema_version: 2,
        media_type: MANIFEST_TYPE.to_owned(),
        artifact_type: ARTIFACT_TYPE.to_owned(),
        config: plain(EMPTY_TYPE, blob_of(EMPTY_CONFIG)),
        layers: vec![RawDescriptor { data: Some(STANDARD.encode(file)), ..plain(RECORDING_TYPE, blob_of(file)) }],
        subject: plain(media_type, subject),
    };
    serde_json::to_vec(&raw).map_err(|error| error.to_string())
}

/// The recording in a manifest that was found for the image with manifest `image`.
///
/// # Errors
/// Why it is none, or not of this image.
pub(super) fn recording(manifest: &[u8], image: Digest) -> Result<Recording, String> {
    if manifest.len() > MOST_BYTES {
        return Err(format!("it is larger than {MOST_BYTES} bytes"));
    }
    let short = |text: String| text.chars().take(128).collect::<String>();
    let raw: RawManifest = serde_json::from_slice(manifest).map_err(|error| short(error.to_string()))?;
    if raw.artifact_type != ARTIFACT_TYPE {
        return Err(format!("it is an artifact of type {:?}", short(raw.artifact_type)));
    }
    if raw.subject.digest != image {
        return Err(format!("it is of image {}, not of {image}", raw.subject.digest));
    }
    let [layer] = &raw.layers[..] else { return Err(format!("it has {} layers, not one", raw.layers.len())) };
    let text = layer.data.as_deref().ok_or("its recording is not embedded")?;
    let file = STANDARD.decode(text).ok().filter(|file| file.len() <= MAX_BYTES);
    let file = file.ok_or("its embedded data are not base64, or too long")?;
    if blob_of(&file) != (Blob { digest: layer.digest, size_bytes: layer.size }) {
        return Err("its embedded data are not those of its digest".to_owned());
    }
    Recording::parse(&file).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use penstock_blob::ByteRange;
    use penstock_image::recording::Recorder;

    use super::*;

    fn image() -> Blob {
        Blob { digest: Digest::of(b"image"), size_bytes: 5 }
    }

    fn of(manifest: Digest) -> Recording {
        let mut recorder = Recorder::new(manifest);
        recorder.need(&Blob { digest: Digest::of(b"blob"), size_bytes: 9000 }, ByteRange::at(0, 5000).unwrap());
        recorder.into_recording()
    }

    #[test]
    fn what_is_written_is_read() {
        let recording = of(image().digest);
        let bytes = manifest(&recording.encode(), (MANIFEST_TYPE, image())).unwrap();
        assert_eq!(super::recording(&bytes, image().digest), Ok(recording));
    }

    #[test]
    fn what_is_no_recording_of_the_image_is_refused() {
        let file = of(image().digest).encode();
        let sound = manifest(&file, (MANIFEST_TYPE, image())).unwrap();
        let changed = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value: serde_json::Value = serde_json::from_slice(&sound).unwrap();
            change(&mut value);
            recording(&serde_json::to_vec(&value).unwrap(), image().digest).unwrap_err()
        };
        let reason = changed(&|v| v["artifactType"] = "application/x".into());
        assert!(reason.contains("application/x"), "{reason}");
        let reason = changed(&|v| v["subject"]["digest"] = Digest::of(b"other").to_string().into());
        assert!(reason.contains("it is of image"), "{reason}");
        let reason = changed(&|v| v["layers"] = serde_json::json!([]));
        assert!(reason.contains("0 layers"), "{reason}");
        let reason = changed(&|v| v["layers"][0]["data"] = serde_json::Value::Null);
        assert!(reason.contains("not embedded"), "{reason}");
        let reason = changed(&|v| v["layers"][0]["data"] = "?".into());
        assert!(reason.contains("base64"), "{reason}");
        let reason = changed(&|v| v["layers"][0]["digest"] = Digest::of(b"other").to_string().into());
        assert!(reason.contains("digest"), "{reason}");
        assert!(recording(b"[]", image().digest).is_err());
        assert!(recording(&vec![b' '; MOST_BYTES + 1], image().digest).unwrap_err().contains("larger"));
    }
}
