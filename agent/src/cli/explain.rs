//! `penstock explain`: why a start took as long as it did, in a sentence.

use clap::{Args, builder::NonEmptyStringValueParser};
use penstock_api::Explanation;

use super::{Connection, Failure};
use crate::output::{self, with_progress};

pub(super) const HELP: &str = "\
The start is the run of waits, less than two seconds apart, that stalled longest:
Penstock does not see when a program is ready. Estimates are made of what was
measured; what was not is said to be unknown. A full pull's has no unpacking in it.

Examples:
  penstock explain app-1a2b3c
  penstock explain app-1a2b3c --output json | jq '{start, recorded_ms, pulled_ms}'
  penstock explain app-1a2b3c --output json | jq '.ranges[0]'";

/// `penstock explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// The device, as `penstock list` names it
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub id: String,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

pub(super) async fn run(args: Explain) -> Result<(), Failure> {
    let explanation = with_progress("asking the agent", args.connection.client()?.explain(&args.id)).await?;
    Ok(output::answer(args.connection.output, &explanation, text)?)
}

/// An explanation for people.
pub(super) fn text(explanation: &Explanation) -> String {
    let Explanation { id, sentence, snapshots, .. } = explanation;
    let mut text = output::escape(&format!("{id}: {sentence}")) + "\n";
    if !snapshots.is_empty() {
        text.push_str(&output::escape(&format!("shown to containerd's snapshots {}", snapshots.join(", "))));
        text.push('\n');
    }
    text
}
