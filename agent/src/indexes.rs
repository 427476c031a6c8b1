//! Indexes of attached images: looked for at an attach, remembered on disk, and given to the source that verifies by them.
//!
//! `<state_dir>/indexes/<hex digest of an image's manifest>.index` is what was found: a line with the digest of what follows,
//! then the index's manifest as the registry gave it, or nothing when the image has none.

mod file;
mod look;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use penstock_blob::{Blob, Digest};
use penstock_cache::{Cache, Whole};
use penstock_fetcher::{Fetcher, Reference};
use penstock_index::{Artifact, Event, Listed, Outcome, Used, Verified};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    events::{Events, Kind},
    state::record::Record,
};
use file::Remembered;
use look::Found;

/// What finds indexes and remembers them.
#[derive(Debug)]
pub(crate) struct Indexes {
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) verified: Arc<Verified>,
    /// Where they are remembered.
    pub(crate) dir: PathBuf,
    /// Whether no image without one is attached.
    pub(crate) require: bool,
    /// Longest time that looking for one may take.
    pub(crate) deadline: Duration,
    pub(crate) events: Events,
}

/// Where to look for an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// On this node only: the image was attached before.
    Recorded,
    /// In the registry, if none is remembered.
    Registry {
        /// Whether the image is refused without one.
        require: bool,
    },
    /// As [`Ask::Registry`], but the image was pulled: when it had none then, it has none.
    Pulled {
        /// Whether the image is refused without one.
        require: bool,
    },
}

/// An image whose index is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Image<'a> {
    /// Pinned to the manifest.
    pub(crate) reference: &'a Reference,
    pub(crate) manifest: Digest,
    pub(crate) blobs: &'a [Blob],
}

/// An image is not verified by an index although that was asked for.
#[derive(Debug, thiserror::Error)]
#[error(
    "{reference} is not attached, because only images with an index are and {reason}; run `penstock index {reference}`, or attach without --require-verified and verify.require"
)]
pub(crate) struct Unverified {
    reference: String,
    reason: String,
    /// Whether another try may find one: the registry did not say that there is none.
    pub(crate) is_transient: bool,
}

/// What an attached image has of its index. Dropping it lets that go.
#[derive(Debug)]
pub(crate) struct Proof {
    used: Used,
    lists: Served,
    /// Why there is none, when there is more to say than that.
    note: Option<String>,
}

/// Lists that the fetcher knows where to find.
#[derive(Debug)]
struct Served {
    fetcher: Arc<Fetcher>,
    reference: Reference,
    lists: Vec<Digest>,
}

impl Served {
    fn new(fetcher: &Arc<Fetcher>, reference: &Reference, lists: &[Listed]) -> Self {
        lists.iter().for_each(|listed| fetcher.serve(listed.list, reference));
        let lists = lists.iter().map(|listed| listed.list.digest).collect();
        Self { fetcher: Arc::clone(fetcher), reference: reference.clone(), lists }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.lists.iter().for_each(|list| self.fetcher.forget(list, &self.reference));
    }
}

impl Proof {
    /// The image is detached: what was kept for the next start is of no use.
    pub(crate) fn discard(&self) {
        self.used.discard();
    }

    /// Why the image has no index, when there is more to say.
    pub(crate) fn note(&self) -> Option<&str> {
        self.note.as_deref().filter(|_| self.lists.lists.is_empty())
    }
}

/// What is known of an image, and where it is from.
struct Known {
    outcome: Outcome,
    /// What is to be remembered; `None` when it is already, or is not worth it.
    remember: Option<Remembered>,
    note: Option<String>,
    /// Whether looking for one failed, so that there may be one.
    is_unknown: bool,
}

impl Indexes {
    /// Finds the index of an image and puts it to use. Until this ends, reads of the image's blobs wait; drop it to let them go on.
    ///
    /// # Errors
    /// [`Unverified`] when an index is required and there is none that can be used.
    pub(crate) async fn settle(&self, image: Image<'_>, ask: Ask) -> Result<Proof, Unverified> {
        let expected = self.verified.expect(image.blobs);
        let require = matches!(ask, Ask::Registry { require: true } | Ask::Pulled { require: true });
        let Known { outcome, remember, mut note, is_unknown } = self.known(image, ask).await;
        let lists = if let Outcome::Index(lists) = &outcome { lists.as_slice() } else { &[] };
        let mut lists = Served::new(&self.fetcher, image.reference, lists);
        let settled = match expected.settle(outcome) {
            Ok(settled) => settled,
            Err(conflict) => {
                note = Some(conflict.to_string());
                self.refused(image, &conflict.to_string());
                lists = Served::new(&self.fetcher, image.reference, &[]);
                // Without a list there is nothing to contradict.
                match self.verified.expect(image.blobs).settle(Outcome::None) {
                    Ok(settled) => settled,
                    Err(conflict) => return Err(unverified(image, conflict.to_string(), false)),
                }
            }
        };
        let (used, fresh) = settled;
        let proof = Proof { used, lists, note };
        if require && proof.lists.lists.is_empty() && image.blobs.iter().any(|blob| blob.size_bytes > 0) {
            let reason = proof.note.clone().unwrap_or_else(|| "it has none".to_owned());
            let text = format!("{} has no index that can be used ({reason}) and is not attached", image.reference);
            self.events.record(Kind::IndexMissing, &text, &[]);
            return Err(unverified(image, reason, is_unknown));
        }
        if ask != Ask::Recorded {
            self.audit(&fresh).await.map_err(|error| unverified(image, error.to_string(), true))?;
        }
        if let Some(remembered) = remember {
            self.remember(image, remembered).await;
        }
        Ok(proof)
    }

    /// What is remembered or, if that is asked for or unreadable, what the registry says.
    async fn known(&self, image: Image<'_>, ask: Ask) -> Known {
        let path = file::path(&self.dir, &image.manifest);
        let read = tokio::task::spawn_blocking(move || file::read(&path)).await;
        let read = read.unwrap_or_else(|error| Err(error.to_string()));
        let plain = |outcome| Known { outcome, remember: None, note: None, is_unknown: false };
        let unreadable = match read {
            Ok(Some(Remembered::Index(bytes))) => match lists(&bytes, image) {
                Ok(lists) => return plain(Outcome::Index(lists)),
                Err(reason) => Some(reason),
            },
            Ok(Some(Remembered::None)) if !matches!(ask, Ask::Registry { .. }) => return plain(Outcome::None),
            Ok(None) if ask == Ask::Recorded => return plain(Outcome::None),
            Ok(_) => None,
            Err(reason) => Some(reason),
        };
        match self.look(image).await {
            Found::Index(bytes, lists) => {
                Known { remember: Some(Remembered::Index(bytes)), ..plain(Outcome::Index(lists)) }
            }
            Found::None => Known { remember: Some(Remembered::None), ..plain(Outcome::None) },
            Found::Refused(reason) => {
                self.refused(image, &reason);
                Known { remember: Some(Remembered::None), note: Some(reason), ..plain(Outcome::None) }
            }
            Found::Failed(reason) => {
                let note = Some(format!("looking for one failed: {reason}"));
                match unreadable {
                    // There was something: without it, what is fetched is not passed on.
                    Some(damage) => {
                        let outcome = Outcome::Unreadable(format!("{damage}; {reason}"));
                        Known { outcome, remember: None, note, is_unknown: true }
                    }
                    // Nor is it known that there is none: who attaches it next looks again.
                    None => Known { outcome: Outcome::None, remember: None, note, is_unknown: true },
                }
            }
        }
    }

    fn refused(&self, image: Image<'_>, reason: &str) {
        let text = format!("the index of {} is not used: {reason}", image.reference);
        self.events.record(Kind::IndexRefused, &text, &[]);
    }

    /// Compares what the cache had of these blobs before they had a list. A blob whose own digest was verified needs no more.
    async fn audit(&self, fresh: &[Blob]) -> Result<(), penstock_blob::ReadError> {
        for blob in fresh {
            let usage = self.cache.blob(&blob.digest);
            if usage.is_none_or(|usage| usage.present_bytes == 0 || usage.whole == Whole::Verified) {
                continue;
            }
            let audit = self.verified.audit(&*self.cache, *blob).await?;
            if audit.wrong_bytes > 0 {
                let text = format!(
                    "{} bytes of blob {} in the cache are not what its index says; they were dropped",
                    audit.wrong_bytes, blob.digest
                );
                self.events.record(Kind::CacheCorrupt, &text, &[]);
            }
        }
        Ok(())
    }

    async fn remember(&self, image: Image<'_>, remembered: Remembered) {
        let path = file::path(&self.dir, &image.manifest);
        let written = tokio::task::spawn_blocking(move || file::write(&path, &remembered)).await;
        let written = written.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        if let Err(error) = written {
            let reference = image.reference;
            tracing::warn!(%reference, %error, "what is known of an image's index cannot be remembered; after a restart it is looked for again");
        }
    }

    /// Forgets an image that nobody has attached any more.
    pub(crate) async fn forget(&self, manifest: Digest) {
        let path = file::path(&self.dir, &manifest);
        // An error leaves a file that the next start removes.
        let _ = tokio::task::spawn_blocking(move || std::fs::remove_file(path)).await;
    }

    /// Removes what neither a record nor an image that was `pulled` needs, and puts what records need to use, so that no blob is read without its
    /// list while the first of the images that share it is restored. Hold the answer until all are.
    pub(crate) async fn restore(&self, records: &[Record], pulled: &[Digest]) -> Vec<Proof> {
        let (mut proofs, mut kept) = (Vec::new(), self.kept(pulled).await);
        for record in records {
            let reference = record.reference.with_digest(record.manifest);
            let blobs: Vec<Blob> = record.layers.iter().map(|layer| layer.blob()).collect();
            let image = Image { reference: &reference, manifest: record.manifest, blobs: &blobs };
            let path = file::path(&self.dir, &record.manifest);
            kept.insert(path.clone());
            let read = tokio::task::spawn_blocking(move || file::read(&path)).await;
            let Ok(Ok(Some(Remembered::Index(bytes)))) = read else { continue };
            let Ok(lists) = lists(&bytes, image) else { continue };
            kept.extend(lists.iter().map(|listed| list_path(&self.dir, listed)));
            let served = Served::new(&self.fetcher, &reference, &lists);
            // Two records that contradict each other: the second one's own restore says so.
            if let Ok((used, _)) = self.verified.expect(&blobs).settle(Outcome::Index(lists)) {
                proofs.push(Proof { used, lists: served, note: None });
            }
        }
        let dir = self.dir.clone();
        let swept = tokio::task::spawn_blocking(move || file::sweep(&dir, &kept)).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(%error, "old indexes cannot be removed");
        }
        proofs
    }

    /// The files of images that were pulled and that no device shows yet.
    async fn kept(&self, pulled: &[Digest]) -> HashSet<PathBuf> {
        let (dir, pulled) = (self.dir.clone(), pulled.to_vec());
        let list = move || {
            let mut kept = HashSet::new();
            for path in pulled.iter().map(|manifest| file::path(&dir, manifest)) {
                if let Ok(Some(Remembered::Index(bytes))) = file::read(&path)
                    && let Ok(artifact) = Artifact::parse(&bytes)
                {
                    kept.extend(artifact.lists.iter().map(|listed| list_path(&dir, listed)));
                }
                kept.insert(path);
            }
            kept
        };
        tokio::task::spawn_blocking(list).await.unwrap_or_default()
    }
}

/// Where the list of a blob is kept.
fn list_path(dir: &Path, listed: &Listed) -> PathBuf {
    dir.join(format!("{}.list", listed.root.to_hex()))
}

/// That an image is not verified, and why.
pub(crate) fn unverified(image: Image<'_>, reason: String, is_transient: bool) -> Unverified {
    Unverified { reference: image.reference.to_string(), reason, is_transient }
}

/// The lists of an index's manifest, when it is one of this image.
fn lists(manifest: &[u8], image: Image<'_>) -> Result<Vec<Listed>, String> {
    let artifact = Artifact::parse(manifest).map_err(|error| error.to_string())?;
    artifact.lists_of(image.manifest, image.blobs).map(<[Listed]>::to_vec).map_err(|error| error.to_string())
}

/// What the verifying source has to say goes into the agent's events.
pub(crate) async fn pass_on(mut events: broadcast::Receiver<Event>, to: Events) {
    loop {
        match events.recv().await {
            Ok(event) => to.record(Kind::IndexWrongBytes, &event.to_string(), &[]),
            // Older ones are of the same kind, and counted in a metric.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}
