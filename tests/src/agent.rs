//! The `penstock` program under test: its agent as a process of its own, and its commands.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::Duration,
};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::{
    http::{Answer, Request},
    process::Process,
    workspace,
};

/// An agent is ready within a second; a machine under load takes more.
const START: Duration = Duration::from_secs(60);

/// How often readiness is asked while no log line comes.
const TICK: Duration = Duration::from_millis(50);

/// Longest time that a drain may take: the agent's own deadline (30 s) and something for a loaded machine.
const DRAIN: Duration = Duration::from_secs(60);

/// The variable that names a `penstock` program to test as it is, such as the one of a package, in place of one that is built.
const PROGRAM: &str = "PENSTOCK_TEST_PROGRAM";

/// The `penstock` program: the one that `PENSTOCK_TEST_PROGRAM` names, or else built with the profile `ci` if it is not up to date,
/// optimised and without any test feature.
///
/// # Panics
/// When it does not build.
#[must_use]
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some((_, program)) = std::env::vars_os().find(|(name, _)| name == PROGRAM) {
            return PathBuf::from(program);
        }
        let target = workspace::target();
        let built = workspace::cargo()
            .args(["build", "--quiet", "--locked", "--profile=ci", "--package=penstock-agent", "--bin=penstock"])
            .arg("--target-dir")
            .arg(&target)
            .output()
            .expect("cargo starts");
        assert!(built.status.success(), "penstock does not build: {}", String::from_utf8_lossy(&built.stderr));
        target.join("ci/penstock")
    })
}

/// How a command ended, and what it said.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// Standard output, of a command that must have succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// Standard output of a command that must have succeeded, as JSON.
    ///
    /// # Panics
    /// When it did not, or printed something else.
    #[must_use]
    pub fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// The one line on standard error of a command that must have failed; it must not be more than a line.
    ///
    /// # Panics
    /// When it succeeded, or said nothing or too much.
    #[must_use]
    pub fn error_line(self) -> String {
        assert!(self.code.is_some_and(|code| code != 0), "it should have failed: {self:?}");
        let lines: Vec<&str> = self.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
        assert_eq!(lines.len(), 1, "an error is one line, not {:?}", self.stderr);
        lines[0].to_owned()
    }
}

/// Where an agent lives: its program, its directory and the flags it is started with. Outlives the agents started in it.
#[derive(Debug, Clone)]
pub struct Place {
    program: PathBuf,
    home: PathBuf,
    state: PathBuf,
    socket: PathBuf,
    reads_ahead: bool,
    config: Option<PathBuf>,
    flags: Vec<String>,
}

impl Place {
    /// A place in `dir`, with the state in `dir/state` and the socket `dir/penstock.sock`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self::of(binary(), dir)
    }

    /// As [`Place::new`], for a program that was built elsewhere.
    #[must_use]
    pub fn of(program: &Path, dir: &Path) -> Self {
        let (state, socket) = (dir.join("state"), dir.join("penstock.sock"));
        let program = program.to_owned();
        Self { program, home: dir.to_owned(), state, socket, reads_ahead: false, config: None, flags: Vec::new() }
    }

    /// The agent reads ahead, as it does when nothing is said. Elsewhere it does not: what no test has read is not there.
    #[must_use]
    pub fn reading_ahead(self) -> Self {
        Self { reads_ahead: true, ..self }
    }

    /// Adds flags of `penstock agent`.
    #[must_use]
    pub fn with(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    /// The same place with another state directory.
    #[must_use]
    pub fn with_state(self, state: &Path) -> Self {
        Self { state: state.to_owned(), ..self }
    }

    /// The same place with another socket.
    #[must_use]
    pub fn with_socket(self, socket: &Path) -> Self {
        Self { socket: socket.to_owned(), ..self }
    }

    /// The same place with a config file, which its commands read too.
    #[must_use]
    pub fn with_config(self, config: &Path) -> Self {
        Self { config: Some(config.to_owned()), ..self }
    }

    /// The agent's state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The agent's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `penstock` with none of the caller's settings, and no terminal.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", &self.home).stdin(Stdio::null());
        command.envs(self.config.iter().map(|config| ("PENSTOCK_CONFIG", config)));
        command
    }

    fn agent(&self) -> Command {
        let mut agent = self.command();
        agent.arg("agent").args(self.flags_of_agent());
        agent
    }

    /// `penstock supervise` of the agent of this place, run from `program`.
    pub(crate) fn supervise(&self, program: &Path) -> Command {
        let mut supervise = self.command();
        supervise.args(["supervise", "--program"]).arg(program).arg("--");
        supervise.args(self.flags_of_agent());
        supervise
    }

    /// What `penstock agent` of this place is started with.
    #[must_use]
    pub fn flags_of_agent(&self) -> Vec<OsString> {
        let mut flags: Vec<OsString> = ["--log-level", "debug", "--state-dir"].map(OsString::from).into();
        flags.extend([self.state.clone().into(), "--socket".into(), self.socket.clone().into()]);
        if !self.reads_ahead {
            flags.extend(["--cache-read-ahead", "0"].map(OsString::from));
        }
        flags.extend(self.flags.iter().map(OsString::from));
        flags
    }

    /// Starts an agent and waits until it is ready.
    ///
    /// # Panics
    /// When it ends or is not ready in time.
    #[must_use]
    pub fn start(&self) -> Agent {
        self.start_by(&mut self.agent())
    }

    /// As [`Place::start`], by another command that runs the agent of this place.
    ///
    /// # Panics
    /// As [`Place::start`].
    #[must_use]
    pub fn start_by(&self, command: &mut Command) -> Agent {
        let process = Process::start("penstock agent", command);
        let agent = Agent { process, place: self.clone() };
        let ready = || agent.http(&Request::get("/readyz")).is_ok_and(|answer| answer.status == 200);
        let up = agent.process.wait_for(START, TICK, |_| ready().then_some(()));
        assert!(up.is_some(), "the agent is not ready");
        agent
    }

    /// Starts an agent that must refuse to start, and returns how it ended.
    ///
    /// # Panics
    /// When it stays.
    #[must_use]
    pub fn refused(&self) -> Ended {
        let mut process = Process::start("penstock agent", &mut self.agent());
        let status = process.wait(START).expect("the agent ends at once");
        process.kill();
        let stderr = process.lines().join("\n");
        Ended { code: status.code(), stdout: String::new(), stderr }
    }

    /// Runs a command of `penstock` against this place's socket.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Ended {
        let mut run = self.command();
        let out = run.env("PENSTOCK_SOCKET", self.socket()).args(arguments).output().expect("penstock starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { code: out.status.code(), stdout: text(&out.stdout), stderr: text(&out.stderr) }
    }
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    place: Place,
}

impl Agent {
    /// Runs a command of `penstock` that asks this agent.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.place.run(arguments)
    }

    /// Attaches an image, which must succeed, and returns the device as JSON.
    #[must_use]
    pub fn attach(&self, reference: &str, arguments: &[&str]) -> Value {
        let command = ["attach", reference, "--output", "json"];
        self.run(&[&command, arguments].concat()).json()
    }

    /// One device as JSON.
    #[must_use]
    pub fn device(&self, id: &str) -> Value {
        self.get(&format!("/v1/devices/{id}"))
    }

    /// The same once all that was read is counted: the kernel, and so whoever reads, has the bytes a moment before.
    ///
    /// # Panics
    /// When reads go on.
    #[must_use]
    pub fn counted_device(&self, id: &str) -> Value {
        self.until("no read is open", || Some(self.device(id)).filter(|device| device["stats"]["in_flight"] == 0))
    }

    /// Waits until `found` finds something; asked again with each line of the log and each tick.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn until<T>(&self, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
        self.process.wait_for(START, TICK, |_| found()).unwrap_or_else(|| panic!("not in time: {what}"))
    }

    /// The TCP address on which it answers, as it said.
    ///
    /// # Panics
    /// When it was not told to.
    #[must_use]
    pub fn address(&self) -> String {
        // It answers a moment before it says where.
        self.until("agent.ready", || {
            let events = self.get("/v1/events");
            let ready = events["events"].as_array()?.iter().find(|event| event["kind"] == "agent.ready")?;
            Some(ready["fields"]["address"].as_str().expect("an address").to_owned())
        })
    }

    /// What the agent answers to a GET of `path`, which must succeed.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn get(&self, path: &str) -> Value {
        let answer = self.http(&Request::get(path)).expect("the agent answers");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// Sends a request to the agent's socket.
    ///
    /// # Errors
    /// What connecting or reading says.
    pub fn http(&self, request: &Request<'_>) -> std::io::Result<Answer> {
        request.to_socket(self.place.socket())
    }

    /// Returns once an event of this kind was recorded.
    ///
    /// # Panics
    /// When none comes.
    pub fn until_event(&self, kind: &str) {
        let seen = || {
            let events = self.get("/v1/events");
            events["events"].as_array().is_some_and(|list| list.iter().any(|event| event["kind"] == kind))
        };
        // Each event is a line of the log, which wakes us.
        self.until(kind, || seen().then_some(()));
    }

    /// What the agent has printed so far.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.process.lines()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// Its resident memory in bytes.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.process.resident_bytes()
    }

    /// Sends the agent a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGKILL, as a crash.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// SIGTERM; waits for the drain and returns the status.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn stop(self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.ended()
    }

    /// As [`Agent::stop`]; answers also what it has printed, to the last line.
    ///
    /// # Panics
    /// As [`Agent::stop`].
    #[must_use]
    pub fn stop_with_log(mut self) -> (ExitStatus, Vec<String>) {
        self.process.signal(Signal::TERM);
        let status = self.process.wait(DRAIN).expect("the agent drains within its deadline");
        // It has ended: this waits for the last of its output.
        self.process.kill();
        (status, self.process.lines())
    }

    /// Waits for the end of an agent that was told to, and returns the status.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn ended(mut self) -> ExitStatus {
        let status = self.process.wait(DRAIN);
        status.expect("the agent drains within its deadline")
    }
}

impl Drop for Agent {
    /// Drains, so that mounts and devices go; [`Process`] kills what is left.
    fn drop(&mut self) {
        self.process.signal(Signal::TERM);
        let _ = self.process.wait(if std::thread::panicking() { Duration::from_secs(5) } else { DRAIN });
    }
}
