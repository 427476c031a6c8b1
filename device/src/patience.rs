//! How long the readers of a device wait for bytes that are not on this node, and what is said about it.
//!
//! One source of the stack: it asks the one below, and again when that failed in a way that may pass, until the device's patience
//! ends. The patience can be changed at any time, also for reads that wait.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use penstock_blob::{Blob, BlobSource, ByteRange, Digest, Giver, Located, Purpose, ReadError, ReadFuture};
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, sleep_until},
};

use crate::ConfigError;

/// Shortest and longest deadline.
const DEADLINE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// Longest wait: a reader of a block device cannot be killed while it waits.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Pause before the source is asked again after it failed: the first, doubled up to the longest. It has retried by itself before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A blob whose reads failed is said to be healed once one succeeds and none has failed for so long: with some ranges stuck and
/// others not, it would otherwise be said for each read.
const QUIET: Duration = Duration::from_secs(10);

/// Blobs whose troubles are remembered. An image has fewer; beyond it nothing more is said.
const MAX_BLOBS: usize = 1024;

/// Notices kept for a listener that is slow; it is told how many it missed. Each device has room for so many, 2 KiB in all.
const NOTICES: usize = 16;

/// How long a reader waits for bytes that have to be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long one read may take before something is done about it. From 1 s to 10 min.
    pub deadline: Duration,
    /// What is done then.
    pub then: Then,
}

/// What becomes of a read whose deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It is answered EIO.
    Eio,
    /// It waits on, asking again, and is answered EIO in the end.
    Wait {
        /// How long it may take in all. From the deadline to 24 h.
        at_most: Duration,
    },
}

impl Default for Patience {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), then: Then::Eio }
    }
}

impl fmt::Display for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.then {
            Then::Eio => write!(f, "an I/O error after {:?}", self.deadline),
            Then::Wait { at_most } => write!(f, "waits at most {at_most:?}"),
        }
    }
}

impl Patience {
    /// Whether the durations lie in their bounds.
    ///
    /// # Errors
    /// [`ConfigError`] with the one that does not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refused = |field, bounds, value: Duration| ConfigError { field, bounds, value: value.as_secs() };
        if !(DEADLINE.0..=DEADLINE.1).contains(&self.deadline) {
            return Err(refused("patience.deadline", "from 1 to 600 seconds", self.deadline));
        }
        match self.then {
            Then::Wait { at_most } if !(self.deadline..=LONGEST_WAIT).contains(&at_most) => {
                Err(refused("patience.at_most", "from the deadline to 86400 seconds", at_most))
            }
            _ => Ok(()),
        }
    }

    /// How long a read may take in all.
    #[must_use]
    pub const fn total(&self) -> Duration {
        match self.then {
            Then::Eio => self.deadline,
            Then::Wait { at_most } => at_most,
        }
    }

    /// Whether it is worth asking again after `error`: what may pass by itself always, and who waits waits also for what an operator
    /// has to mend (credentials, a blob that is missing).
    const fn asks_again(&self, error: &ReadError) -> bool {
        match self.then {
            Then::Eio => error.is_transient(),
            Then::Wait { .. } => !matches!(error, ReadError::OutOfBounds { .. } | ReadError::Stopping),
        }
    }
}

/// What a device has to say about its reads: at a change, not for each read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Reads of a blob have waited longer than the deadline, and wait on.
    Waiting {
        /// The blob.
        blob: Digest,
        /// What the first of them wants.
        range: ByteRange,
        /// How long they will wait at most.
        at_most: Duration,
        /// The last failure met, if there was one.
        last: Option<String>,
    },
    /// Reads of a blob are answered EIO: their time is over.
    PolicyEio {
        /// The blob.
        blob: Digest,
        /// What the first of them wanted.
        range: ByteRange,
        /// How long it had waited.
        waited: Duration,
        /// The last failure met, if there was one.
        last: Option<String>,
    },
    /// Reads of a blob get their bytes again.
    Healed {
        /// The blob.
        blob: Digest,
    },
}

/// How the reads of one blob fare. A blob that is not remembered fares well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Some wait beyond their deadline, since this one did.
    Waiting(Instant),
    /// Some were answered EIO, the last one then.
    Refused(Instant),
}

/// What happened to a read.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Late,
    Refused,
    Served,
}

impl Trouble {
    /// The state after `turn`, and whether that is a change to be told.
    ///
    /// | from | turn | to | told |
    /// |---|---|---|---|
    /// | well | late | waiting | yes |
    /// | well, waiting | refused | refused | yes |
    /// | waiting, refused | late | the same, from now | no |
    /// | refused | refused | refused, from now | no |
    /// | waiting, refused | served, quiet since | well | yes |
    /// | waiting, refused | served, not quiet | the same | no |
    fn apply(from: Option<Self>, turn: Turn, now: Instant) -> (Option<Self>, bool) {
        match (from, turn) {
            (None, Turn::Late) => (Some(Self::Waiting(now)), true),
            (None | Some(Self::Waiting(_)), Turn::Refused) => (Some(Self::Refused(now)), true),
            (Some(Self::Waiting(_)), Turn::Late) => (Some(Self::Waiting(now)), false),
            (Some(Self::Refused(_)), Turn::Late | Turn::Refused) => (Some(Self::Refused(now)), false),
            (Some(Self::Waiting(since) | Self::Refused(since)), Turn::Served) if now - since >= QUIET => (None, true),
            (unchanged, Turn::Served) => (unchanged, false),
        }
    }
}

/// The source of one device, with its patience.
#[derive(Debug)]
pub(crate) struct Patient {
    below: Arc<dyn BlobSource>,
    patience: watch::Sender<Patience>,
    troubles: Mutex<HashMap<Digest, Trouble>>,
    notices: broadcast::Sender<Notice>,
}

/// One read on its way.
struct Ask {
    blob: Blob,
    range: ByteRange,
    begun: Instant,
    last: Option<ReadError>,
    pause: Duration,
    is_late: bool,
}

impl Patient {
    pub(crate) fn new(below: Arc<dyn BlobSource>, patience: Patience) -> Arc<Self> {
        let (patience, notices) = (watch::Sender::new(patience), broadcast::Sender::new(NOTICES));
        Arc::new(Self { below, patience, troubles: Mutex::default(), notices })
    }

    pub(crate) fn patience(&self) -> Patience {
        *self.patience.borrow()
    }

    /// Changes the patience, also of reads that wait.
    pub(crate) fn set(&self, patience: Patience) {
        self.patience.send_replace(patience);
    }

    pub(crate) fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    fn turn(&self, ask: &Ask, turn: Turn, notice: impl FnOnce(Option<String>) -> Notice) {
        let mut troubles = self.troubles.lock();
        let from = troubles.get(&ask.blob.digest).copied();
        if from.is_none() && troubles.len() >= MAX_BLOBS {
            return;
        }
        let (to, is_told) = Trouble::apply(from, turn, Instant::now());
        match to {
            Some(trouble) => troubles.insert(ask.blob.digest, trouble),
            None => troubles.remove(&ask.blob.digest),
        };
        drop(troubles);
        if is_told {
            // Nobody listening is fine: the device's counters and the log have it too.
            let _ = self.notices.send(notice(ask.last.as_ref().map(ToString::to_string)));
        }
    }

    /// Waits until something has to be done about a read that is not answered: a change of the patience, its deadline, its end.
    /// Answers the error once its time is over.
    async fn until_due(&self, ask: &mut Ask, changes: &mut watch::Receiver<Patience>) -> Option<ReadError> {
        let patience = *changes.borrow_and_update();
        let end = ask.begun + patience.total();
        let due = if ask.is_late { end } else { end.min(ask.begun + patience.deadline) };
        tokio::select! {
            // Its sender is ours.
            _ = changes.changed() => return None,
            () = sleep_until(due) => {}
        }
        let (blob, range, waited) = (ask.blob.digest, ask.range, ask.begun.elapsed());
        if Instant::now() >= end {
            self.turn(ask, Turn::Refused, |last| Notice::PolicyEio { blob, range, waited, last });
            let last = ask.last.as_ref().map_or_else(|| "no answer yet".to_owned(), ToString::to_string);
            return Some(ReadError::Deadline { blob, range, after: waited, last });
        }
        ask.is_late = true;
        let at_most = patience.total();
        self.turn(ask, Turn::Late, |last| Notice::Waiting { blob, range, at_most, last });
        None
    }

    async fn wait(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> Result<bytes::Bytes, ReadError> {
        let begun = Instant::now();
        let mut ask = Ask { blob, range, begun, last: None, pause: FIRST_PAUSE, is_late: false };
        let mut changes = self.patience.subscribe();
        let mut read = self.below.read(blob, range, purpose);
        loop {
            tokio::select! {
                biased;
                answer = &mut read => match answer {
                    Ok(bytes) => {
                        self.turn(&ask, Turn::Served, |_| Notice::Healed { blob: blob.digest });
                        return Ok(bytes);
                    }
                    Err(error) if self.patience().asks_again(&error) => {
                        ask.last = Some(error);
                        let again = Instant::now() + ask.pause;
                        ask.pause = (ask.pause * 2).min(LONGEST_PAUSE);
                        read = Box::pin(async move {
                            sleep_until(again).await;
                            self.below.read(blob, range, purpose).await
                        });
                    }
                    Err(error) => return Err(error),
                },
                over = self.until_due(&mut ask, &mut changes) => if let Some(error) = over {
                    return Err(error);
                },
            }
        }
    }
}

impl BlobSource for Patient {
    fn locate(&self, blob: &Blob, range: ByteRange) -> Option<Located> {
        self.below.locate(blob, range)
    }

    fn read(&self, blob: Blob, range: ByteRange, purpose: Purpose) -> ReadFuture<'_> {
        Box::pin(self.wait(blob, range, purpose))
    }

    fn reject(&self, blob: &Blob, range: ByteRange) {
        self.below.reject(blob, range);
    }

    fn giver(&self, blob: &Blob, range: ByteRange) -> Option<Giver> {
        self.below.giver(blob, range)
    }
}

#[cfg(test)]
mod tests;
