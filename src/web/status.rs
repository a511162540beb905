//! The status page: whether it is fine, what is wrong and why, and every target with its last answers.
//!
//! One page without scripts and without anything from elsewhere. It is rendered at most once a second, and no list of it
//! is longer than its bound: what is left out is counted.

mod draw;

use std::sync::LazyLock;
use std::time::Duration;

use askama::Template;
use axum::http::HeaderValue;
use sha2::{Digest, Sha256};

use crate::model::Timestamp;
use crate::model::duration::print_measured;
use crate::snapshot::history::{CELLS, Cell};

/// How often the page renews itself, in seconds.
const RENEW: u32 = 15;
/// The looks of the page; it stands in the page, and its hash in the policy.
const STYLE: &str = include_str!("../../templates/status.css");

/// What the page may do: nothing but its own looks, its own icon and its own forms. The hash is that of [`STYLE`].
pub(super) static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    use base64::Engine as _;
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    );
    HeaderValue::try_from(policy).ok()
});

/// How something stands, by colour and sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tone {
    /// It is wrong.
    Bad,
    /// It is not known, or to be looked at.
    Unsure,
    /// It is well.
    Good,
    /// To be known, no more.
    #[default]
    Plain,
}

impl Tone {
    /// Returns the class of the style.
    fn class(self) -> &'static str {
        match self {
            Self::Bad => "bad",
            Self::Unsure => "unsure",
            Self::Good => "good",
            Self::Plain => "plain",
        }
    }

    /// Returns the sign, since colours alone do not tell everybody.
    fn sign(self) -> &'static str {
        match self {
            Self::Bad => "✕",
            Self::Unsure => "?",
            Self::Good => "✓",
            Self::Plain => "·",
        }
    }
}

/// A bounded list, and how many it leaves out.
#[derive(Clone, Debug)]
pub struct Rows<T> {
    /// The rows.
    pub shown: Vec<T>,
    /// How many more there are.
    pub more: usize,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self { shown: Vec::new(), more: 0 }
    }
}

impl<T> Rows<T> {
    /// Keeps the first `most`.
    pub fn of(mut all: Vec<T>, most: usize) -> Self {
        let more = all.len().saturating_sub(most);
        all.truncate(most);
        Self { shown: all, more }
    }

    /// Says whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.shown.is_empty()
    }
}

/// One target.
#[derive(Clone, Debug)]
pub struct TargetRow {
    /// Which of its probe's, or the probe where it has only one.
    pub name: String,
    /// How it stands.
    pub tone: Tone,
    /// The reason and the detail of a failure, or what could not be seen.
    pub detail: String,
    /// How long the last run took.
    pub took: Option<Duration>,
    /// Since when it is so.
    pub since: Option<Timestamp>,
    /// Whether it has answered, or failed to.
    pub asked: bool,
    /// When it was last asked, where that is long ago.
    pub at: Option<Timestamp>,
    /// Its last answers.
    pub history: [Cell; CELLS],
    /// How much time they show.
    pub shows: Duration,
}

/// The targets of one probe, or of one kind where there are very many probes.
#[derive(Clone, Debug)]
pub struct Group {
    /// The probe.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// The worst of its targets.
    pub tone: Tone,
    /// How many are well, and how many in all.
    pub well: usize,
    /// How many there are.
    pub count: usize,
    /// How many fail.
    pub failing: usize,
    /// The answers of all.
    pub history: [Cell; CELLS],
    /// How much time they show.
    pub shows: Duration,
    /// The targets, failing first.
    pub targets: Rows<TargetRow>,
}

/// One alert.
#[derive(Clone, Debug)]
pub struct AlertRow {
    /// Its name.
    pub name: String,
    /// Its severity, if it has one.
    pub severity: String,
    /// What it says.
    pub summary: String,
    /// Since when it fires; nothing while it is pending.
    pub since: Option<Timestamp>,
    /// When it will fire, or whether it was mailed, or why not; who takes care of it.
    pub told: String,
    /// What was done about it, newest last.
    pub done: Vec<String>,
    /// What tells its place on the page from others.
    pub id: String,
    /// Its labels, as matchers.
    pub matchers: Vec<String>,
}

/// One thing that is wrong, with what it takes down.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// The probe, or the alert where it is about none.
    pub title: String,
    /// The kind of the probe.
    pub kind: &'static str,
    /// Since when.
    pub since: Timestamp,
    /// Its targets that fail.
    pub targets: Rows<TargetRow>,
    /// Its alerts that fire.
    pub alerts: Rows<AlertRow>,
    /// Probes that need it and fail too: name, and what they say.
    pub wake: Rows<(String, String)>,
}

/// A sentence with its tone.
#[derive(Clone, Debug, Default)]
pub struct Notice {
    /// How it is meant.
    pub tone: Tone,
    /// What it says.
    pub text: String,
    /// What more there is to it; may be empty.
    pub detail: String,
    /// What ends it.
    pub button: Option<Button>,
}

impl Notice {
    /// A sentence.
    pub fn new(tone: Tone, text: impl Into<String>) -> Self {
        Self { tone, text: text.into(), ..Self::default() }
    }
}

/// What can be done about something at once, by who may change something.
#[derive(Clone, Debug)]
pub struct Button {
    /// What is done, as `/change` takes it.
    pub what: &'static str,
    /// To what.
    pub id: String,
    /// What stands on it.
    pub label: &'static str,
}

/// Something that happened, or waits.
#[derive(Clone, Debug)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// How it stands.
    pub tone: Tone,
    /// What.
    pub what: String,
    /// What more is known; may be empty.
    pub detail: String,
}

/// One of the site's own checks.
#[derive(Clone, Debug)]
pub struct CheckRow {
    /// What was checked.
    pub name: String,
    /// Who says it.
    pub probe: String,
    /// Whether it is well.
    pub tone: Tone,
    /// What was found.
    pub text: String,
    /// When.
    pub at: Timestamp,
}

/// Everything the page shows.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The site's name.
    pub site: String,
    /// Whether it is fine.
    pub verdict: Notice,
    /// Things to know first: state degraded, nothing configured, maintenance, hold, mails that cannot leave.
    pub notices: Vec<Notice>,
    /// What is wrong now, the root of it first.
    pub troubles: Rows<Trouble>,
    /// What is about to go wrong.
    pub coming: Rows<Notice>,
    /// Mails that are held back or wait.
    pub mails: Rows<Event>,
    /// What the actions did.
    pub actions: Rows<Event>,
    /// Whether actions are paused, and what they may.
    pub repair: Notice,
    /// What changed on the host.
    pub changes: Rows<Event>,
    /// The site's own checks.
    pub checks: Rows<CheckRow>,
    /// All targets, failing first.
    pub groups: Rows<Group>,
    /// How many targets there are.
    pub targets: usize,
}

#[derive(Template)]
#[template(path = "status.html")]
struct Page<'a> {
    status: &'a Status,
    now: Timestamp,
    /// Whether it renews itself.
    renews: bool,
    /// Whether who reads it may change something.
    changes: bool,
    version: &'static str,
    style: &'static str,
}

impl Page<'_> {
    /// Says how long ago a moment is, with the exact one in a title: made of numbers only.
    fn ago(&self, at: &Timestamp) -> String {
        let age = Duration::from_secs(self.now.since(*at).as_secs());
        let text = if age.is_zero() { "now".to_owned() } else { print_measured(age) };
        format!("<time datetime=\"{at}\" title=\"{at}\">{text}</time>")
    }

    fn took_for(&self, took: &Duration) -> String {
        print_measured(*took)
    }

    /// Draws the last answers: made of numbers only.
    fn history(&self, cells: &[Cell; CELLS], shows: &Duration) -> String {
        draw::history(cells, *shows)
    }

    /// Says when the page was made.
    fn as_of(&self) -> String {
        self.now.to_jiff().strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
    }

    /// Says whether there is anything beside what is wrong and the targets.
    fn has_side(&self) -> bool {
        let Status { coming, mails, actions, changes, repair, .. } = self.status;
        !(coming.is_empty() && mails.is_empty() && actions.is_empty() && changes.is_empty() && repair.text.is_empty())
    }

    fn icon(&self) -> &'static str {
        match self.status.verdict.tone {
            Tone::Bad => "%23d64545",
            Tone::Good => "%233a9d6e",
            Tone::Unsure | Tone::Plain => "%23c98a1b",
        }
    }
}

impl AlertRow {
    /// Returns the class of the severity: only what the style knows.
    fn severity_class(&self) -> &'static str {
        match self.severity.as_str() {
            "critical" => "critical",
            "warning" => "warning",
            _ => "",
        }
    }
}

impl Status {
    /// Renders the page; every text is escaped by askama. One that is to be read at leisure does not renew itself, so that
    /// only there something is typed. It has buttons for those who may change something.
    ///
    /// # Errors
    /// None that a page can have.
    pub fn render(&self, now: Timestamp, renews: bool, changes: bool) -> Result<String, askama::Error> {
        Page { status: self, now, renews, changes, version: env!("CARGO_PKG_VERSION"), style: STYLE }.render()
    }
}

#[derive(Template)]
#[template(path = "refused.html")]
struct Refused<'a> {
    why: &'a str,
    style: &'static str,
}

/// Renders the answer to a change that was not made.
///
/// # Errors
/// None that a page can have.
pub(super) fn refused(why: &str) -> Result<String, askama::Error> {
    Refused { why, style: STYLE }.render()
}
