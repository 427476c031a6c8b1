//! A token server for `docker-registry`: the issuer of the distribution project's token protocol, in this process.
//!
//! Facts: distribution's "Token Authentication Specification" and "Token Authentication Implementation": a JWT signed with RS256 whose
//! header carries the certificate chain (`x5c`), with `iss`, `aud`, `exp`, `nbf`, `iat`, `jti` and `access`.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD as URL},
};
use serde_json::{Value, json};

use crate::{
    listening::{Answered, Asked, Listening},
    tls::Certificate,
};

/// Who issues the tokens: `auth.token.issuer` of the registry's config.
pub const ISSUER: &str = "penstock-tests";
/// For whom: `auth.token.service`.
pub const SERVICE: &str = "docker-registry";

/// How long the registry takes a token. The answer says 300 s: a client finds out by being refused.
const LIVES_SECONDS: u64 = 2;
/// What docker-registry adds to a token's end, for clocks that differ (distribution, registry/auth/token: `Leeway`).
const LEEWAY_SECONDS: u64 = 60;

#[derive(Debug)]
struct Shared {
    key: Certificate,
    scratch: PathBuf,
    /// What `Authorization` must be for a token.
    authorization: String,
    issued: AtomicU64,
    refused: AtomicU64,
}

/// The server; ends with its owner.
#[derive(Debug)]
pub struct TokenServer {
    shared: Arc<Shared>,
    listening: Listening,
}

impl TokenServer {
    /// Starts it: tokens are signed with `key`, and given to `user` with `password`.
    ///
    /// # Panics
    /// When there is no port.
    #[must_use]
    pub fn start(key: Certificate, scratch: PathBuf, user: &str, password: &str) -> Self {
        let shared = Arc::new(Shared {
            key,
            scratch,
            authorization: format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))),
            issued: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let serving = Arc::clone(&shared);
        Self { shared, listening: Listening::start(move |asked| serving.answer(&asked)) }
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> &str {
        self.listening.host()
    }

    /// Tokens issued so far.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.shared.issued.load(Ordering::SeqCst)
    }

    /// Requests refused for their password.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn answer(&self, asked: &Asked) -> Answered {
        let (status, body) = if asked.header("authorization") == Some(&self.authorization) {
            ("200 OK", self.issue(&asked.line))
        } else {
            self.refused.fetch_add(1, Ordering::SeqCst);
            ("401 Unauthorized", json!({"errors": [{"code": "UNAUTHORIZED"}]}))
        };
        Answered { status: status.to_owned(), kind: "application/json", body: body.to_string() }
    }

    /// A token for the scopes of a `GET /token?service=...&scope=...`.
    fn issue(&self, request: &str) -> Value {
        let nth = self.issued.fetch_add(1, Ordering::SeqCst);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs();
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [self.key.base64()]});
        let claims = json!({
            "iss": ISSUER, "aud": SERVICE, "sub": "", "jti": nth.to_string(),
            "iat": now - 3600, "nbf": now - 3600, "exp": now + LIVES_SECONDS - LEEWAY_SECONDS, "access": access(request),
        });
        let text = format!("{}.{}", URL.encode(header.to_string()), URL.encode(claims.to_string()));
        let signature = URL.encode(self.key.sign(&text, &self.scratch));
        json!({"token": format!("{text}.{signature}"), "expires_in": 300})
    }
}

/// The `access` claim for the scopes `repository:NAME:ACTION,ACTION` of a request line.
fn access(request: &str) -> Vec<Value> {
    let target = request.split(' ').nth(1).unwrap_or_default();
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let scopes = query.split('&').filter_map(|pair| pair.strip_prefix("scope="));
    scopes
        .filter_map(|scope| {
            let scope = scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
            let (kind, rest) = scope.split_once(':')?;
            let (name, actions) = rest.rsplit_once(':')?;
            Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_become_claims() {
        let request = "GET /token?service=docker-registry&scope=repository%3Aa%2Fb%3Apull HTTP/1.1";
        assert_eq!(access(request), [json!({"type": "repository", "name": "a/b", "actions": ["pull"]})]);
    }
}
