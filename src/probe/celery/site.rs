//! What all targets of one probe share: one look at the broker and the nodes serves them all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as Now, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::super::{Recorder, failure_of_broker};
use super::canary::Canaries;
use super::judge::Declared;
use super::mailbox::{Command, Enough, Mailbox, Nodes};
use super::memory::Memory;
use super::{CeleryConfig, ExpectConfig};
use crate::client::amqp::{Broker, Link};
use crate::model::{Failure, Family, Reason, Sight, Target};
use crate::store::{Batch, Store};
use crate::tasks::{self, Tasks};

pub(super) static UP: Family = Family::gauge("celery_up", "Whether Celery's nodes could be asked over the broker");

static VIA: Family = Family::gauge("celery_via_info", "Always 1; the label is the probe over whose broker Celery's nodes are asked");

/// What lets it see more.
pub(super) const REMEDY: &str = "give its user the permissions of docs/probes/celery.md, \"The user it needs\"";

/// What every node is asked.
const COMMANDS: [Command; 6] =
    [Command::Ping, Command::Stats, Command::Active, Command::Reserved, Command::Scheduled, Command::ActiveQueues];
/// A look that is no older serves another target too.
const FRESH: Duration = Duration::from_secs(5);
/// The most nodes that do not answer of which the broker is asked whether they are connected.
const MAX_SILENT: usize = 20;

/// One probe.
pub(super) struct Site {
    pub(super) config: CeleryConfig,
    pub(super) mailbox: Mailbox,
    pub(super) canaries: Option<Canaries>,
    memory: Now<Memory>,
    store: Now<Option<Store>>,
    last: Mutex<Option<(Instant, Arc<Look>)>>,
    /// Whether the nodes could be asked when somebody last looked.
    asked: AtomicBool,
}

/// What one look has found.
pub(super) struct Look {
    pub(super) nodes: Nodes,
    /// Whether the nodes could be asked; else the broker's words.
    pub(super) asked: Result<(), String>,
    /// Each queue; nothing where it may not be seen.
    pub(super) queues: BTreeMap<String, Option<Declared>>,
    /// The broker's version.
    pub(super) version: String,
}

impl Site {
    pub(super) fn new(config: &CeleryConfig, broker: Broker, tasks: Tasks) -> Self {
        Self {
            config: config.clone(),
            mailbox: Mailbox::new(broker),
            canaries: config.canary.as_ref().map(|canary| Canaries::new(canary.every, tasks)),
            memory: Now::default(),
            store: Now::default(),
            last: Mutex::default(),
            asked: AtomicBool::new(false),
        }
    }

    /// Takes what was kept.
    pub(super) fn remember(&self, target: &Target, store: &Store) {
        let new = Memory::new(target.to_string());
        *self.memory() = store.get::<Memory>(&crate::store::Record::key(&new)).unwrap_or(new);
        *self.store.lock().unwrap_or_else(PoisonError::into_inner) = Some(store.clone());
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn expect(&self, queue: &str) -> Option<&ExpectConfig> {
        self.config.expect.0.iter().find(|(name, _)| name.value == queue).map(|(_, expect)| expect)
    }

    /// Says whether the nodes could be asked when somebody last looked.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Returns the probe that this one asks over, as a label: rules then know their root.
    pub(super) fn via(&self) -> (&'static str, &str) {
        ("via", &self.config.via)
    }

    /// Says what of the nodes may not be seen.
    pub(super) fn unseen(why: &str) -> (String, String) {
        (format!("what the nodes do: {why}"), REMEDY.to_owned())
    }

    /// Looks at the broker and asks the nodes, unless somebody did a moment ago.
    pub(super) async fn look(&self, rec: &mut Recorder) -> Result<Arc<Look>, Failure> {
        rec.set_with(&VIA, &[self.via()], 1.0);
        rec.waiting(Reason::AnswerTimeout, "waiting for another target of this probe, which asks the nodes");
        let mut last = self.last.lock().await;
        if let Some((at, look)) = &*last
            && at.elapsed() < FRESH
        {
            return Ok(look.clone());
        }
        let broker = self.mailbox.broker();
        let failed = |error| failure_of_broker(broker, &error);
        let link = broker.observer(&mut |reason, what| rec.waiting(reason, what)).await.map_err(failed)?;
        let queues = self.declare(rec, &link).await?;
        let before: Vec<String> = self.memory().nodes.iter().filter(|(_, known)| known.answers).map(|(name, _)| name.clone()).collect();
        let done = |nodes: &Nodes| {
            let whole = |node: &super::node::Node| node.has_answered(&COMMANDS);
            let consumed = |(queue, declared): (&String, &Option<Declared>)| match declared {
                Some(Declared::There { consumers, .. }) => nodes.values().filter(|node| node.consumes(queue)).count() >= *consumers as usize,
                Some(Declared::Missing) | None => true,
            };
            let known = !nodes.is_empty() && before.iter().all(|name| nodes.contains_key(name));
            match known && nodes.values().all(whole) && queues.iter().all(consumed) {
                // Where no queue is known, only those that answered before tell that all have.
                true if before.is_empty() && queues.is_empty() => Enough::Perhaps,
                all => all.into(),
            }
        };
        let (nodes, asked) = match self.mailbox.ask(rec, &COMMANDS, None, done).await {
            Ok(nodes) => (nodes, Ok(())),
            Err(error) if error.code() == Some(403) => (Nodes::new(), Err(error.to_string())),
            Err(error) => return Err(failed(error)),
        };
        self.asked.store(asked.is_ok(), Ordering::Relaxed);
        let look = Arc::new(Look { nodes, asked, queues, version: link.handshake().version.clone() });
        if look.asked.is_ok() {
            self.learn(rec, &link, &look).await.map_err(failed)?;
        }
        *last = Some((Instant::now(), look.clone()));
        Ok(look)
    }

    /// Asks the broker for every queue.
    async fn declare(&self, rec: &mut Recorder, link: &Link) -> Result<BTreeMap<String, Option<Declared>>, Failure> {
        let broker = self.mailbox.broker();
        let mut queues = BTreeMap::new();
        for queue in &self.config.queues {
            rec.waiting(Reason::AnswerTimeout, format!("{}: waiting for the answer about queue {queue:?}", broker.settings().endpoint));
            let declared = match link.declare_passive(queue).await {
                Ok(declared) => Some(Declared::There { ready: declared.ready, consumers: declared.consumers }),
                Err(error) => match error.code() {
                    Some(404) => Some(Declared::Missing),
                    Some(403 | 405) => None,
                    _ => return Err(failure_of_broker(broker, &error)),
                },
            };
            queues.insert(queue.clone(), declared);
        }
        Ok(queues)
    }

    /// Takes what was found, and asks for what is missing of it.
    async fn learn(&self, rec: &mut Recorder, link: &Link, look: &Look) -> Result<(), crate::client::amqp::AmqpError> {
        let now = tasks::now();
        let mut changed = self.memory().learn(&look.nodes, now);
        let silent: Vec<String> = {
            let memory = self.memory();
            memory.nodes.iter().filter(|(_, known)| !known.answers).map(|(name, _)| name.clone()).take(MAX_SILENT).collect()
        };
        for name in silent {
            rec.waiting(Reason::AnswerTimeout, "waiting for the answer whether a node that does not answer is connected");
            // Its mailbox is a queue of its connection, and goes with it.
            let connected = match link.declare_passive(&format!("{name}.celery.pidbox")).await {
                Ok(declared) => declared.consumers > 0,
                Err(error) => match error.code() {
                    Some(404 | 403) => false,
                    Some(405) => true,
                    _ => return Err(error),
                },
            };
            if let Some(known) = self.memory().nodes.get_mut(&name) {
                known.connected = connected;
            }
        }
        if self.canaries.is_some() {
            self.learn_whether_tasks_are_answered(rec, look).await?;
        }
        for (queue, declared) in &look.queues {
            changed |= self.count(queue, *declared, look);
        }
        if changed {
            let mut batch = Batch::new();
            batch.put(&*self.memory());
            let store = self.store.lock().unwrap_or_else(PoisonError::into_inner).clone();
            // In memory at once; on disk when the store gets to it.
            let _in_memory = store.and_then(|store| store.commit(batch).now_or_never());
        }
        Ok(())
    }

    /// Compares the numbers of a queue with what is usual.
    fn count(&self, queue: &str, declared: Option<Declared>, look: &Look) -> bool {
        let (consumers, slots) = (declared.map(Declared::consumers), look.slots(queue));
        let mut memory = self.memory();
        let changed = memory.count(queue, consumers, Some(slots), tasks::now());
        let usual = self.expected(&memory, queue);
        if usual.0.is_some_and(|usual| consumers.is_some_and(|now| now >= usual)) && usual.1.is_none_or(|usual| slots >= usual) {
            memory.forget_replaced(queue);
        }
        changed
    }

    /// Returns the consumers and slots that a queue should have.
    pub(super) fn expected(&self, memory: &Memory, queue: &str) -> (Option<u32>, Option<u32>) {
        let (consumers, slots) = memory.usual(queue);
        let expect = self.expect(queue);
        (expect.and_then(|expect| expect.consumers).or(consumers), expect.and_then(|expect| expect.slots).or(slots))
    }

    /// Asks nodes that are new for the kind of their result backend: once in the life of each.
    async fn learn_whether_tasks_are_answered(&self, rec: &mut Recorder, look: &Look) -> Result<(), crate::client::amqp::AmqpError> {
        let new: Vec<String> = {
            let memory = self.memory();
            look.nodes.keys().filter(|name| memory.nodes.get(*name).is_some_and(|known| known.rpc.is_none())).cloned().collect()
        };
        if new.is_empty() {
            return Ok(());
        }
        let all = |nodes: &Nodes| new.iter().all(|name| nodes.get(name).is_some_and(|node| node.has_answered(&[Command::Conf]))).into();
        let said = self.mailbox.ask(rec, &[Command::Conf], None, all).await?;
        let mut memory = self.memory();
        for name in &new {
            if let Some(known) = memory.nodes.get_mut(name) {
                // Who does not say so is not asked again: its tasks are counted.
                known.rpc = Some(said.get(name).and_then(|node| node.rpc).unwrap_or(false));
            }
        }
        Ok(())
    }
}

impl Look {
    /// Returns the nodes that consume a queue.
    pub(super) fn consumers(&self, queue: &str) -> Vec<String> {
        self.nodes.iter().filter(|(_, node)| node.consumes(queue)).map(|(name, _)| name.clone()).collect()
    }

    /// Returns how many tasks the nodes that consume a queue can run at a time.
    pub(super) fn slots(&self, queue: &str) -> u32 {
        self.nodes.values().filter(|node| node.consumes(queue)).map(super::node::Node::slots).fold(0, u32::saturating_add)
    }
}

/// Returns what could not be seen as one finding.
pub(super) fn sight(unseen: Vec<(String, String)>, nothing: bool) -> Sight {
    if unseen.is_empty() {
        return Sight::Full;
    }
    let (missing, remedy): (Vec<_>, Vec<_>) = unseen.into_iter().unzip();
    let (missing, remedy) = (missing.join("; "), remedy.join("; "));
    if nothing { Sight::Blind { missing, remedy } } else { Sight::Partial { missing, remedy } }
}
