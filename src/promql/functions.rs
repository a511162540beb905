//! Functions of instant vectors and scalars; those of ranges compute in `range`.

use std::collections::HashMap;

use super::ast::{Call, Kind, Node, Type};
use super::eval::{Element, Evaluation, Matrix, unique, unnamed};
use super::{EvalError, Value, range};
use crate::model::labels::NAME;
use crate::model::{Labels, MatchOp, Timestamp};

/// Evaluates the arguments of a call, which the parser has checked, and then the function.
///
/// What calls itself again through its arguments is kept apart from what computes, so that deep calls need little stack.
pub(super) fn call(evaluation: &Evaluation<'_>, call: &Call, t: i64) -> Result<Value, EvalError> {
    let mut scalars = Vec::new();
    for arg in call.args.iter().filter(|arg| arg.type_of() == Type::Scalar) {
        scalars.push(evaluation.scalar(arg, t)?);
    }
    for arg in &call.args {
        match (arg.type_of(), &arg.bare().kind) {
            (Type::Matrix, _) => return over_range(call, arg, &evaluation.matrix(arg, t)?, &scalars, t).map(Value::Vector),
            // The moment of the sample itself is known to the selector alone.
            (Type::Vector, Kind::Selector(selector)) if call.function.name == "timestamp" => {
                let found = evaluation.select(selector, t)?.into_iter();
                return unique(found.map(|(labels, at, _)| (unnamed(&labels), at as f64 / 1000.0)).collect()).map(Value::Vector);
            }
            (Type::Vector, _) => return compute(call, evaluation.vector(arg, t)?, &scalars, t),
            _ => {}
        }
    }
    Ok(match call.function.name {
        "time" => Value::Scalar(t as f64 / 1000.0),
        "pi" => Value::Scalar(std::f64::consts::PI),
        "vector" => Value::Vector(vec![(Labels::default(), parameter(&scalars, 0))]),
        // Dates of no vector are those of the present.
        _ => return compute(call, vec![(Labels::default(), t as f64 / 1000.0)], &scalars, t),
    })
}

fn parameter(scalars: &[f64], index: usize) -> f64 {
    scalars.get(index).copied().unwrap_or(f64::NAN)
}

/// Computes a function of the elements of a vector.
fn compute(call: &Call, mut elements: Vec<Element>, scalars: &[f64], t: i64) -> Result<Value, EvalError> {
    let name = call.function.name;
    let (first, second) = (parameter(scalars, 0), parameter(scalars, 1));
    match name {
        "scalar" => {
            return Ok(Value::Scalar(match &elements[..] {
                [(_, value)] => *value,
                _ => f64::NAN,
            }));
        }
        "absent" => {
            let absent = elements.is_empty().then(|| (absent_labels(&call.args[0]), 1.0));
            return Ok(Value::Vector(absent.into_iter().collect()));
        }
        "sort" | "sort_desc" => {
            elements.sort_by(|(_, a), (_, b)| {
                let numbers = if name == "sort" { a.partial_cmp(b) } else { b.partial_cmp(a) };
                numbers.unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
            });
            return Ok(Value::Vector(elements));
        }
        "label_replace" | "label_join" => return unique(relabel(call, elements)).map(Value::Vector),
        "histogram_quantile" => return unique(histogram_quantile(first, &elements)).map(Value::Vector),
        "clamp" if second < first => return Ok(Value::Vector(Vec::new())),
        _ => {}
    }
    let apply = |value: f64| match name {
        "abs" => value.abs(),
        "ceil" => value.ceil(),
        "floor" => value.floor(),
        "exp" => value.exp(),
        "ln" => value.ln(),
        "log2" => value.log2(),
        "log10" => value.log10(),
        "sqrt" => value.sqrt(),
        "sgn" => match value {
            value if value > 0.0 => 1.0,
            value if value < 0.0 => -1.0,
            value => value,
        },
        "clamp" => max(first, min(second, value)),
        "clamp_min" => max(first, value),
        "clamp_max" => min(first, value),
        "round" => {
            // The inverse, as Prometheus has it: 1/0.1 is exact where 0.1 is not.
            let inverse = 1.0 / scalars.first().copied().unwrap_or(1.0);
            (value * inverse + 0.5).floor() / inverse
        }
        "timestamp" => t as f64 / 1000.0,
        "acos" => value.acos(),
        "acosh" => value.acosh(),
        "asin" => value.asin(),
        "asinh" => value.asinh(),
        "atan" => value.atan(),
        "atanh" => value.atanh(),
        "cos" => value.cos(),
        "cosh" => value.cosh(),
        "sin" => value.sin(),
        "sinh" => value.sinh(),
        "tan" => value.tan(),
        "tanh" => value.tanh(),
        "deg" => value * 180.0 / std::f64::consts::PI,
        "rad" => value * std::f64::consts::PI / 180.0,
        _ => date(name, value),
    };
    unique(elements.into_iter().map(|(labels, value)| (unnamed(&labels), apply(value))).collect()).map(Value::Vector)
}

/// The greater of two, NaN where one is NaN, unlike [`f64::max`].
fn max(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// The lesser of two, NaN where one is NaN, unlike [`f64::min`].
fn min(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

fn over_range(call: &Call, arg: &Node, matrix: &Matrix, scalars: &[f64], t: i64) -> Result<Vec<Element>, EvalError> {
    let (name, param) = (call.function.name, parameter(scalars, 0));
    if name == "absent_over_time" {
        let absent = matrix.series.is_empty().then(|| (absent_labels(arg), 1.0));
        return Ok(absent.into_iter().collect());
    }
    let keeps_name = matches!(name, "first_over_time" | "last_over_time");
    let result = matrix.series.iter().filter_map(|series| {
        let value = range::over(name, matrix, &series.samples, param, t)?;
        Some((if keeps_name { series.labels.clone() } else { unnamed(&series.labels) }, value))
    });
    unique(result.collect())
}

/// Returns the labels of an element that stands for what is absent: those whose value the selector fixes.
fn absent_labels(arg: &Node) -> Labels {
    let (Kind::Selector(selector) | Kind::Range(selector, _)) = &arg.bare().kind else { return Labels::default() };
    let mut fixed: HashMap<&str, &str> = HashMap::new();
    let mut seen: Vec<&str> = Vec::new();
    for matcher in selector.matchers.iter().filter(|matcher| matcher.name != NAME) {
        // As in Prometheus, a label that is matched twice is left out.
        if matcher.op == MatchOp::Equal && !seen.contains(&&*matcher.name) {
            seen.push(&matcher.name);
            fixed.insert(&matcher.name, &matcher.value);
        } else {
            fixed.remove(&*matcher.name);
        }
    }
    Labels::new(fixed)
}

/// Evaluates `label_replace` and `label_join`.
fn relabel(call: &Call, elements: Vec<Element>) -> Vec<Element> {
    let texts: Vec<&str> =
        call.args.iter().filter_map(|arg| if let Kind::Text(text) = &arg.bare().kind { Some(&**text) } else { None }).collect();
    let changed = |labels: &Labels| match (&call.regex, &texts[..]) {
        (Some(regex), [to, replacement, from, ..]) => {
            let captures = regex.captures(labels.get(from).unwrap_or(""))?;
            let mut value = String::new();
            captures.expand(replacement, &mut value);
            Some((*to, value))
        }
        (None, [to, separator, from @ ..]) => {
            let parts: Vec<&str> = from.iter().map(|name| labels.get(name).unwrap_or("")).collect();
            Some((*to, parts.join(separator)))
        }
        _ => None,
    };
    let relabelled = elements.into_iter().map(|(labels, value)| match changed(&labels) {
        Some((to, text)) => (labels.with([(to, text)]), value),
        None => (labels, value),
    });
    relabelled.collect()
}

/// Returns a part of a date in UTC; NaN where the moment is none that a calendar has.
fn date(name: &str, seconds: f64) -> f64 {
    if seconds.is_nan() || seconds.abs() >= 2e11 {
        return f64::NAN;
    }
    let date = jiff::tz::Offset::UTC.to_datetime(Timestamp::from_secs(seconds as i64).to_jiff());
    match name {
        "minute" => f64::from(date.minute()),
        "hour" => f64::from(date.hour()),
        "day_of_week" => f64::from(date.weekday().to_sunday_zero_offset()),
        "day_of_month" => f64::from(date.day()),
        "day_of_year" => f64::from(date.day_of_year()),
        "days_in_month" => f64::from(date.days_in_month()),
        "month" => f64::from(date.month()),
        "year" => f64::from(date.year()),
        _ => f64::NAN,
    }
}

/// Estimates the quantile of classic histograms, whose buckets are elements that differ in `le` alone.
fn histogram_quantile(q: f64, elements: &[Element]) -> Vec<Element> {
    let mut index: HashMap<Labels, usize> = HashMap::new();
    let mut histograms: Vec<(Labels, Vec<(f64, f64)>)> = Vec::new();
    for (labels, count) in elements {
        // A bucket without a bound is none.
        let Some(bound) = labels.get("le").and_then(|text| text.parse::<f64>().ok()) else { continue };
        let at = *index.entry(labels.without(|label| label == "le")).or_insert_with_key(|key| {
            histograms.push((unnamed(key), Vec::new()));
            histograms.len() - 1
        });
        histograms[at].1.push((bound, *count));
    }
    histograms.into_iter().map(|(labels, buckets)| (labels, bucket_quantile(q, buckets))).collect()
}

/// Returns the quantile within buckets of (upper bound, cumulative count), in proportion within one: Prometheus'
/// `BucketQuantile`.
fn bucket_quantile(q: f64, mut buckets: Vec<(f64, f64)>) -> f64 {
    if q.is_nan() {
        return f64::NAN;
    }
    if !(0.0..=1.0).contains(&q) {
        return if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    buckets.dedup_by(|(bound, count), (kept, sum)| {
        let same = bound == kept;
        *sum += if same { *count } else { 0.0 };
        same
    });
    // Counts of buckets that were not read at one moment can fall; so can sums of rates, by rounding.
    let mut before = f64::NAN;
    for (_, count) in &mut buckets {
        if before.is_nan() || (*count > before && !almost_equal(*count, before)) || count.is_nan() {
            before = *count;
        } else {
            *count = before;
        }
    }
    let [.., (below_last, _), (last, observations)] = buckets[..] else { return f64::NAN };
    if last != f64::INFINITY || observations == 0.0 {
        return f64::NAN;
    }
    let rank = q * observations;
    let found = buckets[..buckets.len() - 1].partition_point(|(_, count)| *count < rank || count.is_nan());
    match found {
        found if found == buckets.len() - 1 => below_last,
        0 if buckets[0].0 <= 0.0 => buckets[0].0,
        found => {
            let (start, less) = if found > 0 { buckets[found - 1] } else { (0.0, 0.0) };
            let (end, count) = buckets[found];
            start + (end - start) * ((rank - less) / (count - less))
        }
    }
}

/// Says whether two counts differ by rounding alone.
fn almost_equal(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-12 * (a.abs() + b.abs())
}
