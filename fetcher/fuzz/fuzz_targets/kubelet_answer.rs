//! Any bytes are an answer of a kubelet plugin that can be asked, or are refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penstock_fetcher::KubeletAnswer;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(answer) = KubeletAnswer::parse(bytes, "credentialprovider.kubelet.k8s.io/v1") {
        let _credentials = answer.credentials("registry-1.docker.io", "library/alpine");
        let _credentials = answer.credentials("r.io:5000", "a/b/c");
    }
});
