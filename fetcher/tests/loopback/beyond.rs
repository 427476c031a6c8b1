//! What an endpoint is told and where it may lead us: headers, namespaces, trust, redirects, token servers.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use penstock_blob::{Blob, BlobSource as _, Digest, Purpose, ReadError};
use penstock_fetcher::{Config, Event, Platform, Reference, ResolveError};
use penstock_registry::{Fault, Kind, Rule, Target};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

use crate::{
    mirrors::{Mirrored, host},
    support::{config, content, fetcher, range, registry},
    tls::{file, front},
};

/// A server that answers each request as a function says, and keeps the heads.
struct Script {
    host: String,
    heads: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Script {
    async fn new(answer: impl Fn(&str) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let kept = heads.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_gone) => break,
                    }
                }
                let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
                let reply = answer(&head);
                kept.lock().push(head);
                let reply = format!("HTTP/1.1 {reply}\r\nconnection: close\r\n\r\n");
                let _gone = stream.write_all(reply.as_bytes()).await;
            }
        });
        Self { host, heads, _tasks: tasks }
    }

    /// Redirects everything.
    async fn to(address: &'static str) -> Self {
        Self::new(move |_| format!("307 Temporary Redirect\r\nlocation: {address}\r\ncontent-length: 0")).await
    }

    fn reference(&self) -> Reference {
        format!("{}/team/app:1", self.host).parse().unwrap()
    }
}

fn some_blob() -> Blob {
    Blob { digest: Digest::of(b"blob"), size_bytes: 1000 }
}

/// What a read at the script ends with.
async fn read_error(script: &Script, config: Config) -> String {
    let fetcher = fetcher(config);
    fetcher.serve(some_blob(), &script.reference());
    fetcher.read(some_blob(), range(0, 10), Purpose::Demand).await.unwrap_err().to_string()
}

#[tokio::test]
async fn redirects_to_metadata_services_are_refused_by_address_and_by_name() {
    let known: BTreeMap<_, _> = [(
        "meta.example".to_owned(),
        vec!["169.254.169.254".parse().unwrap(), "::ffff:169.254.169.254".parse().unwrap()],
    )]
    .into_iter()
    .collect();
    for address in [
        "https://169.254.169.254/latest/meta-data",
        "https://[fe80::1]/x",
        "https://[fd00:ec2::254]/x",
        "https://[::ffff:a9fe:a9fe]/x",
        "https://meta.example/x",
    ] {
        let script = Script::to(address).await;
        let error = read_error(&script, Config { known_names: known.clone(), ..config() }).await;
        assert!(error.contains("redirects_allowed"), "{address}: {error}");
    }
}

#[tokio::test]
async fn a_token_server_at_a_metadata_service_is_not_asked() {
    let script = Script::new(|_| {
        "401 Unauthorized\r\nwww-authenticate: Bearer realm=\"https://169.254.169.254/token\"\r\ncontent-length: 0"
            .to_owned()
    })
    .await;
    let error = read_error(&script, config()).await;
    assert!(error.contains("redirects_allowed"), "{error}");
}

#[tokio::test]
async fn a_mirror_is_told_the_namespace_and_its_headers_and_nobody_beyond_it_is() {
    let beyond = Script::new(|_| "404 Not Found\r\ncontent-length: 0".to_owned()).await;
    let location = format!("http://{}/store", beyond.host);
    let mirror =
        Script::new(move |_| format!("307 Temporary Redirect\r\nlocation: {location}\r\ncontent-length: 0")).await;
    let scene = Mirrored::new(0, config()).await;
    let bytes = content(1000, 1);
    let blob = scene.origin.put_blob(bytes.clone());
    scene.fetcher.serve(blob, &scene.from());
    scene.write(&format!(
        "[host.\"http://{}\".header]\nx-key = [\"one\", \"two\"]\nauthorization = \"Basic abc\"\n",
        mirror.host
    ));
    assert_eq!(scene.fetcher.read(blob, range(0, 10), Purpose::Demand).await.unwrap(), bytes.slice(0..10));
    let ns = format!("?ns={} http/1.1", scene.origin.host().replace(':', "%3a"));
    let (told, beyond) = (mirror.heads.lock()[0].clone(), beyond.heads.lock()[0].clone());
    assert!(told.contains(&ns) && told.contains("x-key: one\r\nx-key: two\r\n"), "{told}");
    assert!(told.contains("authorization: basic abc"), "{told}");
    assert!(!beyond.contains("x-key") && !beyond.contains("authorization") && !beyond.contains("ns="), "{beyond}");
    assert_eq!(scene.origin.counts().requests, 1, "and then the origin was asked");
}

#[tokio::test]
async fn tls_settings_of_a_host_hold_for_that_host() {
    let scene = Mirrored::new(1, config()).await;
    let bytes = content(1000, 1);
    let blob = scene.mirrors[0].put_blob(bytes.clone());
    scene.fetcher.serve(blob, &scene.from());
    let (host, _front) = front(scene.mirrors[0].host()).await;
    let ca = file("ca.pem");
    let read = async || scene.fetcher.read(blob, range(0, 10), Purpose::Demand).await;
    scene.write(&format!("[host.\"https://{host}\"]\n"));
    let error = read().await.unwrap_err();
    assert!(matches!(error, ReadError::Unavailable { .. } | ReadError::NotFound { .. }), "{error}");
    assert_eq!(scene.mirrors[0].counts().requests, 0, "nothing is sent without trust");
    for fields in [format!("ca = {ca:?}"), format!("ca = [{ca:?}]"), "skip_verify = true".to_owned()] {
        scene.write(&format!("[host.\"https://{host}\"]\n{fields}\n"));
        assert_eq!(read().await.unwrap(), bytes.slice(0..10), "{fields}");
    }
}

#[tokio::test]
async fn what_a_tag_names_is_only_asked_of_those_who_may_say() {
    let mut scene = Mirrored::new(2, config()).await;
    let image = penstock_registry::Artifact::default();
    for registry in scene.mirrors.iter().chain([&scene.origin]) {
        registry.put_image("team/app", "1", image.clone()).unwrap();
    }
    let platform = Platform::host();
    scene.write(&[host(&scene.mirrors[0], "capabilities = [\"pull\"]"), host(&scene.mirrors[1], "")].concat());
    let asked = |scene: &Mirrored| {
        let mirrors: Vec<_> = scene.mirrors.iter().map(|mirror| mirror.counts().manifest_requests).collect();
        (mirrors, scene.origin.counts().manifest_requests)
    };
    let manifest = scene.fetcher.resolve(&scene.from(), &platform).await.unwrap();
    assert_eq!(asked(&scene), (vec![0, 1], 0));
    let pinned = scene.from().with_digest(manifest.digest);
    scene.fetcher.resolve(&pinned, &platform).await.unwrap();
    assert_eq!(asked(&scene), (vec![1, 1], 0), "a digest says itself what it names");
    scene.mirrors[1].fail(Rule::from(Fault::Status(503)).on(Target::Kind(Kind::Manifest)));
    scene.fetcher.resolve(&scene.from(), &platform).await.unwrap();
    assert_eq!(asked(&scene), (vec![1, 2], 1), "the server is asked when a mirror fails");
    scene.mirrors[0].fail(Rule::from(Fault::WrongBytes).on(Target::Kind(Kind::Manifest)));
    scene.fetcher.resolve(&pinned, &platform).await.unwrap();
    let name = scene.mirrors[0].host();
    let said = scene.said();
    assert!(matches!(&said[..], [Event::WrongBytes { endpoint, .. }] if *endpoint == name), "{said:?}");
}

#[tokio::test]
async fn a_host_that_does_not_exist_ends_an_attach_in_three_tries() {
    let known = [("mistyped.example".to_owned(), Vec::new())].into_iter().collect();
    let fetcher = fetcher(Config { known_names: known, ..config() });
    let from: Reference = "mistyped.example/a/b:1".parse().unwrap();
    let error = fetcher.resolve(&from, &Platform::host()).await.unwrap_err();
    assert!(
        matches!(&error, ResolveError::Unavailable { reason, .. } if reason.contains("no host named mistyped.example")),
        "not the deadline: {error}"
    );
    assert_eq!(fetcher.fetched().failures, 3);
}

#[tokio::test]
async fn a_default_directory_holds_for_every_registry_and_endpoints_share_their_health() {
    let mirror = registry(penstock_registry::Config::default()).await;
    let certs = tempfile::tempdir().unwrap();
    std::fs::create_dir(certs.path().join("_default")).unwrap();
    std::fs::write(certs.path().join("_default/hosts.toml"), host(&mirror, "")).unwrap();
    let fetcher = fetcher(Config { hosts_dirs: vec![certs.path().to_owned()], ..config() });
    let bytes = content(1000, 1);
    let blob = mirror.put_blob(bytes.clone());
    for from in ["a.example/x:1", "b.example/x:1"] {
        fetcher.serve(blob, &from.parse().unwrap());
    }
    assert_eq!(fetcher.read(blob, range(0, 10), Purpose::Demand).await.unwrap(), bytes.slice(0..10));
    let all = fetcher.registries();
    assert_eq!(all.iter().map(|r| r.registry.as_str()).collect::<Vec<_>>(), ["a.example", "b.example"]);
    assert!(all.iter().all(|registry| registry.endpoints[0].fetched.requests == 1));
}
