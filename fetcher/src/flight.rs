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
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use penstock_blob::{Blob, ByteRange, Digest};
use tokio::sync::{Notify, oneshot};

use crate::{
    assembly::{Assembly, join},
    budget::{Key, Turn},
    event::Event,
    failure::{Class, Failure},
    fetch::{Answer, Grounded},
    fetcher::Core,
    place::Place,
    retry::{Next, Retry},
};

/// How often a new flight lets the other tasks of its worker run first: reads that one event started then find it.
const GATHERING_TURNS: usize = 2;
/// How long a turn is waited for before it is looked again whom to ask first.
const CHOOSE_AGAIN: Duration = Duration::from_millis(250);

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
        let blob = &flight.blob;
        let mut turn = self.first_turn(&blob.digest, &[]).await;
        let assembly = Mutex::new(Assembly::new(self.flights.close(flight)));
        let mut retry = Retry::new(&self.config);
        let mut spent: Vec<Arc<Place>> = Vec::new();
        let mut credentials = self.auth.changes();
        loop {
            let Some(rest) = still_wanted(&assembly) else { return };
            let outcome = Box::pin(self.round(blob, &assembly, turn, &mut spent)).await;
            let Err(grounded) = outcome else {
                self.tell(blob, None);
                return;
            };
            if assembly.lock().rest() != Some(rest) {
                retry.progressed();
            }
            *flight.last.lock() = Some(format!("{}: {}", grounded.endpoint, grounded.failure.reason));
            match retry.after(&grounded.failure) {
                Next::GiveUp => {
                    self.tell(blob, Some(&grounded));
                    for answer in assembly.into_inner().into_waiting() {
                        let _gone = answer.send(Err(grounded.clone()));
                    }
                    return;
                }
                Next::Wait(wait) => tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    // Others were handed over: they may be what it takes.
                    _ = credentials.changed() => {}
                },
            }
            self.metrics.retries.inc();
            turn = self.first_turn(&blob.digest, &spent).await;
        }
    }

    /// The right to ask whoever is to be asked first; `None` when there is nobody. While it is waited for, whoever was first can
    /// begin to stall or be found broken: then the next one is waited for.
    async fn first_turn(&self, digest: &Digest, spent: &[Arc<Place>]) -> Option<Turn> {
        loop {
            for namespace in self.places.namespaces(digest) {
                self.namespaces.refresh(&namespace).await;
            }
            let first = || self.line(digest, spent).front().map(|place| place.endpoint.id);
            let endpoint = first()?;
            let mut turn = std::pin::pin!(self.budget.turn(Key { endpoint, blob: Some(*digest) }));
            loop {
                match tokio::time::timeout(CHOOSE_AGAIN, &mut turn).await {
                    Ok(turn) => return Some(turn),
                    Err(_elapsed) if first() == Some(endpoint) => {}
                    Err(_elapsed) => break,
                }
            }
        }
    }

    /// Says that reads of the blob's registries fail, or that they do not any more, when that is new.
    pub(crate) fn tell(&self, blob: &Blob, grounded: Option<&Grounded>) {
        for namespace in self.places.namespaces(&blob.digest) {
            if let (true, Some(grounded)) = (namespace.fails(grounded.is_some()), grounded) {
                let reason = format!("{}: {}", grounded.endpoint, grounded.failure.reason);
                self.say(Event::FetchFailed { registry: namespace.registry.clone(), blob: blob.digest, reason });
            }
        }
    }
}

/// What those who still wait lack.
fn still_wanted(assembly: &Mutex<Assembly<Answer>>) -> Option<ByteRange> {
    let mut assembly = assembly.lock();
    assembly.retain(|answer| !answer.is_closed());
    assembly.rest()
}

/// No place is left to ask.
pub(crate) fn nobody() -> Grounded {
    let failure = Failure::new(Class::Missing, "no repository is known to hold it");
    Grounded { failure, endpoint: "the fetcher".to_owned() }
}
