//! Any text is a static file of credentials that can be asked, or is refused without being repeated.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_fetcher::{CredentialScope, StaticCredentials};

fuzz_target!(|text: &str| {
    if let Ok(file) = StaticCredentials::parse(text) {
        for (host, repository) in [("registry-1.docker.io", "library/alpine"), ("r.io:5000", "a/b/c"), ("", "")] {
            let _credential = file.stored(host, repository);
        }
    }
    if let Ok(scope) = text.parse::<CredentialScope>() {
        assert_eq!(scope.to_string().parse(), Ok(scope));
    }
});
