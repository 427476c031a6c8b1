//! A connection's socket: paces what is written, counts it for the answer that it belongs to, and cuts it where a fault says so.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

use crate::{link::Link, record::Entry};

/// How a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// RST: the peer sees `ECONNRESET`.
    Reset,
    /// FIN: the peer sees an end.
    Close,
}

/// What a connection's socket and the answers on it share.
#[derive(Debug, Default)]
pub(crate) struct Wire(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The answer being written, and how much of the blank line that ends its head has been seen.
    answer: Option<(Arc<Entry>, Head)>,
    cut: Option<Cut>,
}

/// Finds the end of a head: `\r\n\r\n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    Matched(u8),
    Over,
}

impl Head {
    /// Takes the next bytes written; answers how many of them are body.
    fn body_bytes(&mut self, written: &[u8]) -> usize {
        for (at, &byte) in written.iter().enumerate() {
            let Self::Matched(matched) = *self else { return written.len() - at };
            *self = match (matched, byte) {
                (3, b'\n') => Self::Over,
                (0 | 2, b'\r') | (1, b'\n') => Self::Matched(matched + 1),
                (_, b'\r') => Self::Matched(1),
                _ => Self::Matched(0),
            };
        }
        0
    }
}

impl Wire {
    /// What is written from now on is the answer to `entry`, its head first.
    pub(crate) fn begin(&self, entry: Arc<Entry>) {
        self.0.lock().answer = Some((entry, Head::Matched(0)));
    }

    /// Cuts the connection as soon as everything given to it so far is in the socket.
    pub(crate) fn cut(&self, cut: Cut) {
        self.0.lock().cut = Some(cut);
    }

    fn wrote(&self, slices: &[IoSlice<'_>], mut count: usize) {
        let mut state = self.0.lock();
        let Some((entry, head)) = &mut state.answer else { return };
        let mut body = 0;
        for slice in slices {
            let part = &slice[..slice.len().min(count)];
            count -= part.len();
            body += match head {
                Head::Over => part.len(),
                Head::Matched(_) => head.body_bytes(part),
            };
        }
        entry.sent(body as u64);
    }
}

/// The socket as hyper sees it.
#[derive(Debug)]
pub(crate) struct Io {
    stream: TcpStream,
    wire: Arc<Wire>,
    link: Arc<Link>,
    /// Bytes that may still be written without asking the link.
    granted: usize,
    /// When the grant begins.
    wait: Option<Pin<Box<Sleep>>>,
}

impl Io {
    pub(crate) const fn new(stream: TcpStream, wire: Arc<Wire>, link: Arc<Link>) -> Self {
        Self { stream, wire, link, granted: 0, wait: None }
    }

    /// How many of `wanted` bytes may be written now.
    fn poll_grant(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        if self.granted == 0 {
            let Some(grant) = self.link.reserve(wanted as u64) else {
                return Poll::Ready(wanted);
            };
            self.granted = usize::try_from(grant.bytes).unwrap_or(usize::MAX);
            self.wait = Some(Box::pin(tokio::time::sleep_until(grant.at)));
        }
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(cx));
            self.wait = None;
        }
        Poll::Ready(self.granted.min(wanted))
    }

    fn wrote(&mut self, slices: &[IoSlice<'_>], count: usize) {
        self.granted = self.granted.saturating_sub(count);
        self.wire.wrote(slices, count);
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let granted = ready!(self.poll_grant(cx, wanted));
        if granted == wanted {
            let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
            self.wrote(bufs, count);
            return Poll::Ready(Ok(count));
        }
        // A grant smaller than what is there: the first buffer that has bytes, cut to the grant.
        let Some(first) = bufs.iter().find(|buf| !buf.is_empty()) else { return Poll::Ready(Ok(0)) };
        let part = &first[..first.len().min(granted)];
        let count = ready!(Pin::new(&mut self.stream).poll_write(cx, part))?;
        self.wrote(&[IoSlice::new(part)], count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper flushes once all it held is written: the moment to cut.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        let cut = self.wire.0.lock().cut;
        match cut {
            None => Poll::Ready(Ok(())),
            Some(Cut::Close) => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            Some(Cut::Reset) => {
                // With a linger time of zero the close that follows sends RST.
                self.stream.set_zero_linger()?;
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_at_the_blank_line_however_it_is_cut() {
        let answer = b"HTTP/1.1 200 OK\r\na: b\r\r\nc: d\r\n\r\n\r\n\r\nbody";
        for pieces in 1..answer.len() {
            let mut head = Head::Matched(0);
            let body: usize = answer.chunks(pieces).map(|piece| head.body_bytes(piece)).sum();
            assert_eq!(body, b"\r\n\r\nbody".len(), "in pieces of {pieces}");
        }
    }
}
