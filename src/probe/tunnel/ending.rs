//! Polite ends: how a conversation is broken off so that the server neither counts nor logs a fault, as far as its
//! protocol has a way.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::dialect::{Dialect, MAX_ANSWER};
use crate::client::net::{NetError, Phases, Stream, Trust, tls_observed};

/// How long an end may take; after it the connection is just closed.
pub(super) const LIMIT: Duration = Duration::from_secs(1);

/// The most bytes that are read while the server closes.
const MAX_REST: u64 = 64 * 1024;

/// The most packets that a MySQL server sends before it has decided about a login.
const MAX_PACKETS: usize = 4;

/// Ends a conversation whose first answer is `came`. Nothing of this is a finding: the answer was.
pub(super) async fn end(dialect: Dialect, stream: Stream, came: &[u8], host: &str, username: &str) {
    let ended = tokio::time::timeout(LIMIT, async {
        let mut stream = stream;
        match dialect {
            // PostgreSQL waits for a TLS handshake now and would log that it failed; after it, it logs nothing.
            Dialect::Postgres if came.first() == Some(&b'S') => {
                stream = tls_observed(stream, host, &Trust::system(), &mut Phases::default()).await?.0;
            }
            Dialect::Mysql => login(&mut stream, username).await?,
            // Without a line of ours sshd would log an error instead of a connection that was closed.
            Dialect::Ssh => stream.write_all(b"SSH-2.0-Proctor\r\n").await?,
            _ => {}
        }
        // Closing with bytes unread would reset the connection.
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(MAX_REST), &mut tokio::io::sink()).await?;
        Ok::<(), NetError>(())
    });
    match ended.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a conversation through a tunnel was not ended politely"),
        Err(_) => tracing::debug!("a conversation through a tunnel was not ended politely in time"),
    }
}

/// Logs in to MySQL without a password, and out again.
///
/// A client that closes after the greeting counts towards `max_connect_errors`, which blocks its host; one that is
/// refused does not, and one that is let in counts nowhere (MySQL: "Host Cache", `COUNT_HANDSHAKE_ERRORS`). HAProxy's
/// `mysql-check user` does the same.
async fn login(stream: &mut Stream, username: &str) -> Result<(), NetError> {
    stream.write_all(&handshake_response(username)).await?;
    for _ in 0..MAX_PACKETS {
        let packet = packet(stream).await?;
        match packet.get(4) {
            Some(0x00) => return Ok(stream.write_all(b"\x01\x00\x00\x00\x01").await?), // COM_QUIT
            // AuthSwitchRequest: no password in whatever way it is to be said.
            Some(0xfe) => stream.write_all(&[0, 0, 0, packet[3].wrapping_add(1)]).await?,
            // Refused, which ends it, or something else that needs a password.
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Reads exactly one packet.
async fn packet(stream: &mut Stream) -> Result<Vec<u8>, NetError> {
    let mut header = [0u8; 4];
    stream.read_exact(&mut header).await?;
    let length = usize::from(header[0]) | usize::from(header[1]) << 8 | usize::from(header[2]) << 16;
    if length > MAX_ANSWER {
        return Err(NetError::TooLarge { limit: MAX_ANSWER });
    }
    let mut packet = header.to_vec();
    packet.resize(length + header.len(), 0);
    stream.read_exact(&mut packet[header.len()..]).await?;
    Ok(packet)
}

/// HandshakeResponse41 (MySQL: "Connection Phase Packets"): a user, no password.
fn handshake_response(username: &str) -> Vec<u8> {
    /// `CLIENT_LONG_PASSWORD | CLIENT_PROTOCOL_41 | CLIENT_SECURE_CONNECTION | CLIENT_PLUGIN_AUTH`.
    const CAPABILITIES: u32 = 0x1 | 0x200 | 0x8000 | 0x8_0000;
    /// `utf8_general_ci`.
    const CHARSET: u8 = 33;
    let mut body = CAPABILITIES.to_le_bytes().to_vec();
    body.extend((1u32 << 24).to_le_bytes());
    body.push(CHARSET);
    body.extend([0; 23]);
    body.extend(username.as_bytes());
    // The end of the name, then a password of no bytes.
    body.extend([0, 0]);
    body.extend(b"mysql_native_password\0");
    let mut packet = vec![body.len() as u8, 0, 0, 1];
    packet.extend(body);
    packet
}
