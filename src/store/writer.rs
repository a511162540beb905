//! The thread that writes: applies batches in order, and brings the disk up to date again after it failed.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustix::fs::FlockOperation;
use tokio::sync::oneshot;

use super::sqlite::{Change, Disk};
use super::{Committed, Shared, StoreError};

/// How often a disk that failed is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// The most batches that share one transaction.
const MAX_TOGETHER: usize = 64;

/// The lock on the state. It ends with this, and not with the last copy of its descriptor: a process that is being started
/// meanwhile has one until it runs its own program.
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.0, FlockOperation::Unlock) {
            tracing::debug!(%error, "the lock of the state ends with the process");
        }
    }
}

/// What the writer is told.
pub(super) enum Job {
    /// Make these changes durable.
    Apply(Vec<Change>, oneshot::Sender<Committed>),
    /// Write what waits and end.
    Close(SyncSender<()>),
}

/// Runs until it is told to close, or until the last handle of the store is gone.
pub(super) fn run(path: &Path, mut disk: Option<Disk>, mut lock: Option<Lock>, shared: &Arc<Shared>, jobs: &Receiver<Job>) {
    loop {
        let mut batches = Vec::new();
        let mut closing = None;
        match jobs.recv_timeout(RETRY_EVERY) {
            Ok(Job::Apply(changes, answer)) => batches.push((changes, answer)),
            Ok(Job::Close(done)) => closing = Some(done),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while closing.is_none() && !batches.is_empty() && batches.len() < MAX_TOGETHER {
            match jobs.try_recv() {
                Ok(Job::Apply(changes, answer)) => batches.push((changes, answer)),
                Ok(Job::Close(done)) => closing = Some(done),
                Err(_) => break,
            }
        }
        let behind = std::mem::take(&mut *shared.behind.lock().unwrap_or_else(PoisonError::into_inner));
        let written = match &mut disk {
            Some(open) if !behind => open.apply(batches.iter().flat_map(|(changes, _)| changes)),
            // Everything is written anew from memory, which holds these batches too.
            _ => rewrite(path, &mut disk, &mut lock, shared),
        };
        let committed = match written {
            Ok(()) => {
                shared.set_degraded(None);
                Committed::Durable
            }
            Err(error) => {
                disk = None;
                shared.set_degraded(Some(error.to_string()));
                Committed::InMemory
            }
        };
        for (_, answer) in batches {
            // Whoever asked may have gone.
            answer.send(committed).ok();
        }
        if let Some(done) = closing {
            // The file before the lock, and both before the answer: whoever waited may open it at once.
            drop(disk);
            drop(lock);
            done.send(()).ok();
            return;
        }
    }
}

fn rewrite(path: &Path, disk: &mut Option<Disk>, lock: &mut Option<Lock>, shared: &Shared) -> Result<(), super::sqlite::DiskError> {
    if lock.is_none() {
        *lock = take_lock(path).map_err(|error| std::io::Error::other(error.to_string()))?;
        if lock.is_none() {
            return Err(std::io::Error::other(format!("{} cannot be written", lock_path(path).display())).into());
        }
    }
    let open = match disk.take() {
        Some(open) => open,
        None => match super::sqlite::open(path) {
            Ok((Some(open), _)) => open,
            Ok((None, loaded)) => return Err(std::io::Error::other(loaded.failure.unwrap_or_default()).into()),
            Err(error) => return Err(std::io::Error::other(error.to_string()).into()),
        },
    };
    let rows = shared.rows.lock().unwrap_or_else(PoisonError::into_inner).clone();
    open.replace(&rows)?;
    *disk = Some(open);
    Ok(())
}

fn lock_path(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.lock", path.display()))
}

/// Locks the state for this process; nothing where the lock file cannot be written.
///
/// # Errors
/// [`StoreError::InUse`].
pub(super) fn take_lock(path: &Path) -> Result<Option<Lock>, StoreError> {
    let Ok(mut file) = File::options().read(true).write(true).create(true).truncate(false).open(lock_path(path)) else { return Ok(None) };
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut text = String::new();
        let pid = Read::by_ref(&mut file).take(20).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
        return Err(StoreError::InUse { path: path.to_owned(), pid });
    }
    // The number is only for the message of a second Proctor; a full disk must not matter.
    let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = written {
        tracing::debug!(%error, "the lock file does not say whose it is");
    }
    Ok(Some(Lock(file)))
}
