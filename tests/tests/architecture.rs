//! The documented architecture is the built one: crate graph, homes of sled, HTTP and unsafe, sizes of files, names in the docs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use penstock_tests::workspace::{self, PREFIX, Source};

/// Product lines of one file: past this a file holds more than one noun or verb.
const MOST_LINES: usize = 600;

type Graph = BTreeMap<String, BTreeSet<String>>;

fn doc(path: &str) -> String {
    fs::read_to_string(workspace::root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The graph as documented: lines `a -> b, c` in the fenced block named `graph`.
fn documented() -> Graph {
    let doc = doc("docs/architecture.md");
    let block = doc.split("```graph\n").nth(1).and_then(|rest| rest.split("```").next());
    let lines =
        block.expect("docs/architecture.md has a block ```graph").lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            let (from, to) = line.split_once("->").unwrap_or_else(|| panic!("not `crate -> crate, ..`: {line}"));
            let to = to.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
            (from.trim().to_owned(), to.collect())
        })
        .collect()
}

/// The graph as built. The crates of tests and benches are counted with their dev-dependencies, the product's without.
fn built() -> Graph {
    let metadata = workspace::metadata();
    let mut graph = Graph::new();
    for package in workspace::members(&metadata) {
        let name = workspace::text(&package["name"]).strip_prefix(PREFIX).expect("packages are penstock-<folder>");
        let folder = format!("/{name}/Cargo.toml");
        assert!(workspace::text(&package["manifest_path"]).ends_with(&folder), "{name} lies in the folder of its name");
        let whole = matches!(name, "tests" | "benches");
        let names = workspace::dependencies(package)
            .into_iter()
            .filter(|dependency| whole || !dependency.dev)
            .filter_map(|dependency| dependency.name.strip_prefix(PREFIX).map(str::to_owned));
        graph.insert(name.to_owned(), names.collect());
    }
    graph
}

#[test]
fn the_crate_graph_is_the_documented_one() {
    assert_eq!(built(), documented(), "left: cargo metadata; right: docs/architecture.md");
}

#[test]
fn tests_of_a_product_crate_use_only_the_fault_sources_and_the_loopback_registry() {
    let metadata = workspace::metadata();
    for package in workspace::members(&metadata) {
        let name = workspace::text(&package["name"]);
        for dependency in workspace::dependencies(package) {
            let own = dependency.name.starts_with(PREFIX) && dependency.dev && name != "penstock-tests";
            let allowed = ["penstock-blob", "penstock-registry"].contains(&dependency.name.as_str());
            assert!(!own || allowed, "{name} has the dev-dependency {}", dependency.name);
        }
    }
}

/// A library that has one home: which crates may name it in their manifest.
const HOMES: &[(&str, &[&str])] = &[
    ("sled", &["cache", "snapshotter"]),
    ("tonic", &["snapshotter", "agent", "tests"]),
    // The benches' full pull must not go through what it is compared with.
    ("reqwest", &["fetcher", "benches"]),
    ("oci-client", &["fetcher"]),
    ("libublk", &["device"]),
    ("fuser", &["device"]),
    ("fuse-backend-rs", &["device"]),
    ("io-uring", &["device"]),
    ("lz4_flex", &["image"]),
    ("axum", &["api", "agent"]),
    ("anyhow", &["agent", "benches", "tests"]),
];

#[test]
fn each_library_stays_in_its_home() {
    let metadata = workspace::metadata();
    for package in workspace::members(&metadata) {
        let name = workspace::text(&package["name"]).trim_start_matches(PREFIX);
        for dependency in workspace::dependencies(package) {
            let home = HOMES.iter().find(|(library, _)| *library == dependency.name);
            let stays = home.is_none_or(|(_, homes)| homes.contains(&name));
            let tests_registry = name == "registry" && dependency.dev && dependency.name == "reqwest";
            assert!(stays || tests_registry, "{name} depends on {}", dependency.name);
        }
    }
}

/// Product files whose code (comments aside) mentions `word` as a whole word.
fn naming(sources: &[Source], word: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let product = sources.iter().filter(|source| source.is_product());
    product
        .filter(|source| source.code().any(|(_, line)| line.split(|c| !is_word(c)).any(|token| token == word)))
        .map(|source| source.path.clone())
        .collect()
}

/// Product files that use paths of the library `name`: `name::...`.
fn using(sources: &[Source], name: &str) -> BTreeSet<String> {
    let path = format!("{name}::");
    let starts = |line: &str| {
        line.match_indices(&path).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    let product = sources.iter().filter(|source| source.is_product());
    product.filter(|source| source.code().any(|(_, line)| starts(line))).map(|source| source.path.clone()).collect()
}

#[test]
fn sled_is_used_in_one_file_of_each_of_its_homes() {
    let files = using(&workspace::sources(), "sled");
    let homes: Vec<&str> = files.iter().filter_map(|file| file.split('/').next()).collect();
    assert_eq!(homes, ["cache", "snapshotter"], "{files:?}");
}

#[test]
fn http_is_fetched_only_by_the_fetcher() {
    for library in ["reqwest", "oci_distribution"] {
        let mut files = using(&workspace::sources(), library);
        files.retain(|file| !file.starts_with("benches/"));
        assert!(!files.is_empty(), "{library} is used somewhere, or this test looks for the wrong name");
        assert!(files.iter().all(|file| file.starts_with("fetcher/src/")), "{library}: {files:?}");
    }
}

#[test]
fn unsafe_code_has_one_home() {
    let files = naming(&workspace::sources(), "unsafe");
    let home = BTreeSet::from(["device/src/sys.rs".to_owned()]);
    assert!(files.is_subset(&home), "{files:?}");
    let lifted = naming(&workspace::sources(), "unsafe_code");
    let lifts = BTreeSet::from(["device/src/sys.rs".to_owned(), "device/src/lib.rs".to_owned()]);
    assert!(lifted.is_subset(&lifts), "the lint is lifted in {lifted:?}");
}

#[test]
fn no_file_outgrows_its_noun() {
    let sources = workspace::sources();
    let product: Vec<&Source> = sources.iter().filter(|source| source.is_product()).collect();
    assert!(product.len() > 30, "found only {} product files", product.len());
    for source in product {
        let lines = source.product_lines();
        assert!(lines <= MOST_LINES, "{} has {lines} product lines of {MOST_LINES}", source.path);
    }
}

#[test]
fn every_file_says_what_it_is() {
    for source in workspace::sources() {
        let first = source.text.lines().find(|line| !line.starts_with("#!")).unwrap_or_default();
        assert!(first.starts_with("//!"), "{} starts with {first:?}, not with //!", source.path);
        let text: String =
            source.text.lines().take_while(|line| line.starts_with("//!") || line.starts_with("#!")).collect();
        assert!(text.len() > 15, "{} says too little in its first lines", source.path);
        assert!(!source.path.ends_with("/mod.rs"), "{}: a module is foo.rs and foo/", source.path);
    }
}

#[test]
fn nothing_is_left_for_later() {
    // Written apart, so that this file does not name them itself.
    let forbidden =
        [["to", "do!("], ["unimpl", "emented!("], ["#[al", "low("], ["#![al", "low("], ["TO", "DO"], ["FIX", "ME"]];
    for source in workspace::sources() {
        for (number, line) in source.text.lines().enumerate() {
            for word in forbidden.map(|parts| parts.concat()) {
                assert!(!line.contains(&word), "{}:{}: {word}", source.path, number + 1);
            }
        }
    }
}

/// `file.rs::function` in backticks, anywhere in a page: the file and the function's last name.
fn named_functions(page: &str) -> Vec<(String, String)> {
    let quoted = page.split('`').skip(1).step_by(2);
    quoted
        .filter_map(|code| code.split_once(".rs::"))
        .map(|(file, path)| {
            (format!("{file}.rs"), path.rsplit("::").next().unwrap_or(path).trim_end_matches("()").to_owned())
        })
        .collect()
}

#[test]
fn the_read_path_names_functions_that_exist() {
    let named = named_functions(&doc("docs/read-path.md"));
    assert!(named.len() >= 9, "docs/read-path.md names only {} functions as `file.rs::name`", named.len());
    for (file, function) in named {
        let text = doc(&file);
        let found = [format!("fn {function}("), format!("fn {function}<")].iter().any(|start| text.contains(start));
        assert!(found, "docs/read-path.md names {file}::{function}; the file has no such function");
    }
}
