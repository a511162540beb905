//! What is said in the clear before a handshake: SMTP (RFC 3207) and PostgreSQL (protocol 3, `SSLRequest`).

use tokio::io::AsyncWriteExt;

use crate::client::net::{self, NetError, Stream};
use crate::client::sql;
use crate::model::{Failure, Reason};
use crate::probe::{failure_at, tcp};

/// The longest reply of a mail server.
const MAX_REPLY: usize = 8 * 1024;

/// How a connection comes to its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// It begins with it.
    None,
    /// By `STARTTLS`.
    Smtp,
    /// By `SSLRequest`.
    Postgres,
}

impl Upgrade {
    /// Asks for encryption; the next bytes are those of the handshake.
    ///
    /// # Errors
    /// The failure: what answers is another protocol, or offers no encryption.
    pub(super) async fn ask(self, place: &str, stream: &mut Stream) -> Result<(), Failure> {
        match self {
            Self::None => Ok(()),
            Self::Smtp => starttls(place, stream).await,
            Self::Postgres => {
                let asked = sql::request_encryption(stream).await;
                asked.map_err(|error| Failure::new(error.reason(), format!("{place}: {error}")))
            }
        }
    }

    /// Ends an encrypted connection politely; the peer may be gone already.
    pub(super) async fn end(self, mut stream: Stream) {
        let farewell: &[u8] = if self == Self::Smtp { b"QUIT\r\n" } else { b"" };
        if let Err(error) = stream.write_all(farewell).await {
            tracing::trace!(%error, "a server closed before it was told to");
        }
        if let Err(error) = stream.shutdown().await {
            tracing::trace!(%error, "a server closed before it was told to");
        }
    }
}

async fn starttls(place: &str, stream: &mut Stream) -> Result<(), Failure> {
    let greeting = reply(place, stream, b"").await?;
    expect(place, "a mail server's greeting", &greeting, 220)?;
    let host: String = rustix::system::uname().nodename().to_string_lossy().chars().filter(char::is_ascii_graphic).take(64).collect();
    let abilities = reply(place, stream, format!("EHLO {host}\r\n").as_bytes()).await?;
    expect(place, "the answer to EHLO", &abilities, 250)?;
    if !abilities.split(|byte| *byte == b'\n').any(|line| line.get(4..).is_some_and(|word| word.trim_ascii().eq_ignore_ascii_case(b"STARTTLS"))) {
        return Err(Failure::new(Reason::Tls, format!("{place}: this mail server does not offer STARTTLS")));
    }
    let go = reply(place, stream, b"STARTTLS\r\n").await?;
    expect(place, "the answer to STARTTLS", &go, 220)?;
    // What came behind the 220 was not encrypted (CVE-2011-0411).
    if complete(&go) != Some(go.len()) {
        let what = "more than the answer to STARTTLS came before encryption: somebody tampers with the connection";
        return Err(Failure::new(Reason::Protocol, format!("{place}: {what}")));
    }
    Ok(())
}

/// Sends a command and reads its reply.
async fn reply(place: &str, stream: &mut Stream, command: &[u8]) -> Result<Vec<u8>, Failure> {
    let broken = |error: &NetError| failure_at(place, error);
    stream.write_all(command).await.map_err(|error| broken(&error.into()))?;
    net::read_until(stream, MAX_REPLY, |bytes| complete(bytes).is_some()).await.map_err(|error| broken(&error))
}

/// Returns where a reply ends: behind the first line that does not say `250-`.
fn complete(bytes: &[u8]) -> Option<usize> {
    let mut end = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        end += line.len();
        if line.ends_with(b"\n") && line.get(3) != Some(&b'-') {
            return Some(end);
        }
    }
    None
}

fn expect(place: &str, what: &str, reply: &[u8], code: u16) -> Result<(), Failure> {
    let found = reply.get(..3).and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|digits| digits.parse::<u16>().ok());
    let reason = match found {
        Some(found) if found == code => return Ok(()),
        Some(400..600) => Reason::Unavailable,
        _ => Reason::Protocol,
    };
    Err(Failure::new(reason, format!("{place}: expected {what} ({code}), found {}", tcp::beginning(reply))))
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// All that a mail server says up to the handshake.
    pub fn starttls(bytes: &[u8]) {
        crate::fuzzing::answered(bytes, async |stream| drop(starttls("here", &mut Stream::Unix(stream)).await));
    }
}
