//! How often the workers have accepted a task, by their own count.
//!
//! Each worker counts what it accepts, by task, and gives the counts to the remote-control command `stats`, which only
//! reads. It needs no access to beat, and is the same for every scheduler.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex as Now;
use std::sync::PoisonError;
use std::time::Duration;

use super::super::Recorder;
use super::super::celery::node::Node;
use super::super::celery::mailbox::{Command, Enough, MAX_NODES, Mailbox, Nodes};
use crate::client::amqp::{AmqpError, Broker};
use crate::model::Timestamp;
use crate::tasks;

/// Asks the workers, and remembers what they said.
pub(super) struct Count {
    pub(super) task: String,
    mailbox: Mailbox,
    known: Now<Known>,
}

/// What is known of the count.
#[derive(Debug, Default)]
struct Known {
    /// The process and the count of every node.
    nodes: BTreeMap<String, (u64, u64)>,
    /// Those that answered last.
    answering: BTreeSet<String>,
    /// When a count was last seen to have grown.
    grew: Option<Timestamp>,
    /// Since when every question was asked; nothing after one that could not be.
    looking: Option<Timestamp>,
}

/// What a node says.
struct Answer {
    pid: u64,
    count: u64,
    /// Whether it was started before we began to look.
    before: bool,
}

/// What is known now.
#[derive(Debug)]
pub(super) struct Ran {
    /// When the count was last seen to have grown, and how long ago that is.
    pub(super) last: Option<(Timestamp, Duration)>,
    /// For how long it has not grown although we looked.
    pub(super) still: Duration,
    /// The nodes that answered.
    pub(super) nodes: Vec<String>,
}

impl Count {
    pub(super) fn new(broker: Broker, task: String) -> Self {
        Self { task, mailbox: Mailbox::new(broker), known: Now::default() }
    }

    /// Returns the broker over which the workers are asked.
    pub(super) fn broker(&self) -> &Broker {
        self.mailbox.broker()
    }

    /// Asks every node.
    pub(super) async fn ask(&self, rec: &mut Recorder) -> Result<Ran, AmqpError> {
        // Until this run has ended, it is one that could not ask.
        let looking = self.known().looking.take();
        let expected = self.known().answering.clone();
        // A late answer counts as well: counts only grow.
        let done = |nodes: &Nodes| match expected.is_empty() {
            true if nodes.is_empty() => Enough::No,
            true => Enough::Perhaps,
            false => expected.iter().all(|node| nodes.contains_key(node)).into(),
        };
        let nodes = self.mailbox.ask(rec, &[Command::Stats], None, done).await?;
        let now = tasks::now();
        let before = |node: &Node| node.uptime().is_some_and(|uptime| looking.is_some_and(|since| uptime >= now.since(since)));
        let answer = |(name, node): (String, Node)| {
            let (pid, count) = node.count(&self.task)?;
            Some((name, Answer { pid, count, before: before(&node) }))
        };
        Ok(self.known().learn(nodes.into_iter().filter_map(answer).collect(), looking, now))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Takes the answers of one question. `looking` is since when every question before it was asked.
    fn learn(&mut self, answers: BTreeMap<String, Answer>, looking: Option<Timestamp>, now: Timestamp) -> Ran {
        let first = self.looking.is_none() && looking.is_none() && self.nodes.is_empty() && self.grew.is_none();
        // A node that was not there before has run since then what it counts, unless it was late; one with a new process
        // counts anew.
        let grew = |(node, answer): (&String, &Answer)| match self.nodes.get(node) {
            Some((pid, counted)) if *pid == answer.pid => answer.count > *counted,
            Some(_) => answer.count > 0,
            None => answer.count > 0 && !answer.before,
        };
        if !first && answers.iter().any(grew) {
            self.grew = Some(now);
        }
        self.answering = answers.keys().cloned().collect();
        if self.nodes.len() + answers.len() > MAX_NODES {
            self.nodes.clear();
        }
        self.nodes.extend(answers.into_iter().map(|(node, Answer { pid, count, .. })| (node, (pid, count))));
        let since = looking.unwrap_or(now);
        self.looking = Some(since);
        Ran {
            last: self.grew.map(|at| (at, now.since(at))),
            still: now.since(self.grew.map_or(since, |at| at.max(since))),
            nodes: self.answering.iter().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_grows_is_seen_over_restarts_and_blind_times() {
        let mut known = Known::default();
        let mut at = |seconds: i64, answers: &[(&str, u64, u64)], looking: Option<i64>| {
            let before = |node: &str| node.starts_with("late");
            let answer = |(node, pid, count): &(&str, u64, u64)| ((*node).to_owned(), Answer { pid: *pid, count: *count, before: before(node) });
            let answers = answers.iter().map(answer).collect();
            let ran = known.learn(answers, looking.map(Timestamp::from_secs), Timestamp::from_secs(seconds));
            (ran.last.map(|(_, ago)| ago.as_secs()), ran.still.as_secs())
        };
        assert_eq!(at(100, &[("fast@a", 1, 7)], None), (None, 0), "what ran before is not seen to grow");
        assert_eq!(at(110, &[("fast@a", 1, 7), ("email@a", 2, 0)], Some(100)), (None, 10));
        assert_eq!(at(120, &[("fast@a", 1, 8), ("email@a", 2, 0)], Some(100)), (Some(0), 0));
        assert_eq!(at(130, &[], Some(100)), (Some(10), 10), "no node, no run");
        assert_eq!(at(140, &[("fast@a", 9, 0)], Some(100)), (Some(20), 20), "a restart alone is no run");
        assert_eq!(at(150, &[("fast@a", 9, 1)], Some(100)), (Some(0), 0));
        assert_eq!(at(160, &[("fast@a", 12, 1)], Some(100)), (Some(0), 0), "a new process has run what it counts");
        assert_eq!(at(170, &[("fast@b", 1, 3)], Some(100)), (Some(0), 0), "so has a new node");
        assert_eq!(at(180, &[("fast@b", 1, 3), ("late@b", 2, 50)], Some(100)), (Some(10), 10), "one that was late has run it before");
        assert_eq!(at(190, &[("fast@b", 1, 3), ("late@b", 2, 51)], Some(100)), (Some(0), 0));
        assert_eq!(at(999, &[("fast@b", 1, 3)], None), (Some(809), 0), "nobody could look: the time begins anew");
        assert_eq!(at(1009, &[("fast@b", 1, 3)], Some(999)), (Some(819), 10));
        // Names that change with every container are not kept without end.
        for round in 0..3000 {
            known.learn(BTreeMap::from([(format!("fast@{round}"), Answer { pid: 1, count: 0, before: false })]), Some(Timestamp(0)), Timestamp(0));
        }
        assert!(known.nodes.len() <= MAX_NODES);
    }
}
