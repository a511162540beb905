//! Asks MySQL or MariaDB: whether it lets in, answers and takes writes, how many connections are left, who holds whom up.
//!
//! Over one standing connection ([`crate::client::sql`]), one short statement after the other, read-only, with limits of
//! the server's own. The names are those of mysqld_exporter; what it does not measure is `mysql_writable`,
//! `mysql_connections_left`, `mysql_idle_in_transaction_max_seconds`, `mysql_lock_*`.
//!
//! `mysql_up` says whether it lets in and answers: a server that takes no writes, or has no connection left, fails the
//! run and leaves it at 1.

mod record;
mod statements;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::sql::{self, Asking, Query, QueryFamilies, Seldom};
use super::{Planned, Probe, Recorder, Shared};
use crate::client::net::Endpoint;
use crate::client::sql::{Dialect, Session, Settings};
use crate::model::decode::Named;
use crate::model::{Failure, Family, Reason};

use record::Variables;

static UP: Family = Family::gauge("mysql_up", "Whether MySQL let Proctor in and answered a question");
static LOGIN: Family =
    Family::gauge("mysql_login_duration_seconds", "From the open connection until the login was taken, when Proctor last logged in");
static ANSWER: Family = Family::gauge("mysql_answer_duration_seconds", "How long the answer to the smallest question took");
static QUERIES: QueryFamilies = QueryFamilies {
    value: Family::gauge("mysql_query_value", "A number that a query of the configuration gave, by query, column and the query's own labels"),
    success: Family::gauge("mysql_query_success", "Whether a query of the configuration gave numbers"),
    duration: Family::gauge("mysql_query_duration_seconds", "How long a query of the configuration took"),
};

/// While fewer connections are left than this, Proctor does not give up its own to log in anew.
const FEW: f64 = 3.0;

crate::config_struct! {
    /// Asks MySQL or MariaDB: whether it lets in, answers and takes writes, connections left, locks, replication. The
    /// user it needs stands in `docs/probes/mysql.md`.
    pub struct MysqlConfig {
        /// Where: `host:port` or `unix:/run/mysqld/mysqld.sock`.
        address: Endpoint = "127.0.0.1:3306",
        /// The database that is opened, which the user needs a right in; default: none, which needs no right.
        database: Option<String>,
        /// The user: one of Proctor's own.
        username: String = "proctor",
        /// File with its password, read at every login. Without it none is sent (`unix_socket`, `auth_socket`).
        password_file: Option<PathBuf>,
        /// Whether the connection is encrypted.
        tls: bool = "false",
        /// File with the certificates of the authorities that are trusted instead of the host's own.
        ca_file: Option<PathBuf>,
        /// Whether it must take writes: false for a replica.
        writable: bool = "true",
        /// How long the server lets one statement of ours run.
        statement_timeout: Duration = "2s",
        /// How often the login is made anew, so that a changed password or account is seen.
        login_every: Duration = "10m",
        /// Queries of your own, by name.
        queries: Named<Query> = "{}",
    }
}

/// Builds the one target.
///
/// # Errors
/// A password or a file of authorities that cannot be read, a limit out of its range.
pub fn plan(config: &MysqlConfig, name: &str, shared: &Shared) -> Result<Vec<Planned>, String> {
    // What could not be offered fails here again, for the same reason; `plan_entries` says it once.
    let session = shared.database(name).or_else(|_| session(config, shared))?;
    Ok(Planned::only(Mysql { config: config.clone(), session, sizes: Seldom::default(), few: AtomicBool::new(false) }))
}

/// Builds the session, which all probes of this database share; connects to nothing.
///
/// # Errors
/// As [`plan`].
pub fn session(config: &MysqlConfig, shared: &Shared) -> Result<Session, String> {
    let settings = Settings {
        dialect: Dialect::Mysql,
        endpoint: config.address.clone(),
        tls: None,
        database: config.database.clone().unwrap_or_default(),
        username: config.username.clone(),
        password_file: config.password_file.clone(),
        statement_timeout: config.statement_timeout,
    };
    sql::session(settings, config.tls, config.ca_file.as_ref(), &config.queries, shared)
}

struct Mysql {
    config: MysqlConfig,
    session: Session,
    sizes: Seldom,
    /// Whether few connections were left in the last run.
    few: AtomicBool,
}

impl Probe for Mysql {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }
}

impl Mysql {
    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let mut asking = Asking::of(&self.session);
        let outcome = self.ask_all(rec, &mut asking).await;
        asking.unseen.say(rec);
        outcome
    }

    async fn ask_all(&self, rec: &mut Recorder, asking: &mut Asking<'_>) -> Result<(), Failure> {
        let older_than = if self.few.load(Ordering::Relaxed) { Duration::MAX } else { self.config.login_every };
        let (login, account, took) = asking.log_in(rec, older_than).await?;
        let mariadb = login.version.contains("MariaDB");
        asking.grant = grant(mariadb, account.first("account").unwrap_or(&self.config.username));
        rec.set(&LOGIN, login.took.as_secs_f64());
        rec.set(&ANSWER, took.as_secs_f64());
        let variables = Variables::of(&asking.must(rec, statements::VARIABLES, "the variables of the server").await?);
        // What may still fail says nothing about whether it answers.
        rec.set(&UP, 1.0);
        variables.record(rec, &login.version);
        let status = asking.must(rec, statements::STATUS, "the counters of the server").await?;
        let left = record::status(rec, &status).map(|used| variables.max_connections - used);
        if let Some(left) = left {
            rec.set(&record::LEFT, left.max(0.0));
            self.few.store(left < FEW, Ordering::Relaxed);
        }
        if let Some(rows) = asking.may(rec, statements::IDLE, "who is idle in a transaction").await? {
            record::idle(rec, &rows);
            // What may see transactions sees all threads.
            if let Some(rows) = asking.may(rec, statements::THREADS, "the threads").await? {
                record::threads(rec, &rows);
            }
            self.waits(rec, asking, mariadb).await?;
            self.sizes(rec, asking, mariadb).await?;
        }
        let replica = if mariadb { statements::REPLICA_OF_MARIADB } else { statements::replica(&login.version) };
        if let Some(rows) = asking.may(rec, replica, "the replication").await? {
            record::replica(rec, &rows);
        }
        let queries = asking.queries(rec, &self.config.queries, &QUERIES).await;
        let address = &self.config.address;
        if left.is_some_and(|left| left <= 0.0) {
            let max = variables.max_connections;
            let what = format!("{address}: no connection is left for the site ({max} at most): the next login is refused. See SHOW PROCESSLIST for who holds them");
            return Err(Failure::new(Reason::Saturated, what));
        }
        match variables.no_writes() {
            Some(variable) if self.config.writable => {
                let what = format!("{address}: expected a server that takes writes, found {variable} ON: a replica, as after a failover, or somebody set it. Say writable: false where that is right");
                Err(Failure::new(Reason::Blocked, what))
            }
            _ => queries,
        }
    }

    async fn waits(&self, rec: &mut Recorder, asking: &mut Asking<'_>, mariadb: bool) -> Result<(), Failure> {
        let Some(waits) = asking.may(rec, statements::WAITS, "who waits for a lock").await? else { return Ok(()) };
        let chains = match (waits.rows.is_empty(), mariadb) {
            (true, _) => None,
            (_, true) => asking.may(rec, statements::CHAINS_OF_MARIADB, "who holds others up").await?,
            (_, false) => asking.may(rec, statements::CHAINS, "who holds others up (SELECT on performance_schema.data_lock_waits)").await?,
        };
        record::waits(rec, &waits, chains.as_ref());
        Ok(())
    }

    async fn sizes(&self, rec: &mut Recorder, asking: &mut Asking<'_>, mariadb: bool) -> Result<(), Failure> {
        let statement = if mariadb { statements::SIZES_OF_MARIADB } else { statements::SIZES };
        let sizes = match self.sizes.kept() {
            Some(rows) => Some(rows),
            None => asking.may(rec, statement, "the sizes of the databases").await?.inspect(|rows| self.sizes.keep(rows.clone())),
        };
        if let Some(rows) = &sizes {
            record::sizes(rec, rows);
        }
        Ok(())
    }
}

/// The line that gives the user what it needs. `account` is `user@host`, as the server matched it.
fn grant(mariadb: bool, account: &str) -> String {
    let (user, host) = account.rsplit_once('@').unwrap_or((account, "%"));
    // MariaDB 10.5 split what lets see replication off from REPLICATION CLIENT.
    let replication = if mariadb { "REPLICA MONITOR" } else { "REPLICATION CLIENT" };
    format!("run GRANT PROCESS, {replication} ON *.* TO '{user}'@'{host}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_grants_names_the_account_as_the_server_matched_it() {
        assert_eq!(grant(true, "proctor@127.0.0.%"), "run GRANT PROCESS, REPLICA MONITOR ON *.* TO 'proctor'@'127.0.0.%'");
        assert_eq!(grant(false, "proctor"), "run GRANT PROCESS, REPLICATION CLIENT ON *.* TO 'proctor'@'%'");
    }
}
