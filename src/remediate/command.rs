//! Runs a program of the configuration, and tells it of the alert.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Action, Done, Occasion};
use crate::client::program::{self, Argv, Ending, Program};
use crate::model::duration::{print, print_measured};
use crate::model::one_line;

/// The longest value of a variable, in characters.
const MAX_VALUE: usize = 200;

crate::config_struct! {
    /// Runs a program, with `/` as its folder and an environment of `PATH`, `LANG` and `PROCTOR_ALERTNAME`,
    /// `PROCTOR_PROBE`, `PROCTOR_TARGET`, `PROCTOR_EPISODE`. What it leaves running must close its output.
    pub struct CommandConfig {
        /// The absolute path of the program and its arguments; no shell reads them, nothing in them is replaced.
        argv: Argv,
        /// How long it may run. Then it gets SIGTERM, and SIGKILL 5 s later, with all its children.
        timeout: Duration = "60s",
    }
}

/// A program of the configuration.
#[derive(Clone, Debug)]
pub struct Command(CommandConfig);

impl Command {
    /// Takes the configuration.
    pub fn new(config: &CommandConfig) -> Self {
        Self(config.clone())
    }
}

impl Action for Command {
    fn act<'a>(&'a self, occasion: &'a Occasion) -> BoxFuture<'a, Done> {
        run(&self.0, occasion).boxed()
    }

    fn deadline(&self) -> Duration {
        self.0.timeout + program::MARGIN
    }
}

async fn run(config: &CommandConfig, occasion: &Occasion) -> Done {
    let path = &config.argv.0[0];
    let environment = environment(occasion).to_vec();
    let ran =
        program::run(&Program { argv: &config.argv, environment, timeout: config.timeout, leaves: true, folder: None, user: None }).await;
    let (last, took) = (ran.last_line(), print_measured(ran.took));
    let result = match ran.ending {
        Ending::NotStarted(why) => Err(why),
        Ending::Killed => Err(format!("{path} did not end within {} and was killed{last}", print(config.timeout))),
        Ending::Ended(status) if status.success() => Ok(format!("{path} ended well after {took}")),
        Ending::Ended(status) => Err(format!("{path} ended with {} after {took}{last}", program::status_text(status))),
        Ending::Hangs => Err(format!("{path} cannot be killed: it hangs in the kernel")),
    };
    Done { result, output: ran.output }
}

/// Returns what a program is told of the alert. A value can do no harm but in a program that makes code of it: control
/// characters (of which NUL could not be passed on) become spaces, and it is bounded.
fn environment(occasion: &Occasion) -> [(&'static str, String); 4] {
    let clean = |value: &str| one_line(value, MAX_VALUE);
    [
        ("PROCTOR_ALERTNAME", clean(occasion.alert.name())),
        ("PROCTOR_PROBE", clean(occasion.alert.probe().unwrap_or(""))),
        ("PROCTOR_TARGET", clean(occasion.alert.labels.get("target").unwrap_or(""))),
        ("PROCTOR_EPISODE", clean(&occasion.alert.episode())),
    ]
}
