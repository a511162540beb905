//! The loop of one group: its rules one after the other at one moment, a slot per group, missed turns skipped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::load::{AlertRule, RuleGroup};
use super::running::Running;
use super::state::{RuleState, Turn};
use super::template::Template;
use crate::alerts::AlertTable;
use crate::client::net::chain;
use crate::metrics::{ByState, Metrics};
use crate::model::labels::fnv1a;
use crate::model::{Alert, AlertState, Labels, Timestamp};
use crate::promql::{DEFAULT_STEP, LOOK_BACK};
use crate::store::{Batch, Record, Store, Table};
use crate::tasks::{self, Pulse, Tasks};
use crate::window::Window;

/// How often it is noted at least that the rules had a turn: the time between is down time after a crash.
const MARK_EVERY: Duration = Duration::from_secs(30);
/// A nudge evaluates at once, but not more often than this.
const NUDGE_EVERY: Duration = Duration::from_secs(1);

/// When the rules last had a turn.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct LastTurn {
    at: Timestamp,
}

impl Record for LastTurn {
    const TABLE: Table = Table::Meta;
    fn key(&self) -> String {
        "rules/last_turn".to_owned()
    }
}

/// What the groups read and write; handed in by `app`.
#[derive(Clone)]
pub struct Context {
    /// Where the samples are.
    pub window: Window,
    /// Where the alerts go.
    pub alerts: AlertTable,
    /// Where alert states survive.
    pub store: Store,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// `$externalLabels` of templates.
    pub site_labels: Labels,
    /// `$externalURL` of templates.
    pub external_url: Arc<str>,
    /// Says whether every probe has answered since the start.
    pub ready: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// One rule with what it remembers.
struct Slot {
    id: String,
    running: Running,
    /// The alert that says that this rule cannot be evaluated.
    broken: RuleState,
    /// Why it cannot be evaluated.
    error: Option<String>,
}

/// One group with what its rules remember.
pub struct GroupState {
    group: RuleGroup,
    slots: Vec<Slot>,
    context: Context,
    /// What the store holds of this group, to write only what changed.
    kept: BTreeMap<String, Alert>,
    marked_at: Option<Timestamp>,
}

/// Wakes the groups when something happened that cannot wait for their slots. Clones wake the same groups.
#[derive(Clone, Debug, Default)]
pub struct Nudge(Arc<Notify>);

impl Nudge {
    /// Wakes every group.
    pub fn all(&self) {
        self.0.notify_waiters();
    }
}

/// Makes the states of all groups: alerts of the store go back to the rules they came from; those of rules that are
/// gone leave the store and the table.
pub async fn restore(groups: Vec<RuleGroup>, context: &Context, now: Timestamp) -> Vec<GroupState> {
    let mut stored: Vec<Alert> = context.store.all();
    let down_since = context.store.get::<LastTurn>("rules/last_turn").map(|turn| turn.at);
    let mut states: Vec<GroupState> = groups.into_iter().map(|group| GroupState::new(group, context.clone())).collect();
    for state in states.iter_mut().flat_map(|group| &mut group.slots) {
        for rule in state.running.state.iter_mut().chain([&mut state.broken]) {
            // By its id first, so that of two rules of one name each gets its own.
            let (mine, others): (Vec<Alert>, Vec<Alert>) = stored.into_iter().partition(|alert| alert.rule == rule.id());
            stored = others;
            for alert in mine {
                rule.restore(alert, down_since, now);
            }
        }
    }
    for group in &mut states {
        for slot in &mut group.slots {
            let Some(rule) = &mut slot.running.state else { continue };
            let (mine, others): (Vec<Alert>, Vec<Alert>) = stored.into_iter().partition(|alert| rule.owns(alert));
            stored = others;
            for alert in mine {
                rule.restore(alert, down_since, now);
            }
        }
        group.kept = group.slots.iter().flat_map(Slot::alerts).map(|alert| (alert.key(), alert)).collect();
    }
    let mut batch = Batch::new();
    stored.iter().for_each(|alert| batch.remove::<Alert>(alert.key()));
    if !batch.is_empty() {
        context.store.commit(batch).await;
    }
    let ids: Vec<String> =
        states.iter().flat_map(|group| &group.slots).flat_map(|slot| [slot.id.clone(), slot.broken.id().to_owned()]).collect();
    context.alerts.retain_rules(|rule| ids.iter().any(|id| id == rule));
    for group in &states {
        group.publish();
    }
    states
}

/// Starts a task per group; returns what shows whether each still comes round: within three of its intervals.
pub fn start(groups: Vec<GroupState>, nudge: &Nudge, tasks: &Tasks) -> Vec<Pulse> {
    let start = |group: GroupState| {
        let name = format!("rules {}", group.group.name);
        let pulse = Pulse::new(&*name, group.group.interval * 3);
        tasks.spawn_until_stopped(name, group.run(nudge.clone(), pulse.clone()));
        pulse
    };
    groups.into_iter().map(start).collect()
}

impl Slot {
    fn alerts(&self) -> Vec<Alert> {
        self.running.state.iter().chain([&self.broken]).flat_map(|state| state.alerts().cloned().collect::<Vec<_>>()).collect()
    }
}

/// The rule of the alert that says that another rule cannot be evaluated.
fn broken_rule(group: &str, rule: &str) -> Arc<AlertRule> {
    let text = |name: &str, text: &str| Template::parse(text).ok().map(|template| (name.to_owned(), template));
    Arc::new(AlertRule {
        name: "ProctorRuleFailing".to_owned(),
        hold: Duration::from_secs(60),
        keep_firing_for: Duration::ZERO,
        labels: [text("severity", "warning"), text("rule_group", group), text("rule", rule)].into_iter().flatten().collect(),
        annotations: [
            text("summary", &format!("rule {rule} of group {group} cannot be evaluated")),
            text(
                "description",
                "What this rule watches is not watched now, and its alerts stay as they were. The evidence says why, as the status page and the log do. Mend the rule, and load it with `proctor reload`.",
            ),
        ]
        .into_iter()
        .flatten()
        .collect(),
    })
}

impl GroupState {
    fn new(group: RuleGroup, context: Context) -> Self {
        let slots = (0..group.rules.len()).map(|index| {
            let id = group.rule_id(index);
            let name = id.rsplit('/').next().unwrap_or_default().to_owned();
            let broken = RuleState::new(broken_rule(&group.name, &name), format!("{id}!"));
            Slot { running: Running::new(group.rules[index].clone(), id.clone()), id, broken, error: None }
        });
        Self { slots: slots.collect(), group, context, kept: BTreeMap::new(), marked_at: None }
    }

    async fn run(mut self, nudge: Nudge, pulse: Pulse) {
        let hash = fnv1a([self.group.file.display().to_string(), self.group.name.clone()]);
        let mut last = None::<Instant>;
        loop {
            let now = tasks::now();
            let wait = next_slot(hash, self.group.interval, now);
            let due = now + wait;
            let nudged = async {
                nudge.0.notified().await;
                if let Some(last) = last {
                    tokio::time::sleep_until(last + NUDGE_EVERY).await;
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = nudged => {}
            }
            // The turns that passed while this host was starved or asleep.
            let slept = tasks::now().since(due).as_nanos() / self.group.interval.as_nanos().max(1);
            let begin = Instant::now();
            last = Some(begin);
            self.turn(tasks::now()).await;
            pulse.beat();
            let missed = begin.elapsed().as_nanos() / self.group.interval.as_nanos().max(1);
            self.context.metrics.rule_group_missed.inc_by((slept + missed) as u64);
        }
    }

    /// Evaluates every rule at one moment, shows the alerts and writes what changed.
    pub async fn turn(&mut self, now: Timestamp) {
        let context = &self.context;
        let ready = (context.ready)();
        let first_at = context.window.first_at();
        let at = now - self.group.query_offset;
        let mut judged = Vec::new();
        for slot in &mut self.slots {
            context.metrics.rule_evaluations.inc();
            // What a range needs; a plain selector sees all there is once every probe has answered.
            let expr = &slot.running.rule.expr;
            let look_back = expr.look_back();
            let needs = if expr.text().contains('[') { look_back } else { look_back.saturating_sub(LOOK_BACK) };
            let turn = Turn {
                now,
                ready,
                settled: ready && (needs.is_zero() || first_at.is_some_and(|first| now.since(first) >= needs)),
                limit: self.group.limit,
                external_labels: &context.site_labels,
                external_url: &context.external_url,
            };
            let done = slot.running.turn(&context.window, at, DEFAULT_STEP, &turn).map_err(|error| chain(&error));
            let broken = done.as_ref().err().map(|_| (Labels::default(), 1.0));
            // One sample without labels of its own can be no duplicate, and there is no limit.
            slot.broken.step(broken.as_slice(), &Turn { limit: 0, settled: true, ..turn }).ok();
            if let Err(why) = &done {
                context.metrics.rule_evaluation_failures.inc();
                if slot.error.as_ref() != Some(why) {
                    tracing::error!(rule = slot.id, why, "a rule cannot be evaluated");
                }
            }
            slot.error = done.err();
            judged.extend((turn.settled && slot.error.is_none()).then(|| slot.id.clone()));
        }
        self.publish();
        for slot in &self.slots {
            let Some(why) = &slot.error else { continue };
            slot.broken.alerts().for_each(|alert| self.context.alerts.add_evidence(alert.fingerprint(), vec![why.clone()]));
        }
        judged.iter().for_each(|rule| self.context.alerts.judge(rule));
        self.persist(now).await;
        self.context.metrics.rule_last_evaluation.set(now.as_secs_f64());
    }

    fn publish(&self) {
        for state in self.slots.iter().flat_map(|slot| slot.running.state.iter().chain([&slot.broken])) {
            let dropped = self.context.alerts.replace_rule(state.id(), state.alerts().cloned().collect());
            if dropped > 0 {
                tracing::error!(rule = state.id(), dropped, "too many alerts: some are left out");
            }
        }
        let all = self.context.alerts.all();
        for (label, state) in [("pending", AlertState::Pending), ("firing", AlertState::Firing)] {
            let count = all.iter().filter(|alert| alert.state == state).count();
            self.context.metrics.alerts.get_or_create_owned(&ByState { state: label }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Writes the alerts that changed, and now and then that the rules had a turn.
    async fn persist(&mut self, now: Timestamp) {
        let current: BTreeMap<String, Alert> = self
            .slots
            .iter()
            .flat_map(Slot::alerts)
            // The table knows what was done about an alert; the rule does not.
            .map(|alert| self.context.alerts.get(alert.fingerprint()).filter(|known| known.episode() == alert.episode()).unwrap_or(alert))
            .map(|alert| (alert.key(), alert))
            .collect();
        let mut batch = Batch::new();
        // A value that moves every time is not worth a write: it comes back with the next evaluation.
        let same = |old: &Alert, new: &Alert| {
            (&old.state, old.active_at, old.fired_at, old.resolved_at, old.keep_firing_since, old.attempts.len(), &old.rule)
                == (&new.state, new.active_at, new.fired_at, new.resolved_at, new.keep_firing_since, new.attempts.len(), &new.rule)
        };
        current
            .iter()
            .filter(|(key, alert)| self.kept.get(*key).is_none_or(|old| !same(old, alert)))
            .for_each(|(_, alert)| batch.put(alert));
        self.kept.keys().filter(|key| !current.contains_key(*key)).for_each(|key| batch.remove::<Alert>(key.clone()));
        if !batch.is_empty() || self.marked_at.is_none_or(|at| now.since(at) >= MARK_EVERY) {
            batch.put(&LastTurn { at: now });
            self.marked_at = Some(now);
            self.context.store.commit(batch).await;
        }
        self.kept = current;
    }
}

/// Returns how long to wait until a group's next slot: a fixed offset within its interval, by the hash of its name.
fn next_slot(hash: u64, interval: Duration, now: Timestamp) -> Duration {
    let interval = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
    let phase = u64::try_from(now.0).unwrap_or(0) % interval;
    let wait = (hash % interval + interval - phase) % interval;
    Duration::from_millis(if wait == 0 { interval } else { wait })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Problems;
    use crate::rules::load;
    use crate::window::Limits;

    #[tokio::test]
    async fn a_rule_that_cannot_be_evaluated_is_an_alert_with_its_reason_and_ends_nothing() {
        let metrics = Arc::new(Metrics::new());
        let context = Context {
            window: Window::new(Limits::default(), metrics.clone()),
            alerts: AlertTable::default(),
            store: Store::open(None, metrics.clone()).expect("opens in memory"),
            metrics: metrics.clone(),
            site_labels: Labels::default(),
            external_url: "".into(),
            ready: Arc::new(|| true),
        };
        let text = "groups: [{name: g, rules: [{alert: Down, expr: up == 0, labels: {probe: same}}]}]";
        let mut problems = Problems::new("f.yml");
        let groups = load::from_text("f.yml".as_ref(), text, Duration::from_secs(10), &mut problems);
        let mut group = restore(groups, &context, Timestamp::from_secs(0)).await.remove(0);
        let shown = || {
            let one = |alert: &Alert| format!("{} {:?}", alert.name(), alert.state);
            context.alerts.all().iter().map(one).collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
        };
        let mut turn = async |seconds: i64, down: &[&str]| {
            let now = Timestamp::from_secs(seconds);
            let samples = ["a", "b"].map(|probe| {
                let value = if down.contains(&probe) { 0.0 } else { 1.0 };
                (Labels::new([("__name__", "up"), ("probe", probe)]), value)
            });
            context.window.accept("x", now, samples);
            group.turn(now).await;
        };
        turn(10, &["a"]).await;
        assert_eq!(shown(), "Down Firing");
        // Now two samples make the same alert.
        turn(20, &["a", "b"]).await;
        assert_eq!(shown(), "Down Firing, ProctorRuleFailing Pending");
        assert_eq!(metrics.rule_evaluation_failures.get(), 1);
        turn(80, &["a", "b"]).await;
        assert_eq!(shown(), "Down Firing, ProctorRuleFailing Firing");
        let failing = context.alerts.all().into_iter().find(|alert| alert.name() == "ProctorRuleFailing").expect("it fires");
        assert_eq!(failing.annotations.get("summary"), Some("rule Down of group g cannot be evaluated"));
        assert!(failing.evidence.iter().any(|line| line.contains("make the same alert")), "{:?}", failing.evidence);
        turn(90, &[]).await;
        assert_eq!(shown(), "Down Inactive, ProctorRuleFailing Inactive");
    }
}
