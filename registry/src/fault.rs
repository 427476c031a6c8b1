//! Faults: what goes wrong on purpose, with which requests, how often.

use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use penstock_blob::Digest;

use crate::route::{Kind, Route};

/// What goes wrong with a request. Turn it into a [`Rule`] to say with which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// This status and an error body instead of an answer.
    Status(u16),
    /// 429, with `Retry-After` in whole seconds (rounded up) when given.
    TooMany {
        /// How long the client should wait.
        retry_after: Option<Duration>,
    },
    /// The connection is reset (RST) after this many bytes of the body.
    ResetMidBody {
        /// Bytes of the body that are sent first.
        after_bytes: u64,
    },
    /// The connection is closed in order (FIN) after half of the body that `Content-Length` promised.
    ShortBody,
    /// A `Content-Range` one byte further than what is sent; on a request without a range, nothing is changed.
    WrongContentRange,
    /// 200 with the whole blob, whatever range was asked.
    IgnoreRange,
    /// 401 with a challenge, although the credentials are good.
    Unauthorized,
    /// 403, as an object store answers a signed URL that has expired. Without another [`Target`] it meets requests to such URLs.
    ExpiredRedirect,
    /// The head, then nothing until [`crate::Registry::release`] or until the client hangs up.
    Stall,
    /// The answer is late by this much; all else is as it should be.
    Delay(Duration),
    /// One bit in the middle of the body is flipped.
    WrongBytes,
}

/// Which requests a [`Rule`] is about, by what they ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The request that is answered with a blob's bytes: the blob's own path, or the signed URL where redirects are on.
    BlobBytes,
    /// Requests of this kind.
    Kind(Kind),
    /// All requests.
    Any,
}

/// A fault, the requests that it meets, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    fault: Fault,
    target: Target,
    method: Option<Method>,
    digest: Option<Digest>,
    skip: u32,
    /// `None`: for ever.
    times: Option<u32>,
}

impl Fault {
    /// This fault for requests of `target`.
    #[must_use]
    pub fn on(self, target: Target) -> Rule {
        Rule { target, ..self.into() }
    }

    /// This fault for the next `n` blob downloads.
    #[must_use]
    pub fn times(self, n: u32) -> Rule {
        Rule::from(self).times(n)
    }

    /// This fault for all blob downloads until [`crate::Registry::clear_faults`].
    #[must_use]
    pub fn always(self) -> Rule {
        Rule::from(self).always()
    }
}

/// Once, on the next GET that is answered with a blob's bytes.
impl From<Fault> for Rule {
    fn from(fault: Fault) -> Self {
        let target = match fault {
            Fault::ExpiredRedirect => Target::Kind(Kind::Storage),
            _ => Target::BlobBytes,
        };
        Self { fault, target, method: None, digest: None, skip: 0, times: Some(1) }
    }
}

impl Rule {
    /// Only requests of `target`.
    #[must_use]
    pub const fn on(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// Only requests with this method. Without it, [`Target::BlobBytes`] is about GET and the others about any.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    /// Only requests that name this digest in their path.
    #[must_use]
    pub const fn digest(mut self, digest: Digest) -> Self {
        self.digest = Some(digest);
        self
    }

    /// Not the first `n` requests that would match.
    #[must_use]
    pub const fn skip(mut self, n: u32) -> Self {
        self.skip = n;
        self
    }

    /// The next `n` requests that match.
    #[must_use]
    pub const fn times(mut self, n: u32) -> Self {
        self.times = Some(n);
        self
    }

    /// Every request that matches.
    #[must_use]
    pub const fn always(mut self) -> Self {
        self.times = None;
        self
    }

    fn matches(&self, method: &Method, route: &Route, redirects: bool) -> bool {
        let kind = route.kind();
        let target = match self.target {
            Target::Any => true,
            Target::Kind(wanted) => kind == wanted,
            Target::BlobBytes => {
                let bytes_from = if redirects { Kind::Storage } else { Kind::Blob };
                kind == bytes_from && (self.method.is_some() || method == Method::GET)
            }
        };
        target
            && self.method.as_ref().is_none_or(|wanted| wanted == method)
            && self.digest.is_none_or(|wanted| route.digest() == Some(wanted))
    }
}

/// The rules in force, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    rules: Mutex<Vec<Rule>>,
}

impl Faults {
    pub(crate) fn push(&self, rule: Rule) {
        self.rules.lock().push(rule);
    }

    pub(crate) fn clear(&self) {
        self.rules.lock().clear();
    }

    /// Rules that have not met all their requests (rules for ever count too).
    pub(crate) fn pending(&self) -> usize {
        self.rules.lock().len()
    }

    /// The fault of the first rule that this request meets. The request uses up one of the rule's times.
    pub(crate) fn take(&self, method: &Method, route: &Route, redirects: bool) -> Option<Fault> {
        let mut rules = self.rules.lock();
        for at in 0..rules.len() {
            let rule = &mut rules[at];
            if rule.times == Some(0) || !rule.matches(method, route, redirects) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            let fault = rule.fault.clone();
            if let Some(times) = &mut rule.times {
                *times -= 1;
            }
            rules.retain(|rule| rule.times != Some(0));
            return Some(fault);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(content: &[u8]) -> Route {
        Route::Blob { repository: "a".to_owned(), digest: Digest::of(content) }
    }

    #[test]
    fn rules_meet_requests_in_order_and_run_out() {
        let faults = Faults::default();
        faults.push(Fault::Status(500).times(2));
        faults.push(Fault::Status(502).into());
        let take = || faults.take(&Method::GET, &blob(b"x"), false);
        assert_eq!(take(), Some(Fault::Status(500)));
        assert_eq!(take(), Some(Fault::Status(500)));
        assert_eq!(take(), Some(Fault::Status(502)));
        assert_eq!((take(), faults.pending()), (None, 0));
    }

    #[test]
    fn rules_tell_digests_methods_and_kinds_apart() {
        let faults = Faults::default();
        faults.push(Fault::WrongBytes.always().digest(Digest::of(b"x")));
        assert_eq!(faults.take(&Method::GET, &blob(b"y"), false), None);
        assert_eq!(faults.take(&Method::HEAD, &blob(b"x"), false), None);
        assert_eq!(faults.take(&Method::GET, &blob(b"x"), true), None, "the bytes come from the signed URL");
        assert_eq!(
            faults.take(&Method::GET, &Route::Storage { digest: Digest::of(b"x") }, true),
            Some(Fault::WrongBytes)
        );
        assert_eq!(faults.take(&Method::GET, &blob(b"x"), false), Some(Fault::WrongBytes));
        faults.clear();
        faults.push(Fault::Status(503).on(Target::Kind(Kind::Manifest)).method(Method::HEAD));
        let manifest = Route::of("/v2/a/manifests/1");
        assert_eq!(faults.take(&Method::GET, &manifest, false), None);
        assert_eq!(faults.take(&Method::HEAD, &manifest, false), Some(Fault::Status(503)));
    }

    #[test]
    fn skipped_requests_pass() {
        let faults = Faults::default();
        faults.push(Rule::from(Fault::ShortBody).skip(2));
        let taken: Vec<_> = (0..4).map(|_| faults.take(&Method::GET, &blob(b"x"), false).is_some()).collect();
        assert_eq!(taken, [false, false, true, false]);
    }
}
