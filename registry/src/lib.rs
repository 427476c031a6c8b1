//! An OCI registry on loopback, in process, with set latency, bandwidth and faults.
//!
//! [`Registry`] answers the distribution specification as docker-registry and zot do: ping, manifests by tag and digest,
//! blobs with a byte range, uploads (whole, in pieces, mounted from another repository), tags, referrers, Basic and token
//! authentication, and redirects of blob downloads to signed URLs that expire. `penstock demo` shows an image with it; tests
//! and benches use it as the other end of every fetch.
//!
//! # Contract
//!
//! 1. It listens on 127.0.0.1 only.
//! 2. A blob is served as it was given: from memory, or from a file by positional reads in pieces, never loaded whole.
//! 3. Everything asked and every body byte that left through a socket is recorded ([`Registry::requests`],
//!    [`Registry::counts`]), up to [`LOG_LIMIT`] requests; the sums never stop.
//! 4. All connections share one link: a set bandwidth is what they get together, in downstream bytes, heads included.
//! 5. A [`Fault`] happens to exactly the requests that its [`Rule`] names, in the order in which rules were given.
//! 6. Dropping the `Registry` ends all its tasks; [`Registry::stop`] also waits for them.
//!
//! # Layout
//!
//! `route`, `range` and `query` decide purely what a request asks. `answer` (pulls), `push` and `auth` decide what is
//! answered, `store` holds the content, `layout` and `artifact` fill it. `body` produces bytes, `wire` puts them on the socket at the
//! pace of `link`, cut short where a `fault` says so; `record` counts.
//!
//! # Concurrency
//!
//! One task accepts, one task serves each connection; both belong to the `Registry`. Shared state sits behind short
//! `parking_lot` locks that are never held across an await. File reads run on tokio's blocking pool, one piece at a time per
//! response. Time is tokio's, so that a paused clock works.

mod answer;
mod artifact;
mod auth;
mod body;
mod config;
mod fault;
mod layout;
mod link;
mod push;
mod query;
mod range;
mod record;
mod refusal;
mod registry;
mod route;
mod store;
mod wire;

pub use artifact::{Artifact, ArtifactError, Layer};
pub use config::{Auth, Config, Credentials, Redirect};
pub use fault::{Fault, Rule, Target};
pub use layout::LayoutError;
pub use record::{Counts, LOG_LIMIT, Request};
pub use registry::Registry;
pub use route::Kind;
