//! containerd and the kubelet: whether they know of the agent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::check::Check;
use crate::{
    config::Config,
    containerd::{NAME, Plugin, Understood, ask_snapshotters, ask_version, understood},
};

/// What makes containerd know of us.
const CONFIGURE: &str = "penstock containerd configure --restart";

/// What was seen of containerd.
#[derive(Debug, Clone)]
pub(super) struct Containerd {
    pub(super) socket: PathBuf,
    /// What it calls itself, or why it did not answer.
    pub(super) release: Result<String, String>,
    /// Its snapshotters, when it answered.
    pub(super) plugins: Result<Vec<Plugin>, String>,
    /// What its config says, or why that cannot be told.
    pub(super) config: Result<Understood, String>,
    /// Directories of hosts.toml files: those that cannot be read, with the reason.
    pub(super) unreadable: Vec<String>,
    /// Where the agent looks for them.
    pub(super) hosts_dirs: String,
    /// Whether the agent is to serve it.
    pub(super) is_wanted: bool,
}

pub(super) async fn look(config: &Config, main: &Path) -> Containerd {
    let first = understood(main, None);
    let socket = first.as_ref().map_or_else(|_| crate::containerd::SOCKET.into(), |config| config.socket.clone());
    let release = ask_version(&socket).await;
    let plugins = match &release {
        Ok(_) => ask_snapshotters(&socket).await,
        Err(reason) => Err(reason.clone()),
    };
    let read = |dir: &PathBuf| match fs::read_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Some(format!("{}: {error}", dir.display())),
        _ => None,
    };
    let dirs: Vec<String> = config.hosts_dirs.iter().map(|dir| dir.display().to_string()).collect();
    Containerd {
        socket,
        config: understood(main, release.as_deref().ok()),
        release,
        plugins,
        unreadable: config.hosts_dirs.iter().filter_map(read).collect(),
        hosts_dirs: dirs.join(":"),
        is_wanted: config.snapshotter_enable,
    }
}

pub(super) fn judge(seen: &Containerd) -> Vec<Check> {
    let is_here = seen.release.is_ok() || seen.config.as_ref().is_ok_and(|config| config.exists);
    if !is_here {
        let why = format!(
            "no containerd here ({}: {})",
            seen.socket.display(),
            seen.release.as_ref().err().map_or("", |reason| reason)
        );
        return vec![Check::skipped("containerd", why)];
    }
    let mut checks = vec![match &seen.release {
        Ok(release) => Check::ok("containerd", format!("{release} answers on {}", seen.socket.display())),
        Err(reason) => {
            let next = "systemctl start containerd; if it runs, run this as root";
            Check::failed("containerd", format!("{}: {reason}", seen.socket.display()), next)
        }
    }];
    match &seen.config {
        Err(reason) => {
            checks.push(Check::failed("containerd config", reason, "mend it: containerd does not start with it"))
        }
        Ok(config) => {
            if let Some(stale) = &config.stale {
                let text = format!("conf.d/penstock.toml repeats the main config as it was; {stale} does not hold");
                checks.push(Check::failed("containerd config", text, CONFIGURE));
            }
            checks.push(plugin(seen, config));
            checks.push(labels(seen, config));
            checks.push(hosts(seen, config));
        }
    }
    checks
}

/// Whether containerd knows our snapshotter.
fn plugin(seen: &Containerd, config: &Understood) -> Check {
    let name = "containerd plugin";
    let plugins = match &seen.plugins {
        Ok(plugins) => plugins,
        Err(_) if config.names_us => {
            return Check::skipped(name, "its config names our snapshotter; it does not answer");
        }
        Err(_) => return Check::skipped(name, "it does not answer, and its config does not name our snapshotter"),
    };
    match plugins.iter().find(|plugin| plugin.id == NAME).map(|plugin| &plugin.failure) {
        Some(None) => Check::ok(name, format!("it knows the snapshotter {NAME}; its default is {}", config.default)),
        Some(Some(failure)) => Check::failed(name, &failure.message, "look into containerd's log"),
        None if config.names_us => {
            let seen = "its config names our snapshotter, but it was started before";
            Check::failed(name, seen, "systemctl restart containerd (running containers go on)")
        }
        None if seen.is_wanted => Check::failed(name, "it does not know our snapshotter", CONFIGURE),
        None => Check::skipped(
            name,
            "it does not know our snapshotter, and snapshotter.enable is off in the agent's config",
        ),
    }
}

/// Whether containerd says which layers it asks for.
fn labels(seen: &Containerd, config: &Understood) -> Check {
    let name = "layer labels";
    match (config.has_labels, config.names_us || seen.is_wanted) {
        (true, _) => Check::ok(name, "disable_snapshot_annotations is false"),
        (false, false) => Check::skipped(name, "its config does not name our snapshotter"),
        (false, true) => {
            let seen = "disable_snapshot_annotations is true: no image of Kubernetes is lazy";
            Check::failed(name, seen, CONFIGURE)
        }
    }
}

/// Whether containerd and the agent ask the same mirrors.
fn hosts(seen: &Containerd, config: &Understood) -> Check {
    let name = "hosts.toml";
    if let Some(fault) = seen.unreadable.first() {
        return Check::failed(name, fault, "let the agent's user read it, or name another with fetch.hosts_dirs");
    }
    match &config.config_path {
        Some(path) if *path != seen.hosts_dirs => {
            let text = format!("containerd looks in {path}, the agent in {:?}", seen.hosts_dirs);
            Check::warning(name, text, &format!("set fetch.hosts_dirs of the agent to {path}"))
        }
        Some(path) => Check::ok(name, format!("both look in {path}")),
        None => Check::ok(name, format!("containerd has no config_path; the agent looks in {:?}", seen.hosts_dirs)),
    }
}

/// The kubelet of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kubelet {
    /// Whom it asks about images, when not its container runtime.
    pub(super) image_endpoint: Option<String>,
}

/// The kubelet that runs, if its arguments can be seen.
pub(super) fn kubelet() -> Option<Kubelet> {
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let is_kubelet =
        |process: &PathBuf| fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim() == "kubelet");
    let process = processes.into_iter().find(is_kubelet)?;
    let words = fs::read(process.join("cmdline")).ok().filter(|words| !words.is_empty())?;
    let words: Vec<String> =
        words.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let config = argument(&words, "--config")
        .and_then(|path| fs::read_to_string(process.join("root").join(path.trim_start_matches('/'))).ok());
    Some(Kubelet { image_endpoint: image_endpoint(&words, config.as_deref().unwrap_or_default()) })
}

/// Whom a kubelet with these arguments and this config asks about images: the argument wins.
pub(super) fn image_endpoint(words: &[String], config: &str) -> Option<String> {
    let line = || {
        let value = config.lines().find_map(|line| line.strip_prefix("imageServiceEndpoint:"))?;
        Some(value.trim().trim_matches(['"', '\'']).to_owned())
    };
    argument(words, "--image-service-endpoint").or_else(line).filter(|endpoint| !endpoint.is_empty())
}

fn argument(words: &[String], name: &str) -> Option<String> {
    words.iter().enumerate().find_map(|(at, word)| match word.strip_prefix(name)? {
        "" => words.get(at + 1).cloned(),
        rest => rest.strip_prefix('=').map(str::to_owned),
    })
}

pub(super) fn judge_kubelet(kubelet: Option<&Kubelet>, socket: Option<&Path>) -> Check {
    let name = "kubelet";
    let Some(socket) = socket else { return Check::skipped(name, "the agent has no image service that it could ask") };
    let ours = format!("unix://{}", socket.display());
    match kubelet.map(|kubelet| &kubelet.image_endpoint) {
        None => Check::skipped(name, "no kubelet runs here that can be seen"),
        Some(Some(endpoint)) if endpoint.trim_start_matches("unix://") == socket.to_string_lossy() => {
            Check::ok(name, format!("it asks {ours} about images"))
        }
        Some(other) => {
            let seen = match other {
                Some(other) => format!("it asks {other} about images: the agent does not see its credentials"),
                None => "it asks containerd about images: the agent does not see its credentials".to_owned(),
            };
            Check::warning(name, seen, &format!("if images are private: --image-service-endpoint={ours}"))
        }
    }
}
