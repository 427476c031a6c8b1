//! All that was measured, beside what it should be: a line for each thing that is promised.

use std::fmt;

use penstock_agent::output::{Table, size};
use serde::Serialize;

use crate::{
    attach, cold, crowd, many,
    pack::Link,
    path,
    report::time,
    start, vm,
    warm::{self, Below, Work},
    warm_start,
};

/// Memory for all devices of a node, in bytes: the budget that an agent has when nothing else is said.
const MEMORY_BYTES: f64 = (64 << 20) as f64;
/// Memory that opening an image may take, in bytes.
const OPEN_MEMORY_BYTES: f64 = (4 << 20) as f64;

/// A measured thing and its unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// A time.
    Seconds(f64),
    /// An amount.
    Bytes(f64),
    /// Bytes in a second.
    BytesPerSecond(f64),
    /// How many.
    Count(f64),
    /// Processor seconds for 2^30 bytes.
    CpuSecondsPerGib(f64),
}

impl Value {
    const fn number(self) -> f64 {
        match self {
            Self::Seconds(number)
            | Self::Bytes(number)
            | Self::BytesPerSecond(number)
            | Self::Count(number)
            | Self::CpuSecondsPerGib(number) => number,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seconds(seconds) => f.write_str(&time(*seconds)),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "shown with three digits; never negative"
            )]
            Self::Bytes(bytes) => f.write_str(&size(*bytes as u64)),
            Self::BytesPerSecond(rate) => write!(f, "{:.0} MB/s", rate / 1e6),
            Self::Count(count) => write!(f, "{count:.0}"),
            Self::CpuSecondsPerGib(seconds) => write!(f, "{seconds:.2} s/GiB"),
        }
    }
}

/// What the ratio should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Not above.
    AtMost(f64),
    /// Not below.
    AtLeast(f64),
    /// Only told.
    Told,
}

impl Target {
    fn is_met(self, ratio: f64) -> Option<bool> {
        match self {
            Self::AtMost(most) => Some(ratio <= most),
            Self::AtLeast(least) => Some(ratio >= least),
            Self::Told => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "at most {most}"),
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::Told => f.write_str("told"),
        }
    }
}

/// One line.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// The work.
    pub work: String,
    /// Penstock's value.
    pub penstock: Value,
    /// What else can be had on this machine.
    pub alternative: Option<Value>,
    /// The least, or most, that is possible.
    pub floor: Option<Value>,
    /// Penstock's value over the one that it is compared with; for rates and for `alternative` over Penstock so that more is better where the target is a least.
    pub ratio: f64,
    /// What the ratio should be.
    pub target: Target,
    /// Whether it is; none when nothing is promised.
    pub met: Option<bool>,
}

impl Line {
    fn new(work: impl Into<String>, penstock: Value, ratio: f64, target: Target) -> Self {
        let met = target.is_met(ratio);
        Self { work: work.into(), penstock, alternative: None, floor: None, ratio, target, met }
    }

    /// Compared with a floor, or with what is allowed.
    fn over_floor(work: impl Into<String>, penstock: Value, floor: Value, target: Target) -> Self {
        Self { floor: Some(floor), ..Self::new(work, penstock, penstock.number() / floor.number(), target) }
    }

    /// Times of two sides: how many times as fast as the other Penstock is.
    fn beside(work: impl Into<String>, penstock: f64, alternative: f64, target: Target) -> Self {
        let line = Self::new(work, Value::Seconds(penstock), alternative / penstock, target);
        Self { alternative: Some(Value::Seconds(alternative)), ..line }
    }
}

/// Cold starts of a program.
#[must_use]
pub fn of_cold(rows: &[cold::Row]) -> Vec<Line> {
    let mut lines = Vec::new();
    for row in rows {
        let most = match row.variant {
            "no recording" => 2.5,
            "with a recording" => 1.3,
            _ => continue,
        };
        let name = |what: &str| format!("cold start, {}: {what}", row.variant);
        let (took, floor) = (Value::Seconds(row.started.median_seconds), Value::Seconds(row.floor_seconds));
        lines.push(Line::over_floor(name("time"), took, floor, Target::AtMost(most)));
        if row.variant == "no recording" {
            let (requests, allowed) = (Value::Count(row.requests as f64), Value::Count(40.0));
            lines.push(Line::over_floor(name("requests"), requests, allowed, Target::AtMost(1.0)));
            let (fetched, touched) = (Value::Bytes(row.fetched_bytes as f64), Value::Bytes(row.touched_bytes as f64));
            lines.push(Line::over_floor(name("bytes"), fetched, touched, Target::AtMost(2.0)));
        }
    }
    lines
}

/// Warm starts of the same program: Penstock comes first.
#[must_use]
pub fn of_warm_start(rows: &[warm_start::Row]) -> Vec<Line> {
    let Some((penstock, local)) = rows.split_first() else { return Vec::new() };
    let line = |other: &warm_start::Row| {
        let (took, other_took) = (penstock.started.median_seconds, other.started.median_seconds);
        let name = format!("warm start, against {}", other.side);
        let line = Line::new(name, Value::Seconds(took), took / other_took, Target::AtMost(1.2));
        Line { alternative: Some(Value::Seconds(other_took)), ..line }
    };
    local.iter().map(line).collect()
}

/// Many starts at once, with nothing cached.
#[must_use]
pub fn of_crowd(rows: &[crowd::Row]) -> Vec<Line> {
    let mut lines = Vec::new();
    for row in rows.iter().filter(|row| row.starts > 1 && !row.name.ends_with("again")) {
        let name = |what: &str| format!("{} starts at once, {}: {what}", row.starts, row.name);
        let (slowest, limit) = (Value::Seconds(row.slowest.median_seconds), Value::Seconds(row.limit_seconds));
        // What is promised is promised of containers.
        let target = if row.name == crowd::FIFTY_DEVICES { Target::Told } else { Target::AtMost(1.0) };
        lines.push(Line::over_floor(name("the slowest"), slowest, limit, target));
        let once = row.asked_bytes.saturating_sub(row.again_bytes);
        let (asked, once) = (Value::Bytes(row.asked_bytes as f64), Value::Bytes(once as f64));
        lines.push(Line::over_floor(name("bytes asked for"), asked, once, Target::AtMost(1.0)));
    }
    lines
}

/// Reads over the link.
#[must_use]
pub fn of_path(rows: &[path::Row], link: Link) -> Vec<Line> {
    let mut lines = Vec::new();
    let row = |name: &str, readers: u64| rows.iter().find(|row| row.name == name && row.readers == readers);
    if let Some(row) = row("cold, in order", 1) {
        let rate = Value::BytesPerSecond(row.fetched_bytes as f64 / row.seconds);
        let bandwidth = Value::BytesPerSecond(link.bandwidth_bytes_per_second as f64);
        lines.push(Line::over_floor("cold sequential read: bodies", rate, bandwidth, Target::AtLeast(0.9)));
    }
    if let Some(one) = row("miss", 1) {
        let (took, latency) = (Value::Seconds(one.latency.median_seconds), Value::Seconds(link.latency_seconds));
        lines.push(Line::over_floor("cold random 4 KiB, one at a time", took, latency, Target::AtMost(1.3)));
        for many in rows.iter().filter(|row| row.name == "miss" && row.readers > 1) {
            let rate = |row: &path::Row| row.latency.n as f64 / row.seconds;
            let work = format!("cold random 4 KiB, {} at a time: reads a second", many.readers);
            let (many, one) = (Value::Count(rate(many)), Value::Count(rate(one)));
            lines.push(Line::over_floor(work, many, one, Target::AtLeast(10.0)));
        }
    }
    lines
}

/// An image of which nearly everything is read, against fetching all of it first.
#[must_use]
pub fn of_start(rows: &[start::Row]) -> Vec<Line> {
    let side = |share: f64, side: &str| rows.iter().find(|row| row.share == share && row.side == side);
    let mut lines = Vec::new();
    for share in [0.9, 1.0] {
        let (Some(penstock), Some(whole)) = (side(share, "PENSTOCK"), side(share, "WHOLE FIRST")) else { continue };
        let (took, other) = (penstock.all_read.median_seconds, whole.all_read.median_seconds);
        let ratio = Line::new(
            format!("{:.0} % of an image read, against a parallel pull", share * 100.0),
            Value::Seconds(took),
            took / other,
            Target::AtMost(1.1),
        );
        lines.push(Line { alternative: Some(Value::Seconds(other)), ..ratio });
    }
    lines
}

/// Reads of what is cached.
#[must_use]
pub fn of_warm(measured: &warm::Measured) -> Vec<Line> {
    let mut lines = Vec::new();
    for (work, below) in [
        (Work::Sequential, Below::Disk),
        (Work::Random, Below::Disk),
        (Work::Sequential, Below::Pages),
        (Work::Random, Below::Pages),
        (Work::RandomOneCpu, Below::Pages),
    ] {
        let row = |side| measured.row(work, below, side);
        let (Some(raw), Some(other)) = (row(warm::RAW), row(warm::LOOP)) else { continue };
        let name = format!("warm {} through FUSE, from the {}", work.name(), below.name());
        let (took, other) = (raw.took.median_seconds, other.took.median_seconds);
        let line = Line::beside(name, took, other, Target::AtLeast(0.9));
        let floor = row(warm::PLAIN_FILE).map(|row| Value::Seconds(row.took.median_seconds));
        lines.push(Line { floor, ..line });
    }
    for kept in measured.kept.iter().filter(|kept| kept.side.starts_with("Penstock")) {
        let (cached, file) = (kept.above_bytes + kept.below_bytes, kept.file_bytes);
        let name = format!("{}: cached after reading twice", kept.side);
        let (cached, file) = (Value::Bytes(cached as f64), Value::Bytes(file as f64));
        lines.push(Line::over_floor(name, cached, file, Target::AtMost(1.1)));
    }
    let told = |name: String, seconds: f64, floor: f64| {
        let (seconds, floor) = (Value::CpuSecondsPerGib(seconds), Value::CpuSecondsPerGib(floor));
        Line::over_floor(name, seconds, floor, Target::Told)
    };
    let passes =
        [(warm::RAW, warm::PLAIN_FILE, None), (warm::LZ4, "", Some("lz4 alone")), (warm::ZSTD, "", Some("zstd alone"))];
    for (side, plain, alone) in passes {
        let Some(row) = measured.row(Work::Sequential, Below::Pages, side) else { continue };
        let floor = match alone {
            None => measured.row(Work::Sequential, Below::Pages, plain).map(warm::Row::cpu_per_gib),
            Some(what) => measured.cpu.iter().find(|cpu| cpu.what == what).map(warm::Cpu::per_gib),
        };
        lines.extend(floor.map(|floor| told(format!("processor time, warm: {side}"), row.cpu_per_gib(), floor)));
    }
    if let Some(plain) = measured.row(Work::Sequential, Below::Pages, warm::PLAIN_FILE) {
        let cold = measured.cpu.iter().filter(|cpu| cpu.what.starts_with("cold"));
        lines.extend(cold.map(|cpu| told(format!("processor time, {}", cpu.what), cpu.per_gib(), plain.cpu_per_gib())));
    }
    lines
}

/// Opening images of very different sizes: each against the smallest.
#[must_use]
pub fn of_attach(rows: &[attach::Row]) -> Vec<Line> {
    let Some((small, large)) = rows.split_first() else { return Vec::new() };
    let mut lines = Vec::new();
    for row in large {
        let name = |what: &str| format!("attach of {}: {what}", row.name);
        let sides = [
            ("time", Value::Seconds(row.opened.median_seconds), Value::Seconds(small.opened.median_seconds)),
            ("requests", Value::Count(row.requests as f64), Value::Count(small.requests as f64)),
            ("bytes", Value::Bytes(row.fetched_bytes as f64), Value::Bytes(small.fetched_bytes as f64)),
        ];
        for (what, large, small) in sides {
            let line = Line::over_floor(name(what), large, small, Target::AtMost(1.5));
            lines.push(Line { alternative: line.floor, floor: None, ..line });
        }
        let (memory, most) = (Value::Bytes(row.memory_bytes as f64), Value::Bytes(OPEN_MEMORY_BYTES));
        lines.push(Line::over_floor(name("memory"), memory, most, Target::AtMost(1.0)));
        let later = Value::Bytes(row.completed_memory_bytes as f64);
        lines.push(Line::over_floor(name("memory, tables whole"), later, most, Target::AtMost(1.0)));
    }
    lines
}

/// Devices at once, `place` saying where.
#[must_use]
pub fn of_many(place: &str, row: &many::Row) -> Vec<Line> {
    let name = |what: &str| format!("{} devices{place}: {what}", row.devices);
    let (memory, most) = (Value::Bytes(row.memory_bytes as f64), Value::Bytes(MEMORY_BYTES));
    let (p99, median) = (Value::Seconds(row.attach.p99_seconds), Value::Seconds(row.attach.median_seconds));
    vec![
        Line::over_floor(name("memory"), memory, most, Target::AtMost(1.0)),
        Line::over_floor(name("attach, p99 over median"), p99, median, Target::Told),
    ]
}

/// Block devices of ublk, in the VM.
#[must_use]
pub fn of_vm(measured: &vm::Measured) -> Vec<Line> {
    let mut lines = Vec::new();
    for (work, below) in [(Work::Sequential, Below::Pages), (Work::Random, Below::Pages)] {
        let took = |side| measured.row(work, below, side).map(|row| row.took.median_seconds);
        if let (Some(raw), Some(other)) = (took(warm::RAW), took(warm::LOOP)) {
            let name = format!("warm {} through ublk, from the {}", work.name(), below.name());
            lines.push(Line::beside(name, raw, other, Target::AtLeast(0.9)));
        }
    }
    lines.extend(of_many(" of ublk", &measured.many));
    lines
}

/// The lines as a table.
#[must_use]
pub fn table(lines: &[Line]) -> Table {
    let mut table = Table::new(&["WORK", ">PENSTOCK", ">ALTERNATIVE", ">FLOOR", ">RATIO", "TARGET", ""]);
    let shown = |value: Option<Value>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    for line in lines {
        table.row([
            line.work.clone(),
            line.penstock.to_string(),
            shown(line.alternative),
            shown(line.floor),
            format!("{:.2}", line.ratio),
            line.target.to_string(),
            match line.met {
                Some(true) => "met".to_owned(),
                Some(false) => "MISSED".to_owned(),
                None => String::new(),
            },
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_on_its_side_of_the_ratio() {
        let line = |took, target| Line::over_floor("x", Value::Seconds(took), Value::Seconds(2.0), target);
        assert_eq!(line(5.0, Target::AtMost(2.5)).met, Some(true));
        assert_eq!(line(5.1, Target::AtMost(2.5)).met, Some(false));
        assert_eq!(line(1.8, Target::AtLeast(0.9)).met, Some(true));
        assert_eq!(line(1.7, Target::AtLeast(0.9)).met, Some(false));
        assert_eq!(line(9.0, Target::Told).met, None);
        // Twice as fast as the alternative.
        assert_eq!(Line::beside("x", 1.0, 2.0, Target::AtLeast(0.9)).ratio, 2.0);
        let text = table(&[line(5.1, Target::AtMost(2.5))]).to_string();
        assert!(text.contains("2.55") && text.contains("at most 2.5") && text.contains("MISSED"), "{text}");
    }
}
