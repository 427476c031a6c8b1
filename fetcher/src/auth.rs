//! Who may what: answering challenges, keeping tokens until shortly before their end, renewing them once for all who wait.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use base64::Engine as _;
use http::{HeaderMap, HeaderValue, header::WWW_AUTHENTICATE};
use parking_lot::Mutex;
use reqwest::{Response, Url};
use tokio::time::Instant;

use crate::{
    answer,
    challenge::Challenge,
    credentials::{Credential, Credentials},
    failure::{Class, Failure},
    metrics::Purpose,
    secret::Secret,
    token::{self, Token},
    web::{Web, authority},
};

/// Most scopes kept. A node uses some hundred repositories; beyond this those not in use are forgotten and asked for again.
const MAX_SCOPES: usize = 1024;

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

/// What to show with a request.
#[derive(Debug, Clone)]
pub(crate) struct Pass {
    pub(crate) header: Option<HeaderValue>,
    /// Which renewal it is of: shown again when it was refused, so that it is renewed only once.
    pub(crate) generation: u64,
}

/// The passes of all scopes.
#[derive(Debug)]
pub(crate) struct Auth {
    credentials: Credentials,
    scopes: Mutex<HashMap<Scope, Arc<Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    state: Mutex<State>,
    /// Held by the one who renews.
    renewing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<(HeaderValue, Option<Instant>)>,
    /// The last challenge answered: a pass that has ended is renewed without being refused first.
    challenge: Option<(Challenge, Url)>,
    generation: u64,
    /// Why the last renewal failed.
    failure: Option<Failure>,
}

impl Scope {
    fn text(&self) -> String {
        let actions = match self.action {
            Action::Pull => "pull",
            Action::Push => "pull,push",
        };
        format!("repository:{}:{actions}", self.repository)
    }
}

impl State {
    fn pass(&self) -> Pass {
        let held = self.held.as_ref().filter(|(_, until)| until.is_none_or(|until| Instant::now() < until));
        Pass { header: held.map(|(header, _)| header.clone()), generation: self.generation }
    }
}

impl Auth {
    pub(crate) fn new(credentials: Credentials) -> Self {
        Self { credentials, scopes: Mutex::new(HashMap::new()) }
    }

    /// What to show for a scope. Renews what has ended.
    pub(crate) async fn pass(&self, web: &Web, scope: &Scope) -> Result<Pass, Failure> {
        let slot = self.slot(scope);
        let (pass, renew) = {
            let state = slot.state.lock();
            let pass = state.pass();
            let ended = pass.header.is_none() && state.failure.is_none();
            (pass, if ended { state.challenge.clone() } else { None })
        };
        match renew {
            None => Ok(pass),
            Some(challenge) => self.renew(web, scope, challenge, pass.generation).await,
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
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenge = Challenge::best(values.flat_map(Challenge::parse)).ok_or_else(|| {
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

    /// One renewal at a time; who waited for it shares its outcome.
    async fn renew(&self, web: &Web, scope: &Scope, challenge: (Challenge, Url), seen: u64) -> Result<Pass, Failure> {
        let slot = self.slot(scope);
        let _renewing = slot.renewing.lock().await;
        {
            let state = slot.state.lock();
            if state.generation != seen {
                return state.failure.clone().map_or_else(|| Ok(state.pass()), Err);
            }
        }
        let obtained = self.obtain(web, scope, &challenge).await;
        let mut state = slot.state.lock();
        state.generation += 1;
        state.challenge = Some(challenge);
        match obtained {
            Ok(held) => {
                web.metrics.renewals.inc();
                state.failure = None;
                let pass = Pass { header: Some(held.0.clone()), generation: state.generation };
                state.held = Some(held);
                Ok(pass)
            }
            Err(failure) => {
                state.held = None;
                state.failure = Some(failure.clone());
                Err(failure)
            }
        }
    }

    async fn obtain(
        &self,
        web: &Web,
        scope: &Scope,
        challenge: &(Challenge, Url),
    ) -> Result<(HeaderValue, Option<Instant>), Failure> {
        let credential = self.credentials.find(&scope.host, &scope.repository).await?;
        match (&challenge.0, credential) {
            (Challenge::Basic, Credential::Basic { user, password }) => Ok((basic(&user, &password)?, None)),
            (Challenge::Basic, _) => {
                Err(Failure::denied("asks for a user name and a password, and none are set up".to_owned()))
            }
            (Challenge::Bearer { .. }, Credential::Token(token)) => Ok((bearer(&token)?, None)),
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
                let until = Instant::now() + token.lifetime;
                Ok((bearer(&token.secret)?, Some(until)))
            }
        }
    }

    /// The credentials of the scope's repository, for a client that logs in by itself.
    pub(crate) async fn credential(&self, scope: &Scope) -> Result<Credential, Failure> {
        self.credentials.find(&scope.host, &scope.repository).await
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

struct TokenRequest<'a> {
    realm: Url,
    service: Option<&'a str>,
    scope: &'a str,
}

impl TokenRequest<'_> {
    async fn send(mut self, web: &Web, credential: Credential) -> Result<Token, Failure> {
        let host = authority(&self.realm);
        let named =
            |failure: Failure| Failure { reason: format!("token server {host}: {}", failure.reason), ..failure };
        let response = match credential {
            Credential::Identity(refresh) => web.post(Purpose::Token, self.realm.clone(), self.form(&refresh)).await,
            credential => {
                self.query();
                let header = match credential {
                    Credential::Basic { user, password } => Some(basic(&user, &password)?),
                    _ => None,
                };
                web.get(Purpose::Token, self.realm, HeaderMap::new(), header).await
            }
        };
        let response = response.map_err(named)?;
        let now = answer::clock(response.headers(), SystemTime::now());
        let body = read(web, response).await.map_err(named)?;
        Token::parse(&body, now).ok_or_else(|| named(Failure::new(Class::Refused, "its answer holds no token")))
    }

    /// The distribution project's form: a GET, the wishes in the query.
    fn query(&mut self) {
        let mut query = self.realm.query_pairs_mut();
        if let Some(service) = self.service {
            query.append_pair("service", service);
        }
        for scope in self.scope.split_ascii_whitespace() {
            query.append_pair("scope", scope);
        }
        query.append_pair("client_id", "penstock");
    }

    /// OAuth2's form, for a refresh token: the wishes in the body.
    fn form(&self, refresh: &Secret) -> String {
        // A URL's query and a form are written alike.
        let mut form = self.realm.clone();
        form.query_pairs_mut()
            .clear()
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", self.service.unwrap_or_default())
            .append_pair("client_id", "penstock")
            .append_pair("scope", self.scope)
            .append_pair("refresh_token", refresh.expose());
        form.query().unwrap_or_default().to_owned()
    }
}

async fn read(web: &Web, response: Response) -> Result<bytes::Bytes, Failure> {
    let status = response.status();
    if !status.is_success() {
        let mut failure = answer::judge(status, response.headers(), SystemTime::now());
        web.discard(response).await;
        match status.as_u16() {
            408 | 425 | 429 => {}
            // What a token server refuses, it refuses to these credentials.
            400..=499 => failure = Failure::denied(format!("answered {status} to these credentials")),
            _ if failure.class == Class::Wrong => failure.class = Class::Refused,
            _ => {}
        }
        return Err(failure);
    }
    let body = web.body(response, token::MAX_ANSWER_BYTES).await?;
    body.ok_or_else(|| Failure::new(Class::Refused, "its answer is larger than any token"))
}

fn basic(user: &str, password: &Secret) -> Result<HeaderValue, Failure> {
    let plain = format!("{user}:{}", password.expose());
    sensitive(&format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(plain)))
}

fn bearer(token: &Secret) -> Result<HeaderValue, Failure> {
    sensitive(&format!("Bearer {}", token.expose()))
}

fn sensitive(text: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| Failure::denied("the credentials hold characters that no header can".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_for_tokens_are_escaped() {
        let mut request = TokenRequest {
            realm: Url::parse("https://auth.example.com/token?account=x").unwrap(),
            service: Some("a b&c"),
            scope: "repository:a/b:pull repository:c:pull,push",
        };
        let form = request.form(&Secret::new("t&=".to_owned()));
        assert_eq!(
            form,
            "grant_type=refresh_token&service=a+b%26c&client_id=penstock\
             &scope=repository%3Aa%2Fb%3Apull+repository%3Ac%3Apull%2Cpush&refresh_token=t%26%3D"
        );
        request.query();
        assert_eq!(
            request.realm.query().unwrap(),
            "account=x&service=a+b%26c&scope=repository%3Aa%2Fb%3Apull&scope=repository%3Ac%3Apull%2Cpush&client_id=penstock"
        );
    }

    #[test]
    fn headers_hide_themselves_and_refuse_line_breaks() {
        let header = basic("user", &Secret::new("hunter2".to_owned())).unwrap();
        assert_eq!(header.to_str().unwrap(), "Basic dXNlcjpodW50ZXIy");
        assert_eq!(format!("{header:?}"), "Sensitive");
        let failure = bearer(&Secret::new("hunter2\r\nx: y".to_owned())).unwrap_err();
        assert!(failure.class == Class::Denied && !failure.reason.contains("hunter2"));
    }
}
