//! A small HTTP server on loopback, for what stands in for others: one thread, and one request after the other.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// A client that sends nothing is let go.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request that was made.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its first line.
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

/// What it is answered.
#[derive(Debug)]
pub struct Answered {
    /// The number, and a word: `200 OK`.
    pub status: String,
    /// The media type of the body.
    pub kind: &'static str,
    /// The body.
    pub body: String,
}

/// The server; ends with its owner.
#[derive(Debug)]
pub struct Listening {
    host: String,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    /// Starts it: `answer` says what becomes of each request.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start(answer: impl Fn(Asked) -> Answered + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let host = listener.local_addr().expect("a bound address").to_string();
        let ending = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&ending);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                // A client that went away is none.
                let _ = stream.and_then(|stream| serve(&stream, &answer));
            }
        });
        Self { host, ending, thread: Some(thread) }
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        // Wakes the thread from its accept.
        let _ = TcpStream::connect(&self.host);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: &TcpStream, answer: impl Fn(Asked) -> Answered) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let Answered { status, kind, body } = answer(Asked::read(stream)?);
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes())
}

impl Asked {
    fn read(stream: &TcpStream) -> io::Result<Self> {
        let mut reader = BufReader::new(stream);
        let mut next = || {
            let mut line = String::new();
            reader.read_line(&mut line).and_then(|read| match read {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(line.trim_end().to_owned()),
            })
        };
        let (line, mut headers) = (next()?, Vec::new());
        loop {
            let header = next()?;
            let Some((name, value)) = header.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut asked = Self { line, headers, body: Vec::new() };
        let length = asked.header("content-length").map_or(Ok(0), str::parse).map_err(io::Error::other)?;
        asked.body.resize(length, 0);
        reader.read_exact(&mut asked.body)?;
        Ok(asked)
    }

    /// The value of the first header of this name, which is in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
    }
}
