//! `penstock index`: an image's index is computed and pushed beside the image. Needs no agent. Of an image of disks it is of chunks; of an ordinary one, of its
//! layers.

mod layers;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{ValueHint, builder::NonEmptyStringValueParser};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_blob::{Blob, BlobSource as _, ByteRange, ChunkSize, ChunkSizeError, Digest, Purpose};
use penstock_fetcher::{
    Content, Fetcher, Manifest, Platform, PlatformError, PushError, Reference, ReferenceError, ResolveError, Upload,
};
use penstock_image::{BLOB_DIGEST, What};
use penstock_index::{ARTIFACT_TYPE, Artifact, ArtifactError, ComputeError, Computed, GRID, Listed, Subject, compute};
use serde::Serialize;

use crate::{
    agent::fetcher_config,
    beside,
    config::{Config, ConfigError, Flags},
    layers::LayerError,
    output::{self, Output, Progress, Table, size},
    run::with_runtime,
};

/// Most blobs at once: each holds 20 MiB and most of a CPU.
const MOST_JOBS: u16 = 64;
/// Bytes looked at to see what a layer is.
const HEAD_BYTES: u64 = 4096;

/// `penstock index`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, as for docker pull: [registry/]repository[:tag][@digest]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    reference: String,
    /// Which image of a multi-platform index, as os/architecture[/variant] [default: this machine's]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    platform: Option<String>,
    /// Layers read at the same time
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_JOBS)))]
    jobs: u16,
    /// Compute and verify, but push nothing
    #[arg(long)]
    dry_run: bool,
    /// Keep the lists, or layer indexes, and the manifest in this directory, which must exist
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    save: Option<PathBuf>,
    /// How to print the answer.
    #[command(flatten)]
    output: Output,
    /// The settings.
    #[command(flatten)]
    flags: Flags,
}

/// Why an image has no index. Each text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The config is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The fetcher's settings cannot be used.
    #[error(transparent)]
    Fetcher(#[from] penstock_fetcher::ConfigError),
    /// The reference is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The platform is none.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The registry has no such image, refuses, or does not answer.
    #[error(transparent)]
    Resolve(Box<ResolveError>),
    /// It is no image that can be attached.
    #[error("layer {blob} is {what}")]
    NotADisk {
        /// The layer.
        blob: Digest,
        /// What it is.
        what: What,
    },
    /// A layer's list cannot be computed.
    #[error("no index is made: {0}")]
    Compute(#[from] ComputeError),
    /// The config of an ordinary image cannot be used, or a layer index of it cannot be made.
    #[error("no index is made: {0}")]
    Image(String),
    /// No layer can be read piece by piece.
    #[error("no layer of the image can be read lazily: {reason}")]
    NotLazy {
        /// Why the first one cannot.
        reason: String,
    },
    /// A layer cannot be read.
    #[error(transparent)]
    Read(#[from] penstock_blob::ReadError),
    /// The index cannot be written as a manifest.
    #[error("no index can be made of this image: {0}")]
    Artifact(#[from] ArtifactError),
    /// It cannot be pushed.
    #[error(transparent)]
    Push(Box<PushError>),
    /// Lists of that chunk size cannot be.
    #[error(transparent)]
    ChunkSize(#[from] ChunkSizeError),
    /// The system gave no threads, files or output.
    #[error("cannot make an index: {0}")]
    System(#[from] io::Error),
}

impl From<ResolveError> for IndexError {
    fn from(error: ResolveError) -> Self {
        Self::Resolve(Box::new(error))
    }
}

impl From<PushError> for IndexError {
    fn from(error: PushError) -> Self {
        Self::Push(Box::new(error))
    }
}

impl From<LayerError> for IndexError {
    fn from(error: LayerError) -> Self {
        Self::Image(error.to_string())
    }
}

/// What was made.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Made {
    /// Of a disk.
    Chunks(Answer),
    /// Of an ordinary image.
    Layers(layers::Answer),
}

/// What was made of a disk.
#[derive(Debug, Serialize)]
struct Answer {
    reference: Reference,
    /// The image's manifest.
    manifest: Digest,
    /// The index's manifest.
    index: Digest,
    pushed: bool,
    blobs: Vec<AnswerBlob>,
}

#[derive(Debug, Serialize)]
struct AnswerBlob {
    digest: Digest,
    size_bytes: u64,
    list_bytes: u64,
    root: penstock_index::Root,
}

/// Makes the index of an image, pushes it unless told otherwise, and prints what it is.
///
/// # Errors
/// [`IndexError`].
pub fn run(args: &Args) -> Result<(), IndexError> {
    let loaded = Config::load(&args.flags)?;
    let answer = with_runtime(make(args, &loaded.config))??;
    Ok(output::answer(args.output, &answer, table)?)
}

async fn make(args: &Args, config: &Config) -> Result<Made, IndexError> {
    let reference: Reference = args.reference.parse()?;
    let platform = match &args.platform {
        Some(text) => text.parse::<Platform>()?,
        None => config.platform.clone(),
    };
    let fetcher = Fetcher::new(fetcher_config(config), &mut prometheus_client::registry::Registry::default())?;
    let manifest =
        output::with_progress(&format!("resolving {reference}"), fetcher.resolve(&reference, &platform)).await?;
    let blobs = blobs(&manifest);
    blobs.iter().for_each(|blob| fetcher.serve(*blob, &manifest.reference));
    let made = if is_ordinary(&fetcher, &manifest).await? {
        Made::Layers(Box::pin(layers::make(args, &fetcher, &manifest)).await?)
    } else {
        Made::Chunks(chunks(args, &fetcher, (&manifest, &blobs)).await?)
    };
    fetcher.stop().await;
    Ok(made)
}

/// Makes the index of the chunks of a disk.
async fn chunks(
    args: &Args,
    fetcher: &Arc<Fetcher>,
    (manifest, blobs): (&Manifest, &[Blob]),
) -> Result<Answer, IndexError> {
    let scratch = tempfile::tempdir()?;
    let dir = args.save.as_deref().unwrap_or(scratch.path());
    let computed = lists(fetcher, blobs, dir, usize::from(args.jobs)).await?;
    let subject = Blob { digest: manifest.digest, size_bytes: manifest.size_bytes };
    let artifact = Artifact {
        subject: Subject { media_type: manifest.media_type.clone(), manifest: subject },
        lists: computed.iter().map(|computed| computed.listed).collect(),
    };
    artifact.lists_of(manifest.digest, blobs)?;
    let bytes = artifact.to_manifest()?;
    if let Some(dir) = &args.save {
        tokio::fs::write(dir.join("manifest.json"), &bytes).await?;
    }
    let index = Digest::of(&bytes);
    if !args.dry_run {
        Box::pin(push(fetcher, manifest, &computed, bytes)).await?;
    }
    Ok(answer(manifest, index, !args.dry_run, &artifact.lists))
}

/// The image's blobs that have bytes, each once, in the order of its layers.
fn blobs(manifest: &Manifest) -> Vec<Blob> {
    let mut blobs: Vec<Blob> = Vec::with_capacity(manifest.layers.len());
    for blob in manifest.layers.iter().map(penstock_fetcher::Descriptor::blob) {
        if blob.size_bytes > 0 && !blobs.contains(&blob) {
            blobs.push(blob);
        }
    }
    blobs
}

/// Whether an image is an ordinary one. One that no node could attach is refused, before all of it is read.
async fn is_ordinary(fetcher: &Fetcher, manifest: &Manifest) -> Result<bool, IndexError> {
    let Some(bottom) = manifest.layers.first() else {
        return Err(ArtifactError::Unlisted(manifest.digest).into());
    };
    let blob = bottom.blob();
    let annotated = manifest.layers.iter().any(|layer| layer.annotations.contains_key(BLOB_DIGEST));
    if crate::layers::is_packed(&bottom.media_type, &bottom.annotations) {
        return Ok(true);
    }
    let Ok(head) = ByteRange::new(0, blob.size_bytes.min(HEAD_BYTES)) else { return Ok(false) };
    if annotated {
        return Ok(false);
    }
    match penstock_image::content(&fetcher.read(blob, head, Purpose::Demand).await?, blob.size_bytes) {
        content if content.is_archive() => Ok(true),
        penstock_image::Content::Other(what) => Err(IndexError::NotADisk { blob: blob.digest, what }),
        penstock_image::Content::OverlayBd | penstock_image::Content::Disk(_) | penstock_image::Content::Qcow2 => {
            Ok(false)
        }
    }
}

/// The lists of all blobs, `jobs` at a time, as files of `dir`.
async fn lists(fetcher: &Arc<Fetcher>, blobs: &[Blob], dir: &Path, jobs: usize) -> Result<Vec<Computed>, IndexError> {
    let grid = ChunkSize::new(GRID)?;
    let progress = Progress::of(blobs.iter().map(|blob| blob.size_bytes));
    let computing = blobs.iter().zip(progress.parts()).map(|(blob, done)| async move {
        let path = dir.join(format!("{}.list", blob.digest.to_hex()));
        compute(&**fetcher, *blob, grid, &path, |bytes| done.set(bytes)).await
    });
    let computing = stream::iter(computing.collect::<Vec<_>>()).buffered(jobs).try_collect();
    Ok(progress.note_until("verified and hashed", computing).await?)
}

async fn push(fetcher: &Fetcher, manifest: &Manifest, computed: &[Computed], bytes: Vec<u8>) -> Result<(), PushError> {
    let lists =
        computed.iter().map(|made| Upload { blob: made.listed.list, content: Content::File(made.path.clone()) });
    let what = format!("pushing the index of {}", manifest.reference);
    output::with_progress(&what, beside::push(fetcher, manifest, (ARTIFACT_TYPE, bytes), lists)).await.map(drop)
}

fn answer(manifest: &Manifest, index: Digest, pushed: bool, lists: &[Listed]) -> Answer {
    let blob = |listed: &Listed| AnswerBlob {
        digest: listed.blob.digest,
        size_bytes: listed.blob.size_bytes,
        list_bytes: listed.list.size_bytes,
        root: listed.root,
    };
    let blobs = lists.iter().map(blob).collect();
    Answer { reference: manifest.reference.clone(), manifest: manifest.digest, index, pushed, blobs }
}

fn table(made: &Made) -> String {
    let answer = match made {
        Made::Chunks(answer) => answer,
        Made::Layers(answer) => return layers::table(answer),
    };
    let mut facts = Table::facts();
    facts.fact("image", &answer.reference);
    facts.fact("index", answer.index);
    facts.fact("pushed", if answer.pushed { "yes" } else { "no (--dry-run)" });
    let mut blobs = Table::new(&["BLOB", ">SIZE", ">LIST", "ROOT"]);
    for blob in &answer.blobs {
        blobs.row([blob.digest.to_string(), size(blob.size_bytes), size(blob.list_bytes), blob.root.to_string()]);
    }
    format!("{facts}\n{blobs}")
}
