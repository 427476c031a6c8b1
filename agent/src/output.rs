//! What a command says: tables and JSON on stdout, errors and progress on stderr. Nothing else in this crate prints.
//!
//! Texts come from registries and images too, so that every cell and message is escaped: no byte of them reaches the terminal as a
//! control character.

mod progress;
pub(crate) mod screen;

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal as _, Write},
    time::Duration,
};

use clap::{Arg, ArgMatches, Command, FromArgMatches, ValueEnum, builder::EnumValueParser};
use serde::Serialize;

pub(crate) use progress::Progress;

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people: aligned columns, sizes with units.
    #[default]
    Table,
    /// For programs: what the API answered.
    Json,
}

/// `--output`, the same argument wherever it is flattened in.
const OUTPUT: &str = "output";

impl clap::Args for Output {
    fn augment_args(command: Command) -> Command {
        let arg =
            Arg::new(OUTPUT).long(OUTPUT).short('o').value_name("FORMAT").value_parser(EnumValueParser::<Self>::new());
        let arg = arg.env("PENSTOCK_OUTPUT").hide_env_values(true).default_value("table");
        command.arg(arg.help("How to print the answer"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Output {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(matches.get_one(OUTPUT).copied().unwrap_or_default())
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A command that takes longer than this says so, and then counts.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Space between columns.
const GAP: &str = "  ";

/// Prints `text` on stdout. A reader that went away, such as `head`, is no error.
///
/// # Errors
/// What writing to stdout says, a full disk for instance.
pub fn print(text: &str) -> io::Result<()> {
    ignore_closed(io::stdout().lock().write_all(text.as_bytes()))
}

/// Prints `text` and the end of the line on stdout at once. `false` when nobody reads there any more.
///
/// # Errors
/// As [`print()`].
pub fn line(text: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        done => done.map(|()| true),
    }
}

/// Prints an answer on stdout: as JSON, or as `table` makes of it.
///
/// # Errors
/// As [`print()`].
pub fn answer<T: Serialize>(output: Output, value: &T, table: impl FnOnce(&T) -> String) -> io::Result<()> {
    match output {
        Output::Table => print(&table(value)),
        Output::Json => print(&json(value)?),
    }
}

/// Prints a note for a person on stderr, in one line.
pub fn note(text: impl fmt::Display) {
    // Nobody is left to tell when stderr is gone.
    let _gone = writeln!(io::stderr().lock(), "{}", escape(&text.to_string()));
}

/// Prints an error on stderr, in one line.
pub fn error(text: impl fmt::Display) {
    note(format_args!("penstock: {text}"));
}

/// Prints what clap has to say: help on stdout, what is wrong with the command line on stderr.
pub fn usage(error: &clap::Error) {
    // Nobody is left to tell when that stream is gone.
    let _gone = error.print();
}

/// `value` as indented JSON with a newline at the end.
pub(crate) fn json<T: Serialize>(value: &T) -> io::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn ignore_closed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Waits for `work`. When it takes over a second and stderr is a terminal, a line there tells what is being waited for, and since when;
/// it is gone when the work is done.
pub async fn with_progress<T>(what: &str, work: impl Future<Output = T>) -> T {
    let stderr = io::stderr();
    if stderr.is_terminal() { progress(&stderr, what, work).await } else { work.await }
}

async fn progress<T>(mut terminal: impl Write, what: &str, work: impl Future<Output = T>) -> T {
    const CLEAR_LINE: &str = "\r\x1b[K";
    let mut work = std::pin::pin!(work);
    let started = tokio::time::Instant::now();
    let mut ticks = tokio::time::interval_at(started + PROGRESS_EVERY, PROGRESS_EVERY);
    let mut shown = false;
    loop {
        let text = tokio::select! {
            biased;
            result = &mut work => {
                if shown {
                    let _gone = write!(terminal, "{CLEAR_LINE}");
                }
                return result;
            }
            now = ticks.tick() => format!("{} ... {} s", escape(what), now.duration_since(started).as_secs()),
        };
        shown = true;
        let _gone = write!(terminal, "{CLEAR_LINE}{text}").and_then(|()| terminal.flush());
    }
}

/// Rows under a header, in aligned columns.
#[derive(Debug)]
pub struct Table {
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns. A title that begins with `>` makes a column of numbers, aligned to the right.
    #[must_use]
    pub fn new(titles: &[&str]) -> Self {
        let right = titles.iter().map(|title| title.starts_with('>')).collect();
        let header = titles.iter().map(|title| title.trim_start_matches('>').to_owned()).collect();
        Self { right, rows: vec![header] }
    }

    /// A table of facts: a name and a value in each row, without a header.
    #[must_use]
    pub fn facts() -> Self {
        Self { right: vec![false, false], rows: Vec::new() }
    }

    /// Adds a row, with a cell for each column. An empty cell is shown as `-`.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.right.len(), "a cell for each column");
        let shown = |cell: String| if cell.is_empty() { "-".to_owned() } else { escape(&cell) };
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    /// Adds a fact.
    pub fn fact(&mut self, name: &str, value: impl fmt::Display) {
        self.row([name.to_owned(), value.to_string()]);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, &right), &width) in row.iter().zip(&self.right).zip(&widths) {
                if right {
                    write!(line, "{cell:>width$}{GAP}")?;
                } else {
                    write!(line, "{cell:<width$}{GAP}")?;
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A size with its unit: whole bytes below 1 KiB, else one decimal, rounded to the nearest.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths of the unit; a size that would be shown as 1024.0 takes the next unit.
    let tenths = |power: usize| {
        let unit = 1_u128 << (10 * (power + 1));
        (u128::from(bytes) * 10 + unit / 2) / unit
    };
    let power = (0..UNITS.len() - 1).find(|&power| tenths(power) < 10_240).unwrap_or(UNITS.len() - 1);
    format!("{}.{} {}", tenths(power) / 10, tenths(power) % 10, UNITS[power])
}

/// `part` of `whole` bytes in percent. Never `100%` short of the whole, never `0%` of more than nothing.
#[must_use]
pub fn percent(part: u64, whole: u64) -> String {
    if part >= whole {
        return "100%".to_owned();
    }
    let rounded = u128::from(part) * 100 / u128::from(whole);
    if rounded == 0 && part > 0 { "<1%".to_owned() } else { format!("{rounded}%") }
}

/// `text` without control characters: each is shown as Rust writes it.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    escaped
}

/// Control characters, and those that reorder the text around them on a terminal.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_in_which_they_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_524, "1023.9 KiB"),
            (1_048_525, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_percentage_is_all_or_nothing_only_when_it_is() {
        for (part, whole, text) in [
            (0, 0, "100%"),
            (0, 7, "0%"),
            (1, 1000, "<1%"),
            (999, 1000, "99%"),
            (7, 7, "100%"),
            (u64::MAX - 1, u64::MAX, "99%"),
        ] {
            assert_eq!(percent(part, whole), text, "{part} of {whole}");
        }
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_space() {
        let mut table = Table::new(&["ID", ">SIZE", "MOUNT"]);
        table.row(["d1".to_owned(), size(1 << 30), String::new()]);
        table.row(["d10".to_owned(), size(5), "/mnt/größe".to_owned()]);
        assert_eq!(table.to_string(), "ID      SIZE  MOUNT\nd1   1.0 GiB  -\nd10      5 B  /mnt/größe\n");
    }

    #[test]
    fn no_control_character_reaches_the_terminal() {
        assert_eq!(escape("a\x1b[2Jb\nc\u{202e}d"), "a\\u{1b}[2Jb\\nc\\u{202e}d");
        let mut table = Table::facts();
        table.fact("x", "\x07");
        assert_eq!(table.to_string(), "x  \\u{7}\n");
    }

    #[test]
    fn a_reader_that_went_away_is_no_error_but_a_full_disk_is() {
        assert!(ignore_closed(Err(io::ErrorKind::BrokenPipe.into())).is_ok());
        assert!(ignore_closed(Err(io::ErrorKind::StorageFull.into())).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn progress_is_shown_after_a_second_and_cleared() {
        let mut terminal = Vec::new();
        progress(&mut terminal, "attaching a", tokio::time::sleep(Duration::from_millis(900))).await;
        assert_eq!(terminal, b"");
        progress(&mut terminal, "attaching a", tokio::time::sleep(Duration::from_millis(2500))).await;
        let shown = String::from_utf8(terminal).unwrap();
        assert_eq!(shown, "\r\x1b[Kattaching a ... 1 s\r\x1b[Kattaching a ... 2 s\r\x1b[K");
    }
}
