//! What is known of one heartbeat: pure, `now` is an argument. The times are the wall clock's, as cron's are.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::cron::Cron;
use crate::model::{Timestamp, one_line};
use crate::model::duration::{print, print_measured};
use crate::store::{Record, Table};

/// The most of a job's output that is kept, in bytes: the end, where programs say why they failed.
pub const MAX_OUTPUT: usize = 10 * 1024;
/// The most checks of one report, and the longest name and text of one, in characters.
pub const MAX_CHECKS: usize = 100;
const MAX_NAME: usize = 80;
const MAX_TEXT: usize = 400;
/// The longest id of a run.
const MAX_RUN: usize = 64;
/// The most runs of a job that go on at the same time; of more the oldest is forgotten.
const MAX_OPEN: usize = 8;
/// A clock that is ahead by so much may still mean the time that is due.
const AHEAD: Duration = Duration::from_secs(60);
/// What lies further in the future was written by a clock that was wrong: the bound that cron knows too.
const FUTURE: Duration = Duration::from_secs(3 * 3600);
/// How often it is written down that Proctor was there to hear.
const NOTED_EVERY: Duration = Duration::from_secs(300);

/// One check of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// What was checked; a label, so that it stays the same from report to report.
    pub name: String,
    /// Whether it is well.
    pub ok: bool,
    /// What was found, for people.
    #[serde(default)]
    pub text: String,
}

/// How a run of a job ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ended {
    /// The exit code; 128 and the signal where one ended it.
    pub exit_code: i32,
    /// How long it took.
    pub duration_seconds: Option<f64>,
    /// The end of what it printed.
    pub output: String,
    /// What it checked.
    pub checks: Vec<Check>,
}

/// What is reported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// A run has begun.
    Started {
        /// Which, where its end will name it.
        run: String,
    },
    /// A run is over; one that was not reported to have begun is one too.
    Ended {
        /// Which; may be empty.
        run: String,
        /// How.
        ended: Ended,
    },
}

/// What is expected.
#[derive(Clone, Debug)]
pub(super) enum Expected {
    Every(Duration),
    Cron(Cron, TimeZone),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Open {
    run: String,
    at: Timestamp,
}

/// What is known of one heartbeat, and kept over a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Heart {
    name: String,
    /// What was expected when this was written: something else is watched anew.
    expects: String,
    /// Since when it is watched, or what could not be heard is forgiven.
    since: Timestamp,
    /// Proctor was there to hear until then, or a little longer.
    noted_at: Timestamp,
    /// When it was last heard of: a begin, or the end of a run that had none.
    heard_at: Option<Timestamp>,
    open: VecDeque<Open>,
    last: Option<(Timestamp, Ended)>,
    pub(super) last_ok_at: Option<Timestamp>,
    pub(super) runs: u64,
    pub(super) failed_runs: u64,
    pub(super) overdue: bool,
}

impl Record for Heart {
    const TABLE: Table = Table::Meta;
    const PREFIX: &'static str = "heartbeat/";
    fn key(&self) -> String {
        Self::key_of(&self.name)
    }
}

/// Since when a run goes on that should be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stuck {
    pub(super) since: Timestamp,
}

impl Heart {
    pub(super) fn key_of(name: &str) -> String {
        format!("{}{name}", Self::PREFIX)
    }

    /// Begins to watch.
    pub(super) fn new(name: &str, expects: &str, now: Timestamp) -> Self {
        Self {
            name: name.to_owned(),
            expects: expects.to_owned(),
            since: now,
            noted_at: now,
            heard_at: None,
            open: VecDeque::new(),
            last: None,
            last_ok_at: None,
            runs: 0,
            failed_runs: 0,
            overdue: false,
        }
    }

    /// Goes on after Proctor was not there: what was due meanwhile may have come, and nobody heard it.
    pub(super) fn back(&mut self, expects: &str, expected: &Expected, now: Timestamp) {
        if self.expects != expects || self.last_heard() > now + FUTURE {
            expects.clone_into(&mut self.expects);
            (self.since, self.heard_at, self.overdue) = (now, None, false);
        }
        if !self.overdue && self.due(expected).is_some_and(|(earliest, _)| earliest >= self.noted_at && earliest <= now) {
            self.since = now;
        }
        self.noted_at = now;
    }

    /// The clock of the host was set forward: what is due by it was not missed.
    pub(super) fn forgive(&mut self, now: Timestamp) {
        if !self.overdue {
            self.since = now;
        }
    }

    /// Takes a report; it is bounded here.
    pub(super) fn take(&mut self, report: Report, now: Timestamp) {
        match report {
            Report::Started { run } => {
                self.open.push_back(Open { run: one_line(&run, MAX_RUN), at: now });
                if self.open.len() > MAX_OPEN {
                    self.open.pop_front();
                }
                self.heard_at = Some(now);
            }
            Report::Ended { run, ended } => {
                let run = one_line(&run, MAX_RUN);
                let began = self.open.iter().rev().find(|open| open.run == run).map(|open| open.at);
                // Where its begin was not heard, it is known from how long it took.
                let took = ended.duration_seconds.and_then(|took| Duration::try_from_secs_f64(took).ok()).unwrap_or_default();
                let began = began.unwrap_or(now - took);
                self.heard_at = self.heard_at.max(Some(began));
                // A run that a later one has outlived was killed, or nobody told of its end.
                self.open.retain(|open| open.run != run && open.at > began);
                let ended = bounded(ended);
                self.runs += 1;
                if ended.is_well() {
                    self.last_ok_at = Some(now);
                } else {
                    self.failed_runs += 1;
                }
                self.last = Some((now, ended));
            }
        }
    }

    /// Returns when it was last heard of, or began to be watched.
    fn last_heard(&self) -> Timestamp {
        self.heard_at.unwrap_or(self.since).max(self.since)
    }

    /// Returns when the next report is due, at the earliest and at the latest, without the grace.
    pub(super) fn due(&self, expected: &Expected) -> Option<(Timestamp, Timestamp)> {
        let heard = self.last_heard();
        match expected {
            Expected::Every(every) => Some((heard + *every, heard + *every)),
            Expected::Cron(cron, zone) => {
                // One that came a moment too early is this one, and not the one before.
                let heard = if self.heard_at == Some(heard) { heard + AHEAD } else { heard };
                let occurrence = cron.after(heard.to_jiff(), zone)?;
                Some((Timestamp(occurrence.earliest.as_millisecond()), Timestamp(occurrence.latest.as_millisecond())))
            }
        }
    }

    /// Looks whether it is overdue; says whether anything changed that is to be kept.
    pub(super) fn look(&mut self, expected: &Expected, grace: Duration, now: Timestamp) -> bool {
        let overdue = self.due(expected).is_some_and(|(_, latest)| now > latest + grace);
        let changed = overdue != self.overdue || now.since(self.noted_at) >= NOTED_EVERY;
        if changed {
            (self.overdue, self.noted_at) = (overdue, now);
        }
        changed
    }

    /// Finds a run that goes on for longer than it may: `at_most`, or until the run after it is overdue.
    pub(super) fn stuck(&self, expected: &Expected, grace: Duration, at_most: Option<Duration>, now: Timestamp) -> Option<Stuck> {
        let until = |begun: Timestamp| {
            let once = Self { heard_at: Some(begun), since: begun, ..Self::new("", "", begun) };
            at_most.map(|at_most| begun + at_most).or_else(|| once.due(expected).map(|(_, latest)| latest + grace))
        };
        self.open.iter().filter(|open| until(open.at).is_some_and(|until| now > until)).map(|open| Stuck { since: open.at }).min_by_key(|stuck| stuck.since)
    }

    pub(super) fn last(&self) -> Option<(Timestamp, &Ended)> {
        self.last.as_ref().map(|(at, ended)| (*at, ended))
    }

    pub(super) fn running_since(&self) -> Option<Timestamp> {
        self.open.back().map(|open| open.at)
    }

    pub(super) fn heard_at(&self) -> Option<Timestamp> {
        self.heard_at
    }

    /// Says for people when it was last heard of.
    pub(super) fn heard(&self, now: Timestamp) -> String {
        match self.heard_at {
            Some(at) => format!("last heard of it {} ago ({at})", print_measured(now.since(at))),
            None => format!("nothing has come since it is watched ({})", self.since),
        }
    }
}

impl Expected {
    /// Says for people, and for the state, what is expected.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Every(every) => format!("every {}", print(*every)),
            Self::Cron(cron, zone) => format!("at {cron} ({})", zone.iana_name().unwrap_or("the host's time")),
        }
    }
}

impl Ended {
    /// Says whether the run and all that it checked is well.
    pub fn is_well(&self) -> bool {
        self.exit_code == 0 && self.checks.iter().all(|check| check.ok)
    }
}

fn bounded(mut ended: Ended) -> Ended {
    let mut begin = ended.output.len().saturating_sub(MAX_OUTPUT);
    while !ended.output.is_char_boundary(begin) {
        begin += 1;
    }
    ended.output.drain(..begin);
    let mut checks: Vec<Check> = Vec::new();
    for check in ended.checks {
        let check = Check { name: one_line(check.name.trim(), MAX_NAME), ok: check.ok, text: one_line(check.text.trim(), MAX_TEXT) };
        let full = checks.len() >= MAX_CHECKS;
        // Two of one name are one series: what is wrong with one of them counts.
        match checks.iter_mut().find(|known| known.name == check.name) {
            Some(known) if known.ok => *known = check,
            Some(_) => {}
            None if !full => checks.push(check),
            // What is wrong is not lost behind what is well.
            None if !check.ok => {
                if let Some(well) = checks.iter_mut().rev().find(|known| known.ok) {
                    *well = check;
                }
            }
            None => {}
        }
    }
    ended.checks = checks;
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(text: &str) -> Timestamp {
        Timestamp(text.parse::<jiff::Timestamp>().expect(text).as_millisecond())
    }

    fn nightly() -> Expected {
        Expected::Cron(Cron::parse("30 2 * * *").expect("is one"), TimeZone::UTC)
    }

    fn well() -> Report {
        Report::Ended { run: String::new(), ended: Ended::default() }
    }

    #[test]
    fn it_is_overdue_when_the_time_and_the_grace_have_passed_and_no_longer_when_it_comes() {
        let mut heart = Heart::new("backup", "", at("2026-03-01T12:00:00Z"));
        let look = |heart: &mut Heart, now: &str| {
            heart.look(&nightly(), MINUTE * 10, at(now));
            heart.overdue
        };
        assert!(!look(&mut heart, "2026-03-02T02:40:00Z"));
        assert!(look(&mut heart, "2026-03-02T02:40:01Z"));
        heart.take(well(), at("2026-03-02T03:00:00Z"));
        assert!(!look(&mut heart, "2026-03-02T03:00:01Z"));
        // A clock that is 20 s ahead: it is this night's, and none is missed.
        heart.take(well(), at("2026-03-03T02:29:40Z"));
        assert!(!look(&mut heart, "2026-03-04T02:39:00Z"));
        // A run that began in time is not overdue while it goes on.
        heart.take(Report::Started { run: "7".into() }, at("2026-03-04T02:30:01Z"));
        assert!(!look(&mut heart, "2026-03-04T12:00:00Z"));
        let expected = Expected::Every(MINUTE * 5);
        let mut heart = Heart::new("cron", "", at("2026-03-01T12:00:00Z"));
        assert!(heart.look(&expected, MINUTE, at("2026-03-01T12:06:01Z")) && heart.overdue);
    }

    #[test]
    fn what_was_due_while_proctor_was_not_there_is_forgiven_and_what_was_overdue_before_is_not() {
        let begin = at("2026-03-01T12:00:00Z");
        let fresh = || {
            let mut heart = Heart::new("backup", "a", begin);
            heart.look(&nightly(), MINUTE * 10, at("2026-03-02T02:29:00Z"));
            heart
        };
        let mut heart = fresh();
        heart.back("a", &nightly(), at("2026-03-02T02:31:00Z"));
        heart.look(&nightly(), MINUTE * 10, at("2026-03-02T03:00:00Z"));
        assert!(!heart.overdue, "it may have come meanwhile");
        heart.look(&nightly(), MINUTE * 10, at("2026-03-03T03:00:00Z"));
        assert!(heart.overdue, "the next one did not");
        heart.back("a", &nightly(), at("2026-03-03T04:00:00Z"));
        heart.look(&nightly(), MINUTE * 10, at("2026-03-03T04:00:01Z"));
        assert!(heart.overdue, "it was so before");
        heart.back("b", &nightly(), at("2026-03-03T05:00:00Z"));
        assert!(!heart.overdue && heart.heard_at.is_none(), "something else is expected now");
        let mut heart = fresh();
        heart.look(&nightly(), MINUTE * 10, at("2026-03-02T02:35:00Z"));
        heart.back("a", &nightly(), at("2026-03-02T02:36:00Z"));
        heart.look(&nightly(), MINUTE * 10, at("2026-03-02T02:41:00Z"));
        assert!(heart.overdue, "Proctor was there at 02:30");
        let mut heart = fresh();
        heart.take(well(), at("2038-01-01T00:00:00Z"));
        heart.back("a", &nightly(), at("2026-03-02T03:00:00Z"));
        heart.look(&nightly(), MINUTE * 10, at("2026-03-03T03:00:00Z"));
        assert!(heart.overdue, "a clock that was wrong does not silence it");
    }

    #[test]
    fn a_run_that_goes_on_past_the_next_one_or_its_limit_is_stuck_unless_another_has_ended_since() {
        let begun = at("2026-03-02T02:30:00Z");
        let mut heart = Heart::new("backup", "", at("2026-03-01T12:00:00Z"));
        heart.take(Report::Started { run: "1".into() }, begun);
        let stuck = |heart: &Heart, at_most, now: &str| heart.stuck(&nightly(), MINUTE * 10, at_most, at(now)).map(|stuck| stuck.since);
        assert_eq!(stuck(&heart, None, "2026-03-03T02:40:00Z"), None);
        assert_eq!(stuck(&heart, None, "2026-03-03T02:40:01Z"), Some(begun));
        assert_eq!(stuck(&heart, Some(MINUTE * 60), "2026-03-02T03:30:01Z"), Some(begun));
        heart.take(Report::Started { run: "2".into() }, at("2026-03-03T02:30:00Z"));
        heart.take(Report::Ended { run: "2".into(), ended: Ended::default() }, at("2026-03-03T02:35:00Z"));
        assert_eq!(stuck(&heart, None, "2026-03-03T02:45:00Z"), None);
        assert_eq!(heart.running_since(), None, "the first was killed");
        heart.take(Report::Ended { run: "1".into(), ended: Ended::default() }, at("2026-03-03T02:50:00Z"));
        assert_eq!((heart.running_since(), heart.runs), (None, 2));
        for run in 0..100 {
            heart.take(Report::Started { run: run.to_string() }, begun);
        }
        assert_eq!(heart.open.len(), MAX_OPEN);
    }

    #[test]
    fn a_report_is_bounded_and_what_is_wrong_in_it_is_not_lost() {
        let check = |name: String, ok| Check { name, ok, text: "x\ny".repeat(1000) };
        let mut checks: Vec<Check> = (0..500).map(|n| check(format!("check {n}"), true)).collect();
        checks.push(check("the last".into(), false));
        checks.push(check("check 1".into(), false));
        checks.push(check("check 1".into(), true));
        let ended = bounded(Ended { output: "é".repeat(MAX_OUTPUT), checks, ..Ended::default() });
        assert_eq!((ended.output.len(), ended.checks.len()), (MAX_OUTPUT, MAX_CHECKS));
        assert!(!ended.is_well());
        let failed: Vec<&str> = ended.checks.iter().filter(|check| !check.ok).map(|check| check.name.as_str()).collect();
        assert_eq!(failed, ["check 1", "the last"]);
        assert!(ended.checks.iter().all(|check| check.text.chars().count() == MAX_TEXT && !check.text.contains('\n')));
    }
}
