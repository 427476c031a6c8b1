//! The admin API's listeners over real sockets: who is let in, how much is taken from whom, and what a client that misbehaves gets.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use penstock_agent::{Agent, Config, StartError, socket::SocketError};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const OTHER: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

fn pem(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

/// A directory with secrets in it, as their owner keeps them.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn config(&self) -> Config {
        Config {
            transport: "fuse".parse().unwrap(),
            listen: Some("127.0.0.1:0".parse().unwrap()),
            ..Config::in_dir(self.dir.path())
        }
    }

    /// Replaces a secret at once, as one must.
    fn secret(&self, name: &str, content: &[u8]) -> PathBuf {
        let (path, fresh) = (self.dir.path().join(name), self.dir.path().join("fresh"));
        fs::write(&fresh, content).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&fresh, &path).unwrap();
        path
    }

    fn with_token(&self) -> Config {
        Config { api_token_file: Some(self.secret("token", TOKEN.as_bytes())), ..self.config() }
    }

    fn with_tls(&self, config: Config) -> Config {
        let api_tls_key = Some(self.secret("server.key", &fs::read(pem("server.key")).unwrap()));
        Config {
            api_tls_cert: Some(self.secret("server.pem", &fs::read(pem("server.pem")).unwrap())),
            api_tls_key,
            ..config
        }
    }
}

/// What came back: everything up to the end of the connection.
#[derive(Debug)]
struct Reply(String);

impl Reply {
    fn status(&self) -> u16 {
        self.0.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    fn header(&self, name: &str) -> Option<&str> {
        let head = self.0.split("\r\n\r\n").next()?;
        head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn problem(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.0);
        serde_json::from_str(self.0.split("\r\n\r\n").nth(1).unwrap()).unwrap()
    }

    fn kind(&self) -> String {
        self.problem()["type"].as_str().unwrap().replace("urn:penstock:problem:", "")
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Reply {
    // A server that has refused already may be gone before it has read all of it.
    let _sent = stream.write_all(request.as_bytes()).await;
    let mut bytes = Vec::new();
    let _ended = stream.read_to_end(&mut bytes).await;
    Reply(String::from_utf8(bytes).unwrap())
}

fn request(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n")
}

async fn ask(address: SocketAddr, request: &str) -> Reply {
    exchange(TcpStream::connect(address).await.unwrap(), request).await
}

fn bearer(token: &str) -> String {
    request("GET", "/v1/devices", &format!("authorization: Bearer {token}\r\n"))
}

/// A client that trusts `ca`, and shows `certificate` when it has one.
fn client(ca: &str, certificate: Option<&str>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pem(ca)).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let config = match certificate {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let chain = vec![CertificateDer::from_pem_file(pem(&format!("{name}.pem"))).unwrap()];
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(pem(&format!("{name}.key"))).unwrap())
                .unwrap()
        }
    };
    Arc::new(config).into()
}

/// The answer over TLS, or why there is none: in TLS 1.3 a client hears of a refused certificate when it reads.
async fn ask_tls(address: SocketAddr, tls: &TlsConnector, request: &str) -> Result<Reply, String> {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = tls.connect(name, stream).await.map_err(|error| error.to_string())?;
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.map_err(|error| error.to_string())?;
    Ok(Reply(String::from_utf8(bytes).unwrap()))
}

async fn kinds(agent: &Agent) -> Vec<String> {
    agent.node().events(0, 1000).await.unwrap().events.into_iter().map(|event| event.kind).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_the_whole_api_and_nothing_else_opens_any_of_it() {
    let bench = Bench::new();
    let agent = Agent::start(bench.with_token()).await.unwrap();
    let address = agent.listening().unwrap();
    assert_eq!(ask(address, &bearer(TOKEN)).await.status(), 200);
    let change = request("DELETE", "/v1/devices", &format!("Authorization: bearer {TOKEN}\r\n"));
    assert_eq!(ask(address, &change).await.status(), 200, "with a token changes are taken too");

    let basic = request("GET", "/v1/devices", &format!("authorization: Basic {TOKEN}\r\n"));
    let refused = [request("GET", "/v1/devices", ""), bearer(OTHER), bearer(&TOKEN[1..]), bearer(""), basic];
    let mut bodies = std::collections::BTreeSet::new();
    for request in refused {
        let reply = ask(address, &request).await;
        assert_eq!((reply.status(), reply.kind().as_str()), (401, "unauthenticated"), "{request}");
        assert!(reply.header("www-authenticate").unwrap().starts_with("Bearer"));
        assert_eq!(reply.problem()["instance"], "/v1/devices");
        bodies.insert(reply.problem().to_string());
    }
    assert_eq!(bodies.len(), 1, "every failure gets the same answer");
    for path in ["/healthz", "/metrics", "/v1/version", "/none"] {
        assert_eq!(ask(address, &request("GET", path, "")).await.status(), 401, "{path}");
    }
    let page = ask(address, &request("GET", "/", "")).await;
    assert_eq!(page.status(), 200, "the page is the same for everybody, and has to ask for what it shows");
    assert_eq!(ask(address, &request("POST", "/", "")).await.status(), 401);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_token_file_counts_at_the_next_request() {
    let bench = Bench::new();
    let agent = Agent::start(bench.with_token()).await.unwrap();
    let address = agent.listening().unwrap();
    bench.secret("token", OTHER.as_bytes());
    assert_eq!(ask(address, &bearer(TOKEN)).await.status(), 401);
    assert_eq!(ask(address, &bearer(OTHER)).await.status(), 200);
    fs::set_permissions(bench.dir.path().join("token"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(ask(address, &bearer(OTHER)).await.status(), 401, "a file that others can read lets nobody in");
    let kinds = kinds(&agent).await;
    assert!(kinds.contains(&"api.reloaded".into()) && kinds.contains(&"api.reload_failed".into()), "{kinds:?}");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_is_shut_out_and_said_once() {
    let bench = Bench::new();
    let agent = Agent::start(bench.with_token()).await.unwrap();
    let address = agent.listening().unwrap();
    let mut statuses = Vec::new();
    for _ in 0..12 {
        statuses.push(ask(address, &bearer(OTHER)).await.status());
    }
    assert_eq!(statuses[..10], [401; 10]);
    let shut_out = ask(address, &bearer(TOKEN)).await;
    assert_eq!(shut_out.status(), 429, "the right token is not looked at either: {statuses:?}");
    assert!(shut_out.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    let told = kinds(&agent).await.into_iter().filter(|kind| kind == "api.refused").count();
    assert_eq!(told, 1);
    let metrics = agent.node().metrics().await.unwrap();
    let line = "penstock_api_refused_total{listener=\"Tcp\",reason=\"Unauthenticated\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_authentication_tcp_only_shows_and_only_to_who_means_this_node() {
    let bench = Bench::new();
    let agent = Agent::start(bench.config()).await.unwrap();
    let address = agent.listening().unwrap();
    assert_eq!(ask(address, &request("GET", "/v1/devices", "")).await.status(), 200);
    assert_eq!(ask(address, &request("DELETE", "/v1/devices", "")).await.kind(), "read-only");
    for host in ["evil.example", "127.0.0.1.evil.example:80"] {
        let rebound = format!("GET /v1/devices HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        assert_eq!(ask(address, &rebound).await.kind(), "misdirected", "{host}");
    }
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_all_could_command_does_not_start() {
    let bench = Bench::new();
    let open: Option<SocketAddr> = Some("0.0.0.0:0".parse().unwrap());
    let cases = [
        (Config { listen: open, ..bench.config() }, "api.token_file"),
        (Config { listen: open, ..bench.with_token() }, "api.tls_cert"),
        (Config { listen: open, ..bench.with_tls(bench.config()) }, "api.token_file"),
    ];
    for (config, says) in cases {
        let error = Agent::start(config).await.unwrap_err();
        assert!(matches!(&error, StartError::Socket(SocketError::Unsafe(_))), "{error:?}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(!bench.dir.path().join("penstock.sock").exists(), "nothing listens");
    }
    let both = Config { listen: open, ..bench.with_tls(bench.with_token()) };
    Agent::start(both).await.unwrap().stop().await.unwrap();
    let readable = bench.with_token();
    fs::set_permissions(bench.dir.path().join("token"), fs::Permissions::from_mode(0o644)).unwrap();
    let error = Agent::start(readable).await.unwrap_err();
    assert!(error.to_string().contains("0644") && error.to_string().contains("chmod"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_opens_the_api_and_a_strangers_does_not() {
    let bench = Bench::new();
    let config = Config { api_client_ca: Some(pem("ca.pem")), ..bench.with_tls(bench.config()) };
    let agent = Agent::start(config).await.unwrap();
    let address = agent.listening().unwrap();
    let devices = request("GET", "/v1/devices", "");
    assert_eq!(ask_tls(address, &client("ca.pem", Some("client")), &devices).await.unwrap().status(), 200);
    for stranger in [None, Some("stranger"), Some("server")] {
        let outcome = ask_tls(address, &client("ca.pem", stranger), &devices).await;
        assert!(outcome.is_err(), "{stranger:?} got {:?}", outcome.map(|reply| reply.0));
    }
    let distrustful = ask_tls(address, &client("other-ca.pem", Some("client")), &devices).await;
    assert!(distrustful.unwrap_err().contains("certificate"));
    let plain = ask(address, &devices).await;
    assert_eq!(plain.status(), 0, "nothing is answered without TLS: {}", plain.0);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_both_configured_either_a_token_or_a_certificate_is_enough() {
    let bench = Bench::new();
    let config = Config { api_client_ca: Some(pem("ca.pem")), ..bench.with_tls(bench.with_token()) };
    let agent = Agent::start(config).await.unwrap();
    let address = agent.listening().unwrap();
    let devices = request("GET", "/v1/devices", "");
    assert_eq!(ask_tls(address, &client("ca.pem", Some("client")), &devices).await.unwrap().status(), 200);
    assert_eq!(ask_tls(address, &client("ca.pem", None), &bearer(TOKEN)).await.unwrap().status(), 200);
    assert_eq!(ask_tls(address, &client("ca.pem", None), &devices).await.unwrap().status(), 401);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_certificate_is_shown_at_the_next_connection_and_half_of_one_is_not() {
    let bench = Bench::new();
    let agent = Agent::start(bench.with_tls(bench.with_token())).await.unwrap();
    let address = agent.listening().unwrap();
    let shown = async || {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let tls = client("ca.pem", None).connect(name, stream).await.unwrap();
        tls.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let is = |name: &str| CertificateDer::from_pem_file(pem(name)).unwrap();
    assert_eq!(shown().await, is("server.pem"));
    bench.secret("server.pem", &fs::read(pem("server2.pem")).unwrap());
    assert_eq!(shown().await, is("server.pem"), "a certificate without its key is not taken over");
    bench.secret("server.key", &fs::read(pem("server2.key")).unwrap());
    assert_eq!(shown().await, is("server2.pem"));
    let kinds = kinds(&agent).await;
    assert_eq!(
        kinds.iter().filter(|kind| kind.starts_with("api.")).collect::<Vec<_>>(),
        ["api.reload_failed", "api.reloaded"]
    );
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_larger_than_is_read_is_refused() {
    let bench = Bench::new();
    let agent = Agent::start(bench.config()).await.unwrap();
    let address = agent.listening().unwrap();
    let long = |bytes: usize| "x".repeat(bytes);
    let many = (0..100).map(|n| format!("x-{n}: y\r\n")).collect::<String>();
    let body = format!("content-type: application/json\r\ncontent-length: 70000\r\n\r\n{}", long(70_000));
    let socket = agent.socket().to_owned();
    for (what, request, status) in [
        ("a path", request("GET", &format!("/v1/devices/{}", long(9_000)), ""), 414),
        ("a query", request("GET", &format!("/v1/events?since={}", long(9_000)), ""), 414),
        ("a header", request("GET", "/v1/devices", &format!("x: {}\r\n", long(40_000))), 431),
        ("many headers", request("GET", "/v1/devices", &many), 431),
        ("a body", format!("POST /v1/devices HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{body}"), 413),
    ] {
        let reply = exchange(UnixStream::connect(&socket).await.unwrap(), &request).await;
        assert_eq!(reply.status(), status, "{what}: {}", reply.0.lines().next().unwrap_or_default());
    }
    let reply = ask(address, &request("GET", "/v1/devices", "")).await;
    assert_eq!(reply.status(), 200, "the agent goes on");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_address_are_bounded_and_the_socket_is_not_affected() {
    let bench = Bench::new();
    let agent = Agent::start(bench.config()).await.unwrap();
    let address = agent.listening().unwrap();
    let mut idle = Vec::new();
    for _ in 0..32 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // An answer proves that the connection was taken; it is then kept.
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        assert_ne!(stream.read(&mut [0; 512]).await.unwrap(), 0);
        idle.push(stream);
    }
    let mut refused = TcpStream::connect(address).await.unwrap();
    let mut text = String::new();
    refused.read_to_string(&mut text).await.unwrap();
    assert_eq!(Reply(text).kind(), "too-many-requests");
    let devices = request("GET", "/v1/devices", "");
    let reply = exchange(UnixStream::connect(agent.socket()).await.unwrap(), &devices).await;
    assert_eq!(reply.status(), 200);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_one_address_are_bounded() {
    let bench = Bench::new();
    let agent = Agent::start(bench.config()).await.unwrap();
    let address = agent.listening().unwrap();
    // On one connection, all at once: faster than the rate by far.
    let all = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(999) + &request("GET", "/healthz", "");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut text = String::new();
    let (sent, read) = tokio::join!(writer.write_all(all.as_bytes()), reader.read_to_string(&mut text));
    sent.unwrap();
    read.unwrap();
    let (answered, refused) = (text.matches("HTTP/1.1 200").count(), text.matches("HTTP/1.1 429").count());
    assert_eq!(answered + refused, 1000);
    assert!((200..1000).contains(&answered), "{answered} were answered");
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_are_told_of_the_end_when_the_agent_stops() {
    let bench = Bench::new();
    let agent = Agent::start(bench.config()).await.unwrap();
    let mut stream = UnixStream::connect(agent.socket()).await.unwrap();
    let follow = request("GET", "/v1/events", "accept: text/event-stream\r\n");
    stream.write_all(follow.as_bytes()).await.unwrap();
    let mut seen = vec![0; 16];
    stream.read_exact(&mut seen).await.unwrap();
    let mut rest = String::new();
    let (stopped, read) = tokio::join!(agent.stop(), stream.read_to_string(&mut rest));
    stopped.unwrap();
    read.unwrap();
    assert!(rest.contains("\"kind\":\"agent.ready\"") && rest.contains("\"kind\":\"agent.draining\""), "{rest}");
    assert!(rest.contains("event: end"), "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_asks_an_agent_on_tcp_that_it_can_tell_from_another() {
    use penstock_agent::client::{Client, ClientError, Told};
    let bench = Bench::new();
    let config = Config { api_client_ca: Some(pem("ca.pem")), ..bench.with_tls(bench.with_token()) };
    let agent = Agent::start(config).await.unwrap();
    let url = format!("https://localhost:{}", agent.listening().unwrap().port());
    let told = Told { url, ca: Some(pem("ca.pem")), ..Told::default() };
    let with_file = Told { token_file: Some(bench.dir.path().join("token")), ..told.clone() };
    for client in [Client::on_tcp(&with_file, None), Client::on_tcp(&told, Some(TOKEN.to_owned()))] {
        assert!(client.unwrap().devices().await.unwrap().is_empty());
    }
    let key = Some(bench.secret("client.key", &fs::read(pem("client.key")).unwrap()));
    let with_cert = Told { cert: Some(pem("client.pem")), key, ..told.clone() };
    assert_eq!(Client::on_tcp(&with_cert, None).unwrap().version().await.unwrap().pid, std::process::id());
    let mut following = Client::on_tcp(&with_cert, None).unwrap().follow(0).await.unwrap();
    assert!(following.next().await.unwrap().is_some());

    let nobody = Client::on_tcp(&told, None).unwrap().devices().await.unwrap_err();
    assert!(matches!(&nobody, ClientError::Problem(problem) if problem.status == 401), "{nobody}");
    let distrustful = Told { ca: Some(pem("other-ca.pem")), ..with_file };
    let error = Client::on_tcp(&distrustful, None).unwrap().devices().await.unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains("--ca"), "{error}");
    assert!(!error.to_string().contains(TOKEN));
    agent.stop().await.unwrap();
}
