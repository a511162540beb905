//! We cannot see: the resolver or the gateway is dead, or most hosts beyond this one are missed at once. Then it is not
//! said of each that it fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::client::reach::{Contact, Met};
use crate::model::{Alert, Timestamp};
use crate::snapshot::Latest;

/// How long targets have to come back once Proctor sees again.
pub const SETTLE: Duration = Duration::from_secs(60);
/// Fewer hosts that are missed, or names that do not resolve, are their own trouble.
const LEAST_HOSTS: usize = 3;
const LEAST_NAMES: usize = 2;
/// A port that was reached so long before another of its host was missed says nothing about the host now.
const OUTLIVED: Duration = Duration::from_secs(60);
/// Moments are whole milliseconds: so much later than the end of a run is no longer within it.
const ROUNDING: Duration = Duration::from_millis(5);
/// The most hosts that are named.
const NAMED: usize = 5;

/// One target: its probe, and which one where the probe has several.
type Name = (Arc<str>, Option<Arc<str>>);

/// Whether Proctor sees beyond this host.
#[derive(Clone, Debug, Default)]
pub struct SightWatch {
    /// Since when it does not, and why.
    lost: Option<(Timestamp, String)>,
    /// Until when targets may come back, after it.
    settles: Option<Timestamp>,
    /// Targets that failed meanwhile since a host was missed.
    beyond: BTreeSet<Name>,
    /// Targets that fail now for another cause.
    others: BTreeSet<Name>,
}

impl SightWatch {
    /// Looks at what connections came to; says whether it begins or ends.
    pub fn look(&mut self, contacts: &[Contact], silent_gateway: Option<&str>, targets: &[Latest], now: Timestamp) -> bool {
        let had = self.lost.is_some();
        if self.settles.is_some_and(|until| now >= until) {
            self.settles = None;
            self.beyond.clear();
        }
        match judge(contacts, silent_gateway) {
            Some(why) => {
                let since = self.lost.as_ref().map_or(now, |(since, _)| *since);
                (self.lost, self.settles) = (Some((since, why)), None);
            }
            None if had => (self.lost, self.settles) = (None, Some(now + SETTLE)),
            None => {}
        }
        let mut asked: BTreeMap<&str, Vec<&Contact>> = BTreeMap::new();
        for contact in contacts {
            asked.entry(&contact.asker).or_default().push(contact);
        }
        self.others.clear();
        for latest in targets {
            let Some(result) = latest.result.as_ref().filter(|result| !result.is_success()) else { continue };
            let (target, over) = (&latest.target, result.at + result.duration + ROUNDING);
            let name: Name = (target.probe.clone(), target.target.clone());
            let asked = asked.get(target.to_string().as_str()).map_or(&[][..], Vec::as_slice);
            if asked.iter().any(|contact| contact.met != Met::Reached) {
                if self.lost.is_some() {
                    self.beyond.insert(name);
                }
            } else if !(self.beyond.contains(&name) && asked.iter().any(|contact| contact.at > over)) {
                // A run that is under way has reached more than the result of the one before knows.
                self.others.insert(name);
            }
        }
        had != self.lost.is_some()
    }

    /// Says since when Proctor does not see, and why.
    pub fn lost(&self) -> Option<&(Timestamp, String)> {
        self.lost.as_ref()
    }

    /// Returns the probes that failed since hosts were missed, by name.
    pub fn probes(&self) -> BTreeSet<String> {
        self.beyond.iter().map(|(probe, _)| probe.to_string()).collect()
    }

    /// Says whether an alert is about nothing but targets that cannot be seen, or could not until just now.
    pub fn hides(&self, alert: &Alert, now: Timestamp) -> bool {
        let (Some(probe), true) = (alert.probe(), self.lost.is_some() || self.settles.is_some_and(|until| now < until)) else {
            return false;
        };
        let of = alert.labels.get("target");
        let about = |(its, target): &Name| &**its == probe && (of.is_none() || of == target.as_deref());
        self.beyond.iter().any(about) && !self.others.iter().any(about)
    }
}

/// Says why Proctor does not see beyond this host, if so.
fn judge(contacts: &[Contact], silent_gateway: Option<&str>) -> Option<String> {
    let mut hosts: BTreeMap<&str, Vec<&Contact>> = BTreeMap::new();
    for contact in contacts {
        hosts.entry(&contact.host).or_default().push(contact);
    }
    let missed: BTreeMap<&str, Met> = hosts.iter().filter_map(|(host, all)| Some((*host, missed(all)?))).collect();
    let named = hosts.values().filter(|all| all.iter().any(|one| one.named)).count();
    let unresolved: Vec<&str> = missed.iter().filter(|(_, met)| **met == Met::Unresolved).map(|(host, _)| *host).collect();
    let list = |hosts: &[&str]| {
        let more = if hosts.len() > NAMED { ", …" } else { "" };
        format!("{}{more}", hosts.iter().take(NAMED).copied().collect::<Vec<_>>().join(", "))
    };
    if let (Some(gateway), false) = (silent_gateway, missed.is_empty()) {
        return Some(format!("the gateway {gateway} does not answer on its own network"));
    }
    if unresolved.len() >= LEAST_NAMES && unresolved.len() * 2 > named {
        return Some(format!("the resolver does not answer for {} of {named} names: {}", unresolved.len(), list(&unresolved)));
    }
    if missed.len() >= LEAST_HOSTS && missed.len() * 2 > hosts.len() {
        let names: Vec<&str> = missed.keys().copied().collect();
        return Some(format!("{} of {} hosts beyond this one are not reached: {}", missed.len(), hosts.len(), list(&names)));
    }
    None
}

/// Says how a host is missed, if it is: none of its ports was reached lately.
fn missed(contacts: &[&Contact]) -> Option<Met> {
    let newest = contacts.iter().filter(|one| one.met != Met::Reached).max_by_key(|one| one.at)?;
    let reached = contacts.iter().any(|one| one.met == Met::Reached && one.at + OUTLIVED > newest.at);
    (!reached).then_some(newest.met)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AlertState, Failure, Labels, ProbeResult, Reason, Sight, Target};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_secs(seconds)
    }

    fn contact(asker: &str, host: &str, met: Met, seconds: i64) -> Contact {
        Contact { asker: asker.into(), host: host.into(), named: !host.starts_with("10."), met, at: at(seconds) }
    }

    fn failing(probe: &str, target: Option<&str>) -> Latest {
        let seconds = Duration::from_secs(1);
        let target = Arc::new(Target {
            probe: probe.into(),
            target: target.map(Into::into),
            kind: "tcp",
            interval: seconds,
            timeout: seconds,
            depends_on: Arc::new([]),
        });
        let result = ProbeResult {
            target: target.clone(),
            at: at(0),
            duration: seconds,
            outcome: Err(Failure::new(Reason::ConnectTimeout, "x")),
            samples: Vec::new(),
            sight: Sight::Full,
            evidence: Vec::new(),
        };
        Latest { target, result: Some(Arc::new(result)), runs: 1, since: Some(at(0)) }
    }

    fn alert(labels: &[(&'static str, &'static str)]) -> Alert {
        Alert {
            labels: Labels::new(labels.iter().copied()),
            annotations: Labels::default(),
            state: AlertState::Firing,
            value: 0.0,
            active_at: at(0),
            fired_at: Some(at(0)),
            resolved_at: None,
            keep_firing_since: None,
            rule: "g/a".into(),
            evidence: Vec::new(),
            attempts: Vec::new(),
        }
    }

    #[test]
    fn it_needs_most_names_most_hosts_or_the_gateway() {
        use Met::{Missed, Reached, Unresolved};
        let gateway = Some("10.0.0.1");
        type Case<'a> = (&'a str, &'a [(&'a str, Met)], Option<&'a str>, Option<&'a str>);
        let cases: &[Case<'_>] = &[
            ("nothing is known", &[], gateway, None),
            ("one dead host of one", &[("10.0.0.7", Missed)], None, None),
            ("two dead hosts of two", &[("10.0.0.7", Missed), ("10.0.0.8", Missed)], None, None),
            ("one name that does not resolve", &[("db", Unresolved), ("10.0.0.8", Missed)], None, None),
            ("both names", &[("db", Unresolved), ("mx", Unresolved), ("10.0.0.8", Reached)], None, Some("2 of 2 names: db, mx")),
            ("half of the names", &[("db", Unresolved), ("mx", Unresolved), ("a", Reached), ("b", Missed)], None, Some("3 of 4 hosts")),
            (
                "half of the hosts",
                &[("a", Missed), ("b", Missed), ("c", Missed), ("d", Reached), ("e", Reached), ("f", Reached)],
                None,
                None,
            ),
            ("most hosts", &[("a", Missed), ("b", Missed), ("c", Missed), ("d", Reached)], None, Some("3 of 4 hosts beyond this one")),
            ("the gateway and a host", &[("a", Missed), ("b", Reached), ("c", Reached)], gateway, Some("the gateway 10.0.0.1")),
            ("a gateway that nobody needs", &[("a", Reached)], gateway, None),
        ];
        for (name, hosts, gateway, expected) in cases {
            let contacts: Vec<Contact> = hosts.iter().map(|(host, met)| contact(host, host, *met, 0)).collect();
            let why = judge(&contacts, *gateway);
            let fits = expected.map_or(why.is_none(), |words| why.as_ref().is_some_and(|why| why.contains(words)));
            assert!(fits, "{name}: {why:?}");
        }
    }

    #[test]
    fn a_host_with_one_closed_way_in_is_reached_by_the_other_while_that_is_fresh() {
        let ports = |reached| [contact("p", "a", Met::Reached, reached), contact("q", "a", Met::Missed, 100)];
        let missed = |ports: [Contact; 2]| super::missed(&ports.iter().collect::<Vec<_>>());
        assert_eq!((missed(ports(90)), missed(ports(110)), missed(ports(30))), (None, None, Some(Met::Missed)));
    }

    #[test]
    fn only_what_was_missed_is_hidden_until_a_minute_after() {
        let hosts = ["a", "b", "c"];
        let contacts = |met| hosts.map(|host| contact(&format!("far/{host}"), host, met, 0)).to_vec();
        let mut targets: Vec<Latest> = hosts.iter().map(|host| failing("far", Some(host))).collect();
        targets.push(failing("near", None));
        let (far, near) = (alert(&[("probe", "far"), ("target", "a")]), alert(&[("probe", "near")]));
        let (whole, own) = (alert(&[("probe", "far")]), alert(&[("alertname", "ProctorCannotSee")]));
        let mut sight = SightWatch::default();
        assert!(!sight.look(&[], None, &targets, at(0)) && !sight.hides(&far, at(0)), "without contacts nothing is known");
        assert!(sight.look(&contacts(Met::Missed), None, &targets, at(1)));
        assert!(!sight.look(&contacts(Met::Missed), None, &targets, at(2)), "it is so already");
        assert_eq!([&far, &whole, &near, &own].map(|alert| sight.hides(alert, at(2))), [true, true, false, false]);
        assert_eq!((sight.probes(), sight.lost().map(|(since, _)| *since)), (BTreeSet::from(["far".to_owned()]), Some(at(1))));
        // A target of the same probe that fails for another cause is judged as ever, and so is the probe as a whole.
        targets.push(failing("far", Some("d")));
        sight.look(&contacts(Met::Missed), None, &targets, at(3));
        assert_eq!([&far, &whole].map(|alert| sight.hides(alert, at(3))), [true, false]);
        assert!(sight.look(&contacts(Met::Reached), None, &[], at(10)) && sight.lost().is_none());
        assert_eq!([69, 70].map(|seconds| sight.hides(&far, at(seconds))), [true, false]);
        let under_way = hosts.map(|host| contact(&format!("far/{host}"), host, Met::Reached, 19));
        sight.look(&under_way, None, &targets[..4], at(19));
        assert!(sight.hides(&far, at(19)), "the run that reached it is not over");
        assert!(!sight.look(&contacts(Met::Reached), None, &targets, at(20)));
        assert!(!sight.hides(&far, at(20)), "it is reached, and fails all the same");
    }
}
