//! The config file: TOML flattened to dotted keys with the line that each stands on.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// One value of the file, still text: `[cache]` `cap = "10GiB"` is `cache.cap`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Dotted key.
    pub(super) key: String,
    /// The value as one would write it in the environment: lists joined by commas.
    pub(super) text: String,
    /// Line of the key, from 1.
    pub(super) line: usize,
}

/// Why the file has no settings: at `line`, for `reason`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) line: usize,
    pub(super) reason: String,
}

/// All settings of a config file, in the file's order.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>, Fault> {
    let root = DeTable::parse(text).map_err(|error| Fault {
        line: line_at(text, error.span().map_or(0, |span| span.start)),
        reason: error.message().trim().replace('\n', "; "),
    })?;
    let mut entries = Vec::new();
    flatten(text, "", root.get_ref(), &mut entries)?;
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

fn flatten(text: &str, prefix: &str, table: &DeTable<'_>, entries: &mut Vec<Entry>) -> Result<(), Fault> {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        let line = line_at(text, name.span().start);
        match value.get_ref() {
            DeValue::Table(inner) => flatten(text, &format!("{key}."), inner, entries)?,
            _ => {
                let value = value_text(value).map_err(|reason| Fault { line, reason: format!("{key}: {reason}") })?;
                entries.push(Entry { key, text: value, line });
            }
        }
    }
    Ok(())
}

fn value_text(value: &Spanned<DeValue<'_>>) -> Result<String, String> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(number.to_string()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        DeValue::Array(values) => {
            let words: Result<Vec<String>, String> = values
                .iter()
                .map(|v| v.get_ref().as_str().map(str::to_owned).ok_or_else(|| "a list holds strings only".to_owned()))
                .collect();
            Ok(words?.join(","))
        }
        _ => Err("write a string, a whole number, true or false, or a list of strings".to_owned()),
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_carry_their_dotted_key_and_line() {
        let text = "# comment\nstate_dir = \"/x\"\n\n[cache]\ncap = \"10GiB\"\n\n[fetch]\nrequests_in_flight = 8\nplain_http = [\"a:1\", \"b:2\"]\n";
        let entries: Vec<_> = parse(text).unwrap().into_iter().map(|e| (e.key, e.text, e.line)).collect();
        let expected = [
            ("state_dir", "/x", 2),
            ("cache.cap", "10GiB", 5),
            ("fetch.requests_in_flight", "8", 8),
            ("fetch.plain_http", "a:1,b:2", 9),
        ];
        assert_eq!(entries, expected.map(|(k, v, l)| (k.to_owned(), v.to_owned(), l)));
    }

    #[test]
    fn faults_name_the_line_in_one_sentence() {
        for (text, line) in [
            ("a = 1\nb = \n", 2),
            ("a = 1\na = 2\n", 2),
            ("\n\n[cache\n", 3),
            ("x = 1.5", 1),
            ("\nx = [1]", 2),
            ("x = [[\"a\"]]", 1),
            ("x = 1979-05-27", 1),
            ("\n[[x]]\na = 1", 2),
        ] {
            let fault = parse(text).unwrap_err();
            assert_eq!(fault.line, line, "{text:?}: {}", fault.reason);
            assert!(!fault.reason.contains('\n'), "{:?}", fault.reason);
        }
    }
}
