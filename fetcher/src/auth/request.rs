//! Asking a token server (distribution project, "Token Authentication Specification" and its OAuth2 form).

use std::time::SystemTime;

use base64::Engine as _;
use http::{HeaderMap, HeaderValue};
use reqwest::{Response, Url};
use zeroize::Zeroizing;

use crate::{
    answer,
    credentials::Credential,
    failure::{Class, Failure},
    metrics::Purpose,
    secret::Secret,
    token::{self, Token},
    web::{Web, authority},
};

pub(super) struct TokenRequest<'a> {
    pub(super) realm: Url,
    pub(super) service: Option<&'a str>,
    pub(super) scope: &'a str,
}

impl TokenRequest<'_> {
    pub(super) async fn send(mut self, web: &Web, credential: &Credential) -> Result<Token, Failure> {
        let host = authority(&self.realm);
        let named =
            |failure: Failure| Failure { reason: format!("token server {host}: {}", failure.reason), ..failure };
        let response = match credential {
            Credential::Identity(refresh) => web.post(Purpose::Token, self.realm.clone(), self.form(refresh)).await,
            credential => {
                self.query();
                let header = match credential {
                    Credential::Basic { user, password } => Some(basic(user, password)?),
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

pub(super) fn basic(user: &str, password: &Secret) -> Result<HeaderValue, Failure> {
    let plain = Zeroizing::new(format!("{user}:{}", password.expose()));
    let encoded = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(plain.as_bytes()));
    sensitive(&Zeroizing::new(format!("Basic {}", encoded.as_str())))
}

pub(super) fn bearer(token: &Secret) -> Result<HeaderValue, Failure> {
    sensitive(&Zeroizing::new(format!("Bearer {}", token.expose())))
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
