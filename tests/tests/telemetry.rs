//! What leaves an agent for others to keep: spans for a collector of OpenTelemetry traces, and log lines for machines.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
};

use penstock_registry::Config;
use penstock_tests::{
    agent::{Agent, Place},
    collector::{self, Collector},
    fixture,
    http::Request,
    loopback::Loopback,
    nginx::{Front, Nginx},
    require,
    skip::{fuse, program, root},
    tls::Authority,
    tree,
    workdir::Workdir,
    workspace::text,
};
use serde_json::Value;

/// What the collector is shown.
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn cannot() -> Option<String> {
    root().or_else(fuse).or_else(collector::cannot)
}

/// A registry with the fixture, and its reference there.
fn registry() -> (Loopback, String) {
    let registry = Loopback::start(Config::default());
    registry.layout(&fixture::layout(), "fixtures/overlaybd");
    let reference = format!("{}/fixtures/overlaybd:obd-lz4", registry.host());
    (registry, reference)
}

/// Attaches the image, reads all of it, and detaches it.
fn used(agent: &Agent, reference: &str) {
    let device = agent.attach(reference, &["--transport", "fuse"]);
    let disk = File::open(text(&device["device_path"])).expect("the device");
    assert_eq!(tree::sha256(disk).expect("every byte"), fixture::DEVICE_SHA256);
    assert_eq!(agent.run(&["detach", text(&device["id"])]).code, Some(0));
}

fn count(spans: &[Value], name: &str) -> usize {
    spans.iter().filter(|span| span["name"] == name).count()
}

/// The names of the spans above one, the nearest first.
fn above<'a>(span: &Value, by_id: &BTreeMap<&str, &'a Value>) -> Vec<&'a str> {
    let (mut names, mut at) = (Vec::new(), span);
    while let Some(&parent) = by_id.get(text(&at["parent_span_id"])) {
        assert_eq!(parent["trace_id"], at["trace_id"], "{at} below {parent}");
        names.push(text(&parent["name"]));
        at = parent;
    }
    names
}

#[test]
fn attaches_pulls_of_maps_and_reads_that_waited_come_to_a_collector_each_in_its_trace() {
    require!(cannot());
    let (work, collector, (registry, reference)) = (Workdir::new(), Collector::start(), registry());
    let token = work.join("token");
    fs::write(&token, format!("{TOKEN}\n")).expect("a file");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("a mode");
    let endpoint = format!("http://{}/base", collector.host());
    let flags = ["--traces-endpoint", &endpoint, "--traces-slow", "0s"];
    let place = Place::new(work.path()).with(&["--cache-chunk-size", "64KiB"]).with(&flags);
    let agent = place.with(&["--traces-token-file", token.to_str().expect("UTF-8")]).start();
    used(&agent, &reference);
    let missing = format!("{}/fixtures/overlaybd:none", registry.host());
    assert_ne!(agent.run(&["attach", &missing]).code, Some(0));
    // What is under way at the end is sent before it.
    let (ended, log) = agent.stop_with_log();
    let log = log.join("\n");
    assert!(ended.success(), "{log}");

    let spans = collector.spans(|spans| count(spans, "attach") == 2 && count(spans, "detach") == 1);
    let by_id: BTreeMap<&str, &Value> = spans.iter().map(|span| (text(&span["span_id"]), span)).collect();
    assert_eq!(by_id.len(), spans.len(), "no name twice");
    for span in &spans {
        let number = |name: &str| text(&span[name]).parse::<u64>().expect("a number");
        assert!(number("startTimeUnixNano") <= number("endTimeUnixNano"), "{span}");
        assert_eq!((&span["resource"]["service.name"], &span["scope"]), (&"penstock".into(), &"penstock".into()));
        let above = above(span, &by_id);
        match text(&span["name"]) {
            "attach" | "detach" | "miss" => assert!(above.is_empty(), "{span} below {above:?}"),
            "resolve" | "open" => assert_eq!(above, ["attach"], "{span}"),
            "fetch" => {
                assert_eq!(span["attributes"]["server.address"], registry.host(), "{span}");
                assert_eq!(span["kind"], "SPAN_KIND_CLIENT", "{span}");
            }
            other => panic!("{other} is not among those of docs/seeing.md"),
        }
    }
    let below = |name: &str| {
        let fetches = spans.iter().filter(|span| span["name"] == "fetch");
        fetches.filter(|span| above(span, &by_id).contains(&name)).count()
    };
    assert!(below("open") > 0 && below("miss") > 0, "{spans:#?}");
    // A read that waits for a part of a map that is being made is given nothing by anybody.
    let giver = |span: &Value| span["name"] == "miss" && span["attributes"]["penstock.giver"] == "Origin";
    assert!(spans.iter().any(giver), "{spans:#?}");
    let failed: Vec<&Value> = spans.iter().filter(|span| span["status"]["code"] == "STATUS_CODE_ERROR").collect();
    let names: Vec<&str> = failed.iter().map(|span| text(&span["name"])).collect();
    assert_eq!(names, ["resolve", "attach"], "what failed says so: {failed:#?}");

    for posted in collector.posted(1) {
        assert_eq!(posted.line, "POST /base/v1/traces HTTP/1.1");
        assert_eq!(posted.header("content-type"), Some("application/x-protobuf"));
        assert_eq!(posted.header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
        assert!(!String::from_utf8_lossy(&posted.body).contains(TOKEN));
    }
    assert!(!log.contains(TOKEN) && log.contains("device.attached"), "{log}");
}

/// How many events of a kind there were.
fn events(agent: &Agent, kind: &str) -> usize {
    let events = agent.get("/v1/events");
    events["events"].as_array().expect("events").iter().filter(|event| event["kind"] == kind).count()
}

#[test]
fn a_collector_that_takes_nothing_is_told_of_once_and_nobody_waits_for_it() {
    require!(cannot());
    let (work, collector, (_registry, reference)) = (Workdir::new(), Collector::start(), registry());
    collector.answers(503);
    let endpoint = format!("http://{}", collector.host());
    let agent = Place::new(work.path()).with(&["--traces-endpoint", &endpoint, "--traces-slow", "0s"]).start();
    used(&agent, &reference);
    agent.until_event("traces.refused");
    let asked = collector.posted(1).len();
    used(&agent, &reference);
    let _ = collector.posted(asked + 1);
    collector.answers(200);
    used(&agent, &reference);
    agent.until_event("traces.taken");
    assert_eq!(events(&agent, "traces.refused"), 1, "said once");
    let metrics = agent.http(&Request::get("/metrics")).expect("the agent answers").text();
    for outcome in ["sent", "dropped"] {
        let series = format!("penstock_traces_spans_total{{outcome=\"{outcome}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&series)).expect("the series");
        assert_ne!(value, "0", "{outcome}");
    }
    assert!(agent.stop().success());
}

#[test]
fn a_collector_is_believed_by_its_certificate_alone() {
    require!(cannot(), program("nginx"), program("openssl"));
    let (work, collector, (_registry, reference)) = (Workdir::new(), Collector::start(), registry());
    let authority = Authority::new(work.dir("authority"));
    let front = Front { tls: Some(authority.issue("collector")), ..Front::default() };
    let nginx = Nginx::start(work.dir("nginx"), collector.host(), &front);
    let endpoint = format!("https://{}", nginx.host());
    let place = Place::new(work.path()).with(&["--traces-endpoint", &endpoint]);

    let agent = place.clone().start();
    used(&agent, &reference);
    agent.until_event("traces.refused");
    assert!(agent.log().iter().any(|line| line.contains("traces.refused") && line.contains("ertificate")));
    assert!(agent.stop().success());

    let ca = authority.bundle();
    let agent = place.with(&["--traces-ca", ca.to_str().expect("UTF-8")]).start();
    used(&agent, &reference);
    let spans = collector.spans(|spans| count(spans, "detach") == 1);
    assert_eq!(count(&spans, "attach"), 1, "nothing came before the authority was known");
    assert_eq!(events(&agent, "traces.refused"), 0);
    assert!(agent.stop().success());
}

#[test]
fn a_log_for_machines_has_one_line_for_each_event_and_nothing_else() {
    require!(root().or_else(fuse));
    let (work, (registry, reference)) = (Workdir::new(), registry());
    let agent = Place::new(work.path()).with(&["--log-format", "json"]).start();
    used(&agent, &reference);
    let missing = format!("{}/fixtures/overlaybd:none", registry.host());
    assert_ne!(agent.run(&["attach", &missing]).code, Some(0));
    let events = agent.get("/v1/events");
    let (ended, log) = agent.stop_with_log();
    assert!(ended.success(), "{log:?}");

    let lines: Vec<Value> =
        log.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].is_string(), "{field} of {line}");
        }
        assert!(line["span"].is_null() && line["spans"].is_null(), "{line}");
    }
    for event in events["events"].as_array().expect("events") {
        let told = lines.iter().filter(|line| {
            line["target"] == "penstock_agent::event"
                && line["kind"] == event["kind"]
                && line["message"] == event["text"]
                && (event["fields"]["device"].is_null() || line["device"] == event["fields"]["device"])
        });
        assert_eq!(told.count(), 1, "{event}");
    }
}
