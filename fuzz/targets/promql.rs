//! PromQL: an expression is evaluated or has a mistake; and the notation of series and samples in unit tests of rules.

#![no_main]

use std::sync::{Arc, LazyLock};

use proctor::fuzzing::Parsers;
use proctor::metrics::Metrics;
use proctor::model::{Labels, Timestamp};
use proctor::promql;
use proctor::window::{Limits, Window};

/// A window with a few series, two of a histogram.
static WINDOW: LazyLock<Window> = LazyLock::new(|| {
    let window = Window::of_all_time(Limits::for_targets(10), Arc::new(Metrics::new()));
    for (name, labels) in [
        ("a", [("x", "1"), ("y", "")]),
        ("a", [("x", "2"), ("y", "q")]),
        ("b", [("le", "1"), ("x", "")]),
        ("b", [("le", "+Inf"), ("x", "")]),
    ] {
        let labels = Labels::new([("__name__", name)].into_iter().chain(labels));
        for step in 0..10 {
            window.append(labels.clone(), Timestamp::from_secs(step * 30), step as f64);
        }
    }
    window
});

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(expr) = promql::parse(text) {
        drop(expr.eval(&WINDOW, Timestamp::from_secs(200)));
    }
    drop(promql::parse_series(text));
    Parsers::samples(text);
});
