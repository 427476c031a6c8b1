//! The OCI manifest that holds the recording of one image: written and read. Pure. Format: docs/formats/recording.md.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use penstock_blob::{Blob, Digest};
use penstock_image::recording::{MAX_BYTES, Recording};
use penstock_index::beside::{Beside, Descriptor, blob_of};

use crate::beside;

/// The artifact type of a recording.
pub(super) const ARTIFACT_TYPE: &str = "application/vnd.penstock.recording.v1";
/// The media type of the recording itself.
const RECORDING_TYPE: &str = "application/vnd.penstock.recording.v1";

/// The manifest of a recording whose file is `file`, beside the image `subject`. It embeds the file, so that a node needs no third request.
pub(super) fn manifest(file: &[u8], (media_type, subject): (&str, Blob)) -> Result<Vec<u8>, String> {
    let layer = Descriptor { data: Some(STANDARD.encode(file)), ..Descriptor::new(RECORDING_TYPE, blob_of(file)) };
    let artifact = Beside { subject: Descriptor::new(media_type, subject), layers: vec![layer] };
    artifact.to_manifest(ARTIFACT_TYPE).map_err(|error| error.to_string())
}

/// The recording in a manifest that was found for the image with manifest `image`.
///
/// # Errors
/// Why it is none, or not of this image.
pub(super) fn recording(manifest: &[u8], image: Digest) -> Result<Recording, String> {
    let layers = beside::read(manifest, ARTIFACT_TYPE, image)?;
    let [layer] = &layers[..] else { return Err(format!("it has {} layers, not one", layers.len())) };
    let text = layer.data.as_deref().ok_or("its recording is not embedded")?;
    let file = STANDARD.decode(text).ok().filter(|file| file.len() <= MAX_BYTES);
    let file = file.ok_or("its embedded data are not base64, or too long")?;
    if blob_of(&file) != layer.blob() {
        return Err("its embedded data are not those of its digest".to_owned());
    }
    Recording::parse(&file).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use penstock_blob::ByteRange;
    use penstock_image::recording::Recorder;
    use penstock_index::beside::{self, MANIFEST_TYPE};

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
        assert!(recording(&vec![b' '; beside::MAX_BYTES + 1], image().digest).unwrap_err().contains("larger"));
    }
}
