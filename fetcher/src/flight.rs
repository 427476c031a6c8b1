//! Flights: reads of one blob that wait at the same time and lie near each other share one GET.
//!
//! A flight takes readers aboard until its turn to send a request has come. Then it is closed, fetches what its readers lack
//! round by round until all have their bytes or no other try helps, and ends. It also ends when nobody waits any more. A reader
//! waits with its own deadline; a flight has none.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use penstock_blob::{Blob, ByteRange, Digest};
use tokio::sync::{Notify, oneshot};

use crate::{
    assembly::{Assembly, join},
    failure::{Class, Failure, Remedy},
    fetch::{Answer, Grounded},
    fetcher::Core,
    place::Place,
    retry::{Next, Retry},
};

/// How often a new flight lets the other tasks of its worker run first: reads that one event started then find it.
const GATHERING_TURNS: usize = 2;

/// One GET to be, and those who wait for it.
#[derive(Debug)]
pub(crate) struct Flight {
    blob: Blob,
    /// Who is aboard, until the flight is closed.
    boarding: Mutex<Boarding>,
    waiting: AtomicUsize,
    left: Notify,
    last: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Boarding {
    range: ByteRange,
    seats: Vec<(ByteRange, Answer)>,
}

/// One reader's seat. Dropping it before the answer gives it up.
#[derive(Debug)]
pub(crate) struct Seat {
    flight: Arc<Flight>,
    answer: oneshot::Receiver<Result<Bytes, Grounded>>,
    answered: bool,
}

impl Seat {
    /// The answer; `None` when the flight ended without one, because the fetcher stops.
    pub(crate) async fn answer(&mut self) -> Option<Result<Bytes, Grounded>> {
        let answer = (&mut self.answer).await;
        if !self.answered {
            self.answered = true;
            // Without a word to the flight: it may still be about to give its connection back.
            self.flight.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        answer.ok()
    }

    /// The last failure that the flight met.
    pub(crate) fn last(&self) -> Option<String> {
        self.flight.last.lock().clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.answered && self.flight.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.flight.left.notify_one();
        }
    }
}

/// The flights that still take readers aboard.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    boarding: Mutex<HashMap<Digest, Vec<Arc<Flight>>>>,
}

impl Flights {
    /// A seat on a flight that passes near `range`, or on a new one, which is returned too.
    pub(crate) fn board(
        &self,
        blob: Blob,
        range: ByteRange,
        gap_bytes: u64,
        max_bytes: u64,
    ) -> (Seat, Option<Arc<Flight>>) {
        let (sender, answer) = oneshot::channel();
        let mut table = self.boarding.lock();
        let flights = table.entry(blob.digest).or_default();
        for flight in flights.iter() {
            let mut boarding = flight.boarding.lock();
            if let Some(both) = join(boarding.range, range, gap_bytes, max_bytes) {
                boarding.range = both;
                boarding.seats.push((range, sender));
                flight.waiting.fetch_add(1, Ordering::AcqRel);
                return (Seat { flight: flight.clone(), answer, answered: false }, None);
            }
        }
        let flight = Arc::new(Flight {
            blob,
            boarding: Mutex::new(Boarding { range, seats: vec![(range, sender)] }),
            waiting: AtomicUsize::new(1),
            left: Notify::new(),
            last: Mutex::new(None),
        });
        flights.push(flight.clone());
        (Seat { flight: flight.clone(), answer, answered: false }, Some(flight))
    }

    /// Takes nobody more aboard; returns who is.
    fn close(&self, flight: &Arc<Flight>) -> Vec<(ByteRange, Answer)> {
        let mut table = self.boarding.lock();
        Self::remove(&mut table, flight);
        std::mem::take(&mut flight.boarding.lock().seats)
    }

    /// Takes nobody more aboard if nobody waits; whether that is so.
    fn close_deserted(&self, flight: &Arc<Flight>) -> bool {
        let mut table = self.boarding.lock();
        // Nobody boards while the table is locked.
        let deserted = flight.waiting.load(Ordering::Acquire) == 0;
        if deserted {
            Self::remove(&mut table, flight);
        }
        deserted
    }

    fn remove(table: &mut HashMap<Digest, Vec<Arc<Flight>>>, flight: &Arc<Flight>) {
        if let Some(flights) = table.get_mut(&flight.blob.digest) {
            flights.retain(|other| !Arc::ptr_eq(other, flight));
            if flights.is_empty() {
                table.remove(&flight.blob.digest);
            }
        }
    }

    /// Waits until nobody waits for the flight and nobody can begin to.
    async fn deserted(&self, flight: &Arc<Flight>) {
        while !self.close_deserted(flight) {
            flight.left.notified().await;
        }
    }
}

impl Core {
    /// Runs a flight to its end.
    pub(crate) async fn fly(self: Arc<Self>, flight: Arc<Flight>) {
        tokio::select! {
            biased;
            () = self.flights.deserted(&flight) => {}
            () = self.fly_rounds(&flight) => {}
        }
    }

    async fn fly_rounds(&self, flight: &Arc<Flight>) {
        for _ in 0..GATHERING_TURNS {
            tokio::task::yield_now().await;
        }
        let mut turn = self.budget.turn().await;
        let mut assembly = Assembly::new(self.flights.close(flight));
        let mut retry = Retry::new(&self.config);
        let mut spent: Vec<Arc<Place>> = Vec::new();
        loop {
            assembly.retain(|answer| !answer.is_closed());
            let Some(rest) = assembly.rest() else { return };
            let room = self.budget.room(rest.len(), &turn).await;
            let outcome = self.round(&flight.blob, &mut assembly, &mut spent).await;
            drop((room, turn));
            let Err(grounded) = outcome else { return };
            if assembly.rest() != Some(rest) {
                retry.progressed();
            }
            *flight.last.lock() = Some(format!("{}: {}", grounded.endpoint, grounded.failure.reason));
            match retry.after(&grounded.failure) {
                Next::GiveUp => {
                    for answer in assembly.into_waiting() {
                        let _gone = answer.send(Err(grounded.clone()));
                    }
                    return;
                }
                Next::Wait(wait) => tokio::time::sleep(wait).await,
            }
            self.metrics.retries.inc();
            turn = self.budget.turn().await;
        }
    }

    /// Asks each place that may still help, once. The failure returned is the most hopeful one.
    async fn round(
        &self,
        blob: &Blob,
        assembly: &mut Assembly<Answer>,
        spent: &mut Vec<Arc<Place>>,
    ) -> Result<(), Grounded> {
        let mut worst: Option<Grounded> = None;
        for place in self.places.of(&blob.digest) {
            if spent.iter().any(|other| Arc::ptr_eq(other, &place)) {
                continue;
            }
            let quiet = place.endpoint.quiet();
            let failure = if quiet.is_zero() {
                match self.fetch(&place, blob, assembly).await {
                    Ok(()) => return Ok(()),
                    Err(failure) => failure,
                }
            } else {
                let asked = Failure::new(Class::Throttled, "asked to be left alone for a while (Retry-After)");
                Failure { retry_after: Some(quiet), ..asked }
            };
            if quiet.is_zero() {
                self.count(&place, &failure);
            }
            if failure.remedy() == Remedy::None {
                spent.push(place.clone());
            }
            let grounded = Grounded { failure, endpoint: place.endpoint.host.clone() };
            if worst.as_ref().is_none_or(|other| hope(&grounded.failure) > hope(&other.failure)) {
                worst = Some(grounded);
            }
        }
        Err(worst.unwrap_or_else(nobody))
    }

    fn count(&self, place: &Place, failure: &Failure) {
        place.failed();
        place.endpoint.failed(failure);
        self.metrics.failed(failure.class);
        tracing::debug!(endpoint = place.endpoint.host, class = ?failure.class, reason = failure.reason, "a fetch failed");
    }
}

/// No place is left to ask.
pub(crate) fn nobody() -> Grounded {
    let failure = Failure::new(Class::Missing, "no repository is known to hold it");
    Grounded { failure, endpoint: "the fetcher".to_owned() }
}

/// How much hope a failure leaves; of several places the most hopeful speaks for all.
const fn hope(failure: &Failure) -> u8 {
    match (failure.remedy(), failure.class) {
        (Remedy::Patience, _) => 3,
        (Remedy::Doubt, _) => 2,
        (Remedy::None, Class::Denied) => 1,
        (Remedy::None, _) => 0,
    }
}
