//! Whether Proctor itself is well: what the watchdog and the heartbeat to the outside are made from.
//!
//! Two questions, and two answers. *Alive*: its loops come round; where they do not, a restart mends it, so systemd is
//! asked for one. *Well*: alive, and what it does reaches somebody. A dead relay or a full disk is not well, and no
//! restart would mend it: then only the outside is told, by silence.

use std::time::Duration;

use crate::model::Timestamp;
use crate::model::duration::print_measured;
use crate::notify::outbox::Outbox;
use crate::snapshot::Snapshot;
use crate::store::Store;
use crate::tasks::{LATE, Pulse, Tasks};

/// A mail or webhook that has waited longer than this does not reach anybody.
pub(super) const MAIL_WITHIN: Duration = Duration::from_secs(600);

/// Why Proctor is not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unwell {
    /// It has only just started, and does not know yet.
    Starting(String),
    /// Something is wrong.
    Wrong {
        /// What part: the same for as long as the same thing is wrong.
        part: &'static str,
        /// What exactly, with figures that move.
        why: String,
    },
}

/// What is looked at. Clones look at the same.
#[derive(Clone)]
pub(super) struct Health {
    pub(super) started_at: Timestamp,
    pub(super) pulses: Vec<Pulse>,
    /// All that run until the stop or the next reload: one that panicked is missing.
    pub(super) tasks: [Tasks; 2],
    pub(super) snapshot: Snapshot,
    pub(super) store: Store,
    pub(super) outbox: Outbox,
}

impl Health {
    /// Says what a restart would mend: a loop that does not come round, a task that died.
    pub(super) fn alive(&self, now: Timestamp) -> Result<(), String> {
        let late = self.pulses.iter().find_map(|pulse| pulse.late(now));
        let dead = || self.tasks.iter().flat_map(Tasks::panics).next().map(|why| format!("a task died: {why}"));
        late.or_else(dead).map_or(Ok(()), Err)
    }

    /// Says why nobody should rely on Proctor now, if so.
    pub(super) fn well(&self, now: Timestamp) -> Result<(), Unwell> {
        let wrong = |part, why| Err(Unwell::Wrong { part, why });
        if let Err(why) = self.alive(now) {
            return wrong("loops", why);
        }
        let mut waiting = 0;
        for latest in self.snapshot.all() {
            let target = &latest.target;
            // After a reload the results of before are still there, and after a start there is none.
            let since = now.since(latest.result.as_ref().map_or(self.started_at, |result| result.at.max(self.started_at)));
            if since > target.interval + target.timeout + LATE {
                return wrong("results", format!("the last result of {target} is {} old", print_measured(since)));
            }
            waiting += usize::from(latest.result.is_none());
        }
        if let Some(why) = self.store.degraded() {
            return wrong("state", format!("the state cannot be written ({why})"));
        }
        let oldest = self.outbox.oldest_age(now);
        if oldest > MAIL_WITHIN {
            return wrong("mail", format!("a mail or webhook has waited {} to be delivered", print_measured(oldest)));
        }
        let waiting = waiting + self.pulses.iter().filter(|pulse| !pulse.has_beaten()).count();
        if waiting > 0 {
            return Err(Unwell::Starting(format!("{waiting} loops have not come round yet")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::metrics::Metrics;
    use crate::model::{ProbeResult, Sight, Target};
    use crate::notify::{Channel, Delivery, Weight};
    use crate::store::Batch;
    use crate::tasks;

    const INTERVAL: Duration = Duration::from_secs(10);
    const TIMEOUT: Duration = Duration::from_secs(5);

    fn health(targets: usize) -> Health {
        let metrics = Arc::new(Metrics::new());
        let store = Store::open(None, metrics.clone()).expect("opens in memory");
        let config = Config::from_text("p.yml".as_ref(), "").expect("is right");
        let snapshot = Snapshot::new(metrics.clone());
        snapshot.announce(&(0..targets).map(target).collect::<Vec<_>>());
        Health {
            started_at: tasks::now(),
            pulses: vec![Pulse::new("probe a", INTERVAL)],
            tasks: [Tasks::new(), Tasks::new()],
            snapshot,
            outbox: Outbox::new(store.clone(), metrics, crate::app::telling::ways(&config)),
            store,
        }
    }

    fn target(index: usize) -> Arc<Target> {
        Arc::new(Target {
            probe: format!("p{index}").into(),
            target: None,
            kind: "tcp",
            interval: INTERVAL,
            timeout: TIMEOUT,
            depends_on: Arc::new([]),
        })
    }

    fn answers(health: &Health, index: usize, at: Timestamp) {
        health.snapshot.accept(&ProbeResult {
            target: target(index),
            at,
            duration: TIMEOUT,
            // A site that is down is none of our own illnesses.
            outcome: Err(crate::model::Failure::new(crate::model::Reason::Refused, "")),
            samples: Vec::new(),
            sight: Sight::Full,
            evidence: Vec::new(),
        });
    }

    fn part(health: &Health, now: Timestamp) -> &'static str {
        match health.well(now) {
            Ok(()) => "well",
            Err(Unwell::Starting(_)) => "starting",
            Err(Unwell::Wrong { part, .. }) => part,
        }
    }

    #[test]
    fn it_is_well_only_once_everything_came_round_and_only_while_it_does() {
        let health = health(2);
        let begin = health.started_at;
        assert_eq!(part(&health, begin), "starting");
        health.pulses[0].beat();
        answers(&health, 0, begin);
        assert_eq!(part(&health, begin), "starting", "one target has not answered");
        answers(&health, 1, begin);
        assert_eq!(part(&health, begin), "well");
        let late = begin + INTERVAL + TIMEOUT + LATE + Duration::from_secs(1);
        assert_eq!(part(&health, late), "loops");
        assert!(health.alive(late).is_err_and(|why| why.starts_with("probe a has not come round for ")));
        // One target of two is silent, though its loop comes round.
        let slow = Health { pulses: Vec::new(), ..health };
        answers(&slow, 0, late);
        assert_eq!(part(&slow, late), "results");
        assert_eq!(slow.alive(late), Ok(()), "a slow host is no reason to restart Proctor");
    }

    #[tokio::test]
    async fn a_dead_relay_or_disk_is_not_well_but_alive_since_no_restart_mends_it() {
        let health = health(0);
        health.pulses[0].beat();
        let now = tasks::now();
        let mut batch = Batch::new();
        batch.put(&Delivery {
            id: "d".into(),
            channel: Channel::Webhook { name: "w".into() },
            message: serde_json::from_value(serde_json::json!({
                "message_id": "", "in_reply_to": null, "references": [], "subject": "", "text": "", "html": "", "headers": [],
                "important": false, "payload": null
            }))
            .expect("is a message"),
            weight: Weight::Firing,
            queued_at: now,
            attempts: 0,
            next_at: now,
            last_error: None,
        });
        health.store.commit(batch).await;
        let metrics = Arc::new(Metrics::new());
        let config = Config::from_text("p.yml".as_ref(), "").expect("is right");
        let outbox = Outbox::new(health.store.clone(), metrics.clone(), crate::app::telling::ways(&config));
        let health = Health { outbox, pulses: Vec::new(), ..health };
        assert_eq!(part(&health, now + MAIL_WITHIN), "well");
        let late = now + MAIL_WITHIN + Duration::from_secs(1);
        assert_eq!((part(&health, late), health.alive(late)), ("mail", Ok(())));
        let store = Store::open(Some("/proc/nowhere/state.db".as_ref()), metrics).expect("it opens degraded");
        let health = Health { store, ..health };
        assert_eq!((part(&health, now), health.alive(now)), ("state", Ok(())));
    }

    #[tokio::test]
    async fn a_task_that_died_is_neither_alive_nor_well() {
        let health = health(0);
        health.pulses[0].beat();
        assert_eq!(part(&health, tasks::now()), "well");
        health.tasks[1].spawn("dispatcher", async { panic!("on purpose") });
        health.tasks[1].stop(Duration::from_secs(5)).await;
        assert_eq!(health.alive(tasks::now()), Err("a task died: dispatcher: on purpose".to_owned()));
    }
}
