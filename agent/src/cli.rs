//! The command line: what can be typed, and what the commands that ask an agent do.
//!
//! [`parse`] reads the process's arguments; `main` dispatches [`Command::Agent`] and [`Command::Demo`] to their modules and gives the
//! others to [`run`]. Nothing here calls `exit`: each way out is an [`ExitCode`] of [`Exit`].

mod args;
mod cache;
mod client;
pub mod credentials;
mod explain;
mod inspect;
mod man;
mod memory;
mod policy;
mod pull;
mod record;
mod render;
mod snapshots;
#[cfg(test)]
mod tests;
mod top;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser};
use penstock_api::{Problem, ProblemKind};

pub use args::{
    AgentArgs, Attach, Cli, ClientCommand, Command, Completions, Connection, Detach, Events, KeepArgs, Policy, Set,
    Show, Stats, SuperviseArgs, Transport,
};
pub use explain::Explain;
pub use inspect::Inspect;
pub use man::Man;
pub use policy::OnFailureArg;
pub use pull::Pull;
pub use record::{Record, Recordings};
pub use top::Top;

use crate::{
    client::{ClientError, RemoteError},
    output,
};

/// How a command ends. Scripts rely on these numbers; `penstock --help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Not done, for a reason without a number of its own.
    Failed = 1,
    /// The command line, or a value in it, is wrong.
    Usage = 2,
    /// No agent could be asked.
    Unreachable = 3,
    /// There is no such device or image.
    NotFound = 4,
    /// In use or taken.
    Conflict = 5,
    /// The same command may succeed later.
    Later = 6,
    /// Damage was found: of cached bytes, or of snapshots.
    Damage = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<&Problem> for Exit {
    fn from(problem: &Problem) -> Self {
        match problem.kind() {
            Some(ProblemKind::NotFound | ProblemKind::ImageNotFound) => Self::NotFound,
            Some(ProblemKind::Conflict) => Self::Conflict,
            Some(ProblemKind::Invalid) => Self::Usage,
            _ if problem.transient => Self::Later,
            _ => Self::Failed,
        }
    }
}

/// Why a command that asks an agent did not do all that it was told.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The agent did not answer, or answered with a problem.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Stdout took no more.
    #[error("cannot write the answer: {0}")]
    Output(#[from] std::io::Error),
    /// The mount directory cannot be named to the agent.
    #[error("cannot mount on {dir:?}: {reason}; name another directory with --mount")]
    MountDir {
        /// As typed.
        dir: std::path::PathBuf,
        /// Why not.
        reason: String,
    },
    /// containerd's socket cannot be named to the agent.
    #[error("cannot use {socket:?} as containerd's socket: {reason}; name another with --containerd")]
    Containerd {
        /// As typed.
        socket: std::path::PathBuf,
        /// Why not.
        reason: String,
    },
    /// What was told about an agent on TCP cannot be used.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// There are no credentials to hand over.
    #[error(transparent)]
    Input(#[from] credentials::InputError),
    /// The manual pages cannot be written.
    #[error("cannot write the manual pages into {dir:?}: {reason}; make the directory, or name another with --dir")]
    ManualPages {
        /// As typed.
        dir: std::path::PathBuf,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// There is nothing more to follow.
    #[error("the agent stops, and with it its events; the same command follows the next one")]
    Stopping,
    /// The command to be recorded could not be run.
    #[error(
        "cannot run {command:?}: {reason}; chroot needs root and is part of coreutils, and --here runs a command of this machine"
    )]
    NotRun {
        /// As typed.
        command: Vec<std::ffi::OsString>,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// The command that was recorded failed.
    #[error("the command has failed ({status}); what it read until then is recorded all the same")]
    Command {
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// Nothing could be removed.
    #[error("nothing was removed; see above")]
    NothingFreed,
    /// Cached bytes were damaged.
    #[error(
        "cached bytes were damaged and have been dropped; {} of them are still to be fetched again; if it happens again, look at this disk",
        unrepaired
    )]
    Damaged {
        /// Places that were to be fetched again at once, and did not come.
        unrepaired: u64,
    },
    /// Snapshots are lost.
    #[error("{count} snapshots are lost or damaged; see above for what to do")]
    LostSnapshots {
        /// How many.
        count: usize,
    },
    /// Some devices are still there.
    #[error("{count} of the devices could not be detached; see above")]
    StillAttached {
        /// How many.
        count: usize,
        /// How the first of them ends the command.
        exit: Exit,
    },
}

impl Failure {
    /// How the command ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Client(ClientError::Problem(problem)) => problem.into(),
            Self::Client(error) if error.is_unreachable() => Exit::Unreachable,
            Self::Client(_)
            | Self::Output(_)
            | Self::NotRun { .. }
            | Self::Command { .. }
            | Self::ManualPages { .. } => Exit::Failed,
            Self::MountDir { .. } | Self::Containerd { .. } | Self::Remote(_) | Self::Input(_) => Exit::Usage,
            Self::NothingFreed => Exit::Conflict,
            Self::Damaged { .. } | Self::LostSnapshots { .. } => Exit::Damage,
            Self::Stopping => Exit::Later,
            Self::StillAttached { exit, .. } => *exit,
        }
    }
}

/// The command of this process's arguments.
///
/// # Errors
/// The code to end with, when help was asked for or the arguments are wrong; what there is to say has been printed.
pub fn parse() -> Result<Command, ExitCode> {
    Cli::try_parse().map(|cli| cli.command).map_err(|error| {
        output::usage(&error);
        if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() }
    })
}

/// Runs a command that asks an agent, or that needs nobody.
#[must_use]
pub fn run(command: ClientCommand) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(reason) => {
            output::error(format_args!("cannot start: {reason}"));
            return Exit::Failed.into();
        }
    };
    match runtime.block_on(client::execute(command)) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            output::error(&failure);
            failure.exit().into()
        }
    }
}

/// The whole command line as clap sees it, for completions and tests.
fn command() -> clap::Command {
    Cli::command()
}
