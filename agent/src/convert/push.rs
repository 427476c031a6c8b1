//! A converted image goes to its registry: what that has, in whatever repository, is not sent.

use penstock_blob::{Blob, Digest};
use penstock_fetcher::{Attached, Content, Platform, Upload};

use super::{
    ConvertError, Converted, Work, document, files,
    make::{Made, Place},
};
use crate::output;

impl Work<'_> {
    /// Pushes the images, and the index of several; the digest of what the destination names then.
    pub(super) async fn push(&self, images: &[Converted]) -> Result<Digest, ConvertError> {
        let entries: Vec<(Platform, Blob)> =
            images.iter().map(|image| (image.platform.clone(), image.blob())).collect();
        let index = (images.len() > 1).then(|| document::index(&entries));
        let digest =
            index.as_deref().map_or_else(|| entries.first().map(|entry| entry.1.digest), |i| Some(Digest::of(i)));
        let digest = digest.ok_or(ConvertError::NoLayers)?;
        if self.args.dry_run {
            return Ok(digest);
        }
        for image in images {
            let what = format!("pushing the image for {} to {}", image.platform, self.to);
            output::with_progress(&what, Box::pin(self.push_one(image, index.is_none()))).await?;
        }
        if let Some(index) = index {
            self.fetcher.push(self.to, &[], index.into(), document::INDEX).await?;
        }
        Ok(digest)
    }

    /// Pushes an image, `tagged` under the destination's tag.
    async fn push_one(&self, image: &Converted, tagged: bool) -> Result<(), ConvertError> {
        let (config, bytes) = &image.config;
        let mut uploads = vec![Upload { blob: config.blob, content: Content::Bytes(bytes.clone().into()) }];
        for made in &image.layers {
            uploads.extend(self.to_send(image, made).await?);
        }
        if self.args.referrer {
            let artifact = Attached {
                subject: image.origin.manifest.digest,
                artifact_type: self.artifact_type(),
                manifest: image.manifest.clone().into(),
                media_type: document::MANIFEST,
            };
            self.fetcher.push_artifact(self.to, &uploads, artifact).await?;
        }
        let to = if tagged { self.to.clone() } else { self.to.with_digest(image.blob().digest) };
        self.fetcher.push(&to, &uploads, image.manifest.clone().into(), document::MANIFEST).await?;
        Ok(())
    }

    /// What has to be sent of a layer: nothing when the registry takes it over from another repository, where it lies already.
    async fn to_send(&self, image: &Converted, made: &Made) -> Result<Option<Upload>, ConvertError> {
        let blob = made.listed.blob;
        let path = match &made.place {
            Place::File(path) => {
                // A disk that is written as it is may be a layer of the source.
                if image.source.layers.iter().any(|layer| layer.blob() == blob)
                    && self.fetcher.mount(self.to, &image.source.reference, blob).await?
                {
                    return Ok(None);
                }
                path.clone()
            }
            Place::Repository(from) => {
                if self.fetcher.mount(self.to, from, blob).await? {
                    return Ok(None);
                }
                self.fetcher.serve(blob, from);
                files::fetch(self.fetcher, self.dir, blob, |_| ()).await?;
                files::path(self.dir, &blob)
            }
        };
        Ok(Some(Upload { blob, content: Content::File(path) }))
    }
}
