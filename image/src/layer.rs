//! Opening one layer: which bytes of its blob are the layer file, how it is compressed, where its index is.
//!
//! Reads the head and the tail of the blob, and once, in order, the jump table. Everything goes through the source, so
//! a cache below keeps it; the frame table made from it stays in the maps directory and makes the next open read two
//! frames.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use penstock_blob::{Blob, BlobSource, ByteRange, Purpose, ReadError};
use tokio::sync::mpsc;

use crate::{
    body::Body,
    crc,
    frames::{Frames, FramesWriter, Shape},
    lsmt::{self, LsmtError, Trailer},
    map::LayerRecord,
    pages::TableError,
    recognise::{self, Content, What},
    scratch::StepError,
    tar::{self, TarError},
    units::in_memory,
    zfile::{self, Header, HeaderError, MAX_STORED_BYTES},
};

/// Bytes read at the start of a blob: tar headers, ZFile header and the layer's first frames.
const HEAD_BYTES: u64 = 16 << 10;
/// Most bytes read at the end of a blob: trailer, and of a small layer the whole jump table and index.
const TAIL_BYTES: u64 = 64 << 10;
/// Most bytes of tails kept for all layers of an image until its map is built.
const ALL_TAILS_BYTES: u64 = 4 << 20;
/// Bytes of the jump table per read: a multiple of an entry, a chunk of the default size.
const TABLE_PIECE_BYTES: u64 = 256 << 10;
/// Reads of the jump table under way at once: hides the registry's latency at the cost of 1 MiB.
const TABLE_READS: usize = 4;
/// Batches on their way to the thread that writes a table.
pub(crate) const BATCHES: usize = 4;

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
    /// How many layers the image has: they share the memory for tails.
    pub(crate) layers: usize,
}

/// A blob, and its head and tail once read.
#[derive(Debug)]
pub(crate) struct Window {
    source: Arc<dyn BlobSource>,
    blob: Blob,
    head: Bytes,
    tail: Bytes,
    /// What was read, to be rejected if it makes no sense.
    touched: Mutex<Vec<ByteRange>>,
}

impl Window {
    pub(crate) fn new(source: Arc<dyn BlobSource>, blob: Blob) -> Self {
        Self { source, blob, head: Bytes::new(), tail: Bytes::new(), touched: Mutex::new(Vec::new()) }
    }

    /// Reads the head and the tail, in one read if they meet.
    async fn load(&mut self, tail_bytes: u64) -> Result<(), LayerError> {
        let size = self.blob.size_bytes;
        if size <= HEAD_BYTES + tail_bytes {
            self.head = self.bytes(self.blob.all().ok_or(LayerError::Empty)?).await?;
            return Ok(());
        }
        let head = ByteRange::new(0, HEAD_BYTES).map_err(|_| LayerError::Empty)?;
        let tail = ByteRange::new(size - tail_bytes, size).map_err(|_| LayerError::Empty)?;
        let (head, tail) = futures_util::future::try_join(self.bytes(head), self.bytes(tail)).await?;
        (self.head, self.tail) = (head, tail);
        Ok(())
    }

    /// Bytes of the blob: from the head or tail if they are there, else through the source.
    pub(crate) async fn bytes(&self, range: ByteRange) -> Result<Bytes, LayerError> {
        self.blob.check(range)?;
        for (start, held) in [(0, &self.head), (self.blob.size_bytes - self.tail.len() as u64, &self.tail)] {
            if range.start() >= start && range.end() <= start + held.len() as u64 {
                return Ok(held.slice(in_memory(range.start() - start)..in_memory(range.end() - start)));
            }
        }
        self.touch(range);
        let bytes = self.source.read(self.blob, range, Purpose::Demand).await?;
        if bytes.len() as u64 == range.len() {
            return Ok(bytes);
        }
        let reason = format!("{} bytes instead of {}", bytes.len(), range.len());
        Err(ReadError::WrongBytes { blob: self.blob.digest, range, endpoint: "the source".into(), reason }.into())
    }

    fn touch(&self, range: ByteRange) {
        let mut touched = self.touched.lock();
        match touched.last_mut() {
            Some(last) if last.end() >= range.start() && range.start() >= last.start() => *last = last.cover(range),
            _ => touched.push(range),
        }
    }

    /// Has the source drop everything that was read, and forgets it.
    pub(crate) fn reject(&mut self) {
        for range in self.touched.get_mut().drain(..) {
            self.source.reject(&self.blob, range);
        }
        (self.head, self.tail) = (Bytes::new(), Bytes::new());
    }

    /// Drops the head: only the tail, which holds the index of a small layer, is needed once the layer is open.
    fn keep_tail(&mut self) {
        if !self.tail.is_empty() {
            self.head = Bytes::new();
        }
    }
}

/// A layer whose index can be read.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) body: Body,
    pub(crate) trailer: Trailer,
    pub(crate) window: Window,
}

/// Opens a layer; if its bytes make no sense, has them fetched anew once.
pub(crate) async fn open(site: &Site, blob: Blob) -> Result<Opened, LayerError> {
    let mut window = Window::new(site.source.clone(), blob);
    let opened = match open_once(site, &mut window).await {
        Err(error) if error.is_content() => {
            tracing::warn!(blob = %blob.digest, %error, "a layer makes no sense; fetching what was read of it again");
            window.reject();
            open_once(site, &mut window).await
        }
        result => result,
    };
    let (body, trailer) = opened?;
    window.keep_tail();
    Ok(Opened { body, trailer, window })
}

async fn open_once(site: &Site, window: &mut Window) -> Result<(Body, Trailer), LayerError> {
    let body = match open_frames(site, window.blob).await? {
        Some(frames) => Body::framed(frames),
        None => find_body(site, window).await?,
    };
    let trailer = read_trailer(&body, window).await?;
    Ok((body, trailer))
}

async fn open_frames(site: &Site, blob: Blob) -> Result<Option<Frames>, TableError> {
    let maps_dir = site.maps_dir.clone();
    blocking(&site.maps_dir, move || Frames::open(&maps_dir, &blob)).await
}

/// Runs file work on the blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(
    path: &std::path::Path,
    work: impl FnOnce() -> Result<T, TableError> + Send + 'static,
) -> Result<T, TableError> {
    let failed = |error| TableError::Io { path: path.to_owned(), error: std::io::Error::other(error) };
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

async fn find_body(site: &Site, window: &mut Window) -> Result<Body, LayerError> {
    let tails = ALL_TAILS_BYTES / site.layers.max(1) as u64;
    window.load(tails.clamp(HEAD_BYTES, TAIL_BYTES)).await?;
    let blob = window.blob;
    let all = blob.all().ok_or(LayerError::Empty)?;
    let file = match tar::unwrap(&window.head, blob.size_bytes, recognise::is_bare_layer)? {
        tar::Wrapper::Payload(range) => range,
        tar::Wrapper::None | tar::Wrapper::Ordinary => all,
    };
    let content = &window.head[in_memory(file.start())..];
    if content.starts_with(&zfile::MAGIC) {
        return find_frames(site, window, file).await;
    }
    if content.starts_with(&lsmt::MAGIC) {
        return Ok(Body::plain(LayerRecord { blob, file, zfile: false }));
    }
    Err(LayerError::NotALayer(match recognise::content(&window.head, blob.size_bytes) {
        Content::Other(what) => what,
        Content::Disk(_) => What::DiskAmongLayers,
        Content::OverlayBd => What::Unknown,
    }))
}

async fn find_frames(site: &Site, window: &Window, file: ByteRange) -> Result<Body, LayerError> {
    let mut header = read_header(window, file, 0).await?;
    if !header.is_truth() {
        header = read_header(window, file, file.len().saturating_sub(zfile::HEADER_BYTES)).await?;
        header.check_sealed()?;
    }
    header.check_layout(file.len())?;
    let shape = Shape {
        blob: window.blob,
        file,
        data_start: file.start() + header.data_offset(),
        frames: header.frames,
        original_bytes: header.original_bytes,
        format: header.format,
    };
    let (batches, received) = mpsc::channel(BATCHES);
    let maps_dir = site.maps_dir.clone();
    let writing = blocking(&site.maps_dir, move || write_frames(&maps_dir, shape, received));
    let (sent, written) = futures_util::future::join(send_lengths(window, &header, &shape, batches), writing).await;
    sent?;
    if !written? {
        return Err(LayerError::Empty);
    }
    let frames = open_frames(site, window.blob).await?;
    let lost = || std::io::Error::new(std::io::ErrorKind::NotFound, "a frame table vanished while it was opened");
    let frames = frames.ok_or_else(|| TableError::Io { path: site.maps_dir.clone(), error: lost() })?;
    Ok(Body::framed(frames))
}

async fn read_header(window: &Window, file: ByteRange, offset: u64) -> Result<Header, LayerError> {
    let start = file.start() + offset;
    let range = ByteRange::at(start, zfile::HEADER_BYTES).map_err(|_| LayerError::Empty)?;
    if !file.contains(range) {
        return Err(LayerError::ZFile(HeaderError::Magic));
    }
    let bytes = window.bytes(range).await?;
    let block = bytes.first_chunk().ok_or(HeaderError::Magic)?;
    Ok(Header::parse(block)?)
}

/// A batch for a table's writer; `None` says that all were sent.
pub(crate) type Batch<T> = Option<Vec<T>>;

/// Reads the jump table once, checks it, and passes the lengths on.
async fn send_lengths(
    window: &Window,
    header: &Header,
    shape: &Shape,
    batches: mpsc::Sender<Batch<u32>>,
) -> Result<(), LayerError> {
    let table = header.frames * 4;
    let start = shape.file.start() + header.index_offset;
    let pieces = (0..table.div_ceil(TABLE_PIECE_BYTES)).filter_map(|i| {
        let from = i * TABLE_PIECE_BYTES;
        ByteRange::new(start + from, start + (from + TABLE_PIECE_BYTES).min(table)).ok()
    });
    let mut reads = stream::iter(pieces.map(|piece| window.bytes(piece))).buffered(TABLE_READS);
    let (mut crc, mut nth, mut end) = (0, 0, header.data_offset());
    while let Some(bytes) = reads.try_next().await? {
        crc = crc::raw(crc, &bytes);
        let mut lengths = Vec::with_capacity(bytes.len() / 4);
        for entry in bytes.as_chunks::<4>().0 {
            let stored_bytes = u32::from_le_bytes(*entry);
            if !(header.format.min_stored_bytes()..=MAX_STORED_BYTES).contains(&stored_bytes) {
                return Err(LayerError::FrameLength { nth, stored_bytes });
            }
            nth += 1;
            end += u64::from(stored_bytes);
            lengths.push(stored_bytes);
        }
        if batches.send(Some(lengths)).await.is_err() {
            // The writer is gone: its own error says why.
            return Ok(());
        }
    }
    if header.has_index_crc() && crc != header.index_crc {
        return Err(LayerError::JumpTableCrc { expected: header.index_crc, computed: crc });
    }
    if end != header.index_offset {
        return Err(LayerError::FramesEnd { end, index_offset: header.index_offset });
    }
    // As above.
    let _ = batches.send(None).await;
    Ok(())
}

/// Writes the table from the lengths as they come: whether they came to their end.
fn write_frames(
    maps_dir: &std::path::Path,
    shape: Shape,
    mut batches: mpsc::Receiver<Batch<u32>>,
) -> Result<bool, TableError> {
    let mut writer = FramesWriter::new(maps_dir, shape)?;
    while let Some(batch) = batches.blocking_recv() {
        let Some(lengths) = batch else { return writer.finish().map(|()| true) };
        lengths.into_iter().try_for_each(|length| writer.push(length))?;
    }
    Ok(false)
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
