//! Asks whether celerybeat sends.
//!
//! Beat has nothing that could be asked: no mailbox, no heartbeat, and between two tasks its connection is silent. Two
//! things show that it moves. Its schedule's file is written anew at most every `beat_sync_every` tasks or 180 s, at the
//! latest after its longest sleep of 300 s (celery/beat.py), and a task that it sends is counted by the worker that
//! accepts it (`count`). A file that is old is a beat that hangs; a file that is fresh beside a count that stands still
//! is a beat that sends what nobody runs. django-celery-beat keeps its schedule in the site's database instead of a file,
//! where it can be asked for (`database`).
//!
//! A cron job that restarts beat every hour changes neither: the file is written at the end and at the start, and last
//! runs are kept in it.

mod count;
mod database;
mod file;

use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use self::count::{Count, Ran};
use self::database::{Limits, Table};
use self::file::Schedule;
use super::{Looking, Planned, Probe, Recorder, Shared, failure_of_broker};
use crate::model::decode::Spanned;
use crate::model::duration::{print, print_measured};
use crate::model::{Failure, Family, Reason, Sight};
use crate::tasks;

static AGE: Family = Family::gauge("celery_beat_schedule_file_age_seconds", "Since celerybeat last wrote its schedule's file, in any of its forms");
static STALE: Family =
    Family::gauge("celery_beat_schedule_stale", "Whether celerybeat has not written its schedule's file for longer than it may: it hangs");
static SEEN: Family = Family::gauge(
    "celery_beat_last_seen_timestamp_seconds",
    "When a periodic task was last seen to have been accepted by a worker, in seconds since the epoch",
);
static OVERDUE: Family =
    Family::gauge("celery_beat_task_overdue", "Whether no worker has accepted a periodic task for longer than that may take");

/// The most paths of `files`.
const MAX_FILES: usize = 20;

crate::config_struct! {
    /// Asks whether celerybeat sends: by the age of its schedule's file, and by a periodic task that a worker accepted.
    /// At least one of `files`, `database` and `task`; with one of the first two and the last, a beat that hangs and a task
    /// that nobody runs are told apart.
    pub struct BeatConfig {
        /// Where beat keeps its schedule, as in `celery beat --schedule`: without the endings that the storage adds. Of
        /// several the newest counts.
        files: Vec<PathBuf> = "[]",
        /// The `postgres` or `mysql` probe of the site's database, where django-celery-beat keeps its schedule; this probe
        /// then depends on it.
        database: Option<Spanned<String>>,
        /// The greatest age of the file that is right: at least 305 s, unless beat is told to write more often. With
        /// `database`, how long after its interval an entry may be written as sent.
        max_age: Duration = "11m",
        /// A periodic task by its name, such as `coredata.tasks.beat_test`; needs `via` or `database`.
        task: Option<String>,
        /// The longest time between two runs of it that is right: two or three of its periods.
        within: Duration = "15m",
        /// The `rabbitmq` probe over whose connections the workers are asked for the count; this probe then depends on it.
        via: Option<Spanned<String>>,
    }
}

/// Builds the one target.
///
/// # Errors
/// None of `files`, `database` and `task`, both of the first two, `via` without `task`, more than 20 files.
pub fn plan(config: &BeatConfig, _: &str, shared: &Shared) -> Result<Vec<Planned>, String> {
    if config.files.len() > MAX_FILES {
        return Err(format!("files: expected at most {MAX_FILES}, found {}", config.files.len()));
    }
    if config.database.is_some() && !config.files.is_empty() {
        return Err("expected either files or database, where beat keeps its schedule; found both".to_owned());
    }
    let table = config.database.as_ref().map(|name| shared.database(name).map(Table::new)).transpose()?;
    let count = match (&config.task, &config.via) {
        (Some(task), Some(via)) => Some(Count::new(shared.broker(via)?, task.clone())),
        (None, None) if config.files.is_empty() && table.is_none() => {
            return Err("expected files, or database, or task and via, or several of them; found none".to_owned());
        }
        (None, None) => None,
        (Some(_), None) if table.is_some() => None,
        (Some(_), None) => return Err("task: expected via as well, the name of a rabbitmq probe: workers are asked through it".to_owned()),
        (None, Some(_)) => return Err("via: expected task as well, the name of a periodic task".to_owned()),
    };
    Ok(Planned::only(Beat { config: config.clone(), count, table, looking: Looking::default() }))
}

struct Beat {
    config: BeatConfig,
    count: Option<Count>,
    table: Option<Table>,
    /// One look at the files at a time: on a dead network mount it may outlive its run.
    looking: Looking,
}

impl Probe for Beat {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }
}

/// What the file says.
enum File {
    /// It is not asked, or cannot be judged.
    Unknown,
    Fresh(Duration),
    Stale {
        age: Duration,
        path: PathBuf,
    },
    Missing,
}

/// What the count says.
#[derive(Default)]
struct Task<'a> {
    name: &'a str,
    /// How long ago it was last seen to grow.
    last: Option<Duration>,
    overdue: bool,
}

/// What could not be seen, and what would show it.
#[derive(Default)]
struct Unseen(Vec<(String, String)>);

impl Beat {
    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let mut unseen = Unseen::default();
        let file = self.file(rec, &mut unseen).await?;
        let (mut task, mut unasked) = (Task::default(), Ok(()));
        if let Some(count) = &self.count {
            match count.ask(rec).await {
                Ok(ran) => task = self.record(rec, &mut unseen, &count.task, &ran),
                Err(error) if error.code() == Some(403) => unseen.0.push((
                    format!("whether {} is run: {error}", count.task),
                    "let its user ask the workers: docs/probes/rabbitmq.md, \"The user it needs\"".to_owned(),
                )),
                Err(error) => unasked = Err(failure_of_broker(count.broker(), &error)),
            }
        }
        let sent = match &self.table {
            Some(table) => self.sent(rec, &mut unseen, table).await,
            None => Ok(()),
        };
        if !unseen.0.is_empty() {
            let asked = [!self.config.files.is_empty(), self.count.is_some(), self.table.is_some()];
            let nothing = unseen.0.len() == asked.into_iter().filter(|asked| *asked).count();
            let (missing, remedy): (Vec<_>, Vec<_>) = unseen.0.into_iter().unzip();
            let (missing, remedy) = (missing.join("; "), remedy.join("; "));
            rec.sight(if nothing { Sight::Blind { missing, remedy } } else { Sight::Partial { missing, remedy } });
        }
        self.judge(rec, file, &task).and(sent).and(unasked)
    }

    /// Asks the database what was sent.
    async fn sent(&self, rec: &mut Recorder, unseen: &mut Unseen, table: &Table) -> Result<(), Failure> {
        let BeatConfig { task, within, max_age, .. } = &self.config;
        let limits = Limits { max_age: *max_age, task: task.as_deref().map(|task| (task, *within)) };
        unseen.0.extend(table.ask(rec, &limits).await?);
        Ok(())
    }

    /// Looks at the files and records their age.
    async fn file(&self, rec: &mut Recorder, unseen: &mut Unseen) -> Result<File, Failure> {
        let BeatConfig { files, max_age, .. } = &self.config;
        if files.is_empty() {
            return Ok(File::Unknown);
        }
        rec.waiting(Reason::AnswerTimeout, "waiting for the file system that holds celerybeat's schedule");
        match file::look(files, &self.looking, tasks::wall_now()).await? {
            Schedule::Missing => Ok(File::Missing),
            Schedule::Hidden { path, why } => {
                let folder = path.parent().unwrap_or(&path).display();
                unseen.0.push((
                    format!("the age of {}: {why}", path.display()),
                    format!("let Proctor's user enter the folder, such as setfacl -m u:proctor:x {folder}"),
                ));
                Ok(File::Unknown)
            }
            Schedule::Ahead { path, by } => {
                let (path, by) = (path.display(), print_measured(by));
                let what = format!("{path}: was written {by} in the future: the clock of this host or of the file system is wrong");
                Err(Failure::new(Reason::Mismatch, what))
            }
            Schedule::Written { path, age, at_end } => {
                rec.set(&AGE, age.as_secs_f64());
                if age <= *max_age {
                    return Ok(File::Fresh(age));
                }
                if at_end {
                    unseen.0.push((
                        format!("whether beat moves: {} is a Berkeley DB, which is written only when beat ends", path.display()),
                        "install dbm.gnu for beat's Python (python3-gdbm) and delete the file while beat is stopped, or set task and via"
                            .to_owned(),
                    ));
                    return Ok(File::Unknown);
                }
                Ok(File::Stale { age, path })
            }
        }
    }

    /// Records what the workers have counted.
    fn record<'a>(&self, rec: &mut Recorder, unseen: &mut Unseen, name: &'a str, ran: &Ran) -> Task<'a> {
        let within = self.config.within;
        let overdue = ran.still > within;
        if let Some((at, _)) = ran.last {
            rec.set_with(&SEEN, &[("task", name)], at.as_secs_f64());
        }
        rec.set_with(&OVERDUE, &[("task", name)], f64::from(u8::from(overdue)));
        if ran.nodes.is_empty() {
            rec.evidence("no celery node answers");
        } else {
            rec.evidence(format!("celery nodes that answer: {}", ran.nodes.join(", ")));
        }
        if ran.last.is_none() && !overdue {
            unseen.0.push((
                format!("yet whether {name} is run: its count has not grown in the {} since Proctor looks", print_measured(ran.still)),
                format!("wait: it is known after {} at the latest", print(within)),
            ));
        }
        Task { name, last: ran.last.map(|(_, ago)| ago), overdue }
    }

    fn judge(&self, rec: &mut Recorder, file: File, task: &Task) -> Result<(), Failure> {
        let BeatConfig { files, max_age, within, .. } = &self.config;
        let (max_age, within, name) = (*max_age, print(*within), task.name);
        let run = match task.last {
            Some(ago) => format!("{name} was last run {} ago", print_measured(ago)),
            None => format!("{name} was not run since Proctor looks"),
        };
        // What ran after the file should have been written anew was sent by a beat that moves.
        let elsewhere = matches!(&file, File::Stale { age, .. } if task.last.is_some_and(|ago| ago + max_age < *age));
        if !matches!(file, File::Unknown | File::Missing) {
            rec.set(&STALE, f64::from(u8::from(matches!(file, File::Stale { .. }) && !elsewhere)));
        }
        let (reason, what) = match file {
            File::Stale { age, path } => {
                let (path, age) = (path.display(), print_measured(age));
                if elsewhere {
                    let what = format!("{path}: was last written {age} ago, yet {run}: beat keeps its schedule elsewhere, or cannot write it");
                    (Reason::Mismatch, what)
                } else {
                    let max_age = print(max_age);
                    (Reason::Stalled, format!("{path}: expected celerybeat to write it at least every {max_age}, found it {age} old: beat hangs or does not run"))
                }
            }
            File::Missing => {
                let paths: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
                let but = match task.last {
                    Some(_) if !task.overdue => format!("yet {run}: beat keeps its schedule elsewhere"),
                    _ => "beat has never run with it, or keeps it elsewhere (celery beat --schedule)".to_owned(),
                };
                (Reason::Missing, format!("{}: no such schedule in any form: {but}", paths.join(", ")))
            }
            File::Fresh(age) if task.overdue => {
                let age = print_measured(age);
                (Reason::Overdue, format!("beat sends (it wrote its schedule {age} ago), but nobody runs it: {run}, expected within {within}"))
            }
            File::Unknown if task.overdue => {
                (Reason::Overdue, format!("{run}, expected within {within}: beat does not send, or nobody runs what it sends"))
            }
            File::Fresh(_) | File::Unknown => return Ok(()),
        };
        Err(Failure::new(reason, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn a_configuration_says_what_is_looked_at_and_what_is_wrong_with_it() {
        let many = format!("{{files: [{}]}}", vec!["/a"; MAX_FILES + 1].join(", "));
        for (text, wrong) in [
            ("{}", "expected files, or database, or task and via"),
            ("{task: a.b}", "task: expected via as well"),
            ("{via: broker, files: [/a]}", "via: expected task as well"),
            ("{via: broker, task: a.b}", "expected the name of a rabbitmq probe, found \"broker\""),
            ("{database: db}", "expected the name of a postgres or mysql probe, found \"db\""),
            ("{database: db, files: [/a]}", "expected either files or database"),
            (&many, "files: expected at most 20, found 21"),
        ] {
            let config: BeatConfig = from_text("f", text).expect(text);
            let why = plan(&config, "beat", &Shared::default()).err().unwrap_or_else(|| panic!("{text} is wrong"));
            assert!(why.contains(wrong), "{text}: {why}");
        }
    }
}
