//! Runs one test: series go, as their time comes, into a window of its own, turns of all rules, then what was expected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{AlertTest, Asked, ExpectedAlert, Ready};
use crate::client::net::chain;
use crate::metrics::Metrics;
use crate::model::decode::Spanned;
use crate::model::duration::print;
use crate::model::{Alert, AlertState, Labels, Problems, Timestamp};
use crate::promql::Value;
use crate::rules::load::{AlertRule, RuleGroup};
use crate::rules::running::Running;
use crate::rules::state::Turn;
use crate::window::{Limits, Window};

type Pairs = BTreeMap<String, String>;

pub(super) fn run(ready: &Ready<'_>, groups: &[RuleGroup], interval: Duration, fuzzy: bool, problems: &mut Problems) {
    let test = ready.test;
    let window = Window::of_all_time(Limits::default(), Arc::new(Metrics::new()));
    let start = test.start_timestamp.0;
    let mut rules: Vec<(&RuleGroup, Running)> = groups
        .iter()
        .flat_map(|group| {
            group.rules.iter().enumerate().map(move |(index, rule)| (group, Running::new(rule.clone(), group.rule_id(index))))
        })
        .collect();
    let mut input = Input { ready, interval: test.interval.filter(|given| !given.is_zero()).unwrap_or(interval), given: 0 };
    let told = if test.name.is_empty() { String::new() } else { format!("{}: ", test.name) };
    let mut after = Duration::ZERO;
    loop {
        let now = start + after;
        input.give(&window, start, after);
        let mut failed = false;
        for (group, running) in &mut rules {
            let turn = Turn {
                now,
                ready: true,
                settled: true,
                limit: group.limit,
                external_labels: &test.external_labels,
                external_url: &test.external_url,
            };
            if let Err(error) = running.turn(&window, now - group.query_offset, interval, &turn) {
                failed = true;
                let (rule, group) = (running.rule.name(), &group.name);
                problems.push(ready.at, format!("{told}rule {rule} of group {group} at {}: {}", print(after), chain(&error)));
            }
        }
        if failed {
            return;
        }
        for expected in test.alert_rule_test.iter().filter(|test| after <= test.eval_time && test.eval_time < after + interval) {
            let alerts: Vec<(Pairs, Pairs, AlertState)> = rules
                .iter()
                .filter_map(|(_, running)| running.state.as_ref())
                .filter(|state| state.rule().name == expected.alertname.value)
                .flat_map(|state| state.alerts().map(|alert| described(alert, state.rule())))
                .collect();
            if let Some(difference) = differ(expected, &alerts, after) {
                problems.push(expected.at, format!("{told}{} at {}: {difference}", expected.alertname.value, print(expected.eval_time)));
            }
        }
        if after + interval > test.last_time() {
            break;
        }
        after += interval;
    }
    for asked in &ready.expressions {
        let at = asked.test.eval_time;
        if let Err(difference) = same(asked, &window, start + at, interval, fuzzy) {
            problems.push(asked.test.at, format!("{told}{} at {}: {difference}", asked.test.expr.trim(), print(at)));
        }
    }
}

/// The samples of a test, given to the window as their time comes.
struct Input<'a> {
    ready: &'a Ready<'a>,
    interval: Duration,
    /// How many samples of each series were given.
    given: usize,
}

impl Input<'_> {
    fn give(&mut self, window: &Window, start: Timestamp, until: Duration) {
        let longest = self.ready.series.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
        while self.given < longest {
            let Some(after) = u32::try_from(self.given).ok().and_then(|given| self.interval.checked_mul(given)) else { return };
            if after > until {
                return;
            }
            for (labels, values) in &self.ready.series {
                if let Some(Some(value)) = values.get(self.given) {
                    window.append(labels.clone(), start + after, *value);
                }
            }
            self.given += 1;
        }
    }
}

/// Returns labels, annotations and state. An annotation that expands to nothing is there, as promtool compares it; a
/// label that does is not.
fn described(alert: &Alert, rule: &AlertRule) -> (Pairs, Pairs, AlertState) {
    let text = |name: &str| alert.annotations.get(name).unwrap_or("").to_owned();
    let annotations = rule.annotations.iter().map(|(name, _)| (name.clone(), text(name))).collect();
    (alert.labels.clone().into(), annotations, alert.state)
}

/// Says in what the alerts that fire differ from the expected ones.
fn differ(expected: &Spanned<AlertTest>, alerts: &[(Pairs, Pairs, AlertState)], now: Duration) -> Option<String> {
    let firing = alerts.iter().filter(|(.., state)| *state == AlertState::Firing);
    let mut found: Vec<(Pairs, Pairs)> = firing.map(|(labels, annotations, _)| (labels.clone(), annotations.clone())).collect();
    let mut missing: Vec<(Pairs, Pairs)> = Vec::new();
    for alert in &expected.exp_alerts {
        let wanted = wanted(alert, &expected.alertname);
        match found.iter().position(|alert| *alert == wanted) {
            Some(index) => drop(found.swap_remove(index)),
            None => missing.push(wanted),
        }
    }
    let mut lines = Vec::new();
    for (labels, annotations) in &missing {
        let shown = shown(labels);
        // The same alert with other texts is shown by what is other.
        if let Some(index) = found.iter().position(|(of, _)| of == labels) {
            let (_, texts) = found.swap_remove(index);
            let names: BTreeSet<&String> = annotations.keys().chain(texts.keys()).collect();
            let text = |of: &Pairs, name: &String| of.get(name).map_or("nothing".to_owned(), |text| format!("{text:?}"));
            for name in names.into_iter().filter(|name| annotations.get(*name) != texts.get(*name)) {
                lines.push(format!("{shown} annotation {name}: expected {}, found {}", text(annotations, name), text(&texts, name)));
            }
            continue;
        }
        let pending = alerts.iter().any(|(of, _, state)| *state == AlertState::Pending && of == labels);
        let instead = if pending { format!("is only pending at {}", print(now)) } else { "does not fire".to_owned() };
        lines.push(format!("expected, but {instead}: {shown}"));
    }
    lines.extend(found.iter().map(|(labels, _)| format!("fires, but is not expected: {}", shown(labels))));
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn wanted(alert: &ExpectedAlert, name: &str) -> (Pairs, Pairs) {
    let of =
        |pairs: &[(Spanned<String>, String)]| -> Pairs { pairs.iter().map(|(name, text)| (name.value.clone(), text.clone())).collect() };
    let mut labels = of(&alert.exp_labels.0);
    labels.insert("alertname".to_owned(), name.to_owned());
    (labels, of(&alert.exp_annotations.0))
}

/// Prints labels without the alert's name, which stands before; an empty value, which no alert has, is shown.
fn shown(labels: &Pairs) -> String {
    let pairs = labels.iter().filter(|(name, _)| *name != "alertname").map(|(name, value)| format!("{name}={value:?}"));
    format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
}

/// Says in what an expression's result differs from the expected samples.
fn same(asked: &Asked<'_>, window: &Window, at: Timestamp, step: Duration, fuzzy: bool) -> Result<(), String> {
    let mut found = match asked.expr.eval_stepping(window, at, step).map_err(|error| chain(&error))? {
        Value::Vector(vector) => vector,
        Value::Scalar(value) => vec![(Labels::default(), value)],
        Value::String(_) => return Err("expected a vector or a number, found a text".to_owned()),
    };
    let equal = |a: f64, b: f64| a == b || (fuzzy && (a.next_up() == b || a.next_down() == b));
    let mut lines = Vec::new();
    for (labels, value) in &asked.expected {
        match found.iter().position(|(of, _)| of == labels) {
            Some(index) => {
                let (_, other) = found.swap_remove(index);
                if !equal(*value, other) {
                    let hint = if value.is_nan() { ", and NaN equals nothing" } else { "" };
                    lines.push(format!("{labels}: expected {value}, found {other}{hint}"));
                }
            }
            None => lines.push(format!("expected, but not found: {labels} {value}")),
        }
    }
    lines.extend(found.iter().map(|(labels, value)| format!("found, but not expected: {labels} {value}")));
    if lines.is_empty() { Ok(()) } else { Err(lines.join("\n")) }
}
