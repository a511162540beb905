//! Asks a service that answers questions from a queue, such as the one that renders markup, or the same over HTTP.
//!
//! Over RabbitMQ it is a call with direct reply-to (<https://www.rabbitmq.com/docs/direct-reply-to>), as
//! `courselib/github_markdown.py` of CourSys makes one: body `{"md": "…"}` to the default exchange with the queue as the
//! key, properties `reply_to`, `correlation_id` and `expiration`; the answer `{"html": "…"}` comes with the same
//! `correlation_id`. Nothing is declared and nothing is left: a question that nobody takes expires.
//!
//! Where the site has something to fall back on, an outage of such a service is silent: pages only become slower.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use regex::Regex;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::http::{self, Expected};
use super::tcp::beginning;
use super::{Planned, Probe, Recorder, Shared, failure_of_broker};
use crate::client::amqp::{AmqpError, Broker, Consumer, DIRECT_REPLY, Properties, Publisher, Routed, Settings};
use crate::client::http::{Method, Request, Seen, Url};
use crate::client::net::Trust;
use crate::model::decode::Spanned;
use crate::model::duration::{print, print_measured};
use crate::model::{Failure, Family, Reason, Sight};

static UP: Family = Family::gauge("markup_up", "Whether the service gave the right answer, in time or slowly");
static TOOK: Family = Family::gauge("markup_request_duration_seconds", "From the question to the whole answer");
static READY: Family = Family::gauge("markup_queue_messages_ready", "Questions that wait in the service's queue");
static CONSUMERS: Family = Family::gauge("markup_queue_consumers", "Consumers of the service's queue");

/// The largest question, in bytes, and the largest answer over HTTP; over AMQP it is the client's own limit.
const MAX_PAYLOAD: usize = 64 * 1024;
const MAX_ANSWER: usize = 1 << 20;
/// The longest name of a queue (AMQP 0-9-1 §3.1.4).
const MAX_QUEUE: usize = 255;
/// What begins the correlation ids of all our questions.
const OURS: &str = "proctor-";

crate::config_struct! {
    /// Asks a service that answers questions from a queue, such as the one that renders markup, or the same over HTTP.
    /// The defaults are those of CourSys's markup service.
    pub struct MarkupConfig {
        /// The `rabbitmq` probe over whose connections it is asked; this probe then depends on it. Either this or `url`.
        via: Option<Spanned<String>>,
        /// Where it is asked by `POST`. Either this or `via`.
        url: Option<Url>,
        /// With `url`: file with the certificates of the authorities that are trusted instead of the host's own.
        ca_file: Option<PathBuf>,
        /// With `via`: the queue that takes the questions.
        queue: String = "markdown2html_queue",
        /// The question.
        payload: String = "'{\"md\": \"*x*\"}'",
        /// What the question is sent as.
        content_type: String = "application/json",
        /// Regular expression that the answer must contain.
        expect: Regex = "<em>x</em>",
        /// An answer that takes longer is right, but slow.
        slow: Duration = "2s",
        /// With `via`: a question that nobody takes within it is dropped by the broker.
        expires: Duration = "5s",
    }
}

/// Builds the one target.
///
/// # Errors
/// Neither or both of `via` and `url`, a question or a header that cannot be sent, a file of authorities that cannot be
/// read.
pub fn plan(config: &MarkupConfig, _: &str, shared: &Shared) -> Result<Vec<Planned>, String> {
    if config.payload.len() > MAX_PAYLOAD {
        return Err(format!("payload: expected at most {MAX_PAYLOAD} bytes, found {}", config.payload.len()));
    }
    if HeaderValue::from_str(&config.content_type).is_err() {
        return Err(format!("content_type: {:?} cannot be sent: it holds characters that HTTP does not allow", config.content_type));
    }
    let way = match (&config.via, &config.url) {
        (Some(via), None) => {
            if config.queue.is_empty() || config.queue.len() > MAX_QUEUE {
                return Err(format!("queue: expected a name of 1 to {MAX_QUEUE} bytes, found {}", config.queue.len()));
            }
            Way::Queue(Box::new(Queue { broker: shared.broker(via)?, standing: Mutex::default(), asked: AtomicU64::new(0) }))
        }
        (None, Some(url)) => {
            let mut request = Request::get(url.clone()).header(CONTENT_TYPE.as_str(), config.content_type.clone());
            request.method = Method::POST;
            request.body = config.payload.clone().into_bytes();
            Way::Http(Box::new(request), http::trust(config.ca_file.as_ref())?)
        }
        (Some(_), Some(_)) => return Err("expected via or url, found both".to_owned()),
        (None, None) => return Err("expected via (the name of a rabbitmq probe) or url, found neither".to_owned()),
    };
    Ok(Planned::only(Markup { config: config.clone(), way }))
}

struct Markup {
    config: MarkupConfig,
    way: Way,
}

enum Way {
    Queue(Box<Queue>),
    Http(Box<Request>, Trust),
}

/// How it is asked over RabbitMQ.
struct Queue {
    broker: Broker,
    /// Stays open from run to run, after one that got no answer too: an answer that comes late says that it is slow.
    standing: Mutex<Option<Standing>>,
    /// Questions so far: the number of the newest is its correlation id.
    asked: AtomicU64,
}

/// A channel that asks, and what comes back over it.
struct Standing {
    publisher: Publisher,
    answers: Consumer,
}

impl Probe for Markup {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let (place, took) = match &self.way {
                Way::Queue(queue) => self.call(rec, queue).await?,
                Way::Http(request, trust) => self.post(rec, request, trust).await?,
            };
            rec.set(&UP, 1.0);
            rec.set(&TOOK, took.as_secs_f64());
            if took > self.config.slow {
                let (slow, took) = (print(self.config.slow), print_measured(took));
                let what = format!("{place}: the right answer took {took}, expected at most {slow}: it is slow, or has more to do than it can");
                return Err(Failure::new(Reason::Backlog, what));
            }
            Ok(())
        }
        .boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }
}

impl Markup {
    /// Asks over HTTP.
    async fn post(&self, rec: &mut Recorder, request: &Request, trust: &Trust) -> Result<(String, Duration), Failure> {
        let begin = Instant::now();
        let answer = http::ask(rec, request, trust, MAX_ANSWER, &mut Seen::default()).await?;
        let took = begin.elapsed();
        http::judge_status(&request.url, &answer, &[Expected::Class(2)])?;
        self.judge(&request.url.to_string(), &answer.body)?;
        Ok((request.url.to_string(), took))
    }

    /// Says whether an answer is right.
    fn judge(&self, place: &str, answer: &[u8]) -> Result<(), Failure> {
        let expect = &self.config.expect;
        if expect.is_match(&String::from_utf8_lossy(answer)) {
            return Ok(());
        }
        let what = format!("{place}: expected an answer that matches {expect}, found {}", beginning(answer));
        Err(Failure::new(Reason::Mismatch, what))
    }

    /// Asks over the queue.
    async fn call(&self, rec: &mut Recorder, queue: &Queue) -> Result<(String, Duration), Failure> {
        let Settings { endpoint, vhost, .. } = queue.broker.settings();
        let name = &self.config.queue;
        let place = format!("{endpoint}, queue {name:?}");
        let missing = || {
            let what = format!("{endpoint}: vhost {vhost:?} has no queue {name:?}: the service, which declares it, has not run since the broker started");
            Failure::new(Reason::Missing, what)
        };
        let observer = queue.broker.observer(&mut |reason, what| rec.waiting(reason, what)).await;
        let observer = observer.map_err(|error| failure_of_broker(&queue.broker, &error))?;
        rec.waiting(Reason::AnswerTimeout, format!("{endpoint}: waiting for the answer about queue {name:?}"));
        match observer.declare_passive(name).await {
            Ok(declared) => {
                rec.set(&READY, declared.ready.into());
                rec.set(&CONSUMERS, declared.consumers.into());
                if declared.consumers == 0 {
                    let what = format!("{place}: nobody consumes it (questions that wait: {}): the service does not run, or has lost its connection", declared.ready);
                    return Err(Failure::new(Reason::NoConsumer, what));
                }
            }
            Err(error) => match error.code() {
                Some(404) => return Err(missing()),
                // It can be asked all the same.
                Some(403) => rec.sight(Sight::Partial {
                    missing: format!("whether queue {name:?} has consumers"),
                    remedy: format!("add it to the read pattern of the user in vhost {vhost:?} (see rabbitmqctl set_permissions)"),
                }),
                Some(405) => {}
                _ => return Err(failure_of_broker(&queue.broker, &error)),
            },
        }
        let mut standing = queue.standing.lock().await;
        let asked = self.asked(rec, queue, &mut standing, &place).await;
        match asked {
            Ok((answer, took)) => {
                self.judge(&place, &answer)?;
                Ok((place, took))
            }
            Err(Asked::Nowhere) => Err(missing()),
            Err(Asked::Wrong(failure)) => Err(failure),
            Err(Asked::Broker(error)) => {
                // A block leaves its channel as it is; all else ends it.
                if !matches!(error, AmqpError::Blocked(_)) {
                    *standing = None;
                }
                Err(failure_of_broker(&queue.broker, &error))
            }
        }
    }

    /// Publishes a question and waits for its answer.
    async fn asked(
        &self,
        rec: &mut Recorder,
        queue: &Queue,
        standing: &mut Option<Standing>,
        place: &str,
    ) -> Result<(Vec<u8>, Duration), Asked> {
        // It belongs to the connection that was the canary then.
        if standing.as_ref().is_some_and(|standing| standing.publisher.ended().is_some()) {
            *standing = None;
        }
        let Standing { publisher, answers } = match standing {
            Some(standing) => standing,
            None => {
                let publisher = queue.broker.canary(&mut |reason, what| rec.waiting(reason, what)).await?.publisher().await?;
                let answers = publisher.consume(DIRECT_REPLY).await?;
                standing.insert(Standing { publisher, answers })
            }
        };
        let id = format!("{OURS}{}", queue.asked.fetch_add(1, Ordering::Relaxed));
        let properties = Properties {
            content_type: Some(self.config.content_type.clone()),
            correlation_id: Some(id.clone()),
            reply_to: Some(DIRECT_REPLY.to_owned()),
            expiration: Some(self.config.expires.as_millis().to_string()),
            ..Properties::default()
        };
        rec.waiting(Reason::AnswerTimeout, format!("{place}: waiting until the broker has taken the question"));
        let begin = Instant::now();
        if publisher.publish("", &self.config.queue, &properties, self.config.payload.as_bytes()).await? == Routed::Nowhere {
            return Err(Asked::Nowhere);
        }
        rec.waiting(
            Reason::AnswerTimeout,
            format!("{place}: its consumer has the question and is silent: the service hangs, or failed on it (see its log)"),
        );
        loop {
            let answer = answers.next().await?;
            match answer.properties.correlation_id {
                Some(of) if of == id => return Ok((answer.body, begin.elapsed())),
                Some(of) if of.starts_with(OURS) => rec.waiting(
                    Reason::Backlog,
                    format!("{place}: an earlier question was answered only now, this one not yet: the service is slow, or has more to do than it can"),
                ),
                of => {
                    let found = of.map_or("none".to_owned(), |of| beginning(of.as_bytes()));
                    let what = format!("{place}: expected an answer with the correlation_id of its question, found {found}");
                    return Err(Asked::Wrong(Failure::new(Reason::Mismatch, what)));
                }
            }
        }
    }
}

/// Why there is no answer.
enum Asked {
    Nowhere,
    Wrong(Failure),
    Broker(AmqpError),
}

impl From<AmqpError> for Asked {
    fn from(error: AmqpError) -> Self {
        Self::Broker(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn a_configuration_says_how_it_is_asked_and_what_is_wrong_with_it() {
        let long = format!("url: http://a, payload: '{}'", "x".repeat(MAX_PAYLOAD + 1));
        for (text, wrong) in [
            ("{}", "expected via (the name of a rabbitmq probe) or url, found neither"),
            ("{via: broker, url: http://a}", "expected via or url, found both"),
            ("{via: broker}", "expected the name of a rabbitmq probe, found \"broker\""),
            ("{via: broker, queue: ''}", "queue: expected a name of 1 to 255 bytes, found 0"),
            ("{url: http://a, content_type: \"a\\r\\nb: c\"}", "content_type:"),
            ("{url: http://a, ca_file: /dev/null}", "ca_file:"),
            (&format!("{{{long}}}"), "payload: expected at most 65536 bytes"),
        ] {
            let config: MarkupConfig = from_text("f", text).expect(text);
            let why = plan(&config, "markup", &Shared::default()).err().unwrap_or_else(|| panic!("{text} is wrong"));
            assert!(why.contains(wrong), "{text}: {why}");
        }
    }
}
