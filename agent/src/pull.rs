//! Putting an image whole into containerd's content store, on an operator's request: what the cache has is not fetched again, and what it lacks is
//! not stored in it.

mod past;

use std::{path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use futures_util::stream;
use penstock_api::{self as api, NodeError, PullMessage, PullProgress, PullStream, Pulled, PulledBlob};
use penstock_blob::{Blob, Digest, SPANS};
use penstock_fetcher::{Descriptor, Fetcher, Manifest, Platform, Reference, Served};
use penstock_snapshotter::content::{Child, Content, Materialised, Outcome, Piece, Store};
use tokio::{
    sync::{Semaphore, watch},
    time::{Interval, MissedTickBehavior},
};
use tracing::{field::Empty, info_span};

use crate::{
    attachments::Parts,
    config::Config,
    events::{Events, Kind},
    node::refusal::{not_stored, unresolved},
    traces::traced,
};
use past::Past;

/// Most pulls at once: each reads 8 MiB ahead.
const PULLS: usize = 4;
/// How often is said how far a pull is.
const TOLD_EVERY: Duration = Duration::from_millis(250);

/// What pulls are made with.
#[derive(Debug)]
pub(crate) struct Pulls {
    fetcher: Arc<Fetcher>,
    source: Arc<Past>,
    containerd: PathBuf,
    platform: Platform,
    events: Events,
    room: Arc<Semaphore>,
}

/// An image's blobs are asked for in its repository for as long as this lives.
struct Serving {
    fetcher: Arc<Fetcher>,
    reference: Reference,
    blobs: Vec<Blob>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        for blob in &self.blobs {
            self.fetcher.forget(&blob.digest, &self.reference);
        }
    }
}

type Work = Pin<Box<dyn Future<Output = Result<Pulled, NodeError>> + Send>>;

/// A pull that is under way.
struct Pulling {
    /// `None` once it has ended.
    work: Option<Work>,
    progress: watch::Receiver<PullProgress>,
    ticks: Interval,
}

impl Pulls {
    /// From what attachments are made from: reads what the cache has from there, and the rest from below it.
    pub(crate) fn new(config: &Config, parts: &Parts) -> Self {
        let source = Arc::new(Past::new(Arc::clone(&parts.cache) as _, Arc::clone(&parts.indexes.verified) as _));
        Self {
            fetcher: Arc::clone(&parts.fetcher),
            source,
            containerd: config.images_containerd.clone(),
            platform: config.platform.clone(),
            events: parts.events.clone(),
            room: Arc::new(Semaphore::new(PULLS)),
        }
    }

    /// Resolves the image, and answers what is said while it is written: that happens while the stream is read.
    pub(crate) async fn pull(&self, request: api::Pull) -> Result<PullStream, NodeError> {
        let invalid = |error: &dyn std::fmt::Display| NodeError::Invalid(error.to_string());
        let reference: Reference = request.reference.parse().map_err(|error| invalid(&error))?;
        let platform = match &request.platform {
            Some(text) => text.parse().map_err(|error: penstock_fetcher::PlatformError| invalid(&error))?,
            None => self.platform.clone(),
        };
        let busy =
            |_| NodeError::Busy(format!("{PULLS} pulls are under way already; wait until one of them has ended"));
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(busy)?;
        let socket = request.containerd.as_ref().unwrap_or(&self.containerd);
        if !socket.is_absolute() {
            return Err(NodeError::Invalid(format!(
                "{} is not an absolute path of containerd's socket",
                socket.display()
            )));
        }
        let store = Store::connect(socket, &request.namespace).await.map_err(|error| not_stored(&error))?;
        let name = name(&reference);
        let meant = match store.image(&name).await.map_err(|error| not_stored(&error))? {
            Some(target) => reference.with_digest(digest(&target.digest)?),
            None => reference,
        };
        let (manifest, served) =
            self.fetcher.resolve_served(&meant, &platform).await.map_err(|error| unresolved(&error))?;
        let content = content(name, &manifest, &served);
        let serving = self.serve(&manifest);
        let total = total(&content);
        let (told, progress) = watch::channel(total);
        let (source, events) = (Arc::clone(&self.source), self.events.clone());
        let span = info_span!(target: SPANS, "pull", reference = content.name, error = Empty);
        let work: Work = Box::pin(traced(span, async move {
            let _held = (room, serving);
            let tell = |done: penstock_snapshotter::content::Progress| {
                told.send_replace(PullProgress { blobs_done: done.blobs as u64, bytes_done: done.bytes, ..total });
            };
            let made = store.materialise(&content, &*source, &tell).await.map_err(|error| not_stored(&error))?;
            let pulled = pulled(&content, &request.namespace, &made);
            note(&events, &pulled);
            Ok(pulled)
        }));
        let mut ticks = tokio::time::interval(TOLD_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let pulling = Pulling { work: Some(work), progress, ticks };
        Ok(Box::pin(stream::unfold(pulling, next)))
    }

    fn serve(&self, manifest: &Manifest) -> Serving {
        let (fetcher, reference) = (Arc::clone(&self.fetcher), manifest.reference.clone());
        let blobs: Vec<Blob> =
            std::iter::once(&manifest.config).chain(&manifest.layers).map(Descriptor::blob).collect();
        blobs.iter().for_each(|blob| fetcher.serve(*blob, &reference));
        Serving { fetcher, reference, blobs }
    }
}

/// What is said next. The last word is how it ended.
async fn next(mut pulling: Pulling) -> Option<(PullMessage, Pulling)> {
    let mut work = pulling.work.take()?;
    loop {
        tokio::select! {
            biased;
            ended = &mut work => {
                let message = ended.map_or_else(|error| PullMessage::Failed(error.into()), PullMessage::Done);
                return Some((message, pulling));
            }
            _ = pulling.ticks.tick() => {
                if pulling.progress.has_changed().is_ok_and(|has| has) {
                    let progress = *pulling.progress.borrow_and_update();
                    pulling.work = Some(work);
                    return Some((PullMessage::Progress(progress), pulling));
                }
            }
        }
    }
}

/// containerd's name of an image: with a digest, the tag says nothing.
fn name(reference: &Reference) -> String {
    let repository = format!("{}/{}", reference.registry(), reference.repository());
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, tag) => format!("{repository}:{}", tag.unwrap_or("latest")),
    }
}

fn digest(text: &str) -> Result<Digest, NodeError> {
    text.parse().map_err(|error| NodeError::Unsupported(format!("containerd names the image {text:?}, and {error}")))
}

/// All blobs of the image, each after those that it refers to.
fn content(name: String, manifest: &Manifest, served: &[Served]) -> Content {
    let mut pieces: Vec<Piece> = Vec::new();
    for part in std::iter::once(&manifest.config).chain(&manifest.layers) {
        if pieces.iter().all(|piece| piece.blob.digest != part.digest) {
            let (blob, media_type) = (part.blob(), part.media_type.clone());
            pieces.push(Piece { blob, media_type, bytes: None, children: Vec::new() });
        }
    }
    // The manifest comes last of what led to it, and each index refers to what came after it.
    for document in served.iter().rev() {
        let children = match document.followed {
            Some((at, digest)) => vec![Child::Manifest(at, digest)],
            None => {
                let layers = manifest.layers.iter().enumerate().map(|(at, layer)| Child::Layer(at, layer.digest));
                std::iter::once(Child::Config(manifest.config.digest)).chain(layers).collect()
            }
        };
        let blob = Blob { digest: document.digest, size_bytes: document.bytes.len() as u64 };
        let media_type = document.media_type.clone();
        pieces.push(Piece { blob, media_type, bytes: Some(document.bytes.clone()), children });
    }
    let reference = &manifest.reference;
    Content { name, source: (reference.registry().to_owned(), reference.repository().to_owned()), pieces }
}

fn total(content: &Content) -> PullProgress {
    let bytes = content.pieces.iter().map(|piece| piece.blob.size_bytes).sum();
    PullProgress { blobs: content.pieces.len() as u64, bytes, ..PullProgress::default() }
}

fn pulled(content: &Content, namespace: &str, made: &Materialised) -> Pulled {
    let blobs: Vec<PulledBlob> = made
        .blobs
        .iter()
        .map(|written| PulledBlob {
            digest: written.blob.digest,
            media_type: written.media_type.clone(),
            size_bytes: written.blob.size_bytes,
            written_bytes: match written.outcome {
                Outcome::Present => 0,
                Outcome::Written { resumed_bytes } => {
                    written.blob.size_bytes - resumed_bytes.min(written.blob.size_bytes)
                }
            },
        })
        .collect();
    Pulled {
        reference: content.name.clone(),
        digest: content.pieces.last().map_or_else(|| Digest::of(b""), |top| top.blob.digest),
        namespace: namespace.to_owned(),
        new: made.is_new,
        written_bytes: blobs.iter().map(|blob| blob.written_bytes).sum(),
        blobs,
    }
}

fn note(events: &Events, pulled: &Pulled) {
    let text = format!(
        "{} is whole in containerd's content store (namespace {}); {} bytes of it were written",
        pulled.reference, pulled.namespace, pulled.written_bytes
    );
    events.record(Kind::ImagesPulled, &text, &[("reference", &pulled.reference), ("namespace", &pulled.namespace)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(bytes: &[u8]) -> Descriptor {
        Descriptor {
            media_type: "application/x".to_owned(),
            digest: Digest::of(bytes),
            size_bytes: bytes.len() as u64,
            annotations: std::collections::BTreeMap::new(),
            platform: None,
            artifact_type: None,
        }
    }

    #[test]
    fn an_image_is_named_as_containerd_names_it() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (text, expected) in [
            ("alpine", "docker.io/library/alpine:latest".to_owned()),
            ("r.example:5000/a/b:1", "r.example:5000/a/b:1".to_owned()),
            (&format!("r.example/a:1@{digest}"), format!("r.example/a@{digest}")),
        ] {
            assert_eq!(name(&text.parse().unwrap()), expected);
        }
    }

    #[test]
    fn blobs_come_after_those_that_they_refer_to_and_each_once() {
        let (config, layer) = (descriptor(b"config"), descriptor(b"layer"));
        let manifest = Manifest {
            reference: "r.example/a:1".parse().unwrap(),
            digest: Digest::of(b"manifest"),
            size_bytes: 8,
            media_type: "application/m".to_owned(),
            artifact_type: None,
            config: config.clone(),
            layers: vec![layer.clone(), layer.clone()],
            annotations: std::collections::BTreeMap::new(),
        };
        let served = |bytes: &'static [u8], followed| Served {
            digest: Digest::of(bytes),
            media_type: "application/m".to_owned(),
            bytes: bytes.into(),
            followed,
        };
        let documents = [served(b"index", Some((3, manifest.digest))), served(b"manifest", None)];
        let content = content("r.example/a:1".to_owned(), &manifest, &documents);
        let digests: Vec<Digest> = content.pieces.iter().map(|piece| piece.blob.digest).collect();
        assert_eq!(digests, [config.digest, layer.digest, Digest::of(b"manifest"), Digest::of(b"index")]);
        let refers = [Child::Config(config.digest), Child::Layer(0, layer.digest), Child::Layer(1, layer.digest)];
        assert_eq!(content.pieces[2].children, refers);
        assert_eq!(content.pieces[3].children, [Child::Manifest(3, manifest.digest)]);
        assert_eq!(total(&content).bytes, 6 + 5 + 8 + 5);
    }
}
