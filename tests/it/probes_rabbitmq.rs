//! The AMQP client and the probe rabbitmq against a real RabbitMQ, and against brokers that do what none should.

use std::sync::Arc;
use std::time::Duration;

use proctor::client::amqp::{AmqpError, Broker, DIRECT_REPLY, MAX_BODY, Properties, Routed, Value};
use proctor::metrics::Metrics;
use proctor::model::decode::from_text;
use proctor::model::{Failure, ProbeResult, Reason, Sight, Target};
use proctor::probe::ProbeConfig;
use proctor::probe::scheduler::{Scheduled, run};
use proctor::tasks::Tasks;
use tokio::time::Instant;

use super::probes_web::black_hole;
use super::support::hostile::{Manner, hostile};
use super::support::process::{eventually, free_port};
use super::support::rabbitmq::{OWN, PERMISSIONS, Rabbitmq, frame, method, open_ok, scripted, settings, start, tune};

// The tests with a RabbitMQ have threads of their own for the connections: `ctl` blocks, and heartbeats must go on.

/// A probe that keeps its connections from run to run.
struct Asked(Scheduled, Metrics);

impl Asked {
    fn new(yaml: &str, timeout: Duration) -> Self {
        let config: ProbeConfig =
            from_text("proctor.yml", &format!("rabbitmq: {yaml}")).unwrap_or_else(|problems| panic!("{yaml}: {problems:?}"));
        let planned = config.plan().unwrap_or_else(|why| panic!("{yaml}: {why}")).remove(0);
        let target = Target {
            probe: "rabbitmq".into(),
            target: None,
            kind: "rabbitmq",
            interval: Duration::from_secs(15),
            timeout,
            depends_on: Arc::new([]),
        };
        Self(Scheduled { target: Arc::new(target), probe: planned.probe }, Metrics::new())
    }

    async fn run(&self) -> ProbeResult {
        let begin = Instant::now();
        let result = run(&self.0, &self.1).await.expect("this host is awake");
        let timeout = self.0.target.timeout;
        assert!(begin.elapsed() < timeout + Duration::from_secs(1), "the limit of {timeout:?} holds: {:?}", begin.elapsed());
        result
    }

    /// Runs until it ends like this; a connection that failed is tried again only after its backoff.
    async fn until(&self, what: &str, within: u64, like: impl Fn(&ProbeResult) -> bool) -> ProbeResult {
        eventually(what, Duration::from_secs(within), || async {
            let result = self.run().await;
            like(&result).then_some(result)
        })
        .await
    }
}

async fn ask(yaml: &str, timeout: Duration) -> ProbeResult {
    Asked::new(yaml, timeout).run().await
}

fn labelled(result: &ProbeResult, name: &str, label: &str) -> Option<f64> {
    let fits = |sample: &&proctor::model::Sample| {
        sample.family.name == name && (label.is_empty() || sample.labels.iter().any(|(_, value)| &**value == label))
    };
    let found: Vec<f64> = result.samples.iter().filter(fits).map(|sample| sample.value).collect();
    assert!(found.len() < 2, "{name} {label} is there once: {found:?}");
    found.first().copied()
}

fn value(result: &ProbeResult, name: &str) -> Option<f64> {
    labelled(result, name, "")
}

#[track_caller]
fn failed(result: &ProbeResult, reason: Reason, words: &str) {
    let Err(Failure { reason: found, detail }) = &result.outcome else { panic!("expected {reason}, found success") };
    assert_eq!(*found, reason, "{detail}");
    assert!(detail.contains(words), "{words:?} in {detail:?}");
}

#[track_caller]
fn partial(result: &ProbeResult, words: &str, cure: &str) {
    assert!(result.is_success(), "{:?}", result.outcome);
    let Sight::Partial { missing, remedy } = &result.sight else { panic!("expected to see less, found {:?}", result.sight) };
    assert!(missing.contains(words) && remedy.contains(cure), "{missing}: {remedy}");
}

async fn quiet(broker: &Broker) -> Result<proctor::client::amqp::Link, AmqpError> {
    broker.observer(&mut |_, _| {}).await
}

/// Whether the connection of the run before is just being dropped.
fn hangs(result: &ProbeResult) -> bool {
    result.outcome.as_ref().is_err_and(|failure| failure.detail.contains("the connection hangs and was dropped"))
}

/// What the plugin gives of the node, once it has collected it.
const COLLECTED: [&str; 4] = [
    "rabbitmq_process_resident_memory_bytes",
    "rabbitmq_resident_memory_limit_bytes",
    "rabbitmq_disk_space_available_bytes",
    "rabbitmq_process_max_fds",
];

const BRIEFLY: Duration = Duration::from_millis(1500);
const LONG: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_seen_with_little_and_says_what_more_would_show() {
    let Some(rabbitmq) = Rabbitmq::start(true).await else { return };
    let (port, prometheus, management) = (rabbitmq.port, rabbitmq.prometheus, rabbitmq.management);
    rabbitmq.ctl(&["add_vhost", "site"]);
    rabbitmq.ctl(&["set_permissions", "-p", "site", "guest", ".*", ".*", ".*"]);
    for queue in ["email", "batch"] {
        rabbitmq.queue("site", queue);
    }
    // No tags, and no more than this.
    rabbitmq.user("proctor", "site", OWN);
    rabbitmq.user("poor", "site", ["^$", "^$", "^$"]);
    rabbitmq.user("stranger", "/", ["^$", "^$", "^$"]);
    let login = |user: &str| format!("port: {port}, username: {user}, password_file: {}", rabbitmq.password_file(user).display());

    // A consumer and three messages, by the client that celery will use.
    let guest = rabbitmq.broker("site", "guest");
    let standing = quiet(&guest).await.expect("is let in");
    let channel = standing.channel().await.expect("opens");
    let _consumer = channel.consume("email").await.expect("consumes");
    let mut publisher = guest.canary(&mut |_, _| {}).await.expect("is let in").publisher().await.expect("publishes");
    for _ in 0..3 {
        assert_eq!(publisher.publish("", "batch", &Properties::default(), b"x").await.expect("is taken"), Routed::Queue);
    }

    let plugin = format!("prometheus: \"http://127.0.0.1:{prometheus}\"");
    let api = format!("management: \"http://127.0.0.1:{management}\"");
    let asked = Asked::new(&format!("{{{}, vhost: site, queues: [email, batch], {plugin}}}", login("proctor")), LONG);
    // Each of its parts collects its numbers every 5 s, at a moment of its own.
    let collected = |result: &ProbeResult| {
        labelled(result, "rabbitmq_detailed_queue_messages", "batch") == Some(3.0)
            && labelled(result, "rabbitmq_detailed_queue_consumers", "email") == Some(1.0)
            && COLLECTED.iter().all(|name| value(result, name) > Some(0.0))
    };
    let result = asked.until("the plugin has collected its numbers", 60, collected).await;
    assert!(result.is_success() && result.sight == Sight::Full, "{:?} {:?}", result.outcome, result.sight);
    for (name, label, wanted) in [
        ("rabbitmq_up", "", 1.0),
        ("rabbitmq_build_info", "3.10.8", 1.0),
        ("rabbitmq_queue_messages_ready", "email", 0.0),
        ("rabbitmq_queue_messages_ready", "batch", 3.0),
        ("rabbitmq_queue_consumers", "email", 1.0),
        ("rabbitmq_queue_consumers", "batch", 0.0),
        ("rabbitmq_queue_missing", "batch", 0.0),
        ("rabbitmq_publish_blocked", "memory", 0.0),
        ("rabbitmq_publish_blocked", "disk", 0.0),
        ("rabbitmq_source_up", "amqp", 1.0),
        ("rabbitmq_source_up", "prometheus", 1.0),
        ("rabbitmq_alarms_memory_used_watermark", "", 0.0),
        ("rabbitmq_detailed_queue_messages", "batch", 3.0),
        ("rabbitmq_detailed_queue_messages_unacked", "batch", 0.0),
        ("rabbitmq_detailed_queue_consumers", "email", 1.0),
    ] {
        assert_eq!(labelled(&result, name, label), Some(wanted), "{name} {label}");
    }
    let identity = result.samples.iter().find(|sample| sample.family.name == "rabbitmq_identity_info").expect("the plugin says it");
    assert!(identity.labels.iter().all(|(_, of)| of.contains('@')) && identity.labels.len() == 2, "{identity:?}");
    assert!(value(&result, "rabbitmq_connection_start_seconds").is_some_and(|took| took < LONG.as_secs_f64()));
    assert_eq!(result.evidence, ["queue \"batch\" has no consumer, and 3 messages wait in it"]);

    // Nothing is opened or declared per run, by the broker's own counters.
    let told = |result: &ProbeResult| labelled(result, "rabbitmq_source_up", "prometheus") == Some(1.0);
    let before = asked.until("the plugin answers", 60, told).await;
    for _ in 0..20 {
        assert!(asked.run().await.is_success());
    }
    let after = asked.until("the plugin answers again", 60, told).await;
    for name in ["rabbitmq_connections_opened_total", "rabbitmq_channels_opened_total", "rabbitmq_queues_declared_total"] {
        assert!(value(&before, name).is_some() && value(&before, name) == value(&after, name), "{name}");
    }

    // The management API gives the same under the same names, to who has the tag.
    let only_api = Asked::new(&format!("{{{}, vhost: site, queues: [batch], {api}}}", login("proctor")), LONG);
    let refused = |result: &ProbeResult| matches!(&result.sight, Sight::Partial { missing, .. } if missing.contains("found 401"));
    let result = only_api.until("the management API answers", 60, refused).await;
    partial(&result, "expected 200, found 401", "set_user_tags proctor monitoring");
    rabbitmq.ctl(&["set_user_tags", "proctor", "monitoring"]);
    let result = only_api
        .until("the node has collected its numbers", 60, |result| {
            value(result, "rabbitmq_process_max_fds").is_some()
                && labelled(result, "rabbitmq_detailed_queue_messages", "batch") == Some(3.0)
        })
        .await;
    assert_eq!(result.sight, Sight::Full);
    assert_eq!(labelled(&result, "rabbitmq_source_up", "management"), Some(1.0));
    assert_eq!(value(&result, "rabbitmq_alarms_memory_used_watermark"), Some(0.0));

    // With less, it says what is missing.
    let result = ask(&format!("{{{}, vhost: site, queues: [batch]}}", login("poor")), LONG).await;
    partial(&result, "whether publishing is blocked: user \"poor\" may not publish", r"add ^amq\.default$ to the write pattern");
    assert_eq!(labelled(&result, "rabbitmq_queue_messages_ready", "batch"), Some(3.0), "3.10 asks for no permission to look");
    let silent = free_port();
    let result = ask(&format!("{{{}, vhost: site, prometheus: \"http://127.0.0.1:{silent}\"}}", login("proctor")), LONG).await;
    partial(&result, "Connection refused", "rabbitmq-plugins enable rabbitmq_prometheus");
    assert_eq!(labelled(&result, "rabbitmq_source_up", "prometheus"), Some(0.0));

    // A source that hangs costs its own time, and the next one is asked.
    let hung = hostile(Manner::Silent).await;
    let both = format!("prometheus: \"http://127.0.0.1:{hung}\", {api}");
    let asked_both = Asked::new(&format!("{{{}, vhost: site, {both}}}", login("proctor")), LONG);
    let next = |result: &ProbeResult| labelled(result, "rabbitmq_source_up", "management") == Some(1.0);
    let result = asked_both.until("the next one answers in its own time", 60, next).await;
    partial(&result, "no answer within 1s500ms", "rabbitmq-plugins enable rabbitmq_prometheus");
    assert_eq!(value(&result, "rabbitmq_alarms_memory_used_watermark"), Some(0.0));

    // Each way of not being let in has its reason.
    let result = ask(&format!("{{{}, vhost: site, queues: [batch, gone]}}", login("proctor")), LONG).await;
    failed(&result, Reason::Missing, "vhost \"site\" has no queue \"gone\"");
    assert_eq!((value(&result, "rabbitmq_up"), labelled(&result, "rabbitmq_queue_missing", "gone")), (Some(1.0), Some(1.0)));
    let wrong = rabbitmq.password_file("somebody-else");
    let result = ask(&format!("{{port: {port}, vhost: site, username: proctor, password_file: {}}}", wrong.display()), LONG).await;
    failed(&result, Reason::Auth, "expected the broker to take user \"proctor\"");
    assert!(!format!("{result:?}").contains("pw-somebody"), "no password is said");
    failed(&ask(&format!("{{{}, vhost: none}}", login("proctor")), LONG).await, Reason::Missing, "expected the vhost \"none\"");
    failed(&ask(&format!("{{{}, vhost: site}}", login("stranger")), LONG).await, Reason::Forbidden, "set_permissions -p site stranger");
    rabbitmq.ctl(&["add_vhost", "down"]);
    rabbitmq.ctl(&["set_permissions", "-p", "down", "guest", "", "", ""]);
    rabbitmq.ctl(&["eval", "rabbit_vhost_sup_sup:stop_and_delete_vhost(<<\"down\">>)."]);
    failed(&ask(&format!("{{{}, vhost: down}}", login("guest")), LONG).await, Reason::Starting, "vhost 'down' is down");
    rabbitmq.ctl(&["set_user_limits", "stranger", "{\"max-connections\": 0}"]);
    failed(&ask(&format!("{{{}, vhost: /}}", login("stranger")), LONG).await, Reason::Saturated, "limit");

    // Over TLS, to whom it trusts.
    let tls = format!("{{host: localhost, port: {}, vhost: site, username: guest, tls: true", rabbitmq.tls);
    let result = ask(&format!("{tls}, ca_file: {}}}", rabbitmq.authority.display()), LONG).await;
    assert!(result.is_success(), "{:?}", result.outcome);
    failed(&ask(&format!("{tls}}}"), LONG).await, Reason::Certificate, "the certificate that localhost serves is not valid");

    // `proctor check` asks once and says goodbye as well.
    let file = rabbitmq.authority.with_file_name("proctor.yml");
    let yaml = format!("probes:\n  broker: {{rabbitmq: {{{}, vhost: site, queues: [email]}}}}\n", login("proctor"));
    std::fs::write(&file, yaml).expect("is written");
    let check =
        std::process::Command::new(env!("CARGO_BIN_EXE_proctor")).arg("check").arg("--config").arg(&file).output().expect("it runs");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));

    // What was opened first still stands, over many heartbeats of 5 s.
    assert!(standing.ended().is_none());

    // It says goodbye: an end without it is a warning in the broker's log.
    drop((asked, only_api, asked_both, channel, standing, publisher, guest, _consumer));
    eventually("the connections are closed", Duration::from_secs(60), || async {
        rabbitmq.ctl(&["list_connections", "pid", "-q", "--no-table-headers"]).trim().is_empty().then_some(())
    })
    .await;
    let log = rabbitmq.log();
    assert!(log.contains("proctor observer"), "{log}");
    // Not over TLS: there, on a busy machine, RabbitMQ 3.10 sometimes does not take the goodbye within its 2 s.
    let plain = format!("-> 127.0.0.1:{port} ");
    let rude = |line: &&str| line.contains("[warning]") && line.contains("closing AMQP") && line.contains(&plain);
    assert_eq!(log.lines().filter(rude).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_frozen_killed_and_starting_broker_is_followed_without_a_restart() {
    let Some(mut rabbitmq) = Rabbitmq::start(false).await else { return };
    rabbitmq.queue("/", "batch");
    let asked = Asked::new(&format!("{{port: {}, queues: [batch]}}", rabbitmq.port), BRIEFLY);
    asked.until("it is well", 30, ProbeResult::is_success).await;

    for (set, unset, reason, words) in [
        (["set_vm_memory_high_watermark", "0.00001"], ["set_vm_memory_high_watermark", "0.4"], "memory", "low on memory"),
        (["set_disk_free_limit", "8000GB"], ["set_disk_free_limit", "50MB"], "disk", "low on disk"),
    ] {
        rabbitmq.ctl(&set);
        let blocked = |result: &ProbeResult| result.outcome.as_ref().is_err_and(|failure| failure.reason == Reason::Blocked);
        let result = asked.until("publishing is blocked", 30, blocked).await;
        failed(&result, Reason::Blocked, words);
        let at_once = |result: &ProbeResult| blocked(result) && result.duration < Duration::from_millis(500);
        let again = asked.until("nothing hangs", 30, at_once).await;
        failed(&again, Reason::Blocked, words);
        assert_eq!(labelled(&again, "rabbitmq_publish_blocked", reason), Some(1.0));
        assert_eq!(value(&again, "rabbitmq_up"), Some(1.0), "it answers all the same");
        assert_eq!(labelled(&again, "rabbitmq_queue_messages_ready", "batch"), Some(0.0), "who never publishes sees on");
        rabbitmq.ctl(&unset);
        let result = asked.until("publishing works again", 60, ProbeResult::is_success).await;
        assert_eq!(labelled(&result, "rabbitmq_publish_blocked", reason), Some(0.0));
    }

    rabbitmq.process.signal("STOP");
    let result = asked.until("it is seen that it does not move", 20, |result| !result.is_success()).await;
    failed(&result, Reason::AnswerTimeout, "waiting for the answer about queue \"batch\"");
    assert_eq!(value(&result, "rabbitmq_up"), Some(0.0));
    let result = asked.until("a new connection is tried", 30, |result| value(result, "rabbitmq_up") == Some(0.0) && !hangs(result)).await;
    failed(&result, Reason::AnswerTimeout, "waiting for connection.start: the broker is still starting, overloaded or frozen");
    rabbitmq.process.signal("CONT");
    asked.until("it is seen that it moves again", 60, ProbeResult::is_success).await;

    rabbitmq.kill();
    let result = asked.until("it is seen that it is gone", 60, |result| {
        !result.is_success() && result.outcome.as_ref().is_err_and(|failure| failure.reason == Reason::Refused)
    });
    failed(&result.await, Reason::Refused, "cannot connect to 127.0.0.1:");
    let late = Asked::new(&format!("{{port: {}, queues: [batch]}}", rabbitmq.port), BRIEFLY);
    failed(&late.run().await, Reason::Refused, "cannot connect to 127.0.0.1:");
    rabbitmq.relaunch();
    // While it starts, the port is closed, or open and silent, or the vhost is not there yet.
    let mut seen = std::collections::BTreeSet::new();
    let begin = Instant::now();
    loop {
        match asked.run().await.outcome {
            Ok(()) => break,
            Err(failure) => {
                if seen.insert(failure.reason) {
                    eprintln!("while it starts: {failure}");
                }
                let starting = [Reason::Refused, Reason::AnswerTimeout, Reason::Eof, Reason::Starting, Reason::Reset];
                assert!(starting.contains(&failure.reason), "{failure:?}");
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "it comes back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(seen.contains(&Reason::Refused), "{seen:?}");
    late.until("who never saw it before sees it", 60, ProbeResult::is_success).await;
    rabbitmq.kill();
    for each in [&asked, &late] {
        each.until("it is seen that it died again", 30, |result| !result.is_success()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_asks_consumes_and_publishes_as_celery_and_markup_need_it() {
    let Some(rabbitmq) = Rabbitmq::start(false).await else { return };
    let said: &mut (dyn FnMut(Reason, String) + Send) = &mut |_, _| {};
    // What probes need which ask over this one.
    rabbitmq.user("celery-probe", "/", PERMISSIONS);
    let declare = |name: &str, kind: &str, durable: bool| {
        let exchange = format!("{{resource, <<\"/\">>, exchange, <<\"{name}\">>}}");
        rabbitmq.ctl(&["eval", &format!("rabbit_exchange:declare({exchange}, {kind}, {durable}, false, false, [], <<\"test\">>).")]);
    };
    declare("celeryev", "topic", true);
    let broker = rabbitmq.broker("/", "celery-probe");
    let link = quiet(&broker).await.expect("is let in");
    let again = broker.observer(said).await.expect("is there");
    assert_eq!(again.handshake().open, link.handshake().open, "one connection for all");
    assert_eq!(link.handshake().version, "3.10.8");

    // With any part of it less, something is refused.
    declare("celery.pidbox", "fanout", false);
    for (part, less, refused) in [
        (0, "^$", "own_queue"),
        (1, r"^(amq\.default|celery\.pidbox)$", "bind"),
        (1, r"^(amq\.default|amq\.gen-.*)$", "publish"),
        (2, r"^amq\.gen-.*$", "bind"),
        (2, "^celeryev$", "consume"),
    ] {
        let mut permissions = PERMISSIONS;
        permissions[part] = less;
        let user = ["set_permissions", "-p", "/", "celery-probe", permissions[0], permissions[1], permissions[2]];
        rabbitmq.ctl(&user);
        let broker = rabbitmq.broker("/", "celery-probe");
        let needs = async {
            let channel = quiet(&broker).await?.channel().await?;
            let queue = channel.own_queue(&[]).await.inspect_err(|_| assert_eq!(refused, "own_queue"))?;
            channel.bind(&queue, "celeryev", "#").await.inspect_err(|_| assert_eq!(refused, "bind"))?;
            channel.consume(&queue).await.inspect_err(|_| assert_eq!(refused, "consume"))?;
            let mut publisher = broker.canary(&mut |_, _| {}).await?.publisher().await?;
            publisher.publish("celery.pidbox", "", &Properties::default(), b"").await
        };
        assert_eq!(needs.await.expect_err(less).code(), Some(403), "{less} does not suffice to {refused}");
    }
    rabbitmq.ctl(&["set_permissions", "-p", "/", "celery-probe", PERMISSIONS[0], PERMISSIONS[1], PERMISSIONS[2]]);
    rabbitmq.ctl(&["eval", "rabbit_exchange:delete({resource, <<\"/\">>, exchange, <<\"celery.pidbox\">>}, false, <<\"test\">>)."]);

    // A queue of our own, bound to the events.
    let channel = link.channel().await.expect("opens");
    let queue = channel.own_queue(&[("x-message-ttl", Value::Int(5000)), ("x-expires", Value::Int(60_000))]).await.expect("is made");
    assert!(queue.starts_with("amq.gen-"), "{queue}");
    channel.bind(&queue, "celeryev", "#").await.expect("is bound");
    let mut events = channel.consume(&queue).await.expect("is consumed");
    let guest = rabbitmq.broker("/", "guest");
    let mut publisher = guest.canary(said).await.expect("is let in").publisher().await.expect("publishes");
    let headers = vec![("ticket".to_owned(), Value::from("t-1")), ("clock".to_owned(), Value::Int(7))];
    let text = |text: &str| Some(text.to_owned());
    let properties = Properties {
        content_type: text("application/json"),
        headers: headers.clone(),
        correlation_id: text("c-1"),
        reply_to: text("q"),
        expiration: text("5000"),
        ..Properties::default()
    };
    assert_eq!(publisher.publish("celeryev", "worker.heartbeat", &properties, b"{}").await.expect("is taken"), Routed::Queue);
    let event = events.next().await.expect("comes");
    assert_eq!((event.exchange.as_str(), event.key.as_str(), &event.body[..]), ("celeryev", "worker.heartbeat", &b"{}"[..]));
    assert_eq!((event.properties.headers, event.properties.correlation_id), (headers, text("c-1")));

    // A large message comes whole, one that is too large is counted, one with headers too deep comes without them.
    let large = vec![b'x'; 300_000];
    publisher.publish("celeryev", "a", &Properties::default(), &large).await.expect("is taken");
    assert!(events.next().await.expect("comes").body == large);
    publisher.publish("celeryev", "a", &Properties::default(), &vec![b'x'; MAX_BODY + 1]).await.expect("is taken");
    let nested = (0..1000).fold(Value::Null, |inner, _| Value::List(vec![inner]));
    let deep = Properties { headers: vec![("deep".to_owned(), nested)], ..Properties::default() };
    publisher.publish("celeryev", "b", &deep, b"after").await.expect("is taken");
    let after = events.next().await.expect("comes");
    assert_eq!((after.key.as_str(), after.properties.headers.len(), events.missed()), ("b", 0, 1));

    // What is not there is said, and costs only its channel.
    for _ in 0..100 {
        assert_eq!(link.declare_passive("gone").await.expect_err("is not there").code(), Some(404));
    }
    assert_eq!(link.declare_passive(&queue).await.expect("is there").consumers, 1);
    assert_eq!(publisher.publish("", "gone", &properties, b"x").await.expect("comes back"), Routed::Nowhere);
    let mut own = broker.canary(said).await.expect("is let in").publisher().await.expect("publishes");
    assert_eq!(own.publish("celery.pidbox", "", &properties, b"x").await.expect_err("is not there").code(), Some(404));
    declare("celery.pidbox", "fanout", false);
    let mut own = broker.canary(said).await.expect("stands").publisher().await.expect("publishes");
    assert_eq!(own.publish("celery.pidbox", "", &properties, b"x").await.expect("is taken"), Routed::Nowhere);
    assert_eq!(own.publish("celeryev", "", &properties, b"x").await.expect_err("is not allowed").code(), Some(403));
    assert!(link.ended().is_none(), "the observer stands");

    // Direct reply-to: the answer comes over the publisher's own channel.
    let mut asker = broker.canary(said).await.expect("stands").publisher().await.expect("publishes");
    let mut replies = asker.consume(DIRECT_REPLY).await.expect("needs no permission");
    let question = Properties { reply_to: text(DIRECT_REPLY), correlation_id: text("c-2"), ..Properties::default() };
    assert_eq!(asker.publish("", &queue, &question, b"*x*").await.expect("is taken"), Routed::Queue);
    let asked = events.next().await.expect("comes");
    let reply_to = asked.properties.reply_to.expect("names a queue");
    let answer = Properties { correlation_id: asked.properties.correlation_id, ..Properties::default() };
    publisher.publish("", &reply_to, &answer, b"<em>x</em>").await.expect("is taken");
    let reply = replies.next().await.expect("comes");
    assert_eq!((&reply.body[..], reply.properties.correlation_id), (&b"<em>x</em>"[..], text("c-2")));

    // A queue that is deleted under its consumer is said; a question that is dropped unanswered ends the connection.
    rabbitmq.ctl(&["delete_queue", &queue]);
    assert!(matches!(events.next().await, Err(AmqpError::Cancelled)));
    rabbitmq.process.signal("STOP");
    assert!(tokio::time::timeout(Duration::from_millis(300), link.declare_passive("x")).await.is_err());
    eventually("the connection that hangs is dropped", Duration::from_secs(20), || async { link.ended() }).await;
    rabbitmq.process.signal("CONT");
    eventually("another one stands", Duration::from_secs(60), || async { quiet(&broker).await.ok() }).await;
}

#[tokio::test]
async fn what_listens_there_and_is_no_broker_has_its_reason_at_once() {
    let (hole, _filled, _kept) = black_hole();
    let closed = free_port();
    let large = b"\x01\x00\x00\xff\xff\xff\xff".to_vec();
    let nested = |depth: usize| {
        let value = (0..depth)
            .fold(Vec::new(), |inner: Vec<u8>, _| [b"A", &u32::try_from(inner.len()).unwrap().to_be_bytes()[..], &inner].concat());
        start(&[b"\x01a", &value[..]].concat())
    };
    let close = |code: u16, text: &str| {
        let text = [&[u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat();
        method(0, 10, 50, &[&code.to_be_bytes()[..], &text, &[0; 4]].concat())
    };
    let hello = || vec![start(&[]), tune(0, 0, 0), open_ok()];
    let script = |last: Vec<u8>| [hello(), vec![last]].concat();
    let opened = method(1, 20, 11, &[0; 4]);
    let endless = frame(8, 0, &[]);
    for (port, reason, words) in [
        (closed, Reason::Refused, "cannot connect"),
        (hole, Reason::ConnectTimeout, "no answer within 1s500ms: connecting to"),
        (hostile(Manner::Silent).await, Reason::AnswerTimeout, "waiting for connection.start: the broker is still starting"),
        (hostile(Manner::Drips(start(&[]))).await, Reason::AnswerTimeout, "waiting for connection.start"),
        (hostile(Manner::Says(Vec::new())).await, Reason::Eof, "it is still starting, or what listens there is no RabbitMQ"),
        (hostile(Manner::Resets).await, Reason::Reset, "reset"),
        (hostile(Manner::Says(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())).await, Reason::Protocol, "found \"HTTP/1.1 400"),
        (hostile(Manner::Says(b"AMQP\x00\x01\x00\x00".to_vec())).await, Reason::Protocol, "another AMQP than 0-9-1"),
        (hostile(Manner::Endless(Vec::new())).await, Reason::Protocol, "found \"xxx"),
        (hostile(Manner::SaysAndHolds(large.clone())).await, Reason::TooLarge, "larger than 8192 bytes"),
        (scripted(vec![nested(1500)], Vec::new()).await.0, Reason::Protocol, "malformed"),
        (scripted(vec![], endless.clone()).await.0, Reason::Protocol, "expected the broker's answer at connection.start"),
        (scripted(vec![start(&[]), b"garbage".to_vec()], Vec::new()).await.0, Reason::Protocol, "found \"garbage\""),
        (scripted(vec![start(&[]), close(403, "ACCESS_REFUSED")], Vec::new()).await.0, Reason::Auth, "403 ACCESS_REFUSED"),
        (scripted(vec![start(&[]), tune(0, 4096, 0)], Vec::new()).await.0, Reason::Protocol, "frames of 8192 bytes"),
        (scripted(vec![start(&[]), tune(0, 0, 0)], Vec::new()).await.0, Reason::AnswerTimeout, "waiting for connection.open-ok"),
        (
            scripted(vec![start(&[]), tune(0, 0, 0), close(541, "access to vhost '/' refused: vhost '/' is down")], Vec::new()).await.0,
            Reason::Starting,
            "is down",
        ),
        (scripted(script(opened.clone()), Vec::new()).await.0, Reason::AnswerTimeout, "waiting for the answer about queue"),
        (scripted(script(opened.clone()), endless).await.0, Reason::AnswerTimeout, "waiting for the answer about queue"),
        (scripted(script([opened.clone(), large].concat()), Vec::new()).await.0, Reason::TooLarge, "8192"),
        (scripted(script([opened.clone(), b"\xff\xff".to_vec()].concat()), Vec::new()).await.0, Reason::Protocol, "found \"\\xff"),
        (scripted(script(frame(3, 9, b"x")), Vec::new()).await.0, Reason::Protocol, "channel 9, which is not open"),
        (scripted(script([opened.clone(), frame(3, 1, b"x")].concat()), Vec::new()).await.0, Reason::Protocol, "a body where"),
        (scripted(script([opened.clone(), method(1, 60, 80, &[0; 9])].concat()), Vec::new()).await.0, Reason::Protocol, "Confirm"),
        (scripted(script(close(320, "CONNECTION_FORCED - broker forced")), Vec::new()).await.0, Reason::Unavailable, "CONNECTION_FORCED"),
    ] {
        let result = ask(&format!("{{port: {port}, queues: [a]}}"), BRIEFLY).await;
        failed(&result, reason, words);
        assert_eq!(value(&result, "rabbitmq_up"), Some(0.0));
    }
    // A newer broker may ask for a permission to look: that is neither red nor green.
    let refused = method(1, 20, 40, &[&403u16.to_be_bytes()[..], &[14], b"ACCESS_REFUSED", &[0; 4]].concat());
    let (port, _) = scripted([script(opened), vec![refused]].concat(), Vec::new()).await;
    let result = ask(&format!("{{port: {port}, queues: [a], publish: false}}"), BRIEFLY).await;
    partial(&result, "queue \"a\": user \"guest\" may not see it", "add it to the read pattern of user \"guest\"");
    assert_eq!(labelled(&result, "rabbitmq_queue_missing", "a"), None);
}

#[tokio::test]
async fn a_broker_that_offers_frames_of_four_gigabytes_gets_ours_of_eight_kilobytes() {
    let (port, seen) = scripted(vec![start(&[]), tune(2047, u32::MAX, 60), open_ok()], Vec::new()).await;
    let broker = Broker::new(settings(port, "/", "guest", None), Tasks::new());
    quiet(&broker).await.expect("is open");
    let seen = seen.lock().unwrap().clone();
    let tuned = method(0, 10, 31, &[&64u16.to_be_bytes()[..], &8192u32.to_be_bytes(), &30u16.to_be_bytes()].concat());
    assert!(seen.windows(tuned.len()).any(|bytes| bytes == tuned), "tune-ok in {}", seen.escape_ascii());
}

#[test]
fn what_cannot_be_used_is_said_before_anything_is_asked() {
    for (yaml, words) in [
        ("{password_file: /nonexistent/password}", "password_file: cannot read /nonexistent/password"),
        ("{ca_file: /nonexistent/ca.pem}", "ca_file: cannot read /nonexistent/ca.pem"),
    ] {
        let config: ProbeConfig = from_text("proctor.yml", &format!("rabbitmq: {yaml}")).expect("decodes");
        let why = config.plan().err().expect(yaml);
        assert!(why.contains(words), "{why}");
    }
}

#[tokio::test]
async fn a_connection_without_heartbeats_is_dead() {
    let (port, _) = scripted(vec![start(&[]), tune(0, 0, 1), open_ok()], Vec::new()).await;
    let broker = Broker::new(settings(port, "/", "guest", None), Tasks::new());
    let link = quiet(&broker).await.expect("is open");
    let why = eventually("silence is noticed", Duration::from_secs(20), || async { link.ended() }).await;
    assert!(matches!(why, AmqpError::Silent), "{why:?}");
}

#[tokio::test]
async fn a_consumer_that_is_not_read_holds_a_bounded_amount() {
    // A hostile broker delivers without end: 8 MiB wait, the rest is counted.
    let opened = method(1, 20, 11, &[0; 4]);
    let consuming = method(1, 60, 21, &[&[9][..], b"proctor-0"].concat());
    let deliver = method(1, 60, 60, &[&[9][..], b"proctor-0", &[0; 9], &[0, 1, b'k']].concat());
    let size = 8000u64;
    let header = frame(2, 1, &[&60u16.to_be_bytes()[..], &[0; 2], &size.to_be_bytes(), &[0; 2]].concat());
    let message = [deliver, header, frame(3, 1, &vec![0; 8000])].concat();
    let (port, _) = scripted(vec![start(&[]), tune(0, 0, 0), open_ok(), opened, consuming], message).await;
    let tasks = Tasks::new();
    let broker = Broker::new(settings(port, "/", "guest", None), tasks.clone());
    let link = quiet(&broker).await.expect("is open");
    let channel = link.channel().await.expect("opens");
    let mut consumer = channel.consume("q").await.expect("consumes");
    eventually("some are missed", Duration::from_secs(60), || async { (consumer.missed() > 5_000).then_some(()) }).await;
    tasks.stop(Duration::ZERO).await;
    eventually("the connection has ended", Duration::from_secs(20), || async { link.ended() }).await;
    let mut held = 0;
    while consumer.next().await.is_ok() {
        held += 1;
    }
    assert!((900..=1000).contains(&held), "{held} messages of 8000 bytes waited");
}
