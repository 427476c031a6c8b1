//! The demo's image: this machine's files in an ext4, as one OverlayBD layer in the registry.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use penstock_image::{Layer, write};
use penstock_registry::{Artifact, ArtifactError, Registry};
use tokio_util::task::TaskTracker;

use super::{
    disk::{self, DiskError},
    program::{self, Program},
    report::ImageFacts,
    tree::{self, Tree},
};
use crate::output::{note, size};

/// Where the image is put in the demo's registry.
pub(super) const REPOSITORY: &str = "penstock/demo";
/// Its tag.
pub(super) const TAG: &str = "latest";

/// An image in the registry.
#[derive(Debug, Clone)]
pub(super) struct BuiltImage {
    pub(super) facts: ImageFacts,
    pub(super) layer: Layer,
    pub(super) program: Program,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    #[error("this machine has neither python3, perl nor bash to show")]
    NoProgram,
    #[error("the image's files cannot be written: {0}; free some disk space, or name another directory with --dir")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the layer cannot be written: {0}")]
    Layer(#[from] write::WriteError),
    #[error("the registry does not take the image: {0}")]
    Registry(#[from] ArtifactError),
    #[error("making the image ended abnormally: {0}")]
    Crashed(String),
}

/// Where and how an image is made.
pub(super) struct Site<'a> {
    pub(super) dir: &'a Path,
    pub(super) registry: &'a Registry,
    /// Owns the threads that copy and compress.
    pub(super) threads: &'a TaskTracker,
    /// Ends them.
    pub(super) stop: &'a Arc<AtomicBool>,
}

impl Site<'_> {
    async fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&AtomicBool) -> Result<T, BuildError> + Send + 'static,
    ) -> Result<T, BuildError> {
        let stop = Arc::clone(self.stop);
        let done = self.threads.spawn_blocking(move || work(&stop)).await;
        done.map_err(|error| BuildError::Crashed(error.to_string()))?
    }

    /// Makes an image of about `target_bytes` and puts it in the registry.
    pub(super) async fn build(&self, target_bytes: u64) -> Result<BuiltImage, BuildError> {
        let program = self.on_thread(|_| program::find().ok_or(BuildError::NoProgram)).await?;
        let files = program.files.clone();
        let copy = self.dir.join("tree");
        let to = copy.clone();
        let tree: Tree = self
            .on_thread(move |stop| {
                let tree = tree::choose(&files, target_bytes);
                note(format_args!("Copying {} of this machine's files ...", size(tree.bytes)));
                tree.copy(&to, stop)?;
                Ok(tree)
            })
            .await?;

        note("Making an ext4 of them (mke2fs -d) ...");
        let disk = self.dir.join("built.ext4");
        let disk_bytes = disk::size_for(tree.entries.len(), tree.bytes);
        disk::make(&copy, &disk, disk_bytes, tree.entries.len()).await?;

        note("Compressing it into an OverlayBD layer (lz4) ...");
        let layer_path = self.dir.join("built.layer");
        let (from, to) = (disk.clone(), layer_path.clone());
        let written = self
            .on_thread(move |_| {
                fs::remove_dir_all(&copy)?;
                let out = File::options().create_new(true).read(true).write(true).open(&to)?;
                Ok(write::disk(&File::open(&from)?, out, write::Options::default())?)
            })
            .await?;
        fs::remove_file(disk)?;
        let layer = self.put(&layer_path, &written).await?;
        let facts = ImageFacts {
            reference: format!("{}/{REPOSITORY}:{TAG}", self.registry.host()),
            entries: tree.entries.len(),
            content_bytes: tree.bytes,
            disk_bytes: written.device_bytes,
            layer_bytes: layer.blob.size_bytes,
        };
        note(format_args!("Image {}: {} in the registry.", facts.reference, size(facts.layer_bytes)));
        Ok(BuiltImage { facts, layer, program })
    }

    async fn put(&self, path: &Path, written: &write::Written) -> Result<Layer, BuildError> {
        let blob = self.registry.put_file(path).await?;
        let layer = Layer { blob, media_type: write::MEDIA_TYPE.to_owned(), annotations: written.annotations.clone() };
        let artifact = Artifact {
            config: "{}".into(),
            artifact_type: Some(write::ARTIFACT_TYPE.to_owned()),
            layers: vec![penstock_registry::Layer {
                blob,
                media_type: layer.media_type.clone(),
                annotations: layer.annotations.clone(),
            }],
            ..Artifact::default()
        };
        self.registry.put_image(REPOSITORY, TAG, artifact)?;
        Ok(layer)
    }
}
