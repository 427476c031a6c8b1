//! `penstock doctor`: what it says of a node without an agent, with one, and with a real containerd that is being set up.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use penstock_tests::{
    agent::{self, Place},
    containerd::{self, Release, Snapshotter},
    process::Process,
    require,
    skip::fuse,
    workdir::Workdir,
};
use serde_json::Value;

struct Node {
    work: Workdir,
}

/// What the command said.
struct Said {
    code: Option<i32>,
    checks: Vec<Value>,
}

impl Node {
    fn new(config: &str) -> Self {
        let work = Workdir::new();
        fs::write(work.join("penstock.toml"), config).expect("a config");
        Self { work }
    }

    fn penstock(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(agent::binary());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.work.path());
        command
            .env("PENSTOCK_CONFIG", self.work.join("penstock.toml"))
            .env("PENSTOCK_STATE_DIR", self.work.join("state"));
        command.env("PENSTOCK_SOCKET", Place::new(self.work.path()).socket());
        command.args(arguments).output().expect("penstock starts")
    }

    fn doctor(&self, containerd: &Path) -> Said {
        let config = containerd.to_str().expect("UTF-8");
        let out = self.penstock(&["doctor", "--output", "json", "--containerd-config", config]);
        let report: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        let checks = report["checks"].as_array().expect("checks").clone();
        let failed = checks.iter().filter(|check| check["state"] == "failed").count();
        assert_eq!(report["failed"], failed);
        assert_eq!(out.status.code(), Some(i32::from(failed > 0)));
        Said { code: out.status.code(), checks }
    }

    /// A config of containerd that is not there.
    fn none(&self) -> PathBuf {
        self.work.join("none.toml")
    }
}

impl Said {
    fn check(&self, name: &str) -> &Value {
        let check = self.checks.iter().find(|check| check["name"] == name);
        check.unwrap_or_else(|| panic!("no check {name}: {:?}", self.checks))
    }

    fn state(&self, name: &str) -> &str {
        self.check(name)["state"].as_str().expect("a state")
    }

    fn seen(&self, name: &str) -> &str {
        self.check(name)["seen"].as_str().expect("what was seen")
    }
}

#[test]
fn a_node_without_an_agent_is_looked_at_and_not_changed() {
    let node = Node::new("[fetch]\nhosts_dirs = \"/none\"\n");
    let said = node.doctor(&node.none());
    assert_eq!((said.code, said.state("agent"), said.state("config")), (Some(1), "failed", "ok"));
    assert!(said.checks.iter().filter(|check| check["state"] == "failed").all(|check| check["next"].is_string()));
    let left: Vec<_> = fs::read_dir(node.work.path())
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(left, ["penstock.toml"]);
    let table = node.penstock(&["doctor"]);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(text.contains("-> systemctl start penstock") && text.trim_end().ends_with("skipped"), "{text}");
}

#[test]
fn a_config_that_the_agent_would_refuse_is_named_with_its_line() {
    let node = Node::new("[cache]\n\ncapp = \"1GiB\"\n");
    let said = node.doctor(&node.none());
    let seen = said.seen("config");
    assert!(said.state("config") == "failed" && seen.contains("line 3") && seen.contains("cache.capp"), "{seen}");
}

#[test]
fn a_node_whose_agent_answers_is_good() {
    require!(fuse());
    let node = Node::new("");
    let running = Place::new(node.work.path()).start();
    let said = node.doctor(&node.none());
    assert_eq!(said.code, Some(0), "{:?}", said.checks);
    assert_eq!((said.state("agent"), said.state("readiness")), ("ok", "ok"));
    drop(running);
}

#[test]
fn an_agent_that_does_not_answer_yet_is_told_from_none() {
    let node = Node::new("");
    let state = node.work.dir("state");
    // Something of the agent's name that holds its state and serves nothing, as while it starts.
    let program = node.work.join("penstock");
    fs::copy("/bin/sleep", &program).expect("a program");
    let starting = Process::start("penstock", Command::new(&program).arg("1000"));
    let pid = starting.pid().as_raw_nonzero();
    fs::write(state.join("lock"), format!("{pid}\n")).expect("a lock");
    let said = node.doctor(&node.none());
    assert_eq!(said.state("agent"), "warning");
    assert!(said.seen("agent").contains(&format!("process {pid} is starting")), "{}", said.seen("agent"));
    drop(starting);
    assert_eq!(node.doctor(&node.none()).state("agent"), "failed", "what it left is no agent");
}

/// The node is set up as docs/containerd.md says, and looked at after each step.
fn is_set_up(release: Release) {
    let node = Node::new("");
    let dir = node.work.dir("containerd");
    let place = containerd::Place::new(release, &dir, ("127.0.0.1:9", "pause"), Snapshotter::Overlayfs);
    let main = place.socket().with_file_name("config.toml");
    let mut running = place.start();
    let said = node.doctor(&main);
    assert_eq!((said.state("containerd"), said.state("containerd plugin")), ("ok", "skipped"));
    let program = release.command("containerd").get_program().to_owned();
    let words = [main.as_os_str(), "--program".as_ref(), &program].map(|word| word.to_str().expect("UTF-8"));
    let configured = node.penstock(&[&["containerd", "configure", "--config"][..], &words].concat());
    let text = String::from_utf8_lossy(&configured.stdout).into_owned();
    assert!(text.contains("(it answers on its socket)"), "{text}{}", String::from_utf8_lossy(&configured.stderr));
    let said = node.doctor(&main);
    assert_eq!(said.state("containerd plugin"), "failed");
    assert!(said.seen("containerd plugin").contains("started before"), "{}", said.seen("containerd plugin"));
    running.restart();
    let said = node.doctor(&main);
    assert_eq!((said.state("containerd plugin"), said.state("layer labels")), ("ok", "ok"), "{:?}", said.checks);
    running.stop();
    let said = node.doctor(&main);
    assert_eq!(said.state("containerd"), "failed");
    assert!(said.seen("containerd").contains("containerd.sock"), "{}", said.seen("containerd"));
}

#[test]
fn the_installed_containerd_is_seen_before_and_after_it_is_set_up() {
    require!(penstock_tests::skip::root(), Release::Installed.cannot());
    is_set_up(Release::Installed);
}

#[test]
fn containerd_2_is_seen_before_and_after_it_is_set_up() {
    require!(penstock_tests::skip::root(), Release::Sid.cannot());
    is_set_up(Release::Sid);
}
