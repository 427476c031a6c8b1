//! `penstock credentials`: what is typed, what is asked, what is shown.

use std::{
    io::{self, Read},
    path::PathBuf,
};

use clap::{ArgGroup, Args, Subcommand, ValueHint, builder::NonEmptyStringValueParser};
use penstock_api::{Credentials as Report, HandOver, SecretText, Timestamp};

use super::{Connection, Failure, Show, render::moment};
use crate::{
    config::value,
    output::{self, Table, with_progress},
};

pub(super) const HELP: &str = "\
The secret is read from standard input or a file: others can see the command line.

Examples:
  penstock credentials list
  penstock credentials set registry.example.com/team --username robot --from-file /run/robot
  penstock credentials set registry.example.com --registry-token --expires-in 1h
  penstock credentials remove registry.example.com/team";

/// Largest secret read, in bytes: as large as an agent takes.
const SECRET_BYTES: u64 = 16 << 10;

/// `penstock credentials`.
#[derive(Debug, Args)]
pub struct Credentials {
    /// What to do with them.
    #[command(subcommand)]
    pub command: CredentialsCommand,
}

/// What can be done with credentials.
#[derive(Debug, Subcommand)]
pub enum CredentialsCommand {
    /// List who has credentials, what was handed over, and what is in use; no secret is shown
    #[command(visible_alias = "ls")]
    List(Show),
    /// Hand credentials over to the agent: they are used at once
    Set(Set),
    /// Forget credentials that were handed over
    #[command(visible_alias = "rm")]
    Remove(Remove),
}

/// `penstock credentials set`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("kind").required(true).args(["username", "identity_token", "registry_token"])))]
pub struct Set {
    /// The registry, or a path of repositories in it
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub scope: String,
    /// The user's name; the secret is the password
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub username: Option<String>,
    /// The secret is an OAuth2 refresh token
    #[arg(long)]
    pub identity_token: bool,
    /// The secret is a token that the registry itself takes
    #[arg(long)]
    pub registry_token: bool,
    /// File that holds the secret [default: standard input]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub from_file: Option<PathBuf>,
    /// How long the credentials are good, such as 12h [default: until removed]
    #[arg(long, value_name = "DURATION")]
    pub expires_in: Option<String>,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// `penstock credentials remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// The scope, as `penstock credentials list` names it
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub scope: String,
    /// Which agent.
    #[command(flatten)]
    pub connection: Connection,
}

/// Why there is nothing to hand over.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The secret cannot be read.
    #[error("cannot read the secret from {from}: {reason}; name a file with --from-file, or pipe it in")]
    Read {
        /// The file, or standard input.
        from: String,
        /// Why not.
        reason: String,
    },
    /// The duration is none.
    #[error("--expires-in: {0}")]
    Expiry(String),
}

/// Runs the command.
pub(super) async fn execute(credentials: Credentials) -> Result<(), Failure> {
    match credentials.command {
        CredentialsCommand::List(args) => {
            let report = with_progress("asking the agent", args.connection.client()?.credentials()).await?;
            Ok(output::answer(args.connection.output, &report, report_text)?)
        }
        CredentialsCommand::Set(args) => {
            let (client, format) = (args.connection.client()?, args.connection.output);
            let request = args.request()?;
            with_progress("asking the agent", client.hand_over(&request)).await?;
            let done = Done { scope: request.scope, done: "credentials are in use" };
            Ok(output::answer(format, &done, Done::text)?)
        }
        CredentialsCommand::Remove(args) => {
            with_progress("asking the agent", args.connection.client()?.withdraw(&args.scope)).await?;
            let done = Done { scope: args.scope, done: "credentials are forgotten" };
            Ok(output::answer(args.connection.output, &done, Done::text)?)
        }
    }
}

#[derive(serde::Serialize)]
struct Done {
    scope: String,
    done: &'static str,
}

impl Done {
    fn text(&self) -> String {
        format!("{}: {}\n", output::escape(&self.scope), self.done)
    }
}

impl Set {
    fn request(self) -> Result<HandOver, Failure> {
        let expires_at = self.expires_in.as_deref().map(expiry).transpose()?;
        let secret = SecretText::new(self.secret()?);
        let is_password = self.username.is_some();
        let mut request = HandOver {
            scope: self.scope,
            username: self.username,
            password: None,
            identity_token: None,
            registry_token: None,
            expires_at,
        };
        let field = match (is_password, self.identity_token) {
            (true, _) => &mut request.password,
            (false, true) => &mut request.identity_token,
            (false, false) => &mut request.registry_token,
        };
        *field = Some(secret);
        Ok(request)
    }

    /// The secret without the line break that ends it.
    fn secret(&self) -> Result<String, InputError> {
        let from =
            self.from_file.as_ref().map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
        let mut text = String::new();
        let read = match &self.from_file {
            Some(path) => {
                std::fs::File::open(path).and_then(|file| file.take(SECRET_BYTES + 1).read_to_string(&mut text))
            }
            None => io::stdin().take(SECRET_BYTES + 1).read_to_string(&mut text),
        };
        let refused = |reason: &str| InputError::Read { from: from.clone(), reason: reason.to_owned() };
        read.map_err(|error| refused(&error.to_string()))?;
        if text.len() as u64 > SECRET_BYTES {
            return Err(refused("it has more than 16 KiB"));
        }
        let secret = text.trim_end_matches(['\r', '\n']);
        if secret.is_empty() {
            return Err(refused("it is empty"));
        }
        Ok(secret.to_owned())
    }
}

fn expiry(text: &str) -> Result<Timestamp, InputError> {
    let lifetime = value::duration(text).map_err(InputError::Expiry)?;
    let seconds = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(Timestamp::now().as_second().saturating_add(seconds))
        .map_err(|_| InputError::Expiry(format!("{text:?} is longer than any credentials are good")))
}

/// Who has credentials, what was handed over, what is in use.
pub(super) fn report_text(report: &Report) -> String {
    let mut providers = Table::new(&["PROVIDER", "PATH", "PROBLEM"]);
    for state in &report.providers {
        let path = state.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        providers.row([state.provider.clone(), path, state.problem.clone().unwrap_or_default()]);
    }
    let mut text = providers.to_string();
    if !report.handed_over.is_empty() {
        let mut table = Table::new(&["HANDED OVER FOR", "KIND", "EXPIRES"]);
        for held in &report.handed_over {
            table.row([held.scope.clone(), held.kind.clone(), held.expires_at.map(moment).unwrap_or_default()]);
        }
        text.push_str(&format!("\n{table}"));
        if let Some(reason) = &report.kept_reason {
            text.push_str(&format!("these are gone when the agent restarts: {}\n", output::escape(reason)));
        }
    }
    if !report.in_use.is_empty() {
        let mut table = Table::new(&["IN USE FOR", "PROVIDER", "EXPIRES", "REFUSED"]);
        for scope in &report.in_use {
            let refused: Vec<String> = scope
                .refused
                .iter()
                .map(|refusal| format!("{} at {}: {}", refusal.provider, moment(refusal.at), refusal.reason))
                .collect();
            table.row([
                scope.scope.clone(),
                scope.provider.clone().unwrap_or_default(),
                scope.expires_at.map(moment).unwrap_or_default(),
                refused.join("; "),
            ]);
        }
        text.push_str(&format!("\n{table}"));
    }
    text
}
