//! What the numbers were measured on.

use std::{fs, path::Path, process::Command};

use serde::Serialize;

/// The machine, the kernel and the code.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The commit of this tree, with `+` when files were changed since; `unknown` outside a repository.
    pub commit: String,
    /// The CPU's name as the kernel has it.
    pub cpu: String,
    /// Logical CPUs that this process may use.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// System name and release.
    pub kernel: String,
    /// Processes that wanted a CPU, on average of the minute before the run: above `cpus`, the machine was busy with other things.
    pub load_before: f64,
    /// Whether the compiler optimised. Numbers of a run that it did not mean nothing.
    pub optimised: bool,
}

impl Machine {
    /// This one.
    #[must_use]
    pub fn this() -> Self {
        let uname = rustix::system::uname();
        let field = |file: &str, key: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default().to_owned();
            line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        let memory_kib = field("/proc/meminfo", "MemTotal");
        Self {
            commit: commit(),
            cpu: Some(field("/proc/cpuinfo", "model name")).filter(|name| !name.is_empty()).unwrap_or("unknown".into()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_kib.trim_end_matches(" kB").parse().map_or(0, |kib: u64| kib << 10),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            load_before: load(),
            optimised: !cfg!(debug_assertions),
        }
    }
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// The commit that was built, if git knows.
fn commit() -> String {
    let git = |args: &[&str]| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        let output = Command::new("git").arg("-C").arg(dir).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| changes.is_empty());
    if clean { commit } else { format!("{commit}+") }
}
