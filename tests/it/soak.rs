//! Minutes of everything at once: what grows, and what is left behind. Only in `make test-slow`.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::hostile::{Manner, hostile};
use crate::support::memcached::memcached;
use crate::support::process::{eventually, free_port};
use crate::support::proctor::Proctor;
use crate::support::smtp::Sink;
use crate::support::whole::WholeSite;

/// What a process holds: resident memory in KiB, file descriptors, threads; and the CPU it has taken so far, in ticks.
#[derive(Debug)]
struct Held {
    rss: usize,
    descriptors: usize,
    threads: usize,
    ticks: usize,
}

fn held(pid: u32) -> Held {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says it");
        line.split_whitespace().find_map(|word| word.parse().ok()).expect("is a number")
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").count();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("the name ends").split_whitespace().collect();
    let ticks = fields[11..13].iter().map(|field| field.parse::<usize>().expect("is a number")).sum();
    Held { rss: number("VmRSS:"), descriptors, threads: number("Threads:"), ticks }
}

/// Fifty readers at once: some ask, some say half a request, some go away.
async fn storm(port: u16) {
    let one = |n: usize| async move {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return };
        let request: &[u8] = match n % 5 {
            0 => b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n",
            1 => b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            2 => b"GET /metrics HTTP/1.1\r\nHost",
            3 => b"\x16\x03\x01\x02\x00\x01\x00garbage\r\n\r\n",
            _ => b"POST /-/ready HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n",
        };
        let _ = stream.write_all(request).await;
        if n % 5 < 2 {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    };
    futures_util::future::join_all((0..50).map(one)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make test-slow; SOAK_MINUTES, default 5"]
async fn nothing_grows_while_services_come_and_go_and_strangers_storm_in() {
    let minutes = std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let sink = Sink::start().await;
    let port = free_port();
    let mut probes = format!("probes:\n  cache: {{memcached: {{address: \"127.0.0.1:{port}\", canary: true}}}}\n");
    let manners = [
        Manner::Silent,
        Manner::Says(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nno\r\n".to_vec()),
        Manner::SaysAndHolds(b"STAT pid 1\r\nSTAT ".to_vec()),
        Manner::Endless(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        Manner::Drips(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        Manner::Closes,
        Manner::Resets,
    ];
    for (n, manner) in manners.into_iter().enumerate() {
        let port = hostile(manner).await;
        probes += &format!("  tcp{n}: {{tcp: {{address: \"127.0.0.1:{port}\", expect: well}}}}\n");
        probes += &format!("  http{n}: {{http: {{url: \"http://127.0.0.1:{port}/\"}}}}\n");
        probes += &format!("  tls{n}: {{http: {{url: \"https://127.0.0.1:{port}/\"}}}}\n");
        probes += &format!("  cache{n}: {{memcached: {{address: \"127.0.0.1:{port}\"}}}}\n");
        probes += &format!("  tunnel{n}: {{tunnel: {{address: \"127.0.0.1:{port}\", speaks: postgres, owner: []}}}}\n");
    }
    let proctor = Proctor::configured(sink.port, &probes).rules(&[("Down", "memcached_up{probe=\"cache\"} == 0")]).started();
    let pid = proctor.process.as_ref().expect("it was started").pid();
    let (begin, mut rounds, mut early) = (Instant::now(), 0, None);
    while begin.elapsed() < Duration::from_secs(60 * minutes) {
        let Some(mut cache) = memcached(proctor.folder.path(), port) else { return };
        proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(30)).await;
        storm(proctor.web).await;
        cache.kill();
        proctor.shows("memcached_up{probe=\"cache\"} 0", Duration::from_secs(30)).await;
        if rounds == 0 {
            // Once as long as it takes: what is mailed takes memory too.
            assert_eq!(sink.wait_for(2, Duration::from_secs(60)).await[0].header("X-Alert-State"), "FIRING");
        }
        if rounds % 3 == 0 {
            let done = Command::new("kill").args(["-HUP", &pid.to_string()]).status().expect("it can be told");
            assert!(done.success());
        }
        rounds += 1;
        // By then everything was asked, mailed and loaded anew once, and the allocator has what it needs.
        if early.is_none() && begin.elapsed() > Duration::from_secs(20 * minutes) {
            early = Some(held(pid));
        }
    }
    let (early, late) = (early.expect("it was looked at"), held(pid));
    eprintln!("{rounds} rounds; early {early:?}, late {late:?}");
    assert!(late.rss < early.rss + early.rss / 4, "{early:?} {late:?}");
    assert!(late.descriptors <= early.descriptors + 60, "{early:?} {late:?}");
    assert!(late.threads <= early.threads + 16, "no more than the blocking threads: {early:?} {late:?}");
    let metrics = proctor.metrics().await.expect("it answers");
    for line in metrics.lines().filter(|line| line.starts_with("proctor_") && line.contains("panics")) {
        assert!(line.ends_with(" 0"), "{line}");
    }
    // It still judges: the cache is gone for good.
    proctor.shows("proctor_alerts{state=\"firing\"} 1", Duration::from_secs(60)).await;
    let mut proctor = proctor;
    assert!(proctor.stop().is_some_and(|status| status.success()), "{}", proctor.log());
}

/// How long it is measured what all probes take.
const MEASURED: Duration = Duration::from_secs(120);

/// `make bench` judges what it prints, of a released build. Nothing else may fail here: figures of a machine are no test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: make bench PARTS=site"]
async fn all_probes_of_the_whole_site_are_asked_every_15_s() {
    let Some(site) = WholeSite::start().await else { return };
    let sink = Sink::start().await;
    let mut proctor = Proctor::configured(sink.port, &site.probes).rules_as_they_are();
    let config = fs::read_to_string(proctor.config()).expect("it is there");
    let config = config.replace("interval: 1s, timeout: 1s", "interval: 15s, timeout: 5s").replace("interval: 1s}", "interval: 15s}");
    fs::write(proctor.config(), config).expect("is written");
    proctor.start();
    let pid = proctor.process.as_ref().expect("it was started").pid();
    let failing = || async {
        let metrics = proctor.metrics().await?;
        let lines: Vec<&str> = metrics.lines().filter(|line| line.starts_with("probe_success{")).collect();
        let failing = lines.iter().filter(|line| !line.ends_with(" 1")).map(|line| (*line).to_owned()).collect::<Vec<_>>();
        Some((lines.len(), failing))
    };
    // All but the closed port, once the first canaries are back.
    let targets = eventually("all is well", Duration::from_secs(300), || async {
        let (targets, failing) = failing().await?;
        (targets > 20 && failing.len() == 1).then_some(targets)
    })
    .await;
    let (begin, before) = (Instant::now(), held(pid));
    while begin.elapsed() < MEASURED {
        let _ = proctor.metrics().await;
        tokio::time::sleep(Duration::from_secs(15)).await;
    }
    let after = held(pid);
    // A tick is 10 ms.
    let core = (after.ticks - before.ticks) as f64 / 100.0 / begin.elapsed().as_secs_f64();
    eprintln!("site: targets={targets} rss={} core={core:.4}", after.rss * 1024);
}
