//! Which agent answers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Timestamp;

/// The agent that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Its release.
    #[schema(example = "0.1.0")]
    pub version: String,
    /// The kernel that it runs on.
    #[schema(example = "Linux 6.12.0 x86_64")]
    pub kernel: String,
    /// Its process ID, as it sees it itself.
    pub pid: u32,
    /// When it started.
    pub started_at: Timestamp,
}
