//! SMTP (RFC 5321) as a client of one relay: bounded lines, a limit on every wait, and errors that tell what to do.
//!
//! lettre 0.11.23 builds our messages but does not speak here: its connection reads the banner itself, which does not
//! come again after our own STARTTLS, reads lines as UTF-8 without a bound of its own, waits without limit (also for
//! the QUIT it sends after an error), and stuffs no dot after a bare LF (RUSTSEC-2026-0561).

use std::fmt;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::net::{self, Endpoint, NetError, Phases, Stream, Trust};
use crate::model::decode::{self, Decode};
use crate::model::duration::print;
use crate::model::one_line;
use crate::model::yaml::Node;
use crate::model::{Problems, Reason, Secret};

/// The most lines of a transcript.
const MAX_TRANSCRIPT: usize = 200;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// How the connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Not at all: for a relay on this host or in a closed network.
    None,
    /// By `STARTTLS`, without which nothing is sent.
    Starttls,
    /// From the first byte (port 465).
    Tls,
}

impl Decode for Security {
    const EXPECTED: &'static str = "none, starttls or tls";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        match String::decode(node, &mut Problems::default()).as_deref() {
            Some("none") => Some(Self::None),
            Some("starttls") => Some(Self::Starttls),
            Some("tls") => Some(Self::Tls),
            _ => {
                decode::mismatch(node, Self::EXPECTED, problems);
                None
            }
        }
    }
}

/// The bounds on a relay, whatever it does.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until the connection stands, encrypted where it is to be, and the banner has come.
    pub banner: Duration,
    /// For the reply to a command.
    pub command: Duration,
    /// For the reply to the final dot.
    pub dot: Duration,
    /// For one mail with everything before it.
    pub session: Duration,
    /// The longest line of a reply, in bytes.
    pub line: usize,
    /// The most lines of a reply.
    pub lines: usize,
    /// The largest reply, in bytes.
    pub reply: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { banner: seconds(30), command: seconds(60), dot: seconds(120), session: seconds(300), line: 1000, lines: 100, reply: 100_000 }
    }
}

/// A relay and how to talk to it.
#[derive(Clone, Debug)]
pub struct Relay {
    /// Its name: also what its certificate must cover.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is encrypted.
    pub security: Security,
    /// How we name ourselves: a host name or an address in brackets.
    pub hello: String,
    /// User name and password, given only over TLS or to this very host.
    pub login: Option<(String, Secret)>,
    /// Who may sign its certificate.
    pub trust: Trust,
    /// Its bounds.
    pub limits: Limits,
}

/// Who sends and who receives: one recipient, so that one bad address loses nothing for the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    from: String,
    to: String,
}

impl Envelope {
    /// Takes two addresses without names.
    ///
    /// # Errors
    /// What is not an address of plain ASCII, so that no address can carry a command.
    pub fn new(from: &str, to: &str) -> Result<Self, String> {
        for address in [from, to] {
            if !is_address(address) {
                return Err(format!(
                    "expected a mail address such as sysadmin@example.org, found {:?}",
                    address.chars().take(80).collect::<String>()
                ));
            }
        }
        Ok(Self { from: from.to_owned(), to: to.to_owned() })
    }
}

/// Says whether this is a mail address that can stand in an envelope: `local@domain`, ASCII, nothing quoted.
pub fn is_address(address: &str) -> bool {
    let local = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    let domain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    let dots = |part: &str| !part.starts_with('.') && !part.ends_with('.') && !part.contains("..");
    address.rsplit_once('@').is_some_and(|(user, host)| {
        (1..=64).contains(&user.len())
            && (1..=253).contains(&host.len())
            && user.chars().all(local)
            && host.chars().all(domain)
            && dots(user)
            && dots(host)
    })
}

/// What a relay answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The three digits.
    pub code: u16,
    /// The text of all lines, without control characters.
    pub text: Vec<String>,
}

impl Reply {
    fn is(&self, class: u16) -> bool {
        self.code / 100 == class
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = self.text.join(" ").chars().take(300).collect();
        write!(f, "{} {text}", self.code)
    }
}

/// How far a session came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Resolving and connecting.
    Connect,
    /// The TLS handshake.
    Tls,
    /// Waiting for the first line.
    Banner,
    /// `EHLO`.
    Hello,
    /// `STARTTLS`.
    Starttls,
    /// `AUTH`.
    Auth,
    /// `MAIL FROM`.
    Mail,
    /// `RCPT TO`.
    Rcpt,
    /// `DATA` and the message.
    Data,
    /// The reply to the final dot.
    Dot,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Tls => "the TLS handshake",
            Self::Banner => "the greeting",
            Self::Hello => "EHLO",
            Self::Starttls => "STARTTLS",
            Self::Auth => "AUTH",
            Self::Mail => "MAIL FROM",
            Self::Rcpt => "RCPT TO",
            Self::Data => "DATA",
            Self::Dot => "the end of the message",
        })
    }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The relay said no.
    #[error("the relay said {0}")]
    Reply(Reply),
    /// The connection.
    #[error("the connection failed")]
    Net(#[from] NetError),
    /// The relay took longer than it may.
    #[error("no whole reply within {}", print(*.0))]
    Timeout(Duration),
    /// What came is not SMTP, or larger than its limit.
    #[error("{0}")]
    Protocol(&'static str),
    /// We do not go on, since it would not be safe.
    #[error("{0}")]
    Unsafe(&'static str),
}

/// What a failure means for what waits to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The relay does not work now: nothing goes out until it answers.
    Dead,
    /// Relay and configuration do not fit: nothing goes out until somebody changes something.
    Held,
    /// Not now, for this recipient.
    Later,
    /// This recipient is refused for good.
    Never,
    /// This message is refused; the next may pass.
    Message,
    /// The reply to the final dot was lost: the relay may have taken it or not.
    Unknown,
}

/// A mail that was not accepted, as far as we know.
#[derive(Debug, thiserror::Error)]
#[error("{stage} failed at {relay}")]
pub struct SmtpError {
    /// Whom we talked to.
    pub relay: String,
    /// How far it came.
    pub stage: Stage,
    /// What went wrong.
    pub source: Cause,
    /// What was said by both sides, secrets hidden.
    pub transcript: Vec<String>,
}

impl SmtpError {
    /// Says what it means for what waits to be sent.
    pub fn verdict(&self) -> Verdict {
        let reply = match &self.source {
            Cause::Unsafe(_) => return Verdict::Held,
            Cause::Net(error @ (NetError::Tls { .. } | NetError::Certificate { .. })) => {
                let broke = matches!(error.reason(), Reason::Eof | Reason::Reset);
                return if broke { Verdict::Dead } else { Verdict::Held };
            }
            Cause::Net(_) | Cause::Timeout(_) | Cause::Protocol(_) => {
                return if self.stage == Stage::Dot { Verdict::Unknown } else { Verdict::Dead };
            }
            Cause::Reply(reply) => reply,
        };
        match (self.stage, reply.code) {
            // "Service not available, closing": whatever was asked, the whole relay means itself.
            (_, 421) => Verdict::Dead,
            (Stage::Mail | Stage::Rcpt | Stage::Data | Stage::Dot, 530) => Verdict::Held,
            // RFC 5321 §4.5.3.1.10: too many recipients is temporary, also where it comes as 552.
            (Stage::Rcpt, 552) => Verdict::Later,
            (Stage::Rcpt, 500..) => Verdict::Never,
            (Stage::Data | Stage::Dot, 500..) => Verdict::Message,
            (Stage::Mail | Stage::Rcpt | Stage::Data | Stage::Dot, 400..500) => Verdict::Later,
            (_, 400..500) => Verdict::Dead,
            (_, 500..) => Verdict::Held,
            _ => Verdict::Dead,
        }
    }
}

/// A mail that the relay has taken over.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// What it said.
    pub reply: Reply,
    /// What was said by both sides, secrets hidden.
    pub transcript: Vec<String>,
}

/// Delivers one mail over a connection of its own.
///
/// # Errors
/// [`SmtpError`].
pub async fn deliver(relay: &Relay, envelope: &Envelope, message: &[u8]) -> Result<Accepted, SmtpError> {
    let mut session = Session::open(relay).await?;
    let accepted = session.send(envelope, message).await;
    session.quit().await;
    accepted
}

/// A connection to a relay that greeted us, encrypted and logged in as it should be.
#[derive(Debug)]
pub struct Session {
    dialogue: Dialogue,
    relay: String,
    usable: bool,
}

impl Session {
    /// Connects, encrypts, says hello, logs in.
    ///
    /// # Errors
    /// [`SmtpError`]; no password and no mail went out unprotected.
    pub async fn open(relay: &Relay) -> Result<Self, SmtpError> {
        let endpoint = Endpoint::Tcp { host: relay.host.clone(), port: relay.port };
        let name = endpoint.to_string();
        let mut dialogue = Dialogue {
            stream: None,
            buffer: Vec::new(),
            transcript: Vec::new(),
            limits: relay.limits,
            deadline: Instant::now() + relay.limits.session,
            stage: Stage::Connect,
        };
        match dialogue.open(relay, &endpoint).await {
            Ok(()) => Ok(Self { dialogue, relay: name, usable: true }),
            Err(source) => Err(SmtpError { relay: name, stage: dialogue.stage, source, transcript: dialogue.transcript }),
        }
    }

    /// Sends one mail. After an error that concerns only this mail the session can be used again.
    ///
    /// # Errors
    /// [`SmtpError`].
    pub async fn send(&mut self, envelope: &Envelope, message: &[u8]) -> Result<Accepted, SmtpError> {
        self.dialogue.deadline = Instant::now() + self.dialogue.limits.session;
        let outcome = self.dialogue.send(envelope, message).await;
        let transcript = self.dialogue.transcript.clone();
        match outcome {
            Ok(reply) => Ok(Accepted { reply, transcript }),
            Err(source) => {
                let error = SmtpError { relay: self.relay.clone(), stage: self.dialogue.stage, source, transcript };
                let refused = matches!(error.source, Cause::Reply(_)) && !matches!(error.verdict(), Verdict::Dead | Verdict::Held);
                self.usable = refused && self.dialogue.ask("RSET", None, self.dialogue.limits.command).await.is_ok_and(|reply| reply.is(2));
                Err(error)
            }
        }
    }

    /// Asks whether a mail would be taken, up to the recipient, and takes that back: nothing is sent.
    ///
    /// # Errors
    /// [`SmtpError`].
    pub async fn rehearse(&mut self, envelope: &Envelope) -> Result<(), SmtpError> {
        let outcome = self.dialogue.address(envelope).await;
        let Dialogue { stage, transcript, limits, .. } = &self.dialogue;
        let error =
            outcome.err().map(|source| SmtpError { relay: self.relay.clone(), stage: *stage, source, transcript: transcript.clone() });
        let command = limits.command;
        self.usable = self.dialogue.ask("RSET", None, command).await.is_ok_and(|reply| reply.is(2));
        error.map_or(Ok(()), Err)
    }

    /// Says whether another mail can be sent.
    pub fn is_usable(&self) -> bool {
        self.usable
    }

    /// Says goodbye, for two seconds at most.
    pub async fn quit(mut self) {
        if self.usable
            && let Err(error) = self.dialogue.ask("QUIT", None, FAREWELL).await
        {
            tracing::trace!(%error, relay = self.relay, "a relay did not say goodbye");
        }
    }
}

/// Commands and replies, one after the other.
#[derive(Debug)]
struct Dialogue {
    stream: Option<Stream>,
    /// What came but was not read yet: at most one chunk beyond a line.
    buffer: Vec<u8>,
    transcript: Vec<String>,
    limits: Limits,
    deadline: Instant,
    stage: Stage,
}

impl Dialogue {
    async fn open(&mut self, relay: &Relay, endpoint: &Endpoint) -> Result<(), Cause> {
        let mut phases = Phases::default();
        let until = Instant::now() + self.limits.banner;
        let late = |_| Cause::Timeout(relay.limits.banner);
        let mut stream = timeout_at(until, net::connect(endpoint, &mut phases)).await.map_err(late)??;
        if relay.security == Security::Tls {
            self.stage = Stage::Tls;
            stream = timeout_at(until, net::tls(stream, &relay.host, &relay.trust, &mut phases)).await.map_err(late)??.0;
        }
        self.stream = Some(stream);
        self.stage = Stage::Banner;
        let banner = self.reply(self.limits.banner).await?;
        expect(banner, 2)?;
        let mut abilities = self.hello(relay).await?;
        if relay.security == Security::Starttls {
            self.stage = Stage::Starttls;
            if !offers(&abilities, "STARTTLS") {
                return Err(Cause::Unsafe("the relay does not offer STARTTLS, so nothing is sent to it: expected by tls: starttls"));
            }
            expect(self.ask("STARTTLS", None, self.limits.command).await?, 2)?;
            // What came behind the 220 was not encrypted and would be read as if it had been (CVE-2011-0411).
            if !self.buffer.is_empty() {
                return Err(Cause::Unsafe("more than the reply to STARTTLS came before encryption: somebody tampers with the connection"));
            }
            self.stage = Stage::Tls;
            let stream = self.stream.take().ok_or(Cause::Protocol("the connection is gone"))?;
            let wait = self.limits.command;
            let encrypted = timeout_at(self.until(wait), net::tls(stream, &relay.host, &relay.trust, &mut phases));
            self.stream = Some(encrypted.await.map_err(|_| Cause::Timeout(wait))??.0);
            self.note("C: (encrypted from here)");
            abilities = self.hello(relay).await?;
        }
        if let Some((user, password)) = &relay.login {
            self.stage = Stage::Auth;
            let here = phases.peer.is_some_and(|peer| peer.ip().is_loopback());
            if relay.security == Security::None && !here {
                return Err(Cause::Unsafe("the password is not sent without encryption to another host: set tls: starttls or tls: tls"));
            }
            self.login(&abilities, user, password.expose()).await?;
        }
        Ok(())
    }

    /// Says hello and returns what the relay can do.
    async fn hello(&mut self, relay: &Relay) -> Result<Vec<String>, Cause> {
        self.stage = Stage::Hello;
        let mut reply = self.ask(&format!("EHLO {}", relay.hello), None, self.limits.command).await?;
        // A relay from before 1995, of which we want nothing that it does not have.
        if matches!(reply.code, 500 | 502 | 504) && relay.security == Security::None && relay.login.is_none() {
            reply = self.ask(&format!("HELO {}", relay.hello), None, self.limits.command).await?;
        }
        Ok(expect(reply, 2)?.text)
    }

    async fn login(&mut self, abilities: &[String], user: &str, password: &str) -> Result<(), Cause> {
        let wait = self.limits.command;
        let ways = abilities.iter().filter_map(|line| {
            let line = line.to_ascii_uppercase();
            line.strip_prefix("AUTH ").or_else(|| line.strip_prefix("AUTH=")).map(str::to_owned)
        });
        let ways: Vec<String> = ways.flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
        let reply = if ways.iter().any(|way| way == "PLAIN") {
            let secret = base64(format!("\0{user}\0{password}").as_bytes());
            self.ask(&format!("AUTH PLAIN {secret}"), Some("AUTH PLAIN <secret>"), wait).await?
        } else if ways.iter().any(|way| way == "LOGIN") {
            expect(self.ask("AUTH LOGIN", None, wait).await?, 3)?;
            expect(self.ask(&base64(user.as_bytes()), Some("<user name>"), wait).await?, 3)?;
            self.ask(&base64(password.as_bytes()), Some("<secret>"), wait).await?
        } else {
            return Err(Cause::Unsafe(
                "the relay offers neither AUTH PLAIN nor AUTH LOGIN: remove username, or use the port it takes logins on",
            ));
        };
        expect(reply, 2).map(drop)
    }

    /// Names the sender and the recipient.
    async fn address(&mut self, envelope: &Envelope) -> Result<(), Cause> {
        let wait = self.limits.command;
        self.stage = Stage::Mail;
        expect(self.ask(&format!("MAIL FROM:<{}>", envelope.from), None, wait).await?, 2)?;
        self.stage = Stage::Rcpt;
        expect(self.ask(&format!("RCPT TO:<{}>", envelope.to), None, wait).await?, 2).map(drop)
    }

    async fn send(&mut self, envelope: &Envelope, message: &[u8]) -> Result<Reply, Cause> {
        let wait = self.limits.command;
        self.address(envelope).await?;
        self.stage = Stage::Data;
        expect(self.ask("DATA", None, wait).await?, 3)?;
        let message = stuffed(message);
        self.note(format!("C: ({} bytes)", message.len()));
        self.write(&message, self.limits.dot).await?;
        if !self.buffer.is_empty() {
            return Err(Cause::Protocol("the relay answered before the message was complete"));
        }
        // From here on the relay may take the mail even if we never learn of it.
        self.stage = Stage::Dot;
        self.note("C: .");
        self.write(b".\r\n", self.limits.dot).await?;
        expect(self.reply(self.limits.dot).await?, 2)
    }

    /// Sends a command and waits for the reply; `shown` is what the transcript says instead.
    async fn ask(&mut self, command: &str, shown: Option<&str>, wait: Duration) -> Result<Reply, Cause> {
        // A reply that came before its question would be taken for the answer to this one.
        if !self.buffer.is_empty() {
            return Err(Cause::Protocol("the relay answered before it was asked"));
        }
        self.note(format!("C: {}", shown.unwrap_or(command)));
        self.write(format!("{command}\r\n").as_bytes(), wait).await?;
        self.reply(wait).await
    }

    async fn write(&mut self, bytes: &[u8], wait: Duration) -> Result<(), Cause> {
        let until = self.until(wait);
        let stream = self.stream.as_mut().ok_or(Cause::Protocol("the connection is gone"))?;
        let written = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        timeout_at(until, written).await.map_err(|_| Cause::Timeout(wait))?.map_err(|error| NetError::from(error).into())
    }

    async fn reply(&mut self, wait: Duration) -> Result<Reply, Cause> {
        timeout_at(self.until(wait), self.read_reply()).await.map_err(|_| Cause::Timeout(wait))?
    }

    /// Reads lines of the same code until one has no `-` behind it (RFC 5321 §4.2).
    async fn read_reply(&mut self) -> Result<Reply, Cause> {
        let mut reply = Reply { code: 0, text: Vec::new() };
        let mut size = 0;
        loop {
            let line = self.line().await?;
            size += line.len();
            if reply.text.len() >= self.limits.lines || size > self.limits.reply {
                return Err(Cause::Protocol("the reply has more lines than any relay would send"));
            }
            let digits = line.get(..3).filter(|digits| digits.iter().all(u8::is_ascii_digit) && (b'2'..=b'5').contains(&digits[0]));
            let code = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
            let (Some(code), b' ' | b'-') = (code, line.get(3).copied().unwrap_or(b' ')) else {
                self.note(format!("S: {}", clean(&line)));
                return Err(Cause::Protocol("what came is no SMTP reply"));
            };
            if !reply.text.is_empty() && code != reply.code {
                return Err(Cause::Protocol("the lines of one reply have different codes"));
            }
            self.note(format!("S: {}", clean(&line)));
            reply.code = code;
            reply.text.push(clean(line.get(4..).unwrap_or_default()));
            if line.get(3) != Some(&b'-') {
                return Ok(reply);
            }
        }
    }

    /// Reads one line without its end.
    async fn line(&mut self) -> Result<Vec<u8>, Cause> {
        let mut chunk = [0u8; 1024];
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n').filter(|end| *end <= self.limits.line) {
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.truncate(end);
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(line);
            }
            if self.buffer.len() > self.limits.line {
                return Err(Cause::Protocol("a line of the reply is longer than any relay would send"));
            }
            let stream = self.stream.as_mut().ok_or(Cause::Protocol("the connection is gone"))?;
            match stream.read(&mut chunk).await.map_err(NetError::from)? {
                0 => return Err(NetError::Eof { after: self.buffer.len() }.into()),
                n => self.buffer.extend_from_slice(&chunk[..n]),
            }
        }
    }

    fn until(&self, wait: Duration) -> Instant {
        self.deadline.min(Instant::now() + wait)
    }

    fn note(&mut self, line: impl Into<String>) {
        if self.transcript.len() < MAX_TRANSCRIPT {
            self.transcript.push(line.into().chars().take(300).collect());
        }
    }
}

fn expect(reply: Reply, class: u16) -> Result<Reply, Cause> {
    if reply.is(class) { Ok(reply) } else { Err(Cause::Reply(reply)) }
}

fn offers(abilities: &[String], what: &str) -> bool {
    abilities.iter().any(|line| line.split_whitespace().next().is_some_and(|word| word.eq_ignore_ascii_case(what)))
}

/// What a relay said, as one line that can be shown and logged.
fn clean(line: &[u8]) -> String {
    one_line(&String::from_utf8_lossy(line), usize::MAX).trim().to_owned()
}

/// Ends every line in CRLF, whatever it ended in, and doubles a dot at its beginning (RFC 5321 §4.5.2): no byte of a
/// message can end it early.
fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + message.len() / 32 + 2);
    let mut bytes = message.iter().copied().peekable();
    let mut begins = true;
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' | b'\n' => {
                if byte == b'\r' && bytes.peek() == Some(&b'\n') {
                    bytes.next();
                }
                out.extend_from_slice(b"\r\n");
                begins = true;
                continue;
            }
            b'.' if begins => out.extend_from_slice(b".."),
            _ => out.push(byte),
        }
        begins = false;
    }
    if !begins {
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// RFC 4648 §4, for `AUTH` and for HTTP's `Basic`.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for index in 0..4 {
            let six = bits >> (18 - 6 * index) & 63;
            text.push(if index <= group.len() { char::from(ALPHABET[six as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// Replies of a relay.
    pub fn smtp(bytes: &[u8]) {
        crate::fuzzing::answered(bytes, async |stream| {
            let limits = Limits::default();
            let deadline = Instant::now() + limits.session;
            let stream = Some(Stream::Unix(stream));
            let mut dialogue = Dialogue { stream, buffer: Vec::new(), transcript: Vec::new(), limits, deadline, stage: Stage::Mail };
            while let Ok(reply) = dialogue.reply(limits.command).await {
                assert!((200..600).contains(&reply.code) && reply.text.iter().all(|line| !line.contains(char::is_control)));
                assert!(dialogue.buffer.len() <= 2 * limits.line + 24);
                offers(&reply.text, "STARTTLS");
            }
        });
    }
}

#[cfg(test)]
mod tests;
