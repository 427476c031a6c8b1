//! One request taken from the kernel: answered exactly once, with EIO when nothing else answers it.

use std::{fmt, io, sync::Arc, time::Instant};

use rustix::io::Errno;

use crate::{latency::Tier, stats::Counters};

/// How one transport answers the kernel.
pub(crate) trait Port: Clone {
    /// What names a request to the kernel.
    type Key: Copy + fmt::Debug;

    /// Answers a read with its bytes. After an error the request is still unanswered.
    fn fill(&self, key: Self::Key, bytes: &[u8]) -> io::Result<()>;

    /// Answers a request with an error.
    fn fail(&self, key: Self::Key, errno: Errno);
}

/// A request that the kernel waits for.
pub(crate) struct Request<P: Port> {
    port: P,
    key: P::Key,
    counters: Arc<Counters>,
    taken: Instant,
    open: bool,
}

impl<P: Port> Request<P> {
    /// The request `key`, just taken from the kernel.
    pub(crate) fn new(port: P, key: P::Key, counters: Arc<Counters>) -> Self {
        counters.taken();
        Self { port, key, counters, taken: Instant::now(), open: true }
    }

    /// What names the request to the kernel.
    pub(crate) fn key(&self) -> P::Key {
        self.key
    }

    /// Answers a read. `tier` tells where the bytes came from.
    pub(crate) fn answer(mut self, bytes: &[u8], tier: Tier) {
        match self.port.fill(self.key, bytes) {
            Ok(()) => {
                // First: of a device that has no request open, all is counted.
                self.counters.read(bytes.len() as u64, tier, self.taken.elapsed());
                self.close();
            }
            Err(error) => {
                tracing::warn!(%error, key = ?self.key, "the kernel did not take the bytes of a read");
                self.refuse(Errno::IO);
            }
        }
    }

    /// Answers that there is nothing to do, as for a flush of a read-only device.
    pub(crate) fn done(mut self) {
        match self.port.fill(self.key, &[]) {
            Ok(()) => self.close(),
            Err(_) => self.refuse(Errno::IO),
        }
    }

    /// Answers with an error.
    pub(crate) fn refuse(mut self, errno: Errno) {
        self.counters.failed();
        self.close();
        self.port.fail(self.key, errno);
    }

    /// Leaves the request unanswered: whoever serves the device next gets it again from the kernel.
    pub(crate) fn leave(mut self) {
        self.close();
    }

    fn close(&mut self) {
        self.open = false;
        self.counters.answered();
    }
}

impl<P: Port> Drop for Request<P> {
    fn drop(&mut self) {
        if self.open {
            self.counters.failed();
            self.counters.dropped();
            self.close();
            self.port.fail(self.key, Errno::IO);
        }
    }
}

impl<P: Port> fmt::Debug for Request<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("key", &self.key).field("open", &self.open).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod recorder {
    //! A port that remembers its answers.

    use parking_lot::Mutex;

    use super::{Arc, Errno, Port, io};

    /// What was answered: the key, and bytes or an error.
    type Answer = (u64, Result<Vec<u8>, Errno>);

    #[derive(Clone, Default)]
    pub(crate) struct Recorder {
        pub(crate) answers: Arc<Mutex<Vec<Answer>>>,
        pub(crate) deaf: bool,
    }

    impl Recorder {
        pub(crate) fn answers(&self) -> Vec<Answer> {
            self.answers.lock().clone()
        }
    }

    impl Port for Recorder {
        type Key = u64;

        fn fill(&self, key: u64, bytes: &[u8]) -> io::Result<()> {
            if self.deaf {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.answers.lock().push((key, Ok(bytes.to_vec())));
            Ok(())
        }

        fn fail(&self, key: u64, errno: Errno) {
            self.answers.lock().push((key, Err(errno)));
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::{recorder::Recorder, *};
    use crate::{Metrics, Transport};

    fn counters() -> Arc<Counters> {
        Metrics::new(&mut Registry::default()).device(&"t".parse().unwrap(), Transport::Fuse)
    }

    #[test]
    fn a_request_is_answered_exactly_once_whatever_happens_to_it_unless_it_is_left() {
        let (port, counters) = (Recorder::default(), counters());
        let request = |key| Request::new(port.clone(), key, counters.clone());
        request(1).answer(b"ab", Tier::Memory);
        request(2).refuse(Errno::ROFS);
        drop(request(3));
        let lost = request(4);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _mine = lost;
            panic!("a bug");
        }));
        assert!(panicked.is_err());
        request(5).done();
        request(6).leave();
        let expected =
            [(1, Ok(b"ab".to_vec())), (2, Err(Errno::ROFS)), (3, Err(Errno::IO)), (4, Err(Errno::IO)), (5, Ok(vec![]))];
        assert_eq!(port.answers(), expected);
        let stats = counters.stats();
        assert_eq!((stats.requests, stats.errors, stats.dropped, stats.in_flight), (6, 3, 2, 0));
        assert_eq!((stats.served_bytes, stats.hits, stats.misses), (2, 1, 0));
    }

    #[test]
    fn bytes_that_the_kernel_refuses_become_an_error_answer() {
        let port = Recorder { deaf: true, ..Recorder::default() };
        let counters = counters();
        Request::new(port.clone(), 9, counters.clone()).answer(b"x", Tier::Memory);
        assert_eq!(port.answers(), [(9, Err(Errno::IO))]);
        assert_eq!((counters.stats().errors, counters.stats().hits, counters.stats().in_flight), (1, 0, 0));
    }
}
