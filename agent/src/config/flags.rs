//! The flags of `penstock agent`: one for each key, made from the same table.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command};

use super::{KEYS, Key};

/// What the command line says about the config.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// The config file, when named.
    pub config: Option<PathBuf>,
    /// Values of keys, in no order: each key at most once.
    pub values: Vec<(&'static Key, String)>,
}

impl clap::Args for Flags {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .help(format!("config file, which must then exist [default: {} if it exists]", super::DEFAULT_FILE))
            .value_parser(clap::value_parser!(PathBuf));
        KEYS.iter().fold(command.arg(config), |command, key| {
            command.arg(Arg::new(key.flag()).long(key.flag()).value_name("VALUE").help(key.what))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.config = matches.get_one::<PathBuf>("config").cloned();
        self.values = KEYS
            .iter()
            .filter_map(|key| Some((key, matches.try_get_one::<String>(&key.flag()).ok().flatten()?.clone())))
            .collect();
        Ok(())
    }
}

/// A path of a flag as the shell's user means it: from the directory the command was typed in.
pub(super) fn from_working_directory(text: &str) -> String {
    std::path::absolute(text).ok().and_then(|path| path.to_str().map(str::to_owned)).unwrap_or_else(|| text.to_owned())
}
