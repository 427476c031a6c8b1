//! A collector of OpenTelemetry traces on loopback: takes what is posted to it, and has it read by the classes that the OpenTelemetry project makes of its
//! own definitions (PyPI: `opentelemetry-proto`), so that what is sent is not judged by who sent it.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use crate::{
    chart,
    listening::{Answered, Asked, Listening},
    workdir::Workdir,
};

/// The longest that a test waits for spans.
const PATIENCE: Duration = Duration::from_secs(60);

/// Prints the spans in files of requests as JSON, each with the attributes of its resource.
const PROGRAM: &str = "\
import json, sys
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
spans = []
for path in sys.argv[1:]:
    request = ExportTraceServiceRequest.FromString(open(path, 'rb').read())
    for resource in request.resource_spans:
        of = {one.key: one.value.string_value for one in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                told = MessageToDict(span)
                value = lambda any: next(iter(any.values()))
                told['attributes'] = {one['key']: value(one['value']) for one in told.get('attributes', [])}
                for name in ('trace_id', 'span_id', 'parent_span_id'):
                    told[name] = getattr(span, name).hex()
                spans.append(told | {'resource': of, 'scope': scope.scope.name})
print(json.dumps(spans))
";

/// Why what is sent cannot be read here.
#[must_use]
pub fn cannot() -> Option<String> {
    chart::cannot()
}

#[derive(Debug, Default)]
struct Shared {
    posted: Mutex<Vec<Asked>>,
    came: Condvar,
    status: AtomicU16,
}

/// The collector; ends with its owner.
#[derive(Debug)]
pub struct Collector {
    shared: Arc<Shared>,
    listening: Listening,
}

impl Collector {
    /// One that takes everything.
    ///
    /// # Panics
    /// When there is no port.
    #[must_use]
    pub fn start() -> Self {
        let shared = Arc::new(Shared { status: AtomicU16::new(200), ..Shared::default() });
        let serving = Arc::clone(&shared);
        Self { shared, listening: Listening::start(move |asked| serving.take(asked)) }
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> &str {
        self.listening.host()
    }

    /// Answers this status from now on.
    pub fn answers(&self, status: u16) {
        self.shared.status.store(status, Ordering::SeqCst);
    }

    /// What was posted so far, once there are as many requests.
    ///
    /// # Panics
    /// When they do not come.
    #[must_use]
    pub fn posted(&self, least: usize) -> Vec<Asked> {
        let (deadline, mut posted) = (Instant::now() + PATIENCE, self.shared.posted.lock());
        while posted.len() < least {
            assert!(!self.shared.came.wait_until(&mut posted, deadline).timed_out(), "{} requests came", posted.len());
        }
        posted.clone()
    }

    /// The spans that were taken so far, once `is_enough` of them.
    ///
    /// # Panics
    /// When they do not come.
    #[must_use]
    pub fn spans(&self, is_enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let mut seen = 1;
        loop {
            let posted = self.posted(seen);
            let spans = read(&posted);
            if is_enough(&spans) {
                return spans;
            }
            seen = posted.len() + 1;
        }
    }
}

/// The spans in requests, read by the project's classes.
fn read(posted: &[Asked]) -> Vec<Value> {
    let work = Workdir::new();
    let paths = posted.iter().enumerate().map(|(nth, one)| {
        let path = work.join(&nth.to_string());
        fs::write(&path, &one.body).expect("room");
        path
    });
    let mut python = chart::tool("venv/bin/python");
    let out = python.args(["-c", PROGRAM]).args(paths).output().expect("python starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("JSON")
}

impl Shared {
    fn take(&self, asked: Asked) -> Answered {
        let status = self.status.load(Ordering::SeqCst);
        self.posted.lock().push(asked);
        self.came.notify_all();
        Answered { status: format!("{status} Told"), kind: "application/x-protobuf", body: String::new() }
    }
}
