//! `penstock supervise` under test: its agents come and go, the supervisor stays.

use std::{os::fd::OwnedFd, path::Path, process::ExitStatus, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal},
};
use serde_json::Value;

use crate::{
    agent::{Ended, Place},
    http::Request,
    process::Process,
};

/// An agent is ready within a second or two; a machine under load takes more.
const START: Duration = Duration::from_secs(60);
/// How often readiness is asked while no log line comes.
const TICK: Duration = Duration::from_millis(20);
/// Longest time that a drain may take.
const DRAIN: Duration = Duration::from_secs(60);

/// A running supervisor. Dropping it ends it and its agent.
#[derive(Debug)]
pub struct Supervisor {
    process: Process,
    place: Place,
}

impl Supervisor {
    /// Starts a supervisor of an agent in `place`, whose program is at `program`; waits until the agent is ready.
    ///
    /// # Panics
    /// When it is not ready in time.
    #[must_use]
    pub fn start(place: &Place, program: &Path) -> Self {
        let process = Process::start("penstock supervise", &mut place.supervise(program));
        let supervisor = Self { process, place: place.clone() };
        supervisor.until_other_than(None);
        supervisor
    }

    /// The process id of the agent that answers now; `None` when none does.
    #[must_use]
    pub fn agent(&self) -> Option<Pid> {
        let answer = Request::get("/v1/version").to_socket(self.place.socket()).ok()?;
        Pid::from_raw(i32::try_from(answer.json()["pid"].as_i64()?).ok()?)
    }

    /// Waits until an agent is ready that is not `old`.
    ///
    /// # Panics
    /// When none is in time.
    pub fn until_other_than(&self, old: Option<Pid>) -> Pid {
        let ready = || Request::get("/readyz").to_socket(self.place.socket()).is_ok_and(|answer| answer.status == 200);
        let other = || self.agent().filter(|pid| Some(*pid) != old && ready());
        self.until(other)
    }

    /// Waits until `found` finds something; asked again with each line of the log.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn until<T>(&self, mut found: impl FnMut() -> Option<T>) -> T {
        self.process.wait_for(START, TICK, |_| found()).expect("what is waited for comes")
    }

    /// SIGKILL for the agent; answers which it was.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn kill_agent(&self) -> Pid {
        let agent = self.agent().expect("an agent answers");
        // The supervisor reaps it: until then the number is its own, and it has just answered.
        kill_process(agent, Signal::KILL).expect("the agent can be killed");
        agent
    }

    /// Sends the supervisor a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Runs a command of `penstock` that asks the agent.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.place.run(arguments)
    }

    /// Attaches an image, which must succeed, and returns the device as JSON.
    #[must_use]
    pub fn attach(&self, reference: &str, arguments: &[&str]) -> Value {
        self.run(&[&["attach", reference, "--output", "json"], arguments].concat()).json()
    }

    /// What supervisor and agents have printed so far.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.process.lines()
    }

    /// Resident memory of the supervisor itself, in bytes.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.process.resident_bytes()
    }

    /// SIGTERM; waits for the end and returns the status.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn stop(mut self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.process.wait(DRAIN).expect("the supervisor ends")
    }

    /// SIGKILL for the supervisor alone; waits until its agent, which sees that, has ended too.
    ///
    /// # Panics
    /// When one of them stays.
    pub fn kill(self) {
        self.end(|_| {});
    }

    /// SIGKILL for both, as when a node loses power.
    ///
    /// # Panics
    /// When one of them stays.
    pub fn crash(self) {
        // It may have ended by itself a moment before.
        self.end(|agent| {
            let _ = pidfd_send_signal(agent, Signal::KILL);
        });
    }

    fn end(mut self, then: impl FnOnce(&OwnedFd)) {
        let agent = self.agent().expect("an agent answers");
        let watched = pidfd_open(agent, PidfdFlags::empty()).expect("the agent lives");
        self.process.kill_alone();
        then(&watched);
        let patience = Timespec::try_from(DRAIN).expect("a sane limit");
        let ended = poll(&mut [PollFd::new(&watched, PollFlags::IN)], Some(&patience));
        assert_eq!(ended, Ok(1), "the agent ends when its supervisor does");
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.process.signal(Signal::TERM);
        let _ = self.process.wait(if std::thread::panicking() { Duration::from_secs(5) } else { DRAIN });
    }
}
