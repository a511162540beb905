//! The table of what is active now.
//!
//! Rules write it, everybody else reads the whole of it after a change signal (invariant 2): a reader that was slow or
//! restarted loses nothing. What actions did stands in the alerts' attempts, so that mails can say it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use crate::model::{Alert, Attempt, Fingerprint};

/// The most alerts the table holds; a rule set that makes more is broken, and mails could not tell them anyway.
pub const MAX_ALERTS: usize = 10_000;

/// What is active now, with a signal that counts changes. Clones share the same table.
#[derive(Clone, Debug)]
pub struct AlertTable {
    alerts: Arc<RwLock<BTreeMap<Fingerprint, Alert>>>,
    /// The rules that were evaluated on fresh data since the start.
    judged: Arc<RwLock<BTreeSet<String>>>,
    version: watch::Sender<u64>,
}

impl Default for AlertTable {
    fn default() -> Self {
        Self { alerts: Arc::default(), judged: Arc::default(), version: watch::Sender::new(0) }
    }
}

impl AlertTable {
    /// Returns a copy of all alerts: pending, firing, and those that ended less than 15 minutes ago.
    pub fn all(&self) -> Vec<Alert> {
        self.alerts.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Returns one alert.
    pub fn get(&self, fingerprint: Fingerprint) -> Option<Alert> {
        self.alerts.read().unwrap_or_else(PoisonError::into_inner).get(&fingerprint).cloned()
    }

    /// Returns a receiver that wakes after each change; what changed is read from the table.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Puts the alerts of one rule in place of those it had before. Attempts and evidence of the same episode stay.
    /// Returns how many were left out because the table is full.
    pub fn replace_rule(&self, rule: &str, alerts: Vec<Alert>) -> usize {
        let mut dropped = 0;
        let mut table = self.alerts.write().unwrap_or_else(PoisonError::into_inner);
        let mut next: BTreeMap<Fingerprint, Alert> = BTreeMap::new();
        for mut alert in alerts {
            let fingerprint = alert.fingerprint();
            if let Some(old) = table.get(&fingerprint)
                && old.episode() == alert.episode()
            {
                alert.attempts.clone_from(&old.attempts);
                if alert.evidence.is_empty() {
                    alert.evidence.clone_from(&old.evidence);
                }
            }
            next.insert(fingerprint, alert);
        }
        let same = table.values().filter(|alert| alert.rule == rule).eq(next.values());
        if same {
            return 0;
        }
        table.retain(|_, alert| alert.rule != rule);
        for (fingerprint, alert) in next {
            if table.len() < MAX_ALERTS {
                table.insert(fingerprint, alert);
            } else {
                dropped += 1;
            }
        }
        drop(table);
        self.version.send_modify(|version| *version += 1);
        dropped
    }

    /// Notes that a rule was evaluated on fresh data: its alerts are not only what the store remembered.
    pub fn judge(&self, rule: &str) {
        if !self.is_judged(rule) {
            self.judged.write().unwrap_or_else(PoisonError::into_inner).insert(rule.to_owned());
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// Says whether a rule was evaluated on fresh data since the start. Before, an alert that fires is a memory, and
    /// nothing is done about it.
    pub fn is_judged(&self, rule: &str) -> bool {
        self.judged.read().unwrap_or_else(PoisonError::into_inner).contains(rule)
    }

    /// Removes the alerts of rules that are no longer loaded.
    pub fn retain_rules(&self, loaded: impl Fn(&str) -> bool) {
        self.judged.write().unwrap_or_else(PoisonError::into_inner).retain(|rule| loaded(rule));
        self.alerts.write().unwrap_or_else(PoisonError::into_inner).retain(|_, alert| loaded(&alert.rule));
        self.version.send_modify(|version| *version += 1);
    }

    /// Writes an attempt, or its outcome, into every alert of its episode.
    pub fn record_attempt(&self, attempt: &Attempt) {
        let mut table = self.alerts.write().unwrap_or_else(PoisonError::into_inner);
        for alert in table.values_mut().filter(|alert| alert.episode() == attempt.episode) {
            match alert.attempts.iter_mut().find(|known| known.id == attempt.id) {
                Some(known) => known.clone_from(attempt),
                None => alert.attempts.push(attempt.clone()),
            }
        }
        drop(table);
        self.version.send_modify(|version| *version += 1);
    }

    /// Keeps lines that a restart would destroy, once per alert.
    pub fn add_evidence(&self, fingerprint: Fingerprint, lines: Vec<String>) {
        let mut table = self.alerts.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(alert) = table.get_mut(&fingerprint)
            && alert.evidence.is_empty()
        {
            alert.evidence = lines;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AlertState, Labels, Outcome, Timestamp};

    fn alert(name: &str, fired_at: i64) -> Alert {
        Alert {
            labels: Labels::new([("alertname", name)]),
            annotations: Labels::default(),
            state: AlertState::Firing,
            value: 1.0,
            active_at: Timestamp(fired_at),
            fired_at: Some(Timestamp(fired_at)),
            resolved_at: None,
            keep_firing_since: None,
            rule: format!("g/{name}"),
            evidence: Vec::new(),
            attempts: Vec::new(),
        }
    }

    #[test]
    fn attempts_stay_with_their_episode_and_a_new_one_begins_without() {
        let table = AlertTable::default();
        let changed = table.changed();
        table.replace_rule("g/Down", vec![alert("Down", 1)]);
        let attempt = Attempt {
            id: "1".into(),
            action: "restart".into(),
            target: "x".into(),
            episode: alert("Down", 1).episode(),
            started_at: Timestamp(2),
            finished_at: None,
            outcome: Outcome::Running,
            detail: String::new(),
            output: String::new(),
        };
        table.record_attempt(&attempt);
        table.replace_rule("g/Down", vec![alert("Down", 1)]);
        assert_eq!(table.all()[0].attempts.len(), 1);
        table.replace_rule("g/Down", vec![alert("Down", 9)]);
        assert!(table.all()[0].attempts.is_empty());
        assert!(changed.has_changed().expect("the table lives"));
    }
}
