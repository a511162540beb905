//! The host itself: full disks and inodes on a tmpfs, ports, clocks and relays of our own, the real `/proc`.

use std::sync::Arc;
use std::time::Duration;

use proctor::metrics::Metrics;
use proctor::model::{ProbeResult, Reason, Sample};
use proctor::probe::scheduler::{Scheduled, run};
use proctor::store::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use crate::support::process::{eventually, free_port};
use crate::support::smtp::{Manners, Sink};
use crate::support::tmpfs::Tmpfs;
use crate::support::watched::{Watched, failed, value, well};

/// A host probe `h` with this configuration.
fn host(config: &str) -> Watched {
    Watched::new(&format!("  h: {{timeout: 8s, host: {{{config}}}}}"))
}

async fn ask(watched: &Watched, target: &str) -> ProbeResult {
    let fits = |one: &&Scheduled| one.target.target.as_deref() == Some(target);
    run(watched.all.iter().find(fits).expect(target), &Metrics::new()).await.expect("this host is awake")
}

/// Returns the value for a mount.
fn of_mount(result: &ProbeResult, name: &str, point: &str) -> Option<f64> {
    let fits = |sample: &&Sample| {
        sample.family.name == name && sample.labels.iter().any(|(label, value)| *label == "mountpoint" && &**value == point)
    };
    result.samples.iter().find(fits).map(|sample| sample.value)
}

#[tokio::test]
async fn a_full_disk_is_told_with_what_fills_it_and_is_well_again_with_room() {
    let Some(disk) = Tmpfs::mount("64m") else { return };
    let point = disk.path().display().to_string();
    let watched = host(&format!("disks: [{point:?}, \"{point}/uploads\"]"));
    let result = ask(&watched, "disk").await;
    failed(&result, Reason::Missing, "uploads: no such folder");
    std::fs::create_dir(disk.path().join("uploads")).expect("is made");
    let free = of_mount(&ask(&watched, "disk").await, "node_filesystem_avail_bytes", &point).expect("it is watched, and once");
    std::fs::create_dir(disk.path().join("log")).expect("is made");
    std::fs::write(disk.path().join("log/django.log"), vec![1u8; 62 << 20]).expect("is written");
    let result = ask(&watched, "disk").await;
    let Err(failure) = &result.outcome else { panic!("it is full") };
    assert!(failure.reason == Reason::Saturated && failure.detail.contains(&format!("{point}: 2.0 MiB of 64.0 MiB are left")), "{failure}");
    assert!(result.evidence.iter().any(|line| line.contains("log/django.log (62.0 MiB)")), "{:?}", result.evidence);
    assert!(of_mount(&result, "node_filesystem_avail_bytes", &point).expect("is told") < free - 6e7);
    std::fs::remove_file(disk.path().join("log/django.log")).expect("is removed");
    let result = ask(&watched, "disk").await;
    assert!(!format!("{:?}", result.outcome).contains(&point), "{:?}", result.outcome);
}

#[tokio::test]
async fn inodes_that_run_out_are_told_apart_from_space() {
    let Some(disk) = Tmpfs::mount("64m,nr_inodes=200") else { return };
    let point = disk.path().display().to_string();
    let watched = host(&format!("disks: [{point:?}]"));
    let mut made = 0;
    while made < 500 && std::fs::write(disk.path().join(made.to_string()), b"").is_ok() {
        made += 1;
    }
    let result = ask(&watched, "disk").await;
    let detail = result.outcome.as_ref().expect_err("none is left").detail.clone();
    assert!(detail.contains(&format!("{point}: 0 of 200 inodes are left: many small files")), "{detail}");
    assert_eq!(of_mount(&result, "node_filesystem_files_free", &point), Some(0.0));
    // Read-only it cannot be filled: that is how it is meant, or the rule of another probe.
    disk.remount("ro");
    let result = ask(&watched, "disk").await;
    assert!(!format!("{:?}", result.outcome).contains("inodes"), "{:?}", result.outcome);
    assert_eq!(of_mount(&result, "node_filesystem_readonly", &point), Some(1.0));
}

#[tokio::test]
async fn memory_and_load_come_from_the_kernel() {
    let result = ask(&host(""), "memory").await;
    for name in ["node_memory_MemAvailable_bytes", "node_memory_MemTotal_bytes", "node_load1", "node_vmstat_oom_kill", "host_processors"] {
        assert!(value(&result, name, "").is_some(), "{name}");
    }
    if std::path::Path::new("/proc/pressure/memory").exists() {
        assert!(value(&result, "node_pressure_memory_stalled_seconds_total", "").is_some());
    }
}

#[tokio::test]
async fn a_port_that_is_opened_to_others_after_the_first_look_is_news_over_a_restart_and_gone_when_closed() {
    let store = Store::open(None, Arc::new(Metrics::new())).expect("lives in memory");
    let open = async |address: &str| TcpListener::bind(address).await.expect("a port is free");
    let before = open("0.0.0.0:0").await;
    let started = |config: &str| {
        let mut watched = host(config);
        watched.all.iter_mut().for_each(|one| one.probe.remember(&one.target.clone(), &store));
        watched
    };
    let watched = started("");
    let first = ask(&watched, "ports").await;
    well(&first, true);
    // Below those that the kernel chooses: free ones are looked for by hand.
    let port = free_port();
    let listener = open(&format!("0.0.0.0:{port}")).await;
    let label = port.to_string();
    for watched in [&watched, &started("")] {
        let result = ask(watched, "ports").await;
        failed(&result, Reason::Mismatch, "was not at the first look");
        assert_eq!(value(&result, "host_open_port_new", &label), Some(1.0));
        let detail = result.outcome.expect_err("it is new").detail;
        assert!(detail.contains(&format!("{port} by it")), "{detail}");
    }
    let result = ask(&started(&format!("open_ports: [{port}]")), "ports").await;
    assert_eq!(value(&result, "host_open_port_new", &label), None);
    drop(listener);
    // A child that another test starts just then has it open too, for a moment.
    eventually("the port is closed", Duration::from_secs(10), || async {
        value(&ask(&watched, "ports").await, "host_open_port_new", &label).is_none().then_some(())
    })
    .await;
    drop(before);
}

/// A server of NTP that is ahead by so many seconds; nothing: it is not synchronised.
async fn ntp(ahead: Option<i64>) -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port is free");
    let port = socket.local_addr().expect("is bound").port();
    tokio::spawn(async move {
        let mut packet = [0u8; 100];
        while let Ok((48, from)) = socket.recv_from(&mut packet).await {
            let mut answer = [0u8; 48];
            answer[0] = if ahead.is_some() { 0x24 } else { 0xe4 };
            answer[1] = 2;
            answer[24..32].copy_from_slice(&packet[40..48]);
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after it");
            let seconds = now.as_secs() as i64 + ahead.unwrap_or(0) + 2_208_988_800;
            for at in [32, 40] {
                answer[at..at + 4].copy_from_slice(&(seconds as u32).to_be_bytes());
                answer[at + 4..at + 8].copy_from_slice(&(((u64::from(now.subsec_nanos())) << 32) / 1_000_000_000).to_be_bytes()[4..]);
            }
            let _ = socket.send_to(&[0u8; 48], from).await;
            let _ = socket.send_to(&answer, from).await;
        }
    });
    port
}

#[tokio::test]
async fn a_clock_is_compared_with_ntp_or_the_date_of_a_page() {
    let clock = |port: u16| host(&format!("clock: 'ntp://127.0.0.1:{port}'"));
    let result = ask(&clock(ntp(Some(0)).await), "clock").await;
    well(&result, true);
    assert!(value(&result, "host_clock_offset_seconds", "").is_some_and(|offset| offset.abs() < 1.9), "{:?}", result.samples);
    let result = ask(&clock(ntp(Some(90)).await), "clock").await;
    failed(&result, Reason::Mismatch, "s behind 127.0.0.1:");
    failed(&ask(&clock(ntp(None).await), "clock").await, Reason::Unavailable, "not synchronised");
    let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a port is free");
    let port = silent.local_addr().expect("is bound").port();
    failed(&ask(&clock(port), "clock").await, Reason::AnswerTimeout, "to say the time");
    let page = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = page.local_addr().expect("is bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = page.accept().await {
            let mut request = [0u8; 1000];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    let result = ask(&host(&format!("clock: 'http://127.0.0.1:{port}/'")), "clock").await;
    failed(&result, Reason::Mismatch, "s ahead of http://127.0.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_of_the_mail_is_gone_up_to_the_recipient_and_nothing_is_sent() {
    let refuses = |address: &str| Manners { always: [(format!("RCPT {address}"), "550 no such user")].into(), ..Manners::default() };
    let sink = Sink::with(refuses("nobody@example.org")).await;
    let to = |to: &str| host(&format!("mail: {{host: 127.0.0.1, port: {}, from: noreply@example.org, to: {to}}}", sink.port));
    let watched = to("postmaster@example.org");
    let result = ask(&watched, "mail").await;
    well(&result, true);
    assert_eq!(value(&result, "host_mail_accepted", ""), Some(1.0));
    let connections = sink.connections();
    assert_eq!(value(&ask(&watched, "mail").await, "host_mail_accepted", ""), Some(1.0), "the answer stands for a while");
    assert_eq!(sink.connections(), connections);
    let result = ask(&to("nobody@example.org"), "mail").await;
    failed(&result, Reason::Forbidden, "550");
    assert_eq!(value(&result, "host_mail_accepted", ""), Some(0.0));
    assert!(result.evidence.iter().any(|line| line.contains("RCPT TO:<nobody@example.org>")), "{:?}", result.evidence);
    sink.down();
    failed(&ask(&to("other@example.org"), "mail").await, Reason::Refused, "connection failed");
    assert!(sink.mails().is_empty(), "nothing is sent");
}
