//! Which containers and compose projects run here.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use crate::client::docker::{Docker, Filter, Listed, Service};
use crate::client::net::{Endpoint, chain};
use crate::model::Reason;
use crate::model::duration::print;

/// How long docker may take: a busy host is looked at too.
const LIMIT: Duration = Duration::from_secs(15);
/// The most services and containers that are named.
const MAX_NAMED: usize = 50;

/// What docker says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Containers {
    /// Where it listens, as the configuration wants it; nothing where there is no docker.
    pub engine: Option<String>,
    /// The services of compose that run, by project.
    pub projects: BTreeMap<String, Vec<String>>,
    /// Containers of no compose service that run.
    pub others: Vec<String>,
    /// By the port of the host that is published: the container's name, and its port.
    pub published: BTreeMap<u16, (String, u16)>,
    /// Whether its socket does not let us in.
    pub denied: bool,
    /// Why it said nothing, for another reason.
    pub unseen: Option<String>,
}

/// Asks docker; one elsewhere than on this host is not looked for.
pub async fn look(docker: &Docker) -> Containers {
    let Ok(Endpoint::Unix(socket)) = docker.endpoint() else { return Containers::default() };
    let engine = Some(format!("unix:{}", socket.display()));
    if !socket.exists() {
        return Containers::default();
    }
    let asked = timeout(LIMIT, async { docker.api().await?.list(&Filter::running()).await }).await;
    match asked {
        Ok(Ok(all)) => Containers { engine, ..of(all) },
        Ok(Err(error)) => match error.reason() {
            Reason::Forbidden => Containers { engine, denied: true, ..Containers::default() },
            // A socket that nobody listens at was left behind.
            Reason::Refused => Containers::default(),
            _ => Containers { engine, unseen: Some(chain(&error)), ..Containers::default() },
        },
        Err(_) => Containers { engine, unseen: Some(format!("docker did not answer within {}", print(LIMIT))), ..Containers::default() },
    }
}

fn of(all: Vec<Listed>) -> Containers {
    let mut found = Containers::default();
    for one in all {
        for (host, inside) in &one.ports {
            found.published.insert(*host, (one.name.clone(), *inside));
        }
        match Service::of(&one.labels, &one.name) {
            Some(Service { project, name }) if !project.is_empty() => {
                let services = found.projects.entry(project).or_default();
                if !services.contains(&name) && services.len() < MAX_NAMED {
                    services.push(name);
                }
            }
            Some(Service { name, .. }) if found.others.len() < MAX_NAMED => found.others.push(name),
            _ => {}
        }
    }
    found.projects.values_mut().for_each(|services| services.sort());
    found.others.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_told_by_project_and_what_ran_once_is_left_out() {
        let one = |name: &str, labels: &[(&str, &str)], ports: &[(u16, u16)]| Listed {
            name: name.to_owned(),
            labels: labels.iter().map(|(name, value)| (format!("com.docker.compose.{name}"), (*value).to_owned())).collect(),
            ports: ports.to_vec(),
            ..Listed::default()
        };
        let found = of(vec![
            one("coursys-rabbitmq-1", &[("project", "coursys"), ("service", "rabbitmq")], &[(5673, 5672)]),
            one("coursys-app-1", &[("project", "coursys"), ("service", "app")], &[]),
            one("coursys-app-2", &[("project", "coursys"), ("service", "app")], &[]),
            one("coursys-app-run-1", &[("project", "coursys"), ("service", "app"), ("oneoff", "True")], &[]),
            one("registry", &[], &[(5000, 5000)]),
        ]);
        assert_eq!(found.projects, BTreeMap::from([("coursys".to_owned(), vec!["app".to_owned(), "rabbitmq".to_owned()])]));
        assert_eq!((found.others, found.published[&5673].clone()), (vec!["registry".to_owned()], ("coursys-rabbitmq-1".to_owned(), 5672)));
    }
}
