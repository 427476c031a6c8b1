//! This repository as data: its crates, their dependencies, its source files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

/// The prefix of every package of this workspace.
pub const PREFIX: &str = "penstock-";

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_owned()
}

/// The directory that cargo builds into.
///
/// # Panics
/// When this executable was moved out of it.
#[must_use]
pub fn target() -> PathBuf {
    // This executable is <target>/debug/deps/<name>.
    let target = std::env::current_exe().ok().and_then(|path| Some(path.ancestors().nth(3)?.to_owned()));
    target.expect("a test runs from the target directory")
}

/// cargo, in the repository, without the variables that cargo gives to the tests it runs: a build script that looks at them (ring's
/// does) would be run again, and everything above it be built again.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
            .iter()
            .any(|own| text.starts_with(own))
        {
            command.env_remove(&name);
        }
    }
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// What `cargo metadata` says, for Linux on x86-64, from the committed lock file.
///
/// # Panics
/// When cargo fails: with its own words.
#[must_use]
pub fn metadata() -> Value {
    let out = cargo()
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform=x86_64-unknown-linux-gnu"])
        .output()
        .expect("cargo starts");
    assert!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("cargo metadata prints JSON")
}

/// The workspace's own packages of `metadata`.
#[must_use]
pub fn members(metadata: &Value) -> Vec<&Value> {
    let ids = metadata["workspace_members"].as_array().expect("a list of members");
    packages(metadata).into_iter().filter(|package| ids.contains(&package["id"])).collect()
}

/// Every package of `metadata`, dependencies included.
#[must_use]
pub fn packages(metadata: &Value) -> Vec<&Value> {
    metadata["packages"].as_array().expect("a list of packages").iter().collect()
}

/// One direct dependency as its manifest states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// The package's name, whatever it was renamed to.
    pub name: String,
    /// Whether only tests and benches of the package see it.
    pub dev: bool,
}

/// The direct dependencies of `package`.
#[must_use]
pub fn dependencies(package: &Value) -> Vec<Dependency> {
    let list = package["dependencies"].as_array().expect("a list of dependencies");
    list.iter()
        .map(|dependency| Dependency { name: text(&dependency["name"]).to_owned(), dev: dependency["kind"] == "dev" })
        .collect()
}

/// The text of a JSON string, or "" for what is none.
#[must_use]
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A Rust source file of the repository.
#[derive(Debug, Clone)]
pub struct Source {
    /// From the root, such as `cache/src/fill.rs`.
    pub path: String,
    /// What it holds.
    pub text: String,
}

impl Source {
    /// Whether it is part of what is shipped: in the `src` of a product crate, and not a file of tests.
    #[must_use]
    pub fn is_product(&self) -> bool {
        let mut parts = self.path.split('/');
        let crate_dir = parts.next().unwrap_or_default();
        crate_dir != "tests"
            && parts.next() == Some("src")
            && !self.path.ends_with("/tests.rs")
            && !self.path.contains("/tests/")
    }

    /// The lines before the file's unit tests: before `#[cfg(test)]` over a module with a body. One without stands anywhere.
    #[must_use]
    pub fn product_lines(&self) -> usize {
        let lines: Vec<&str> = self.text.lines().map(str::trim).collect();
        let tests = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{');
        lines.windows(2).position(tests).unwrap_or(lines.len())
    }

    /// The product lines without comments, numbered from 1.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().take(self.product_lines()).enumerate();
        lines.map(|(i, line)| (i + 1, line.split("//").next().unwrap_or_default()))
    }
}

/// Every `.rs` file that belongs to the repository, sorted by path.
#[must_use]
pub fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    collect(&root(), &root(), &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn collect(root: &Path, dir: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(dir).expect("a readable directory") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && !name.starts_with('.') && !matches!(name, "target" | "corpus" | "artifacts" | "results") {
            collect(root, &path, found);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).expect("a source file in UTF-8");
            let path = path.strip_prefix(root).expect("below the root").display().to_string();
            found.push(Source { path, text });
        }
    }
}
