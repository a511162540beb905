//! Asking services whether they really work.
//!
//! One file per service, each with its configuration struct on top. A probe asks and records; what is the same for all
//! (the slot, the one timeout, panics, age, `probe_success`) is done once, in [`scheduler`].

pub mod scheduler;
mod sql;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::changes::Changes;
use crate::client::amqp::{AmqpError, Broker, Settings};
use crate::client::docker::{Docker, DockerError};
use crate::client::net::{self, Endpoint, NetError, Phases, Stream};
use crate::client::sql::Session;
use crate::model::decode::{Documented, KeyDoc, Spanned};
use crate::model::{Failure, Family, Histogram, Observed, Problems, Reason, Sample, Sight, Target};
use crate::store::Store;
use crate::tasks::Tasks;

/// The most samples one run may give; what is more is dropped and counted.
pub const MAX_SAMPLES: usize = 6_000;

/// The longest value of a label, in characters: labels are identity, texts belong into the detail.
pub const MAX_LABEL: usize = 200;

/// The most lines of evidence, the most characters of each, and the most bytes of all: the end of what a job printed.
pub const MAX_EVIDENCE: (usize, usize, usize) = (200, 200, 12 * 1024);

/// One way of asking one service whether it works.
///
/// The scheduler owns the deadline: it drops the future when time is up, so `run` holds nothing across an await that a
/// drop would leave half done. What the recorder has received by then is kept.
pub trait Probe: Send + Sync {
    /// Asks once. The recorder takes what is measured; a failure is data, not an error of the program.
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>>;

    /// Takes the state, for what this probe must know over a restart; called once, before the first run, and not where
    /// there is no state (`proctor check`).
    fn remember(&mut self, _target: &Target, _store: &Store) {}

    /// Ends when the service has said of its own accord that something changed (an event, a signal, a pushed result):
    /// the probe is then asked at once, outside its slots, at most once a second. Dropped and called anew at will, so
    /// what came in between must not be lost: a `tokio::sync::Notify` keeps one.
    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// Returns where reports come in, if this is a heartbeat.
    fn inbox(&self) -> Option<&heartbeat::Inbox> {
        None
    }

    /// The exporter's own `<x>_up`, set by the scheduler from the outcome where the run did not record it itself.
    fn up(&self) -> Option<&'static Family> {
        None
    }
}

/// One target that a probe's configuration makes.
pub struct Planned {
    /// Which one, where the probe has several; nothing where it has one.
    pub target: Option<String>,
    /// How it is asked.
    pub probe: Box<dyn Probe>,
}

impl Planned {
    /// The only target of a probe.
    pub fn only(probe: impl Probe + 'static) -> Vec<Self> {
        vec![Self { target: None, probe: Box::new(probe) }]
    }

    /// One of several targets.
    pub fn one(target: impl Into<String>, probe: impl Probe + 'static) -> Self {
        Self { target: Some(target.into()), probe: Box::new(probe) }
    }
}

/// What the entries of one configuration share: a probe that says `via: NAME` asks over the connections of that one.
///
/// All entries [offer](ProbeConfig::offer) first, then all are [planned](ProbeConfig::plan_shared).
#[derive(Default)]
pub struct Shared {
    brokers: BTreeMap<String, Broker>,
    databases: BTreeMap<String, Session>,
    engines: Mutex<Vec<(Endpoint, Arc<docker::Engine>)>>,
    tasks: Tasks,
    changes: Changes,
    maintenance: Arc<[PathBuf]>,
}

impl Shared {
    /// Begins with the stage that standing connections belong to: when it is stopped, they say goodbye. What probes
    /// see to have changed on the host goes into `changes`.
    pub fn new(tasks: Tasks, changes: Changes) -> Self {
        Self { tasks, changes, ..Self::default() }
    }

    /// Says which files mean that the site is down on purpose.
    #[must_use]
    pub fn maintained_by(mut self, files: &[PathBuf]) -> Self {
        self.maintenance = files.into();
        self
    }

    /// Returns the files that mean that the site is down on purpose while one of them exists.
    pub fn maintenance(&self) -> &Arc<[PathBuf]> {
        &self.maintenance
    }

    /// Returns the stage that standing connections and listeners belong to.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Returns where a probe records what it sees to have changed on the host.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Returns the session of the `postgres` or `mysql` probe of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn database(&self, name: &str) -> Result<Session, String> {
        self.databases.get(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = self.databases.keys().map(String::as_str).collect();
            format!("expected the name of a postgres or mysql probe, found {name:?}; known: {}", known.join(", "))
        })
    }

    /// Returns the docker engine at this address, of which all probes share one event stream.
    ///
    /// # Errors
    /// The address is none.
    pub(crate) fn engine(&self, docker: &Docker) -> Result<Arc<docker::Engine>, DockerError> {
        let at = docker.endpoint()?;
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, engine)) = engines.iter().find(|(known, _)| known == at) {
            return Ok(engine.clone());
        }
        let engine = Arc::new(docker::Engine::new(docker.clone(), self.tasks.clone(), self.changes.clone()));
        engines.push((at.clone(), engine.clone()));
        Ok(engine)
    }

    /// Returns the broker of the `rabbitmq` probe of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn broker(&self, via: &str) -> Result<Broker, String> {
        self.brokers.get(via).cloned().ok_or_else(|| {
            let known: Vec<&str> = self.brokers.keys().map(String::as_str).collect();
            format!("expected the name of a rabbitmq probe, found {via:?}; known: {}", known.join(", "))
        })
    }
}

/// Takes what a run measures, and knows what the run waits for.
#[derive(Debug)]
pub struct Recorder {
    samples: Vec<Sample>,
    dropped: u64,
    waiting: (Reason, Cow<'static, str>),
    sight: Sight,
    evidence: Vec<String>,
    deadline: Option<Instant>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            samples: Vec::new(),
            dropped: 0,
            waiting: (Reason::AnswerTimeout, Cow::Borrowed("waiting for an answer")),
            sight: Sight::Full,
            evidence: Vec::new(),
            deadline: None,
        }
    }
}

/// What a recorder holds when the run is over.
#[derive(Debug)]
pub struct Recorded {
    /// What was measured.
    pub samples: Vec<Sample>,
    /// Samples beyond [`MAX_SAMPLES`].
    pub dropped: u64,
    /// What the run waited for when it ended.
    pub waiting: (Reason, Cow<'static, str>),
    /// How much could be seen.
    pub sight: Sight,
    /// Lines for the mail.
    pub evidence: Vec<String>,
}

impl Recorder {
    /// Begins a run that ends then at the latest.
    #[must_use]
    pub fn until(deadline: Instant) -> Self {
        Self { deadline: Some(deadline), ..Self::default() }
    }

    /// Returns how long a part of the run may take: `usual`, or half of what is left of the run.
    pub fn at_most(&self, usual: Duration) -> Duration {
        self.deadline.map_or(usual, |deadline| usual.min(deadline.saturating_duration_since(Instant::now()) / 2))
    }

    /// Records a value without labels of its own.
    pub fn set(&mut self, family: &'static Family, value: f64) {
        self.set_with(family, &[], value);
    }

    /// Records a value with labels of the probe's own, each cut to [`MAX_LABEL`].
    pub fn set_with(&mut self, family: &'static Family, labels: &[(&'static str, &str)], value: f64) {
        if self.samples.len() >= MAX_SAMPLES {
            self.dropped += 1;
            return;
        }
        let labels = labels.iter().map(|(name, value)| (*name, value.chars().take(MAX_LABEL).collect::<String>().into())).collect();
        self.samples.push(Sample { family, labels, value });
    }

    /// Records what was observed, with labels of the probe's own; all of its series or none.
    pub fn set_histogram(&mut self, histogram: &'static Histogram, labels: &[(&'static str, &str)], observed: &Observed) {
        if self.samples.len() + histogram.series() > MAX_SAMPLES {
            self.dropped += histogram.series() as u64;
            return;
        }
        for (family, le, value) in observed.series(histogram) {
            let le = le.as_deref().map(|le| ("le", le));
            self.set_with(family, &labels.iter().copied().chain(le).collect::<Vec<_>>(), value);
        }
    }

    /// Says what comes next, for the message and the reason of a timeout: `waiting for the server's first bytes`.
    pub fn waiting(&mut self, reason: Reason, what: impl Into<Cow<'static, str>>) {
        self.waiting = (reason, what.into());
    }

    /// Says that something could not be seen.
    pub fn sight(&mut self, sight: Sight) {
        self.sight = sight;
    }

    /// Keeps a line for the mail.
    pub fn evidence(&mut self, line: impl Display) {
        let kept: usize = self.evidence.iter().map(String::len).sum();
        if self.evidence.len() < MAX_EVIDENCE.0 && kept < MAX_EVIDENCE.2 {
            self.evidence.push(Failure::new(Reason::Internal, line.to_string()).detail.chars().take(MAX_EVIDENCE.1).collect());
        }
    }

    /// Keeps a text for the mail: its last lines, long ones folded.
    pub fn evidence_text(&mut self, text: &str) {
        let lines = text.lines().filter(|line| !line.trim().is_empty()).flat_map(|line| {
            let chars: Vec<char> = line.chars().collect();
            chars.chunks(MAX_EVIDENCE.1).map(|part| part.iter().collect::<String>()).collect::<Vec<_>>()
        });
        let lines: Vec<String> = lines.collect();
        let room = MAX_EVIDENCE.0.saturating_sub(self.evidence.len());
        lines.iter().skip(lines.len().saturating_sub(room)).for_each(|line| self.evidence(line));
    }

    /// Connects and says meanwhile what it waits for. `phases` keeps what was measured if a later phase times out.
    ///
    /// # Errors
    /// The failure, with the endpoint in its detail.
    pub async fn connect(&mut self, endpoint: &Endpoint, phases: &mut Phases) -> Result<Stream, Failure> {
        self.waiting(Reason::Resolve, format!("looking up the name of {endpoint}"));
        let addresses = net::lookup(endpoint, phases).await.map_err(|error| failure(&error))?;
        self.waiting(Reason::ConnectTimeout, format!("connecting to {endpoint}"));
        let stream = net::connect_to(endpoint, &addresses, phases).await.map_err(|error| failure(&error))?;
        self.waiting(Reason::AnswerTimeout, format!("{endpoint}: {phases}, waiting for an answer"));
        Ok(stream)
    }

    /// Ends the run.
    pub fn finish(self) -> Recorded {
        Recorded { samples: self.samples, dropped: self.dropped, waiting: self.waiting, sight: self.sight, evidence: self.evidence }
    }
}

/// A look at files, which may block for ever on a dead mount: one at a time, in a thread of its own. Clones share it.
#[derive(Clone, Debug)]
pub struct Looking(Arc<Semaphore>);

impl Default for Looking {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Looking {
    /// Waits for the look before this one, takes one, and returns what it found.
    ///
    /// # Errors
    /// It panicked.
    pub async fn at<T: Send + 'static>(&self, look: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
        // The permit travels into the thread, which may outlive the run that wanted it.
        let permit = self.0.clone().acquire_owned().await;
        let looked = tokio::task::spawn_blocking(move || {
            let found = look();
            drop(permit);
            found
        });
        looked.await.map_err(|error| Failure::new(Reason::Internal, format!("a look failed: {error}")))
    }
}

/// Turns an error of the network into a failure with the chain of its causes.
pub fn failure(error: &NetError) -> Failure {
    Failure::new(error.reason(), net::chain(error))
}

/// Like [`failure`], with what was being talked to in front.
pub fn failure_at(place: impl Display, error: &NetError) -> Failure {
    Failure::new(error.reason(), format!("{place}: {}", net::chain(error)))
}

/// Turns an error of a shared broker into a failure, with the broker in front.
pub fn failure_of_broker(broker: &Broker, error: &AmqpError) -> Failure {
    let Settings { endpoint, vhost, username, .. } = broker.settings();
    let hint = match error.reason() {
        Reason::Forbidden => format!(": user {username:?} lacks a permission in vhost {vhost:?} (see docs/probes/rabbitmq.md)"),
        _ => String::new(),
    };
    Failure::new(error.reason(), format!("{endpoint}: {error}{hint}"))
}

macro_rules! kinds {
    (@plan $kind:ident $config:ident $name:ident $shared:ident) => { $kind::plan($config) };
    (@plan $kind:ident $config:ident $name:ident $shared:ident shared) => { $kind::plan($config, $name, $shared) };
    // A kind followed by [shared] is planned as `plan(config, name of the probe, &Shared)`.
    ($($(#[doc = $doc:literal])+ $kind:ident : $config:ident $([$with:ident])?),+ $(,)?) => {
        $(pub mod $kind;)+

        crate::config_struct! {
            /// One entry under `probes`: exactly one kind, and what is the same for every kind.
            pub struct ProbeConfig {
                /// Time between two runs; the default is `defaults.interval`.
                interval: Option<Duration>,
                /// The one limit of a run; the default is `defaults.timeout`.
                timeout: Option<Duration>,
                /// Probes this one needs to work: while one of them fails, this one is listed in its mail.
                depends_on: Vec<Spanned<String>> = "[]",
                $($(#[doc = $doc])+ $kind: Option<$kind::$config>),+
            }
        }

        /// Every kind of probe, by its key.
        pub const KINDS: &[&str] = &[$(stringify!($kind)),+];

        /// The keys of every kind of probe.
        pub const KEYS: &[&[KeyDoc]] = &[$(<$kind::$config as Documented>::KEYS),+];

        impl ProbeConfig {
            /// Returns the kinds that are set, by name: exactly one is right.
            pub fn kinds(&self) -> Vec<&'static str> {
                let mut set = Vec::new();
                $(if self.$kind.is_some() {
                    set.push(stringify!($kind));
                })+
                set
            }

            /// Returns the `rabbitmq` probe over whose connections this one asks.
            pub fn via(&self) -> Option<&Spanned<String>> {
                let markup = self.markup.as_ref().and_then(|config| config.via.as_ref());
                let beat = || self.beat.as_ref().and_then(|config| config.via.as_ref());
                markup.or_else(beat).or_else(|| self.celery.as_ref().map(|config| &config.via))
            }

            /// Returns the `postgres` or `mysql` probe over whose connection this one asks.
            pub fn database(&self) -> Option<&Spanned<String>> {
                self.beat.as_ref().and_then(|config| config.database.as_ref())
            }

            /// Returns the probes that this one needs to work: what `depends_on` says, [`ProbeConfig::via`] and
            /// [`ProbeConfig::database`].
            pub fn needs(&self) -> impl Iterator<Item = &str> {
                let over = self.via().into_iter().chain(self.database());
                let over = over.filter(|over| self.depends_on.iter().all(|on| on.value != over.value));
                self.depends_on.iter().chain(over).map(|on| on.as_str())
            }

            /// Gives what other entries may ask over, under the name of this one; connects to nothing.
            ///
            /// # Errors
            /// What cannot be built.
            pub fn offer(&self, name: &str, shared: &mut Shared) -> Result<(), String> {
                if let Some(config) = &self.rabbitmq {
                    shared.brokers.insert(name.to_owned(), rabbitmq::broker(config, shared.tasks.clone())?);
                }
                let postgres = self.postgres.as_ref().map(|config| postgres::session(config, shared));
                if let Some(session) = postgres.or_else(|| self.mysql.as_ref().map(|config| mysql::session(config, shared))) {
                    let session = session?;
                    shared.databases.insert(name.to_owned(), session);
                }
                Ok(())
            }

            /// Builds the targets of this entry with what all entries have offered; connects to nothing.
            ///
            /// # Errors
            /// What cannot be built, such as a secret file that cannot be read.
            pub fn plan_shared(&self, name: &str, shared: &Shared) -> Result<Vec<Planned>, String> {
                $(if let Some(config) = &self.$kind {
                    return kinds!(@plan $kind config name shared $($with)?);
                })+
                Err("names no kind of probe".to_owned())
            }

            /// Builds the targets of an entry that stands alone.
            ///
            /// # Errors
            /// As [`ProbeConfig::plan_shared`].
            pub fn plan(&self) -> Result<Vec<Planned>, String> {
                let mut shared = Shared::default();
                self.offer("alone", &mut shared)?;
                self.plan_shared("alone", &shared)
            }
        }
    };
}

kinds! {
    /// Asks a web page: status, body, header, redirect.
    http: HttpConfig,
    /// Asks a TCP port: connect, optionally send, optionally expect.
    tcp: TcpConfig,
    /// Looks at the host itself: disks, memory and load, new ports, the clock, the way of the mail.
    host: HostConfig,
    /// Hears what a job reports by itself, such as a line of cron or the site's own checks.
    heartbeat: HeartbeatConfig [shared],
    /// Runs a program and judges by how it ends: a script, or a plugin of Nagios.
    command: CommandConfig,
    /// Looks at files: whether they are there, how old and how large they are.
    file: FileConfig,
    /// Asks nginx: its own counters, each site under its own name, each redirect, its processes, its logs.
    nginx: NginxConfig [shared],
    /// Asks gunicorn: whether a worker answers, and how long the queue in front of them is.
    gunicorn: GunicornConfig [shared],
    /// Asks memcached: its counters, and a value through the cache.
    memcached: MemcachedConfig [shared],
    /// Looks at certificates, on disk and as they are served, and whether both are the same.
    certificate: CertificateConfig [shared],
    /// Asks the far end of an SSH tunnel, in the protocol that it speaks.
    tunnel: TunnelConfig,
    /// Asks RabbitMQ: its queues and their consumers, whether it takes messages, its alarms and limits.
    rabbitmq: RabbitmqConfig [shared],
    /// Asks Elasticsearch or OpenSearch: a document out of the index, blocks, health, the node's own numbers.
    elasticsearch: ElasticsearchConfig,
    /// Asks a service that answers questions from a queue, such as the one that renders markup, or the same over HTTP.
    markup: MarkupConfig [shared],
    /// Asks Celery's nodes what they do, and sends a task through every queue.
    celery: CeleryConfig [shared],
    /// Asks whether celerybeat sends: by the age of its schedule's file, and by a task that somebody ran.
    beat: BeatConfig [shared],
    /// Asks whether the processes of the site run the code that lies on its disk.
    code: CodeConfig [shared],
    /// Asks systemd whether the units that should be up are, and what failed besides.
    systemd: SystemdConfig [shared],
    /// Asks PostgreSQL: whether it lets in, answers and takes writes, connections left, locks, replication.
    postgres: PostgresConfig [shared],
    /// Asks MySQL or MariaDB: whether it lets in, answers and takes writes, connections left, locks, replication.
    mysql: MysqlConfig [shared],
    /// Asks docker whether the containers that should run do, and hears at once when one ends.
    docker: DockerConfig [shared],
}

/// Plans entries with one another; connects to nothing. One that cannot be built is left out and noted, and that once: what
/// cannot be offered cannot be planned either, nor what asks over it, or over one that is not among the entries.
pub fn plan_entries<'a>(
    entries: impl Iterator<Item = (&'a Spanned<String>, &'a ProbeConfig)>,
    shared: &mut Shared,
    problems: &mut Problems,
) -> Vec<(&'a Spanned<String>, &'a ProbeConfig, Vec<Planned>)> {
    let mut note = |name: &Spanned<String>, why: &str| problems.push(name.at, format!("probe {:?}: {why}", name.value));
    let entries: Vec<_> = entries.collect();
    let mut whole: BTreeSet<&str> = BTreeSet::new();
    for (name, probe) in &entries {
        match probe.offer(name, shared) {
            Ok(()) => drop(whole.insert(name)),
            Err(why) => note(name, &why),
        }
    }
    let plan = |(name, probe): (&'a Spanned<String>, &'a ProbeConfig)| match probe.plan_shared(name, shared) {
        Ok(planned) => Some((name, probe, planned)),
        Err(why) => {
            if whole.contains(name.as_str()) && probe.needs().all(|need| whole.contains(need)) {
                note(name, &why);
            }
            None
        }
    };
    entries.into_iter().filter_map(plan).collect()
}

/// Asks some probes at once, by name, outside their slots, and returns how each ended; handed to other rooms by `app`.
pub type ProbeNow = Arc<dyn Fn(Vec<String>) -> BoxFuture<'static, Vec<crate::model::ProbeResult>> + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn a_broker_is_shared_under_the_name_of_its_probe() {
        let mut shared = Shared::default();
        let config: ProbeConfig = from_text("f", "rabbitmq: {port: 5673}").expect("is right");
        config.offer("rabbit", &mut shared).expect("is built");
        assert_eq!(shared.broker("rabbit").map(|broker| broker.settings().endpoint.to_string()), Ok("127.0.0.1:5673".to_owned()));
        let why = shared.broker("rabbits").err().expect("there is none");
        assert_eq!(why, "expected the name of a rabbitmq probe, found \"rabbits\"; known: rabbit");
    }
}
