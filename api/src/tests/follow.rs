//! Events as a stream, over the real router.

use axum::{body::Body, http::Request};

use super::fake::{Fake, Reply, ask, time};
use crate::{Event, NodeError, ProblemKind};

async fn follow(node: Fake, uri: &str, last_id: Option<&str>) -> Reply {
    let mut request = Request::get(uri).header("accept", "text/html;q=0.1, text/event-stream");
    if let Some(id) = last_id {
        request = request.header("last-event-id", id);
    }
    ask(node, request.body(Body::empty()).unwrap()).await
}

/// The values of one field of all messages, in order.
fn fields<'a>(reply: &'a Reply, name: &str) -> Vec<&'a str> {
    reply.body.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
}

#[tokio::test]
async fn a_stream_brings_events_in_order_says_what_was_lost_and_ends() {
    let reply = follow(Fake::default(), "/v1/events?since=1", None).await;
    assert_eq!((reply.status, reply.content_type.as_str()), (200, "text/event-stream"));
    let life = time(1_700_000_000).as_millisecond();
    assert_eq!(fields(&reply, "id"), [2, 3, 9].map(|n| format!("{life}-{n}")));
    assert_eq!(fields(&reply, "event"), ["lost", "end"]);
    let data = fields(&reply, "data");
    let event: Event = serde_json::from_str(data[0]).unwrap();
    assert_eq!((event.sequence, event.kind.as_str()), (2, "device.attached"));
    assert_eq!(data[2], r#"{"lost":5}"#);
    assert_eq!(data.last(), Some(&"{}"));
    assert!(reply.body.starts_with(": penstock events\nretry: 3000\n\n"), "{}", reply.body);
}

#[tokio::test]
async fn a_client_that_comes_back_goes_on_where_it_was() {
    let life = time(1_700_000_000).as_millisecond();
    let reply = follow(Fake::default(), "/v1/events?since=0", Some(&format!("{life}-2"))).await;
    assert_eq!(fields(&reply, "id"), [3, 9].map(|n| format!("{life}-{n}")));
    assert_eq!(fields(&reply, "event"), ["lost", "end"]);
}

#[tokio::test]
async fn a_client_of_an_agent_that_is_gone_gets_all_and_is_told() {
    let reply = follow(Fake::default(), "/v1/events", Some("1600000000000-2")).await;
    assert_eq!(fields(&reply, "event"), ["restarted", "lost", "end"]);
    assert_eq!(fields(&reply, "id").len(), 4);
}

#[tokio::test]
async fn a_refused_follower_gets_a_problem() {
    let bad = follow(Fake::default(), "/v1/events", Some("x")).await.problem();
    assert_eq!(bad.kind(), Some(ProblemKind::Invalid));
    assert!(bad.detail.contains("Last-Event-ID"));
    let full = Fake { failure: Some(NodeError::Busy("32 others".to_owned())), ..Fake::default() };
    let problem = follow(full, "/v1/events", None).await.problem();
    assert_eq!((problem.kind(), problem.transient), (Some(ProblemKind::TooManyRequests), true));
}
