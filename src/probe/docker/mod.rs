//! Asks docker whether the containers that should run do, and hears of it at once when one ends.
//!
//! What should run is named, or else is every container whose restart policy is not `no`. Named services and containers
//! are targets of their own, beside one for the engine; where nothing is named the engine's target judges them all,
//! since what they are is not known before docker is asked.
//!
//! A run lists and inspects; in between the event stream of `engine` wakes the target. Events also tell an end by order
//! from one that nobody asked for (`ledger`), which the state of a container does not. All calls are GETs, so a socket
//! proxy may refuse everything else, and what it refuses of these is said.

mod engine;
mod judge;
mod ledger;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::Notify;

pub(crate) use self::engine::Engine;
use self::engine::Stream;
use self::judge::{Judged, Seen, Standing, shown_name, uptime};
use super::{Planned, Probe, Recorder, Shared};
use crate::client::docker::{self, Api, Container, Docker, DockerError, DockerName, Filter, Listed, Service, explain};
use crate::model::decode::{self, Decode, Named};
use crate::model::yaml::{Node, Value};
use crate::model::{Failure, Family, Problems, Reason, Sight};
use crate::tasks;

static UP: Family = Family::gauge("docker_up", "Whether the docker engine answered");
static ENGINE: Family = Family::gauge("docker_engine_info", "Always 1; the labels are the engine's version and that of its API");
static EVENTS: Family = Family::gauge("docker_events_connected", "Whether docker's event stream stands, by which a death is seen at once");
static STATE: Family =
    Family::gauge("docker_container_state", "Always 1; the label is the container's state: running, exited, restarting, paused and so on");
static HEALTH: Family = Family::gauge("docker_container_health", "Whether the container's health check says this");
static STREAK: Family = Family::gauge("docker_container_health_failing_streak", "Health checks of the container that failed in a row");
static RESTARTS: Family =
    Family::counter("docker_container_restarts_total", "Restarts of the container by its restart policy since somebody started it");
static EXIT_CODE: Family = Family::gauge("docker_container_exit_code", "The exit code of the container's last end; absent before the first");
static OOM_KILLED: Family =
    Family::gauge("docker_container_oom_killed", "Whether docker saw that the container's last end was the kernel's, for its memory");
static STARTED: Family =
    Family::gauge("docker_container_start_time_seconds", "When the container was last started, in seconds since the epoch");
static OUTDATED: Family = Family::gauge(
    "docker_container_image_outdated",
    "Whether the name of the image that the container was made of now means another image, or none",
);
static REQUESTED: Family = Family::gauge(
    "docker_container_stop_requested",
    "Whether docker was told to end a container that has ended; absent while it runs, and where that is not known",
);
static EXPECTED: Family = Family::gauge("docker_service_replicas_expected", "Containers of the service that should be well");
static RUNNING: Family =
    Family::gauge("docker_service_replicas_running", "Containers of the service that run, and whose health check does not fail");
static DEAD: Family = Family::gauge(
    "docker_service_replicas_dead",
    "Containers of the service that ended without anybody asking for it and that docker does not start again, while too few run",
);
static DEATHS: Family = Family::counter(
    "docker_service_deaths_total",
    "Ends of containers of the service since Proctor listens: asked for, early (within a minute of the start), crash (later)",
);
static OOM_KILLS: Family =
    Family::counter("docker_service_oom_kills_total", "Times the kernel killed a process of the service for its memory, as docker tells it");

/// The most containers that one target inspects.
const MAX_CONTAINERS: usize = 150;
/// How many are inspected at once.
const AT_ONCE: usize = 4;
/// How often the list is asked for again where a container of it is gone already: what replaces it may be newer than it.
const LISTED_AGAIN: usize = 2;
/// The most services and containers that may be named.
const MAX_NAMED: usize = 100;
/// The oldest API in which health and restart policy are as they are now: docker 1.12.
const OLDEST: (u32, u32) = (1, 24);
/// How long the event stream may be broken before that is said: an engine that restarts is none.
const STREAM_BROKEN_FOR: std::time::Duration = std::time::Duration::from_secs(60);

/// The services that should run, with how many containers each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services(pub Vec<(DockerName, usize)>);

impl Decode for Services {
    const EXPECTED: &'static str = "a list of compose services, or a mapping from them to how many containers each has";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Sequence(_) => {
                let names = Vec::<DockerName>::decode(node, problems)?;
                Some(Self(names.into_iter().map(|name| (name, 1)).collect()))
            }
            Value::Mapping(_) => {
                let named = Named::<usize>::decode(node, problems)?;
                let known = named.0.into_iter().map(|(name, replicas)| {
                    if !docker::is_name(&name.value) {
                        problems.push(name.at, format!("expected {}, found {:?}", DockerName::EXPECTED, name.value));
                        return None;
                    }
                    Some((DockerName(name.value), replicas))
                });
                // All are read before any failure counts, so that each mistake is named.
                known.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>().map(Self)
            }
            _ => {
                decode::mismatch(node, Self::EXPECTED, problems);
                None
            }
        }
    }
}

crate::config_struct! {
    /// Asks docker whether the containers that should run do: named ones, or else every container whose restart policy
    /// is not `no`. It only reads, so a socket proxy that lets nothing but GETs through is enough.
    pub struct DockerConfig {
        /// Where the engine or a socket proxy listens: `unix:/path` or `http://host:port`. The default is what
        /// `DOCKER_HOST` says, else `unix:/run/docker.sock`.
        engine: Option<docker::Engine>,
        /// The compose project that is meant; without it those of all projects.
        project: Option<DockerName>,
        /// The compose services that should run, as a list, or with how many containers each: `{web: 2, worker: 4}`.
        services: Services = "[]",
        /// The containers that should run, by name, where they are of no compose service.
        containers: Vec<DockerName> = "[]",
    }
}

impl DockerConfig {
    /// Returns how the engine is asked.
    pub(super) fn docker(&self) -> Docker {
        self.engine.clone().map_or_else(Docker::of_this_host, Docker::behind)
    }
}

/// Builds the engine's target, and one for each service and container that is named.
///
/// # Errors
/// A name that is there twice, a number of 0, more than 100 names; `DOCKER_HOST` leads elsewhere.
pub fn plan(config: &DockerConfig, _: &str, shared: &Shared) -> Result<Vec<Planned>, String> {
    let engine = shared.engine(&config.docker()).map_err(|error| error.to_string())?;
    let project = config.project.as_ref().map(|project| project.0.clone());
    let mut wanted = Vec::new();
    for (DockerName(service), replicas) in &config.services.0 {
        if *replicas == 0 {
            return Err(format!("services.{service}: expected at least 1 container, found 0: leave the service out"));
        }
        wanted.push((service, Wanted::Service { name: service.clone(), project: project.clone(), replicas: *replicas }));
    }
    wanted.extend(config.containers.iter().map(|DockerName(name)| (name, Wanted::Container(name.clone()))));
    if wanted.len() > MAX_NAMED {
        return Err(format!("expected at most {MAX_NAMED} services and containers, found {}", wanted.len()));
    }
    let mut names = BTreeSet::new();
    if let Some((twice, _)) = wanted.iter().find(|(name, _)| !names.insert(*name)) {
        return Err(format!("{twice:?} is named twice"));
    }
    let whole = if wanted.is_empty() { Wanted::All { project } } else { Wanted::Engine };
    let mut planned = Planned::only(Containers::new(engine.clone(), whole));
    planned.extend(wanted.into_iter().map(|(name, wanted)| Planned::one(name, Containers::new(engine.clone(), wanted))));
    Ok(planned)
}

/// What a target looks at.
#[derive(Clone, Debug)]
enum Wanted {
    /// The engine alone.
    Engine,
    /// Every container whose restart policy is not `no`, besides the engine.
    All { project: Option<String> },
    /// A compose service.
    Service { name: String, project: Option<String>, replicas: usize },
    /// One container.
    Container(String),
}

impl Wanted {
    /// Returns how the list is asked for; nothing where it is not.
    fn filter(&self) -> Option<Filter> {
        match self {
            Self::Engine => None,
            Self::All { project: None } => Some(Filter::all()),
            Self::All { project: Some(project) } => Some(Filter::project(project)),
            Self::Service { name, project, .. } => Some(Filter::service(name, project.as_deref())),
            Self::Container(name) => Some(Filter::named(name)),
        }
    }

    /// Returns what a listed container belongs to, where it is meant.
    fn service_of(&self, listed: &Listed) -> Option<Service> {
        match self {
            Self::Container(name) if listed.name != *name => None,
            Self::Container(name) => Some(Service { project: String::new(), name: name.clone() }),
            _ => Service::of(&listed.labels, &listed.name),
        }
    }

    /// Says whether something new about a service is news to this target.
    fn wants(&self, service: &Service) -> bool {
        let fits = |wanted: &Option<String>| wanted.as_ref().is_none_or(|project| *project == service.project);
        match self {
            Self::Engine => false,
            Self::All { project } => fits(project),
            Self::Service { name, project, .. } => *name == service.name && fits(project),
            // It may be one of a compose service, under whose name events speak of it.
            Self::Container(_) => true,
        }
    }

    fn is_whole(&self) -> bool {
        matches!(self, Self::Engine | Self::All { .. })
    }
}

struct Containers {
    engine: Arc<Engine>,
    wanted: Wanted,
    wake: Arc<Notify>,
}

impl Probe for Containers {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.engine.follow();
        self.wake.notified().boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        self.wanted.is_whole().then_some(&UP)
    }
}

/// What could not be seen, and what would show it.
#[derive(Default)]
struct Unseen(BTreeMap<&'static str, String>);

impl Containers {
    fn new(engine: Arc<Engine>, wanted: Wanted) -> Self {
        let wants = wanted.clone();
        let wake = engine.watch(move |service| wants.wants(service));
        Self { engine, wanted, wake }
    }

    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let mut unseen = Unseen::default();
        let found = self.look(rec, &mut unseen).await;
        if let (true, Stream::Broken { since, why, forbidden }) = (self.wanted.is_whole(), self.engine.stream())
            && (forbidden || tasks::now().since(since) > STREAM_BROKEN_FOR)
        {
            unseen.0.insert("events: a death is seen only by the next run, and whether it was asked for is guessed", why);
        }
        let found = match found {
            Ok(found) => found,
            Err(error) => return self.not_asked(rec, &error),
        };
        if !unseen.0.is_empty() {
            let missing: Vec<String> = unseen.0.iter().map(|(what, why)| format!("{what} ({why})")).collect();
            rec.sight(Sight::Partial { missing: missing.join("; "), remedy: "let Proctor GET it: docs/probes/docker.md".to_owned() });
        }
        if self.wanted.is_whole() {
            rec.set(&UP, 1.0);
            rec.set(&EVENTS, f64::from(u8::from(self.engine.stream() == Stream::Stands)));
        }
        self.judge(rec, &found)
    }

    /// Docker cannot be asked, or may not be.
    fn not_asked(&self, rec: &mut Recorder, error: &DockerError) -> Result<(), Failure> {
        let why = explain(error);
        if error.reason() == Reason::Forbidden {
            let remedy = "usermod -aG docker proctor (as good as root), or set engine to a socket proxy: docs/probes/docker.md".to_owned();
            rec.sight(Sight::Blind { missing: format!("containers: {why}"), remedy });
            return Ok(());
        }
        Err(Failure::new(error.reason(), why))
    }

    /// Lists and inspects what is meant.
    async fn look(&self, rec: &mut Recorder, unseen: &mut Unseen) -> Result<Vec<(Service, Seen)>, DockerError> {
        let at = self.engine.docker.endpoint()?;
        rec.waiting(Reason::AnswerTimeout, format!("docker at {at}: waiting for the answer to a ping (is the daemon stuck? journalctl -u docker)"));
        let api = self.engine.docker.api().await?;
        let version: Vec<u32> = api.version.split('.').filter_map(|part| part.parse().ok()).collect();
        if (version.first(), version.get(1)) < (Some(&OLDEST.0), Some(&OLDEST.1)) {
            let why = format!("expected version {}.{} of the API or newer (docker 1.12), found {}", OLDEST.0, OLDEST.1, api.version);
            return Err(DockerError::Reply { what: "a ping".to_owned(), why });
        }
        if self.wanted.is_whole() {
            rec.set_with(&ENGINE, &[("version", api.server.trim_start_matches("Docker/")), ("api_version", &api.version)], 1.0);
        }
        let Some(filter) = self.wanted.filter() else { return Ok(Vec::new()) };
        for _ in 0..LISTED_AGAIN {
            let (found, gone) = self.inspected(rec, &api, &filter, unseen).await?;
            if !gone {
                return Ok(found);
            }
        }
        Ok(self.inspected(rec, &api, &filter, unseen).await?.0)
    }

    /// Lists and inspects once; says whether something of the list was gone when it was inspected.
    async fn inspected(
        &self,
        rec: &mut Recorder,
        api: &Api<'_>,
        filter: &Filter,
        unseen: &mut Unseen,
    ) -> Result<(Vec<(Service, Seen)>, bool), DockerError> {
        let at = self.engine.docker.endpoint()?;
        rec.waiting(Reason::AnswerTimeout, format!("docker at {at}: answered a ping, waiting for its list of containers"));
        let mut listed = api.list(filter).await?;
        let mut meant: Vec<(Service, Listed)> =
            listed.drain(..).filter_map(|one| Some((self.wanted.service_of(&one)?, one))).collect();
        if meant.len() > MAX_CONTAINERS {
            // Those that run last: they are likelier to be well.
            meant.sort_by_key(|(_, one)| one.state == "running");
            meant.truncate(MAX_CONTAINERS);
            unseen.0.insert("all containers", format!("only {MAX_CONTAINERS} are asked for: name the services"));
        }
        rec.waiting(Reason::AnswerTimeout, format!("docker at {at}: gave its list, waiting for the state of a container"));
        let asked = meant.into_iter().map(|(service, one)| async move { (service, self.inspect(api, &one).await, one) });
        let inspected: Vec<_> = futures_util::stream::iter(asked).buffered(AT_ONCE).collect().await;
        let (mut found, mut gone) = (Vec::with_capacity(inspected.len()), false);
        for (service, container, listed) in inspected {
            match container {
                Ok(seen) => found.push((service, seen)),
                Err(DockerError::Missing(_)) => gone = true,
                Err(error) if error.reason() == Reason::Forbidden => {
                    unseen.0.insert("restart policy, last output of health checks, restarts of containers", explain(&error));
                    found.push((service, self.only_listed(&listed)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((found, gone))
    }

    async fn inspect(&self, api: &Api<'_>, listed: &Listed) -> Result<Seen, DockerError> {
        let container = api.inspect(&listed.id).await?;
        let death = self.engine.ledger().death(&container.id);
        let outdated = Some(container.is_outdated(listed));
        Ok(Seen { container, death, outdated })
    }

    /// What the list alone says, where a proxy lets nothing else through.
    fn only_listed(&self, listed: &Listed) -> Seen {
        let container = Container {
            id: listed.id.clone(),
            name: listed.name.clone(),
            status: listed.state.clone(),
            health: listed.health().map(str::to_owned),
            exit_code: listed.exit_code().unwrap_or_default(),
            labels: listed.labels.clone(),
            ..Container::default()
        };
        Seen { death: self.engine.ledger().death(&container.id), container, outdated: None }
    }

    fn judge(&self, rec: &mut Recorder, found: &[(Service, Seen)]) -> Result<(), Failure> {
        let now = tasks::wall_now();
        let mut services: BTreeMap<&Service, Vec<&Seen>> = BTreeMap::new();
        for (service, seen) in found {
            // Without its policy it is not known whether a container is to run; named ones are.
            let expected = !matches!(self.wanted, Wanted::All { .. }) || !matches!(seen.container.policy.as_str(), "no" | "");
            if expected {
                services.entry(service).or_default().push(seen);
            }
        }
        let absent;
        let expected = match &self.wanted {
            Wanted::Engine => return Ok(()),
            Wanted::All { .. } => None,
            Wanted::Service { replicas, .. } => Some(*replicas),
            Wanted::Container(_) => Some(1),
        };
        if let (Wanted::Service { name, project, .. }, true) = (&self.wanted, services.is_empty()) {
            absent = Service { project: project.clone().unwrap_or_default(), name: name.clone() };
            services.insert(&absent, Vec::new());
        }
        let absent_container;
        if let (Wanted::Container(name), true) = (&self.wanted, services.is_empty()) {
            absent_container = Service { project: String::new(), name: name.clone() };
            services.insert(&absent_container, Vec::new());
        }
        let (mut wrong, mut reason) = (Vec::new(), Reason::Unavailable);
        let mut shown = BTreeSet::new();
        for (service, containers) in services {
            let judged = Judged::new(service.clone(), containers, expected);
            self.record(rec, &judged, &mut shown);
            if judged.containers.is_empty() {
                reason = Reason::Missing;
                let what = match &self.wanted {
                    Wanted::Container(name) => format!("{name}: there is no such container: `docker ps -a` shows which there are"),
                    _ => {
                        let (name, project) = (&service.name, &service.project);
                        let of = if project.is_empty() { String::new() } else { format!(" in project {project}") };
                        format!("{name}: there is no container of this compose service{of}: it was removed or never made (docker compose up -d {name})")
                    }
                };
                wrong.push(what);
            } else if let Some(what) = judged.wrong(now) {
                rec.evidence(&what);
                wrong.push(what);
            }
            for seen in judged.containers.iter().filter(|seen| seen.outdated == Some(true) && seen.standing() == Standing::Well) {
                let (name, image) = (shown_name(&seen.container), &seen.container.image);
                rec.evidence(format!("container {name} ({}) was made of an image that {image} no longer means", uptime(&seen.container, now)));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(Failure::new(reason, wrong.join(". "))) }
    }

    fn record(&self, rec: &mut Recorder, judged: &Judged<'_>, shown: &mut BTreeSet<String>) {
        let Service { project, name: service } = &judged.service;
        let with = |more: &[(&'static str, &str)], rec: &mut Recorder, family: &'static Family, value: f64| {
            let mut labels = more.to_vec();
            labels.push(("service", service));
            if !project.is_empty() {
                labels.push(("project", project));
            }
            rec.set_with(family, &labels, value);
        };
        // Events speak of a container that is one of a compose service under the name of that.
        let told_of = judged.containers.first().and_then(|seen| Service::of(&seen.container.labels, &seen.container.name));
        let counts = self.engine.ledger().counts(told_of.as_ref().unwrap_or(&judged.service));
        with(&[], rec, &EXPECTED, judged.expected as f64);
        with(&[], rec, &RUNNING, judged.well as f64);
        with(&[], rec, &DEAD, judged.dead as f64);
        for (kind, value) in [("asked", counts.asked), ("early", counts.early), ("crash", counts.crash)] {
            with(&[("kind", kind)], rec, &DEATHS, value as f64);
        }
        with(&[], rec, &OOM_KILLS, counts.oom as f64);
        // The newest of a name stands for it: compose makes a container anew under its old name.
        let mut containers = judged.containers.clone();
        containers.sort_by_key(|seen| std::cmp::Reverse(seen.container.started_at));
        for seen in containers {
            let container = &seen.container;
            let name = shown_name(container);
            if !shown.insert(name.to_owned()) {
                continue;
            }
            let mut set = |more: &[(&'static str, &str)], family: &'static Family, value: f64| {
                with(&[&[("name", name)], more].concat(), rec, family, value);
            };
            let flag = |is: bool| f64::from(u8::from(is));
            set(&[("state", &container.status)], &STATE, 1.0);
            if let Some(health) = &container.health {
                for status in ["healthy", "unhealthy", "starting"] {
                    set(&[("status", status)], &HEALTH, flag(health == status));
                }
                set(&[], &STREAK, container.failing_streak as f64);
            }
            if let Some(requested) = seen.requested() {
                set(&[], &REQUESTED, flag(requested));
            }
            let Some(outdated) = seen.outdated else { continue };
            set(&[], &RESTARTS, container.restarts as f64);
            set(&[], &OOM_KILLED, flag(container.oom_killed));
            set(&[("image", &container.image)], &OUTDATED, flag(outdated));
            if container.finished_at.is_some() {
                set(&[], &EXIT_CODE, container.exit_code as f64);
            }
            if let Some(at) = container.started_at {
                set(&[], &STARTED, at.as_secs_f64());
            }
        }
    }
}
