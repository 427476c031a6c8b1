//! The image-service proxy on its socket, and what becomes of the credentials that it hears.

mod keyring;
mod pulled;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use penstock_fetcher::{Fetcher, Keeping};
use penstock_snapshotter::images::{Event, ImageProxy};
use prometheus_client::registry::Registry;
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    attachments::Attachments,
    config::Config,
    events::{Events, Kind},
    socket::{self, SocketError, SocketFile},
};
use keyring::PullKeyring;
use pulled::PulledFile;

/// The name of the file beside the agent's socket that says which pulls the kept credentials are of.
const PULLED_FILE: &str = "images.pulled";

/// Why the image service cannot be offered.
#[derive(Debug, thiserror::Error)]
#[error("the image service cannot be offered: {0}")]
pub struct ImagesError(#[from] SocketError);

/// What the proxy is made with.
pub(crate) struct Parts<'a> {
    pub(crate) config: &'a Config,
    pub(crate) fetcher: &'a Arc<Fetcher>,
    pub(crate) attachments: &'a Arc<Attachments>,
    pub(crate) events: &'a Events,
}

/// The proxy while it is served.
#[derive(Debug)]
pub(crate) struct Images {
    socket: SocketFile,
    stop: CancellationToken,
    serving: JoinSet<()>,
    telling: JoinSet<()>,
}

impl Images {
    /// Listens, unless the snapshotter is off. containerd is not asked for anything yet: it may start later.
    pub(crate) async fn start(parts: Parts<'_>, registry: &mut Registry) -> Result<Option<Self>, ImagesError> {
        let Parts { config, fetcher, attachments, events } = parts;
        if !config.snapshotter_enable {
            return Ok(None);
        }
        let is_kept = fetcher.credentials().await.keeping == Keeping::UntilReboot;
        let file = PulledFile::open(pulled_path(config).filter(|_| is_kept), events.clone()).await;
        let keyring = PullKeyring::new((Arc::clone(fetcher), Arc::clone(attachments)), file, events.clone());
        let proxy = ImageProxy::new(config.images_containerd.clone(), keyring, registry);
        let (listener, socket) = socket::listen(&config.images_socket, "images.socket", None)?;
        let (stop, mut serving, mut telling) = (CancellationToken::new(), JoinSet::new(), JoinSet::new());
        telling.spawn(pass_on(proxy.events(), events.clone()));
        serving.spawn(proxy.serve(listener, |peer| socket::may_use(peer, None), stop.clone()));
        tracing::info!(socket = %socket.path().display(), containerd = %config.images_containerd.display(), "the image service is forwarded");
        Ok(Some(Self { socket, stop, serving, telling }))
    }

    /// The socket that the kubelet is told.
    pub(crate) fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// Takes no more calls, and returns once those under way have ended.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        while self.serving.join_next().await.is_some() {}
        // It ends by itself, having told everything.
        while self.telling.join_next().await.is_some() {}
    }
}

/// Beside the credentials that it is about, for as long as they are kept: elsewhere it would outlive them.
fn pulled_path(config: &Config) -> Option<PathBuf> {
    let kept = config.credentials.sources(None, &config.socket).kept?;
    Some(kept.with_file_name(PULLED_FILE))
}

/// Passes on what the proxy has to say until it is gone.
async fn pass_on(mut from: Receiver<Event>, to: Events) {
    loop {
        match from.recv().await {
            Ok(event @ Event::Away { .. }) => to.record(Kind::ImagesAway, &event.to_string(), &[]),
            Ok(event @ Event::Back) => to.record(Kind::ImagesBack, &event.to_string(), &[]),
            Ok(event @ Event::Unread { .. }) => to.record(Kind::ImagesUnread, &event.to_string(), &[]),
            Err(RecvError::Lagged(lost)) => {
                to.record(Kind::ImagesUnread, &format!("{lost} more calls were forwarded without being read"), &[]);
            }
            Err(RecvError::Closed) => return,
        }
    }
}
