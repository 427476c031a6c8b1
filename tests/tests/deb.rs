//! The package for Debian: built as `make deb` builds it, from the program under test, and installed, run, upgraded and purged in a clean Debian.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use penstock_registry::Config;
use penstock_tests::{
    agent::{self, Ended},
    debian::{self, Debian},
    fixture,
    loopback::Loopback,
    require,
    skip::{filesystem, fuse, loop_devices, program},
    systemd::Systemd,
    workspace,
};
use serde_json::Value;

/// The package with a revision, where `debian` has it.
fn package(debian: &Debian, revision: u32) -> String {
    let mut build = Command::new(workspace::root().join("packaging/deb.sh"));
    build.arg(debian.path("/root")).arg(agent::binary()).env("CARGO", env!("CARGO"));
    build.env("DEB_REVISION", revision.to_string());
    // As `xz` would be, only sooner.
    build.env("DPKG_DEB_COMPRESSOR_TYPE", "none");
    let out = build.output().expect("packaging/deb.sh starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let path = PathBuf::from(String::from_utf8(out.stdout).expect("UTF-8").trim());
    format!("/root/{}", path.file_name().expect("a name").to_string_lossy())
}

fn cannot() -> Option<String> {
    debian::cannot().or_else(|| ["dpkg-deb", "objdump", "strip", "jq"].into_iter().find_map(program))
}

/// What dpkg says to a line of arguments, which must succeed.
fn dpkg(debian: &Debian, arguments: &str) -> String {
    let Ended { code, stdout, stderr } = debian.sh(&format!("dpkg {arguments}"));
    assert_eq!(code, Some(0), "dpkg {arguments}: {stdout}{stderr}");
    stdout + &stderr
}

#[test]
fn the_package_has_what_users_of_debian_look_for() {
    require!(cannot());
    let debian = Debian::new();
    let package = package(&debian, 1);
    dpkg(&debian, &format!("--install {package}"));
    assert_eq!(debian.sh("dpkg --verify penstock").ok(), "", "every file is as it was packed");
    assert_eq!(debian.sh("command -v penstock").ok(), "/usr/bin/penstock\n");
    assert_eq!(
        debian.sh("dpkg-query -W -f '${Conffiles}' penstock | awk '{ print $1 }'").ok(),
        "/etc/penstock/config.toml\n"
    );
    assert_eq!(debian.sh("stat -c '%a %U' /etc/penstock/config.toml").ok(), "600 root\n");
    assert!(
        debian.sh("penstock agent --print-config").ok().contains("\nenable = \"true\" # /etc/penstock/config.toml")
    );

    let unit = debian.text("/usr/lib/systemd/system/penstock.service");
    assert!(unit.contains("\nExecStart=/usr/bin/penstock agent ") && !unit.contains("/usr/local"), "{unit}");
    assert!(debian.has("/etc/systemd/system/multi-user.target.wants/penstock.service"), "it starts at boot");
    let page = debian.sh("zcat /usr/share/man/man1/penstock-attach.1.gz").ok();
    assert!(page.contains(".SH SYNOPSIS") && page.contains("penstock attach registry.example.com"), "{page}");
    let completes =
        debian.sh("bash -c '. /usr/share/bash-completion/completions/penstock && complete -p penstock'").ok();
    assert!(completes.contains("-F _penstock"), "{completes}");
    for other in ["zsh/vendor-completions/_penstock", "fish/vendor_completions.d/penstock.fish"] {
        assert!(debian.text(&format!("/usr/share/{other}")).contains("penstock"), "{other}");
    }
    assert!(debian.text("/usr/share/doc/penstock/copyright").contains("Apache-2.0"));

    // Everything that Cargo.lock says is linked in, each with what it is checked by.
    let parts: Value = serde_json::from_str(&debian.text("/usr/share/doc/penstock/penstock.cdx.json")).expect("JSON");
    assert_eq!((&parts["bomFormat"], &parts["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    let components = parts["components"].as_array().expect("components");
    let named = |name: &str| components.iter().find(|one| one["name"] == name);
    assert!(components.len() > 200 && named("criterion").is_none(), "what only benches use is not in it");
    let sled = named("sled").expect("sled");
    assert!(sled["purl"].as_str().is_some_and(|purl| purl.starts_with("pkg:cargo/sled@1.0.0-alpha")), "{sled}");
    assert_eq!(sled["hashes"][0]["content"].as_str().map(str::len), Some(64), "{sled}");
    assert!(components.iter().all(|one| one["licenses"][0]["expression"].is_string()));
}

#[test]
fn the_same_commit_makes_the_same_package() {
    require!(cannot());
    let debian = Debian::new();
    let made = || fs::read(debian.path(&package(&debian, 1))).expect("the package");
    assert!(made() == made());
}

/// What newer releases of glibc have is not asked for: the program runs on Debian 12, Ubuntu 22.04, RHEL 9 and what is newer (decision 12).
const GLIBC: (u32, u32) = (2, 34);

#[test]
fn the_program_asks_for_no_newer_glibc_than_it_is_said_to_run_with() {
    require!(program("objdump"));
    let out = Command::new("objdump").arg("-T").arg(agent::binary()).output().expect("objdump starts");
    let table = String::from_utf8(out.stdout).expect("UTF-8");
    let versions = table.split("GLIBC_").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let mut numbers = rest[..end].split('.').map(|number| number.parse::<u32>().expect("a number"));
        Some((numbers.next()?, numbers.next()?))
    });
    assert_eq!(versions.max(), Some(GLIBC));
    let out = Command::new("objdump").arg("-p").arg(agent::binary()).output().expect("objdump starts");
    let head = String::from_utf8(out.stdout).expect("UTF-8");
    let mut needed: Vec<&str> =
        head.lines().filter_map(|line| line.trim().strip_prefix("NEEDED")).map(str::trim).collect();
    needed.sort_unstable();
    assert_eq!(
        needed,
        ["ld-linux-x86-64.so.2", "libc.so.6", "libgcc_s.so.1", "libm.so.6"],
        "nothing else is installed with it"
    );
}

#[test]
fn an_upgrade_starts_the_new_program_and_keeps_config_and_choices() {
    require!(cannot());
    let debian = Debian::new();
    let systemd = Systemd::of(&debian);
    let (first, second) = (package(&debian, 1), package(&debian, 2));
    dpkg(&debian, &format!("--install {first}"));
    assert_eq!(systemd.told(), ["preset penstock", "daemon-reload", "start penstock"], "as Debian's users expect");
    assert!(debian.sh("penstock version").ok().contains("agent"));
    let own = "\n[fetch]\nplain_http = [\"registry.lan:5000\"]\n";
    let config = debian.path("/etc/penstock/config.toml");
    let packed = fs::read_to_string(&config).expect("the config").replace("\n[fetch]\n", own);
    fs::write(&config, &packed).expect("a config of one's own");

    dpkg(&debian, &format!("--install {second}"));
    assert_eq!(systemd.told(), ["daemon-reload", "restart penstock"], "it is not stopped meanwhile");
    assert_eq!(debian.text("/etc/penstock/config.toml"), packed);
    assert!(debian.sh("penstock version").ok().contains("agent"));

    // Whoever has switched it off finds it off.
    assert_eq!(debian.sh("systemctl disable --now penstock").code, Some(0));
    let _ = systemd.told();
    dpkg(&debian, &format!("--install {first}"));
    assert!(!systemd.runs("penstock") && !systemd.told().iter().any(|told| told.ends_with("start penstock")));
    assert!(!debian.has("/etc/systemd/system/multi-user.target.wants/penstock.service"));
}

#[test]
fn a_package_in_use_is_not_removed_and_a_purge_leaves_nothing() {
    require!(cannot(), fuse(), loop_devices(), filesystem("ext4"));
    let debian = Debian::new();
    let systemd = Systemd::of(&debian);
    let registry = Loopback::start(Config::default());
    registry.layout(&fixture::layout(), "fixtures/overlaybd");
    dpkg(&debian, &format!("--install {}", package(&debian, 1)));
    systemd.start("containerd");
    let before = debian.text("/etc/containerd/config.toml");
    assert_eq!(debian.sh("penstock containerd configure --restart").code, Some(0));
    assert!(debian.text("/etc/containerd/config.toml").contains("penstock.toml"));

    let reference = format!("{}/fixtures/overlaybd:obd-lz4", registry.host());
    let attached = debian.sh(&format!("penstock attach {reference} --transport fuse --mount /mnt"));
    assert_eq!(attached.code, Some(0), "{}", attached.stderr);
    let user = File::open(debian.path("/mnt")).expect("the mount");
    let refused = debian.sh("dpkg --remove penstock");
    assert!(refused.code != Some(0) && refused.stderr.contains("not removed: its device"), "{}", refused.stderr);
    assert!(systemd.runs("penstock") && debian.has("/mnt/etc"), "nothing was taken away from its user");
    drop(user);

    let _ = systemd.told();
    dpkg(&debian, "--remove penstock");
    assert!(!systemd.runs("penstock") && !debian.has("/usr/bin/penstock"));
    assert!(systemd.told().contains(&"restart containerd".to_owned()), "it forgets the snapshotter that is gone");
    assert_eq!(debian.text("/etc/containerd/config.toml"), before);
    assert!(debian.has("/etc/penstock/config.toml") && debian.has("/var/lib/penstock/cache"), "until it is purged");

    // What somebody uses stays: here something that was mounted beside our own.
    let busy = debian.path("/var/lib/penstock/busy");
    mounted(&busy);
    let user = File::create(busy.join("file")).expect("a file");
    let refused = debian.sh("dpkg --purge penstock");
    assert!(refused.code != Some(0) && refused.stderr.contains("/var/lib/penstock is kept"), "{}", refused.stderr);
    assert!(busy.join("file").exists() && debian.has("/var/lib/penstock/cache"));
    drop(user);
    dpkg(&debian, "--purge penstock");
    for gone in
        ["/var/lib/penstock", "/etc/penstock", "/usr/share/doc/penstock", "/usr/lib/systemd/system/penstock.service"]
    {
        assert!(!debian.has(gone), "{gone}");
    }
    let left = debian.sh("find /etc/systemd /var/lib/systemd -name 'penstock*'").ok();
    assert_eq!(left, "");
}

/// Mounts an empty file system on a new directory.
fn mounted(dir: &Path) {
    fs::create_dir_all(dir).expect("a directory");
    let status = Command::new("mount").args(["-t", "tmpfs", "busy"]).arg(dir).status();
    assert!(status.is_ok_and(|status| status.success()), "a tmpfs is mounted");
}

#[test]
fn the_manual_has_no_mistakes_that_man_sees() {
    require!(program("man"));
    let work = penstock_tests::workdir::Workdir::new();
    let status = Command::new(agent::binary()).args(["man", "--dir"]).arg(work.path()).status();
    assert!(status.is_ok_and(|status| status.success()));
    let pages: Vec<PathBuf> =
        fs::read_dir(work.path()).expect("pages").map(|entry| entry.expect("a page").path()).collect();
    assert!(pages.len() > 25, "{pages:?}");
    let mut man = Command::new("man");
    man.args(["--warnings", "--encoding=UTF-8", "--local-file"])
        .args(&pages)
        .env("LC_ALL", "C.UTF-8")
        .env("MANWIDTH", "80");
    let out = man.output().expect("man starts");
    assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stdout).contains("penstock attach"));
}
