//! The check of a record: a bit that flipped on disk must not attach other bytes than those that were recorded.
//!
//! A record is a JSON object over several lines. Its file has one member more, the first, on a line of its own: the sha256 of
//! everything after that line. So the file stays JSON, any byte of it that changes is found out, and who edits it by hand takes the
//! line out.
//!
//! ```text
//! {
//!   "check": "sha256:...",
//!   "version": 2,
//!   ...
//! ```

use std::borrow::Cow;

use penstock_blob::Digest;

use super::record::RecordError;

/// How a record's object begins.
const OBJECT: &str = "{\n";
/// How the line of the check begins and ends.
const LINE: (&str, &str) = ("  \"check\": \"", "\",\n");

/// Bytes that the line adds: its beginning, a digest of 71 characters, its end.
pub const BYTES: u64 = 86;

/// The text of a record as its file holds it. A text that does not begin with a brace on a line of its own is no record's, and stays as it is.
#[must_use]
pub fn seal(text: &str) -> String {
    let Some(rest) = text.strip_prefix(OBJECT) else { return text.to_owned() };
    [OBJECT, LINE.0, &Digest::of(rest.as_bytes()).to_string(), LINE.1, rest].concat()
}

/// The text of the record in a file with these bytes. A file without the line, from a release before there were checks or edited by hand,
/// is the record's text itself; one in which the line was damaged is that too, and then has a member that no record has.
///
/// # Errors
/// [`RecordError::Check`] when a byte is another one than was written.
pub fn open(file: &[u8]) -> Result<Cow<'_, [u8]>, RecordError> {
    let sealed = file.strip_prefix(OBJECT.as_bytes()).and_then(|file| file.strip_prefix(LINE.0.as_bytes()));
    let Some(sealed) = sealed else { return Ok(Cow::Borrowed(file)) };
    let end = sealed.iter().position(|&byte| byte == b'"').ok_or(RecordError::Check)?;
    let (said, rest) = sealed.split_at(end);
    let rest = rest.strip_prefix(LINE.1.as_bytes()).ok_or(RecordError::Check)?;
    if said != Digest::of(rest).to_string().as_bytes() {
        return Err(RecordError::Check);
    }
    Ok(Cow::Owned([OBJECT.as_bytes(), rest].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::record::Record;

    const RECORD: &str = include_str!("../../tests/golden/record-v2.json");

    #[test]
    fn a_sealed_record_is_json_and_opens_to_what_it_was() {
        let file = seal(RECORD);
        let json: serde_json::Value = serde_json::from_str(&file).unwrap();
        assert_eq!(json["check"], Digest::of(&RECORD.as_bytes()[2..]).to_string());
        assert_eq!(open(file.as_bytes()).unwrap(), RECORD.as_bytes());
        assert_eq!(open(RECORD.as_bytes()).unwrap(), RECORD.as_bytes(), "as releases before wrote it");
        assert_eq!(seal(""), "");
        assert_eq!(file.len() as u64, RECORD.len() as u64 + BYTES);
    }

    #[test]
    fn no_flipped_bit_and_no_cut_gives_a_record() {
        let file = seal(RECORD).into_bytes();
        let read = |file: &[u8]| open(file).and_then(|text| Record::from_text(&text));
        let whole = read(&file).unwrap();
        for at in 0..file.len() {
            assert!(read(&file[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut other = file.clone();
                other[at] ^= 1 << bit;
                assert!(read(&other).is_err(), "bit {bit} of byte {at}");
            }
        }
        assert_eq!(read(&file).unwrap(), whole);
    }
}
