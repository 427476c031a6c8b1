//! The agent, who keeps its devices while it is away, and the sockets that containerd and the kubelet ask.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
};

use super::check::Check;
use crate::{
    client::Client,
    config::Config,
    containerd::{SYSTEMD, images},
};

/// The unit of packaging/penstock.service.
const UNIT: &str = "penstock.service";

/// What was seen.
#[derive(Debug, Clone)]
pub(super) struct Agent {
    /// Its release, or why it did not answer.
    pub(super) release: Result<String, String>,
    /// The process that holds the state directory, when it does not answer.
    pub(super) silent: Option<u32>,
    /// Whether it takes work, and if so why it can serve only what is cached; `None` when it did not answer.
    pub(super) ready: Option<Result<Option<String>, String>>,
    /// What systemd says of its unit; `None` without systemd or a unit.
    pub(super) unit: Option<Unit>,
    pub(super) is_supervised: bool,
    /// Whether containerd's sockets are to be served.
    pub(super) serves_containerd: bool,
    /// Those sockets, and whether somebody answers.
    pub(super) sockets: Vec<(&'static str, PathBuf, Result<(), String>)>,
}

/// A unit of systemd.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Unit {
    pub(super) state: String,
    pub(super) kind: String,
    /// Most descriptors that are kept for it.
    pub(super) store_max: u64,
}

pub(super) async fn look(config: &Config) -> Agent {
    let client = Client::new(config.socket.clone());
    let version = client.version().await;
    let ready = match &version {
        Ok(_) => Some(client.ready().await.map_err(|error| error.to_string())),
        Err(_) => None,
    };
    let socket = |name, path: PathBuf| {
        let answers = UnixStream::connect(&path).map(drop).map_err(|error| error.to_string());
        (name, path, answers)
    };
    let silent = version.as_ref().err().and_then(|_| holder(&config.state_dir));
    let images = images(config).map(|path| socket("image socket", path));
    Agent {
        is_supervised: version.as_ref().is_ok_and(|version| is_supervised(version.pid)),
        release: version.map(|version| version.version).map_err(|error| error.to_string()),
        silent,
        ready,
        unit: if Path::new(SYSTEMD).is_dir() { ask_systemd() } else { None },
        serves_containerd: config.snapshotter_enable,
        sockets: [socket("snapshotter socket", config.snapshotter_socket.clone())].into_iter().chain(images).collect(),
    }
}

/// The agent that uses a state directory, by the process id in its lock. One that ended without a word has left its id there.
fn holder(state_dir: &Path) -> Option<u32> {
    let pid = fs::read_to_string(state_dir.join("lock")).ok()?.trim().parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    (name.trim_end() == "penstock").then_some(pid)
}

fn ask_systemd() -> Option<Unit> {
    let properties = "--property=LoadState,ActiveState,Type,FileDescriptorStoreMax";
    let out = Command::new("systemctl").args(["show", UNIT, properties]).output().ok()?;
    unit(&String::from_utf8_lossy(&out.stdout))
}

/// What `systemctl show` says of a unit; `None` when there is none.
pub(super) fn unit(text: &str) -> Option<Unit> {
    let value = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    };
    let store_max = value("FileDescriptorStoreMax").and_then(|most| most.parse().ok()).unwrap_or(0);
    let unit = Unit { state: value("ActiveState")?, kind: value("Type").unwrap_or_default(), store_max };
    value("LoadState").filter(|state| state == "loaded").map(|_| unit)
}

/// Whether the parent of `pid` is `penstock supervise`.
fn is_supervised(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).map(str::trim);
    let words = parent.and_then(|parent| fs::read(format!("/proc/{parent}/cmdline")).ok()).unwrap_or_default();
    words.split(|&byte| byte == 0).any(|word| word == b"supervise")
}

pub(super) fn judge(agent: &Agent, command: &str) -> Vec<Check> {
    let mut checks = vec![match (&agent.release, agent.silent) {
        (Ok(release), _) if release == command => Check::ok("agent", format!("penstock {release} answers")),
        (Ok(release), _) => {
            let seen = format!("penstock {release} answers; this command is {command}");
            Check::warning("agent", seen, "restart the agent: its devices stay")
        }
        (Err(_), Some(pid)) => Check::warning(
            "agent",
            format!(
                "process {pid} is starting, and answers once what was attached is attached again; or it is stopping"
            ),
            "wait; its log (journalctl -u penstock) says what it does",
        ),
        (Err(reason), None) => Check::failed("agent", reason, "systemctl start penstock, or `penstock agent` as root"),
    }];
    checks.push(match &agent.ready {
        Some(Ok(None)) => Check::ok("readiness", "it takes work"),
        Some(Ok(Some(reason))) => Check::warning(
            "readiness",
            format!("it is degraded: {reason}"),
            "penstock endpoints; then the registry, and the network",
        ),
        Some(Err(reason)) => Check::failed("readiness", reason, "look into its log: it starts, or it stops"),
        None => Check::skipped("readiness", "no agent answers"),
    });
    checks.push(keeper(agent));
    checks.extend(agent.sockets.iter().map(|(name, path, answers)| match answers {
        Ok(()) => Check::ok(*name, format!("{} is answered", path.display())),
        Err(_) if !agent.serves_containerd => Check::skipped(*name, "snapshotter.enable is off in the agent's config"),
        Err(reason) => {
            let next = "start the agent, before containerd; its log says why the socket is missing";
            Check::failed(*name, format!("{}: {reason}", path.display()), next)
        }
    }));
    checks
}

/// Who keeps the devices of an agent that is away.
fn keeper(agent: &Agent) -> Check {
    let name = "keeper";
    match &agent.unit {
        Some(unit) if unit.store_max > 0 && unit.kind == "notify" => {
            Check::ok(name, format!("systemd keeps {} descriptors for {UNIT}, which is {}", unit.store_max, unit.state))
        }
        Some(unit) => {
            let seen = format!("{UNIT} is of Type={} with FileDescriptorStoreMax={}", unit.kind, unit.store_max);
            Check::warning(
                name,
                seen,
                "use packaging/penstock.service: without the store FUSE mounts end with the agent",
            )
        }
        None if agent.is_supervised => Check::ok(name, "penstock supervise keeps descriptors"),
        None if agent.release.is_ok() => {
            let seen = "nobody keeps descriptors while the agent is away: FUSE mounts end with it";
            Check::warning(
                name,
                seen,
                "run it under systemd with packaging/penstock.service, or under penstock supervise",
            )
        }
        None => Check::skipped(name, format!("no agent answers, and systemd has no {UNIT}")),
    }
}
