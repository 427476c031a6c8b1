//! Flights: reads of one blob that wait at the same time and lie near each other share one GET.
//!
//! A flight takes readers aboard until its turn to send a request has come, but for reads ahead of what lies before all that is wanted on demand:
//! they would wait for a second request behind the first, and go at once on a flight of their own. Once its turn has come it takes those only
//! whose bytes it brings anyway. It fetches what its readers lack round by round until all have their bytes or no other try helps, and ends. It
//! also ends when nobody waits any more. A reader waits with its own deadline; a flight has none.
//!
//! A flight of which nothing is wanted on demand waits for its turn behind all demand. The first reader on demand who comes aboard
//! changes that at once.

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use penstock_blob::{Blob, ByteRange, Digest, Purpose};
use tokio::{
    sync::{Notify, oneshot},
    time::sleep,
};

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
    pub(crate) blob: Blob,
    /// Who is aboard. Locked after the table of flights, never before.
    pub(crate) assembly: Mutex<Assembly<Answer>>,
    waiting: AtomicUsize,
    left: Notify,
    /// Somebody on demand came aboard.
    urged: Notify,
    last: Mutex<Option<String>>,
}

impl Flight {
    /// Takes somebody aboard if the phase allows it; else gives his answer back.
    fn take_aboard(
        &self,
        phase: &mut Phase,
        (range, purpose): (ByteRange, Purpose),
        near: Nearness,
        answer: Answer,
    ) -> Result<(), Answer> {
        let mut assembly = self.assembly.lock();
        match phase {
            Phase::Boarding(_) if assembly.keeps_waiting(range, purpose) => return Err(answer),
            Phase::Boarding(all) => match join(*all, range, near.gap_bytes, near.max_bytes) {
                Some(both) => {
                    *all = both;
                    assembly.add(range, purpose, answer);
                }
                None => return Err(answer),
            },
            Phase::Aloft => assembly.join(range, purpose, answer)?,
            Phase::Sealed => return Err(answer),
        }
        self.waiting.fetch_add(1, Ordering::AcqRel);
        if purpose == Purpose::Demand {
            self.urged.notify_one();
        }
        Ok(())
    }

    /// Ends when something is wanted on demand; never when it was before.
    pub(crate) async fn promoted(&self, before: Purpose) {
        if before == Purpose::Demand {
            return pending().await;
        }
        loop {
            let urged = self.urged.notified();
            if self.assembly.lock().purpose() == Purpose::Demand {
                return;
            }
            urged.await;
        }
    }
}

/// Whom a flight takes aboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Everybody near this range.
    Boarding(ByteRange),
    /// Those whose bytes it brings anyway.
    Aloft,
    /// Nobody: some of what it brings was found to be wrong.
    Sealed,
}

impl Phase {
    /// Whether a flight brings these bytes whoever comes aboard; those that are aloft know themselves.
    fn brings(self, range: ByteRange) -> bool {
        match self {
            Self::Boarding(all) => all.contains(range),
            Self::Aloft => true,
            Self::Sealed => false,
        }
    }
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

/// The flights of each blob, and whom they take aboard.
type Table = HashMap<Digest, Vec<(Phase, Arc<Flight>)>>;

/// The flights that have not ended.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    table: Mutex<Table>,
}

/// Which reads share a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nearness {
    /// Bytes between them at most.
    pub(crate) gap_bytes: u64,
    /// Bytes together at most.
    pub(crate) max_bytes: u64,
}

impl Flights {
    /// A seat on a flight that passes near `range` or brings it anyway, or on a new one, which is returned too.
    pub(crate) fn board(
        &self,
        blob: Blob,
        (range, purpose): (ByteRange, Purpose),
        near: Nearness,
    ) -> (Seat, Option<Arc<Flight>>) {
        let (mut sender, answer) = oneshot::channel();
        let mut table = self.table.lock();
        let flights = table.entry(blob.digest).or_default();
        // Who brings the bytes anyway comes before who passes near, or they would be asked for twice.
        for brings in [true, false] {
            for (phase, flight) in flights.iter_mut().filter(|(phase, _)| phase.brings(range) == brings) {
                sender = match flight.take_aboard(phase, (range, purpose), near, sender) {
                    Ok(()) => return (Seat { flight: flight.clone(), answer, answered: false }, None),
                    Err(sender) => sender,
                };
            }
        }
        let mut assembly = Assembly::new();
        assembly.add(range, purpose, sender);
        let flight = Arc::new(Flight {
            blob,
            assembly: Mutex::new(assembly),
            waiting: AtomicUsize::new(1),
            left: Notify::new(),
            urged: Notify::new(),
            last: Mutex::new(None),
        });
        flights.push((Phase::Boarding(range), flight.clone()));
        (Seat { flight: flight.clone(), answer, answered: false }, Some(flight))
    }

    /// From now on the flight takes those aboard whose bytes it brings anyway.
    fn depart(&self, flight: &Arc<Flight>) {
        let mut table = self.table.lock();
        let flights = table.get_mut(&flight.blob.digest).into_iter().flatten();
        flights.filter(|(_, other)| Arc::ptr_eq(other, flight)).for_each(|(phase, _)| *phase = Phase::Aloft);
    }

    /// Some bytes of the blob were wrong: who reads them again must not get them from what is under way.
    pub(crate) fn seal(&self, digest: &Digest) {
        let mut table = self.table.lock();
        let flights = table.get_mut(digest).into_iter().flatten();
        flights.filter(|(phase, _)| *phase == Phase::Aloft).for_each(|(phase, _)| *phase = Phase::Sealed);
    }

    /// Takes nobody more aboard if everybody has his bytes; whether that is so.
    fn close_done(&self, flight: &Arc<Flight>) -> bool {
        let mut table = self.table.lock();
        let mut assembly = flight.assembly.lock();
        assembly.retain(|answer| !answer.is_closed());
        let done = assembly.rest().is_none();
        if done {
            Self::remove(&mut table, flight);
        }
        done
    }

    /// Takes nobody more aboard; returns who still waits.
    pub(crate) fn close(&self, flight: &Arc<Flight>) -> impl Iterator<Item = Answer> + use<> {
        let mut table = self.table.lock();
        Self::remove(&mut table, flight);
        flight.assembly.lock().take_waiting()
    }

    /// Takes nobody more aboard if nobody waits; whether that is so.
    fn close_deserted(&self, flight: &Arc<Flight>) -> bool {
        let mut table = self.table.lock();
        // Nobody boards while the table is locked.
        let deserted = flight.waiting.load(Ordering::Acquire) == 0;
        if deserted {
            Self::remove(&mut table, flight);
        }
        deserted
    }

    fn remove(table: &mut Table, flight: &Arc<Flight>) {
        if let Some(flights) = table.get_mut(&flight.blob.digest) {
            flights.retain(|(_, other)| !Arc::ptr_eq(other, flight));
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

/// The end of a flight, also when its task is aborted: nobody boards any more, and whoever still waits hears of it.
#[derive(Debug)]
struct End<'a> {
    flights: &'a Flights,
    flight: &'a Arc<Flight>,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.flights.close(self.flight).for_each(drop);
    }
}

impl Core {
    /// Runs a flight to its end.
    pub(crate) async fn fly(self: Arc<Self>, flight: Arc<Flight>) {
        let _end = End { flights: &self.flights, flight: &flight };
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
        let mut spent: Vec<Arc<Place>> = Vec::new();
        let mut turn = self.first_turn(flight, &spent).await;
        self.flights.depart(flight);
        let mut retry = Retry::new(&self.config);
        let mut credentials = self.auth.changes();
        while !self.flights.close_done(flight) {
            let rest = flight.assembly.lock().rest();
            let outcome = Box::pin(self.round(flight, turn, &mut spent)).await;
            flight.assembly.lock().expect(None);
            let Err(grounded) = outcome else {
                self.tell(blob, None);
                // What was wanted on demand is here; what lies before it, or came aboard since, is not.
                turn = if self.flights.close_done(flight) { return } else { self.first_turn(flight, &spent).await };
                continue;
            };
            if flight.assembly.lock().rest() != rest {
                retry.progressed();
            }
            *flight.last.lock() = Some(format!("{}: {}", grounded.endpoint, grounded.failure.reason));
            match retry.after(&grounded.failure) {
                Next::GiveUp => {
                    self.tell(blob, Some(&grounded));
                    for answer in self.flights.close(flight) {
                        let _gone = answer.send(Err(grounded.clone()));
                    }
                    return;
                }
                Next::Wait(wait) => tokio::select! {
                    () = sleep(wait) => {}
                    // Others were handed over: they may be what it takes.
                    _ = credentials.changed() => {}
                },
            }
            self.metrics.retries.inc();
            turn = self.first_turn(flight, &spent).await;
        }
    }

    /// The right to ask whoever is to be asked first; `None` when there is nobody. While it is waited for, whoever was first can
    /// begin to stall or be found broken: then the next one is waited for. What was read ahead can be wanted on demand: then it is
    /// waited for among those.
    async fn first_turn(&self, flight: &Flight, spent: &[Arc<Place>]) -> Option<Turn> {
        let digest = &flight.blob.digest;
        loop {
            for namespace in self.places.namespaces(digest) {
                self.namespaces.refresh(&namespace).await;
            }
            let first = || self.line(digest, spent).front().map(|place| place.endpoint.id);
            let endpoint = first()?;
            let purpose = flight.assembly.lock().purpose();
            let mut turn = std::pin::pin!(self.budget.turn(Key { endpoint, blob: Some(*digest), purpose }));
            loop {
                tokio::select! {
                    biased;
                    turn = &mut turn => return Some(turn),
                    () = flight.promoted(purpose) => break,
                    () = sleep(CHOOSE_AGAIN) => if first() != Some(endpoint) {
                        break;
                    },
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

/// No place is left to ask.
pub(crate) fn nobody() -> Grounded {
    let failure = Failure::new(Class::Missing, "no repository is known to hold it");
    Grounded { failure, endpoint: "the fetcher".to_owned() }
}
