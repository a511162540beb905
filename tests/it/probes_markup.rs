//! The probe markup against a service that speaks CourSys's protocol, over a real RabbitMQ and over HTTP.

use proctor::model::{ProbeResult, Reason};

use super::support::process::free_port;
use super::support::rabbitmq::{OWN, Rabbitmq};
use super::support::site::Markup;
use super::support::watched::{Watched, failed, value, well};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_wrong_silent_no_consumer_and_no_queue_are_five_reasons() {
    let Some(mut rabbitmq) = Rabbitmq::start(true).await else { return };
    rabbitmq.ctl(&["add_vhost", "site"]);
    rabbitmq.user("service", "site", [".*", ".*", ".*"]);
    // An answer over direct reply-to needs no more.
    rabbitmq.user("proctor", "site", OWN);
    rabbitmq.user("poor", "site", ["^$", "^$", "^$"]);
    let (port, plugin) = (rabbitmq.port, rabbitmq.prometheus);
    let login =
        |user: &str| format!("port: {port}, vhost: site, username: {user}, password_file: {}", rabbitmq.password_file(user).display());
    let watched = Watched::new(&format!(
        "  rabbitmq: {{rabbitmq: {{{}, prometheus: \"http://127.0.0.1:{plugin}\"}}}}\n  poor: {{rabbitmq: {{{}}}}}\n\
         \x20 markup: {{timeout: 2500ms, markup: {{via: rabbitmq, slow: 1s}}}}\n\
         \x20 shut: {{timeout: 2500ms, markup: {{via: poor}}}}\n",
        login("proctor"),
        login("poor")
    ));
    assert_eq!(watched.target("markup").target.depends_on.iter().map(|on| &**on).collect::<Vec<_>>(), ["rabbitmq"]);

    let result = watched.run("markup").await;
    failed(&result, Reason::Missing, "vhost \"site\" has no queue \"markdown2html_queue\"");
    assert_eq!(value(&result, "markup_up", ""), Some(0.0));

    let url = format!("amqp://service:pw-service@127.0.0.1:{port}/site");
    let Some(mut service) = Markup::start(&url, "").await else { return };
    let result = watched.run("markup").await;
    well(&result, true);
    for (name, wanted) in [("markup_up", 1.0), ("markup_queue_consumers", 1.0), ("markup_queue_messages_ready", 0.0)] {
        assert_eq!(value(&result, name, ""), Some(wanted), "{name}");
    }
    assert!(value(&result, "markup_request_duration_seconds", "").is_some_and(|took| took < 1.0));
    failed(&watched.run("shut").await, Reason::Forbidden, "user \"poor\" lacks a permission in vhost \"site\"");

    // It shares the connections of the probe rabbitmq, and a run opens and declares nothing.
    assert!(watched.run("rabbitmq").await.is_success());
    let names = rabbitmq.ctl(&["list_connections", "user", "-q", "--no-table-headers"]);
    assert_eq!(names.lines().filter(|user| *user == "proctor").count(), 2, "{names}");
    let counted = ["rabbitmq_connections_opened_total", "rabbitmq_channels_opened_total", "rabbitmq_queues_declared_total"];
    let before = watched.run("rabbitmq").await;
    for _ in 0..20 {
        well(&watched.run("markup").await, true);
    }
    let after = watched.run("rabbitmq").await;
    for name in counted {
        assert!(value(&before, name, "").is_some() && value(&before, name, "") == value(&after, name, ""), "{name}");
    }

    // Silent, and back.
    service.process.signal("STOP");
    for _ in 0..2 {
        let result = watched.run("markup").await;
        failed(&result, Reason::AnswerTimeout, "queue \"markdown2html_queue\": its consumer has the question and is silent");
        assert_eq!((value(&result, "markup_up", ""), value(&result, "markup_queue_consumers", "")), (Some(0.0), Some(1.0)));
    }
    service.process.signal("CONT");
    well(&watched.until("markup", "it answers again", 30, ProbeResult::is_success).await, true);
    service.restart("mute").await;
    failed(&watched.run("markup").await, Reason::AnswerTimeout, "is silent");

    // Slow, and so slow that its answers come after the limit.
    service.restart("delay:1.5").await;
    let result = watched.run("markup").await;
    failed(&result, Reason::Backlog, "expected at most 1s: it is slow");
    assert_eq!(value(&result, "markup_up", ""), Some(1.0), "it works");
    service.restart("delay:7").await;
    failed(&watched.run("markup").await, Reason::AnswerTimeout, "is silent");
    let result =
        watched.until_failed("markup", "it is seen to be slow", 60, Reason::Backlog, "an earlier question was answered only now").await;
    assert_eq!(value(&result, "markup_up", ""), Some(0.0), "nobody waits that long");

    // Wrong.
    for (wrong, words) in [
        ("plain", "expected an answer that matches <em>x</em>, found \"{\"html\": \"<p>*x*</p>\"}\""),
        ("garbage", "expected an answer that matches <em>x</em>, found \"\u{fffd}"),
        ("uncorrelated", "expected an answer with the correlation_id of its question, found none"),
    ] {
        service.restart(wrong).await;
        let result = watched.run("markup").await;
        failed(&result, Reason::Mismatch, words);
        assert_eq!(value(&result, "markup_up", ""), Some(0.0), "{wrong}");
    }

    // No consumer, no queue.
    service.process.kill();
    let result =
        watched.until_failed("markup", "the broker has seen it go", 30, Reason::NoConsumer, "nobody consumes it (questions that wait: ");
    assert_eq!(value(&result.await, "markup_queue_consumers", ""), Some(0.0));
    service.restart("").await;
    // A question that was asked before the broker saw it go may be answered first.
    well(&watched.until("markup", "it is asked again", 30, ProbeResult::is_success).await, true);
    rabbitmq.ctl(&["delete_queue", "markdown2html_queue", "--vhost", "site"]);
    failed(&watched.run("markup").await, Reason::Missing, "has no queue \"markdown2html_queue\"");
    service.restart("").await;

    // What is wrong with the broker is said as such, and followed.
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0.00001"]);
    watched.until_failed("markup", "publishing is blocked", 60, Reason::Blocked, "low on memory").await;
    rabbitmq.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    watched.until("markup", "it is asked again", 60, ProbeResult::is_success).await;
    rabbitmq.process.signal("STOP");
    // Either the limit of the run comes first, or the end of two heartbeats, of 2 s each here.
    watched.until_failed("markup", "the broker is frozen", 30, Reason::AnswerTimeout, "127.0.0.1").await;
    rabbitmq.process.signal("CONT");
    watched.until("markup", "it is asked again", 60, ProbeResult::is_success).await;
    rabbitmq.kill();
    watched.until_failed("markup", "the broker is gone", 30, Reason::Refused, "127.0.0.1").await;
    rabbitmq.relaunch();
    watched.until_failed("markup", "the broker is back, without the queue", 60, Reason::Missing, "has no queue").await;
    service.restart("").await;
    watched.until("markup", "it is asked again", 60, ProbeResult::is_success).await;
}

#[tokio::test]
async fn the_same_is_asked_over_http() {
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let Some(mut service) = Markup::start(&url, "").await else { return };
    let watched = Watched::new(&format!("  markup: {{timeout: 5s, markup: {{url: \"{url}/markdown2html\", slow: 1500ms}}}}\n"));
    assert!(watched.target("markup").target.depends_on.is_empty());
    let result = watched.run("markup").await;
    well(&result, true);
    assert_eq!((value(&result, "markup_up", ""), value(&result, "probe_http_status_code", "")), (Some(1.0), Some(200.0)));
    for (wrong, reason, up, words) in [
        ("delay:2", Reason::Backlog, 1.0, "expected at most 1s500ms: it is slow"),
        ("delay:9", Reason::AnswerTimeout, 0.0, "waiting for the answer to POST http://127.0.0.1"),
        ("plain", Reason::Mismatch, 0.0, "expected an answer that matches <em>x</em>, found \"{\"html\": \"<p>*x*</p>\"}\""),
        ("status:503", Reason::Mismatch, 0.0, "expected status 2xx, found 503 Service Unavailable"),
        ("huge", Reason::TooLarge, 0.0, "larger than 1048576 bytes"),
    ] {
        service.restart(wrong).await;
        let result = watched.run("markup").await;
        failed(&result, reason, words);
        assert_eq!(value(&result, "markup_up", ""), Some(up), "{wrong}");
    }
    service.restart("").await;
    service.process.signal("STOP");
    failed(&watched.run("markup").await, Reason::AnswerTimeout, "waiting for the answer to POST");
    service.process.signal("CONT");
    watched.until("markup", "it answers again", 30, ProbeResult::is_success).await;
    service.process.kill();
    failed(&watched.run("markup").await, Reason::Refused, "refused");
}
