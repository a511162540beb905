//! The first ten minutes of docs/start.md, walked: its commands in their order, on a host with a memcached. With the
//! package, systemd and a Django site they are walked in `life::first`, word for word.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use crate::support::memcached::Daemon;
use crate::support::process::{eventually, free_port};
use crate::support::proctor::Proctor;
use crate::support::smtp::Sink;

/// The commands of ours in the page, in their order.
fn commands() -> Vec<String> {
    let page = include_str!("../../docs/start.md");
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    let lines =
        blocks.flat_map(str::lines).filter_map(|line| line.strip_prefix("target/release/").unwrap_or(line).strip_prefix("proctor "));
    lines.map(|line| line.split(" >").next().unwrap_or_default().to_owned()).collect()
}

/// Runs one with a configuration, in a folder that has no other.
fn run(folder: &Path, config: Option<&Path>, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proctor"));
    command.current_dir(folder).env("XDG_STATE_HOME", folder).args(words);
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    command.output().expect("it runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_ten_minutes_of_the_documentation_are_walked() {
    assert_eq!(
        commands(),
        ["check", "init", "config check", "check", "mail test", "render systemd", "drill MemcachedDown", "hold run -- make new-code"],
        "docs/start.md has other commands than are walked here"
    );
    let port = free_port();
    let Some(_cache) = Daemon::start(port).await else { return };
    let sink = Sink::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().join("proctor.yml");

    // It looks without a configuration; other things of this host may be well or not.
    let output = run(folder.path(), None, &["check"]);
    assert!(matches!(output.status.code(), Some(0 | 1)) && said(&output).contains("memcached"), "{}", said(&output));

    let output = run(folder.path(), None, &["init", "--no-django", "--output", &at.display().to_string()]);
    let written = std::fs::read_to_string(&at).expect("it is written");
    assert!(output.status.success() && said(&output).contains("Watched"), "{}", said(&output));
    assert!(written.contains(&format!("127.0.0.1:{port}")), "{written}");
    let again = run(folder.path(), None, &["init", "--no-django", "--output", &at.display().to_string()]);
    assert_eq!(again.status.code(), Some(2), "nothing is written over: {}", said(&again));

    // From here on only what is this test's own: the rest of this host comes and goes.
    let probes = format!("probes:\n  cache: {{memcached: {{address: '127.0.0.1:{port}'}}}}\n");
    let mut proctor = Proctor::configured(sink.port, &probes).built_in_rules();
    let config = proctor.config();
    let output = run(folder.path(), Some(&config), &["config", "check"]);
    assert!(output.status.success() && said(&output).contains("MemcachedDown"), "{}", said(&output));
    let output = run(folder.path(), Some(&config), &["check"]);
    assert!(output.status.success(), "{}", said(&output));
    let output = run(folder.path(), Some(&config), &["mail", "test"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(sink.wait_for(2, Duration::from_secs(30)).await.len(), 2, "each admin gets one");
    let output = run(folder.path(), Some(&config), &["render", "systemd"]);
    assert!(output.status.success() && said(&output).contains("[Service]"), "{}", said(&output));

    proctor.start();
    proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(60)).await;
    let output = run(folder.path(), Some(&config), &["drill", "MemcachedDown"]);
    assert!(output.status.success() && said(&output).contains("MemcachedDown"), "{}", said(&output));
    assert_eq!(sink.mails().len(), 2, "a drill sends nothing");
    std::fs::write(folder.path().join("Makefile"), "new-code:\n\ttouch deployed\n").expect("is written");
    let mut hold = Command::new(env!("CARGO_BIN_EXE_proctor"));
    hold.current_dir(folder.path()).arg("--config").arg(&config).args(["hold", "run", "--", "make", "new-code"]);
    let output = hold.output().expect("it runs");
    assert!(output.status.success() && folder.path().join("deployed").exists(), "{}", said(&output));
    eventually("the hold is in force, two minutes more", Duration::from_secs(30), || async {
        proctor.metrics().await?.contains("proctor_hold_active 1").then_some(())
    })
    .await;
}
