//! Pushing layer indexes beside their image.

use std::path::PathBuf;

use penstock_blob::{Blob, Digest};
use penstock_fetcher::{Content, Fetcher, Manifest, PushError, Upload};

use super::artifact::{self, ARTIFACT_TYPE, Listed};
use crate::beside;

/// Pushes these indexes, each with its file, as one artifact beside the image; the digest of its manifest. Pushed again it changes nothing.
pub(crate) async fn push(
    fetcher: &Fetcher,
    image: &Manifest,
    indexes: Vec<(Listed, PathBuf)>,
) -> Result<Digest, PushError> {
    let subject = (image.media_type.as_str(), Blob { digest: image.digest, size_bytes: image.size_bytes });
    let listed: Vec<Listed> = indexes.iter().map(|(listed, _)| *listed).collect();
    let bytes = artifact::manifest(&listed, subject).map_err(|reason| PushError::Client { reason })?;
    let files = indexes.into_iter().map(|(listed, path)| Upload { blob: listed.index, content: Content::File(path) });
    beside::push(fetcher, image, (ARTIFACT_TYPE, bytes), files).await
}
