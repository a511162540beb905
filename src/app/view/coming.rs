//! What is about to go wrong: alerts that are pending, certificates, disks, queues; from what was measured anyway.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use super::{MAX_TEXT, Scene};
use crate::app::App;
use crate::model::duration::print_measured;
use crate::model::{Alert, AlertState, Labels, Timestamp};
use crate::notify::message::line;
use crate::promql::{self, Expr, Value};
use crate::web::{Notice, Rows, Tone};
use crate::window::Window;

/// The most rows.
const MAX_ROWS: usize = 16;
/// The most of each sort.
const MAX_EACH: usize = 5;
/// A certificate that has no more than this part of its lifetime should have been renewed.
const RENEWED_AT: f64 = 0.25;
const DAY: f64 = 86_400.0;

/// What is asked of the window.
struct Questions {
    certificates: Option<Expr>,
    shares: Option<Expr>,
    fills: Option<Expr>,
    short: Option<Expr>,
    queues: [Option<Expr>; 2],
}

static QUESTIONS: LazyLock<Questions> = LazyLock::new(|| {
    let ask = |text: &str| promql::parse(text).ok();
    Questions {
        certificates: ask("certificate_remaining_seconds"),
        shares: ask("certificate_remaining_share"),
        // As HostDiskFillsUp, but for a day and a half, and with half of the disk left.
        fills: ask("node_filesystem_avail_bytes / (0 - (deriv(node_filesystem_avail_bytes[1h]) < 0)) < 36 * 3600 \
             and node_filesystem_avail_bytes < 0.5 * node_filesystem_size_bytes and node_filesystem_readonly == 0 \
             and node_filesystem_avail_bytes < 0.98 * (node_filesystem_avail_bytes offset 30m)"),
        short: ask("node_filesystem_avail_bytes / node_filesystem_size_bytes < 0.1 and node_filesystem_readonly == 0"),
        queues: ["celery_queue_length", "rabbitmq_queue_messages_ready"]
            .map(|name| ask(&format!("deriv({name}[10m]) * 60 > 0.5 and {name} > 20"))),
    }
});

impl App {
    pub(super) fn coming(&self, scene: &Scene) -> Rows<Notice> {
        let mut all = self.pending(scene);
        let (window, now) = (&self.window, scene.now);
        all.extend(disks(window, now));
        all.extend(queues(window, now));
        all.extend(certificates(window, now));
        all.sort_by_key(|notice| notice.tone);
        Rows::of(all, MAX_ROWS)
    }

    /// Returns the alerts that will fire if nothing changes, and whose probe is well so far.
    fn pending(&self, scene: &Scene) -> Vec<Notice> {
        let wrong = scene.wrong();
        let known = |alert: &Alert| alert.probe().is_some_and(|probe| wrong.contains_key(&(probe, true)));
        let mut pending: Vec<_> = scene.alerts.iter().filter(|alert| alert.state == AlertState::Pending && !known(alert)).collect();
        pending.sort_by_key(|alert| alert.active_at);
        let notices = pending.into_iter().take(MAX_ROWS).map(|alert| Notice {
            tone: Tone::Unsure,
            text: line(&format!("{} {} {}", alert.name(), crate::app::operate::place(alert), scene.fires_in(alert)), MAX_TEXT),
            detail: line(alert.annotations.get("summary").unwrap_or(""), MAX_TEXT),
            button: None,
        });
        notices.collect()
    }
}

impl Scene {
    /// Says when an alert fires that is pending.
    pub(super) fn fires_in(&self, alert: &Alert) -> String {
        let left = self.holds.get(&alert.rule).map(|hold| (alert.active_at + *hold).since(self.now)).unwrap_or_default();
        format!("fires in {} if it lasts", print_measured(left))
    }
}

/// Evaluates a question; what cannot be answered has no answer, and the rules say why.
fn ask(window: &Window, expr: Option<&Expr>, now: Timestamp) -> Vec<(Labels, f64)> {
    match expr.map(|expr| expr.eval(window, now)) {
        Some(Ok(Value::Vector(found))) => found,
        _ => Vec::new(),
    }
}

fn seconds(value: f64) -> String {
    print_measured(Duration::try_from_secs_f64(value).unwrap_or_default())
}

fn disks(window: &Window, now: Timestamp) -> Vec<Notice> {
    let place = |labels: &Labels| labels.get("mountpoint").unwrap_or("?").to_owned();
    let mut seen = BTreeSet::new();
    let mut fills = ask(window, QUESTIONS.fills.as_ref(), now);
    fills.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut all = Vec::new();
    for (labels, left) in fills.into_iter().take(MAX_EACH) {
        seen.insert(place(&labels));
        all.push(Notice::new(
            Tone::Unsure,
            line(&format!("{} is full in {}, if it goes on as in the last hour", place(&labels), seconds(left)), MAX_TEXT),
        ));
    }
    let mut short = ask(window, QUESTIONS.short.as_ref(), now);
    short.sort_by(|a, b| a.1.total_cmp(&b.1));
    for (labels, share) in short.into_iter().filter(|(labels, _)| !seen.contains(&place(labels))).take(MAX_EACH) {
        all.push(Notice::new(Tone::Unsure, line(&format!("{:.0} % of {} are left", share * 100.0, place(&labels)), MAX_TEXT)));
    }
    all
}

fn queues(window: &Window, now: Timestamp) -> Vec<Notice> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for expr in &QUESTIONS.queues {
        let mut growing = ask(window, expr.as_ref(), now);
        growing.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (labels, rate) in growing.into_iter().take(MAX_EACH) {
            let queue = labels.get("queue").or_else(|| labels.get("target")).unwrap_or("?").to_owned();
            // celery and the broker see the same queue.
            if seen.insert(queue.clone()) {
                all.push(Notice::new(Tone::Unsure, line(&format!("Queue {queue} grows by {rate:.0} messages a minute"), MAX_TEXT)));
            }
        }
    }
    all
}

fn certificates(window: &Window, now: Timestamp) -> Vec<Notice> {
    // The same labels but for the name of the metric.
    let key = |labels: &Labels| labels.without(|name| name == crate::model::labels::NAME).to_string();
    let shares: std::collections::BTreeMap<String, f64> =
        ask(window, QUESTIONS.shares.as_ref(), now).into_iter().map(|(labels, share)| (key(&labels), share)).collect();
    let mut ends: Vec<(bool, f64, String)> = ask(window, QUESTIONS.certificates.as_ref(), now)
        .into_iter()
        .map(|(labels, left)| {
            let late = shares.get(&key(&labels)).is_some_and(|share| *share < RENEWED_AT) || left < DAY;
            let name = labels.get("filepath").or_else(|| labels.get("target")).or_else(|| labels.get("probe")).unwrap_or("?");
            (late, left, name.to_owned())
        })
        .collect();
    ends.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut seen = BTreeSet::new();
    ends.retain(|(.., name)| seen.insert(name.clone()));
    let late: Vec<_> = ends.iter().filter(|(late, ..)| *late).take(MAX_EACH).collect();
    let notice = |tone, text: String| Notice::new(tone, line(&text, MAX_TEXT));
    if late.is_empty() {
        // That all is well is said too, by the one that comes first.
        let next =
            ends.first().map(|(_, left, name)| notice(Tone::Plain, format!("The next certificate ends in {}: {name}", seconds(*left))));
        return next.into_iter().collect();
    }
    late.into_iter()
        .map(|(_, left, name)| match *left {
            left if left <= 0.0 => notice(Tone::Bad, format!("The certificate {name} has expired")),
            left if left < 3.0 * DAY => notice(Tone::Bad, format!("The certificate {name} ends in {} and was not renewed", seconds(left))),
            left => notice(Tone::Unsure, format!("The certificate {name} ends in {} and was not renewed", seconds(left))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::model::labels::NAME;

    /// A name, labels, and the value by the minute.
    type Fake<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a dyn Fn(i64) -> f64);

    fn window(samples: &[Fake<'_>]) -> Window {
        let window = Window::of_all_time(crate::window::Limits::default(), Arc::new(Metrics::new()));
        for minute in 0..=90 {
            let all =
                samples.iter().map(|(name, labels, value)| (Labels::new(labels.iter().copied().chain([(NAME, *name)])), value(minute)));
            window.accept("x", Timestamp::from_secs(minute * 60), all.collect::<Vec<_>>());
        }
        window
    }

    fn texts(notices: Vec<Notice>) -> Vec<String> {
        notices.into_iter().map(|notice| notice.text).collect()
    }

    #[test]
    fn a_disk_that_fills_is_named_with_its_time_and_one_that_is_only_written_to_is_not() {
        let now = Timestamp::from_secs(90 * 60);
        let (size, gib): (&dyn Fn(i64) -> f64, f64) = (&|_| 100.0 * 1_073_741_824.0, 1_073_741_824.0);
        let at = |place: &'static str| [("mountpoint", place)];
        let (filling, steady, short) = (at("/data"), at("/"), at("/boot"));
        let window = window(&[
            ("node_filesystem_avail_bytes", &filling, &|minute| (40.0 - minute as f64 / 3.0) * gib),
            ("node_filesystem_avail_bytes", &steady, &|minute| (40.0 - (minute % 5) as f64 / 10.0) * gib),
            ("node_filesystem_avail_bytes", &short, &|_| 7.0 * gib),
            ("node_filesystem_size_bytes", &filling, size),
            ("node_filesystem_size_bytes", &steady, size),
            ("node_filesystem_size_bytes", &short, size),
            ("node_filesystem_readonly", &filling, &|_| 0.0),
            ("node_filesystem_readonly", &steady, &|_| 0.0),
            ("node_filesystem_readonly", &short, &|_| 0.0),
        ]);
        assert_eq!(texts(disks(&window, now)), ["/data is full in 30m, if it goes on as in the last hour", "7 % of /boot are left"]);
    }

    #[test]
    fn a_queue_that_two_probes_see_is_named_once_and_certificates_only_when_they_are_late() {
        let now = Timestamp::from_secs(90 * 60);
        let queue = [("queue", "batch")];
        let lives = [("filepath", "/etc/a.pem")];
        let late = [("filepath", "/etc/b.pem")];
        let mut samples: Vec<Fake<'_>> = vec![
            ("celery_queue_length", &queue, &|minute| 30.0 + minute as f64 * 2.0),
            ("rabbitmq_queue_messages_ready", &queue, &|minute| 30.0 + minute as f64 * 2.0),
            ("certificate_remaining_seconds", &lives, &|_| 60.0 * DAY),
            ("certificate_remaining_share", &lives, &|_| 0.7),
        ];
        assert_eq!(texts(queues(&window(&samples), now)), ["Queue batch grows by 2 messages a minute"]);
        assert_eq!(texts(certificates(&window(&samples), now)), ["The next certificate ends in 60d: /etc/a.pem"]);
        samples.push(("certificate_remaining_seconds", &late, &|_| 10.0 * DAY));
        samples.push(("certificate_remaining_share", &late, &|_| 0.1));
        assert_eq!(texts(certificates(&window(&samples), now)), ["The certificate /etc/b.pem ends in 10d and was not renewed"]);
    }
}
