//! Any bytes are a config of the kubelet's plugins, within its bounds and in little time, or are refused in a line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_fetcher::KubeletConfig;

fuzz_target!(|bytes: &[u8]| {
    match KubeletConfig::parse(bytes) {
        Ok(config) => assert!(config.asked_about("123.dkr.ecr.eu-west-1.amazonaws.com", "team/app").len() <= 64),
        Err(error) => assert!(error.to_string().len() < 500),
    }
});
