//! A containerd that keeps content, leases and names in memory, as far as it is asked here.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    pin::Pin,
    sync::Arc,
};

use futures_util::{Stream, StreamExt as _, stream};
use parking_lot::Mutex;
use penstock_blob::Digest;
use tokio::{net::UnixListener, task::JoinSet};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::super::proto::{
    content::{
        self, AbortRequest, InfoRequest, InfoResponse, ReadContentRequest, ReadContentResponse, UpdateRequest,
        UpdateResponse, WriteAction, WriteContentRequest, WriteContentResponse, content_server::ContentServer,
    },
    images::{self, images_server::ImagesServer},
    leases::{self, leases_server::LeasesServer},
};

type Labels = BTreeMap<String, String>;

/// All that it has.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) committed: Mutex<BTreeMap<String, (Vec<u8>, Labels)>>,
    /// Writes that are open, or broke off, by their reference.
    pub(super) writes: Mutex<BTreeMap<String, Vec<u8>>>,
    pub(super) leases: Mutex<BTreeSet<String>>,
    pub(super) images: Mutex<BTreeMap<String, String>>,
    /// References that were written under no lease that there was.
    pub(super) unleased: Mutex<Vec<String>>,
    /// Somebody else holds every write.
    pub(super) locked: Mutex<bool>,
}

pub(super) struct Fake {
    pub(super) state: Arc<State>,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Containerd(Arc<State>);

impl Fake {
    pub(super) fn start(socket: &Path) -> Self {
        let state = Arc::new(State::default());
        let listener = UnixListener::bind(socket).unwrap();
        let incoming =
            stream::poll_fn(move |cx| listener.poll_accept(cx).map(|taken| Some(taken.map(|(stream, _)| stream))));
        let containerd = Containerd(Arc::clone(&state));
        let serving = Server::builder()
            .add_service(ContentServer::new(containerd.clone()))
            .add_service(ImagesServer::new(containerd.clone()))
            .add_service(LeasesServer::new(containerd))
            .serve_with_incoming(incoming);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { serving.await.unwrap() });
        Self { state, _tasks: tasks }
    }
}

fn in_namespace<T>(request: &Request<T>) {
    assert_eq!(request.metadata().get("containerd-namespace").unwrap(), "k8s.io");
}

impl State {
    fn step(&self, name: &str, request: WriteContentRequest) -> Result<WriteContentResponse, Status> {
        let mut writes = self.writes.lock();
        let held = writes.entry(name.to_owned()).or_default();
        let offset = usize::try_from(request.offset).unwrap();
        if request.action() != WriteAction::Stat {
            if offset == 0 {
                held.clear();
            } else if offset != held.len() {
                return Err(Status::out_of_range("a write must occur at the current offset"));
            }
            held.extend_from_slice(&request.data);
        }
        let answer = WriteContentResponse {
            action: request.action,
            offset: i64::try_from(held.len()).unwrap(),
            ..WriteContentResponse::default()
        };
        if request.action() == WriteAction::Commit {
            if Digest::of(held).to_string() != request.expected {
                return Err(Status::failed_precondition("unexpected commit digest"));
            }
            let bytes = writes.remove(name).unwrap();
            self.committed.lock().insert(request.expected, (bytes, request.labels));
        }
        Ok(answer)
    }
}

#[tonic::async_trait]
impl content::content_server::Content for Containerd {
    type ReadStream = Pin<Box<dyn Stream<Item = Result<ReadContentResponse, Status>> + Send>>;
    type WriteStream = Pin<Box<dyn Stream<Item = Result<WriteContentResponse, Status>> + Send>>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        in_namespace(&request);
        let digest = request.into_inner().digest;
        let committed = self.0.committed.lock();
        let (bytes, labels) = committed.get(&digest).ok_or_else(|| Status::not_found("no such content"))?;
        let size = i64::try_from(bytes.len()).unwrap();
        let info = content::Info { digest, size, labels: labels.clone(), ..content::Info::default() };
        Ok(Response::new(InfoResponse { info: Some(info) }))
    }

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        in_namespace(&request);
        let ReadContentRequest { digest, offset, size } = request.into_inner();
        let committed = self.0.committed.lock();
        let (bytes, _) = committed.get(&digest).ok_or_else(|| Status::not_found("no such content"))?;
        let start = usize::try_from(offset).unwrap();
        let end = (start + usize::try_from(size).unwrap()).min(bytes.len());
        let answers: Vec<_> = bytes[start..end]
            .chunks(1 << 20)
            .map(|data| Ok(ReadContentResponse { offset, data: data.to_vec() }))
            .collect();
        Ok(Response::new(Box::pin(stream::iter(answers))))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        let UpdateRequest { info, update_mask } = request.into_inner();
        let (info, mask) = (info.unwrap(), update_mask.unwrap());
        let mut committed = self.0.committed.lock();
        let (_, labels) = committed.get_mut(&info.digest).unwrap();
        for path in mask.paths {
            let key = path.strip_prefix("labels.").unwrap();
            labels.insert(key.to_owned(), info.labels[key].clone());
        }
        Ok(Response::new(UpdateResponse { info: None }))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        in_namespace(&request);
        let lease = request.metadata().get("containerd-lease").map(|lease| lease.to_str().unwrap().to_owned());
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap();
        if *self.0.locked.lock() {
            return Err(Status::unavailable(format!("ref {} locked for 1s", first.r#ref)));
        }
        if self.0.committed.lock().contains_key(&first.expected) {
            return Err(Status::already_exists("content exists"));
        }
        if !lease.is_some_and(|lease| self.0.leases.lock().contains(&lease)) {
            self.0.unleased.lock().push(first.r#ref.clone());
        }
        let (name, state) = (first.r#ref.clone(), Arc::clone(&self.0));
        let first = stream::iter([state.step(&name, first)]);
        // Polled with the answers: a stream that is dropped writes nothing more.
        let rest = requests.map(move |request| state.step(&name, request?));
        Ok(Response::new(Box::pin(first.chain(rest))))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<()>, Status> {
        let name = request.into_inner().r#ref;
        self.0.writes.lock().remove(&name).ok_or_else(|| Status::not_found("no such write"))?;
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl images::images_server::Images for Containerd {
    async fn get(
        &self,
        request: Request<images::GetImageRequest>,
    ) -> Result<Response<images::GetImageResponse>, Status> {
        in_namespace(&request);
        let name = request.into_inner().name;
        let digest = self.0.images.lock().get(&name).cloned().ok_or_else(|| Status::not_found("no such image"))?;
        let target = images::Descriptor { digest, ..images::Descriptor::default() };
        let image = images::Image { name, target: Some(target), ..images::Image::default() };
        Ok(Response::new(images::GetImageResponse { image: Some(image) }))
    }

    async fn create(
        &self,
        request: Request<images::CreateImageRequest>,
    ) -> Result<Response<images::CreateImageResponse>, Status> {
        in_namespace(&request);
        let image = request.into_inner().image.unwrap();
        let mut all = self.0.images.lock();
        if all.contains_key(&image.name) {
            return Err(Status::already_exists("image exists"));
        }
        all.insert(image.name, image.target.unwrap().digest);
        Ok(Response::new(images::CreateImageResponse { image: None }))
    }
}

#[tonic::async_trait]
impl leases::leases_server::Leases for Containerd {
    async fn create(
        &self,
        request: Request<leases::CreateRequest>,
    ) -> Result<Response<leases::CreateResponse>, Status> {
        in_namespace(&request);
        let leases::CreateRequest { id, labels } = request.into_inner();
        assert!(labels.contains_key("containerd.io/gc.expire"));
        if !self.0.leases.lock().insert(id) {
            return Err(Status::already_exists("lease exists"));
        }
        Ok(Response::new(leases::CreateResponse { lease: None }))
    }

    async fn delete(&self, request: Request<leases::DeleteRequest>) -> Result<Response<()>, Status> {
        assert!(self.0.leases.lock().remove(&request.into_inner().id));
        Ok(Response::new(()))
    }

    async fn add_resource(&self, request: Request<leases::AddResourceRequest>) -> Result<Response<()>, Status> {
        assert!(self.0.leases.lock().contains(&request.into_inner().id));
        Ok(Response::new(()))
    }
}
