//! A real Prometheus that scrapes a real Proctor on the whole stack: every query of every panel gives data, or it is written
//! down why not.

use std::collections::BTreeMap;
use std::time::Duration;

use super::build;
use crate::support::process::{Process, eventually, free_port, program};
use crate::support::proctor::Proctor;
use crate::support::smtp::Sink;
use crate::support::whole::WholeSite;

/// Metrics whose queries may give nothing on a site that is well: the table of docs/dashboards.md says why.
fn may_be_empty() -> Vec<String> {
    let page = std::fs::read_to_string(super::root().join("docs/dashboards.md")).expect("it is there");
    let (_, table) = page.split_once("\n## Panels that may be empty\n").expect("the page has the table");
    let rows = table.split("\n## ").next().unwrap_or_default().lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split_once("` | ")).map(|(metric, _)| metric.to_owned()).collect()
}

/// Asks Prometheus for how many series a query gives now.
async fn count(port: u16, query: &str) -> Option<usize> {
    let answer = super::ask(port, query).await?;
    let answer: serde_json::Value = serde_json::from_str(&answer).ok()?;
    assert_eq!(answer["status"], "success", "{query}: {answer}");
    Some(answer["data"]["result"].as_array()?.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_gives_data_in_a_prometheus_that_scrapes_a_proctor_on_the_whole_stack() {
    let (Some(prometheus), Some(site)) = (program("prometheus"), WholeSite::start().await) else { return };
    let sink = Sink::start().await;
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut proctor = Proctor::configured(sink.port, &site.probes).rules(&[("Down", "probe_success == 0")]);
    let config = std::fs::read_to_string(proctor.config()).expect("it is there");
    // Much runs here at once.
    std::fs::write(proctor.config(), config.replace("interval: 1s, timeout: 1s", "interval: 5s, timeout: 5s")).expect("is written");
    proctor.start();

    let (config, port) = (folder.path().join("prometheus.yml"), free_port());
    let scraping = format!(
        "global: {{scrape_interval: 2s, evaluation_interval: 2s}}\nrule_files: [{}]\nscrape_configs:\n- job_name: proctor\n  \
         static_configs: [{{targets: ['127.0.0.1:{}']}}]\n",
        proctor.folder.path().join("rules.yml").display(),
        proctor.web
    );
    std::fs::write(&config, scraping).expect("is written");
    let mut command = std::process::Command::new(prometheus);
    command.arg(format!("--config.file={}", config.display())).arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
    let _prometheus = Process::start(command.arg(format!("--web.listen-address=127.0.0.1:{port}")), &folder.path().join("log"));

    let (mut waiting, may_be_empty) = (BTreeMap::new(), may_be_empty());
    for dashboard in build() {
        for query in dashboard.queries {
            if !may_be_empty.iter().any(|metric| query.contains(&format!("{metric}{{"))) {
                waiting.insert(query.replace("$job", ".*").replace("$instance", ".*"), dashboard.file.clone());
            }
        }
    }
    assert!(waiting.len() > 80, "{}", waiting.len());
    let still = std::sync::Mutex::new(waiting);
    // Prometheus scrapes every 2 s.
    let all = eventually("every query gives data", Duration::from_secs(600), || async {
        let asked: Vec<String> = still.lock().unwrap().keys().cloned().collect();
        for query in asked {
            if count(port, &query).await.is_some_and(|series| series > 0) {
                still.lock().unwrap().remove(&query);
            }
        }
        still.lock().unwrap().is_empty().then_some(())
    });
    let well = tokio::time::timeout(Duration::from_secs(300), all).await.is_ok();
    let still = still.into_inner().unwrap();
    assert!(well, "these give nothing: {still:#?}\n{}\n{}", proctor.log(), String::from_utf8_lossy(&proctor.run(&["check"]).stdout));
    let queries: Vec<String> = build().into_iter().flat_map(|dashboard| dashboard.queries).collect();
    for metric in &may_be_empty {
        assert!(queries.iter().any(|query| query.contains(metric)), "docs/dashboards.md: no panel asks for {metric}");
    }
}
