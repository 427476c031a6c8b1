//! Who may what: answering challenges, keeping tokens until shortly before their end, renewing them once for all who wait, and not
//! showing again what was refused.
//!
//! A scope's pass is renewed ahead of its end by whoever asks first in its last part, while the others go on showing it; after
//! its end by whoever asks first, while the others wait; and when a server refuses it. Nothing runs on its own: what nobody reads
//! is not renewed.

mod obtain;
mod request;
mod slot;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, header::WWW_AUTHENTICATE};
use parking_lot::Mutex;
use reqwest::Url;
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};

use crate::{
    challenge::Challenge,
    credentials::{Chain, Credential, Fingerprint, Fingerprints, Found, Provider, Wanted, scope::CredentialScope},
    event::Event,
    failure::{Class, Failure},
    metrics::Metrics,
    web::Web,
};

use slot::{Held, State, Wish};
pub(crate) use slot::{Life, Pass};

/// Most scopes kept. A node uses some hundred repositories; beyond this those not in use are forgotten and asked for again.
const MAX_SCOPES: usize = 1024;
/// How long a reader waits for a renewal ahead of time, while it has a pass that is good.
const AHEAD_PATIENCE: Duration = Duration::from_secs(2);

/// What a token must allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Reading.
    Pull,
    /// Reading and writing.
    Push,
}

/// One repository on one host, and what is done there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    pub(crate) host: String,
    pub(crate) repository: String,
    pub(crate) action: Action,
}

/// The passes of all scopes.
#[derive(Debug)]
pub(crate) struct Auth {
    pub(crate) credentials: Chain,
    fingerprints: Fingerprints,
    scopes: Mutex<HashMap<Scope, Arc<Slot>>>,
    /// Which providers' credentials which hosts refuse: said once.
    refused: Mutex<HashMap<(String, Provider), Standing>>,
    /// Counts up when credentials are handed over.
    changes: watch::Sender<u64>,
    events: broadcast::Sender<Event>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Slot {
    state: Mutex<State>,
    /// Held by the one who renews.
    renewing: tokio::sync::Mutex<()>,
}

/// How the credentials of a provider stand with a host that refused some. Hosts that refused none are not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// They are refused, which has been said.
    Refused,
    /// The provider offers others now, which have not been taken yet.
    Replaced,
}

/// One scope in use, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeState {
    /// The registry.
    pub host: String,
    /// The repository.
    pub repository: String,
    /// Whose credentials are in use; `None` when there is no pass.
    pub provider: Option<Provider>,
    /// When the pass ends and is renewed; `None` for credentials that are shown as they are.
    pub expires: Option<SystemTime>,
    /// Credentials that were refused: whose, when last, and why.
    pub refused: Vec<(Provider, SystemTime, String)>,
}

impl Scope {
    fn text(&self) -> String {
        let actions = match self.action {
            Action::Pull => "pull",
            Action::Push => "pull,push",
        };
        format!("repository:{}:{actions}", self.repository)
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted { host: &self.host, repository: &self.repository }
    }
}

impl Auth {
    pub(crate) fn new(credentials: Chain, events: broadcast::Sender<Event>, metrics: Metrics) -> Self {
        Self {
            credentials,
            fingerprints: Fingerprints::default(),
            scopes: Mutex::default(),
            refused: Mutex::default(),
            changes: watch::Sender::new(0),
            events,
            metrics,
        }
    }

    /// What to show for a scope. Renews what has ended, and what is about to.
    pub(crate) async fn pass(&self, web: &Web, scope: &Scope) -> Result<Pass, Failure> {
        let slot = self.slot(scope);
        let wish = slot.state.lock().wish(Instant::now());
        match wish {
            Wish::Show(pass) => Ok(pass),
            Wish::Renew(challenge, generation) => self.renew(web, scope, challenge, generation).await,
            Wish::Ahead(pass, challenge) => Ok(self.ahead(web, scope, (&slot, &challenge)).await.unwrap_or(pass)),
        }
    }

    /// A pass for a server at `from` that refused the one of renewal `seen` with a 401 of these headers.
    pub(crate) async fn answer(
        &self,
        web: &Web,
        scope: &Scope,
        refusal: (&HeaderMap, &Url),
        seen: u64,
    ) -> Result<Pass, Failure> {
        let (headers, from) = refusal;
        let challenge = challenge_of(headers).ok_or_else(|| {
            Failure::denied("answered 401 without a way to log in that is known here (Basic or Bearer)".to_owned())
        })?;
        self.renew(web, scope, (challenge, from.clone()), seen).await
    }

    /// A pass instead of the one of renewal `seen`, which was refused without a challenge: the last challenge holds.
    pub(crate) async fn again(&self, web: &Web, scope: &Scope, seen: u64) -> Result<Pass, Failure> {
        let challenge = self.slot(scope).state.lock().challenge.clone();
        let challenge = challenge.ok_or_else(|| Failure::denied("answered 403".to_owned()))?;
        self.renew(web, scope, challenge, seen).await
    }

    /// Whether a server refused with a challenge before, which [`Self::again`] can answer.
    pub(crate) fn is_challenged(&self, scope: &Scope) -> bool {
        self.slot(scope).state.lock().challenge.is_some()
    }

    /// A fresh pass, of renewal `generation`, was refused: its credentials do not let us in. They are not shown again for a while.
    pub(crate) fn refuse(&self, scope: &Scope, generation: u64, reason: &str) {
        let slot = self.slot(scope);
        let held = {
            let mut state = slot.state.lock();
            let Some(held) = state.held.clone().filter(|_| state.generation == generation) else { return };
            if held.life == Life::Open {
                // A token is shown again without being asked for again; a password is not shown again.
                state.held = None;
            }
            held
        };
        self.refused(scope, &slot, (held.provider, held.credential), reason);
    }

    /// The pass of renewal `generation` was accepted.
    pub(crate) fn accepted(&self, scope: &Scope, generation: u64) {
        let provider = self.slot(scope).state.lock().take(generation);
        if let Some(provider) = provider {
            self.unrefused(&scope.host, provider);
        }
    }

    /// A failure of credentials that were accepted before is one that may pass: others may come.
    pub(crate) fn lapse(&self, scope: &Scope, failure: Failure) -> Failure {
        match failure.class {
            Class::Denied if self.slot(scope).state.lock().accepted => Failure { class: Class::Lapsed, ..failure },
            _ => failure,
        }
    }

    /// Tells when credentials are handed over.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Other credentials hold for what `covered` covers: those held until now are not shown again.
    pub(crate) fn begin_anew(&self, covered: &CredentialScope) {
        let affected: Vec<Arc<Slot>> = {
            let scopes = self.scopes.lock();
            let affected = scopes.iter().filter(|(scope, _)| covered.covers(&scope.host, &scope.repository).is_some());
            affected.map(|(_, slot)| slot.clone()).collect()
        };
        for slot in affected {
            slot.state.lock().begin_anew();
        }
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    /// The scopes in use, sorted.
    pub(crate) fn scopes(&self) -> Vec<ScopeState> {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let scopes = self.scopes.lock();
        let mut states: Vec<ScopeState> = scopes.iter().map(|(scope, slot)| slot.shown(scope, now, clock)).collect();
        states.sort_by(|a, b| (&a.host, &a.repository).cmp(&(&b.host, &b.repository)));
        states
    }

    /// The credentials of the scope's repository, for a client that logs in by itself.
    pub(crate) async fn credential(&self, scope: &Scope) -> Result<Credential, Failure> {
        self.credentials.first(scope.wanted()).await.map(|found| found.credential)
    }

    /// One renewal at a time; who waited for it shares its outcome.
    async fn renew(&self, web: &Web, scope: &Scope, challenge: (Challenge, Url), seen: u64) -> Result<Pass, Failure> {
        let slot = self.slot(scope);
        let _renewing = slot.renewing.lock().await;
        {
            let state = slot.state.lock();
            if state.generation != seen {
                return state.failure.clone().map_or_else(|| Ok(state.pass(Instant::now())), Err);
            }
        }
        let obtained = self.obtain(web, scope, (&slot, &challenge)).await;
        let mut state = slot.state.lock();
        state.challenge = Some(challenge);
        match obtained {
            Ok(held) => {
                self.metrics.renewals.inc();
                Ok(state.renewed(held))
            }
            Err(failure) => {
                state.failed(failure.clone());
                Err(failure)
            }
        }
    }

    /// A fresh pass instead of one that is still good. `None`: another renews it, or it cannot be had now.
    async fn ahead(&self, web: &Web, scope: &Scope, slot: (&Slot, &(Challenge, Url))) -> Option<Pass> {
        let (slot, challenge) = slot;
        let _renewing = slot.renewing.try_lock().ok()?;
        let obtained = tokio::time::timeout(AHEAD_PATIENCE, self.obtain(web, scope, (slot, challenge))).await;
        let mut state = slot.state.lock();
        match obtained {
            Ok(Ok(held)) => {
                self.metrics.renewals.inc();
                return Some(state.renewed(held));
            }
            Ok(Err(failure)) => {
                tracing::debug!(host = scope.host, reason = failure.reason, "a token is not renewed yet")
            }
            Err(_elapsed) => tracing::debug!(host = scope.host, "a token is not renewed yet: no answer"),
        }
        state.failed_ahead(Instant::now());
        None
    }

    fn refused(&self, scope: &Scope, slot: &Slot, whose: (Provider, Fingerprint), reason: &str) {
        let (provider, credential) = whose;
        let now = (Instant::now(), SystemTime::now());
        self.metrics.refused(provider);
        let is_news = slot.state.lock().refuse(provider, credential, reason, now);
        if !is_news {
            return;
        }
        let before = {
            let mut refused = self.refused.lock();
            if refused.len() >= MAX_SCOPES {
                refused.clear();
            }
            refused.insert((scope.host.clone(), provider), Standing::Refused)
        };
        if before != Some(Standing::Refused) {
            let (host, reason) = (scope.host.clone(), reason.to_owned());
            self.say(Event::CredentialsRefused { host, provider, reason });
        }
    }

    /// A provider offers these credentials for a scope.
    fn offered(&self, scope: &Scope, slot: &Slot, offer: (Provider, &[Fingerprint])) {
        let (provider, credentials) = offer;
        let replaced = slot.state.lock().offered(provider, credentials);
        if replaced
            && !self.is_refused_elsewhere(&scope.host, provider)
            && let Some(standing) = self.refused.lock().get_mut(&(scope.host.clone(), provider))
        {
            *standing = Standing::Replaced;
        }
    }

    /// Credentials of a provider were taken: said when they had been refused, and no other repository of the host refuses them.
    fn unrefused(&self, host: &str, provider: Provider) {
        let key = (host.to_owned(), provider);
        if self.refused.lock().contains_key(&key) && !self.is_refused_elsewhere(host, provider) {
            self.refused.lock().remove(&key);
            self.say(Event::CredentialsRefreshed { host: key.0, provider });
        }
    }

    fn say(&self, event: Event) {
        // Nobody listens: a fetcher without an agent.
        let _nobody = self.events.send(event);
    }

    fn is_refused_elsewhere(&self, host: &str, provider: Provider) -> bool {
        let scopes = self.scopes.lock();
        let mut here = scopes.iter().filter(|(scope, _)| scope.host == host);
        here.any(|(_, slot)| slot.state.lock().refused().iter().any(|refusal| refusal.provider == provider))
    }

    fn slot(&self, scope: &Scope) -> Arc<Slot> {
        let mut scopes = self.scopes.lock();
        if let Some(slot) = scopes.get(scope) {
            return slot.clone();
        }
        if scopes.len() >= MAX_SCOPES {
            scopes.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        scopes.entry(scope.clone()).or_default().clone()
    }
}

impl Slot {
    fn shown(&self, scope: &Scope, now: Instant, clock: SystemTime) -> ScopeState {
        let state = self.state.lock();
        let expires = state.held.as_ref().and_then(|held| match held.life {
            Life::Open => None,
            Life::Token { until, .. } => Some(clock + until.saturating_duration_since(now)),
        });
        let refused = state.refused().iter().map(|refusal| (refusal.provider, refusal.at, refusal.reason.clone()));
        ScopeState {
            host: scope.host.clone(),
            repository: scope.repository.clone(),
            provider: state.held.as_ref().map(|held| held.provider),
            expires,
            refused: refused.collect(),
        }
    }
}

/// The challenge of a 401 that is answered.
fn challenge_of(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    Challenge::best(values.flat_map(Challenge::parse))
}
