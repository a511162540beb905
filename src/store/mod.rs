//! What must survive a crash: alert states, the notification log, the outbox, silences, attempts.
//!
//! The truth is in memory and written through: [`Store::commit`] applies a batch there and then, in one transaction,
//! to the disk. When the disk fails (full, read-only, corrupt), Proctor goes on from memory, says so, and writes
//! everything anew once the disk works again (invariant 3). Each record carries a CRC32, since SQLite does not notice
//! a flipped bit: a damaged record is dropped, counted and said.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::{Alert, Attempt};

/// Where a record is kept: one SQL table each, with the columns `key`, `body` (JSON) and `crc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Alert states.
    Alert,
    /// The notification log: what was last said of each group to each receiver.
    Notified,
    /// The outbox.
    Delivery,
    /// Silences.
    Silence,
    /// The hold and other things of which there is one each.
    Meta,
    /// Attempts at repairs.
    Attempt,
    /// What changed on the host.
    Change,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 7] = [Self::Alert, Self::Notified, Self::Delivery, Self::Silence, Self::Meta, Self::Attempt, Self::Change];

    /// Returns the name of the SQL table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Alert => "alerts",
            Self::Notified => "notified",
            Self::Delivery => "deliveries",
            Self::Silence => "silences",
            Self::Meta => "meta",
            Self::Attempt => "attempts",
            Self::Change => "changes",
        }
    }
}

/// Something that is kept, under a key that is unique in its table. Each room defines its own records.
pub trait Record: Serialize + DeserializeOwned {
    /// Where it is kept.
    const TABLE: Table;
    /// What it is kept under.
    fn key(&self) -> String;
}

impl Record for Alert {
    const TABLE: Table = Table::Alert;
    fn key(&self) -> String {
        self.fingerprint().to_string()
    }
}

impl Record for Attempt {
    const TABLE: Table = Table::Attempt;
    fn key(&self) -> String {
        self.id.clone()
    }
}

/// Changes that become durable together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch(Vec<(Table, String, Option<String>)>);

impl Batch {
    /// Begins an empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a record in place of the one under the same key.
    pub fn put<R: Record>(&mut self, record: &R) {
        match serde_json::to_string(record) {
            Ok(body) => self.0.push((R::TABLE, record.key(), Some(body))),
            // Only a map with keys that are no text can fail, and no record has one.
            Err(error) => tracing::error!(%error, table = R::TABLE.name(), "a record cannot be written as JSON"),
        }
    }

    /// Removes the record under a key.
    pub fn remove<R: Record>(&mut self, key: impl Into<String>) {
        self.0.push((R::TABLE, key.into(), None));
    }

    /// Says whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
