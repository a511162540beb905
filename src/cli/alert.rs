//! `proctor alert list|show|ack`, `proctor explain` and `proctor action list|pause|resume`: what fires, why it was or was not
//! mailed, and what is done about it.

use std::error::Error;

use clap::{Args, Subcommand};

use super::{Exit, control};
use crate::app::Source;
use crate::web::control::Command;

#[derive(Debug, Subcommand)]
pub(super) enum Alert {
    /// Shows what is pending and firing, the worst first, and whether it was mailed or why not
    #[command(after_help = "Example: proctor alert list")]
    List,
    /// Shows all that is known of an alert: labels, texts, evidence, what was done
    #[command(after_help = "Example: proctor alert show MemcachedDown probe=cache")]
    Show(Which),
    /// Says that somebody takes care of it: no reminder, no repair while it lasts; its end is mailed
    #[command(after_help = "Example: proctor alert ack MemcachedDown probe=cache --comment 'new machine comes at 9'")]
    Ack {
        #[command(flatten)]
        which: Which,
        /// What others should know
        #[arg(long, default_value = "")]
        comment: String,
    },
}

/// Which alerts.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The name of the alert, and matchers where there are several: MemcachedDown probe=cache
    #[arg(required = true, value_name = "ALERT|MATCHER")]
    which: Vec<String>,
}

impl Which {
    /// Returns matchers; a word that is none is the name of an alert.
    fn matchers(&self) -> Vec<String> {
        let matcher = |word: &String| if word.contains('=') || word.contains('~') { word.clone() } else { format!("alertname={word}") };
        self.which.iter().map(matcher).collect()
    }
}

/// `proctor explain`
#[derive(Debug, Args)]
#[command(after_help = "Example: proctor explain MemcachedDown probe=cache")]
pub(super) struct Explain {
    /// The name of the alert
    alert: String,
    /// Matchers, where there are several of that name: probe=cache
    #[arg(value_name = "MATCHER")]
    matchers: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Shows the actions, what they wait for, and what they did lately
    #[command(after_help = "Example: proctor action list")]
    List,
    /// Stops all actions until `proctor action resume`, over restarts too; what is under way is not stopped
    #[command(after_help = "Example: proctor action pause    # mails go on; `proctor hold 1h` stops both")]
    Pause,
    /// Lets actions run again
    #[command(after_help = "Example: proctor action resume")]
    Resume,
}

pub(super) fn alert(source: &Source, command: Alert) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    control::send(
        source,
        match command {
            Alert::List => Command::AlertList {},
            Alert::Show(which) => Command::AlertShow { matchers: which.matchers() },
            Alert::Ack { which, comment } => Command::AlertAck { matchers: which.matchers(), comment },
        },
    )
}

pub(super) fn explain(source: &Source, Explain { alert, matchers }: Explain) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    control::send(source, Command::Explain { alert, matchers })
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
