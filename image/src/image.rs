//! Opening an image and planning its reads.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Located, Purpose, ReadError, ReadFuture};

use crate::{
    body::Body,
    layer::{LayerError, Site, blocking},
    map::LayerRecord,
    maps::Maps,
    oci::{Disk, Merged, OciLayer},
    over::Over,
    pages::TableError,
    plan::{Plan, PlanError, Planner},
    qcow2,
    recognise::{self, Content, FileSystem, What},
    stack::Stack,
    turbo::Member,
    units::SECTOR_BYTES,
    window::{HEAD_BYTES, Window},
};

/// Most layers of a stack (an extent names its layer in 8 bits; upstream's limit too).
pub const MAX_LAYERS: usize = 255;
/// How the bytes of blobs without checks are verified.
const UNCHECKED: &str = "sha256 of each blob once it is whole; single reads are not checked";

/// How those of TurboOCI layers are.
const OVER_ARCHIVES: &str = "CRC-32C of every ZFile frame read of the metadata; reads of files are not checked: the format has no digests of them";

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
    /// A stack in which there are TurboOCI layers.
    TurboOci {
        /// How many layers.
        layers: usize,
        /// How many of them are file-system metadata over the archives of ordinary layers; the others are OverlayBD layers.
        archives: usize,
    },
    /// One blob that is a file system.
    Raw(FileSystem),
    /// A qcow2 disk.
    Qcow2 {
        /// Bytes of its clusters.
        cluster_bytes: u64,
        /// Files below it.
        backing_files: usize,
    },
    /// One layer of an ordinary image.
    Layer {
        /// Files, directories and the rest.
        inodes: u64,
        /// Directories that no entry of the layer speaks of: in a stack they hide the attributes of the layers below.
        implied: u64,
    },
    /// All layers of an ordinary image, merged.
    Layers {
        /// How many.
        layers: usize,
        /// Files, directories and the rest.
        inodes: u64,
    },
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OverlayBd { layers: 1 } => f.write_str("overlaybd, 1 layer"),
            Self::OverlayBd { layers } => write!(f, "overlaybd, {layers} layers"),
            Self::TurboOci { layers: 1, .. } => f.write_str("turbooci, 1 layer"),
            Self::TurboOci { layers, archives } if layers == archives => write!(f, "turbooci, {layers} layers"),
            Self::TurboOci { layers, archives } => write!(f, "turbooci, {archives} of {layers} layers"),
            Self::Raw(file_system) => write!(f, "raw {file_system} disk"),
            Self::Qcow2 { backing_files: 0, .. } => f.write_str("qcow2 disk"),
            Self::Qcow2 { backing_files: 1, .. } => f.write_str("qcow2 disk over a backing file"),
            Self::Qcow2 { backing_files, .. } => write!(f, "qcow2 disk over {backing_files} backing files"),
            Self::Layer { inodes, .. } => write!(f, "ordinary layer, {inodes} inodes"),
            Self::Layers { layers, inodes } => write!(f, "ordinary image, {layers} layers, {inodes} inodes"),
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
    /// The chain of qcow2 files is too long.
    #[error(
        "the qcow2 disk has a chain of {files} files; {} are possible, make them fewer with qemu-img convert",
        crate::qcow2::MAX_CHAIN
    )]
    TooLongChain {
        /// How many.
        files: usize,
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

/// An image whose bytes can be planned. Holds a page and a file handle per map, whatever the size of the image; images of the same layers share them.
///
/// Shared by all queues of a device: every method takes `&self`, and once its tables are whole there is no lock.
#[derive(Debug)]
pub struct Image {
    content: Contents,
    blobs: Vec<Blob>,
    device_bytes: u64,
    how_verified: String,
}

#[derive(Debug)]
enum Contents {
    Stack(Arc<Stack>),
    Raw { file_system: FileSystem, body: Body },
    Qcow2(qcow2::Disk),
    Layer(Disk),
    Merged(Disk),
}

/// Where [`Image::open`] keeps what it makes of these layers (bottom first): files that are there once it is complete, unless it is a raw disk.
#[must_use]
pub fn tables(layers: &[Layer], maps_dir: &Path) -> Vec<PathBuf> {
    let disks = layers.iter().filter(|layer| !recognise::is_acceleration(&layer.annotations));
    let blobs: Vec<Blob> = disks.map(|layer| layer.blob).collect();
    let frames = blobs.iter().map(|blob| crate::frames::path(maps_dir, &blob.digest));
    frames.chain([crate::map::path_of(maps_dir, &blobs)]).collect()
}

impl Image {
    /// As [`Image::open_in`], in a maps directory of its own.
    ///
    /// # Errors
    /// As [`Image::open_in`].
    pub async fn open(layers: Vec<Layer>, source: Arc<dyn BlobSource>, maps_dir: &Path) -> Result<Self, OpenError> {
        Self::open_in(layers, source, &Maps::new(maps_dir)).await
    }

    /// Opens the image made of these layers (bottom first). Its maps are taken from `maps`, or made there: what opening needs of them in two rounds of
    /// reads of a constant size per layer, the rest in the background. With maps in place an OverlayBD image is opened without reading a byte. Must be
    /// called on a tokio runtime, which then makes the rest.
    ///
    /// # Errors
    /// [`OpenError`]; what the image is when it is no disk, which layer is wrong and how otherwise. What is wrong with the parts that come in the
    /// background is told by the reads that need them.
    pub async fn open_in(mut layers: Vec<Layer>, source: Arc<dyn BlobSource>, maps: &Maps) -> Result<Self, OpenError> {
        layers.retain(|layer| !recognise::is_acceleration(&layer.annotations));
        let bottom = layers.first().ok_or(OpenError::NoLayers)?.blob;
        if layers.len() > MAX_LAYERS {
            return Err(OpenError::TooManyLayers { layers: layers.len() });
        }
        check_annotations(&layers)?;
        let blobs: Vec<Blob> = layers.iter().map(|layer| layer.blob).collect();
        let site =
            Site { source: source.clone(), maps_dir: maps.dir().to_owned(), maps: maps.clone(), layers: blobs.len() };
        let mut sniffed = None;
        if !layers.iter().any(|layer| recognise::is_overlaybd(&layer.annotations)) {
            let window = Window::new(Arc::clone(&source), bottom);
            let content = sniff(&window).await?;
            if content == Content::Qcow2 || content != Content::OverlayBd && is_below_qcow2(&source, &blobs).await? {
                let disk = Box::pin(qcow2::Disk::open(&source, &blobs)).await?;
                return Ok(Self::qcow2(disk, blobs));
            }
            match content {
                Content::OverlayBd | Content::Qcow2 => sniffed = Some(window),
                Content::Other(what) => return Err(OpenError::NotADisk { blob: bottom.digest, what }),
                Content::Disk(file_system) => match bottom.all() {
                    Some(file) if blobs.len() == 1 => return Ok(Self::raw(bottom, file, file_system)),
                    _ => return Err(OpenError::NotADisk { blob: bottom.digest, what: What::DiskAmongLayers }),
                },
            }
        }
        let members = blobs.into_iter().map(Member::OverlayBd).collect();
        Ok(Self::stacked(Box::pin(Stack::open(&site, members, sniffed)).await?))
    }

    /// Opens the device of one ordinary layer from the table that a [`crate::LayerBuilder`] made of it; `None` when there is none, or it
    /// was damaged and is removed now: then the layer's entries are needed again. Reads no byte of the layer.
    /// `how_verified` says how its bytes are checked, in a sentence.
    ///
    /// # Errors
    /// [`OpenError::Maps`].
    pub async fn open_layer(layer: OciLayer, maps_dir: &Path, how_verified: String) -> Result<Option<Self>, OpenError> {
        let dir = maps_dir.to_owned();
        let disk = blocking(maps_dir, move || Disk::open(&dir, &layer, vec![layer.blob])).await?;
        Ok(disk.map(|disk| Self::laid_out(Contents::Layer, disk, how_verified)))
    }

    /// The same of layers that a [`crate::MergedBuilder`] has merged.
    ///
    /// # Errors
    /// [`OpenError::Maps`].
    pub async fn open_merged(
        merged: &Merged,
        maps_dir: &Path,
        how_verified: String,
    ) -> Result<Option<Self>, OpenError> {
        let (dir, layer, archives) = (maps_dir.to_owned(), *merged.layer(), merged.archives().to_vec());
        let disk = blocking(maps_dir, move || Disk::open(&dir, &layer, archives)).await?;
        Ok(disk.map(|disk| Self::laid_out(Contents::Merged, disk, how_verified)))
    }

    fn laid_out(content: impl FnOnce(Disk) -> Contents, disk: Disk, how_verified: String) -> Self {
        let (device_bytes, blobs) = (disk.device_bytes(), disk.archives().to_vec());
        Self { device_bytes, blobs, content: content(disk), how_verified }
    }

    fn raw(blob: Blob, file: ByteRange, file_system: FileSystem) -> Self {
        let sectors = blob.size_bytes.div_ceil(SECTOR_BYTES);
        Self {
            content: Contents::Raw { file_system, body: Body::plain(LayerRecord { blob, file, zfile: false }) },
            blobs: vec![blob],
            device_bytes: sectors.saturating_mul(SECTOR_BYTES),
            how_verified: UNCHECKED.into(),
        }
    }

    fn qcow2(disk: qcow2::Disk, blobs: Vec<Blob>) -> Self {
        Self {
            device_bytes: disk.device_bytes().next_multiple_of(SECTOR_BYTES),
            blobs,
            content: Contents::Qcow2(disk),
            how_verified: UNCHECKED.into(),
        }
    }

    pub(crate) fn stacked(stack: Arc<Stack>) -> Self {
        let bodies = stack.bodies();
        let unchecked = bodies.iter().filter(|body| !body.is_checked()).count();
        let how_verified = match unchecked {
            _ if stack.archives() > 0 => OVER_ARCHIVES.to_owned(),
            0 => "CRC-32C of every ZFile frame read; sha256 of each blob once it is whole".to_owned(),
            n if n == bodies.len() => UNCHECKED.to_owned(),
            n => format!(
                "CRC-32C of every ZFile frame read, except in {n} of {} layers that have none; sha256 of each blob once it is \
                 whole",
                bodies.len()
            ),
        };
        let (blobs, device_bytes) = (stack.blobs().to_vec(), stack.device_bytes());
        Self { device_bytes, content: Contents::Stack(stack), blobs, how_verified }
    }

    /// `source` as reads of this image must be given it: one that also answers for the parts of maps and frame tables that are still being made, which a
    /// plan names as missing (as bytes of a blob that no registry has). A read of such a part waits until it is made, and fails when its bytes cannot be had.
    #[must_use]
    pub fn over(&self, source: Arc<dyn BlobSource>) -> Arc<dyn BlobSource> {
        match &self.content {
            Contents::Stack(stack) if !stack.is_whole() => Arc::new(Over::new(Arc::clone(stack), source)),
            Contents::Stack(_)
            | Contents::Raw { .. }
            | Contents::Qcow2(_)
            | Contents::Layer(_)
            | Contents::Merged(_) => source,
        }
    }

    /// Waits until the map and the frame tables are whole, and kept in the maps directory: then the image can be opened again without reading a
    /// byte. They are made in the background as long as the image is held, faster where somebody reads.
    ///
    /// # Errors
    /// The next failure to get what they are made of. It is tried again all the same.
    pub async fn completed(&self) -> Result<(), ReadError> {
        match &self.content {
            Contents::Stack(stack) => stack.persisted().await,
            Contents::Raw { .. } | Contents::Qcow2(_) | Contents::Layer(_) | Contents::Merged(_) => Ok(()),
        }
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
    pub fn kind(&self) -> Kind {
        match &self.content {
            Contents::Stack(stack) => match stack.archives() {
                0 => Kind::OverlayBd { layers: stack.layers() },
                archives => Kind::TurboOci { layers: stack.layers(), archives },
            },
            Contents::Raw { file_system, .. } => Kind::Raw(*file_system),
            Contents::Qcow2(disk) => {
                Kind::Qcow2 { cluster_bytes: disk.cluster_bytes(), backing_files: disk.backing_files() }
            }
            Contents::Layer(disk) => Kind::Layer { inodes: disk.inodes(), implied: disk.implied() },
            Contents::Merged(disk) => Kind::Layers { layers: disk.archives().len(), inodes: disk.inodes() },
        }
    }

    /// The blobs that the device's bytes come from, bottom first.
    #[must_use]
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// Extents in the merged map, `None` while it is being made; 1 for a raw disk; `None` for a qcow2 disk, whose tables nobody counts.
    #[must_use]
    pub fn extents(&self) -> Option<u64> {
        match &self.content {
            Contents::Stack(stack) => stack.extents(),
            Contents::Raw { .. } => Some(1),
            Contents::Qcow2(_) => None,
            Contents::Layer(disk) | Contents::Merged(disk) => Some(disk.extents()),
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
            Contents::Stack(stack) => {
                body.and_then(|nth| stack.bodies().get(nth)).is_some_and(|body| body.is_checked())
            }
            Contents::Raw { .. } | Contents::Qcow2(_) | Contents::Layer(_) | Contents::Merged(_) => false,
        }
    }

    /// Whether this blob is the archive of an ordinary layer that a TurboOCI layer points into: nothing of the format verifies its bytes.
    #[must_use]
    pub fn is_archive(&self, blob: &Digest) -> bool {
        matches!(&self.content, Contents::Stack(stack) if stack.is_archive(blob))
    }

    /// Plans a read of device bytes. Never waits for a network or a lock: reads map pages (one per level, from the page
    /// cache) and asks `source` where bytes already are. Allocates in proportion to the request.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn plan(&self, range: ByteRange, source: &dyn BlobSource) -> Result<Plan, PlanError> {
        let mut plan = Plan::default();
        self.plan_into(range, source, &mut plan)?;
        Ok(plan)
    }

    /// As [`Image::plan`], into a plan that was used before. After an error its steps mean nothing.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn plan_into(&self, range: ByteRange, source: &dyn BlobSource, plan: &mut Plan) -> Result<(), PlanError> {
        if range.end() > self.device_bytes {
            return Err(PlanError::OutOfBounds { range, device_bytes: self.device_bytes });
        }
        let mut planner = Planner::new(source, plan);
        match &self.content {
            Contents::Raw { body, .. } => body.plan(&mut planner, range.start(), range.len())?,
            Contents::Stack(stack) => stack.plan(range, &mut planner)?,
            Contents::Qcow2(disk) => disk.plan(range, &mut planner)?,
            Contents::Layer(disk) | Contents::Merged(disk) => disk.plan(range, &mut planner)?,
        }
        Ok(())
    }
}

impl Image {
    /// Which bytes of blobs hold `range` of the decoded file of a layer, as OverlayBD's [traces](crate::trace) name them; nothing of what
    /// lies behind the end of the file, or of a layer that the image does not have. Of a layer whose frame table is still being made these may be parts of
    /// that table, as in a plan: see [`Image::over`], and ask again.
    ///
    /// # Errors
    /// [`PlanError::Map`].
    pub fn needs(&self, layer: usize, range: ByteRange) -> Result<Vec<(Blob, ByteRange)>, PlanError> {
        let mut plan = Plan::default();
        let mut planner = Planner::new(&Nowhere, &mut plan);
        if let Contents::Stack(stack) = &self.content
            && let Some(body) = stack.file(layer)
        {
            body.plan(&mut planner, range.start(), range.len())?;
        }
        Ok(plan.missing().collect())
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

/// What the bottom layer is by its first bytes, which stay held.
async fn sniff(window: &Window) -> Result<Content, OpenError> {
    let blob = *window.blob();
    let Ok(head) = ByteRange::new(0, blob.size_bytes.min(HEAD_BYTES)) else {
        return Err(OpenError::NotADisk { blob: blob.digest, what: What::Unknown });
    };
    window.load_more(head).await.map_err(|error| layer_error(blob.digest, error))?;
    let head = window.head().unwrap_or_default();
    Ok(recognise::content(&head, blob.size_bytes))
}

/// Whether the last of several blobs is a qcow2 file: then the first may be anything.
async fn is_below_qcow2(source: &Arc<dyn BlobSource>, blobs: &[Blob]) -> Result<bool, OpenError> {
    match blobs {
        [_, .., top] => Ok(sniff(&Window::new(Arc::clone(source), *top)).await? == Content::Qcow2),
        _ => Ok(false),
    }
}

/// Says what an image is when a layer of it is no OverlayBD layer.
pub(crate) fn layer_error(blob: Digest, error: LayerError) -> OpenError {
    match error {
        LayerError::NotALayer(what) => OpenError::NotADisk { blob, what },
        LayerError::Table(error) => OpenError::Maps(error),
        error => OpenError::Layer { blob, error: Box::new(error) },
    }
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
