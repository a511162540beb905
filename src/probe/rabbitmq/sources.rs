//! Alarms, memory, disk and file descriptors, from the plugin `rabbitmq_prometheus` or from the management API, under
//! the plugin's names.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use super::super::Recorder;
use crate::client::amqp::Settings;
use crate::client::http::{self, Request, Seen, Url};
use crate::client::net::{Trust, chain};
use crate::model::duration::print;
use crate::model::{Family, Reason};

/// How long one source may take: what it gives is not worth the run. Both together leave room in the usual 5 s.
const LIMIT: Duration = Duration::from_millis(1500);

/// The most bytes of one answer: `/metrics` gives about 90 KiB, a thousand queues about 1 MiB.
const MAX_ANSWER: usize = 8 << 20;

/// What the plugin gives as one number, and what the management API calls it.
static NODE: &[(Family, Option<&str>)] = &[
    (Family::gauge("rabbitmq_alarms_memory_used_watermark", "Whether the memory alarm is in effect"), Some("mem_alarm")),
    (Family::gauge("rabbitmq_alarms_free_disk_space_watermark", "Whether the disk alarm is in effect"), Some("disk_free_alarm")),
    (Family::gauge("rabbitmq_alarms_file_descriptor_limit", "Whether no more connections are accepted for lack of file descriptors"), None),
    (Family::gauge("rabbitmq_process_resident_memory_bytes", "Memory that RabbitMQ uses"), Some("mem_used")),
    (Family::gauge("rabbitmq_resident_memory_limit_bytes", "Memory from which on RabbitMQ takes no messages"), Some("mem_limit")),
    (Family::gauge("rabbitmq_disk_space_available_bytes", "Space left on RabbitMQ's disk"), Some("disk_free")),
    (Family::gauge("rabbitmq_disk_space_available_limit_bytes", "Space below which RabbitMQ takes no messages"), Some("disk_free_limit")),
    (Family::gauge("rabbitmq_process_open_fds", "Open file descriptors"), Some("fd_used")),
    (Family::gauge("rabbitmq_process_max_fds", "File descriptors that may be open"), Some("fd_total")),
    (Family::gauge("rabbitmq_process_open_tcp_sockets", "Open sockets"), Some("sockets_used")),
    (Family::gauge("rabbitmq_process_max_tcp_sockets", "Sockets that may be open"), Some("sockets_total")),
    (Family::counter("rabbitmq_connections_opened_total", "Connections opened since the start"), Some("connection_created")),
    (Family::counter("rabbitmq_connections_closed_total", "Connections closed since the start"), Some("connection_closed")),
    (Family::counter("rabbitmq_channels_opened_total", "Channels opened since the start"), Some("channel_created")),
    (Family::counter("rabbitmq_queues_declared_total", "Queues declared since the start"), Some("queue_declared")),
    (Family::gauge("rabbitmq_connections", "Open connections"), None),
    (Family::gauge("rabbitmq_channels", "Open channels"), None),
    (Family::gauge("rabbitmq_consumers", "Consumers of all queues"), None),
    (Family::gauge("rabbitmq_queues", "Queues"), None),
    (Family::gauge("rabbitmq_erlang_uptime_seconds", "Seconds since RabbitMQ started"), None),
];

/// Only the plugin gives it; public dashboards join every query with it.
static IDENTITY: Family = Family::gauge("rabbitmq_identity_info", "1: which node of which cluster the plugin's metrics are of");

/// What both give of a queue.
static QUEUE: &[(Family, &str)] = &[
    (Family::gauge("rabbitmq_detailed_queue_messages", "Messages in a queue, taken and not"), "messages"),
    (Family::gauge("rabbitmq_detailed_queue_messages_ready", "Messages that no consumer has taken yet"), "messages_ready"),
    (
        Family::gauge("rabbitmq_detailed_queue_messages_unacked", "Messages that a consumer has taken and not acknowledged"),
        "messages_unacknowledged",
    ),
    (Family::gauge("rabbitmq_detailed_queue_consumers", "Consumers of a queue"), "consumers"),
];

/// Records what the plugin gives: of the node, and of these queues.
///
/// # Errors
/// Why nothing could be seen of the node, for people.
pub(super) async fn prometheus(rec: &mut Recorder, url: &Url, trust: &Trust, vhost: &str, queues: &[String]) -> Result<(), String> {
    let answer = get(&Request::get(url.with_path("/metrics")?), trust).await?;
    let text = String::from_utf8_lossy(&answer);
    let (mut seen, mut identity) = (0, None);
    for (name, labels, value) in text.lines().filter_map(series) {
        if let Some((family, _)) = NODE.iter().find(|(family, _)| family.name == name) {
            rec.set(family, value);
            seen += 1;
        } else if name == IDENTITY.name {
            identity = Some(labels);
        }
    }
    if let Some(labels) = identity {
        let named = ["rabbitmq_node", "rabbitmq_cluster"].map(|wanted| (wanted, label(&labels, wanted)));
        rec.set_with(&IDENTITY, &named, 1.0);
    }
    if seen == 0 {
        return Err(format!("{url}: expected the metrics of rabbitmq_prometheus, found none of them"));
    }
    if queues.is_empty() {
        return Ok(());
    }
    let path = format!("/metrics/detailed?family=queue_coarse_metrics&family=queue_consumer_count&vhost={}", percent(vhost));
    let text = get(&Request::get(url.with_path(&path)?), trust).await?;
    for (name, labels, value) in String::from_utf8_lossy(&text).lines().filter_map(series) {
        let queue = label(&labels, "queue");
        if label(&labels, "vhost") == vhost && queues.iter().any(|wanted| wanted == queue) {
            record_queue(rec, name, vhost, queue, value);
        }
    }
    Ok(())
}

/// Records what the management API gives: of the node, and of these queues.
///
/// # Errors
/// Why nothing could be seen, for people.
pub(super) async fn management(
    rec: &mut Recorder,
    url: &Url,
    trust: &Trust,
    settings: &Settings,
    queues: &[String],
) -> Result<(), String> {
    let password = settings.password().map_err(|error| error.to_string())?;
    let ask = async |path: &str| {
        let request = Request::get(url.with_path(path)?).basic(&settings.username, &password);
        let json = get(&request, trust).await?;
        serde_json::from_slice::<Vec<Value>>(&json).map_err(|error| format!("{url}: expected a list as JSON: {error}"))
    };
    let nodes = ask("/api/nodes").await?;
    // Of a cluster: the node with an alarm, else the first that runs.
    let alarm = |node: &&Value| node["mem_alarm"] == true || node["disk_free_alarm"] == true;
    let node = nodes.iter().find(alarm).or_else(|| nodes.iter().find(|node| node["running"] == true));
    let node = node.ok_or_else(|| format!("{url}: expected a node that runs, found none"))?;
    for (family, key) in NODE.iter().filter_map(|(family, key)| Some((family, (*key)?))) {
        // A number that does not come yet is none: the node collects them every 5 s.
        if let Some(value) = node[key].as_f64().or_else(|| node[key].as_bool().map(|set| f64::from(u8::from(set)))) {
            rec.set(family, value);
        }
    }
    if queues.is_empty() {
        return Ok(());
    }
    let columns = "columns=name,messages,messages_ready,messages_unacknowledged,consumers";
    for queue in ask(&format!("/api/queues/{}?{columns}", percent(&settings.vhost))).await? {
        let Some(name) = queue["name"].as_str().filter(|name| queues.iter().any(|queue| queue == name)) else { continue };
        for (family, key) in QUEUE {
            if let Some(value) = queue[*key].as_f64() {
                record_queue(rec, family.name, &settings.vhost, name, value);
            }
        }
    }
    Ok(())
}

fn record_queue(rec: &mut Recorder, name: &str, vhost: &str, queue: &str, value: f64) {
    if let Some((family, _)) = QUEUE.iter().find(|(family, _)| family.name == name) {
        rec.set_with(family, &[("vhost", vhost), ("queue", queue)], value);
    }
}

async fn get(request: &Request, trust: &Trust) -> Result<Vec<u8>, String> {
    let url = &request.url;
    match http::send(request, trust, MAX_ANSWER, &mut Seen::default()).await {
        Ok(answer) if answer.status == 200 => Ok(answer.body),
        Ok(answer) => Err(format!("{url}: expected 200, found {}", answer.status)),
        Err(error) => Err(format!("{url}: {}", chain(&error))),
    }
}

/// Waits for a source, but not longer than it is worth.
pub(super) async fn within(rec: &mut Recorder, url: &Url, source: impl AsyncFnOnce(&mut Recorder) -> Result<(), String>) -> Result<(), String> {
    rec.waiting(Reason::AnswerTimeout, format!("AMQP is well, waiting for {url}"));
    timeout(LIMIT, source(rec)).await.unwrap_or_else(|_| Err(format!("{url}: no answer within {}", print(LIMIT))))
}

/// Writes a text as one part of a path or query.
fn percent(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    text.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Returns the value of a label; empty where there is none.
fn label<'a>(labels: &'a [(&str, String)], wanted: &str) -> &'a str {
    labels.iter().find(|(name, _)| *name == wanted).map_or("", |(_, value)| value.as_str())
}

/// A line of Prometheus' text format: name, labels, value.
type Series<'a> = (&'a str, Vec<(&'a str, String)>, f64);

/// Reads a line of Prometheus' text format 0.0.4, without a timestamp; comments and what is none gives nothing.
fn series(line: &str) -> Option<Series<'_>> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    if name.is_empty() || name.starts_with('#') {
        return None;
    }
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, quoted) = rest.split_once("=\"")?;
            let (value, after) = unquote(quoted)?;
            labels.push((label, value));
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    Some((name, labels, rest.trim().parse().ok()?))
}

/// Reads a quoted value after its opening quote; returns it and what follows its closing quote.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// Lines of Prometheus' text format.
    pub fn exposition(bytes: &[u8]) {
        String::from_utf8_lossy(bytes).lines().for_each(|line| drop(series(line)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_text_format_are_read() {
        let read = series;
        assert_eq!(read("rabbitmq_connections 3"), Some(("rabbitmq_connections", vec![], 3.0)));
        let labels = vec![("vhost", "/".to_owned()), ("queue", "a\"b\\c,d}e".to_owned())];
        assert_eq!(read(r#"q{vhost="/",queue="a\"b\\c,d}e"} 1e3"#), Some(("q", labels, 1000.0)));
        for line in ["", "# TYPE a gauge", "a", "a x", "a{", "a{b", "a{b=\"", "a{b=\"c\"", "a{b=\"c\"}", "{} 1", "a{b=\"\\"] {
            assert_eq!(read(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_vhost_is_one_part_of_a_path() {
        assert_eq!(percent("/"), "%2F");
        assert_eq!(percent("my vhost&é"), "my%20vhost%26%C3%A9");
    }

    #[test]
    fn no_name_is_given_twice() {
        let names = NODE.iter().map(|(family, _)| family).chain(QUEUE.iter().map(|(family, _)| family));
        let distinct: std::collections::BTreeSet<_> = names.map(|family| family.name).collect();
        assert_eq!(distinct.len(), NODE.len() + QUEUE.len());
    }
}
