//! Whatever lies among the records: it is a record that can be written and read again, or it is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use record::Record;

#[path = "../../src/state/check.rs"]
pub mod check;
#[path = "../../src/state/record.rs"]
pub mod record;

fuzz_target!(|file: &[u8]| {
    let Ok(text) = check::open(file) else { return };
    let Ok(record) = Record::from_text(&text) else { return };
    // What was written in an earlier form, more tersely, may be too long in today's.
    let Ok(text) = record.to_text() else { return };
    let sealed = check::seal(&text);
    assert_eq!(sealed.len() as u64, text.len() as u64 + check::BYTES);
    let again = check::open(sealed.as_bytes()).expect("what was written is whole");
    assert_eq!(Record::from_text(&again).expect("what was written is read"), record);
});
