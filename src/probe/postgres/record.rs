//! From rows to metrics, and to lines for the mail.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::sql::Rows;
use crate::model::Family;
use crate::probe::Recorder;
use crate::probe::sql::seconds;

/// From which age on a transaction that idles is worth a line in the mail.
const IDLE_WORTH_SAYING: f64 = 30.0;

static VERSION: Family = Family::gauge("pg_static", "Always 1; the labels are the version of PostgreSQL");
static STARTED: Family = Family::gauge("pg_postmaster_start_time_seconds", "When PostgreSQL was started");
static MAX_CONNECTIONS: Family = Family::gauge("pg_settings_max_connections", "Connections that PostgreSQL takes at once");
static RESERVED: Family =
    Family::gauge("pg_settings_superuser_reserved_connections", "Connections of these that are kept for superusers");
static WRITABLE: Family = Family::gauge("pg_writable", "Whether the database takes writes: no recovery, no default_transaction_read_only");
static IS_REPLICA: Family = Family::gauge("pg_replication_is_replica", "Whether the server is a replica, or in recovery");
pub(super) static LEFT: Family = Family::gauge(
    "pg_connections_left",
    "Connections that are left for a role without privileges: what the server or the database allows, less reserved and used ones",
);
static ACTIVITY: Family = Family::gauge("pg_stat_activity_count", "Client connections by database and state");
static MAX_TX: Family = Family::gauge("pg_stat_activity_max_tx_duration", "Age of the oldest transaction by database and state, in seconds");
static ROLE_LEFT: Family = Family::gauge("pg_role_connections_left", "Connections that are left for a role that has a limit of its own");
static IDLE: Family = Family::gauge(
    "pg_idle_in_transaction_max_seconds",
    "For how long the connection that has done nothing the longest in an open transaction has done nothing; 0 for none",
);
static LOCKS: Family = Family::gauge("pg_locks_count", "Locks by database and mode, without those of Proctor itself");
static WAITS: Family = Family::gauge("pg_lock_waits", "Connections that wait for a lock of another one");
static WAIT_MAX: Family = Family::gauge("pg_lock_wait_max_seconds", "For how long the one that has waited the longest for a lock has waited; 0 for none");
static SIZE: Family = Family::gauge("pg_database_size_bytes", "Size of a database on disk; asked for every ten minutes");
static FROZEN: Family = Family::gauge(
    "pg_database_wraparound_age_datfrozenxid_seconds",
    "Transactions since the oldest one that is not frozen (not seconds: the exporter's name); at 2.1e9 the database stops",
);
static LAG: Family =
    Family::gauge("pg_replication_lag_seconds", "How far a replica is behind what it has received; 0 where it is none");
static RECEIVING: Family =
    Family::gauge("pg_replication_receiver_up", "Whether a replica that should stream from its primary does; its lag stays 0 while not");
static REPLICA_BEHIND: Family =
    Family::gauge("pg_stat_replication_pg_wal_lsn_diff", "Bytes of log that a connected replica has not replayed yet");
static SLOT_ACTIVE: Family = Family::gauge("pg_replication_slot_slot_is_active", "Whether somebody reads from a replication slot");
static SLOT_KEEPS: Family =
    Family::gauge("pg_replication_slots_pg_wal_lsn_diff", "Bytes of log that are kept on disk for a replication slot");

/// The columns of `pg_stat_database`, under the exporter's names.
static DATABASE: &[(&str, Family)] = &[
    ("numbackends", Family::gauge("pg_stat_database_numbackends", "Connections to the database")),
    ("xact_commit", Family::borrowed_counter("pg_stat_database_xact_commit", "Transactions committed")),
    ("xact_rollback", Family::borrowed_counter("pg_stat_database_xact_rollback", "Transactions rolled back")),
    ("blks_read", Family::borrowed_counter("pg_stat_database_blks_read", "Blocks read from disk")),
    ("blks_hit", Family::borrowed_counter("pg_stat_database_blks_hit", "Blocks found in the cache")),
    ("tup_returned", Family::borrowed_counter("pg_stat_database_tup_returned", "Rows read by scans")),
    ("tup_fetched", Family::borrowed_counter("pg_stat_database_tup_fetched", "Rows fetched by index scans")),
    ("tup_inserted", Family::borrowed_counter("pg_stat_database_tup_inserted", "Rows inserted")),
    ("tup_updated", Family::borrowed_counter("pg_stat_database_tup_updated", "Rows updated")),
    ("tup_deleted", Family::borrowed_counter("pg_stat_database_tup_deleted", "Rows deleted")),
    ("conflicts", Family::borrowed_counter("pg_stat_database_conflicts", "Queries cancelled on a replica by what it replayed")),
    ("temp_files", Family::borrowed_counter("pg_stat_database_temp_files", "Temporary files of queries")),
    ("temp_bytes", Family::borrowed_counter("pg_stat_database_temp_bytes", "Bytes of temporary files of queries")),
    ("deadlocks", Family::borrowed_counter("pg_stat_database_deadlocks", "Deadlocks that were broken")),
];

/// The server as a whole.
pub(super) struct Server {
    in_recovery: bool,
    /// Whether sessions begin read-only, by something that is not about Proctor's own user.
    read_only: bool,
    started: Option<f64>,
    pub(super) max_connections: f64,
    superuser_reserved: f64,
    /// All connections that are kept from ordinary roles.
    pub(super) reserved: f64,
    pub(super) sees_all: bool,
}

impl Server {
    pub(super) fn of(rows: &Rows) -> Self {
        let number = |column| rows.rows.first().and_then(|row| rows.number(row, column));
        let superuser_reserved = number("superuser_reserved").unwrap_or(0.0);
        let (read_only, source) = rows.first("read_only").and_then(|text| text.split_once(' ')).unwrap_or(("off", ""));
        Self {
            in_recovery: number("in_recovery") == Some(1.0),
            // To make one's own monitoring user read-only is wise, and says nothing of the site's.
            read_only: read_only == "on" && !matches!(source, "user" | "database user" | "session" | "client"),
            started: number("started"),
            max_connections: number("max_connections").unwrap_or(0.0),
            superuser_reserved,
            reserved: superuser_reserved + number("reserved").unwrap_or(0.0),
            sees_all: number("sees_all") == Some(1.0),
        }
    }

    pub(super) fn record(&self, rec: &mut Recorder) {
        if let Some(started) = self.started {
            rec.set(&STARTED, started);
        }
        rec.set(&MAX_CONNECTIONS, self.max_connections);
        rec.set(&RESERVED, self.superuser_reserved);
        rec.set(&WRITABLE, f64::from(u8::from(self.no_writes().is_none())));
        rec.set(&IS_REPLICA, f64::from(u8::from(self.in_recovery)));
    }

    /// Says why it takes no writes, if so.
    pub(super) fn no_writes(&self) -> Option<&'static str> {
        match (self.in_recovery, self.read_only) {
            (true, _) => Some("is in recovery: a replica, as after a failover, or a restore that is not finished (pg_promote()). Say writable: false where that is right"),
            (_, true) => Some("is read-only (default_transaction_read_only is on). Say writable: false where that is right"),
            _ => None,
        }
    }
}

pub(super) fn version(rec: &mut Recorder, version: &str) {
    let short = version.split(' ').next().unwrap_or_default();
    rec.set_with(&VERSION, &[("version", version), ("short_version", short)], 1.0);
}

/// Records each row under one or two labels.
fn each(rec: &mut Recorder, rows: &Rows, labels: &[(&'static str, &str)], families: &[(&str, &'static Family)]) {
    for row in &rows.rows {
        let labels: Vec<_> = labels.iter().map(|(label, column)| (*label, rows.at(row, column).unwrap_or_default())).collect();
        for (column, family) in families {
            if let Some(value) = rows.number(row, column) {
                rec.set_with(family, &labels, value);
            }
        }
    }
}

/// Returns how many connections there are.
pub(super) fn activity(rec: &mut Recorder, rows: &Rows) -> Option<f64> {
    each(rec, rows, &[("datname", "datname"), ("state", "state")], &[("count", &ACTIVITY), ("max_tx", &MAX_TX)]);
    (!rows.rows.is_empty()).then(|| rows.rows.iter().filter_map(|row| rows.number(row, "count")).sum())
}

pub(super) fn roles(rec: &mut Recorder, rows: &Rows) {
    each(rec, rows, &[("rolname", "rolname")], &[("remaining", &ROLE_LEFT)]);
}

pub(super) fn idle(rec: &mut Recorder, rows: &Rows) {
    let idle = |row: &Vec<Option<String>>| rows.number(row, "idle").unwrap_or(0.0).max(0.0);
    rec.set(&IDLE, rows.rows.iter().map(idle).fold(0.0, f64::max));
    for row in rows.rows.iter().filter(|row| idle(row) >= IDLE_WORTH_SAYING) {
        let text = |column| rows.at(row, column).unwrap_or_default();
        let (pid, user, datname, application, client) = (text("pid"), text("usename"), text("datname"), text("application"), text("client"));
        let open = seconds(rows.number(row, "open").unwrap_or(0.0));
        rec.evidence(format!("pid {pid} ({user}@{datname}, {application}, from {client}) has been idle for {} in a transaction that is open for {open}", seconds(idle(row))));
    }
}

pub(super) fn locks(rec: &mut Recorder, rows: &Rows) {
    each(rec, rows, &[("datname", "datname"), ("mode", "mode")], &[("count", &LOCKS)]);
}

/// Records who waits, and says who is at the head of each chain: whoever holds others up and waits for nobody.
pub(super) fn waits(rec: &mut Recorder, waits: &Rows, blockers: Option<&Rows>) {
    rec.set(&WAITS, waits.rows.len() as f64);
    let longest = waits.rows.iter().filter_map(|row| waits.number(row, "waits")).fold(0.0, f64::max);
    rec.set(&WAIT_MAX, longest);
    let Some(blockers) = blockers else { return };
    let waiting: BTreeMap<&str, Vec<&str>> = waits
        .rows
        .iter()
        .map(|row| (waits.at(row, "pid").unwrap_or_default(), waits.at(row, "blockers").unwrap_or_default().split(' ').collect()))
        .collect();
    for row in &blockers.rows {
        let text = |column| blockers.at(row, column).unwrap_or_default();
        let head = text("pid");
        if waiting.contains_key(head) {
            continue;
        }
        let behind = behind(head, &waiting);
        if behind.is_empty() {
            continue;
        }
        let open = seconds(blockers.number(row, "open").unwrap_or(0.0));
        rec.evidence(format!(
            "pid {head} ({}, {}, {}, its transaction open for {open}) holds up {} others: pids {}; the longest for {}",
            text("usename"),
            text("application"),
            text("state"),
            behind.len(),
            behind.iter().take(10).copied().collect::<Vec<_>>().join(", "),
            seconds(longest)
        ));
    }
}

/// Returns who waits for this one, over several steps.
fn behind<'a>(head: &'a str, waiting: &BTreeMap<&'a str, Vec<&'a str>>) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut heads = vec![head];
    while let Some(head) = heads.pop() {
        for (pid, blockers) in waiting {
            if blockers.contains(&head) && found.insert(*pid) {
                heads.push(pid);
            }
        }
    }
    found
}

pub(super) fn databases(rec: &mut Recorder, rows: &Rows) {
    let families: Vec<(&str, &'static Family)> = DATABASE.iter().map(|(column, family)| (*column, family)).collect();
    each(rec, rows, &[("datid", "datid"), ("datname", "datname")], &families);
    each(rec, rows, &[("datname", "datname")], &[("frozen", &FROZEN)]);
}

/// Returns how many connections the database itself still allows, where it has a limit.
pub(super) fn database_left(rows: &Rows, database: &str) -> Option<f64> {
    let row = rows.rows.iter().find(|row| rows.at(row, "datname") == Some(database))?;
    let limit = rows.number(row, "limit").filter(|limit| *limit >= 0.0)?;
    Some(limit - rows.number(row, "numbackends")?)
}

pub(super) fn sizes(rec: &mut Recorder, rows: &Rows) {
    each(rec, rows, &[("datname", "datname")], &[("size", &SIZE)]);
}

pub(super) fn replica(rec: &mut Recorder, rows: &Rows) {
    let Some(row) = rows.rows.first() else { return };
    // Nothing was replayed yet: it is not known.
    if let Some(lag) = rows.number(row, "lag") {
        rec.set(&LAG, lag);
    }
    if rows.number(row, "replica") == Some(1.0)
        && rows.number(row, "streams") == Some(1.0)
        && let Some(receiving) = rows.number(row, "receiving")
    {
        rec.set(&RECEIVING, receiving.min(1.0));
    }
}

pub(super) fn replicas(rec: &mut Recorder, rows: &Rows) {
    each(rec, rows, &[("application_name", "application"), ("client_addr", "client"), ("state", "state")], &[("bytes", &REPLICA_BEHIND)]);
}

pub(super) fn slots(rec: &mut Recorder, rows: &Rows) {
    each(rec, rows, &[("slot_name", "slot_name"), ("slot_type", "slot_type")], &[("active", &SLOT_ACTIVE), ("bytes", &SLOT_KEEPS)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_followed_to_its_head_and_a_ring_ends() {
        let waiting = BTreeMap::from([("2", vec!["1"]), ("3", vec!["2"]), ("4", vec!["3", "1"]), ("6", vec!["7"]), ("7", vec!["6"])]);
        assert_eq!(behind("1", &waiting), BTreeSet::from(["2", "3", "4"]));
        assert_eq!(behind("6", &waiting), BTreeSet::from(["6", "7"]));
        assert_eq!(behind("9", &waiting), BTreeSet::new());
    }
}
