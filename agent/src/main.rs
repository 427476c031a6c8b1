//! The `penstock` command: dispatch, and nothing else.

use std::process::ExitCode;

use penstock_agent::{
    cli::{self, Command, Exit},
    containerd, convert, demo, doctor, index, keep, output, run, supervise,
};

fn main() -> ExitCode {
    let outcome: anyhow::Result<()> = match cli::parse() {
        Err(code) => return code,
        Ok(Command::Client(command)) => return cli::run(command),
        Ok(Command::Containerd(args)) => return containerd::run(&args),
        Ok(Command::Doctor(args)) => return doctor::run(&args),
        Ok(Command::Agent(args)) => run::agent(&args).map_err(Into::into),
        Ok(Command::Supervise(args)) => supervise::supervise(&args).map_err(Into::into),
        Ok(Command::Keep(args)) => keep::keep(&args).map_err(Into::into),
        Ok(Command::Index(args)) => index::run(&args).map_err(Into::into),
        Ok(Command::Convert(args)) => convert::run(&args).map_err(Into::into),
        Ok(Command::Demo(args)) => demo::run(&args).map_err(Into::into),
    };
    match outcome {
        Ok(()) => Exit::Done.into(),
        Err(error) => {
            output::error(format_args!("{error:#}"));
            Exit::Failed.into()
        }
    }
}
