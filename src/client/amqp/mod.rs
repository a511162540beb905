//! AMQP 0-9-1 as a client of one RabbitMQ, bounded against whatever answers there.
//!
//! # Contract
//!
//! A [`Broker`] is one broker as one user sees it. It is cheap to clone, and all probes of that broker share one (the
//! probe `rabbitmq` makes it; see [`crate::probe::Shared`]). It holds at most two standing connections, opened when
//! first needed and opened again, with [backoff](BACKOFF_MAX), when next needed:
//!
//! - [`Broker::observer`] gives a [`Link`] that never publishes, so that it works through a memory or disk alarm:
//!   passive declares, queues of our own, consuming (answers, events).
//! - [`Broker::canary`] gives a [`Canary`], from which a [`Publisher`] comes. The broker stops to read from it while it
//!   blocks publishers; everything asked of it then fails at once with [`AmqpError::Blocked`] and the broker's reason,
//!   and works again, over the same connection, when the broker says so.
//!
//! **Waiting is the caller's**: a call ends when its answer comes or when the caller drops it, as the scheduler does at
//! a run's deadline. A call that is dropped unanswered means that the connection hangs: its socket is dropped, and the
//! next call connects anew. `told` is called with what is waited for (as [`crate::probe`]'s recorder takes it), so
//! that the scheduler can say it. No call waits longer than [`RPC_LIMIT`].
//!
//! **Asking costs nothing**: nothing is opened per run. [`Link::declare_passive`] uses one channel, opened anew after a
//! 404 or 403 (which close it, and only it). A [`Channel`] is closed when it and all its [`Consumer`]s are
//! dropped.
//!
//! **Queues of our own** ([`Channel::own_queue`]) are exclusive, named by the broker, and go with the connection: after
//! [`AmqpError`] of any kind from a [`Consumer`], begin again from [`Broker::observer`].
//!
//! How celery and markup use it:
//!
//! ```ignore
//! // pidbox: the answer comes to a queue of the observer's, the question goes out over the canary.
//! let link = broker.observer(&mut |reason, what| rec.waiting(reason, what)).await?;
//! let channel = link.channel().await?;
//! let queue = channel.own_queue(&[("x-message-ttl", Value::Int(5000))]).await?;
//! let mut answers = channel.consume(&queue).await?;
//! let mut publisher = broker.canary(told).await?.publisher().await?;
//! publisher.publish("celery.pidbox", "", &properties, body).await?; // Err(Refused 404): no worker ever connected
//! let answer = answers.next().await?;                               // headers: ticket; body: JSON
//! // celeryev: channel.bind(&queue, "celeryev", "#"), then answers.several() without end; answers.missed() counts losses.
//! // direct reply-to: consume DIRECT_REPLY on the publisher itself, then publish with reply_to: DIRECT_REPLY.
//! let mut replies = publisher.consume(DIRECT_REPLY).await?;
//! let routed = publisher.publish("", "markdown2html_queue", &properties, body).await?; // Routed::Nowhere: no such queue
//! ```
//!
//! # Bounds
//!
//! Frames: [`FRAME_MAX`]. Messages: [`MAX_BODY`]; what is larger is counted as missed. A consumer that is not
//! read holds [`MAX_MESSAGES`] messages of together [`MAX_QUEUED`] bytes; what is more is missed. Channels:
//! [`CHANNELS`]. Unanswered questions: [`QUESTIONS`].
//!
//! # Why not lapin
//!
//! lapin 4.12.3 follows nested field tables without a bound: a frame of 7.5 KiB with 1,500 arrays in one another, in
//! `connection.start` or in the headers of any message that anybody publishes to a queue of ours, overflows the stack
//! of its I/O thread and aborts the process. To keep such a frame from it, a filter would have to read every table
//! itself, which is most of a client. Besides, it takes a thread per connection that no deadline ends, and queues what
//! comes for a consumer without limit.

mod driver;
mod handshake;
mod link;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::net::{Endpoint, NetError, Trust, chain};
use super::secret;
use crate::model::duration::print_measured;
use crate::model::{Reason, Secret};
use crate::tasks::Tasks;

pub use driver::{CHANNELS, Hasty, MAX_BODY, MAX_MESSAGES, MAX_QUEUED, QUESTIONS, REST, RPC_LIMIT};
pub use handshake::Handshake;
pub use link::{Canary, Channel, Consumer, Declared, Link, Message, Publisher, Routed};
pub use wire::{FRAME_MAX, MAX_DEPTH, Properties, Table, Value};

/// The queue name of direct reply-to (<https://www.rabbitmq.com/docs/direct-reply-to>).
pub const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to";

/// After a connection failed, the next attempt is at least 250 ms, 500 ms, … and at most this later; until then its
/// error is given again. Shorter than any usual interval: a probe's every run finds out how it is now.
pub const BACKOFF_MAX: Duration = Duration::from_secs(4);
const BACKOFF_MIN: Duration = Duration::from_millis(250);

/// What is waited for while another probe connects, and the end of an error that is given again.
const OTHERS_ATTEMPT: &str = "waiting for another probe's attempt to connect";
const NEXT_ATTEMPT: &str = "the next attempt is due soon";

/// Says whether a probe that tells this came to nothing because it waited for another one's attempt to connect.
pub fn waits_for_another(told: &str) -> bool {
    told.contains(OTHERS_ATTEMPT)
}

/// Cuts off how long ago an attempt failed whose error was given again.
pub fn first_told(told: &str) -> &str {
    let again = told.find(NEXT_ATTEMPT).and_then(|at| told[..at].rfind(" ("));
    &told[..again.unwrap_or(told.len())]
}

/// Takes what is waited for, and the reason to give if it does not come.
pub type Told<'a> = &'a mut (dyn FnMut(Reason, String) + Send);

/// Which broker, and as whom.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Encrypts, where given, for a server that these trust; the name is the endpoint's host.
    pub tls: Option<Trust>,
    /// The virtual host.
    pub vhost: String,
    /// The user.
    pub username: String,
    /// Its password, read at every connection; without it the password is the user's name, as `guest` has it.
    pub password_file: Option<PathBuf>,
}

/// What went wrong with a broker.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AmqpError {
    /// The password cannot be read.
    #[error("{0}")]
    Secret(String),
    /// Resolving, connecting, TLS, reading.
    #[error("{}", chain(&**.0))]
    Net(Arc<NetError>),
    /// What came is not AMQP 0-9-1, or not what the protocol allows then.
    #[error("{0}")]
    Protocol(String),
    /// The broker closed the connection while `during` was awaited, and said why.
    #[error("the broker closed the connection at {during}: {code} {text}")]
    Closed {
        /// What we waited for.
        during: &'static str,
        /// Its reply code (AMQP 0-9-1 §1.2).
        code: u16,
        /// Its reason.
        text: String,
    },
    /// The broker closed the socket while `during` was awaited, and said nothing.
    #[error("the broker closed the connection at {during} without a reason")]
    Eof {
        /// What we waited for.
        during: &'static str,
    },
    /// The broker refused this request by closing its channel: 403, 404, 405 or 406.
    #[error("the broker refused {what}: {}", refusal(*code, text))]
    Refused {
        /// What was asked for.
        what: String,
        /// Its reply code.
        code: u16,
        /// Its reason.
        text: String,
    },
    /// The broker takes nothing from publishers now.
    #[error("the broker takes no messages: {0}")]
    Blocked(String),
    /// A question was not answered; the socket was dropped.
    #[error("no answer about {0}: the connection hangs and was dropped")]
    Hung(String),
    /// Nothing came for two heartbeats.
    #[error("nothing came for two heartbeats: the connection is dead")]
    Silent,
    /// More is asked at once than [`QUESTIONS`] or [`CHANNELS`] allow.
    #[error("too much is asked of the broker at once")]
    Busy,
    /// The queue of a consumer is gone.
    #[error("the broker ended the consumer: its queue was deleted")]
    Cancelled,
    /// Proctor stops, or took a new configuration.
    #[error("the connection was ended by Proctor itself")]
    Ended,
    /// An attempt to connect failed a moment ago, and the next is not due.
    #[error("{error} ({} ago; {NEXT_ATTEMPT})", print_measured(*.since))]
    Again {
        /// What failed.
        error: Box<AmqpError>,
        /// How long ago.
        since: Duration,
    },
}

/// Says a reply code and the broker's own text.
fn refusal(code: u16, text: &str) -> String {
    let words = match code {
        403 => "not permitted",
        404 => "there is none",
        405 => "it is another connection's own",
        406 => "it is there, and is not like that",
        _ => return format!("{code} {text}"),
    };
    format!("{words} ({code} {text})")
}

impl AmqpError {
    /// Returns the reason of the closed set.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Secret(_) => Reason::Auth,
            Self::Ended => Reason::Internal,
            Self::Net(error) => error.reason(),
            Self::Protocol(_) => Reason::Protocol,
            // The texts are RabbitMQ's (rabbit_reader.erl, rabbit_access_control.erl); the codes alone do not tell.
            Self::Closed { code, text, .. } => match code {
                403 => Reason::Auth,
                402 => Reason::Missing,
                530 if text.contains("not found") => Reason::Missing,
                530 if text.contains("limit") => Reason::Saturated,
                530 => Reason::Forbidden,
                541 if text.contains("is down") => Reason::Starting,
                501..=505 => Reason::Protocol,
                506 => Reason::Saturated,
                _ => Reason::Unavailable,
            },
            Self::Eof { .. } => Reason::Eof,
            Self::Refused { code, .. } => match code {
                403 => Reason::Forbidden,
                404 => Reason::Missing,
                406 => Reason::Mismatch,
                _ => Reason::Unavailable,
            },
            Self::Blocked(_) => Reason::Blocked,
            Self::Hung(_) | Self::Silent => Reason::AnswerTimeout,
            Self::Busy => Reason::Saturated,
            Self::Cancelled => Reason::Missing,
            Self::Again { error, .. } => error.reason(),
        }
    }

    /// Returns the reply code of a refused request.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

impl From<NetError> for AmqpError {
    fn from(error: NetError) -> Self {
        Self::Net(Arc::new(error))
    }
}

/// One broker as one user sees it. Clones share its connections. They end, with a goodbye, when their stage is stopped,
/// or with the last of the clones, links, channels and consumers.
#[derive(Clone)]
pub struct Broker(Arc<Shared>);

struct Shared {
    settings: Settings,
    observer: Mutex<Slot>,
    canary: Mutex<Slot>,
    tasks: Tasks,
}

/// A place for one connection.
#[derive(Default)]
struct Slot {
    link: Option<Link>,
    failures: u32,
    failed: Option<(Instant, AmqpError)>,
}

impl Broker {
    /// Takes the settings, and the stage that its connections belong to; connects to nothing yet.
    pub fn new(settings: Settings, tasks: Tasks) -> Self {
        Self(Arc::new(Shared { settings, observer: Mutex::default(), canary: Mutex::default(), tasks }))
    }

    /// Returns which broker, and as whom.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Returns the connection that never publishes.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn observer(&self, told: Told<'_>) -> Result<Link, AmqpError> {
        self.link(&self.0.observer, "proctor observer", told).await
    }

    /// Returns the connection that never publishes if it stands now; connects to nothing and waits for nobody. For who
    /// listens all the time, and leaves it to the runs of probes to connect and to say why that fails.
    pub fn standing_observer(&self) -> Option<Link> {
        self.0.observer.try_lock().ok()?.link.clone().filter(|link| link.ended().is_none())
    }

    /// Returns the connection that publishes.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn canary(&self, told: Told<'_>) -> Result<Canary, AmqpError> {
        self.link(&self.0.canary, "proctor canary", told).await.map(Canary::over)
    }

    async fn link(&self, slot: &Mutex<Slot>, name: &'static str, told: Told<'_>) -> Result<Link, AmqpError> {
        let settings = &self.0.settings;
        told(Reason::AnswerTimeout, format!("{}: {OTHERS_ATTEMPT}", settings.endpoint));
        let mut slot = slot.lock().await;
        if let Some(link) = slot.link.as_ref().filter(|link| link.ended().is_none()) {
            told(Reason::AnswerTimeout, format!("{}: waiting for an answer", settings.endpoint));
            return Ok(link.clone());
        }
        slot.link = None;
        if let Some((at, error)) = &slot.failed {
            let since = at.elapsed();
            if since < BACKOFF_MIN.saturating_mul(1 << slot.failures.saturating_sub(1).min(6)).min(BACKOFF_MAX) {
                return Err(AmqpError::Again { error: Box::new(error.clone()), since });
            }
        }
        match Box::pin(handshake::connect(settings, name, told)).await {
            Ok((link, driver)) => {
                self.0.tasks.spawn(format!("{name} of {}", settings.endpoint), driver.drive(self.0.tasks.token()));
                *slot = Slot { link: Some(link.clone()), failures: 0, failed: None };
                told(Reason::AnswerTimeout, format!("{}: waiting for an answer", settings.endpoint));
                Ok(link)
            }
            Err(error) => {
                slot.failures = slot.failures.saturating_add(1);
                slot.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

impl Settings {
    /// Reads the password.
    ///
    /// # Errors
    /// [`AmqpError::Secret`].
    pub fn password(&self) -> Result<Secret, AmqpError> {
        match &self.password_file {
            None => Ok(Secret::new(self.username.clone())),
            Some(path) => secret::read(path).map_err(|error| AmqpError::Secret(chain(&error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shared_connection_gives_again_is_known_as_that() {
        let error = Box::new(AmqpError::Closed { during: "connection.open", code: 403, text: "no (such) user".to_owned() });
        let again = AmqpError::Again { error: error.clone(), since: Duration::from_millis(300) };
        assert_eq!(first_told(&again.to_string()), error.to_string());
        assert_eq!(first_told(&error.to_string()), error.to_string());
        assert!(!waits_for_another(&again.to_string()) && waits_for_another(&format!("rabbit:5672: {OTHERS_ATTEMPT}")));
    }
}
