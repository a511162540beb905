//! The first bytes of each protocol, and what the far end says to them.

use crate::model::decode::{self, Decode};
use crate::model::yaml::Node;
use crate::model::{Problems, Reason};
use crate::probe::tcp::beginning;

/// The most bytes of an answer that are kept; every protocol here has answered long before.
pub(super) const MAX_ANSWER: usize = 4096;

/// The longest identification line of ssh, with its line end (RFC 4253 §4.2).
const MAX_SSH_LINE: usize = 255;

macro_rules! dialects {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal),+ $(,)?) => {
        /// What the far end of a tunnel speaks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Dialect { $($(#[doc = $doc])+ $variant),+ }

        impl Dialect {
            /// Returns the word of the configuration.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl Decode for Dialect {
            const EXPECTED: &'static str = concat!("one of" $(, " ", $text)+);
            fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
                match String::decode(node, &mut Problems::default()).as_deref() {
                    $(Some($text) => Some(Self::$variant),)+
                    _ => {
                        decode::mismatch(node, Self::EXPECTED, problems);
                        None
                    }
                }
            }
        }
    };
}

dialects! {
    /// PostgreSQL and what stands in front of it (pgbouncer).
    Postgres = "postgres",
    /// MySQL and MariaDB.
    Mysql = "mysql",
    /// DB2 and Derby.
    Db2 = "db2",
    /// Microsoft SQL Server.
    Mssql = "mssql",
    /// An SSH server.
    Ssh = "ssh",
    /// Anything that speaks first, whatever it says.
    Generic = "generic",
}

/// What an answer says: nothing while it is not complete, then life, or what is wrong.
pub(super) type Verdict = Option<Result<(), (Reason, String)>>;

const LIVES: Verdict = Some(Ok(()));

impl Dialect {
    /// Guesses what speaks at a far port, by the numbers that are registered for it.
    ///
    /// MySQL is left out: asking it costs it a refused login, which nobody told us to make.
    pub fn of_port(port: u16) -> Option<Self> {
        match port {
            5432 => Some(Self::Postgres),
            446 | 50000 => Some(Self::Db2),
            1433 => Some(Self::Mssql),
            22 => Some(Self::Ssh),
            _ => None,
        }
    }

    /// Returns what the client says first; nothing where the server does.
    pub(super) fn hello(self) -> &'static [u8] {
        match self {
            // SSLRequest: length 8, code 80877103 (PostgreSQL's "Message Formats"; the same in blackbox_exporter's
            // example.yml). Answered by one byte, before any login, and not logged.
            Self::Postgres => b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
            // A request DSS (length 10, 0xD0, type 1, correlator 1) with EXCSAT (code point 1041) and none of its
            // parameters, which are all optional (DRDA, volume 3: DDM). Derby 10.16 answers it with EXCSATRD.
            Self::Db2 => b"\x00\x0a\xd0\x01\x00\x01\x00\x04\x10\x41",
            // PRELOGIN, byte for byte the example of [MS-TDS] §4.1.
            Self::Mssql => {
                b"\x12\x01\x00\x2f\x00\x00\x01\x00\x00\x00\x1a\x00\x06\x01\x00\x20\
                  \x00\x01\x02\x00\x21\x00\x01\x03\x00\x22\x00\x04\x04\x00\x26\x00\
                  \x01\xff\x09\x00\x00\x00\x00\x00\x01\x00\xb8\x0d\x00\x00\x01"
            }
            Self::Mysql | Self::Ssh | Self::Generic => b"",
        }
    }

    /// Returns what the run waits for once connected.
    pub(super) fn awaits(self) -> &'static str {
        match self {
            Self::Postgres => "waiting for PostgreSQL's first byte",
            Self::Db2 => "waiting for the answer to EXCSAT",
            Self::Mssql => "waiting for the answer to PRELOGIN",
            Self::Mysql | Self::Ssh | Self::Generic => "waiting for the server's first bytes",
        }
    }

    /// Judges what has come so far, at most [`MAX_ANSWER`] bytes.
    pub(super) fn judge(self, came: &[u8]) -> Verdict {
        let first = *came.first()?;
        match self {
            Self::Generic => LIVES,
            Self::Postgres => match first {
                b'S' | b'N' => LIVES,
                // ErrorResponse, of protocol 3 with a length or of protocol 2 without one.
                b'E' => broken(Reason::Unavailable, "PostgreSQL", "turns connections away", &came[1..]),
                _ => other("PostgreSQL's S or N", came),
            },
            Self::Mysql => mysql(came),
            Self::Db2 => match came {
                [_, _, magic, ..] if *magic != 0xd0 => other("DRDA (DB2)", came),
                // EXCSATRD, or one of DDM's reply messages: both are a server that speaks it.
                [_, _, _, _, _, _, _, _, high, low, ..] => match (high, low) {
                    (0x14, 0x43) | (0x12 | 0x22, _) => LIVES,
                    _ => other("DRDA's EXCSATRD", came),
                },
                _ => None,
            },
            // [MS-TDS] §2.2.3.1: type 4 (tabular result), status, the length with this header of 8 bytes.
            Self::Mssql if first != 0x04 => other("SQL Server's answer to PRELOGIN", came),
            Self::Mssql => match came {
                [_, _, high, low, _, _, _, _, ..] if u16::from_be_bytes([*high, *low]) >= 8 => LIVES,
                [_, _, _, _, _, _, _, _, ..] => other("SQL Server's answer to PRELOGIN", came),
                _ => None,
            },
            Self::Ssh => ssh(came),
        }
    }
}

/// A server that says what it is. Lines before it are allowed (RFC 4253 §4.2), but OpenSSH sends one only instead.
fn ssh(came: &[u8]) -> Verdict {
    if came.starts_with(b"SSH-2.0-") || came.starts_with(b"SSH-1.99-") {
        return LIVES;
    }
    let line = came.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if line.len() == came.len() && came.len() < MAX_SSH_LINE && came.is_ascii() {
        // Half a line: what it says instead is worth reading to its end.
        return None;
    }
    if line.starts_with(b"Exceeded MaxStartups") {
        return broken(Reason::Saturated, "sshd", "has too many connections that have not logged in", line);
    }
    if line.starts_with(b"Not allowed at this time") {
        return broken(Reason::Forbidden, "sshd", "turns the tunnel's host away for a time (PerSourcePenalties)", line);
    }
    other("ssh's SSH-2.0-…", came)
}

/// A packet: length in three bytes, number, then 10 for a greeting or 255 for an error (MySQL's "Connection Phase").
fn mysql(came: &[u8]) -> Verdict {
    let (number, kind) = (*came.get(3)?, *came.get(4)?);
    if number != 0 || !matches!(kind, 0x0a | 0xff) {
        return other("MySQL's greeting", came);
    }
    let length = usize::from(came[0]) | usize::from(came[1]) << 8 | usize::from(came[2]) << 16;
    if length + 4 > MAX_ANSWER {
        return other("MySQL's greeting", came);
    }
    let packet = came.get(4..length + 4)?;
    let (low, high, text) = match packet {
        [0x0a, ..] => return LIVES,
        [_, low, high, text @ ..] => (low, high, text),
        _ => return other("MySQL's greeting", came),
    };
    let code = u16::from_le_bytes([*low, *high]);
    let (reason, what) = match code {
        1040 | 1203 => (Reason::Saturated, "has too many connections"),
        1129 => (Reason::Forbidden, "has blocked the tunnel's host (max_connect_errors): mysqladmin flush-hosts there"),
        1130 => (Reason::Forbidden, "does not let the tunnel's host in"),
        _ => (Reason::Unavailable, "turns connections away"),
    };
    broken(reason, "MySQL", &format!("{what} (error {code})"), text)
}

fn broken(reason: Reason, who: &str, what: &str, said: &[u8]) -> Verdict {
    let said = String::from_utf8_lossy(said).replace('\0', " ");
    Some(Err((reason, format!("the tunnel works, and {who} at its far end {what}: {}", beginning(said.as_bytes())))))
}

fn other(expected: &str, came: &[u8]) -> Verdict {
    Some(Err((Reason::Protocol, format!("expected {expected}, found {}: something else is at the far end", beginning(came)))))
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// The first bytes from the far end of a tunnel.
    pub fn tunnel(bytes: &[u8]) {
        let mut came = bytes[..bytes.len().min(MAX_ANSWER)].to_vec();
        let all = [Dialect::Postgres, Dialect::Mysql, Dialect::Db2, Dialect::Mssql, Dialect::Ssh, Dialect::Generic];
        for dialect in all {
            dialect.judge(&came);
        }
        came.resize(MAX_ANSWER, b'x');
        assert!(all.iter().all(|dialect| dialect.judge(&came).is_some()), "none waits without end");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(dialect: Dialect, came: &[u8]) -> Option<Option<Reason>> {
        dialect.judge(came).map(|verdict| verdict.err().map(|(reason, _)| reason))
    }

    /// What SQL Server 2008 SP1 and 2012 SP1 answer to exactly this PRELOGIN, as dumped in the documentation of "ESF"
    /// and of "SQL Fingerprint NG" (both public Perl scripts that ask for the version). Not run against a live server.
    const SQL_SERVERS: [&[u8]; 2] = [
        b"\x04\x01\x00\x2b\x00\x00\x01\x00\x00\x00\x1a\x00\x06\x01\x00\x20\x00\x01\x02\x00\x21\x00\x01\x03\x00\x22\x00\x00\x04\x00\x22\x00\x01\xff\x0a\x00\x09\xe3\x00\x00\x01\x00\x01",
        b"\x04\x01\x00\x2b\x00\x00\x01\x00\x00\x00\x1a\x00\x06\x01\x00\x20\x00\x01\x02\x00\x21\x00\x01\x03\x00\x22\x00\x00\x04\x00\x22\x00\x01\xff\x0b\x00\x0b\xb8\x00\x00\x01\x00\x01",
    ];

    #[test]
    fn sql_servers_answers_are_life_and_half_of_one_is_waited_for() {
        let hello = Dialect::Mssql.hello();
        assert_eq!(usize::from(u16::from_be_bytes([hello[2], hello[3]])), hello.len(), "its own length");
        for answer in SQL_SERVERS {
            assert_eq!(reason(Dialect::Mssql, answer), Some(None));
            for cut in 0..8 {
                assert_eq!(reason(Dialect::Mssql, &answer[..cut]), None, "{cut} bytes");
            }
        }
        assert_eq!(reason(Dialect::Mssql, b"\x04\x01\x00\x07\x00\x00\x01\x00"), Some(Some(Reason::Protocol)));
    }

    #[test]
    fn each_answer_has_its_verdict() {
        use Dialect::{Db2, Generic, Mssql, Mysql, Postgres, Ssh};
        for (dialect, came, wanted) in [
            (Generic, &b"?"[..], Some(None)),
            (Postgres, b"S", Some(None)),
            (Postgres, b"N", Some(None)),
            (Postgres, b"ESFATAL\0", Some(Some(Reason::Unavailable))),
            (Postgres, b"\x49\0\0\0\x0a5.5.5-10.11", Some(Some(Reason::Protocol))),
            (Mysql, b"\x02\0\0\0", None),
            (Mysql, b"\x04\0\0\0\x0a8.", None),
            (Mysql, b"\x04\0\0\0\x0a8.4", Some(None)),
            (Mysql, b"\x04\0\0\x01\x0a8.4", Some(Some(Reason::Protocol))),
            (Mysql, b"\xff\xff\xff\0\x0a", Some(Some(Reason::Protocol))),
            (Mysql, b"SSH-2.0-OpenSSH_9.2", Some(Some(Reason::Protocol))),
            (Mysql, b"\x0b\0\0\0\xff\x10\x04Too many", Some(Some(Reason::Saturated))),
            (Mysql, b"\x0b\0\0\0\xff\x69\x04Host 'a'", Some(Some(Reason::Forbidden))),
            (Mysql, b"\x0b\0\0\0\xff\x6a\x04Host 'a'", Some(Some(Reason::Forbidden))),
            (Mysql, b"\x01\0\0\0\xff", Some(Some(Reason::Protocol))),
            (Db2, b"\x00\x71", None),
            (Db2, b"\x00\x71\xd0\x02\x00\x01\x00\x6b\x14", None),
            (Db2, b"\x00\x71\xd0\x02\x00\x01\x00\x6b\x14\x43", Some(None)),
            (Db2, b"\x00\x15\xd0\x02\x00\x01\x00\x0f\x12\x45", Some(None)),
            (Db2, b"\x00\x15\xd0\x02\x00\x01\x00\x0f\x10\x41", Some(Some(Reason::Protocol))),
            (Db2, b"HTTP/1.1 400", Some(Some(Reason::Protocol))),
            (Mssql, b"SSH-2.0-x", Some(Some(Reason::Protocol))),
            (Ssh, b"SS", None),
            (Ssh, b"SSH-2.0-OpenSSH_9.2", Some(None)),
            (Ssh, b"SSH-1.99-x", Some(None)),
            (Ssh, b"SSH-1.5-x\n", Some(Some(Reason::Protocol))),
            (Ssh, b"\x4a\0\0\0\x0a", Some(Some(Reason::Protocol))),
            (Ssh, b"HTTP/1.1 400 Bad", None),
            (Ssh, b"HTTP/1.1 400 Bad\r\n", Some(Some(Reason::Protocol))),
            (Ssh, &[b'x'; 255], Some(Some(Reason::Protocol))),
            (Ssh, b"Exceeded MaxStartups\r\n", Some(Some(Reason::Saturated))),
            (Ssh, b"Not allowed at this time\r\n", Some(Some(Reason::Forbidden))),
        ] {
            assert_eq!(reason(dialect, came), wanted, "{dialect:?} {}", String::from_utf8_lossy(came));
            assert_eq!(reason(dialect, b""), None, "nothing is no answer");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_waited_for_without_end(mut came: Vec<u8>) {
            for dialect in [Dialect::Postgres, Dialect::Mysql, Dialect::Db2, Dialect::Mssql, Dialect::Ssh, Dialect::Generic] {
                dialect.judge(&came);
            }
            came.resize(MAX_ANSWER, b'x');
            for dialect in [Dialect::Postgres, Dialect::Mysql, Dialect::Db2, Dialect::Mssql, Dialect::Ssh, Dialect::Generic] {
                proptest::prop_assert!(dialect.judge(&came).is_some(), "{dialect:?}");
            }
        }
    }
}
