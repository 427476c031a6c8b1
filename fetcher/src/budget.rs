//! How much may be in flight at once, of requests and of bytes.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{config::Config, metrics::Metrics};

/// The two budgets. Both are taken in one order, requests first, and given back together, so that two holders never wait for
/// each other. First come, first served.
#[derive(Debug)]
pub(crate) struct Budget {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    max_bytes: u32,
    metrics: Metrics,
}

/// The right to have one request in flight. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
    _gauge: Raised,
}

/// The right to have some bytes in flight. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Room {
    _permit: OwnedSemaphorePermit,
    _gauge: Raised,
}

#[derive(Debug)]
struct Raised(Gauge, i64);

impl Raised {
    fn new(gauge: &Gauge, by: i64) -> Self {
        gauge.inc_by(by);
        Self(gauge.clone(), by)
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.0.dec_by(self.1);
    }
}

impl Budget {
    pub(crate) fn new(config: &Config, metrics: Metrics) -> Self {
        let max_bytes = u32::try_from(config.max_bytes).unwrap_or(u32::MAX);
        Self {
            requests: Arc::new(Semaphore::new(config.max_requests)),
            bytes: Arc::new(Semaphore::new(usize::try_from(max_bytes).unwrap_or(Semaphore::MAX_PERMITS))),
            max_bytes,
            metrics,
        }
    }

    /// Waits until one more request may be in flight.
    pub(crate) async fn turn(&self) -> Turn {
        let permit = forever(self.requests.clone().acquire_owned()).await;
        Turn { _permit: permit, _gauge: Raised::new(&self.metrics.requests_in_flight, 1) }
    }

    /// Waits until `len` more bytes may be in flight. More than the whole budget counts as the whole budget.
    pub(crate) async fn room(&self, len: u64, _turn: &Turn) -> Room {
        let wanted = u32::try_from(len).unwrap_or(u32::MAX).min(self.max_bytes);
        let permit = forever(self.bytes.clone().acquire_many_owned(wanted)).await;
        Room { _permit: permit, _gauge: Raised::new(&self.metrics.in_flight_bytes, i64::from(wanted)) }
    }
}

/// A semaphore that is never closed always gives a permit in the end.
async fn forever<E>(permit: impl Future<Output = Result<OwnedSemaphorePermit, E>>) -> OwnedSemaphorePermit {
    match permit.await {
        Ok(permit) => permit,
        Err(_closed) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn more_than_the_whole_budget_gets_the_whole_budget() {
        let config = Config { max_bytes: 100, max_request_bytes: 100, max_requests: 2, ..Config::default() };
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        let budget = Budget::new(&config, metrics.clone());
        let first = budget.turn().await;
        let all = budget.room(1 << 40, &first).await;
        assert_eq!(metrics.in_flight_bytes.get(), 100);
        let second = budget.turn().await;
        assert!(budget.room(1, &second).now_or_never().is_none(), "nothing is left");
        assert!(budget.turn().now_or_never().is_none(), "two requests are in flight");
        drop((all, first));
        assert!(budget.room(1, &second).now_or_never().is_some());
        drop(second);
        assert_eq!((metrics.in_flight_bytes.get(), metrics.requests_in_flight.get()), (0, 0));
    }
}
