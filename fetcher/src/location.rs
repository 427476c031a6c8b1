//! Where a registry sent us for a blob, and for how long that address is good.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use reqwest::Url;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use crate::timestamp;

/// How long an address is kept that does not say how long it is good. Signed addresses live five minutes and more; one that
/// ends earlier is found out by its 403 and asked for again.
const UNSAID_LIFETIME: Duration = Duration::from_secs(240);
/// Longest an address is kept, whatever it says: content moves, and registries balance load by where they send us.
const MAX_LIFETIME: Duration = Duration::from_secs(3600);
/// Shortest an address is kept: it has just given us bytes, so what says that it has ended is a wrong clock. If it is right, its
/// 403 says so soon enough.
const MIN_LIFETIME: Duration = Duration::from_secs(5);
/// An address is given up this long before its end, so that a request sent in time also arrives in time.
const MARGIN: Duration = Duration::from_secs(10);

/// How to ask for a blob's bytes.
#[derive(Debug, Clone)]
pub(crate) enum Route {
    /// Not asked yet.
    Unknown,
    /// The address that was known has ended.
    Ended,
    /// The registry serves the bytes itself.
    Direct,
    /// The registry sent us there.
    At(Url),
}

/// Requests that learn a route at the same time when it was never known: whoever opens a layer asks for its head and its tail at once, and a replay for
/// more; to wait for one of them would be a round trip for all. An address that has ended is asked for by one.
const LEARNERS: u32 = 8;

/// What is known about one blob in one repository.
#[derive(Debug)]
pub(crate) struct Location {
    known: Mutex<Known>,
    /// Permits are held by each request that learns the route, while others wait for it.
    learning: Semaphore,
}

#[derive(Debug)]
enum Known {
    Nothing,
    Ended,
    Direct,
    At { url: Url, until: Instant },
}

impl Location {
    pub(crate) fn new() -> Self {
        Self { known: Mutex::new(Known::Nothing), learning: Semaphore::new(LEARNERS as usize) }
    }

    pub(crate) fn route(&self) -> Route {
        let mut known = self.known.lock();
        match &*known {
            Known::Nothing => Route::Unknown,
            Known::Ended => Route::Ended,
            Known::Direct => Route::Direct,
            Known::At { url, until } if Instant::now() < *until => Route::At(url.clone()),
            Known::At { .. } => {
                *known = Known::Ended;
                Route::Ended
            }
        }
    }

    /// Waits for the turn to learn the route; `None` when there is nothing to learn. Look at it again then: it may have been learnt meanwhile.
    pub(crate) async fn learn(&self) -> Option<SemaphorePermit<'_>> {
        let permits = match self.route() {
            Route::Direct => return None,
            Route::Unknown => 1,
            Route::Ended | Route::At(_) => LEARNERS,
        };
        // Never closed.
        self.learning.acquire_many(permits).await.ok()
    }

    /// The registry answered itself.
    pub(crate) fn is_direct(&self) {
        *self.known.lock() = Known::Direct;
    }

    /// The registry sent us to `url`, which gave us bytes and is good for `lifetime`.
    pub(crate) fn is_at(&self, url: Url, lifetime: Duration) {
        *self.known.lock() = Known::At { url, until: Instant::now() + lifetime };
    }

    /// `url` does not answer any more. Forgets it, unless another request has learnt a new one meanwhile.
    pub(crate) fn ended(&self, url: &Url) {
        let mut known = self.known.lock();
        if matches!(&*known, Known::At { url: at, .. } if at == url) {
            *known = Known::Ended;
        }
    }
}

/// How long an address may be used, from now on. `now` is the clock of the server that gave it.
pub(crate) fn lifetime(url: &Url, now: SystemTime) -> Duration {
    let Some(end) = end(url) else { return UNSAID_LIFETIME };
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Duration::from_secs(end.saturating_sub(now)).saturating_sub(MARGIN).clamp(MIN_LIFETIME, MAX_LIFETIME)
}

/// When a signed address ends, in seconds since 1970, by its query: AWS and Google signatures version 4, CloudFront and old
/// signatures (`Expires`), Azure (`se`), Cloudflare (`verify=SECONDS-...`).
fn end(url: &Url) -> Option<u64> {
    let value = |name: &str| url.query_pairs().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let seconds = |text: &str| text.parse::<u64>().ok();
    for vendor in ["X-Amz", "X-Goog"] {
        let date = value(&format!("{vendor}-Date")).and_then(|date| timestamp::parse(&date));
        let good = value(&format!("{vendor}-Expires")).and_then(|good| seconds(&good));
        if let (Some(date), Some(good)) = (date, good) {
            return date.checked_add(good);
        }
    }
    let plain = value("Expires").and_then(|text| seconds(&text));
    let azure = || value("se").and_then(|text| timestamp::parse(&text));
    let cloudflare = || value("verify").and_then(|text| seconds(text.split('-').next()?));
    plain.or_else(azure).or_else(cloudflare)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    /// 2024-02-29T12:00:00Z
    const NOON: u64 = 1_709_208_000;

    fn lifetime_of(query: &str) -> u64 {
        let url = Url::parse(&format!("https://cdn.example.com/blob?{query}")).unwrap();
        lifetime(&url, UNIX_EPOCH + Duration::from_secs(NOON)).as_secs()
    }

    #[test]
    fn the_end_of_signed_addresses_is_read() {
        for (query, seconds) in [
            ("X-Amz-Date=20240229T120000Z&X-Amz-Expires=1200", 1190),
            ("x-amz-expires=1200&x-amz-date=20240229T115500Z", 890),
            ("X-Goog-Date=20240229T120000Z&X-Goog-Expires=300", 290),
            ("Expires=1709208100&Signature=x", 90),
            ("sv=2020&se=2024-02-29T12%3A10%3A00Z&sig=x", 590),
            ("verify=1709208060-abc%3D", 50),
            ("X-Amz-Date=20240229T120000Z&X-Amz-Expires=604800", 3600),
            ("Expires=1709208005", 5),
            ("Expires=1", 5),
            ("X-Amz-Expires=60", 240),
            ("Expires=soon", 240),
            ("X-Amz-Date=20240229T120000Z&X-Amz-Expires=18446744073709551615", 240),
            ("", 240),
        ] {
            assert_eq!(lifetime_of(query), seconds, "{query}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_used_until_its_end() {
        let location = Location::new();
        let url = Url::parse("https://cdn.example.com/a").unwrap();
        assert!(matches!(location.route(), Route::Unknown));
        location.is_at(url.clone(), Duration::from_secs(60));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(matches!(location.route(), Route::At(at) if at == url));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(matches!(location.route(), Route::Ended));
    }

    #[test]
    fn only_the_address_that_failed_is_forgotten() {
        let url = |path: &str| Url::parse(&format!("https://cdn.example.com/{path}")).unwrap();
        let location = Location { known: Mutex::new(Known::Direct), learning: Semaphore::new(LEARNERS as usize) };
        location.ended(&url("a"));
        assert!(matches!(location.route(), Route::Direct));
        *location.known.lock() = Known::At { url: url("b"), until: Instant::now() + MAX_LIFETIME };
        location.ended(&url("a"));
        assert!(matches!(location.route(), Route::At(_)));
        location.ended(&url("b"));
        assert!(matches!(location.route(), Route::Ended));
    }

    #[tokio::test]
    async fn a_route_that_was_never_known_is_learnt_by_several_one_that_has_ended_by_one() {
        let location = Location::new();
        let learners = [location.learn().now_or_never(), location.learn().now_or_never()];
        assert!(learners.iter().all(|learner| matches!(learner, Some(Some(_)))), "head and tail are asked for at once");
        drop(learners);
        let url = Url::parse("https://cdn.example.com/a").unwrap();
        location.is_at(url.clone(), MAX_LIFETIME);
        location.ended(&url);
        let learner = location.learn().now_or_never().expect("the first");
        assert!(location.learn().now_or_never().is_none(), "the second waits for what the first learns");
        location.is_direct();
        drop(learner);
        assert!(location.learn().now_or_never().is_some_and(|learner| learner.is_none()), "there is nothing to learn");
    }

    proptest! {
        #[test]
        fn any_query_gives_a_bounded_lifetime(query in "\\PC{0,80}|(Expires|se|verify|X-Amz-Date)=[0-9TZ:-]{0,30}") {
            prop_assert!(lifetime_of(&query) <= MAX_LIFETIME.as_secs());
        }
    }
}
