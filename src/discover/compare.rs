//! What differs between a configuration and what was found on the host.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{Entry, Facts, Found};
use crate::client::net::Endpoint;
use crate::config::Config;
use crate::probe::ProbeConfig;

/// Something that a probe looks at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    /// A port, or a socket; a port of this host by its number alone.
    At(String),
    /// A unit or timer of systemd.
    Unit(String),
    /// A compose service or a container.
    Container(String),
    /// Another kind that a host has once.
    Kind(&'static str),
}

/// What differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Lines that could be added under `probes`, each with what it is.
    pub new: Vec<(String, String)>,
    /// What a probe names and the host no longer shows, each with the probe's name.
    pub gone: Vec<(String, String)>,
}

/// Compares a configuration with what was found.
pub fn differences(config: &Config, found: &Found, facts: &Facts) -> Differences {
    let known: BTreeSet<Thing> = config.probes.0.iter().flat_map(|(_, probe)| things(probe)).collect();
    let mut differences = Differences::default();
    for entry in &found.entries {
        let Some(line) = entry.line() else { continue };
        let new: Vec<Thing> = of_entry(entry).into_iter().filter(|thing| !known.contains(thing)).collect();
        if !new.is_empty() {
            let what: Vec<String> = new.iter().map(Thing::told).collect();
            differences.new.push((line, what.join(", ")));
        }
    }
    for (name, probe) in &config.probes.0 {
        // Where the sites of an nginx lead to is not known here.
        if probe.nginx.is_some() {
            continue;
        }
        let gone = things(probe).into_iter().filter_map(|thing| thing.gone(facts));
        differences.gone.extend(gone.map(|why| (name.value.clone(), why)));
    }
    differences
}

/// Returns what an entry looks at, read as the configuration would read it.
fn of_entry(entry: &Entry) -> Vec<Thing> {
    let text = format!("{{{}}}", entry.body);
    crate::model::decode::from_text::<ProbeConfig>("found", &text).map(|probe| things(&probe)).unwrap_or_default()
}

fn things(probe: &ProbeConfig) -> Vec<Thing> {
    let mut all = Vec::new();
    let mut at = |endpoint: &Endpoint| all.push(Thing::at(endpoint));
    if let Some(tcp) = &probe.tcp {
        at(&tcp.address);
    }
    if let Some(gunicorn) = &probe.gunicorn {
        at(&gunicorn.listen);
    }
    if let Some(memcached) = &probe.memcached {
        at(&memcached.address);
    }
    if let Some(tunnel) = &probe.tunnel {
        at(&tunnel.address);
    }
    if let Some(rabbitmq) = &probe.rabbitmq {
        at(&Endpoint::Tcp { host: rabbitmq.host.name().to_owned(), port: rabbitmq.port });
    }
    if let Some(postgres) = &probe.postgres {
        at(&postgres.address);
    }
    if let Some(mysql) = &probe.mysql {
        at(&mysql.address);
    }
    if let Some(search) = &probe.elasticsearch {
        at(&search.url.endpoint());
    }
    if let Some(nginx) = &probe.nginx {
        let urls = nginx.sites.iter().chain(nginx.redirects.0.iter().map(|(from, _)| from)).chain(&nginx.status);
        // Names of the site lead to this nginx, or past it: by the port alone it is the same one.
        all.extend(urls.map(|url| Thing::At(url.port().to_string())));
    }
    if let Some(systemd) = &probe.systemd {
        all.extend(systemd.units.iter().chain(&systemd.timers).map(|unit| Thing::Unit(unit.0.clone())));
    }
    if let Some(docker) = &probe.docker {
        let named = docker.services.0.iter().map(|(name, _)| name).chain(&docker.containers);
        all.extend(named.map(|name| Thing::Container(name.0.clone())));
    }
    if probe.certificate.is_some() {
        all.push(Thing::Kind("certificates"));
    }
    if probe.host.is_some() {
        all.push(Thing::Kind("this host"));
    }
    if probe.celery.is_some() {
        all.push(Thing::Kind("Celery"));
    }
    if probe.beat.is_some() {
        all.push(Thing::Kind("celerybeat"));
    }
    all
}

impl Thing {
    fn at(endpoint: &Endpoint) -> Self {
        match endpoint {
            Endpoint::Unix(path) => match path.to_string_lossy().rsplit_once(".s.PGSQL.") {
                // The same server by another way.
                Some((_, port)) => Self::At(port.to_owned()),
                None => Self::At(endpoint.to_string()),
            },
            Endpoint::Tcp { port, .. } if endpoint.is_local() => Self::At(port.to_string()),
            Endpoint::Tcp { .. } => Self::At(endpoint.to_string()),
        }
    }

    fn told(&self) -> String {
        match self {
            Self::At(at) if at.parse::<u16>().is_ok() => format!("port {at}"),
            Self::At(at) => at.clone(),
            Self::Unit(name) => format!("unit {name}"),
            Self::Container(name) => format!("container {name}"),
            Self::Kind(kind) => (*kind).to_owned(),
        }
    }

    /// Says what of it the host no longer shows; nothing where it is there, or where that cannot be told.
    fn gone(&self, facts: &Facts) -> Option<String> {
        match self {
            Self::At(at) => {
                if let Ok(port) = at.parse::<u16>() {
                    let there = facts.listeners.iter().any(|listener| listener.at.port() == Some(port));
                    let socket = || facts.listeners.iter().any(|listener| listener.at.to_string().ends_with(&format!(".s.PGSQL.{port}")));
                    return (!there && !socket()).then(|| format!("nothing listens at port {port} of this host"));
                }
                let path = at.strip_prefix("unix:").map(PathBuf::from)?;
                (!path.exists()).then(|| format!("there is no socket {}", path.display()))
            }
            Self::Unit(name) if facts.units.unseen.is_none() && !facts.units.services.is_empty() => {
                let there = facts.units.services.iter().any(|service| service.name == *name) || facts.units.timers.contains(name);
                (!there).then(|| format!("{name} is neither enabled nor runs"))
            }
            Self::Container(name) if facts.containers.engine.is_some() && !facts.containers.denied && facts.containers.unseen.is_none() => {
                let there = facts.containers.projects.values().flatten().chain(&facts.containers.others).any(|known| known == name);
                (!there).then(|| format!("no container of {name} runs"))
            }
            _ => None,
        }
    }
}
