//! Looks at the host and at a Django project, and writes down what can be watched by looking only (invariant 10).
//!
//! What comes out is YAML that goes through the configuration's own loader, so that there is one way in. Nothing is
//! sent to a service whose owner is not known: a web page asked with a wrong Host would make Django mail its admins.
//! First all facts are gathered (`sockets`, `units`, `containers`, `nginx`, `cron`, `django`), each within a bound; what
//! follows from them (`plan`), how it is written (`write`) and what differs from a file (`compare`) is pure.

pub mod compare;
pub mod containers;
pub mod cron;
pub mod django;
pub mod nginx;
mod plan;
pub mod programs;
pub mod sockets;
pub mod units;
pub mod write;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::client::docker::Docker;
use crate::client::systemd::Systemd;

use django::{Project, Settings};
use sockets::{Listener, Process};

/// Where certbot keeps the certificates that are in use.
const CERTBOT: &str = "/etc/letsencrypt/live";
/// Where secrets lie where no configuration is written.
const SECRETS: &str = "/etc/proctor";
/// The most configurations of nginx that are read.
const MAX_NGINX: usize = 10;

/// The configuration of one nginx.
#[derive(Clone, Debug, Default)]
pub struct Nginx {
    /// The file.
    pub file: PathBuf,
    /// Its servers.
    pub servers: Vec<nginx::Server>,
    /// What of it could not be read, and the command that opens it.
    pub denied: Vec<String>,
    /// Where its master writes its number, where that can be read.
    pub pid_file: Option<PathBuf>,
}

/// What Django said.
#[derive(Clone, Debug, Default)]
pub enum Django {
    /// There is none, or it was not asked.
    #[default]
    None,
    /// Why it said nothing.
    Failed(String),
    /// What its settings are.
    Said(Box<Settings>, Box<Project>),
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What listens.
    pub listeners: Vec<Listener>,
    /// What runs.
    pub processes: Vec<Process>,
    /// systemd's units.
    pub units: units::Units,
    /// docker's containers.
    pub containers: containers::Containers,
    /// Every nginx.
    pub nginx: Vec<Nginx>,
    /// The jobs of cron, and the tables that may not be read.
    pub cron: (Vec<cron::Job>, Vec<PathBuf>),
    /// The folder of certbot's certificates, where there is one; and whether Proctor's user may not enter it.
    pub certificates: Option<(PathBuf, bool)>,
    /// Django.
    pub django: Django,
    /// The user that Proctor will run as, and whether that is a user of its own.
    pub user: (String, bool),
    /// The folder in which secrets lie, and which files of it there are.
    pub secrets: (PathBuf, BTreeSet<PathBuf>),
    /// The name of this host.
    pub host: String,
}

/// A probe that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its name, unique.
    pub name: String,
    /// What it is and what is asked, one line.
    pub about: String,
    /// What stands within its braces; empty where nothing can be asked yet.
    pub body: String,
    /// What it needs, by name.
    pub depends_on: Vec<String>,
    /// What it may need, by name: nothing says so for sure, and a wrong parent would hide a failure.
    pub maybe: Vec<String>,
    /// What to take instead once more is open to Proctor.
    pub later: Option<String>,
}

/// What can be seen once somebody has run a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    /// What is seen now, and what is not.
    pub what: String,
    /// The one command, or the line of the configuration.
    pub command: String,
}

/// What follows from the facts.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The probes.
    pub entries: Vec<Entry>,
    /// What is watched, one line each.
    pub watched: Vec<String>,
    /// What is only half watched.
    pub half: Vec<Half>,
    /// What is there and not watched, and how it would be.
    pub unwatched: Vec<Half>,
    /// What could not be looked at, and how it can be.
    pub unseen: Vec<String>,
    /// The section `notify`, as lines of YAML; empty where nobody is known.
    pub notify: Vec<String>,
    /// Actions that would fit, as lines of YAML.
    pub actions: Vec<String>,
    /// The name of the site.
    pub site: String,
    /// Which Django was asked and as whom, one line.
    pub asked: Option<String>,
}

impl Found {
    /// Returns the section `probes`, as YAML; empty where nothing was found.
    pub fn probes(&self) -> String {
        let lines: String = self.entries.iter().filter_map(Entry::line).map(|line| format!("  {line}\n")).collect();
        if lines.is_empty() { lines } else { format!("probes:\n{lines}") }
    }

    /// Returns what is not or only half watched, one line each, without the commands: this is shown on pages too.
    pub fn left_out(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.half.iter().chain(&self.unwatched).map(|half| half.what.clone()).collect();
        lines.extend(self.unseen.iter().cloned());
        if !lines.is_empty() {
            lines.push("`proctor init` writes a configuration, and says what opens each of these".to_owned());
        }
        lines
    }
}

impl Entry {
    /// Returns it as a line of YAML; nothing where nothing can be asked yet.
    pub fn line(&self) -> Option<String> {
        (!self.body.is_empty()).then(|| self.with(&self.body))
    }

    fn with(&self, body: &str) -> String {
        let on = self.depends_on.join(", ");
        let on = if on.is_empty() { on } else { format!(", depends_on: [{on}]") };
        format!("{}: {{{body}{on}}}", self.name)
    }
}

/// Where Django is looked for.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// `manage.py` or its folder; where the site runs if not named.
    pub manage: Option<PathBuf>,
    /// Its Python.
    pub python: Option<PathBuf>,
    /// As whom it runs instead of its owner.
    pub user: Option<String>,
    /// How long it may take.
    pub limit: std::time::Duration,
}

/// Looks at this host by itself, and says what follows.
pub fn look() -> Found {
    found(&facts(Path::new(SECRETS), None))
}

/// Says what follows from the facts.
pub fn found(facts: &Facts) -> Found {
    plan::plan(facts)
}

/// Gathers what can be seen of this host; Django is asked only where that is wanted. `secrets` is the folder in which
/// passwords for Proctor lie or will lie. It blocks for some seconds.
pub fn facts(secrets: &Path, django: Option<&Ask>) -> Facts {
    let (listeners, processes) = sockets::look();
    let masters = processes.iter().filter(|process| programs::is(process, "nginx") && process.command.iter().any(|word| word == "master"));
    let files: BTreeSet<PathBuf> = masters.map(programs::nginx_configuration).take(MAX_NGINX).collect();
    let user = django::proctor_user();
    let own = user == crate::client::process::own_user();
    let mut facts = Facts {
        nginx: files.into_iter().map(Nginx::look).collect(),
        cron: cron::look(Path::new("/etc"), Path::new("/var/spool/cron/crontabs")),
        certificates: certificates(Path::new(CERTBOT), own),
        secrets: (secrets.to_owned(), there(secrets)),
        host: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
        user: (user.clone(), user == "proctor"),
        listeners,
        processes,
        ..Facts::default()
    };
    // A thread and a loop of its own: who calls may be within a loop already, and nothing of this one outlives it.
    let asked = std::thread::scope(|scope| scope.spawn(|| ask(&facts, django)).join());
    match asked {
        Ok(Ok((units, containers, django))) => (facts.units, facts.containers, facts.django) = (units, containers, django),
        Ok(Err(error)) => facts.units.unseen = Some(format!("systemd, docker and Django were not asked: {error}")),
        Err(_) => facts.units.unseen = Some("systemd, docker and Django were not asked: that panicked".to_owned()),
    }
    facts
}

fn ask(facts: &Facts, django: Option<&Ask>) -> std::io::Result<(units::Units, containers::Containers, Django)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answers = runtime.block_on(async {
        let (systemd, docker) = (Systemd::of_this_host(), Docker::of_this_host());
        let (units, containers) = tokio::join!(units::look(&systemd), containers::look(&docker));
        let django = match django {
            Some(ask) => self::ask_django(facts, &units, ask).await,
            None => Django::None,
        };
        (units, containers, django)
    });
    runtime.shutdown_background();
    Ok(answers)
}

async fn ask_django(facts: &Facts, units: &units::Units, ask: &Ask) -> Django {
    let of_site = |process: &&Process| programs::is(process, "gunicorn") || programs::is(process, "celery");
    let manage = match &ask.manage {
        Some(manage) => manage.clone(),
        None => {
            let of_units: BTreeSet<PathBuf> = units.services.iter().filter_map(|service| manage_of(service.folder.as_ref()?)).collect();
            let of_processes =
                || facts.processes.iter().filter(of_site).filter_map(|process| manage_of(&programs::folder(process)?)).collect();
            // What root wrote into units comes before what anybody may have started.
            let found: BTreeSet<PathBuf> = if of_units.is_empty() { of_processes() } else { of_units };
            let mut found = found.into_iter();
            match (found.next(), found.next()) {
                (Some(manage), None) => manage,
                (None, _) => {
                    return Django::Failed("no manage.py was found where gunicorn and Celery run: name it by --django PATH".to_owned());
                }
                (Some(one), Some(other)) => {
                    let several = format!("{}, {}", one.display(), other.display());
                    return Django::Failed(format!(
                        "several manage.py were found, and none was run ({several}): name one by --django PATH"
                    ));
                }
            }
        }
    };
    // What runs the site in this folder is the Python that it needs.
    let here = |process: &&Process| programs::folder(process).is_some_and(|folder| manage.starts_with(&folder) || folder == manage);
    let python = || facts.processes.iter().filter(of_site).find(here).and_then(programs::python);
    let project = Project::at(&manage, (ask.python.as_deref(), python().as_deref()), ask.user.as_deref());
    let project = match project {
        Ok(project) => project,
        Err(why) => return Django::Failed(why),
    };
    match project.ask(ask.limit).await {
        Ok(settings) => Django::Said(Box::new(settings), Box::new(project)),
        Err(why) => Django::Failed(why),
    }
}

/// Returns the `manage.py` of a folder, or of the one above.
fn manage_of(folder: &Path) -> Option<PathBuf> {
    [folder.join("manage.py"), folder.join("../manage.py")].into_iter().find(|manage| manage.is_file())?.canonicalize().ok()
}

impl Nginx {
    fn look(file: PathBuf) -> Self {
        let (servers, denied) = nginx::look(&file);
        let usual = (file == Path::new("/etc/nginx/nginx.conf")).then(|| PathBuf::from("/run/nginx.pid"));
        let pid_file = usual.filter(|path| crate::client::process::pid_in(path).is_ok());
        Self { file, servers, denied, pid_file }
    }
}

/// Returns certbot's folder where there are certificates in it, or where that may not be seen.
fn certificates(live: &Path, own: bool) -> Option<(PathBuf, bool)> {
    use std::os::unix::fs::PermissionsExt;
    let of = live.metadata().ok().filter(std::fs::Metadata::is_dir)?;
    let listed = std::fs::read_dir(live).map(|entries| entries.flatten().any(|entry| entry.path().is_dir()));
    let closed = if own { listed.is_err() } else { of.permissions().mode() & 0o050 != 0o050 && of.permissions().mode() & 0o005 != 0o005 };
    listed.unwrap_or(true).then(|| (live.to_owned(), closed))
}

/// Returns the files of a folder.
fn there(folder: &Path) -> BTreeSet<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_file()).take(1000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_of_certbot_are_watched_where_there_are_some() {
        let folder = tempfile::tempdir().expect("a folder");
        let live = folder.path().join("live");
        assert_eq!(certificates(&live, true), None);
        std::fs::create_dir(&live).expect("a folder");
        std::fs::write(live.join("README"), "").expect("is written");
        assert_eq!(certificates(&live, true), None);
        std::fs::create_dir(live.join("site")).expect("a folder");
        assert_eq!(certificates(&live, true), Some((live.clone(), false)));
        std::fs::set_permissions(&live, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("is set");
        assert_eq!(certificates(&live, false), Some((live, true)), "root may enter it, the user of the unit may not");
    }
}
