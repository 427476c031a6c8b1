//! Times as tables of contents write them (RFC 3339).

use crate::entry::Time;

/// `2020-09-13T12:26:40.5+02:00`, in years 1 to 9999; `None` for anything else.
pub(crate) fn rfc3339(text: &str) -> Option<Time> {
    let bytes = text.as_bytes();
    let number = |at: usize, len: usize| -> Option<i64> {
        let digits = bytes.get(at..at + len)?;
        digits.iter().try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
    };
    let is = |at: usize, wanted: u8| bytes.get(at) == Some(&wanted);
    if !(is(4, b'-') && is(7, b'-') && is(10, b'T') && is(13, b':') && is(16, b':')) {
        return None;
    }
    let [year, month, day] = [number(0, 4)?, number(5, 2)?, number(8, 2)?];
    let [hour, minute, second] = [number(11, 2)?, number(14, 2)?, number(17, 2)?];
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    let rest = bytes.get(19..)?;
    let (nanoseconds, zone) = fraction(rest)?;
    let offset = match zone {
        [b'Z'] => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let at = bytes.len() - zone.len();
            let seconds = number(at + 1, 2)? * 3600 + number(at + 4, 2)? * 60;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    in_range.then(|| Time::new(seconds, nanoseconds).ok())?
}

/// The fraction of a second that `rest` may begin with, of which nine digits count, and what follows it.
fn fraction(rest: &[u8]) -> Option<(u32, &[u8])> {
    let Some(after) = rest.strip_prefix(b".") else { return Some((0, rest)) };
    let len = after.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let digits = after[..len].iter().copied().chain(std::iter::repeat(b'0')).take(9);
    (len > 0).then(|| (digits.fold(0, |value, byte| value * 10 + u32::from(byte - b'0')), &after[len..]))
}

/// Days from 1970 to a date of the Gregorian calendar: years begin in March here, so that leap days come last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let months = (month + 9) % 12;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (months * 153 + 2) / 5 + day
        - 719_469
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_nanosecond_in_every_zone() {
        let read = |text| rfc3339(text).map(|time| (time.seconds(), time.nanoseconds()));
        assert_eq!(read("1970-01-01T00:00:00Z"), Some((0, 0)));
        assert_eq!(read("2017-07-14T02:40:00Z"), Some((1_500_000_000, 0)));
        assert_eq!(read("2020-09-13T12:26:40.5Z"), Some((1_600_000_000, 500_000_000)));
        assert_eq!(read("2020-09-13T14:26:40.123456789999+02:00"), Some((1_600_000_000, 123_456_789)));
        assert_eq!(read("2020-09-13T08:56:40-03:30"), Some((1_600_000_000, 0)));
        assert_eq!(read("2000-02-29T23:59:59Z"), Some((951_868_799, 0)));
        assert_eq!(read("1969-12-31T23:59:59.25Z"), Some((-1, 250_000_000)));
        assert_eq!(read("0001-01-01T00:00:00Z"), Some((-62_135_596_800, 0)), "what Go writes for none");
        assert_eq!(read("9999-12-31T23:59:59Z"), Some((253_402_300_799, 0)));
        for bad in [
            "",
            "2020-09-13",
            "2020-09-13T12:26:40",
            "2020-09-13 12:26:40Z",
            "2020-13-13T12:26:40Z",
            "2020-09-13T24:26:40Z",
            "2020-09-13T12:26:40.Z",
            "2020-09-13T12:26:40+2:00",
            "2020-09-13T12:26:40Zx",
            "+020-09-13T12:26:40Z",
            "2020-09-13T12:26:40\u{e9}Z",
        ] {
            assert_eq!(rfc3339(bad), None, "{bad}");
        }
    }
}
