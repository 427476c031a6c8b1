//! Making the frame table of a layer: the parts that opening needs first, the rest in the background.
//!
//! The end of the jump table is in the tail of the blob, its start beside the last frames: both are at hand once the layer is open. What is
//! between is read in the background, from the side that is nearer to what readers wait for, and the finished table gets its name. Bytes go through the
//! source, so a cache below keeps them: work that is given up half-way is not fetched again.

use std::{path::Path, sync::Arc};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use penstock_blob::{Blob, ByteRange, Digest, Purpose, ReadError};

use crate::{
    draft::Draft,
    frames::{self, FRAMES_PER_PAGE, Frames, Progress, Shape},
    layer::{LEAST_TAIL_BYTES, LayerError, Site, blocking},
    making::Work,
    pages::TableError,
    sums::{Made, Side, Sums},
    window::{Window, in_last_chunk},
    zfile::Header,
};

/// Pages of the table made of one read of the jump table: 255 KiB of it, about a chunk of the default size.
const PIECE_PAGES: u32 = 64;
/// Reads of the jump table under way at once: hides the registry's latency at the cost of 1 MiB.
const READS: usize = 4;
/// Bytes of the jump table from its start on that are read beside the last frames: a page of the table, by which the first frames are found.
const FIRST_PAGE_BYTES: u64 = 4 * FRAMES_PER_PAGE;

/// Opens the table of a ZFile whose header was read and checked: what is at hand is made now, the rest in the background.
pub(crate) async fn begin(
    site: &Site,
    window: &Arc<Window>,
    header: &Header,
    shape: Shape,
) -> Result<Frames, LayerError> {
    let sums = Sums::new(shape, header, frames::identity(&shape.blob.digest));
    let table_start = shape.file.start() + header.index_offset;
    let around = ByteRange::new(
        table_start.saturating_sub(site.tail_bytes()).max(shape.data_start),
        table_start + FIRST_PAGE_BYTES.min(4 * header.frames),
    );
    if let Ok(around) = around {
        window.load_more(in_last_chunk(around, LEAST_TAIL_BYTES + FIRST_PAGE_BYTES)).await?;
    }
    let (begun, mut sums) = (sums.clone(), sums);
    let mut made = Vec::new();
    for side in [Side::Back, Side::Front] {
        while let Some(bytes) = sums.next(side, 0, 1).and_then(|next| window.held(next)) {
            made.push(sums.take(side, &bytes)?);
        }
    }
    if sums.is_complete() {
        sums.finish()?;
    }
    let path = site.frames_path(&shape.blob.digest);
    let draft = blocking(&site.maps_dir, move || draft(&path, &shape, made)).await?;
    let table = draft.table(shape.pages().saturating_add(1))?;
    let progress = Arc::new(Progress::new(sums.reached()));
    let filling = Filling {
        begun,
        sums,
        window: Arc::clone(window),
        draft,
        progress: Arc::clone(&progress),
        wanted: None,
        doubted: false,
    };
    Ok(Frames::in_the_making(table, shape, progress, Work::start(filling.run())))
}

fn draft(path: &Path, shape: &Shape, made: Vec<Made>) -> Result<Arc<Draft>, TableError> {
    let draft = Draft::new(path, frames::identity(&shape.blob.digest))?;
    made.into_iter().try_for_each(|made| draft.write(made.first, &made.pages))?;
    Ok(Arc::new(draft))
}

/// The work on one table.
struct Filling {
    /// As it was before anything was added up.
    begun: Sums,
    sums: Sums,
    window: Arc<Window>,
    draft: Arc<Draft>,
    progress: Arc<Progress>,
    /// The page that a reader waits for.
    wanted: Option<u32>,
    /// It made no sense once, and is read again from nothing.
    doubted: bool,
}

impl Filling {
    async fn run(mut self) {
        while let Err(error) = self.fill().await {
            let blob = self.window.blob().digest;
            match error {
                LayerError::Fetch(error) => self.progress.making.rest(error).await,
                LayerError::Table(error) => self.progress.making.rest(storage(blob, &error)).await,
                error if self.doubted => {
                    tracing::warn!(%blob, %error, "the jump table of a layer makes no sense, also after fetching it again");
                    self.progress.making.fail(wrong(self.window.blob(), error.to_string()));
                    return self.progress.making.end();
                }
                error => {
                    tracing::warn!(%blob, %error, "the jump table of a layer makes no sense; fetching it again");
                    self.window.reject();
                    self.doubted = true;
                    self.sums = self.begun.clone();
                    // Any of it may be wrong: nobody reads by it any more until all of it was checked.
                    self.progress.set(self.begun.reached());
                }
            }
        }
        self.progress.set(self.sums.reached());
        self.persist().await;
    }

    /// Adds up what is left.
    async fn fill(&mut self) -> Result<(), LayerError> {
        while !self.sums.is_complete() {
            let ((side, purpose), from, window) = (self.heading(), self.sums.clone(), &self.window);
            let pieces = (0..).map_while(|nth: u32| from.next(side, nth.saturating_mul(PIECE_PAGES), PIECE_PAGES));
            // Collected: a stream of closures would keep the future from being `Send` for the compiler.
            let pieces: Vec<ByteRange> = pieces.collect();
            let window = Arc::clone(window);
            let reads = pieces.into_iter().map(move |piece| {
                let window = Arc::clone(&window);
                async move { window.bytes(piece, purpose).await }
            });
            let mut reads = stream::iter(reads).buffered(READS);
            while let Some(bytes) = reads.try_next().await? {
                let made = self.sums.take(side, &bytes)?;
                let draft = Arc::clone(&self.draft);
                blocking(draft.path(), {
                    let draft = Arc::clone(&draft);
                    move || draft.write(made.first, &made.pages)
                })
                .await?;
                if !self.doubted {
                    self.progress.set(self.sums.reached());
                }
                if self.heading() != (side, purpose) {
                    break;
                }
            }
        }
        self.sums.finish()
    }

    /// The side to go on from: the nearer one to what somebody waits for, and before what nobody waits for.
    fn heading(&mut self) -> (Side, Purpose) {
        if let Some(wanted) = self.progress.making.take_wanted() {
            self.wanted = u32::try_from(wanted).ok();
        }
        let (front, back) = self.sums.reached();
        self.wanted = self.wanted.filter(|wanted| (front..back).contains(wanted));
        self.wanted.map_or((Side::Front, Purpose::Ahead), |wanted| (self.sums.nearer(wanted), Purpose::Demand))
    }

    /// Gives the whole table its name. When that fails, the table serves as long as it is open.
    async fn persist(self) {
        let Self { sums, draft, progress, .. } = self;
        let path = draft.path().to_owned();
        let shape = *sums.shape();
        let persisting = blocking(&path, move || {
            // Nobody else holds it once all writes have ended.
            let Some(draft) = Arc::into_inner(draft) else { return Ok(()) };
            draft.seal(shape.pages().saturating_add(1), &mut shape.header_page())?.persist()
        });
        if let Err(error) = persisting.await {
            tracing::warn!(%error, path = %path.display(), "a frame table is not kept; it will be made again");
        }
        progress.making.end();
    }
}

/// The maps directory failed, as a reader hears of it.
pub(crate) fn storage(blob: Digest, error: &TableError) -> ReadError {
    ReadError::Storage { blob, reason: error.to_string() }
}

/// A layer makes no sense, as a reader hears of it.
pub(crate) fn wrong(blob: &Blob, reason: String) -> ReadError {
    match blob.all() {
        Some(range) => ReadError::WrongBytes { blob: blob.digest, range, endpoint: "the registry".into(), reason },
        None => ReadError::NotFound { blob: blob.digest, reason },
    }
}
