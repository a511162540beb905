//! The target of the nodes as a whole: who answers, what each does, who is missing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::super::{Probe, Recorder};
use super::events::Events;
use super::memory::Memory;
use super::node::Node;
use super::site::{Look, REMEDY, Site, UP, sight};
use crate::model::{Failure, Family, Reason, Target, Timestamp};
use crate::store::Store;
use crate::tasks;

static NODES: Family = Family::gauge("celery_nodes", "Celery nodes that answer");
pub(super) static WORKER_UP: Family =
    Family::gauge("celery_worker_up", "Whether a node answers; of those that cannot be asked, whether their heartbeats come");
static WORKER_MISSING: Family =
    Family::gauge("celery_worker_missing", "Whether a node does not answer whose name is expected: by configuration, or as it came back before");
pub(super) static ACTIVE: Family = Family::gauge("celery_worker_tasks_active", "Tasks that a node runs");
static RESERVED: Family = Family::gauge("celery_worker_reserved_tasks", "Tasks that a node has taken from its queues and not begun");
static SCHEDULED: Family = Family::gauge("celery_worker_scheduled_tasks", "Tasks that a node has taken and may begin only later");
static OLDEST: Family = Family::gauge("celery_worker_oldest_task_seconds", "For how long the oldest task of a node has run");
static ETA: Family =
    Family::gauge("celery_worker_scheduled_eta_max_seconds", "The longest time from now until a task may begin that a node has taken");
static HOLD: Family = Family::gauge(
    "celery_worker_scheduled_hold_max_seconds",
    "The longest time that a node will have held a task without acknowledging it when the task may begin",
);
static ACCEPTED: Family = Family::counter("celery_task_accepted_total", "Tasks that a node has begun, by its own count");
static TIMEOUT: Family = Family::gauge(
    "celery_broker_consumer_timeout_seconds",
    "How long the broker waits for an acknowledgement before it ends a consumer; configured, or the default of its version",
);

/// RabbitMQ's default before 4.3; from then on classic queues have none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);
const NO_TIMEOUT_FROM: (u32, u32) = (4, 3);
/// The most nodes that are exported, and the most names of tasks over all of them. Events have their own place beside.
const MAX_WORKERS: usize = 100;
const MAX_ACCEPTED: usize = 500;

/// The nodes as a whole.
pub(super) struct NodesTarget {
    pub(super) site: Arc<Site>,
    /// What is heard besides, unless that is not wanted.
    pub(super) events: Option<Events>,
}

impl Probe for NodesTarget {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            // First, whatever the nodes say.
            let mut unseen = self.hear(rec);
            let look = self.site.look(rec).await?;
            rec.set(&UP, 1.0);
            self.record(rec, &look);
            unseen.extend(look.asked.as_ref().err().map(|why| Site::unseen(why)));
            let heard = self.events.as_ref().is_some_and(Events::listens);
            rec.sight(sight(unseen, look.asked.is_err() && !heard));
            if look.asked.is_err() { Ok(()) } else { self.judge(rec, &look) }
        }
        .boxed()
    }

    fn remember(&mut self, target: &Target, store: &Store) {
        self.site.remember(target, store);
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        match &self.events {
            Some(events) => events.changed().boxed(),
            None => std::future::pending().boxed(),
        }
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }
}

impl NodesTarget {
    /// Records what was heard; what a node answers counts more than whether it is heard. Returns what cannot be heard.
    fn hear(&self, rec: &mut Recorder) -> Vec<(String, String)> {
        let memory = self.site.memory();
        let heard = self.events.as_ref().map_or(Ok(()), |events| events.record(rec, self.site.is_asked(), |name| memory.nodes.contains_key(name)));
        let unheard = |error| (format!("heartbeats and events of the workers: {error}"), REMEDY.to_owned());
        heard.err().map(unheard).into_iter().collect()
    }

    fn record(&self, rec: &mut Recorder, look: &Look) {
        let (timeout, source) = match self.site.config.consumer_timeout {
            Some(timeout) => (Some(timeout), "configured"),
            None => (default_timeout(&look.version), "default"),
        };
        if let Some(timeout) = timeout {
            rec.set_with(&TIMEOUT, &[("source", source)], timeout.as_secs_f64());
        }
        if look.asked.is_err() {
            return;
        }
        rec.set(&NODES, look.nodes.len() as f64);
        for (name, node) in &look.nodes {
            if let (Some(events), Some(queues)) = (&self.events, &node.queues) {
                events.learn(name, &queues.iter().map(|queue| queue.name.as_str()).collect::<Vec<_>>());
            }
        }
        let memory = self.site.memory();
        for (name, known) in memory.nodes.iter().take(MAX_WORKERS) {
            let labels = [("worker", name.as_str()), ("hostname", hostname(name))];
            rec.set_with(&WORKER_UP, &labels, f64::from(u8::from(known.answers)));
            let Some(node) = look.nodes.get(name) else { continue };
            record_node(rec, &labels, node);
            rec.set_with(&ETA, &labels, known.eta.unwrap_or_default().as_secs_f64());
            rec.set_with(&HOLD, &labels, known.hold.unwrap_or_default().as_secs_f64());
        }
        if memory.nodes.len() > MAX_WORKERS {
            rec.evidence(format!("{} nodes are known; the first {MAX_WORKERS} by name are exported", memory.nodes.len()));
        }
        for (name, queue, missing) in self.expected(&memory) {
            rec.set_with(&WORKER_MISSING, &[("worker", &name), ("queue", &queue)], f64::from(u8::from(missing)));
        }
        let accepted = |(name, node): (&String, &Node)| {
            let of = |(task, count): (&String, &u64)| (name.clone(), task.clone(), *count);
            node.stats.iter().flat_map(|stats| stats.total.iter().map(of)).collect::<Vec<_>>()
        };
        for (worker, task, count) in look.nodes.iter().flat_map(accepted).take(MAX_ACCEPTED) {
            rec.set_with(&ACCEPTED, &[("name", &task), ("worker", &worker), ("hostname", hostname(&worker))], count as f64);
        }
    }

    /// Returns the nodes whose names are expected, each with its queues, and whether it is missing.
    fn expected(&self, memory: &Memory) -> Vec<(String, String, bool)> {
        let configured = &self.site.config.nodes;
        let returned = memory.nodes.iter().filter(|(_, known)| known.returned).map(|(name, _)| name);
        let names: BTreeSet<&String> = configured.iter().chain(returned).collect();
        let mut all = Vec::new();
        for name in names.into_iter().take(MAX_WORKERS) {
            let known = memory.nodes.get(name);
            let missing = known.is_none_or(|known| !known.answers);
            match known.filter(|known| !known.queues.is_empty()) {
                Some(known) => all.extend(known.queues.iter().take(MAX_WORKERS).map(|queue| (name.clone(), queue.clone(), missing))),
                None => all.push((name.clone(), String::new(), missing)),
            }
        }
        all
    }

    fn judge(&self, rec: &mut Recorder, look: &Look) -> Result<(), Failure> {
        let names: Vec<&str> = look.nodes.keys().map(String::as_str).collect();
        rec.evidence(if names.is_empty() { "no node answers".to_owned() } else { format!("nodes that answer: {}", names.join(", ")) });
        let memory = self.site.memory();
        let mut missing: Vec<String> = self.expected(&memory).into_iter().filter(|(.., missing)| *missing).map(|(name, ..)| name).collect();
        missing.dedup();
        if missing.is_empty() && names.is_empty() {
            missing = memory.nodes.keys().cloned().collect();
            if missing.is_empty() {
                let what = "no celery node answers: no worker runs, or its remote control is off (worker_enable_remote_control)";
                return Err(Failure::new(Reason::Missing, what));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let connected = |name: &String| memory.nodes.get(name).is_some_and(|known| known.connected);
        let (frozen, gone): (Vec<String>, Vec<String>) = missing.into_iter().partition(connected);
        let mut words = Vec::new();
        if !frozen.is_empty() {
            words.push(format!("{} is connected to the broker and does not answer: its main process is frozen", frozen.join(", ")));
        }
        if !gone.is_empty() {
            words.push(format!("{} is not connected to the broker: its process has ended, or hangs", gone.join(", ")));
        }
        words.push(match names.len() {
            0 => "no other node answers".to_owned(),
            others => format!("{others} others answer"),
        });
        Err(Failure::new(if frozen.is_empty() { Reason::Missing } else { Reason::AnswerTimeout }, words.join("; ")))
    }
}

fn record_node(rec: &mut Recorder, labels: &[(&'static str, &str)], node: &Node) {
    rec.set_with(&ACTIVE, labels, node.active.len() as f64);
    rec.set_with(&RESERVED, labels, node.reserved.len() as f64);
    rec.set_with(&SCHEDULED, labels, node.scheduled.len() as f64);
    let oldest = node.oldest(tasks::wall_now()).map_or(Duration::ZERO, |(_, age)| age);
    rec.set_with(&OLDEST, labels, oldest.as_secs_f64());
}

/// Returns the part of a name that celery-exporter calls its host name.
pub(super) fn hostname(worker: &str) -> &str {
    worker.split_once('@').map_or(worker, |(_, host)| host)
}

fn default_timeout(version: &str) -> Option<Duration> {
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    let version = (numbers.next()??, numbers.next()??);
    (version < NO_TIMEOUT_FROM).then_some(DEFAULT_TIMEOUT)
}

impl Node {
    /// Returns the task that has run longest, and for how long.
    pub(super) fn oldest(&self, now: Timestamp) -> Option<(&str, Duration)> {
        self.active.iter().filter_map(|task| Some((task.name.as_str(), task.age(now)?))).max_by_key(|(_, age)| *age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_is_known_by_the_version_or_not_at_all() {
        for (version, known) in [("3.10.8", true), ("4.2.1", true), ("4.3.0", false), ("5.0.0", false), ("", false), ("x.y", false)] {
            assert_eq!(default_timeout(version).is_some(), known, "{version}");
        }
        assert_eq!((hostname("email@a.b"), hostname("x")), ("a.b", "x"));
    }
}
