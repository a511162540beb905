//! What docker says of containers. Only what is used is decoded: never the environment, which holds secrets.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::Timestamp;

/// The longest output of a health check that is kept, in characters; docker itself keeps 4 KiB.
const MAX_OUTPUT: usize = 400;

/// The labels that compose puts on its containers.
const SERVICE: &str = "com.docker.compose.service";
const PROJECT: &str = "com.docker.compose.project";
const ONEOFF: &str = "com.docker.compose.oneoff";

/// What a container belongs to: a compose service, or else itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// The compose project; empty where it is no compose service.
    pub project: String,
    /// The compose service, else the container's name.
    pub name: String,
}

impl Service {
    /// Reads it off the labels of a container with this name; nothing for what `docker compose run` started.
    pub fn of(labels: &BTreeMap<String, String>, name: &str) -> Option<Self> {
        // What `docker compose run` started is not the service.
        if labels.get(ONEOFF).is_some_and(|value| value == "True") {
            return None;
        }
        let project = labels.get(PROJECT).cloned().unwrap_or_default();
        Some(match labels.get(SERVICE) {
            Some(service) => Self { project, name: service.clone() },
            None => Self { project: String::new(), name: name.to_owned() },
        })
    }
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.project.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.project, self.name) }
    }
}

/// A container as the list shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The id, by which it is asked for: a name may meanwhile belong to another.
    pub id: String,
    /// The name, for people.
    pub name: String,
    /// As [`Container::status`]; empty in an API before 1.23.
    pub state: String,
    /// In words: `Up 12 seconds (healthy)`, `Exited (137) 4 seconds ago`.
    pub words: String,
    /// The image by the name it was started from; its id once that name means another image or none.
    pub image: String,
    /// The ports that are published: that of the host, and that of the container.
    pub ports: Vec<(u16, u16)>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Listed {
    /// Returns the health that its words name.
    pub fn health(&self) -> Option<&'static str> {
        ["unhealthy", "healthy", "health: starting"]
            .into_iter()
            .find(|health| self.words.ends_with(&format!("({health})")))
            .map(|health| health.trim_start_matches("health: "))
    }

    /// Returns the exit code that its words name.
    pub fn exit_code(&self) -> Option<i64> {
        let (_, rest) = self.words.split_once('(')?;
        rest.split_once(')')?.0.parse().ok()
    }
}

/// What is known of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// How many health checks in a row have failed.
    pub failing_streak: u64,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// When it last ended.
    pub finished_at: Option<Timestamp>,
    /// The exit code of its last end.
    pub exit_code: i64,
    /// Whether docker saw the kernel kill it for its memory.
    pub oom_killed: bool,
    /// Why it could not be started, in docker's words.
    pub error: Option<String>,
    /// How often its restart policy has restarted it.
    pub restarts: u64,
    /// Its restart policy: `no`, `on-failure`, `always`, `unless-stopped`.
    pub policy: String,
    /// The most memory it may use, in bytes.
    pub memory_limit: Option<u64>,
    /// The name of the image that it was made of.
    pub image: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Summary {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    state: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    image: String,
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    ports: Option<Vec<Published>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Published {
    private_port: u16,
    public_port: Option<u16>,
}

impl From<Summary> for Listed {
    fn from(summary: Summary) -> Self {
        // Names with a second slash are links of other containers to this one.
        let own = summary.names.iter().map(|name| name.trim_start_matches('/')).find(|name| !name.contains('/'));
        Self {
            name: own.unwrap_or_default().to_owned(),
            id: summary.id,
            state: summary.state,
            words: summary.status,
            image: summary.image,
            ports: summary.ports.into_iter().flatten().filter_map(|port| Some((port.public_port?, port.private_port))).collect(),
            labels: summary.labels.unwrap_or_default(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    id: String,
    name: String,
    #[serde(default)]
    restart_count: u64,
    state: InspectedState,
    config: InspectedConfig,
    #[serde(default)]
    host_config: InspectedHost,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedState {
    status: String,
    #[serde(default)]
    exit_code: i64,
    #[serde(default, rename = "OOMKilled")]
    oom_killed: bool,
    #[serde(default)]
    error: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    health: Option<InspectedHealth>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedHealth {
    status: String,
    #[serde(default)]
    failing_streak: u64,
    log: Option<Vec<InspectedRun>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedRun {
    #[serde(default)]
    output: String,
}

/// Labels and the image's name only: `Env` is never decoded.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedConfig {
    #[serde(default)]
    image: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedHost {
    #[serde(default)]
    memory: i64,
    #[serde(default)]
    restart_policy: InspectedPolicy,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedPolicy {
    #[serde(default)]
    name: String,
}

impl From<Inspected> for Container {
    fn from(inspected: Inspected) -> Self {
        // Docker writes year 1 for "never".
        let moment = |text: Option<String>| {
            let at: jiff::Timestamp = text?.parse().ok()?;
            Some(Timestamp(at.as_millisecond())).filter(|at| at.0 > 0)
        };
        let state = inspected.state;
        let cut = |text: &str| text.trim().chars().take(MAX_OUTPUT).collect::<String>();
        let policy = inspected.host_config.restart_policy.name;
        Self {
            id: inspected.id,
            name: inspected.name.trim_start_matches('/').to_owned(),
            status: state.status,
            health_output: state.health.as_ref().and_then(|health| Some(cut(&health.log.as_ref()?.last()?.output))),
            failing_streak: state.health.as_ref().map_or(0, |health| health.failing_streak),
            health: state.health.map(|health| health.status).filter(|status| status != "none"),
            started_at: moment(state.started_at),
            finished_at: moment(state.finished_at),
            exit_code: state.exit_code,
            oom_killed: state.oom_killed,
            error: Some(cut(&state.error)).filter(|error| !error.is_empty()),
            restarts: inspected.restart_count,
            // An engine that was never told writes nothing.
            policy: if policy.is_empty() { "no".to_owned() } else { policy },
            memory_limit: u64::try_from(inspected.host_config.memory).ok().filter(|limit| *limit > 0),
            image: inspected.config.image,
            labels: inspected.config.labels.unwrap_or_default(),
        }
    }
}

impl Container {
    /// Says whether the name that it was started from now means another image, or none.
    pub fn is_outdated(&self, listed: &Listed) -> bool {
        let is_id = |image: &str| {
            let hex = image.strip_prefix("sha256:").unwrap_or(image);
            hex.len() >= 12 && hex.chars().all(|c| c.is_ascii_hexdigit())
        };
        is_id(&listed.image) && !is_id(&self.image) && !self.image.contains("@sha256:")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_container_belongs_to_its_compose_service_or_to_itself() {
        let of = |pairs: &[(&str, &str)]| Service::of(&labels(pairs), "c-1").map(|service| service.to_string());
        assert_eq!(of(&[]).as_deref(), Some("c-1"));
        assert_eq!(of(&[(SERVICE, "cache"), (PROJECT, "p"), (ONEOFF, "False")]).as_deref(), Some("p/cache"));
        assert_eq!(of(&[(SERVICE, "cache"), (PROJECT, "p"), (ONEOFF, "True")]), None);
    }

    #[test]
    fn an_environment_is_never_decoded_and_the_rest_is() {
        let text = r#"{"Id": "a1", "Name": "/web", "RestartCount": 2, "Config": {"Env": ["PASSWORD=hunter2"], "Image": "web:1", "Labels": null},
            "HostConfig": {"Memory": 1048576, "RestartPolicy": {"Name": "", "MaximumRetryCount": 0}},
            "State": {"Status": "running", "StartedAt": "2026-11-25T21:02:25.677914155Z", "FinishedAt": "0001-01-01T00:00:00Z",
            "OOMKilled": true, "Error": "", "Health": {"Status": "unhealthy", "FailingStreak": 3, "Log": [{"Output": "no\n"}]}}}"#;
        let container: Container = serde_json::from_str::<Inspected>(text).expect("is right").into();
        assert!(!format!("{container:?}").contains("hunter2"));
        assert_eq!((container.policy.as_str(), container.memory_limit, container.failing_streak), ("no", Some(1 << 20), 3));
        assert_eq!((container.health_output.as_deref(), container.finished_at, container.error), (Some("no"), None, None));
    }

    #[test]
    fn the_words_of_the_list_name_health_and_exit_code() {
        let listed = |words: &str| Listed { words: words.to_owned(), ..Listed::default() };
        for (words, health, code) in [
            ("Up 3 seconds (unhealthy)", Some("unhealthy"), None),
            ("Up 3 hours (healthy)", Some("healthy"), None),
            ("Up 1 second (health: starting)", Some("starting"), None),
            ("Up 3 seconds", None, None),
            ("Exited (137) 4 seconds ago", None, Some(137)),
            ("Restarting (1) Less than a second ago", None, Some(1)),
            ("Created", None, None),
        ] {
            assert_eq!((listed(words).health(), listed(words).exit_code()), (health, code), "{words}");
        }
    }

    #[test]
    fn an_image_is_outdated_where_its_name_means_another() {
        let id = "sha256:6495923391dfe5893378f2dcc6e2f7d5c6d0911e7da2c996873acfa42d8167ec";
        for (made_of, listed, outdated) in [
            ("web:1", "web:1", false),
            ("web:1", id, true),
            ("web:1", "6495923391df", true),
            (id, id, false),
            ("web@sha256:6495923391dfe5893378f2dcc6e2f7d5c6d0911e7da2c996873acfa42d8167ec", id, false),
        ] {
            let container = Container { image: made_of.to_owned(), ..Container::default() };
            let listed = Listed { image: listed.to_owned(), ..Listed::default() };
            assert_eq!(container.is_outdated(&listed), outdated, "{made_of} {}", listed.image);
        }
    }
}
