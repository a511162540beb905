//! The target of one queue: whether what is sent to it is run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::super::{Probe, Recorder, failure_of_broker};
use super::canary::{Here, Seen};
use super::judge::{Canary, Declared, Facts, Verdict};
use super::site::{Look, Site, UP, sight};
use crate::model::{Failure, Family, Reason};
use crate::tasks;

static QUEUE_UP: Family = Family::gauge("celery_queue_up", "Whether what is sent to a queue is run, or waits for honest work");
static BACKLOG: Family =
    Family::gauge("celery_queue_backlog", "Whether all slots of a queue are busy with tasks that are not too old, and more waits");
static LENGTH: Family = Family::gauge("celery_queue_length", "Messages in a queue that no worker has taken yet");
static CONSUMERS: Family = Family::gauge("celery_active_consumer_count", "Consumers of a queue");
static WORKERS: Family = Family::gauge("celery_active_worker_count", "Celery nodes that answer and consume a queue");
static PROCESSES: Family = Family::gauge("celery_active_process_count", "Tasks that the nodes of a queue can run at a time");
static WAITING: Family = Family::gauge("celery_queue_reserved_tasks", "Tasks of a queue that its nodes have taken and not begun");
static OVERDUE: Family = Family::gauge("celery_queue_tasks_overdue", "Tasks of a queue's nodes that have run for longer than max_task_age");
static TOOK: Family = Family::gauge("celery_queue_canary_seconds", "How long the last task of Proctor's took through a queue: its waiting time");
static OUT: Family = Family::gauge("celery_queue_canary_waiting_seconds", "For how long a task of Proctor's has waited in a queue");
static CANARIES: Family = Family::counter("celery_queue_canaries_total", "Tasks of Proctor's by how they ended: answered, expired, lost");
static MISSING_CONSUMERS: Family =
    Family::gauge("celery_queue_consumers_missing", "How many consumers a queue has less than configured or usual");
static MISSING_SLOTS: Family =
    Family::gauge("celery_queue_slots_missing", "How many tasks less than configured or usual the nodes of a queue can run at a time");

/// One queue.
pub(super) struct QueueTarget {
    site: Arc<Site>,
    queue: String,
    /// Whether there was a look before.
    looked: AtomicBool,
}

impl Probe for QueueTarget {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }
}

impl QueueTarget {
    pub(super) fn new(site: Arc<Site>, queue: &str) -> Self {
        Self { site, queue: queue.to_owned(), looked: AtomicBool::new(false) }
    }

    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let look = self.site.look(rec).await?;
        rec.set(&UP, 1.0);
        let mut unseen = Vec::new();
        let mut facts = self.facts(&look);
        if let Err(why) = &look.asked {
            unseen.push(Site::unseen(why));
        } else if facts.declared.is_none() {
            unseen.push((format!("queue {:?}: its user may not see it", self.queue), "see docs/probes/celery.md, \"The user it needs\"".to_owned()));
        }
        facts.proven = self.looked.swap(true, Ordering::Relaxed);
        self.canary(rec, &look, &mut facts, &mut unseen).await?;
        self.record(rec, &facts);
        let verdict = facts.judge();
        if let Some(missing) = facts.unproven().filter(|_| verdict == Verdict::Well) {
            unseen.push((missing, "ask again in a minute: if it is still so, the processes of its pool hang; restart its worker".to_owned()));
        }
        rec.sight(sight(unseen, look.asked.is_err() && facts.declared.is_none()));
        let labels = [("queue", self.queue.as_str()), self.site.via()];
        rec.set_with(&QUEUE_UP, &labels, f64::from(u8::from(!matches!(verdict, Verdict::Wrong(_)))));
        rec.set_with(&BACKLOG, &labels[..1], f64::from(u8::from(verdict == Verdict::Backlog)));
        match verdict {
            Verdict::Wrong(failure) => {
                if failure.reason == Reason::AnswerTimeout {
                    self.site.memory().nodes.iter_mut().filter(|(name, _)| facts.silent.contains(name)).for_each(|(_, known)| known.hung = true);
                }
                Err(failure)
            }
            Verdict::Well | Verdict::Backlog => Ok(()),
        }
    }

    /// Sends the canary where one is due, and says how it is with the newest.
    async fn canary(&self, rec: &mut Recorder, look: &Look, facts: &mut Facts, unseen: &mut Vec<(String, String)>) -> Result<(), Failure> {
        let Some(canaries) = self.site.canaries.as_ref().filter(|_| look.asked.is_ok()) else { return Ok(()) };
        let ready = match facts.declared {
            Some(Declared::There { ready, .. }) => ready,
            Some(Declared::Missing) | None => 0,
        };
        let rpc = {
            let memory = self.site.memory();
            facts.nodes.iter().all(|name| memory.nodes.get(name).is_some_and(|known| known.rpc == Some(true)))
        };
        let idle = facts.active < facts.slots;
        let here = Here { queue: &self.queue, nodes: &facts.nodes, said: &look.nodes, ready, idle, rpc };
        canaries.look(&here);
        if let Err(error) = canaries.send(rec, &self.site.mailbox, &here).await {
            if error.code() != Some(403) {
                return Err(failure_of_broker(self.site.mailbox.broker(), &error));
            }
            unseen.push((
                format!("how long a task waits in queue {:?}: {error}", self.queue),
                "let its user publish to the default exchange: docs/probes/celery.md, \"The user it needs\"".to_owned(),
            ));
        }
        let (canary, seen) = canaries.look(&here);
        facts.canary = if seen.unknown || facts.nodes.is_empty() { Canary::Off } else { canary };
        if facts.canary != Canary::Off {
            facts.proven = seen.answered > 0;
        }
        self.record_canary(rec, canary, seen, unseen);
        Ok(())
    }

    fn record_canary(&self, rec: &mut Recorder, canary: Canary, seen: Seen, unseen: &mut Vec<(String, String)>) {
        let queue = ("queue", self.queue.as_str());
        if let Some(took) = seen.took {
            rec.set_with(&TOOK, &[queue], took.as_secs_f64());
        }
        let age = if let Canary::Out { age, .. } = canary { age.as_secs_f64() } else { 0.0 };
        rec.set_with(&OUT, &[queue], age);
        for (outcome, count) in [("answered", seen.answered), ("expired", seen.expired), ("lost", seen.lost)] {
            rec.set_with(&CANARIES, &[queue, ("outcome", outcome)], count as f64);
        }
        if seen.unknown {
            let task = super::canary::TASK;
            let missing = format!("how long a task waits in queue {:?}: its nodes do not know {task}, and none is sent any more", self.queue);
            unseen.push((missing, "leave the key canary out, or use an app with Celery's own tasks (celery.app.builtins)".to_owned()));
        }
    }

    fn facts(&self, look: &Look) -> Facts {
        let now = tasks::wall_now();
        let queue = &self.queue;
        let nodes = look.consumers(queue);
        let memory = self.site.memory();
        let consumed = |answers: bool| {
            let knew = memory.nodes.iter().filter(move |(_, known)| known.answers == answers && known.queues.contains(queue));
            knew.filter(|(name, _)| !nodes.contains(name))
        };
        let declared = look.queues.get(queue).copied().flatten();
        let consumers = declared.map_or(0, Declared::consumers);
        // A node that ends, and waits for its last task, is connected and silent too, but consumes nothing any more.
        let held = consumers as usize > nodes.len();
        let silent = consumed(false).filter(|(_, known)| consumers == 0 || (held && known.connected));
        let hung = consumed(false).any(|(_, known)| known.hung);
        let max_task_age = self.site.expect(queue).and_then(|expect| expect.max_task_age).unwrap_or(self.site.config.max_task_age);
        let of = || nodes.iter().filter_map(|name| look.nodes.get(name));
        let ages = || of().flat_map(|node| &node.active).filter_map(|task| task.age(now));
        let oldest = of().filter_map(|node| node.oldest(now)).max_by_key(|(_, age)| *age);
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Facts {
            queue: queue.clone(),
            declared,
            asked: look.asked.is_ok(),
            silent: silent.map(|(name, _)| name.clone()).collect(),
            hung,
            left: consumed(true).map(|(name, _)| name.clone()).collect(),
            slots: look.slots(queue),
            active: count(of().map(|node| node.active.len()).sum()),
            overdue: count(ages().filter(|age| *age > max_task_age).count()),
            oldest: oldest.map(|(name, age)| (name.to_owned(), age)),
            reserved: count(of().map(|node| node.reserved_of(queue)).sum()),
            still: memory.still(&nodes, tasks::now()),
            max_task_age,
            canary: Canary::Off,
            proven: false,
            nodes,
        }
    }

    fn record(&self, rec: &mut Recorder, facts: &Facts) {
        let named = [("queue_name", self.queue.as_str())];
        let queue = [("queue", self.queue.as_str())];
        let (consumers, slots) = {
            let memory = self.site.memory();
            self.site.expected(&memory, &self.queue)
        };
        let less = |expected: Option<u32>, now: u32| expected.map(|expected| f64::from(expected.saturating_sub(now)));
        match facts.declared {
            Some(Declared::There { ready, consumers: now }) => {
                rec.set_with(&LENGTH, &named, ready.into());
                rec.set_with(&CONSUMERS, &named, now.into());
                if let Some(missing) = less(consumers, now) {
                    rec.set_with(&MISSING_CONSUMERS, &queue, missing);
                }
            }
            Some(Declared::Missing) | None => {}
        }
        if !facts.asked {
            return;
        }
        rec.set_with(&WORKERS, &named, facts.nodes.len() as f64);
        rec.set_with(&PROCESSES, &named, facts.slots.into());
        if let Some(missing) = less(slots, facts.slots) {
            rec.set_with(&MISSING_SLOTS, &queue, missing);
        }
        rec.set_with(&WAITING, &queue, facts.reserved.into());
        rec.set_with(&OVERDUE, &queue, facts.overdue.into());
        if let Some((name, age)) = &facts.oldest {
            let age = crate::model::duration::print_measured(*age);
            rec.evidence(format!("{} of {} slots are busy; the oldest task, {name}, runs for {age}", facts.active, facts.slots));
        }
    }
}
