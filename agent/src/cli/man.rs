//! `penstock man`: the manual pages, made from the command line as it is. Packages write them with `--dir`.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::{Args, ValueHint};
use clap_mangen::Man as Page;

use super::{Failure, command};
use crate::output;

/// Examples of `penstock man`.
pub(super) const HELP: &str = "\
Examples:
  penstock man | man -l -
  penstock man --dir /usr/local/share/man/man1";

/// `penstock man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Write a page for each command into this directory instead, which must exist
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
}

/// Prints the page of the whole, or writes all pages.
pub(super) fn run(args: &Man) -> Result<(), Failure> {
    match &args.dir {
        None => Ok(output::print(&page()?)?),
        Some(dir) => write(dir).map_err(|reason| Failure::ManualPages { dir: dir.clone(), reason }),
    }
}

/// penstock(1), as roff.
fn page() -> io::Result<String> {
    let mut text = Vec::new();
    Page::new(command()).render(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// penstock.1 and one page for each command, named as in `penstock-cache-evict.1`.
fn write(dir: &Path) -> io::Result<()> {
    clap_mangen::generate_to(command().disable_help_subcommand(true), dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_section_for_each_part_and_names_every_command() {
        let text = page().unwrap();
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "SUBCOMMANDS"] {
            assert!(text.contains(&format!("\n.SH {section}\n")), "{section}: {text}");
        }
        for one in command().get_subcommands() {
            assert!(text.contains(&format!("penstock\\-{}(1)", one.get_name().replace('-', "\\-"))), "{one:?}");
        }
    }

    #[test]
    fn every_command_has_a_page_with_its_examples() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        for one in command().get_subcommands() {
            let path = dir.path().join(format!("penstock-{}.1", one.get_name()));
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains("Examples:") && text.contains(".SH SYNOPSIS"), "{}: {text}", path.display());
        }
        assert!(dir.path().join("penstock-cache-evict.1").exists());
        assert!(!dir.path().join("penstock-help.1").exists());
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let args = Man { dir: Some(PathBuf::from("/nonexistent/man1")) };
        let failure = run(&args).unwrap_err();
        assert!(failure.to_string().contains("/nonexistent/man1"), "{failure}");
    }
}
