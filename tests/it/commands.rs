//! What people ask the running Proctor for: alerts, actions, a test mail.

use std::process::Output;
use std::time::Duration;

use crate::support::memcached::memcached;
use crate::support::process::{eventually, free_port};
use crate::support::proctor::Proctor;
use crate::support::smtp::Sink;

fn dead_cache() -> String {
    cache(free_port())
}

fn cache(port: u16) -> String {
    format!(
        "probes:\n  cache: {{memcached: {{address: \"127.0.0.1:{port}\"}}}}\n\
         actions:\n  start-cache: {{command: {{argv: [/bin/true]}}, matchers: ['alertname=\"MemcachedDown\"'], firing_for: 0s, mode: act, verify: {{within: 1s}}}}\n"
    )
}

const DOWN: &[(&str, &str)] = &[("MemcachedDown", "memcached_up == 0")];

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn alert_list_says_what_fires_and_why_it_is_not_mailed() {
    let (port, sink) = (free_port(), Sink::start().await);
    let proctor = Proctor::configured(sink.port, &cache(port)).rules(DOWN);
    let Some(mut dead) = memcached(proctor.folder.path(), port) else { return };
    let proctor = proctor.started();
    proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(20)).await;
    // Held before there is anything to mail.
    assert!(proctor.run(&["hold", "10m"]).status.success());
    dead.kill();
    let listed = || async {
        let text = said(&proctor.run(&["alert", "list"]));
        (text.contains("firing ") && text.contains("is not mailed now: held until")).then_some(text)
    };
    let text = eventually("the alert fires and is held", Duration::from_secs(20), listed).await;
    assert!(text.contains("firing critical MemcachedDown cache for "), "{text}");
    assert!(text.contains("    MemcachedDown: cache does not answer"), "{text}");
    assert!(text.contains("mails of admins:{probe=\"cache\"}: muted"), "{text}");
    assert!(sink.mails().is_empty());
}

#[tokio::test]
async fn paused_actions_wait_over_a_restart_until_they_are_resumed() {
    let (port, sink) = (free_port(), Sink::start().await);
    let proctor = Proctor::configured(sink.port, &cache(port)).rules(DOWN);
    let Some(mut dead) = memcached(proctor.folder.path(), port) else { return };
    let mut proctor = proctor.started();
    proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(20)).await;
    // Paused before there is anything to do.
    assert!(proctor.run(&["action", "pause"]).status.success());
    proctor.kill();
    dead.kill();
    proctor.start();
    sink.wait_for(2, Duration::from_secs(20)).await;
    let text = eventually("it says why nothing is done", Duration::from_secs(20), || async {
        let text = said(&proctor.run(&["action", "list"]));
        text.contains(" waits until ").then_some(text)
    });
    let text = text.await;
    assert!(text.starts_with("PAUSED by root since "), "{text}");
    assert!(text.contains("start-cache command acts for alertname=\"MemcachedDown\""), "{text}");
    proctor.shows("proctor_actions_paused 1", Duration::from_secs(20)).await;
    let text = said(&proctor.run(&["action", "resume"]));
    assert!(text.contains("actions run again; they were paused by root since "), "{text}");
    proctor.shows("proctor_actions_total{outcome=\"failed\"} 1", Duration::from_secs(20)).await;
    assert!(said(&proctor.run(&["action", "list"])).contains(" start-cache (command:start-cache) failed: "));
}

/// Runs a command that needs no configuration.
fn proctor(arguments: &[&str]) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_proctor")).args(arguments).output().expect("it runs")
}

/// Returns every command that has none below it, as words.
fn commands(above: &[String]) -> Vec<Vec<String>> {
    let words: Vec<&str> = above.iter().map(String::as_str).chain(["--help"]).collect();
    let help = said(&proctor(&words));
    let listed = help.split("\nCommands:\n").nth(1).map(|rest| rest.split("\n\n").next().unwrap_or_default().to_owned());
    let names = listed.unwrap_or_default();
    let below: Vec<Vec<String>> = names
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty() && *name != "help"))
        .flat_map(|name| commands(&[above, &[name.to_owned()]].concat()))
        .collect();
    if below.is_empty() { vec![above.to_vec()] } else { below }
}

#[test]
fn the_help_of_every_command_has_an_example_and_no_colour_where_nobody_sees_it() {
    let all = commands(&[]);
    assert!(all.len() > 20, "{all:?}");
    for words in all {
        let arguments: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
        let help = said(&proctor(&arguments));
        assert!(help.contains("Example") && help.contains(&format!("proctor {}", words.join(" "))), "{words:?}: {help}");
        assert!(!help.contains('\x1b'), "{words:?}: {help}");
    }
}

#[test]
fn manual_pages_are_one_for_each_command_and_bash_completes() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = proctor(&["render", "man", &folder.path().display().to_string()]);
    assert!(output.status.success(), "{}", said(&output));
    for page in ["proctor.1", "proctor-check.1", "proctor-hold-run.1"] {
        let text = std::fs::read_to_string(folder.path().join(page)).expect("it is written");
        assert!(text.contains(".TH ") && text.contains(".SH SYNOPSIS"), "{text}");
    }
    let output = proctor(&["render", "man"]);
    assert!(said(&output).contains("proctor\\-check(1)") && output.status.success(), "{}", said(&output));
    let output = proctor(&["render", "man", "/nonexistent"]);
    assert!(said(&output).contains("/nonexistent: No such file"), "{}", said(&output));
    let completions = folder.path().join("completions");
    std::fs::write(&completions, proctor(&["render", "completions", "bash"]).stdout).expect("is written");
    let script = "source \"$0\"; COMP_WORDS=(proctor config c); COMP_CWORD=2; _proctor proctor c config; echo \"${COMPREPLY[@]}\"";
    let output = std::process::Command::new("bash").args(["-c", script]).arg(&completions).output().expect("bash runs");
    assert_eq!(said(&output).trim(), "check");
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_test_mails_every_admin_once_and_shows_what_the_relay_said() {
    let sink = Sink::start().await;
    let proctor = Proctor::configured(sink.port, "").rules(DOWN);
    let output = proctor.run(&["mail", "test"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for wanted in ["To Ann <ann@example.org>, by 127.0.0.1:", "RCPT TO:<bob@example.org>", "Taken by the relay."] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let mails = sink.wait_for(2, Duration::from_secs(1)).await;
    assert!(mails[0].text.contains("Nothing is wrong"), "{}", mails[0].text);
    assert_eq!(mails[0].header("Subject"), "[CourSys] Proctor: test (coursys)");
    sink.down();
    let output = proctor.run(&["mail", "test"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("Not sent: ") && said(&output).contains("refused"), "{}", said(&output));
}

#[tokio::test]
async fn an_alert_is_shown_acknowledged_and_explained_step_by_step() {
    let sink = Sink::start().await;
    let mut proctor = Proctor::configured(sink.port, &dead_cache()).rules(DOWN).started();
    let explained = |proctor: &Proctor, args: &[&str]| said(&proctor.run(&[&["explain"], args].concat()));
    sink.wait_for(2, Duration::from_secs(20)).await;
    let wait_for = async |proctor: &Proctor, what: &str| {
        let asked = || async { Some(explained(proctor, &["MemcachedDown"])).filter(|text| text.contains(what)) };
        eventually(what, Duration::from_secs(20), asked).await
    };
    let text = wait_for(&proctor, " start-cache (command:start-cache) failed").await;
    assert!(text.starts_with("MemcachedDown cache\n  1. The probe cache: refused: "), "{text}");
    for words in [
        ": memcached_up == 0\n",
        "3. Its mails are those of the group admins:{probe=\"cache\"}, to Ann <ann@example.org>, bob@example.org.",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
    assert!(text.contains("4. Nothing speaks against mailing it.") && text.contains("5. Last mailed "), "{text}");

    let text = said(&proctor.run(&["alert", "show", "MemcachedDown", "probe=cache"]));
    assert!(text.starts_with("MemcachedDown cache\n  firing since ") && text.contains("\n  summary: "), "{text}");
    let output = proctor.run(&["alert", "ack", "MemcachedDown", "--comment", "on it"]);
    assert!(output.status.success() && said(&output).starts_with("acknowledged: MemcachedDown cache; "), "{}", said(&output));
    let text = wait_for(&proctor, "4. Not mailed now: acknowledged by root at ").await;
    assert!(text.contains("Nothing is done now: acknowledged by root at "), "{text}");
    proctor.kill();
    proctor.start();
    wait_for(&proctor, "4. Not mailed now: acknowledged by root at ").await;

    for (args, words) in [
        (&["explain", "MemcacheDown"][..], "unknown alert \"MemcacheDown\"; did you mean \"MemcachedDown\"?"),
        (&["explain", "MemcachedDown", "probe=other"], "MemcachedDown neither fires nor is pending now."),
        (&["alert", "ack", "probe=other"], "no alert that is pending or firing is like that"),
        (&["alert", "show", "probe=~("], "proctor: "),
    ] {
        assert!(said(&proctor.run(args)).contains(words), "{args:?}: {}", said(&proctor.run(args)));
    }
}

#[test]
fn a_drill_shows_the_whole_way_of_an_invented_alert_and_does_nothing_of_it() {
    let proctor = Proctor::configured(free_port(), &dead_cache()).rules(DOWN);
    let before = std::fs::read_dir(proctor.folder.path()).expect("a folder").count();
    let output = proctor.run(&["drill", "MemcachedDown"]);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for wanted in [
        "A drill: this is invented. Nothing is stored, sent or done.",
        "{alertname=\"MemcachedDown\", probe=\"cache\", severity=\"critical\"}, value 0",
        "It is mailed 1s after it fires, to Ann <ann@example.org>, bob@example.org",
        "| Subject: [CourSys] [critical] MemcachedDown cache (coursys)",
        "| This is a drill.",
        "start-cache) is done, once the alert has fired for 0s then the alert's own probe must succeed within 1s",
    ] {
        assert!(words.contains(wanted), "{wanted} in {text}");
    }
    assert_eq!(std::fs::read_dir(proctor.folder.path()).expect("a folder").count(), before, "it leaves nothing");
    for (args, wrong) in [
        (&["drill", "Nope"][..], "unknown alert \"Nope\"; known here: MemcachedDown"),
        (&["drill", "MemcachedDown", "probe=nope"], "unknown probe \"nope\"; known here: cache"),
        (&["drill", "MemcachedDown", "probe"], "expected a label such as probe=cache, found \"probe\""),
    ] {
        let output = proctor.run(args);
        assert!(!output.status.success() && said(&output).contains(wrong), "{args:?}: {}", said(&output));
    }
}

#[tokio::test]
async fn the_configuration_may_be_named_at_any_place_of_hold() {
    let sink = Sink::start().await;
    let proctor = Proctor::configured(sink.port, &dead_cache()).rules(DOWN).started();
    eventually("Proctor is asked", Duration::from_secs(10), || async { proctor.run(&["hold", "list"]).status.success().then_some(()) })
        .await;
    let config = proctor.config().display().to_string();
    let run = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_proctor")).args(args).output().expect("it runs");
        (output.status.code(), said(&output))
    };
    let (code, text) = run(&["hold", "--config", &config, "list"]);
    assert!(code == Some(0) && text.contains("nothing is held"), "{text}");
    let (code, text) = run(&["hold", "--config", &config, "run", "--", "/bin/sh", "-c", "exit 7"]);
    assert_eq!(code, Some(7), "{text}");
    let (code, text) = run(&["hold", "--config", &config, "end"]);
    assert!(code == Some(0) && text.contains("hold is over"), "{text}");
    let (code, text) = run(&["hold", "--config", &config, "5m"]);
    assert!(code == Some(0) && text.contains("held for 5m"), "{text}");
}
