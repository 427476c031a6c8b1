//! The fields of one host, as they are read.

use std::{path::PathBuf, time::Duration};

use http::{HeaderName, HeaderValue};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Base, Capabilities, HostEntry};

/// Most files or headers of one host.
const MAX_LIST: usize = 64;
/// Most ignored keys that are named.
const MAX_IGNORED: usize = 16;
/// Longest time that a connection may be told to take.
const MAX_DIAL: Duration = Duration::from_secs(3600);

/// What was said about one host, or at the root about the server.
#[derive(Debug, Default)]
pub(super) struct Fields {
    server: Option<String>,
    /// Where `server` stands, as an offset in the file.
    pub(super) server_at: usize,
    capabilities: Option<Capabilities>,
    ca: Vec<PathBuf>,
    client: Vec<(PathBuf, Option<PathBuf>)>,
    skip_verify: Option<bool>,
    headers: Vec<(HeaderName, HeaderValue)>,
    override_path: bool,
    dial_timeout: Option<Duration>,
}

impl Fields {
    /// Of a host at `url`.
    pub(super) fn of(url: String) -> Self {
        Self { server: Some(url), ..Self::default() }
    }

    /// Takes one key over.
    pub(super) fn take(
        &mut self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        is_root: bool,
        ignored: &mut Vec<String>,
    ) -> Result<(), String> {
        let refused = |what: &str| format!("{key} must be {what}");
        let at = value.span().start;
        let value = value.get_ref();
        match key {
            "server" if is_root => {
                let text = value.as_str().ok_or_else(|| refused("a URL in quotes"))?;
                self.server = Some(text.to_owned()).filter(|text| !text.is_empty());
                self.server_at = at;
            }
            "capabilities" => self.capabilities = capabilities(value)?,
            "ca" => self.ca = paths(value).ok_or_else(|| refused("a file name or a list of them"))?,
            "client" => {
                self.client = clients(value)
                    .ok_or_else(|| refused("a file name, a list of them, or a list of [certificate, key]"))?;
            }
            "skip_verify" => self.skip_verify = Some(value.as_bool().ok_or_else(|| refused("true or false"))?),
            "override_path" => self.override_path = value.as_bool().ok_or_else(|| refused("true or false"))?,
            "header" => self.headers = headers(value.as_table().ok_or_else(|| refused("a table"))?)?,
            "dial_timeout" => {
                let text = value.as_str().and_then(go_duration);
                self.dial_timeout = Some(text.ok_or_else(|| refused("a duration such as \"30s\", at most an hour"))?);
            }
            _ if ignored.len() < MAX_IGNORED => ignored.push(key.chars().take(64).collect()),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn entry(self) -> Result<HostEntry, String> {
        let base = self.server.map(|url| Base::parse(&url, self.override_path)).transpose()?;
        Ok(HostEntry {
            base,
            capabilities: self.capabilities.unwrap_or(Capabilities::ALL),
            ca: self.ca,
            client: self.client,
            skip_verify: self.skip_verify,
            headers: self.headers,
            dial_timeout: self.dial_timeout.filter(|timeout| !timeout.is_zero()),
        })
    }
}

/// `None`, all of them, for an empty list. `referrers` is what later releases of containerd know.
fn capabilities(value: &DeValue<'_>) -> Result<Option<Capabilities>, String> {
    let names = strings(value).ok_or("capabilities must be a list of \"pull\", \"resolve\" and \"push\"")?;
    let mut found = Capabilities { pull: false, resolve: false, push: false };
    for name in &names {
        match *name {
            "pull" => found.pull = true,
            "resolve" => found.resolve = true,
            "push" => found.push = true,
            "referrers" => {}
            other => {
                return Err(format!("{other:?} is not a capability; there are \"pull\", \"resolve\" and \"push\""));
            }
        }
    }
    Ok((!names.is_empty()).then_some(found))
}

/// The strings of a list; `None` when it is none, holds something else, or is too long.
fn strings<'a>(value: &'a DeValue<'_>) -> Option<Vec<&'a str>> {
    let list = value.as_array().filter(|list| list.len() <= MAX_LIST)?;
    list.iter().map(|item| item.get_ref().as_str()).collect()
}

fn paths(value: &DeValue<'_>) -> Option<Vec<PathBuf>> {
    let all = value.as_str().map_or_else(|| strings(value), |one| Some(vec![one]))?;
    Some(all.into_iter().map(PathBuf::from).collect())
}

fn clients(value: &DeValue<'_>) -> Option<Vec<(PathBuf, Option<PathBuf>)>> {
    if let Some(one) = value.as_str() {
        return Some(vec![(one.into(), None)]);
    }
    let list = value.as_array().filter(|list| list.len() <= MAX_LIST)?;
    list.iter()
        .map(|item| match (item.get_ref().as_str(), strings(item.get_ref()).as_deref()) {
            (Some(one), _) => Some((one.into(), None)),
            (None, Some([certificate, ""])) => Some(((*certificate).into(), None)),
            (None, Some([certificate, key])) => Some(((*certificate).into(), Some((*key).into()))),
            (None, _) => None,
        })
        .collect()
}

fn headers(table: &DeTable<'_>) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let mut headers = Vec::new();
    for (name, value) in table {
        let name = name.get_ref();
        let parsed: HeaderName = name.parse().map_err(|_| format!("{name:?} is not the name of a header"))?;
        let one = value.get_ref().as_str();
        let values = one.map_or_else(|| strings(value.get_ref()), |one| Some(vec![one]));
        // A header's value is often a credential: it is not repeated.
        for value in values.ok_or_else(|| format!("header {name} must be a string or a list of strings"))? {
            let mut value: HeaderValue =
                value.parse().map_err(|_| format!("the value of header {name} holds characters that no header can"))?;
            value.set_sensitive(true);
            headers.push((parsed.clone(), value));
        }
    }
    if headers.len() > MAX_LIST {
        return Err(format!("{} headers are too many; at most {MAX_LIST} are sent", headers.len()));
    }
    Ok(headers)
}

/// A duration as Go's `time.ParseDuration` reads it: numbers with units, such as `1m30s` or `1.5h`.
pub(super) fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        rest = rest.get(digits..)?;
        let units = [
            ("ns", 1e-9),
            ("us", 1e-6),
            ("µs", 1e-6),
            ("μs", 1e-6),
            ("ms", 1e-3),
            ("s", 1.0),
            ("m", 60.0),
            ("h", 3600.0),
        ];
        let (unit, worth) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = rest.get(unit.len()..)?;
        seconds += number * worth;
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| *duration <= MAX_DIAL)
}
