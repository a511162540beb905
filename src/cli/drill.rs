//! `proctor drill ALERT`: an invented alert walks the whole way (rule, group, mail, repair), and each step is shown. Nothing is
//! stored, sent or done, and no running Proctor is needed.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::Exit;
use super::fold::fold;
use crate::app::{self, Loaded, Source};
use crate::changes::Changes;
use crate::model::decode::unknown;
use crate::model::duration::print;
use crate::model::{Alert, Labels, Matcher, Timestamp};
use crate::notify::dedup::{Reason, Thread};
use crate::notify::message::{self, Head, Section, Story, Voice};
use crate::notify::route::Route;
use crate::notify::{Channel, Mode};
use crate::probe::scheduler::{SUCCESS, Scheduled};
use crate::remediate::{Planned, Tools};
use crate::rules::load::{AlertRule, RuleGroup, RuleKind};
use crate::rules::state::{RuleState, Turn};
use crate::tasks::{self, Tasks};

/// `proctor drill`
#[derive(Debug, Args)]
#[command(after_help = "Example: proctor drill MemcachedDown probe=cache")]
pub(super) struct Drill {
    /// The name of an alert of the rules
    alert: String,
    /// Labels that the invented sample has, such as probe=cache; the default is a probe that the rule is about
    #[arg(value_name = "LABEL=VALUE")]
    labels: Vec<String>,
    /// The value of the rule's expression
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    value: f64,
}

type Failed = Box<dyn Error + Send + Sync>;

pub(super) fn run(source: &Source, drill: &Drill) -> Result<Exit, Failed> {
    let loaded = app::load(source)?;
    let (scheduled, actions) = app::plan_all(&loaded, &Tasks::new(), &Changes::default(), &Tools::of_this_host(None))?;
    super::say(&walk(&loaded, &scheduled, &actions, drill, tasks::now())?)?;
    Ok(Exit::Well)
}

/// What is drilled.
struct Found<'a> {
    group: &'a RuleGroup,
    id: String,
    rule: Arc<AlertRule>,
    expr: &'a str,
    names: BTreeSet<String>,
}

fn walk(loaded: &Loaded, scheduled: &[Scheduled], actions: &[Planned], drill: &Drill, now: Timestamp) -> Result<String, Failed> {
    let found = find(&loaded.rules, &drill.alert)?;
    let sample = sample(loaded, scheduled, &found, &drill.labels)?;
    let hold = found.rule.hold;
    let alert = fire(loaded, &found, &sample, drill.value, now)?;
    let mut text = "A drill: this is invented. Nothing is stored, sent or done.\n".to_owned();
    let every = print(found.group.interval);
    step(
        &mut text,
        "1. The rule",
        &[
            format!(
                "{}, group {}, looked at every {every} and whenever a probe says something new",
                found.group.file.display(),
                found.group.name
            ),
            found.expr.to_owned(),
        ],
    );
    let fires = if hold.is_zero() { "fires at once".to_owned() } else { format!("is pending, and fires after {}", print(hold)) };
    step(&mut text, "2. The alert", &[format!("{}, value {}, {fires}", alert.labels, alert.value)]);

    let config = &loaded.config;
    let Some(notify) = config.notify.as_ref().map(|notify| &notify.value) else {
        step(&mut text, "3. The mail", &["Nobody is mailed: the configuration has no notify section.".to_owned()]);
        return Ok(text);
    };
    let route = Route::of(notify, notify.webhooks.0.iter().map(|(name, _)| name.value.clone()));
    let group = route.group_labels(&alert);
    let to: Vec<String> = route
        .receivers
        .iter()
        .map(|channel| match channel {
            Channel::Email { to } => to.clone(),
            Channel::Webhook { name } => format!("the webhook {name}"),
        })
        .collect();
    let observes = notify.mode == Mode::Observe;
    let mut lines = vec![format!(
        "Alerts with the same {} are one mail: {}",
        notify.group_by.iter().map(|label| label.as_str()).collect::<Vec<_>>().join(", "),
        route.key(&group)
    )];
    lines.push(format!(
        "It is {} {} after it fires, to {}",
        if observes { "noted" } else { "mailed" },
        print(route.group_wait),
        to.join(", ")
    ));
    if observes {
        lines.push("notify.mode is observe: it only stands in the daily mail of what would have been mailed".to_owned());
    }
    step(&mut text, "3. The group", &lines);

    let mut lines =
        vec!["Not while a silence matches it, a hold is in force, or somebody acknowledged it (`proctor silence list`)".to_owned()];
    let needs = alert.probe().and_then(|probe| config.probes.0.iter().find(|(name, _)| name.value == probe));
    let needs: Vec<&str> = needs.map(|(_, probe)| probe.needs().collect()).unwrap_or_default();
    if !needs.is_empty() {
        lines.push(format!("While {} fails, it is listed in that mail, and not mailed by itself (depends_on)", needs.join(" or ")));
    }
    if !config.maintenance.files.is_empty() && !crate::mute::about_proctor(&alert) {
        let files: Vec<String> = config.maintenance.files.iter().map(|file| file.display().to_string()).collect();
        lines.push(format!("Not while {} exists: the site is down on purpose", files.join(" or ")));
    }
    step(&mut text, "4. When it is not mailed", &lines);

    let (lines, planned) = repairs(actions, &alert, observes);
    let voice = Voice::new(notify, &config.site.name, config.site.external_url.clone());
    step(&mut text, "5. The mail", &[]);
    let told = alert.fired_at.unwrap_or(now) + route.group_wait;
    text.push_str(&mail(&voice, &route, &group, &alert, planned, told));
    step(&mut text, "6. The repair", &lines);
    step(
        &mut text,
        "7. The end",
        &[
            format!(
                "{} after its expression no longer holds, a reply in the same thread says RESOLVED, and whether a repair helped",
                print(route.resolve_wait)
            ),
            format!("While it lasts, a reminder comes every {}", print(route.repeat_interval)),
        ],
    );
    Ok(text)
}

fn step(text: &mut String, title: &str, lines: &[String]) {
    text.push_str(&format!("\n{title}\n"));
    lines.iter().for_each(|line| text.push_str(&fold("  ", line)));
}

fn find<'a>(groups: &'a [RuleGroup], name: &str) -> Result<Found<'a>, String> {
    for group in groups {
        for (index, rule) in group.rules.iter().enumerate() {
            if let RuleKind::Alerting(alert) = &rule.kind
                && alert.name == name
            {
                let (id, names) = (group.rule_id(index), rule.expr.metric_names());
                return Ok(Found { group, id, rule: alert.clone(), expr: rule.expr.text(), names });
            }
        }
    }
    let names: Vec<&str> = groups.iter().flat_map(RuleGroup::alert_names).collect();
    Err(unknown("alert", name, &names))
}

/// Makes the sample that the rule's expression would give.
fn sample(loaded: &Loaded, scheduled: &[Scheduled], found: &Found<'_>, given: &[String]) -> Result<Labels, String> {
    let mut labels = Vec::new();
    for text in given {
        let (name, value) = text.split_once('=').ok_or_else(|| format!("expected a label such as probe=cache, found {text:?}"))?;
        // The same words as in a matcher, so that a name that none can have is refused.
        Matcher::parse(&format!("{name}=x")).map_err(|error| format!("{text:?}: {error}"))?;
        labels.push((name.to_owned(), value.to_owned()));
    }
    let named = labels.iter().find(|(name, _)| name == "probe").map(|(_, value)| value.clone());
    let about = |one: &&Scheduled| match &named {
        Some(name) => *name == *one.target.probe,
        None => {
            one.probe.up().is_some_and(|up| found.names.contains(up.name))
                || found.names.iter().any(|name| name.starts_with(one.target.kind))
        }
    };
    let one = scheduled.iter().find(about).or_else(|| {
        let any = named.is_none() && found.names.contains(SUCCESS.name);
        scheduled.first().filter(|_| any)
    });
    if let (Some(name), None) = (&named, one) {
        let names: Vec<&str> = scheduled.iter().map(|one| &*one.target.probe).collect();
        return Err(unknown("probe", name, &names));
    }
    if let Some(one) = one {
        let own = [Some(("probe", one.target.probe.to_string())), one.target.target.as_deref().map(|target| ("target", target.to_owned()))];
        for (name, value) in own.into_iter().flatten() {
            if !labels.iter().any(|(given, _)| given == name) {
                labels.push((name.to_owned(), value));
            }
        }
    }
    Ok(loaded.config.site.labels.with(labels))
}

/// Lets the rule's own state machine fire.
fn fire(loaded: &Loaded, found: &Found<'_>, sample: &Labels, value: f64, now: Timestamp) -> Result<Alert, Failed> {
    let mut state = RuleState::new(found.rule.clone(), found.id.clone());
    let (site, url) = (&loaded.config.site.labels, loaded.config.site.external_url.as_deref().unwrap_or(""));
    for at in [now - found.rule.hold, now] {
        let turn = Turn { now: at, ready: true, settled: true, limit: 0, external_labels: site, external_url: url };
        state.step(&[(sample.clone(), value)], &turn)?;
    }
    let fired = state.alerts().next().filter(|alert| alert.is_firing()).cloned();
    fired.ok_or_else(|| "the rule did not fire: this is a defect of Proctor".into())
}

/// Says what would be done, for here and for the mail.
fn repairs(actions: &[Planned], alert: &Alert, observes: bool) -> (Vec<String>, Vec<String>) {
    let (mut lines, mut told) = (Vec::new(), Vec::new());
    for action in actions.iter().filter(|action| action.matchers.iter().all(|matcher| matcher.matches(&alert.labels))) {
        let terms = &action.terms;
        let what = format!("{} {} ({})", terms.verb, terms.object, terms.name);
        let how = match (terms.acts, observes) {
            (true, _) => "is done",
            (false, true) => "is only said, since notify.mode is observe",
            (false, false) => "is only said, since its mode is observe",
        };
        lines.push(format!("{what} {how}, once the alert has fired for {}", print(terms.firing_for)));
        let verify = if action.verify.is_empty() { "the alert's own probe".to_owned() } else { action.verify.join(", ") };
        lines.push(format!(
            "then {verify} must succeed within {}; at most {} attempts in {}, at least {} apart",
            print(action.within),
            terms.attempts,
            print(terms.per),
            print(terms.cooldown)
        ));
        told.push(format!("{}{what}", if terms.acts { "" } else { "only observing: would " }));
    }
    if lines.is_empty() {
        lines.push("No action is for it.".to_owned());
    }
    (lines, told)
}

/// Writes the mail as it would be, its text part.
fn mail(voice: &Voice, route: &Route, group: &Labels, alert: &Alert, planned: Vec<String>, now: Timestamp) -> String {
    let key = route.key(group);
    let story = Story {
        reason: Reason::First,
        group: &key,
        labels: group,
        receiver: &route.name,
        firing: vec![alert],
        fresh: BTreeSet::from([alert.fingerprint()]),
        ended: Vec::new(),
        affected: Vec::new(),
        because: Vec::new(),
        found: Vec::new(),
        planned,
        changes: Section::default(),
        notes: vec!["This is a drill.".to_owned()],
        next: Some(now + route.repeat_interval),
        degraded: None,
        now: now.max(alert.active_at + Duration::from_secs(1)),
    };
    let thread = Thread { subject: message::subject(voice, &[alert]), ..Thread::default() };
    let head = Head {
        message_id: voice.message_id("drill", 0, now),
        thread: &thread,
        subject: thread.subject.clone(),
        name: alert.name(),
        severity: alert.labels.get("severity").unwrap_or(""),
        group: &key,
        episode: "drill",
        reason: "drill",
        payload: serde_json::Value::Null,
    };
    let message = story.letter(voice).message(voice, head);
    let lines = [format!("Subject: {}", message.subject), String::new()].into_iter().chain(message.text.lines().map(str::to_owned));
    lines.map(|line| if line.is_empty() { "  |\n".to_owned() } else { format!("  | {line}\n") }).collect()
}
