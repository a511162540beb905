//! What must hold on the running stack, whatever breaks: the state, the relay, Proctor itself.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::gunicorn::Gunicorn;
use crate::support::memcached::{Daemon, memcached};
use crate::support::process::{Process, eventually, free_port, program};
use crate::support::proctor::Proctor;
use crate::support::smtp::{Mail, Manners, Sink};
use crate::support::tmpfs::Tmpfs;
use crate::support::tunnel::{Postgres, Tunnel};

const DOWN: &[(&str, &str)] = &[("MemcachedDown", "memcached_up == 0")];

const ADMINS: [&str; 2] = ["ann@example.org", "bob@example.org"];

fn cache(port: u16) -> String {
    format!("probes:\n  cache: {{memcached: {{address: \"127.0.0.1:{port}\"}}}}\n")
}

#[tokio::test]
async fn seven_slow_requests_on_three_workers_raise_the_accept_queue_alert_while_the_port_still_opens() {
    let Some(gunicorn) = Gunicorn::tcp().await else { return };
    let sink = Sink::start().await;
    // A busy machine is not to make another alarm.
    let pace = "interval: 3s, timeout: 3s";
    let probes = format!("probes:\n  app: {{gunicorn: {{listen: \"{}\", host_header: coursys.example.org}}, {pace}}}\n", gunicorn.listen);
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

/// Waits until memcached is seen to live, nothing fires, and each beginning that Ann was told has its end: an episode of
/// before must not be taken for the next one.
async fn well(proctor: &Proctor, sink: &Sink) {
    proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(20)).await;
    eventually("all is well and was told", Duration::from_secs(60), || async {
        let metrics = proctor.metrics().await?;
        let quiet = ["proctor_alerts{state=\"firing\"} 0", "proctor_outbox_depth 0"].iter().all(|line| metrics.contains(line));
        let mails = sink.mails();
        let told = |is: fn(&Mail) -> bool| {
            let told = mails.iter().filter(|mail| mail.to == ADMINS[0] && is(mail));
            told.map(|mail| mail.header("Message-ID")).collect::<BTreeSet<_>>().len()
        };
        (quiet && told(is_beginning) == told(is_end)).then_some(())
    })
    .await;
}

/// Kills memcached once all is well, and returns the text of Ann's mail about it.
async fn alert_of(proctor: &Proctor, sink: &Sink, mut dead: Process) -> String {
    well(proctor, sink).await;
    let before = sink.mails().len();
    dead.kill();
    let mail = eventually("the alert is mailed", Duration::from_secs(20), || async {
        let mails = sink.mails().split_off(before);
        mails.into_iter().find(|mail| mail.to == ADMINS[0] && is_beginning(mail) && mail.header("Subject").contains("MemcachedDown"))
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
    fn flipped(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.iter_mut().step_by(7).for_each(|byte| *byte ^= 0x55);
        bytes
    }
    fn truncated(bytes: Vec<u8>) -> Vec<u8> {
        bytes[..bytes.len() / 2 + 100].to_vec()
    }
    for damage in [flipped as fn(Vec<u8>) -> Vec<u8>, truncated] {
        let (port, sink) = (free_port(), Sink::start().await);
        let mut proctor = Proctor::configured(sink.port, &cache(port)).rules(DOWN).started();
        let state = proctor.folder.path().join("state.db");
        let folder = proctor.folder.path().to_owned();
        let memcached = || memcached(&folder, port).expect("it is installed");
        alert_of(&proctor, &sink, memcached()).await;
        let alive = memcached();
        well(&proctor, &sink).await;
        // In good order: then all of it is in the one file.
        proctor.stop();
        let bytes = std::fs::read(&state).expect("it is there");
        std::fs::write(&state, damage(bytes)).expect("it can be written");
        let before = sink.mails().len();
        proctor.start();
        alert_of(&proctor, &sink, alive).await;
        // The next one says it, also where a busy machine made one more of them.
        let next = sink.mails().into_iter().skip(before).find(|mail| mail.to == ADMINS[0] && is_beginning(mail));
        let text = next.expect("it came").text;
        assert!(text.contains("The state was damaged"), "{text}");
        let aside = std::fs::read_dir(proctor.folder.path()).expect("it is there").flatten();
        assert!(aside.into_iter().any(|file| file.file_name().to_string_lossy().starts_with("state.db.")), "{text}");
    }
}

/// Random numbers that a failure can be repeated with (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }
}

#[tokio::test]
async fn a_hundred_kills_at_random_moments_lose_no_mail_repeat_no_action_and_tell_no_false_end() {
    const EPISODES: usize = 5;
    const KILLS: usize = 20;
    let Some(program) = program("memcached") else { return };
    let (port, sink) = (free_port(), Sink::start().await);
    let proctor = Proctor::configured(sink.port, "").rules(DOWN);
    let folder = proctor.folder.path().to_owned();
    // The action notes that it ran, takes its time, and starts memcached, whatever becomes of Proctor meanwhile.
    let (trace, repair) = (folder.join("trace"), folder.join("repair"));
    let script = format!(
        "#!/bin/sh\necho \"$PROCTOR_EPISODE\" >> {}\nsleep 0.3\nexec {} -d -u nobody -l 127.0.0.1 -p {port}\n",
        trace.display(),
        program.display()
    );
    std::fs::write(&repair, script).expect("it can be written");
    std::fs::set_permissions(&repair, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("it is ours");
    let actions = format!(
        "actions:\n  repair:\n    command: {{argv: [{}]}}\n    matchers: ['alertname=\"MemcachedDown\"']\n    firing_for: 3s\n    \
         mode: act\n    verify: {{probes: [cache], within: 10s}}\n    limit: {{attempts: 100, per: 1h, cooldown: 8s}}\n",
        repair.display()
    );
    proctor.configure(&folder.join("state.db"), sink.port, &(cache(port) + &actions));
    let mut proctor = proctor.started();
    let seed = std::process::id().into();
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let mut running = Daemon::start(port).await.expect("it is installed");
    for episode in 1..=EPISODES {
        proctor.shows("memcached_up{probe=\"cache\"} 1", Duration::from_secs(30)).await;
        drop(running);
        for _ in 0..KILLS {
            // Mostly soon after the start, sometimes when alerts, mails and actions are under way.
            let longest = if dice.below(3) == 0 { 4000 } else { 1000 };
            tokio::time::sleep(Duration::from_millis(dice.below(longest))).await;
            proctor.kill();
            proctor.start();
        }
        let ended = || {
            let mails = sink.mails();
            let ends = mails.iter().filter(|mail| is_end(mail)).map(|mail| (mail.to.as_str(), mail.header("Message-ID")));
            ends.collect::<BTreeSet<_>>().len() >= ADMINS.len() * episode
        };
        eventually("the episode is told to its end", Duration::from_secs(60), || async { ended().then_some(()) }).await;
        running = Daemon::on(port).await;
    }
    let runs = std::fs::read_to_string(&trace).expect("it ran");
    let episodes: BTreeSet<&str> = runs.lines().collect();
    assert_eq!((runs.lines().count(), episodes.len()), (EPISODES, EPISODES), "each episode is acted on once:\n{runs}");
    for admin in ADMINS {
        let mails: Vec<Mail> = sink.mails().into_iter().filter(|mail| mail.to == admin).collect();
        let of =
            |end: bool| mails.iter().filter(move |mail| is_end(mail) == end).map(|mail| mail.header("Message-ID")).collect::<BTreeSet<_>>();
        let subjects: Vec<_> = mails.iter().map(|mail| (mail.header("X-Alert-State"), mail.header("Message-ID"))).collect();
        assert_eq!((of(false).len(), of(true).len()), (EPISODES, EPISODES), "each beginning and each end is one message: {subjects:#?}");
        assert!(mails.len() <= 2 * EPISODES + EPISODES * KILLS, "at most one duplicate per kill: {subjects:#?}");
        for end in mails.iter().filter(|mail| is_end(mail)) {
            assert!(of(false).contains(end.header("In-Reply-To")), "in the thread of its beginning");
        }
    }
}

#[tokio::test]
async fn a_tunnel_frozen_or_closed_at_its_far_end_and_an_ssh_frozen_or_killed_have_four_reasons_and_a_way_back() {
    let Some(mut postgres) = Postgres::start(false).await else { return };
    let far = format!("127.0.0.1:{}", postgres.port);
    let Some(mut tunnel) = Tunnel::to(&[&far]).await else { return };
    let sink = Sink::start().await;
    // A busy machine is not to make another alarm.
    let pace = "interval: 3s, timeout: 3s";
    let probes = format!("probes:\n  csrpt: {{tunnel: {{address: \"127.0.0.1:{}\", speaks: postgres}}, {pace}}}\n", tunnel.ports[0]);
    let proctor = Proctor::configured(sink.port, &probes).built_in_rules().started();
    let shows = |line: &'static str| proctor.shows(line, Duration::from_secs(30));
    let well = "probe_success{probe=\"csrpt\"} 1";
    shows(well).await;

    postgres.process.signal("STOP");
    shows("probe_failure_info{probe=\"csrpt\",reason=\"remote_silent\"} 1").await;
    let mails = sink.wait_for(2, Duration::from_secs(30)).await;
    assert!(mails[0].header("Subject").contains("TunnelDown csrpt") && mails[0].text.contains("remote_silent"), "{}", mails[0].text);
    postgres.process.signal("CONT");
    shows(well).await;
    postgres.process.kill();
    shows("probe_failure_info{probe=\"csrpt\",reason=\"remote_refused\"} 1").await;
    postgres.restart().await;
    shows(well).await;
    tunnel.ssh.signal("STOP");
    shows("probe_failure_info{probe=\"csrpt\",reason=\"ssh_hung\"} 1").await;
    tunnel.ssh.signal("CONT");
    shows(well).await;
    tunnel.ssh.kill();
    shows("probe_failure_info{probe=\"csrpt\",reason=\"local_refused\"} 1").await;
    tunnel.restart().await;
    shows(well).await;
}

fn is_beginning(mail: &Mail) -> bool {
    mail.header("X-Alert-State") == "FIRING"
}

fn is_end(mail: &Mail) -> bool {
    matches!(mail.header("X-Alert-State"), "RESOLVED" | "REPAIRED")
}

#[tokio::test]
async fn a_stopped_postgresql_is_one_mail_that_lists_the_tunnel_and_the_healthcheck_that_need_it() {
    let Some(mut postgres) = Postgres::start(false).await else { return };
    let far = format!("127.0.0.1:{}", postgres.port);
    let Some(tunnel) = Tunnel::to(&[&far]).await else { return };
    let near = format!("127.0.0.1:{}", tunnel.ports[0]);
    let Some(mut gunicorn) = Gunicorn::tcp().await else { return };
    gunicorn.restart(&[("SITE_DB", &near)]).await;
    let sink = Sink::start().await;
    // A busy machine is not to make another alarm.
    let pace = "interval: 3s, timeout: 3s";
    let probes = format!(
        "probes:\n  db: {{tcp: {{address: \"{far}\"}}, {pace}}}\n  \
         csrpt: {{tunnel: {{address: \"{near}\", speaks: postgres}}, {pace}, depends_on: [db]}}\n  \
         page: {{http: {{url: \"http://{}/healthcheck\", host: coursys.example.org}}, {pace}, depends_on: [csrpt]}}\n",
        gunicorn.listen
    );
    let proctor = Proctor::configured(sink.port, &probes).built_in_rules().started();
    for probe in ["db", "csrpt", "page"] {
        proctor.shows(&format!("probe_success{{probe=\"{probe}\"}} 1"), Duration::from_secs(20)).await;
    }
    postgres.process.kill();
    let mails = sink.wait_for(2, Duration::from_secs(30)).await;
    assert!(mails[0].header("Subject").contains("ProbeFailing db"), "{}", mails[0].text);
    for told in ["since they need it: csrpt, page.", "db: refused: ", "csrpt: remote_refused: ", "page: mismatch: "] {
        assert!(mails[0].text.contains(told), "{told}:\n{}", mails[0].text);
    }
    // Those below fire too by now, and are not mailed.
    eventually("the tunnel's alert fires", Duration::from_secs(20), || async {
        proctor.metrics().await?.contains("proctor_alerts{state=\"firing\"} 3").then_some(())
    })
    .await;
    postgres.restart().await;
    let mails = sink.wait_for(4, Duration::from_secs(30)).await;
    eventually("all is well", Duration::from_secs(20), || async {
        proctor.metrics().await?.contains("proctor_alerts{state=\"firing\"} 0").then_some(())
    })
    .await;
    proctor.shows("proctor_outbox_depth 0", Duration::from_secs(10)).await;
    assert!(mails[2..].iter().all(|mail| mail.header("X-Alert-State") == "RESOLVED"), "{}", mails[2].text);
    let told: Vec<_> = sink.mails().iter().map(|mail| format!("{} {}", mail.header("X-Alert-State"), mail.header("Subject"))).collect();
    assert_eq!(told.len(), 4, "nobody was told more: {told:?}");
}

#[tokio::test]
async fn no_secret_is_in_the_log_the_pages_the_state_or_the_mails() {
    let sink = Sink::with(Manners { login: Some(("proctor".into(), "canary-password".into())), ..Manners::default() }).await;
    let proctor = Proctor::configured(sink.port, "").rules(&[("Down", "probe_success == 0")]).env("PROCTOR_LOG", "trace");
    let folder = proctor.folder.path().to_owned();
    let secret = |name: &str, text: String| {
        std::fs::write(folder.join(name), text).expect("it can be written");
        std::fs::set_permissions(folder.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
        folder.join(name).display().to_string()
    };
    let (password, token) = (secret("password", "canary-password\n".into()), secret("token", "canary-token\n".into()));
    let hook = secret("hook", format!("http://127.0.0.1:{}/canary-hook\n", free_port()));
    let sections = format!(
        "probes:\n  page: {{http: {{url: \"http://127.0.0.1:{}/\", bearer_file: {token}}}}}\n\
         actions:\n  call: {{webhook: {{url_file: {hook}}}, matchers: ['alertname=\"Down\"'], firing_for: 0s, mode: act, verify: {{within: 2s}}}}\n",
        free_port()
    );
    proctor.configure(&folder.join("state.db"), sink.port, &sections);
    let config = std::fs::read_to_string(proctor.config()).expect("it is there");
    let login = format!("port: {}, username: proctor, password_file: {password}}}\n  webhooks: {{chat: {{url_file: {hook}}}}}", sink.port);
    std::fs::write(proctor.config(), config.replace(&format!("port: {}}}", sink.port), &login)).expect("it can be written");
    let proctor = proctor.started();
    let mails = sink.wait_for(2, Duration::from_secs(30)).await;
    assert_eq!(mails[0].login.as_deref(), Some("proctor"));
    proctor.shows("proctor_actions_total{outcome=\"failed\"} 1", Duration::from_secs(20)).await;
    eventually("the webhook was tried", Duration::from_secs(20), || async { proctor.log().contains("chat").then_some(()) }).await;

    let page = proctor.get("/").await.expect("it answers");
    let check = proctor.run(&["check", "--format", "json"]);
    let state = ["state.db", "state.db-wal"].map(|name| std::fs::read(folder.join(name)).unwrap_or_default()).concat();
    let shown = [
        ("log", proctor.log().into_bytes()),
        ("page", page.into_bytes()),
        ("metrics", proctor.metrics().await.unwrap_or_default().into_bytes()),
        ("check", [check.stdout, check.stderr].concat()),
        ("state", state),
        ("mails", mails.iter().flat_map(|mail| mail.raw.clone().into_bytes()).collect()),
    ];
    for (place, bytes) in &shown {
        let text = String::from_utf8_lossy(bytes);
        assert!(!bytes.is_empty(), "{place}");
        for canary in ["canary-password", "canary-token", "canary-hook", "Y2FuYXJ5LXBhc3N3b3Jk"] {
            assert!(!text.contains(canary), "{canary} in {place}: {text}");
        }
    }
}
