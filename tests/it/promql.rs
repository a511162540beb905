//! PromQL against cases in promqltest's syntax (`tests/promql/*.test`), and those against Prometheus itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use proctor::metrics::Metrics;
use proctor::model::{Labels, MatchOp, Matcher, Timestamp, duration};
use proctor::promql::{self, EvalError, Value};
use proctor::window::{Limits, MAX_LOOK_BACK, STALE, Window, is_stale};
use promql_parser::parser as reference;
use proptest::prelude::*;

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
struct Load {
    step: Duration,
    series: Vec<(String, String)>,
}

fn duration_of(text: &str) -> Duration {
    text.parse::<f64>().map_or_else(|_| duration::parse(text).expect(text), Duration::from_secs_f64)
}

/// Reads `name{a="b"}` and returns it with what follows.
fn labels_of(text: &str) -> (Labels, &str) {
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

fn window() -> Window {
    Window::new(Limits::default(), Arc::new(Metrics::new()))
}

/// The window as it is a little after `at`: what comes later would age away what is asked for.
fn filled(loads: &[Load], at: Duration) -> Window {
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

#[test]
fn a_broken_expression_is_refused_at_the_token_that_fails() {
    let deep = |open: &str, close: &str, times: usize| format!("{}a{}", open.repeat(times), close.repeat(times));
    for (text, wanted) in [
        ("", "1:1: parse error: expected an expression, found nothing"),
        ("  # only a comment", "1:1: parse error: expected an expression, found nothing"),
        ("up{probe=\"x\"} == 0 and down ==", "1:31: parse error: expected an expression after \"==\", found end of input"),
        ("up ==\n  and down", "2:3: parse error: expected an expression after \"==\", found \"and\"\u{0}"),
        ("(up", "1:4: parse error: expected \")\" or an operator after \"up\", found end of input"),
        ("up)", "1:3: parse error: expected an operator or the end after \"up\", found \")\""),
        ("sum(rate(x[5m])", "1:16: parse error: expected \",\", \")\" or an operator after \")\", found end of input"),
        ("up{a=\"b\"", "1:9: parse error: expected \",\" or \"}\" after \"\"b\"\", found end of input"),
        ("up{a=\"b}", "1:6: parse error: the text that begins here has no closing \""),
        ("up{a='b\"}", "1:6: parse error: the text that begins here has no closing '"),
        ("up{a=b}", "1:6: parse error: expected a quoted value after \"=\", found \"b\""),
        ("up{a==\"b\"}", "1:5: parse error: expected a label matcher operator (=, !=, =~ or !~) after \"a\", found \"==\""),
        ("up{a>\"b\"}", "1:5: parse error: expected a label matcher operator (=, !=, =~ or !~) after \"a\", found \">\""),
        ("up{1=\"b\"}", "1:4: parse error: expected a label name or \"}\" after \"{\", found \"1\""),
        ("up{a=~\"(\"}", "1:7: parse error: \"(\" is no regular expression: error: unclosed group"),
        (
            "up{a=\"\\d\"}",
            "1:6: parse error: this text has the unknown escape \\d; write \\\\d for a backslash in a regular expression, or use backquotes",
        ),
        ("up[5m", "1:6: parse error: expected \"]\", or \":\" and the step of a subquery, after \"5m\", found end of input"),
        ("rate(up[5])[", "1:13: parse error: expected a duration such as 5m after \"[\", found end of input"),
        ("rate(up[5 m])", "1:11: parse error: expected \"]\", or \":\" and the step of a subquery, after \"5\", found \"m\""),
        ("rate(up[5x])", "1:9: parse error: expected a number such as 0.5 or 1e6, or a duration such as 30s, 5m or 1h30m, found \"5x\""),
        (
            "rate(up[1m1h])",
            "1:9: parse error: expected a number such as 0.5 or 1e6, or a duration such as 30s, 5m or 1h30m, found \"1m1h\"",
        ),
        ("rate(up[0s])", "1:9: parse error: a duration here must be greater than 0"),
        ("rate(up[-5m])", "1:9: parse error: expected a duration such as 5m after \"[\", found \"-\""),
        ("rate(up)", "1:6: parse error: rate() takes a range vector here, found an instant vector: add a range such as [5m]"),
        (
            "abs(up[5m])",
            "1:5: parse error: abs() takes an instant vector here, found a range vector: leave the range out, or wrap it in a function such as rate()",
        ),
        ("abs(1)", "1:5: parse error: abs() takes an instant vector here, found a scalar: write vector(…) around it"),
        ("sum(1)", "1:5: parse error: sum() takes an instant vector here, found a scalar: write vector(…) around it"),
        ("topk(up)", "1:1: parse error: topk() takes 2 arguments, the parameter first, found 1"),
        ("clamp(up, 1)", "1:1: parse error: clamp() takes 3 arguments, found 2"),
        ("round(up, 1, 2)", "1:1: parse error: round() takes 1 to 2 arguments, found 3"),
        ("time(up)", "1:1: parse error: time() takes 0 arguments, found 1"),
        ("ratee(up[5m])", "1:1: parse error: unknown function \"ratee\", did you mean \"rate\"?"),
        ("nothing_like_it(up)", "1:1: parse error: unknown function \"nothing_like_it\""),
        (
            "up[5m]",
            "1:1: parse error: expected an instant vector or a scalar, found a range vector: wrap it in a function such as rate() or last_over_time()",
        ),
        ("up > 1 < 2 down", "1:12: parse error: expected an operator or the end after \"2\", found \"down\""),
        ("1 > 2", "1:3: parse error: a comparison of two scalars needs bool: > bool"),
        ("up + bool 1", "1:4: parse error: bool is for comparisons (== != > < >= <=), found it after \"+\""),
        ("up and 1", "1:4: parse error: \"and\" stands between instant vectors, found a scalar: write vector(…) around it"),
        ("up + \"x\"", "1:6: parse error: \"+\" stands between scalars and instant vectors, found a string"),
        ("-\"x\"", "1:2: parse error: a sign stands before a scalar or an instant vector, found a string"),
        (
            "up and on(a) group_left b",
            "1:14: parse error: group_left and group_right make no sense with \"and\", which matches many to many",
        ),
        (
            "a / on(x) group_left(x) b",
            "1:11: parse error: the label \"x\" must not stand in on() and in group_left() or group_right() at once",
        ),
        ("a * on(x) 2", "1:3: parse error: on() and ignoring() match two instant vectors, found a scalar"),
        (
            "sum(up) offset 5m",
            "1:9: parse error: offset stands right after a metric, its range, or a subquery, not after another expression",
        ),
        ("up offset 5m offset 1m", "1:14: parse error: offset may stand only once"),
        ("rate(up offset 1h[5m])", "1:18: parse error: offset and @ stand after the range: metric[5m] offset 1h"),
        ("(up)[5m]", "1:5: parse error: a range stands after a metric; after anything else write a subquery such as [5m:1m]"),
        ("up @ soon", "1:6: parse error: expected a moment in seconds since the epoch, start() or end() after \"@\", found \"soon\""),
        ("up & down", "1:4: parse error: unexpected character '&'"),
        ("up ! down", "1:4: parse error: unexpected character '!'; \"not equal\" is written !=, \"and not\" is written unless"),
        ("ü", "1:1: parse error: unexpected character 'ü'"),
        ("up{a=\"ü\"} +\nup{a=\"ü\"} ü", "2:11: parse error: unexpected character 'ü'"),
        ("{}", "1:1: parse error: a selector needs a name or one matcher that does not match the empty value, or it reads everything"),
        ("sum by host (up)", "1:8: parse error: expected \"(\" and label names after \"by\", found \"host\""),
        ("sum(up) by (1)", "1:13: parse error: expected a label name or \")\" after \"(\", found \"1\""),
        (
            "limitk(1, up)",
            "1:1: parse error: \"limitk\" is not supported here; Prometheus accepts it only with an --enable-feature flag. Supported aggregations: sum,",
        ),
        (
            "histogram_fraction(0, 1, up)",
            "1:1: parse error: \"histogram_fraction\" is not supported here; Prometheus accepts it. Supported functions: abs,",
        ),
        ("sum(mad_over_time(up[5m]))", "1:5: parse error: \"mad_over_time\" is not supported here; Prometheus accepts it only"),
        ("rate(up[5m] smoothed)", "1:13: parse error: \"smoothed\" is not supported here; Prometheus accepts it only"),
        ("a + fill(0) b", "1:5: parse error: \"fill\" is not supported here; Prometheus accepts it only"),
        (&deep("(", ")", 5000), "1:65: parse error: nested more than 64 deep: split it with recording rules"),
        (&deep("-", "", 10_000), "1:65: parse error: nested more than 64 deep: split it with recording rules"),
        (&deep("abs(", ")", 3000), "1:257: parse error: nested more than 64 deep: split it with recording rules"),
        (&format!("a{}", "^a".repeat(5000)), "1:129: parse error: nested more than 64 deep: split it with recording rules"),
        (&format!("a{}", "+a".repeat(5000)), "1:1: parse error: more than 250 operators upon each other: split it with recording rules"),
        (&format!("a{}", "[5m:1m]".repeat(2000)), "1:1: parse error: a subquery is made of an instant vector, found a range vector"),
        (&"x".repeat(20_000), "1:1: parse error: expected at most 16384 bytes, found 20000"),
        (&format!("up{{a=~\"{}\"}}", "x".repeat(5000)), "1:7: parse error: this regular expression is longer than 4096 bytes"),
        ("up{a=~\"((a{100}){100}){100}\"}", "1:7: parse error: \"((a{100}){100}){100}\" is no regular expression"),
    ] {
        let error = promql::parse(text).expect_err(text).to_string();
        // A word of the grammar where an expression should begin is taken for a metric's name, as Prometheus does.
        if let Some(wanted) = wanted.strip_suffix('\u{0}') {
            assert!(error.starts_with("2:7: parse error: expected an operator or the end after \"and\""), "{text}: {error}, not {wanted}");
            continue;
        }
        assert!(error.starts_with(wanted), "{}\n  wanted {wanted}\n  found  {error}", text.chars().take(60).collect::<String>());
    }
    let error = promql::parse("ü\nüü ==").unwrap_err();
    assert_eq!((error.offset, error.line, error.column), (0, 1, 1));
    let error = promql::parse("{a=\"ü\"} +\n  )").unwrap_err();
    assert_eq!((error.offset, error.line, error.column), (12, 2, 3));
}

#[test]
fn an_expression_says_how_far_it_looks_back_and_what_it_reads() {
    for (text, seconds, names) in [
        ("1", 0, ""),
        ("up", 300, "up"),
        ("rate(a[10m]) > b", 600, "a b"),
        ("a offset 1h", 3900, "a"),
        ("a offset -1h", 0, "a"),
        ("rate(a[5m] offset 1h) / rate(b[10m])", 3900, "a b"),
        ("max_over_time(rate(a[5m])[1h:1m] offset 30m)", 5700, "a"),
        ("max_over_time(a[1h:1m] offset 30m) @ 5", 0, "!"),
        ("max_over_time(a @ end() [1h:1m])", 300, "a"),
        ("sum by (x) (label_replace({__name__=~\"a.*\"}, \"x\", \"$1\", \"y\", \".*\"))", 300, ""),
        ("absent({__name__=\"c\"} or d unless topk(scalar(e), f))", 300, "c d e f"),
    ] {
        if names == "!" {
            assert!(promql::parse(text).is_err(), "{text}");
            continue;
        }
        let expr = promql::parse(text).expect(text);
        assert_eq!(expr.look_back(), Duration::from_secs(seconds), "{text}");
        assert_eq!(expr.metric_names().into_iter().collect::<Vec<_>>().join(" "), names, "{text}");
        assert_eq!(expr.text(), text);
    }
}

#[test]
fn a_result_that_is_too_large_is_an_error_of_its_own() {
    let window = window();
    for number in 0..10_001 {
        window.append(Labels::new([("__name__", "many".to_owned()), ("n", number.to_string())]), Timestamp(1000), 1.0);
    }
    let eval = |text: &str| promql::parse(text).expect(text).eval(&window, Timestamp(1000));
    assert_eq!(eval("many"), Err(EvalError::TooMany(10_001)));
    assert_eq!(eval("count(many)"), Ok(Value::Vector(vec![(Labels::default(), 10_001.0)])));
    assert_eq!(eval("sum_over_time(count(many)[5m:1ms])"), Err(EvalError::TooMuch));
}

#[test]
fn the_highest_tree_that_parses_is_evaluated_on_a_small_stack() {
    let texts = [
        format!("a{}", " + a".repeat(250)),
        format!("a{}", " or a".repeat(250)),
        format!("{}a{}", "(".repeat(62), ")".repeat(62)),
        format!("{}a{}", "abs(".repeat(62), ")".repeat(62)),
        format!("{}a{}", "sum by (x) (-".repeat(31), ")".repeat(31)),
        format!("{}a{}", "max_over_time(".repeat(60), "[1m:1m])".repeat(60)),
    ];
    let run = move || {
        let window = window();
        window.append(Labels::new([("__name__", "a")]), Timestamp(60_000), 1.0);
        for text in &texts {
            promql::parse(text).expect(text).eval(&window, Timestamp(60_000)).expect(text);
        }
    };
    // Tokio's workers have 2 MiB.
    std::thread::Builder::new().stack_size(1 << 20).spawn(run).unwrap().join().unwrap();
}

fn labels(text: &str) -> Labels {
    labels_of(text).0
}

fn everything(window: &Window, name: &str) -> BTreeMap<String, Vec<(i64, String)>> {
    let matcher = Matcher::new("__name__", MatchOp::Equal, name).unwrap();
    let print = |value: f64| if is_stale(value) { "stale".to_owned() } else { value.to_string() };
    let series = window.select(&[matcher], Timestamp(i64::MIN), Timestamp(i64::MAX)).into_iter();
    series.map(|one| (one.labels.to_string(), one.samples.into_iter().map(|(at, value)| (at, print(value))).collect())).collect()
}

#[test]
fn a_series_that_a_target_no_longer_gives_ends_with_a_stale_marker() {
    let window = window();
    let accept = |owner: &str, at: i64, series: &[(&str, f64)]| {
        window.accept(owner, Timestamp(at), series.iter().map(|(text, value)| (labels(text), *value)));
    };
    accept("one", 1000, &[("a{n=\"1\"}", 1.0), ("a{n=\"2\"}", 2.0)]);
    accept("two", 1000, &[("a{n=\"3\"}", 3.0)]);
    accept("one", 2000, &[("a{n=\"1\"}", 1.5), ("a{n=\"1\"}", 1.6)]);
    let entry = |samples: &[(i64, &str)]| samples.iter().map(|(at, value)| (*at, (*value).to_owned())).collect::<Vec<_>>();
    let found = everything(&window, "a");
    assert_eq!(found["a{n=\"1\"}"], entry(&[(1000, "1"), (2000, "1.6")]), "of two at one moment the last wins");
    assert_eq!(found["a{n=\"2\"}"], entry(&[(1000, "2"), (2000, "stale")]));
    assert_eq!(found["a{n=\"3\"}"], entry(&[(1000, "3")]), "another target's run ends nothing of this one's");
    // It comes back; an older run that comes late changes and ends nothing.
    accept("one", 3000, &[("a{n=\"2\"}", 4.0)]);
    accept("one", 2500, &[("a{n=\"2\"}", 9.0)]);
    let found = everything(&window, "a");
    assert_eq!(found["a{n=\"1\"}"].last(), Some(&(3000, "stale".to_owned())));
    assert_eq!(found["a{n=\"2\"}"], entry(&[(1000, "2"), (2000, "stale"), (3000, "4")]));
    // A target that is gone: each series ends once, a moment after its last value.
    window.forget_owner("one", Timestamp(3000));
    window.forget_owner("one", Timestamp(9000));
    assert_eq!(everything(&window, "a")["a{n=\"2\"}"].last(), Some(&(3001, "stale".to_owned())));
    // A series that moved to another target is not ended by its old one.
    accept("two", 4000, &[("b", 1.0)]);
    accept("three", 5000, &[("b", 2.0)]);
    window.forget_owner("two", Timestamp(6000));
    assert_eq!(everything(&window, "b")["b"], entry(&[(4000, "1"), (5000, "2")]));
    assert_eq!(window.first_at(), Some(Timestamp(1000)));
}

#[test]
fn what_is_older_than_the_look_back_is_dropped_and_an_ended_series_leaves_the_window() {
    let window = window();
    for minute in 0..30i64 {
        window.append(labels("a"), Timestamp(minute * 60_000), minute as f64);
    }
    window.append(labels("b"), Timestamp(0), 1.0);
    assert_eq!(window.series_count(), 2);
    window.append(labels("a"), Timestamp(30 * 60_000), 30.0);
    let kept = &everything(&window, "a")["a"];
    assert_eq!((kept.len(), kept[0].0), (12, 19 * 60_000), "ten minutes, and one for what is evaluated late");
    window.append(labels("a"), Timestamp(32 * 60_000), 32.0);
    assert_eq!(window.series_count(), 1, "b, which nobody writes any more, is gone");
    assert_eq!(window.first_at(), Some(Timestamp(0)), "since when it knows");
    // It can be told to keep longer, but not for ever.
    window.set_look_back(Duration::from_secs(999 * 3600));
    for minute in 33..600i64 {
        window.append(labels("a"), Timestamp(minute * 60_000), minute as f64);
    }
    assert_eq!(everything(&window, "a")["a"][0].0, (599 * 60 - 60) * 1000 - MAX_LOOK_BACK.as_millis() as i64);
    window.set_look_back(Duration::ZERO);
    assert_eq!(everything(&window, "a")["a"].len(), 12);
}

#[test]
fn a_full_window_drops_what_is_new_and_counts_it() {
    let metrics = Arc::new(Metrics::new());
    let window = Window::new(Limits { series: 3, samples: 10 }, metrics.clone());
    for at in 0..20i64 {
        window.accept("t", Timestamp(at), ["a", "b", "c", "d", "e"].map(|name| (labels(name), at as f64)));
    }
    assert_eq!(window.series_count(), 3);
    assert_eq!(metrics.window_samples_dropped.get(), 40, "d and e, twenty times");
    let kept: usize = ["a", "b", "c"].iter().map(|name| everything(&window, name)[*name].len()).sum();
    assert_eq!(kept, 10);
    assert_eq!(everything(&window, "a")["a"].last(), Some(&(19, "19".to_owned())), "the newest is kept, the oldest is lost");
}

/// Parts of expressions, of which random ones are put together.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("a".to_owned()),
        Just("b{x=\"1\"}".to_owned()),
        Just("{__name__=~\"a|b\"}".to_owned()),
        Just("a offset 1m".to_owned()),
        Just("b @ 30".to_owned()),
        Just("nosuch".to_owned()),
        Just("2".to_owned()),
        Just("-0.5".to_owned()),
        Just("NaN".to_owned()),
        Just("1e308".to_owned()),
        Just("time()".to_owned()),
        Just("rate(a[5m])".to_owned()),
        Just("quantile_over_time(0.3, b[2m])".to_owned()),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let op = prop::sample::select(vec![
            "+",
            "-",
            "*",
            "/",
            "%",
            "^",
            "atan2",
            "==",
            "> bool",
            "<",
            "!= on(x)",
            "and",
            "or",
            "unless on()",
            "+ on(x) group_left",
            "* ignoring(y) group_right(z)",
            ">= bool ignoring(x)",
        ]);
        let function = prop::sample::select(vec![
            "abs(%)",
            "sum(%)",
            "sum by (x) (%)",
            "avg without (x) (%)",
            "topk(2, %)",
            "quantile(0.9, %)",
            "count_values(\"v\", %)",
            "stddev(%)",
            "absent(%)",
            "vector(%)",
            "vector(scalar(%))",
            "sort(%)",
            "clamp(%, -1, 1)",
            "round(%, 0)",
            "ln(%)",
            "year(%)",
            "histogram_quantile(0.5, %)",
            "label_replace(%, \"x\", \"$1\", \"y\", \"(.*)\")",
            "label_join(%, \"z\", \"-\", \"x\")",
            "max_over_time(%[3m:30s])",
            "rate(%[3m:1m] offset 30s)",
            "deriv(%[5m:1m])",
            "changes(%[2m:])",
            "timestamp(%)",
            "(%)",
            "-(%)",
            "last_over_time(%[1m:10s] @ 100)",
            "topk(%, b)",
            "bottomk by (y) (-1, %)",
            "minute(%)",
        ]);
        prop_oneof![
            (inner.clone(), op, inner.clone()).prop_map(|(left, op, right)| format!("{left} {op} {right}")),
            (function, inner).prop_map(|(function, inner)| function.replace('%', &inner)),
        ]
    })
}

/// Words of the grammar in any order, most of them nonsense.
fn word_salad() -> impl Strategy<Value = String> {
    let words = vec![
        "a",
        "b",
        "sum",
        "rate",
        "by",
        "on",
        "ignoring",
        "group_left",
        "bool",
        "and",
        "or",
        "unless",
        "offset",
        "(",
        ")",
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        "5m",
        "1",
        "0x1f",
        "-",
        "+",
        "*",
        "/",
        "^",
        "==",
        "=~",
        "!=",
        ">",
        "=",
        ",",
        ":",
        "@",
        "\"x\"",
        "'y'",
        "`z`",
        "start",
        "topk",
        "time",
        "[5m]",
        "[5m:1m]",
        "a{x=\"1\"}",
        "()",
        "(x)",
        "without",
        "1e5",
        "inf",
        "NaN",
        "#c\n",
        "1h30m",
        "absent",
    ];
    prop::collection::vec(prop::sample::select(words), 1..14).prop_map(|words| words.join(" "))
}

/// Where we and the crate `promql-parser` are known to differ; who is right was looked up in Prometheus 3.14.
fn known_to_differ(text: &str, ours: Option<&str>, theirs: Option<&str>) -> bool {
    match (ours, theirs) {
        // As a whole a range vector is a query, but no rule.
        (Some(why), None) => why.contains("found a range vector: wrap it") || why.contains("is not supported here"),
        _ => {
            let _ = (text, theirs);
            false
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_parser_panic_or_dwell(text in "\\PC{0,200}") {
        let before = std::time::Instant::now();
        drop(promql::parse(&text));
        prop_assert!(before.elapsed() < Duration::from_secs(2), "{text}");
    }

    #[test]
    fn no_order_of_words_makes_the_parser_panic_and_the_reference_parser_agrees(text in word_salad()) {
        let ours = promql::parse(&text).err().map(|error| error.to_string());
        let theirs = reference::parse(&text).err();
        prop_assert!(
            ours.is_some() == theirs.is_some() || known_to_differ(&text, ours.as_deref(), theirs.as_deref()),
            "{text}\n  ours   {ours:?}\n  theirs {theirs:?}"
        );
    }

    #[test]
    fn no_expression_makes_the_evaluation_panic(text in expression(), at in 0i64..400_000) {
        let loads = [Load { step: Duration::from_secs(30), series: [("a{x=\"1\"}", "0+1x10"), ("a{x=\"2\", y=\"q\"}", "5 _ NaN stale 2 0 Inf -1"), ("b{x=\"1\", le=\"+Inf\"}", "1x10"), ("b{le=\"1\"}", "1-1x9")].map(|(series, values)| (series.to_owned(), values.to_owned())).to_vec() }];
        if let Ok(expr) = promql::parse(&text) {
            drop(expr.eval(&filled(&loads, Duration::from_secs(400)), Timestamp(at)));
        }
    }
}
