//! Why an image is not converted, and what to do.

use std::io;

use penstock_blob::Digest;
use penstock_fetcher::{PlatformError, PushError, Reference, ReferenceError, ResolveError};
use penstock_image::write;

use crate::{config::ConfigError, layers::make::MakeError};

/// Why an image was not converted. Each text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The config is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The fetcher's settings cannot be used.
    #[error(transparent)]
    Fetcher(#[from] penstock_fetcher::ConfigError),
    /// A reference is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A platform is none.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The destination is a digest, which nobody knows before.
    #[error("{0} names a digest; name a tag to push to")]
    Pinned(Reference),
    /// A referrer lies beside what it refers to.
    #[error("a referrer lies in the repository of its image; push to {0}, or leave out --referrer")]
    Elsewhere(String),
    /// The registry has no such image, refuses, or does not answer.
    #[error(transparent)]
    Resolve(Box<ResolveError>),
    /// Bytes cannot be had.
    #[error(transparent)]
    Read(#[from] penstock_blob::ReadError),
    /// A layer is not what its name says.
    #[error("layer {expected} has digest {actual}: the registry gave other bytes; they were thrown away")]
    Digest {
        /// As the manifest says.
        expected: Digest,
        /// Of what came.
        actual: Digest,
    },
    /// The image has no layers.
    #[error("the image has no layers")]
    NoLayers,
    /// Its config does not say what its layers are.
    #[error("the image's config {0}")]
    ImageConfig(String),
    /// A layer is neither an archive nor part of a disk.
    #[error("the image cannot be converted: {0}")]
    Open(#[from] penstock_image::OpenError),
    /// Disks are no layers.
    #[error("the image is a disk, of which no layers can be made; convert it --to overlaybd or raw")]
    NoTree,
    /// A layer cannot be read piece by piece.
    #[error("layer {layer}: {error}")]
    Layer {
        /// The layer.
        layer: Digest,
        /// Why not.
        error: penstock_layers::BuildError,
    },
    /// An index that was just made cannot be read.
    #[error(transparent)]
    Opened(#[from] penstock_layers::IndexError),
    /// The same of its entries.
    #[error(transparent)]
    Entries(#[from] penstock_layers::EntriesError),
    /// No file system can be made of the layers.
    #[error(transparent)]
    Build(#[from] penstock_image::BuildError),
    /// What was made is gone.
    #[error("what was just written is damaged; is the disk sound?")]
    Damaged,
    /// The device cannot be read.
    #[error(transparent)]
    Device(#[from] penstock_image::DeviceReadError),
    /// The layer cannot be written.
    #[error(transparent)]
    Write(#[from] write::WriteError),
    /// It cannot be pushed.
    #[error(transparent)]
    Push(Box<PushError>),
    /// The system gave no threads, files or output.
    #[error("cannot convert: {0}")]
    System(#[from] io::Error),
}

impl From<ResolveError> for ConvertError {
    fn from(error: ResolveError) -> Self {
        Self::Resolve(Box::new(error))
    }
}

impl From<MakeError> for ConvertError {
    fn from(error: MakeError) -> Self {
        match error {
            MakeError::Read(error) => Self::Read(error),
            MakeError::Build { layer, error } => Self::Layer { layer, error },
            MakeError::Crashed(reason) => Self::System(io::Error::other(reason)),
        }
    }
}

impl From<PushError> for ConvertError {
    fn from(error: PushError) -> Self {
        Self::Push(Box::new(error))
    }
}
