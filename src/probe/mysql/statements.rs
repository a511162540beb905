//! What is asked, each as one short statement: MariaDB 10.5 and later, MySQL 5.7 and later. None reads a query's text,
//! each has a bound on its rows.

pub(super) const VARIABLES: &str = "\
SHOW GLOBAL VARIABLES WHERE Variable_name IN ('max_connections', 'max_connect_errors', 'read_only', 'super_read_only',
  'innodb_read_only', 'transaction_read_only', 'tx_read_only', 'innodb_buffer_pool_size', 'wait_timeout', 'version_comment')";

pub(super) const STATUS: &str = "\
SHOW GLOBAL STATUS WHERE Variable_name IN ('Threads_connected', 'Threads_running', 'Threads_cached', 'Threads_created',
  'Max_used_connections', 'Connections', 'Uptime', 'Queries', 'Questions', 'Slow_queries', 'Aborted_clients', 'Aborted_connects',
  'Connection_errors_accept', 'Connection_errors_internal', 'Connection_errors_max_connections',
  'Connection_errors_peer_address', 'Connection_errors_select', 'Connection_errors_tcpwrap',
  'Com_select', 'Com_insert', 'Com_update', 'Com_delete', 'Com_commit', 'Com_rollback',
  'Innodb_row_lock_current_waits', 'Innodb_row_lock_time', 'Innodb_row_lock_waits', 'Innodb_deadlocks', 'Innodb_log_waits',
  'Innodb_buffer_pool_reads', 'Innodb_buffer_pool_read_requests', 'Table_locks_waited', 'Created_tmp_disk_tables',
  'Bytes_received', 'Bytes_sent', 'Open_files', 'Open_tables')";

pub(super) const THREADS: &str = "\
SELECT lower(command) AS command, count(*) AS count FROM information_schema.processlist GROUP BY 1 ORDER BY 2 DESC LIMIT 50";

pub(super) const IDLE: &str = "\
SELECT p.id, p.user AS username, coalesce(p.db, '') AS datname, substring_index(p.host, ':', 1) AS client, p.time AS idle,
  timestampdiff(SECOND, t.trx_started, now()) AS open
FROM information_schema.innodb_trx t JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id
WHERE p.command = 'Sleep' ORDER BY p.time DESC LIMIT 5";

/// Rows, and whole tables (metadata: an `ALTER TABLE` that waits for a transaction holds up all who come after it).
pub(super) const WAITS: &str = "\
SELECT trx_mysql_thread_id AS id, 'row' AS kind, timestampdiff(SECOND, trx_wait_started, now()) AS waits
FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'
UNION ALL SELECT id, 'table', time FROM information_schema.processlist WHERE state LIKE 'Waiting for % lock' LIMIT 50";

pub(super) const CHAINS_OF_MARIADB: &str = "\
SELECT r.trx_mysql_thread_id AS id, b.trx_mysql_thread_id AS blocker, p.user AS username, coalesce(p.db, '') AS datname,
  lower(p.command) AS command, timestampdiff(SECOND, b.trx_started, now()) AS open
FROM information_schema.innodb_lock_waits w
JOIN information_schema.innodb_trx r ON r.trx_id = w.requesting_trx_id
JOIN information_schema.innodb_trx b ON b.trx_id = w.blocking_trx_id
JOIN information_schema.processlist p ON p.id = b.trx_mysql_thread_id LIMIT 50";

/// MySQL 8 has moved it.
pub(super) const CHAINS: &str = "\
SELECT r.trx_mysql_thread_id AS id, b.trx_mysql_thread_id AS blocker, p.user AS username, coalesce(p.db, '') AS datname,
  lower(p.command) AS command, timestampdiff(SECOND, b.trx_started, now()) AS open
FROM performance_schema.data_lock_waits w
JOIN information_schema.innodb_trx r ON r.trx_id = w.requesting_engine_transaction_id
JOIN information_schema.innodb_trx b ON b.trx_id = w.blocking_engine_transaction_id
JOIN information_schema.processlist p ON p.id = b.trx_mysql_thread_id LIMIT 50";

/// By files and not by `information_schema.tables`, which opens every table, and shows only what one may read.
pub(super) const SIZES_OF_MARIADB: &str = "\
SELECT substring_index(name, '/', 1) AS datname, sum(file_size) AS size
FROM information_schema.innodb_sys_tablespaces WHERE name LIKE '%/%' GROUP BY 1 ORDER BY 2 DESC LIMIT 50";

pub(super) const SIZES: &str = "\
SELECT substring_index(name, '/', 1) AS datname, sum(file_size) AS size
FROM information_schema.innodb_tablespaces WHERE name LIKE '%/%' GROUP BY 1 ORDER BY 2 DESC LIMIT 50";

pub(super) const REPLICA_OF_MARIADB: &str = "SHOW ALL SLAVES STATUS";

/// MySQL 8.0.22 and later say replica.
pub(super) fn replica(version: &str) -> &'static str {
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = [parts.next(), parts.next(), parts.next()].map(Option::unwrap_or_default);
    if version >= [8, 0, 22] { "SHOW REPLICA STATUS" } else { "SHOW SLAVE STATUS" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_says_how_replication_is_asked_for() {
        for (version, word) in [("8.4.2", "REPLICA"), ("8.0.36-0ubuntu0.22.04.1", "REPLICA"), ("8.0.21", "SLAVE"), ("5.7.44-log", "SLAVE"), ("9.0", "REPLICA")] {
            assert!(replica(version).contains(word), "{version}");
        }
    }
}
