//! The admin API on its listeners.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    node::AgentNode,
    socket::{self, SocketError, SocketFile},
};

/// How long open connections may take to end once the agent stops: a request that changes something has ended before.
const CLOSING: Duration = Duration::from_secs(2);

/// The listeners and their tasks.
#[derive(Debug)]
pub(crate) struct Servers {
    socket: SocketFile,
    listening: Option<SocketAddr>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// Answers on the config's socket, and on its TCP address if there is one.
pub(crate) fn start(config: &Config, node: Arc<AgentNode>) -> Result<Servers, SocketError> {
    let router = penstock_api::router(Arc::clone(&node) as _);
    let tcp = config.listen.map(listen).transpose()?;
    let (unix, socket) = socket::listen(&config.socket)?;
    let listening = tcp.as_ref().and_then(|listener| listener.local_addr().ok());
    let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
    tasks.spawn(run(axum::serve(unix, router).with_graceful_shutdown(stop.clone().cancelled_owned())));
    if let Some(tcp) = tcp {
        // TCP has no owner: every user of the node, and every page in its browsers, can connect. So it shows and changes nothing.
        let reading = penstock_api::read_only_router(node);
        tasks.spawn(run(axum::serve(tcp, reading).with_graceful_shutdown(stop.clone().cancelled_owned())));
    }
    Ok(Servers { socket, listening, stop, tasks })
}

async fn run(server: impl IntoFuture<Output = std::io::Result<()>>) {
    if let Err(error) = server.await {
        tracing::error!(%error, "a listener of the admin API ended");
    }
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
