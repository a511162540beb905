//! The status page: what is wrong now, and every target with its last answer.

use std::time::Duration;

use askama::Template;

use crate::model::Timestamp;
use crate::model::duration::print_measured;

/// One alert of the page.
#[derive(Clone, Debug)]
pub struct AlertRow {
    /// `pending` or `firing`.
    pub state: &'static str,
    /// Its severity, if it has one.
    pub severity: String,
    /// Its name.
    pub name: String,
    /// What it says.
    pub summary: String,
    /// Since when.
    pub since: Timestamp,
    /// What was done about it, or else what is known of it.
    pub note: String,
}

/// One target of the page.
#[derive(Clone, Debug)]
pub struct TargetRow {
    /// `probe`, or `probe/target`.
    pub name: String,
    /// The kind of the probe.
    pub kind: &'static str,
    /// Nothing before the first run.
    pub well: Option<bool>,
    /// The reason and the detail of a failure, or what could not be seen.
    pub detail: String,
    /// How long the last run took.
    pub took: Duration,
    /// Since when it is so.
    pub since: Option<Timestamp>,
    /// When it was last asked.
    pub at: Option<Timestamp>,
}

/// Everything the page shows.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The site's name.
    pub site: String,
    /// Things to know first: state degraded, nothing configured, maintenance, hold, mails that wait.
    pub notices: Vec<String>,
    /// Alerts, firing first.
    pub alerts: Vec<AlertRow>,
    /// Targets, failing first.
    pub targets: Vec<TargetRow>,
}

#[derive(Template)]
#[template(path = "status.html")]
struct Page<'a> {
    status: &'a Status,
    now: Timestamp,
    version: &'static str,
}

impl Page<'_> {
    fn failing(&self) -> usize {
        self.status.targets.iter().filter(|target| target.well == Some(false)).count()
    }

    fn well(&self) -> usize {
        self.status.targets.iter().filter(|target| target.well == Some(true)).count()
    }

    fn ago(&self, at: &Timestamp) -> String {
        let age = self.now.since(*at);
        if age < Duration::from_secs(1) { "now".to_owned() } else { print_measured(Duration::from_secs(age.as_secs())) }
    }

    fn took(&self, target: &TargetRow) -> String {
        print_measured(target.took)
    }
}

impl Status {
    /// Renders the page; every value is escaped by askama.
    ///
    /// # Errors
    /// None that a page can have.
    pub fn render(&self, now: Timestamp) -> Result<String, askama::Error> {
        Page { status: self, now, version: env!("CARGO_PKG_VERSION") }.render()
    }
}
