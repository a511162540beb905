//! What `/proc` says of gunicorn: its workers, whether they die as they start, and the queue in another network namespace.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use procfs::net::TcpState;

use crate::client::process::{self, Look, Running};

/// Which process it is: its number, and when it began.
pub(super) type Who = (i32, u64);

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// gunicorn's master.
    pub(super) master: Option<Who>,
    /// Its workers.
    pub(super) workers: Vec<Running>,
    /// The queue at the port, in the master's network namespace.
    pub(super) queue: Option<Waiting>,
    /// Connections that were turned away since all queues of the master's network namespace began.
    pub(super) overflows: Option<u64>,
    /// What cannot be seen, and what would help.
    pub(super) unseen: Option<(String, String)>,
}

/// Who waits at a port of a process' network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// The process.
    pub(super) pid: i32,
    /// The port, as it is there.
    pub(super) port: u16,
    /// The number of the socket that listens.
    pub(super) inode: u64,
    /// Connections that no process has taken.
    pub(super) waiting: u32,
    /// Connections that one has taken.
    pub(super) taken: usize,
}

/// Looks. It blocks as reading `/proc` does. Without a pid file only this network namespace is looked at.
pub(super) fn look(pid_file: Option<&Path>, port: Option<u16>) -> Seen {
    let mut seen = Seen::default();
    let Some(file) = pid_file else {
        seen.overflows = overflows("self");
        return seen;
    };
    let unseen = |why: String, remedy: String| Some((format!("gunicorn's processes: {why}"), remedy));
    let pid = match process::pid_in(file) {
        Ok(pid) => pid,
        Err(error) => {
            let remedy = match error.kind() {
                std::io::ErrorKind::PermissionDenied => process::remedy(file),
                _ => format!("let gunicorn write it: --pid {}", file.display()),
            };
            seen.unseen = unseen(format!("{}: {error}", file.display()), remedy);
            return seen;
        }
    };
    match process::look(pid) {
        Look::Runs(_) => {}
        Look::Gone => {
            seen.unseen = unseen(format!("{} names process {pid}, which is gone", file.display()), "is gunicorn up?".to_owned());
            return seen;
        }
        Look::Hidden => {
            let remedy = "start Proctor in gunicorn's process namespace, with /proc mounted without hidepid".to_owned();
            seen.unseen = unseen(format!("process {pid} of {} is not shown in /proc", file.display()), remedy);
            return seen;
        }
    }
    let (master, workers) = master_of(pid);
    if let Look::Runs(running) = process::look(master) {
        seen.master = Some((running.pid, running.began));
    }
    seen.workers = workers;
    seen.overflows = overflows(&master.to_string());
    seen.queue = port.and_then(|port| queue(master, port));
    seen
}

/// The first process of a container may be one that only starts gunicorn.
fn master_of(mut pid: i32) -> (i32, Vec<Running>) {
    let mut children = process::children(pid);
    for _ in 0..3 {
        let [only] = children.as_slice() else { break };
        let of_only = process::children(only.pid);
        if of_only.is_empty() {
            break;
        }
        (pid, children) = (only.pid, of_only);
    }
    (pid, children)
}

/// Looks at the queue of this port, or of the only one there is.
pub(super) fn queue(pid: i32, port: u16) -> Option<Waiting> {
    let process = procfs::process::Process::new(pid).ok()?;
    let rows = process.tcp().into_iter().chain(process.tcp6()).flatten();
    let rows: Vec<_> = rows.filter(|row| matches!(row.state, TcpState::Listen | TcpState::Established)).collect();
    let listening = |port: u16| rows.iter().filter(move |row| row.state == TcpState::Listen && row.local_address.port() == port);
    // A published port is another one inside of the container: there the only one is meant.
    let others: BTreeSet<u16> = rows.iter().filter(|row| row.state == TcpState::Listen).map(|row| row.local_address.port()).collect();
    let port = others.first().copied().filter(|_| others.len() == 1 && !others.contains(&port)).unwrap_or(port);
    let inode = listening(port).next()?.inode;
    // A connection that no process has taken has no inode.
    let taken = rows.iter().filter(|row| row.state == TcpState::Established && row.local_address.port() == port && row.inode != 0);
    Some(Waiting { pid, port, inode, waiting: listening(port).map(|row| row.rx_queue).sum(), taken: taken.count() })
}

/// `TcpExt ListenOverflows` (`/proc/PID/net/netstat`: a line of names, a line of values).
fn overflows(pid: &str) -> Option<u64> {
    listen_overflows(&std::fs::read_to_string(format!("/proc/{pid}/net/netstat")).ok()?)
}

fn listen_overflows(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let at = lines.next()?.split(' ').position(|name| name == "ListenOverflows")?;
    lines.next()?.split(' ').nth(at)?.parse().ok()
}

/// Follows the workers from run to run, to tell a crash loop from a slow start and from busy workers.
#[derive(Debug, Default)]
pub(super) struct Followed {
    master: Option<Who>,
    workers: Vec<Who>,
    answered: bool,
}

impl Followed {
    /// Says that the run has got an answer, or not.
    pub(super) fn answered(&mut self, answered: bool) {
        self.answered = answered;
    }

    /// Takes what is there now. Says for how long the oldest worker has lived if none of the workers of the last run,
    /// which no worker answered, lives any more: they die as they start. While gunicorn starts or reloads, the same ones
    /// boot from run to run; when one is recycled, others answer.
    pub(super) fn look(&mut self, seen: &Seen) -> Option<Duration> {
        let who = |running: &Running| (running.pid, running.began);
        let now: Vec<Who> = seen.workers.iter().map(who).collect();
        let looping = seen.master.is_some() && seen.master == self.master && !self.answered && !self.workers.iter().any(|one| now.contains(one));
        (self.master, self.workers) = (seen.master, now);
        looping.then(|| seen.workers.iter().map(|worker| worker.age).max().unwrap_or_default())
    }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// Counters of the kernel.
    pub fn netstat(bytes: &[u8]) {
        listen_overflows(&String::from_utf8_lossy(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflows_are_found_by_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 22 333\nIpExt: ListenOverflows\nIpExt: 4\n";
        assert_eq!(listen_overflows(text), Some(22));
        for length in 0..text.len() {
            assert!(listen_overflows(&text[..length]).is_none_or(|found| found <= 22));
        }
        assert!(overflows("self").is_some(), "this host has it");
    }

    #[test]
    fn a_crash_loop_is_neither_a_start_nor_a_reload_nor_recycling() {
        let running = |pid| Running { pid, name: "gunicorn".into(), title: String::new(), stopped: false, began: 5, age: Duration::from_secs(1) };
        let seen = |master: i32, workers: &[i32]| Seen {
            master: Some((master, 1)),
            workers: workers.iter().map(|pid| running(*pid)).collect(),
            ..Seen::default()
        };
        let mut followed = Followed::default();
        for (answered, now, looping) in [
            (false, seen(1, &[10, 11]), false), // the first look
            (false, seen(1, &[10, 11]), false), // a slow start
            (true, seen(1, &[12, 13]), false),  // reloaded, or recycled
            (false, seen(1, &[12, 14]), false), // one of two is new
            (false, seen(1, &[15, 16]), true),  // all are new, and none answered
            (false, seen(1, &[]), true),
            (false, seen(2, &[20]), false), // restarted
        ] {
            followed.answered(answered);
            assert_eq!(followed.look(&now).is_some(), looping, "{now:?}");
        }
    }
}
