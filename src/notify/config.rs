//! `notify` in the configuration: who is told, and how often.

use std::fmt;
use std::time::Duration;

use crate::model::decode::{Decode, Named, Spanned, mismatch};
use crate::model::yaml::Node;
use crate::model::{Position, Problems};

/// Whether mails are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Mails are sent as they become due.
    #[default]
    Send,
    /// Everything is decided as if, but only one daily mail says what would have been sent and done.
    Observe,
}

impl Decode for Mode {
    const EXPECTED: &'static str = "send or observe";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        match String::decode(node, problems)?.as_str() {
            "send" => Some(Self::Send),
            "observe" => Some(Self::Observe),
            _ => {
                mismatch(node, Self::EXPECTED, problems);
                None
            }
        }
    }
}

/// An address with an optional name, as Django's ADMINS write it: `a@x.org` or `Name <a@x.org>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox(lettre::message::Mailbox);

impl Mailbox {
    /// Reads an address; a control character is refused, since it could begin a header of its own, and so is an address
    /// that the outbox could not put into an envelope.
    pub fn parse(text: &str) -> Option<Self> {
        let clean = !text.chars().any(char::is_control) && text.len() <= 320;
        let mailbox = clean.then(|| text.trim().parse().ok().map(Self)).flatten()?;
        super::email::Address::parse(&mailbox.to_string()).is_some().then_some(mailbox)
    }

    /// Returns the part behind the `@`.
    pub fn domain(&self) -> &str {
        self.0.email.domain()
    }

    /// Says whether both are the same box: the part behind the `@` does not mind case.
    pub fn same_box(&self, other: &Self) -> bool {
        self.0.email.user() == other.0.email.user() && self.domain().eq_ignore_ascii_case(other.domain())
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Decode for Mailbox {
    const EXPECTED: &'static str = "an address such as \"Sysadmin <sysadmin@example.org>\"";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let text = String::decode(node, problems)?;
        let mailbox = Self::parse(&text);
        if mailbox.is_none() {
            mismatch(node, Self::EXPECTED, problems);
        }
        mailbox
    }
}

/// A text without control characters: it goes into a header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OneLine(pub String);

impl Decode for OneLine {
    const EXPECTED: &'static str = "one line of at most 100 characters";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        let text = String::decode(node, problems)?;
        if text.chars().any(char::is_control) || text.chars().count() > 100 {
            mismatch(node, Self::EXPECTED, problems);
            return None;
        }
        Some(Self(text))
    }
}

crate::config_struct! {
    /// `notify`: who is told, and how often.
    pub struct NotifyConfig {
        /// `send`, or `observe`: decide everything, but send only one daily mail that says what would have been sent and done.
        mode: Mode = "send",
        /// Who gets every mail: Django's ADMINS. Each is sent an envelope of its own.
        admins: Vec<Spanned<Mailbox>> = "[]",
        /// Who the mails are from: Django's SERVER_EMAIL. The part behind the @ is used in the Message-IDs too.
        from: Mailbox = "root@localhost",
        /// What every subject begins with, with its trailing space: Django's EMAIL_SUBJECT_PREFIX.
        subject_prefix: OneLine = "\"\"",
        /// The labels whose values make one mail of several alerts; an alert with none of them is grouped by its name.
        group_by: Vec<Spanned<String>> = "[probe]",
        /// How long the first mail of a group waits for more alerts of the same group.
        group_wait: Duration = "5s",
        /// How long the mail about the end waits, so that what comes back at once is not told as ended.
        resolve_wait: Duration = "15s",
        /// How long a group that was mailed waits before it mails what is new in it. It also is the unit of damping: an alert
        /// that changed four times within an hour is mailed at most once in this time, then in twice, four times it, up to 1h.
        group_interval: Duration = "5m",
        /// When a mail about what still fires is repeated.
        repeat_interval: Duration = "4h",
        /// The most alerts that one mail shows; of the others it says how many they are.
        group_limit: usize = "20",
        /// The relay that takes the mails; without one they wait in the outbox.
        smtp: Option<super::email::SmtpConfig>,
        /// Webhooks that are told the same as JSON, by name.
        webhooks: Named<super::webhook::WebhookConfig> = "{}",
    }
}

impl NotifyConfig {
    /// Tells nobody: what holds where the configuration has no such section.
    pub fn nobody() -> Self {
        crate::model::decode::from_text("", "{}").expect("every key has a default: a test sees to it")
    }

    /// Checks what one key alone does not show; `reachable` says whether a webhook is configured. `at` is where the section
    /// stands.
    pub fn check(&self, at: Position, reachable: bool, problems: &mut Problems) {
        if self.mode == Mode::Send && self.admins.is_empty() && !reachable {
            problems.push(at, "notify.admins: expected at least one address, found none: nobody would be told");
        }
        for (index, admin) in self.admins.iter().enumerate() {
            if self.admins[..index].iter().any(|other| other.same_box(admin)) {
                problems.push(admin.at, format!("{} stands in admins twice", admin.value));
            }
        }
        if self.admins.len() > 50 {
            problems.push(at, format!("notify.admins: expected at most 50, found {}: use a mailing list", self.admins.len()));
        }
        for label in &self.group_by {
            let valid = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if label.is_empty() || !label.chars().all(valid) || label.starts_with(|c: char| c.is_ascii_digit()) {
                problems.push(label.at, format!("group_by: expected a label name, found {:?}", label.value));
            }
        }
        if !(1..=100).contains(&self.group_limit) {
            problems.push(at, format!("notify.group_limit: expected 1 to 100, found {}", self.group_limit));
        }
        if self.repeat_interval < self.group_interval {
            problems.push(at, "notify.repeat_interval: expected at least group_interval, found less: each mail would be a reminder");
        }
        if let Some(Err(why)) = self.smtp.as_ref().map(super::email::SmtpConfig::check) {
            problems.push(at, format!("notify.smtp: {why}"));
        }
        for (name, webhook) in &self.webhooks.0 {
            if let Err(why) = webhook.check() {
                problems.push(name.at, format!("webhook {:?}: {why}", name.value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    fn mistakes(text: &str) -> Vec<String> {
        let config: NotifyConfig = match from_text("f", text) {
            Ok(config) => config,
            Err(problems) => return problems.iter().map(ToString::to_string).collect(),
        };
        let mut problems = Problems::new("f");
        config.check(Position { line: 1, col: 1 }, false, &mut problems);
        problems.into_sorted().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_are_read_as_django_writes_them() {
        for text in ["a@x.org", "Sys Admin <a@x.org>", "\"Admin, Sys\" <a@x.org>", "root@localhost", "Jürgen <j@x.org>"] {
            let mailbox = Mailbox::parse(text).expect(text);
            assert_eq!(Mailbox::parse(&mailbox.to_string()), Some(mailbox), "{text}");
        }
        for text in ["", "a", "a@", "@x", "a@x\r\nBcc: b@y", "A\n <a@x>", "a@x, b@x", "a b@x", "<a@x", "jürgen@x.org", "\"a b\"@x.org"] {
            assert_eq!(Mailbox::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn without_a_section_nobody_is_told() {
        assert!(NotifyConfig::nobody().admins.is_empty());
    }

    #[test]
    fn what_would_reach_nobody_or_twice_is_refused() {
        assert!(mistakes("admins: [a@x.org]").is_empty());
        assert!(mistakes("mode: observe").is_empty());
        assert!(mistakes("{}")[0].contains("nobody would be told"));
        assert!(mistakes("admins: [a@x.org, A <a@X.org>]")[0].starts_with("f:1:19: "), "{:?}", mistakes("admins: [a@x.org, A <a@X.org>]"));
        assert!(mistakes("admins: [\"a@x\\nBcc: b@y\"]")[0].contains("expected an address"));
        assert!(mistakes("admins: [a@x]\nsubject_prefix: \"a\\r\\nBcc: x\"")[0].contains("expected one line"));
        assert!(mistakes("admins: [a@x]\nmode: sned\ngroup_wait: soon").len() == 2);
        let clear = "admins: [a@x]\nsmtp: {host: mail.x.org, username: u, password_file: /p}\nwebhooks: {chat: {}}";
        assert!(
            mistakes(clear)[0].contains("without encryption") && mistakes(clear)[1].starts_with("f:3:12: webhook"),
            "{:?}",
            mistakes(clear)
        );
        assert!(mistakes("admins: [a@x]\ngroup_by: [a b]\ngroup_limit: 0\nrepeat_interval: 1m").len() == 3);
    }
}
