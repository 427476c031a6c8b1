//! Pax headers: lines `LENGTH KEY=VALUE` (POSIX.1-2001), of which those are kept that a layer is unpacked by.

use crate::{
    entry::Time,
    tar::sparse::{MAX_NUMBERS, Sparse},
};

/// Key of an extended attribute, before its name.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What a pax header says of the next member. An empty value, except of an extended attribute, says nothing.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// Whether there was such a header.
    pub(crate) any: bool,
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<Time>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: Sparse,
}

/// A decimal number without sign.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    let digit = |value: u64, byte: &u8| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    };
    (!text.is_empty()).then(|| text.iter().try_fold(0, digit))?
}

/// Seconds with a sign and a fraction of any length, of which nine digits count.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |value, byte| value * 10 + u32::from(byte - b'0'));
    match (negative, nanoseconds) {
        (false, _) => Time::new(seconds, nanoseconds).ok(),
        (true, 0) => Time::new(-seconds, 0).ok(),
        (true, _) => Time::new(-seconds - 1, 1_000_000_000 - nanoseconds).ok(),
    }
}

impl Records {
    /// The records of a header's body; `None` when it is malformed.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let mut records = Self { any: true, ..Self::default() };
        let mut rest = body;
        while !rest.is_empty() {
            let space = rest.iter().take(20).position(|&byte| byte == b' ')?;
            let length = usize::try_from(decimal(&rest[..space])?).ok()?;
            let record = rest.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|&byte| byte == b'=')?;
            records.admit(&record[..equals], &record[equals + 1..])?;
            rest = &rest[length..];
        }
        Some(records)
    }

    fn admit(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if let Some(name) = key.strip_prefix(XATTR) {
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Some(());
        }
        if value.is_empty() {
            return Some(());
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(decimal(value)?),
            b"GNU.sparse.major" => self.sparse.major = Some(decimal(value)?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(decimal(value)?),
            b"GNU.sparse.map" => {
                self.sparse.numbers.clear();
                value.split(|&byte| byte == b',').try_for_each(|text| self.number(decimal(text)?))?;
                self.sparse.in_header = true;
            }
            b"GNU.sparse.numblocks" => self.sparse.in_header = true,
            b"GNU.sparse.offset" => self.paired(0, decimal(value)?)?,
            b"GNU.sparse.numbytes" => self.paired(1, decimal(value)?)?,
            _ => {}
        }
        Some(())
    }

    /// A number of format 0.0, where places (even) and lengths (odd) alternate.
    fn paired(&mut self, parity: usize, number: u64) -> Option<()> {
        (self.sparse.numbers.len() % 2 == parity).then_some(())?;
        self.number(number)
    }

    fn number(&mut self, number: u64) -> Option<()> {
        (self.sparse.numbers.len() < MAX_NUMBERS).then(|| self.sparse.numbers.push(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_nanosecond_and_before_1970() {
        let read = |text: &str| time(text.as_bytes()).map(|time| (time.seconds(), time.nanoseconds()));
        assert_eq!(read("1350244992.023960108"), Some((1_350_244_992, 23_960_108)));
        assert_eq!(read("12.5"), Some((12, 500_000_000)));
        assert_eq!(read("12."), Some((12, 0)));
        assert_eq!(read("12.1234567899"), Some((12, 123_456_789)));
        assert_eq!(read("-1.5"), Some((-2, 500_000_000)));
        assert_eq!(read("-1"), Some((-1, 0)));
        assert_eq!(read("-0.000000001"), Some((-1, 999_999_999)));
        for bad in ["", "-", ".5", "1e5", "+1", "1.-2", "9223372036854775808", "0x10"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn records_may_hold_any_bytes_and_lie_about_nothing() {
        use crate::tar::tests::record;
        let body = [record("path", b"a\nb=c\xff\n"), record("SCHILY.xattr.user.x", b"\0\x01=\n\x02\x03")].concat();
        let records = Records::parse(&body).unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"a\nb=c\xff\n"[..]));
        assert_eq!(records.xattrs, [(b"user.x".to_vec(), b"\0\x01=\n\x02\x03".to_vec())]);
        assert!(Records::parse(b"").unwrap().path.is_none());
        assert_eq!(Records::parse(b"8 path=\n").unwrap().path, None, "an empty value says nothing");
        for bad in [
            &b"path=a\n"[..],
            b"8 path=a\n",
            b"99 path=a\n",
            b"0 path=a\n",
            b"1 path=a\n",
            b"9 path=ab",
            b"10 size=xx\n",
            b"11 mtime=z\n",
            b"11 uid=-10\n",
            b"6 path\n",
            b"99999999999999999999999999 path=a\n",
        ] {
            assert!(Records::parse(bad).is_none(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
