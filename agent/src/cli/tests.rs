//! What is typed, and what is shown: against golden texts, and against the API's own router over a fake node.

mod credentials;
mod fake;
mod golden;

use std::path::Path;

use clap::Parser as _;
use fake::{Fake, Served};
use penstock_api::NodeError;

use super::*;

fn typed(line: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command)
}

/// Runs a command against `node`; `--socket` is added.
async fn run_against(node: Fake, line: &str) -> Result<(), Failure> {
    let served = Served::new(node);
    let line = format!("{line} --socket {}", served.socket().display());
    let Ok(Command::Client(command)) = typed(&line) else { panic!("{line} is no client's command") };
    super::client::execute(command).await
}

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
}

#[test]
fn every_command_says_what_it_does_and_shows_examples_that_parse() {
    for command in command().get_subcommands() {
        let name = command.get_name();
        assert!(command.get_about().is_some(), "{name} says what it does");
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let (_, examples) = help.split_once("Examples:\n").unwrap_or_else(|| panic!("{name} has no examples"));
        for line in examples.lines() {
            let line = line.split(['|', '>']).next().unwrap_or_default();
            assert!(line.trim_start().starts_with(&format!("penstock {name}")), "{name}: {line}");
            typed(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}

#[test]
fn lines_of_help_fit_a_terminal() {
    for command in command().get_subcommands() {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines() {
            assert!(line.chars().count() <= 96, "{}: {line}", command.get_name());
        }
    }
}

#[test]
fn what_makes_no_command_is_a_usage_error() {
    for line in [
        "penstock",
        "penstock attach",
        "penstock attach a b",
        "penstock attach a --transport nbd",
        "penstock detach",
        "penstock detach d1 --all",
        "penstock detach --force",
        "penstock events --since -1",
        "penstock list --output yaml",
        "penstock completions tcl",
        "penstock eject",
    ] {
        let error = typed(line).expect_err(line);
        assert!(error.use_stderr(), "{line}");
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[tokio::test]
async fn every_command_that_asks_succeeds_against_the_api() {
    for line in [
        "penstock attach registry.example/app:1",
        "penstock attach app --mount /mnt --transport fuse --platform linux/arm64 --output json",
        "penstock detach d1 --force",
        "penstock detach --all --force",
        "penstock list",
        "penstock list -o json",
        "penstock stats",
        "penstock stats d1",
        "penstock cache",
        "penstock cache usage --output json",
        "penstock cache evict registry.example/app:1 --platform linux/arm64",
        "penstock cache clear --force",
        "penstock cache verify -o json",
        "penstock pull app:1",
        "penstock pull app:1 --namespace default --containerd c.sock --platform linux/arm64 --output json",
        "penstock endpoints",
        "penstock endpoints --output json",
        "penstock events --since 1",
        "penstock version",
    ] {
        run_against(Fake::default(), line).await.unwrap_or_else(|failure| panic!("{line}: {failure}"));
    }
}

#[tokio::test]
async fn verify_says_by_its_exit_code_that_something_was_damaged() {
    let failure = run_against(Fake::default(), "penstock cache verify --repair").await.unwrap_err();
    assert_eq!(failure.exit(), Exit::Damage, "{failure}");
}

#[tokio::test]
async fn the_exit_code_tells_kinds_of_failure_apart() {
    let fails = async |error: fn(String) -> NodeError| {
        let node = Fake { failure: Some(error("because".to_owned())) };
        let failure = run_against(node, "penstock attach app").await.unwrap_err();
        assert_eq!(failure.to_string(), "because");
        failure.exit()
    };
    assert_eq!(fails(NodeError::NotFound).await, Exit::NotFound);
    assert_eq!(fails(NodeError::ImageNotFound).await, Exit::NotFound);
    assert_eq!(fails(NodeError::Conflict).await, Exit::Conflict);
    assert_eq!(fails(NodeError::Invalid).await, Exit::Usage);
    assert_eq!(fails(NodeError::Denied).await, Exit::Failed);
    assert_eq!(fails(NodeError::Unsupported).await, Exit::Failed);
    assert_eq!(fails(NodeError::Unavailable).await, Exit::Later);
    assert_eq!(fails(NodeError::Stopping).await, Exit::Later);
    let Err(gone) = run_without_agent("penstock list").await else { panic!("nobody was asked") };
    assert_eq!(gone.exit(), Exit::Unreachable);
    assert_eq!(Exit::Unreachable as u8, 3);
}

#[tokio::test]
async fn a_pull_that_fails_on_its_way_ends_as_any_other_failure() {
    let failing = Fake { failure: Some(NodeError::Unavailable("the registry is away".to_owned())) };
    let failure = run_against(failing, "penstock pull app:1").await.unwrap_err();
    assert_eq!((failure.exit(), failure.to_string().as_str()), (Exit::Later, "the registry is away"));
}

#[tokio::test]
async fn following_ends_when_the_agent_stops_and_says_so() {
    for line in ["penstock events --follow", "penstock events -f --since 8 --output json"] {
        let failure = run_against(Fake::default(), line).await.unwrap_err();
        assert_eq!(failure.exit(), Exit::Later, "{failure}");
        assert!(failure.to_string().contains("the agent stops"), "{failure}");
    }
    let full = Fake { failure: Some(NodeError::Busy("32 others".to_owned())) };
    let failure = run_against(full, "penstock events --follow").await.unwrap_err();
    assert_eq!((failure.exit(), failure.to_string().as_str()), (Exit::Later, "32 others"));
}

#[tokio::test]
async fn the_version_is_shown_without_an_agent() {
    run_without_agent("penstock version").await.unwrap();
}

async fn run_without_agent(line: &str) -> Result<(), Failure> {
    let dir = tempfile::tempdir().unwrap();
    let line = format!("{line} --socket {}", dir.path().join("none").display());
    let Ok(Command::Client(command)) = typed(&line) else { panic!("{line} is no client's command") };
    super::client::execute(command).await
}

#[tokio::test]
async fn devices_that_stay_are_a_failure_of_their_kind() {
    let failure = run_against(Fake::default(), "penstock detach --all").await.unwrap_err();
    assert_eq!(failure.exit(), Exit::Conflict);
    assert_eq!(failure.to_string(), "1 of the devices could not be detached; see above");
}

#[test]
fn a_mount_directory_is_sent_absolute() {
    let here = std::env::current_dir().unwrap();
    assert_eq!(super::client::mount_dir(Path::new("mnt")).unwrap(), here.join("mnt"));
    assert_eq!(super::client::mount_dir(Path::new("/mnt")).unwrap(), Path::new("/mnt"));
    let not_text = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"/m\xff");
    for bad in [Path::new(""), Path::new(not_text)] {
        let failure = super::client::mount_dir(bad).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage, "{failure}");
    }
}

#[test]
fn every_shell_gets_completions_that_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let Ok(Command::Client(command)) = typed(&format!("penstock completions {shell}")) else { panic!("{shell}") };
        let ClientCommand::Completions(args) = command else { panic!("{shell}") };
        let script = super::client::script(&args);
        for word in ["attach", "completions", "socket"] {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
    }
}
