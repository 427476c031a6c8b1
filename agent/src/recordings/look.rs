//! Where the recording of an image is found, and how one is published.

use std::sync::Arc;

use penstock_blob::{Blob, BlobSource as _, ByteRange, Digest, Purpose};
use penstock_fetcher::{Content, Fetcher, Manifest, Reference, ResolveError, Upload};
use penstock_image::{
    Annotated, Image, annotated,
    recording::{Recorder, Recording},
    trace,
};
use penstock_index::beside::blob_of;

use super::{
    Recordings,
    artifact::{self, ARTIFACT_TYPE},
    files,
};
use crate::{beside, events::Kind, state::record::LayerRecord};

/// Most recordings of one image that are tried: one is usual, more where several were pushed.
const CANDIDATES: usize = 2;

/// Most bytes of a trace that are looked up: more than any start reads.
const TRACED_BYTES: u64 = 2 << 30;

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    /// A recording of this node, of the registry, or what stands in for one; which.
    Recording(Recording, &'static str),
    /// OverlayBD's trace: what it means is known once the image is open.
    Trace(Vec<trace::Access>),
    /// There is none.
    None,
}

/// What a recording is looked for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Pinned to the manifest.
    pub(crate) reference: Reference,
    pub(crate) manifest: Digest,
    /// All layers of the image.
    pub(crate) layers: Vec<LayerRecord>,
    /// Whether its registry may be asked.
    pub(crate) may_ask: bool,
}

impl Wanted {
    /// The layer with OverlayBD's trace, if the image has one.
    fn trace(&self) -> Option<Blob> {
        let recorded = |layer: &&LayerRecord| annotated(&layer.annotations) == Some(Annotated::Recording);
        self.layers.iter().find(recorded).map(LayerRecord::blob)
    }
}

impl Recordings {
    /// On this node; else in the image; else beside it. The registry is asked once when it has none (twice without the referrers API), and once more
    /// when it has one.
    pub(super) async fn find(&self, wanted: &Wanted) -> Found {
        let path = files::path(&self.settings.dir, &wanted.manifest);
        let read = tokio::task::spawn_blocking(move || files::read(&path)).await;
        match read.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(Some(kept)) => return Found::Recording(kept.recording, "node"),
            Ok(None) => {}
            Err(reason) => self.refuse(&wanted.reference, &reason),
        }
        if let Some(layer) = wanted.trace() {
            return self.trace(wanted, layer).await;
        }
        match self.ask(wanted).await {
            Some(recording) => Found::Recording(recording, "registry"),
            None => Found::None,
        }
    }

    /// Asks the registry for the recording of an image that is pulled, so that its start need not. Nothing is asked when there is one.
    pub(crate) async fn fetch(&self, wanted: &Wanted) {
        let path = files::path(&self.settings.dir, &wanted.manifest);
        let is_here = tokio::task::spawn_blocking(move || path.exists()).await.unwrap_or(true);
        if self.settings.replay && !is_here && wanted.trace().is_none() {
            // It is kept on this node now, if there is one.
            let _kept = self.ask(wanted).await;
        }
    }

    /// The recording beside the image, kept on this node from now on.
    async fn ask(&self, wanted: &Wanted) -> Option<Recording> {
        if !wanted.may_ask || !self.settings.accept.takes(wanted.reference.registry()) {
            return None;
        }
        match self.listed(wanted).await {
            Ok(Some(recording)) => {
                self.write(&recording).await;
                Some(recording)
            }
            Ok(None) => None,
            Err(error) => {
                tracing::debug!(reference = %wanted.reference, %error, "no recording can be looked for");
                None
            }
        }
    }

    async fn listed(&self, wanted: &Wanted) -> Result<Option<Recording>, ResolveError> {
        let listed = self.fetcher.referrers(&wanted.reference, wanted.manifest, ARTIFACT_TYPE).await?;
        // The one pushed last is listed last, as far as registries keep an order.
        for descriptor in listed.iter().rev().take(CANDIDATES) {
            let manifest = self.fetcher.artifact(&wanted.reference, descriptor).await?;
            match artifact::recording(&manifest, wanted.manifest) {
                Ok(recording) => return Ok(Some(recording)),
                Err(reason) => self.refuse(&wanted.reference, &format!("recording {}: {reason}", descriptor.digest)),
            }
        }
        Ok(None)
    }

    /// The trace in an acceleration layer. It is read past the cache: once, and only when there is no recording.
    async fn trace(&self, wanted: &Wanted, layer: Blob) -> Found {
        let Some(range) = layer.all().filter(|range| range.len() <= trace::MAX_TRACE_BYTES) else {
            self.refuse(
                &wanted.reference,
                &format!("acceleration layer {} has {} bytes", layer.digest, layer.size_bytes),
            );
            return Found::None;
        };
        let serving = Serving::new(&self.fetcher, layer, &wanted.reference);
        let read = self.fetcher.read(layer, range, Purpose::Ahead).await;
        drop(serving);
        match read.map(|bytes| (Digest::of(&bytes) == layer.digest).then(|| trace::parse(&bytes))) {
            Ok(Some(Ok(trace))) => Found::Trace(trace),
            Ok(Some(Err(error))) => {
                self.refuse(&wanted.reference, &error.to_string());
                Found::None
            }
            Ok(None) => {
                self.refuse(
                    &wanted.reference,
                    &format!("the bytes of acceleration layer {} are not those of its digest", layer.digest),
                );
                Found::None
            }
            Err(error) => {
                tracing::debug!(reference = %wanted.reference, %error, "the trace of an image cannot be read");
                Found::None
            }
        }
    }

    pub(super) fn refuse(&self, reference: &Reference, reason: &str) {
        self.metrics.refused.inc();
        self.events.record(Kind::RecordingRefused, &format!("a recording of {reference} is not used: {reason}"), &[]);
    }

    /// Pushes a recording beside its image.
    ///
    /// # Errors
    /// Why the registry did not take it.
    pub(super) async fn publish(
        &self,
        image: &Manifest,
        recording: &Recording,
    ) -> Result<(), penstock_fetcher::PushError> {
        let file = recording.encode();
        let subject = (image.media_type.as_str(), Blob { digest: image.digest, size_bytes: image.size_bytes });
        let bytes =
            artifact::manifest(&file, subject).map_err(|reason| penstock_fetcher::PushError::Client { reason })?;
        let upload = Upload { blob: blob_of(&file), content: Content::Bytes(file.into()) };
        beside::push(&self.fetcher, image, (ARTIFACT_TYPE, bytes), [upload]).await.map(drop)
    }
}

/// What a trace means for this image: the blob ranges behind its reads.
pub(super) fn from_trace(
    manifest: Digest,
    trace: &[trace::Access],
    image: &Image,
) -> Result<Recording, penstock_image::PlanError> {
    let (mut recorder, mut rest) = (Recorder::new(manifest), TRACED_BYTES);
    for access in trace {
        let Some(left) = rest.checked_sub(access.range.len()) else { break };
        rest = left;
        let needs = image.needs(access.layer, access.range)?;
        // Where a table is still being made, what it will say is not known yet: such reads are passed over.
        for (blob, range) in needs.into_iter().filter(|(blob, _)| image.blobs().contains(blob)) {
            recorder.need(&blob, range);
        }
    }
    Ok(recorder.into_recording())
}

/// What a landmark means: all that lies before it is read. SOCI's spans to prefetch mean the same.
pub(super) fn from_landmark(manifest: Digest, (blob, ranges): (Blob, Vec<ByteRange>)) -> Found {
    let mut recorder = Recorder::new(manifest);
    for range in ranges {
        recorder.need(&blob, range);
    }
    Found::Recording(recorder.into_recording(), "landmark")
}

/// A blob that the fetcher knows where to find for as long as this lives.
struct Serving {
    fetcher: Arc<Fetcher>,
    blob: Digest,
    reference: Reference,
}

impl Serving {
    fn new(fetcher: &Arc<Fetcher>, blob: Blob, reference: &Reference) -> Self {
        fetcher.serve(blob, reference);
        Self { fetcher: Arc::clone(fetcher), blob: blob.digest, reference: reference.clone() }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.fetcher.forget(&self.blob, &self.reference);
    }
}
