//! nginx's processes: whether its workers have the configuration that is on disk, and whether old ones ever end.
//!
//! A reload gives new workers: the master keeps its own start time. So where a file of the configuration was written
//! after the workers began, they run without it: the reload failed, or there was none.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;

use super::configuration::{Configuration, State};
use crate::changes::{Change, Changes, Kind};
use crate::client::process::{self, Look, Running};
use crate::model::duration::print_measured;
use crate::model::{Failure, Family, Reason, Sight, Timestamp};
use crate::probe::{Probe, Recorder};
use crate::tasks;

static UP: Family = Family::gauge("nginx_master_up", "Whether nginx's master runs and has workers that serve");
static SERVING: Family = Family::gauge("nginx_workers", "Workers that take new connections");
static ENDING: Family = Family::gauge("nginx_workers_shutting_down", "Workers that only end what they have begun");
static ENDING_FOR: Family =
    Family::gauge("nginx_worker_shutting_down_seconds", "For how long the oldest worker that only ends what it has begun has done so");
static BEGAN: Family = Family::gauge("nginx_worker_start_time_seconds", "When the oldest worker that takes new connections began");
static WRITTEN: Family = Family::gauge("nginx_configuration_mtime_seconds", "When the newest file of the configuration was written");
static UNLOADED: Family =
    Family::gauge("nginx_configuration_unloaded", "Whether the configuration on disk is newer than the one that workers run with");

/// Start times are known to a hundredth, and reading the configuration takes nginx a moment.
const CLOCKS: Duration = Duration::from_secs(2);

/// How nginx names its processes (`ngx_process_cycle.c`).
const MASTER: &str = "nginx: master process";
const WORKER: &str = "nginx: worker process";
const ENDS: &str = "nginx: worker process is shutting down";

/// Which process it is: its number, and when it began.
type Who = (i32, u64);

#[derive(Default)]
struct Known {
    /// The master, and since when its oldest worker serves.
    generation: Option<(Who, Timestamp)>,
    /// The workers that served at the last look.
    serving: Vec<Who>,
    /// The configuration as it was when these workers were first seen.
    files: BTreeMap<PathBuf, State>,
    /// Since when a worker is known to be ending: at most [`process::MAX_CHILDREN`].
    ending: BTreeMap<Who, Timestamp>,
}

/// The target `workers`.
pub(super) struct Workers {
    pid_file: PathBuf,
    configuration: Vec<PathBuf>,
    changes: Changes,
    known: Arc<Mutex<Known>>,
}

/// What one look found.
enum Found {
    Seen { master: Running, workers: Vec<Running>, configuration: Configuration },
    Denied { missing: String, remedy: String },
}

fn look(pid_file: &Path, roots: &[PathBuf]) -> Result<Found, Failure> {
    let file = pid_file.display();
    let missing = |why: String| Err(Failure::new(Reason::Missing, format!("{why}: see `systemctl status nginx`")));
    let pid = match process::pid_in(pid_file) {
        Ok(pid) => pid,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(Found::Denied { missing: format!("{file}: {error}"), remedy: process::remedy(pid_file) });
        }
        Err(error) => return missing(format!("{file}: expected the process number of nginx's master: {error}")),
    };
    let master = match process::look(pid) {
        Look::Runs(master) if master.title.starts_with(MASTER) => master,
        Look::Runs(other) => return missing(format!("{file} names process {pid}, which is not nginx's master but {:?}", other.title)),
        Look::Gone => return missing(format!("{file} names process {pid}, which is gone")),
        Look::Hidden => {
            let remedy = "start Proctor in nginx's process namespace, with /proc mounted without hidepid (or with gid= one of its groups)";
            return Ok(Found::Denied { missing: format!("process {pid} of {file} is not shown in /proc"), remedy: remedy.to_owned() });
        }
    };
    let workers = process::children(pid).into_iter().filter(|child| child.title.starts_with(WORKER)).collect();
    Ok(Found::Seen { master, workers, configuration: Configuration::look(roots) })
}

impl Workers {
    pub(super) fn new(pid_file: PathBuf, configuration: Vec<PathBuf>, changes: Changes) -> Self {
        Self { pid_file, configuration, changes, known: Arc::default() }
    }

    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        rec.waiting(Reason::AnswerTimeout, format!("looking at the processes of {}", self.pid_file.display()));
        let (pid_file, roots) = (self.pid_file.clone(), self.configuration.clone());
        // The guard travels into the thread, which may outlive this run.
        let known = self.known.clone().lock_owned().await;
        let looked = tokio::task::spawn_blocking(move || (known, look(&pid_file, &roots))).await;
        let (mut known, found) = looked.map_err(|error| Failure::new(Reason::Internal, format!("the look failed: {error}")))?;
        match found? {
            Found::Denied { missing, remedy } => {
                rec.sight(Sight::Blind { missing, remedy });
                Ok(())
            }
            Found::Seen { master, workers, configuration } => self.judge(rec, &mut known, &master, &workers, &configuration),
        }
    }

    fn judge(
        &self,
        rec: &mut Recorder,
        known: &mut Known,
        master: &Running,
        workers: &[Running],
        configuration: &Configuration,
    ) -> Result<(), Failure> {
        // Files have the wall clock's times.
        let now = tasks::wall_now();
        let who = |running: &Running| (running.pid, running.began);
        let (ending, serving): (Vec<&Running>, Vec<&Running>) = workers.iter().partition(|worker| worker.title.starts_with(ENDS));
        let began = serving.iter().map(|worker| now - worker.age).min();
        rec.set(&SERVING, serving.len() as f64);
        rec.set(&ENDING, ending.len() as f64);

        let same = known.generation.is_some_and(|(of, _)| of == who(master)) && serving.iter().any(|one| known.serving.contains(&who(one)));
        if let (Some(began), false) = (began, same) {
            if known.generation.is_some_and(|(of, since)| of == who(master) && began > since) {
                let change = Change { at: began, kind: Kind::Reloaded, subject: "nginx".to_owned(), detail: "new workers".to_owned() };
                self.changes.record(change);
            }
            known.generation = Some((who(master), began));
            known.files.clone_from(&configuration.files);
        }
        known.serving = serving.iter().map(|one| who(one)).collect();

        // It began to end when those that serve now began; where none serves any more, when that was first seen.
        known.ending.retain(|one, _| ending.iter().any(|worker| who(worker) == *one));
        for worker in &ending {
            known.ending.entry(who(worker)).or_insert(began.unwrap_or(now));
        }
        let longest = known.ending.values().map(|since| now.since(*since)).max().unwrap_or_default();
        rec.set(&ENDING_FOR, longest.as_secs_f64());
        for worker in ending.iter().take(3) {
            let since = known.ending.get(&who(worker)).map_or_else(String::new, |since| print_measured(now.since(*since)));
            rec.evidence(format!("worker {} has been shutting down for {since}", worker.pid));
        }
        if let Some(began) = began {
            rec.set(&BEGAN, began.as_secs_f64());
            judge_configuration(rec, known, began, configuration);
        }
        if let Some(stopped) = [master].into_iter().chain(serving.iter().copied()).find(|one| one.stopped) {
            let what = format!("process {} ({}) is stopped: kill -CONT {}", stopped.pid, stopped.title, stopped.pid);
            return Err(Failure::new(Reason::Stalled, what));
        }
        if serving.is_empty() {
            let why = format!("nginx's master (process {}) has no worker that takes new connections: see its error log", master.pid);
            return Err(Failure::new(Reason::Unavailable, why));
        }
        Ok(())
    }
}

/// Compares what is on disk with what the workers that began then can have read.
fn judge_configuration(rec: &mut Recorder, known: &Known, began: Timestamp, configuration: &Configuration) {
    let newest = configuration.newest();
    let newer = newest.filter(|(_, written)| *written > began + CLOCKS);
    let told = |path: &Path, what: &str| format!("{}: {what}; the workers began at {began}", path.display());
    // A file that has gone or come with an old time, as a package manager or `mv` leaves it.
    let other = known.files.iter().find(|(path, state)| configuration.files.get(*path) != Some(*state)).map(|(path, _)| path);
    let other = other.or_else(|| configuration.files.keys().find(|path| !known.files.contains_key(*path)));
    if let Some((path, written)) = newer {
        rec.evidence(told(path, &format!("written at {written}")));
    } else if let Some(path) = other {
        rec.evidence(told(path, "not as it was when they began"));
    }
    if let Some((_, written)) = newest {
        rec.set(&WRITTEN, written.as_secs_f64());
    }
    if configuration.files.is_empty() {
        rec.evidence("no file of the configuration can be seen");
    }
    let unloaded = newer.is_some() || other.is_some();
    // What could not be read may be what changed.
    if unloaded || configuration.denied.is_empty() {
        rec.set(&UNLOADED, f64::from(u8::from(unloaded)));
    }
    if let Some((path, remedy)) = configuration.denied.first() {
        let more = configuration.denied.len() - 1;
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let missing = format!("whether all of the configuration is loaded: {}{more} may not be read", path.display());
        rec.sight(Sight::Partial { missing, remedy: remedy.clone() });
    } else if let Some(path) = configuration.absent.first().filter(|_| configuration.files.is_empty()) {
        let remedy = "name nginx's configuration in configuration: (`nginx -V 2>&1 | grep -o conf-path=[^ ]*`)".to_owned();
        rec.sight(Sight::Partial { missing: format!("whether the configuration is loaded: there is no {}", path.display()), remedy });
    }
}

impl Probe for Workers {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }
}
