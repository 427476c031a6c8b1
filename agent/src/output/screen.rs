//! The whole terminal, for a command that shows frame after frame. It is as it was once the [`Screen`] is dropped.

use std::io::{self, Write as _};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe,
    signal::unix::{Signal, SignalKind, signal},
};

/// The terminal of this process, whatever its stdin is. Opened anew, so that waiting for keys changes nothing for the shell.
const TERMINAL: &str = "/dev/tty";

/// Another screen without a cursor, and back (xterm's control sequences, which every terminal in use has).
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// Keys that end: q, and Ctrl-C, which the terminal hands over as it is.
const END_KEYS: [u8; 3] = [b'q', b'Q', 3];

/// Lines and columns of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// How large the terminal is on stdout; 24 lines of 80 where it does not say.
pub(crate) fn size() -> Size {
    let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or(Size { rows: 24, columns: 80 }, |size| Size { rows: size.ws_row.into(), columns: size.ws_col.into() })
}

/// The terminal, taken over.
#[derive(Debug)]
pub(crate) struct Screen {
    /// How it was before, and its keys; `None` where this process has none to be asked by.
    keys: Option<(Termios, pipe::Receiver)>,
    ended: Signal,
    interrupted: Signal,
}

impl Screen {
    /// Takes over the terminal on stdout, and the keys of the process's own.
    pub(crate) fn open() -> io::Result<Self> {
        let (ended, interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        // A terminal is read as a pipe is. Without one, signals still end it.
        let keys = pipe::OpenOptions::new().unchecked(true).open_receiver(TERMINAL).ok();
        let keys = keys.and_then(|keys| Some((tcgetattr(&keys).ok()?, keys)));
        if let Some((before, keys)) = &keys {
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(keys, OptionalActions::Now, &raw)?;
        }
        let screen = Self { keys, ended, interrupted };
        screen.write(ENTER)?;
        Ok(screen)
    }

    /// Shows these lines, cut to the width of the terminal, and nothing else.
    pub(crate) fn show(&self, lines: &[String]) -> io::Result<()> {
        self.write(&painted(lines, size().columns))
    }

    /// Waits for a key that ends, or for a signal.
    pub(crate) async fn until_asked_to_end(&mut self) -> io::Result<()> {
        tokio::select! {
            ended = end_key(self.keys.as_mut().map(|(_, keys)| keys)) => ended,
            _ = self.ended.recv() => Ok(()),
            _ = self.interrupted.recv() => Ok(()),
        }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nobody is left to tell when the terminal is gone.
        let _gone = self.write(LEAVE);
        if let Some((before, keys)) = &self.keys {
            let _gone = tcsetattr(keys, OptionalActions::Now, before);
        }
    }
}

async fn end_key(keys: Option<&mut pipe::Receiver>) -> io::Result<()> {
    let Some(keys) = keys else { return std::future::pending().await };
    let mut typed = [0; 64];
    loop {
        match keys.read(&mut typed).await? {
            // The terminal is gone.
            0 => return Ok(()),
            count if typed[..count].iter().any(|key| END_KEYS.contains(key)) => return Ok(()),
            _ => {}
        }
    }
}

/// What makes a terminal show these lines from its first one on. Of what is longer than a line the rest is not shown.
fn painted(lines: &[String], columns: usize) -> String {
    let mut text = String::from("\x1b[H");
    for (nth, line) in lines.iter().enumerate() {
        text.push_str(if nth == 0 { "" } else { "\r\n" });
        text.extend(line.chars().take(columns));
        text.push_str("\x1b[K");
    }
    text + "\x1b[J"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_begins_at_the_top_and_leaves_nothing_of_the_one_before() {
        let lines = ["größer".to_owned(), "b".to_owned()];
        assert_eq!(painted(&lines, 4), "\x1b[Hgröß\x1b[K\r\nb\x1b[K\x1b[J");
        assert_eq!(painted(&[], 4), "\x1b[H\x1b[J");
    }
}
