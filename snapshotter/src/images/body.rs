//! Bodies on their way: passed on frame by frame, some of them looked at first.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming};
use zeroize::Zeroizing;

use super::{
    message::{self, MESSAGE_BYTES, PREFIX_BYTES, Unread},
    status,
    upstream::is_lost,
};

/// Largest answer that is read, in bytes: that to a pull holds one ID. A larger one is passed on as it comes.
pub const ANSWER_BYTES: usize = 64 << 10;

/// A body that is passed on. Its length is not told, so that no header is added to what the other side sent.
#[derive(Debug, Default)]
pub(super) struct Body {
    /// What was looked at, in order.
    seen: VecDeque<Frame<Bytes>>,
    /// What has not come yet.
    rest: Option<Incoming>,
    /// What to end with when the connection that it comes from is lost.
    on_loss: Option<HeaderMap>,
}

impl Body {
    pub(super) fn of(incoming: Incoming) -> Self {
        Self { rest: Some(incoming), ..Self::default() }
    }

    /// Ends with `UNAVAILABLE` and `text`, and not with a broken stream, when its connection is lost.
    pub(super) fn or_unavailable(mut self, text: &str) -> Self {
        self.on_loss = Some(status::unavailable_trailers(text));
        self
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(frame) = self.seen.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        match std::task::ready!(Pin::new(rest).poll_frame(cx)) {
            Some(Err(error)) if is_lost(&error) => {
                self.rest = None;
                let trailers = self.on_loss.take().map(Frame::trailers);
                Poll::Ready(Some(trailers.ok_or(error)))
            }
            frame => Poll::Ready(frame),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.seen.is_empty() && self.rest.as_ref().is_none_or(HttpBody::is_end_stream)
    }
}

/// The beginning of a body, and all that is needed to pass it on as if nobody had looked.
pub(super) struct Gathered {
    /// The bytes so far. They may hold credentials.
    bytes: Zeroizing<Vec<u8>>,
    trailers: Option<HeaderMap>,
    seen: VecDeque<Frame<Bytes>>,
    /// `None` at the end.
    rest: Option<Incoming>,
}

impl Gathered {
    /// The first message of a request, unless it is larger than is read.
    ///
    /// # Errors
    /// What the client's connection says; it has gone.
    pub(super) async fn request(body: Incoming) -> Result<Self, hyper::Error> {
        let enough = |bytes: &[u8]| match message::announced(bytes) {
            Some(length) => length > MESSAGE_BYTES || bytes.len() >= PREFIX_BYTES + length,
            None => false,
        };
        Self::gather(body, enough).await
    }

    /// A whole answer, unless it is larger than is read.
    ///
    /// # Errors
    /// What containerd's connection says.
    pub(super) async fn answer(body: Incoming) -> Result<Self, hyper::Error> {
        Self::gather(body, |bytes| bytes.len() > ANSWER_BYTES).await
    }

    async fn gather(mut body: Incoming, enough: impl Fn(&[u8]) -> bool) -> Result<Self, hyper::Error> {
        let mut this = Self { bytes: Zeroizing::default(), trailers: None, seen: VecDeque::new(), rest: None };
        while let Some(frame) = body.frame().await {
            let frame = frame?;
            if let Some(data) = frame.data_ref() {
                this.append(data);
            } else if let Some(trailers) = frame.trailers_ref() {
                this.trailers = Some(trailers.clone());
            }
            this.seen.push_back(frame);
            if enough(&this.bytes) {
                this.rest = Some(body);
                break;
            }
        }
        Ok(this)
    }

    /// Appends without leaving copies behind in memory that is given back.
    fn append(&mut self, data: &[u8]) {
        let wanted = self.bytes.len() + data.len();
        if wanted > self.bytes.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(wanted.next_power_of_two()));
            larger.extend_from_slice(&self.bytes);
            self.bytes = larger;
        }
        self.bytes.extend_from_slice(data);
    }

    /// The message.
    pub(super) fn message(&self) -> Result<&[u8], Unread> {
        message::first(&self.bytes)
    }

    /// Whether the answer has ended, and its trailers say well.
    pub(super) fn is_well(&self) -> bool {
        self.trailers.as_ref().and_then(status::said) == Some(true)
    }

    /// The body as it was.
    pub(super) fn into_body(self) -> Body {
        Body { seen: self.seen, rest: self.rest, on_loss: None }
    }
}
