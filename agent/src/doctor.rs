//! `penstock doctor`: what of this node is as it should be, and what to do about the rest.
//!
//! Each part has the facts that it looks at, and a function that judges them; the judging is pure. Looking changes nothing: no module is
//! loaded, no directory made, no agent needed. What cannot be seen is skipped with the reason, never taken for good.

mod agent;
mod check;
mod containerd;
mod disk;
mod machine;
mod registry;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::ValueHint;

use crate::{
    cli::Exit,
    config::{Config, Flags},
    containerd::{CONFIG as CONTAINERD_CONFIG, images},
    output::{self, Output},
};
use check::{Check, Report};

pub(crate) const HELP: &str = "\
Looks at the kernel, directories, the agent, containerd, the kubelet and the config.
Changes nothing, and needs no agent.
Ends with exit code 1 when a check failed; warnings do not count.

Examples:
  penstock doctor
  penstock doctor --registry registry.example.com
  penstock doctor --output json | jq -r '.checks[] | select(.state == \"failed\") | .next'";

/// `penstock doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's config
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// containerd's config
    #[arg(long, value_name = "FILE", default_value = CONTAINERD_CONFIG, value_hint = ValueHint::FilePath)]
    containerd_config: PathBuf,
    /// Also whether this registry can be reached, as host or host:port
    #[arg(long, value_name = "HOST")]
    registry: Option<String>,
    /// How to print the answer.
    #[command(flatten)]
    output: Output,
}

/// Runs the command.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(reason) => {
            output::error(format_args!("cannot start: {reason}"));
            return Exit::Failed.into();
        }
    };
    let report = Report::new(runtime.block_on(examine(args)));
    match output::answer(args.output, &report, Report::table) {
        Ok(()) if report.is_good() => Exit::Done.into(),
        Ok(()) => Exit::Failed.into(),
        Err(reason) => {
            output::error(format_args!("cannot write the answer: {reason}"));
            Exit::Failed.into()
        }
    }
}

/// Looks at everything, and judges it.
async fn examine(args: &Args) -> Vec<Check> {
    let flags = Flags { config: args.config.clone(), ..Flags::default() };
    let loaded = Config::load(&flags);
    // Of a config that cannot be read the defaults are looked at: they are what most nodes have.
    let config = loaded.as_ref().map_or_else(|_| Config::default(), |loaded| loaded.config.clone());
    let mut checks = machine::judge(&machine::look(), config.transport);
    checks.extend(settings::judge(&settings::look(loaded.as_ref(), &config)));
    checks.extend(disk::judge(&disk::look(&config)));
    let agent = agent::look(&config).await;
    checks.extend(agent::judge(&agent, env!("CARGO_PKG_VERSION")));
    let containerd = containerd::look(&config, &absolute(&args.containerd_config)).await;
    checks.extend(containerd::judge(&containerd));
    checks.push(containerd::judge_kubelet(containerd::kubelet().as_ref(), images(&config).as_deref()));
    checks.push(registry::judge(registry::look(args.registry.as_deref()).await.as_ref()));
    checks
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}
