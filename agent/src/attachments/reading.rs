//! How attached images are read: the start of each, and what operators ask about it.

use std::sync::Arc;

use penstock_api as api;
use penstock_fetcher::{Manifest, Reference};

use super::{AttachError, Attachments, Parts, live::Plan, watch::Watched};
use crate::{
    indexes::Ask,
    recordings::{Begin, Recordings, RecordingsError, Start, Wanted},
    state::record::LayerRecord,
};

/// The start of what `plan` says, unless programs were reading it before.
pub(super) fn begin(parts: &Parts, plan: &Plan, goes_on: bool) -> Start {
    let source = Watched::new(Arc::clone(&parts.source), plan.id.clone(), parts.events.clone());
    let wanted = Wanted {
        reference: plan.reference.clone(),
        manifest: plan.manifest,
        layers: plan.layers.clone(),
        may_ask: matches!(plan.ask, Ask::Registry { .. }),
    };
    Start::begin(&parts.recordings, source, Begin { device: plan.id.to_string(), wanted, goes_on })
}

/// Why a recording was not begun, ended, listed or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// There is no such device, or it cannot be asked now; or its image is not resolved any more.
    #[error(transparent)]
    Attachment(#[from] AttachError),
    /// Its start is over.
    #[error("the start of device {0} is over; attach the image anew and record that")]
    Over(String),
    /// The recording itself.
    #[error(transparent)]
    Recordings(#[from] RecordingsError),
}

impl Attachments {
    /// Asks for the recording of an image that is pulled, beside whatever else is done: its start asks no registry.
    pub(super) fn fetch_recording(self: &Arc<Self>, reference: &Reference, manifest: &Manifest) {
        let wanted = Wanted {
            reference: reference.with_digest(manifest.digest),
            manifest: manifest.digest,
            layers: manifest.layers.iter().map(LayerRecord::from).collect(),
            may_ask: true,
        };
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                () = this.parts.recordings.fetch(&wanted) => {}
                () = this.parts.stop.cancelled() => {}
            }
        });
    }

    /// The recordings of this node.
    pub(crate) fn recordings(&self) -> &Recordings {
        &self.parts.recordings
    }

    /// Has a device recorded until [`end_recording`](Self::end_recording).
    pub(crate) fn record(&self, id: &str) -> Result<(), RecordError> {
        let (live, _) = self.table.lock().attached(id)?;
        if Recordings::hold(&live.start) { Ok(()) } else { Err(RecordError::Over(id.to_owned())) }
    }

    /// Ends the recording of a device, keeps it, and pushes it if asked.
    pub(crate) async fn end_recording(
        self: &Arc<Self>,
        id: &str,
        request: api::EndRecording,
    ) -> Result<api::Recording, RecordError> {
        let (live, record) = self.table.lock().attached(id)?;
        let kept = self.parts.recordings.finish(&live.start).await?;
        if !request.push {
            return Ok(kept);
        }
        let reference = record.reference.with_digest(record.manifest);
        let resolving = self.parts.fetcher.resolve(&reference, &record.platform);
        let image = self.parts.unless_stopping(resolving).await?;
        self.parts.recordings.push(&image).await?;
        Ok(api::Recording { pushed: true, ..kept })
    }
}
