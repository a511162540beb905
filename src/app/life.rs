//! What Proctor says about its own life: to systemd, and to the outside.

use std::sync::PoisonError;

use super::health::Health;
use super::{App, Loaded, heartbeat_out};
use crate::config::Config;
use crate::model::AlertState;
use crate::tasks::{self, Pulse, Tasks};

/// Says which changes of a configuration a reload does not take: what is open stays open.
pub(super) fn say_what_waits_for_a_restart(old: &Config, new: &Config) {
    let keys = [
        ("web.listen", old.web.listen != new.web.listen),
        ("control.socket", old.control.socket != new.control.socket),
        ("state.path", old.state.path != new.state.path),
    ];
    for (key, _) in keys.iter().filter(|(_, changed)| *changed) {
        tracing::warn!("{key} has changed: that is taken at the next start, all else now");
    }
}

impl App {
    /// Watches over the loops of a configuration, and starts the heartbeat to the outside where one is configured.
    pub(super) fn start_life(&self, loaded: &Loaded, pulses: Vec<Pulse>, scoped: &Tasks) {
        let health = Health {
            started_at: tasks::now(),
            pulses,
            tasks: [self.tasks.clone(), scoped.clone()],
            snapshot: self.snapshot.clone(),
            store: self.store.clone(),
            outbox: self.outbox.clone(),
        };
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = Some(health.clone());
        if let Some(config) = &loaded.config.heartbeat_out {
            let calling = heartbeat_out::keep_calling(config.value.clone(), health, self.metrics.clone());
            scoped.spawn_until_stopped("heartbeat out", calling);
        }
    }

    /// Says whether the process does its work: its loops come round and none of its tasks died. Where not, a restart
    /// mends it. A dead mail server or a full disk is no such thing.
    ///
    /// # Errors
    /// What does not work.
    pub fn alive(&self) -> Result<(), String> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(Ok(()), |health| health.alive(tasks::now()))
    }

    /// Returns one sentence about the site and Proctor itself, for `systemctl status`.
    pub fn status_line(&self) -> String {
        let all = self.snapshot.all();
        let failing = all.iter().filter(|latest| latest.is_failing()).count();
        let waiting = all.iter().filter(|latest| latest.result.is_none()).count();
        let firing = self.alerts.all().iter().filter(|alert| alert.state == AlertState::Firing).count();
        let mut line = format!("Watching {} targets: {} well, {failing} failing", all.len(), all.len() - failing - waiting);
        let mut add = |count: usize, text: &str| {
            if count > 0 {
                line += &format!(", {count} {text}");
            }
        };
        add(waiting, "not asked yet");
        add(firing, "alerts firing");
        add(self.outbox.depth(), "mails waiting");
        if self.store.degraded().is_some() {
            line += "; the state cannot be written";
        }
        if self.metrics.config_reload_ok.get() == 0 {
            line += "; the new configuration was refused, the old one is in force";
        }
        line + "."
    }
}
