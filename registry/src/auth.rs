//! Who may do what: Basic credentials, and bearer tokens that this server gives out.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    config::{Auth, Credentials},
    query,
    refusal::Refusal,
};

/// How many tokens are remembered at once; the one that expires first goes when another is asked for. Its client is
/// challenged again, as after an expiry.
const TOKEN_LIMIT: usize = 4096;

/// What may be done in one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    repository: String,
    pull: bool,
    push: bool,
}

impl Scope {
    /// `repository:NAME:ACTIONS`; `None` for other kinds of scope.
    fn of(text: &str) -> Option<Self> {
        let (repository, actions) = text.strip_prefix("repository:")?.rsplit_once(':')?;
        let has = |wanted: &str| actions.split(',').any(|action| action == wanted || action == "*");
        Some(Self { repository: repository.to_owned(), pull: has("pull"), push: has("push") })
    }

    /// What a request with `method` to `repository` needs.
    fn needed(repository: &str, method: &Method) -> Self {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        Self { repository: repository.to_owned(), pull: true, push: !reads }
    }

    fn covers(&self, needed: &Self) -> bool {
        self.repository == needed.repository && (self.pull || !needed.pull) && (self.push || !needed.push)
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let actions = if self.push { "pull,push" } else { "pull" };
        write!(f, "repository:{}:{actions}", self.repository)
    }
}

#[derive(Debug)]
struct Token {
    expires: Instant,
    scopes: Vec<Scope>,
}

/// The gate in front of every repository.
#[derive(Debug)]
pub(crate) struct Gate {
    auth: Mutex<Auth>,
    /// Whether repositories answer 403 without a challenge where they would answer 401, as some registries do for a token that has
    /// ended. `/v2/` still answers 401.
    forbids: AtomicBool,
    tokens: Mutex<HashMap<String, Token>>,
}

impl Gate {
    pub(crate) fn new(auth: Auth) -> Self {
        Self { auth: Mutex::new(auth), forbids: AtomicBool::new(false), tokens: Mutex::default() }
    }

    /// Changes who may do what. Tokens given out stay valid until they expire or are revoked.
    pub(crate) fn set(&self, auth: Auth) {
        *self.auth.lock() = auth;
    }

    /// Whether repositories answer 403 instead of 401.
    pub(crate) fn forbid(&self, forbids: bool) {
        self.forbids.store(forbids, Ordering::Relaxed);
    }

    /// Forgets all tokens.
    pub(crate) fn revoke(&self) {
        self.tokens.lock().clear();
    }

    /// Tokens given out that are remembered.
    pub(crate) fn tokens(&self) -> Vec<String> {
        self.tokens.lock().keys().cloned().collect()
    }

    /// Refuses a request to `repository` (`None`: to `/v2/`) that may not be made. `host` is where tokens are had.
    pub(crate) fn check(
        &self,
        host: &str,
        repository: Option<&str>,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        let checked = self.check_credentials(host, repository, method, headers);
        match checked {
            Err(_) if repository.is_some() && self.forbids.load(Ordering::Relaxed) => {
                Err(Refusal::new(StatusCode::FORBIDDEN, "DENIED", "requested access to the resource is denied"))
            }
            checked => checked,
        }
    }

    fn check_credentials(
        &self,
        host: &str,
        repository: Option<&str>,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        let auth = self.auth.lock().clone();
        match auth {
            Auth::None => Ok(()),
            Auth::Basic(known) if basic(headers).as_ref() == Some(&known) => Ok(()),
            Auth::Basic(_) => Err(challenge(basic_challenge())),
            Auth::Token { .. } => {
                let needed = repository.map(|repository| Scope::needed(repository, method));
                self.bearer(headers, needed.as_ref())
                    .map_err(|error| challenge(bearer_challenge(host, needed.as_ref(), error)))
            }
        }
    }

    /// The challenge that a request without credentials gets, for the fault that pretends so.
    pub(crate) fn refuse(&self, host: &str, repository: Option<&str>, method: &Method) -> Refusal {
        let needed = repository.map(|repository| Scope::needed(repository, method));
        challenge(match *self.auth.lock() {
            Auth::Token { .. } => bearer_challenge(host, needed.as_ref(), Some("invalid_token")),
            Auth::None | Auth::Basic(_) => basic_challenge(),
        })
    }

    /// Checks the bearer token; the error is what the challenge says about it.
    fn bearer(&self, headers: &HeaderMap, needed: Option<&Scope>) -> Result<(), Option<&'static str>> {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or(None)?;
        let (scheme, token) = value.split_once(' ').ok_or(None)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(None);
        }
        let tokens = self.tokens.lock();
        let known = tokens.get(token.trim()).filter(|token| token.expires > Instant::now());
        let known = known.ok_or(Some("invalid_token"))?;
        match needed {
            Some(needed) if !known.scopes.iter().any(|scope| scope.covers(needed)) => Err(Some("insufficient_scope")),
            _ => Ok(()),
        }
    }

    /// Answers `/token`: the JSON body of a token for the scopes in `query`.
    pub(crate) fn token(&self, query: &str, headers: &HeaderMap) -> Result<serde_json::Value, Refusal> {
        let auth = self.auth.lock().clone();
        let Auth::Token { credentials, ttl } = auth else {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "this registry gives out no tokens"));
        };
        if credentials.is_some() && basic(headers) != credentials {
            return Err(challenge(basic_challenge()));
        }
        let asked: Vec<String> = query::values(query, "scope").collect();
        Ok(self.issue(&asked, credentials.is_some(), ttl))
    }

    /// Answers a POST to `/token`, OAuth2's form: the refresh token of an account is its password.
    pub(crate) fn grant(&self, form: &str) -> Result<serde_json::Value, Refusal> {
        let auth = self.auth.lock().clone();
        let Auth::Token { credentials: Some(credentials), ttl } = auth else {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "this registry grants no tokens"));
        };
        let value = |name| query::value(form, name).unwrap_or_default();
        let good = match value("grant_type").as_str() {
            "refresh_token" => value("refresh_token") == credentials.password,
            "password" => Credentials::new(&value("username"), &value("password")) == credentials,
            _ => return Err(Refusal::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", "unsupported_grant_type")),
        };
        if !good {
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "invalid_grant"));
        }
        Ok(self.issue(&[value("scope")], true, ttl))
    }

    /// A token for the scopes in `asked`.
    fn issue(&self, asked: &[String], may_push: bool, ttl: Duration) -> serde_json::Value {
        let scopes: Vec<Scope> = asked
            .iter()
            .flat_map(|scopes| scopes.split(' ').filter_map(Scope::of))
            .map(|scope| Scope { push: scope.push && may_push, ..scope })
            .collect();
        let token = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        self.remember(token.clone(), Token { expires: Instant::now() + ttl, scopes });
        serde_json::json!({ "token": token, "access_token": token, "expires_in": whole_seconds(ttl) })
    }

    fn remember(&self, name: String, token: Token) {
        let mut tokens = self.tokens.lock();
        if tokens.len() >= TOKEN_LIMIT {
            let first = tokens.iter().min_by_key(|(_, token)| token.expires).map(|(name, _)| name.clone());
            first.and_then(|name| tokens.remove(&name));
        }
        tokens.insert(name, token);
    }
}

/// The credentials of a Basic header.
fn basic(headers: &HeaderMap) -> Option<Credentials> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, text) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(text.trim()).ok()?).ok()?;
    let (username, password) = decoded.split_once(':')?;
    Some(Credentials::new(username, password))
}

fn basic_challenge() -> String {
    "Basic realm=\"penstock\"".to_owned()
}

/// RFC 6750, and the token specification of the distribution project.
fn bearer_challenge(host: &str, needed: Option<&Scope>, error: Option<&str>) -> String {
    let mut text = format!("Bearer realm=\"http://{host}/token\",service=\"{host}\"");
    for (key, value) in [("scope", needed.map(ToString::to_string)), ("error", error.map(str::to_owned))] {
        if let Some(value) = value {
            text.push_str(&format!(",{key}=\"{value}\""));
        }
    }
    text
}

fn challenge(text: String) -> Refusal {
    let refusal = Refusal::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
    match HeaderValue::try_from(text) {
        Ok(value) => refusal.with(header::WWW_AUTHENTICATE, value),
        Err(_) => refusal,
    }
}

/// `duration` in seconds, rounded up.
pub(crate) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_cover_what_they_name_and_no_more() {
        let scope = Scope::of("repository:a/b:pull").unwrap();
        assert!(scope.covers(&Scope::needed("a/b", &Method::GET)));
        assert!(!scope.covers(&Scope::needed("a/b", &Method::PUT)));
        assert!(!scope.covers(&Scope::needed("a", &Method::GET)));
        assert!(Scope::of("repository:a:pull,push").unwrap().covers(&Scope::needed("a", &Method::POST)));
        assert_eq!(Scope::of("registry:catalog:*"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_for_its_scope_until_it_expires() {
        let ttl = Duration::from_millis(1500);
        let gate = Gate::new(Auth::Token { credentials: None, ttl });
        let answer = gate.token("service=x&scope=repository%3Aa%3Apull%2Cpush", &HeaderMap::new()).unwrap();
        assert_eq!(answer["expires_in"], 2);
        let mut headers = HeaderMap::new();
        let bearer = format!("Bearer {}", answer["token"].as_str().unwrap());
        headers.insert(header::AUTHORIZATION, bearer.try_into().unwrap());
        let check = |repository, method| gate.check("h", Some(repository), &method, &headers);
        let challenge = |refusal: Refusal| refusal.headers[0].1.to_str().unwrap().to_owned();
        check("a", Method::GET).unwrap();
        assert!(gate.grant("grant_type=refresh_token&refresh_token=x").is_err(), "nobody has an account");
        assert!(challenge(check("b", Method::GET).unwrap_err()).contains("insufficient_scope"));
        assert!(
            challenge(check("a", Method::PUT).unwrap_err()).contains("insufficient_scope"),
            "anonymous tokens do not push"
        );
        tokio::time::advance(ttl).await;
        let text = challenge(check("a", Method::GET).unwrap_err());
        assert!(text.contains("invalid_token") && text.contains("scope=\"repository:a:pull\""), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_gets_tokens_for_its_refresh_token_or_its_password() {
        let credentials = Some(Credentials::new("user", "a b&c"));
        let gate = Gate::new(Auth::Token { credentials, ttl: Duration::from_secs(60) });
        let grant = |form: &str| gate.grant(form).map_err(|refusal| refusal.status.as_u16());
        let token =
            grant("grant_type=refresh_token&refresh_token=a+b%26c&service=s&scope=repository%3Aa%3Apull").unwrap();
        let bearer = format!("Bearer {}", token["access_token"].as_str().unwrap());
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, bearer.try_into().unwrap())]);
        gate.check("h", Some("a"), &Method::GET, &headers).unwrap();
        assert!(grant("grant_type=password&username=user&password=a%20b%26c&scope=").is_ok());
        assert_eq!(grant("grant_type=refresh_token&refresh_token=wrong"), Err(401));
        assert_eq!(grant("grant_type=password&username=user&password=wrong"), Err(401));
        assert_eq!(grant("grant_type=magic"), Err(400));
        gate.forbid(true);
        let refused = |repository| gate.check("h", repository, &Method::GET, &HeaderMap::new()).unwrap_err();
        assert_eq!(refused(Some("a")).status, StatusCode::FORBIDDEN);
        assert_eq!(refused(None).status, StatusCode::UNAUTHORIZED, "the way in is still shown");
    }
}
