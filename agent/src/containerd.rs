//! `penstock containerd configure`: containerd is told about our snapshotter, and made to forget it.
//!
//! Our settings are a file of their own, which the main config imports; that one line is all that changes there. What is written is decided
//! by `plan` from the texts of the files alone; `files` reads and writes. Which keys containerd understands depends on its
//! release and on the version of its main config; docs/containerd.md has the table.

mod ask;
mod diff;
mod drop_in;
mod files;
mod imports;
mod plan;
mod release;
mod settings;
mod show;
mod understood;

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use clap::{Subcommand, ValueHint};

pub use files::FileError;
pub use plan::Refusal;
pub use release::{Release, Unknown};

#[cfg(test)]
pub(crate) use ask::Status;
pub(crate) use ask::{Plugin, snapshotters as ask_snapshotters, version as ask_version};
pub(crate) use drop_in::NAME;
pub(crate) use understood::{Understood, understood};

use crate::{
    cli::Exit,
    config::{Config, ConfigError, Flags},
    output::{self, Output},
};
use drop_in::Proxy;
use plan::{Paths, Plan, Seen, Wanted};
use release::Chosen;
use show::Answer;

/// containerd's config when nobody names another.
pub(crate) const CONFIG: &str = "/etc/containerd/config.toml";
/// Where containerd answers when its config does not say.
pub(crate) const SOCKET: &str = "/run/containerd/containerd.sock";
/// There is one exactly when systemd is what started this machine (sd_booted(3)).
pub(crate) const SYSTEMD: &str = "/run/systemd/system";

pub(crate) const HELP: &str = "\
Examples:
  penstock containerd configure --dry-run
  penstock containerd configure --restart
  penstock containerd configure --undo";

const CONFIGURE_HELP: &str = "\
Writes conf.d/penstock.toml beside containerd's config, and has the config import it.
What changes is shown as a difference first. Done again it changes nothing.
What somebody else has chosen is not overridden.
Exit code 5: another setting is in the way; it is named.

Examples:
  penstock containerd configure --dry-run
  penstock containerd configure --restart
  penstock containerd configure --runtime-class penstock
  penstock containerd configure --config config.toml --drop-in config-v3.toml.d/penstock.toml
  penstock containerd configure --version 1.7 --config /mnt/etc/containerd/config.toml
  penstock containerd configure --output json | jq -r '.changes[].path'
  penstock containerd configure --undo --restart";

/// `penstock containerd`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What about it.
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Have containerd use the snapshotter of this node's agent
    #[command(after_help = CONFIGURE_HELP)]
    Configure(Box<Configure>),
}

#[derive(Debug, clap::Args)]
struct Configure {
    /// Release of containerd, such as 1.6, 1.7 or 2.1; auto asks the one that runs, else its program
    #[arg(long, value_name = "auto|RELEASE", default_value = "auto", value_parser = named)]
    version: Named,
    /// containerd's config
    #[arg(long, value_name = "FILE", default_value = CONFIG, value_hint = ValueHint::FilePath)]
    config: PathBuf,
    /// File to write, which that config imports already and is not changed for, as with k3s [default: conf.d/penstock.toml beside it]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    drop_in: Option<PathBuf>,
    /// containerd's program, which is asked for its release
    #[arg(long, value_name = "PROGRAM", default_value = "containerd", value_hint = ValueHint::ExecutablePath)]
    program: PathBuf,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take back what was configured: what was there before, unless it was edited since
    #[arg(long, conflicts_with_all = ["version", "default_snapshotter", "runtime_class", "force"])]
    undo: bool,
    /// For all containers that Kubernetes starts (so it is unless --runtime-class is given)
    #[arg(long, conflicts_with = "runtime_class")]
    default_snapshotter: bool,
    /// Only for pods with a RuntimeClass of this handler
    #[arg(long, value_name = "NAME", value_parser = class_name)]
    runtime_class: Option<String>,
    /// Override what somebody else has set
    #[arg(long)]
    force: bool,
    /// Restart containerd through systemd unless it has read all this already; running containers go on
    #[arg(long, conflicts_with = "dry_run")]
    restart: bool,
    /// How to print the answer.
    #[command(flatten)]
    output: Output,
}

/// What `--version` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Auto,
    Is(Release),
}

fn named(text: &str) -> Result<Named, String> {
    if text == "auto" { Ok(Named::Auto) } else { text.parse().map(Named::Is) }
}

/// The handler of a RuntimeClass is a DNS label.
fn class_name(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label =
        (1..=63).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with('-') && !text.ends_with('-');
    if is_label {
        Ok(text.to_owned())
    } else {
        Err("it is not a DNS label: small letters, digits and dashes".to_owned())
    }
}

/// Why containerd was not configured.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Unknown(#[from] Unknown),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
    #[error("cannot ask containerd: {0}")]
    Runtime(io::Error),
    #[error("its config is written, but containerd was not restarted: {0}")]
    Restart(String),
}

impl Failure {
    const fn exit(&self) -> Exit {
        match self {
            Self::Config(_) => Exit::Usage,
            Self::Refused(Refusal::Conflict { .. } | Refusal::Later { .. } | Refusal::Taken { .. }) => Exit::Conflict,
            _ => Exit::Failed,
        }
    }
}

/// Runs the command.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    let What::Configure(args) = &args.what;
    match configure(args) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            output::error(&failure);
            failure.exit().into()
        }
    }
}

fn configure(args: &Configure) -> Result<(), Failure> {
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let main = absolute(&args.config);
    let paths = match &args.drop_in {
        Some(drop_in) => Paths::named(&main, &absolute(drop_in)),
        None => Paths::beside(&main),
    };
    let seen = files::see(&paths)?;
    let (chosen, plan) = if args.undo {
        (None, plan::undo(&paths, &seen)?)
    } else {
        let chosen = choose(args, &seen)?;
        let plan = planned(args, paths, seen, &chosen)?;
        (Some(chosen), plan)
    };
    let mut answer = Answer::new(chosen.as_ref(), &plan, restart_command());
    if args.output == Output::Table {
        output::print(&answer.before())?;
    }
    if !args.dry_run {
        plan.changes.iter().try_for_each(|change| files::apply(change, &main))?;
        answer.written = !plan.changes.is_empty();
    }
    if plan.changes.is_empty() && wait(is_behind(&main))? {
        answer.behind();
    }
    if args.restart && answer.restart.is_needed {
        restart(&answer)?;
        answer.restarted();
    }
    Ok(output::answer(args.output, &answer, |answer| answer.after(args.dry_run))?)
}

fn planned(args: &Configure, paths: Paths, mut seen: Seen, chosen: &Chosen) -> Result<Plan, Failure> {
    let agent = Config::load(&Flags::default())?.config;
    seen.imported = files::imported(&paths, &seen, chosen.release)?;
    let wanted = Wanted {
        release: chosen.release,
        paths,
        proxy: proxy(&agent),
        class: args.runtime_class.clone(),
        platform: agent.platform.to_string(),
        force: args.force,
    };
    let mut plan = plan::configure(&wanted, &seen)?;
    if plan.changes.is_empty() {
        // What is overridden was told when it was.
        plan.notes.clear();
    }
    plan.notes.extend(plan::advice(&wanted, &seen, &agent.hosts_dirs));
    if std::os::unix::net::UnixStream::connect(&wanted.proxy.address).is_err() {
        plan.notes.push(format!(
            "nobody answers on {} yet: start the agent, with its snapshotter, before containerd uses it",
            wanted.proxy.address
        ));
    }
    Ok(plan)
}

/// The release to write settings for.
fn choose(args: &Configure, seen: &Seen) -> Result<Chosen, Failure> {
    if let Named::Is(release) = args.version {
        return Ok(release::choose(Some(release), Err(String::new()), Err(String::new()))?);
    }
    let main = settings::Settings::parse(seen.main.as_deref().unwrap_or_default()).unwrap_or_default();
    let socket = Path::new(main.address().unwrap_or(SOCKET));
    let running = wait(ask::version(socket))?;
    let running = running.map_err(|reason| format!("{}: {reason}", socket.display()));
    Ok(release::choose(None, running.and_then(|text| text.parse()), program(&args.program))?)
}

/// Runs what asks containerd.
fn wait<T>(asking: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime)?;
    Ok(runtime.block_on(asking))
}

/// Whether the containerd that runs has read another config than there is now, as far as our snapshotter shows. One that does not answer
/// is not behind: it reads its config when it starts.
async fn is_behind(main: &Path) -> bool {
    let Ok(first) = understood(main, None) else { return false };
    let Ok(release) = ask::version(&first.socket).await else { return false };
    let Ok(plugins) = ask::snapshotters(&first.socket).await else { return false };
    understood(main, Some(&release))
        .is_ok_and(|config| config.names_us != plugins.iter().any(|plugin| plugin.id == NAME))
}

/// The release of the installed program, and its path.
fn program(program: &Path) -> Result<(Release, String), String> {
    let path = program.display().to_string();
    let out = Command::new(program).arg("--version").output().map_err(|error| format!("{path}: {error}"))?;
    let line = String::from_utf8_lossy(&out.stdout).into_owned();
    Release::of_program(&line)
        .map(|release| (release, path.clone()))
        .ok_or_else(|| format!("{path} --version: {line:?}"))
}

/// How containerd is restarted here, when systemd runs it.
fn restart_command() -> Option<&'static str> {
    Path::new(SYSTEMD).is_dir().then_some("systemctl restart containerd")
}

fn restart(answer: &Answer) -> Result<(), Failure> {
    let Some(command) = answer.restart.command else {
        return Err(Failure::Restart("systemd does not run here; restart it in the way it was started".to_owned()));
    };
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap_or_default()).args(words).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::Restart(format!("{command}: {status}"))),
        Err(reason) => Err(Failure::Restart(format!("{command}: {reason}"))),
    }
}

/// The socket of the agent's image service; `None` when it has none.
pub(crate) fn images(agent: &Config) -> Option<PathBuf> {
    agent.shown("images.socket").map(PathBuf::from)
}

fn proxy(agent: &Config) -> Proxy {
    Proxy {
        address: agent.snapshotter_socket.display().to_string(),
        root: agent.snapshotter_root.display().to_string(),
    }
}
