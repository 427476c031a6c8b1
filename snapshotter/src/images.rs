//! The image-service proxy: what the kubelet asks of containerd's image service passes through here untouched, and the credentials of
//! each pull are heard on the way.
//!
//! containerd tells a snapshotter nothing about credentials, yet layers go on being read long after a pull. So the kubelet's
//! `--image-service-endpoint` names our socket instead of containerd's, and each call is forwarded to containerd's.
//!
//! # Contract
//!
//! 1. Every path is forwarded, known to us or not: messages, metadata, trailers, deadlines, cancellation and back-pressure are those of
//!    the two ends. No message is gathered here, but the request of `PullImage` and `RemoveImage` up to [`MESSAGE_BYTES`] and their
//!    answers up to [`ANSWER_BYTES`]; one that is longer goes on as it comes, unread.
//! 2. Before a `PullImage` is forwarded, its credentials are in use ([`Keyring::hand_over`]). If the pull fails, is cancelled, or breaks
//!    off, what was in use before is put back ([`Keyring::settle`]). After a `RemoveImage` that succeeded they are withdrawn.
//! 3. Nothing about credentials keeps a call from being forwarded: what cannot be read or kept is told and done without.
//! 4. While containerd is away, calls are answered `UNAVAILABLE` with what to do; the next call tries again.
//! 5. Credentials appear in no log, error, event or metric, and `Debug` shows none; their memory is overwritten when they are dropped,
//!    except where HTTP/2 has buffered the request.
//!
//! # Layout
//!
//! Decided purely: `wire` (protobuf's fields), `message` (the two requests, and what an answer says), `auth` (which credentials of an
//! `AuthConfig` count), `status` (gRPC's statuses). Done thinly: `serve` (connections), `call` (one call), `body`, `upstream`
//! (containerd's end), `tasks`.
//!
//! # Concurrency
//!
//! A task for each connection, and hyper's for each call of it; all belong to the [`ImageProxy`] or to the future of
//! [`ImageProxy::serve`]. Each connection has a connection of its own to containerd, so that one client's slow reading holds up no
//! other.

mod auth;
mod body;
mod call;
mod keyring;
mod message;
mod metrics;
mod serve;
mod status;
mod tasks;
#[cfg(test)]
mod tests;
mod upstream;
mod wire;

pub use auth::{AuthError, PullAuth, PullCredential};
pub use body::ANSWER_BYTES;
pub use keyring::{Ended, Keyring};
pub use message::MESSAGE_BYTES;
pub use serve::{Event, ImageProxy};
