//! containerd's side of its Snapshots service, as far as these tests ask: messages and field numbers of `containerd.services.snapshots.v1`.

use std::{collections::HashMap, path::Path};

use hyper_util::rt::TokioIo;
use penstock_blob::Digest;
use prost::Message;
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, Message)]
struct Prepare {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(string, tag = "3")]
    parent: String,
    #[prost(map = "string, string", tag = "4")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
}

#[derive(Clone, PartialEq, Message)]
struct Commit {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    key: String,
    #[prost(map = "string, string", tag = "4")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct List {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, repeated, tag = "2")]
    filters: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Listed {
    #[prost(message, repeated, tag = "1")]
    infos: Vec<Info>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    parent: String,
}

#[derive(Clone, PartialEq, Message)]
struct Mounts {
    #[prost(message, repeated, tag = "1")]
    mounts: Vec<Mount>,
}

/// What containerd is to mount.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Mount {
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(string, tag = "2")]
    pub(crate) source: String,
    #[prost(string, tag = "3")]
    pub(crate) target: String,
    #[prost(string, repeated, tag = "4")]
    pub(crate) options: Vec<String>,
}

impl Mount {
    /// The value of an option.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }
}

#[derive(Clone, PartialEq, Message)]
struct Empty {}

/// A connection to a snapshotter.
#[derive(Clone)]
pub(crate) struct Containerd(Channel);

impl Containerd {
    pub(crate) async fn connect(socket: &Path) -> Self {
        let socket = socket.to_path_buf();
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        Self(Endpoint::from_static("http://containerd").connect_with_connector(connect).await.unwrap())
    }

    async fn call<Q: Message + 'static, A: Message + Default + 'static>(
        &self,
        name: &'static str,
        ask: Q,
    ) -> Result<A, Status> {
        let mut grpc = Grpc::new(self.0.clone());
        grpc.ready().await.unwrap();
        let answer = grpc.unary(Request::new(ask), PathAndQuery::from_static(name), ProstCodec::default()).await?;
        Ok(answer.into_inner())
    }

    pub(crate) async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Status> {
        let (key, parent) = (key.to_owned(), parent.to_owned());
        let ask = Prepare { snapshotter: "penstock".into(), key, parent, labels };
        let answer: Mounts = self.call("/containerd.services.snapshots.v1.Snapshots/Prepare", ask).await?;
        Ok(answer.mounts)
    }

    pub(crate) async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let ask = Named { snapshotter: "penstock".into(), key: key.to_owned() };
        let answer: Mounts = self.call("/containerd.services.snapshots.v1.Snapshots/Mounts", ask).await?;
        Ok(answer.mounts)
    }

    pub(crate) async fn remove(&self, key: &str) -> Result<(), Status> {
        let ask = Named { snapshotter: "penstock".into(), key: key.to_owned() };
        let _: Empty = self.call("/containerd.services.snapshots.v1.Snapshots/Remove", ask).await?;
        Ok(())
    }

    /// Unpacks all layers of an image: each is prepared, and committed without files.
    pub(crate) async fn unpack(&self, image: &Image) {
        let mut parent = String::new();
        for (nth, chain) in image.chains.iter().enumerate() {
            let (key, name) = (format!("k8s.io/{nth}/extract {chain}"), format!("k8s.io/{nth}/{chain}"));
            self.prepare(&key, &parent, image.labels(nth)).await.unwrap();
            let (snapshotter, labels) = ("penstock".to_owned(), HashMap::new());
            let ask = Commit { snapshotter, name: name.clone(), key, labels };
            let _: Empty = self.call("/containerd.services.snapshots.v1.Snapshots/Commit", ask).await.unwrap();
            parent = name;
        }
    }

    /// Removes what [`Containerd::unpack`] made.
    pub(crate) async fn forget(&self, image: &Image) {
        for (nth, chain) in image.chains.iter().enumerate().rev() {
            self.remove(&format!("k8s.io/{nth}/{chain}")).await.unwrap();
        }
    }

    /// The committed snapshot of `chain` on `parent`, as containerd looks for it.
    pub(crate) async fn find(&self, chain: Digest, parent: &str) -> Option<String> {
        let filter = format!("labels.\"containerd.io/snapshot.ref\"=={chain},parent==\"{parent}\"");
        let ask = List { snapshotter: "penstock".into(), filters: vec![filter] };
        let mut grpc = Grpc::new(self.0.clone());
        grpc.ready().await.unwrap();
        let path = PathAndQuery::from_static("/containerd.services.snapshots.v1.Snapshots/List");
        let codec = ProstCodec::<List, Listed>::default();
        let mut answers = grpc.server_streaming(Request::new(ask), path, codec).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(answer) = answers.message().await.unwrap() {
            found.extend(answer.infos);
        }
        assert!(found.iter().all(|info| info.parent == parent), "the filter was not respected: {found:?}");
        found.into_iter().next().map(|info| info.name)
    }

    /// Unpacks an image as containerd does: asks for each layer, the lowest first. Answers the names of the committed snapshots as far as they are
    /// lazy, and what the first other one is to be unpacked into.
    pub(crate) async fn pull(&self, image: &Image) -> (Vec<String>, Option<Vec<Mount>>) {
        let mut names: Vec<String> = Vec::new();
        for (depth, &chain) in image.chains.iter().enumerate() {
            let parent = names.last().cloned().unwrap_or_default();
            let key = format!("k8s.io/1/extract-{depth} {chain}");
            match self.prepare(&key, &parent, image.labels(depth)).await {
                Ok(mounts) => return (names, Some(mounts)),
                Err(status) => {
                    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
                    names.push(self.find(chain, &parent).await.expect("what exists is found"));
                }
            }
        }
        (names, None)
    }
}

/// An image as containerd knows it, and how its client labels its layers.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) reference: String,
    /// Only CRI names it.
    pub(crate) manifest: Option<Digest>,
    pub(crate) layers: Vec<Digest>,
    pub(crate) chains: Vec<Digest>,
}

impl Image {
    pub(crate) fn labels(&self, depth: usize) -> HashMap<String, String> {
        let (reference, digest) = (self.reference.clone(), self.layers[depth].to_string());
        let mut labels = match self.manifest {
            Some(manifest) => HashMap::from([
                ("containerd.io/snapshot/cri.image-ref".to_owned(), reference),
                ("containerd.io/snapshot/cri.layer-digest".to_owned(), digest),
                ("containerd.io/snapshot/cri.manifest-digest".to_owned(), manifest.to_string()),
            ]),
            None => HashMap::from([
                ("containerd.io/snapshot/remote/stargz.reference".to_owned(), reference),
                ("containerd.io/snapshot/remote/stargz.digest".to_owned(), digest),
            ]),
        };
        labels.insert("containerd.io/snapshot.ref".to_owned(), self.chains[depth].to_string());
        labels
    }
}
