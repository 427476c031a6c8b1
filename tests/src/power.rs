//! A file system whose power can be cut: ext4 on a loop device, shut down without its journal being flushed
//! (`EXT4_IOC_SHUTDOWN`, through `xfs_io`). What the device had taken by then stays, everything else is gone.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::workdir::Workdir;

/// The file system, mounted in a work directory.
#[derive(Debug)]
pub struct Disk<'a> {
    work: &'a Workdir,
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = command.output().map_err(|error| format!("{program}: {error}"))?;
    out.status
        .success()
        .then_some(())
        .ok_or_else(|| format!("{program}: {}", String::from_utf8_lossy(&out.stderr).trim()))
}

impl<'a> Disk<'a> {
    /// Makes it, mounts it, and cuts its power once to see that that can be done.
    ///
    /// # Errors
    /// Why it cannot be done here.
    pub fn make(work: &'a Workdir, bytes: u64) -> Result<Self, String> {
        let disk = Self { work };
        fs::create_dir(disk.root()).map_err(|error| error.to_string())?;
        let made = File::create(disk.image()).and_then(|file| file.set_len(bytes));
        made.map_err(|error| error.to_string())?;
        run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(disk.image()))?;
        disk.mount()?;
        disk.shut_down()?;
        disk.come_back()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.work.join("powered.img")
    }

    /// Where it is mounted.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.work.join("powered")
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(self.image()).arg(self.root()))
    }

    /// Cuts the power: from now on everything on it fails.
    ///
    /// # Errors
    /// What `xfs_io` says.
    pub fn shut_down(&self) -> Result<(), String> {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(self.root()))
    }

    /// Mounts it again, as after a reboot. Mounts on it are taken away; no process may use it any more.
    ///
    /// # Errors
    /// What `umount` or `mount` says.
    pub fn come_back(&self) -> Result<(), String> {
        for mount in self.work.mounts().iter().filter(|mount| Path::new(mount) != self.root()) {
            // Their servers are dead.
            run(Command::new("umount").arg("-l").arg(mount))?;
        }
        run(Command::new("umount").arg(self.root()))?;
        self.mount()
    }
}

/// The names in a directory, sorted.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
