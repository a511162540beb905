//! What the documentation shows to others than Proctor is run by those: nginx, systemd, RabbitMQ, make, curl, a shell.
//! Configurations of Proctor, and whether each command exists: `docs.rs`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::docs::{adapted, block, blocks};
use crate::support::process::{Process, eventually, free_port, program};
use crate::support::proctor::Proctor;
use crate::support::rabbitmq::{OWN, PERMISSIONS, Rabbitmq};
use crate::support::smtp::Sink;
use crate::support::systemd::{inside, stack};
use crate::support::watched::{Watched, well};

const LONG: Duration = Duration::from_secs(60);

/// The blocks of each page, by language, and who runs them: a block that is added is to be run as well.
const RUN: &[(&str, &str, usize, &str)] = &[
    ("README.md", "sh", 3, "make demo, run and test: by hand; curl: acceptance"),
    ("README.md", "text", 1, "a mail of the demo"),
    ("docs/init.md", "sh", 3, "init"),
    ("docs/life.md", "ini", 1, "shown"),
    ("docs/life.md", "json", 1, "shown"),
    ("docs/mail.md", "sh", 4, "shown"),
    ("docs/mail.md", "text", 3, "mails"),
    ("docs/moving.md", "text", 2, "a line of Monit, one of cron: docs"),
    ("docs/probes/beat.md", "sql", 1, "probes_beat_database"),
    ("docs/probes/celery.md", "sh", 1, "shown"),
    ("docs/probes/certificate.md", "sh", 1, "not run: no setfacl on every host"),
    ("docs/probes/docker.md", "ini", 1, "shown"),
    ("docs/probes/docker.md", "nginx", 1, "probes_docker::engine"),
    ("docs/probes/elasticsearch.md", "", 1, "not run: there is no Elasticsearch with its security to be had"),
    ("docs/probes/heartbeat.md", "sh", 2, "shown"),
    ("docs/probes/heartbeat.md", "text", 1, "lines of cron: docs"),
    ("docs/probes/host.md", "text", 1, "a line of cron: docs"),
    ("docs/probes/http.md", "python", 1, "docs"),
    ("docs/probes/mysql.md", "sql", 1, "probes_mysql, but for the two lines that are of MySQL alone"),
    ("docs/probes/nginx.md", "nginx", 2, "shown"),
    ("docs/probes/postgres.md", "sql", 1, "probes_postgres"),
    ("docs/probes/rabbitmq.md", "sh", 2, "shown"),
    ("docs/probes/tunnel.md", "sql", 1, "probes_tunnel"),
    ("docs/recipes.md", "ini", 1, "life::recipes, shown"),
    ("docs/recipes.md", "make", 1, "shown"),
    ("docs/recipes.md", "nginx", 1, "life::recipes"),
    ("docs/recipes.md", "sh", 2, "life::recipes, start"),
    ("docs/recipes.md", "text", 1, "a mail"),
    ("docs/repair.md", "ini", 1, "shown"),
    ("docs/repair.md", "js", 1, "shown"),
    ("docs/repair.md", "sh", 1, "life::container"),
    ("docs/repair.md", "text", 2, "a mail, a request of a webhook"),
    ("docs/rules.md", "sh", 2, "rules::unit"),
    ("docs/rules.md", "text", 1, "what config check prints"),
    ("docs/start.md", "sh", 8, "start, life::first"),
    ("docs/systemd-unit.md", "sh", 2, "life::container"),
    ("docs/systemd-unit.md", "text", 1, "what config check prints"),
    ("docs/web.md", "nginx", 1, "shown"),
    ("docs/web.md", "sh", 1, "shown, but for apt and the question of htpasswd"),
];

#[test]
fn every_block_of_the_documentation_is_known_to_somebody_who_runs_it() {
    let found: Vec<_> = blocks().into_iter().collect();
    let known: BTreeMap<_, _> = RUN.iter().map(|(page, language, count, _)| (((*page).into(), (*language).into()), *count)).collect();
    assert_eq!(found, known.into_iter().collect::<Vec<_>>(), "have a test run what is new, and name it here");
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs a block in a folder, with our own Proctor as `proctor`, on this configuration.
fn shell(folder: &Path, config: Option<&Path>, text: &str, env: &[(&str, &str)]) -> Output {
    let told = |config: &Path| format!("proctor() {{ command proctor --config '{}' \"$@\"; }}\n{text}", config.display());
    let text = config.map_or_else(|| text.to_owned(), told);
    let bin = Path::new(env!("CARGO_BIN_EXE_proctor")).parent().expect("a folder").display().to_string();
    let mut command = Command::new("sh");
    command.current_dir(folder).args(["-euc", &text]).env("PATH", format!("{bin}:{}", std::env::var("PATH").unwrap_or_default()));
    command.env("XDG_STATE_HOME", folder).envs(env.iter().copied()).output().expect("sh runs")
}

/// An nginx whose `http` block is this, once it listens at the port.
async fn nginx(folder: &Path, http: &str, port: u16) -> Option<Process> {
    let root = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let text = format!(
        "daemon off; {root} worker_processes 1; pid nginx.pid; error_log error.log; events {{ worker_connections 64; }}\n\
         http {{ access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;\n\
         {http}\n}}\n"
    );
    std::fs::write(folder.join("nginx.conf"), text).expect("is written");
    let mut command = Command::new(program("nginx")?);
    let process = Process::start(command.arg("-p").arg(folder).args(["-e", "stderr", "-c", "nginx.conf"]), &folder.join("nginx.log"));
    eventually("nginx listens", LONG, || async { TcpStream::connect(("127.0.0.1", port)).await.ok() }).await;
    Some(process)
}

/// Sends a request and returns the answer with its head.
async fn ask(port: u16, request: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    let request = format!("{request} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it takes it");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("it answers");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_the_nginx_of_the_documentation_the_page_is_read_with_a_password_and_the_rest_is_refused() {
    let sink = Sink::start().await;
    let proctor = Proctor::configured(sink.port, "probes: {dead: {tcp: {address: '127.0.0.1:1'}}}\n");
    let config = std::fs::read_to_string(proctor.config()).expect("it is there");
    let named = adapted(&config, &[("{name: coursys}", "{name: coursys, external_url: 'https://status.example.org/proctor/'}")]);
    std::fs::write(proctor.config(), named).expect("is written");
    let proctor = proctor.built_in_rules().started();
    proctor.shows("probe_success{probe=\"dead\"} 0", LONG).await;

    let folder = tempfile::tempdir().expect("a folder");
    let passwords = folder.path().join("passwords").display().to_string();
    std::fs::write(&passwords, "ann:{PLAIN}right\n").expect("is written");
    let shown = block(
        "web.md",
        "nginx",
        0,
        &[("/etc/nginx/proctor.htpasswd", &passwords), ("127.0.0.1:9797", &format!("127.0.0.1:{}", proctor.web))],
    );
    let port = free_port();
    // Whatever name it is asked under: what a stranger's name must not do is Proctor's to say.
    let Some(_nginx) = nginx(folder.path(), &format!("server {{ listen 127.0.0.1:{port} default_server; {shown} }}"), port).await else {
        return;
    };

    let ours = "Host: status.example.org\r\n";
    let login = "Authorization: Basic YW5uOnJpZ2h0\r\n";
    let linked = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    for (request, host, login, headers, wanted) in [
        ("GET /proctor/", ours, "", "", "401"),
        ("GET /proctor/", ours, "Authorization: Basic YW5uOndyb25n\r\n", "", "401"),
        ("GET /proctor/metrics", ours, "", "", "401"),
        ("GET /proctor/", ours, login, "", "200"),
        ("GET /proctor/?still", ours, login, "", "200"),
        ("GET /proctor/metrics", ours, login, "", "200"),
        ("GET /proctor/-/healthy", ours, login, "", "200"),
        ("GET /proctor/", ours, login, linked, "200"),
        // A name that only leads here, a page elsewhere that reads it or posts to it, what is no page.
        ("GET /proctor/", "Host: evil.example\r\n", login, "", "403"),
        ("GET /proctor/", ours, login, "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n", "403"),
        ("POST /proctor/heartbeat/backup", ours, login, "Origin: https://evil.example\r\n", "403"),
        ("POST /proctor/heartbeat/backup", ours, login, "Origin: https://status.example.org\r\n", "401"),
        ("POST /proctor/", ours, login, "", "405"),
        // Proctor has no passwords of its own here.
        ("POST /proctor/change", ours, login, "Origin: https://status.example.org\r\n", "403"),
        ("GET /proctor/..%2fmetrics", ours, login, "", "404"),
        ("GET /", ours, login, "", "404"),
    ] {
        let answer = ask(port, request, &format!("{host}{login}{headers}")).await;
        assert_eq!(answer.split(' ').nth(1), Some(wanted), "{request} {host}{headers}: {answer}");
    }
    let page = ask(port, "GET /proctor/", &format!("{ours}{login}")).await;
    assert!(page.contains("1 of 1 targets fails") && page.contains("content-security-policy: default-src 'none'"), "{page}");
    for link in page.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(link.starts_with('?') || link.starts_with('#') || link.starts_with("data:") || link == "metrics", "relative: {link}");
    }
    // Without the slash it leads to the page all the same.
    let answer = ask(port, "GET /proctor", &format!("{ours}{login}")).await;
    assert!(answer.starts_with("HTTP/1.1 301") && answer.contains("/proctor/\r\n"), "{answer}");
}

#[test]
fn the_lines_for_a_file_of_passwords_make_the_one_that_is_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("web.yml");
    let wanted = block("web.md", "yaml", 2, &[]);
    let hash = wanted.trim().rsplit(' ').next().expect("ends with it");
    let changes = [
        ("sudo apt install apache2-utils\n", ""),
        ("sudo ", ""),
        ("-g proctor ", ""),
        ("/etc/proctor/web.yml", &file.display().to_string()),
        ("htpasswd -nBC 10 ann", &format!("echo 'ann:{hash}'")),
    ];
    let output = shell(folder.path(), None, &block("web.md", "sh", 0, &changes), &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(std::fs::read_to_string(&file).expect("is made"), wanted);
}

#[tokio::test]
async fn the_snippets_for_nginx_give_the_probe_its_counters_and_its_log_format() {
    let folder = tempfile::tempdir().expect("a folder");
    let (port, status) = (free_port(), free_port());
    let server = block("probes/nginx.md", "nginx", 0, &[("127.0.0.1:8099", &format!("127.0.0.1:{status}"))]);
    let format = block("probes/nginx.md", "nginx", 1, &[]);
    let http = format!("{format}{server}server {{ listen 127.0.0.1:{port}; access_log timed.log timed; return 204; }}");
    let Some(_nginx) = nginx(folder.path(), &http, status).await else { return };
    let log = folder.path().join("timed.log").display().to_string();
    // The format of the page's configuration is that of its snippet.
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/probes/nginx.md")).expect("it is there");
    let line = page.lines().find_map(|line| line.trim().strip_prefix("log_format: ")).expect("the page has it");
    let watched = Watched::new(&format!(
        "  web: {{nginx: {{status: 'http://127.0.0.1:{status}/nginx_status', access_logs: ['{log}'], log_format: {line}}}}}"
    ));
    well(&watched.run_target("status").await, true);
    well(&watched.run_target(&log).await, true);
    for _ in 0..3 {
        assert!(ask(port, "GET /", "Host: x\r\nReferer: http://x/\r\n").await.starts_with("HTTP/1.1 204"));
    }
    let counted = || async {
        let result = watched.run_target(&log).await;
        well(&result, true);
        let value = |name: &str| result.samples.iter().filter(|sample| sample.family.name == name).map(|sample| sample.value).sum::<f64>();
        assert_eq!(value("nginx_parse_errors_total") as u32, 0);
        (value("nginx_http_response_count_total") as u32 == 3).then_some(())
    };
    eventually("three requests are counted", LONG, counted).await;
}

#[test]
fn systemd_takes_every_unit_of_the_documentation() {
    if stack("docker.sock").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    // What is not in the container is something that is.
    let mut units = vec![
        ("proctor.service", block("life.md", "ini", 0, &[("/usr/local/bin/proctor serve", "/bin/true"), ("/bin/kill ", "/bin/true ")])),
        ("proctor-docker-proxy.service", block("probes/docker.md", "ini", 0, &[])),
        ("proctor-restart-memcached.service", block("repair.md", "ini", 0, &[("/usr/bin/docker", "/bin/true")])),
        ("tunnel-csrpt.service", block("recipes.md", "ini", 0, &[("/usr/bin/ssh", "/bin/true")])),
    ];
    let uploads =
        block("probes/heartbeat.md", "sh", 0, &[("/etc/systemd/system/", ""), ("systemctl enable --now proctor-uploads.timer\n", "")]);
    let config = folder.path().join("proctor.yml");
    std::fs::write(&config, block("probes/heartbeat.md", "yaml", 1, &[])).expect("is written");
    let output = shell(folder.path(), Some(&config), &uploads, &[]);
    assert!(output.status.success(), "{}", said(&output));
    for unit in ["proctor-uploads.service", "proctor-uploads.timer"] {
        let text = std::fs::read_to_string(folder.path().join(unit)).expect("is written");
        units.push((unit, text.replace(env!("CARGO_BIN_EXE_proctor"), "/bin/true").replace("/usr/bin/proctor", "/bin/true")));
    }
    let place = format!("/tmp/shown-{}", std::process::id());
    let script = units.iter().map(|(name, text)| format!("cat >{place}/{name} <<'END'\n{text}\nEND\n")).collect::<String>();
    let (well, told) = inside(&["sh", "-ec", &format!("mkdir {place}\n{script}systemd-analyze verify {place}/*; rm -r {place}")]);
    assert!(well && told.trim().is_empty(), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lines_for_rabbitmq_give_what_the_tests_of_its_probes_use() {
    let Some(rabbitmq) = Rabbitmq::start(false).await else { return };
    rabbitmq.ctl(&["add_vhost", "myvhost"]);
    for (page, number, wanted) in
        [("probes/rabbitmq.md", 0, OWN), ("probes/rabbitmq.md", 1, PERMISSIONS), ("probes/celery.md", 0, PERMISSIONS)]
    {
        let output = rabbitmq.shell(&format!("set -e\n{}", block(page, "sh", number, &[])));
        assert!(output.status.success(), "{page}: {}", said(&output));
        let listed = rabbitmq.ctl(&["-q", "list_permissions", "-p", "myvhost", "--formatter", "json"]);
        let listed: Value = serde_json::from_str(&listed).expect("is JSON");
        let of = listed.as_array().and_then(|users| users.iter().find(|user| user["user"] == "proctor")).expect("is there").clone();
        assert_eq!([&of["configure"], &of["write"], &of["read"]], wanted, "{page}");
    }
    assert!(rabbitmq.ctl(&["list_users"]).contains("[monitoring]"));
}

#[test]
fn the_deploy_of_the_recipe_is_held_by_make_also_where_proctor_does_not_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let makefile = block("recipes.md", "make", 0, &[]) + "new-code:\n\ttouch deployed\n";
    std::fs::write(folder.path().join("Makefile"), makefile).expect("is written");
    let output = shell(folder.path(), None, "make deploy", &[]);
    assert!(output.status.success() && folder.path().join("deployed").exists(), "{}", said(&output));
}

#[test]
fn the_rule_for_polkit_is_the_one_that_is_rendered() {
    let folder = tempfile::tempdir().expect("a folder");
    let action =
        |unit: &str, alert: &str| format!("{{systemd: {{unit: {unit}, verb: restart}}, matchers: ['alertname=\"{alert}\"'], mode: act}}");
    let config = format!(
        "probes: {{app: {{gunicorn: {{listen: '127.0.0.1:8000', host_header: x}}}}, csrpt: {{tunnel: {{address: '127.0.0.1:50000', speaks: db2}}}}}}\n\
         actions: {{a: {}, b: {}}}\n",
        action("gunicorn.service", "GunicornDown"),
        action("tunnel-csrpt.service", "TunnelDown")
    );
    std::fs::write(folder.path().join("proctor.yml"), config).expect("is written");
    let output = shell(folder.path(), None, "proctor --config proctor.yml render polkit", &[]);
    assert!(output.status.success(), "{}", said(&output));
    // But for comments and white space.
    let bare = |text: &str| {
        let lines = text.lines().filter_map(|line| line.split("//").next());
        lines.flat_map(str::chars).filter(|c| !c.is_whitespace()).collect::<String>()
    };
    assert_eq!(bare(&block("repair.md", "js", 0, &[])), bare(&String::from_utf8_lossy(&output.stdout)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_check_prints_as_json_has_the_shape_that_is_documented() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let Some(_cache) = crate::support::memcached::Daemon::start(port).await else { return };
    let config = format!(
        "site: {{name: coursys}}\nprobes: {{cache: {{memcached: {{address: '127.0.0.1:{port}'}}}}, csrpt: {{tcp: {{address: '127.0.0.1:{}'}}}}}}\n",
        free_port()
    );
    std::fs::write(folder.path().join("proctor.yml"), config).expect("is written");
    let output = shell(folder.path(), None, "proctor --config proctor.yml check --format json", &[]);
    // Keys, what is null, and what does not change from run to run.
    fn shape(value: &Value) -> Value {
        match value {
            Value::Object(entries) => {
                let kept = ["site", "probe", "kind", "state", "reason"];
                let each = |(key, value): (&String, &Value)| {
                    (key.clone(), if kept.contains(&key.as_str()) { value.clone() } else { shape(value) })
                };
                entries.iter().map(each).collect()
            }
            Value::Array(list) => list.iter().map(shape).collect(),
            Value::String(_) => "text".into(),
            Value::Number(number) => {
                if number.is_f64() {
                    0.5.into()
                } else {
                    number.clone().into()
                }
            }
            other => other.clone(),
        }
    }
    let documented: Value = serde_json::from_str(&block("life.md", "json", 0, &[])).expect("is JSON");
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("is JSON: {}", said(&output)));
    assert_eq!(shape(&documented), shape(&printed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_page_about_mail_are_taken_in_their_order_by_a_proctor_that_sees_memcached_down() {
    let sink = Sink::start().await;
    let dead = free_port();
    let probes = format!("probes:\n  cache: {{memcached: {{address: '127.0.0.1:{dead}'}}}}\n");
    let proctor = Proctor::configured(sink.port, &probes).built_in_rules().started();
    sink.wait_for(2, LONG).await;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("Makefile"), "new-code:\n\ttouch deployed\n").expect("is written");
    let run = |text: &str| {
        let output = tokio::task::block_in_place(|| shell(folder.path(), Some(&proctor.config()), text, &[]));
        assert!(output.status.success(), "{text}: {}", said(&output));
        said(&output)
    };
    let held = run(&block("mail.md", "sh", 0, &[]));
    assert!(held.contains("new database") && folder.path().join("deployed").exists(), "{held}");
    // The number of a silence is known once it is there.
    let silences = block("mail.md", "sh", 1, &[("proctor silence expire 127af372\n", "")]);
    let listed = run(&silences);
    let id =
        regex::Regex::new(r"\b[0-9a-f]{8}\b").expect("a pattern").find(&listed).unwrap_or_else(|| panic!("{listed}")).as_str().to_owned();
    run(&block("mail.md", "sh", 1, &[("127af372", &id)]));
    let told = run(&block("mail.md", "sh", 2, &[]));
    assert!(told.contains("MemcachedDown"), "{told}");
    let told = run(&block("mail.md", "sh", 3, &[]));
    assert!(told.contains("MemcachedDown"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reports_over_http_of_the_documentation_are_taken_from_curl() {
    if program("curl").is_none() {
        return;
    }
    let (sink, folder) = (Sink::start().await, tempfile::tempdir().expect("a folder"));
    let token = crate::support::database::secret(folder.path(), "a-token-of-more-than-sixteen");
    let probes = format!("probes:\n  backup: {{heartbeat: {{every: 1h, token_file: '{}'}}}}\n", token.display());
    let proctor = Proctor::configured(sink.port, &probes).built_in_rules().started();
    proctor.shows("heartbeat_overdue{probe=\"backup\"} 0", LONG).await;
    std::fs::write(folder.path().join("log"), "the disk is full\n").expect("is written");
    let shown = block(
        "probes/heartbeat.md",
        "sh",
        1,
        &[("127.0.0.1:9797", &format!("127.0.0.1:{}", proctor.web)), ("curl ", "curl -sS --fail-with-body ")],
    );
    let output = tokio::task::block_in_place(|| shell(folder.path(), None, &shown, &[("TOKEN", "a-token-of-more-than-sixteen")]));
    assert!(output.status.success(), "{}", said(&output));
    proctor.shows("heartbeat_failed{probe=\"backup\"} 1", LONG).await;
    proctor.shows("heartbeat_failed_runs_total{probe=\"backup\"} 1", LONG).await;
}
