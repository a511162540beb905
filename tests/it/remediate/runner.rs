//! The runner with an action that counts, over a real store.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use proctor::alerts::AlertTable;
use proctor::metrics::{ByOutcome, Metrics};
use proctor::model::{Alert, Attempt, Failure, Matcher, Outcome, ProbeResult, Reason, Sight, Target};
use proctor::remediate::{Action, Done, Facts, Occasion, Planned, Runner, Terms, Wiring};
use proctor::store::Store;
use proctor::tasks::{self, Tasks};

use super::firing;
use crate::support::process::eventually;

const SOON: Duration = Duration::from_secs(20);

/// What the fake action does when it is done.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// Makes the probe succeed.
    Helps,
    /// Says that it worked; the probe fails as before.
    InVain,
    /// Never ends.
    Hangs,
    /// Panics.
    Panics,
    /// Ends when it is told to.
    Waits,
}

/// An action that counts how often it was done.
struct Counting {
    manner: Manner,
    acts: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    works: Arc<AtomicBool>,
    go_on: tokio::sync::Notify,
    /// What the store held of running attempts while it was done.
    seen: Mutex<Vec<usize>>,
    store: Store,
    facts: Mutex<Facts>,
}

impl Action for Counting {
    fn facts(&self) -> BoxFuture<'_, Facts> {
        async { self.facts.lock().unwrap().clone() }.boxed()
    }

    fn act<'a>(&'a self, _: &'a Occasion) -> BoxFuture<'a, Done> {
        async move {
            self.acts.fetch_add(1, Ordering::SeqCst);
            self.most_at_once.fetch_max(self.at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let running = self.store.all::<Attempt>().iter().filter(|attempt| attempt.outcome == Outcome::Running).count();
            self.seen.lock().unwrap().push(running);
            match self.manner {
                Manner::Helps => self.works.store(true, Ordering::SeqCst),
                Manner::InVain => {}
                Manner::Hangs => std::future::pending().await,
                Manner::Panics => panic!("on purpose"),
                Manner::Waits => self.go_on.notified().await,
            }
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            Done::quiet(Ok("turned it off and on".into()))
        }
        .boxed()
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(30)
    }
}

/// A runner and what it needs.
struct Rig {
    runner: Runner,
    tasks: Tasks,
    alerts: AlertTable,
    metrics: Arc<Metrics>,
    store: Store,
    action: Arc<Counting>,
    works: Arc<AtomicBool>,
    withheld: Arc<Mutex<Option<String>>>,
    plans: Vec<Planned>,
}

fn terms(name: &str, target: &str) -> Terms {
    Terms {
        name: name.into(),
        target: target.into(),
        verb: "restart",
        object: target.rsplit(':').next().unwrap().into(),
        firing_for: Duration::from_millis(10),
        acts: true,
        attempts: 3,
        per: Duration::from_secs(1800),
        cooldown: Duration::from_millis(5),
    }
}

impl Rig {
    fn new(state: Option<&Path>, manner: Manner, targets: &[(&str, &str)]) -> Self {
        let metrics = Arc::new(Metrics::new());
        let store = Store::open(state, metrics.clone()).expect("the state opens");
        let works = Arc::new(AtomicBool::new(false));
        let action = Arc::new(Counting {
            manner,
            acts: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            works: works.clone(),
            go_on: tokio::sync::Notify::new(),
            seen: Mutex::default(),
            store: store.clone(),
            facts: Mutex::default(),
        });
        let alerts = AlertTable::default();
        let withheld: Arc<Mutex<Option<String>>> = Arc::default();
        let plans: Vec<Planned> = targets
            .iter()
            .map(|(name, target)| Planned {
                // A repaired target rests: its alert, which no rule ends here, would ask for it again.
                terms: Terms {
                    cooldown: Duration::from_millis(if manner == Manner::Helps { 3_600_000 } else { 5 }),
                    ..terms(name, target)
                },
                matchers: vec![Matcher::parse(&format!("alertname=~\"Down|{name}\"")).unwrap()],
                verify: vec!["web".into()],
                within: Duration::from_millis(60),
                settle: Duration::ZERO,
                action: action.clone(),
            })
            .collect();
        let (probe, why) = (works.clone(), withheld.clone());
        let tasks = Tasks::new();
        let wiring = Wiring {
            alerts: alerts.clone(),
            store: store.clone(),
            metrics: metrics.clone(),
            probe_now: Arc::new(move |names| {
                let works = probe.load(Ordering::SeqCst);
                async move { names.iter().map(|name| result(name, works)).collect() }.boxed()
            }),
            withheld: Arc::new(move |_, _| why.lock().unwrap().clone()),
            verify_every: Duration::from_millis(20),
            tasks: tasks.clone(),
        };
        Self { runner: Runner::new(plans.clone(), wiring), tasks, alerts, metrics, store, action, works, withheld, plans }
    }

    fn start(self) -> Self {
        self.tasks.spawn("runner", self.runner.clone().run());
        self
    }

    fn fire(&self, alert: Alert) -> String {
        let (rule, episode) = (alert.rule.clone(), alert.episode());
        self.alerts.replace_rule(&rule, vec![alert]);
        episode
    }

    fn acts(&self) -> usize {
        self.action.acts.load(Ordering::SeqCst)
    }

    /// Outcomes in the store, and how often each.
    fn outcomes(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for attempt in self.store.all::<Attempt>() {
            *counts.entry(attempt.outcome.as_str()).or_default() += 1;
        }
        counts
    }

    async fn until(&self, expected: &[(&'static str, usize)]) {
        let expected: BTreeMap<_, _> = expected.iter().copied().collect();
        eventually(&format!("{expected:?} in the store"), SOON, async || (self.outcomes() == expected).then_some(())).await;
    }

    /// Lets the runner ask everything again a few times, by changing the table, and waits until it has.
    async fn stir(&self) {
        for round in 0..3 {
            let before = self.alerts.changed();
            self.fire(firing(&format!("Unrelated{round}"), "else"));
            assert!(before.has_changed().unwrap());
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
}

fn result(probe: &str, works: bool) -> ProbeResult {
    let target = Target {
        probe: probe.into(),
        target: None,
        kind: "tcp",
        interval: Duration::from_secs(15),
        timeout: Duration::from_secs(5),
        depends_on: Arc::new([]),
    };
    ProbeResult {
        target: Arc::new(target),
        at: tasks::now(),
        duration: Duration::ZERO,
        outcome: if works { Ok(()) } else { Err(Failure::new(Reason::Refused, "cannot connect")) },
        samples: Vec::new(),
        sight: Sight::Full,
        evidence: Vec::new(),
    }
}

/// A folder and the state in it.
fn state() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("a folder can be made");
    let path = dir.path().join("state.db");
    (dir, path)
}

#[tokio::test]
async fn a_repair_is_recorded_before_it_is_done_and_its_outcome_stands_in_store_alert_and_metric() {
    let (_dir, path) = state();
    let rig = Rig::new(Some(&path), Manner::Helps, &[("a", "docker:x")]).start();
    *rig.action.facts.lock().unwrap() = Facts { lines: vec!["x exited with 137".into()], ..Facts::default() };
    let alert = firing("Down", "web");
    rig.fire(alert.clone());
    rig.until(&[("repaired", 1)]).await;
    assert_eq!((rig.acts(), rig.action.seen.lock().unwrap().as_slice()), (1, &[1usize][..]), "the intent was there when it was done");
    let told = eventually("the outcome in the alert", SOON, async || {
        rig.alerts.get(alert.fingerprint()).filter(|alert| alert.attempts.first().is_some_and(|a| a.outcome == Outcome::Repaired))
    })
    .await;
    assert_eq!((told.attempts.len(), told.evidence), (1, vec!["x exited with 137".to_owned()]));
    assert!(told.attempts[0].detail.starts_with("turned it off and on; web well "), "{}", told.attempts[0].detail);
    assert_eq!(rig.metrics.actions.get_or_create(&ByOutcome { outcome: "repaired" }).get(), 1);
    let windows = rig.runner.current();
    assert!(windows.len() == 1 && windows[0].probes.contains("web") && windows[0].settled_at > tasks::now(), "{windows:?}");
}

#[tokio::test]
async fn an_action_that_observes_says_so_once_per_episode_and_does_nothing() {
    let (_dir, path) = state();
    let rig = Rig::new(Some(&path), Manner::Helps, &[("a", "docker:x")]);
    let mut plans = rig.plans.clone();
    plans[0].terms.acts = false;
    rig.runner.set_actions(plans);
    let rig = rig.start();
    rig.fire(firing("Down", "web"));
    rig.until(&[("observed", 1)]).await;
    rig.stir().await;
    assert_eq!((rig.acts(), rig.outcomes()), (0, BTreeMap::from([("observed", 1)])));
    let mut again = firing("Down", "web");
    again.fired_at = Some(again.active_at + Duration::from_secs(60));
    rig.fire(again);
    rig.until(&[("observed", 2)]).await;
    assert_eq!(rig.acts(), 0);
}

#[tokio::test]
async fn what_never_helps_is_done_three_times_and_then_people_are_told_once() {
    let (_dir, path) = state();
    let rig = Rig::new(Some(&path), Manner::InVain, &[("a", "docker:x")]).start();
    rig.fire(firing("Down", "web"));
    rig.until(&[("failed", 3), ("refused", 1)]).await;
    rig.stir().await;
    assert_eq!((rig.acts(), rig.outcomes()), (3, BTreeMap::from([("failed", 3), ("refused", 1)])));
    let attempts = rig.runner.attempts();
    let detail = &attempts.iter().find(|attempt| attempt.outcome == Outcome::Failed).unwrap().detail;
    assert!(detail.contains("turned it off and on, but web still fails: cannot connect"), "{detail}");
    let refused = &attempts.iter().find(|attempt| attempt.outcome == Outcome::Refused).unwrap().detail;
    assert!(refused.starts_with("restart of x refused: 3 restarts in the last 30m (limit 3); next possible at "), "{refused}");
    assert!(rig.runner.current().is_empty(), "what a failed act broke is said at once");
}

#[tokio::test]
async fn several_actions_and_alerts_share_the_one_budget_of_a_target() {
    let (_dir, path) = state();
    let rig = Rig::new(Some(&path), Manner::InVain, &[("a", "docker:x"), ("b", "docker:x"), ("c", "docker:x")]).start();
    rig.fire(firing("Down", "web"));
    rig.fire(firing("b", "web"));
    rig.fire(firing("c", "web"));
    // The last act may still be verified when the next is refused.
    let all = |outcomes: BTreeMap<&str, usize>| outcomes.get("refused") >= Some(&1) && outcomes.get("failed") == Some(&3);
    eventually("three acts and a refusal", SOON, async || all(rig.outcomes()).then_some(())).await;
    rig.stir().await;
    assert_eq!((rig.acts(), rig.outcomes().get("failed")), (3, Some(&3)));
    assert_eq!(rig.action.most_at_once.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn of_many_targets_that_fail_at_once_only_ten_are_acted_on_within_the_hour() {
    let (_dir, path) = state();
    let names: Vec<(String, String)> = (0..16).map(|i| (format!("a{i}"), format!("docker:x{i}"))).collect();
    let targets: Vec<(&str, &str)> = names.iter().map(|(name, target)| (name.as_str(), target.as_str())).collect();
    let rig = Rig::new(Some(&path), Manner::Helps, &targets).start();
    rig.fire(firing("Down", "web"));
    rig.until(&[("repaired", 10), ("refused", 6)]).await;
    rig.stir().await;
    assert_eq!(rig.acts(), 10);
}

#[tokio::test]
async fn without_a_durable_intent_nothing_is_done() {
    let rig = Rig::new(None, Manner::Helps, &[("a", "docker:x")]).start();
    rig.fire(firing("Down", "web"));
    let (_, why) = eventually("a reason to wait", SOON, async || rig.runner.waits().get("docker:x").cloned()).await;
    assert!(why.contains("could not be recorded"), "{why}");
    rig.stir().await;
    assert_eq!((rig.acts(), rig.outcomes()), (0, BTreeMap::new()));
}

#[tokio::test]
async fn maintenance_and_the_like_hold_it_back_and_it_goes_on_when_they_end() {
    let (_dir, path) = state();
    let rig = Rig::new(Some(&path), Manner::Helps, &[("a", "docker:x")]);
    *rig.withheld.lock().unwrap() = Some("the site is down on purpose".into());
    let rig = rig.start();
    rig.fire(firing("Down", "web"));
    let (_, why) = eventually("a reason to wait", SOON, async || rig.runner.waits().get("docker:x").cloned()).await;
    assert_eq!(why, "the site is down on purpose");
    rig.stir().await;
    assert_eq!(rig.acts(), 0);
    *rig.withheld.lock().unwrap() = None;
    rig.stir().await;
    rig.until(&[("repaired", 1)]).await;
}

#[tokio::test]
async fn a_pause_holds_over_a_restart_until_it_is_lifted() {
    let (_dir, path) = state();
    let rig = Rig::new(Some(&path), Manner::Helps, &[("a", "docker:x")]);
    rig.runner.pause("uid 1000\n").await;
    assert_eq!(rig.metrics.actions_paused.get(), 1);
    rig.store.close();
    drop(rig);
    let rig = Rig::new(Some(&path), Manner::Helps, &[("a", "docker:x")]).start();
    rig.fire(firing("Down", "web"));
    let (_, why) = eventually("a reason to wait", SOON, async || rig.runner.waits().get("docker:x").cloned()).await;
    assert!(why.contains("paused"), "{why}");
    rig.stir().await;
    assert_eq!(rig.acts(), 0);
    assert_eq!(rig.runner.resume().await.map(|paused| paused.by), Some("uid 1000".into()));
    rig.until(&[("repaired", 1)]).await;
}

#[tokio::test]
async fn a_target_that_somebody_just_restarted_is_left_alone_for_the_cooldown() {
    let (_dir, path) = state();
    let rig = Rig::new(Some(&path), Manner::Helps, &[("a", "docker:x")]);
    let mut plans = rig.plans.clone();
    plans[0].terms.cooldown = Duration::from_secs(4);
    rig.runner.set_actions(plans);
    let restarted = tasks::now();
    *rig.action.facts.lock().unwrap() = Facts { changed_at: Some(restarted), ..Facts::default() };
    let rig = rig.start();
    rig.fire(firing("Down", "web"));
    let (until, why) = eventually("a reason to wait", SOON, async || {
        rig.runner.waits().get("docker:x").filter(|(_, why)| why.contains("somebody")).cloned()
    })
    .await;
    assert_eq!(until, restarted + Duration::from_secs(4), "{why}");
    rig.until(&[("repaired", 1)]).await;
    assert!(tasks::now() >= until);
}

#[tokio::test]
async fn an_action_that_panics_has_failed_and_its_target_is_free_again() {
    let (_dir, path) = state();
    let rig = Rig::new(Some(&path), Manner::Panics, &[("a", "docker:x")]).start();
    rig.fire(firing("Down", "web"));
    rig.until(&[("failed", 3), ("refused", 1)]).await;
    assert!(rig.runner.attempts()[0].detail.contains("on purpose"));
}

#[tokio::test]
async fn a_stop_lets_an_act_end_and_leaves_its_verification_to_the_next_start() {
    let (_dir, path) = state();
    let rig = Rig::new(Some(&path), Manner::Waits, &[("a", "docker:x")]).start();
    rig.fire(firing("Down", "web"));
    eventually("the act begins", SOON, async || (rig.acts() == 1).then_some(())).await;
    let (tasks, action) = (rig.tasks.clone(), rig.action.clone());
    let stop = tokio::spawn(async move { tasks.stop(Duration::from_secs(10)).await });
    rig.tasks.token().cancelled().await;
    action.go_on.notify_one();
    assert!(stop.await.unwrap().is_empty(), "nothing is stuck");
    assert_eq!(rig.outcomes(), BTreeMap::from([("running", 1)]));
}

/// Runs a rig whose act hangs in a runtime of its own, and ends that runtime as a crash would.
fn crash_during_an_act(path: &Path) -> Alert {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let alert = firing("Down", "web");
    let fired = alert.clone();
    let path = path.to_owned();
    let store = runtime.block_on(async move {
        let rig = Rig::new(Some(&path), Manner::Hangs, &[("a", "docker:x")]).start();
        rig.fire(fired);
        eventually("the act begins", SOON, async || (rig.acts() == 1).then_some(())).await;
        rig.store.clone()
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    store.close();
    alert
}

#[test]
fn what_was_under_way_when_proctor_died_is_not_repeated_and_the_probes_say_how_it_stands() {
    for works in [true, false] {
        let (_dir, path) = state();
        let alert = crash_during_an_act(&path);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let rig = Rig::new(Some(&path), Manner::InVain, &[("a", "docker:x")]);
            rig.works.store(works, Ordering::SeqCst);
            // The next attempt would be allowed only after the cooldown.
            let mut plans = rig.plans.clone();
            plans[0].terms.cooldown = Duration::from_secs(3600);
            rig.runner.set_actions(plans);
            let rig = rig.start();
            rig.fire(alert.clone());
            let expected = if works { Outcome::Repaired } else { Outcome::InDoubt };
            let attempt = eventually("the doubt is settled", SOON, async || {
                let told = rig.alerts.get(alert.fingerprint())?.attempts;
                told.first().filter(|attempt| attempt.outcome == expected && attempt.detail.contains("it was not repeated: ")).cloned()
            })
            .await;
            assert!(attempt.detail.contains(if works { "web well" } else { "web still fails" }), "{}", attempt.detail);
            rig.stir().await;
            assert_eq!((rig.acts(), rig.outcomes()), (0, BTreeMap::from([(expected.as_str(), 1)])));
        });
    }
}
