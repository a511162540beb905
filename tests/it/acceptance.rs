//! What must hold on the running stack, whatever breaks: the state, the relay, Proctor itself.

use std::time::Duration;

use crate::support::gunicorn::Gunicorn;
use crate::support::memcached::memcached;
use crate::support::process::{Process, eventually, free_port};
use crate::support::proctor::Proctor;
use crate::support::smtp::Sink;
use crate::support::tmpfs::Tmpfs;

const DOWN: &[(&str, &str)] = &[("MemcachedDown", "memcached_up == 0")];

fn cache(port: u16) -> String {
    format!("probes:\n  cache: {{memcached: {{address: \"127.0.0.1:{port}\"}}}}\n")
}

#[tokio::test]
async fn seven_slow_requests_on_three_workers_raise_the_accept_queue_alert_while_the_port_still_opens() {
    let Some(gunicorn) = Gunicorn::tcp().await else { return };
    let sink = Sink::start().await;
    let probes = format!("probes:\n  app: {{gunicorn: {{listen: \"{}\", host_header: coursys.example.org}}}}\n", gunicorn.listen);
    let proctor = Proctor::configured(sink.port, &probes).built_in_rules().started();
    proctor.shows("gunicorn_up{probe=\"app\"} 1", Duration::from_secs(20)).await;
    let mut slow = Vec::new();
    for _ in 0..7 {
        slow.push(gunicorn.ask("/slow?s=60").await.expect("the port opens"));
    }
    let mails = sink.wait_for(2, Duration::from_secs(30)).await;
    assert!(gunicorn.ask("/").await.is_ok(), "the port still opens");
    assert!(mails[0].header("Subject").contains("GunicornSaturated"), "{}", mails[0].text);
    assert!(mails[0].text.contains("requests wait for gunicorn (app)"), "{}", mails[0].text);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_relay_is_down_mails_wait_and_arrive_once_when_it_is_back() {
    let (port, sink) = (free_port(), Sink::start().await);
    let proctor = Proctor::configured(sink.port, &cache(port)).rules(DOWN).started();
    let Some(mut dead) = memcached(proctor.folder.path(), port) else { return };
    proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(20)).await;
    sink.down();
    dead.kill();
    proctor.shows("proctor_outbox_depth 2", Duration::from_secs(20)).await;
    let _alive = memcached(proctor.folder.path(), port);
    proctor.shows("proctor_outbox_depth 4", Duration::from_secs(20)).await;
    sink.up();
    // A dead relay is knocked at every 30 s.
    let mails = sink.wait_for(4, Duration::from_secs(40)).await;
    proctor.shows("proctor_outbox_depth 0", Duration::from_secs(10)).await;
    let states: Vec<_> = mails.iter().filter(|mail| mail.to == "ann@example.org").map(|mail| mail.header("X-Alert-State")).collect();
    assert_eq!(states, ["FIRING", "RESOLVED"], "in their order");
    assert_eq!(sink.mails().len(), 4, "each once");
}

/// Kills memcached once it is seen to live, and returns the text of Ann's mail about it.
async fn alert_of(proctor: &Proctor, sink: &Sink, mut dead: Process) -> String {
    let before = sink.mails().len();
    proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(20)).await;
    dead.kill();
    let mail = eventually("the alert is mailed", Duration::from_secs(20), || async {
        let mails = sink.mails().split_off(before);
        mails.into_iter().find(|mail| mail.to == "ann@example.org" && mail.header("Subject").contains("MemcachedDown"))
    });
    mail.await.text
}

#[tokio::test]
async fn with_the_state_on_a_full_disk_the_next_alert_is_mailed_and_says_so() {
    let Some(disk) = Tmpfs::mount("2m") else { return };
    let (port, sink) = (free_port(), Sink::start().await);
    let proctor = Proctor::configured(sink.port, "").rules(DOWN);
    proctor.configure(&disk.path().join("state.db"), sink.port, &cache(port));
    let proctor = proctor.started();
    proctor.shows("memcached_up{probe=\"cache\"} 0", Duration::from_secs(20)).await;
    std::fs::write(disk.path().join("filler"), vec![0u8; 4 << 20]).expect_err("the disk is full");
    // The log has some room of its own left: what still fits is written, and nothing is wrong then.
    eventually("the disk is full for the state too", Duration::from_secs(60), || async {
        proctor.run(&["silence", "add", "x=y", "--comment", &"x".repeat(900)]);
        proctor.metrics().await?.contains("proctor_state_degraded 1").then_some(())
    })
    .await;
    let text = alert_of(&proctor, &sink, memcached(proctor.folder.path(), port).expect("it is installed")).await;
    assert!(text.contains("Its state cannot be written"), "{text}");
    disk.remount("size=64m");
    proctor.shows("proctor_state_degraded 0", Duration::from_secs(5)).await;
}

#[tokio::test]
async fn with_the_state_on_a_read_only_mount_the_next_alert_is_mailed_and_says_so() {
    let Some(disk) = Tmpfs::mount("8m") else { return };
    let (port, sink) = (free_port(), Sink::start().await);
    let mut proctor = Proctor::configured(sink.port, "").rules(DOWN);
    proctor.configure(&disk.path().join("state.db"), sink.port, &cache(port));
    proctor.start();
    proctor.shows("memcached_up{probe=\"cache\"} 0", Duration::from_secs(20)).await;
    proctor.kill();
    disk.remount("ro");
    proctor.start();
    proctor.shows("proctor_state_degraded 1", Duration::from_secs(20)).await;
    let text = alert_of(&proctor, &sink, memcached(proctor.folder.path(), port).expect("it is installed")).await;
    assert!(text.contains("Its state cannot be written"), "{text}");
    disk.remount("rw");
    proctor.shows("proctor_state_degraded 0", Duration::from_secs(5)).await;
}

#[tokio::test]
async fn with_a_damaged_state_the_next_alert_is_mailed_and_says_so() {
    fn flipped(bytes: &mut Vec<u8>) {
        bytes.iter_mut().step_by(7).for_each(|byte| *byte ^= 0x55);
    }
    fn truncated(bytes: &mut Vec<u8>) {
        bytes.truncate(bytes.len() / 2 + 100);
    }
    for damage in [flipped as fn(&mut Vec<u8>), truncated] {
        let (port, sink) = (free_port(), Sink::start().await);
        let mut proctor = Proctor::configured(sink.port, &cache(port)).rules(DOWN).started();
        let state = proctor.folder.path().join("state.db");
        let folder = proctor.folder.path().to_owned();
        let memcached = || memcached(&folder, port).expect("it is installed");
        alert_of(&proctor, &sink, memcached()).await;
        let alive = memcached();
        sink.wait_for(4, Duration::from_secs(20)).await;
        // In good order: then all of it is in the one file.
        proctor.stop();
        let mut bytes = std::fs::read(&state).expect("it is there");
        damage(&mut bytes);
        std::fs::write(&state, bytes).expect("it can be written");
        proctor.start();
        let text = alert_of(&proctor, &sink, alive).await;
        assert!(text.contains("The state was damaged"), "{text}");
        let aside = std::fs::read_dir(proctor.folder.path()).expect("it is there").flatten();
        assert!(aside.into_iter().any(|file| file.file_name().to_string_lossy().starts_with("state.db.")), "{text}");
    }
}
