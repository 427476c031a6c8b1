//! Asking a running containerd which one it is, and how its snapshotters fare: two calls of its gRPC services, over its socket.
//!
//! The messages have those fields of containerd's that are read here (api/services/version/v1/version.proto,
//! api/services/introspection/v1/introspection.proto, google/rpc/status.proto).

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tower::service_fn;

/// Longest time for an answer; containerd gives these from memory.
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct VersionResponse {
    #[prost(string, tag = "1")]
    version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PluginsRequest {
    /// All of one filter must hold.
    #[prost(string, repeated, tag = "1")]
    filters: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PluginsResponse {
    #[prost(message, repeated, tag = "1")]
    plugins: Vec<Plugin>,
}

/// A plugin of containerd.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Plugin {
    /// Its name among those of its kind.
    #[prost(string, tag = "2")]
    pub(crate) id: String,
    /// Why it does not work.
    #[prost(message, optional, tag = "7")]
    pub(crate) failure: Option<Status>,
}

/// What `google.rpc.Status` says.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Status {
    /// In words.
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

/// What the containerd behind `socket` calls itself.
///
/// # Errors
/// The reason, in words.
pub(crate) async fn version(socket: &Path) -> Result<String, String> {
    let answer: VersionResponse = call(socket, "/containerd.services.version.v1.Version/Version", Empty {}).await?;
    Ok(answer.version)
}

/// The snapshotters of the containerd behind `socket`.
///
/// # Errors
/// The reason, in words.
pub(crate) async fn snapshotters(socket: &Path) -> Result<Vec<Plugin>, String> {
    let filters = vec!["type==io.containerd.snapshotter.v1".to_owned()];
    let path = "/containerd.services.introspection.v1.Introspection/Plugins";
    let answer: PluginsResponse = call(socket, path, PluginsRequest { filters }).await?;
    Ok(answer.plugins)
}

async fn call<Q, A>(socket: &Path, path: &'static str, request: Q) -> Result<A, String>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let calling = async {
        let mut client = Grpc::new(connect(socket).await?);
        client.ready().await.map_err(|error| error.to_string())?;
        let path = PathAndQuery::from_static(path);
        let answer = client.unary(Request::new(request), path, ProstCodec::<Q, A>::default()).await;
        answer.map(tonic::Response::into_inner).map_err(|status| status.message().to_owned())
    };
    let late = |_| format!("no answer within {} s", DEADLINE.as_secs());
    tokio::time::timeout(DEADLINE, Box::pin(calling)).await.map_err(late)?
}

async fn connect(socket: &Path) -> Result<Channel, String> {
    // The first connection is made here, so that its reason is the system's own word.
    let first = UnixStream::connect(socket).await.map_err(|error| error.to_string())?;
    let (path, mut first) = (PathBuf::from(socket), Some(first));
    let connector = service_fn(move |_| {
        let (path, first) = (path.clone(), first.take());
        async move {
            match first {
                Some(stream) => Ok(TokioIo::new(stream)),
                None => UnixStream::connect(path).await.map(TokioIo::new),
            }
        }
    });
    // containerd refuses an authority that is a path.
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(connector).await.map_err(|error| error.to_string())
}
