//! The dispatcher on a store in memory, with alerts made by hand and a clock that the test drives.

mod told;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::tz::TimeZone;

use super::*;
use crate::model::decode::from_text;
use crate::model::{Attempt, Failure, Labels, Matcher, Outcome, ProbeResult, Sight, Target};
use crate::mute::silence::Draft;
use crate::mute::{MaintenanceConfig, StartupConfig};
use crate::notify::testing::alert;
use crate::notify::{Channel, Delivery, Message, NotifyConfig};

const CONFIG: &str = "admins: [Sysadmin <a@example.org>, b@example.org]\nfrom: proctor@example.org\nsubject_prefix: \"[CourSys] \"";

/// 2026-11-24 03:12:00 UTC, so that mails in the snapshots look like mails.
const BEGIN: i64 = 1_795_489_920;

struct Bench {
    wiring: Wiring,
    config: NotifyConfig,
    dispatcher: Dispatcher,
    now: Timestamp,
    seen: BTreeSet<String>,
    alerts: BTreeMap<String, Alert>,
    asked: Arc<AtomicUsize>,
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_secs(BEGIN + seconds)
}

fn voice(config: &NotifyConfig) -> Voice {
    Voice { zone: TimeZone::UTC, nonce: 7, ..Voice::new(config, "coursys", Some("https://status.example.org".into())) }
}

impl Bench {
    fn new(config: &str, startup: &str, probes: &[(&str, &[&str])]) -> Self {
        let config: NotifyConfig = from_text("f", config).expect("is right");
        let startup: StartupConfig = from_text("f", startup).expect("is right");
        let maintenance: MaintenanceConfig = from_text("f", "{}").expect("is right");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let metrics = Arc::new(Metrics::new());
        let wiring = Wiring {
            alerts: AlertTable::default(),
            snapshot: Snapshot::new(metrics.clone()),
            store: Store::open(None, metrics.clone()).expect("opens in memory"),
            metrics,
            mutes: Arc::new(Mutex::new(Mutes {
                startup: Startup::new(&startup, at(0), None, None),
                maintenance: MaintenanceWatch::new(&maintenance, None),
                holds: Holds::default(),
                sight: SightWatch::default(),
                silences: Silences::default(),
                acks: Acks::default(),
            })),
            depends: Arc::new(Depends::new(probes.iter().map(|(probe, needs)| (*probe, names(needs)))).expect("no circles")),
            actions: Arc::new(Vec::new),
            patience: Arc::new(|_| Duration::from_secs(30)),
            systemd_starting: Arc::new(|| None),
            changes: Changes::default(),
            before: Duration::from_secs(1800),
            refused: Arc::new(Vec::new),
            announce: Arc::new(|_, _| Vec::new()),
            refresh: Arc::new(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                Box::pin(std::future::ready(()))
            }),
            outbox: Arc::new(Notify::new()),
            wake: Arc::new(Notify::new()),
        };
        let targets: Vec<Arc<Target>> = probes.iter().map(|(probe, needs)| Arc::new(target(probe, &names(needs)))).collect();
        wiring.snapshot.announce(&targets);
        let dispatcher = Dispatcher::new(wiring.clone(), voice(&config), config.mode, vec![Route::of(&config, ["ops".to_owned()])]);
        let alerts = BTreeMap::new();
        Self { wiring, config, dispatcher, now: at(0), seen: BTreeSet::new(), alerts, asked }
    }

    fn plain() -> Self {
        Self::new(CONFIG, "first_look: 0s", &[])
    }

    /// Kills Proctor and starts it again.
    fn restart(&mut self) {
        let routes = vec![Route::of(&self.config, ["ops".to_owned()])];
        self.dispatcher = Dispatcher::new(self.wiring.clone(), voice(&self.config), self.config.mode, routes);
    }

    fn put(&mut self, alert: Alert) {
        self.wiring.alerts.replace_rule(&alert.rule, vec![alert.clone()]);
        self.alerts.insert(alert.rule.clone(), alert);
    }

    /// Fires at this moment.
    fn fire(&mut self, name: &str, probe: &str) {
        self.put(alert(name, probe, self.now.0 / 1000));
    }

    /// Ends at this moment.
    fn end(&mut self, name: &str, probe: &str) {
        let mut over = self.alerts[&format!("g/{name}/{probe}")].clone();
        over.state = AlertState::Inactive;
        over.resolved_at = Some(self.now);
        self.put(over);
    }

    fn attempt(&mut self, name: &str, probe: &str, id: &str, outcome: Outcome, detail: &str) {
        let alert = &self.alerts[&format!("g/{name}/{probe}")];
        let finished = (outcome != Outcome::Running).then_some(self.now);
        self.wiring.alerts.record_attempt(&Attempt {
            id: id.into(),
            action: format!("restart-{probe}"),
            target: format!("docker:{probe}"),
            episode: alert.episode(),
            started_at: self.now,
            finished_at: finished,
            outcome,
            detail: detail.into(),
            output: String::new(),
        });
    }

    /// The newest result of a probe: well, or failing with this detail.
    fn result(&self, probe: &str, failure: Option<&str>) {
        self.accept(probe, failure.map_or(Ok(()), |detail| Err(Failure::new(crate::model::Reason::Refused, detail))));
    }

    fn accept(&self, probe: &str, outcome: Result<(), Failure>) {
        let target = Arc::new(target(probe, &[]));
        let (sight, evidence, samples, duration) = (Sight::Full, Vec::new(), Vec::new(), Duration::ZERO);
        self.wiring.snapshot.accept(&ProbeResult { target, at: self.now, duration, outcome, samples, sight, evidence });
    }

    /// Flushes when the dispatcher wants to be called, until this moment, and returns what was mailed.
    async fn until(&mut self, seconds: i64) -> Vec<Message> {
        loop {
            let next = self.dispatcher.flush(self.now).await;
            if self.now >= at(seconds) {
                return self.mailed().await;
            }
            self.now = next.max(self.now + Duration::from_millis(10)).min(at(seconds));
        }
    }

    /// Returns what was mailed since the last time, once for all recipients; each must have got the same.
    async fn mailed(&mut self) -> Vec<Message> {
        let mut fresh: Vec<Delivery> = self.wiring.store.all();
        // Of one flush, alerts come first: their ids begin with a number.
        fresh.sort_by_key(|delivery| delivery.queued_at);
        // As the outbox does once they are delivered.
        let mut batch = Batch::new();
        for delivery in &fresh {
            assert!(self.seen.insert(delivery.id.clone()), "an id is used twice: {}", delivery.id);
            batch.remove::<Delivery>(&delivery.id);
        }
        self.wiring.store.commit(batch).await;
        let mut messages: Vec<Message> = Vec::new();
        for delivery in &fresh {
            if !messages.iter().any(|message| message.message_id == delivery.message.message_id) {
                let to: BTreeSet<String> =
                    fresh.iter().filter(|d| d.message == delivery.message).map(|d| format!("{:?}", d.channel)).collect();
                assert_eq!(to.len(), 3, "two ADMINS and a webhook, once each: {to:?}");
                assert!(to.contains(&format!("{:?}", Channel::Webhook { name: "ops".into() })));
                messages.push(delivery.message.clone());
            }
        }
        messages
    }
}

fn target(probe: &str, needs: &[String]) -> Target {
    let second = Duration::from_secs(1);
    let depends_on = needs.iter().map(|need| need.as_str().into()).collect();
    Target { probe: probe.into(), target: None, kind: "tcp", interval: second, timeout: second, depends_on }
}

fn state(message: &Message) -> &str {
    message.headers.iter().find(|(name, _)| name == "X-Alert-State").map_or("", |(_, value)| value)
}

/// State and first alert of each mail.
fn heads(messages: &[Message]) -> Vec<String> {
    messages
        .iter()
        .map(|message| {
            let name = message.headers.iter().find(|(name, _)| name == "X-Alert-Name").map_or("", |(_, value)| value);
            format!("{} {name}", state(message)).trim_end().to_owned()
        })
        .collect()
}

#[tokio::test]
async fn an_ordinary_incident_that_is_repaired_gives_exactly_two_mails_in_one_thread() {
    let mut bench = Bench::plain();
    let mut down = alert("MemcachedDown", "cache", BEGIN);
    down.annotations = Labels::new([
        ("summary", "memcached does not answer"),
        (
            "description",
            "127.0.0.1:11211: connection refused (nothing listens there). The site works without its cache, but slowly: pages that take 100 ms take 2 s.",
        ),
        ("runbook_url", "https://docs.example.org/runbook/memcached"),
    ]);
    down.evidence =
        vec!["docker: memcached exited with 137 (OOMKilled: true) 14s ago".into(), "last line: out of memory storing object".into()];
    bench.put(down);
    assert!(bench.until(4).await.is_empty(), "not before group_wait");
    let first = bench.until(30).await;
    assert_eq!(heads(&first), ["FIRING MemcachedDown"]);
    bench.attempt("MemcachedDown", "cache", "1", Outcome::Running, "restart of memcached is under way");
    assert!(bench.until(40).await.is_empty(), "an attempt gives no mail of its own");
    bench.end("MemcachedDown", "cache");
    assert!(bench.until(90).await.is_empty(), "the end waits for the verification");
    bench.attempt("MemcachedDown", "cache", "1", Outcome::Repaired, "restarted memcached in 1.2s; cache well 11s after the start of it");
    let second = bench.until(4000).await;
    assert_eq!(heads(&second), ["REPAIRED MemcachedDown"]);
    let (first, second) = (&first[0], &second[0]);
    assert_eq!(first.subject, "[CourSys] [critical] MemcachedDown cache (coursys)");
    assert_eq!(second.subject, first.subject);
    assert_eq!((&first.in_reply_to, first.references.len()), (&None, 0));
    assert_eq!(second.in_reply_to.as_ref(), Some(&first.message_id));
    assert_eq!(second.references, std::slice::from_ref(&first.message_id));
    assert!(first.message_id.ends_with("@example.org") && first.message_id != second.message_id);
    assert!(second.text.contains("RESOLVED") && second.text.contains("repaired"));
    assert!((first.important, second.important) == (true, false));
    assert_eq!((&first.payload["status"], &second.payload["status"]), (&"firing".into(), &"resolved".into()));
    insta::assert_snapshot!("firing", format!("Subject: {}\n\n{}", first.subject, first.text));
    insta::assert_snapshot!("repaired", format!("Subject: {}\n\n{}", second.subject, second.text));
    insta::assert_snapshot!("firing_html", first.html);
    insta::assert_snapshot!("payload", serde_json::to_string_pretty(&first.payload).expect("is JSON"));
}

#[tokio::test]
async fn what_ends_before_its_first_mail_is_not_mailed_unless_something_was_done() {
    let mut bench = Bench::plain();
    bench.fire("Down", "web");
    bench.until(3).await;
    bench.end("Down", "web");
    assert!(bench.until(100).await.is_empty());
    bench.fire("Down", "cache");
    bench.attempt("Down", "cache", "1", Outcome::Running, "");
    bench.end("Down", "cache");
    bench.attempt("Down", "cache", "1", Outcome::Repaired, "restarted");
    assert_eq!(heads(&bench.until(110).await), ["REPAIRED Down"]);
    assert!(bench.until(5000).await.is_empty());
}

#[tokio::test]
async fn a_repair_that_begins_at_once_is_told_with_the_beginning() {
    let mut bench = Bench::plain();
    bench.fire("Down", "cache");
    bench.until(1).await;
    bench.attempt("Down", "cache", "1", Outcome::Running, "");
    assert_eq!(heads(&bench.until(1).await), ["FIRING Down"]);
    bench.end("Down", "cache");
    bench.attempt("Down", "cache", "1", Outcome::Repaired, "restarted");
    assert_eq!(heads(&bench.until(60).await), ["REPAIRED Down"]);
}

#[tokio::test]
async fn a_repair_that_is_given_up_is_told_once_in_the_thread() {
    let mut bench = Bench::plain();
    bench.fire("Down", "cache");
    let first = bench.until(60).await;
    for (id, outcome) in [("1", Outcome::Failed), ("2", Outcome::Failed), ("3", Outcome::Failed)] {
        bench.attempt("Down", "cache", id, outcome, "restarted, but cache still fails");
        assert!(bench.until(bench.now.0 / 1000 - BEGIN + 60).await.is_empty(), "attempt {id} gives no mail of its own");
    }
    bench.attempt(
        "Down",
        "cache",
        "4",
        Outcome::Refused,
        "restart refused: 3 restarts in the last 30m (limit 3); next possible at 03:45 UTC",
    );
    let human = bench.until(3000).await;
    assert_eq!(heads(&human), ["NEEDS HUMAN Down"]);
    assert_eq!(human[0].in_reply_to.as_ref(), Some(&first[0].message_id));
    insta::assert_snapshot!("needs_human", human[0].text);
    bench.restart();
    assert!(bench.until(4000).await.is_empty());
    bench.end("Down", "cache");
    let last = bench.until(5000).await;
    assert_eq!(heads(&last), ["RESOLVED Down"]);
    assert_eq!(last[0].references, [first[0].message_id.clone(), human[0].message_id.clone()], "root, then the one before");
}

#[tokio::test]
async fn the_end_of_what_was_mailed_is_mailed_after_a_restart_too() {
    let mut bench = Bench::plain();
    bench.fire("Down", "web");
    let first = bench.until(20).await;
    bench.end("Down", "web");
    bench.restart();
    let last = bench.until(60).await;
    assert_eq!(heads(&last), ["RESOLVED Down"]);
    assert_eq!(last[0].in_reply_to.as_ref(), Some(&first[0].message_id));
    // Ended while Proctor was away for so long that the table no longer has it; not at once, since rules restore first.
    bench.fire("Slow", "web");
    bench.until(100).await;
    bench.restart();
    bench.wiring.alerts.replace_rule("g/Slow/web", Vec::new());
    assert!(bench.until(150).await.is_empty());
    let last = bench.until(300).await;
    assert_eq!(heads(&last), ["RESOLVED Slow"]);
    assert!(last[0].text.contains("Its end was not seen"), "{}", last[0].text);
    // And a restart repeats nothing.
    bench.restart();
    assert!(bench.until(900).await.is_empty());
}

#[tokio::test]
async fn alerts_of_one_probe_share_a_mail_and_newcomers_wait_for_group_interval() {
    let mut bench = Bench::plain();
    bench.fire("Down", "web");
    bench.until(2).await;
    bench.fire("Slow", "web");
    let first = bench.until(20).await;
    assert_eq!(first[0].subject, "[CourSys] [critical] Down web +1 (coursys)");
    assert!(first[0].text.starts_with("FIRING: 2 alerts on web (Down, Slow), since 03:11:59"), "{}", first[0].text);
    bench.fire("Late", "web");
    assert!(bench.until(300).await.is_empty());
    let second = bench.until(400).await;
    assert_eq!(second.len(), 1);
    assert!(second[0].text.contains("* Late on web (critical), new, since"), "{}", second[0].text);
    let reminder = bench.until(3600 * 5).await;
    assert_eq!(reminder.len(), 1);
    assert!(reminder[0].text.starts_with("FIRING, still: 3 alerts on web"), "{}", reminder[0].text);
    for name in ["Down", "Slow"] {
        bench.end(name, "web");
    }
    let some = bench.until(3600 * 5 + 400).await;
    assert!(some.len() == 1 && some[0].text.contains("What is over"), "{some:?}");
    bench.end("Late", "web");
    assert_eq!(state(&bench.until(3600 * 5 + 500).await[0]), "RESOLVED");
}

#[tokio::test]
async fn a_silence_mutes_the_beginning_but_not_the_end_of_what_was_mailed() {
    let mut bench = Bench::plain();
    bench.fire("Told", "web");
    assert_eq!(bench.until(20).await.len(), 1);
    let draft = Draft {
        id: None,
        matchers: vec![Matcher::parse("alertname=~Told|Untold").expect("is one")],
        starts_at: bench.now,
        ends_at: at(3600),
        created_by: "me".into(),
        comment: String::new(),
    };
    bench.wiring.mutes.lock().expect("lives").silences.set(draft, "s1", at(20)).expect("is right");
    bench.fire("Untold", "cache");
    bench.until(100).await;
    assert_eq!(bench.wiring.metrics.silences_active.get(), 1);
    let muted: Vec<_> = bench.dispatcher.board().status().into_iter().flat_map(|group| group.muted).collect();
    assert!(muted.iter().any(|(name, why)| name == "Untold" && why.contains("silenced by s1")), "{muted:?}");
    bench.end("Told", "web");
    assert_eq!(heads(&bench.until(3590).await), ["RESOLVED Told"]);
    let after = bench.until(3610).await;
    assert_eq!(heads(&after), ["FIRING Untold"], "what still fires when the silence ends is mailed");
    assert!(after[0].text.contains("held back until now: silenced by s1"), "{}", after[0].text);
}

#[tokio::test]
async fn what_somebody_acknowledged_is_not_mailed_again_until_its_end() {
    let mut bench = Bench::plain();
    bench.fire("MemcachedDown", "cache");
    assert_eq!(heads(&bench.until(60).await), ["FIRING MemcachedDown"]);
    let firing = bench.wiring.alerts.all().remove(0);
    let ack = Acks::default().acknowledge(&firing, "ann", "", bench.now).expect("it fires");
    bench.wiring.mutes.lock().expect("no panic in here").acks = Acks::new(vec![ack]);
    assert!(bench.until(20 * 3600).await.is_empty(), "no reminder");
    let board = bench.dispatcher.board().status();
    assert_eq!(board[0].muted[0].1, format!("acknowledged by ann at {}", at(60)));
    bench.end("MemcachedDown", "cache");
    assert_eq!(heads(&bench.until(21 * 3600).await), ["RESOLVED MemcachedDown"]);
    bench.fire("MemcachedDown", "cache");
    assert_eq!(heads(&bench.until(22 * 3600).await), ["FIRING MemcachedDown"], "another episode is said again");
}

#[tokio::test]
async fn what_is_still_broken_when_a_hold_ends_is_mailed_at_once_and_nothing_before() {
    let mut bench = Bench::plain();
    bench.wiring.mutes.lock().expect("lives").holds.hold_for("h", Duration::from_secs(900), "me", "deploy", at(0)).expect("is right");
    bench.fire("Down", "web");
    bench.fire("Gone", "cache");
    bench.until(600).await;
    assert_eq!(bench.wiring.metrics.hold_active.get(), 1);
    bench.end("Gone", "cache");
    assert!(bench.until(899).await.is_empty());
    assert_eq!(heads(&bench.until(900).await), ["FIRING Down"]);
    assert!(bench.until(2000).await.is_empty());
}

#[tokio::test]
async fn the_first_look_is_one_mail_and_what_it_lists_is_mailed_again_only_when_it_changes() {
    let probes: Vec<(String, Vec<&str>)> =
        (0..34).map(|index| (format!("p{index}"), if index == 4 { vec!["p3"] } else { vec![] })).collect();
    let probes: Vec<(&str, &[&str])> = probes.iter().map(|(probe, needs)| (probe.as_str(), needs.as_slice())).collect();
    let mut bench = Bench::new(CONFIG, "{}", &probes);
    for index in 0..34 {
        for _ in 0..3 {
            bench.result(&format!("p{index}"), (index < 5).then_some("connection refused"));
        }
    }
    for index in 0..5 {
        bench.fire("Down", &format!("p{index}"));
    }
    assert!(bench.until(299).await.is_empty());
    let first = bench.until(320).await;
    assert_eq!(heads(&first), ["FIRST LOOK"]);
    assert!(first[0].text.starts_with("FIRST LOOK: watching 34, 29 well, 5 not\n"), "{}", first[0].text);
    insta::assert_snapshot!("first_look", first[0].text);
    bench.restart();
    assert!(bench.until(3600 * 30).await.is_empty(), "no reminders");
    bench.end("Down", "p1");
    let end = bench.until(3600 * 31).await;
    assert_eq!(heads(&end), ["RESOLVED Down"]);
    assert_eq!(end[0].in_reply_to.as_ref(), Some(&first[0].message_id));
    bench.fire("Down", "p1");
    assert_eq!(heads(&bench.until(3600 * 31 + 60).await), ["FIRING Down"], "it changed");
}

#[tokio::test]
async fn one_mail_of_the_parent_lists_children_over_three_levels() {
    let mut bench =
        Bench::new(CONFIG, "first_look: 0s", &[("postgres", &[]), ("tunnel", &["postgres"]), ("healthcheck", &["tunnel"]), ("cache", &[])]);
    for probe in ["postgres", "tunnel", "healthcheck", "cache"] {
        bench.result(probe, None);
    }
    // The children notice it first; the parent only shows it when it is asked once more.
    bench.fire("HealthcheckDown", "healthcheck");
    let snapshot = bench.wiring.snapshot.clone();
    let failed = move |probe: &str| {
        let outcome = Err(Failure::new(crate::model::Reason::Refused, "connection refused"));
        let target = Arc::new(target(probe, &[]));
        let (sight, evidence, samples, duration) = (Sight::Full, Vec::new(), Vec::new(), Duration::ZERO);
        snapshot.accept(&ProbeResult { target, at: at(5), duration, outcome, samples, sight, evidence });
    };
    let asked = bench.asked.clone();
    bench.wiring.refresh = Arc::new(move |probes| {
        assert_eq!(probes, ["postgres", "tunnel"]);
        asked.fetch_add(1, Ordering::Relaxed);
        failed("postgres");
        failed("tunnel");
        Box::pin(std::future::ready(()))
    });
    bench.restart();
    assert!(bench.until(20).await.is_empty());
    assert_eq!(bench.asked.load(Ordering::Relaxed), 1, "the parents were asked once");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let asking = asked.clone();
    bench.wiring.refresh = Arc::new(move |probes| {
        *asking.lock().expect("no panic in here") = probes;
        Box::pin(std::future::ready(()))
    });
    bench.restart();
    bench.fire("TunnelBroken", "tunnel");
    bench.fire("PostgresDown", "postgres");
    let one = bench.until(3000).await;
    assert_eq!(heads(&one), ["FIRING PostgresDown"]);
    assert!(one[0].text.contains("Also affected, since they need it: tunnel, healthcheck."), "{}", one[0].text);
    // The parent is well again, the tunnel too, the page is not.
    bench.result("postgres", None);
    bench.result("tunnel", None);
    bench.end("PostgresDown", "postgres");
    bench.end("TunnelBroken", "tunnel");
    assert_eq!(heads(&bench.until(3035).await), ["RESOLVED PostgresDown"], "a child needs a moment to see it");
    assert_eq!(*asked.lock().expect("no panic in here"), ["healthcheck"], "and is asked at once");
    assert_eq!(heads(&bench.until(3100).await), ["FIRING HealthcheckDown"]);
    bench.end("HealthcheckDown", "healthcheck");
    assert_eq!(heads(&bench.until(3200).await), ["RESOLVED HealthcheckDown"]);
}

#[tokio::test]
async fn a_child_whose_parent_fails_but_gets_no_alert_is_mailed_and_names_it() {
    let mut bench = Bench::new(CONFIG, "first_look: 0s", &[("db", &[]), ("web", &["db"])]);
    bench.result("db", Some("connection refused"));
    bench.fire("WebDown", "web");
    assert!(bench.until(29).await.is_empty());
    let mails = bench.until(60).await;
    assert_eq!(heads(&mails), ["FIRING WebDown"]);
    assert!(mails[0].text.contains("It needs db, which fails too"), "{}", mails[0].text);
}

#[tokio::test]
async fn an_alert_that_flaps_is_mailed_ever_more_rarely_and_the_mail_says_so() {
    let mut bench = Bench::plain();
    let mut mails = Vec::new();
    for minute in 0..(6 * 60) {
        bench.fire("Down", "web");
        mails.extend(bench.until(minute * 60 + 30).await);
        bench.end("Down", "web");
        mails.extend(bench.until(minute * 60 + 60).await);
    }
    // Undamped these were 720 mails.
    assert!((10..=20).contains(&mails.len()), "{} mails: {:?}", mails.len(), heads(&mails));
    let last = mails.iter().rev().find(|mail| state(mail) == "FIRING").expect("some");
    assert!(last.text.contains("is flapping: it changed 1") && last.text.contains("at most once in 1h"), "{}", last.text);
    let quick = &mails[..4];
    assert_eq!(heads(quick), ["FIRING Down", "RESOLVED Down", "FIRING Down", "RESOLVED Down"], "the first are told as they come");
}

#[tokio::test]
async fn what_comes_back_before_its_end_was_told_is_not_told_again() {
    let mut bench = Bench::plain();
    bench.fire("Down", "web");
    assert_eq!(bench.until(60).await.len(), 1);
    bench.end("Down", "web");
    assert!(bench.until(70).await.is_empty());
    bench.fire("Down", "web");
    assert!(bench.until(3600).await.is_empty());
    bench.end("Down", "web");
    assert_eq!(heads(&bench.until(3700).await), ["RESOLVED Down"]);
}

#[tokio::test]
async fn observing_sends_one_mail_a_day_that_says_what_would_have_been_sent_and_done() {
    let mut bench = Bench::new(&format!("{CONFIG}\nmode: observe"), "first_look: 0s", &[]);
    bench.fire("Down", "web");
    bench.until(60).await;
    bench.attempt("Down", "web", "1", Outcome::Observed, "would restart gunicorn.service; not done, since the mode is observe");
    bench.end("Down", "web");
    assert!(bench.until(600).await.is_empty());
    bench.restart();
    assert!(bench.until(86_300).await.is_empty());
    let day = bench.until(86_500).await;
    assert_eq!(heads(&day), ["OBSERVED"]);
    assert!(day[0].text.starts_with("OBSERVED: in the last 1d, would have mailed 2, would have restarted 1"), "{}", day[0].text);
    insta::assert_snapshot!("observed", day[0].text);
    // What was only observed does not count once people are told.
    bench.fire("Slow", "web");
    assert!(bench.until(86_600).await.is_empty());
    bench.dispatcher.mode = Mode::Send;
    assert_eq!(heads(&bench.until(86_700).await), ["FIRING Slow"]);
}

#[tokio::test]
async fn a_forgotten_maintenance_is_mailed_once_and_then_alerts_are_said_again() {
    let mut bench = Bench::plain();
    bench.wiring.mutes.lock().expect("lives").maintenance.look(&["/coursys/503"], at(0));
    bench.fire("Down", "web");
    assert!(bench.until(4 * 3600 - 10).await.is_empty());
    assert_eq!(bench.wiring.metrics.maintenance_active.get(), 1);
    let mails = bench.until(5 * 3600).await;
    assert_eq!(heads(&mails), ["FIRING Down", "MAINTENANCE OVERDUE"]);
    insta::assert_snapshot!("overdue", mails[1].text);
    bench.restart();
    assert!(bench.until(6 * 3600).await.is_empty());
}

#[tokio::test]
async fn five_hundred_alerts_at_once_are_one_mail_and_so_is_their_end() {
    let mut bench = Bench::plain();
    for index in 0..500 {
        bench.fire("Down", &format!("p{index}"));
    }
    let first = bench.until(60).await;
    assert_eq!(first.len(), 1, "{:?}", heads(&first));
    assert_eq!(first[0].subject, "[CourSys] [critical] 500 alerts at once (coursys)");
    assert!(first[0].text.contains("and 400 more") && first[0].important && first[0].text.len() < 20_000);
    assert_eq!(first[0].payload["truncatedAlerts"], 300);
    bench.end("Down", "p7");
    let end = bench.until(200).await;
    assert_eq!(end[0].in_reply_to.as_ref(), Some(&first[0].message_id));
    for index in 0..500 {
        bench.end("Down", &format!("p{index}"));
    }
    let end = bench.until(1000).await;
    assert_eq!(heads(&end), ["RESOLVED"], "at most one summary in five minutes");
    assert!(bench.until(5000).await.is_empty());
}

#[tokio::test]
async fn a_group_shows_twenty_alerts_and_counts_the_rest() {
    let mut bench = Bench::plain();
    let alerts = (0..57).map(|index| Alert { rule: "g/Down".into(), ..alert(&format!("Down{index}"), "web", BEGIN) }).collect();
    bench.wiring.alerts.replace_rule("g/Down", alerts);
    let mails = bench.until(10).await;
    assert!(mails.len() == 1 && mails[0].text.contains("and 37 more."), "{}", mails[0].text);
}

#[tokio::test]
async fn nobody_gets_more_than_sixty_mails_in_an_hour_and_nothing_is_left_untold() {
    let mut bench = Bench::plain();
    let (mut mails, mut counts) = (Vec::new(), Vec::new());
    for index in 0..150 {
        bench.fire("Down", &format!("p{index}"));
        let fresh = bench.until(index * 10 + 9).await;
        counts.extend(fresh.iter().map(|_| bench.now));
        mails.extend(fresh);
    }
    let within = |end: Timestamp| counts.iter().filter(|at| **at <= end && end.since(**at) < Duration::from_secs(3600)).count();
    let most = counts.iter().map(|end| within(*end)).max().expect("some");
    assert!((50..=60).contains(&most), "{most}");
    bench.until(4600).await;
    assert!(bench.wiring.store.all::<Notified>().len() == 150);
}

#[tokio::test]
async fn nothing_that_a_probe_read_becomes_a_header_a_tag_or_a_template() {
    let mut bench = Bench::plain();
    let evil = "x\r\nBcc: evil@example.org\0<script>alert(1)</script>{{ 7*7 }}{% if 1 %}\u{202e}\"'";
    let mut hostile = alert("Down", evil, BEGIN);
    hostile.annotations = Labels::new([("summary", evil), ("description", evil), ("runbook_url", evil)]);
    hostile.evidence = vec![evil.into(); 100];
    let hostile = Alert { rule: "g/x".into(), labels: hostile.labels.with([("alertname", evil), ("severity", evil)]), ..hostile };
    bench.put(hostile);
    let mail = bench.until(10).await.remove(0);
    let single = [&mail.subject, &mail.message_id].into_iter().chain(mail.headers.iter().map(|(_, value)| value));
    for header in single {
        assert!(!header.contains(|c: char| c.is_control()), "{header:?}");
    }
    assert!(!mail.html.contains("<script") && mail.html.contains("{{ 7*7 }}{% if 1 %}"), "{}", mail.html);
    assert!(!mail.text.contains(['\r', '\0', '\u{202e}']) && !mail.text.lines().any(|line| line.starts_with("Bcc")), "{}", mail.text);
    assert!(mail.text.len() < 20_000 && mail.subject.chars().count() <= 220);
    let command = mail.text.lines().find(|line| line.contains("proctor silence add")).expect("is there");
    assert!(command.contains(r"'alertname=") && !command.contains("\"''"), "quoted for a shell: {command}");
}

#[tokio::test]
async fn what_is_over_is_forgotten_after_120_hours() {
    let mut bench = Bench::plain();
    bench.fire("Down", "web");
    bench.until(60).await;
    bench.end("Down", "web");
    bench.until(120).await;
    assert_eq!(bench.wiring.store.all::<Notified>().len(), 1);
    bench.wiring.alerts.replace_rule("g/Down/web", Vec::new());
    bench.until(121 * 3600).await;
    assert!(bench.wiring.store.all::<Notified>().is_empty());
}

#[tokio::test]
async fn regrouping_does_not_tell_again_what_was_told() {
    let mut bench = Bench::plain();
    bench.fire("Down", "web");
    assert_eq!(bench.until(60).await.len(), 1);
    bench.config = from_text("f", &format!("{CONFIG}\ngroup_by: [alertname, probe]")).expect("is right");
    bench.restart();
    assert!(bench.until(600).await.is_empty());
    bench.end("Down", "web");
    assert_eq!(heads(&bench.until(700).await), ["RESOLVED Down"]);
}

#[tokio::test]
async fn while_the_state_cannot_be_written_every_mail_says_so() {
    let mut bench = Bench::plain();
    let nowhere = std::path::Path::new("/proc/self/state.db");
    bench.wiring.store = Store::open(Some(nowhere), bench.wiring.metrics.clone()).expect("opens degraded");
    bench.restart();
    bench.fire("Down", "web");
    let mails = bench.until(60).await;
    assert!(heads(&mails).contains(&"FIRING Down".to_owned()), "{:?}", heads(&mails));
    assert!(mails.iter().all(|mail| mail.text.contains("Its state cannot be written")), "{mails:?}");
    bench.end("Down", "web");
    let end = bench.until(600).await;
    assert_eq!(heads(&end), ["RESOLVED Down"]);
    assert!(end[0].text.contains("Its state cannot be written"));
}

#[tokio::test]
async fn a_restart_does_not_begin_the_first_look_anew() {
    let mut bench = Bench::new(CONFIG, "{}", &[]);
    bench.until(10).await;
    let kept = bench.wiring.store.get::<mute::FirstLook>(mute::FirstLook::KEY).expect("was written");
    assert_eq!((kept.began_at, kept.done_at), (at(0), None));
}

#[tokio::test]
async fn the_loop_flushes_after_a_change_and_ends_at_the_stop() {
    let Bench { wiring, dispatcher, .. } = Bench::new(&format!("{CONFIG}\ngroup_wait: 0s"), "first_look: 0s", &[]);
    let (tasks, outbox) = (crate::tasks::Tasks::new(), wiring.outbox.clone());
    tasks.spawn("dispatch", dispatcher.run(tasks.token()));
    let now = crate::tasks::now().0 / 1000;
    wiring.alerts.replace_rule("g/Down/web", vec![alert("Down", "web", now)]);
    tokio::time::timeout(Duration::from_secs(10), outbox.notified()).await.expect("the outbox is woken");
    assert_eq!(wiring.store.all::<Delivery>().len(), 3);
    assert!(tasks.stop(Duration::from_secs(5)).await.is_empty());
}
