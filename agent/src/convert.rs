//! `penstock convert`: an image written in another form and pushed. Needs no agent.
//!
//! An ordinary image becomes one EROFS of the tree that its layers make together, in an OverlayBD layer or as it is, or a stack of OverlayBD layers or an
//! EROFS for each layer; a disk image (OverlayBD, qcow2, raw) becomes the same disk in another form. The same image gives the same bytes everywhere.
//! docs/convert.md.

mod document;
mod error;
mod files;
mod grow;
mod make;
mod plan;
mod push;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{ValueEnum, ValueHint, builder::NonEmptyStringValueParser};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_blob::{Blob, BlobSource as _, ByteRange, Digest, Purpose};
use penstock_fetcher::{Fetcher, Manifest, Platform, PlatformError, Reference, ReferenceError, ResolveError};
use penstock_image::{Image, Layer, write, zfile::Codec};
use serde::Serialize;

use crate::{
    agent::fetcher_config,
    config::{Config, Flags},
    layers::{
        config::{MAX_CONFIG_BYTES, parse},
        is_packed,
    },
    output::{self, Output, Progress, Table, size},
    run::with_runtime,
};
use document::{Listed, Origin};
pub use error::ConvertError;
use files::{Files, blocking};
use grow::Grown;
use make::{Archives, Device, Made, Place};
use plan::{Of, Target};

/// Layers fetched at once.
const LAYERS_AT_ONCE: usize = 3;
/// Bytes looked at to see what a layer is.
const HEAD_BYTES: u64 = 4096;
/// Artifact type of a converted image that is no OverlayBD one, where it refers to its origin.
const DISK_TYPE: &str = "application/vnd.penstock.disk.v1";

/// `penstock convert`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, as for docker pull: [registry/]repository[:tag][@digest]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    source: String,
    /// Where the new image goes: [registry/]repository[:tag]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    destination: String,
    /// What to write
    #[arg(long, value_enum, default_value_t = Form::Overlaybd)]
    to: Form,
    /// How the frames of OverlayBD layers are compressed
    #[arg(long, value_enum, default_value_t = Compression::Lz4)]
    compression: Compression,
    /// Which image of a multi-platform index, as os/architecture[/variant]; given more than once, an index of all of them is written [default: this
    /// machine's]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    platform: Vec<String>,
    /// All images of a multi-platform index; an index of what becomes of them is written
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// Take layers that were made of the same before from this image, which an earlier conversion has written: they are neither fetched nor made again,
    /// nor sent where the registry can take them over. May be given more than once
    #[arg(long, value_name = "IMAGE", value_parser = NonEmptyStringValueParser::new())]
    reuse: Vec<String>,
    /// Refer to the source image, whose repository must be the destination's: it is then found by who asks for what refers to the source
    #[arg(long)]
    referrer: bool,
    /// Keep what is fetched and made in this directory, which must exist: another try goes on from there
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    work: Option<PathBuf>,
    /// Convert, but push nothing
    #[arg(long)]
    dry_run: bool,
    /// How to print the answer.
    #[command(flatten)]
    output: Output,
    /// The settings.
    #[command(flatten)]
    flags: Flags,
}

/// What an image becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// One OverlayBD layer
    Overlaybd,
    /// One OverlayBD layer for each layer, over those below it
    OverlaybdLayers,
    /// One EROFS for each layer
    Erofs,
    /// One disk as it is
    Raw,
}

/// How frames are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Compression {
    Lz4,
    Zstd,
}

impl Form {
    const fn name(self) -> &'static str {
        match self {
            Self::Overlaybd => "overlaybd",
            Self::OverlaybdLayers => "overlaybd-layers",
            Self::Erofs => "erofs",
            Self::Raw => "raw",
        }
    }
}

impl Compression {
    const fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl From<Compression> for Codec {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::Lz4 => Self::Lz4,
            Compression::Zstd => Self::Zstd,
        }
    }
}

/// What was made.
#[derive(Debug, Serialize)]
struct Answer {
    source: Reference,
    destination: Reference,
    /// The manifest, or the index of several.
    digest: Digest,
    pushed: bool,
    images: Vec<AnswerImage>,
}

#[derive(Debug, Serialize)]
struct AnswerImage {
    platform: Platform,
    /// The manifest that it was made from.
    from: Digest,
    manifest: Digest,
    from_bytes: u64,
    layers: Vec<AnswerLayer>,
}

#[derive(Debug, Serialize)]
struct AnswerLayer {
    digest: Digest,
    size_bytes: u64,
    /// Whether an earlier conversion had made it.
    reused: bool,
}

/// What is done, and with what.
struct Work<'a> {
    args: &'a Args,
    fetcher: &'a Arc<Fetcher>,
    dir: &'a Path,
    to: &'a Reference,
    /// What earlier conversions have written.
    reuse: &'a [Reference],
}

/// A converted image.
struct Converted {
    platform: Platform,
    source: Manifest,
    origin: Origin,
    layers: Vec<Made>,
    config: (Listed, Vec<u8>),
    manifest: Vec<u8>,
}

impl Converted {
    fn blob(&self) -> Blob {
        Blob { digest: Digest::of(&self.manifest), size_bytes: self.manifest.len() as u64 }
    }
}

/// Converts an image, pushes it unless told otherwise, and prints what it is.
///
/// # Errors
/// [`ConvertError`].
pub fn run(args: &Args) -> Result<(), ConvertError> {
    let loaded = Config::load(&args.flags)?;
    let answer = with_runtime(Box::pin(convert(args, &loaded.config)))??;
    Ok(output::answer(args.output, &answer, table)?)
}

async fn convert(args: &Args, config: &Config) -> Result<Answer, ConvertError> {
    let (source, to): (Reference, Reference) = (args.source.parse()?, args.destination.parse()?);
    if to.digest().is_some() {
        return Err(ConvertError::Pinned(to));
    }
    if args.referrer && (source.host(), source.repository()) != (to.host(), to.repository()) {
        return Err(ConvertError::Elsewhere(format!("{}/{}", source.registry(), source.repository())));
    }
    let reuse = args.reuse.iter().map(|text| text.parse()).collect::<Result<Vec<Reference>, ReferenceError>>()?;
    let mut platforms =
        args.platform.iter().map(|text| text.parse()).collect::<Result<Vec<Platform>, PlatformError>>()?;
    let fetcher = Fetcher::new(fetcher_config(config), &mut prometheus_client::registry::Registry::default())?;
    let scratch = tempfile::tempdir()?;
    let dir = args.work.as_deref().unwrap_or(scratch.path());
    let work = Work { args, fetcher: &fetcher, dir, to: &to, reuse: &reuse };
    if args.all_platforms {
        platforms = fetcher.platforms(&source).await?;
    }
    if platforms.is_empty() {
        platforms.push(config.platform.clone());
    }
    let mut images = Vec::with_capacity(platforms.len());
    for platform in platforms {
        images.push(Box::pin(work.image(&source, platform)).await?);
    }
    let digest = Box::pin(work.push(&images)).await?;
    fetcher.stop().await;
    Ok(answer(source, to, (digest, !args.dry_run), &images))
}

impl Work<'_> {
    /// Converts the image of one platform.
    async fn image(&self, source: &Reference, platform: Platform) -> Result<Converted, ConvertError> {
        let resolving = self.fetcher.resolve(source, &platform);
        let manifest = output::with_progress(&format!("resolving {source}"), resolving).await?;
        let config = self.config(&manifest).await?;
        let layers = Box::pin(self.layers((&manifest, &platform), &config)).await?;
        let diff_ids: Vec<Digest> = layers.iter().map(|made| made.listed.blob.digest).collect();
        let bytes = document::config(&config, &diff_ids).map_err(ConvertError::ImageConfig)?;
        let blob = Blob { digest: Digest::of(&bytes), size_bytes: bytes.len() as u64 };
        let listed = Listed { blob, media_type: manifest.config.media_type.clone(), annotations: [].into() };
        let origin = Origin {
            media_type: manifest.media_type.clone(),
            manifest: Blob { digest: manifest.digest, size_bytes: manifest.size_bytes },
        };
        let referrer = self.args.referrer.then_some((self.artifact_type(), &origin));
        let descriptors: Vec<Listed> = layers.iter().map(|made| made.listed.clone()).collect();
        let written = document::manifest(&listed, &descriptors, referrer);
        Ok(Converted { platform, source: manifest, origin, layers, config: (listed, bytes), manifest: written })
    }

    const fn artifact_type(&self) -> &'static str {
        match self.args.to {
            Form::Overlaybd | Form::OverlaybdLayers => write::ARTIFACT_TYPE,
            Form::Erofs | Form::Raw => DISK_TYPE,
        }
    }

    /// The image's config, verified.
    async fn config(&self, manifest: &Manifest) -> Result<Vec<u8>, ConvertError> {
        let blob = manifest.config.blob();
        let range = blob.all().filter(|range| range.len() <= MAX_CONFIG_BYTES);
        let range = range.ok_or_else(|| ConvertError::ImageConfig(format!("has {} bytes", blob.size_bytes)))?;
        self.fetcher.serve(blob, &manifest.reference);
        let bytes = self.fetcher.read(blob, range, Purpose::Demand).await?;
        if Digest::of(&bytes) != blob.digest {
            return Err(ConvertError::Digest { expected: blob.digest, actual: Digest::of(&bytes) });
        }
        Ok(bytes.to_vec())
    }

    /// Fetches these layers into the directory.
    async fn fetch(&self, reference: &Reference, layers: &[Blob]) -> Result<Arc<Files>, ConvertError> {
        let mut blobs: Vec<Blob> = Vec::with_capacity(layers.len());
        for &blob in layers {
            if !blobs.contains(&blob) {
                blobs.push(blob);
            }
        }
        blobs.iter().for_each(|blob| self.fetcher.serve(*blob, reference));
        let progress = Progress::of(blobs.iter().map(|blob| blob.size_bytes));
        let fetching = blobs
            .iter()
            .zip(progress.parts())
            .map(|(blob, done)| files::fetch(self.fetcher, self.dir, *blob, |bytes| done.set(bytes)));
        let fetching = stream::iter(fetching.collect::<Vec<_>>()).buffer_unordered(LAYERS_AT_ONCE);
        progress.note_until("fetched", fetching.try_collect::<Vec<()>>()).await?;
        let mut files = Files::default();
        blobs.iter().try_for_each(|blob| files.add(self.dir, *blob))?;
        Ok(Arc::new(files))
    }

    /// The new layers of an image: those that an earlier conversion has made, and the others, written now.
    async fn layers(
        &self,
        (manifest, platform): (&Manifest, &Platform),
        config: &[u8],
    ) -> Result<Vec<Made>, ConvertError> {
        let diff_ids = match self.is_ordinary(manifest).await? {
            true => Some(parse(config, manifest.layers.len()).map_err(ConvertError::ImageConfig)?),
            false if matches!(self.args.to, Form::Erofs | Form::OverlaybdLayers) => return Err(ConvertError::NoTree),
            false => None,
        };
        let targets = plan::targets(manifest.digest, diff_ids.as_deref(), (self.args.to, self.args.compression));
        let before = self.before(platform).await?;
        let made: Vec<_> = targets.iter().map(|target| plan::made(target, &before)).collect();
        let missing = targets.iter().zip(&made).filter(|(_, made)| made.is_none()).map(|(target, _)| target);
        let needed = plan::needed(missing, manifest.layers.len());
        let blobs: Vec<Blob> = needed.iter().filter_map(|nth| Some(manifest.layers.get(*nth)?.blob())).collect();
        let files = self.fetch(&manifest.reference, &blobs).await?;
        let archives = match &diff_ids {
            Some(ids) => Some(self.archives(&files, &blobs, &needed, ids).await?),
            None => None,
        };
        let (mut layers, mut below) = (Vec::with_capacity(targets.len()), None);
        for (target, made) in targets.iter().zip(made) {
            layers.push(match (made, &archives) {
                (Some((listed, from)), _) => Made { listed, place: Place::Repository(from) },
                (None, Some(archives)) => self.of_archives((archives, &needed), target, &mut below).await?,
                (None, None) => self.write(self.disk(manifest, Arc::clone(&files)).await?, target).await?,
            });
        }
        Ok(layers)
    }

    /// Writes one layer of what archives hold, which are those of the layers `needed`.
    async fn of_archives(
        &self,
        (archives, needed): (&Archives, &[usize]),
        target: &Target,
        below: &mut Option<Grown>,
    ) -> Result<Made, ConvertError> {
        let device = match target.of {
            Of::Layer(nth, _) => {
                let at = needed.binary_search(&nth).map_err(|_| ConvertError::NoLayers)?;
                archives.one(at).await?
            }
            Of::Stacked { .. } => {
                output::note(format_args!("writing {target}"));
                let made = self.grow(archives, target, self.path(target), below).await?;
                return Ok(made.of(target));
            }
            Of::Layers(_) | Of::Disk(_) => archives.merged().await?,
        };
        self.write(device, target).await
    }

    /// Where a new layer is written: each has a file of its own, also those of one platform after the other.
    fn path(&self, target: &Target) -> PathBuf {
        self.dir.join(format!("{}-{}", target.of.digest().to_hex(), target.form.name()))
    }

    /// Whether the image is one of ordinary layers, as it says of the lowest one, or that one's first bytes.
    async fn is_ordinary(&self, manifest: &Manifest) -> Result<bool, ConvertError> {
        let bottom = manifest.layers.first().ok_or(ConvertError::NoLayers)?;
        if is_packed(&bottom.media_type, &bottom.annotations) {
            return Ok(true);
        }
        let blob = bottom.blob();
        let Ok(head) = ByteRange::new(0, blob.size_bytes.min(HEAD_BYTES)) else { return Ok(true) };
        self.fetcher.serve(blob, &manifest.reference);
        let head = self.fetcher.read(blob, head, Purpose::Demand).await?;
        Ok(penstock_image::content(&head, blob.size_bytes).is_archive())
    }

    /// What earlier conversions have written for this platform.
    async fn before(&self, platform: &Platform) -> Result<Vec<Manifest>, ConvertError> {
        let mut before = Vec::with_capacity(self.reuse.len());
        for reference in self.reuse {
            match self.fetcher.resolve(reference, platform).await {
                Ok(manifest) => before.push(manifest),
                Err(error @ ResolveError::Platform { .. }) => output::note(format_args!("nothing to reuse: {error}")),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(before)
    }

    /// The layers of an ordinary image that are `needed`, ready to be read.
    async fn archives(
        &self,
        files: &Arc<Files>,
        blobs: &[Blob],
        needed: &[usize],
        diff_ids: &[Digest],
    ) -> Result<Archives, ConvertError> {
        let ids = needed.iter().filter_map(|nth| diff_ids.get(*nth).copied());
        let packed: Vec<(Blob, Digest)> = blobs.iter().copied().zip(ids).collect();
        let count = packed.len();
        let told = |nth| output::note(format_args!("reading layer {} of {count}", nth + 1));
        Archives::open(Arc::clone(files), self.dir, &packed, told).await
    }

    /// The disk that an image is.
    async fn disk(&self, manifest: &Manifest, files: Arc<Files>) -> Result<Device, ConvertError> {
        let layer = |layer: &penstock_fetcher::Descriptor| Layer {
            blob: layer.blob(),
            media_type: layer.media_type.clone(),
            annotations: layer.annotations.clone(),
        };
        let layers = manifest.layers.iter().map(layer).collect();
        let image = Box::pin(Image::open(layers, Arc::clone(&files) as _, &self.dir.join("maps"))).await?;
        image.completed().await?;
        Ok(Device::new(image, files as _))
    }

    /// Writes one layer of a device.
    async fn write(&self, device: Device, target: &Target) -> Result<Made, ConvertError> {
        output::note(format_args!("writing {target}"));
        let (path, target) = (self.path(target), *target);
        let options = make::options(target.compression.into(), target.of.digest());
        let made = blocking(move || match target.form {
            Form::Overlaybd | Form::OverlaybdLayers => make::overlaybd(&device, path, options),
            Form::Erofs | Form::Raw => make::raw(&device, path),
        });
        Ok(made.await??.of(&target))
    }
}

fn answer(source: Reference, destination: Reference, (digest, pushed): (Digest, bool), images: &[Converted]) -> Answer {
    let layer = |made: &Made| AnswerLayer {
        digest: made.listed.blob.digest,
        size_bytes: made.listed.blob.size_bytes,
        reused: matches!(made.place, Place::Repository(_)),
    };
    let image = |image: &Converted| AnswerImage {
        platform: image.platform.clone(),
        from: image.origin.manifest.digest,
        manifest: image.blob().digest,
        from_bytes: image.source.layers.iter().map(|layer| layer.size_bytes).sum(),
        layers: image.layers.iter().map(layer).collect(),
    };
    Answer { source, destination, digest, pushed, images: images.iter().map(image).collect() }
}

fn table(answer: &Answer) -> String {
    let mut facts = Table::facts();
    facts.fact("from", &answer.source);
    facts.fact("to", &answer.destination);
    facts.fact("digest", answer.digest);
    facts.fact("pushed", if answer.pushed { "yes" } else { "no (--dry-run)" });
    let mut layers = Table::new(&["PLATFORM", "LAYER", ">SIZE", ">BEFORE", "MADE"]);
    for image in &answer.images {
        for layer in &image.layers {
            layers.row([
                image.platform.to_string(),
                layer.digest.to_string(),
                size(layer.size_bytes),
                size(image.from_bytes),
                if layer.reused { "before" } else { "now" }.to_owned(),
            ]);
        }
    }
    format!("{facts}\n{layers}")
}
