//! Who keeps a mount busy, as far as `/proc` shows it.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Processes named in a refusal; more would not fit in a sentence.
const NAMED: usize = 3;

/// A process that uses a directory tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its process id.
    pub pid: u32,
    /// Its command's name.
    pub name: String,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// The first few processes with a working directory, root, program or open file below `dir`. Only reads links: asking a file
/// system about a file could wait for it.
#[must_use]
pub fn users(dir: &Path) -> Vec<User> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| uses(&PathBuf::from(format!("/proc/{pid}")), dir))
        .map(|pid| User { pid, name: name(pid) })
        .take(NAMED)
        .collect()
}

fn uses(process: &Path, dir: &Path) -> bool {
    let below = |link: PathBuf| std::fs::read_link(link).is_ok_and(|target| target.starts_with(dir));
    ["cwd", "root", "exe"].iter().any(|link| below(process.join(link)))
        || std::fs::read_dir(process.join("fd")).is_ok_and(|mut fds| fds.any(|fd| fd.is_ok_and(|fd| below(fd.path()))))
}

fn name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_names_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let me = std::process::id();
        assert!(!users(dir.path()).iter().any(|user| user.pid == me));
        let _open = std::fs::File::create(dir.path().join("file")).unwrap();
        let found = users(dir.path());
        assert!(found.iter().any(|user| user.pid == me), "{found:?}");
        assert!(found[0].to_string().contains("pid"));
    }
}
