//! What people ask the running Proctor for: alerts, actions, a test mail.

use std::process::Output;
use std::time::Duration;

use crate::support::process::{eventually, free_port};
use crate::support::proctor::Proctor;
use crate::support::smtp::Sink;

fn dead_cache() -> String {
    format!(
        "probes:\n  cache: {{memcached: {{address: \"127.0.0.1:{}\"}}}}\n\
         actions:\n  start-cache: {{command: {{argv: [/bin/true]}}, matchers: ['alertname=\"MemcachedDown\"'], firing_for: 0s, mode: act, verify: {{within: 1s}}}}\n",
        free_port()
    )
}

const DOWN: &[(&str, &str)] = &[("MemcachedDown", "memcached_up == 0")];

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn alert_list_says_what_fires_and_why_it_is_not_mailed() {
    let sink = Sink::start().await;
    let proctor = Proctor::configured(sink.port, &dead_cache()).rules(DOWN).started();
    eventually("Proctor is asked", Duration::from_secs(10), || async { proctor.run(&["hold", "10m"]).status.success().then_some(()) })
        .await;
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
    let sink = Sink::start().await;
    let mut proctor = Proctor::configured(sink.port, &dead_cache()).rules(DOWN).started();
    eventually("Proctor is asked", Duration::from_secs(10), || async { proctor.run(&["action", "pause"]).status.success().then_some(()) })
        .await;
    proctor.kill();
    proctor.start();
    sink.wait_for(2, Duration::from_secs(20)).await;
    let text = eventually("it says why nothing is done", Duration::from_secs(20), || async {
        let text = said(&proctor.run(&["action", "list"]));
        text.contains(" waits until ").then_some(text)
    });
    let text = text.await;
    assert!(text.starts_with("PAUSED by root since "), "{text}");
    assert!(text.contains("start-cache command acts for alertname=\"MemcachedDown\""), "{text}");
    proctor.shows("proctor_actions_paused 1", Duration::from_secs(5)).await;
    let text = said(&proctor.run(&["action", "resume"]));
    assert!(text.contains("actions run again; they were paused by root since "), "{text}");
    proctor.shows("proctor_actions_total{outcome=\"failed\"} 1", Duration::from_secs(20)).await;
    assert!(said(&proctor.run(&["action", "list"])).contains(" start-cache (command:start-cache) failed: "));
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
