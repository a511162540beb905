//! What is wrong now: each root with what it takes down, so that one cause is read once.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{MAX_TEXT, Scene, targets, told};
use crate::model::{Alert, AlertState};
use crate::notify::message::{line, rank};
use crate::snapshot::Latest;
use crate::snapshot::history::History;
use crate::web::{AlertRow, Rows, Trouble};

/// The most roots, and the most targets, alerts and probes below of each.
const MAX_TROUBLES: usize = 40;
const MAX_EACH: usize = 8;
/// The most attempts of an alert.
const MAX_ATTEMPTS: usize = 3;

/// What fails of one probe, and what fires about it.
#[derive(Default)]
pub(super) struct Wrong<'a> {
    targets: Vec<&'a (Latest, History)>,
    alerts: Vec<&'a Alert>,
}

impl Scene {
    /// Returns what fails now or fires, by probe; alerts about no probe by their own name.
    pub(super) fn wrong<'a>(&'a self) -> BTreeMap<(&'a str, bool), Wrong<'a>> {
        let mut all: BTreeMap<(&str, bool), Wrong<'_>> = BTreeMap::new();
        for one in self.targets.iter().filter(|(latest, _)| latest.is_failing()) {
            all.entry((&one.0.target.probe, true)).or_default().targets.push(one);
        }
        let key = |alert: &'a Alert| alert.probe().map_or((alert.name(), false), |probe| (probe, true));
        for alert in self.alerts.iter().filter(|alert| alert.is_firing()) {
            all.entry(key(alert)).or_default().alerts.push(alert);
        }
        // What is only pending belongs there if something is wrong with its probe already.
        for alert in self.alerts.iter().filter(|alert| alert.state == AlertState::Pending) {
            if let Some(wrong) = all.get_mut(&key(alert)) {
                wrong.alerts.push(alert);
            }
        }
        all
    }

    /// Returns the probe whose trouble explains that of this one.
    fn root_of<'a>(&'a self, probe: &str, wrong: &BTreeSet<&str>) -> Option<&'a str> {
        self.depends.failing_ancestors(probe, &self.failing).into_iter().find(|parent| wrong.contains(*parent))
    }

    /// Names what is wrong by itself.
    pub(super) fn root_names(&self) -> Vec<String> {
        let wrong = self.wrong();
        let probes: BTreeSet<&str> = wrong.keys().filter(|(_, is_probe)| *is_probe).map(|(name, _)| *name).collect();
        let mut roots: Vec<_> = wrong.iter().filter(|((name, is), _)| !is || self.root_of(name, &probes).is_none()).collect();
        let takes_down = |name: &str| self.depends.failing_below(name, &self.failing).len();
        roots.sort_by_key(|((name, _), wrong)| (worst(wrong), Reverse(takes_down(name))));
        roots.into_iter().filter(|(_, wrong)| !wrong.targets.is_empty()).map(|((name, _), _)| line(name, 60)).collect()
    }

    /// Puts what is wrong together, the worst root first.
    pub(super) fn troubles(&self) -> Rows<Trouble> {
        let wrong = self.wrong();
        let probes: BTreeSet<&str> = wrong.keys().filter(|(_, is_probe)| *is_probe).map(|(name, _)| *name).collect();
        let mut below: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut roots = Vec::new();
        for (key @ (name, is_probe), of) in &wrong {
            match self.root_of(name, &probes).filter(|_| *is_probe) {
                Some(root) => below.entry(root).or_default().push(name),
                None => roots.push((*key, of)),
            }
        }
        roots.sort_by_key(|((name, _), of)| (worst(of), Reverse(below.get(name).map_or(0, Vec::len)), since(of, self).0 / 10_000));
        let troubles = roots.into_iter().map(|((name, is_probe), of)| {
            let wake = below.get(name).filter(|_| is_probe).into_iter().flatten();
            let wake = wake.filter_map(|name| Some(((*name).to_owned(), said(wrong.get(&(*name, true))?))));
            let mut alerts = of.alerts.clone();
            alerts.sort_by_key(|alert| (!alert.is_firing(), rank(alert), alert.active_at));
            Trouble {
                title: line(name, MAX_TEXT),
                kind: of.targets.first().map_or("", |(latest, _)| latest.target.kind),
                since: since(of, self),
                targets: Rows::of(of.targets.iter().map(|(latest, history)| targets::row(latest, history, self.now)).collect(), MAX_EACH),
                alerts: Rows::of(alerts.into_iter().map(|alert| self.alert(alert)).collect(), MAX_EACH),
                wake: Rows::of(wake.collect(), MAX_EACH),
            }
        });
        Rows::of(troubles.collect(), MAX_TROUBLES)
    }

    fn alert(&self, alert: &Alert) -> AlertRow {
        let skip = alert.attempts.len().saturating_sub(MAX_ATTEMPTS);
        let text = |name| line(alert.annotations.get(name).unwrap_or(""), MAX_TEXT);
        AlertRow {
            name: line(alert.name(), MAX_TEXT),
            severity: line(alert.labels.get("severity").unwrap_or(""), 40),
            summary: text("summary"),
            since: alert.fired_at.filter(|_| alert.is_firing()),
            told: line(&told(self, alert), MAX_TEXT),
            done: alert
                .attempts
                .iter()
                .skip(skip)
                .map(|attempt| line(&format!("{}: {}", attempt.action, attempt.outcome), MAX_TEXT))
                .collect(),
            id: alert.fingerprint().to_string(),
            matchers: alert.labels.iter().map(|(name, value)| format!("{name}={}", serde_json::Value::from(value))).collect(),
        }
    }
}

fn worst(wrong: &Wrong<'_>) -> u8 {
    wrong.alerts.iter().map(|alert| rank(alert)).min().unwrap_or(2)
}

fn since(wrong: &Wrong<'_>, scene: &Scene) -> crate::model::Timestamp {
    let targets = wrong.targets.iter().filter_map(|(latest, _)| latest.since);
    targets.chain(wrong.alerts.iter().map(|alert| alert.active_at)).min().unwrap_or(scene.now)
}

/// Says in one line what is wrong with a probe that another takes down.
fn said(wrong: &Wrong<'_>) -> String {
    let failing = wrong.targets.iter().find_map(|(latest, _)| {
        let failure = latest.result.as_ref()?.outcome.as_ref().err()?;
        Some(format!("{}: {}", failure.reason, failure.detail))
    });
    let more = if wrong.targets.len() > 1 { format!(" (and {} more targets)", wrong.targets.len() - 1) } else { String::new() };
    let alerts = wrong.alerts.iter().map(|alert| alert.name()).take(3).collect::<Vec<_>>().join(", ");
    line(&format!("{}{more}", failing.unwrap_or(alerts)), MAX_TEXT)
}
