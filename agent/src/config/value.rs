//! How values of the config are written: sizes, durations, paths, lists. Pure: text in, value or reason out.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use penstock_api::OnFailure;

use penstock_cache::Watermarks;

/// Longest path a unix socket can be bound to: `sun_path` of unix(7) less its NUL.
const SOCKET_PATH_BYTES: usize = 107;

/// Units of a size, largest first, so that writing picks the largest that divides.
const UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
];

/// A size in bytes: a whole number, alone or with a unit, such as `10GiB`.
///
/// # Errors
/// A sentence that says how a size is written.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) =
        UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?.trim_end(), *unit))).unwrap_or((text, 1));
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(unit))
        .ok_or_else(|| format!("{text:?} is not a size; write bytes or a whole number and a unit, such as 10GiB"))
}

/// A size between two bounds, in bytes.
pub(super) fn size_in(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let bytes = size(text)?;
    if (least..=most).contains(&bytes) {
        return Ok(bytes);
    }
    Err(format!("{text} is not between {} and {}", show_size(least), show_size(most)))
}

/// Watermarks: where eviction begins, and where it ends, such as `95%,90%`.
pub(super) fn watermarks(text: &str) -> Result<Watermarks, String> {
    let percent = |text: &str| text.trim().trim_end_matches('%').parse().ok();
    text.split_once(',')
        .and_then(|(high, low)| Watermarks::new(percent(high)?, percent(low)?))
        .ok_or_else(|| format!("{text:?} are no watermarks; write where eviction begins and ends, such as 95%,90%"))
}

/// The shortest exact way to write a size.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    UNITS
        .iter()
        .filter(|(name, _)| name.contains('i'))
        .find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit))
        .map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// A duration: a whole number and `ms`, `s`, `m` or `h`.
///
/// # Errors
/// A sentence that says how a duration is written.
pub fn duration(text: &str) -> Result<Duration, String> {
    let units: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    units
        .iter()
        .find_map(|(name, unit)| text.strip_suffix(name)?.trim_end().parse::<u64>().ok()?.checked_mul(*unit))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is not a duration; write a whole number and ms, s, m or h, such as 30s"))
}

/// A duration between two bounds.
pub(super) fn duration_in(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let value = duration(text)?;
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(format!("{text} is not between {} and {}", show_duration(least), show_duration(most)))
}

/// The shortest exact way to write a duration of whole milliseconds.
#[must_use]
pub fn show_duration(value: Duration) -> String {
    let ms = value.as_millis();
    match ms {
        _ if ms.is_multiple_of(1_000) => format!("{}s", ms / 1_000),
        _ => format!("{ms}ms"),
    }
}

/// What a reader gets when bytes cannot be fetched: `eio` or `wait`.
pub(super) fn on_failure(text: &str) -> Result<OnFailure, String> {
    match text {
        "eio" => Ok(OnFailure::Eio),
        "wait" => Ok(OnFailure::Wait),
        _ => Err(format!("{text:?} is not what a reader gets; write eio or wait")),
    }
}

/// As it is read back.
pub(super) const fn show_on_failure(on_failure: OnFailure) -> &'static str {
    match on_failure {
        OnFailure::Eio => "eio",
        OnFailure::Wait => "wait",
    }
}

/// A whole number between two bounds.
pub(super) fn count_in(text: &str, least: u32, most: u32) -> Result<u32, String> {
    text.parse::<u32>()
        .ok()
        .filter(|n| (least..=most).contains(n))
        .ok_or_else(|| format!("{text:?} is not a whole number from {least} to {most}"))
}

/// `true` or `false`.
pub(super) fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

/// A path from the root: what a service reads must not depend on where it was started.
pub(super) fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(format!("{text:?} is not an absolute path; start it with /"))
}

/// Absolute paths separated by colons, as containerd writes them, or by commas.
pub(super) fn paths(text: &str) -> Result<Vec<PathBuf>, String> {
    text.split([':', ',']).map(str::trim).filter(|path| !path.is_empty()).map(absolute).collect()
}

/// An absolute path short enough for a unix socket.
pub(super) fn socket_path(text: &str) -> Result<PathBuf, String> {
    if text.len() > SOCKET_PATH_BYTES {
        return Err(format!("a unix socket's path has at most {SOCKET_PATH_BYTES} bytes, {text:?} has {}", text.len()));
    }
    absolute(text)
}

/// An address and port.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an address and port, such as 127.0.0.1:9180"))
}

/// The address of something that is asked over HTTP.
pub(super) fn web_address(text: &str) -> Result<String, String> {
    let has_scheme = ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme));
    has_scheme.then(|| text.to_owned()).ok_or_else(|| format!("{text:?} begins with neither http:// nor https://"))
}

/// Words separated by commas; spaces around them and empty ones do not count.
pub(super) fn words(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// A URL whose password, if it has one, is not shown.
pub(super) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "***".to_owned() };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}"),
        None => url.to_owned(),
    }
}

/// Whether a URL holds a password.
pub(super) fn has_password(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_exactly() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("64KiB", 65_536),
            ("10GiB", 10 << 30),
            ("10 GiB", 10 << 30),
            ("2TB", 2_000_000_000_000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
            assert_eq!(size(&show_size(bytes)), Ok(bytes), "{text}");
        }
        assert_eq!(show_size(10 << 30), "10GiB");
        for bad in ["", "GiB", "1.5GiB", "-1", "10G", "10 gib", "99999999999TiB", "0x10"] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations_are_read_and_written_exactly() {
        for (text, ms) in [("250ms", 250), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(duration(&show_duration(Duration::from_millis(ms))), duration(text), "{text}");
        }
        for bad in ["", "30", "s", "1.5s", "-1s", "1d", "99999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_address_has_a_port_and_a_choice_is_a_word() {
        assert!(address("127.0.0.1:9180").is_ok() && address("[::]:0").is_ok());
        assert!(address("localhost").unwrap_err().contains("127.0.0.1:9180"));
        for choice in [true, false] {
            assert_eq!(truth(&choice.to_string()), Ok(choice));
        }
        assert!(truth("yes").is_err());
    }

    #[test]
    fn a_password_in_a_url_is_seen() {
        assert!(has_password("http://me:p@ss@proxy.lan:3128") && has_password("me:secret@proxy.lan"));
        assert!(!has_password("http://proxy.lan:3128") && !has_password("http://me@proxy.lan:3128"));
    }

    #[test]
    fn a_shown_url_has_no_password() {
        assert_eq!(without_password("http://proxy.lan:3128"), "http://proxy.lan:3128");
        assert_eq!(without_password("http://me:p@ss@proxy.lan:3128"), "http://***@proxy.lan:3128");
        assert_eq!(without_password("me:secret@proxy.lan"), "***");
    }

    #[test]
    fn several_paths_are_separated_by_colons_or_commas() {
        for (text, expected) in
            [("/a:/b", &["/a", "/b"][..]), ("/a, /b", &["/a", "/b"]), ("/a", &["/a"]), ("", &[]), (":", &[])]
        {
            assert_eq!(paths(text), Ok(expected.iter().map(PathBuf::from).collect()), "{text:?}");
        }
        assert!(paths("/a:b").is_err());
    }

    #[test]
    fn socket_paths_fit_the_kernel() {
        assert!(socket_path(&format!("/{}", "a".repeat(106))).is_ok());
        assert!(socket_path(&format!("/{}", "a".repeat(107))).unwrap_err().contains("107"));
        assert!(socket_path("run.sock").is_err());
    }
}
