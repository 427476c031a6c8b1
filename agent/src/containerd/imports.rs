//! The `imports` of containerd's config file: one entry put in or taken out, and not a byte else. Pure.
//!
//! The text is cut where the parser says that things stand, and parsed again afterwards: whatever is not exactly the same config with
//! the entry more or less is refused.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// Why a file cannot be edited: at `line`, from 1, for `reason`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) line: usize,
    pub(super) reason: String,
}

const KEY: &str = "imports";

/// `text` with `path` as the last of its imports; as it is when it is one of them.
pub(super) fn with(text: &str, path: &str) -> Result<String, Fault> {
    let found = find(text)?;
    if found.entries.iter().any(|(entry, _)| entry == path) {
        return Ok(text.to_owned());
    }
    let quoted = toml::Value::String(path.to_owned()).to_string();
    let (at, added) = match (&found.array, found.entries.last()) {
        (Some(array), Some((_, last))) => (last.end, format!(",{}{quoted}", separator(text, array, &found.entries))),
        (Some(array), None) => (array.start + 1, quoted),
        (None, _) => new_line(text, found.version.as_ref(), &format!("{KEY} = [{quoted}]")),
    };
    let after = format!("{}{added}{}", &text[..at], &text[at..]);
    same_but_for(text, &after, path)?;
    Ok(after)
}

/// `text` without `path` among its imports; without `imports` at all when it was the only one.
pub(super) fn without(text: &str, path: &str) -> Result<String, Fault> {
    let found = find(text)?;
    let Some(nth) = found.entries.iter().position(|(entry, _)| entry == path) else { return Ok(text.to_owned()) };
    let span = found.entries[nth].1.clone();
    let cut = match (&found.array, nth) {
        (Some(array), 0) if found.entries.len() == 1 => whole_lines(text, found.key..array.end),
        // The first goes with what leads to the second, any other with what leads to it.
        (_, 0) => span.start..found.entries[1].1.start,
        _ => found.entries[nth - 1].1.end..span.end,
    };
    let after = format!("{}{}", &text[..cut.start], &text[cut.end..]);
    same_but_for(&after, text, path)?;
    Ok(after)
}

#[derive(Debug, Default)]
struct Found {
    /// Where the key stands.
    key: usize,
    array: Option<Range<usize>>,
    entries: Vec<(String, Range<usize>)>,
    /// The value of `version`.
    version: Option<Range<usize>>,
}

fn find(text: &str) -> Result<Found, Fault> {
    let at = |offset: usize| 1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count();
    let fault = |offset, reason: &str| Fault { line: at(offset), reason: reason.to_owned() };
    let root = DeTable::parse(text).map_err(|error| {
        fault(error.span().map_or(0, |span| span.start), &error.message().trim().replace('\n', "; "))
    })?;
    let mut found = Found::default();
    for (key, value) in root.get_ref() {
        if key.get_ref() == "version" {
            found.version = Some(value.span());
        }
        if key.get_ref() != KEY {
            continue;
        }
        let DeValue::Array(array) = value.get_ref() else {
            return Err(fault(key.span().start, "imports is not a list"));
        };
        (found.key, found.array) = (key.span().start, Some(value.span()));
        for entry in array.iter() {
            let name = entry.get_ref().as_str().ok_or_else(|| fault(entry.span().start, "imports holds paths only"))?;
            found.entries.push((name.to_owned(), entry.span()));
        }
    }
    Ok(found)
}

/// What stands between two entries of the list: a space, or the end of the line and the indent of the last entry.
fn separator(text: &str, array: &Range<usize>, entries: &[(String, Range<usize>)]) -> String {
    let last = entries.last().map_or(array.end, |(_, span)| span.start);
    let line = text[..last].rfind('\n').map_or(0, |newline| newline + 1);
    let indent = &text[line..last];
    if line > array.start && indent.trim().is_empty() { format!("{}{indent}", newline(text)) } else { " ".to_owned() }
}

fn newline(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

/// Where a line of the root table can stand, and the line: after that of `version`, else at the top.
fn new_line(text: &str, version: Option<&Range<usize>>, line: &str) -> (usize, String) {
    let newline = newline(text);
    let Some(version) = version else { return (0, format!("{line}{newline}")) };
    match text[version.end..].find('\n') {
        Some(end) => (version.end + end + 1, format!("{line}{newline}")),
        None => (text.len(), format!("{newline}{line}{newline}")),
    }
}

/// The lines of `range` with their end, when nothing else stands on them.
fn whole_lines(text: &str, range: Range<usize>) -> Range<usize> {
    let start = text[..range.start].rfind('\n').map_or(0, |newline| newline + 1);
    let rest = &text[range.end..];
    let end = rest.find('\n').map_or(text.len(), |newline| range.end + newline + 1);
    if text[start..range.start].trim().is_empty() && text[range.end..end].trim().is_empty() {
        start..end
    } else {
        range
    }
}

/// Refuses unless `more` is the config `less` with `path` as one more import.
fn same_but_for(less: &str, more: &str, path: &str) -> Result<(), Fault> {
    let parse = |text: &str| text.parse::<toml::Table>().ok();
    let imports = |table: &toml::Table| table.get(KEY).and_then(toml::Value::as_array).cloned().unwrap_or_default();
    let same = parse(less).zip(parse(more)).is_some_and(|(mut less, mut more)| {
        let (before, mut after) = (imports(&less), imports(&more));
        after.retain(|entry| entry.as_str() != Some(path));
        less.remove(KEY);
        more.remove(KEY);
        before == after && less == more
    });
    let reason = format!("the list of imports is written in a way that is not understood; change it by hand: {path}");
    if same { Ok(()) } else { Err(Fault { line: 1, reason }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "/etc/containerd/conf.d/penstock.toml";

    #[test]
    fn one_entry_is_put_in_and_taken_out_and_no_byte_else_changes() {
        let q = format!("{OURS:?}");
        for (before, after) in [
            ("", format!("imports = [{q}]\n")),
            ("version = 2\n\n# c\n[grpc]\n", format!("version = 2\nimports = [{q}]\n\n# c\n[grpc]\n")),
            ("version = 2 # old", format!("version = 2 # old\nimports = [{q}]\n")),
            ("# c\n[a]\n  b = 1\n", format!("imports = [{q}]\n# c\n[a]\n  b = 1\n")),
            ("imports = []\nversion = 2\n", format!("imports = [{q}]\nversion = 2\n")),
            ("imports=[ \"/x\" ] # c\n", format!("imports=[ \"/x\", {q} ] # c\n")),
            ("imports = ['/x',]\n", format!("imports = ['/x', {q},]\n")),
            (
                "imports = [\n\t\"/x\", # one\n\t\"/y\"\n]\n[a]\n",
                format!("imports = [\n\t\"/x\", # one\n\t\"/y\",\n\t{q}\n]\n[a]\n"),
            ),
            ("version = 2\r\n[a]\r\n", format!("version = 2\r\nimports = [{q}]\r\n[a]\r\n")),
            (
                "[a]\nversion = 1\nimports = [\"/z\"]\n",
                format!("imports = [{q}]\n[a]\nversion = 1\nimports = [\"/z\"]\n"),
            ),
        ] {
            assert_eq!(with(before, OURS).as_deref(), Ok(&*after), "{before:?}");
            assert_eq!(with(&after, OURS).as_deref(), Ok(&*after), "again");
            if !["imports = []\nversion = 2\n", "version = 2 # old"].contains(&before) {
                assert_eq!(without(&after, OURS).as_deref(), Ok(before), "{after:?}");
            }
        }
    }

    #[test]
    fn an_entry_among_others_is_taken_out_wherever_it_stands() {
        for (before, after) in [
            (format!("imports = [{OURS:?}, \"/x\"]"), "imports = [\"/x\"]"),
            (format!("imports = [\"/x\", {OURS:?}, \"/y\"]"), "imports = [\"/x\", \"/y\"]"),
            (format!("a = 1\nimports = [\n  {OURS:?},\n]\nb = 1\n"), "a = 1\nb = 1\n"),
            ("imports = [\"/x\"]".to_owned(), "imports = [\"/x\"]"),
        ] {
            assert_eq!(without(&before, OURS).as_deref(), Ok(after), "{before:?}");
        }
    }

    #[test]
    fn what_is_no_config_is_refused_with_its_line() {
        for (text, line) in [("a = 1\nb =\n", 2), ("\nimports = \"/x\"\n", 2), ("imports = [\n1]", 2)] {
            assert_eq!(with(text, OURS).unwrap_err().line, line, "{text:?}");
        }
    }
}
