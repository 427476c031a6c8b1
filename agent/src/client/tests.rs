//! The client against sockets that behave, and sockets that do not.

use std::os::unix::fs::PermissionsExt as _;

use axum::{Json, Router, extract::Path as UrlPath, routing};
use penstock_api::{NodeError, ProblemKind};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
};

use super::*;

/// A directory with a socket in it, and the tasks that serve it.
struct Served {
    dir: tempfile::TempDir,
    tasks: JoinSet<()>,
}

impl Served {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), tasks: JoinSet::new() }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("penstock.sock")
    }

    fn client(&self) -> Client {
        Client::new(self.socket())
    }

    fn router(router: Router) -> Self {
        let mut served = Self::new();
        let listener = UnixListener::bind(served.socket()).unwrap();
        served.tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        served
    }

    /// Answers the first connection with `bytes` once a request's head has come, and closes it.
    fn raw(bytes: impl AsRef<[u8]> + Send + 'static) -> Self {
        let mut served = Self::new();
        let listener = UnixListener::bind(served.socket()).unwrap();
        served.tasks.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            while !seen.windows(4).any(|window| window == b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
            }
            stream.write_all(bytes.as_ref()).await.unwrap();
        });
        served
    }
}

#[tokio::test]
async fn a_missing_socket_says_how_to_start_or_name_one() {
    let served = Served::new();
    let error = served.client().devices().await.unwrap_err();
    assert!(matches!(error, ClientError::NoSocket { .. }) && error.is_unreachable());
    let text = error.to_string();
    assert!(text.contains("penstock agent") && text.contains("--socket") && !text.contains('\n'), "{text}");
    assert!(text.contains(&served.socket().display().to_string()), "{text}");
}

#[tokio::test]
async fn a_dead_socket_says_that_nobody_listens() {
    let served = Served::new();
    drop(UnixListener::bind(served.socket()).unwrap());
    let error = served.client().version().await.unwrap_err();
    assert!(matches!(error, ClientError::Dead { .. }) && error.is_unreachable());
    assert!(error.to_string().contains("start it with `penstock agent`"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_socket_says_so() {
    let served = Served::new();
    std::fs::write(served.socket(), b"").unwrap();
    let error = served.client().version().await.unwrap_err();
    assert!(error.to_string().contains("is no socket"), "{error}");
}

#[test]
fn a_refused_permission_says_who_to_be() {
    // Made from the error: root, who runs the tests in CI, is refused nothing.
    let client = Client::new("/run/penstock/penstock.sock".into());
    let error = client.not_connected(io::ErrorKind::PermissionDenied.into());
    assert!(matches!(error, ClientError::Denied { .. }) && error.is_unreachable());
    assert!(error.to_string().contains("run this as the user of the agent, which is root"), "{error}");
}

#[tokio::test]
async fn a_socket_of_another_user_is_denied_to_those_who_are_not_root() {
    let served = Served::router(Router::new());
    std::fs::set_permissions(served.socket(), std::fs::Permissions::from_mode(0o000)).unwrap();
    let error = served.client().version().await.unwrap_err();
    if rustix::process::geteuid().is_root() {
        assert!(matches!(error, ClientError::Foreign { .. }), "root gets through, to a router without routes: {error}");
    } else {
        assert!(matches!(error, ClientError::Denied { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_says_so() {
    let error = Client::new(Path::new("/").join("x".repeat(200))).version().await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }) && error.is_unreachable(), "{error}");
}

#[tokio::test]
async fn a_connection_that_ends_early_points_at_the_log() {
    for bytes in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n[]"] {
        let error = Served::raw(bytes).client().devices().await.unwrap_err();
        assert!(matches!(error, ClientError::Broken { .. }) && !error.is_unreachable(), "{bytes:?}: {error}");
        assert!(error.to_string().contains("log"), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_ours_is_refused() {
    for bytes in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    ] {
        let error = Served::raw(bytes).client().devices().await.unwrap_err();
        assert!(matches!(error, ClientError::Foreign { .. }), "{bytes:?}: {error}");
    }
}

#[tokio::test]
async fn an_answer_without_end_is_cut() {
    let body = vec![b' '; ANSWER_BYTES + 1];
    let mut bytes = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend(body);
    let error = Served::raw(bytes).client().devices().await.unwrap_err();
    assert!(matches!(&error, ClientError::Foreign { reason, .. } if reason.contains("longer than")), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_answers_is_given_up() {
    let served = Served::new();
    // Connections wait in the listener's backlog, as they do when the agent is stuck.
    let _listener = UnixListener::bind(served.socket()).unwrap();
    let error = served.client().devices().await.unwrap_err();
    assert!(matches!(error, ClientError::Deadline { after: ASK_DEADLINE, .. }), "{error}");
    assert!(!error.is_unreachable());
}

#[tokio::test]
async fn a_problem_is_told_in_its_own_words() {
    let refuse = || async { penstock_api::Problem::from(NodeError::NotFound("there is no device d9".to_owned())) };
    let served = Served::router(Router::new().route("/v1/devices/d9", routing::get(refuse)));
    let error = served.client().device("d9").await.unwrap_err();
    assert_eq!(error.to_string(), "there is no device d9");
    let ClientError::Problem(problem) = error else { panic!("{error}") };
    assert_eq!(problem.kind(), Some(ProblemKind::NotFound));
}

#[tokio::test]
async fn any_text_names_a_device_or_none() {
    let echo = |UrlPath(id): UrlPath<String>| async move { Json(id) };
    let served = Served::router(Router::new().route("/v1/devices/{id}", routing::get(echo)));
    for id in ["d1", "a b", "../cache", "d1?force=true", "größe", "%2f", "#", "a/b"] {
        let echoed: String = served.client().ask(&device_path(id)).await.unwrap();
        assert_eq!(echoed, id);
    }
}
