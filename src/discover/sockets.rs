//! Who listens on this host, and which processes there are, from `/proc`.
//!
//! Whose a socket is, only its owner and root may see; command lines everybody may. So a port whose owner may not be seen
//! is given to a process whose command line says that it listens there.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use procfs::net::{TcpState, UnixState};
use procfs::process::FDTarget;

use super::programs;

/// The most processes that are looked at, and the most sockets.
const MAX_PROCESSES: usize = 20_000;
const MAX_SOCKETS: usize = 2_000;
/// The most words of a command line that are kept, and how long each may be, in bytes.
const MAX_WORDS: (usize, usize) = (100, 1_000);

/// Where something listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// A port, at an address by which this host reaches it.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl At {
    /// Returns the port.
    pub fn port(&self) -> Option<u16> {
        if let Self::Tcp(address) = self { Some(address.port()) } else { None }
    }
}

/// As the configuration wants it: `127.0.0.1:8000`, `unix:/run/gunicorn.sock`.
impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// As the kernel names it: at most 15 characters.
    pub name: String,
    /// Its command line, word by word; also of one that has given itself a title.
    pub command: Vec<String>,
    /// Its folder, where that may be seen.
    pub folder: Option<PathBuf>,
}

/// Something that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub at: At,
    /// Whose it is; nothing where that may not be seen.
    pub owner: Option<Process>,
    /// Behind a port that docker publishes: the port inside the container.
    pub inside: Option<u16>,
}

/// Returns what listens, lowest port first, and every process with a command line.
pub fn look() -> (Vec<Listener>, Vec<Process>) {
    let tcp = procfs::net::tcp().into_iter().chain(procfs::net::tcp6()).flatten();
    let tcp = tcp.filter(|entry| entry.state == TcpState::Listen);
    let tcp = tcp.map(|entry| (entry.inode, (At::Tcp(reachable(entry.local_address)), Some(entry.uid))));
    // A stream socket with a name that is not connected is one that listens.
    let unix =
        procfs::net::unix().unwrap_or_default().into_iter().filter(|entry| entry.socket_type == 1 && entry.state == UnixState::UNCONNECTED);
    let unix = unix.filter_map(|entry| Some((entry.inode, (At::Unix(entry.path.filter(|path| path.is_absolute())?), None))));
    let sockets: HashMap<u64, (At, Option<u32>)> = tcp.chain(unix).take(MAX_SOCKETS).collect();
    let (mut owners, mut processes) = (HashMap::<u64, Process>::new(), Vec::new());
    // Of each process: its number, that of its parent, its user.
    let mut numbers = Vec::new();
    for process in procfs::process::all_processes().into_iter().flatten().flatten().take(MAX_PROCESSES) {
        let command = words(process.cmdline().unwrap_or_default());
        // A thread of the kernel.
        if command.is_empty() {
            continue;
        }
        let (name, parent) = process.stat().map(|stat| (stat.comm, stat.ppid)).unwrap_or_default();
        let this = Process { name, command, folder: process.cwd().ok() };
        for descriptor in process.fd().into_iter().flatten().flatten() {
            if let FDTarget::Socket(inode) = descriptor.target
                && sockets.contains_key(&inode)
            {
                // Of a master and its workers the master comes first.
                owners.entry(inode).or_insert_with(|| this.clone());
            }
        }
        numbers.push((process.pid(), parent, process.uid().ok()));
        processes.push(this);
    }
    // The user of a socket everybody may see. One who runs Proctor and what Proctor starts, and nothing else, is Proctor's own.
    let of_proctor = |user: u32| {
        let (at, (pid, ..)) =
            numbers.iter().enumerate().find(|(at, (.., of))| *of == Some(user) && programs::is_proctor(&processes[*at]))?;
        let alone = numbers.iter().filter(|(.., of)| *of == Some(user)).all(|(number, parent, _)| number == pid || parent == pid);
        alone.then(|| processes[at].clone())
    };
    let all = sockets.into_iter().map(|(inode, (at, user))| (at, owners.remove(&inode).or_else(|| of_proctor(user?)))).collect();
    (sorted(all, &processes), processes)
}

/// Makes one of a port on IPv4 and IPv6, and finds an owner for what has none.
fn sorted(mut all: Vec<(At, Option<Process>)>, processes: &[Process]) -> Vec<Listener> {
    all.sort_by(|(a, _), (b, _)| (a.port(), a).cmp(&(b.port(), b)));
    let mut listeners: Vec<Listener> = Vec::new();
    for (at, owner) in all {
        // IPv4 sorts first and stands for both; a port of an address of its own is another one.
        let same = |known: &Listener| match (&known.at, &at) {
            (At::Tcp(known), At::Tcp(at)) => {
                known.port() == at.port() && (known.ip() == at.ip() || (known.ip().is_loopback() && at.ip().is_loopback()))
            }
            _ => false,
        };
        if listeners.iter().any(same) {
            continue;
        }
        let owner = owner.or_else(|| processes.iter().find(|process| programs::claims(process, &at)).cloned());
        let inside = owner.as_ref().and_then(programs::inside);
        listeners.push(Listener { at, owner, inside });
    }
    listeners
}

/// Returns the words of a command line; a title that a process has given itself is one word.
fn words(command: Vec<String>) -> Vec<String> {
    let command: Vec<String> = command.into_iter().filter(|word| !word.is_empty()).collect();
    let cut = |word: &str| word.chars().take(MAX_WORDS.1).collect::<String>();
    match command.as_slice() {
        [title] => title.split_whitespace().take(MAX_WORDS.0).map(cut).collect(),
        words => words.iter().take(MAX_WORDS.0).map(|word| cut(word)).collect(),
    }
}

/// Returns the address at which a listener can be reached from this host.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if let IpAddr::V6(ip) = address.ip()
        && let Some(v4) = ip.to_ipv4_mapped()
    {
        address.set_ip(v4.into());
    }
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_on_both_kinds_of_addresses_is_one_and_an_unseen_owner_is_found_by_its_command_line() {
        let at = |text: &str| At::Tcp(reachable(text.parse().expect(text)));
        let ssh = Process {
            name: "ssh".into(),
            command: ["ssh", "-N", "-L", "50000:db:50000", "jump"].map(str::to_owned).to_vec(),
            folder: None,
        };
        let all =
            vec![(at("[::]:50000"), None), (at("0.0.0.0:50000"), None), (at("10.0.0.1:80"), None), (at("[::ffff:10.0.0.2]:80"), None)];
        let found = sorted(all, std::slice::from_ref(&ssh));
        let shown: Vec<(String, bool)> = found.iter().map(|one| (one.at.to_string(), one.owner.is_some())).collect();
        assert_eq!(shown, [("10.0.0.1:80".into(), false), ("10.0.0.2:80".into(), false), ("127.0.0.1:50000".into(), true)]);
    }

    #[test]
    fn a_title_is_taken_apart() {
        assert_eq!(
            words(vec!["nginx: master process /usr/sbin/nginx -c /n.conf".into(), String::new()]).last().map(String::as_str),
            Some("/n.conf")
        );
        assert_eq!(words(vec!["a b".into(), "c".into()]), ["a b", "c"]);
    }

    #[test]
    fn what_listens_here_is_found_with_its_owner() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let (listeners, processes) = look();
        let at = At::Tcp(listener.local_addr().expect("is bound"));
        let found = listeners.iter().find(|one| one.at == at).expect("it is found");
        assert!(found.owner.as_ref().is_some_and(|owner| processes.contains(owner)));
    }
}
