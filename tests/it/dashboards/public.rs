//! Public dashboards: which of the metrics that their queries ask for Proctor has. What they ask for was read from their sources,
//! which are named; only names stand here.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{declared, root};

/// What stands above it in docs/dashboards.md is written by hand.
const MARK: &str = "<!-- From here on written by `make docs`. -->\n";

/// A dashboard, where its source is, and the metrics of its panels.
const PUBLIC: &[(&str, &str, &[&str])] = &[
    (
        "Celery Tasks Overview",
        "danihodovic/celery-exporter, celery-mixin",
        &[
            "celery_worker_up",
            "celery_worker_tasks_active",
            "celery_task_failed_total",
            "celery_task_succeeded_total",
            "celery_task_sent_total",
            "celery_task_received_total",
            "celery_task_retried_total",
            "celery_task_rejected_total",
            "celery_task_revoked_total",
            "celery_task_runtime_sum",
            "celery_task_runtime_count",
            "celery_task_runtime_bucket",
            "celery_queue_length",
        ],
    ),
    (
        "NGINX exporter (12708)",
        "nginx/nginx-prometheus-exporter",
        &[
            "nginx_up",
            "nginx_connections_accepted",
            "nginx_connections_handled",
            "nginx_connections_active",
            "nginx_connections_reading",
            "nginx_connections_waiting",
            "nginx_connections_writing",
            "nginx_http_requests_total",
        ],
    ),
    (
        "Memcached",
        "grafana/jsonnet-libs, memcached-mixin",
        &[
            "memcached_commands_total",
            "memcached_items_evicted_total",
            "memcached_items_total",
            "memcached_current_bytes",
            "memcached_current_items",
            "memcached_connections_total",
            "memcached_read_bytes_total",
            "memcached_written_bytes_total",
            "memcached_version",
            "memcached_uptime_seconds",
        ],
    ),
    (
        "Elasticsearch cluster",
        "prometheus-community/elasticsearch_exporter, elasticsearch-mixin",
        &[
            "elasticsearch_cluster_health_number_of_nodes",
            "elasticsearch_cluster_health_number_of_data_nodes",
            "elasticsearch_cluster_health_number_of_pending_tasks",
            "elasticsearch_cluster_health_active_shards",
            "elasticsearch_cluster_health_active_primary_shards",
            "elasticsearch_cluster_health_initializing_shards",
            "elasticsearch_cluster_health_unassigned_shards",
            "elasticsearch_cluster_health_delayed_unassigned_shards",
            "elasticsearch_indices_docs",
            "elasticsearch_indices_store_size_bytes",
            "elasticsearch_indices_indexing_index_total",
            "elasticsearch_indices_search_query_total",
            "elasticsearch_thread_pool_queue_count",
            "elasticsearch_jvm_memory_used_bytes",
            "elasticsearch_jvm_memory_max_bytes",
            "elasticsearch_jvm_gc_collection_seconds_sum",
            "elasticsearch_transport_rx_size_bytes_total",
            "elasticsearch_transport_tx_size_bytes_total",
        ],
    ),
    (
        "Prometheus Blackbox Exporter (7587)",
        "prometheus/blackbox_exporter",
        &[
            "probe_success",
            "probe_duration_seconds",
            "probe_http_duration_seconds",
            "probe_http_status_code",
            "probe_http_version",
            "probe_http_ssl",
            "probe_ssl_earliest_cert_expiry",
            "probe_dns_lookup_time_seconds",
        ],
    ),
];

fn table() -> String {
    let mut names = BTreeSet::new();
    declared(&root().join("src"), &mut names);
    let has = |metric: &str| {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| metric.strip_suffix(suffix));
        names.contains(metric) || base.is_some_and(|base| names.contains(base))
    };
    let mut table = format!("{MARK}\n| dashboard | its source | metrics that answer | that do not |\n|---|---|---|---|\n");
    for (dashboard, source, metrics) in PUBLIC {
        let (here, missing): (Vec<&str>, Vec<&str>) = metrics.iter().partition(|metric| has(metric));
        let missing: Vec<String> = missing.iter().map(|metric| format!("`{metric}`")).collect();
        writeln!(table, "| {dashboard} | {source} | {} of {} | {} |", here.len(), metrics.len(), missing.join(" ")).expect("fits");
    }
    table
}

#[test]
fn the_table_of_public_dashboards_says_what_there_is() {
    crate::docs::holds("docs/dashboards.md", MARK, &table());
}
