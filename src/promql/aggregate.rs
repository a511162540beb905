//! Aggregations over the elements of an instant vector.

use std::collections::HashMap;

use super::ast::{Aggregate, Grouping, Kind, Type};
use super::eval::{Element, Evaluation};
use super::{EvalError, Value, range};
use crate::model::Labels;
use crate::model::labels::NAME;

/// Evaluates the parameter and the vector, and aggregates.
pub(super) fn aggregate(evaluation: &Evaluation<'_>, of: &Aggregate, t: i64) -> Result<Value, EvalError> {
    let elements = evaluation.vector(&of.inner, t)?;
    let param = match &of.param {
        Some(param) if param.type_of() == Type::Scalar => evaluation.scalar(param, t)?,
        _ => f64::NAN,
    };
    grouped(of, elements, param).map(Value::Vector)
}

/// Aggregates group by group, in the order in which groups appear.
fn grouped(of: &Aggregate, mut elements: Vec<Element>, param: f64) -> Result<Vec<Element>, EvalError> {
    let counted_by = match of.param.as_ref().map(|param| &param.bare().kind) {
        Some(Kind::Text(label)) => Some(label.as_str()),
        _ => None,
    };
    if let Some(label) = counted_by {
        for (labels, value) in &mut elements {
            *labels = labels.with([(label, print(*value))]);
        }
    }
    let mut index: HashMap<Labels, usize> = HashMap::new();
    let mut groups: Vec<(Labels, Vec<Element>)> = Vec::new();
    for element in elements {
        let key = match &of.grouping {
            Grouping::By(names) => element.0.without(|label| !names.iter().any(|name| name == label) && counted_by != Some(label)),
            Grouping::Without(names) => element.0.without(|label| label == NAME || names.iter().any(|name| name == label)),
        };
        let at = *index.entry(key).or_insert_with_key(|key| {
            groups.push((key.clone(), Vec::new()));
            groups.len() - 1
        });
        groups[at].1.push(element);
    }
    if matches!(of.op, "topk" | "bottomk") {
        let count = whole(of.op, param)?;
        return Ok(groups.into_iter().flat_map(|(_, members)| first_of(of.op, members, count)).collect());
    }
    Ok(groups.into_iter().map(|(key, members)| (key, value(of.op, param, &members))).collect())
}

fn value(op: &str, param: f64, members: &[Element]) -> f64 {
    let values = || members.iter().map(|(_, value)| *value);
    match op {
        "sum" => range::sum(values()),
        "avg" => range::mean(values()),
        "min" => range::least(values()),
        "max" => range::greatest(values()),
        "group" => 1.0,
        "stddev" => range::variance(values()).sqrt(),
        "stdvar" => range::variance(values()),
        "quantile" => range::quantile(param, values().collect()),
        // count, count_values
        _ => members.len() as f64,
    }
}

/// Returns the parameter of `topk` as a count; below 1 it selects nothing.
fn whole(op: &'static str, param: f64) -> Result<usize, EvalError> {
    if param.is_nan() || param >= i64::MAX as f64 {
        return Err(EvalError::Parameter(op, format!("{param:?}")));
    }
    // A cast from a float ends at 0 and at the largest.
    Ok(param as usize)
}

/// Returns the elements with the largest or smallest values, in this order, NaN after all others.
fn first_of(op: &str, mut members: Vec<Element>, count: usize) -> Vec<Element> {
    members.sort_by(|(_, a), (_, b)| {
        let numbers = if op == "topk" { b.partial_cmp(a) } else { a.partial_cmp(b) };
        numbers.unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
    });
    members.truncate(count);
    members
}

/// Prints a value as Go prints it without an exponent.
pub(super) fn print(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        value => value.to_string(),
    }
}
