//! Names no longer resolve, the gateway is gone, or most hosts are: that is one mail, not one per target, and nothing is
//! repaired until Proctor sees again.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

use crate::support::network::Network;
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

/// Proctor's host, the gateway, and four hosts: the gateway itself, and three behind it.
struct Site {
    ours: Network,
    beyond: Network,
    port: u16,
}

const FAR: [&str; 4] = ["10.77.0.1", "10.88.0.1", "10.88.0.2", "10.88.0.3"];

impl Site {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root may make networks");
            return None;
        }
        let (ours, beyond) = (Network::new()?, Network::new()?);
        ours.ip(&format!("link add up0 type veth peer name down0 netns {}", beyond.pid()));
        beyond.ip("addr add 10.88.0.1/32 dev lo
             addr add 10.88.0.2/32 dev lo
             addr add 10.88.0.3/32 dev lo
             addr add 10.77.0.1/24 dev down0
             link set down0 up");
        ours.ip("addr add 10.77.0.2/24 dev up0
             link set up0 up
             route add default via 10.77.0.1");
        let listener = beyond.within(|| std::net::TcpListener::bind("0.0.0.0:0").expect("binds"));
        let port = listener.local_addr().expect("it is bound").port();
        // Ends with the test binary; a connection is taken and dropped.
        std::thread::spawn(move || listener.incoming().for_each(drop));
        Some(Self { ours, beyond, port })
    }

    /// Lets Proctor watch from within while something is broken and mended: one mail says why, another that it is over.
    fn breaks(&self, broken: &str, mended: &str, why: &str, failing: usize) {
        self.ours.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(self.watched(broken, mended, why, failing));
        });
    }

    async fn watched(&self, broken: &str, mended: &str, why: &str, failing: usize) {
        // The relay is on the host of Proctor: it is reached all the time.
        let sink = Sink::start().await;
        let probes: String =
            FAR.iter().enumerate().map(|(n, host)| format!("  far{n}: {{tcp: {{address: \"{host}:{}\"}}}}\n", self.port)).collect();
        let relay = format!("  relay: {{tcp: {{address: \"127.0.0.1:{}\"}}}}\n", sink.port);
        let proctor = Proctor::configured(sink.port, &format!("probes:\n{probes}{relay}"));
        std::fs::write(proctor.folder.path().join("rules.yml"), RULES).expect("is written");
        let proctor = proctor.started();
        for probe in ["far0", "far1", "far2", "far3", "relay"] {
            proctor.shows(&format!("probe_success{{probe=\"{probe}\"}} 1"), SOON).await;
        }

        self.beyond.ip(broken);
        proctor.shows("proctor_cannot_see 1", SOON).await;
        proctor.shows(&format!("proctor_alerts{{state=\"firing\"}} {}", failing + 1), SOON).await;
        proctor.shows("probe_success{probe=\"relay\"} 1", SOON).await;
        let told = || async { proctor.get("/").await.filter(|page| page.contains(why)) };
        eventually(&format!("the page says {why}"), SOON, told).await;
        let mails = sink.wait_for(2, SOON).await;
        assert!(mails.iter().all(|mail| mail.header("X-Alert-Name") == "ProctorCannotSee"), "{:?}", subjects(&sink));
        // The kernel may believe in the gateway for a while: until then it is most hosts that are gone.
        let at_first = "hosts beyond this one are not reached";
        assert!(mails[0].text.contains(why) || mails[0].text.contains(at_first), "{}", mails[0].text);

        self.beyond.ip(mended);
        proctor.shows("proctor_cannot_see 0", SOON).await;
        proctor.shows("proctor_alerts{state=\"firing\"} 0", SOON).await;
        let mails = sink.wait_for(4, SOON).await;
        let of = |state: &str| mails.iter().filter(|mail| mail.header("X-Alert-State") == state).count();
        assert_eq!((of("FIRING"), of("RESOLVED"), mails.len()), (2, 2, 4), "one of each for both admins: {:?}", subjects(&sink));
        assert!(mails.iter().all(|mail| mail.header("X-Alert-Name") == "ProctorCannotSee"), "{:?}", subjects(&sink));
    }
}

#[test]
fn a_dead_gateway_is_one_mail_and_its_end_another() {
    let Some(site) = Site::new() else { return };
    site.breaks("link set down0 down", "link set down0 up", "the gateway 10.77.0.1 does not answer on its own network", FAR.len());
}

#[test]
fn most_hosts_gone_behind_a_gateway_that_answers_are_one_mail_and_their_end_another() {
    let Some(site) = Site::new() else { return };
    let each = |verb: &str| FAR[1..].iter().map(|host| format!("addr {verb} {host}/32 dev lo\n")).collect::<String>();
    site.breaks(&each("del"), &each("add"), "3 of 4 hosts beyond this one are not reached", FAR.len() - 1);
}

fn subjects(sink: &Sink) -> Vec<String> {
    sink.mails().iter().map(|mail| format!("{} {}", mail.header("X-Alert-State"), mail.header("Subject"))).collect()
}
