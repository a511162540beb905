//! Asks the guard for every action and alert, records the intent, acts, lets settle, verifies, records the outcome.
//!
//! Level-triggered: after each change of the alert table, and when a wait is over, everything is asked again. What may
//! have been done stands in the store before it is done (invariant 5); what was under way when Proctor ended is never
//! done again, the probes say how it stands. Each attempt is a task of its own, so that one target that hangs delays
//! no other; there is at most one per target.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::guard::{Decision, Facts, RECHECK, Terms, World, decide};
use super::{Occasion, Planned, line};
use crate::alerts::AlertTable;
use crate::metrics::{ByOutcome, Metrics};
use crate::model::duration::{print, print_measured};
use crate::model::labels::fnv1a;
use crate::model::{Alert, Attempt, Outcome, ProbeResult, Timestamp};
use crate::mute::OwnAction;
use crate::store::{Batch, Committed, Record, Store, Table};
use crate::tasks::{self, Tasks};

/// How long the target may be looked at before the guard decides without.
const LOOK: Duration = Duration::from_secs(10);
/// What a repair caused may take so long to end after the probes are well: dependants have intervals of their own.
const AFTERMATH: Duration = Duration::from_secs(60);
/// Attempts are kept so long: longer than the longest cooldown and any mail thread.
const KEEP: Duration = Duration::from_secs(7 * 86_400);
/// The most attempts that are kept.
const MAX_KEPT: usize = 2_000;
/// The most of what a program printed that is stored and mailed; the program's own limit is larger, so that the end is
/// the end.
const MAX_STORED_OUTPUT: usize = 64 * 1024;

/// Asks some probes at once, by name, outside their slots, and returns how each target ended. The same type as
/// `probe::ProbeNow`, which is on this floor.
pub type ProbeNow = Arc<dyn Fn(Vec<String>) -> BoxFuture<'static, Vec<ProbeResult>> + Send + Sync>;

/// Says why nothing is to be done about an alert now, if so: startup, maintenance, hold, silence, a failing parent,
/// that Proctor cannot see. It must leave out our own actions and what the first look told.
pub type Withheld = Arc<dyn Fn(&Alert, Timestamp) -> Option<String> + Send + Sync>;

/// What `app` hands to the runner.
#[derive(Clone)]
pub struct Wiring {
    /// What fires.
    pub alerts: AlertTable,
    /// Where attempts are kept.
    pub store: Store,
    /// Where outcomes are counted.
    pub metrics: Arc<Metrics>,
    /// How is verified.
    pub probe_now: ProbeNow,
    /// What speaks against acting.
    pub withheld: Withheld,
    /// The pause between two rounds of verification: 2s, less in tests.
    pub verify_every: Duration,
    /// The task's stage: attempts are spawned on it, and its token ends the runner.
    pub tasks: Tasks,
}

/// That somebody has paused all actions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// Since when.
    pub since: Timestamp,
    /// Who.
    pub by: String,
}

impl Record for Paused {
    const TABLE: Table = Table::Meta;
    const PREFIX: &'static str = "actions-paused";
    fn key(&self) -> String {
        Self::PREFIX.to_owned()
    }
}

/// An action that runs or has just run, for those who hold back what it causes.
pub type Window = OwnAction;

/// What the runner remembers between two turns.
#[derive(Default)]
struct Memory {
    /// Oldest first; the same as in the store.
    attempts: Vec<Attempt>,
    /// Targets that a task looks at, acts on or verifies.
    busy: BTreeSet<String>,
    /// Targets that are not asked again before, and why.
    waits: BTreeMap<String, (Timestamp, String)>,
    windows: Vec<Window>,
    paused: Option<Paused>,
}

/// Runs actions. Clones share it.
#[derive(Clone)]
pub struct Runner(Arc<Inner>);

struct Inner {
    wiring: Wiring,
    actions: RwLock<Arc<Vec<Planned>>>,
    memory: Mutex<Memory>,
    wake: Notify,
}

impl Runner {
    /// Takes the actions and what the store knows of earlier attempts; does nothing before [`Runner::run`].
    pub fn new(actions: Vec<Planned>, wiring: Wiring) -> Self {
        let mut attempts = wiring.store.all::<Attempt>();
        attempts.sort_by_key(|attempt| attempt.started_at);
        let paused = wiring.store.get::<Paused>(Paused::PREFIX);
        wiring.metrics.actions_paused.set(i64::from(paused.is_some()));
        let memory = Mutex::new(Memory { attempts, paused, ..Memory::default() });
        Self(Arc::new(Inner { wiring, actions: RwLock::new(Arc::new(actions)), memory, wake: Notify::new() }))
    }

    /// Takes the actions of a new configuration; attempts that are under way end as they began.
    pub fn set_actions(&self, actions: Vec<Planned>) {
        *self.0.actions.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(actions);
        self.memory(|memory| memory.waits.clear());
        self.0.wake.notify_one();
    }

    /// Stops all actions until [`Runner::resume`], over a restart too. What is under way is not stopped.
    pub async fn pause(&self, by: &str) -> Paused {
        let paused = Paused { since: tasks::now(), by: line(by) };
        let mut batch = Batch::new();
        batch.put(&paused);
        self.memory(|memory| memory.paused = Some(paused.clone()));
        self.0.wiring.metrics.actions_paused.set(1);
        self.0.wiring.store.commit(batch).await;
        paused
    }

    /// Lets actions run again; says who had paused them.
    pub async fn resume(&self) -> Option<Paused> {
        let was = self.memory(|memory| memory.paused.take());
        let mut batch = Batch::new();
        batch.remove::<Paused>(Paused::PREFIX);
        self.0.wiring.metrics.actions_paused.set(0);
        self.0.wiring.store.commit(batch).await;
        self.0.wake.notify_one();
        was
    }

    /// Returns who has paused all actions, if somebody has.
    pub fn paused(&self) -> Option<Paused> {
        self.memory(|memory| memory.paused.clone())
    }

    /// Returns the actions of ours that run, or ran and still settle: what they cause is held back. One that failed is
    /// left out.
    pub fn current(&self) -> Vec<Window> {
        let now = tasks::now();
        self.memory(|memory| {
            memory.windows.retain(|window| window.settled_at > now);
            memory.windows.clone()
        })
    }

    /// Returns, by target, until when and why nothing is done, as far as it was asked; for `explain` and pages.
    pub fn waits(&self) -> BTreeMap<String, (Timestamp, String)> {
        self.memory(|memory| memory.waits.clone())
    }

    /// Returns the attempts that are known, oldest first.
    pub fn attempts(&self) -> Vec<Attempt> {
        self.memory(|memory| memory.attempts.clone())
    }

    /// Says what will be done about an alert, one line per action, if it goes on and nothing speaks against it then.
    pub fn announce(&self, alert: &Alert, hour: &dyn Fn(Timestamp) -> String) -> Vec<String> {
        let actions = self.actions();
        let about = actions.iter().filter(|planned| planned.matchers.iter().all(|matcher| matcher.matches(&alert.labels)));
        let said = about.map(|planned| {
            let Terms { name, verb, object, firing_for, acts, .. } = &planned.terms;
            let from = hour(alert.fired_at.unwrap_or(alert.active_at) + *firing_for);
            let mode = if *acts { "" } else { "only observing: would " };
            format!("{mode}{verb} {object} ({name}), not before {from}, if it still fires then")
        });
        said.map(|text| line(&text)).collect()
    }

    fn memory<T>(&self, with: impl FnOnce(&mut Memory) -> T) -> T {
        with(&mut self.0.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn actions(&self) -> Arc<Vec<Planned>> {
        self.0.actions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs until the stage is stopped. An attempt that is under way then goes on until its act is over or the stage's
    /// deadline; one that is not over stays recorded as running, and the next start finds it in doubt.
    pub async fn run(self) {
        let token = self.0.wiring.tasks.token();
        let mut changed = self.0.wiring.alerts.changed();
        token.run_until_cancelled(self.settle_doubts()).await;
        while !token.is_cancelled() {
            changed.mark_unchanged();
            let until = self.turn(tasks::now());
            let pause = until.since(tasks::now()).max(Duration::from_millis(10));
            tokio::select! {
                // The table lives as long as we do.
                _ = changed.changed() => {}
                () = self.0.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = token.cancelled() => {}
            }
        }
    }

    /// Asks the guard about everything once, begins what it allows, and returns when to ask again at the latest.
    fn turn(&self, now: Timestamp) -> Timestamp {
        let alerts = self.0.wiring.alerts.all();
        self.keep_told(&alerts);
        let mut next = now + RECHECK;
        for planned in self.actions().iter() {
            let mut matching: Vec<&Alert> =
                alerts.iter().filter(|alert| alert.is_firing() && planned.matchers.iter().all(|m| m.matches(&alert.labels))).collect();
            // Several alerts may ask for one target: the oldest is the one it is done for.
            matching.sort_by_key(|alert| (alert.fired_at, alert.fingerprint()));
            for alert in matching {
                if self.memory(|memory| memory.busy.contains(&planned.terms.target)) {
                    break;
                }
                match self.ask(planned, alert, None, now).0 {
                    Decision::Wait { until, why } => {
                        next = next.min(until.max(now + Duration::from_millis(50)));
                        self.memory(|memory| memory.waits.insert(planned.terms.target.clone(), (until, why)));
                    }
                    // Before anything that counts is said, the target itself is looked at: by the attempt's own task.
                    _ => self.begin(planned.clone(), alert.clone()),
                }
            }
        }
        next
    }

    /// Asks the guard. With `facts` a yes is at once taken down in memory, in one step with the question, so that of
    /// many targets that ask at one moment no more are let through than the host's cap allows.
    fn ask(&self, planned: &Planned, alert: &Alert, facts: Option<&Facts>, now: Timestamp) -> (Decision, Option<Attempt>) {
        let withheld = (self.0.wiring.withheld)(alert, now);
        let degraded = self.0.wiring.store.degraded().is_some();
        self.memory(|memory| {
            // A wait that the target itself asked for holds until it is over, or it would be looked at again and again.
            if let (None, Some((until, why))) = (facts, memory.waits.get(&planned.terms.target))
                && *until > now
                && why.starts_with(FOUND)
            {
                return (Decision::Wait { until: *until, why: why.clone() }, None);
            }
            let world = World { attempts: &memory.attempts, paused: memory.paused.is_some(), degraded, withheld, facts };
            let decision = decide(&planned.terms, alert, &world, now);
            let begun = (decision == Decision::Run && facts.is_some()).then(|| {
                let intent = format!("{} of {} is under way", planned.terms.verb, planned.terms.object);
                let attempt = attempt_of(planned, alert, Outcome::Running, intent, now);
                memory.attempts.push(attempt.clone());
                attempt
            });
            (decision, begun)
        })
    }

    /// Writes into the table what the alerts' attempts should say: a table that was restored after us knows less.
    fn keep_told(&self, alerts: &[Alert]) {
        let by_episode: BTreeMap<String, &Alert> = alerts.iter().map(|alert| (alert.episode(), alert)).collect();
        let missing: Vec<Attempt> = self.memory(|memory| {
            let untold = |attempt: &&Attempt| by_episode.get(&attempt.episode).is_some_and(|alert| !alert.attempts.contains(attempt));
            memory.attempts.iter().filter(untold).cloned().collect()
        });
        for attempt in missing {
            self.0.wiring.alerts.record_attempt(&attempt);
        }
    }

    fn begin(&self, planned: Planned, alert: Alert) {
        let target = planned.terms.target.clone();
        self.memory(|memory| memory.busy.insert(target.clone()));
        let runner = self.clone();
        self.0.wiring.tasks.spawn(format!("action {}", planned.terms.name), async move {
            // However this ends, by a panic too, the target is free again.
            let free = Free(&runner, target);
            runner.attempt(&planned, &alert).await;
            drop(free);
        });
    }

    /// One attempt from the look at the target to the outcome.
    async fn attempt(&self, planned: &Planned, alert: &Alert) {
        let facts = match timeout(LOOK, AssertUnwindSafe(planned.action.facts()).catch_unwind()).await {
            Ok(Ok(facts)) => facts,
            Ok(Err(panic)) => Facts { lines: vec![tasks::panic_text(&*panic)], ..Facts::default() },
            Err(_) => {
                Facts { lines: vec![format!("{} could not be looked at within {}", planned.terms.object, print(LOOK))], ..Facts::default() }
            }
        };
        // What held when the guard was first asked may have changed meanwhile.
        let Some(alert) = self.0.wiring.alerts.get(alert.fingerprint()).filter(|now| now.is_firing() && now.episode() == alert.episode())
        else {
            return;
        };
        let now = tasks::now();
        match self.ask(planned, &alert, Some(&facts), now) {
            (_, Some(begun)) => self.act(planned, &alert, &facts, begun).await,
            (Decision::Wait { until, why }, _) => {
                self.memory(|memory| memory.waits.insert(planned.terms.target.clone(), (until, format!("{FOUND}{why}"))));
            }
            (Decision::Refuse { why, .. }, _) => self.record(attempt_of(planned, &alert, Outcome::Refused, why, now)).await,
            (Decision::Observe { would }, _) => {
                // What stands now, or why it could not be seen: then the act would fail too.
                let detail = [would].into_iter().chain(facts.lines).collect::<Vec<_>>().join("; ");
                self.record(attempt_of(planned, &alert, Outcome::Observed, line(&detail), now)).await;
            }
            // Only without facts, and here they are.
            (Decision::Run, None) => {}
        }
    }

    async fn act(&self, planned: &Planned, alert: &Alert, facts: &Facts, mut attempt: Attempt) {
        let (terms, begin) = (&planned.terms, attempt.started_at);
        if self.commit(&attempt).await != Committed::Durable {
            // Without a durable intent a crash could repeat the act. It may be on the disk all the same, so it is taken
            // back and not left to look like an act in doubt.
            let mut batch = Batch::new();
            batch.remove::<Attempt>(&attempt.id);
            self.0.wiring.store.commit(batch).await;
            let why = "the intent could not be recorded on the disk, so nothing was done".to_owned();
            tracing::warn!(action = terms.name, target = terms.target, why, "an action waits");
            self.memory(|memory| {
                memory.attempts.retain(|known| known.id != attempt.id);
                memory.waits.insert(terms.target.clone(), (tasks::now() + RECHECK, format!("{FOUND}{why}")));
            });
            return;
        }
        self.0.wiring.alerts.add_evidence(alert.fingerprint(), facts.lines.clone());
        self.remember(&attempt);
        let deadline = planned.action.deadline();
        self.memory(|memory| {
            memory.windows.retain(|window| window.settled_at > begin);
            memory.windows.push(OwnAction {
                attempt: attempt.id.clone(),
                probes: probes_of(planned, alert).into_iter().collect(),
                started_at: begin,
                settled_at: begin + deadline + planned.settle + planned.within,
            });
        });
        tracing::info!(action = terms.name, target = terms.target, attempt = attempt.id, alert = alert.name(), "acting");
        let occasion =
            Occasion { attempt: attempt.id.clone(), action: terms.name.clone(), target: terms.target.clone(), alert: alert.clone() };
        let (done, output) = match timeout(deadline, AssertUnwindSafe(planned.action.act(&occasion)).catch_unwind()).await {
            Ok(Ok(done)) => (done.result, done.output),
            Ok(Err(panic)) => (Err(format!("the action panicked, a defect of Proctor: {}", tasks::panic_text(&*panic))), String::new()),
            Err(_) => (Err(format!("the action was not over within {}", print(deadline))), String::new()),
        };
        attempt.output = output.chars().take(MAX_STORED_OUTPUT).collect();
        // A stop lets an act end, but nothing is verified then: the attempt stays in doubt, and the next start asks.
        let token = self.0.wiring.tasks.token();
        let verified = async {
            let did = done?;
            tokio::time::sleep(planned.settle).await;
            if let Ok(Err(why)) = timeout(LOOK, planned.action.settled()).await {
                return Err(format!("{did}, but {why}"));
            }
            match self.verify(planned, Some(alert), &attempt.episode).await {
                Ok(what) => Ok(format!("{did}; {what} {} after the start of it", print_measured(tasks::now().since(begin)))),
                Err(why) => Err(format!("{did}, but {why}")),
            }
        };
        let Some(verified) = token.run_until_cancelled(verified).await else { return };
        (attempt.outcome, attempt.detail) = match verified {
            Ok(detail) => (Outcome::Repaired, line(&detail)),
            Err(detail) => (Outcome::Failed, line(&detail)),
        };
        attempt.finished_at = Some(tasks::now());
        self.memory(|memory| match attempt.outcome {
            // What a failed act broke is said at once.
            Outcome::Failed => memory.windows.retain(|window| window.attempt != attempt.id),
            _ => memory
                .windows
                .iter_mut()
                .filter(|window| window.attempt == attempt.id)
                .for_each(|window| window.settled_at = tasks::now() + AFTERMATH),
        });
        self.record(attempt).await;
    }

    /// Asks the probes again and again until all of them succeed, or `within` has passed; without any probe, the alert
    /// itself must end. Returns what was seen, for people.
    async fn verify(&self, planned: &Planned, alert: Option<&Alert>, episode: &str) -> Result<String, String> {
        let probes = alert.map_or_else(|| planned.verify.clone(), |alert| probes_of(planned, alert));
        let begin = tasks::now();
        let mut last = "no probe answered".to_owned();
        loop {
            let left = planned.within.saturating_sub(tasks::now().since(begin));
            let asked = async {
                if probes.is_empty() {
                    let fires = self.0.wiring.alerts.all().iter().any(|alert| alert.is_firing() && alert.episode() == episode);
                    return if fires { Err("the alert still fires".to_owned()) } else { Ok("the alert has ended".to_owned()) };
                }
                let results = (self.0.wiring.probe_now)(probes.clone()).await;
                for probe in &probes {
                    let mut of_probe = results.iter().filter(|result| *result.target.probe == **probe).peekable();
                    if of_probe.peek().is_none() {
                        return Err(format!("probe {probe} did not answer"));
                    }
                    for result in of_probe {
                        if let Err(failure) = &result.outcome {
                            return Err(format!("{} still fails: {}", result.target, failure.detail));
                        }
                    }
                }
                Ok(format!("{} well", probes.join(", ")))
            };
            // A probe that hangs has a limit of its own; this one is for a `within` that is shorter.
            match timeout(left.max(Duration::from_millis(100)), asked).await {
                Ok(Ok(seen)) => return Ok(seen),
                Ok(Err(why)) => last = why,
                Err(_) => {}
            }
            if tasks::now().since(begin) + self.0.wiring.verify_every >= planned.within {
                return Err(format!("{last} ({} later)", print_measured(tasks::now().since(begin))));
            }
            tokio::time::sleep(self.0.wiring.verify_every).await;
        }
    }

    /// At the start: what was under way when Proctor ended is in doubt. It is not repeated; the probes are asked, in
    /// tasks of their own.
    async fn settle_doubts(&self) {
        let running: Vec<Attempt> =
            self.memory(|memory| memory.attempts.iter().filter(|attempt| attempt.outcome == Outcome::Running).cloned().collect());
        for mut attempt in running {
            attempt.outcome = Outcome::InDoubt;
            attempt.finished_at = Some(tasks::now());
            attempt.detail = "Proctor ended while this was under way: it is not repeated, the probes are asked".to_owned();
            self.record(attempt.clone()).await;
            let Some(planned) = self.actions().iter().find(|planned| planned.terms.name == attempt.action).cloned() else { continue };
            self.memory(|memory| memory.busy.insert(attempt.target.clone()));
            let runner = self.clone();
            self.0.wiring.tasks.spawn(format!("action {} in doubt", attempt.action), async move {
                let free = Free(&runner, attempt.target.clone());
                let token = runner.0.wiring.tasks.token();
                let alert = runner.0.wiring.alerts.all().into_iter().find(|alert| alert.episode() == attempt.episode);
                let asked = runner.verify(&planned, alert.as_ref(), &attempt.episode);
                if let Some(verified) = token.run_until_cancelled(asked).await {
                    let (outcome, seen) = match verified {
                        Ok(seen) => (Outcome::Repaired, seen),
                        Err(seen) => (Outcome::InDoubt, seen),
                    };
                    attempt.outcome = outcome;
                    attempt.detail = line(&format!("Proctor ended while this was under way, it was not repeated: {seen}"));
                    attempt.finished_at = Some(tasks::now());
                    runner.record(attempt).await;
                }
                drop(free);
            });
        }
    }

    /// Stores an attempt together with the removal of those that are too old.
    async fn commit(&self, attempt: &Attempt) -> Committed {
        let now = tasks::now();
        let mut batch = Batch::new();
        batch.put(attempt);
        self.memory(|memory| {
            let surplus = memory.attempts.len().saturating_sub(MAX_KEPT);
            let mut index = 0;
            memory.attempts.retain(|old| {
                index += 1;
                let keep = old.outcome == Outcome::Running || (old.started_at + KEEP > now && index > surplus);
                if !keep {
                    batch.remove::<Attempt>(&old.id);
                }
                keep
            });
        });
        self.0.wiring.store.commit(batch).await
    }

    fn remember(&self, attempt: &Attempt) {
        self.memory(|memory| match memory.attempts.iter_mut().find(|known| known.id == attempt.id) {
            Some(known) => known.clone_from(attempt),
            None => memory.attempts.push(attempt.clone()),
        });
        self.0.wiring.metrics.actions.get_or_create(&ByOutcome { outcome: attempt.outcome.as_str() }).inc();
        self.0.wiring.alerts.record_attempt(attempt);
    }

    /// Keeps an outcome: in memory, in the alert, in the store. If the disk fails now, the store writes it later.
    async fn record(&self, attempt: Attempt) {
        tracing::info!(action = attempt.action, target = attempt.target, outcome = %attempt.outcome, detail = attempt.detail, "an attempt");
        self.commit(&attempt).await;
        self.remember(&attempt);
    }
}

/// How a wait begins that looking at the target found.
const FOUND: &str = "looked: ";

fn attempt_of(planned: &Planned, alert: &Alert, outcome: Outcome, detail: String, now: Timestamp) -> Attempt {
    let (action, episode) = (&planned.terms.name, alert.episode());
    let id = fnv1a([action.as_bytes(), episode.as_bytes(), outcome.as_str().as_bytes(), &now.0.to_be_bytes()]);
    Attempt {
        id: format!("{id:016x}"),
        action: action.clone(),
        target: planned.terms.target.clone(),
        episode,
        started_at: now,
        finished_at: (outcome != Outcome::Running).then_some(now),
        outcome,
        detail,
        output: String::new(),
    }
}

/// The probes that say whether it helped: the action's, else the alert's own.
fn probes_of(planned: &Planned, alert: &Alert) -> Vec<String> {
    if planned.verify.is_empty() { alert.probe().map(str::to_owned).into_iter().collect() } else { planned.verify.clone() }
}

/// Frees a target when it is dropped, and has everything asked again.
struct Free<'a>(&'a Runner, String);

impl Drop for Free<'_> {
    fn drop(&mut self) {
        self.0.memory(|memory| memory.busy.remove(&self.1));
        self.0.0.wake.notify_one();
    }
}
