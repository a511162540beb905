//! What events have told: who was killed by whose order, how often a service ended, and what of it is a change that
//! people want to read of. Pure: `now` is an argument.
//!
//! Docker tells an order before and after an end: `kill` with a signal, `die`, then `stop`, `restart` or `destroy`. An
//! end without any of them is one that nobody asked for. So an end is judged a moment after it came ([`SETTLE`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::changes::{Change, Kind};
use crate::client::docker::{Action, Event, Service};
use crate::model::Timestamp;

/// How long after an event it is judged what it means: `stop` comes some milliseconds after `die`.
pub(super) const SETTLE: Duration = Duration::from_millis(150);

/// How long a stop by order waits for the start that makes it a restart, before it is told as a stop.
const RESTART_WITHIN: Duration = Duration::from_secs(5);

/// How long after a signal an end is still its work: docker waits that long at most for most sites' workers.
const ORDER_WITHIN: Duration = Duration::from_secs(300);

/// An end that comes sooner after the start is one of coming up, such as waiting for a database.
const EARLY: Duration = Duration::from_secs(60);

/// An end that nobody asked for is told once in this time: a restart loop must not drive all else out of the list.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// The most containers and services that are remembered; the ones not heard of for longest go first.
const MAX_CONTAINERS: usize = 1_000;
const MAX_SERVICES: usize = 500;

/// The most events by which one that is told twice is recognised: docker keeps 256 itself.
const MAX_TAKEN: usize = 512;

/// HUP, USR1, USR2: an order to reload or to reopen a log, not to end. Any other may be a container's stop signal.
const NO_ORDER_TO_END: &[u32] = &[1, 10, 12];

/// An end of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Death {
    /// When.
    pub at: Timestamp,
    /// Whether docker was told to.
    pub requested: bool,
}

/// How often a service ended since Proctor listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Docker was told to.
    pub asked: u64,
    /// Nobody asked, within a minute of the start.
    pub early: u64,
    /// Nobody asked, later.
    pub crash: u64,
    /// The kernel killed a process of it for its memory.
    pub oom: u64,
}

#[derive(Clone, Debug, Default)]
struct Known {
    heard: Timestamp,
    started: Option<Timestamp>,
    ordered: Option<Timestamp>,
    died: Option<Death>,
}

/// An end that is not judged or not told yet.
#[derive(Clone, Debug)]
struct Pending {
    id: String,
    name: String,
    service: Service,
    at: Timestamp,
    exit_code: i64,
    came: Timestamp,
    early: bool,
    judged: bool,
    requested: bool,
}

/// What came of it when events were judged.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// The services of which something is new.
    pub stirred: BTreeSet<Service>,
    /// What people want to read of.
    pub changes: Vec<Change>,
}

/// What events have told.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    containers: HashMap<String, Known>,
    counts: BTreeMap<Service, Counts>,
    pending: Vec<Pending>,
    /// Services to be looked at, and from when on.
    stirred: BTreeMap<Service, Timestamp>,
    /// When an end of a service that nobody asked for was last told.
    told: BTreeMap<Service, Timestamp>,
    changes: Vec<Change>,
    /// The places of the last events, so that one is not taken twice when the stream is taken up again. Those of two
    /// containers may come in another order than docker gave them their places in, so the greatest is not enough.
    taken: BTreeSet<i64>,
}

impl Ledger {
    /// Returns when the last event happened.
    pub fn last(&self) -> Option<Timestamp> {
        self.taken.last().map(|nanos| Timestamp(nanos / 1_000_000))
    }

    /// Returns the last end of a container, where events told of it and it has not been started since.
    pub fn death(&self, id: &str) -> Option<Death> {
        self.containers.get(id).and_then(|known| known.died)
    }

    /// Returns how often a service ended.
    pub fn counts(&self, service: &Service) -> Counts {
        self.counts.get(service).copied().unwrap_or_default()
    }

    /// Takes an event that came now.
    pub fn take(&mut self, event: Event, now: Timestamp) {
        let full = self.taken.len() >= MAX_TAKEN;
        let forgotten = full && self.taken.first().is_some_and(|first| event.nanos < *first);
        if forgotten || !self.taken.insert(event.nanos) {
            return;
        }
        if full {
            self.taken.pop_first();
        }
        let at = event.at();
        let Some(service) = event.service.clone() else { return };
        self.stirred.entry(service.clone()).or_insert(now + SETTLE);
        if self.containers.len() >= MAX_CONTAINERS && !self.containers.contains_key(&event.id) {
            let oldest = self.containers.iter().min_by_key(|(_, known)| known.heard).map(|(id, _)| id.clone());
            oldest.map(|id| self.containers.remove(&id));
        }
        let known = self.containers.entry(event.id.clone()).or_default();
        known.heard = at;
        match event.action {
            Action::Start => {
                (known.started, known.ordered, known.died) = (Some(at), None, None);
                self.started(&event, &service, now);
            }
            Action::Kill(signal) if !NO_ORDER_TO_END.contains(&signal) => known.ordered = Some(at),
            Action::Die(exit_code) => {
                let requested = known.ordered.is_some_and(|ordered| at.since(ordered) <= ORDER_WITHIN);
                known.died = Some(Death { at, requested });
                let early = known.started.is_some_and(|started| at.since(started) < EARLY);
                let (id, name) = (event.id, event.name);
                let pending = Pending { id, name, service, at, exit_code, came: now, early, judged: false, requested };
                // One per container: what came before is told now.
                self.tell(now, |other| other.id == pending.id);
                self.pending.push(pending);
            }
            Action::Stop | Action::Restart | Action::Destroy => {
                if let Some(death) = &mut known.died {
                    death.requested = true;
                }
                for pending in self.pending.iter_mut().filter(|pending| pending.id == event.id) {
                    pending.requested = true;
                }
                if event.action == Action::Destroy {
                    self.containers.remove(&event.id);
                }
            }
            Action::Oom => self.count(&service, |counts| counts.oom += 1),
            Action::Kill(_) | Action::Other => {}
        }
    }

    fn count(&mut self, service: &Service, add: impl FnOnce(&mut Counts)) {
        if self.counts.len() < MAX_SERVICES || self.counts.contains_key(service) {
            add(self.counts.entry(service.clone()).or_default());
        }
    }

    /// A start: of what was just stopped, it is a restart; what docker itself starts again is no order.
    fn started(&mut self, event: &Event, service: &Service, now: Timestamp) {
        let index = self.pending.iter().position(|pending| pending.service == *service);
        let before = index.map(|index| self.pending.remove(index));
        let (kind, detail) = match before {
            Some(before) => {
                let requested = before.requested;
                self.judge(&before);
                if !requested {
                    self.tell_death(&before, now);
                    return;
                }
                let what = if before.id == event.id { "" } else { "made anew" };
                (Kind::Restarted, what)
            }
            None if self.told.get(service).is_some_and(|told| now.since(*told) < TOLD_EVERY) => return,
            None => (Kind::Started, ""),
        };
        self.changes.push(Change { at: event.at(), kind, subject: subject(service, &event.name), detail: detail.to_owned() });
    }

    fn judge(&mut self, pending: &Pending) {
        if pending.judged {
            return;
        }
        let (requested, early) = (pending.requested, pending.early);
        self.count(&pending.service, |counts| match (requested, early) {
            (true, _) => counts.asked += 1,
            (false, true) => counts.early += 1,
            (false, false) => counts.crash += 1,
        });
    }

    fn tell_death(&mut self, pending: &Pending, now: Timestamp) {
        let told = self.told.get(&pending.service).is_some_and(|told| now.since(*told) < TOLD_EVERY);
        if told {
            return;
        }
        if self.told.len() >= MAX_SERVICES {
            self.told.retain(|_, told| now.since(*told) < TOLD_EVERY);
        }
        if self.told.len() >= MAX_SERVICES {
            self.told.pop_first();
        }
        self.told.insert(pending.service.clone(), now);
        self.changes.push(Change {
            at: pending.at,
            kind: Kind::Died,
            subject: subject(&pending.service, &pending.name),
            detail: format!("exit code {}, nobody had asked docker for it", pending.exit_code),
        });
    }

    /// Judges and tells the pending ends that this holds for.
    fn tell(&mut self, now: Timestamp, which: impl Fn(&Pending) -> bool) {
        let (told, kept) = std::mem::take(&mut self.pending).into_iter().partition(|pending| which(pending));
        self.pending = kept;
        let told: Vec<Pending> = told;
        for pending in told {
            self.judge(&pending);
            if pending.requested {
                self.changes.push(Change {
                    at: pending.at,
                    kind: Kind::Stopped,
                    subject: subject(&pending.service, &pending.name),
                    detail: format!("exit code {}, by order to docker", pending.exit_code),
                });
            } else {
                self.tell_death(&pending, now);
            }
        }
    }

    /// Returns when [`Ledger::settle`] has something to do.
    pub fn due(&self) -> Option<Timestamp> {
        let judged = self.pending.iter().map(|pending| pending.came + if pending.judged { RESTART_WITHIN } else { SETTLE });
        judged.chain(self.stirred.values().copied()).min()
    }

    /// Judges what has come long enough ago.
    pub fn settle(&mut self, now: Timestamp) -> Settled {
        self.tell(now, |pending| now.since(pending.came) >= if pending.requested { RESTART_WITHIN } else { SETTLE });
        let mut pending = std::mem::take(&mut self.pending);
        for one in pending.iter_mut().filter(|one| now.since(one.came) >= SETTLE && !one.judged) {
            self.judge(one);
            one.judged = true;
        }
        self.pending = pending;
        let stirred: BTreeSet<Service> = self.stirred.iter().filter(|(_, at)| **at <= now).map(|(service, _)| service.clone()).collect();
        self.stirred.retain(|_, at| *at > now);
        Settled { stirred, changes: std::mem::take(&mut self.changes) }
    }
}

fn subject(service: &Service, name: &str) -> String {
    let own = service.project.is_empty() && service.name == name;
    if own { format!("container {name}") } else { format!("container {name} of {service}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> Service {
        Service { project: String::new(), name: name.to_owned() }
    }

    /// Takes events of one container, `(milliseconds, action)`, and judges everything long after.
    fn told(events: &[(i64, Action)]) -> (Ledger, Vec<(Kind, String)>) {
        let mut ledger = Ledger::default();
        let mut changes = Vec::new();
        for (at, action) in events {
            let now = Timestamp(*at);
            changes.extend(ledger.settle(now).changes);
            let event = Event {
                nanos: at * 1_000_000,
                id: "a1".to_owned(),
                name: "c".to_owned(),
                service: Some(service("c")),
                action: action.clone(),
            };
            ledger.take(event, now);
        }
        let end = events.last().expect("has events").0 + 60_000;
        changes.extend(ledger.settle(Timestamp(end)).changes);
        assert_eq!(ledger.due(), None);
        (ledger, changes.into_iter().map(|change| (change.kind, change.detail)).collect())
    }

    #[test]
    fn an_end_is_asked_for_where_docker_was_told() {
        use Action::{Destroy, Die, Kill, Restart, Start, Stop};
        let start = (1000, Start);
        let began = (Kind::Started, String::new());
        let stopped = |code: i64| (Kind::Stopped, format!("exit code {code}, by order to docker"));
        let died = |code: i64| (Kind::Died, format!("exit code {code}, nobody had asked docker for it"));
        let restarted = (Kind::Restarted, String::new());
        let counts = |asked, early, crash| Counts { asked, early, crash, oom: 0 };
        for (events, changes, expected) in [
            // docker stop, docker kill, docker rm -f
            (vec![(70_000, Kill(15)), (70_100, Die(0)), (70_107, Stop)], vec![stopped(0)], counts(1, 0, 0)),
            (vec![(70_000, Kill(9)), (70_100, Die(137))], vec![stopped(137)], counts(1, 0, 0)),
            (vec![(70_000, Kill(9)), (70_100, Die(137)), (70_110, Destroy)], vec![stopped(137)], counts(1, 0, 0)),
            // a stop signal of its own, that is also one to reload
            (vec![(70_000, Kill(1)), (70_100, Die(0)), (70_107, Stop)], vec![stopped(0)], counts(1, 0, 0)),
            // docker restart
            (vec![(70_000, Kill(15)), (70_100, Die(0)), (70_107, Stop), (70_300, Start), (70_301, Restart)], vec![restarted], counts(1, 0, 0)),
            // it ends by itself; after a reload; long after a signal that it ignored
            (vec![(70_000, Die(1))], vec![died(1)], counts(0, 0, 1)),
            (vec![(70_000, Kill(1)), (70_100, Die(1))], vec![died(1)], counts(0, 0, 1)),
            (vec![(70_000, Kill(15)), (670_100, Die(1))], vec![died(1)], counts(0, 0, 1)),
            (vec![(2000, Die(3))], vec![died(3)], counts(0, 1, 0)),
            // docker starts it again, and again; a stop ends the loop
            (
                vec![(70_000, Die(3)), (70_100, Start), (70_120, Die(3)), (70_320, Start), (70_340, Die(3)), (70_360, Stop)],
                vec![died(3), stopped(3)],
                counts(1, 1, 1),
            ),
        ] {
            let events: Vec<_> = [start.clone()].into_iter().chain(events).collect();
            let (ledger, told) = told(&events);
            assert_eq!(told, [vec![began.clone()], changes].concat(), "{events:?}");
            assert_eq!(ledger.counts(&service("c")), expected, "{events:?}");
        }
    }

    #[test]
    fn what_is_told_twice_is_taken_once_and_memory_is_bounded() {
        let mut ledger = Ledger::default();
        let event = |n: i64, action| Event {
            nanos: n,
            id: format!("a{n}"),
            name: format!("c{n}"),
            service: Some(service(&format!("c{n}"))),
            action,
        };
        ledger.take(event(5, Action::Oom), Timestamp(0));
        ledger.take(event(5, Action::Oom), Timestamp(0));
        assert_eq!(ledger.counts(&service("c5")).oom, 1);
        ledger.take(event(4, Action::Oom), Timestamp(0));
        assert_eq!(ledger.counts(&service("c4")).oom, 1, "one that was overtaken is taken too");
        for n in 10..5_000 {
            ledger.take(event(n, Action::Die(1)), Timestamp(n));
            ledger.settle(Timestamp(n));
        }
        ledger.settle(Timestamp(1_000_000));
        assert!(ledger.containers.len() <= MAX_CONTAINERS && ledger.counts.len() <= MAX_SERVICES && ledger.pending.is_empty());
        assert!(ledger.told.len() <= MAX_SERVICES && ledger.taken.len() <= MAX_TAKEN, "{} {}", ledger.told.len(), ledger.taken.len());
        let before = ledger.counts(&service("c5"));
        ledger.take(event(5, Action::Oom), Timestamp(0));
        assert_eq!(ledger.counts(&service("c5")), before, "what is older than all that is remembered was taken");
    }

    #[test]
    fn an_end_is_known_until_the_next_start() {
        let (ledger, _) = told(&[(1000, Action::Start), (70_000, Action::Kill(15)), (70_100, Action::Die(143))]);
        assert_eq!(ledger.death("a1"), Some(Death { at: Timestamp(70_100), requested: true }));
        let (ledger, _) = told(&[(1000, Action::Start), (70_000, Action::Die(1)), (70_100, Action::Start)]);
        assert_eq!(ledger.death("a1"), None);
    }
}
