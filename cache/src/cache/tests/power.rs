//! Power loss on a real file system: ext4 on a loop device is shut down without flushing its journal (`EXT4_IOC_SHUTDOWN`, through
//! `xfs_io`) while a process fills and evicts; then it is mounted again and looked at. What the device had taken stays, everything
//! else is gone: a drive with a safe cache.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use penstock_blob::{ChunkSize, Purpose};
use tempfile::TempDir;

use super::{
    child::{Child, Found, heard_durable, look, order, say, say_durable},
    *,
};

/// The test, as its child is called.
const NAME: &str = "power::a_power_cut_at_any_moment_costs_no_durable_chunk_and_makes_none_wrong";
/// Power cuts, unless `PENSTOCK_POWER_CUTS` says how many.
const CUTS: u64 = 50;
/// Most lines that a child says before the power is cut.
const LINES: u64 = 60;
/// Bytes of the file system, far above the cap: a full disk is another test's.
const DISK_BYTES: u64 = 64 << 20;

#[expect(clippy::disallowed_methods, reason = "a longer run by hand needs no other build")]
fn cuts() -> u64 {
    std::env::var("PENSTOCK_POWER_CUTS").map_or(CUTS, |cuts| cuts.parse().unwrap())
}

/// An ext4 in a file, mounted; its power can be cut.
struct Disk {
    dir: TempDir,
}

fn run(command: &mut Command) -> Result<(), String> {
    let out = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    out.status
        .success()
        .then_some(())
        .ok_or_else(|| format!("{}: {}", command.get_program().display(), String::from_utf8_lossy(&out.stderr).trim()))
}

impl Disk {
    /// Why not, when this process may not or the kernel cannot.
    fn make() -> Result<Self, String> {
        let disk = Self { dir: TempDir::new().unwrap() };
        fs::create_dir(disk.root()).unwrap();
        fs::File::create(disk.image()).unwrap().set_len(DISK_BYTES).unwrap();
        run(Command::new("xfs_io").arg("-V"))?;
        run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(disk.image()))?;
        disk.mount()?;
        // Tried once, before anything depends on it.
        disk.cut()?;
        disk.mount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(self.image()).arg(self.root()))
    }

    fn shut_down(&self) -> Result<(), String> {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(self.root()))
    }

    fn unmount(&self) -> Result<(), String> {
        run(Command::new("umount").arg(self.root()))
    }

    fn cut(&self) -> Result<(), String> {
        self.shut_down().and_then(|()| self.unmount())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is not mounted need not be unmounted.
        let _ = Command::new("umount").arg("-l").arg(self.root()).output();
    }
}

/// The same blobs in parent and child. The first is never evicted, the second does not fit.
fn bench(root: &Path) -> Bench {
    let mut bench = Bench::new(&[96 * CHUNK, 150 * CHUNK + 77, 12 * CHUNK]);
    bench.config.dir = root.join("cache");
    // The first stays below half of it, so that it goes last.
    bench.config.cap_bytes = 200 * CHUNK;
    bench.config.chunk_size = ChunkSize::new(CHUNK).unwrap();
    bench
}

/// A child: one that works until it is killed, or one that looks at what is left. Both are processes of their own, so that nothing
/// keeps the file system mounted once they are gone.
async fn child(order: &str) {
    let [root, seed, durable] = order.split('|').collect::<Vec<_>>().try_into().unwrap();
    let (bench, seed) = (bench(Path::new(root)), seed.parse().unwrap());
    match heard_durable(durable) {
        None => work(&bench, seed).await,
        Some(durable) => look(&bench, &durable, seed % 2 == 0).await.say(),
    }
}

/// Reads at random, says what is durable, removes now and then.
async fn work(bench: &Bench, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let cache = bench.open().await;
    let first = bench.blobs[0].0;
    cache.retain(&first.digest);
    for step in 0_u64.. {
        let (blob, bytes) = &bench.blobs[[0, 1, 1, 1, 2][rng.usize(0..5)]];
        let start = rng.u64(0..blob.size_bytes);
        let want = range(start, (start + rng.u64(1..8 * CHUNK)).min(blob.size_bytes));
        // What the disk refuses is served all the same.
        assert!(cache.read(*blob, want, Purpose::Demand).await.unwrap() == part(bytes, want));
        say("read");
        if step % 7 == 6 {
            cache.settle().await;
            say_durable(&cache, &first);
        }
        if step % 29 == 28 {
            // Refused while somebody reads it: another time.
            let _ = cache.remove(&bench.blobs[2].0.digest).await;
        }
        let present = cache.blob(&first.digest).map_or(0, |blob| blob.present_chunks);
        if present > 72 {
            say("durable ");
            cache.release(&first.digest);
            let _ = cache.remove(&first.digest).await;
            cache.retain(&first.digest);
        }
    }
}

/// Lets a child work, cuts the power at a moment that `seed` chooses, and says which chunks the child had called durable by then.
fn work_and_cut(disk: &Disk, seed: u64) -> String {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut child = Child::start(NAME, &format!("{}|{seed}|", disk.root().display()));
    let mut durable = "durable ".to_owned();
    for _ in 0..rng.u64(1..LINES) {
        let line = child.hear().expect("the child goes on");
        if line.starts_with("durable ") {
            durable = line;
        }
    }
    disk.shut_down().unwrap();
    // It may have been ahead: that it was about to remove them it has said before.
    if child.kill().iter().any(|line| line.trim_end() == "durable") {
        durable = "durable ".to_owned();
    }
    disk.unmount().unwrap();
    disk.mount().unwrap();
    durable
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_at_any_moment_costs_no_durable_chunk_and_makes_none_wrong() {
    if let Some(order) = order() {
        return child(&order).await;
    }
    let disk = match Disk::make() {
        Ok(disk) => disk,
        Err(why) => {
            println!("skipped: {NAME}: ext4 on a loop device cannot be mounted and shut down here: {why}");
            return;
        }
    };
    let (cuts, mut all, mut durable_chunks) = (cuts(), Found::default(), 0);
    for seed in 1..=cuts {
        let durable = work_and_cut(&disk, seed);
        let mut looking = Child::start(NAME, &format!("{}|{seed}|{durable}", disk.root().display()));
        let found = Found::heard(&looking.hear().expect("what it found"));
        drop(looking);
        durable_chunks += heard_durable(&durable).unwrap().len();
        all.add(found);
        assert_eq!((found.wrong, found.lost), (0, 0), "seed {seed}: {found:?}");
    }
    println!("{cuts} power cuts (seeds 1 to {cuts}), {durable_chunks} chunks durable at a cut: {all:?}");
    assert!(all.compared > cuts && all.read > cuts && durable_chunks > 0, "{all:?}");
}
