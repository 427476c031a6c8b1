//! What is packaged is understood by what it is packaged for.

use std::{fs, process::Command};

use penstock_tests::{agent, require, skip::program, workdir::Workdir, workspace};

/// What only newer releases of systemd know; older ones say so and go on.
const NEWER: &str = "FileDescriptorStorePreserve";

#[test]
fn systemd_understands_the_unit() {
    require!(program("systemd-analyze"));
    let unit = fs::read_to_string(workspace::root().join("packaging/penstock.service")).expect("the unit");
    assert!(unit.contains("FileDescriptorStoreMax=1024\n") && unit.contains("\nEnvironment=FDSTORE=1024\n"));
    // The program is not installed where the unit has it.
    let (work, installed) = (Workdir::new(), "/usr/local/bin/penstock");
    assert!(unit.contains(installed));
    let path = work.join("penstock.service");
    fs::write(&path, unit.replace(installed, "/bin/true")).expect("room for a unit");
    let out = Command::new("systemd-analyze").arg("verify").arg(&path).output().expect("systemd-analyze runs");
    let said = String::from_utf8_lossy(&out.stderr);
    let unexpected: Vec<&str> = said.lines().filter(|line| !line.contains(NEWER)).collect();
    assert!(out.status.success() && unexpected.is_empty(), "{said}");
}

/// What gives a service a mount namespace of its own (systemd.exec(5), systemd 252).
const PRIVATE_MOUNTS: [&str; 24] = [
    "PrivateMounts",
    "PrivateTmp",
    "PrivateDevices",
    "PrivateNetwork",
    "PrivateUsers",
    "PrivateIPC",
    "ProtectSystem",
    "ProtectHome",
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectKernelLogs",
    "ProtectControlGroups",
    "ProtectProc",
    "ProcSubset",
    "ReadWritePaths",
    "ReadOnlyPaths",
    "InaccessiblePaths",
    "ExecPaths",
    "NoExecPaths",
    "TemporaryFileSystem",
    "BindPaths",
    "BindReadOnlyPaths",
    "RootDirectory",
    "RootImage",
];

#[test]
fn what_the_service_mounts_is_seen_by_containerd() {
    let unit = fs::read_to_string(workspace::root().join("packaging/penstock.service")).expect("the unit");
    let settings: Vec<&str> = unit.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    for setting in settings.iter().filter(|setting| !setting.starts_with('#')) {
        assert!(!PRIVATE_MOUNTS.contains(setting), "{setting} gives the agent mounts of its own");
    }
    for wanted in
        ["Type=notify", "Before=containerd.service", "RequiresMountsFor=/var/lib/penstock /var/lib/containerd"]
    {
        assert!(unit.lines().any(|line| line == wanted), "{wanted}");
    }
}

#[test]
fn the_agent_takes_the_packaged_config() {
    let config = workspace::root().join("packaging/config.toml");
    let out = Command::new(agent::binary()).args(["agent", "--print-config", "--config"]).arg(&config).output();
    let out = out.expect("penstock starts");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.contains("\nenable = \"true\" # ") && said.contains("packaging/config.toml, line "), "{said}");
}
