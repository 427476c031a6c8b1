//! Asking an agent about containerd's snapshots.

use bytes::Bytes;
use http::Method;
use penstock_api::{Snapshot, SnapshotsRepaired};

use super::{CHANGE_DEADLINE, Client, ClientError};

impl Client {
    /// containerd's snapshots on the agent's node.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, ClientError> {
        self.ask("/v1/snapshots").await
    }

    /// Has the metadata of the snapshots repaired.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn repair_snapshots(&self) -> Result<SnapshotsRepaired, ClientError> {
        let reply = self.send(Method::POST, "/v1/snapshots/repair", Bytes::new(), CHANGE_DEADLINE).await?;
        self.parsed(&reply)
    }
}
