//! Connections: taken one by one, as many as there is room for, and ended when they stall.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use penstock_api::{PROBLEM_JSON, Problem, ProblemKind};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::OwnedSemaphorePermit,
    task::JoinSet,
    time::Sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    count::{Counted, Reason},
    door::{Access, Caller, Door},
    peers::{PeerId, Seat},
};
use crate::socket;

/// How long the head of a request may take, from the end of the answer before it: bounds both who sends it byte by byte and who keeps a
/// connection that they do not use.
pub(super) const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// How long a TLS handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a client may take no byte of an answer.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// The most bytes of a request's head, and of the buffer that it is read into. The longest path that is taken fits twice.
pub(super) const HEAD_BYTES: usize = 16 << 10;

/// The most headers of a request: browsers send about twenty.
pub(super) const HEADERS: usize = 64;

/// How long nothing is accepted after the system could not: until a connection ends, at the longest.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Where connections come from.
#[derive(Debug)]
pub(super) enum Listener {
    /// The unix socket.
    Unix(UnixListener),
    /// The TCP address.
    Tcp(TcpListener),
}

/// A connection that was just taken.
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// What a connection holds for as long as it lasts.
#[expect(dead_code, reason = "held only to be given back")]
struct Held(OwnedSemaphorePermit, Seat, Counted);

impl Listener {
    async fn accept(&self) -> io::Result<(Stream, PeerId)> {
        match self {
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let id = PeerId::User(stream.peer_cred()?.uid());
                Ok((Stream::Unix(stream), id))
            }
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are small and complete: nothing is won by waiting for more.
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), PeerId::address(address.ip())))
            }
        }
    }
}

/// Takes connections until `stop`, lets those there are end their requests, and returns when the last has ended.
pub(super) async fn serve(listener: Listener, door: Arc<Door>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, id)) => match door.admit(id) {
                Ok(held) => drop(connections.spawn(Arc::clone(&door).run(stream, id, held, stop.clone()))),
                Err(reason) => {
                    door.counts.refuse(reason);
                    if door.tls.is_none() {
                        turn_away(
                            &stream,
                            ProblemKind::TooManyRequests,
                            "as many connections as the agent takes are open",
                        );
                    }
                }
            },
            // A client that has gone already; or no more file descriptors, which the end of a connection gives back.
            Err(error) => {
                tracing::debug!(%error, "a connection to the admin API was not accepted");
                let _paused = tokio::time::timeout(ACCEPT_PAUSE, connections.join_next()).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Answers on a connection that is not served, as far as the kernel takes the bytes at once.
fn turn_away(stream: &Stream, kind: ProblemKind, detail: &str) {
    let problem = Problem::new(kind, detail);
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let head = format!("HTTP/1.1 {} {}\r\ncontent-type: {PROBLEM_JSON}", problem.status, problem.title);
    let answer = format!("{head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    // Courtesy: who does not hear it sees the connection end.
    let _sent = match stream {
        Stream::Unix(stream) => stream.try_write(answer.as_bytes()),
        Stream::Tcp(stream) => stream.try_write(answer.as_bytes()),
    };
}

impl Door {
    fn admit(&self, id: PeerId) -> Result<Held, Reason> {
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| Reason::Full)?;
        let seat = self.peers.connect(id, Instant::now()).ok_or(Reason::PeerFull)?;
        Ok(Held(room, seat, self.counts.connect()))
    }

    /// Serves one connection to its end.
    async fn run(self: Arc<Self>, stream: Stream, id: PeerId, held: Held, stop: CancellationToken) {
        let caller = Caller { id, has_certificate: false };
        match stream {
            Stream::Unix(unix) => {
                let Access::Owner { group } = self.access else { return };
                if !unix.peer_cred().is_ok_and(|cred| socket::may_use(&cred, group)) {
                    self.counts.refuse(Reason::Stranger);
                    let detail =
                        "this user may not use the agent's socket; the agent's own user, root and socket_group may";
                    return turn_away(&Stream::Unix(unix), ProblemKind::Unauthenticated, detail);
                }
                self.talk(unix, caller, stop).await;
            }
            Stream::Tcp(tcp) if self.tls.is_some() => self.handshake(tcp, caller, stop).await,
            Stream::Tcp(tcp) => self.talk(tcp, caller, stop).await,
        }
        drop(held);
    }

    async fn handshake(self: Arc<Self>, tcp: TcpStream, caller: Caller, stop: CancellationToken) {
        if self.peers.shut_out(caller.id, Instant::now()).is_some() {
            return self.counts.refuse(Reason::ShutOut);
        }
        let door = Arc::clone(&self);
        // Its files may have to be read again.
        let config = tokio::task::spawn_blocking(move || door.tls.as_ref().map(super::tls::Tls::current)).await;
        let Ok(Some(config)) = config else { return };
        let accepting = TlsAcceptor::from(config).accept(tcp);
        let tls = match tokio::time::timeout(HANDSHAKE_DEADLINE, Box::pin(accepting)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                self.counts.refuse(Reason::Handshake);
                // A connection that only looks whether somebody listens is no failure.
                if error.kind() == io::ErrorKind::InvalidData {
                    self.failed(caller.id, &format!("the TLS handshake failed, {error}"));
                }
                return;
            }
            Err(_) => return self.counts.refuse(Reason::Handshake),
        };
        let has_certificate = tls.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
        self.talk(tls, Caller { has_certificate, ..caller }, stop).await;
    }

    async fn talk<T>(self: Arc<Self>, stream: T, caller: Caller, stop: CancellationToken)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(move |request| {
            let door = Arc::clone(&self);
            async move { Ok::<_, std::convert::Infallible>(door.answer(caller, request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .max_headers(HEADERS)
            .max_header_size(HEAD_BYTES)
            .max_buf_size(HEAD_BYTES * 2)
            .serve_connection(TokioIo::new(Unstalled { stream, stalled: None }), service);
        let mut connection = pin!(connection);
        let outcome = tokio::select! {
            outcome = &mut connection => outcome,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(peer = %caller.id, %error, "a connection to the admin API ended early");
        }
    }
}

/// A stream whose writes fail when the other side takes nothing for [`WRITE_DEADLINE`].
struct Unstalled<T> {
    stream: T,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<T: Unpin> Unstalled<T> {
    fn bounded<R>(
        &mut self,
        cx: &mut Context<'_>,
        act: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if let Poll::Ready(done) = act(Pin::new(&mut self.stream), cx) {
            self.stalled = None;
            return Poll::Ready(done);
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_DEADLINE)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Unstalled<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Unstalled<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.bounded(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.bounded(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.bounded(cx, |stream, cx| stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing};
    use prometheus_client::registry::Registry;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::Semaphore,
    };

    use super::{
        super::{
            TCP_LIMITS,
            count::{Metrics, Name},
            peers::Peers,
        },
        *,
    };
    use crate::events::Events;

    fn door() -> Arc<Door> {
        Arc::new(Door {
            access: Access::Reading,
            tls: None,
            peers: Arc::new(Peers::new(TCP_LIMITS)),
            room: Arc::new(Semaphore::new(1)),
            router: Router::new().route("/", routing::get(|| async { "ok" })),
            counts: Metrics::new(&mut Registry::default()).of(Name::Tcp),
            events: Events::new(),
        })
    }

    /// A client that sends `bytes` and then nothing: what it gets, and after how long the connection ends.
    async fn silent_after(bytes: &[u8]) -> (String, Duration) {
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        let caller = Caller { id: PeerId::User(7), has_certificate: false };
        let mut tasks = JoinSet::new();
        tasks.spawn(door().talk(ours, caller, CancellationToken::new()));
        let started = tokio::time::Instant::now();
        theirs.write_all(bytes).await.unwrap();
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).await.unwrap();
        (answer, started.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_nothing_half_a_head_or_no_next_request_is_given_up() {
        let whole = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
        for (bytes, answers) in [(&b""[..], 0), (b"GET / HT", 0), (&whole[..whole.len() - 2], 0), (whole, 1)] {
            let (answer, after) = silent_after(bytes).await;
            assert_eq!(after.as_secs(), HEAD_DEADLINE.as_secs(), "{bytes:?}");
            assert_eq!(answer.matches("200 OK").count(), answers, "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_given_up() {
        let (ours, _theirs) = tokio::io::duplex(1024);
        let mut stream = Unstalled { stream: ours, stalled: None };
        let started = tokio::time::Instant::now();
        let error = stream.write_all(&[0; 4096]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), WRITE_DEADLINE.as_secs());
    }
}
