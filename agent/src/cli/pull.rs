//! `penstock pull`: an image is put whole into containerd's content store.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    time::Instant,
};

use clap::{Args, ValueHint, builder::NonEmptyStringValueParser};
use penstock_api::{Pull as Request, PullProgress, Pulled};

use super::{Connection, Failure};
use crate::output::{self, Table, percent, size};

pub(super) const HELP: &str = "\
An image that is read lazily has no layers in containerd's content store, so that
`ctr image export`, push and commit lack them. This puts them there, checked against
their digests; what is cached on this node is not fetched again. Interrupted, the
same command goes on where it was. The image that containerd has by this name is
meant; one that it does not know is added.

Examples:
  penstock pull registry.example.com/team/app:1.4
  penstock pull registry.example.com/team/app:1.4 --namespace default
  penstock pull app:1 --platform linux/arm64 --output json | jq .written_bytes";

/// Cells of the bar.
const BAR_CELLS: u64 = 24;

/// `penstock pull`.
#[derive(Debug, Args)]
pub struct Pull {
    /// The image.
    #[arg(help = "The image, as for docker pull: [registry/]repository[:tag][@digest]", value_parser = NonEmptyStringValueParser::new())]
    pub reference: String,
    /// containerd's namespace: k8s.io is the kubelet's, default is ctr's
    #[arg(long, value_name = "NAME", default_value = "k8s.io", value_parser = NonEmptyStringValueParser::new())]
    pub namespace: String,
    /// containerd's socket, as the agent sees it [default: the agent's images.containerd]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub containerd: Option<PathBuf>,
    /// Which image of a multi-platform index, as os/architecture[/variant] [default: the agent's]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub platform: Option<String>,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// Runs the command.
pub(super) async fn execute(args: Pull) -> Result<(), Failure> {
    let client = args.connection.client()?;
    let containerd = args.containerd.as_deref().map(super::client::absolute_socket).transpose()?;
    let request = Request { reference: args.reference, platform: args.platform, namespace: args.namespace, containerd };
    let mut bar = Bar::new(&request.reference);
    let pulled = client.pull(&request, |progress| bar.show(progress)).await;
    bar.clear();
    Ok(output::answer(args.connection.output, &pulled?, table)?)
}

/// A line on a terminal that says how far it is; nothing elsewhere.
struct Bar<'a> {
    what: &'a str,
    is_terminal: bool,
    started: Instant,
    /// What containerd had when the first word came: not counted into the speed.
    first: Option<u64>,
}

impl<'a> Bar<'a> {
    fn new(what: &'a str) -> Self {
        Self { what, is_terminal: io::stderr().is_terminal(), started: Instant::now(), first: None }
    }

    fn show(&mut self, progress: PullProgress) {
        let before = *self.first.get_or_insert(progress.bytes_done);
        if self.is_terminal {
            let written = progress.bytes_done.saturating_sub(before);
            let milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
            let line = line(self.what, progress, written.saturating_mul(1000) / milliseconds);
            // Nobody is left to tell when stderr is gone.
            let mut stderr = io::stderr().lock();
            let _gone = write!(stderr, "\r\x1b[K{line}").and_then(|()| stderr.flush());
        }
    }

    fn clear(&self) {
        if self.is_terminal && self.first.is_some() {
            let _gone = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

fn line(what: &str, progress: PullProgress, bytes_per_second: u64) -> String {
    let PullProgress { blobs_done, blobs, bytes_done, bytes } = progress;
    let filled = bytes_done.min(bytes).saturating_mul(BAR_CELLS).checked_div(bytes).unwrap_or(BAR_CELLS);
    let cells: String = (0..BAR_CELLS).map(|cell| if cell < filled { '=' } else { ' ' }).collect();
    format!(
        "pulling {} [{cells}] {} of {} ({}), {blobs_done} of {blobs} blobs, {}/s",
        output::escape(what),
        size(bytes_done),
        size(bytes),
        percent(bytes_done, bytes),
        size(bytes_per_second),
    )
}

fn table(pulled: &Pulled) -> String {
    let mut facts = Table::facts();
    facts.fact("image", &pulled.reference);
    facts.fact("digest", pulled.digest);
    facts.fact("namespace", &pulled.namespace);
    facts.fact("written", size(pulled.written_bytes));
    if pulled.new {
        facts.fact("added", "yes, containerd did not know it by this name");
    }
    let mut blobs = Table::new(&["BLOB", ">SIZE", ">WRITTEN", "TYPE"]);
    for blob in &pulled.blobs {
        let written = if blob.written_bytes == 0 { "was there".to_owned() } else { size(blob.written_bytes) };
        blobs.row([blob.digest.to_string(), size(blob.size_bytes), written, blob.media_type.clone()]);
    }
    format!("{facts}\n{blobs}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_empty_at_first_full_at_the_end_and_shows_no_control_characters() {
        let at = |bytes_done, bytes| PullProgress { blobs_done: 1, blobs: 2, bytes_done, bytes };
        let half = line("r/a:1\x1b[2J", at(512, 1024), 2048);
        assert_eq!(
            half,
            "pulling r/a:1\\u{1b}[2J [============            ] 512 B of 1.0 KiB (50%), 1 of 2 blobs, 2.0 KiB/s"
        );
        assert!(line("a", at(0, 10), 0).contains("[                        ] 0 B of 10 B (0%)"));
        assert!(line("a", at(10, 10), 0).contains("[========================]"));
        assert!(line("a", at(0, 0), 0).contains("[========================]"));
    }
}
