//! The source that verifies, and which blobs have which list.

use std::{
    collections::{HashMap, hash_map},
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::RwLock;
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Giver, Located, Purpose, ReadError, ReadFuture};
use prometheus_client::registry::Registry;
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};

use crate::{
    list::List,
    metrics::Metrics,
    shape::{Hash, Listed, Root, hash},
};

/// Times that chunks are read anew when they are wrong: more than a node has mirrors of one registry. The deadline may end it
/// sooner.
const TRIES: u32 = 8;
/// Events kept for a receiver that is slow; older ones are counted as lost.
const EVENTS: usize = 64;

/// How a [`Verified`] is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory of the lists' files: exists, and holds nothing else with a name that ends in `.list`.
    pub dir: PathBuf,
    /// No further try is begun after this time when bytes are wrong.
    pub deadline: Duration,
}

/// Something worth telling an operator, once per change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Event {
    /// Bytes of a blob are not what its index says. Said again only after right ones came.
    #[error(
        "bytes {range} of blob {blob} are not those of its index; they were thrown away and are read from elsewhere"
    )]
    WrongBytes {
        /// The blob.
        blob: Digest,
        /// The chunks that are wrong.
        range: ByteRange,
    },
}

/// What is known of the indexes of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It has none.
    None,
    /// It has one, with these lists.
    Index(Vec<Listed>),
    /// It has or had one that cannot be read now, for this reason: what is not on this node yet is not passed on.
    Unreadable(String),
}

/// Two indexes contradict each other: one of them is not of this blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the index says {said} of blob {blob}, and the index of an image that is attached says {known}: one of them is wrong"
)]
pub struct Conflict {
    /// The blob.
    pub blob: Digest,
    /// The root that is in use.
    pub known: Root,
    /// The root that was refused.
    pub said: Root,
}

/// What is known of one blob.
#[derive(Debug, Clone)]
enum Standing {
    /// Somebody is finding out; dropped senders mean that nobody is any more.
    Pending(watch::Receiver<()>),
    /// It has no list.
    Unlisted,
    Listed(Arc<List>),
    Unreadable(Arc<str>),
}

#[derive(Debug)]
struct Slot {
    /// How many [`Expected`] and [`Used`] name it.
    users: u32,
    standing: Standing,
}

/// A source whose bytes are verified wherever there is a list.
#[derive(Debug)]
pub struct Verified {
    below: Arc<dyn BlobSource>,
    config: Config,
    table: RwLock<HashMap<Digest, Slot>>,
    metrics: Metrics,
    events: broadcast::Sender<Event>,
}

impl Verified {
    /// A source over `below` without any list yet, which counts under `metrics`'s prefix.
    pub fn new(below: Arc<dyn BlobSource>, config: Config, metrics: &mut Registry) -> Arc<Self> {
        let (events, _) = broadcast::channel(EVENTS);
        Arc::new(Self { below, config, table: RwLock::default(), metrics: Metrics::new(metrics), events })
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Somebody finds out whether these blobs have lists: until [`Expected::settle`] their reads wait, except of blobs that are
    /// known already.
    pub fn expect(self: &Arc<Self>, blobs: &[Blob]) -> Expected {
        let (settled, pending) = watch::channel(());
        let mut digests: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
        digests.sort_unstable();
        digests.dedup();
        let mut table = self.table.write();
        for digest in &digests {
            let slot = table.entry(*digest).or_insert(Slot { users: 0, standing: Standing::Pending(pending.clone()) });
            slot.users += 1;
        }
        drop(table);
        Expected { used: Used { verified: self.clone(), blobs: digests, discarded: AtomicBool::new(false) }, settled }
    }

    /// The list in use for a blob.
    #[must_use]
    pub fn listed(&self, blob: &Digest) -> Option<Listed> {
        match &self.table.read().get(blob)?.standing {
            Standing::Listed(list) => Some(list.listed),
            Standing::Pending(_) | Standing::Unlisted | Standing::Unreadable(_) => None,
        }
    }

    fn standing(&self, blob: &Digest) -> Standing {
        self.table.read().get(blob).map_or(Standing::Unlisted, |slot| slot.standing.clone())
    }

    async fn serve(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> Result<Bytes, ReadError> {
        let mut early = None;
        loop {
            match self.standing(&blob.digest) {
                Standing::Listed(list) => return self.checked(&list, (range, purpose), early).await,
                Standing::Unlisted => {
                    let bytes = match early.take() {
                        Some(bytes) => bytes,
                        None => self.below.read(blob, range, purpose).await?,
                    };
                    // A list may have come while these bytes were on their way.
                    if !matches!(self.standing(&blob.digest), Standing::Listed(_)) {
                        return Ok(bytes);
                    }
                    early = Some(bytes);
                }
                Standing::Unreadable(reason) => {
                    let reason = format!(
                        "the index of its image cannot be read ({reason}), and what is fetched must be verified"
                    );
                    let endpoint = "the source of its index".to_owned();
                    return Err(ReadError::Unavailable { blob: blob.digest, endpoint, reason });
                }
                // The bytes are on their way while somebody finds out what to compare them with.
                Standing::Pending(mut pending) if early.is_none() => {
                    let (bytes, _) = tokio::join!(self.below.read(blob, range, purpose), settled(&mut pending));
                    early = Some(bytes?);
                    self.give_up_on(&blob.digest, &pending);
                }
                Standing::Pending(mut pending) => {
                    settled(&mut pending).await;
                    self.give_up_on(&blob.digest, &pending);
                }
            }
        }
    }

    /// A slot that still waits for somebody who is gone has no list: its image was not attached.
    fn give_up_on(&self, blob: &Digest, gone: &watch::Receiver<()>) {
        if let Some(slot) = self.table.write().get_mut(blob)
            && matches!(&slot.standing, Standing::Pending(pending) if pending.same_channel(gone))
        {
            slot.standing = Standing::Unlisted;
        }
    }

    /// The bytes of `range`, verified. `early` are bytes of `range` that came before the list was known.
    async fn checked(
        &self,
        list: &Arc<List>,
        (range, purpose): (ByteRange, Purpose),
        early: Option<Bytes>,
    ) -> Result<Bytes, ReadError> {
        let blob = list.listed.blob;
        blob.check(range)?;
        let wide = list.shape.widen(range);
        let mut early = early.filter(|_| wide == range);
        let started = Instant::now();
        let mut wrong = wide;
        for _ in 0..TRIES {
            let read = async {
                match early.take() {
                    Some(bytes) => Ok(bytes),
                    None => self.below.read(blob, wide, purpose).await,
                }
            };
            let hashes = list.hashes(list.listed.grid.span(wide), &*self.below, &self.metrics);
            let (bytes, hashes) = futures_util::future::try_join(read, hashes).await?;
            let (bytes, bad) = compare(list, wide, bytes, hashes).await?;
            let Some(bad) = bad else {
                list.doubted.store(false, Ordering::Relaxed);
                self.metrics.verified_bytes.inc_by(wide.len());
                return Ok(slice(&bytes, wide, range));
            };
            wrong = bad;
            self.reject_wrong(list, bad);
            if started.elapsed() >= self.config.deadline {
                break;
            }
        }
        Err(ReadError::WrongBytes {
            blob: blob.digest,
            range: wrong,
            endpoint: "every endpoint asked".to_owned(),
            reason: format!("they are not what the image's index {} says", list.listed.root),
        })
    }

    fn reject_wrong(&self, list: &List, range: ByteRange) {
        let blob = list.listed.blob;
        self.metrics.wrong_chunks.inc();
        self.below.reject(&blob, range);
        if !list.doubted.swap(true, Ordering::Relaxed) {
            // Nobody may be listening.
            let _ = self.events.send(Event::WrongBytes { blob: blob.digest, range });
        }
    }
}

/// Waits for the end of a finding out.
async fn settled(pending: &mut watch::Receiver<()>) {
    // Its sender is dropped, never used.
    let _ = pending.changed().await;
}

/// Compares `bytes`, which are `wide`, with the hashes of their chunks: the first chunk that differs.
async fn compare(
    list: &List,
    wide: ByteRange,
    bytes: Bytes,
    hashes: Vec<Hash>,
) -> Result<(Bytes, Option<ByteRange>), ReadError> {
    let (grid, blob) = (list.listed.grid, list.listed.blob);
    let compared = tokio::task::spawn_blocking(move || {
        let first = *grid.span(wide).start();
        let mut chunks = bytes.chunks(grid.bytes() as usize).zip(&hashes);
        let is_whole = bytes.len() as u64 == wide.len();
        let bad = (first..).zip(&mut chunks).find(|(_, (chunk, wanted))| !is_whole || hash(chunk) != **wanted);
        let bad = bad.map(|(chunk, _)| grid.range(&blob, chunk).unwrap_or(wide)).or((!is_whole).then_some(wide));
        (bytes, bad)
    });
    // An error: the runtime is stopping.
    compared.await.map_err(|_| ReadError::Stopping)
}

/// The bytes `part` of `bytes`, which are the bytes `whole`.
fn slice(bytes: &Bytes, whole: ByteRange, part: ByteRange) -> Bytes {
    let index = |byte: u64| usize::try_from(byte - whole.start()).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(index(part.start())..index(part.end()))
}

impl BlobSource for Verified {
    /// Bytes that the source below has at hand are nobody's proof: of a blob that has or may have a list nothing is located.
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        match self.standing(&blob.digest) {
            Standing::Unlisted => self.below.locate(blob, range),
            Standing::Pending(_) | Standing::Listed(_) | Standing::Unreadable(_) => None,
        }
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(async move {
            blob.check(range)?;
            self.serve(blob, range, purpose).await
        })
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.below.reject(blob, range);
    }

    fn widen(&self, blob: &Blob, range: ByteRange) -> ByteRange {
        match self.standing(&blob.digest) {
            Standing::Listed(list) if list.listed.blob.check(range).is_ok() => list.shape.widen(range),
            Standing::Listed(_) => range,
            Standing::Unlisted | Standing::Pending(_) | Standing::Unreadable(_) => self.below.widen(blob, range),
        }
    }

    fn giver(&self, blob: &Blob, range: ByteRange) -> Option<Giver> {
        self.below.giver(blob, range)
    }
}

/// Somebody finds out whether some blobs have lists. Dropped, it is as if nobody had asked.
#[derive(Debug)]
#[must_use = "reads of the blobs wait until it is settled or dropped"]
pub struct Expected {
    used: Used,
    /// Its drop wakes the reads that wait.
    settled: watch::Sender<()>,
}

impl Expected {
    /// What was found out. Reads that wait go on. Also answers the blobs that have a list by this and had none before: what a
    /// cache holds of them was not verified, see [`Verified::audit`].
    ///
    /// # Errors
    /// [`Conflict`] when another list of the same blob is in use: nothing is changed then, and its blobs are let go.
    pub fn settle(self, outcome: Outcome) -> Result<(Used, Vec<Blob>), Conflict> {
        let Self { used, settled } = self;
        let lists = match &outcome {
            Outcome::Index(lists) => lists.as_slice(),
            Outcome::None | Outcome::Unreadable(_) => &[],
        };
        let mut table = used.verified.table.write();
        for listed in lists {
            if let Some(Slot { standing: Standing::Listed(list), .. }) = table.get(&listed.blob.digest)
                && list.listed.grid == listed.grid
                && list.listed.root != listed.root
            {
                let conflict = Conflict { blob: listed.blob.digest, known: list.listed.root, said: listed.root };
                drop(table);
                drop(used);
                return Err(conflict);
            }
        }
        let mut fresh = Vec::new();
        for digest in &used.blobs {
            let Some(slot) = table.get_mut(digest) else { continue };
            let list = lists.iter().find(|listed| listed.blob.digest == *digest);
            let list = list.and_then(|listed| List::new(*listed, &used.verified.config.dir));
            match (&slot.standing, list, &outcome) {
                (Standing::Listed(_), ..) => {}
                (_, Some(list), _) => {
                    fresh.push(list.listed.blob);
                    slot.standing = Standing::Listed(Arc::new(list));
                    used.verified.metrics.listed_blobs.inc();
                }
                (Standing::Pending(_), None, Outcome::Unreadable(reason)) => {
                    slot.standing = Standing::Unreadable(reason.as_str().into());
                }
                (Standing::Pending(_), None, _) => slot.standing = Standing::Unlisted,
                (Standing::Unlisted | Standing::Unreadable(_), None, _) => {}
            }
        }
        drop(table);
        drop(settled);
        Ok((used, fresh))
    }
}

/// Blobs of an image that is attached. Dropping it lets go of the lists that nobody else uses; their files stay, for the next
/// start, unless [`Used::discard`] was called.
#[derive(Debug)]
pub struct Used {
    verified: Arc<Verified>,
    blobs: Vec<Digest>,
    discarded: AtomicBool,
}

impl Used {
    /// The image is detached: once this is dropped, files that no other image uses are of no use.
    pub fn discard(&self) {
        self.discarded.store(true, Ordering::Relaxed);
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        let mut table = self.verified.table.write();
        for digest in self.blobs.drain(..) {
            let hash_map::Entry::Occupied(mut entry) = table.entry(digest) else { continue };
            entry.get_mut().users -= 1;
            if entry.get().users > 0 {
                continue;
            }
            if let Standing::Listed(list) = entry.remove().standing {
                self.verified.metrics.listed_blobs.dec();
                if *self.discarded.get_mut() {
                    list.remove();
                }
            }
        }
    }
}

/// What an audit found in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Audit {
    /// Bytes that are what the list says.
    pub right_bytes: u64,
    /// Bytes that are not, and were rejected.
    pub wrong_bytes: u64,
}

impl Verified {
    /// Compares what `cache` has of `blob` with its list: bytes that were stored before there was one. Chunks that differ are
    /// rejected, so that they are fetched again. A blob without a list is not looked at.
    ///
    /// # Errors
    /// [`ReadError`] when the list cannot be read, or the cache's file.
    pub async fn audit(&self, cache: &dyn BlobSource, blob: Blob) -> Result<Audit, ReadError> {
        let mut audit = Audit::default();
        let Standing::Listed(list) = self.standing(&blob.digest) else { return Ok(audit) };
        for nth in 0..list.shape.chunks {
            let grid = list.listed.grid;
            let Some(range) = grid.range(&blob, nth) else { break };
            let Some(located) = cache.locate(&blob, range) else { continue };
            let hashes = list.hashes(nth..=nth, &*self.below, &self.metrics).await?;
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; usize::try_from(located.len()).map_err(io::Error::other)?];
                located.read_at(&mut bytes, 0).map(|()| Bytes::from(bytes))
            });
            let storage = |reason: String| ReadError::Storage { blob: blob.digest, reason };
            let bytes = read.await.map_err(|_| ReadError::Stopping)?.map_err(|error| storage(error.to_string()))?;
            match compare(&list, range, bytes, hashes).await?.1 {
                None => audit.right_bytes += range.len(),
                Some(_) => {
                    audit.wrong_bytes += range.len();
                    cache.reject(&blob, range);
                }
            }
        }
        Ok(audit)
    }
}

#[cfg(test)]
mod tests;
