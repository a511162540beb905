//! What lies in `deploy/` for other tools is taken by those tools, and the demo runs.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use proctor::config::Config;
use proctor::model::Problems;
use proctor::model::yaml::{self, Node, Value};
use regex::Regex;

use crate::docs::adapted;
use crate::life::stack;
use crate::support::docker::{Compose, Container, docker};
use crate::support::gunicorn::venv;
use crate::support::nginx::Authority;
use crate::support::process::{eventually, program};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
#[ignore = "starts a whole site: make test-slow"]
fn the_demo_shows_two_mails_and_a_repair_and_leaves_nothing_behind() {
    if venv().is_none() {
        return;
    }
    let tmp = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(tmp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
    let mut command = Command::new("python3");
    command.arg(root().join("deploy/demo")).args(["--proctor", env!("CARGO_BIN_EXE_proctor"), "--only", "memcached"]);
    let output = command.env("TMPDIR", tmp.path()).output().expect("it runs");
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for told in [
        "All 14 targets are well.",
        "FIRST LOOK: watching 14, 14 well, 0 not",
        "FIRING: MemcachedDown on cache",
        "REPAIRED and RESOLVED: MemcachedDown on cache",
        "memcached died",
    ] {
        assert!(text.contains(told), "{told}:\n{text}");
    }
    assert_eq!(std::fs::read_dir(tmp.path()).expect("is there").count(), 0, "its folder is gone");
    let left = Command::new("pgrep").arg("-f").arg(tmp.path()).output().expect("pgrep runs");
    assert_eq!(said(&left), "", "no process is left");
}

/// Has `make image` build it, with the binary of the tests on a base that the tests have.
fn image(socket: &Path, test: &str) -> String {
    let name = format!("proctor-of-{test}-{}", std::process::id());
    let built = Path::new(env!("CARGO_BIN_EXE_proctor")).parent().expect("a folder");
    let mut make = Command::new("make");
    make.arg("image").args(["CARGO=true", "BASE=proctor-systemd"]).arg(format!("BUILT={}", built.display()));
    let output = make.arg(format!("IMAGE={name}")).current_dir(root()).env("DOCKER_HOST", format!("unix://{}", socket.display())).output();
    let output = output.expect("make runs");
    assert!(output.status.success(), "{}", said(&output));
    name
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_runs_as_nobody_on_a_read_only_root_and_its_health_is_its_own() {
    let (Some(socket), Some(_)) = (stack("docker.sock"), stack("systemd-root.tar")) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
    let config = folder.path().join("proctor.yml");
    std::fs::write(&config, "probes: {dead: {tcp: {address: '127.0.0.1:1'}}}\n").expect("is written");
    let image = image(&socket, "one");
    let mount = format!("{}:/etc/proctor/proctor.yml:ro", config.display());
    let container = Container::of_image(
        &socket,
        "proctor-image",
        &[
            &["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "-v", &mount][..],
            &["--health-interval", "1s", "--health-timeout", "5s", "--health-start-period", "0s", "--health-retries", "1"],
        ]
        .concat(),
        &image,
        &["serve"],
    );
    let health = |wanted: &'static str| {
        let container = &container;
        eventually(wanted, Duration::from_secs(60), move || async move {
            (container.inspect("{{.State.Health.Status}}") == wanted).then_some(())
        })
    };
    // The site is not well, and that is not Proctor's illness.
    health("healthy").await;
    let logs = container.cli(&["logs", &container.name]).1;
    assert_eq!(container.cli(&["exec", &container.name, "stat", "-c", "%u %a", "/var/lib/proctor/state.db"]).1, "65532 600", "{logs}");
    // Proctor is well before it has asked anybody.
    eventually("its health says what fails", Duration::from_secs(60), || async {
        let (well, said) = container.cli(&["exec", &container.name, "proctor", "health"]);
        (well && said.contains("1 failing")).then_some(())
    })
    .await;
    // One that hangs answers nobody.
    let pid = container.inspect("{{.State.Pid}}");
    assert!(Command::new("kill").args(["-STOP", &pid]).status().expect("kill runs").success());
    health("unhealthy").await;
    assert!(Command::new("kill").args(["-CONT", &pid]).status().expect("kill runs").success());
    health("healthy").await;
    // It ends in good order when it is told to.
    assert!(container.cli(&["stop", "-t", "20", &container.name]).0);
    assert_eq!(container.inspect("{{.State.ExitCode}}"), "0");
    drop(container);
    assert!(docker(&socket, &["rmi", "-f", &image]).0);
}

/// What stands for the programs of the site: Django answers, nginx is real, the others only run.
const STAND_IN: &str = r#"FROM proctor-systemd
RUN echo 'events {} http { server { listen 8000; location / { return 200 "<title>CourSys</title>"; } } }' >/site.conf
RUN printf '#!/bin/sh\nexec nginx -c /site.conf -g "daemon off;"\n' >/usr/local/bin/gunicorn
RUN printf '#!/bin/sh\nexec sleep infinity\n' | tee /usr/local/bin/celery >/usr/local/bin/memcached
RUN chmod +x /usr/local/bin/*
CMD ["sleep", "infinity"]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn docker_compose_starts_the_site_whole_and_proctor_sees_its_nginx_its_certificate_and_its_503_mode() {
    let (Some(socket), Some(_), Some(_)) = (stack("docker.sock"), stack("systemd-root.tar"), program("docker-compose")) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let copied = |from: &str| std::fs::read_to_string(root().join("deploy").join(from)).expect("it is there");
    std::fs::write(at("Dockerfile"), STAND_IN).expect("is written");
    let stand_in = format!("stand-in-of-tests-{}", std::process::id());
    let (built, told) = docker(&socket, &["build", "-q", "-t", &stand_in, &folder.path().display().to_string()]);
    assert!(built, "{told}");
    let ours = image(&socket, "compose");

    // The ports of this host belong to others, and no registry is to be asked.
    let services = adapted(
        &copied("compose/docker-compose.yml"),
        &[
            ("    ports: [\"80:80\", \"443:443\"]\n", "    command: nginx -g 'daemon off;'\n"),
            ("    ports:\n      - \"127.0.0.1:9797:9797\"\n", ""),
            ("- /etc/letsencrypt:", "- ./letsencrypt:"),
            ("    image: proctor\n", &format!("    image: {ours}\n")),
        ],
    );
    let foreign = Regex::new(r"(?m)^    image: (&site )?[a-z.]+(/[a-z./]+)?(:[0-9.]+)?$").expect("a pattern");
    std::fs::write(at("docker-compose.yml"), &*foreign.replace_all(&services, format!("    image: ${{1}}{stand_in}"))).expect("is written");
    std::fs::write(at("nginx.conf"), copied("compose/nginx.conf")).expect("is written");
    let authority = Authority::new();
    let trusted = [("address: nginx}", "address: nginx, ca_file: /etc/letsencrypt/ca.pem}")];
    std::fs::write(at("proctor.yml"), adapted(&copied("proctor.compose.example.yml"), &trusted)).expect("is written");
    let live = at("letsencrypt/live/coursys.example.org");
    std::fs::create_dir_all(&live).expect("it can be made");
    std::fs::create_dir(at("secrets")).expect("it can be made");
    let (certificate, key) = authority.issue(&["coursys.example.org"], 2040);
    std::fs::write(at("letsencrypt/ca.pem"), &authority.pem).expect("is written");
    std::fs::write(live.join("fullchain.pem"), certificate).expect("is written");
    std::fs::write(live.join("privkey.pem"), key).expect("is written");
    for name in ["proctor-rabbitmq", "proctor-postgres", "proctor-smtp", "postgres"] {
        let secret = at("secrets").join(name);
        std::fs::write(&secret, "hunter2").expect("is written");
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o400)).expect("it is ours");
        std::os::unix::fs::chown(&secret, Some(65532), Some(65532)).expect("who runs docker is root");
    }
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");

    let compose = Compose::up(&socket, "site", folder.path());
    let mut wanted = keys(&read("deploy/compose/docker-compose.yml"), "services");
    for monitoring in ["prometheus", "alertmanager", "grafana"] {
        assert!(wanted.remove(monitoring), "{monitoring} has a profile of its own");
    }
    let (_, running) = compose.run(&["ps", "--services", "--filter", "status=running"]);
    assert_eq!(running.lines().map(str::to_owned).collect::<BTreeSet<_>>(), wanted, "{}", compose.run(&["logs", "--tail", "20"]).1);
    let check = ["exec", "-T", "proctor", "proctor", "check", "--only", "web", "--only", "certs"];
    let well = || async { compose.run(&check).0.then_some(()) };
    let limit = Duration::from_secs(120);
    if tokio::time::timeout(limit, eventually("nginx and its certificate are well", 2 * limit, well)).await.is_err() {
        panic!("{}\n{}", compose.run(&check).1, compose.run(&["logs", "nginx"]).1);
    }
    // What is not there is said, and does not keep the rest from starting.
    let (all, told) = compose.run(&["exec", "-T", "proctor", "proctor", "check", "--only", "db", "--only", "app"]);
    assert!(!all && told.contains("refused"), "{told}");

    assert!(compose.run(&["exec", "-T", "nginx", "touch", "/status/503"]).0);
    let ask = "exec 3<>/dev/tcp/127.0.0.1/9797; printf 'GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3; cat <&3";
    let maintained = || async {
        let metrics = compose.run(&["exec", "-T", "proctor", "bash", "-c", ask]).1;
        let shows = |line: &str| metrics.lines().any(|shown| shown.starts_with(line) && shown.ends_with(" 1"));
        (shows("nginx_site_maintenance{") && shows("proctor_maintenance_active")).then_some(())
    };
    eventually("the 503 mode is seen", limit, maintained).await;
    assert!(compose.run(&check).0, "it is well on purpose");
    drop(compose);
    assert!(docker(&socket, &["rmi", "-f", &ours, &stand_in]).0);
}

fn read(path: &str) -> Node {
    let text = std::fs::read_to_string(root().join(path)).expect("it is there");
    let mut problems = Problems::default();
    let node = yaml::parse(&text, &mut problems);
    node.unwrap_or_else(|| panic!("{path} is YAML"))
}

fn keys(node: &Node, key: &str) -> BTreeSet<String> {
    let Value::Mapping(entries) = &node.value else { panic!("a mapping") };
    let (_, inner) = entries.iter().find(|(name, _)| name.text == key).unwrap_or_else(|| panic!("{key} is there"));
    let Value::Mapping(inner) = &inner.value else { panic!("{key} is a mapping") };
    inner.iter().map(|(name, _)| name.text.clone()).collect()
}

#[test]
fn docker_compose_takes_the_site_and_every_host_of_its_configuration_is_a_service_of_it() {
    let Some(compose) = program("docker-compose") else { return };
    let folder = root().join("deploy/compose");
    let output = Command::new(compose).current_dir(folder).args(["--profile", "monitoring", "config"]).output().expect("it runs");
    assert!(output.status.success(), "{}", said(&output));

    let services = keys(&read("deploy/compose/docker-compose.yml"), "services");
    let path = root().join("deploy/proctor.compose.example.yml");
    let text = std::fs::read_to_string(&path).expect("it is there");
    Config::from_text(&path, &text).unwrap_or_else(|problems| panic!("{problems:?}"));
    // What is commented out is right as well.
    let uncommented = Regex::new(r"(?m)^(  )?# (actions:|  [a-z ]|site:$|  docker:)").expect("a pattern").replace_all(&text, "$1$2");
    let config = Config::from_text(&path, &uncommented).unwrap_or_else(|problems| panic!("{problems:?}\n{uncommented}"));
    assert_eq!((config.actions.0.len(), uncommented.contains("\n    docker: {project: coursys")), (1, true), "{uncommented}");
    let host = Regex::new(r#"(?:address: "|url: "http://|status: "http://|listen: "|[{ ]host: |address: )([a-z]+)\b"#).expect("a pattern");
    let (_, probes) = text.split_once("\nprobes:\n").expect("probes");
    let hosts: BTreeSet<String> = host.captures_iter(probes).map(|found| found[1].to_owned()).collect();
    assert!(hosts.len() > 5 && hosts.is_subset(&services), "{hosts:?} of {services:?}");
    let listed = Regex::new(r"services: \[([^\]]+)\]").expect("a pattern").captures(&uncommented).expect("the services")[1].to_owned();
    let listed: BTreeSet<String> = listed.split(", ").map(str::to_owned).collect();
    assert!(listed.is_subset(&services), "{listed:?}");
}

#[test]
fn prometheus_alertmanager_and_grafana_take_what_is_for_them() {
    let check = |name: &str, arguments: &[&str], file: &str| {
        let Some(program) = program(name) else { return };
        let output = Command::new(program).args(arguments).arg(root().join(file)).output().expect("it runs");
        assert!(output.status.success(), "{file}: {}", said(&output));
    };
    check("promtool", &["check", "config"], "deploy/prometheus/prometheus.yml");
    check("amtool", &["check-config"], "deploy/alertmanager/alertmanager.yml");
    // Both are read by a library of YAML that is not ours, and say what Grafana's documentation wants.
    let script = "import sys, yaml; a, b = (yaml.safe_load(open(file)) for file in sys.argv[1:]); \
        assert a['apiVersion'] == b['apiVersion'] == 1; \
        assert {'name', 'type', 'access', 'url'} <= a['datasources'][0].keys(); \
        assert {'name', 'type', 'options'} <= b['providers'][0].keys() and b['providers'][0]['options']['path']";
    let mut python = Command::new("/usr/bin/python3")
        .args(["-", "deploy/grafana/datasource.yml", "dashboards/provisioning/proctor.yml"])
        .current_dir(root())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("python runs");
    python.stdin.take().expect("is piped").write_all(script.as_bytes()).expect("it reads");
    let output = python.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", said(&output));
}
