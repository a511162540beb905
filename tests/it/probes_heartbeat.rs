//! Jobs that report by themselves: the real binary around real commands, over the socket and over HTTP.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::process::{Process, eventually, signal_group};
use crate::support::proctor::Proctor;
use crate::support::smtp::Sink;
use crate::support::tmpfs::Tmpfs;

const SOON: Duration = Duration::from_secs(30);
const TOKEN: &str = "a-token-of-more-than-sixteen";

/// A Proctor with two heartbeats, and its own rules for them.
async fn watching(sink: &Sink, job: &str) -> Proctor {
    let folder = tempfile::tempdir().expect("a folder").keep();
    let token = folder.join("token");
    std::fs::write(&token, TOKEN).expect("it can be written");
    std::fs::set_permissions(&token, PermissionsExt::from_mode(0o600)).expect("it is ours");
    let sections =
        format!("probes:\n  job: {{heartbeat: {{{job}}}}}\n  site: {{heartbeat: {{every: 1h, token_file: \"{}\"}}}}\n", token.display());
    let proctor = Proctor::configured(sink.port, &sections).built_in_rules().started();
    proctor.shows("heartbeat_overdue{probe=\"site\"} 0", SOON).await;
    proctor
}

/// What stands before the command of a job.
fn wrapped(proctor: &Proctor, argv: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proctor"));
    command.args(["run", "job", "--socket"]).arg(proctor.folder.path().join("control.sock")).arg("--").args(argv);
    command
}

fn printed(output: &Output) -> (String, String) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn a_job_passes_through_unchanged_and_a_failed_one_is_mailed_with_what_it_printed_and_again_when_it_is_well() {
    let sink = Sink::start().await;
    let proctor = watching(&sink, "every: 1h").await;
    let script = r#"cat; echo "$0 [$1] $PROBE"; echo 'the disk is full' >&2; printf '\0\377'; exit 3"#;
    let mut command = wrapped(&proctor, &["sh", "-c", script, "a b", "$HOME; *"]);
    command.env("PROBE", "kept").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut job = command.spawn().expect("it runs");
    job.stdin.take().expect("is piped").write_all(b"from stdin\n").expect("is read");
    let output = job.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stdout, b"from stdin\na b [$HOME; *] kept\n\0\xff");
    assert_eq!(output.stderr, b"the disk is full\n");
    proctor.shows("heartbeat_last_exit_code{probe=\"job\"} 3", SOON).await;
    proctor.shows("heartbeat_failed_runs_total{probe=\"job\"} 1", SOON).await;
    let mail = sink.wait_for(2, SOON).await[0].text.clone();
    for words in
        ["the last run of the job job failed", "job: mismatch: its last run ended with code 3 after", "the disk is full", "from stdin"]
    {
        assert!(mail.contains(words), "{words:?} in {mail}");
    }
    let output = wrapped(&proctor, &["sh", "-c", "exit 0"]).output().expect("it runs");
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{:?}", printed(&output));
    let mails = sink.wait_for(4, SOON).await;
    assert!(mails[2].text.contains("RESOLVED"), "{}", mails[2].text);
    proctor.shows("heartbeat_runs_total{probe=\"job\"} 2", SOON).await;
}

#[tokio::test]
async fn the_last_10_kib_of_a_long_output_are_in_the_mail() {
    let sink = Sink::start().await;
    let proctor = watching(&sink, "every: 1h").await;
    let output = wrapped(&proctor, &["sh", "-c", "seq 1 200000; exit 1"]).output().expect("it runs");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 1_288_895));
    let mail = sink.wait_for(2, SOON).await[0].text.clone();
    assert!(mail.contains("200000") && mail.contains("199850") && !mail.contains("190000"), "{mail}");
}

#[tokio::test]
async fn a_signal_reaches_the_job_and_its_end_by_one_is_told() {
    let sink = Sink::start().await;
    let proctor = watching(&sink, "every: 1h").await;
    let folder = proctor.folder.path().to_owned();
    let script = "trap 'echo told; exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let log = folder.join("job.log");
    let job = Process::start(&mut wrapped(&proctor, &["sh", "-c", script]), &log);
    let says = |words: &'static str| {
        let log = log.clone();
        async move { eventually(words, SOON, || async { read(&log).contains(words).then_some(()) }).await }
    };
    says("ready").await;
    proctor.shows("heartbeat_running{probe=\"job\"} 1", SOON).await;
    assert!(Command::new("kill").args(["-TERM", &job.pid().to_string()]).status().expect("kill runs").success());
    says("told").await;
    let mut job = job;
    assert_eq!(job.wait().code(), Some(7));
    proctor.shows("heartbeat_last_exit_code{probe=\"job\"} 7", SOON).await;
    let output = wrapped(&proctor, &["sh", "-c", "kill -KILL $$"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(137), "as a shell says it");
    proctor.shows("heartbeat_last_exit_code{probe=\"job\"} 137", SOON).await;
    let output = wrapped(&proctor, &["/nonexistent/program"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(127));
    assert!(printed(&output).1.contains("cannot run /nonexistent/program"), "{output:?}");
    proctor.shows("heartbeat_last_exit_code{probe=\"job\"} 127", SOON).await;
    // Whoever reads the job's output may go: the job is told, as it would be without us.
    let mut reader = wrapped(&proctor, &["yes"]);
    let mut job = reader.stdout(Stdio::piped()).spawn().expect("it runs");
    drop(job.stdout.take());
    assert_eq!(job.wait().expect("it ends").code(), Some(141), "SIGPIPE");
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test]
async fn a_job_does_not_notice_that_proctor_is_down_stopped_or_knows_no_such_job() {
    let sink = Sink::start().await;
    let mut proctor = watching(&sink, "every: 1h").await;
    let quiet = |proctor: &Proctor| {
        let begin = std::time::Instant::now();
        let output = wrapped(proctor, &["sh", "-c", "echo out; echo err >&2; exit 5"]).output().expect("it runs");
        assert_eq!((output.status.code(), printed(&output)), (Some(5), ("out\n".into(), "err\n".into())));
        assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());
    };
    proctor.process.as_ref().expect("it runs").signal("STOP");
    quiet(&proctor);
    proctor.process.as_ref().expect("it runs").signal("CONT");
    proctor.kill();
    quiet(&proctor);
    // It is back before the end is given up: the end is told all the same.
    let job = Process::start(&mut wrapped(&proctor, &["sh", "-c", "exit 9"]), &proctor.folder.path().join("job.log"));
    proctor.start();
    proctor.shows("heartbeat_last_exit_code{probe=\"job\"} 9", SOON).await;
    drop(job);
    let output = proctor.run(&["run", "jobb", "--", "echo", "still"]);
    assert_eq!((output.status.code(), printed(&output).0.as_str()), (Some(0), "still\n"));
}

#[tokio::test]
async fn a_job_that_does_not_come_is_overdue_and_what_was_reported_survives_kill_9() {
    let sink = Sink::start().await;
    let mut proctor = watching(&sink, "every: 3s, grace: 1s, runs_at_most: 2s").await;
    assert!(wrapped(&proctor, &["true"]).status().expect("it runs").success());
    proctor.shows("heartbeat_runs_total{probe=\"job\"} 1", SOON).await;
    proctor.shows("heartbeat_overdue{probe=\"job\"} 1", SOON).await;
    proctor.shows("probe_failure_info{probe=\"job\",reason=\"overdue\"} 1", SOON).await;
    // On a slow host it may have been overdue before its first report too.
    let words = "job: overdue: expected a report every 3s, at most 1s late; last heard of it";
    eventually(words, SOON, || async { sink.mails().iter().any(|mail| mail.text.contains(words)).then_some(()) }).await;
    proctor.kill();
    proctor.start();
    proctor.shows("heartbeat_runs_total{probe=\"job\"} 1", SOON).await;
    proctor.shows("heartbeat_overdue{probe=\"job\"} 1", SOON).await;
    // A run that is killed with -9, wrapper and all, is missed in the end, over a restart too.
    let job = Process::start(&mut wrapped(&proctor, &["sleep", "600"]), &proctor.folder.path().join("job.log"));
    proctor.shows("heartbeat_running{probe=\"job\"} 1", SOON).await;
    proctor.shows("heartbeat_overdue{probe=\"job\"} 0", SOON).await;
    signal_group(job.pid(), "KILL");
    proctor.kill();
    proctor.start();
    proctor.shows("heartbeat_runs_too_long{probe=\"job\"} 1", SOON).await;
    assert!(wrapped(&proctor, &["true"]).status().expect("it runs").success());
    proctor.shows("heartbeat_runs_too_long{probe=\"job\"} 0", SOON).await;
}

/// Sends a request and returns the answer's first line and its body.
async fn post(proctor: &Proctor, path: &str, token: &str, kind: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", proctor.web)).await.expect("it listens");
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // It may be refused before it is sent whole.
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(body.as_bytes()).await;
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    let code = answer.split_whitespace().nth(1).unwrap_or("nothing").to_owned();
    format!("{code} {}", answer.split("\r\n\r\n").nth(1).unwrap_or_default().trim())
}

#[tokio::test]
async fn the_checks_of_the_site_are_pushed_over_http_and_the_mail_names_the_ones_that_fail() {
    let sink = Sink::start().await;
    let proctor = watching(&sink, "every: 1h").await;
    let checks = r#"[{"name": "celery beat", "ok": false, "text": "no task for 40 minutes"}, {"name": "db", "ok": true}]"#;
    assert_eq!(post(&proctor, "/heartbeat/site", TOKEN, "application/json", checks).await, "200 taken");
    proctor.shows("heartbeat_check_ok{probe=\"site\",check=\"celery beat\"} 0", SOON).await;
    proctor.shows("heartbeat_check_ok{probe=\"site\",check=\"db\"} 1", SOON).await;
    let mail = sink.wait_for(2, SOON).await[0].text.clone();
    assert!(mail.contains("celery beat is not well, says site"), "{mail}");
    assert!(mail.contains("1 of 2 checks failed") && mail.contains("celery beat: no task for 40 minutes"), "{mail}");
    let checks = checks.replace("false", "true");
    assert_eq!(post(&proctor, "/heartbeat/site", TOKEN, "application/json", &checks).await, "200 taken");
    assert!(sink.wait_for(4, SOON).await[2].text.contains("RESOLVED"));
    assert_eq!(post(&proctor, "/heartbeat/site/start?run=a", TOKEN, "text/plain", "").await, "200 taken");
    proctor.shows("heartbeat_running{probe=\"site\"} 1", SOON).await;
    assert_eq!(post(&proctor, "/heartbeat/site/fail?run=a", TOKEN, "text/plain", "it broke").await, "200 taken");
    proctor.shows("heartbeat_failed{probe=\"site\"} 1", SOON).await;
    assert!(post(&proctor, "/heartbeat/site/stop", TOKEN, "text/plain", "").await.starts_with("404"));
    assert!(post(&proctor, "/heartbeat/site", TOKEN, "application/json", "[{}]").await.starts_with("400 expected a list of"));
    assert!(post(&proctor, "/heartbeat/site", TOKEN, "text/plain", &"x".repeat(70_000)).await.starts_with("413"));
    // The command of the site may print its checks, for `proctor run`.
    let url = format!("http://127.0.0.1:{}", proctor.web);
    let file = proctor.folder.path().join("own-token");
    std::fs::write(&file, TOKEN).expect("it can be written");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("it is ours");
    let run = |print: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proctor"));
        let arguments = ["--url", &url, "--token-file", &file.display().to_string(), "--checks", "--", "echo", print].map(str::to_owned);
        command.args(["run", "site"]).args(arguments).output().expect("it runs")
    };
    assert!(run(r#"[{"name": "disk", "ok": true}]"#).status.success());
    proctor.shows("heartbeat_check_ok{probe=\"site\",check=\"disk\"} 1", SOON).await;
    assert!(run("no checks").status.success(), "the exit code is the job's");
    proctor.shows("heartbeat_last_exit_code{probe=\"site\"} 1", SOON).await;
}

#[tokio::test]
async fn without_the_token_nothing_is_taken_and_guessing_is_bounded() {
    let sink = Sink::start().await;
    let proctor = watching(&sink, "every: 1h").await;
    for (path, token) in [("/heartbeat/site", "wrong"), ("/heartbeat/job", TOKEN), ("/heartbeat/none", TOKEN), ("/heartbeat/site", "")] {
        let answer = post(&proctor, path, token, "text/plain", "x").await;
        assert!(answer.starts_with("401 no heartbeat of this name takes this token"), "{path}: {answer}");
    }
    let got = proctor.get("/heartbeat/site").await.expect("it answers");
    assert!(got.starts_with("HTTP/1.1 405"), "{got}");
    for _ in 0..6 {
        assert!(post(&proctor, "/heartbeat/site", "wrong", "text/plain", "x").await.starts_with("401"));
    }
    assert!(post(&proctor, "/heartbeat/site", TOKEN, "text/plain", "x").await.starts_with("429"));
    proctor.shows("heartbeat_runs_total{probe=\"site\"} 0", SOON).await;
    // The socket is another way.
    assert!(wrapped(&proctor, &["true"]).status().expect("it runs").success());
    proctor.shows("heartbeat_runs_total{probe=\"job\"} 1", SOON).await;
    assert!(!proctor.log().contains(TOKEN));
}

#[tokio::test]
async fn check_says_that_only_the_running_proctor_hears_it() {
    let sink = Sink::start().await;
    let proctor = watching(&sink, "schedule: '30 2 * * *', time_zone: America/Vancouver").await;
    proctor.shows("heartbeat_due_timestamp_seconds{probe=\"job\"}", SOON).await;
    let (table, _) = printed(&proctor.run(&["check", "--only", "job"]));
    assert!(table.contains("blind") && table.contains("only the running Proctor hears it"), "{table}");
}

#[tokio::test]
async fn a_file_is_really_created_in_each_upload_folder_and_the_one_that_takes_none_is_mailed_by_name() {
    let sink = Sink::start().await;
    let proctor = watching(&sink, "every: 1h").await;
    let (good, Some(full)) = (tempfile::tempdir().expect("a folder"), Tmpfs::mount("64k")) else { return };
    let filled = std::fs::write(full.path().join("upload"), vec![0u8; 1 << 20]);
    assert!(filled.is_err(), "it is full");
    let proctor_binary = env!("CARGO_BIN_EXE_proctor");
    let (good_name, full_name) = (good.path().display().to_string(), full.path().display().to_string());
    let report = || {
        let mut command = Command::new(proctor_binary);
        command.args(["run", "--checks", "job", "--socket"]).arg(proctor.folder.path().join("control.sock")).arg("--");
        let output = command.args([proctor_binary, "try-folders", &good_name, &full_name]).output().expect("it runs");
        assert!(output.status.success(), "{:?}", printed(&output));
    };
    report();
    proctor.shows(&format!("heartbeat_check_ok{{probe=\"job\",check=\"{good_name}\"}} 1"), SOON).await;
    proctor.shows(&format!("heartbeat_check_ok{{probe=\"job\",check=\"{full_name}\"}} 0"), SOON).await;
    let mail = sink.wait_for(2, SOON).await[0].text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(mail.contains(&format!("cannot write {full_name}/.proctor-upload-check: No space left on device")), "{mail}");
    full.remount("size=4m");
    report();
    assert!(sink.wait_for(4, SOON).await[2].text.contains("RESOLVED"));
    assert_eq!(std::fs::read_dir(good.path()).expect("is there").count(), 0, "nothing is left behind");
}
