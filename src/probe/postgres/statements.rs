//! What is asked, each as one short statement over the catalogue: PostgreSQL 10 and later. None takes a lock that
//! anybody waits for, none reads a query's text, each has a bound on its rows.

pub(super) const SERVER: &str = "\
SELECT pg_is_in_recovery() AS in_recovery,
  (SELECT setting || ' ' || source FROM pg_settings WHERE name = 'default_transaction_read_only') AS read_only,
  extract(epoch FROM pg_postmaster_start_time()) AS started,
  current_setting('max_connections') AS max_connections,
  current_setting('superuser_reserved_connections') AS superuser_reserved,
  coalesce(current_setting('reserved_connections', true), '0') AS reserved,
  pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all";

/// Whoever may not see what another user's connection does sees that it is there, and of which user.
pub(super) const ACTIVITY: &str = "\
SELECT coalesce(datname, '') AS datname, coalesce(state, 'unknown') AS state, count(*) AS count,
  coalesce(max(extract(epoch FROM now() - xact_start)), 0) AS max_tx
FROM pg_stat_activity
WHERE backend_type = 'client backend' OR (backend_type IS NULL AND usename IS NOT NULL AND datname IS NOT NULL)
GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 200";

pub(super) const ROLES: &str = "\
SELECT rolname, rolconnlimit - (SELECT count(*) FROM pg_stat_activity WHERE usesysid = pg_roles.oid) AS remaining
FROM pg_roles WHERE rolconnlimit >= 0 AND rolcanlogin AND NOT rolsuper ORDER BY 2 LIMIT 50";

pub(super) const IDLE: &str = "\
SELECT pid, coalesce(usename, '') AS usename, coalesce(datname, '') AS datname, coalesce(application_name, '') AS application,
  coalesce(host(client_addr), 'its unix socket') AS client,
  extract(epoch FROM now() - state_change) AS idle, extract(epoch FROM now() - xact_start) AS open
FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' ORDER BY state_change LIMIT 5";

pub(super) const LOCKS: &str = "\
SELECT coalesce(datname, '') AS datname, lower(mode) AS mode, count(*) AS count
FROM pg_locks LEFT JOIN pg_database ON pg_database.oid = pg_locks.database
WHERE pid <> pg_backend_pid() GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 200";

/// From 14 on a lock says since when it is waited for.
pub(super) const WAITS: &str = "\
SELECT a.pid, coalesce(usename, '') AS usename, coalesce(datname, '') AS datname,
  array_to_string(pg_blocking_pids(a.pid), ' ') AS blockers,
  extract(epoch FROM clock_timestamp() - coalesce(w.since, a.query_start)) AS waits
FROM pg_stat_activity a
LEFT JOIN LATERAL (SELECT min(waitstart) AS since FROM pg_locks l WHERE l.pid = a.pid AND NOT granted) w ON true
WHERE wait_event_type = 'Lock' ORDER BY 5 DESC LIMIT 50";

pub(super) const WAITS_BEFORE_14: &str = "\
SELECT pid, coalesce(usename, '') AS usename, coalesce(datname, '') AS datname,
  array_to_string(pg_blocking_pids(pid), ' ') AS blockers, extract(epoch FROM clock_timestamp() - query_start) AS waits
FROM pg_stat_activity WHERE wait_event_type = 'Lock' ORDER BY 5 DESC LIMIT 50";

pub(super) const BLOCKERS: &str = "\
SELECT pid, coalesce(usename, '') AS usename, coalesce(application_name, '') AS application, coalesce(state, 'unknown') AS state,
  extract(epoch FROM now() - xact_start) AS open
FROM pg_stat_activity
WHERE pid IN (SELECT unnest(pg_blocking_pids(w.pid)) FROM pg_stat_activity w WHERE w.wait_event_type = 'Lock') LIMIT 50";

pub(super) const DATABASES: &str = "\
SELECT d.oid AS datid, d.datname, age(d.datfrozenxid) AS frozen, d.datconnlimit AS limit, s.numbackends, s.xact_commit, s.xact_rollback,
  s.blks_read, s.blks_hit, s.tup_returned, s.tup_fetched, s.tup_inserted, s.tup_updated, s.tup_deleted, s.conflicts,
  s.temp_files, s.temp_bytes, s.deadlocks
FROM pg_database d JOIN pg_stat_database s ON s.datid = d.oid
WHERE NOT d.datistemplate ORDER BY s.xact_commit DESC LIMIT 50";

pub(super) const SIZES: &str = "\
SELECT datname, CASE WHEN has_database_privilege(oid, 'CONNECT') OR pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')
  THEN pg_database_size(oid) END AS size
FROM pg_database WHERE NOT datistemplate ORDER BY datname LIMIT 50";

/// A replica that has received nothing for long, since nobody sends, has replayed all that it received: its lag says 0,
/// and only the receiver tells.
pub(super) const REPLICA: &str = "\
SELECT pg_is_in_recovery() AS replica,
  CASE WHEN NOT pg_is_in_recovery() OR pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
    ELSE greatest(0, extract(epoch FROM now() - pg_last_xact_replay_timestamp())) END AS lag,
  (SELECT count(*) FROM pg_stat_wal_receiver WHERE pid IS NOT NULL AND coalesce(status, 'streaming') = 'streaming') AS receiving,
  CASE WHEN pg_has_role(current_user, 'pg_read_all_settings', 'USAGE')
    THEN coalesce(current_setting('primary_conninfo', true), '') <> '' END AS streams";

pub(super) const REPLICAS: &str = "\
SELECT coalesce(application_name, '') AS application, coalesce(host(client_addr), '') AS client, coalesce(state, '') AS state,
  CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) END AS bytes
FROM pg_stat_replication LIMIT 50";

pub(super) const SLOTS: &str = "\
SELECT slot_name, slot_type, active,
  pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn) AS bytes
FROM pg_replication_slots LIMIT 50";
