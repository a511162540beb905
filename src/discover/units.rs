//! Which units of systemd are the site's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;

use crate::client::net::chain;
use crate::client::systemd::{Systemd, SystemdError, is_unit};
use crate::model::duration::print;

/// How long systemd may take for all of it: a busy host is looked at too.
const LIMIT: Duration = Duration::from_secs(15);
/// The most services that are asked for, and how many at once.
const MAX_UNITS: (usize, usize) = (60, 8);
/// What the names of services of a site begin with.
const SERVICES: [&str; 30] = [
    "nginx",
    "apache2",
    "httpd",
    "haproxy",
    "varnish",
    "gunicorn",
    "uwsgi",
    "uvicorn",
    "daphne",
    "celery",
    "rabbitmq",
    "elasticsearch",
    "opensearch",
    "memcached",
    "redis",
    "valkey",
    "postgresql",
    "mysql",
    "mariadb",
    "docker.service",
    "autossh",
    "ssh-tunnel",
    "tunnel",
    "postfix",
    "exim4",
    "markup",
    "markdown",
    "certbot",
    "snap.certbot",
    "django",
];
/// Where those lie that somebody wrote for this host.
const OWN: &str = "/etc/systemd/system";

/// What is known of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its whole name.
    pub name: String,
    /// `active`, `failed`, `inactive`, …
    pub active: String,
    /// `simple`, `oneshot`, …
    pub kind: String,
    /// The folder it runs in, where it has one.
    pub folder: Option<PathBuf>,
}

/// The units of the site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Units {
    /// Services that are enabled or run.
    pub services: Vec<Service>,
    /// Timers that are enabled.
    pub timers: Vec<String>,
    /// Why systemd could not be asked, where it could not.
    pub unseen: Option<String>,
}

/// Asks systemd. Where there is none there are no units either.
pub async fn look(systemd: &Systemd) -> Units {
    match timeout(LIMIT, ask(systemd)).await {
        Ok(Ok(units)) => units,
        Ok(Err(error)) if error.reason() == crate::model::Reason::Refused => Units::default(),
        Ok(Err(error)) => Units { unseen: Some(chain(&error)), ..Units::default() },
        Err(_) => Units { unseen: Some(format!("systemd did not answer within {}", print(LIMIT))), ..Units::default() },
    }
}

async fn ask(systemd: &Systemd) -> Result<Units, SystemdError> {
    let (services, timers) = of_site(&systemd.enabled().await?);
    let running = systemd.active_services().await?;
    // An instance such as celery@batch.service has no file of its own.
    let instances = running.into_iter().filter(|name| is_of_site(Path::new(name)) || services.contains(name));
    let mut names: Vec<String> = services.iter().cloned().chain(instances).collect();
    names.sort();
    names.dedup();
    let asked = names.into_iter().take(MAX_UNITS.0).map(|name| async move { systemd.unit(&name).await.ok() });
    let states: Vec<_> = futures_util::stream::iter(asked).buffered(MAX_UNITS.1).filter_map(std::future::ready).collect().await;
    let mut services: Vec<Service> = states
        .into_iter()
        .filter(|state| state.load == "loaded" && is_unit(&state.id))
        .map(|state| Service {
            name: state.id,
            active: state.active,
            kind: state.kind,
            folder: Some(PathBuf::from(state.folder.trim_start_matches('!'))).filter(|folder| folder.is_absolute()),
        })
        .collect();
    // Two names may mean one unit.
    services.sort_by(|a, b| a.name.cmp(&b.name));
    services.dedup();
    Ok(Units { services, timers, unseen: None })
}

/// Returns the services and the timers among files of units that are the site's: known by name, or written for this host.
fn of_site(files: &[PathBuf]) -> (Vec<String>, Vec<String>) {
    let names = files.iter().filter(|path| is_of_site(path)).filter_map(|path| path.file_name()?.to_str()).filter(|name| is_unit(name));
    let (mut timers, mut services): (Vec<String>, Vec<String>) = names.map(str::to_owned).partition(|name| name.ends_with(".timer"));
    timers.sort();
    services.sort();
    (services, timers)
}

fn is_of_site(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let known = || SERVICES.iter().any(|start| name.starts_with(start));
    // Proctor itself is not asked whether it runs.
    name != "proctor.service" && (path.starts_with(OWN) || known() || name.contains("celery") || name.contains("tunnel"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_units_of_a_site_are_told_from_those_of_the_distribution() {
        let files: Vec<PathBuf> = [
            "/lib/systemd/system/nginx.service",
            "/lib/systemd/system/cron.service",
            "/lib/systemd/system/apt-daily.timer",
            "/lib/systemd/system/certbot.timer",
            "/lib/systemd/system/docker.service",
            "/etc/systemd/system/coursys-backup.timer",
            "/etc/systemd/system/courses.service",
            "/etc/systemd/system/celery@.service",
            "/etc/systemd/system/proctor.service",
            "/lib/systemd/system/systemd-timesyncd.service",
        ]
        .map(PathBuf::from)
        .to_vec();
        let (services, timers) = of_site(&files);
        assert_eq!(services, ["courses.service", "docker.service", "nginx.service"]);
        assert_eq!(timers, ["certbot.timer", "coursys-backup.timer"]);
    }
}
