//! What a result, a scrape and an evaluation cost: `cargo bench`. The comparison with other programs is peers.py.

use std::sync::Arc;
use std::time::Duration;

use divan::{Bencher, black_box};
use proctor::metrics::Metrics;
use proctor::model::labels::NAME;
use proctor::model::{Family, Labels, ProbeResult, Sample, Sight, Target, Timestamp};
use proctor::probe::nginx::format::LogFormat;
use proctor::probe::nginx::log::Requests;
use proctor::probe::nginx::tail::Tail;
use proctor::promql;
use proctor::snapshot::{Format, Snapshot};
use proctor::window::{Limits, Window};

static FAMILIES: [Family; 5] = [
    Family::gauge("probe_success", "Success"),
    Family::gauge("probe_duration_seconds", "Duration"),
    Family::gauge("probe_last_run_timestamp_seconds", "Last run"),
    Family::gauge("probe_dns_lookup_time_seconds", "Lookup"),
    Family::gauge("probe_ip_protocol", "Version"),
];
const NOW: Timestamp = Timestamp(1_700_000_000_000);
const INTERVAL: Duration = Duration::from_secs(15);

fn main() {
    divan::main();
}

fn results(targets: usize) -> Vec<ProbeResult> {
    let target = |n: usize| Target {
        probe: format!("t{n}").into(),
        target: None,
        kind: "tcp",
        // Believed for long: a round may take a while.
        interval: Duration::from_secs(86_400),
        timeout: Duration::from_secs(5),
        depends_on: Arc::new([]),
    };
    let samples = || FAMILIES.iter().map(|family| Sample { family, labels: vec![], value: 0.123_456 }).collect();
    let result = |n| ProbeResult {
        target: Arc::new(target(n)),
        at: NOW,
        duration: Duration::from_millis(1),
        outcome: Ok(()),
        samples: samples(),
        sight: Sight::Full,
        evidence: Vec::new(),
    };
    (0..targets).map(result).collect()
}

fn snapshot(results: &[ProbeResult]) -> Snapshot {
    let snapshot = Snapshot::new(Arc::new(Metrics::new()));
    snapshot.announce(&results.iter().map(|result| result.target.clone()).collect::<Vec<_>>());
    for result in results {
        snapshot.accept(result);
    }
    snapshot
}

fn series(probe: &str) -> Vec<(Labels, f64)> {
    FAMILIES.iter().map(|family| (Labels::new([(NAME, family.name), ("probe", probe), ("instance", "a")]), 1.0)).collect()
}

/// Ten minutes of samples.
fn window(targets: usize) -> Window {
    let window = Window::new(Limits::default(), Arc::new(Metrics::new()));
    for turn in 0..40 {
        for n in 0..targets {
            window.accept(&format!("t{n}"), NOW + INTERVAL * turn, series(&format!("t{n}")));
        }
    }
    window
}

/// One result of five samples, rendered.
#[divan::bench(args = [20, 1_000, 10_000])]
fn render(bencher: Bencher<'_, '_>, targets: usize) {
    let results = results(targets);
    let snapshot = snapshot(&results);
    bencher.bench_local(|| snapshot.accept(black_box(&results[targets / 2])));
}

/// The whole body, joined and compressed.
#[divan::bench(args = [20, 1_000, 10_000])]
fn join(bencher: Bencher<'_, '_>, targets: usize) {
    let snapshot = snapshot(&results(targets));
    let mut now = NOW;
    bencher.bench_local(|| {
        now = now + Duration::from_millis(300);
        snapshot.body(Format::OpenMetrics, now)
    });
}

/// One result of five samples, into the window.
#[divan::bench(args = [20, 1_000])]
fn keep(bencher: Bencher<'_, '_>, targets: usize) {
    let window = window(targets);
    let mut now = NOW + INTERVAL * 40;
    bencher.bench_local(|| {
        now = now + INTERVAL;
        window.accept("t1", now, series("t1"));
    });
}

/// What the built-in rules ask of every target, and a range.
#[divan::bench(args = ["probe_success == 0", "avg_over_time(probe_duration_seconds[5m]) > 1", "probe_success == 0 unless on (probe) probe_ip_protocol == 4"])]
fn evaluate(bencher: Bencher<'_, '_>, expression: &str) {
    let window = window(1_000);
    let parsed = promql::parse(expression).expect("is an expression");
    bencher.bench_local(|| parsed.eval(&window, NOW + INTERVAL * 40).expect("can be evaluated"));
}

/// What 100,000 lines of an access log cost, from the file to the counters.
#[divan::bench(args = ["combined", TIMED])]
fn access_log(bencher: Bencher<'_, '_>, format: &str) {
    const LINES: usize = 100_000;
    let line = "203.0.113.77 - - [25/Nov/2026:21:00:00 +0000] \"GET /2026fa-cmpt-120-d1/pages/Lecture%2007?from=index HTTP/1.1\" 200 18734 \
                \"https://coursys.example.org/2026fa-cmpt-120-d1/\" \"Mozilla/5.0 (X11; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0\"";
    let times = if format == TIMED { " 0.123 0.100, 0.021" } else { "" };
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("access.log");
    let lines = format!("{line}{times}\n").repeat(LINES);
    // At most 16 MiB are read at once.
    let (lines, turns) = (&lines[..lines.len() / 4], 4);
    let mut tail = Tail::new(file.clone());
    let mut requests = Requests::new(LogFormat::new(format).expect("is a format"));
    let mut look = |requests: &mut Requests| tail.look(&mut |line| requests.take(line)).expect("it can be read");
    look(&mut requests);
    bencher.counter(divan::counter::ItemsCount::new(LINES)).bench_local(|| {
        for _ in 0..turns {
            // Another file of the same name: read from its beginning, as after a rotation.
            std::fs::remove_file(&file).ok();
            std::fs::write(&file, lines).expect("the file takes them");
            look(&mut requests);
        }
    });
}

/// combined with both times.
const TIMED: &str = r#"$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent" $request_time $upstream_response_time"#;
