//! Unit tests of rules in promtool's file format (Prometheus' `docs/configuration/unit_testing_rules.md`), with
//! promtool's verdicts: the same file passes or fails in both.
//!
//! Rules run by our own evaluator and state machine, in turns at every `evaluation_interval` from the start of the test;
//! the interval of a group does not matter. An `eval_time` means the last turn before it, and only alerts that fire
//! count. Samples later than the last turn are not there. A rule that cannot be evaluated ends its test.
//!
//! From Prometheus 3 are `fuzzy_compare`, `start_timestamp` and the default of `interval`; promtool 2.42 refuses the
//! first two. Not taken from either: native histograms, which are not evaluated here.

mod run;
mod series;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::load::{self, MAX_FILES, RuleGroup};
use crate::model::decode::{self, Decode, Named, Spanned, mismatch};
use crate::model::yaml::{Node, Value};
use crate::model::{Labels, Position, Problem, Problems, Timestamp};
use crate::promql::{self, Expr};

/// The most turns of one test.
pub const MAX_TURNS: u128 = 200_000;
/// The most samples that one test gives.
pub const MAX_SAMPLES: usize = 1_000_000;

crate::config_struct! {
    /// A file of unit tests.
    pub struct TestFile {
        /// The rule files that are tested, with `*` where several are meant, relative to this file.
        rule_files: Vec<Spanned<String>> = "[]",
        /// The time between two turns of all rules; 0s is the default too.
        evaluation_interval: Duration = "1m",
        /// Groups in the order in which they are evaluated; those that are not named stand with the first.
        group_eval_order: Vec<Spanned<String>> = "[]",
        /// Whether values that differ in the last bit only are equal (Prometheus 3).
        fuzzy_compare: bool = "false",
        /// The tests; each begins with no samples and no alerts.
        tests: Vec<Spanned<TestCase>> = "[]",
    }
}

crate::config_struct! {
    /// What is measured, and what must come of it.
    pub struct TestCase {
        /// For the report.
        name: String = "\"\"",
        /// The time between two samples of a series; the default is `evaluation_interval`.
        interval: Option<Duration>,
        /// When the test begins, in RFC 3339 or seconds since 1970 (Prometheus 3).
        start_timestamp: StartTime = "0",
        /// What is measured.
        input_series: Vec<InputSeries> = "[]",
        /// Which alerts fire when.
        alert_rule_test: Vec<Spanned<AlertTest>> = "[]",
        /// What an expression gives when.
        promql_expr_test: Vec<Spanned<ExprTest>> = "[]",
        /// `$externalLabels` of templates.
        external_labels: Labels = "{}",
        /// `$externalURL` of templates.
        external_url: String = "\"\"",
    }
}

crate::config_struct! {
    /// One series and its samples, the first at the start of the test.
    pub struct InputSeries {
        /// `name{label="value"}`.
        series: Spanned<String>,
        /// `1 _ stale 5+2x3 7x2 _x4`: one, a gap, the end of the series, 5 7 9 11, 7 7 7, four gaps.
        values: Spanned<String> = "\"\"",
    }
}

crate::config_struct! {
    /// Which alerts of one name fire at a moment: exactly these.
    pub struct AlertTest {
        /// How long after the start.
        eval_time: Duration = "0s",
        /// The name of the alerts.
        alertname: Spanned<String>,
        /// All that fire; none where nothing may.
        exp_alerts: Vec<ExpectedAlert> = "[]",
    }
}

crate::config_struct! {
    /// An alert that must fire.
    pub struct ExpectedAlert {
        /// All its labels but `alertname`.
        exp_labels: Named<String> = "{}",
        /// All its annotations, templates expanded.
        exp_annotations: Named<String> = "{}",
    }
}

crate::config_struct! {
    /// What an expression gives at a moment: exactly these samples.
    pub struct ExprTest {
        /// The expression.
        expr: Spanned<String>,
        /// How long after the start.
        eval_time: Duration = "0s",
        /// All samples; a scalar is one without labels.
        exp_samples: Vec<ExpectedSample> = "[]",
    }
}

crate::config_struct! {
    /// A sample of a result.
    pub struct ExpectedSample {
        /// `name{label="value"}`.
        labels: Option<Spanned<String>>,
        /// The value.
        value: Number = "0",
    }
}

/// A value of a sample. YAML's `.inf` and `.nan` are values too; a NaN equals nothing, as promtool has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Number(pub f64);

impl Decode for Number {
    const EXPECTED: &'static str = "a number, .inf, -.inf or .nan";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let value = match &node.value {
            Value::Scalar { text, plain: true } => match text.to_ascii_lowercase().as_str() {
                ".inf" | "+.inf" => Some(f64::INFINITY),
                "-.inf" => Some(f64::NEG_INFINITY),
                ".nan" => Some(f64::NAN),
                text => text.parse().ok().filter(|value: &f64| value.is_finite()),
            },
            _ => None,
        };
        if value.is_none() {
            mismatch(node, Self::EXPECTED, problems);
        }
        value.map(Self)
    }
}

/// The moment at which a test begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartTime(pub Timestamp);

impl Decode for StartTime {
    const EXPECTED: &'static str = "a moment such as 2026-03-01T12:00:00Z, or seconds since 1970";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let text = String::decode(node, problems)?;
        // Beyond the year 9999 is beyond what jiff and Prometheus print.
        let seconds = text.parse::<f64>().ok().filter(|seconds| seconds.abs() < 253_402_300_800.0);
        let ms = seconds
            .map(|seconds| (seconds * 1000.0).round() as i64)
            .or_else(|| text.parse::<jiff::Timestamp>().ok().map(|at| at.as_millisecond()));
        if ms.is_none() {
            mismatch(node, Self::EXPECTED, problems);
        }
        ms.map(|ms| Self(Timestamp(ms)))
    }
}

/// A test with its series and expressions read.
struct Ready<'a> {
    test: &'a TestCase,
    at: Position,
    series: Vec<(Labels, Vec<Option<f64>>)>,
    expressions: Vec<Asked<'a>>,
}

/// An expression and the samples that it must give.
struct Asked<'a> {
    test: &'a Spanned<ExprTest>,
    expr: Expr,
    expected: Vec<(Labels, f64)>,
}

/// What came of one file.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// How many tests it has.
    pub tests: usize,
    /// What is odd and fails nothing, for people.
    pub warnings: Vec<String>,
    /// What is wrong with it or its rule files, and what came out other than expected; none where it passes.
    pub problems: Vec<Problem>,
}

/// Runs the tests of one file. `read` reads a file, as in [`load::load`].
pub fn test(file: &Path, read: impl Fn(&Path) -> Result<String, String>) -> Verdict {
    let mut verdict = Verdict::default();
    let mut problems = Problems::new(file);
    let tests = match read(file) {
        Ok(text) => decode::from_text::<TestFile>(file, &text),
        Err(message) => {
            problems.push(Position { line: 1, col: 1 }, message);
            verdict.problems = problems.into_sorted();
            return verdict;
        }
    };
    let tests = match tests {
        Ok(tests) => tests,
        Err(found) => {
            verdict.problems = found;
            return verdict;
        }
    };
    verdict.tests = tests.tests.len();
    let interval = if tests.evaluation_interval.is_zero() { Duration::from_secs(60) } else { tests.evaluation_interval };
    let mut named = BTreeSet::new();
    for name in &tests.group_eval_order {
        if !named.insert(name.as_str()) {
            problems.push(name.at, format!("group {:?} stands here a second time", name.value));
        }
    }
    let groups = rules_of(&tests, file, &read, &mut problems, &mut verdict.warnings);
    let ready: Vec<Option<Ready>> = tests.tests.iter().map(|test| prepare(test, interval, &mut problems)).collect();
    if problems.is_empty() {
        for test in ready.iter().flatten() {
            run::run(test, &groups, interval, tests.fuzzy_compare, &mut problems);
        }
    }
    unknown_alerts(&tests, &groups, &mut verdict.warnings);
    verdict.problems = problems.into_sorted();
    verdict
}

/// Loads the rule files in the order in which their groups are evaluated. Without a test promtool reads none of them.
fn rules_of(
    tests: &TestFile,
    file: &Path,
    read: impl Fn(&Path) -> Result<String, String>,
    problems: &mut Problems,
    warnings: &mut Vec<String>,
) -> Vec<RuleGroup> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut paths: BTreeSet<PathBuf> = BTreeSet::new();
    for named in &tests.rule_files {
        let pattern = folder.join(named.as_str());
        let found: Vec<PathBuf> = match glob::glob(&pattern.to_string_lossy()) {
            Ok(found) => found.flatten().take(MAX_FILES).collect(),
            Err(error) => {
                problems.push(named.at, format!("expected a path with * or ?, found {:?}: {error}", named.value));
                continue;
            }
        };
        if found.is_empty() {
            warnings.push(format!("no rule file matches {}", pattern.display()));
        }
        paths.extend(found);
    }
    let mut groups = Vec::new();
    for path in paths.iter().filter(|_| !tests.tests.is_empty()) {
        let mut of_file = Problems::new(path);
        match read(path) {
            Ok(text) => groups.extend(load::from_text(path, &text, Duration::from_secs(60), &mut of_file)),
            Err(message) => of_file.push(Position { line: 1, col: 1 }, message),
        }
        problems.absorb(of_file);
    }
    // As promtool has it, a group that is not named stands with the first.
    let place = |group: &RuleGroup| tests.group_eval_order.iter().position(|name| **name == group.name).unwrap_or(0);
    groups.sort_by_key(place);
    groups
}

/// Reads the series and expressions of a test.
fn prepare<'a>(test: &'a Spanned<TestCase>, interval: Duration, problems: &mut Problems) -> Option<Ready<'a>> {
    let mut series = Vec::new();
    let mut samples = 0;
    for (index, input) in test.input_series.iter().enumerate() {
        // promtool gives its series to another parser line by line, and drops all that follow a line break.
        let last = index + 1 == test.input_series.len();
        for text in [&input.series, &input.values] {
            if text.trim().contains('\n') || (text.contains('\n') && !last) {
                problems.push(text.at, "expected one line, found a line break: promtool drops what follows it; write >- instead of > or |");
            }
        }
        let labels = match promql::parse_series(&input.series) {
            Ok(labels) if !input.series.trim().is_empty() => Some(labels),
            Ok(_) => {
                problems.push(input.series.at, "expected a series such as up{probe=\"web\"}, found nothing");
                None
            }
            Err(error) => {
                problems.push(input.series.at, format!("series {:?}: {error}", input.series.value));
                None
            }
        };
        match series::expand(&input.values, MAX_SAMPLES - samples) {
            Ok(values) => {
                samples += values.len();
                series.extend(labels.map(|labels| (labels, values)));
            }
            Err(message) => problems.push(input.values.at, message),
        }
    }
    let mut expressions = Vec::new();
    for test in &test.promql_expr_test {
        let expr = promql::parse(&test.expr).map_err(|error| problems.push(test.expr.at, error.to_string())).ok();
        let mut expected = Vec::new();
        for sample in &test.exp_samples {
            match sample.labels.as_ref().map(|labels| (labels.at, promql::parse_series(labels))) {
                None => expected.push((Labels::default(), sample.value.0)),
                Some((_, Ok(labels))) => expected.push((labels, sample.value.0)),
                Some((at, Err(error))) => problems.push(at, format!("expected labels such as up{{probe=\"web\"}}: {error}")),
            }
        }
        expressions.extend(expr.map(|expr| Asked { test, expr, expected }));
    }
    for alert in test.alert_rule_test.iter().filter(|alert| alert.alertname.is_empty()) {
        problems.push(alert.alertname.at, "expected the name of an alert, found nothing");
    }
    if test.last_time().as_millis() / interval.as_millis().max(1) >= MAX_TURNS {
        problems.push(test.at, format!("expected at most {MAX_TURNS} turns, found more: raise evaluation_interval or lower eval_time"));
    }
    Some(Ready { test, at: test.at, series, expressions })
}

impl TestCase {
    /// Returns the last moment at which something is asked.
    fn last_time(&self) -> Duration {
        let alerts = self.alert_rule_test.iter().map(|test| test.eval_time);
        alerts.chain(self.promql_expr_test.iter().map(|test| test.eval_time)).max().unwrap_or_default()
    }
}

/// Notes which alerts no rule makes: promtool is content with a name that is written wrong where nothing may fire.
fn unknown_alerts(tests: &TestFile, groups: &[RuleGroup], warnings: &mut Vec<String>) {
    let known: BTreeSet<&str> = groups.iter().flat_map(RuleGroup::alert_names).collect();
    let asked: BTreeSet<&str> =
        tests.tests.iter().flat_map(|test| &test.alert_rule_test).map(|test| test.alertname.value.as_str()).collect();
    let known_list: Vec<&str> = known.iter().copied().collect();
    warnings.extend(asked.difference(&known).map(|name| decode::unknown("alert", name, &known_list)));
}
