//! `proctor hold`: nothing is mailed and nothing is done for a time, or while a command runs.

use std::error::Error;
use std::process::ExitStatus;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::process::Command as Program;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, complain, control, duration};
use crate::app::Source;
use crate::web::control::{Command, millis};

/// How often the running Proctor is told that the command still runs.
const RENEW_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(subcommand_precedence_over_arg = true, arg_required_else_help = true)]
pub(super) struct Hold {
    /// For how long, such as 15m
    #[arg(value_parser = duration, value_name = "DURATION")]
    length: Option<Duration>,
    /// Why
    #[arg(long, default_value = "")]
    reason: String,
    #[command(subcommand)]
    command: Option<HoldCommand>,
}

#[derive(Debug, Subcommand)]
enum HoldCommand {
    /// Holds while a command runs and two minutes more, at most 2h; what is still broken then is mailed at once
    #[command(after_help = "Example: proctor hold run -- make new-code

Its exit code is the command's. Where Proctor does not run the command runs all the same.")]
    Run {
        /// The command; its exit code becomes this one's
        #[arg(last = true, required = true, value_name = "COMMAND")]
        argv: Vec<String>,
    },
    /// Shows what is held
    #[command(after_help = "Example: proctor hold list")]
    List,
    /// Ends a hold, or all of them
    #[command(after_help = "Examples: proctor hold end; proctor hold end 7ae4f8ad")]
    End {
        /// Which, as `proctor hold list` shows it
        id: Option<String>,
    },
}

pub(super) fn run(source: &Source, hold: Hold) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    match (hold.command, hold.length) {
        (Some(HoldCommand::Run { argv }), _) => super::block_on(run_held(source, &argv))?,
        (Some(HoldCommand::List), _) => control::send(source, Command::HoldList {}),
        (Some(HoldCommand::End { id }), _) => control::send(source, Command::HoldEnd { id }),
        (None, Some(length)) => control::send(source, Command::Hold { for_ms: millis(length), reason: hold.reason }),
        (None, None) => Err("name a duration such as 15m, or run, list or end".into()),
    }
}

/// Runs the command whatever Proctor says: a deploy must not fail because nobody watches it.
async fn run_held(source: &Source, argv: &[String]) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    let (program, arguments) = argv.split_first().ok_or("name a command after --")?;
    let asked = control::ask(source, &Command::HoldRun { command: argv.join(" ") }).await;
    let id = match asked {
        Ok(Ok(reply)) => reply.id,
        Ok(Err(why)) => {
            complain(&format!("proctor: not held ({why}); the command runs all the same"));
            None
        }
        Err(error) => {
            complain(&format!("proctor: not held ({error}); the command runs all the same"));
            None
        }
    };
    // Ctrl-C is for the command; this process stays to end the hold.
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut child = Program::new(program).args(arguments).spawn().map_err(|error| format!("cannot run {program}: {error}"));
    let ended: Result<ExitStatus, String> = match &mut child {
        Ok(child) => loop {
            tokio::select! {
                ended = child.wait() => break ended.map_err(|error| error.to_string()),
                _ = interrupts.recv() => {}
                () = tokio::time::sleep(RENEW_EVERY) => {
                    if let Some(id) = &id && let Ok(Err(why)) = control::ask(source, &Command::HoldRenew { id: id.clone() }).await {
                        complain(&format!("proctor: the hold was not renewed: {why}"));
                    }
                }
            }
        },
        Err(why) => Err(why.clone()),
    };
    if let Some(id) = id {
        match control::ask(source, &Command::HoldEnd { id: Some(id) }).await {
            Ok(Ok(reply)) => complain(&format!("proctor: {}", reply.text)),
            Ok(Err(why)) => complain(&format!("proctor: {why}")),
            Err(error) => complain(&format!("proctor: {error}")),
        }
    }
    Ok(Exit::of(ended?))
}
