//! Jobs that report by themselves: a line of cron, a backup, the site's own checks.
//!
//! The reports come in over the control socket (`proctor run NAME -- COMMAND`) or as `POST /heartbeat/NAME` with a
//! token. Everything that is known lies in the store, so that a restart, `kill -9` included, forgets nothing.

pub mod cron;
mod heart;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::tz::TimeZone;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::{Mutex, Notify};

use self::cron::{Cron, Zone};
use self::heart::{Expected, Heart};
use super::{Planned, Probe, Recorder, Shared};
use crate::client::secret;
use crate::model::duration::{print, print_measured};
use crate::model::{Failure, Family, Reason, Sight, Target, Timestamp};
use crate::store::{Batch, Committed, Store};
use crate::tasks;

pub use heart::{Check, Ended, MAX_CHECKS, MAX_OUTPUT, Report};

static UP: Family = Family::gauge("heartbeat_up", "Whether the job reports in time, ended well, and found nothing wrong");
static OVERDUE: Family = Family::gauge("heartbeat_overdue", "Whether the job has not reported for longer than it may");
static FAILED: Family = Family::gauge("heartbeat_failed", "Whether the last run of the job ended with another code than 0");
static TOO_LONG: Family = Family::gauge("heartbeat_runs_too_long", "Whether a run of the job goes on for longer than it may");
static RUNNING: Family = Family::gauge("heartbeat_running", "Whether a run of the job goes on");
static DUE: Family = Family::gauge("heartbeat_due_timestamp_seconds", "When the job is overdue unless it reports, in seconds since the epoch");
static HEARD: Family =
    Family::gauge("heartbeat_last_report_timestamp_seconds", "When the job was last heard of to run, in seconds since the epoch");
static WELL: Family = Family::gauge("heartbeat_last_success_timestamp_seconds", "When a run of the job last ended well, in seconds since the epoch");
static TOOK: Family = Family::gauge("heartbeat_last_duration_seconds", "How long the last run of the job took");
static CODE: Family = Family::gauge("heartbeat_last_exit_code", "With what the last run of the job ended");
static RUNS: Family = Family::counter("heartbeat_runs_total", "Runs of the job that were reported to have ended");
static FAILURES: Family = Family::counter("heartbeat_failed_runs_total", "Runs of the job that ended with another code than 0, or found something wrong");
static CHECK: Family = Family::gauge("heartbeat_check_ok", "Whether a check that the job reported is well");

/// The shortest token: it must not be guessed.
const MIN_TOKEN: usize = 16;
/// How much the clock of the host may go forward between two runs without a word.
const JUMP: i64 = 60_000;

crate::config_struct! {
    /// A job that reports by itself, under the name of the probe: `proctor run NAME -- COMMAND`, or `POST
    /// /heartbeat/NAME`. Exactly one of `every` and `schedule`.
    pub struct HeartbeatConfig {
        /// The longest time from one report to the next, without the grace.
        every: Option<Duration>,
        /// When cron starts it, as in its crontab: five fields or `@daily`.
        schedule: Option<Cron>,
        /// With `schedule`: the time zone of that cron; the default is the host's.
        time_zone: Option<Zone>,
        /// How much later than that a report may be.
        grace: Duration = "10m",
        /// How long a run may take; the default is until the one after it is overdue.
        runs_at_most: Option<Duration>,
        /// A file with a secret of at least 16 characters that reports over HTTP must show; without it none is taken
        /// over HTTP.
        token_file: Option<PathBuf>,
    }
}

/// Builds the one target.
///
/// # Errors
/// Neither or both of `every` and `schedule`, a time zone without a schedule, a token that cannot be read or is short.
pub fn plan(config: &HeartbeatConfig, name: &str, _: &Shared) -> Result<Vec<Planned>, String> {
    let expected = match (&config.every, &config.schedule) {
        (Some(_), _) if config.time_zone.is_some() => return Err("time_zone: expected schedule as well".to_owned()),
        (Some(every), None) if *every >= Duration::from_secs(1) => Expected::Every(*every),
        (Some(every), None) => return Err(format!("every: expected at least 1s, found {}", print(*every))),
        (None, Some(cron)) => {
            let zone = config.time_zone.as_ref().map_or_else(TimeZone::system, |zone| zone.0.clone());
            Expected::Cron(cron.clone(), zone)
        }
        (None, None) => return Err("expected every (such as 5m) or schedule (such as \"30 2 * * *\"), found neither".to_owned()),
        (Some(_), Some(_)) => return Err("expected every or schedule, found both".to_owned()),
    };
    if let Some(path) = &config.token_file {
        let found = secret::read(path).map_err(|error| format!("token_file: {error}"))?.expose().len();
        if found < MIN_TOKEN {
            return Err(format!("token_file: expected a secret of at least {MIN_TOKEN} characters, found {found}"));
        }
    }
    let inbox = Inbox(Arc::new(Inner {
        name: name.to_owned(),
        expects: expected.text(),
        expected,
        config: config.clone(),
        store: OnceLock::new(),
        turn: Mutex::new(tasks::wall_now().0 - tasks::now().0),
        came: Notify::new(),
    }));
    Ok(Planned::only(Heartbeat(inbox)))
}

struct Inner {
    name: String,
    expects: String,
    expected: Expected,
    config: HeartbeatConfig,
    store: OnceLock<Store>,
    /// Held while what is kept is changed: how far the wall clock was from the steady one.
    turn: Mutex<i64>,
    came: Notify,
}

/// Where the reports of one heartbeat come in. Clones share it.
#[derive(Clone)]
pub struct Inbox(Arc<Inner>);

impl Inbox {
    /// Says whether this is the token of this heartbeat, in a time that does not depend on how much of it is right.
    pub fn takes(&self, token: &str) -> bool {
        let Some(Ok(secret)) = self.0.config.token_file.as_deref().map(secret::read) else { return false };
        // The hashes are of one length, whatever was sent.
        Sha256::digest(secret.expose()).ct_eq(&Sha256::digest(token)).into()
    }

    /// Takes a report, writes it down, and has the probe asked at once.
    pub async fn report(&self, report: Report) -> Committed {
        let _turn = self.0.turn.lock().await;
        let Some(store) = self.0.store.get() else { return Committed::InMemory };
        let now = tasks::wall_now();
        let mut heart = self.heart(store, now);
        heart.take(report, now);
        heart.look(&self.0.expected, self.0.config.grace, now);
        let mut batch = Batch::new();
        batch.put(&heart);
        // In memory it is there before the disk has it: the probe need not wait for that.
        let committed = store.commit(batch);
        self.0.came.notify_one();
        committed.await
    }

    /// Returns how the last run ended that was reported, and when.
    pub fn last(&self) -> Option<(Timestamp, Ended)> {
        let heart = self.0.store.get()?.get::<Heart>(&Heart::key_of(&self.0.name))?;
        heart.last().map(|(at, ended)| (at, ended.clone()))
    }

    fn heart(&self, store: &Store, now: Timestamp) -> Heart {
        store.get(&Heart::key_of(&self.0.name)).unwrap_or_else(|| Heart::new(&self.0.name, &self.0.expects, now))
    }

    /// Looks what is known; nothing where there is no state.
    async fn look(&self, now: Timestamp) -> Option<Heart> {
        let mut offset = self.0.turn.lock().await;
        let store = self.0.store.get()?;
        let mut heart = self.heart(store, now);
        let ahead = tasks::wall_now().0 - tasks::now().0;
        if ahead - *offset > JUMP {
            heart.forgive(now);
        }
        let jumped = (ahead - *offset).abs() > JUMP;
        *offset = ahead;
        if heart.look(&self.0.expected, self.0.config.grace, now) || jumped {
            let mut batch = Batch::new();
            batch.put(&heart);
            // Memory has it at once; the disk's answer is not waited for, since a slow disk is no fault of the job.
            let _in_memory = store.commit(batch).now_or_never();
        }
        Some(heart)
    }
}

struct Heartbeat(Inbox);

impl Probe for Heartbeat {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        async {
            let now = tasks::wall_now();
            match self.0.look(now).await {
                Some(heart) => self.judge(rec, &heart, now),
                None => {
                    let missing = "what was reported: only the running Proctor hears it".to_owned();
                    rec.sight(Sight::Blind { missing, remedy: "look at its status page".to_owned() });
                    Ok(())
                }
            }
        }
        .boxed()
    }

    fn remember(&mut self, _: &Target, store: &Store) {
        let Inner { name, expects, expected, .. } = &*self.0.0;
        let now = tasks::wall_now();
        let mut heart = store.get(&Heart::key_of(name)).unwrap_or_else(|| Heart::new(name, expects, now));
        heart.back(expects, expected, now);
        let mut batch = Batch::new();
        batch.put(&heart);
        let _in_memory = store.commit(batch).now_or_never();
        // Called once: nothing was there before.
        let _first = self.0.0.store.set(store.clone());
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        self.0.0.came.notified().boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }

    fn inbox(&self) -> Option<&Inbox> {
        Some(&self.0)
    }
}

impl Heartbeat {
    fn judge(&self, rec: &mut Recorder, heart: &Heart, now: Timestamp) -> Result<(), Failure> {
        let Inner { name, expects, expected, config, .. } = &*self.0.0;
        let flag = |is: bool| f64::from(u8::from(is));
        let stuck = heart.stuck(expected, config.grace, config.runs_at_most, now);
        let failed = heart.last().is_some_and(|(_, ended)| ended.exit_code != 0);
        for (family, value) in [
            (&OVERDUE, Some(flag(heart.overdue))),
            (&FAILED, Some(flag(failed))),
            (&TOO_LONG, Some(flag(stuck.is_some()))),
            (&RUNNING, Some(flag(heart.running_since().is_some()))),
            (&DUE, heart.due(expected).map(|(_, latest)| (latest + config.grace).as_secs_f64())),
            (&HEARD, heart.heard_at().map(Timestamp::as_secs_f64)),
            (&WELL, heart.last_ok_at.map(Timestamp::as_secs_f64)),
            (&TOOK, heart.last().and_then(|(_, ended)| ended.duration_seconds)),
            (&CODE, heart.last().map(|(_, ended)| f64::from(ended.exit_code))),
            (&RUNS, Some(heart.runs as f64)),
            (&FAILURES, Some(heart.failed_runs as f64)),
        ] {
            if let Some(value) = value {
                rec.set(family, value);
            }
        }
        let mut wrong: Vec<(Reason, String)> = Vec::new();
        if heart.overdue {
            let grace = print(config.grace);
            wrong.push((Reason::Overdue, format!("expected a report {expects}, at most {grace} late; {}", heart.heard(now))));
        }
        if let Some(stuck) = stuck {
            let (ago, most) = (print_measured(now.since(stuck.since)), config.runs_at_most.map(print));
            let most = most.map_or_else(|| "until the next one is due".to_owned(), |most| format!("{most} at most"));
            wrong.push((Reason::Stalled, format!("a run began {ago} ago ({}) and has not ended: expected it to take {most}", stuck.since)));
        }
        if let Some((at, ended)) = heart.last() {
            self.record_checks(rec, ended);
            wrong.extend(of_last(rec, at, ended, now).map(|what| (Reason::Mismatch, what)));
        }
        if heart.heard_at().is_none() && !heart.overdue {
            let due = heart.due(expected).map_or_else(|| "never".to_owned(), |(_, latest)| (latest + config.grace).to_string());
            rec.sight(Sight::Blind {
                missing: format!("yet whether it runs: {}; it is overdue on {due}", heart.heard(now)),
                remedy: format!("put `proctor run {name} --` before the command of the job"),
            });
        }
        let Some((reason, _)) = wrong.first() else { return Ok(()) };
        let reason = *reason;
        Err(Failure::new(reason, wrong.into_iter().map(|(_, what)| what).collect::<Vec<_>>().join("; also ")))
    }

    fn record_checks(&self, rec: &mut Recorder, ended: &Ended) {
        for check in &ended.checks {
            rec.set_with(&CHECK, &[("check", &check.name)], f64::from(u8::from(check.ok)));
        }
    }
}

/// Says what is wrong with the last run, and keeps what it printed for the mail.
fn of_last(rec: &mut Recorder, at: Timestamp, ended: &Ended, now: Timestamp) -> Option<String> {
    if ended.is_well() {
        return None;
    }
    let failing: Vec<&Check> = ended.checks.iter().filter(|check| !check.ok).collect();
    for check in &failing {
        rec.evidence_text(&format!("{}: {}", check.name, check.text));
    }
    rec.evidence_text(&ended.output);
    let took = ended.duration_seconds.and_then(|took| Duration::try_from_secs_f64(took).ok());
    let took = took.map(|took| format!(" after {}", print_measured(took))).unwrap_or_default();
    let ago = print_measured(now.since(at));
    let code = (ended.exit_code != 0).then(|| format!("its last run ended with code {}{took}, {ago} ago", ended.exit_code));
    let checks = (!failing.is_empty()).then(|| {
        let named: Vec<String> = failing.iter().map(|check| format!("{}: {}", check.name, check.text)).collect();
        format!("{} of {} checks failed {ago} ago: {}", failing.len(), ended.checks.len(), named.join("; "))
    });
    Some([code, checks].into_iter().flatten().collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn a_configuration_says_what_is_expected_and_what_is_wrong_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let token = folder.path().join("token");
        std::fs::write(&token, "short").expect("is written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&token, mode).expect("is set");
        for (text, wrong) in [
            ("{}".to_owned(), "expected every (such as 5m) or schedule"),
            ("{every: 5m, schedule: '@daily'}".to_owned(), "found both"),
            ("{every: 5m, time_zone: UTC}".to_owned(), "time_zone: expected schedule as well"),
            ("{every: 1ms}".to_owned(), "every: expected at least 1s"),
            (format!("{{every: 5m, token_file: {}}}", token.display()), "expected a secret of at least 16 characters, found 5"),
            ("{every: 5m, token_file: /nonexistent}".to_owned(), "token_file: cannot read"),
        ] {
            let config: HeartbeatConfig = from_text("f", &text).expect("decodes");
            let why = plan(&config, "backup", &Shared::default()).err().unwrap_or_else(|| panic!("{text} is wrong"));
            assert!(why.contains(wrong), "{text}: {why}");
        }
        for (text, wrong) in [("{schedule: 'x'}", "f:1:12: expected five fields"), ("{every: 1h, time_zone: Mars}", "a time zone such as")] {
            let problems = from_text::<HeartbeatConfig>("f", text).expect_err(text);
            assert!(problems[0].to_string().contains(wrong), "{problems:?}");
        }
    }
}
