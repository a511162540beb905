//! What is known of nodes and queues from one look to the next, and over a restart: who consumed what, what is usual,
//! and since when nothing moves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::mailbox::{MAX_NODES, Nodes};
use super::node::Node;
use crate::model::Timestamp;
use crate::store::{Record, Table};

/// A number of consumers or slots is usual when it was seen for as long: the first, a greater one (not the two workers
/// of a replacement that overlap), and a smaller one.
const FIRST: Duration = Duration::from_secs(180);
const GREATER: Duration = Duration::from_secs(3600);
const SMALLER: Duration = Duration::from_secs(24 * 3600);
/// The most queues of a node that are remembered.
const MAX_QUEUES: usize = 200;
/// The most scheduled tasks whose arrival is remembered, per node.
const MAX_SCHEDULED: usize = 5_000;

/// What is remembered of one probe.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Memory {
    target: String,
    pub(super) nodes: BTreeMap<String, Known>,
    queues: BTreeMap<String, Usual>,
}

/// What is remembered of a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    pid: u64,
    /// The same name came back with another process: it will again, and is missed while it does not and nobody does
    /// its work.
    pub(super) returned: bool,
    pub(super) queues: BTreeSet<String>,
    #[serde(skip)]
    pub(super) answers: bool,
    /// When it last answered; after a restart of Proctor it has its time anew.
    #[serde(skip)]
    seen: Option<Timestamp>,
    /// It does not answer, and is connected to the broker all the same.
    #[serde(skip)]
    pub(super) connected: bool,
    /// It was silent while its queue still had it as a consumer, and has not answered since: it hangs, also when the
    /// broker has dropped its connection meanwhile.
    #[serde(skip)]
    pub(super) hung: bool,
    /// Whether it answers a task; nothing where it was not asked yet.
    #[serde(skip)]
    pub(super) rpc: Option<bool>,
    /// What it had begun when it last moved.
    #[serde(skip)]
    begun: (u64, BTreeSet<String>),
    #[serde(skip)]
    moved: Option<Timestamp>,
    /// When each task that it may begin only later was first seen there.
    #[serde(skip)]
    scheduled: BTreeMap<String, Timestamp>,
    /// The longest time from then until a task may begin.
    #[serde(skip)]
    pub(super) hold: Option<Duration>,
    /// The longest time from now until a task may begin.
    #[serde(skip)]
    pub(super) eta: Option<Duration>,
}

/// What is usual for a queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Usual {
    consumers: Level,
    slots: Level,
}

/// A number that is usual, and one that may become so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Level {
    pub(super) usual: Option<u32>,
    next: Option<(u32, Timestamp)>,
}

impl Record for Memory {
    const TABLE: Table = Table::Meta;
    const PREFIX: &'static str = "celery/";
    fn key(&self) -> String {
        format!("{}{}", Self::PREFIX, self.target)
    }
}

impl Memory {
    /// Begins one for a target.
    pub(super) fn new(target: String) -> Self {
        Self { target, ..Self::default() }
    }

    /// Takes what all nodes said. A node that does not answer keeps what is known of it. Says whether something that is kept has changed.
    pub(super) fn learn(&mut self, nodes: &Nodes, now: Timestamp) -> bool {
        let kept = |known: &BTreeMap<String, Known>| -> Vec<(String, u64, bool, BTreeSet<String>)> {
            known.iter().map(|(name, known)| (name.clone(), known.pid, known.returned, known.queues.clone())).collect()
        };
        let before = kept(&self.nodes);
        self.nodes.retain(|_, known| {
            known.answers = false;
            now.since(*known.seen.get_or_insert(now)) < SMALLER
        });
        for (name, node) in nodes {
            if self.nodes.len() >= MAX_NODES && !self.nodes.contains_key(name) {
                // Names that change without end: those that are gone make room.
                self.nodes.retain(|_, known| known.answers);
            }
            self.nodes.entry(name.clone()).or_default().learn(node, now);
        }
        kept(&self.nodes) != before
    }

    /// Takes the numbers of a queue; of slots nothing where they could not be asked for. Says whether something that is
    /// kept has changed.
    pub(super) fn count(&mut self, queue: &str, consumers: Option<u32>, slots: Option<u32>, now: Timestamp) -> bool {
        let usual = self.queues.entry(queue.to_owned()).or_default();
        let before = usual.clone();
        if let Some(consumers) = consumers {
            usual.consumers.see(consumers, now);
        }
        if let Some(slots) = slots {
            usual.slots.see(slots, now);
        }
        *usual != before
    }

    /// Returns how many consumers and slots are usual for a queue.
    pub(super) fn usual(&self, queue: &str) -> (Option<u32>, Option<u32>) {
        self.queues.get(queue).map_or((None, None), |usual| (usual.consumers.usual, usual.slots.usual))
    }

    /// Forgets nodes that are gone, of a queue that has its number again: others do their work now.
    pub(super) fn forget_replaced(&mut self, queue: &str) {
        self.nodes.retain(|_, known| known.answers || known.connected || !known.queues.remove(queue) || !known.queues.is_empty());
    }

    /// Returns for how long none of these nodes was seen to begin or end a task.
    pub(super) fn still(&self, nodes: &[String], now: Timestamp) -> Duration {
        let moved = nodes.iter().filter_map(|name| self.nodes.get(name)?.moved).max();
        moved.map_or(Duration::ZERO, |moved| now.since(moved))
    }
}

impl Known {
    fn learn(&mut self, node: &Node, now: Timestamp) {
        (self.answers, self.connected, self.hung, self.seen) = (true, true, false, Some(now));
        if let Some(stats) = node.stats.as_ref().filter(|stats| stats.pid != self.pid) {
            self.returned |= self.pid != 0;
            self.scheduled.clear();
            (self.pid, self.rpc) = (stats.pid, None);
            self.queues.clear();
        }
        // One that stops to consume a queue is still known to have done so, until it is started anew without.
        let queues = node.queues.iter().flatten().map(|queue| queue.name.clone());
        self.queues.extend(queues.take(MAX_QUEUES.saturating_sub(self.queues.len())));
        let total = node.stats.as_ref().map_or(0, |stats| stats.total.values().sum());
        let begun = (total, node.active.iter().map(|task| task.id.clone()).collect());
        if self.moved.is_none() || begun != self.begun {
            (self.begun, self.moved) = (begun, Some(now));
        }
        self.wait_for(node, now);
    }

    fn wait_for(&mut self, node: &Node, now: Timestamp) {
        let before = std::mem::take(&mut self.scheduled);
        (self.eta, self.hold) = (None, None);
        for scheduled in node.scheduled.iter().take(MAX_SCHEDULED) {
            let Some(eta) = scheduled.at() else { continue };
            let came = before.get(&scheduled.request.id).copied().unwrap_or(now);
            self.scheduled.insert(scheduled.request.id.clone(), came);
            self.eta = self.eta.max(Some(eta.since(now)));
            self.hold = self.hold.max(Some(eta.since(came)));
        }
    }
}

impl Level {
    fn see(&mut self, number: u32, now: Timestamp) {
        if self.usual == Some(number) {
            self.next = None;
            return;
        }
        let since = match self.next {
            Some((next, since)) if next == number && since <= now => since,
            _ => now,
        };
        self.next = Some((number, since));
        let after = match self.usual {
            None => FIRST,
            Some(usual) if number > usual => GREATER,
            Some(_) => SMALLER,
        };
        // Nothing at all is never usual.
        if number > 0 && now.since(since) >= after {
            *self = Self { usual: Some(number), next: None };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::mailbox::Command;
    use super::*;

    fn answers(of: &[(&str, u64, &str)]) -> Nodes {
        let mut nodes = Nodes::new();
        for (name, pid, queue) in of {
            Node::take(&mut nodes, Command::Stats, format!(r#"{{"{name}": {{"pid": {pid}, "total": {{"t": 1}}}}}}"#).as_bytes());
            Node::take(&mut nodes, Command::ActiveQueues, format!(r#"{{"{name}": [{{"name": "{queue}"}}]}}"#).as_bytes());
        }
        nodes
    }

    #[test]
    fn a_number_becomes_usual_when_it_stays() {
        let minute = |minutes: i64| Timestamp::from_secs(minutes * 60);
        let mut level = Level::default();
        let mut see = |minutes, number| {
            level.see(number, minute(minutes));
            level.usual
        };
        assert_eq!((see(0, 2), see(2, 2), see(3, 2)), (None, None, Some(2)));
        assert_eq!((see(4, 4), see(30, 4), see(31, 2), see(32, 4), see(91, 4)), (Some(2), Some(2), Some(2), Some(2), Some(2)), "an overlap");
        assert_eq!(see(92, 4), Some(4), "held for an hour");
        assert_eq!((see(93, 2), see(93 + 23 * 60, 2)), (Some(4), Some(4)), "less is missed for a day");
        assert_eq!(see(93 + 24 * 60, 2), Some(2), "and is then as it should be");
        assert_eq!((see(2000, 0), see(20_000, 0)), (Some(2), Some(2)), "nothing is never usual");
    }

    #[test]
    fn a_name_that_came_back_is_expected_until_it_was_replaced() {
        let mut memory = Memory::new("celery".to_owned());
        let now = Timestamp::from_secs(0);
        assert!(memory.learn(&answers(&[("email@a", 1, "email"), ("fast@0a", 1, "fast")]), now));
        assert!(!memory.learn(&answers(&[("email@a", 1, "email"), ("fast@0a", 1, "fast")]), now), "nothing new");
        memory.learn(&answers(&[]), now);
        memory.learn(&answers(&[("email@a", 2, "email"), ("fast@0b", 1, "fast")]), now);
        let expected = |memory: &Memory| memory.nodes.iter().filter(|(_, known)| known.returned).map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(expected(&memory), ["email@a"]);
        let ended = |memory: &mut Memory| memory.nodes.values_mut().for_each(|known| known.connected = known.answers);
        memory.forget_replaced("fast");
        assert_eq!(memory.nodes.len(), 3, "one that may hang is no replaced one");
        ended(&mut memory);
        memory.forget_replaced("fast");
        assert_eq!(memory.nodes.keys().collect::<Vec<_>>(), ["email@a", "fast@0b"]);
        memory.learn(&answers(&[("email@b", 2, "email")]), now);
        ended(&mut memory);
        assert_eq!(expected(&memory), ["email@a"], "while its queue lacks its number");
        memory.forget_replaced("email");
        assert_eq!(memory.nodes.keys().collect::<Vec<_>>(), ["email@b", "fast@0b"]);
        memory.learn(&answers(&[]), now + SMALLER);
        assert_eq!(memory.nodes.len(), 0, "nobody is waited for without end");
    }

    #[test]
    fn a_memory_is_bounded_and_survives() {
        let mut memory = Memory::new("celery".to_owned());
        for round in 0..3 * MAX_NODES {
            memory.learn(&answers(&[(&format!("n@{round}"), 1, "q")]), Timestamp::from_secs(0));
        }
        assert!(memory.nodes.len() <= MAX_NODES);
        let text = serde_json::to_string(&memory).expect("is written");
        let back: Memory = serde_json::from_str(&text).expect("is read");
        assert_eq!(back.nodes.len(), memory.nodes.len());
    }

    #[test]
    fn a_task_is_held_from_when_it_came_until_it_may_begin() {
        let mut memory = Memory::new("celery".to_owned());
        let scheduled = |eta: &str| {
            let mut nodes = answers(&[("email@a", 1, "email")]);
            let body = format!(r#"{{"email@a": [{{"eta": "{eta}", "priority": 6, "request": {{"id": "1", "args": [1]}}}}]}}"#);
            Node::take(&mut nodes, Command::Scheduled, body.as_bytes());
            nodes
        };
        for (now, eta, hold) in [(0, 1800, 1800), (600, 1200, 1800), (1799, 1, 1800)] {
            memory.learn(&scheduled("1970-01-01T01:30:00+01:00"), Timestamp::from_secs(now));
            let known = &memory.nodes["email@a"];
            assert_eq!((known.eta, known.hold), (Some(Duration::from_secs(eta)), Some(Duration::from_secs(hold))));
        }
        memory.learn(&scheduled("1970-01-01T00:30:00"), Timestamp::from_secs(1799));
        assert_eq!(memory.nodes["email@a"].eta, Some(Duration::from_secs(1)), "without a zone it is UTC");
        memory.learn(&scheduled("soon"), Timestamp::from_secs(1799));
        assert_eq!(memory.nodes["email@a"].hold, None);
    }
}
