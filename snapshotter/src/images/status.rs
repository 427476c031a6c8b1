//! gRPC's statuses, as HTTP/2 carries them (gRPC over HTTP/2, "Responses"). Pure.

use http::{HeaderMap, HeaderName, HeaderValue, Response, header::CONTENT_TYPE};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// The status that says: not now, ask again.
const UNAVAILABLE: HeaderValue = HeaderValue::from_static("14");

/// `UNAVAILABLE` as trailers.
pub(super) fn unavailable_trailers(text: &str) -> HeaderMap {
    let mut trailers = HeaderMap::from_iter([(STATUS, UNAVAILABLE)]);
    if let Ok(message) = HeaderValue::try_from(encoded(text)) {
        trailers.insert(MESSAGE, message);
    }
    trailers
}

/// `UNAVAILABLE` as a whole answer: what would be its trailers stands in its head.
pub(super) fn unavailable<B: Default>(text: &str) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.headers_mut() = unavailable_trailers(text);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Whether a head or trailers say how the call ended, and whether that is well.
pub(super) fn said(headers: &HeaderMap) -> Option<bool> {
    headers.get(STATUS).map(|status| status == "0")
}

/// Percent-encoded: all but the printable characters of ASCII without `%`.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' => encoded.push_str("%25"),
            0x20..=0x7e => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_can_be_read_by_a_client() {
        let trailers = unavailable_trailers("100% away:\n\u{e9}");
        assert_eq!(trailers[STATUS], "14");
        assert_eq!(trailers[MESSAGE], "100%25 away:%0A%C3%A9");
        assert_eq!(said(&trailers), Some(false));
        assert_eq!(said(&HeaderMap::from_iter([(STATUS, HeaderValue::from_static("0"))])), Some(true));
        assert_eq!(said(&HeaderMap::new()), None);
        assert_eq!(unavailable::<String>("x").status(), 200);
    }
}
