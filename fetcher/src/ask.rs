//! Asking an endpoint: with a pass, following where it sends us.

use std::time::SystemTime;

use http::{HeaderMap, StatusCode, header::LOCATION};
use reqwest::{Response, Url};

use crate::{
    answer,
    auth::{Auth, Pass, Scope},
    endpoint::Endpoint,
    failure::{Class, Failure},
    metrics::Purpose,
    web::{authority, is_redirect},
};

/// Most hops from the registry to the content: a registry in front of a registry in front of a store makes two.
const MAX_HOPS: usize = 5;

/// Most passes shown for one request: the one that has ended, and one for each credential that providers offer.
const MAX_PASSES: usize = 8;

/// What is asked for: always a GET.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) purpose: Purpose,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
}

/// Where the answer came from.
#[derive(Debug)]
pub(crate) struct Answered {
    /// Neither a redirect nor a 401 that a pass could help.
    pub(crate) response: Response,
    /// Where the endpoint sent us in the end, and its clock then; `None` when it answered itself.
    pub(crate) sent_to: Option<(Url, SystemTime)>,
}

/// The tools for asking.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) auth: &'a Auth,
    pub(crate) endpoint: &'a Endpoint,
}

impl Asker<'_> {
    /// Asks the endpoint itself, as the scope's user.
    ///
    /// The pass goes to the endpoint's own origin only. Where it sends us is asked without, because the address is what gives
    /// access there; only when that address is of the same origin and answers 401, it is asked with the pass.
    pub(crate) async fn ask(&self, scope: &Scope, ask: &Ask) -> Result<Answered, Failure> {
        let web = &self.endpoint.web;
        let lapse = |failure: Failure| match ask.purpose {
            // Whoever names an image waits for the answer; what was read before may be read again.
            Purpose::Blob => self.auth.lapse(scope, failure),
            _ => failure,
        };
        let (pass, mut response) = self.ask_with_pass(scope, ask).await.map_err(lapse)?;
        let mut sent_to: Option<(Url, SystemTime)> = None;
        for _ in 0..MAX_HOPS {
            if !is_redirect(response.status()) {
                return Ok(Answered { response, sent_to });
            }
            let from = sent_to.as_ref().map_or(&ask.url, |(url, _)| url);
            let target = target(from, response.headers())?;
            web.may_follow(from, &target)?;
            let clock = answer::clock(response.headers(), SystemTime::now());
            web.discard(response).await;
            response = self.get(ask, &target, &None).await.map_err(|failure| blame(&target, failure))?;
            let own = target.origin() == ask.url.origin();
            if own && response.status() == StatusCode::UNAUTHORIZED && pass.header.is_some() {
                web.discard(response).await;
                response = self.get(ask, &target, &pass.header).await?;
            }
            sent_to = Some((target, clock));
        }
        Err(Failure::new(Class::Refused, &format!("sent us in circles ({MAX_HOPS} redirects)")))
    }

    /// Asks the endpoint itself, and when it refuses the pass with another one, until it takes one or there is none.
    async fn ask_with_pass(&self, scope: &Scope, ask: &Ask) -> Result<(Pass, Response), Failure> {
        let mut pass = self.auth.pass(&self.endpoint.web, scope).await?;
        for nth in 0..=MAX_PASSES {
            let response = self.get(ask, &ask.url, &pass.header).await?;
            if !matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                if pass.header.is_some() {
                    self.auth.accepted(scope, pass.generation);
                }
                return Ok((pass, response));
            }
            let (headers, status) = (response.headers().clone(), response.status());
            self.endpoint.web.discard(response).await;
            if nth > 0 {
                let reason =
                    format!("refused a fresh pass ({}): these credentials may not pull there", status.as_u16());
                self.auth.refuse(scope, pass.generation, &reason);
            }
            pass = match status {
                StatusCode::UNAUTHORIZED => {
                    self.auth.answer(&self.endpoint.web, scope, (&headers, &ask.url), pass.generation).await?
                }
                _ => self.again(scope, &pass).await?,
            };
        }
        Err(Failure::denied(format!("refused {MAX_PASSES} passes, one after the other")))
    }

    /// A pass instead of one that was refused with a 403. Where the way to log in is not known yet, the endpoint is asked for it.
    async fn again(&self, scope: &Scope, pass: &Pass) -> Result<Pass, Failure> {
        if self.auth.is_challenged(scope) {
            return self.auth.again(&self.endpoint.web, scope, pass.generation).await;
        }
        let refused = || Failure::denied("answered 403".to_owned());
        let root = self.endpoint.root().ok_or_else(refused)?;
        self.endpoint.sent();
        let response = self.endpoint.web.get(Purpose::Token, root.clone(), HeaderMap::new(), None).await?;
        let (headers, status) = (response.headers().clone(), response.status());
        self.endpoint.web.discard(response).await;
        match status {
            StatusCode::UNAUTHORIZED => {
                self.auth.answer(&self.endpoint.web, scope, (&headers, &root), pass.generation).await
            }
            _ => Err(refused()),
        }
    }

    /// Asks an address where the endpoint sent us before.
    pub(crate) async fn ask_at(&self, ask: &Ask, url: &Url) -> Result<Response, Failure> {
        self.get(ask, url, &None).await.map_err(|failure| blame(url, failure))
    }

    async fn get(&self, ask: &Ask, url: &Url, header: &Option<http::HeaderValue>) -> Result<Response, Failure> {
        self.endpoint.sent();
        self.endpoint.web.get(ask.purpose, url.clone(), ask.headers.clone(), header.clone()).await
    }
}

/// Says in a failure that it happened where the endpoint sent us.
pub(crate) fn blame(url: &Url, failure: Failure) -> Failure {
    let reason = format!("sent us to {}, which failed: {}", authority(url), failure.reason);
    Failure { reason, ..failure }
}

/// Where a redirect leads, relative addresses resolved.
fn target(from: &Url, headers: &HeaderMap) -> Result<Url, Failure> {
    let refused = || Failure::new(Class::Refused, "redirects without an address that can be read");
    let location = answer::text(headers, LOCATION).ok_or_else(refused)?;
    let mut target = from.join(location).map_err(|_| refused())?;
    target.set_fragment(None);
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_resolved_and_unreadable_ones_refused() {
        let from = Url::parse("https://r.io/v2/a/blobs/x").unwrap();
        let target = |location: &str| {
            let headers = [(LOCATION, location.parse().unwrap())].into_iter().collect();
            target(&from, &headers).map(|url| url.to_string())
        };
        assert_eq!(target("https://cdn.io/x?s=1#f").unwrap(), "https://cdn.io/x?s=1");
        assert_eq!(target("/store/x").unwrap(), "https://r.io/store/x");
        assert_eq!(target("//cdn.io/x").unwrap(), "https://cdn.io/x");
        assert!(target("https://").is_err());
        assert!(super::target(&from, &HeaderMap::new()).is_err());
    }
}
