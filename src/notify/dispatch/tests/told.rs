//! What is told later: what a mail of a thread corrects of an earlier one, and what is only worth knowing.

use super::*;

#[tokio::test]
async fn a_reason_that_changed_meanwhile_is_said_with_the_end_and_makes_no_mail_of_its_own() {
    let mut bench = Bench::new(CONFIG, "first_look: 0s", &[("csrpt", &[])]);
    bench.result("csrpt", Some("ssh has ended"));
    bench.fire("TunnelDown", "csrpt");
    let first = bench.until(60).await;
    assert_eq!(heads(&first), ["FIRING TunnelDown"]);
    assert!(first[0].text.contains("ssh has ended") && !first[0].text.contains("another reason"), "{}", first[0].text);
    bench.until(120).await;
    bench.accept("csrpt", Err(Failure::new(crate::model::Reason::RemoteSilent, "the far end is silent")));
    assert!(bench.until(300).await.is_empty());
    bench.result("csrpt", None);
    bench.end("TunnelDown", "csrpt");
    let last = bench.until(400).await;
    assert_eq!(heads(&last), ["RESOLVED TunnelDown"]);
    let words = last[0].text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("csrpt failed for another reason than before (remote_silent): the far end is silent"), "{words}");
    // The next episode begins anew.
    bench.result("csrpt", Some("ssh has ended"));
    bench.fire("TunnelDown", "csrpt");
    let next = bench.until(1_000).await;
    assert_eq!(heads(&next), ["FIRING TunnelDown"]);
    assert!(!next[0].text.contains("another reason"), "{}", next[0].text);
}

#[tokio::test]
async fn what_is_only_worth_knowing_is_one_mail_a_day_each_once_and_none_where_there_is_nothing() {
    let mut bench = Bench::new(CONFIG, "first_look: 0s", &[("cache", &[]), ("web", &["cache"])]);
    assert!(bench.until(90_000).await.is_empty(), "a day with nothing to tell");
    let info = |bench: &mut Bench, name: &str| {
        let known = alert(name, "cache", bench.now.0 / 1000);
        bench.put(Alert { labels: known.labels.with([("severity", "info")]), ..known });
    };
    info(&mut bench, "Unused");
    info(&mut bench, "Failed");
    // It is no reason for the silence of what depends on its probe.
    bench.fire("Down", "web");
    assert_eq!(heads(&bench.until(90_700).await), ["FIRING Down"]);
    bench.end("Down", "web");
    assert_eq!(heads(&bench.until(90_800).await), ["RESOLVED Down"]);
    bench.end("Failed", "cache");
    bench.restart();
    assert!(bench.until(90_000 + 86_300).await.is_empty());
    let day = bench.until(90_000 + 86_700).await;
    assert_eq!(heads(&day), ["DIGEST"]);
    insta::assert_snapshot!("digest", day[0].text);
    assert!(bench.until(90_000 + 3 * 86_700).await.is_empty(), "what is still so was told");
}

#[tokio::test]
async fn what_new_rules_find_on_their_first_day_is_one_mail_and_then_they_are_as_any_other() {
    let mut bench = Bench::plain();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let before = mute::KnownRules { version: "1".into(), names: names(&["Down"]), ..mute::KnownRules::default() };
    let upgrade = mute::Upgrade::new(Duration::from_secs(86_400), "2", names(&["Down", "Slow", "Old", "Late"]), Some(before), at(0));
    bench.wiring.mutes.lock().expect("is whole").startup.upgrade = upgrade;
    for name in ["Down", "Slow", "Old"] {
        bench.fire(name, "web");
    }
    assert_eq!(heads(&bench.until(3599).await), ["FIRING Down"]);
    let one = bench.until(3700).await;
    assert_eq!(heads(&one), ["NEW RULES"]);
    insta::assert_snapshot!("new_rules", one[0].text);
    for name in ["Down", "Slow", "Old"] {
        bench.end(name, "web");
    }
    assert_eq!(heads(&bench.until(3800).await), ["RESOLVED Old", "RESOLVED Down"]);
    bench.until(86_300).await;
    bench.fire("Late", "web");
    assert!(bench.until(86_399).await.is_empty());
    assert_eq!(heads(&bench.until(86_500).await), ["FIRING Late"], "the day is over");
}
