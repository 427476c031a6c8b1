//! Devices through a real FUSE mount. Needs root, /dev/fuse and, for some, loop devices: skips, loudly, where they are missing.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

#[path = "fuse/machine.rs"]
mod machine;
#[path = "fuse/takeover.rs"]
mod takeover;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

use penstock_blob::{BlobSource, ByteRange, faults::Stuck};
use penstock_device::{DeviceError, Loop, Transport, User, Wanted, choose};

use machine::{Bench, Disk, Mounted, can_loop, can_mount_files, can_mount_fuse, can_open_fuse, hashes, read_all, tool};

type Test = tokio::runtime::Runtime;

fn runtime() -> Test {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn the_file_has_the_bytes_of_the_disk_whatever_the_size_of_the_reads() {
    if !can_mount_fuse() {
        return;
    }
    runtime().block_on(async {
        let disk = Disk::random(3 << 20);
        let bench = Bench::new(&disk);
        let device = bench.start("bytes", bench.memory.clone()).await;
        assert_eq!(device.transport(), Transport::Fuse);
        let path = device.path().to_owned();
        assert_eq!(path, bench.dir.path().join("fuse/bytes/disk"));
        let expected = disk.bytes.clone();
        let reads = move || {
            assert_eq!(fs::metadata(&path).unwrap().len(), expected.len() as u64);
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
            assert_eq!(read_all(&path), expected);
            let file = File::open(&path).unwrap();
            for (start, len) in [(0, 1), (511, 2), (4096, 1 << 20), (1_000_000, 2_000_001), (expected.len() - 7, 7)] {
                let mut buf = vec![0; len];
                file.read_exact_at(&mut buf, start as u64).unwrap();
                assert!(buf == expected[start..start + len], "{len} bytes at {start}");
            }
            assert_eq!(file.read_at(&mut [0; 10], expected.len() as u64).unwrap(), 0);
        };
        tokio::task::spawn_blocking(reads).await.unwrap();
        let asked = device.stats().asked_bytes;
        assert!(asked >= 3 << 20, "{asked}");
        bench.memory.resident(true);
        let path = device.path().to_owned();
        tokio::task::spawn_blocking(move || read_all(&path)).await.unwrap();
        device.stop().await.unwrap();
        device.stop().await.unwrap();
        let stats = device.stats();
        assert_eq!((stats.errors, stats.dropped, stats.in_flight), (0, 0, 0));
        assert!(stats.misses > 0 && stats.hits > 0 && stats.asked_bytes == asked, "{stats:?}");
        assert!(!bench.dir.path().join("fuse/bytes").exists());
    });
}

#[test]
fn a_qcow2_disk_is_what_qemu_sees_in_its_file() {
    if !can_mount_fuse() || !tool("qemu-img") || !tool("qemu-io") {
        return;
    }
    let tree = machine::Tree::new();
    let disk = tree.disk(|tree, image| {
        let raw = image.with_file_name("raw");
        fs::copy(tree.join("a/large"), &raw).unwrap();
        let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=32k,compression_type=zstd"];
        assert!(Command::new("qemu-img").args(convert).args([&raw, image]).status().unwrap().success());
        let write = ["-f", "qcow2", "-c", "write -P 9 70000 300000", "-c", "write -z 1M 512k"];
        Command::new("qemu-io").args(write).arg(image).status()
    });
    runtime().block_on(async {
        let bench = Bench::new(&disk);
        let qcow2 = bench.dir.path().join("disk.qcow2");
        fs::write(&qcow2, &disk.bytes).unwrap();
        let device = bench.start("qcow2", bench.memory.clone()).await;
        let path = device.path().to_owned();
        let compare = move || {
            let mut compare = Command::new("qemu-img");
            compare.args(["compare", "-f", "qcow2", "-F", "raw"]).args([qcow2, path]).output().unwrap()
        };
        let compared = tokio::task::spawn_blocking(compare).await.unwrap();
        assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
        device.stop().await.unwrap();
        let stats = device.stats();
        assert!(stats.errors == 0 && stats.misses > 0, "{stats:?}");
    });
}

#[test]
fn nothing_can_be_written_or_made() {
    if !can_mount_fuse() {
        return;
    }
    runtime().block_on(async {
        let bench = Bench::new(&Disk::random(1 << 20));
        let device = bench.start("readonly", bench.memory.clone()).await;
        let path = device.path().to_owned();
        let tries = move || {
            let read_only =
                |result: io::Result<()>| assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
            read_only(File::options().write(true).open(&path).map(drop));
            read_only(File::create(path.with_file_name("other")).map(drop));
            read_only(fs::remove_file(&path));
            assert_eq!(fs::metadata(path.with_file_name("other")).unwrap_err().kind(), io::ErrorKind::NotFound);
        };
        tokio::task::spawn_blocking(tries).await.unwrap();
        device.stop().await.unwrap();
    });
}

#[test]
fn erofs_is_mounted_straight_from_the_file() {
    if !can_mount_fuse() || !can_mount_files() || !tool("mkfs.erofs") {
        return;
    }
    let tree = machine::Tree::new();
    let disk =
        tree.disk(|tree, image| Command::new("mkfs.erofs").arg("--quiet").arg("-zlz4hc").args([image, tree]).status());
    file_system_reads(&tree, &disk, "erofs", |path, dir| Mounted::new(path, dir, "erofs", ""));
    file_system_reads(&tree, &disk, "erofs-dio", |path, dir| Mounted::new(path, dir, "erofs", "directio"));
}

#[test]
fn ext4_squashfs_and_xfs_are_mounted_through_a_loop_device() {
    if !can_mount_fuse() || !can_loop() {
        return;
    }
    let tree = machine::Tree::new();
    let through_loop = |file_system: &'static str, options: &'static str| {
        move |path: &Path, dir: &Path| {
            let device = Loop::attach(path, true, true).unwrap();
            assert!(device.direct_io(), "no direct I/O over FUSE");
            // The mount holds the loop device from here on; it goes when the mount goes.
            Mounted::new(device.path(), dir, file_system, options)
        }
    };
    if tool("mke2fs") {
        let disk = tree.disk(|tree, image| {
            Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).args([tree, image]).arg("24M").status()
        });
        file_system_reads(&tree, &disk, "ext4", through_loop("ext4", "noload"));
    }
    if tool("mksquashfs") {
        let disk = tree.disk(|tree, image| {
            Command::new("mksquashfs").args([tree, image]).args(["-quiet", "-no-progress"]).status()
        });
        file_system_reads(&tree, &disk, "squashfs", through_loop("squashfs", ""));
    }
    if tool("mkfs.xfs") {
        // There is no way to fill it but to mount it. Unsupported is the size, which saves a disk of 300 MB.
        let disk = tree.disk(|tree, image| {
            File::create(image)?.set_len(64 << 20)?;
            let made = Command::new("mkfs.xfs").args(["-q", "--unsupported"]).arg(image).status()?;
            let (device, dir) = (Loop::attach(image, false, false).unwrap(), image.with_extension("mnt"));
            let mounted = Mounted::writable(device.path(), &dir, "xfs");
            Command::new("cp").arg("-a").arg(tree.join(".")).arg(&dir).status()?;
            drop(mounted);
            device.detach().unwrap();
            Ok(made)
        });
        file_system_reads(&tree, &disk, "xfs", through_loop("xfs", "norecovery"));
    }
}

/// Mounts what `disk` holds from a device, compares every file, and takes it all down again.
fn file_system_reads(
    tree: &machine::Tree,
    disk: &Disk,
    id: &str,
    mount: impl Fn(&Path, &Path) -> Mounted + Send + 'static,
) {
    let expected = hashes(&tree.path());
    runtime().block_on(async {
        let bench = Bench::new(disk);
        let device = bench.start(id, bench.memory.clone()).await;
        let (path, dir) = (device.path().to_owned(), bench.dir.path().join("mnt"));
        let reads = move || {
            let mounted = mount(&path, &dir);
            assert_eq!(hashes(&dir), expected);
            mounted
        };
        let mounted = tokio::task::spawn_blocking(reads).await.unwrap();
        match device.stop().await {
            Err(DeviceError::Busy { users, .. }) => {
                let known = users.iter().any(|user| matches!(user, User::Mount(_) | User::Loop(_)));
                assert!(known, "the mount is not named: {users:?}");
            }
            other => panic!("a mounted device was stopped: {other:?}"),
        }
        tokio::task::spawn_blocking(move || drop(mounted)).await.unwrap();
        device.stop().await.unwrap();
        assert_eq!((device.stats().errors, device.stats().dropped), (0, 0));
    });
}

#[test]
fn a_stuck_fetch_stalls_only_its_own_readers() {
    if !can_mount_fuse() {
        return;
    }
    runtime().block_on(async {
        let disk = Disk::random(8 << 20);
        let bench = Bench::new(&disk);
        let range = ByteRange::new(1 << 20, (1 << 20) + 4096).unwrap();
        let stuck = Stuck::only(bench.memory.clone(), bench.memory.blob(0).digest, range);
        let device = bench.start("stuck", stuck.clone()).await;
        let path = device.path().to_owned();
        let read_at = |start: u64| {
            let path = path.clone();
            move || {
                let mut buf = vec![0; 4096];
                File::open(path).unwrap().read_exact_at(&mut buf, start).map(|()| buf)
            }
        };
        let slow = tokio::task::spawn_blocking(read_at(1 << 20));
        stuck.until_waiting(1).await;
        let others: Vec<_> =
            (0..100).map(|i| i * 65_536 + 4096).filter(|at| !(1 << 20..(1 << 20) + 4096).contains(at)).collect();
        for start in others {
            let bytes = tokio::task::spawn_blocking(read_at(start)).await.unwrap().unwrap();
            let at = usize::try_from(start).unwrap();
            assert!(bytes == disk.bytes[at..at + 4096]);
        }
        assert!(!slow.is_finished() && stuck.waiting() == 1);
        stuck.release();
        assert!(slow.await.unwrap().unwrap() == disk.bytes[1 << 20..(1 << 20) + 4096]);
        device.stop().await.unwrap();
    });
}

#[test]
fn a_stop_by_force_under_load_answers_everything_and_leaves_nothing() {
    if !can_mount_fuse() {
        return;
    }
    runtime().block_on(async {
        let bench = Bench::new(&Disk::random(8 << 20));
        let stuck = Stuck::new(bench.memory.clone());
        let device = bench.start("load", stuck.clone()).await;
        let readers: Vec<_> = (0..8_u64)
            .map(|i| {
                let path = device.path().to_owned();
                thread::spawn(move || {
                    let file = File::open(path).unwrap();
                    file.read_exact_at(&mut [0; 65_536], i << 20)
                })
            })
            .collect();
        stuck.until_waiting(8).await;
        match device.stop().await {
            Err(DeviceError::Busy { users, .. }) => {
                let me = std::process::id();
                assert!(users.iter().any(|user| matches!(user, User::Process { pid, .. } if *pid == me)), "{users:?}");
            }
            other => panic!("a device with readers was stopped: {other:?}"),
        }
        assert_eq!(device.stats().in_flight, 8);
        device.stop_by_force().await.unwrap();
        for reader in readers {
            reader.join().unwrap().unwrap_err();
        }
        let stats = device.stats();
        assert_eq!((stats.in_flight, stats.errors, stats.dropped), (0, 8, 0));
        assert!(!bench.dir.path().join("fuse/load").exists());
    });
}

#[test]
fn a_killed_reader_does_not_wait_for_its_fetch() {
    if !can_mount_fuse() {
        return;
    }
    runtime().block_on(async {
        let bench = Bench::new(&Disk::random(1 << 20));
        let stuck = Stuck::new(bench.memory.clone());
        let device = bench.start("killed", stuck.clone()).await;
        let mut reader = Command::new("cat").arg(device.path()).stdout(std::process::Stdio::null()).spawn().unwrap();
        stuck.until_waiting(1).await;
        reader.kill().unwrap();
        // Would wait for ever if the fetch were waited for.
        tokio::task::spawn_blocking(move || reader.wait().unwrap()).await.unwrap();
        assert_eq!((stuck.waiting(), device.stats().errors), (1, 1));
        device.stop().await.unwrap();
    });
}

#[test]
fn a_mount_left_by_a_dead_agent_is_replaced() {
    if !can_mount_fuse() {
        return;
    }
    let disk = Disk::random(1 << 20);
    let bench = Bench::new(&disk);
    let path = bench.dir.path().join("fuse/again/disk");
    let first = runtime();
    let device = first.block_on(bench.start("again", bench.memory.clone()));
    let dir = path.parent().unwrap();
    // An agent that is killed closes its connection without unmounting; an abort from outside leaves the same.
    let control = Mounted::fuse_control(&bench.dir.path().join("control"));
    let number = machine::connection_of(dir);
    fs::write(bench.dir.path().join(format!("control/{number}/abort")), "1").unwrap();
    drop(control);
    assert!(fs::read_dir(dir).is_err());
    std::mem::forget(device);
    runtime().block_on(async {
        let device = bench.start("again", bench.memory.clone()).await;
        let read = tokio::task::spawn_blocking(move || read_all(&path)).await.unwrap();
        assert_eq!(read, disk.bytes);
        device.stop().await.unwrap();
    });
    first.shutdown_background();
}

#[test]
fn a_use_without_a_user_is_waited_for_and_refuses_when_it_stays() {
    if !can_mount_fuse() {
        return;
    }
    runtime().block_on(async {
        let bench = Bench::new(&Disk::random(1 << 20));
        let device = bench.start("hidden", bench.memory.clone()).await;
        let dir = device.path().parent().unwrap().to_owned();
        // Who stands in the directory keeps the mount busy, and has no file of it open.
        let stand = |seconds: &str| Command::new("sleep").arg(seconds).current_dir(&dir).spawn().unwrap();
        let mut stays = stand("1000");
        let refused = device.stop().await;
        stays.kill().unwrap();
        stays.wait().unwrap();
        assert!(matches!(&refused, Err(DeviceError::Busy { users, .. }) if users.is_empty()), "{refused:?}");
        let mut passes = stand("0.1");
        device.stop().await.unwrap();
        passes.wait().unwrap();
    });
}

#[test]
fn only_root_may_look_when_root_mounts() {
    if !can_mount_fuse() {
        return;
    }
    runtime().block_on(async {
        let bench = Bench::new(&Disk::random(1 << 20));
        let device = bench.start("private", bench.memory.clone()).await;
        let path = device.path().to_owned();
        let looks = move || {
            let cat = |user: &str| {
                let status =
                    Command::new("setpriv").args(["--reuid", user, "--clear-groups", "cat"]).arg(&path).output();
                status.unwrap().status.success()
            };
            assert!(cat("0") && !cat("65534"));
        };
        if tool("setpriv") {
            tokio::task::spawn_blocking(looks).await.unwrap();
        }
        device.stop().await.unwrap();
    });
}

/// What root runs to become nobody: with a `/dev/fuse` that nobody may open, in a mount namespace of its own.
const BECOME_NOBODY: &str = "mknod \"$1/fuse\" c 10 229 && chmod 666 \"$1/fuse\" && mount --bind \"$1/fuse\" /dev/fuse && \
     exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$2\" --exact \"$3\" --nocapture";

#[test]
fn a_user_who_is_not_root_mounts_through_fusermount3() {
    if !tool("fusermount3") || !tool("setpriv") || !tool("unshare") || !can_open_fuse() {
        return;
    }
    if rustix::process::geteuid().is_root() {
        let dir = tempfile::tempdir().unwrap();
        let name = "a_user_who_is_not_root_mounts_through_fusermount3";
        let mut nobody = Command::new("unshare");
        nobody.args(["-m", "sh", "-c", BECOME_NOBODY, "sh"]).arg(dir.path());
        let ran = nobody.arg(std::env::current_exe().unwrap()).arg(name).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success() && said.contains("1 passed") && !said.contains("skipped:"), "{ran:?}");
        return;
    }
    runtime().block_on(async {
        let disk = Disk::random(2 << 20);
        let bench = Bench::new(&disk);
        let device = bench.start("nobody", bench.memory.clone()).await;
        let path = device.path().to_owned();
        let file = tokio::task::spawn_blocking(move || {
            assert_eq!(read_all(&path), disk.bytes);
            File::open(&path).unwrap()
        });
        let file = file.await.unwrap();
        assert!(matches!(device.stop().await, Err(DeviceError::Busy { .. })));
        drop(file);
        device.stop().await.unwrap();
        assert!(!bench.dir.path().join("fuse/nobody").exists());
    });
}

#[test]
fn direct_reads_get_the_same_bytes() {
    if !can_mount_fuse() {
        return;
    }
    const O_DIRECT: i32 = 0o40000;
    runtime().block_on(async {
        let disk = Disk::random(2 << 20);
        let bench = Bench::new(&disk);
        let device = bench.start("direct", bench.memory.clone()).await;
        let (path, expected) = (device.path().to_owned(), disk.bytes.clone());
        let reads = move || {
            let mut file = File::options().read(true).custom_flags(O_DIRECT).open(&path).unwrap();
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut file, &mut bytes).unwrap();
            assert!(bytes == expected);
        };
        tokio::task::spawn_blocking(reads).await.unwrap();
        device.stop().await.unwrap();
    });
}

#[test]
fn an_unusable_directory_is_an_error_that_names_it() {
    if !can_mount_fuse() {
        return;
    }
    runtime().block_on(async {
        let bench = Bench::new(&Disk::random(1 << 20));
        fs::write(bench.dir.path().join("fuse"), b"a file").unwrap();
        let source: Arc<dyn BlobSource> = bench.memory.clone();
        let error = bench.try_start("nodir", source).await.unwrap_err();
        let dir: PathBuf = bench.dir.path().join("fuse/nodir");
        assert!(error.to_string().starts_with(&format!("fuse: mounting on {} failed: ", dir.display())), "{error}");
    });
}

#[test]
fn the_choice_says_why() {
    match choose(Wanted::Auto) {
        Ok(choice) => assert!(!choice.reason.is_empty()),
        Err(error) => assert!(error.to_string().starts_with("no transport: ")),
    }
}
