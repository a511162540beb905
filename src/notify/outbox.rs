//! The only queue: what waits to be delivered, and the one task that delivers it.
//!
//! The queue itself is in the store, where the dispatcher puts deliveries in the same transaction as its notification
//! log; [`Outbox::wake`] says that there are new ones. Each way out (the relay, each webhook) has one round at a time,
//! over one connection. A way that is dead is knocked at by that one connection and holds back what goes that way,
//! nothing else; what concerns one delivery moves only its own next attempt.
//!
//! Delivery is at least once: a delivery leaves the store after it was accepted, so a crash in between repeats it under
//! the same Message-ID or idempotency key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::email::{Address, Author, SmtpConfig, compose};
use super::webhook::{WebhookConfig, post};
use super::{Channel, Delivery, Weight};
use crate::client::net::chain;
use crate::client::smtp::{Limits, Session, SmtpError, Verdict};
use crate::metrics::{ByDelivery, Metrics};
use crate::model::Timestamp;
use crate::model::duration::{print, print_measured};
use crate::store::{Batch, Store};
use crate::tasks;

/// The most deliveries that wait, and their bytes; beyond that reminders go first, then ends, never a beginning.
/// Beginnings are bounded by their age ([`Pace::expire`]) and by the dispatcher's rate.
const MAX_WAITING: (usize, usize) = (10_000, 64 * 1024 * 1024);
/// The most deliveries of one round over one connection.
const MAX_ROUND: usize = 50;
/// How often an earlier message of a thread may fail before the later ones no longer wait for it.
const MAX_WAIT_FOR_THREAD: u32 = 5;
/// What was queued later than this from now was queued by another clock.
const CLOCK_SLACK: Duration = Duration::from_secs(60);
/// The most refused addresses that are remembered.
const MAX_REFUSED: usize = 200;

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Accepted.
    Sent,
    /// Not now.
    Later(String),
    /// Refused for good.
    Rejected(String),
    /// The recipient is refused; final at the third time.
    Refused(String),
    /// This message is refused, the next may pass: tried again, but rarely.
    Message(String),
    /// Perhaps accepted.
    Unknown(String),
    /// The way out is dead: knock until it answers.
    Dead(String),
    /// The way out is closed until somebody changes something: try again, but rarely.
    Held(String),
}

/// When what is tried again.
#[derive(Clone, Debug)]
pub struct Pace {
    /// A dead relay is knocked at every so often.
    pub knock: Duration,
    /// A relay that refuses us, or a refused message, is tried every so often.
    pub hold: Duration,
    /// The waits after the first failures of a delivery; the last one repeats (RFC 5321 §4.5.4.1).
    pub retries: Vec<Duration>,
    /// The longest wait while a delivery is younger than [`Pace::first_hour`]: greylisting passes within minutes.
    pub greylist: Duration,
    /// How long that is.
    pub first_hour: Duration,
    /// The waits before the second and the third try at a recipient that is refused.
    pub refused: [Duration; 2],
    /// A delivery is given up at this age.
    pub expire: Duration,
    /// How long a delivery in flight may take to end when Proctor stops.
    pub stop: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let (seconds, minutes) = (Duration::from_secs, |n: u64| Duration::from_secs(n * 60));
        Self {
            knock: seconds(30),
            hold: minutes(15),
            retries: vec![seconds(15), minutes(1), minutes(5), minutes(15), minutes(30)],
            greylist: minutes(5),
            first_hour: minutes(60),
            refused: [minutes(10), minutes(30)],
            expire: minutes(5 * 24 * 60),
            stop: seconds(5),
        }
    }
}

/// The ways out, as configured.
#[derive(Clone, Debug)]
pub struct Ways {
    /// Who writes.
    pub author: Author,
    /// The relay; without one mails wait.
    pub smtp: Option<SmtpConfig>,
    /// The webhooks by name.
    pub webhooks: BTreeMap<String, WebhookConfig>,
    /// Bounds on the relay.
    pub limits: Limits,
    /// When what is tried again.
    pub pace: Pace,
}

/// A way out: the name of a webhook, or none for mail.
type Way = Option<String>;

fn way_of(channel: &Channel) -> Way {
    match channel {
        Channel::Email { .. } => None,
        Channel::Webhook { name } => Some(name.clone()),
    }
}

/// A way out that does not work.
#[derive(Clone, Debug)]
struct Closed {
    since: Timestamp,
    until: Timestamp,
    why: String,
}

/// An address that the relay refuses.
#[derive(Clone, Debug)]
struct Refusal {
    since: Timestamp,
    why: String,
}

#[derive(Debug)]
struct State {
    ways: Arc<Ways>,
    waiting: BTreeMap<String, (Arc<Delivery>, usize)>,
    closed: BTreeMap<Way, Closed>,
    refused: BTreeMap<String, Refusal>,
}

/// The queue. Clones share it.
#[derive(Clone, Debug)]
pub struct Outbox {
    store: Store,
    metrics: Arc<Metrics>,
    state: Arc<Mutex<State>>,
    wake: Arc<Notify>,
}

impl Outbox {
    /// Takes over what the store holds; sends nothing before [`Outbox::run`].
    pub fn new(store: Store, metrics: Arc<Metrics>, ways: Ways) -> Self {
        let state = State { ways: Arc::new(ways), waiting: BTreeMap::new(), closed: BTreeMap::new(), refused: BTreeMap::new() };
        let outbox = Self { store, metrics, state: Arc::new(Mutex::new(state)), wake: Arc::new(Notify::new()) };
        outbox.load();
        outbox
    }

    /// Says that the store holds new deliveries.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Takes another configuration; what was closed is tried again at once.
    pub fn reconfigure(&self, ways: Ways) {
        let mut state = self.lock();
        state.ways = Arc::new(ways);
        state.closed.clear();
        state.refused.clear();
        drop(state);
        self.wake();
    }

    /// Returns how many deliveries wait.
    pub fn depth(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Returns how long the oldest delivery has waited; zero where none waits.
    pub fn oldest_age(&self, now: Timestamp) -> Duration {
        let oldest = self.lock().waiting.values().map(|(delivery, _)| delivery.queued_at).min();
        oldest.map_or(Duration::ZERO, |at| now.since(at))
    }

    /// Returns the addresses that the relay refuses and why, so that mails to the others can say it.
    pub fn refused(&self) -> Vec<(String, String)> {
        self.lock().refused.iter().map(|(address, refusal)| (address.clone(), refusal.why.clone())).collect()
    }

    /// Returns what is wrong with delivering, one line each, for the status page.
    pub fn problems(&self) -> Vec<String> {
        let now = tasks::now();
        let state = self.lock();
        let closed = state.closed.iter().map(|(way, closed)| {
            let waiting = state.waiting.values().filter(|(delivery, _)| way_of(&delivery.channel) == *way).count();
            let way = way.as_ref().map_or("mail".to_owned(), |name| format!("webhook {name}"));
            format!("{way}: {waiting} wait since {} because {}", print_measured(now.since(closed.since)), closed.why)
        });
        let refused = state.refused.iter().map(|(address, refusal)| {
            format!("{address} gets no mail since {}: {}", print_measured(now.since(refusal.since)), refusal.why)
        });
        let stuck = state.waiting.values().filter_map(|(delivery, _)| {
            let why = delivery.last_error.as_ref().filter(|_| delivery.attempts >= 3)?;
            Some(format!("{:?} was tried {} times: {why}", delivery.message.subject, delivery.attempts))
        });
        closed.chain(refused).chain(stuck.take(20)).collect()
    }

    /// Delivers until it is told to stop; then what is in flight may end within [`Pace::stop`].
    pub async fn run(self, stop: CancellationToken) {
        let mut rounds: FuturesUnordered<BoxFuture<'static, Way>> = FuturesUnordered::new();
        let mut busy: BTreeSet<Way> = BTreeSet::new();
        self.load();
        loop {
            let now = tasks::now();
            self.give_up_old(now).await;
            let (due, next) = self.due(now, &busy);
            for (way, deliveries) in due {
                busy.insert(way.clone());
                let (outbox, stop) = (self.clone(), stop.clone());
                rounds.push(Box::pin(async move {
                    outbox.round(&way, deliveries, &stop).await;
                    way
                }));
            }
            self.measure(now);
            // While something waits, the gauge of its age is to move too.
            let pause = next.map_or(Duration::from_secs(3600), |at| at.since(tasks::now()).min(Duration::from_secs(5)));
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(way) = rounds.next(), if !rounds.is_empty() => {
                    busy.remove(&way);
                }
                () = self.wake.notified() => self.load(),
                () = tokio::time::sleep(pause.max(Duration::from_millis(1))) => {}
            }
        }
        let pace = self.lock().ways.pace.stop;
        if tokio::time::timeout(pace, async { while rounds.next().await.is_some() {} }).await.is_err() {
            tracing::warn!(waiting = self.depth(), "stopped in the middle of a delivery: it is repeated at the next start");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the queue from the store.
    fn load(&self) {
        let (all, now) = (self.store.all::<Delivery>(), tasks::now());
        let mut state = self.lock();
        let mut before = std::mem::take(&mut state.waiting);
        for mut delivery in all {
            if delivery.queued_at > now + CLOCK_SLACK {
                // The clock was ahead in an earlier run: what waits does not wait until then.
                (delivery.queued_at, delivery.next_at) = (now, now);
            }
            // What is known and unchanged is not measured again.
            let entry = match before.remove(&delivery.id) {
                Some((known, size)) if *known == delivery => (known, size),
                _ => {
                    let message = &delivery.message;
                    let size = message.subject.len() + message.text.len() + message.html.len() + message.payload.to_string().len();
                    (Arc::new(delivery), size)
                }
            };
            state.waiting.insert(entry.0.id.clone(), entry);
        }
    }

    /// Returns what can go out now, by way, and when to look again.
    fn due(&self, now: Timestamp, busy: &BTreeSet<Way>) -> (BTreeMap<Way, Vec<Arc<Delivery>>>, Option<Timestamp>) {
        let state = self.lock();
        let mut order: Vec<&Arc<Delivery>> = state.waiting.values().map(|(delivery, _)| delivery).collect();
        order.sort_by_key(|delivery| (delivery.weight == Weight::Reminder, delivery.queued_at, &delivery.id));
        let (mut due, mut next) = (BTreeMap::<Way, Vec<Arc<Delivery>>>::new(), None::<Timestamp>);
        let mut waits: BTreeSet<String> = BTreeSet::new();
        for delivery in order {
            let way = way_of(&delivery.channel);
            if busy.contains(&way) {
                continue;
            }
            let closed_until = state.closed.get(&way).map_or(Timestamp(0), |closed| closed.until);
            let at = delivery.next_at.max(closed_until);
            // The end of an episode does not overtake its beginning at the same recipient.
            if at <= now && (waits.is_empty() || !waits.contains(&thread(delivery))) {
                let round = due.entry(way).or_default();
                if round.len() < MAX_ROUND {
                    round.push(delivery.clone());
                }
            } else {
                if delivery.attempts < MAX_WAIT_FOR_THREAD {
                    waits.insert(thread(delivery));
                }
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        (due, next)
    }

    /// Drops what is too old, and what is too much.
    async fn give_up_old(&self, now: Timestamp) {
        let mut batch = Batch::new();
        let mut gone = Vec::new();
        {
            let state = self.lock();
            let expire = state.ways.pace.expire;
            let (mut count, mut bytes) = (state.waiting.len(), state.waiting.values().map(|(_, size)| size).sum::<usize>());
            for (delivery, size) in state.waiting.values().filter(|(delivery, _)| now.since(delivery.queued_at) > expire) {
                (count, bytes) = (count - 1, bytes - size);
                let why =
                    delivery.last_error.clone().or_else(|| state.closed.get(&way_of(&delivery.channel)).map(|closed| closed.why.clone()));
                tracing::error!(to = ?delivery.channel, subject = delivery.message.subject, why, "given up after {}", print(expire));
                self.count(&way_of(&delivery.channel), "expired");
                gone.push(delivery.id.clone());
            }
            if count > MAX_WAITING.0 || bytes > MAX_WAITING.1 {
                let mut order: Vec<_> = state.waiting.values().filter(|(delivery, _)| delivery.weight < Weight::Firing).collect();
                order.sort_by_key(|(delivery, _)| (delivery.weight, delivery.queued_at));
                for (delivery, size) in order {
                    if count <= MAX_WAITING.0 && bytes <= MAX_WAITING.1 {
                        break;
                    }
                    if !gone.contains(&delivery.id) {
                        (count, bytes) = (count - 1, bytes - size);
                        self.metrics.outbox_dropped.inc();
                        tracing::error!(to = ?delivery.channel, subject = delivery.message.subject, "dropped: the outbox is full");
                        gone.push(delivery.id.clone());
                    }
                }
            }
        }
        for id in &gone {
            batch.remove::<Delivery>(id);
        }
        if !gone.is_empty() {
            self.store.commit(batch).await;
            self.lock().waiting.retain(|id, _| !gone.contains(id));
        }
    }

    /// Sends what is due on one way, until the way fails or a stop is asked for.
    async fn round(&self, way: &Way, deliveries: Vec<Arc<Delivery>>, stop: &CancellationToken) {
        let ways = self.lock().ways.clone();
        let mut session: Option<Session> = None;
        let mut failed: BTreeSet<String> = BTreeSet::new();
        for delivery in deliveries {
            if stop.is_cancelled() {
                break;
            }
            if failed.contains(&thread(&delivery)) {
                continue;
            }
            let fate = match &delivery.channel {
                Channel::Email { to } => mail(&ways, &mut session, to, &delivery).await,
                Channel::Webhook { name } => match ways.webhooks.get(name) {
                    Some(config) => post(config, &delivery).await,
                    None => Fate::Rejected(format!("no webhook {name:?} is configured any more")),
                },
            };
            if let Fate::Dead(why) | Fate::Held(why) = &fate {
                let wait = if matches!(fate, Fate::Dead(_)) { ways.pace.knock } else { ways.pace.hold };
                self.close(way, wait, why);
                break;
            }
            if self.lock().closed.remove(way).is_some() {
                tracing::info!(way, "works again: what waited goes out");
            }
            if self.record(way, &ways.pace, &delivery, fate).await {
                failed.insert(thread(&delivery));
            }
        }
        if let Some(session) = session {
            session.quit().await;
        }
    }

    /// Writes down that a way out does not work.
    fn close(&self, way: &Way, wait: Duration, why: &str) {
        self.count(way, "retried");
        let now = tasks::now();
        let mut state = self.lock();
        let known = state.closed.get(way);
        if known.is_none_or(|known| known.why != why) {
            tracing::warn!(way, why, "does not work: everything that goes this way waits");
        }
        let since = known.map_or(now, |known| known.since);
        state.closed.insert(way.clone(), Closed { since, until: now + wait, why: why.to_owned() });
    }

    /// Writes down what became of an attempt on an open way; says whether the delivery still waits.
    async fn record(&self, way: &Way, pace: &Pace, delivery: &Delivery, fate: Fate) -> bool {
        let now = tasks::now();
        let tried = delivery.attempts as usize;
        let paced = pace.retries.get(tried).or(pace.retries.last()).copied().unwrap_or(pace.hold);
        let (why, again) = match fate {
            Fate::Sent => (None, None),
            Fate::Refused(why) => (Some(why), pace.refused.get(tried).copied()),
            Fate::Rejected(why) => (Some(why), None),
            Fate::Message(why) | Fate::Held(why) | Fate::Dead(why) => (Some(why), Some(pace.hold)),
            Fate::Unknown(why) => {
                self.metrics.possible_duplicates.inc();
                (Some(why), Some(paced))
            }
            Fate::Later(why) => {
                let young = now.since(delivery.queued_at) < pace.first_hour;
                (Some(why), Some(if young { paced.min(pace.greylist) } else { paced }))
            }
        };
        let recipient = match &delivery.channel {
            Channel::Email { to } => Address::parse(to).map_or_else(|| to.clone(), |address| address.address),
            Channel::Webhook { name } => format!("webhook {name}"),
        };
        let subject = &delivery.message.subject;
        let mut batch = Batch::new();
        match (why, again) {
            (why, None) => {
                self.count(way, if why.is_none() { "sent" } else { "rejected" });
                batch.remove::<Delivery>(&delivery.id);
                self.store.commit(batch).await;
                let mut state = self.lock();
                state.waiting.remove(&delivery.id);
                match why {
                    None => {
                        tracing::info!(to = recipient, subject, "delivered");
                        state.refused.remove(&recipient);
                    }
                    Some(why) => {
                        tracing::error!(to = recipient, subject, why, "refused for good: this one is not delivered");
                        if state.refused.len() < MAX_REFUSED || state.refused.contains_key(&recipient) {
                            let since = state.refused.get(&recipient).map_or(now, |refusal| refusal.since);
                            state.refused.insert(recipient, Refusal { since, why });
                        }
                    }
                }
                false
            }
            (why, Some(wait)) => {
                self.count(way, "retried");
                let mut delivery = delivery.clone();
                tracing::warn!(to = recipient, subject, why, "not delivered yet");
                delivery.attempts += 1;
                delivery.next_at = now + spread(wait, &delivery);
                delivery.last_error = why;
                batch.put(&delivery);
                self.store.commit(batch).await;
                if let Some((known, _)) = self.lock().waiting.get_mut(&delivery.id) {
                    *known = Arc::new(delivery);
                }
                true
            }
        }
    }

    fn count(&self, way: &Way, outcome: &'static str) {
        let integration = if way.is_some() { "webhook" } else { "email" };
        self.metrics.deliveries.get_or_create(&ByDelivery { integration, outcome }).inc();
    }

    fn measure(&self, now: Timestamp) {
        self.metrics.outbox_depth.set(i64::try_from(self.depth()).unwrap_or(i64::MAX));
        self.metrics.outbox_oldest_age.set(self.oldest_age(now).as_secs_f64());
    }
}

/// Returns what must stay in order: one thread at one recipient.
fn thread(delivery: &Delivery) -> String {
    format!("{:?} {}", delivery.channel, delivery.message.references.first().unwrap_or(&delivery.message.message_id))
}

/// Spreads a wait by ±20 %, so that many deliveries that failed at once do not come back at once.
fn spread(wait: Duration, delivery: &Delivery) -> Duration {
    let hash = crc32fast::hash(format!("{}/{}", delivery.id, delivery.attempts).as_bytes());
    wait.mul_f64(0.8 + 0.4 * f64::from(hash) / f64::from(u32::MAX))
}

/// Sends one mail, over the round's connection if that still stands.
async fn mail(ways: &Ways, session: &mut Option<Session>, to: &str, delivery: &Delivery) -> Fate {
    let Some(smtp) = &ways.smtp else { return Fate::Held("no relay is configured under notify.smtp".to_owned()) };
    let (envelope, message) = match compose(&ways.author, to, delivery) {
        Ok(composed) => composed,
        Err(error) => return Fate::Rejected(error.to_string()),
    };
    loop {
        let reused = session.is_some();
        let mut open = match session.take() {
            Some(open) => open,
            None => match smtp.relay(ways.limits) {
                Err(why) => return Fate::Held(why),
                Ok(relay) => match Session::open(&relay).await {
                    Err(error) => return fate(&error),
                    Ok(open) => open,
                },
            },
        };
        let sent = open.send(&envelope, &message).await;
        if open.is_usable() {
            *session = Some(open);
        }
        match sent {
            Ok(_) => return Fate::Sent,
            // Many relays end a connection after some mails; that one is over does not mean that the relay is dead.
            Err(error) if reused && error.verdict() == Verdict::Dead => {}
            Err(error) => return fate(&error),
        }
    }
}

fn fate(error: &SmtpError) -> Fate {
    let why = chain(error);
    match error.verdict() {
        Verdict::Dead => Fate::Dead(why),
        Verdict::Held => Fate::Held(why),
        Verdict::Later => Fate::Later(why),
        Verdict::Never => Fate::Refused(why),
        Verdict::Message => Fate::Message(why),
        Verdict::Unknown => Fate::Unknown(why),
    }
}
