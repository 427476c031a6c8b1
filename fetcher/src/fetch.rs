//! One GET of one range from one place, into the buffers of those who wait.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header::RANGE};
use parking_lot::Mutex;
use penstock_blob::{Blob, ByteRange};
use reqwest::{Response, Url};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    answer,
    ask::{Ask, Asker, blame},
    assembly::Assembly,
    budget::Room,
    endpoint::Asking,
    failure::{Class, Failure},
    fetcher::Core,
    flight::Flight,
    location::{self, Route},
    metrics::Purpose,
    place::Place,
};

/// What a waiter gets in the end.
pub(crate) type Answer = oneshot::Sender<Result<Bytes, Grounded>>;

/// Why nothing more will come, and who said so.
#[derive(Debug, Clone)]
pub(crate) struct Grounded {
    pub(crate) failure: Failure,
    pub(crate) endpoint: String,
}

impl Core {
    /// Fetches what a flight lacks from `place`, answering each waiter as soon as its bytes are here. Several may fill one assembly at
    /// the same time: each piece is taken from whoever brings it first. What came leaves room on the way.
    pub(crate) async fn fetch(
        &self,
        place: &Arc<Place>,
        flight: &Flight,
        asking: &mut Asking,
        room: &mut Room,
    ) -> Result<(), Failure> {
        let Flight { blob, assembly, .. } = flight;
        let Some(range) = begin(&mut assembly.lock()) else { return Ok(()) };
        let web = &place.endpoint.web;
        let started = Instant::now();
        let mut response = self.open(place, blob, range).await?;
        asking.answered();
        let mut at = range.start();
        while at < range.end() {
            let piece = web.chunk(&mut response).await?;
            let piece = piece.ok_or_else(|| {
                Failure::new(
                    Class::Broken,
                    &format!("ended the body after {} of {} bytes", at - range.start(), range.len()),
                )
            })?;
            if piece.len() as u64 > range.end() - at {
                return Err(Failure::wrong("sent more bytes than its Content-Range says"));
            }
            let from = at;
            at += piece.len() as u64;
            asking.came(piece.len() as u64);
            room.came(piece.len() as u64);
            if self.received(place, blob, (from, &piece), assembly) {
                break;
            }
        }
        self.metrics.fetch_seconds.observe(started.elapsed().as_secs_f64());
        if at == range.end() {
            asking.finished(range.len());
            web.finish(response).await;
        }
        Ok(())
    }

    /// Hands a piece of a body on; whether nobody lacks anything any more.
    fn received(
        &self,
        place: &Arc<Place>,
        blob: &Blob,
        (at, piece): (u64, &Bytes),
        assembly: &Mutex<Assembly<Answer>>,
    ) -> bool {
        self.metrics.received_bytes.inc_by(piece.len() as u64);
        self.allowance.earn(piece.len() as u64);
        let mut assembly = assembly.lock();
        if let Ok(range) = ByteRange::at(at, piece.len() as u64)
            && assembly.wants(range)
        {
            self.gave.record(blob.digest, range, place);
        }
        let full = assembly.feed(at, piece);
        if full.is_empty() {
            return assembly.rest().is_none();
        }
        for (waiter, bytes) in full {
            // A waiter that is gone does not want it any more.
            let _gone = waiter.send(Ok(bytes));
        }
        assembly.retain(|waiter| !waiter.is_closed());
        assembly.rest().is_none()
    }

    /// An answer whose head says that the bytes of `range` follow.
    async fn open(&self, place: &Arc<Place>, blob: &Blob, range: ByteRange) -> Result<Response, Failure> {
        let asker = Asker { auth: &self.auth, endpoint: &place.endpoint };
        let ask = Ask {
            purpose: Purpose::Blob,
            url: place.url(&blob.digest).ok_or_else(no_url)?,
            headers: range_header(range)?,
        };
        if let Route::At(url) = place.location.route() {
            let response = asker.ask_at(&ask, &url).await?;
            // What an address that has ended answers, by vendor. It is asked for again, once.
            if !matches!(response.status().as_u16(), 401 | 403 | 404 | 410) {
                return checked(response, range, blob).map_err(|failure| blame(&url, failure));
            }
            place.location.ended(&url);
            place.endpoint.web.discard(response).await;
        }
        let learning = place.location.learn().await;
        if let Route::At(url) = place.location.route() {
            // Learnt by another while we waited.
            drop(learning);
            let response = asker.ask_at(&ask, &url).await?;
            return checked(response, range, blob).map_err(|failure| fresh(&url, failure));
        }
        let answered = asker.ask(&place.scope(), &ask).await?;
        match answered.sent_to {
            None => {
                let response = checked(answered.response, range, blob)?;
                place.location.is_direct();
                Ok(response)
            }
            Some((url, clock)) => {
                let response = checked(answered.response, range, blob).map_err(|failure| fresh(&url, failure))?;
                self.metrics.redirects.inc();
                place.location.is_at(url.clone(), location::lifetime(&url, clock));
                Ok(response)
            }
        }
    }
}

/// What is asked for next, said to those who may want to join.
fn begin(assembly: &mut Assembly<Answer>) -> Option<ByteRange> {
    let run = assembly.run();
    assembly.expect(run);
    run
}

pub(crate) fn no_url() -> Failure {
    Failure::new(Class::Refused, "no URL can be made of its host")
}

fn range_header(range: ByteRange) -> Result<HeaderMap, Failure> {
    let value = HeaderValue::from_str(&format!("bytes={}-{}", range.start(), range.end() - 1))
        .map_err(|_| Failure::new(Class::Refused, "the range cannot be written"))?;
    Ok([(RANGE, value)].into_iter().collect())
}

/// Lets a `206` of exactly the range pass. Anything else is dropped unread, and its connection with it.
fn checked(response: Response, range: ByteRange, blob: &Blob) -> Result<Response, Failure> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Err(answer::judge(response.status(), response.headers(), SystemTime::now()));
    }
    answer::check_range(response.headers(), range, blob.size_bytes)?;
    Ok(response)
}

/// A fresh address that denies or misses the blob says nothing about our credentials or the blob: the registry knows both. A
/// clock may be wrong, or a copy not there yet.
fn fresh(url: &Url, failure: Failure) -> Failure {
    let class = match failure.class {
        Class::Denied | Class::Missing => Class::Refused,
        class => class,
    };
    blame(url, Failure { class, ..failure })
}
