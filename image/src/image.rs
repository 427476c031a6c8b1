//! Opening an image and planning its reads.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Located, Purpose, ReadError, ReadFuture};

use crate::{
    body::Body,
    frames::Frames,
    index,
    layer::{self, LayerError, Opened, Site, Window, blocking},
    map::{LayerRecord, Map},
    pages::TableError,
    plan::{Plan, PlanError, Planner},
    recognise::{self, Content, FileSystem, What},
    units::SECTOR_BYTES,
};

/// Most layers of a stack (an extent names its layer in 8 bits; upstream's limit too).
pub const MAX_LAYERS: usize = 255;
/// Layers opened at once: hides latency; each holds up to 1 MiB of its jump table.
pub(crate) const LAYERS_AT_ONCE: usize = 8;
/// Bytes read to see what a blob without annotations is.
const SNIFF_BYTES: u64 = 4096;

/// One layer of an image as its manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The blob.
    pub blob: Blob,
    /// Its media type. Not believed: content decides.
    pub media_type: String,
    /// The annotations of its descriptor.
    pub annotations: BTreeMap<String, String>,
}

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A stack of OverlayBD layers.
    OverlayBd {
        /// How many.
        layers: usize,
    },
    /// One blob that is a file system.
    Raw(FileSystem),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OverlayBd { layers: 1 } => f.write_str("overlaybd, 1 layer"),
            Self::OverlayBd { layers } => write!(f, "overlaybd, {layers} layers"),
            Self::Raw(file_system) => write!(f, "raw {file_system} disk"),
        }
    }
}

/// Why an image cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The manifest lists no layer that could be part of a disk.
    #[error("the image has no layers")]
    NoLayers,
    /// The stack is too high.
    #[error("the image has {layers} layers; OverlayBD allows {MAX_LAYERS}")]
    TooManyLayers {
        /// How many.
        layers: usize,
    },
    /// The image is something else.
    #[error("layer {blob} is {what}")]
    NotADisk {
        /// The layer that shows it.
        blob: Digest,
        /// What it is.
        what: What,
    },
    /// The annotation names another blob than the descriptor.
    #[error(
        "layer {blob} is annotated as OverlayBD blob {annotated:?}; the manifest contradicts itself, convert the image again"
    )]
    Annotation {
        /// By the descriptor.
        blob: Digest,
        /// By the annotation.
        annotated: String,
    },
    /// A layer is wrong or cannot be read.
    #[error("layer {blob} cannot be opened")]
    Layer {
        /// Which.
        blob: Digest,
        /// Why.
        #[source]
        error: Box<LayerError>,
    },
    /// No layer says how large the device is.
    #[error("no layer of the image states a device size")]
    NoDeviceSize,
    /// The merged map would be too large.
    #[error("the merged map has more than {} extents; flatten the image or convert it again", crate::map::MAX_EXTENTS)]
    TooManyExtents,
    /// The maps directory failed.
    #[error(transparent)]
    Maps(#[from] TableError),
}

/// An image whose bytes can be planned. Holds a page and a file handle per map, whatever the size of the image.
///
/// Shared by all queues of a device: every method takes `&self`, and there is no lock.
#[derive(Debug)]
pub struct Image {
    content: Contents,
    blobs: Vec<Blob>,
    device_bytes: u64,
    how_verified: String,
}

#[derive(Debug)]
enum Contents {
    Stack { map: Map, bodies: Vec<Body> },
    Raw { file_system: FileSystem, body: Body },
}

/// Where [`Image::open`] keeps what it makes of these layers (bottom first): files that are there once it was opened, unless it is a raw disk.
#[must_use]
pub fn tables(layers: &[Layer], maps_dir: &Path) -> Vec<PathBuf> {
    let disks = layers.iter().filter(|layer| !recognise::is_acceleration(&layer.annotations));
    let blobs: Vec<Blob> = disks.map(|layer| layer.blob).collect();
    let frames = blobs.iter().map(|blob| crate::frames::path(maps_dir, &blob.digest));
    frames.chain([crate::map::path_of(maps_dir, &blobs)]).collect()
}

impl Image {
    /// Opens the image made of these layers (bottom first). Its maps are taken from `maps_dir`, or built there, which
    /// reads the head, the jump table and the index of each layer through `source`; with maps in place an OverlayBD
    /// image is opened without reading a byte.
    ///
    /// # Errors
    /// [`OpenError`]; what the image is when it is no disk, which layer is wrong and how otherwise.
    pub async fn open(mut layers: Vec<Layer>, source: Arc<dyn BlobSource>, maps_dir: &Path) -> Result<Self, OpenError> {
        layers.retain(|layer| !recognise::is_acceleration(&layer.annotations));
        let bottom = layers.first().ok_or(OpenError::NoLayers)?.blob;
        if layers.len() > MAX_LAYERS {
            return Err(OpenError::TooManyLayers { layers: layers.len() });
        }
        check_annotations(&layers)?;
        let blobs: Vec<Blob> = layers.iter().map(|layer| layer.blob).collect();
        if !layers.iter().any(|layer| recognise::is_overlaybd(&layer.annotations)) {
            match sniff(&source, bottom).await? {
                Content::OverlayBd => {}
                Content::Other(what) => return Err(OpenError::NotADisk { blob: bottom.digest, what }),
                Content::Disk(file_system) => match bottom.all() {
                    Some(file) if blobs.len() == 1 => return Ok(Self::raw(bottom, file, file_system)),
                    _ => return Err(OpenError::NotADisk { blob: bottom.digest, what: What::DiskAmongLayers }),
                },
            }
        }
        let site = Site { source, maps_dir: maps_dir.to_owned(), layers: blobs.len() };
        Self::stack(&site, blobs).await
    }

    fn raw(blob: Blob, file: ByteRange, file_system: FileSystem) -> Self {
        let sectors = blob.size_bytes.div_ceil(SECTOR_BYTES);
        Self {
            content: Contents::Raw { file_system, body: Body::plain(LayerRecord { blob, file, zfile: false }) },
            blobs: vec![blob],
            device_bytes: sectors.saturating_mul(SECTOR_BYTES),
            how_verified: "sha256 of the blob once it is whole; single reads are not checked".into(),
        }
    }

    async fn stack(site: &Site, blobs: Vec<Blob>) -> Result<Self, OpenError> {
        if let Some(image) = Self::from_maps(site, &blobs).await? {
            return Ok(image);
        }
        let opening: Vec<_> = blobs
            .iter()
            .map(|&blob| async move { layer::open(site, blob).await.map_err(|error| layer_error(blob.digest, error)) })
            .collect();
        let mut opened: Vec<Opened> = stream::iter(opening).buffered(LAYERS_AT_ONCE).try_collect().await?;
        let sizes = opened.iter().rev().map(|layer| layer.trailer.device_bytes);
        let device_bytes = sizes.into_iter().find(|&bytes| bytes > 0).ok_or(OpenError::NoDeviceSize)?;
        index::build_map(site, &mut opened, device_bytes).await?;
        let bodies = opened.into_iter().map(|layer| layer.body).collect();
        let map = open_map(site, &blobs).await?;
        let lost = || std::io::Error::new(std::io::ErrorKind::NotFound, "the map vanished while it was opened");
        let map = map.ok_or_else(|| TableError::Io { path: site.maps_dir.clone(), error: lost() })?;
        Ok(Self::assemble(map, bodies, blobs))
    }

    /// The image from the maps of an earlier open; a frame table that is gone or damaged is built anew from its layer.
    async fn from_maps(site: &Site, blobs: &[Blob]) -> Result<Option<Self>, OpenError> {
        let Some(map) = open_map(site, blobs).await? else { return Ok(None) };
        let maps_dir = site.maps_dir.clone();
        let records = map.layers().to_vec();
        let tables = move || records.iter().map(|record| open_table(&maps_dir, record)).collect::<Result<Vec<_>, _>>();
        let bodies = blocking(&site.maps_dir, tables).await?;
        let bodies: Vec<_> = bodies
            .into_iter()
            .zip(blobs)
            .map(|(body, &blob)| async move {
                match body {
                    Some(body) => Ok(body),
                    None => layer::open(site, blob)
                        .await
                        .map(|opened| opened.body)
                        .map_err(|error| layer_error(blob.digest, error)),
                }
            })
            .collect();
        let bodies = stream::iter(bodies).buffered(LAYERS_AT_ONCE).try_collect().await?;
        Ok(Some(Self::assemble(map, bodies, blobs.to_vec())))
    }

    fn assemble(map: Map, bodies: Vec<Body>, blobs: Vec<Blob>) -> Self {
        let unchecked = bodies.iter().filter(|body| !body.is_checked()).count();
        let how_verified = match unchecked {
            0 => "CRC-32C of every ZFile frame read; sha256 of each blob once it is whole".to_owned(),
            n if n == bodies.len() => "sha256 of each blob once it is whole; single reads are not checked".to_owned(),
            n => format!(
                "CRC-32C of every ZFile frame read, except in {n} of {} layers that have none; sha256 of each blob once it is \
                 whole",
                bodies.len()
            ),
        };
        Self { device_bytes: map.device_bytes(), content: Contents::Stack { map, bodies }, blobs, how_verified }
    }

    /// Size of the device in bytes: a multiple of [`Image::sector_bytes`].
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.device_bytes
    }

    /// The device's logical block size in bytes.
    #[must_use]
    pub const fn sector_bytes(&self) -> u64 {
        SECTOR_BYTES
    }

    /// What the image is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match &self.content {
            Contents::Stack { bodies, .. } => Kind::OverlayBd { layers: bodies.len() },
            Contents::Raw { file_system, .. } => Kind::Raw(*file_system),
        }
    }

    /// The blobs that the device's bytes come from, bottom first.
    #[must_use]
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// Extents in the merged map; 1 for a raw disk.
    #[must_use]
    pub const fn extents(&self) -> u64 {
        match &self.content {
            Contents::Stack { map, .. } => map.extents(),
            Contents::Raw { .. } => 1,
        }
    }

    /// How the bytes of lazy reads are checked, in a sentence.
    #[must_use]
    pub fn how_verified(&self) -> &str {
        &self.how_verified
    }

    /// Whether every byte of this blob that the device shows passes a checksum of the format on each read.
    #[must_use]
    pub fn is_checked(&self, blob: &Digest) -> bool {
        let body = self.blobs.iter().position(|known| known.digest == *blob);
        match &self.content {
            Contents::Stack { bodies, .. } => body.and_then(|nth| bodies.get(nth)).is_some_and(Body::is_checked),
            Contents::Raw { .. } => false,
        }
    }

    /// Plans a read of device bytes. Never waits for a network or a lock: reads map pages (one per level, from the page
    /// cache) and asks `source` where bytes already are. Allocates in proportion to the request.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn plan(&self, range: ByteRange, source: &dyn BlobSource) -> Result<Plan, PlanError> {
        if range.end() > self.device_bytes {
            return Err(PlanError::OutOfBounds { range, device_bytes: self.device_bytes });
        }
        let mut planner = Planner::new(source);
        match &self.content {
            Contents::Raw { body, .. } => body.plan(&mut planner, range.start(), range.len())?,
            Contents::Stack { map, bodies } => plan_stack(map, bodies, range, &mut planner)?,
        }
        Ok(planner.finish())
    }
}

impl Image {
    /// Which bytes of blobs hold `range` of the decoded file of a layer, as OverlayBD's [traces](crate::trace) name them; nothing of what
    /// lies behind the end of the file, or of a layer that the image does not have.
    ///
    /// # Errors
    /// [`PlanError::Map`].
    pub fn needs(&self, layer: usize, range: ByteRange) -> Result<Vec<(Blob, ByteRange)>, PlanError> {
        let mut planner = Planner::new(&Nowhere);
        if let Contents::Stack { bodies, .. } = &self.content
            && let Some(body) = bodies.get(layer)
        {
            body.plan(&mut planner, range.start(), range.len())?;
        }
        Ok(planner.finish().missing().collect())
    }
}

/// A source that has nothing: what a plan over it misses is all that it needs.
#[derive(Debug)]
struct Nowhere;

impl BlobSource for Nowhere {
    fn locate(&self, _blob: &Blob, _range: ByteRange) -> Option<Located> {
        None
    }

    fn read(&self, _blob: Blob, _range: ByteRange, _purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(std::future::ready(Err(ReadError::Stopping)))
    }

    fn reject(&self, _blob: &Blob, _range: ByteRange) {}
}

fn plan_stack(map: &Map, bodies: &[Body], range: ByteRange, planner: &mut Planner<'_>) -> Result<(), TableError> {
    let mut at = range.start();
    let mut extents = map.from(at / SECTOR_BYTES)?;
    while at < range.end() {
        let Some(extent) = extents.next()? else { break };
        let (start, end) = (extent.start * SECTOR_BYTES, extent.end() * SECTOR_BYTES);
        let (from, until) = (start.max(at), end.min(range.end()));
        if start >= range.end() {
            break;
        }
        if from >= until {
            continue;
        }
        planner.zero(from - at);
        let offset = (extent.moffset * SECTOR_BYTES).saturating_add(from - start);
        bodies[usize::from(extent.tag)].plan(planner, offset, until - from)?;
        at = until;
    }
    planner.zero(range.end() - at);
    Ok(())
}

/// Refuses what the annotations already show to be no OverlayBD image.
fn check_annotations(layers: &[Layer]) -> Result<(), OpenError> {
    for Layer { blob, annotations, .. } in layers {
        if recognise::is_turbo(annotations) {
            return Err(OpenError::NotADisk { blob: blob.digest, what: What::TurboOci });
        }
        let annotated = annotations.get(recognise::BLOB_DIGEST);
        if let Some(annotated) = annotated.filter(|text| **text != blob.digest.to_string()) {
            return Err(OpenError::Annotation { blob: blob.digest, annotated: annotated.chars().take(80).collect() });
        }
    }
    Ok(())
}

/// What the bottom layer is by its first bytes.
async fn sniff(source: &Arc<dyn BlobSource>, blob: Blob) -> Result<Content, OpenError> {
    let Ok(head) = ByteRange::new(0, blob.size_bytes.min(SNIFF_BYTES)) else {
        return Err(OpenError::NotADisk { blob: blob.digest, what: What::Unknown });
    };
    let bytes = Window::new(source.clone(), blob).bytes(head).await;
    let bytes = bytes.map_err(|error| layer_error(blob.digest, error))?;
    Ok(recognise::content(&bytes, blob.size_bytes))
}

/// Says what an image is when a layer of it is no OverlayBD layer.
pub(crate) fn layer_error(blob: Digest, error: LayerError) -> OpenError {
    match error {
        LayerError::NotALayer(what) => OpenError::NotADisk { blob, what },
        LayerError::Table(error) => OpenError::Maps(error),
        error => OpenError::Layer { blob, error: Box::new(error) },
    }
}

async fn open_map(site: &Site, blobs: &[Blob]) -> Result<Option<Map>, TableError> {
    let (maps_dir, blobs) = (site.maps_dir.clone(), blobs.to_vec());
    let open = move || {
        let made = std::fs::create_dir_all(&maps_dir);
        made.map_err(|error| TableError::Io { path: maps_dir.clone(), error })?;
        Map::open(&maps_dir, &blobs)
    };
    blocking(&site.maps_dir, open).await
}

/// The body that a map's record describes; `None` when its frame table must be built anew.
fn open_table(maps_dir: &Path, record: &LayerRecord) -> Result<Option<Body>, TableError> {
    if !record.zfile {
        return Ok(Some(Body::plain(*record)));
    }
    let frames = Frames::open(maps_dir, &record.blob)?;
    Ok(frames.map(Body::framed))
}

impl OpenError {
    /// Whether another try may succeed without anything being changed by an operator.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Layer { error, .. } => matches!(&**error, LayerError::Fetch(error) if error.is_transient()),
            _ => false,
        }
    }
}
