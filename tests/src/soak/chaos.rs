//! What is done to the agent, the registry and the disk while readers read: drawn from a seed, mended within seconds.

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use penstock_registry::{Fault, Registry};

/// Between two blows.
const PAUSE: Duration = Duration::from_millis(400);
/// Blows of the registry between two kills of the agent.
const KILL_EVERY: u32 = 8;
/// Blows between two full disks.
const FULL_EVERY: u32 = 11;

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Struck {
    /// Times the agent got SIGKILL.
    pub kills: u64,
    /// Faults that the registry was told to make.
    pub faults: u64,
    /// Times the registry went away and came back.
    pub downs: u64,
    /// Times the disk of the cache was filled and freed.
    pub full: u64,
}

/// What can be struck.
pub trait Target: Send {
    /// The registry.
    fn registry(&self) -> &Registry;
    /// SIGKILL to the agent, if there is one now; whoever watches it starts it again.
    fn kill_agent(&self) -> bool;
    /// A file on the cache's file system that may grow until that is full.
    fn ballast(&self) -> PathBuf;
}

/// A thread that strikes until it is told to stop; then everything is whole again.
#[derive(Debug)]
pub struct Chaos {
    stop: SyncSender<()>,
    thread: JoinHandle<Struck>,
}

impl Chaos {
    /// Begins. The blows follow from `seed`.
    #[must_use]
    pub fn start(seed: u64, target: impl Target + 'static) -> Self {
        let (stop, stopped) = sync_channel(1);
        let thread = thread::spawn(move || strike(&mut fastrand::Rng::with_seed(seed), &target, &stopped));
        Self { stop, thread }
    }

    /// Ends, with everything mended.
    ///
    /// # Panics
    /// When the thread panicked.
    #[must_use]
    pub fn stop(self) -> Struck {
        // It may have ended in a panic, which the join tells.
        let _ = self.stop.send(());
        self.thread.join().expect("the chaos is orderly")
    }
}

fn strike(random: &mut fastrand::Rng, target: &impl Target, stopped: &Receiver<()>) -> Struck {
    let mut struck = Struck::default();
    // An event ends a wait, and all later ones: that of the end.
    let mut is_over = false;
    let mut goes_on = |pause: Duration| {
        is_over = is_over || stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout);
        !is_over
    };
    for blow in 1_u32.. {
        if !goes_on(PAUSE) {
            break;
        }
        let registry = target.registry();
        registry.release();
        registry.clear_faults();
        let many = random.u32(1..20);
        let fault = match random.u8(..8) {
            0 => Fault::Status(503),
            1 => Fault::TooMany { retry_after: None },
            2 => Fault::ResetMidBody { after_bytes: random.u64(..100_000) },
            3 => Fault::ShortBody,
            4 => Fault::WrongContentRange,
            5 => Fault::WrongBytes,
            6 => Fault::Stall,
            _ => Fault::Delay(Duration::from_millis(random.u64(..200))),
        };
        // A reader whose bytes fail their check four times in a row is answered EIO: nobody can do more about a registry that lies for good.
        let times = if fault == Fault::WrongBytes { many.min(3) } else { many };
        registry.fail(fault.times(times));
        struck.faults += 1;
        if random.u8(..10) == 0 {
            registry.set_down(true);
            struck.downs += 1;
            let _ = goes_on(Duration::from_secs(1));
            registry.set_down(false);
        }
        if blow % KILL_EVERY == 0 {
            struck.kills += u64::from(target.kill_agent());
        }
        if blow % FULL_EVERY == 0 {
            fill(&target.ballast());
            struck.full += 1;
            let _ = goes_on(PAUSE);
            fs::remove_file(target.ballast()).expect("the ballast");
        }
    }
    target.registry().release();
    target.registry().clear_faults();
    struck
}

/// Writes until there is no room for a block.
fn fill(path: &PathBuf) {
    let mut file = File::create(path).expect("a file, if an empty one");
    for piece in [1 << 20, 4096] {
        while file.write_all(&vec![1; piece]).is_ok() {}
    }
}
