//! The first look at a site, the minutes after a boot, and the first day of new rules: quiet until there is something true to
//! say.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::upgrade::Upgrade;
use crate::model::{Alert, Timestamp};
use crate::snapshot::Latest;
use crate::store::{Record, Table};

crate::config_struct! {
    /// Quiet until Proctor knows the site, and until the host has come up.
    pub struct StartupConfig {
        /// With an empty state: how long, and until every target ran three times, nothing is mailed; then one mail says
        /// what is well and what is not. `0s` means no first look.
        first_look: Duration = "5m",
        /// After a boot: how long, and until systemd is done with it, nothing is mailed or done. `0s` means no wait.
        after_boot: Duration = "5m",
        /// After an upgrade: how long what its new rules find is told in one mail, and nothing is done about it. `0s`
        /// means that new rules are as any other.
        new_rules: Duration = "1d",
    }
}

/// How often every target runs before the first look ends.
pub const FIRST_LOOK_RUNS: u64 = 3;

/// How many times their length the first look waits for slow targets, and the boot for systemd: a target that runs once
/// an hour, or a unit that hangs at boot, must not make Proctor silent.
pub const PATIENCE: u32 = 3;

/// What is kept of the first look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstLook {
    /// When it began: a crash does not begin it anew.
    pub began_at: Timestamp,
    /// When it was over.
    pub done_at: Option<Timestamp>,
    /// The episodes of the alerts that its mail told ([`Alert::episode`]), at most [`FirstLook::MAX_TOLD`].
    pub told: Vec<String>,
}

impl Record for FirstLook {
    const TABLE: Table = Table::Meta;
    fn key(&self) -> String {
        Self::KEY.to_owned()
    }
}

impl FirstLook {
    /// The key of the one record.
    pub const KEY: &'static str = "first_look";
    /// The most episodes that are remembered; what is beyond is told on its own.
    pub const MAX_TOLD: usize = 1000;
}

/// Why Proctor is quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiet {
    /// It looks at the site for the first time.
    FirstLook {
        /// Not before this moment.
        until: Timestamp,
        /// How many targets have not run three times.
        waiting: usize,
    },
    /// The host is starting.
    Booting,
    /// The host has just started.
    AfterBoot {
        /// Not before this moment.
        until: Timestamp,
    },
    /// The alert was told in the mail of the first look, or of new rules, and has not changed.
    Told,
    /// The rule came with an upgrade, and one mail tells what such rules find.
    NewRule {
        /// When it is a rule as any other.
        until: Timestamp,
    },
}

impl fmt::Display for Quiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstLook { until, waiting: 0 } => write!(f, "the first look at this site lasts until {until}"),
            Self::FirstLook { until, waiting } => {
                write!(f, "the first look at this site lasts until {until} and until {waiting} targets ran {FIRST_LOOK_RUNS} times")
            }
            Self::Booting => f.write_str("the host is starting"),
            Self::AfterBoot { until } => write!(f, "the host has just started: quiet until {until}"),
            Self::Told => f.write_str("told in the mail of the first look, or of new rules, and has not changed since"),
            Self::NewRule { until } => {
                write!(
                    f,
                    "its rule came with the last upgrade: until {until} one mail tells what such rules find, and nothing is done about it"
                )
            }
        }
    }
}

/// What the startup is decided by, besides the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartupView {
    /// How many targets have run less than [`FIRST_LOOK_RUNS`] times.
    pub waiting: usize,
    /// Whether systemd says `starting`; nothing where there is no systemd to ask.
    pub systemd_starting: Option<bool>,
}

impl StartupView {
    /// Counts the targets that have run too few times.
    pub fn of<'a>(targets: impl IntoIterator<Item = &'a Latest>, systemd_starting: Option<bool>) -> Self {
        Self { waiting: targets.into_iter().filter(|latest| latest.runs < FIRST_LOOK_RUNS).count(), systemd_starting }
    }
}

/// Follows the first look and the boot.
#[derive(Clone, Debug)]
pub struct Startup {
    first_look: Duration,
    after_boot: Duration,
    boot_time: Option<Timestamp>,
    record: FirstLook,
    /// Which rules are new.
    pub upgrade: Upgrade,
}

impl Startup {
    /// Goes on from what the store kept; with nothing kept the first look begins at `started_at`, and
    /// [`Startup::record`] is to be written.
    pub fn new(config: &StartupConfig, started_at: Timestamp, boot_time: Option<Timestamp>, kept: Option<FirstLook>) -> Self {
        let mut record = kept.unwrap_or(FirstLook { began_at: started_at, done_at: None, told: Vec::new() });
        // Where the clock was ahead when it began, it does not last until then.
        record.began_at = record.began_at.min(started_at);
        if config.first_look.is_zero() && record.done_at.is_none() {
            record.done_at = Some(started_at);
        }
        Self { first_look: config.first_look, after_boot: config.after_boot, boot_time, record, upgrade: Upgrade::default() }
    }

    /// The same, with what is known of new rules.
    #[must_use]
    pub fn with(self, upgrade: Upgrade) -> Self {
        Self { upgrade, ..self }
    }

    /// Returns what is to be kept.
    pub fn record(&self) -> &FirstLook {
        &self.record
    }

    /// Says why nothing at all is said or done now, if so.
    pub fn quiet(&self, view: StartupView, now: Timestamp) -> Option<Quiet> {
        if let Some(boot) = self.boot_time {
            let until = boot + self.after_boot;
            if view.systemd_starting == Some(true) && now < boot + self.after_boot * PATIENCE {
                return Some(Quiet::Booting);
            }
            if now < until {
                return Some(Quiet::AfterBoot { until });
            }
        }
        if self.record.done_at.is_some() {
            return None;
        }
        // While the site is not known, nothing is said, even when time and runs would allow it: the first look's own
        // mail comes first, and `finish` ends it.
        Some(Quiet::FirstLook { until: self.record.began_at + self.first_look, waiting: view.waiting })
    }

    /// Says whether the mail of the first look is due: all targets ran three times and `first_look` passed, and the
    /// host is up. Slow targets are waited for at most [`PATIENCE`] times as long.
    pub fn first_look_due(&self, view: StartupView, now: Timestamp) -> bool {
        let passed = now.since(self.record.began_at);
        matches!(self.quiet(view, now), Some(Quiet::FirstLook { .. }))
            && passed >= self.first_look
            && (view.waiting == 0 || passed >= self.first_look * PATIENCE)
    }

    /// Ends the first look with the alerts that its mail tells. Returns the record, to be written in one batch with
    /// that mail.
    pub fn finish_first_look<'a>(&mut self, told: impl IntoIterator<Item = &'a Alert>, now: Timestamp) -> FirstLook {
        self.record.done_at = Some(now);
        self.record.told = told.into_iter().map(Alert::episode).take(FirstLook::MAX_TOLD).collect();
        self.record.clone()
    }

    /// Says why one alert is not said now, if so: its rule is new, or it was told in the mail of the first look or of new
    /// rules and still is as it was then.
    pub fn of_alert(&self, alert: &Alert, now: Timestamp) -> Option<Quiet> {
        let fresh = self.upgrade.until(alert, now).filter(|_| alert.is_firing()).map(|until| Quiet::NewRule { until });
        fresh.or_else(|| (self.told(alert) || self.upgrade.told(alert)).then_some(Quiet::Told))
    }

    fn told(&self, alert: &Alert) -> bool {
        alert.is_firing() && !self.record.told.is_empty() && self.record.told.contains(&alert.episode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn a_first_look_that_began_while_the_clock_was_a_day_ahead_lasts_no_day() {
        let config: StartupConfig = from_text("f", "{}").expect("is right");
        let (now, ahead) = (Timestamp::from_secs(1_000_000), Timestamp::from_secs(1_000_000 + 86_400));
        let kept = FirstLook { began_at: ahead, done_at: None, told: Vec::new() };
        let startup = Startup::new(&config, now, None, Some(kept));
        let view = StartupView { waiting: 0, systemd_starting: None };
        assert!(!startup.first_look_due(view, now) && startup.first_look_due(view, now + config.first_look));
    }
}
