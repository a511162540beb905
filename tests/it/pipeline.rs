//! The whole chain: a service dies, ADMINS are mailed; it comes back, they are told so, in the same thread.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::process::{Process, eventually, free_port, program};
use crate::support::smtp::Sink;

/// A running Proctor with its own state.
struct Proctor {
    process: Process,
    web: u16,
}

impl Proctor {
    fn start(folder: &Path, web: u16) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proctor"));
        command.arg("--config").arg(folder.join("proctor.yml")).arg("serve");
        Self { process: Process::start(&mut command, &folder.join("proctor.log")), web }
    }

    async fn metrics(&self) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.web)).await.ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    async fn shows(&self, line: &str, within: Duration) {
        eventually(line, within, || async { self.metrics().await?.contains(line).then_some(()) }).await;
    }
}

fn memcached(folder: &Path, port: u16) -> Option<Process> {
    let program = program("memcached")?;
    Some(Process::start(
        Command::new(program).args(["-u", "nobody", "-l", "127.0.0.1", "-p"]).arg(port.to_string()),
        &folder.join("memcached.log"),
    ))
}

/// Writes a configuration with intervals of 1 s and one rule.
fn configure(folder: &Path, web: u16, cache: u16, relay: u16) {
    let rules = "groups:\n- name: cache\n  rules:\n  - alert: MemcachedDown\n    expr: memcached_up == 0\n    for: 1s\n    labels: {severity: critical}\n    annotations: {summary: 'memcached ({{ $labels.probe }}) does not answer'}\n";
    std::fs::write(folder.join("rules.yml"), rules).expect("it can be written");
    let config = format!(
        r#"
site: {{name: coursys}}
web: {{listen: "127.0.0.1:{web}"}}
state: {{path: "{state}/state.db"}}
defaults: {{interval: 1s, timeout: 1s}}
rules: {{files: ["{state}/rules.yml"], interval: 1s}}
startup: {{first_look: 0s, after_boot: 0s}}
probes:
  cache: {{memcached: {{address: "127.0.0.1:{cache}"}}}}
notify:
  admins: ["Ann <ann@example.org>", bob@example.org]
  from: proctor@example.org
  subject_prefix: "[CourSys] "
  group_wait: 1s
  resolve_wait: 1s
  smtp: {{host: 127.0.0.1, port: {relay}}}
"#,
        state = folder.display()
    );
    std::fs::write(folder.join("proctor.yml"), config).expect("it can be written");
}

#[tokio::test]
async fn a_dead_memcached_is_seen_within_2_s_and_gives_each_admin_two_mails_in_one_thread() {
    let folder = tempfile::tempdir().expect("a folder");
    let (web, cache) = (free_port(), free_port());
    let Some(mut dead) = memcached(folder.path(), cache) else { return };
    let sink = Sink::start().await;
    configure(folder.path(), web, cache, sink.port);
    let proctor = Proctor::start(folder.path(), web);
    proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(20)).await;
    dead.kill();
    proctor.shows("memcached_up{probe=\"cache\"} 0", Duration::from_secs(2)).await;
    let firing = sink.wait_for(2, Duration::from_secs(20)).await;
    let mut told: Vec<&str> = firing.iter().map(|mail| mail.to.as_str()).collect();
    told.sort_unstable();
    assert_eq!(told, ["ann@example.org", "bob@example.org"]);
    assert!(firing[0].header("Subject").starts_with("[CourSys] "), "{}", firing[0].raw);
    assert!(firing[0].text.contains("memcached (cache) does not answer"), "{}", firing[0].text);

    let _alive = memcached(folder.path(), cache);
    let all = sink.wait_for(4, Duration::from_secs(30)).await;
    for admin in ["ann@example.org", "bob@example.org"] {
        let of: Vec<_> = all.iter().filter(|mail| mail.to == admin).collect();
        assert_eq!(of.len(), 2, "exactly two for {admin}");
        assert_eq!(of[1].header("In-Reply-To"), of[0].header("Message-ID"));
        assert_eq!(of[1].header("X-Alert-State"), "RESOLVED", "{}", of[1].raw);
        assert_eq!(of[0].header("Subject").trim_start_matches("Re: "), of[1].header("Subject").trim_start_matches("Re: "));
    }
}

#[tokio::test]
async fn an_end_is_told_although_proctor_was_killed_before_it_came() {
    let folder = tempfile::tempdir().expect("a folder");
    let (web, cache) = (free_port(), free_port());
    let sink = Sink::start().await;
    let Some(mut dead) = memcached(folder.path(), cache) else { return };
    configure(folder.path(), web, cache, sink.port);
    let mut proctor = Proctor::start(folder.path(), web);
    proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(20)).await;
    dead.kill();
    sink.wait_for(2, Duration::from_secs(20)).await;
    proctor.process.kill();
    let _alive = memcached(folder.path(), cache);
    let proctor = Proctor::start(folder.path(), web);
    proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(20)).await;
    let mails = sink.wait_for(4, Duration::from_secs(30)).await;
    assert!(mails[2..].iter().all(|mail| mail.header("X-Alert-State") == "RESOLVED"), "{}", mails[2].raw);
}
