//! Why a start took as long as it did, and what would be faster, in a sentence. Pure.
//!
//! Penstock does not see when a program is ready. What is called the start is the burst of waits that stalled longest (waits less than two
//! seconds apart); what is left of it without the stalls is taken for the program's own time. Estimates add to that what the bytes take on the
//! link as it was measured: what was not measured is said to be unknown, not guessed.

pub(crate) mod under;

use std::time::Duration;

use penstock_api as api;
use penstock_device::{Burst, Waits};
use penstock_fetcher::Link;
use penstock_image::paths::{Content, Found, Unknown};

/// What is known of a device.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) id: String,
    pub(crate) reference: String,
    /// How long opening, making and mounting took; `None` when an earlier agent did that.
    pub(crate) made: Option<Duration>,
    /// Reads that the kernel has asked for.
    pub(crate) requests: u64,
    pub(crate) waits: Waits,
    /// Distinct bytes that the start needed.
    pub(crate) needed_bytes: u64,
    /// Where the recording was had from that the start was read along.
    pub(crate) recording_from: Option<String>,
    /// Bytes of the image's blobs.
    pub(crate) image_bytes: u64,
    pub(crate) link: Link,
    /// What lies in the ranges that were waited for.
    pub(crate) files: Result<Found, Unknown>,
    /// containerd's snapshots that it is a part of.
    pub(crate) snapshots: Vec<String>,
}

/// What the start would have taken otherwise.
#[derive(Debug, Default)]
struct Estimates {
    own: Option<Duration>,
    recorded: Option<Duration>,
    pulled: Option<Duration>,
    unknown: Vec<String>,
}

impl Estimates {
    fn of(facts: &Facts) -> Self {
        let Some(start) = facts.waits.longest else { return Self::default() };
        let own = start.took.saturating_sub(start.stalled);
        let mut estimates = Self { own: Some(own), ..Self::default() };
        let (Some(latency), Some(rate)) = (facts.link.latency, facts.link.bytes_per_second) else {
            let unknown =
                "what a recording or a full pull would bring: too little was fetched to say how fast the registry is";
            estimates.unknown.push(unknown.to_owned());
            return estimates.with_files(facts);
        };
        // Everything is asked for at once: one round trip, then what the link carries.
        let with = |bytes| own.saturating_add(latency).saturating_add(carry(bytes, rate));
        if facts.recording_from.is_none() {
            estimates.recorded = Some(with(facts.needed_bytes));
        }
        estimates.pulled = Some(with(facts.image_bytes));
        estimates.with_files(facts)
    }

    /// What is not known of the files.
    fn with_files(mut self, facts: &Facts) -> Self {
        if let Err(why) = facts.files {
            self.unknown.push(format!("which files were waited for: {why}"));
        }
        self
    }
}

/// How long a link takes for `bytes`.
fn carry(bytes: u64, bytes_per_second: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Explains it.
pub(crate) fn explain(facts: Facts) -> api::Explanation {
    let estimates = Estimates::of(&facts);
    let sentence = sentence(&facts, &estimates);
    let under = directory(&facts);
    let Facts { waits, link, files, .. } = facts;
    let contents = files.map_or_else(|_| Vec::new(), |found| found.contents);
    let range = |(nth, wait): (usize, &penstock_device::RangeWait)| api::WaitedRange {
        start: wait.range.start(),
        bytes: wait.range.len(),
        waits: wait.waits,
        waited_ms: ms(wait.waited),
        path: contents.get(nth).and_then(path).map(str::to_owned),
        metadata: matches!(contents.get(nth), Some(Some(Content::Metadata))),
    };
    api::Explanation {
        id: facts.id,
        reference: facts.reference,
        sentence,
        attached_ms: facts.made.map(ms),
        start: waits.longest.map(|start| burst(start, waits.is_over)),
        waits: api::Waits { stalled_ms: ms(waits.stalled), reads: waits.waits, bytes: waits.bytes },
        own_ms: estimates.own.map(ms),
        needed_bytes: facts.needed_bytes,
        recording_from: facts.recording_from,
        image_bytes: facts.image_bytes,
        link: api::Link {
            latency_us: link.latency.map(|latency| u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)),
            bytes_per_second: link.bytes_per_second,
        },
        recorded_ms: estimates.recorded.map(ms),
        pulled_ms: estimates.pulled.map(ms),
        unknown: estimates.unknown,
        under,
        ranges: waits.ranges.iter().enumerate().take(api::RANGES_EXPLAINED).map(range).collect(),
        snapshots: facts.snapshots,
    }
}

/// The path of a file or a directory.
fn path(content: &Option<Content>) -> Option<&str> {
    match content {
        Some(Content::File(path) | Content::Directory(path)) => Some(path),
        Some(Content::Metadata) | None => None,
    }
}

/// Under which directory most was waited for.
fn directory(facts: &Facts) -> Option<String> {
    let Ok(found) = &facts.files else { return None };
    let of = |(wait, content): (&penstock_device::RangeWait, _)| (wait.waited, path(content));
    let mut waits: Vec<_> = facts.waits.ranges.iter().zip(&found.contents).map(of).collect();
    waits.push((facts.waits.elsewhere, None));
    under::directory(&waits)
}

fn burst(start: Burst, over: bool) -> api::Burst {
    api::Burst { took_ms: ms(start.took), stalled_ms: ms(start.stalled), reads: start.waits, bytes: start.bytes, over }
}

fn sentence(facts: &Facts, estimates: &Estimates) -> String {
    let Some(start) = facts.waits.longest else {
        return match facts.requests {
            0 => "nothing has been read from it yet".to_owned(),
            _ => "no read had to wait: everything that was read is on this node".to_owned(),
        };
    };
    let reads = match start.waits {
        1 => "1 read from registries".to_owned(),
        reads => format!("{reads} reads from registries"),
    };
    let begun = if facts.waits.is_over { "started in" } else { "has been starting for" };
    let most = directory(facts).map_or_else(String::new, |directory| format!(", most under {directory}"));
    let mut parts =
        vec![format!("{begun} {}", time(start.took)), format!("{} waiting on {reads}{most}", time(start.stalled))];
    if let Some(from) = &facts.recording_from {
        parts.push(format!("it was read along the recording of the {from}"));
    }
    parts.extend(estimates.recorded.map(|took| format!("with a recording: about {}", time(took))));
    parts.extend(estimates.pulled.map(|took| format!("full pull: about {}", time(took))));
    parts.extend(estimates.unknown.iter().map(|what| format!("not known is {what}")));
    parts.join("; ")
}

/// A time as a person says it.
pub(crate) fn time(time: Duration) -> String {
    let millis = ms(time);
    match millis {
        0..95 => format!("{millis} ms"),
        95..9_950 => format!("{:.1} s", time.as_secs_f64()),
        9_950..600_000 => format!("{} s", (millis + 500) / 1000),
        _ => format!("{} min", millis / 60_000),
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use penstock_blob::ByteRange;
    use penstock_device::RangeWait;

    use super::*;

    const fn millis(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn facts() -> Facts {
        let start = Burst { took: millis(900), stalled: millis(600), waits: 34, bytes: 4_000_000 };
        let wait = RangeWait { range: ByteRange::new(8192, 16_384).unwrap(), waits: 2, waited: millis(41) };
        Facts {
            id: "d1".to_owned(),
            reference: "app:1".to_owned(),
            made: Some(millis(80)),
            requests: 100,
            waits: Waits {
                stalled: millis(700),
                waits: 40,
                bytes: 5_000_000,
                longest: Some(start),
                is_over: true,
                ranges: vec![wait; 20],
                elsewhere: Duration::ZERO,
            },
            needed_bytes: 6_000_000,
            recording_from: None,
            image_bytes: 380_000_000,
            link: Link { latency: Some(millis(20)), bytes_per_second: Some(100_000_000) },
            files: Ok(Found { contents: vec![None; 20], is_partial: false }),
            snapshots: Vec::new(),
        }
    }

    #[test]
    fn a_start_is_told_in_a_sentence() {
        let waits = facts().waits;
        let cases = [
            (
                facts(),
                "started in 0.9 s; 0.6 s waiting on 34 reads from registries; with a recording: about 0.4 s; full pull: about 4.1 s",
            ),
            (
                Facts { recording_from: Some("node".to_owned()), ..facts() },
                "started in 0.9 s; 0.6 s waiting on 34 reads from registries; it was read along the recording of the node; \
                 full pull: about 4.1 s",
            ),
            (
                Facts { link: Link { bytes_per_second: None, ..facts().link }, ..facts() },
                "started in 0.9 s; 0.6 s waiting on 34 reads from registries; not known is what a recording or a full pull would \
                 bring: too little was fetched to say how fast the registry is",
            ),
            (
                Facts { waits: Waits { is_over: false, ..waits }, link: Link::default(), ..facts() },
                "has been starting for 0.9 s; 0.6 s waiting on 34 reads from registries; not known is what a recording or a full \
                 pull would bring: too little was fetched to say how fast the registry is",
            ),
            (
                Facts { waits: Waits::default(), ..facts() },
                "no read had to wait: everything that was read is on this node",
            ),
            (Facts { waits: Waits::default(), requests: 0, ..facts() }, "nothing has been read from it yet"),
            (
                Facts {
                    files: Ok(Found {
                        contents: vec![Some(Content::File("/usr/lib/a.so".to_owned())); 20],
                        is_partial: true,
                    }),
                    ..facts()
                },
                "started in 0.9 s; 0.6 s waiting on 34 reads from registries, most under /usr/lib; with a recording: about 0.4 s; \
                 full pull: about 4.1 s",
            ),
            (
                Facts { files: Err(Unknown::NotUnderstood), recording_from: Some("node".to_owned()), ..facts() },
                "started in 0.9 s; 0.6 s waiting on 34 reads from registries; it was read along the recording of the node; \
                 full pull: about 4.1 s; not known is which files were waited for: its file system is not one whose files can be \
                 told (EROFS without compression, ext4 with extents)",
            ),
        ];
        for (facts, says) in cases {
            assert_eq!(explain(facts).sentence, says);
        }
    }

    #[test]
    fn the_parts_are_those_of_the_sentence() {
        let parts = explain(facts());
        let estimates = (parts.own_ms, parts.recorded_ms, parts.pulled_ms);
        assert_eq!(estimates, (Some(300), Some(380), Some(4120)));
        assert_eq!((parts.attached_ms, parts.waits.reads, parts.start.unwrap().reads), (Some(80), 40, 34));
        assert_eq!(parts.ranges.len(), api::RANGES_EXPLAINED);
        let none = explain(Facts { waits: Waits::default(), ..facts() });
        assert_eq!((none.start, none.own_ms, none.pulled_ms, none.unknown), (None, None, None, Vec::new()));
    }

    #[test]
    fn times_are_as_exact_as_people_need_them() {
        for (ms, text) in [
            (0, "0 ms"),
            (94, "94 ms"),
            (95, "0.1 s"),
            (949, "0.9 s"),
            (9_949, "9.9 s"),
            (9_950, "10 s"),
            (61_400, "61 s"),
            (600_000, "10 min"),
        ] {
            assert_eq!(time(millis(ms)), text);
        }
    }

    #[test]
    fn no_number_of_bytes_is_too_many() {
        assert_eq!(carry(u64::MAX, 0), Duration::from_nanos(u64::MAX));
        assert_eq!(carry(1_000, 1_000_000), millis(1));
    }
}
