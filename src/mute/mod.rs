//! Why something is not said now. Pure: `now` is an argument, facts are handed in.
//!
//! The order of [`why`] is fixed, from what holds for everything to what holds for one alert, so that `explain` and
//! mails name the widest cause: startup, maintenance, hold, we cannot see, silence, acknowledgement, our own action, a failing
//! parent, a new rule, told already.

pub mod ack;
pub mod depends;
pub mod hold;
pub mod maintenance;
pub mod sight;
pub mod silence;
pub mod startup;
pub mod upgrade;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

pub use ack::{Ack, Acks};
pub use depends::{Depends, DependsError, Failing, FailingProbes};
pub use hold::{Hold, Holds};
pub use maintenance::{Maintenance, MaintenanceConfig, MaintenanceMark, MaintenanceWatch};
pub use sight::SightWatch;
pub use silence::{Silence, Silences};
pub use startup::{FirstLook, Quiet, Startup, StartupConfig, StartupView};
pub use upgrade::{KnownRules, Upgrade};

use crate::model::{Alert, Timestamp};

/// Why an alert is not said now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Muted {
    /// Proctor does not know the site yet, the host is starting, or the first look told it.
    Startup(Quiet),
    /// The site is down on purpose.
    Maintenance {
        /// The file that says so.
        file: PathBuf,
        /// When it was first seen; nothing once it is gone and the site settles.
        since: Option<Timestamp>,
    },
    /// Somebody works on the site.
    Held {
        /// When the last hold ends at the latest.
        until: Timestamp,
    },
    /// Proctor cannot see what it is about, or could not until just now.
    CannotSee {
        /// Why; nothing once it sees again.
        why: Option<String>,
    },
    /// A silence matches.
    Silenced {
        /// Its id.
        id: String,
        /// When it ends.
        until: Timestamp,
    },
    /// Somebody takes care of it.
    Acknowledged {
        /// Who.
        by: String,
        /// Since when.
        at: Timestamp,
        /// What others should know; may be empty.
        comment: String,
    },
    /// Our own repair causes it.
    OwnAction {
        /// The id of the attempt.
        attempt: String,
    },
    /// A probe that this one needs fails, and its mail lists this one.
    Parent {
        /// The root-most of those.
        root: String,
    },
}

/// For people: `not mailed: ` and this.
impl fmt::Display for Muted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Startup(quiet) => quiet.fmt(f),
            Self::Maintenance { file, since: Some(since) } => {
                write!(f, "the site is down on purpose: {} exists since {since}", file.display())
            }
            Self::Maintenance { file, since: None } => {
                write!(f, "the site comes back from maintenance: {} has just been removed", file.display())
            }
            Self::Held { until } => write!(f, "held until {until} at the latest"),
            Self::CannotSee { why: Some(why) } => write!(f, "Proctor cannot see: {why}"),
            Self::CannotSee { why: None } => f.write_str("Proctor could not see it until just now"),
            Self::Silenced { id, until } => write!(f, "silenced by {id} until {until}"),
            Self::Acknowledged { by, at, comment } if comment.is_empty() => write!(f, "acknowledged by {by} at {at}"),
            Self::Acknowledged { by, at, comment } => write!(f, "acknowledged by {by} at {at}: {comment}"),
            Self::OwnAction { attempt } => write!(f, "our own repair {attempt} causes it"),
            Self::Parent { root } => write!(f, "listed in the mail of {root}, which it needs"),
        }
    }
}

/// An action of ours that runs, or is over and settles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnAction {
    /// The id of the attempt.
    pub attempt: String,
    /// The probes that the action concerns; those below them are concerned too.
    pub probes: BTreeSet<String>,
    /// When it began.
    pub started_at: Timestamp,
    /// When what it causes must be over: its deadline plus the time to settle. An action that failed is left out, so
    /// that what it broke is said at once.
    pub settled_at: Timestamp,
}

impl OwnAction {
    /// Says whether an alert began because of this action and may still end by itself.
    pub fn causes(&self, alert: &Alert, depends: &Depends, now: Timestamp) -> bool {
        let window = self.started_at..self.settled_at;
        let concerns = |probe: &str| {
            self.probes.contains(probe) || depends.ancestors(probe).into_iter().any(|ancestor| self.probes.contains(ancestor))
        };
        window.contains(&alert.active_at) && now < self.settled_at && alert.probe().is_some_and(concerns)
    }
}

/// What [`why`] decides by.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The first look and the boot.
    pub startup: &'a Startup,
    /// What the startup is decided by.
    pub view: StartupView,
    /// Where maintenance stands.
    pub maintenance: &'a Maintenance,
    /// All holds.
    pub holds: &'a Holds,
    /// Whether Proctor sees beyond this host.
    pub sight: &'a SightWatch,
    /// All silences.
    pub silences: &'a Silences,
    /// All acknowledgements.
    pub acks: &'a Acks,
    /// Actions that run or settle.
    pub actions: &'a [OwnAction],
    /// Who needs whom.
    pub depends: &'a Depends,
    /// Who fails.
    pub failing: &'a FailingProbes,
}

/// Says why nothing about the whole site is said now, if so: startup, maintenance, hold.
pub fn why_site(facts: &Facts<'_>, now: Timestamp) -> Option<Muted> {
    let startup = facts.startup.quiet(facts.view, now).map(Muted::Startup);
    let maintenance = || match facts.maintenance {
        Maintenance::On { since, file } => Some(Muted::Maintenance { file: file.clone(), since: Some(*since) }),
        Maintenance::Settling { file, .. } => Some(Muted::Maintenance { file: file.clone(), since: None }),
        Maintenance::Off | Maintenance::Overdue { .. } => None,
    };
    let held = || facts.holds.until(now).map(|until| Muted::Held { until });
    startup.or_else(maintenance).or_else(held)
}

/// Says why an alert is not said now, if so; the first of: startup, maintenance, hold, we cannot see,
/// silence, acknowledgement, our own action, a failing parent, a new rule, told in the first look.
///
/// It answers for an end as for a beginning: whether the end of something that was mailed is told anyway is decided by
/// who knows what was mailed. Maintenance is about the site: alerts about Proctor itself ([`about_proctor`]) pass it.
pub fn why(alert: &Alert, facts: &Facts<'_>, now: Timestamp) -> Option<Muted> {
    let site = why_site(facts, now).filter(|muted| !(matches!(muted, Muted::Maintenance { .. }) && about_proctor(alert)));
    let held = || facts.holds.until(now).map(|until| Muted::Held { until });
    let unseen = || facts.sight.hides(alert, now).then(|| Muted::CannotSee { why: facts.sight.lost().map(|(_, why)| why.clone()) });
    let silenced = || {
        let silence = facts.silences.mutes(&alert.labels, now)?;
        Some(Muted::Silenced { id: silence.id.clone(), until: silence.ends_at })
    };
    let acknowledged = || {
        let ack = facts.acks.of(alert)?;
        Some(Muted::Acknowledged { by: ack.by.clone(), at: ack.at, comment: ack.comment.clone() })
    };
    let own = || {
        let action = facts.actions.iter().find(|action| action.causes(alert, facts.depends, now))?;
        Some(Muted::OwnAction { attempt: action.attempt.clone() })
    };
    let parent = || {
        let root = facts.depends.told_by(alert.probe()?, alert.fired_at.unwrap_or(alert.active_at), facts.failing, now)?;
        Some(Muted::Parent { root: root.to_owned() })
    };
    let told = || facts.startup.of_alert(alert, now).map(Muted::Startup);
    site.or_else(held).or_else(unseen).or_else(silenced).or_else(acknowledged).or_else(own).or_else(parent).or_else(told)
}

/// Says whether an alert is about Proctor itself and not about the site: it names no probe, and its name says so.
pub fn about_proctor(alert: &Alert) -> bool {
    alert.probe().is_none() && alert.name().starts_with("Proctor")
}
