//! Sockets of this host, asked of the kernel over netlink (`sock_diag(7)`), as `ss` does: the accept queue of a
//! listening socket and which socket that is, and whether any process has taken a connection.
//!
//! It needs no right at all, but `AF_NETLINK` (`RestrictAddressFamilies=` of a unit) and the same network namespace.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

/// `SOCK_DIAG_BY_FAMILY` (linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR` and `NLMSG_DONE` (linux/netlink.h).
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST`, and `NLM_F_REQUEST | NLM_F_DUMP`.
const ONE: u16 = 0x1;
const DUMP: u16 = 0x1 | 0x300;
/// The masks of states that hold only `TCP_LISTEN`, and only `TCP_ESTABLISHED`.
const LISTEN: u32 = 1 << 10;
const ESTABLISHED: u32 = 1 << 1;
/// `AF_UNIX`, `AF_INET`, `AF_INET6`, and `IPPROTO_TCP`.
const UNIX: u8 = 1;
const INET: u8 = 2;
const INET6: u8 = 10;
const TCP: u8 = 6;
/// The kernel fills at most 32 KiB at a time.
const CHUNK: usize = 32 * 1024;
/// The most chunks that are read: about 20,000 sockets.
const CHUNKS: usize = 64;

/// The queue of connections that no process has accepted yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// How many wait.
    pub waiting: u32,
    /// How many may wait; one more than that fits before the kernel turns newcomers away.
    pub max: u32,
}

/// A listening TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its accept queue.
    pub queue: Queue,
    /// Its number, by which `/proc/PID/fd` names it.
    pub inode: u32,
    /// Whose it is.
    pub uid: u32,
}

/// The server's half of a connection within this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Whether a process has taken it; the kernel alone completes the handshake, and `connect()` succeeds before that.
    pub taken: bool,
    /// Bytes that came and that the process has not read.
    pub unread: u32,
}

/// How far an established connection gets with what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// The number of its socket, by which `/proc/PID/fd` names it.
    pub inode: u32,
    /// The port at this end.
    pub port: u16,
    /// The other end.
    pub peer: SocketAddr,
    /// Bytes that were written and that the other end has not acknowledged.
    pub unacknowledged: u32,
    /// How often the oldest of them was sent again without success.
    pub retransmits: u8,
}

/// Returns the established TCP connections of this network namespace.
///
/// # Errors
/// As [`tcp`].
pub fn established() -> io::Result<Vec<Sending>> {
    let mut found = Vec::new();
    for family in [INET, INET6] {
        dump(&inet_request(family, ESTABLISHED, 0), |row| found.extend(sending_row(row)))?;
    }
    Ok(found)
}

/// Returns every listening TCP socket of this network namespace with its address.
///
/// # Errors
/// As [`tcp`].
pub fn listening() -> io::Result<Vec<(SocketAddr, Listener)>> {
    let mut found = Vec::new();
    for family in [INET, INET6] {
        dump(&inet_request(family, LISTEN, 0), |row| {
            let port = row.get(4..6).and_then(|port| port.try_into().ok()).map(u16::from_be_bytes);
            found.extend(inet_row(row).zip(port).map(|((ip, listener), port)| (SocketAddr::new(ip, port), listener)));
        })?;
    }
    Ok(found)
}

/// Returns the accept queue of whoever would take a connection to `address`: the sum where several share the port
/// (`SO_REUSEPORT`), nothing where nobody listens in this network namespace.
///
/// # Errors
/// What the kernel says, such as `EAFNOSUPPORT` without `AF_NETLINK` or `ENOENT` without the module `tcp_diag`.
pub fn tcp(address: SocketAddr) -> io::Result<Option<Queue>> {
    let add = |sum: Queue, one: Queue| Queue { waiting: sum.waiting + one.waiting, max: sum.max + one.max };
    Ok(listeners(address)?.into_iter().map(|listener| listener.queue).reduce(add))
}

/// Returns who would take a connection to `address`: several where they share the port, none where nobody listens in
/// this network namespace.
///
/// # Errors
/// As [`tcp`].
pub fn listeners(address: SocketAddr) -> io::Result<Vec<Listener>> {
    let families: &[u8] = if address.is_ipv4() { &[INET, INET6] } else { &[INET6] };
    for family in families {
        let mut found = Vec::new();
        dump(&inet_request(*family, LISTEN, address.port()), |row| found.extend(inet_row(row)))?;
        // As the kernel chooses: the exact address wins over the wildcard.
        for wanted in [address.ip(), wildcard(*family)] {
            let fitting: Vec<Listener> =
                found.iter().filter(|(ip, _)| *ip == wanted.to_canonical()).map(|(_, listener)| *listener).collect();
            if !fitting.is_empty() {
                return Ok(fitting);
            }
        }
    }
    Ok(Vec::new())
}

/// Returns the server's half of the connection from `client` to `server`; nothing where it is not in this network
/// namespace.
///
/// # Errors
/// As [`tcp`].
pub fn accepted(server: SocketAddr, client: SocketAddr) -> io::Result<Option<Accepted>> {
    let mut found = None;
    match ask(ONE, &pair_request(server, client), |row| found = pair_row(row)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(found),
    }
}

/// Returns the accept queue of the socket that is bound to `path`, nothing where there is none.
///
/// # Errors
/// As [`tcp`]; the module is `unix_diag`.
pub fn unix(path: &Path) -> io::Result<Option<Queue>> {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let wanted = real(path);
    // Where a socket was unlinked and another bound in its place, the newer one, whose inode is larger, is the one
    // that a connection reaches.
    let mut found: Option<(u32, Queue)> = None;
    dump(&unix_request(), |row| {
        if let Some((inode, name, queue)) = unix_row(row)
            && name.file_name() == path.file_name().or(wanted.file_name())
            && (name == wanted || real(name) == wanted)
            && found.is_none_or(|(newest, _)| newest < inode)
        {
            found = Some((inode, queue));
        }
    })?;
    Ok(found.map(|(_, queue)| queue))
}

const fn wildcard(family: u8) -> IpAddr {
    if family == INET { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED) }
}

/// `struct inet_diag_req_v2` (linux/inet_diag.h): TCP sockets in these states with this local port, 0 for any.
fn inet_request(family: u8, states: u32, port: u16) -> Vec<u8> {
    let mut request = vec![family, TCP, 0, 0];
    request.extend(states.to_ne_bytes());
    request.extend(port.to_be_bytes());
    request.resize(56, 0);
    request
}

/// `struct inet_diag_req_v2` for exactly one socket: its own address, then its peer's. Any cookie.
fn pair_request(own: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let family = if own.is_ipv4() { INET } else { INET6 };
    let mut request = vec![family, TCP, 0, 0];
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(own.port().to_be_bytes());
    request.extend(peer.port().to_be_bytes());
    for ip in [own.ip(), peer.ip()] {
        let end = request.len() + 16;
        match ip {
            IpAddr::V4(ip) => request.extend(ip.octets()),
            IpAddr::V6(ip) => request.extend(ip.octets()),
        }
        request.resize(end, 0);
    }
    // `idiag_if`, then `INET_DIAG_NOCOOKIE`.
    request.extend([0; 4]);
    request.extend([0xff; 8]);
    request
}

/// `struct inet_diag_msg` of a connection: a socket that no process has taken has no inode.
fn pair_row(row: &[u8]) -> Option<Accepted> {
    /// `TCP_LISTEN`: where there is no such connection the kernel tells of the listener.
    const LISTENS: u8 = 10;
    (*row.get(1)? != LISTENS).then_some(Accepted { taken: u32_at(row, 68)? != 0, unread: u32_at(row, 56)? })
}

/// `struct inet_diag_msg` of a listener, with its address.
fn inet_row(row: &[u8]) -> Option<(IpAddr, Listener)> {
    let ip = ip_at(row, 8)?;
    let queue = Queue { waiting: u32_at(row, 56)?, max: u32_at(row, 60)? };
    Some((ip, Listener { queue, uid: u32_at(row, 64)?, inode: u32_at(row, 68)? }))
}

/// `struct inet_diag_msg` of a connection, with its peer and what it has sent.
fn sending_row(row: &[u8]) -> Option<Sending> {
    /// `idiag_timer`: the retransmission timer runs, and `idiag_retrans` counts for it.
    const RETRANSMITS: u8 = 1;
    let port = |at: usize| row.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
    Some(Sending {
        inode: u32_at(row, 68)?,
        port: port(4)?,
        peer: SocketAddr::new(ip_at(row, 24)?, port(6)?),
        unacknowledged: u32_at(row, 60)?,
        retransmits: if *row.get(2)? == RETRANSMITS { *row.get(3)? } else { 0 },
    })
}

/// An address of a row's own family.
fn ip_at(row: &[u8], at: usize) -> Option<IpAddr> {
    match *row.first()? {
        INET => Some(IpAddr::from(<[u8; 4]>::try_from(row.get(at..at + 4)?).ok()?)),
        INET6 => Some(IpAddr::from(<[u8; 16]>::try_from(row.get(at..at + 16)?).ok()?).to_canonical()),
        _ => None,
    }
}

/// `struct unix_diag_req` (linux/unix_diag.h): listening sockets with name and queue.
fn unix_request() -> Vec<u8> {
    /// `UDIAG_SHOW_NAME | UDIAG_SHOW_RQLEN`.
    const SHOW: u32 = 0x1 | 0x10;
    let mut request = vec![UNIX, 0, 0, 0];
    for word in [LISTEN, 0, SHOW, 0, 0] {
        request.extend(word.to_ne_bytes());
    }
    request
}

/// `struct unix_diag_msg` and its attributes: inode, path and queue; nothing for an abstract or unnamed socket.
fn unix_row(row: &[u8]) -> Option<(u32, &Path, Queue)> {
    use std::os::unix::ffi::OsStrExt;
    /// `UNIX_DIAG_NAME` and `UNIX_DIAG_RQLEN`.
    const NAME: u16 = 0;
    const RQLEN: u16 = 4;
    let (mut name, mut queue) = (None, None);
    let mut rest = row.get(16..)?;
    while let Some(attribute) = rest.get(..usize::from(u16_at(rest, 0)?)).filter(|attribute| attribute.len() >= 4) {
        let value = &attribute[4..];
        match u16_at(attribute, 2)? {
            NAME => name = value.split(|byte| *byte == 0).next(),
            RQLEN => queue = Some(Queue { waiting: u32_at(value, 0)?, max: u32_at(value, 4)? }),
            _ => {}
        }
        match rest.get(attribute.len().next_multiple_of(4)..) {
            Some(more) if !more.is_empty() => rest = more,
            _ => break,
        }
    }
    let name = name.filter(|name| !name.is_empty())?;
    Some((u32_at(row, 4)?, Path::new(std::ffi::OsStr::from_bytes(name)), queue?))
}

/// Asks for all sockets that fit and hands on the rows of the reply.
fn dump(request: &[u8], row: impl FnMut(&[u8])) -> io::Result<()> {
    ask(DUMP, request, row)
}

/// Sends one request and hands on the rows of the reply.
fn ask(flags: u16, request: &[u8], mut row: impl FnMut(&[u8])) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        // The kernel writes the reply while it takes the request and while we read: there is nothing to wait for.
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(netlink::SOCK_DIAG),
    )?;
    let mut message = Vec::with_capacity(16 + request.len());
    message.extend((16 + request.len() as u32).to_ne_bytes());
    message.extend(BY_FAMILY.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([1u32, 0].map(u32::to_ne_bytes).concat());
    message.extend(request);
    // Without an address a netlink socket sends to the kernel.
    send(&socket, &message, SendFlags::empty())?;
    let mut buffer = vec![0u8; CHUNK];
    for _ in 0..CHUNKS {
        let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        // Only a list has a last message of its own.
        if reply(&buffer[..length], &mut row)? || flags == ONE {
            return Ok(());
        }
    }
    Err(io::Error::other("the kernel's list of sockets is too long"))
}

/// Reads one chunk of netlink messages; says whether it was the last.
fn reply(mut rest: &[u8], row: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    let torn = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is torn");
    while !rest.is_empty() {
        let length = u32_at(rest, 0).and_then(|length| usize::try_from(length).ok()).ok_or_else(torn)?;
        let body = rest.get(16..length).ok_or_else(torn)?;
        match u16_at(rest, 4).ok_or_else(torn)? {
            DONE => return Ok(true),
            ERROR => {
                let errno = u32_at(body, 0).ok_or_else(torn)?.cast_signed();
                return Err(io::Error::from_raw_os_error(errno.wrapping_neg()));
            }
            BY_FAMILY => row(body),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// What the kernel says of sockets.
    pub fn sock_diag(bytes: &[u8]) {
        let row = |row: &[u8]| {
            inet_row(row);
            pair_row(row);
            sending_row(row);
            unix_row(row);
        };
        row(bytes);
        drop(reply(bytes, &mut |bytes| row(bytes)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    /// Waits until nobody listens any more. A process that another test starts has a copy of each descriptor until it runs its
    /// own program, so a listener may outlive its drop a little.
    #[track_caller]
    fn ends(ask: impl Fn() -> Option<Queue>) {
        let begin = tokio::time::Instant::now();
        while let Some(queue) = ask() {
            assert!(begin.elapsed() < std::time::Duration::from_secs(10), "it still listens: {queue:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_queue_of_a_port_counts_who_waits_whatever_address_it_listens_on() {
        for (listen, ask) in
            [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("[::]", "127.0.0.1"), ("[::1]", "[::1]"), ("[::]", "[::1]")]
        {
            let Ok(listener) = TcpListener::bind(format!("{listen}:0")) else { continue };
            let address: SocketAddr = format!("{ask}:{}", listener.local_addr().unwrap().port()).parse().unwrap();
            let empty = tcp(address).unwrap().unwrap_or_else(|| panic!("{listen} listens for {ask}"));
            assert_eq!(empty.waiting, 0, "{listen} asked as {ask}");
            assert!(empty.max >= 128, "{empty:?}");
            let clients = [TcpStream::connect(address).unwrap(), TcpStream::connect(address).unwrap()];
            assert_eq!(tcp(address).unwrap(), Some(Queue { waiting: 2, max: empty.max }));
            drop((clients, listener));
            ends(|| tcp(address).unwrap());
        }
    }

    #[test]
    fn a_connection_that_nobody_accepted_is_told_from_one_whose_bytes_nobody_reads() {
        use std::io::Write;
        for listen in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(listen) else { continue };
            let port = listener.local_addr().unwrap().port();
            let ip: IpAddr = if listen.starts_with("[::1]") { "::1" } else { "127.0.0.1" }.parse().unwrap();
            let mut client = TcpStream::connect((ip, port)).unwrap();
            let half = || accepted(client.peer_addr().unwrap(), client.local_addr().unwrap()).unwrap();
            assert_eq!(half(), Some(Accepted { taken: false, unread: 0 }), "{listen}");
            let server = listener.accept().unwrap();
            assert_eq!(half(), Some(Accepted { taken: true, unread: 0 }), "{listen}");
            (&client).write_all(b"hello").unwrap();
            assert_eq!(half(), Some(Accepted { taken: true, unread: 5 }), "{listen}");
            let nobody = SocketAddr::new(ip, 1);
            assert_eq!(accepted(client.peer_addr().unwrap(), nobody).unwrap(), None, "the listener is no connection");
            drop(server);
            client.flush().unwrap();
        }
    }

    #[test]
    fn a_connection_that_sends_what_nobody_reads_is_found_with_both_its_ends() {
        use std::io::Write;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let find = || {
            let (own, peer) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            established().unwrap().into_iter().find(|one| one.port == own.port() && one.peer == peer).unwrap()
        };
        let idle = find();
        assert_eq!((idle.unacknowledged, idle.retransmits), (0, 0));
        assert_ne!(idle.inode, 0);
        client.set_nonblocking(true).unwrap();
        while (&client).write(&[0; 65536]).is_ok() {}
        assert!(find().unacknowledged > 0, "the other end's buffer is full");
        client.flush().unwrap();
    }

    #[test]
    fn the_queue_of_a_socket_in_the_file_system_is_found_through_links_and_after_a_rebind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let old = UnixListener::bind(&path).unwrap();
        let waits_at_old = UnixStream::connect(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let clients = [UnixStream::connect(&path).unwrap(), UnixStream::connect(&path).unwrap()];
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        for name in [path.clone(), link.join("app.sock")] {
            assert_eq!(unix(&name).unwrap().map(|queue| queue.waiting), Some(2), "{}", name.display());
        }
        drop((clients, listener, old, waits_at_old));
        ends(|| unix(&path).unwrap());
    }

    #[test]
    fn a_torn_answer_is_an_error_and_never_a_panic() {
        let mut whole = Vec::new();
        for (kind, body) in [(BY_FAMILY, vec![INET; 72]), (DONE, vec![0; 4])] {
            whole.extend((16 + body.len() as u32).to_ne_bytes());
            whole.extend(kind.to_ne_bytes());
            whole.extend([0; 10]);
            whole.extend(body);
        }
        for length in 0..whole.len() {
            let mut rows = 0;
            let end = reply(&whole[..length], &mut |row| rows += usize::from(inet_row(row).is_some()));
            assert!(!matches!(end, Ok(true)), "cut at {length}");
        }
        for length in 0..90 {
            inet_row(&[INET6; 90][..length]);
            pair_row(&[INET6; 90][..length]);
            sending_row(&[INET6; 90][..length]);
            unix_row(&[1; 90][..length]);
            unix_row(&vec![4; 90][..length]);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_the_reading_panic_or_dwell(bytes: Vec<u8>, kind in proptest::sample::select(vec![BY_FAMILY, DONE, ERROR]), length in 0u32..200) {
            let mut message = length.to_ne_bytes().to_vec();
            message.extend(kind.to_ne_bytes());
            message.extend([0; 10]);
            message.extend(&bytes);
            for answer in [&bytes, &message] {
                drop(reply(answer, &mut |row| {
                    inet_row(row);
                    pair_row(row);
                    sending_row(row);
                    unix_row(row);
                }));
            }
        }
    }
}
