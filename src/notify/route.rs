//! Which alerts make one mail, and whom it goes to. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Channel, NotifyConfig};
use crate::model::{Alert, Labels, Matcher};

/// One way for alerts: which of them, how they are grouped, when they are told, and to whom. The first that matches takes
/// an alert; the last one takes all that is left.
#[derive(Clone, Debug)]
pub struct Route {
    /// The receiver's name in the notification log and the webhook's payload.
    pub name: String,
    /// All of them must match; none: every alert.
    pub matchers: Vec<Matcher>,
    /// The labels whose values make a group.
    pub group_by: Vec<String>,
    /// How long the first mail waits for more.
    pub group_wait: Duration,
    /// How long the mail about the end waits.
    pub resolve_wait: Duration,
    /// How long a group that was mailed waits before it mails what is new in it.
    pub group_interval: Duration,
    /// When what still fires is mailed again.
    pub repeat_interval: Duration,
    /// To whom: every ADMIN and every webhook.
    pub receivers: Vec<Channel>,
}

impl Route {
    /// Builds the one route of a configuration without a tree: everything, to every ADMIN and the named webhooks.
    pub fn of(config: &NotifyConfig, webhooks: impl IntoIterator<Item = String>) -> Self {
        let mails = config.admins.iter().map(|admin| Channel::Email { to: admin.value.to_string() });
        Self {
            name: "admins".to_owned(),
            matchers: Vec::new(),
            group_by: config.group_by.iter().map(|label| label.value.clone()).collect(),
            group_wait: config.group_wait,
            resolve_wait: config.resolve_wait,
            group_interval: config.group_interval,
            repeat_interval: config.repeat_interval,
            receivers: mails.chain(webhooks.into_iter().map(|name| Channel::Webhook { name })).collect(),
        }
    }

    /// Returns the labels of the group that an alert belongs to.
    pub fn group_labels(&self, alert: &Alert) -> Labels {
        let labels = alert.labels.without(|name| !self.group_by.iter().any(|by| by == name));
        if labels.is_empty() { alert.labels.without(|name| name != "alertname") } else { labels }
    }

    /// Returns the name of a group: the same after every restart.
    pub fn key(&self, labels: &Labels) -> String {
        format!("{}:{labels}", self.name)
    }
}

/// The alerts that make one mail.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// By which route.
    pub route: &'a Route,
    /// What they have in common.
    pub labels: Labels,
    /// In the order of their identities.
    pub alerts: Vec<&'a Alert>,
}

/// Sorts alerts into groups, by the groups' keys.
pub fn group<'a>(routes: &'a [Route], alerts: impl IntoIterator<Item = &'a Alert>) -> BTreeMap<String, Group<'a>> {
    let mut groups = BTreeMap::new();
    for alert in alerts {
        let Some(route) = routes.iter().find(|route| route.matchers.iter().all(|matcher| matcher.matches(&alert.labels))) else { continue };
        let labels = route.group_labels(alert);
        groups.entry(route.key(&labels)).or_insert_with(|| Group { route, labels, alerts: Vec::new() }).alerts.push(alert);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;
    use crate::notify::testing::alert;

    #[test]
    fn alerts_of_one_probe_are_one_mail_and_one_without_a_probe_is_grouped_by_its_name() {
        let config: NotifyConfig = from_text("f", "admins: [A <a@x.org>, b@x.org]\nsubject_prefix: x").expect("is right");
        let everything = Route::of(&config, ["ops".to_owned()]);
        let special = Route {
            name: "db".into(),
            matchers: vec![Matcher::parse("probe=~db.*").expect("is one")],
            group_by: vec!["alertname".into(), "probe".into()],
            ..everything.clone()
        };
        let alerts = [
            alert("Down", "cache", 0),
            alert("Slow", "cache", 0),
            alert("Down", "web", 0),
            alert("CannotSee", "", 0),
            alert("Down", "db1", 0),
            alert("Slow", "db1", 0),
        ];
        let routes = [special, everything];
        let groups: Vec<_> = group(&routes, &alerts).into_iter().map(|(key, group)| (key, group.alerts.len())).collect();
        let expected = [
            (r#"admins:{alertname="CannotSee"}"#, 1),
            (r#"admins:{probe="cache"}"#, 2),
            (r#"admins:{probe="web"}"#, 1),
            (r#"db:{alertname="Down", probe="db1"}"#, 1),
            (r#"db:{alertname="Slow", probe="db1"}"#, 1),
        ];
        assert_eq!(groups, expected.map(|(key, count)| (key.to_owned(), count)));
        assert_eq!(routes[1].receivers.len(), 3);
    }
}
