//! The body of an answer: bytes of memory or of a file, in pieces, with the faults that a body can have.

use std::{
    fs::File,
    future::Future,
    io,
    os::unix::fs::FileExt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use penstock_blob::ByteRange;
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    store::Content,
    wire::{Cut, Wire},
};

/// How much of a file is read at once, in bytes: large enough that reading costs little beside the socket, small enough
/// that a thousand slow clients hold 256 MiB.
const PIECE_BYTES: u64 = 256 << 10;

/// What goes wrong with a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The connection is cut after so many bytes.
    Cut { after_bytes: u64, how: Cut },
    /// The byte at this place of the body has a bit flipped.
    Flip { at: u64 },
    /// Nothing comes until the registry's stalls are released.
    Stall,
}

/// The waits of stalled bodies: one generation after another is released.
#[derive(Debug)]
pub(crate) struct Stalls {
    released: watch::Sender<u64>,
    waiting: watch::Sender<usize>,
}

impl Default for Stalls {
    fn default() -> Self {
        Self { released: watch::Sender::new(0), waiting: watch::Sender::new(0) }
    }
}

impl Stalls {
    pub(crate) fn release(&self) {
        self.released.send_modify(|generation| *generation += 1);
    }

    pub(crate) fn waiting(&self) -> usize {
        *self.waiting.borrow()
    }

    /// Returns once at least `count` bodies wait.
    pub(crate) async fn until_waiting(&self, count: usize) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.waiting.subscribe().wait_for(|waiting| *waiting >= count).await;
    }

    /// Waits for the next release.
    fn wait(self: Arc<Self>) -> impl Future<Output = ()> + Send + 'static {
        let mut released = self.released.subscribe();
        let waiting = Waiting::new(self);
        async move {
            let _ = released.changed().await;
            drop(waiting);
        }
    }
}

/// Counts one stalled body while it lives.
struct Waiting(Arc<Stalls>);

impl Waiting {
    fn new(stalls: Arc<Stalls>) -> Self {
        stalls.waiting.send_modify(|waiting| *waiting += 1);
        Self(stalls)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.send_modify(|waiting| *waiting -= 1);
    }
}

/// An answer's body.
pub(crate) struct Body {
    content: Content,
    /// The next byte of the content, and where the body ends.
    at: u64,
    end: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    stall: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// The place in the content where the connection is cut.
    cut: Option<(u64, Cut, Arc<Wire>)>,
    /// The place in the content whose byte is changed.
    flip: Option<u64>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("at", &self.at).field("end", &self.end).finish_non_exhaustive()
    }
}

impl Body {
    /// The bytes of `range` of `content`, or none at all.
    pub(crate) fn new(content: Content, range: Option<ByteRange>) -> Self {
        let (at, end) = range.map_or((0, 0), |range| (range.start(), range.end()));
        Self { content, at, end, reading: None, stall: None, cut: None, flip: None }
    }

    /// The same with something wrong.
    pub(crate) fn flawed(mut self, flaw: Flaw, wire: &Arc<Wire>, stalls: &Arc<Stalls>) -> Self {
        match flaw {
            Flaw::Stall => self.stall = Some(Box::pin(Arc::clone(stalls).wait())),
            Flaw::Flip { at } => self.flip = Some(self.at.saturating_add(at)),
            Flaw::Cut { after_bytes, how } => {
                let place = self.at.saturating_add(after_bytes).min(self.end);
                self.cut = Some((place, how, Arc::clone(wire)));
            }
        }
        self
    }

    /// The next bytes as they are.
    fn poll_piece(&mut self, cx: &mut Context<'_>, limit: u64) -> Poll<io::Result<Bytes>> {
        let range = self.at..limit.min(self.at.saturating_add(PIECE_BYTES));
        match &self.content {
            Content::Memory(bytes) => Poll::Ready(piece_of(bytes, range)),
            Content::File { file, .. } => {
                let file = Arc::clone(file);
                let reading =
                    self.reading.get_or_insert_with(|| tokio::task::spawn_blocking(move || read(&file, range)));
                let done = ready!(Pin::new(reading).poll(cx));
                self.reading = None;
                Poll::Ready(done.unwrap_or_else(|error| Err(io::Error::other(error))))
            }
        }
    }
}

fn piece_of(bytes: &Bytes, range: std::ops::Range<u64>) -> io::Result<Bytes> {
    let place = |at| usize::try_from(at).map_err(io::Error::other);
    Ok(bytes.slice(place(range.start)?..place(range.end)?))
}

fn read(file: &File, range: std::ops::Range<u64>) -> io::Result<Bytes> {
    let mut piece = vec![0; usize::try_from(range.end - range.start).map_err(io::Error::other)?];
    file.read_exact_at(&mut piece, range.start)?;
    Ok(piece.into())
}

/// `piece`, which begins at `start`, with the lowest bit of the byte at `place` flipped when it holds it.
fn flipped(piece: Bytes, start: u64, place: u64) -> Bytes {
    let mut piece = BytesMut::from(piece);
    let within = place.checked_sub(start).and_then(|at| usize::try_from(at).ok());
    if let Some(byte) = within.and_then(|at| piece.get_mut(at)) {
        *byte ^= 1;
    }
    piece.freeze()
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(stall) = &mut self.stall {
            ready!(stall.as_mut().poll(cx));
            self.stall = None;
        }
        let mut limit = self.end;
        if let Some((place, how, wire)) = &self.cut {
            if self.at >= *place {
                wire.cut(*how);
                // hyper flushes before it asks again, and the flush cuts: it does not come back here.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            limit = *place;
        }
        if self.at >= limit {
            return Poll::Ready(None);
        }
        let mut piece = ready!(self.poll_piece(cx, limit))?;
        if let Some(place) = self.flip {
            piece = flipped(piece, self.at, place);
        }
        self.at += piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.at >= self.end && self.cut.is_none() && self.stall.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_changes_where_it_should_and_nowhere_else() {
        let piece = Bytes::from_static(b"aaaa");
        assert_eq!(flipped(piece.clone(), 10, 12), &b"aa`a"[..]);
        for elsewhere in [0, 9, 14] {
            assert_eq!(flipped(piece.clone(), 10, elsewhere), piece);
        }
    }
}
