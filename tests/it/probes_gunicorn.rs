//! What gunicorn tells of itself, against real ones, old and new, and against hostile ones.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use proctor::model::{ProbeResult, Reason, Sight};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::support::gunicorn::{Gunicorn, gunicorn20};
use super::support::hostile::{Manner, hostile};
use super::support::process::{Process, eventually, free_port, program};
use super::support::watched::{Watched, failed, value, well};

fn watched(gunicorn: &Gunicorn, more: &str) -> Watched {
    watched_for(gunicorn, more, "2s")
}

fn watched_for(gunicorn: &Gunicorn, more: &str, timeout: &str) -> Watched {
    Watched::new(&format!(
        "  app: {{gunicorn: {{listen: '{}', host_header: coursys.example.org, path: /healthcheck{more}}}, interval: 1m, timeout: {timeout}}}",
        gunicorn.listen
    ))
}

#[track_caller]
fn partial(result: &ProbeResult, missing: &str, remedy: &str) {
    assert!(result.is_success(), "{:?}", result.outcome);
    let Sight::Partial { missing: found, remedy: helps } = &result.sight else { panic!("expected {missing}: {:?}", result.sight) };
    assert!(found.contains(missing) && helps.contains(remedy), "{found}: {helps}");
}

/// What it tells by statsd while it serves, fails, and has a worker that hangs.
async fn tells(statsd: &str) {
    let first = Watched::new(&format!("  app: {{gunicorn: {{listen: '127.0.0.1:1', host_header: a, statsd: '{statsd}'}}}}"));
    failed(&first.run("app").await, Reason::Refused, "");
    let more = ["--statsd-host", statsd, "--statsd-prefix", "site.gunicorn.x", "--timeout", "10"];
    let Some(gunicorn) = Gunicorn::with(&more, None).await else { return };
    for path in ["/healthcheck", "/error", "/none", "/none"] {
        gunicorn.get(path).await.expect("gunicorn answers");
    }
    let hangs = gunicorn.ask("/slow?s=60").await.expect("gunicorn listens");
    let result = first
        .until("app", "all of it has come", 60, |result| {
            let requests = value(result, "gunicorn_requests_total", "");
            let of = |status| value(result, "gunicorn_responses_total", status);
            value(result, "gunicorn_log_messages_total", "critical").is_some_and(|count| count >= 1.0)
                && of("500") == Some(1.0)
                && of("404").or(of("301")).is_some()
                && value(result, "gunicorn_request_duration_seconds_count", "") == requests
                && requests.is_some_and(|count| count >= 5.0)
        })
        .await;
    drop(hangs);
    assert_eq!(value(&result, "gunicorn_workers", ""), Some(3.0));
    assert_eq!(value(&result, "gunicorn_statsd_errors_total", ""), Some(0.0));
    let requests = value(&result, "gunicorn_requests_total", "");
    assert_eq!(value(&result, "gunicorn_request_duration_seconds_bucket", "+Inf"), requests);
}

#[tokio::test]
async fn what_gunicorn_tells_over_a_socket_in_the_file_system_is_counted() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("statsd.sock");
    // Left over by a Proctor that was killed.
    drop(UnixDatagram::bind(&path).expect("it can be bound"));
    tells(&format!("unix:{}", path.display())).await;
}

#[tokio::test]
async fn what_gunicorn_tells_by_udp_is_counted() {
    tells(&format!("127.0.0.1:{}", free_port())).await;
}

#[tokio::test]
async fn an_old_gunicorn_has_no_control_socket_and_all_else_is_seen() {
    let Some(old) = gunicorn20() else { return };
    let Some(gunicorn) = Gunicorn::with(&["--pid", "FOLDER/pid"], Some(old)).await else { return };
    assert!(gunicorn.log().contains("Starting gunicorn 20."), "{}", gunicorn.log());
    let folder = gunicorn.folder().display();
    let watched = watched(&gunicorn, &format!(", pid_file: {folder}/pid, control_socket: {folder}/ctl"));
    let result = watched.run("app").await;
    partial(&result, "gunicorn's workers", "gunicorn 25.1 or later");
    assert_eq!((value(&result, "gunicorn_workers", ""), value(&result, "gunicorn_crash_loop", "")), (Some(3.0), Some(0.0)));
}

#[tokio::test]
async fn a_statsd_address_that_is_taken_is_said_and_garbage_and_floods_do_no_harm() {
    let Some(gunicorn) = Gunicorn::tcp().await else { return };
    let address = format!("127.0.0.1:{}", free_port());
    let statsd = format!(", statsd: '{address}'");
    let (one, two) = (watched(&gunicorn, &statsd), watched(&gunicorn, &statsd));
    well(&one.run("app").await, true);
    partial(&two.run("app").await, &format!("cannot listen at {address}: Address already in use"), "stop who listens there");
    let folder = tempfile::tempdir().expect("a folder can be made");
    let none = watched(&gunicorn, &format!(", statsd: 'unix:{}/none/statsd'", folder.path().display()));
    partial(&none.run("app").await, "No such file or directory", "a path in a folder that exists");

    let flood = tokio::task::spawn_blocking(move || {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        let mut garbage: Vec<Vec<u8>> =
            vec![vec![0xff; 60_000], b"gunicorn.requests:1e308|c".to_vec(), b"\x1b[31m{{ .X }}:1|c".to_vec(), vec![]];
        garbage.extend((100..1000).map(|code| format!("gunicorn.request.status.{code}:1|c").into_bytes()));
        for turn in 0..20_000 {
            let _ = socket.send_to(&garbage[turn % garbage.len()], &address);
        }
    });
    for _ in 0..3 {
        well(&one.run("app").await, true);
    }
    flood.await.expect("it was sent");
    let result = one.run("app").await;
    well(&result, true);
    assert!(value(&result, "gunicorn_statsd_errors_total", "").is_some_and(|lines| lines >= 1.0), "{:?}", result.samples);
    assert!(value(&result, "gunicorn_statsd_datagrams_total", "").is_some_and(|count| count >= 100.0));
    assert!(result.samples.len() < 120, "{}", result.samples.len());
    assert_eq!(value(&result, "gunicorn_requests_total", ""), Some(0.0));
}

#[tokio::test]
async fn busy_workers_and_the_oldest_request_are_told_by_the_control_socket() {
    let Some(gunicorn) = Gunicorn::with(&["--control-socket", "FOLDER/ctl", "--pid", "FOLDER/pid"], None).await else { return };
    let folder = gunicorn.folder().display();
    let watched = watched(&gunicorn, &format!(", pid_file: {folder}/pid, control_socket: {folder}/ctl"));
    let told = |result: &ProbeResult| {
        ["gunicorn_workers", "gunicorn_workers_wanted", "gunicorn_workers_busy", "gunicorn_request_age_seconds_max"]
            .map(|name| value(result, name, "").unwrap_or(-1.0))
    };
    let idle = watched.until("app", "all is seen, and none is busy", 60, |result| told(result) == [3.0, 3.0, 0.0, 0.0]).await;
    well(&idle, true);
    assert_eq!(value(&idle, "gunicorn_workers_spawned_total", ""), Some(3.0));
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(gunicorn.ask("/slow?s=60").await.expect("gunicorn listens"));
    }
    let result = watched.until("app", "all are busy for a second", 30, |result| told(result)[2] >= 3.0 && told(result)[3] > 1.0).await;
    failed(&result, Reason::Saturated, "all workers are busy or stand still");
    drop(held);
}

#[tokio::test]
async fn a_hostile_control_socket_costs_only_what_it_would_have_told() {
    let Some(gunicorn) = Gunicorn::tcp().await else { return };
    let folder = tempfile::tempdir().expect("a folder can be made");
    let framed = |text: &str| [&u32::try_from(text.len()).expect("it is short").to_be_bytes(), text.as_bytes()].concat();
    for (turn, (says, words)) in [
        (vec![], "end of file"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "expected an answer of at most 1048576 bytes"),
        (u32::MAX.to_be_bytes().to_vec(), "expected an answer of at most 1048576 bytes"),
        (framed("{{"), "expected JSON"),
        (framed(r#"{"id": 0, "status": "error", "error": "\u001b[31m"}"#), "expected status ok"),
        (framed(r#"{"id": 0, "status": "ok", "data": {"workers": 7}}"#).repeat(3), "expected a list of workers"),
        (framed(&"[".repeat(100_000)), "expected JSON"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = folder.path().join(turn.to_string());
        let listener = UnixListener::bind(&path).expect("it can be bound");
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("Proctor connects");
            stream.write_all(&says).await.expect("it is read");
            stream.shutdown().await.expect("it is open");
            let mut heard = Vec::new();
            // A reset is no matter: it hung up.
            let _ = stream.read_to_end(&mut heard).await;
            String::from_utf8_lossy(&heard).into_owned()
        });
        let result = watched(&gunicorn, &format!(", control_socket: {}", path.display())).run("app").await;
        partial(&result, words, "is it gunicorn");
        let heard = asked.await.expect("it ends");
        assert_eq!(heard.matches("\"command\"").count(), heard.matches("\"command\":\"show\"").count(), "{heard}");
    }
    // Silent: it is left in time to ask the workers.
    let path = folder.path().join("silent");
    let _listener = UnixListener::bind(&path).expect("it can be bound");
    partial(&watched(&gunicorn, &format!(", control_socket: {}", path.display())).run("app").await, "timed out", "is it gunicorn");
}

#[tokio::test]
async fn an_app_that_dies_as_it_starts_behind_a_living_master_is_told_from_busy_workers() {
    let Some(gunicorn) = Gunicorn::with(&["--pid", "FOLDER/pid"], None).await else { return };
    let folder = gunicorn.folder();
    let watched = watched(&gunicorn, &format!(", pid_file: {}/pid", folder.display()));
    let result = watched.run("app").await;
    well(&result, true);
    assert_eq!(value(&result, "gunicorn_crash_loop", ""), Some(0.0));
    std::fs::write(folder.join("crash"), "").expect("the folder takes files");
    let hup = Command::new("kill").args(["-HUP", &gunicorn.process.pid().to_string()]).status();
    assert!(hup.expect("kill runs").success());
    let words = "its workers die as they start while the master lives";
    let result = watched.until_failed("app", "the loop is seen", 60, Reason::Stalled, words).await;
    assert_eq!((value(&result, "gunicorn_crash_loop", ""), value(&result, "gunicorn_up", "")), (Some(1.0), Some(0.0)));
    // The port opens all the while.
    assert!(gunicorn.ask("/").await.is_ok());
    std::fs::remove_file(folder.join("crash")).expect("it is ours");
    let result = watched.until("app", "it answers again", 60, ProbeResult::is_success).await;
    let settled = watched.until("app", "the loop is over", 20, |result| value(result, "gunicorn_crash_loop", "") == Some(0.0)).await;
    assert!(result.is_success() && settled.is_success());
}

#[tokio::test]
async fn recycled_workers_and_a_wrong_pid_file_are_no_alarm() {
    let Some(gunicorn) = Gunicorn::with(&["--pid", "FOLDER/pid", "--max-requests", "2"], None).await else { return };
    let pid_file = gunicorn.folder().join("pid");
    // All three may be booting at once, on a host that is busy.
    let watched = watched_for(&gunicorn, &format!(", pid_file: {}", pid_file.display()), "30s");
    for _ in 0..12 {
        let result = watched.run("app").await;
        well(&result, true);
        assert_eq!(value(&result, "gunicorn_crash_loop", ""), Some(0.0));
    }
    assert!(gunicorn.log().matches("Booting worker").count() > 5, "{}", gunicorn.log());
    // A pid file that is not right says what would help, and takes nothing else away.
    for (text, words) in [("x", "expected the number of a process"), ("99999999", "is gone")] {
        std::fs::write(&pid_file, text).expect("it is ours");
        partial(&watched.run("app").await, words, "");
    }
    std::fs::remove_file(&pid_file).expect("it is ours");
    partial(&watched.run("app").await, "No such file", "let gunicorn write it: --pid");
}

/// Listens in a network namespace of its own with a queue of 3, lets two wait, and takes none.
const ELSEWHERE: &str = "
import fcntl, socket, struct, time
fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sH14s', b'lo', 0x41, b''))
listener = socket.socket()
listener.bind(('127.0.0.1', 8000))
listener.listen(3)
waiting = [socket.create_connection(('127.0.0.1', 8000)) for _ in range(2)]
print('ready', flush=True)
time.sleep(600)
";

#[tokio::test]
async fn the_queue_in_another_network_namespace_is_seen_by_a_process_that_is_there() {
    let (Some(unshare), Some(python)) = (program("unshare"), program("python3")) else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root may make a network namespace");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder can be made");
    let log = folder.path().join("log");
    let process = Process::start(Command::new(unshare).args(["--net", "--"]).arg(python).args(["-c", ELSEWHERE]), &log);
    let said = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    eventually("it listens", Duration::from_secs(30), || async { said(&log).contains("ready").then_some(()) }).await;
    let pid_file = folder.path().join("pid");
    std::fs::write(&pid_file, process.pid().to_string()).expect("the folder takes files");
    // What listens here is docker's proxy.
    let proxy = hostile(Manner::Silent).await;
    let yaml = |more: &str| {
        format!("  app: {{gunicorn: {{listen: '127.0.0.1:{proxy}', host_header: a, pid_file: {}{more}}}, timeout: 1s}}", pid_file.display())
    };
    let queue = |result: &ProbeResult| (value(result, "gunicorn_accept_queue", ""), value(result, "gunicorn_accept_queue_max", ""));
    let result = Watched::new(&yaml(", backlog: 3")).run("app").await;
    failed(&result, Reason::Saturated, "2 of 3 places of the accept queue are in use");
    assert_eq!((queue(&result), &result.sight), ((Some(2.0), Some(3.0)), &Sight::Full));
    assert_eq!(value(&result, "gunicorn_listen_overflows_total", ""), Some(0.0), "those of its own namespace");
    let result = Watched::new(&yaml("")).run("app").await;
    failed(&result, Reason::Saturated, "2 places of the accept queue are in use");
    assert_eq!(queue(&result), (Some(2.0), None));
    assert!(matches!(&result.sight, Sight::Partial { remedy, .. } if remedy.contains("backlog:")), "{:?}", result.sight);
}

#[tokio::test]
async fn connections_that_a_full_queue_turned_away_are_counted() {
    let Some(gunicorn) = Gunicorn::tcp().await else { return };
    let watched = watched(&gunicorn, "");
    let overflows = |result: &ProbeResult| value(result, "gunicorn_listen_overflows_total", "").expect("it is counted");
    let before = overflows(&watched.run("app").await);
    gunicorn.process.signal("STOP");
    let mut held = Vec::new();
    for _ in 0..100 {
        for _ in 0..4 {
            let one = tokio::time::timeout(Duration::from_millis(200), gunicorn.ask("/")).await;
            held.extend(one.into_iter().flatten());
        }
        let result = watched.run("app").await;
        assert!(!result.is_success());
        if overflows(&result) > before {
            return;
        }
    }
    panic!("the queue never overflowed: {} connections are held", held.len());
}

#[test]
fn its_rules_speak_when_they_should_and_only_then() {
    let Some(promtool) = program("promtool") else { return };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts/tests/gunicorn.yml");
    let output = Command::new(promtool).args(["test", "rules"]).arg(file).output().expect("promtool runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
