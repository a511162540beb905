//! The few calls of the docker API that Proctor makes, over its unix socket or through a socket proxy.
//!
//! By [`super::http`] and not by a docker library: replies are bounded, of a container only state and labels are
//! decoded (its environment, which holds secrets, is not), and the only paths asked for are those that a socket proxy
//! would be told to let through: `/_ping`, `/v1.NN/containers/json`, `…/{name}/json`, `/v1.NN/events`, and for actions
//! `…/{name}/restart`. Source: Docker Engine API 1.41.

mod container;
mod events;

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use self::container::{Container, Listed, Service};
use self::container::{Inspected, Summary};
pub use self::events::{Action, Event};
use super::http::{self, Answer, HttpError, Method, Request, Seen, Url};
use super::net::{self, Endpoint, chain};
use crate::model::decode::{self, Decode};
use crate::model::duration::print;
use crate::model::yaml::Node;
use crate::model::{Failure, Problems, Reason, Timestamp};

/// Where dockerd listens by default.
pub const SOCKET: &str = "/run/docker.sock";
/// How long a container may take to end after its stop signal, before docker kills it.
pub const STOP_WITHIN: Duration = Duration::from_secs(10);
/// The limit of one call; a restart has [`STOP_WITHIN`] on top.
pub const CALL: Duration = Duration::from_secs(30);
/// The largest reply, in bytes: a list of a few hundred containers is under 1 MiB.
const MAX_REPLY: usize = 4 << 20;
/// The most containers one compose service may have.
const MAX_SCALE: usize = 20;

/// What went wrong between us and docker.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// `DOCKER_HOST` leads elsewhere.
    #[error("DOCKER_HOST is {0:?}: expected {expected}", expected = Engine::EXPECTED)]
    Host(String),
    /// The daemon cannot be reached, or what it says is no HTTP.
    #[error("cannot ask docker at {at}")]
    Http {
        /// Where.
        at: Endpoint,
        /// Why.
        source: HttpError,
    },
    /// The daemon hangs.
    #[error("docker at {at} did not answer {what} within {}: is the daemon stuck? (journalctl -u docker)", print(*limit))]
    Timeout {
        /// Where.
        at: Endpoint,
        /// What was asked.
        what: String,
        /// The limit.
        limit: Duration,
    },
    /// The daemon, or a proxy in front of it, says no.
    #[error("docker answered {what} with status {status}: {message}")]
    Status {
        /// What was asked.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What it said, one bounded line.
        message: String,
    },
    /// The reply is not what the API promises.
    #[error("docker's answer to {what} is not understood: {why}")]
    Reply {
        /// What was asked.
        what: String,
        /// What was expected.
        why: String,
    },
    /// There is none such.
    #[error("no container {0}; `docker ps -a` shows which there are")]
    Missing(String),
    /// There are several such, and which is meant is not said.
    #[error("{0}")]
    Ambiguous(String),
}

impl DockerError {
    /// Returns the reason of the closed set.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Host(_) => Reason::Internal,
            Self::Http { source, .. } => source.reason(),
            Self::Timeout { .. } => Reason::AnswerTimeout,
            Self::Status { status: 401 | 403, .. } => Reason::Forbidden,
            Self::Status { .. } => Reason::Unavailable,
            Self::Reply { .. } => Reason::Protocol,
            Self::Missing(_) => Reason::Missing,
            Self::Ambiguous(_) => Reason::Mismatch,
        }
    }
}

/// A name of a container, a compose service or a compose project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerName(pub String);

impl Decode for DockerName {
    const EXPECTED: &'static str = "a name of letters, digits, '_', '.' and '-' that begins with a letter or digit";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let name = String::decode(node, &mut Problems::default()).filter(|text| is_name(text));
        if name.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        name.map(Self)
    }
}

/// Where a docker engine, or a proxy in front of it, listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine(pub Endpoint);

impl Engine {
    /// Reads `unix:/path`, `http://host:port`, and what docker's own tools write: `unix:///path`, `tcp://host:port`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Endpoint::parse(&format!("unix:{}", path.strip_prefix("//").unwrap_or(path))).map(Self);
        }
        let rest = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://"))?;
        Endpoint::parse(rest.trim_end_matches('/')).map(Self)
    }
}

impl Decode for Engine {
    const EXPECTED: &'static str = "the address of a docker engine such as unix:/run/docker.sock or http://127.0.0.1:2375, without TLS";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let engine = String::decode(node, &mut Problems::default()).and_then(|text| Self::parse(&text));
        if engine.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        engine
    }
}

/// Which containers are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// One, by name.
    Container(String),
    /// Those of a compose service.
    Service {
        /// The service.
        service: String,
        /// The compose project, where several have such a service.
        project: Option<String>,
    },
}

/// Says whether a text may be a name of a container, a compose service or project. Names become part of a path, so
/// nothing else is let through: docker's own pattern is `[a-zA-Z0-9][a-zA-Z0-9_.-]+`, here of at most 128 characters.
pub fn is_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    text.len() <= 128 && text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(inner)
}

#[derive(Deserialize)]
struct Said {
    message: String,
}

/// The docker daemon of this host; each call is a connection of its own, so a restart of the daemon needs no care.
#[derive(Clone, Debug)]
pub struct Docker(Result<Endpoint, String>);

/// A docker daemon that has said which API it speaks.
#[derive(Clone, Debug)]
pub struct Api<'a> {
    docker: &'a Docker,
    /// The version of the API, such as `1.41`.
    pub version: String,
    /// What it names itself, such as `Docker/20.10.24`; empty where a proxy takes that away.
    pub server: String,
}

impl Docker {
    /// The daemon behind a socket.
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self::behind(Engine(Endpoint::Unix(socket.into())))
    }

    /// The daemon that listens there.
    pub fn behind(engine: Engine) -> Self {
        Self(Ok(engine.0))
    }

    /// The daemon behind `DOCKER_HOST`, else behind [`SOCKET`].
    pub fn of_this_host() -> Self {
        match std::env::var("DOCKER_HOST") {
            Ok(host) if !host.is_empty() => Self(Engine::parse(&host).map(|engine| engine.0).ok_or(host)),
            _ => Self::at(SOCKET),
        }
    }

    /// Returns where the daemon listens.
    ///
    /// # Errors
    /// [`DockerError::Host`].
    pub fn endpoint(&self) -> Result<&Endpoint, DockerError> {
        self.0.as_ref().map_err(|host| DockerError::Host(one_line(host)))
    }

    async fn ask(&self, method: Method, path: &str, what: &str, limit: Duration) -> Result<Answer, DockerError> {
        let (at, request) = self.request(method, path, what)?;
        let asked = async {
            let stream = net::connect(at, &mut net::Phases::default()).await?;
            http::exchange(stream, &request, MAX_REPLY, &mut Seen::default()).await
        };
        let answer = tokio::time::timeout(limit, asked)
            .await
            .map_err(|_| DockerError::Timeout { at: at.clone(), what: what.to_owned(), limit })?
            .map_err(|source| DockerError::Http { at: at.clone(), source })?;
        if (200..300).contains(&answer.status) { Ok(answer) } else { Err(refusal(what, answer.status, &answer.body)) }
    }

    fn request(&self, method: Method, path: &str, what: &str) -> Result<(&Endpoint, Request), DockerError> {
        let at = self.endpoint()?;
        let host = if matches!(at, Endpoint::Unix(_)) { "docker".to_owned() } else { at.to_string() };
        let url = Url::parse(&format!("http://{host}{path}")).map_err(|why| DockerError::Reply { what: what.to_owned(), why })?;
        Ok((at, Request { method, ..Request::get(url) }))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, what: &str) -> Result<T, DockerError> {
        let answer = self.ask(Method::GET, path, what, CALL).await?;
        serde_json::from_slice(&answer.body).map_err(|error| DockerError::Reply { what: what.to_owned(), why: error.to_string() })
    }

    /// Asks which version of the API the daemon speaks; further calls are made in that one.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn api(&self) -> Result<Api<'_>, DockerError> {
        let answer = self.ask(Method::GET, "/_ping", "a ping", CALL).await?;
        let version = answer.header("api-version").unwrap_or("").to_owned();
        let fine = version.len() < 10 && version.split('.').count() == 2 && version.chars().all(|c| c.is_ascii_digit() || c == '.');
        if fine {
            let server: String = answer.header("server").unwrap_or("").split(' ').take(1).collect();
            Ok(Api { docker: self, version, server })
        } else {
            let version = one_line(&version);
            Err(DockerError::Reply { what: "a ping".to_owned(), why: format!("expected a version of the API, found {version:?}") })
        }
    }

    /// Returns the containers that a selector means: one, or those of a scaled service.
    ///
    /// # Errors
    /// [`DockerError::Missing`] where there is none, [`DockerError::Ambiguous`] where several projects have the service.
    pub async fn find(&self, selector: &Selector) -> Result<Vec<Container>, DockerError> {
        let api = self.api().await?;
        let ids = match selector {
            Selector::Container(name) => vec![name.clone()],
            Selector::Service { service, project } => {
                let found = api.list(&Filter::service(service, project.as_deref())).await?;
                let found: Vec<(Service, String)> =
                    found.into_iter().filter_map(|one| Some((Service::of(&one.labels, &one.name)?, one.id))).collect();
                let projects: std::collections::BTreeSet<_> = found.iter().map(|(service, _)| service.project.as_str()).collect();
                if projects.len() > 1 || found.len() > MAX_SCALE {
                    let names: Vec<_> = projects.into_iter().take(10).collect();
                    let why = format!("compose service {service} has {} containers in the projects {}", found.len(), names.join(", "));
                    return Err(DockerError::Ambiguous(format!("{why}: say which by project, or name the container")));
                }
                if found.is_empty() {
                    let project = project.as_ref().map(|project| format!(" in project {project}")).unwrap_or_default();
                    return Err(DockerError::Missing(format!("of compose service {service}{project}")));
                }
                found.into_iter().map(|(_, id)| id).collect()
            }
        };
        let mut containers = Vec::with_capacity(ids.len());
        for id in ids {
            containers.push(api.inspect(&id).await?);
        }
        Ok(containers)
    }

    /// Restarts a container: its stop signal, [`STOP_WITHIN`] later SIGKILL, then a start. Returns when it is started.
    ///
    /// # Errors
    /// [`DockerError`]; after a timeout the daemon may still do it.
    pub async fn restart(&self, id: &str) -> Result<(), DockerError> {
        if !is_name(id) {
            return Err(DockerError::Missing(format!("{id:?}")));
        }
        let version = self.api().await?.version;
        let path = format!("/v{version}/containers/{id}/restart?t={}", STOP_WITHIN.as_secs());
        match self.ask(Method::POST, &path, "a restart", CALL + STOP_WITHIN).await {
            Ok(_) => Ok(()),
            Err(DockerError::Status { status: 404, .. }) => Err(DockerError::Missing(id.to_owned())),
            Err(error) => Err(error),
        }
    }

    /// Returns, of all running containers, id and moment of the start, from docker's "Up 12 seconds": to the second
    /// within the first minute, to the minute within the first hour, later ones are left out.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn recent_starts(&self, now: Timestamp) -> Result<Vec<(String, Timestamp)>, DockerError> {
        let running = self.api().await?.list(&Filter::running()).await?;
        Ok(running.into_iter().filter_map(|one| Some((one.id, now - up_for(&one.words)?))).collect())
    }
}

/// Which containers the daemon lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    query: String,
    what: String,
}

impl Filter {
    /// All, also those that do not run.
    pub fn all() -> Self {
        Self { query: "?all=1".to_owned(), what: "which containers there are".to_owned() }
    }

    /// Those that run.
    pub fn running() -> Self {
        Self { query: String::new(), what: "which containers run".to_owned() }
    }

    /// Those of a compose service, in one project or in all.
    pub fn service(service: &str, project: Option<&str>) -> Self {
        let mut wanted = vec![format!("com.docker.compose.service={service}")];
        wanted.extend(project.map(|project| format!("com.docker.compose.project={project}")));
        Self::by("label", &wanted, format!("which containers compose service {service} has"))
    }

    /// Those of a compose project.
    pub fn project(project: &str) -> Self {
        Self::by("label", &[format!("com.docker.compose.project={project}")], format!("which containers project {project} has"))
    }

    /// Those with this text in their name: docker takes it for a pattern, so others may be among them.
    pub fn named(name: &str) -> Self {
        Self::by("name", &[format!("^/?{name}$")], format!("for container {name}"))
    }

    fn by(key: &str, wanted: &[String], what: String) -> Self {
        Self { query: format!("?all=1&filters={}", encode(&serde_json::json!({ key: wanted }).to_string())), what }
    }
}

impl Api<'_> {
    /// Lists containers.
    ///
    /// # Errors
    /// [`DockerError`].
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Listed>, DockerError> {
        let path = format!("/v{}/containers/json{}", self.version, filter.query);
        let found: Vec<Summary> = self.docker.get(&path, &filter.what).await?;
        Ok(found.into_iter().map(Listed::from).collect())
    }

    /// Returns what is known of one container, by id or name.
    ///
    /// # Errors
    /// [`DockerError::Missing`] where there is none.
    pub async fn inspect(&self, id: &str) -> Result<Container, DockerError> {
        // An id is the daemon's own text, but it too becomes a path.
        if !is_name(id) {
            return Err(DockerError::Missing(format!("{id:?}")));
        }
        let what = format!("the state of container {id}");
        match self.docker.get::<Inspected>(&format!("/v{}/containers/{id}/json", self.version), &what).await {
            Ok(inspected) => Ok(inspected.into()),
            Err(DockerError::Status { status: 404, .. }) => Err(DockerError::Missing(id.to_owned())),
            Err(error) => Err(error),
        }
    }
}

fn one_line(text: &str) -> String {
    Failure::new(Reason::Internal, text.trim()).detail
}

/// What a status that is not 2xx means, in docker's words or a proxy's.
fn refusal(what: &str, status: u16, body: &[u8]) -> DockerError {
    let text = serde_json::from_slice::<Said>(body).map_or_else(|_| String::from_utf8_lossy(body).into_owned(), |said| said.message);
    DockerError::Status { what: what.to_owned(), status, message: one_line(&text).chars().take(200).collect() }
}

/// Reads "Up 12 seconds (healthy)" as docker's `units.HumanDuration` writes it.
fn up_for(status: &str) -> Option<Duration> {
    let mut words = status.strip_prefix("Up ")?.split(' ');
    let seconds = match (words.next()?, words.next()?) {
        ("Less", _) => 0,
        ("1", "second") => 1,
        (n, "seconds") => n.parse().ok()?,
        ("About", "a") if words.next() == Some("minute") => 60,
        (n, "minutes") => n.parse::<u64>().ok()?.checked_mul(60)?,
        _ => return None,
    };
    Some(Duration::from_secs(seconds))
}

/// Percent-encodes a query's value.
fn encode(text: &str) -> String {
    let byte = |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(byte).collect()
}

/// Prints the error for people, with its causes and what to do about those that have a remedy.
pub fn explain(error: &DockerError) -> String {
    let text = chain(error);
    match error {
        DockerError::Http { source, .. } if source.reason() == Reason::Forbidden => {
            format!("{text}: let the user of Proctor use the socket, best through a socket proxy; its group is as good as root")
        }
        DockerError::Http { source, .. } if matches!(source.reason(), Reason::Missing | Reason::Refused) => {
            format!("{text}: docker does not run, or its socket is elsewhere (docker.socket)")
        }
        DockerError::Status { status: 403, .. } => format!("{text}: does a socket proxy in front of docker allow this call?"),
        _ => text,
    }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// What docker says of containers: its list, one of them, how long it has been up.
    pub fn docker(bytes: &[u8]) {
        drop(serde_json::from_slice::<Vec<container::Summary>>(bytes).map(|all| all.into_iter().map(Listed::from).collect::<Vec<_>>()));
        drop(serde_json::from_slice::<container::Inspected>(bytes).map(Container::from));
        up_for(&String::from_utf8_lossy(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_be_another_path_is_none() {
        for name in ["memcached", "a", "coursys_memcached_1", "A.b-c"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "../x", "a/b", "a?b", "a%2fb", ".a", "-a", "a b", "ä", &"a".repeat(129), "a\n"] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    #[test]
    fn an_engine_is_named_as_dockers_own_tools_do_or_as_a_url() {
        for (text, expected) in [
            ("unix:/run/docker.sock", Some("unix:/run/docker.sock")),
            ("unix:///run/docker.sock", Some("unix:/run/docker.sock")),
            ("tcp://proxy:2375", Some("proxy:2375")),
            ("http://127.0.0.1:2375/", Some("127.0.0.1:2375")),
            ("http://[::1]:2375", Some("[::1]:2375")),
            ("https://proxy:2376", None),
            ("ssh://host", None),
            ("/run/docker.sock", None),
            ("http://proxy", None),
        ] {
            assert_eq!(Engine::parse(text).map(|engine| engine.0.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn docker_says_in_words_how_long_a_container_has_been_up() {
        for (text, seconds) in [
            ("Up Less than a second", Some(0)),
            ("Up 1 second", Some(1)),
            ("Up 12 seconds (healthy)", Some(12)),
            ("Up About a minute", Some(60)),
            ("Up 2 minutes (unhealthy)", Some(120)),
            ("Up About an hour", None),
            ("Up 3 hours", None),
            ("Exited (137) 4 seconds ago", None),
            ("Restarting (1) 4 seconds ago", None),
            ("", None),
        ] {
            assert_eq!(up_for(text).map(|up| up.as_secs()), seconds, "{text}");
        }
    }
}
