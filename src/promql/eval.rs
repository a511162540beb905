//! Walks the tree of an expression.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use super::ast::{Kind, LOOK_BACK_MS, Node, Pinned, Selector, Subquery, When};
use super::{EvalError, MAX_WORK, Value, aggregate, binary, functions};
use crate::model::labels::NAME;
use crate::model::{Labels, Timestamp};
use crate::window::{Series, Window, is_stale};

/// An element of an instant vector.
pub(super) type Element = (Labels, f64);

/// The samples of a range `(start, end]` in milliseconds, without stale markers; no series is empty.
pub(super) struct Matrix {
    pub start: i64,
    pub end: i64,
    pub series: Vec<Series>,
}

/// One evaluation of a whole expression: what it reads, and how much of its budget it has used.
pub(super) struct Evaluation<'a> {
    window: &'a Window,
    /// The instant of the whole evaluation, which `@ start()` and `@ end()` mean.
    at: Timestamp,
    /// The step of a subquery that names none, in milliseconds.
    step: i64,
    work: Cell<usize>,
}

impl<'a> Evaluation<'a> {
    pub fn new(window: &'a Window, at: Timestamp, step: i64) -> Self {
        Self { window, at, step, work: Cell::new(0) }
    }

    /// Takes from the budget.
    pub fn spend(&self, work: usize) -> Result<(), EvalError> {
        self.work.set(self.work.get().saturating_add(work));
        if self.work.get() > MAX_WORK { Err(EvalError::TooMuch) } else { Ok(()) }
    }

    /// Evaluates a part at `t` in milliseconds, which within a subquery is not the instant of the whole.
    pub fn eval(&self, node: &Node, t: i64) -> Result<Value, EvalError> {
        self.spend(1)?;
        let value = match &node.kind {
            Kind::Number(value) => Value::Scalar(*value),
            Kind::Text(text) => Value::String(text.clone()),
            Kind::Selector(selector) => self.instant(selector, t)?,
            // The parser lets range vectors stand only where a function takes them.
            Kind::Range(..) | Kind::Subquery(_) => Value::Vector(Vec::new()),
            Kind::Call(call) => functions::call(self, call, t)?,
            Kind::Aggregate(of) => aggregate::aggregate(self, of, t)?,
            Kind::Binary(of) => binary::binary(self, of, t)?,
            Kind::Negate(inner) => negate(self.eval(inner, t)?)?,
            Kind::Paren(inner) => self.eval(inner, t)?,
        };
        self.spend(if let Value::Vector(elements) = &value { elements.len() } else { 0 })?;
        Ok(value)
    }

    fn instant(&self, selector: &Selector, t: i64) -> Result<Value, EvalError> {
        Ok(Value::Vector(self.select(selector, t)?.into_iter().map(|(labels, _, value)| (labels, value)).collect()))
    }

    /// Evaluates a part that the parser found to be an instant vector.
    pub fn vector(&self, node: &Node, t: i64) -> Result<Vec<Element>, EvalError> {
        match self.eval(node, t)? {
            Value::Vector(elements) => Ok(elements),
            Value::Scalar(value) => Ok(vec![(Labels::default(), value)]),
            Value::String(_) => Ok(Vec::new()),
        }
    }

    /// Evaluates a part that the parser found to be a scalar.
    pub fn scalar(&self, node: &Node, t: i64) -> Result<f64, EvalError> {
        match self.eval(node, t)? {
            Value::Scalar(value) => Ok(value),
            Value::Vector(_) | Value::String(_) => Ok(f64::NAN),
        }
    }

    /// Returns what an instant selector sees: labels, moment and value of each series' newest sample.
    pub fn select(&self, selector: &Selector, t: i64) -> Result<Vec<(Labels, i64, f64)>, EvalError> {
        let until = self.when(selector.when, t);
        self.spend(self.window.candidates(&selector.matchers))?;
        let found = self.window.select_newest(&selector.matchers, Timestamp(until.saturating_sub(LOOK_BACK_MS)), Timestamp(until));
        Ok(found)
    }

    /// Evaluates a part that the parser found to be a range vector.
    pub fn matrix(&self, node: &Node, t: i64) -> Result<Matrix, EvalError> {
        match &node.bare().kind {
            Kind::Range(selector, range) => {
                let end = self.when(selector.when, t);
                let start = end.saturating_sub(*range);
                self.spend(self.window.candidates(&selector.matchers))?;
                let mut series = self.window.select(&selector.matchers, Timestamp(start), Timestamp(end));
                self.spend(series.iter().map(|series| series.samples.len()).sum())?;
                for one in &mut series {
                    one.samples.retain(|(_, value)| !is_stale(*value));
                }
                series.retain(|series| !series.samples.is_empty());
                Ok(Matrix { start, end, series })
            }
            Kind::Subquery(subquery) => self.subquery(subquery, t),
            _ => Ok(Matrix { start: t, end: t, series: Vec::new() }),
        }
    }

    /// Evaluates the inner expression at every multiple of the step within the range.
    fn subquery(&self, subquery: &Subquery, t: i64) -> Result<Matrix, EvalError> {
        let end = self.when(subquery.when, t);
        let start = end.saturating_sub(subquery.range);
        let mut series: Vec<Series> = Vec::new();
        let mut index: HashMap<Labels, usize> = HashMap::new();
        let step = subquery.step.unwrap_or(self.step);
        let mut now = start.div_euclid(step).saturating_add(1).saturating_mul(step);
        while now <= end {
            for (labels, value) in self.vector(&subquery.inner, now)? {
                let at = *index.entry(labels).or_insert_with_key(|labels| {
                    series.push(Series { labels: labels.clone(), samples: Vec::new() });
                    series.len() - 1
                });
                series[at].samples.push((now, value));
            }
            now = now.saturating_add(step);
        }
        Ok(Matrix { start, end, series })
    }

    fn when(&self, when: When, t: i64) -> i64 {
        let base = match when.pinned {
            Some(Pinned::At(at)) => at,
            Some(Pinned::Instant) => self.at.0,
            None => t,
        };
        base.saturating_sub(when.offset.unwrap_or(0))
    }
}

fn negate(value: Value) -> Result<Value, EvalError> {
    Ok(match value {
        Value::Vector(elements) => Value::Vector(unique(elements.into_iter().map(|(labels, value)| (unnamed(&labels), -value)).collect())?),
        Value::Scalar(value) => Value::Scalar(-value),
        text => text,
    })
}

/// Says whether a label belongs to the metric's name: Prometheus drops its type and unit with it.
pub(super) fn is_name(label: &str) -> bool {
    matches!(label, NAME | "__type__" | "__unit__")
}

/// Returns a label set without the metric's name.
pub(super) fn unnamed(labels: &Labels) -> Labels {
    if labels.iter().any(|(name, _)| is_name(name)) { labels.without(is_name) } else { labels.clone() }
}

/// Refuses a vector in which two elements have the same labels.
pub(super) fn unique(elements: Vec<Element>) -> Result<Vec<Element>, EvalError> {
    let mut seen = HashSet::with_capacity(elements.len());
    match elements.iter().find(|(labels, _)| !seen.insert(labels)) {
        Some((labels, _)) => Err(EvalError::SameLabels(labels.clone())),
        None => Ok(elements),
    }
}
