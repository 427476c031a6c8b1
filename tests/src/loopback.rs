//! Our own registry in this process, for tests that are not async: it fails, stalls and slows down on demand.

use std::{collections::BTreeMap, ops::Deref, path::Path};

use penstock_blob::Blob;
use penstock_registry::{Artifact, Config, Registry};
use tokio::runtime::Runtime;

use crate::push;

/// A registry and the runtime that it serves on.
#[derive(Debug)]
pub struct Loopback {
    // Dropped first: its tasks live on the runtime.
    registry: Registry,
    runtime: Runtime,
}

impl Loopback {
    /// Starts it.
    ///
    /// # Panics
    /// When there is no port.
    #[must_use]
    pub fn start(config: Config) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let registry = runtime.block_on(Registry::start(config)).expect("a port on loopback");
        Self { registry, runtime }
    }

    /// Puts an image of these layers, bottom first, and returns its reference.
    ///
    /// # Panics
    /// When the names are bad.
    #[must_use]
    pub fn image(&self, repository: &str, tag: &str, layers: &[push::Layer]) -> String {
        let layers = layers.iter().map(|layer| penstock_registry::Layer {
            blob: self.registry.put_blob(layer.bytes.clone()),
            media_type: layer.media_type.clone(),
            annotations: layer.annotations.clone(),
        });
        self.artifact(repository, tag, layers.collect())
    }

    /// Puts an image of one layer, a whole disk in a file, and returns its reference and its blob.
    ///
    /// # Panics
    /// When the file cannot be read.
    #[must_use]
    pub fn disk(&self, repository: &str, tag: &str, disk: &Path) -> (String, Blob) {
        let blob = self.runtime.block_on(self.registry.put_file(disk)).expect("a readable disk");
        let media_type = push::DISK.to_owned();
        let layer = penstock_registry::Layer { blob, media_type, annotations: BTreeMap::new() };
        (self.artifact(repository, tag, vec![layer]), blob)
    }

    fn artifact(&self, repository: &str, tag: &str, layers: Vec<penstock_registry::Layer>) -> String {
        // As if no layer were compressed: what is unpacked is what is pushed.
        let config = push::config(layers.iter().map(|layer| layer.blob.digest.to_string())).into();
        let image = Artifact { config, layers, ..Artifact::default() };
        self.registry.put_image(repository, tag, image).expect("a good name");
        format!("{}/{repository}:{tag}", self.registry.host())
    }

    /// Loads every image of an OCI layout.
    ///
    /// # Panics
    /// When the layout is damaged.
    pub fn layout(&self, dir: &Path, repository: &str) {
        self.runtime.block_on(self.registry.load_layout(dir, repository)).expect("a good layout");
    }

    /// Returns once at least `count` answers are stalled.
    pub fn until_stalled(&self, count: usize) {
        self.runtime.block_on(self.registry.until_stalled(count));
    }
}

impl Deref for Loopback {
    type Target = Registry;

    fn deref(&self) -> &Registry {
        &self.registry
    }
}
