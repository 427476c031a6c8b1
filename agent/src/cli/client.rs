//! What the commands do: one or two questions to the agent, and the answer printed.

use std::path::{Path, PathBuf};

use penstock_api::{Change, Detached};

use super::{
    Attach, ClientCommand, Completions, Connection, Detach, Events, Exit, Failure, Set, Stats, command, render,
};
use crate::{
    client::{Client, Told},
    config::Config,
    output::{self, Output, with_progress},
};

/// Runs `command` to its end.
pub(super) async fn execute(command: ClientCommand) -> Result<(), Failure> {
    match command {
        ClientCommand::Attach(args) => attach(args).await,
        ClientCommand::Set(args) => set(args).await,
        ClientCommand::Detach(args) => detach(args).await,
        ClientCommand::List(args) => list(&args.connection).await,
        ClientCommand::Stats(args) => stats(args).await,
        ClientCommand::Top(args) => super::top::run(args).await,
        ClientCommand::Explain(args) => super::explain::run(args).await,
        ClientCommand::Memory(args) => super::memory::run(&args.connection).await,
        ClientCommand::Inspect(args) => super::inspect::run(args).await,
        ClientCommand::Cache(args) => super::cache::run(args).await,
        ClientCommand::Credentials(args) => super::credentials::execute(*args).await,
        ClientCommand::Record(args) => super::record::record(*args).await,
        ClientCommand::Recordings(args) => super::record::recordings(*args).await,
        ClientCommand::Pull(args) => super::pull::execute(*args).await,
        ClientCommand::Endpoints(args) => endpoints(&args.connection).await,
        ClientCommand::Snapshots(args) => super::snapshots::list(&args.connection).await,
        ClientCommand::Snapshotter(args) => super::snapshots::run(args).await,
        ClientCommand::Events(args) => events(args).await,
        ClientCommand::Version(args) => version(&args.connection).await,
        ClientCommand::Man(args) => super::man::run(&args),
        ClientCommand::Completions(args) => completions(&args),
    }
}

impl Connection {
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let Some(url) = self.api.clone() else { return Ok(Client::new(self.socket.clone())) };
        let told = Told {
            url,
            token_file: self.token_file.clone(),
            ca: self.ca.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
        };
        Ok(Client::on_tcp(&told, Config::token())?)
    }
}

async fn attach(args: Attach) -> Result<(), Failure> {
    let mount = args.mount.as_deref().map(mount_dir).transpose()?;
    let request = penstock_api::Attach {
        reference: args.reference,
        mount,
        transport: args.transport.into(),
        platform: args.platform,
        require_verified: args.require_verified,
        policy: (&args.policy).into(),
    };
    let client = args.connection.client()?;
    let what = format!("attaching {}", request.reference);
    let device = with_progress(&what, client.attach(&request)).await?;
    Ok(output::answer(args.connection.output, &device, render::device)?)
}

/// The directory as the agent, which has another working directory, must be told it.
pub(super) fn mount_dir(dir: &Path) -> Result<PathBuf, Failure> {
    let fail = |reason: String| Failure::MountDir { dir: dir.to_owned(), reason };
    let absolute = std::path::absolute(dir).map_err(|error| fail(error.to_string()))?;
    if absolute.to_str().is_none() {
        return Err(fail("its path is not UTF-8".to_owned()));
    }
    Ok(absolute)
}

/// containerd's socket as the agent, which has another working directory, must be told it.
pub(super) fn absolute_socket(socket: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(socket)
        .map_err(|error| Failure::Containerd { socket: socket.to_owned(), reason: error.to_string() })
}

async fn set(args: Set) -> Result<(), Failure> {
    let change = Change { policy: (&args.policy).into() };
    let device = with_progress("asking the agent", args.connection.client()?.change(&args.id, &change)).await?;
    Ok(output::answer(args.connection.output, &device, render::device)?)
}

async fn detach(args: Detach) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let detached = match args.id {
        Some(id) => {
            with_progress(&format!("detaching {id}"), client.detach(&id, args.force)).await?;
            Detached { detached: vec![id], failed: Vec::new() }
        }
        None => with_progress("detaching all devices", client.detach_all(args.force)).await?,
    };
    output::answer(args.connection.output, &detached, render::detached)?;
    match detached.failed.first() {
        None => Ok(()),
        Some(first) => Err(Failure::StillAttached { count: detached.failed.len(), exit: Exit::from(&first.problem) }),
    }
}

async fn list(connection: &Connection) -> Result<(), Failure> {
    let devices = with_progress("asking the agent", connection.client()?.devices()).await?;
    Ok(output::answer(connection.output, &devices, |devices| render::devices(devices))?)
}

async fn stats(args: Stats) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let output = args.connection.output;
    if let Some(id) = args.id {
        let device = with_progress("asking the agent", client.device(&id)).await?;
        return Ok(output::answer(output, &device, render::device)?);
    }
    let devices = with_progress("asking the agent", client.devices()).await?;
    if output == Output::Json {
        return Ok(output::answer(output, &devices, |devices| render::stats(devices))?);
    }
    let latency = with_progress("asking the agent", client.latency()).await?;
    Ok(output::print(&render::node_stats(&devices, &latency))?)
}

async fn endpoints(connection: &Connection) -> Result<(), Failure> {
    let all = with_progress("asking the agent", connection.client()?.endpoints()).await?;
    Ok(output::answer(connection.output, &all, |all| render::endpoints(all))?)
}

async fn events(args: Events) -> Result<(), Failure> {
    let client = args.connection.client()?;
    if args.follow {
        return follow(&client, args.since, args.connection.output).await;
    }
    let events = with_progress("asking the agent", client.events(args.since)).await?;
    Ok(output::answer(args.connection.output, &events, render::events)?)
}

/// Prints what happens, a line for each thing, until nobody reads it or the agent stops.
async fn follow(client: &Client, since: u64, how: Output) -> Result<(), Failure> {
    let mut following = client.follow(since).await?;
    while let Some(message) = following.next().await? {
        let line = match how {
            Output::Table => render::followed(&message),
            Output::Json => render::followed_json(&message)?,
        };
        if !output::line(&line)? {
            return Ok(());
        }
    }
    Err(Failure::Stopping)
}

/// The command has a version whether or not an agent runs; an agent that cannot be asked is shown as that.
async fn version(connection: &Connection) -> Result<(), Failure> {
    let agent = match with_progress("asking the agent", connection.client()?.version()).await {
        Ok(version) => Ok(version),
        Err(error) if error.is_unreachable() => Err(error.to_string()),
        Err(error) => return Err(error.into()),
    };
    let versions = render::Versions::new(env!("CARGO_PKG_VERSION"), agent);
    Ok(output::answer(connection.output, &versions, render::versions)?)
}

fn completions(args: &Completions) -> Result<(), Failure> {
    Ok(output::print(&script(args))?)
}

/// The completions of a shell, as a script for it.
pub(super) fn script(args: &Completions) -> String {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "penstock", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
