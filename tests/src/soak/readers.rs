//! Threads that read at random places and compare.

use std::{
    fs::File,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Reads start at multiples of this, and are as long as some of it: what `O_DIRECT` wants.
const GRAIN: usize = 4096;
/// The longest read.
const MOST: usize = 256 << 10;
/// A read that took longer has hung: every fault is mended within a few seconds.
const HUNG: Duration = Duration::from_secs(60);
/// A thread opens the device again after so many reads, as new containers would.
const READS_OF_A_FILE: u32 = 64;

/// What the readers saw.
#[derive(Debug, Clone, Copy, Default)]
pub struct Read {
    /// Reads that ended.
    pub reads: u64,
    /// Bytes they brought.
    pub bytes_read: u64,
    /// Bytes of them that were compared.
    pub bytes_compared: u64,
    /// Reads with a byte that is not the disk's.
    pub wrong: u64,
    /// Reads that ended in an error.
    pub failed: u64,
    /// Reads that took longer than a minute.
    pub hung: u64,
    /// The longest.
    pub longest: Duration,
}

impl Read {
    fn plus(self, other: Self) -> Self {
        Self {
            reads: self.reads + other.reads,
            bytes_read: self.bytes_read + other.bytes_read,
            bytes_compared: self.bytes_compared + other.bytes_compared,
            wrong: self.wrong + other.wrong,
            failed: self.failed + other.failed,
            hung: self.hung + other.hung,
            longest: self.longest.max(other.longest),
        }
    }
}

/// Readers at work.
#[derive(Debug)]
pub struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Read>>,
}

impl Readers {
    /// `count` threads read the device at `path`, whose bytes are those of the file `truth`.
    ///
    /// # Panics
    /// When `truth` cannot be read.
    #[must_use]
    pub fn start(count: u64, path: &Path, truth: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..count).map(|seed| {
            let one = One {
                path: path.to_owned(),
                truth: File::open(truth).expect("the disk"),
                random: fastrand::Rng::with_seed(seed),
                stop: stop.clone(),
                seen: Read::default(),
            };
            thread::spawn(move || one.run())
        });
        Self { threads: threads.collect(), stop }
    }

    /// Lets the reads under way end, and adds up.
    ///
    /// # Panics
    /// When a reader panicked.
    #[must_use]
    pub fn stop(self) -> Read {
        self.stop.store(true, Ordering::SeqCst);
        let all = self.threads.into_iter().map(|thread| thread.join().expect("a reader"));
        all.fold(Read::default(), Read::plus)
    }
}

struct One {
    path: PathBuf,
    truth: File,
    random: fastrand::Rng,
    stop: Arc<AtomicBool>,
    seen: Read,
}

impl One {
    fn run(mut self) -> Read {
        let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).expect("a flag");
        let size = usize::try_from(self.truth.metadata().expect("a size").len()).expect("a disk that fits");
        let mut buf = vec![0_u8; MOST + GRAIN];
        let start = buf.as_ptr().align_offset(GRAIN);
        while !self.stop.load(Ordering::SeqCst) {
            let device = match File::options().read(true).custom_flags(direct).open(&self.path) {
                Ok(device) => device,
                Err(error) => {
                    self.failed(&error);
                    continue;
                }
            };
            for _ in 0..READS_OF_A_FILE {
                // Small reads are the usual ones.
                let len = GRAIN * if self.random.u8(..4) == 0 { self.random.usize(1..=MOST / GRAIN) } else { 1 };
                let at = self.random.usize(0..=(size - len) / GRAIN) * GRAIN;
                self.read(&device, at as u64, &mut buf[start..start + len]);
                if self.stop.load(Ordering::SeqCst) {
                    break;
                }
            }
        }
        self.seen
    }

    fn read(&mut self, device: &File, at: u64, buf: &mut [u8]) {
        let begun = Instant::now();
        let outcome = device.read_exact_at(buf, at);
        let took = begun.elapsed();
        self.seen.reads += 1;
        self.seen.longest = self.seen.longest.max(took);
        self.seen.hung += u64::from(took > HUNG);
        if let Err(error) = outcome {
            return self.failed(&error);
        }
        let mut truth = vec![0; buf.len()];
        self.truth.read_exact_at(&mut truth, at).expect("the disk");
        self.seen.bytes_read += buf.len() as u64;
        self.seen.bytes_compared += truth.len() as u64;
        if truth != *buf {
            self.seen.wrong += 1;
            println!("WRONG BYTES at {at}, {} bytes", buf.len());
        }
    }

    fn failed(&mut self, error: &std::io::Error) {
        if self.seen.failed == 0 {
            println!("a read failed: {error}");
        }
        self.seen.failed += 1;
    }
}
