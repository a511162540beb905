//! The probe celery against real nodes under `celery multi` and a real RabbitMQ.

use std::sync::Arc;
use std::time::Duration;

use proctor::client::amqp::Properties;
use proctor::model::{ProbeResult, Reason, Sight};

use super::support::nodes::Nodes;
use super::support::rabbitmq::{PERMISSIONS, Rabbitmq};
use super::support::watched::{Watched, failed, fails, value, well};

const QUEUES: [&str; 5] = ["batch", "email", "fast", "photo", "sims"];

/// What stands below `probes` for a broker that is asked as `user`; `more` are keys of the probe celery.
fn text(rabbitmq: &Rabbitmq, user: &str, more: &str) -> String {
    let password = rabbitmq.password_file(user);
    format!(
        "  rabbitmq: {{rabbitmq: {{port: {}, username: {user}, password_file: {}}}}}\n  celery: {{celery: {{via: rabbitmq, {more}}}}}\n",
        rabbitmq.port,
        password.display()
    )
}

fn probes(rabbitmq: &Rabbitmq, user: &str, more: &str) -> Watched {
    Watched::new(&text(rabbitmq, user, more))
}

fn url(rabbitmq: &Rabbitmq) -> String {
    format!("amqp://guest:guest@127.0.0.1:{}//", rabbitmq.port)
}

/// Runs every target until all are well.
async fn all_well(watched: &Watched, what: &str) {
    for scheduled in &watched.all {
        let name = scheduled.target.to_string();
        watched.until(&name, &format!("{what}: {name}"), 180, |result| result.is_success() && result.sight == Sight::Full).await;
    }
}

fn queue(name: &str) -> String {
    format!("celery/{name}")
}

fn host() -> String {
    String::from_utf8(std::process::Command::new("hostname").output().expect("hostname runs").stdout).expect("is text").trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_failure_of_a_queue_has_a_name_of_its_own_while_its_neighbours_stay_green() {
    // With heartbeats as RabbitMQ has them: with short ones a frozen worker is soon a consumer no more.
    let Some(mut rabbitmq) = Rabbitmq::start_with(false, "heartbeat = 60\n").await else { return };
    let Some(nodes) = Nodes::of(&url(&rabbitmq), "rpc://") else { return };
    rabbitmq.user("proctor", "/", PERMISSIONS);
    let host = host();
    let watched = probes(
        &rabbitmq,
        "proctor",
        &format!("queues: [{}], canary: {{every: 20s}}, nodes: [\"fast@{host}\", \"email@{host}\"]", QUEUES.join(", ")),
    );
    assert_eq!(watched.target("celery").target.depends_on.iter().map(|on| &**on).collect::<Vec<_>>(), ["rabbitmq"]);

    // Before any worker has run there is no queue, and nobody to ask.
    failed(&watched.run("celery").await, Reason::Missing, "is not connected to the broker");
    failed(&watched.run(&queue("fast")).await, Reason::Missing, "it does not exist");

    nodes.start(&QUEUES, &[]).await;
    all_well(&watched, "all nodes run").await;
    for name in QUEUES {
        // A look while a task of Proctor's is on its way sees that as well.
        let idle = |result: &ProbeResult| {
            let is = |metric: &str, wanted: f64| value(result, metric, name) == Some(wanted);
            result.is_success()
                && result.sight == Sight::Full
                && value(result, "celery_queue_canary_seconds", name).is_some_and(|took| took < 20.0)
                && (is("celery_queue_up", 1.0) && is("celery_queue_backlog", 0.0))
                && (is("celery_active_consumer_count", 1.0) && is("celery_active_worker_count", 1.0))
                && (is("celery_active_process_count", 2.0) && is("celery_queue_length", 0.0))
        };
        watched.until(&queue(name), &format!("{name} is idle, and all of it is seen"), 90, idle).await;
    }
    let worker = |name: &str| format!("{name}@{host}");
    let counted = |result: &ProbeResult| {
        value(result, "celery_events_listening", "") == Some(1.0)
            && QUEUES.iter().all(|name| value(result, "celery_task_accepted_total", &worker(name)) >= Some(1.0))
    };
    let result = watched.until("celery", "the canaries are counted, and events heard", 90, counted).await;
    assert_eq!(value(&result, "celery_nodes", ""), Some(5.0));
    for name in QUEUES {
        assert_eq!(value(&result, "celery_worker_up", &worker(name)), Some(1.0));
    }
    assert_eq!(value(&result, "celery_broker_consumer_timeout_seconds", "default"), Some(1800.0));

    // Of the broker only what is Proctor's: the children of a worker connect when each has its first result.
    let open = || {
        let of = |what: &str| rabbitmq.ctl(&[what, "user", "-q", "--no-table-headers"]).lines().filter(|user| *user == "proctor").count();
        let queues = rabbitmq.ctl(&["list_queues", "name", "-q", "--no-table-headers"]);
        (of("list_channels"), of("list_connections"), queues.lines().filter(|name| name.starts_with("amq.gen-")).count())
    };
    let opened = open();

    // One run by hand, as `check_things` of the site: every queue has its line.
    let file = tempfile::NamedTempFile::new().expect("a file can be made");
    std::fs::write(
        file.path(),
        format!("probes:\n{}", text(&rabbitmq, "proctor", &format!("queues: [{}], canary: {{every: 20s}}", QUEUES.join(", ")))),
    )
    .expect("is written");
    let check =
        std::process::Command::new(env!("CARGO_BIN_EXE_proctor")).args(["check", "--config"]).arg(file.path()).output().expect("it runs");
    let told = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success() && QUEUES.iter().all(|name| told.contains(name)), "{told}");
    // Five things at once.
    nodes.python("for i in range(10): slow.apply_async((40, 'SECRET'), queue='batch')");
    nodes.signal_main("email", "STOP");
    nodes.stop(&["fast"]);
    nodes.signal_children("photo", "STOP");
    nodes.control(&["cancel_consumer", "sims", "--destination", &worker("sims")]);
    let queue_fails = |name: &'static str, reason: Reason, words: &'static str| {
        let watched = &watched;
        async move { watched.until_failed(&queue(name), name, 90, reason, words).await }
    };
    let result = queue_fails("sims", Reason::NoConsumer, "answers, yet no longer consumes it").await;
    assert_eq!(value(&result, "celery_queue_up", "sims"), Some(0.0));
    queue_fails("fast", Reason::NoConsumer, "is no longer connected: its process has ended").await;
    queue_fails("email", Reason::AnswerTimeout, "its main process is frozen").await;
    let result = queue_fails("photo", Reason::Stalled, "the processes of the pool are frozen").await;
    assert!(value(&result, "celery_queue_canary_waiting_seconds", "photo").is_some_and(|age| age >= 5.0));
    // What a worker has taken is not counted by the broker: there waits a task of Proctor's at most.
    let backlog = |result: &ProbeResult| {
        value(result, "celery_queue_backlog", "batch") == Some(1.0)
            && value(result, "celery_queue_length", "batch").is_some_and(|waiting| waiting <= 1.0)
            && value(result, "celery_queue_reserved_tasks", "batch") >= Some(6.0)
    };
    let result = watched.until(&queue("batch"), "there is a backlog", 60, backlog).await;
    well(&result, true);
    assert!(!format!("{result:?}").contains("SECRET"), "arguments of tasks are never kept");
    let told = |result: &ProbeResult| {
        fails(result, Reason::AnswerTimeout, &format!("email@{host} is connected to the broker and does not answer"))
            && fails(result, Reason::AnswerTimeout, &format!("fast@{host} is not connected to the broker"))
            && value(result, "celery_worker_oldest_task_seconds", &worker("batch")) > Some(0.0)
    };
    let result = watched.until("celery", "of the nodes two are missing", 60, told).await;
    for (name, missing) in [("fast", 1.0), ("email", 1.0)] {
        assert_eq!(value(&result, "celery_worker_missing", &worker(name)), Some(missing), "{name}");
        assert_eq!(value(&result, "celery_worker_up", &worker(name)), Some(0.0), "{name}");
    }
    assert!(!format!("{result:?}").contains("SECRET"), "arguments of tasks are never kept");

    nodes.signal_main("email", "CONT");
    nodes.signal_children("photo", "CONT");
    nodes.start(&["fast"], &[]).await;
    nodes.control(&["add_consumer", "sims", "--destination", &worker("sims")]);
    all_well(&watched, "all is repaired").await;
    // What hung was dropped and is opened anew by the runs that need it.
    let settled = tokio::time::timeout(Duration::from_secs(120), async {
        while open() != opened {
            for scheduled in &watched.all {
                watched.run(&scheduled.target.to_string()).await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    assert!(settled.await.is_ok(), "a run opens nothing: {:?} where there was {opened:?}", open());

    // The broker takes nothing, for want of memory or of disk; then it is killed while tasks are sent.
    for (set, back) in [
        (["set_vm_memory_high_watermark", "0.00001"], ["set_vm_memory_high_watermark", "0.4"]),
        (["set_disk_free_limit", "900000000000000"], ["set_disk_free_limit", "50MB"]),
    ] {
        rabbitmq.ctl(&set);
        for name in ["celery".to_owned(), queue("fast")] {
            let result = watched.until_failed(&name, "the nodes cannot be asked", 60, Reason::Blocked, "low on").await;
            assert_eq!(value(&result, "celery_up", ""), Some(0.0));
        }
        rabbitmq.ctl(&back);
        all_well(&watched, "the alarm is over").await;
    }
    nodes.python("for i in range(200): fast.apply_async(queue='fast')");
    for round in 0..2 {
        rabbitmq.kill();
        for name in ["celery".to_owned(), queue("fast")] {
            watched.until_failed(&name, "the broker is gone", 60, Reason::Refused, "127.0.0.1").await;
        }
        rabbitmq.relaunch();
        all_well(&watched, &format!("the broker is back, {round}")).await;
    }

    // A restart of all nodes is ordinary; names that come back are expected from then on.
    nodes.stop(&QUEUES);
    nodes.start(&QUEUES, &[]).await;
    all_well(&watched, "all nodes were restarted").await;
    let none = |result: &ProbeResult| QUEUES.iter().all(|name| value(result, "celery_worker_missing", &worker(name)) == Some(0.0));
    watched.until("celery", "no node is missing", 60, none).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_countdown_beyond_the_patience_of_the_broker_is_said_before_it_ends_the_worker() {
    let Some(rabbitmq) = Rabbitmq::start_with(false, "heartbeat = 60\nconsumer_timeout = 30000\n").await else { return };
    let Some(nodes) = Nodes::of(&url(&rabbitmq), "rpc://") else { return };
    rabbitmq.user("proctor", "/", PERMISSIONS);
    let watched = probes(&rabbitmq, "proctor", "queues: [email], consumer_timeout: 30s");
    nodes.start(&["email"], &[]).await;
    all_well(&watched, "the node runs").await;
    nodes.python("retrying.apply_async((600,), queue='email')");
    let worker = format!("email@{}", host());
    let held = |result: &ProbeResult| value(result, "celery_worker_scheduled_hold_max_seconds", &worker).is_some_and(|held| held > 500.0);
    let result = watched.until("celery", "the countdown is seen", 60, held).await;
    well(&result, true);
    // What `CeleryEtaBeyondConsumerTimeout` compares.
    assert_eq!(value(&result, "celery_broker_consumer_timeout_seconds", "configured"), Some(30.0));
    assert!(value(&result, "celery_worker_scheduled_eta_max_seconds", &worker).is_some_and(|eta| eta > 500.0));
    assert_eq!(value(&result, "celery_worker_scheduled_tasks", &worker), Some(1.0));
    watched.until_failed(&queue("email"), "the worker has ended", 120, Reason::NoConsumer, "its process has ended").await;
    assert!(nodes.log("email").contains("406"), "{}", nodes.log("email"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_results_tasks_are_counted_and_ordinary_life_raises_nothing() {
    // With heartbeats as RabbitMQ has them: with short ones a busy machine loses connections.
    let Some(rabbitmq) = Rabbitmq::start_with(false, "heartbeat = 60\n").await else { return };
    let Some(nodes) = Nodes::of(&url(&rabbitmq), "cache+memory://") else { return };
    rabbitmq.user("proctor", "/", PERMISSIONS);
    rabbitmq.user("poor", "/", ["^$", "^$", "^$"]);
    rabbitmq.user("mute", "/", [PERMISSIONS[0], r"^(amq\.gen-.*|celery\.pidbox)$", PERMISSIONS[2]]);
    let host = host();
    let of = |user: &str, every: &str| {
        let expect = "{fast: {consumers: 1}, email: {max_task_age: 3s}}";
        probes(&rabbitmq, user, &format!("queues: [email, fast], canary: {{every: {every}}}, expect: {expect}"))
    };
    let watched = of("proctor", "20s");
    nodes.start(&["email", "fast"], &["--max-tasks-per-child=2"]).await;
    all_well(&watched, "the nodes run").await;
    for name in ["email", "fast"] {
        let answered = |result: &ProbeResult| value(result, "celery_queue_canaries_total", "answered") >= Some(1.0);
        let result = watched.until(&queue(name), "the count has grown", 60, answered).await;
        assert!(value(&result, "celery_queue_canary_seconds", name).is_some_and(|took| took < 20.0), "{:?}", result.samples);
    }

    // Children that are recycled, and a rolling replacement: neither node nor queue is ever red.
    nodes.python("for i in range(60): fast.apply_async(queue='fast')");
    let nodes = Arc::new(nodes);
    let replacing = nodes.clone();
    let replaced = tokio::spawn(async move {
        replacing.start(&["fast-2"], &[]).await;
        replacing.stop(&["fast"]);
    });
    let fast = queue("fast");
    while !replaced.is_finished() {
        well(&watched.run(&fast).await, true);
        well(&watched.run("celery").await, true);
    }
    replaced.await.expect("it was replaced");
    let old = format!("fast@{host}");
    let forgotten = |result: &ProbeResult| value(result, "celery_worker_up", &old).is_none();
    let result = watched.until("celery", "the old name is forgotten", 60, forgotten).await;
    well(&result, true);
    let whole = |result: &ProbeResult| value(result, "celery_queue_consumers_missing", "fast") == Some(0.0);
    well(&watched.until(&queue("fast"), "the new node consumes", 60, whole).await, true);

    // A task that runs for too long beside an idle slot, and then in every slot.
    nodes.python("slow.apply_async((600,), queue='email')");
    let overdue = |number: f64| move |result: &ProbeResult| value(result, "celery_queue_tasks_overdue", "email") == Some(number);
    well(&watched.until(&queue("email"), "a task is too old", 60, overdue(1.0)).await, true);
    nodes.python("for i in range(3): slow.apply_async((600,), queue='email')");
    let words = "all 2 slots of email@";
    let result = watched.until_failed(&queue("email"), "all slots hold tasks that are too old", 60, Reason::Saturated, words).await;
    failed(&result, Reason::Saturated, "the oldest, site.slow, for");
    well(&watched.run(&queue("fast")).await, true);

    // Who may ask less sees less, and says so.
    let poor = of("poor", "20s");
    let result = poor.run("celery").await;
    well(&result, false);
    assert!(matches!(&result.sight, Sight::Blind { missing, .. } if missing.contains("403")), "{:?}", result.sight);
    let result = poor.run(&queue("fast")).await;
    well(&result, false);
    assert!(matches!(&result.sight, Sight::Partial { remedy, .. } if remedy.contains("docs/probes/celery.md")), "{:?}", result.sight);
    assert_eq!(value(&result, "celery_active_consumer_count", "fast"), Some(1.0), "what may be seen is seen");
    let mute = of("mute", "20s");
    well(&mute.run("celery").await, true);
    let result = mute.run(&queue("fast")).await;
    well(&result, false);
    assert!(matches!(&result.sight, Sight::Partial { missing, .. } if missing.contains("how long a task waits")), "{:?}", result.sight);

    // Somebody else takes what is sent to one queue.
    let thief = rabbitmq.broker("/", "guest");
    let channel = thief.observer(&mut |_, _| ()).await.expect("it connects").channel().await.expect("is opened");
    let mut stolen = Vec::new();
    for _ in 0..20 {
        stolen.push(channel.consume("fast").await.expect("it may"));
    }
    let result = watched.until_failed(&queue("fast"), "canaries are lost", 120, Reason::Overdue, "were never run").await;
    assert!(value(&result, "celery_queue_canaries_total", "lost").is_some_and(|lost| lost >= 2.0));
    well(&watched.run("celery").await, true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_answers_cost_little_and_change_nothing() {
    let Some(rabbitmq) = Rabbitmq::start(false).await else { return };
    rabbitmq.ctl(&[
        "eval",
        "rabbit_exchange:declare({resource, <<\"/\">>, exchange, <<\"celery.pidbox\">>}, fanout, false, false, false, [], <<\"t\">>).",
    ]);
    rabbitmq.queue("/", "fast");
    rabbitmq.user("proctor", "/", PERMISSIONS);
    let watched = probes(&rabbitmq, "proctor", "queues: [fast], canary: {every: 20s}");
    let forger = rabbitmq.broker("/", "guest");
    let channel = forger.observer(&mut |_, _| ()).await.expect("it connects").channel().await.expect("is opened");
    let own = channel.own_queue(&[]).await.expect("is declared");
    channel.bind(&own, "celery.pidbox", "").await.expect("is bound");
    let mut questions = channel.consume(&own).await.expect("is consumed");
    let mut publisher = forger.canary(&mut |_, _| ()).await.expect("it connects").publisher().await.expect("is opened");
    let forged = tokio::spawn(async move {
        while let Ok(question) = questions.next().await {
            let question: serde_json::Value = serde_json::from_slice(&question.body).expect("is JSON");
            let text = |pointer: &str| question.pointer(pointer).and_then(serde_json::Value::as_str).expect("is there").to_owned();
            let properties = Properties { headers: vec![("ticket".to_owned(), text("/ticket").as_str().into())], ..Properties::default() };
            let deep = "[".repeat(100_000);
            let huge = "x".repeat(2 << 20);
            let mut bodies: Vec<String> =
                ["", "\u{ff}", "{", "[]", "{\"a@b\": 7}", "{\"a\\nb@c\": {\"ok\": \"pong\"}}", "{\"a\\\"} 1@c\": {}}", &deep, &huge]
                    .map(str::to_owned)
                    .to_vec();
            bodies
                .extend((0..1200).map(|number| {
                    format!("{{\"n{number}@h\": {{\"pid\": {number}, \"total\": {{\"t{number}\": 1}}, \"ok\": \"pong\"}}}}")
                }));
            for body in bodies {
                if publisher.publish("", &text("/reply_to/routing_key"), &properties, body.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    });
    let many = |result: &ProbeResult| value(result, "celery_nodes", "").is_some_and(|nodes| nodes > 100.0);
    let result = watched.until("celery", "many nodes are taken", 60, many).await;
    assert!(value(&result, "celery_nodes", "").is_some_and(|nodes| nodes <= 1000.0));
    assert!(result.samples.len() < 1500, "{}", result.samples.len());
    let labels = result.samples.iter().flat_map(|sample| &sample.labels);
    assert!(labels.into_iter().all(|(_, value)| !value.contains(['\n', '"'])), "{:?}", result.samples);
    watched.until_failed(&queue("fast"), "its queue is judged all the same", 60, Reason::NoConsumer, "nobody consumes it").await;
    drop(watched);
    forged.abort();
}
