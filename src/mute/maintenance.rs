//! Maintenance: the site is down on purpose, which a file says, such as the one that makes nginx answer 503.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::Timestamp;
use crate::store::{Record, Table};

crate::config_struct! {
    /// The site is down on purpose while one of these files exists.
    pub struct MaintenanceConfig {
        /// Files that mean maintenance while one of them exists.
        files: Vec<PathBuf> = "[]",
        /// Longer than this is no longer on purpose, and is mailed.
        max: Duration = "4h",
        /// How long the site may take to come back once the file is gone.
        settle: Duration = "3m",
    }
}

/// Where maintenance stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Maintenance {
    /// None.
    Off,
    /// The site is down on purpose: nothing is said, nothing is done.
    On {
        /// When the file was first seen.
        since: Timestamp,
        /// The file.
        file: PathBuf,
    },
    /// The file is gone, the site comes back: nothing is said, nothing is done yet.
    Settling {
        /// When the site should be well again.
        until: Timestamp,
        /// The file that was there.
        file: PathBuf,
    },
    /// Forgotten: said out loud, and everything is said again; still nothing is done.
    Overdue {
        /// When the file was first seen.
        since: Timestamp,
        /// The file.
        file: PathBuf,
    },
}

impl Maintenance {
    /// Says whether what is wrong with the site is not said now.
    pub fn mutes(&self) -> bool {
        matches!(self, Self::On { .. } | Self::Settling { .. })
    }

    /// Says whether nothing may be repaired now: also when forgotten, since the file still stands in the way.
    pub fn forbids_actions(&self) -> bool {
        *self != Self::Off
    }
}

/// What is kept of maintenance, so that a restart does not begin it anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceMark {
    /// The file that was seen first.
    pub file: PathBuf,
    /// When it was seen first.
    pub since: Timestamp,
    /// When no file was left.
    pub gone_at: Option<Timestamp>,
}

impl Record for MaintenanceMark {
    const TABLE: Table = Table::Meta;
    fn key(&self) -> String {
        Self::KEY.to_owned()
    }
}

impl MaintenanceMark {
    /// The key of the one mark.
    pub const KEY: &'static str = "maintenance";
}

/// Follows the files.
#[derive(Clone, Debug)]
pub struct MaintenanceWatch {
    max: Duration,
    settle: Duration,
    mark: Option<MaintenanceMark>,
}

impl MaintenanceWatch {
    /// Goes on from what the store kept.
    pub fn new(config: &MaintenanceConfig, kept: Option<MaintenanceMark>) -> Self {
        Self { max: config.max, settle: config.settle, mark: kept }
    }

    /// Takes in which of the files exist now, in the order of the configuration. A file that cannot be looked at does
    /// not exist. Returns whether [`MaintenanceWatch::mark`] is another than before and is to be written.
    ///
    /// A file that comes back while the site settles goes on from the first `since`: one that comes and goes for ever
    /// must not mute for ever.
    pub fn look(&mut self, existing: &[impl AsRef<Path>], now: Timestamp) -> bool {
        let before = self.mark.clone();
        let file = existing.first().map(|file| file.as_ref().to_owned());
        self.mark = match (self.mark.take(), file) {
            (None, file) => file.map(|file| MaintenanceMark { file, since: now, gone_at: None }),
            (Some(mark), Some(_)) if mark.gone_at.is_none_or(|gone| now < gone + self.settle) => {
                Some(MaintenanceMark { gone_at: None, ..mark })
            }
            (Some(_), Some(file)) => Some(MaintenanceMark { file, since: now, gone_at: None }),
            (Some(mark), None) => {
                let gone = mark.gone_at.unwrap_or(now);
                (now < gone + self.settle).then_some(MaintenanceMark { gone_at: Some(gone), ..mark })
            }
        };
        self.mark != before
    }

    /// Returns what is to be kept: to be put where there is one, else its key is to be removed.
    pub fn mark(&self) -> Option<&MaintenanceMark> {
        self.mark.as_ref()
    }

    /// Says where maintenance stands.
    pub fn state(&self, now: Timestamp) -> Maintenance {
        match &self.mark {
            None => Maintenance::Off,
            Some(MaintenanceMark { file, since, gone_at: None }) if now.since(*since) < self.max => {
                Maintenance::On { since: *since, file: file.clone() }
            }
            Some(MaintenanceMark { file, since, gone_at: None }) => Maintenance::Overdue { since: *since, file: file.clone() },
            Some(MaintenanceMark { file, gone_at: Some(gone), .. }) if now < *gone + self.settle => {
                Maintenance::Settling { until: *gone + self.settle, file: file.clone() }
            }
            Some(_) => Maintenance::Off,
        }
    }
}
