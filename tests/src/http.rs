//! A minimal HTTP client for tests: one request per connection, blocking, over TCP or a unix socket.
//!
//! It speaks HTTP/1.0, so that an answer ends with its connection and no transfer coding has to be undone: the truth of a
//! test should not pass through the code under test.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// No answer of a local server takes longer; beyond it the server hangs, which is a finding.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Such as 200.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of that name (lower case).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }
}

/// A request to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Such as GET.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// The content type of the body, if there is one.
    pub content_type: Option<&'a str>,
    /// The body; empty for none.
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    /// A GET of `path`.
    #[must_use]
    pub const fn get(path: &'a str) -> Self {
        Self { method: "GET", path, content_type: None, body: &[] }
    }

    /// Sends it to `host` (`address:port`).
    ///
    /// # Errors
    /// Whatever the connection says.
    pub fn to_host(&self, host: &str) -> io::Result<Answer> {
        let stream = TcpStream::connect(host)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        self.over(stream, host)
    }

    /// Sends it to the unix socket at `path`.
    ///
    /// # Errors
    /// Whatever the connection says.
    pub fn to_socket(&self, path: &Path) -> io::Result<Answer> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        self.over(stream, "localhost")
    }

    fn over(&self, mut stream: impl Read + Write, host: &str) -> io::Result<Answer> {
        let mut head = format!("{} {} HTTP/1.0\r\nHost: {host}\r\nAccept: */*\r\n", self.method, self.path);
        if let Some(content_type) = self.content_type {
            head += &format!("Content-Type: {content_type}\r\n");
        }
        if self.method != "GET" {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        stream.write_all(self.body)?;
        let mut raw = Vec::new();
        stream.read_to_end(&mut raw)?;
        parse(&raw).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer"))
    }
}

fn parse(raw: &[u8]) -> Option<Answer> {
    let end = raw.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&raw[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(key, value)| (key.to_ascii_lowercase(), value.trim().to_owned())).collect();
    Some(Answer { status, headers, body: raw[end + 4..].to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_split_into_its_parts() {
        let answer = parse(b"HTTP/1.0 404 Not Found\r\nContent-Type: text/plain\r\nX: a:b\r\n\r\nno\r\n\r\n").unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (404, "no\r\n\r\n"));
        assert_eq!((answer.header("content-type"), answer.header("x")), (Some("text/plain"), Some("a:b")));
        assert!(parse(b"HTTP/1.0 200 OK\r\n").is_none());
    }
}
