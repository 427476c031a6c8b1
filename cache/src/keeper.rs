//! Keeps the index at arm's length: it lives on a thread of its own, under `catch_unwind`, and every call to it has a watchdog.
//!
//! An index that panics, hangs or fails is given up; the cache goes on without it. A hung thread is left behind: nothing can
//! stop it, and it can do no harm, because its directory has been renamed away and nothing waits for it.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use crate::{
    index::{Index, IndexError, Snapshot, Write},
    layout::DirLock,
};

/// Opens an index; called on the keeper's thread.
pub(crate) type OpenIndex = Arc<dyn Fn() -> Result<Box<dyn Index>, IndexError> + Send + Sync>;

enum Request {
    Commit(Vec<Write>, SyncSender<Result<(), IndexError>>),
    Close(SyncSender<()>),
}

/// The way to an index that may misbehave.
pub(crate) struct Keeper {
    requests: SyncSender<Request>,
    watchdog: Duration,
}

/// Why a call to the index failed.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) error: IndexError,
    /// It hangs or died: nothing more can be asked of it. A hung one may come back at any time, so no other index is opened
    /// in its place by this process.
    pub(crate) lost: bool,
}

impl Fault {
    const fn failed(error: IndexError) -> Self {
        Self { error, lost: false }
    }

    fn lost(error: String) -> Self {
        Self { error: IndexError(error), lost: true }
    }
}

impl Keeper {
    /// Opens an index and reads all of it, within `watchdog`.
    ///
    /// `held` is let go when the index is closed, not before: the lock of the directory.
    pub(crate) fn open(open: OpenIndex, watchdog: Duration, held: Arc<DirLock>) -> Result<(Self, Snapshot), Fault> {
        let (requests, incoming) = sync_channel(1);
        let (opened, outcome) = sync_channel(1);
        thread::Builder::new()
            .name("penstock-index".into())
            .spawn(move || {
                let told = opened.clone();
                let closed = match catch_unwind(AssertUnwindSafe(|| serve(&open, &opened, &incoming))) {
                    Ok(closed) => closed,
                    Err(panic) => {
                        // Nobody listens any more when the panic came after the open: the committer sees the closed channel.
                        let _ = told.try_send(Err(IndexError(format!("it panicked: {}", text(&*panic)))));
                        None
                    }
                };
                drop(held);
                if let Some(done) = closed {
                    // Who closes may have given up waiting.
                    let _ = done.send(());
                }
            })
            .map_err(|e| Fault::failed(IndexError::new("no thread for it", &e)))?;
        match outcome.recv_timeout(watchdog) {
            Ok(Ok(snapshot)) => Ok((Self { requests, watchdog }, snapshot)),
            Ok(Err(error)) => Err(Fault::failed(error)),
            Err(RecvTimeoutError::Disconnected) => Err(Fault::failed(IndexError("its thread ended".into()))),
            Err(RecvTimeoutError::Timeout) => Err(Fault::lost(format!("it did not open within {watchdog:?}"))),
        }
    }

    /// Commits a batch within the watchdog's time.
    pub(crate) fn commit(&self, batch: Vec<Write>) -> Result<(), Fault> {
        let (done, answer) = sync_channel(1);
        let sent = self.requests.try_send(Request::Commit(batch, done));
        sent.map_err(|_| Fault::lost("its thread hangs or died".into()))?;
        match answer.recv_timeout(self.watchdog) {
            Ok(answer) => answer.map_err(Fault::failed),
            Err(RecvTimeoutError::Disconnected) => Err(Fault::lost("its thread died of a panic".into())),
            Err(RecvTimeoutError::Timeout) => {
                Err(Fault::lost(format!("it did not answer a commit within {:?}", self.watchdog)))
            }
        }
    }

    /// Closes the index. False when it did not end in time; it is left behind then.
    pub(crate) fn close(self) -> bool {
        let (done, answer) = sync_channel(1);
        self.requests.try_send(Request::Close(done)).is_ok() && answer.recv_timeout(self.watchdog).is_ok()
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("watchdog", &self.watchdog).finish_non_exhaustive()
    }
}

/// The life of an index: open, load, commit until told to close or nobody is left to tell. Whom to tell that it is closed.
fn serve(
    open: &OpenIndex,
    opened: &SyncSender<Result<Snapshot, IndexError>>,
    incoming: &Receiver<Request>,
) -> Option<SyncSender<()>> {
    let loaded = open().and_then(|mut index| index.load().map(|snapshot| (index, snapshot)));
    let mut index = match loaded {
        Ok((index, snapshot)) => {
            opened.send(Ok(snapshot)).ok()?;
            index
        }
        Err(error) => {
            // A failed send: the opener gave up waiting.
            let _ = opened.send(Err(error));
            return None;
        }
    };
    while let Ok(request) = incoming.recv() {
        match request {
            Request::Commit(batch, done) => {
                // A failed send: the committer gave up waiting.
                let _ = done.send(index.commit(batch));
            }
            Request::Close(done) => return Some(done),
        }
    }
    None
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> String {
    let known =
        panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
    known.unwrap_or_else(|| "without a message".into())
}
