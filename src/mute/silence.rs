//! Silences: what people do not want to be told for a while, with Alertmanager's semantics.
//!
//! Source: `silence/silence.go` of Alertmanager (`canUpdate`, `Set`, `expire`, `getState`), one deviation: a silence is
//! over at its end, not a moment after.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{Labels, Matcher, Timestamp};
use crate::store::{Record, Table};

/// The most silences that are kept, expired ones included.
pub const MAX_SILENCES: usize = 1000;
/// The most matchers of one silence.
pub const MAX_MATCHERS: usize = 20;
/// The longest comment, author and matcher, in characters each.
pub const MAX_TEXT: usize = 1000;
/// How long an expired silence is kept, as in Alertmanager.
pub const RETENTION: Duration = Duration::from_secs(120 * 3600);

/// Where a silence stands, in Alertmanager's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SilenceState {
    /// It begins later.
    Pending,
    /// It mutes now.
    Active,
    /// It is over.
    Expired,
}

impl fmt::Display for SilenceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Expired => "expired",
        })
    }
}

/// What mutes the alerts that all of its matchers match, from its start to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Silence {
    /// Unique and stable.
    pub id: String,
    /// All must match; at least one of them does not match the empty value.
    #[serde(with = "as_text")]
    pub matchers: Vec<Matcher>,
    /// When it begins.
    pub starts_at: Timestamp,
    /// When it is over.
    pub ends_at: Timestamp,
    /// Who wants it.
    pub created_by: String,
    /// Why.
    pub comment: String,
    /// When it was written down.
    pub created_at: Timestamp,
}

/// Matchers are kept as people write them.
mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::model::Matcher;

    pub(super) fn serialize<S: Serializer>(matchers: &[Matcher], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(matchers.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Matcher>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| Matcher::parse(text).map_err(D::Error::custom)).collect()
    }
}

impl Record for Silence {
    const TABLE: Table = Table::Silence;
    fn key(&self) -> String {
        self.id.clone()
    }
}

impl Silence {
    /// Says where it stands.
    pub fn state(&self, now: Timestamp) -> SilenceState {
        if now >= self.ends_at {
            SilenceState::Expired
        } else if now < self.starts_at {
            SilenceState::Pending
        } else {
            SilenceState::Active
        }
    }

    /// Says whether it is about these labels, whenever it is in force.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.matchers.iter().all(|matcher| matcher.matches(labels))
    }

    /// Says whether it may become `draft` under the same id.
    fn can_become(&self, draft: &Draft, now: Timestamp) -> bool {
        self.matchers == draft.matchers
            && match self.state(now) {
                SilenceState::Active => draft.starts_at == self.starts_at && draft.ends_at >= now,
                SilenceState::Pending => draft.starts_at >= now,
                SilenceState::Expired => false,
            }
    }
}

/// What somebody asks for: a new silence, or another version of one.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The silence that it changes; none for a new one.
    pub id: Option<String>,
    /// All must match.
    pub matchers: Vec<Matcher>,
    /// When it shall begin; the past means now.
    pub starts_at: Timestamp,
    /// When it shall be over.
    pub ends_at: Timestamp,
    /// Who wants it.
    pub created_by: String,
    /// Why.
    pub comment: String,
}

/// Why a silence is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SilenceError {
    /// It would mute everything or nothing.
    #[error("a silence needs from 1 to {MAX_MATCHERS} matchers such as alertname=\"DiskFull\", found {0}")]
    Matchers(usize),
    /// It would mute alerts that do not have the label at all.
    #[error("at least one matcher must not match the empty value: these would mute every alert without the label")]
    MatchesEmpty,
    /// It would be over before it begins, or is over already.
    #[error("the end of a silence must be in the future and after its start")]
    End,
    /// A text is too long.
    #[error("{0} of a silence has at most {MAX_TEXT} characters")]
    TooLong(&'static str),
    /// There are too many.
    #[error("there are {MAX_SILENCES} silences already: expire some with `proctor silence expire ID`")]
    Full,
    /// There is none of that id.
    #[error("there is no silence {0:?}; `proctor silence list` shows them")]
    Unknown(String),
    /// It is over already.
    #[error("silence {0:?} is over already")]
    Expired(String),
}

/// All silences, by id.
#[derive(Clone, Debug, Default)]
pub struct Silences(BTreeMap<String, Silence>);

impl Silences {
    /// Takes over what the store kept.
    pub fn new(kept: Vec<Silence>) -> Self {
        Self(kept.into_iter().take(MAX_SILENCES).map(|silence| (silence.id.clone(), silence)).collect())
    }

    /// Adds or changes a silence. A change that may not be made in place expires the old one and makes another under
    /// `fresh_id`. Returns every record to write: the last is the silence asked for.
    ///
    /// # Errors
    /// See [`SilenceError`]; nothing is changed then.
    pub fn set(&mut self, draft: Draft, fresh_id: impl Into<String>, now: Timestamp) -> Result<Vec<Silence>, SilenceError> {
        check(&draft, now)?;
        let old = match &draft.id {
            Some(id) => Some(self.0.get(id).cloned().ok_or_else(|| SilenceError::Unknown(id.clone()))?),
            None => None,
        };
        let in_place = old.as_ref().is_some_and(|old| old.can_become(&draft, now));
        if !in_place && self.0.len() >= MAX_SILENCES {
            return Err(SilenceError::Full);
        }
        let mut written = Vec::new();
        let id = match old {
            Some(old) if in_place => old.id,
            Some(old) => {
                written.extend(self.expire(&old.id, now).ok());
                fresh_id.into()
            }
            None => fresh_id.into(),
        };
        let starts_at = if in_place { draft.starts_at } else { draft.starts_at.max(now) };
        let Draft { matchers, ends_at, created_by, comment, .. } = draft;
        let silence = Silence { id: id.clone(), matchers, starts_at, ends_at, created_by, comment, created_at: now };
        self.0.insert(id, silence.clone());
        written.push(silence);
        Ok(written)
    }

    /// Ends a silence now. Returns the record to write.
    ///
    /// # Errors
    /// [`SilenceError::Unknown`], [`SilenceError::Expired`].
    pub fn expire(&mut self, id: &str, now: Timestamp) -> Result<Silence, SilenceError> {
        let silence = self.0.get_mut(id).ok_or_else(|| SilenceError::Unknown(id.to_owned()))?;
        match silence.state(now) {
            SilenceState::Expired => return Err(SilenceError::Expired(id.to_owned())),
            SilenceState::Pending => silence.starts_at = now,
            SilenceState::Active => {}
        }
        silence.ends_at = now;
        Ok(silence.clone())
    }

    /// Forgets what has been over for [`RETENTION`]; returns the keys to remove from the store.
    pub fn prune(&mut self, now: Timestamp) -> Vec<String> {
        let (gone, kept) = std::mem::take(&mut self.0).into_iter().partition(|(_, silence)| now.since(silence.ends_at) >= RETENTION);
        self.0 = kept;
        BTreeMap::into_keys(gone).collect()
    }

    /// Iterates over all that are kept, expired ones too.
    pub fn all(&self) -> impl Iterator<Item = &Silence> {
        self.0.values()
    }

    /// Iterates over those that mute now.
    pub fn active(&self, now: Timestamp) -> impl Iterator<Item = &Silence> {
        self.all().filter(move |silence| silence.state(now) == SilenceState::Active)
    }

    /// Returns the silence that mutes these labels now; of several the one that ends last.
    pub fn mutes(&self, labels: &Labels, now: Timestamp) -> Option<&Silence> {
        self.active(now).filter(|silence| silence.matches(labels)).max_by_key(|silence| silence.ends_at)
    }

    /// Returns when the next one begins or ends, so that what it muted is looked at again then.
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        self.all().flat_map(|silence| [silence.starts_at, silence.ends_at]).filter(|moment| *moment > now).min()
    }
}

/// Refuses what would mute by accident.
fn check(draft: &Draft, now: Timestamp) -> Result<(), SilenceError> {
    if draft.matchers.is_empty() || draft.matchers.len() > MAX_MATCHERS {
        return Err(SilenceError::Matchers(draft.matchers.len()));
    }
    if draft.matchers.iter().all(|matcher| matcher.matches_value("")) {
        return Err(SilenceError::MatchesEmpty);
    }
    if draft.ends_at <= now || draft.ends_at <= draft.starts_at {
        return Err(SilenceError::End);
    }
    let long = |text: &str| text.chars().count() > MAX_TEXT;
    if draft.matchers.iter().any(|matcher| long(&matcher.value) || long(&matcher.name)) {
        return Err(SilenceError::TooLong("a matcher"));
    }
    for (what, text) in [("the comment", &draft.comment), ("the author", &draft.created_by)] {
        if long(text) {
            return Err(SilenceError::TooLong(what));
        }
    }
    Ok(())
}
