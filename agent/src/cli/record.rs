//! `penstock record` and `penstock recordings`: what images read while starting.

use std::{
    ffi::OsString,
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use penstock_api::{Attach, Device, EndRecording, PolicyChange, Recording};
use tokio::signal::unix::{SignalKind, signal};

use super::{Connection, Failure, Show, render};
use crate::{
    client::Client,
    output::{self, Table, size, with_progress},
};

pub(super) const RECORD_HELP: &str = "\
Attaches the image, mounts it, runs the command in it, writes down what was read, and detaches.
The image is the command's root directory (chroot), read-only, with nothing mounted on /proc,
/dev or /tmp. With --here it is a command of this machine, and the image is its working
directory. Its output goes to stderr. --push puts the recording beside the image, for other
nodes, with the agent's credentials. Needs root, as chroot does, and an agent on this machine.

Examples:
  penstock record registry.example.com/team/app:1.4 -- /usr/bin/app --check
  penstock record registry.example.com/team/app:1.4 --push -- python3 -c 'import json, ssl'
  penstock record registry.example.com/data:1 --here -- sh -c 'cat model/*.bin >/dev/null'";

pub(super) const RECORDINGS_HELP: &str = "\
Each image that is started on this node is recorded for the first seconds (recordings.enable),
and what was read is fetched ahead when it starts again.

Examples:
  penstock recordings
  penstock recordings --output json | jq 'map(.bytes) | add'
  penstock recordings remove sha256:8c6fb1e9e37a...";

const REMOVE_HELP: &str = "\
Examples:
  penstock recordings remove sha256:8c6fb1e9e37a...";

/// `penstock record`.
#[derive(Debug, Args)]
pub struct Record {
    /// The image.
    #[arg(help = "The image, as for docker pull: [registry/]repository[:tag][@digest]", value_parser = NonEmptyStringValueParser::new())]
    pub reference: String,
    /// Which image of a multi-platform index, as os/architecture[/variant] [default: the agent's]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub platform: Option<String>,
    /// Put the recording beside the image in its registry, for other nodes
    #[arg(long)]
    pub push: bool,
    /// Run a command of this machine, with the image as its working directory
    #[arg(long)]
    pub here: bool,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
    /// The command, and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `penstock recordings`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Recordings {
    /// What about them [default: list]
    #[command(subcommand)]
    pub what: Option<What>,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// What recordings can be asked and told.
#[derive(Debug, Subcommand)]
pub enum What {
    /// List the recordings on this node
    #[command(after_help = RECORDINGS_HELP)]
    List(Show),
    /// Remove the recording of an image from this node
    #[command(after_help = REMOVE_HELP, visible_alias = "rm")]
    Remove(Remove),
}

/// `penstock recordings remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// The digest of the image's manifest, as `penstock recordings` lists it
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub manifest: String,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// Runs `penstock recordings`.
pub(super) async fn recordings(args: Recordings) -> Result<(), Failure> {
    match args.what {
        None => list(&args.connection).await,
        Some(What::List(args)) => list(&args.connection).await,
        Some(What::Remove(args)) => {
            let removing = args.connection.client()?;
            with_progress("asking the agent", removing.remove_recording(&args.manifest)).await?;
            Ok(output::answer(args.connection.output, &args.manifest, |manifest| {
                format!("the recording of {manifest} is removed\n")
            })?)
        }
    }
}

async fn list(connection: &Connection) -> Result<(), Failure> {
    let recordings = with_progress("asking the agent", connection.client()?.recordings()).await?;
    Ok(output::answer(connection.output, &recordings, |recordings| table(recordings))?)
}

/// Runs `penstock record`.
pub(super) async fn record(args: Record) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let dir = tempfile::tempdir()?;
    let request = Attach {
        reference: args.reference.clone(),
        mount: Some(super::client::mount_dir(dir.path())?),
        transport: penstock_api::Wanted::Auto,
        platform: args.platform.clone(),
        require_verified: false,
        policy: PolicyChange::default(),
    };
    let device = with_progress(&format!("attaching {}", args.reference), client.attach(&request)).await?;
    let outcome = recorded(&client, &device, (dir.path(), &args)).await;
    with_progress(&format!("detaching {}", device.id), client.detach(&device.id, false)).await?;
    let (recording, status) = outcome?;
    output::answer(args.connection.output, &recording, one)?;
    if status.success() { Ok(()) } else { Err(Failure::Command { status }) }
}

/// Runs the command, and ends the recording.
async fn recorded(
    client: &Client,
    device: &Device,
    (dir, args): (&Path, &Record),
) -> Result<(Recording, ExitStatus), Failure> {
    client.record(&device.id).await?;
    // Ctrl-C is the command's to obey: what it has read until then is a recording.
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut command = command(dir, &args.command, args.here);
    let mut running = tokio::task::spawn_blocking(move || command.status());
    let status = loop {
        tokio::select! {
            ended = &mut running => break ended.map_err(std::io::Error::other)?,
            _interrupted = interrupts.recv() => {}
        }
    };
    let status = status.map_err(|reason| Failure::NotRun { command: args.command.clone(), reason })?;
    let ending = client.end_recording(&device.id, EndRecording { push: args.push });
    let what = if args.push { "pushing the recording" } else { "keeping the recording" };
    Ok((with_progress(what, ending).await?, status))
}

fn command(dir: &Path, words: &[OsString], here: bool) -> Command {
    let mut command = match (here, words.split_first()) {
        (true, Some((program, arguments))) => {
            let mut command = Command::new(program);
            command.args(arguments).current_dir(dir);
            command
        }
        _ => {
            let mut command = Command::new("chroot");
            command.arg(dir).args(words);
            command
        }
    };
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    command
}

fn one(recording: &Recording) -> String {
    let mut facts = Table::facts();
    facts.fact("image", recording.manifest);
    facts.fact("read", format_args!("{} in {} ranges", size(recording.bytes), recording.ranges));
    facts.fact("recording", size(recording.file_bytes));
    facts.fact("pushed", if recording.pushed { "yes" } else { "no (--push)" });
    facts.to_string()
}

/// All recordings, a line for each.
pub(super) fn table(recordings: &[Recording]) -> String {
    if recordings.is_empty() {
        return "no recordings: no image was started on this node\n".to_owned();
    }
    let mut table = Table::new(&["MANIFEST", ">READ", ">RANGES", ">SIZE", "RECORDED AT"]);
    for recording in recordings {
        table.row([
            recording.manifest.to_string(),
            size(recording.bytes),
            recording.ranges.to_string(),
            size(recording.file_bytes),
            render::moment(recording.recorded_at),
        ]);
    }
    table.to_string()
}
