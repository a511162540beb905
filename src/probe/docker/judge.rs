//! What the state of a container means: whether it stands, was stopped by order, or died. Pure.

use super::ledger::Death;
use crate::client::docker::{Container, Service};
use crate::model::Timestamp;
use crate::model::duration::print_measured;

/// A container, and what is known of it besides its own state.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Its state.
    pub container: Container,
    /// Its last end, as events told it.
    pub death: Option<Death>,
    /// Whether the name of its image now means another image; nothing where that could not be seen.
    pub outdated: Option<bool>,
}

/// How a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It runs, and its health check says nothing else; or says that it is starting.
    Well,
    /// It runs, and its health check fails.
    Unhealthy,
    /// It ended, and docker is about to start it again.
    Restarting,
    /// Somebody paused it.
    Paused,
    /// It was made and not started yet, or is being removed.
    Between,
    /// It does not run, by order or perhaps so.
    Stopped,
    /// It ended, nobody asked for it, and docker will not start it again.
    Died,
    /// It ended well, and its restart policy says that this is the end of it.
    Done,
}

impl Seen {
    /// Says whether docker was told to end it, where it has ended; nothing where it has not, or that is not known.
    pub fn requested(&self) -> Option<bool> {
        let Container { status, policy, exit_code, oom_killed, .. } = &self.container;
        if !matches!(status.as_str(), "exited" | "dead") {
            return None;
        }
        match (self.death, policy.as_str(), exit_code) {
            (Some(death), ..) => Some(death.requested),
            // Docker starts these again after any end but one by order.
            (None, "always" | "unless-stopped", _) => Some(true),
            // An end in good order, by SIGINT or by SIGTERM.
            (None, _, 0 | 130 | 143) => Some(true),
            // By SIGKILL: docker's, after ten seconds, or the kernel's.
            (None, _, 137) if !oom_killed => None,
            (None, ..) => Some(false),
        }
    }

    /// Says how it stands.
    pub fn standing(&self) -> Standing {
        let Container { status, health, policy, exit_code, error, .. } = &self.container;
        match status.as_str() {
            "running" if health.as_deref() == Some("unhealthy") => Standing::Unhealthy,
            "running" => Standing::Well,
            "restarting" => Standing::Restarting,
            "paused" => Standing::Paused,
            "created" if error.is_some() => Standing::Died,
            "created" | "removing" => Standing::Between,
            _ if policy == "on-failure" && *exit_code == 0 && self.death.is_none_or(|death| !death.requested) => Standing::Done,
            _ if self.requested() == Some(false) => Standing::Died,
            _ => Standing::Stopped,
        }
    }

    /// Says in words what is wrong with it.
    pub fn told(&self, now: Timestamp) -> String {
        let container = &self.container;
        let name = shown_name(container);
        let ended = container.finished_at.map_or_else(String::new, |at| format!(" {}", at.ago(now)));
        let code = format!("exit code {}{}", container.exit_code, self.memory());
        match self.standing() {
            Standing::Well | Standing::Done => format!("{name} is well"),
            Standing::Unhealthy => {
                let said = container.health_output.as_deref().map_or_else(String::new, |said| format!(", the last said: {said}"));
                format!("{name} runs, but is unhealthy: {} checks in a row failed{said}", container.failing_streak)
            }
            Standing::Restarting => format!("{name} ends again and again ({code}), docker has restarted it {} times", container.restarts),
            Standing::Paused => format!("{name} is paused (docker unpause {name})"),
            Standing::Between if container.status == "removing" => format!("{name} is being removed"),
            Standing::Between => format!("{name} was made but never started (docker start {name})"),
            Standing::Died if container.status == "created" => {
                format!("{name} could not be started: {}", container.error.as_deref().unwrap_or_default())
            }
            Standing::Died => {
                let again = if container.policy == "on-failure" { "docker has given up restarting it" } else { "docker does not restart it" };
                format!("{name} ended{ended} ({code}), nobody had asked docker for it, and {again}")
            }
            Standing::Stopped if self.requested().is_some() => format!("{name} was stopped by order{ended} ({code})"),
            Standing::Stopped => format!("{name} ended{ended} ({code}); whether by order is not known"),
        }
    }

    /// What its memory has to do with its end, as far as that can be seen.
    fn memory(&self) -> String {
        let Container { oom_killed, exit_code, memory_limit, .. } = &self.container;
        let limit = memory_limit.map_or_else(String::new, |limit| format!(" at its limit of {} MiB", limit >> 20));
        match (oom_killed, exit_code) {
            (true, _) => format!(": the kernel killed it for its memory{limit}"),
            // Docker does not see it on every kernel.
            (false, 137) if memory_limit.is_some() && self.requested() != Some(true) => format!(": killed, perhaps for its memory{limit}"),
            _ => String::new(),
        }
    }
}

/// Returns a container's name without the id that compose puts in front while it makes a container anew.
pub(super) fn shown_name(container: &Container) -> &str {
    match container.name.split_once('_') {
        Some((id, rest)) if id.len() == 12 && id.chars().all(|c| c.is_ascii_hexdigit()) && !rest.is_empty() => rest,
        _ => &container.name,
    }
}

/// A service, and how its containers stand.
#[derive(Debug)]
pub(super) struct Judged<'a> {
    /// Which.
    pub service: Service,
    /// Its containers.
    pub containers: Vec<&'a Seen>,
    /// How many should be well.
    pub expected: usize,
    /// How many are.
    pub well: usize,
    /// How many have died.
    pub dead: usize,
}

impl<'a> Judged<'a> {
    /// Judges a service of which so many containers should be well; without a number, all that are not done.
    pub fn new(service: Service, containers: Vec<&'a Seen>, expected: Option<usize>) -> Self {
        let count = |standing: Standing| containers.iter().filter(|seen| seen.standing() == standing).count();
        let (well, dead, done) = (count(Standing::Well), count(Standing::Died), count(Standing::Done));
        let expected = expected.unwrap_or(containers.len() - done);
        // What is there beyond what is expected, such as half of a rolling replacement, makes nothing worse.
        let dead = dead.min(expected.saturating_sub(well));
        Self { service, containers, expected, well, dead }
    }

    /// Says in words what is wrong, if anything is.
    pub fn wrong(&self, now: Timestamp) -> Option<String> {
        if self.well >= self.expected {
            return None;
        }
        let wrong = self.containers.iter().filter(|seen| !matches!(seen.standing(), Standing::Well | Standing::Done));
        let told: Vec<String> = wrong.take(10).map(|seen| seen.told(now)).collect();
        let told = if told.is_empty() { "there is no other".to_owned() } else { told.join("; ") };
        match (self.expected, self.containers.len()) {
            (1, 1) => Some(format!("{}: {told}", self.service.name)),
            (expected, _) => Some(format!("{}: expected {expected} containers to be well, found {}: {told}", self.service.name, self.well)),
        }
    }
}

/// Says how long a container has been running.
pub(super) fn uptime(container: &Container, now: Timestamp) -> String {
    container.started_at.map_or_else(|| "never started".to_owned(), |at| format!("up for {}", print_measured(now.since(at))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(status: &str, policy: &str, exit_code: i64, death: Option<bool>) -> Seen {
        let container = Container {
            name: "c".to_owned(),
            status: status.to_owned(),
            policy: policy.to_owned(),
            exit_code,
            ..Container::default()
        };
        Seen { container, death: death.map(|requested| Death { at: Timestamp(0), requested }), outdated: None }
    }

    #[test]
    fn an_end_is_judged_by_events_else_by_policy_and_exit_code() {
        use Standing::{Between, Died, Done, Paused, Restarting, Stopped, Well};
        for (status, policy, code, death, standing, requested) in [
            ("running", "no", 0, None, Well, None),
            ("paused", "no", 0, None, Paused, None),
            ("created", "no", 0, None, Between, None),
            ("restarting", "always", 1, Some(false), Restarting, None),
            ("exited", "no", 137, Some(true), Stopped, Some(true)),
            ("exited", "no", 0, Some(false), Died, Some(false)),
            ("exited", "unless-stopped", 137, None, Stopped, Some(true)),
            ("exited", "no", 143, None, Stopped, Some(true)),
            ("exited", "no", 137, None, Stopped, None),
            ("exited", "no", 3, None, Died, Some(false)),
            ("exited", "on-failure", 0, None, Done, Some(true)),
            ("exited", "on-failure", 0, Some(false), Done, Some(false)),
            ("exited", "on-failure", 0, Some(true), Stopped, Some(true)),
            ("exited", "on-failure", 3, Some(false), Died, Some(false)),
        ] {
            let seen = seen(status, policy, code, death);
            assert_eq!((seen.standing(), seen.requested()), (standing, requested), "{status} {policy} {code} {death:?}");
        }
    }

    #[test]
    fn what_is_more_than_expected_is_nothing_wrong() {
        let well = seen("running", "always", 0, None);
        let stopped = seen("exited", "always", 0, Some(true));
        let died = seen("exited", "no", 1, Some(false));
        let service = Service { project: String::new(), name: "web".to_owned() };
        for (containers, expected, dead, is_wrong) in [
            (vec![&well], Some(1), 0, false),
            (vec![&well, &well, &stopped, &died], Some(2), 0, false),
            (vec![&well, &stopped], Some(2), 0, true),
            (vec![&well, &died, &died], Some(2), 1, true),
            (vec![], Some(1), 0, true),
            (vec![&well, &stopped], None, 0, true),
            (vec![&well, &well], None, 0, false),
        ] {
            let judged = Judged::new(service.clone(), containers, expected);
            assert_eq!((judged.dead, judged.wrong(Timestamp(0)).is_some()), (dead, is_wrong), "{judged:?}");
        }
    }

    #[test]
    fn an_end_names_the_memory_where_it_may_have_to_do_with_it() {
        let mut killed = seen("exited", "no", 137, Some(false));
        assert!(!killed.told(Timestamp(0)).contains("memory"));
        killed.container.memory_limit = Some(16 << 20);
        assert!(killed.told(Timestamp(0)).contains("killed, perhaps for its memory at its limit of 16 MiB"));
        killed.container.oom_killed = true;
        assert!(killed.told(Timestamp(0)).contains("the kernel killed it for its memory at its limit of 16 MiB"));
    }

    #[test]
    fn the_id_that_compose_puts_in_front_of_a_name_is_not_shown() {
        for (name, shown) in
            [("3f2a1b9c8d7e_coursys-web-1", "coursys-web-1"), ("coursys_web_1", "coursys_web_1"), ("memcached", "memcached")]
        {
            assert_eq!(shown_name(&Container { name: name.to_owned(), ..Container::default() }), shown);
        }
    }
}
