//! `penstock inspect`: what an image offers for reading it on demand, and what becomes of it on this node.

use clap::{Args, builder::NonEmptyStringValueParser};
use penstock_api::{Fate, Inspection, WayState};

use super::{Connection, Failure, render};
use crate::output::{self, Table, size, with_progress};

pub(super) const HELP: &str = "\
No index is fetched, and of layers only what says what they are. What is chosen is
what containerd would be offered; TO OPEN is what is fetched before anything of a layer
can be read. That an index can be used is known only once it is fetched: it may leave
out directories, or link to files of a layer below. Then the layer is unpacked, and an
event says why.

FATE: lazy; streamed, shown at once, but it decodes only from its beginning and is
prefetched in parallel; unpacked by containerd; refused.

STATE: used; spare, another goes before it; off, layers.prefer or the image leaves it
out; absent; refused, there is one that is not used.

Examples:
  penstock inspect registry.example.com/team/app:1.4
  penstock inspect app:1 --platform linux/arm64
  penstock inspect app:1 --output json | jq '.layers[] | {digest, fate, why}'";

/// `penstock inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The image.
    #[arg(help = "The image, as for docker pull: [registry/]repository[:tag][@digest]", value_parser = NonEmptyStringValueParser::new())]
    pub reference: String,
    /// Which image of a multi-platform index, as os/architecture[/variant] [default: the agent's]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub platform: Option<String>,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

pub(super) async fn run(args: Inspect) -> Result<(), Failure> {
    let request = penstock_api::Inspect { reference: args.reference, platform: args.platform };
    let client = args.connection.client()?;
    let what = format!("looking at {}", request.reference);
    let inspection = with_progress(&what, client.inspect(&request)).await?;
    Ok(output::answer(args.connection.output, &inspection, text)?)
}

/// An inspection for people.
pub(super) fn text(inspection: &Inspection) -> String {
    let mut facts = Table::facts();
    facts.fact("image", &inspection.reference);
    facts.fact("digest", inspection.digest);
    facts.fact("platform", &inspection.platform);
    facts.fact("size", size(inspection.size_bytes));
    facts.fact("lazy", format_args!("{} of {} layers", inspection.lazy_layers, inspection.layers.len()));
    let mut layers =
        Table::new(&[">LAYER", "BLOB", ">SIZE", "FATE", ">TO OPEN", "WHAT VERIFIES IT, OR WHY IT IS NOT LAZY"]);
    let mut ways = Table::new(&[">LAYER", "WAY", "STATE", ">INDEX", ">TO OPEN", "WHAT"]);
    let bytes = |bytes: Option<u64>| bytes.map(size).unwrap_or_default();
    for (nth, layer) in (1..).zip(&inspection.layers) {
        let nth: u64 = nth;
        let why = if layer.fate == Fate::Lazy { &layer.verified_by } else { &layer.why };
        layers.row([
            nth.to_string(),
            render::short(layer.digest),
            size(layer.size_bytes),
            layer.fate.name().to_owned(),
            bytes(layer.open_bytes),
            why.clone(),
        ]);
        for way in layer.ways.iter().filter(|way| way.state != WayState::Absent) {
            let (index, open) = (bytes(way.index_bytes), bytes(way.open_bytes));
            ways.row([nth.to_string(), way.way.clone(), way.state.name().to_owned(), index, open, way.detail.clone()]);
        }
    }
    format!("{facts}\n{layers}\n{ways}")
}
