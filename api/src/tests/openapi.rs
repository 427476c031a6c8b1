//! The committed description is the one that the routes declare.

use crate::ProblemKind;

#[test]
fn the_committed_description_is_the_generated_one() {
    let generated = crate::openapi().to_pretty_json().unwrap() + "\n";
    let committed = include_str!("../../openapi.json");
    assert!(generated == committed, "run `cargo run -p penstock-api --example openapi` and commit api/openapi.json");
}

#[test]
fn every_route_and_its_problems_are_described() {
    let api = serde_json::to_value(crate::openapi()).unwrap();
    let mut routes = Vec::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(operation["summary"].is_string(), "{method} {path} says what it does");
            routes.push(format!("{} {path}", method.to_uppercase()));
        }
    }
    routes.sort_unstable();
    assert_eq!(
        routes,
        [
            "DELETE /v1/credentials",
            "DELETE /v1/devices",
            "DELETE /v1/devices/{id}",
            "DELETE /v1/recordings/{manifest}",
            "GET /healthz",
            "GET /metrics",
            "GET /readyz",
            "GET /v1/cache",
            "GET /v1/credentials",
            "GET /v1/devices",
            "GET /v1/devices/{id}",
            "GET /v1/devices/{id}/blocks",
            "GET /v1/devices/{id}/explain",
            "GET /v1/endpoints",
            "GET /v1/events",
            "GET /v1/latency",
            "GET /v1/live",
            "GET /v1/memory",
            "GET /v1/recordings",
            "GET /v1/snapshots",
            "GET /v1/version",
            "PATCH /v1/devices/{id}",
            "POST /v1/cache/clear",
            "POST /v1/cache/evict",
            "POST /v1/cache/verify",
            "POST /v1/devices",
            "POST /v1/devices/{id}/recording",
            "POST /v1/inspect",
            "POST /v1/pull",
            "POST /v1/snapshots/repair",
            "PUT /v1/credentials",
            "PUT /v1/devices/{id}/recording",
        ]
    );
    assert_eq!(api["components"]["schemas"]["Attach"]["additionalProperties"], false);
}

#[test]
fn every_kind_of_problem_is_documented() {
    let page = include_str!("../../../docs/api.md");
    for kind in ProblemKind::ALL {
        let name = kind.type_uri().rsplit(':').next().unwrap().to_owned();
        let row = format!("| `{name}` | {} |", kind.status());
        assert!(page.contains(&row), "docs/api.md lacks the row {row}");
    }
}
