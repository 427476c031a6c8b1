//! Points in time as registries and signed URLs write them, to seconds since 1970. Pure and total.

/// Reads RFC 3339 (`2024-05-01T10:20:30Z`, fractions and offsets allowed) and ISO 8601's basic form (`20240501T102030Z`, as
/// in `X-Amz-Date`), from year 1970 to 9999. `None` for anything else.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let (clock, offset_minutes) = split_zone(time)?;
    let clock = clock.split(['.', ',']).next()?;
    let (year, month, day) = numbers(date, '-', [4, 2, 2])?;
    let (hour, minute, second) = numbers(clock, ':', [2, 2, 2])?;
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let month_days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if year < 1970 || !(1..=12).contains(&month) || !(1..=month_days).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970-01-01 in the Gregorian calendar, years counted from March so that a leap day is a year's last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    (days * 86_400 + hour * 3600 + minute * 60 + second).checked_add_signed(-offset_minutes * 60)
}

/// Three numbers, with `separator` between them or with none.
fn numbers(text: &str, separator: char, widths: [usize; 3]) -> Option<(u64, u64, u64)> {
    let number = |part: &str, width: usize| {
        (part.len() == width && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?
    };
    let [a, b, c] = widths;
    if text.contains(separator) {
        let mut parts = text.split(separator);
        let found = (number(parts.next()?, a)?, number(parts.next()?, b)?, number(parts.next()?, c)?);
        return parts.next().is_none().then_some(found);
    }
    let part = |from: usize, to: usize| text.get(from..to);
    let whole = text.len() == a + b + c;
    whole.then(|| Some((number(part(0, a)?, a)?, number(part(a, a + b)?, b)?, number(part(a + b, a + b + c)?, c)?)))?
}

/// The clock, and the zone's minutes east of Greenwich.
fn split_zone(time: &str) -> Option<(&str, i64)> {
    if let Some(clock) = time.strip_suffix(['Z', 'z']) {
        return Some((clock, 0));
    }
    let at = time.rfind(['+', '-'])?;
    let (clock, zone) = time.split_at_checked(at)?;
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let number =
        |part: &str| (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse::<i64>().ok())?;
    Some((clock, sign * (number(hours)?.min(23) * 60 + number(minutes)?.min(59))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_forms_are_read() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("19700101T000000Z", 0),
            ("20240229T120000Z", 1_709_208_000),
            ("2024-02-29T12:00:00Z", 1_709_208_000),
            ("2024-02-29T12:00:00.123456789Z", 1_709_208_000),
            ("2024-02-29T13:00:00+01:00", 1_709_208_000),
            ("2024-02-29t06:30:00-05:30", 1_709_208_000),
            ("2038-01-19T03:14:08Z", 2_147_483_648),
            ("2000-12-31T23:59:60Z", 978_307_200),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(parse(text), Some(seconds), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for bad in [
            "",
            "T",
            "Z",
            "2024-02-30T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-00-01T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:60:00Z",
            "1969-12-31T23:59:59Z",
            "2024-01-01T00:00:00",
            "2024-01-01",
            "20240101T0000Z",
            "+024-01-01T00:00:00Z",
            "1970-01-01T00:00:00+01:00",
            "2024-01-01T00:00:00+é1:00",
            "2024-1-1T0:0:0Z",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,40}|[0-9TZ:.+-]{0,30}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_httpdate_writes_reads_the_same(seconds in 0u64..253_402_300_800) {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            // "Sun, 06 Nov 1994 08:49:37 GMT"
            let text = httpdate::fmt_http_date(time);
            let part: Vec<&str> = text.split(' ').collect();
            let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
            let month = months.iter().position(|m| *m == part[2]).unwrap() + 1;
            let rfc3339 = format!("{}-{month:02}-{}T{}Z", part[3], part[1], part[4]);
            prop_assert_eq!(parse(&rfc3339), Some(seconds));
        }
    }
}
