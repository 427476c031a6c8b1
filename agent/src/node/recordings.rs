//! Recordings as the admin API asks for them.

use penstock_api::{self as api, NodeError};
use penstock_blob::Digest;
use penstock_fetcher::PushError;

use crate::{
    attachments::{Attachments, RecordError},
    recordings::RecordingsError,
};

pub(super) async fn list(attachments: &Attachments) -> Result<Vec<api::Recording>, NodeError> {
    Ok(attachments.recordings().list().await.map_err(RecordError::from)?)
}

pub(super) async fn remove(attachments: &Attachments, manifest: &str) -> Result<(), NodeError> {
    let digest: Digest =
        manifest.parse().map_err(|error| NodeError::Invalid(format!("it is no digest of a manifest: {error}")))?;
    match attachments.recordings().remove(digest).await.map_err(RecordError::from)? {
        true => Ok(()),
        false => Err(NodeError::NotFound(format!("there is no recording of {digest} on this node"))),
    }
}

impl From<RecordError> for NodeError {
    fn from(error: RecordError) -> Self {
        let text = error.to_string();
        match error {
            RecordError::Attachment(error) => error.into(),
            RecordError::Over(_) | RecordError::Recordings(RecordingsError::Nothing(_)) => Self::Conflict(text),
            RecordError::Recordings(RecordingsError::Files(_)) => Self::Internal(text),
            RecordError::Recordings(RecordingsError::Push(error)) => match *error {
                PushError::Denied { .. } => Self::Denied(text),
                _ => Self::Unavailable(text),
            },
        }
    }
}
