//! Every route against a fake node: what is answered, and every way to be refused.

mod fake;
mod follow;
mod live;
mod openapi;
mod page;
mod pull;

use std::sync::Arc;

use crate::{
    BLOBS_LISTED, BODY_BYTES, CacheUsage, Detached, Device, Events, Explanation, Inspection, Latency, Memory,
    NodeError, OnFailure, Policy, PolicyChange, ProblemKind, Readiness, Version, read_only_router,
};
use axum::{
    body::Body,
    http::{Request, header},
};
use fake::{Fake, ask, device, get, post, read, request};
use tower::ServiceExt as _;

#[tokio::test]
async fn liveness_does_not_depend_on_readiness() {
    let not_ready = || Fake { ready: Readiness::NotReady("restoring 2 devices".to_owned()), ..Fake::default() };
    let live = get(not_ready(), "/healthz").await;
    assert_eq!((live.status, live.body.as_str()), (200, "ok\n"));

    let ready = get(Fake::default(), "/readyz").await;
    assert_eq!((ready.status, ready.body.as_str()), (200, "ok\n"));
    let degraded = Fake { ready: Readiness::Degraded("r does not answer".to_owned()), ..Fake::default() };
    let ready = get(degraded, "/readyz").await;
    assert_eq!((ready.status, ready.body.as_str()), (200, "degraded: r does not answer\n"), "what is cached is served");
    let problem = get(not_ready(), "/readyz").await.problem();
    assert_eq!(problem.kind(), Some(ProblemKind::NotReady));
    assert_eq!(problem.detail, "restoring 2 devices");
    assert!(problem.transient);
}

#[tokio::test]
async fn metrics_are_declared_as_openmetrics() {
    let reply = get(Fake::default(), "/metrics").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "# EOF\n"));
    assert_eq!(reply.content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
}

#[tokio::test]
async fn devices_are_listed_and_found_by_id() {
    let all: Vec<Device> = get(Fake::default(), "/v1/devices").await.json();
    assert_eq!(all, [device("d1")]);
    let one: Device = get(Fake::default(), "/v1/devices/d1").await.json();
    assert_eq!(one, device("d1"));
    assert_eq!(one.blobs[0].present_share, 0.25);

    let problem = get(Fake::default(), "/v1/devices/d9").await.problem();
    assert_eq!(problem.kind(), Some(ProblemKind::NotFound));
    assert_eq!(problem.detail, "there is no device d9");
}

#[tokio::test]
async fn a_device_is_explained_and_reads_are_timed() {
    let explained: Explanation = get(Fake::default(), "/v1/devices/d1/explain").await.json();
    assert_eq!((explained.id.as_str(), explained.pulled_ms), ("d1", None));
    let problem = get(Fake::default(), "/v1/devices/d9/explain").await.problem();
    assert_eq!(problem.kind(), Some(ProblemKind::NotFound));
    let tiers: Vec<Latency> = get(Fake::default(), "/v1/latency").await.json();
    assert_eq!(tiers, device("d1").latency);
}

#[tokio::test]
async fn the_budget_of_memory_is_answered_by_part() {
    let memory: Memory = get(Fake::default(), "/v1/memory").await.json();
    assert_eq!(memory, fake::memory());
    let shown = get(Fake::default(), "/v1/memory").await.body;
    assert!(shown.contains(r#"{"name":"presence","used_bytes":307200,"limit_bytes":null}"#), "{shown}");
}

#[tokio::test]
async fn an_image_is_inspected_only_by_who_may_command_the_agent() {
    let asked = |body: &'static str| {
        let request = Request::post("/v1/inspect").header(header::CONTENT_TYPE, "application/json");
        request.body(Body::from(body)).unwrap()
    };
    let inspected: Inspection =
        ask(Fake::default(), asked(r#"{"reference":"app:2","platform":"linux/arm64"}"#)).await.json();
    assert_eq!((inspected.reference.as_str(), inspected.platform.as_str()), ("app:2", "linux/arm64"));
    let problem = ask(Fake::default(), asked(r#"{"reference":"app:2","pull":true}"#)).await.problem();
    assert_eq!(problem.kind(), Some(ProblemKind::Invalid));
    let refused = read_only_router(Arc::new(Fake::default())).oneshot(asked(r#"{"reference":"app:2"}"#)).await.unwrap();
    assert_eq!(read(refused).await.problem().kind(), Some(ProblemKind::ReadOnly));
}

#[tokio::test]
async fn attaching_answers_201_with_the_device_and_its_place() {
    let reply = post("application/json; charset=utf-8", r#"{"reference":"app:2","mount":"/mnt/app"}"#).await;
    assert_eq!(reply.status, 201, "{}", reply.body);
    assert_eq!(reply.location.as_deref(), Some("/v1/devices/d2"));
    let made: Device = reply.json();
    assert_eq!(made.reference, "app:2");
    assert_eq!(made.mount_point.as_deref(), Some("/mnt/app".as_ref()));
}

#[tokio::test]
async fn a_change_names_what_changes_and_nothing_else() {
    let patch = |body: &'static str| {
        let request = Request::patch("/v1/devices/d1").header("content-type", "application/json");
        ask(Fake::default(), request.body(Body::from(body)).unwrap())
    };
    let changed: Device = patch(r#"{"policy":{"deadline_ms":5000}}"#).await.json();
    assert_eq!(changed.policy, Policy { deadline_ms: 5000, ..device("d1").policy });
    let refused = patch(r#"{"policy":{"deadline":5000}}"#).await.problem();
    assert_eq!(refused.kind(), Some(ProblemKind::Invalid));
    assert!(refused.detail.contains("deadline"), "{}", refused.detail);
}

#[test]
fn a_policy_is_checked_against_its_bounds() {
    let change = PolicyChange { deadline_ms: Some(999), ..PolicyChange::default() };
    assert!(change.check().unwrap_err().contains("deadline_ms is 999"));
    let change = PolicyChange { wait_limit_ms: Some(86_400_001), ..PolicyChange::default() };
    assert!(change.check().unwrap_err().contains("86400000"));
    let older = PolicyChange { deadline_ms: Some(1000), on_failure: Some(OnFailure::Wait), wait_limit_ms: None };
    assert_eq!(older.check(), Ok(()));
    let newer = PolicyChange { deadline_ms: None, on_failure: Some(OnFailure::Eio), wait_limit_ms: Some(2000) };
    let both = PolicyChange { deadline_ms: Some(1000), on_failure: Some(OnFailure::Eio), wait_limit_ms: Some(2000) };
    assert_eq!(older.with(newer), both);
}

#[tokio::test]
async fn a_device_in_use_goes_only_by_force() {
    let kept = ask(Fake::default(), request("DELETE", "/v1/devices/d1")).await.problem();
    assert_eq!(kept.kind(), Some(ProblemKind::Conflict));
    let gone = ask(Fake::default(), request("DELETE", "/v1/devices/d1?force=true")).await;
    assert_eq!((gone.status, gone.body.as_str()), (204, ""));
    let unknown = ask(Fake::default(), request("DELETE", "/v1/devices/d9?force=true")).await.problem();
    assert_eq!(unknown.kind(), Some(ProblemKind::NotFound));
}

#[tokio::test]
async fn detaching_all_tells_what_became_of_each() {
    let kept: Detached = ask(Fake::default(), request("DELETE", "/v1/devices")).await.json();
    assert_eq!(kept.failed[0].id, "d1");
    assert_eq!(kept.failed[0].problem.kind(), Some(ProblemKind::Conflict));
    let gone: Detached = ask(Fake::default(), request("DELETE", "/v1/devices?force=true")).await.json();
    assert_eq!(gone.detached, ["d1"]);
}

#[tokio::test]
async fn the_cache_lists_the_most_present_blobs_and_no_more_than_its_bound() {
    let few: CacheUsage = get(Fake::default(), "/v1/cache").await.json();
    assert_eq!(few.blobs.len(), 2);
    let most = u32::try_from(BLOBS_LISTED).unwrap() + 10;
    let many: CacheUsage = get(Fake { blobs: most, ..Fake::default() }, "/v1/cache").await.json();
    assert_eq!(many.blobs.len(), BLOBS_LISTED);
    assert_eq!(many.blobs_total, u64::from(most));
    assert_eq!(many.blobs[0].present_bytes, u64::from(most) - 1);
    assert!(many.blobs.is_sorted_by(|a, b| a.present_bytes >= b.present_bytes));
}

#[tokio::test]
async fn events_begin_after_the_sequence_asked_for() {
    let sequences = |reply: fake::Reply| reply.json::<Events>().events.iter().map(|e| e.sequence).collect::<Vec<_>>();
    assert_eq!(sequences(get(Fake::default(), "/v1/events").await), [1, 2, 3]);
    assert_eq!(sequences(get(Fake::default(), "/v1/events?since=2").await), [3]);
    assert_eq!(sequences(get(Fake::default(), "/v1/events?since=3").await), [0_u64; 0]);
}

#[tokio::test]
async fn the_version_names_the_agent() {
    let version: Version = get(Fake::default(), "/v1/version").await.json();
    assert_eq!((version.version.as_str(), version.pid), ("0.1.0", 42));
}

#[tokio::test]
async fn every_failure_of_the_node_is_its_problem_on_every_route() {
    type Row = (fn(String) -> NodeError, ProblemKind, u16, bool);
    let failures: [Row; 14] = [
        (NodeError::NotFound, ProblemKind::NotFound, 404, false),
        (NodeError::ImageNotFound, ProblemKind::ImageNotFound, 404, false),
        (NodeError::Conflict, ProblemKind::Conflict, 409, false),
        (NodeError::Invalid, ProblemKind::Invalid, 400, false),
        (NodeError::Denied, ProblemKind::RegistryDenied, 502, false),
        (NodeError::Unavailable, ProblemKind::RegistryUnavailable, 502, true),
        (NodeError::WrongBytes, ProblemKind::RegistryWrongBytes, 502, true),
        (NodeError::Unsupported, ProblemKind::UnsupportedImage, 422, false),
        (NodeError::Incapable, ProblemKind::Incapable, 501, false),
        (NodeError::NoRoom, ProblemKind::NoRoom, 507, true),
        (NodeError::Deadline, ProblemKind::Deadline, 504, true),
        (NodeError::Busy, ProblemKind::TooManyRequests, 429, true),
        (NodeError::Stopping, ProblemKind::NotReady, 503, true),
        (NodeError::Internal, ProblemKind::Internal, 500, false),
    ];
    for (error, kind, status, transient) in failures {
        for (method, path) in [
            ("GET", "/metrics"),
            ("GET", "/v1/devices"),
            ("GET", "/v1/devices/d1"),
            ("POST", "/v1/devices"),
            ("DELETE", "/v1/devices/d1?force=true"),
            ("DELETE", "/v1/devices"),
            ("GET", "/v1/cache"),
            ("GET", "/v1/endpoints"),
            ("GET", "/v1/events?since=1"),
        ] {
            let fake = Fake { failure: Some(error("do this next".to_owned())), ..Fake::default() };
            let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
            let problem = ask(fake, request.body(Body::from(r#"{"reference":"a"}"#)).unwrap()).await.problem();
            assert_eq!((problem.kind(), problem.status), (Some(kind), status), "{method} {path}");
            assert_eq!(problem.transient, transient);
            assert_eq!(problem.detail, "do this next");
            assert_eq!(problem.instance.as_deref(), path.split('?').next(), "the query is left out");
        }
    }
}

#[tokio::test]
async fn a_body_that_is_no_such_request_is_refused_by_name() {
    for (body, kind, says) in [
        ("", ProblemKind::MalformedJson, "EOF"),
        ("{", ProblemKind::MalformedJson, "line 1"),
        (r#"{"reference":"a"} x"#, ProblemKind::MalformedJson, "trailing"),
        ("{}", ProblemKind::Invalid, "`reference`"),
        ("[]", ProblemKind::Invalid, "length"),
        ("null", ProblemKind::Invalid, "null"),
        (r#"{"reference":1}"#, ProblemKind::Invalid, "string"),
        (r#"{"reference":"a","mnt":"/x"}"#, ProblemKind::Invalid, "`mnt`"),
        (r#"{"reference":"a","reference":"b"}"#, ProblemKind::Invalid, "duplicate field `reference`"),
        (r#"{"reference":"a","transport":"nbd"}"#, ProblemKind::Invalid, "`nbd`"),
    ] {
        let problem = post("application/json", body).await.problem();
        assert_eq!(problem.kind(), Some(kind), "{body}: {}", problem.detail);
        assert!(problem.detail.contains(says), "{body}: {}", problem.detail);
    }
}

#[tokio::test]
async fn a_body_that_is_not_declared_as_json_is_refused() {
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
        let problem = post(content_type, r#"{"reference":"a"}"#).await.problem();
        assert_eq!(problem.kind(), Some(ProblemKind::UnsupportedMediaType), "{content_type}");
    }
}

#[tokio::test]
async fn a_body_beyond_the_bound_is_refused() {
    let sized = |bytes: usize| format!(r#"{{"reference":"{}"}}"#, "a".repeat(bytes - r#"{"reference":""}"#.len()));
    assert_eq!(post("application/json", sized(BODY_BYTES)).await.status, 201);
    let problem = post("application/json", sized(BODY_BYTES + 1)).await.problem();
    assert_eq!(problem.kind(), Some(ProblemKind::BodyTooLarge));
    assert!(problem.detail.contains(&BODY_BYTES.to_string()));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_refused() {
    let broken = futures_util::stream::iter([Ok("{"), Err(std::io::Error::other("reset"))]);
    let problem = post("application/json", Body::from_stream(broken)).await.problem();
    assert_eq!(problem.kind(), Some(ProblemKind::Invalid));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up() {
    let started = tokio::time::Instant::now();
    let endless = futures_util::stream::pending::<Result<&str, std::io::Error>>();
    let problem = post("application/json", Body::from_stream(endless)).await.problem();
    assert_eq!(problem.kind(), Some(ProblemKind::Invalid));
    assert_eq!(started.elapsed(), crate::BODY_DEADLINE);
}

#[tokio::test]
async fn a_query_that_is_not_understood_is_refused_by_name() {
    for (method, uri, says) in [
        ("GET", "/v1/events?since=soon", "since"),
        ("GET", "/v1/events?since=-1", "since"),
        ("GET", "/v1/events?from=1", "`from`"),
        ("DELETE", "/v1/devices/d1?force=maybe", "force"),
        ("DELETE", "/v1/devices?forced=true", "`forced`"),
    ] {
        let problem = ask(Fake::default(), request(method, uri)).await.problem();
        assert_eq!(problem.kind(), Some(ProblemKind::Invalid), "{uri}");
        assert!(problem.detail.contains(says), "{uri}: {}", problem.detail);
    }
    let not_text = get(Fake::default(), "/v1/devices/%ff").await.problem();
    assert_eq!(not_text.kind(), Some(ProblemKind::Invalid));
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    for path in ["/index.html", "/v1", "/v1/device", "/v1/devices/d1/x", "/v2/devices", "/v1/devices/"] {
        let problem = get(Fake::default(), path).await.problem();
        assert_eq!(problem.kind(), Some(ProblemKind::UnknownPath), "{path}");
        assert_eq!(problem.instance.as_deref(), Some(path));
    }
    let reply = ask(Fake::default(), request("PUT", "/v1/devices")).await;
    assert_eq!(reply.problem().kind(), Some(ProblemKind::MethodNotAllowed));
    let mut allowed: Vec<_> = reply.allow.as_deref().unwrap_or_default().split(',').map(str::trim).collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["DELETE", "GET", "HEAD", "POST"]);
}

#[tokio::test]
async fn a_panic_in_the_node_is_an_answer() {
    let problem = get(Fake { panics: true, ..Fake::default() }, "/v1/devices").await.problem();
    assert_eq!(problem.kind(), Some(ProblemKind::Internal));
}

#[tokio::test]
async fn a_read_only_listener_changes_nothing() {
    let ask = async |request| read(read_only_router(Arc::new(Fake::default())).oneshot(request).await.unwrap()).await;
    for path in ["/healthz", "/readyz", "/metrics", "/v1/devices", "/v1/devices/d1", "/v1/cache", "/v1/version"] {
        assert_eq!(ask(request("GET", path)).await.status, 200, "{path}");
    }
    for (method, path) in [("POST", "/v1/devices"), ("DELETE", "/v1/devices"), ("DELETE", "/v1/devices/d1")] {
        let problem = ask(request(method, path)).await.problem();
        assert_eq!(problem.kind(), Some(ProblemKind::ReadOnly), "{method} {path}");
        assert_eq!(problem.instance.as_deref(), Some(path));
    }
}

#[tokio::test]
async fn endpoints_are_listed_by_registry_with_their_breakers() {
    let reply = get(Fake::default(), "/v1/endpoints").await;
    assert!(
        reply.body.contains(r#""breaker":"half-open""#) && reply.body.contains(r#""role":"mirror""#),
        "{}",
        reply.body
    );
    let all: Vec<crate::RegistryHosts> = reply.json();
    assert_eq!((all[0].registry.as_str(), all[0].endpoints[0].requests), ("docker.io", 7));
}

#[tokio::test]
async fn credentials_are_handed_over_listed_without_secrets_and_withdrawn() {
    let put = |body: &'static str| {
        let request = Request::put("/v1/credentials").header(header::CONTENT_TYPE, "application/json");
        ask(Fake::default(), request.body(Body::from(body)).unwrap())
    };
    let taken = put(r#"{"scope":"registry.example.com","username":"u","password":"hunter2"}"#).await;
    assert_eq!((taken.status, taken.body.as_str()), (204, ""));
    let refused = put(r#"{"scope":"?","identity_token":"hunter2"}"#).await;
    assert!(!refused.body.contains("hunter2"), "{}", refused.body);
    assert_eq!(refused.problem().kind(), Some(ProblemKind::Invalid));
    let unknown = put(r#"{"scope":"registry.example.com","token":"hunter2"}"#).await;
    assert!(unknown.body.contains("token") && !unknown.body.contains("hunter2"), "{}", unknown.body);
    let listed: crate::Credentials = get(Fake::default(), "/v1/credentials").await.json();
    assert_eq!(listed, fake::credentials());
    let gone = ask(Fake::default(), request("DELETE", "/v1/credentials?scope=registry.example.com")).await;
    assert_eq!(gone.status, 204);
    let none = ask(Fake::default(), request("DELETE", "/v1/credentials?scope=other.example.com")).await.problem();
    assert_eq!(none.kind(), Some(ProblemKind::NotFound));
    let text = crate::SecretText::new("hunter2".to_owned());
    assert_eq!(format!("{text:?}"), "SecretText(..)");
}
