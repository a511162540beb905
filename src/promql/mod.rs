//! Evaluates a parsed expression at one instant over the window: PromQL as stock Prometheus 3 means it, over floats.
//!
//! What Prometheus has behind feature flags, and native histograms, are refused by name when an expression is parsed.
//! Ranges, the look-back of five minutes and subqueries are left-open; `__name__` is dropped at once. A subquery
//! without a step takes [`DEFAULT_STEP`], as Prometheus with its default evaluation interval. One thing differs on purpose:
//! the date of a value that is no moment (NaN, infinite) is NaN, where Go makes up one. No clock, no I/O.

mod aggregate;
mod ast;
mod binary;
mod eval;
mod functions;
mod lex;
mod parse;
mod range;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::model::labels::NAME;
use crate::model::{Labels, MatchOp, Timestamp};
use crate::window::Window;

/// The longest expression, in bytes.
pub const MAX_TEXT: usize = 16 * 1024;
/// The most elements of a result.
pub const MAX_RESULT: usize = 10_000;
/// How much one evaluation may read and make: samples, series looked at, elements and steps. About a second's work.
pub const MAX_WORK: usize = 5_000_000;

/// How old a sample may be that an instant selector still sees.
pub const LOOK_BACK: Duration = Duration::from_millis(ast::LOOK_BACK_MS as u64);
/// The step of a subquery that names none: Prometheus' default evaluation interval.
pub const DEFAULT_STEP: Duration = Duration::from_secs(60);

/// A parsed and checked expression. Clones share the same tree.
#[derive(Clone, Debug)]
pub struct Expr {
    text: Arc<str>,
    root: Arc<ast::Node>,
}

/// Why a text is no expression that we evaluate, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: parse error: {message}")]
pub struct ParseError {
    /// Where the failing token begins, in characters from the beginning of the expression.
    pub offset: usize,
    /// The line within the expression, from 1.
    pub line: usize,
    /// The column in that line in characters, from 1.
    pub column: usize,
    /// What was expected and what was found.
    pub message: String,
}

/// Why an expression cannot be evaluated now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// It reads or makes too much.
    #[error("the expression reads more than {MAX_WORK} samples: narrow its selectors, ranges or subqueries")]
    TooMuch,
    /// Its result is too large.
    #[error("the result has {0} elements, more than {MAX_RESULT}: aggregate or narrow it")]
    TooMany(usize),
    /// Two elements of a vector have the same labels, mostly since their names were dropped.
    #[error("vector cannot contain metrics with the same labelset: {0}")]
    SameLabels(Labels),
    /// Both sides of an operator have several elements for one match.
    #[error(
        "found duplicate series for the match group {group} on the {side} hand-side of the operation: [{one}, {other}]; many-to-many matching not allowed: matching labels must be unique on one side"
    )]
    ManyToMany {
        /// The labels that match.
        group: Labels,
        /// `left` or `right`.
        side: &'static str,
        /// One of the series.
        one: Labels,
        /// Another one.
        other: Labels,
    },
    /// One side has several elements for one match, and no group_left or group_right says so.
    #[error("multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)")]
    ManyToOne,
    /// With group_left or group_right two results have the same labels.
    #[error("multiple matches for labels: grouping labels must ensure unique matches")]
    GroupNotUnique,
    /// The parameter of an aggregation is no number that it can take.
    #[error("{0}: the parameter is {1}, expected a whole number")]
    Parameter(&'static str, String),
}

/// What an expression gives at one instant.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Label sets with a value each; those of `sort`, `topk` and `bottomk` in their order.
    Vector(Vec<(Labels, f64)>),
    /// A number.
    Scalar(f64),
    /// A text.
    String(String),
}

/// Parses and checks an expression.
///
/// # Errors
/// What is no PromQL, what Prometheus refuses too (types, duplicate modifiers), what we do not evaluate, by its name,
/// and a range vector as the whole; more than [`MAX_TEXT`], or nested too deep.
pub fn parse(text: &str) -> Result<Expr, ParseError> {
    let root = placed(text, parse::parse)?;
    Ok(Expr { text: text.into(), root: Arc::new(root) })
}

/// Parses one series as people write it: `name{label="value"}`. Both parts may be missing; `{}` has no labels.
///
/// # Errors
/// What is no series, a matcher other than `=` among it; more than [`MAX_TEXT`].
pub fn parse_series(text: &str) -> Result<Labels, ParseError> {
    placed(text, parse::metric)
}

/// Parses, and says of a mistake in which line and column it is.
fn placed<T>(text: &str, parse: impl FnOnce(&str) -> Result<T, parse::Wrong>) -> Result<T, ParseError> {
    let parsed =
        if text.len() > MAX_TEXT { Err((0, format!("expected at most {MAX_TEXT} bytes, found {}", text.len()))) } else { parse(text) };
    parsed.map_err(|(at, message)| {
        let before = &text[..text.floor_char_boundary(at)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        ParseError {
            offset: before.chars().count(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
        }
    })
}

impl Expr {
    /// Returns the source text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns how far before the instant of evaluation samples are read: ranges, offsets, subqueries, and the five
    /// minutes of an instant selector. A moment that `@` names is taken as the instant of evaluation.
    pub fn look_back(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.root.look_back(0)).unwrap_or(0))
    }

    /// Returns the names of the metrics that are read; a selector that does not name one metric adds none.
    pub fn metric_names(&self) -> BTreeSet<String> {
        let (mut names, mut open) = (BTreeSet::new(), vec![&*self.root]);
        while let Some(node) = open.pop() {
            if let ast::Kind::Selector(selector) | ast::Kind::Range(selector, _) = &node.kind {
                let named = selector.matchers.iter().filter(|matcher| matcher.name == NAME && matcher.op == MatchOp::Equal);
                names.extend(named.map(|matcher| matcher.value.clone()));
            }
            open.extend(node.children());
        }
        names
    }

    /// Says whether the value is a vector, as an alert needs it; otherwise it is a scalar or a text.
    pub fn is_vector(&self) -> bool {
        self.root.type_of() == ast::Type::Vector
    }

    /// Evaluates at one instant.
    ///
    /// # Errors
    /// See [`EvalError`].
    pub fn eval(&self, window: &Window, at: Timestamp) -> Result<Value, EvalError> {
        self.eval_stepping(window, at, DEFAULT_STEP)
    }

    /// Evaluates at one instant, where a subquery that names no step takes `step`, which is above zero.
    ///
    /// # Errors
    /// See [`EvalError`].
    pub fn eval_stepping(&self, window: &Window, at: Timestamp, step: Duration) -> Result<Value, EvalError> {
        let step = i64::try_from(step.as_millis()).unwrap_or(i64::MAX).max(1);
        let value = eval::Evaluation::new(window, at, step).eval(&self.root, at.0)?;
        match &value {
            Value::Vector(elements) if elements.len() > MAX_RESULT => Err(EvalError::TooMany(elements.len())),
            _ => Ok(value),
        }
    }
}
