//! What changed on the host lately: what was restarted, deployed, upgraded, reloaded, by whom. Mails say what changed just
//! before something broke.
//!
//! Who sees a change records it: probes (jobs of units, events of containers), readers of files, Proctor itself.

pub mod packages;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::model::{Timestamp, one_line};

/// The most changes that are kept; the oldest go first.
pub const MAX_CHANGES: usize = 500;

/// The longest text of a change, in characters.
pub const MAX_TEXT: usize = 200;

crate::config_struct! {
    /// What changed on the host just before something broke, for mails.
    pub struct ChangesConfig {
        /// How far before an alert began a mail looks back.
        before: Duration = "30m",
        /// The log of dpkg, for packages that were installed, upgraded or removed; it need not be there.
        packages: PathBuf = "/var/log/dpkg.log",
    }
}

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
    /// A certificate gave way to one that is not its renewal: names are missing, or it is older.
    Replaced,
    /// The host was started.
    Booted,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Started,
        Self::Stopped,
        Self::Restarted,
        Self::Reloaded,
        Self::Died,
        Self::Deployed,
        Self::Upgraded,
        Self::Renewed,
        Self::Replaced,
        Self::Booted,
    ];

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
            Self::Replaced => "replaced",
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
pub struct Changes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    kept: Mutex<Kept>,
    recorded: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    changes: VecDeque<Change>,
    /// What [`Changes::unsaved`] has not handed out yet, at most [`MAX_CHANGES`] each.
    unsaved: Unsaved,
}

/// What became of the changes since they were last written down.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unsaved {
    /// They are new.
    pub added: Vec<Change>,
    /// They gave way to newer ones.
    pub dropped: Vec<Change>,
}

impl Kept {
    fn put(&mut self, mut change: Change, new: bool) {
        for text in [&mut change.subject, &mut change.detail] {
            *text = one_line(text, MAX_TEXT);
        }
        let oldest = self.changes.front().map(|oldest| oldest.at);
        if self.changes.contains(&change) || (self.changes.len() == MAX_CHANGES && oldest.is_some_and(|oldest| change.at < oldest)) {
            return;
        }
        let at = self.changes.partition_point(|other| other.at <= change.at);
        self.changes.insert(at, change.clone());
        if new {
            self.unsaved.added.push(change);
        }
        if self.changes.len() > MAX_CHANGES
            && let Some(oldest) = self.changes.pop_front()
        {
            self.unsaved.added.retain(|added| *added != oldest);
            self.unsaved.dropped.push(oldest);
            if self.unsaved.dropped.len() > MAX_CHANGES {
                self.unsaved.dropped.remove(0);
            }
        }
    }
}

impl Changes {
    /// Takes back what was written down before.
    pub fn restore(&self, changes: impl IntoIterator<Item = Change>) {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        changes.into_iter().for_each(|change| kept.put(change, false));
    }

    /// Records a change; texts are cut. The same change recorded twice is kept once.
    pub fn record(&self, change: Change) {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner).put(change, true);
        self.0.recorded.notify_one();
    }

    /// Returns what changed from one moment to another, both included, the oldest first.
    pub fn between(&self, from: Timestamp, to: Timestamp) -> Vec<Change> {
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.changes.iter().filter(|change| change.at >= from && change.at <= to).cloned().collect()
    }

    /// Waits until there is something to write down, and hands it out once.
    pub async fn unsaved(&self) -> Unsaved {
        loop {
            let unsaved = std::mem::take(&mut self.0.kept.lock().unwrap_or_else(PoisonError::into_inner).unsaved);
            if unsaved != Unsaved::default() {
                return unsaved;
            }
            self.0.recorded.notified().await;
        }
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
        changes.record(change(7, "too old to be kept"));
        assert_eq!(changes.between(Timestamp(0), Timestamp(i64::MAX)), all);
    }

    #[tokio::test]
    async fn what_is_new_and_what_gave_way_is_handed_out_once_to_be_written_down() {
        let changes = Changes::default();
        let change = |at| Change { at: Timestamp(at), kind: Kind::Died, subject: "a".into(), detail: String::new() };
        changes.restore((0..MAX_CHANGES as i64).map(change));
        changes.record(change(1));
        changes.record(change(1_000));
        assert_eq!(changes.unsaved().await, Unsaved { added: vec![change(1_000)], dropped: vec![change(0)] });
        let (next, ()) = tokio::join!(changes.unsaved(), async { changes.record(change(1_001)) });
        assert_eq!(next, Unsaved { added: vec![change(1_001)], dropped: vec![change(1)] });
        for at in 0..10_000 {
            changes.record(change(2_000 + at));
        }
        let unsaved = changes.unsaved().await;
        assert_eq!((unsaved.added.len(), unsaved.dropped.len()), (MAX_CHANGES, MAX_CHANGES), "bounded, whoever writes");
    }
}
