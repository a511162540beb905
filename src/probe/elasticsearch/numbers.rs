//! The numbers of cluster and node under elasticsearch_exporter's names (its `collector/*.go`).

use serde_json::Value;

use super::super::Recorder;
use crate::model::Family;

static VERSION: Family = Family::gauge("elasticsearch_clusterinfo_version_info", "Always 1; the labels are the version");
static STATUS: Family = Family::gauge("elasticsearch_cluster_health_status", "1 for the colour that the cluster has, 0 for the others");

/// Numbers of `/_cluster/health`.
static HEALTH: &[(&str, Family)] = &[
    ("active_primary_shards", Family::gauge("elasticsearch_cluster_health_active_primary_shards", "Primary shards that work")),
    ("active_shards", Family::gauge("elasticsearch_cluster_health_active_shards", "Shards that work, replicas among them")),
    ("unassigned_shards", Family::gauge("elasticsearch_cluster_health_unassigned_shards", "Shards that no node has; replicas on a single node always")),
    ("initializing_shards", Family::gauge("elasticsearch_cluster_health_initializing_shards", "Shards that are being made")),
    ("relocating_shards", Family::gauge("elasticsearch_cluster_health_relocating_shards", "Shards that move to another node")),
    ("delayed_unassigned_shards", Family::gauge("elasticsearch_cluster_health_delayed_unassigned_shards", "Shards that wait for a node to come back")),
    ("number_of_nodes", Family::gauge("elasticsearch_cluster_health_number_of_nodes", "Nodes of the cluster")),
    ("number_of_data_nodes", Family::gauge("elasticsearch_cluster_health_number_of_data_nodes", "Nodes that hold documents")),
    ("number_of_pending_tasks", Family::gauge("elasticsearch_cluster_health_number_of_pending_tasks", "Changes of the cluster that wait")),
    (
        "task_max_waiting_in_queue_millis",
        Family::gauge("elasticsearch_cluster_health_task_max_waiting_in_queue_millis", "How long the first of those has waited, in milliseconds"),
    ),
];

/// The parts of a node's numbers that are asked for.
pub(super) const METRICS: &str = "indices,os,process,jvm,thread_pool,fs,breaker";

/// Of those, what is used; without it the answer has 8 KB, and more with every kind of thread.
pub(super) const FILTER: &str = "cluster_name,nodes.*.name,nodes.*.host,nodes.*.roles,nodes.*.indices.docs,nodes.*.indices.search.query_*,\
nodes.*.indices.indexing.index_t*,nodes.*.os.cpu.percent,nodes.*.process.open_file_descriptors,nodes.*.process.max_file_descriptors,\
nodes.*.jvm.uptime_in_millis,nodes.*.jvm.mem.heap_*,nodes.*.jvm.mem.non_heap_*,nodes.*.jvm.mem.pools,nodes.*.jvm.gc,nodes.*.fs.data,\
nodes.*.breakers,nodes.*.thread_pool.search,nodes.*.thread_pool.get,nodes.*.thread_pool.write,nodes.*.thread_pool.bulk,\
nodes.*.thread_pool.index";

/// The most nodes, and the most entries of each of their lists, that are taken: `_local` is one node.
const MAX_NODES: usize = 2;
const MAX_ENTRIES: usize = 32;

/// Where a number is, what makes it the exporter's unit, and its metric.
type Number = (&'static str, f64, Family);

/// Numbers of a node that stand alone.
static ALONE: &[Number] = &[
    ("/jvm/uptime_in_millis", 0.001, Family::gauge("elasticsearch_jvm_uptime_seconds", "How long the node has run")),
    ("/process/open_file_descriptors", 1.0, Family::gauge("elasticsearch_process_open_files_count", "Open file descriptors")),
    ("/process/max_file_descriptors", 1.0, Family::gauge("elasticsearch_process_max_files_descriptors", "File descriptors that it may have open")),
    ("/os/cpu/percent", 1.0, Family::gauge("elasticsearch_os_cpu_percent", "Use of the host's processors, in percent")),
    ("/indices/docs/count", 1.0, Family::gauge("elasticsearch_indices_docs", "Documents on this node, of all indices")),
    ("/indices/docs/deleted", 1.0, Family::gauge("elasticsearch_indices_docs_deleted", "Deleted documents on this node that still take room")),
    ("/indices/search/query_total", 1.0, Family::counter("elasticsearch_indices_search_query_total", "Searches, counted per shard")),
    (
        "/indices/search/query_time_in_millis",
        0.001,
        Family::borrowed_counter("elasticsearch_indices_search_query_time_seconds", "Time that searches took"),
    ),
    ("/indices/indexing/index_total", 1.0, Family::counter("elasticsearch_indices_indexing_index_total", "Documents written")),
    (
        "/indices/indexing/index_time_in_millis",
        0.001,
        Family::counter("elasticsearch_indices_indexing_index_time_seconds_total", "Time that writing documents took"),
    ),
];

static MEMORY_USED: Family = Family::gauge("elasticsearch_jvm_memory_used_bytes", "Memory in use, by area");
static MEMORY_MAX: Family = Family::gauge("elasticsearch_jvm_memory_max_bytes", "Memory that may be used, by area");

/// Numbers of a node in lists: where the list is, the label of its keys, and per entry as in [`ALONE`].
static LISTS: &[(&str, &str, &[Number])] = &[
    (
        "/jvm/mem/pools",
        "pool",
        &[
            ("used_in_bytes", 1.0, Family::gauge("elasticsearch_jvm_memory_pool_used_bytes", "Heap in use, by generation")),
            ("max_in_bytes", 1.0, Family::gauge("elasticsearch_jvm_memory_pool_max_bytes", "Heap that may be used, by generation")),
        ],
    ),
    (
        "/jvm/gc/collectors",
        "gc",
        &[
            ("collection_count", 1.0, Family::borrowed_counter("elasticsearch_jvm_gc_collection_seconds_count", "Garbage collections")),
            ("collection_time_in_millis", 0.001, Family::borrowed_counter("elasticsearch_jvm_gc_collection_seconds_sum", "Time they took")),
        ],
    ),
    (
        "/breakers",
        "breaker",
        &[
            ("tripped", 1.0, Family::borrowed_counter("elasticsearch_breakers_tripped", "Requests that were refused to save the heap")),
            ("estimated_size_in_bytes", 1.0, Family::gauge("elasticsearch_breakers_estimated_size_bytes", "Heap that the breaker counts")),
            ("limit_size_in_bytes", 1.0, Family::gauge("elasticsearch_breakers_limit_size_bytes", "Heap from which on it refuses")),
        ],
    ),
    (
        "/thread_pool",
        "type",
        &[
            ("queue", 1.0, Family::gauge("elasticsearch_thread_pool_queue_count", "Work that waits for a thread")),
            ("active", 1.0, Family::gauge("elasticsearch_thread_pool_active_count", "Threads that work")),
            ("rejected", 1.0, Family::borrowed_counter("elasticsearch_thread_pool_rejected_count", "Work refused since the queue was full")),
        ],
    ),
];

/// Numbers of a node's file systems.
static DISKS: &[(&str, Family)] = &[
    ("available_in_bytes", Family::gauge("elasticsearch_filesystem_data_available_bytes", "Room on the file system of the data for Elasticsearch")),
    ("free_in_bytes", Family::gauge("elasticsearch_filesystem_data_free_bytes", "Room on the file system of the data")),
    ("total_in_bytes", Family::gauge("elasticsearch_filesystem_data_size_bytes", "Size of the file system of the data")),
];

/// Reads a number, also one in quotes: Elasticsearch writes some so when a cluster is red (elasticsearch_exporter#301).
pub(super) fn number(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim_end_matches('%').parse().ok());
    number.filter(|number| number.is_finite())
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("")
}

/// Records what `GET /` says.
pub(super) fn record_version(rec: &mut Recorder, root: &Value) {
    let version = &root["version"];
    let labels = [
        ("cluster", text(root, "cluster_name")),
        ("cluster_uuid", text(root, "cluster_uuid")),
        ("version", text(version, "number")),
        ("build_date", text(version, "build_date")),
        ("build_hash", text(version, "build_hash")),
        ("lucene_version", text(version, "lucene_version")),
    ];
    rec.set_with(&VERSION, &labels, 1.0);
}

/// Records what `/_cluster/health` says.
pub(super) fn record_health(rec: &mut Recorder, health: &Value) {
    let cluster = text(health, "cluster_name");
    for color in ["green", "yellow", "red"] {
        let is = text(health, "status") == color;
        rec.set_with(&STATUS, &[("cluster", cluster), ("color", color)], f64::from(u8::from(is)));
    }
    for (key, family) in HEALTH {
        if let Some(value) = number(&health[*key]) {
            rec.set_with(family, &[("cluster", cluster)], value);
        }
    }
}

fn nodes(stats: &Value) -> impl Iterator<Item = &Value> {
    stats["nodes"].as_object().into_iter().flatten().map(|(_, node)| node).take(MAX_NODES)
}

fn disks(node: &Value) -> impl Iterator<Item = &Value> {
    node.pointer("/fs/data").and_then(Value::as_array).into_iter().flatten().take(MAX_ENTRIES)
}

/// Records what a node says of itself.
pub(super) fn record_node(rec: &mut Recorder, stats: &Value) {
    for node in nodes(stats) {
        let roles: Vec<&str> = node["roles"].as_array().into_iter().flatten().filter_map(Value::as_str).take(MAX_ENTRIES).collect();
        let has = |names: &[&str]| {
            let is = roles.iter().any(|role| names.iter().any(|name| role.starts_with(name)));
            if is { "true" } else { "false" }
        };
        // `data_hot` and its like are data too; the second word for a master is OpenSearch's.
        let (master, data, ingest) = (has(&["master", "cluster_manager"]), has(&["data"]), has(&["ingest"]));
        // As the exporter has it: a node that only hands requests on.
        let client = if [master, data, ingest].contains(&"true") { "false" } else { "true" };
        let own = [
            ("cluster", text(stats, "cluster_name")),
            ("host", text(node, "host")),
            ("name", text(node, "name")),
            ("es_master_node", master),
            ("es_data_node", data),
            ("es_ingest_node", ingest),
            ("es_client_node", client),
        ];
        for (pointer, factor, family) in ALONE {
            if let Some(value) = node.pointer(pointer).and_then(number) {
                rec.set_with(family, &own, value * factor);
            }
        }
        let mut set = |family, more: &[(&'static str, &str)], value: Option<f64>| {
            if let Some(value) = value {
                rec.set_with(family, &[&own, more].concat(), value);
            }
        };
        for (area, used, max) in [("heap", "heap_used_in_bytes", "heap_max_in_bytes"), ("non-heap", "non_heap_used_in_bytes", "none")] {
            set(&MEMORY_USED, &[("area", area)], number(&node["jvm"]["mem"][used]));
            set(&MEMORY_MAX, &[("area", area)], number(&node["jvm"]["mem"][max]));
        }
        for (pointer, label, families) in LISTS {
            for (name, entry) in node.pointer(pointer).and_then(Value::as_object).into_iter().flatten().take(MAX_ENTRIES) {
                for (key, factor, family) in *families {
                    set(family, &[(label, name)], number(&entry[*key]).map(|value| value * factor));
                }
            }
        }
        for disk in disks(node) {
            for (key, family) in DISKS {
                set(family, &[("mount", text(disk, "mount")), ("path", text(disk, "path"))], number(&disk[*key]));
            }
        }
    }
}

/// Says how full the fullest file system of the data is: `/data has 1.2 of 40.0 GB free`.
pub(super) fn fullest(stats: &Value) -> Option<String> {
    let share = |disk: &Value| Some(number(&disk["available_in_bytes"])? / number(&disk["total_in_bytes"])?);
    let all = nodes(stats).flat_map(disks).filter_map(|disk| Some((share(disk)?, disk)));
    let (_, disk) = all.min_by(|(a, _), (b, _)| a.total_cmp(b))?;
    let gigabytes = |key: &str| number(&disk[key]).unwrap_or(0.0) / 1e9;
    Some(format!("{} has {:.1} of {:.1} GB free", text(disk, "path"), gigabytes("available_in_bytes"), gigabytes("total_in_bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_in_quotes_too_and_what_is_none_is_left_out() {
        for (json, wanted) in [
            ("12", Some(12.0)),
            ("\"12.5\"", Some(12.5)),
            ("\"50.0%\"", Some(50.0)),
            ("\"NaN\"", None),
            ("\"inf\"", None),
            ("null", None),
            ("[1]", None),
            ("\"many\"", None),
            ("true", None),
        ] {
            assert_eq!(number(&serde_json::from_str(json).expect("is JSON")), wanted, "{json}");
        }
        let mut rec = Recorder::default();
        let odd = r#"{"cluster_name": 1, "status": ["red"], "unassigned_shards": "3", "nodes": {"a": {"roles": "data", "jvm": {"mem": {"pools": {"old": 1}}}}, "b": 7, "c": null}}"#;
        let odd: Value = serde_json::from_str(odd).expect("is JSON");
        record_health(&mut rec, &odd);
        record_node(&mut rec, &odd);
        record_version(&mut rec, &odd);
        let names: Vec<_> = rec.finish().samples.iter().map(|sample| (sample.family.name, sample.value)).collect();
        assert!(names.contains(&("elasticsearch_cluster_health_unassigned_shards", 3.0)), "{names:?}");
        assert_eq!(names.len(), 5, "{names:?}");
        assert_eq!(fullest(&odd), None);
    }
}
