//! Programs as probes, files, and their limits: on real programs and real files.

use std::path::Path;
use std::time::Duration;

use proctor::model::Reason;

use crate::support::process::{eventually, install};
use crate::support::watched::{Watched, failed, value, well};

/// A script in a folder of its own.
struct Script(tempfile::TempDir);

impl Script {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let script = Self(folder);
        std::fs::write(script.path("text"), format!("#!/bin/sh\n{text}\n")).expect("is written");
        install(Path::new(&script.path("text")), Path::new(&script.path("check")));
        script
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn watched(&self, more: &str) -> Watched {
        Watched::new(&format!("  c: {{timeout: 2s, command: {{argv: [{:?}, 'a b', '$HOME'], {more}}}}}", self.path("check")))
    }
}

#[tokio::test]
async fn a_program_is_judged_by_its_exit_code_and_what_it_said_is_kept() {
    for (script, more, expected, state) in [
        ("exit 0", "", None, 0.0),
        ("echo 'the queue is long' >&2; exit 1", "", Some((Reason::Mismatch, "ended with status 1 after")), 2.0),
        ("echo 'the queue is long'; exit 1", "", Some((Reason::Mismatch, "expected status 0: the queue is long")), 2.0),
        ("echo 'RAID WARNING | disks=2'; exit 1", "nagios: true", Some((Reason::Mismatch, "warns: RAID WARNING")), 1.0),
        ("echo 'RAID UNKNOWN'; exit 3", "nagios: true", Some((Reason::Unavailable, "cannot say: RAID UNKNOWN")), 3.0),
        ("echo 'RAID CRITICAL'; exit 2", "nagios: true", Some((Reason::Mismatch, "expected status 0: RAID CRITICAL")), 2.0),
        ("kill -9 $$", "", Some((Reason::Mismatch, "ended with signal 9")), 2.0),
    ] {
        let script_file = Script::new(script);
        let result = script_file.watched(more).run("c").await;
        match expected {
            None => well(&result, true),
            Some((reason, words)) => failed(&result, reason, words),
        }
        assert_eq!(value(&result, "command_state", ""), Some(state), "{script}");
        assert_eq!(value(&result, "command_up", ""), Some(f64::from(u8::from(expected.is_none()))), "{script}");
        assert!(expected.is_none() || script.starts_with("kill") || !result.evidence.is_empty(), "{script}");
    }
    let script = Script::new("echo \"DISK OK | /=2643MB;5948;5958 'used %'=56%\"");
    let result = script.watched("nagios: true").run("c").await;
    well(&result, true);
    assert_eq!(value(&result, "command_perfdata", "used %"), Some(0.56));
    let missing = Watched::new("  c: {command: {argv: [/nonexistent/check]}}").run("c").await;
    failed(&missing, Reason::Missing, "/nonexistent/check does not exist");
}

#[tokio::test]
async fn no_shell_reads_the_arguments_and_the_environment_is_clean() {
    let script = Script::new("echo \"$1|$2|$#|$HOME|$USER|$TOOL|$PWD\"; exit 1");
    let result = script.watched("environment: {TOOL: x}").run("c").await;
    failed(&result, Reason::Mismatch, "a b|$HOME|2|||x|/");
}

#[tokio::test]
async fn a_program_that_hangs_or_prints_without_end_is_killed_with_its_children_and_bounded() {
    let script = Script::new("trap '' TERM; sleep 987654 & echo $! > \"$(dirname \"$0\")/pid\"; while :; do sleep 1; done");
    let result = script.watched("").run("c").await;
    failed(&result, Reason::AnswerTimeout, "waiting for");
    let pid = std::fs::read_to_string(script.path("pid")).expect("it was written");
    let gone = || async { (!alive(pid.trim())).then_some(()) };
    eventually("its child is gone too", Duration::from_secs(10), gone).await;
    let script = Script::new("yes 'an endless answer'");
    let result = script.watched("").run("c").await;
    failed(&result, Reason::AnswerTimeout, "waiting for");
    // One that ends and leaves a child behind that holds its output open.
    let script = Script::new("sleep 987653 & echo $! > \"$(dirname \"$0\")/pid\"; head -c 3000000 /dev/zero; echo end; exit 1");
    let result = script.watched("").run("c").await;
    failed(&result, Reason::Mismatch, "expected status 0: end");
    assert!(result.evidence.iter().map(String::len).sum::<usize>() < 16 * 1024);
    let pid = std::fs::read_to_string(script.path("pid")).expect("it was written");
    eventually("what it left is gone", Duration::from_secs(10), || async { (!alive(pid.trim())).then_some(()) }).await;
}

/// Says whether a process runs; one that is dead and not yet waited for does not.
fn alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// A folder, and a probe `f` of its files.
fn files(config: &str) -> (tempfile::TempDir, Watched) {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config.replace("DIR", &folder.path().display().to_string());
    let watched = Watched::new(&format!("  f: {{file: {{{config}}}}}"));
    (folder, watched)
}

fn write(folder: &tempfile::TempDir, name: &str, size: usize, age: u64) {
    let file = std::fs::File::create(folder.path().join(name)).expect("is made");
    file.set_len(size as u64).expect("is sized");
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(age)).expect("is dated");
}

#[tokio::test]
async fn of_a_backup_the_newest_is_judged_by_its_age_and_size() {
    let (folder, watched) = files("paths: ['DIR/*.gz'], max_age: 1h, min_size: 100, max_size: 1000");
    failed(&watched.run("f").await, Reason::Missing, "*.gz: no such file");
    std::fs::create_dir(folder.path().join("a folder.gz")).expect("is made");
    write(&folder, "old.gz", 5, 90_000);
    failed(&watched.run("f").await, Reason::Overdue, "old.gz: expected it at most 1h old, found it 1d1h old");
    write(&folder, "new.gz", 5, 60);
    failed(&watched.run("f").await, Reason::Mismatch, "new.gz: expected at least 100 bytes, found 5");
    write(&folder, "new.gz", 5000, 60);
    failed(&watched.run("f").await, Reason::Mismatch, "new.gz: expected at most 1000 bytes, found 5000");
    write(&folder, "new.gz", 500, 60);
    let result = watched.run("f").await;
    well(&result, true);
    assert_eq!((value(&result, "file_glob_match_number", ""), value(&result, "file_stat_size_bytes", "")), (Some(2.0), Some(500.0)));
    std::fs::File::options()
        .write(true)
        .open(folder.path().join("new.gz"))
        .and_then(|file| file.set_modified(std::time::SystemTime::now() + Duration::from_secs(7200)))
        .expect("is dated");
    failed(&watched.run("f").await, Reason::Mismatch, "in the future");
}

#[tokio::test]
async fn locks_may_be_there_for_a_while_and_some_files_not_at_all() {
    let (folder, watched) = files("paths: ['DIR/*.lock'], expect: any, max_age: 1h, max_files: 2");
    well(&watched.run("f").await, true);
    write(&folder, "fresh.lock", 0, 10);
    well(&watched.run("f").await, true);
    write(&folder, "forgotten.lock", 0, 7200);
    failed(&watched.run("f").await, Reason::Overdue, "forgotten.lock: expected it at most 1h old");
    write(&folder, "forgotten.lock", 0, 10);
    write(&folder, "third.lock", 0, 10);
    failed(&watched.run("f").await, Reason::Backlog, "expected at most 2 files, found 3");
    let (folder, watched) = files("paths: [DIR/nologin], expect: absent");
    well(&watched.run("f").await, true);
    write(&folder, "nologin", 0, 10);
    failed(&watched.run("f").await, Reason::Mismatch, "nologin: expected no such file");
}
