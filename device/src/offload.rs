//! Where misses wait for bytes: one bounded channel per device into the tokio runtime.
//!
//! A [`Miss`] is a value whose drop answers: whatever happens to it (the runtime ends, a task panics, the device stops), the
//! queue that sent it gets a [`Completion`].

use std::sync::Arc;

use penstock_blob::{Blob, BlobSource as _, ByteRange, Giver, ReadError, SPANS};
use penstock_image::Held;
use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use tracing::{
    Instrument as _, Span,
    field::{Empty, debug, display},
    info_span,
};

use crate::{DeviceId, inbox::Inbox};

/// What became of a miss.
#[derive(Debug)]
pub(crate) struct Completion {
    /// The number that the queue gave the miss.
    pub(crate) ticket: u64,
    /// All bytes wanted, in hand, or why one of them cannot be had.
    pub(crate) outcome: Result<Held, ReadError>,
    /// Who gave them; of several the farthest.
    pub(crate) giver: Option<Giver>,
}

/// Bytes that a queue lacks, on their way to be fetched.
#[derive(Debug)]
pub(crate) struct Miss {
    ticket: u64,
    /// What the request has in hand from earlier rounds, and the source to ask.
    held: Option<Held>,
    wanted: Vec<(Blob, ByteRange)>,
    inbox: Arc<Inbox>,
}

impl Miss {
    pub(crate) fn new(ticket: u64, held: Held, wanted: Vec<(Blob, ByteRange)>, inbox: Arc<Inbox>) -> Self {
        Self { ticket, held: Some(held), wanted, inbox }
    }

    /// Fetches what is wanted and answers the queue.
    async fn fetch(mut self) {
        let wanted = std::mem::take(&mut self.wanted);
        let Some(held) = self.held.as_mut() else { return };
        let outcome = held.add(wanted.clone()).await;
        let giver = wanted.iter().filter_map(|(blob, range)| held.giver(blob, *range)).max();
        let span = Span::current();
        giver.map(|giver| span.record("giver", debug(giver)));
        outcome.as_ref().err().map(|error| span.record("error", display(error)));
        // Taking the bytes marks the miss as answered.
        if let Some(held) = self.held.take() {
            self.inbox.post(Completion { ticket: self.ticket, outcome: outcome.map(|()| held), giver });
        }
    }
}

impl Drop for Miss {
    fn drop(&mut self) {
        if self.held.is_some() {
            self.inbox.post(Completion { ticket: self.ticket, outcome: Err(ReadError::Stopping), giver: None });
        }
    }
}

/// The tokio side of a device. Dropping it ends every fetch; their misses are answered [`ReadError::Stopping`].
#[derive(Debug)]
pub(crate) struct Offload {
    sender: mpsc::Sender<Miss>,
    dispatcher: AbortHandle,
}

impl Offload {
    /// Starts the dispatcher of device `id` on `runtime`. `bound` is how many misses the queues may have in flight together.
    pub(crate) fn start(id: &DeviceId, runtime: &Handle, bound: usize) -> Self {
        let (sender, misses) = mpsc::channel(bound.max(1));
        let dispatcher = runtime.spawn(dispatch(id.clone(), misses)).abort_handle();
        Self { sender, dispatcher }
    }

    /// Where queues send their misses.
    pub(crate) fn sender(&self) -> mpsc::Sender<Miss> {
        self.sender.clone()
    }

    /// Ends every fetch; later misses find the channel closed.
    pub(crate) fn stop(&self) {
        self.dispatcher.abort();
    }
}

impl Drop for Offload {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One task per miss: a fetch that takes long delays nobody but its own readers. Ends with its owner, aborting the fetches.
async fn dispatch(id: DeviceId, mut misses: mpsc::Receiver<Miss>) {
    let mut fetches = JoinSet::new();
    loop {
        tokio::select! {
            miss = misses.recv() => match miss {
                Some(miss) => {
                    let bytes: u64 = miss.wanted.iter().map(|(_, range)| range.len()).sum();
                    let span = info_span!(target: SPANS, "miss", device = %id, bytes, giver = Empty, error = Empty);
                    fetches.spawn(miss.fetch().instrument(span));
                }
                None => return,
            },
            Some(ended) = fetches.join_next(), if !fetches.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a fetch ended abnormally; its request is answered with EIO");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use penstock_blob::{
        BlobSource,
        faults::{Memory, Stuck},
    };

    use super::*;

    fn miss(source: Arc<dyn BlobSource>, blob: Blob, inbox: &Arc<Inbox>, ticket: u64) -> Miss {
        Miss::new(ticket, Held::new(source), vec![(blob, ByteRange::new(1, 3).unwrap())], inbox.clone())
    }

    /// Waits for the eventfd as a queue does, and takes what was posted.
    async fn posted(inbox: &Arc<Inbox>) -> Vec<Completion> {
        let inbox = inbox.clone();
        let wait = move || {
            let mut fds = [rustix::event::PollFd::new(&*inbox, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            inbox.take()
        };
        tokio::task::spawn_blocking(wait).await.unwrap()
    }

    #[tokio::test]
    async fn a_miss_comes_back_with_its_bytes_in_hand() {
        let memory = Memory::new(vec![Bytes::from_static(b"abcdef")]);
        let blob = memory.blob(0);
        let (offload, inbox) = (Offload::start(&"t".parse().unwrap(), &Handle::current(), 4), Inbox::new().unwrap());
        offload.sender().send(miss(memory, blob, &inbox, 7)).await.unwrap();
        let done = posted(&inbox).await.remove(0);
        assert_eq!(done.ticket, 7);
        let located = done.outcome.unwrap().locate(&blob, ByteRange::new(1, 3).unwrap()).unwrap();
        assert_eq!(located.as_memory().unwrap(), "bc");
    }

    #[tokio::test]
    async fn every_miss_is_answered_when_the_offload_stops() {
        let memory = Memory::new(vec![Bytes::from_static(b"abcdef")]);
        let blob = memory.blob(0);
        let stuck = Stuck::new(memory);
        let (offload, inbox) = (Offload::start(&"t".parse().unwrap(), &Handle::current(), 4), Inbox::new().unwrap());
        let sender = offload.sender();
        for ticket in 0..3 {
            sender.send(miss(stuck.clone(), blob, &inbox, ticket)).await.unwrap();
        }
        drop(offload);
        sender.closed().await;
        // Sent after the end: the miss comes back with the error, and its drop answers.
        drop(sender.try_send(miss(stuck, blob, &inbox, 3)).unwrap_err());
        let mut tickets = Vec::new();
        while tickets.len() < 4 {
            for done in posted(&inbox).await {
                assert_eq!(done.outcome.unwrap_err(), ReadError::Stopping);
                tickets.push(done.ticket);
            }
        }
        tickets.sort_unstable();
        assert_eq!(tickets, [0, 1, 2, 3]);
    }
}
