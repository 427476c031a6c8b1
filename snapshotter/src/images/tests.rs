//! The proxy between a real HTTP/2 client and a fake containerd, over unix sockets.

mod fake;

use std::{
    error::Error as _,
    future::pending,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::{
    net::{UnixListener, UnixStream, unix::UCred},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    Ended, Event, ImageProxy, Keyring, PullAuth, PullCredential,
    message::tests::{field, framed, request as pull_request},
};
use fake::{Client, Fake, piped, request, trailers, whole};

const PULL: &str = "/runtime.v1.ImageService/PullImage";
const REMOVE: &str = "/runtime.v1.ImageService/RemoveImage";

/// What a keyring was told, in order.
#[derive(Debug, Clone, PartialEq)]
enum Told {
    HandOver(String, Option<PullCredential>),
    Settle(u32, Ended),
    Withdraw(String),
}

#[derive(Debug, Default, Clone)]
struct Recorder {
    told: Arc<Mutex<Vec<Told>>>,
    /// How often it was told something.
    changed: watch::Sender<u32>,
}

impl Recorder {
    fn tell(&self, what: Told) {
        self.told.lock().push(what);
        self.changed.send_modify(|told| *told += 1);
    }

    /// Waits until something was told, and answers all of it.
    async fn until(&self, enough: impl Fn(&[Told]) -> bool) -> Vec<Told> {
        // Several may wait; and what is told between the look and the wait counts as a change.
        let mut changed = self.changed.subscribe();
        loop {
            let told = self.told.lock().clone();
            if enough(&told) {
                return told;
            }
            changed.changed().await.unwrap();
        }
    }
}

impl Keyring for Recorder {
    type Loan = u32;

    async fn hand_over(&self, image: &str, auth: &PullAuth) -> Option<u32> {
        self.tell(Told::HandOver(image.to_owned(), auth.credential(|_| true).unwrap()));
        Some(u32::try_from(self.told.lock().len()).unwrap())
    }

    async fn settle(&self, loan: u32, ended: Ended) {
        self.tell(Told::Settle(loan, ended));
    }

    async fn withdraw(&self, image: &str) {
        self.tell(Told::Withdraw(image.to_owned()));
    }
}

/// A proxy, and where its two ends are.
struct Setup {
    dir: tempfile::TempDir,
    keyring: Recorder,
    events: tokio::sync::broadcast::Receiver<Event>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    metrics: Registry,
}

impl Setup {
    fn new() -> Self {
        Self::for_users(|_| true)
    }

    fn for_users(admits: impl Fn(&UCred) -> bool + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (keyring, mut metrics, stop) = (Recorder::default(), Registry::default(), CancellationToken::new());
        let proxy = ImageProxy::new(dir.path().join("containerd"), keyring.clone(), &mut metrics);
        let (events, mut tasks) = (proxy.events(), JoinSet::new());
        let listener = UnixListener::bind(dir.path().join("images")).unwrap();
        tasks.spawn(proxy.serve(listener, admits, stop.clone()));
        Self { dir, keyring, events, stop, tasks, metrics }
    }

    fn containerd(&self) -> PathBuf {
        self.dir.path().join("containerd")
    }

    async fn client(&self) -> Client {
        Client::connect(&self.dir.path().join("images")).await
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        text
    }
}

fn robot() -> Vec<u8> {
    [field(1, b"robot"), field(2, b"hunter2")].concat()
}

fn sorted(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = headers.iter().map(|(k, v)| (k.to_string(), v.as_bytes().to_vec())).collect();
    all.sort();
    all
}

#[tokio::test]
async fn who_may_not_connect_is_turned_away_and_counted_whatever_the_mode_of_the_socket() {
    let own = rustix::process::geteuid().as_raw();
    let setup = Setup::for_users(move |peer| peer.uid() != own);
    let mut stream = UnixStream::connect(setup.dir.path().join("images")).await.unwrap();
    let mut answer = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await.unwrap();
    assert!(answer.is_empty(), "not even a greeting");
    assert!(setup.metrics().contains("strangers_total 1"), "{}", setup.metrics());
}

#[tokio::test]
async fn a_call_of_any_method_passes_untouched_with_its_metadata_and_trailers() {
    let setup = Setup::new();
    let fake = Fake::start(&setup.containerd());
    let client = setup.client().await;
    for path in ["/runtime.v1.ImageService/ListImages", "/some.other.v9.Service/Method", PULL] {
        let message = framed(&pull_request("r.example/a:1", &[]));
        let (sender, body) = piped();
        let sent = request(path)
            .header("grpc-timeout", "1500m")
            .header("x-some-bin", "AAECAw")
            .header("x-twice", "1")
            .header("x-twice", "2")
            .body(body)
            .unwrap();
        let expected = sorted(sent.headers());
        let opening = client.open(sent);
        // In two frames that are cut within the prefix.
        sender.send(Bytes::copy_from_slice(&message[..3])).await.unwrap();
        sender.send(Bytes::copy_from_slice(&message[3..])).await.unwrap();
        drop(sender);
        let answer = whole(opening.await.unwrap()).await.unwrap();
        let seen = fake.script.seen.lock().pop().unwrap();
        assert_eq!((seen.path.as_str(), &seen.body), (path, &message));
        assert_eq!(sorted(&seen.headers), expected, "nothing is added or taken away");
        assert_eq!(answer.body, message);
        let head = HeaderMap::from_iter([
            (http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
            (http::HeaderName::from_static("x-head-bin"), HeaderValue::from_static("AAEC")),
        ]);
        assert_eq!(sorted(&answer.headers), sorted(&head));
        assert_eq!(answer.trailers, Some(trailers("0")));
    }
    let metrics = setup.metrics();
    for line in ["requests_total{method=\"ListImages\"} 1", "requests_total{method=\"other\"} 1", "connections 1"] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn streams_pass_message_by_message_both_ways() {
    let setup = Setup::new();
    let _fake = Fake::start(&setup.containerd());
    let client = setup.client().await;
    let (sender, body) = piped();
    let opening = client.open(request("/x/Relay").body(body).unwrap());
    let mut answer = opening.await.unwrap().into_body();
    for n in 0..3_u8 {
        sender.send(Bytes::from(framed(&[n]))).await.unwrap();
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), framed(&[n]), "each comes before the next is sent");
    }
    drop(sender);
    assert_eq!(answer.frame().await.unwrap().unwrap().into_trailers().unwrap(), trailers("0"));
}

#[tokio::test]
async fn a_status_passes_with_its_text_and_details_from_wherever_it_stands() {
    let setup = Setup::new();
    let _fake = Fake::start(&setup.containerd());
    let client = setup.client().await;
    let failed = client.call("/x/Fail", b"").await;
    assert_eq!((failed.body.as_slice(), &failed.trailers), (&b"some"[..], &Some(trailers("5"))));
    let at_once = client.call("/x/FailAtOnce", b"").await;
    assert_eq!((at_once.status(), at_once.trailers.is_none()), (("12", "it%20failed"), true));
}

#[tokio::test]
async fn large_messages_pass_and_one_that_is_too_large_to_read_is_said_to_be_unread() {
    let mut setup = Setup::new();
    let fake = Fake::start(&setup.containerd());
    let client = setup.client().await;
    let large = framed(&pull_request("a", &field(1, &vec![b'u'; 17 << 20])));
    let answer = client.call("/runtime.v1.ImageService/ListImages", &large).await;
    assert!(answer.body == large, "both ways");
    *fake.script.answer.lock() = Some(Ok(framed(&field(1, b"sha256:1"))));
    assert_eq!(client.call(PULL, &large).await.status().0, "0");
    assert!(fake.script.seen.lock().iter().all(|seen| seen.body == large));
    assert!(matches!(setup.events.recv().await.unwrap(), Event::Unread { method: "PullImage", .. }));
    assert_eq!(*setup.keyring.told.lock(), []);
}

#[tokio::test]
async fn a_message_at_the_limit_is_read() {
    let setup = Setup::new();
    let _fake = Fake::start(&setup.containerd());
    let auth = |length: usize| [field(1, b"u"), field(9, &vec![0; length])].concat();
    let rest = pull_request("a", &auth(1 << 22)).len() - (1 << 22);
    let message = pull_request("a", &auth(super::MESSAGE_BYTES - rest));
    assert_eq!(message.len(), super::MESSAGE_BYTES);
    assert_eq!(setup.client().await.call(PULL, &framed(&message)).await.status().0, "0");
    assert!(matches!(&setup.keyring.told.lock()[0], Told::HandOver(image, Some(_)) if image == "a"));
}

#[tokio::test]
async fn a_slow_reader_holds_its_sender_back_and_nobody_elses_call() {
    let setup = Setup::new();
    let fake = Fake::start(&setup.containerd());
    let (slow, other) = (setup.client().await, setup.client().await);
    let flood = slow.open(request("/x/Flood").body(piped().1).unwrap()).await.unwrap();
    for _ in 0..200 {
        other.call("/runtime.v1.ImageService/ListImages", &framed(b"x")).await;
    }
    // The windows of three HTTP/2 connections, and hyper's buffers.
    assert!(fake.script.flooded.load(Ordering::Relaxed) < 32 << 20);
    drop(flood);
}

#[tokio::test]
async fn a_call_that_its_client_gives_up_is_given_up_at_containerd() {
    let setup = Setup::new();
    let fake = Fake::start(&setup.containerd());
    let client = setup.client().await;
    let calling = client.open(request("/x/Hang").body(piped().1).unwrap());
    tokio::select! {
        _ = calling => panic!("it hangs"),
        () = fake.script.hanging.notified() => {}
    }
    fake.script.given_up.notified().await;
}

#[tokio::test]
async fn a_call_that_containerd_resets_is_reset_with_the_same_reason() {
    let setup = Setup::new();
    let _fake = Fake::start(&setup.containerd());
    let error = setup.client().await.open(request("/x/Reset").body(piped().1).unwrap()).await.unwrap_err();
    let reason = error.source().unwrap().downcast_ref::<h2::Error>().unwrap().reason();
    assert_eq!(reason, Some(h2::Reason::ENHANCE_YOUR_CALM));
}

#[tokio::test]
async fn without_containerd_calls_are_unavailable_and_go_on_once_it_is_back() {
    let mut setup = Setup::new();
    let client = setup.client().await;
    let list = "/runtime.v1.ImageService/ListImages";
    for _ in 0..2 {
        let away = client.call(list, &framed(b"x")).await;
        let (status, text) = away.status();
        assert_eq!(status, "14");
        assert!(text.contains("start containerd") && text.contains("images.containerd"), "{text}");
    }
    for _ in 0..2 {
        let fake = Fake::start(&setup.containerd());
        assert_eq!(client.call(list, &framed(b"x")).await.status().0, "0", "on the same connection");
        drop(fake);
        std::fs::remove_file(setup.containerd()).unwrap();
        let away = client.call(list, &framed(b"x")).await;
        assert_eq!(away.status().0, "14", "{away:?}");
    }
    assert!(matches!(setup.events.recv().await.unwrap(), Event::Away { .. }), "said once");
    assert_eq!(setup.events.recv().await.unwrap(), Event::Back);
    assert!(setup.metrics().contains("unavailable_total 4"));
}

#[tokio::test]
async fn a_call_that_loses_containerd_on_its_way_ends_as_unavailable() {
    let setup = Setup::new();
    let fake = Fake::start(&setup.containerd());
    let client = setup.client().await;
    let (sender, body) = piped();
    let opening = client.open(request("/x/Relay").body(body).unwrap());
    let mut answer = opening.await.unwrap().into_body();
    sender.send(Bytes::from(framed(b"1"))).await.unwrap();
    answer.frame().await.unwrap().unwrap().into_data().unwrap();
    drop(fake);
    let ended = answer.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(ended["grpc-status"], "14");
    assert!(ended["grpc-message"].to_str().unwrap().contains("was lost during the call"));
}

#[tokio::test]
async fn credentials_are_in_use_before_containerd_hears_of_the_pull_and_stay_when_it_went_well() {
    let setup = Setup::new();
    let fake = Fake::start(&setup.containerd());
    *fake.script.answer.lock() = Some(Ok(framed(&field(1, b"sha256:1d"))));
    let client = setup.client().await;
    let answer = client.call(PULL, &framed(&pull_request("r.example/a:1", &robot()))).await;
    assert_eq!((answer.status().0, &answer.body), ("0", &framed(&field(1, b"sha256:1d"))));
    let told = setup.keyring.told.lock().clone();
    let [Told::HandOver(image, Some(PullCredential::Password { user, password })), settled] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!((image.as_str(), user.as_str(), password.as_str()), ("r.example/a:1", "robot", "hunter2"));
    assert_eq!(*settled, Told::Settle(1, Ended::Pulled { id: Some("sha256:1d".to_owned()) }));
    // Nobody's credentials: nothing is handed over.
    client.call(PULL, &framed(&pull_request("r.example/b:1", &[]))).await;
    assert_eq!(setup.keyring.told.lock().len(), 2);
    assert!(setup.metrics().contains("credentials_heard_total 1"));
}

#[tokio::test]
async fn what_was_handed_over_for_a_pull_that_fails_or_is_given_up_is_put_back() {
    let setup = Setup::new();
    let message = framed(&pull_request("r.example/a:1", &robot()));
    let client = setup.client().await;
    assert_eq!(client.call(PULL, &message).await.status().0, "14");
    let fake = Fake::start(&setup.containerd());
    *fake.script.answer.lock() = Some(Err("16"));
    assert_eq!(client.call(PULL, &message).await.status(), ("16", "it%20failed"));
    // The client goes away while containerd waits for the end of the request.
    let (sender, body) = piped();
    let opening = client.open(request(PULL).body(body).unwrap());
    let given_up = async {
        sender.send(Bytes::from(message)).await.unwrap();
        setup.keyring.until(|told| told.len() == 5).await
    };
    tokio::select! {
        _ = opening => panic!("nobody answers"),
        _told = given_up => {}
    }
    let told = setup.keyring.until(|told| told.len() == 6).await;
    let settled: Vec<_> = told.iter().filter(|told| matches!(told, Told::Settle(..))).collect();
    let failed = |n| Told::Settle(n, Ended::Failed);
    assert_eq!(settled, [&failed(1), &failed(3), &failed(5)]);
}

#[tokio::test]
async fn credentials_are_withdrawn_with_the_image_but_not_when_it_stays() {
    let setup = Setup::new();
    let fake = Fake::start(&setup.containerd());
    let client = setup.client().await;
    let message = framed(&pull_request("sha256:1d", &[]));
    *fake.script.answer.lock() = Some(Err("9"));
    client.call(REMOVE, &message).await;
    assert_eq!(*setup.keyring.told.lock(), []);
    *fake.script.answer.lock() = Some(Ok(framed(b"")));
    client.call(REMOVE, &message).await;
    assert_eq!(*setup.keyring.told.lock(), [Told::Withdraw("sha256:1d".to_owned())]);
}

#[tokio::test]
async fn a_request_that_nobody_can_read_is_forwarded_all_the_same() {
    let mut setup = Setup::new();
    let fake = Fake::start(&setup.containerd());
    let client = setup.client().await;
    let mut compressed = framed(b"gzip, say");
    compressed[0] = 1;
    for message in [compressed, framed(&[0xff]), b"\0\0".to_vec(), Vec::new()] {
        for path in [PULL, REMOVE] {
            assert_eq!(client.call(path, &message).await.body, message);
            let told = setup.events.recv().await.unwrap();
            assert!(matches!(&told, Event::Unread { .. }), "{told}");
            assert_eq!(fake.script.seen.lock().pop().unwrap().body, message);
        }
    }
    assert_eq!(*setup.keyring.told.lock(), []);
}

#[tokio::test]
async fn stopping_ends_calls_and_settles_what_they_handed_over() {
    let mut setup = Setup::new();
    let fake = Fake::start(&setup.containerd());
    let client = setup.client().await;
    let (sender, body) = piped();
    let opening = client.open(request(PULL).body(body).unwrap());
    let asked = async {
        sender.send(Bytes::from(framed(&pull_request("r.example/a:1", &robot())))).await.unwrap();
        setup.keyring.until(|told| !told.is_empty()).await;
        pending::<()>().await;
    };
    let mut calling = Box::pin(async {
        tokio::select! {
            answered = opening => answered.map(drop),
            () = asked => Ok(()),
        }
    });
    tokio::select! {
        _ = &mut calling => panic!("nobody answers"),
        _ = setup.keyring.until(|told| !told.is_empty()) => {}
    }
    setup.stop.cancel();
    setup.tasks.join_next().await.unwrap().unwrap();
    assert_eq!(setup.keyring.told.lock().last(), Some(&Told::Settle(1, Ended::Failed)));
    let answered: Result<(), hyper::Error> = calling.await;
    assert!(answered.is_err());
    drop(fake);
}

#[test]
fn no_secret_is_shown_by_what_can_be_printed() {
    let auth = super::message::pull(&pull_request("a", &robot())).unwrap();
    assert!(!format!("{auth:?}").contains("hunter2"));
}
