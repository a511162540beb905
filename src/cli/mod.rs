//! The command line: one file per command.

mod check;
mod config;
mod control;
mod serve;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::app::{DEFAULT_CONFIG, Source};

/// Asks every service of a Django site whether it really works, tells Prometheus, mails ADMINS, repairs what it may.
#[derive(Debug, Parser)]
#[command(
    name = "proctor",
    version,
    max_term_width = 100,
    after_help = "Without a configuration Proctor watches what it finds on this host, by looking only.\nExit codes: 0 all well, 1 a target failed or a file has mistakes, 2 could not run."
)]
pub struct Cli {
    /// The configuration; the default is /etc/proctor/proctor.yml where that exists
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watches the site until it is told to stop
    Serve,
    /// Asks every probe once and says what is wrong now; needs no daemon, no state, no root
    Check,
    /// Looks at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Loads the configuration of the running Proctor anew, all or nothing
    Reload,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Says every mistake of a file, each with its place; binds and connects to nothing
    Check {
        /// The file; the default is the one of --config
        file: Option<PathBuf>,
    },
}

/// How a command ended, as an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All is well.
    Well = 0,
    /// A target failed, or a file has mistakes.
    Failed = 1,
    /// It could not run.
    CouldNotRun = 2,
}

/// Runs a command to its end.
///
/// # Errors
/// What stands in the way of running at all; exit code 2.
pub fn run(cli: Cli) -> Result<Exit, Box<dyn std::error::Error + Send + Sync>> {
    let source = source(cli.config.as_deref());
    match cli.command {
        Command::Serve => serve::run(source),
        Command::Check => check::run(&source),
        Command::Config(ConfigCommand::Check { file }) => Ok(config::check(&file.map_or(source, Source::File))),
        Command::Reload => control::send(&source, crate::web::control::Command::Reload {}),
    }
}

fn source(named: Option<&Path>) -> Source {
    let default = Path::new(DEFAULT_CONFIG);
    match named {
        Some(path) => Source::File(path.to_owned()),
        None if default.exists() => Source::File(default.to_owned()),
        None => Source::Host,
    }
}

/// Builds the runtime: two workers are plenty, and each thread costs memory.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(16).enable_all().build()
}
