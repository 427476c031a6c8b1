//! Any text is a reference that reads back the same, or is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_fetcher::{Platform, Reference};

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        let shown = reference.to_string();
        assert_eq!(shown.parse::<Reference>(), Ok(reference), "{shown}");
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse(), Ok(platform));
    }
});
