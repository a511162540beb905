//! A real Prometheus that scrapes a real Proctor on the whole stack: every query of every panel gives data, or it is written
//! down why not.

use std::collections::BTreeMap;
use std::time::Duration;

use super::build;
use crate::support::database::secret;
use crate::support::docker::Container;
use crate::support::elasticsearch::Elasticsearch;
use crate::support::gunicorn::Gunicorn;
use crate::support::memcached::Daemon;
use crate::support::nginx::Nginx;
use crate::support::nodes::Nodes;
use crate::support::process::{Process, eventually, free_port, program};
use crate::support::proctor::Proctor;
use crate::support::rabbitmq::Rabbitmq;
use crate::support::site::{Celery, Markup};
use crate::support::smtp::Sink;
use crate::support::systemd::{Unit, bus, stack};
use crate::support::tunnel::{Mariadb, Postgres, Tunnel};

/// Metrics whose queries may give nothing on a site that is well: the table of docs/dashboards.md says why.
fn may_be_empty() -> Vec<String> {
    let page = std::fs::read_to_string(super::root().join("docs/dashboards.md")).expect("it is there");
    let (_, table) = page.split_once("\n## Panels that may be empty\n").expect("the page has the table");
    let rows = table.split("\n## ").next().unwrap_or_default().lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split_once("` | ")).map(|(metric, _)| metric.to_owned()).collect()
}

/// What docs/probes/celery.md says that the user needs; the probes rabbitmq and markup need less.
const PERMISSIONS: [&str; 3] = [r"^amq\.gen-.*$", r"^(amq\.default|amq\.gen-.*|celery\.pidbox)$", r"^(amq\.gen-.*|celeryev)$"];

/// Asks Prometheus for how many series a query gives now.
async fn count(port: u16, query: &str) -> Option<usize> {
    let answer = super::ask(port, query).await?;
    let answer: serde_json::Value = serde_json::from_str(&answer).ok()?;
    assert_eq!(answer["status"], "success", "{query}: {answer}");
    Some(answer["data"]["result"].as_array()?.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_gives_data_in_a_prometheus_that_scrapes_a_proctor_on_the_whole_stack() {
    let (Some(prometheus), Some(bus), Some(engine)) = (program("prometheus"), bus(), stack("docker.sock")) else { return };
    let sink = Sink::start().await;

    let Some(rabbitmq) = Rabbitmq::start_with(true, "heartbeat = 60\n").await else { return };
    rabbitmq.user("proctor", "/", PERMISSIONS);
    let broker = format!("amqp://guest:guest@127.0.0.1:{}//", rabbitmq.port);
    let Some(nodes) = Nodes::of(&broker, "rpc://") else { return };
    nodes.start(&["fast", "email"], &[]).await;
    let Some(_markup) = Markup::start(&broker, "").await else { return };
    let folder = tempfile::tempdir().expect("a folder can be made");
    let schedule = folder.path().join("celerybeat-schedule");
    let Some(_beat) = Celery::beat(&broker, &schedule, "dumb") else { return };

    let Some(nginx) = Nginx::start().await else { return };
    let statsd = format!("127.0.0.1:{}", free_port());
    let arguments = ["--statsd-host", &statsd, "--control-socket", "FOLDER/ctl", "--pid", "FOLDER/pid"];
    let Some(gunicorn) = Gunicorn::with(&arguments, None).await else { return };

    let cache = free_port();
    let Some(_cache) = Daemon::start(cache).await else { return };
    let Some(search) = Elasticsearch::start(&[]).await else { return };
    search.fill("haystack", 10).await;
    let Some(postgres) = Postgres::start(false).await else { return };
    postgres.ask("CREATE ROLE proctor LOGIN");
    postgres.ask("GRANT pg_monitor TO proctor");
    let Some(mariadb) = Mariadb::start(&[]).await else { return };
    mariadb.ask("CREATE USER proctor@'%' IDENTIFIED BY 'hunter2'; GRANT PROCESS, REPLICA MONITOR ON *.* TO proctor@'%'");
    let password = secret(folder.path(), "hunter2\n");
    let Some(tunnel) = Tunnel::to(&["sshd"]).await else { return };

    let unit = Unit::new("shown.service", &["[Service]", "ExecStart=/bin/sleep infinity"]);
    unit.systemctl("start");
    let job = Unit::new("shown-job.service", &["[Service]", "Type=oneshot", "ExecStart=/bin/true"]);
    let timer = Unit::new("shown-job.timer", &["[Timer]", "OnActiveSec=1s", "OnUnitActiveSec=1h", &format!("Unit={}", job.0)]);
    timer.systemctl("start");
    let labels = ["com.docker.compose.service=shown".to_owned(), format!("com.docker.compose.project=p{}", std::process::id())];
    let _container = Container::start(&engine, "shown", &["-l", &labels[0], "-l", &labels[1]], &["sleep", "1000"]);

    let web = nginx.folder().display();
    let sections = format!(
        r"probes:
  rabbitmq: {{rabbitmq: {{port: {amqp}, username: proctor, password_file: {amqp_password}, queues: [fast, email], prometheus: 'http://127.0.0.1:{plugin}'}}}}
  celery: {{celery: {{via: rabbitmq, queues: [fast, email], canary: {{every: 20s}}}}}}
  markup: {{markup: {{via: rabbitmq}}}}
  beat: {{beat: {{files: [{schedule}]}}}}
  web: {{nginx: {{status: 'http://127.0.0.1:{http}/nginx_status', sites: ['https://coursys.example.org:{https}/'], address: 127.0.0.1, ca_file: {ca},
    pid_file: {web}/nginx.pid, configuration: [{web}/nginx.conf], access_logs: [{web}/access.log], error_logs: [{web}/error.log]}}}}
  app: {{gunicorn: {{listen: '{listen}', host_header: coursys.example.org, statsd: '{statsd}', control_socket: {app}/ctl, pid_file: {app}/pid}}}}
  cache: {{memcached: {{address: '127.0.0.1:{cache}', canary: true}}}}
  certs: {{certificate: {{files: [{certificate}], served: ['coursys.example.org:{https}'], address: 127.0.0.1, ca_file: {ca}}}}}
  search: {{elasticsearch: {{url: 'http://127.0.0.1:{search}', index: haystack, min_documents: 1}}}}
  db: {{postgres: {{address: '127.0.0.1:{postgres}', database: postgres}}}}
  reports: {{mysql: {{address: '127.0.0.1:{mariadb}', password_file: {password}}}}}
  csrpt: {{tunnel: {{address: '127.0.0.1:{tunnel}', speaks: ssh}}}}
  host: {{host: {{}}}}
  units: {{systemd: {{bus: 'unix:path={bus}', units: [{unit}], timers: [{timer}]}}}}
  docker: {{docker: {{engine: 'unix:{engine}', project: p{project}, services: [shown]}}}}
  page: {{http: {{url: 'http://127.0.0.1:{http}/nginx_status'}}}}
  closed: {{tcp: {{address: '127.0.0.1:{closed}'}}}}
",
        amqp = rabbitmq.port,
        amqp_password = rabbitmq.password_file("proctor").display(),
        plugin = rabbitmq.prometheus,
        schedule = schedule.display(),
        http = nginx.http,
        https = nginx.https,
        ca = nginx.ca_file().display(),
        listen = gunicorn.listen,
        app = gunicorn.folder().display(),
        certificate = nginx.certificate_file().display(),
        search = search.port,
        postgres = postgres.port,
        mariadb = mariadb.port,
        password = password.display(),
        tunnel = tunnel.ports[0],
        bus = bus.display(),
        unit = unit.0,
        timer = timer.0,
        engine = engine.display(),
        project = std::process::id(),
        closed = free_port(),
    );
    let mut proctor = Proctor::configured(sink.port, &sections).rules(&[("Down", "probe_success == 0")]);
    let config = std::fs::read_to_string(proctor.config()).expect("it is there");
    // Much runs here at once.
    std::fs::write(proctor.config(), config.replace("interval: 1s, timeout: 1s", "interval: 5s, timeout: 5s")).expect("is written");
    proctor.start();

    let (config, port) = (folder.path().join("prometheus.yml"), free_port());
    let scraping = format!(
        "global: {{scrape_interval: 2s, evaluation_interval: 2s}}\nrule_files: [{}]\nscrape_configs:\n- job_name: proctor\n  \
         static_configs: [{{targets: ['127.0.0.1:{}']}}]\n",
        proctor.folder.path().join("rules.yml").display(),
        proctor.web
    );
    std::fs::write(&config, scraping).expect("is written");
    let mut command = std::process::Command::new(prometheus);
    command.arg(format!("--config.file={}", config.display())).arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
    let _prometheus = Process::start(command.arg(format!("--web.listen-address=127.0.0.1:{port}")), &folder.path().join("log"));

    let (mut waiting, may_be_empty) = (BTreeMap::new(), may_be_empty());
    for dashboard in build() {
        for query in dashboard.queries {
            if !may_be_empty.iter().any(|metric| query.contains(&format!("{metric}{{"))) {
                waiting.insert(query.replace("$job", ".*").replace("$instance", ".*"), dashboard.file.clone());
            }
        }
    }
    assert!(waiting.len() > 80, "{}", waiting.len());
    let still = std::sync::Mutex::new(waiting);
    // Prometheus scrapes every 2 s.
    let all = eventually("every query gives data", Duration::from_secs(600), || async {
        let asked: Vec<String> = still.lock().unwrap().keys().cloned().collect();
        for query in asked {
            if count(port, &query).await.is_some_and(|series| series > 0) {
                still.lock().unwrap().remove(&query);
            }
        }
        still.lock().unwrap().is_empty().then_some(())
    });
    let well = tokio::time::timeout(Duration::from_secs(300), all).await.is_ok();
    let still = still.into_inner().unwrap();
    assert!(well, "these give nothing: {still:#?}\n{}\n{}", proctor.log(), String::from_utf8_lossy(&proctor.run(&["check"]).stdout));
    let queries: Vec<String> = build().into_iter().flat_map(|dashboard| dashboard.queries).collect();
    for metric in &may_be_empty {
        assert!(queries.iter().any(|query| query.contains(metric)), "docs/dashboards.md: no panel asks for {metric}");
    }
}
