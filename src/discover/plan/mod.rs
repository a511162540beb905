//! What follows from the facts: which probes, what is only half watched, and what is not. Pure.
//!
//! Whatever comes from the host or from Django's settings is a text of somebody else's: it is quoted where it becomes YAML,
//! and becomes part of a command only where it is a plain word.

mod databases;
mod ports;
mod rest;
mod site;

use super::sockets::At;
use super::{Django, Entry, Facts, Found, Half, django};
use crate::model::decode::from_text;
use crate::model::one_line;
use crate::probe::ProbeConfig;

/// The most ports of programs that are not known here.
const MAX_UNKNOWN: usize = 40;
/// The most ports that are named of those whose owner is not seen.
const MAX_UNSEEN: usize = 10;
/// The most services of a kind that are named as what a site may need.
const MAX_MAYBE: usize = 10;

/// Says what follows.
pub(super) fn plan(facts: &Facts) -> Found {
    let mut plan = Plan { facts, found: Found::default(), names: Names::default() };
    plan.found.site = plan.site_name();
    plan.ports();
    plan.celery();
    plan.markup();
    plan.gunicorn();
    plan.nginx();
    plan.certificates();
    plan.units();
    plan.containers();
    plan.host();
    plan.cron();
    plan.notify();
    plan.actions();
    plan.django();
    plan.keep_what_decodes();
    plan.found
}

/// The names of probes that others need.
#[derive(Default)]
struct Names {
    rabbitmq: Option<String>,
    database: Need,
    cache: Need,
    celery: Option<String>,
    gunicorn: Need,
    /// Where the tunnels listen.
    tunnels: Vec<(u16, String)>,
}

/// A service that a site may need: which it is, or which it may be.
#[derive(Default)]
struct Need {
    /// The one that Django names, or behind a tunnel.
    named: Option<String>,
    /// Every one of its kind on this host.
    all: Vec<String>,
}

impl Need {
    /// Returns the one that is needed for sure: the one that Django names, or the only one where Django said nothing of its kind.
    fn sure(&self, said: bool) -> Option<String> {
        let only = || if let ([only], false) = (self.all.as_slice(), said) { Some(only.clone()) } else { None };
        self.named.clone().or_else(only)
    }
}

struct Plan<'a> {
    facts: &'a Facts,
    found: Found,
    names: Names,
}

/// Writes a text as a scalar of YAML: JSON is one.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Writes a list of texts.
fn list(texts: &[String]) -> String {
    let plain = |text: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@');
        // A number or `true` would not be a text.
        if text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(plain) && text.len() > 5 {
            text.clone()
        } else {
            quoted(text)
        }
    };
    format!("[{}]", texts.iter().map(plain).collect::<Vec<_>>().join(", "))
}

/// Says whether a text can be part of a command as it is.
fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 200
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@'))
}

impl<'a> Plan<'a> {
    fn settings(&self) -> Option<&'a django::Settings> {
        if let Django::Said(settings, _) = &self.facts.django { Some(settings) } else { None }
    }

    /// Adds a probe and returns its name: of two of a kind memcached, memcached-2, …
    fn add(&mut self, name: &str, body: String, about: String) -> String {
        let about = one_line(&about, usize::MAX);
        let taken = |name: &str| self.found.entries.iter().any(|entry| entry.name == name);
        let name =
            (1..).map(|n| if n == 1 { name.to_owned() } else { format!("{name}-{n}") }).find(|name| !taken(name)).unwrap_or_default();
        if !body.is_empty() {
            self.found.watched.push(about.clone());
        }
        self.found.entries.push(Entry { name: name.clone(), about, body, ..Entry::default() });
        name
    }

    /// Says of the entry that was added last what to take instead, and of all what opens it.
    fn half(&mut self, later: Option<String>, what: String, command: String) {
        let what = one_line(&what, usize::MAX);
        if let (Some(entry), Some(later)) = (self.found.entries.last_mut(), later) {
            entry.later = Some(later);
            // What is only half watched stands in one list, not in two.
            if self.found.watched.last() == Some(&entry.about) {
                self.found.watched.pop();
            }
        }
        self.found.half.push(Half { what, command });
    }

    fn unwatched(&mut self, what: String, command: String) {
        let what = one_line(&what, usize::MAX);
        self.found.unwatched.push(Half { what, command });
    }

    fn needs(&mut self, name: &str, on: Option<String>) {
        let active = |name: &String| self.found.entries.iter().any(|entry| entry.name == *name && !entry.body.is_empty());
        let on = on.filter(active).filter(|on| on != name);
        if let Some(entry) = self.found.entries.iter_mut().find(|entry| entry.name == name) {
            entry.depends_on.extend(on);
        }
    }

    /// Says of an entry what it may need, as a comment.
    fn may_need(&mut self, name: &str, on: Vec<String>) {
        if let Some(entry) = self.found.entries.iter_mut().find(|entry| entry.name == name) {
            entry.maybe.extend(on.into_iter().filter(|on| on != name).take(MAX_MAYBE));
        }
    }

    /// Says whether Django said this part of its settings.
    fn said(&self, part: &str) -> bool {
        self.settings().is_some_and(|settings| !settings.unknown.iter().any(|unknown| unknown.starts_with(part)))
    }

    /// Returns where the password of a service lies or will lie, and whether it is there.
    fn secret(&self, of: &str) -> (String, bool) {
        let (folder, there) = &self.facts.secrets;
        let path = folder.join(format!("{of}-password"));
        (path.display().to_string(), there.contains(&path))
    }

    /// Returns the command that puts what comes before it into a file that only Proctor may read.
    fn keep(&self, path: &str) -> String {
        let (user, own) = &self.facts.user;
        let mode = if *own { format!("-m 640 -g {user}") } else { "-m 600".to_owned() };
        format!("install -D {mode} /dev/stdin {path}")
    }

    /// Returns the command that makes a password for Proctor.
    fn make_password(&self, path: &str) -> String {
        format!("head -c 18 /dev/urandom | base64 | {}", self.keep(path))
    }

    /// Returns what a command in the container that publishes this port begins with; nothing where the port is no container's.
    fn inside(&self, at: &At) -> Option<String> {
        let (name, _) = self.facts.containers.published.get(&at.port()?)?;
        is_word(name).then(|| format!("docker exec -i {name} "))
    }

    fn site_name(&self) -> String {
        let hosts = self.settings().map_or(&[] as &[String], |settings| &settings.hosts);
        let named = hosts.iter().map(|host| host.trim_start_matches('.')).find(|host| super::nginx::is_name(host) && host.contains('.'));
        let first = named.and_then(|host| host.split('.').next()).unwrap_or(&self.facts.host);
        if is_word(first) { first.to_owned() } else { "site".to_owned() }
    }

    /// One name that the configuration does not take must not cost the others their file.
    fn keep_what_decodes(&mut self) {
        let decodes = |body: &String| from_text::<ProbeConfig>("found", &format!("{{{body}}}"));
        let mut unseen = Vec::new();
        self.found.entries.retain_mut(|entry| {
            entry.later = entry.later.take().filter(|later| decodes(later).is_ok());
            let wrong = if entry.body.is_empty() { None } else { decodes(&entry.body).err() };
            let why = wrong.and_then(|problems| problems.first().map(|problem| problem.message.clone()));
            unseen.extend(why.iter().map(|why| format!("{} is not written: {why}", entry.about)));
            why.is_none()
        });
        self.found.unseen.extend(unseen);
        let names: Vec<String> = self.found.entries.iter().filter(|entry| !entry.body.is_empty()).map(|entry| entry.name.clone()).collect();
        self.found.entries.iter_mut().for_each(|entry| {
            entry.depends_on.retain(|on| names.contains(on));
            entry.maybe.retain(|on| names.contains(on));
        });
    }

    /// Says why Django said nothing, and which of its settings it could not say.
    fn django(&mut self) {
        match &self.facts.django {
            Django::None => {}
            Django::Failed(why) => self.found.unseen.push(format!("Django's settings (ADMINS, mail, hosts, queues, database): {why}")),
            Django::Said(settings, project) => {
                let version: String = settings.version.chars().filter(|c| c.is_ascii_graphic()).take(20).collect();
                self.found.asked = Some(format!("Django {version} at {}, as {}", project.manage.display(), project.user()));
                for part in &settings.unknown {
                    self.found.unseen.push(format!("of Django's settings: {part}: {} does not say it", project.manage.display()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
