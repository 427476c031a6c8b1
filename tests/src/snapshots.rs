//! A client of a snapshotter on its socket: those calls of containerd's `Snapshots` service with which an image is pulled lazily and a container starts.

use std::{collections::BTreeMap, path::Path, time::Duration};

use futures_util::TryStreamExt as _;
use penstock_blob::Digest;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// Longest time of one call: a hang is a finding, a slow machine is not.
const CALL: Duration = Duration::from_secs(300);
/// What containerd calls the snapshotter; one socket serves one, so it says nothing.
const NAME: &str = "penstock";

/// A connection to a snapshotter.
#[derive(Debug, Clone)]
pub struct Snapshots(Channel);

/// A layer of an image that is pulled, as containerd's labels describe it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The image.
    pub reference: String,
    /// Its manifest.
    pub manifest: Digest,
    /// The layer's blob.
    pub digest: Digest,
    /// What names it with all that are below it.
    pub chain: Digest,
}

/// What containerd is to mount.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// The file system: `overlay` or `bind`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// What is mounted.
    #[prost(string, tag = "2")]
    pub source: String,
    /// Options, as mount(8) has them.
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Prepare {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(string, tag = "3")]
    parent: String,
    #[prost(btree_map = "string, string", tag = "4")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Prepared {
    #[prost(message, repeated, tag = "1")]
    mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct List {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, repeated, tag = "2")]
    filters: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Listed {
    #[prost(message, repeated, tag = "1")]
    infos: Vec<Info>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Info {
    #[prost(string, tag = "1")]
    name: String,
}

/// `Remove`; without a key `Cleanup`.
#[derive(Clone, PartialEq, prost::Message)]
struct Remove {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

impl Snapshots {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(socket: &Path) -> Result<Self, tonic::transport::Error> {
        Ok(Self(Endpoint::from_shared(format!("unix://{}", socket.display()))?.timeout(CALL).connect().await?))
    }

    /// Pulls one layer over `parent` (empty: none), which has to be read on demand: the name of its snapshot.
    ///
    /// # Errors
    /// The snapshotter's; `FAILED_PRECONDITION` when it wants the layer unpacked.
    pub async fn pull(&self, layer: &Layer, parent: &str) -> Result<String, Status> {
        let labels = [
            ("containerd.io/snapshot.ref", layer.chain.to_string()),
            ("containerd.io/snapshot/cri.image-ref", layer.reference.clone()),
            ("containerd.io/snapshot/cri.layer-digest", layer.digest.to_string()),
            ("containerd.io/snapshot/cri.manifest-digest", layer.manifest.to_string()),
        ];
        let labels = labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        match self.ask(&format!("extract {}", layer.chain), parent, labels).await {
            Err(status) if status.code() == Code::AlreadyExists => self.find(layer, parent).await,
            Err(status) => Err(status),
            Ok(_) => Err(Status::failed_precondition(format!("{} is to be unpacked", layer.digest))),
        }
    }

    /// Makes the file system of a container over `parent`: how it is mounted.
    ///
    /// # Errors
    /// The snapshotter's.
    pub async fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.ask(key, parent, BTreeMap::new()).await
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// The snapshotter's.
    pub async fn remove(&self, key: &str) -> Result<(), Status> {
        let request = Remove { snapshotter: NAME.into(), key: key.into() };
        self.call::<_, Empty>("Remove", request).await.map(drop)
    }

    /// Has everything taken away that was removed, devices too.
    ///
    /// # Errors
    /// The snapshotter's.
    pub async fn clean_up(&self) -> Result<(), Status> {
        let request = Remove { snapshotter: NAME.into(), key: String::new() };
        self.call::<_, Empty>("Cleanup", request).await.map(drop)
    }

    async fn ask(&self, key: &str, parent: &str, labels: BTreeMap<String, String>) -> Result<Vec<Mount>, Status> {
        let request = Prepare { snapshotter: NAME.into(), key: key.into(), parent: parent.into(), labels };
        Ok(self.call::<_, Prepared>("Prepare", request).await?.mounts)
    }

    /// The snapshot that was made of a layer, as containerd looks for it.
    async fn find(&self, layer: &Layer, parent: &str) -> Result<String, Status> {
        let filter = format!("labels.\"containerd.io/snapshot.ref\"=={},parent==\"{parent}\"", layer.chain);
        let request = List { snapshotter: NAME.into(), filters: vec![filter] };
        let mut grpc = self.ready().await?;
        let codec = ProstCodec::<List, Listed>::default();
        let listed = grpc.server_streaming(Request::new(request), path("List")?, codec).await?.into_inner();
        let names: Vec<Listed> = listed.try_collect().await?;
        let first = names.into_iter().flat_map(|listed| listed.infos).next();
        Ok(first.ok_or_else(|| Status::not_found(format!("no snapshot of {}", layer.chain)))?.name)
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.0.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc)
    }

    async fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let codec = ProstCodec::<Q, A>::default();
        let answer = self.ready().await?.unary(Request::new(request), path(method)?, codec).await?;
        Ok(answer.into_inner())
    }
}

fn path(method: &str) -> Result<PathAndQuery, Status> {
    let path = format!("/containerd.services.snapshots.v1.Snapshots/{method}");
    path.parse().map_err(|_| Status::internal(format!("{path} is no path")))
}
