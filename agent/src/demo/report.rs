//! What the demo found out, for people and for programs.

use std::time::Duration;

use serde::Serialize;

use crate::output::{Table, percent, size};

/// One way to get at the files.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Side {
    /// Body bytes that the registry sent.
    pub(super) bytes: u64,
    /// Requests that it answered.
    pub(super) requests: u64,
    /// From the beginning to the first byte that the program reads, in seconds.
    pub(super) first_byte_seconds: f64,
    /// From the beginning to the last one.
    pub(super) all_read_seconds: f64,
}

/// The image that was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct ImageFacts {
    /// How it is named.
    pub(super) reference: String,
    /// Files and links in it.
    pub(super) entries: usize,
    /// Their bytes.
    pub(super) content_bytes: u64,
    /// Size of the disk.
    pub(super) disk_bytes: u64,
    /// Bytes of its one layer in the registry.
    pub(super) layer_bytes: u64,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct WorkFacts {
    /// In words.
    pub(super) what: String,
    /// Files, or pieces of the disk.
    pub(super) pieces: usize,
    /// Bytes read.
    pub(super) bytes: u64,
    /// `mount`, `device` or `library`: through which door.
    pub(super) through: &'static str,
    /// Whether what was read was compared with the original, and was the same.
    pub(super) compared: bool,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Report {
    pub(super) image: ImageFacts,
    pub(super) latency_ms: u128,
    pub(super) bandwidth_bytes_per_second: u64,
    pub(super) read: WorkFacts,
    /// Everything downloaded, decoded and written before the first read.
    pub(super) full_pull: Side,
    /// On demand, with an empty cache.
    pub(super) lazy: Side,
    /// Detached, attached and read again.
    pub(super) again: Side,
    /// What this machine or user did not allow to show.
    pub(super) not_shown: Vec<String>,
}

impl Side {
    pub(super) fn new((requests, bytes): (u64, u64), first_byte: Duration, all_read: Duration) -> Self {
        Self { bytes, requests, first_byte_seconds: first_byte.as_secs_f64(), all_read_seconds: all_read.as_secs_f64() }
    }
}

impl Report {
    /// As a table with a line of explanation for each side.
    pub(super) fn table(&self) -> String {
        let sides = [&self.full_pull, &self.lazy, &self.again];
        let row = |name: &str, cell: &dyn Fn(&Side) -> String| {
            let [full, lazy, again] = sides.map(cell);
            [name.to_owned(), full, lazy, again]
        };
        let seconds = |value: f64| format!("{value:.2} s");
        let mut table = Table::new(&["", ">FULL PULL", ">PENSTOCK", ">AGAIN"]);
        table.row(row("bytes fetched", &|side| size(side.bytes)));
        table.row(row("share of the image", &|side| percent(side.bytes, self.image.layer_bytes)));
        table.row(row("requests", &|side| side.requests.to_string()));
        table.row(row("first byte read after", &|side| seconds(side.first_byte_seconds)));
        table.row(row("all read after", &|side| seconds(side.all_read_seconds)));
        let checked = if self.read.compared { ", all the same as this machine's own" } else { "" };
        let mut text = format!(
            "\nRead: {} ({}, {}{checked}), over {} MB/s with {} ms to each answer.\n\n{table}\n",
            self.read.what,
            match self.read.through {
                "mount" => format!("{} files", self.read.pieces),
                _ => format!("{} pieces of the disk", self.read.pieces),
            },
            size(self.read.bytes),
            self.bandwidth_bytes_per_second / 1_000_000,
            self.latency_ms,
        );
        text.push_str(
            "FULL PULL  downloaded in one stream, decoded and written to disk, then read. Measured in this run.\n\
             PENSTOCK   attached with an empty cache and read; what was not read was not fetched.\n\
             AGAIN      detached, attached and read again: the blobs come from the cache, the registry is asked for the manifest.\n",
        );
        for reason in &self.not_shown {
            text.push_str(&format!("Not shown: {reason}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_all_three_sides_and_what_was_not_shown() {
        let side = |bytes| Side { bytes, requests: 3, first_byte_seconds: 0.25, all_read_seconds: 1.5 };
        let report = Report {
            image: ImageFacts {
                reference: "127.0.0.1:1/demo:1".into(),
                entries: 9,
                content_bytes: 3 << 20,
                disk_bytes: 4 << 20,
                layer_bytes: 2 << 20,
            },
            latency_ms: 20,
            bandwidth_bytes_per_second: 100_000_000,
            read: WorkFacts { what: "bash: start".into(), pieces: 5, bytes: 4096, through: "mount", compared: true },
            full_pull: side(2 << 20),
            lazy: side(1 << 19),
            again: side(0),
            not_shown: vec!["the moon".into()],
        };
        let text = report.table();
        for expected in
            ["2.0 MiB", "100%", "25%", "0.25 s", "1.50 s", "5 files", "Not shown: the moon", "100 MB/s with 20 ms"]
        {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
}
