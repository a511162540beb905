//! The dashboards: their JSON is what `dashboards/dashboards.yml` says, and every query is one that Prometheus takes, of metrics
//! that Proctor has.

mod answers;
mod public;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proctor::model::Problems;
use proctor::model::yaml::{self, Node, Value};
use serde_json::{Value as Json, json};

use super::support::process::{Process, eventually, free_port, program};

/// Labels of the Proctor that a page is about.
const HERE: &str = r#"job=~"$job", instance=~"$instance""#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a dashboard is made of.
struct Dashboard {
    file: String,
    json: Json,
    queries: Vec<String>,
}

fn get<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    let Value::Mapping(pairs) = &node.value else { panic!("expected a mapping, found {node:?}") };
    pairs.iter().find(|(name, _)| name.text == key).map(|(_, value)| value)
}

fn text(node: &Node, key: &str) -> String {
    match get(node, key).map(|node| &node.value) {
        Some(Value::Scalar { text, .. }) => text.clone(),
        other => panic!("{key}: expected a text, found {other:?}"),
    }
}

fn number(node: &Node, key: &str) -> Option<f64> {
    get(node, key).map(|_| text(node, key).parse().unwrap_or_else(|_| panic!("{key}: expected a number")))
}

fn list<'a>(node: &'a Node, key: &str) -> &'a [Node] {
    match get(node, key).map(|node| &node.value) {
        Some(Value::Sequence(items)) => items,
        other => panic!("{key}: expected a list, found {other:?}"),
    }
}

/// Steps of a threshold, from the lowest; `over` N is red above N, `under` N is red below N.
fn thresholds(panel: &Node) -> Json {
    let limit = |key: &str, side: &str| get(panel, key).and_then(|node| number(node, side));
    let mut steps = vec![json!({"color": "green", "value": null})];
    if let Some(bad) = limit("bad", "under") {
        steps = vec![json!({"color": "red", "value": null})];
        steps.extend(limit("warn", "under").map(|_| json!({"color": "orange", "value": bad})));
        steps.push(json!({"color": "green", "value": limit("warn", "under").unwrap_or(bad)}));
    } else {
        // A whole number is counted: red is from the next one on.
        let from = |over: f64| if over.fract() == 0.0 { over + 1.0 } else { over };
        steps.extend(limit("warn", "over").map(|over| json!({"color": "orange", "value": from(over)})));
        steps.extend(limit("bad", "over").map(|over| json!({"color": "red", "value": from(over)})));
    }
    json!({"mode": "absolute", "steps": steps})
}

fn panel(node: &Node, id: usize, at: (u64, u64), queries: &mut Vec<String>) -> (Json, u64) {
    let kind = text(node, "kind");
    let width = number(node, "width").expect("a width") as u64;
    let height = if kind == "stat" { 4 } else { 8 };
    let Some(Value::Mapping(pairs)) = get(node, "queries").map(|node| &node.value) else { panic!("queries: expected a mapping") };
    let instant = kind != "series";
    let targets: Vec<Json> = pairs
        .iter()
        .enumerate()
        .map(|(index, (legend, query))| {
            let Value::Scalar { text: query, .. } = &query.value else { panic!("expected a query") };
            let expr = query.replace("$here", HERE);
            queries.push(expr.clone());
            let format = if kind == "table" { "table" } else { "time_series" };
            json!({
                "refId": char::from(b'A' + u8::try_from(index).expect("few queries")).to_string(),
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "expr": expr, "legendFormat": legend.text, "instant": instant, "range": !instant, "format": format,
            })
        })
        .collect();
    let graph = match kind.as_str() {
        "stat" => "stat",
        "series" => "timeseries",
        "table" => "table",
        "bars" => "bargauge",
        other => panic!("unknown kind of panel {other}"),
    };
    let unit = get(node, "unit").map_or("short".to_owned(), |_| text(node, "unit"));
    let mut json = json!({
        "id": id, "type": graph, "title": text(node, "title"), "description": text(node, "says"),
        "gridPos": {"x": at.0, "y": at.1, "w": width, "h": height},
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, "thresholds": thresholds(node), "color": {"mode": if instant { "thresholds" } else { "palette-classic" }}}, "overrides": []},
    });
    json["options"] = match graph {
        "stat" => json!({"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background", "textMode": "auto", "graphMode": "none"}),
        "bargauge" => json!({"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal", "displayMode": "basic"}),
        "timeseries" => json!({"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}),
        _ => json!({"showHeader": true}),
    };
    if graph == "table" {
        json["transformations"] = json!([{"id": "organize", "options": {"excludeByName": {"Time": true, "Value": true, "__name__": true, "job": true, "instance": true}}}]);
    }
    (json, height)
}

fn variable(name: &str, label: &str, query: &str) -> Json {
    json!({
        "name": name, "label": label, "type": "query", "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name}, "refresh": 2, "includeAll": true, "multi": true, "sort": 1,
        "allValue": ".*", "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
    })
}

fn annotation(name: &str, color: &str, expr: &str, title: &str) -> Json {
    json!({
        "name": name, "enable": true, "iconColor": color, "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "expr": expr.replace("$here", HERE), "titleFormat": title, "step": "60s",
    })
}

const ANNOTATIONS: [(&str, &str, &str, &str); 3] = [
    ("Alerts", "red", r#"ALERTS{$here, alertstate="firing"}"#, "{{alertname}} {{probe}}"),
    ("Repairs", "blue", r#"increase(proctor_actions_total{$here, outcome=~"repaired|failed"}[1m]) > 0"#, "{{outcome}}"),
    ("Changes", "purple", "increase(proctor_changes_total{$here}[1m]) > 0", "{{kind}}"),
];

/// Builds every dashboard from the source.
fn build() -> Vec<Dashboard> {
    let path = root().join("dashboards/dashboards.yml");
    let source = std::fs::read_to_string(&path).expect("the source is there");
    let mut problems = Problems::new(&path);
    let node = yaml::parse(&source, &mut problems);
    let node = node.unwrap_or_else(|| panic!("{:?}", problems.into_sorted()));
    let built = list(&node, "dashboards").iter().map(|of| {
        let (file, title) = (text(of, "file"), text(of, "title"));
        let (mut panels, mut queries, mut y) = (Vec::new(), Vec::new(), 0);
        for row in list(of, "rows") {
            panels.push(json!({"id": panels.len() + 1, "type": "row", "title": text(row, "title"), "collapsed": false, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}}));
            y += 1;
            let (mut x, mut tallest) = (0, 0);
            for of in list(row, "panels") {
                let width = number(of, "width").expect("a width") as u64;
                if x + width > 24 {
                    (x, y, tallest) = (0, y + tallest, 0);
                }
                let (json, height) = panel(of, panels.len() + 1, (x, y), &mut queries);
                panels.push(json);
                (x, tallest) = (x + width, tallest.max(height));
            }
            y += tallest;
        }
        let annotations: Vec<Json> = ANNOTATIONS.iter().map(|(name, color, expr, title)| annotation(name, color, expr, title)).collect();
        queries.extend(ANNOTATIONS.iter().map(|(_, _, expr, _)| expr.replace("$here", HERE)));
        let json = json!({
            "uid": format!("proctor-{file}"), "title": format!("Proctor: {title}"), "tags": ["proctor"], "schemaVersion": 39, "version": 1,
            "editable": true, "refresh": "30s", "time": {"from": "now-6h", "to": "now"}, "timezone": "",
            "links": [{"type": "dashboards", "tags": ["proctor"], "title": "Proctor", "asDropdown": false, "includeVars": true, "keepTime": true}],
            "templating": {"list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}},
                variable("job", "Job", "label_values(proctor_build_info, job)"),
                variable("instance", "Proctor", r#"label_values(proctor_build_info{job=~"$job"}, instance)"#),
            ]},
            "annotations": {"list": annotations},
            "panels": panels,
        });
        Dashboard { file, json, queries }
    });
    built.collect()
}

#[test]
fn the_json_is_what_the_source_says() {
    let update = std::env::var_os("UPDATE_DASHBOARDS").is_some();
    let mut named = BTreeSet::new();
    for Dashboard { file, json, .. } in build() {
        let path: PathBuf = root().join("dashboards").join(format!("{file}.json"));
        let wanted = serde_json::to_string_pretty(&json).expect("is JSON") + "\n";
        if update {
            std::fs::write(&path, &wanted).expect("is written");
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == wanted, "{} is not what dashboards.yml says: run `make dashboards`", path.display());
        named.insert(path);
    }
    for path in glob::glob(&root().join("dashboards/*.json").display().to_string()).expect("a pattern").flatten() {
        assert!(named.contains(&path), "{} is in no source", path.display());
    }
}

/// The names of all metrics that the sources declare.
fn declared(folder: &Path, names: &mut BTreeSet<String>) {
    let family = regex::Regex::new(r#""([a-z][a-z0-9_]*_[A-Za-z0-9_]+)""#).expect("a pattern");
    for entry in std::fs::read_dir(folder).expect("a folder of the tree").flatten() {
        let path = entry.path();
        if path.is_dir() {
            declared(&path, names);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let source = std::fs::read_to_string(&path).expect("a file of the tree");
            names.extend(family.captures_iter(&source).map(|found| found[1].to_owned()));
        }
    }
}

#[test]
fn every_metric_of_a_query_is_one_that_proctor_has() {
    let mut names: BTreeSet<String> = BTreeSet::from(["ALERTS".to_owned()]);
    declared(&root().join("src"), &mut names);
    for name in proctor::metrics::Metrics::NAMES {
        names.extend([(*name).to_owned(), format!("{name}_total")]);
    }
    let metric = regex::Regex::new(r"([A-Za-z_][A-Za-z0-9_]*)\{").expect("a pattern");
    let mut unknown = BTreeSet::new();
    for Dashboard { file, queries, .. } in build() {
        for query in queries {
            for found in metric.captures_iter(&query) {
                let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| found[1].strip_suffix(suffix));
                if !names.contains(&found[1]) && !base.is_some_and(|base| names.contains(base)) {
                    unknown.insert(format!("{file}: {}", &found[1]));
                }
            }
        }
    }
    assert!(unknown.is_empty(), "no probe has these: {unknown:#?}");
}

/// Asks a Prometheus and returns the JSON of its answer.
async fn ask(port: u16, query: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let body: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let body = format!("query={body}");
    let request = format!(
        "POST /api/v1/query HTTP/1.0\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).filter(|body| body.starts_with('{'))
}

#[tokio::test]
async fn a_real_prometheus_takes_every_query() {
    let Some(prometheus) = program("prometheus") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (config, port) = (folder.path().join("prometheus.yml"), free_port());
    std::fs::write(&config, "global: {}\n").expect("is written");
    let mut command = std::process::Command::new(prometheus);
    command.arg(format!("--config.file={}", config.display())).arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
    let _process = Process::start(command.arg(format!("--web.listen-address=127.0.0.1:{port}")), &folder.path().join("log"));
    eventually("prometheus answers", std::time::Duration::from_secs(60), || ask(port, "1")).await;
    let mut wrong = Vec::new();
    for Dashboard { file, queries, .. } in build() {
        for query in queries {
            // What Grafana puts there.
            let asked = query.replace("$job", ".*").replace("$instance", ".*");
            let answer = ask(port, &asked).await.expect("it answered before");
            if !answer.contains("\"status\":\"success\"") {
                wrong.push(format!("{file}: {query}: {answer}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
