//! Names no longer resolve: that is one mail, not one per target, and nothing is repaired until Proctor sees again.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

use crate::support::process::{eventually, program};
use crate::support::proctor::Proctor;
use crate::support::smtp::{Mail, Sink};

const SOON: Duration = Duration::from_secs(60);
const RULES: &str = "
groups:
- name: site
  rules:
  - {alert: ProctorCannotSee, expr: proctor_cannot_see == 1, for: 1s, labels: {severity: critical}}
  - {alert: Down, expr: probe_success == 0, for: 6s, labels: {severity: critical}}
";

/// A name server that knows every name as 127.0.0.1, until it is aborted.
async fn name_server(ip: Ipv4Addr) -> JoinHandle<()> {
    let socket = eventually("its port is free", SOON, || async {
        match UdpSocket::bind((ip, 53)).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse => None,
            bound => Some(bound.expect("root may bind it")),
        }
    });
    let socket = socket.await;
    tokio::spawn(async move {
        let mut query = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut query).await {
            // The header, then one question: labels, a zero, type and class.
            let Some(end) = query[12..length].iter().position(|byte| *byte == 0).map(|zero| 12 + zero + 5) else { continue };
            let is_a = query[end - 3] == 1;
            let mut answer = [&query[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0], &query[12..end]].concat();
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
            }
            // One that is gone does not wait for its answer.
            let _ = socket.send_to(&answer, peer).await;
        }
    })
}

#[tokio::test]
async fn a_dead_resolver_is_one_mail_and_its_end_another_and_what_is_on_this_host_is_judged_as_ever() {
    let (Some(unshare), Some(touch)) = (program("unshare"), program("touch")) else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root may give a process its own /etc/resolv.conf");
        return;
    }
    let [.., high, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, 77, high, low);
    let server = name_server(ip).await;
    let (far, near) = (TcpListener::bind("127.0.0.1:0").await.expect("binds"), TcpListener::bind("127.0.0.1:0").await.expect("binds"));
    let port = |listener: &TcpListener| listener.local_addr().expect("it is bound").port();
    let (sink, folder) = (Sink::start().await, tempfile::tempdir().expect("a folder"));
    let (resolv, touched) = (folder.path().join("resolv.conf"), folder.path().join("touched"));
    std::fs::write(&resolv, format!("nameserver {ip}\noptions timeout:1 attempts:1\n")).expect("is written");
    let one = |name: &str, host: &str, port: u16| format!("  {name}: {{tcp: {{address: \"{host}:{port}\"}}}}\n");
    let sections = ["probes:\n".to_owned()]
        .into_iter()
        .chain(["far1", "far2", "far3"].map(|name| one(name, &format!("{name}.example"), port(&far))))
        .chain([one("near", "127.0.0.1", port(&near))])
        .chain([format!(
            "actions:\n  repair:\n    command: {{argv: [{}, {}]}}\n    matchers: ['alertname=\"Down\"', 'probe=~\"far.\"']\n    \
             firing_for: 0s\n    mode: act\n    verify: {{within: 1s}}\n",
            touch.display(),
            touched.display()
        )]);
    let proctor = Proctor::configured(sink.port, &sections.collect::<String>());
    std::fs::write(proctor.folder.path().join("rules.yml"), RULES).expect("is written");
    let mount = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", resolv.display());
    let proctor = proctor.under([unshare.to_str().expect("is text"), "-m", "sh", "-c", &mount, "sh"]).started();
    for name in ["far1", "far2", "far3", "near"] {
        proctor.shows(&format!("probe_success{{probe=\"{name}\"}} 1"), SOON).await;
    }

    server.abort();
    proctor.shows("proctor_cannot_see 1", SOON).await;
    proctor.shows("proctor_alerts{state=\"firing\"} 4", SOON).await;
    let page = proctor.get("/").await.expect("it answers");
    assert!(page.contains("<strong>Proctor cannot see beyond this host</strong>") && page.contains("of 3 names"), "{page}");
    // What is on this host dies meanwhile.
    drop(near);
    let about = |name: &str, state: &str| {
        let like =
            |mail: &Mail| mail.header("X-Alert-State") == state && mail.header("X-Alert-Name") == name && mail.to.starts_with("ann@");
        sink.mails().into_iter().filter(like).collect::<Vec<_>>()
    };
    let of_near = eventually("the local one is mailed", SOON, || async { about("Down", "FIRING").pop() }).await;
    sink.wait_for(4, SOON).await;
    assert!(of_near.text.contains("near: refused"), "{}", of_near.text);
    let blind = about("ProctorCannotSee", "FIRING").pop().expect("it came first");
    assert!(blind.text.contains("the resolver does not answer for"), "{}", blind.text);
    assert_eq!(sink.mails().len(), 4, "one of each for both admins: {:?}", subjects(&sink));

    let _server = name_server(ip).await;
    proctor.shows("proctor_cannot_see 0", SOON).await;
    proctor.shows("proctor_alerts{state=\"firing\"} 1", SOON).await;
    eventually("its end is mailed", SOON, || async { about("ProctorCannotSee", "RESOLVED").pop() }).await;
    let mails = sink.wait_for(6, SOON).await;
    assert_eq!(mails.len(), 6, "nothing more was said: {:?}", subjects(&sink));
    assert!(!touched.exists(), "nothing was done about what could not be seen");
}

fn subjects(sink: &Sink) -> Vec<String> {
    sink.mails().iter().map(|mail| format!("{} {}", mail.header("X-Alert-State"), mail.header("Subject"))).collect()
}
