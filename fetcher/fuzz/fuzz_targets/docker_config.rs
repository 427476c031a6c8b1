//! Any bytes are a docker config that can be asked, or are refused without being repeated.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_fetcher::DockerConfig;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = DockerConfig::parse(bytes) {
        for (host, repository) in [("registry-1.docker.io", "library/alpine"), ("r.io:5000", "a/b/c"), ("", "")] {
            let _credential = config.stored(host, repository);
        }
    }
});
