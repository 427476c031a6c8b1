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
        let mut pass = self.auth.pass(web, scope).await?;
        let mut response = self.get(ask, &ask.url, &pass.header).await?;
        if is_refused(response.status(), &pass) {
            let headers = response.headers().clone();
            let status = response.status();
            web.discard(response).await;
            pass = match status {
                StatusCode::UNAUTHORIZED => self.auth.answer(web, scope, (&headers, &ask.url), pass.generation).await?,
                _ => self.auth.again(web, scope, pass.generation).await?,
            };
            response = self.get(ask, &ask.url, &pass.header).await?;
            if response.status() == StatusCode::UNAUTHORIZED {
                web.discard(response).await;
                return Err(Failure::denied(
                    "refused a fresh pass (401): these credentials may not pull there".to_owned(),
                ));
            }
        }
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

    /// Asks an address where the endpoint sent us before.
    pub(crate) async fn ask_at(&self, ask: &Ask, url: &Url) -> Result<Response, Failure> {
        self.get(ask, url, &None).await.map_err(|failure| blame(url, failure))
    }

    async fn get(&self, ask: &Ask, url: &Url, header: &Option<http::HeaderValue>) -> Result<Response, Failure> {
        self.endpoint.sent();
        self.endpoint.web.get(ask.purpose, url.clone(), ask.headers.clone(), header.clone()).await
    }
}

/// Whether another pass may help: a 401 asks for one, and some registries answer 403 to one that has ended.
fn is_refused(status: StatusCode, pass: &Pass) -> bool {
    status == StatusCode::UNAUTHORIZED || (status == StatusCode::FORBIDDEN && pass.header.is_some())
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
