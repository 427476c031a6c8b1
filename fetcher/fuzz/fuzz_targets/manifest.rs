//! Any bytes are a manifest or an index within the bounds, or are refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_fetcher::Document;

fuzz_target!(|input: (Option<&str>, &[u8])| {
    let (content_type, bytes) = input;
    match Document::parse(bytes, content_type) {
        Ok(Document::Image(image)) => assert!(image.layers.len() <= 1000),
        Ok(Document::Index(entries)) => assert!(entries.len() <= 4096),
        Err(error) => assert!(error.to_string().len() < 2000),
    }
});
