use serde_json::{Value as Json, json};

use super::super::flying::GENERATION;
use super::*;
use crate::probe::MAX_SAMPLES;

/// Takes events at a second.
fn take(tally: &mut Tally, at: i64, events: &Json) -> Changed {
    tally.take(events.to_string().as_bytes(), Timestamp::from_secs(at))
}

/// The samples that are recorded at a second, as lines without the histograms' buckets; those of `judged` nodes without up.
fn lines(tally: &Tally, at: i64, judged: &str) -> Vec<String> {
    let mut rec = Recorder::default();
    tally.record(&mut rec, Timestamp::from_secs(at), false, |node| node == judged);
    let recorded = rec.finish();
    assert_eq!(recorded.dropped, 0);
    let samples = recorded.samples.iter().filter(|sample| !sample.family.name.ends_with("_bucket"));
    samples
        .map(|sample| {
            let labels: Vec<_> = sample.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{} {} {}", sample.family.name.trim_start_matches("celery_"), labels.join(","), sample.value)
        })
        .collect()
}

fn beat(node: &str, kind: &str) -> Json {
    json!({"type": format!("worker-{kind}"), "hostname": node, "freq": 2.0, "active": 1, "processed": 9, "timestamp": 5.0})
}

#[test]
fn a_worker_is_up_while_its_heartbeats_come_and_five_nodes_of_one_host_are_five() {
    let mut tally = Tally { listening: Some(Timestamp::from_secs(100)), ..Tally::default() };
    let nodes = ["batch@vm", "email@vm", "fast@vm", "photo@vm", "sims@vm"];
    for node in nodes {
        assert_eq!(take(&mut tally, 100, &beat(node, "online")), Changed::Workers, "it came");
        assert_eq!(take(&mut tally, 102, &beat(node, "heartbeat")), Changed::Numbers);
    }
    let ups = |tally: &Tally, at, judged: &str| {
        let lines = lines(tally, at, judged);
        lines.iter().filter(|line| line.starts_with("worker_up")).cloned().collect::<Vec<_>>()
    };
    assert_eq!(ups(&tally, 103, "").len(), 5);
    assert_eq!(ups(&tally, 103, "fast@vm").len(), 4, "who was asked has answered for itself");
    let of_batch = |tally: &Tally, at| lines(tally, at, "").into_iter().filter(|line| line.contains("batch@vm")).collect::<Vec<_>>();
    let up = "worker_up worker=batch@vm,hostname=vm 1";
    assert_eq!(of_batch(&tally, 107), [up, "worker_tasks_active worker=batch@vm,hostname=vm 1"], "two heartbeats may be missing");
    assert_eq!(of_batch(&tally, 108), ["worker_up worker=batch@vm,hostname=vm 0"]);
    // While nobody listens nothing is said, and then they have their time again.
    tally.listening = None;
    assert_eq!(of_batch(&tally, 108), Vec::<String>::new());
    tally.listening = Some(Timestamp::from_secs(300));
    assert_eq!(of_batch(&tally, 304)[0], up);
    // One that says goodbye is down at once.
    take(&mut tally, 301, &beat("batch@vm", "heartbeat"));
    assert_eq!(take(&mut tally, 302, &beat("batch@vm", "offline")), Changed::Workers);
    assert_eq!(of_batch(&tally, 302), ["worker_up worker=batch@vm,hostname=vm 0"]);
    assert_eq!(take(&mut tally, 303, &beat("batch@vm", "heartbeat")), Changed::Workers, "and up when it is back");
    // One that does not come back is forgotten.
    take(&mut tally, 303, &beat("batch@vm", "offline"));
    tally.forget(Timestamp::from_secs(902));
    assert_eq!(of_batch(&tally, 902), ["worker_up worker=batch@vm,hostname=vm 0"]);
    // Who can ask the others knows that it was replaced.
    let mut rec = Recorder::default();
    tally.record(&mut rec, Timestamp::from_secs(902), true, |_| false);
    assert!(!rec.finish().samples.iter().any(|sample| sample.family.name == "celery_worker_up"));
    tally.forget(Timestamp::from_secs(904));
    assert_eq!(of_batch(&tally, 904), Vec::<String>::new());
}

#[test]
fn tasks_are_counted_as_celery_exporter_does_by_worker() {
    let mut tally = Tally::default();
    tally.consumes("email@vm", &["email"]);
    let of = |kind: &str, uuid: &str, more: Json| {
        let mut event = json!({"type": format!("task-{kind}"), "uuid": uuid, "hostname": "email@vm", "timestamp": 1000.0});
        event.as_object_mut().expect("is one").extend(more.as_object().expect("is one").clone());
        event
    };
    let sent = json!({"type": "task-sent", "uuid": "1", "hostname": "gen123@web", "timestamp": 997.5, "name": "a.mail", "queue": "mail", "eta": null,
        "args": "('secret',)"});
    let batch = json!([
        sent,
        of("received", "1", json!({"name": "a.mail", "args": "('secret',)"})),
        of("started", "1", json!({})),
        of("succeeded", "1", json!({"runtime": 0.7, "result": "'secret'"})),
    ]);
    assert_eq!(take(&mut tally, 10, &batch), Changed::Numbers);
    let found = lines(&tally, 10, "");
    let labels = "name=a.mail,hostname=vm,queue_name=mail,worker=email@vm";
    let wanted: Vec<String> = [("received", 1), ("started", 1), ("succeeded", 1), ("rejected", 0), ("revoked", 0), ("retried", 0)]
        .map(|(what, count)| format!("task_{what}_total {labels} {count}"))
        .into_iter()
        .chain([
            "task_failed_total name=a.mail,hostname=vm,exception=,queue_name=mail,worker=email@vm 0".to_owned(),
            format!("task_runtime_sum {labels} 0.7"),
            format!("task_runtime_count {labels} 1"),
            format!("task_queue_wait_time_sum {labels} 2.5"),
            format!("task_queue_wait_time_count {labels} 1"),
            "task_sent_total name=a.mail,hostname=web,queue_name=mail,worker=gen@web 1".to_owned(),
        ])
        .collect();
    assert_eq!(found, wanted);
    assert_eq!(tally.flying.all().count(), 0, "what has ended is let go");

    // Without the event of who sent it: the queue of the node, no waiting time; exceptions by their class.
    take(&mut tally, 11, &of("received", "2", json!({"name": "a.mail"})));
    take(&mut tally, 11, &of("started", "2", json!({})));
    take(&mut tally, 11, &of("retried", "2", json!({"exception": "Refused(1)"})));
    take(&mut tally, 11, &of("received", "2", json!({"name": "a.mail"})));
    take(&mut tally, 11, &of("failed", "2", json!({"exception": "Refused('smtp')"})));
    take(&mut tally, 11, &of("revoked", "3", json!({})));
    take(&mut tally, 11, &json!({"type": "task-started", "uuid": "4", "hostname": "other@vm"}));
    take(&mut tally, 11, &json!({"type": "task-of-another-kind", "uuid": "4", "hostname": "other@vm"}));
    let found = lines(&tally, 11, "");
    for line in [
        "task_received_total name=a.mail,hostname=vm,queue_name=email,worker=email@vm 2",
        "task_retried_total name=a.mail,hostname=vm,queue_name=email,worker=email@vm 1",
        "task_failed_total name=a.mail,hostname=vm,exception=Refused,queue_name=email,worker=email@vm 1",
        "task_revoked_total name=unknown,hostname=vm,queue_name=email,worker=email@vm 1",
        "task_started_total name=unknown,hostname=vm,queue_name=celery,worker=other@vm 1",
    ] {
        assert!(found.iter().any(|found| found == line), "{line} in {found:#?}");
    }
    assert!(!found.iter().any(|line| line.contains("secret") || line.contains("wait_time_count") && line.contains("=email,")), "{found:#?}");
    // One that is to run later has not waited.
    let later = json!([
        {"type": "task-sent", "uuid": "5", "hostname": "gen1@web", "timestamp": 1.0, "name": "late", "queue": "q", "eta": "2026-01-01T00:00:00"},
        of("started", "5", json!({})),
    ]);
    take(&mut tally, 12, &later);
    assert!(!lines(&tally, 12, "").iter().any(|line| line.starts_with("task_queue_wait") && line.contains("name=late")));
    // Times that cannot be are none, or as long as can be.
    take(&mut tally, 12, &of("succeeded", "6", json!({"runtime": -5})));
    take(&mut tally, 12, &of("succeeded", "7", json!({"runtime": 1e300})));
    let sum = format!("task_runtime_sum name=unknown,hostname=vm,queue_name=email,worker=email@vm {LONGEST}");
    assert!(lines(&tally, 12, "").contains(&sum));
    assert_eq!((tally.malformed, tally.folded.name, tally.folded.worker, tally.folded.exception), (0, 0, 0, 0));
}

/// Everything that is kept, by its bound.
fn kept(tally: &Tally) -> [usize; 5] {
    let tasks = tally.workers.values().map(|worker| worker.tasks.len()).sum();
    [tally.flying.all().count(), tally.workers.len(), tasks, tally.texts.all.len(), tally.queues.len()]
}

fn bounded(tally: &Tally, at: i64) {
    let [flying, workers, tasks, texts, queues] = kept(tally);
    assert!(flying <= 2 * GENERATION && workers <= MAX_WORKERS + 1 && texts <= MAX_TEXTS + 1 && queues <= MAX_WORKERS, "{:?}", kept(tally));
    assert!(tasks <= MAX_SERIES, "{tasks}");
    let mut rec = Recorder::default();
    tally.record(&mut rec, Timestamp::from_secs(at), false, |_| false);
    let recorded = rec.finish();
    assert_eq!(recorded.dropped, 0);
    assert!(recorded.samples.len() < MAX_SAMPLES - 1000, "{}", recorded.samples.len());
}

#[test]
fn garbage_and_forged_events_are_counted_and_bounded_and_do_not_stay_in_the_way() {
    let mut tally = Tally { listening: Some(Timestamp::from_secs(0)), ..Tally::default() };
    for garbage in [&b"\x80\x04\x95 pickle"[..], b"", b"{}", b"[1]", &[b'['; 1 << 20]] {
        tally.take(garbage, Timestamp::from_secs(0));
    }
    assert_eq!((tally.malformed, tally.events), (5, 0));
    // Half a list is counted as far as it can be read.
    tally.take(br#"[{"type":"task-started","hostname":"real@vm","uuid":"1"},{"type":7}]"#, Timestamp::from_secs(0));
    assert_eq!((tally.malformed, tally.events), (6, 1));
    take(&mut tally, 0, &beat("real@vm", "heartbeat"));
    let long = "x".repeat(300);
    let wide = "é".repeat(MAX_TEXT);
    for n in 0..5000 {
        let task = json!([
            {"type": "task-received", "uuid": n.to_string(), "hostname": "real@vm", "name": format!("task{n}")},
            {"type": "task-started", "uuid": n.to_string(), "hostname": format!("forged{n}@vm")},
            {"type": "task-failed", "uuid": n.to_string(), "hostname": "real@vm", "exception": format!("Error{n}()")},
            {"type": "task-failed", "uuid": "same", "hostname": "real@vm", "exception": format!("Error{n}()")},
            {"type": "task-sent", "uuid": format!("{n}{long}"), "hostname": format!("{long}{n}"), "name": format!("{n}{wide}"), "queue": long},
            beat(&format!("forged{n}@{long}"), "heartbeat"),
        ]);
        take(&mut tally, 1, &task);
        tally.consumes(&format!("{n}"), &[&long]);
    }
    bounded(&tally, 1);
    let sum = |tally: &Tally, name: &str| -> f64 {
        let mut rec = Recorder::default();
        tally.record(&mut rec, Timestamp::from_secs(1), false, |_| false);
        rec.finish().samples.iter().filter(|sample| sample.family.name == name).map(|sample| sample.value).sum()
    };
    assert_eq!((sum(&tally, "celery_task_received_total"), sum(&tally, "celery_task_failed_total")), (5000.0, 10_000.0), "none is lost");
    let Folded { name, worker, exception } = tally.folded;
    assert!(name > 4000 && worker > 4000 && exception > 4000, "{name} {worker} {exception}");
    let longest = tally.texts.all.iter().chain(tally.workers.keys()).map(|text| text.len()).max();
    assert!(longest.is_some_and(|longest| longest <= MAX_TEXT), "{longest:?}");

    // A day later they are gone, and what is real has its place.
    for second in [600, 90_000] {
        take(&mut tally, second, &beat("real@vm", "offline"));
        tally.forget(Timestamp::from_secs(second));
    }
    tally.forget(Timestamp::from_secs(200_000));
    assert_eq!((tally.workers.len(), tally.series), (0, 0));
    let before = tally.folded.name;
    take(&mut tally, 200_000, &json!({"type": "task-received", "uuid": "new", "hostname": "new@vm", "name": "new"}));
    assert!(lines(&tally, 200_000, "").contains(&"task_received_total name=new,hostname=vm,queue_name=celery,worker=new@vm 1".to_owned()));
    assert_eq!(tally.folded.name, before);
}

/// Minutes of 10,000 tasks with uuids of their own each, of which `lost` in a hundred never end.
fn minutes(tally: &mut Tally, from: u128, count: u128, lost: u128) {
    let five = ["batch@vm", "email@vm", "fast@vm", "photo@vm", "sims@vm"];
    for n in from * 10_000..(from + count) * 10_000 {
        let uuid = format!("{:08x}-{:04x}-4da6-a3ce-{:012x}", n % 0xffff_ffff, n % 0xffff, n);
        let (node, name) = (five[n as usize % 5], n % 40);
        let now = Timestamp(n as i64 * 6);
        tally.take(format!(r#"{{"type":"task-received","uuid":"{uuid}","hostname":"{node}","name":"task{name}","clock":{n}}}"#).as_bytes(), now);
        if n % 100 >= lost {
            let ends = r#""runtime":0.01,"result":"None""#;
            tally.take(format!(r#"{{"type":"task-succeeded","uuid":"{uuid}","hostname":"{node}",{ends}}}"#).as_bytes(), now);
        }
        if n % 100_000 == 0 {
            tally.forget(now);
        }
    }
}

#[test]
fn as_many_tasks_as_there_are_memory_is_flat() {
    let mut tally = Tally::default();
    minutes(&mut tally, 0, 1, 0);
    let once = kept(&tally);
    assert_eq!(once, [0, 5, 40, 41, 0]);
    minutes(&mut tally, 1, 4, 0);
    assert_eq!(kept(&tally), once);
    minutes(&mut tally, 5, 7, 100);
    bounded(&tally, 1);
}

#[test]
#[ignore = "minutes: make test-slow"]
fn a_day_of_ten_thousand_tasks_a_minute_takes_no_more_memory_than_its_first_hour() {
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("is there");
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("is a number") * 4096
    };
    let mut tally = Tally::default();
    // One in a hundred is never heard to end, as it is where workers are killed.
    minutes(&mut tally, 0, 3 * 60 * 2, 1);
    let (first, before) = (kept(&tally), resident());
    minutes(&mut tally, 3 * 60 * 2, 24 * 60 - 3 * 60 * 2, 1);
    let (last, after) = (kept(&tally), resident());
    eprintln!("after 6 h {first:?} {before} bytes, after 24 h {last:?} {after} bytes");
    assert_eq!(last[1..], first[1..]);
    assert!(last[0] <= 2 * GENERATION);
    assert!(after < before + (2 << 20), "{before} bytes, then {after}");
    let received: u64 = tally.workers.values().flat_map(|worker| worker.tasks.values()).filter_map(|numbers| Some(numbers.ran.as_ref()?.counts[0])).sum();
    assert_eq!(received, 24 * 60 * 10_000, "and none is lost");
}
