//! Every mistake of a configuration in one run, each with its place.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use proctor::config::Config;

fn mistakes(text: &str) -> String {
    let problems = Config::from_text(Path::new("proctor.yml"), text).expect_err("it has mistakes");
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

#[test]
fn three_kinds_of_mistakes_in_three_probes_are_nine_in_one_run() {
    let one = |name: &str| format!("  {name}:\n    tcp: {{address: 5}}\n    intervall: 3s\n    depends_on: [nowhere-{name}]\n");
    let text = format!("probes:\n{}{}{}", one("a"), one("b"), one("c"));
    assert_eq!(mistakes(&text).lines().count(), 9, "{}", mistakes(&text));
    insta::assert_snapshot!(mistakes(&text));
}

#[test]
fn what_contradicts_itself_is_named() {
    insta::assert_snapshot!(mistakes(
        r#"
defaults: {interval: 10s, timeout: 30s}
probes:
  none: {interval: 1m}
  two: {tcp: {address: "127.0.0.1:1"}, memcached: {address: "127.0.0.1:2"}}
  a: {tcp: {address: "127.0.0.1:1"}, timeout: 1s, depends_on: [b]}
  b: {tcp: {address: "127.0.0.1:1"}, timeout: 1s, depends_on: [a]}
  "no good name": {tcp: {address: "127.0.0.1:1"}, timeout: 1s, interval: 1ms}
"#
    ));
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
    let begin = std::time::Instant::now();
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
    assert!(begin.elapsed() < std::time::Duration::from_secs(5), "at once");
}

#[test]
fn the_example_names_every_key_and_loads() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/proctor.example.yml");
    if let Err(problems) = Config::load(&file) {
        panic!("{}", problems.iter().map(|problem| format!("{problem}\n")).collect::<String>());
    }
    let text = std::fs::read_to_string(&file).expect("it is there");
    for key in proctor::config::keys() {
        assert!(
            text.lines().any(|line| line.trim_start().trim_start_matches("# ").starts_with(&format!("{key}:"))
                || line.contains(&format!("{{{key}:"))
                || line.contains(&format!(", {key}:"))),
            "the example does not name {key}"
        );
    }
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
