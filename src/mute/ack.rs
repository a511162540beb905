//! Acknowledgements: somebody has seen an alert and takes care of it, so that it is not said again while it lasts.
//!
//! One is for one episode: the same alert that fires again later is said again.

use serde::{Deserialize, Serialize};

use crate::model::{Alert, Timestamp, one_line};
use crate::store::{Record, Table};

/// The most acknowledgements at once.
pub const MAX_ACKS: usize = 1000;
/// The longest comment and name, in characters each.
pub const MAX_TEXT: usize = 500;

/// Somebody takes care of one episode of an alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Of which episode ([`Alert::episode`]).
    pub episode: String,
    /// Who.
    pub by: String,
    /// Since when.
    pub at: Timestamp,
    /// What people say to it; may be empty.
    pub comment: String,
}

impl Record for Ack {
    const TABLE: Table = Table::Meta;
    const PREFIX: &'static str = "ack/";
    fn key(&self) -> String {
        format!("{}{}", Self::PREFIX, self.episode)
    }
}

/// Why an acknowledgement is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// It does not fire.
    #[error("it does not fire yet: only what fires can be acknowledged")]
    NotFiring,
    /// There are too many.
    #[error("there are {MAX_ACKS} acknowledgements already: use a silence for many alerts")]
    Full,
}

/// All acknowledgements.
#[derive(Clone, Debug, Default)]
pub struct Acks(Vec<Ack>);

impl Acks {
    /// Takes over what the store kept.
    pub fn new(kept: Vec<Ack>) -> Self {
        Self(kept.into_iter().take(MAX_ACKS).collect())
    }

    /// Acknowledges what fires. Returns the record to write; a second one for the same episode takes its place.
    ///
    /// # Errors
    /// See [`AckError`].
    pub fn acknowledge(&self, alert: &Alert, by: &str, comment: &str, now: Timestamp) -> Result<Ack, AckError> {
        if !alert.is_firing() {
            return Err(AckError::NotFiring);
        }
        if self.0.len() >= MAX_ACKS && self.of(alert).is_none() {
            return Err(AckError::Full);
        }
        Ok(Ack { episode: alert.episode(), by: one_line(by, MAX_TEXT), at: now, comment: one_line(comment, MAX_TEXT) })
    }

    /// Returns the one of this episode.
    pub fn of(&self, alert: &Alert) -> Option<&Ack> {
        let episode = alert.episode();
        self.0.iter().find(|ack| ack.episode == episode)
    }

    /// Returns those of episodes that are over, which may be forgotten.
    pub fn over<'a>(&'a self, alerts: &[Alert]) -> impl Iterator<Item = &'a Ack> {
        let firing: std::collections::BTreeSet<String> = alerts.iter().filter(|alert| alert.is_firing()).map(Alert::episode).collect();
        self.0.iter().filter(move |ack| !firing.contains(&ack.episode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{AlertState, Labels};

    #[test]
    fn an_acknowledgement_is_for_one_episode_of_what_fires() {
        let alert = Alert {
            labels: Labels::new([("alertname", "Down")]),
            annotations: Labels::default(),
            state: AlertState::Firing,
            value: 0.0,
            active_at: Timestamp(1),
            fired_at: Some(Timestamp(2)),
            resolved_at: None,
            keep_firing_since: None,
            rule: "g/Down".into(),
            evidence: Vec::new(),
            attempts: Vec::new(),
        };
        let pending = Alert { state: AlertState::Pending, fired_at: None, ..alert.clone() };
        assert_eq!(Acks::default().acknowledge(&pending, "ann", "", Timestamp(3)), Err(AckError::NotFiring));
        let ack = Acks::default().acknowledge(&alert, "ann", "on\nit", Timestamp(3)).expect("it fires");
        assert_eq!((ack.by.as_str(), ack.comment.as_str()), ("ann", "on it"));
        let acks = Acks::new(vec![ack.clone()]);
        assert_eq!(acks.of(&alert), Some(&ack));
        let again = Alert { fired_at: Some(Timestamp(9)), ..alert.clone() };
        assert_eq!(acks.of(&again), None, "what fires again is another episode");
        assert_eq!(acks.over(std::slice::from_ref(&alert)).count(), 0);
        assert_eq!(acks.over(&[again]).collect::<Vec<_>>(), [&ack]);
        let full = Acks::new((0..=MAX_ACKS).map(|n| Ack { episode: n.to_string(), ..ack.clone() }).collect());
        assert_eq!(full.acknowledge(&alert, "ann", "", Timestamp(3)), Err(AckError::Full));
    }
}
