//! A task of our own through every queue, whose time there is the queue's true waiting time.
//!
//! `celery.accumulate` is registered in every app (celery/app/builtins.py), touches nothing, and gives back its
//! arguments: none. It expires before the next one is due, and the next is not sent before it is answered or gone, so
//! that a queue that stands still holds one. Where the result backend is `rpc://` the node answers to a queue of ours;
//! elsewhere it is told to keep no result, and the count that it gives to `stats` says that it ran.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Now, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;

use super::super::Recorder;
use super::judge::Canary;
use super::mailbox::{Command, Mailbox, Nodes};
use crate::client::amqp::{AmqpError, Broker, Consumer, Link, Message, Properties, Publisher, Value};
use crate::model::Reason;
use crate::tasks::{self, Tasks};

/// The task that is sent.
pub(super) const TASK: &str = "celery.accumulate";
/// How long a run waits for the answer: 3 to 11 ms are usual.
const AT_ONCE: Duration = Duration::from_millis(250);
/// How long it waits where no answer has ever come: until one has, nothing is known.
const AT_FIRST: Duration = Duration::from_secs(2);
/// When the counts are asked for, after a task that gives no answer was sent.
const COUNTED: [Duration; 3] = [Duration::from_millis(30), Duration::from_millis(100), Duration::from_millis(300)];
/// One that was not seen to go is given up after as many times `every`: a queue that is never empty hides it.
const GIVEN_UP: u32 = 10;

/// The canaries of one probe.
pub(super) struct Canaries {
    every: Duration,
    tasks: Tasks,
    lines: Arc<Lines>,
    standing: Mutex<Option<Standing>>,
    sent: AtomicU64,
}

/// What is known of the canaries, by queue.
#[derive(Default)]
struct Lines {
    by_queue: Now<BTreeMap<String, Line>>,
    answered: Notify,
}

/// The canaries of one queue.
#[derive(Clone, Debug, Default)]
struct Line {
    sent: Option<Sent>,
    last: Option<Instant>,
    seen: Seen,
    lost_in_a_row: u32,
}

/// What a line has seen so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// How long the last one that was answered took.
    pub(super) took: Option<Duration>,
    pub(super) answered: u64,
    /// Those that expired before they were run.
    pub(super) expired: u64,
    /// Those that were nowhere, and not run.
    pub(super) lost: u64,
    /// The nodes do not know the task.
    pub(super) unknown: bool,
}

/// One that is on its way.
#[derive(Clone, Debug)]
struct Sent {
    id: String,
    at: Instant,
    /// The counts of the nodes that may run it, before; nothing where it is answered.
    counts: Option<BTreeMap<String, (u64, u64)>>,
    lost: bool,
}

/// A queue for the answers, and a channel to publish over.
struct Standing {
    link: Link,
    publisher: Publisher,
    queue: String,
}

/// A queue as the last look found it.
pub(super) struct Here<'a> {
    pub(super) queue: &'a str,
    /// The nodes that consume it.
    pub(super) nodes: &'a [String],
    /// What all nodes said.
    pub(super) said: &'a Nodes,
    pub(super) ready: u32,
    /// Whether a task could be begun.
    pub(super) idle: bool,
    /// Whether all of `nodes` answer a task.
    pub(super) rpc: bool,
}

impl Canaries {
    pub(super) fn new(every: Duration, tasks: Tasks) -> Self {
        Self { every, tasks, lines: Arc::default(), standing: Mutex::default(), sent: AtomicU64::new(0) }
    }

    /// How long one may wait: it is gone before the next.
    fn expires(&self) -> Duration {
        self.every * 9 / 10
    }

    /// One that is not answered by then is late: 3 to 11 ms are usual where nothing waits.
    fn late(&self) -> Duration {
        self.every / 4
    }

    /// Says how it is with the newest canary of a queue.
    pub(super) fn look(&self, here: &Here) -> (Canary, Seen) {
        let mut lines = self.lines.lock();
        let line = lines.entry(here.queue.to_owned()).or_default();
        line.counted(here.said);
        let Some(sent) = &mut line.sent else {
            let canary = if line.lost_in_a_row > 0 { Canary::Lost(line.lost_in_a_row) } else { Canary::Home };
            return (canary, line.seen);
        };
        let age = sent.at.elapsed();
        let holds = |name: &String| here.said.get(name).is_some_and(|node| node.holds(&sent.id));
        let taken = here.nodes.iter().any(holds);
        let (nowhere, expired) = (!taken && here.ready == 0, age >= self.expires());
        let late = age >= self.late();
        if nowhere && !expired && late && here.idle && !sent.lost {
            sent.lost = true;
            line.lost_in_a_row += 1;
            line.seen.lost += 1;
        }
        let canary = if sent.lost { Canary::Lost(line.lost_in_a_row) } else { Canary::Out { age, late, taken } };
        if expired && (nowhere || age >= self.every * GIVEN_UP) {
            if !sent.lost {
                line.seen.expired += 1;
            }
            line.sent = None;
        }
        (canary, line.seen)
    }

    /// Sends one where it is due, and waits a moment for its answer.
    ///
    /// # Errors
    /// Why it cannot be sent.
    pub(super) async fn send(&self, rec: &mut Recorder, mailbox: &Mailbox, here: &Here<'_>) -> Result<(), AmqpError> {
        if here.nodes.is_empty() || !self.is_due(here) {
            return Ok(());
        }
        let broker = mailbox.broker();
        let mut standing = self.standing.lock().await;
        let ended = |standing: &Standing| standing.publisher.ended().or(standing.link.ended()).is_some();
        if standing.as_ref().is_some_and(ended) {
            *standing = None;
        }
        let open = match &mut *standing {
            Some(open) => open,
            None => standing.insert(self.open(rec, broker).await?),
        };
        rec.waiting(
            Reason::AnswerTimeout,
            format!("{}: waiting until the broker has taken a task for queue {:?}", broker.settings().endpoint, here.queue),
        );
        let (sent, properties) = self.task(here, &open.queue);
        // What is on its way is known before it can be answered.
        let id = sent.id.clone();
        self.lines.with(here.queue, |line| (line.last, line.sent) = (Some(sent.at), Some(sent)));
        let body = json!([[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]);
        if let Err(error) = open.publisher.publish("", here.queue, &properties, body.to_string().as_bytes()).await {
            self.lines.with(here.queue, |line| line.sent = None);
            if !matches!(error, AmqpError::Blocked(_)) {
                *standing = None;
            }
            return Err(error);
        }
        let link = open.link.clone();
        drop(standing);
        // Its time is what is measured.
        let _hasty = link.hurry();
        self.wait(rec, mailbox, here, &id).await
    }

    fn is_due(&self, here: &Here) -> bool {
        let lines = self.lines.lock();
        let line = lines.get(here.queue).cloned().unwrap_or_default();
        // Without answers only the counts of nodes tell, and they count for all their queues: one at a time.
        let shares = |sent: &Sent| sent.counts.as_ref().is_some_and(|counts| here.nodes.iter().any(|node| counts.contains_key(node)));
        let turn = here.rpc || !lines.values().any(|line| line.sent.as_ref().is_some_and(shares));
        line.sent.is_none() && !line.seen.unknown && line.last.is_none_or(|last| last.elapsed() >= self.every) && turn
    }

    /// Makes the message that Celery makes of a task (celery/app/amqp.py, `as_task_v2`).
    fn task(&self, here: &Here, answers: &str) -> (Sent, Properties) {
        let now = tasks::wall_now();
        let id = format!("proctor-{}-{}-{}-{}", now.0, std::process::id(), here.queue, self.sent.fetch_add(1, Ordering::Relaxed));
        let expires = self.expires();
        let text = |text: &str| Value::from(text);
        let headers = [
            ("lang", text("py")),
            ("task", text(TASK)),
            ("id", text(&id)),
            ("root_id", text(&id)),
            ("parent_id", Value::Null),
            ("group", Value::Null),
            ("retries", Value::Int(0)),
            ("eta", Value::Null),
            ("expires", text(&(now + expires).to_jiff().strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string())),
            ("timelimit", Value::List(vec![Value::Null, Value::Null])),
            ("argsrepr", text("()")),
            ("kwargsrepr", text("{}")),
            ("origin", text("proctor")),
            ("ignore_result", Value::Bool(!here.rpc)),
        ];
        let properties = Properties {
            content_type: Some("application/json".to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            correlation_id: Some(id.clone()),
            reply_to: Some(answers.to_owned()),
            expiration: Some(expires.as_millis().to_string()),
        };
        let count = |name: &String| Some((name.clone(), here.said.get(name)?.count(TASK)?));
        let counts = (!here.rpc).then(|| here.nodes.iter().filter_map(count).collect());
        (Sent { id, at: Instant::now(), counts, lost: false }, properties)
    }

    async fn wait(&self, rec: &mut Recorder, mailbox: &Mailbox, here: &Here<'_>, id: &str) -> Result<(), AmqpError> {
        let is_out = || self.lines.lock().get(here.queue).and_then(|line| line.sent.as_ref()).is_some_and(|sent| sent.id == id);
        if here.rpc {
            let answered = async {
                loop {
                    let notified = self.lines.answered.notified();
                    if !is_out() {
                        break;
                    }
                    notified.await;
                }
            };
            // Late, it is taken all the same when it comes.
            let first = self.lines.lock().get(here.queue).is_none_or(|line| line.seen.answered == 0);
            let patience = rec.at_most(if first && here.idle { AT_FIRST } else { AT_ONCE });
            drop(tokio::time::timeout(patience, answered).await);
            return Ok(());
        }
        for pause in COUNTED {
            tokio::time::sleep(pause).await;
            let said = mailbox.ask(rec, &[Command::Stats], None, |nodes| here.nodes.iter().all(|name| nodes.contains_key(name)).into()).await?;
            self.lines.with(here.queue, |line| line.counted(&said));
            if !is_out() {
                break;
            }
        }
        Ok(())
    }

    async fn open(&self, rec: &mut Recorder, broker: &Broker) -> Result<Standing, AmqpError> {
        let link = broker.observer(&mut |reason, what| rec.waiting(reason, what)).await?;
        let channel = link.channel().await?;
        let queue = channel.own_queue(&[]).await?;
        let answers = channel.consume(&queue).await?;
        let publisher = broker.canary(&mut |reason, what| rec.waiting(reason, what)).await?.publisher().await?;
        // Answers are taken when they come, not when the next run asks: the time between is what is measured.
        let name = format!("answers to canary tasks at {}", broker.settings().endpoint);
        self.tasks.spawn_until_stopped(name, listen(answers, self.lines.clone()));
        Ok(Standing { link, publisher, queue })
    }
}

/// Takes answers until the connection ends.
async fn listen(mut answers: Consumer, lines: Arc<Lines>) {
    let mut several = Vec::new();
    while answers.several(&mut several).await.is_ok() {
        several.drain(..).for_each(|answer| lines.take(&answer));
    }
    // What was to be answered there cannot be any more.
    for line in lines.lock().values_mut() {
        line.sent = None;
    }
}

impl Lines {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Line>> {
        self.by_queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, queue: &str, change: impl FnOnce(&mut Line)) {
        change(self.lock().entry(queue.to_owned()).or_default());
    }

    fn take(&self, answer: &Message) {
        #[derive(Deserialize)]
        struct Answer {
            status: String,
            #[serde(default)]
            result: Option<Why>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Why {
            Failed { exc_type: String },
            Other(serde::de::IgnoredAny),
        }
        let Some(id) = &answer.properties.correlation_id else { return };
        let Ok(Answer { status, result }) = serde_json::from_slice(&answer.body) else { return };
        let unknown = matches!(result, Some(Why::Failed { exc_type }) if exc_type == "NotRegistered");
        // A node that comes to it too late says so with REVOKED.
        let answered = status == "SUCCESS" || unknown;
        for line in self.lock().values_mut().filter(|line| line.sent.as_ref().is_some_and(|sent| sent.id == *id)) {
            if answered {
                line.answered();
                line.seen.unknown = unknown;
            } else if line.sent.take().is_some_and(|sent| !sent.lost) {
                line.seen.expired += 1;
            }
        }
        self.answered.notify_waiters();
    }
}

impl Line {
    fn answered(&mut self) {
        let Some(sent) = self.sent.take() else { return };
        self.seen.took = Some(sent.at.elapsed());
        self.seen.answered += 1;
        self.lost_in_a_row = 0;
    }

    /// Takes the counts of the nodes: one that has grown says that the task was run.
    fn counted(&mut self, said: &Nodes) {
        let Some(counts) = self.sent.as_ref().and_then(|sent| sent.counts.as_ref()) else { return };
        let grew = |(name, (pid, before)): (&String, &(u64, u64))| match said.get(name).and_then(|node| node.count(TASK)) {
            Some((now, count)) if now == *pid => count > *before,
            Some((_, count)) => count > 0,
            None => false,
        };
        if counts.iter().any(grew) {
            self.answered();
        }
    }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// The result of a task.
    pub fn celery_result(bytes: &[u8]) {
        let properties = Properties { correlation_id: Some("1".to_owned()), ..Properties::default() };
        Lines::default().take(&Message { exchange: String::new(), key: String::new(), properties, body: bytes.to_vec() });
    }
}
