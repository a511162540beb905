//! The targets of the status page: by probe, those that fail first; by kind where there are very many probes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{MAX_TEXT, Scene};
use crate::model::{Sight, Timestamp};
use crate::notify::message::line;
use crate::snapshot::Latest;
use crate::snapshot::history::{History, merge};
use crate::web::{Group, Rows, TargetRow, Tone};

/// With more probes than this, those that are well are put together by their kind.
const MANY: usize = 60;
/// The most groups, and the most targets of one group.
const MAX_GROUPS: usize = 200;
const MAX_TARGETS: usize = 250;

impl Scene {
    /// Puts the targets together, the worst first.
    pub(super) fn groups(&self) -> Rows<Group> {
        let mut by_probe: BTreeMap<&str, Vec<&(Latest, History)>> = BTreeMap::new();
        for one in &self.targets {
            by_probe.entry(&one.0.target.probe).or_default().push(one);
        }
        let many = by_probe.len() > MANY;
        let mut by_kind: BTreeMap<&'static str, Vec<&(Latest, History)>> = BTreeMap::new();
        let mut groups = Vec::new();
        for (probe, targets) in by_probe {
            let kind = targets.first().map_or("", |(latest, _)| latest.target.kind);
            if many && targets.iter().all(|(latest, _)| tone(latest, self.now) == Tone::Good) {
                by_kind.entry(kind).or_default().extend(targets);
            } else {
                groups.push(self.group(probe, kind, &targets));
            }
        }
        groups.extend(by_kind.into_iter().map(|(kind, targets)| self.group(kind, kind, &targets)));
        // By the name behind that: the same order on every page.
        groups.sort_by_key(|group| group.tone);
        Rows::of(groups, MAX_GROUPS)
    }

    fn group(&self, name: &str, kind: &'static str, targets: &[&(Latest, History)]) -> Group {
        let mut rows: Vec<(Tone, &Latest, &History)> =
            targets.iter().map(|(latest, history)| (tone(latest, self.now), latest, history)).collect();
        rows.sort_by_key(|(tone, ..)| *tone);
        let count = |wanted| rows.iter().filter(|(tone, ..)| *tone == wanted).count();
        let shown = rows.iter().take(MAX_TARGETS).map(|(_, latest, history)| row(latest, history, self.now)).collect();
        Group {
            name: line(name, MAX_TEXT),
            kind,
            tone: rows.first().map_or(Tone::Plain, |(tone, ..)| *tone),
            well: count(Tone::Good),
            count: rows.len(),
            failing: count(Tone::Bad),
            history: merge(targets.iter().map(|(_, history)| history.until(self.now))),
            shows: targets.iter().map(|(_, history)| history.shows()).max().unwrap_or_default(),
            targets: Rows { shown, more: rows.len().saturating_sub(MAX_TARGETS) },
        }
    }
}

/// Says how a target stands.
pub(super) fn tone(latest: &Latest, now: Timestamp) -> Tone {
    match &latest.result {
        None => Tone::Unsure,
        Some(result) if !result.is_success() => Tone::Bad,
        Some(result) if now.since(result.at) > latest.target.valid_for() => Tone::Unsure,
        Some(result) if matches!(result.sight, Sight::Blind { .. }) => Tone::Unsure,
        Some(_) => Tone::Good,
    }
}

/// Makes the row of one target.
pub(super) fn row(latest: &Latest, history: &History, now: Timestamp) -> TargetRow {
    let result = latest.result.as_ref();
    let detail = result.map(|result| match (&result.outcome, &result.sight) {
        (Err(failure), _) => format!("{}: {}", failure.reason, failure.detail),
        (Ok(()), Sight::Full) => String::new(),
        (Ok(()), Sight::Partial { missing, remedy } | Sight::Blind { missing, remedy }) => format!("cannot see {missing}; {remedy}"),
    });
    let old = result.is_some_and(|result| now.since(result.at) > latest.target.valid_for());
    TargetRow {
        name: line(latest.target.target.as_deref().unwrap_or(&latest.target.probe), MAX_TEXT),
        tone: tone(latest, now),
        detail: line(&detail.unwrap_or_default(), 2 * MAX_TEXT),
        took: result.map(|result| result.duration),
        since: latest.since,
        asked: result.is_some(),
        // When that was is worth a word only where it is long ago.
        at: result.map(|result| result.at).filter(|at| old || now.since(*at) > Duration::from_secs(120)),
        history: history.until(now),
        shows: history.shows(),
    }
}
