//! `penstock cache`: what is kept on this node, and what of it should go or be read again.

use clap::{Args, Subcommand, builder::NonEmptyStringValueParser};
use penstock_api::{CacheFreed, CacheVerified, EvictCache};
use penstock_blob::Digest;

use super::{Connection, Failure, Show, render};
use crate::output::{self, Table, size, with_progress};

const USAGE_HELP: &str = "\
Examples:
  penstock cache usage
  penstock cache usage --output json | jq .used_bytes";

const EVICT_HELP: &str = "\
Blobs that attached images use stay, and are listed: detach those images first.

Examples:
  penstock cache evict registry.example.com/team/app:1.4
  penstock cache evict sha256:8c6fb1e9e37a...";

const CLEAR_HELP: &str = "\
What attached images use stays, unless --force is given: then it is fetched again when it is read.

Examples:
  penstock cache clear
  penstock cache clear --force --output json | jq .freed_bytes";

const VERIFY_HELP: &str = "\
Reads all of the cache from the disk and compares it with its checksums, whole blobs with their digests.
What is damaged is dropped, and fetched again when it is wanted, or at once with --repair.
Ends with exit code 7 when something was damaged. Interrupting it stops it.

Examples:
  penstock cache verify
  penstock cache verify --repair --output json | jq .corrupt_chunks";

/// `penstock cache`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cache {
    /// What about it [default: usage]
    #[command(subcommand)]
    pub what: Option<What>,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// What the cache can be asked and told.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Show what is kept on this node
    #[command(after_help = USAGE_HELP)]
    Usage(Show),
    /// Remove an image's blobs, or one blob
    #[command(after_help = EVICT_HELP)]
    Evict(Evict),
    /// Remove everything that attached images do not use
    #[command(after_help = CLEAR_HELP)]
    Clear(Clear),
    /// Read everything again, and drop what is damaged
    #[command(after_help = VERIFY_HELP)]
    Verify(Verify),
}

/// `penstock cache evict`.
#[derive(Debug, Args)]
pub struct Evict {
    /// The image, as for `penstock attach`, or the blob, as sha256:...
    #[arg(value_name = "REFERENCE|DIGEST", value_parser = NonEmptyStringValueParser::new())]
    pub what: String,
    /// Which image of a multi-platform index, as os/architecture[/variant] [default: the agent's]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub platform: Option<String>,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// `penstock cache clear`.
#[derive(Debug, Args)]
pub struct Clear {
    /// Also what attached images use
    #[arg(long)]
    pub force: bool,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// `penstock cache verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Fetch what is damaged again at once
    #[arg(long)]
    pub repair: bool,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// Runs the command.
pub(super) async fn run(args: Cache) -> Result<(), Failure> {
    match args.what {
        None => usage(&args.connection).await,
        Some(What::Usage(args)) => usage(&args.connection).await,
        Some(What::Evict(args)) => evict(args).await,
        Some(What::Clear(args)) => {
            let clearing =
                with_progress("clearing the cache", args.connection.client()?.clear_cache(args.force)).await?;
            Ok(output::answer(args.connection.output, &clearing, freed)?)
        }
        Some(What::Verify(args)) => verify(&args).await,
    }
}

async fn usage(connection: &Connection) -> Result<(), Failure> {
    let usage = with_progress("asking the agent", connection.client()?.cache()).await?;
    Ok(output::answer(connection.output, &usage, render::cache)?)
}

async fn evict(args: Evict) -> Result<(), Failure> {
    let digest: Option<Digest> = args.what.parse().ok();
    let what = EvictCache { reference: digest.is_none().then(|| args.what.clone()), digest, platform: args.platform };
    let going = args.connection.client()?;
    let gone = with_progress(&format!("evicting {}", args.what), going.evict_cache(&what)).await?;
    output::answer(args.connection.output, &gone, freed)?;
    if gone.freed.is_empty() && !gone.kept.is_empty() { Err(Failure::NothingFreed) } else { Ok(()) }
}

async fn verify(args: &Verify) -> Result<(), Failure> {
    let found = with_progress("reading the cache again", args.connection.client()?.verify_cache(args.repair)).await?;
    output::answer(args.connection.output, &found, verified)?;
    let damaged = found.corrupt_chunks + found.mismatched_blobs;
    if damaged > 0 { Err(Failure::Damaged { unrepaired: found.not_repaired_ranges }) } else { Ok(()) }
}

/// What went and what stayed.
fn freed(freed: &CacheFreed) -> String {
    let mut table = Table::facts();
    table.fact("freed", format_args!("{} of {} blobs", size(freed.freed_bytes), freed.freed.len()));
    for kept in &freed.kept {
        table.fact("kept", &kept.reason);
    }
    table.to_string()
}

/// What was found.
fn verified(found: &CacheVerified) -> String {
    let mut facts = Table::facts();
    facts.fact("read", format_args!("{}: {} chunks of {} blobs", size(found.bytes), found.chunks, found.blobs));
    facts.fact("damaged", format_args!("{} chunks, {} whole blobs", found.corrupt_chunks, found.mismatched_blobs));
    if found.repaired_ranges + found.not_repaired_ranges > 0 {
        facts.fact(
            "repaired",
            format_args!("{} of {} places", found.repaired_ranges, found.repaired_ranges + found.not_repaired_ranges),
        );
    }
    facts.to_string()
}
