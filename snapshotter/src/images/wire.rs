//! Protobuf's wire format, as far as reading fields of a message needs it (protobuf.dev, "Encoding"). Pure, total, nothing is copied.

/// A field's value. Numbers are told apart from bytes only: no field that is read here is a number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A varint, or a number of fixed width.
    Number,
    /// A string, bytes, or a message.
    Bytes(&'a [u8]),
}

/// The bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a protobuf message")]
pub(super) struct Malformed;

/// The fields of a message, in the order in which they are written. Ends after the first error.
#[derive(Clone)]
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) const fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Malformed)?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], Malformed> {
        let count = usize::try_from(count).map_err(|_| Malformed)?;
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), Malformed> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => self.varint().map(|_| Value::Number)?,
            1 => self.take(8).map(|_| Value::Number)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Number)?,
            // Groups are gone since proto3; 6 and 7 never were.
            _ => return Err(Malformed),
        };
        match key >> 3 {
            0 => Err(Malformed),
            number => Ok((number, value)),
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A field's number, and its bytes if it has any.
    type Read<'a> = (u64, Option<&'a [u8]>);

    fn read(bytes: &[u8]) -> Result<Vec<Read<'_>>, Malformed> {
        let shown = |(number, value)| match value {
            Value::Bytes(bytes) => (number, Some(bytes)),
            Value::Number => (number, None),
        };
        Fields::of(bytes).map(|field| field.map(shown)).collect()
    }

    #[test]
    fn fields_of_all_kinds_are_passed() {
        let message = [
            &[0x08, 0x96, 0x01][..],
            &[0x12, 0x02, b'h', b'i'],
            &[0x19, 1, 2, 3, 4, 5, 6, 7, 8],
            &[0x25, 1, 2, 3, 4],
            &[0x92, 0x01, 0x00],
        ]
        .concat();
        let fields = read(&message).unwrap();
        assert_eq!(fields, [(1, None), (2, Some(&b"hi"[..])), (3, None), (4, None), (18, Some(&b""[..]))]);
        assert_eq!(read(&[]).unwrap(), []);
    }

    #[test]
    fn what_is_cut_short_too_long_or_no_field_is_refused() {
        for bad in [
            &[0x08][..],
            &[0x08, 0x80],
            &[0x12, 0x03, b'h', b'i'],
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
            &[0x0b],
            &[0x0e, 0x00],
            &[0x00, 0x00],
            &[0x19, 1, 2],
        ] {
            assert_eq!(read(bad), Err(Malformed), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_and_nothing_is_read_twice(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let fields: Vec<_> = Fields::of(&bytes).collect();
            prop_assert!(fields.len() <= bytes.len());
            let told: usize = fields.iter().flatten().map(|(_, value)| match value {
                Value::Bytes(bytes) => bytes.len() + 2,
                Value::Number => 2,
            }).sum();
            prop_assert!(told <= bytes.len());
        }
    }
}
