//! How an image is read: as it is needed, along its recording, or all of it. Pure.
//!
//! The rule keeps a promise: an image that is read widely is ready at most a tenth later than if all of it had been pulled at once, and one that is not
//! is not pulled for nothing.

use std::{fmt, time::Duration};

use penstock_api::ReadingMode as Mode;

/// An image whose recording, or whose needs so far, have one byte in so many is read widely.
const WIDELY: u64 = 2;
/// Needs of one byte in so many are the beginning of that, when they also cost time.
const BEGINNING: u64 = 8;
/// Waits that cost one part in so many of what pulling all would take are too many.
const COSTLY: u32 = 20;
/// With less than this missing, in bytes, an image is not completed: reading it as needed costs a second at most, whatever it reads.
const WORTH_BYTES: u64 = 32 << 20;
/// What a link is taken for until the fetcher has measured it: 1 Gbit/s, 20 ms.
pub(super) const UNMEASURED: Link = Link { latency: Duration::from_millis(20), bytes_per_second: 125_000_000 };

/// The way to a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    /// From asking to the first byte.
    pub(super) latency: Duration,
    /// Never 0.
    pub(super) bytes_per_second: u64,
}

impl Link {
    /// How long `bytes` take, all asked for at once.
    fn pull(self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
        self.latency + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What is known of a start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// Bytes of the image's blobs.
    pub(super) image_bytes: u64,
    /// How many of them are not on this node.
    pub(super) absent_bytes: u64,
    /// Bytes of its recording, if it has one.
    pub(super) recorded_bytes: Option<u64>,
    /// Bytes of its archives that decode only from their beginning, and are not on this node.
    pub(super) streamed_bytes: u64,
    /// Distinct bytes needed so far.
    pub(super) needed_bytes: u64,
    /// How long somebody waited for bytes so far.
    pub(super) waited: Duration,
    /// The way to its registry.
    pub(super) link: Link,
    /// Bytes that can be stored before anything is evicted.
    pub(super) room_bytes: u64,
    /// Whether images may be completed at all.
    pub(super) may_fill: bool,
}

/// What was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) mode: Mode,
    pub(super) why: Why,
}

/// Why it was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// Nothing is to be fetched.
    AllHere,
    /// A start is known to read this much of this much.
    Recorded(u64, u64),
    /// It has needed this much of this much.
    Needed(u64, u64),
    /// So many bytes are of archives that decode only from their beginning: these, and no others, are completed at once.
    Streamed(u64),
    /// It would be completed, but there is room for this much less than is missing.
    NoRoom(u64),
    /// Nothing speaks for anything else.
    Unknown,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |part: &u64, whole: &u64| u128::from(*part) * 100 / u128::from((*whole).max(1));
        match self {
            Self::AllHere => f.write_str("all of it is on this node"),
            Self::Recorded(part, whole) => {
                write!(f, "its recording says that a start reads {} % of it", percent(part, whole))
            }
            Self::Needed(part, whole) => {
                write!(f, "it has read {} % of itself so far, and waits", percent(part, whole))
            }
            Self::Streamed(bytes) => write!(
                f,
                "{} MiB of it decode only from their beginning: they are not lazy, but prefetched in parallel",
                bytes.div_ceil(1 << 20)
            ),
            Self::NoRoom(bytes) => write!(
                f,
                "it is read widely, but completing it would evict {} MiB of other images; a larger cache.cap would not",
                bytes.div_ceil(1 << 20)
            ),
            Self::Unknown => f.write_str("there is no recording of it, and it has not read much"),
        }
    }
}

/// How the image is read from now on.
pub(super) fn choose(facts: &Facts) -> Choice {
    let choice = |mode, why| Choice { mode, why };
    let Facts { image_bytes, absent_bytes, needed_bytes, .. } = *facts;
    if absent_bytes == 0 {
        return choice(Mode::Lazy, Why::AllHere);
    }
    let otherwise = match facts.recorded_bytes {
        Some(bytes) => choice(Mode::Prefetch, Why::Recorded(bytes, image_bytes)),
        None => choice(Mode::Lazy, Why::Unknown),
    };
    if facts.may_fill && (1..=facts.room_bytes).contains(&facts.streamed_bytes) {
        return choice(Mode::Full, Why::Streamed(facts.streamed_bytes));
    }
    let pull = facts.link.pull(absent_bytes);
    let wide = match facts.recorded_bytes {
        Some(bytes) if bytes.saturating_mul(WIDELY) >= image_bytes => Some(Why::Recorded(bytes, image_bytes)),
        _ if needed_bytes.saturating_mul(WIDELY) >= image_bytes
            || (needed_bytes.saturating_mul(BEGINNING) >= image_bytes && facts.waited * COSTLY >= pull) =>
        {
            Some(Why::Needed(needed_bytes, image_bytes))
        }
        _ => None,
    };
    match wide.filter(|_| absent_bytes >= WORTH_BYTES) {
        Some(why) if facts.may_fill && absent_bytes <= facts.room_bytes => choice(Mode::Full, why),
        Some(_) if facts.may_fill => Choice { why: Why::NoRoom(absent_bytes - facts.room_bytes), ..otherwise },
        _ => otherwise,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn facts() -> Facts {
        Facts {
            image_bytes: 200 * MIB,
            absent_bytes: 200 * MIB,
            recorded_bytes: None,
            streamed_bytes: 0,
            needed_bytes: 0,
            waited: Duration::ZERO,
            link: Link { latency: Duration::from_millis(20), bytes_per_second: 100 * MIB },
            room_bytes: 1 << 40,
            may_fill: true,
        }
    }

    /// A case, what is known, and what follows.
    fn cases() -> Vec<(&'static str, Facts, Mode, Why)> {
        let ms = Duration::from_millis;
        let recorded = |mib: u64| Facts { recorded_bytes: Some(mib * MIB), ..facts() };
        let slow = Link { latency: ms(20), bytes_per_second: MIB };
        vec![
            ("nothing is known", facts(), Mode::Lazy, Why::Unknown),
            ("all is here", Facts { absent_bytes: 0, ..facts() }, Mode::Lazy, Why::AllHere),
            ("a recording of a twentieth", recorded(10), Mode::Prefetch, Why::Recorded(10 * MIB, 200 * MIB)),
            ("a recording of nearly all", recorded(180), Mode::Full, Why::Recorded(180 * MIB, 200 * MIB)),
            (
                "the same, where nothing may be completed",
                Facts { recorded_bytes: Some(180 * MIB), may_fill: false, ..facts() },
                Mode::Prefetch,
                Why::Recorded(180 * MIB, 200 * MIB),
            ),
            (
                "the same, in a full cache",
                Facts { recorded_bytes: Some(180 * MIB), room_bytes: 150 * MIB, ..facts() },
                Mode::Prefetch,
                Why::NoRoom(50 * MIB),
            ),
            ("a start of 6 %", Facts { needed_bytes: 12 * MIB, waited: ms(2000), ..facts() }, Mode::Lazy, Why::Unknown),
            (
                "an eighth, with waits of a tenth of a pull",
                Facts { needed_bytes: 25 * MIB, waited: ms(202), ..facts() },
                Mode::Full,
                Why::Needed(25 * MIB, 200 * MIB),
            ),
            (
                "an eighth, at the pace of the link",
                Facts { needed_bytes: 25 * MIB, waited: ms(202), link: slow, ..facts() },
                Mode::Lazy,
                Why::Unknown,
            ),
            (
                "half, at the pace of the link",
                Facts { needed_bytes: 100 * MIB, waited: ms(202), link: slow, ..facts() },
                Mode::Full,
                Why::Needed(100 * MIB, 200 * MIB),
            ),
            (
                "a recording that the program has outgrown",
                Facts { recorded_bytes: Some(10 * MIB), needed_bytes: 100 * MIB, ..facts() },
                Mode::Full,
                Why::Needed(100 * MIB, 200 * MIB),
            ),
            (
                "a small image",
                Facts { image_bytes: 31 * MIB, absent_bytes: 31 * MIB, needed_bytes: 20 * MIB, ..facts() },
                Mode::Lazy,
                Why::Unknown,
            ),
        ]
    }

    #[test]
    fn the_choice_follows_from_what_is_known() {
        for (case, facts, mode, why) in cases() {
            assert_eq!(choose(&facts), Choice { mode, why }, "{case}");
        }
    }

    #[test]
    fn what_decodes_only_from_its_beginning_is_completed_at_once_where_that_may_be() {
        let streamed = Facts { streamed_bytes: 20 * MIB, recorded_bytes: Some(MIB), ..facts() };
        for (facts, mode, why) in [
            (streamed, Mode::Full, Why::Streamed(20 * MIB)),
            (Facts { may_fill: false, ..streamed }, Mode::Prefetch, Why::Recorded(MIB, 200 * MIB)),
            (Facts { room_bytes: 19 * MIB, ..streamed }, Mode::Prefetch, Why::Recorded(MIB, 200 * MIB)),
            (Facts { absent_bytes: 0, streamed_bytes: 0, ..streamed }, Mode::Lazy, Why::AllHere),
        ] {
            assert_eq!(choose(&facts), Choice { mode, why }, "{facts:?}");
        }
    }
}
