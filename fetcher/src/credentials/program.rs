//! Running a helper or a plugin: no shell, a bounded time, a bounded answer, and nothing of it left behind.

use std::{ffi::OsStr, io, path::Path, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
};
use zeroize::Zeroizing;

use crate::failure::Failure;

/// What to run, and how.
#[derive(Debug)]
pub(super) struct Program<'a> {
    pub(super) path: &'a Path,
    pub(super) args: &'a [String],
    /// Added to the environment of this process.
    pub(super) env: &'a [(String, String)],
    pub(super) input: &'a [u8],
    pub(super) timeout: Duration,
    /// Most that is read of its standard output, in bytes; one that prints more has failed.
    pub(super) max_output: usize,
}

/// How a program ended, and what it printed.
pub(super) struct Ended {
    pub(super) success: bool,
    pub(super) output: Zeroizing<Vec<u8>>,
}

/// The program's process group. Dropping it kills what is left of it: a program that hangs may have started others.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It is gone already when this fails.
            let _gone = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Program<'_> {
    fn name(&self) -> String {
        self.path.file_name().unwrap_or_else(|| OsStr::new("a program")).to_string_lossy().into_owned()
    }

    /// Runs it to its end. What it prints on standard error is dropped: it may hold anything.
    pub(super) async fn run(&self) -> Result<Ended, Failure> {
        let name = self.name();
        match tokio::time::timeout(self.timeout, self.exchange()).await {
            Ok(Ok(Some(ended))) => Ok(ended),
            Ok(Ok(None)) => Err(Failure::denied(format!(
                "{name} printed more than {} KiB; run it by hand to see why",
                self.max_output >> 10
            ))),
            Ok(Err(error)) => {
                Err(Failure::denied(format!("cannot run {name}: {error}; install it or fix the config that names it")))
            }
            Err(_elapsed) => Err(Failure::timeout(format!("{name} gave no answer within {:?}", self.timeout))),
        }
    }

    /// `None` when it printed too much.
    async fn exchange(&self) -> io::Result<Option<Ended>> {
        let mut command = Command::new(self.path);
        command
            .args(self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // Dropped before the child is waited for by others: its number is not used again until then.
        let mut group = Group(pid);
        let Some(output) = self.talk(&mut child).await? else { return Ok(None) };
        let status = child.wait().await?;
        group.0 = None;
        Ok(Some(Ended { success: status.success(), output }))
    }

    async fn talk(&self, child: &mut Child) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
        if let Some(mut stdin) = child.stdin.take() {
            // A program that answers without reading has closed its end: its answer counts.
            match stdin.write_all(self.input).await {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                _ => drop(stdin),
            }
        }
        // Room from the start, so that no copy of a secret is left behind by growing.
        let mut output = Zeroizing::new(Vec::with_capacity(self.max_output + 1));
        if let Some(stdout) = child.stdout.take() {
            stdout.take(self.max_output as u64 + 1).read_to_end(&mut output).await?;
        }
        Ok((output.len() <= self.max_output).then_some(output))
    }
}
