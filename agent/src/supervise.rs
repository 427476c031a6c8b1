//! `penstock supervise`: keeps the connections of FUSE devices, and an agent running.
//!
//! For nodes without systemd's descriptor store. It starts `penstock agent`, takes the descriptors that the agent gives it, and when the
//! agent ends, however it does, starts it again and gives them back. It reads no config, opens no device and answers nobody but its own
//! agent, over a pair of connected sockets that has no name: nobody else can connect, and nothing is left behind.
//!
//! One thread, one child, at most [`MOST_KEPT`] descriptors. When it is killed its copies close: the agent sees that at once, takes its
//! FUSE devices away and ends.

mod next;
mod store;

use std::{
    ffi::OsString,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use next::{Asked, Next, Pace};
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt::set_socket_passcred},
    process::{Pid, Signal as Kill, kill_process},
};
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal, SignalKind, signal},
};

pub use store::MOST_KEPT;
pub(crate) use store::Store;

use crate::{
    cli::SuperviseArgs,
    config::{SUPERVISED, SUPERVISED_VARIABLE},
    keeper::pass::{Ear, Incoming},
    log, run,
};

/// Why `penstock supervise` failed. Each text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The agent cannot be started.
    #[error("cannot start {}: {reason}; name the program by a path that stays when it is replaced", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// The agent never came up.
    #[error("the agent ended before it was ready ({0}); its own message is above")]
    NeverReady(ExitStatus),
    /// The agent did not stop cleanly.
    #[error("the agent did not stop cleanly ({0}); its log says why")]
    Unclean(ExitStatus),
    /// The system gave no sockets, signals or threads.
    #[error("cannot supervise: {0}")]
    System(#[from] io::Error),
}

/// Runs an agent until SIGTERM or SIGINT, whatever becomes of it in between.
///
/// # Errors
/// [`SuperviseError`].
pub fn supervise(args: &SuperviseArgs) -> Result<(), SuperviseError> {
    log::start(args.log_format, tracing::Level::INFO, None);
    run::raise_open_files();
    // The path, not what is behind it: after an upgrade that is another file.
    let program = args.program.clone().map_or_else(std::env::current_exe, Ok)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Box::pin(keep_running(&program, &args.agent)))
}

async fn keep_running(program: &Path, args: &[OsString]) -> Result<(), SuperviseError> {
    let (mut signals, mut store, mut pace) = (Signals::new()?, Store::default(), Pace::default());
    loop {
        store.drop_dead()?;
        let mut agent = Agent::start(program, args, &store)?;
        tracing::info!(pid = agent.pid(), descriptors = store.len(), "the agent is started");
        let ended = agent.attend(&mut signals, &mut store).await?;
        match pace.next(&ended) {
            Next::Done => return Ok(()),
            Next::Unclean => return Err(SuperviseError::Unclean(ended.status)),
            Next::NeverReady => return Err(SuperviseError::NeverReady(ended.status)),
            Next::Again(pause) => {
                tracing::warn!(status = %ended.status, ?pause, descriptors = store.len(), "the agent ended; it is started again");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    asked = signals.next() => if asked == Asked::Stop { return Ok(()) },
                }
            }
        }
    }
}

/// How a run of the agent ended.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    was_ready: bool,
    asked: Asked,
}

/// One run of the agent.
struct Agent {
    child: Child,
    pid: Pid,
    socket: Ear,
    /// Whether the agent has closed its end: it ends.
    is_deaf: bool,
}

impl Agent {
    fn start(program: &Path, args: &[OsString], store: &Store) -> Result<Self, SuperviseError> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(io::Error::from)?;
        set_socket_passcred(&ours, true).map_err(io::Error::from)?;
        store.give_back(ours.as_fd())?;
        let child = Command::new(program)
            .arg("agent")
            .args(args)
            .env(SUPERVISED_VARIABLE, SUPERVISED)
            .stdin(Stdio::from(theirs))
            // Not in our process group: Ctrl-C in a terminal is for us, and we tell the agent what it means.
            .process_group(0)
            .spawn()
            .map_err(|reason| SuperviseError::Start { program: program.to_owned(), reason })?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let pid = pid.ok_or_else(|| io::Error::other("a child without a process id"))?;
        let socket = Ear::new(ours)?;
        Ok(Self { child, pid, socket, is_deaf: false })
    }

    fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Does what the agent and the signals say until the agent has ended.
    async fn attend(&mut self, signals: &mut Signals, store: &mut Store) -> Result<Ended, SuperviseError> {
        let (mut was_ready, mut asked) = (false, Asked::Nothing);
        loop {
            tokio::select! {
                ended = self.child.wait() => {
                    let status = ended?;
                    // What it said last may still be on its way.
                    was_ready |= self.listen(store)?;
                    return Ok(Ended { status, was_ready, asked });
                }
                ready = self.socket.ready(), if !self.is_deaf => {
                    ready?;
                    was_ready |= self.listen(store)?;
                }
                signal = signals.next() => {
                    asked = signal;
                    self.pass_on(signal);
                }
            }
        }
    }

    /// Takes what the agent has said; answers whether it said that it serves.
    fn listen(&mut self, store: &mut Store) -> io::Result<bool> {
        let mut is_ready = false;
        loop {
            match self.socket.receive() {
                Ok(Incoming::Message(message)) if message.sender.is_some_and(|sender| sender.pid == self.pid) => {
                    is_ready |= store.take(message);
                }
                Ok(Incoming::Message(message)) => {
                    tracing::warn!(sender = ?message.sender, "a message that is not from the agent is not heard");
                }
                Ok(Incoming::Nothing) => return Ok(is_ready),
                Ok(Incoming::Closed) => {
                    self.is_deaf = true;
                    return Ok(is_ready);
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    tracing::warn!(%error, "a message is not heard")
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The agent is not told to leave its devices when nobody will take them over: SIGINT says that, SIGTERM that a successor comes.
    fn pass_on(&self, asked: Asked) {
        let signal = match asked {
            Asked::Nothing => return,
            Asked::Stop => Kill::INT,
            Asked::Restart => Kill::TERM,
        };
        tracing::info!(?asked, pid = self.pid(), "the agent is told");
        // It was not waited for yet: the number is its own.
        if let Err(error) = kill_process(self.pid, signal) {
            tracing::warn!(%error, "the agent was not told");
        }
    }
}

/// The signals that a supervisor is asked with.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let on = |kind| signal(kind);
        Ok(Self {
            term: on(SignalKind::terminate())?,
            int: on(SignalKind::interrupt())?,
            hup: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.term.recv() => Asked::Stop,
            _ = self.int.recv() => Asked::Stop,
            _ = self.hup.recv() => Asked::Restart,
        }
    }
}
