//! The whole chain: a service dies, ADMINS are mailed, it is repaired or comes back, they are told so in the same thread.

use std::time::Duration;

use crate::support::memcached::{Daemon, memcached};
use crate::support::process::{eventually, free_port, program};
use crate::support::proctor::Proctor;
use crate::support::smtp::{Mail, Sink};

const DOWN: &[(&str, &str)] = &[("MemcachedDown", "memcached_up == 0")];

fn cache(port: u16) -> String {
    format!("probes:\n  cache: {{memcached: {{address: \"127.0.0.1:{port}\"}}}}\n")
}

/// Holds that each ADMIN got two mails, a beginning and the end as a reply to it, and returns Ann's.
fn one_thread_each<'a>(mails: &'a [Mail], end: &str) -> [&'a Mail; 2] {
    for admin in ["ann@example.org", "bob@example.org"] {
        let of: Vec<_> = mails.iter().filter(|mail| mail.to == admin).collect();
        assert_eq!(of.len(), 2, "exactly two for {admin}: {:?}", of.iter().map(|mail| mail.header("Subject")).collect::<Vec<_>>());
        assert_eq!(of[0].header("X-Alert-State"), "FIRING", "{}", of[0].raw);
        assert_eq!(of[1].header("X-Alert-State"), end, "{}", of[1].raw);
        assert_eq!(of[1].header("In-Reply-To"), of[0].header("Message-ID"));
        assert_eq!(of[0].header("Subject").trim_start_matches("Re: "), of[1].header("Subject").trim_start_matches("Re: "));
    }
    let mut of_ann = mails.iter().filter(|mail| mail.to == "ann@example.org");
    [of_ann.next().expect("two"), of_ann.next().expect("two")]
}

#[tokio::test]
async fn a_dead_memcached_is_seen_within_2_s_and_repaired_and_gives_each_admin_two_mails_in_one_thread() {
    let Some(program) = program("memcached") else { return };
    let (port, sink) = (free_port(), Sink::start().await);
    let sections = cache(port)
        + &format!(
            "actions:\n  start-cache:\n    command: {{argv: [{}, -d, -u, nobody, -l, 127.0.0.1, -p, \"{port}\"]}}\n    \
             matchers: ['alertname=\"MemcachedDown\"']\n    firing_for: 6s\n    mode: act\n    verify: {{probes: [cache], within: 20s}}\n",
            program.display()
        );
    let proctor = Proctor::configured(sink.port, &sections).rules(DOWN);
    let mut dead = memcached(proctor.folder.path(), port).expect("it is there");
    let proctor = proctor.started();
    proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(20)).await;
    dead.kill();
    proctor.shows("memcached_up{probe=\"cache\"} 0", Duration::from_secs(2)).await;
    let firing = sink.wait_for(2, Duration::from_secs(20)).await;
    assert!(firing[0].header("Subject").starts_with("[CourSys] "), "{}", firing[0].raw);
    assert!(firing[0].text.contains("MemcachedDown: cache does not answer"), "{}", firing[0].text);
    assert!(firing[0].text.contains("cache: refused: "), "{}", firing[0].text);
    assert!(firing[0].text.contains("memcached (start-cache), not before "), "{}", firing[0].text);

    let mails = sink.wait_for(4, Duration::from_secs(30)).await;
    let _started = Daemon::on(port).await;
    let [_, end] = one_thread_each(&mails, "REPAIRED");
    assert!(end.text.contains("REPAIRED and RESOLVED"), "{}", end.text);
    assert!(end.text.contains("start-cache"), "{}", end.text);
    proctor.shows("proctor_actions_total{outcome=\"repaired\"} 1", Duration::from_secs(20)).await;
    assert_eq!(sink.mails().len(), 4, "nothing more was said");
}

#[tokio::test]
async fn an_end_is_told_although_proctor_was_killed_before_it_came() {
    let (port, sink) = (free_port(), Sink::start().await);
    let mut proctor = Proctor::configured(sink.port, &cache(port)).rules(DOWN).started();
    let Some(mut dead) = memcached(proctor.folder.path(), port) else { return };
    proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(20)).await;
    dead.kill();
    sink.wait_for(2, Duration::from_secs(20)).await;
    // Killed before it has written down that a mail was taken, it would send that once more.
    proctor.shows("proctor_deliveries_total{integration=\"email\",outcome=\"sent\"} 2", Duration::from_secs(20)).await;
    proctor.shows("proctor_outbox_depth 0", Duration::from_secs(20)).await;
    proctor.kill();
    let _alive = memcached(proctor.folder.path(), port);
    proctor.start();
    proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(20)).await;
    one_thread_each(&sink.wait_for(4, Duration::from_secs(30)).await, "RESOLVED");
}

#[tokio::test]
async fn an_action_that_only_observes_says_in_the_mail_what_it_would_do_and_does_nothing() {
    let (port, sink) = (free_port(), Sink::start().await);
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace");
    let sections = cache(port)
        + &format!(
            "actions:\n  start-cache:\n    command: {{argv: [/usr/bin/touch, {}]}}\n    \
             matchers: ['alertname=\"MemcachedDown\"']\n    firing_for: 0s\n",
            trace.display()
        );
    let proctor = Proctor::configured(sink.port, &sections).rules(DOWN).started();
    let mails = sink.wait_for(2, Duration::from_secs(30)).await;
    assert!(mails[0].text.contains("would"), "{}", mails[0].text);
    eventually("it is counted", Duration::from_secs(20), || async {
        proctor.metrics().await?.contains("proctor_actions_total{outcome=\"observed\"} 1").then_some(())
    })
    .await;
    assert!(!trace.exists(), "nothing was done");
}

#[tokio::test]
async fn a_mail_says_what_changed_on_the_host_just_before_and_its_end_what_changed_meanwhile() {
    let Some(_) = program("memcached") else { return };
    let (port, sink) = (free_port(), Sink::start().await);
    let proctor = Proctor::configured(sink.port, &cache(port)).rules(DOWN);
    let log = proctor.folder.path().join("dpkg.log");
    let date = std::process::Command::new("date").arg("+%Y-%m-%d %H:%M:%S").output().expect("date runs").stdout;
    let line = |what: &str| format!("{} {what}\n", String::from_utf8_lossy(&date).trim());
    std::fs::write(&log, line("upgrade memcached:amd64 1.6.18-1 1.6.19-1")).expect("is written");
    let file = proctor.folder.path().join("proctor.yml");
    let text = std::fs::read_to_string(&file).expect("it is there");
    std::fs::write(&file, format!("{text}changes: {{packages: {}, before: 1h}}\n", log.display())).expect("is written");
    let mut dead = memcached(proctor.folder.path(), port).expect("it is there");
    let proctor = proctor.started();
    proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(20)).await;
    dead.kill();
    let mails = sink.wait_for(2, Duration::from_secs(30)).await;
    let text = &mails[0].text;
    assert!(text.contains("In the 1h before, and since\n"), "{text}");
    assert!(text.contains(" upgraded package memcached: 1.6.18-1 → 1.6.19-1\n"), "{text}");
    assert!(text.contains(" started Proctor: version "), "{text}");
    let _back = memcached(proctor.folder.path(), port);
    let mails = sink.wait_for(4, Duration::from_secs(30)).await;
    assert!(!mails[2].text.contains("upgraded package"), "that was said: {}", mails[2].text);
    proctor.shows("proctor_changes_total{kind=\"upgraded\"} 1", Duration::from_secs(20)).await;
}
