//! A containerd that does what the path of a call says, and a client that shows every frame.

use std::{
    future::Future,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::SendRequest,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Notify, mpsc},
    task::JoinSet,
};

type Boxed = UnsyncBoxBody<Bytes, h2::Error>;

/// What a call brought.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// What the fake does and saw.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) seen: Mutex<Vec<Seen>>,
    /// What `PullImage` and `RemoveImage` answer: a message, or a status.
    pub(super) answer: Mutex<Option<Result<Vec<u8>, &'static str>>>,
    /// A call of `/x/Hang` has come; it was given up.
    pub(super) hanging: Notify,
    pub(super) given_up: Notify,
    /// Bytes that `/x/Flood` has sent.
    pub(super) flooded: AtomicU64,
}

/// A containerd behind a socket, until it is dropped.
pub(super) struct Fake {
    pub(super) script: Arc<Script>,
    _tasks: JoinSet<()>,
}

struct GivenUp(Arc<Script>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.given_up.notify_one();
    }
}

pub(super) fn trailers(status: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    if status != "0" {
        trailers.insert("grpc-message", HeaderValue::from_static("it%20failed"));
        trailers.insert("grpc-status-details-bin", HeaderValue::from_static("CAUSEWRldGFpbHM"));
    }
    trailers
}

fn frames(frames: Vec<Frame<Bytes>>) -> Boxed {
    StreamBody::new(stream::iter(frames.into_iter().map(Ok))).boxed_unsync()
}

fn grpc(body: Boxed) -> Response<Boxed> {
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response.headers_mut().insert("x-head-bin", HeaderValue::from_static("AAEC"));
    response
}

impl Fake {
    pub(super) fn start(socket: &Path) -> Self {
        let script = Arc::new(Script::default());
        let listener = UnixListener::bind(socket).unwrap();
        let mut tasks = JoinSet::new();
        let served = Arc::clone(&script);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let script = Arc::clone(&served);
                let service = service_fn(move |request| answer(Arc::clone(&script), request));
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let connection = builder
                    .clone()
                    .max_header_list_size(1 << 20)
                    .auto_date_header(false)
                    .serve_connection(TokioIo::new(stream), service);
                connections.spawn(connection);
            }
        });
        Self { script, _tasks: tasks }
    }
}

async fn answer(script: Arc<Script>, request: Request<Incoming>) -> Result<Response<Boxed>, h2::Error> {
    let path = request.uri().path().to_owned();
    let (head, body) = request.into_parts();
    match path.as_str() {
        "/x/Hang" => {
            let _given_up = GivenUp(Arc::clone(&script));
            script.hanging.notify_one();
            std::future::pending().await
        }
        "/x/Reset" => Err(h2::Reason::ENHANCE_YOUR_CALM.into()),
        "/x/Relay" => {
            // Each message is answered as it comes.
            let body = body.into_data_stream().map(|data| Ok(Frame::data(data.unwrap())));
            Ok(grpc(StreamBody::new(body.chain(stream::iter([Ok(Frame::trailers(trailers("0")))]))).boxed_unsync()))
        }
        "/x/Flood" => {
            let piece = Bytes::from(vec![7; 64 << 10]);
            let flood = stream::repeat_with(move || {
                script.flooded.fetch_add(piece.len() as u64, Ordering::Relaxed);
                Ok(Frame::data(piece.clone()))
            });
            Ok(grpc(StreamBody::new(flood).boxed_unsync()))
        }
        "/x/Fail" => Ok(grpc(frames(vec![Frame::data(Bytes::from_static(b"some")), Frame::trailers(trailers("5"))]))),
        "/x/FailAtOnce" => {
            let mut response = grpc(frames(Vec::new()));
            response.headers_mut().extend(trailers("12"));
            Ok(response)
        }
        _ => {
            let body = body.collect().await.unwrap().to_bytes().to_vec();
            script.seen.lock().push(Seen { path, headers: head.headers, body: body.clone() });
            let (message, status) = match script.answer.lock().clone() {
                None => (Some(body), "0"),
                Some(Ok(message)) => (Some(message), "0"),
                Some(Err(status)) => (None, status),
            };
            let data = message.map(|message| Frame::data(Bytes::from(message)));
            Ok(grpc(frames(data.into_iter().chain([Frame::trailers(trailers(status))]).collect())))
        }
    }
}

/// A client of the proxy.
pub(super) struct Client {
    sender: SendRequest<Boxed>,
    _driver: JoinSet<()>,
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(super) fn status(&self) -> (&str, &str) {
        let from = self.trailers.as_ref().unwrap_or(&self.headers);
        let text = |name| from.get(name).map_or("", |value| value.to_str().unwrap());
        (text("grpc-status"), text("grpc-message"))
    }
}

pub(super) fn request(path: &str) -> http::request::Builder {
    Request::post(format!("http://localhost{path}")).header("content-type", "application/grpc").header("te", "trailers")
}

impl Client {
    pub(super) async fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).await.unwrap();
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (sender, connection) = builder.max_header_list_size(1 << 20).handshake(TokioIo::new(stream)).await.unwrap();
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            let _ended = connection.await;
        });
        Self { sender, _driver: driver }
    }

    /// Sends a request; its body is what `body` gives.
    pub(super) fn open(
        &self,
        request: Request<Boxed>,
    ) -> impl Future<Output = Result<Response<Incoming>, hyper::Error>> + use<> {
        self.sender.clone().send_request(request)
    }

    /// One request with one message and its whole answer.
    pub(super) async fn call(&self, path: &str, message: &[u8]) -> Answer {
        let body = Full::new(Bytes::copy_from_slice(message)).map_err(|never| match never {}).boxed_unsync();
        whole(self.open(request(path).body(body).unwrap()).await.unwrap()).await.unwrap()
    }
}

/// A body to which frames can be sent.
pub(super) fn piped() -> (mpsc::Sender<Bytes>, Boxed) {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(1);
    let frames = stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data)))));
    (sender, StreamBody::new(frames).boxed_unsync())
}

pub(super) async fn whole(response: Response<Incoming>) -> Result<Answer, hyper::Error> {
    let (head, body) = response.into_parts();
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned();
    Ok(Answer { headers: head.headers, body: collected.to_bytes().to_vec(), trailers })
}
