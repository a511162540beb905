//! The state of one rule's alerts, as Prometheus' `rules/alerting.go` moves it. Pure: `now` is an argument.
//!
//! Two deviations, both about a start (design, invariant 6): an alert that was restored does not end while the window
//! does not reach as far back as the rule looks, and nothing begins to fire before every probe has answered once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::load::AlertRule;
use super::template::Facts;
use crate::model::labels::NAME;
use crate::model::{Alert, AlertState, Labels, Timestamp};

/// How long an alert that ended is kept, so that the end can be told.
pub const RESOLVED_RETENTION: Duration = Duration::from_secs(15 * 60);

/// Why a rule has no new states.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RuleError {
    /// Two samples make one alert; states are as before.
    #[error("two samples of the expression make the same alert {0}: let the labels of the rule tell them apart")]
    Duplicate(Labels),
    /// More alerts than `limit` allows; all of them are dropped.
    #[error("exceeded the limit of {limit} with {found} alerts: all alerts of this rule are dropped")]
    Limit {
        /// What is allowed.
        limit: usize,
        /// What came.
        found: usize,
    },
    /// Two samples make one series of a recording rule; nothing is written.
    #[error("two samples of the expression make the same series {0}: let the labels of the rule leave them apart")]
    SameSeries(Labels),
    /// A recording rule gives more series than `limit` allows; nothing is written.
    #[error("exceeded the limit of {limit} with {found} series")]
    SeriesLimit {
        /// What is allowed.
        limit: usize,
        /// What came.
        found: usize,
    },
}

/// What a turn knows besides the samples.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// When the turn is, read once for the whole group.
    pub now: Timestamp,
    /// Whether every probe has answered since the start: nothing begins to fire before.
    pub ready: bool,
    /// Whether the window reaches as far back as the rule looks: no restored alert ends before.
    pub settled: bool,
    /// The most pending and firing alerts; 0 is no limit.
    pub limit: usize,
    /// `$externalLabels` of templates.
    pub external_labels: &'a Labels,
    /// `$externalURL` of templates.
    pub external_url: &'a str,
}

#[derive(Clone, Debug)]
struct Tracked {
    alert: Alert,
    /// Came from the store and was not confirmed by a sample over a settled window yet.
    restored: bool,
}

/// The alerts of one rule.
#[derive(Clone, Debug)]
pub struct RuleState {
    rule: Arc<AlertRule>,
    id: String,
    alerts: BTreeMap<Labels, Tracked>,
}

impl RuleState {
    /// Begins without alerts. `id` is unique among the loaded rules and goes into [`Alert::rule`].
    pub fn new(rule: Arc<AlertRule>, id: impl Into<String>) -> Self {
        Self { rule, id: id.into(), alerts: BTreeMap::new() }
    }

    /// Returns the rule.
    pub fn rule(&self) -> &Arc<AlertRule> {
        &self.rule
    }

    /// Returns the unique name of the rule: `group/alertname`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns all alerts, those that ended lately among them, sorted by labels.
    pub fn alerts(&self) -> impl Iterator<Item = &Alert> {
        self.alerts.values().map(|tracked| &tracked.alert)
    }

    /// Takes the result of the expression at `turn.now` and moves every alert.
    ///
    /// # Errors
    /// See [`RuleError`].
    pub fn step(&mut self, results: &[(Labels, f64)], turn: &Turn<'_>) -> Result<(), RuleError> {
        let (now, rule) = (turn.now, self.rule.clone());
        let mut present: BTreeMap<Labels, (f64, Labels)> = BTreeMap::new();
        for (sample, value) in results {
            let facts = Facts { labels: sample, value: *value, external_labels: turn.external_labels, external_url: turn.external_url };
            let own = rule.labels.iter().map(|(name, template)| (name.clone(), template.expand(&facts)));
            let labels = sample.without(|name| name == NAME).with(own.chain([("alertname".to_owned(), rule.name.clone())]));
            let annotations = Labels::new(rule.annotations.iter().map(|(name, template)| (name.clone(), template.expand(&facts))));
            if present.insert(labels.clone(), (*value, annotations)).is_some() {
                return Err(RuleError::Duplicate(labels));
            }
        }
        let seen: BTreeSet<Labels> = present.keys().cloned().collect();
        for (labels, (value, annotations)) in present {
            match self.alerts.get_mut(&labels) {
                Some(tracked) if tracked.alert.state != AlertState::Inactive => {
                    tracked.alert.value = value;
                    tracked.alert.annotations = annotations;
                }
                // One that ended and is still remembered begins anew: a new episode.
                _ => {
                    let alert = Alert {
                        labels: labels.clone(),
                        annotations,
                        state: AlertState::Pending,
                        value,
                        active_at: now,
                        fired_at: None,
                        resolved_at: None,
                        keep_firing_since: None,
                        rule: self.id.clone(),
                        evidence: Vec::new(),
                        attempts: Vec::new(),
                    };
                    self.alerts.insert(labels, Tracked { alert, restored: false });
                }
            }
        }
        let mut active = 0;
        self.alerts.retain(|labels, tracked| {
            let (keep, counts) = move_one(tracked, seen.contains(labels), &rule, turn);
            active += usize::from(keep && counts);
            keep
        });
        if turn.limit > 0 && active > turn.limit {
            self.alerts.clear();
            return Err(RuleError::Limit { limit: turn.limit, found: active });
        }
        Ok(())
    }

    /// Says whether an alert of the store is one of this rule: the name and every label that is not templated agree.
    pub fn owns(&self, alert: &Alert) -> bool {
        alert.name() == self.rule.name
            && self.rule.labels.iter().all(|(name, template)| {
                let source = template.source();
                source.contains("{{") || name == "alertname" || alert.labels.get(name).unwrap_or("") == source
            })
    }

    /// Takes an alert back from the store exactly as it was; the time while Proctor was down does not count toward
    /// `for`. `down_since` is when the rules last had a turn; where nobody knows, `for` begins anew.
    pub fn restore(&mut self, mut alert: Alert, down_since: Option<Timestamp>, now: Timestamp) {
        if alert.state == AlertState::Pending {
            alert.active_at = down_since.map_or(now, |since| (alert.active_at + now.since(since)).min(now));
        }
        alert.rule.clone_from(&self.id);
        self.alerts.insert(alert.labels.clone(), Tracked { alert, restored: true });
    }

    /// Takes over the alerts of the same rule as it was before a reload.
    pub fn take_over(&mut self, before: Self) {
        self.alerts = before.alerts;
        for tracked in self.alerts.values_mut() {
            tracked.alert.rule.clone_from(&self.id);
        }
    }
}

/// Moves one alert; returns whether it stays, and whether it counts as active.
fn move_one(tracked: &mut Tracked, present: bool, rule: &AlertRule, turn: &Turn<'_>) -> (bool, bool) {
    let now = turn.now;
    if turn.settled && turn.ready {
        tracked.restored = false;
    }
    let alert = &mut tracked.alert;
    if present {
        alert.keep_firing_since = None;
    } else if tracked.restored && alert.state != AlertState::Inactive {
        // What the window does not hold yet is not gone.
        return (true, true);
    } else {
        let mut kept = false;
        if alert.state == AlertState::Firing && !rule.keep_firing_for.is_zero() {
            let since = *alert.keep_firing_since.get_or_insert(now);
            kept = now.since(since) < rule.keep_firing_for;
        }
        let forgotten = alert.resolved_at.is_some_and(|at| now.since(at) > RESOLVED_RETENTION);
        if alert.state == AlertState::Pending || forgotten {
            return (false, false);
        }
        if !kept {
            if alert.state != AlertState::Inactive {
                alert.state = AlertState::Inactive;
                alert.resolved_at = Some(now);
            }
            return (true, false);
        }
    }
    let held = now.since(alert.active_at) >= rule.hold;
    if alert.state == AlertState::Pending && held && turn.ready {
        alert.state = AlertState::Firing;
        alert.fired_at = Some(now);
    }
    if alert.state == AlertState::Firing && !held {
        alert.state = AlertState::Pending;
        alert.fired_at = None;
        alert.keep_firing_since = None;
    }
    (true, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::template::Template;

    const NONE: &[&str] = &[];

    fn rule(hold: u64, keep: u64, labels: &[(&str, &str)]) -> Arc<AlertRule> {
        let parse = |(name, text): &(&str, &str)| ((*name).to_owned(), Template::parse(text).expect("a template"));
        Arc::new(AlertRule {
            name: "Down".into(),
            hold: Duration::from_secs(hold),
            keep_firing_for: Duration::from_secs(keep),
            labels: labels.iter().map(parse).collect(),
            annotations: vec![parse(&("summary", "{{ $labels.probe }} {{ $value }}"))],
        })
    }

    fn turn(seconds: i64) -> Turn<'static> {
        static LABELS: std::sync::LazyLock<Labels> = std::sync::LazyLock::new(Labels::default);
        Turn { now: Timestamp::from_secs(seconds), ready: true, settled: true, limit: 0, external_labels: &LABELS, external_url: "" }
    }

    fn samples(probes: &[&str]) -> Vec<(Labels, f64)> {
        probes.iter().map(|probe| (Labels::new([(NAME, "up"), ("probe", probe)]), 1.0)).collect()
    }

    /// Prints the alerts in short: `web firing 10/70` is active since 10 and firing since 70.
    fn shown(state: &RuleState) -> Vec<String> {
        let seconds = |at: Option<Timestamp>| at.map_or("-".to_owned(), |at| (at.0 / 1000).to_string());
        state
            .alerts()
            .map(|a| {
                let kept = a.keep_firing_since.map_or(String::new(), |at| format!(" kept since {}", at.0 / 1000));
                let ended = a.resolved_at.map_or(String::new(), |at| format!(" ended {}", at.0 / 1000));
                format!("{} {:?} {}/{}{kept}{ended}", a.probe().unwrap_or(""), a.state, a.active_at.0 / 1000, seconds(a.fired_at))
            })
            .collect()
    }

    /// One row: when, which probes fail, what the alerts are afterwards.
    fn walk(state: &mut RuleState, rows: &[(i64, &[&str], &[&str])]) {
        for (at, failing, wanted) in rows {
            state.step(&samples(failing), &turn(*at)).expect("has no error");
            assert_eq!(shown(state), *wanted, "at {at}s");
        }
    }

    #[test]
    fn an_alert_is_pending_for_its_for_then_fires_then_ends_and_is_forgotten_after_15_minutes() {
        walk(
            &mut RuleState::new(rule(60, 0, &[]), "g/Down"),
            &[
                (0, NONE, NONE),
                (10, &["web"], &["web Pending 10/-"]),
                (69, &["web"], &["web Pending 10/-"]),
                (70, &["web"], &["web Firing 10/70"]),
                (80, &["web", "db"], &["db Pending 80/-", "web Firing 10/70"]),
                (90, NONE, &["web Inactive 10/70 ended 90"]),
                (990, NONE, &["web Inactive 10/70 ended 90"]),
                (991, NONE, NONE),
            ],
        );
    }

    #[test]
    fn without_for_it_fires_in_the_same_turn_and_a_second_time_is_a_new_alert() {
        walk(
            &mut RuleState::new(rule(0, 0, &[]), "g/Down"),
            &[
                (10, &["web"], &["web Firing 10/10"]),
                (20, NONE, &["web Inactive 10/10 ended 20"]),
                (30, &["web"], &["web Firing 30/30"]),
                (40, NONE, &["web Inactive 30/30 ended 40"]),
            ],
        );
    }

    #[test]
    fn keep_firing_for_holds_an_alert_and_begins_anew_when_the_condition_returns() {
        walk(
            &mut RuleState::new(rule(0, 60, &[]), "g/Down"),
            &[
                (0, &["web"], &["web Firing 0/0"]),
                (10, NONE, &["web Firing 0/0 kept since 10"]),
                (50, &["web"], &["web Firing 0/0"]),
                (60, NONE, &["web Firing 0/0 kept since 60"]),
                (119, NONE, &["web Firing 0/0 kept since 60"]),
                (120, NONE, &["web Inactive 0/0 kept since 60 ended 120"]),
            ],
        );
    }

    #[test]
    fn pending_and_keep_firing_for_a_pending_alert_is_not_kept() {
        walk(
            &mut RuleState::new(rule(60, 60, &[]), "g/Down"),
            &[(0, &["web"], &["web Pending 0/-"]), (10, NONE, NONE), (20, &["web"], &["web Pending 20/-"])],
        );
    }

    #[test]
    fn a_firing_alert_is_reset_to_pending_when_a_reload_makes_its_for_longer() {
        let mut before = RuleState::new(rule(60, 0, &[]), "g/Down");
        walk(&mut before, &[(0, &["web"], &["web Pending 0/-"]), (60, &["web"], &["web Firing 0/60"])]);
        let mut after = RuleState::new(rule(300, 0, &[]), "h/Down");
        after.take_over(before);
        walk(&mut after, &[(120, &["web"], &["web Pending 0/-"]), (300, &["web"], &["web Firing 0/300"])]);
        assert_eq!(after.alerts().next().expect("one").rule, "h/Down");
    }

    #[test]
    fn two_samples_that_make_one_alert_are_an_error_and_states_stay() {
        let mut state = RuleState::new(rule(0, 0, &[("probe", "same")]), "g/Down");
        state.step(&samples(&["web"]), &turn(0)).expect("one is fine");
        let error = state.step(&samples(&["web", "db"]), &turn(10)).expect_err("two are not");
        assert_eq!(
            error.to_string(),
            "two samples of the expression make the same alert {alertname=\"Down\", probe=\"same\"}: let the labels of the rule tell them apart"
        );
        assert_eq!(shown(&state), ["same Firing 0/0"]);
    }

    #[test]
    fn more_alerts_than_the_limit_drop_all_of_them() {
        let mut state = RuleState::new(rule(60, 0, &[]), "g/Down");
        let limited = |at| Turn { limit: 1, ..turn(at) };
        state.step(&samples(&["web"]), &limited(0)).expect("one is allowed");
        assert_eq!(state.step(&samples(&["web", "db"]), &limited(10)), Err(RuleError::Limit { limit: 1, found: 2 }));
        assert_eq!(shown(&state), NONE);
    }

    #[test]
    fn labels_are_the_samples_without_the_name_then_the_rules_and_an_empty_one_is_removed() {
        let labels =
            [("severity", "critical"), ("probe", "{{ $labels.nope }}"), ("copy", "{{ $labels.probe }}!"), ("raw", "{{ $labels.raw }}")];
        let mut state = RuleState::new(rule(0, 0, &labels), "g/Down");
        let sample = Labels::new([(NAME, "up"), ("probe", "web"), ("raw", "{{ $value }}"), ("alertname", "lies")]);
        state.step(&[(sample, 2.5)], &turn(0)).expect("is fine");
        let alert = state.alerts().next().expect("one");
        assert_eq!(alert.labels.to_string(), r#"{alertname="Down", copy="web!", raw="{{ $value }}", severity="critical"}"#);
        assert_eq!(alert.annotations.get("summary"), Some("web 2.5"));
    }

    #[test]
    fn while_an_alert_goes_on_only_its_value_and_annotations_change() {
        let mut state = RuleState::new(rule(0, 0, &[]), "g/Down");
        walk(&mut state, &[(0, &["web"], &["web Firing 0/0"])]);
        state.step(&[(Labels::new([("probe", "web")]), 7.0)], &turn(10)).expect("is fine");
        let alert = state.alerts().next().expect("one");
        assert_eq!((alert.value, alert.annotations.get("summary"), alert.active_at), (7.0, Some("web 7"), Timestamp(0)));
    }

    fn restored(hold: u64, keep: u64, stored: &[&str], after: i64) -> RuleState {
        let mut before = RuleState::new(rule(60, keep, &[]), "g/Down");
        for at in [0, 60] {
            before.step(&samples(stored), &turn(at)).expect("is fine");
        }
        let mut state = RuleState::new(rule(hold, keep, &[]), "g/Down");
        for alert in before.alerts() {
            assert!(state.owns(alert));
            state.restore(alert.clone(), Some(Timestamp::from_secs(60)), Timestamp::from_secs(after));
        }
        state
    }

    #[test]
    fn a_restored_alert_does_not_end_before_the_window_reaches_back_and_every_probe_answered() {
        for (ready, settled) in [(false, false), (true, false), (false, true)] {
            let mut state = restored(60, 0, &["web"], 100);
            state.step(&[], &Turn { ready, settled, ..turn(110) }).expect("is fine");
            assert_eq!(shown(&state), ["web Firing 0/60"], "ready {ready}, settled {settled}");
            state.step(&[], &turn(120)).expect("is fine");
            assert_eq!(shown(&state), ["web Inactive 0/60 ended 120"]);
        }
    }

    #[test]
    fn down_time_does_not_count_toward_for() {
        let mut before = RuleState::new(rule(60, 0, &[]), "g/Down");
        walk(&mut before, &[(0, &["web"], &["web Pending 0/-"]), (50, &["web"], &["web Pending 0/-"])]);
        let stored = before.alerts().next().expect("one").clone();
        for (down_since, active_at) in [(Some(Timestamp::from_secs(50)), 950), (None, 1000)] {
            let mut state = RuleState::new(rule(60, 0, &[]), "g/Down");
            state.restore(stored.clone(), down_since, Timestamp::from_secs(1000));
            assert_eq!(shown(&state), [format!("web Pending {active_at}/-")]);
            let fires = active_at + 60;
            walk(&mut state, &[(fires - 1, &["web"], &[&format!("web Pending {active_at}/-")])]);
            walk(&mut state, &[(fires, &["web"], &[&format!("web Firing {active_at}/{fires}")])]);
        }
    }

    #[test]
    fn nothing_begins_to_fire_before_every_probe_answered_once() {
        let mut state = RuleState::new(rule(0, 0, &[]), "g/Down");
        let early = |at| Turn { ready: false, ..turn(at) };
        state.step(&samples(&["web"]), &early(0)).expect("is fine");
        assert_eq!(shown(&state), ["web Pending 0/-"]);
        walk(&mut state, &[(10, &["web"], &["web Firing 0/10"])]);
    }

    #[test]
    fn keep_firing_since_and_an_end_survive_a_restart() {
        let mut before = RuleState::new(rule(0, 60, &[]), "g/Down");
        walk(&mut before, &[(0, &["web"], &["web Firing 0/0"]), (10, NONE, &["web Firing 0/0 kept since 10"])]);
        let mut state = RuleState::new(rule(0, 60, &[]), "g/Down");
        state.restore(before.alerts().next().expect("one").clone(), None, Timestamp::from_secs(20));
        walk(&mut state, &[(69, NONE, &["web Firing 0/0 kept since 10"]), (70, NONE, &["web Inactive 0/0 kept since 10 ended 70"])]);
        let mut again = RuleState::new(rule(0, 60, &[]), "g/Down");
        again.restore(state.alerts().next().expect("one").clone(), None, Timestamp::from_secs(80));
        walk(&mut again, &[(90, NONE, &["web Inactive 0/0 kept since 10 ended 70"]), (1000, NONE, NONE)]);
    }
}
