//! One rule as it runs: a turn evaluates it, moves its alerts, and writes its series into the window. The loop of the
//! groups and the unit tests of rules take the same turns. No clock: `now` is an argument.

use std::collections::BTreeSet;
use std::time::Duration;

use super::load::{Rule, RuleKind};
use super::state::{RuleError, RuleState, Turn};
use crate::model::labels::NAME;
use crate::model::{Alert, AlertState, Labels, Timestamp};
use crate::promql::{EvalError, Value};
use crate::window::{STALE, Window};

/// Why a turn failed. States and series are as before then, but for [`RuleError::Limit`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TurnError {
    /// The expression cannot be evaluated now.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// Its result makes no alerts or series.
    #[error(transparent)]
    Rule(#[from] RuleError),
}

/// One rule and what it remembers from turn to turn.
#[derive(Clone, Debug)]
pub struct Running {
    /// The rule.
    pub rule: Rule,
    /// Its alerts; nothing for a recording rule.
    pub state: Option<RuleState>,
    /// The series that it wrote last time, to end those that it gives no more.
    written: BTreeSet<Labels>,
}

impl Running {
    /// Begins without alerts and series. `id` is unique among the loaded rules.
    pub fn new(rule: Rule, id: impl Into<String>) -> Self {
        let state = match &rule.kind {
            RuleKind::Alerting(alerting) => Some(RuleState::new(alerting.clone(), id)),
            RuleKind::Recording { .. } => None,
        };
        Self { rule, state, written: BTreeSet::new() }
    }

    /// Evaluates over the window at `at`, moves the alerts, and writes what the rule records, or `ALERTS` and
    /// `ALERTS_FOR_STATE` as Prometheus does. `step` is that of subqueries that name none.
    ///
    /// # Errors
    /// See [`TurnError`].
    pub fn turn(&mut self, window: &Window, at: Timestamp, step: Duration, turn: &Turn<'_>) -> Result<(), TurnError> {
        let results = match self.rule.expr.eval_stepping(window, at, step)? {
            Value::Vector(vector) => vector,
            Value::Scalar(value) => vec![(Labels::default(), value)],
            Value::String(_) => Vec::new(),
        };
        let series = match (&mut self.state, &self.rule.kind) {
            (Some(state), _) => {
                state.step(&results, turn)?;
                state.alerts().flat_map(series_of).collect()
            }
            (None, RuleKind::Recording { name, labels }) => record(name, labels, results, turn.limit)?,
            (None, RuleKind::Alerting(_)) => Vec::new(),
        };
        let written: BTreeSet<Labels> = series.iter().map(|(labels, _)| labels.clone()).collect();
        for (labels, value) in series {
            window.append(labels, at, value);
        }
        for ended in self.written.difference(&written) {
            window.append(ended.clone(), at, STALE);
        }
        self.written = written;
        Ok(())
    }
}

/// The series of one alert: which state it is in, and since when it is active, in seconds since the epoch.
fn series_of(alert: &Alert) -> Vec<(Labels, f64)> {
    let state = match alert.state {
        AlertState::Pending => "pending",
        AlertState::Firing => "firing",
        AlertState::Inactive => return Vec::new(),
    };
    vec![
        (alert.labels.with([(NAME, "ALERTS"), ("alertstate", state)]), 1.0),
        (alert.labels.with([(NAME, "ALERTS_FOR_STATE")]), alert.active_at.0.div_euclid(1000) as f64),
    ]
}

/// The series of a recording rule.
fn record(name: &str, labels: &Labels, results: Vec<(Labels, f64)>, limit: usize) -> Result<Vec<(Labels, f64)>, RuleError> {
    let named = || labels.shared().chain([(NAME.into(), name.into())]);
    let series: Vec<(Labels, f64)> = results.into_iter().map(|(of, value)| (of.with(named()), value)).collect();
    let mut seen = BTreeSet::new();
    if let Some((twice, _)) = series.iter().find(|(labels, _)| !seen.insert(labels)) {
        return Err(RuleError::SameSeries(twice.clone()));
    }
    if limit > 0 && series.len() > limit {
        return Err(RuleError::SeriesLimit { limit, found: series.len() });
    }
    Ok(series)
}
