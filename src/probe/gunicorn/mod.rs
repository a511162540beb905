//! Asks gunicorn: whether a worker answers, and how long the queue in front of them is.
//!
//! While every worker is busy, `connect()` still succeeds at once: the kernel queues the connection. So a worker is asked
//! for a page, any answer of which means that it lives, and the kernel for the queue. What gunicorn says of itself, by
//! statsd and by its control socket, comes beside that and never makes the probe fail.

mod control;
mod processes;
mod statsd;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::http::{Host, failure_of, record_answer, record_connect};
use super::{Planned, Probe, Recorder, Shared, failure};
use crate::client::http::{self, HttpError, Request, Seen};
use crate::client::net::{self, Endpoint};
use crate::client::sock_diag::{self, Queue};
use crate::model::duration::print_measured;
use crate::model::{Failure, Family, Reason, Sight};

use processes::{Followed, Seen as Processes};
use statsd::Statsd;

static UP: Family = Family::gauge("gunicorn_up", "Whether a worker of gunicorn answers");
static QUEUE: Family = Family::gauge("gunicorn_accept_queue", "Connections that no worker has taken yet, before Proctor's own");
static QUEUE_MAX: Family = Family::gauge("gunicorn_accept_queue_max", "Connections that may wait for a worker");
static OVERFLOWS: Family = Family::counter(
    "gunicorn_listen_overflows_total",
    "Connections that were turned away by full accept queues in gunicorn's network namespace, of all who listen there",
);
static WORKERS: Family = Family::gauge("gunicorn_workers", "Workers that there are");
static WANTED: Family = Family::gauge("gunicorn_workers_wanted", "Workers that there should be");
static SPAWNED: Family =
    Family::counter("gunicorn_workers_spawned_total", "Workers that gunicorn has started, those that replace recycled ones among them");
static BUSY: Family = Family::gauge("gunicorn_workers_busy", "Workers that certainly are at a request");
static OLDEST: Family = Family::gauge("gunicorn_request_age_seconds_max", "How old the oldest request is at least");
static OLDEST_WORKER: Family = Family::gauge("gunicorn_worker_age_seconds_max", "How long the oldest worker has lived");
static LOOPS: Family = Family::gauge("gunicorn_crash_loop", "Whether workers die as they start while the master lives");

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
        /// The most connections that may wait (gunicorn's `--backlog`), for where the kernel does not tell it: with
        /// `pid_file` and gunicorn in another network namespace.
        backlog: Option<u32>,
        /// File with the process number of gunicorn's master (its `--pid`), or with that of the first process of its
        /// container as this host counts: a crash loop is told from busy workers, and the queue is seen in a container.
        pid_file: Option<PathBuf>,
        /// gunicorn's control socket (25.1 and later): busy workers, and the age of the oldest request.
        control_socket: Option<PathBuf>,
        /// Where Proctor listens for what gunicorn tells by `--statsd-host`: `127.0.0.1:8125` or `unix:/path`.
        statsd: Option<Endpoint>,
    }
}

/// Builds the one target.
///
/// # Errors
/// A path that is none, a `forwarded_proto` that is neither `http` nor `https`.
pub fn plan(config: &GunicornConfig, _name: &str, shared: &Shared) -> Result<Vec<Planned>, String> {
    let url = config.host_header.url(&config.path).map_err(|why| format!("path: {why}"))?;
    if !matches!(config.forwarded_proto.as_str(), "http" | "https") {
        return Err(format!("forwarded_proto: expected http or https, found {:?}", config.forwarded_proto));
    }
    let request = Request::get(url).at(config.listen.clone()).header("x-forwarded-proto", &config.forwarded_proto);
    Ok(Planned::only(Gunicorn {
        listen: config.listen.clone(),
        request,
        left: Mutex::default(),
        backlog: config.backlog,
        pid_file: config.pid_file.clone(),
        followed: Mutex::default(),
        control_socket: config.control_socket.clone(),
        statsd: config.statsd.clone().map(|endpoint| Statsd::new(endpoint, shared.tasks().clone())),
    }))
}

struct Gunicorn {
    listen: Endpoint,
    request: Request,
    left: Mutex<Left>,
    backlog: Option<u32>,
    pid_file: Option<PathBuf>,
    followed: Mutex<Followed>,
    control_socket: Option<PathBuf>,
    statsd: Option<Statsd>,
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

/// What cannot be seen, with what would help.
#[derive(Default)]
struct Unseen(Vec<(String, String)>);

impl Unseen {
    /// Adds to it, and tells the recorder at once: a run may end while it waits.
    fn add(&mut self, rec: &mut Recorder, missing: String, remedy: impl Into<String>) {
        self.0.push((missing, remedy.into()));
        let join = |of: fn(&(String, String)) -> &String| self.0.iter().map(of).map(String::as_str).collect::<Vec<_>>().join("; ");
        rec.sight(Sight::Partial { missing: join(|(missing, _)| missing), remedy: join(|(_, remedy)| remedy) });
    }
}

/// Where the queue is looked at.
struct Place<'a> {
    addresses: &'a [SocketAddr],
    /// The master's network namespace, where that is another than ours.
    elsewhere: Option<processes::Waiting>,
}

impl Gunicorn {
    /// Looks at the queue.
    fn queue(&self, place: &Place<'_>) -> io::Result<Option<Queue>> {
        if let Endpoint::Unix(path) = &self.listen {
            return sock_diag::unix(path);
        }
        if let Some(there) = &place.elsewhere {
            let now = processes::queue(there.pid, there.port);
            return Ok(now.map(|now| Queue { waiting: now.waiting, max: self.backlog.unwrap_or(u32::MAX) }));
        }
        for address in place.addresses {
            if let Some(queue) = sock_diag::tcp(*address)? {
                return Ok(Some(queue));
            }
        }
        Ok(None)
    }

    /// Says whether the queue that the master's namespace has is one that this namespace does not have: what listens
    /// here is then a proxy, or nobody.
    fn elsewhere(&self, addresses: &[SocketAddr], processes: &Processes) -> Option<processes::Waiting> {
        let there = processes.queue?;
        let here = addresses.iter().filter_map(|address| sock_diag::listeners(*address).ok()).flatten();
        here.map(|listener| u64::from(listener.inode)).all(|inode| inode != there.inode).then_some(there)
    }

    /// Records the queue, or why it cannot be seen.
    fn record_queue(&self, rec: &mut Recorder, unseen: &mut Unseen, queue: &io::Result<Option<Queue>>) {
        let listen = self.listen.to_string();
        match queue {
            Ok(Some(queue)) => {
                let mut left = self.left();
                if queue.waiting == 0 {
                    *left = Left::default();
                }
                rec.set_with(&QUEUE, &[("listen", &listen)], f64::from(queue.waiting.saturating_sub(left.own)));
                drop(left);
                if queue.max == u32::MAX {
                    let remedy = "name gunicorn's --backlog in backlog: (its default is 2048, at most net.core.somaxconn)";
                    unseen.add(rec, format!("the maximum of the accept queue of {listen}"), remedy);
                } else {
                    rec.set_with(&QUEUE_MAX, &[("listen", &listen)], f64::from(queue.max));
                }
            }
            Ok(None) => unseen.add(
                rec,
                format!("the accept queue of {listen}: nobody listens there in this network namespace"),
                "name a pid_file with a process of gunicorn's network namespace, or run Proctor in it (docker: network_mode)",
            ),
            Err(error) => unseen.add(
                rec,
                format!("the accept queue of {listen}: {error}"),
                "add AF_NETLINK to RestrictAddressFamilies= of Proctor's unit, or modprobe tcp_diag unix_diag",
            ),
        }
    }

    /// Looks at `/proc`, and says for how long workers live where they die as they start.
    async fn look_at_processes(&self, rec: &mut Recorder, unseen: &mut Unseen) -> Result<(Processes, Option<Duration>), Failure> {
        let port = if let Endpoint::Tcp { port, .. } = &self.listen { Some(*port) } else { None };
        let pid_file = self.pid_file.clone();
        let looked = tokio::task::spawn_blocking(move || processes::look(pid_file.as_deref(), port)).await;
        let seen = looked.map_err(|error| Failure::new(Reason::Internal, format!("looking at /proc failed: {error}")))?;
        let looping = {
            let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
            let looping = followed.look(&seen);
            followed.answered(false);
            looping
        };
        if let Some((missing, remedy)) = &seen.unseen {
            unseen.add(rec, missing.clone(), remedy.clone());
        }
        if let (Some(overflows), Some(_)) = (seen.overflows, port) {
            rec.set(&OVERFLOWS, overflows as f64);
        }
        if seen.master.is_some() {
            rec.set(&OLDEST_WORKER, seen.workers.iter().map(|worker| worker.age).max().unwrap_or_default().as_secs_f64());
            rec.set(&LOOPS, f64::from(u8::from(looping.is_some())));
        }
        Ok((seen, looping))
    }

    /// Asks gunicorn itself for its workers.
    async fn ask_control(&self, rec: &mut Recorder, unseen: &mut Unseen, processes: &Processes) -> Option<usize> {
        let path = self.control_socket.as_ref()?;
        match control::ask(path).await {
            Ok(workers) => {
                // Only workers of the namespace that is looked at are told from others by their port.
                let own = || {
                    let Endpoint::Tcp { port, .. } = self.listen else { return None };
                    let all = sock_diag::established().ok()?;
                    Some(all.iter().filter(|one| one.port == port && one.inode != 0).count())
                };
                let (busy, oldest) = workers.busy(processes.queue.map(|queue| queue.taken).or_else(own));
                rec.set(&BUSY, busy as f64);
                rec.set(&OLDEST, oldest);
                if let Some(wanted) = workers.wanted {
                    rec.set(&WANTED, wanted as f64);
                }
                if let Some(spawned) = workers.spawned {
                    rec.set(&SPAWNED, spawned as f64);
                }
                Some(workers.count)
            }
            Err(error) => {
                let remedy = match error.kind() {
                    io::ErrorKind::PermissionDenied => {
                        "gunicorn --control-socket-mode 0660, and Proctor's user in its group: who is may also end its workers"
                    }
                    io::ErrorKind::NotFound => "gunicorn 25.1 or later with --control-socket and this path",
                    _ => "is it gunicorn that listens there?",
                };
                unseen.add(rec, format!("gunicorn's workers: {}: {error}", path.display()), remedy);
                None
            }
        }
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let listen = &self.listen;
        let mut unseen = Unseen::default();
        rec.waiting(Reason::Internal, format!("looking at the processes of {listen}"));
        let mut workers = None;
        if let Some(statsd) = &self.statsd {
            match statsd.record(rec).await {
                Ok(()) => workers = statsd.workers(),
                Err((missing, remedy)) => unseen.add(rec, missing, remedy),
            }
        }
        let (processes, looping) = self.look_at_processes(rec, &mut unseen).await?;
        let control = self.ask_control(rec, &mut unseen, &processes).await;
        let seen_workers = processes.master.map(|_| processes.workers.len());
        if let Some(workers) = control.or(seen_workers).map(|count| count as f64).or(workers) {
            rec.set(&WORKERS, workers);
        }
        // Why nobody takes the request.
        let nobody = |queue: Queue, text: fn(Queue) -> String| match looping {
            None => (Reason::Saturated, text(queue)),
            Some(age) => (
                Reason::Stalled,
                format!(
                    "its workers die as they start while the master lives: no worker of the last run is there, the oldest lives for {}: \
                     see its log",
                    print_measured(age)
                ),
            ),
        };

        let mut seen = Seen::default();
        rec.waiting(Reason::Resolve, format!("looking up the name of {listen}"));
        let addresses = net::lookup(listen, &mut seen.net).await.map_err(|error| failure(&error))?;
        let place = Place { addresses: &addresses, elsewhere: self.elsewhere(&addresses, &processes) };
        // Before connecting: the probe's own place in the queue is no load of the site's.
        let mut before = self.queue(&place);
        let listens = !matches!(before, Ok(None));
        if listens {
            self.record_queue(rec, &mut unseen, &before);
        }
        while let Ok(Some(queue)) = &before
            && queue.waiting > 0
            && self.left().holds(Instant::now())
        {
            let (reason, why) = nobody(*queue, busy);
            rec.waiting(reason, format!("{listen}: {why}"));
            tokio::time::sleep(LOOK).await;
            before = self.queue(&place);
        }
        match &before {
            Ok(Some(queue)) if queue.waiting > queue.max => {
                let (reason, why) = nobody(*queue, full);
                rec.waiting(reason, format!("connecting to {listen}: {why}"));
            }
            _ => rec.waiting(Reason::ConnectTimeout, format!("connecting to {listen}")),
        }
        let connected = net::connect_to(listen, &addresses, &mut seen.net).await;
        record_connect(rec, &seen);
        let stream = connected.map_err(|error| match (error.reason(), &before) {
            (Reason::Saturated, Ok(Some(queue))) => {
                let (reason, why) = nobody(*queue, full);
                Failure::new(reason, format!("cannot connect to {listen}: {why}"))
            }
            _ => failure(&error),
        })?;
        if !listens {
            // Somebody took the connection, and the kernel does not show who: not dead, but elsewhere.
            self.record_queue(rec, &mut unseen, &before);
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
                    () = tokio::time::sleep(LOOK) => match self.queue(&place) {
                        Ok(Some(queue)) if queue.waiting > 0 => {
                            self.left().add(&mut counted, Instant::now());
                            let (reason, why) = nobody(queue, busy);
                            rec.waiting(reason, format!("{connected}, but {why}"));
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
            _ => {
                self.followed.lock().unwrap_or_else(PoisonError::into_inner).answered(true);
                Ok(())
            }
        }
    }
}

/// `4 of 5 places`
fn places(queue: Queue) -> String {
    let of = if queue.max == u32::MAX { String::new() } else { format!(" of {}", queue.max) };
    format!("{}{of} places", queue.waiting)
}

fn full(queue: Queue) -> String {
    format!("its accept queue is full, {} are in use: all workers are busy or stand still", places(queue))
}

fn busy(queue: Queue) -> String {
    format!(
        "no worker took the request: {} of the accept queue are in use, Proctor's own among them: all workers are busy or stand still",
        places(queue)
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
            assert!(plan(&config, "app", &Shared::default()).is_err(), "{text}");
        }
        assert!(config("listen: '8000'\nhost_header: a").is_err());
    }
}
