//! What happens when, once something fails: worked out from the configuration and its rules, before it matters.
//!
//! A failure of each probe is played through the rules as they are: samples of a probe that worked and then fails, in a
//! window of their own, turns of the rules, the alerts that come of it. The moments are the latest ones: the service
//! dies right after a run, the next run hangs until its timeout, and each turn of the rules was just missed. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::Metrics;
use crate::model::duration::print;
use crate::model::labels::NAME;
use crate::model::{Alert, AlertState, Labels, Matcher, Reason, Timestamp};
use crate::notify::message::is_only_worth_knowing;
use crate::notify::{Mode, NotifyConfig};
use crate::probe::scheduler::{FAILURE, SUCCESS};
use crate::promql::{DEFAULT_STEP, LOOK_BACK};
use crate::rules::load::{Rule, RuleGroup, RuleKind};
use crate::rules::running::Running;
use crate::rules::state::Turn;
use crate::window::{Limits, Window};

/// The most probes that are played through; of the others it is said how many they are.
pub const MAX_PROBES: usize = 200;
/// The most names before one line says how many more there are.
const MAX_NAMES: usize = 6;
/// The most turns of the fastest group before the failure, and after it.
const MAX_TURNS: u32 = 500;
/// The most runs of the probe before the failure, and after it.
const MAX_RUNS: u32 = 2000;

/// A probe, or one target of it.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The probe's name.
    pub probe: String,
    /// Which target, where the probe has several.
    pub target: Option<String>,
    /// Time between two runs.
    pub interval: Duration,
    /// The limit of a run.
    pub timeout: Duration,
    /// The exporter's own `<x>_up` that it gives.
    pub up: Option<&'static str>,
}

/// An action, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Repair<'a> {
    /// Its name.
    pub name: &'a str,
    /// How long the alert must have been firing.
    pub firing_for: Duration,
    /// Whether it acts, or only says what it would do.
    pub acts: bool,
    /// Which alerts it is for.
    pub matchers: &'a [Matcher],
}

/// What happens when, after one probe's service dies.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Timeline {
    /// The probes that this holds for.
    probes: Vec<String>,
    /// What happens, with the latest moment; in that order.
    steps: Vec<(String, Duration)>,
    /// Whether any rule makes an alert of it.
    alerts: bool,
}

/// An alert that comes of a failure, and the latest moment at which it fires.
struct Fires {
    alert: Alert,
    at: Duration,
    /// Whether it came to fire while it was played.
    fires: bool,
}

/// Says what happens when, for every probe, and which actions are for no alert: lines for people.
pub fn describe(
    subjects: impl IntoIterator<Item = Subject>,
    rules: &[RuleGroup],
    site_labels: &Labels,
    notify: Option<&NotifyConfig>,
    repairs: &[Repair<'_>],
) -> Vec<String> {
    let mut timelines: Vec<Timeline> = Vec::new();
    let mut seen = BTreeSet::new();
    // The targets of a probe have the same interval and the same metrics: one stands for all.
    let mut subjects = subjects.into_iter().filter(|subject| seen.insert(subject.probe.clone()));
    let mut rare = Vec::new();
    for subject in subjects.by_ref().take(MAX_PROBES) {
        if subject.interval > LOOK_BACK {
            let (name, every, seen) = (&subject.probe, print(subject.interval), print(LOOK_BACK));
            rare.push(format!("probe {name} runs every {every}, but rules see a result for {seen}: its alerts end in between"));
        }
        let one = timeline(&subject, rules, site_labels, notify, repairs);
        match timelines.iter_mut().find(|known| known.steps == one.steps) {
            Some(known) => known.probes.extend(one.probes),
            None => timelines.push(one),
        }
    }
    let more = subjects.count();
    let mut lines: Vec<String> = timelines.iter().map(Timeline::line).collect();
    if more > 0 {
        lines.push(format!("… and {more} more probes"));
    }
    lines.append(&mut rare);
    for repair in repairs.iter().filter(|repair| !has_alert(repair, rules)) {
        let matchers: Vec<String> = repair.matchers.iter().map(ToString::to_string).collect();
        lines.push(format!("action {} is for no alert of the rules: none has {}", repair.name, matchers.join(" and ")));
    }
    if notify.is_none() && !timelines.is_empty() {
        lines.push("nobody is mailed: there is no notify section".to_owned());
    }
    lines
}

fn timeline(subject: &Subject, rules: &[RuleGroup], site: &Labels, notify: Option<&NotifyConfig>, repairs: &[Repair<'_>]) -> Timeline {
    // A service that hangs is the slowest to be seen; a rule may ask for another reason.
    let others = || Reason::ALL.iter().filter(|reason| **reason != Reason::AnswerTimeout);
    let seen = subject.interval + subject.timeout;
    let mut fires = play(subject, Reason::AnswerTimeout, rules, site);
    if fires.is_empty() {
        fires = others().map(|reason| play(subject, *reason, rules, site)).find(|fires| !fires.is_empty()).unwrap_or_default();
    }
    let mut steps = vec![("down".to_owned(), Duration::ZERO), ("seen".to_owned(), seen)];
    for fires in &fires {
        steps.push((format!("alert {}", fires.alert.name()), seen + fires.at));
        for repair in repairs.iter().filter(|repair| repair.matchers.iter().all(|matcher| matcher.matches(&fires.alert.labels))) {
            let note = if repair.acts { "" } else { " (observe)" };
            steps.push((format!("{}{note}", repair.name), seen + fires.at + repair.firing_for));
        }
    }
    if let (Some(notify), Some(first)) =
        (notify, fires.iter().filter(|fires| !is_only_worth_knowing(&fires.alert)).map(|fires| fires.at).min())
    {
        let note = if notify.mode == Mode::Observe { " (observe)" } else { "" };
        steps.push((format!("mail{note}"), seen + first + notify.group_wait));
    }
    steps.sort_by_key(|(_, at)| *at);
    Timeline { probes: vec![subject.probe.clone()], steps, alerts: !fires.is_empty() }
}

/// One rule in the play, with its group.
struct Playing<'a> {
    group: &'a RuleGroup,
    running: Running,
}

/// Lets a probe fail and returns which alerts come of it, each with the latest moment after the first failed run.
fn play(subject: &Subject, reason: Reason, rules: &[RuleGroup], site: &Labels) -> Vec<Fires> {
    let own = [("probe", subject.probe.as_str()), ("target", subject.target.as_deref().unwrap_or(""))];
    let series = |name: &str| site.with(own).with([(NAME, name)]);
    let health: Vec<Labels> = [SUCCESS.name].into_iter().chain(subject.up).map(series).collect();
    let failure = series(FAILURE.name).with([("reason", reason.as_str())]);
    let mut playing = concerned(rules, health.iter().chain([&failure]).filter_map(|labels| labels.get(NAME)));
    let Some(step) = playing.iter().map(|one| one.group.interval).min() else { return Vec::new() };
    let look_back = playing.iter().map(|one| one.running.rule.expr.look_back()).max().unwrap_or_default();
    let span = millis(look_back.min(step.saturating_mul(MAX_TURNS)).min(subject.interval.saturating_mul(MAX_RUNS)));
    let (step, run_every) = (millis(step), millis(subject.interval));

    let window = Window::of_all_time(Limits::default(), Arc::new(Metrics::new()));
    let died = Timestamp(span);
    let mut run = -(span / run_every);
    let mut healthy: BTreeSet<Labels> = BTreeSet::new();
    let mut active: BTreeMap<Labels, Fires> = BTreeMap::new();
    // As long before the failure as the rules look back, and a little longer after it.
    for turn in -(span / step)..=span / step + 3 {
        let after = turn * step;
        while run * run_every <= after {
            let at = Timestamp(died.0 + run * run_every);
            health.iter().for_each(|labels| window.append(labels.clone(), at, if run < 0 { 1.0 } else { 0.0 }));
            if run >= 0 {
                window.append(failure.clone(), at, 1.0);
            }
            run += 1;
        }
        for Playing { group, running } in &mut playing {
            let interval = millis(group.interval);
            // A run that says something else than the last one is judged at once, whatever the slot.
            if turn != 0 && after.rem_euclid(interval) >= step {
                continue;
            }
            let now = Timestamp(died.0 + after);
            let facts = Turn { now, ready: true, settled: true, limit: group.limit, external_labels: site, external_url: "" };
            if running.turn(&window, now - group.query_offset, DEFAULT_STEP, &facts).is_err() {
                continue;
            }
            let Some(state) = &running.state else { continue };
            for alert in state.alerts().filter(|alert| alert.state != AlertState::Inactive) {
                if after < 0 {
                    healthy.insert(alert.labels.clone());
                    continue;
                }
                // The slots stand anywhere: each that is waited for may just have passed.
                let slot = |waited: bool| if waited { group.interval } else { Duration::ZERO };
                let hold = state.rule().hold;
                let fires = Duration::from_millis(after.unsigned_abs()) + slot(after > 0) + hold + slot(!hold.is_zero());
                active.entry(alert.labels.clone()).or_insert_with(|| Fires { alert: alert.clone(), at: fires, fires: false });
                if let Some(known) = active.get_mut(&alert.labels) {
                    known.fires |= alert.is_firing();
                }
            }
        }
        // What was active for a moment only, and not for its `for`, is no alert.
        let pending: BTreeSet<&Labels> = playing
            .iter()
            .filter_map(|one| one.running.state.as_ref())
            .flat_map(|state| state.alerts())
            .filter(|alert| alert.state != AlertState::Inactive)
            .map(|alert| &alert.labels)
            .collect();
        active.retain(|labels, fires| fires.fires || pending.contains(labels));
    }
    let mut found: Vec<Fires> = active.into_values().filter(|fires| !healthy.contains(&fires.alert.labels)).collect();
    found.sort_by_key(|fires| fires.at);
    found
}

/// Returns the rules that may say something of these series: those that read one of them, what a rule recorded, or
/// whatever there is.
fn concerned<'a: 'b, 'b>(rules: &'a [RuleGroup], series: impl Iterator<Item = &'b str>) -> Vec<Playing<'a>> {
    let all = || rules.iter().flat_map(|group| group.rules.iter().enumerate().map(move |(index, rule)| (group, index, rule)));
    let recorded = all().filter(|(_, _, rule)| matches!(rule.kind, RuleKind::Recording { .. })).map(|(_, _, rule)| rule.name());
    let known: BTreeSet<&str> = series.chain(recorded).chain(["ALERTS", "ALERTS_FOR_STATE"]).collect();
    let concerns = |rule: &Rule| {
        let read = rule.expr.metric_names();
        read.is_empty() || read.iter().any(|name| known.contains(name.as_str()))
    };
    all()
        .filter(|(_, _, rule)| concerns(rule))
        .map(|(group, index, rule)| Playing { group, running: Running::new(rule.clone(), group.rule_id(index)) })
        .collect()
}

/// Says whether some rule may make an alert that an action is for, as far as its labels are known.
fn has_alert(repair: &Repair<'_>, rules: &[RuleGroup]) -> bool {
    let alerting = rules.iter().flat_map(|group| &group.rules).filter_map(|rule| match &rule.kind {
        RuleKind::Alerting(alert) => Some(alert),
        RuleKind::Recording { .. } => None,
    });
    alerting.into_iter().any(|alert| {
        repair.matchers.iter().all(|matcher| {
            let known = alert.labels.iter().find(|(name, _)| *name == matcher.name).map(|(_, text)| text.source());
            match known.filter(|text| !text.contains("{{")) {
                Some(text) => matcher.matches_value(text),
                None => matcher.name != "alertname" || matcher.matches_value(&alert.name),
            }
        })
    })
}

impl Timeline {
    /// `cache, pages: down 0:00 → seen 0:20 → alert MemcachedDown 1:35 → mail 1:40`.
    fn line(&self) -> String {
        let steps: Vec<String> = self.steps.iter().map(|(what, at)| format!("{what} {}", clock(*at))).collect();
        let end = if self.alerts { "" } else { " → no rule makes an alert of it" };
        let mut names = self.probes[..self.probes.len().min(MAX_NAMES)].join(", ");
        if self.probes.len() > MAX_NAMES {
            names += &format!(" and {} more", self.probes.len() - MAX_NAMES);
        }
        format!("{names}: {}{end}", steps.join(" → "))
    }
}

/// Prints a time as `0:45` or `1:02:05`; a part of a second counts as one.
fn clock(time: Duration) -> String {
    let seconds = time.as_millis().div_ceil(1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours == 0 { format!("{minutes}:{seconds:02}") } else { format!("{hours}:{minutes:02}:{seconds:02}") }
}

/// Returns milliseconds, at least one and at most about 9,000 years, so that sums of them do not overflow.
fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX).clamp(1, 1 << 48)
}
