//! How the engine itself fails, what proxies refuse, and what no engine should say.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use proctor::client::docker::Docker;
use proctor::model::{ProbeResult, Reason, Sight};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::{is_state, named, says, told_kinds, unasked};
use crate::support::docker::{Container, Engine, POLITE};
use crate::support::hostile::{Manner, hostile};
use crate::support::process::{Process, eventually, program};
use crate::support::systemd::stack;
use crate::support::watched::{Watched, failed, value, well};

fn connected(result: &ProbeResult) -> bool {
    value(result, "docker_events_connected", "") == Some(1.0)
}

/// Begins to follow the events and waits until they come.
async fn followed(watched: &Watched) {
    let _ = tokio::time::timeout(Duration::from_millis(1), watched.target("docker").probe.changed()).await;
    watched.until("docker", "the event stream stands", 30, connected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_hangs_or_is_stopped_is_told_from_its_containers_and_comes_back() {
    let Some(engine) = Engine::start() else { return };
    let socket = engine.socket();
    let container = Container::start(&socket, "proctor-it-stays", &["--restart", "always"], POLITE);
    let watched = Watched::new(&named(&socket, &format!("containers: [{}]", container.name)));
    let probe = format!("docker/{}", container.name);
    followed(&watched).await;
    well(&watched.run("docker").await, true);
    well(&watched.run(&probe).await, true);

    let signal = |name: &str| assert!(Command::new("kill").args([name, &engine.pid()]).status().expect("it runs").success());
    signal("-STOP");
    for target in ["docker", probe.as_str()] {
        // A process of many threads goes on for a moment after the signal.
        let words = "waiting for the answer to a ping (is the daemon stuck?";
        watched.until_failed(target, "it hangs", 60, Reason::AnswerTimeout, words).await;
    }
    signal("-CONT");
    watched.until("docker", "it moves again", 60, ProbeResult::is_success).await;
    watched.until("docker", "its events come", 30, connected).await;

    signal("-TERM");
    watched.told("docker", "it is stopped").await;
    let gone = |result: &ProbeResult| matches!(&result.outcome, Err(why) if matches!(why.reason, Reason::Missing | Reason::Refused));
    let result = watched.until("docker", "it is gone", 60, gone).await;
    assert_eq!(value(&result, "docker_up", ""), Some(0.0));
    let result = watched.run(&probe).await;
    assert!(gone(&result) && value(&result, "docker_service_replicas_running", "").is_none(), "not known is not down: {result:?}");

    tokio::task::block_in_place(|| engine.told("start"));
    watched.until("docker", "it is back, with its events", 60, connected).await;
    well(&watched.until(&probe, "docker has started its container again", 60, ProbeResult::is_success).await, true);
}

/// A proxy in front of an engine whose connections can be cut, and then are refused until it is mended.
struct Cut {
    socket: PathBuf,
    whole: watch::Sender<bool>,
}

impl Cut {
    fn start(folder: &Path, engine: &Path) -> Self {
        let socket = folder.join("cut.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (whole, seen) = watch::channel(true);
        let engine = engine.to_owned();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut seen, engine) = (seen.clone(), engine.clone());
                tokio::spawn(async move {
                    if !*seen.borrow() {
                        return;
                    }
                    let mut far = UnixStream::connect(&engine).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = seen.wait_for(|whole| !whole) => {}
                    }
                });
            }
        });
        Self { socket, whole }
    }
}

#[tokio::test]
async fn what_happened_while_the_event_stream_was_cut_is_not_lost() {
    let Some(socket) = stack("docker.sock") else { return };
    let folder = tempfile::tempdir().unwrap();
    let cut = Cut::start(folder.path(), &socket);
    let container = Container::start(&socket, "proctor-it-cut", &["--restart", "always"], POLITE);
    let watched = Watched::new(&named(&cut.socket, &format!("containers: [{}]", container.name)));
    let probe = format!("docker/{}", container.name);
    followed(&watched).await;
    assert_eq!(unasked(&watched.run(&probe).await), Some(0.0));
    cut.whole.send(false).unwrap();
    watched.until("docker", "it is cut", 30, |result| !result.is_success()).await;
    let before = container.started_at();
    container.dies();
    eventually("docker starts it again", Duration::from_secs(30), || async { (container.started_at() != before).then_some(()) }).await;
    cut.whole.send(true).unwrap();
    watched.until(&probe, "the death is known", 60, |result| unasked(result) == Some(1.0)).await;
    told_kinds(&watched, &container.name, &[proctor::changes::Kind::Started, proctor::changes::Kind::Died]).await;
    // Cut once more: what is told again after that is taken once.
    cut.whole.send(false).unwrap();
    watched.until("docker", "it is cut", 30, |result| !result.is_success()).await;
    cut.whole.send(true).unwrap();
    watched.until("docker", "it is back", 60, connected).await;
    assert_eq!(unasked(&watched.run(&probe).await), Some(1.0));
}

/// An engine that answers each path as it is told; what is not told is 404.
async fn stand_in(folder: &Path, version: &'static str, answers: &'static [(&'static str, &'static str)]) -> PathBuf {
    let path = folder.join("docker.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0u8; 8192];
                let n = stream.read(&mut request).await.unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..n]).into_owned();
                let asked = |part: &str| request.split(' ').nth(1).is_some_and(|path| path.contains(part));
                if asked("/_ping") {
                    let ping = format!("HTTP/1.1 200 OK\r\nApi-Version: {version}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK");
                    let _ = stream.write_all(ping.as_bytes()).await;
                    return;
                }
                match answers.iter().find(|(part, _)| asked(part)) {
                    Some((_, "hangs")) => std::future::pending().await,
                    Some((_, "endless")) => {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                        while stream.write_all(&[b'['; 8192]).await.is_ok() {}
                    }
                    Some((_, "403")) => {
                        let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nForbidden").await;
                    }
                    Some((_, body)) => {
                        let _ =
                            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
                    }
                    None => {
                        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
                    }
                }
            });
        }
    });
    path
}

const LIST: (&str, &str) = (
    "/containers/json",
    r#"[{"Id": "a1", "Names": ["/other/link", "/cache"], "Image": "memcached:1", "State": "exited", "Status": "Exited (137) 4 seconds ago", "Labels": null}]"#,
);
const OOM: (&str, &str) = (
    "/containers/a1/json",
    r#"{"Id": "a1", "Name": "/cache", "RestartCount": 0, "Config": {"Image": "memcached:1", "Labels": null, "Env": ["A=hunter2"]},
        "State": {"Status": "exited", "ExitCode": 137, "OOMKilled": true, "Error": "", "StartedAt": "2026-11-25T21:02:25.677914155Z",
        "FinishedAt": "2026-11-25T21:04:25.677914155Z"}, "HostConfig": {"Memory": 67108864, "RestartPolicy": {"Name": "no"}}}"#,
);

#[tokio::test]
async fn what_a_proxy_refuses_is_said_and_the_rest_is_judged() {
    let asked = async |answers: &'static [(&'static str, &'static str)], follow: bool, target: &'static str| {
        let folder = tempfile::tempdir().unwrap();
        let watched = Watched::new(&named(&stand_in(folder.path(), "1.41", answers).await, "containers: [cache]"));
        if follow {
            let _ = tokio::time::timeout(Duration::from_millis(1), watched.target("docker").probe.changed()).await;
            let partial = |result: &ProbeResult| result.sight != Sight::Full;
            return watched.until(target, "it is said", 20, partial).await;
        }
        watched.run(target).await
    };
    // All is there, and docker saw the kernel.
    let result = asked(&[LIST, OOM], false, "docker/cache").await;
    failed(&result, Reason::Unavailable, "exit code 137: the kernel killed it for its memory at its limit of 64 MiB");
    assert_eq!(
        (value(&result, "docker_container_oom_killed", ""), value(&result, "docker_service_replicas_dead", "")),
        (Some(1.0), Some(1.0))
    );
    assert!(!format!("{result:?}").contains("hunter2"));
    // The list alone.
    let result = asked(&[LIST, ("/containers/a1/json", "403")], false, "docker/cache").await;
    failed(&result, Reason::Unavailable, "exit code 137); whether by order is not known");
    let Sight::Partial { missing, .. } = &result.sight else { panic!("{:?}", result.sight) };
    assert!(missing.contains("restart policy") && missing.contains("status 403"), "{missing}");
    assert_eq!((is_state(&result, "exited"), value(&result, "docker_container_exit_code", "")), (true, None));
    // No events.
    let result = asked(&[("/events", "403"), LIST, OOM], true, "docker").await;
    well(&result, false);
    let Sight::Partial { missing, .. } = &result.sight else { panic!("{:?}", result.sight) };
    assert!(missing.contains("a death is seen only by the next run") && missing.contains("status 403"), "{missing}");
    // Nothing.
    let result = asked(&[("/containers/json", "403")], false, "docker/cache").await;
    well(&result, false);
    assert!(matches!(&result.sight, Sight::Blind { missing, remedy } if missing.contains("status 403") && remedy.contains("socket proxy")));
}

#[tokio::test]
async fn an_answer_that_no_engine_gives_has_its_reason_and_memory_is_bounded() {
    for (manner, reason) in [
        (Manner::Silent, Reason::AnswerTimeout),
        (Manner::Says(b"garbage\r\n\r\n".to_vec()), Reason::Protocol),
        (Manner::Says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK".to_vec()), Reason::Protocol),
        (Manner::Endless(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()), Reason::TooLarge),
        (Manner::Endless(b"HTTP/1.1 200 OK\r\nX: ".to_vec()), Reason::TooLarge),
        (Manner::Drips(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()), Reason::AnswerTimeout),
        (Manner::Says(Vec::new()), Reason::Eof),
        (Manner::Says(b"HTTP/1.1 500 x\r\nContent-Length: 24\r\n\r\n{\"message\":\"disk\\nfull\"}".to_vec()), Reason::Unavailable),
    ] {
        let port = hostile(manner.clone()).await;
        // Megabytes take their time on a busy machine.
        let timeout = if reason == Reason::TooLarge { "15s" } else { "2s" };
        let watched = Watched::new(&format!("  docker: {{docker: {{engine: \"http://127.0.0.1:{port}\"}}, timeout: {timeout}}}"));
        let result = watched.run("docker").await;
        failed(&result, reason, "docker");
        assert_eq!(value(&result, "docker_up", ""), Some(0.0), "{manner:?}");
    }
    type Answers = &'static [(&'static str, &'static str)];
    let cases: [(&str, Answers, Reason, &str); 5] = [
        ("1.18", &[LIST, OOM], Reason::Protocol, "expected version 1.24 of the API or newer (docker 1.12), found 1.18"),
        ("1.41", &[("/containers/json", "{\"a\": 1}")], Reason::Protocol, "which containers there are is not understood"),
        ("1.41", &[("/containers/json", "endless")], Reason::TooLarge, "larger than"),
        ("1.41", &[("/containers/json", "hangs")], Reason::AnswerTimeout, "waiting for its list of containers"),
        ("1.41", &[LIST, ("/containers/a1/json", "hangs")], Reason::AnswerTimeout, "waiting for the state of a container"),
    ];
    for (version, answers, reason, words) in cases {
        let folder = tempfile::tempdir().unwrap();
        let socket = stand_in(folder.path(), version, answers).await;
        let timeout = if reason == Reason::TooLarge { "15s" } else { "3s" };
        let watched = Watched::new(&format!("  docker: {{docker: {{engine: \"unix:{}\"}}, timeout: {timeout}}}", socket.display()));
        failed(&watched.run("docker").await, reason, words);
    }
    // An event stream of nonsense is given up, tried again, and costs nothing else.
    for events in ["endless", "garbage\n", "{\"Action\": 1}\n", ""] {
        let answers: &'static [(&str, &str)] = Vec::leak(vec![("/events", events), ("/containers/json", "[]")]);
        let folder = tempfile::tempdir().unwrap();
        let watched = Watched::new(&named(&stand_in(folder.path(), "1.41", answers).await, "services: []"));
        watched.told("docker", "the stream broke").await;
        // While it is tried again it stands for a moment.
        let given_up = watched.until("docker", events, 20, |result| !connected(result)).await;
        well(&given_up, true);
    }
}

#[test]
fn a_socket_that_may_not_be_used_is_neither_red_nor_green() {
    let (Some(setpriv), Some(socket)) = (program("setpriv"), stack("docker.sock")) else { return };
    let folder = tempfile::tempdir().expect("a folder can be made");
    let shut = folder.path().join("docker.sock");
    // Root alone may use it: the stack's own may be its group's too.
    let _listener = std::os::unix::net::UnixListener::bind(&shut).expect("a socket");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&shut, std::fs::Permissions::from_mode(0o600)).expect("is set");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("is set");
    let check = |socket: &Path| {
        let file = folder.path().join("proctor.yml");
        std::fs::write(&file, format!("probes:\n{}", named(socket, "services: [cache]"))).expect("is written");
        let mut command = Command::new(&setpriv);
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", env!("CARGO_BIN_EXE_proctor"), "check", "--config"]);
        let output = command.arg(&file).output().expect("it runs");
        String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let told = check(&shut);
    for words in ["blind docker docker", "blind docker/cache docker", "Permission denied", "usermod -aG docker proctor", "socket proxy"] {
        assert!(told.contains(words), "{words} in {told}");
    }
    let told = check(Path::new("/nonexistent/docker.sock"));
    assert!(told.contains("FAILED docker/cache docker") && told.contains("docker does not run"), "{told}");
    drop(socket);
}

/// The configuration of nginx in the documentation, with other places and as this user.
fn documented_proxy(folder: &Path, engine: &Path) -> String {
    let page = include_str!("../../../docs/probes/docker.md");
    let (_, rest) = page.split_once("```nginx\n").expect("has a configuration of nginx");
    let (text, _) = rest.split_once("```").expect("it ends");
    let folder = folder.display().to_string();
    let text = text.replace("/run/proctor-docker", &folder).replace("unix:/run/docker.sock", &format!("unix:{}", engine.display()));
    // Its workers need no group that the host may not have, and temporary files no place of root's.
    let text = text.replace("user nobody docker;", "user root;");
    text.replace("http {", &format!("http {{ client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;"))
}

#[tokio::test]
async fn the_proxy_of_the_documentation_lets_all_through_that_is_asked_and_nothing_else() {
    let (Some(nginx), Some(socket)) = (program("nginx"), stack("docker.sock")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("nginx.conf");
    std::fs::write(&config, documented_proxy(folder.path(), &socket)).unwrap();
    let mut command = Command::new(nginx);
    command.arg("-c").arg(&config).args(["-g", "daemon off;"]);
    let _nginx = Process::start(&mut command, &folder.path().join("log"));
    let proxy = folder.path().join("docker.sock");
    eventually("the proxy listens", Duration::from_secs(20), || async { UnixStream::connect(&proxy).await.ok() }).await;

    let check = ["--health-cmd", "echo not today; exit 1", "--health-interval", "1s", "--health-retries", "1"];
    let container = Container::start(&socket, "proctor-it-proxy", &check, POLITE);
    let watched = Watched::new(&named(&proxy, &format!("containers: [{}]", container.name)));
    let probe = format!("docker/{}", container.name);
    followed(&watched).await;
    well(&watched.run("docker").await, true);
    says(&watched, &probe, "it is unhealthy", Reason::Unavailable, "the last said: not today").await;
    container.dies();
    says(&watched, &probe, "it died", Reason::Unavailable, "nobody had asked docker for it").await;

    let through = Arc::new(Docker::at(&proxy));
    let id = container.inspect("{{.Id}}");
    let error = through.restart(&id).await.expect_err("it only reads").to_string();
    assert!(error.contains("403"), "{error}");
    let status = async |request: &str| {
        let mut stream = UnixStream::connect(&proxy).await.unwrap();
        stream
            .write_all(format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(status("GET /v1.41/containers/json").await, "200");
    for refused in [
        "GET /v1.41/images/json".to_owned(),
        "GET /v1.41/info".to_owned(),
        format!("GET /v1.41/containers/{id}/logs?stdout=1"),
        format!("GET /v1.41/containers/{id}/archive?path=/etc/passwd"),
        format!("GET /v1.41/containers/{id}/../../images/json"),
        format!("POST /v1.41/containers/{id}/json"),
        format!("POST /v1.41/containers/{id}/start"),
        format!("DELETE /v1.41/containers/{id}"),
        "POST /v1.41/containers/create".to_owned(),
    ] {
        assert_eq!(status(&refused).await, "403", "{refused}");
    }
}
