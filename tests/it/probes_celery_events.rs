//! What the probe celery hears on `celeryev`, from real nodes and from who should not be there.

use std::time::Duration;

use proctor::client::amqp::{MAX_BODY, Properties};
use proctor::model::{ProbeResult, Sight};
use serde_json::json;
use tokio::time::Instant;

use super::support::nodes::Nodes;
use super::support::rabbitmq::{PERMISSIONS, Rabbitmq};
use super::support::watched::{Watched, well};

/// Of what the user needs, what lets it hear and not ask.
const DUMB: [&str; 3] = [r"^amq\.gen-.*$", r"^amq\.gen-.*$", r"^(amq\.gen-.*|celeryev)$"];
/// And what lets it ask and not hear.
const DEAF: [&str; 3] = [PERMISSIONS[0], PERMISSIONS[1], r"^amq\.gen-.*$"];

/// The sum of the samples of this name that have all of these labels; nothing where there are none.
fn sum(result: &ProbeResult, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let has = |sample: &proctor::model::Sample| {
        labels.iter().all(|wanted| sample.labels.iter().any(|(name, value)| (*name, &**value) == *wanted))
    };
    let found: Vec<f64> =
        result.samples.iter().filter(|sample| sample.family.name == name && has(sample)).map(|sample| sample.value).collect();
    (!found.is_empty()).then(|| found.iter().sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_and_events_of_real_nodes_are_told_node_by_node_whatever_else_is_said() {
    // With heartbeats as RabbitMQ has them: with short ones a busy machine loses connections, and they are counted below.
    let Some(mut rabbitmq) = Rabbitmq::start_with(true, "heartbeat = 60\n").await else { return };
    let url = format!("amqp://guest:guest@127.0.0.1:{}//", rabbitmq.port);
    let Some(nodes) = Nodes::of(&url, "rpc://") else { return };
    for (user, permissions) in [("proctor", PERMISSIONS), ("dumb", DUMB), ("deaf", DEAF)] {
        rabbitmq.user(user, "/", permissions);
    }
    let broker = |user: &str, more: &str| {
        let password = rabbitmq.password_file(user);
        format!("{{rabbitmq: {{port: {}, username: {user}, password_file: {}{more}}}}}", rabbitmq.port, password.display())
    };
    let plugin = format!(", prometheus: \"http://127.0.0.1:{}\"", rabbitmq.prometheus);
    let watched = Watched::new(&format!(
        "  rabbitmq: {}\n  dumb: {}\n  celery: {{celery: {{via: rabbitmq, queues: [email, fast]}}}}\n\
         \x20 listener: {{celery: {{via: dumb}}}}\n  off: {{celery: {{via: rabbitmq, events: false}}}}\n",
        broker("proctor", &plugin),
        broker("dumb", ""),
    ));
    // Who listens before any worker has ever run hears it when it comes.
    assert_eq!(sum(&watched.run("celery").await, "celery_events_listening", &[]), Some(0.0));

    // Without -E: heartbeats alone. Who may ask has asked; who may only listen knows by them.
    nodes.start(&["email", "fast"], &[]).await;
    let host = std::process::Command::new("hostname").output().expect("hostname runs").stdout;
    let host = String::from_utf8(host).expect("is text").trim().to_owned();
    let (email, fast) = (format!("email@{host}"), format!("fast@{host}"));
    let up = |result: &ProbeResult, node: &str| sum(result, "celery_worker_up", &[("worker", node), ("hostname", &host)]);
    let both = |result: &ProbeResult| up(result, &email) == Some(1.0) && up(result, &fast) == Some(1.0);
    let listens = |result: &ProbeResult| sum(result, "celery_events_listening", &[]) == Some(1.0);
    let result = watched.until("celery", "it hears and asks", 90, |result| both(result) && listens(result)).await;
    assert_eq!(sum(&result, "celery_task_received_total", &[]), None, "no events of tasks without -E");
    let result = watched.until("listener", "it hears their heartbeats", 90, both).await;
    well(&result, false);
    assert_eq!(sum(&result, "celery_worker_tasks_active", &[("worker", &email)]), Some(0.0));
    let asks_only = |result: &ProbeResult| both(result) && result.sight != Sight::Full;
    let deaf = Watched::new(&format!("  deaf: {}\n  asker: {{celery: {{via: deaf}}}}\n", broker("deaf", "")));
    let result = deaf.until("asker", "it asks", 60, asks_only).await;
    well(&result, false);
    // It tries to listen again every minute, which would be counted below.
    deaf.stop().await;
    let Sight::Partial { missing, remedy } = &result.sight else { panic!("{:?}", result.sight) };
    assert!(missing.contains("events") && missing.contains("403") && remedy.contains("docs/probes/celery.md"), "{missing} {remedy}");
    let result = watched.run("off").await;
    assert_eq!((sum(&result, "celery_events_listening", &[]), result.sight), (None, Sight::Full));

    // A node that is frozen, one that says goodbye.
    nodes.signal_main("email", "STOP");
    let down = |result: &ProbeResult| up(result, &email) == Some(0.0) && up(result, &fast) == Some(1.0);
    watched.until("listener", "heartbeats are missing", 60, down).await;
    nodes.signal_main("email", "CONT");
    watched.until("listener", "they come again", 90, both).await;
    nodes.stop(&["email", "fast"]);
    let gone = |result: &ProbeResult| up(result, &email) == Some(0.0) && up(result, &fast) == Some(0.0);
    watched.until("listener", "both said goodbye", 10, gone).await;

    // With -E: the metrics of celery-exporter, of each node its own.
    nodes.start(&["email", "fast"], &["-E"]).await;
    watched.until("celery", "both are back", 60, both).await;
    let of = |result: &ProbeResult, what: &str, name: &str, worker: &str, queue: &str| {
        sum(result, &format!("celery_task_{what}"), &[("name", name), ("worker", worker), ("hostname", &host), ("queue_name", queue)])
    };
    nodes.python(
        "for i in range(3): fast.apply_async(queue='fast')\n\
         slow.apply_async((0.2, 'SECRET'), queue='email')\n\
         failing.apply_async(('SECRET',), queue='email')\n\
         retrying.apply_async((0.5, 3), queue='email')\n",
    );
    let done = |result: &ProbeResult| {
        of(result, "succeeded_total", "site.fast", &fast, "fast") == Some(3.0)
            && of(result, "failed_total", "site.failing", &email, "email") == Some(1.0)
            && of(result, "retried_total", "site.retrying", &email, "email") == Some(3.0)
            && of(result, "failed_total", "site.retrying", &email, "email") == Some(1.0)
            && of(result, "succeeded_total", "site.slow", &email, "email") == Some(1.0)
    };
    let result = watched.until("celery", "all is told", 60, done).await;
    assert!(result.is_success(), "{:?}", result.outcome);
    for what in ["received_total", "started_total", "runtime_count"] {
        assert_eq!(of(&result, what, "site.fast", &fast, "fast"), Some(3.0), "{what}");
    }
    assert_eq!(sum(&result, "celery_task_failed_total", &[("exception", "ValueError"), ("worker", &email)]), Some(1.0));
    let long = |le: &str| sum(&result, "celery_task_runtime_bucket", &[("name", "site.slow"), ("le", le)]);
    assert_eq!((long("0.1"), long("5.0"), long("+Inf")), (Some(0.0), Some(1.0), Some(1.0)));
    assert!(!format!("{result:?}").contains("SECRET"), "arguments of tasks are never kept");
    // Where the sender says so too, how long tasks wait.
    // The sender says so after it has sent: the task is not begun before that.
    nodes.signal_children("fast", "STOP");
    nodes.python("app.conf.task_send_sent_event = True\nfast.apply_async(queue='fast')\n");
    nodes.signal_children("fast", "CONT");
    let waited = |result: &ProbeResult| of(result, "queue_wait_time_count", "site.fast", &fast, "fast") == Some(1.0);
    let result = watched.until("celery", "it is told how long it waited", 30, waited).await;
    let sender = format!("gen@{host}");
    assert_eq!(of(&result, "sent_total", "site.fast", &sender, "fast"), Some(1.0));

    // Who says what is not true, or nothing that can be read, is counted and changes nothing else.
    let guest = rabbitmq.broker("/", "guest");
    let mut publisher = guest.canary(&mut |_, _| {}).await.expect("is let in").publisher().await.expect("publishes");
    let many: Vec<_> = (0..990)
        .map(|n| json!({"type": "task-received", "uuid": n.to_string(), "hostname": format!("forged{n}@x"), "name": format!("forged{n}")}))
        .collect();
    let forged = serde_json::to_vec(&many).expect("is JSON");
    for body in [&b"\x80\x04pickle"[..], b"", b"{}", &[b'['; 500_000], &vec![b'x'; MAX_BODY + 1], &forged, &forged] {
        publisher.publish("celeryev", "task.multi", &Properties::default(), body).await.expect("is taken");
    }
    let counted = |result: &ProbeResult| {
        both(result)
            && sum(result, "celery_events_malformed_total", &[]) == Some(4.0)
            && sum(result, "celery_events_missed_total", &[]) == Some(1.0)
            && sum(result, "celery_events_folded_total", &[]) > Some(1000.0)
    };
    let result = watched.until("celery", "it is counted", 60, counted).await;
    well(&result, true);
    assert!(sum(&result, "celery_task_received_total", &[("worker", "other")]).is_some());
    assert!(result.samples.len() < 6000, "{}", result.samples.len());

    // Nothing is opened or declared per run, by the broker's own counters. A look serves five seconds.
    let counted = ["rabbitmq_connections_opened_total", "rabbitmq_channels_opened_total", "rabbitmq_queues_declared_total"];
    let plugin = |result: &ProbeResult| sum(result, "rabbitmq_source_up", &[("source", "prometheus")]) == Some(1.0);
    let before = watched.until("rabbitmq", "the plugin answers", 60, plugin).await;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(11) {
        for target in ["celery", "celery/email", "celery/fast"] {
            well(&watched.run(target).await, true);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let after = watched.until("rabbitmq", "the plugin answers again", 60, plugin).await;
    for name in counted {
        assert!(sum(&before, name, &[]).is_some() && sum(&before, name, &[]) == sum(&after, name, &[]), "{name}");
    }

    // The broker dies and comes back: it is heard again, and what was counted is kept.
    rabbitmq.kill();
    watched.until("celery", "nobody is heard", 60, |result| sum(result, "celery_events_listening", &[]) == Some(0.0)).await;
    rabbitmq.relaunch();
    let result = watched.until("celery", "it is heard again", 120, |result| listens(result) && both(result)).await;
    assert_eq!(of(&result, "succeeded_total", "site.fast", &fast, "fast"), Some(4.0));
    nodes.python("fast.apply_async(queue='fast')\n");
    let more = |result: &ProbeResult| of(result, "succeeded_total", "site.fast", &fast, "fast") == Some(5.0);
    watched.until("celery", "and counted on", 60, more).await;
}
