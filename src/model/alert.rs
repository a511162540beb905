//! Alerts: what a rule says is wrong, from the first sign to the end.

use serde::{Deserialize, Serialize};

use super::{Attempt, Fingerprint, Labels, Timestamp};

/// Where an alert stands, in Prometheus' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    /// The condition holds, but not yet for the rule's `for`.
    Pending,
    /// The condition has held for the rule's `for`.
    Firing,
    /// It held, and no longer does; kept 15 minutes so that the end can be told.
    Inactive,
}

/// One alert: what one series of one rule's expression has become.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// The identity: labels of the sample, of the group, of the rule, and `alertname`.
    pub labels: Labels,
    /// Texts for people; not part of the identity.
    pub annotations: Labels,
    /// Where it stands.
    pub state: AlertState,
    /// The value of the expression when it last held.
    pub value: f64,
    /// When the condition began to hold.
    pub active_at: Timestamp,
    /// When it began to fire.
    pub fired_at: Option<Timestamp>,
    /// When it ended.
    pub resolved_at: Option<Timestamp>,
    /// Since when it fires only because of `keep_firing_for`.
    pub keep_firing_since: Option<Timestamp>,
    /// The rule it is of: `group/alertname`, to find it again after a restart or reload.
    pub rule: String,
    /// Lines captured when it began to fire, before a restart destroys them.
    #[serde(default)]
    pub evidence: Vec<String>,
    /// What was done about it in this episode, oldest first.
    #[serde(default)]
    pub attempts: Vec<Attempt>,
}

impl Alert {
    /// Returns the identity.
    pub fn fingerprint(&self) -> Fingerprint {
        self.labels.fingerprint()
    }

    /// Returns the name of the alert.
    pub fn name(&self) -> &str {
        self.labels.get("alertname").unwrap_or("")
    }

    /// Returns the probe it is about, if it says so.
    pub fn probe(&self) -> Option<&str> {
        self.labels.get("probe")
    }

    /// Says whether it fires now.
    pub fn is_firing(&self) -> bool {
        self.state == AlertState::Firing
    }

    /// Returns the identity of this occurrence: the same alert that fires again later is another episode.
    pub fn episode(&self) -> String {
        format!("{}-{}", self.fingerprint(), self.fired_at.unwrap_or(self.active_at).0)
    }
}
