//! Asks gunicorn: whether a worker answers, and how long the queue in front of them is.
//!
//! While every worker is busy, `connect()` still succeeds at once: the kernel queues the connection. So a worker is asked
//! for a page, any answer of which means that it lives, and the kernel for the queue.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::http::{Host, failure_of, record_answer, record_connect};
use super::{Planned, Probe, Recorder, failure};
use crate::client::http::{self, HttpError, Request, Seen};
use crate::client::net::{self, Endpoint};
use crate::client::sock_diag::{self, Queue};
use crate::model::{Failure, Family, Reason, Sight};

static UP: Family = Family::gauge("gunicorn_up", "Whether a worker of gunicorn answers");
static QUEUE: Family = Family::gauge("gunicorn_accept_queue", "Connections that no worker has taken yet, before Proctor's own");
static QUEUE_MAX: Family = Family::gauge("gunicorn_accept_queue_max", "Connections that may wait for a worker");

/// The most bytes of the page that are read; a larger one is an answer too.
const MAX_BODY: usize = 1 << 20;

/// How often the kernel is asked for the queue while the answer does not come.
const LOOK: Duration = Duration::from_millis(200);

/// An attempt of ours that no worker took stays in the queue, and costs a worker a page that nobody reads: no other is
/// put beside it for so long, or until the queue has been empty.
const LEFT_ALONE: Duration = Duration::from_secs(30);

crate::config_struct! {
    /// Asks gunicorn: whether a worker answers, and how long the queue in front of them is. Any answer means that it
    /// lives, an error too: whether a page works, an `http` probe asks.
    pub struct GunicornConfig {
        /// Where it listens, as its `--bind`: `127.0.0.1:8000` or `unix:/run/gunicorn.sock`.
        listen: Endpoint,
        /// The site's own name, one of Django's `ALLOWED_HOSTS`: for every other one Django mails ADMINS.
        host_header: Host,
        /// The page: a light one. Django mails ADMINS if this page fails, so best one that needs no database.
        path: String = "/",
        /// What the site's proxy sends as `X-Forwarded-Proto`, so that the site does not redirect to itself.
        forwarded_proto: String = "https",
    }
}

/// Builds the one target.
///
/// # Errors
/// A path that is none, a `forwarded_proto` that is neither `http` nor `https`.
pub fn plan(config: &GunicornConfig) -> Result<Vec<Planned>, String> {
    let url = config.host_header.url(&config.path).map_err(|why| format!("path: {why}"))?;
    if !matches!(config.forwarded_proto.as_str(), "http" | "https") {
        return Err(format!("forwarded_proto: expected http or https, found {:?}", config.forwarded_proto));
    }
    let request = Request::get(url).at(config.listen.clone()).header("x-forwarded-proto", &config.forwarded_proto);
    Ok(Planned::only(Gunicorn { listen: config.listen.clone(), request, left: Mutex::default() }))
}

struct Gunicorn {
    listen: Endpoint,
    request: Request,
    left: Mutex<Left>,
}

/// The attempts of ours that were left in the queue since it was last empty, as far as that can be known from outside.
#[derive(Debug, Default)]
struct Left {
    /// When the last one was seen there.
    at: Option<Instant>,
    /// How many they are at most.
    own: u32,
}

impl Left {
    /// Says whether another attempt would only make the queue longer.
    fn holds(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| now.duration_since(at) < LEFT_ALONE)
    }

    /// Notes that this attempt waits in the queue.
    fn add(&mut self, counted: &mut bool, now: Instant) {
        self.own += u32::from(!std::mem::replace(counted, true));
        self.at = Some(now);
    }
}

impl Gunicorn {
    /// Looks at the queue.
    fn queue(&self, addresses: &[std::net::SocketAddr]) -> io::Result<Option<Queue>> {
        if let Endpoint::Unix(path) = &self.listen {
            return sock_diag::unix(path);
        }
        for address in addresses {
            if let Some(queue) = sock_diag::tcp(*address)? {
                return Ok(Some(queue));
            }
        }
        Ok(None)
    }

    /// Records the queue, or why it cannot be seen.
    fn record_queue(&self, rec: &mut Recorder, queue: &io::Result<Option<Queue>>) {
        let listen = self.listen.to_string();
        let partial = |remedy: &str, why: String| Sight::Partial {
            missing: format!("the accept queue of {listen}{why}"),
            remedy: remedy.to_owned(),
        };
        match queue {
            Ok(Some(queue)) => {
                let mut left = self.left();
                if queue.waiting == 0 {
                    *left = Left::default();
                }
                rec.set_with(&QUEUE, &[("listen", &listen)], f64::from(queue.waiting.saturating_sub(left.own)));
                rec.set_with(&QUEUE_MAX, &[("listen", &listen)], f64::from(queue.max));
            }
            Ok(None) => rec.sight(partial(
                "run Proctor in the network namespace of gunicorn (docker: network_mode), or go without",
                ": nobody listens there in this network namespace".to_owned(),
            )),
            Err(error) => rec.sight(partial(
                "add AF_NETLINK to RestrictAddressFamilies= of Proctor's unit, or modprobe tcp_diag unix_diag",
                format!(": {error}"),
            )),
        }
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let listen = &self.listen;
        let mut seen = Seen::default();
        rec.waiting(Reason::Resolve, format!("looking up the name of {listen}"));
        let addresses = net::lookup(listen, &mut seen.net).await.map_err(|error| failure(&error))?;
        // Before connecting: the probe's own place in the queue is no load of the site's.
        let mut before = self.queue(&addresses);
        let listens = !matches!(before, Ok(None));
        if listens {
            self.record_queue(rec, &before);
        }
        while let Ok(Some(queue)) = &before
            && queue.waiting > 0
            && self.left().holds(Instant::now())
        {
            rec.waiting(Reason::Saturated, format!("{listen}: {}", busy(*queue)));
            tokio::time::sleep(LOOK).await;
            before = self.queue(&addresses);
        }
        match &before {
            Ok(Some(queue)) if queue.waiting > queue.max => {
                rec.waiting(Reason::Saturated, format!("connecting to {listen}: {}", full(*queue)));
            }
            _ => rec.waiting(Reason::ConnectTimeout, format!("connecting to {listen}")),
        }
        let connected = net::connect_to(listen, &addresses, &mut seen.net).await;
        record_connect(rec, &seen);
        let stream = connected.map_err(|error| match (error.reason(), &before) {
            (Reason::Saturated, Ok(Some(queue))) => {
                Failure::new(Reason::Saturated, format!("cannot connect to {listen}: {}", full(*queue)))
            }
            _ => failure(&error),
        })?;
        if !listens {
            // Somebody took the connection, and the kernel does not show who: not dead, but elsewhere.
            self.record_queue(rec, &before);
        }
        let connected = format!("{listen}: {}", seen.net);
        let url = &self.request.url;
        let no_answer = format!("{connected}, a worker took the request {url}, waiting for its answer");
        rec.waiting(Reason::AnswerTimeout, no_answer.clone());
        let mut counted = false;
        let answer = {
            let mut exchange = std::pin::pin!(http::exchange(stream, &self.request, MAX_BODY, &mut seen));
            loop {
                tokio::select! {
                    answer = &mut exchange => break answer,
                    () = tokio::time::sleep(LOOK) => match self.queue(&addresses) {
                        Ok(Some(queue)) if queue.waiting > 0 => {
                            self.left().add(&mut counted, Instant::now());
                            rec.waiting(Reason::Saturated, format!("{connected}, but {}", busy(queue)));
                        }
                        Ok(_) => rec.waiting(Reason::AnswerTimeout, no_answer.clone()),
                        Err(_) => rec.waiting(Reason::AnswerTimeout, format!("{connected}, waiting for the answer to {url}")),
                    },
                }
            }
        };
        // A queue: who comes after those of before was taken after them.
        *self.left() = Left::default();
        record_answer(rec, url, &seen, answer.as_ref().ok());
        match answer {
            // The head of an answer is a worker that lives, whatever becomes of the body.
            Err(error) if seen.status.is_none() || matches!(error, HttpError::Request { .. }) => Err(failure_of(listen, &error)),
            _ => Ok(()),
        }
    }
}

fn full(queue: Queue) -> String {
    format!("its accept queue is full, {} of {} places are in use: all workers are busy or stand still", queue.waiting, queue.max)
}

fn busy(queue: Queue) -> String {
    format!(
        "no worker took the request: {} of {} places of the accept queue are in use, Proctor's own among them: all workers are busy or stand still",
        queue.waiting, queue.max
    )
}

impl Probe for Gunicorn {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn while_nobody_takes_them_one_attempt_is_put_into_the_queue_in_30_s_and_none_of_them_is_load_of_the_site() {
        let (mut left, begin) = (Left::default(), Instant::now());
        let mut put = Vec::new();
        // A probe every 15 s that waits for 5 s and looks five times a second.
        for run in 0..20u64 {
            let now = begin + Duration::from_secs(15 * run);
            let mut counted = false;
            if !left.holds(now) {
                put.push(15 * run);
                (0..25).for_each(|look| left.add(&mut counted, now + LOOK * look));
            }
        }
        assert_eq!(put, [0, 45, 90, 135, 180, 225, 270]);
        assert_eq!(left.own as usize, put.len());
    }

    #[test]
    fn a_configuration_needs_the_sites_own_name() {
        let config = |text: &str| from_text::<GunicornConfig>("f", text);
        let problems = config("listen: 127.0.0.1:8000").expect_err("has no host");
        assert!(problems[0].message.contains("key \"host_header\" is missing"), "{}", problems[0]);
        for text in ["path: x", "path: \"/a b\"", "forwarded_proto: ftp"] {
            let config = config(&format!("listen: unix:/run/g.sock\nhost_header: a.example\n{text}")).expect(text);
            assert!(plan(&config).is_err(), "{text}");
        }
        assert!(config("listen: '8000'\nhost_header: a").is_err());
    }
}
