//! Putting an image into containerd's content store: what is asked, and what is said meanwhile and at the end.

use std::{convert::Infallible, path::PathBuf, pin::Pin};

use axum::response::sse::{Event as Message, KeepAlive, Sse};
use futures_util::{Stream, StreamExt as _};
use penstock_blob::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{KEEP_ALIVE, Problem};

/// The name of a message that says how far it is.
pub const PULL_PROGRESS: &str = "progress";
/// The name of the last message when all is there.
pub const PULL_DONE: &str = "done";
/// The name of the last message when not.
pub const PULL_FAILED: &str = "failed";

/// An image that containerd's content store is to have whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pull {
    /// The image. Where containerd knows it by this name, what is there under that name is meant, whatever the registry's tag is now.
    #[schema(example = "registry.example/app:1")]
    pub reference: String,
    /// Which image of an index, as `os/architecture`; the agent's own when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// containerd's namespace.
    #[schema(example = "k8s.io")]
    pub namespace: String,
    /// containerd's socket; the agent's `images.containerd` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "/run/containerd/containerd.sock")]
    pub containerd: Option<PathBuf>,
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PullProgress {
    /// Blobs that containerd has.
    pub blobs_done: u64,
    /// Blobs of the image.
    pub blobs: u64,
    /// Bytes of them that containerd has.
    pub bytes_done: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// What was pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pulled {
    /// containerd's name of the image.
    pub reference: String,
    /// The digest of what that name points to: a manifest, or an index.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// containerd's namespace.
    pub namespace: String,
    /// Whether containerd did not know the image by this name before.
    pub new: bool,
    /// Bytes that were written.
    pub written_bytes: u64,
    /// The image's blobs.
    pub blobs: Vec<PulledBlob>,
}

/// One blob of what was pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PulledBlob {
    /// The blob.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes of it that were written now; 0 when containerd had it.
    pub written_bytes: u64,
}

/// What is said of a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullMessage {
    /// It goes on.
    Progress(PullProgress),
    /// containerd has all of it. The last message.
    Done(Pulled),
    /// It has not. The last message.
    Failed(Problem),
}

/// What is said of a pull, until its last message. Dropping it ends the pull; the same goes on from there.
pub type PullStream = Pin<Box<dyn Stream<Item = PullMessage> + Send>>;

/// The answer: server-sent events, of which the last has the outcome.
pub(crate) fn answer(messages: PullStream) -> Sse<impl Stream<Item = Result<Message, Infallible>> + Send + 'static> {
    let event = |message| {
        let (name, data) = match &message {
            PullMessage::Progress(progress) => (PULL_PROGRESS, serde_json::to_string(progress)),
            PullMessage::Done(pulled) => (PULL_DONE, serde_json::to_string(pulled)),
            PullMessage::Failed(problem) => (PULL_FAILED, serde_json::to_string(problem)),
        };
        // JSON on one line: what a registry or containerd wrote cannot end the message.
        Ok(Message::default().event(name).data(data.unwrap_or_default()))
    };
    Sse::new(messages.map(event)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("still here"))
}
