//! What survives: kill -9, a damaged file, a full disk.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use proctor::metrics::Metrics;
use proctor::store::{Batch, Committed, Record, Store, StoreError, Table};
use serde::{Deserialize, Serialize};

use crate::support::process::eventually;
use crate::support::tmpfs::Tmpfs;

/// A record of the tests.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Note {
    id: u64,
    text: String,
}

impl Record for Note {
    const TABLE: Table = Table::Change;
    fn key(&self) -> String {
        format!("{:08}", self.id)
    }
}

fn note(id: u64) -> Note {
    Note { id, text: format!("text {id} {}", "x".repeat(50)) }
}

fn open(path: &Path) -> (Store, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    (Store::open(Some(path), metrics.clone()).expect("it opens"), metrics)
}

async fn put(store: &Store, id: u64) -> Committed {
    let mut batch = Batch::new();
    batch.put(&note(id));
    store.commit(batch).await
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_close_and_what_was_removed_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("made/state.db");
    let (store, _) = open(&path);
    for id in 0..10 {
        assert_eq!(put(&store, id).await, Committed::Durable);
    }
    let mut batch = Batch::new();
    batch.remove::<Note>(note(3).key());
    assert_eq!(store.commit(batch).await, Committed::Durable);
    store.close();
    assert_eq!(put(&store, 99).await, Committed::InMemory, "after a close only memory is left");
    let (store, _) = open(&path);
    assert_eq!(store.all::<Note>().iter().map(|note| note.id).collect::<Vec<_>>(), [0, 1, 2, 4, 5, 6, 7, 8, 9]);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_second_proctor_on_the_same_state_is_refused_and_told_who_holds_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.db");
    let (store, _) = open(&path);
    let error = Store::open(Some(&path), Arc::new(Metrics::new())).expect_err("it is in use");
    assert!(error.to_string().contains(&format!("is in use by another Proctor (process {})", std::process::id())), "{error}");
    store.close();
    drop(store);
    assert!(matches!(Store::open(Some(folder.path()), Arc::new(Metrics::new())), Err(StoreError::NotAFile { .. })));
}

/// Not a test of its own: the child of the next one, which commits until it is killed.
#[tokio::test]
async fn child_that_commits_until_it_is_killed() {
    let Some(path) = std::env::var_os("PROCTOR_TEST_COMMITS") else { return };
    let (store, _) = open(Path::new(&path));
    for id in store.all::<Note>().len() as u64.. {
        assert_eq!(put(&store, id).await, Committed::Durable);
        println!("\ncommitted {id}");
    }
}

#[test]
fn kill_9_loses_nothing_that_was_committed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.db");
    let mut acknowledged = 0;
    for round in 0..30u64 {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "--nocapture", "durability::child_that_commits_until_it_is_killed"])
            .env("PROCTOR_TEST_COMMITS", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let ids = lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("committed ")?.parse::<u64>().ok());
        // Between 1 and 16 commits, so that kills hit the log at many lengths.
        for id in ids.take(1 + (round * 7 % 16) as usize) {
            acknowledged = id + 1;
        }
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }
    let (store, metrics) = open(&path);
    let ids: Vec<u64> = store.all::<Note>().iter().map(|note| note.id).collect();
    assert!(acknowledged > 100, "{acknowledged}");
    assert!(ids.len() as u64 >= acknowledged, "{} of {acknowledged} are there", ids.len());
    assert!(ids.iter().copied().eq(0..ids.len() as u64));
    assert_eq!(metrics.state_records_dropped.get(), 0);
}

#[tokio::test]
async fn a_damaged_file_never_gives_a_wrong_record_and_never_stops_a_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.db");
    let (store, _) = open(&path);
    for id in 0..200 {
        put(&store, id).await;
    }
    store.close();
    drop(store);
    let whole = std::fs::read(&path).expect("it is there");
    let mut lost = 0;
    for turn in 0..150usize {
        let place = folder.path().join(format!("damaged-{turn}"));
        std::fs::create_dir(&place).expect("it can be made");
        let path = place.join("state.db");
        let mut bytes = whole.clone();
        match turn % 10 {
            0 => bytes.truncate(bytes.len() * turn / 160),
            1 => bytes[..100].fill(turn as u8),
            _ => {
                // A fixed walk over the whole file: the same on every run.
                let bit = (turn * 7919 * 31) % (bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        std::fs::write(&path, bytes).expect("it can be written");
        let (store, metrics) = open(&path);
        let notes = store.all::<Note>();
        assert!(notes.iter().all(|found| *found == note(found.id)), "turn {turn}: a wrong record");
        if notes.len() < 200 {
            lost += 1;
            let said = !store.notices().is_empty() || metrics.state_records_dropped.get() > 0;
            assert!(said || turn % 10 == 0, "turn {turn}: {} of 200 records, and nothing is said", notes.len());
        }
        assert_eq!(store.degraded(), None, "turn {turn}");
        assert_eq!(put(&store, 1000).await, Committed::Durable, "turn {turn}");
        store.close();
    }
    assert!(lost > 10, "the damage did damage: {lost}");
}

#[tokio::test]
async fn a_full_disk_degrades_and_is_whole_again_within_5_s_of_space() {
    let Some(disk) = Tmpfs::mount("2m") else { return };
    let path = disk.path().join("state.db");
    let (store, metrics) = open(&path);
    assert_eq!(put(&store, 0).await, Committed::Durable);
    // Filled to the last byte by somebody else: writing ends with ENOSPC.
    std::fs::write(disk.path().join("filler"), vec![0u8; 4 << 20]).expect_err("the disk is full");
    let mut id = 1;
    // The log may have some room of its own left.
    while put(&store, id).await == Committed::Durable {
        id += 1;
        assert!(id < 20_000, "the disk is full");
    }
    assert!(store.degraded().is_some());
    assert_eq!(metrics.state_degraded.get(), 1);
    assert_eq!(put(&store, id + 1).await, Committed::InMemory);
    assert_eq!(store.all::<Note>().len() as u64, id + 2, "memory goes on");
    disk.remount("size=64m");
    eventually("whole again", Duration::from_secs(5), || async { store.degraded().is_none().then_some(()) }).await;
    assert_eq!(metrics.state_degraded.get(), 0);
    assert_eq!(put(&store, id + 2).await, Committed::Durable);
    store.close();
    drop(store);
    let (store, _) = open(&path);
    assert_eq!(store.all::<Note>().len() as u64, id + 3, "all of it is there, what was only in memory too");
    store.close();
}

#[tokio::test]
async fn on_a_read_only_mount_it_starts_degraded_with_what_it_can_read() {
    let Some(disk) = Tmpfs::mount("8m") else { return };
    let path = disk.path().join("state.db");
    let (store, _) = open(&path);
    put(&store, 7).await;
    store.close();
    drop(store);
    disk.remount("ro");
    let (store, metrics) = open(&path);
    assert!(store.degraded().is_some());
    assert_eq!(metrics.state_degraded.get(), 1);
    assert_eq!(store.all::<Note>(), [note(7)]);
    assert_eq!(put(&store, 8).await, Committed::InMemory);
    disk.remount("rw");
    eventually("whole again", Duration::from_secs(5), || async { store.degraded().is_none().then_some(()) }).await;
    store.close();
    drop(store);
    let (store, _) = open(&path);
    assert_eq!(store.all::<Note>().len(), 2);
    store.close();
}
