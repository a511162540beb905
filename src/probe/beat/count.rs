//! How often the workers have accepted a task, by their own count.
//!
//! Each worker counts what it accepts, by task, and gives the counts to the remote-control command `stats`
//! (celery/worker/control.py; kombu/pidbox.py): a JSON message to the fanout `celery.pidbox`, answered to the queue that
//! it names. The command only reads. It needs no access to beat, and is the same for every scheduler.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex as Now;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::super::Recorder;
use crate::client::amqp::{AmqpError, Broker, Consumer, Link, Properties, Publisher, Routed, Value};
use crate::model::{Reason, Timestamp};
use crate::tasks;

/// How long nodes that did not answer last time may take: 2 to 4 ms are usual.
const ANSWERS: Duration = Duration::from_secs(1);
/// A question or an answer that nobody took is dropped by the broker after as many milliseconds.
const EXPIRY: u32 = 5000;
/// The most nodes whose counts are kept; with more, those are forgotten that did not answer last.
const MAX_NODES: usize = 1000;

/// Asks the workers, and remembers what they said.
pub(super) struct Count {
    pub(super) broker: Broker,
    pub(super) task: String,
    standing: Mutex<Option<Standing>>,
    known: Now<Known>,
    tickets: AtomicU64,
}

/// A queue for the answers, and a channel for the questions.
struct Standing {
    link: Link,
    publisher: Publisher,
    queue: String,
    answers: Consumer,
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

/// What a node answers to `stats`, as far as it is needed.
#[derive(Deserialize)]
struct Stats {
    pid: u64,
    #[serde(default)]
    total: BTreeMap<String, u64>,
}

impl Count {
    pub(super) fn new(broker: Broker, task: String) -> Self {
        Self { broker, task, standing: Mutex::default(), known: Now::default(), tickets: AtomicU64::new(0) }
    }

    /// Asks every node.
    pub(super) async fn ask(&self, rec: &mut Recorder) -> Result<Ran, AmqpError> {
        // Until this run has ended, it is one that could not ask.
        let looking = self.known().looking.take();
        let expected = self.known().answering.clone();
        let mut standing = self.standing.lock().await;
        let outcome = self.collect(rec, &mut standing, &expected).await;
        if outcome.as_ref().is_err_and(|error| !matches!(error, AmqpError::Blocked(_))) {
            *standing = None;
        }
        let answers = match outcome {
            // Nobody has declared the exchange since the broker started: there are no nodes.
            Err(error) if error.code() == Some(404) => BTreeMap::new(),
            outcome => outcome?,
        };
        Ok(self.known().learn(answers, looking, tasks::now()))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the process and the count of every node that answers, as soon as all have that are expected.
    async fn collect(
        &self,
        rec: &mut Recorder,
        standing: &mut Option<Standing>,
        expected: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, (u64, u64)>, AmqpError> {
        if standing.as_ref().is_some_and(|standing| standing.publisher.ended().or(standing.link.ended()).is_some()) {
            *standing = None;
        }
        let Standing { publisher, queue, answers, .. } = match standing {
            Some(standing) => standing,
            None => standing.insert(self.open(rec).await?),
        };
        let endpoint = &self.broker.settings().endpoint;
        rec.waiting(Reason::AnswerTimeout, format!("{endpoint}: waiting until the broker has taken the question for the workers"));
        let ticket = format!("proctor-beat-{}", self.tickets.fetch_add(1, Ordering::Relaxed));
        let question = json!({
            "method": "stats", "arguments": {}, "destination": null, "pattern": null, "matcher": null,
            "ticket": ticket, "reply_to": {"exchange": "", "routing_key": queue},
        });
        let properties = Properties {
            content_type: Some("application/json".to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            expiration: Some(EXPIRY.to_string()),
            ..Properties::default()
        };
        let mut nodes = BTreeMap::new();
        if publisher.publish("celery.pidbox", "", &properties, question.to_string().as_bytes()).await? == Routed::Nowhere {
            return Ok(nodes);
        }
        rec.waiting(Reason::AnswerTimeout, format!("{endpoint}: waiting for the answers of the workers"));
        let deadline = Instant::now() + ANSWERS;
        while expected.is_empty() || !expected.iter().all(|node| nodes.contains_key(node)) {
            // An answer to an earlier question, from a node that was late, counts as well: counts only grow.
            let Ok(answer) = tokio::time::timeout_at(deadline, answers.next()).await else { break };
            nodes.extend(counts(&answer?.body, &self.task).into_iter().take(MAX_NODES));
        }
        Ok(nodes)
    }

    async fn open(&self, rec: &mut Recorder) -> Result<Standing, AmqpError> {
        let link = self.broker.observer(&mut |reason, what| rec.waiting(reason, what)).await?;
        let channel = link.channel().await?;
        let queue = channel.own_queue(&[("x-message-ttl", Value::Int(EXPIRY.into()))]).await?;
        let answers = channel.consume(&queue).await?;
        let publisher = self.broker.canary(&mut |reason, what| rec.waiting(reason, what)).await?.publisher().await?;
        Ok(Standing { link, publisher, queue, answers })
    }
}

/// Reads the answer of one node, `{"fast@host": {"pid": 1, "total": {"a.b": 7}, …}}`; what is none gives nothing.
fn counts(body: &[u8], task: &str) -> Vec<(String, (u64, u64))> {
    let answer: BTreeMap<String, Json> = serde_json::from_slice(body).unwrap_or_default();
    let of = |(node, stats)| {
        let Stats { pid, total } = serde_json::from_value(stats).ok()?;
        Some((node, (pid, total.get(task).copied().unwrap_or(0))))
    };
    answer.into_iter().filter_map(of).collect()
}

impl Known {
    /// Takes the answers of one question. `looking` is since when every question before it was asked.
    fn learn(&mut self, answers: BTreeMap<String, (u64, u64)>, looking: Option<Timestamp>, now: Timestamp) -> Ran {
        let first = self.looking.is_none() && looking.is_none() && self.nodes.is_empty() && self.grew.is_none();
        // A node that was not there before has run since then what it counts; one with a new process counts anew.
        let grew = |(node, (pid, count)): (&String, &(u64, u64))| match self.nodes.get(node) {
            Some((before, counted)) if before == pid => count > counted,
            _ => *count > 0,
        };
        if !first && answers.iter().any(grew) {
            self.grew = Some(now);
        }
        self.answering = answers.keys().cloned().collect();
        if self.nodes.len() + answers.len() > MAX_NODES {
            self.nodes.clear();
        }
        self.nodes.extend(answers);
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
            let answers = answers.iter().map(|(node, pid, count)| ((*node).to_owned(), (*pid, *count))).collect();
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
        assert_eq!(at(999, &[("fast@b", 1, 3)], None), (Some(829), 0), "nobody could look: the time begins anew");
        assert_eq!(at(1009, &[("fast@b", 1, 3)], Some(999)), (Some(839), 10));
        // Names that change with every container are not kept without end.
        for round in 0..3000 {
            known.learn(BTreeMap::from([(format!("fast@{round}"), (1, 0))]), Some(Timestamp(0)), Timestamp(0));
        }
        assert!(known.nodes.len() <= MAX_NODES);
    }

    #[test]
    fn an_answer_is_read_and_garbage_is_none() {
        let whole = br#"{"fast@a": {"pid": 3, "total": {"a.b": 7, "c": 1}, "uptime": 5, "pool": {}}}"#;
        assert_eq!(counts(whole, "a.b"), [("fast@a".to_owned(), (3, 7))]);
        assert_eq!(counts(br#"{"fast@a": {"pid": 3, "total": {}}}"#, "a.b"), [("fast@a".to_owned(), (3, 0))]);
        for none in [&b""[..], b"[]", b"7", b"{\"fast@a\": {\"error\": \"KeyError('stats')\"}}", b"\xff"] {
            assert_eq!(counts(none, "a.b"), [], "{}", none.escape_ascii());
        }
    }
}
