//! The few calls of the docker API that Proctor makes, over its unix socket.
//!
//! By [`super::http`] and not by a docker library: replies are bounded, of a container only state and labels are
//! decoded (its environment, which holds secrets, is not), and the only paths asked for are those that a socket proxy
//! would be told to let through: `/_ping`, `/v1.NN/containers/json`, `…/{name}/json`, `…/{name}/restart`.
//! Source: Docker Engine API 1.41.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::http::{self, Answer, HttpError, Method, Request, Seen, Url};
use super::net::{Endpoint, Trust, chain};
use crate::model::Timestamp;
use crate::model::duration::print;

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
    #[error("DOCKER_HOST is {0:?}: expected unix:///path/to/docker.sock; docker over a network is not supported")]
    Host(String),
    /// The daemon cannot be reached, or what it says is no HTTP.
    #[error("cannot ask docker at {}", socket.display())]
    Http {
        /// Where.
        socket: PathBuf,
        /// Why.
        source: HttpError,
    },
    /// The daemon hangs.
    #[error("docker at {} did not answer {what} within {}: is the daemon stuck? (journalctl -u docker)", socket.display(), print(*limit))]
    Timeout {
        /// Where.
        socket: PathBuf,
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

/// What is known of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The id, by which it is acted on: a name may meanwhile belong to another.
    pub id: String,
    /// The name, for people.
    pub name: String,
    /// `running`, `exited`, `restarting`, `paused`, `created`, `removing` or `dead`.
    pub status: String,
    /// `healthy`, `unhealthy`, `starting`; nothing where it has no health check.
    pub health: Option<String>,
    /// What the last health check printed.
    pub health_output: Option<String>,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// When it last ended.
    pub finished_at: Option<Timestamp>,
    /// The exit code of its last end.
    pub exit_code: i64,
    /// Whether the kernel killed it for its memory.
    pub oom_killed: bool,
    /// How often its restart policy has restarted it.
    pub restarts: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Summary {
    id: String,
    #[serde(default)]
    status: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    name: String,
    #[serde(default)]
    restart_count: u64,
    state: InspectedState,
    config: InspectedConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedState {
    status: String,
    #[serde(default)]
    exit_code: i64,
    #[serde(default, rename = "OOMKilled")]
    oom_killed: bool,
    started_at: Option<String>,
    finished_at: Option<String>,
    health: Option<InspectedHealth>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedHealth {
    status: String,
    log: Option<Vec<InspectedRun>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedRun {
    #[serde(default)]
    output: String,
}

/// Labels only: `Env` is never decoded.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedConfig {
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Said {
    message: String,
}

/// The docker daemon of this host; each call is a connection of its own, so a restart of the daemon needs no care.
#[derive(Clone, Debug)]
pub struct Docker(Result<PathBuf, String>);

impl Docker {
    /// The daemon behind a socket.
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self(Ok(socket.into()))
    }

    /// The daemon behind `DOCKER_HOST`, else behind [`SOCKET`].
    pub fn of_this_host() -> Self {
        match std::env::var("DOCKER_HOST") {
            Ok(host) if !host.is_empty() => Self(host.strip_prefix("unix://").map(PathBuf::from).ok_or(host.clone())),
            _ => Self::at(SOCKET),
        }
    }

    /// Returns where the daemon listens.
    ///
    /// # Errors
    /// [`DockerError::Host`].
    pub fn socket(&self) -> Result<&Path, DockerError> {
        self.0.as_deref().map_err(|host| DockerError::Host(crate::model::Failure::new(crate::model::Reason::Internal, host).detail))
    }

    async fn ask(&self, method: Method, path: &str, what: &str, limit: Duration) -> Result<Answer, DockerError> {
        let socket = self.socket()?;
        let reply = |why: String| DockerError::Reply { what: what.to_owned(), why };
        let url = Url::parse(&format!("http://docker{path}")).map_err(reply)?;
        let request = Request { method, ..Request::get(url) }.at(Endpoint::Unix(socket.to_owned()));
        let mut seen = Seen::default();
        let answer = tokio::time::timeout(limit, http::send(&request, &Trust::system(), MAX_REPLY, &mut seen))
            .await
            .map_err(|_| DockerError::Timeout { socket: socket.to_owned(), what: what.to_owned(), limit })?
            .map_err(|source| DockerError::Http { socket: socket.to_owned(), source })?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        let text = serde_json::from_slice::<Said>(&answer.body).map_or_else(|_| answer.text().into_owned(), |said| said.message);
        let message: String = crate::model::Failure::new(crate::model::Reason::Internal, text.trim()).detail.chars().take(200).collect();
        Err(DockerError::Status { what: what.to_owned(), status: answer.status, message })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, what: &str) -> Result<T, DockerError> {
        let answer = self.ask(Method::GET, path, what, CALL).await?;
        serde_json::from_slice(&answer.body).map_err(|error| DockerError::Reply { what: what.to_owned(), why: error.to_string() })
    }

    /// Returns the path's beginning for the daemon's own version of the API, such as `/v1.41`.
    async fn version(&self) -> Result<String, DockerError> {
        let answer = self.ask(Method::GET, "/_ping", "a ping", CALL).await?;
        let version = answer.header("api-version").unwrap_or("").to_owned();
        let fine = version.len() < 10 && version.split('.').count() == 2 && version.chars().all(|c| c.is_ascii_digit() || c == '.');
        if fine {
            Ok(format!("/v{version}"))
        } else {
            Err(DockerError::Reply { what: "a ping".to_owned(), why: format!("expected a version of the API, found {version:?}") })
        }
    }

    /// Returns the containers that a selector means: one, or those of a scaled service.
    ///
    /// # Errors
    /// [`DockerError::Missing`] where there is none, [`DockerError::Ambiguous`] where several projects have the service.
    pub async fn find(&self, selector: &Selector) -> Result<Vec<Container>, DockerError> {
        let version = self.version().await?;
        let ids = match selector {
            Selector::Container(name) => vec![name.clone()],
            Selector::Service { service, project } => {
                let mut wanted = vec![format!("com.docker.compose.service={service}")];
                wanted.extend(project.iter().map(|project| format!("com.docker.compose.project={project}")));
                let filters = encode(&serde_json::json!({ "label": wanted }).to_string());
                let path = format!("{version}/containers/json?all=1&filters={filters}");
                let found: Vec<Summary> = self.get(&path, &format!("which containers compose service {service} has")).await?;
                let label = |summary: &Summary, name: &str| summary.labels.as_ref().and_then(|labels| labels.get(name).cloned());
                // What `docker compose run` started is not the service.
                let found: Vec<_> =
                    found.into_iter().filter(|one| label(one, "com.docker.compose.oneoff").as_deref() != Some("True")).collect();
                let projects: std::collections::BTreeSet<_> =
                    found.iter().filter_map(|one| label(one, "com.docker.compose.project")).collect();
                if projects.len() > 1 || found.len() > MAX_SCALE {
                    let names: Vec<_> = projects.into_iter().take(10).collect();
                    let why = format!("compose service {service} has {} containers in the projects {}", found.len(), names.join(", "));
                    return Err(DockerError::Ambiguous(format!("{why}: say which by project, or name the container")));
                }
                if found.is_empty() {
                    let project = project.as_ref().map(|project| format!(" in project {project}")).unwrap_or_default();
                    return Err(DockerError::Missing(format!("of compose service {service}{project}")));
                }
                found.into_iter().map(|one| one.id).collect()
            }
        };
        let mut containers = Vec::with_capacity(ids.len());
        for id in ids {
            // An id is the daemon's own text, but it too becomes a path.
            if !is_name(&id) {
                return Err(DockerError::Missing(format!("{id:?}")));
            }
            let what = format!("the state of container {id}");
            match self.get::<Inspected>(&format!("{version}/containers/{id}/json"), &what).await {
                Ok(inspected) => containers.push(inspected.into()),
                Err(DockerError::Status { status: 404, .. }) => return Err(DockerError::Missing(id)),
                Err(error) => return Err(error),
            }
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
        let version = self.version().await?;
        let path = format!("{version}/containers/{id}/restart?t={}", STOP_WITHIN.as_secs());
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
        let version = self.version().await?;
        let running: Vec<Summary> = self.get(&format!("{version}/containers/json"), "which containers run").await?;
        Ok(running.into_iter().filter_map(|one| Some((one.id, now - up_for(&one.status)?))).collect())
    }
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

impl From<Inspected> for Container {
    fn from(inspected: Inspected) -> Self {
        // Docker writes year 1 for "never".
        let moment = |text: Option<String>| {
            let at: jiff::Timestamp = text?.parse().ok()?;
            Some(Timestamp(at.as_millisecond())).filter(|at| at.0 > 0)
        };
        let state = inspected.state;
        Self {
            id: inspected.id,
            name: inspected.name.trim_start_matches('/').to_owned(),
            status: state.status,
            health_output: state.health.as_ref().and_then(|health| Some(health.log.as_ref()?.last()?.output.trim().to_owned())),
            health: state.health.map(|health| health.status).filter(|status| status != "none"),
            started_at: moment(state.started_at),
            finished_at: moment(state.finished_at),
            exit_code: state.exit_code,
            oom_killed: state.oom_killed,
            restarts: inspected.restart_count,
            labels: inspected.config.labels.unwrap_or_default(),
        }
    }
}

/// Percent-encodes a query's value.
fn encode(text: &str) -> String {
    let byte = |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(byte).collect()
}

/// Prints the error for people, with its causes and what to do about those that have a remedy.
pub fn explain(error: &DockerError) -> String {
    use crate::model::Reason;
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
