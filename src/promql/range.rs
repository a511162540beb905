//! Functions of the samples of a range, and the arithmetic they share with aggregations.

use super::eval::Matrix;

/// A sum that does not lose small terms among large ones (Neumaier), as Prometheus sums.
#[derive(Clone, Copy, Default)]
struct Kahan {
    sum: f64,
    lost: f64,
}

impl Kahan {
    fn add(&mut self, value: f64) {
        let total = self.sum + value;
        if total.is_infinite() {
            self.lost = 0.0;
        } else if self.sum.abs() >= value.abs() {
            self.lost += (self.sum - total) + value;
        } else {
            self.lost += (value - total) + self.sum;
        }
        self.sum = total;
    }

    fn total(self) -> f64 {
        if self.sum.is_infinite() { self.sum } else { self.sum + self.lost }
    }
}

/// Returns the sum.
pub(super) fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let mut sum = Kahan::default();
    values.for_each(|value| sum.add(value));
    sum.total()
}

/// Returns the mean, also where the sum would not fit.
pub(super) fn mean(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count() as f64;
    let sum = sum(values.clone());
    if sum.is_infinite() && values.clone().all(f64::is_finite) {
        return self::sum(values.map(|value| value / count));
    }
    sum / count
}

/// Returns the variance of the whole population.
pub(super) fn variance(values: impl Iterator<Item = f64>) -> f64 {
    let (mut count, mut mean, mut squares) = (0.0, Kahan::default(), Kahan::default());
    for value in values {
        count += 1.0;
        let delta = value - mean.total();
        mean.add(delta / count);
        squares.add(delta * (value - mean.total()));
    }
    squares.total() / count
}

/// Returns the least value; NaN only where there is nothing else.
pub(super) fn least(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::NAN, |least, value| if value < least || least.is_nan() { value } else { least })
}

/// Returns the greatest value; NaN only where there is nothing else.
pub(super) fn greatest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::NAN, |most, value| if value > most || most.is_nan() { value } else { most })
}

/// Returns the `q`-quantile, between the two nearest values in proportion; NaN counts as the least.
pub(super) fn quantile(q: f64, mut values: Vec<f64>) -> f64 {
    if values.is_empty() || q.is_nan() {
        return f64::NAN;
    }
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan())));
    let rank = q * (values.len() - 1) as f64;
    let lower = rank.floor() as usize;
    let upper = (lower + 1).min(values.len() - 1);
    let weight = rank - rank.floor();
    values[lower] * (1.0 - weight) + values[upper] * weight
}

/// Computes a function of the samples of one series in a range. Returns nothing where they are too few.
///
/// `param` is the quantile or the seconds of `predict_linear`; `t` is when the function is evaluated.
pub(super) fn over(name: &str, of: &Matrix, samples: &[(i64, f64)], param: f64, t: i64) -> Option<f64> {
    let values = || samples.iter().map(|(_, value)| *value);
    let pairs = || samples.windows(2).map(|pair| (pair[0].1, pair[1].1));
    Some(match name {
        "rate" => extrapolated(of, samples, true)? / ((of.end - of.start) as f64 / 1000.0),
        "increase" => extrapolated(of, samples, true)?,
        "delta" => extrapolated(of, samples, false)?,
        "irate" | "idelta" => {
            let [.., (before, first), (at, last)] = *samples else { return None };
            // After a reset the counter began at 0.
            let change = if name == "irate" && last < first { last } else { last - first };
            if name == "irate" { change / ((at - before) as f64 / 1000.0) } else { change }
        }
        "changes" => pairs().filter(|(a, b)| a != b && !(a.is_nan() && b.is_nan())).count() as f64,
        "resets" => pairs().filter(|(a, b)| b < a).count() as f64,
        "deriv" => regression(samples, samples.first()?.0)?.0,
        "predict_linear" => {
            let (slope, intercept) = regression(samples, t)?;
            slope * param + intercept
        }
        "avg_over_time" => mean(values()),
        "sum_over_time" => sum(values()),
        "min_over_time" => least(values()),
        "max_over_time" => greatest(values()),
        "count_over_time" => samples.len() as f64,
        "first_over_time" => samples.first()?.1,
        "last_over_time" => samples.last()?.1,
        "present_over_time" => 1.0,
        "stddev_over_time" => variance(values()).sqrt(),
        "stdvar_over_time" => variance(values()),
        "quantile_over_time" => quantile(param, values().collect()),
        _ => return None,
    })
}

/// Returns the increase of a counter, or the difference of a gauge, over a whole range of which samples cover a part:
/// Prometheus' `extrapolatedRate`.
fn extrapolated(of: &Matrix, samples: &[(i64, f64)], counter: bool) -> Option<f64> {
    let [(first_at, first), .., (last_at, last)] = *samples else { return None };
    let mut result = last - first;
    if counter {
        result = samples.windows(2).filter(|pair| pair[1].1 < pair[0].1).fold(result, |result, pair| result + pair[0].1);
    }
    let seconds = |from: i64, to: i64| (to - from) as f64 / 1000.0;
    let sampled = seconds(first_at, last_at);
    let between = sampled / (samples.len() - 1) as f64;
    // A gap that is longer than this to an end of the range means that the series begins or ends within it.
    let threshold = between * 1.1;
    let mut to_start = seconds(of.start, first_at);
    let mut to_end = seconds(last_at, of.end);
    if to_start >= threshold {
        to_start = between / 2.0;
    }
    if counter && result > 0.0 && first >= 0.0 {
        // A counter was never below 0.
        to_start = to_start.min(sampled * (first / result));
    }
    if to_end >= threshold {
        to_end = between / 2.0;
    }
    Some(result * ((sampled + to_start + to_end) / sampled))
}

/// Returns slope per second and value at `origin` of the line through the samples, by least squares.
fn regression(samples: &[(i64, f64)], origin: i64) -> Option<(f64, f64)> {
    let [(_, first), _, ..] = *samples else { return None };
    if samples.iter().all(|(_, value)| *value == first) {
        return Some(if first.is_infinite() { (f64::NAN, f64::NAN) } else { (0.0, first) });
    }
    let count = samples.len() as f64;
    let x = |at: i64| (at - origin) as f64 / 1000.0;
    let sum_x = sum(samples.iter().map(|(at, _)| x(*at)));
    let sum_y = sum(samples.iter().map(|(_, value)| *value));
    let sum_xy = sum(samples.iter().map(|(at, value)| x(*at) * value));
    let sum_x2 = sum(samples.iter().map(|(at, _)| x(*at) * x(*at)));
    let slope = (sum_xy - sum_x * sum_y / count) / (sum_x2 - sum_x * sum_x / count);
    Some((slope, sum_y / count - slope * sum_x / count))
}
