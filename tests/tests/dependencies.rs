//! Every dependency is one that deny.toml permits: licence, ban, source. Works without cargo-deny and without a network.

use std::{collections::BTreeSet, fs};

use penstock_tests::workspace;
use serde_json::Value;

struct Policy {
    allowed: BTreeSet<String>,
    exceptions: Vec<(String, BTreeSet<String>)>,
    banned: BTreeSet<String>,
}

fn strings(value: &toml::Value) -> BTreeSet<String> {
    let list = value.as_array().expect("a list in deny.toml");
    list.iter().map(|item| item.as_str().expect("a string in deny.toml").to_owned()).collect()
}

fn policy() -> Policy {
    let text = fs::read_to_string(workspace::root().join("deny.toml")).expect("deny.toml");
    let deny: toml::Table = text.parse().expect("deny.toml is TOML");
    let name = |entry: &toml::Value| entry["crate"].as_str().expect("a crate's name").to_owned();
    let entries = |value: &toml::Value| value.as_array().expect("a list in deny.toml").clone();
    Policy {
        allowed: strings(&deny["licenses"]["allow"]),
        exceptions: entries(&deny["licenses"]["exceptions"]).iter().map(|e| (name(e), strings(&e["allow"]))).collect(),
        banned: entries(&deny["bans"]["deny"]).iter().map(name).collect(),
    }
}

/// Whether the allowed licences satisfy an SPDX expression (`/` is the old way to write OR).
fn permits(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ").replace(" WITH ", "~");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = tokens.as_slice();
    let permitted = either(&mut rest, allowed);
    assert!(rest.is_empty(), "not an SPDX expression: {expression}");
    permitted
}

fn either(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut permitted = both(rest, allowed);
    while let [first, tail @ ..] = *rest
        && *first == "OR"
    {
        *rest = tail;
        permitted |= both(rest, allowed);
    }
    permitted
}

fn both(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut permitted = one(rest, allowed);
    while let [first, tail @ ..] = *rest
        && *first == "AND"
    {
        *rest = tail;
        permitted &= one(rest, allowed);
    }
    permitted
}

fn one(rest: &mut &[&str], allowed: &dyn Fn(&str) -> bool) -> bool {
    let [first, tail @ ..] = *rest else { panic!("the licence expression ends early") };
    *rest = tail;
    if *first != "(" {
        return allowed(first.replace('~', " WITH ").trim_end_matches('+'));
    }
    let permitted = either(rest, allowed);
    assert_eq!(rest.first(), Some(&")"), "a parenthesis is open");
    *rest = &rest[1..];
    permitted
}

/// Packages that are compiled on Linux: reachable from the workspace in the resolved graph.
fn compiled(metadata: &Value) -> Vec<&Value> {
    let nodes = metadata["resolve"]["nodes"].as_array().expect("a resolved graph");
    let mut waiting: Vec<&Value> = metadata["workspace_members"].as_array().expect("members").iter().collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if seen.insert(workspace::text(id)) {
            let node = nodes.iter().find(|node| node["id"] == *id).expect("every package is in the graph");
            waiting.extend(node["deps"].as_array().expect("dependencies").iter().map(|dep| &dep["pkg"]));
        }
    }
    workspace::packages(metadata).into_iter().filter(|package| seen.contains(workspace::text(&package["id"]))).collect()
}

#[test]
fn every_licence_is_allowed() {
    let (policy, metadata) = (policy(), workspace::metadata());
    let packages = compiled(&metadata);
    assert!(packages.len() > 100, "only {} packages found", packages.len());
    for package in packages {
        let name = workspace::text(&package["name"]);
        let exception = policy.exceptions.iter().find(|(of, _)| of == name).map(|(_, allowed)| allowed);
        let allowed =
            |licence: &str| policy.allowed.contains(licence) || exception.is_some_and(|set| set.contains(licence));
        let licence = workspace::text(&package["license"]);
        assert!(!licence.is_empty(), "{name} states no licence");
        assert!(permits(licence, &allowed), "{name} is under {licence}, which deny.toml does not allow");
    }
}

#[test]
fn no_banned_crate_is_compiled() {
    let (policy, metadata) = (policy(), workspace::metadata());
    assert!(policy.banned.contains("openssl-sys") && policy.banned.contains("aws-lc-sys"));
    for package in compiled(&metadata) {
        let name = workspace::text(&package["name"]);
        assert!(!policy.banned.contains(name), "{name} is banned by deny.toml");
    }
}

#[test]
fn every_dependency_comes_from_the_one_registry() {
    let metadata = workspace::metadata();
    let sources: BTreeSet<&str> = workspace::packages(&metadata).iter().filter_map(|p| p["source"].as_str()).collect();
    assert_eq!(sources.len(), 1, "{sources:?}");
    assert!(sources.iter().all(|source| source.starts_with("registry+")), "{sources:?}");
}

#[test]
fn licence_expressions_are_read_as_spdx_means_them() {
    let mit = |licence: &str| licence == "MIT";
    assert!(permits("MIT OR GPL-3.0", &mit) && permits("GPL-3.0/MIT", &mit) && permits("MIT+", &mit));
    assert!(!permits("MIT AND GPL-3.0", &mit) && !permits("GPL-3.0", &mit));
    assert!(!permits("(MIT OR GPL-3.0) AND ISC", &mit) && permits("MIT OR GPL-3.0 AND ISC", &mit));
    assert!(!permits("MIT WITH LLVM-exception", &mit));
}
