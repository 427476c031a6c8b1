//! The one thread that writes records: beside each snapshot's directory, then to the database, each durable before the answer.
//!
//! What is asked for while a commit is being written goes into the next one together. The database lives here under `catch_unwind`: one that panics,
//! hangs or fails is given up, changes are refused from then on, and the next start rebuilds it from the records beside the snapshots.

use std::{
    any::Any,
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel},
    thread,
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{
    db::{Db, DbError, Loaded, Mark},
    dirs::Dirs,
    error::SnapshotError,
    record::{Record, Written},
};

#[cfg(test)]
mod tests;

/// Most changes that wait; also the most that one commit takes. Who comes when it is full is told to come again.
const MAX_WAITING: usize = 512;
/// How long one commit or the opening may take. A flush takes tens of milliseconds; beyond this the disk or sled hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one call changes, all of it or nothing.
#[derive(Debug)]
pub(crate) enum Change {
    /// The record is this from now on; its directory exists.
    Put(Box<Record>),
    /// There is no such snapshot any more.
    Delete(u64),
}

/// Hears how a change went, on the writing thread.
type Done = Box<dyn FnOnce(Result<(), DbError>) + Send>;

enum Request {
    Change(Change, Done),
    Close(SyncSender<()>),
}

/// The way to the writing thread. Dropped: the thread ends and closes the database; [`Keeper::close`] waits for that.
#[derive(Debug)]
pub(crate) struct Keeper {
    requests: SyncSender<Request>,
}

impl Keeper {
    /// Opens the database in `dir` and reads all of it. Its next commit has a number above its last one and above `least`.
    pub(crate) fn open(dir: PathBuf, dirs: Dirs, least: u64) -> Result<(Self, Loaded), DbError> {
        let (requests, incoming) = sync_channel(MAX_WAITING);
        let (opened, outcome) = sync_channel(1);
        let told = opened.clone();
        let life = move || {
            let life = || {
                let opened_db = Db::open(&dir).and_then(|db| db.load().map(|loaded| (db, loaded)));
                let (db, loaded) = match opened_db {
                    Ok(opened) => opened,
                    Err(error) => return opened.send(Err(error)).err().and(None),
                };
                let generation = loaded.mark.map_or(0, |mark| mark.generation).max(least);
                let numbers = loaded.records.iter().map(|(number, _)| *number).collect();
                opened.send(Ok(loaded)).ok()?;
                Writer { db, dirs, generation, numbers, broken: None }.serve(&incoming)
            };
            let closed = catch_unwind(AssertUnwindSafe(life)).unwrap_or_else(|panic| {
                // Nobody listens any more when the panic came after the open: who asks finds the channel closed.
                let _ = told.try_send(Err(DbError(format!("it panicked: {}", text(&*panic)))));
                None
            });
            if let Some(done) = closed {
                // Who closes may have given up waiting.
                let _ = done.send(());
            }
        };
        let thread = thread::Builder::new().name("penstock-snapshots".into()).spawn(life);
        thread.map_err(|e| DbError::new("no thread for it", &e))?;
        let hung = |_| DbError(format!("it did not open within {PATIENCE:?}"));
        let loaded = outcome.recv_timeout(PATIENCE).map_err(hung)??;
        Ok((Self { requests }, loaded))
    }

    /// Makes one change durable.
    pub(crate) async fn commit(&self, change: Change) -> Result<(), SnapshotError> {
        let (told, answer) = oneshot::channel();
        // A failed send: the caller gave up waiting.
        let done: Done = Box::new(move |outcome| drop(told.send(outcome)));
        let gone = || SnapshotError::unavailable("the metadata failed before: restart the agent, which repairs it");
        self.requests.try_send(Request::Change(change, done)).map_err(|error| match error {
            TrySendError::Full(_) => SnapshotError::unavailable("too many changes at once; try again"),
            TrySendError::Disconnected(_) => gone(),
        })?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(outcome)) => outcome.map_err(|e| SnapshotError::unavailable(format!("the metadata failed: {e}"))),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(SnapshotError::unavailable(format!("the metadata was not written within {PATIENCE:?}"))),
        }
    }

    /// Makes changes durable at the start, when nobody else asks for any. Blocks.
    pub(crate) fn settle(&self, changes: Vec<Change>) -> Result<(), DbError> {
        let (told, answers) = sync_channel(changes.len());
        for change in changes {
            let told = told.clone();
            let done: Done = Box::new(move |outcome| drop(told.send(outcome)));
            let sent = self.requests.send(Request::Change(change, done));
            sent.map_err(|_| DbError("its thread died".into()))?;
        }
        drop(told);
        loop {
            match answers.recv_timeout(PATIENCE) {
                Ok(outcome) => outcome?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(DbError(format!("it was not written within {PATIENCE:?}")));
                }
            }
        }
    }

    /// Closes the database, after everything that was asked before. False: it hangs, and is left behind.
    pub(crate) fn close(&self) -> bool {
        let (done, answer) = sync_channel(1);
        // A full queue ends: its thread takes all of it at once, or hangs for longer than anybody waits.
        self.requests.send(Request::Close(done)).is_ok() && answer.recv_timeout(PATIENCE).is_ok()
    }
}

struct Writer {
    db: Db,
    dirs: Dirs,
    generation: u64,
    /// Of which snapshots the database has records.
    numbers: HashSet<u64>,
    broken: Option<DbError>,
}

type Waiting = (Change, Done);

impl Writer {
    /// Commits until told to close, or nobody is left to tell. Whom to tell that it is closed.
    fn serve(mut self, incoming: &Receiver<Request>) -> Option<SyncSender<()>> {
        loop {
            let mut batch = Vec::new();
            let mut close = None;
            let mut next = incoming.recv().ok();
            let alone = next.is_none();
            while let Some(request) = next {
                match request {
                    Request::Change(change, done) => batch.push((change, done)),
                    Request::Close(done) => close = Some(done),
                }
                let more = (batch.len() < MAX_WAITING && close.is_none()).then(|| incoming.try_recv());
                next = more.and_then(|more: Result<_, TryRecvError>| more.ok());
            }
            self.write(batch);
            if alone || close.is_some() {
                if self.broken.is_some() {
                    // Closing it would write what it could not, and wait for that. The process ends, and its lock with it.
                    std::mem::forget(self);
                }
                return close;
            }
        }
    }

    /// One commit. A record whose file cannot be written fails alone; when the database fails, all do, now and from now on.
    fn write(&mut self, batch: Vec<Waiting>) {
        if batch.is_empty() {
            return;
        }
        let generation = self.generation + 1;
        let (mut writes, mut waiting) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for (change, done) in batch {
            let outcome = self.broken.clone().map_or_else(|| self.write_beside(generation, change), Err);
            match outcome {
                Ok(write) => {
                    writes.push(write);
                    waiting.push(done);
                }
                Err(error) => done(Err(error)),
            }
        }
        if writes.is_empty() {
            return;
        }
        // Not undone when it fails: nothing is written any more then.
        for (number, written) in &writes {
            if written.is_some() {
                self.numbers.insert(*number)
            } else {
                self.numbers.remove(number)
            };
        }
        let outcome = self.db.commit(Mark { generation, records: self.numbers.len() as u64 }, writes);
        match &outcome {
            Ok(()) => self.generation = generation,
            Err(error) => {
                tracing::error!(%error, "metadata of snapshots failed: changes are refused until the agent is restarted");
                self.broken = Some(error.clone());
            }
        }
        for done in waiting {
            done(outcome.clone());
        }
    }

    fn write_beside(&self, generation: u64, change: Change) -> Result<(u64, Option<Vec<u8>>), DbError> {
        match change {
            Change::Delete(number) => Ok((number, None)),
            Change::Put(record) => {
                let number = record.number;
                let bytes = Written::new(generation, *record).encode().map_err(|e| DbError(e.to_string()))?;
                let written = self.dirs.write_record(number, &bytes);
                written.map_err(|e| DbError::new("the record beside a snapshot could not be written", &e))?;
                Ok((number, Some(bytes)))
            }
        }
    }
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> String {
    let known =
        panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
    known.unwrap_or_else(|| "without a message".into())
}
