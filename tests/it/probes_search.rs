//! The probe elasticsearch against real nodes of 7.17, behind a guard, and against hostile servers.

use std::sync::Arc;
use std::time::Duration;

use proctor::client::http::Method;
use proctor::metrics::Metrics;
use proctor::model::decode::from_text;
use proctor::model::{ProbeResult, Reason, Sight, Target};
use proctor::probe::ProbeConfig;
use proctor::probe::scheduler::{Scheduled, run};
use proctor::store::{Batch, Record, Store, Table};
use proctor::tasks;

use super::probes_web::{failed, value};
use super::support::elasticsearch::{Elasticsearch, Guard};
use super::support::hostile::{Manner, hostile};
use super::support::process::{eventually, free_port, program};
use super::support::proctor::Proctor;
use super::support::smtp::Sink;
use super::support::watched::fails;

fn scheduled(url: &str, more: &str, timeout: Duration) -> Scheduled {
    let yaml = format!("elasticsearch: {{url: '{url}', {more}}}");
    let config: ProbeConfig = from_text("proctor.yml", &yaml).unwrap_or_else(|problems| panic!("{yaml}: {problems:?}"));
    let mut planned = config.plan().unwrap_or_else(|why| panic!("{yaml}: {why}"));
    let target = Target {
        probe: "search".into(),
        target: None,
        kind: "elasticsearch",
        interval: Duration::from_secs(15),
        timeout,
        depends_on: Arc::new([]),
    };
    Scheduled { target: Arc::new(target), probe: planned.remove(0).probe }
}

async fn ask_within(url: &str, more: &str, timeout: Duration) -> ProbeResult {
    let begin = tokio::time::Instant::now();
    let result = run(&scheduled(url, more, timeout), &Metrics::new()).await.expect("this host is awake");
    assert!(begin.elapsed() < timeout + Duration::from_secs(1), "the limit of {timeout:?} holds: {:?}", begin.elapsed());
    // Who may see nothing does not know.
    let knows = !matches!(result.sight, Sight::Blind { .. });
    assert_eq!(value(&result, "elasticsearch_up"), knows.then(|| f64::from(u8::from(result.is_success()))));
    result
}

/// A cold Java machine on a busy host may take its time.
const LONG: Duration = Duration::from_secs(20);

async fn ask(node: &Elasticsearch, more: &str) -> ProbeResult {
    ask_within(&format!("http://127.0.0.1:{}", node.port), more, LONG).await
}

/// Asks until it fails for this reason with these words: a node that answers may still be without a master or its indices.
async fn until_failed(node: &Elasticsearch, more: &str, reason: Reason, words: &str) -> ProbeResult {
    eventually(words, Duration::from_secs(90), || async {
        let result = ask(node, more).await;
        fails(&result, reason, words).then_some(result)
    })
    .await
}

#[track_caller]
fn well(result: &ProbeResult) {
    assert_eq!(result.outcome, Ok(()), "{:?}", result.samples);
    assert_eq!(result.sight, Sight::Full);
}

fn colour(result: &ProbeResult) -> String {
    let of = |sample: &&proctor::model::Sample| sample.family.name == "elasticsearch_cluster_health_status" && sample.value == 1.0;
    let colours: Vec<String> = result.samples.iter().filter(of).map(|sample| sample.labels[1].1.to_string()).collect();
    colours.join(" ")
}

#[tokio::test]
async fn a_document_comes_out_of_the_index_and_numbers_have_the_exporters_names() {
    let Some(node) = Elasticsearch::start(&[]).await else { return };
    node.fill("haystack", 3).await;
    let result = ask(&node, "index: haystack, min_documents: 3, word: Course").await;
    well(&result);
    assert_eq!(colour(&result), "green");
    for (name, wanted) in [
        ("elasticsearch_index_documents", 3.0),
        ("elasticsearch_index_found", 1.0),
        ("elasticsearch_index_writable", 1.0),
        ("elasticsearch_cluster_health_number_of_nodes", 1.0),
        ("elasticsearch_cluster_health_unassigned_shards", 0.0),
        ("elasticsearch_indices_docs", 3.0),
        ("elasticsearch_indices_indexing_index_total", 3.0),
        ("elasticsearch_thread_pool_rejected_count", 0.0),
        ("elasticsearch_breakers_tripped", 0.0),
    ] {
        assert_eq!(value(&result, name), Some(wanted), "{name}");
    }
    // What is known only roughly is known.
    for name in [
        "elasticsearch_search_duration_seconds",
        "elasticsearch_jvm_memory_used_bytes",
        "elasticsearch_jvm_memory_max_bytes",
        "elasticsearch_jvm_memory_pool_max_bytes",
        "elasticsearch_jvm_gc_collection_seconds_count",
        "elasticsearch_jvm_uptime_seconds",
        "elasticsearch_filesystem_data_available_bytes",
        "elasticsearch_filesystem_data_size_bytes",
        "elasticsearch_breakers_limit_size_bytes",
        "elasticsearch_process_open_files_count",
        "elasticsearch_os_cpu_percent",
        "elasticsearch_indices_search_query_total",
    ] {
        assert!(value(&result, name).is_some(), "{name}");
    }
    let labels = |name: &str| {
        let sample = result.samples.iter().find(|sample| sample.family.name == name).unwrap_or_else(|| panic!("{name}"));
        sample.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        labels("elasticsearch_indices_docs"),
        "cluster=elasticsearch host=127.0.0.1 name=search es_master_node=true es_data_node=true es_ingest_node=true es_client_node=false"
    );
    let version = labels("elasticsearch_clusterinfo_version_info");
    assert!(version.contains("cluster=elasticsearch ") && version.contains(" version=7.17.28 "), "{version}");
    let mut series: Vec<_> = result.samples.iter().map(|sample| format!("{} {:?}", sample.family.name, sample.labels)).collect();
    let all = series.len();
    series.sort();
    series.dedup();
    assert_eq!(series.len(), all, "no series stands there twice");
    assert!(all < 150, "{all} series are too many for one node");

    // Without an index only cluster and node are asked.
    let result = ask(&node, "").await;
    well(&result);
    assert!(value(&result, "elasticsearch_index_documents").is_none() && value(&result, "elasticsearch_indices_docs").is_some());
}

#[tokio::test]
async fn each_broken_state_of_index_and_cluster_has_its_reason_and_a_way_back() {
    let Some(node) = Elasticsearch::start(&[]).await else { return };
    let haystack = "index: haystack, min_documents: 3";
    let result = until_failed(&node, haystack, Reason::Missing, "there is no such index").await;
    assert_eq!((value(&result, "elasticsearch_index_found"), colour(&result).as_str()), (Some(0.0), "green"));

    node.fill("haystack", 0).await;
    failed(&ask(&node, haystack).await, Reason::Mismatch, "expected at least 3 in it, found no document");
    well(&ask(&node, "index: haystack, min_documents: 0").await);
    node.call(Method::POST, "/haystack/_doc?refresh=true", r#"{"text": "course"}"#).await;
    failed(&ask(&node, haystack).await, Reason::Mismatch, "expected at least 3 in it, found 1 documents");
    node.call(Method::DELETE, "/haystack", "").await;
    node.fill("haystack", 3).await;
    well(&ask(&node, haystack).await);
    failed(
        &ask(&node, "index: haystack, word: absent").await,
        Reason::Mismatch,
        "expected a document with the word absent, found none among 3",
    );

    // An alias is as good as an index, and what blocks the index behind it is seen.
    node.call(Method::PUT, "/haystack/_alias/hay", "").await;
    let hay = "index: hay, word: course";
    well(&ask(&node, hay).await);
    let block = |what: &str| format!("{{\"index.blocks.{what}\": true}}");
    let unblock = |what: &str| format!("{{\"index.blocks.{what}\": null}}");
    for (what, words) in [("read_only", "index haystack takes no writes (index read-only (api))"), ("write", "somebody set it")] {
        node.call(Method::PUT, "/haystack/_settings", &block(what)).await;
        let result = ask(&node, hay).await;
        failed(&result, Reason::Blocked, words);
        assert_eq!((value(&result, "elasticsearch_index_writable"), colour(&result).as_str()), (Some(0.0), "green"));
        assert_eq!(value(&result, "elasticsearch_index_documents"), Some(3.0), "and is read");
        node.call(Method::PUT, "/haystack/_settings", &unblock(what)).await;
        well(&ask(&node, hay).await);
    }
    node.call(Method::PUT, "/haystack/_settings", &block("read")).await;
    failed(&ask(&node, hay).await, Reason::Blocked, "FORBIDDEN/7/index read (api)");
    node.call(Method::PUT, "/haystack/_settings", &unblock("read")).await;
    node.set(r#""cluster.blocks.read_only": true"#).await;
    failed(&ask(&node, hay).await, Reason::Blocked, "the cluster takes no writes (cluster read-only (api))");
    node.set(r#""cluster.blocks.read_only": null"#).await;

    node.call(Method::POST, "/haystack/_close", "").await;
    failed(&ask(&node, haystack).await, Reason::Unavailable, "the index is closed");
    node.call(Method::POST, "/haystack/_open", "").await;
    eventually("it is open", Duration::from_secs(60), || async { ask(&node, haystack).await.is_success().then_some(()) }).await;

    // Replicas have no place on a single node: yellow, and well.
    node.call(Method::PUT, "/haystack/_settings", r#"{"index.number_of_replicas": 1}"#).await;
    let result = ask(&node, haystack).await;
    well(&result);
    assert_eq!((value(&result, "elasticsearch_cluster_health_unassigned_shards"), colour(&result).as_str()), (Some(1.0), "yellow"));

    // Red: first another index, then the site's own.
    let nowhere = r#"{"settings": {"index.routing.allocation.require._name": "nowhere"}}"#;
    node.call(Method::PUT, "/other?wait_for_active_shards=0", nowhere).await;
    let result = ask(&node, haystack).await;
    failed(&result, Reason::Unavailable, "the cluster is red: 3 shards are not assigned");
    failed(&result, Reason::Unavailable, "although what was asked for was answered");
    assert_eq!((value(&result, "elasticsearch_index_documents"), colour(&result).as_str()), (Some(3.0), "red"));
    let result = ask(&node, "index: other").await;
    failed(&result, Reason::Unavailable, "no copy of the index can be read");
    failed(&result, Reason::Unavailable, "; the cluster is red: ");
    failed(&ask(&node, "").await, Reason::Unavailable, "the cluster is red");
    node.call(Method::DELETE, "/other", "").await;
    well(&ask(&node, haystack).await);

    // The parent breaker counts the real heap: at 1 % of it every search is too much.
    node.set(r#""indices.breaker.total.limit": "1%""#).await;
    let result = ask(&node, haystack).await;
    failed(&result, Reason::Saturated, "its heap is full, so it refuses searches (circuit breaker)");
    assert!(value(&result, "elasticsearch_jvm_memory_used_bytes").is_some(), "the numbers still come");
    node.set(r#""indices.breaker.total.limit": null"#).await;
    well(&ask(&node, haystack).await);
}

#[tokio::test]
async fn what_version_5_and_opensearch_answer_is_understood_as_well() {
    for (kind, version) in [("elasticsearch5", "5.6.16"), ("opensearch", "2.11.1")] {
        let Some(node) = Elasticsearch::start_of(kind, &[]).await else { return };
        let haystack = "index: haystack, word: course";
        until_failed(&node, haystack, Reason::Missing, "there is no such index").await;
        node.fill("haystack", 3).await;
        let result = ask(&node, haystack).await;
        well(&result);
        assert_eq!(colour(&result), "green", "{kind}");
        assert_eq!(value(&result, "elasticsearch_index_documents"), Some(3.0), "{kind}");
        for name in
            ["elasticsearch_jvm_memory_pool_max_bytes", "elasticsearch_filesystem_data_available_bytes", "elasticsearch_breakers_tripped"]
        {
            assert!(value(&result, name).is_some(), "{kind} {name}");
        }
        let samples = format!("{:?}", result.samples);
        assert!(samples.contains(version) && samples.contains("(\"es_master_node\", \"true\")"), "{kind}: {samples}");
        failed(&ask(&node, "index: haystack, word: absent").await, Reason::Mismatch, "expected a document with the word absent");
        node.call(Method::PUT, "/haystack/_settings", r#"{"index.blocks.read_only_allow_delete": true}"#).await;
        failed(&ask(&node, haystack).await, Reason::Blocked, "index haystack takes no writes");
        node.call(Method::PUT, "/haystack/_settings", r#"{"index.blocks.read_only_allow_delete": null}"#).await;
        let nowhere = r#"{"settings": {"index.routing.allocation.require._name": "nowhere"}}"#;
        node.call(Method::PUT, "/other?wait_for_active_shards=0", nowhere).await;
        failed(&ask(&node, "index: other").await, Reason::Unavailable, "no copy of the index can be read");
        failed(&ask(&node, haystack).await, Reason::Unavailable, "although what was asked for was answered");
    }
}

#[tokio::test]
async fn a_full_disk_is_seen_while_health_is_green_a_frozen_node_is_silent_and_a_killed_one_refuses() {
    let Some(mut node) = Elasticsearch::start(&["cluster.info.update.interval=10s"]).await else { return };
    node.fill("haystack", 2).await;
    let haystack = "index: haystack";
    well(&ask(&node, haystack).await);
    // More than any disk has: Elasticsearch itself sets the block when it next looks.
    let all = |value: &str| {
        ["low", "high", "flood_stage"].map(|mark| format!("\"cluster.routing.allocation.disk.watermark.{mark}\": {value}")).join(", ")
    };
    node.set(&all("\"1000tb\"")).await;
    let result = until_failed(&node, haystack, Reason::Blocked, "flood-stage watermark").await;
    failed(&result, Reason::Blocked, " GB free: make room; before 7.4, and where it stays, lift it by PUT /haystack/_settings");
    assert_eq!((value(&result, "elasticsearch_index_writable"), colour(&result).as_str()), (Some(0.0), "green"));
    node.set(&all("null")).await;
    eventually("there is room again", Duration::from_secs(60), || async { ask(&node, haystack).await.is_success().then_some(()) }).await;

    node.process.signal("STOP");
    let url = format!("http://127.0.0.1:{}", node.port);
    let result = ask_within(&url, haystack, Duration::from_secs(1)).await;
    failed(&result, Reason::AnswerTimeout, "no answer within 1s: ");
    failed(&result, Reason::AnswerTimeout, "waiting for the answer to GET /");
    node.process.signal("CONT");
    eventually("it moves again", Duration::from_secs(60), || async { ask(&node, haystack).await.is_success().then_some(()) }).await;
    node.process.kill();
    failed(&ask(&node, haystack).await, Reason::Refused, "Connection refused");

    // It comes back and has not read its indices yet; another waits for a master that is not there.
    node.restart(&["gateway.recover_after_data_nodes=2"]).await;
    let result = until_failed(&node, haystack, Reason::Starting, "it has not read its indices yet").await;
    assert_eq!(colour(&result), "red");
    let Some(lonely) = Elasticsearch::start(&[
        "discovery.type=zen",
        "cluster.initial_master_nodes=other",
        "discovery.seed_hosts=127.0.0.1:1",
        "discovery.initial_state_timeout=0s",
    ])
    .await
    else {
        return;
    };
    until_failed(&lonely, haystack, Reason::Unavailable, "the cluster has no master").await;
}

/// What the probe keeps over a restart, as it lies in the state.
#[derive(serde::Serialize, serde::Deserialize)]
struct Kept {
    target: String,
    index: String,
    hourly: Vec<(i64, f64)>,
}

impl Record for Kept {
    const TABLE: Table = Table::Meta;
    const PREFIX: &'static str = "elasticsearch/";
    fn key(&self) -> String {
        format!("elasticsearch/{}", self.target)
    }
}

#[tokio::test]
async fn what_was_there_a_day_ago_is_remembered_over_a_restart_and_the_guard_lets_in_only_who_may() {
    let Some(node) = Elasticsearch::start(&[]).await else { return };
    node.fill("haystack", 2).await;
    let store = Store::open(None, Arc::new(Metrics::new())).expect("lives in memory");
    let now = tasks::now();
    let mut batch = Batch::new();
    let hour = |hours: i64| now.0 - hours * 3_600_000;
    batch.put(&Kept {
        target: "search".into(),
        index: "haystack".into(),
        hourly: vec![(hour(30), 8.0), (hour(25), 50.0), (hour(2), 49.0)],
    });
    store.commit(batch).await;
    let mut probe = scheduled(&format!("http://127.0.0.1:{}", node.port), "index: haystack", LONG);
    probe.probe.remember(&probe.target, &store);
    let result = run(&probe, &Metrics::new()).await.expect("this host is awake");
    well(&result);
    assert_eq!(value(&result, "elasticsearch_index_documents_day_ago"), Some(50.0));
    let kept = store.get::<Kept>("elasticsearch/search").expect("it is kept");
    assert_eq!(kept.hourly.last().map(|(_, documents)| *documents), Some(2.0));
    assert_eq!(kept.hourly.len(), 4);

    // The guard: TLS, user and password, and privileges.
    let (Some(all), Some(cluster), Some(nothing)) =
        tokio::join!(Guard::start(&node, "^/none$"), Guard::start(&node, "^/(haystack|_cluster/state)"), Guard::start(&node, "^/.+"),)
    else {
        return;
    };
    let ask = async |guard: &Guard, password: Option<&str>, more: &str| {
        let login = password.map(|name| format!(", username: proctor, password_file: {}", guard.file(name))).unwrap_or_default();
        let more = format!("index: haystack, ca_file: {}{login}{more}", guard.file("ca.pem"));
        let result = ask_within(&format!("https://localhost:{}", guard.port), &more, LONG).await;
        assert!(!format!("{result:?}").contains("canary"), "{result:?}");
        result
    };
    well(&ask(&all, Some("right"), "").await);
    failed(&ask(&all, Some("wrong"), "").await, Reason::Auth, "user and password, or the API key, are refused");
    failed(&ask(&all, None, "").await, Reason::Auth, "it wants a login: set username and password_file, or api_key_file");
    failed(&ask(&all, None, &format!(", api_key_file: {}", all.file("wrong"))).await, Reason::Auth, "are refused");
    let plain = ask_within(&format!("https://localhost:{}", all.port), "index: haystack", LONG).await;
    failed(&plain, Reason::Certificate, "");

    let result = ask(&cluster, Some("right"), "").await;
    assert_eq!(result.outcome, Ok(()));
    let Sight::Partial { missing, remedy } = &result.sight else { panic!("{:?}", result.sight) };
    assert_eq!(missing, "what blocks writes, the documents of the index");
    assert_eq!(remedy, "give its user a role with the cluster privilege monitor and read on the index haystack");
    assert_eq!(colour(&result), "green", "the rest is judged");
    let result = ask(&nothing, Some("right"), "").await;
    assert_eq!(result.outcome, Ok(()));
    assert!(matches!(&result.sight, Sight::Blind { missing, .. } if missing.contains("the health of the cluster")), "{:?}", result.sight);

    // Behind a proxy that has lost it.
    drop(node);
    failed(&ask(&all, Some("right"), "").await, Reason::Unavailable, "it cannot serve now (502 Bad Gateway");
}

#[tokio::test]
async fn an_index_that_is_gone_is_mailed_once_and_so_is_its_return() {
    let Some(node) = Elasticsearch::start(&[]).await else { return };
    node.fill("haystack", 2).await;
    let sink = Sink::start().await;
    let url = format!("http://127.0.0.1:{}", node.port);
    let sections =
        format!("probes:\n  search: {{interval: 5s, timeout: 5s, elasticsearch: {{url: '{url}', index: haystack, min_documents: 0}}}}\n");
    let proctor = Proctor::configured(sink.port, &sections).built_in_rules();
    let store = Store::open(Some(&proctor.folder.path().join("state.db")), Arc::new(Metrics::new())).expect("it is ours");
    let mut batch = Batch::new();
    batch.put(&Kept { target: "search".into(), index: "haystack".into(), hourly: vec![(tasks::now().0 - 25 * 3_600_000, 50.0)] });
    store.commit(batch).await;
    store.close();
    drop(store);
    let proctor = proctor.started();
    proctor.shows("elasticsearch_index_documents_day_ago{", Duration::from_secs(60)).await;
    let shown = proctor.metrics().await.expect("it answers");
    assert!(shown.lines().any(|line| line.starts_with("elasticsearch_index_documents_day_ago{") && line.contains("} 50")), "{shown}");
    proctor.shows("elasticsearch_up{probe=\"search\"} 1", Duration::from_secs(60)).await;

    node.call(Method::DELETE, "/haystack", "").await;
    let mails = sink.wait_for(2, Duration::from_secs(90)).await;
    assert!(mails[0].text.contains("the index haystack does not exist (search)"), "{}", mails[0].text);
    node.fill("haystack", 2).await;
    let mails = sink.wait_for(4, Duration::from_secs(90)).await;
    let states: Vec<&str> = mails.iter().map(|mail| mail.header("X-Alert-State")).collect();
    assert_eq!(states, ["FIRING", "FIRING", "RESOLVED", "RESOLVED"]);
    assert!(
        !mails.iter().any(|mail| mail.text.contains("ProbeFailing") || mail.text.contains("ElasticsearchDown")),
        "one alert for one cause"
    );
}

#[tokio::test]
async fn a_server_that_does_what_none_should_has_its_reason_in_time() {
    let page = |status: &str, body: &str| format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes();
    let deep = format!("{{\"version\": {}", "[".repeat(60_000));
    let root = r#"{"cluster_name": "x", "version": {"number": "8.1.0"}, "count": 1}"#;
    for (manner, wanted) in [
        (Manner::Silent, Reason::AnswerTimeout),
        (Manner::Closes, Reason::Eof),
        (Manner::Resets, Reason::Reset),
        (Manner::Drips(page("200 OK", root)), Reason::AnswerTimeout),
        (Manner::SaysAndHolds(page("200 OK", root)[..60].to_vec()), Reason::AnswerTimeout),
        (Manner::Says(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), Reason::Protocol),
        (Manner::Says(vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03, 0x0a]), Reason::Protocol),
        (Manner::Endless(vec![b'x'; 10]), Reason::Protocol),
        (Manner::Endless(b"HTTP/1.1 200 OK\r\nX: ".to_vec()), Reason::TooLarge),
        (Manner::Endless(b"HTTP/1.1 200 OK\r\n\r\n{\"a\": \"".to_vec()), Reason::TooLarge),
        (Manner::Says(page("200 OK", "<html>it works</html>")), Reason::Protocol),
        (Manner::Says(page("200 OK", "[]")), Reason::Protocol),
        (Manner::Says(page("200 OK", &deep)), Reason::Protocol),
        (Manner::Says(page("200 OK", r#"{"status": "ok"}"#)), Reason::Protocol),
        // It looks like one, and counts documents in no shards.
        (Manner::Says(page("200 OK", root)), Reason::Protocol),
        (Manner::Says(page("404 Not Found", "<html>nginx</html>")), Reason::Mismatch),
        (Manner::Says(page("301 Moved", "")), Reason::Mismatch),
        (Manner::Says(page("500 Internal Server Error", "oops")), Reason::Mismatch),
    ] {
        let url = format!("http://127.0.0.1:{}", hostile(manner.clone()).await);
        // Megabytes take their time on a busy machine.
        let limit = if wanted == Reason::TooLarge { LONG } else { Duration::from_millis(1500) };
        let result = ask_within(&url, "index: haystack", limit).await;
        let found = result.outcome.as_ref().expect_err("it is broken").reason;
        let told = format!("{manner:?}").chars().take(90).collect::<String>();
        // Who closes with our request unread resets.
        let closed = matches!(manner, Manner::Closes) && found == Reason::Reset;
        assert!(found == wanted || closed, "{told}: expected {wanted}, found {:?}", result.outcome);
        assert!(result.outcome.as_ref().is_err_and(|failure| failure.detail.contains(&url["http://".len()..])), "{:?}", result.outcome);
    }
    // TLS where none is expected, and the reverse.
    let plain = hostile(Manner::Says(page("200 OK", root))).await;
    let result = ask_within(&format!("https://127.0.0.1:{plain}"), "", Duration::from_millis(1500)).await;
    failed(&result, Reason::Tls, "");
    failed(&ask_within(&format!("http://127.0.0.1:{}", free_port()), "", LONG).await, Reason::Refused, "Connection refused");
}

#[test]
fn its_rules_speak_when_they_should_and_only_then() {
    let Some(promtool) = program("promtool") else { return };
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("alerts/tests/elasticsearch.yml");
    let output = std::process::Command::new(promtool).args(["test", "rules"]).arg(file).output().expect("promtool runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
