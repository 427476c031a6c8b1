//! Debian's Prometheus and promtool, and a server that reads an agent's metrics.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;

use crate::{http::Request, process::Process, workdir::Workdir, workspace};

/// It is up within a second; a machine under load takes more.
const START: Duration = Duration::from_secs(120);
/// How often it is asked while it logs nothing.
const TICK: Duration = Duration::from_millis(100);

/// The directory with both programs, or why there is none.
fn programs() -> Result<&'static Path, String> {
    static PROGRAMS: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let programs = PROGRAMS.get_or_init(|| {
        let dir = workspace::target().join("debian/prometheus-bookworm");
        let script = workspace::root().join("tests/scripts/containerd.sh");
        let out = Command::new(script).arg(&dir).args(["bookworm", "prometheus"]).output();
        let out = out.map_err(|error| format!("tests/scripts/containerd.sh: {error}"))?;
        let said = String::from_utf8_lossy(&out.stderr);
        let last = said.lines().last().unwrap_or_default();
        if out.status.success() {
            Ok(dir.join("usr/bin"))
        } else {
            Err(format!("no prometheus can be had through apt: {last}"))
        }
    });
    programs.as_deref().map_err(Clone::clone)
}

/// Why Prometheus cannot be run here.
#[must_use]
pub fn cannot() -> Option<String> {
    programs().err()
}

fn program(name: &str) -> Command {
    Command::new(programs().expect("Prometheus, asked for with `cannot`").join(name))
}

/// What promtool finds wrong with a file of rules; `None` when nothing.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn wrong_rules(path: &Path) -> Option<String> {
    let out = program("promtool").args(["check", "rules"]).arg(path).output().expect("promtool starts");
    (!out.status.success()).then(|| String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Prometheus {
    process: Process,
    address: String,
    // Dropped last.
    _work: Workdir,
}

impl Prometheus {
    /// A server that reads the metrics of `target` (`host:port`) each second, with rules of a file.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(target: &str, rules: &Path) -> Self {
        let work = Workdir::new();
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\n\
             scrape_configs: [{{job_name: penstock, static_configs: [{{targets: [\"{target}\"]}}]}}]\n",
            rules.display()
        );
        fs::write(work.join("prometheus.yml"), config).expect("room for a config");
        let mut command = program("prometheus");
        command.arg(format!("--config.file={}", work.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", work.join("data").display()));
        command.arg("--web.listen-address=127.0.0.1:0");
        let process = Process::start("prometheus", &mut command);
        let address = process.wait_for(START, START, |lines| {
            let line = lines.iter().find(|line| line.contains("\"Listening on\""))?;
            Some(line.rsplit_once("address=")?.1.to_owned())
        });
        let server = Self { process, address: address.expect("it listens"), _work: work };
        server.until("/-/ready", |_| Some(()));
        server
    }

    /// Waits until the answer to a GET of `path`, which must be 200, is what `found` looks for.
    ///
    /// # Panics
    /// When it is not in time.
    pub fn until<T>(&self, path: &str, mut found: impl FnMut(&str) -> Option<T>) -> T {
        let ask = || Request::get(path).to_host(&self.address).ok().filter(|answer| answer.status == 200);
        let up = self.process.wait_for(START, TICK, |_| found(&ask()?.text()));
        up.expect("what is waited for comes")
    }

    /// Waits until a query has a result, and answers the first one's value.
    ///
    /// # Panics
    /// When it has none in time.
    #[must_use]
    pub fn value(&self, series: &str) -> String {
        self.until(&format!("/api/v1/query?query={series}"), |text| {
            let answer: Value = serde_json::from_str(text).ok()?;
            Some(answer["data"]["result"][0]["value"][1].as_str()?.to_owned())
        })
    }
}
