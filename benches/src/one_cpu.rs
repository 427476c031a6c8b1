//! All threads of this process on one processor, for a while.

use std::fs;

use anyhow::Context as _;
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// While this lives, threads of this process run on one processor: those there are, and those that they start. The kernel's own threads run where they like.
#[derive(Debug)]
pub(crate) struct OneCpu {
    before: CpuSet,
}

impl OneCpu {
    /// Keeps all threads to the first processor that the calling one may use.
    ///
    /// # Errors
    /// When the kernel does not let us, or says nothing about our threads.
    pub(crate) fn hold() -> anyhow::Result<Self> {
        let before = sched_getaffinity(None)?;
        let first = (0..CpuSet::MAX_CPU).find(|cpu| before.is_set(*cpu)).context("no processor may be used")?;
        let mut one = CpuSet::new();
        one.set(first);
        // From here on a failure puts back what was done.
        let held = Self { before };
        keep_to(&one)?;
        Ok(held)
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        if let Err(error) = keep_to(&self.before) {
            penstock_agent::output::note(format_args!("threads stay on one processor: {error:#}"));
        }
    }
}

/// Keeps every thread of this process to `cpus`.
fn keep_to(cpus: &CpuSet) -> anyhow::Result<()> {
    for entry in fs::read_dir("/proc/self/task")? {
        let thread = entry?.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
        match sched_setaffinity(Some(thread.context("a thread without a number")?), cpus) {
            // It has ended since.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_that_was_there_before_is_held_and_let_go() {
        let (ask, asked) = mpsc::sync_channel::<()>(1);
        let (answer, answered) = mpsc::sync_channel(1);
        let other = std::thread::spawn(move || {
            for () in asked {
                answer.send(sched_getaffinity(None).unwrap()).unwrap();
            }
        });
        let allowed = || {
            ask.send(()).unwrap();
            answered.recv().unwrap()
        };
        let before = allowed();
        let held = OneCpu::hold().unwrap();
        assert_eq!(allowed().count(), 1);
        drop(held);
        assert_eq!(allowed(), before);
        drop(ask);
        other.join().unwrap();
    }
}
