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
        Some(_) if latest.is_old(now) => Tone::Unsure,
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
    TargetRow {
        name: line(latest.target.target.as_deref().unwrap_or(&latest.target.probe), MAX_TEXT),
        tone: tone(latest, now),
        detail: line(&detail.unwrap_or_default(), 2 * MAX_TEXT),
        took: result.map(|result| result.duration),
        since: latest.since,
        asked: result.is_some(),
        // When that was is worth a word only where it is long ago.
        at: result.map(|result| result.at).filter(|at| latest.is_old(now) || now.since(*at) > Duration::from_secs(120)),
        history: history.until(now),
        shows: history.shows(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::model::{Failure, ProbeResult, Reason, Target};
    use crate::mute::depends::{Depends, failing};
    use crate::snapshot::Snapshot;
    use crate::web::Status;

    fn target(probe: String, target: Option<String>) -> Arc<Target> {
        Arc::new(Target {
            probe: probe.into(),
            target: target.map(Into::into),
            kind: "tcp",
            interval: Duration::from_secs(15),
            timeout: Duration::from_secs(5),
            depends_on: Arc::new([]),
        })
    }

    /// Knows 600 probes with one target each, and one with 400; `fails` says which fail, by their number.
    fn scene(fails: impl Fn(usize) -> bool) -> Scene {
        let targets: Vec<Arc<Target>> = (0..600)
            .map(|n| target(format!("room-{n:03}"), None))
            .chain((0..400).map(|n| target("certs".to_owned(), Some(format!("{n:03}.pem")))))
            .collect();
        let snapshot = Snapshot::new(Arc::new(Metrics::new()));
        snapshot.announce(&targets);
        let now = Timestamp::from_secs(1_000_000);
        for (n, target) in targets.into_iter().enumerate() {
            let detail = "<b>".repeat(100);
            let outcome = if fails(n) { Err(Failure::new(Reason::Refused, detail)) } else { Ok(()) };
            let (samples, evidence) = (Vec::new(), Vec::new());
            snapshot.accept(&ProbeResult { target, at: now, duration: Duration::ZERO, outcome, samples, sight: Sight::Full, evidence });
        }
        let targets = snapshot.histories();
        let failing = failing(targets.iter().map(|(latest, _)| latest), &[], |_| Duration::ZERO);
        Scene {
            now,
            targets,
            alerts: Vec::new(),
            failing,
            depends: Arc::new(Depends::default()),
            holds: BTreeMap::new(),
            tells: false,
            told: BTreeMap::new(),
            muted: BTreeMap::new(),
        }
    }

    fn page(scene: &Scene) -> String {
        let status = Status { groups: scene.groups(), troubles: scene.troubles(), targets: scene.targets.len(), ..Status::default() };
        status.render(scene.now, true, false).expect("is rendered")
    }

    #[test]
    fn of_a_thousand_targets_those_that_fail_come_first_and_the_others_are_folded() {
        let scene = scene(|n| n == 7 || n == 900);
        let groups = scene.groups().shown;
        let told: Vec<(&str, Tone, usize, usize)> =
            groups.iter().map(|group| (group.name.as_str(), group.tone, group.failing, group.count)).collect();
        assert_eq!(told, [("certs", Tone::Bad, 1, 400), ("room-007", Tone::Bad, 1, 1), ("tcp", Tone::Good, 0, 599)]);
        assert_eq!((groups[0].targets.shown[0].name.as_str(), groups[0].targets.more), ("300.pem", 150));
        let page = page(&scene);
        assert_eq!(page.matches("<details").count(), 2);
        assert!(page.len() < 250_000, "{} bytes", page.len());
    }

    #[test]
    fn a_page_on_which_everything_fails_is_bounded_and_says_how_much_it_leaves_out() {
        let page = page(&scene(|_| true));
        for more in ["and 561 more</p>", "and 401 more</p>", "and 392 more targets of it", "and 150 more</p>"] {
            assert!(page.contains(more), "{more}");
        }
        assert!(page.len() < 1_000_000, "{} bytes", page.len());
    }
}
