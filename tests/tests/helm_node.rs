//! What the chart's pods do on a node (`files/node.sh`), done for real on a node that is a clean Debian with a containerd of its own: by busybox' shell, as in
//! the agent's image, with the environment and the files that the chart renders. systemd is a stand-in that runs what the units say.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use penstock_tests::{
    agent::{self, Ended},
    chart,
    debian::{self, Debian},
    process::Process,
    require,
    skip::program,
    systemd::Systemd,
    workdir::Workdir,
    workspace::text,
};
use rustix::process::Signal;
use serde_json::Value;

/// Everything waited for comes within seconds; a machine under load takes more.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often something is looked at while nothing is logged.
const TICK: Duration = Duration::from_millis(100);

/// A node, and what the chart's pods bring to it.
struct Node {
    debian: Debian,
    systemd: Systemd,
    values: &'static str,
    /// The files of the ConfigMap, and busybox' programs, as pods have them.
    pod: Workdir,
}

/// Notes that it was called.
const MODPROBE: &str = "#!/bin/sh\necho \"$@\" >>/run/modprobe\n";

impl Node {
    /// A node for a release with one of the chart's values.
    fn new(values: &'static str) -> Self {
        let (debian, pod) = (Debian::new(), Workdir::new());
        let node = Self { systemd: Systemd::of(&debian), debian, values, pod };
        let data = &node.object("ConfigMap", "penstock")["data"];
        for (name, file) in data.as_object().expect("files") {
            fs::write(node.input().join(name), text(file)).expect("a file");
        }
        let programs = node.pod.dir("bin");
        let found = Command::new("sh").args(["-c", "command -v busybox"]).output().expect("a shell").stdout;
        let found = PathBuf::from(String::from_utf8(found).expect("a path").trim());
        let list = Command::new(&found).arg("--list").output().expect("busybox starts").stdout;
        for name in String::from_utf8(list).expect("UTF-8").lines() {
            symlink(&found, programs.join(name)).expect("a link");
        }
        node.debian.program("/usr/sbin/modprobe", MODPROBE);
        node
    }

    fn input(&self) -> PathBuf {
        self.pod.dir("input")
    }

    fn object(&self, kind: &str, name: &str) -> Value {
        let objects = chart::objects(self.values, kind);
        objects.into_iter().find(|one| one["metadata"]["name"] == name).expect("the object")
    }

    /// Runs the script as the init container `name` of a DaemonSet does, with some of its environment said otherwise.
    fn run(&self, set: &str, name: &str, other: &[(&str, &str)]) -> Ended {
        let pod = &self.object("DaemonSet", set)["spec"]["template"]["spec"];
        let containers = pod["initContainers"].as_array().expect("init containers");
        let container = containers.iter().find(|one| one["name"] == name).expect("the container");
        let words: Vec<&str> = container["command"].as_array().expect("a command").iter().map(text).collect();
        assert_eq!(words[..2], ["/bin/sh", "/etc/penstock-chart/node.sh"]);
        let mut command = Command::new(self.pod.join("bin/sh"));
        command.arg(chart::dir().join("files/node.sh")).arg(words[2]).stdin(Stdio::null()).env_clear();
        command.env("PATH", self.pod.join("bin")).env("HOST", self.debian.root()).env("INPUT", self.input());
        command.env("PROGRAM", agent::binary()).env("SECRETS", self.pod.join("secrets"));
        let env = container["env"].as_array().expect("an environment");
        command.envs(env.iter().map(|one| (text(&one["name"]), text(&one["value"]))));
        let out = command.envs(other.iter().copied()).output().expect("busybox starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { code: out.status.code(), stdout: text(&out.stdout), stderr: text(&out.stderr) }
    }

    fn install(&self, other: &[(&str, &str)]) -> Ended {
        self.run("penstock", "install", other)
    }

    /// What the post-delete hook does on this node.
    fn remove(&self, other: &[(&str, &str)]) -> Ended {
        self.run("penstock-cleanup", "remove", other)
    }
}

/// Shows the token `text` in `secrets/api` as the kubelet shows a new version of a secret: the link to it is moved.
fn show_secret(secrets: &Path, version: &str, text: &str) {
    let dir = secrets.join(format!("..{version}/api"));
    fs::create_dir_all(&dir).expect("a directory");
    fs::write(dir.join("token"), text).expect("a secret");
    let link = secrets.join("..new");
    symlink(format!("..{version}"), &link).expect("a link");
    fs::rename(link, secrets.join("..data")).expect("a moved link");
}

fn cannot() -> Option<String> {
    chart::cannot().or_else(debian::cannot).or_else(|| program("busybox"))
}

/// What systemd was told, which must be this; the script has succeeded.
fn is_done(node: &Node, ended: &Ended, told: &[&str]) {
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert_eq!(node.systemd.told(), told, "{}{}", ended.stdout, ended.stderr);
}

#[test]
fn a_node_is_set_up_once_and_again_only_for_what_changes() {
    require!(cannot());
    let node = Node::new("service");
    node.systemd.start("containerd");
    let ended = node.install(&[]);
    is_done(&node, &ended, &["daemon-reload", "enable penstock", "restart penstock", "restart containerd"]);
    let loaded = node.debian.text("/run/modprobe");
    assert!(loaded.contains("-q ublk_drv\n"), "modules are loaded: {loaded}");
    assert_eq!(node.debian.sh("stat -c '%a %U' /etc/penstock/config.toml").ok(), "600 root\n");
    let plugins = node.debian.sh("ctr plugins ls").ok();
    assert!(plugins.lines().any(|line| line.contains("snapshotter") && line.contains(" penstock ")), "{plugins}");
    assert_eq!(node.debian.sh("ctr snapshots --snapshotter penstock ls | wc -l").ok(), "1\n", "the two talk");

    // Another pod on the same node, as after its reboot.
    is_done(&node, &node.install(&[]), &["enable penstock"]);
    let config = node.input().join("config.toml");
    let changed = fs::read_to_string(&config).expect("a config").replace("20GiB", "30GiB");
    fs::write(&config, changed).expect("a config");
    is_done(&node, &node.install(&[]), &["enable penstock", "restart penstock"]);
    assert!(node.debian.sh("/opt/penstock/bin/penstock cache").ok().contains("30.0 GiB"), "the agent reads it");

    // What the agent would not take is not forced on it.
    fs::write(&config, "[cache]\ncap = \"many\"\n").expect("a config");
    let refused = node.install(&[]);
    assert!(refused.code != Some(0) && refused.stderr.contains("cache.cap"), "{}", refused.stderr);
    assert_eq!(node.systemd.told(), [""; 0]);
    assert!(node.systemd.runs("penstock"));
}

#[test]
fn a_restart_of_containerd_that_failed_is_made_up_for() {
    require!(cannot());
    let node = Node::new("service");
    let failed = node.install(&[]);
    assert!(failed.code != Some(0) && failed.stderr.contains("none of these units runs"), "{}", failed.stderr);
    let _ = node.systemd.told();
    node.systemd.start("containerd");
    // Its config is as it should be already.
    is_done(&node, &node.install(&[]), &["enable penstock", "restart containerd"]);
    is_done(&node, &node.install(&[]), &["enable penstock"]);
}

#[test]
fn the_hook_takes_back_everything_but_what_containers_stand_on() {
    require!(cannot());
    let node = Node::new("service");
    let before = node.debian.text("/etc/containerd/config.toml");
    node.systemd.start("containerd");
    assert_eq!(node.install(&[]).code, Some(0));
    assert_eq!(node.debian.sh("ctr -n k8s.io snapshots --snapshotter penstock prepare of-a-container").code, Some(0));
    let _ = node.systemd.told();

    let kept = node.remove(&[]);
    is_done(&node, &kept, &["restart containerd", "disable penstock"]);
    assert!(kept.stdout.contains("containers stand on Penstock") && node.systemd.runs("penstock"), "{}", kept.stdout);
    assert_eq!(node.debian.text("/etc/containerd/config.toml"), before, "what is started from now on does without");

    assert_eq!(node.install(&[]).code, Some(0), "and it can be taken up again");
    assert_eq!(node.debian.sh("ctr -n k8s.io snapshots --snapshotter penstock rm of-a-container").code, Some(0));
    // containerd has it removed when it collects what nobody needs.
    assert_eq!(
        node.debian.sh("ctr -n k8s.io leases create --id one && ctr -n k8s.io leases rm --sync one").code,
        Some(0)
    );
    let listed = "/opt/penstock/bin/penstock snapshots --output json";
    node.systemd.until("penstock", || node.debian.sh(listed).ok().trim() == "[]");
    let _ = node.systemd.told();
    let gone = node.remove(&[("REMOVE_STATE", "true")]);
    is_done(&node, &gone, &["restart containerd", "disable penstock", "daemon-reload"]);
    assert!(gone.stdout.ends_with("removed\n") && !node.systemd.runs("penstock"), "{}", gone.stdout);
    assert_eq!(node.debian.text("/etc/containerd/config.toml"), before);
    for path in
        ["/opt/penstock/bin/penstock", "/etc/penstock", "/var/lib/penstock", "/etc/systemd/system/penstock.service"]
    {
        assert!(!node.debian.has(path), "{path}");
    }
    let again = node.remove(&[]);
    is_done(&node, &again, &[]);
    assert!(again.stdout.contains("nothing is installed"), "{}", again.stdout);
}

/// k3s and RKE2 as a service here: containerd is in them, and their config is as they write it.
const DISTRIBUTION: &str = "[Service]\nExecStart=/usr/bin/tail -f /dev/null\n";

#[test]
fn k3s_and_rke2_keep_their_config_and_are_restarted_as_what_the_node_is() {
    require!(cannot());
    for (values, dir, unit) in [("k3s", "k3s", "k3s-agent"), ("rke2", "rke2", "rke2-server")] {
        let node = Node::new(values);
        let etc = format!("/var/lib/rancher/{dir}/agent/etc/containerd");
        let (config, ours) = (format!("{etc}/config.toml"), format!("{etc}/config-v3.toml.d/penstock.toml"));
        fs::create_dir_all(node.debian.path(&etc)).expect("a directory");
        let written = format!("version = 3\nimports = [\"{etc}/config-v3.toml.d/*.toml\"]\n");
        fs::write(node.debian.path(&config), &written).expect("a config");
        fs::create_dir_all(node.debian.path("/etc/systemd/system")).expect("a directory");
        fs::write(node.debian.path(&format!("/etc/systemd/system/{unit}.service")), DISTRIBUTION).expect("a unit");
        node.systemd.start(unit);

        // There is no containerd here that could be asked for its release.
        let release = [("CONTAINERD_RELEASE", "2.1"), ("RESTART", "true")];
        let ended = node.install(&release);
        let restart = format!("restart {unit}");
        is_done(&node, &ended, &["daemon-reload", "enable penstock", "restart penstock", &restart]);
        assert_eq!(node.debian.text(&config), written, "it is written anew at each start");
        let text = node.debian.text(&ours);
        let root = format!("/var/lib/rancher/{dir}/agent/containerd/io.containerd.snapshotter.v1.penstock");
        assert!(text.contains("[proxy_plugins.penstock]") && text.contains(&root), "{text}");
        assert!(text.contains("io.containerd.cri.v1."), "in the keys of containerd 2: {text}");
        is_done(&node, &node.install(&release), &["enable penstock"]);

        is_done(&node, &node.remove(&release), &[&restart, "disable penstock", "daemon-reload"]);
        assert!(!node.debian.has(&ours), "{values}");
        assert_eq!(node.debian.text(&config), written);
    }
}

#[test]
fn whoever_restarts_containerd_himself_is_told_when() {
    require!(cannot());
    let node = Node::new("service");
    node.systemd.start("containerd");
    let ended = node.install(&[("RESTART", "false")]);
    is_done(&node, &ended, &["daemon-reload", "enable penstock", "restart penstock"]);
    assert!(ended.stdout.contains("containerd must be restarted"), "{}", ended.stdout);
    let again = node.install(&[("RESTART", "false")]);
    assert!(!again.stdout.contains("containerd must be restarted"), "once is enough: {}", again.stdout);
}

#[test]
fn the_pods_log_tells_what_each_agent_does_and_secrets_reach_it_as_they_change() {
    require!(cannot());
    let node = Node::new("service");
    node.systemd.start("containerd");
    assert_eq!(node.install(&[]).code, Some(0));
    let secrets = node.pod.dir("secrets");
    show_secret(&secrets, "1", "first");
    symlink("..data/api", secrets.join("api")).expect("a link");
    let mut command = Command::new(node.pod.join("bin/sh"));
    command.arg(chart::dir().join("files/node.sh")).arg("follow").env_clear().env("PATH", node.pod.join("bin"));
    command.env("HOST", node.debian.root()).env("SECRETS", &secrets).env("PROGRAM", agent::binary());
    command.env("SOCKET", node.debian.path("/run/penstock/penstock.sock")).env("EVERY", "1");
    let mut follow = Process::start("node.sh follow", &mut command);
    let until = |follow: &Process, what: &str, found: &dyn Fn(&[String]) -> bool| {
        let is_so = follow.wait_for(PATIENCE, TICK, |lines| found(lines).then_some(()));
        assert!(is_so.is_some(), "{what}: {:?}", follow.lines());
    };
    let starts = |lines: &[String]| lines.iter().filter(|line| line.contains("\"agent.ready\"")).count();
    let shown = node.debian.path("/etc/penstock/secrets/api/token");
    let is_shown = |text: &str| fs::read_to_string(&shown).is_ok_and(|now| now == text);
    until(&follow, "what has happened", &|lines| starts(lines) == 1);
    until(&follow, "the secret", &|_| is_shown("first"));
    assert_eq!(node.debian.sh("stat -c '%a %U' /etc/penstock/secrets/api/token").ok(), "600 root\n");
    show_secret(&secrets, "2", "second");
    until(&follow, "the changed secret", &|_| is_shown("second"));
    assert_eq!(node.debian.sh("systemctl restart penstock").code, Some(0));
    until(&follow, "what the next agent does", &|lines| starts(lines) == 2);
    follow.signal(Signal::TERM);
    assert_eq!(follow.wait(PATIENCE).and_then(|status| status.code()), Some(0));
}
