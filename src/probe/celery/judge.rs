//! What is wrong with a queue, from what was seen of it. Reads no clock and asks nobody.

use std::time::Duration;

use crate::model::duration::{print, print_measured};
use crate::model::{Failure, Reason};

/// Nothing moves, and something that may be begun waits before the nodes.
const STILL: Duration = Duration::from_secs(90);
/// Nothing moves, and what waits may be held back by a rate limit: without a canary there is no telling sooner.
const STILL_UNPROVEN: Duration = Duration::from_secs(600);
/// One canary is lost with a worker that is killed; two in a row are no accident.
const LOST: u32 = 2;

/// What was seen of one queue.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) queue: String,
    /// Messages that are ready and consumers, by passive declare; nothing where that may not be seen.
    pub(super) declared: Option<Declared>,
    /// Whether the nodes could be asked.
    pub(super) asked: bool,
    /// Nodes that answer and consume it.
    pub(super) nodes: Vec<String>,
    /// Nodes that consumed it and do not answer now.
    pub(super) silent: Vec<String>,
    /// Whether one of those was silent while it still consumed.
    pub(super) hung: bool,
    /// Nodes that answer and have consumed it before.
    pub(super) left: Vec<String>,
    /// How many tasks `nodes` can run at a time.
    pub(super) slots: u32,
    /// How many they run now.
    pub(super) active: u32,
    /// How many of those have run for longer than `max_task_age`.
    pub(super) overdue: u32,
    /// The name and the age of the oldest.
    pub(super) oldest: Option<(String, Duration)>,
    /// Tasks that they have taken and could begin.
    pub(super) reserved: u32,
    /// For how long none of them was seen to begin or end a task.
    pub(super) still: Duration,
    /// The longest time that a task may run.
    pub(super) max_task_age: Duration,
    pub(super) canary: Canary,
    /// Whether it was seen before that what is sent to it is run, or nothing was sent.
    pub(super) proven: bool,
}

/// A queue as the broker has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Declared {
    Missing,
    There { ready: u32, consumers: u32 },
}

impl Declared {
    /// Returns how many consumers it has.
    pub(super) fn consumers(self) -> u32 {
        match self {
            Self::Missing => 0,
            Self::There { consumers, .. } => consumers,
        }
    }
}

/// How it is with the newest canary of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Canary {
    /// None is sent.
    #[default]
    Off,
    /// It was answered, or none was sent yet.
    Home,
    /// It waits for as long as this.
    Out {
        age: Duration,
        /// That is longer than is usual where nothing waits.
        late: bool,
        /// A node has taken it.
        taken: bool,
    },
    /// It is nowhere any more, and was not answered; so were as many in a row.
    Lost(u32),
}

/// How a queue is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is worked on.
    Well,
    /// All slots are busy with tasks that are not too old, and more waits: late is not lost.
    Backlog,
    /// Something is wrong.
    Wrong(Failure),
}

impl Facts {
    /// Says how the queue is.
    pub(super) fn judge(&self) -> Verdict {
        match self.wrong() {
            Some((reason, what)) => Verdict::Wrong(Failure::new(reason, format!("queue {:?}: {what}", self.queue))),
            None if self.busy() && self.waits() => Verdict::Backlog,
            None => Verdict::Well,
        }
    }

    /// Says what a first look cannot tell of a queue that seems well: a pool that has just begun from one that hangs.
    pub(super) fn unproven(&self) -> Option<String> {
        if self.proven || self.busy() || self.nodes.is_empty() {
            return None;
        }
        let Self { queue, active, slots, reserved, .. } = self;
        let idle = format!("though only {active} of {slots} slots of {} are busy", self.nodes.join(", "));
        match self.canary {
            Canary::Out { age, .. } => {
                let age = print_measured(age);
                Some(format!("yet whether tasks of queue {queue:?} are run: Proctor's was sent {age} ago and has not come back, {idle}"))
            }
            Canary::Off if *reserved > 0 => {
                Some(format!("yet whether tasks of queue {queue:?} are run: {reserved} that were taken wait, {idle}"))
            }
            _ => None,
        }
    }

    fn busy(&self) -> bool {
        self.slots > 0 && self.active >= self.slots
    }

    fn ready(&self) -> u32 {
        match self.declared {
            Some(Declared::There { ready, .. }) => ready,
            Some(Declared::Missing) | None => 0,
        }
    }

    /// Says whether more waits than is begun at once.
    fn waits(&self) -> bool {
        self.ready() > 0 || self.reserved > 0 || matches!(self.canary, Canary::Out { late: true, .. })
    }

    fn wrong(&self) -> Option<(Reason, String)> {
        let (silent, nodes) = (self.silent.join(", "), self.nodes.join(", "));
        match self.declared {
            Some(Declared::Missing) => {
                return Some((Reason::Missing, "it does not exist: no worker has declared it since the broker lost it".to_owned()));
            }
            // The same trouble as before the broker gave up on it, under the same name.
            Some(Declared::There { ready, consumers: 0 }) if self.hung => {
                let what = format!("{silent} hangs, and the broker has dropped its connection meanwhile; {ready} messages wait");
                return Some((Reason::AnswerTimeout, what));
            }
            Some(Declared::There { ready, consumers: 0 }) => {
                let who = match (&self.left[..], &self.silent[..]) {
                    ([], []) => "no node was seen to consume it".to_owned(),
                    ([], _) => format!("{silent} consumed it and is no longer connected: its process has ended, or hangs"),
                    (left, _) => format!("{} answers, yet no longer consumes it: it was told to, or lost its consumer", left.join(", ")),
                };
                return Some((Reason::NoConsumer, format!("nobody consumes it, {ready} messages wait: {who}")));
            }
            Some(Declared::There { .. }) | None => {}
        }
        if !self.asked {
            return None;
        }
        if !self.silent.is_empty() {
            let siblings = if self.nodes.is_empty() { String::new() } else { format!("; {nodes} answers") };
            let what = format!("it is still consumed by {silent}, which does not answer: its main process is frozen{siblings}");
            return Some((Reason::AnswerTimeout, what));
        }
        if self.nodes.is_empty() {
            if self.declared.is_none() {
                return Some((Reason::NoConsumer, "no node that answers consumes it".to_owned()));
            }
            let what = "it has a consumer, but no celery node that answers consumes it: the main process of its worker is frozen";
            return Some((Reason::AnswerTimeout, what.to_owned()));
        }
        self.stuck(&nodes)
    }

    fn stuck(&self, nodes: &str) -> Option<(Reason, String)> {
        let Self { slots, active, overdue, reserved, .. } = *self;
        if self.busy() {
            let (name, age) = self.oldest.as_ref().filter(|_| overdue > 0 && self.waits())?;
            let (age, most) = (print_measured(*age), print(self.max_task_age));
            let what = format!(
                "all {slots} slots of {nodes} are busy and more waits; {overdue} tasks run for longer than {most}, the oldest, {name}, for {age}"
            );
            return Some((Reason::Saturated, what));
        }
        let still = print_measured(self.still);
        let idle = format!("{active} of {slots} slots of {nodes} are busy");
        match self.canary {
            Canary::Out { age, late: true, taken: true } => {
                let age = print_measured(age);
                let what = format!("{idle}, yet a task that was taken {age} ago is not begun ({reserved} wait): the processes of the pool are frozen");
                Some((Reason::Stalled, what))
            }
            Canary::Out { age, late: true, taken: false } if self.still >= STILL && self.ready() > 0 => {
                let (age, ready) = (print_measured(age), self.ready());
                let what = format!("{idle}, {ready} messages wait, Proctor's for {age}, and nothing was begun or ended for {still}: nobody takes them");
                Some((Reason::Stalled, what))
            }
            Canary::Lost(in_a_row) if in_a_row >= LOST => {
                let what = format!(
                    "{idle}, nothing waits, yet of the tasks that Proctor sent the last {in_a_row} were never run: somebody else takes them, the answers do not arrive, or the clocks of the two hosts differ"
                );
                Some((Reason::Overdue, what))
            }
            Canary::Off if reserved > 0 && self.still >= STILL_UNPROVEN => {
                let what = format!("{idle}, {reserved} tasks that were taken wait, and nothing was begun or ended for {still}: the processes of the pool are frozen");
                Some((Reason::Stalled, what))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn healthy() -> Facts {
        Facts {
            queue: "email".to_owned(),
            declared: Some(Declared::There { ready: 0, consumers: 1 }),
            asked: true,
            nodes: vec!["email@a".to_owned()],
            slots: 2,
            max_task_age: SECOND * 3600,
            canary: Canary::Home,
            ..Facts::default()
        }
    }

    fn out(seconds: u32, taken: bool) -> Canary {
        Canary::Out { age: SECOND * seconds, late: seconds >= 15, taken }
    }

    #[test]
    fn each_situation_has_a_verdict_of_its_own() {
        let there = |ready, consumers| Some(Declared::There { ready, consumers });
        let name = || vec!["email@a".to_owned()];
        let old = |seconds| Some(("t".to_owned(), SECOND * seconds));
        type Expected = Option<(Reason, &'static str)>;
        let cases: Vec<(&str, Facts, Expected)> = vec![
            ("healthy", healthy(), None),
            ("a canary on its way", Facts { canary: out(3, true), ..healthy() }, None),
            ("missing", Facts { declared: Some(Declared::Missing), ..healthy() }, Some((Reason::Missing, "does not exist"))),
            ("cancelled", Facts { declared: there(4, 0), nodes: vec![], left: name(), ..healthy() }, Some((Reason::NoConsumer, "email@a answers, yet no longer"))),
            ("ended", Facts { declared: there(4, 0), nodes: vec![], silent: name(), ..healthy() }, Some((Reason::NoConsumer, "email@a consumed it and is no longer connected"))),
            ("hung and dropped", Facts { declared: there(4, 0), nodes: vec![], silent: name(), hung: true, ..healthy() }, Some((Reason::AnswerTimeout, "email@a hangs, and the broker has dropped"))),
            ("never", Facts { declared: there(4, 0), nodes: vec![], ..healthy() }, Some((Reason::NoConsumer, "no node was seen"))),
            ("frozen", Facts { nodes: vec![], silent: name(), ..healthy() }, Some((Reason::AnswerTimeout, "main process is frozen"))),
            ("frozen before us", Facts { nodes: vec![], ..healthy() }, Some((Reason::AnswerTimeout, "no celery node that answers"))),
            ("not allowed to ask", Facts { nodes: vec![], asked: false, ..healthy() }, None),
            ("children frozen", Facts { canary: out(15, true), reserved: 3, ..healthy() }, Some((Reason::Stalled, "processes of the pool are frozen"))),
            ("nobody takes", Facts { canary: out(20, false), declared: there(3, 1), still: STILL, ..healthy() }, Some((Reason::Stalled, "nobody takes them"))),
            ("a rate limit before the canary", Facts { canary: out(50, false), declared: there(300, 1), still: SECOND, reserved: 8, ..healthy() }, None),
            ("a rate limit beside a canary that flows", Facts { reserved: 8, still: SECOND * 9999, ..healthy() }, None),
            ("frozen without canary", Facts { canary: Canary::Off, reserved: 8, still: STILL_UNPROVEN, ..healthy() }, Some((Reason::Stalled, "frozen"))),
            ("one canary lost", Facts { canary: Canary::Lost(1), ..healthy() }, None),
            ("canaries lost", Facts { canary: Canary::Lost(2), ..healthy() }, Some((Reason::Overdue, "the last 2 were never run"))),
            ("too old, and nothing waits", Facts { active: 2, overdue: 1, oldest: old(4000), ..healthy() }, None),
            ("too old beside an idle slot", Facts { active: 1, overdue: 1, oldest: old(4000), reserved: 1, ..healthy() }, None),
            ("too old", Facts { active: 2, overdue: 1, oldest: old(4000), reserved: 1, ..healthy() }, Some((Reason::Saturated, "the oldest, t, for"))),
        ];
        for (what, facts, expected) in cases {
            match (facts.judge(), expected) {
                (Verdict::Well, None) => {}
                (Verdict::Wrong(failure), Some((reason, words))) => {
                    assert_eq!(failure.reason, reason, "{what}: {failure}");
                    assert!(failure.detail.contains(words), "{what}: {failure}");
                }
                (verdict, _) => panic!("{what}: {verdict:?}"),
            }
        }
    }

    #[test]
    fn a_first_look_says_what_it_cannot_know() {
        let waits = || Facts { canary: Canary::Off, reserved: 3, ..healthy() };
        for (facts, words) in [
            (Facts { canary: out(2, true), ..healthy() }, Some("Proctor's was sent 2.0s ago and has not come back, though only 0 of 2 slots of email@a")),
            (waits(), Some("3 that were taken wait")),
            (Facts { proven: true, ..waits() }, None),
            (Facts { active: 2, ..waits() }, None),
            (Facts { nodes: Vec::new(), ..waits() }, None),
            (healthy(), None),
            (Facts { canary: Canary::Off, ..healthy() }, None),
        ] {
            let said = facts.unproven();
            assert!(words.map_or(said.is_none(), |words| said.as_ref().is_some_and(|said| said.contains(words))), "{said:?} {words:?}");
        }
    }

    #[test]
    fn late_is_not_lost() {
        let busy = || Facts { active: 2, oldest: Some(("t".to_owned(), SECOND * 3000)), ..healthy() };
        assert_eq!(busy().judge(), Verdict::Well, "busy, and nothing waits");
        for waits in [
            Facts { canary: out(3000, true), still: SECOND * 3000, ..busy() },
            Facts { reserved: 8, ..busy() },
            Facts { declared: Some(Declared::There { ready: 1, consumers: 1 }), canary: Canary::Off, ..busy() },
        ] {
            assert_eq!(waits.judge(), Verdict::Backlog);
        }
    }
}
