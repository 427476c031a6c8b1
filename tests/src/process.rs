//! A process under test: its output kept line by line, its readiness awaited by a line, its end by its id.

use std::{
    io::{BufRead as _, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// The lines a process has printed, and whether more can come.
#[derive(Debug, Default)]
struct Log {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    open: usize,
}

/// A child process. Killed and reaped on drop; its log is printed if the test panics.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Log>,
    readers: Vec<JoinHandle<()>>,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with no standard input; both outputs go to the log.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let log = Arc::new(Log::default());
        log.state.lock().open = 2;
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        let readers = outputs.map(|output| {
            let log = log.clone();
            thread::spawn(move || log.read(output))
        });
        Self { name: name.to_owned(), child, log, readers: readers.into(), ended: None }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Everything printed so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.log.state.lock().lines.clone()
    }

    /// Waits until `found` makes something of the lines printed so far; asked again after each new line and each `tick`.
    /// `None` when the outputs were closed or `limit` has passed.
    pub fn wait_for<T>(
        &self,
        limit: Duration,
        tick: Duration,
        mut found: impl FnMut(&[String]) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut state = self.log.state.lock();
        loop {
            if let Some(value) = found(&state.lines) {
                return Some(value);
            }
            if state.open == 0 || Instant::now() >= deadline {
                return None;
            }
            self.log.changed.wait_until(&mut state, deadline.min(Instant::now() + tick));
        }
    }

    /// Its resident memory in bytes.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid().as_raw_nonzero());
        let status = std::fs::read_to_string(path).expect("the process lives");
        let kib =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
        kib.expect("VmRSS") << 10
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            // The child is ours and not reaped: the id is its own. It may have ended on its own account.
            let _ = kill_process(self.pid(), signal);
        }
    }

    /// Waits at most `limit` for the process to end: by an event of its pidfd, not by asking.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        if self.ended.is_none() {
            let pidfd = pidfd_open(self.pid(), PidfdFlags::empty()).expect("a pidfd of our child");
            let timeout = rustix::event::Timespec::try_from(limit).expect("a sane limit");
            let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
            if rustix::event::poll(&mut fds, Some(&timeout)).expect("poll") == 0 {
                return None;
            }
            self.ended = Some(self.child.wait().expect("our child can be waited for"));
        }
        self.ended
    }

    /// SIGKILL, and waits until it is gone. Its output goes on when children of its own have it too.
    ///
    /// # Panics
    /// When it does not die within a minute.
    pub fn kill_alone(&mut self) {
        self.signal(Signal::KILL);
        assert!(self.wait(Duration::from_secs(60)).is_some(), "{} does not die of SIGKILL", self.name);
    }

    /// SIGKILL, and waits until it is gone and its output read.
    ///
    /// # Panics
    /// When it does not die within a minute.
    pub fn kill(&mut self) {
        self.kill_alone();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

impl Log {
    fn read(&self, output: impl Read) {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            self.state.lock().lines.push(String::from_utf8_lossy(&line).into_owned());
            self.changed.notify_all();
        }
        self.state.lock().open -= 1;
        self.changed.notify_all();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- output of {} (pid {}) ---", self.name, self.child.id());
            self.lines().iter().for_each(|line| eprintln!("{line}"));
            eprintln!("--- end of output of {} ---", self.name);
        }
        self.signal(Signal::KILL);
        // Not `kill`: a second panic here would abort the whole test run.
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_line_is_awaited_and_the_end_is_seen() {
        let mut process = Process::start("sh", Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"]));
        assert!(process.wait_for(LONG, LONG, |lines| lines.iter().any(|line| line == "two").then_some(())).is_some());
        assert_eq!(process.wait(LONG).and_then(|status| status.code()), Some(3));
        assert!(process.wait_for(LONG, LONG, |lines| lines.iter().any(|line| line == "three").then_some(())).is_none());
    }

    #[test]
    fn a_process_that_stays_is_killed_by_its_id() {
        let mut process = Process::start("cat", Command::new("sh").args(["-c", "echo up; exec tail -f /dev/null"]));
        assert!(process.wait_for(LONG, LONG, |lines| lines.first().cloned()).is_some());
        assert_eq!(process.wait(Duration::from_millis(1)), None);
        process.kill();
        assert!(process.wait(LONG).is_some_and(|status| !status.success()));
    }
}
