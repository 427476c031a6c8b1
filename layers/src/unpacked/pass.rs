//! Passes: a layer that decodes only from its beginning is gone over in order, and each piece is handed to whoever waits for it.
//!
//! One pass for each layer. It goes on while somebody waits, whoever that is: readers come and go. Who asks for a piece behind it has it begin
//! anew. It holds its place for some seconds when nobody waits, and then lets go of everything.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use penstock_blob::{ByteRange, Purpose, ReadError};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use super::{Layer, TRIES, Tools, blocking, reads::Reads, slice, storage, waiting::Next};
use crate::{
    frame::{FrameError, Proof},
    index::{format::FormatError, read::IndexError},
    zstandard::pieces::Pieces,
};

/// Passes at once: each holds a window of at most 8 MiB, 4 MiB of the compressed layer, and a piece. Another one waits until one ends.
pub(super) const PASSES: usize = 4;
/// How long a pass holds its place while nobody waits. A reader in order comes back sooner.
const IDLE: Duration = Duration::from_secs(3);

/// A decoder inside a run.
#[derive(Debug)]
struct Course {
    run: Range<usize>,
    decoder: Pieces,
    reads: Reads,
    /// What was fed of the compressed layer.
    fed: u64,
    /// The piece that is being decoded.
    open: Option<Piece>,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    packed: ByteRange,
    proof: Proof,
}

/// Pieces that were wrong, and no right one since.
#[derive(Debug)]
struct Wrong {
    piece: usize,
    times: u32,
    since: Instant,
}

/// How a step of a pass ends, when no piece came of it.
enum Stop {
    /// Somebody waits elsewhere.
    Elsewhere,
    /// The piece is not what the index says.
    Wrong(ByteRange, FrameError),
    /// Its bytes cannot be had.
    Failed(ReadError),
}

/// A pass over one layer.
#[derive(Debug)]
pub(super) struct Pass {
    tools: Tools,
    layer: Arc<Layer>,
    /// The piece that it stands at.
    at: usize,
    course: Option<Course>,
    wrong: Option<Wrong>,
}

/// Whatever ends a pass, nobody waits for it any more, and the next reader begins another.
struct Running(Option<Arc<Layer>>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(layer) = &self.0 {
            layer.waiting.lock().abandon();
        }
    }
}

impl Pass {
    pub(super) const fn new(tools: Tools, layer: Arc<Layer>) -> Self {
        Self { tools, layer, at: 0, course: None, wrong: None }
    }

    /// Goes on until nobody has waited for a while.
    pub(super) async fn run(mut self, passes: Arc<Semaphore>) {
        let mut running = Running(Some(Arc::clone(&self.layer)));
        // Never closed.
        let Ok(_turn) = Arc::clone(&passes).acquire_owned().await else { return };
        while let Some(next) = self.next(&passes).await {
            let step = match self.go_to(next) {
                Ok(()) => self.step(next).await,
                Err(error) => Err(Stop::Failed(error)),
            };
            match step {
                Ok(bytes) => self.came(&bytes),
                Err(Stop::Elsewhere) => {}
                Err(Stop::Wrong(range, error)) => self.wrong(range, &error),
                Err(Stop::Failed(error)) => self.fail(&error),
            }
        }
        // Ended in good order: who came since has a pass of his own.
        running.0 = None;
    }

    /// What to do next; `None`: the pass has ended.
    async fn next(&self, passes: &Semaphore) -> Option<Next> {
        let mut is_idle = false;
        loop {
            {
                let mut waiting = self.layer.waiting.lock();
                if let Some(next) = waiting.next(self.at) {
                    return Some(next);
                }
                // Somebody else may wait for its turn.
                if is_idle || waiting.is_gone || passes.available_permits() == 0 {
                    waiting.is_running = false;
                    return None;
                }
            }
            is_idle = timeout(IDLE, self.layer.woken.notified()).await.is_err();
        }
    }

    /// Stands where the decoder goes on to the next piece, or begins anew.
    fn go_to(&mut self, next: Next) -> Result<(), ReadError> {
        let index = &self.layer.index;
        let damaged = || storage(&self.layer, &IndexError::Format(FormatError::Nonsense("frame table")));
        let is_on_the_way = |course: &Course| course.run.contains(&next.piece) && self.at <= next.piece;
        if self.course.as_ref().is_some_and(is_on_the_way) {
            return Ok(());
        }
        self.course = None;
        // Also when it fails: who waits for that piece is told.
        self.at = next.piece;
        let run = index.run(next.piece).ok_or_else(damaged)?;
        let (first, last) = index.packed_of(run.start).zip(index.packed_of(run.end - 1)).ok_or_else(damaged)?;
        let packed = first.cover(last);
        let decoder = Pieces::new().map_err(|error| storage(&self.layer, &IndexError::Io(error)))?;
        let reads = Reads::new(Arc::clone(&self.tools.below), self.layer.packed(), packed);
        self.tools.metrics.passes.inc();
        self.at = run.start;
        self.course = Some(Course { run, decoder, reads, fed: packed.start(), open: None });
        Ok(())
    }

    /// Decodes the piece that it stands at.
    async fn step(&mut self, next: Next) -> Result<Bytes, Stop> {
        let Some(mut course) = self.course.take() else { return Err(Stop::Elsewhere) };
        let piece = match course.open {
            Some(piece) => piece,
            None => {
                let piece = self.piece(&mut course).await.map_err(Stop::Failed)?;
                *course.open.insert(piece)
            }
        };
        let mut next = next;
        while course.fed < piece.packed.end() {
            let until = self.layer.index.packed_of(next.last.min(course.run.end - 1)).map_or(0, ByteRange::end);
            course.reads.ask(until.max(piece.packed.end()), next.purpose);
            let (range, bytes) = tokio::select! {
                first = course.reads.first() => match first {
                    Ok(first) => first,
                    // Nobody's failure: it is asked for again, in earnest.
                    Err((Purpose::Ahead, _)) if self.is_demanded() => {
                        next.purpose = Purpose::Demand;
                        continue;
                    }
                    Err((_, error)) => {
                        self.course = Some(course);
                        return Err(Stop::Failed(error));
                    }
                },
                () = self.layer.woken.notified() => {
                    let Some(now) = self.layer.waiting.lock().next(self.at) else { continue };
                    if !course.run.contains(&now.piece) || now.piece < self.at {
                        return Err(Stop::Elsewhere);
                    }
                    next = now;
                    continue;
                }
            };
            // What was passed is gone, and reads follow each other: it holds the byte that comes next.
            let Ok(part) = ByteRange::new(course.fed, range.end().min(piece.packed.end())) else { continue };
            let fed = slice(&bytes, range, part);
            let turn = self.tools.turn(next.purpose).await;
            let fed = feed(course.decoder, fed, turn).await.map_err(Stop::Failed)?;
            match fed {
                Ok(decoder) => course.decoder = decoder,
                Err(error) => return Err(Stop::Wrong(piece.packed, error)),
            }
            course.fed = part.end();
            course.reads.passed(course.fed);
        }
        course.open = None;
        let turn = self.tools.turn(next.purpose).await;
        let mut decoder = course.decoder;
        let verified = blocking(move || {
            let _turn = turn;
            let Proof::Decoded(expected) = piece.proof else { return Err(FrameError::Broken("no digest".to_owned())) };
            decoder.finish(expected).map(|bytes| (decoder, bytes))
        });
        let (decoder, bytes) = match verified.await.map_err(Stop::Failed)? {
            Ok(verified) => verified,
            Err(error) => return Err(Stop::Wrong(piece.packed, error)),
        };
        self.course = Some(Course { decoder, ..course });
        Ok(bytes)
    }

    fn is_demanded(&self) -> bool {
        self.layer.waiting.lock().next(self.at).is_some_and(|next| next.purpose == Purpose::Demand)
    }

    /// The piece that it stands at begins.
    async fn piece(&self, course: &mut Course) -> Result<Piece, ReadError> {
        let (number, of) = (self.at, Arc::clone(&self.layer));
        let placed = blocking(move || of.index.frames(number..number + 1)).await?;
        let placed = placed.map_err(|error| storage(&self.layer, &error))?;
        let [placed] = placed[..] else {
            return Err(storage(&self.layer, &IndexError::Format(FormatError::Nonsense("frame table"))));
        };
        // At most 16 MiB, as the table was checked.
        course.decoder.begin(usize::try_from(placed.frame.bytes.len()).unwrap_or(usize::MAX));
        Ok(Piece { packed: placed.frame.packed, proof: placed.frame.proof })
    }

    /// The piece that it stands at is right.
    fn came(&mut self, bytes: &Bytes) {
        let tools = &self.tools;
        tools.metrics.decoded_bytes.inc_by(bytes.len() as u64);
        tools.recent.lock().keep(self.layer.blob().digest, self.at, bytes.clone());
        self.layer.waiting.lock().answer(self.at, bytes);
        // Pieces before a wrong one were right the first time, too.
        self.wrong = self.wrong.take().filter(|wrong| wrong.piece > self.at);
        if self.wrong.is_none() {
            self.layer.is_right();
        }
        self.at += 1;
        // The end of a run: nothing more comes of this decoder.
        self.course = self.course.take().filter(|course| course.run.contains(&self.at));
    }

    /// A piece is wrong: what the decoder has seen may be, too. It begins anew, with bytes from elsewhere.
    fn wrong(&mut self, range: ByteRange, error: &FrameError) {
        let (tools, layer) = (&self.tools, &self.layer);
        tools.metrics.wrong_frames.inc();
        let wrong = self.wrong.get_or_insert_with(|| Wrong { piece: self.at, times: 0, since: Instant::now() });
        (wrong.piece, wrong.times) = (wrong.piece.max(self.at), wrong.times + 1);
        // The second time it may be something before that led it astray.
        let before = layer.index.run(self.at).and_then(|run| layer.index.packed_of(run.start));
        let rejected = before.filter(|_| wrong.times > 1).map_or(range, |before| before.cover(range));
        tools.below.reject(&layer.packed(), rejected);
        tools.doubt(layer, range, error);
        if wrong.times >= TRIES || wrong.since.elapsed() >= tools.config.deadline {
            self.wrong = None;
            self.fail(&super::wrong_bytes(layer, range, error));
        }
    }

    /// Those who wait for what comes from here on in this run get an error; the next one who asks has it tried again from here on.
    fn fail(&self, error: &ReadError) {
        let end = self.layer.index.run(self.at).map_or(self.at + 1, |run| run.end);
        self.layer.waiting.lock().fail(self.at..end, error);
    }
}

/// Feeds a decoder on the blocking pool.
async fn feed(
    mut decoder: Pieces,
    packed: Bytes,
    turn: (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>),
) -> Result<Result<Pieces, FrameError>, ReadError> {
    blocking(move || {
        let _turn = turn;
        decoder.feed(&packed).map(|()| decoder)
    })
    .await
}
