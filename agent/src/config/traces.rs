//! Where spans are sent.

use std::{path::PathBuf, time::Duration};

/// The collector of traces, and what it is sent.
#[derive(Debug, Clone)]
pub struct Traces {
    /// Its address; none is sent anything when not set.
    pub endpoint: Option<String>,
    /// Whether spans may cross the network without TLS.
    pub plain: bool,
    /// Authorities that its certificate may be of; the system's when not set.
    pub ca: Option<PathBuf>,
    /// File of the token that it is shown.
    pub token_file: Option<PathBuf>,
    /// How long a read or a fetch takes of which a span is sent.
    pub slow: Duration,
}

impl Default for Traces {
    fn default() -> Self {
        Self { endpoint: None, plain: false, ca: None, token_file: None, slow: Duration::from_millis(100) }
    }
}
