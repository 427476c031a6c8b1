//! A snapshotter on its socket, a client of it, and what containerd does with the two.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use penstock_blob::Digest;
use penstock_snapshotter::{Config, Shape, Snapshotter};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

use crate::{
    api::{self, SnapshotsClient, types::Mount},
    layers::{Apply, Binds},
    mounting::{self, Mounted},
};

pub(crate) const TARGET: &str = "containerd.io/snapshot.ref";
const REFERENCE: &str = "containerd.io/snapshot/cri.image-ref";
const LAYER: &str = "containerd.io/snapshot/cri.layer-digest";

/// In which way the layers of an image are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    /// Unpacked, as any image is.
    Directories,
    /// Each a device of its own.
    Singles,
    /// Each a device that shows what is below it too.
    Merged,
}

pub(crate) const EVERY: [As; 3] = [As::Directories, As::Singles, As::Merged];

pub(crate) type Labels = BTreeMap<String, String>;

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(crate) struct Node {
    pub(crate) snapshotter: Arc<Snapshotter>,
    pub(crate) client: SnapshotsClient<Channel>,
    pub(crate) mounter: Arc<Binds>,
    registry: Registry,
    stop: CancellationToken,
    serving: JoinSet<()>,
    pub(crate) dir: TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        mounting::unmount_below(self.dir.path());
    }
}

async fn connect(socket: PathBuf) -> Channel {
    let endpoint = tonic::transport::Endpoint::from_static("http://socket");
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.expect("the socket answers")
}

impl Node {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mounter = Arc::new(Binds::new(dir.path().join("layers")));
        Self::over(dir, mounter).await
    }

    /// In a directory below `dir`, which stays.
    pub(crate) async fn start_in(dir: &Path) -> Self {
        let fixed = dir.join("node");
        std::fs::create_dir_all(&fixed).expect("a directory");
        let mut own = tempfile::Builder::new().prefix("link").tempdir_in(dir).expect("a directory");
        own.disable_cleanup(true);
        std::os::unix::fs::symlink(&fixed, own.path().join("root")).expect("a link");
        let mounter = Arc::new(Binds::new(own.path().join("layers")));
        Self::over(own, mounter).await
    }

    async fn over(dir: TempDir, mounter: Arc<Binds>) -> Self {
        let mut registry = Registry::default();
        let config = Config { root: dir.path().join("root") };
        let snapshotter =
            Snapshotter::open(config, Arc::clone(&mounter) as _, &mut registry).expect("the root can be opened");
        let socket = dir.path().join("socket");
        // Left by the one before.
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("a socket");
        let stop = CancellationToken::new();
        let mut serving = JoinSet::new();
        let (served, stopped) = (Arc::clone(&snapshotter), stop.clone());
        serving.spawn(async move {
            served.serve(listener, stopped.cancelled_owned()).await.expect("the socket lasts");
        });
        let client = SnapshotsClient::new(connect(socket).await);
        Self { snapshotter, client, mounter, registry, stop, serving, dir }
    }

    /// The agent stops, and another one starts. `between` sees the root meanwhile.
    pub(crate) async fn restart(mut self, between: impl FnOnce(&Path)) -> Self {
        self.stop.cancel();
        // The client's connection ends the server's wait for it.
        let idle = connect_nowhere();
        self.client = SnapshotsClient::new(idle);
        self.serving.join_next().await.expect("it served").expect("it ends well");
        let fresh = tempfile::tempdir().expect("a directory");
        let dir = std::mem::replace(&mut self.dir, fresh);
        let mounter = Arc::clone(&self.mounter);
        drop(self);
        between(&dir.path().join("root"));
        Self::over(dir, mounter).await
    }

    /// All mounts are gone, as after a reboot.
    pub(crate) fn reboot(&self) {
        mounting::unmount_below(&self.root());
    }

    /// What a monitoring system would see.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("text");
        text
    }

    /// Waits until a monitoring system would see `line`.
    pub(crate) async fn until_counted(&self, line: &str) {
        let counted = async {
            while !self.metrics().contains(line) {
                tokio::task::yield_now().await;
            }
        };
        let counted = tokio::time::timeout(Duration::from_secs(120), counted).await;
        counted.unwrap_or_else(|_| panic!("{line} is not in\n{}", self.metrics()));
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join("mnt").join(name)
    }

    pub(crate) async fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, Status> {
        let request = api::PrepareSnapshotRequest {
            snapshotter: "penstock".into(),
            key: key.into(),
            parent: parent.into(),
            labels,
        };
        Ok(self.client.clone().prepare(request).await?.into_inner().mounts)
    }

    pub(crate) async fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, Status> {
        let request =
            api::ViewSnapshotRequest { snapshotter: "penstock".into(), key: key.into(), parent: parent.into(), labels };
        Ok(self.client.clone().view(request).await?.into_inner().mounts)
    }

    pub(crate) async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = api::MountsRequest { snapshotter: "penstock".into(), key: key.into() };
        Ok(self.client.clone().mounts(request).await?.into_inner().mounts)
    }

    pub(crate) async fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<(), Status> {
        self.commit_over(name, key, "", labels).await
    }

    pub(crate) async fn commit_over(&self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<(), Status> {
        let request = api::CommitSnapshotRequest {
            snapshotter: "penstock".into(),
            name: name.into(),
            key: key.into(),
            labels,
            parent: parent.into(),
        };
        self.client.clone().commit(request).await.map(drop)
    }

    pub(crate) async fn remove(&self, key: &str) -> Result<(), Status> {
        let request = api::RemoveSnapshotRequest { snapshotter: "penstock".into(), key: key.into() };
        self.client.clone().remove(request).await.map(drop)
    }

    pub(crate) async fn stat(&self, key: &str) -> Result<api::Info, Status> {
        let request = api::StatSnapshotRequest { snapshotter: "penstock".into(), key: key.into() };
        Ok(self.client.clone().stat(request).await?.into_inner().info.expect("an answer has a snapshot"))
    }

    pub(crate) async fn update(&self, info: api::Info, paths: &[&str]) -> Result<api::Info, Status> {
        let paths = paths.iter().map(ToString::to_string).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = api::UpdateSnapshotRequest { snapshotter: "penstock".into(), info: Some(info), update_mask };
        Ok(self.client.clone().update(request).await?.into_inner().info.expect("an answer has a snapshot"))
    }

    pub(crate) async fn usage(&self, key: &str) -> Result<(i64, i64), Status> {
        let request = api::UsageRequest { snapshotter: "penstock".into(), key: key.into() };
        let usage = self.client.clone().usage(request).await?.into_inner();
        Ok((usage.size, usage.inodes))
    }

    pub(crate) async fn cleanup(&self) -> Result<(), Status> {
        self.client.clone().cleanup(api::CleanupRequest { snapshotter: "penstock".into() }).await.map(drop)
    }

    /// Batches as they are streamed.
    pub(crate) async fn batches(&self, filters: &[&str]) -> Result<Vec<Vec<api::Info>>, Status> {
        let filters = filters.iter().map(ToString::to_string).collect();
        let request = api::ListSnapshotsRequest { snapshotter: "penstock".into(), filters };
        let mut stream = self.client.clone().list(request).await?.into_inner();
        let mut batches = Vec::new();
        while let Some(batch) = stream.message().await? {
            batches.push(batch.info);
        }
        Ok(batches)
    }

    /// Names that pass, in order.
    pub(crate) async fn list(&self, filters: &[&str]) -> Vec<String> {
        let batches = self.batches(filters).await.expect("a list");
        batches.concat().into_iter().map(|info| info.name).collect()
    }

    /// Prepares and mounts.
    pub(crate) async fn active(&self, key: &str, parent: &str) -> Mounted {
        let mounts = self.prepare(key, parent, Labels::new()).await.expect("it is prepared");
        mounting::mount(&mounts, &self.place(key))
    }

    /// Makes one unpacked layer: what containerd does where nothing is lazy.
    pub(crate) async fn unpack(&self, name: &str, parent: &str, apply: Apply) {
        let key = format!("extract {name}");
        let mounted = self.active(&key, parent).await;
        apply(mounted.root());
        drop(mounted);
        self.commit(name, &key, Labels::new()).await.expect("it is committed");
    }

    /// Pulls one layer that can be lazy, as containerd does: the name that it finds.
    pub(crate) async fn pull(&self, digest: Digest, parent: &str) -> String {
        let labels = layer_labels(digest, parent);
        let key = format!("k8s.io/1/extract-1 {}", labels[TARGET]);
        let status = self.prepare(&key, parent, labels.clone()).await.expect_err("it need not be unpacked");
        assert_eq!(status.code(), Code::AlreadyExists, "{status}");
        let filter = format!("labels.\"{TARGET}\"=={},parent==\"{parent}\"", labels[TARGET]);
        let names = self.list(&[&filter]).await;
        assert_eq!(names.len(), 1, "containerd looks for it so");
        names.into_iter().next().expect("one")
    }

    /// An image of `layers`: the name of its top one.
    pub(crate) async fn image(&self, how: As, layers: &[Apply]) -> String {
        let mut parent = String::new();
        let shape = match how {
            As::Directories => {
                for (depth, apply) in layers.iter().enumerate() {
                    let name = format!("layer {depth}");
                    self.unpack(&name, &parent, *apply).await;
                    parent = name;
                }
                return parent;
            }
            As::Singles => Shape::Single,
            As::Merged => Shape::Merged,
        };
        for digest in self.mounter.prepare(shape, layers) {
            parent = self.pull(digest, &parent).await;
        }
        parent
    }
}

/// The labels with which containerd prepares a layer over `parent`.
pub(crate) fn layer_labels(digest: Digest, parent: &str) -> Labels {
    let chain = Digest::of(format!("{parent} {digest}").as_bytes()).to_string();
    labels(&[(TARGET, &chain), (REFERENCE, "registry.example/image:tag"), (LAYER, &digest.to_string())])
}

/// A channel that leads nowhere.
fn connect_nowhere() -> Channel {
    tonic::transport::Endpoint::from_static("http://[::1]:1").connect_lazy()
}
