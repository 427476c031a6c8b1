//! `penstock snapshots` and `penstock snapshotter`: what containerd's snapshots are made of, and the repair of their metadata.

use clap::{Args, Subcommand};
use penstock_api::{Snapshot, SnapshotKind, SnapshotsRepaired};

use super::{Connection, Failure, Show, render};
use crate::output::{self, Table, size, with_progress};

pub(super) const LIST_HELP: &str = "\
LAZY says whether a snapshot is read on demand; below the table, how or why not.
READ, FETCHED and WAITED are its device's, since the agent started.

Examples:
  penstock snapshots
  penstock snapshots --output json | jq '.[] | select(.lazy | not) | {name, detail}'
  penstock snapshots --output json | jq 'map(.device.bytes_fetched // 0) | add'";

pub(super) const SNAPSHOTTER_HELP: &str = "\
Examples:
  penstock snapshotter repair";

const REPAIR_HELP: &str = "\
Run it when containerd says that a snapshot exists which it cannot find, or after a disk was damaged.
Ends with exit code 7 when something is lost; what to do then is printed for each.
Running containers are not touched, and done again it finds the same.

Examples:
  penstock snapshotter repair
  penstock snapshotter repair --output json | jq '.lost[]'";

/// `penstock snapshotter`.
#[derive(Debug, Args)]
pub struct Snapshotter {
    /// What to do
    #[command(subcommand)]
    pub what: What,
}

/// What the snapshotter can be told.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Compare what is known of containerd's snapshots with what is on the disk, and mend what can be mended
    #[command(after_help = REPAIR_HELP)]
    Repair(Show),
}

pub(super) async fn list(connection: &Connection) -> Result<(), Failure> {
    let snapshots = with_progress("asking the agent", connection.client()?.snapshots()).await?;
    Ok(output::answer(connection.output, &snapshots, |snapshots| table(snapshots))?)
}

pub(super) async fn run(args: Snapshotter) -> Result<(), Failure> {
    let What::Repair(Show { connection }) = args.what;
    let repaired = with_progress("looking at all snapshots", connection.client()?.repair_snapshots()).await?;
    output::answer(connection.output, &repaired, report)?;
    match repaired.lost.len() {
        0 => Ok(()),
        count => Err(Failure::LostSnapshots { count }),
    }
}

const fn kind(kind: SnapshotKind) -> &'static str {
    match kind {
        SnapshotKind::View => "view",
        SnapshotKind::Active => "active",
        SnapshotKind::Committed => "committed",
    }
}

/// All snapshots, a line for each, and why those are as they are.
pub(super) fn table(snapshots: &[Snapshot]) -> String {
    if snapshots.is_empty() {
        return "no snapshots: containerd has unpacked nothing here\n".to_owned();
    }
    let titles = ["NAME", "KIND", "LAZY", "PARENT", "DEVICE", ">READ", ">FETCHED", ">WAITED"];
    let mut all = Table::new(&titles);
    for snapshot in snapshots {
        let device = snapshot.device.as_ref();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        all.row([
            short(&snapshot.name),
            kind(snapshot.kind).to_owned(),
            if snapshot.lazy { "yes" } else { "no" }.to_owned(),
            or_dash(snapshot.parent.as_deref().map(short)),
            or_dash(device.map(|device| device.id.clone())),
            or_dash(device.map(|device| size(device.bytes_read))),
            or_dash(device.map(|device| size(device.bytes_fetched))),
            or_dash(device.map(|device| render::waited(device.waited_ms))),
        ]);
    }
    let mut text = all.to_string();
    for snapshot in snapshots {
        if let Some(detail) = &snapshot.detail {
            text.push_str(&output::escape(&format!("{}: {detail}", short(&snapshot.name))));
            text.push('\n');
        }
    }
    text
}

/// A name with the digests in it cut to twelve digits, as tables show digests.
fn short(name: &str) -> String {
    let mut parts = name.split("sha256:");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.chars().take_while(char::is_ascii_hexdigit).count();
        text.push_str(&part[..digits.min(12)]);
        text.push_str(&part[digits..]);
    }
    text
}

/// What a repair found and did.
pub(super) fn report(repaired: &SnapshotsRepaired) -> String {
    let mut facts = Table::facts();
    facts.fact("snapshots", repaired.snapshots);
    if let Some(why) = &repaired.rebuilt {
        facts.fact("rebuilt", format_args!("when the agent started: {why}"));
    }
    facts.fact("records written again", repaired.rewritten.len());
    facts.fact("orphans removed", repaired.orphans_removed);
    facts.fact("lost", repaired.lost.len());
    let mut text = facts.to_string();
    for lost in &repaired.lost {
        let name = lost.name.as_deref().unwrap_or("a name that is not known");
        let line = format!("{} ({name}): {}; {}", lost.number, lost.why, lost.advice);
        text.push_str(&output::escape(&line));
        text.push('\n');
    }
    text
}
