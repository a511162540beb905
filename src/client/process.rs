//! Processes of this host, by `/proc`: who holds a socket, and what users are called.
//!
//! Another user's descriptors are readable for root and with `CAP_SYS_PTRACE` only (`proc(5)`).

use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use procfs::Current;
use procfs::process::{FDTarget, all_processes};
use rustix::fs::Access;

/// The most processes whose descriptors are looked at.
const MAX_PROCESSES: usize = 20_000;

/// The most sockets of one process.
const MAX_SOCKETS: usize = 4096;

/// The most children of one process that are looked at.
pub const MAX_CHILDREN: usize = 1024;

/// How much of a command line is told, in characters.
const MAX_COMMAND: usize = 120;

/// The kernel keeps that much of a program's name (`TASK_COMM_LEN`, less its NUL).
const MAX_NAME: usize = 15;

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub pid: i32,
    /// The program, as the kernel names it: at most 15 characters.
    pub name: String,
    /// Whose it is.
    pub user: String,
    /// Its command line.
    pub command: Vec<String>,
}

impl Holder {
    /// Says whether it is one of these programs.
    pub fn is_one_of(&self, names: &[String]) -> bool {
        names.iter().any(|name| name.bytes().take(MAX_NAME).eq(self.name.bytes()))
    }

    /// Says whether it is stopped now (`SIGSTOP`, a debugger); nothing where it is gone.
    pub fn is_stopped(&self) -> Option<bool> {
        let stat = procfs::process::Process::new(self.pid).and_then(|process| process.stat()).ok()?;
        Some(matches!(stat.state, 'T' | 't'))
    }

    /// Returns the inodes of all its sockets, in the order in which it has opened what it holds.
    pub fn sockets(&self) -> Vec<u64> {
        let descriptors = procfs::process::Process::new(self.pid).and_then(|process| process.fd()).into_iter().flatten().flatten();
        let mut sockets: Vec<(i32, u64)> = descriptors
            .filter_map(|fd| if let FDTarget::Socket(inode) = fd.target { Some((fd.fd, inode)) } else { None })
            .take(MAX_SOCKETS)
            .collect();
        sockets.sort_unstable();
        sockets.into_iter().map(|(_, inode)| inode).collect()
    }
}

/// `ssh (pid 7, user deploy: ssh -N -L 50000:db:50000 jump)`
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.command.join(" ");
        let command: String = whole.chars().take(MAX_COMMAND).collect();
        let cut = if command.len() < whole.len() { "…" } else { "" };
        write!(f, "{} (pid {}, user {}: {command}{cut})", self.name, self.pid, self.user)
    }
}

/// Finds who holds a socket, by its inode; where several do, one of the programs in `rather` if there is one. Nothing
/// where no process that may be seen holds it.
pub fn holder(inode: u64, rather: &[String]) -> Option<Holder> {
    let mut found = None;
    for process in all_processes().into_iter().flatten().flatten().take(MAX_PROCESSES) {
        let Ok(mut descriptors) = process.fd() else { continue };
        if !descriptors.any(|fd| fd.is_ok_and(|fd| matches!(fd.target, FDTarget::Socket(socket) if socket == inode))) {
            continue;
        }
        let holder = Holder {
            pid: process.pid,
            name: process.stat().map(|stat| stat.comm).unwrap_or_default(),
            user: process.uid().map_or_else(|_| "unknown".to_owned(), user_name),
            command: process.cmdline().unwrap_or_default(),
        };
        if holder.is_one_of(rather) {
            return Some(holder);
        }
        found.get_or_insert(holder);
    }
    found
}

/// A process as everybody may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its number.
    pub pid: i32,
    /// The program, as the kernel names it: at most 15 characters.
    pub name: String,
    /// Its command line, or the title that it has given itself; cut.
    pub title: String,
    /// Whether it is stopped (`SIGSTOP`, a debugger).
    pub stopped: bool,
    /// When it began, in the kernel's ticks since the host's start: with the number, which process it is.
    pub began: u64,
    /// How long ago that was.
    pub age: Duration,
}

/// What is known of a process number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// It runs.
    Runs(Running),
    /// There is no such process.
    Gone,
    /// It is there, but `/proc` does not show it to this user (`hidepid`).
    Hidden,
}

/// Looks at a process.
pub fn look(pid: i32) -> Look {
    let read = || {
        let process = procfs::process::Process::new(pid)?;
        let (stat, command) = (process.stat()?, process.cmdline()?);
        let up = procfs::Uptime::current()?.uptime_duration();
        let age = up.saturating_sub(Duration::from_millis(stat.starttime.saturating_mul(1000) / procfs::ticks_per_second().max(1)));
        let title = command.join(" ").trim_end().chars().take(MAX_COMMAND).collect();
        let stopped = matches!(stat.state, 'T' | 't');
        Ok::<_, procfs::ProcError>((Running { pid, name: stat.comm, title, stopped, began: stat.starttime, age }, stat.state))
    };
    match read() {
        // One that has ended and that its parent has not noticed yet.
        Ok((_, 'Z' | 'X')) => Look::Gone,
        Ok((running, _)) => Look::Runs(running),
        Err(procfs::ProcError::PermissionDenied(_)) => Look::Hidden,
        Err(_) => {
            let there = rustix::process::Pid::from_raw(pid).map(rustix::process::test_kill_process);
            if matches!(there, Some(Ok(()) | Err(rustix::io::Errno::PERM))) { Look::Hidden } else { Look::Gone }
        }
    }
}

/// Returns the children of a process, at most [`MAX_CHILDREN`].
pub fn children(pid: i32) -> Vec<Running> {
    // Each thread has its own.
    let tasks = procfs::process::Process::new(pid).and_then(|process| process.tasks());
    let pids = tasks.into_iter().flatten().flatten().filter_map(|task| task.children().ok()).flatten().take(MAX_CHILDREN);
    pids.filter_map(|pid| if let Look::Runs(running) = look(i32::try_from(pid).ok()?) { Some(running) } else { None }).collect()
}

/// Reads the number in a pid file.
///
/// # Errors
/// It cannot be read, or holds no number.
pub fn pid_in(file: &Path) -> io::Result<i32> {
    let mut text = String::new();
    std::fs::File::open(file)?.take(32).read_to_string(&mut text)?;
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("expected the number of a process, found {:?}", text.trim()));
    text.trim().parse().ok().filter(|pid| *pid > 0).ok_or_else(wrong)
}

/// Returns the name of a user, for people.
pub fn user_name(uid: u32) -> String {
    known_user(uid).unwrap_or_else(|| format!("uid {uid}"))
}

/// Returns the name of the user that Proctor runs as, as `setfacl` and `usermod` want it.
pub fn own_user() -> String {
    let uid = rustix::process::geteuid().as_raw();
    known_user(uid).unwrap_or_else(|| uid.to_string())
}

/// Returns the one command that lets this user read a file, or list a folder: the first folder on the way that is
/// closed, else the file itself.
pub fn remedy(path: &Path) -> String {
    let user = own_user();
    let folders: Vec<&Path> = path.ancestors().collect();
    let closed = |folder: &&&Path| folder.is_dir() && rustix::fs::access(**folder, Access::READ_OK | Access::EXEC_OK).is_err();
    match folders.iter().rev().find(closed) {
        Some(folder) => format!("setfacl -m u:{user}:rx {}", folder.display()),
        None => format!("setfacl -m u:{user}:r {}", path.display()),
    }
}

/// Returns the name of a group in `/etc/group`, else its number.
pub fn group_name(gid: u32) -> String {
    named("/etc/group", gid).unwrap_or_else(|| gid.to_string())
}

/// Returns the name of a user in `/etc/passwd`.
pub fn known_user(uid: u32) -> Option<String> {
    named("/etc/passwd", uid)
}

/// Both files begin with `name:password:number:`.
fn named(file: &str, number: u32) -> Option<String> {
    let lines = std::fs::read_to_string(file).unwrap_or_default();
    lines.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(number)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_its_children_and_its_pid_file_are_read() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let of_child = i32::try_from(child.id()).unwrap();
        let Look::Runs(running) = look(own) else { panic!("it is ours") };
        assert!(!running.stopped && !running.title.is_empty());
        assert!(children(own).iter().any(|running| running.pid == of_child && running.age < Duration::from_secs(600)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(look(of_child), Look::Gone);
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, pid) in [(" 7\n", Some(7)), ("", None), ("-1", None), ("x", None), ("99999999999999999999999999999999999999", None)] {
            std::fs::write(file.path(), text).unwrap();
            assert_eq!(pid_in(file.path()).ok(), pid, "{text}");
        }
    }

    #[test]
    fn the_holder_of_a_socket_is_found_and_told() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let sockets = crate::client::sock_diag::listeners(listener.local_addr().expect("it is bound")).expect("the kernel tells");
        let holder = holder(u64::from(sockets[0].inode), &[]).expect("it is ours");
        assert_eq!(holder.pid.unsigned_abs(), std::process::id());
        assert_eq!(holder.user, user_name(sockets[0].uid));
        assert_eq!(holder.is_stopped(), Some(false));
        assert!(holder.sockets().contains(&u64::from(sockets[0].inode)));
        assert!(
            holder.is_one_of(&["ssh".to_owned(), format!("{}-and-more-than-the-kernel-keeps", holder.name)]) == (holder.name.len() == 15)
        );
        let long = Holder { pid: 7, name: "ssh".into(), user: "deploy".into(), command: vec!["x".repeat(500)] };
        assert!(long.is_one_of(&["ssh".into()]) && !long.is_one_of(&["sshd".into()]) && !long.is_one_of(&[]));
        assert_eq!(long.to_string(), format!("ssh (pid 7, user deploy: {}…)", "x".repeat(120)));
    }
}
