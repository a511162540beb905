//! An upgrade of Proctor that brings rules nobody has seen on this site.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proctor::metrics::Metrics;
use proctor::mute::KnownRules;
use proctor::store::{Batch, Store};

use crate::support::process::eventually;
use crate::support::proctor::Proctor;
use crate::support::smtp::Sink;

#[tokio::test(flavor = "multi_thread")]
async fn what_rules_of_a_new_version_find_is_one_mail_and_no_action_until_their_first_day_is_over() {
    let sink = Sink::start().await;
    let mut proctor =
        Proctor::configured(sink.port, "").rules(&[("Known", "vector(1)"), ("Newcomer", "vector(1)"), ("Stranger", "vector(1)")]);
    let (state, mark) = (proctor.folder.path().join("state.db"), proctor.folder.path().join("mark"));
    let actions = format!(
        "actions:\n  mark:\n    command: {{argv: [/usr/bin/touch, {}]}}\n    matchers: ['alertname=\"Newcomer\"']\n    firing_for: 0s\n    mode: act\n    verify: {{within: 1s}}\n",
        mark.display()
    );
    proctor.configure(&state, sink.port, &actions);
    let config = std::fs::read_to_string(proctor.config()).expect("it is there");
    let day = Duration::from_secs(24);
    std::fs::write(proctor.config(), config.replace("after_boot: 0s", "after_boot: 0s, new_rules: 24s")).expect("it can be written");
    {
        // As a version before this one left it.
        let store = Store::open(Some(&state), Arc::new(Metrics::new())).expect("it opens");
        let mut batch = Batch::new();
        batch.put(&KnownRules { version: "0.0.1".into(), names: ["Known".to_owned()].into(), ..KnownRules::default() });
        store.commit(batch).await;
        store.close();
    }
    let upgraded = SystemTime::now();
    proctor.start();
    let of_ann = || sink.mails().into_iter().filter(|mail| mail.to == "ann@example.org").collect::<Vec<_>>();
    let told = eventually("the mail of the new rules comes", Duration::from_secs(60), || async {
        of_ann().into_iter().find(|mail| mail.header("Subject").contains("new rules"))
    })
    .await;
    assert!(told.text.contains("NEW RULES: 2 alerts"), "{}", told.text);
    assert!(told.text.contains("* Newcomer (critical)") && told.text.contains("* Stranger (critical)"), "{}", told.text);
    eventually("what is known is mailed as ever", Duration::from_secs(60), || async {
        of_ann().iter().any(|mail| mail.header("Subject").contains("Known")).then_some(())
    })
    .await;
    // The first day ends, and the rule is as any other: its action is done.
    let acted =
        eventually("the action is done", Duration::from_secs(120), || async { std::fs::metadata(&mark).ok()?.modified().ok() }).await;
    assert!(acted >= upgraded + day, "it acted {:?} after the upgrade", acted.duration_since(upgraded));
    assert_eq!(of_ann().iter().filter(|mail| mail.header("Subject").contains("new rules")).count(), 1);
}
