//! Turning wanted byte ranges into few HTTP requests to registries. HTTP lives here only.
//!
//! # Contract
//!
//! 1. [`Fetcher`] is a [`penstock_blob::BlobSource`]: a read gets exactly the registry's bytes or an error. A `206` passes only
//!    when its `Content-Range` and length are those asked for; a `200` for a range is dropped unread.
//! 2. Never more requests and bytes in flight than [`Config::max_requests`] and [`Config::max_bytes`]. A longer read is split.
//! 3. Every read and every resolve ends within [`Config::deadline`]. Failures are retried here and nowhere else; each error says
//!    whether another try may help.
//! 4. Credentials go to the registry they are for and the token server it names, never where a redirect leads elsewhere. They
//!    appear in no error, log or metric; nor does a URL's query.
//! 5. TLS is verified. Plain HTTP is spoken to loopback and to hosts that the configuration names, and no redirect leads from
//!    TLS to it.
//! 6. A manifest's bytes are verified against the digest that names it before they are read; manifests, indexes and token
//!    answers are bounded before they are buffered.
//!
//! # Layout
//!
//! Decided purely: `reference`, `platform`, `manifest` (what is named and chosen), `challenge`, `token`, `credentials` (who we
//! are), `answer`, `location`, `timestamp` (what a registry said), `assembly` (joining, splitting, putting together), `retry`.
//! Done thinly: `web` (one HTTP request), `ask` (with a pass, following redirects), `auth` (passes, renewed once for all),
//! `fetch` (one ranged GET into the waiters' buffers), `flight` (reads that share it), `resolve`, `push`.
//!
//! # How a read goes
//!
//! `Fetcher::read` -> `Flights::board` (a seat on a flight that passes near, or a new one) -> `Core::fly` waits for its turn,
//! closes the flight -> `Core::fetch` at each place in turn -> `Assembly::feed` answers each seat as its last byte comes.
//! What came stays when a body breaks; the next round goes on from there.
//!
//! # Concurrency
//!
//! Each flight is one task, owned by the `Fetcher` and aborted with it. A reader holds a seat; dropping it gives it up, and a
//! flight without readers ends, its connection dropped. Locks are `parking_lot`'s, short, and never held across an await; the
//! two that are (one renewal per scope, one route learnt per blob) are tokio's, and a dropped holder lets the next one in.

mod answer;
mod ask;
mod assembly;
mod auth;
mod budget;
mod challenge;
mod config;
mod credentials;
mod endpoint;
mod error;
mod failure;
mod fetch;
mod fetcher;
mod flight;
mod location;
mod manifest;
mod metrics;
mod place;
mod platform;
mod push;
mod reference;
mod resolve;
mod retry;
mod secret;
mod timestamp;
mod token;
mod web;

pub use challenge::Challenge;
pub use config::{Config, ConfigError};
pub use credentials::{Credential, DockerConfig, DockerConfigError};
pub use endpoint::EndpointFetched;
pub use error::ResolveError;
pub use fetcher::{Fetched, Fetcher};
pub use manifest::{Descriptor, Document, ImageDocument, Manifest, ManifestError};
pub use platform::{Platform, PlatformError};
pub use push::{Content, PushError, Upload};
pub use reference::{Reference, ReferenceError};
pub use secret::Secret;
