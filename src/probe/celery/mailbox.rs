//! Celery's remote control, as far as it only reads.
//!
//! A question is a JSON message to the fanout `celery.pidbox`; every node answers to the queue that it names
//! (kombu/pidbox.py, celery/worker/control.py). The default exchange and a queue of our own suffice for the answers, so
//! nothing has to be declared for them. The commands are a closed set: what changes a worker is served by the same
//! mailbox and cannot be sent from here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::super::Recorder;
use super::node::Node;
use crate::client::amqp::{AmqpError, Broker, Consumer, Link, Message, Properties, Publisher, Routed, Value};
use crate::model::Reason;

/// How long nodes may take whose answers are missing: 2 to 4 ms are usual.
const ANSWERS: Duration = Duration::from_secs(1);
/// Where nobody knows who else could answer, no answer for as long is the end: they come together.
const SETTLED: Duration = Duration::from_millis(200);
/// A question or an answer that nobody took is dropped by the broker after as many milliseconds.
const EXPIRY: u32 = 5000;
/// The most nodes that are taken from the answers to one question.
pub(in super::super) const MAX_NODES: usize = 1000;

/// What may be asked: each only reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Command {
    /// Whether it is there.
    Ping,
    /// Its process, its pool, and how many tasks it has accepted, by name.
    Stats,
    /// What it runs.
    Active,
    /// What it has taken from its queues and not begun.
    Reserved,
    /// What it has taken and may begin only later.
    Scheduled,
    /// What it consumes.
    ActiveQueues,
    /// How it is set up; only the kind of its result backend is decoded.
    Conf,
}

impl From<bool> for Enough {
    fn from(all: bool) -> Self {
        if all { Self::Yes } else { Self::No }
    }
}

impl Command {
    pub(super) const ALL: [Self; 7] = [Self::Ping, Self::Stats, Self::Active, Self::Reserved, Self::Scheduled, Self::ActiveQueues, Self::Conf];

    const fn method(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Stats => "stats",
            Self::Active => "active",
            Self::Reserved => "reserved",
            Self::Scheduled => "scheduled",
            Self::ActiveQueues => "active_queues",
            Self::Conf => "conf",
        }
    }
}

/// What the nodes answered, by their names.
pub(in super::super) type Nodes = BTreeMap<String, Node>;

/// Whether further answers are awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Enough {
    /// Somebody who is known has not answered.
    No,
    /// Nobody knows who else could.
    Perhaps,
    /// All have answered.
    Yes,
}

/// Asks the nodes of one broker.
pub(in super::super) struct Mailbox {
    broker: Broker,
    standing: Mutex<Option<Standing>>,
    asked: AtomicU64,
}

/// A queue for the answers, and a channel for the questions.
struct Standing {
    link: Link,
    publisher: Publisher,
    queue: String,
    answers: Consumer,
}

impl Mailbox {
    pub(in super::super) fn new(broker: Broker) -> Self {
        Self { broker, standing: Mutex::default(), asked: AtomicU64::new(0) }
    }

    /// Returns the broker over which it asks.
    pub(in super::super) fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Asks every node these, or one node; ends as soon as `done` says so, after a second at the latest.
    ///
    /// An answer to an earlier question, from a node that was late, counts as well.
    ///
    /// # Errors
    /// Why nobody can be asked.
    pub(in super::super) async fn ask(
        &self,
        rec: &mut Recorder,
        commands: &[Command],
        node: Option<&str>,
        done: impl Fn(&Nodes) -> Enough + Send,
    ) -> Result<Nodes, AmqpError> {
        let mut standing = self.standing.lock().await;
        let outcome = self.collect(rec, &mut standing, commands, node, done).await;
        if outcome.as_ref().is_err_and(|error| !matches!(error, AmqpError::Blocked(_))) {
            *standing = None;
        }
        match outcome {
            // Nobody has declared the exchange since the broker started: there are no nodes.
            Err(error) if error.code() == Some(404) => Ok(Nodes::new()),
            outcome => outcome,
        }
    }

    async fn collect(
        &self,
        rec: &mut Recorder,
        standing: &mut Option<Standing>,
        commands: &[Command],
        node: Option<&str>,
        done: impl Fn(&Nodes) -> Enough + Send,
    ) -> Result<Nodes, AmqpError> {
        if standing.as_ref().is_some_and(|standing| standing.publisher.ended().or(standing.link.ended()).is_some()) {
            *standing = None;
        }
        let Standing { publisher, queue, answers, .. } = match standing {
            Some(standing) => standing,
            None => standing.insert(self.open(rec).await?),
        };
        let endpoint = &self.broker.settings().endpoint;
        rec.waiting(Reason::AnswerTimeout, format!("{endpoint}: waiting until the broker has taken the questions for the workers"));
        let properties = Properties {
            content_type: Some("application/json".to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            expiration: Some(EXPIRY.to_string()),
            ..Properties::default()
        };
        let mut nodes = Nodes::new();
        for command in commands {
            let method = command.method();
            // `safe` is known to `active` alone: it then gives what Celery itself prints of arguments, which is short.
            let arguments = if *command == Command::Active { json!({"safe": true}) } else { json!({}) };
            let question = json!({
                "method": method, "arguments": arguments, "destination": node.map(|node| [node]), "pattern": null, "matcher": null,
                "ticket": format!("{method} {}", self.asked.fetch_add(1, Ordering::Relaxed)),
                "reply_to": {"exchange": "", "routing_key": queue},
            });
            if publisher.publish("celery.pidbox", "", &properties, question.to_string().as_bytes()).await? == Routed::Nowhere {
                return Ok(nodes);
            }
        }
        rec.waiting(Reason::AnswerTimeout, format!("{endpoint}: waiting for the answers of the workers"));
        let deadline = Instant::now() + rec.at_most(ANSWERS);
        loop {
            let until = match done(&nodes) {
                Enough::Yes => break,
                Enough::Perhaps => deadline.min(Instant::now() + SETTLED),
                Enough::No => deadline,
            };
            let Ok(answer) = tokio::time::timeout_at(until, answers.next()).await else { break };
            take(&mut nodes, &answer?);
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

/// Takes the answer of one node, `{"fast@host": …}`; what is none is left out. The header `ticket` says to what.
fn take(nodes: &mut Nodes, answer: &Message) {
    let ticket = answer.properties.headers.iter().find(|(name, _)| name == "ticket");
    let Some((_, Value::Text(ticket))) = ticket else { return };
    let method = ticket.split(' ').next().unwrap_or_default();
    let Some(command) = Command::ALL.into_iter().find(|command| command.method() == method) else { return };
    Node::take(nodes, command, &answer.body);
}
