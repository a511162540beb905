//! What Celery tells of its own accord: heartbeats of workers and, where they are told to send them, events of tasks.
//!
//! A standing consumer on the topic exchange `celeryev`, with a queue of its own on the connection that never publishes
//! (celery/events; [`crate::client::amqp`]). Heartbeats come every two seconds without `-E`. With it, and with
//! `worker_send_task_events` or `celery control enable_events`, the metrics are those of celery-exporter under their
//! names, with the label `worker` besides: its `hostname` is the same for all nodes of a host.

mod event;
mod flying;
mod tally;

use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use self::tally::{Changed, Tally};
use crate::client::amqp::{AmqpError, Broker, Link, Value};
use crate::model::{Family, Histogram};
use crate::probe::Recorder;
use crate::tasks::{self, Tasks};

static SENT: Family = Family::counter("celery_task_sent_total", "Tasks that were sent, by who sent them (needs task_send_sent_event)");
static FAILED: Family = Family::counter("celery_task_failed_total", "Tasks that failed, by the class of the exception");
/// What happens to a task at its worker.
static RAN: [Family; 6] = [
    Family::counter("celery_task_received_total", "Tasks that a worker has taken from its queue"),
    Family::counter("celery_task_started_total", "Tasks that a worker has begun"),
    Family::counter("celery_task_succeeded_total", "Tasks that succeeded"),
    Family::counter("celery_task_rejected_total", "Tasks that a worker refused"),
    Family::counter("celery_task_revoked_total", "Tasks that were revoked, or had expired"),
    Family::counter("celery_task_retried_total", "Tasks that failed and will be tried again"),
];
/// Ten buckets: each costs a series for each task of each worker.
const BOUNDS: &[f64] = &[0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];
static RUNTIME: Histogram = Histogram::new(
    ["celery_task_runtime_bucket", "celery_task_runtime_sum", "celery_task_runtime_count"],
    "How long tasks that succeeded ran, in seconds",
    BOUNDS,
);
static WAIT: Histogram = Histogram::new(
    ["celery_task_queue_wait_time_bucket", "celery_task_queue_wait_time_sum", "celery_task_queue_wait_time_count"],
    "How long tasks waited from when they were sent until they began, in seconds (needs task_send_sent_event)",
    BOUNDS,
);
static EVENTS: Family = Family::counter("celery_events_total", "Events that were heard");
static MISSED: Family = Family::counter("celery_events_missed_total", "Messages with events that were too large, or came too fast");
static MALFORMED: Family = Family::counter("celery_events_malformed_total", "Messages that should hold events and do not");
static FOLDED: Family =
    Family::counter("celery_events_folded_total", "Events that were counted under other, for lack of room for more names, workers or exceptions");
static LISTENING: Family = Family::gauge("celery_events_listening", "Whether Proctor hears the events");

/// The exchange (celery/events/event.py).
const EXCHANGE: &str = "celeryev";
/// An event that is not taken within as many milliseconds is dropped by the broker, and so is a queue of ours.
const TTL: i64 = 5000;
const EXPIRES: i64 = 60_000;
/// How often it is looked whether the connection stands; who connects are the runs of probes.
const RETRY: Duration = Duration::from_secs(1);
/// How long after the broker refused: each time is a line in its log. Where the exchange is missing, no worker has ever run.
const MISSING: Duration = Duration::from_secs(5);
const REFUSED: Duration = Duration::from_secs(60);

/// The events of one broker, from the first [`Events::record`] on.
pub(super) struct Events {
    broker: Broker,
    tasks: Tasks,
    begun: Once,
    heard: Arc<Heard>,
}

#[derive(Default)]
struct Heard {
    tally: Mutex<Tally>,
    /// Messages that were missed by consumers that ended.
    missed: Mutex<Missed>,
    /// Why nobody listens now.
    deaf: Mutex<Option<AmqpError>>,
    changed: Notify,
    again: Notify,
}

#[derive(Default)]
struct Missed {
    before: u64,
    now: u64,
}

impl Events {
    /// Takes the broker and the stage that the listener belongs to; listens to nothing yet.
    pub(super) fn new(broker: Broker, tasks: Tasks) -> Self {
        Self { broker, tasks, begun: Once::new(), heard: Arc::default() }
    }

    /// Ends when a worker has come or said goodbye since it last ended.
    pub(super) async fn changed(&self) {
        self.heard.changed.notified().await;
    }

    /// Says whether events are heard now.
    pub(super) fn listens(&self) -> bool {
        lock(&self.heard.tally).listening.is_some()
    }

    /// Learns what a node that answered consumes: its tasks are counted for that queue where it is one.
    pub(super) fn learn(&self, node: &str, queues: &[&str]) {
        lock(&self.heard.tally).consumes(node, queues);
        // The exchange is there by now.
        if lock(&self.heard.deaf).as_ref().is_some_and(|error| error.code() == Some(404)) {
            self.heard.again.notify_one();
        }
    }

    /// Records what was heard. `judged` are the nodes that the run asks and records itself; `asked` says whether it can.
    ///
    /// # Errors
    /// Why nothing is heard, where the user may not listen.
    pub(super) fn record(&self, rec: &mut Recorder, asked: bool, judged: impl Fn(&str) -> bool) -> Result<(), AmqpError> {
        self.begun.call_once(|| {
            let name = format!("celery events of {}", self.broker.settings().endpoint);
            self.tasks.spawn_until_stopped(name, listen(self.broker.clone(), self.heard.clone()));
        });
        let now = tasks::now();
        let missed = {
            let missed = lock(&self.heard.missed);
            missed.before + missed.now
        };
        let mut tally = lock(&self.heard.tally);
        tally.forget(now);
        tally.record(rec, now, asked, judged);
        rec.set(&LISTENING, f64::from(u8::from(tally.listening.is_some())));
        rec.set(&EVENTS, tally.events as f64);
        rec.set(&MALFORMED, tally.malformed as f64);
        rec.set(&MISSED, missed as f64);
        for (label, count) in [("name", tally.folded.name), ("worker", tally.folded.worker), ("exception", tally.folded.exception)] {
            rec.set_with(&FOLDED, &[("label", label)], count as f64);
        }
        drop(tally);
        match &*lock(&self.heard.deaf) {
            Some(error) if error.code() == Some(403) => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens over the connection that the runs of probes keep open, and again over the next one.
async fn listen(broker: Broker, heard: Arc<Heard>) {
    loop {
        let mut wait = RETRY;
        if let Some(link) = broker.standing_observer() {
            let error = match attend(&link, &heard).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            lock(&heard.tally).listening = None;
            tracing::debug!(endpoint = %broker.settings().endpoint, %error, "celery's events are not heard");
            wait = match error.code() {
                Some(404) => MISSING,
                Some(_) => REFUSED,
                None => RETRY,
            };
            *lock(&heard.deaf) = Some(error);
        }
        // Whichever comes first.
        drop(tokio::time::timeout(wait, heard.again.notified()).await);
    }
}

/// Listens over one connection until it ends.
async fn attend(link: &Link, heard: &Heard) -> Result<std::convert::Infallible, AmqpError> {
    let channel = link.channel().await?;
    let queue = channel.own_queue(&[("x-message-ttl", Value::Int(TTL)), ("x-expires", Value::Int(EXPIRES))]).await?;
    channel.bind(&queue, EXCHANGE, "#").await?;
    let mut events = channel.consume(&queue).await?;
    {
        let mut missed = lock(&heard.missed);
        missed.before += std::mem::take(&mut missed.now);
    }
    lock(&heard.tally).listening = Some(tasks::now());
    *lock(&heard.deaf) = None;
    let mut messages = Vec::new();
    loop {
        events.several(&mut messages).await?;
        lock(&heard.missed).now = events.missed();
        let now = tasks::now();
        let mut tally = lock(&heard.tally);
        for message in messages.drain(..) {
            // JSON whatever it says to be: what is none is counted.
            if tally.take(&message.body, now) == Changed::Workers {
                heard.changed.notify_one();
            }
        }
    }
}
