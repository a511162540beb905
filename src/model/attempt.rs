//! Attempts at a repair, and how they ended.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Recorded and under way.
    Running,
    /// Done, and the probes say that it helped.
    Repaired,
    /// Not done, or done in vain.
    Failed,
    /// The guard said no.
    Refused,
    /// The action only says what it would do.
    Observed,
    /// Proctor died between intent and result: not repeated, probes decide.
    InDoubt,
}

impl Outcome {
    /// Every outcome, for the metric's labels.
    pub const ALL: [Self; 6] = [Self::Running, Self::Repaired, Self::Failed, Self::Refused, Self::Observed, Self::InDoubt];

    /// Returns the label value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Repaired => "repaired",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Observed => "observed",
            Self::InDoubt => "in_doubt",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One attempt at a repair. It is in the store before anything is done (invariant 5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Unique and stable: also the idempotency key of a webhook.
    pub id: String,
    /// The action's name in the configuration.
    pub action: String,
    /// What is acted on, such as `systemd:gunicorn.service`: the key of the one budget.
    pub target: String,
    /// The episode it is for ([`super::Alert::episode`]).
    pub episode: String,
    /// When the intent was recorded.
    pub started_at: Timestamp,
    /// When the outcome was known.
    pub finished_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: Outcome,
    /// What was done and what came back, for people: one line.
    pub detail: String,
    /// What the action printed, bounded; empty where it prints nothing.
    #[serde(default)]
    pub output: String,
}
