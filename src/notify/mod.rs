//! Telling people: route → group → mute → dedup → outbox → mail, webhook; and Alertmanager, ungrouped.

pub mod bulletin;
pub mod config;
pub mod dedup;
pub mod dispatch;
pub mod message;
pub mod route;

pub use config::{Mailbox, Mode, NotifyConfig, OneLine};
pub mod email;
pub mod outbox;
pub mod webhook;

use serde::{Deserialize, Serialize};

use crate::model::Timestamp;
use crate::store::{Record, Table};

/// A message as it will be sent: written once, when it is queued, so that a retry is the same to the letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Without angle brackets: `<episode.sequence.random>@<domain>`; the same for every recipient and every retry.
    pub message_id: String,
    /// The first message of the thread.
    pub in_reply_to: Option<String>,
    /// The thread: root, then the one before.
    pub references: Vec<String>,
    /// One line, constant within an episode.
    pub subject: String,
    /// The text part.
    pub text: String,
    /// The HTML part.
    pub html: String,
    /// Further headers, such as `X-Alert-State`: names are ours, values are cleaned.
    pub headers: Vec<(String, String)>,
    /// Whether it is about something critical that fires: then it goes out as important.
    pub important: bool,
    /// The same for machines, in Alertmanager's webhook format version 4.
    pub payload: serde_json::Value,
}

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// One ADMIN: one envelope per recipient, so that one bad address loses nothing for the others.
    Email {
        /// The address with an optional name: `Sysadmin <sysadmin@example.org>`.
        to: String,
    },
    /// A webhook of the configuration, by name.
    Webhook {
        /// Its name.
        name: String,
    },
}

/// What may be dropped first when the outbox is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// A reminder or digest.
    Reminder,
    /// An end.
    Resolved,
    /// A beginning: never dropped.
    Firing,
}

/// One message to one recipient, until it is delivered or given up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// Unique and stable: also the idempotency key of a webhook.
    pub id: String,
    /// To whom.
    pub channel: Channel,
    /// What.
    pub message: Message,
    /// How much it matters.
    pub weight: Weight,
    /// When it was queued.
    pub queued_at: Timestamp,
    /// How often it was tried.
    pub attempts: u32,
    /// Not before this moment.
    pub next_at: Timestamp,
    /// What went wrong last, for people.
    pub last_error: Option<String>,
}

impl Record for Delivery {
    const TABLE: Table = Table::Delivery;
    fn key(&self) -> String {
        self.id.clone()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Alerts made by hand.

    use crate::model::{Alert, AlertState, Labels, Timestamp};

    /// An alert that fires since `seconds`, and became active one second before.
    pub(crate) fn alert(name: &str, probe: &str, seconds: i64) -> Alert {
        Alert {
            labels: Labels::new([("alertname", name), ("probe", probe), ("severity", "critical")]),
            annotations: Labels::new([("summary", format!("{probe} does not answer"))]),
            state: AlertState::Firing,
            value: 0.0,
            active_at: Timestamp::from_secs(seconds - 1),
            fired_at: Some(Timestamp::from_secs(seconds)),
            resolved_at: None,
            keep_firing_since: None,
            rule: format!("g/{name}/{probe}"),
            evidence: Vec::new(),
            attempts: Vec::new(),
        }
    }
}
