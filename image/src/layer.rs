//! Opening one layer: which bytes of its blob are the layer file, how it is compressed, where its index is.
//!
//! Two rounds of reads, of constant size: the head and the tail of the blob; then, of a ZFile, what lies around the start of its jump table: the last frames,
//! which hold the layer's index and trailer, and the first lengths. The rest of the jump table comes in the background ([`crate::filling`]).
//! Everything goes through the source, so a cache below keeps it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use penstock_blob::{BlobSource, ByteRange, Purpose, ReadError};

use crate::{
    body::Body,
    filling,
    frames::{self, Shape},
    lsmt::{self, LsmtError, Trailer},
    map::LayerRecord,
    maps::Maps,
    pages::TableError,
    qcow2,
    recognise::{self, Content, What},
    scratch::StepError,
    tar::{self, TarError},
    units::in_memory,
    window::Window,
    zfile::{self, Header, HeaderError, MAX_STORED_BYTES},
};

/// Fewest and most bytes read at the end of a blob, and again before its jump table: trailer, and of a small layer the whole jump table and index.
const TAIL_BYTES: std::ops::RangeInclusive<u64> = LEAST_TAIL_BYTES..=(64 << 10);
pub(crate) const LEAST_TAIL_BYTES: u64 = 16 << 10;
/// Most bytes of tails kept for all layers of an image until its map is built, unless they have more than 64 layers.
const ALL_TAILS_BYTES: u64 = 1 << 20;

/// Why a layer cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// Its bytes could not be had.
    #[error(transparent)]
    Fetch(#[from] ReadError),
    /// It is not an OverlayBD layer.
    #[error("it is {0}")]
    NotALayer(What),
    /// Its tar wrapper is malformed.
    #[error("its tar wrapper is damaged: {0}")]
    Tar(#[from] TarError),
    /// Its ZFile header or trailer is wrong.
    #[error("its ZFile header is damaged: {0}")]
    ZFile(#[from] HeaderError),
    /// Its jump table does not match its check.
    #[error("its jump table's checksum is {computed:08x}, the header says {expected:08x}")]
    JumpTableCrc {
        /// From the header.
        expected: u32,
        /// From the table's bytes.
        computed: u32,
    },
    /// A frame has a stored length that no encoder makes.
    #[error("frame {nth} claims {stored_bytes} stored bytes; at most {MAX_STORED_BYTES} are possible")]
    FrameLength {
        /// Which, counted from 0.
        nth: u64,
        /// Its length by the jump table.
        stored_bytes: u32,
    },
    /// The frames do not fill the space before the jump table.
    #[error("its frames end at byte {end}, its jump table starts at {index_offset}")]
    FramesEnd {
        /// Where the last frame ends.
        end: u64,
        /// Where the jump table starts.
        index_offset: u64,
    },
    /// One of its frames is wrong.
    #[error(transparent)]
    Frame(StepError),
    /// The layer file is malformed.
    #[error("its layer file is damaged: {0}")]
    Lsmt(#[from] LsmtError),
    /// Its qcow2 header cannot be used.
    #[error("it is a qcow2 disk that cannot be read: {0}")]
    Qcow2(#[from] qcow2::HeaderError),
    /// It is a qcow2 file with a backing file, and there is no layer below it.
    #[error(
        "it is a qcow2 disk with a backing file, and the manifest has no layer below it; push the backing file as the layer before it"
    )]
    NoBacking,
    /// It lies below a disk that has no backing file.
    #[error(
        "the qcow2 disk above it has no backing file; push a chain with each file after its backing file, and nothing else"
    )]
    NotBacked,
    /// It is no qcow2 file, and the one above it says that it is.
    #[error(
        "the qcow2 disk above it says that its backing file is qcow2, which this is not; push the backing file as the layer before it"
    )]
    BackingFormat,
    /// It is empty.
    #[error("it is empty")]
    Empty,
    /// The maps directory failed.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl LayerError {
    /// Whether the cause lies in the bytes of the blob, so that fetching them anew may help.
    pub(crate) const fn is_content(&self) -> bool {
        !matches!(self, Self::Fetch(_) | Self::Table(_) | Self::Empty)
    }
}

/// What opening needs to know besides the blob.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) source: Arc<dyn BlobSource>,
    pub(crate) maps_dir: PathBuf,
    pub(crate) maps: Maps,
    /// How many layers the image has: they share the memory for tails.
    pub(crate) layers: usize,
}

impl Site {
    /// Bytes read at the end of each blob.
    pub(crate) fn tail_bytes(&self) -> u64 {
        (ALL_TAILS_BYTES / self.layers.max(1) as u64).clamp(*TAIL_BYTES.start(), *TAIL_BYTES.end())
    }

    /// Where the frame table of a blob is, made or not.
    pub(crate) fn frames_path(&self, blob: &penstock_blob::Digest) -> PathBuf {
        frames::path(&self.maps_dir, blob)
    }
}

/// A layer whose index can be read.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    pub(crate) body: Arc<Body>,
    /// The archive that its index points into besides, of a TurboOCI layer.
    pub(crate) archive: Option<Arc<Body>>,
    pub(crate) trailer: Trailer,
    pub(crate) window: Arc<Window>,
}

impl Opened {
    /// What its index points into, in the order of their numbers.
    pub(crate) fn bodies(&self) -> impl Iterator<Item = &Arc<Body>> {
        std::iter::once(&self.body).chain(&self.archive)
    }

    /// Whether its index can be read without asking the source.
    pub(crate) fn is_at_hand(&self) -> bool {
        let index = ByteRange::at(self.trailer.index_offset, self.trailer.index_bytes());
        index.map_or(true, |index| self.body.is_held(&self.window, index))
    }
}

/// Opens a layer; if its bytes make no sense, has them fetched anew once. `window` may hold parts of it already. `file` is where the layer file is
/// in the blob when that is known, else it is looked for.
pub(crate) async fn open(site: &Site, window: Window, file: Option<ByteRange>) -> Result<Opened, LayerError> {
    let window = Arc::new(window);
    let opened = match open_once(site, &window, file).await {
        Err(error) if error.is_content() => {
            let blob = window.blob().digest;
            tracing::warn!(%blob, %error, "a layer makes no sense; fetching what was read of it again");
            window.reject();
            open_once(site, &window, file).await
        }
        result => result,
    };
    let (body, trailer) = opened?;
    window.forget_head();
    Ok(Opened { body, archive: None, trailer, window })
}

async fn open_once(
    site: &Site,
    window: &Arc<Window>,
    file: Option<ByteRange>,
) -> Result<(Arc<Body>, Trailer), LayerError> {
    let body = match (site.maps.frames(*window.blob()).await?, file) {
        (Some(frames), _) => Body::framed(frames),
        (None, Some(file)) => body_at(site, window, file).await?,
        (None, None) => find_body(site, window).await?,
    };
    let trailer = read_trailer(&body, window).await?;
    Ok((Arc::new(body), trailer))
}

/// Runs file work on the blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, TableError> + Send + 'static,
) -> Result<T, TableError> {
    let failed = |error| TableError::Io { path: path.to_owned(), error: std::io::Error::other(error) };
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

/// The layer file at a place that is known.
async fn body_at(site: &Site, window: &Arc<Window>, file: ByteRange) -> Result<Body, LayerError> {
    window.blob().check(file)?;
    window.load(file, site.tail_bytes()).await?;
    let magic = ByteRange::new(file.start(), file.end().min(file.start() + lsmt::MAGIC.len() as u64));
    let magic = window.bytes(magic.map_err(|_| LayerError::Empty)?, Purpose::Demand).await?;
    match () {
        () if magic.starts_with(&zfile::MAGIC) => find_frames(site, window, file).await,
        () if magic.starts_with(&lsmt::MAGIC) => {
            Ok(Body::plain(LayerRecord { blob: *window.blob(), file, zfile: false }))
        }
        () => Err(LayerError::NotALayer(What::Unknown)),
    }
}

async fn find_body(site: &Site, window: &Arc<Window>) -> Result<Body, LayerError> {
    let blob = *window.blob();
    let all = blob.all().ok_or(LayerError::Empty)?;
    window.load(all, site.tail_bytes()).await?;
    let head = window.head().ok_or(LayerError::Empty)?;
    let file = match tar::unwrap(&head, blob.size_bytes, recognise::is_bare_layer)? {
        tar::Wrapper::Payload(range) => range,
        tar::Wrapper::None | tar::Wrapper::Ordinary => all,
    };
    let content = &head[in_memory(file.start())..];
    if content.starts_with(&zfile::MAGIC) {
        return find_frames(site, window, file).await;
    }
    if content.starts_with(&lsmt::MAGIC) {
        return Ok(Body::plain(LayerRecord { blob, file, zfile: false }));
    }
    Err(LayerError::NotALayer(match recognise::content(&head, blob.size_bytes) {
        Content::Other(what) => what,
        Content::Disk(_) | Content::Qcow2 => What::DiskAmongLayers,
        Content::OverlayBd => What::Unknown,
    }))
}

async fn find_frames(site: &Site, window: &Arc<Window>, file: ByteRange) -> Result<Body, LayerError> {
    let mut header = read_header(window, file, 0).await?;
    if !header.is_truth() {
        header = read_header(window, file, file.len().saturating_sub(zfile::HEADER_BYTES)).await?;
        header.check_sealed()?;
    }
    header.check_layout(file.len())?;
    let shape = Shape {
        blob: *window.blob(),
        file,
        data_start: file.start() + header.data_offset(),
        frames: header.frames,
        original_bytes: header.original_bytes,
        format: header.format,
    };
    let begun = filling::begin(site, window, &header, shape).await?;
    let frames = site.maps.share(begun);
    if !shape.format.crc {
        // Nothing would notice a wrong place: such frames are read by a jump table that was checked as a whole.
        frames.persisted().await?;
    }
    Ok(Body::framed(frames))
}

async fn read_header(window: &Window, file: ByteRange, offset: u64) -> Result<Header, LayerError> {
    let start = file.start() + offset;
    let range = ByteRange::at(start, zfile::HEADER_BYTES).map_err(|_| LayerError::Empty)?;
    if !file.contains(range) {
        return Err(LayerError::ZFile(HeaderError::Magic));
    }
    let bytes = window.bytes(range, Purpose::Demand).await?;
    let block = bytes.first_chunk().ok_or(HeaderError::Magic)?;
    Ok(Header::parse(block)?)
}

async fn read_trailer(body: &Body, window: &Window) -> Result<Trailer, LayerError> {
    let len = body.len();
    let short = || LayerError::Lsmt(LsmtError::Short(len));
    let at = len.checked_sub(lsmt::HEADER_BYTES).filter(|&at| at >= lsmt::HEADER_BYTES).ok_or_else(short)?;
    let header = ByteRange::at(0, lsmt::HEADER_BYTES).map_err(|_| short())?;
    let trailer = ByteRange::at(at, lsmt::HEADER_BYTES).map_err(|_| short())?;
    let (header, trailer) =
        futures_util::future::try_join(body.read(window, header), body.read(window, trailer)).await?;
    lsmt::check_header(&header)?;
    Ok(lsmt::parse_trailer(&trailer, len)?)
}
