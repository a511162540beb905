//! Mail and webhooks: what goes out, to good servers, dead ones and hostile ones.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use proctor::client::smtp::{Cause, Envelope, Limits, Relay, Security, SmtpError, Stage, Verdict, deliver};
use proctor::metrics::{ByDelivery, Metrics};
use proctor::model::decode::from_text;
use proctor::model::{Secret, Timestamp};
use proctor::notify::email::{Address, Author, SmtpConfig, compose};
use proctor::notify::outbox::{Outbox, Pace, Ways};
use proctor::notify::webhook::WebhookConfig;
use proctor::notify::{Channel, Delivery, Message, Weight};
use proctor::store::{Batch, Store};
use proctor::tasks::{self, Tasks};
use proptest::prelude::*;

use crate::support::hostile::{Manner, hostile};
use crate::support::process::{Process, eventually, free_port};
use crate::support::smtp::{Manners, Quirk, Sink, Wire};

const SOON: Duration = Duration::from_secs(20);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Limits of the same shape as the real ones, in seconds: a good relay on a busy machine keeps them.
fn limits() -> Limits {
    Limits { banner: ms(2000), command: ms(2000), dot: ms(3000), session: ms(9000), ..Limits::default() }
}

fn relay(sink: &Sink, security: Security) -> Relay {
    let trust = proctor::client::secret::trust(Some(&sink.ca_file)).expect("is PEM");
    Relay { host: "localhost".into(), port: sink.port, security, hello: "proctor.example.org".into(), login: None, trust, limits: limits() }
}

fn envelope() -> Envelope {
    Envelope::new("proctor@example.org", "admin@example.org").expect("are addresses")
}

async fn refused(relay: &Relay) -> SmtpError {
    tokio::time::timeout(SOON, deliver(relay, &envelope(), b"Subject: x\r\n\r\nbody\r\n"))
        .await
        .expect("ends")
        .expect_err("is not accepted")
}

fn message(id: &str) -> Message {
    Message {
        message_id: format!("{id}@example.org"),
        in_reply_to: None,
        references: Vec::new(),
        subject: format!("[Site] {id}"),
        text: format!("{id} is broken\n.\nQUIT\n"),
        html: format!("<p>{id} is broken</p>"),
        headers: vec![("X-Alert-State".into(), "firing".into())],
        important: false,
        payload: serde_json::json!({"version": "4", "id": id}),
    }
}

fn delivery(id: &str, to: &str, weight: Weight) -> Delivery {
    let channel = if to.contains('@') { Channel::Email { to: to.into() } } else { Channel::Webhook { name: to.into() } };
    let now = tasks::now();
    Delivery {
        id: format!("{id}:{to}"),
        channel,
        message: message(id),
        weight,
        queued_at: now,
        attempts: 0,
        next_at: now,
        last_error: None,
    }
}

fn author() -> Author {
    Author { from: Address::parse("Proctor <proctor@example.org>").expect("is one"), site: "coursys".into() }
}

fn smtp(yaml: &str) -> SmtpConfig {
    from_text("proctor.yml", yaml).expect("is right")
}

fn pace() -> Pace {
    Pace {
        knock: ms(100),
        hold: ms(300),
        retries: vec![ms(50), ms(100)],
        greylist: ms(50),
        refused: [ms(50), ms(50)],
        stop: Duration::from_secs(3),
        ..Pace::default()
    }
}

/// An outbox with its store, delivering.
struct Post {
    store: Store,
    metrics: Arc<Metrics>,
    outbox: Outbox,
    tasks: Tasks,
}

impl Post {
    fn ways(sink: &Sink) -> Ways {
        let smtp = smtp(&format!("{{host: 127.0.0.1, port: {}}}", sink.port));
        Ways { author: author(), smtp: Some(smtp), webhooks: BTreeMap::new(), limits: limits(), pace: pace() }
    }

    fn start(ways: Ways) -> Self {
        let metrics = Arc::new(Metrics::new());
        let store = Store::open(None, metrics.clone()).expect("opens in memory");
        Self::over(store, metrics, ways)
    }

    fn over(store: Store, metrics: Arc<Metrics>, ways: Ways) -> Self {
        let outbox = Outbox::new(store.clone(), metrics.clone(), ways);
        let tasks = Tasks::new();
        tasks.spawn("outbox", outbox.clone().run(tasks.token()));
        Self { store, metrics, outbox, tasks }
    }

    async fn queue(&self, deliveries: &[Delivery]) {
        let mut batch = Batch::new();
        deliveries.iter().for_each(|delivery| batch.put(delivery));
        self.store.commit(batch).await;
        self.outbox.wake();
    }

    async fn empty(&self) {
        eventually("the outbox is empty", SOON, || async { self.store.all::<Delivery>().is_empty().then_some(()) }).await;
    }

    fn counted(&self, integration: &'static str, outcome: &'static str) -> u64 {
        self.metrics.deliveries.get_or_create(&ByDelivery { integration, outcome }).get()
    }
}

#[tokio::test]
async fn a_mail_is_accepted_plain_by_starttls_by_tls_and_with_a_login() {
    for (wire, security) in [(Wire::Plain, Security::None), (Wire::Starttls, Security::Starttls), (Wire::Tls, Security::Tls)] {
        for mechanism in [None, Some("PLAIN"), Some("LOGIN")] {
            let login = mechanism.map(|_| ("proctor".to_owned(), "pässword".to_owned()));
            let sink = Sink::with(Manners { wire, login: login.clone(), mechanism, ..Manners::default() }).await;
            let mut relay = relay(&sink, security);
            relay.login = login.map(|(user, password)| (user, Secret::new(password)));
            let accepted = deliver(&relay, &envelope(), b"Subject: x\r\n\r\n.\r\n").await.expect("is accepted");
            assert_eq!((accepted.reply.code, accepted.reply.text[0].as_str()), (250, "2.0.0 taken"));
            let mails = sink.mails();
            assert_eq!((mails.len(), mails[0].encrypted), (1, security != Security::None), "{security:?}");
            assert_eq!((mails[0].to.as_str(), mails[0].from.as_str()), ("admin@example.org", "proctor@example.org"));
            assert_eq!(mails[0].raw, "Subject: x\r\n\r\n.\r\n");
            let said = accepted.transcript.join("\n");
            assert!(said.contains("C: MAIL FROM:<proctor@example.org>") && said.contains("S: 250 2.0.0 taken"), "{said}");
            for secret in ["pässword", "cMOkc3N3b3Jk", "AHByb2N0b3IAcMOkc3N3b3Jk"] {
                assert!(!said.contains(secret), "{said}");
            }
        }
    }
}

#[tokio::test]
async fn a_hostile_relay_is_left_within_its_limits_and_understood() {
    let mut wrong = Vec::new();
    for (quirk, stage, verdict) in [
        (Quirk::SilentBanner, Stage::Banner, Verdict::Dead),
        (Quirk::EndlessLine, Stage::Banner, Verdict::Dead),
        (Quirk::EndlessReply, Stage::Banner, Verdict::Dead),
        (Quirk::Drip, Stage::Banner, Verdict::Dead),
        (Quirk::Greets(b"SSH-2.0-OpenSSH_9.2\r\n"), Stage::Banner, Verdict::Dead),
        (Quirk::Greets(b"220-a\r\n250 b\r\n"), Stage::Banner, Verdict::Dead),
        (Quirk::Greets(b"\0\xff\r\n"), Stage::Banner, Verdict::Dead),
        (Quirk::Greets(b"554 no service for you\r\n"), Stage::Banner, Verdict::Held),
        (Quirk::Greets(b"421 too many\r\n"), Stage::Banner, Verdict::Dead),
        (Quirk::Greets(b"220 a\r\n250 and the reply to EHLO before EHLO\r\n"), Stage::Hello, Verdict::Dead),
        (Quirk::Stutters, Stage::Data, Verdict::Dead),
        (Quirk::ResetMidData, Stage::Data, Verdict::Dead),
        (Quirk::HangAfterDot, Stage::Dot, Verdict::Unknown),
        (Quirk::CloseAfterDot, Stage::Dot, Verdict::Unknown),
    ] {
        let sink = Sink::with(Manners { quirk: Some(quirk.clone()), ..Manners::default() }).await;
        let begin = std::time::Instant::now();
        let big = [b"Subject: x\r\n\r\n".to_vec(), b"line of a long mail\r\n".repeat(200_000)].concat();
        let error = tokio::time::timeout(SOON, deliver(&relay(&sink, Security::None), &envelope(), &big))
            .await
            .expect("ends")
            .expect_err("is not accepted");
        let found = (error.stage, error.verdict());
        // How far a broken connection let us write is the kernel's business.
        let near = quirk == Quirk::ResetMidData && matches!(found.0, Stage::Data | Stage::Dot)
            || quirk == Quirk::Stutters && found.0 > Stage::Mail;
        if found != (stage, verdict) && !(near && found.1 == verdict) {
            wrong.push(format!("{quirk:?}: {found:?} {error:?}"));
        }
        assert!(begin.elapsed() < Duration::from_secs(12), "{quirk:?} took {:?}", begin.elapsed());
        assert!(error.transcript.iter().map(String::len).sum::<usize>() < 100_000);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn nothing_goes_out_in_clear_where_encryption_is_asked_for() {
    let started = |wire, quirk| Sink::with(Manners { wire, quirk, login: Some(("u".into(), "p".into())), ..Manners::default() });
    let with_login = |mut relay: Relay| {
        relay.login = Some(("u".into(), Secret::new("hunter2".into())));
        relay
    };
    // Not offered, or cut out by somebody in between.
    let sink = started(Wire::Plain, None).await;
    let error = refused(&with_login(relay(&sink, Security::Starttls))).await;
    assert_eq!((error.stage, error.verdict()), (Stage::Starttls, Verdict::Held), "{error:?}");
    // Injected behind the 220.
    let sink = started(Wire::Starttls, Some(Quirk::Inject(b"250-sink\r\n250 AUTH PLAIN\r\n"))).await;
    let error = refused(&with_login(relay(&sink, Security::Starttls))).await;
    assert_eq!((error.stage, error.verdict()), (Stage::Starttls, Verdict::Held), "{error:?}");
    assert!(matches!(error.source, Cause::Unsafe(_)));
    // A certificate of nobody we know, and one for another name.
    for (wire, security) in [(Wire::Starttls, Security::Starttls), (Wire::Tls, Security::Tls)] {
        let sink = started(wire, None).await;
        let strangers = Relay { trust: proctor::client::net::Trust::system(), ..relay(&sink, security) };
        let other_name = Relay { host: "127.0.0.1".into(), ..relay(&sink, security) };
        for relay in [strangers, other_name] {
            let error = refused(&with_login(relay)).await;
            assert_eq!((error.stage, error.verdict()), (Stage::Tls, Verdict::Held), "{error:?}");
            let said = error.transcript.join("\n");
            assert!(!said.contains("AUTH PLAIN <") && !said.contains("C: MAIL"), "{said}");
        }
        assert!(sink.mails().is_empty());
    }
    // A wrong password.
    let sink = started(Wire::Tls, None).await;
    let error = refused(&with_login(relay(&sink, Security::Tls))).await;
    assert_eq!((error.stage, error.verdict()), (Stage::Auth, Verdict::Held), "{error:?}");
    assert!(!format!("{error:?}").contains("hunter2"));
    // No login although the relay wants one.
    let error = refused(&relay(&sink, Security::Tls)).await;
    assert_eq!((error.stage, error.verdict()), (Stage::Mail, Verdict::Held), "{error:?}");
    // A password without TLS to another host is refused when the file is read.
    let config = smtp("{host: mail.example.org, username: u, password_file: /run/secrets/smtp}");
    assert!(config.check().expect_err("is refused").contains("without encryption"));
}

#[tokio::test]
async fn a_port_that_is_closed_or_resets_is_a_dead_relay() {
    let sink = Sink::start().await;
    for port in [free_port(), hostile(Manner::Closes).await, hostile(Manner::Resets).await] {
        let error = refused(&Relay { port, ..relay(&sink, Security::None) }).await;
        assert_eq!(error.verdict(), Verdict::Dead, "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_relay_is_down_every_mail_waits_and_then_arrives_once_in_order() {
    let sink = Sink::start().await;
    sink.down();
    let post = Post::start(Post::ways(&sink));
    let mut queued = Vec::new();
    for n in 0..60 {
        let weight = if n % 10 == 3 { Weight::Reminder } else { Weight::Firing };
        let mut delivery = delivery(&format!("alert-{n:02}"), "admin@example.org", weight);
        delivery.queued_at = Timestamp(delivery.queued_at.0 + n);
        queued.push(delivery);
    }
    post.queue(&queued).await;
    eventually("the way is closed", SOON, || async { (!post.outbox.problems().is_empty()).then_some(()) }).await;
    let problems = post.outbox.problems();
    assert!(
        problems.len() == 1 && problems[0].starts_with("mail: 60 wait since") && problems[0].contains("cannot connect to 127.0.0.1"),
        "{problems:?}"
    );
    eventually("it is knocked at", SOON, || async { (post.counted("email", "retried") >= 3).then_some(()) }).await;
    assert!(post.outbox.oldest_age(tasks::now()) > Duration::ZERO);
    assert!(post.metrics.encode().contains("proctor_outbox_depth 60"));
    sink.up();
    let mails = sink.wait_for(60, SOON).await;
    post.empty().await;
    assert_eq!(sink.mails().len(), 60, "each once");
    let subjects: Vec<_> = mails.iter().map(|mail| mail.header("Subject").to_owned()).collect();
    let (late, early): (Vec<_>, Vec<_>) = (0..60).map(|n| (n, format!("[Site] alert-{n:02}"))).partition(|(n, _)| n % 10 == 3);
    assert_eq!(subjects, early.into_iter().chain(late).map(|(_, subject)| subject).collect::<Vec<_>>());
    // One connection takes a whole round, so that a relay that comes back is not run over.
    assert!(sink.connections() <= 3, "{}", sink.connections());
    assert_eq!((post.counted("email", "sent"), post.outbox.problems().len()), (60, 0));
    eventually("the gauge follows", SOON, || async { post.metrics.encode().contains("proctor_outbox_depth 0").then_some(()) }).await;
}

#[tokio::test]
async fn one_bad_address_loses_nothing_for_the_others() {
    let sink = Sink::start().await;
    sink.manners(|manners| manners.always = [("RCPT bad@example.org".to_owned(), "550 5.1.1 no such user")].into());
    let post = Post::start(Post::ways(&sink));
    post.queue(&[
        delivery("a", "Bad <bad@example.org>", Weight::Firing),
        delivery("a", "Good <good@example.org>", Weight::Firing),
        delivery("b", "good@example.org", Weight::Firing),
        delivery("c", "no address at all @", Weight::Firing),
    ])
    .await;
    post.empty().await;
    assert_eq!(sink.mails().iter().map(|mail| mail.to.as_str()).collect::<Vec<_>>(), ["good@example.org"; 2]);
    assert_eq!((post.counted("email", "sent"), post.counted("email", "rejected"), post.counted("email", "retried")), (2, 2, 2));
    let refused = post.outbox.refused();
    assert!(refused.iter().any(|(address, why)| address == "bad@example.org" && why.contains("550 5.1.1 no such user")), "{refused:?}");
    assert!(
        post.outbox.problems().iter().any(|line| line.starts_with("bad@example.org gets no mail since")),
        "{:?}",
        post.outbox.problems()
    );
    // Taken again, it is no problem any more.
    sink.manners(|manners| manners.always.clear());
    post.queue(&[delivery("d", "bad@example.org", Weight::Firing)]).await;
    post.empty().await;
    assert!(!post.outbox.refused().iter().any(|(address, _)| address == "bad@example.org"));
}

#[tokio::test]
async fn a_temporary_refusal_passes_at_every_stage_and_the_mail_arrives_once() {
    for (verb, reply) in [
        ("EHLO", "421 4.3.2 shutting down"),
        ("MAIL", "452 4.3.1 disk full"),
        ("RCPT", "450 4.2.0 greylisted"),
        ("RCPT", "451 4.3.0 later"),
        ("RCPT", "421 4.7.0 busy"),
        ("DATA", "451 4.3.0 later"),
        (".", "451 4.3.0 later"),
        (".", "421 4.3.0 closing"),
    ] {
        let sink = Sink::start().await;
        sink.manners(|manners| drop(manners.next.insert(verb, [reply; 2].into())));
        let post = Post::start(Post::ways(&sink));
        post.queue(&[delivery("a", "admin@example.org", Weight::Firing)]).await;
        post.empty().await;
        assert_eq!((sink.mails().len(), post.counted("email", "retried")), (1, 2), "{verb} {reply}");
        assert_eq!(post.metrics.possible_duplicates.get(), 0);
    }
}

#[tokio::test]
async fn a_refused_login_holds_the_queue_until_it_works() {
    let sink = Sink::with(Manners { login: Some(("proctor".into(), "right".into())), ..Manners::default() }).await;
    let dir = tempfile::tempdir().expect("a folder");
    let secret = dir.path().join("password");
    let write = |password: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(&secret, password).expect("is written");
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("is set");
    };
    write("wrong\n");
    let yaml = format!("{{host: 127.0.0.1, port: {}, username: proctor, password_file: {}}}", sink.port, secret.display());
    let post = Post::start(Ways { smtp: Some(smtp(&yaml)), ..Post::ways(&sink) });
    post.queue(&[delivery("a", "admin@example.org", Weight::Firing), delivery("b", "admin@example.org", Weight::Firing)]).await;
    eventually("it is said", SOON, || async { post.outbox.problems().iter().any(|line| line.contains("535")).then_some(()) }).await;
    write("right\n");
    sink.wait_for(2, SOON).await;
    post.empty().await;
    assert_eq!(sink.mails()[0].login.as_deref(), Some("proctor"));
}

#[tokio::test]
async fn a_message_that_the_relay_refuses_does_not_hold_back_the_next() {
    let sink = Sink::start().await;
    sink.manners(|manners| drop(manners.next.insert(".", ["554 5.6.0 looks like spam"].into())));
    let post = Post::start(Post::ways(&sink));
    let first = delivery("a", "admin@example.org", Weight::Firing);
    let mut second = delivery("b", "admin@example.org", Weight::Firing);
    second.queued_at = Timestamp(first.queued_at.0 + 1);
    post.queue(&[first, second]).await;
    let mails = sink.wait_for(2, SOON).await;
    assert_eq!(mails.iter().map(|mail| mail.header("Subject")).collect::<Vec<_>>(), ["[Site] b", "[Site] a"]);
}

#[tokio::test]
async fn an_end_does_not_overtake_its_beginning() {
    let sink = Sink::start().await;
    sink.manners(|manners| drop(manners.next.insert("RCPT", ["450 greylisted"].into())));
    let post = Post::start(Post::ways(&sink));
    let firing = delivery("firing", "admin@example.org", Weight::Firing);
    let mut resolved = delivery("resolved", "admin@example.org", Weight::Resolved);
    resolved.message.references = vec![firing.message.message_id.clone()];
    resolved.queued_at = Timestamp(firing.queued_at.0 + 1);
    post.queue(&[firing, resolved]).await;
    let mails = sink.wait_for(2, SOON).await;
    assert_eq!(mails.iter().map(|mail| mail.header("Subject")).collect::<Vec<_>>(), ["[Site] firing", "[Site] resolved"]);
}

#[tokio::test]
async fn a_lost_reply_is_repeated_under_the_same_message_id_and_counted() {
    for quirk in [Quirk::HangAfterDot, Quirk::CloseAfterDot] {
        let sink = Sink::with(Manners { quirk: Some(quirk), ..Manners::default() }).await;
        let post = Post::start(Post::ways(&sink));
        post.queue(&[delivery("a", "admin@example.org", Weight::Firing)]).await;
        sink.wait_for(1, SOON).await;
        sink.manners(|manners| manners.quirk = None);
        post.empty().await;
        let mails = sink.mails();
        assert_eq!((mails.len() as u64, post.counted("email", "sent")), (1 + post.metrics.possible_duplicates.get(), 1));
        assert!(mails.iter().all(|mail| mail.raw == mails[0].raw && mail.header("Message-ID") == "<a@example.org>"));
    }
}

#[tokio::test]
async fn a_relay_that_ends_connections_after_a_few_mails_is_not_dead() {
    let sink = Sink::with(Manners { quirk: Some(Quirk::CloseAfter(2)), ..Manners::default() }).await;
    let post = Post::start(Ways { pace: Pace { knock: Duration::from_secs(60), ..pace() }, ..Post::ways(&sink) });
    let all: Vec<_> = (0..7).map(|n| delivery(&n.to_string(), "admin@example.org", Weight::Firing)).collect();
    post.queue(&all).await;
    post.empty().await;
    assert_eq!((sink.mails().len(), sink.connections()), (7, 4));
}

#[tokio::test]
async fn a_stop_ends_the_delivery_in_flight_and_the_next_start_takes_the_rest() {
    let sink = Sink::with(Manners { quirk: Some(Quirk::HangAfterDot), ..Manners::default() }).await;
    let post = Post::start(Post::ways(&sink));
    let all: Vec<_> = (0..3).map(|n| delivery(&n.to_string(), "admin@example.org", Weight::Firing)).collect();
    post.queue(&all).await;
    sink.wait_for(1, SOON).await;
    assert!(post.tasks.stop(Duration::from_secs(5)).await.is_empty(), "it stops");
    assert_eq!(post.store.all::<Delivery>().len(), 3);
    sink.manners(|manners| manners.quirk = None);
    let again = Post::over(post.store.clone(), post.metrics.clone(), Post::ways(&sink));
    again.empty().await;
    let mut subjects: Vec<_> = sink.mails().iter().map(|mail| mail.header("Subject").to_owned()).collect();
    subjects.sort();
    subjects.dedup();
    assert_eq!(subjects.len(), 3);
}

#[tokio::test]
async fn what_was_queued_by_a_clock_that_was_a_day_ahead_goes_out_now() {
    let sink = Sink::start().await;
    let post = Post::start(Post::ways(&sink));
    let mut ahead = delivery("a", "admin@example.org", Weight::Firing);
    ahead.queued_at = ahead.queued_at + Duration::from_secs(86_400);
    ahead.next_at = ahead.queued_at;
    post.queue(&[ahead]).await;
    sink.wait_for(1, SOON).await;
    post.empty().await;
}

#[tokio::test]
async fn too_old_and_too_many_are_given_up_but_never_a_beginning_for_room() {
    let sink = Sink::start().await;
    let port = free_port();
    let ways = Ways { smtp: Some(smtp(&format!("{{host: 127.0.0.1, port: {port}}}"))), ..Post::ways(&sink) };
    let post = Post::start(ways);
    let mut old = delivery("old", "admin@example.org", Weight::Firing);
    old.queued_at = Timestamp(old.queued_at.0 - 6 * 24 * 3600 * 1000);
    post.queue(&[old]).await;
    post.empty().await;
    assert_eq!(post.counted("email", "expired"), 1);
    // 70 MiB in 1 MiB each: ten reminders, five ends, the rest beginnings.
    let mut all = Vec::new();
    for n in 0..70 {
        let weight = match n % 14 {
            0 | 1 => Weight::Reminder,
            2 => Weight::Resolved,
            _ => Weight::Firing,
        };
        let mut delivery = delivery(&format!("{n}"), "admin@example.org", weight);
        delivery.message.text = "x".repeat(1 << 20);
        delivery.queued_at = Timestamp(delivery.queued_at.0 + n);
        all.push(delivery);
    }
    post.queue(&all).await;
    eventually("there is room", SOON, || async { (post.metrics.outbox_dropped.get() > 0).then_some(()) }).await;
    let left =
        eventually("the oldest reminders went", SOON, || async { Some(post.store.all::<Delivery>()).filter(|left| left.len() <= 63) })
            .await;
    let count = |weight| left.iter().filter(|delivery| delivery.weight == weight).count();
    assert_eq!((left.len(), count(Weight::Reminder), count(Weight::Resolved), count(Weight::Firing)), (63, 3, 5, 55));
    assert_eq!(post.metrics.outbox_dropped.get(), 7);
}

#[tokio::test]
async fn a_webhook_gets_the_payload_once_and_its_answer_is_judged() {
    let answers: [(&'static [u8], &str); 6] = [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "sent"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "sent"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nno\nhk", "rejected"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "rejected"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "retried"),
        (b"HTTP/1.1 429 Slower\r\nContent-Length: 0\r\n\r\n", "retried"),
    ];
    let sink = Sink::start().await;
    for (answer, outcome) in answers {
        let port = hostile(Manner::Says(answer.to_vec())).await;
        let hook: WebhookConfig = from_text("f", &format!("{{url: 'http://127.0.0.1:{port}/hook', timeout: 2s}}")).expect("is right");
        hook.check().expect("fits");
        let post = Post::start(Ways { webhooks: [("chat".to_owned(), hook)].into(), ..Post::ways(&sink) });
        post.queue(&[delivery("a", "chat", Weight::Firing)]).await;
        eventually(outcome, SOON, || async { (post.counted("webhook", outcome) > 0).then_some(()) }).await;
        if outcome != "retried" {
            post.empty().await;
        }
    }
    // An endless answer to a 200 is still a 200; garbage, silence and a closed port are tried again.
    for (manner, outcome) in [
        (Manner::Endless(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()), "sent"),
        (Manner::Says(b"garbage\r\n\r\n".to_vec()), "retried"),
        (Manner::Silent, "retried"),
        (Manner::Resets, "retried"),
    ] {
        let port = hostile(manner).await;
        let hook: WebhookConfig = from_text("f", &format!("{{url: 'http://127.0.0.1:{port}/', timeout: 500ms}}")).expect("is right");
        let post = Post::start(Ways { webhooks: [("chat".to_owned(), hook)].into(), ..Post::ways(&sink) });
        post.queue(&[delivery("a", "chat", Weight::Firing), delivery("m", "admin@example.org", Weight::Firing)]).await;
        eventually(outcome, SOON, || async { (post.counted("webhook", outcome) > 0).then_some(()) }).await;
        // Mail does not wait for a webhook.
        eventually("the mail is out", SOON, || async { (post.counted("email", "sent") == 1).then_some(()) }).await;
    }
}

#[tokio::test]
async fn a_webhook_is_posted_with_its_key_and_its_token_is_nowhere_else() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("url");
    std::fs::write(&file, format!("http://{}/T0KEN\n", listener.local_addr().expect("it is bound"))).expect("is written");
    Command::new("chmod").args(["600"]).arg(&file).status().expect("chmod runs");
    let hook: WebhookConfig = from_text("f", &format!("url_file: {}", file.display())).expect("is right");
    let sink = Sink::start().await;
    let post = Post::start(Ways { webhooks: [("chat".to_owned(), hook)].into(), ..Post::ways(&sink) });
    post.queue(&[delivery("a", "chat", Weight::Firing)]).await;
    let mut request = String::new();
    for answer in ["HTTP/1.1 500 oops\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 ok\r\nContent-Length: 0\r\n\r\n"] {
        let (mut stream, _) = listener.accept().await.expect("it comes");
        request.clear();
        while !request.contains("\"version\":\"4\"}") {
            let mut chunk = [0u8; 1024];
            let n = stream.read(&mut chunk).await.expect("it writes");
            request += &String::from_utf8_lossy(&chunk[..n]);
        }
        stream.write_all(answer.as_bytes()).await.expect("is written");
        if answer.contains("500") {
            eventually("it is kept", SOON, || async { post.store.all::<Delivery>().iter().any(|d| d.attempts == 1).then_some(()) }).await;
            assert!(!format!("{:?}{:?}", post.store.all::<Delivery>(), post.outbox.problems()).contains("T0KEN"));
        }
    }
    post.empty().await;
    let head = request.to_lowercase();
    assert!(head.starts_with("post /t0ken http/1.1\r\n") && head.contains("idempotency-key: a:chat\r\n"), "{request}");
    assert!(head.contains("content-type: application/json\r\n"), "{request}");
}

/// Returns the lines of the head of a mail, and checks what holds for every mail.
fn checked(mail: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(mail).expect("is text");
    assert!(text.is_ascii());
    assert!(!text.replace("\r\n", "").contains(['\r', '\n', '\0']), "only whole lines: {text:?}");
    assert!(text.split("\r\n").all(|line| line.len() <= 998), "no line is too long");
    let head = text.split("\r\n\r\n").next().unwrap_or("");
    head.split("\r\n").map(str::to_owned).collect()
}

const DECLARED: [&str; 13] = [
    "From",
    "To",
    "Date",
    "Message-ID",
    "Subject",
    "In-Reply-To",
    "References",
    "Auto-Submitted",
    "X-Auto-Response-Suppress",
    "List-Id",
    "X-Alert-Name",
    "MIME-Version",
    "Content-Type",
];

fn hostile_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("\r\nBcc: evil@example.org\r\n\r\n".to_owned()),
        Just("\n.\n".to_owned()),
        Just("\r\n.\r\nMAIL FROM:<x@y>\r\n".to_owned()),
        Just("=?utf-8?q?a=0D=0ABcc:_x?=".to_owned()),
        Just("\u{2028}\u{202e}\0\u{85}".to_owned()),
        Just("x".repeat(1200)),
        Just("ä€😀".repeat(60)),
        Just(" \t ".to_owned()),
        Just("\"<>,;@\\".to_owned()),
        Just("{{7*7}}<script>".to_owned()),
        any::<String>(),
        "[ -~]{0,40}",
    ];
    proptest::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_texts_hold_a_mail_has_exactly_the_declared_headers(
        texts in proptest::collection::vec(hostile_text(), 9),
    ) {
        let mut delivery = delivery("a", "admin@example.org", Weight::Firing);
        let message = &mut delivery.message;
        (message.subject, message.text, message.html) = (texts[0].clone(), texts[1].clone(), texts[2].clone());
        (message.message_id, message.in_reply_to) = (format!("id{}@x", texts[3]), Some(format!("id{}@x", texts[4])));
        message.references = vec![texts[5].clone(), texts[6].clone()];
        message.headers = vec![("X-Alert-Name".into(), texts[7].clone()), ("Bcc".into(), "evil@example.org".into()), (format!("X-{}\r\nBcc", texts[0]), "evil".into())];
        let to = format!("{} <admin@example.org>", texts[8]);
        let (_, mail) = compose(&author(), &to, &delivery).expect("is built");
        let (_, again) = compose(&author(), &to, &delivery).expect("is built");
        prop_assert_eq!(&mail, &again, "a retry is the same to the letter");
        let head = checked(&mail);
        let mut names: Vec<&str> = head.iter().filter(|line| !line.starts_with([' ', '\t'])).map(|line| line.split(':').next().unwrap_or("")).collect();
        let mut expected = DECLARED.to_vec();
        names.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(names, expected);
        prop_assert!(head.iter().all(|line| !line.trim().is_empty()), "an empty line in the head would end it: {:?}", head);
    }
}

#[tokio::test]
async fn a_mail_says_what_it_is_in_its_headers_and_arrives_as_it_was_written() {
    let sink = Sink::start().await;
    let mut delivery = delivery("episode.2", "Ädmin, the \"root\" <admin@example.org>", Weight::Firing);
    delivery.message.subject =
        "[CourSys] Löschen: 100 % der Prüfungen <b> sind weg, und das ist ein wirklich langer Betreff mit Ümlauten".into();
    delivery.message.text = "Zeile 1\n.\n..zwei\nFrom here\n\n=3D trailing  \nüber\n".into();
    delivery.message.html = "<p>日本語日本語日本語日本語日本語</p>".into();
    delivery.message.in_reply_to = Some("episode.1@example.org".into());
    delivery.message.references = vec!["episode.0@example.org".into(), "episode.1@example.org".into()];
    delivery.message.important = true;
    delivery.queued_at = Timestamp(1_790_000_000_000);
    let post = Post::start(Ways { pace: Pace { expire: Duration::from_secs(1 << 31), ..pace() }, ..Post::ways(&sink) });
    post.queue(std::slice::from_ref(&delivery)).await;
    let mail = sink.wait_for(1, SOON).await.remove(0);
    for (name, value) in [
        ("From", "Proctor <proctor@example.org>"),
        ("Subject", delivery.message.subject.as_str()),
        ("Date", "Mon, 21 Sep 2026 14:13:20 +0000"),
        ("Message-ID", "<episode.2@example.org>"),
        ("In-Reply-To", "<episode.1@example.org>"),
        ("References", "<episode.0@example.org> <episode.1@example.org>"),
        ("Auto-Submitted", "auto-generated"),
        ("X-Auto-Response-Suppress", "All"),
        ("List-Id", "<alerts.coursys.example.org>"),
        ("X-Priority", "1"),
        ("Importance", "high"),
        ("X-Alert-State", "firing"),
        ("MIME-Version", "1.0"),
    ] {
        assert_eq!(mail.header(name), value, "{name}");
    }
    assert!(mail.header("To").ends_with("<admin@example.org>") && mail.header("To").contains("dmin"), "{}", mail.header("To"));
    assert!(mail.header("Content-Type").starts_with("multipart/alternative"));
    assert_eq!((mail.text.as_str(), mail.html.as_str()), (delivery.message.text.as_str(), delivery.message.html.as_str()));
    assert!(mail.raw.find("text/plain") < mail.raw.find("text/html"), "the best part is the last");
    checked(mail.raw.as_bytes());
}

#[tokio::test]
async fn a_server_that_is_not_ours_reads_the_same() {
    // Of PyPI, in the venv of tests/stack; it keeps mails in a Maildir, and Python's own parser reads them.
    let stack = std::env::var("PROCTOR_STACK").unwrap_or_else(|_| "/tmp/proctor-stack".into());
    let venv = Path::new(&stack).join("venv/bin/python3");
    let has =
        |python: &Path| Command::new(python).args(["-c", "import aiosmtpd"]).stderr(Stdio::null()).status().is_ok_and(|end| end.success());
    let Some(python) = [venv.as_path(), Path::new("/usr/bin/python3")].into_iter().find(|python| has(python)) else {
        assert!(std::env::var_os("REQUIRE_SERVICES").is_none(), "aiosmtpd is not installed: run tests/stack/stack install");
        eprintln!("skipped: aiosmtpd is not installed");
        return;
    };
    let (dir, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let mut command = Command::new(python);
    command
        .args(["-m", "aiosmtpd", "-n", "-l", &format!("127.0.0.1:{port}"), "-c", "aiosmtpd.handlers.Mailbox"])
        .arg(dir.path().join("mail"));
    let _server = Process::start(&mut command, &dir.path().join("log"));
    let sink = Sink::start().await;
    let post = Post::start(Ways { smtp: Some(smtp(&format!("{{host: 127.0.0.1, port: {port}}}"))), ..Post::ways(&sink) });
    let mut delivery = delivery("a", "Ädmin <admin@example.org>", Weight::Firing);
    delivery.message.subject = "Prüfung\r\nBcc: evil@example.org".into();
    delivery.message.text = "eins\n.\n..zwei\nüber\n".into();
    delivery.message.html = "<p>日本</p>".into();
    post.queue(&[delivery]).await;
    post.empty().await;
    let script = "import sys,glob,email,email.policy\n\
        m=email.message_from_binary_file(open(glob.glob(sys.argv[1]+'/new/*')[0],'rb'),policy=email.policy.default)\n\
        assert not m.defects, m.defects\n\
        print([m['Subject'],m['To'],m['Bcc'],m['Message-ID'],m['X-RcptTo'],[p.get_content() for p in m.iter_parts()]])";
    let read = Command::new(python).args(["-c", script]).arg(dir.path().join("mail")).env("PYTHONUTF8", "1").output().expect("python runs");
    assert_eq!(
        String::from_utf8_lossy(&read.stdout).trim(),
        "['Prüfung  Bcc: evil@example.org', 'Ädmin <admin@example.org>', None, '<a@example.org>', 'admin@example.org', ['eins\\n.\\n..zwei\\nüber\\n', '<p>日本</p>']]",
        "{}",
        String::from_utf8_lossy(&read.stderr)
    );
}

#[test]
fn a_configuration_whose_mail_cannot_go_out_is_refused_when_it_is_loaded() {
    let text = "notify:\n  admins: [jürgen@example.org]\n  smtp: {host: mail.example.org, username: u, password_file: /p}\n";
    let mistakes = |text: &str| {
        let problems = proctor::config::Config::from_text(Path::new("proctor.yml"), text).expect_err("is refused");
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert!(mistakes(text).contains("proctor.yml:2:12: expected an address"), "{}", mistakes(text));
    let text = text.replace("jürgen", "root");
    assert!(mistakes(&text).contains("notify.smtp: the password would be sent without encryption"), "{}", mistakes(&text));
}
