//! `penstock keep`: keeps the connections of FUSE devices for agents that come and go by themselves, as in pods.
//!
//! `penstock supervise` without starting anybody: whoever runs the agent (the kubelet) starts it again, and the agent finds its keeper by the
//! path of a socket (`PENSTOCK_KEEPER`). On that it is handed one end of a connected pair, and what is spoken over the pair is what a
//! supervisor speaks: first all that is kept, then what the agent says. It reads no config, opens no device and starts no process.
//!
//! One thread, at most `MOST_AGENTS` connections, at most `MOST_KEPT` descriptors. When it ends, its copies close: devices then end with
//! the agent that serves them.

use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use futures_util::future::select_all;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::net::{UnixListener, UnixStream};

use crate::{
    cli::KeepArgs,
    keeper::pass::{self, Ear, Incoming},
    log,
    run::{self, Signals},
    socket::{self, SocketError},
    supervise::{MOST_KEPT, Store},
};

/// Agents connected at once: one, the next one that waits for its state directory, and who was mistaken.
const MOST_AGENTS: usize = 4;
/// What comes along with an agent's end of the pair.
pub(crate) const WELCOME: &str = "KEEPER\n";

/// Why `penstock keep` failed. Each text is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum KeepingError {
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The system gave no sockets, signals or threads.
    #[error("cannot keep descriptors: {0}")]
    System(#[from] io::Error),
}

/// Keeps until SIGTERM or SIGINT.
///
/// # Errors
/// [`KeepingError`].
pub fn keep(args: &KeepArgs) -> Result<(), KeepingError> {
    log::start(args.log_format, tracing::Level::INFO, None);
    run::raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Box::pin(serve(&args.socket)))
}

async fn serve(path: &Path) -> Result<(), KeepingError> {
    let mut signals = Signals::new()?;
    let (listener, file) = socket::listen(path, "--socket", None)?;
    tracing::info!(socket = %file.path().display(), most = MOST_KEPT, "descriptors are kept");
    let (mut store, mut agents) = (Store::default(), Vec::new());
    loop {
        tokio::select! {
            agent = accept(&listener), if agents.len() < MOST_AGENTS => match agent.and_then(|agent| welcome(&agent, &mut store)) {
                Ok(agent) => {
                    tracing::info!(descriptors = store.len(), "an agent has come");
                    agents.push(agent);
                }
                Err(error) => tracing::warn!(%error, "who came was not let in"),
            },
            (nth, ready) = any(&agents) => {
                ready?;
                if !listen(&agents[nth], &mut store)? {
                    drop(agents.swap_remove(nth));
                    tracing::info!(descriptors = store.len(), "an agent has gone");
                }
            }
            _ = signals.next() => return Ok(()),
        }
    }
}

/// Who comes, if they may: root, and this process's own user.
async fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    let (stream, _) = listener.accept().await?;
    let peer = stream.peer_cred()?;
    if socket::may_use(&peer, None) { Ok(stream) } else { Err(io::Error::other(format!("user {}", peer.uid()))) }
}

/// Hands an agent its end of a pair, on which all that is kept is already waiting.
fn welcome(agent: &UnixStream, store: &mut Store) -> io::Result<Ear> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    store.drop_dead()?;
    store.give_back(ours.as_fd())?;
    pass::send(agent, None, WELCOME, &[theirs.as_fd()])?;
    Ear::new(ours)
}

/// The first agent that says something, or goes.
async fn any(agents: &[Ear]) -> (usize, io::Result<()>) {
    if agents.is_empty() {
        return std::future::pending().await;
    }
    let (ready, nth, _) = select_all(agents.iter().map(|agent| Box::pin(agent.ready()))).await;
    (nth, ready)
}

/// Takes what an agent has said; answers whether it may say more.
fn listen(agent: &Ear, store: &mut Store) -> io::Result<bool> {
    loop {
        match agent.receive() {
            Ok(Incoming::Message(message)) => drop(store.take(message)),
            Ok(Incoming::Nothing) => return Ok(true),
            Ok(Incoming::Closed) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%error, "a message is not heard")
            }
            Err(error) => return Err(error),
        }
    }
}

/// Where a keeper listens unless told otherwise.
#[must_use]
pub fn default_socket() -> PathBuf {
    PathBuf::from("/run/penstock/keeper.sock")
}
