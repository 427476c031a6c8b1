//! Turning wanted byte ranges into few HTTP requests to registries. HTTP lives here only.
//!
//! # Contract
//!
//! 1. [`Fetcher`] is a [`penstock_blob::BlobSource`]: a read gets exactly the registry's bytes or an error. A `206` passes only
//!    when its `Content-Range` and length are those asked for; a `200` for a range is dropped unread.
//! 2. Never more requests and bytes in flight than [`Config::max_requests`] and [`Config::max_bytes`]. A longer read is split.
//! 3. Every read and every resolve ends within [`Config::deadline`]. Failures are retried here and nowhere else; each error says
//!    whether another try may help.
//! 4. A registry's content is asked for where containerd's `hosts.toml` says, anew for every read: an endpoint that fails is
//!    followed by the next one within the same read, and passed over while it is broken. One that gave wrong bytes is named.
//! 5. Credentials go to the registry they are for and the token server it names, never where a redirect leads elsewhere. They
//!    appear in no error, log, event or metric; nor does a URL's query. Their memory is overwritten when they are dropped. What a
//!    registry refused is not shown again for a while; others are picked up without a restart, also by reads that wait.
//!    A redirect or a token server's address leads nowhere further in than the registry is, by the address connected to.
//! 6. TLS is verified. Plain HTTP is spoken to loopback and to hosts that the configuration names, and no redirect leads from
//!    TLS to it.
//! 7. A manifest's bytes are verified against the digest that names it before they are read; manifests, indexes and token
//!    answers are bounded before they are buffered.
//!
//! # Layout
//!
//! Decided purely: `reference`, `platform`, `manifest` (what is named and chosen), `challenge`, `token`, `auth::slot` (when a
//! pass is renewed, and what was refused), `answer`, `location`, `timestamp` (what a registry said), `assembly` (joining, splitting, putting together), `retry`,
//! `hosts` (`hosts.toml`), `zone` (who may send us where), `breaker`, `latency`, `choice`, `hedge` (whom to ask, and when somebody
//! else), `pace` (how much the way to an endpoint carries), `line` (who is next).
//! Done thinly: `dial`, `names` (HTTP clients and their addresses), `web` (one HTTP request), `ask` (with a pass, following
//! redirects), `credentials` (who we are: a chain of providers), `auth` (passes, renewed once for all), `grant` (credentials by API), `namespace` (a registry's endpoints, as its files say now), `place`, `fetch`
//! (one ranged GET into the waiters' buffers), `round` (endpoint after endpoint, one beside a slow one), `flight` (reads that share
//! it), `resolve`, `referrers`, `push`.
//!
//! # How a read goes
//!
//! `Fetcher::read` -> `Flights::board` (a seat on a flight that passes near, or a new one) -> `Core::fly` waits for its turn,
//! closes the flight -> `Core::round` -> `Core::fetch` at each place in turn -> `Assembly::feed` answers each seat as its last byte
//! comes.
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
mod breaker;
mod budget;
mod challenge;
mod choice;
mod config;
mod credentials;
mod dial;
mod endpoint;
mod error;
mod event;
mod failure;
mod fetch;
mod fetcher;
mod flight;
mod gave;
mod grant;
mod hedge;
mod hosts;
mod latency;
mod line;
mod link;
mod location;
mod manifest;
mod metrics;
mod names;
mod namespace;
mod pace;
mod place;
mod platform;
mod push;
mod reference;
mod referrers;
mod resolve;
mod retry;
mod round;
mod secret;
mod timestamp;
mod token;
mod web;
mod zone;

pub use auth::ScopeState;
pub use challenge::Challenge;
pub use config::{Config, ConfigError};
pub use credentials::{
    Credential, Provider, ProviderState,
    docker::{DockerConfig, DockerConfigError},
    handed::{HandOverError, HandedOverScope, Lent},
    kept::Keeping,
    kubelet::{KubeletAnswer, KubeletAnswerError, KubeletConfig, KubeletConfigError},
    scope::{CredentialScope, CredentialScopeError},
    settings::{CredentialSources, KubeletSource},
    static_file::{StaticCredentials, StaticCredentialsError},
};
pub use endpoint::{
    EndpointFetched,
    status::{EndpointState, EndpointStatus, RegistryStatus},
};
pub use error::ResolveError;
pub use event::Event;
pub use fetcher::{Fetched, Fetcher};
pub use grant::CredentialReport;
pub use hosts::{HostsFault, HostsFile};
pub use link::Link;
pub use manifest::{Descriptor, Document, ImageDocument, Manifest, ManifestError, Served};
pub use platform::{Platform, PlatformError};
pub use push::{Content, PushError, Upload};
pub use reference::{Reference, ReferenceError};
pub use referrers::Attached;
pub use secret::Secret;
