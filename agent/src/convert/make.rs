//! Devices of an image's layers, and the blobs that are written of them.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Hasher};
use penstock_fetcher::Reference;
use penstock_image::{
    FS_TYPE, FileSystem, Image, LayerBuilder, Merged, MergedBuilder, OciLayer, Step,
    write::{self, Options},
    zfile::{Codec, Format},
};
use penstock_layers::{Entry, Index, Registered, Unpacked};
use tokio::runtime::Handle;

use super::{
    ConvertError,
    document::Listed,
    files::{Files, blocking},
    plan::{MADE_OF, Target},
};
use crate::layers::make as layer_index;

/// Bytes of a device handled at once.
const PIECE_BYTES: u64 = 4 << 20;
/// Bytes looked at to see what file system a device holds.
const HEAD_BYTES: usize = 4096;
/// Decoded frames kept: files are written in the order of the archive.
const RECENT_BYTES: usize = 64 << 20;
/// For reads of local files; what is wrong with them stays wrong.
const DEADLINE: Duration = Duration::from_secs(60);

/// A layer of the new image, and where it is.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub(super) listed: Listed,
    pub(super) place: Place,
}

impl Made {
    /// Says what it was made of.
    pub(super) fn of(mut self, target: &Target) -> Self {
        self.listed.annotations.insert(MADE_OF.to_owned(), target.to_string());
        self
    }
}

/// Where a layer of the new image is.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// It was written to this file.
    File(PathBuf),
    /// An earlier conversion has put it into the repository of this image.
    Repository(Reference),
}

/// A device whose bytes can be had without waiting for a network.
#[derive(Debug)]
pub(super) struct Device {
    image: Arc<Image>,
    source: Arc<dyn BlobSource>,
    handle: Handle,
}

impl Device {
    /// Of an image that is opened, over the source of its blobs.
    pub(super) fn new(image: Image, source: Arc<dyn BlobSource>) -> Self {
        Self { image: Arc::new(image), source, handle: Handle::current() }
    }
}

impl write::Disk for Device {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.image.size_bytes())
    }

    fn data_from(&self, from: u64) -> io::Result<Option<ByteRange>> {
        let end = self.image.size_bytes();
        let mut at = from;
        while let Ok(piece) = ByteRange::new(at, (at + PIECE_BYTES).min(end)) {
            let plan = self.image.plan(piece, &*self.source).map_err(io::Error::other)?;
            if !matches!(&plan.steps[..], [only] if matches!(only.step, Step::Zero)) {
                return Ok(Some(piece));
            }
            at = piece.end();
        }
        Ok(None)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let range = ByteRange::at(offset, buf.len() as u64).map_err(io::Error::other)?;
        let read = self.handle.block_on(penstock_image::read(&self.image, &self.source, range));
        buf.copy_from_slice(&read.map_err(io::Error::other)?);
        Ok(())
    }
}

/// Writes a device as an OverlayBD layer.
pub(super) fn overlaybd(device: &Device, path: PathBuf, options: Options) -> Result<Made, ConvertError> {
    let out = File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
    layer(device, write::disk(device, out, options)?, path)
}

/// A layer that was written, so that it says what the device holds.
pub(super) fn layer(device: &Device, written: write::Written, path: PathBuf) -> Result<Made, ConvertError> {
    let mut head = vec![0; HEAD_BYTES.min(usize::try_from(device.image.size_bytes()).unwrap_or(HEAD_BYTES))];
    write::Disk::read_at(device, &mut head, 0)?;
    let write::Written { blob, mut annotations, .. } = written;
    if let Some(file_system) = FileSystem::recognise(&head) {
        annotations.insert(FS_TYPE.to_owned(), file_system.to_string());
    }
    let listed = Listed { blob, media_type: write::MEDIA_TYPE.to_owned(), annotations };
    Ok(Made { listed, place: Place::File(path) })
}

/// Writes a device as it is.
pub(super) fn raw(device: &Device, path: PathBuf) -> Result<Made, ConvertError> {
    let mut out = io::BufWriter::new(File::create(&path)?);
    let (size_bytes, mut hasher, mut at) = (device.image.size_bytes(), Hasher::new(), 0);
    while let Ok(range) = ByteRange::new(at, (at + PIECE_BYTES).min(size_bytes)) {
        let bytes = device.handle.block_on(penstock_image::read(&device.image, &device.source, range))?;
        hasher.update(&bytes);
        out.write_all(&bytes)?;
        at = range.end();
    }
    out.flush()?;
    let blob = Blob { digest: hasher.finish(), size_bytes };
    // Content says what it is; no tool knows a media type of its own for it.
    let listed = Listed { blob, media_type: write::MEDIA_TYPE.to_owned(), annotations: [].into() };
    Ok(Made { listed, place: Place::File(path) })
}

/// How layers are written for upstream's reader.
pub(super) fn options(codec: Codec, chain: &Digest) -> Options {
    let frames = Some(Format { codec, crc: true, block_bytes: 4096 });
    Options { frames, uuid: write::Uuid::of_chain(chain), ..Options::default() }
}

/// The archives of ordinary layers, that can be read.
#[derive(Debug)]
pub(super) struct Archives {
    dir: PathBuf,
    unpacked: Arc<Unpacked>,
    layers: Arc<Vec<Registered>>,
}

impl Archives {
    /// Makes what is missing of the layers' indexes, which verifies their archives against the diff IDs, and opens them.
    pub(super) async fn open(
        files: Arc<Files>,
        dir: &Path,
        layers: &[(Blob, Digest)],
        progress: impl Fn(usize),
    ) -> Result<Self, ConvertError> {
        let config = penstock_layers::Config {
            deadline: DEADLINE,
            decodes: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            recent_bytes: RECENT_BYTES,
        };
        let below = Arc::clone(&files) as Arc<dyn BlobSource>;
        let unpacked = Unpacked::new(below, config, &mut prometheus_client::registry::Registry::default());
        let mut registered = Vec::with_capacity(layers.len());
        for (nth, &(packed, diff_id)) in layers.iter().enumerate() {
            progress(nth);
            let path = dir.join(format!("{}.index", packed.digest.to_hex()));
            let index = match open(&path).filter(|index| is_of(index, packed, diff_id)) {
                Some(index) => index,
                None => {
                    layer_index::index(&*files, (packed, diff_id), &path, |_| ()).await?;
                    Index::open(File::open(&path)?)?
                }
            };
            registered.push(unpacked.register(index));
        }
        Ok(Self { dir: dir.to_owned(), unpacked, layers: Arc::new(registered) })
    }

    pub(super) const fn layers(&self) -> &Arc<Vec<Registered>> {
        &self.layers
    }

    pub(super) const fn unpacked(&self) -> &Arc<Unpacked> {
        &self.unpacked
    }

    /// Where tables of devices are kept.
    pub(super) fn maps(&self) -> PathBuf {
        self.dir.join("maps")
    }

    /// The device of all layers together.
    pub(super) async fn merged(&self) -> Result<Device, ConvertError> {
        let layers: Vec<OciLayer> =
            self.layers.iter().map(|layer| of_archive(layer.index().layer().unpacked)).collect();
        let merged = Merged::new(&layers);
        let (layers, maps, of) = (Arc::clone(&self.layers), self.maps(), merged.clone());
        blocking(move || {
            let mut builder = MergedBuilder::new(&of, &maps);
            for layer in &*layers {
                builder.layer(|| entries(layer.index()))?;
            }
            Ok::<_, ConvertError>(builder.finish()?)
        })
        .await??;
        self.device(Image::open_merged(&merged, &self.maps(), String::new()).await?)
    }

    /// The device of one layer.
    pub(super) async fn one(&self, nth: usize) -> Result<Device, ConvertError> {
        let (layers, maps) = (Arc::clone(&self.layers), self.maps());
        let layer = blocking(move || {
            let Some(registered) = layers.get(nth) else { return Err(ConvertError::NoLayers) };
            let layer = of_archive(registered.index().layer().unpacked);
            let mut builder = LayerBuilder::new(layer, &maps);
            for entry in entries(registered.index())? {
                builder.add(&entry?)?;
            }
            builder.finish()?;
            Ok(layer)
        })
        .await??;
        self.device(Image::open_layer(layer, &self.maps(), String::new()).await?)
    }

    fn device(&self, image: Option<Image>) -> Result<Device, ConvertError> {
        let source = Arc::clone(&self.unpacked) as Arc<dyn BlobSource>;
        image.map(|image| Device::new(image, source)).ok_or(ConvertError::Damaged)
    }
}

/// A layer whose entries were read from its verified archive.
pub(super) const fn of_archive(archive: Blob) -> OciLayer {
    OciLayer { blob: archive, contents: archive.digest }
}

/// The index in a file of an earlier try.
fn open(path: &Path) -> Option<Index> {
    File::open(path).ok().and_then(|file| Index::open(file).ok())
}

fn is_of(index: &Index, packed: Blob, diff_id: Digest) -> bool {
    !index.layer().is_translated && index.layer().packed == packed && index.layer().unpacked.digest == diff_id
}

/// The entries of a layer.
pub(super) fn entries(index: &Index) -> Result<impl Iterator<Item = Result<Entry, ConvertError>>, ConvertError> {
    Ok(index.entries()?.map(|entry| Ok(entry?)))
}
