//! Getting a pass: the chain of providers asked in order, and what they offer shown in turn.

use reqwest::Url;
use tokio::time::Instant;

use super::{
    Action, Auth, Found, Held, Life, Provider, Scope, Slot,
    request::{TokenRequest, basic, bearer},
};
use crate::{
    challenge::Challenge,
    credentials::Credential,
    failure::{Class, Failure},
    web::Web,
};

/// What became of the credentials that were tried so far.
#[derive(Debug, Default)]
struct Tried {
    /// Why the last of them did not do.
    refused: Option<Failure>,
    /// Why a provider could not be asked, the first of several.
    unusable: Option<Failure>,
}

impl Auth {
    /// A pass that answers a challenge. Providers are asked in order, and what is refused leads on to the next; whoever has
    /// nothing is passed over. Only when nobody has anything, nothing is shown: credentials that are refused do not turn into none.
    pub(super) async fn obtain(
        &self,
        web: &Web,
        scope: &Scope,
        slot: (&Slot, &(Challenge, Url)),
    ) -> Result<Held, Failure> {
        let mut tried = Tried::default();
        for source in self.credentials.sources() {
            let offered = match source.find(scope.wanted()).await {
                Ok(offered) => offered,
                Err(failure) => {
                    tried.unusable = tried.unusable.or(Some(failure));
                    continue;
                }
            };
            let prints: Vec<_> = offered.iter().map(|found| self.fingerprints.of(&found.credential)).collect();
            self.offered(scope, slot.0, (source.provider(), &prints));
            for found in offered {
                match self.show(web, scope, slot, &found).await {
                    Ok(held) => return Ok(held),
                    Err(failure) if failure.class == Class::Denied => tried.refused = Some(failure),
                    Err(failure) => return Err(failure),
                }
            }
        }
        match tried {
            Tried { refused: Some(refused), .. } => Err(refused),
            Tried { unusable: Some(unusable), .. } => Err(unusable),
            Tried { .. } => self.show(web, scope, slot, &Found::anonymous()).await,
        }
    }

    /// Shows credentials, unless they were refused lately.
    async fn show(
        &self,
        web: &Web,
        scope: &Scope,
        slot: (&Slot, &(Challenge, Url)),
        found: &Found,
    ) -> Result<Held, Failure> {
        let (slot, challenge) = slot;
        let (provider, credential) = (found.provider, self.fingerprints.of(&found.credential));
        if let Some((left, reason)) = slot.state.lock().quiet(credential, Instant::now()) {
            let seconds = left.as_secs() + 1;
            return Err(Failure::denied(match provider {
                Provider::Anonymous => format!("asks for credentials, and no provider has any for it: {reason}"),
                _ => format!(
                    "refused the credentials of {provider}: {reason}; they are shown again in {seconds} s, others at once"
                ),
            }));
        }
        match exchange(web, scope, challenge, &found.credential).await {
            Ok((header, life)) => Ok(Held { header, provider, credential, life, confirmed: false }),
            Err(failure) => {
                if failure.class == Class::Denied {
                    self.refused(scope, slot, (provider, credential), &failure.reason);
                }
                Err(failure)
            }
        }
    }
}

async fn exchange(
    web: &Web,
    scope: &Scope,
    challenge: &(Challenge, Url),
    credential: &Credential,
) -> Result<(http::HeaderValue, Life), Failure> {
    match (&challenge.0, credential) {
        (Challenge::Basic, Credential::Basic { user, password }) => Ok((basic(user, password)?, Life::Open)),
        (Challenge::Basic, _) => {
            Err(Failure::denied("asks for a user name and a password, and none are set up".to_owned()))
        }
        (Challenge::Bearer { .. }, Credential::Token(token)) => Ok((bearer(token)?, Life::Open)),
        (Challenge::Bearer { realm, service, scope: asked }, credential) => {
            let realm = Url::parse(realm)
                .map_err(|_| Failure::new(Class::Refused, "names a token server whose address cannot be read"))?;
            web.may_follow(&challenge.1, &realm)?;
            let wanted = match (scope.action, asked) {
                (Action::Pull, Some(asked)) => asked.clone(),
                _ => scope.text(),
            };
            let request = TokenRequest { realm, service: service.as_deref(), scope: &wanted };
            let token = request.send(web, credential).await?;
            Ok((bearer(&token.secret)?, token.life(Instant::now(), fastrand::f64())))
        }
    }
}
