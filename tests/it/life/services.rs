//! The real services of a site beside a Proctor under its rendered unit: in the container in which systemd is PID 1.

use std::path::Path;
use std::process::Command;

use super::container::{Host, MINUTE, is_well};
use super::{House, stack};
use crate::support::elasticsearch::Elasticsearch;
use crate::support::process::{eventually, program};
use crate::support::rabbitmq::Rabbitmq;
use crate::support::site::Markup;
use crate::support::tunnel::{Mariadb, Postgres};

/// Those that listen at 127.0.0.1 of the container, each with the user that its page in `docs/probes` asks for.
struct Services {
    search: Elasticsearch,
    postgres: Postgres,
    mysql: Mariadb,
    rabbitmq: Rabbitmq,
    _markup: Markup,
}

impl Services {
    async fn start() -> Option<Self> {
        let search = Elasticsearch::start(&[]).await?;
        search.fill("haystack", 3).await;
        let postgres = Postgres::start(false).await?;
        postgres.ask("CREATE ROLE proctor LOGIN PASSWORD 'hunter2' CONNECTION LIMIT 3; GRANT pg_monitor TO proctor");
        postgres.let_in("host postgres proctor 127.0.0.1/32 scram-sha-256");
        let mysql = Mariadb::start(&[]).await?;
        mysql.ask(
            "CREATE USER proctor@'%' IDENTIFIED BY 'hunter2' WITH MAX_USER_CONNECTIONS 3; GRANT PROCESS, REPLICA MONITOR ON *.* TO proctor@'%'",
        );
        let rabbitmq = Rabbitmq::start(true).await?;
        rabbitmq.ctl(&["add_vhost", "site"]);
        rabbitmq.user("service", "site", [".*", ".*", ".*"]);
        rabbitmq.user("proctor", "site", ["^$", r"^amq\.default$", "^$"]);
        let markup = Markup::start(&format!("amqp://service:pw-service@127.0.0.1:{}/site", rabbitmq.port), "").await?;
        Some(Self { search, postgres, mysql, rabbitmq, _markup: markup })
    }

    fn probes(&self, container: &str) -> String {
        format!(
            "  search: {{elasticsearch: {{url: 'http://127.0.0.1:{}', index: haystack, min_documents: 3, word: course}}}}
  postgres: {{postgres: {{address: '127.0.0.1:{}', database: postgres, username: proctor, password_file: SECRETS/database}}}}
  mysql: {{mysql: {{address: '127.0.0.1:{}', username: proctor, password_file: SECRETS/database}}}}
  rabbitmq: {{rabbitmq: {{port: {}, vhost: site, username: proctor, password_file: SECRETS/broker, prometheus: 'http://127.0.0.1:{}'}}}}
  markup: {{markup: {{via: rabbitmq}}}}
  code: {{code: {{repository: /srv/site, processes: ['^/bin/sleep 1000001']}}}}
  containers: {{docker: {{containers: [{container}]}}}}
",
            self.search.port, self.postgres.port, self.mysql.port, self.rabbitmq.port, self.rabbitmq.prometheus
        )
        .replace("SECRETS", "/run/credentials/proctor.service")
    }
}

/// A repository with one commit.
fn repository(folder: &Path) -> Option<()> {
    let git = program("git")?;
    std::fs::create_dir(folder).expect("it can be made");
    let user = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"];
    for words in [&["init", "-q"][..], &["commit", "-q", "--allow-empty", "-m", "first"]] {
        let mut command = Command::new(&git);
        assert!(command.current_dir(folder).args(user).args(words).env("HOME", folder).status().expect("git runs").success());
    }
    Some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn under_the_rendered_unit_search_databases_markup_code_and_docker_are_seen_whole() {
    let house = House::new("");
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for file in ["proctor.sysusers", "proctor.tmpfiles"] {
        house.write(file, &std::fs::read_to_string(deploy.join(file)).expect("it is there"));
    }
    let (Some(docker), Some(())) = (stack("docker.sock"), repository(&house.path("site"))) else { return };
    let Some(host) = Host::boot_with(&house, "", &["-v", &format!("{}:/srv/docker.sock", docker.display())]) else { return };
    host.state(&["starting"]).await;
    host.is_up().await;
    // Their processes are this host's; what they listen at is the container's.
    let started = tokio::task::block_in_place(|| {
        host.network().within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(Services::start())
        })
    });
    let Some(services) = started else { return };
    house.write(
        "installed.yml",
        &format!(
            "control: {{socket: /run/proctor/control.sock}}\nstate: {{path: /var/lib/proctor/state.db}}\n\
             defaults: {{interval: 5s, timeout: 5s}}\nstartup: {{first_look: 0s, after_boot: 0s}}\nprobes:\n{}",
            services.probes(host.name())
        ),
    );
    // Docker's socket belongs to its group here as on a host; behind it is the engine of this container itself.
    let script = "set -e; cd /house; p=/usr/local/bin/proctor; units=/etc/systemd/system
        # As systemd does it where it boots a host: else nothing that is mounted for credentials is seen by anybody.
        mount --make-rshared /
        groupadd --system docker
        systemd-sysusers $PWD/proctor.sysusers; systemd-tmpfiles --create $PWD/proctor.tmpfiles
        install -m 640 -g proctor installed.yml /etc/proctor/proctor.yml
        printf hunter2 >/etc/proctor/credentials/database; printf pw-proctor >/etc/proctor/credentials/broker
        cp -r site /srv/site; chmod -R a+rX /srv/site
        printf '[Service]\nExecStart=/bin/sleep 1000001\n' >$units/app.service
        printf '[Socket]\nListenStream=/run/docker.sock\nSocketGroup=docker\nSocketMode=0660\n' >$units/docker.socket
        printf '[Service]\nExecStart=/lib/systemd/systemd-socket-proxyd /srv/docker.sock\n' >$units/docker.service
        $p render systemd --program $p >$units/proctor.service
        mkdir $units/proctor.service.d
        # In a container in which systemd is no real PID 1 this ends as 217/USER (systemd#29656).
        printf '[Service]\nPrivateUsers=no\nExecStartPre=/usr/local/bin/proctor config check\n' >$units/proctor.service.d/container.conf
        systemctl daemon-reload; systemctl start docker.socket app proctor";
    let said = host.run(&["sh", "-c", script]);
    let journal = || host.run(&["journalctl", "--no-pager", "-o", "cat", "-u", "proctor"]);
    assert_eq!(host.show("ActiveState"), "active", "{said}\n{}", journal());
    let told = journal().split_whitespace().collect::<Vec<_>>().join(" ");
    let full = "What proctor may look at (nothing was connected to): full: search, postgres, mysql, rabbitmq, markup, code, containers";
    assert!(told.contains(full) && !told.contains("missing:"), "{told}");
    for probe in ["search", "postgres", "mysql", "rabbitmq", "markup", "code", "containers"] {
        let seen = || async {
            let metrics = host.metrics();
            is_well(probe, &metrics).then_some(metrics)
        };
        let what = format!("{probe} is well: {}", host.metrics());
        let metrics = eventually(&what, MINUTE, seen).await;
        assert!(!metrics.contains(&format!("probe_sight_info{{probe=\"{probe}\"")), "{probe}: {metrics}");
    }
}
