//! The cases in promqltest's syntax (`tests/promql/*.test`), held against their expectations and against promtool.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use proctor::model::{Labels, Timestamp, duration};
use proctor::promql::{self, EvalError, Value};
use proctor::window::{STALE, Window};

use super::window;

/// One `eval instant` with what it expects, and the series loaded before it.
struct Case {
    place: String,
    expr: String,
    at: Duration,
    expected: Expected,
    ordered: bool,
    /// The comment `# 3.x: …` before it says why Prometheus 2 gives something else.
    only_3: bool,
    load: Arc<Vec<Load>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Expected {
    Fail(String),
    Vector(Vec<(Labels, f64)>),
    Scalar(f64),
    String(String),
}

/// The series of one `load`, as they are written.
#[derive(Clone)]
pub struct Load {
    pub step: Duration,
    pub series: Vec<(String, String)>,
}

fn duration_of(text: &str) -> Duration {
    text.parse::<f64>().map_or_else(|_| duration::parse(text).expect(text), Duration::from_secs_f64)
}

/// Reads `name{a="b"}` and returns it with what follows.
pub fn labels_of(text: &str) -> (Labels, &str) {
    let brace = text.find('{').filter(|at| text.find([' ', '\t']).is_none_or(|space| *at < space));
    let end = brace.or_else(|| text.find([' ', '\t'])).unwrap_or(text.len());
    let mut pairs = vec![("__name__".to_owned(), text[..end].to_owned())];
    let mut rest = &text[end..];
    if brace.is_some() {
        rest = rest[1..].trim_start();
        while !rest.starts_with('}') {
            let quoted_name = rest.starts_with('"');
            let (name, after) = if quoted_name { quoted(rest) } else { (String::new(), rest) };
            let after = after.trim_start();
            if quoted_name && !after.starts_with('=') {
                pairs.push(("__name__".to_owned(), name));
                rest = after.trim_start_matches(',').trim_start();
                continue;
            }
            let equals = after.find('=').expect(text);
            let name = if quoted_name { name } else { after[..equals].trim().to_owned() };
            let (value, after) = quoted(after[equals + 1..].trim_start());
            pairs.push((name, value));
            rest = after.trim_start().trim_start_matches(',').trim_start();
        }
        rest = &rest[1..];
    }
    (Labels::new(pairs), rest.trim())
}

fn quoted(text: &str) -> (String, &str) {
    let quote = text.chars().next().expect("a quoted text");
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if !escaped && c == quote {
            let literal = promql::parse(&text[..=at]).expect(text);
            let Ok(Value::String(value)) = literal.eval(&window(), Timestamp(0)) else { panic!("{text}") };
            return (value, &text[at + 1..]);
        }
        escaped = !escaped && c == '\\' && quote != '`';
    }
    panic!("{text} does not close");
}

fn number(text: &str) -> f64 {
    let (sign, digits) = text.strip_prefix('-').map_or((1.0, text.trim_start_matches('+')), |digits| (-1.0, digits));
    sign * match digits.to_ascii_lowercase().as_str() {
        "inf" => f64::INFINITY,
        "nan" => f64::NAN,
        hex if hex.starts_with("0x") => i64::from_str_radix(&hex[2..], 16).expect(text) as f64,
        digits => digits.parse().unwrap_or_else(|_| panic!("{text} is no number")),
    }
}

/// Expands `0+10x3 _ stale 5x2` as promtool does; nothing is a gap.
fn values_of(text: &str) -> Vec<Option<f64>> {
    let mut values = Vec::new();
    for word in text.split_ascii_whitespace() {
        let (value, times) = word.rsplit_once('x').filter(|(value, _)| !value.is_empty()).unwrap_or((word, ""));
        let more: usize = if times.is_empty() { 0 } else { times.parse().expect(word) };
        if value == "_" {
            values.extend(std::iter::repeat_n(None, more.max(1)));
            continue;
        }
        if value == "stale" {
            values.push(Some(STALE));
            continue;
        }
        let split =
            value.char_indices().skip(1).find(|(at, c)| matches!(c, '+' | '-') && !value[..*at].ends_with(['e', 'E']) && !times.is_empty());
        let (start, step) = match split {
            Some((at, _)) => (number(&value[..at]), number(&value[at..])),
            None => (number(value), 0.0),
        };
        values.extend((0..=more).map(|index| Some(start + step * index as f64)));
    }
    values
}

/// The window as it is a little after `at`: what comes later would age away what is asked for.
pub fn filled(loads: &[Load], at: Duration) -> Window {
    let window = window();
    window.set_look_back(Duration::from_secs(6 * 3600));
    for load in loads {
        for (series, values) in &load.series {
            let labels = labels_of(series).0;
            for (index, value) in values_of(values).into_iter().enumerate() {
                let after = load.step * index as u32;
                if let Some(value) = value.filter(|_| after <= at + Duration::from_secs(2 * 3600)) {
                    window.append(labels.clone(), Timestamp(0) + after, value);
                }
            }
        }
    }
    window
}

fn cases_of(path: &Path) -> Vec<Case> {
    let text = std::fs::read_to_string(path).unwrap();
    let file = path.file_name().unwrap().to_string_lossy().into_owned();
    let (mut cases, mut load, mut only_3): (Vec<Case>, Vec<Load>, bool) = (Vec::new(), Vec::new(), false);
    let mut in_eval = false;
    for (number_of_line, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if let Some(why) = trimmed.strip_prefix('#') {
            only_3 |= why.trim().starts_with("3.x:");
        }
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = trimmed.split_ascii_whitespace().collect();
        if !line.starts_with([' ', '\t']) {
            in_eval = false;
            match words[0] {
                "clear" => load.clear(),
                "load" => load.push(Load { step: duration_of(words[1]), series: Vec::new() }),
                "eval" => {
                    in_eval = true;
                    let expr = trimmed.splitn(5, ' ').nth(4).expect(trimmed).trim();
                    cases.push(Case {
                        place: format!("{file}:{}", number_of_line + 1),
                        expr: expr.to_owned(),
                        at: duration_of(words[3]),
                        expected: Expected::Vector(Vec::new()),
                        ordered: false,
                        only_3: std::mem::take(&mut only_3),
                        load: Arc::new(load.clone()),
                    });
                }
                other => panic!("{file}:{}: {other}", number_of_line + 1),
            }
            continue;
        }
        if !in_eval {
            let (series, _) = (labels_of(trimmed), ());
            let at = trimmed.len() - series.1.len();
            load.last_mut().expect(trimmed).series.push((trimmed[..at].trim().to_owned(), series.1.to_owned()));
            continue;
        }
        let case = cases.last_mut().expect(trimmed);
        match words[..] {
            ["expect", "fail", ..] => case.expected = Expected::Fail(trimmed["expect fail".len()..].trim().to_owned()),
            ["expect", "ordered"] => case.ordered = true,
            ["expect", "string", ..] => case.expected = Expected::String(quoted(trimmed["expect string".len()..].trim()).0),
            [value] => case.expected = Expected::Scalar(number(value)),
            _ => {
                let (labels, value) = labels_of(trimmed);
                if let Expected::Vector(elements) = &mut case.expected {
                    elements.push((labels, number(value)));
                }
            }
        }
    }
    cases
}

fn all_cases() -> Vec<Case> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/promql"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "test"))
        .collect();
    files.sort();
    files.iter().flat_map(|path| cases_of(path)).collect()
}

/// Equal as Prometheus' own tests compare.
fn close(a: f64, b: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1e-300)
}

fn sorted(mut elements: Vec<(Labels, f64)>) -> Vec<(Labels, f64)> {
    elements.sort_by(|(a, _), (b, _)| a.cmp(b));
    elements
}

/// Evaluates a case; nothing where it agrees.
fn disagreement(case: &Case) -> Option<String> {
    let found = match promql::parse(&case.expr) {
        Ok(expr) => expr.eval(&filled(&case.load, case.at), Timestamp(0) + case.at).map_err(|error: EvalError| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let same = match (&case.expected, &found) {
        (Expected::Fail(why), Err(error)) => error.contains(why.strip_prefix("msg:").unwrap_or("").trim()),
        (Expected::Scalar(wanted), Ok(Value::Scalar(value))) => close(*wanted, *value),
        (Expected::String(wanted), Ok(Value::String(value))) => wanted == value,
        (Expected::Vector(wanted), Ok(Value::Vector(elements))) => same_vector(wanted, elements, case.ordered),
        _ => false,
    };
    (!same).then(|| format!("{}: {} at {:?}\n  wanted {:?}\n  found  {found:?}", case.place, case.expr, case.at, case.expected))
}

fn same_vector(wanted: &[(Labels, f64)], found: &[(Labels, f64)], ordered: bool) -> bool {
    let order = |elements: &[(Labels, f64)]| if ordered { elements.to_vec() } else { sorted(elements.to_vec()) };
    let (wanted, found) = (order(wanted), order(found));
    wanted.len() == found.len() && wanted.iter().zip(&found).all(|((a, x), (b, y))| a == b && close(*x, *y))
}

#[test]
fn every_case_gives_what_was_reasoned_out_for_it() {
    let cases = all_cases();
    let wrong: Vec<String> = cases.iter().filter_map(disagreement).collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(cases.len() >= 250, "{} cases", cases.len());
}

/// What promtool says to each case: the vector as it prints it, or `error`.
///
/// Every case is given an expectation that cannot come true, so that promtool prints what it got instead.
fn verdicts(promtool: &str, cases: &[&Case]) -> Vec<String> {
    let mut yaml = "rule_files: []\nevaluation_interval: 1m\ntests:\n".to_owned();
    let mut groups: Vec<(&Load, Vec<&Case>)> = Vec::new();
    for case in cases {
        let [load] = &case.load[..] else { panic!("{}: promtool has one step for all series", case.place) };
        match groups.last_mut() {
            Some((same, of)) if same.series == load.series => of.push(case),
            _ => groups.push((load, vec![case])),
        }
    }
    for (load, cases) in &groups {
        writeln!(yaml, "  - interval: {}\n    input_series:", duration::print(load.step)).unwrap();
        for (series, values) in &load.series {
            writeln!(yaml, "      - {{series: {series:?}, values: {values:?}}}").unwrap();
        }
        writeln!(yaml, "    promql_expr_test:").unwrap();
        // The last one lets promtool load what lies after the cases, for those that look ahead.
        for (expr, at) in cases.iter().map(|case| (&*case.expr, case.at)).chain([("vector(1)", Duration::from_secs(7200))]) {
            let at = duration::print(at);
            writeln!(yaml, "      - {{expr: {expr:?}, eval_time: {at}, exp_samples: [{{labels: never, value: 1}}]}}").unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cases.yml");
    std::fs::write(&file, &yaml).unwrap();
    let output = Command::new(promtool).args(["test", "rules"]).arg(&file).output().expect("promtool runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let mut said: Vec<String> = Vec::new();
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("expr: ") {
            said.push(if line.contains(", err: ") { "error".to_owned() } else { String::new() });
        } else if let Some(got) = line.strip_prefix("got:") {
            *said.last_mut().expect(line) = got.trim().to_owned();
        }
    }
    assert_eq!(said.len(), cases.len() + groups.len(), "{text}");
    // Without the last one of each group.
    let mut said = said.into_iter();
    groups.iter().flat_map(|(_, cases)| said.by_ref().take(cases.len() + 1).collect::<Vec<_>>().into_iter().take(cases.len())).collect()
}

/// Reads `a{b="c"} 1E+00, {} NaN`.
fn vector_of(text: &str) -> Vec<(Labels, f64)> {
    let (mut elements, mut rest) = (Vec::new(), text.trim());
    while !rest.is_empty() && rest != "nil" {
        let (labels, after) = labels_of(rest);
        let (value, tail) = after.split_once(", ").unwrap_or((after, ""));
        elements.push((labels, number(value.trim())));
        rest = tail;
    }
    elements
}

/// Says in what we and promtool differ.
fn differs(case: &Case, verdict: &str) -> Option<String> {
    let same = match (&case.expected, verdict) {
        (Expected::Fail(_), verdict) => verdict == "error",
        (_, "error") => false,
        (Expected::Scalar(value), verdict) => same_vector(&[(Labels::default(), *value)], &vector_of(verdict), false),
        (Expected::Vector(elements), verdict) => same_vector(elements, &vector_of(verdict), false),
        (Expected::String(_), _) => true,
    };
    (!same).then(|| format!("{}: {} at {:?}\n  ours     {:?}\n  promtool {verdict}", case.place, case.expr, case.at, case.expected))
}

/// What promtool can be asked: it evaluates no text, and our budget is not its.
fn askable(case: &&Case) -> bool {
    !matches!(&case.expected, Expected::String(_)) && !matches!(&case.expected, Expected::Fail(why) if why.contains("5000000"))
}

#[test]
fn promtool_2_gives_the_same_verdict_wherever_prometheus_3_changed_nothing() {
    let all = all_cases();
    let cases: Vec<&Case> = all.iter().filter(|case| !case.only_3).filter(askable).collect();
    let wrong: Vec<String> = cases.iter().zip(verdicts("promtool", &cases)).filter_map(|(case, said)| differs(case, &said)).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// `make promtool3-verdicts` sets PROMTOOL3, which records its verdicts anew.
#[test]
fn promtool_3_gave_the_same_verdict_on_every_case() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/promql/oracle.txt");
    let all = all_cases();
    let cases: Vec<&Case> = all.iter().filter(askable).collect();
    let key = |case: &Case| format!("{} @ {}", case.expr, duration::print(case.at));
    if let Ok(promtool) = std::env::var("PROMTOOL3") {
        let lines = cases.iter().zip(verdicts(&promtool, &cases)).map(|(case, said)| format!("{}\t{said}\n", key(case)));
        std::fs::write(path, lines.collect::<String>()).unwrap();
    }
    let recorded = std::fs::read_to_string(path).unwrap();
    let lines: Vec<(&str, &str)> = recorded.lines().map(|line| line.split_once('\t').expect(line)).collect();
    let keys: Vec<String> = cases.iter().map(|case| key(case)).collect();
    assert!(keys.iter().eq(lines.iter().map(|(key, _)| key)), "the cases changed: run make promtool3-verdicts");
    let wrong: Vec<String> = cases.iter().zip(&lines).filter_map(|(case, (_, said))| differs(case, said)).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
