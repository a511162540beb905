//! Every mistake of a configuration in one run, each with its place.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use proctor::config::Config;

use crate::support::memcached::memcached;
use crate::support::process::free_port;
use crate::support::proctor::Proctor;
use crate::support::smtp::Sink;

fn mistakes(text: &str) -> String {
    let problems = Config::from_text(Path::new("proctor.yml"), text).expect_err("it has mistakes");
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

#[test]
fn three_kinds_of_mistakes_in_three_sections_are_nine_in_one_run() {
    let text = "probes:
  a:
    tcp: {address: 5}
    intervall: 3s
    depends_on: [nowhere-a]
actions:
  b:
    command: {argv: [/bin/true]}
    matchers: ['alertname=X']
    mode: perhaps
    firing_fro: 1m
    verify: {probes: [nowhere-b]}
  c:
    systemd: {unit: x, verb: restart}
    matchers: ['alertname=X']
    limits: {attempts: 3}
    verify: {probes: [a, nowhere-c]}
";
    assert_eq!(mistakes(text).lines().count(), 9, "{}", mistakes(text));
    insta::assert_snapshot!(mistakes(text));
}

#[test]
fn what_contradicts_itself_is_named() {
    let found = mistakes(
        r#"
defaults: {interval: 10s, timeout: 30s}
probes:
  none: {interval: 1m}
  two: {tcp: {address: "127.0.0.1:1"}, memcached: {address: "127.0.0.1:2"}}
  a: {tcp: {address: "127.0.0.1:1"}, timeout: 1s, depends_on: [b]}
  b: {tcp: {address: "127.0.0.1:1"}, timeout: 1s, depends_on: [a]}
  "no good name": {tcp: {address: "127.0.0.1:1"}, timeout: 1s, interval: 1ms}
"#,
    );
    // Every kind of probe is named; which there are grows.
    insta::assert_snapshot!(found.replace(&proctor::probe::KINDS.join(", "), "(all kinds)"));
}

#[test]
fn a_mistake_of_one_kind_hides_none_of_another() {
    let wrong_type = "web: {listen: everywhere}\n";
    let others = "probes:
  none: {interval: 1m}
  \"no good name\": {tcp: {address: \"127.0.0.1:1\"}, interval: 1ms}
  two: {tcp: {address: \"127.0.0.1:1\"}, memcached: {address: \"127.0.0.1:2\"}, depends_on: [nowhere]}
actions:
  \"no name\": {command: {argv: [/bin/true]}, matchers: ['a=b'], limit: {attempts: 0}}
notify: {admins: [], smtp: {host: x, username: u}}
heartbeat_out: {url_file: /x, every: 10ms}
";
    let alone = mistakes(others);
    let shifted = mistakes(&format!("{others}{wrong_type}"));
    assert!(alone.lines().count() >= 10, "{alone}");
    for line in alone.lines() {
        assert!(shifted.contains(line), "{line} is not said beside another mistake:\n{shifted}");
    }
    assert_eq!(shifted.lines().count(), alone.lines().count() + 1, "and none twice: {shifted}");
    // Of defaults that are wrong nobody knows what is meant: nothing is guessed.
    let unknown = mistakes("defaults: {interval: soon}\nprobes: {a: {tcp: {address: \"127.0.0.1:1\"}, timeout: 20s}}\n");
    assert_eq!(unknown.lines().count(), 1, "{unknown}");
}

#[test]
fn what_a_file_alone_does_not_show_has_its_place_too_and_comes_in_one_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proctor.yml");
    let text = "probes:
  page: {http: {url: \"http://127.0.0.1/\", headers: {\"X Y\": z}}}
  app: {gunicorn: {listen: \"127.0.0.1:8000\", host_header: a.example, path: \"no slash\"}}
actions:
  call: {webhook: {url_file: /nowhere/url}, matchers: ['a=b']}
";
    std::fs::write(&path, text).expect("it can be written");
    for arguments in [["config", "check"], ["serve", ""]] {
        let arguments = arguments.iter().filter(|argument| !argument.is_empty());
        let output = Command::new(env!("CARGO_BIN_EXE_proctor")).arg("--config").arg(&path).args(arguments).output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        for place in ["proctor.yml:2:3: probe \"page\": ", "proctor.yml:3:3: probe \"app\": path: ", "proctor.yml:5:3: action \"call\": "] {
            assert!(told.contains(place), "{place}: {told}");
        }
    }
}

#[test]
fn a_probe_that_is_asked_over_another_names_a_rabbitmq_probe() {
    let text = "probes:\n  rabbit: {rabbitmq: {}}\n  cache: {memcached: {address: \"127.0.0.1:1\"}}\n  a: {markup: {via: rabit}}\n  b: {beat: {via: cache, task: t}}\n";
    let wanted = "proctor.yml:4:21: unknown rabbitmq probe \"rabit\"; did you mean \"rabbit\"?\n\
                  proctor.yml:5:19: unknown rabbitmq probe \"cache\"; known here: rabbit\n";
    assert_eq!(mistakes(text), wanted);
    // Also where the file does not decode for another mistake.
    assert_eq!(mistakes(&format!("{text}web: 7\n")).lines().filter(|line| line.contains("unknown rabbitmq probe")).count(), 2);
    // It is a dependency, so that it can be part of a circle.
    let circle = "probes:\n  rabbit: {rabbitmq: {}, depends_on: [a]}\n  a: {markup: {via: rabbit}}\n";
    assert!(mistakes(circle).contains("probes depend on each other in a circle: a -> rabbit -> a"), "{}", mistakes(circle));
}

#[test]
fn what_is_no_file_of_a_person_is_refused_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    assert!(Command::new("mkfifo").arg(path("fifo")).status().expect("mkfifo runs").success());
    let big = std::fs::File::create(path("big")).expect("it can be written");
    big.set_len(1 << 30).expect("a sparse file");
    std::fs::write(path("bytes"), b"site: \xff\xfe").expect("it can be written");
    let mut laughs = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (name, of) in [("b", "a"), ("c", "b"), ("d", "c"), ("e", "d"), ("f", "e"), ("g", "f"), ("h", "g")] {
        laughs += &format!("{name}: &{name} [{}]\n", vec![format!("*{of}"); 10].join(","));
    }
    std::fs::write(path("laughs"), laughs).expect("it can be written");
    std::fs::create_dir(path("folder")).expect("it can be made");
    symlink("/dev/zero", path("device")).expect("it can be made");
    let begin = Instant::now();
    for (name, wanted) in [
        ("fifo", "expected a regular file"),
        ("folder", "expected a regular file"),
        ("device", "expected a regular file"),
        ("big", "expected at most 1048576 bytes"),
        ("bytes", "expected UTF-8"),
        ("laughs", "expected at most 100000 nodes"),
        ("absent", "cannot read this file"),
    ] {
        let problems = Config::load(&path(name)).expect_err(name);
        assert!(problems[0].message.contains(wanted), "{name}: {problems:?}");
    }
    // Long for a debug build on a busy machine; what dwells would take minutes.
    assert!(begin.elapsed() < Duration::from_secs(30), "at once");
}

#[test]
fn the_example_names_every_key_and_loads() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/proctor.example.yml");
    if let Err(problems) = Config::load(&file) {
        panic!("{}", problems.iter().map(|problem| format!("{problem}\n")).collect::<String>());
    }
    let text = std::fs::read_to_string(&file).expect("it is there");
    for key in proctor::config::sections().into_iter().flat_map(|(_, keys)| keys).map(|key| key.name) {
        assert!(
            text.lines().any(|line| line.trim_start().trim_start_matches("# ").starts_with(&format!("{key}:"))
                || line.contains(&format!("{{{key}:"))
                || line.contains(&format!(", {key}:"))),
            "the example does not name {key}"
        );
    }
}

#[test]
fn the_example_as_it_is_is_right_on_a_host_that_has_nothing_of_it() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/proctor.example.yml");
    let output = Command::new(env!("CARGO_BIN_EXE_proctor")).args(["config", "check", example]).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_command_prints_every_mistake_and_ends_with_1() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proctor.yml");
    std::fs::write(&path, "stie: {}\nweb: {listen: everywhere}\n").expect("it can be written");
    let output = Command::new(env!("CARGO_BIN_EXE_proctor")).args(["config", "check"]).arg(&path).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr).replace(&path.display().to_string(), "proctor.yml");
    assert_eq!(output.status.code(), Some(1), "{told}");
    insta::assert_snapshot!(told);
}

/// Runs `config check` over a configuration and a rule file of its own; returns what it prints, without the first line.
fn timeline(config: &str, rules: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let rules_file = folder.path().join("rules.yml");
    std::fs::write(&rules_file, rules).expect("it can be written");
    let path = folder.path().join("proctor.yml");
    std::fs::write(&path, format!("rules: {{files: [{rules_file:?}]}}\n{config}")).expect("it can be written");
    let output = Command::new(env!("CARGO_BIN_EXE_proctor")).args(["config", "check"]).arg(&path).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(told.lines().skip(1).all(|line| line.chars().count() <= 80), "{told}");
    told.split_once("\n\n").map(|(_, timeline)| timeline.to_owned()).unwrap_or_default()
}

const RULES: &str = r#"
groups:
- name: g
  interval: 10s
  rules:
  - alert: CacheDown
    expr: memcached_up == 0
    for: 30s
    labels: {severity: critical}
  - alert: Failing
    expr: probe_success{probe!="quiet"} == 0 unless on (probe) memcached_up == 0
  - alert: OftenFailing
    expr: avg_over_time(probe_success{probe="page"}[2m]) < 0.5
    for: 1m
  # These fire whether or not something fails, or speak of something else.
  - {alert: Watchdog, expr: vector(1)}
  - {alert: NoProbe, expr: 'absent(probe_success{probe="nothing"})'}
  - {alert: DiskFull, expr: disk_free < 1}
"#;

const PROBES: &str = r#"
probes:
  cache: {memcached: {address: "127.0.0.1:1"}, interval: 15s, timeout: 5s}
  page: {http: {url: "http://127.0.0.1:1/"}, interval: 10s, timeout: 2s}
  search: {tcp: {address: "127.0.0.1:1"}, interval: 30s}
  ssh: {tcp: {address: "127.0.0.1:1"}, interval: 30s}
  quiet: {tcp: {address: "127.0.0.1:1"}, interval: 30m}
"#;

#[test]
fn config_check_says_what_happens_when_in_real_numbers() {
    let config = format!(
        "{PROBES}\nnotify: {{admins: [a@example.org], group_wait: 5s, smtp: {{host: localhost}}}}\n{}",
        r#"
actions:
  restart: {command: {argv: [/bin/true]}, matchers: ['alertname="CacheDown"'], firing_for: 1m, mode: act}
  tell: {command: {argv: [/bin/true]}, matchers: ['severity="critical"', 'probe="cache"'], firing_for: 2m}
  lost: {command: {argv: [/bin/true]}, matchers: ['alertname="CacheDwon"'], mode: act}
"#
    );
    // cache: 15s + 5s until it is seen, + for 30s + a slot of 10s = 1:00; + 5s, + 1m, + 2m.
    // page: 12s; more than half of 2m are failures after 60s, + a slot, + for 1m + a slot: 2:32.
    insta::assert_snapshot!(timeline(&config, RULES));
}

#[test]
fn config_check_says_that_nobody_is_told() {
    assert_eq!(
        timeline("probes: {page: {tcp: {address: '127.0.0.1:1'}}}", RULES),
        "When one fails, at the latest (minutes:seconds):\n  page: down 0:00 → seen 0:20 → alert Failing 0:20 → alert OftenFailing 2:40\n  nobody is mailed: there is no notify section\n"
    );
    let observe =
        "notify: {mode: observe, admins: [a@example.org], smtp: {host: localhost}}\nprobes: {page: {tcp: {address: '127.0.0.1:1'}}}";
    assert!(timeline(observe, RULES).contains("→ mail (observe) 0:25 →"), "{}", timeline(observe, RULES));
}

#[test]
fn absurd_durations_have_a_timeline_too() {
    let long = "292000000y";
    let config = format!("probes: {{a: {{tcp: {{address: '127.0.0.1:1'}}, interval: {long}, timeout: {long}}}}}\n");
    let rules = format!("groups: [{{name: g, interval: {long}, rules: [{{alert: A, expr: probe_success == 0, for: {long}}}]}}]\n");
    assert!(timeline(&config, &rules).contains("alert A "));
    let config = "probes: {a: {tcp: {address: '127.0.0.1:1'}, interval: 100ms, timeout: 1ms}}\n";
    let rules = "groups: [{name: g, interval: 1ms, rules: [{alert: A, expr: 'avg_over_time(probe_success[6h]) == 0'}]}]\n";
    let begin = Instant::now();
    assert!(timeline(config, rules).starts_with("When"));
    assert!(begin.elapsed() < Duration::from_secs(20), "bounded");
}

#[test]
fn a_rule_about_one_reason_is_found() {
    let rules = "groups: [{name: g, rules: [{alert: Silent, expr: 'probe_failure_info{reason=\"remote_silent\"} == 1', for: 1m}]}]\n";
    let told = timeline("probes: {page: {tcp: {address: '127.0.0.1:1'}}}", rules);
    assert!(told.contains("seen 0:20 → alert Silent 1:35\n"), "{told}");
}

#[test]
fn config_check_binds_connects_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    taken.set_nonblocking(true).expect("it can be set");
    let address = taken.local_addr().expect("an address");
    let path = folder.path().join("proctor.yml");
    let text = format!(
        "web: {{listen: '{address}'}}\ncontrol: {{socket: {0}/control.sock}}\nstate: {{path: {0}/state.db}}\nprobes:\n  a: {{tcp: {{address: '{address}'}}}}\n  b: {{http: {{url: 'http://{address}/'}}}}\n  c: {{memcached: {{address: '{address}'}}}}\nactions:\n  d: {{webhook: {{url: 'http://{address}/'}}, matchers: ['severity=critical'], mode: act}}\nnotify: {{admins: [a@example.org], smtp: {{host: 127.0.0.1, port: {1}}}}}\n",
        folder.path().display(),
        address.port()
    );
    std::fs::write(&path, text).expect("it can be written");
    let output = Command::new(env!("CARGO_BIN_EXE_proctor")).args(["config", "check"]).arg(&path).output().expect("it runs");
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("ProbeFailing"), "{output:?}");
    assert_eq!(taken.accept().map(drop).expect_err("nobody came").kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "only the configuration");
}

#[test]
fn the_timeline_of_the_documentation_is_what_config_check_prints() {
    let page = include_str!("../../docs/rules.md");
    let shown = page.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block");
    let rules = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts/probes.yml")).expect("it is there");
    let config = r#"
probes: {cache: {memcached: {address: "127.0.0.1:11211"}}}
notify: {admins: [a@example.org], smtp: {host: localhost}}
actions: {restart-cache: {docker: {service: memcached, verb: restart}, matchers: ['alertname="MemcachedDown"'], mode: act}}
"#;
    assert_eq!(timeline(config, &rules), shown);
}

#[tokio::test]
async fn the_first_mail_comes_within_the_timeline() {
    let (port, sink) = (free_port(), Sink::start().await);
    let probes = format!("probes:\n  cache: {{memcached: {{address: \"127.0.0.1:{port}\"}}}}\n");
    let proctor = Proctor::configured(sink.port, &probes).rules(&[("MemcachedDown", "memcached_up == 0")]);
    let Some(cache) = memcached(proctor.folder.path(), port) else { return };
    let told = String::from_utf8(proctor.run(&["config", "check"]).stdout).expect("UTF-8");
    // 1s + 1s until it is seen, for 1s + a slot of 1s, group_wait 1s.
    assert!(told.ends_with("cache: down 0:00 → seen 0:02 → alert MemcachedDown 0:04 → mail 0:05\n"), "{told}");
    let proctor = proctor.started();
    proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(20)).await;
    cache.signal("STOP");
    let begin = Instant::now();
    sink.wait_for(1, Duration::from_secs(20)).await;
    let took = begin.elapsed();
    // Not before `for` and group_wait; a busy machine and SMTP get three seconds on top.
    assert!(took >= Duration::from_secs(2) && took <= Duration::from_secs(5 + 3), "{took:?}");
}

#[test]
fn a_secret_that_cannot_be_read_is_one_mistake_and_not_one_of_each_probe_that_asks_over_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("proctor.yml");
    let text = "probes:\n  rabbit: {rabbitmq: {username: a, password_file: /nowhere/secret}}\n  markup: {markup: {via: rabbit}}\n  beat: {beat: {via: rabbit, task: t}}\n";
    std::fs::write(&file, text).expect("is written");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_proctor")).args(["config", "check"]).arg(&file).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("/nowhere/secret") && told.contains("1 mistake in"), "{told}");
}

#[test]
fn circles_and_what_shows_only_when_probes_are_built_are_said_beside_every_other_mistake() {
    let built =
        "  celery: {celery: {via: rabbit, queues: [a], canary: {every: 1s}}}\n  rabbit: {rabbitmq: {}}\n  certs: {certificate: {}}\n";
    let circle = "  d: {tcp: {address: \"127.0.0.1:1\"}, depends_on: [e]}\n  e: {tcp: {address: \"127.0.0.1:1\"}, depends_on: [d]}\n";
    for (beside, wrong) in
        [("  odd: {tcp: {addres: 5}}\n", "addres"), ("  odd: {tcp: {address: \"127.0.0.1:1\"}, depends_on: [nobody]}\n", "nobody")]
    {
        let told = mistakes(&format!("probes:\n{built}{circle}{beside}"));
        for words in ["probe \"celery\": ", "probe \"certs\": expected at least one of files and served", "in a circle: d -> e -> d", wrong]
        {
            assert!(told.contains(words), "{words} in:\n{told}");
        }
    }
    // What asks over a probe that has a mistake of its own has none.
    let told = mistakes("probes:\n  rabbit: {rabbitmq: {prot: 5}}\n  markup: {markup: {via: rabbit}}\n");
    assert_eq!(told.lines().count(), 1, "{told}");
}
