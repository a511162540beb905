//! When django-celery-beat has sent each periodic task, by its own tables.
//!
//! Its scheduler keeps `last_run_at` of every entry, and writes what it has sent at most every `beat_sync_every` tasks or
//! 180 s (celery/beat.py, django_celery_beat/schedulers.py). An entry with an interval is late when that is longer ago than
//! its interval and `max_age`. When all of them are late, beat hangs; when some are, beat does not send those. Entries of
//! other kinds (crontab, solar) are shown, and judged only as `task`, by `within`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::super::Recorder;
use super::super::sql::Asking;
use super::STALE;
use crate::client::sql::{Dialect, Question, Rows, Session, SqlError};
use crate::model::duration::{print, print_measured};
use crate::model::{Failure, Family, Reason};

static SENT: Family = Family::gauge(
    "celery_beat_entry_last_run_timestamp_seconds",
    "When django-celery-beat last sent an entry of its table, in seconds since the epoch",
);
static LATE: Family =
    Family::gauge("celery_beat_entry_overdue", "Whether django-celery-beat has not sent an entry of its table for longer than it should");

/// Clocks of the database and of beat may differ by so much, in seconds.
const AHEAD: f64 = 60.0;

/// One-off and clocked entries are sent once and then no more; one that is not enabled, not yet begun or expired, not at all.
const POSTGRES: &str = "\
SELECT t.name, t.task, extract(epoch FROM t.last_run_at) AS at, extract(epoch FROM now()) - extract(epoch FROM t.last_run_at) AS ago,
  i.every * CASE i.period WHEN 'days' THEN 86400 WHEN 'hours' THEN 3600 WHEN 'minutes' THEN 60 WHEN 'seconds' THEN 1 ELSE 0 END AS every
FROM django_celery_beat_periodictask t LEFT JOIN django_celery_beat_intervalschedule i ON i.id = t.interval_id
WHERE t.enabled AND NOT t.one_off AND t.clocked_id IS NULL
  AND (t.expires IS NULL OR t.expires > now()) AND (t.start_time IS NULL OR t.start_time < now())
ORDER BY t.name LIMIT 200";

/// Django keeps times in UTC, in columns that say nothing of a zone.
const MYSQL: &str = "\
SELECT t.name, t.task, timestampdiff(SECOND, '1970-01-01', t.last_run_at) AS at, timestampdiff(SECOND, t.last_run_at, utc_timestamp()) AS ago,
  i.every * CASE i.period WHEN 'days' THEN 86400 WHEN 'hours' THEN 3600 WHEN 'minutes' THEN 60 WHEN 'seconds' THEN 1 ELSE 0 END AS every
FROM django_celery_beat_periodictask t LEFT JOIN django_celery_beat_intervalschedule i ON i.id = t.interval_id
WHERE t.enabled AND NOT t.one_off AND t.clocked_id IS NULL
  AND (t.expires IS NULL OR t.expires > utc_timestamp()) AND (t.start_time IS NULL OR t.start_time < utc_timestamp())
ORDER BY t.name LIMIT 200";

/// What is right.
pub(super) struct Limits<'a> {
    /// How long after it was due an entry may be written.
    pub(super) max_age: Duration,
    /// The task that is judged whatever its schedule, and the longest time between two runs of it.
    pub(super) task: Option<(&'a str, Duration)>,
}

/// What cannot be seen, and what would show it.
pub(super) type Unseen = (String, String);

/// The tables, as the user of a database probe sees them.
pub(super) struct Table {
    session: Session,
    /// Since when an entry is known that was never sent.
    new: Mutex<BTreeMap<String, Instant>>,
}

/// An entry that is judged.
#[derive(Debug)]
struct Entry<'a> {
    name: &'a str,
    task: &'a str,
    /// Since it was last sent, or since it is known.
    ago: Duration,
    /// The longest time that is right.
    within: Duration,
}

impl Entry<'_> {
    fn is_late(&self) -> bool {
        self.ago > self.within
    }
}

impl Table {
    pub(super) fn new(session: Session) -> Self {
        Self { session, new: Mutex::default() }
    }

    /// Asks for all entries, records and judges them; returns what cannot be seen.
    pub(super) async fn ask(&self, rec: &mut Recorder, limits: &Limits<'_>) -> Result<Option<Unseen>, Failure> {
        let settings = self.session.settings();
        let sql = match settings.dialect {
            Dialect::Postgres => POSTGRES,
            Dialect::Mysql => MYSQL,
        };
        let told = &mut |reason, text: String| rec.waiting(reason, text);
        let rows = match self.session.ask(Question::Ours(sql), "the periodic tasks", told).await {
            Ok((_, rows)) => rows,
            Err(SqlError::Server { reason: Reason::Forbidden, .. }) => {
                let user = &settings.username;
                let tables = ["django_celery_beat_periodictask", "django_celery_beat_intervalschedule"];
                let grant = |table| format!("GRANT SELECT ON {table} TO {user}");
                return Ok(Some(("the periodic tasks in the database".to_owned(), format!("run {}; {}", grant(tables[0]), grant(tables[1])))));
            }
            Err(error) => return Err(Asking::of(&self.session).failure(&error)),
        };
        self.judge(rec, &rows, limits)
    }

    fn judge(&self, rec: &mut Recorder, rows: &Rows, limits: &Limits<'_>) -> Result<Option<Unseen>, Failure> {
        let place = &self.session.settings().endpoint;
        let entries = self.entries(rec, rows, limits)?;
        if let Some((task, _)) = limits.task
            && !entries.iter().any(|entry| entry.task == task)
        {
            let what = format!("{place}: expected an enabled periodic task {task} in django_celery_beat_periodictask, found none among {}", rows.rows.len());
            return Err(Failure::new(Reason::Missing, what));
        }
        if entries.is_empty() {
            let missing = format!("whether beat moves: none of its {} enabled entries has an interval", rows.rows.len());
            return Ok(Some((missing, "name a task that is sent often by the keys task and within".to_owned())));
        }
        for entry in &entries {
            rec.set_with(&LATE, &[("name", entry.name), ("task", entry.task)], f64::from(u8::from(entry.is_late())));
        }
        let late: Vec<&Entry> = entries.iter().filter(|entry| entry.is_late()).collect();
        let stale = late.len() == entries.len();
        rec.set(&STALE, f64::from(u8::from(stale)));
        let said = |entry: &&Entry| format!("{} ({}) was last sent {} ago, expected within {}", entry.name, entry.task, print_measured(entry.ago), print(entry.within));
        late.iter().take(10).for_each(|entry| rec.evidence(said(entry)));
        match late.first() {
            None => Ok(None),
            Some(first) if stale => {
                let what = format!("{place}: beat hangs, does not run, or cannot write to the database: none of {} entries was sent in time: {}", entries.len(), said(first));
                Err(Failure::new(Reason::Stalled, what))
            }
            Some(first) => {
                let what = format!("{place}: beat sends, but {} of {} entries were not sent in time: {}", late.len(), entries.len(), said(first));
                Err(Failure::new(Reason::Overdue, what))
            }
        }
    }

    /// Records when each was sent, and returns those that can be judged.
    fn entries<'a>(&self, rec: &mut Recorder, rows: &'a Rows, limits: &Limits<'_>) -> Result<Vec<Entry<'a>>, Failure> {
        let mut new = self.new.lock().unwrap_or_else(PoisonError::into_inner);
        let mut never = BTreeMap::new();
        let mut entries = Vec::new();
        for row in &rows.rows {
            let text = |column| rows.at(row, column).unwrap_or_default();
            let (name, task) = (text("name"), text("task"));
            if let Some(at) = rows.number(row, "at") {
                rec.set_with(&SENT, &[("name", name), ("task", task)], at);
            }
            let ago = match rows.number(row, "ago") {
                Some(ago) if ago < -AHEAD => {
                    let what = format!(
                        "{}: the entry {name} was sent {} in the future: a clock is wrong, or Django does not keep times in UTC",
                        self.session.settings().endpoint,
                        print_measured(Duration::from_secs_f64(-ago))
                    );
                    return Err(Failure::new(Reason::Mismatch, what));
                }
                Some(ago) => Duration::from_secs_f64(ago.max(0.0)),
                None => {
                    let since = *new.get(name).unwrap_or(&Instant::now());
                    never.insert(name.to_owned(), since);
                    since.elapsed()
                }
            };
            let named = limits.task.filter(|(named, _)| *named == task).map(|(_, within)| within);
            // An interval of microseconds counts as none at all beside `max_age`.
            let every = rows.number(row, "every").map(|every| Duration::from_secs_f64(every.clamp(0.0, 1e10)) + limits.max_age);
            if let Some(within) = named.or(every) {
                entries.push(Entry { name, task, ago, within });
            }
        }
        *new = never;
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::net::Endpoint;
    use crate::client::sql::Settings;
    use crate::tasks::Tasks;

    fn table() -> Table {
        let settings = Settings {
            dialect: Dialect::Postgres,
            endpoint: Endpoint::Unix("/s".into()),
            tls: None,
            database: "a".to_owned(),
            username: "proctor".to_owned(),
            password_file: None,
            statement_timeout: Duration::from_secs(1),
        };
        Table::new(Session::new(settings, Tasks::new()))
    }

    #[test]
    fn entries_are_judged_by_their_interval_and_a_named_one_by_its_own() {
        // Name and task, ago, every; nothing for NULL.
        let judge = |entries: &[(&str, &str, &str)], task| {
            let cell = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let rows = Rows {
                columns: ["name", "task", "ago", "every"].map(str::to_owned).to_vec(),
                rows: entries.iter().map(|(name, ago, every)| vec![cell(name), cell(name), cell(ago), cell(every)]).collect(),
            };
            let limits = Limits { max_age: Duration::from_secs(660), task };
            table().judge(&mut Recorder::default(), &rows, &limits).map(|unseen| unseen.is_some()).map_err(|failure| failure.reason)
        };
        let within = Duration::from_secs(900);
        for (entries, task, wanted) in [
            (&[("a", "700", "60"), ("b", "10", "")][..], None, Ok(false)),
            (&[("a", "721", "60"), ("b", "10", "")], None, Err(Reason::Stalled)),
            (&[("a", "721", "60"), ("c", "721", "3600")], None, Err(Reason::Overdue)),
            (&[("a", "", "60")], None, Ok(false)),
            (&[("b", "100000", "")], None, Ok(true)),
            (&[("b", "899", "")], Some(("b", within)), Ok(false)),
            (&[("b", "901", "")], Some(("b", within)), Err(Reason::Stalled)),
            (&[("a", "10", "60"), ("b", "901", "")], Some(("b", within)), Err(Reason::Overdue)),
            (&[("a", "10", "60")], Some(("b", within)), Err(Reason::Missing)),
            (&[("a", "-28800", "60")], None, Err(Reason::Mismatch)),
            (&[], None, Ok(true)),
        ] {
            assert_eq!(judge(entries, task), wanted, "{entries:?} {task:?}");
        }
    }
}
