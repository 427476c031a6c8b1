//! Doors for the fuzzer to the messages of the kubelet that the image proxy reads on their way.

#[path = "../../src/images/auth.rs"]
mod auth;
#[path = "../../src/images/message.rs"]
mod message;
#[path = "../../src/images/wire.rs"]
mod wire;

use message::{first, pull, pulled, remove};

/// Reads a call's bytes as each message that is read of one. Whether the image of a pull is the one that a removal of the same bytes names; none: it is no
/// message.
#[must_use]
pub fn heard(body: &[u8]) -> Option<bool> {
    let message = first(body).ok()?;
    let _answer = pulled(message);
    let pull = pull(message).ok()?;
    for is_registry in [true, false] {
        // Text in it that is no credential is an error, never a panic.
        let _credential = pull.auth.as_ref().map(|auth| auth.credential(|_| is_registry));
    }
    Some(remove(message).is_ok_and(|image| image == pull.image))
}

/// `message` with gRPC's prefix, so that the fuzzer need not find out its length.
#[must_use]
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[0][..], &length, message].concat()
}
