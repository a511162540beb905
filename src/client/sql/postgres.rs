//! PostgreSQL by tokio-postgres, over a stream of ours.
//!
//! The library waits for whatever length a message announces, and keeps what comes until then: [`Bounded`] ends that at
//! [`MAX_ANSWER`], and looks at the first message, so that another protocol is named and no password goes out in clear.
//! Encryption is asked for before the library begins ([`request_encryption`]).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::{DbError, Severity};
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{Client, Config, Connection, NoTls, SimpleQueryMessage};

use super::{LOCK_TIMEOUT, MAX_ANSWER, MAX_COLUMNS, MAX_ROWS, Question, Rows, Settings, SqlError};
use crate::client::net::{self, Endpoint, NetError, Phases, Stream, USER_AGENT};
use crate::model::{Reason, Secret};

/// `SSLRequest`: its length, then 80877103 ("Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The longest first message; an error has some hundred bytes.
const MAX_FIRST: u32 = 30_000;

/// Asks a PostgreSQL for encryption; the next bytes are those of the handshake.
///
/// # Errors
/// [`SqlError`]: it offers none, or something else answers.
pub async fn request_encryption(stream: &mut Stream) -> Result<(), SqlError> {
    stream.write_all(&SSL_REQUEST).await?;
    // Exactly one byte: what follows belongs to the handshake, and fails in it if it is none (CVE-2021-23222).
    let login = |reason, text: &str| Err(SqlError::Login { reason, text: text.to_owned() });
    match stream.read_u8().await? {
        b'S' => Ok(()),
        b'N' => login(Reason::Tls, "this PostgreSQL does not offer encryption: see ssl in postgresql.conf"),
        // An error message instead: it takes no connection now.
        b'E' => login(Reason::Unavailable, "PostgreSQL answers the request for encryption with an error"),
        other => Err(SqlError::Protocol(format!(
            "expected PostgreSQL's answer S or N to the request for encryption, found the byte {other:#04x}"
        ))),
    }
}

/// A connection that is logged in. It moves only while something is asked over it.
pub(super) struct Conn {
    client: Client,
    connection: Connection<Bounded, NoTlsStream>,
    room: Arc<AtomicUsize>,
}

impl Conn {
    pub(super) async fn new(mut stream: Stream, settings: &Settings, password: Option<&Secret>) -> Result<(Self, String), SqlError> {
        if let Some(trust) = &settings.tls {
            request_encryption(&mut stream).await?;
            stream = net::tls(stream, settings.host(), trust, &mut Phases::default()).await?.0;
        }
        let private = settings.tls.is_some() || matches!(settings.endpoint, Endpoint::Unix(_));
        let room = Arc::new(AtomicUsize::new(MAX_ANSWER));
        let stream = Bounded { stream, room: room.clone(), first: Vec::new(), private, shut: false };
        let mut config = Config::new();
        config.user(&settings.username).dbname(&settings.database).application_name(USER_AGENT).ssl_mode(SslMode::Disable);
        if let Some(password) = password {
            config.password(password.expose());
        }
        let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(|error| wrong(&error))?;
        let version = connection.parameter("server_version").unwrap_or_default().chars().take(80).collect();
        Ok((Self { client, connection, room }, version))
    }

    pub(super) async fn ask(&mut self, question: &Question, settings: &Settings) -> Result<Rows, SqlError> {
        self.room.store(MAX_ANSWER, Ordering::Relaxed);
        let client = &self.client;
        tokio::select! {
            biased;
            answer = ask(client, question, settings) => answer,
            ended = &mut self.connection => Err(ended.err().map_or_else(|| NetError::Eof { after: 0 }.into(), |error| wrong(&error))),
        }
    }

    pub(super) async fn end(self) {
        drop(self.client);
        if let Err(error) = self.connection.await {
            tracing::debug!(%error, "PostgreSQL closed before it was told to");
        }
    }
}

async fn ask(client: &Client, question: &Question, settings: &Settings) -> Result<Rows, SqlError> {
    // Said in each transaction, and not once for the session, so that a pooler in between does not lose it, and gives
    // it to nobody else.
    let begin = format!(
        "BEGIN READ ONLY; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}",
        settings.statement_timeout.as_millis(),
        LOCK_TIMEOUT.as_millis()
    );
    let answer = match question {
        Question::Login { .. } => rows(client, &format!("{begin}; SELECT 1; ROLLBACK")).await,
        Question::Ours(sql) => rows(client, &format!("{begin}; {sql}; ROLLBACK")).await,
        Question::Theirs { sql, rows } => theirs(client, &begin, sql, *rows).await,
    };
    if answer.as_ref().is_err_and(|error| !error.is_fatal()) {
        rows(client, "ROLLBACK").await?;
    }
    answer
}

/// A cursor: the server itself stops at the last row that is wanted. It is declared by the extended protocol, which
/// takes one statement and not several.
async fn theirs(client: &Client, begin: &str, sql: &str, most: usize) -> Result<Rows, SqlError> {
    rows(client, begin).await?;
    client.execute(&format!("DECLARE proctor_query NO SCROLL CURSOR FOR {sql}"), &[]).await.map_err(|error| wrong(&error))?;
    rows(client, &format!("FETCH {} FROM proctor_query; ROLLBACK", most + 1)).await
}

/// Asks by the simple protocol, whose values are texts, and returns the rows of the one statement that has any.
async fn rows(client: &Client, sql: &str) -> Result<Rows, SqlError> {
    let mut answer = std::pin::pin!(client.simple_query_raw(sql).await.map_err(|error| wrong(&error))?);
    let mut found = Rows::default();
    while let Some(message) = answer.next().await {
        match message.map_err(|error| wrong(&error))? {
            SimpleQueryMessage::RowDescription(columns) => {
                if columns.len() > MAX_COLUMNS {
                    return Err(SqlError::too_large(MAX_ANSWER));
                }
                found.columns = columns.iter().map(|column| column.name().to_owned()).collect();
            }
            SimpleQueryMessage::Row(row) => {
                if found.rows.len() >= MAX_ROWS {
                    return Err(SqlError::too_large(MAX_ANSWER));
                }
                let values = (0..row.len()).map(|index| Ok(row.try_get(index).map_err(|error| wrong(&error))?.map(str::to_owned)));
                found.rows.push(values.collect::<Result<_, SqlError>>()?);
            }
            _ => {}
        }
    }
    Ok(found)
}

/// What the library says, in our words.
fn wrong(error: &tokio_postgres::Error) -> SqlError {
    if let Some(error) = error.as_db_error() {
        return said(error);
    }
    if error.is_closed() {
        return NetError::Eof { after: 0 }.into();
    }
    let text = net::chain(error);
    match std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(io) => match io.get_ref().and_then(|inner| inner.downcast_ref::<SqlError>()) {
            Some(ours) => ours.clone(),
            None if matches!(io.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => SqlError::Protocol(text),
            None => io::Error::new(io.kind(), io.to_string()).into(),
        },
        // The library keeps its kinds to itself, but not their first words.
        None if text.starts_with("authentication error") || text.starts_with("invalid configuration") => {
            SqlError::Login { reason: Reason::Auth, text: format!("PostgreSQL wants another login than this one: {text}") }
        }
        None => SqlError::Protocol(text),
    }
}

/// What the server says, with what to do about it.
fn said(error: &DbError) -> SqlError {
    let (code, text) = (error.code().code(), error.message());
    let fatal = matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic)) || error.severity() == "FATAL";
    let (reason, hint) = meaning(code, text);
    SqlError::Server { reason, code: format!("SQLSTATE {code}"), text: format!("{text}{hint}"), fatal }
}

/// What a `SQLSTATE` means (PostgreSQL, appendix A), and what to do where the text does not say it.
fn meaning(code: &str, text: &str) -> (Reason, &'static str) {
    match code {
        "53300" => (Reason::Saturated, ": no login gets in until a connection is closed (see pg_stat_activity; max_connections)"),
        "28P01" => (Reason::Auth, ": wrong password, or the role does not exist (see CREATE ROLE, ALTER ROLE … PASSWORD)"),
        "28000" if text.contains("pg_hba.conf") && text.contains("no encryption") => {
            (Reason::Forbidden, ": add a line for it there, or say tls: true where it lets in encrypted connections only (hostssl)")
        }
        "28000" if text.contains("pg_hba.conf") => (Reason::Forbidden, ": add a line for this user, database and address there"),
        "28000" => (Reason::Auth, ""),
        "3D000" => (Reason::Missing, ""),
        // Of all three the code is the same; a server in another language says "starting".
        "57P03" if text.contains("shutting down") => (Reason::Unavailable, ""),
        "57P03" if text.contains("not accepting") => (Reason::Unavailable, ""),
        "57P03" => (Reason::Starting, ": it still reads its log, and lets in when that is done"),
        "57014" => (Reason::AnswerTimeout, ": the statement took longer than statement_timeout"),
        "55P03" => (Reason::AnswerTimeout, ": somebody holds a lock on it"),
        "25006" | "53100" => (Reason::Blocked, ""),
        "53200" | "53400" => (Reason::Saturated, ""),
        "08P01" => (Reason::Protocol, ""),
        "42P01" | "42703" | "42883" | "3F000" => (Reason::Missing, ""),
        _ if code.starts_with("42501") => (Reason::Forbidden, ""),
        _ if code.starts_with("42") => (Reason::Mismatch, ""),
        _ if code.starts_with("28") => (Reason::Auth, ""),
        _ => (Reason::Unavailable, ""),
    }
}

/// A stream that ends an answer at its limit, and looks at the first message.
struct Bounded {
    stream: Stream,
    /// Bytes that may still come.
    room: Arc<AtomicUsize>,
    /// What came first, until it is judged.
    first: Vec<u8>,
    /// Whether nobody else can read along.
    private: bool,
    /// Whether our side is shut down.
    shut: bool,
}

/// How many bytes of the first message are judged: kind, length, the kind of login.
const FIRST: usize = 9;

impl AsyncRead for Bounded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let came = &buf.filled()[before..];
        let room = self.room.load(Ordering::Relaxed);
        if came.len() > room {
            return Poll::Ready(Err(io::Error::other(SqlError::too_large(MAX_ANSWER))));
        }
        self.room.store(room - came.len(), Ordering::Relaxed);
        if self.first.len() < FIRST && !came.is_empty() {
            self.first.extend(came.iter().take(120));
            judge(&self.first, self.private).map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }
}

/// Judges the beginning of the first message.
fn judge(first: &[u8], private: bool) -> Result<(), SqlError> {
    // Without any of these it is no PostgreSQL: authentication, an error, a notice, another version of the protocol.
    let shown = || String::from_utf8_lossy(first).chars().filter(|c| !c.is_control()).take(60).collect::<String>();
    let other = || Err(SqlError::Protocol(format!("expected PostgreSQL's answer to a login, found {:?}", shown())));
    let [kind, rest @ ..] = first else { return Ok(()) };
    if !b"RENv".contains(kind) {
        return other();
    }
    let Some(length) = rest.first_chunk().map(|length| u32::from_be_bytes(*length)) else { return Ok(()) };
    match (kind, length) {
        (_, 4..=MAX_FIRST) => {}
        // A server that cannot start a process for the connection answers as protocol 2 did: a text.
        (b'E', _) => {
            let text = format!("PostgreSQL takes no connection: {}", shown().trim_start_matches('E'));
            return Err(SqlError::Login { reason: Reason::Unavailable, text });
        }
        _ => return other(),
    }
    match rest.get(4..8) {
        Some([0, 0, 0, 3]) if *kind == b'R' && !private => Err(SqlError::Login {
            reason: Reason::Auth,
            text: "PostgreSQL asks for the password in clear over a connection that is not encrypted: say tls: true, or use scram-sha-256 in pg_hba.conf".to_owned(),
        }),
        _ => Ok(()),
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    /// The library says goodbye, and then shuts down: it is done once the server has closed, and does not count this
    /// connection any more.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.shut = true;
        }
        loop {
            let (mut room, stream) = ([0; 256], &mut self.stream);
            let mut room = ReadBuf::new(&mut room);
            ready!(Pin::new(stream).poll_read(cx, &mut room))?;
            if room.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// All that a PostgreSQL says, from its answer to the login on.
    pub fn postgres(bytes: &[u8]) {
        let settings = Settings::fuzzed(super::Dialect::Postgres);
        drop(judge(bytes, false));
        crate::fuzzing::answered(bytes, async |stream| {
            let password = Secret::new("secret".to_owned());
            let Ok((mut conn, _)) = Conn::new(Stream::Unix(stream), &settings, Some(&password)).await else { return };
            for _ in 0..3 {
                let Ok(rows) = conn.ask(&Question::Ours("SELECT 1"), &settings).await else { continue };
                assert!(rows.rows.len() <= MAX_ROWS && rows.columns.len() <= MAX_COLUMNS);
            }
        });
        crate::fuzzing::answered(bytes, async |stream| drop(request_encryption(&mut Stream::Unix(stream)).await));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_message_is_judged_as_soon_as_it_can_be() {
        let reason = |first: &[u8], private| judge(first, private).err().map(|error| error.reason());
        for (first, private, wanted) in [
            (&b"R\0\0\0\x08\0\0\0\0"[..], false, None),
            (b"R\0\0\0\x08\0\0\0\x03", true, None),
            (b"R\0\0\0\x08\0\0\0\x03", false, Some(Reason::Auth)),
            (b"R\0\0", false, None),
            (b"E\0\0\x01\0SFATAL", false, None),
            (b"EFATAL:  sorry, too many clients\n", false, Some(Reason::Unavailable)),
            (b"HTTP/1.1 400", false, Some(Reason::Protocol)),
            (b"\x4a\0\0\0\x0a5.5.5", false, Some(Reason::Protocol)),
            (b"R\x7f\xff\xff\xff\0\0\0\0", false, Some(Reason::Protocol)),
        ] {
            assert_eq!(reason(first, private), wanted, "{}", String::from_utf8_lossy(first));
        }
    }
}
