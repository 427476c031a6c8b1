//! Asking an agent about recordings.

use bytes::Bytes;
use http::Method;
use penstock_api::{EndRecording, Recording};

use super::{ASK_DEADLINE, CHANGE_DEADLINE, Client, ClientError, device_path, escaped};

impl Client {
    /// The recordings on the agent's node, the newest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn recordings(&self) -> Result<Vec<Recording>, ClientError> {
        self.ask("/v1/recordings").await
    }

    /// Removes the recording of the image with this manifest.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove_recording(&self, manifest: &str) -> Result<(), ClientError> {
        let path = format!("/v1/recordings/{}", escaped(manifest));
        self.send(Method::DELETE, &path, Bytes::new(), ASK_DEADLINE).await.map(drop)
    }

    /// Has a device recorded until [`end_recording`](Self::end_recording).
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn record(&self, id: &str) -> Result<(), ClientError> {
        let path = format!("{}/recording", device_path(id));
        self.send(Method::PUT, &path, Bytes::new(), ASK_DEADLINE).await.map(drop)
    }

    /// Ends the recording of a device and keeps it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn end_recording(&self, id: &str, request: EndRecording) -> Result<Recording, ClientError> {
        let (path, body) = (format!("{}/recording", device_path(id)), self.serialized(&request)?);
        let reply = self.send(Method::POST, &path, body, CHANGE_DEADLINE).await?;
        self.parsed(&reply)
    }
}
