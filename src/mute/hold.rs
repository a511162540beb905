//! Holds: `proctor hold 15m` and `proctor hold run -- COMMAND`, for the minutes in which somebody works on the site.
//!
//! A hold always has an end: one that is forgotten, or whose command or connection is lost, ends by itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{Timestamp, duration, one_line};
use crate::store::{Record, Table};

/// The most holds at once.
pub const MAX_HOLDS: usize = 50;
/// The longest hold by time; who needs more needs a silence or maintenance.
pub const MAX_TIMED: Duration = Duration::from_secs(24 * 3600);
/// The longest hold by a command, from its start.
pub const MAX_COMMAND: Duration = Duration::from_secs(2 * 3600);
/// How long a hold lasts after its command: what was restarted needs a moment.
pub const AFTER_COMMAND: Duration = Duration::from_secs(120);
/// The longest reason, command and name, in characters each.
pub const MAX_TEXT: usize = 500;

/// What ends a hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldKind {
    /// A time.
    Timed,
    /// The end of a command, and two minutes.
    Command {
        /// The command as it was typed.
        line: String,
    },
}

/// One hold: while any is in force, nothing is mailed and nothing is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Unique.
    pub id: String,
    /// What ends it.
    pub kind: HoldKind,
    /// Who wants it.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ends at the latest: right at all times, also while its command lives.
    pub until: Timestamp,
    /// When its command ended.
    pub command_ended_at: Option<Timestamp>,
}

impl Record for Hold {
    const TABLE: Table = Table::Meta;
    const PREFIX: &'static str = "hold/";
    fn key(&self) -> String {
        Self::key_of(&self.id)
    }
}

impl Hold {
    /// Returns the key of a hold in the store.
    pub fn key_of(id: &str) -> String {
        format!("{}{id}", Self::PREFIX)
    }

    /// Says whether it is in force.
    pub fn active(&self, now: Timestamp) -> bool {
        self.started_at <= now && now < self.until
    }
}

/// Why a hold is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// It would not hold anything, or for too long.
    #[error("a hold lasts from 1s to {}, found {}: for longer, use a silence or maintenance", duration::print(MAX_TIMED), duration::print(*.0))]
    Length(Duration),
    /// There are too many.
    #[error("there are {MAX_HOLDS} holds already: end some")]
    Full,
    /// There is none of that id, or it is over.
    #[error("there is no hold {0:?} in force")]
    Unknown(String),
}

/// All holds in force, and those that just ended.
#[derive(Clone, Debug, Default)]
pub struct Holds(Vec<Hold>);

impl Holds {
    /// Takes over what the store kept.
    pub fn new(kept: Vec<Hold>) -> Self {
        Self(kept.into_iter().take(MAX_HOLDS).collect())
    }

    /// Begins a hold that ends at a time. Returns the record to write.
    ///
    /// # Errors
    /// [`HoldError::Length`], [`HoldError::Full`].
    pub fn hold_for(&mut self, id: impl Into<String>, length: Duration, by: &str, reason: &str, now: Timestamp) -> Result<Hold, HoldError> {
        if length < Duration::from_secs(1) || length > MAX_TIMED {
            return Err(HoldError::Length(length));
        }
        self.add(id.into(), HoldKind::Timed, length, by, reason, now)
    }

    /// Begins a hold that ends two minutes after its command, at most [`MAX_COMMAND`] after its start. Returns the
    /// record to write.
    ///
    /// # Errors
    /// [`HoldError::Full`].
    pub fn hold_command(&mut self, id: impl Into<String>, line: &str, by: &str, reason: &str, now: Timestamp) -> Result<Hold, HoldError> {
        self.add(id.into(), HoldKind::Command { line: cut(line) }, MAX_COMMAND, by, reason, now)
    }

    fn add(&mut self, id: String, kind: HoldKind, length: Duration, by: &str, reason: &str, now: Timestamp) -> Result<Hold, HoldError> {
        if self.0.len() >= MAX_HOLDS {
            return Err(HoldError::Full);
        }
        let hold = Hold { id, kind, by: cut(by), reason: cut(reason), started_at: now, until: now + length, command_ended_at: None };
        self.0.push(hold.clone());
        Ok(hold)
    }

    /// Notes that the command of a hold ended, or that nobody knows any more whether it lives. Returns the record to
    /// write.
    ///
    /// # Errors
    /// [`HoldError::Unknown`].
    pub fn command_ended(&mut self, id: &str, now: Timestamp) -> Result<Hold, HoldError> {
        let hold = self.in_force(id, now)?;
        if hold.command_ended_at.is_none() {
            hold.command_ended_at = Some(now);
            hold.until = hold.until.min(now + AFTER_COMMAND);
        }
        Ok(hold.clone())
    }

    /// Lets a hold end `length` from now, sooner or later than it would. Returns the record to write.
    ///
    /// # Errors
    /// [`HoldError::Unknown`], [`HoldError::Length`].
    pub fn extend(&mut self, id: &str, length: Duration, now: Timestamp) -> Result<Hold, HoldError> {
        if length < Duration::from_secs(1) || length > MAX_TIMED {
            return Err(HoldError::Length(length));
        }
        let hold = self.in_force(id, now)?;
        hold.until = now + length;
        Ok(hold.clone())
    }

    /// Ends a hold now. Returns the record to write.
    ///
    /// # Errors
    /// [`HoldError::Unknown`].
    pub fn end(&mut self, id: &str, now: Timestamp) -> Result<Hold, HoldError> {
        let hold = self.in_force(id, now)?;
        hold.until = now;
        Ok(hold.clone())
    }

    fn in_force(&mut self, id: &str, now: Timestamp) -> Result<&mut Hold, HoldError> {
        self.0.iter_mut().find(|hold| hold.id == id && hold.active(now)).ok_or_else(|| HoldError::Unknown(id.to_owned()))
    }

    /// Returns those in force; the one that ends last comes first.
    pub fn active(&self, now: Timestamp) -> Vec<&Hold> {
        let mut active: Vec<_> = self.0.iter().filter(|hold| hold.active(now)).collect();
        active.sort_by_key(|hold| std::cmp::Reverse(hold.until));
        active
    }

    /// Returns until when nothing is said, if a hold is in force.
    pub fn until(&self, now: Timestamp) -> Option<Timestamp> {
        self.active(now).first().map(|hold| hold.until)
    }

    /// Says whether the last hold ended after `prev` and by `now`: then what is still broken is mailed at once.
    pub fn ended_since(&self, prev: Timestamp, now: Timestamp) -> bool {
        self.until(now).is_none() && self.0.iter().any(|hold| prev < hold.until && hold.until <= now)
    }

    /// Forgets those that ended at least an hour ago; returns the keys to remove from the store.
    pub fn prune(&mut self, now: Timestamp) -> Vec<String> {
        let (gone, kept) = self.0.drain(..).partition(|hold| now.since(hold.until) >= Duration::from_secs(3600));
        self.0 = kept;
        Vec::into_iter(gone).map(|hold: Hold| hold.key()).collect()
    }
}

/// One bounded line: the text comes from a person's shell and ends in mails.
fn cut(text: &str) -> String {
    one_line(text, MAX_TEXT)
}
