//! PromQL and the window it reads: what is refused and where, bounds, and random input.

use std::sync::Arc;
use std::time::Duration;

use proctor::metrics::Metrics;
use proctor::model::{Labels, Timestamp};
use proctor::promql::{self, EvalError, Value};
use proctor::window::{Limits, Window};
use promql_parser::parser as reference;
use proptest::prelude::*;

use corpus::{Load, filled};

mod corpus;
#[path = "promql/window.rs"]
mod in_window;

fn window() -> Window {
    Window::new(Limits::default(), Arc::new(Metrics::new()))
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

/// What we refuse and the crate does not: a range vector is a query but no rule, some things we do not evaluate, and
/// in two it is wrong: it takes `+"x"`, and panics at `offset inf`.
fn refused_on_purpose(why: &str) -> bool {
    let known = ["found a range vector: wrap it", "is not supported here", "a sign stands before", "out of range"];
    known.iter().any(|part| why.contains(part))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_parser_panic_or_dwell(text in "\\PC{0,200}") {
        let before = std::time::Instant::now();
        drop(promql::parse(&text));
        // Long for a debug build on a busy machine; what dwells would take minutes.
        prop_assert!(before.elapsed() < Duration::from_secs(10), "{text}");
    }

    #[test]
    fn no_order_of_words_makes_the_parser_panic_and_the_reference_parser_agrees(text in word_salad()) {
        let ours = promql::parse(&text).err().map(|error| error.to_string());
        if !ours.as_deref().is_some_and(refused_on_purpose) {
            let theirs = std::panic::catch_unwind(|| reference::parse(&text).err()).unwrap_or(Some("it panicked".to_owned()));
            prop_assert!(ours.is_some() == theirs.is_some(), "{text}\n  ours   {ours:?}\n  theirs {theirs:?}");
        }
    }

    #[test]
    fn no_expression_makes_the_evaluation_panic(text in expression(), at in 0i64..400_000) {
        let loads = [Load { step: Duration::from_secs(30), series: [("a{x=\"1\"}", "0+1x10"), ("a{x=\"2\", y=\"q\"}", "5 _ NaN stale 2 0 Inf -1"), ("b{x=\"1\", le=\"+Inf\"}", "1x10"), ("b{le=\"1\"}", "1-1x9")].map(|(series, values)| (series.to_owned(), values.to_owned())).to_vec() }];
        if let Ok(expr) = promql::parse(&text) {
            drop(expr.eval(&filled(&loads, Duration::from_secs(400)), Timestamp(at)));
        }
    }
}
