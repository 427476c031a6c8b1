//! From `tracing`'s spans to records of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::mpsc;
use tracing::{
    Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

use crate::events;

/// Spans of which only those are sent that took long: a node has thousands a second.
const ONLY_IF_SLOW: [&str; 2] = ["miss", "fetch"];

/// Says in a span why what it is about failed.
const ERROR: &str = "error";

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Whole(i64),
    Number(f64),
    Truth(bool),
}

/// A span that has ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finished {
    pub(super) name: &'static str,
    pub(super) trace: u128,
    pub(super) id: u64,
    pub(super) parent: Option<u64>,
    pub(super) began: SystemTime,
    pub(super) took: Duration,
    pub(super) attributes: Vec<(&'static str, Value)>,
    /// Why it failed, if it did.
    pub(super) error: Option<String>,
}

/// A span that has not ended.
#[derive(Debug)]
struct Open {
    span: Finished,
    since: Instant,
}

impl Visit for Open {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, Value::Number(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, Value::Whole(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, Value::Whole(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, Value::Truth(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, Value::Text(events::cut(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.set(field, Value::Text(events::cut(&format!("{value:?}"))));
    }
}

impl Open {
    fn set(&mut self, field: &Field, value: Value) {
        match value {
            Value::Text(reason) if field.name() == ERROR => self.span.error = Some(reason),
            value => {
                self.span.attributes.retain(|(name, _)| *name != field.name());
                self.span.attributes.push((field.name(), value));
            }
        }
    }
}

/// A layer that puts spans into a queue as they end. It never waits.
#[derive(Debug)]
pub struct Spans {
    queue: mpsc::Sender<Finished>,
    lost: Arc<AtomicU64>,
    slow: Duration,
}

impl Spans {
    pub(super) const fn new(queue: mpsc::Sender<Finished>, lost: Arc<AtomicU64>, slow: Duration) -> Self {
        Self { queue, lost, slow }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let above = span.parent().and_then(|parent| {
            let extensions = parent.extensions();
            extensions.get::<Open>().map(|open| (open.span.trace, open.span.id))
        });
        let mut open = Open {
            span: Finished {
                name: span.name(),
                // Zero stands for none in the protocol.
                trace: above.map_or_else(|| fastrand::u128(1..), |(trace, _)| trace),
                id: fastrand::u64(1..),
                parent: above.map(|(_, id)| id),
                began: SystemTime::now(),
                took: Duration::ZERO,
                attributes: Vec::new(),
                error: None,
            },
            since: Instant::now(),
        };
        attributes.record(&mut open);
        span.extensions_mut().insert(open);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            values.record(open);
        }
    }

    /// The last one is the end: a span is closed only once those below it are, and work in the background may outlive what began it.
    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            open.span.took = open.since.elapsed();
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(Open { span, .. }) = context.span(&id).and_then(|span| span.extensions_mut().remove::<Open>()) else {
            return;
        };
        if span.took < self.slow && span.error.is_none() && ONLY_IF_SLOW.contains(&span.name) {
            return;
        }
        if self.queue.try_send(span).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use penstock_blob::SPANS;
    use tracing::{field::Empty, info_span};
    use tracing_subscriber::{filter::filter_fn, layer::SubscriberExt as _};

    use super::*;
    use crate::traces::{self, Outbox, QUEUE};

    /// What is sent of the spans that `work` makes.
    fn sent(slow: Duration, work: impl FnOnce()) -> (Vec<Finished>, Outbox) {
        let (spans, mut outbox) = traces::queue(slow);
        let subscriber = tracing_subscriber::registry().with(spans.with_filter(filter_fn(traces::is_ours)));
        tracing::subscriber::with_default(subscriber, work);
        let mut all = Vec::new();
        while let Ok(span) = outbox.receiver.try_recv() {
            all.push(span);
        }
        (all, outbox)
    }

    #[test]
    fn a_span_has_its_place_in_a_trace_its_attributes_and_why_it_failed() {
        let (all, _) = sent(Duration::ZERO, || {
            let above = info_span!(target: SPANS, "attach", reference = "r/a:1", error = Empty);
            above.in_scope(|| {
                // Of others, which the collector is not told.
                let _other = info_span!("hyper").entered();
                let below = info_span!(target: SPANS, "fetch", bytes = 7_u64, is_mirror = true, error = Empty);
                below.record("bytes", 8_u64);
                below.record("error", "status 500");
                below.in_scope(|| ());
            });
            // Open until now.
            drop(above);
            info_span!(target: SPANS, "detach").in_scope(|| ());
        });
        let names: Vec<&str> = all.iter().map(|span| span.name).collect();
        assert_eq!(names, ["fetch", "attach", "detach"], "in the order in which they ended");
        let [fetch, attach, detach] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((fetch.trace, fetch.parent), (attach.trace, Some(attach.id)));
        assert_eq!(fetch.attributes, [("is_mirror", Value::Truth(true)), ("bytes", Value::Whole(8))]);
        assert_eq!(fetch.error.as_deref(), Some("status 500"));
        assert_eq!((attach.parent, attach.error.as_deref()), (None, None));
        assert_eq!(attach.attributes, [("reference", Value::Text("r/a:1".to_owned()))]);
        assert!(detach.trace != attach.trace && detach.parent.is_none());
    }

    #[test]
    fn of_reads_and_fetches_only_those_are_sent_that_were_slow_or_failed() {
        let (all, _) = sent(Duration::from_secs(3600), || {
            info_span!(target: SPANS, "miss").in_scope(|| ());
            info_span!(target: SPANS, "fetch", error = "gone").in_scope(|| ());
            info_span!(target: SPANS, "attach").in_scope(|| ());
        });
        assert_eq!(all.iter().map(|span| span.name).collect::<Vec<_>>(), ["fetch", "attach"]);
    }

    #[test]
    fn who_ends_spans_never_waits_for_the_collector_and_what_is_lost_is_counted() {
        let (all, outbox) = sent(Duration::ZERO, || {
            for _ in 0..QUEUE + 5 {
                info_span!(target: SPANS, "miss").in_scope(|| ());
            }
        });
        assert_eq!(all.len(), QUEUE);
        assert_eq!((outbox.take_lost(), outbox.take_lost()), (5, 0));
    }

    #[test]
    fn a_span_ends_with_its_own_work_not_with_what_that_began() {
        let mut own = Duration::ZERO;
        let (all, _) = sent(Duration::ZERO, || {
            let before = Instant::now();
            let above = info_span!(target: SPANS, "attach");
            let background = above.in_scope(|| info_span!(target: SPANS, "fetch"));
            drop(above);
            let after = Instant::now();
            own = after - before;
            // The span below, and with it the one above, is open for longer than all that.
            while after.elapsed() <= own {
                std::hint::spin_loop();
            }
            drop(background);
        });
        let attach = all.iter().find(|span| span.name == "attach").expect("the span");
        assert!(attach.took <= own, "{attach:?}");
    }
}
