//! From a reference to a manifest whose bytes were verified.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, RANGE},
};
use parking_lot::Mutex;
use penstock_blob::{Digest, SPANS};
use tokio::time::{Instant, timeout_at};
use tracing::{
    Instrument as _,
    field::{Empty, display},
    info_span,
};

use crate::{
    Fetcher, Manifest, Platform, Reference, ResolveError, answer,
    ask::{Ask, Asker, blame},
    auth::{Action, Scope},
    breaker::Admission,
    budget::Key,
    choice::{self, Candidate},
    endpoint::Asking,
    event::Event,
    failure::{Class, Failure},
    fetch::no_url,
    fetcher::Core,
    manifest::{ACCEPTED, Document, MAX_MANIFEST_BYTES, ManifestError, Served, choose, index_type, offered, platforms},
    metrics::Purpose,
    namespace::{Host, Namespace},
    referrers::Referrers,
    retry::{Next, Retry},
    round::hope,
};

const FIRST_BYTE: HeaderValue = HeaderValue::from_static("bytes=0-0");

/// Most indexes between a reference and its image. Real ones have one; a second appears where indexes are collected.
const MAX_DEPTH: u32 = 3;

/// What is wanted of what a reference names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is a manifest.
    Manifest,
    /// Not the manifest itself, but the list of those of a kind that refer to it.
    Referrers(Referrers),
    /// It is a blob, of which nobody has said how large it is.
    BlobSize,
}

/// What a manifest's bytes are checked against: the name and, when an index gave it, the size.
pub(crate) struct Wanted {
    pub(crate) reference: Reference,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) kind: Kind,
}

/// Bytes that were verified, and what the registry says they are.
pub(crate) struct Verified {
    pub(crate) bytes: Bytes,
    digest: Digest,
    pub(crate) content_type: Option<String>,
    /// How many bytes it has; of a blob whose size was asked for, none of them is in `bytes`.
    pub(crate) size_bytes: u64,
}

impl Verified {
    fn served(&self, media_type: String, followed: Option<(usize, Digest)>) -> Served {
        Served { digest: self.digest, media_type, bytes: self.bytes.clone(), followed }
    }
}

/// Why one try at a manifest failed.
enum Trouble {
    Failure(Failure),
    Digest { expected: Digest, actual: Digest },
    TooLarge,
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl Trouble {
    /// As the retry policy sees it: wrong bytes are asked for once more or twice.
    fn failure(&self) -> Failure {
        match self {
            Self::Failure(failure) => failure.clone(),
            Self::Digest { .. } => Failure::wrong("sent a manifest with another digest"),
            Self::TooLarge => Failure::new(Class::Missing, "sent a manifest that is too large"),
        }
    }
}

impl Fetcher {
    /// The manifest that `reference` names for `platform`, verified: against its digest when the reference is pinned, else
    /// against what the registry says its digest is. Indexes are followed to the entry that fits the platform best.
    ///
    /// Within the deadline of the configuration, retries included.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Manifest, ResolveError> {
        Ok(self.resolve_served(reference, platform).await?.0)
    }

    /// As [`resolve`](Self::resolve), with the documents that led there as they were served: indexes first, the manifest last.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn resolve_served(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<(Manifest, Vec<Served>), ResolveError> {
        let config = &self.core.config;
        let namespace = self.core.namespaces.of(reference);
        let last = Mutex::new(None);
        let resolved = self.core.resolve(reference, platform, &namespace, &last);
        let span = info_span!(target: SPANS, "resolve", %reference, error = Empty);
        let outcome = match timeout_at(Instant::now() + config.deadline, resolved).instrument(span.clone()).await {
            Ok(resolved) => resolved,
            Err(_elapsed) => Err(late(reference, config.deadline, last.into_inner())),
        };
        outcome.as_ref().err().map(|error| span.record("error", display(error)));
        outcome
    }
}

impl Fetcher {
    /// The platforms for which `reference` names images, in the order of its index, each once; none of an image that stands alone.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn platforms(&self, reference: &Reference) -> Result<Vec<Platform>, ResolveError> {
        let found =
            self.document(&Wanted { reference: reference.clone(), size_bytes: None, kind: Kind::Manifest }).await?;
        match Document::parse(&found.bytes, found.content_type.as_deref()) {
            Ok(Document::Index(entries)) => Ok(platforms(&entries)),
            Ok(Document::Image(_)) => Ok(Vec::new()),
            Err(error) => Err(ResolveError::Manifest { reference: reference.clone(), error }),
        }
    }
}

impl Core {
    async fn resolve(
        &self,
        reference: &Reference,
        platform: &Platform,
        namespace: &Arc<Namespace>,
        last: &Mutex<Option<(String, String)>>,
    ) -> Result<(Manifest, Vec<Served>), ResolveError> {
        let mut served = Vec::new();
        let mut wanted = Wanted { reference: reference.clone(), size_bytes: None, kind: Kind::Manifest };
        for _ in 0..=MAX_DEPTH {
            let verified = self.manifest(&wanted, namespace, last).await?;
            let unusable = |error| ResolveError::Manifest { reference: reference.clone(), error };
            let content_type = verified.content_type.as_deref();
            match Document::parse(&verified.bytes, content_type).map_err(unusable)? {
                Document::Image(image) => {
                    served.push(verified.served(image.media_type.clone(), None));
                    return Ok((Manifest::of(reference, &verified.bytes, *image), served));
                }
                Document::Index(entries) => {
                    let entry = choose(&entries, platform).ok_or_else(|| ResolveError::Platform {
                        reference: reference.clone(),
                        wanted: platform.clone(),
                        offered: offered(&entries),
                    })?;
                    let place = entries.iter().position(|other| std::ptr::eq(other, entry)).unwrap_or(0);
                    let media_type = index_type(&verified.bytes, content_type);
                    served.push(verified.served(media_type, Some((place, entry.digest))));
                    wanted = Wanted {
                        reference: reference.with_digest(entry.digest),
                        size_bytes: Some(entry.size_bytes),
                        kind: Kind::Manifest,
                    };
                }
            }
        }
        Err(ResolveError::Depth { reference: reference.clone(), depth: MAX_DEPTH })
    }

    /// One manifest's bytes, with all the tries that the policy allows.
    pub(crate) async fn manifest(
        &self,
        wanted: &Wanted,
        namespace: &Arc<Namespace>,
        last: &Mutex<Option<(String, String)>>,
    ) -> Result<Verified, ResolveError> {
        let mut retry = Retry::typed(&self.config);
        loop {
            self.namespaces.refresh(namespace).await;
            let (endpoint, trouble) = match Box::pin(self.manifest_round(wanted, namespace)).await {
                Ok(verified) => return Ok(verified),
                Err(worst) => worst,
            };
            let failure = trouble.failure();
            *last.lock() = Some((endpoint.clone(), failure.reason.clone()));
            match retry.after(&failure) {
                Next::GiveUp => return Err(trouble.into_error(&wanted.reference, &endpoint)),
                Next::Wait(wait) => tokio::time::sleep(wait).await,
            }
            self.metrics.retries.inc();
        }
    }

    /// Asks each endpoint that may be asked for this, in their order, once; the most hopeful failure of all is returned. An empty listing
    /// is the answer when nobody else has one, unless one of them lacks the API: that one may list under a tag.
    async fn manifest_round(&self, wanted: &Wanted, namespace: &Arc<Namespace>) -> Result<Verified, (String, Trouble)> {
        // What a tag names, and who refers to a digest, is only asked of those who may say so; what a digest names, of all
        // who have content.
        let by_tag = wanted.reference.digest().is_none() || wanted.is_of_referrers();
        let may = |host: &&Host| host.capabilities.pull && (host.capabilities.resolve || !by_tag);
        let current = namespace.current();
        let hosts: Vec<&Host> = current.hosts.iter().filter(may).collect();
        let candidate = |host: &&Host| {
            let (admission, stalling, average) = host.endpoint.standing();
            Candidate { admission, avoided: false, stalling, average }
        };
        let candidates: Vec<Candidate> = hosts.iter().map(candidate).collect();
        let (mut worst, mut empty): (Option<(String, Trouble)>, _) = (None, None);
        for at in choice::order(&candidates) {
            let host = hosts[at];
            if empty.is_some() && candidates[at].admission == Admission::Shut {
                continue;
            }
            let trouble = match self.manifest_from(wanted, host).await {
                Ok(verified) if wanted.is_settled_by(&verified) => return Ok(verified),
                Ok(verified) => {
                    empty = empty.or(Some(verified));
                    continue;
                }
                Err(trouble) => trouble,
            };
            let more_hope = |(_, other): &(String, Trouble)| hope(&trouble.failure()) > hope(&other.failure());
            if worst.as_ref().is_none_or(more_hope) {
                worst = Some((host.endpoint.host.clone(), trouble));
            }
        }
        let is_missing = |(_, trouble): &(String, Trouble)| trouble.failure().class == Class::Missing;
        if let Some(empty) = empty.filter(|_| !worst.as_ref().is_some_and(is_missing)) {
            return Ok(empty);
        }
        Err(worst.unwrap_or_else(|| {
            let reason = "no host of its hosts.toml may be asked for this (capabilities)";
            (namespace.registry.clone(), Failure::new(Class::Missing, reason).into())
        }))
    }

    /// Asks one endpoint, within the budget, and counts what came of it.
    async fn manifest_from(&self, wanted: &Wanted, host: &Host) -> Result<Verified, Trouble> {
        let endpoint = &host.endpoint;
        let quiet = endpoint.quiet();
        if !quiet.is_zero() {
            // An endpoint that asked to be left alone is, whoever it told.
            let asked = Failure::new(Class::Throttled, "asked to be left alone for a while (Retry-After)");
            return Err(Failure { retry_after: Some(quiet), ..asked }.into());
        }
        let turn =
            self.budget.turn(Key { endpoint: endpoint.id, blob: None, purpose: penstock_blob::Purpose::Demand }).await;
        let bytes = wanted.size_bytes.unwrap_or(MAX_MANIFEST_BYTES as u64);
        let room = self.budget.room(bytes, &turn, &self.budget.unlimited).await;
        let mut asking = endpoint.ask(0);
        let outcome = self.manifest_once(wanted, host, &mut asking).await;
        drop((room, turn));
        let failure = outcome.as_ref().err().map(Trouble::failure);
        let change = asking.settle(failure.as_ref().map_or(Ok(()), |failure| Err(failure.class)));
        let reason = failure.as_ref().map_or("", |failure| failure.reason.as_str());
        self.changed(&endpoint.host, change, reason);
        if let Some(failure) = &failure {
            endpoint.failed(failure);
            self.metrics.failed(failure.class);
        }
        if let Err(Trouble::Digest { expected, actual }) = &outcome {
            let reason = format!("it sent a manifest with digest {actual}");
            let (endpoint, blob) = (endpoint.host.clone(), *expected);
            self.say(Event::WrongBytes { endpoint, blob, range: None, reason, shared: false });
            let change = host.endpoint.was_wrong();
            self.changed(&host.endpoint.host, change, "it gave wrong bytes of several blobs");
        }
        outcome
    }

    async fn manifest_once(&self, wanted: &Wanted, host: &Host, asking: &mut Asking) -> Result<Verified, Trouble> {
        let endpoint = &host.endpoint;
        let web = &endpoint.web;
        let reference = &wanted.reference;
        let pinned = reference.digest().filter(|_| !wanted.is_of_referrers());
        let (kind, name) = wanted.path();
        let accept = HeaderValue::from_str(&ACCEPTED.join(", ")).unwrap_or(HeaderValue::from_static("*/*"));
        let (header, success) = match wanted.kind {
            Kind::BlobSize => ((RANGE, FIRST_BYTE), StatusCode::PARTIAL_CONTENT),
            Kind::Manifest | Kind::Referrers(_) => ((ACCEPT, accept), StatusCode::OK),
        };
        let ask = Ask {
            purpose: Purpose::Manifest,
            url: wanted
                .asked(endpoint.url(reference.repository(), kind, &name, host.ns.as_deref()).ok_or_else(no_url)?),
            headers: [header].into_iter().collect(),
        };
        let repository = endpoint.full_name(reference.repository());
        let scope = Scope { host: endpoint.host.clone(), repository, action: Action::Pull };
        let asker = Asker { auth: &self.auth, endpoint };
        let answered = asker.ask(&scope, &ask).await?;
        asking.answered();
        let response = answered.response;
        if response.status() != success {
            let mut failure = answer::judge(response.status(), response.headers(), SystemTime::now());
            if failure.class == Class::Wrong {
                failure.class = Class::Refused;
            }
            if wanted.is_of_referrers() && failure.class == Class::Refused {
                // A registry that does not know this API may answer so instead of 404.
                failure.class = Class::Missing;
            }
            web.discard(response).await;
            return Err(answered.sent_to.map_or(failure.clone(), |(url, _)| blame(&url, failure)).into());
        }
        let headers = response.headers().clone();
        if let (Kind::BlobSize, Some(digest)) = (&wanted.kind, pinned) {
            web.discard(response).await;
            let size_bytes = answer::blob_size(&headers)?;
            return Ok(Verified { bytes: Bytes::new(), digest, content_type: None, size_bytes });
        }
        let max = wanted.size_bytes.map_or(MAX_MANIFEST_BYTES, |size| usize::try_from(size).unwrap_or(usize::MAX));
        let body = web.body(response, max.min(MAX_MANIFEST_BYTES)).await?;
        let bytes = match (body, wanted.size_bytes) {
            (Some(bytes), _) => bytes,
            (None, Some(size)) if size <= MAX_MANIFEST_BYTES as u64 => {
                return Err(
                    Failure::wrong(&format!("sent a manifest longer than the {size} bytes its index says")).into()
                );
            }
            (None, _) => return Err(Trouble::TooLarge),
        };
        let digest = verify(&bytes, pinned, &headers)?;
        let content_type = answer::text(&headers, CONTENT_TYPE).map(str::to_owned);
        Ok(Verified { size_bytes: bytes.len() as u64, bytes, digest, content_type })
    }
}

/// The digest of a manifest's bytes, when it is the one that was asked for, or else the one that the registry says it is.
fn verify(bytes: &[u8], pinned: Option<Digest>, headers: &HeaderMap) -> Result<Digest, Trouble> {
    let actual = Digest::of(bytes);
    // A digest of another algorithm cannot be checked here; it was not asked for either.
    let said = answer::text(headers, http::HeaderName::from_static("docker-content-digest"));
    let said = said.and_then(|text| text.parse::<Digest>().ok());
    match pinned.or(said) {
        Some(expected) if expected != actual => Err(Trouble::Digest { expected, actual }),
        _ => Ok(actual),
    }
}

impl Trouble {
    fn into_error(self, reference: &Reference, endpoint: &str) -> ResolveError {
        match self {
            Self::Failure(failure) => ResolveError::of(failure, reference, endpoint),
            Self::Digest { expected, actual } => {
                ResolveError::Digest { reference: reference.clone(), endpoint: endpoint.to_owned(), expected, actual }
            }
            Self::TooLarge => ResolveError::Manifest { reference: reference.clone(), error: ManifestError::TooLarge },
        }
    }
}

/// The deadline passed: who was asked last, and what came of it.
pub(crate) fn late(reference: &Reference, after: Duration, last: Option<(String, String)>) -> ResolveError {
    let nothing = || (reference.host().to_owned(), "waiting for the first answer".to_owned());
    let (endpoint, last) = last.unwrap_or_else(nothing);
    ResolveError::Deadline { reference: reference.clone(), endpoint, after, last }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_checked_against_the_pin_and_else_against_the_registry() {
        let bytes = b"manifest";
        let (right, wrong) = (Digest::of(bytes), Digest::of(b"other"));
        let says = |text: &str| -> HeaderMap {
            [(http::HeaderName::from_static("docker-content-digest"), text.parse().unwrap())].into_iter().collect()
        };
        let silent = HeaderMap::new();
        assert!(verify(bytes, Some(right), &silent).is_ok());
        assert!(verify(bytes, Some(wrong), &says(&right.to_string())).is_err());
        assert!(verify(bytes, Some(right), &says(&wrong.to_string())).is_ok(), "the pin decides");
        assert!(verify(bytes, None, &says(&right.to_string())).is_ok());
        assert!(verify(bytes, None, &says(&wrong.to_string())).is_err());
        assert!(verify(bytes, None, &says("sha512:00")).is_ok());
        assert!(verify(bytes, None, &silent).is_ok());
    }
}
