//! The probe tunnel through a real `ssh -L`, against real databases and hostile servers.

use std::sync::Arc;
use std::time::Duration;

use proctor::client::sock_diag;
use proctor::metrics::Metrics;
use proctor::model::decode::from_text;
use proctor::model::{Failure, ProbeResult, Reason, Sight, Target};
use proctor::probe::ProbeConfig;
use proctor::probe::scheduler::{Scheduled, run};

use super::docs::block;
use super::support::hostile::{Manner, hostile};
use super::support::process::{eventually, free_port, install};
use super::support::tunnel::{Derby, Mariadb, Postgres, Tunnel, as_user};

/// A probe that lives on from run to run, as under the scheduler.
struct Probe(Scheduled);

impl Probe {
    fn of(port: u16, speaks: &str, more: &str, timeout: Duration) -> Self {
        let yaml = format!("tunnel: {{address: '127.0.0.1:{port}', speaks: {speaks}{more}}}");
        let config: ProbeConfig = from_text("proctor.yml", &yaml).unwrap_or_else(|problems| panic!("{yaml}: {problems:?}"));
        let mut planned = config.plan().unwrap_or_else(|why| panic!("{yaml}: {why}"));
        let target = Target {
            probe: "csrpt".into(),
            target: None,
            kind: "tunnel",
            interval: Duration::from_secs(30),
            timeout,
            depends_on: Arc::new([]),
        };
        Self(Scheduled { target: Arc::new(target), probe: planned.remove(0).probe })
    }

    fn new(port: u16, speaks: &str) -> Self {
        Self::of(port, speaks, "", Duration::from_secs(10))
    }

    async fn ask(&self) -> ProbeResult {
        let begin = tokio::time::Instant::now();
        let result = run(&self.0, &Metrics::new()).await.expect("this host is awake");
        let limit = self.0.target.timeout;
        assert!(begin.elapsed() < limit + Duration::from_secs(1), "the limit of {limit:?} holds: {:?}", begin.elapsed());
        result
    }

    /// Asks until the far end answers again: what was frozen or begins needs a moment, more than a short limit.
    async fn recovers(&self) {
        let answered = || async { Some(self.ask().await).filter(|result| result.outcome.is_ok()) };
        well(&eventually("it is well again", Duration::from_secs(30), answered).await);
    }
}

fn value(result: &ProbeResult, name: &str) -> Option<f64> {
    result.samples.iter().find(|sample| sample.family.name == name).map(|sample| sample.value)
}

#[track_caller]
fn failed(result: &ProbeResult, reason: Reason, words: &str) {
    let Err(Failure { reason: found, detail }) = &result.outcome else { panic!("expected {reason}, found success") };
    assert_eq!(*found, reason, "{detail}");
    assert!(detail.contains(words), "{words:?} in {detail:?}");
    assert_eq!(value(result, "tunnel_up"), Some(0.0));
}

#[track_caller]
fn well(result: &ProbeResult) {
    assert_eq!(result.outcome, Ok(()), "{:?}", result.samples);
    assert_eq!(result.sight, Sight::Full);
    assert_eq!(value(result, "tunnel_up"), Some(1.0));
    for name in ["tunnel_connect_duration_seconds", "tunnel_answer_duration_seconds"] {
        assert!(value(result, name).is_some_and(|took| took > 0.0 && took < 10.0), "{name}: {:?}", result.samples);
    }
    assert_eq!(value(result, "tunnel_accept_queue"), Some(0.0));
}

/// How many connections wait at a port of this host until somebody takes them.
fn waiting(port: u16) -> u32 {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    sock_diag::tcp(address).expect("the kernel tells").expect("somebody listens").waiting
}

#[tokio::test]
async fn every_far_end_answers_in_its_own_protocol_and_in_no_other() {
    let (Some(postgres), Some(mariadb), Some(derby)) = tokio::join!(Postgres::start(false), Mariadb::start(&[]), Derby::start()) else {
        return;
    };
    let far = [postgres.port, mariadb.port, derby.port].map(|port| format!("127.0.0.1:{port}"));
    let Some(tunnel) = Tunnel::to(&[&far[0], &far[1], &far[2], "sshd"]).await else { return };
    let speaks = ["postgres", "mysql", "db2", "ssh"];
    for (port, speaks) in tunnel.ports.iter().zip(speaks) {
        well(&Probe::new(*port, speaks).ask().await);
    }
    let log = derby.log();
    assert!(!log.contains("Exception"), "Derby was hurt: {log}");
    // Who speaks first is life to `generic`, whatever it says.
    well(&Probe::new(tunnel.ports[1], "generic").ask().await);
    well(&Probe::new(tunnel.ports[3], "generic").ask().await);
    for (at, speaks) in [(1, "ssh"), (1, "db2"), (1, "postgres"), (3, "mysql"), (3, "mssql"), (3, "db2"), (2, "mssql")] {
        let result = Probe::of(tunnel.ports[at], speaks, "", Duration::from_secs(3)).ask().await;
        let Err(failure) = &result.outcome else { panic!("{speaks} at {at} is taken for life") };
        assert!(matches!(failure.reason, Reason::Protocol | Reason::RemoteSilent | Reason::RemoteRefused), "{speaks}: {failure:?}");
    }
}

#[tokio::test]
async fn a_frozen_and_a_closed_far_end_a_frozen_and_a_killed_ssh_have_four_reasons_and_a_way_back() {
    let Some(mut postgres) = Postgres::start(false).await else { return };
    let Some(mut tunnel) = Tunnel::to(&[&format!("127.0.0.1:{}", postgres.port)]).await else { return };
    let port = tunnel.ports[0];
    let probe = Probe::of(port, "postgres", "", Duration::from_secs(2));
    probe.recovers().await;

    postgres.process.signal("STOP");
    let result = probe.ask().await;
    failed(&result, Reason::RemoteSilent, &format!("no answer within 2s: 127.0.0.1:{port}: connected after "));
    failed(
        &result,
        Reason::RemoteSilent,
        "waiting for PostgreSQL's first byte: the tunnel is up but the far end is silent; ssh has passed",
    );
    // The connection that waits is one that ssh has taken before.
    tunnel.ssh.signal("STOP");
    failed(&probe.ask().await, Reason::SshHung, &format!("is stopped: kill -CONT {}", tunnel.ssh.pid()));
    tunnel.ssh.signal("CONT");
    failed(&probe.ask().await, Reason::RemoteSilent, "the far end is silent");
    postgres.process.signal("CONT");
    probe.recovers().await;

    postgres.process.kill();
    // One of its children that had just begun may still have the port open.
    eventually("the far port is closed", Duration::from_secs(10), || async {
        tokio::net::TcpStream::connect(("127.0.0.1", postgres.port)).await.is_err().then_some(())
    })
    .await;
    failed(&probe.ask().await, Reason::RemoteRefused, &format!("the far end (127.0.0.1:{} as its host sees it) is closed", postgres.port));
    postgres.restart().await;
    probe.recovers().await;

    // The far host is gone as a whole: ssh does not even get the connection opened.
    tunnel.signal_far("STOP");
    failed(&probe.ask().await, Reason::RemoteSilent, "ssh has not passed the first bytes on");
    tunnel.signal_far("CONT");
    probe.recovers().await;

    tunnel.ssh.signal("STOP");
    let result = probe.ask().await;
    failed(&result, Reason::SshHung, &format!("is stopped: kill -CONT {}", tunnel.ssh.pid()));
    failed(&result, Reason::SshHung, "no process has taken the connection: ssh (pid ");
    tunnel.ssh.signal("CONT");
    probe.recovers().await;

    tunnel.ssh.kill();
    failed(&probe.ask().await, Reason::LocalRefused, "nobody listens there");
    tunnel.restart().await;
    probe.recovers().await;
}

#[tokio::test]
async fn a_dead_path_to_the_far_host_is_told_from_a_far_end_that_is_silent() {
    let Some(tunnel) = Tunnel::to(&["sshd"]).await else { return };
    let probe = Probe::of(tunnel.ports[0], "ssh", "", Duration::from_secs(2));
    let result = probe.ask().await;
    well(&result);
    assert_eq!(value(&result, "tunnel_ssh_retransmits"), Some(0.0));
    let Some(cut) = tunnel.cut() else { return };
    let result = probe.ask().await;
    failed(&result, Reason::RemoteSilent, &format!("; ssh's own connection to 127.0.0.1:{} has ", tunnel.sshd_port));
    failed(&result, Reason::RemoteSilent, "times: the path to the far host is dead");
    let result = probe.ask().await;
    for name in ["tunnel_ssh_retransmits", "tunnel_ssh_unacknowledged_bytes"] {
        assert!(value(&result, name).is_some_and(|value| value > 0.0), "{name}: {:?}", result.samples);
    }
    drop(cut);
    eventually("the path carries again", Duration::from_secs(20), || async { probe.ask().await.outcome.is_ok().then_some(()) }).await;
}

#[tokio::test]
async fn sql_server_is_asked_by_the_bytes_of_its_documentation() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    // The request of [MS-TDS] §4.1 and what SQL Server 2012 SP1 answered to it (see src/probe/tunnel/dialect.rs).
    const REQUEST: &[u8] = b"\x12\x01\x00\x2f\x00\x00\x01\x00\x00\x00\x1a\x00\x06\x01\x00\x20\x00\x01\x02\x00\x21\x00\x01\x03\x00\x22\x00\x04\x04\x00\x26\x00\x01\xff\x09\x00\x00\x00\x00\x00\x01\x00\xb8\x0d\x00\x00\x01";
    const ANSWER: &[u8] = b"\x04\x01\x00\x2b\x00\x00\x01\x00\x00\x00\x1a\x00\x06\x01\x00\x20\x00\x01\x02\x00\x21\x00\x01\x03\x00\x22\x00\x00\x04\x00\x22\x00\x01\xff\x0b\x00\x0b\xb8\x00\x00\x01\x00\x01";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let far = listener.local_addr().expect("it is bound").to_string();
    let Some(tunnel) = Tunnel::to(&[&far]).await else { return };
    let probe = Probe::new(tunnel.ports[0], "mssql");
    let server = async {
        let (mut stream, _) = listener.accept().await.expect("sshd connects");
        let mut request = vec![0u8; REQUEST.len()];
        stream.read_exact(&mut request).await.expect("it asks");
        assert_eq!(request, REQUEST);
        stream.write_all(ANSWER).await.expect("it listens");
        assert_eq!(stream.read(&mut [0; 1]).await.expect("it is not broken off"), 0, "and says no more");
    };
    let (result, ()) = tokio::join!(probe.ask(), server);
    well(&result);
}

#[tokio::test]
async fn whatever_is_frozen_one_connection_is_left_behind_at_most() {
    let Some(postgres) = Postgres::start(false).await else { return };
    let Some(tunnel) = Tunnel::to(&[&format!("127.0.0.1:{}", postgres.port)]).await else { return };
    let probe = Probe::of(tunnel.ports[0], "postgres", "", Duration::from_secs(2));
    for (frozen, port, reason) in
        [(&postgres.process, postgres.port, Reason::RemoteSilent), (&tunnel.ssh, tunnel.ports[0], Reason::SshHung)]
    {
        frozen.signal("STOP");
        for _ in 0..5 {
            let result = probe.ask().await;
            failed(&result, reason, "");
            assert_eq!(value(&result, "tunnel_accept_queue"), Some(0.0), "its own is no load of the site's");
        }
        assert_eq!(waiting(port), 1);
        frozen.signal("CONT");
        // Until ssh or PostgreSQL has woken and taken it, the one left behind is waiting before anybody else's.
        eventually("the one left behind is taken", Duration::from_secs(30), || async { (waiting(port) == 0).then_some(()) }).await;
        let again = Probe::new(tunnel.ports[0], "postgres");
        well(&again.ask().await);
        probe.recovers().await;
        eventually("nothing is left", Duration::from_secs(30), || async { (waiting(port) == 0).then_some(()) }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_replaced_after_five_minutes_and_not_before() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let taken = Arc::new(std::sync::Mutex::new(Vec::new()));
    let keeps = taken.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            keeps.lock().expect("no panic in here").push(stream);
        }
    });
    let probe = Probe::of(port, "generic", ", owner: []", Duration::from_secs(5));
    let begin = tokio::time::Instant::now();
    while begin.elapsed() < Duration::from_secs(310) {
        let since = begin.elapsed();
        let result = probe.ask().await;
        failed(&result, Reason::RemoteSilent, "the far end is silent");
        let wanted = if since < Duration::from_secs(300) { 1 } else { 2 };
        assert_eq!(taken.lock().expect("no panic in here").len(), wanted, "after {since:?}");
    }
}

#[tokio::test]
async fn another_program_on_the_port_is_named_and_not_asked() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let result = Probe::new(port, "mysql").ask().await;
    failed(&result, Reason::WrongOwner, &format!("(pid {}, user ", std::process::id()));
    failed(&result, Reason::WrongOwner, "expected that ssh holds the port, found ");
    failed(&result, Reason::WrongOwner, "ExitOnForwardFailure=yes");
    assert_eq!(waiting(port), 0, "it was not asked");
    let name = std::fs::read_to_string("/proc/self/comm").expect("it is there");
    let probe = Probe::of(port, "mysql", &format!(", owner: [ssh, {}]", name.trim()), Duration::from_secs(3));
    failed(&probe.ask().await, Reason::SshHung, "hangs: start the tunnel again");
}

#[tokio::test]
async fn without_the_right_to_look_the_rest_is_judged_and_what_is_missing_is_said() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can ask as somebody else");
        return;
    }
    let Some(tunnel) = Tunnel::to(&["sshd"]).await else { return };
    let folder = tempfile::tempdir().expect("a folder can be made");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
    let (config, program) = (folder.path().join("proctor.yml"), folder.path().join("proctor"));
    install(std::path::Path::new(env!("CARGO_BIN_EXE_proctor")), &program);
    let text = format!("probes:\n  csrpt: {{tunnel: {{address: '127.0.0.1:{}', speaks: ssh}}}}\n", tunnel.ports[0]);
    std::fs::write(&config, text).expect("the folder takes files");
    let check = || {
        let mut command = as_user("nobody", &program);
        let output = command.args(["check", "--config"]).arg(&config).env("COLUMNS", "200").output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, told) = check();
    assert_eq!(code, Some(0), "{told}");
    assert!(told.starts_with("partly"), "{told}");
    let words = told.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("which program holds 127.0.0.1:") && words.contains("it is one of root's"), "{told}");
    tunnel.ssh.signal("STOP");
    let (code, told) = check();
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("ssh_hung"), "the kernel tells everybody: {told}");
}

#[tokio::test]
async fn a_server_that_does_what_none_should_has_its_reason_in_time() {
    use Reason::{AnswerTimeout, Eof, Protocol, RemoteRefused, RemoteSilent};
    let greeting = b"\x0a\0\0\0\x0a8.4\0\0\0\0\0\0".to_vec();
    for speaks in ["postgres", "mysql", "db2", "mssql", "ssh", "generic"] {
        let alive = |reason| if speaks == "generic" { None } else { Some(reason) };
        for (manner, wanted) in [
            (Manner::Silent, Some(RemoteSilent)),
            (Manner::Closes, Some(RemoteRefused)),
            (Manner::Resets, Some(RemoteRefused)),
            (Manner::Says(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()), alive(Protocol)),
            (Manner::Says(vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03, 0x0a]), alive(Protocol)),
            (Manner::SaysAndHolds(vec![b'x'; 8192]), alive(Protocol)),
            (Manner::Endless(vec![b'x'; 10]), alive(Protocol)),
        ] {
            let probe = Probe::of(hostile(manner.clone()).await, speaks, ", owner: []", Duration::from_secs(2));
            let result = probe.ask().await;
            let found = result.outcome.as_ref().err().map(|failure| failure.reason);
            assert_eq!(found, wanted, "{speaks} {manner:?}: {:?}", result.outcome);
        }
    }
    for (speaks, manner, wanted) in [
        ("mysql", Manner::Drips(greeting.clone()), Some(AnswerTimeout)),
        ("mysql", Manner::SaysAndHolds(greeting[..7].to_vec()), Some(AnswerTimeout)),
        ("mysql", Manner::Says(greeting[..7].to_vec()), Some(Eof)),
        ("db2", Manner::Says(b"\x00\x71\xd0".to_vec()), Some(Eof)),
        ("mssql", Manner::Drips(vec![4; 20]), Some(AnswerTimeout)),
        ("ssh", Manner::Drips(b"SSH-2.0-x\r\n".to_vec()), Some(AnswerTimeout)),
        ("ssh", Manner::Endless(b"SSH-".to_vec()), Some(Protocol)),
        // These are well, and the end is never polite: it costs a second at most.
        ("mysql", Manner::SaysAndHolds(greeting.clone()), None),
        ("mysql", Manner::Endless(greeting.clone()), None),
        ("postgres", Manner::SaysAndHolds(b"S".to_vec()), None),
        ("postgres", Manner::Endless(b"S".to_vec()), None),
        ("ssh", Manner::Endless(b"SSH-2.0-x\r\n".to_vec()), None),
    ] {
        let probe = Probe::of(hostile(manner.clone()).await, speaks, ", owner: []", Duration::from_secs(2));
        let result = probe.ask().await;
        let found = result.outcome.as_ref().err().map(|failure| failure.reason);
        assert_eq!(found, wanted, "{speaks} {manner:?}: {:?}", result.outcome);
    }
}

#[tokio::test]
async fn what_postgres_has_to_say_about_the_probe_is_nothing() {
    for tls in [false, true] {
        let Some(postgres) = Postgres::start(tls).await else { return };
        let Some(tunnel) = Tunnel::to(&[&format!("127.0.0.1:{}", postgres.port)]).await else { return };
        let before = postgres.log();
        let probe = Probe::new(tunnel.ports[0], "postgres");
        for _ in 0..20 {
            well(&probe.ask().await);
        }
        assert_eq!(postgres.log(), before, "with TLS: {tls}");
    }
}

#[tokio::test]
async fn sshd_logs_a_connection_that_was_closed_and_no_error() {
    let Some(tunnel) = Tunnel::to(&["sshd"]).await else { return };
    well(&Probe::new(tunnel.ports[0], "ssh").ask().await);
    let log =
        eventually("sshd noticed", Duration::from_secs(5), || async { Some(tunnel.sshd_log()).filter(|log| log.contains("[preauth]")) })
            .await;
    let about: Vec<&str> = log.lines().filter(|line| line.contains("[preauth]") || line.contains("error")).collect();
    assert!(about.len() == 1 && about[0].starts_with("Connection closed by 127.0.0.1"), "{log}");
}

#[tokio::test]
async fn a_mysql_server_never_blocks_the_tunnels_host() {
    // It counts broken handshakes by address, and not those of 127.0.0.1: the tunnel's far end is another of this host.
    let Some(own) = own_address() else {
        assert!(std::env::var_os("REQUIRE_SERVICES").is_none(), "this host has no address but 127.0.0.1");
        eprintln!("skipped: this host has no address but 127.0.0.1");
        return;
    };
    let Some(mariadb) = Mariadb::start(&[]).await else { return };
    let far = (own, mariadb.port);
    let Some(tunnel) = Tunnel::to(&[&format!("{own}:{}", mariadb.port)]).await else { return };
    mariadb.ask(&block("probes/tunnel.md", "sql", 0, &[("'the-far-host'", &format!("'{own}'"))]));
    let refused = Probe::of(tunnel.ports[0], "mysql", ", username: a_stranger", Duration::from_secs(3));
    for _ in 0..200 {
        well(&refused.ask().await);
    }
    // It counts one that it refuses after it has said so.
    eventually("each is counted", Duration::from_secs(30), || async { (mariadb.counter("Aborted_connects") == 200).then_some(()) }).await;
    let known = Probe::new(tunnel.ports[0], "mysql");
    for _ in 0..20 {
        well(&known.ask().await);
    }
    assert_eq!(mariadb.counter("Aborted_connects"), 200, "who is let in is counted nowhere");
    assert_eq!(mariadb.counter("Aborted_clients"), 0, "and says goodbye");
    mariadb.ask("SET GLOBAL require_secure_transport = ON");
    for _ in 0..20 {
        well(&refused.ask().await);
    }
    // That this can fail: rude clients are blocked at once, and the probe says so.
    for _ in 0..3 {
        use tokio::io::AsyncReadExt;
        let before = mariadb.counter("Aborted_connects");
        let mut rude = tokio::net::TcpStream::connect(far).await.expect("it listens");
        let read = rude.read(&mut [0u8; 512]).await.expect("it greets");
        assert!(read > 0);
        drop(rude);
        eventually("the rude client was counted", Duration::from_secs(5), || async {
            (mariadb.counter("Aborted_connects") > before).then_some(())
        })
        .await;
    }
    let blocked = eventually("the host is blocked", Duration::from_secs(5), || async {
        let result = known.ask().await;
        result.outcome.is_err().then_some(result)
    })
    .await;
    failed(&blocked, Reason::Forbidden, "has blocked the tunnel's host (max_connect_errors)");
}

/// An address of this host that is not 127.0.0.1: the one from which it would send; nothing is sent.
pub(crate) fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback())
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_the_near_ends() {
    let result = Probe::new(free_port(), "db2").ask().await;
    failed(&result, Reason::LocalRefused, "nobody listens there, so ssh has ended or could not have the port");
    assert_eq!(result.sight, Sight::Full);
}
