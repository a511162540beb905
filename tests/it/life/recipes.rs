//! The recipes of `docs/recipes.md`, read out of the page and tried: real services as units of a real systemd, which a
//! Proctor under its rendered unit restarts as its own user, by the rule that it renders for polkit.

use std::path::Path;
use std::process::Command;

use super::House;
use super::container::{Host, MINUTE};
use crate::docs::{adapted, block};
use crate::support::docker::{Compose, docker};
use crate::support::gunicorn::venv;
use crate::support::memcached::Daemon;
use crate::support::nginx::{Authority, Nginx};
use crate::support::process::{eventually, free_port, program};
use crate::support::proctor::Proctor;
use crate::support::smtp::Sink;
use crate::support::systemd::stack;

const PAGE: &str = include_str!("../../../docs/recipes.md");

/// Returns the blocks of the page in this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let found: Vec<&str> = PAGE.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!found.is_empty(), "{language}");
    found
}

#[test]
fn every_action_of_the_recipes_is_for_an_alert_of_a_probe_beside_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "x").expect("is written");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
    let mut acting = 0;
    for block in blocks("yaml") {
        let path = folder.path().join("proctor.yml");
        let text = block.replace("/run/credentials/proctor.service/rabbitmq", &secret.display().to_string());
        std::fs::write(&path, text).expect("is written");
        let output = Command::new(env!("CARGO_BIN_EXE_proctor")).args(["config", "check"]).arg(&path).output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !told.contains("is for no alert"), "{block}\n{told}");
        acting += block.matches("mode: act").count();
    }
    assert_eq!(acting, 7, "actions were looked at");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_503_mode_nothing_is_mailed_until_it_is_over_and_one_that_was_forgotten_is() {
    let Some(nginx) = Nginx::start().await else { return };
    let cache = free_port();
    let Some(memcached) = Daemon::start(cache).await else { return };
    let sink = Sink::start().await;
    let mark = nginx.folder().join("503");
    let file = mark.display().to_string();
    nginx.configure(&block("recipes.md", "nginx", 0, &[("/coursys/503", &file)]));
    nginx.reload().await;
    let sites = format!("coursys.example.org:{}/\"], address: 127.0.0.1, ca_file: '{}'", nginx.https, nginx.ca_file().display());
    let more = [("/coursys/503", file.as_str()), ("settle: 3m", "settle: 2s"), ("coursys.example.org/\"]", &sites)];
    let sections = block("recipes.md", "yaml", 0, &more) + &format!("  cache:\n    memcached: {{address: '127.0.0.1:{cache}'}}\n");
    let proctor = Proctor::configured(sink.port, &sections).built_in_rules().started();
    let page = format!("probe=\"web\",target=\"https://coursys.example.org:{}/\"}}", nginx.https);
    let shows = async |line: String| proctor.shows(&line, MINUTE).await;
    shows(format!("nginx_site_maintenance{{{page} 0")).await;
    shows("memcached_up{probe=\"cache\"} 1".to_owned()).await;

    std::fs::write(&mark, "").expect("is written");
    shows(format!("nginx_site_maintenance{{{page} 1")).await;
    shows(format!("probe_success{{{page} 1")).await;
    shows("proctor_maintenance_active 1".to_owned()).await;
    drop(memcached);
    shows("proctor_alerts{state=\"firing\"} 1".to_owned()).await;
    // It fires for as long as a mail takes several times over, and none comes.
    let turns = || async {
        let metrics = proctor.metrics().await?;
        metrics.lines().find_map(|line| line.strip_prefix("proctor_rule_evaluations_total")?.rsplit_once(' ')?.1.parse::<f64>().ok())
    };
    let begin = eventually("rules are evaluated", MINUTE, turns).await;
    eventually("and again", MINUTE, || async { turns().await.filter(|now| *now >= begin + 8.0).map(drop) }).await;
    assert!(sink.mails().is_empty(), "{:?}", sink.mails());

    std::fs::remove_file(&mark).expect("it is ours");
    let mails = sink.wait_for(2, MINUTE).await;
    assert!(mails.iter().all(|mail| mail.header("Subject").contains("MemcachedDown")), "{mails:?}");
    shows(format!("nginx_site_maintenance{{{page} 0")).await;
    shows("proctor_maintenance_active 0".to_owned()).await;

    proctor.configure(&proctor.folder.path().join("state.db"), sink.port, &adapted(&sections, &[("max: 4h", "max: 2s")]));
    proctor.process.as_ref().expect("it runs").signal("HUP");
    std::fs::write(&mark, "").expect("is written");
    let overdue = || async { sink.mails().into_iter().find(|mail| mail.text.contains("MAINTENANCE OVERDUE")) };
    let mail = eventually("that it was forgotten is mailed", MINUTE, overdue).await;
    assert!(mail.text.contains(&file), "{}", mail.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_compose_service_that_is_unhealthy_is_restarted_and_no_other() {
    let (Some(socket), Some(_)) = (stack("docker.sock"), program("docker-compose")) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    // Well until somebody takes its file away, which a start brings back.
    let services = "version: '3.8'
services:
  worker: &worker
    image: proctor-busybox
    network_mode: none
    restart: unless-stopped
    command: [/bin/sh, -c, \"trap 'exit 0' TERM; : >/well; while :; do sleep 0.1; done\"]
    healthcheck: {test: [CMD, /bin/sh, -c, '[ -e /well ]'], interval: 1s, retries: 1}
  other: *worker
";
    std::fs::write(folder.path().join("docker-compose.yml"), services).expect("is written");
    let compose = Compose::up(&socket, "recipe", folder.path());
    let started = |service: &str| {
        let (_, id) = compose.run(&["ps", "-q", service]);
        docker(&socket, &["inspect", "-f", "{{.State.StartedAt}}", id.trim()]).1
    };
    let (worker, other) = (started("worker"), started("other"));
    let sink = Sink::start().await;
    let last = PAGE.matches("```yaml\n").count() - 1;
    // Nor is it waited for what somebody has just started.
    let quick = "    mode: act\n    firing_for: 0s\n    limit: {cooldown: 1s}\n";
    let sections =
        block("recipes.md", "yaml", last, &[("project: coursys", &format!("project: {}", compose.project)), ("    mode: act\n", quick)]);
    let proctor = Proctor::configured(sink.port, &sections).built_in_rules();
    let proctor = proctor.env("DOCKER_HOST", format!("unix://{}", socket.display())).started();
    proctor.shows("docker_container_health{", 2 * MINUTE).await;
    proctor.shows("probe_success{probe=\"worker\",target=\"worker\"} 1", 2 * MINUTE).await;
    assert!(compose.run(&["exec", "-T", "worker", "/bin/busybox", "rm", "/well"]).0);
    let done = format!("restart-worker (docker:{}/worker) repaired", compose.project);
    let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let repaired = || async { sink.mails().into_iter().find(|mail| flat(&mail.text).contains(&done)) };
    let within = 3 * MINUTE;
    if tokio::time::timeout(within, eventually("the repair is mailed", 2 * within, repaired)).await.is_err() {
        panic!("{}\n{:?}", proctor.log(), sink.mails().iter().map(|mail| &mail.text).collect::<Vec<_>>());
    }
    assert_ne!(started("worker"), worker);
    assert_eq!(started("other"), other);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts a whole site and breaks it six times: make test-slow"]
async fn the_recipes_repair_real_services_under_systemd() {
    let (Some(venv), Some(_), Some(keygen)) = (venv(), program("rabbitmqctl"), program("ssh-keygen")) else { return };
    let house = House::new("");
    std::fs::set_permissions(house.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
    let folder = house.path("").display().to_string().trim_end_matches('/').to_owned();
    let site = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stack/site");
    // What is in the certificate's files and what is served.
    let authority = Authority::new();
    let renew = || {
        let (certificate, key) = authority.issue(&["coursys.example.org"], 2040);
        house.write("fullchain.pem", &certificate);
        house.write("site.key", &key);
    };
    renew();
    house.write("ca.pem", &authority.pem);
    for key in ["host", "key"] {
        assert!(
            Command::new(&keygen).args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(house.path(key)).status().expect("it runs").success()
        );
    }
    std::fs::copy(house.path("key.pub"), house.path("keys")).expect("it is there");
    house.write(
        "sshd",
        &format!(
            "Port 2222\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/keys\nStrictModes no\nUsePAM no\nPidFile none\nUseDNS no\n"
        ),
    );
    house.write("rabbit.conf", "listeners.tcp.default = 127.0.0.1:5672\n");
    house.write("rabbit-plugins", "[].");
    let unit = |name: &str, lines: &str| house.write(&format!("{name}.service"), &format!("[Service]\nUMask=0022\n{lines}\n"));
    // Services of this host run in its files, and in the container's network and processes.
    let hosted = format!("RootDirectory=/host\nMountAPIVFS=yes\nBindPaths={folder}\nTimeoutStopSec=5\nEnvironment=TMPDIR={folder}\n");
    unit("memcached", &format!("{hosted}ExecStart=/usr/bin/memcached -u nobody -l 127.0.0.1 -p 11211"));
    unit("sshd", &format!("{hosted}RuntimeDirectory=sshd\nExecStart=/usr/sbin/sshd -D -e -f {folder}/sshd"));
    let rabbit = ["MNESIA_BASE=mnesia", "LOG_BASE=log", "CONFIG_FILE=rabbit", "ENABLED_PLUGINS_FILE=rabbit-plugins", "PID_FILE=rabbit-pid"]
        .map(|setting| {
            setting.split_once('=').map(|(name, file)| format!("Environment=RABBITMQ_{name}={folder}/{file}\n")).unwrap_or_default()
        })
        .concat();
    unit(
        "rabbitmq",
        &format!(
            "{hosted}{rabbit}Environment=HOME={folder} RABBITMQ_NODENAME=test@localhost\nExecStart=/usr/lib/rabbitmq/bin/rabbitmq-server"
        ),
    );
    let python = format!(
        "{hosted}Environment=SITE_BROKER=amqp://guest:guest@127.0.0.1:5672// SITE_STORAGE=dumb C_FORCE_ROOT=1 PYTHONDONTWRITEBYTECODE=1\n\
         WorkingDirectory={site}\n"
    );
    let celery = format!("{}/bin/celery", venv.display());
    let multi = |verb: &str| format!("{celery} multi {verb} email fast --pidfile={folder}/%%n.pid --logfile={folder}/%%n.log");
    unit(
        "celery",
        &format!(
            "{python}Type=forking\nExecStart={} -A periodic -Q:email email -Q:fast fast -c 1\nExecStop={}",
            multi("start"),
            multi("stopwait")
        ),
    );
    unit("celerybeat", &format!("{python}ExecStart={celery} -A periodic beat --pidfile= --schedule {folder}/beat-schedule"));
    let bind = format!("{}/bin/gunicorn --no-control-socket --workers 2 --bind 127.0.0.1:8000 coursys:application", venv.display());
    unit("gunicorn", &format!("{python}ExecStart={bind}"));
    let tunnel = format!("-p 2222 -i {folder}/key -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@127.0.0.1");
    let tunnel = adapted(
        blocks("ini")[0],
        &[
            ("[Service]\nUser=tunnel\n", &format!("[Service]\n{hosted}")),
            ("localhost:50000", "localhost:2222"),
            ("tunnel@db.example.org", &tunnel),
        ],
    );
    house.write("tunnel-csrpt.service", &tunnel);
    house.write(
        "site.conf",
        &format!(
            "server {{ listen 127.0.0.1:443 ssl; server_name coursys.example.org; ssl_certificate {folder}/fullchain.pem; \
             ssl_certificate_key {folder}/site.key; return 200; }}\n"
        ),
    );
    // The snippets of the page in one file: its probes, then its actions, of this host's places and without waiting, also not
    // for what was just started.
    let of = |key: &str| -> String {
        let units = blocks("yaml").into_iter().filter(|block| block.contains("systemd:"));
        let (first, second) = ("probes:\n", "actions:\n");
        units
            .filter_map(|block| {
                block.split_once(first)?.1.split_once(second).map(|(probes, actions)| if key == first { probes } else { actions })
            })
            .collect()
    };
    let actions = of("actions:\n").replace("    mode: act\n", "    mode: act\n    firing_for: 0s\n    limit: {cooldown: 1s}\n");
    let config = format!(
        "control: {{socket: /run/proctor/control.sock}}\nstate: {{path: /var/lib/proctor/state.db}}\ndefaults: {{interval: 2s, timeout: 2s}}\n\
         startup: {{first_look: 0s, after_boot: 0s}}\nrules: {{files: [/etc/proctor/rules/*.yml], interval: 1s}}\nprobes:\n{}actions:\n{actions}",
        of("probes:\n")
    );
    let config = adapted(
        &config,
        &[
            ("vhost: myvhost, username: proctor, password_file: /run/credentials/proctor.service/rabbitmq", "vhost: /"),
            ("[batch, email, fast], canary: {every: 60s}", "[email, fast], canary: {every: 10s}"),
            ("/coursys/status/celerybeat-schedule", &format!("{folder}/beat-schedule")),
            ("max_age: 11m", "max_age: 10s"),
            ("speaks: db2", "speaks: ssh"),
            ("interval: 1m", "interval: 2s"),
            ("/etc/letsencrypt/live/*/fullchain.pem", &format!("{folder}/fullchain.pem")),
            (
                "served: [\"coursys.example.org:443\"]",
                &format!("served: [\"coursys.example.org:443\"], address: 127.0.0.1, ca_file: {folder}/ca.pem"),
            ),
        ],
    );
    house.write("installed.yml", &config);
    std::fs::create_dir(house.path("rules")).expect("it can be made");
    for file in glob::glob(concat!(env!("CARGO_MANIFEST_DIR"), "/alerts/*.yml")).expect("a pattern").flatten() {
        let text = std::fs::read_to_string(&file).expect("it is there");
        let quick = text.lines().map(|line| if line.trim_start().starts_with("for: ") { "        for: 1s" } else { line });
        let name = format!("rules/{}", file.file_name().expect("a name").to_string_lossy());
        house.write(&name, &quick.collect::<Vec<_>>().join("\n"));
    }
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    for file in ["proctor.sysusers", "proctor.tmpfiles"] {
        house.write(file, &std::fs::read_to_string(deploy.join(file)).expect("it is there"));
    }

    let here = format!("{folder}:{folder}");
    let Some(host) = Host::boot_with(&house, "", &["-v", "/:/host:ro", "-v", &here]) else { return };
    host.state(&["starting"]).await;
    host.is_up().await;
    let script = "set -e; cd /house; p=/usr/local/bin/proctor; units=/etc/systemd/system
        systemd-sysusers $PWD/proctor.sysusers; systemd-tmpfiles --create $PWD/proctor.tmpfiles
        install -m 640 -g proctor installed.yml /etc/proctor/proctor.yml; cp -r rules /etc/proctor/
        cp site.conf /etc/nginx/conf.d/; cp *.service $units/
        $p render polkit >/etc/polkit-1/rules.d/50-proctor.rules
        $p render systemd --program $p >$units/proctor.service
        mkdir $units/proctor.service.d; printf '[Service]\nPrivateUsers=no\n' >$units/proctor.service.d/container.conf
        systemctl daemon-reload
        systemctl restart nginx; systemctl start memcached sshd rabbitmq gunicorn tunnel-csrpt
        until bash -c ': </dev/tcp/127.0.0.1/5672' 2>/dev/null; do sleep 0.3; done
        systemctl start celery celerybeat proctor";
    let said = host.run(&["sh", "-c", script]);
    let journal = || host.run(&["journalctl", "--no-pager", "-o", "cat", "-n", "40", "-u", "proctor"]);
    assert_eq!(host.show("ActiveState"), "active", "{said}\n{}", journal());
    let well = || async {
        let ask = "exec 3<>/dev/tcp/127.0.0.1/9797; printf 'GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3; cat <&3";
        let metrics = host.run(&["bash", "-c", ask]);
        let outcomes: Vec<&str> = metrics.lines().filter(|line| line.starts_with("probe_success{")).collect();
        let quiet = metrics.contains("proctor_alerts{state=\"firing\"} 0");
        (quiet && outcomes.len() >= 8 && outcomes.iter().all(|line| line.ends_with(" 1"))).then_some(())
    };
    let long = 3 * MINUTE;
    let all_well = async |when: &str| {
        if tokio::time::timeout(long, eventually(when, 2 * long, well)).await.is_err() {
            let check =
                host.run(&["sh", "-c", "proctor check; proctor alert list; journalctl --no-pager -o short -n 60; cat /house/*.log"]);
            panic!("{when}: not all is well: {said}\n{check}");
        }
    };
    all_well("at the beginning").await;

    let main = |unit: &str| host.run(&["systemctl", "show", "-P", "MainPID", unit]);
    for (action, signal, pid) in [
        ("restart-cache", "STOP", main("memcached")),
        ("restart-tunnel", "STOP", main("tunnel-csrpt")),
        ("restart-gunicorn", "KILL", main("gunicorn")),
        ("restart-beat", "STOP", main("celerybeat")),
        ("restart-celery", "KILL", std::fs::read_to_string(house.path("email.pid")).expect("it runs").trim().to_owned()),
        ("reload-nginx", "renewed", String::new()),
    ] {
        if signal == "renewed" {
            renew();
        } else {
            assert_eq!(host.run(&["sh", "-c", &format!("kill -{signal} {pid}")]), "", "{action}");
        }
        let repaired = || async {
            let log = host.run(&["journalctl", "--no-pager", "-o", "cat", "-u", "proctor"]);
            log.lines().any(|line| line.contains(&format!("action=\"{action}\"")) && line.contains("outcome=repaired")).then_some(())
        };
        if tokio::time::timeout(long, eventually(action, 2 * long, repaired)).await.is_err() {
            panic!("{action} has not repaired it: {}", host.run(&["sh", "-c", "proctor action list; proctor alert list; proctor check"]));
        }
        all_well(action).await;
    }
}
