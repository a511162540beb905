//! Evaluates a parsed expression at one instant over the window. (being built: the signatures stand)

use std::collections::BTreeSet;
use std::time::Duration;

use crate::model::{Labels, Timestamp};
use crate::window::Window;

/// A parsed and checked expression.
#[derive(Clone, Debug)]
pub struct Expr {
    text: String,
}

/// Why a text is no expression.
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
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct EvalError(pub String);

/// What an expression gives at one instant.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Label sets with a value each.
    Vector(Vec<(Labels, f64)>),
    /// A number.
    Scalar(f64),
    /// A text.
    String(String),
}

/// Parses and checks an expression.
///
/// # Errors
/// See [`ParseError`].
pub fn parse(text: &str) -> Result<Expr, ParseError> {
    Ok(Expr { text: text.to_owned() })
}

impl Expr {
    /// Returns the source text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns how far before the instant of evaluation samples are read.
    pub fn look_back(&self) -> Duration {
        Duration::from_secs(300)
    }

    /// Returns the names of the metrics that are read.
    pub fn metric_names(&self) -> BTreeSet<String> {
        BTreeSet::new()
    }

    /// Evaluates at one instant.
    ///
    /// # Errors
    /// See [`EvalError`].
    pub fn eval(&self, _window: &Window, _at: Timestamp) -> Result<Value, EvalError> {
        Ok(Value::Vector(Vec::new()))
    }
}
