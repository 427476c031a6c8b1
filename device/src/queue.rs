//! The requests of one queue, from taken to answered; the same for every transport.
//!
//! A request is planned and, when every step is local, executed and answered at once: a hit. Otherwise what it lacks goes to
//! the offload, and when that comes back the request is planned again with the bytes in hand: a miss is a hit that waited.
//! Nothing here waits: the only system calls are the reads of local files and the answer.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use penstock_blob::{Blob, BlobSource, ByteRange, Giver, Located, Purpose, ReadError, ReadFuture};
use penstock_image::{Held, Image, StepError};
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::{
    Desks, DeviceId,
    desks::Desk,
    inbox::{End, Inbox},
    latency::Tier,
    offload::{Completion, Miss},
    request::{Port, Request},
    room::{self, Place, Room},
    stats::Counters,
    waits::Wait,
};

/// How often one request may go to the offload: once for the data, and once for each place that fails its check (a mirror that
/// lied has left many), with room. Beyond it the answer is EIO; what failed is dropped by then, so a later request gets further.
const MAX_ROUNDS: u32 = 32;

/// How often bytes of one place may fail their check before the answer is EIO. Each source in turn may have lied: two mirrors and then the
/// registry, with one to spare.
const MAX_REJECTED: usize = 4;

/// Most missing bytes that one look asks for at once; a request that lacks more is answered in pieces. An honest image needs about the
/// size of the request; one made for it could ask for a large frame for every 512 bytes.
pub(crate) const MAX_PIECE_BYTES: u64 = 4 << 20;

/// The smallest piece of a request, in device bytes: a block of the file systems above.
const MIN_PIECE_BYTES: u64 = 4096;

/// How many requests may wait for room at the offload before the queue asks to be given no more ([`Queue::is_full`]).
const MAX_PARKED: usize = 1024;

/// What a queue needs to know, apart from its transport.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) id: DeviceId,
    /// `None`: there is nothing to show, and every read is answered EIO.
    pub(crate) image: Option<Arc<Image>>,
    pub(crate) source: Arc<dyn BlobSource>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) misses: mpsc::Sender<Miss>,
    /// Misses in flight at most.
    pub(crate) bound: usize,
    /// Most missing bytes asked for at once.
    pub(crate) max_piece_bytes: u64,
    /// The largest read.
    pub(crate) max_io_bytes: usize,
    /// Where reads are put together.
    pub(crate) desks: Desks,
}

impl Setup {
    /// For a device that shows nothing and answers EIO.
    pub(crate) fn refusing(id: DeviceId, counters: Arc<Counters>, misses: mpsc::Sender<Miss>) -> Self {
        Self {
            id,
            image: None,
            source: Arc::new(Nothing),
            counters,
            misses,
            bound: 1,
            max_piece_bytes: 0,
            max_io_bytes: 0,
            desks: Desks::default(),
        }
    }
}

/// A source without blobs.
#[derive(Debug)]
struct Nothing;

impl BlobSource for Nothing {
    fn locate(&self, _: &Blob, _: ByteRange) -> Option<Located> {
        None
    }

    fn read(&self, blob: Blob, _: ByteRange, _: Purpose) -> ReadFuture<'_> {
        let reason = "the device shows no image".to_owned();
        Box::pin(std::future::ready(Err(ReadError::NotFound { blob: blob.digest, reason })))
    }

    fn reject(&self, _: &Blob, _: ByteRange) {}
}

/// One queue: owned by its thread.
pub(crate) struct Queue<P: Port> {
    setup: Setup,
    inbox: Arc<Inbox>,
    next_ticket: u64,
    /// Misses at the offload, by ticket.
    waiting: HashMap<u64, Waiting<P>>,
    room: Room,
    /// Requests that found no room at the offload, with what they lacked.
    parked: VecDeque<(Work<P>, Place)>,
}

/// A miss at the offload.
struct Waiting<P: Port> {
    /// `None` when the request was answered while its fetch goes on, which still takes its place.
    work: Option<Work<P>>,
    place: Place,
}

/// A read on its way.
struct Work<P: Port> {
    request: Request<P>,
    range: ByteRange,
    /// What is looked at: the range, or a piece of it when all of it lacks too much at once.
    piece: ByteRange,
    /// The bytes before the piece.
    done: Vec<u8>,
    /// How often this piece was at the offload.
    rounds: u32,
    /// Held from the first time that it lacked something.
    wait: Option<Wait>,
    /// Who gave what it lacked, as far as is known.
    giver: Option<Giver>,
    /// Bytes that failed their check and were fetched again.
    rejected: Vec<(Blob, ByteRange)>,
}

impl<P: Port> Work<P> {
    fn new(request: Request<P>, range: ByteRange) -> Self {
        let (done, rejected) = (Vec::new(), Vec::new());
        Self { request, range, piece: range, done, rounds: 0, wait: None, giver: None, rejected }
    }

    /// Where its bytes came from, when they are read.
    fn tier(&self, has_waited_for_disk: bool) -> Tier {
        match (&self.wait, self.giver) {
            (None, _) if has_waited_for_disk => Tier::Disk,
            (None, _) => Tier::Memory,
            (Some(_), Some(Giver::Mirror)) => Tier::Mirror,
            (Some(_), Some(Giver::Origin)) => Tier::Origin,
            (Some(_), None) => Tier::Other,
        }
    }
}

/// What one look at a request finds.
enum Attempt {
    /// Its bytes are in the desk's buffer, so many.
    Ready(usize),
    /// These bytes are not here. What is in hand stays in hand.
    Lacking(Held, Vec<(Blob, ByteRange)>),
    /// It cannot be answered.
    Failed(String),
}

impl<P: Port> Queue<P> {
    pub(crate) fn new(setup: Setup, inbox: Arc<Inbox>) -> Self {
        let (waiting, room, parked) = (HashMap::new(), Room::new(setup.bound), VecDeque::new());
        Self { setup, inbox, next_ticket: 0, waiting, room, parked }
    }

    /// The device's counters, for new requests.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        self.setup.counters.clone()
    }

    /// Takes a read of device bytes.
    pub(crate) fn read(&mut self, request: Request<P>, range: ByteRange) {
        if self.inbox.is_refusing() {
            return request.refuse(Errno::IO);
        }
        let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
        if len > self.setup.max_io_bytes {
            tracing::error!(device = %self.setup.id, %range, "the kernel asks for more than the device allows at once");
            return request.refuse(Errno::INVAL);
        }
        let held = Held::new(self.setup.source.clone());
        self.advance(Work::new(request, range), held);
    }

    /// Takes what the offload posted, and what waited for room there.
    pub(crate) fn collect(&mut self) {
        for Completion { ticket, outcome, giver } in self.inbox.take() {
            let Some(Waiting { work, place }) = self.waiting.remove(&ticket) else { continue };
            self.room.give_back(&place);
            let Some(mut work) = work else { continue };
            // Of several the farthest: that is what the read waited for.
            work.giver = work.giver.max(giver);
            match outcome {
                Ok(held) => self.advance(work, held),
                Err(error) => self.give_up(work, &error.to_string()),
            }
        }
        if self.inbox.take_failing() {
            self.fail_waiting();
        }
        self.unpark();
    }

    /// Looks again at the requests that waited for room and have it now, in the order of their coming.
    fn unpark(&mut self) {
        if self.parked.is_empty() || self.room.is_full() {
            return;
        }
        for (work, place) in std::mem::take(&mut self.parked) {
            if self.room.has(&place) {
                let held = Held::new(self.setup.source.clone());
                self.advance(work, held);
            } else {
                self.parked.push_back((work, place));
            }
        }
    }

    /// Whether so many requests wait that no more should be taken until some are answered.
    pub(crate) fn is_full(&self) -> bool {
        self.parked.len() >= MAX_PARKED
    }

    /// Answers the first waiting read that `is_it` with `errno`. Its fetch goes on for others.
    pub(crate) fn cancel(&mut self, is_it: impl Fn(P::Key) -> bool, errno: Errno) {
        let waiting = self.waiting.values_mut();
        let mine = waiting.filter_map(|miss| miss.work.take_if(|work| is_it(work.request.key()))).next();
        let work = mine.or_else(|| {
            let at = self.parked.iter().position(|(work, _)| is_it(work.request.key()))?;
            Some(self.parked.remove(at)?.0)
        });
        if let Some(work) = work {
            work.request.refuse(errno);
        }
    }

    /// Ends as ordered: what waits is answered EIO, or left to a successor.
    pub(crate) fn end(mut self, how: End) {
        match how {
            End::Quit => self.fail_waiting(),
            End::Leave => {
                let waiting = self.waiting.drain().filter_map(|(_, miss)| miss.work);
                let parked = self.parked.drain(..).map(|(work, _)| work);
                waiting.chain(parked).for_each(|work| work.request.leave());
            }
        }
    }

    /// Answers everything that waits with EIO. Its fetches still count against the bound until they end.
    fn fail_waiting(&mut self) {
        let waiting = self.waiting.values_mut().filter_map(|miss| miss.work.take());
        for work in waiting.chain(self.parked.drain(..).map(|(work, _)| work)) {
            work.request.refuse(Errno::IO);
        }
    }

    /// One look at a request. A panic in it costs this request (its drop answers EIO), not the device.
    fn advance(&mut self, work: Work<P>, held: Held) {
        if catch_unwind(AssertUnwindSafe(|| self.look(work, held))).is_err() {
            tracing::error!(device = %self.setup.id, "reading the image panicked; the request was answered with EIO");
        }
    }

    fn look(&mut self, mut work: Work<P>, held: Held) {
        let mut desk = self.setup.desks.lend(usize::try_from(work.range.len()).unwrap_or(usize::MAX));
        let attempt = self.attempt(&mut work, held, &mut desk);
        // The pins go, the room stays.
        desk.plan.clear();
        match attempt {
            Attempt::Ready(bytes) => {
                let tier = work.tier(desk.scratch.has_waited());
                // Counted by the time that whoever reads has the bytes.
                work.wait = None;
                work.request.answer(&desk.buffer[..bytes], tier);
            }
            Attempt::Lacking(held, wanted) => self.offload(work, held, wanted),
            Attempt::Failed(why) => self.give_up(work, &why),
        }
    }

    /// Plans the read, piece by piece, with what is here and in hand, and executes each plan that lacks nothing.
    fn attempt(&self, work: &mut Work<P>, mut held: Held, desk: &mut Desk) -> Attempt {
        let Some(image) = self.setup.image.clone() else { return Attempt::Failed("the device shows no image".into()) };
        let Desk { buffer, scratch, plan } = desk;
        scratch.begin();
        loop {
            if let Err(error) = image.plan_into(work.piece, &held, plan) {
                return Attempt::Failed(error.to_string());
            }
            if !plan.is_local() {
                let wanted: Vec<_> = plan.missing().collect();
                if room::bytes(&wanted) > self.setup.max_piece_bytes
                    && let Some(first) = first_half(work.piece)
                {
                    work.piece = first;
                    continue;
                }
                return Attempt::Lacking(held, wanted);
            }
            let bytes = usize::try_from(work.piece.len()).unwrap_or(usize::MAX);
            let done = plan.read_into(&mut buffer[..bytes], scratch);
            // The pins go before a source is told to drop what they held.
            plan.clear();
            if let Err(error) = done {
                return self.recheck(work, &error);
            }
            if work.piece == work.range {
                return Attempt::Ready(bytes);
            }
            work.done.extend_from_slice(&buffer[..bytes]);
            let Ok(rest) = ByteRange::new(work.piece.end(), work.range.end()) else {
                buffer[..work.done.len()].copy_from_slice(&work.done);
                return Attempt::Ready(work.done.len());
            };
            (work.piece, work.rounds, held) = (rest, 0, Held::new(self.setup.source.clone()));
        }
    }

    /// Bytes that are here failed their check, or could not be read: the source drops them, and they are fetched again
    /// with nothing else in hand, [`MAX_REJECTED`] times at most. Several places of one request may be wrong; [`MAX_ROUNDS`] bounds them.
    fn recheck(&self, work: &mut Work<P>, error: &StepError) -> Attempt {
        let Some((blob, range)) = error.rejected() else { return Attempt::Failed(error.to_string()) };
        self.setup.source.reject(&blob, range);
        if work.rejected.iter().filter(|&&rejected| rejected == (blob, range)).count() + 1 == MAX_REJECTED {
            return Attempt::Failed(format!("{error}, also after fetching it again"));
        }
        tracing::warn!(device = %self.setup.id, %error, "bytes failed their check and are fetched again");
        work.rejected.push((blob, range));
        Attempt::Lacking(Held::new(self.setup.source.clone()), vec![(blob, range)])
    }

    /// Sends what the request lacks to the offload, or parks the request when that has no room.
    fn offload(&mut self, mut work: Work<P>, held: Held, wanted: Vec<(Blob, ByteRange)>) {
        if work.rounds == MAX_ROUNDS {
            return self.give_up(work, "the plan still lacks bytes after every fetch");
        }
        work.wait.get_or_insert_with(|| Wait::begin(self.setup.counters.clone(), work.range));
        let place = Place::of(&wanted);
        if !self.room.has(&place) {
            return self.parked.push_back((work, place));
        }
        work.rounds += 1;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.room.take(&place);
        self.waiting.insert(ticket, Waiting { work: Some(work), place });
        // The channel has room for every miss of the bound, so it can only be closed. A miss that is dropped posts its own
        // completion, and the request is answered from there.
        let _ = self.setup.misses.try_send(Miss::new(ticket, held, wanted, self.inbox.clone()));
    }

    fn give_up(&self, mut work: Work<P>, why: &str) {
        work.wait = None;
        tracing::warn!(device = %self.setup.id, range = %work.range, why, "a read is answered with EIO");
        self.setup.counters.explain(format!("bytes {}: {why}", work.range));
        work.request.refuse(Errno::IO);
    }
}

/// The first half of a piece, if it can be halved.
fn first_half(piece: ByteRange) -> Option<ByteRange> {
    let half = (piece.len() / 2).next_multiple_of(MIN_PIECE_BYTES);
    if half >= piece.len() {
        return None;
    }
    ByteRange::at(piece.start(), half).ok()
}

#[cfg(test)]
mod tests;
