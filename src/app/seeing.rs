//! Looks whether Proctor sees beyond this host, and says so to the rules, the dispatcher and the log.

use std::sync::PoisonError;
use std::time::Duration;

use super::App;
use crate::client::reach::{self, Met};
use crate::tasks;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(1);
/// The alert that says it, whose mail tells why.
const ALERT: &str = "ProctorCannotSee";

impl App {
    pub(super) async fn look_beyond(&self) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tick.tick().await;
            let now = tasks::now();
            let contacts = reach::contacts(now);
            let gateway = contacts.iter().any(|contact| contact.met != Met::Reached).then(reach::silent_gateway).flatten();
            let targets = self.snapshot.all();
            let (changed, lost, probes) = {
                let mut mutes = self.mutes.lock().unwrap_or_else(PoisonError::into_inner);
                let changed = mutes.sight.look(&contacts, gateway.as_deref(), &targets, now);
                (changed, mutes.sight.lost().cloned(), mutes.sight.probes())
            };
            if let Some((_, why)) = &lost {
                for alert in self.alerts.all().iter().filter(|alert| alert.name() == ALERT && alert.evidence.is_empty()) {
                    self.alerts.add_evidence(alert.fingerprint(), vec![why.clone()]);
                }
            }
            if !changed {
                continue;
            }
            self.metrics.cannot_see.set(i64::from(lost.is_some()));
            self.own_into_window(now);
            self.nudge.all();
            self.wake.notify_one();
            match lost {
                Some((_, why)) => tracing::warn!(why, "Proctor cannot see beyond this host"),
                None => {
                    tracing::info!("Proctor sees beyond this host again");
                    // One that is asked once an hour must not look dead for the rest of it. It does not wait for them.
                    let ask = super::repairing::probe_now(&self.scoped)(probes.into_iter().collect());
                    self.tasks.spawn_until_stopped("those that were not seen", async move { drop(ask.await) });
                }
            }
        }
    }
}
