//! Having an image put into containerd's content store, and hearing how far that is.

use http::Method;
use penstock_api::{PULL_DONE, PULL_FAILED, PULL_PROGRESS, Problem, Pull, PullProgress, Pulled};

use super::{CHANGE_DEADLINE, Client, ClientError, follow::Frames};

impl Client {
    /// Has an image put into containerd's content store; `tell` hears how far it is. Dropping the future ends it, and asking again goes on
    /// from there.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn pull(&self, request: &Pull, mut tell: impl FnMut(PullProgress)) -> Result<Pulled, ClientError> {
        let late = |_| ClientError::Deadline { socket: self.socket.clone(), after: CHANGE_DEADLINE };
        let opening = Box::pin(self.open(Method::POST, "/v1/pull", "text/event-stream", self.serialized(request)?));
        let answer = tokio::time::timeout(CHANGE_DEADLINE, opening).await.map_err(late)??;
        if !answer.status.is_success() {
            let reply = tokio::time::timeout(CHANGE_DEADLINE, self.whole(answer)).await.map_err(late)??;
            return Err(ClientError::Problem(self.parsed(&reply)?));
        }
        let mut frames = Frames::new(self.clone(), answer);
        loop {
            let frame = frames.next().await?;
            match frame.name.as_str() {
                PULL_PROGRESS => tell(frames.parsed(&frame.data)?),
                PULL_DONE => return frames.parsed(&frame.data),
                PULL_FAILED => return Err(ClientError::Problem(frames.parsed::<Problem>(&frame.data)?)),
                // A newer agent has more to say.
                _ => {}
            }
        }
    }
}
