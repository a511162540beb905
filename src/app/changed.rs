//! Keeps what changed on the host: takes it back from the store, writes it down, and records what Proctor itself knows.

use std::time::Duration;

use super::{App, booting};
use crate::changes::packages::PackageLog;
use crate::changes::{Change, Changes, ChangesConfig, Kind};
use crate::metrics::{ByKind, Metrics};
use crate::model::labels::fnv1a;
use crate::store::{Batch, Record, Store, Table};
use crate::tasks::{self, Tasks};

/// How often the log of packages is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Two looks at the kernel's clock differ by less.
const SAME_BOOT: Duration = Duration::from_secs(120);

impl Record for Change {
    const TABLE: Table = Table::Change;
    fn key(&self) -> String {
        format!("{:016}-{:016x}", self.at.0, fnv1a([self.kind.as_str(), &self.subject, &self.detail]))
    }
}

/// Takes back what was known, and records that Proctor starts and when the host did.
pub(super) fn recall(store: &Store, changes: &Changes) {
    changes.restore(store.all());
    if let Some(at) = booting::boot_time() {
        let near = changes.between(at - SAME_BOOT, at + SAME_BOOT);
        if !near.iter().any(|change| change.kind == Kind::Booted) {
            changes.record(Change { at, kind: Kind::Booted, subject: "this host".to_owned(), detail: String::new() });
        }
    }
    own(changes, Kind::Started, concat!("version ", env!("CARGO_PKG_VERSION")));
}

/// Records what Proctor did itself.
pub(super) fn own(changes: &Changes, kind: Kind, detail: &str) {
    changes.record(Change { at: tasks::now(), kind, subject: "Proctor".to_owned(), detail: detail.to_owned() });
}

impl App {
    /// Writes down what is recorded, as long as Proctor runs.
    pub(super) fn keep_changes(&self) {
        let (changes, store, metrics) = (self.changes.clone(), self.store.clone(), self.metrics.clone());
        self.tasks.spawn_until_stopped("changes", async move { keep(&changes, &store, &metrics).await });
    }
}

async fn keep(changes: &Changes, store: &Store, metrics: &Metrics) {
    loop {
        let unsaved = changes.unsaved().await;
        let mut batch = Batch::new();
        for change in &unsaved.added {
            metrics.changes.get_or_create_owned(&ByKind { kind: change.kind.as_str() }).inc();
            batch.put(change);
        }
        unsaved.dropped.iter().for_each(|change| batch.remove::<Change>(change.key()));
        store.commit(batch).await;
    }
}

/// Follows the log of packages under one configuration.
pub(super) fn follow(config: &ChangesConfig, changes: &Changes, tasks: &Tasks) {
    let (path, changes) = (config.packages.clone(), changes.clone());
    tasks.spawn_until_stopped("package log", async move {
        let mut log = PackageLog::new(&path);
        let mut said = false;
        let mut tick = tokio::time::interval(LOOK_EVERY);
        loop {
            tick.tick().await;
            // On a dead network mount it may not come back: this task alone waits then.
            let Ok((followed, news)) = tokio::task::spawn_blocking(move || {
                let news = log.news();
                (log, news)
            })
            .await
            else {
                return;
            };
            log = followed;
            match news {
                Ok(news) => {
                    let recent = |change: &Change| tasks::now().since(change.at) < KEPT;
                    news.into_iter().filter(recent).for_each(|change| changes.record(change));
                }
                Err(error) if !said => {
                    said = true;
                    tracing::info!(path = %path.display(), %error, "mails cannot say which packages were upgraded");
                }
                Err(_) => {}
            }
        }
    });
}

/// Older news of packages are none.
const KEPT: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[tokio::test]
    async fn what_changed_is_known_after_a_restart_and_a_boot_is_recorded_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.db");
        let change = Change { at: Timestamp(7), kind: Kind::Deployed, subject: "code of /coursys".into(), detail: "abc".into() };
        for round in 0..2 {
            let metrics = std::sync::Arc::new(Metrics::new());
            let store = Store::open(Some(&path), metrics.clone()).expect("opens");
            let changes = Changes::default();
            recall(&store, &changes);
            let all = || changes.between(Timestamp(0), Timestamp(i64::MAX));
            assert_eq!(all().contains(&change), round == 1);
            changes.record(change.clone());
            let count = |kind| all().iter().filter(|change| change.kind == kind).count();
            assert_eq!((count(Kind::Booted), count(Kind::Started)), (1, round + 1));
            let keeping = keep(&changes, &store, &metrics);
            tokio::select! {
                () = keeping => unreachable!("it goes on"),
                () = async { while store.all::<Change>().len() < all().len() { tokio::task::yield_now().await } } => {}
            }
            store.close();
        }
    }
}
