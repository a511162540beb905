//! Binary operators: between scalars, between a vector and a scalar, between vectors by matching, and of sets.

use std::collections::{HashMap, HashSet};

use super::ast::{Binary, Card, Grouping, is_comparison, is_set_operator};
use super::eval::{Element, Evaluation, is_name, unique, unnamed};
use super::{EvalError, Value};
use crate::model::Labels;
use crate::model::labels::NAME;

/// Evaluates both sides and puts them together.
pub(super) fn binary(evaluation: &Evaluation<'_>, of: &Binary, t: i64) -> Result<Value, EvalError> {
    let left = evaluation.eval(&of.left, t)?;
    combine(of, left, evaluation.eval(&of.right, t)?)
}

fn combine(of: &Binary, left: Value, right: Value) -> Result<Value, EvalError> {
    Ok(match (left, right) {
        (Value::Scalar(left), Value::Scalar(right)) => {
            let (value, keep) = apply(of.op, left, right);
            Value::Scalar(if is_comparison(of.op) { f64::from(keep) } else { value })
        }
        (Value::Vector(left), Value::Scalar(right)) => Value::Vector(with_scalar(of, left, |value| (value, right))?),
        (Value::Scalar(left), Value::Vector(right)) => Value::Vector(with_scalar(of, right, |value| (left, value))?),
        (Value::Vector(left), Value::Vector(right)) if is_set_operator(of.op) => Value::Vector(unique(sets(of, left, right))?),
        (Value::Vector(left), Value::Vector(right)) => Value::Vector(unique(matched(of, left, right)?)?),
        // The parser lets no text stand here.
        _ => Value::Vector(Vec::new()),
    })
}

/// Returns the value of an operator, and for a comparison, whose value is its left side, whether it holds.
fn apply(op: &str, left: f64, right: f64) -> (f64, bool) {
    let value = match op {
        "+" => left + right,
        "-" => left - right,
        "*" => left * right,
        "/" => left / right,
        "%" => left % right,
        "^" => left.powf(right),
        "atan2" => left.atan2(right),
        _ => left,
    };
    let holds = match op {
        "==" => left == right,
        "!=" => left != right,
        ">" => left > right,
        "<" => left < right,
        ">=" => left >= right,
        "<=" => left <= right,
        _ => true,
    };
    (value, holds)
}

fn with_scalar(of: &Binary, elements: Vec<Element>, sides: impl Fn(f64) -> (f64, f64)) -> Result<Vec<Element>, EvalError> {
    let compares = is_comparison(of.op);
    let result = elements.into_iter().filter_map(|(labels, value)| {
        let (left, right) = sides(value);
        let (result, holds) = apply(of.op, left, right);
        match (compares, of.as_bool) {
            (true, true) => Some((unnamed(&labels), f64::from(holds))),
            // The vector's value is kept, on whichever side it stands.
            (true, false) => holds.then_some((labels, value)),
            (false, _) => Some((unnamed(&labels), result)),
        }
    });
    unique(result.collect())
}

/// Returns the labels by which elements match.
fn signature(labels: &Labels, matching: &Grouping) -> Labels {
    match matching {
        Grouping::By(names) => labels.without(|label| !names.iter().any(|name| name == label)),
        Grouping::Without(names) => labels.without(|label| label == NAME || names.iter().any(|name| name == label)),
    }
}

fn sets(of: &Binary, left: Vec<Element>, right: Vec<Element>) -> Vec<Element> {
    let signatures = |side: &[Element]| -> HashSet<Labels> { side.iter().map(|(labels, _)| signature(labels, &of.matching)).collect() };
    let within = |labels: &Labels, set: &HashSet<Labels>| set.contains(&signature(labels, &of.matching));
    if of.op == "or" {
        let have = signatures(&left);
        let more = right.into_iter().filter(|(labels, _)| !within(labels, &have));
        return left.into_iter().chain(more.collect::<Vec<_>>()).collect();
    }
    let have = signatures(&right);
    left.into_iter().filter(|(labels, _)| within(labels, &have) == (of.op == "and")).collect()
}

/// Matches one to one, or many to one where group_left or group_right says so.
fn matched(of: &Binary, left: Vec<Element>, right: Vec<Element>) -> Result<Vec<Element>, EvalError> {
    if left.is_empty() || right.is_empty() {
        return Ok(Vec::new());
    }
    // The right side is the one of which a match has at most one element.
    let swapped = matches!(of.card, Card::OneToMany(_));
    let (many, one) = if swapped { (right, left) } else { (left, right) };
    let mut by_signature: HashMap<Labels, &Element> = HashMap::with_capacity(one.len());
    for element in &one {
        let group = signature(&element.0, &of.matching);
        if let Some(other) = by_signature.insert(group.clone(), element) {
            let side = if swapped { "left" } else { "right" };
            return Err(EvalError::ManyToMany { group, side, one: element.0.clone(), other: other.0.clone() });
        }
    }
    let mut seen: HashSet<(Labels, Labels)> = HashSet::new();
    let mut result = Vec::new();
    for (labels, value) in &many {
        let group = signature(labels, &of.matching);
        let Some((other, other_value)) = by_signature.get(&group) else { continue };
        let (computed, holds) = if swapped { apply(of.op, *other_value, *value) } else { apply(of.op, *value, *other_value) };
        let metric = result_labels(of, labels, other);
        let one_to_one = of.card == Card::OneToOne;
        if !seen.insert((group, if one_to_one { Labels::default() } else { metric.clone() })) {
            return Err(if one_to_one { EvalError::ManyToOne } else { EvalError::GroupNotUnique });
        }
        if of.as_bool {
            result.push((metric, f64::from(holds)));
        } else if holds {
            result.push((metric, computed));
        }
    }
    Ok(result)
}

fn result_labels(of: &Binary, many: &Labels, one: &Labels) -> Labels {
    let drop_name = of.as_bool || !is_comparison(of.op);
    let one_to_one = of.card == Card::OneToOne;
    let kept = many.without(|label| {
        let named = of.matching.names().iter().any(|name| name == label);
        (drop_name && is_name(label)) || (one_to_one && named != matches!(of.matching, Grouping::By(_)))
    });
    match &of.card {
        Card::ManyToOne(include) | Card::OneToMany(include) if !include.is_empty() => {
            kept.with(include.iter().map(|name| (name.as_str(), one.get(name).unwrap_or(""))))
        }
        _ => kept,
    }
}
