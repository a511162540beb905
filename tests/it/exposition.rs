//! What Prometheus and people read over HTTP, and the control socket.

use std::os::unix::fs::PermissionsExt;
use std::process::Command as Program;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proctor::metrics::Metrics;
use proctor::model::decode::from_text;
use proctor::model::{Failure, Family, Histogram, Observed, ProbeResult, Reason, Sample, Sight, Target};
use proctor::snapshot::Snapshot;
use proctor::tasks::{self, Tasks};
use proctor::web::access::{Access, Gate};
use proctor::web::{self, Notice, Pages, Rows, Status, TargetRow, Tone, Trouble, WebConfig, control};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::support::process::{Process, eventually, free_port, program};

static UP: Family = Family::gauge("nginx_up", "Whether nginx answers");
static ACCEPTED: Family = Family::borrowed_counter("nginx_connections_accepted", "Accepted connections");
static TOOK: Histogram =
    Histogram::new(["took_seconds_bucket", "took_seconds_sum", "took_seconds_count"], "How long something took", &[0.5, 1.0]);

struct Site {
    port: u16,
    ready: Arc<AtomicBool>,
    tasks: Tasks,
    snapshot: Snapshot,
    metrics: Arc<Metrics>,
}

/// Starts the web over a snapshot with one target, whose result is fresh.
async fn site() -> Site {
    let metrics = Arc::new(Metrics::new());
    let snapshot = Snapshot::new(metrics.clone());
    let target = Arc::new(Target {
        probe: "web".into(),
        target: Some("a\"b".into()),
        kind: "nginx",
        interval: Duration::from_secs(3600),
        timeout: Duration::from_secs(5),
        depends_on: Arc::new([]),
    });
    snapshot.announce(std::slice::from_ref(&target));
    let sample = |family, value| Sample { family, labels: vec![], value };
    let mut observed = Observed::nothing(&TOOK);
    [0.1, 1.0, 9.0].iter().for_each(|took| observed.add(&TOOK, *took));
    let bucket = |(family, le, value): (_, Option<String>, _)| {
        let labels = le.map(|le| ("le", le.into())).into_iter().collect();
        Sample { family, labels, value }
    };
    snapshot.accept(&ProbeResult {
        target,
        at: tasks::now(),
        duration: Duration::from_millis(1),
        outcome: Err(Failure::new(Reason::Protocol, "<script>alert(1)</script> {{ 7*7 }}")),
        samples: [sample(&UP, 0.0), sample(&ACCEPTED, 7.0)].into_iter().chain(observed.series(&TOOK).map(bucket)).collect(),
        sight: Sight::Full,
        evidence: Vec::new(),
    });
    let ready = Arc::new(AtomicBool::new(false));
    let (is_ready, rows) = (ready.clone(), snapshot.clone());
    let pages = Pages {
        inbox: Arc::new(|_| None),
        carry: Arc::new(|_, _| Box::pin(async { Err("nothing is changed here".to_owned()) })),
        snapshot: snapshot.clone(),
        ready: Arc::new(move || if is_ready.load(Ordering::SeqCst) { Ok(()) } else { Err("1 target has not answered yet".to_owned()) }),
        status: Arc::new(move || {
            let trouble = |(latest, history): (proctor::snapshot::Latest, proctor::snapshot::history::History)| Trouble {
                title: latest.target.to_string(),
                kind: latest.target.kind,
                since: tasks::now(),
                targets: Rows::of(
                    vec![TargetRow {
                        name: latest.target.to_string(),
                        tone: Tone::Bad,
                        detail: latest.result.map(|result| result.outcome.as_ref().expect_err("it failed").to_string()).unwrap_or_default(),
                        took: None,
                        since: latest.since,
                        asked: true,
                        at: None,
                        history: history.until(tasks::now()),
                        shows: history.shows(),
                    }],
                    9,
                ),
                alerts: Rows::default(),
                wake: Rows::default(),
            };
            Status {
                site: "coursys".to_owned(),
                verdict: Notice::new(Tone::Bad, "1 of 1 targets fails"),
                troubles: Rows::of(rows.histories().into_iter().map(trouble).collect(), 9),
                ..Status::default()
            }
        }),
    };
    let tasks = Tasks::new();
    let config: WebConfig = from_text("test", "listen: 127.0.0.1:0").expect("is right");
    let port = web::start(&config, pages, Access::new(Gate::default(), proctor::config::read), metrics.clone(), &tasks)
        .await
        .expect("a port is free")
        .port();
    Site { port, ready, tasks, snapshot, metrics }
}

/// Sends bytes and reads until the other side closes or nothing comes for a while.
async fn exchange(port: u16, request: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.expect("it closes").expect("it answers");
    answer
}

async fn get(port: u16, path: &str, headers: &str) -> (String, Vec<u8>) {
    let answer = exchange(port, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n")).await;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    (String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase(), answer[end..].to_vec())
}

#[tokio::test]
async fn metrics_are_given_in_both_formats_and_compressed_if_asked() {
    let site = site().await;
    let (head, text) = get(site.port, "/metrics", "").await;
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let text = String::from_utf8(text).expect("UTF-8");
    assert!(text.contains("# TYPE nginx_connections_accepted counter\n") && !text.contains("# EOF"), "{text}");
    assert!(text.contains("nginx_up{probe=\"web\",target=\"a\\\"b\"} 0\n"), "{text}");

    let (head, open) = get(site.port, "/metrics", "Accept: application/openmetrics-text;version=1.0.0\r\n").await;
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    let open = String::from_utf8(open).expect("UTF-8");
    assert!(open.contains("# TYPE nginx_connections_accepted unknown\n") && open.ends_with("# EOF\n"), "{open}");

    let (head, packed) = get(site.port, "/metrics", "Accept-Encoding: gzip\r\n").await;
    assert!(head.contains("content-encoding: gzip"), "{head}");
    let mut unpacked = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(packed.as_slice()), &mut unpacked).expect("is gzip");
    assert!(unpacked.contains("nginx_up{"), "{unpacked}");
}

#[tokio::test]
async fn health_readiness_and_a_page_that_escapes_what_a_service_said() {
    let site = site().await;
    assert!(get(site.port, "/-/healthy", "").await.0.starts_with("http/1.1 200"));
    let (head, body) = get(site.port, "/-/ready", "").await;
    assert!(head.starts_with("http/1.1 503"), "{head}");
    assert_eq!(String::from_utf8_lossy(&body), "not ready: 1 target has not answered yet\n");
    site.ready.store(true, Ordering::SeqCst);
    assert!(get(site.port, "/-/ready", "").await.0.starts_with("http/1.1 200"));
    let (head, page) = get(site.port, "/", "").await;
    let page = String::from_utf8(page).expect("UTF-8");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(!page.contains("<script>") && page.contains("{{ 7*7 }}") && page.contains("1 of 1 targets fails"), "{page}");
}

#[tokio::test]
async fn a_real_prometheus_takes_every_sample() {
    let Some(prometheus) = program("prometheus") else { return };
    let site = site().await;
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: proctor, static_configs: [{{targets: ['127.0.0.1:{}']}}]}}]\n",
        site.port
    );
    std::fs::write(folder.path().join("p.yml"), config).expect("it can be written");
    let _prometheus = Process::start(
        Program::new(prometheus)
            .arg(format!("--config.file={}", folder.path().join("p.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}")),
        &folder.path().join("log"),
    );
    let query = |expr: &'static str| async move {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let request = format!("GET /api/v1/query?query={expr} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let body: serde_json::Value = serde_json::from_str(&answer[answer.find("\r\n\r\n")? + 4..]).ok()?;
        body["data"]["result"][0]["value"][1].as_str()?.parse::<f64>().ok()
    };
    let scraped = eventually("Prometheus scrapes", Duration::from_secs(60), || query("scrape_samples_scraped%20%3E%200")).await;
    assert_eq!(eventually("up", Duration::from_secs(10), || query("up")).await, 1.0);
    let (_, shown) = get(site.port, "/metrics", "").await;
    let shown = String::from_utf8(shown).expect("UTF-8").lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(scraped as usize, shown);
    assert_eq!(query("nginx_connections_accepted").await, Some(7.0));
    assert_eq!(query("histogram_quantile(0.5,took_seconds_bucket)").await, Some(0.75), "half of them fell below that");
}

#[tokio::test]
async fn promtool_finds_nothing_but_borrowed_names() {
    let Some(promtool) = program("promtool") else { return };
    let site = site().await;
    let (_, text) = get(site.port, "/metrics", "").await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("metrics");
    std::fs::write(&path, text).expect("it can be written");
    let output = Program::new(promtool)
        .args(["check", "metrics"])
        .stdin(std::fs::File::open(&path).expect("it is there"))
        .output()
        .expect("promtool runs");
    let found = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let borrowed = include_str!("../promtool-metrics.txt");
    let new: Vec<&str> = found.lines().filter(|line| !borrowed.contains(line.split(' ').next().expect("a name"))).collect();
    assert!(new.is_empty(), "{new:?}");
}

#[tokio::test]
async fn slow_and_many_clients_do_not_take_the_web_away() {
    let site = site().await;
    let mut half = TcpStream::connect(("127.0.0.1", site.port)).await.expect("it listens");
    half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.expect("it reads");
    let begin = tokio::time::Instant::now();
    let mut rest = Vec::new();
    // After 5 s; a connection that takes nothing would be closed after 10.
    tokio::time::timeout(Duration::from_secs(9), half.read_to_end(&mut rest)).await.expect("a half-open request is closed").ok();
    assert!(begin.elapsed() > Duration::from_secs(1), "but not at once");

    let huge = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Huge: {}\r\n\r\n", "x".repeat(1 << 20));
    let mut stream = TcpStream::connect(("127.0.0.1", site.port)).await.expect("it listens");
    // It is refused before all of it is sent: writing may fail.
    stream.write_all(huge.as_bytes()).await.ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));

    let mut first = TcpStream::connect(("127.0.0.1", site.port)).await.expect("it listens");
    let mut many = Vec::new();
    for _ in 0..600 {
        many.push(TcpStream::connect(("127.0.0.1", site.port)).await.expect("the kernel accepts"));
    }
    eventually("connections are refused", Duration::from_secs(10), || async {
        (site.metrics.http_connections_refused.get() > 50).then_some(())
    })
    .await;
    first.write_all(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("it reads");
    let mut answer = [0u8; 15];
    first.read_exact(&mut answer).await.expect("those inside are served");
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
}

#[tokio::test]
async fn the_control_socket_is_for_its_group_and_refuses_what_it_does_not_know() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("control.sock");
    let start = |tasks: Tasks| {
        let path = path.clone();
        async move {
            let carry: control::Carry =
                Arc::new(|command, peer| Box::pin(async move { Ok(control::Reply::text(format!("{command:?} by {peer:?}"))) }));
            control::start(&path, carry, Arc::new(Metrics::new()), &tasks).await
        }
    };
    let ask = |body: &'static str| {
        let path = path.clone();
        async move {
            let mut stream = UnixStream::connect(path).await.expect("it listens");
            let request = format!(
                "POST /command HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(request.as_bytes()).await.expect("it reads");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("it answers");
            answer
        }
    };
    // What a killed process left behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    let tasks = Tasks::new();
    start(tasks.clone()).await.expect("it starts over a stale socket");
    assert_eq!(std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o660);
    let uid = rustix::process::getuid().as_raw();
    assert!(ask(r#"{"reload":{}}"#).await.contains(&format!("Reload by Local {{ uid: {uid} }}")), "{}", ask(r#"{"reload":{}}"#).await);
    for bad in [r#"{"rm":{}}"#, r#"{"reload":{"x":1}}"#, "[", ""] {
        assert!(ask(bad).await.starts_with("HTTP/1.1 4"), "{bad}");
    }
    let error = start(Tasks::new()).await.expect_err("somebody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(tasks.stop(Duration::from_secs(5)).await.is_empty());
    assert!(!path.exists(), "a stop removes the socket");
    std::fs::write(&path, "mine").expect("it can be written");
    start(Tasks::new()).await.expect_err("a file is no socket");
    assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "mine");
}

#[tokio::test]
async fn a_stop_closes_the_web_within_its_time() {
    let site = site().await;
    let _idle = TcpStream::connect(("127.0.0.1", site.port)).await.expect("it listens");
    assert!(site.tasks.stop(Duration::from_secs(5)).await.is_empty());
    // A process that another test starts has a copy of the listener until it runs its own program.
    let closed = || async { TcpStream::connect(("127.0.0.1", site.port)).await.err() };
    eventually("the port is closed", Duration::from_secs(5), closed).await;
    assert_eq!(site.snapshot.all().len(), 1);
}
