//! A real `/dev/ublkbN`: scenarios of `src/bin/guest.rs` in VMs with Debian's kernel (tests/vm/README.md).

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use parking_lot::Mutex;
use penstock_tests::{
    agent,
    containerd::Release,
    require,
    runnable::{self, Kind, Runnable},
    skip::program,
    workdir::Workdir,
    workspace,
};

/// One VM at a time: each emulates two CPUs, and the machine may have no more.
static ONE: Mutex<()> = Mutex::new(());

/// Longest time of one scenario, in seconds. Emulated on a loaded machine, the longest takes a few minutes.
const LIMIT_SECONDS: usize = 600;

/// The certificate authorities of a Debian system.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The directory with the kernel, or why there is none.
fn kernel() -> Result<&'static Path, String> {
    static KERNEL: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let kernel = KERNEL.get_or_init(|| {
        let target = agent::binary().ancestors().nth(2).expect("the program lies in target/ci");
        let dir = target.join("vm-kernel");
        let got = Command::new(workspace::root().join("tests/vm/get-kernel.sh")).arg(&dir).output();
        let got = got.map_err(|error| format!("tests/vm/get-kernel.sh: {error}"))?;
        let last = String::from_utf8_lossy(&got.stderr).lines().last().unwrap_or_default().to_owned();
        if got.status.success() { Ok(dir) } else { Err(format!("no kernel with ublk can be had through apt: {last}")) }
    });
    kernel.as_deref().map_err(Clone::clone)
}

fn cannot() -> Option<String> {
    let missing = ["qemu-system-x86_64", "busybox", "cpio", "xz"].into_iter().find_map(program);
    missing.or_else(|| kernel().err())
}

/// A copy without symbols: what goes into the VM's memory should be small.
fn stripped(program: &Path, work: &Workdir) -> PathBuf {
    let copy = work.join(program.file_name().expect("a name").to_str().expect("UTF-8"));
    let strip = Command::new("strip").arg("-o").arg(&copy).arg(program).output();
    if !strip.is_ok_and(|out| out.status.success()) {
        std::fs::copy(program, &copy).expect("a copy");
    }
    copy
}

/// Those that leave nothing behind, and so can follow each other in one VM: an emulated boot takes longer than most of them.
const TOGETHER: [&str; 4] = ["whole", "two-at-once", "others-do-not-stall", "detached-under-load"];

/// A scenario of [`TOGETHER`]. All run, also after one that failed.
fn passes_among_others(scenario: &str) {
    static SAID: OnceLock<String> = OnceLock::new();
    assert!(TOGETHER.contains(&scenario), "{scenario}");
    let said = SAID.get_or_init(|| boot(&TOGETHER, &Workdir::new(), None, &[]).1);
    assert!(said.contains(&done(scenario)), "{scenario} in the VM:\n{said}");
}

/// A scenario with a VM of its own.
fn passes(scenario: &str) {
    ends_well(scenario, &Workdir::new(), None, &[]);
}

fn ends_well(scenario: &str, work: &Workdir, disk: Option<&Path>, more: &[&str]) {
    let (is_success, said) = boot(&[scenario], work, disk, more);
    assert!(is_success && said.contains(&done(scenario)), "{scenario} in the VM:\n{said}");
}

/// What a scenario says at its end.
fn done(scenario: &str) -> String {
    format!("guest: {scenario}: done")
}

/// Boots a VM for some scenarios, with a disk mounted on /state if there is one, and with more arguments of run-vm.sh. Returns whether the
/// last one succeeded, and what all said.
fn boot(scenarios: &[&str], work: &Workdir, disk: Option<&Path>, more: &[&str]) -> (bool, String) {
    let fixtures = workspace::root().join("tests/fixtures");
    let fixtures = fixtures.to_str().expect("UTF-8");
    // The guest looks for them where they are here; /tmp there is an empty file system that would hide a copy.
    let (parent, _) = fixtures.rsplit_once('/').expect("an absolute path");
    let mount = if disk.is_some() { "mkdir -p /state && mount -t ext4 /dev/vda /state && " } else { "" };
    let guests: Vec<String> = scenarios.iter().map(|scenario| format!("guest {scenario} /bin/penstock")).collect();
    let command = format!("{mount}mkdir -p {parent} && ln -s /fixtures {fixtures} && {{ {}; }}", guests.join("; "));
    let _one = ONE.lock();
    let out = Command::new(workspace::root().join("tests/vm/run-vm.sh"))
        .arg("-k")
        .arg(kernel().expect("asked before"))
        .args(["-m", "ublk_drv", "-m", "ext4", "-m", "overlay", "-m", "virtio_blk", "-M", "2G"])
        .args(["-t", &(LIMIT_SECONDS * scenarios.len()).to_string()])
        .args(disk.map(|disk| ["-d".as_ref(), disk.as_os_str()]).into_iter().flatten())
        .arg("-b")
        .arg(stripped(agent::binary(), work))
        .arg("-b")
        .arg(stripped(Path::new(env!("CARGO_BIN_EXE_guest")), work))
        .args(more)
        .args(["-f", &format!("{fixtures}:/fixtures"), "--", &command])
        .output()
        .expect("run-vm.sh starts");
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (out.status.success(), format!("{said}\nended with {}", out.status))
}

#[test]
fn a_ublk_device_shows_the_image_and_goes_away() {
    require!(cannot());
    passes_among_others("whole");
}

#[test]
fn two_ublk_devices_at_once_are_both_right() {
    require!(cannot());
    passes_among_others("two-at-once");
}

#[test]
fn readers_of_a_ublk_device_do_not_wait_for_anothers_fetch() {
    require!(cannot());
    passes_among_others("others-do-not-stall");
}

#[test]
fn a_ublk_device_is_detached_under_load() {
    require!(cannot());
    passes_among_others("detached-under-load");
}

#[test]
fn a_container_on_a_ublk_device_sees_neither_kills_nor_an_upgrade_of_the_agent() {
    require!(cannot());
    passes("outlives-its-agent");
}

#[test]
fn after_a_reboot_without_a_registry_what_was_cached_is_readable() {
    require!(cannot(), program("mke2fs"));
    let work = Workdir::new();
    let disk = work.join("state.img");
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&disk).arg("256M").status();
    assert!(made.is_ok_and(|status| status.success()), "mke2fs");
    ends_well("before-a-reboot", &work, Some(&disk), &[]);
    ends_well("after-a-reboot", &work, Some(&disk), &[]);
}

#[test]
fn a_reader_through_ublk_sees_what_the_failure_matrix_says() {
    require!(cannot());
    passes("failure-matrix");
}

#[test]
fn containers_start_from_ublk_devices_before_their_image_was_fetched_and_see_no_kill_of_the_agent() {
    require!(cannot(), runnable::cannot(), Release::Installed.cannot());
    let (work, image) = (Workdir::new(), Runnable::new(1, 2));
    let dir = work.dir("image");
    runnable::layout(&dir, "1", &image.layers(Kind::OverlayBd), &["sh"]);
    std::fs::write(dir.join("sums"), image.sums()).expect("a file");
    let ordinary = work.dir("ordinary");
    runnable::layout(&ordinary, "1", &image.layers(Kind::Ordinary), &["sh"]);
    let [dir, ordinary] = [(dir, "image"), (ordinary, "ordinary")].map(|(dir, at)| format!("{}:/{at}", dir.display()));
    // What pushes an index wants to know certificate authorities, whatever it pushes to.
    let authorities = format!("{AUTHORITIES}:{AUTHORITIES}");
    let programs = ["-b", "containerd", "-b", "containerd-shim-runc-v2", "-b", "runc", "-b", "ctr"];
    ends_well(
        "containers",
        &work,
        None,
        &[&programs[..], &["-m", "erofs", "-f", &dir, "-f", &ordinary, "-f", &authorities]].concat(),
    );
}

#[test]
fn the_device_crate_alone_serves_disks_through_ublk() {
    require!(cannot(), program("mkfs.erofs"), program("mke2fs"));
    let target = agent::binary().ancestors().nth(2).expect("the program lies in target/ci");
    let built = workspace::cargo()
        .args(["build", "--quiet", "--locked", "--workspace", "--example=serve", "--target-dir"])
        .arg(target)
        .output()
        .expect("cargo starts");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let _one = ONE.lock();
    let out = Command::new(workspace::root().join("tests/vm/device.sh"))
        .env("LIMIT_SECONDS", LIMIT_SECONDS.to_string())
        .arg(kernel().expect("asked before"))
        .arg(target.join("debug/examples/serve"))
        .output()
        .expect("device.sh starts");
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "device.sh ended with {}:\n{said}", out.status);
}
