//! The failure matrix: what a reader sees while something is broken, and afterwards. One table, run through each transport, and the source
//! of `docs/failure-matrix.md`.
//!
//! The faults are those of the I/O contract (docs/architecture.md). Each row breaks one thing, reads a block that is in the cache and one that is
//! not, mends the thing, and reads again. A wrong byte anywhere fails the run, whatever the row says.

mod rows;
mod stand;

pub use rows::rows;
pub use stand::Stand;

/// What a read ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The registry's bytes, while the fault lasts.
    Right,
    /// The registry's bytes, once the fault is over; until then the read waits.
    Waits,
    /// The registry's bytes, after a moment in which nobody serves.
    Pauses,
    /// EIO, at the latest when the deadline has passed.
    Eio,
}

impl Seen {
    /// As the document says it.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Right => "the bytes",
            Self::Waits => "waits, then the bytes",
            Self::Pauses => "pauses, then the bytes",
            Self::Eio => "EIO",
        }
    }
}

/// One fault, and what is promised under it.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// A sentence for the document.
    pub fault: &'static str,
    /// What a read of cached bytes ends in.
    pub cached: Seen,
    /// What a read of bytes ends in that are not here yet.
    pub uncached: Seen,
    /// The kind of an event that must be there afterwards, if one must.
    pub event: Option<&'static str>,
    /// What happens afterwards, for the document.
    pub afterwards: &'static str,
    /// Breaks it.
    pub strike: fn(&mut Stand),
    /// Mends it.
    pub heal: fn(&mut Stand),
}

impl Row {
    /// Runs it.
    ///
    /// # Panics
    /// When a reader sees something else than the row says.
    pub fn run(&self, stand: &mut Stand) {
        let fault = self.fault;
        println!("   {} / {fault}", stand.transport());
        let (cached, uncached, later) = (stand.known(), stand.fresh(), stand.fresh());
        assert_eq!(stand.read(cached), Seen::Right, "{fault}: before");
        let since = stand.newest_event();
        (self.strike)(stand);
        let waiting = [(cached, self.cached), (uncached, self.uncached)].map(|(block, expected)| {
            if expected == Seen::Waits {
                return Some((block, stand.start_read(block)));
            }
            let expected = if expected == Seen::Pauses { Seen::Right } else { expected };
            assert_eq!(stand.read(block), expected, "{fault}: block {block} while it lasts");
            None
        });
        if waiting.iter().any(Option::is_some) {
            stand.until_waiting();
        }
        for (block, read) in waiting.iter().flatten() {
            assert!(!read.is_finished(), "{fault}: block {block} did not wait");
        }
        (self.heal)(stand);
        for (block, read) in waiting.into_iter().flatten() {
            assert_eq!(stand.join(block, read), Seen::Right, "{fault}: block {block}, which waited");
        }
        for block in [cached, uncached, later] {
            assert_eq!(stand.read(block), Seen::Right, "{fault}: block {block} afterwards");
        }
        // The next row begins with the policy that the document names.
        stand.run(&["set", stand.id(), "--on-failure", "eio"]);
        stand.check_met(fault);
        if let Some(kind) = self.event {
            stand.check_event(&since, kind, fault);
        }
    }
}

/// The table of the document.
#[must_use]
pub fn table() -> String {
    let mut text =
        String::from("| fault | cached bytes | bytes not here yet | event | afterwards |\n|---|---|---|---|---|\n");
    for row in rows() {
        let event = row.event.map_or_else(|| "-".to_owned(), |kind| format!("`{kind}`"));
        let (cached, uncached) = (row.cached.words(), row.uncached.words());
        text += &format!("| {} | {cached} | {uncached} | {event} | {} |\n", row.fault, row.afterwards);
    }
    text
}
