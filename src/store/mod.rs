//! What must survive a crash: alert states, the notification log, the outbox, silences, attempts.
//!
//! The truth is in memory and written through: [`Store::commit`] applies a batch there and then, in one transaction,
//! to the disk. When the disk fails (full, read-only, corrupt), Proctor goes on from memory, says so, and writes
//! everything anew once the disk works again (invariant 3). Each record carries a CRC32, since SQLite does not notice
//! a flipped bit: a damaged record is dropped, counted and said.

mod sqlite;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::metrics::Metrics;
use crate::model::{Alert, Attempt};

/// The most batches that wait for the disk; beyond it everything is written anew once it is free.
const MAX_WAITING: usize = 256;
/// The most notices that are kept.
const MAX_NOTICES: usize = 100;
/// How long a close waits for the disk.
pub const CLOSE_WITHIN: Duration = Duration::from_secs(2);

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
    /// What the keys of this kind begin with, where a table holds several kinds.
    const PREFIX: &'static str = "";
    /// What it is kept under; begins with [`Record::PREFIX`].
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

/// Why the state cannot be opened at all; everything else opens degraded.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another Proctor holds it.
    #[error("{} is in use by another Proctor{}: stop that one, or give this one a state.path of its own", path.display(), holder(*pid))]
    InUse {
        /// The state.
        path: PathBuf,
        /// Who holds it, if known.
        pid: Option<u32>,
    },
    /// A newer Proctor wrote it.
    #[error("{} has version {found}, this Proctor knows up to {known}: start the newer Proctor again, or move the file away", path.display())]
    TooNew {
        /// The state.
        path: PathBuf,
        /// The version of the file.
        found: u32,
        /// The newest version that we know.
        known: u32,
    },
    /// The path is no file.
    #[error("{}: expected a file or nothing, found {found}: correct state.path", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// On the disk: it survives a crash and a power loss.
    Durable,
    /// In memory only: the disk fails, or the store has none. It is written once the disk works again.
    InMemory,
}

/// What the handles and the writer share.
#[derive(Debug)]
struct Shared {
    rows: Mutex<sqlite::Rows>,
    /// Set when a batch found no room in the queue: the disk is behind memory.
    behind: Mutex<bool>,
    degraded: Mutex<Option<String>>,
    notices: Mutex<Vec<String>>,
    metrics: Arc<Metrics>,
}

impl Shared {
    fn set_degraded(&self, why: Option<String>) {
        let mut degraded = self.degraded.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*degraded, &why) {
            (None, Some(why)) => tracing::error!(why, "the state cannot be written: Proctor goes on from memory and repairs nothing"),
            (Some(_), None) => tracing::info!("the state is written again, whole"),
            _ => {}
        }
        self.metrics.state_degraded.set(i64::from(why.is_some()));
        *degraded = why;
    }

    fn note(&self, dropped: u64, notices: impl IntoIterator<Item = String>) {
        self.metrics.state_records_dropped.inc_by(dropped);
        let mut kept = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        for notice in notices {
            tracing::error!("{notice}");
            if kept.len() < MAX_NOTICES {
                kept.push(notice);
            }
        }
    }
}

/// The state. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
    jobs: Arc<Mutex<Option<SyncSender<writer::Job>>>>,
}

impl Store {
    /// Opens the state, or begins one; without a path it lives in memory only. Blocks on the disk: call it at the
    /// start. Whatever is wrong with the disk or the file opens degraded or anew ([`Store::degraded`],
    /// [`Store::notices`]).
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(path: Option<&Path>, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            rows: Mutex::default(),
            behind: Mutex::default(),
            degraded: Mutex::default(),
            notices: Mutex::default(),
            metrics,
        });
        let Some(path) = path else { return Ok(Self { shared, jobs: Arc::default() }) };
        if path.exists() && !path.is_file() {
            let found = if path.is_dir() { "a folder" } else { "a device, FIFO or socket" };
            return Err(StoreError::NotAFile { path: path.to_owned(), found });
        }
        // The folder may have to be made before there is a place for the lock; a failure shows when opening.
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            use std::os::unix::fs::DirBuilderExt;
            drop(std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder));
        }
        let lock = writer::take_lock(path)?;
        let (disk, loaded) = sqlite::open(path)?;
        *shared.rows.lock().unwrap_or_else(PoisonError::into_inner) = loaded.rows;
        shared.note(loaded.dropped, loaded.notices);
        if disk.is_none() {
            shared.set_degraded(Some(loaded.failure.unwrap_or_else(|| "the file cannot be opened".to_owned())));
        }
        let (jobs, waiting) = sync_channel(MAX_WAITING);
        let (path, shares) = (path.to_owned(), shared.clone());
        let writer = std::thread::Builder::new().name("store".to_owned());
        let started = writer.spawn(move || writer::run(&path, disk, lock, &shares, &waiting));
        if let Err(error) = started {
            shared.set_degraded(Some(format!("no thread can be started: {error}")));
        }
        Ok(Self { shared, jobs: Arc::new(Mutex::new(Some(jobs))) })
    }

    /// Returns all records of a kind, by key. One that cannot be decoded is dropped, counted and noted.
    pub fn all<R: Record>(&self) -> Vec<R> {
        let mut rows = self.shared.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wrong = Vec::new();
        let begin = (R::TABLE, R::PREFIX.to_owned());
        let kind = rows.range(begin..).take_while(|((table, key), _)| *table == R::TABLE && key.starts_with(R::PREFIX));
        let records =
            kind.filter_map(|(key, body)| serde_json::from_str(body).map_err(|error| wrong.push((key.clone(), error))).ok()).collect();
        for (key, _) in &wrong {
            rows.remove(key);
        }
        drop(rows);
        if !wrong.is_empty() {
            let told = wrong.iter().map(|((table, key), error)| {
                format!("A record of the state was not understood and left out ({} {key}: {error}).", table.name())
            });
            self.shared.note(wrong.len() as u64, told);
        }
        records
    }

    /// Returns the record under a key.
    pub fn get<R: Record>(&self, key: &str) -> Option<R> {
        let rows = self.shared.rows.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::from_str(rows.get(&(R::TABLE, key.to_owned()))?).ok()
    }

    /// Applies a batch to memory at once, then to the disk in one transaction, and says what became of it.
    pub async fn commit(&self, batch: Batch) -> Committed {
        let (answer, committed) = tokio::sync::oneshot::channel();
        {
            // Memory and queue change under one lock, so that the disk sees batches in the order of memory.
            let mut rows = self.shared.rows.lock().unwrap_or_else(PoisonError::into_inner);
            for (table, key, body) in &batch.0 {
                match body {
                    Some(body) => drop(rows.insert((*table, key.clone()), body.clone())),
                    None => drop(rows.remove(&(*table, key.clone()))),
                }
            }
            let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(jobs) = &*jobs else { return Committed::InMemory };
            if jobs.try_send(writer::Job::Apply(batch.0, answer)).is_err() {
                *self.shared.behind.lock().unwrap_or_else(PoisonError::into_inner) = true;
                return Committed::InMemory;
            }
        }
        committed.await.unwrap_or(Committed::InMemory)
    }

    /// Says why the state is not written, while it is not. A store without a path is never degraded.
    pub fn degraded(&self) -> Option<String> {
        self.shared.degraded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what was lost or set aside since the start, as lines for a mail; at most 100.
    pub fn notices(&self) -> Vec<String> {
        self.shared.notices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes what waits and closes the file; blocks at most [`CLOSE_WITHIN`]. After that commits reach memory only.
    pub fn close(&self) {
        let Some(jobs) = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let (done, closed) = sync_channel(1);
        if jobs.send(writer::Job::Close(done)).is_ok() && closed.recv_timeout(CLOSE_WITHIN).is_err() {
            tracing::error!("the disk did not take the state in time");
        }
    }
}
