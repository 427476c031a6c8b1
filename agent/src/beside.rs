//! What this node pushes beside an image, and what it finds there: see [`penstock_index::beside`].

use penstock_blob::Digest;
use penstock_fetcher::{Attached, Content, Fetcher, Manifest, PushError, Upload};
use penstock_index::beside::{Beside, Descriptor, EMPTY_CONFIG, MANIFEST_TYPE, blob_of};

/// The blobs of a manifest that was found for the image with manifest `image`.
///
/// # Errors
/// Why it is no artifact of this type, or not of this image.
pub(crate) fn read(manifest: &[u8], artifact_type: &'static str, image: Digest) -> Result<Vec<Descriptor>, String> {
    let Beside { subject, layers } = Beside::parse(manifest, artifact_type).map_err(|error| error.to_string())?;
    if subject.digest != image {
        return Err(format!("it is of image {}, not of {image}", subject.digest));
    }
    Ok(layers)
}

/// Pushes the manifest of an artifact, after the blobs that it names; its digest. Pushed again it changes nothing.
///
/// # Errors
/// Why the registry did not take it.
pub(crate) async fn push(
    fetcher: &Fetcher,
    image: &Manifest,
    (artifact_type, manifest): (&'static str, Vec<u8>),
    blobs: impl IntoIterator<Item = Upload>,
) -> Result<Digest, PushError> {
    let pushed = Digest::of(&manifest);
    let config = Upload { blob: blob_of(EMPTY_CONFIG), content: Content::Bytes(EMPTY_CONFIG.into()) };
    let uploads: Vec<Upload> = std::iter::once(config).chain(blobs).collect();
    let attached =
        Attached { subject: image.digest, artifact_type, manifest: manifest.into(), media_type: MANIFEST_TYPE };
    Box::pin(fetcher.push_artifact(&image.reference, &uploads, attached)).await?;
    Ok(pushed)
}
