//! An OverlayBD layer for each layer of an ordinary image: the disk of a layer and those below it, as far as it differs from the disk of those below alone.
//! A layer depends on those below it and on nothing else, so images that have their lower layers in common have the same new ones.

use std::{fs::File, path::PathBuf, sync::Arc};

use penstock_blob::{BlobSource, ByteRange};
use penstock_image::{
    GROWING_CONTENT, Image, Merged, MergedBuilder, OciLayer,
    write::{self, Disk as _, Options, Uuid},
};

use super::{
    ConvertError, Work,
    files::blocking,
    make::{self, Archives, Device, Made, entries, of_archive},
    plan::{Of, Target},
};

/// The disk of some layers, the lowest of an image.
#[derive(Debug)]
pub(super) struct Grown {
    /// The uppermost of them.
    nth: usize,
    device: Arc<Device>,
    metadata_bytes: u64,
}

impl Archives {
    /// The disk of the layers up to this one.
    async fn grown(&self, nth: usize) -> Result<Grown, ConvertError> {
        let (layers, maps) = (self.layers(), self.maps());
        let up_to = layers.get(..=nth).ok_or(ConvertError::NoLayers)?;
        let named: Vec<OciLayer> = up_to.iter().map(|layer| of_archive(layer.index().layer().unpacked)).collect();
        let merged = Merged::growing(&named);
        let (of, dir, layers) = (merged.clone(), maps.clone(), Arc::clone(layers));
        let built = blocking(move || {
            let mut builder = MergedBuilder::new(&of, &dir);
            for layer in layers.iter().take(nth + 1) {
                builder.layer(|| entries(layer.index()))?;
            }
            Ok::<_, ConvertError>(builder.finish()?)
        });
        let metadata_bytes = built.await??.metadata_bytes;
        let image = Image::open_merged(&merged, &maps, String::new()).await?.ok_or(ConvertError::Damaged)?;
        let source = Arc::clone(self.unpacked()) as Arc<dyn BlobSource>;
        Ok(Grown { nth, device: Arc::new(Device::new(image, source)), metadata_bytes })
    }
}

impl Work<'_> {
    /// Writes the layer `target` of a stack into `path`. `below` is what the last one was written from, and becomes what this one is.
    pub(super) async fn grow(
        &self,
        archives: &Archives,
        target: &Target,
        path: PathBuf,
        below: &mut Option<Grown>,
    ) -> Result<Made, ConvertError> {
        let Of::Stacked { nth, chain, parent } = target.of else { return Err(ConvertError::NoTree) };
        let upper = archives.grown(nth).await?;
        let mut options = make::options(target.compression.into(), &chain);
        let device = Arc::clone(&upper.device);
        let Some(parent) = parent else {
            *below = Some(upper);
            return blocking(move || make::overlaybd(&device, path, options)).await?;
        };
        options.parent = Uuid::of_chain(&parent);
        let lower = match below.take().filter(|below| below.nth + 1 == nth) {
            Some(lower) => lower,
            None => archives.grown(nth.saturating_sub(1)).await?,
        };
        let metadata_bytes = (lower.metadata_bytes, upper.metadata_bytes);
        let made = blocking(move || delta((&lower.device, &device), metadata_bytes, path, options)).await??;
        *below = Some(upper);
        Ok(made)
    }
}

/// Writes what `upper` has and `lower` has not. What only files have that are hidden stays in the lower layers, where nothing leads to it.
fn delta(
    (lower, upper): (&Device, &Device),
    metadata_bytes: (u64, u64),
    path: PathBuf,
    options: Options,
) -> Result<Made, ConvertError> {
    let out = File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
    let (from, until) = (lower.size_bytes()?.max(GROWING_CONTENT), upper.size_bytes()?);
    let metadata = ByteRange::new(0, metadata_bytes.0.max(metadata_bytes.1));
    let ranges: Vec<ByteRange> = [metadata, ByteRange::new(from, until)].into_iter().filter_map(Result::ok).collect();
    let written = write::delta((lower, upper), &ranges, out, options)?;
    make::layer(upper, written, path)
}
