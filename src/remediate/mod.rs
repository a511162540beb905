//! Repairing: what may be done about an alert, whether it is allowed now, doing it, and asking whether it helped.
//!
//! [`guard`] decides and is pure; [`runner`] records the intent, acts, verifies and records the outcome; one file per
//! kind of action knows how. Nothing of an alert ever becomes a program, an argument, a unit, a container or a URL:
//! those stand in the configuration, alerts reach a program as environment and a webhook as JSON.

pub mod command;
pub mod docker;
pub mod guard;
pub mod runner;
pub mod systemd;
pub mod webhook;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::client::docker::Docker;
use crate::client::systemd::Systemd;
use crate::model::decode::{self, Decode, Spanned};
use crate::model::yaml::Node;
use crate::model::{Alert, Matcher, Problems};

pub use guard::{Facts, Terms};
pub use runner::{Runner, Window, Wiring};

/// The longest detail of an attempt, in characters.
pub const MAX_DETAIL: usize = 500;

/// What an action did: what happened, or why not, for people; and what it printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// One line: what was done, else what went wrong and what to do about it.
    pub result: Result<String, String>,
    /// What it printed, bounded by the action; empty where it prints nothing.
    pub output: String,
}

impl Done {
    /// Something that prints nothing.
    pub fn quiet(result: Result<String, String>) -> Self {
        Self { result, output: String::new() }
    }
}

/// What an action is done for.
#[derive(Clone, Debug)]
pub struct Occasion {
    /// The attempt, stable over a retry: the idempotency key of a webhook.
    pub attempt: String,
    /// The action's name in the configuration.
    pub action: String,
    /// What is acted on, as in [`Terms::target`].
    pub target: String,
    /// The alert.
    pub alert: Alert,
}

/// One way of acting on one target.
///
/// The runner drops a future that is not over [`Action::deadline`] after it began; what `act` started ends with it as
/// far as that is possible (a program is killed, a restart that systemd or docker was told to do goes on).
pub trait Action: Send + Sync {
    /// Returns what is known of the target now, for the guard and the mail. What cannot be seen is left out: then
    /// `act` says why.
    fn facts(&self) -> BoxFuture<'_, Facts> {
        async { Facts::default() }.boxed()
    }

    /// Acts once.
    fn act<'a>(&'a self, occasion: &'a Occasion) -> BoxFuture<'a, Done>;

    /// Says whether the target stands as it should once it has settled; the probes are asked after it.
    fn settled(&self) -> BoxFuture<'_, Result<(), String>> {
        async { Ok(()) }.boxed()
    }

    /// Returns the limit of one `act`.
    fn deadline(&self) -> Duration;
}

/// Whether an action acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Says what it would do.
    Observe,
    /// Does it.
    Act,
}

impl Decode for Mode {
    const EXPECTED: &'static str = "observe or act";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let mode = String::decode(node, &mut Problems::default()).and_then(|text| match text.as_str() {
            "observe" => Some(Self::Observe),
            "act" => Some(Self::Act),
            _ => None,
        });
        if mode.is_none() {
            decode::mismatch(node, Self::EXPECTED, problems);
        }
        mode
    }
}

crate::config_struct! {
    /// How is asked whether an action helped.
    pub struct VerifyConfig {
        /// The probes that must all succeed, by name; without any, the probe that the alert is about.
        probes: Vec<Spanned<String>> = "[]",
        /// How long they may take to do so, counted from when the target has settled.
        within: Duration = "60s",
    }
}

crate::config_struct! {
    /// How often one target may be acted on. One budget per target, whatever action or rule asks.
    pub struct LimitConfig {
        /// The most attempts `per`; then a person is needed.
        attempts: u32 = "3",
        /// The time in which they are counted.
        per: Duration = "30m",
        /// The least time between two attempts; doubled with each further attempt that did not help. Also how long
        /// Proctor waits after somebody else started or stopped the target.
        cooldown: Duration = "2m",
    }
}

crate::config_struct! {
    /// One entry under `actions`: exactly one kind, and what is the same for every kind.
    pub struct ActionConfig {
        /// Runs a program.
        command: Option<command::CommandConfig>,
        /// Restarts or starts a unit of systemd.
        systemd: Option<systemd::SystemdConfig>,
        /// Restarts a container.
        docker: Option<docker::DockerConfig>,
        /// Calls a URL.
        webhook: Option<webhook::WebhookConfig>,
        /// Which alerts it is for: all matchers must match.
        matchers: Spanned<Vec<Matcher>>,
        /// How long the alert must have been firing, on top of the rule's own `for`.
        firing_for: Duration = "1m",
        /// `observe` says what would be done, `act` does it.
        mode: Mode = "observe",
        /// How is asked whether it helped.
        verify: VerifyConfig = "{}",
        /// How often it may be done.
        limit: LimitConfig = "{}",
        /// How long the target is left alone after the act, before anything is asked.
        settle: Duration = "0s",
    }
}

impl ActionConfig {
    /// Returns the kinds that are set, by name: exactly one is right.
    pub fn kinds(&self) -> Vec<&'static str> {
        [
            ("command", self.command.is_some()),
            ("systemd", self.systemd.is_some()),
            ("docker", self.docker.is_some()),
            ("webhook", self.webhook.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, set)| set.then_some(name))
        .collect()
    }

    /// Notes what is wrong with this entry alone; that the probes of `verify` exist is for the configuration to say.
    pub fn check(&self, name: &Spanned<String>, problems: &mut Problems) {
        let at = name.at;
        match self.kinds().as_slice() {
            [_] => {}
            [] => problems.push(at, format!("actions.{}: expected one of command, systemd, docker, webhook, found none", name.value)),
            many => problems.push(
                at,
                format!("actions.{}: expected one of command, systemd, docker, webhook, found {}", name.value, many.join(" and ")),
            ),
        }
        if self.matchers.value.is_empty() {
            problems.push(self.matchers.at, "expected at least one matcher: an action without any would be for every alert");
        }
        if self.matchers.value.iter().all(|matcher| matcher.matches_value("")) && !self.matchers.value.is_empty() {
            problems.push(self.matchers.at, "expected a matcher that needs a label, found only such as also match alerts without it");
        }
        if self.limit.attempts == 0 {
            problems.push(at, format!("actions.{}.limit: expected attempts of at least 1; to do nothing, write mode: observe", name.value));
        }
        for (key, value) in [("limit.per", self.limit.per), ("limit.cooldown", self.limit.cooldown), ("verify.within", self.verify.within)]
        {
            if value.is_zero() || value > Duration::from_secs(86_400) {
                problems.push(at, format!("actions.{}.{key}: expected more than 0s and at most 1d", name.value));
            }
        }
        if let Some(docker) = &self.docker {
            docker.check(&name.value, at, problems);
        }
        if let Some(webhook) = &self.webhook {
            webhook.check(&name.value, at, problems);
        }
    }

    /// Builds the action; connects to nothing.
    ///
    /// # Errors
    /// What cannot be built, such as a secret file that cannot be read.
    pub fn plan(&self, name: &str, tools: &Tools) -> Result<Planned, String> {
        let (action, target, verb, object): (Arc<dyn Action>, String, &'static str, String) =
            match (&self.command, &self.systemd, &self.docker, &self.webhook) {
                (Some(config), ..) => (Arc::new(command::Command::new(config)), format!("command:{name}"), "run", config.argv.0[0].clone()),
                (_, Some(config), ..) => (
                    Arc::new(systemd::Unit::new(config, tools.systemd.clone())),
                    format!("systemd:{}", config.unit.0),
                    config.verb.as_str(),
                    config.unit.0.clone(),
                ),
                (_, _, Some(config), _) => (
                    Arc::new(docker::Container::new(config, tools.docker.clone())),
                    format!("docker:{}", config.object()),
                    "restart",
                    config.object(),
                ),
                (.., Some(config)) => (Arc::new(webhook::Webhook::new(config)?), format!("webhook:{name}"), "call", name.to_owned()),
                _ => return Err("names no kind of action".to_owned()),
            };
        Ok(Planned {
            terms: Terms {
                name: name.to_owned(),
                target,
                verb,
                object,
                firing_for: self.firing_for,
                acts: self.mode == Mode::Act,
                attempts: self.limit.attempts,
                per: self.limit.per,
                cooldown: self.limit.cooldown,
            },
            matchers: self.matchers.value.clone(),
            verify: self.verify.probes.iter().map(|probe| probe.value.clone()).collect(),
            within: self.verify.within,
            settle: self.settle,
            action,
        })
    }
}

/// What actions act through.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The system bus.
    pub systemd: Arc<Systemd>,
    /// The docker daemon.
    pub docker: Arc<Docker>,
}

impl Tools {
    /// The host's own: the system bus, and docker at `socket`, else where `DOCKER_HOST` says, else `/run/docker.sock`.
    pub fn of_this_host(socket: Option<PathBuf>) -> Self {
        Self { systemd: Arc::new(Systemd::of_this_host()), docker: Arc::new(socket.map_or_else(Docker::of_this_host, Docker::at)) }
    }
}

/// An action as it runs.
#[derive(Clone)]
pub struct Planned {
    /// What the guard goes by.
    pub terms: Terms,
    /// Which alerts it is for.
    pub matchers: Vec<Matcher>,
    /// The probes that must succeed afterwards; empty for the alert's own.
    pub verify: Vec<String>,
    /// How long they may take.
    pub within: Duration,
    /// How long the target is left alone first.
    pub settle: Duration,
    /// How it is done.
    pub action: Arc<dyn Action>,
}

/// Makes one bounded line of what a program, a daemon or a server said.
pub fn line(text: &str) -> String {
    crate::model::Failure::new(crate::model::Reason::Internal, text.trim()).detail
}
