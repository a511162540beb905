//! The probe docker against the real engine.

mod engine;

use std::path::Path;
use std::time::Duration;

use proctor::changes::Kind;
use proctor::model::{ProbeResult, Reason, Sight, Timestamp};
use tokio::time::Instant;

use super::support::docker::{Container, POLITE};
use super::support::process::eventually;
use super::support::proctor::Proctor;
use super::support::systemd::stack;
use super::support::watched::{Watched, failed, fails, value, well};

/// Ends by itself with exit code 7 once there is a file `/tmp/end`.
const ENDS: &[&str] = &["/bin/sh", "-c", "while :; do [ -e /tmp/end ] && /bin/busybox rm /tmp/end && exit 7; sleep 0.1; done"];

/// Options of a container of a compose service.
fn of<'a>(labels: &'a [String; 2], more: &[&'a str]) -> Vec<&'a str> {
    [&["-l", labels[0].as_str(), "-l", labels[1].as_str()], more].concat()
}

/// The labels of a compose service of this test, in a project of this run.
fn labels(service: &str) -> [String; 2] {
    [format!("com.docker.compose.service={service}"), format!("com.docker.compose.project=p{}", std::process::id())]
}

fn named(socket: &Path, rest: &str) -> String {
    format!("  docker: {{docker: {{engine: \"unix:{}\", {rest}}}}}", socket.display())
}

fn service(socket: &Path, service: &str) -> Watched {
    Watched::new(&named(socket, &format!("project: p{}, services: [{service}]", std::process::id())))
}

fn is_state(result: &ProbeResult, state: &str) -> bool {
    value(result, "docker_container_state", state) == Some(1.0)
}

/// Runs a target until it fails with these words: docker shows an end a moment before its events tell whose it was.
async fn says(watched: &Watched, target: &str, what: &str, reason: Reason, words: &str) -> ProbeResult {
    watched.until_failed(target, what, 60, reason, words).await
}

/// How often it ended without an order: how soon after its start depends on how busy this machine is.
fn unasked(result: &ProbeResult) -> Option<f64> {
    let of = |kind: &str| value(result, "docker_service_deaths_total", kind);
    Some(of("early")? + of("crash")?)
}

/// What was told to have changed of a service of this test.
fn changes(watched: &Watched, service: &str) -> Vec<(Kind, String)> {
    let all = watched.changes.between(Timestamp(0), Timestamp(i64::MAX));
    all.into_iter().filter(|change| change.subject.ends_with(service)).map(|change| (change.kind, change.detail)).collect()
}

async fn told_kinds(watched: &Watched, service: &str, kinds: &[Kind]) {
    eventually(&format!("{kinds:?} is told"), Duration::from_secs(30), || async {
        (changes(watched, service).iter().map(|(kind, _)| *kind).collect::<Vec<_>>() == kinds).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_service_that_is_stopped_is_told_from_one_that_died() {
    let Some(socket) = stack("docker.sock") else { return };
    let labels = labels("ends");
    let watched = service(&socket, "ends");
    failed(&watched.run("docker/ends").await, Reason::Missing, "ends: there is no container of this compose service in project p");
    well(&watched.run("docker").await, true);
    let container = Container::start(&socket, "proctor-it-ends", &of(&labels, &["-e", "PASSWORD=hunter2"]), ENDS);
    watched.told("docker/ends", "it was started").await;
    let result = watched.run("docker/ends").await;
    well(&result, true);
    assert!(is_state(&result, "running") && !format!("{result:?}").contains("hunter2"), "{result:?}");
    for (name, label, expected) in [
        ("docker_service_replicas_expected", "", 1.0),
        ("docker_service_replicas_running", "", 1.0),
        ("docker_service_replicas_dead", "", 0.0),
        ("docker_service_deaths_total", "crash", 0.0),
        ("docker_container_restarts_total", "", 0.0),
        ("docker_container_image_outdated", "", 0.0),
    ] {
        assert_eq!(value(&result, name, label), Some(expected), "{name}");
    }
    assert_eq!(value(&result, "docker_container_exit_code", ""), None, "it has not ended yet");
    let sample = result.samples.iter().find(|sample| sample.family.name == "docker_container_state").expect("is there");
    let names: Vec<&str> = sample.labels.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["name", "state", "service", "project"]);

    // It ends by itself.
    assert!(container.cli(&["exec", &container.name, "/bin/sh", "-c", ": >/tmp/end"]).0);
    let died = says(&watched, "docker/ends", "it is seen", Reason::Unavailable, "nobody had asked docker for it").await;
    let Err(failure) = &died.outcome else { unreachable!("it failed") };
    assert!(failure.detail.contains("exit code 7") && failure.detail.contains("docker does not restart it"), "{}", failure.detail);
    let requested = |result: &ProbeResult| value(result, "docker_container_stop_requested", "");
    let dead = |result: &ProbeResult| value(result, "docker_service_replicas_dead", "");
    assert_eq!((requested(&died), dead(&died), is_state(&died, "exited")), (Some(0.0), Some(1.0), true));
    assert_eq!(value(&died, "docker_container_exit_code", ""), Some(7.0));
    watched.until("docker/ends", "it is counted", 60, |result| unasked(result) == Some(1.0)).await;

    // Killed by somebody else than docker.
    assert!(container.cli(&["start", &container.name]).0);
    watched.until("docker/ends", "it runs", 60, ProbeResult::is_success).await;
    container.dies();
    let died = says(&watched, "docker/ends", "it is seen", Reason::Unavailable, "nobody had asked docker for it").await;
    assert_eq!((requested(&died), value(&died, "docker_container_exit_code", "")), (Some(0.0), Some(137.0)));

    // Stopped, then killed, then removed: each by order to docker.
    for order in [["stop", "-t0"].as_slice(), &["kill"]] {
        assert!(container.cli(&["start", &container.name]).0);
        watched.until("docker/ends", "it runs", 60, ProbeResult::is_success).await;
        assert!(container.cli(&[order, &[container.name.as_str()]].concat()).0);
        let stopped = |result: &ProbeResult| requested(result) == Some(1.0);
        let result = watched.until("docker/ends", "it was asked for", 60, stopped).await;
        failed(&result, Reason::Unavailable, "was stopped by order");
        assert_eq!(dead(&result), Some(0.0));
    }
    assert!(container.cli(&["start", &container.name]).0);
    watched.until("docker/ends", "it runs", 60, ProbeResult::is_success).await;
    drop(container);
    says(&watched, "docker/ends", "it is gone", Reason::Missing, "it was removed or never made").await;
    let asked = |result: &ProbeResult| value(result, "docker_service_deaths_total", "asked");
    watched.until("docker/ends", "all are counted", 60, |result| asked(result) == Some(3.0)).await;
    use Kind::{Died, Started, Stopped};
    eventually("all is told", Duration::from_secs(30), || async {
        let kinds: Vec<Kind> = changes(&watched, "ends").iter().map(|(kind, _)| *kind).collect();
        // A start soon after a stop is a restart, which depends on how fast this machine is.
        (kinds[..2] == [Started, Died] && kinds.last() == Some(&Stopped)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_restart_and_a_container_made_anew_are_restarts_by_order() {
    let Some(socket) = stack("docker.sock") else { return };
    let labels = labels("anew");
    let watched = service(&socket, "anew");
    let container = Container::start(&socket, "proctor-it-anew", &of(&labels, &["--restart", "unless-stopped"]), POLITE);
    watched.told("docker/anew", "it was started").await;
    told_kinds(&watched, "anew", &[Kind::Started]).await;
    assert!(container.cli(&["restart", &container.name]).0);
    told_kinds(&watched, "anew", &[Kind::Started, Kind::Restarted]).await;
    let before = container.inspect("{{.Id}}");
    let options = of(&labels, &["--restart", "unless-stopped"]);
    let container = {
        assert!(container.cli(&["rm", "-f", &container.name]).0);
        std::mem::forget(container);
        Container::start(&socket, "proctor-it-anew", &options, POLITE)
    };
    assert_ne!(container.inspect("{{.Id}}"), before);
    told_kinds(&watched, "anew", &[Kind::Started, Kind::Restarted, Kind::Restarted]).await;
    assert_eq!(changes(&watched, "anew").last().map(|(_, detail)| detail.as_str()), Some("made anew"));
    let result = watched.run("docker/anew").await;
    well(&result, true);
    assert_eq!(value(&result, "docker_service_deaths_total", "asked"), Some(2.0));
    assert_eq!(value(&result, "docker_service_replicas_dead", ""), Some(0.0));

    // Docker itself starts what dies unasked: that is no order, and is over at once.
    container.dies();
    watched.until("docker/anew", "it is counted", 60, |result| unasked(result) == Some(1.0)).await;
    told_kinds(&watched, "anew", &[Kind::Started, Kind::Restarted, Kind::Restarted, Kind::Died]).await;
    let back = |result: &ProbeResult| result.is_success() && value(result, "docker_container_restarts_total", "") == Some(1.0);
    watched.until("docker/anew", "it is back", 60, back).await;
}

#[tokio::test]
async fn a_container_that_ends_again_and_again_is_named_with_its_exit_code() {
    let Some(socket) = stack("docker.sock") else { return };
    let container = Container::start(&socket, "proctor-it-loop", &["--restart", "always"], &["/bin/sh", "-c", "exit 3"]);
    let watched = Watched::new(&named(&socket, &format!("containers: [{}]", container.name)));
    let probe = format!("docker/{}", container.name);
    let begin = Instant::now();
    watched.told(&probe, "it ends").await;
    let loops = |result: &ProbeResult| value(result, "docker_container_restarts_total", "").is_some_and(|restarts| restarts >= 4.0);
    watched.until(&probe, "docker restarts it", 60, loops).await;
    // Between two ends it runs for a moment, and events come a moment after the state that they tell of.
    let waits = |result: &ProbeResult| {
        fails(result, Reason::Unavailable, "ends again and again (exit code 3")
            && value(result, "docker_service_deaths_total", "early") >= Some(3.0)
    };
    let result = watched.until(&probe, "it waits for its next start", 60, waits).await;
    assert!(is_state(&result, "restarting"), "{result:?}");
    assert_eq!(value(&result, "docker_service_replicas_dead", ""), Some(0.0), "docker is at it");
    assert_eq!(value(&result, "docker_container_stop_requested", ""), None);
    let died = changes(&watched, &container.name).into_iter().filter(|(kind, _)| *kind == Kind::Died).count();
    let minutes = usize::try_from(begin.elapsed().as_secs() / 60).expect("is small");
    assert!((1..=1 + minutes).contains(&died), "a loop is told once a minute: {died}");
    assert!(container.cli(&["stop", &container.name]).0);
    says(&watched, &probe, "it was stopped", Reason::Unavailable, "was stopped by order").await;
}

#[tokio::test]
async fn a_health_check_that_fails_is_told_with_its_last_words_and_starting_is_no_failure() {
    let Some(socket) = stack("docker.sock") else { return };
    let check = "echo queue is stuck; test -e /tmp/well";
    let options = ["--health-cmd", check, "--health-interval", "1s", "--health-retries", "2", "--health-start-period", "2s"];
    let container = Container::start(&socket, "proctor-it-health", &options, POLITE);
    let watched = Watched::new(&named(&socket, &format!("containers: [{}]", container.name)));
    let probe = format!("docker/{}", container.name);
    let health = |result: &ProbeResult, status: &str| value(result, "docker_container_health", status);
    let result = watched.run(&probe).await;
    if health(&result, "starting") == Some(1.0) {
        well(&result, true);
    }
    watched.told(&probe, "it became unhealthy").await;
    let result = says(&watched, &probe, "it is unhealthy", Reason::Unavailable, "the last said: queue is stuck").await;
    assert_eq!((health(&result, "unhealthy"), health(&result, "healthy")), (Some(1.0), Some(0.0)));
    assert!(value(&result, "docker_container_health_failing_streak", "").is_some_and(|streak| streak >= 2.0));
    assert_eq!((value(&result, "docker_service_replicas_running", ""), is_state(&result, "running")), (Some(0.0), true));
    assert!(result.evidence[0].contains("queue is stuck"), "{:?}", result.evidence);
    // It flaps.
    for (make, status) in [(": >/tmp/well", "healthy"), ("rm /tmp/well", "unhealthy"), (": >/tmp/well", "healthy")] {
        let make = make.replace("rm ", "/bin/busybox rm ");
        assert!(container.cli(&["exec", &container.name, "/bin/sh", "-c", &make]).0);
        watched.told(&probe, "its health changed").await;
        watched.until(&probe, status, 60, |result| health(result, status) == Some(1.0)).await;
    }
    well(&watched.run(&probe).await, true);
}

#[tokio::test]
async fn an_image_whose_name_means_another_is_seen_on_the_container_that_runs_on() {
    let Some(socket) = stack("docker.sock") else { return };
    let image = format!("proctor-it-image:{}", std::process::id());
    let busybox = Container::start(&socket, "proctor-it-other", &[], POLITE);
    let tag = |from: &str| assert!(busybox.cli(&["tag", from, &image]).0);
    tag("proctor-busybox");
    let container = Container::of_image(&socket, "proctor-it-image", &[], &image, POLITE);
    let watched = Watched::new(&named(&socket, &format!("containers: [{}]", container.name)));
    let probe = format!("docker/{}", container.name);
    let outdated = |result: &ProbeResult| value(result, "docker_container_image_outdated", "");
    assert_eq!(outdated(&watched.run(&probe).await), Some(0.0));
    let newer = busybox.cli(&["commit", &busybox.name, &image]).1;
    assert!(newer.starts_with("sha256:"), "{newer}");
    let result = watched.run(&probe).await;
    well(&result, true);
    assert_eq!(outdated(&result), Some(1.0));
    assert!(result.evidence[0].contains(&format!("was made of an image that {image} no longer means")), "{:?}", result.evidence);
    busybox.cli(&["rmi", "-f", &image]);
    busybox.cli(&["rmi", "-f", &newer]);
}

#[tokio::test]
async fn a_rolling_replacement_is_never_a_failure_and_too_few_are() {
    let Some(socket) = stack("docker.sock") else { return };
    let labels = labels("rolled");
    let project = format!("project: p{}", std::process::id());
    let watched = Watched::new(&named(&socket, &format!("{project}, services: {{rolled: 2}}")));
    let start = |n: u32| Container::start(&socket, &format!("proctor-it-rolled{n}"), &of(&labels, &["--restart", "always"]), POLITE);
    let (one, two) = (start(1), start(2));
    watched.told("docker/rolled", "both were started").await;
    well(&watched.run("docker/rolled").await, true);
    let rolled = async {
        let replaced = tokio::task::spawn_blocking({
            let (socket, labels) = (socket.clone(), labels.clone());
            move || {
                let start = |n: u32| Container::start(&socket, &format!("proctor-it-rolled{n}"), &of(&labels, &[]), POLITE);
                let new = (start(3), start(4));
                drop((one, two));
                new
            }
        });
        replaced.await.expect("it is replaced")
    };
    let mut rolled = std::pin::pin!(rolled);
    let (three, four) = loop {
        tokio::select! {
            new = &mut rolled => break new,
            result = watched.run("docker/rolled") => {
                well(&result, true);
                assert_eq!(value(&result, "docker_service_replicas_dead", ""), Some(0.0));
            }
        }
    };
    well(&watched.run("docker/rolled").await, true);
    // What `docker compose run` started is not the service.
    let oneoff = of(&labels, &["-l", "com.docker.compose.oneoff=True"]);
    let _oneoff = Container::start(&socket, "proctor-it-rolled-once", &oneoff, POLITE);
    three.dies();
    let one_died = |result: &ProbeResult| {
        fails(result, Reason::Unavailable, "expected 2 containers to be well, found 1")
            && value(result, "docker_service_replicas_dead", "") == Some(1.0)
    };
    watched.until("docker/rolled", "one died", 60, one_died).await;
    drop(four);
    says(&watched, "docker/rolled", "both are gone", Reason::Unavailable, "found 0").await;
}

#[tokio::test]
async fn where_nothing_is_named_every_container_that_docker_restarts_is_expected() {
    let Some(socket) = stack("docker.sock") else { return };
    let [web, db, once, plain] = ["uweb", "udb", "uonce", "uplain"]
        .map(|name| [labels(name)[0].clone(), format!("com.docker.compose.project=u{}", std::process::id())]);
    let watched = Watched::new(&named(&socket, &format!("project: u{}", std::process::id())));
    well(&watched.run("docker").await, true);
    let always = |labels| of(labels, &["--restart", "unless-stopped"]);
    let container = Container::start(&socket, "proctor-it-uweb", &always(&web), POLITE);
    let _db = Container::start(&socket, "proctor-it-udb", &always(&db), POLITE);
    let _plain = Container::start(&socket, "proctor-it-uplain", &of(&plain, &[]), &["/bin/sh", "-c", "exit 1"]);
    let once = Container::start(&socket, "proctor-it-uonce", &of(&once, &["--restart", "on-failure"]), &["/bin/sh", "-c", "exit 0"]);
    watched.told("docker", "they were started").await;
    eventually("it is done", Duration::from_secs(20), || async { (once.inspect("{{.State.Status}}") == "exited").then_some(()) }).await;
    let result = watched.run("docker").await;
    well(&result, true);
    for (name, label, expected) in [
        ("docker_up", "", Some(1.0)),
        ("docker_service_replicas_expected", "uweb", Some(1.0)),
        ("docker_service_replicas_expected", "uonce", Some(0.0)),
        ("docker_service_replicas_expected", "uplain", None),
    ] {
        assert_eq!(value(&result, name, label), expected, "{name} {label}");
    }
    assert!(container.cli(&["stop", &container.name]).0);
    let result = says(&watched, "docker", "it was stopped", Reason::Unavailable, "uweb: proctor-it-uweb-").await;
    assert_eq!(value(&result, "docker_up", ""), Some(1.0), "the engine is well");
    assert_eq!(value(&result, "docker_container_stop_requested", "uweb"), Some(1.0));
    drop(container);
    watched.until("docker", "what was removed is no longer expected", 60, ProbeResult::is_success).await;
}

#[tokio::test]
async fn a_container_that_is_killed_for_its_memory_is_said_to_be() {
    let Some(socket) = stack("docker.sock") else { return };
    let eats = &["/bin/sh", "-c", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"];
    let container = Container::start(&socket, "proctor-it-oom", &["-m", "16m"], eats);
    let watched = Watched::new(&named(&socket, &format!("containers: [{}]", container.name)));
    let probe = format!("docker/{}", container.name);
    watched.told(&probe, "it ends").await;
    let killed = |result: &ProbeResult| {
        fails(result, Reason::Unavailable, "for its memory at its limit of 16 MiB")
            && value(result, "docker_service_replicas_dead", "") == Some(1.0)
    };
    let result = watched.until(&probe, "it is killed", 60, killed).await;
    assert_eq!(value(&result, "docker_container_exit_code", ""), Some(137.0));
    let told = value(&result, "docker_container_oom_killed", "");
    assert_eq!(told, Some(f64::from(u8::from(container.inspect("{{.State.OOMKilled}}") == "true"))), "as docker sees it");
}

#[tokio::test]
async fn a_death_is_told_within_a_second() {
    let Some(socket) = stack("docker.sock") else { return };
    let container = Container::start(&socket, "proctor-it-quick", &[], POLITE);
    let watched = Watched::new(&named(&socket, &format!("containers: [{}]", container.name)));
    let probe = format!("docker/{}", container.name);
    let connected = |result: &ProbeResult| value(result, "docker_events_connected", "") == Some(1.0);
    let _ = tokio::time::timeout(Duration::from_millis(1), watched.target(&probe).probe.changed()).await;
    watched.until("docker", "the stream stands", 20, connected).await;
    // What came with the first look back.
    let _ = tokio::time::timeout(Duration::from_secs(1), watched.target(&probe).probe.changed()).await;
    container.dies();
    let begin = Instant::now();
    // Events of the containers of other tests wake it too: it is looked at only when it is told something.
    let result = loop {
        watched.told(&probe, "it died").await;
        let result = watched.run(&probe).await;
        if fails(&result, Reason::Unavailable, "nobody had asked docker for it") {
            break result;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{result:?}");
    };
    eprintln!("seen {:?} after the death, inspected in {:?}", begin.elapsed(), result.duration);
}

#[tokio::test]
async fn an_engine_is_asked_in_words_that_name_what_is_wrong() {
    let watched = Watched::new("  docker: {docker: {engine: \"unix:/nonexistent/docker.sock\", services: [a]}}");
    for target in ["docker", "docker/a"] {
        let result = watched.run(target).await;
        failed(&result, Reason::Missing, "docker does not run, or its socket is elsewhere");
    }
    assert_eq!(value(&watched.run("docker").await, "docker_up", ""), Some(0.0));
    assert!(!matches!(watched.run("docker").await.sight, Sight::Blind { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_that_nobody_asked_for_is_in_metrics_and_its_alert_fires_within_a_second_or_so() {
    let Some(socket) = stack("docker.sock") else { return };
    let container = Container::start(&socket, "proctor-it-served", &[], POLITE);
    let name = container.name.clone();
    let at = format!("{{engine: \"unix:{}\", containers: [{name}]}}", socket.display());
    // Asked once an hour and judged once an hour: what is seen sooner was told.
    let proctor = Proctor::configured(1, &format!("probes:\n  docker: {{docker: {at}, interval: 1h, timeout: 5s}}\n"));
    let rules = "groups:\n- name: slow\n  interval: 1h\n  rules:\n  - {alert: Died, expr: docker_service_replicas_dead > 0}\n";
    std::fs::write(proctor.folder.path().join("rules.yml"), rules).unwrap();
    let proctor = proctor.started();
    proctor.shows("docker_events_connected{probe=\"docker\"} 1", Duration::from_secs(30)).await;
    let line = |state: &str| format!("docker_container_state{{probe=\"docker\",target=\"{name}\",name=\"{name}\",state=\"{state}\"");
    let firing = || String::from_utf8_lossy(&proctor.run(&["alert", "list"]).stdout).contains("Died");
    proctor.shows(&line("running"), Duration::from_secs(30)).await;
    let (mut shown, mut fired) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        container.dies();
        proctor.shows(&line("exited"), Duration::from_secs(30)).await;
        let finished: jiff::Timestamp = container.inspect("{{.State.FinishedAt}}").parse().unwrap();
        shown.push(jiff::Timestamp::now().duration_since(finished));
        eventually("its alert fires", Duration::from_secs(30), || async { firing().then_some(()) }).await;
        fired.push(jiff::Timestamp::now().duration_since(finished));
        assert!(container.cli(&["start", &name]).0);
        proctor.shows(&line("running"), Duration::from_secs(30)).await;
        eventually("it is over", Duration::from_secs(30), || async { (!firing()).then_some(()) }).await;
    }
    eprintln!("after the death: in /metrics {shown:?}, firing {fired:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compose_service_that_died_is_restarted_and_this_probe_says_that_it_helped() {
    let Some(socket) = stack("docker.sock") else { return };
    let labels = labels("mended");
    let container = Container::start(&socket, "proctor-it-mended", &of(&labels, &[]), POLITE);
    let project = format!("p{}", std::process::id());
    let sections = format!(
        "probes:\n  worker: {{docker: {{engine: \"unix:{}\", project: {project}, services: [mended]}}}}\n\
         actions:\n  restart-worker:\n    docker: {{service: mended, project: {project}}}\n\
         \x20   matchers: ['alertname=~\"DockerServiceDied|DockerContainerUnhealthy\"', 'probe=\"worker\"']\n\
         \x20   mode: act\n    firing_for: 1s\n    verify: {{probes: [worker], within: 60s}}\n\
         \x20   limit: {{cooldown: 1s}}\n",
        socket.display()
    );
    let proctor = Proctor::configured(1, &sections).built_in_rules().env("DOCKER_HOST", format!("unix://{}", socket.display())).started();
    proctor.shows("docker_events_connected{probe=\"worker\"} 1", Duration::from_secs(30)).await;
    let before = container.started_at();
    container.dies();
    proctor.shows("proctor_actions_total{outcome=\"repaired\"} 1", Duration::from_secs(120)).await;
    assert_ne!(container.started_at(), before);
    proctor.shows("probe_success{probe=\"worker\",target=\"mended\"} 1", Duration::from_secs(30)).await;
}
