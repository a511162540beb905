//! The whole example site: every service that Proctor has a probe for, and the probes of all of them.

use super::database::secret;
use super::docker::Container;
use super::elasticsearch::Elasticsearch;
use super::gunicorn::Gunicorn;
use super::memcached::Daemon;
use super::nginx::Nginx;
use super::nodes::Nodes;
use super::process::free_port;
use super::rabbitmq::{PERMISSIONS, Rabbitmq};
use super::site::{Celery, Markup};
use super::systemd::{Unit, bus, stack};
use super::tunnel::{Mariadb, Postgres, Tunnel};

/// What runs as long as this lives.
pub(crate) struct WholeSite {
    /// `probes:` of a configuration.
    pub(crate) probes: String,
    _running: Box<dyn std::any::Any>,
}

impl WholeSite {
    /// Starts all of it; nothing where a service is not installed.
    pub(crate) async fn start() -> Option<Self> {
        let (bus, engine) = (bus()?, stack("docker.sock")?);
        let rabbitmq = Rabbitmq::start_with(true, "heartbeat = 60\n").await?;
        rabbitmq.user("proctor", "/", PERMISSIONS);
        let broker = format!("amqp://guest:guest@127.0.0.1:{}//", rabbitmq.port);
        let nodes = Nodes::of(&broker, "rpc://")?;
        nodes.start(&["fast", "email"], &[]).await;
        let markup = Markup::start(&broker, "").await?;
        let folder = tempfile::tempdir().expect("a folder can be made");
        let schedule = folder.path().join("celerybeat-schedule");
        let beat = Celery::beat(&broker, &schedule, "dumb")?;

        let nginx = Nginx::start().await?;
        let statsd = format!("127.0.0.1:{}", free_port());
        let arguments = ["--statsd-host", &statsd, "--control-socket", "FOLDER/ctl", "--pid", "FOLDER/pid"];
        let gunicorn = Gunicorn::with(&arguments, None).await?;

        let cache = free_port();
        let cached = Daemon::start(cache).await?;
        let search = Elasticsearch::start(&[]).await?;
        search.fill("haystack", 10).await;
        let postgres = Postgres::start(false).await?;
        postgres.ask("CREATE ROLE proctor LOGIN");
        postgres.ask("GRANT pg_monitor TO proctor");
        let mariadb = Mariadb::start(&[]).await?;
        mariadb.ask("CREATE USER proctor@'%' IDENTIFIED BY 'hunter2'; GRANT PROCESS, REPLICA MONITOR ON *.* TO proctor@'%'");
        let password = secret(folder.path(), "hunter2\n");
        let tunnel = Tunnel::to(&["sshd"]).await?;

        let unit = Unit::new("shown.service", &["[Service]", "ExecStart=/bin/sleep infinity"]);
        unit.systemctl("start");
        let job = Unit::new("shown-job.service", &["[Service]", "Type=oneshot", "ExecStart=/bin/true"]);
        let timer = Unit::new("shown-job.timer", &["[Timer]", "OnActiveSec=1s", "OnUnitActiveSec=1h", &format!("Unit={}", job.0)]);
        timer.systemctl("start");
        let labels = ["com.docker.compose.service=shown".to_owned(), format!("com.docker.compose.project=p{}", std::process::id())];
        let container = Container::start(&engine, "shown", &["-l", &labels[0], "-l", &labels[1]], &["sleep", "1000"]);

        let web = nginx.folder().display();
        let probes = format!(
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
        let running = Box::new((
            rabbitmq,
            nodes,
            markup,
            folder,
            beat,
            nginx,
            gunicorn,
            cached,
            search,
            postgres,
            mariadb,
            tunnel,
            (unit, job, timer, container),
        ));
        Some(Self { probes, _running: running })
    }
}
