//! Rules that an upgrade brought: what they find on their first day is told in one mail, and nothing is done about it. Nobody
//! has seen them yet on this site, and many may fire at once.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{Alert, Timestamp};
use crate::store::{Record, Table};

/// What part of the first day is waited, after the first of them fired, for others that belong into the same mail.
const GATHER: u32 = 24;

/// What is kept of the rules that were in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownRules {
    /// The version of Proctor that wrote this.
    pub version: String,
    /// The names of all alerts that its rules could raise; at most as many as there may be rules.
    pub names: BTreeSet<String>,
    /// Those of them that the last upgrade brought.
    pub fresh: BTreeSet<String>,
    /// When that was.
    pub since: Timestamp,
    /// The episodes of alerts that their mail told ([`Alert::episode`]), at most [`KnownRules::MAX_TOLD`].
    pub told: Vec<String>,
}

impl Record for KnownRules {
    const TABLE: Table = Table::Meta;
    fn key(&self) -> String {
        Self::KEY.to_owned()
    }
}

impl KnownRules {
    /// The key of the one record.
    pub const KEY: &'static str = "known_rules";
    /// The most episodes that are remembered; what is beyond is told on its own.
    pub const MAX_TOLD: usize = 1000;
}

/// Knows which rules are new on this site.
#[derive(Clone, Debug, Default)]
pub struct Upgrade {
    day: Duration,
    record: KnownRules,
}

impl Upgrade {
    /// Compares the rules that are in force with those that the version before had. Rules that somebody adds without an
    /// upgrade are wanted, and are not new; where nothing was kept, all are known.
    pub fn new(day: Duration, version: &str, names: BTreeSet<String>, kept: Option<KnownRules>, now: Timestamp) -> Self {
        let kept = kept.unwrap_or_else(|| KnownRules { version: version.to_owned(), ..KnownRules::default() });
        let record = if kept.version == version {
            let fresh = kept.fresh.intersection(&names).cloned().collect();
            // Where the clock was ahead then, the day does not last until it comes there.
            KnownRules { names, fresh, since: kept.since.min(now), ..kept }
        } else {
            let fresh = names.difference(&kept.names).cloned().collect();
            KnownRules { version: version.to_owned(), names, fresh, since: now, told: kept.told }
        };
        Self { day, record }
    }

    /// Returns what is to be kept.
    pub fn record(&self) -> &KnownRules {
        &self.record
    }

    /// Says until when an alert is one of a new rule, if it is now.
    pub fn until(&self, alert: &Alert, now: Timestamp) -> Option<Timestamp> {
        let until = self.record.since + self.day;
        (now < until && self.record.fresh.contains(alert.name())).then_some(until)
    }

    /// Says whether this alert was told in the mail of the new rules and still is as it was then.
    pub fn told(&self, alert: &Alert) -> bool {
        alert.is_firing() && !self.record.told.is_empty() && self.record.told.contains(&alert.episode())
    }

    /// Says when the mail about these is due: some time after the first of them fired, so that it is one.
    pub fn due<'a>(&self, untold: impl IntoIterator<Item = &'a Alert>) -> Option<Timestamp> {
        untold.into_iter().filter_map(|alert| alert.fired_at).min().map(|first| first + self.day / GATHER)
    }

    /// Notes that the mail tells these. Returns the record, to be written in one batch with that mail.
    pub fn tell<'a>(&mut self, told: impl IntoIterator<Item = &'a Alert>) -> KnownRules {
        self.record.told.extend(told.into_iter().map(Alert::episode));
        let spare = self.record.told.len().saturating_sub(KnownRules::MAX_TOLD);
        self.record.told.drain(..spare);
        self.record.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn names(text: &str) -> BTreeSet<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn only_what_another_version_did_not_have_is_new() {
        let now = Timestamp::from_secs(1_000_000);
        let kept = |version: &str, known: &str, fresh: &str| {
            Some(KnownRules { version: version.into(), names: names(known), fresh: names(fresh), ..KnownRules::default() })
        };
        for (what, before, fresh) in [
            ("a first installation", None, ""),
            ("a restart", kept("2", "A B C", ""), ""),
            ("a rule that somebody wrote", kept("2", "A B", ""), ""),
            ("an upgrade", kept("1", "A", ""), "B C"),
            ("a restart within the day", kept("2", "A B C", "B X"), "B"),
            ("an upgrade that takes rules away", kept("1", "A B C D", ""), ""),
        ] {
            let upgrade = Upgrade::new(DAY, "2", names("A B C"), before, now);
            assert_eq!(upgrade.record().fresh, names(fresh), "{what}");
            assert_eq!((upgrade.record().version.as_str(), &upgrade.record().names), ("2", &names("A B C")), "{what}");
        }
    }
}
