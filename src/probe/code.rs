//! Asks whether the site runs the code that lies on its disk: a `git pull` without a restart is found out at the next
//! traceback, or at the next worker that is recycled.
//!
//! When code came in is read from git's own log of `HEAD` (gitrepository-layout(5), `logs/HEAD`: old and new commit, who,
//! when, and after a tab what it was), not from the files' times; since when a process runs, from `/proc`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use procfs::process::{Process, all_processes};

use super::{Looking, Planned, Probe, Recorder, Shared};
use crate::changes::{Change, Changes, Kind};
use crate::model::duration::{print, print_measured};
use crate::model::{Failure, Family, Reason, Sight, Timestamp};
use crate::tasks;

static CHANGED: Family = Family::gauge("site_code_timestamp_seconds", "When the site's code last changed, in seconds since the epoch");
static OLDEST: Family = Family::gauge(
    "site_code_oldest_process_start_timestamp_seconds",
    "Since when the oldest process that runs the site's code runs, in seconds since the epoch",
);
static PROCESSES: Family = Family::gauge("site_code_processes", "Processes that run the site's code");
static OVERDUE: Family =
    Family::gauge("site_code_restart_overdue", "Whether processes still run the code of before its last change, longer than they may");

/// How much of git's log is read: its end.
const MAX_LOG: u64 = 64 * 1024;
/// Older changes of the code are no news.
const NEWS: Duration = Duration::from_secs(24 * 3600);
/// The most processes that are looked at.
const MAX_PROCESSES: usize = 20_000;
/// The kernel tells starts, and git changes, in whole seconds.
const CLOCKS: Duration = Duration::from_secs(2);
/// The most processes that are named.
const MAX_NAMED: usize = 5;
/// How much of a command line is told, in characters.
const MAX_COMMAND: usize = 80;

crate::config_struct! {
    /// Asks whether the processes of the site run the code that lies on its disk.
    pub struct CodeConfig {
        /// The folder that holds `.git`.
        repository: PathBuf,
        /// Regular expressions for the command lines of the processes that run this code, such as `gunicorn` or
        /// `celery .*worker`.
        processes: Vec<regex::Regex>,
        /// How long after a change they may still run the code of before.
        within: Duration = "15m",
    }
}

/// Builds the one target.
///
/// # Errors
/// No processes are named.
pub fn plan(config: &CodeConfig, _: &str, shared: &Shared) -> Result<Vec<Planned>, String> {
    if config.processes.is_empty() {
        return Err("processes: expected at least one regular expression for command lines, found none".to_owned());
    }
    Ok(Planned::only(Code { config: config.clone(), changes: shared.changes().clone(), looking: Looking::default() }))
}

struct Code {
    config: CodeConfig,
    changes: Changes,
    looking: Looking,
}

/// A change of `HEAD`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Move {
    at: Timestamp,
    from: String,
    to: String,
    by: String,
    what: String,
}

/// A process that runs the code.
#[derive(Debug)]
struct Running {
    pid: i32,
    since: Timestamp,
    command: String,
}

impl Probe for Code {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }
}

impl Code {
    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let CodeConfig { repository, processes, within } = &self.config;
        rec.waiting(Reason::AnswerTimeout, "waiting for the file system that holds the code");
        let (folder, patterns) = (repository.clone(), processes.clone());
        let (moves, running) = self.looking.at(move || (moves(&folder), running(&patterns))).await?;
        let place = repository.display();
        let moves = match moves {
            Ok(moves) => moves,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let remedy = format!("let Proctor's user read it, such as setfacl -R -m u:proctor:rX {place}/.git/logs");
                rec.sight(Sight::Blind { missing: format!("when the code of {place} changed: {error}"), remedy });
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let what = format!("{place}: expected a git repository with a log of HEAD (.git/logs/HEAD), found none");
                return Err(Failure::new(Reason::Missing, what));
            }
            Err(error) => return Err(Failure::new(Reason::Unavailable, format!("{place}: {error}"))),
        };
        let now = tasks::wall_now();
        for of in moves.iter().filter(|of| now.since(of.at) < NEWS) {
            let short = |commit: &str| commit.chars().take(8).collect::<String>();
            let detail = format!("{} → {} by {}: {}", short(&of.from), short(&of.to), of.by, of.what);
            self.changes.record(Change { at: of.at, kind: Kind::Deployed, subject: format!("code of {place}"), detail });
        }
        let Some(last) = moves.last() else {
            return Err(Failure::new(Reason::Missing, format!("{place}: git's log of HEAD holds no change")));
        };
        rec.set(&CHANGED, last.at.as_secs_f64());
        rec.set(&PROCESSES, running.len() as f64);
        let Some(oldest) = running.iter().map(|process| process.since).min() else {
            let patterns: Vec<&str> = processes.iter().map(regex::Regex::as_str).collect();
            let remedy = "start them, or correct processes; under hidepid or in a container Proctor must be let see them".to_owned();
            rec.sight(Sight::Blind { missing: format!("a process that runs the code: none is like {}", patterns.join(", ")), remedy });
            return Ok(());
        };
        rec.set(&OLDEST, oldest.as_secs_f64());
        let old: Vec<&Running> = running.iter().filter(|process| process.since + CLOCKS < last.at).collect();
        let overdue = !old.is_empty() && now.since(last.at) > *within;
        rec.set(&OVERDUE, f64::from(u8::from(overdue)));
        if !overdue {
            return Ok(());
        }
        for process in old.iter().take(MAX_NAMED) {
            rec.evidence(format!("pid {} runs for {}: {}", process.pid, print_measured(now.since(process.since)), process.command));
        }
        let what = format!(
            "{place}: its code changed {} ago ({} by {}), but {} of {} processes still run what was there before, the oldest for {}; expected a restart within {}",
            print_measured(now.since(last.at)),
            last.what,
            last.by,
            old.len(),
            running.len(),
            print_measured(now.since(oldest)),
            print(*within),
        );
        Err(Failure::new(Reason::Overdue, what))
    }
}

/// Reads the end of git's log of `HEAD`: every entry that moved it, the oldest first.
fn moves(repository: &Path) -> io::Result<Vec<Move>> {
    let git = repository.join(".git");
    // In a linked work tree `.git` is a file that names the folder (gitrepository-layout(5)).
    let folder = if std::fs::metadata(&git)?.is_file() {
        let mut text = String::new();
        File::open(&git)?.take(4096).read_to_string(&mut text)?;
        repository.join(text.strip_prefix("gitdir:").unwrap_or(&text).trim())
    } else {
        git
    };
    let mut file = File::open(folder.join("logs/HEAD"))?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG)))?;
    let mut bytes = Vec::new();
    file.take(MAX_LOG).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).lines().filter_map(entry).collect())
}

/// Reads `OLD NEW NAME <EMAIL> SECONDS ZONE\tWHAT`; what moves nothing is left out.
fn entry(line: &str) -> Option<Move> {
    let (head, what) = line.split_once('\t').unwrap_or((line, ""));
    let (from, rest) = head.split_once(' ')?;
    let (to, rest) = rest.split_once(' ')?;
    let (by, when) = rest.rsplit_once("> ")?;
    let by = by.split(" <").next().unwrap_or("");
    let seconds: i64 = when.split(' ').next()?.parse().ok()?;
    let commit = |text: &str| text.len() >= 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let wanted = commit(from) && commit(to) && from != to && (0..=i64::MAX / 1000).contains(&seconds);
    wanted.then(|| Move { at: Timestamp::from_secs(seconds), from: from.into(), to: to.into(), by: by.into(), what: what.into() })
}

/// Finds the processes that run the code. Of a gunicorn only the workers do: its master loads none of it (but with
/// `--preload`), and stays through a reload.
fn running(patterns: &[regex::Regex]) -> Vec<Running> {
    let boot = procfs::boot_time_secs().ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0);
    let look = |process: Process| {
        let command = process.cmdline().ok()?.join(" ");
        if command.is_empty() || !patterns.iter().any(|pattern| pattern.is_match(&command)) {
            return None;
        }
        let stat = process.stat().ok()?;
        let seconds = i64::try_from(stat.starttime / procfs::ticks_per_second()).ok()?;
        let master = command.contains("gunicorn") && !command.contains("--preload");
        let command = command.chars().take(MAX_COMMAND).collect();
        Some((stat.ppid, master, Running { pid: stat.pid, since: Timestamp::from_secs(boot + seconds), command }))
    };
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let all = all_processes().into_iter().flatten().flatten().take(MAX_PROCESSES).filter(|process| process.pid != own);
    let found: Vec<_> = all.filter_map(look).collect();
    let parents: BTreeSet<i32> = found.iter().map(|(parent, ..)| *parent).collect();
    let holds = |(_, master, process): (i32, bool, Running)| (!master || !parents.contains(&process.pid)).then_some(process);
    found.into_iter().filter_map(holds).collect()
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// A line of git's log.
    pub fn git_log(line: &str) {
        entry(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_gits_log_is_read_and_garbage_is_none() {
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        let read = |line: &str| entry(line).map(|of| format!("{} {} {} {}", of.at, of.to.len(), of.by, of.what));
        let line = format!("{a} {b} Ada > Lovelace <ada@example.org> 1700000000 +0100\tpull: Fast-forward");
        assert_eq!(read(&line).as_deref(), Some("2023-11-14T22:13:20Z 40 Ada > Lovelace pull: Fast-forward"));
        for none in [
            format!("{a} {a} A <a@b> 1700000000 +0100\tcheckout: moving from main to main"),
            format!("{a} {b} A <a@b> soon +0100\tx"),
            format!("{a} {b} A <a@b> 99999999999999999 +0100\tx"),
            format!("{a} {b}"),
            "\u{0}".to_owned(),
            String::new(),
            "x y z <> 1 2".to_owned(),
        ] {
            assert_eq!(read(&none), None, "{none:?}");
        }
    }
}
