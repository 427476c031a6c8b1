//! Tables in the making: who works on them, how readers wait for the part that they need, and how they hear of failures.
//!
//! A part that is not there is asked for like bytes of a blob: the table's identity names it (see [`crate::Image::over`]). So a plan names it as missing,
//! like any other bytes, and whoever fetches what is missing waits here.

use parking_lot::Mutex;
use penstock_blob::ReadError;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Duration, timeout},
};
use tracing::Instrument as _;

/// How long the work rests after it failed, unless a reader asks before: long enough to leave a registry alone that is down.
const REST: Duration = Duration::from_secs(30);

/// What was heard of the work.
#[derive(Debug, Clone, Default)]
struct News {
    /// Times that it failed.
    failures: u64,
    /// The last failure.
    last: Option<ReadError>,
    /// Nobody works on it any more.
    over: bool,
}

/// A table in the making, as those who wait for it see it.
#[derive(Debug)]
pub(crate) struct Making {
    news: watch::Sender<News>,
    /// The part that somebody waits for; the last one asked for.
    wanted: Mutex<Option<u64>>,
    asked: Notify,
}

impl Making {
    pub(crate) fn new() -> Self {
        Self { news: watch::channel(News::default()).0, wanted: Mutex::new(None), asked: Notify::new() }
    }

    /// A table that is whole already.
    pub(crate) fn over() -> Self {
        let making = Self::new();
        making.end();
        making
    }

    /// Waits until `is_there` says so of `part`.
    ///
    /// # Errors
    /// The work's next failure, or its last one when it is over.
    pub(crate) async fn wait(&self, part: u64, is_there: impl Fn() -> bool) -> Result<(), ReadError> {
        let mut news = self.news.subscribe();
        let before = news.borrow().failures;
        loop {
            // Seen before it is looked at: what changes from here on ends the wait below.
            let now = news.borrow_and_update().clone();
            if is_there() {
                return Ok(());
            }
            if now.over || now.failures > before {
                return Err(now.last.unwrap_or(ReadError::Stopping));
            }
            *self.wanted.lock() = Some(part);
            self.asked.notify_one();
            if news.changed().await.is_err() {
                return Err(ReadError::Stopping);
            }
        }
    }

    /// Waits until nobody works on it any more, and `is_whole`.
    ///
    /// # Errors
    /// As [`Making::wait`].
    pub(crate) async fn ended(&self, is_whole: impl Fn() -> bool) -> Result<(), ReadError> {
        let mut news = self.news.subscribe();
        let before = news.borrow().failures;
        loop {
            let now = news.borrow_and_update().clone();
            if now.failures > before || now.over && !is_whole() {
                return Err(now.last.unwrap_or(ReadError::Stopping));
            }
            if now.over {
                return Ok(());
            }
            if news.changed().await.is_err() {
                return Err(ReadError::Stopping);
            }
        }
    }

    /// Tells those who wait that more is there.
    pub(crate) fn advance(&self) {
        self.news.send_modify(|_| ());
    }

    /// The part that somebody asked for since the last call.
    pub(crate) fn take_wanted(&self) -> Option<u64> {
        self.wanted.lock().take()
    }

    /// Tells of a failure, and rests until somebody asks again, or for a while.
    pub(crate) async fn rest(&self, error: ReadError) {
        // Who asked before hears of this failure; only later questions wake.
        *self.wanted.lock() = None;
        let mut asked = std::pin::pin!(self.asked.notified());
        while asked.as_mut().enable() {
            asked.set(self.asked.notified());
        }
        self.fail(error);
        // Either way the work goes on.
        let _ = timeout(REST, asked).await;
    }

    /// Tells of a failure.
    pub(crate) fn fail(&self, error: ReadError) {
        self.news.send_modify(|news| {
            news.failures += 1;
            news.last = Some(error);
        });
    }

    /// Whether nobody works on it any more.
    pub(crate) fn is_over(&self) -> bool {
        self.news.borrow().over
    }

    /// Says that nobody works on it any more.
    pub(crate) fn end(&self) {
        self.news.send_modify(|news| news.over = true);
    }
}

/// Work in the background, ended with its owner.
#[derive(Debug)]
pub(crate) struct Work {
    _tasks: JoinSet<()>,
}

impl Work {
    pub(crate) fn start(work: impl Future<Output = ()> + Send + 'static) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(work.in_current_span());
        Self { _tasks: tasks }
    }
}
