//! The probe memcached against a real one that is full, too small, restarted, frozen, and against hostile servers.

use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use proctor::changes::Kind;
use proctor::model::{ProbeResult, Reason, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::hostile::{Manner, hostile};
use super::support::process::{Process, eventually, free_port, program};
use super::support::watched::{Watched, failed, value, well};

/// A memcached with these arguments on a port of its own, that answers.
struct Memcached {
    process: Process,
    port: u16,
    folder: tempfile::TempDir,
}

impl Memcached {
    async fn start(more: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        Some(Self { process: Self::on(&folder, port, more).await?, port, folder })
    }

    async fn on(folder: &tempfile::TempDir, port: u16, more: &[&str]) -> Option<Process> {
        let mut command = Command::new(program("memcached")?);
        command.args(["-u", "nobody", "-l", "127.0.0.1", "-p"]).arg(port.to_string()).args(more);
        let process = Process::start(&mut command, &folder.path().join("memcached.log"));
        let listens = || async { TcpStream::connect(("127.0.0.1", port)).await.ok() };
        let mut first = eventually("memcached listens", Duration::from_secs(20), listens).await;
        // A connection is counted when its thread begins with it: once it is answered, that is over.
        assert!(Self::say(&mut first, b"version\r\n").await.starts_with("VERSION"));
        Some(process)
    }

    async fn restart(&mut self) {
        self.process.kill();
        self.process = Self::on(&self.folder, self.port, &[]).await.expect("it is installed");
    }

    fn watched(&self, more: &str) -> Watched {
        Watched::new(&format!("  cache: {{memcached: {{address: '127.0.0.1:{}'{more}}}, timeout: 2s}}", self.port))
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.expect("it listens")
    }

    /// Sends a command and returns its answer, which is one line.
    async fn say(stream: &mut TcpStream, command: &[u8]) -> String {
        stream.write_all(command).await.expect("it reads");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n") {
            answer.push(stream.read_u8().await.expect("it answers"));
        }
        String::from_utf8(answer).expect("text").trim_end().to_owned()
    }

    async fn set(stream: &mut TcpStream, key: &str, bytes: usize) -> String {
        let mut command = format!("set {key} 0 0 {bytes}\r\n").into_bytes();
        command.resize(command.len() + bytes, b'x');
        command.extend_from_slice(b"\r\n");
        Self::say(stream, &command).await
    }
}

#[tokio::test]
async fn the_counters_come_over_a_connection_that_stays_and_each_run_makes_one_of_its_own() {
    let Some(cache) = Memcached::start(&[]).await else { return };
    let watched = cache.watched(", canary: true");
    let mut site = cache.connect().await;
    assert_eq!(Memcached::set(&mut site, "page", 100).await, "STORED");
    let (mut opened, mut canaries) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let result = watched.run("cache").await;
        well(&result, true);
        opened.push(value(&result, "memcached_connections_total", "").expect("is counted"));
        canaries.push(value(&result, "memcached_canaries_total", ""));
        for (name, label) in [
            ("memcached_up", ""),
            ("memcached_version", ""),
            ("memcached_uptime_seconds", ""),
            ("memcached_current_connections", ""),
            ("memcached_max_connections", ""),
            ("memcached_items_evicted_total", ""),
            ("memcached_item_too_large_total", ""),
            ("memcached_commands_total", "set"),
            ("memcached_canary_duration_seconds", ""),
        ] {
            assert!(value(&result, name, label).is_some(), "{name} {label}: {:?}", result.samples);
        }
        let items = result.samples.iter().filter(|sample| sample.family.name == "memcached_slab_current_items").map(|sample| sample.value);
        assert_eq!(Some(items.sum()), value(&result, "memcached_current_items", ""), "{:?}", result.samples);
    }
    // The first run asks over its own connection and keeps it; each later one opens one more.
    assert_eq!(canaries, [Some(0.0), Some(1.0), Some(2.0), Some(3.0)]);
    assert_eq!(opened.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>(), [0.0, 1.0, 1.0], "{opened:?}");
    let result = watched.run("cache").await;
    let sets = value(&result, "memcached_commands_total", "set").expect("is counted");
    assert_eq!(sets - value(&result, "memcached_canaries_total", "").expect("is counted"), 1.0, "what the site did is told apart");
}

#[tokio::test]
async fn at_its_limit_of_connections_the_counters_are_still_seen_and_the_reason_is_said() {
    // It refuses, or, as old ones do, it lets wait.
    for (manner, words) in
        [(&["-c", "40"][..], "Too many open connections"), (&["-c", "40", "-o", "no_maxconns_fast"][..], "a new one is not served")]
    {
        let Some(cache) = Memcached::start(manner).await else { return };
        let watched = cache.watched("");
        well(&watched.run("cache").await, true);
        let held = Mutex::new(Vec::new());
        let result = eventually("the limit is reached", Duration::from_secs(60), || async {
            // When it takes no more, the kernel does not either.
            let one = tokio::time::timeout(Duration::from_millis(300), cache.connect()).await;
            held.lock().unwrap().extend(one);
            let result = watched.run("cache").await;
            result.outcome.as_ref().is_err_and(|failure| failure.reason == Reason::Saturated).then_some(result)
        })
        .await;
        failed(&result, Reason::Saturated, words);
        // The counters are asked before the new connection, and a refusal is counted after it: a later run tells of it.
        let refused = ["memcached_connections_rejected_total", "memcached_connections_listener_disabled_total"];
        let counts = |result: &ProbeResult| refused.iter().any(|name| value(result, name, "") > Some(0.0));
        let result = watched.until("cache", "the refusal is counted", 30, counts).await;
        // It keeps some for itself, so that it counts fewer than its limit.
        assert_eq!(value(&result, "memcached_max_connections", ""), Some(40.0), "{manner:?}");
        assert_eq!(value(&result, "memcached_up", ""), Some(0.0));
        held.lock().unwrap().clear();
        watched.until("cache", "connections are free again", 30, |result| result.is_success()).await;
    }
}

#[tokio::test]
async fn a_cache_that_is_too_small_shows_how_young_is_what_it_throws_out() {
    let Some(cache) = Memcached::start(&["-m", "2"]).await else { return };
    let watched = cache.watched("");
    let mut site = cache.connect().await;
    for nth in 0..400 {
        assert_eq!(Memcached::set(&mut site, &format!("page{nth}"), 12_000).await, "STORED");
    }
    let result = watched.run("cache").await;
    well(&result, true);
    let (evicted, stored) = (value(&result, "memcached_items_evicted_total", ""), value(&result, "memcached_items_total", ""));
    assert!(evicted.expect("is counted") > 100.0 && stored == Some(400.0), "{evicted:?} of {stored:?}");
    let slab = result.samples.iter().find(|sample| sample.family.name == "memcached_slab_items_evicted_total" && sample.value > 100.0);
    let slab = slab.expect("one class threw them out").labels[0].1.to_string();
    let age = value(&result, "memcached_slab_items_evicted_time_seconds", &slab).expect("is known");
    assert!(age < 900.0, "{age}");
}

#[tokio::test]
async fn what_is_too_large_to_be_stored_is_counted_and_no_failure() {
    let Some(cache) = Memcached::start(&[]).await else { return };
    let watched = cache.watched("");
    well(&watched.run("cache").await, true);
    let mut site = cache.connect().await;
    assert_eq!(Memcached::set(&mut site, "page", 2 << 20).await, "SERVER_ERROR object too large for cache");
    let result = watched.run("cache").await;
    well(&result, true);
    assert_eq!(value(&result, "memcached_item_too_large_total", ""), Some(1.0));
}

#[tokio::test]
async fn one_that_throws_nothing_out_and_is_full_is_blocked() {
    let Some(cache) = Memcached::start(&["-M", "-m", "2"]).await else { return };
    let watched = cache.watched(", canary: true");
    well(&watched.run("cache").await, true);
    let mut site = cache.connect().await;
    let mut refused = String::new();
    // Each class of sizes has its own memory; the canary's is among the small ones.
    for size in (8..300).step_by(16) {
        for nth in 0..200_000 {
            refused = Memcached::set(&mut site, &format!("page-{size}-{nth}"), size).await;
            if refused != "STORED" {
                break;
            }
        }
    }
    assert_eq!(refused, "SERVER_ERROR out of memory storing object");
    let result = watched.until_failed("cache", "it takes nothing", 20, Reason::Blocked, "memcached takes no new value").await;
    assert!(value(&result, "memcached_item_no_memory_total", "").expect("is counted") > 0.0);
}

#[tokio::test]
async fn a_restart_is_told_and_is_no_failure() {
    let Some(mut cache) = Memcached::start(&[]).await else { return };
    let watched = cache.watched("");
    well(&watched.run("cache").await, true);
    eventually("it is older than the seconds that it counts in", Duration::from_secs(60), || async {
        value(&watched.run("cache").await, "memcached_uptime_seconds", "").filter(|uptime| *uptime >= 8.0)
    })
    .await;
    cache.restart().await;
    let result = watched.run("cache").await;
    well(&result, true);
    assert!(result.evidence.iter().any(|line| line.contains("which emptied the cache")), "{:?}", result.evidence);
    let changes = watched.changes.between(Timestamp(0), Timestamp(i64::MAX));
    let [change] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((change.kind, &*change.subject), (Kind::Restarted, &*format!("memcached at 127.0.0.1:{}", cache.port)));
    assert!(watched.run("cache").await.evidence.is_empty());
}

#[tokio::test]
async fn one_that_is_frozen_does_not_answer_and_one_that_is_gone_refuses() {
    let Some(mut cache) = Memcached::start(&[]).await else { return };
    let watched = cache.watched("");
    well(&watched.run("cache").await, true);
    cache.process.signal("STOP");
    failed(&watched.run("cache").await, Reason::AnswerTimeout, "waiting for an answer");
    cache.process.signal("CONT");
    watched.until("cache", "it goes on", 20, |result| result.is_success()).await;
    cache.process.kill();
    watched.until_failed("cache", "it is gone", 20, Reason::Refused, "refused").await;
}

#[tokio::test]
async fn hostile_servers_are_left_within_the_limits_with_a_reason_of_their_own() {
    let endless = [b"VERSION 1.6.18\r\nSTAT ".to_vec(), b"pid 1\r\nSTAT ".repeat(20_000)].concat();
    for (manner, reason) in [
        (Manner::Silent, Reason::AnswerTimeout),
        (Manner::Drips(b"VERSION 1.6.18\r\n".to_vec()), Reason::AnswerTimeout),
        (Manner::Closes, Reason::Eof),
        (Manner::Says(b"VERSION".to_vec()), Reason::Eof),
        (Manner::Resets, Reason::Reset),
        (Manner::Says(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), Reason::Protocol),
        (Manner::Endless(Vec::new()), Reason::TooLarge),
        (Manner::SaysAndHolds(endless), Reason::TooLarge),
        (Manner::SaysAndHolds(b"VERSION 1.6.18\r\nCLIENT_ERROR unauthenticated\r\n".to_vec()), Reason::Auth),
    ] {
        let port = hostile(manner.clone()).await;
        let watched = Watched::new(&format!("  cache: {{memcached: {{address: '127.0.0.1:{port}'}}, timeout: 1s}}"));
        let result = watched.run("cache").await;
        let failure = result.outcome.as_ref().expect_err("it is hostile");
        let close = [Reason::Eof, Reason::Reset];
        assert!(failure.reason == reason || close.contains(&reason) && close.contains(&failure.reason), "{manner:.60?}: {failure:?}");
    }
}
