//! An SMTP server that keeps what it takes, can be taken down and up on its port, and can misbehave.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::process::eventually;

/// A mail as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Mail {
    /// The recipient of the envelope.
    pub(crate) to: String,
    /// The sender of the envelope.
    pub(crate) from: String,
    /// The headers in their order: unfolded, encoded words decoded.
    pub(crate) headers: Vec<(String, String)>,
    /// The text part.
    pub(crate) text: String,
    /// The HTML part.
    pub(crate) html: String,
    /// As it came, dots unstuffed.
    pub(crate) raw: String,
    /// Whether it came over TLS.
    pub(crate) encrypted: bool,
    /// Who had logged in.
    pub(crate) login: Option<String>,
}

impl Mail {
    /// Returns the first header of a name, or an empty text.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    fn parse(from: &str, to: &str, raw: &[u8], encrypted: bool, login: Option<String>) -> Self {
        let raw = String::from_utf8_lossy(raw).into_owned();
        let (headers, body) = split(&raw);
        let mut mail = Self {
            to: to.into(),
            from: from.into(),
            headers,
            text: String::new(),
            html: String::new(),
            raw: raw.clone(),
            encrypted,
            login,
        };
        let kind = mail.header("Content-Type").to_owned();
        match kind.split_once("boundary=") {
            Some((_, boundary)) => {
                let boundary = boundary.trim_start_matches('"').split(['"', ';']).next().unwrap_or("");
                for part in format!("\r\n{body}").split(&format!("\r\n--{boundary}")).skip(1).filter(|part| !part.starts_with("--")) {
                    mail.part(part.strip_prefix("\r\n").unwrap_or(part));
                }
            }
            None => mail.part(&raw),
        }
        mail
    }

    fn part(&mut self, part: &str) {
        let (headers, body) = split(part);
        let header = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.as_str());
        let bytes = match header("Content-Transfer-Encoding") {
            "quoted-printable" => quoted_printable(&body.replace("=\r\n", ""), false),
            "base64" => base64(body),
            _ => body.as_bytes().to_vec(),
        };
        let text = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
        if header("Content-Type").starts_with("text/html") { self.html = text } else { self.text = text }
    }
}

fn split(raw: &str) -> (Vec<(String, String)>, &str) {
    let (head, body) = raw.split_once("\r\n\r\n").unwrap_or((raw, ""));
    let unfolded = head.replace("\r\n ", " ").replace("\r\n\t", " ");
    let headers = unfolded.split("\r\n").map(|line| line.split_once(':').unwrap_or((line, "")));
    (headers.map(|(name, value)| (name.to_owned(), words(value.trim()))).collect(), body)
}

/// Decodes the encoded words of RFC 2047; white space between two of them is none.
fn words(value: &str) -> String {
    let mut out = Vec::new();
    let mut last_encoded = false;
    for (index, word) in value.split(' ').enumerate() {
        let inner =
            word.strip_prefix("=?").and_then(|w| w.strip_suffix("?=")).and_then(|w| w.split_once('?')).and_then(|(_, w)| w.split_once('?'));
        if index > 0 && !(last_encoded && inner.is_some()) {
            out.push(b' ');
        }
        match inner {
            Some(("b" | "B", text)) => out.extend(base64(text)),
            Some((_, text)) => out.extend(quoted_printable(text, true)),
            None => out.extend(word.as_bytes()),
        }
        last_encoded = inner.is_some();
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn quoted_printable(text: &str, underscores: bool) -> Vec<u8> {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        match (bytes[at], text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'=', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'_', _) if underscores => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    out
}

pub(crate) fn base64(text: &str) -> Vec<u8> {
    let (mut bits, mut count, mut out) = (0u32, 0, Vec::new());
    for c in text.chars() {
        let six = match c {
            'A'..='Z' => c as u32 - 65,
            'a'..='z' => c as u32 - 71,
            '0'..='9' => c as u32 + 4,
            '+' => 62,
            '/' => 63,
            _ => continue,
        };
        (bits, count) = (bits << 6 | six, count + 6);
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}

/// Whether and how the sink encrypts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Wire {
    #[default]
    Plain,
    Starttls,
    Tls,
}

/// What the sink does that a good server does not.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Quirk {
    /// Never greets.
    SilentBanner,
    /// Greets with a line that never ends.
    EndlessLine,
    /// Greets with a reply of lines that never end.
    EndlessReply,
    /// Sends the greeting one byte a second.
    Drip,
    /// Sends these bytes with the 220 of STARTTLS.
    Inject(&'static [u8]),
    /// Resets the connection in the middle of the message.
    ResetMidData,
    /// Takes the message and never answers.
    HangAfterDot,
    /// Takes the message and closes without an answer.
    CloseAfterDot,
    /// Closes after so many mails on one connection.
    CloseAfter(usize),
    /// Greets with these bytes.
    Greets(&'static [u8]),
    /// Answers a command twice.
    Stutters,
}

/// How the sink behaves; may change while it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manners {
    pub(crate) wire: Wire,
    /// User name and password; then no mail is taken without them.
    pub(crate) login: Option<(String, String)>,
    /// Offers only this mechanism.
    pub(crate) mechanism: Option<&'static str>,
    pub(crate) quirk: Option<Quirk>,
    /// What is answered next to a verb (`MAIL`, `RCPT`, `DATA`, `.`, …), once each.
    pub(crate) next: BTreeMap<&'static str, VecDeque<&'static str>>,
    /// What is always answered to a verb, or to `RCPT address`.
    pub(crate) always: BTreeMap<String, &'static str>,
}

#[derive(Debug, Default)]
struct Shared {
    manners: Manners,
    mails: Vec<Mail>,
    connections: usize,
}

/// The server; it ends with the test's runtime.
pub(crate) struct Sink {
    pub(crate) port: u16,
    /// PEM file with its certificate, which covers `localhost`.
    pub(crate) ca_file: PathBuf,
    shared: Arc<Mutex<Shared>>,
    acceptor: TlsAcceptor,
    life: Mutex<Life>,
    _dir: tempfile::TempDir,
}

enum Life {
    Up(JoinSet<()>),
    /// Holds the port without listening, so that nobody else gets it.
    Down(TcpSocket),
}

fn bound(port: u16) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("is set");
    socket.bind(([127, 0, 0, 1], port).into()).expect("the port is ours");
    socket
}

impl Sink {
    /// Starts a good server on a free port of 127.0.0.1.
    pub(crate) async fn start() -> Self {
        Self::with(Manners::default()).await
    }

    /// Starts one that behaves so.
    pub(crate) async fn with(manners: Manners) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("is signed");
        let ca_file = dir.path().join("ca.pem");
        std::fs::write(&ca_file, signed.cert.pem()).expect("is written");
        let key = rustls::pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).expect("is a key");
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![signed.cert.der().clone()], key)
            .expect("key and certificate fit");
        let socket = bound(0);
        let port = socket.local_addr().expect("it is bound").port();
        let shared = Arc::new(Mutex::new(Shared { manners, ..Shared::default() }));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let sink = Self { port, ca_file, shared, acceptor, life: Mutex::new(Life::Down(socket)), _dir: dir };
        sink.up();
        sink
    }

    /// Changes how it behaves from the next command on.
    pub(crate) fn manners(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut self.shared.lock().expect("no test panics in here").manners);
    }

    /// Returns what has arrived.
    pub(crate) fn mails(&self) -> Vec<Mail> {
        self.shared.lock().expect("no test panics in here").mails.clone()
    }

    /// Returns how many connections came.
    pub(crate) fn connections(&self) -> usize {
        self.shared.lock().expect("no test panics in here").connections
    }

    /// Waits until so many mails have arrived.
    pub(crate) async fn wait_for(&self, count: usize, within: Duration) -> Vec<Mail> {
        let have = || async { Some(self.mails()).filter(|mails| mails.len() >= count) };
        eventually(&format!("{count} mails"), within, have).await
    }

    /// Closes the port and every connection.
    pub(crate) fn down(&self) {
        let mut life = self.life.lock().expect("no test panics in here");
        if let Life::Up(tasks) = &mut *life {
            tasks.abort_all();
        }
        // The listener closes when its aborted task is dropped; until then the port is taken.
        let begin = std::time::Instant::now();
        loop {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_reuseaddr(true).expect("is set");
            if socket.bind(([127, 0, 0, 1], self.port).into()).is_ok() {
                *life = Life::Down(socket);
                return;
            }
            assert!(begin.elapsed() < Duration::from_secs(5), "the port does not close: the test needs flavor = \"multi_thread\"");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Opens the port again.
    pub(crate) fn up(&self) {
        let mut life = self.life.lock().expect("no test panics in here");
        let socket = match std::mem::replace(&mut *life, Life::Up(JoinSet::new())) {
            Life::Down(socket) => socket,
            up @ Life::Up(_) => return *life = up,
        };
        let listener = socket.listen(64).expect("it listens");
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, self.shared.clone(), self.acceptor.clone()));
        *life = Life::Up(tasks);
    }
}

async fn serve(listener: TcpListener, shared: Arc<Mutex<Shared>>, acceptor: TlsAcceptor) {
    // Connections are children of this task: they end when it is aborted.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        shared.lock().expect("no test panics in here").connections += 1;
        let (shared, acceptor) = (shared.clone(), acceptor.clone());
        connections.spawn(async move { drop(talk(stream, &shared, &acceptor).await) });
    }
}

trait Wired: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wired for T {}

struct Peer {
    stream: Box<dyn Wired>,
    buffer: Vec<u8>,
}

impl Peer {
    async fn say(&mut self, text: &str) -> std::io::Result<()> {
        self.stream.write_all(format!("{text}\r\n").as_bytes()).await?;
        self.stream.flush().await
    }

    async fn line(&mut self) -> std::io::Result<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.buffer.drain(..end + 2).take(end).collect();
                return Ok(line);
            }
            let mut chunk = [0u8; 4096];
            match self.stream.read(&mut chunk).await? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => self.buffer.extend_from_slice(&chunk[..n]),
            }
        }
    }
}

const FOREVER: Duration = Duration::from_secs(3600);

async fn talk(tcp: TcpStream, shared: &Arc<Mutex<Shared>>, acceptor: &TlsAcceptor) -> std::io::Result<()> {
    let manners = || shared.lock().expect("no test panics in here").manners.clone();
    let wire = manners().wire;
    // Behind TLS the socket cannot be asked for a reset any more: a copy of it can.
    let tcp = tcp.into_std()?;
    let raw = tcp.try_clone()?;
    let tcp = TcpStream::from_std(tcp)?;
    let mut encrypted = wire == Wire::Tls;
    let mut peer = if wire == Wire::Tls {
        Peer { stream: Box::new(acceptor.accept(tcp).await?), buffer: Vec::new() }
    } else {
        Peer { stream: Box::new(tcp), buffer: Vec::new() }
    };
    match manners().quirk {
        Some(Quirk::SilentBanner) => tokio::time::sleep(FOREVER).await,
        Some(Quirk::EndlessLine) => loop {
            peer.stream.write_all(&[b'2'; 8192]).await?;
        },
        Some(Quirk::EndlessReply) => loop {
            peer.stream.write_all(&b"220-more\r\n".repeat(1000)).await?;
        },
        Some(Quirk::Drip) => {
            for byte in b"220 slow as a snail, and slower than any limit\r\n" {
                peer.stream.write_all(&[*byte]).await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Some(Quirk::Greets(bytes)) => {
            peer.stream.write_all(bytes).await?;
            tokio::time::sleep(FOREVER).await;
        }
        _ => peer.say("220 sink.example.org ESMTP").await?,
    }
    let (mut from, mut to, mut login, mut taken) = (None::<String>, None::<String>, None::<String>, 0);
    loop {
        let line = String::from_utf8_lossy(&peer.line().await?).into_owned();
        let verb = line.split([' ', ':']).next().unwrap_or("").to_ascii_uppercase();
        let address = line.split(['<', '>']).nth(1).unwrap_or("").to_owned();
        let scripted = |verb: &str| {
            let mut shared = shared.lock().expect("no test panics in here");
            let next = shared.manners.next.get_mut(verb).and_then(VecDeque::pop_front);
            next.or_else(|| shared.manners.always.get(verb).copied())
                .or_else(|| shared.manners.always.get(&format!("{verb} {address}")).copied())
        };
        if let Some(reply) = scripted(&verb) {
            peer.say(reply).await?;
            if reply.starts_with("421") {
                return Ok(());
            }
            continue;
        }
        let now = manners();
        match verb.as_str() {
            "EHLO" | "HELO" => {
                let mut lines = vec!["sink.example.org".to_owned(), "PIPELINING".to_owned(), "8BITMIME".to_owned()];
                if wire == Wire::Starttls && !encrypted {
                    lines.push("STARTTLS".to_owned());
                }
                if now.login.is_some() {
                    lines.push(format!("AUTH {}", now.mechanism.unwrap_or("PLAIN LOGIN")));
                }
                let last = lines.pop().unwrap_or_default();
                for line in lines {
                    peer.say(&format!("250-{line}")).await?;
                }
                peer.say(&format!("250 {last}")).await?;
            }
            "STARTTLS" => {
                let more = if let Some(Quirk::Inject(bytes)) = now.quirk { bytes } else { b"" };
                peer.stream.write_all(&[b"220 go ahead\r\n", more].concat()).await?;
                peer = Peer { stream: Box::new(acceptor.accept(peer.stream).await?), buffer: Vec::new() };
                encrypted = true;
            }
            "AUTH" => {
                let given = if let Some(encoded) = line.strip_prefix("AUTH PLAIN ") {
                    let text = String::from_utf8_lossy(&base64(encoded)).into_owned();
                    let mut parts = text.split('\0').skip(1).map(str::to_owned);
                    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
                } else {
                    let mut asked = Vec::new();
                    for question in ["VXNlcm5hbWU6", "UGFzc3dvcmQ6"] {
                        peer.say(&format!("334 {question}")).await?;
                        asked.push(String::from_utf8_lossy(&base64(&String::from_utf8_lossy(&peer.line().await?))).into_owned());
                    }
                    (asked[0].clone(), asked[1].clone())
                };
                if now.login.as_ref() == Some(&given) {
                    login = Some(given.0);
                    peer.say("235 welcome").await?;
                } else {
                    peer.say("535 5.7.8 wrong user name or password").await?;
                }
            }
            "MAIL" if now.login.is_some() && login.is_none() => peer.say("530 5.7.0 log in first").await?,
            "MAIL" => {
                from = Some(address);
                peer.say("250 ok").await?;
                if now.quirk == Some(Quirk::Stutters) {
                    peer.say("250 ok").await?;
                }
            }
            "RCPT" if from.is_some() => {
                to = Some(address);
                peer.say("250 ok").await?;
            }
            "DATA" if to.is_some() => {
                peer.say("354 go on").await?;
                if now.quirk == Some(Quirk::ResetMidData) {
                    peer.stream.read_exact(&mut [0u8; 64]).await?;
                    rustix::net::sockopt::set_socket_linger(&raw, Some(Duration::ZERO))?;
                    return Ok(());
                }
                let mut message = Vec::new();
                loop {
                    let line = peer.line().await?;
                    if line == b"." {
                        break;
                    }
                    message.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
                    message.extend_from_slice(b"\r\n");
                }
                if let Some(reply) = scripted(".") {
                    (from, to) = (None, None);
                    peer.say(reply).await?;
                    continue;
                }
                let mail =
                    Mail::parse(&from.take().unwrap_or_default(), &to.take().unwrap_or_default(), &message, encrypted, login.clone());
                shared.lock().expect("no test panics in here").mails.push(mail);
                taken += 1;
                match now.quirk {
                    Some(Quirk::HangAfterDot) => tokio::time::sleep(FOREVER).await,
                    Some(Quirk::CloseAfterDot) => return Ok(()),
                    _ => peer.say("250 2.0.0 taken").await?,
                }
                if matches!(now.quirk, Some(Quirk::CloseAfter(most)) if taken >= most) {
                    return Ok(());
                }
            }
            "RSET" => {
                (from, to) = (None, None);
                peer.say("250 ok").await?;
            }
            "NOOP" => peer.say("250 ok").await?,
            "QUIT" => return peer.say("221 bye").await,
            _ => peer.say("503 not now").await?,
        }
    }
}
