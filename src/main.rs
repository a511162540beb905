//! Parses, calls `cli`, maps to an exit code; nothing else.

use std::process::ExitCode;

use clap::Parser;
use proctor::cli::{self, Cli, Exit};

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => {
            // Through anyhow for its way to print a chain of causes.
            cli::complain(&format!("proctor: {:#}", anyhow::Error::from_boxed(error)));
            ExitCode::from(Exit::CouldNotRun.code())
        }
    }
}
