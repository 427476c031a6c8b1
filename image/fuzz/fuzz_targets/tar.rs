//! The tar wrapper, and recognising what a blob is.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u32, &[u8])| {
    let (blob_bytes, head) = input;
    let found = penstock_image::tar::unwrap(head, blob_bytes.into(), |content| content.starts_with(b"Z"));
    if let Ok(penstock_image::tar::Wrapper::Payload(range)) = found {
        assert!(range.end() <= blob_bytes.into());
    }
    let _ = penstock_image::content(head, blob_bytes.into());
});
