//! What the events have told, counted: a pure state that reads no clock.
//!
//! Who may publish to `celeryev` can say anything, so that everything is bounded: workers, names, series. What goes beyond
//! is counted under `other`; what nobody has told of for long is forgotten, so that invented names do not stay in the way.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::event::{self, Event};
use super::flying::{Flying, Task};
use super::super::nodes::{ACTIVE, WORKER_UP, hostname};
use super::{FAILED, RAN, RUNTIME, SENT, WAIT};
use crate::model::{Observed, Timestamp};
use crate::probe::Recorder;

/// The most workers and senders; further ones are `other`.
pub(super) const MAX_WORKERS: usize = 100;
/// The most series of tasks. A task of a worker has 20, and 13 more where it is known when it was sent.
pub(super) const MAX_SERIES: usize = 4000;
/// The most classes of exceptions of one task of one worker; further ones are `other`.
const MAX_EXCEPTIONS: usize = 20;
/// The most names of tasks and queues; further ones are `other`.
const MAX_TEXTS: usize = 1000;
/// The longest label, in bytes.
const MAX_TEXT: usize = 200;
/// A worker without a heartbeat for as long, or that has said goodbye as long ago, is forgotten with its tasks.
const GONE: Duration = Duration::from_secs(600);
/// A sender, or a worker that sends no heartbeats, is forgotten after as long without an event.
const QUIET: Duration = Duration::from_secs(24 * 3600);
/// What an event may take on a host under load, and what of our own may be late.
const SLACK: Duration = Duration::from_secs(1);

/// Series of a task at its worker: six counters, failures without an exception, runtimes.
const RAN_SERIES: usize = RAN.len() + 1 + RUNTIME.series();

/// What stands for all that there is no room for.
const OTHER: &str = "other";
/// The name of a task whose first events were not heard.
const UNKNOWN: &str = "unknown";
/// The queue where nobody has said which: Celery's default, and celery-exporter's.
const QUEUE: &str = "celery";

/// What the events have told so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    texts: Texts,
    flying: Flying,
    workers: BTreeMap<Box<str>, Worker>,
    /// The queue of those nodes that consume one alone.
    queues: BTreeMap<Box<str>, Box<str>>,
    series: usize,
    /// Since when nothing was missed; nothing while nobody listens.
    pub(super) listening: Option<Timestamp>,
    /// Events that were read.
    pub(super) events: u64,
    /// Messages that hold none.
    pub(super) malformed: u64,
    pub(super) folded: Folded,
}

/// Events that were counted under `other` for lack of room, by the label that says so.
#[derive(Debug, Default)]
pub(super) struct Folded {
    pub(super) name: u64,
    pub(super) worker: u64,
    pub(super) exception: u64,
}

#[derive(Debug)]
struct Worker {
    heard: Timestamp,
    beat: Option<Beat>,
    tasks: BTreeMap<Key, Numbers>,
}

/// The numbers of a task's name and of its queue.
type Key = (u16, u16);

/// What a worker says of itself.
#[derive(Debug)]
struct Beat {
    every: Duration,
    active: f64,
    /// It has said goodbye.
    offline: bool,
}

/// The numbers of one task, by name and queue, at one worker or sender.
#[derive(Debug, Default)]
struct Numbers {
    sent: u64,
    ran: Option<Ran>,
    waited: Option<Observed>,
}

#[derive(Debug)]
struct Ran {
    counts: [u64; RAN.len()],
    failed: BTreeMap<Box<str>, u64>,
    runtime: Observed,
}

/// What changed that a probe should see at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Changed {
    /// Nothing but numbers.
    Numbers,
    /// A worker came or went.
    Workers,
}

impl Tally {
    /// Takes the body of a message.
    pub(super) fn take(&mut self, body: &[u8], now: Timestamp) -> Changed {
        let mut changed = Changed::Numbers;
        if event::each(body, |event| {
            self.events += 1;
            if self.event(&event, now) {
                changed = Changed::Workers;
            }
        })
        .is_err()
        {
            self.malformed += 1;
        }
        changed
    }

    /// Learns what a node consumes.
    pub(super) fn consumes(&mut self, node: &str, queues: &[&str]) {
        match queues {
            [queue] if self.queues.len() < MAX_WORKERS || self.queues.contains_key(node) => {
                if self.queues.get(node).is_none_or(|known| **known != **queue) {
                    self.queues.insert(cut(node).into(), cut(queue).into());
                }
            }
            _ => drop(self.queues.remove(node)),
        }
    }

    /// Takes one event; says whether a worker came or went.
    fn event(&mut self, event: &Event<'_>, now: Timestamp) -> bool {
        let uuid = || event.uuid.as_deref().unwrap_or_default();
        let hostname = cut(&event.hostname);
        let at = match &*event.kind {
            "worker-online" | "worker-heartbeat" | "worker-offline" => return self.beat(event, hostname, now),
            "task-sent" => {
                let (name, queue) = (self.text(event.name.as_deref().unwrap_or(UNKNOWN)), self.text(event.queue.as_deref().unwrap_or(QUEUE)));
                // One that is to run later waits because it is told to.
                let sent = event.timestamp.filter(|_| event.eta.is_none());
                *self.flying.entry(self.flying.key(uuid()), Task { name, queue: None, sent: None }) = Task { name, queue: Some(queue), sent };
                let sender = sender(hostname);
                let at = self.place(&sender, (name, queue), 1, |numbers| numbers.sent > 0);
                numbers(&mut self.workers, at, now).sent += 1;
                return false;
            }
            "task-received" => {
                if let Some(name) = event.name.as_deref() {
                    let name = self.text(name);
                    self.flying.entry(self.flying.key(uuid()), Task { name, queue: None, sent: None }).name = name;
                }
                0
            }
            "task-started" => 1,
            "task-succeeded" => 2,
            "task-rejected" => 3,
            "task-revoked" => 4,
            "task-retried" => 5,
            "task-failed" => RAN.len(),
            _ => return false,
        };
        let key = self.flying.key(uuid());
        let task = if matches!(at, 2..=4 | 6..) { self.flying.remove(key) } else { self.flying.get(key) };
        let name = task.map_or_else(|| self.text(UNKNOWN), |task| task.name);
        let queue = match (task.and_then(|task| task.queue), self.queues.get(hostname)) {
            (Some(queue), _) => queue,
            (None, Some(queue)) => self.texts.number(queue).unwrap_or_else(|| self.text(OTHER)),
            (None, None) => self.text(QUEUE),
        };
        let place = self.place(hostname, (name, queue), RAN_SERIES, |numbers| numbers.ran.is_some());
        let Self { workers, series, folded, .. } = self;
        let numbers = numbers(workers, place, now);
        let ran = numbers.ran.get_or_insert_with(|| Ran {
            counts: [0; RAN.len()],
            failed: BTreeMap::from([("".into(), 0)]),
            runtime: Observed::nothing(&RUNTIME),
        });
        if let Some(count) = ran.counts.get_mut(at) {
            *count += 1;
        } else {
            let class = cut(event.exception_class());
            let room = *series < MAX_SERIES && ran.failed.len() <= MAX_EXCEPTIONS;
            let known = ran.failed.contains_key(class);
            folded.exception += u64::from(!known && !room);
            let class = if known || room { class } else { OTHER };
            let before = ran.failed.len();
            *ran.failed.entry(class.into()).or_default() += 1;
            *series += ran.failed.len() - before;
        }
        if let (2, Some(runtime)) = (at, event.runtime.filter(|seconds| *seconds >= 0.0)) {
            ran.runtime.add(&RUNTIME, runtime.min(LONGEST));
        }
        if let (1, Some(sent), Some(started)) = (at, task.and_then(|task| task.sent), event.timestamp) {
            if numbers.waited.is_none() && *series + WAIT.series() <= MAX_SERIES {
                numbers.waited = Some(Observed::nothing(&WAIT));
                *series += WAIT.series();
            }
            match &mut numbers.waited {
                // Clocks of two hosts differ a little.
                Some(waited) => waited.add(&WAIT, (started - sent).clamp(0.0, LONGEST)),
                None => folded.name += 1,
            }
        }
        false
    }

    /// Takes what a worker says of itself.
    fn beat(&mut self, event: &Event<'_>, hostname: &str, now: Timestamp) -> bool {
        if !self.workers.contains_key(hostname) && self.workers.len() >= MAX_WORKERS {
            self.folded.worker += 1;
            return false;
        }
        let worker = self.workers.entry(hostname.into()).or_insert_with(|| Worker::new(now));
        let offline = &*event.kind == "worker-offline";
        let changed = worker.beat.as_ref().is_none_or(|beat| beat.offline != offline);
        worker.heard = now;
        let every = Duration::from_secs_f64(event.freq.filter(|seconds| (0.1..=300.0).contains(seconds)).unwrap_or(2.0));
        worker.beat = Some(Beat { every, active: event.active.unwrap_or(0.0), offline });
        changed
    }

    /// Returns where the numbers of a task at a worker or sender are; of `other` where there is no room for `series` more.
    fn place<'a>(&mut self, hostname: &'a str, task: Key, series: usize, has: fn(&Numbers) -> bool) -> (&'a str, Key) {
        let known = self.workers.get(hostname);
        let (mut hostname, mut task) = (hostname, task);
        if !known.and_then(|worker| worker.tasks.get(&task)).is_some_and(has) {
            if known.is_none() && self.workers.len() >= MAX_WORKERS {
                self.folded.worker += 1;
                hostname = OTHER;
            }
            if self.series + series > MAX_SERIES {
                self.folded.name += 1;
                let other = self.text(OTHER);
                (hostname, task) = (OTHER, (other, other));
            } else {
                self.series += series;
            }
        }
        (hostname, task)
    }

    fn text(&mut self, text: &str) -> u16 {
        self.texts.number(cut(text)).unwrap_or_else(|| {
            self.folded.name += 1;
            self.texts.number(OTHER).unwrap_or_default()
        })
    }

    /// Forgets what nobody has told of for long.
    pub(super) fn forget(&mut self, now: Timestamp) {
        let before = self.workers.len();
        self.workers.retain(|_, worker| now.since(worker.heard) <= if worker.beat.is_some() { GONE } else { QUIET });
        if self.workers.len() == before {
            return;
        }
        let of = |numbers: &Numbers| {
            let ran = numbers.ran.as_ref().map_or(0, |ran| RAN_SERIES + ran.failed.len() - 1);
            usize::from(numbers.sent > 0) + ran + numbers.waited.as_ref().map_or(0, |_| WAIT.series())
        };
        self.series = self.workers.values().flat_map(|worker| worker.tasks.values()).map(of).sum();
        let tasks = self.workers.values().flat_map(|worker| worker.tasks.keys()).flat_map(|(name, queue)| [*name, *queue]);
        let flying = self.flying.all().flat_map(|task| [Some(task.name), task.queue]).flatten();
        let used = tasks.chain(flying).collect();
        self.texts.retain(&used);
    }

    /// Records it all; what a worker says of itself only of those that are not `judged` elsewhere, and, where the others
    /// are `asked`, of those that have not said goodbye: a name that was replaced is forgotten.
    pub(super) fn record(&self, rec: &mut Recorder, now: Timestamp, asked: bool, judged: impl Fn(&str) -> bool) {
        for (name, worker) in &self.workers {
            let hostname = hostname(name);
            let own = worker.beat.as_ref().filter(|beat| !(judged(name) || asked && beat.offline));
            if let (Some(up), Some(beat)) = (self.is_up(worker, now), own) {
                let labels = [("worker", &**name), ("hostname", hostname)];
                rec.set_with(&WORKER_UP, &labels, f64::from(u8::from(up)));
                if up {
                    rec.set_with(&ACTIVE, &labels, beat.active);
                }
            }
            for ((task, queue), numbers) in &worker.tasks {
                let labels = [("name", self.texts.get(*task)), ("hostname", hostname), ("queue_name", self.texts.get(*queue)), ("worker", &**name)];
                if numbers.sent > 0 {
                    rec.set_with(&SENT, &labels, numbers.sent as f64);
                }
                if let Some(ran) = &numbers.ran {
                    for (family, count) in RAN.iter().zip(ran.counts) {
                        rec.set_with(family, &labels, count as f64);
                    }
                    for (exception, count) in &ran.failed {
                        let [name, hostname, queue, worker] = labels;
                        rec.set_with(&FAILED, &[name, hostname, ("exception", exception), queue, worker], *count as f64);
                    }
                    rec.set_histogram(&RUNTIME, &labels, &ran.runtime);
                }
                if let Some(waited) = &numbers.waited {
                    rec.set_histogram(&WAIT, &labels, waited);
                }
            }
        }
    }

    /// Says whether a worker's heartbeats come; nothing where it sends none, or nobody listens.
    fn is_up(&self, worker: &Worker, now: Timestamp) -> Option<bool> {
        let (beat, listening) = (worker.beat.as_ref()?, self.listening?);
        // As Celery counts it (celery/events/state.py: HEARTBEAT_EXPIRE_WINDOW), from when it could be heard.
        Some(!beat.offline && now.since(worker.heard.max(listening)) <= beat.every * 2 + SLACK)
    }
}

/// Returns the numbers at a place, which has been heard of now.
fn numbers<'a>(workers: &'a mut BTreeMap<Box<str>, Worker>, (hostname, task): (&str, Key), now: Timestamp) -> &'a mut Numbers {
    // With each event: a name that is known is not copied.
    if !workers.contains_key(hostname) {
        workers.insert(hostname.into(), Worker::new(now));
    }
    let worker = workers.get_mut(hostname).unwrap_or_else(|| unreachable!("it was put there"));
    worker.heard = now;
    worker.tasks.entry(task).or_default()
}

/// The longest time that is believed, in seconds: a year.
const LONGEST: f64 = 366.0 * 86_400.0;

impl Worker {
    fn new(now: Timestamp) -> Self {
        Self { heard: now, beat: None, tasks: BTreeMap::new() }
    }
}

/// Cuts a text to what a label holds.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// Returns who sends: `gen123@host` is a process that comes and goes, `gen@host` its host (kombu's `anon_nodename`).
fn sender(hostname: &str) -> String {
    match hostname.strip_prefix("gen").and_then(|rest| rest.split_once('@')) {
        Some((pid, host)) if pid.bytes().all(|byte| byte.is_ascii_digit()) => format!("gen@{host}"),
        _ => hostname.to_owned(),
    }
}

/// Texts that occur again and again, by small numbers.
#[derive(Debug, Default)]
struct Texts {
    all: Vec<Box<str>>,
    numbers: HashMap<Box<str>, u16>,
    free: Vec<u16>,
}

impl Texts {
    /// Returns the number of a text; of `other` there is always one.
    fn number(&mut self, text: &str) -> Option<u16> {
        if let Some(number) = self.numbers.get(text) {
            return Some(*number);
        }
        if self.numbers.len() >= MAX_TEXTS && text != OTHER {
            return None;
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.all.push(Box::default());
                u16::try_from(self.all.len() - 1).ok()?
            }
        };
        if let Some(place) = self.all.get_mut(usize::from(number)) {
            *place = text.into();
        }
        self.numbers.insert(text.into(), number);
        Some(number)
    }

    fn get(&self, number: u16) -> &str {
        self.all.get(usize::from(number)).map_or(OTHER, |text| text)
    }

    fn retain(&mut self, used: &HashSet<u16>) {
        let Self { all, numbers, free } = self;
        numbers.retain(|_, number| {
            let keep = used.contains(number);
            if !keep {
                free.push(*number);
                if let Some(place) = all.get_mut(usize::from(*number)) {
                    *place = Box::default();
                }
            }
            keep
        });
    }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// Messages of Celery's events, one a line.
    pub fn celery_events(bytes: &[u8]) {
        let mut tally = Tally::default();
        for (second, body) in (1_800_000_000..).zip(bytes.split(|byte| *byte == b'\n')) {
            tally.take(body, Timestamp::from_secs(second));
        }
        let now = Timestamp::from_secs(1_800_003_600);
        tally.record(&mut Recorder::default(), now, true, |_| true);
        tally.forget(now);
    }
}

#[cfg(test)]
mod tests;
