//! The admin API on its listeners: a unix socket for who the kernel lets in, and TCP for who proves to be known, or only to read.
//!
//! Whatever asks is bounded here, before a route sees it: connections, the size and the pace of a request's head, requests of one peer,
//! wrong proofs of one peer. docs/security.md lists the bounds, and why.

mod access;
mod connection;
mod count;
mod door;
mod files;
mod peers;
mod tls;
mod token;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    events::Events,
    node::AgentNode,
    socket::{self, SocketError, SocketFile},
};
use access::Policy;
pub use access::Unsafe;
pub(crate) use access::policy;
use connection::Listener;
pub(crate) use count::Metrics;
use count::Name;
use door::{Access, Door};
pub use files::FileError;
pub(crate) use files::read_secret;
use peers::{Limits, Peers, Rate};
use tls::Tls;
pub(crate) use tls::certificates as tls_certificates;
use token::Tokens;

/// How long open connections may take to end once the agent stops: a request that changes something has ended before.
const CLOSING: Duration = Duration::from_secs(2);

/// Connections of the socket at once: its users are programs of this node that root has let in.
const UNIX_CONNECTIONS: usize = 256;
/// Connections over TCP at once.
const TCP_CONNECTIONS: usize = 128;

/// What one user of the socket may do: far above any sane program, below what would hold others up.
const UNIX_LIMITS: Limits = Limits {
    connections: 256,
    requests: Rate { burst: 2000, every: Duration::from_millis(2) },
    failures: Rate { burst: 10, every: Duration::from_secs(6) },
};

/// What one address may do over TCP: some scrapers and some people.
const TCP_LIMITS: Limits = Limits {
    connections: 32,
    requests: Rate { burst: 200, every: Duration::from_millis(20) },
    failures: Rate { burst: 10, every: Duration::from_secs(6) },
};

/// The listeners and their tasks.
#[derive(Debug)]
pub(crate) struct Servers {
    socket: SocketFile,
    listening: Option<SocketAddr>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// Answers on the config's socket, and on its TCP address if there is one.
pub(crate) fn start(
    config: &Config,
    node: Arc<AgentNode>,
    metrics: &Metrics,
    events: &Events,
) -> Result<Servers, SocketError> {
    let tcp = match policy(config)?.zip(config.listen) {
        Some((policy, address)) => {
            let door = tcp_door(policy, &node, metrics, events)?;
            Some((listen(address)?, door))
        }
        None => None,
    };
    let group = config.socket_group.as_deref().map(socket::group).transpose()?;
    let (unix, socket) = socket::listen(&config.socket, "--socket", group)?;
    let listening = tcp.as_ref().and_then(|(listener, _)| listener.local_addr().ok());
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    let door = Arc::new(Door {
        access: Access::Owner { group },
        tls: None,
        peers: Arc::new(Peers::new(UNIX_LIMITS)),
        room: Arc::new(Semaphore::new(UNIX_CONNECTIONS)),
        router: penstock_api::router(node),
        counts: metrics.of(Name::Unix),
        events: events.clone(),
    });
    tasks.spawn(connection::serve(Listener::Unix(unix), door, stop.clone()));
    if let Some((tcp, door)) = tcp {
        tasks.spawn(connection::serve(Listener::Tcp(tcp), Arc::new(door), stop.clone()));
    }
    Ok(Servers { socket, listening, stop, tasks })
}

fn tcp_door(policy: Policy, node: &Arc<AgentNode>, metrics: &Metrics, events: &Events) -> Result<Door, FileError> {
    let node = Arc::clone(node) as Arc<dyn penstock_api::Node>;
    let (access, pair, client_ca, router) = match policy {
        // TCP has no owner: every user of the node, and every page in its browsers, can connect. So it shows and changes nothing.
        Policy::Reading { tls } => (Access::Reading, tls, None, penstock_api::read_only_router(node)),
        Policy::Known { token_file, tls, client_ca } => {
            let tokens = token_file.map(|path| Tokens::open(&path, events.clone()).map(Arc::new)).transpose()?;
            (Access::Known { tokens }, tls, client_ca, penstock_api::router(node))
        }
    };
    let has_tokens = matches!(&access, Access::Known { tokens: Some(_) });
    let tls = pair.map(|pair| Tls::open(pair, client_ca, has_tokens, events.clone())).transpose()?;
    Ok(Door {
        access,
        tls,
        peers: Arc::new(Peers::new(TCP_LIMITS)),
        room: Arc::new(Semaphore::new(TCP_CONNECTIONS)),
        router,
        counts: metrics.of(Name::Tcp),
        events: events.clone(),
    })
}

fn listen(address: SocketAddr) -> Result<TcpListener, SocketError> {
    let failed = |reason| SocketError::Listen { address, reason };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    TcpListener::from_std(listener).map_err(failed)
}

impl Servers {
    /// The unix socket.
    pub(crate) fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// The TCP address.
    pub(crate) const fn listening(&self) -> Option<SocketAddr> {
        self.listening
    }

    /// Takes no more connections, lets those there are end for a moment, then ends them.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSING, ended).await.is_err() {
            self.tasks.shutdown().await;
        }
    }
}
