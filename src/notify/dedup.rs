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
    let here: BTreeSet<String> = seen.iter().map(|seen| seen.alert.fingerprint().to_string()).collect();
    for (fingerprint, alert) in entry.into_iter().flat_map(|entry| &entry.firing) {
        if !here.contains(fingerprint) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;
    use crate::notify::testing::alert;

    const FIRING: AlertState = AlertState::Firing;
    const PENDING: AlertState = AlertState::Pending;
    const OVER: AlertState = AlertState::Inactive;

    fn attempted(outcome: Outcome) -> Attempt {
        Attempt {
            id: "1".into(),
            action: "restart".into(),
            target: "x".into(),
            episode: String::new(),
            started_at: Timestamp(0),
            finished_at: None,
            outcome,
            detail: String::new(),
            output: String::new(),
        }
    }

    /// An alert that fired, or ended, at this second.
    fn is(name: &str, state: AlertState, second: i64) -> Alert {
        let mut alert = alert(name, "web", if state == OVER { second - 50 } else { second });
        alert.state = state;
        alert.resolved_at = (state == OVER).then_some(Timestamp::from_secs(second));
        alert
    }

    fn with(alert: Alert, outcome: Outcome) -> Alert {
        Alert { attempts: vec![attempted(outcome)], ..alert }
    }

    /// What was told at this second as firing.
    fn told(names: &[&str], second: i64) -> Option<Notified> {
        let alerts: Vec<Alert> = names.iter().map(|name| is(name, FIRING, second - 5)).collect();
        let standing = Standing { fresh: alerts.iter().collect(), ..Standing::default() };
        Some(Notified::default().told(&standing, Timestamp::from_secs(second)))
    }

    /// The beginning told at 100, the end at this second.
    fn told_end(second: i64) -> Option<Notified> {
        let over = is("a", OVER, second - 15);
        let standing = Standing { ended: vec![&over], seen: [over.episode()].into(), ..Standing::default() };
        told(&["a"], 100).map(|entry| entry.told(&standing, Timestamp::from_secs(second)))
    }

    #[test]
    fn a_group_is_told_exactly_when_people_believe_something_else() {
        use Reason::{First, NeedsHuman, NewInGroup, Reminder, RepairedAtOnce, Resolved, SomeResolved};
        let config = from_text("f", "admins: [a@x]").expect("is right");
        let route = Route::of(&config, []);
        let send = Verdict::Send;
        let wait = |second| Verdict::Wait(Timestamp::from_secs(second));
        let none = Verdict::Nothing;
        let quiet = told(&["a"], 100).map(|entry| Notified { quiet: true, ..entry });
        // Defaults: group_wait 5, resolve_wait 15, group_interval 300, repeat_interval 14400. Muted alerts end in "!".
        #[rustfmt::skip]
        let table = [
            ("nothing told, nothing fires",           None, vec![], 1000, none),
            ("pending is not told",                   None, vec![is("a", PENDING, 990)], 1000, none),
            ("over before it was told",               None, vec![is("a", OVER, 990)], 1000, none),
            ("waits for more of its group",           None, vec![is("a", FIRING, 998)], 1000, wait(1003)),
            ("group_wait is over",                    None, vec![is("a", FIRING, 995)], 1000, send(First)),
            ("old already, such as after a restart",  None, vec![is("a", FIRING, 10)], 1000, send(First)),
            ("the oldest of a group decides",         None, vec![is("a", FIRING, 995), is("b", FIRING, 999)], 1000, send(First)),
            ("muted",                                 None, vec![is("a!", FIRING, 10)], 1000, none),
            ("one muted, one not",                    None, vec![is("a!", FIRING, 10), is("b", FIRING, 998)], 1000, wait(1003)),
            ("a repair begins",                       None, vec![with(is("a", FIRING, 999), Outcome::Running)], 1000, send(First)),
            ("only observed: no hurry",               None, vec![with(is("a", FIRING, 999), Outcome::Observed)], 1000, wait(1004)),
            ("repaired before it was told",           None, vec![with(is("a", OVER, 999), Outcome::Repaired)], 1000, send(RepairedAtOnce)),
            ("still being verified",                  None, vec![with(is("a", OVER, 999), Outcome::Running)], 1000, wait(1599)),
            ("still so",                              told(&["a"], 900), vec![is("a", FIRING, 895)], 1000, wait(900 + 14400)),
            ("reminder",                              told(&["a"], 100), vec![is("a", FIRING, 95)], 14500, send(Reminder)),
            ("no reminder while muted",               told(&["a!"], 100), vec![is("a!", FIRING, 95)], 14500, none),
            ("no reminder of the first look",         quiet.clone(), vec![is("a", FIRING, 95)], 14500, none),
            ("the end of the first look's",           quiet, vec![is("a", OVER, 14000)], 14500, send(Resolved)),
            ("an end waits whether it lasts",         told(&["a"], 900), vec![is("a", OVER, 990)], 1000, wait(1005)),
            ("the end",                               told(&["a"], 900), vec![is("a", OVER, 985)], 1000, send(Resolved)),
            ("the end, muted meanwhile",              told(&["a!"], 900), vec![is("a!", OVER, 985)], 1000, send(Resolved)),
            ("the end while a repair is verified",    told(&["a"], 900), vec![with(is("a", OVER, 985), Outcome::Running)], 1000, wait(985 + 600)),
            ("the end, never verified",               told(&["a"], 900), vec![with(is("a", OVER, 985), Outcome::Running)], 1585, send(Resolved)),
            ("the end, repaired",                     told(&["a"], 900), vec![with(is("a", OVER, 985), Outcome::Repaired)], 1000, send(Resolved)),
            ("back before its end was told",          told(&["a"], 900), vec![is("a", FIRING, 985)], 1000, wait(900 + 14400)),
            ("coming back",                           told(&["a"], 900), vec![is("a", PENDING, 985)], 1000, none),
            ("gone from the table just now",          told(&["a"], 900), vec![], 1000, wait(1010)),
            ("gone for a minute",                     told(&["a"], 900), vec![], 1010, send(Resolved)),
            ("more in the group, too early",          told(&["a"], 900), vec![is("a", FIRING, 895), is("b", FIRING, 950)], 1000, wait(1200)),
            ("more in the group",                     told(&["a"], 900), vec![is("a", FIRING, 895), is("b", FIRING, 950)], 1200, send(NewInGroup)),
            ("one over, one not, too early",          told(&["a", "b"], 900), vec![is("a", FIRING, 895), is("b", OVER, 950)], 1000, wait(1200)),
            ("one over, one not",                     told(&["a", "b"], 900), vec![is("a", FIRING, 895), is("b", OVER, 950)], 1200, send(SomeResolved)),
            ("given up",                              told(&["a"], 900), vec![with(is("a", FIRING, 895), Outcome::Refused)], 1000, send(NeedsHuman)),
            ("given up, muted",                       told(&["a!"], 900), vec![with(is("a!", FIRING, 895), Outcome::Refused)], 1000, none),
            ("a failed attempt is no mail",           told(&["a"], 900), vec![with(is("a", FIRING, 895), Outcome::Failed)], 1000, wait(900 + 14400)),
            ("its end was told",                      told_end(1000), vec![is("a", OVER, 985)], 1010, none),
            ("its end with a repair was told",        told_end(1000), vec![with(is("a", OVER, 985), Outcome::Repaired)], 1010, none),
            ("fires again",                           told_end(1000), vec![is("a", FIRING, 1005)], 1010, send(First)),
        ];
        for (what, entry, alerts, now, expected) in table {
            let muted = |alert: &Alert| alert.name().ends_with('!');
            let seen: Vec<Seen<'_>> = alerts.iter().map(|alert| Seen { alert, muted: muted(alert), not_before: Timestamp(0) }).collect();
            let now = Timestamp::from_secs(now);
            let (verdict, _) = needs_update(entry.as_ref(), &seen, |_| Timestamp::from_secs(950), &route, now);
            assert_eq!(verdict, expected, "{what}");
        }
    }

    #[test]
    fn an_alert_that_is_held_off_waits_and_does_not_hold_off_others() {
        let config = from_text("f", "admins: [a@x]").expect("is right");
        let (flapping, other) = (is("a", FIRING, 990), is("b", FIRING, 990));
        let now = Timestamp::from_secs(1000);
        let held = Seen { alert: &flapping, muted: false, not_before: Timestamp::from_secs(1200) };
        let (verdict, _) = needs_update(None, &[held], |_| now, &Route::of(&config, []), now);
        assert_eq!(verdict, Verdict::Wait(Timestamp::from_secs(1200)));
        let free = Seen { alert: &other, muted: false, not_before: Timestamp(0) };
        let (verdict, standing) = needs_update(None, &[held, free], |_| now, &Route::of(&config, []), now);
        assert_eq!((verdict, standing.fresh), (Verdict::Send(Reason::First), vec![&other]));
    }

    #[test]
    fn damping_doubles_with_every_pair_of_changes_up_to_an_hour() {
        let unit = Duration::from_secs(300);
        let minutes: Vec<u64> = [0, 3, 4, 5, 6, 8, 10, 12, 200].map(|changes| damping(changes, unit).as_secs() / 60).into();
        assert_eq!(minutes, [0, 0, 5, 5, 10, 20, 40, 60, 60]);
    }
}
