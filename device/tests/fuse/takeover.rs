//! A FUSE device outlives the process that serves it, when somebody keeps its connection.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Lines},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use penstock_blob::{
    BlobSource, ByteRange,
    faults::{Memory, Stuck},
};
use penstock_device::{Device, DeviceError};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::{
    machine::{Bench, Disk, Mounted, Tree, can_mount_files, can_mount_fuse, hashes, read_all, tool},
    runtime,
};

/// What reads of the child never get, and how many of them it waits for before it says so.
const STUCK: (u64, u64) = (1 << 20, 2 << 20);
const READERS: u64 = 6;
/// The files by which a child is told what to do, in its directory.
const DISK: &str = "takeover.disk";
const COUNT: &str = "takeover.count";

/// Not a test: what the child of the tests below runs, in a directory with its orders. Serves until it is killed.
#[test]
#[ignore = "run by the tests of this file as their child"]
fn child() {
    runtime().block_on(async {
        let dir = std::env::current_dir().unwrap();
        let disk = Disk { bytes: fs::read(dir.join(DISK)).unwrap().into() };
        let count: u32 = fs::read_to_string(dir.join(COUNT)).unwrap().parse().unwrap();
        let bench = Bench::beside(dir, &disk);
        let stuck = stuck(&bench.memory);
        let device = bench.start("kept", stuck.clone()).await;
        println!("connection {}", std::os::fd::AsRawFd::as_raw_fd(&device.connection().unwrap()));
        // The copy just numbered is closed; this one has the same number and stays.
        let _kept = device.connection().unwrap();
        println!("serving");
        stuck.until_waiting(count).await;
        println!("waiting");
        std::future::pending::<()>().await;
    });
}

fn stuck(memory: &Arc<Memory>) -> Arc<Stuck> {
    Stuck::only(memory.clone(), memory.blob(0).digest, ByteRange::new(STUCK.0, STUCK.1).unwrap())
}

/// A process that serves `<dir>/fuse/kept/disk`.
struct Server {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
    connection: OwnedFd,
}

impl Server {
    fn start(dir: &Path, disk: &Disk, count: u64) -> Self {
        fs::write(dir.join(DISK), &disk.bytes).unwrap();
        fs::write(dir.join(COUNT), count.to_string()).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "takeover::child", "--nocapture"])
            .current_dir(dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let number = until_said(&mut said, "connection ").parse().unwrap();
        until_said(&mut said, "serving");
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let connection = pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty()).unwrap();
        Self { child, said, connection }
    }

    /// Kills it when it has read what the readers want, and gives its connection.
    fn killed_while_they_wait(mut self) -> OwnedFd {
        until_said(&mut self.said, "waiting");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.connection
    }
}

/// What follows `start` in the first line that has it.
fn until_said(said: &mut Lines<BufReader<ChildStdout>>, start: &str) -> String {
    let line = said.map(Result::unwrap).find_map(|line| Some(line.split_once(start)?.1.to_owned()));
    line.unwrap_or_else(|| panic!("the child ended and did not say {start:?}"))
}

type Readers = Vec<JoinHandle<std::io::Result<()>>>;

/// Readers of places in what is stuck, and beside it.
fn readers(path: &Path, bytes: &Bytes) -> Readers {
    let read = |at: u64| {
        let (path, bytes) = (path.to_owned(), bytes.clone());
        thread::spawn(move || {
            let mut buf = vec![0; 65_536];
            File::open(path)?.read_exact_at(&mut buf, at)?;
            let start = usize::try_from(at).unwrap();
            assert!(buf == bytes[start..start + buf.len()], "wrong bytes at {at}");
            Ok(())
        })
    };
    (0..READERS).map(|i| read(STUCK.0 + i * 131_072)).collect()
}

fn all_are_right(readers: Readers) {
    for reader in readers {
        reader.join().expect("right bytes").expect("no error");
    }
}

async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[test]
fn readers_of_a_killed_server_get_their_bytes_from_the_next_one_again_and_again() {
    if !can_mount_fuse() {
        return;
    }
    runtime().block_on(async {
        let disk = Disk::random(4 << 20);
        let bench = Bench::new(&disk);
        let server = Server::start(bench.dir.path(), &disk, READERS);
        let path = bench.dir.path().join("fuse/kept/disk");
        let first = readers(&path, &disk.bytes);
        let mut connection = apart(move || server.killed_while_they_wait()).await;
        // New readers come while nobody serves.
        let mut waiting = readers(&path, &disk.bytes);
        waiting.extend(first);
        for round in 0..4 {
            let stuck = stuck(&bench.memory);
            let device = bench.resume("kept", stuck.clone(), connection).await.unwrap();
            assert_eq!((device.path(), device.number()), (&*path, None));
            // All that waited are asked again, each once.
            stuck.until_waiting(u32::try_from(waiting.len()).unwrap()).await;
            let mut other = vec![0; 4096];
            let file = path.clone();
            other = apart(move || {
                File::open(file).unwrap().read_exact_at(&mut other, 0).unwrap();
                other
            })
            .await;
            assert!(other == disk.bytes[..4096]);
            assert_eq!(stuck.waiting() as usize, waiting.len());
            connection = device.connection().unwrap();
            if round == 3 {
                stuck.release();
                apart(|| all_are_right(waiting)).await;
                device.stop().await.unwrap();
                assert_eq!((device.stats().errors, device.stats().in_flight), (0, 0));
                break;
            }
            // Left in order, as for an upgrade: nothing is answered.
            device.leave().await.unwrap();
            waiting.extend(readers(&path, &disk.bytes));
        }
        assert!(!bench.dir.path().join("fuse/kept").exists());
    });
}

#[test]
fn files_of_an_erofs_on_a_killed_server_are_read_to_their_end() {
    if !can_mount_fuse() || !can_mount_files() || !tool("mkfs.erofs") {
        return;
    }
    let tree = Tree::new();
    let disk = tree.disk(|tree, image| Command::new("mkfs.erofs").arg("--quiet").args([image, tree]).status());
    let expected = hashes(&tree.path());
    runtime().block_on(async {
        for _ in 0..3 {
            let bench = Bench::new(&disk);
            let server = Server::start(bench.dir.path(), &disk, 1);
            let (path, dir) = (bench.dir.path().join("fuse/kept/disk"), bench.dir.path().join("mnt"));
            let walker = thread::spawn(move || {
                let mounted = Mounted::new(&path, &dir, "erofs", "");
                (hashes(&dir), mounted)
            });
            let connection = apart(move || server.killed_while_they_wait()).await;
            let device = bench.resume("kept", bench.memory.clone(), connection).await.unwrap();
            let found = apart(move || walker.join().unwrap().0).await;
            assert_eq!(found, expected);
            assert_eq!((device.stats().errors, device.stats().dropped), (0, 0));
            device.stop().await.unwrap();
        }
    });
}

#[test]
fn readers_get_errors_and_do_not_wait_when_nobody_takes_over() {
    if !can_mount_fuse() {
        return;
    }
    runtime().block_on(async {
        let disk = Disk::random(4 << 20);
        let bench = Bench::new(&disk);
        let server = Server::start(bench.dir.path(), &disk, READERS);
        let path = bench.dir.path().join("fuse/kept/disk");
        let waiting = readers(&path, &disk.bytes);
        let connection = apart(move || server.killed_while_they_wait()).await;
        // An agent that does not know of the connection starts the device anew, while somebody holds it still.
        let device = bench.start("kept", bench.memory.clone()).await;
        apart(move || waiting.into_iter().for_each(|reader| drop(reader.join().unwrap().unwrap_err()))).await;
        let lost = bench.resume("kept", bench.memory.clone(), connection).await.unwrap_err();
        assert!(matches!(lost, DeviceError::NotResumable { .. }), "{lost}");
        let again = path.clone();
        assert_eq!(apart(move || read_all(&again)).await, disk.bytes);
        device.stop().await.unwrap();
    });
}

#[test]
fn a_stop_by_force_ends_the_readers_also_when_the_connection_is_kept() {
    if !can_mount_fuse() {
        return;
    }
    runtime().block_on(async {
        let disk = Disk::random(4 << 20);
        let bench = Bench::new(&disk);
        let stuck = stuck(&bench.memory);
        let device: Device = bench.start("forced", stuck.clone() as Arc<dyn BlobSource>).await;
        let kept = device.connection().unwrap();
        let path: PathBuf = device.path().to_owned();
        let open = File::open(&path).unwrap();
        let waiting = readers(&path, &disk.bytes);
        stuck.until_waiting(u32::try_from(READERS).unwrap()).await;
        device.stop_by_force().await.unwrap();
        apart(move || waiting.into_iter().for_each(|reader| drop(reader.join().unwrap().unwrap_err()))).await;
        // Also who comes later, through what he has open.
        apart(move || open.read_at(&mut [0; 10], 0).unwrap_err()).await;
        assert!(device.connection().is_none());
        drop(kept);
    });
}
