//! What is known about one scope: the pass held, the challenge it answers, and the credentials that were refused. Pure.

use std::time::{Duration, SystemTime};

use http::HeaderValue;
use reqwest::Url;
use tokio::time::Instant;

use crate::{
    challenge::Challenge,
    credentials::{Fingerprint, Provider},
    failure::Failure,
};

/// How long credentials that were refused are not shown again for the same scope; doubled each time they are refused again. Short
/// enough for a right granted just now, and the sum long enough that a wrong password does not lock an account.
const FIRST_QUIET: Duration = Duration::from_secs(5);
/// The longest such time.
const MAX_QUIET: Duration = Duration::from_secs(300);
/// Most credentials that were refused and are remembered for one scope: each provider has a few.
const MAX_REFUSED: usize = 32;
/// A renewal ahead of time that failed is tried again after this share of the life that is left.
const RETRY_AHEAD_SHARE: u32 = 4;

/// What to show with a request.
#[derive(Debug, Clone)]
pub(crate) struct Pass {
    pub(crate) header: Option<HeaderValue>,
    /// Which renewal it is of: shown again when it was refused, so that it is renewed only once.
    pub(crate) generation: u64,
}

/// A pass and what it was had for.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) header: HeaderValue,
    pub(super) provider: Provider,
    pub(super) credential: Fingerprint,
    pub(super) life: Life,
    /// Whether a server has taken it.
    pub(super) confirmed: bool,
}

/// How long a pass is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// The credentials themselves, until they are refused.
    Open,
    /// A token.
    Token {
        /// From when on it is renewed while it is still good.
        renew_at: Instant,
        /// Until when it is shown.
        until: Instant,
    },
}

/// Credentials that a registry or its token server refused.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    credential: Fingerprint,
    pub(super) provider: Provider,
    pub(super) reason: String,
    pub(super) at: SystemTime,
    quiet_until: Instant,
    quiet: Duration,
}

/// What to do for a pass.
#[derive(Debug)]
pub(super) enum Wish {
    /// Show this.
    Show(Pass),
    /// It has ended: renew it first.
    Renew((Challenge, Url), u64),
    /// It is good, and near its end: whoever is first renews it, the others show it.
    Ahead(Pass, (Challenge, Url)),
}

/// A scope's state.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) held: Option<Held>,
    /// The last challenge answered: a pass that has ended is renewed without being refused first.
    pub(super) challenge: Option<(Challenge, Url)>,
    pub(super) generation: u64,
    /// Why the last renewal failed.
    pub(super) failure: Option<Failure>,
    /// Whether the registry has accepted a pass of ours: from then on a refusal is a change, which another may undo.
    pub(super) accepted: bool,
    refused: Vec<Refusal>,
}

impl State {
    pub(super) fn pass(&self, now: Instant) -> Pass {
        let held = self.held.as_ref().filter(|held| held.life.lasts(now));
        Pass { header: held.map(|held| held.header.clone()), generation: self.generation }
    }

    pub(super) fn wish(&self, now: Instant) -> Wish {
        let pass = self.pass(now);
        let near = self.held.as_ref().is_some_and(|held| held.life.is_near_its_end(now));
        match (&pass.header, self.challenge.clone()) {
            (Some(_), Some(challenge)) if near => Wish::Ahead(pass, challenge),
            (None, Some(challenge)) if self.failure.is_none() => Wish::Renew(challenge, self.generation),
            _ => Wish::Show(pass),
        }
    }

    /// A renewal succeeded.
    pub(super) fn renewed(&mut self, held: Held) -> Pass {
        self.generation += 1;
        self.failure = None;
        let pass = Pass { header: Some(held.header.clone()), generation: self.generation };
        self.held = Some(held);
        pass
    }

    /// A renewal failed. A token that has not ended is shown further: the registry may take it again. A password is not.
    pub(super) fn failed(&mut self, failure: Failure) {
        self.generation += 1;
        self.held = self.held.take().filter(|held| held.life != Life::Open);
        self.failure = Some(failure);
    }

    /// A renewal ahead of time failed: the pass is shown for as long as it is good.
    pub(super) fn failed_ahead(&mut self, now: Instant) {
        if let Some(Held { life: Life::Token { renew_at, until }, .. }) = &mut self.held {
            *renew_at = now + until.saturating_duration_since(now) / RETRY_AHEAD_SHARE;
        }
    }

    /// How long these credentials are not to be shown yet, and why.
    pub(super) fn quiet(&self, credential: Fingerprint, now: Instant) -> Option<(Duration, &str)> {
        let refusal = self.refused.iter().find(|refusal| refusal.credential == credential)?;
        let left = refusal.quiet_until.saturating_duration_since(now);
        (!left.is_zero()).then_some((left, refusal.reason.as_str()))
    }

    /// A provider offers these: what it offered before and was refused is history. Whether there was such.
    pub(super) fn offered(&mut self, provider: Provider, credentials: &[Fingerprint]) -> bool {
        let before = self.refused.len();
        self.refused.retain(|refusal| refusal.provider != provider || credentials.contains(&refusal.credential));
        self.refused.len() < before
    }

    /// Credentials were refused. Whether that is news: they were not known to be.
    pub(super) fn refuse(
        &mut self,
        provider: Provider,
        credential: Fingerprint,
        reason: &str,
        now: (Instant, SystemTime),
    ) -> bool {
        let (instant, at) = now;
        if let Some(known) = self.refused.iter_mut().find(|refusal| refusal.credential == credential) {
            // Those who asked at the same time are refused together.
            if known.quiet_until <= instant {
                known.quiet = known.quiet.saturating_mul(2).min(MAX_QUIET);
                known.quiet_until = instant + known.quiet;
            }
            known.at = at;
            reason.clone_into(&mut known.reason);
            return false;
        }
        if self.refused.len() >= MAX_REFUSED {
            self.refused.remove(0);
        }
        self.refused.push(Refusal {
            credential,
            provider,
            reason: reason.to_owned(),
            at,
            quiet_until: instant + FIRST_QUIET,
            quiet: FIRST_QUIET,
        });
        true
    }

    /// A server took the pass of renewal `generation`. Its provider, the first time.
    pub(super) fn take(&mut self, generation: u64) -> Option<Provider> {
        let held = self.held.as_mut().filter(|held| self.generation == generation && !held.confirmed)?;
        held.confirmed = true;
        let (credential, provider) = (held.credential, held.provider);
        self.accepted = true;
        self.failure = None;
        self.refused.retain(|refusal| refusal.credential != credential);
        Some(provider)
    }

    /// Forgets what is held and what was refused: other credentials may hold now.
    pub(super) fn begin_anew(&mut self) {
        self.generation += 1;
        self.held = None;
        self.failure = None;
        self.refused.clear();
    }

    pub(super) fn refused(&self) -> &[Refusal] {
        &self.refused
    }
}

impl Life {
    fn lasts(self, now: Instant) -> bool {
        match self {
            Self::Open => true,
            Self::Token { until, .. } => now < until,
        }
    }

    fn is_near_its_end(self, now: Instant) -> bool {
        match self {
            Self::Open => false,
            Self::Token { renew_at, .. } => now >= renew_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Credential, Secret, credentials::Fingerprints};

    fn fingerprint(prints: &Fingerprints, text: &str) -> Fingerprint {
        prints.of(&Credential::Token(Secret::new(text.to_owned())))
    }

    fn held(credential: Fingerprint, life: Life) -> Held {
        Held { header: HeaderValue::from_static("x"), provider: Provider::Api, credential, life, confirmed: false }
    }

    fn challenged() -> State {
        let challenge = (Challenge::Basic, Url::parse("https://r.io/v2/").unwrap());
        State { challenge: Some(challenge), ..State::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_is_shown_then_renewed_ahead_then_renewed_first() {
        let mut state = challenged();
        assert!(matches!(state.wish(Instant::now()), Wish::Renew(_, 0)));
        let now = Instant::now();
        let life = Life::Token { renew_at: now + Duration::from_secs(60), until: now + Duration::from_secs(100) };
        state.renewed(held(fingerprint(&Fingerprints::default(), "a"), life));
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(matches!(state.wish(at(0)), Wish::Show(Pass { header: Some(_), generation: 1 })));
        assert!(matches!(state.wish(at(60)), Wish::Ahead(Pass { header: Some(_), .. }, _)));
        state.failed_ahead(at(60));
        assert!(matches!(state.wish(at(69)), Wish::Show(Pass { header: Some(_), .. })), "not at once again");
        assert!(matches!(state.wish(at(70)), Wish::Ahead(..)));
        assert!(matches!(state.wish(at(100)), Wish::Renew(_, 1)));
        state.failed(Failure::denied("x".to_owned()));
        assert!(matches!(state.wish(at(80)), Wish::Ahead(Pass { header: Some(_), generation: 2 }, _)));
        assert!(matches!(state.wish(at(100)), Wish::Show(Pass { header: None, .. })), "the registry is asked why");
    }

    #[tokio::test(start_paused = true)]
    async fn refused_credentials_are_shown_ever_less_often_and_said_once() {
        let prints = Fingerprints::default();
        let wrong = fingerprint(&prints, "wrong");
        let mut state = challenged();
        let mut now = Instant::now();
        let mut quiets = Vec::new();
        for nth in 0..9 {
            let news = state.refuse(Provider::Api, wrong, "no", (now, SystemTime::now()));
            assert_eq!(news, nth == 0);
            assert!(!state.refuse(Provider::Api, wrong, "no", (now, SystemTime::now())), "together");
            let (quiet, _) = state.quiet(wrong, now).unwrap();
            quiets.push(quiet.as_secs());
            now += quiet;
            assert_eq!(state.quiet(wrong, now), None);
        }
        assert_eq!(quiets, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(state.quiet(fingerprint(&prints, "right"), now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_accepted_or_replaced_is_no_longer_refused() {
        let prints = Fingerprints::default();
        let (old, new) = (fingerprint(&prints, "old"), fingerprint(&prints, "new"));
        let now = (Instant::now(), SystemTime::now());
        let mut state = challenged();
        state.refuse(Provider::Api, old, "no", now);
        state.renewed(held(old, Life::Open));
        assert_eq!(state.take(0), None, "an old pass says nothing");
        assert_eq!(state.take(1), Some(Provider::Api));
        assert_eq!((state.take(1), state.accepted, state.refused().len()), (None, true, 0));
        state.refuse(Provider::Api, old, "no", now);
        state.refuse(Provider::StaticFile, new, "no", now);
        assert!(!state.offered(Provider::Api, &[new, old]), "still offered");
        assert!(state.offered(Provider::Api, &[new]));
        assert_eq!(state.refused().len(), 1, "what another provider offers is not touched");
        for n in 0..100 {
            state.refuse(Provider::Api, fingerprint(&prints, &n.to_string()), "no", now);
        }
        assert_eq!(state.refused().len(), MAX_REFUSED);
        state.begin_anew();
        assert!(state.refused().is_empty() && state.pass(now.0).header.is_none());
    }
}
