//! What a Django project says of itself: `manage.py` is run once, as its owner, with a small script that only reads
//! settings and says what they are as JSON. Passwords are not said, so none is read or kept here.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::geteuid;
use serde::Deserialize;

use crate::client::process::{known_user, user_name};
use crate::client::program::{self, Argv, Ending, Program};
use crate::model::duration::print;

/// What runs in the project.
const SCRIPT: &str = include_str!("django.py");
/// The folders beside `manage.py` in which a virtual environment is looked for.
const ENVIRONMENTS: [&str; 6] = ["venv", ".venv", "env", "../venv", "../.venv", "../env"];

/// What a project said. Texts are what its settings say: none is to be trusted to be a name or an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Why it said nothing else.
    pub failed: Option<String>,
    /// The version of Django.
    pub version: String,
    /// The folder in which it runs.
    pub folder: PathBuf,
    /// Which of the following could not be read, and why.
    pub unknown: Vec<String>,
    /// `ADMINS`, each as an address.
    pub admins: Vec<String>,
    /// `SERVER_EMAIL`.
    pub server_email: String,
    /// `EMAIL_SUBJECT_PREFIX`.
    pub subject_prefix: String,
    /// `EMAIL_*`, or since Django 6.1 `MAILERS`.
    pub mail: Mail,
    /// `CACHES`.
    pub caches: Vec<Cache>,
    /// `DATABASES`.
    pub databases: Vec<Database>,
    /// Celery's settings, where there is a broker.
    pub celery: Option<Celery>,
    /// `HAYSTACK_CONNECTIONS`.
    pub search: Vec<Search>,
    /// `ALLOWED_HOSTS`.
    pub hosts: Vec<String>,
}

/// How the project sends mail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Mail {
    /// The class that sends.
    pub backend: String,
    /// The relay.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `none`, `starttls` or `tls`.
    pub tls: String,
    /// Who logs in; empty for nobody.
    pub username: String,
    /// Whether there is a password.
    pub has_password: bool,
    /// Whether it stands in `MAILERS`.
    pub mailers: bool,
}

/// One of `CACHES`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Cache {
    /// The class.
    pub backend: String,
    /// Where it is; URLs are left empty.
    pub locations: Vec<String>,
}

/// One of `DATABASES`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Database {
    /// Its alias, such as `default`.
    pub alias: String,
    /// The class.
    pub engine: String,
    /// A host, or the folder of a socket; empty for the usual socket.
    pub host: String,
    /// The port; empty for the usual one.
    pub port: String,
    /// The database, or a file.
    pub name: String,
}

/// A URL without its password.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Place {
    /// Such as `amqp`.
    pub scheme: String,
    /// The host; empty for none.
    pub host: String,
    /// The port, where one is named.
    pub port: Option<u16>,
    /// With its first slash.
    pub path: String,
    /// Who logs in.
    pub username: String,
    /// Whether there was a password in it.
    pub has_password: bool,
}

/// What Celery is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Celery {
    /// The broker.
    pub broker: Place,
    /// Every queue that is named somewhere, and the default one.
    pub queues: Vec<String>,
    /// How many periodic tasks there are in the settings.
    pub scheduled: usize,
    /// Where beat keeps its schedule, as told by the settings.
    pub schedule_file: String,
    /// The class of beat's scheduler.
    pub scheduler: String,
}

/// One of `HAYSTACK_CONNECTIONS`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Search {
    /// Where it is.
    pub place: Place,
    /// The index.
    pub index: String,
    /// Whether a login stands beside it.
    pub login: bool,
}

/// How a project is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its `manage.py`, without links.
    pub manage: PathBuf,
    /// The Python that it runs with.
    pub python: PathBuf,
    /// The numbers of user and group, and the user's name and home.
    user: (u32, u32, String, String),
}

impl Project {
    /// Finds out who owns a project and which Python it runs with. `named` is `manage.py` or its folder. The first Python is
    /// the one that somebody named; the second what was seen to run here, which counts only where nobody but root and the
    /// owner could have put it. `instead` is the user whom to take instead of the owner.
    ///
    /// # Errors
    /// It is not there, or its owner is root, or is another user and we are not root: one line that says what to do.
    pub fn at(named: &Path, (python, seen): (Option<&Path>, Option<&Path>), instead: Option<&str>) -> Result<Self, String> {
        let manage = if named.is_dir() { named.join("manage.py") } else { named.to_owned() };
        let manage = manage.canonicalize().map_err(|error| format!("{}: {error}; name manage.py by --django PATH", manage.display()))?;
        let of = manage.metadata().map_err(|error| format!("{}: {error}", manage.display()))?;
        if !of.is_file() {
            return Err(format!("{} is no file: name manage.py by --django PATH", manage.display()));
        }
        let at = manage.display();
        let own = geteuid().as_raw();
        let account = match instead {
            Some(name) => account(|account| account.0 == name).ok_or_else(|| format!("there is no user {name:?} on this host"))?,
            None => account(|account| account.1 == of.uid()).unwrap_or_else(|| (user_name(of.uid()), of.uid(), of.gid(), "/".to_owned())),
        };
        let (name, uid, gid, home) = account;
        if uid == 0 && instead.is_none() {
            return Err(format!(
                "{at} belongs to root and was not run: the site's code is not run as root. Say as whom by --django-user NAME, such as the user of gunicorn"
            ));
        }
        if own != 0 && own != uid {
            return Err(format!("{at} belongs to {name} and was not run: run this command as root or as {name}"));
        }
        let seen = || seen.map(Path::to_owned).into_iter().chain(beside(&manage)).find(|python| is_trusted(python, uid));
        let python = python.map(Path::to_owned).or_else(seen).unwrap_or_else(|| PathBuf::from("/usr/bin/python3"));
        Ok(Self { manage, python, user: (uid, gid, name, home) })
    }

    /// Returns the name of the user that it runs as.
    pub fn user(&self) -> &str {
        &self.user.2
    }

    /// Runs it, at most so long. Nothing of what it prints by itself comes here.
    ///
    /// # Errors
    /// Why it said nothing, in one line.
    pub async fn ask(&self, limit: Duration) -> Result<Settings, String> {
        let (uid, gid, name, home) = &self.user;
        let own = geteuid().as_raw();
        // As ourselves it sees what we see. What root's variables hold is not the site's business.
        let inherited: Vec<(String, String)> =
            std::env::vars().filter(|(name, _)| own == *uid || name == "DJANGO_SETTINGS_MODULE").collect();
        let mut environment: Vec<(&str, String)> = inherited.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        environment.extend([
            ("HOME", home.clone()),
            ("USER", name.clone()),
            ("PROCTOR_SCRIPT", SCRIPT.to_owned()),
            ("PROCTOR_MANAGE", self.manage.display().to_string()),
            // Nothing is written beside the site's code.
            ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
        ]);
        let argv = Argv(vec![self.python.display().to_string(), "-c".into(), "import os; exec(os.environ.pop('PROCTOR_SCRIPT'))".into()]);
        let user = (own != *uid).then_some((*uid, *gid));
        let ran =
            program::run(&Program { argv: &argv, environment, timeout: limit, leaves: false, folder: self.manage.parent(), user }).await;
        let at = self.manage.display();
        match ran.ending {
            Ending::NotStarted(why) => return Err(format!("{at} was not run: {why}; name its Python by --python PATH")),
            Ending::Killed | Ending::Hangs => {
                return Err(format!("{at} did not say what its settings are within {} and was killed", print(limit)));
            }
            Ending::Ended(status) if !status.success() => {
                let status = program::status_text(status);
                return Err(format!(
                    "{at}: Python ended with {status} before it said anything: is {} its Python? (--python PATH)",
                    argv.0[0]
                ));
            }
            Ending::Ended(_) => {}
        }
        let settings: Settings = serde_json::from_str(ran.output.trim())
            .map_err(|_| format!("{at}: expected its settings, found something else ({} bytes)", ran.output.len()))?;
        match settings.failed {
            None => Ok(settings),
            Some(why) => Err(format!("{at} does not start as {name}: {why}")),
        }
    }
}

/// Says whether nobody but root and this user can have put a program there: anybody can start a process that looks like the
/// site's, with a Python of his own.
fn is_trusted(program: &Path, uid: u32) -> bool {
    program.is_absolute()
        && program.is_file()
        && program.ancestors().all(|part| {
            let links = |of: std::fs::Metadata| of.is_symlink() || of.mode() & 0o002 == 0;
            part.symlink_metadata().is_ok_and(|of| (of.uid() == 0 || of.uid() == uid) && links(of))
        })
}

/// Returns the Python of a virtual environment beside a project.
fn beside(manage: &Path) -> Option<PathBuf> {
    let folder = manage.parent()?;
    ENVIRONMENTS.iter().map(|name| folder.join(name).join("bin/python")).find(|python| python.is_file())
}

/// Returns name, numbers of user and group, and home of the first account that fits.
fn account(fits: impl Fn(&(String, u32, u32, String)) -> bool) -> Option<(String, u32, u32, String)> {
    let lines = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    lines.lines().filter_map(entry).find(fits)
}

fn entry(line: &str) -> Option<(String, u32, u32, String)> {
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields.first()?.to_string(), fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?, fields.get(5)?.to_string()))
}

/// Returns the name of the user that Proctor will run as: the package's, where it is installed, else our own.
pub(super) fn proctor_user() -> String {
    account(|account| account.0 == "proctor")
        .map(|account| account.0)
        .or_else(|| known_user(geteuid().as_raw()))
        .unwrap_or_else(|| geteuid().as_raw().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_read() {
        let line = "site:x:1001:1002:The site,,,:/srv/site:/usr/sbin/nologin";
        assert_eq!(entry(line), Some(("site".into(), 1001, 1002, "/srv/site".into())));
        assert_eq!(entry("# nothing"), None);
    }

    #[test]
    fn a_python_that_others_could_have_put_there_is_not_trusted() {
        let own = geteuid().as_raw();
        let folder = tempfile::tempdir().expect("a folder");
        let python = folder.path().join("python");
        std::os::unix::fs::symlink("/bin/sh", &python).expect("is made");
        assert!(is_trusted(Path::new("/bin/sh"), own));
        assert!(!is_trusted(&python, own), "everybody may write into {}", std::env::temp_dir().display());
        assert!(!is_trusted(Path::new("bin/sh"), own) && !is_trusted(Path::new("/bin/nothing"), own));
    }

    #[test]
    fn what_a_project_says_is_read_and_what_is_missing_is_as_if_it_were_not_set() {
        let settings: Settings =
            serde_json::from_str(r#"{"version": "6.0", "admins": ["a@x.org"], "unknown": ["mail (KeyError)"]}"#).expect("is read");
        assert_eq!((settings.version.as_str(), settings.admins.len(), settings.celery), ("6.0", 1, None));
    }
}
