//! Whether a group is mailed now: what people were told against what is so. Pure.
//!
//! The rules are Alertmanager's `needsUpdate` (`notify/dedup_stage.go`), with these deviations: the end has its own wait,
//! an alert that comes back before its end was told is still the same to people, and a repair belongs into the mail that
//! tells the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::message::gave_up;
use super::route::Route;
use crate::model::{Alert, AlertState, Attempt, Labels, Outcome, Timestamp};
use crate::store::{Record, Table};

/// How long an end waits for an attempt that is still being verified.
pub const VERIFY_WAIT: Duration = Duration::from_secs(10 * 60);

/// How long an alert that was told must be gone from the table to be over: its rule is gone, or it ended while Proctor
/// did not run. Not at once: after a start the rules need a moment to restore it.
pub const GONE_AFTER: Duration = Duration::from_secs(60);

/// How long the log of a group that is over is kept, as Alertmanager keeps it.
pub const RETENTION: Duration = Duration::from_secs(120 * 3600);

/// The longest pause that damping makes.
pub const MAX_DAMPING: Duration = Duration::from_secs(3600);

/// From how many changes within an hour on an alert is damped.
pub const FLAPS: usize = 4;

/// Why a mail is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The first of its episode.
    First,
    /// More alerts fire in a group that was told.
    NewInGroup,
    /// Proctor gave up repairing.
    NeedsHuman,
    /// Some of the group are over, others are not.
    SomeResolved,
    /// All is over.
    Resolved,
    /// It was over, and repaired, before anything was told.
    RepairedAtOnce,
    /// It still fires.
    Reminder,
}

impl Reason {
    /// Returns the name as headers and payloads carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::NewInGroup => "new_in_group",
            Self::NeedsHuman => "needs_human",
            Self::SomeResolved => "some_resolved",
            Self::Resolved => "resolved",
            Self::RepairedAtOnce => "repaired_at_once",
            Self::Reminder => "reminder",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is done with a group now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is mailed.
    Send(Reason),
    /// Not yet, but at this moment if nothing changes.
    Wait(Timestamp),
    /// Nothing is to be told.
    Nothing,
}

/// The mails of one episode: replies name the first one's real Message-ID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// The first mail.
    pub root: String,
    /// The mail before.
    pub last: String,
    /// How many there were.
    pub sequence: u64,
    /// The subject of all of them.
    pub subject: String,
}

/// What was last said of a group: the notification log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Notified {
    /// The group's key; the route's name in it is the receiver.
    pub group: String,
    /// To whom.
    pub receiver: String,
    /// What the group's alerts have in common.
    #[serde(default)]
    pub labels: Labels,
    /// What was told as firing, and not yet as over, by fingerprint; without evidence and outputs.
    pub firing: BTreeMap<String, Alert>,
    /// The episodes that were told as over and may still stand in the alert table.
    pub resolved: BTreeSet<String>,
    /// The attempts that were told as given up.
    #[serde(default)]
    pub gave_up: BTreeSet<String>,
    /// When the last mail was written.
    pub at: Timestamp,
    /// When the end of all was told.
    pub ended_at: Option<Timestamp>,
    /// Where replies go.
    pub thread: Thread,
    /// The probes that were listed as affected.
    #[serde(default)]
    pub affected: Vec<String>,
    /// Told in the mail of the first look: mailed again only when it changes, so never as a reminder.
    #[serde(default)]
    pub quiet: bool,
    /// Only observed: nobody was told.
    #[serde(default)]
    pub observed: bool,
}

impl Record for Notified {
    const TABLE: Table = Table::Notified;
    fn key(&self) -> String {
        self.group.clone()
    }
}

impl Notified {
    /// Says whether people believe that something of this group is wrong.
    pub fn is_open(&self) -> bool {
        !self.firing.is_empty()
    }

    /// Says whether this may be forgotten.
    pub fn is_stale(&self, now: Timestamp) -> bool {
        self.ended_at.is_some_and(|ended| now.since(ended) >= RETENTION)
    }

    /// Returns what the log says once this mail is queued.
    #[must_use]
    pub fn told(mut self, standing: &Standing<'_>, now: Timestamp) -> Self {
        if !self.is_open() {
            self.gave_up.clear();
            self.quiet = false;
        }
        self.quiet &= standing.fresh.is_empty();
        let seen = |episode: &String| standing.seen.contains(episode);
        self.resolved.retain(seen);
        for alert in &standing.ended {
            self.firing.remove(&alert.fingerprint().to_string());
            self.resolved.insert(alert.episode());
        }
        for alert in standing.active.iter().chain(&standing.fresh) {
            self.firing.insert(alert.fingerprint().to_string(), kept(alert));
            self.gave_up.extend(gave_up(alert).map(|attempt| attempt.id.clone()));
        }
        self.at = now;
        self.ended_at = self.firing.is_empty().then_some(now);
        self
    }
}

/// Returns what is kept of an alert that was told: enough to write its end when the table no longer has it.
fn kept(alert: &Alert) -> Alert {
    let attempts = alert.attempts.iter().map(|attempt| Attempt { output: String::new(), ..attempt.clone() }).collect();
    Alert { evidence: Vec::new(), attempts, ..alert.clone() }
}

/// One alert of a group with what the rooms before decided.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The alert.
    pub alert: &'a Alert,
    /// Whether it is not to be told now.
    pub muted: bool,
    /// Not to be told before this moment: damping, or the parent has only just come back.
    pub not_before: Timestamp,
}

/// A group now, against what was told of it.
#[derive(Clone, Debug, Default)]
pub struct Standing<'a> {
    /// Fires, and was not told: only what may be told now.
    pub fresh: Vec<&'a Alert>,
    /// Was told, and still is so.
    pub active: Vec<&'a Alert>,
    /// Was told, and is over.
    pub ended: Vec<&'a Alert>,
    /// Attempts after which nothing more is tried, and which were not told.
    pub given_up: BTreeSet<String>,
    /// Every episode of the group that is in the table.
    pub seen: BTreeSet<String>,
}

/// Says whether something was really done in this episode.
fn acted(alert: &Alert) -> bool {
    let acted = |outcome| matches!(outcome, Outcome::Running | Outcome::Repaired | Outcome::Failed | Outcome::InDoubt);
    alert.attempts.iter().any(|attempt| acted(attempt.outcome))
}

/// Says until when the end of an alert waits because its repair is still being verified.
fn verified_until(alert: &Alert) -> Option<Timestamp> {
    let running = alert.attempts.iter().any(|attempt| attempt.outcome == Outcome::Running);
    alert.resolved_at.filter(|_| running).map(|resolved| resolved + VERIFY_WAIT)
}

/// Decides whether a group is mailed now. `gone` says since when an alert that was told, by fingerprint, is missing from
/// the table.
pub fn needs_update<'a>(
    entry: Option<&'a Notified>,
    seen: &[Seen<'a>],
    gone: impl Fn(&str) -> Timestamp,
    route: &Route,
    now: Timestamp,
) -> (Verdict, Standing<'a>) {
    let told = |alert: &Alert| entry.is_some_and(|entry| entry.firing.contains_key(&alert.fingerprint().to_string()));
    let told_end = |alert: &Alert| entry.is_some_and(|entry| entry.resolved.contains(&alert.episode()));
    let mut standing = Standing { seen: seen.iter().map(|seen| seen.alert.episode()).collect(), ..Standing::default() };
    let (mut due, mut speaks, mut last_end) = (Due::new(now), false, Timestamp(0));

    // What was told: still so, or over?
    for seen in seen.iter().filter(|seen| told(seen.alert)) {
        let alert = seen.alert;
        let over = alert.state == AlertState::Inactive && verified_until(alert).is_none_or(|until| due.passed(until));
        if over {
            standing.ended.push(alert);
            last_end = last_end.max(alert.resolved_at.unwrap_or(now));
        } else {
            // Pending too: the condition is back, and people were told that it fires.
            standing.active.push(alert);
            speaks |= !seen.muted && alert.is_firing();
            let untold = |attempt: &&Attempt| !entry.is_some_and(|entry| entry.gave_up.contains(&attempt.id));
            standing.given_up.extend(gave_up(alert).filter(|_| !seen.muted && alert.is_firing()).filter(untold).map(|a| a.id.clone()));
        }
    }
    for (fingerprint, alert) in entry.into_iter().flat_map(|entry| &entry.firing) {
        if !seen.iter().any(|seen| seen.alert.fingerprint().to_string() == *fingerprint) {
            let gone_at = gone(fingerprint);
            if due.passed(gone_at + GONE_AFTER) {
                standing.ended.push(alert);
                last_end = last_end.max(gone_at);
            } else {
                standing.active.push(alert);
            }
        }
    }

    // What was not: what may be told already, and since when the oldest of it waits.
    let mut oldest: Option<(Timestamp, bool)> = None;
    for seen in seen.iter().filter(|seen| seen.alert.is_firing() && !seen.muted && !told(seen.alert)) {
        if due.passed(seen.not_before) {
            let fired = seen.alert.fired_at.unwrap_or(seen.alert.active_at);
            let (before, act) = oldest.unwrap_or((fired, false));
            // A repair that has begun is told with what it is for: whoever is logged in should know who restarts there.
            oldest = Some((before.min(fired), act || acted(seen.alert)));
            standing.fresh.push(seen.alert);
            standing.given_up.extend(gave_up(seen.alert).map(|attempt| attempt.id.clone()));
        }
    }

    let last = entry.map_or(Timestamp(0), |entry| entry.at);
    let open = entry.is_some_and(Notified::is_open);
    let reason = if !open {
        // Nothing was told, or all of it is over: what fires is an episode of its own.
        let unseen: Vec<_> = seen
            .iter()
            .filter(|seen| seen.alert.state == AlertState::Inactive && !seen.muted && acted(seen.alert) && !told_end(seen.alert))
            .filter(|seen| verified_until(seen.alert).is_none_or(|until| due.passed(until)))
            .map(|seen| seen.alert)
            .collect();
        match oldest {
            Some((fired, act)) if act || due.passed(fired + route.group_wait) => Some(Reason::First),
            Some(_) => None,
            None if !unseen.is_empty() => {
                standing.ended = unseen;
                Some(Reason::RepairedAtOnce)
            }
            None => None,
        }
    } else if !standing.given_up.is_empty() {
        // Once per attempt: Proctor does no more about it, so that somebody must.
        Some(Reason::NeedsHuman)
    } else if standing.active.is_empty() && standing.fresh.is_empty() {
        // All of it is over, muted or not: who was told the beginning is told the end.
        due.passed(last_end + route.resolve_wait).then_some(Reason::Resolved)
    } else if let Some((fired, _)) = oldest
        && due.passed((fired + route.group_wait).max(last + route.group_interval))
    {
        Some(Reason::NewInGroup)
    } else if !standing.ended.is_empty() && due.passed((last_end + route.resolve_wait).max(last + route.group_interval)) {
        Some(Reason::SomeResolved)
    } else {
        // What still fires and may be said is said again now and then.
        let quiet = entry.is_none_or(|entry| entry.quiet);
        (speaks && !quiet && due.passed(last + route.repeat_interval)).then_some(Reason::Reminder)
    };
    let verdict = match (reason, due.next) {
        (Some(reason), _) => Verdict::Send(reason),
        (None, Some(next)) => Verdict::Wait(next),
        (None, None) => Verdict::Nothing,
    };
    (verdict, standing)
}

/// Moments that were asked about: which have passed, and which comes next.
#[derive(Debug)]
struct Due {
    now: Timestamp,
    next: Option<Timestamp>,
}

impl Due {
    fn new(now: Timestamp) -> Self {
        Self { now, next: None }
    }

    fn passed(&mut self, moment: Timestamp) -> bool {
        if moment > self.now {
            self.next = Some(self.next.map_or(moment, |next| next.min(moment)));
        }
        moment <= self.now
    }
}

/// Returns how long the next mail about an alert keeps away from the last one, after so many changes within an hour:
/// nothing below [`FLAPS`], then `unit`, twice, four times it, at most [`MAX_DAMPING`].
pub fn damping(changes: usize, unit: Duration) -> Duration {
    let Some(over) = changes.checked_sub(FLAPS) else { return Duration::ZERO };
    // Each FIRING and its end are two changes.
    let doublings = u32::try_from(over / 2).unwrap_or(u32::MAX).min(16);
    unit.saturating_mul(1 << doublings).min(MAX_DAMPING)
}
