//! What was asked and what was sent.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use http::Method;
use parking_lot::Mutex;
use penstock_blob::{ByteRange, Digest};

use crate::route::{Kind, Route};

/// How many requests are kept one by one, the newest; the sums of [`Counts`] go on. About 20 MiB of memory at most.
pub const LOG_LIMIT: usize = 65_536;

/// One request as it was served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path, without its query.
    pub path: String,
    /// What the path names.
    pub kind: Kind,
    /// The repository in the path.
    pub repository: Option<String>,
    /// The digest in the path.
    pub digest: Option<Digest>,
    /// The bytes of the blob that were asked for with a `Range` header, cut at the blob's end.
    pub range: Option<ByteRange>,
    /// The status answered; 0 while no answer has begun.
    pub status: u16,
    /// Bytes of the answer's body that were written to the socket so far.
    pub bytes: u64,
}

/// Sums since the start or since [`crate::Registry::reset_counts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// All requests.
    pub requests: u64,
    /// Requests for manifests.
    pub manifest_requests: u64,
    /// Requests to blobs' own paths.
    pub blob_requests: u64,
    /// Requests to signed URLs that blob downloads were redirected to.
    pub storage_requests: u64,
    /// Requests for tokens.
    pub token_requests: u64,
    /// Body bytes of all answers written to sockets.
    pub bytes: u64,
    /// Body bytes of blobs written to sockets: answers 200 and 206 to the two kinds of blob requests.
    pub blob_bytes: u64,
}

#[derive(Debug, Default)]
struct Totals {
    requests: AtomicU64,
    manifest_requests: AtomicU64,
    blob_requests: AtomicU64,
    storage_requests: AtomicU64,
    token_requests: AtomicU64,
    bytes: AtomicU64,
    blob_bytes: AtomicU64,
}

/// A request in the log; its answer fills it in.
#[derive(Debug)]
pub(crate) struct Entry {
    asked: Request,
    answer: Mutex<(u16, Option<ByteRange>)>,
    bytes: AtomicU64,
    totals: Arc<Totals>,
}

impl Entry {
    /// The answer begins.
    pub(crate) fn answered(&self, status: u16, range: Option<ByteRange>) {
        *self.answer.lock() = (status, range);
    }

    /// `count` bytes of the body were written to the socket.
    pub(crate) fn sent(&self, count: u64) {
        self.bytes.fetch_add(count, Ordering::Relaxed);
        self.totals.bytes.fetch_add(count, Ordering::Relaxed);
        let (status, _) = *self.answer.lock();
        if matches!(self.asked.kind, Kind::Blob | Kind::Storage) && matches!(status, 200 | 206) {
            self.totals.blob_bytes.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn request(&self) -> Request {
        let (status, range) = *self.answer.lock();
        Request { status, range, bytes: self.bytes.load(Ordering::Relaxed), ..self.asked.clone() }
    }
}

/// The log and the sums.
#[derive(Debug, Default)]
pub(crate) struct Record(Mutex<Period>);

#[derive(Debug, Default)]
struct Period {
    entries: VecDeque<Arc<Entry>>,
    totals: Arc<Totals>,
}

impl Record {
    /// A request arrived.
    pub(crate) fn begin(&self, method: &Method, path: &str, route: &Route) -> Arc<Entry> {
        let asked = Request {
            method: method.clone(),
            path: path.to_owned(),
            kind: route.kind(),
            repository: route.repository().map(str::to_owned),
            digest: route.digest(),
            range: None,
            status: 0,
            bytes: 0,
        };
        let mut period = self.0.lock();
        let totals = Arc::clone(&period.totals);
        totals.requests.fetch_add(1, Ordering::Relaxed);
        let of_kind = match asked.kind {
            Kind::Manifest => Some(&totals.manifest_requests),
            Kind::Blob => Some(&totals.blob_requests),
            Kind::Storage => Some(&totals.storage_requests),
            Kind::Token => Some(&totals.token_requests),
            _ => None,
        };
        if let Some(count) = of_kind {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let entry = Arc::new(Entry { asked, answer: Mutex::new((0, None)), bytes: AtomicU64::new(0), totals });
        if period.entries.len() == LOG_LIMIT {
            period.entries.pop_front();
        }
        period.entries.push_back(Arc::clone(&entry));
        entry
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        let entries: Vec<_> = self.0.lock().entries.iter().cloned().collect();
        entries.iter().map(|entry| entry.request()).collect()
    }

    pub(crate) fn counts(&self) -> Counts {
        let totals = Arc::clone(&self.0.lock().totals);
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            requests: load(&totals.requests),
            manifest_requests: load(&totals.manifest_requests),
            blob_requests: load(&totals.blob_requests),
            storage_requests: load(&totals.storage_requests),
            token_requests: load(&totals.token_requests),
            bytes: load(&totals.bytes),
            blob_bytes: load(&totals.blob_bytes),
        }
    }

    /// Begins a new period. What answers under way still send goes to the old one.
    pub(crate) fn reset(&self) {
        *self.0.lock() = Period::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_newest_and_the_sums_go_on() {
        let record = Record::default();
        let route = Route::of("/v2/");
        for n in 0..LOG_LIMIT + 10 {
            record.begin(&Method::GET, &n.to_string(), &route);
        }
        let requests = record.requests();
        assert_eq!((requests.len(), requests[0].path.as_str()), (LOG_LIMIT, "10"));
        assert_eq!(record.counts().requests, (LOG_LIMIT + 10) as u64);
    }

    #[test]
    fn answers_under_way_do_not_count_in_a_new_period() {
        let record = Record::default();
        let entry = record.begin(&Method::GET, "/v2/", &Route::of("/v2/"));
        record.reset();
        entry.sent(5);
        assert_eq!((record.counts(), record.requests()), (Counts::default(), vec![]));
    }
}
