//! Tasks of hyper's and of ours, and who ends them.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinSet;

/// Where tasks are started.
#[derive(Debug, Clone)]
pub(super) struct Tasks(Arc<Mutex<JoinSet<()>>>);

/// Ends them when it is dropped. Tasks start others, so that who starts them cannot be who owns them.
#[derive(Debug)]
pub(super) struct Owner(Tasks);

impl Tasks {
    pub(super) fn owned() -> (Self, Owner) {
        let tasks = Self(Arc::default());
        (tasks.clone(), Owner(tasks))
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock();
        // Those that have ended are let go.
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(%error, "a task of the image proxy ended in a panic");
            }
        }
        tasks.spawn(work);
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
{
    fn execute(&self, work: F) {
        self.spawn(async move {
            work.await;
        });
    }
}

impl Owner {
    /// Waits until all have ended.
    pub(super) async fn ended(self) {
        let mut tasks = std::mem::take(&mut *self.0.0.lock());
        while tasks.join_next().await.is_some() {}
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.0.lock().abort_all();
    }
}
