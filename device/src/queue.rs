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

use penstock_blob::{Blob, BlobSource, ByteRange, Located, ReadError, ReadFuture};
use penstock_image::{Held, Image, Scratch, StepError};
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::{
    DeviceId,
    inbox::{End, Inbox},
    offload::{Completion, Miss},
    request::{Port, Request},
    stats::{Counters, Tier},
};

/// How often one request may go to the offload: once for the data, and once for each place that fails its check (a mirror that
/// lied has left many), with room. Beyond it the answer is EIO; what failed is dropped by then, so a later request gets further.
const MAX_ROUNDS: u32 = 32;

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
    /// The largest read.
    pub(crate) max_io_bytes: usize,
}

impl Setup {
    /// For a device that shows nothing and answers EIO.
    pub(crate) fn refusing(id: DeviceId, counters: Arc<Counters>, misses: mpsc::Sender<Miss>) -> Self {
        Self { id, image: None, source: Arc::new(Nothing), counters, misses, bound: 1, max_io_bytes: 0 }
    }
}

/// A source without blobs.
#[derive(Debug)]
struct Nothing;

impl BlobSource for Nothing {
    fn locate(&self, _: &Blob, _: ByteRange) -> Option<Located> {
        None
    }

    fn read(&self, blob: Blob, _: ByteRange) -> ReadFuture<'_> {
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
    /// By ticket; `None` for one whose request was answered while its fetch goes on, which still counts against the bound.
    waiting: HashMap<u64, Option<Work<P>>>,
    /// Requests that found the offload full.
    parked: VecDeque<Work<P>>,
    buffer: Vec<u8>,
    scratch: Scratch,
}

/// A read on its way.
struct Work<P: Port> {
    request: Request<P>,
    range: ByteRange,
    rounds: u32,
    /// Bytes that failed their check and were fetched again.
    rejected: Vec<(Blob, ByteRange)>,
}

/// What one look at a request finds.
enum Attempt {
    /// Its bytes are in the queue's buffer, so many.
    Ready(usize),
    /// These bytes are not here. What is in hand stays in hand.
    Lacking(Held, Vec<(Blob, ByteRange)>),
    /// It cannot be answered.
    Failed(String),
}

impl<P: Port> Queue<P> {
    pub(crate) fn new(setup: Setup, inbox: Arc<Inbox>) -> Self {
        let buffer = vec![0; setup.max_io_bytes];
        let (waiting, parked) = (HashMap::new(), VecDeque::new());
        Self { setup, inbox, next_ticket: 0, waiting, parked, buffer, scratch: Scratch::new() }
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
        if range.len() > self.buffer.len() as u64 {
            tracing::error!(device = %self.setup.id, %range, "the kernel asks for more than the device allows at once");
            return request.refuse(Errno::INVAL);
        }
        let held = Held::new(self.setup.source.clone());
        self.advance(Work { request, range, rounds: 0, rejected: Vec::new() }, held);
    }

    /// Takes what the offload posted, and what waited for room there.
    pub(crate) fn collect(&mut self) {
        for Completion { ticket, outcome } in self.inbox.take() {
            let Some(Some(work)) = self.waiting.remove(&ticket) else { continue };
            match outcome {
                Ok(held) => self.advance(work, held),
                Err(error) => self.give_up(work, &error.to_string()),
            }
        }
        if self.inbox.take_failing() {
            self.fail_waiting();
        }
        while self.waiting.len() < self.setup.bound {
            let Some(work) = self.parked.pop_front() else { return };
            let held = Held::new(self.setup.source.clone());
            self.advance(work, held);
        }
    }

    /// Whether so many requests wait that no more should be taken until some are answered.
    pub(crate) fn is_full(&self) -> bool {
        self.parked.len() >= MAX_PARKED
    }

    /// Answers the first waiting read that `is_it` with `errno`. Its fetch goes on for others.
    pub(crate) fn cancel(&mut self, is_it: impl Fn(P::Key) -> bool, errno: Errno) {
        let waiting = self.waiting.values_mut();
        let mine = waiting.filter_map(|slot| slot.take_if(|work| is_it(work.request.key()))).next();
        let work = mine.or_else(|| {
            let at = self.parked.iter().position(|work| is_it(work.request.key()))?;
            self.parked.remove(at)
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
                let waiting = self.waiting.drain().filter_map(|(_, work)| work);
                waiting.chain(self.parked.drain(..)).for_each(|work| work.request.leave());
            }
        }
    }

    /// Answers everything that waits with EIO. Its fetches still count against the bound until they end.
    fn fail_waiting(&mut self) {
        let waiting = self.waiting.values_mut().filter_map(Option::take);
        for work in waiting.chain(self.parked.drain(..)) {
            work.request.refuse(Errno::IO);
        }
    }

    /// One look at a request. A panic in it costs this request (its drop answers EIO), not the device.
    fn advance(&mut self, work: Work<P>, held: Held) {
        if catch_unwind(AssertUnwindSafe(|| self.look(work, held))).is_err() {
            tracing::error!(device = %self.setup.id, "reading the image panicked; the request was answered with EIO");
            self.scratch = Scratch::new();
        }
    }

    fn look(&mut self, mut work: Work<P>, held: Held) {
        match self.attempt(&mut work, held) {
            Attempt::Ready(bytes) => {
                let tier = if work.rounds == 0 { Tier::Hit } else { Tier::Miss };
                work.request.answer(&self.buffer[..bytes], tier);
            }
            Attempt::Lacking(held, wanted) => self.offload(work, held, wanted),
            Attempt::Failed(why) => self.give_up(work, &why),
        }
    }

    /// Plans the read with what is here and in hand, and executes the plan when nothing is lacking.
    fn attempt(&mut self, work: &mut Work<P>, held: Held) -> Attempt {
        let Some(image) = &self.setup.image else { return Attempt::Failed("the device shows no image".into()) };
        let plan = match image.plan(work.range, &held) {
            Ok(plan) => plan,
            Err(error) => return Attempt::Failed(error.to_string()),
        };
        if !plan.is_local() {
            let wanted = plan.missing().collect();
            return Attempt::Lacking(held, wanted);
        }
        let bytes = usize::try_from(work.range.len()).unwrap_or(usize::MAX);
        let done = plan.read_into(&mut self.buffer[..bytes], &mut self.scratch);
        // The pins go before a source is told to drop what they held.
        drop(plan);
        done.map_or_else(|error| self.recheck(work, &error), |()| Attempt::Ready(bytes))
    }

    /// Bytes that are here failed their check, or could not be read: the source drops them, and they are fetched again, once,
    /// with nothing else in hand. Several places of one request may be wrong; [`MAX_ROUNDS`] bounds them.
    fn recheck(&self, work: &mut Work<P>, error: &StepError) -> Attempt {
        let Some((blob, range)) = error.rejected() else { return Attempt::Failed(error.to_string()) };
        self.setup.source.reject(&blob, range);
        if work.rejected.contains(&(blob, range)) {
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
        if self.waiting.len() >= self.setup.bound {
            return self.parked.push_back(work);
        }
        work.rounds += 1;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.insert(ticket, Some(work));
        // The channel has room for every miss of the bound, so it can only be closed. A miss that is dropped posts its own
        // completion, and the request is answered from there.
        let _ = self.setup.misses.try_send(Miss::new(ticket, held, wanted, self.inbox.clone()));
    }

    fn give_up(&self, work: Work<P>, why: &str) {
        tracing::warn!(device = %self.setup.id, range = %work.range, why, "a read is answered with EIO");
        self.setup.counters.explain(format!("bytes {}: {why}", work.range));
        work.request.refuse(Errno::IO);
    }
}

#[cfg(test)]
mod tests;
