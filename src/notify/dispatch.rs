//! Reads the whole alert table, decides what is told, and puts it into the outbox: level-triggered, one clock reading per
//! flush, one batch per flush (invariants 2 and 3).

mod changed;
mod reasons;
mod said;
mod tell;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::reasons::Reasons;
use self::said::Said;
use super::Mode;
use super::bulletin::Digest;
use super::dedup::{self, Notified, Reason, Seen, Standing, Verdict, damping};
use super::message::{self, Voice};
use super::route::{self, Group, Route};
use crate::alerts::AlertTable;
use crate::changes::Changes;
use crate::metrics::Metrics;
use crate::model::{Alert, AlertState, Fingerprint, Timestamp};
use crate::mute::depends::{Depends, failing};
use crate::mute::{
    self, Acks, Facts, FailingProbes, Holds, Maintenance, MaintenanceWatch, Muted, OwnAction, SightWatch, Silences, Startup, StartupView,
};
use crate::snapshot::{Latest, Snapshot};
use crate::store::{Batch, Record, Store};

/// How long a flush waits for the probes that it asks once more.
const PROBE_WAIT: Duration = Duration::from_secs(10);
/// The longest that a child waits after its parent came back: its own probe and rule must see it first.
const AFTER_PARENT: Duration = Duration::from_secs(120);
/// The most probes that it asks at once.
const MAX_PROBED: usize = 50;
/// The table is read again after this time, whatever happens: while something waits, and else.
const RECHECK: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// Changes are counted over this time, and at most so many of one alert.
const FLAP_SPAN: Duration = Duration::from_secs(3600);
const MAX_CHANGES: usize = 200;

/// Asks some probes at once, by name, and returns when the snapshot shows what they found.
pub type Refresh = Arc<dyn Fn(Vec<String>) -> BoxFuture<'static, ()> + Send + Sync>;

/// Says what will be done about an alert, one line per action; moments are written by the function handed in.
pub type Announce = Arc<dyn Fn(&Alert, &dyn Fn(Timestamp) -> String) -> Vec<String> + Send + Sync>;

/// What mutes, as it is now. `app` shares it between the dispatcher, the runner of actions and the control socket;
/// whoever changes it writes the record and then wakes the dispatcher.
#[derive(Debug)]
pub struct Mutes {
    /// The first look and the boot.
    pub startup: Startup,
    /// The site is down on purpose.
    pub maintenance: MaintenanceWatch,
    /// Somebody works on the site.
    pub holds: Holds,
    /// Whether Proctor sees beyond this host.
    pub sight: SightWatch,
    /// What people do not want to be told.
    pub silences: Silences,
    /// What people take care of.
    pub acks: Acks,
}

impl Mutes {
    /// Puts what mutes beside what holds now: what [`mute::why`] decides by.
    pub fn facts<'a>(
        &'a self,
        view: StartupView,
        maintenance: &'a Maintenance,
        actions: &'a [OwnAction],
        depends: &'a Depends,
        failing: &'a FailingProbes,
    ) -> Facts<'a> {
        let Self { startup, maintenance: _, holds, sight, silences, acks } = self;
        Facts { startup, view, maintenance, holds, sight, silences, acks, actions, depends, failing }
    }
}

/// What `app` hands to the dispatcher.
#[derive(Clone)]
pub struct Wiring {
    /// What is active.
    pub alerts: AlertTable,
    /// What the probes found.
    pub snapshot: Snapshot,
    /// The notification log and the outbox.
    pub store: Store,
    /// Silences, hold and maintenance are shown there.
    pub metrics: Arc<Metrics>,
    /// What mutes.
    pub mutes: Arc<Mutex<Mutes>>,
    /// Who needs whom.
    pub depends: Arc<Depends>,
    /// Our own actions that run or settle.
    pub actions: Arc<dyn Fn() -> Vec<OwnAction> + Send + Sync>,
    /// What will be done about an alert if it goes on, one line per action; moments are written by the function.
    pub announce: Announce,
    /// How long an alert about a probe may take to fire: its interval, the longest `for` of the rules about it, and theirs.
    pub patience: Arc<dyn Fn(&str) -> Duration + Send + Sync>,
    /// Whether systemd is still starting the host; nothing where there is none.
    pub systemd_starting: Arc<dyn Fn() -> Option<bool> + Send + Sync>,
    /// What changed on the host lately.
    pub changes: Changes,
    /// How far before an alert began a mail looks for changes.
    pub before: Duration,
    /// The addresses that the relay refuses, and why: the others are told.
    pub refused: Arc<dyn Fn() -> Vec<(String, String)> + Send + Sync>,
    /// Probes once more before a first mail that others depend on.
    pub refresh: Refresh,
    /// Woken when deliveries were queued.
    pub outbox: Arc<Notify>,
    /// Wakes the dispatcher when what mutes was changed.
    pub wake: Arc<Notify>,
}

impl std::fmt::Debug for Wiring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wiring")
    }
}

/// Where one group stands, for the status page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group's key.
    pub group: String,
    /// `firing` once it was told, `waiting` before, `muted`, `resolving`, `resolved`.
    pub state: &'static str,
    /// How many alerts fire in it.
    pub firing: usize,
    /// Alerts that are not told now, and why.
    pub muted: Vec<(String, String)>,
    /// When it is looked at next by its own times.
    pub next_at: Option<Timestamp>,
    /// When it was last mailed.
    pub mailed_at: Option<Timestamp>,
}

/// Where all groups stand, as of the last flush. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<RwLock<Vec<GroupStatus>>>);

impl Board {
    /// Returns where all groups stand: at most as many as there are alerts and groups that are open.
    pub fn status(&self) -> Vec<GroupStatus> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// When an alert changed lately.
#[derive(Debug, Default)]
struct Flaps {
    last: (String, bool),
    at: VecDeque<Timestamp>,
}

/// What one flush decided.
struct Plan {
    batch: Batch,
    queued: bool,
    refresh: BTreeSet<String>,
    next: Timestamp,
}

impl Plan {
    fn at(&mut self, moment: Timestamp) {
        self.next = self.next.min(moment);
    }
}

/// A group that is told now.
struct Due<'a> {
    key: &'a str,
    group: &'a Group<'a>,
    entry: Option<&'a Notified>,
    reason: Reason,
    standing: Standing<'a>,
}

/// What every story of one flush is written from.
struct Scene<'a> {
    targets: &'a [Latest],
    failing: &'a FailingProbes,
    degraded: Option<String>,
    now: Timestamp,
}

/// Decides what is told. Its core, [`Dispatcher::flush`], is driven by [`Dispatcher::run`], or by a test.
#[derive(Debug)]
pub struct Dispatcher {
    wiring: Wiring,
    voice: Voice,
    mode: Mode,
    routes: Arc<[Route]>,
    board: Board,
    log: BTreeMap<String, Notified>,
    said: Said,
    digest: Option<Digest>,
    noticed: BTreeSet<String>,
    /// Notices about the state that the next mail about an alert repeats.
    untold: Vec<String>,
    first_look_kept: bool,
    /// Told as firing, and since when missing from the table.
    gone: BTreeMap<String, Timestamp>,
    /// Episodes before whose first mail the probes around were asked once more.
    probed: BTreeSet<String>,
    changes: BTreeMap<Fingerprint, Flaps>,
    /// Alerts that were last muted by a parent, and until when they wait after it came back.
    behind: BTreeMap<Fingerprint, Option<Timestamp>>,
    /// Why an alert that was not told yet was held back.
    held: BTreeMap<Fingerprint, String>,
    /// What the probes of open groups failed for since they were told.
    reasons: Reasons,
    sent: VecDeque<Timestamp>,
    summary_at: Option<Timestamp>,
}

impl Dispatcher {
    /// Goes on from what the store kept. The last route takes what no other does.
    pub fn new(wiring: Wiring, voice: Voice, mode: Mode, routes: Vec<Route>) -> Self {
        let log = wiring.store.all::<Notified>().into_iter().map(|entry| (entry.group.clone(), entry)).collect();
        let said = wiring.store.get(Said::PREFIX).unwrap_or_default();
        let digest = wiring.store.get(Digest::PREFIX);
        Self {
            wiring,
            voice,
            mode,
            routes: routes.into(),
            board: Board::default(),
            log,
            said,
            digest,
            noticed: BTreeSet::new(),
            untold: Vec::new(),
            first_look_kept: false,
            gone: BTreeMap::new(),
            probed: BTreeSet::new(),
            changes: BTreeMap::new(),
            behind: BTreeMap::new(),
            held: BTreeMap::new(),
            reasons: Reasons::new(),
            sent: VecDeque::new(),
            summary_at: None,
        }
    }

    /// Returns where groups stand, for the status page.
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Flushes after every change, when something is due, and now and then; ends at the stop, never within a flush.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut changed = self.wiring.alerts.changed();
        let wake = self.wiring.wake.clone();
        while !stop.is_cancelled() {
            changed.mark_unchanged();
            let next = self.flush(crate::tasks::now()).await;
            let pause = next.since(crate::tasks::now()).max(Duration::from_millis(10));
            tokio::select! {
                // The table lives as long as we do.
                _ = changed.changed() => {}
                () = wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Reads everything once, decides, commits, and returns when to be called again at the latest.
    pub async fn flush(&mut self, now: Timestamp) -> Timestamp {
        let plan = self.plan(now);
        if !plan.batch.is_empty() {
            self.wiring.store.commit(plan.batch).await;
        }
        if plan.queued {
            self.wiring.outbox.notify_one();
        }
        if plan.refresh.is_empty() {
            return plan.next;
        }
        // Only what waits for these probes waits; a probe that hangs has its own, shorter limit.
        let refresh = (self.wiring.refresh)(plan.refresh.into_iter().collect());
        if tokio::time::timeout(PROBE_WAIT, refresh).await.is_err() {
            tracing::warn!("the probes around a new alert did not all answer before its mail");
        }
        now
    }

    fn plan(&mut self, now: Timestamp) -> Plan {
        let wiring = self.wiring.clone();
        let targets = wiring.snapshot.all();
        // What is only worth knowing makes no mail of its own, and no parent that fails.
        let (known, alerts): (Vec<Alert>, Vec<Alert>) = wiring.alerts.all().into_iter().partition(message::is_only_worth_knowing);
        let mut plan = Plan { batch: Batch::new(), queued: false, refresh: BTreeSet::new(), next: now + RECHECK.1 };
        self.count_changes(&alerts, now);
        self.follow_reasons(&targets);
        let failing = failing(&targets, &alerts, |probe| (wiring.patience)(probe));
        let scene = Scene { targets: &targets, failing: &failing, degraded: wiring.store.degraded(), now };

        let mut mutes = wiring.mutes.lock().unwrap_or_else(PoisonError::into_inner);
        let maintenance = mutes.maintenance.state(now);
        let view = StartupView::of(&targets, (wiring.systemd_starting)());
        let muted = self.mutes(&mutes, view, &maintenance, alerts.iter().chain(&known), &scene, &mut plan.refresh);
        if let Some(until) = [mutes.silences.next_change(now), mutes.holds.until(now)].into_iter().flatten().min() {
            plan.at(until);
        }
        self.keep_first_look(&mutes.startup, &mut plan);
        self.notices(&mut plan, &scene);
        self.overdue(&maintenance, &mut plan, &scene);
        let quiet_site = maintenance.mutes() || mutes.holds.until(now).is_some();
        if mutes.startup.first_look_due(view, now) && !quiet_site {
            self.first_look(&mut mutes.startup, &alerts, &targets, &mut plan, &scene);
            plan.at(now);
        } else {
            self.new_rules(&mut mutes.startup, &alerts, &muted, &mut plan, &scene);
            drop(mutes);
            self.groups(&alerts, &muted, &mut plan, &scene);
        }
        let known: Vec<&Alert> = known.iter().filter(|alert| alert.is_firing() && !muted.contains_key(&alert.fingerprint())).collect();
        self.day(&alerts, &known, &mut plan, now);
        self.prune(&alerts, &mut plan, now);
        plan
    }

    /// Says why each alert is not told now, and shows what mutes as metrics. `refresh` takes the probes whose parent has just
    /// come back.
    fn mutes<'a>(
        &mut self,
        mutes: &Mutes,
        view: StartupView,
        maintenance: &Maintenance,
        alerts: impl Iterator<Item = &'a Alert>,
        scene: &Scene<'_>,
        refresh: &mut BTreeSet<String>,
    ) -> BTreeMap<Fingerprint, Muted> {
        let (now, metrics) = (scene.now, &self.wiring.metrics);
        metrics.silences_active.set(i64::try_from(mutes.silences.active(now).count()).unwrap_or(i64::MAX));
        metrics.hold_active.set(i64::from(mutes.holds.until(now).is_some()));
        metrics.maintenance_active.set(i64::from(*maintenance != Maintenance::Off));
        let actions = (self.wiring.actions)();
        let facts = mutes.facts(view, maintenance, &actions, &self.wiring.depends, scene.failing);
        let mut muted = BTreeMap::new();
        for alert in alerts {
            let (fingerprint, why) = (alert.fingerprint(), mute::why(alert, &facts, now));
            if let Some(Muted::Held { .. } | Muted::Maintenance { .. } | Muted::CannotSee { .. } | Muted::Silenced { .. }) = &why
                && alert.is_firing()
            {
                self.held.insert(fingerprint, why.as_ref().map(ToString::to_string).unwrap_or_default());
            }
            match &why {
                Some(Muted::Parent { .. }) => {
                    self.behind.insert(fingerprint, None);
                }
                // A parent that has just come back: this one needs a moment to see it. Its turn may come much later, so it is
                // asked at once, and what its rule makes of the answer is waited for.
                None => {
                    if let (Some(until @ None), Some(probe)) = (self.behind.get_mut(&fingerprint), alert.probe()) {
                        let alone = self.wiring.depends.failing_ancestors(probe, scene.failing).is_empty();
                        let wait = (PROBE_WAIT + (self.wiring.patience)(probe)).min(AFTER_PARENT);
                        *until = Some(if alone { now + wait } else { now });
                        if alone && alert.is_firing() && refresh.len() < MAX_PROBED {
                            refresh.insert(probe.to_owned());
                        }
                    }
                }
                Some(_) => {}
            }
            muted.extend(why.map(|why| (fingerprint, why)));
        }
        muted
    }

    /// Decides every group and tells what is due.
    fn groups(&mut self, alerts: &[Alert], muted: &BTreeMap<Fingerprint, Muted>, plan: &mut Plan, scene: &Scene<'_>) {
        let now = scene.now;
        let routes = self.routes.clone();
        let Some(last_route) = routes.last() else { return };
        let log = std::mem::take(&mut self.log);
        // What was told stays with the group it was told in, also when the grouping was changed meanwhile.
        let open: Vec<&Notified> = log.values().filter(|entry| entry.is_open() && self.counts(entry)).collect();
        let owners: BTreeMap<&str, &str> =
            open.iter().flat_map(|entry| entry.firing.keys().map(|told| (told.as_str(), entry.group.as_str()))).collect();
        let keyed: Vec<(String, &Alert)> = alerts.iter().map(|alert| (alert.fingerprint().to_string(), alert)).collect();
        let mut groups = route::group(&routes, keyed.iter().filter(|(key, _)| !owners.contains_key(key.as_str())).map(|(_, alert)| *alert));
        for entry in &open {
            let route = routes.iter().find(|route| route.name == entry.receiver).unwrap_or(last_route);
            groups.entry(entry.group.clone()).or_insert_with(|| Group { route, labels: entry.labels.clone(), alerts: Vec::new() });
        }
        for (key, alert) in &keyed {
            if let Some(group) = owners.get(key.as_str()).and_then(|owner| groups.get_mut(*owner)) {
                group.alerts.push(alert);
            }
        }
        let here: BTreeSet<&str> = keyed.iter().map(|(key, _)| key.as_str()).collect();
        self.gone.retain(|told, _| owners.contains_key(told.as_str()) && !here.contains(told.as_str()));
        for told in owners.keys().filter(|told| !here.contains(**told)) {
            self.gone.entry((*told).to_owned()).or_insert(now);
        }

        let (mut due, mut board, mut restless) = (Vec::new(), Vec::new(), false);
        for (key, group) in &groups {
            let entry = log.get(key).filter(|entry| self.counts(entry));
            let seen: Vec<Seen<'_>> = group.alerts.iter().map(|alert| self.see(alert, muted, entry, group.route)).collect();
            let gone = |told: &str| self.gone.get(told).copied().unwrap_or(now);
            let (verdict, standing) = dedup::needs_update(entry, &seen, gone, group.route, now);
            restless |= seen.iter().any(|seen| seen.alert.is_firing() && (seen.muted || seen.not_before > now));
            board.push(status(key, group, entry, muted, &verdict));
            match verdict {
                Verdict::Send(reason) if self.look_around(&standing, plan) => {
                    tracing::debug!(%reason, key, "asking the probes around first")
                }
                Verdict::Send(reason) => due.push(Due { key, group, entry, reason, standing }),
                Verdict::Wait(until) => plan.at(until),
                Verdict::Nothing => {}
            }
        }
        if restless {
            plan.at(now + RECHECK.0);
        }
        *self.board.0.write().unwrap_or_else(PoisonError::into_inner) = board;

        let told = self.tell(due, plan, scene);
        self.log = log;
        for entry in told {
            plan.batch.put(&entry);
            self.log.insert(entry.group.clone(), entry);
        }
    }

    /// What was only observed does not count once people are told.
    fn counts(&self, entry: &Notified) -> bool {
        !entry.observed || !self.telling()
    }

    fn telling(&self) -> bool {
        self.mode == Mode::Send && self.routes.iter().any(|route| !route.receivers.is_empty())
    }

    fn see<'a>(&self, alert: &'a Alert, muted: &BTreeMap<Fingerprint, Muted>, entry: Option<&Notified>, route: &Route) -> Seen<'a> {
        let fingerprint = alert.fingerprint();
        let damped = damping(self.changed(fingerprint), route.group_interval);
        let damped = entry.filter(|_| !damped.is_zero()).map(|entry| entry.at + damped);
        let behind = self.behind.get(&fingerprint).copied().flatten();
        let not_before = damped.into_iter().chain(behind).max().unwrap_or(Timestamp(i64::MIN));
        Seen { alert, muted: muted.contains_key(&fingerprint), not_before }
    }

    /// Before a first mail the probes it depends on, and those that depend on it, are asked once more, so that the one
    /// mail is about the cause and lists all that it breaks. Says whether it must wait for them.
    fn look_around(&mut self, standing: &Standing<'_>, plan: &mut Plan) -> bool {
        let mut wait = false;
        for alert in &standing.fresh {
            let Some(probe) = alert.probe() else { continue };
            let depends = &self.wiring.depends;
            let around: Vec<&str> =
                depends.ancestors(probe).into_iter().chain(depends.below(probe).iter().map(|below| below.probe)).collect();
            if !around.is_empty() && self.probed.insert(alert.episode()) {
                wait = true;
                for probe in around {
                    if plan.refresh.len() < MAX_PROBED {
                        plan.refresh.insert(probe.to_owned());
                    }
                }
            }
        }
        wait
    }

    fn changed(&self, fingerprint: Fingerprint) -> usize {
        self.changes.get(&fingerprint).map_or(0, |changes| changes.at.len())
    }

    /// Counts beginnings and ends of each alert within the last hour. In memory only: a restart forgives.
    fn count_changes(&mut self, alerts: &[Alert], now: Timestamp) {
        for alert in alerts.iter().filter(|alert| alert.fired_at.is_some()) {
            let state = (alert.episode(), alert.state == AlertState::Inactive);
            let at = alert.resolved_at.or(alert.fired_at).unwrap_or(now);
            let changes = self.changes.entry(alert.fingerprint()).or_default();
            if changes.last != state {
                changes.last = state;
                changes.at.push_back(at);
                if changes.at.len() > MAX_CHANGES {
                    changes.at.pop_front();
                }
            }
        }
        let here: BTreeSet<Fingerprint> = alerts.iter().map(Alert::fingerprint).collect();
        self.changes.retain(|fingerprint, changes| {
            while changes.at.front().is_some_and(|at| now.since(*at) >= FLAP_SPAN) {
                changes.at.pop_front();
            }
            !changes.at.is_empty() || here.contains(fingerprint)
        });
    }

    /// Forgets what is over: the log after 120 h, the rest with its alert.
    fn prune(&mut self, alerts: &[Alert], plan: &mut Plan, now: Timestamp) {
        self.log.retain(|key, entry| {
            let stale = entry.is_stale(now);
            if stale {
                plan.batch.remove::<Notified>(key.clone());
            }
            !stale
        });
        let firing = alerts.iter().filter(|alert| alert.is_firing());
        let (here, episodes): (BTreeSet<Fingerprint>, BTreeSet<String>) =
            firing.map(|alert| (alert.fingerprint(), alert.episode())).unzip();
        self.probed.retain(|episode| episodes.contains(episode));
        self.behind.retain(|fingerprint, _| here.contains(fingerprint));
        self.held.retain(|fingerprint, _| here.contains(fingerprint));
    }
}

fn status(key: &str, group: &Group<'_>, entry: Option<&Notified>, muted: &BTreeMap<Fingerprint, Muted>, verdict: &Verdict) -> GroupStatus {
    let firing: Vec<&&Alert> = group.alerts.iter().filter(|alert| alert.is_firing()).collect();
    let muted: Vec<(String, String)> = firing
        .iter()
        .filter_map(|alert| muted.get(&alert.fingerprint()).map(|why| (message::line(alert.name(), 80), why.to_string())))
        .take(100)
        .collect();
    let open = entry.is_some_and(Notified::is_open);
    let state = match (open, firing.len()) {
        (true, 0) => "resolving",
        (true, _) => "firing",
        (false, 0) => "resolved",
        (false, count) if count == muted.len() => "muted",
        (false, _) => "waiting",
    };
    let next_at = if let Verdict::Wait(until) = verdict { Some(*until) } else { None };
    GroupStatus { group: key.to_owned(), state, firing: firing.len(), muted, next_at, mailed_at: entry.map(|entry| entry.at) }
}

#[cfg(test)]
mod tests;
