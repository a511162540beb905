//! What a node says of itself, as far as it is needed. Arguments of tasks are in some answers: no type here has a place
//! for them, so they end where the bytes are read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::mailbox::{Command, MAX_NODES, Nodes};
use crate::model::Timestamp;

/// The longest name of a node or a task that is taken, in bytes.
const MAX_NAME: usize = 200;

/// One node, as it answered.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Node {
    /// What it answered to, with an error too.
    pub(super) answered: BTreeSet<Command>,
    pub(super) stats: Option<Stats>,
    pub(super) active: Vec<Task>,
    pub(super) reserved: Vec<Task>,
    pub(super) scheduled: Vec<Scheduled>,
    pub(super) queues: Option<Vec<Queue>>,
    /// Whether it sends results to the queue that a task names.
    pub(super) rpc: Option<bool>,
}

/// The answer to `stats`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Stats {
    pub(super) pid: u64,
    /// How many tasks it has accepted, by name.
    #[serde(default)]
    pub(super) total: BTreeMap<String, u64>,
    #[serde(default)]
    pub(super) pool: Pool,
    /// Seconds since its start; not of old ones.
    #[serde(default)]
    uptime: Option<f64>,
    /// With `--autoscale`: the pool then says its smallest size, however large it is.
    #[serde(default)]
    autoscaler: Option<Autoscaler>,
}

#[derive(Clone, Debug, Deserialize)]
struct Autoscaler {
    max: u32,
}

/// Its pool.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Pool {
    #[serde(default, rename = "max-concurrency")]
    pub(super) slots: Option<u32>,
}

/// A task that runs or waits in a node.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Task {
    pub(super) id: String,
    #[serde(default)]
    pub(super) name: String,
    /// When it began, in seconds since the epoch.
    #[serde(default)]
    pub(super) time_start: Option<f64>,
    #[serde(default)]
    pub(super) delivery_info: Delivery,
}

/// How a task came.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Delivery {
    #[serde(default)]
    pub(super) routing_key: Option<String>,
}

/// A task that may begin only later.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Scheduled {
    /// When, in ISO 8601.
    pub(super) eta: Option<String>,
    pub(super) request: Task,
}

/// A queue that a node consumes.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Queue {
    pub(super) name: String,
    #[serde(default)]
    pub(super) routing_key: Option<String>,
}

#[derive(Deserialize)]
struct Conf {
    #[serde(default)]
    result_backend: Option<String>,
}

impl Task {
    /// Returns for how long it has run.
    pub(super) fn age(&self, now: Timestamp) -> Option<Duration> {
        // Older Celery gave the time since its host was started: no age then, rather than a wrong one.
        let begun = self.time_start.filter(|begun| *begun > 1e9)?;
        Some(Duration::try_from_secs_f64((now.as_secs_f64() - begun).max(0.0)).unwrap_or_default())
    }
}

impl Scheduled {
    /// Returns when it may begin.
    pub(super) fn at(&self) -> Option<Timestamp> {
        let eta = self.eta.as_deref()?;
        let zoned = eta.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_millisecond);
        // Without a zone where the site has set `enable_utc` off; then it is a guess.
        let plain = || Some(jiff::tz::Offset::UTC.to_timestamp(eta.parse().ok()?).ok()?.as_millisecond());
        zoned.ok().or_else(plain).map(Timestamp)
    }
}

impl Node {
    /// Takes one answer, `{"fast@host": …}`, to a command; what is none changes nothing.
    pub(super) fn take(nodes: &mut Nodes, command: Command, body: &[u8]) {
        match command {
            Command::Ping => Self::put::<IgnoredAny>(nodes, command, body, |_, _| ()),
            Command::Stats => Self::put(nodes, command, body, |node, stats| node.stats = Some(stats)),
            Command::Active => Self::put(nodes, command, body, |node, tasks| node.active = tasks),
            Command::Reserved => Self::put(nodes, command, body, |node, tasks| node.reserved = tasks),
            Command::Scheduled => Self::put(nodes, command, body, |node, tasks| node.scheduled = tasks),
            Command::ActiveQueues => Self::put(nodes, command, body, |node, queues| node.queues = Some(queues)),
            Command::Conf => Self::put(nodes, command, body, |node, conf: Conf| {
                node.rpc = Some(conf.result_backend.is_some_and(|backend| backend.starts_with("rpc")));
            }),
        }
    }

    fn put<T: DeserializeOwned>(nodes: &mut Nodes, command: Command, body: &[u8], place: impl FnOnce(&mut Self, T)) {
        // What a node could not do it answers with `{"error": "KeyError(…)"}`; `ping` would take that for a value.
        let refused = one::<BTreeMap<String, IgnoredAny>>(body).filter(|(_, value)| value.len() == 1 && value.contains_key("error"));
        let (name, value) = match (refused, one::<T>(body)) {
            (Some((name, _)), _) => (name, None),
            (None, Some((name, value))) => (name, Some(value)),
            (None, None) => return,
        };
        if !is_name(&name) || (nodes.len() >= MAX_NODES && !nodes.contains_key(&name)) {
            return;
        }
        let node = nodes.entry(name).or_default();
        node.answered.insert(command);
        if let Some(value) = value {
            place(node, value);
        }
    }

    /// Says whether it consumes this queue.
    pub(super) fn consumes(&self, queue: &str) -> bool {
        self.queues.iter().flatten().any(|consumed| consumed.name == queue)
    }

    /// Returns how many tasks it can run at a time.
    pub(super) fn slots(&self) -> u32 {
        let most = |stats: &Stats| stats.autoscaler.as_ref().map(|autoscaler| autoscaler.max).or(stats.pool.slots);
        self.stats.as_ref().and_then(most).unwrap_or(0)
    }

    /// Returns how many tasks of a queue it has taken and not begun.
    pub(super) fn reserved_of(&self, queue: &str) -> usize {
        let consumed: Vec<&Queue> = self.queues.iter().flatten().collect();
        let key = consumed.iter().find(|consumed| consumed.name == queue).and_then(|consumed| consumed.routing_key.as_deref());
        // A task names the key it was sent with; a node of one queue has all from there.
        let of = |task: &&Task| consumed.len() == 1 || task.delivery_info.routing_key.as_deref().is_some_and(|sent| sent == queue || Some(sent) == key);
        self.reserved.iter().filter(of).count()
    }

    /// Says whether it has taken this task, and not ended it.
    pub(super) fn holds(&self, id: &str) -> bool {
        self.active.iter().chain(&self.reserved).any(|task| task.id == id)
    }

    /// Returns its process, and how many tasks of this name that has accepted.
    pub(in super::super) fn count(&self, task: &str) -> Option<(u64, u64)> {
        let stats = self.stats.as_ref()?;
        Some((stats.pid, stats.total.get(task).copied().unwrap_or(0)))
    }

    /// Returns for how long it has run.
    pub(in super::super) fn uptime(&self) -> Option<Duration> {
        self.stats.as_ref().and_then(|stats| Duration::try_from_secs_f64(stats.uptime?).ok())
    }

    /// Says whether it has answered all of these.
    pub(super) fn has_answered(&self, commands: &[Command]) -> bool {
        commands.iter().all(|command| self.answered.contains(command))
    }
}

/// Reads a mapping from one name.
fn one<T: DeserializeOwned>(body: &[u8]) -> Option<(String, T)> {
    let map: BTreeMap<String, T> = serde_json::from_slice(body).ok()?;
    if map.len() == 1 { map.into_iter().next() } else { None }
}

/// Says whether this may be the name of a node, such as `email@host`: whoever may publish can forge an answer.
fn is_name(name: &str) -> bool {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '\\' | '{' | '}');
    name.len() <= MAX_NAME && name.split_once('@').is_some_and(|(node, host)| !node.is_empty() && !host.is_empty()) && name.chars().all(plain)
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// Answers of a worker.
    pub fn celery_answer(bytes: &[u8]) {
        let now = Timestamp::from_secs(1_800_000_000);
        for command in Command::ALL {
            let mut nodes = Nodes::new();
            Node::take(&mut nodes, command, bytes);
            for node in nodes.values() {
                node.reserved_of("celery");
                node.count("a");
                node.uptime();
                assert!(node.active.iter().filter_map(|task| task.age(now)).all(|age| age <= now.since(Timestamp(0))));
                node.scheduled.iter().filter_map(Scheduled::at).for_each(|at| drop(at.to_string()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(command: Command, body: &str) -> Nodes {
        let mut nodes = Nodes::new();
        Node::take(&mut nodes, command, body.as_bytes());
        nodes
    }

    #[test]
    fn an_answer_is_read_and_arguments_are_not() {
        let nodes = taken(
            Command::Active,
            r#"{"fast@a": [{"id": "1", "name": "t", "args": ["SECRET"], "kwargs": {"k": "SECRET"}, "time_start": 5.5,
                "delivery_info": {"exchange": "", "routing_key": "fast", "priority": 0}, "worker_pid": 7, "type": "t"}]}"#,
        );
        let node = &nodes["fast@a"];
        assert_eq!((node.active[0].id.as_str(), node.active[0].time_start), ("1", Some(5.5)));
        assert!(!format!("{nodes:?}").contains("SECRET"));
        let nodes = taken(Command::Stats, r#"{"fast@a": {"pid": 3, "total": {"a.b": 7}, "pool": {"max-concurrency": 2, "processes": [4, 5]}}}"#);
        let stats = nodes["fast@a"].stats.as_ref().expect("is there");
        assert_eq!((stats.pid, stats.total["a.b"], stats.pool.slots), (3, 7, Some(2)));
        let scaled = r#"{"fast@a": {"pid": 3, "pool": {"max-concurrency": 2}, "autoscaler": {"max": 9, "min": 2, "current": 4, "qty": 0}}}"#;
        assert_eq!((nodes["fast@a"].slots(), taken(Command::Stats, scaled)["fast@a"].slots()), (2, 9));
        let secret = r#"{"fast@a": {"result_backend": "rpc://", "broker_url": "amqp://u:SECRET@h//"}}"#;
        assert_eq!(taken(Command::Conf, secret)["fast@a"].rpc, Some(true));
        assert_eq!(taken(Command::Conf, r#"{"fast@a": {}}"#)["fast@a"].rpc, Some(false));
    }

    #[test]
    fn an_error_is_an_answer_and_garbage_is_none() {
        let nodes = taken(Command::Stats, r#"{"fast@a": {"error": "KeyError('stats')"}}"#);
        assert!(nodes["fast@a"].has_answered(&[Command::Stats]) && nodes["fast@a"].stats.is_none());
        assert_eq!(taken(Command::Ping, r#"{"fast@a": {"ok": "pong"}}"#).len(), 1);
        for body in ["", "[]", "7", "{}", "{\"a@b\": {}, \"c@d\": {}}", "{\"a@b\": 7}", "{\"a\": {\"pid\": 1}}", "{\"@b\": {\"pid\": 1}}", "\u{ff}"] {
            assert_eq!(taken(Command::Stats, body).len(), 0, "{body}");
        }
        for name in ["a b@c", "a\\n@b", "a@b\\\"} 1\\nx{", &format!("a@{}", "x".repeat(MAX_NAME))] {
            assert_eq!(taken(Command::Stats, &format!("{{\"{name}\": {{\"pid\": 1}}}}")).len(), 0, "{name}");
        }
        let deep = format!("{{\"a@b\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(taken(Command::Active, &deep).len(), 0);
    }

    #[test]
    fn no_more_nodes_are_taken_than_the_bound() {
        let mut nodes = Nodes::new();
        for round in 0..MAX_NODES * 2 {
            Node::take(&mut nodes, Command::Ping, format!("{{\"n@{round}\": {{\"ok\": \"pong\"}}}}").as_bytes());
        }
        assert_eq!(nodes.len(), MAX_NODES);
    }
}
