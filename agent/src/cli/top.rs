//! `penstock top`: the node as it works, a line for each device, those whose readers wait first.

use std::{cmp::Reverse, collections::HashMap, io::IsTerminal as _, time::Duration};

use clap::Args;
use penstock_api::{Device, Latency, Stats};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Connection, Failure, render};
use crate::{
    client::Client,
    output::{
        self, Output, Table, percent,
        screen::{Screen, size},
        with_progress,
    },
};

pub(super) const HELP: &str = "\
Devices whose readers wait are first, then those that fetch and read most.
STALLED is the share of the time in which at least one read waited for bytes that
are not on this node. q or Ctrl-C ends it. Where stdout is no terminal, and with
--once, one frame is printed; its figures are those since the agent started.

Examples:
  penstock top
  penstock top --once
  penstock top --once --output json | jq '.devices[0]'";

/// Time between two frames.
const PERIOD: Duration = Duration::from_secs(1);
/// Devices in a frame that is not for a screen.
const ROWS: usize = 50;

/// `penstock top`.
#[derive(Debug, Args)]
pub struct Top {
    /// Print one frame and end
    #[arg(long)]
    pub once: bool,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// What was seen at one moment.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Seen {
    pub(super) devices: Vec<Device>,
    pub(super) latency: Vec<Latency>,
}

/// What a device did in some time.
#[derive(Debug, Clone, Copy, Default)]
struct Did {
    stalled_ms: u64,
    fetched: u64,
    served: u64,
    hits: u64,
    misses: u64,
}

impl Did {
    fn between(before: &Stats, now: &Stats) -> Self {
        // A device that was attached anew begins from nothing.
        let since = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now);
        Self {
            stalled_ms: since(before.stalled_ms, now.stalled_ms),
            fetched: since(before.bytes_fetched, now.bytes_fetched),
            served: since(before.bytes_served, now.bytes_served),
            hits: since(before.hits, now.hits),
            misses: since(before.misses, now.misses),
        }
    }

    const fn add(self, other: Self) -> Self {
        Self {
            stalled_ms: self.stalled_ms.saturating_add(other.stalled_ms),
            fetched: self.fetched.saturating_add(other.fetched),
            served: self.served.saturating_add(other.served),
            hits: self.hits.saturating_add(other.hits),
            misses: self.misses.saturating_add(other.misses),
        }
    }

    /// The share of reads that were answered from this node; nothing when there were none.
    fn hit_share(self) -> String {
        match self.hits + self.misses {
            0 => String::new(),
            all => percent(self.hits, all),
        }
    }
}

impl Seen {
    async fn look(client: &Client) -> Result<Self, Failure> {
        Ok(Self { devices: client.devices().await?, latency: client.latency().await? })
    }
}

/// A frame: lines without their ends, at most `rows` of them. With what was seen `before`, so long ago, figures are those of that time.
pub(super) fn frame(now: &Seen, before: Option<(&Seen, Duration)>, rows: usize) -> Vec<String> {
    let old: HashMap<&str, Stats> = before.map_or_else(HashMap::new, |(before, _)| {
        before.devices.iter().map(|device| (device.id.as_str(), device.stats)).collect()
    });
    let did = |device: &Device| {
        let before = old.get(device.id.as_str()).copied().unwrap_or_default();
        Did::between(&before, &device.stats)
    };
    let mut devices: Vec<(&Device, Did)> = now.devices.iter().map(|device| (device, did(device))).collect();
    devices.sort_by_key(|(device, did)| {
        (Reverse(device.stats.in_flight), Reverse(did.stalled_ms), Reverse(did.fetched), Reverse(did.served))
    });
    let all = devices.iter().fold(Did::default(), |sum, (_, did)| sum.add(*did));
    let took = before.map(|(_, took)| took);
    let waiting: u64 = now.devices.iter().map(|device| device.stats.in_flight).sum();
    let mut lines = vec![format!(
        "{} devices, {waiting} reads wait; from this node {}, served {}, fetched {}",
        now.devices.len(),
        or_dash(all.hit_share()),
        rate(all.served, took),
        rate(all.fetched, took),
    )];
    lines.extend(render::latency(&now.latency).to_string().lines().map(str::to_owned));
    lines.push(String::new());
    let shown = rows.saturating_sub(lines.len() + 2).max(1);
    let mut table = Table::new(&["ID", ">WAITING", ">STALLED", ">FETCHED", ">SERVED", ">HITS", ">ERRORS", "REFERENCE"]);
    for (device, did) in devices.iter().take(shown) {
        table.row([
            device.id.clone(),
            device.stats.in_flight.to_string(),
            stalled(did.stalled_ms, took),
            rate(did.fetched, took),
            rate(did.served, took),
            did.hit_share(),
            device.stats.errors.to_string(),
            device.reference.clone(),
        ]);
    }
    lines.extend(table.to_string().lines().map(str::to_owned));
    if devices.len() > shown {
        lines.push(format!("and {} more", devices.len() - shown));
    }
    lines.truncate(rows);
    lines
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Bytes, or bytes in a second.
fn rate(bytes: u64, took: Option<Duration>) -> String {
    match took {
        None => output::size(bytes),
        Some(took) => {
            let ms = took.as_millis().max(1);
            let each = u64::try_from(u128::from(bytes) * 1000 / ms).unwrap_or(u64::MAX);
            format!("{}/s", output::size(each))
        }
    }
}

/// A time, or the share of the time.
fn stalled(ms: u64, took: Option<Duration>) -> String {
    match took {
        None => render::waited(ms),
        Some(took) => percent(ms, u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1)),
    }
}

pub(super) async fn run(args: Top) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let seen = with_progress("asking the agent", Seen::look(&client)).await?;
    let is_live = !args.once && args.connection.output == Output::Table && std::io::stdout().is_terminal();
    if is_live {
        return live(&client, seen).await;
    }
    Ok(output::answer(args.connection.output, &seen, |seen| frame(seen, None, ROWS).join("\n") + "\n")?)
}

/// Frame after frame, until asked to end.
async fn live(client: &Client, first: Seen) -> Result<(), Failure> {
    let mut screen = Screen::open()?;
    let (mut before, mut at) = (first, Instant::now());
    screen.show(&frame(&before, None, size().rows))?;
    let mut ticks = tokio::time::interval_at(at + PERIOD, PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            asked = screen.until_asked_to_end() => return Ok(asked?),
            _ = ticks.tick() => {}
        }
        let now = Seen::look(client).await?;
        let took = at.elapsed();
        screen.show(&frame(&now, Some((&before, took)), size().rows))?;
        (before, at) = (now, Instant::now());
    }
}
