//! A disk with an ext4 file system made from a directory: `mke2fs -d`, which needs no root.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::process::Command;

/// Room for what the file system itself needs, besides a share of the content.
const SPARE_BYTES: u64 = 32 << 20;
/// Size of a file-system block.
const BLOCK_BYTES: u64 = 4096;

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    /// No mke2fs anywhere.
    #[error("mke2fs is not installed; install e2fsprogs (apt-get install e2fsprogs)")]
    NoTool,
    /// It cannot be run.
    #[error("cannot run {}: {reason}", tool.display())]
    Run {
        /// The program.
        tool: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// It failed.
    #[error("mke2fs failed: {said}")]
    Failed {
        /// Its last words.
        said: String,
    },
}

/// Bytes of a disk for `entries` files of `content_bytes` together.
pub(super) fn size_for(entries: usize, content_bytes: u64) -> u64 {
    let per_entry = (entries as u64).saturating_mul(BLOCK_BYTES);
    (content_bytes + content_bytes / 16 + per_entry + SPARE_BYTES).next_multiple_of(1 << 20)
}

/// Makes `disk`, a sparse file of `size_bytes`, with the files below `tree`.
pub(super) async fn make(tree: &Path, disk: &Path, size_bytes: u64, entries: usize) -> Result<(), DiskError> {
    let tool = ["/usr/sbin/mke2fs", "/sbin/mke2fs", "/usr/local/sbin/mke2fs", "/usr/bin/mke2fs"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
        .ok_or(DiskError::NoTool)?;
    let mut command = Command::new(&tool);
    command.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-b", "4096", "-m", "0", "-L", "penstock-demo"]);
    command.arg("-N").arg((entries + entries / 4 + 1024).to_string());
    command.arg("-d").arg(tree).arg(disk).arg(format!("{}k", size_bytes / 1024));
    let output = command.kill_on_drop(true).output().await.map_err(|reason| DiskError::Run { tool, reason })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(DiskError::Failed { said })
}
