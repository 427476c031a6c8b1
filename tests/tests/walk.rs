//! A new user's walk: the commands of README.md and docs/getting-started.md, taken from the pages and run to the letter in a clean Debian.
//!
//! What is written there and cannot be here: the registry's name is that of a registry on this machine, and systemd is a stand-in that runs what the
//! units say. The package is where a user would have it, in the directory in which the commands are typed.

use std::{fs, process::Command};

use penstock_tests::{
    agent,
    containerd::Release,
    debian::{self, Debian},
    docker_registry::DockerRegistry,
    require,
    runnable::{self, Kind, Runnable},
    skip::{filesystem, fuse, loop_devices, program},
    systemd::Systemd,
    workspace,
};

/// The image of the pages.
const IMAGE: &str = "registry.example.com/team/app:1.4";

/// What is typed in the block after `<!-- walked: NAME -->`: the lines after a root's prompt.
fn commands(page: &str, name: &str) -> Vec<String> {
    let text = fs::read_to_string(workspace::root().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
    let (_, rest) = text
        .split_once(&format!("<!-- walked: {name} -->\n```console\n"))
        .unwrap_or_else(|| panic!("{page} has no block {name}"));
    let (block, _) = rest.split_once("```").expect("the end of the block");
    let commands: Vec<String> = block.lines().filter_map(|line| line.strip_prefix("# ")).map(str::to_owned).collect();
    assert!(!commands.is_empty(), "{page}: {name}");
    commands
}

/// A user at a clean Debian, in /root with the package.
struct User {
    debian: Debian,
    systemd: Systemd,
    registry: DockerRegistry,
}

impl User {
    fn new() -> Self {
        let (debian, registry) = (Debian::new(), DockerRegistry::start());
        let mut build = Command::new(workspace::root().join("packaging/deb.sh"));
        build.arg(debian.path("/root")).arg(agent::binary()).env("CARGO", env!("CARGO"));
        // As `xz` would be, only sooner.
        let out = build.env("DPKG_DEB_COMPRESSOR_TYPE", "none").output().expect("packaging/deb.sh starts");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Self { systemd: Systemd::of(&debian), debian, registry }
    }

    /// Types the commands of a block, each of which must succeed; answers what they print.
    fn types(&self, page: &str, name: &str) -> String {
        let reference = format!("{}/team/app:1.4", self.registry.host());
        let mut said = String::new();
        for command in commands(page, name) {
            let typed = self.debian.sh(&format!("cd /root && {}", command.replace(IMAGE, &reference)));
            assert_eq!(typed.code, Some(0), "{page}: {command}: {}{}", typed.stdout, typed.stderr);
            said += &typed.stdout;
        }
        said
    }
}

fn cannot() -> Option<String> {
    debian::cannot()
        .or_else(runnable::cannot)
        .or_else(fuse)
        .or_else(loop_devices)
        .or_else(|| filesystem("ext4"))
        .or_else(|| ["dpkg-deb", "objdump", "strip", "jq", "docker-registry"].into_iter().find_map(program))
}

const START: &str = "docs/getting-started.md";

#[test]
fn the_first_commands_of_the_readme_work_on_a_clean_debian() {
    require!(cannot());
    let user = User::new();
    let said = user.types("README.md", "first");
    assert!(said.contains("FULL PULL"), "{said}");
    assert!(user.systemd.runs("penstock"), "and the service is there");
    assert_eq!(commands("README.md", "first"), commands(START, "demo"), "both pages begin alike");
}

#[test]
fn the_guide_leads_from_the_package_over_containerd_to_nothing_left() {
    require!(cannot(), Release::Sid.cannot());
    let user = User::new();
    let image = Runnable::new(1, 2);
    let layers = image.layers(Kind::OverlayBd);
    let _ = runnable::push(&user.registry.repository("team/app"), "1.4", &layers, &["true"]);
    // The guide's containerd for `ctr`: 2.1, where the clean Debian has 1.6.
    let path = Release::Sid.command("containerd").get_program().to_owned();
    let programs = std::path::Path::new(&path).parent().expect("a directory");
    for entry in fs::read_dir(programs).expect("programs") {
        let entry = entry.expect("a program");
        fs::copy(entry.path(), user.debian.path("/usr/bin").join(entry.file_name())).expect("a copy");
    }
    user.systemd.start("containerd");
    let before = user.debian.text("/etc/containerd/config.toml");

    let install = &commands(START, "demo")[0];
    assert_eq!(user.debian.sh(&format!("cd /root && {install}")).code, Some(0), "{install}");
    let said = user.types(START, "attach");
    assert!(said.contains("\ndata\n") && said.contains("overlaybd") && said.contains("detached"), "{said}");
    let said = user.types(START, "containerd");
    assert!(said.contains("containerd was restarted") && !said.contains("failed "), "{said}");
    let said = user.types(START, "ctr");
    assert!(said.contains("\n2\n"), "the container has read its file: {said}");
    let lazily = said.lines().filter(|line| line.split_whitespace().nth(2) == Some("yes")).count();
    assert_eq!(lazily, layers.len(), "{said}");
    user.types(START, "undo");
    assert_eq!(user.debian.text("/etc/containerd/config.toml"), before);
    for gone in ["/usr/bin/penstock", "/etc/penstock", "/var/lib/penstock"] {
        assert!(!user.debian.has(gone), "{gone}");
    }
}
