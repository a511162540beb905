//! `proctor silence add|list|expire`: says nothing of some alerts for a while, in Alertmanager's matchers.

use std::error::Error;
use std::time::Duration;

use clap::Subcommand;

use super::{Exit, control, duration};
use crate::app::Source;
use crate::web::control::{Command, millis};

#[derive(Debug, Subcommand)]
pub(super) enum Silence {
    /// Says nothing of the alerts that every matcher matches
    #[command(after_help = "Example: proctor silence add alertname=MemcachedDown probe=cache --for 2h --comment 'new machine'")]
    Add {
        /// Matchers as Alertmanager writes them: name=value, name!=value, name=~"a|b", name!~x
        #[arg(required = true, value_name = "MATCHER")]
        matchers: Vec<String>,
        /// For how long
        #[arg(long = "for", value_parser = duration, default_value = "2h", value_name = "DURATION")]
        length: Duration,
        /// Why
        #[arg(long, default_value = "")]
        comment: String,
    },
    /// Shows the silences that are pending or active
    #[command(after_help = "Example: proctor silence list")]
    List,
    /// Ends a silence now
    #[command(after_help = "Example: proctor silence expire 7ae4f8ad")]
    Expire {
        /// Which, as `proctor silence list` shows it
        id: String,
    },
}

pub(super) fn run(source: &Source, command: Silence) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    control::send(
        source,
        match command {
            Silence::Add { matchers, length, comment } => Command::SilenceAdd { matchers, for_ms: millis(length), comment },
            Silence::List => Command::SilenceList {},
            Silence::Expire { id } => Command::SilenceExpire { id },
        },
    )
}
