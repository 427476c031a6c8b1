//! The messages of OTLP that carry spans, and nothing more of them.
//!
//! Names and numbers of fields: opentelemetry-proto 1.x, `opentelemetry/proto/collector/trace/v1/trace_service.proto`, `trace/v1/trace.proto`,
//! `common/v1/common.proto` and `resource/v1/resource.proto`, of which the stable parts do not change any more. `tests/tests/telemetry.rs` has what is sent read
//! by the project's own classes.

use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::layer::{Finished, Value};

/// `ExportTraceServiceRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Request {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

/// `ExportTraceServiceResponse`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Response {
    #[prost(message, optional, tag = "1")]
    pub(super) partial_success: Option<PartialSuccess>,
}

/// `ExportTracePartialSuccess`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PartialSuccess {
    #[prost(int64, tag = "1")]
    pub(super) rejected_spans: i64,
    #[prost(string, tag = "2")]
    pub(super) error_message: String,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

/// `InstrumentationScope`.
#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Any", tags = "1, 2, 3, 4")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Any {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Truth(bool),
    #[prost(int64, tag = "3")]
    Whole(i64),
    #[prost(double, tag = "4")]
    Number(f64),
}

/// `SPAN_KIND_INTERNAL`.
const INTERNAL: i32 = 1;
/// `SPAN_KIND_CLIENT`.
const CLIENT: i32 = 3;
/// `STATUS_CODE_ERROR`.
const FAILED: i32 = 2;

/// Spans in which somebody else is asked.
const ASKING: [&str; 2] = ["fetch", "resolve"];

/// A request with these spans, of the agent on this node.
pub(super) fn request(node: &str, spans: Vec<Finished>) -> Vec<u8> {
    let said = |key: &str, text: &str| attribute(key, Any::Text(text.to_owned()));
    let version = env!("CARGO_PKG_VERSION");
    // Names of attributes: the semantic conventions for resources.
    let attributes = vec![said("service.name", "penstock"), said("service.version", version), said("host.name", node)];
    let scope = Scope { name: "penstock".to_owned(), version: version.to_owned() };
    let spans = spans.into_iter().map(span).collect();
    let resource_spans = vec![ResourceSpans {
        resource: Some(Resource { attributes }),
        scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
    }];
    Request { resource_spans }.encode_to_vec()
}

fn span(of: Finished) -> Span {
    let ended = of.began + of.took;
    let value = |value| match value {
        Value::Text(text) => Any::Text(text),
        Value::Whole(number) => Any::Whole(number),
        Value::Number(number) => Any::Number(number),
        Value::Truth(truth) => Any::Truth(truth),
    };
    Span {
        trace_id: of.trace.to_be_bytes().to_vec(),
        span_id: of.id.to_be_bytes().to_vec(),
        parent_span_id: of.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        name: of.name.to_owned(),
        kind: if ASKING.contains(&of.name) { CLIENT } else { INTERNAL },
        start_time_unix_nano: nanos(of.began),
        end_time_unix_nano: nanos(ended),
        attributes: of.attributes.into_iter().map(|(name, of)| attribute(name, value(of))).collect(),
        status: of.error.map(|message| Status { message, code: FAILED }),
    }
}

fn attribute(name: &str, value: Any) -> KeyValue {
    KeyValue { key: format!("{}{name}", prefix(name)), value: Some(AnyValue { value: Some(value) }) }
}

/// What stands before the names of our own attributes; those of the conventions have a dot.
fn prefix(name: &str) -> &'static str {
    if name.contains('.') { "" } else { "penstock." }
}

/// Nanoseconds since 1970, which fit until 2554.
fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_written_is_read_back_with_big_endian_names_and_both_ends_in_nanoseconds() {
        let finished = Finished {
            name: "fetch",
            trace: 0x0102,
            id: 0x0304,
            parent: Some(5),
            began: UNIX_EPOCH + Duration::from_nanos(1_000),
            took: Duration::from_nanos(7),
            attributes: vec![("bytes", Value::Whole(9)), ("server.address", Value::Text("r".to_owned()))],
            error: Some("status 500".to_owned()),
        };
        let request = Request::decode(request("n1", vec![finished]).as_slice()).unwrap();
        let span = &request.resource_spans[0].scope_spans[0].spans[0];
        assert_eq!((span.trace_id.len(), &span.trace_id[14..]), (16, &[1, 2][..]));
        assert_eq!((&span.span_id[6..], &span.parent_span_id[7..]), (&[3, 4][..], &[5][..]));
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (1_000, 1_007));
        assert_eq!(span.kind, CLIENT);
        let names: Vec<&str> = span.attributes.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(names, ["penstock.bytes", "server.address"]);
        assert_eq!(span.status, Some(Status { message: "status 500".to_owned(), code: FAILED }));
    }
}
