//! One round of a flight: everybody who may help is asked, in turn, and when one is slow the next one beside him.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use penstock_blob::{Blob, ByteRange, Digest, SPANS};
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument as _, field::Empty, info_span};

use crate::{
    breaker::Change,
    budget::{Key, Room, Turn},
    event::Event,
    failure::{Class, Failure, Remedy},
    fetch::Grounded,
    fetcher::Core,
    flight::{Flight, nobody},
    place::Place,
};

/// How long a place is asked last that gave wrong bytes of the blob: long enough for somebody to look at it.
const AVOID_WRONG: Duration = Duration::from_secs(600);
/// How long a place is asked last that does not have the blob: a mirror fetches it meanwhile, or a peer does.
const AVOID_MISSING: Duration = Duration::from_secs(30);
/// How long a place is asked last that refuses access: new credentials are found out soon.
const AVOID_DENIED: Duration = Duration::from_secs(10);
/// Most requests of one flight at a time: the first, and one beside it.
const MOST_AT_ONCE: usize = 2;

/// How long after nobody could be asked beside a slow one that is looked at again.
const HEDGE_AGAIN: Duration = Duration::from_secs(1);

/// An attempt, and at which place.
type Attempt<'a> = Pin<Box<dyn Future<Output = (Arc<Place>, Result<(), Failure>)> + Send + 'a>>;

/// One round under way.
struct Round<'a> {
    core: &'a Core,
    flight: &'a Flight,
    /// Who has not been asked, the next one first.
    line: VecDeque<Arc<Place>>,
    /// Who is being asked.
    asked: Vec<Arc<Place>>,
    attempts: FuturesUnordered<Attempt<'a>>,
    /// When somebody else is asked too.
    hedge_at: Instant,
    /// The most hopeful failure.
    worst: Option<Grounded>,
}

impl Core {
    /// Who can be asked for a blob, the first one first.
    pub(crate) fn line(&self, digest: &Digest, spent: &[Arc<Place>]) -> VecDeque<Arc<Place>> {
        let is_spent = |place: &Arc<Place>| spent.iter().any(|other| Arc::ptr_eq(other, place));
        self.places.of(digest).into_iter().filter(|place| !is_spent(place)).collect()
    }

    /// Asks each place that may still help, once. The failure returned is the most hopeful one.
    pub(crate) async fn round(
        &self,
        flight: &Flight,
        turn: Option<Turn>,
        spent: &mut Vec<Arc<Place>>,
    ) -> Result<(), Grounded> {
        let mut round = Round {
            core: self,
            flight,
            line: self.line(&flight.blob.digest, spent),
            asked: Vec::new(),
            attempts: FuturesUnordered::new(),
            hedge_at: Instant::now(),
            worst: None,
        };
        let mut turn = turn;
        loop {
            if round.attempts.is_empty() {
                let Some(place) = round.line.pop_front() else {
                    return Err(round.worst.unwrap_or_else(nobody));
                };
                if !round.is_quiet(&place) {
                    round.ask(place, turn.take()).await;
                }
                continue;
            }
            let may_hedge = round.attempts.len() < MOST_AT_ONCE && !round.line.is_empty();
            tokio::select! {
                biased;
                ended = round.attempts.next() => match ended {
                    Some((_, Ok(()))) => return Ok(()),
                    Some((place, Err(failure))) => round.failed(&place, failure, spent),
                    None => {}
                },
                () = sleep_until(round.hedge_at), if may_hedge => round.hedge(),
            }
        }
    }

    /// Says something to whoever listens.
    pub(crate) fn say(&self, event: Event) {
        let _nobody = self.events.send(event);
    }

    /// What an endpoint's change of state means for operators.
    pub(crate) fn changed(&self, endpoint: &str, change: Option<Change>, reason: &str) {
        let endpoint = endpoint.to_owned();
        match change {
            Some(Change::Broken) => self.say(Event::EndpointBroken { endpoint, reason: reason.to_owned() }),
            Some(Change::Healed) => self.say(Event::EndpointHealed { endpoint }),
            None => {}
        }
    }

    /// A reader found bytes to be wrong: whoever gave them is asked last for this blob, and after some blobs for all.
    pub(crate) fn rejected(&self, blob: &Blob, range: ByteRange) {
        let places = self.gave.take(&blob.digest, range);
        let shared = places.len() > 1;
        for place in places {
            place.endpoint.rejected();
            self.gave_wrong(&place, blob, (Some(range), shared), "their reader's check failed");
        }
    }

    /// A reader's deadline passed while he was waiting.
    pub(crate) fn late(&self, blob: &Blob, last: &str) {
        let (endpoint, reason) = last.split_once(": ").unwrap_or(("the fetcher", last));
        let failure = Failure::timeout(reason.to_owned());
        self.tell(blob, Some(&Grounded { failure, endpoint: endpoint.to_owned() }));
    }

    fn gave_wrong(&self, place: &Place, blob: &Blob, (range, shared): (Option<ByteRange>, bool), reason: &str) {
        if !place.avoid(AVOID_WRONG) {
            return;
        }
        let endpoint = place.endpoint.host.clone();
        let reason = reason.to_owned();
        self.say(Event::WrongBytes { endpoint, blob: blob.digest, range, reason, shared });
        // Where somebody else gave a part of it, it may have been him: that is no proof against anybody.
        if !shared {
            let change = place.endpoint.was_wrong();
            self.changed(&place.endpoint.host, change, "it gave wrong bytes of several blobs");
        }
    }

    fn count(&self, place: &Place, blob: &Blob, failure: &Failure) {
        place.endpoint.failed(failure);
        self.metrics.failed(failure.class);
        match failure.class {
            Class::Missing => drop(place.avoid(AVOID_MISSING)),
            Class::Denied | Class::Lapsed => drop(place.avoid(AVOID_DENIED)),
            Class::Wrong => self.gave_wrong(place, blob, (None, false), &failure.reason),
            _ => {}
        }
        tracing::debug!(endpoint = place.endpoint.host, class = ?failure.class, reason = failure.reason, "a fetch failed");
    }
}

impl Core {
    /// Waits until a place may be asked. What is wanted on demand meanwhile waits for no room that is for reading ahead.
    async fn afford(&self, flight: &Flight, place: &Place, mut turn: Option<Turn>) -> (Turn, Room) {
        loop {
            let key = flight.key(place);
            let mine = match turn.take() {
                Some(turn) if turn.key == key => turn,
                // Given back first: nobody waits for a second turn with one in hand.
                other => {
                    drop(other);
                    tokio::select! {
                        biased;
                        turn = self.budget.turn(key) => turn,
                        () = flight.promoted(key.purpose) => continue,
                    }
                }
            };
            tokio::select! {
                biased;
                room = self.budget.room(flight.len(), &mine, &place.endpoint.limit) => return (mine, room),
                () = flight.promoted(mine.key.purpose) => {}
            }
        }
    }
}

impl Flight {
    /// What is asked for next, at least one byte so that it can be taken from a budget.
    fn len(&self) -> u64 {
        self.assembly.lock().run().map_or(1, ByteRange::len)
    }

    fn key(&self, place: &Place) -> Key {
        let purpose = self.assembly.lock().purpose();
        Key { endpoint: place.endpoint.id, blob: Some(self.blob.digest), purpose }
    }
}

impl Round<'_> {
    /// Whether a place asked to be left alone, which is then its failure.
    fn is_quiet(&mut self, place: &Place) -> bool {
        let quiet = place.endpoint.quiet();
        if quiet.is_zero() {
            return false;
        }
        let asked = Failure::new(Class::Throttled, "asked to be left alone for a while (Retry-After)");
        self.note(place, Failure { retry_after: Some(quiet), ..asked });
        true
    }

    /// Asks a place once it is its turn.
    async fn ask(&mut self, place: Arc<Place>, turn: Option<Turn>) {
        let (turn, room) = self.core.afford(self.flight, &place, turn).await;
        if !place.is_usable() && self.line.iter().any(|other| other.is_usable()) {
            // While the budget was waited for, it was found broken, or another request became the one that tries it.
            self.line.push_back(place);
            return;
        }
        self.start(place, (turn, room));
    }

    fn start(&mut self, place: Arc<Place>, (turn, mut room): (Turn, Room)) {
        let (core, flight) = (self.core, self.flight);
        let bytes = self.flight.len();
        self.hedge_at = Instant::now() + place.endpoint.hedge_after(bytes);
        self.asked.push(place.clone());
        let mut asking = place.endpoint.ask(bytes);
        let span = info_span!(target: SPANS, "fetch", server.address = place.endpoint.host, blob = %flight.blob.digest, bytes, error = Empty);
        self.attempts.push(Box::pin(async move {
            let _turn = turn;
            let outcome = core.fetch(&place, flight, &mut asking, &mut room).instrument(span.clone()).await;
            outcome.as_ref().err().map(|failure| span.record("error", &*failure.reason));
            // What the way was found to carry may be more than before.
            core.budget.grown();
            let change = asking.settle(outcome.as_ref().copied().map_err(|failure| failure.class));
            let reason = outcome.as_ref().err().map_or("", |failure| failure.reason.as_str());
            core.changed(&place.endpoint.host, change, reason);
            (place, outcome)
        }));
    }

    /// The one who is asked is slow. The next one is asked beside him if that may cost so many bytes more, or instead of him if
    /// nothing at all comes from there. He who loses is dropped, and his connection with it. Another repository of the same endpoint, as images with
    /// common layers have, is nobody else: it would send the same bytes over the same way.
    fn hedge(&mut self) {
        let Some(slow) = self.asked.last().cloned() else { return };
        let is_asked = |place: &Place| self.asked.iter().any(|asked| asked.endpoint.id == place.endpoint.id);
        let elsewhere = self.line.iter().position(|place| !is_asked(place));
        let next = elsewhere.and_then(|nth| Some((nth, self.line.get(nth)?.clone())));
        let len = self.flight.len();
        let Some((nth, next)) = next.filter(|(_, next)| next.is_usable()) else {
            // Nor is anybody after him.
            self.hedge_at = Instant::now() + HEDGE_AGAIN;
            return;
        };
        let stalls = slow.endpoint.is_stalling();
        if let Some(budget) = self.core.budget.at_once(self.flight.key(&next), len, &next.endpoint.limit) {
            let allowed = self.core.allowance.take(len);
            if allowed || stalls {
                if !allowed {
                    self.abandon(&slow);
                }
                self.line.remove(nth);
                next.endpoint.hedged();
                self.core.metrics.hedges.inc();
                self.core.metrics.hedged_bytes.inc_by(len);
                self.start(next, budget);
                return;
            }
        }
        self.hedge_at = Instant::now() + slow.endpoint.hedge_after(len);
    }

    /// Nothing comes from there, for anybody: the request is dropped, and that is a failure of the endpoint.
    fn abandon(&mut self, slow: &Arc<Place>) {
        self.attempts = FuturesUnordered::new();
        self.asked.clear();
        let failure = Failure::timeout("sent nothing to anybody for too long".to_owned());
        let change = slow.endpoint.ask(0).settle(Err(failure.class));
        self.core.changed(&slow.endpoint.host, change, &failure.reason);
        self.core.count(slow, &self.flight.blob, &failure);
        self.note(slow, failure);
    }

    fn failed(&mut self, place: &Arc<Place>, failure: Failure, spent: &mut Vec<Arc<Place>>) {
        self.asked.retain(|other| !Arc::ptr_eq(other, place));
        self.core.count(place, &self.flight.blob, &failure);
        if failure.remedy() == Remedy::None {
            spent.push(place.clone());
        }
        self.note(place, failure);
    }

    fn note(&mut self, place: &Place, failure: Failure) {
        let grounded = Grounded { failure, endpoint: place.endpoint.host.clone() };
        if self.worst.as_ref().is_none_or(|other| hope(&grounded.failure) > hope(&other.failure)) {
            self.worst = Some(grounded);
        }
    }
}

/// How much hope a failure leaves; of several places the most hopeful speaks for all.
pub(crate) const fn hope(failure: &Failure) -> u8 {
    match (failure.remedy(), failure.class) {
        (Remedy::Patience, Class::Unresolved) => 3,
        (Remedy::Patience, _) => 4,
        (Remedy::Doubt, _) => 2,
        (Remedy::None, Class::Denied) => 1,
        (Remedy::None, _) => 0,
    }
}
