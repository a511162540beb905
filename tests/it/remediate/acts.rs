//! Programs, webhooks, and the real docker and systemd of `tests/stack`.

use std::path::{Path, PathBuf};
use std::process::Command as Cli;
use std::sync::Arc;
use std::time::Duration;

use proctor::client::docker::{Docker, Selector};
use proctor::client::program;
use proctor::client::systemd::Systemd;
use proctor::model::Labels;
use proctor::model::decode::from_text;
use proctor::remediate::{Action, Done, Tools, command, webhook};
use proctor::tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::Instant;

use super::{occasion, read};
use crate::support::docker::{Container, POLITE};
use crate::support::hostile::{Manner, hostile};
use crate::support::process::eventually;
use crate::support::systemd::{self, Cuttable, stack};

// ---- programs

async fn run(argv: &[&str], timeout: &str) -> Done {
    let argv = serde_json::to_string(argv).unwrap();
    let config: command::CommandConfig = from_text("c", &format!("argv: {argv}\ntimeout: {timeout}\n")).expect("is right");
    command::Command::new(&config).act(&occasion()).await
}

fn is_running(pid: &str) -> bool {
    // A zombie is not running.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_program_runs_without_a_shell_in_a_clean_environment() {
    let done = run(&["/usr/bin/printf", "%s|", "$HOME", "; id", "a b"], "10s").await;
    assert_eq!(done.output, "$HOME|; id|a b|");
    assert!(done.result.unwrap().starts_with("/usr/bin/printf ended well after "));
    let mut hostile = occasion();
    hostile.alert.labels =
        Labels::new([("alertname", "$(touch /tmp/x)\n\0`id`".to_owned()), ("probe", "w\reb".to_owned()), ("target", "x".repeat(5000))]);
    let config: command::CommandConfig = from_text("c", "argv: [/usr/bin/env]\n").expect("is right");
    let done = command::Command::new(&config).act(&hostile).await;
    let mut lines: Vec<&str> = done.output.lines().collect();
    lines.sort();
    assert_eq!(lines.len(), 6, "{}", done.output);
    assert_eq!(lines[0], "LANG=C.UTF-8");
    assert!(lines[1].starts_with("PATH=/usr/local/sbin:"));
    assert_eq!(lines[2], "PROCTOR_ALERTNAME=$(touch /tmp/x)  `id`");
    assert!(lines[3].starts_with("PROCTOR_EPISODE="));
    assert_eq!(lines[4], "PROCTOR_PROBE=w eb");
    assert_eq!(lines[5].len(), "PROCTOR_TARGET=".len() + 200);
    let done = run(&["/bin/sh", "-c", "pwd; cat; ps -o pgid= -p $$ | tr -d ' '; echo $$"], "10s").await;
    let lines: Vec<&str> = done.output.lines().collect();
    assert_eq!((lines[0], lines[1]), ("/", lines[2]), "its folder, an empty input, a process group of its own: {}", done.output);
}

#[tokio::test]
async fn a_program_that_fails_or_cannot_be_started_says_what_and_why() {
    let done = run(&["/bin/sh", "-c", "echo one; echo 'no such tunnel' >&2; exit 3"], "10s").await;
    assert_eq!(done.output, "one\nno such tunnel\n", "both outputs, in order");
    let error = done.result.unwrap_err();
    assert!(error.contains("ended with status 3") && error.ends_with(": no such tunnel"), "{error}");
    let error = run(&["/bin/sh", "-c", "kill -9 $$"], "10s").await.result.unwrap_err();
    assert!(error.contains("ended with signal 9"), "{error}");
    for (program, expected) in [
        ("/nonexistent/x", "/nonexistent/x does not exist"),
        ("/etc/passwd", "/etc/passwd may not be executed"),
        ("/etc", "/etc may not be executed"),
    ] {
        let error = run(&[program], "10s").await.result.unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_with_its_children() {
    let begin = Instant::now();
    let done = run(&["/bin/sh", "-c", "sleep 300 & echo $!; echo working; wait"], "2s").await;
    assert!(begin.elapsed() < Duration::from_secs(2 + 5), "SIGTERM is enough for it: {:?}", begin.elapsed());
    let error = done.result.unwrap_err();
    assert!(error.contains("did not end within 2s and was killed: working"), "{error}");
    let child = done.output.lines().next().unwrap().to_owned();
    eventually("the child is gone", Duration::from_secs(20), async || (!is_running(&child)).then_some(())).await;
}

#[tokio::test]
async fn a_program_that_ignores_sigterm_is_killed_five_seconds_later() {
    let begin = Instant::now();
    let done = run(&["/bin/sh", "-c", "trap '' TERM; echo $$; while :; do sleep 1; done"], "2s").await;
    assert!((2 + 5..20).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    let pid = done.output.lines().next().unwrap().to_owned();
    eventually("it is gone", Duration::from_secs(20), async || (!is_running(&pid)).then_some(())).await;
}

#[tokio::test]
async fn a_daemon_that_keeps_the_output_open_does_not_hold_us_and_lives_on() {
    let begin = Instant::now();
    let done = run(&["/bin/sh", "-c", "setsid sleep 47 & echo $!"], "30s").await;
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    done.result.expect("it ended well");
    let daemon = done.output.trim().to_owned();
    assert!(is_running(&daemon), "a tunnel that was started stays");
    Cli::new("kill").arg(&daemon).status().unwrap();
}

#[tokio::test]
async fn of_ten_megabytes_of_output_the_end_is_kept() {
    let done = run(&["/bin/sh", "-c", "yes 0123456789abcde | head -c 10000000; printf '\\377\\377 why\\n'"], "60s").await;
    done.result.expect("its output does not stop it");
    assert!(done.output.len() <= program::MAX_OUTPUT && done.output.len() > 60_000, "{}", done.output.len());
    assert!(done.output.starts_with("(the end of 10000007 bytes)\n") && done.output.ends_with(" why\n"));
    let done = run(&["/bin/sh", "-c", "head -c 300000 /dev/urandom"], "60s").await;
    assert!(done.output.len() <= program::MAX_OUTPUT, "{}", done.output.len());
    let done = run(&["/bin/sh", "-c", "yes"], "300ms").await;
    assert!(done.result.is_err() && done.output.len() <= program::MAX_OUTPUT);
}

#[tokio::test]
async fn a_run_that_is_given_up_leaves_no_process_behind() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let script = format!("sleep 300 & echo $! >{0}.new; mv {0}.new {0}; wait", file.display());
    let given_up = tokio::spawn(async move { run(&["/bin/sh", "-c", &script], "60s").await });
    let pid = eventually("it runs", Duration::from_secs(10), async || std::fs::read_to_string(&file).ok()).await;
    given_up.abort();
    eventually("it is gone", Duration::from_secs(20), async || (!is_running(pid.trim())).then_some(())).await;
}

// ---- webhooks

async fn call(url: &str, timeout: &str) -> Done {
    let config: webhook::WebhookConfig = from_text("w", &format!("url: \"{url}\"\ntimeout: {timeout}\n")).expect("is right");
    webhook::Webhook::new(&config).unwrap().act(&occasion()).await
}

#[tokio::test]
async fn a_webhook_gets_the_alert_as_json_and_the_attempt_as_its_key() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            let mut chunk = [0u8; 4096];
            let n = stream.read(&mut chunk).await.unwrap();
            assert!(n > 0, "{}", String::from_utf8_lossy(&request));
            request.extend_from_slice(&chunk[..n]);
        }
        stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 6\r\n\r\nqueued").await.unwrap();
        String::from_utf8(request).unwrap()
    });
    let done = call(&format!("http://127.0.0.1:{port}/hook/s3cret"), "5s").await;
    assert_eq!(done.output, "queued");
    let text = done.result.unwrap();
    assert!(text.contains("status 202") && !text.contains("s3cret"), "{text}");
    let request = server.await.unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /hook/s3cret HTTP/1.1") && head.contains("idempotency-key: 00ff"), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["attempt"], &body["labels"]["alertname"]), (&"00ff".into(), &"Down".into()));
    assert!(body["episode"].is_string() && body["annotations"].is_object() && body["action"] == "a" && body["target"] == "t");
}

#[tokio::test]
async fn a_webhook_that_is_slow_huge_redirecting_or_gone_fails_in_time() {
    let redirect = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".to_vec();
    let refused = b"HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\nno\r\nBcc: x".to_vec();
    for (manner, expected) in [
        (Manner::Silent, "did not answer the call within 1s (connected after "),
        (Manner::Says(redirect), "status 302: redirects are not followed"),
        (Manner::Says(refused), "status 500: no"),
        (Manner::Endless(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()), "larger than"),
        (Manner::Says(b"garbage\r\n\r\n".to_vec()), "not HTTP"),
        (Manner::Closes, "failed: "),
    ] {
        let port = hostile(manner.clone()).await;
        let begin = Instant::now();
        // Only who is silent takes all of it.
        let timeout = if matches!(manner, Manner::Silent) { "1s" } else { "15s" };
        let error = call(&format!("http://127.0.0.1:{port}/s3cret"), timeout).await.result.expect_err(expected);
        assert!(error.contains(expected) && !error.contains("s3cret") && !error.contains('\n'), "{manner:?}: {error}");
        assert!(begin.elapsed() < Duration::from_secs(15));
    }
    let error = call("http://127.0.0.1:1/s3cret", "1s").await.result.unwrap_err();
    assert!(error.contains("cannot connect to 127.0.0.1:1"), "{error}");
}

// ---- docker

fn docker_action(docker: &str, socket: &Path) -> Arc<dyn Action> {
    let config = read(&format!("docker: {docker}\nmatchers: ['alertname=\"X\"']\n")).expect("is right");
    config.plan("a", &Tools::of_this_host(Some(socket.to_owned()))).unwrap().action
}

#[tokio::test]
async fn a_container_is_restarted_by_name_and_what_is_known_of_it_is_kept() {
    let Some(socket) = stack("docker.sock") else { return };
    let secret = ["-e", "PASSWORD=s3cret", "--health-cmd", "echo not today; exit 1", "--health-interval", "1s", "--health-retries", "1"];
    let container = Container::start(&socket, "proctor-it-name", &secret, POLITE);
    let action = docker_action(&format!("{{container: {}}}", container.name), &socket);
    let facts = eventually("it is unhealthy", Duration::from_secs(60), async || {
        let facts = action.facts().await;
        facts.lines.iter().any(|line| line.contains("unhealthy")).then_some(facts)
    })
    .await;
    let lines = facts.lines.join("\n");
    assert!(lines.contains(&container.name) && lines.contains("not today") && !lines.contains("s3cret"), "{lines}");
    let age = tasks::now().since(facts.changed_at.expect("it was started"));
    assert!(age < Duration::from_secs(90), "somebody has just started it: {age:?}");
    let before = container.started_at();
    let done = action.act(&occasion()).await;
    assert_eq!(done.result, Ok(format!("restarted container {}", container.name)));
    assert_ne!(container.started_at(), before);
    action.settled().await.expect("it runs");
}

#[tokio::test]
async fn a_stopped_container_is_started_and_a_crash_is_told_from_a_stop() {
    let Some(socket) = stack("docker.sock") else { return };
    let container =
        Container::start(&socket, "proctor-it-crash", &[], &["/bin/sh", "-c", "[ -e /tmp/x ] && exec sleep 600; touch /tmp/x; exit 7"]);
    let action = docker_action(&format!("{{container: {}}}", container.name), &socket);
    let facts = eventually("it has crashed", Duration::from_secs(60), async || {
        let facts = action.facts().await;
        facts.lines[0].contains("exit code 7").then_some(facts)
    })
    .await;
    assert_eq!(facts.changed_at, None, "a crash is nobody's work");
    assert!(action.settled().await.unwrap_err().contains("is exited (exit code 7)"));
    action.act(&occasion()).await.result.expect("it starts");
    action.settled().await.expect("it runs");
}

#[tokio::test]
async fn a_compose_service_is_found_by_its_label_and_all_of_it_is_restarted() {
    let Some(socket) = stack("docker.sock") else { return };
    let service = format!("cache{}", std::process::id());
    let label = format!("com.docker.compose.service={service}");
    let of = |project: &str| format!("com.docker.compose.project={project}");
    let one = Container::start(&socket, "proctor-it-one", &["-l", &label, "-l", &of("p1")], POLITE);
    let two = Container::start(&socket, "proctor-it-two", &["-l", &label, "-l", &of("p1")], POLITE);
    let once =
        Container::start(&socket, "proctor-it-once", &["-l", &label, "-l", &of("p1"), "-l", "com.docker.compose.oneoff=True"], POLITE);
    let before = [&one, &two, &once].map(Container::started_at);
    let action = docker_action(&format!("{{service: {service}}}"), &socket);
    let text = action.act(&occasion()).await.result.expect("both restart");
    assert!(text.contains(&one.name) && text.contains(&two.name), "{text}");
    let after = [&one, &two, &once].map(Container::started_at);
    assert!(before[0] != after[0] && before[1] != after[1] && before[2] == after[2], "what `compose run` started is left alone");
    let _three = Container::start(&socket, "proctor-it-three", &["-l", &label, "-l", &of("p2")], POLITE);
    let error = action.act(&occasion()).await.result.unwrap_err();
    assert!(error.contains("in the projects p1, p2: say which by project"), "{error}");
    docker_action(&format!("{{service: {service}, project: p2}}"), &socket).act(&occasion()).await.result.expect("one project is clear");
    let error = docker_action("{service: nothing-such}", &socket).act(&occasion()).await.result.unwrap_err();
    assert!(error.contains("no container of compose service nothing-such"), "{error}");
    let error = docker_action("{container: nothing-such}", &socket).act(&occasion()).await.result.unwrap_err();
    assert!(error.contains("no container nothing-such"), "{error}");
}

#[tokio::test]
async fn a_container_that_autoheal_looks_after_is_left_to_it() {
    let Some(socket) = stack("docker.sock") else { return };
    let container = Container::start(&socket, "proctor-it-heal", &["-l", "autoheal=true"], POLITE);
    let facts = docker_action(&format!("{{container: {}}}", container.name), &socket).facts().await;
    assert!(facts.hands_off.expect("it is not ours").contains("docker-autoheal restarts it"));
}

#[tokio::test]
async fn the_starts_of_other_containers_are_seen() {
    let Some(socket) = stack("docker.sock") else { return };
    let mine = Container::start(&socket, "proctor-it-mine", &[], POLITE);
    let others: Vec<_> = (0..3).map(|i| Container::start(&socket, &format!("proctor-it-other{i}"), &[], POLITE)).collect();
    let facts = docker_action(&format!("{{container: {}}}", mine.name), &socket).facts().await;
    let recent = facts.starts.iter().filter(|at| tasks::now().since(**at) < Duration::from_secs(90)).count();
    assert!(recent >= others.len(), "{facts:?}");
}

/// A docker that answers a ping and then as it is told.
async fn fake_docker(dir: &Path, answer: &'static str) -> PathBuf {
    let path = dir.join("docker.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0u8; 4096];
            let n = stream.read(&mut request).await.unwrap_or(0);
            let ping = "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK";
            let text = if request[..n].starts_with(b"GET /_ping") { ping } else { answer };
            if text.is_empty() {
                std::future::pending::<()>().await;
            }
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    path
}

#[tokio::test]
async fn a_docker_that_says_no_or_nonsense_is_a_failure_with_its_words() {
    for (answer, expected) in [
        ("HTTP/1.1 500 x\r\nContent-Length: 24\r\n\r\n{\"message\":\"disk\\nfull\"}", "with status 500: disk full"),
        ("HTTP/1.1 403 x\r\nContent-Length: 6\r\n\r\ndenied", "with status 403: denied: does a socket proxy"),
        ("HTTP/1.1 409 x\r\nContent-Length: 0\r\n\r\n", "with status 409"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "is not understood"),
        ("garbage\r\n\r\n", "the answer is not HTTP"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "was closed before"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let action = docker_action("{container: web}", &fake_docker(dir.path(), answer).await);
        let error = action.act(&occasion()).await.result.expect_err(expected);
        assert!(error.contains(expected), "{error}");
        assert!(!action.facts().await.lines.is_empty(), "the mail says why nothing is known");
    }
    let error = docker_action("{container: web}", Path::new("/nonexistent/docker.sock")).act(&occasion()).await.result.unwrap_err();
    assert!(error.contains("/nonexistent/docker.sock") && error.contains("docker does not run"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_docker_that_hangs_is_given_up_after_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    let action = docker_action("{container: web}", &fake_docker(dir.path(), "").await);
    let begin = Instant::now();
    let error = action.act(&occasion()).await.result.unwrap_err();
    assert!(error.contains("did not answer the state of container web within 30s"), "{error}");
    assert!(begin.elapsed() < action.deadline());
}

#[tokio::test]
async fn a_name_that_is_a_path_never_reaches_docker() {
    let docker = Docker::at("/nonexistent");
    for name in ["../../secrets", "a/b", "a?force=1", "a%2fb"] {
        assert!(docker.restart(name).await.unwrap_err().to_string().contains("no container"), "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    let docker = Docker::at(fake_docker(dir.path(), "").await);
    let error = docker.find(&Selector::Container("../x".into())).await.unwrap_err();
    assert!(error.to_string().contains("no container"), "{error}");
}

// ---- systemd

fn bus() -> Option<Arc<Systemd>> {
    let socket = systemd::bus()?;
    Some(Arc::new(Systemd::at(format!("unix:path={}", socket.display()))))
}

fn unit_action(systemd: &str, bus: &Arc<Systemd>) -> Arc<dyn Action> {
    let config = read(&format!("systemd: {systemd}\nmatchers: ['alertname=\"X\"']\n")).expect("is right");
    let tools = Tools { systemd: bus.clone(), docker: Arc::new(Docker::at("/nonexistent")) };
    config.plan("a", &tools).unwrap().action
}

#[tokio::test]
async fn a_unit_is_really_restarted_and_the_end_of_the_job_awaited() {
    let Some(bus) = bus() else { return };
    let action = unit_action("{unit: proctor-well.service}", &bus);
    action.act(&occasion()).await.result.expect("it starts");
    let before = bus.unit("proctor-well.service").await.unwrap();
    assert_eq!(before.active, "active");
    let text = action.act(&occasion()).await.result.expect("it restarts");
    assert_eq!(text, "the job to restart proctor-well.service is done, it is active (running)");
    let after = bus.unit("proctor-well.service").await.unwrap();
    assert_ne!(before.invocation, after.invocation);
    assert_eq!(after.invocation.len(), 32);
    action.settled().await.expect("it stays up");
    let facts = action.facts().await;
    assert!(tasks::now().since(facts.changed_at.expect("it was started")) < Duration::from_secs(30), "{facts:?}");
    assert_eq!((facts.lines, facts.busy), (vec!["proctor-well.service active (running)".to_owned()], None));
    unit_action("{unit: proctor-other.service}", &bus).act(&occasion()).await.result.expect("it starts");
    assert!(!action.facts().await.starts.is_empty(), "the start of another is seen");
}

#[tokio::test]
async fn a_unit_that_cannot_be_restarted_says_precisely_why() {
    let Some(bus) = bus() else { return };
    for (unit, expected) in [
        ("proctor-missing.service", "systemd knows no unit proctor-missing.service"),
        ("proctor-masked.service", "proctor-masked.service is masked"),
        (
            "proctor-fails.service",
            "the job to restart proctor-fails.service ended as \"failed\"; it is failed (failed), result exit-code, exit status 3",
        ),
    ] {
        let error = unit_action(&format!("{{unit: {unit}}}"), &bus).act(&occasion()).await.result.expect_err(unit);
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_job_that_is_done_while_the_unit_crashes_at_once_is_no_success() {
    let Some(bus) = bus() else { return };
    let action = unit_action("{unit: proctor-crashes.service}", &bus);
    // systemd's job is done as soon as the process exists.
    let first = action.act(&occasion()).await.result;
    let failed = "proctor-crashes.service did not stay up: it is failed";
    let error = eventually(&format!("{failed} after {first:?}"), Duration::from_secs(30), async || {
        action.settled().await.err().filter(|error| error.contains(failed))
    })
    .await;
    assert!(error.contains("exit status 4"), "{error}");
    assert_eq!(action.facts().await.changed_at, None, "a crash is nobody's work");
}

#[tokio::test]
async fn a_unit_that_was_started_too_often_is_named_as_such_and_can_be_reset() {
    let Some(bus) = bus() else { return };
    unit_action("{unit: proctor-limited.service, verb: reset-failed}", &bus).act(&occasion()).await.result.expect("can be reset");
    let action = unit_action("{unit: proctor-limited.service}", &bus);
    let results = [action.act(&occasion()).await.result, action.act(&occasion()).await.result];
    let error = results.into_iter().find_map(Result::err).expect("one start an hour is allowed");
    assert!(error.contains("started too often") && error.contains("systemctl reset-failed proctor-limited.service"), "{error}");
    unit_action("{unit: proctor-limited.service, verb: reset-failed}", &bus).act(&occasion()).await.result.expect("can be reset");
    action.act(&occasion()).await.result.expect("then it starts again");
}

#[tokio::test]
async fn a_job_that_does_not_end_is_given_up_after_its_limit_and_seen_by_the_next_look() {
    let Some(bus) = bus() else { return };
    let action = unit_action("{unit: proctor-slow.service, timeout: 1s}", &bus);
    let error = action.act(&occasion()).await.result.unwrap_err();
    assert!(error.contains("did not answer to restart proctor-slow.service within 1s"), "{error}");
    assert!(action.facts().await.busy.expect("a job runs").contains("job"));
}

#[tokio::test]
async fn a_oneshot_unit_that_repairs_is_done_when_it_has_ended() {
    let Some(bus) = bus() else { return };
    let action = unit_action("{unit: proctor-repair.service, verb: start}", &bus);
    let text = action.act(&occasion()).await.result.expect("it runs");
    assert!(text.contains("the job to start proctor-repair.service is done, it is inactive (dead)"), "{text}");
    action.settled().await.expect("a oneshot unit that did its work is inactive");
}

#[tokio::test]
async fn without_a_bus_an_action_fails_and_says_so() {
    let bus = Arc::new(Systemd::at("unix:path=/nonexistent/bus"));
    let action = unit_action("{unit: nginx.service}", &bus);
    let error = action.act(&occasion()).await.result.unwrap_err();
    assert!(error.contains("cannot connect to the system bus at unix:path=/nonexistent/bus: is dbus running"), "{error}");
    assert!(action.facts().await.lines[0].contains("cannot connect to the system bus"));
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_accepts_and_is_silent_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bus");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let bus = Arc::new(Systemd::at(format!("unix:path={}", path.display())));
    let error = unit_action("{unit: nginx.service}", &bus).act(&occasion()).await.result.unwrap_err();
    assert!(error.contains("did not answer a new connection within 5s"), "{error}");
}

#[tokio::test]
async fn after_the_bus_was_restarted_the_next_call_connects_anew() {
    let Some(real) = systemd::bus() else { return };
    let front = Cuttable::new(real);
    let bus = Systemd::at(format!("unix:path={}", front.path().display()));
    bus.unit("dbus.service").await.expect("the first connection");
    front.cut();
    eventually("the second connection", Duration::from_secs(30), async || bus.unit("dbus.service").await.ok()).await;
}
