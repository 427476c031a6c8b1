//! Following what happens: the messages of an agent's event stream, one by one.

use std::{collections::VecDeque, time::Duration};

use http_body_util::BodyExt as _;
use penstock_api::{END, Event, KEEP_ALIVE, LOST, Lost, RESTARTED};

use super::{Client, ClientError, Open};

/// An agent that has said nothing for as long as three of its signs of life is gone.
const SILENCE: Duration = KEEP_ALIVE.saturating_mul(3);

/// The most bytes of one message: many times the longest event.
const MESSAGE_BYTES: usize = 1 << 20;

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Something happened.
    Event(Event),
    /// So many events are no longer kept.
    Lost(u64),
    /// Numbers began anew.
    Restarted,
}

/// An event stream.
#[derive(Debug)]
pub struct Following(Frames);

impl Following {
    pub(super) fn new(client: Client, answer: Open) -> Self {
        Self(Frames::new(client, answer))
    }

    /// What comes next; `None` once the agent has said that it ends the stream.
    ///
    /// # Errors
    /// [`ClientError`] when the connection breaks, or the agent is silent for too long.
    pub async fn next(&mut self) -> Result<Option<Message>, ClientError> {
        loop {
            let frame = self.0.next().await?;
            match frame.name.as_str() {
                "" => return self.0.parsed(&frame.data).map(|event| Some(Message::Event(event))),
                LOST => return self.0.parsed(&frame.data).map(|Lost { lost }| Some(Message::Lost(lost))),
                RESTARTED => return Ok(Some(Message::Restarted)),
                END => return Ok(None),
                // A newer agent has more to say.
                _ => {}
            }
        }
    }
}

/// Any stream of an agent's messages.
#[derive(Debug)]
pub(super) struct Frames {
    client: Client,
    answer: Open,
    parser: Parser,
    ready: VecDeque<Frame>,
}

impl Frames {
    pub(super) fn new(client: Client, answer: Open) -> Self {
        Self { client, answer, parser: Parser::default(), ready: VecDeque::new() }
    }

    /// The next message.
    pub(super) async fn next(&mut self) -> Result<Frame, ClientError> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(frame);
            }
            self.read().await?;
        }
    }

    pub(super) fn parsed<T: serde::de::DeserializeOwned>(&self, data: &str) -> Result<T, ClientError> {
        serde_json::from_str(data).map_err(|error| self.client.foreign(error.to_string()))
    }

    async fn read(&mut self) -> Result<(), ClientError> {
        let frame = tokio::time::timeout(SILENCE, self.answer.body.frame()).await;
        let frame = frame.map_err(|_| self.client.broken(format!("it was silent for {} s", SILENCE.as_secs())))?;
        let frame = frame.ok_or_else(|| self.client.broken("the stream was cut off"))?;
        let Ok(data) = frame.map_err(|error| self.client.broken(error))?.into_data() else { return Ok(()) };
        let frames = self.parser.push(&data).map_err(|reason| self.client.foreign(reason.to_owned()))?;
        self.ready.extend(frames);
        Ok(())
    }
}

/// One message as it was sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Empty for an unnamed one.
    pub(super) name: String,
    pub(super) data: String,
}

/// Messages out of bytes that come in pieces (WHATWG HTML, section 9.2.6).
#[derive(Debug, Default)]
struct Parser {
    line: Vec<u8>,
    name: String,
    data: Option<String>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, &'static str> {
        let mut frames = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                let line = std::str::from_utf8(&line).map_err(|_| "its event stream is not UTF-8")?;
                frames.extend(self.take(line.strip_suffix('\r').unwrap_or(line)));
            } else {
                self.line.push(byte);
            }
            if self.line.len() + self.data.as_ref().map_or(0, String::len) > MESSAGE_BYTES {
                return Err("a message of its event stream is too long");
            }
        }
        Ok(frames)
    }

    fn take(&mut self, line: &str) -> Option<Frame> {
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            return self.data.take().map(|data| Frame { name, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => match &mut self.data {
                Some(data) => data.extend(["\n", value]),
                None => self.data = Some(value.to_owned()),
            },
            // Comments, IDs and pauses are for clients that come back by themselves.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(name: &str, data: &str) -> Frame {
        Frame { name: name.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn messages_are_the_same_however_the_bytes_are_cut() {
        let text = ": hello\nretry: 3000\n\nid: 1-1\ndata: {\"a\":1}\n\nevent: lost\r\ndata:{}\r\n\r\ndata: x\ndata: \u{e9}\n\n";
        let expected = [frame("", "{\"a\":1}"), frame("lost", "{}"), frame("", "x\n\u{e9}")];
        for size in [1, 2, 3, 7, text.len()] {
            let mut parser = Parser::default();
            let frames: Vec<_> = text.as_bytes().chunks(size).flat_map(|piece| parser.push(piece).unwrap()).collect();
            assert_eq!(frames, expected, "pieces of {size}");
        }
    }

    #[test]
    fn a_message_that_never_ends_is_refused() {
        let mut parser = Parser::default();
        let line = [b"data: ".as_slice(), &[b'x'; 4096], b"\n"].concat();
        let refused = (0..=MESSAGE_BYTES / 4096).find_map(|_| parser.push(&line).err());
        assert!(refused.is_some());
        assert!(Parser::default().push(b"data: \xff\n").is_err());
    }
}
