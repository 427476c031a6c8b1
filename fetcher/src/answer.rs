//! Reading a registry's answer: is it the range asked for, and if not, what does that mean? Pure and total.

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, RETRY_AFTER},
};
use penstock_blob::ByteRange;

use crate::failure::{Class, Failure};

/// Longest wait that a server can ask for. Beyond it every reader's deadline has long passed, and a wrong clock should not
/// keep an endpoint shut for a day.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Checks the head of a `206`: exactly the bytes of `range`, of a blob of `size_bytes`, as they are.
pub(crate) fn check_range(headers: &HeaderMap, range: ByteRange, size_bytes: u64) -> Result<(), Failure> {
    let text = text(headers, CONTENT_RANGE).ok_or_else(|| {
        Failure::wrong("206 without a Content-Range, or with several ranges; this server cannot be read lazily")
    })?;
    let (first, last, total) =
        content_range(text).ok_or_else(|| Failure::wrong(&format!("a Content-Range that cannot be read: {text:?}")))?;
    if first != range.start() || last.checked_add(1) != Some(range.end()) {
        return Err(Failure::wrong(&format!("Content-Range {text:?} for bytes {range}")));
    }
    if total.is_some_and(|total| total != size_bytes) {
        return Err(Failure::wrong(&format!("Content-Range {text:?}, but the manifest says {size_bytes} bytes")));
    }
    if let Some(length) = self::text(headers, CONTENT_LENGTH)
        && length.parse() != Ok(range.len())
    {
        return Err(Failure::wrong(&format!("Content-Length {length:?} for {} bytes", range.len())));
    }
    match self::text(headers, CONTENT_ENCODING) {
        None | Some("identity") => Ok(()),
        Some(other) => Err(Failure::wrong(&format!("bytes encoded as {other:?}, which was not asked for"))),
    }
}

/// How many bytes a blob has, by the head of a `206` for its first one.
pub(crate) fn blob_size(headers: &HeaderMap) -> Result<u64, Failure> {
    let unsaid = || Failure::new(Class::Refused, "does not say how large the blob is (Content-Range)");
    let (first, last, total) = text(headers, CONTENT_RANGE).and_then(content_range).ok_or_else(unsaid)?;
    if (first, last) != (0, 0) {
        return Err(Failure::wrong("sent another range than the first byte"));
    }
    total.ok_or_else(unsaid)
}

/// What a status that is no success means. Redirects and the first 401 have been dealt with before.
pub(crate) fn judge(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Failure {
    let (class, hint) = match status.as_u16() {
        200 => (Class::Wrong, ": the whole blob for a request for a range; this server cannot be read lazily"),
        401 | 403 => (Class::Denied, ""),
        404 | 410 => (Class::Missing, ""),
        408 | 425 => (Class::Server, ""),
        429 => (Class::Throttled, ""),
        416 => (Class::Wrong, ": the blob there is shorter than its manifest says"),
        501 | 505 => (Class::Refused, ""),
        500..=599 => (Class::Server, ""),
        _ => (Class::Refused, ""),
    };
    let mut failure = Failure::new(class, &format!("answered {status}{hint}"));
    if matches!(class, Class::Server | Class::Throttled) {
        failure.retry_after = text(headers, RETRY_AFTER).and_then(|text| retry_after(text, clock(headers, now)));
    }
    failure
}

/// The server's clock when it says so, else ours: what it writes about time is right by its own clock.
pub(crate) fn clock(headers: &HeaderMap, now: SystemTime) -> SystemTime {
    text(headers, DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now)
}

/// A header's value, when it is there exactly once and is text.
pub(crate) fn text(headers: &HeaderMap, name: http::HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    if values.next().is_some() { None } else { first.to_str().ok().map(str::trim) }
}

/// `bytes FIRST-LAST/TOTAL`, or `*` for the total (RFC 9110 section 14.4).
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse::<u64>().ok())?;
    let (unit, rest) = text.split_once(' ')?;
    let (range, total) = rest.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(number(total)?) };
    unit.eq_ignore_ascii_case("bytes").then_some((number(first)?, number(last)?, total))
}

/// Seconds, or a date (RFC 9110 section 10.2.3); at most [`MAX_RETRY_AFTER`].
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let wait = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(http::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).unwrap()
    }

    #[test]
    fn the_range_asked_for_passes() {
        for pairs in [
            &[(CONTENT_RANGE, "bytes 10-19/100")][..],
            &[(CONTENT_RANGE, "bytes 10-19/*")],
            &[(CONTENT_RANGE, "Bytes 10-19/100"), (CONTENT_LENGTH, "10"), (CONTENT_ENCODING, "identity")],
        ] {
            assert_eq!(check_range(&headers(pairs), range(10, 20), 100), Ok(()), "{pairs:?}");
        }
    }

    #[test]
    fn every_other_head_is_refused() {
        let good = (CONTENT_RANGE, "bytes 10-19/100");
        for pairs in [
            &[][..],
            &[(CONTENT_RANGE, "bytes 10-18/100")],
            &[(CONTENT_RANGE, "bytes 9-19/100")],
            &[(CONTENT_RANGE, "bytes 10-19/99")],
            &[(CONTENT_RANGE, "bytes 10-18446744073709551615/100")],
            &[(CONTENT_RANGE, "bytes */100")],
            &[(CONTENT_RANGE, "bytes 10-+19/100")],
            &[(CONTENT_RANGE, "lines 10-19/100")],
            &[(CONTENT_RANGE, "bytes 10-19")],
            &[good.clone(), good.clone()],
            &[good.clone(), (CONTENT_LENGTH, "9")],
            &[good.clone(), (CONTENT_LENGTH, "x")],
            &[good.clone(), (CONTENT_ENCODING, "gzip")],
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in pairs {
                map.append(name.clone(), value.parse().unwrap());
            }
            let failure = check_range(&map, range(10, 20), 100).unwrap_err();
            assert_eq!(failure.class, Class::Wrong, "{pairs:?}");
        }
    }

    #[test]
    fn statuses_mean_what_the_fault_table_says() {
        for (status, class) in [
            (200, Class::Wrong),
            (204, Class::Refused),
            (304, Class::Refused),
            (400, Class::Refused),
            (401, Class::Denied),
            (403, Class::Denied),
            (404, Class::Missing),
            (408, Class::Server),
            (410, Class::Missing),
            (416, Class::Wrong),
            (429, Class::Throttled),
            (500, Class::Server),
            (501, Class::Refused),
            (503, Class::Server),
            (599, Class::Server),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(judge(status, &HeaderMap::new(), SystemTime::now()).class, class, "{status}");
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_bounded() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (text, wait) in [
            ("0", Some(0)),
            ("7", Some(7)),
            ("99999999999999999999999", Some(300)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("Sat, 06 Nov 2094 08:49:37 GMT", Some(300)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(text, now), wait.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn a_date_is_read_by_the_clock_of_the_server_that_wrote_it() {
        let map = headers(&[(DATE, "Sun, 06 Nov 1994 08:49:37 GMT"), (RETRY_AFTER, "Sun, 06 Nov 1994 08:49:40 GMT")]);
        let failure = judge(StatusCode::TOO_MANY_REQUESTS, &map, SystemTime::now());
        assert_eq!(failure.retry_after, Some(Duration::from_secs(3)));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,60}|bytes [0-9*/-]{0,50}|[0-9A-Za-z ,:]{0,40}") {
            let _ = (content_range(&text), retry_after(&text, SystemTime::now()));
        }
    }
}
