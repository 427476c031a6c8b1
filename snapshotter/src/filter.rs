//! containerd's filter language, as far as snapshots have fields: which of them `List` answers.
//!
//! A filter is selectors with commas between, all of which must hold: `kind==committed,labels."a.b/c"!=x`. A selector is a field path, alone
//! (it is present) or with `==`, `!=` or `~=` (a regular expression somewhere in the value) and a value. Names and values may be quoted
//! with `"` or `'`; an expression also with `/` or `|`.

use regex::Regex;

use crate::record::Record;

#[cfg(test)]
mod tests;

/// Most bytes of one filter.
const MAX_FILTER_BYTES: usize = 16 << 10;
/// Most filters of one request.
const MAX_FILTERS: usize = 256;
/// Most bytes that a compiled expression may take.
const MAX_PROGRAM_BYTES: usize = 1 << 20;

/// What is wrong with a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter {filter:?}: {reason}")]
pub struct FilterError {
    filter: String,
    reason: String,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    Differs(String),
    Matches(Regex),
}

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

/// Filters of one request: a record passes when any of them holds, and always when there is none.
#[derive(Debug)]
pub struct Filters(Vec<Vec<Selector>>);

impl Filters {
    /// Reads the filters of one request.
    ///
    /// # Errors
    ///
    /// The first that is not of the language, or beyond a bound.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self, FilterError> {
        let error = |filter: &str, reason: String| FilterError { filter: filter.chars().take(200).collect(), reason };
        if filters.len() > MAX_FILTERS {
            return Err(error("", format!("at most {MAX_FILTERS} at once")));
        }
        let parsed = filters.iter().map(AsRef::as_ref).map(|filter| {
            if filter.len() > MAX_FILTER_BYTES {
                return Err(error(filter, format!("at most {MAX_FILTER_BYTES} bytes")));
            }
            Parser { rest: filter }.selectors().map_err(|reason| error(filter, reason))
        });
        parsed.collect::<Result<_, _>>().map(Self)
    }

    /// Whether `record` passes.
    pub(crate) fn pass(&self, record: &Record) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|selector| selector.holds(record)))
    }
}

impl Selector {
    fn holds(&self, record: &Record) -> bool {
        let value = field(record, &self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::Differs(other) => value.unwrap_or_default() != other,
            Test::Matches(expression) => value.is_some_and(|value| expression.is_match(value)),
        }
    }
}

/// The value of a field, where a snapshot has it. An unknown one is absent, as to containerd.
fn field<'a>(record: &'a Record, path: &[String]) -> Option<&'a str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "name" => Some(&record.name),
        "kind" => Some(record.kind.as_str()),
        "parent" => Some(record.parent.as_deref().unwrap_or_default()),
        "labels" => record.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn selectors(mut self) -> Result<Vec<Selector>, String> {
        if self.rest.is_empty() {
            return Ok(Vec::new());
        }
        let mut selectors = vec![self.selector()?];
        loop {
            self.space();
            if self.rest.is_empty() {
                return Ok(selectors);
            }
            if !self.take(",") {
                return Err(format!("expected a comma before {:?}", self.rest));
            }
            selectors.push(self.selector()?);
        }
    }

    fn selector(&mut self) -> Result<Selector, String> {
        let mut path = vec![self.name()?];
        while self.take(".") {
            path.push(self.name()?);
        }
        self.space();
        let test = if self.rest.is_empty() || self.rest.starts_with(',') {
            Test::Present
        } else if self.take("==") {
            Test::Equal(self.value(&['"', '\''])?)
        } else if self.take("!=") {
            Test::Differs(self.value(&['"', '\''])?)
        } else if self.take("~=") {
            let expression = self.value(&['"', '\'', '/', '|'])?;
            let built = regex::RegexBuilder::new(&expression).size_limit(MAX_PROGRAM_BYTES).build();
            Test::Matches(built.map_err(|e| format!("{expression:?} is not a regular expression: {e}"))?)
        } else {
            return Err(format!("expected ==, != or ~= before {:?}", self.rest));
        };
        Ok(Selector { path, test })
    }

    /// One name of a field path.
    fn name(&mut self) -> Result<String, String> {
        self.space();
        if self.rest.starts_with(['"', '\'']) {
            return self.quoted();
        }
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return Err(format!("expected a field before {:?}", self.rest));
        }
        self.rest = rest;
        Ok(name.to_owned())
    }

    fn value(&mut self, quotes: &[char]) -> Result<String, String> {
        self.space();
        if self.rest.starts_with(quotes) {
            return self.quoted();
        }
        let end = self.rest.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(self.rest.len());
        let (value, rest) = self.rest.split_at(end);
        if value.is_empty() || value.contains(['"', '\'']) {
            return Err(format!("expected a value before {:?}", self.rest));
        }
        self.rest = rest;
        Ok(value.to_owned())
    }

    /// A text between two of the same quotes, which stands at the beginning.
    fn quoted(&mut self) -> Result<String, String> {
        let mut chars = self.rest.chars();
        let quote = chars.next().unwrap_or_default();
        let mut text = String::new();
        while let Some(c) = chars.next() {
            match c {
                c if c == quote => {
                    self.rest = chars.as_str();
                    return Ok(text);
                }
                // In an expression only its own quote is escaped: the rest is the expression's business.
                '\\' if matches!(quote, '/' | '|') => match chars.next() {
                    Some(c) if c == quote => text.push(c),
                    Some(c) => text.extend(['\\', c]),
                    None => break,
                },
                '\\' => text.push(escaped(quote, &mut chars)?),
                '\n' => return Err("a quoted text may not hold a line break".into()),
                c => text.push(c),
            }
        }
        Err(format!("the quote {quote} is not closed"))
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Steps over `token` where it comes next, after spaces.
    fn take(&mut self, token: &str) -> bool {
        let stripped = self.rest.trim_start().strip_prefix(token);
        self.rest = stripped.unwrap_or(self.rest);
        stripped.is_some()
    }
}

/// What stands after a backslash, as in a Go string.
fn escaped(quote: char, chars: &mut std::str::Chars<'_>) -> Result<char, String> {
    let c = chars.next().ok_or("a backslash ends it")?;
    match c {
        'a' => Ok('\x07'),
        'b' => Ok('\x08'),
        'f' => Ok('\x0c'),
        'n' => Ok('\n'),
        'r' => Ok('\r'),
        't' => Ok('\t'),
        'v' => Ok('\x0b'),
        '\\' => Ok('\\'),
        'x' => numbered(chars, 2, 0x7f),
        'u' => numbered(chars, 4, u32::MAX),
        'U' => numbered(chars, 8, u32::MAX),
        c if c == quote => Ok(c),
        c => Err(format!("\\{c} is not an escape")),
    }
}

/// A character by its number in `count` hex digits, at most `most`: `\x` names bytes, of which only ASCII is a character.
fn numbered(chars: &mut std::str::Chars<'_>, count: usize, most: u32) -> Result<char, String> {
    let digits: String = chars.take(count).collect();
    let whole = digits.len() == count && digits.chars().all(|c| c.is_ascii_hexdigit());
    let number = u32::from_str_radix(&digits, 16).ok().filter(|number| whole && *number <= most);
    number.and_then(char::from_u32).ok_or_else(|| format!("{digits:?} is not the number of a character"))
}
