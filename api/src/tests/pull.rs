//! The stream of a pull, over the real router.

use axum::{body::Body, http::Request};

use super::fake::{Fake, Reply, ask};
use crate::{NodeError, Problem, ProblemKind, PullProgress, Pulled};

const BODY: &str = r#"{"reference":"app:1","namespace":"k8s.io"}"#;

async fn pull(node: Fake, body: &'static str) -> Reply {
    let request = Request::post("/v1/pull").header("content-type", "application/json");
    ask(node, request.body(Body::from(body)).unwrap()).await
}

/// Name and data of each message.
fn messages(reply: &Reply) -> Vec<(&str, &str)> {
    let values =
        |name: &'static str| reply.body.lines().filter_map(move |line| line.strip_prefix(name)?.strip_prefix(": "));
    values("event").zip(values("data")).collect()
}

#[tokio::test]
async fn a_pull_says_how_far_it_is_and_at_last_what_was_done() {
    let reply = pull(Fake::default(), BODY).await;
    assert_eq!((reply.status, reply.content_type.as_str()), (200, "text/event-stream"));
    let [("progress", first), ("done", last)] = messages(&reply)[..] else { panic!("{}", reply.body) };
    let progress: PullProgress = serde_json::from_str(first).unwrap();
    assert_eq!((progress.bytes_done, progress.bytes), (10, 30));
    let pulled: Pulled = serde_json::from_str(last).unwrap();
    assert_eq!((pulled.reference.as_str(), pulled.namespace.as_str()), ("app:1", "k8s.io"));
}

#[tokio::test]
async fn a_pull_that_fails_on_its_way_ends_with_the_problem() {
    let reply = pull(Fake { devices: Vec::new(), ..Fake::default() }, BODY).await;
    let (name, data) = *messages(&reply).last().unwrap();
    let problem: Problem = serde_json::from_str(data).unwrap();
    assert_eq!((name, problem.kind()), ("failed", Some(ProblemKind::RegistryUnavailable)));
    assert_eq!(problem.detail, "the registry\nis away", "a line break does not end the message");
}

#[tokio::test]
async fn a_pull_that_cannot_begin_is_a_problem_like_any_other() {
    let failing = Fake { failure: Some(NodeError::Busy("later".to_owned())), ..Fake::default() };
    assert_eq!(pull(failing, BODY).await.problem().kind(), Some(ProblemKind::TooManyRequests));
    let unknown = pull(Fake::default(), r#"{"reference":"a","namespace":"n","tag":"x"}"#).await;
    assert_eq!(unknown.problem().kind(), Some(ProblemKind::Invalid));
    let half = pull(Fake::default(), r#"{"reference":"a"}"#).await;
    assert_eq!(half.problem().kind(), Some(ProblemKind::Invalid));
}
