//! Any header is read to at most a few challenges.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_fetcher::Challenge;

fuzz_target!(|header: &str| {
    assert!(Challenge::parse(header).len() <= 8);
});
