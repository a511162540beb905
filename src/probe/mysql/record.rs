//! From rows to metrics, and to lines for the mail.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::sql::{Rows, number};
use crate::model::Family;
use crate::probe::Recorder;
use crate::probe::sql::seconds;

/// From which age on a transaction that idles is worth a line in the mail, in seconds.
const IDLE_WORTH_SAYING: f64 = 30.0;

static VERSION: Family = Family::gauge("mysql_version_info", "Always 1; the labels are the version of the server");
static WRITABLE: Family = Family::gauge("mysql_writable", "Whether the server takes writes: neither read_only nor one of its kind");
pub(super) static LEFT: Family = Family::gauge("mysql_connections_left", "Connections that are left for a user without privileges");
static COMMANDS: Family = Family::counter("mysql_global_status_commands_total", "Statements by kind");
static CONNECTION_ERRORS: Family =
    Family::counter("mysql_global_status_connection_errors_total", "Connections that were refused or failed, by why");
static THREADS: Family = Family::gauge("mysql_info_schema_processlist_threads", "Threads by what they do; sleep is an idle connection");
static IDLE: Family = Family::gauge(
    "mysql_idle_in_transaction_max_seconds",
    "For how long the connection that has done nothing the longest in an open transaction has done nothing; 0 for none",
);
static WAITS: Family = Family::gauge("mysql_lock_waits", "Connections that wait for a lock of another one, on a row or a table");
static WAIT_MAX: Family =
    Family::gauge("mysql_lock_wait_max_seconds", "For how long the one that has waited the longest for a lock has waited; 0 for none");
static SIZE: Family = Family::gauge("mysql_database_size_bytes", "Size of a database's InnoDB files; asked for every ten minutes");
static BEHIND: Family = Family::gauge("mysql_slave_status_seconds_behind_master", "How far a replica is behind; absent while it does not replicate");
static IO_RUNNING: Family = Family::gauge("mysql_slave_status_slave_io_running", "Whether a replica receives from its primary");
static SQL_RUNNING: Family = Family::gauge("mysql_slave_status_slave_sql_running", "Whether a replica applies what it receives");

/// The variables, under the exporter's names.
static VARIABLES: &[(&str, Family)] = &[
    ("max_connections", Family::gauge("mysql_global_variables_max_connections", "Connections that the server takes at once")),
    ("max_connect_errors", Family::gauge("mysql_global_variables_max_connect_errors", "Broken logins in a row after which a host is blocked")),
    ("read_only", Family::gauge("mysql_global_variables_read_only", "Whether ordinary users may write nothing")),
    ("innodb_buffer_pool_size", Family::gauge("mysql_global_variables_innodb_buffer_pool_size", "Size of InnoDB's cache in bytes")),
    ("wait_timeout", Family::gauge("mysql_global_variables_wait_timeout", "Seconds after which an idle connection is closed")),
];

/// The counters, under the exporter's names, with the kind that they really have.
static STATUS: &[(&str, Family)] = &[
    ("Threads_connected", Family::gauge("mysql_global_status_threads_connected", "Open connections")),
    ("Threads_running", Family::gauge("mysql_global_status_threads_running", "Connections that are doing something")),
    ("Threads_cached", Family::gauge("mysql_global_status_threads_cached", "Threads that wait for a connection")),
    ("Threads_created", Family::borrowed_counter("mysql_global_status_threads_created", "Threads made for connections")),
    ("Max_used_connections", Family::gauge("mysql_global_status_max_used_connections", "The most connections at once since the start")),
    ("Connections", Family::borrowed_counter("mysql_global_status_connections", "Attempts to connect")),
    ("Uptime", Family::gauge("mysql_global_status_uptime", "Seconds since the server started")),
    ("Queries", Family::borrowed_counter("mysql_global_status_queries", "Statements, with those of stored programs")),
    ("Questions", Family::borrowed_counter("mysql_global_status_questions", "Statements of clients")),
    ("Slow_queries", Family::borrowed_counter("mysql_global_status_slow_queries", "Statements that took longer than long_query_time")),
    ("Aborted_clients", Family::borrowed_counter("mysql_global_status_aborted_clients", "Connections that ended without a goodbye")),
    ("Aborted_connects", Family::borrowed_counter("mysql_global_status_aborted_connects", "Logins that failed")),
    ("Innodb_row_lock_current_waits", Family::gauge("mysql_global_status_innodb_row_lock_current_waits", "Row locks that are waited for")),
    ("Innodb_row_lock_time", Family::borrowed_counter("mysql_global_status_innodb_row_lock_time", "Milliseconds spent waiting for row locks")),
    ("Innodb_row_lock_waits", Family::borrowed_counter("mysql_global_status_innodb_row_lock_waits", "Times a row lock was waited for")),
    ("Innodb_deadlocks", Family::borrowed_counter("mysql_global_status_innodb_deadlocks", "Deadlocks that were broken (MariaDB)")),
    ("Innodb_log_waits", Family::borrowed_counter("mysql_global_status_innodb_log_waits", "Times the log's buffer was too small")),
    ("Innodb_buffer_pool_reads", Family::borrowed_counter("mysql_global_status_innodb_buffer_pool_reads", "Pages read from disk")),
    (
        "Innodb_buffer_pool_read_requests",
        Family::borrowed_counter("mysql_global_status_innodb_buffer_pool_read_requests", "Pages asked of the cache"),
    ),
    ("Table_locks_waited", Family::borrowed_counter("mysql_global_status_table_locks_waited", "Times a table's lock was waited for")),
    ("Created_tmp_disk_tables", Family::borrowed_counter("mysql_global_status_created_tmp_disk_tables", "Temporary tables on disk")),
    ("Bytes_received", Family::borrowed_counter("mysql_global_status_bytes_received", "Bytes received from clients")),
    ("Bytes_sent", Family::borrowed_counter("mysql_global_status_bytes_sent", "Bytes sent to clients")),
    ("Open_files", Family::gauge("mysql_global_status_open_files", "Open files")),
    ("Open_tables", Family::gauge("mysql_global_status_open_tables", "Open tables")),
];

/// Finds a name's value in the answer to `SHOW VARIABLES` or `SHOW STATUS`.
fn value<'a>(rows: &'a Rows, name: &str) -> Option<&'a str> {
    rows.rows.iter().find_map(|row| match row.as_slice() {
        [Some(have), Some(value), ..] if have.eq_ignore_ascii_case(name) => Some(value.as_str()),
        _ => None,
    })
}

/// Reads a number, or a switch: whatever is neither `OFF` nor `NO` is on (MariaDB's `read_only` has several ways to be).
fn on(text: &str) -> f64 {
    number(text).unwrap_or_else(|| f64::from(u8::from(!["off", "no"].iter().any(|word| text.eq_ignore_ascii_case(word)))))
}

/// What the server is set to.
pub(super) struct Variables {
    rows: Rows,
    pub(super) max_connections: f64,
}

impl Variables {
    pub(super) fn of(rows: &Rows) -> Self {
        let max_connections = value(rows, "max_connections").and_then(number).unwrap_or(0.0);
        Self { rows: rows.clone(), max_connections }
    }

    pub(super) fn record(&self, rec: &mut Recorder, version: &str) {
        let comment = value(&self.rows, "version_comment").unwrap_or_default();
        rec.set_with(&VERSION, &[("version", version), ("version_comment", comment)], 1.0);
        for (name, family) in VARIABLES {
            if let Some(text) = value(&self.rows, name) {
                rec.set(family, on(text));
            }
        }
        rec.set(&WRITABLE, f64::from(u8::from(self.no_writes().is_none())));
    }

    /// Returns the variable that keeps writes out, if one does.
    pub(super) fn no_writes(&self) -> Option<&'static str> {
        let names = ["read_only", "super_read_only", "innodb_read_only", "transaction_read_only", "tx_read_only"];
        names.into_iter().find(|name| value(&self.rows, name).is_some_and(|text| on(text) != 0.0))
    }
}

/// Returns how many connections there are.
pub(super) fn status(rec: &mut Recorder, rows: &Rows) -> Option<f64> {
    for (name, family) in STATUS {
        if let Some(value) = value(rows, name).and_then(number) {
            rec.set(family, value);
        }
    }
    for (prefix, label, family) in [("Com_", "command", &COMMANDS), ("Connection_errors_", "error", &CONNECTION_ERRORS)] {
        for row in &rows.rows {
            if let [Some(name), Some(value), ..] = row.as_slice()
                && let (Some(name), Some(value)) = (name.strip_prefix(prefix), number(value))
            {
                rec.set_with(family, &[(label, name)], value);
            }
        }
    }
    value(rows, "Threads_connected").and_then(number)
}

pub(super) fn threads(rec: &mut Recorder, rows: &Rows) {
    for row in &rows.rows {
        if let Some(count) = rows.number(row, "count") {
            rec.set_with(&THREADS, &[("command", rows.at(row, "command").unwrap_or_default())], count);
        }
    }
}

pub(super) fn idle(rec: &mut Recorder, rows: &Rows) {
    let idle = |row: &Vec<Option<String>>| rows.number(row, "idle").unwrap_or(0.0).max(0.0);
    rec.set(&IDLE, rows.rows.iter().map(idle).fold(0.0, f64::max));
    for row in rows.rows.iter().filter(|row| idle(row) >= IDLE_WORTH_SAYING) {
        let text = |column| rows.at(row, column).unwrap_or_default();
        let open = seconds(rows.number(row, "open").unwrap_or(0.0));
        let (id, user, datname, client) = (text("id"), text("username"), text("datname"), text("client"));
        rec.evidence(format!("thread {id} ({user}, {datname}, from {client}) has been idle for {} in a transaction that is open for {open}", seconds(idle(row))));
    }
}

/// Records who waits, and says who holds others up and waits for nobody.
pub(super) fn waits(rec: &mut Recorder, waits: &Rows, chains: Option<&Rows>) {
    let mut by_kind = BTreeMap::from([("row", 0.0), ("table", 0.0)]);
    for row in &waits.rows {
        *by_kind.entry(waits.at(row, "kind").unwrap_or("row")).or_default() += 1.0;
    }
    for (kind, count) in by_kind {
        rec.set_with(&WAITS, &[("kind", kind)], count);
    }
    let longest = waits.rows.iter().filter_map(|row| waits.number(row, "waits")).fold(0.0, f64::max);
    rec.set(&WAIT_MAX, longest);
    let Some(chains) = chains else { return };
    let text = |row, column| chains.at(row, column).unwrap_or_default();
    let waiting: BTreeSet<&str> = chains.rows.iter().map(|row| text(row, "id")).collect();
    let mut heads: BTreeMap<&str, (&Vec<Option<String>>, BTreeSet<&str>)> = BTreeMap::new();
    for row in chains.rows.iter().filter(|row| !waiting.contains(text(row, "blocker"))) {
        heads.entry(text(row, "blocker")).or_insert((row, BTreeSet::new())).1.insert(text(row, "id"));
    }
    for (head, (row, behind)) in heads {
        let behind: Vec<&str> = behind.into_iter().take(10).collect();
        let open = seconds(chains.number(row, "open").unwrap_or(0.0));
        rec.evidence(format!(
            "thread {head} ({}, {}, {}, its transaction open for {open}) holds up threads {}; the longest for {}",
            text(row, "username"),
            text(row, "datname"),
            text(row, "command"),
            behind.join(", "),
            seconds(longest)
        ));
    }
}

pub(super) fn sizes(rec: &mut Recorder, rows: &Rows) {
    for row in &rows.rows {
        if let Some(size) = rows.number(row, "size") {
            rec.set_with(&SIZE, &[("datname", rows.at(row, "datname").unwrap_or_default())], size);
        }
    }
}

/// Each row is a primary that is replicated from; a server that is no replica has none.
pub(super) fn replica(rec: &mut Recorder, rows: &Rows) {
    for row in &rows.rows {
        let either = |old, new| rows.at(row, old).or_else(|| rows.at(row, new));
        let host = either("Master_Host", "Source_Host").unwrap_or_default();
        let connection = either("Connection_name", "Channel_Name").unwrap_or_default();
        let labels = [("master_host", host), ("connection_name", connection)];
        if let Some(behind) = either("Seconds_Behind_Master", "Seconds_Behind_Source").and_then(number) {
            rec.set_with(&BEHIND, &labels, behind);
        }
        for (family, running, what, errors) in [
            (&IO_RUNNING, either("Slave_IO_Running", "Replica_IO_Running"), "receives nothing", "Last_IO_Error"),
            (&SQL_RUNNING, either("Slave_SQL_Running", "Replica_SQL_Running"), "applies nothing", "Last_SQL_Error"),
        ] {
            let runs = running == Some("Yes");
            rec.set_with(family, &labels, f64::from(u8::from(runs)));
            // The error of the SQL thread holds the text of a query: only its number is ours to show.
            let number = rows.at(row, &errors.replace("Error", "Errno")).unwrap_or("0");
            if !runs {
                rec.evidence(format!("the replica of {host} {what} (it says {}, error {number}: see SHOW REPLICA STATUS)", running.unwrap_or("nothing")));
            }
        }
    }
}
