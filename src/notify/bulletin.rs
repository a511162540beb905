//! Mails that are not about one group: the first look, the day's digest, many at once, and Proctor itself. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Message;
use super::dedup::Thread;
use super::message::{Head, Letter, Section, Story, Voice, line, more};
use crate::model::{Alert, Outcome, Timestamp, duration};
use crate::snapshot::Latest;
use crate::store::{Record, Table};

/// How often a digest is sent at most: of `notify.mode: observe`, and of what is only worth knowing.
pub const DIGEST_EVERY: Duration = Duration::from_secs(24 * 3600);

/// The most lines of each kind that a digest keeps; what is more is counted.
const MAX_LINES: usize = 200;

/// Makes a mail of a letter that is about no group.
pub fn message(voice: &Voice, about: &str, id: &str, letter: Letter) -> Message {
    let (state, headline) = (letter.state.to_lowercase(), letter.headline.clone());
    let head = Head {
        message_id: id.to_owned(),
        thread: &Thread::default(),
        subject: format!("{}Proctor: {state} ({})", voice.prefix, voice.site),
        name: "",
        severity: "",
        group: about,
        episode: "",
        reason: about,
        payload: serde_json::json!({
            "version": "4", "groupKey": about, "truncatedAlerts": 0, "status": "firing", "receiver": "", "groupLabels": {},
            "commonLabels": {}, "commonAnnotations": {"summary": headline}, "externalURL": voice.external_url, "alerts": [],
        }),
    };
    letter.message(voice, head)
}

/// Writes the mail of `proctor mail test`.
pub fn test(voice: &Voice) -> Letter {
    let text = "Somebody ran `proctor mail test`. If you read this, mails of Proctor about this site reach you. Nothing is wrong, and nothing is to be done.";
    let sections = vec![Section::prose("What this is", [text.to_owned()])];
    Letter { state: "TEST".to_owned(), headline: format!("TEST: mails about {} reach you", voice.site), sections }
}

/// What the day brought that is not mailed by itself: alerts of `severity: info`, and, where nothing else is sent, what
/// would have been mailed and done since the last digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Since when.
    pub since: Timestamp,
    /// How many mails each ADMIN would have got.
    pub mails: u64,
    /// How many acts would have been done.
    pub acts: u64,
    /// The mails, one line each.
    pub told: Vec<String>,
    /// The acts, one line each.
    pub done: Vec<String>,
    /// Which attempts were counted.
    pub attempts: Vec<String>,
    /// What is only worth knowing, one line each, by episode.
    #[serde(default)]
    pub known: BTreeMap<String, String>,
    /// Episodes that an earlier digest told and that are not over: not told again.
    #[serde(default)]
    pub standing: BTreeSet<String>,
}

impl Record for Digest {
    const TABLE: Table = Table::Meta;
    const PREFIX: &'static str = "notify-digest";
    fn key(&self) -> String {
        Self::PREFIX.to_owned()
    }
}

impl Digest {
    /// Begins one.
    pub fn new(since: Timestamp) -> Self {
        Self {
            since,
            mails: 0,
            acts: 0,
            told: Vec::new(),
            done: Vec::new(),
            attempts: Vec::new(),
            known: BTreeMap::new(),
            standing: BTreeSet::new(),
        }
    }

    /// Takes down a mail that is not sent.
    pub fn mail(&mut self, voice: &Voice, headline: &str, now: Timestamp) {
        self.mails += 1;
        if self.told.len() < MAX_LINES {
            self.told.push(format!("* {} {}", voice.moment(now), line(headline, 200)));
        }
    }

    /// Returns the digest after this one.
    #[must_use]
    pub fn next(&self, now: Timestamp) -> Self {
        Self { standing: self.standing.iter().chain(self.known.keys()).cloned().collect(), ..Self::new(now) }
    }

    /// Says whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty() && self.standing.is_empty()
    }

    /// Takes down what is only worth knowing, once an episode, and forgets what is over and was told; says whether anything
    /// changed.
    pub fn know(&mut self, voice: &Voice, firing: &[&Alert], now: Timestamp) -> bool {
        let before = (self.known.len(), self.standing.len());
        let episodes: BTreeSet<String> = firing.iter().map(|alert| alert.episode()).collect();
        self.standing.retain(|episode| episodes.contains(episode));
        for alert in firing {
            let episode = alert.episode();
            if self.known.len() < MAX_LINES && !self.standing.contains(&episode) && !self.known.contains_key(&episode) {
                let summary = alert.annotations.get("summary").unwrap_or("");
                self.known.insert(episode, format!("{} {}: {}", voice.moment(now), alert.name(), line(summary, 200)));
            }
        }
        before != (self.known.len(), self.standing.len())
    }

    /// Writes what is worth knowing, and whether it still is so.
    fn worth_knowing(&self, firing: &[&Alert]) -> Section {
        let still: BTreeSet<String> = firing.iter().map(|alert| alert.episode()).collect();
        let mut lines: Vec<String> = self
            .known
            .iter()
            .map(|(episode, line)| format!("* {line} ({})", if still.contains(episode) { "still so" } else { "over" }))
            .collect();
        lines.sort();
        Section::prose("Worth knowing", lines)
    }

    /// Writes the day's mail about what is only worth knowing.
    pub fn day(&self, firing: &[&Alert]) -> Letter {
        let count = self.known.len();
        let what = "Nothing of this needs anybody now: these are alerts of severity info, which are mailed once a day at most, each once. \
                    `proctor alert list` shows what still is so and what to do about it.";
        let sections = vec![self.worth_knowing(firing), Section::prose("What to do now", [what.to_owned()])];
        let things = if count == 1 { "one thing".to_owned() } else { format!("{count} things") };
        let headline = format!("DIGEST: {things} worth knowing, nothing urgent");
        Letter { state: "DIGEST".to_owned(), headline, sections }
    }

    /// Takes down what was only observed, or really done, once each; says whether there was anything new.
    pub fn acts<'a>(&mut self, voice: &Voice, alerts: impl IntoIterator<Item = &'a Alert>) -> bool {
        let before = self.attempts.len();
        for attempt in alerts.into_iter().flat_map(|alert| &alert.attempts) {
            let over = !matches!(attempt.outcome, Outcome::Running | Outcome::Refused);
            if !over || attempt.started_at < self.since || self.attempts.len() >= MAX_LINES || self.attempts.contains(&attempt.id) {
                continue;
            }
            self.attempts.push(attempt.id.clone());
            self.acts += u64::from(attempt.outcome == Outcome::Observed);
            let (at, action) = (voice.moment(attempt.started_at), line(&attempt.action, 80));
            self.done.push(format!("* {at} {action}: {}", line(&attempt.detail, 200)));
        }
        self.attempts.len() > before
    }

    /// Writes the day's mail of `notify.mode: observe`.
    pub fn letter(&self, firing: &[&Alert], now: Timestamp) -> Letter {
        let span = duration::print_measured(now.since(self.since));
        let mut sections = vec![
            Section::prose("Would have been mailed", shown(&self.told, self.mails)),
            Section::prose("Would have been done, or was", shown(&self.done, self.done.len() as u64)),
            Section::prose(
                "What to do now",
                ["This is all that is sent while notify.mode is observe. With notify.mode: send, each of these is mailed as it comes."
                    .to_owned()],
            ),
        ];
        if !self.known.is_empty() {
            sections.insert(2, self.worth_knowing(firing));
        }
        let headline = format!("OBSERVED: in the last {span}, would have mailed {}, would have restarted {}", self.mails, self.acts);
        Letter { state: "OBSERVED".to_owned(), headline, sections }
    }
}

fn shown(lines: &[String], count: u64) -> Vec<String> {
    let more = count.saturating_sub(lines.len() as u64);
    lines.iter().cloned().chain((more > 0).then(|| format!("… and {more} more."))).collect()
}

/// Writes the one mail of the first look: watching 34, 29 well, 5 not. `needs` names the failing probes that a probe needs.
pub fn first_look(voice: &Voice, targets: &[Latest], needs: impl Fn(&str) -> Vec<String>) -> Letter {
    let silent = targets.iter().filter(|latest| latest.result.is_none()).count();
    let failing: Vec<&Latest> = targets.iter().filter(|latest| latest.is_failing()).collect();
    let well = targets.len() - silent - failing.len();
    let unknown = if silent > 0 { format!(", {silent} without an answer yet") } else { String::new() };
    let headline = format!("FIRST LOOK: watching {}, {well} well, {} not{unknown}", targets.len(), failing.len());
    let mut lines: Vec<String> = failing
        .iter()
        .take(5 * voice.limit)
        .map(|latest| {
            let failure = latest.result.as_ref().and_then(|result| result.outcome.as_ref().err());
            let needs = match needs(&latest.target.probe) {
                needs if needs.is_empty() => String::new(),
                needs => format!(" (it needs {}, which is not well either)", needs.join(", ")),
            };
            format!("* {}: {}{needs}", line(&latest.target.to_string(), 120), failure.map_or(String::new(), |f| line(&f.detail, 300)))
        })
        .collect();
    lines.extend(more(failing.len(), 5 * voice.limit));
    let next = match failing.len() {
        0 => "From now on you are mailed when something breaks.",
        _ => "From now on you are mailed when something changes; what is listed here is not mailed again as long as it stays so.",
    };
    let sections = vec![Section::prose("Not well", lines), Section::prose("What happens now", [next.to_owned()])];
    Letter { state: "FIRST LOOK".to_owned(), headline, sections }
}

/// Writes the one mail of what rules find that came with an upgrade.
pub fn new_rules(voice: &Voice, alerts: &[&Alert], until: Timestamp) -> Letter {
    let shown = |alert: &&Alert| {
        let text = |name: &str| alert.annotations.get(name).unwrap_or_default();
        let severity = alert.labels.get("severity").map(|severity| format!(" ({})", line(severity, 30))).unwrap_or_default();
        let (summary, description) = (line(text("summary"), 200), line(text("description"), 400));
        format!("* {}{severity}, since {}: {summary}. {description}", line(alert.name(), 80), voice.moment(alert.active_at))
    };
    let mut lines: Vec<String> = alerts.iter().take(5 * voice.limit).map(shown).collect();
    lines.extend(more(alerts.len(), 5 * voice.limit));
    let until = voice.moment(until);
    let next = [
        "The upgrade brought rules that nobody has seen on this site yet, so that what they find may have been so for long.".to_owned(),
        "What is listed here is not mailed again as long as it stays so; its end is. If you do not want to hear of it, silence it: proctor silence add.".to_owned(),
        format!("Until {until} nothing is repaired because of these rules; from then on they are as any other."),
    ];
    let sections = vec![Section::prose("What they found", lines), Section::prose("What happens now", next)];
    let headline = format!("NEW RULES: {} alerts of rules that came with Proctor {}", alerts.len(), env!("CARGO_PKG_VERSION"));
    Letter { state: "NEW RULES".to_owned(), headline, sections }
}

/// Writes that the maintenance was forgotten.
pub fn overdue(voice: &Voice, since: Timestamp, file: &Path, now: Timestamp) -> Letter {
    let file = line(&file.display().to_string(), 300);
    let lasted = duration::print_measured(now.since(since));
    let sections = vec![
        Section::prose("What is wrong", [format!("{file} says since {} that the site is down on purpose.", voice.moment(since))]),
        Section::prose(
            "What to do now",
            [
                format!("If the work is over, remove {file}: the site may still be answering its visitors with it."),
                "Until then what is broken is mailed again, but Proctor repairs nothing.".to_owned(),
            ],
        ),
    ];
    let headline = format!("MAINTENANCE OVERDUE: {file} has been there for {lasted}");
    Letter { state: "MAINTENANCE OVERDUE".to_owned(), headline, sections }
}

/// Writes what the state has lost or set aside.
pub fn notices(notices: &[String]) -> Letter {
    let headline = format!("PROCTOR: {}", notices.first().map_or(String::new(), |first| line(first, 160)));
    let lines = notices.iter().take(100).map(|notice| line(notice, 400));
    let sections = vec![
        Section::prose("What happened to its state", lines),
        Section::prose("What to do now", ["Look at the disk and at Proctor's log. Proctor goes on.".to_owned()]),
    ];
    Letter { state: "PROCTOR".to_owned(), headline, sections }
}

/// Writes one mail about many groups.
pub fn summary(voice: &Voice, stories: &[Story<'_>]) -> Letter {
    let firing: usize = stories.iter().map(|story| story.firing.len()).sum();
    let ended: usize = stories.iter().map(|story| story.ended.len()).sum();
    let state = if firing > 0 { "FIRING" } else { "RESOLVED" };
    let headline = match (firing, ended) {
        (_, 0) => format!("{state}: {firing} alerts in {} groups at once", stories.len()),
        (0, _) => format!("{state}: {ended} alerts in {} groups are over", stories.len()),
        _ => format!("{state}: {firing} alerts fire and {ended} are over, in {} groups at once", stories.len()),
    };
    let mut lines: Vec<String> = stories.iter().take(5 * voice.limit).map(|story| format!("* {}", story.headline(voice))).collect();
    lines.extend(more(stories.len(), 5 * voice.limit));
    let note = "So many at once are told in one mail. Look for what they have in common: the network, a disk, a deploy. \
                Reminders and ends follow as for any other alert.";
    let mut sections: Vec<Section> =
        stories.iter().find_map(|story| story.degraded.as_deref()).map(super::message::degraded).into_iter().collect();
    sections.push(Section::prose("What it is", lines));
    sections.push(Section::prose("Please note", [note.to_owned()]));
    Letter { state: state.to_owned(), headline, sections }
}
