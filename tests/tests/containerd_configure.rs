//! `penstock containerd configure`, judged by the containerd that reads what was written: what `config dump` says it understood.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use penstock_tests::{agent, containerd::Release, require, skip, workdir::Workdir};
use toml::{Table, Value};

/// Settings that a node's owner has made, and must keep: in the names of config version 2.
const OWNERS: &str = "\
# Keep this line.
version = 2

[grpc]
  address = \"SOCKET\" # nobody answers there

[plugins]
  [plugins.\"io.containerd.grpc.v1.cri\"]
    [plugins.\"io.containerd.grpc.v1.cri\".registry]
      config_path = \"/etc/hosts.d\"
    [plugins.\"io.containerd.grpc.v1.cri\".containerd]
      discard_unpacked_layers = true
      [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
        runtime_type = \"io.containerd.runc.v2\"
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]
          SystemdCgroup = true
";

struct Node {
    work: Workdir,
    release: Release,
}

impl Node {
    fn new(release: Release, main: &str) -> Self {
        let work = Workdir::new();
        let node = Self { work, release };
        fs::write(node.main(), main.replace("SOCKET", node.work.join("none.sock").to_str().expect("UTF-8")))
            .expect("a config");
        fs::set_permissions(node.main(), fs::Permissions::from_mode(0o640)).expect("a mode");
        fs::write(node.work.join("penstock.toml"), "[fetch]\nhosts_dirs = \"/etc/hosts.d\"\n")
            .expect("the agent's config");
        node
    }

    fn main(&self) -> PathBuf {
        self.work.join("config.toml")
    }

    fn drop_in(&self) -> PathBuf {
        self.work.join("conf.d/penstock.toml")
    }

    fn configure(&self, arguments: &[&str]) -> Output {
        let containerd = self.release.command("containerd");
        let mut command = Command::new(agent::binary());
        command.args(["containerd", "configure", "--config"]).arg(self.main());
        command.arg("--program").arg(containerd.get_program()).args(arguments);
        command.env("PENSTOCK_CONFIG", self.work.join("penstock.toml")).output().expect("penstock starts")
    }

    fn configured(&self, arguments: &[&str]) -> String {
        let out = self.configure(arguments);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{:?}: {said}{}", self.release, String::from_utf8_lossy(&out.stderr));
        said
    }

    /// The config as containerd understands it.
    fn dump(&self) -> Table {
        let mut containerd = self.release.command("containerd");
        let out = containerd.arg("-c").arg(self.main()).args(["config", "dump"]).output().expect("containerd starts");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success() && !said.contains("Ignoring unknown key"), "{:?}: {said}", self.release);
        String::from_utf8_lossy(&out.stdout).parse().expect("containerd prints TOML")
    }

    /// The plugin's settings, under whichever of the two names this release has.
    fn cri(&self, old: &[&str], new: &[&str]) -> Value {
        let dump = self.dump();
        let keys = if self.release.version().0 >= 2 { new } else { old };
        at(&dump, keys).unwrap_or_else(|| panic!("{:?}: nothing at {keys:?}: {dump}", self.release)).clone()
    }

    fn images(&self, key: &str) -> Value {
        self.cri(
            &["plugins", "io.containerd.grpc.v1.cri", "containerd", key],
            &["plugins", "io.containerd.cri.v1.images", key],
        )
    }

    /// What the owner has set holds whatever we write.
    fn owner_is_obeyed(&self) {
        let options = ["containerd", "runtimes", "runc", "options", "SystemdCgroup"];
        let (old, new) = (["plugins", "io.containerd.grpc.v1.cri"], ["plugins", "io.containerd.cri.v1.runtime"]);
        assert_eq!(self.cri(&[&old[..], &options].concat(), &[&new[..], &options].concat()), Value::Boolean(true));
        let registry = ["registry", "config_path"];
        let new = ["plugins", "io.containerd.cri.v1.images"];
        let path = self.cri(&[&old[..], &registry].concat(), &[&new[..], &registry].concat());
        assert_eq!(path.as_str(), Some("/etc/hosts.d"), "{:?}", self.release);
    }
}

fn at<'a>(table: &'a Table, keys: &[&str]) -> Option<&'a Value> {
    let (last, tables) = keys.split_last()?;
    tables.iter().try_fold(table, |table, key| table.get(*key)?.as_table())?.get(*last)
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn is_understood(release: Release) {
    let node = Node::new(release, OWNERS);
    let before = text(&node.main());
    let shown = node.configured(&["--dry-run"]);
    assert!(shown.contains("+imports = [") && shown.contains("snapshotter = \"penstock\"\n"), "{shown}");
    assert_eq!((text(&node.main()), text(&node.drop_in())), (before.clone(), None), "--dry-run writes nothing");

    let said = node.configured(&[]);
    assert!(said.contains("conf.d/penstock.toml") && !said.contains("hosts_dirs"), "{said}");
    let proxy = at(&node.dump(), &["proxy_plugins", "penstock"]).cloned().expect("our snapshotter");
    assert_eq!(proxy["type"].as_str(), Some("snapshot"), "{proxy}");
    assert!(proxy["address"].as_str().is_some_and(|address| address.ends_with(".sock")), "{proxy}");
    assert_eq!(node.images("snapshotter").as_str(), Some("penstock"));
    for key in ["disable_snapshot_annotations", "discard_unpacked_layers"] {
        assert_eq!(node.images(key).as_bool(), Some(false), "{key}");
    }
    if release.version() >= (1, 7) {
        assert!(proxy["exports"]["root"].as_str().is_some_and(|root| root.ends_with(".penstock")), "{proxy}");
    }
    if release.version() >= (2, 1) {
        assert_eq!(proxy["exports"]["enable_remote_snapshot_annotations"].as_str(), Some("true"));
        let unpack = at(&node.dump(), &["plugins", "io.containerd.transfer.v1.local", "unpack_config"]).cloned();
        let names: Vec<String> = unpack
            .as_ref()
            .and_then(Value::as_array)
            .expect("what is unpacked")
            .iter()
            .map(|entry| entry["snapshotter"].to_string())
            .collect();
        assert_eq!(names, ["\"overlayfs\"", "\"penstock\""]);
    }
    node.owner_is_obeyed();

    let after = (text(&node.main()), text(&node.drop_in()));
    assert!(node.configured(&[]).ends_with("nothing to change\n"));
    assert_eq!((text(&node.main()), text(&node.drop_in())), after, "again");
    let mode = fs::metadata(node.main()).expect("the config").permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);

    node.configured(&["--undo"]);
    assert_eq!((text(&node.main()), text(&node.drop_in())), (before, None));
    assert_eq!(text(&node.work.join("config.toml.before-penstock")), None);
    assert!(node.configured(&["--undo"]).ends_with("nothing to change\n"));
    assert_eq!(node.images("snapshotter").as_str(), Some("overlayfs"));
}

#[test]
fn the_installed_containerd_understands_what_is_written_and_undo_restores_every_byte() {
    require!(skip::program("containerd"));
    is_understood(Release::Installed);
}

#[test]
fn containerd_1_7_understands_it() {
    require!(Release::Trixie.cannot());
    is_understood(Release::Trixie);
}

#[test]
fn containerd_2_understands_it_beside_a_config_of_the_older_version() {
    require!(Release::Sid.cannot());
    is_understood(Release::Sid);
}

#[test]
fn containerd_2_understands_it_beside_a_config_of_its_own_version() {
    require!(Release::Sid.cannot());
    let new = OWNERS
        .replace("version = 2", "version = 3")
        .replace("grpc.v1.cri\".registry", "cri.v1.images\".registry")
        .replace("  [plugins.\"io.containerd.grpc.v1.cri\"]\n", "")
        .replace("    [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n      discard_unpacked_layers = true\n", "")
        .replace("grpc.v1.cri", "cri.v1.runtime");
    let node = Node::new(Release::Sid, &new);
    node.configured(&[]);
    assert_eq!(node.images("snapshotter").as_str(), Some("penstock"));
    assert_eq!(node.images("disable_snapshot_annotations").as_bool(), Some(false));
    node.owner_is_obeyed();
}

#[test]
fn a_runtime_of_its_own_starts_containers_as_the_default_one_does() {
    for release in [Release::Trixie, Release::Sid] {
        require!(release.cannot());
        let node = Node::new(release, OWNERS);
        node.configured(&["--runtime-class", "lazy"]);
        let runtime = ["containerd", "runtimes", "lazy"];
        let (old, new) = (["plugins", "io.containerd.grpc.v1.cri"], ["plugins", "io.containerd.cri.v1.runtime"]);
        let lazy = node.cri(&[&old[..], &runtime].concat(), &[&new[..], &runtime].concat());
        assert_eq!(lazy["snapshotter"].as_str(), Some("penstock"), "{lazy}");
        assert_eq!(lazy["options"]["SystemdCgroup"].as_bool(), Some(true), "{lazy}");
        assert_eq!(node.images("snapshotter").as_str(), Some("overlayfs"));
        node.owner_is_obeyed();
        if release.version().0 >= 2 {
            let platforms = node.images("runtime_platforms");
            assert_eq!(platforms["lazy"]["snapshotter"].as_str(), Some("penstock"), "{platforms}");
        }
    }
}

#[test]
fn what_somebody_else_has_chosen_stays_unless_told() {
    require!(skip::program("containerd"));
    let chosen = OWNERS.replace("discard_unpacked_layers = true", "snapshotter = \"stargz\"");
    let node = Node::new(Release::Installed, &chosen);
    let before = text(&node.main());
    let refused = node.configure(&[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(5), "{said}");
    assert!(said.contains("stargz") && said.contains("--force") && said.lines().count() == 1, "{said}");
    assert_eq!((text(&node.main()), text(&node.drop_in())), (before.clone(), None));
    node.configured(&["--force"]);
    assert_eq!(node.images("snapshotter").as_str(), Some("penstock"));
    node.configured(&["--undo"]);
    assert_eq!(text(&node.main()), before);
}

/// `systemctl` for this test: notes what it is told, and ends with the status in a file beside it.
const SYSTEMCTL: &str =
    "#!/bin/sh\necho \"$*\" >>\"${0%/*}/told\"\nread -r status <\"${0%/*}/status\"\nexit \"$status\"\n";
/// Runs a command with a `/run` of its own, where systemd is or is not: what it restarts is never this machine's containerd.
const APART: &str =
    "mount -t tmpfs none /run && { [ -z \"$1\" ] || mkdir -p /run/systemd/system; } && shift && exec \"$@\"";

#[test]
fn containerd_is_restarted_through_systemd_and_only_when_something_changed() {
    require!(skip::root(), skip::program("containerd"), skip::program("unshare"));
    let node = Node::new(Release::Installed, OWNERS);
    let bin = node.work.dir("bin");
    fs::write(bin.join("systemctl"), SYSTEMCTL).expect("a program");
    fs::set_permissions(bin.join("systemctl"), fs::Permissions::from_mode(0o755)).expect("a mode");
    let configure = |systemd: &str, status: &str, arguments: &[&str]| {
        fs::write(bin.join("status"), format!("{status}\n")).expect("a file");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", APART, "sh", systemd]).arg(agent::binary());
        command.args(["containerd", "configure", "--config"]).arg(node.main()).args(arguments);
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()));
        let out = command.env("PENSTOCK_CONFIG", node.work.join("penstock.toml")).output().expect("unshare starts");
        let said = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (out.status.code(), said.concat())
    };
    let told = || text(&bin.join("told")).unwrap_or_default();

    let (code, said) = configure("", "0", &["--restart"]);
    assert!(code == Some(1) && said.contains("was not restarted: systemd does not run here"), "{said}");
    assert!(node.drop_in().exists(), "it says that its config is written");
    node.configured(&["--undo"]);
    let (code, said) = configure("yes", "0", &["--restart"]);
    assert!(code == Some(0) && said.ends_with("containerd was restarted\n"), "{said}");
    assert_eq!(told(), "restart containerd\n");
    let (code, said) = configure("yes", "0", &["--restart"]);
    assert!(code == Some(0) && said.ends_with("nothing to change\n"), "{said}");
    assert_eq!(told(), "restart containerd\n", "not again");
    let (code, said) = configure("yes", "3", &["--undo", "--restart"]);
    assert!(
        code == Some(1) && said.contains("was not restarted: systemctl restart containerd: exit status: 3"),
        "{said}"
    );
    assert_eq!((node.drop_in().exists(), told().lines().count()), (false, 2));
}
