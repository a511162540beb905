//! Processes of this host, by `/proc`: who holds a socket, and what users are called.
//!
//! Another user's descriptors are readable for root and with `CAP_SYS_PTRACE` only (`proc(5)`).

use std::fmt;

use procfs::process::{FDTarget, all_processes};

/// The most processes whose descriptors are looked at.
const MAX_PROCESSES: usize = 20_000;

/// The most sockets of one process.
const MAX_SOCKETS: usize = 4096;

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

/// Returns the name of a user, for people.
pub fn user_name(uid: u32) -> String {
    known_user(uid).unwrap_or_else(|| format!("uid {uid}"))
}

/// Returns the name of a user in `/etc/passwd`.
pub fn known_user(uid: u32) -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
