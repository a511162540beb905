//! What the window keeps, ends and drops.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proctor::metrics::Metrics;
use proctor::model::{Labels, MatchOp, Matcher, Timestamp};
use proctor::window::{Limits, MAX_LOOK_BACK, Window, is_stale};

use super::corpus::labels_of;
use super::window;

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
