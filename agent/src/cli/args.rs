//! What can be typed.

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum, ValueHint, builder::NonEmptyStringValueParser};
use clap_complete::Shell;

use crate::{
    config::{DEFAULT_SOCKET, Flags},
    log::Format,
    output::Output,
};

const TOP_HELP: &str = "\
Try it:
  penstock demo

On a node:
  penstock agent
  penstock attach registry.example.com/team/app:1.4 --mount /mnt/app
  penstock list
  penstock detach --all

Exit codes:
  0  done
  1  failed
  2  the command line, or a value in it, is wrong
  3  no agent could be reached
  4  no such device or image
  5  in use, or taken by another
  6  not now: the same command may succeed later
  7  cached bytes were damaged, or snapshots are";

const AGENT_HELP: &str = "\
Every setting is also a key of the config file and a PENSTOCK_ variable.
Flags win over variables, variables over the file.

Examples:
  penstock agent
  penstock agent --config /etc/penstock/config.toml --log-format json
  penstock agent --state-dir /tmp/p --socket /tmp/p/penstock.sock
  penstock agent --print-config";

const SUPERVISE_HELP: &str = "\
Mounts through FUSE outlive an agent that is killed, crashes or is replaced,
as long as the supervisor lives. Under systemd this is not needed: with
packaging/penstock.service systemd itself keeps them.

Signals:
  SIGTERM, SIGINT  take all devices away, end the agent, and end
  SIGHUP           start the agent anew, from its program as it is now; devices stay

Examples:
  penstock supervise
  penstock supervise -- --config /etc/penstock/config.toml --log-format json
  penstock supervise --program /opt/penstock/current/penstock";

const KEEP_HELP: &str = "\
For agents that others start, such as the kubelet: mounts through FUSE outlive
an agent that has PENSTOCK_KEEPER set to this socket, as long as this process
lives. Under systemd, and under `penstock supervise`, this is not needed.

Examples:
  penstock keep
  penstock keep --socket /run/penstock/keeper.sock";

const ATTACH_HELP: &str = "\
The command ends once the image can be read; what is read later is fetched when it is read.
Interrupting it does not undo an attach that is under way: look at `penstock list`.

Examples:
  penstock attach registry.example.com/team/app:1.4
  penstock attach registry.example.com/team/app:1.4 --mount /mnt/app
  penstock attach localhost:5000/app:1.4 --transport fuse --on-failure wait=10m
  penstock attach registry.example.com/team/app:1.4 --require-verified
  penstock attach app:1 --platform linux/arm64 --output json | jq -r .device_path";

const SET_HELP: &str = "\
It takes effect at once, also for readers that wait now, and outlives the agent.
`penstock list --output json` shows what holds (.policy).

Examples:
  penstock set app-1a2b3c --on-failure wait=10m
  penstock set app-1a2b3c --on-failure eio --deadline 5s";

const DETACH_HELP: &str = "\
A device in use stays, unless --force is given: then its readers get I/O errors.
So does one that the snapshotter shows to containers (OWNER in `penstock list`).
What was fetched stays in the cache.

Examples:
  penstock detach d1
  penstock detach d1 --force
  penstock detach --all";

const LIST_HELP: &str = "\
Examples:
  penstock list
  penstock list --output json | jq -r '.[].id'
  penstock list --api https://node7:9180 --token-file ~/.penstock-token --ca ca.crt";

const STATS_HELP: &str = "\
Examples:
  penstock stats
  penstock stats d1
  penstock stats d1 --output json | jq .stats.bytes_fetched";

const CACHE_HELP: &str = "\
Examples:
  penstock cache
  penstock cache --output json | jq .used_bytes
  penstock cache evict registry.example.com/team/app:1.4
  penstock cache clear
  penstock cache verify --repair";

const ENDPOINTS_HELP: &str = "\
Whom to ask is said by hosts.toml files (fetch.hosts_dirs).
A registry is listed once an image of it is attached.

Examples:
  penstock endpoints
  penstock endpoints --output json | jq '.[].endpoints[] | select(.breaker != \"closed\")'";

const EVENTS_HELP: &str = "\
Examples:
  penstock events
  penstock events --since 120
  penstock events --follow
  penstock events --follow --output json | jq -r .kind
  penstock events --output json | jq '.events[].fields'";

const INDEX_HELP: &str = "\
Reads every layer once, verifies its digest, and pushes the index beside the image.
Needs no agent, but credentials that may push. Done again it changes nothing.
Of a disk (OverlayBD, EROFS, ...) the index is of its chunks: then
`penstock attach --require-verified` takes the image. Of an ordinary image it is
of its layers: then nodes whose layers.accept names the registry read it on demand.

Examples:
  penstock index registry.example.com/team/app:1.4
  penstock index registry.example.com/team/app:1.4 --dry-run
  penstock index localhost:5000/app:1 --output json | jq -r .index";

const CONVERT_HELP: &str = "\
Reads every layer once, verifies it, and pushes the new image; the old one stays as it is.
Needs no agent, but credentials that may push.
The same image gives the same digests, wherever it is done.

Examples:
  penstock convert registry.example.com/app:1.4 registry.example.com/app:1.4-obd
  penstock convert registry.example.com/app:1.4 registry.example.com/app:1.4-obd --referrer
  penstock convert app:1 localhost:5000/app:1 --platform linux/amd64 --platform linux/arm64
  penstock convert app:1.5 localhost:5000/app:1.5 --to erofs --reuse localhost:5000/app:1.4
  penstock convert app:1.5 localhost:5000/app:obd --to overlaybd-layers --all-platforms
  penstock convert localhost:5000/debian:12 localhost:5000/debian:12-raw --to raw";

const DEMO_HELP: &str = "\
Examples:
  penstock demo
  penstock demo --exit";

const VERSION_HELP: &str = "\
Examples:
  penstock version
  penstock version --output json | jq -r .command";

const COMPLETIONS_HELP: &str = "\
Examples:
  penstock completions bash > /etc/bash_completion.d/penstock
  penstock completions zsh > ~/.zfunc/_penstock";

/// Lazy container images: mount one before it is downloaded, and fetch only what is read.
#[derive(Debug, Parser)]
#[command(name = "penstock", bin_name = "penstock", version, after_help = TOP_HELP, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `penstock` can be told.
#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, made when the process starts")]
pub enum Command {
    /// Run the agent of this node, until SIGTERM or Ctrl-C
    #[command(after_help = AGENT_HELP)]
    Agent(AgentArgs),
    /// Run the agent of this node, keep its FUSE mounts while it is away, and start it again whenever it ends
    #[command(after_help = SUPERVISE_HELP)]
    Supervise(SuperviseArgs),
    /// Keep FUSE mounts for agents that others start, while none runs
    #[command(after_help = KEEP_HELP)]
    Keep(KeepArgs),
    /// Index an image: the chunks of a disk, or the layers of an ordinary image
    #[command(after_help = INDEX_HELP)]
    Index(Box<crate::index::Args>),
    /// Write an image in another form: OverlayBD, EROFS layers, or a raw disk
    #[command(after_help = CONVERT_HELP)]
    Convert(Box<crate::convert::Args>),
    /// Have containerd use the snapshotter of this node's agent, or forget it
    #[command(after_help = crate::containerd::HELP)]
    Containerd(crate::containerd::Args),
    /// Look at this node, and say what is missing and what to do about it
    #[command(after_help = crate::doctor::HELP)]
    Doctor(crate::doctor::Args),
    /// Show what Penstock does, on this machine alone: no registry, no set-up
    #[command(after_help = DEMO_HELP)]
    Demo(crate::demo::Args),
    /// A command that asks an agent, or that needs nobody.
    #[command(flatten)]
    Client(ClientCommand),
}

/// What an agent can be asked, and what needs nobody.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Make an image readable as a device, and mount it if asked
    #[command(after_help = ATTACH_HELP)]
    Attach(Attach),
    /// Change what readers of a device get while bytes cannot be fetched
    #[command(after_help = SET_HELP)]
    Set(Set),
    /// Unmount and remove a device
    #[command(after_help = DETACH_HELP)]
    Detach(Detach),
    /// List the devices
    #[command(after_help = LIST_HELP, visible_alias = "ls")]
    List(Show),
    /// Show what devices have served and fetched
    #[command(after_help = STATS_HELP)]
    Stats(Stats),
    /// Watch the node as it works: devices whose readers wait, and how long reads take
    #[command(after_help = super::top::HELP)]
    Top(super::Top),
    /// Say in a sentence why a start took as long as it did, and what would be faster
    #[command(after_help = super::explain::HELP)]
    Explain(super::Explain),
    /// Show the budget of memory for indexes and buffers, and what of it is used
    #[command(after_help = super::memory::HELP)]
    Memory(Show),
    /// Show what an image offers for reading it on demand, what this node would use of that, and what it costs
    #[command(after_help = super::inspect::HELP)]
    Inspect(super::Inspect),
    /// Show what is kept on this node, remove some of it, or read it again
    #[command(after_help = CACHE_HELP)]
    Cache(super::cache::Cache),
    /// Show who has credentials for registries, hand some over, or forget them
    #[command(after_help = super::credentials::HELP)]
    Credentials(Box<super::credentials::Credentials>),
    /// Put an image whole into containerd's content store, for export, push and commit
    #[command(after_help = super::pull::HELP)]
    Pull(Box<super::pull::Pull>),
    /// Write down what an image reads while a command runs in it, so that the next start is fetched ahead
    #[command(after_help = super::record::RECORD_HELP)]
    Record(Box<super::record::Record>),
    /// List what images read while starting, or remove it
    #[command(after_help = super::record::RECORDINGS_HELP)]
    Recordings(Box<super::record::Recordings>),
    /// Show whom the content of registries is asked for, mirrors included, and how they fare
    #[command(after_help = ENDPOINTS_HELP)]
    Endpoints(Show),
    /// List containerd's snapshots: which are read on demand, how or why not, and what was read of them
    #[command(after_help = super::snapshots::LIST_HELP)]
    Snapshots(Show),
    /// Look after containerd's snapshots
    #[command(after_help = super::snapshots::SNAPSHOTTER_HELP)]
    Snapshotter(super::snapshots::Snapshotter),
    /// Show what happened lately
    #[command(after_help = EVENTS_HELP)]
    Events(Events),
    /// Show the version of this command and of the agent
    #[command(after_help = VERSION_HELP)]
    Version(Show),
    /// Print the manual page, or write those of all commands
    #[command(after_help = super::man::HELP)]
    Man(super::man::Man),
    /// Print the completions of a shell
    #[command(after_help = COMPLETIONS_HELP)]
    Completions(Completions),
}

/// `penstock agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Print the settings in effect, each with where it comes from, and end
    #[arg(long)]
    pub print_config: bool,
    /// The settings.
    #[command(flatten)]
    pub flags: Flags,
}

/// `penstock supervise`.
#[derive(Debug, Args)]
pub struct SuperviseArgs {
    /// The program to run as the agent, from its path as it is each time [default: this one]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub program: Option<PathBuf>,
    /// How the supervisor's own log lines are written: human or json
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    pub log_format: Format,
    /// Flags of `penstock agent`
    #[arg(last = true, value_name = "FLAGS")]
    pub agent: Vec<OsString>,
}

/// `penstock keep`.
#[derive(Debug, Args)]
pub struct KeepArgs {
    /// Socket on which agents find it; mode 0600
    #[arg(long, value_name = "PATH", default_value_os_t = crate::keep::default_socket(), value_hint = ValueHint::FilePath)]
    pub socket: PathBuf,
    /// How log lines are written: human or json
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    pub log_format: Format,
}

/// Which agent is asked, and how its answer is printed.
#[derive(Debug, Args)]
pub struct Connection {
    /// Socket of the agent
    #[arg(long, value_name = "PATH", env = "PENSTOCK_SOCKET", hide_env_values = true, default_value = DEFAULT_SOCKET, value_hint = ValueHint::FilePath)]
    pub socket: PathBuf,
    /// Ask an agent on TCP instead, as https://host:port; a token comes from --token-file or PENSTOCK_TOKEN
    #[arg(long, value_name = "URL", env = "PENSTOCK_API", hide_env_values = true)]
    pub api: Option<String>,
    /// File with the token for --api
    #[arg(long, value_name = "FILE", env = "PENSTOCK_TOKEN_FILE", hide_env_values = true, value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
    /// PEM file of the authority of the agent's certificate, for --api [default: the system's]
    #[arg(long, value_name = "FILE", env = "PENSTOCK_CA", hide_env_values = true, value_hint = ValueHint::FilePath)]
    pub ca: Option<PathBuf>,
    /// PEM file of a certificate to show, for --api
    #[arg(long, value_name = "FILE", env = "PENSTOCK_CERT", hide_env_values = true, value_hint = ValueHint::FilePath)]
    pub cert: Option<PathBuf>,
    /// PEM file of its key
    #[arg(long, value_name = "FILE", env = "PENSTOCK_KEY", hide_env_values = true, value_hint = ValueHint::FilePath)]
    pub key: Option<PathBuf>,
    /// How to print the answer.
    #[command(flatten)]
    pub output: Output,
}

/// How the device is to reach the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Transport {
    /// ublk where the kernel has it, FUSE where not
    #[default]
    Auto,
    /// A block device, /dev/ublkbN
    Ublk,
    /// A file in a FUSE mount
    Fuse,
}

impl From<Transport> for penstock_api::Wanted {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Auto => Self::Auto,
            Transport::Ublk => Self::Ublk,
            Transport::Fuse => Self::Fuse,
        }
    }
}

/// `penstock attach`.
#[derive(Debug, Args)]
pub struct Attach {
    /// The image.
    #[arg(help = "The image, as for docker pull: [registry/]repository[:tag][@digest]", value_parser = NonEmptyStringValueParser::new())]
    pub reference: String,
    /// Mount its file system on this directory, read-only
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub mount: Option<PathBuf>,
    /// How the device is to reach the kernel
    #[arg(long, value_enum, default_value_t)]
    pub transport: Transport,
    /// Which image of a multi-platform index, as os/architecture[/variant] [default: the agent's]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub platform: Option<String>,
    /// Refuse the image unless an index verifies every byte of it: see `penstock index`
    #[arg(long)]
    pub require_verified: bool,
    /// What its readers get while bytes cannot be fetched.
    #[command(flatten)]
    pub policy: Policy,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// What readers get while bytes cannot be fetched.
#[derive(Debug, Args)]
pub struct Policy {
    /// What a reader gets after the deadline: eio (an I/O error), or wait[=DURATION] (it waits on, at most so long in all)
    #[arg(long, value_name = "eio|wait[=TIME]", value_parser = super::policy::on_failure)]
    pub on_failure: Option<super::policy::OnFailureArg>,
    /// Longest time that a reader waits for a fetch before that, such as 30s
    #[arg(long, value_name = "TIME", value_parser = super::policy::deadline)]
    pub deadline: Option<u64>,
}

/// `penstock set`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).multiple(true).args(["on_failure", "deadline"])))]
pub struct Set {
    /// The device, as `penstock list` names it
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub id: String,
    /// What changes.
    #[command(flatten)]
    pub policy: Policy,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// `penstock detach`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["id", "all"])))]
pub struct Detach {
    /// The device, as `penstock list` names it
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub id: Option<String>,
    /// Detach every device
    #[arg(long)]
    pub all: bool,
    /// Also when it is in use: its readers get I/O errors
    #[arg(long)]
    pub force: bool,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// A command that shows something and takes nothing.
#[derive(Debug, Args)]
pub struct Show {
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// `penstock stats`.
#[derive(Debug, Args)]
pub struct Stats {
    /// The device, as `penstock list` names it [default: all]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub id: Option<String>,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// `penstock events`.
#[derive(Debug, Args)]
pub struct Events {
    /// Only those after the event with this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub since: u64,
    /// Go on with what happens, a line for each event, until the agent stops
    #[arg(long, short)]
    pub follow: bool,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// `penstock completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    pub shell: Shell,
}
