//! MySQL and MariaDB: protocol 10, as far as a login and texts go ("MySQL Source Code Documentation", Client/Server
//! Protocol), bounded.
//!
//! Why not mysql_async: it opens its connections itself, without our limits, phases and trust; and a connection of it
//! that is dropped in the middle of something reads on in a task of its own that no limit ends, so that against a
//! frozen server one more connection waits with each run.
//!
//! A login is brought to its end whatever happens: where it cannot succeed it is made without a password, and refused.
//! A client that goes away after the greeting counts towards `max_connect_errors`, one that is refused does not.

mod login;
mod wire;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{LOCK_TIMEOUT, MAX_ANSWER, MAX_COLUMNS, MAX_ROWS, Question, Rows, Settings, SqlError};
use crate::client::net::Stream;
use crate::model::{Reason, Secret};

use wire::{Fields, Wire};

/// `COM_QUIT`.
const QUIT: &[u8] = &[0x01];
/// `COM_QUERY`.
const QUERY: u8 = 0x03;

/// The error of a variable that this version does not have.
const UNKNOWN_VARIABLE: &str = "error 1193";

/// A connection that is logged in.
pub(super) struct Conn {
    wire: Wire,
}

impl Conn {
    pub(super) async fn new(stream: Stream, settings: &Settings, password: Option<&Secret>) -> Result<(Self, String), SqlError> {
        let (wire, version) = login::log_in(stream, settings, password).await?;
        let mut conn = Self { wire };
        let seconds = LOCK_TIMEOUT.as_secs().max(1);
        let limit = match version.contains("MariaDB") {
            true => format!("SET SESSION max_statement_time = {}", settings.statement_timeout.as_secs_f64()),
            false => format!("SET SESSION max_execution_time = {}", settings.statement_timeout.as_millis()),
        };
        for statement in [
            "SET SESSION TRANSACTION READ ONLY",
            &format!(
                "SET SESSION lock_wait_timeout = {seconds}, innodb_lock_wait_timeout = {seconds}, sql_select_limit = {}",
                MAX_ROWS + 1
            ),
            &limit,
        ] {
            match conn.query(statement).await {
                // Before MySQL 5.7.8 and MariaDB 10.1 no statement has a limit.
                Err(error) if error.code() == Some(UNKNOWN_VARIABLE) => tracing::debug!(%error, statement, "this MySQL has no such limit"),
                outcome => drop(outcome?),
            }
        }
        Ok((conn, version))
    }

    pub(super) async fn ask(&mut self, question: &Question) -> Result<Rows, SqlError> {
        match question {
            Question::Login { .. } => self.query("SELECT current_user() AS account").await,
            Question::Ours(sql) => self.query(sql).await,
            Question::Theirs { sql, rows } => {
                self.query(&format!("SET SESSION sql_select_limit = {}", rows + 1)).await?;
                let answer = self.query(sql).await;
                if answer.as_ref().is_err_and(SqlError::is_fatal) {
                    return answer;
                }
                self.query(&format!("SET SESSION sql_select_limit = {}", MAX_ROWS + 1)).await?;
                answer
            }
        }
    }

    pub(super) async fn end(mut self) {
        self.wire.begin(MAX_ANSWER);
        let said = async {
            self.wire.write(QUIT).await?;
            self.wire.stream.shutdown().await?;
            // It closes once it does not count this connection any more.
            while self.wire.stream.read(&mut [0; 256]).await? > 0 {}
            Ok::<(), std::io::Error>(())
        };
        if let Err(error) = said.await {
            tracing::debug!(%error, "MySQL closed before it was told to");
        }
    }

    /// Asks one statement by `COM_QUERY`; several are refused by the server, since we do not say that we can take that.
    async fn query(&mut self, sql: &str) -> Result<Rows, SqlError> {
        self.wire.begin(MAX_ANSWER);
        let mut command = vec![QUERY];
        command.extend_from_slice(sql.as_bytes());
        self.wire.write(&command).await?;
        let first = self.wire.packet().await?;
        let count = match first.as_slice() {
            [0x00, ..] => return Ok(Rows::default()),
            [0xff, rest @ ..] => return Err(refused(rest, false)),
            // It wants a file of ours.
            [0xfb, ..] => return Err(SqlError::Protocol("MySQL asks for a file of this host (LOCAL INFILE)".to_owned())),
            packet => Fields(packet).number()?,
        };
        let count = usize::try_from(count).ok().filter(|count| (1..=MAX_COLUMNS).contains(count));
        let Some(count) = count else { return Err(SqlError::Protocol("MySQL announces more columns than are taken".to_owned())) };
        let mut found = Rows::default();
        for _ in 0..count {
            let packet = self.wire.packet().await?;
            let mut fields = Fields(&packet);
            // Catalog, schema, table, its original name; then the name that the query gave.
            for _ in 0..4 {
                fields.text()?;
            }
            found.columns.push(String::from_utf8_lossy(fields.text()?.unwrap_or_default()).into_owned());
        }
        if !wire::is_eof(&self.wire.packet().await?) {
            return Err(SqlError::Protocol("expected the end of MySQL's columns, found something else".to_owned()));
        }
        loop {
            let packet = self.wire.packet().await?;
            if wire::is_eof(&packet) {
                return Ok(found);
            }
            if let [0xff, rest @ ..] = packet.as_slice() {
                return Err(refused(rest, false));
            }
            if found.rows.len() > MAX_ROWS {
                return Err(SqlError::too_large(MAX_ANSWER));
            }
            let mut fields = Fields(&packet);
            let row = (0..count).map(|_| Ok(fields.text()?.map(|text| String::from_utf8_lossy(text).into_owned())));
            found.rows.push(row.collect::<Result<_, SqlError>>()?);
        }
    }
}

/// An error packet behind its first byte: number, `#` and `SQLSTATE` once logged in, text.
fn refused(rest: &[u8], fatal: bool) -> SqlError {
    let Some((code, text)) = rest.split_first_chunk::<2>() else {
        return SqlError::Protocol("expected MySQL's error number, found nothing".to_owned());
    };
    let code = u16::from_le_bytes(*code);
    let text = if text.first() == Some(&b'#') { text.get(6..).unwrap_or_default() } else { text };
    let text: String = String::from_utf8_lossy(text).chars().take(300).collect();
    let (reason, hint) = meaning(code);
    // A server that goes down, and one whose connection was killed, says so and closes.
    let fatal = fatal || matches!(code, 1053 | 1080 | 1152 | 1927 | 4031);
    SqlError::Server { reason, code: format!("error {code}"), text: format!("{}{hint}", text.trim()), fatal }
}

/// What an error number means (MySQL's and MariaDB's "Error Reference"), and what to do where the text does not say it.
fn meaning(code: u16) -> (Reason, &'static str) {
    match code {
        1040 => (Reason::Saturated, ": no login gets in until a connection is closed (see SHOW PROCESSLIST; max_connections)"),
        1203 | 1226 => (Reason::Saturated, ""),
        1129 => (
            Reason::Forbidden,
            ": after too many broken logins from this host (max_connect_errors): run mysqladmin flush-hosts there, and find who breaks off",
        ),
        1130 => (Reason::Forbidden, ": no account lets this host in (see CREATE USER … @'host')"),
        1045 | 1698 => (Reason::Auth, ": wrong password, no such account for this host, or one that wants encryption (tls: true)"),
        1251 | 1275 | 1524 | 1820 | 1862 | 3118 | 3878 | 4151 => (Reason::Auth, ""),
        1044 | 1142 | 1143 | 1227 | 1370 => (Reason::Forbidden, ""),
        1049 | 1146 | 1054 | 1305 => (Reason::Missing, ""),
        3159 => (Reason::Tls, ": say tls: true"),
        1290 | 1792 | 1836 | 1021 => (Reason::Blocked, ""),
        1205 => (Reason::AnswerTimeout, ": somebody holds a lock on it"),
        1317 | 1969 | 3024 => (Reason::AnswerTimeout, ": the statement took longer than statement_timeout"),
        1064 | 1149 => (Reason::Mismatch, ""),
        1037 | 1041 | 1135 => (Reason::Saturated, ""),
        1047 | 1156 | 1835 => (Reason::Protocol, ""),
        1927 => (Reason::Eof, ": somebody killed this connection"),
        _ => (Reason::Unavailable, ""),
    }
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// All that a MySQL says, from its greeting on.
    pub fn mysql(bytes: &[u8]) {
        let settings = Settings::fuzzed(super::Dialect::Mysql);
        drop(refused(bytes, false));
        crate::fuzzing::answered(bytes, async |stream| {
            let password = Secret::new("secret".to_owned());
            let Ok((mut conn, _)) = Conn::new(Stream::Unix(stream), &settings, Some(&password)).await else { return };
            for _ in 0..3 {
                let Ok(rows) = conn.ask(&Question::Theirs { sql: "SELECT 1".to_owned(), rows: 10 }).await else { continue };
                assert!(rows.rows.len() <= MAX_ROWS + 1 && rows.columns.len() <= MAX_COLUMNS);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_packet_is_read_with_and_without_its_state() {
        for (packet, reason, text, fatal) in [
            (&b"\x10\x04Too many connections"[..], Reason::Saturated, "Too many connections: no login", true),
            (b"\x15\x04#28000Access denied", Reason::Auth, "Access denied: wrong password", true),
            (b"\x69\x04#HY000Host 'a' is blocked", Reason::Forbidden, "Host 'a' is blocked: after too many", true),
            (b"\x00\x07#25006Cannot execute", Reason::Blocked, "Cannot execute", false),
            (b"\x1d\x04#08S01Server shutdown", Reason::Unavailable, "Server shutdown", true),
        ] {
            let SqlError::Server { reason: found, text: said, fatal: ends, .. } = refused(packet, fatal) else { panic!("{text}") };
            assert_eq!((found, ends), (reason, fatal), "{text}");
            assert!(said.starts_with(text), "{said}");
        }
        assert_eq!(refused(b"\x10", true).reason(), Reason::Protocol);
    }
}
