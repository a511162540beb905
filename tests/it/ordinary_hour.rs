//! An ordinary hour of a site: restarts, deploys, a rebuild, a renewal, rotated logs, a dump, a quiet night. It gives no mail
//! and no action. Only in `make test-slow`.
//!
//! How its time is compressed: what happens takes the time it takes, and the rules that come with Proctor hold with their own
//! `for`. Probes and rules run every 5 s instead of every 15 s, which can only make them see more. What is left out is the
//! time between two events in which nothing happens: each begins when every probe is well again, and at the end nothing may
//! be pending, so that no condition is left that would only have to last longer. What compares with half an hour ago or a
//! day ago is not reached so; that is in the ordinary days of `alerts/tests`.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proctor::client::http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::database::secret;
use super::support::docker::{Container, POLITE};
use super::support::elasticsearch::Elasticsearch;
use super::support::gunicorn::{Gunicorn, Listen};
use super::support::memcached::memcached;
use super::support::nginx::Nginx;
use super::support::nodes::Nodes;
use super::support::process::{eventually, free_port, program};
use super::support::proctor::Proctor;
use super::support::rabbitmq::Rabbitmq;
use super::support::site::Celery;
use super::support::smtp::Sink;
use super::support::systemd::{Unit, bus, stack};
use super::support::tunnel::Postgres;

/// Waits until every target has been asked since, and each is well.
async fn well(proctor: &Proctor, after: &str) {
    // A run that begins later than this has seen what happened.
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later").as_secs_f64();
    let mut last = String::new();
    let all = || async {
        let metrics = proctor.metrics().await.ok_or("no answer")?;
        let lines = |name: &str| metrics.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect::<Vec<_>>();
        let (success, ran) = (lines("probe_success{"), lines("probe_last_run_timestamp_seconds{"));
        let number = |line: &String| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        let failing: Vec<&String> = success.iter().filter(|line| !line.ends_with(" 1")).collect();
        let late = ran.iter().filter(|line| number(line).is_none_or(|at| at < since)).count();
        (failing.is_empty() && late == 0 && !ran.is_empty()).then_some(()).ok_or_else(|| format!("{failing:?}, {late} not asked yet"))
    };
    let begin = tokio::time::Instant::now();
    while begin.elapsed() < Duration::from_secs(300) {
        match all().await {
            Ok(()) => {
                eprintln!("ordinary hour: {after}: well again after {:?}", begin.elapsed());
                return;
            }
            Err(why) => last = why,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("after {after}, not well again within 5 minutes: {last}\n{}", proctor.log());
}

/// Visitors of the site, through nginx, whose pages come from the cache, until they are told to sleep.
fn visitors(https: u16, cache: u16, awake: Arc<AtomicBool>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let client = |path: &'static str| async move {
            let connect = format!("coursys.example.org:{https}:127.0.0.1");
            let url = format!("https://coursys.example.org:{https}{path}");
            let mut curl = tokio::process::Command::new("curl");
            curl.args(["-s", "-k", "-o", "/dev/null", "--max-time", "5", "--resolve", &connect, &url]);
            let _ = curl.stdin(Stdio::null()).status().await;
        };
        loop {
            if awake.load(Ordering::Relaxed) {
                futures_util::future::join3(client("/"), client("/old"), client("/healthcheck")).await;
                // A cache that is being restarted is no reason to stay away.
                if let Ok(mut cached) = TcpStream::connect(("127.0.0.1", cache)).await {
                    let _ = cached.write_all(b"get page\r\nset page 0 60 4\r\nhtml\r\nquit\r\n").await;
                    let _ = tokio::time::timeout(Duration::from_secs(1), cached.read_to_end(&mut Vec::new())).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes: make test-slow"]
async fn an_ordinary_hour_gives_no_mail_and_no_action() {
    let (Some(bus), Some(docker), Some(git)) = (bus(), stack("docker.sock"), program("git")) else { return };
    let begin = tokio::time::Instant::now();
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path().display();

    // The site.
    let port = free_port();
    let Some(mut cache) = memcached(folder.path(), port) else { return };
    let Some(mut rabbitmq) = Rabbitmq::start_with(false, "heartbeat = 60\n").await else { return };
    let Some(mut search) = Elasticsearch::start(&[]).await else { return };
    search.fill("haystack", 2_000).await;
    let Some(mut postgres) = Postgres::start(false).await else { return };
    for statement in [
        "CREATE ROLE proctor LOGIN PASSWORD 'hunter2' CONNECTION LIMIT 3",
        "GRANT pg_monitor TO proctor",
        "CREATE TABLE grades AS SELECT n AS id, md5(n::text) AS grade FROM generate_series(1, 200000) n",
    ] {
        postgres.ask(statement);
    }
    postgres.let_in("host all proctor 127.0.0.1/32 scram-sha-256");
    secret(folder.path(), "hunter2\n");
    let Some(mut gunicorn) = Gunicorn::with(&["--max-requests", "20", "--pid", "FOLDER/pid"], None).await else { return };
    let Listen::Tcp(app) = gunicorn.listen else { unreachable!("it listens on a port") };
    let Some(mut nginx) = Nginx::start().await else { return };
    let proxied = format!("location /healthcheck {{ proxy_pass http://127.0.0.1:{app}; proxy_set_header Host coursys.example.org; }}");
    nginx.configure(&proxied);
    nginx.rewrite("access_log access.log asked", "access_log access.log combined");
    nginx.reload().await;
    let broker = format!("amqp://guest:guest@127.0.0.1:{}//", rabbitmq.port);
    let Some(nodes) = Nodes::of(&broker, "rpc://") else { return };
    nodes.start(&["batch", "email"], &["--max-tasks-per-child=3"]).await;
    let schedule = folder.path().join("celerybeat-schedule");
    let Some(mut worker) = Celery::worker(&broker) else { return };
    let Some(mut beat) = Celery::beat(&broker, &schedule, "gnu") else { return };
    worker.said("ready.").await;
    let units = [
        Unit::new("gunicorn.service", &["[Service]", "ExecStart=/bin/sleep infinity"]),
        Unit::new("celery.service", &["[Service]", "ExecStart=/bin/sleep infinity"]),
    ];
    units.iter().for_each(|unit| unit.systemctl("start"));
    let project = format!("com.docker.compose.project=hour{}", std::process::id());
    let labels = |service: &str| format!("com.docker.compose.service={service}");
    let replica = |name: &str| Container::start(&docker, name, &["-l", &project, "-l", &labels("app"), "--restart", "always"], POLITE);
    let (mut app_1, app_2) = (replica("hour-app-1"), replica("hour-app-2"));
    let broker_container =
        Container::start(&docker, "hour-rabbitmq", &["-l", &project, "-l", &labels("rabbitmq"), "--restart", "always"], POLITE);
    let code = folder.path().join("site");
    std::fs::create_dir(&code).expect("is made");
    let commit = |what: &str| {
        let user = ["-c", "user.name=Ada Lovelace", "-c", "user.email=ada@example.org"];
        for words in [&["init", "-q"][..], &["commit", "-q", "--allow-empty", "-m", what]] {
            let done = Command::new(&git).current_dir(&code).args(user).args(words).env("HOME", folder.path()).status();
            assert!(done.expect("git runs").success(), "{words:?}");
        }
    };
    commit("first");

    // Proctor, with the rules that come with it and an action for whatever may fire.
    let sink = Sink::start().await;
    let acted = folder.path().join("acted");
    let probes = format!(
        r#"
site: {{name: coursys}}
web: {{listen: "127.0.0.1:WEB"}}
control: {{socket: "HOME/control.sock"}}
state: {{path: "HOME/state.db"}}
defaults: {{interval: 5s, timeout: 4s}}
rules: {{interval: 5s}}
startup: {{first_look: 0s, after_boot: 0s}}
notify:
  admins: ["Ann <ann@example.org>"]
  from: proctor@example.org
  group_wait: 1s
  resolve_wait: 1s
  smtp: {{host: 127.0.0.1, port: {smtp}}}
probes:
  cache: {{memcached: {{address: "127.0.0.1:{port}", canary: true}}}}
  rabbitmq: {{rabbitmq: {{port: {amqp}, queues: [batch, email, fast]}}}}
  celery: {{celery: {{via: rabbitmq, queues: [batch, email, fast], canary: {{every: 20s}}}}}}
  beat: {{beat: {{files: [{schedule}], task: coredata.tasks.beat_test, within: 2m, via: rabbitmq}}}}
  search: {{elasticsearch: {{url: "http://127.0.0.1:{es}", index: haystack, min_documents: 1000, word: Course}}}}
  db: {{postgres: {{address: "127.0.0.1:{pg}", database: postgres, username: proctor, password_file: {here}/password}}}}
  app: {{gunicorn: {{listen: "127.0.0.1:{app}", host_header: coursys.example.org, path: /healthcheck, pid_file: {app_folder}/pid}}}}
  web: {{nginx: {{status: "http://127.0.0.1:{http}/nginx_status", address: 127.0.0.1, ca_file: {ca},
        sites: ["https://coursys.example.org:{https}/", "https://coursys.example.org:{https}/healthcheck"],
        pid_file: {web}/nginx.pid, configuration: [{web}/nginx.conf], access_logs: [{web}/access.log], error_logs: [{web}/error.log]}}}}
  certs: {{certificate: {{files: [{web}/site.pem], served: ["coursys.example.org:{https}"], address: 127.0.0.1, ca_file: {ca}}}}}
  docker: {{docker: {{engine: "unix:{docker}", project: hour{pid}, services: {{app: 2, rabbitmq: 1}}}}}}
  units: {{systemd: {{bus: "unix:path={bus}", units: [{gunicorn_unit}, {celery_unit}]}}}}
  code: {{code: {{repository: {here}/site, processes: ['bind 127.0.0.1:{app}']}}}}
  host: {{host: {{}}}}
actions:
  anything: {{command: {{argv: [/usr/bin/touch, {acted}]}}, matchers: ['alertname=~".+"'], firing_for: 0s, mode: act}}
"#,
        smtp = sink.port,
        amqp = rabbitmq.port,
        schedule = schedule.display(),
        es = search.port,
        pg = postgres.port,
        app_folder = gunicorn.folder().display(),
        http = nginx.http,
        https = nginx.https,
        ca = nginx.ca_file().display(),
        web = nginx.folder().display(),
        docker = docker.display(),
        bus = bus.display(),
        pid = std::process::id(),
        gunicorn_unit = units[0].0,
        celery_unit = units[1].0,
        acted = acted.display(),
    );
    let mut proctor = Proctor::configured(sink.port, "");
    let home = proctor.folder.path().display().to_string();
    std::fs::write(proctor.config(), probes.replace("WEB", &proctor.web.to_string()).replace("HOME", &home)).expect("is written");
    let checked = proctor.run(&["config", "check"]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    proctor.start();
    let awake = Arc::new(AtomicBool::new(true));
    let visitors = visitors(nginx.https, port, awake.clone());
    well(&proctor, "the start").await;

    // restart-all: the units, then the containers, then each service itself.
    units.iter().for_each(|unit| unit.systemctl("restart"));
    for container in [&app_1, &app_2, &broker_container] {
        assert!(container.cli(&["restart", &container.name]).0, "{}", container.name);
    }
    well(&proctor, "units and containers restarted").await;
    cache.kill();
    cache = memcached(folder.path(), port).expect("it was there");
    gunicorn.restart(&[]).await;
    nginx.restart().await;
    postgres.restart().await;
    well(&proctor, "cache, gunicorn, nginx and database restarted").await;
    rabbitmq.ctl(&["stop"]);
    rabbitmq.relaunch();
    well(&proctor, "broker restarted").await;
    search.restart(&[]).await;
    well(&proctor, "search restarted").await;

    // A deploy: code comes in, gunicorn and the workers are restarted.
    commit("a deploy");
    gunicorn.restart(&[]).await;
    nodes.stop(&["batch", "email"]);
    nodes.start(&["batch", "email"], &["--max-tasks-per-child=3"]).await;
    well(&proctor, "a deploy").await;

    // A rolling one: new workers beside the old, a new replica beside the old.
    commit("a rolling deploy");
    assert!(Command::new("kill").args(["-HUP", &gunicorn.process.pid().to_string()]).status().expect("kill runs").success());
    let app_3 = replica("hour-app-3");
    app_1.cli(&["stop", "-t", "5", &app_1.name]);
    app_1.cli(&["rm", &app_1.name]);
    app_1 = app_3;
    well(&proctor, "a rolling deploy").await;

    // Workers recycle: gunicorn's after 20 requests, Celery's after 3 tasks.
    for word in 0..20 {
        nodes.python(&format!("from queues import slow; slow.apply_async((0.01, '{word}'), queue='batch')"));
    }
    for _ in 0..80 {
        let _ = gunicorn.get("/healthcheck").await;
    }
    well(&proctor, "workers recycled").await;

    // The cache is flushed.
    let mut flush = Command::new("bash");
    flush.arg("-c").arg(format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'flush_all\\r\\nquit\\r\\n' >&3; cat <&3"));
    assert_eq!(String::from_utf8_lossy(&flush.output().expect("bash runs").stdout), "OK\r\n");
    well(&proctor, "the cache flushed").await;

    // The index is rebuilt: deleted, then filled bit by bit.
    search.call(Method::DELETE, "/haystack", "").await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    search.fill("haystack", 200).await;
    for part in 0..9 {
        let bulk: String = (0..200).map(|n| format!("{{\"index\": {{}}}}\n{{\"text\": \"number {part} {n} of a course\"}}\n")).collect();
        search.call(Method::POST, "/haystack/_bulk?refresh=true", &bulk).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    well(&proctor, "the index rebuilt").await;

    // The certificate is renewed, nginx reloaded; the logs are rotated.
    nginx.swap_certificate(&nginx.authority.issue_for(&["coursys.example.org"], (-0.1, 89.9)));
    nginx.reload().await;
    well(&proctor, "a renewal").await;
    for log in ["access.log", "error.log"] {
        let at = nginx.folder().join(log);
        std::fs::rename(&at, at.with_extension("log.1")).expect("it is there");
    }
    nginx.tell("USR1");
    well(&proctor, "logs rotated").await;

    // A dump of the database.
    postgres.ask("BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK TABLE grades IN ACCESS SHARE MODE; SELECT count(pg_sleep(0.0002)) FROM grades WHERE id < 40000; COMMIT");
    well(&proctor, "a dump").await;

    // cron restarts beat and the workers.
    beat.stop();
    beat = Celery::beat(&broker, &schedule, "gnu").expect("it was there");
    worker.stop();
    worker = Celery::worker(&broker).expect("it was there");
    nodes.stop(&["batch", "email"]);
    nodes.start(&["batch", "email"], &["--max-tasks-per-child=3"]).await;
    well(&proctor, "beat and workers restarted by cron").await;

    // A night without visitors.
    awake.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(120)).await;
    well(&proctor, "a night").await;

    let mails: Vec<String> = sink.mails().iter().map(|mail| format!("{}\n{}", mail.header("Subject"), mail.text)).collect();
    assert!(mails.is_empty(), "{}", mails.join("\n"));
    // Nothing is left that would only have to last longer.
    eventually("nothing is pending", Duration::from_secs(180), || async {
        let listed = proctor.run(&["alert", "list"]);
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let active = |line: &&str| line.starts_with("pending") || line.starts_with("firing");
        let active: Vec<&str> = listed.lines().filter(active).collect();
        if !active.is_empty() {
            eprintln!("ordinary hour: {active:?}");
        }
        active.is_empty().then_some(())
    })
    .await;
    eprintln!("ordinary hour: played in {:?}", begin.elapsed());
    assert!(!acted.exists(), "nothing is done");
    let metrics = proctor.metrics().await.expect("it answers");
    let done: Vec<&str> = metrics.lines().filter(|line| line.starts_with("proctor_actions_total{") && !line.ends_with(" 0")).collect();
    assert!(done.is_empty(), "{done:?}");
    visitors.abort();
    drop((cache, beat, worker, app_1, app_2, broker_container));
}
