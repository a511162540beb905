//! What holds for all that asks over a broker: one mail where it is down, few attempts to connect, and no sequence of
//! frames that ends more than its connection.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proctor::client::amqp::{AmqpError, Broker, MAX_BODY};
use proctor::model::Reason;
use proctor::tasks::Tasks;
use proptest::prelude::*;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use super::support::process::eventually;
use super::support::proctor::Proctor;
use super::support::rabbitmq::{Rabbitmq, frame, method, open_ok, scripted, settings, start, tune};
use super::support::site::Markup;
use super::support::smtp::Sink;
use super::support::watched::{Watched, failed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_broker_down_there_is_one_mail_that_names_what_needs_it() {
    let Some(mut rabbitmq) = Rabbitmq::start(true).await else { return };
    let sink = Sink::start().await;
    let url = format!("amqp://guest:guest@127.0.0.1:{}//", rabbitmq.port);
    let Some(_service) = Markup::start(&url, "").await else { return };
    let probes = format!(
        "probes:\n  rabbitmq: {{interval: 5s, timeout: 5s, rabbitmq: {{port: {}, prometheus: \"http://127.0.0.1:{}\"}}}}\n\
         \x20 markup: {{interval: 5s, timeout: 5s, markup: {{via: rabbitmq}}}}\n  beat: {{interval: 5s, timeout: 5s, beat: {{via: rabbitmq, task: a.b, within: 1h}}}}\n",
        rabbitmq.port, rabbitmq.prometheus
    );
    let proctor = Proctor::configured(sink.port, &probes).built_in_rules().started();
    for line in ["rabbitmq_up{probe=\"rabbitmq\"} 1", "markup_up{probe=\"markup\"} 1", "probe_success{probe=\"beat\"} 1"] {
        proctor.shows(line, Duration::from_secs(60)).await;
    }
    // What it sees RabbitMQ by is said at the start, once.
    let log = proctor.log();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("what RabbitMQ is seen by")).collect();
    assert!(said.len() == 1 && said[0].contains("amqp, prometheus"), "{log}");

    rabbitmq.kill();
    let mails = sink.wait_for(2, Duration::from_secs(60)).await;
    assert!(mails[0].header("Subject").contains("RabbitmqDown"), "{}", mails[0].text);
    for child in ["markup", "beat"] {
        proctor.shows(&format!("probe_success{{probe=\"{child}\"}} 0"), Duration::from_secs(30)).await;
        assert!(mails[0].text.contains(child), "{child} in {}", mails[0].text);
    }
    // The child's own alert fires, and is not mailed.
    eventually("MarkupDown fires", Duration::from_secs(60), || async {
        let alerts = String::from_utf8_lossy(&proctor.run(&["alert", "list"]).stdout).into_owned();
        (alerts.contains("MarkupDown")).then_some(())
    })
    .await;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        assert_eq!(sink.mails().len(), 2, "one mail for each of two ADMINS");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_broker_that_does_not_let_in_is_knocked_at_less_and_less_often() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let knocked = Arc::<AtomicUsize>::default();
    let count = knocked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            stream.read_exact(&mut [0; 8]).await.expect("a client says AMQP first");
        }
    });
    let watched = Watched::new(&format!("  rabbitmq: {{rabbitmq: {{port: {port}}}}}\n"));
    let begin = Instant::now();
    let mut runs = 0;
    while begin.elapsed() < Duration::from_secs(3) || runs <= 10 {
        failed(&watched.run("rabbitmq").await, Reason::Eof, "it is still starting, or what listens there is no RabbitMQ");
        runs += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // At once, after 250 ms, 750 ms, 1750 ms, and then not before 3750 ms: four, unless this machine is that slow.
    let knocked = knocked.load(Ordering::SeqCst);
    let most = (0..10).filter(|n| Duration::from_millis(250 * ((1 << n) - 1)) <= begin.elapsed()).count();
    assert!((2..=most).contains(&knocked), "{knocked} connections in {runs} runs");
    watched.until_failed("rabbitmq", "it does not try at once", 20, Reason::Eof, "the next attempt is due soon").await;
}

/// Frames that a broker may send, and some that none should.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let short = |text: &[u8]| [&[u8::try_from(text.len()).expect("is short")][..], text].concat();
    let ids = vec![
        (10, 10),
        (10, 30),
        (10, 41),
        (10, 50),
        (10, 51),
        (10, 60),
        (10, 61),
        (20, 11),
        (20, 40),
        (20, 41),
        (50, 11),
        (50, 21),
        (60, 21),
        (60, 30),
        (60, 50),
        (60, 60),
        (60, 80),
        (60, 120),
        (85, 11),
    ];
    let arguments = prop::collection::vec(any::<u8>(), 0..30);
    let wild = (0u16..4, prop::sample::select(ids), arguments).prop_map(|(channel, (class, id), bytes)| method(channel, class, id, &bytes));
    let deliver = [&short(b"proctor-0")[..], &[0; 9], &short(b"x"), &short(b"k")].concat();
    let returned = [&[1, 56][..], &short(b"NO_ROUTE"), &short(b""), &short(b"k")].concat();
    let declared = [&short(b"amq.gen-x")[..], &[0; 8]].concat();
    let refused = [&[1, 148][..], &short(b"NOT_FOUND"), &[0; 4]].concat();
    let proper = vec![
        (20, 11, vec![0; 4]),
        (50, 11, declared),
        (50, 21, Vec::new()),
        (60, 21, short(b"proctor-0")),
        (60, 60, deliver),
        (60, 50, returned),
        (60, 80, vec![0; 9]),
        (85, 11, Vec::new()),
        (20, 40, refused),
        (20, 41, Vec::new()),
        (60, 30, [&short(b"proctor-0")[..], &[0]].concat()),
        (10, 60, short(b"low on memory")),
        (10, 61, Vec::new()),
    ];
    let proper = (0u16..3, prop::sample::select(proper)).prop_map(|(channel, (class, id, bytes))| method(channel, class, id, &bytes));
    let size = prop::sample::select(vec![0u64, 1, 5, 8000, 1 << 20, (1 << 20) + 1, u64::MAX]);
    let header =
        (0u16..3, size).prop_map(|(channel, size)| frame(2, channel, &[&[0, 60, 0, 0][..], &size.to_be_bytes(), &[0, 0]].concat()));
    let body = (0u16..3, prop::sample::select(vec![0usize, 1, 5, 8000])).prop_map(|(channel, size)| frame(3, channel, &vec![b'x'; size]));
    prop_oneof![2 => wild, 5 => proper, 2 => header, 2 => body, 1 => Just(frame(8, 0, &[]))]
}

/// Asks for all that the probes ask for.
async fn talk(broker: &Broker) -> Result<Infallible, AmqpError> {
    let channel = broker.observer(&mut |_, _| {}).await?.channel().await?;
    let queue = channel.own_queue(&[]).await?;
    channel.bind(&queue, "celeryev", "#").await?;
    let mut events = channel.consume(&queue).await?;
    loop {
        assert!(events.next().await?.body.len() <= MAX_BODY);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.min(2000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_frames_ends_more_than_its_connection(frames in prop::collection::vec(any_frame(), 0..24), after in 0usize..3) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("it starts");
        runtime.block_on(async {
            let opened = [method(1, 20, 11, &[0; 4]), method(1, 50, 11, &[&[1, b'q'][..], &[0; 8]].concat())];
            let steps = [vec![start(&[]), tune(0, 0, 0), open_ok()], opened[..after.min(2)].to_vec(), vec![frames.concat()]].concat();
            let (port, _) = scripted(steps, Vec::new()).await;
            let tasks = Tasks::new();
            let broker = Broker::new(settings(port, "/", "guest", None), tasks.clone());
            // Whatever comes, it is an answer, an error, or nothing.
            drop(timeout(Duration::from_millis(20), talk(&broker)).await);
            let _stuck = tasks.stop(Duration::from_secs(3)).await;
            assert_eq!(tasks.panics(), Vec::<String>::new());
        });
    }
}
