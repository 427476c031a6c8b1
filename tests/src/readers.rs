//! Readers that compare what they read with the truth, at random places, until told to stop. Any error and any wrong byte fails.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Bytes of one read.
const READ_BYTES: usize = 16 << 10;
/// A read that takes longer hangs.
const HUNG: Duration = Duration::from_secs(60);

/// Threads that read.
#[derive(Debug)]
pub struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
    done: Receiver<()>,
}

impl Readers {
    /// One thread for each pair of a file under test and its truth.
    ///
    /// # Panics
    /// When one cannot be opened.
    #[must_use]
    pub fn start(pairs: &[(PathBuf, PathBuf)], seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, done) = sync_channel(4096);
        let threads = pairs
            .iter()
            .zip(seed..)
            .map(|((found, truth), seed)| {
                let open = |path: &Path| File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                let (found, truth) = (open(found), open(truth));
                let (stop, sender) = (stop.clone(), sender.clone());
                thread::spawn(move || compare(&found, &truth, fastrand::Rng::with_seed(seed), &stop, &sender))
            })
            .collect();
        Self { stop, threads, done }
    }

    /// Waits for `count` more reads to be done and right.
    ///
    /// # Panics
    /// When a read hangs, or a reader has failed.
    pub fn until_read(&self, count: usize) {
        // What was read before does not count.
        while self.done.try_recv().is_ok() {}
        for _ in 0..count {
            assert!(self.threads.iter().all(|reader| !reader.is_finished()), "a reader has failed");
            self.done.recv_timeout(HUNG).expect("no read hangs");
        }
    }

    /// Ends the readers; how many reads they did in all.
    ///
    /// # Panics
    /// When one failed or saw wrong bytes.
    pub fn join(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.done);
        self.threads.into_iter().map(|reader| reader.join().expect("right bytes and no error")).sum()
    }
}

fn compare(found: &File, truth: &File, mut random: fastrand::Rng, stop: &AtomicBool, done: &SyncSender<()>) -> u64 {
    let bytes = truth.metadata().expect("the truth").len();
    let (mut got, mut expected) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    let mut reads = 0;
    while !stop.load(Ordering::Relaxed) {
        let at = random.u64(0..=bytes - READ_BYTES as u64);
        found.read_exact_at(&mut got, at).unwrap_or_else(|error| panic!("a read at {at} failed: {error}"));
        truth.read_exact_at(&mut expected, at).expect("the truth can be read");
        assert!(got == expected, "wrong bytes at {at}");
        // The next read of this place asks the device again.
        rustix::fs::fadvise(found, at, None, rustix::fs::Advice::DontNeed).expect("pages can be let go");
        reads += 1;
        // A full channel: the test looks at other things now.
        let _ = done.try_send(());
    }
    reads
}
