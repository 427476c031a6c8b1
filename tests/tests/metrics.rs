//! docs/metrics.md, the dashboard and the alerts name the series that there are, and Prometheus understands them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use penstock_tests::{
    agent::Place,
    chart,
    http::Request,
    prometheus::{self, Prometheus},
    require,
    workdir::Workdir,
    workspace,
};
use serde_json::Value;

/// Where series are registered, and what stands before their names there.
const REGISTERED: [(&str, &str); 13] = [
    ("agent/src/metrics.rs", ""),
    ("agent/src/events.rs", ""),
    ("agent/src/traces.rs", "traces_"),
    ("agent/src/recordings/metrics.rs", "recordings_"),
    ("agent/src/serve/count.rs", "api_"),
    ("device/src/stats.rs", "device_"),
    ("fetcher/src/metrics.rs", "fetcher_"),
    ("fetcher/src/metrics/endpoint.rs", "fetcher_"),
    ("cache/src/metrics.rs", "cache_"),
    ("index/src/metrics.rs", "index_"),
    ("layers/src/unpacked/metrics.rs", "layers_"),
    ("snapshotter/src/metrics.rs", "snapshotter_"),
    ("snapshotter/src/images/metrics.rs", "images_"),
];

/// The names in a source file that are followed by a sentence: what a registry is given. Without what the exposition adds.
fn registered(text: &str) -> Vec<String> {
    let product = text.split("#[cfg(test)]").next().unwrap_or_default();
    let pieces: Vec<&str> = product.split('"').collect();
    // Every other piece is inside quotes; between the two there is a comma.
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let is_sentence = |text: &str| text.contains(' ') && text.starts_with(|c: char| c.is_ascii_uppercase() || c == '1');
    let pairs = pieces.windows(3).skip(1).step_by(2);
    pairs.filter(|w| is_name(w[0]) && w[1].trim() == "," && is_sentence(w[2])).map(|w| w[0].to_owned()).collect()
}

/// A row of docs/metrics.md.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    kind: String,
    unit: String,
    labels: String,
}

/// The documented series by full name.
fn documented() -> BTreeMap<String, Row> {
    let text = fs::read_to_string(workspace::root().join("docs/metrics.md")).expect("the list");
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `penstock_")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{line}");
        let name = cells[0].trim_matches('`').to_owned();
        let [kind, unit, labels] = [cells[1], cells[2], cells[3]].map(str::to_owned);
        assert!(rows.insert(name, Row { kind, unit, labels }).is_none(), "twice: {line}");
    }
    rows
}

/// A series' name as it is registered.
fn bare(name: &str, kind: &str) -> String {
    let suffix = match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    };
    let name = name.strip_prefix("penstock_").and_then(|name| name.strip_suffix(suffix));
    name.unwrap_or_else(|| panic!("a {kind} ends with {suffix:?}")).to_owned()
}

#[test]
fn the_list_has_every_series_that_is_registered_and_no_other() {
    let mut code = BTreeSet::new();
    for (path, prefix) in REGISTERED {
        let names = registered(&fs::read_to_string(workspace::root().join(path)).expect(path));
        assert!(!names.is_empty(), "{path} registers nothing that is seen");
        code.extend(names.into_iter().map(|name| format!("{prefix}{name}")));
    }
    let listed: BTreeSet<String> = documented().iter().map(|(name, row)| bare(name, &row.kind)).collect();
    assert_eq!(listed, code, "docs/metrics.md and what is registered");
}

#[test]
fn nothing_is_registered_where_nobody_looks() {
    let agent = fs::read_to_string(workspace::root().join("agent/Cargo.toml")).expect("the agent's manifest");
    for source in workspace::sources() {
        // Only what the agent is made of is shown.
        let folder = source.path.split('/').next().unwrap_or_default();
        let is_part = folder == "agent" || agent.contains(&format!("penstock-{folder}"));
        let text = source.text.split("#[cfg(test)]").next().unwrap_or_default();
        let registers = text.contains("registry.register(") || text.contains("metrics.register(");
        let is_test = source.path.contains("/tests") || source.path.starts_with("benches/");
        let is_known = REGISTERED.iter().any(|(path, _)| *path == source.path);
        assert!(
            !registers || !is_part || is_test || is_known,
            "{} registers metrics; add it to REGISTERED",
            source.path
        );
    }
}

#[test]
fn a_running_agent_shows_kinds_labels_and_units_as_they_are_listed() {
    let work = Workdir::new();
    let agent = Place::new(work.path()).with(&["--device-transport", "fuse"]).start();
    let shown = agent.http(&Request::get("/metrics")).expect("the agent answers").text();
    let documented = documented();
    let mut seen = 0;
    for line in shown.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').expect("a name and a kind");
        let found = documented
            .iter()
            .find(|(full, row)| **full == name || format!("penstock_{}", bare(full, &row.kind)) == name);
        let (full, row) = found.unwrap_or_else(|| panic!("{name} is not listed"));
        assert_eq!(row.kind, kind, "{name}");
        let unit = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(unit)).unwrap_or("-");
        assert_eq!(row.unit, unit, "{name}");
        let series = shown.lines().find(|line| line.starts_with(&format!("{full}{{")));
        if let Some((_, labels)) = series.and_then(|series| series.split_once('{')).filter(|_| kind != "histogram") {
            let names: Vec<&str> =
                labels.split(['{', ',']).filter_map(|label| Some(label.split_once('=')?.0)).collect();
            assert_eq!(row.labels, names.join(", "), "{name}");
        }
        seen += 1;
    }
    assert!(seen > 30, "{shown}");
}

/// The series that a query names and there are none of.
fn unknown(query: &str) -> Vec<String> {
    let documented = documented();
    let words =
        query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("penstock_"));
    let is_known = |word: &str| {
        documented.get(word).is_some_and(|row| row.kind != "histogram")
            || ["_bucket", "_sum", "_count"].iter().any(|suffix| {
                word.strip_suffix(suffix)
                    .and_then(|word| documented.get(word))
                    .is_some_and(|row| row.kind == "histogram")
            })
    };
    words.filter(|word| !is_known(word)).map(str::to_owned).collect()
}

#[test]
fn a_series_that_is_not_there_is_found_in_a_query() {
    assert_eq!(unknown("rate(penstock_cache_hits_total[5m])"), [""; 0]);
    assert_eq!(
        unknown("penstock_cache_hits + penstock_fetcher_fetch_seconds"),
        ["penstock_cache_hits", "penstock_fetcher_fetch_seconds"]
    );
}

/// All queries of the dashboard, as Grafana sends them.
fn queries() -> Vec<String> {
    let board: Value = serde_json::from_str(&chart::file("files/dashboard.json")).expect("JSON");
    let panels = board["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    let queries: Vec<String> =
        targets.map(|one| one["expr"].as_str().expect("a query").replace("$instance", ".*")).collect();
    assert!(queries.len() > 20);
    queries
}

#[test]
fn the_dashboard_asks_for_series_that_there_are() {
    for query in queries() {
        assert_eq!(unknown(&query), [""; 0], "{query}");
        assert!(query.contains("penstock_") && !query.contains('$'), "{query}");
    }
}

#[test]
fn alerts_ask_for_series_that_there_are_and_are_explained() {
    let (rules, list) =
        (chart::file("files/alerts.yaml"), fs::read_to_string(workspace::root().join("docs/metrics.md")));
    let list = list.expect("the list");
    assert_eq!(unknown(&rules), [""; 0]);
    let names: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() > 5);
    for name in names {
        assert!(list.contains(&format!("| `{name}` |")), "{name} is not in docs/metrics.md");
    }
}

#[test]
fn promtool_takes_the_alerts_and_every_query_of_the_dashboard() {
    require!(prometheus::cannot());
    assert_eq!(prometheus::wrong_rules(&chart::dir().join("files/alerts.yaml")), None);
    let work = Workdir::new();
    let rule = |(nth, query): (usize, &String)| {
        format!("      - record: q{nth}\n        expr: {}\n", Value::from(query.as_str()))
    };
    let rules: String = queries().iter().enumerate().map(rule).collect();
    let path = work.join("queries.yaml");
    fs::write(&path, format!("groups:\n  - name: queries\n    rules:\n{rules}")).expect("room");
    assert_eq!(prometheus::wrong_rules(&path), None);
    fs::write(&path, "groups:\n  - name: wrong\n    rules:\n      - record: q\n        expr: \"sum(\"\n")
        .expect("room");
    assert!(prometheus::wrong_rules(&path).is_some(), "it does look at queries");
}

#[test]
fn prometheus_reads_a_running_agent() {
    require!(prometheus::cannot());
    let work = Workdir::new();
    let agent = Place::new(work.path()).with(&["--device-transport", "fuse", "--listen", "127.0.0.1:0"]).start();
    let server = Prometheus::start(&agent.address(), &chart::dir().join("files/alerts.yaml"));
    assert_eq!(server.value("penstock_build_info"), "1");
    assert_eq!(server.value("up"), "1");
    assert_eq!(server.value("penstock_cache_index_in_use"), "1");
}
