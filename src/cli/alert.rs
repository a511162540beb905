//! `proctor alert list` and `proctor action list|pause|resume`: what fires, and what is done about it.

use std::error::Error;

use clap::Subcommand;

use super::{Exit, control};
use crate::app::Source;
use crate::web::control::Command;

#[derive(Debug, Subcommand)]
pub(super) enum Alert {
    /// Shows what is pending and firing, the worst first, and whether it was mailed or why not
    List,
}

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Shows the actions, what they wait for, and what they did lately
    List,
    /// Stops all actions until `proctor action resume`, over restarts too; what is under way is not stopped
    Pause,
    /// Lets actions run again
    Resume,
}

pub(super) fn alert(source: &Source, Alert::List: &Alert) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    control::send(source, Command::AlertList {})
}

pub(super) fn action(source: &Source, command: &Action) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    control::send(
        source,
        match command {
            Action::List => Command::ActionList {},
            Action::Pause => Command::ActionPause {},
            Action::Resume => Command::ActionResume {},
        },
    )
}
