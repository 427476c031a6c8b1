//! `penstock agent`: an agent as a process, from its config to its last signal.

use std::{io, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Agent, DrainError, Keeper, StartError,
    cli::AgentArgs,
    config::{Config, ConfigError, Service},
    log, output,
    traces::{self, Outbox},
};

/// How long threads that wait for the kernel may hold up the end of the process once everything else has ended.
const LINGERING: Duration = Duration::from_secs(2);

/// Why `penstock agent` failed. Each text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The config is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The agent did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The agent did not stop cleanly.
    #[error(transparent)]
    Drain(#[from] DrainError),
    /// A second signal came while it stopped.
    #[error(
        "ended by a second signal before it had stopped; what is left in the kernel is cleaned up at the next start"
    )]
    Hurried,
    /// The system gave no threads, signals or output.
    #[error("cannot run: {0}")]
    System(#[from] io::Error),
}

/// Runs an agent until SIGTERM or SIGINT and drains it, or prints the config.
///
/// # Errors
/// [`RunError`].
pub fn agent(args: &AgentArgs) -> Result<(), RunError> {
    // First of all: descriptors that this process was started with have fixed numbers.
    let keeper = Keeper::of_process(&Service::of_process())?;
    let loaded = Config::load(&args.flags)?;
    if args.print_config {
        return Ok(output::print(&loaded.print())?);
    }
    let traces = &loaded.config.traces;
    let (spans, outbox) = traces.endpoint.as_ref().map(|_| traces::queue(traces.slow)).unzip();
    log::start(loaded.config.log_format, loaded.config.log_level, spans);
    close_off();
    raise_open_files();
    penstock_device::share_heaps();
    for notice in loaded.notices.iter().chain(keeper.notices()) {
        tracing::warn!("{notice}");
    }
    with_runtime(serve(loaded.config, (keeper, outbox)))?
}

/// Keeps what this process writes and remembers from other users: files are for its own user alone whatever it was started with, and
/// its memory, which holds tokens and passwords, is neither written to core dumps nor read by processes of the same user.
fn close_off() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "a core dump of this process would hold its credentials");
    }
}

/// Lets this process open as many files as it may: a device has several, the cache's index some eighty, and the usual soft limit of 1024
/// is there for programs that use select(2).
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, current = ?limit.current, "the limit of open files stays as it is");
    }
}

/// Runs `work` on a runtime whose last threads are not waited for without bound.
pub(crate) fn with_runtime<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = Runtime::new()?;
    let outcome = runtime.block_on(Box::pin(work));
    runtime.shutdown_timeout(LINGERING);
    Ok(outcome)
}

async fn serve(config: Config, process: (Keeper, Option<Outbox>)) -> Result<(), RunError> {
    let mut signals = Signals::new()?;
    let stop = CancellationToken::new();
    let (mut agent, asked) = {
        let mut starting = Box::pin(Agent::start_until(config, process, &stop));
        tokio::select! {
            agent = &mut starting => (agent?, None),
            asked = signals.next() => {
                tracing::info!(signal = asked.signal(), "stopping as soon as the agent has started");
                stop.cancel();
                (starting.await?, Some(asked))
            }
        }
    };
    let asked = match asked {
        Some(asked) => asked,
        None => {
            agent.say_ready();
            tokio::select! {
                asked = signals.next() => asked,
                () = agent.keeper_lost() => {
                    tracing::warn!("the supervisor is gone: nobody would start another agent");
                    Asked::Stop
                }
            }
        }
    };
    tracing::info!(signal = asked.signal(), "draining");
    let stopping = async {
        match asked {
            Asked::Stop => agent.stop().await,
            Asked::StopForGood => agent.stop_for_good().await,
        }
    };
    tokio::select! {
        drained = stopping => Ok(drained?),
        _ = signals.next() => Err(RunError::Hurried),
    }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// SIGTERM, as service managers send: stop; a successor comes.
    Stop,
    /// SIGINT, as Ctrl-C sends: stop; nobody comes.
    StopForGood,
}

impl Asked {
    /// The signal's name.
    pub(crate) const fn signal(self) -> &'static str {
        match self {
            Self::Stop => "SIGTERM",
            Self::StopForGood => "SIGINT",
        }
    }
}

/// The signals that end a process politely.
pub(crate) struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// What the next signal asks for.
    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.term.recv() => Asked::Stop,
            _ = self.int.recv() => Asked::StopForGood,
        }
    }
}
