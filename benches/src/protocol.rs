//! HTTP/2 over one connection against HTTP/1.1 over several: the same agent, image and link, over TLS.
//!
//! Debian's nginx stands before the registry of this process, and speaks HTTP/2 or does not; the agent takes what it offers. Between the two stands a link
//! in this process: bytes of either direction arrive half a latency later, all connections together get the set bandwidth towards the agent, and a
//! new connection waits a latency, as TCP does, before its first bytes leave. A round trip of TLS, and what shares a connection with
//! what, is so part of the result, as it is not where a registry waits before each answer.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use penstock_agent::{
    Agent, Config,
    client::Client,
    output::{Table, size},
};
use penstock_registry::Registry;
use penstock_tests::{
    nginx::{Front, Nginx},
    tls::Authority,
};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::sleep_until,
};

use crate::{
    cold,
    containerd::image,
    pack::Link,
    report::{Measured, time},
    sample::{Durations, Sample},
    start,
};

/// Bytes that the link takes at once from a connection, and pieces of that size under way for each connection: more than its latency holds.
const PIECE: usize = 16 << 10;
const PIECES: usize = 1024;
/// How much unused time the link may catch up on: a timer that is late by a millisecond must not slow a single connection down.
const BURST: Duration = Duration::from_millis(5);
/// A step of reading in order.
const STEP: usize = 1 << 20;

/// What one protocol did.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name.
    pub protocol: &'static str,
    /// A cold start: from the attach to the end of the program.
    pub started: Sample,
    /// Connections, requests and body bytes of one start, on average.
    pub connections: u64,
    /// Requests that the registry answered.
    pub requests: u64,
    /// Body bytes that it sent.
    pub fetched_bytes: u64,
    /// The whole device read in order, a MiB at a time, nothing of it cached.
    pub in_order: Sample,
    /// Body bytes in a second meanwhile, at the median.
    pub in_order_bytes_per_second: f64,
}

impl Measured for Vec<Row> {
    const NAME: &'static str = "protocol";

    fn tables(&self) -> String {
        let titles = [
            "PROTOCOL",
            ">N",
            ">COLD START",
            ">P99",
            ">CONNECTIONS",
            ">REQUESTS",
            ">FETCHED",
            ">IN ORDER",
            ">P99",
            ">MB/S",
        ];
        let mut table = Table::new(&titles);
        for row in self {
            table.row([
                row.protocol.to_owned(),
                row.started.n.to_string(),
                time(row.started.median_seconds),
                time(row.started.p99_seconds),
                row.connections.to_string(),
                row.requests.to_string(),
                size(row.fetched_bytes),
                time(row.in_order.median_seconds),
                time(row.in_order.p99_seconds),
                format!("{:.1}", row.in_order_bytes_per_second / 1e6),
            ]);
        }
        table.to_string()
    }
}

/// Why this cannot be measured here; `None` when it can.
#[must_use]
pub fn obstacle() -> Option<String> {
    let is_missing = |name: &&str| std::process::Command::new(name).arg("-h").output().is_err();
    let program = || ["nginx", "openssl"].iter().copied().find(is_missing);
    start::obstacle().map(str::to_owned).or_else(|| program().map(|name| format!("there is no {name}; install it")))
}

/// One protocol while it is measured.
#[derive(Debug)]
struct Side {
    name: &'static str,
    _nginx: Nginx,
    /// Where the link to it begins.
    host: String,
    connections: Arc<AtomicU64>,
    started: Durations,
    in_order: Durations,
    opened: u64,
    requests: u64,
    fetched_bytes: u64,
    in_order_bytes: u64,
}

/// Measures both protocols, `n` starts and `n` reads in order of each, in turns, of an image with about `size_bytes` of files.
///
/// # Errors
/// When anything fails.
pub async fn run(dir: &Path, (size_bytes, link): (u64, Link), n: u64) -> anyhow::Result<Vec<Row>> {
    let registry = Registry::start(penstock_registry::Config::default()).await?;
    image::make(&dir.join("image"), size_bytes, &registry).await?;
    let authority = Authority::new(dir.join("authority"));
    let mut links = JoinSet::new();
    let mut sides = Vec::new();
    for (name, file, http2) in [("HTTP/1.1", "http1", false), ("HTTP/2", "http2", true)] {
        let front = Front { tls: Some(authority.issue(file)), http2, ..Front::default() };
        let nginx = Nginx::start(dir.join(file), &registry.host(), &front);
        sides.push(Side::new(name, nginx, link, &mut links).await?);
    }
    for _ in 0..n {
        for side in &mut sides {
            for what in [What::Start, What::InOrder] {
                let place = tempfile::tempdir_in(dir)?;
                side.trust(place.path(), &authority.bundle())?;
                let agent = Agent::start(Config::in_dir(place.path())).await?;
                let measured = side.measure(&registry, &agent, place.path(), what).await;
                // Whatever happened, nothing stays mounted.
                agent.stop_for_good().await?;
                measured?;
                place.close()?;
            }
        }
    }
    links.shutdown().await;
    registry.stop().await;
    Ok(sides.iter().map(Side::row).collect())
}

/// What is measured of one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Start,
    InOrder,
}

impl Side {
    async fn new(name: &'static str, nginx: Nginx, link: Link, links: &mut JoinSet<()>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let host = listener.local_addr()?.to_string();
        let connections = Arc::new(AtomicU64::new(0));
        links.spawn(shape(listener, nginx.host().parse()?, link, Arc::clone(&connections)));
        Ok(Self {
            name,
            _nginx: nginx,
            host,
            connections,
            started: Durations::new()?,
            in_order: Durations::new()?,
            opened: 0,
            requests: 0,
            fetched_bytes: 0,
            in_order_bytes: 0,
        })
    }

    /// Has the agent in `place` trust whom the authority signed.
    fn trust(&self, place: &Path, authority: &Path) -> anyhow::Result<()> {
        let dir = place.join("certs.d").join(&self.host);
        fs::create_dir_all(&dir)?;
        let text = format!("server = \"https://{}\"\nca = \"{}\"\n", self.host, authority.display());
        Ok(fs::write(dir.join("hosts.toml"), text)?)
    }

    async fn measure(&mut self, registry: &Registry, agent: &Agent, place: &Path, what: What) -> anyhow::Result<()> {
        let client = Client::new(agent.socket().to_owned());
        registry.reset_counts();
        let (before, began) = (self.connections.load(Ordering::Relaxed), Instant::now());
        let device = match what {
            What::Start => {
                let root = place.join("mounted");
                fs::create_dir(&root)?;
                let device = cold::attach(&self.host, &client, &root).await?;
                cold::program(&root).await?;
                self.started.add(began.elapsed());
                self.opened += self.connections.load(Ordering::Relaxed) - before;
                let counts = registry.counts();
                self.requests += counts.requests;
                self.fetched_bytes += counts.bytes;
                device
            }
            What::InOrder => {
                let request = serde_json::json!({ "reference": cold::reference(&self.host) });
                let device = client.attach(&serde_json::from_value(request)?).await?;
                let path = device.device_path.context("the device has no path")?;
                // It is served by this process: never on a thread that serves it.
                tokio::task::spawn_blocking(move || in_order(&path)).await??;
                self.in_order.add(began.elapsed());
                self.in_order_bytes += registry.counts().bytes;
                device.id
            }
        };
        Ok(client.detach(&device, false).await?)
    }

    fn row(&self) -> Row {
        let (started, in_order) = (self.started.sample(), self.in_order.sample());
        let n = started.n.max(1);
        let in_order_bytes_per_second = (self.in_order_bytes / n) as f64 / in_order.median_seconds;
        Row {
            protocol: self.name,
            started,
            connections: self.opened / n,
            requests: self.requests / n,
            fetched_bytes: self.fetched_bytes / n,
            in_order,
            in_order_bytes_per_second,
        }
    }
}

fn in_order(path: &Path) -> std::io::Result<()> {
    let (mut device, mut step) = (fs::File::open(path)?, vec![0; STEP]);
    while std::io::Read::read(&mut device, &mut step)? > 0 {}
    Ok(())
}

/// The link: every connection is led to the server, late and within the bandwidth.
async fn shape(listener: TcpListener, server: SocketAddr, link: Link, connections: Arc<AtomicU64>) {
    let half = Duration::from_secs_f64(link.latency_seconds / 2.0);
    let free_at = Arc::new(Mutex::new(tokio::time::Instant::now()));
    let mut tasks = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::Relaxed);
        let Ok(far) = TcpStream::connect(server).await else { return };
        if near.set_nodelay(true).and_then(|()| far.set_nodelay(true)).is_err() {
            continue;
        }
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        let rate = Some((link.bandwidth_bytes_per_second, Arc::clone(&free_at)));
        let shaken = tokio::time::Instant::now() + 2 * half;
        for (from, to, (earliest, rate)) in [(near_in, far_out, (shaken, None)), (far_in, near_out, (shaken, rate))] {
            let (sender, receiver) = mpsc::channel(PIECES);
            tasks.spawn(take(from, (half, earliest, rate), sender));
            tasks.spawn(deliver(receiver, to));
        }
        while tasks.try_join_next().is_some() {}
    }
}

/// One direction of one connection: what was read, and when it arrives.
type Piece = (tokio::time::Instant, Vec<u8>);

/// A bandwidth, and when the link is free.
type Rate = Option<(u64, Arc<Mutex<tokio::time::Instant>>)>;

/// Takes what a side sends onto the link, from `earliest` on.
async fn take(
    mut from: OwnedReadHalf,
    (half, earliest, rate): (Duration, tokio::time::Instant, Rate),
    to: mpsc::Sender<Piece>,
) {
    sleep_until(earliest).await;
    loop {
        let mut piece = vec![0; PIECE];
        let Ok(len) = from.read(&mut piece).await else { return };
        piece.truncate(len);
        if piece.is_empty() {
            return;
        }
        let mut leaves = tokio::time::Instant::now();
        if let Some((bytes_per_second, free_at)) = &rate {
            let mut free_at = free_at.lock().await;
            let earliest = leaves.checked_sub(BURST).unwrap_or(leaves);
            leaves = earliest.max(*free_at) + Duration::from_nanos(len as u64 * 1_000_000_000 / bytes_per_second);
            *free_at = leaves;
            drop(free_at);
            // What has not left is not taken from the server either: its connections share the link, and do not queue in it without end.
            sleep_until(leaves).await;
        }
        if to.send((leaves + half, piece)).await.is_err() {
            return;
        }
    }
}

/// Gives the other side what arrives.
async fn deliver(mut from: mpsc::Receiver<Piece>, mut to: OwnedWriteHalf) {
    while let Some((at, piece)) = from.recv().await {
        sleep_until(at).await;
        if to.write_all(&piece).await.is_err() {
            return;
        }
    }
}
