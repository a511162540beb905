//! Proctor itself, with its own rules, beside a real RabbitMQ, Celery nodes, beat and the markup service: ordinary life
//! raises nothing, and each situation of the broker side has its own alert.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::support::nodes::Nodes;
use super::support::process::eventually;
use super::support::proctor::Proctor;
use super::support::rabbitmq::{PERMISSIONS, Rabbitmq};
use super::support::site::{Celery, Markup};
use super::support::smtp::Sink;

/// Nodes, each of the queue before its dash.
const NODES: [&str; 7] = ["batch", "email", "lost", "old", "other", "photo", "sims"];

/// What fires now, each as its name and where.
fn firing(proctor: &Proctor) -> BTreeSet<String> {
    let output = proctor.run(&["alert", "list"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let fires = |line: &str| {
        let (what, _) = line.strip_prefix("firing ")?.rsplit_once(" for ")?;
        Some(what.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
    };
    text.lines().filter_map(fires).collect()
}

/// Waits until these fire, and nothing else but what `may`.
async fn fire(proctor: &Proctor, what: &str, these: &[&str], may: &[&str]) {
    let _told = Told(|| format!("{what}: what fires is {:?}", firing(proctor)));
    eventually(what, Duration::from_secs(300), || async {
        // Each look is a process of its own.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = firing(proctor);
        let all = these.iter().all(|alert| now.contains(*alert));
        let no_other = now.iter().all(|alert| these.contains(&alert.as_str()) || may.contains(&alert.as_str()));
        (all && no_other).then_some(())
    })
    .await;
}

/// Waits until as many targets are well, and none is not.
async fn healthy(proctor: &Proctor, what: &str, targets: usize) {
    let _told = Told(|| format!("{what}: {}\n{}", String::from_utf8_lossy(&proctor.run(&["check"]).stdout), proctor.log()));
    eventually(what, Duration::from_secs(300), || async {
        let text = proctor.metrics().await?;
        let of = |value: &str| text.lines().filter(|line| line.starts_with("probe_success{") && line.ends_with(value)).count();
        (of("} 1") == targets && of("} 0") == 0).then_some(())
    })
    .await;
}

/// Says how it is, where the test fails.
struct Told<F: Fn() -> String>(F);

impl<F: Fn() -> String> Drop for Told<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", (self.0)());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ordinary_life_raises_nothing_and_each_situation_its_own_alert() {
    // With heartbeats as RabbitMQ has them: with short ones a frozen worker is soon a consumer no more.
    let Some(mut rabbitmq) = Rabbitmq::start_with(true, "heartbeat = 60\n").await else { return };
    let url = format!("amqp://guest:guest@127.0.0.1:{}//", rabbitmq.port);
    let Some(nodes) = Nodes::of(&url, "rpc://") else { return };
    let Some(mut service) = Markup::start(&url, "").await else { return };
    let folder = tempfile::tempdir().expect("a folder can be made");
    let schedule = folder.path().join("celerybeat-schedule");
    let Some(beat) = Celery::beat(&url, &schedule, "gnu") else { return };
    let Some(worker) = Celery::worker(&url) else { return };
    rabbitmq.user("proctor", "/", PERMISSIONS);
    rabbitmq.queue("/", "orphan");
    let host = std::process::Command::new("hostname").output().expect("hostname runs").stdout;
    let host = String::from_utf8(host).expect("is text").trim().to_owned();
    let sink = Sink::start().await;
    let probes = |queues: &str, more: &str| {
        format!(
            "probes:\n  rabbitmq: {{interval: 5s, timeout: 5s, rabbitmq: {{port: {port}, username: proctor, password_file: {password}, {queues} prometheus: \"http://127.0.0.1:{plugin}\"}}}}\n\
             \x20 celery: {{interval: 5s, timeout: 5s, celery: {{via: rabbitmq, queues: [fast, {all}], canary: {{every: 20s}}, consumer_timeout: 30m{more}}}}}\n\
             \x20 beat: {{interval: 5s, timeout: 5s, beat: {{files: [{schedule}], max_age: 20s, task: coredata.tasks.beat_test, within: 20s, via: rabbitmq}}}}\n\
             \x20 markup: {{interval: 5s, timeout: 3s, markup: {{via: rabbitmq, slow: 1s}}}}\n",
            port = rabbitmq.port,
            password = rabbitmq.password_file("proctor").display(),
            plugin = rabbitmq.prometheus,
            all = NODES.join(", "),
            schedule = schedule.display(),
        )
    };
    // First with the rules exactly as they are.
    let proctor = Proctor::configured(sink.port, &probes("", "")).rules_as_they_are();
    nodes.start(&NODES, &["--max-tasks-per-child=2"]).await;
    worker.said("ready.").await;
    let mut proctor = proctor.started();
    // The nodes, a queue of each name and fast, RabbitMQ, beat and the markup service.
    let targets = NODES.len() + 5;
    healthy(&proctor, "all is well", targets).await;

    // An ordinary day, seen all the time: a queue full of honest long tasks, children that are recycled, names of nodes
    // that are replaced, a restart of all nodes, of beat and of the markup service.
    let nodes = Arc::new(nodes);
    let (day, file) = (nodes.clone(), schedule.clone());
    let (seen, mut full) = tokio::sync::watch::channel(false);
    let day = tokio::spawn(async move {
        day.python("for i in range(8): slow.apply_async((15,), queue='batch')\nfor i in range(60): fast.apply_async(queue='other')");
        full.wait_for(|seen| *seen).await.expect("somebody looks");
        day.start(&["other-2"], &["--max-tasks-per-child=2"]).await;
        day.stop(&["other"]);
        let running = ["batch", "email", "lost", "old", "other-2", "photo", "sims"];
        day.stop(&running);
        day.start(&["batch", "email", "lost", "old", "other-2", "sims"], &["--max-tasks-per-child=2"]).await;
        // The children of this one are frozen later, and one that is replaced just then would not be.
        day.start(&["photo"], &[]).await;
        service.restart("").await;
        beat.stop();
        let beat = Celery::beat(&url, &file, "gnu").expect("it ran before");
        beat.said("beat: Starting...").await;
        (service, beat, url)
    });
    let begin = tokio::time::Instant::now();
    while !day.is_finished() {
        assert!(begin.elapsed() < Duration::from_secs(400), "the day ends; a full queue was seen: {}", *seen.borrow());
        let now = firing(&proctor);
        assert!(now.is_empty(), "nothing fires on an ordinary day: {now:?}");
        let text = proctor.metrics().await.unwrap_or_default();
        let full = |line: &str| line.starts_with("celery_queue_backlog{") && line.contains("batch") && line.ends_with("} 1");
        seen.send_if_modified(|seen| text.lines().any(full) && !std::mem::replace(seen, true));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (mut service, beat, _url) = day.await.expect("the day ends");
    healthy(&proctor, "all is well after it", targets).await;
    assert_eq!((firing(&proctor), sink.mails().len()), (BTreeSet::new(), 0), "nothing was raised, nothing was mailed");

    // Then with rules that wait for a second only; the second node of a queue is expected by its name.
    proctor.stop();
    let more = format!(", nodes: [\"other-2@{host}\"], expect: {{old: {{max_task_age: 5s}}, lost: {{consumers: 1}}}}");
    proctor.configure(&proctor.folder.path().join("state.db"), sink.port, &probes("queues: [orphan, nowhere],", &more));
    let mut proctor = proctor.built_in_rules();
    proctor.start();
    proctor.shows("probe_success{", Duration::from_secs(60)).await;
    nodes.start(&["other"], &[]).await;
    let queues = ["RabbitmqQueueMissing rabbitmq", "RabbitmqQueueWithoutConsumer rabbitmq"];
    fire(&proctor, "two queues of the broker's own are wrong, and nothing else is", &queues, &[]).await;

    nodes.signal_main("email", "STOP");
    nodes.signal_children("photo", "STOP");
    nodes.control(&["cancel_consumer", "sims", "--destination", &format!("sims@{host}")]);
    nodes.python("for i in range(8): slow.apply_async((600,), queue='batch')\nretrying.apply_async((7200,), queue='old')\nslow.apply_async((600,), queue='old')");
    nodes.stop(&["other-2"]);
    beat.process.signal("STOP");
    service.restart("plain").await;
    let thief = rabbitmq.broker("/", "guest");
    let channel = thief.observer(&mut |_, _| ()).await.expect("it connects").channel().await.expect("is opened");
    let mut stolen = Vec::new();
    for _ in 0..20 {
        stolen.push(channel.consume("lost").await.expect("it may"));
    }
    let situations = [
        "CeleryWorkerFrozen celery email",
        "CeleryPoolFrozen celery photo",
        "CeleryQueueWithoutConsumer celery sims",
        "CeleryWorkerMissing celery",
        "CeleryEtaBeyondConsumerTimeout celery",
        "CeleryTaskTooOld celery old",
        "CeleryCanaryLost celery lost",
        "CeleryBeatStalled beat",
        "MarkupDown markup",
    ];
    // The queue that is full of honest tasks, and those without trouble, are not among them.
    fire(&proctor, "each has its own alert, and its neighbours none", &[&situations[..], &queues].concat(), &[]).await;
    proctor.shows("probe_failure_info{probe=\"markup\",reason=\"mismatch\"} 1", Duration::from_secs(60)).await;

    // Other troubles of the same: all slots hold what is too old; beat sends and nobody runs; markup is slow.
    nodes.python("for i in range(4): slow.apply_async((600,), queue='old')");
    beat.process.signal("CONT");
    worker.process.signal("STOP");
    service.restart("delay:1.5").await;
    drop((stolen, channel, thief));
    let gone = ["CeleryTaskTooOld celery old", "CeleryCanaryLost celery lost", "CeleryBeatStalled beat", "MarkupDown markup"];
    let remain: Vec<&str> = situations.iter().copied().filter(|alert| !gone.contains(alert)).chain(queues).collect();
    let others = ["CeleryQueueSaturated celery old", "CeleryBeatTaskOverdue beat", "CeleryWorkerFrozen celery fast", "MarkupSlow markup"];
    fire(&proctor, "and so have these", &[&remain[..], &others].concat(), &[]).await;

    // What is repaired is over.
    nodes.signal_main("email", "CONT");
    nodes.signal_children("photo", "CONT");
    nodes.control(&["add_consumer", "sims", "--destination", &format!("sims@{host}")]);
    worker.process.signal("CONT");
    nodes.start(&["other-2"], &[]).await;
    service.restart("").await;
    let still = ["CeleryEtaBeyondConsumerTimeout celery", "CeleryQueueSaturated celery old"];
    fire(&proctor, "what was repaired is over", &[&still[..], &queues].concat(), &[]).await;

    // Root before symptom: a broker that takes nothing, no node at all, a broker that is gone. Beat may wait meanwhile.
    // What needs the broker fails too; that is mailed only with the root (probes_broker).
    let waits = ["CeleryBeatStalled beat", "CeleryBeatTaskOverdue beat", "ProbeFailing beat", "MarkupDown markup"];
    for (set, back) in [
        (["set_vm_memory_high_watermark", "0.00001"], ["set_vm_memory_high_watermark", "0.4"]),
        (["set_disk_free_limit", "900000000000000"], ["set_disk_free_limit", "50MB"]),
    ] {
        rabbitmq.ctl(&set);
        fire(
            &proctor,
            "the broker takes nothing",
            &["RabbitmqPublishBlocked rabbitmq", queues[0], queues[1]],
            &[&waits[..], &still].concat(),
        )
        .await;
        rabbitmq.ctl(&back);
        fire(&proctor, "it takes messages again", &[&still[..], &queues].concat(), &waits).await;
    }
    // A wrong password is said once by `proctor check`, where it is wrong.
    rabbitmq.password_file("other");
    let wrong = probes("", "").replace("password-proctor", "password-other");
    proctor.configure(&proctor.folder.path().join("state.db"), sink.port, &wrong);
    let told = String::from_utf8_lossy(&proctor.run(&["check"]).stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(told.matches("ACCESS_REFUSED").count(), 1, "{told}");
    assert!(told.contains("celery, celery/fast,") && told.contains("markup: see rabbitmq"), "{told}");
    drop((nodes, worker));
    fire(&proctor, "no node is left", &["CeleryDown celery", queues[0], queues[1]], &waits).await;
    rabbitmq.kill();
    fire(&proctor, "the broker is gone", &["RabbitmqDown rabbitmq"], &waits).await;
}
