//! Asks RabbitMQ: its queues and their consumers, whether it takes messages, its alarms and limits.
//!
//! What can be asked over AMQP alone is asked there, over the two standing connections of [`crate::client::amqp`]:
//! passive declares over the one that never publishes, and over the other a message that no queue takes, which the
//! broker gives back, or answers with `connection.blocked` and its reason. Alarms, memory, disk and file descriptors
//! come from the plugin `rabbitmq_prometheus` or from the management API, where one of them is configured.
//!
//! The names are those of `rabbitmq_prometheus`. `rabbitmq_up` says whether the broker answers: a queue that is missing
//! or a memory alarm fails the run and leaves it at 1. A queue without consumers fails no run, it is a metric and an
//! alert: what is wrong then is wrong with the consumers.

mod sources;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::http::{Host, trust};
use super::{Planned, Probe, Recorder, Shared};
use crate::client::amqp::{AmqpError, Broker, Handshake, Link, Properties, Publisher, Settings};
use crate::client::http::Url;
use crate::client::net::{Endpoint, NetError, Trust};
use crate::model::{Failure, Family, Reason, Sight};
use crate::tasks::Tasks;

static UP: Family = Family::gauge("rabbitmq_up", "Whether RabbitMQ let Proctor in and answered over AMQP");
static START: Family = Family::gauge(
    "rabbitmq_connection_start_seconds",
    "From the open connection to the broker's first bytes, when Proctor last connected; long while it starts or is overloaded",
);
static BUILD: Family = Family::gauge("rabbitmq_build_info", "Always 1; the label is the version of RabbitMQ");
static READY: Family =
    Family::gauge("rabbitmq_queue_messages_ready", "Messages that no consumer has taken yet, by passive declare of the queue");
static CONSUMERS: Family = Family::gauge("rabbitmq_queue_consumers", "Consumers of a queue, by passive declare of it");
static MISSING: Family = Family::gauge("rabbitmq_queue_missing", "Whether a queue that should be there does not exist");
static BLOCKED: Family =
    Family::gauge("rabbitmq_publish_blocked", "Whether RabbitMQ takes nothing from publishers, by its reason: memory, disk or other");
static PUBLISH: Family =
    Family::gauge("rabbitmq_publish_duration_seconds", "How long a message took to the broker and, as nobody takes it, back");
static SOURCE: Family = Family::gauge("rabbitmq_source_up", "Whether a source of the other metrics answered: amqp, prometheus, management");

/// Where the message goes that no queue takes. Should one of this name exist, it expires there at once.
const NOWHERE: &str = "proctor.canary.nowhere";

crate::config_struct! {
    /// Asks RabbitMQ: its queues and their consumers, whether it takes messages, its alarms and limits. The user it
    /// needs stands in `docs/probes/rabbitmq.md`.
    pub struct RabbitmqConfig {
        /// Its host.
        host: Host = "127.0.0.1",
        /// Its port for AMQP; with TLS usually 5671.
        port: u16 = "5672",
        /// Whether the connection is encrypted.
        tls: bool = "false",
        /// File with the certificates of the authorities that are trusted instead of the host's own.
        ca_file: Option<PathBuf>,
        /// The virtual host.
        vhost: String = "/",
        /// The user: best one of Proctor's own.
        username: String = "guest",
        /// File with its password, read at every connection. Without it the password is the user's name.
        password_file: Option<PathBuf>,
        /// Queues that must exist and be consumed.
        queues: Vec<String> = "[]",
        /// Whether in every run a message is published that no queue takes, to see whether the broker takes any.
        publish: bool = "true",
        /// The plugin `rabbitmq_prometheus`, such as `http://127.0.0.1:15692`.
        prometheus: Option<Url>,
        /// The management API, such as `http://127.0.0.1:15672`, asked as the same user; only where `prometheus` does
        /// not answer.
        management: Option<Url>,
    }
}

/// Builds the broker, which all probes of it share; connects to nothing.
///
/// # Errors
/// A password or a file of authorities that cannot be read.
pub fn broker(config: &RabbitmqConfig, tasks: Tasks) -> Result<Broker, String> {
    let trust = trust(config.ca_file.as_ref())?;
    let settings = Settings {
        endpoint: Endpoint::Tcp { host: config.host.name().to_owned(), port: config.port },
        tls: config.tls.then_some(trust),
        vhost: config.vhost.clone(),
        username: config.username.clone(),
        password_file: config.password_file.clone(),
    };
    settings.password().map_err(|error| format!("password_file: {error}"))?;
    Ok(Broker::new(settings, tasks))
}

/// Builds the one target.
///
/// # Errors
/// More than 200 queues, a file of authorities that cannot be read.
pub fn plan(config: &RabbitmqConfig, name: &str, shared: &Shared) -> Result<Vec<Planned>, String> {
    const MAX_QUEUES: usize = 200;
    if config.queues.len() > MAX_QUEUES {
        return Err(format!("queues: expected at most {MAX_QUEUES}, found {}", config.queues.len()));
    }
    Ok(Planned::only(Rabbitmq {
        broker: shared.broker(name)?,
        trust: trust(config.ca_file.as_ref())?,
        config: config.clone(),
        publisher: Mutex::default(),
        said: AtomicU8::new(u8::MAX),
    }))
}

struct Rabbitmq {
    broker: Broker,
    trust: Trust,
    config: RabbitmqConfig,
    /// Stays open from run to run; taken out while it is used.
    publisher: Mutex<Option<Publisher>>,
    /// Which sources answered when that was last said, one bit each.
    said: AtomicU8,
}

impl Probe for Rabbitmq {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }
}

/// What the user may not see, and what would let it.
#[derive(Default)]
struct Unseen {
    missing: Vec<String>,
    remedies: Vec<String>,
}

impl Unseen {
    fn add(&mut self, missing: String, remedy: String) {
        self.missing.push(missing);
        if !self.remedies.contains(&remedy) {
            self.remedies.push(remedy);
        }
    }
}

impl Rabbitmq {
    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let mut unseen = Unseen::default();
        let observer = self.broker.observer(&mut |reason, what| rec.waiting(reason, what)).await.map_err(|error| self.failure(&error))?;
        record_handshake(rec, observer.handshake());
        let missing = self.queues(rec, &observer, &mut unseen).await?;
        let blocked = if self.config.publish { self.publish(rec, &mut unseen).await } else { Ok(()) };
        if let Err(failure) = &blocked
            && failure.reason != Reason::Blocked
        {
            return blocked;
        }
        // What may still fail says nothing about whether the broker works.
        rec.set(&UP, 1.0);
        let mut answered = 1;
        rec.set_with(&SOURCE, &[("source", "amqp")], 1.0);
        let vhost = &self.config.vhost;
        if let Some(url) = &self.config.prometheus {
            let source = async |rec: &mut Recorder| sources::prometheus(rec, url, &self.trust, vhost, &self.config.queues).await;
            let outcome = sources::within(rec, url, source).await;
            answered |= u8::from(outcome.is_ok()) << 1;
            rec.set_with(&SOURCE, &[("source", "prometheus")], f64::from(u8::from(outcome.is_ok())));
            if let Err(why) = outcome {
                unseen.add(why, "run rabbitmq-plugins enable rabbitmq_prometheus, or leave the key prometheus out".to_owned());
            }
        }
        if let Some(url) = self.config.management.as_ref().filter(|_| answered & 2 == 0) {
            let source =
                async |rec: &mut Recorder| sources::management(rec, url, &self.trust, self.broker.settings(), &self.config.queues).await;
            let outcome = sources::within(rec, url, source).await;
            answered |= u8::from(outcome.is_ok()) << 2;
            rec.set_with(&SOURCE, &[("source", "management")], f64::from(u8::from(outcome.is_ok())));
            if let Err(why) = outcome {
                let user = &self.config.username;
                unseen.add(why, format!("run rabbitmqctl set_user_tags {user} monitoring, or leave the key management out"));
            }
        }
        self.say(answered);
        if !unseen.missing.is_empty() {
            rec.sight(Sight::Partial { missing: unseen.missing.join("; "), remedy: unseen.remedies.join("; ") });
        }
        blocked.and(missing)
    }

    /// Says which sources answer, at the start and when it changes.
    fn say(&self, answered: u8) {
        if self.said.swap(answered, Ordering::Relaxed) != answered {
            let names = ["amqp", "prometheus", "management"];
            let by = |set: bool| {
                let of = names.iter().enumerate().filter(|(bit, _)| (answered >> bit & 1 == 1) == set);
                of.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
            };
            tracing::info!(broker = %self.broker.settings().endpoint, seen_by = by(true), not_by = by(false), "what RabbitMQ is seen by");
        }
    }

    /// Records every queue. Returns what is missing; what may not be seen goes to `unseen`.
    async fn queues(&self, rec: &mut Recorder, observer: &Link, unseen: &mut Unseen) -> Result<Result<(), Failure>, Failure> {
        let Settings { endpoint, vhost, username, .. } = self.broker.settings();
        let mut missing = Vec::new();
        for queue in &self.config.queues {
            rec.waiting(Reason::AnswerTimeout, format!("{endpoint}: waiting for the answer about queue {queue:?}"));
            let labels = [("vhost", vhost.as_str()), ("queue", queue.as_str())];
            match observer.declare_passive(queue).await {
                Ok(declared) => {
                    rec.set_with(&MISSING, &labels, 0.0);
                    rec.set_with(&READY, &labels, declared.ready.into());
                    rec.set_with(&CONSUMERS, &labels, declared.consumers.into());
                    if declared.consumers == 0 {
                        rec.evidence(format!("queue {queue:?} has no consumer, and {} messages wait in it", declared.ready));
                    }
                }
                Err(error) => match error.code() {
                    Some(404) => {
                        rec.set_with(&MISSING, &labels, 1.0);
                        missing.push(format!("{queue:?}"));
                    }
                    Some(403) => unseen.add(
                        format!("queue {queue:?}: user {username:?} may not see it"),
                        format!("add it to the read pattern of user {username:?} in vhost {vhost:?} (see rabbitmqctl set_permissions)"),
                    ),
                    // It is there, and is another connection's own: its numbers are not ours to see.
                    Some(405) => rec.set_with(&MISSING, &labels, 0.0),
                    _ => return Err(self.failure(&error)),
                },
            }
        }
        if missing.is_empty() {
            return Ok(Ok(()));
        }
        let what = format!("{endpoint}: vhost {vhost:?} has no queue {}: whoever declares it has not run since", missing.join(", "));
        Ok(Err(Failure::new(Reason::Missing, what)))
    }

    /// Publishes a message that no queue takes, and waits until it comes back.
    async fn publish(&self, rec: &mut Recorder, unseen: &mut Unseen) -> Result<(), Failure> {
        let Settings { endpoint, vhost, username, .. } = self.broker.settings();
        match self.published(rec).await {
            Ok(took) => {
                record_blocked(rec, "");
                rec.set(&PUBLISH, took.as_secs_f64());
                Ok(())
            }
            Err(AmqpError::Blocked(why)) => {
                record_blocked(rec, &why);
                let text: String = why.chars().take(100).collect();
                let what = format!("{endpoint}: RabbitMQ takes nothing from publishers: {text}. Every task that is sent waits meanwhile");
                Err(Failure::new(Reason::Blocked, what))
            }
            Err(error) if error.code() == Some(403) => {
                unseen.add(
                    format!("whether publishing is blocked: user {username:?} may not publish to the default exchange"),
                    format!("add ^amq\\.default$ to the write pattern of user {username:?} in vhost {vhost:?} (see rabbitmqctl set_permissions)"),
                );
                Ok(())
            }
            Err(error) => Err(self.failure(&error)),
        }
    }

    async fn published(&self, rec: &mut Recorder) -> Result<std::time::Duration, AmqpError> {
        let mut place = self.publisher.lock().await;
        // It belongs to the connection that was the canary then.
        let standing = place.take().filter(|publisher| publisher.ended().is_none());
        let mut publisher = match standing {
            Some(publisher) => publisher,
            None => self.broker.canary(&mut |reason, what| rec.waiting(reason, what)).await?.publisher().await?,
        };
        rec.waiting(
            Reason::AnswerTimeout,
            format!("{}: published a message that no queue takes, waiting for it to come back", self.broker.settings().endpoint),
        );
        let properties = Properties { expiration: Some("1".to_owned()), ..Properties::default() };
        let begin = Instant::now();
        let outcome = publisher.publish("", NOWHERE, &properties, b"").await;
        // A refusal closed its channel; a block leaves it as it is.
        if matches!(outcome, Ok(_) | Err(AmqpError::Blocked(_))) {
            *place = Some(publisher);
        }
        outcome.map(|_| begin.elapsed())
    }

    /// Says what an error means, in words for this broker.
    fn failure(&self, error: &AmqpError) -> Failure {
        let Settings { endpoint, vhost, username, .. } = self.broker.settings();
        let inner = match error {
            AmqpError::Again { error, .. } => error,
            error => error,
        };
        let hint = match (inner, error.reason()) {
            (AmqpError::Net(net), _) if matches!(**net, NetError::Resolve { .. } | NetError::Connect { .. }) => {
                return Failure::new(error.reason(), error.to_string());
            }
            (AmqpError::Closed { .. }, Reason::Auth) => format!(": expected the broker to take user {username:?} with its password"),
            (_, Reason::Missing) => format!(": expected the vhost {vhost:?}"),
            (_, Reason::Forbidden) => format!(": run rabbitmqctl set_permissions -p {vhost} {username} '^$' '^amq\\.default$' '^$'"),
            (AmqpError::Eof { during: "connection.start" }, _) => ": it is still starting, or what listens there is no RabbitMQ".to_owned(),
            _ => String::new(),
        };
        Failure::new(error.reason(), format!("{endpoint}: {error}{hint}"))
    }
}

fn record_handshake(rec: &mut Recorder, handshake: &Handshake) {
    rec.set(&START, handshake.start.as_secs_f64());
    rec.set_with(&BUILD, &[("rabbitmq_version", &handshake.version)], 1.0);
}

/// Records the block by its reasons, RabbitMQ's `low on memory`, `low on disk`, or both; empty for none.
fn record_blocked(rec: &mut Recorder, why: &str) {
    let mut known = false;
    for reason in ["memory", "disk"] {
        known |= why.contains(reason);
        rec.set_with(&BLOCKED, &[("reason", reason)], f64::from(u8::from(why.contains(reason))));
    }
    rec.set_with(&BLOCKED, &[("reason", "other")], f64::from(u8::from(!known && !why.is_empty())));
}
