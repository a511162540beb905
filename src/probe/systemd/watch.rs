//! What systemd said of its own accord since Proctor listens: whether a stop was ordered, and what restarts itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::changes::{Change, Changes, Kind};
use crate::client::net::chain;
use crate::client::systemd::{Signal, Systemd, UnitChange, UnitState};
use crate::model::Timestamp;
use crate::tasks::{self, Tasks};

/// How long after the bus went away it is tried again, and that many times longer while it stays away.
const AGAIN: (Duration, u32) = (Duration::from_secs(1), 15);
/// How long the type of a job is waited for: it is gone when the job is over.
const JOB_TYPE: Duration = Duration::from_secs(1);
/// The most units that are followed; a host has a few hundred.
const MAX_UNITS: usize = 2_000;
/// How long a restart by systemd is remembered, and how many of one unit.
pub(super) const RESTARTS: (Duration, usize) = (Duration::from_secs(30 * 60), 50);

/// A job that is not over yet.
#[derive(Debug)]
struct Job {
    id: u32,
    /// `stop`, `restart`, …; empty where it was over before it could be asked.
    kind: String,
    /// systemd's own, since the service has `Restart=`.
    own: bool,
    /// Whether the unit was up when it came.
    was_up: bool,
    invocation: String,
}

impl Job {
    /// Says whether somebody wants the unit to stop, be it to start again.
    fn stops(&self) -> bool {
        !self.own && !self.kind.contains("reload")
    }
}

/// What was seen of one unit.
#[derive(Debug, Default)]
struct Story {
    active: String,
    sub: String,
    invocation: String,
    result: String,
    exit_status: i32,
    restarts: Option<u32>,
    restarted: Vec<Timestamp>,
    job: Option<Job>,
    /// Whether its last end was ordered.
    asked: Option<bool>,
}

impl Story {
    /// What a new run would show.
    fn shown(&self) -> (String, String, String, Option<u32>) {
        (self.active.clone(), self.sub.clone(), self.invocation.clone(), self.restarts)
    }

    fn is_up(&self) -> bool {
        matches!(self.active.as_str(), "active" | "reloading")
    }
}

/// Follows the signals of one systemd, for all targets of one probe.
pub(super) struct Watch {
    pub(super) systemd: Systemd,
    tasks: Tasks,
    changes: Changes,
    begun: Once,
    /// How many changes of units systemd has told.
    heard: AtomicU64,
    stories: Mutex<HashMap<String, Story>>,
    /// Who is told, by unit.
    told: BTreeMap<String, Vec<Arc<Notify>>>,
    /// Who is told of everything.
    host: Arc<Notify>,
}

impl Watch {
    /// Takes who is told of which unit; connects to nothing.
    pub(super) fn new(systemd: Systemd, tasks: Tasks, changes: Changes, told: BTreeMap<String, Vec<Arc<Notify>>>, host: Arc<Notify>) -> Self {
        Self { systemd, tasks, changes, begun: Once::new(), heard: AtomicU64::new(0), stories: Mutex::default(), told, host }
    }

    /// Begins to listen, the first time.
    pub(super) fn begin(self: &Arc<Self>) {
        self.begun.call_once(|| {
            let watch = self.clone();
            self.tasks.spawn_until_stopped("signals of systemd", async move { watch.follow().await });
        });
    }

    async fn follow(&self) {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.systemd.signals().await {
                Ok(mut signals) => {
                    if tries > 1 {
                        tracing::info!("systemd is listened to again");
                    }
                    tries = 0;
                    self.missed();
                    self.know_what_runs().await;
                    while let Some(signal) = signals.next().await {
                        self.take(signal).await;
                    }
                }
                Err(error) if tries == 1 => {
                    tracing::info!(
                        "systemd cannot be listened to ({}): changes of units are seen by asking only; trying again",
                        chain(&error)
                    );
                }
                Err(_) => {}
            }
            tokio::time::sleep(AGAIN.0 * tries.clamp(1, AGAIN.1)).await;
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<String, Story>) -> T) -> T {
        work(&mut self.stories.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn story<T>(&self, name: &str, work: impl FnOnce(&mut Story) -> T) -> Option<T> {
        let followed = self.told.contains_key(name) || name.ends_with(".service");
        self.with(|stories| {
            if !followed || (stories.len() >= MAX_UNITS && !stories.contains_key(name) && !self.told.contains_key(name)) {
                return None;
            }
            Some(work(stories.entry(name.to_owned()).or_default()))
        })
    }

    /// Signals may have been missed: what is not known any more is asked anew.
    fn missed(&self) {
        self.with(HashMap::clear);
        self.told.values().flatten().chain([&self.host]).for_each(|one| one.notify_one());
    }

    /// Learns which services are up, so that the first end of each is recognised.
    async fn know_what_runs(&self) {
        for name in self.systemd.active_services().await.unwrap_or_default() {
            self.story(&name, |story| {
                if story.active.is_empty() {
                    "active".clone_into(&mut story.active);
                }
            });
        }
    }

    fn tell(&self, name: &str) {
        self.told.get(name).into_iter().flatten().for_each(|one| one.notify_one());
    }

    async fn take(&self, signal: Signal) {
        match signal {
            Signal::JobNew { id, unit } => {
                // Of units that nobody waits for only services are told, and not what logins start.
                let told = self.told.contains_key(&unit) || (unit.ends_with(".service") && !unit.starts_with("user"));
                if !told {
                    return;
                }
                let asked = tokio::time::timeout(JOB_TYPE, self.systemd.job_type(id)).await;
                let kind = asked.ok().and_then(Result::ok).unwrap_or_default();
                self.story(&unit, |story| {
                    let (own, was_up) = (story.sub == "auto-restart" && kind != "stop", story.is_up());
                    story.job = Some(Job { id, kind, own, was_up, invocation: story.invocation.clone() });
                });
            }
            Signal::JobRemoved { id, unit, result, .. } => {
                let change = self.story(&unit, |story| {
                    let job = story.job.take_if(|job| job.id == id)?;
                    (!job.own).then(|| Self::ordered(story, &job, &result))?
                });
                if let Some((kind, detail)) = change.flatten() {
                    // Timers start services all the time.
                    if kind != Kind::Started || self.told.contains_key(&unit) {
                        self.changes.record(Change { at: tasks::now(), kind, subject: unit.clone(), detail });
                    }
                }
                self.tell(&unit);
            }
            // What is expected is remembered: systemd forgets what neither runs nor failed, and loads it when it is asked.
            Signal::Forgotten(unit) if !self.told.contains_key(&unit) => self.with(|stories| drop(stories.remove(&unit))),
            Signal::Forgotten(_) => {}
            Signal::Unit { name, change } => {
                self.heard.fetch_add(1, Ordering::SeqCst);
                let now = tasks::now();
                let expected = self.told.contains_key(&name);
                let said = self.story(&name, |story| {
                    let before = story.shown();
                    let died = Self::changed(story, change, expected, now);
                    (died, before != story.shown())
                });
                let Some((died, differs)) = said else { return };
                if let Some(detail) = died {
                    self.changes.record(Change { at: now, kind: Kind::Died, subject: name.clone(), detail });
                }
                if differs {
                    self.tell(&name);
                    self.host.notify_one();
                }
            }
        }
    }

    /// Says what a job that somebody ordered has done. systemd does not tell who it was.
    fn ordered(story: &Story, job: &Job, result: &str) -> Option<(Kind, String)> {
        let ending = || format!("result {}, exit status {}", story.result, story.exit_status);
        if result == "failed" {
            return Some((Kind::Died, format!("the job to {} it failed: {}", job.kind, ending())));
        }
        let restarted = job.was_up && story.is_up() && job.invocation != story.invocation;
        let kind = match job.kind.as_str() {
            "stop" => Kind::Stopped,
            kind if kind.contains("reload") && !restarted => Kind::Reloaded,
            // A start of what is up does nothing.
            "start" if job.was_up => return None,
            "start" => Kind::Started,
            "" if !story.is_up() => Kind::Stopped,
            "" if !job.was_up => Kind::Started,
            "nop" | "verify-active" => return None,
            _ => Kind::Restarted,
        };
        Some((kind, if result == "done" { String::new() } else { format!("the job ended as {result}") }))
    }

    /// Takes what changed; returns how the unit ended where nobody had ordered it.
    fn changed(story: &mut Story, change: UnitChange, expected: bool, now: Timestamp) -> Option<String> {
        let UnitChange { state, invocation, result, exit_status, restarts } = change;
        story.result = result.unwrap_or_else(|| std::mem::take(&mut story.result));
        story.exit_status = exit_status.unwrap_or(story.exit_status);
        story.invocation = invocation.unwrap_or_else(|| std::mem::take(&mut story.invocation));
        if let Some(restarts) = restarts {
            if story.restarts.map_or(restarts > 0, |before| restarts > before) {
                story.restarted.retain(|at| now.since(*at) <= RESTARTS.0);
                story.restarted.truncate(RESTARTS.1 - 1);
                story.restarted.push(now);
            }
            story.restarts = Some(restarts);
        }
        let (active, sub) = state?;
        let was_up = story.is_up();
        let before = std::mem::replace(&mut story.active, active);
        story.sub = sub;
        let asked = story.job.as_ref().is_some_and(Job::stops);
        if story.is_up() {
            story.asked = None;
        } else if was_up || (before == "activating" && story.active != "activating") {
            story.asked = Some(asked);
        }
        // What ends well by itself is news only where it should be up; a start that failed is no death.
        let well = story.result.is_empty() || story.result == "success";
        (was_up && !story.is_up() && !asked && (expected || !well)).then(|| {
            let again = if story.sub == "auto-restart" { "; systemd starts it again" } else { "" };
            let result = if well { "success" } else { &story.result };
            format!("result {result}, exit status {}; nobody had ordered it{again}", story.exit_status)
        })
    }

    /// Returns how many changes of units were told so far: what is asked after that is at least as new.
    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::SeqCst)
    }

    /// Takes what was found by asking when so much had been [heard](Watch::heard), and returns whether the unit's last end
    /// was ordered, as far as that was seen.
    pub(super) fn asked(&self, state: &UnitState, heard: u64) -> Option<bool> {
        self.story(&state.id, |story| {
            if story.active.is_empty() {
                (story.active, story.sub, story.invocation) = (state.active.clone(), state.sub.clone(), state.invocation.clone());
                story.restarts.get_or_insert(state.restarts);
            }
            // An end that was told since then is newer than the answer.
            if heard == self.heard() && matches!(state.active.as_str(), "active" | "reloading") {
                story.asked = None;
            }
            story.asked
        })?
    }

    /// Returns the services that systemd has restarted lately by itself, but for those that are followed by name: how
    /// often in all, and when.
    pub(super) fn restarting(&self, now: Timestamp) -> BTreeMap<String, (u32, usize)> {
        self.with(|stories| {
            let others = stories.iter_mut().filter(|(name, _)| !self.told.contains_key(*name));
            others
                .filter_map(|(name, story)| {
                    story.restarted.retain(|at| now.since(*at) <= RESTARTS.0);
                    (!story.restarted.is_empty()).then(|| (name.clone(), (story.restarts.unwrap_or(0), story.restarted.len())))
                })
                .collect()
        })
    }
}
