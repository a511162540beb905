//! Restarts, starts or reloads a unit of systemd, and waits for the end of the job.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Action, Done, Facts, Occasion, line};
use crate::client::net::chain;
use crate::client::systemd::{CALL, Systemd, SystemdError, UnitName, UnitState, Verb};

crate::config_struct! {
    /// Acts on a unit over D-Bus. A polkit rule must allow the user of Proctor exactly this verb on exactly this unit.
    pub struct SystemdConfig {
        /// The unit.
        unit: UnitName,
        /// What is done: `restart`, `start` (also for a oneshot unit that does the repair), `reload`, `reset-failed`.
        verb: Verb = "restart",
        /// How long the job may take; systemd's own `TimeoutStartSec` and `TimeoutStopSec` are 90 s each by default.
        timeout: Duration = "2m",
    }
}

/// A unit of the configuration.
#[derive(Clone, Debug)]
pub struct Unit {
    config: SystemdConfig,
    systemd: Arc<Systemd>,
}

impl Unit {
    /// Takes the configuration.
    pub fn new(config: &SystemdConfig, systemd: Arc<Systemd>) -> Self {
        Self { config: config.clone(), systemd }
    }

    async fn look(&self) -> Facts {
        let name = &self.config.unit.0;
        let state = match self.systemd.unit(name).await {
            Ok(state) => state,
            Err(error) => return Facts { lines: vec![line(&chain(&error))], ..Facts::default() },
        };
        let changed_at = match state.active.as_str() {
            "active" | "reloading" => state.active_since,
            // A stop in good order: somebody may be at work. A failure is nobody's work.
            "inactive" if state.result == "success" => state.inactive_since,
            _ => None,
        };
        let busy = match state.active.as_str() {
            _ if state.has_job => Some("systemd has a job for it already".to_owned()),
            "deactivating" => Some("it is being stopped".to_owned()),
            "activating" => Some(format!("it is being started ({})", state.sub)),
            _ => None,
        };
        let starts = self.systemd.recent_starts().await.unwrap_or_default();
        Facts {
            lines: vec![line(&format!("{name} {state}"))],
            changed_at,
            starts: starts.into_iter().filter(|(unit, _)| unit != name).map(|(_, at)| at).collect(),
            busy,
            hands_off: None,
        }
    }

    async fn act(&self) -> Result<String, String> {
        let (verb, name) = (self.config.verb, &self.config.unit.0);
        let before = self.systemd.unit(name).await.map_err(|error| chain(&error))?;
        match before.load.as_str() {
            "not-found" => return Err(chain(&SystemdError::Missing(name.clone()))),
            "masked" => return Err(chain(&SystemdError::Masked(name.clone()))),
            _ => {}
        }
        let result = match self.systemd.act(verb, name, self.config.timeout).await {
            // systemd keeps no unit in memory that neither runs nor failed: then there is nothing to reset.
            Err(SystemdError::Missing(_)) if verb == Verb::ResetFailed => "done".to_owned(),
            result => result.map_err(|error| chain(&error))?,
        };
        let after = self.systemd.unit(name).await.unwrap_or_default();
        if result != "done" {
            let hint = match after.result.as_str() {
                "start-limit-hit" => format!(": it was started too often; `systemctl reset-failed {name}` allows another start"),
                _ => format!(": see `journalctl -u {name}`"),
            };
            return Err(format!("the job to {verb} {name} ended as {result:?}; it is {after}{hint}"));
        }
        self.stands(&after)?;
        let before = if before.active == "active" { String::new() } else { format!(", before it was {before}") };
        Ok(format!("the job to {verb} {name} is done, it is {after}{before}"))
    }

    fn stands(&self, state: &UnitState) -> Result<(), String> {
        let (verb, name) = (self.config.verb, &self.config.unit.0);
        // A oneshot unit that did its work is inactive.
        let well = state.active == "active" || (state.kind == "oneshot" && state.active != "failed") || verb == Verb::ResetFailed;
        if well { Ok(()) } else { Err(format!("{name} did not stay up: it is {state}; see `journalctl -u {name}`")) }
    }
}

impl Action for Unit {
    fn facts(&self) -> BoxFuture<'_, Facts> {
        self.look().boxed()
    }

    fn act<'a>(&'a self, _: &'a Occasion) -> BoxFuture<'a, Done> {
        async { Done::quiet(self.act().await.map_err(|why| line(&why))) }.boxed()
    }

    fn settled(&self) -> BoxFuture<'_, Result<(), String>> {
        async {
            let state = self.systemd.unit(&self.config.unit.0).await.map_err(|error| line(&chain(&error)))?;
            self.stands(&state)
        }
        .boxed()
    }

    fn deadline(&self) -> Duration {
        CALL * 3 + self.config.timeout
    }
}
