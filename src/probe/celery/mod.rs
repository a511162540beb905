//! Asks Celery's nodes what they do, and sends a task through every queue.
//!
//! A worker that says "pong" may run nothing: pings are answered by its main process, tasks are run by its children, and
//! what it has taken from a queue is counted nowhere in the broker. So four things are looked at together: the queue as
//! the broker has it, what the nodes say of themselves (`mailbox`), whether their counts move, and, where it is
//! configured, how long a task of our own takes through the queue.

mod canary;
mod events;
mod judge;
pub(super) mod mailbox;
mod memory;
pub(super) mod node;
mod nodes;
mod queue;
mod site;

use std::sync::Arc;
use std::time::Duration;

use self::events::Events;
use self::nodes::NodesTarget;
use self::queue::QueueTarget;
use self::site::Site;
use super::{Planned, Shared};
use crate::model::decode::{Named, Spanned};
use crate::model::duration::print;

crate::config_struct! {
    /// Asks Celery's nodes what they do, and sends a task through every queue.
    pub struct CeleryConfig {
        /// The `rabbitmq` probe over whose connections the nodes are asked; this probe then depends on it.
        via: Spanned<String>,
        /// Queues that celery nodes consume: a target each.
        queues: Vec<String> = "[]",
        /// Sends a task through every one of `queues` that a celery node consumes. Without it none is sent.
        canary: Option<CanaryConfig>,
        /// Names of nodes that must answer, such as `email@host`. Besides them those whose name came back after a
        /// restart are expected.
        nodes: Vec<String> = "[]",
        /// A task that runs for longer is no honest work any more.
        max_task_age: Duration = "6h",
        /// What is expected of a queue, by its name.
        expect: Named<ExpectConfig> = "{}",
        /// How long RabbitMQ waits for an acknowledgement, where its `consumer_timeout` was changed.
        consumer_timeout: Option<Duration>,
        /// Whether it listens to the workers: to their heartbeats, and to the events of tasks that they send with `-E`.
        events: bool = "true",
    }
}

crate::config_struct! {
    /// The task that is sent through a queue to see how long it waits there.
    pub struct CanaryConfig {
        /// Time between two.
        every: Duration = "60s",
    }
}

crate::config_struct! {
    /// What is expected of one queue.
    pub struct ExpectConfig {
        /// Its consumers; without it as many as usual.
        consumers: Option<u32>,
        /// How many tasks of it can run at a time; without it as many as usual.
        slots: Option<u32>,
        /// Instead of the one for all queues.
        max_task_age: Option<Duration>,
    }
}

/// The most queues and names of nodes that are configured.
const MAX_CONFIGURED: usize = 200;

/// Builds one target for the nodes and one for each queue: where one queue is broken, its neighbours stay green.
///
/// # Errors
/// No such broker, more than 200 queues or nodes, an expectation of a queue that is not asked for, a canary more often
/// than every 10 s.
pub fn plan(config: &CeleryConfig, _: &str, shared: &Shared) -> Result<Vec<Planned>, String> {
    const SHORTEST: Duration = Duration::from_secs(10);
    for (key, found) in [("queues", config.queues.len()), ("nodes", config.nodes.len())] {
        if found > MAX_CONFIGURED {
            return Err(format!("{key}: expected at most {MAX_CONFIGURED}, found {found}"));
        }
    }
    if let Some((queue, _)) = config.expect.0.iter().find(|(queue, _)| !config.queues.contains(&queue.value)) {
        return Err(format!("expect: expected a queue of queues, found {:?}", queue.value));
    }
    if let Some(every) = config.canary.as_ref().map(|canary| canary.every).filter(|every| *every < SHORTEST) {
        return Err(format!("canary.every: expected at least {}, found {}", print(SHORTEST), print(every)));
    }
    let site = Arc::new(Site::new(config, shared.broker(&config.via)?, shared.tasks().clone()));
    let events = config.events.then(|| Events::new(site.mailbox.broker().clone(), shared.tasks().clone()));
    let nodes = Planned { target: None, probe: Box::new(NodesTarget { site: site.clone(), events }) };
    let queue = |name: &String| Planned::one(name, QueueTarget::new(site.clone(), name));
    Ok(std::iter::once(nodes).chain(config.queues.iter().map(queue)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn a_configuration_says_what_is_wrong_with_it() {
        for (text, wrong) in [
            ("{via: broker}", "expected the name of a rabbitmq probe, found \"broker\""),
            ("{via: broker, queues: [a], expect: {b: {consumers: 1}}}", "expect: expected a queue of queues, found \"b\""),
            ("{via: broker, canary: {every: 1s}}", "canary.every: expected at least 10s, found 1s"),
            (&format!("{{via: broker, nodes: [{}]}}", vec!["a@b"; 201].join(", ")), "nodes: expected at most 200, found 201"),
        ] {
            let config: CeleryConfig = from_text("f", text).expect(text);
            let why = plan(&config, "celery", &Shared::default()).err().unwrap_or_else(|| panic!("{text} is wrong"));
            assert!(why.contains(wrong), "{text}: {why}");
        }
    }
}
