//! The life of `proctor serve`: start, stop, reload, what systemd and the outside are told; and `proctor check`.

mod check;
mod container;
mod first;
mod recipes;
mod services;

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proctor::metrics::Metrics;
use proctor::notify::{Channel, Delivery, Message, Weight};
use proctor::store::{Batch, Store};
use proctor::tasks;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixDatagram};

use crate::support::process::{Process, eventually, free_port, program};
use crate::support::smtp::{Quirk, Sink};

const SOON: Duration = Duration::from_secs(20);

/// A folder with configuration, state and log of one Proctor.
struct House {
    folder: TempDir,
    web: u16,
}

impl House {
    /// Writes a configuration with intervals of 1 s; `rest` is what the test needs besides.
    fn new(rest: &str) -> Self {
        let house = Self { folder: tempfile::tempdir().expect("a folder"), web: free_port() };
        house.write("rules.yml", "groups: []\n");
        house.configure(rest);
        house
    }

    fn configure(&self, rest: &str) {
        let folder = self.path("").display().to_string();
        self.write(
            "proctor.yml",
            &format!(
                "site: {{name: coursys}}\nweb: {{listen: '127.0.0.1:{}'}}\nstate: {{path: '{folder}/state.db'}}\ndefaults: {{interval: 1s, timeout: 1s}}\n\
                 rules: {{files: ['{folder}/rules.yml'], interval: 1s}}\n{}",
                self.web,
                rest.replace("FOLDER", &folder)
            ),
        );
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("it can be written");
    }

    /// Writes a file that only we can read.
    fn secret(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        self.write(name, text);
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proctor"));
        command.arg("--config").arg(self.path("proctor.yml"));
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("PROCTOR_LOG");
        command
    }

    fn start(&self) -> Process {
        self.start_with(|_| {})
    }

    fn start_with(&self, change: impl FnOnce(&mut Command)) -> Process {
        let mut command = self.command();
        command.arg("serve");
        change(&mut command);
        Process::start(&mut command, &self.path("proctor.log"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("proctor.log")).unwrap_or_default()
    }

    async fn logs(&self, line: &str) {
        eventually(&format!("the log says {line:?}"), SOON, || async { self.log().contains(line).then_some(()) }).await;
    }

    async fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.web)).await.ok()?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    /// Waits until a metric without other labels than those given has at least a value.
    async fn shows(&self, series: &str, least: f64) {
        let ask = || async {
            let text = self.get("/metrics").await?;
            let value: f64 = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())?;
            (value >= least).then_some(())
        };
        eventually(&format!("{series} is at least {least}"), SOON, ask).await;
    }
}

/// Tells a process to stop and returns its exit code and how long it took.
async fn stop(process: &mut Process, signal: &str) -> (Option<i32>, Duration) {
    let begin = Instant::now();
    process.signal(signal);
    let code = tokio::task::block_in_place(|| process.wait()).code();
    (code, begin.elapsed())
}

fn notify(relay: u16) -> String {
    format!(
        "startup: {{first_look: 0s, after_boot: 0s}}\nnotify:\n  admins: [ann@example.org, bob@example.org]\n  from: proctor@example.org\n  \
         group_wait: 1s\n  smtp: {{host: 127.0.0.1, port: {relay}}}\n"
    )
}

const RULES: &str = "groups:\n- name: g\n  rules:\n  - alert: Down\n    expr: probe_success == 0\n    labels: {severity: critical}\n";

// ---- the heartbeat to the outside

/// Counts the calls it gets, and answers what it is told to.
struct Outside {
    port: u16,
    calls: Arc<Mutex<Vec<String>>>,
    answer: Arc<Mutex<String>>,
}

impl Outside {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let outside = Self { port, calls: Arc::default(), answer: Arc::new(Mutex::new("200 OK".into())) };
        let (calls, answer) = (outside.calls.clone(), outside.answer.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap_or(0);
                let line = String::from_utf8_lossy(&request[..length]).lines().next().unwrap_or("").to_owned();
                calls.lock().unwrap().push(line);
                let answer = answer.lock().unwrap().clone();
                let _ = stream.write_all(format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
            }
        });
        outside
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

const HEARTBEAT: &str = "heartbeat_out: {url_file: 'FOLDER/url', every: 1s}\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_heartbeat_stops_while_a_mail_reaches_nobody_and_its_url_is_never_printed() {
    let (outside, sink) = (Outside::start().await, Sink::start().await);
    sink.down();
    let house = House::new(&(HEARTBEAT.to_owned() + &notify(sink.port)));
    house.secret("url", &format!("http://127.0.0.1:{}/ping/s3cret-t0ken?a=b\n", outside.port));
    {
        // A mail of eleven minutes ago, as a Proctor before this one left it.
        let store = Store::open(Some(&house.path("state.db")), Arc::new(Metrics::new())).expect("it opens");
        let queued_at = tasks::now() - Duration::from_secs(660);
        let message = Message {
            message_id: "old@example.org".into(),
            in_reply_to: None,
            references: Vec::new(),
            subject: "old".into(),
            text: "old".into(),
            html: String::new(),
            headers: Vec::new(),
            important: false,
            payload: serde_json::Value::Null,
        };
        let mut batch = Batch::new();
        batch.put(&Delivery {
            id: "old".into(),
            channel: Channel::Email { to: "ann@example.org".into() },
            message,
            weight: Weight::Firing,
            queued_at,
            attempts: 0,
            next_at: queued_at,
            last_error: None,
        });
        store.commit(batch).await;
        store.close();
    }
    let mut proctor = house.start();
    house.shows("proctor_heartbeats_out_total{outcome=\"withheld\"}", 3.0).await;
    let log = house.log();
    assert_eq!(log.matches("no heartbeat goes out: a mail or webhook has waited 11m").count(), 1, "said once: {log}");
    assert_eq!(outside.calls(), [""; 0], "nothing goes out while somebody is not told something");
    sink.up();
    proctor.signal("HUP");
    sink.wait_for(1, SOON).await;
    house.shows("proctor_heartbeats_out_total{outcome=\"sent\"}", 2.0).await;
    house.logs("the heartbeat goes out every 1s").await;
    house.shows("proctor_heartbeat_out_last_success_timestamp_seconds", 1.0).await;
    assert!(outside.calls().iter().all(|call| call == "GET /ping/s3cret-t0ken?a=b HTTP/1.1"), "{:?}", outside.calls());
    // What fails is told without the URL, too.
    *outside.answer.lock().unwrap() = "500 s3cret-t0ken".into();
    house.shows("proctor_heartbeats_out_total{outcome=\"failed\"}", 2.0).await;
    assert_eq!(stop(&mut proctor, "TERM").await.0, Some(0));
    let shown = house.log() + &house.get("/").await.unwrap_or_default();
    assert!(shown.contains(&format!("the heartbeat does not arrive: 127.0.0.1:{} answered 500", outside.port)), "{shown}");
    assert!(!shown.contains("s3cret"), "{shown}");
    assert!(!shown.contains("nobody will notice if this host dies"), "somebody does");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_follows_no_redirect_and_reads_no_file_that_everybody_can_read() {
    let (outside, elsewhere) = (Outside::start().await, Outside::start().await);
    *outside.answer.lock().unwrap() = format!("302 Found\r\nLocation: http://127.0.0.1:{}/", elsewhere.port);
    let house = House::new(HEARTBEAT);
    house.secret("url", &format!("http://127.0.0.1:{}/s3cret\n", outside.port));
    let _proctor = house.start();
    house.shows("proctor_heartbeats_out_total{outcome=\"failed\"}", 3.0).await;
    assert_eq!(house.log().matches("answered 302: redirects are not followed").count(), 1, "said once: {}", house.log());
    assert_eq!(elsewhere.calls(), [""; 0]);
    *outside.answer.lock().unwrap() = "204 No Content".into();
    house.logs("the heartbeat goes out every 1s").await;
    assert!(Command::new("chmod").arg("o+r").arg(house.path("url")).status().expect("chmod runs").success());
    house.logs("can be read by every user of this host: run chmod o-r").await;
    // The file is read at every call: what it says next is enough.
    house.secret("url", "gopher://s3cret");
    house.logs("expected a URL that begins with http:// or https://").await;
    assert!(!house.log().contains("s3cret"), "{}", house.log());
}

#[tokio::test]
async fn without_a_heartbeat_the_first_lines_say_that_nobody_will_notice() {
    let house = House::new("");
    let _proctor = house.start();
    house.logs("serving http://").await;
    let log = house.log();
    let before = log.split("serving http://").next().unwrap_or_default();
    assert!(before.contains("nobody will notice if this host dies") && before.contains("heartbeat_out"), "{log}");
}

#[test]
fn a_heartbeat_that_is_too_often_is_a_mistake_with_its_place() {
    let house = House::new("heartbeat_out: {url_file: /nonexistent, every: 10ms}\n");
    let output = house.command().args(["config", "check"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("proctor.yml:6:16: heartbeat_out.every: expected 1s to 1d, found 10ms"), "{said}");
}

// ---- systemd

/// Where systemd would listen.
struct Notified {
    socket: UnixDatagram,
    seen: Vec<String>,
}

impl Notified {
    fn bind(house: &House) -> Self {
        Self { socket: UnixDatagram::bind(house.path("notify")).expect("it can be bound"), seen: Vec::new() }
    }

    /// Receives until a message holds a line that begins so; returns the message.
    async fn until(&mut self, line: &str) -> String {
        let receive = async {
            loop {
                let mut buffer = [0; 4096];
                let length = self.socket.recv(&mut buffer).await.expect("it can be received");
                let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
                self.seen.push(message.clone());
                if message.lines().any(|found| found.starts_with(line)) {
                    return message;
                }
            }
        };
        let received = tokio::time::timeout(SOON, receive).await;
        received.unwrap_or_else(|_| panic!("{line:?} did not come; seen: {:?}", self.seen))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_of_start_watchdog_reload_and_stop_and_a_dead_relay_does_not_end_the_watchdog() {
    let house = House::new(&(format!("probes:\n  dead: {{tcp: {{address: '127.0.0.1:{}'}}}}\n", free_port()) + &notify(free_port())));
    house.write("rules.yml", RULES);
    let mut systemd = Notified::bind(&house);
    let mut proctor = house.start_with(|command| {
        command.env("NOTIFY_SOCKET", house.path("notify")).env("WATCHDOG_USEC", "3000000");
    });
    let ready = systemd.until("READY=1").await;
    assert!(ready.contains("STATUS=Watching 1 targets: "), "{ready}");
    assert!(house.get("/-/healthy").await.is_some_and(|answer| answer.ends_with("ok\n")), "the web is up when it says so");
    systemd.until("STATUS=Watching 1 targets: 0 well, 1 failing, 1 alerts firing, 2 mails waiting.").await;
    // Two mails cannot go out, and the watchdog is fed all the same: at least twice within its time.
    let begin = Instant::now();
    for _ in 0..6 {
        systemd.until("WATCHDOG=1").await;
    }
    assert!(begin.elapsed() < Duration::from_secs(12), "{:?}", begin.elapsed());

    proctor.signal("HUP");
    let reloading = systemd.until("RELOADING=1").await;
    let moment: u64 = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")?.parse().ok()).expect("a moment with it");
    assert!(moment > 0);
    systemd.until("READY=1").await;

    // A configuration that is wrong is not taken; what was in force stays so, and it is said.
    let good = std::fs::read_to_string(house.path("proctor.yml")).expect("it is there");
    house.write("proctor.yml", &good.replace("tcp:", "tpc:"));
    proctor.signal("HUP");
    systemd.until("RELOADING=1").await;
    let ready = systemd.until("READY=1").await;
    assert!(ready.contains("the new configuration was refused, the old one is in force."), "{ready}");
    assert!(house.log().contains("unknown key \"tpc\"") && house.log().contains("the old configuration stays in force"), "{}", house.log());
    house.shows("probe_success{probe=\"dead\"}", 0.0).await;
    let text = house.get("/metrics").await.expect("it serves on");
    assert!(text.contains("proctor_config_last_reload_successful 0"), "{text}");
    systemd.until("WATCHDOG=1").await;
    // Nor is one that only its probes refuse, nor rules that do not parse: all or nothing.
    house.write("proctor.yml", &good.replace("dead:", "other:"));
    house.write("rules.yml", "groups:\n- name: g\n  rules:\n  - alert: Down\n    expr: sum(\n");
    proctor.signal("HUP");
    assert!(systemd.until("READY=1").await.contains("was refused"));
    assert!(!house.get("/metrics").await.expect("it serves on").contains("probe=\"other\""));
    house.write("rules.yml", RULES);
    house.write("proctor.yml", &good.replace("dead:", "other:").replace(&house.web.to_string(), "0"));
    proctor.signal("HUP");
    assert!(!systemd.until("READY=1").await.contains("was refused"));
    house.shows("probe_success{probe=\"other\"}", 0.0).await;
    assert!(house.log().contains("web.listen has changed: that is taken at the next start"), "{}", house.log());

    proctor.signal("TERM");
    systemd.until("STOPPING=1").await;
    assert_eq!(tokio::task::block_in_place(|| proctor.wait()).code(), Some(0));
}

// ---- the stop

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_within_10_s_whatever_hangs_and_the_mail_under_way_arrives_once_after_the_next_start() {
    let sink = Sink::start().await;
    sink.manners(|manners| manners.quirk = Some(Quirk::SilentBanner));
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let house = House::new(
        &(format!(
            "probes:\n  frozen: {{http: {{url: 'http://{}/'}}, interval: 1m, timeout: 1m}}\n  dead: {{tcp: {{address: '127.0.0.1:{}'}}}}\n",
            silent.local_addr().expect("it is bound"),
            free_port()
        ) + &notify(sink.port)),
    );
    // The rules wait for each probe's first answer: the frozen one gives none, so it comes with a reload.
    house.write("rules.yml", RULES);
    let whole = std::fs::read_to_string(house.path("proctor.yml")).expect("it is there");
    let without: String = whole.lines().filter(|line| !line.contains("frozen")).map(|line| format!("{line}\n")).collect();
    house.write("proctor.yml", &without);
    let mut proctor = house.start();
    house.shows("proctor_outbox_depth", 2.0).await;
    eventually("a mail is under way", SOON, || async { (sink.connections() > 0).then_some(()) }).await;
    house.write("proctor.yml", &whole);
    proctor.signal("HUP");
    let frozen = tokio::time::timeout(SOON, silent.accept()).await.expect("the probe connects").expect("it is taken");
    // A scrape that never reads, and one that never asks.
    let mut slow = TcpStream::connect(("127.0.0.1", house.web)).await.expect("it serves");
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("it takes the request");
    let mut half = TcpStream::connect(("127.0.0.1", house.web)).await.expect("it serves");
    half.write_all(b"GET /metr").await.expect("it takes the request");
    let (code, took) = stop(&mut proctor, "TERM").await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(code, Some(0), "{}", house.log());
    drop((slow, half, frozen));

    sink.manners(|manners| manners.quirk = None);
    house.write("proctor.yml", &without);
    let mut proctor = house.start();
    sink.wait_for(2, SOON).await;
    house.shows("proctor_deliveries_total{integration=\"email\",outcome=\"sent\"}", 2.0).await;
    assert_eq!(stop(&mut proctor, "INT").await.0, Some(0), "and so does Ctrl-C");
    let mut told: Vec<String> = sink.mails().into_iter().map(|mail| mail.to).collect();
    told.sort();
    assert_eq!(told, ["ann@example.org", "bob@example.org"], "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_wait_at_once() {
    let sink = Sink::start().await;
    sink.manners(|manners| manners.quirk = Some(Quirk::SilentBanner));
    let house = House::new(&(format!("probes:\n  dead: {{tcp: {{address: '127.0.0.1:{}'}}}}\n", free_port()) + &notify(sink.port)));
    house.write("rules.yml", RULES);
    let mut proctor = house.start();
    eventually("a mail is under way", SOON, || async { (sink.connections() > 0).then_some(()) }).await;
    proctor.signal("TERM");
    house.logs("stopping").await;
    let (code, took) = stop(&mut proctor, "INT").await;
    // The mail under way may take 5 s to end.
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(code, Some(1), "what was under way did not end");
    assert!(house.log().contains("told to stop a second time"), "{}", house.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_proctor_on_the_same_state_does_not_start_and_says_who_is_there() {
    let house = House::new("");
    let first = house.start();
    house.logs("serving http://").await;
    let output = house.command().arg("serve").output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let wanted =
        format!("state.db is in use by another Proctor (process {}): stop that one, or give this one a state.path of its own", first.pid());
    assert!(said.contains(&wanted), "{said}");
    assert!(house.get("/-/healthy").await.is_some(), "the first one goes on");
}

// ---- what is not there

/// Half of the time since this host started, so that it counts as just started and not as silent any more.
fn half_of_uptime() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").expect("Linux has it");
    let seconds: f64 = text.split('.').next().and_then(|text| text.parse().ok()).expect("a number");
    (seconds / 2.0) as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn without_dbus_docker_or_a_relay_it_runs_and_says_what_it_cannot_do() {
    let Some(memcached) = program("memcached") else { return };
    let (cache, relay) = (free_port(), free_port());
    let house = House::new(
        &(format!(
            "probes:\n  cache: {{memcached: {{address: '127.0.0.1:{cache}'}}}}\n  dead: {{tcp: {{address: '127.0.0.1:{}'}}}}\n",
            free_port()
        ) + &notify(relay).replace("after_boot: 0s", &format!("after_boot: {}s", half_of_uptime()))),
    );
    house.write("rules.yml", RULES);
    let _cache = Process::start(
        Command::new(memcached).args(["-u", "nobody", "-l", "127.0.0.1", "-p"]).arg(cache.to_string()),
        &house.path("memcached.log"),
    );
    let nowhere = house.path("nowhere");
    let mut proctor = house.start_with(|command| {
        command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", nowhere.display()));
        command.env("DOCKER_HOST", format!("unix://{}", nowhere.display()));
    });
    house.shows("memcached_up{probe=\"cache\"}", 1.0).await;
    house.logs("systemd cannot be asked whether this host is still starting (cannot connect to the system bus at").await;
    house.shows("proctor_outbox_depth", 2.0).await;
    house.logs("everything that goes this way waits").await;
    let page = house.get("/").await.expect("the page is there");
    assert!(page.contains("mail: 2 wait since"), "{page}");
    assert_eq!(stop(&mut proctor, "TERM").await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_nowhere_to_keep_its_state_it_runs_and_says_what_a_restart_forgets() {
    let house = House::new("");
    let config = std::fs::read_to_string(house.path("proctor.yml")).expect("it is there");
    let socket = format!("control: {{socket: '{}'}}\n", house.path("control.sock").display());
    house.write("proctor.yml", &config.replace("\nstate: ", &format!("\n{socket}#")));
    let mut proctor = house.start_with(|command| {
        command.env_clear();
    });
    house.logs("the state is kept in memory only").await;
    house.logs("serving http://").await;
    assert!(house.get("/metrics").await.is_some_and(|metrics| metrics.contains("proctor_state_degraded 0")));
    assert_eq!(stop(&mut proctor, "TERM").await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_ends_nothing() {
    let house = House::new(&format!("probes:\n  dead: {{tcp: {{address: '127.0.0.1:{}'}}}}\n", free_port()));
    let full = || std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    // As on a full disk; and what is told to it, such as to load anew, is logged too.
    let mut command = house.command();
    let mut proctor = command.arg("serve").stdout(full()).stderr(full()).spawn().expect("it starts");
    house.shows("probe_success{probe=\"dead\"}", 0.0).await;
    let signal = |name: &str| Command::new("kill").args([&format!("-{name}"), &proctor.id().to_string()]).status().expect("kill runs");
    let loaded = || async {
        let text = house.get("/metrics").await?;
        text.lines().find_map(|line| line.strip_prefix("proctor_config_last_reload_success_timestamp_seconds ")?.parse::<f64>().ok())
    };
    let before = eventually("it serves", SOON, loaded).await;
    signal("HUP");
    eventually("it loads anew", SOON, || async { (loaded().await? > before).then_some(()) }).await;
    signal("TERM");
    assert_eq!(tokio::task::block_in_place(|| proctor.wait()).expect("it ends").code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_take_every_connection_leave_probes_and_state_their_file_descriptors() {
    let service = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = service.local_addr().expect("it is bound");
    tokio::spawn(async move { while service.accept().await.is_ok() {} });
    let house = House::new(&format!("probes:\n  port: {{tcp: {{address: '{address}'}}}}\n"));
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 64 && exec \"$@\"", "sh"]).arg(env!("CARGO_BIN_EXE_proctor"));
    limited.arg("--config").arg(house.path("proctor.yml")).arg("serve");
    let _proctor = Process::start(&mut limited, &house.path("proctor.log"));
    house.shows("probe_success{probe=\"port\"}", 1.0).await;
    let runs = || async {
        let metrics = house.get("/metrics").await?;
        metrics.lines().find_map(|line| line.strip_prefix("probe_last_run_timestamp_seconds{probe=\"port\"} ")?.parse::<f64>().ok())
    };
    let before = runs().await.expect("it was asked");
    // None of them ever says what it wants.
    let mut held = Vec::new();
    for _ in 0..100 {
        held.extend(TcpStream::connect(("127.0.0.1", house.web)).await);
    }
    // Closed within 6 s; until then the probe went on all the same.
    eventually("it serves again", SOON, || async { (runs().await? > before + 3.0).then_some(()) }).await;
    let state = || house.command().args(["silence", "list"]).output().expect("it runs").status.success();
    eventually("the control socket answers", SOON, || async { state().then_some(()) }).await;
    assert!(house.log().lines().all(|line| !line.contains("Too many open files")), "{}", house.log());
    let metrics = house.get("/metrics").await.expect("it serves");
    assert!(metrics.contains("probe_success{probe=\"port\"} 1") && metrics.contains("proctor_state_degraded 0"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_reads_is_no_crash_and_one_that_is_cut_off_is_no_success() {
    let house = House::new("");
    let full = || std::fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    for arguments in [&["config", "check"] as &[&str], &["check", "--format", "nagios"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = house.command().args(arguments).stdout(writer).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked") && output.status.code() != Some(101), "{arguments:?}: {said}");
        let output = house.command().args(arguments).stdout(full()).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("No space left on device"), "{output:?}");
    }
    // Nobody watches, and nobody can be told so: the deploy runs all the same.
    let mut deploy = house.command();
    let output = deploy.args(["hold", "run", "--", "sh", "-c", "echo deployed; exit 7"]).stderr(full()).output().expect("it runs");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).as_ref()), (Some(7), "deployed\n"));
}

/// Says whether a file exists under the stack's folder; where not, the test is skipped, or fails under
/// `REQUIRE_SERVICES=1`.
pub(crate) fn stack(file: &str) -> Option<std::path::PathBuf> {
    let path = Path::new(&std::env::var("PROCTOR_STACK").unwrap_or_else(|_| "/tmp/proctor-stack".into())).join(file);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("REQUIRE_SERVICES").is_none(), "{} is missing: run tests/stack/stack start", path.display());
    eprintln!("skipped: {} is missing: run tests/stack/stack start", path.display());
    None
}
