//! One standing connection to one database, PostgreSQL or MySQL, bounded against whatever answers there.
//!
//! # Contract
//!
//! A [`Session`] is one database as one user sees it. It holds **one connection, never more**: a task of its own opens
//! it at the first question, asks one question after the other, and opens it again when it was lost. A caller that goes
//! away (a run at its deadline) changes nothing of that: the handshake or the question that is under way is brought to
//! its end, so that no login is broken off (MySQL blocks a host after `max_connect_errors` of those), no connection is
//! used whose last answer is half read, and against a server that is frozen one connection waits, not one more with each
//! run. The next question waits behind it and says so. Only after [`GIVE_UP`] is the connection closed.
//!
//! **Every question is harmless**: it runs in a read-only transaction, with a limit for the statement and one for locks
//! that the server itself keeps, so that nothing goes on there when nobody waits for it any more.
//!
//! # Bounds
//!
//! One answer: [`MAX_ANSWER`] bytes, [`MAX_ROWS`] rows, [`MAX_COLUMNS`] columns. Questions that wait: one.

mod mysql;
mod postgres;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::net::{self, Endpoint, NetError, Phases, Stream, Trust};
use super::secret;
use crate::model::{Reason, Secret};
use crate::tasks::Tasks;

pub use postgres::request_encryption;

/// The most bytes of the answer to one question, or of one login.
pub const MAX_ANSWER: usize = 1 << 20;
/// The most rows of one answer.
pub const MAX_ROWS: usize = 2_000;
/// The most columns of one answer.
pub const MAX_COLUMNS: usize = 128;
/// A login or an answer that has not come to its end by then never will: the connection is closed. A server that was
/// frozen for eight hours has seen a hundred broken logins then, MySQL's default for `max_connect_errors`.
pub const GIVE_UP: Duration = Duration::from_secs(300);
/// How long a refused login is not tried again with the same password: each one is a line in the server's log.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// How long a question waits for locks; that of the catalogue wait for nothing usually.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a goodbye may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// PostgreSQL, protocol 3.
    Postgres,
    /// MySQL and MariaDB, protocol 10.
    Mysql,
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "PostgreSQL",
            Self::Mysql => "MySQL",
        })
    }
}

/// Which database, and as whom.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What it speaks.
    pub dialect: Dialect,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Encrypts, where given, for a server that these trust; the name is the endpoint's host.
    pub tls: Option<Trust>,
    /// The database that is opened.
    pub database: String,
    /// The user.
    pub username: String,
    /// Its password, read at every login; without it none is sent.
    pub password_file: Option<PathBuf>,
    /// How long the server lets one statement run.
    pub statement_timeout: Duration,
}

impl Settings {
    /// Those of a fuzz target, which answers over a socket pair.
    #[cfg(fuzzing)]
    fn fuzzed(dialect: Dialect) -> Self {
        Self {
            dialect,
            endpoint: Endpoint::Unix("/run/database".into()),
            tls: None,
            database: "site".to_owned(),
            username: "proctor".to_owned(),
            password_file: None,
            statement_timeout: Duration::from_secs(2),
        }
    }

    pub(crate) fn password(&self) -> Result<Option<Secret>, SqlError> {
        let read = |path: &PathBuf| secret::read(path).map_err(|error| SqlError::Secret(net::chain(&error)));
        self.password_file.as_ref().map(read).transpose()
    }

    fn host(&self) -> &str {
        match &self.endpoint {
            Endpoint::Tcp { host, .. } => host,
            Endpoint::Unix(_) => "localhost",
        }
    }
}

/// What went wrong with a database.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SqlError {
    /// The password cannot be read.
    #[error("{0}")]
    Secret(String),
    /// Resolving, connecting, TLS, reading.
    #[error("{}", net::chain(&**.0))]
    Net(Arc<NetError>),
    /// What came is not the protocol, or not what it allows then.
    #[error("{0}")]
    Protocol(String),
    /// The login cannot go on, for what the server wants.
    #[error("{text}")]
    Login {
        /// Of the closed set.
        reason: Reason,
        /// What it wants, and what to do.
        text: String,
    },
    /// The server said no.
    #[error("{text} ({code})")]
    Server {
        /// Of the closed set, by the code.
        reason: Reason,
        /// `SQLSTATE` or MySQL's number.
        code: String,
        /// What it said.
        text: String,
        /// Whether it ended the connection, or never let it in.
        fatal: bool,
    },
    /// Nothing came to its end within [`GIVE_UP`], or Proctor stops.
    #[error("{0}")]
    GaveUp(&'static str),
}

impl SqlError {
    /// Returns the reason of the closed set.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Secret(_) => Reason::Auth,
            Self::Net(error) => error.reason(),
            Self::Protocol(_) => Reason::Protocol,
            Self::Login { reason, .. } | Self::Server { reason, .. } => *reason,
            Self::GaveUp(_) => Reason::AnswerTimeout,
        }
    }

    /// Returns the server's own code, where it gave one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Server { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Says whether the connection cannot be used any more.
    fn is_fatal(&self) -> bool {
        !matches!(self, Self::Server { fatal: false, .. })
    }

    fn too_large(limit: usize) -> Self {
        NetError::TooLarge { limit }.into()
    }
}

impl From<NetError> for SqlError {
    fn from(error: NetError) -> Self {
        Self::Net(Arc::new(error))
    }
}

impl From<io::Error> for SqlError {
    fn from(error: io::Error) -> Self {
        NetError::from(error).into()
    }
}

/// What a question brought: texts, as the server prints them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The rows; NULL is `None`.
    pub rows: Vec<Vec<Option<String>>>,
}

impl Rows {
    /// Returns the value of a column in the first row.
    pub fn first(&self, column: &str) -> Option<&str> {
        self.rows.first().and_then(|row| self.at(row, column))
    }

    /// Returns the value of a column in one of the rows; upper and lower case are the same.
    pub fn at<'a>(&self, row: &'a [Option<String>], column: &str) -> Option<&'a str> {
        let index = self.columns.iter().position(|name| name.eq_ignore_ascii_case(column))?;
        row.get(index)?.as_deref()
    }

    /// Returns the number in a column of one of the rows.
    pub fn number(&self, row: &[Option<String>], column: &str) -> Option<f64> {
        number(self.at(row, column)?)
    }
}

/// Reads a number as databases print them; `t` and `f` are PostgreSQL's booleans.
pub fn number(text: &str) -> Option<f64> {
    match text {
        "t" => Some(1.0),
        "f" => Some(0.0),
        text => text.parse().ok().filter(|number: &f64| number.is_finite()),
    }
}

/// How the login went that the connection stands on.
#[derive(Clone, Debug)]
pub struct Login {
    /// From the open connection until the server took the login.
    pub took: Duration,
    /// When that was.
    pub at: Instant,
    /// The server's version, as it names it.
    pub version: String,
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// Nothing: only to be logged in; anew where the login is older than this.
    Login {
        /// The age.
        older_than: Duration,
    },
    /// One statement of ours.
    Ours(&'static str),
    /// One statement of the configuration: one query, of which at most so many rows are wanted, and one more to see
    /// that there are too many.
    Theirs {
        /// The query.
        sql: String,
        /// The most rows.
        rows: usize,
    },
}

struct Ask {
    question: Question,
    /// What it is, for people: `the locks`.
    what: &'static str,
    answer: oneshot::Sender<Result<(Login, Rows), SqlError>>,
}

/// What the task waits for, and the reason to give if it does not come.
type Progress = (Reason, String);

/// Takes what is waited for, and the reason to give if it does not come.
pub type Told<'a> = &'a mut (dyn FnMut(Reason, String) + Send);

/// One database as one user sees it; clones share its one connection.
#[derive(Clone)]
pub struct Session {
    settings: Arc<Settings>,
    tasks: Tasks,
    /// The task is begun by the first question: planning connects to nothing.
    line: Arc<OnceLock<(mpsc::Sender<Ask>, watch::Receiver<Progress>)>>,
}

impl Session {
    /// Begins without a connection.
    pub fn new(settings: Settings, tasks: Tasks) -> Self {
        Self { settings: Arc::new(settings), tasks, line: Arc::default() }
    }

    /// Returns which database it is, and as whom.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Asks one question, over the standing connection or a new one, and returns its rows with the login it was asked
    /// under. Where the standing connection turns out to be lost, it is asked again over a new one.
    ///
    /// # Errors
    /// [`SqlError`]. A caller that goes away leaves the question to be answered for nobody.
    pub async fn ask(&self, question: Question, what: &'static str, told: Told<'_>) -> Result<(Login, Rows), SqlError> {
        let (asks, progress) = self.line.get_or_init(|| self.begin());
        let mut progress = progress.clone();
        let gone = || SqlError::GaveUp("Proctor stops");
        let (answer, answered) = oneshot::channel();
        let mut whole = pin!(async {
            asks.send(Ask { question, what, answer }).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        });
        loop {
            let (reason, text) = progress.borrow_and_update().clone();
            told(reason, text);
            tokio::select! {
                result = &mut whole => return result,
                Ok(()) = progress.changed() => {}
            }
        }
    }

    fn begin(&self) -> (mpsc::Sender<Ask>, watch::Receiver<Progress>) {
        let (asks, asked) = mpsc::channel(1);
        let (progress, seen) = watch::channel((Reason::AnswerTimeout, format!("{}: waiting to ask", self.settings.endpoint)));
        let line = Line { settings: self.settings.clone(), progress, standing: None, refused: None };
        let token = self.tasks.token();
        self.tasks.spawn(format!("database at {}", self.settings.endpoint), line.serve(asked, token));
        (asks, seen)
    }
}

/// A connection of either kind.
enum Conn {
    Postgres(Box<postgres::Conn>),
    Mysql(Box<mysql::Conn>),
}

impl Conn {
    async fn ask(&mut self, question: &Question, settings: &Settings) -> Result<Rows, SqlError> {
        match self {
            Self::Postgres(conn) => conn.ask(question, settings).await,
            Self::Mysql(conn) => conn.ask(question).await,
        }
    }

    async fn end(self) {
        let goodbye = async {
            match self {
                Self::Postgres(conn) => conn.end().await,
                Self::Mysql(conn) => conn.end().await,
            }
        };
        if tokio::time::timeout(FAREWELL, goodbye).await.is_err() {
            tracing::debug!("a database did not take the goodbye in time");
        }
    }
}

/// The task behind a session.
struct Line {
    settings: Arc<Settings>,
    progress: watch::Sender<Progress>,
    standing: Option<(Conn, Login)>,
    /// What refused the last login, when, and with which password.
    refused: Option<(SqlError, Instant, Option<Secret>)>,
}

impl Line {
    async fn serve(mut self, mut asked: mpsc::Receiver<Ask>, token: tokio_util::sync::CancellationToken) {
        while let Some(Some(ask)) = token.run_until_cancelled(asked.recv()).await {
            // Whoever asked went away while it waited behind another question.
            if ask.answer.is_closed() {
                continue;
            }
            let served = token.run_until_cancelled(tokio::time::timeout(GIVE_UP, self.answer(&ask.question, ask.what))).await;
            let answer = match served {
                Some(Ok(answer)) => answer,
                // In the middle of something: this connection cannot even be told goodbye.
                Some(Err(_)) => {
                    self.standing = None;
                    Err(SqlError::GaveUp("nothing came for five minutes: the connection was closed"))
                }
                None => {
                    self.standing = None;
                    break;
                }
            };
            if answer.as_ref().is_err_and(SqlError::is_fatal) {
                self.standing = None;
            }
            // Whoever asked may have gone away meanwhile, which is why this task exists.
            ask.answer.send(answer).unwrap_or(());
        }
        if let Some((conn, _)) = self.standing {
            conn.end().await;
        }
    }

    fn waits(&self, reason: Reason, text: String) {
        self.progress.send_replace((reason, format!("{}: {text}", self.settings.endpoint)));
    }

    async fn answer(&mut self, question: &Question, what: &'static str) -> Result<(Login, Rows), SqlError> {
        if let Question::Login { older_than } = question
            && self.standing.as_ref().is_some_and(|(_, login)| login.at.elapsed() >= *older_than)
            && let Some((conn, _)) = self.standing.take()
        {
            // First the end, then the new one: never two.
            conn.end().await;
        }
        let stood = self.standing.is_some();
        match self.try_answer(question, what).await {
            Err(error) if stood && error.is_fatal() => {
                tracing::debug!(at = %self.settings.endpoint, %error, "the standing connection to a database was lost: a new one is made");
                self.standing = None;
                self.try_answer(question, what).await
            }
            outcome => outcome,
        }
    }

    async fn try_answer(&mut self, question: &Question, what: &'static str) -> Result<(Login, Rows), SqlError> {
        let (mut conn, login) = match self.standing.take() {
            Some(standing) => standing,
            None => self.log_in().await?,
        };
        self.waits(Reason::AnswerTimeout, format!("logged in, waiting for the answer to {what}"));
        let outcome = conn.ask(question, &self.settings).await;
        if !outcome.as_ref().is_err_and(SqlError::is_fatal) {
            self.standing = Some((conn, login.clone()));
        }
        outcome.map(|rows| (login, rows))
    }

    /// Connects and logs in.
    async fn log_in(&mut self) -> Result<(Conn, Login), SqlError> {
        let settings = self.settings.clone();
        let password = settings.password()?;
        if let Some((error, at, with)) = &self.refused
            && at.elapsed() < REFUSED_PAUSE
            && with.as_ref().map(Secret::expose) == password.as_ref().map(Secret::expose)
        {
            return Err(error.clone());
        }
        self.refused = None;
        let mut phases = Phases::default();
        self.waits(Reason::Resolve, "looking up its name".to_owned());
        let addresses = net::lookup(&settings.endpoint, &mut phases).await?;
        self.waits(Reason::ConnectTimeout, "connecting".to_owned());
        let stream = net::connect_to(&settings.endpoint, &addresses, &mut phases).await?;
        keep_alive(&stream)?;
        self.waits(Reason::AnswerTimeout, format!("{phases}, waiting for {} to take the login", settings.dialect));
        let begin = Instant::now();
        let made = match settings.dialect {
            Dialect::Postgres => postgres::Conn::new(stream, &settings, password.as_ref())
                .await
                .map(|(conn, version)| (Conn::Postgres(Box::new(conn)), version)),
            Dialect::Mysql => {
                mysql::Conn::new(stream, &settings, password.as_ref()).await.map(|(conn, version)| (Conn::Mysql(Box::new(conn)), version))
            }
        };
        match made {
            Ok((conn, version)) => Ok((conn, Login { took: begin.elapsed(), at: Instant::now(), version })),
            Err(error) => {
                if error.reason() == Reason::Auth {
                    self.refused = Some((error.clone(), Instant::now(), password));
                }
                Err(error)
            }
        }
    }
}

/// A host that vanished without a word ends its connection within two minutes; one that is frozen does not.
fn keep_alive(stream: &Stream) -> io::Result<()> {
    use rustix::net::sockopt;
    if let Stream::Tcp(tcp) = stream {
        sockopt::set_socket_keepalive(tcp, true)?;
        sockopt::set_tcp_keepidle(tcp, Duration::from_secs(60))?;
        sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(10))?;
        sockopt::set_tcp_keepcnt(tcp, 5)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_databases_print_them() {
        for (text, wanted) in [("1", Some(1.0)), ("-0.5", Some(-0.5)), ("1e3", Some(1000.0)), ("t", Some(1.0)), ("f", Some(0.0))] {
            assert_eq!(number(text), wanted, "{text}");
        }
        for text in ["", "true story", "NaN", "Infinity", "2026-11-25"] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn columns_are_found_by_name_whatever_their_case() {
        let rows = Rows { columns: vec!["a".into(), "Seconds_Behind".into()], rows: vec![vec![None, Some("3".into())]] };
        assert_eq!(rows.first("seconds_behind"), Some("3"));
        assert_eq!(rows.number(&rows.rows[0], "SECONDS_BEHIND"), Some(3.0));
        assert_eq!((rows.first("a"), rows.first("b")), (None, None));
    }
}
