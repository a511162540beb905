//! What changed on the host lately: what was restarted, deployed, upgraded, reloaded, by whom. Mails say what changed just
//! before something broke.
//!
//! Who sees a change records it: probes (jobs of units, events of containers), readers of files, Proctor itself.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::model::Timestamp;

/// The most changes that are kept; the oldest go first.
pub const MAX_CHANGES: usize = 500;

/// The longest text of a change, in characters.
pub const MAX_TEXT: usize = 200;

/// What kind of change it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Something was started, by order.
    Started,
    /// Something was stopped, by order.
    Stopped,
    /// Something was restarted, by order.
    Restarted,
    /// Something took a new configuration without a restart.
    Reloaded,
    /// Something ended, and nobody had asked for it.
    Died,
    /// Code was brought in.
    Deployed,
    /// A package was installed, upgraded or removed.
    Upgraded,
    /// A certificate was renewed.
    Renewed,
    /// The host was started.
    Booted,
}

impl Kind {
    /// Returns the word for it, as a label and in mails.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::Restarted => "restarted",
            Self::Reloaded => "reloaded",
            Self::Died => "died",
            Self::Deployed => "deployed",
            Self::Upgraded => "upgraded",
            Self::Renewed => "renewed",
            Self::Booted => "booted",
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When.
    pub at: Timestamp,
    /// What was done.
    pub kind: Kind,
    /// To what: `celery.service`, `container memcached`, `package nginx`, at most [`MAX_TEXT`] characters.
    pub subject: String,
    /// What more is known, such as who asked, an exit code, old and new version; may be empty.
    pub detail: String,
}

/// The last changes. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<Mutex<VecDeque<Change>>>);

impl Changes {
    /// Records a change; texts are cut. The same change recorded twice is kept once.
    pub fn record(&self, mut change: Change) {
        for text in [&mut change.subject, &mut change.detail] {
            *text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect();
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.contains(&change) {
            return;
        }
        let at = kept.partition_point(|other| other.at <= change.at);
        kept.insert(at, change);
        if kept.len() > MAX_CHANGES {
            kept.pop_front();
        }
    }

    /// Returns what changed from one moment to another, both included, the oldest first.
    pub fn between(&self, from: Timestamp, to: Timestamp) -> Vec<Change> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().filter(|change| change.at >= from && change.at <= to).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_changes_are_kept_in_order_each_once_and_no_more_than_the_bound() {
        let changes = Changes::default();
        let change =
            |at, subject: &str| Change { at: Timestamp(at), kind: Kind::Restarted, subject: subject.into(), detail: String::new() };
        for at in [3, 1, 2, 2] {
            changes.record(change(at, "a\nb"));
        }
        let subjects =
            |from, to| changes.between(Timestamp(from), Timestamp(to)).iter().map(|c| (c.at.0, c.subject.clone())).collect::<Vec<_>>();
        assert_eq!(subjects(2, 9), [(2, "a b".to_owned()), (3, "a b".to_owned())]);
        for at in 10..2000 {
            changes.record(change(at, &"x".repeat(MAX_TEXT + 1)));
        }
        let all = changes.between(Timestamp(0), Timestamp(i64::MAX));
        assert_eq!((all.len(), all[0].at, all[0].subject.len()), (MAX_CHANGES, Timestamp(1500), MAX_TEXT));
    }
}
