//! The tar wrapper, recognising what a blob is, and what is read from beside an image: traces of reads and recordings, the latter also with
//! their checksum made right.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// What is read as a recording is one: its ranges lie in their blobs, and it is written and read again.
fn recording(bytes: &[u8]) {
    let Ok(recording) = penstock_image::recording::Recording::parse(bytes) else { return };
    assert!(recording.ranges().all(|(blob, range)| range.end() <= blob.size_bytes));
    assert_eq!(recording.ranges().count(), recording.len());
    assert_eq!(penstock_image::recording::Recording::parse(&recording.encode()).as_ref(), Ok(&recording));
    assert_eq!(recording.clone().merge(&recording), recording);
}

fuzz_target!(|input: (u32, &[u8])| {
    let (blob_bytes, head) = input;
    let found = penstock_image::tar::unwrap(head, blob_bytes.into(), |content| content.starts_with(b"Z"));
    if let Ok(penstock_image::tar::Wrapper::Payload(range)) = found {
        assert!(range.end() <= blob_bytes.into());
    }
    let _ = penstock_image::content(head, blob_bytes.into());
    let _ = penstock_image::trace::parse(head);
    recording(head);
    if let Some(body) = head.len().checked_sub(4) {
        let mut sealed = head.to_vec();
        sealed.splice(..sealed.len().min(16), [b"PNSTKREC".as_slice(), &[1, 0, 0, 0, 0, 16, 0, 0]].concat());
        sealed.truncate(body.max(16));
        sealed.extend_from_slice(&crc32c::crc32c(&sealed).to_le_bytes());
        recording(&sealed);
    }
});
