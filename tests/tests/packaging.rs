//! What is packaged is understood by what it is packaged for.

use std::{fs, process::Command};

use penstock_tests::{require, skip::program, workdir::Workdir, workspace};

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
