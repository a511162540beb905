//! The command line: one file per command.

mod alert;
mod check;
mod config;
mod control;
mod drill;
mod fold;
mod folders;
mod hold;
mod init;
mod mail;
mod render;
mod rights;
mod rules;
mod run;
mod serve;
mod silence;
mod supervised;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::app::{DEFAULT_CONFIG, Source};

/// Asks every service of a Django site whether it really works, tells Prometheus, mails ADMINS, repairs what it may.
#[derive(Debug, Parser)]
#[command(
    name = "proctor",
    version,
    max_term_width = 100,
    after_help = "Examples:
  proctor check                          what is wrong now, without any configuration or daemon
  proctor config check proctor.yml       every mistake of a file, then what happens when
  proctor serve                          watches, until it is told to stop
  proctor explain MemcachedDown          why this was or was not mailed, or repaired
  proctor hold run -- make new-code      quiet while a deploy runs

Without a configuration Proctor watches what it finds on this host, by looking only.
Exit codes: 0 all well, 1 a target failed or a file has mistakes, 2 could not run."
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
    #[command(after_help = "Examples:
  proctor serve                          with /etc/proctor/proctor.yml, else with what it finds on this host
  proctor -c ./proctor.yml serve         with another file
  PROCTOR_LOG=debug proctor serve        says more in its log

SIGHUP and `proctor reload` load the configuration anew; SIGTERM stops it. As a service: proctor render systemd --help")]
    Serve,
    /// Looks at this host and at the Django project, and writes a commented configuration; never over an existing one
    Init(init::Init),
    /// Asks every probe once and says what is wrong now; needs no daemon, no state, no root
    #[command(after_help = "Examples:
  proctor check                          a table, and what is wrong now
  proctor check --only cache --only db   these probes alone
  proctor check --format nagios          for Nagios, Icinga and their kin
  proctor check --format json | jq       for programs

Exit codes: 0 all well, 1 a target failed, 2 could not run or could not see enough; --format nagios: 0 to 3.")]
    Check(check::Check),
    /// Looks at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Looks at rule files, and runs their unit tests; asks nothing and needs no configuration
    #[command(subcommand)]
    Rules(rules::Rules),
    /// Loads the configuration of the running Proctor anew, all or nothing
    #[command(after_help = "Example: proctor config check && proctor reload")]
    Reload,
    /// Asks the running Proctor whether it does its work: for health checks of containers
    #[command(after_help = "Example: HEALTHCHECK CMD [\"proctor\", \"health\"]

Exit codes: 0 it does, whatever the site does; 1 one of its loops does not come round: a restart mends that; 2 nobody answers.")]
    Health,
    /// Says nothing of some alerts for a while
    #[command(subcommand, after_help = "Example: proctor silence add alertname=MemcachedDown --for 2h --comment 'new machine'")]
    Silence(silence::Silence),
    /// Says and does nothing for a while: `proctor hold 15m`, `proctor hold run -- make new-code`
    #[command(after_help = "Examples:
  proctor hold 15m --reason 'moving the rack'
  proctor hold run -- make new-code      as long as it runs, and two minutes more
  proctor hold list
  proctor hold end                       ends all of them

What is broken at the end of a hold is mailed then. Nothing is repaired during a hold.")]
    Hold(hold::Hold),
    /// Runs a job and reports it to its heartbeat: `proctor run backup -- /usr/local/bin/backup`
    #[command(after_help = "Examples, in a crontab:
  10 3 * * *  proctor run backup -- /usr/local/bin/backup
  */5 * * * *  proctor run checks --checks -- /coursys/manage.py check_things

The job runs whether or not Proctor takes the report. docs/probes/heartbeat.md")]
    Run(run::Run),
    /// Creates a file in each folder, as whoever runs this, removes it, and prints what came of it for `proctor run --checks`
    #[command(after_help = "Example: proctor run uploads --checks -- proctor try-folders /data/submissions

As a timer of the site's own user: proctor render uploads --help")]
    TryFolders(folders::TryFolders),
    /// Looks at the alerts, and acknowledges them
    #[command(subcommand)]
    Alert(alert::Alert),
    /// Says step by step why an alert was or was not mailed, and was or was not repaired
    Explain(alert::Explain),
    /// Looks at the actions, stops them and lets them run again
    #[command(subcommand)]
    Action(alert::Action),
    /// Walks an invented alert through rule, group, mail and repair, and shows each step; nothing is sent or done
    Drill(drill::Drill),
    /// Writes what the host must allow, from the configuration
    #[command(subcommand)]
    Render(render::Render),
    /// Tries the way of the mails
    #[command(subcommand)]
    Mail(mail::Mail),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Says every mistake of a file, each with its place, then what happens when once a probe fails; connects to nothing
    #[command(after_help = "Examples:
  proctor config check                   /etc/proctor/proctor.yml
  proctor config check ./proctor.yml && sudo install -m 640 -g proctor proctor.yml /etc/proctor/ && proctor reload")]
    Check {
        /// The file; the default is the one of --config
        file: Option<PathBuf>,
    },
}

/// Reads a duration of the command line.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    crate::model::duration::parse(text).map_err(|error| error.to_string())
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All is well: 0.
    Well,
    /// A target failed, or a file has mistakes: 1.
    Failed,
    /// It could not run: 2.
    CouldNotRun,
    /// The exit code of a command that was run.
    Of(u8),
}

impl Exit {
    /// Returns the exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Well => 0,
            Self::Failed => 1,
            Self::CouldNotRun => 2,
            Self::Of(code) => code,
        }
    }

    /// Hands on how a command ended; one that a signal ended is 128 plus the signal, as a shell says it.
    fn of(status: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        code.and_then(|code| u8::try_from(code).ok()).map_or(Self::Failed, Self::Of)
    }
}

/// Runs a command to its end.
///
/// # Errors
/// What stands in the way of running at all; exit code 2.
pub fn run(cli: Cli) -> Result<Exit, Box<dyn std::error::Error + Send + Sync>> {
    let source = source(cli.config.as_deref());
    match cli.command {
        Command::Serve => serve::run(source),
        Command::Init(init) => init::run(cli.config.as_deref(), &init),
        Command::Check(check) => check::run(&source, &check),
        Command::Config(ConfigCommand::Check { file }) => Ok(config::check(&file.map_or(source, Source::File))?),
        Command::Rules(command) => Ok(rules::run(&command)?),
        Command::Silence(command) => silence::run(&source, command),
        Command::Hold(hold) => hold::run(&source, hold),
        Command::Run(job) => run::run(&source, job),
        Command::TryFolders(wanted) => folders::run(wanted),
        Command::Alert(command) => alert::alert(&source, command),
        Command::Explain(explain) => alert::explain(&source, explain),
        Command::Action(command) => alert::action(&source, &command),
        Command::Drill(drill) => drill::run(&source, &drill),
        Command::Mail(command) => mail::run(&source, &command),
        Command::Render(command) => render::run(&source, &command),
        Command::Reload => control::send(&source, crate::web::control::Command::Reload {}),
        Command::Health => control::send(&source, crate::web::control::Command::Health {}),
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

/// Prints an answer. Whoever closed the other end, as `head` does, wants no more of it.
///
/// # Errors
/// It cannot be written for another reason, such as a full disk: then nobody may believe that all of it was said.
fn say(text: &str) -> io::Result<()> {
    quiet_end(io::stdout().lock().write_all(text.as_bytes()))
}

/// Prints what is no answer. That nobody can read it must end neither a deploy under `proctor hold run` nor anything else.
pub fn complain(text: &str) {
    if let Err(error) = writeln!(io::stderr().lock(), "{text}") {
        tracing::debug!(%error, "nobody reads what is complained about");
    }
}

/// Writes `1 target`, `2 targets`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn quiet_end(written: io::Result<()>) -> io::Result<()> {
    written.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}

/// Runs to the end: two workers are plenty, and each thread costs memory. A name that is still being resolved is not
/// waited for: that call cannot be ended, and a stop must not hang on it.
fn block_on<T>(run: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(16).enable_all().build()?;
    let done = runtime.block_on(run);
    runtime.shutdown_background();
    Ok(done)
}
