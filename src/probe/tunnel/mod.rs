//! Asks the far end of an SSH tunnel (`ssh -L`).
//!
//! The near end opens whatever is beyond it: ssh takes the connection first and asks the far sshd afterwards, and a
//! frozen ssh has its connections taken by the kernel. So the first step of the far service's own protocol is made
//! through the tunnel, and where no answer comes the kernel is asked how far the connection got:
//!
//! | connect | then | reason |
//! |---|---|---|
//! | refused | | `local_refused`: nobody listens, ssh is gone |
//! | taken | closed without a byte | `remote_refused`: the far sshd could not connect |
//! | taken | silence, no process has taken it | `ssh_hung` |
//! | taken | silence, ssh has taken it | `remote_silent` |

mod dialect;
mod ending;

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::tcp::{beginning, record_net};
use super::{Planned, Probe, Recorder, failure};
use crate::client::net::{self, Endpoint, NetError, Phases, Stream};
use crate::client::process::{self, Holder, user_name};
use crate::client::sock_diag::{self, Accepted, Listener, Sending};
use crate::model::duration::print_measured;
use crate::model::{Failure, Family, Reason, Sight};
pub use dialect::Dialect;

/// How often the kernel is asked how far the connection got.
const LOOK: Duration = Duration::from_millis(200);

/// How long a silent connection that ssh has taken is kept before another is tried in its place: the far end may have
/// forgotten it (a firewall, a power cut), and only a new one would see that it is well again.
const KEPT: Duration = Duration::from_secs(300);

/// The longest user name of MySQL, in bytes here.
const MAX_USERNAME: usize = 32;

static UP: Family = Family::gauge("tunnel_up", "Whether the service at the far end of the tunnel answers in its protocol");
static CONNECT: Family = Family::gauge("tunnel_connect_duration_seconds", "How long connecting to the near end took");
static ANSWER: Family =
    Family::gauge("tunnel_answer_duration_seconds", "How long the answer of the far end took, once connected to the near one");
static QUEUE: Family = Family::gauge("tunnel_accept_queue", "Connections that ssh has not taken yet, without Proctor's own");
static UNACKNOWLEDGED: Family =
    Family::gauge("tunnel_ssh_unacknowledged_bytes", "Bytes that ssh has sent over its own connection and the far host has not acknowledged");
static RETRANSMITS: Family = Family::gauge(
    "tunnel_ssh_retransmits",
    "How often the oldest unacknowledged bytes of ssh's own connection were sent again; above 0 for long is a dead path",
);

crate::config_struct! {
    /// Asks the far end of an SSH tunnel (`ssh -L`): the first step of the protocol that it speaks, without a login, so
    /// that a tunnel whose near end opens and whose far end is dead, frozen or another is seen.
    pub struct TunnelConfig {
        /// Where ssh listens: `127.0.0.1:50000`.
        address: Endpoint,
        /// What the service at the far end speaks; `generic` for any other that speaks first: then any byte is life.
        speaks: Dialect,
        /// Programs that may hold the port, by the name that `ps -o comm` shows; `[]` for any. `sshd` for a tunnel that
        /// the far host opened (`ssh -R`), `docker-proxy` for one in a container.
        owner: Vec<String> = "[ssh]",
        /// For `mysql`: who logs in, without a password and without need of any right, so that the server does not count
        /// a handshake that was broken off and block the host. The account need not exist; where it does
        /// (`CREATE USER proctor@'…'`, no grants), the server logs and counts no refused login either.
        username: String = "proctor",
    }
}

/// Builds the one target.
///
/// # Errors
/// A socket in the file system as `address`, a `username` that MySQL could not have.
pub fn plan(config: &TunnelConfig) -> Result<Vec<Planned>, String> {
    let Endpoint::Tcp { host, .. } = &config.address else {
        return Err(format!("address: expected host:port, found {}: a tunnel is asked over TCP only", config.address));
    };
    if config.username.is_empty() || config.username.len() > MAX_USERNAME || config.username.contains('\0') {
        return Err(format!("username: expected a name of at most {MAX_USERNAME} bytes, found {:?}", config.username));
    }
    Ok(Planned::only(Tunnel { config: config.clone(), host: host.clone(), kept: Arc::default() }))
}

/// Reads from ssh's command line where a port of `ssh -L` leads to: host and port.
pub fn far_end(command_line: &[String], port: u16) -> Option<(String, u16)> {
    let after = command_line.iter().zip(command_line.iter().skip(1));
    let apart = after.filter(|(flag, _)| flag.starts_with('-') && flag.ends_with('L')).map(|(_, spec)| spec.as_str());
    let joined = command_line.iter().filter_map(|word| word.strip_prefix("-L")).filter(|spec| !spec.is_empty());
    apart.chain(joined).find_map(|spec| match spec.split(':').collect::<Vec<_>>().as_slice() {
        [.., local, host, remote] if local.parse() == Ok(port) => Some(((*host).to_owned(), remote.parse().ok()?)),
        _ => None,
    })
}

struct Tunnel {
    config: TunnelConfig,
    /// The host of the address.
    host: String,
    /// Held during a run: what a run that is dropped at its deadline leaves in here, the next one finds.
    kept: Arc<Mutex<Kept>>,
}

/// What outlives a run.
#[derive(Default)]
struct Kept {
    /// The connection that has not been answered: at most this one is ever left open, and while the far end is silent
    /// no other is made, since it would only lie in the queue of what is frozen.
    open: Option<Open>,
    /// Who holds the listening socket of this inode, where that may be seen.
    holder: Option<(u32, Option<Holder>)>,
}

/// A connection through the tunnel, once the client has said its first bytes.
struct Open {
    stream: Stream,
    /// Its ends, where they are known: the near end of the tunnel, then our own.
    ends: Option<(SocketAddr, SocketAddr)>,
    phases: Phases,
    since: Instant,
    /// What has come, at most [`dialect::MAX_ANSWER`] bytes.
    came: Vec<u8>,
}

impl Open {
    /// Asks the kernel how far the connection got; nothing where it cannot tell.
    fn accepted(&self) -> Option<Accepted> {
        let (near, own) = self.ends?;
        sock_diag::accepted(near, own).ok().flatten()
    }
}

impl Tunnel {
    /// Finds who listens at the first of these addresses where somebody does.
    fn listener(addresses: &[SocketAddr]) -> io::Result<Option<Listener>> {
        for address in addresses {
            if let Some(listener) = sock_diag::listeners(*address)?.first() {
                return Ok(Some(*listener));
            }
        }
        Ok(None)
    }

    /// Finds who holds a listening socket; looks through the processes only if it is another one than before.
    async fn holder(&self, kept: &mut Kept, inode: u32) -> Option<Holder> {
        if let Some((known, holder)) = &kept.holder
            && *known == inode
            // `ssh -f` gives its socket to a child and ends.
            && holder.as_ref().is_none_or(|holder| holder.is_stopped().is_some())
        {
            return holder.clone();
        }
        let owner = self.config.owner.clone();
        // A search that panicked has found nothing.
        let found = tokio::task::spawn_blocking(move || process::holder(u64::from(inode), &owner)).await.ok().flatten();
        kept.holder = Some((inode, found.clone()));
        found
    }

    /// Says who holds the port, where it is a program that may; what cannot be seen is said in the recorder.
    async fn owner(&self, rec: &mut Recorder, kept: &mut Kept, listener: &io::Result<Option<Listener>>) -> Result<Option<Holder>, Failure> {
        let address = &self.config.address;
        let listener = match listener {
            Ok(Some(listener)) => listener,
            Ok(None) => return Ok(None),
            Err(error) => {
                rec.sight(Sight::Partial {
                    missing: format!("who holds {address}, and whether ssh itself hangs: {error}"),
                    remedy: "add AF_NETLINK to RestrictAddressFamilies= of Proctor's unit, or modprobe tcp_diag inet_diag".to_owned(),
                });
                return Ok(None);
            }
        };
        if self.config.owner.is_empty() {
            return Ok(None);
        }
        let Some(holder) = self.holder(kept, listener.inode).await else {
            let user = user_name(listener.uid);
            rec.sight(Sight::Partial {
                missing: format!("which program holds {address}: it is one of {user}'s"),
                remedy: format!("run Proctor as {user} or with AmbientCapabilities=CAP_SYS_PTRACE, or say owner: []"),
            });
            return Ok(None);
        };
        if holder.is_one_of(&self.config.owner) {
            return Ok(Some(holder));
        }
        let wanted = self.config.owner.join(" or ");
        Err(Failure::new(
            Reason::WrongOwner,
            format!("{address}: expected that {wanted} holds the port, found {holder}: stop it and start the tunnel again, with ExitOnForwardFailure=yes, without which ssh goes on when it cannot have its port"),
        ))
    }

    /// Connects and says the first bytes.
    async fn open(&self, rec: &mut Recorder, addresses: &[SocketAddr], listener: Option<Listener>, holder: Option<&Holder>) -> Result<Open, Failure> {
        let address = &self.config.address;
        let mut phases = Phases::default();
        match listener {
            Some(Listener { queue, .. }) if queue.waiting > queue.max => rec.waiting(
                Reason::SshHung,
                format!("connecting to {address}: {} of {} connections wait there and nobody takes them: {}", queue.waiting, queue.max, hangs(holder)),
            ),
            _ => rec.waiting(Reason::ConnectTimeout, format!("connecting to {address}")),
        }
        let connected = net::connect_to(address, addresses, &mut phases).await;
        record_net(rec, &phases);
        let mut stream = connected.map_err(|error| match &error {
            NetError::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => Failure::new(
                Reason::LocalRefused,
                format!("{}: nobody listens there, so ssh has ended or could not have the port: start the tunnel again", net::chain(&error)),
            ),
            _ => failure(&error),
        })?;
        let connect = phases.connect.unwrap_or_default();
        rec.set(&CONNECT, connect.as_secs_f64());
        let own = match &stream {
            Stream::Tcp(stream) => stream.local_addr().ok(),
            _ => None,
        };
        // The kernel takes these few bytes at once. An error here will be the reading's too.
        let said = stream.write_all(self.config.speaks.hello()).await;
        if let Err(error) = said {
            tracing::debug!(%error, %address, "the tunnel was closed before the first bytes were said");
        }
        Ok(Open { stream, ends: phases.peer.zip(own), phases, since: Instant::now(), came: Vec::new() })
    }

    /// Reads until the answer can be judged, and says meanwhile what the silence means.
    async fn hear(&self, rec: &mut Recorder, open: &mut Open, holder: Option<&Holder>) -> Result<(), Failure> {
        let address = &self.config.address;
        let speaks = self.config.speaks;
        let mut chunk = [0u8; 512];
        loop {
            if let Some(verdict) = speaks.judge(&open.came) {
                return verdict.map_err(|(reason, text)| Failure::new(reason, format!("{address}: {text}")));
            }
            self.say_silence(rec, open, holder);
            let room = chunk.len().min(dialect::MAX_ANSWER - open.came.len());
            let read = tokio::select! {
                read = open.stream.read(&mut chunk[..room]) => read,
                () = tokio::time::sleep(LOOK) => continue,
            };
            let at = format!("{address}: {}", open.phases);
            let after = print_measured(open.since.elapsed());
            match read {
                Ok(count @ 1..) => open.came.extend_from_slice(&chunk[..count]),
                Ok(_) | Err(_) if open.came.is_empty() => {
                    let holder = holder.and_then(|holder| far_end(&holder.command, open.ends?.0.port()));
                    let far = holder.map_or_else(String::new, |(host, port)| format!(" ({host}:{port} as its host sees it)"));
                    return Err(Failure::new(
                        Reason::RemoteRefused,
                        format!("{at}, closed without a byte after {after}: the tunnel is up but the far end{far} is closed, or the far sshd may not connect to it"),
                    ));
                }
                Ok(_) => {
                    let error = NetError::Eof { after: open.came.len() };
                    return Err(Failure::new(Reason::Eof, format!("{at}, {error}: found {}", beginning(&open.came))));
                }
                Err(error) => {
                    return Err(Failure::new(Reason::Reset, format!("{at}, broken off after {}: {error}", beginning(&open.came))));
                }
            }
        }
    }

    /// Says in the recorder what it means if nothing more comes.
    fn say_silence(&self, rec: &mut Recorder, open: &Open, holder: Option<&Holder>) {
        let mut at = format!("{}: {}", self.config.address, open.phases);
        let age = open.since.elapsed();
        if age >= Duration::from_secs(10) {
            // Writing to a String cannot fail.
            let written = write!(at, " {} ago", print_measured(age));
            debug_assert!(written.is_ok());
        }
        let hello = self.config.speaks.hello();
        let silent = format!("{at}, {}: the tunnel is up but the far end is silent", self.config.speaks.awaits());
        if !open.came.is_empty() {
            rec.waiting(Reason::AnswerTimeout, format!("{at}, the answer is not complete, found so far {}", beginning(&open.came)));
            return;
        }
        let path = || holder.and_then(|holder| path_of(holder, near_port(&self.config.address))).filter(|path| path.retransmits > 0);
        match open.accepted() {
            Some(Accepted { taken: false, .. }) => {
                rec.waiting(Reason::SshHung, format!("{at} by the kernel, but no process has taken the connection: {}", hangs(holder)));
            }
            // It was stopped after it had taken this one.
            _ if holder.and_then(Holder::is_stopped) == Some(true) => {
                rec.waiting(Reason::SshHung, format!("{at}, {}: {}", self.config.speaks.awaits(), hangs(holder)));
            }
            Some(_) if let Some(Sending { peer, unacknowledged, retransmits, .. }) = path() => rec.waiting(
                Reason::RemoteSilent,
                format!("{silent}; ssh's own connection to {peer} has {unacknowledged} bytes unacknowledged, sent again {retransmits} times: the path to the far host is dead"),
            ),
            // ssh reads nothing before the far sshd has connected.
            Some(Accepted { unread: 1.., .. }) => rec.waiting(
                Reason::RemoteSilent,
                format!("{silent}; ssh has not passed the first bytes on: the path to the far host is dead, or its sshd cannot connect"),
            ),
            Some(_) if !hello.is_empty() => {
                rec.waiting(Reason::RemoteSilent, format!("{silent}; ssh has passed the first bytes on: the service itself is frozen, or the path to it"));
            }
            _ => rec.waiting(Reason::RemoteSilent, silent),
        }
    }

    async fn end(&self, rec: &mut Recorder, open: Open) {
        let Open { stream, came, since, .. } = open;
        let after = print_measured(since.elapsed());
        rec.waiting(Reason::AnswerTimeout, format!("{}: answered after {after}, too late to be told goodbye", self.config.address));
        ending::end(self.config.speaks, stream, &came, &self.host, &self.config.username).await;
    }

    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let address = &self.config.address;
        let mut kept = self.kept.lock().await;
        rec.waiting(Reason::Resolve, format!("looking up the name of {address}"));
        let addresses = net::lookup(address, &mut Phases::default()).await.map_err(|error| failure(&error))?;
        let own = kept.open.as_ref().and_then(Open::accepted).is_some_and(|half| !half.taken);
        let listener = Self::listener(&addresses);
        if let Ok(Some(Listener { queue, .. })) = &listener {
            rec.set(&QUEUE, f64::from(queue.waiting.saturating_sub(u32::from(own))));
        }
        rec.waiting(Reason::AnswerTimeout, format!("looking for the process that holds {address}"));
        let owner = self.owner(rec, &mut kept, &listener).await;
        if owner.is_err() {
            kept.open = None;
        }
        let holder = owner?;
        if let Some(path) = holder.as_ref().and_then(|holder| path_of(holder, near_port(address))) {
            rec.set(&UNACKNOWLEDGED, f64::from(path.unacknowledged));
            rec.set(&RETRANSMITS, f64::from(path.retransmits));
        }
        let kernel_tells = listener.is_ok();
        let listener = listener.ok().flatten();
        if let Some(open) = &mut kept.open {
            // Where no process has taken it, another would only wait behind it.
            if open.since.elapsed() < KEPT || open.accepted().is_some_and(|half| !half.taken) {
                // An answer now is one to an earlier question: the verdict is that of a new connection.
                let answered = self.hear(rec, open, holder.as_ref()).await.is_ok();
                if let (Some(open), true) = (kept.open.take(), answered) {
                    self.end(rec, open).await;
                }
            }
        }
        let elsewhere = listener.is_none() && kernel_tells;
        let open = kept.open.insert(self.open(rec, &addresses, listener, holder.as_ref()).await?);
        if elsewhere {
            // Somebody took the connection, and the kernel does not show who.
            rec.sight(Sight::Partial {
                missing: format!("who holds {address}, and whether ssh itself hangs: nobody listens there in this network namespace"),
                remedy: "run Proctor on the host, and in the network namespace, of ssh".to_owned(),
            });
        }
        let heard = self.hear(rec, open, holder.as_ref()).await;
        if heard.is_ok() {
            rec.set(&ANSWER, open.since.elapsed().as_secs_f64());
        }
        if let (Some(open), true) = (kept.open.take(), heard.is_ok()) {
            self.end(rec, open).await;
        }
        heard
    }
}

/// The port of the near end.
fn near_port(address: &Endpoint) -> u16 {
    if let Endpoint::Tcp { port, .. } = address { *port } else { 0 }
}

/// Finds ssh's own connection to the far host: the first that it opened, and none that came in at the near end. Nothing
/// where the kernel does not tell, or where ssh has none of its own (`ProxyCommand`, `ProxyJump`).
fn path_of(holder: &Holder, near: u16) -> Option<Sending> {
    let all = sock_diag::established().ok()?;
    let mut own = holder.sockets().into_iter().filter_map(|inode| all.iter().find(|one| u64::from(one.inode) == inode));
    own.find(|one| one.port != near).copied()
}

/// What is the matter with an ssh that takes no connection, and what to do.
fn hangs(holder: Option<&Holder>) -> String {
    match holder {
        Some(holder) if holder.is_stopped() == Some(true) => {
            format!("{holder} is stopped: kill -CONT {}, or start the tunnel again", holder.pid)
        }
        Some(holder) => format!("{holder} hangs: start the tunnel again"),
        None => "ssh itself is stopped or hangs: start the tunnel again".to_owned(),
    }
}

impl Probe for Tunnel {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn a_configuration_names_what_the_far_end_speaks() {
        let config = |text: &str| from_text::<TunnelConfig>("f", text);
        let right = config("{address: '127.0.0.1:50000', speaks: db2}").expect("is right");
        assert_eq!((right.speaks, right.owner.as_slice(), right.username.as_str()), (Dialect::Db2, &["ssh".to_owned()][..], "proctor"));
        let problems = config("{address: '127.0.0.1:50000', speaks: oracle}").expect_err("is unknown");
        let wanted = "expected one of postgres mysql db2 mssql ssh generic, found";
        assert!(problems[0].message.contains(wanted), "{}", problems[0]);
        assert!(config("address: '127.0.0.1:50000'").is_err(), "what it speaks is not guessed");
        let long = format!("{{address: 'a:1', speaks: mysql, username: {}}}", "x".repeat(33));
        for text in ["{address: 'unix:/run/tunnel', speaks: ssh}", "{address: 'a:1', speaks: mysql, username: ''}", &long] {
            assert!(plan(&config(text).expect(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn the_far_end_of_a_tunnel_is_read_from_its_command_line() {
        let line = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (command, port, wanted) in [
            ("ssh -N -L 127.0.0.1:50000:hutch.example.org:50000 jump", 50000, Some(("hutch.example.org", 50000))),
            ("ssh -fNL 5433:db:5432 jump", 5433, Some(("db", 5432))),
            ("ssh -L3307:db:3306 jump", 3307, Some(("db", 3306))),
            ("ssh -L 1:a:2 -L 3:b:4 jump", 3, Some(("b", 4))),
            ("ssh -N jump", 1, None),
            ("ssh -L", 1, None),
        ] {
            assert_eq!(far_end(&line(command), port), wanted.map(|(host, port)| (host.to_owned(), port)), "{command}");
        }
    }
}
