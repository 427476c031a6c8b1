//! The service on its socket: containerd's messages to calls and back.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{Stream, stream};
use tokio::net::{UnixListener, UnixStream};
use tonic::{Code, Request, Response, Status, transport::Server};

use crate::{
    error::SnapshotError,
    filter::Filters,
    metrics::Method,
    proto::services::snapshots::v1 as api,
    record::{Kind, Record, Stamp},
    snapshotter::{Commit, New, Snapshotter},
};

/// Snapshots in one message of a list: what containerd itself sends.
const BATCH: usize = 100;
/// Calls that one connection may have open at once; containerd has one connection.
const MAX_CALLS: usize = 1024;
/// How long to leave the kernel alone after it refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why serving ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[error("the snapshotter's socket failed: {source}")]
pub struct ServeError {
    #[from]
    source: tonic::transport::Error,
}

#[derive(Debug)]
struct Service(Arc<Snapshotter>);

impl Snapshotter {
    /// Answers containerd on `listener` until `stop`, then answers what was begun and closes. What earlier runs left behind is deleted meanwhile.
    ///
    /// # Errors
    ///
    /// The socket fails.
    pub async fn serve(
        self: Arc<Self>,
        listener: UnixListener,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        self.begin_collect();
        let service = api::snapshots_server::SnapshotsServer::new(Service(Arc::clone(&self)));
        let served = Server::builder()
            .concurrency_limit_per_connection(MAX_CALLS)
            .add_service(service)
            .serve_with_incoming_shutdown(incoming(listener), stop)
            .await;
        self.close().await;
        Ok(served?)
    }
}

/// Connections as they come. What the kernel refuses, such as a file descriptor too many, is tried again.
fn incoming(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(stream), listener)),
                Err(error) => {
                    tracing::warn!(%error, "a connection of containerd could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Counts a call when it is over, also when its client was gone before.
struct Counting<'a> {
    snapshotter: &'a Snapshotter,
    method: Method,
    begun: Instant,
    code: Code,
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.snapshotter.metrics.answered(self.method, self.code, self.begun.elapsed().as_secs_f64());
    }
}

impl Service {
    /// Counts a call and how long it took.
    async fn counted<T>(
        &self,
        method: Method,
        call: impl Future<Output = Result<T, SnapshotError>>,
    ) -> Result<Response<T>, Status> {
        let mut counting = Counting { snapshotter: &self.0, method, begun: Instant::now(), code: Code::Cancelled };
        let outcome = call.await;
        let code = outcome.as_ref().map_or_else(code, |_| Code::Ok);
        counting.code = code;
        drop(counting);
        outcome.map(Response::new).map_err(|error| {
            if matches!(code, Code::Internal | Code::Unavailable) {
                tracing::warn!(?method, %error, "containerd's call failed");
            }
            Status::new(code, error.to_string())
        })
    }
}

/// gRPC's name of a code, as its documents write it.
pub(crate) const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// What containerd hears for an error.
const fn code(error: &SnapshotError) -> Code {
    match error {
        SnapshotError::NotFound { .. } => Code::NotFound,
        SnapshotError::Exists { .. } => Code::AlreadyExists,
        SnapshotError::Precondition { .. } => Code::FailedPrecondition,
        SnapshotError::Invalid { .. } => Code::InvalidArgument,
        SnapshotError::Unavailable { .. } => Code::Unavailable,
        SnapshotError::Internal { .. } => Code::Internal,
    }
}

/// A time as containerd's messages carry it.
fn timestamp(stamp: Stamp) -> prost_types::Timestamp {
    let (seconds, nanos) = stamp.parts();
    prost_types::Timestamp {
        seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
        nanos: i32::try_from(nanos).unwrap_or(0),
    }
}

/// As containerd's messages write that there is none.
fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

impl From<&Record> for api::Info {
    fn from(record: &Record) -> Self {
        let kind = match record.kind {
            Kind::View => api::Kind::View,
            Kind::Active => api::Kind::Active,
            Kind::Committed => api::Kind::Committed,
        };
        Self {
            name: record.name.clone(),
            parent: record.parent.clone().unwrap_or_default(),
            kind: kind.into(),
            created_at: Some(timestamp(record.created)),
            updated_at: Some(timestamp(record.updated)),
            labels: record.labels.clone(),
        }
    }
}

type Batches = Pin<Box<dyn Stream<Item = Result<api::ListSnapshotsResponse, Status>> + Send>>;

/// What passes, a batch at a time: nothing is held between two.
fn batches(snapshotter: Arc<Snapshotter>, filters: Filters) -> Batches {
    let state = Some((snapshotter, filters, None::<String>));
    Box::pin(stream::unfold(state, |state| async {
        let (snapshotter, filters, after) = state?;
        let (page, next) = snapshotter.page(after.as_deref(), &filters, BATCH);
        let info: Vec<api::Info> = page.iter().map(|record| api::Info::from(&**record)).collect();
        let more = next.map(|next| (snapshotter, filters, Some(next)));
        (!info.is_empty()).then_some((Ok(api::ListSnapshotsResponse { info }), more))
    }))
}

#[tonic::async_trait]
impl api::snapshots_server::Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Result<Response<api::PrepareSnapshotResponse>, Status> {
        let request = request.into_inner();
        let new = New { kind: Kind::Active, key: request.key, parent: some(request.parent), labels: request.labels };
        let call = async { Ok(api::PrepareSnapshotResponse { mounts: self.0.prepare(new).await? }) };
        self.counted(Method::Prepare, call).await
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Result<Response<api::ViewSnapshotResponse>, Status> {
        let request = request.into_inner();
        let new = New { kind: Kind::View, key: request.key, parent: some(request.parent), labels: request.labels };
        let call = async { Ok(api::ViewSnapshotResponse { mounts: self.0.prepare(new).await? }) };
        self.counted(Method::View, call).await
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Result<Response<api::MountsResponse>, Status> {
        let call = async { Ok(api::MountsResponse { mounts: self.0.mounts(request.into_inner().key).await? }) };
        self.counted(Method::Mounts, call).await
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let commit =
            Commit { name: request.name, key: request.key, parent: some(request.parent), labels: request.labels };
        self.counted(Method::Commit, self.0.commit(commit)).await
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        self.counted(Method::Remove, self.0.remove(request.into_inner().key)).await
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Result<Response<api::StatSnapshotResponse>, Status> {
        let call = async {
            let record = self.0.stat(&request.into_inner().key)?;
            Ok(api::StatSnapshotResponse { info: Some(api::Info::from(&*record)) })
        };
        self.counted(Method::Stat, call).await
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Result<Response<api::UpdateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let paths = request.update_mask.unwrap_or_default().paths;
        let call = async {
            let info = request.info.ok_or_else(|| SnapshotError::invalid("an update needs a snapshot"))?;
            let record = self.0.update(info.name, info.labels, paths).await?;
            Ok(api::UpdateSnapshotResponse { info: Some(api::Info::from(&record)) })
        };
        self.counted(Method::Update, call).await
    }

    type ListStream = Batches;

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Result<Response<Batches>, Status> {
        let call = async {
            let filters = Filters::parse(&request.into_inner().filters);
            let filters = filters.map_err(|error| SnapshotError::invalid(error.to_string()))?;
            Ok(batches(Arc::clone(&self.0), filters))
        };
        self.counted(Method::List, call).await
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Result<Response<api::UsageResponse>, Status> {
        let call = async {
            let usage = self.0.usage(request.into_inner().key).await?;
            Ok(api::UsageResponse {
                size: i64::try_from(usage.size_bytes).unwrap_or(i64::MAX),
                inodes: i64::try_from(usage.inodes).unwrap_or(i64::MAX),
            })
        };
        self.counted(Method::Usage, call).await
    }

    async fn cleanup(&self, _: Request<api::CleanupRequest>) -> Result<Response<()>, Status> {
        let call = async { self.0.cleanup().await.map(drop) };
        self.counted(Method::Cleanup, call).await
    }
}
