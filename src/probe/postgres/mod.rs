//! Asks PostgreSQL: whether it lets in, answers and takes writes, how many connections are left, who holds whom up.
//!
//! Over one standing connection ([`crate::client::sql`]), one short statement after the other, each in a read-only
//! transaction with limits of the server's own. The names are those of postgres_exporter; what it does not measure is
//! `pg_writable`, `pg_connections_left`, `pg_idle_in_transaction_max_seconds`, `pg_lock_*`.
//!
//! `pg_up` says whether it lets in and answers: a database that takes no writes, or has no connection left, fails the
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

use record::Server;

static UP: Family = Family::gauge("pg_up", "Whether PostgreSQL let Proctor in and answered a question");
static LOGIN: Family = Family::gauge("pg_login_duration_seconds", "From the open connection until the login was taken, when Proctor last logged in");
static ANSWER: Family = Family::gauge("pg_answer_duration_seconds", "How long the answer to SELECT 1 took");
static QUERIES: QueryFamilies = QueryFamilies {
    value: Family::gauge("pg_query_value", "A number that a query of the configuration gave, by query, column and the query's own labels"),
    success: Family::gauge("pg_query_success", "Whether a query of the configuration gave numbers"),
    duration: Family::gauge("pg_query_duration_seconds", "How long a query of the configuration took"),
};

/// While fewer connections are left than this, Proctor does not give up its own to log in anew.
const FEW: f64 = 3.0;

crate::config_struct! {
    /// Asks PostgreSQL: whether it lets in, answers and takes writes, connections left, locks, replication. The user it
    /// needs stands in `docs/probes/postgres.md`.
    pub struct PostgresConfig {
        /// Where: `host:port` or `unix:/run/postgresql/.s.PGSQL.5432`.
        address: Endpoint = "127.0.0.1:5432",
        /// The site's database.
        database: String,
        /// The user: one of Proctor's own.
        username: String = "proctor",
        /// File with its password, read at every login. Without it none is sent (`peer`, `trust`).
        password_file: Option<PathBuf>,
        /// Whether the connection is encrypted.
        tls: bool = "false",
        /// File with the certificates of the authorities that are trusted instead of the host's own.
        ca_file: Option<PathBuf>,
        /// Whether it must take writes: false for a replica.
        writable: bool = "true",
        /// How long the server lets one statement of ours run.
        statement_timeout: Duration = "2s",
        /// How often the login is made anew, so that a changed password or pg_hba.conf is seen.
        login_every: Duration = "10m",
        /// Queries of your own, by name.
        queries: Named<Query> = "{}",
    }
}

/// Builds the one target.
///
/// # Errors
/// A password or a file of authorities that cannot be read, a limit out of its range.
pub fn plan(config: &PostgresConfig, name: &str, shared: &Shared) -> Result<Vec<Planned>, String> {
    // What could not be offered fails here again, for the same reason; `plan_entries` says it once.
    let session = shared.database(name).or_else(|_| session(config, shared))?;
    Ok(Planned::only(Postgres { config: config.clone(), session, sizes: Seldom::default(), few: AtomicBool::new(false) }))
}

/// Builds the session, which all probes of this database share; connects to nothing.
///
/// # Errors
/// As [`plan`].
pub fn session(config: &PostgresConfig, shared: &Shared) -> Result<Session, String> {
    let settings = Settings {
        dialect: Dialect::Postgres,
        endpoint: config.address.clone(),
        tls: None,
        database: config.database.clone(),
        username: config.username.clone(),
        password_file: config.password_file.clone(),
        statement_timeout: config.statement_timeout,
    };
    sql::session(settings, config.tls, config.ca_file.as_ref(), &config.queries, shared)
}

struct Postgres {
    config: PostgresConfig,
    session: Session,
    sizes: Seldom,
    /// Whether few connections were left in the last run.
    few: AtomicBool,
}

impl Probe for Postgres {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }
}

impl Postgres {
    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let mut asking = Asking::of(&self.session);
        asking.grant = format!("run GRANT pg_monitor TO {}", self.config.username);
        let outcome = self.ask_all(rec, &mut asking).await;
        asking.unseen.say(rec);
        outcome
    }

    async fn ask_all(&self, rec: &mut Recorder, asking: &mut Asking<'_>) -> Result<(), Failure> {
        let older_than = if self.few.load(Ordering::Relaxed) { Duration::MAX } else { self.config.login_every };
        let (login, _, took) = asking.log_in(rec, older_than).await?;
        rec.set(&LOGIN, login.took.as_secs_f64());
        rec.set(&ANSWER, took.as_secs_f64());
        record::version(rec, &login.version);
        let major: u32 = login.version.split(|c: char| !c.is_ascii_digit()).next().and_then(|major| major.parse().ok()).unwrap_or(0);
        let server = Server::of(&asking.must(rec, statements::SERVER, "the state of the server").await?);
        // What may still fail says nothing about whether it answers.
        rec.set(&UP, 1.0);
        server.record(rec);
        if !server.sees_all {
            let missing = "what other users' connections do (state, idle in transaction, who waits for whom)";
            asking.unseen.add(missing, asking.grant.clone());
        }
        let used = match asking.may(rec, statements::ACTIVITY, "the connections").await? {
            Some(rows) => record::activity(rec, &rows),
            None => None,
        };
        if let Some(rows) = asking.may(rec, statements::ROLES, "the limits of roles").await? {
            record::roles(rec, &rows);
        }
        if let Some(rows) = asking.may(rec, statements::IDLE, "who is idle in a transaction").await? {
            record::idle(rec, &rows);
        }
        if let Some(rows) = asking.may(rec, statements::LOCKS, "the locks").await? {
            record::locks(rec, &rows);
        }
        let waits = if major >= 14 { statements::WAITS } else { statements::WAITS_BEFORE_14 };
        if let Some(waits) = asking.may(rec, waits, "who waits for whom").await? {
            let blockers = match waits.rows.is_empty() {
                true => None,
                false => asking.may(rec, statements::BLOCKERS, "who holds others up").await?,
            };
            record::waits(rec, &waits, blockers.as_ref());
        }
        let mut left = used.map(|used| server.max_connections - server.reserved - used);
        if let Some(rows) = asking.may(rec, statements::DATABASES, "the numbers of the databases").await? {
            record::databases(rec, &rows);
            left = record::database_left(&rows, &self.config.database).into_iter().chain(left).min_by(f64::total_cmp);
        }
        if let Some(left) = left {
            rec.set(&record::LEFT, left.max(0.0));
            self.few.store(left < FEW, Ordering::Relaxed);
        }
        let sizes = match self.sizes.kept() {
            Some(rows) => Some(rows),
            None => asking.may(rec, statements::SIZES, "the sizes of the databases").await?.inspect(|rows| self.sizes.keep(rows.clone())),
        };
        if let Some(rows) = &sizes {
            record::sizes(rec, rows);
        }
        if let Some(rows) = asking.may(rec, statements::REPLICA, "the replication").await? {
            record::replica(rec, &rows);
        }
        if let Some(rows) = asking.may(rec, statements::REPLICAS, "the replicas").await? {
            record::replicas(rec, &rows);
        }
        if let Some(rows) = asking.may(rec, statements::SLOTS, "the replication slots").await? {
            record::slots(rec, &rows);
        }
        let queries = asking.queries(rec, &self.config.queries, &QUERIES).await;
        let address = &self.config.address;
        if left.is_some_and(|left| left <= 0.0) {
            let max = server.max_connections;
            let what = format!("{address}: no connection is left for the site ({max} at most, {} reserved): the next login is refused. See pg_stat_activity for who holds them", server.reserved);
            return Err(Failure::new(Reason::Saturated, what));
        }
        match server.no_writes() {
            Some(why) if self.config.writable => {
                Err(Failure::new(Reason::Blocked, format!("{address}: expected a database that takes writes, found one that {why}")))
            }
            _ => queries,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn a_configuration_names_what_is_wrong_with_it() {
        for (text, wrong) in [
            ("database: a\nstatement_timeout: 2m", "statement_timeout: expected at least"),
            ("database: a\nca_file: /etc/a", "ca_file is set, but tls is not true"),
            ("database: a\naddress: unix:/run/a\ntls: true", "tls: expected false with a unix socket"),
            ("database: a\npassword_file: /nowhere", "password_file: cannot read /nowhere"),
            ("database: a\nqueries: {a: {sql: select 1, rows: 1000}}", "rows: expected 1 to 100"),
        ] {
            let config: PostgresConfig = from_text("f", text).expect(text);
            let why = session(&config, &Shared::default()).err().expect(text);
            assert!(why.contains(wrong), "{text}: {why}");
        }
        from_text::<PostgresConfig>("f", "{}").expect_err("names no database");
    }
}
