//! Restarts a container, by name or as a compose service.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Action, Done, Facts, Occasion, line};
use crate::client::docker::{self, CALL, Docker, DockerName, STOP_WITHIN, Selector, explain};
use crate::model::decode::{self, Decode};
use crate::model::yaml::Node;
use crate::model::{Position, Problems};

/// The label by which docker-autoheal (<https://github.com/willfarrell/docker-autoheal>) finds what it restarts.
const AUTOHEAL: &str = "autoheal";

/// What can be done to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart;

impl Decode for Restart {
    const EXPECTED: &'static str = "restart";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let verb = String::decode(node, &mut Problems::default()).filter(|text| text == "restart");
        if verb.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        verb.map(|_| Self)
    }
}

crate::config_struct! {
    /// Restarts a container through the docker API: stop signal, SIGKILL 10 s later, start. Who may use docker's
    /// socket is as good as root; a socket proxy narrows that.
    pub struct DockerConfig {
        /// A compose service: all its containers, one after the other.
        service: Option<DockerName>,
        /// The compose project, where several have such a service.
        project: Option<DockerName>,
        /// A container, by name.
        container: Option<DockerName>,
        /// What is done: restart.
        verb: Restart = "restart",
    }
}

impl DockerConfig {
    /// Notes what is wrong between the keys.
    pub fn check(&self, name: &str, at: Position, problems: &mut Problems) {
        if self.service.is_some() == self.container.is_some() {
            problems.push(at, format!("actions.{name}.docker: expected either service or container"));
        }
        if self.project.is_some() && self.service.is_none() {
            problems.push(at, format!("actions.{name}.docker: project is only for a service"));
        }
    }

    /// Returns what is restarted, for people and as the budget's key.
    pub fn object(&self) -> String {
        match (&self.service, &self.project, &self.container) {
            (Some(service), Some(project), _) => format!("{}/{}", project.0, service.0),
            (Some(name), None, _) | (None, _, Some(name)) => name.0.clone(),
            (None, _, None) => String::new(),
        }
    }

    fn selector(&self) -> Selector {
        match (&self.service, &self.container) {
            (Some(service), _) => {
                Selector::Service { service: service.0.clone(), project: self.project.as_ref().map(|project| project.0.clone()) }
            }
            (None, container) => Selector::Container(container.as_ref().map(|name| name.0.clone()).unwrap_or_default()),
        }
    }
}

/// A container, or those of a service.
#[derive(Clone, Debug)]
pub struct Container {
    selector: Selector,
    docker: Arc<Docker>,
}

impl Container {
    /// Takes the configuration.
    pub fn new(config: &DockerConfig, docker: Arc<Docker>) -> Self {
        Self { selector: config.selector(), docker }
    }

    async fn look(&self) -> Facts {
        let found = match self.docker.find(&self.selector).await {
            Ok(found) => found,
            Err(error) => return Facts { lines: vec![line(&explain(&error))], ..Facts::default() },
        };
        let mut facts = Facts::default();
        let now = crate::tasks::now();
        for container in &found {
            let health = container.health.as_ref().map(|health| format!(", {health}")).unwrap_or_default();
            let oom = if container.oom_killed { ", killed for its memory" } else { "" };
            let ended = if container.status == "running" { String::new() } else { format!(", exit code {}{oom}", container.exit_code) };
            facts.lines.push(line(&format!(
                "container {} {}{health}{ended}, restarted {} times by docker, started {}",
                container.name,
                container.status,
                container.restarts,
                container.started_at.map_or_else(|| "never".to_owned(), |at| at.to_string())
            )));
            facts.lines.extend(container.health_output.iter().map(|output| line(&format!("its last health check said: {output}"))));
            let changed = match (container.status.as_str(), container.exit_code) {
                ("running" | "paused", _) => container.started_at,
                // A stop in good order, or by a stop signal: somebody may be at work. A crash is nobody's work.
                ("exited", 0 | 143) => container.finished_at,
                _ => None,
            };
            facts.changed_at = facts.changed_at.max(changed);
            if matches!(container.status.as_str(), "removing" | "restarting") {
                facts.busy = Some(format!("docker is {} it", container.status));
            }
            if container.labels.get(AUTOHEAL).is_some_and(|value| value == "true") {
                facts.hands_off = Some(format!("container {} has the label autoheal=true, so docker-autoheal restarts it", container.name));
            }
        }
        // A proxy may not allow the list: then a deploy is seen only by the container itself.
        if let Ok(starts) = self.docker.recent_starts(now).await {
            facts.starts =
                starts.into_iter().filter(|(id, _)| found.iter().all(|container| container.id != *id)).map(|(_, at)| at).collect();
        }
        facts
    }

    async fn restart(&self) -> Result<String, String> {
        let found = self.docker.find(&self.selector).await.map_err(|error| explain(&error))?;
        for container in &found {
            self.docker.restart(&container.id).await.map_err(|error| format!("container {}: {}", container.name, explain(&error)))?;
        }
        let names: Vec<_> = found.iter().map(|container| container.name.as_str()).collect();
        Ok(format!("restarted container {}", names.join(", ")))
    }
}

impl Action for Container {
    fn facts(&self) -> BoxFuture<'_, Facts> {
        self.look().boxed()
    }

    fn act<'a>(&'a self, _: &'a Occasion) -> BoxFuture<'a, Done> {
        async { Done::quiet(self.restart().await.map_err(|why| line(&why))) }.boxed()
    }

    fn settled(&self) -> BoxFuture<'_, Result<(), String>> {
        async {
            let found = self.docker.find(&self.selector).await.map_err(|error| line(&docker::explain(&error)))?;
            match found.iter().find(|container| container.status != "running") {
                Some(container) => Err(format!("container {} is {} (exit code {})", container.name, container.status, container.exit_code)),
                None => Ok(()),
            }
        }
        .boxed()
    }

    fn deadline(&self) -> Duration {
        // Finding it is two calls and one per container; each restart one more.
        (CALL + STOP_WITHIN) * 4
    }
}
