//! The image service of a real agent: the credentials of a pull reach a registry that asks for them, outlive the agent, go with the
//! image, and are written nowhere. containerd is a fake; the registry is real HTTP.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

use std::{
    convert::Infallible,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use penstock_agent::{Agent, Config, client::Client};
use penstock_fetcher::{Platform, Reference, ResolveError};
use penstock_registry::{Auth, Credentials, Registry};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
};

const SECRET: &str = "hunter2-and-more";
/// What containerd calls the image.
const ID: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// One field of a protobuf message that is bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn framed(message: &[u8]) -> Bytes {
    [&[0, 0, 0, 0, u8::try_from(message.len()).unwrap()], message].concat().into()
}

/// A containerd that pulls and removes what it is told, unless it is told to fail.
struct Containerd {
    fails: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl Containerd {
    fn start(socket: &Path) -> Self {
        let fails = Arc::new(AtomicBool::new(false));
        let (failing, listener, mut tasks) = (Arc::clone(&fails), UnixListener::bind(socket).unwrap(), JoinSet::new());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let failing = Arc::clone(&failing);
                let service = service_fn(move |request: Request<Incoming>| {
                    let failing = Arc::clone(&failing);
                    async move {
                        request.into_body().collect().await.unwrap();
                        let status = if failing.load(Ordering::SeqCst) { "2" } else { "0" };
                        let trailers = HeaderMap::from_iter([(
                            http::HeaderName::from_static("grpc-status"),
                            HeaderValue::from_static(status),
                        )]);
                        let body = Full::new(framed(&field(1, ID.as_bytes())));
                        Ok::<_, Infallible>(Response::new(body.with_trailers(std::future::ready(Some(Ok::<
                            _,
                            Infallible,
                        >(
                            trailers
                        ))))))
                    }
                });
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                connections.spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { fails, _tasks: tasks }
    }
}

/// What the kubelet calls.
async fn call(socket: &Path, method: &str, message: &[u8]) {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::post(format!("http://localhost/runtime.v1.ImageService/{method}"))
        .body(Full::new(framed(message)))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    answer.into_body().collect().await.unwrap();
}

async fn pull(socket: &Path, image: &str, password: &str) {
    let auth = [field(1, b"robot"), field(2, password.as_bytes())].concat();
    call(socket, "PullImage", &[field(1, &field(1, image.as_bytes())), field(2, &auth)].concat()).await;
}

async fn remove(socket: &Path, image: &str) {
    call(socket, "RemoveImage", &field(1, &field(1, image.as_bytes()))).await;
}

async fn registry() -> (Registry, Reference) {
    let auth = Auth::Basic(Credentials::new("robot", SECRET));
    let registry = Registry::start(penstock_registry::Config { auth, ..Default::default() }).await.unwrap();
    let layout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/overlaybd/oci-layout");
    let tags = registry.load_layout(&layout, "team/app").await.unwrap();
    let reference = format!("{}/team/app:{}", registry.host(), tags[0]).parse().unwrap();
    (registry, reference)
}

fn config(dir: &Path) -> Config {
    Config {
        transport: "fuse".parse().unwrap(),
        snapshotter_enable: true,
        images_containerd: dir.join("containerd.sock"),
        ..Config::in_dir(dir)
    }
}

async fn is_let_in(agent: &Agent, reference: &Reference) -> bool {
    match agent.fetcher().resolve(reference, &Platform::host()).await {
        Ok(_) => true,
        Err(ResolveError::Denied { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

fn kinds(agent: &[penstock_api::Event]) -> Vec<&str> {
    agent.iter().map(|event| event.kind.as_str()).filter(|kind| kind.starts_with("images.")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_a_pull_reach_the_registry_outlive_the_agent_and_go_with_the_image() {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        eprintln!("skipped: no file system in memory at /dev/shm");
        return;
    }
    let dir = tempfile::tempdir_in(memory).unwrap();
    let (_registry, reference) = registry().await;
    let containerd = Containerd::start(&dir.path().join("containerd.sock"));
    let agent = Agent::start(config(dir.path())).await.unwrap();
    let socket = agent.images().unwrap().to_path_buf();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!is_let_in(&agent, &reference).await);

    let image = reference.to_string();
    pull(&socket, &image, SECRET).await;
    assert!(is_let_in(&agent, &reference).await);
    // A pull that fails changes nothing.
    containerd.fails.store(true, Ordering::SeqCst);
    pull(&socket, &image, "wrong").await;
    assert!(is_let_in(&agent, &reference).await);
    containerd.fails.store(false, Ordering::SeqCst);
    agent.stop().await.unwrap();
    assert!(!socket.exists());

    let agent = Agent::start(config(dir.path())).await.unwrap();
    assert!(is_let_in(&agent, &reference).await, "after a restart");
    remove(&socket, ID).await;
    assert!(!is_let_in(&agent, &reference).await, "removed by its ID, as the kubelet does");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_credentials_from_being_used_or_containerd_from_answering_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(config(dir.path())).await.unwrap();
    let socket = agent.images().unwrap().to_path_buf();
    pull(&socket, "r.example/a:1", SECRET).await;
    pull(&socket, "not/A/reference", SECRET).await;
    let events = agent.node().events(0, 1000).await.unwrap().events;
    let mut told = kinds(&events);
    told.sort_unstable();
    assert_eq!(told, ["images.away", "images.credentials"]);
    assert!(events.iter().all(|event| !format!("{event:?}").contains(SECRET)));
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_snapshotter_there_is_no_image_service() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(Config { snapshotter_enable: false, ..config(dir.path()) }).await.unwrap();
    assert_eq!(agent.images(), None);
    assert!(!dir.path().join("images.sock").exists());
    agent.stop().await.unwrap();
}

/// Ends the agent, whatever becomes of the test.
struct Running(Child);

impl Running {
    fn end(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ended = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_appear_in_no_line_of_the_log_and_no_metric() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let (_registry, reference) = registry().await;
    let _containerd = Containerd::start(&root.join("containerd.sock"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_penstock"))
        .args(["agent", "--log-level", "trace", "--device-transport", "fuse", "--snapshotter-enable", "true"])
        .args(["--state-dir".as_ref(), root.join("state").as_os_str()])
        .args(["--socket".as_ref(), root.join("s").as_os_str()])
        .args(["--images-socket".as_ref(), root.join("i").as_os_str()])
        .args(["--images-containerd".as_ref(), root.join("containerd.sock").as_os_str()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut running = Running(child);
    let mut text = String::new();
    while !text.contains("is ready on") {
        assert!(log.read_line(&mut text).unwrap() > 0, "the agent did not start: {text}");
    }
    let reading = std::thread::spawn(move || {
        log.read_to_string(&mut text).unwrap();
        text
    });
    pull(&root.join("i"), &reference.to_string(), SECRET).await;
    let client = Client::new(root.join("s"));
    let events = client.events(0).await.unwrap();
    assert_eq!(kinds(&events.events), Vec::<&str>::new());
    running.end();
    let text = reading.join().unwrap();
    assert!(text.contains("the image service is forwarded"), "{text}");
    assert!(!text.contains(SECRET), "{text}");
}
