//! Decides whether an action may be done now. Pure: no clock, no I/O.
//!
//! Level-triggered like everything after the alert table: [`decide`] is asked again and again with all that is known,
//! and keeps nothing between two questions. What was done before stands in the attempts, which survive a restart.
//!
//! In order: idle → armed (firing for `firing_for`) → precheck → run. After the last attempt of the budget the circuit
//! is open: refused once per episode, so that people are told, and tried again only when the oldest attempt has left
//! the window **and** the cooldown, which doubles with each attempt in vain, is over: 3 in the first half hour, then
//! ever more rarely, about ten in a day.

use std::time::Duration;

use crate::model::duration::print;
use crate::model::{Alert, Attempt, Outcome, Timestamp};

/// The most acts in an hour over all targets: a host that needs more needs a person.
pub const MAX_PER_HOUR: usize = 10;
/// When a wait without a known end is asked again.
pub const RECHECK: Duration = Duration::from_secs(10);
/// So many targets started within [`STORM_WITHIN`] are a deploy, an upgrade or a boot, not a fault to repair.
pub const STORM: usize = 3;
/// See [`STORM`].
pub const STORM_WITHIN: Duration = Duration::from_secs(60);
/// The longest that doubling makes a cooldown.
const MAX_COOLDOWN: Duration = Duration::from_secs(12 * 3600);
const HOUR: Duration = Duration::from_secs(3600);

/// What the guard knows of an action.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Its name in the configuration.
    pub name: String,
    /// What is acted on, such as `systemd:gunicorn.service`: the key of the one budget.
    pub target: String,
    /// What is done: `restart`.
    pub verb: &'static str,
    /// To what, for people: `gunicorn.service`.
    pub object: String,
    /// How long the alert must have been firing.
    pub firing_for: Duration,
    /// Whether it is done, or only said.
    pub acts: bool,
    /// The most attempts per `per`.
    pub attempts: u32,
    /// The time in which they are counted.
    pub per: Duration,
    /// The least time between two, doubled with each further one in vain.
    pub cooldown: Duration,
}

/// What is known of the target itself, asked just before the act.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Lines for the mail, before the act destroys what they say.
    pub lines: Vec<String>,
    /// When it was last started, or stopped in good order, by whomever.
    pub changed_at: Option<Timestamp>,
    /// When others of its kind were last started.
    pub starts: Vec<Timestamp>,
    /// What somebody is doing to it this moment.
    pub busy: Option<String>,
    /// Why it is not ours to act on.
    pub hands_off: Option<String>,
}

/// Everything else that the guard goes by.
#[derive(Clone, Debug, Default)]
pub struct World<'a> {
    /// All attempts that are still known, of all targets, oldest first.
    pub attempts: &'a [Attempt],
    /// Whether somebody has paused all actions.
    pub paused: bool,
    /// Whether the state cannot be written.
    pub degraded: bool,
    /// Why nothing is to be done about this alert now: maintenance, hold, silence, boot, first look, a parent that
    /// fails, or that Proctor cannot see.
    pub withheld: Option<String>,
    /// What is known of the target; nothing before it was asked.
    pub facts: Option<&'a Facts>,
}

/// What the guard says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Not now; ask again then, or when something has changed.
    Wait {
        /// When to ask again.
        until: Timestamp,
        /// What is waited for.
        why: String,
    },
    /// No, and people must know: recorded once per episode.
    Refuse {
        /// The whole sentence.
        why: String,
        /// When it may be yes.
        next_possible: Timestamp,
    },
    /// It would be done, if it were allowed to act: recorded once per episode.
    Observe {
        /// The whole sentence.
        would: String,
    },
    /// Yes.
    Run,
}

/// Says whether an attempt has touched, or may have touched, its target.
fn acted(attempt: &Attempt) -> bool {
    matches!(attempt.outcome, Outcome::Running | Outcome::Repaired | Outcome::Failed | Outcome::InDoubt)
}

fn clock(at: Timestamp, now: Timestamp) -> String {
    let form = if at.since(now) < Duration::from_secs(20 * 3600) { "%H:%M UTC" } else { "%Y-%m-%d %H:%M UTC" };
    at.to_jiff().strftime(form).to_string()
}

/// Returns how long the target rests after its last attempt, and when that ends.
fn cooldown(terms: &Terms, attempts: &[&Attempt]) -> Option<(Duration, Timestamp)> {
    let last = attempts.last()?;
    let in_vain = attempts.iter().rev().take_while(|attempt| attempt.outcome != Outcome::Repaired).count();
    let doubled = u32::try_from(in_vain.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let rest = (terms.cooldown * 2u32.pow(doubled)).min(MAX_COOLDOWN.max(terms.cooldown));
    Some((rest, last.finished_at.unwrap_or(last.started_at) + rest))
}

/// Decides whether `terms` may be done for `alert` now. Asked with `facts` only when everything else allows it.
pub fn decide(terms: &Terms, alert: &Alert, world: &World<'_>, now: Timestamp) -> Decision {
    let wait = |until: Timestamp, why: String| Decision::Wait { until, why };
    let (verb, object) = (terms.verb, &terms.object);
    let said = |outcome: Outcome| {
        let episode = alert.episode();
        world.attempts.iter().any(|a| a.outcome == outcome && a.target == terms.target && a.episode == episode)
    };
    let Some(fired_at) = alert.fired_at.filter(|_| alert.is_firing()) else {
        return wait(now + RECHECK, "the alert does not fire".to_owned());
    };
    if alert.keep_firing_since.is_some() {
        return wait(now + RECHECK, "the condition no longer holds; the alert fires on because of keep_firing_for".to_owned());
    }
    if fired_at + terms.firing_for > now {
        return wait(fired_at + terms.firing_for, format!("the alert must have been firing for {}", print(terms.firing_for)));
    }
    if !terms.acts && said(Outcome::Observed) {
        return wait(now + HOUR, "only observing, and said so".to_owned());
    }
    if world.paused {
        return wait(now + RECHECK, "actions are paused; `proctor action resume` lets them run".to_owned());
    }
    if world.degraded {
        return wait(now + RECHECK, "the state cannot be written, so that an intent could not be recorded".to_owned());
    }
    if let Some(why) = &world.withheld {
        return wait(now + RECHECK, why.clone());
    }
    let ours: Vec<&Attempt> = world.attempts.iter().filter(|attempt| attempt.target == terms.target && acted(attempt)).collect();
    if ours.iter().any(|attempt| attempt.outcome == Outcome::Running) {
        return wait(now + RECHECK, format!("an attempt at {object} is under way"));
    }
    let rest = cooldown(terms, &ours).filter(|(_, end)| *end > now);
    let resting = |(rest, end)| wait(end, format!("{object} rests for {} after the last attempt", print(rest)));
    // What was just repaired needs no person, even if the alert has not ended yet and the budget is used up.
    if let Some(rest) = rest.filter(|_| ours.last().is_some_and(|attempt| attempt.outcome == Outcome::Repaired)) {
        return resting(rest);
    }
    let refuse = |why: String, free: Timestamp| {
        let next_possible = rest.map_or(free, |(_, end)| end.max(free));
        let why = format!("{verb} of {object} refused: {why}; next possible at {}", clock(next_possible, now));
        if said(Outcome::Refused) { wait(next_possible, why) } else { Decision::Refuse { why, next_possible } }
    };
    let counted: Vec<_> = ours.iter().filter(|attempt| attempt.started_at + terms.per > now).collect();
    let limit = usize::try_from(terms.attempts).unwrap_or(usize::MAX);
    if counted.len() >= limit {
        // The one whose leaving makes room.
        let free = counted[counted.len() - limit].started_at + terms.per;
        return refuse(format!("{} {verb}s in the last {} (limit {limit})", counted.len(), print(terms.per)), free);
    }
    if let Some(rest) = rest {
        return resting(rest);
    }
    let in_hour: Vec<_> = world.attempts.iter().filter(|attempt| acted(attempt) && attempt.started_at + HOUR > now).collect();
    if in_hour.len() >= MAX_PER_HOUR {
        let free = in_hour[in_hour.len() - MAX_PER_HOUR].started_at + HOUR;
        return refuse(format!("{} actions in the last hour on this host (limit {MAX_PER_HOUR})", in_hour.len()), free);
    }
    if let Some(facts) = world.facts {
        if let Some(what) = &facts.busy {
            return wait(now + RECHECK, format!("{object}: {what}"));
        }
        // Our own starts are behind the cooldown above, so this one was somebody else's.
        if let Some(changed) = facts.changed_at.filter(|changed| *changed + terms.cooldown > now && *changed <= now) {
            return wait(changed + terms.cooldown, format!("somebody started or stopped {object} at {}", clock(changed, now)));
        }
        if let Some(last) = storm(&facts.starts, terms.cooldown, now) {
            let why = format!("{STORM} or more of its kind were started within {}", print(STORM_WITHIN));
            return wait(last + terms.cooldown, why);
        }
        if let Some(why) = &facts.hands_off {
            return if said(Outcome::Observed) {
                wait(now + HOUR, why.clone())
            } else {
                Decision::Observe { would: format!("{verb} of {object} is left to others: {why}") }
            };
        }
    }
    if terms.acts {
        Decision::Run
    } else {
        Decision::Observe { would: format!("would {verb} {object}; not done, since the mode is observe") }
    }
}

/// Returns when the last of [`STORM`] starts within [`STORM_WITHIN`] was, if that is less than `recent` ago.
fn storm(starts: &[Timestamp], recent: Duration, now: Timestamp) -> Option<Timestamp> {
    let mut starts: Vec<Timestamp> = starts.iter().copied().filter(|at| *at + recent > now && *at <= now).collect();
    starts.sort();
    starts.windows(STORM).rev().find(|window| window[STORM - 1].since(window[0]) <= STORM_WITHIN).map(|window| window[STORM - 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AlertState, Labels};

    fn terms() -> Terms {
        Terms {
            name: "restart-web".into(),
            target: "systemd:nginx.service".into(),
            verb: "restart",
            object: "nginx.service".into(),
            firing_for: Duration::from_secs(60),
            acts: true,
            attempts: 3,
            per: Duration::from_secs(1800),
            cooldown: Duration::from_secs(120),
        }
    }

    fn at(minutes: f64) -> Timestamp {
        // 2026-01-01T14:00Z
        Timestamp(1_767_276_000_000 + (minutes * 60_000.0) as i64)
    }

    fn alert() -> Alert {
        Alert {
            labels: Labels::new([("alertname", "NginxDown"), ("probe", "web")]),
            annotations: Labels::default(),
            state: AlertState::Firing,
            value: 1.0,
            active_at: at(-1.0),
            fired_at: Some(at(-1.0)),
            resolved_at: None,
            keep_firing_since: None,
            rule: "g/NginxDown".into(),
            evidence: Vec::new(),
            attempts: Vec::new(),
        }
    }

    fn attempt(target: &str, minutes: f64, outcome: Outcome) -> Attempt {
        Attempt {
            id: format!("{target}-{minutes}-{outcome}"),
            action: "restart-web".into(),
            target: target.into(),
            episode: alert().episode(),
            started_at: at(minutes),
            finished_at: (outcome != Outcome::Running).then(|| at(minutes)),
            outcome,
            detail: String::new(),
            output: String::new(),
        }
    }

    fn mine(list: &[(f64, Outcome)]) -> Vec<Attempt> {
        list.iter().map(|(minutes, outcome)| attempt("systemd:nginx.service", *minutes, *outcome)).collect()
    }

    /// `run`, `observe: …`, `refuse at M: …` or `wait until M: …`, with M in minutes after 14:00.
    fn print_decision(decision: Decision) -> String {
        let minutes = |t: Timestamp| (t.0 - at(0.0).0) as f64 / 60_000.0;
        match decision {
            Decision::Run => "run".into(),
            Decision::Observe { would } => format!("observe: {would}"),
            Decision::Refuse { why, next_possible } => format!("refuse until {:.1}: {why}", minutes(next_possible)),
            Decision::Wait { until, why } => format!("wait until {:.1}: {why}", minutes(until)),
        }
    }

    #[test]
    fn the_guard_says_yes_only_where_nothing_speaks_against_it() {
        use Outcome::{Failed, InDoubt, Observed, Refused, Repaired, Running};
        let all_hour: Vec<Attempt> = (0..10).map(|i| attempt(&format!("docker:{i}"), f64::from(i) - 40.0, Repaired)).collect();
        type Change = fn(&mut Terms, &mut Alert, &mut World<'_>, &mut Facts);
        let none: Change = |_, _, _, _| {};
        let cases: Vec<(&str, Vec<Attempt>, Change, &str)> = vec![
            ("nothing speaks against it", vec![], none, "run"),
            (
                "not firing for long enough",
                vec![],
                |_, a, _, _| a.fired_at = Some(at(-0.5)),
                "wait until 0.5: the alert must have been firing for 1m",
            ),
            ("pending", vec![], |_, a, _, _| a.state = AlertState::Pending, "wait until 0.2: the alert does not fire"),
            (
                "no longer true",
                vec![],
                |_, a, _, _| a.keep_firing_since = Some(at(0.0)),
                "wait until 0.2: the condition no longer holds; the alert fires on because of keep_firing_for",
            ),
            ("paused", vec![], |_, _, w, _| w.paused = true, "wait until 0.2: actions are paused; `proctor action resume` lets them run"),
            (
                "degraded",
                vec![],
                |_, _, w, _| w.degraded = true,
                "wait until 0.2: the state cannot be written, so that an intent could not be recorded",
            ),
            (
                "withheld",
                vec![],
                |_, _, w, _| w.withheld = Some("maintenance since 13:50".into()),
                "wait until 0.2: maintenance since 13:50",
            ),
            ("observing", vec![], |t, _, _, _| t.acts = false, "observe: would restart nginx.service; not done, since the mode is observe"),
            ("observed", mine(&[(-1.0, Observed)]), |t, _, _, _| t.acts = false, "wait until 60.0: only observing, and said so"),
            ("another is under way", mine(&[(-9.0, Running)]), none, "wait until 0.2: an attempt at nginx.service is under way"),
            (
                "cooldown after a repair",
                mine(&[(-1.0, Repaired)]),
                none,
                "wait until 1.0: nginx.service rests for 2m after the last attempt",
            ),
            ("cooldown over", mine(&[(-2.0, Repaired)]), none, "run"),
            (
                "cooldown doubles",
                mine(&[(-5.0, Failed), (-1.0, Failed)]),
                none,
                "wait until 3.0: nginx.service rests for 4m after the last attempt",
            ),
            (
                "a doubt counts as in vain",
                mine(&[(-5.0, Failed), (-1.0, InDoubt)]),
                none,
                "wait until 3.0: nginx.service rests for 4m after the last attempt",
            ),
            ("a repair ends the doubling", mine(&[(-29.0, Failed), (-28.0, Repaired), (-3.0, Failed)]), |t, _, _, _| t.attempts = 4, "run"),
            (
                "the budget is used up",
                mine(&[(-25.0, Failed), (-20.0, Failed), (-10.0, Failed)]),
                none,
                "refuse until 5.0: restart of nginx.service refused: 3 restarts in the last 30m (limit 3); next possible at 14:05 UTC",
            ),
            (
                "the budget is used up by another episode's action",
                mine(&[(-25.0, Repaired), (-20.0, Repaired), (-10.0, Repaired)]),
                |_, a, _, _| a.fired_at = Some(at(-2.0)),
                "refuse until 5.0: restart of nginx.service refused: 3 restarts in the last 30m (limit 3); next possible at 14:05 UTC",
            ),
            (
                "refused before",
                mine(&[(-25.0, Failed), (-20.0, Failed), (-10.0, Failed), (-9.0, Refused)]),
                none,
                "wait until 5.0: restart of nginx.service refused: 3 restarts in the last 30m (limit 3); next possible at 14:05 UTC",
            ),
            (
                "repaired by the last of the budget",
                mine(&[(-25.0, Failed), (-20.0, Failed), (-1.0, Repaired)]),
                none,
                "wait until 1.0: nginx.service rests for 2m after the last attempt",
            ),
            ("observed and refused do not count", mine(&[(-3.0, Observed), (-2.0, Refused), (-1.0, Refused)]), none, "run"),
            (
                "ten in an hour",
                all_hour.clone(),
                none,
                "refuse until 20.0: restart of nginx.service refused: 10 actions in the last hour on this host (limit 10); next possible at 14:20 UTC",
            ),
            (
                "restarted by hand",
                vec![],
                |_, _, _, f| f.changed_at = Some(at(-0.5)),
                "wait until 1.5: somebody started or stopped nginx.service at 13:59 UTC",
            ),
            ("restarted by hand long ago", vec![], |_, _, _, f| f.changed_at = Some(at(-3.0)), "run"),
            ("a clock that ran ahead", vec![], |_, _, _, f| f.changed_at = Some(at(90.0)), "run"),
            (
                "a job",
                vec![],
                |_, _, _, f| f.busy = Some("systemd has a job for it".into()),
                "wait until 0.2: nginx.service: systemd has a job for it",
            ),
            (
                "a deploy",
                vec![],
                |_, _, _, f| f.starts = vec![at(-1.5), at(-0.9), at(-0.6)],
                "wait until 1.4: 3 or more of its kind were started within 1m",
            ),
            ("two at once are no deploy", vec![], |_, _, _, f| f.starts = vec![at(-1.5), at(-0.9)], "run"),
            ("three that are not at once", vec![], |_, _, _, f| f.starts = vec![at(-1.9), at(-1.0), at(-0.5)], "run"),
            (
                "autoheal",
                vec![],
                |_, _, _, f| f.hands_off = Some("autoheal=true".into()),
                "observe: restart of nginx.service is left to others: autoheal=true",
            ),
        ];
        for (what, attempts, change, expected) in cases {
            let (mut terms, mut alert, mut facts) = (terms(), alert(), Facts::default());
            let mut world = World { attempts: &attempts, ..World::default() };
            change(&mut terms, &mut alert, &mut world, &mut facts);
            world.facts = Some(&facts);
            assert_eq!(print_decision(decide(&terms, &alert, &world, at(0.0))), expected, "{what}");
        }
    }

    #[test]
    fn a_target_that_never_gets_well_is_tried_three_times_and_then_ever_more_rarely() {
        let (terms, alert) = (terms(), alert());
        let (mut attempts, mut refused): (Vec<Attempt>, Vec<Attempt>) = (Vec::new(), Vec::new());
        for second in 0..86_400 {
            let now = at(f64::from(second) / 60.0);
            let known: Vec<Attempt> = attempts.iter().chain(&refused).cloned().collect();
            match decide(&terms, &alert, &World { attempts: &known, ..World::default() }, now) {
                Decision::Run => attempts.push(attempt("systemd:nginx.service", f64::from(second) / 60.0, Outcome::Failed)),
                Decision::Refuse { .. } => refused.push(attempt("systemd:nginx.service", f64::from(second) / 60.0, Outcome::Refused)),
                _ => {}
            }
        }
        let times: Vec<i64> = attempts.iter().map(|a| (a.started_at.0 - at(0.0).0) / 60_000).collect();
        assert_eq!(times, [0, 2, 6, 30, 46, 78, 142, 270, 526, 1038]);
        assert_eq!(refused.len(), 1, "people are told once per episode");
    }
}
