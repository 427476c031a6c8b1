//! Any text is a hosts.toml, or is refused with a line of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_fetcher::HostsFile;

fuzz_target!(|text: &str| {
    match HostsFile::parse(text) {
        Ok(file) => assert!(file.ignored().len() <= 16),
        Err(fault) => assert!(fault.line >= 1 && fault.line <= 1 + text.matches('\n').count()),
    }
});
