//! Answers as tables: pure functions from an answer to text.

mod endpoints;

pub(super) use endpoints::endpoints;

use std::time::Duration;

use penstock_api::{
    CacheUsage, Detached, Device, DeviceState, Event, Events, IndexState, Latency, Layers, Lost, OnFailure, Owner,
    Policy, Severity, Timestamp, Transport, Verification, Version,
};
use penstock_blob::Digest;
use serde::Serialize;

use crate::config::value;
use crate::{
    client::Message,
    output::{self, Table, percent, size},
};

/// The most blobs in a table: a screen of them. JSON has more.
const BLOBS_SHOWN: usize = 20;

/// The version of the command and, when it could be asked, of the agent.
#[derive(Debug, Serialize)]
pub(super) struct Versions {
    command: String,
    agent: Option<Version>,
    /// Why there is no `agent`.
    agent_missing: Option<String>,
}

impl Versions {
    pub(super) fn new(command: &str, agent: Result<Version, String>) -> Self {
        let (agent, agent_missing) = match agent {
            Ok(agent) => (Some(agent), None),
            Err(reason) => (None, Some(reason)),
        };
        Self { command: command.to_owned(), agent, agent_missing }
    }
}

/// All devices, a line for each.
pub(super) fn devices(devices: &[Device]) -> String {
    if devices.is_empty() {
        return none_attached();
    }
    let titles = ["ID", "STATE", "OWNER", "REFERENCE", ">SIZE", ">PRESENT", "TRANSPORT", "DEVICE", "MOUNT"];
    let mut table = Table::new(&titles);
    for device in devices {
        table.row([
            device.id.clone(),
            state(device.state).to_owned(),
            owner(device.owner).to_owned(),
            if device.layers.is_all() {
                device.reference.clone()
            } else {
                format!("{} ({})", device.reference, layers(device.layers))
            },
            size(device.size_bytes),
            presence(device),
            transport(device.transport).to_owned(),
            path(device.device_path.as_deref()),
            path(device.mount_point.as_deref()),
        ]);
    }
    let failed = devices.iter().filter_map(|d| d.state_reason.as_ref().map(|reason| (&d.id, reason)));
    let mut text = table.to_string();
    for (id, reason) in failed {
        text.push_str(&format!("{}\n", crate::output::escape(&format!("{id}: {reason}"))));
    }
    text
}

/// Who asked for a device.
const fn owner(owner: Owner) -> &'static str {
    match owner {
        Owner::Operator => "operator",
        Owner::Snapshotter => "snapshotter",
    }
}

/// Which layers of its image a device shows, counted from 1.
fn layers(layers: Layers) -> String {
    match (layers.is_all(), layers.count) {
        (true, _) => format!("all {}", layers.of),
        (false, 1) => format!("layer {} of {}", layers.first + 1, layers.of),
        (false, count) => format!("layers {}-{} of {}", layers.first + 1, layers.first + count, layers.of),
    }
}

/// A time that readers waited.
pub(super) fn waited(milliseconds: u64) -> String {
    let seconds = Duration::from_millis(milliseconds).as_secs_f64();
    format!("{seconds:.1} s")
}

/// What all devices have served, a line for each.
pub(super) fn stats(devices: &[Device]) -> String {
    if devices.is_empty() {
        return none_attached();
    }
    let titles = ["ID", "REFERENCE", ">REQUESTS", ">SERVED", ">HITS", ">MISSES", ">ERRORS", ">FETCHED", ">PRESENT"];
    let mut table = Table::new(&titles);
    for device in devices {
        let stats = &device.stats;
        table.row([
            device.id.clone(),
            device.reference.clone(),
            stats.requests.to_string(),
            size(stats.bytes_served),
            stats.hits.to_string(),
            stats.misses.to_string(),
            stats.errors.to_string(),
            size(stats.bytes_fetched),
            presence(device),
        ]);
    }
    table.to_string()
}

/// The same, and how long reads took.
pub(super) fn node_stats(devices: &[Device], tiers: &[Latency]) -> String {
    let stats = stats(devices);
    if tiers.is_empty() { stats } else { format!("{stats}\n{}", latency(tiers)) }
}

/// How long reads took, a line for each tier.
pub(super) fn latency(tiers: &[Latency]) -> Table {
    let mut table = Table::new(&["READS FROM", ">READS", ">P50", ">P99", ">P99.9"]);
    for tier in tiers {
        let [p50, p99, p999] = [tier.p50_us, tier.p99_us, tier.p999_us].map(micros);
        table.row([tier.tier.name().to_owned(), tier.reads.to_string(), p50, p99, p999]);
    }
    table
}

/// A short time with two or three digits.
fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..10_000 => format!("{:.1} ms", Duration::from_micros(us).as_secs_f64() * 1e3),
        10_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{:.1} s", Duration::from_micros(us).as_secs_f64()),
    }
}

/// Everything about one device.
pub(super) fn device(device: &Device) -> String {
    let mut facts = Table::facts();
    facts.fact("id", &device.id);
    match &device.state_reason {
        Some(reason) => facts.fact("state", format_args!("{}: {reason}", state(device.state))),
        None => facts.fact("state", state(device.state)),
    }
    facts.fact("reference", &device.reference);
    facts.fact("digest", device.digest);
    facts.fact("platform", &device.platform);
    facts.fact("image", &device.image);
    facts.fact("layers", layers(device.layers));
    facts.fact("owner", owner(device.owner));
    facts.fact("size", sized(device.size_bytes));
    facts.fact("device", path(device.device_path.as_deref()));
    facts.fact("transport", format_args!("{}: {}", transport(device.transport), device.transport_reason));
    facts.fact("file system", device.file_system.as_deref().unwrap_or_default());
    facts.fact("mounted on", path(device.mount_point.as_deref()));
    facts.fact("checked by", &device.verified_by);
    facts.fact("on failure", policy(&device.policy));
    facts.fact("attached at", moment(device.attached_at));
    let stats = &device.stats;
    facts.fact("requests", format_args!("{}, {} in flight", stats.requests, stats.in_flight));
    facts.fact("hits", stats.hits);
    facts.fact("misses", stats.misses);
    facts.fact("errors", stats.errors);
    facts.fact("served", sized(stats.bytes_served));
    facts.fact("fetched", sized(stats.bytes_fetched));
    let stalled = waited(stats.stalled_ms);
    facts.fact("waited", format_args!("{stalled}; {} when each read counts", waited(stats.waited_ms)));
    if let Some(reading) = &device.reading {
        facts.fact("read", format_args!("{}: {}", reading.mode.name(), reading.why));
        if let Some(from) = &reading.recording_from {
            let used = percent(reading.recording_used_bytes, reading.recording_bytes);
            let ahead = sized(reading.replayed_bytes);
            let left = if reading.diverged { "; the program did something else" } else { "" };
            facts.fact("recording", format_args!("of the {from}: {ahead} fetched ahead, {used} of it needed{left}"));
        }
        if reading.filled_bytes > 0 {
            facts.fact("completed", format_args!("{} fetched behind what was needed", sized(reading.filled_bytes)));
        }
    }
    let tiers = if device.latency.is_empty() { String::new() } else { format!("\n{}", latency(&device.latency)) };
    let mut blobs = Table::new(&["BLOB", ">SIZE", ">PRESENT", ">SHARE", "VERIFIED BY"]);
    for blob in &device.blobs {
        let share = percent(blob.present_bytes, blob.size_bytes);
        let verified_by = blob.verified_by.clone();
        blobs.row([short(blob.digest), size(blob.size_bytes), size(blob.present_bytes), share, verified_by]);
    }
    format!("{facts}{tiers}\n{blobs}")
}

/// What became of devices that were to go.
pub(super) fn detached(detached: &Detached) -> String {
    let mut table = Table::facts();
    for id in &detached.detached {
        table.fact(id, "detached");
    }
    for failed in &detached.failed {
        table.fact(&failed.id, format_args!("still attached: {}", failed.problem.detail));
    }
    let text = table.to_string();
    if text.is_empty() { none_attached() } else { text }
}

/// The cache and its blobs.
pub(super) fn cache(usage: &CacheUsage) -> String {
    let mut facts = Table::facts();
    facts.fact("directory", usage.dir.display());
    let used = usage.used_bytes.saturating_add(usage.index_bytes).saturating_add(usage.maps_bytes);
    let share = percent(used, usage.cap_bytes);
    facts.fact("used", format_args!("{} of {} ({share})", size(used), size(usage.cap_bytes)));
    let parts = [usage.used_bytes, usage.index_bytes, usage.maps_bytes].map(size);
    facts.fact("of that", format_args!("{} chunks, {} index, {} maps", parts[0], parts[1], parts[2]));
    facts.fact("chunks", format_args!("{} present, {} durable", usage.chunks_present, usage.chunks_durable));
    let index = match usage.index.state {
        IndexState::Open => "open",
        IndexState::Rebuilt => "rebuilt",
        IndexState::Lost => "lost",
    };
    facts.fact("index", format_args!("{index}: {}", usage.index.detail));
    facts.fact("hits", usage.hits);
    facts.fact("fills", usage.fills);
    facts.fact("bypasses", usage.bypasses);
    facts.fact("evicted", usage.evicted);
    facts.fact("corrupt", format_args!("{} dropped", usage.corrupt_dropped));
    facts.fact("blobs", usage.blobs_total);
    if usage.blobs.is_empty() {
        return facts.to_string();
    }
    let mut blobs = Table::new(&["BLOB", ">SIZE", ">PRESENT", ">SHARE", ">CHUNKS", ">DURABLE", ">FETCHED", "DIGEST"]);
    for blob in usage.blobs.iter().take(BLOBS_SHOWN) {
        blobs.row([
            short(blob.digest),
            size(blob.size_bytes),
            size(blob.present_bytes),
            percent(blob.present_bytes, blob.size_bytes),
            format!("{} of {}", blob.chunks_present, blob.chunks),
            blob.chunks_durable.to_string(),
            size(blob.fetched_bytes),
            verification(blob.verification).to_owned(),
        ]);
    }
    let shown = u64::try_from(usage.blobs.len().min(BLOBS_SHOWN)).unwrap_or(u64::MAX);
    let more = match usage.blobs_total.saturating_sub(shown) {
        0 => String::new(),
        more => format!("and {more} more, less present; --output json lists them\n"),
    };
    format!("{facts}\n{blobs}{more}")
}

/// Events, a line for each, oldest first.
pub(super) fn events(events: &Events) -> String {
    if events.events.is_empty() {
        return "no events\n".to_owned();
    }
    let mut table = Table::new(&[">NUMBER", "TIME", "SEVERITY", "KIND", "TEXT"]);
    for event in &events.events {
        table.row([
            event.sequence.to_string(),
            moment(event.time),
            severity(event.severity).to_owned(),
            event.kind.clone(),
            event.text.clone(),
        ]);
    }
    let lost = match events.lost {
        0 => String::new(),
        lost => format!("{lost} earlier events are no longer kept\n"),
    };
    let last = events.events.last().map_or(0, |event| event.sequence);
    let more = match events.newest.saturating_sub(last) {
        0 => String::new(),
        more => format!("{more} more: --since {last} shows them\n"),
    };
    format!("{lost}{table}{more}")
}

/// One thing that an agent says to who follows it. Columns are as wide as what is usual in them: nobody knows what comes.
pub(super) fn followed(message: &Message) -> String {
    match message {
        Message::Event(event) => {
            let Event { sequence, time, kind, text, .. } = event;
            let line = format!("{sequence:>6}  {}  {:<8}  {kind:<22}  {text}", moment(*time), severity(event.severity));
            output::escape(&line)
        }
        Message::Lost(count) => format!("{count} events came too fast, and are no longer kept"),
        Message::Restarted => "the agent was started anew, and with it the numbers of its events".to_owned(),
    }
}

/// The same for programs: a JSON object on one line. What is not an event has no `sequence`.
pub(super) fn followed_json(message: &Message) -> std::io::Result<String> {
    let line = match message {
        Message::Event(event) => serde_json::to_string(event),
        Message::Lost(lost) => serde_json::to_string(&Lost { lost: *lost }),
        Message::Restarted => Ok("{\"restarted\":true}".to_owned()),
    };
    Ok(line?)
}

/// Both versions.
pub(super) fn versions(versions: &Versions) -> String {
    let mut facts = Table::facts();
    facts.fact("command", &versions.command);
    if let Some(agent) = &versions.agent {
        facts.fact("agent", &agent.version);
        facts.fact("process", format_args!("{}, since {}", agent.pid, moment(agent.started_at)));
        facts.fact("kernel", &agent.kernel);
    }
    if let Some(missing) = &versions.agent_missing {
        facts.fact("agent", missing);
    }
    facts.to_string()
}

/// What readers get while bytes cannot be fetched.
fn policy(policy: &Policy) -> String {
    let show = |ms| value::show_duration(Duration::from_millis(ms));
    match policy.on_failure {
        OnFailure::Eio => format!("an I/O error after {}", show(policy.deadline_ms)),
        OnFailure::Wait => {
            format!("readers wait, at most {}; an event after {}", show(policy.wait_limit_ms), show(policy.deadline_ms))
        }
    }
}

fn none_attached() -> String {
    "no devices are attached; `penstock attach REFERENCE` attaches one\n".to_owned()
}

/// A size with its unit, and the bytes where the unit rounds.
fn sized(bytes: u64) -> String {
    if bytes < 1024 { size(bytes) } else { format!("{} ({bytes} bytes)", size(bytes)) }
}

/// The present share of all blobs of a device.
fn presence(device: &Device) -> String {
    let present = device.blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.present_bytes));
    let whole = device.blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size_bytes));
    percent(present, whole)
}

/// To the second, in UTC.
pub(super) fn moment(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// Enough of a digest to tell blobs apart, as registries' tools show it.
pub(super) fn short(digest: Digest) -> String {
    digest.to_hex().chars().take(12).collect()
}

fn path(path: Option<&std::path::Path>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

const fn state(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Attaching => "attaching",
        DeviceState::Attached => "attached",
        DeviceState::Detaching => "detaching",
        DeviceState::Failed => "failed",
    }
}

const fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
    }
}

const fn transport(transport: Transport) -> &'static str {
    match transport {
        Transport::Ublk => "ublk",
        Transport::Fuse => "fuse",
    }
}

const fn verification(verification: Verification) -> &'static str {
    match verification {
        Verification::Partial => "when whole",
        Verification::Running => "being checked",
        Verification::Whole => "checked",
        Verification::Mismatch => "was wrong",
    }
}
