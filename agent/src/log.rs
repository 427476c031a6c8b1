//! Log lines on standard error, for people or for machines.
//!
//! Nothing here sees a credential: the parts log hosts and reasons, never headers or query strings, and other libraries, which may
//! log what they send, are kept at `warn`.

use std::str::FromStr;

use tracing::Level;
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::filter_fn, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::traces::{self, Spans};

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One line for people, in colour on a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

impl Format {
    /// The name that parses back.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Json => "json",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is not a log format; write human or json")),
        }
    }
}

/// Sends this process's log lines to standard error from now on, and its spans, which no line shows, to `spans`. A second call changes nothing.
pub fn start(format: Format, level: Level, spans: Option<Spans>) {
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let layer = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        Format::Human => layer.with_ansi(is_terminal).boxed(),
        Format::Json => layer.json().flatten_event(true).boxed(),
    };
    let registry = tracing_subscriber::registry().with(lines.with_filter(EnvFilter::new(filter_text(level))));
    // The only failure is that another subscriber is there already: then lines go where that one sends them.
    let _already_started = registry.with(spans.map(|spans| spans.with_filter(filter_fn(traces::is_ours)))).try_init();
}

/// Our own crates from `level` on, all others from `warn` on.
fn filter_text(level: Level) -> String {
    format!("warn,penstock={level}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_libraries_stay_at_warn_whatever_is_asked() {
        for level in [Level::ERROR, Level::INFO, Level::TRACE] {
            let filter: EnvFilter = filter_text(level).parse().unwrap();
            let text = filter.to_string();
            assert!(text.contains("warn") && text.contains("penstock="), "{text}");
        }
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!(Format::Human.name().parse(), Ok(Format::Human));
        assert!("xml".parse::<Format>().unwrap_err().contains("human or json"));
    }
}
