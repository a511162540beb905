//! The words of a mail, as text, HTML and Alertmanager's JSON, for somebody who reads it at 3 a.m.
//!
//! What a probe read may be anything: each text is made one clean line before it goes anywhere, HTML is escaped by the
//! template, and nothing that was read is ever used as a template.

use std::collections::BTreeSet;
use std::time::Duration;

use askama::Template;
use jiff::tz::TimeZone;
use serde_json::json;

use super::dedup::{Reason, Thread};
use super::{Mailbox, Message};
use crate::model::{Alert, Attempt, Fingerprint, Labels, Outcome, ProbeResult, Timestamp, duration};

/// The columns that text is wrapped at.
pub const WIDTH: usize = 78;

/// The most characters of a subject; a longer one is cut.
pub const MAX_SUBJECT: usize = 200;

/// The most characters of an annotation, and the most lines of evidence of one alert.
const MAX_ANNOTATION: usize = 2000;
const MAX_EVIDENCE: usize = 20;
/// The most lines of what probes have kept: the end of what a job printed is 10 KiB.
const MAX_SEEN: usize = 240;

/// The most alerts in the payload; of the others it says how many they are, as Alertmanager does.
const MAX_PAYLOAD: usize = 200;

/// What every mail says the same of itself.
#[derive(Clone, Debug)]
pub struct Voice {
    /// The site's name.
    pub site: String,
    /// Where people find the status page.
    pub external_url: Option<String>,
    /// What every subject begins with.
    pub prefix: String,
    /// The part of the Message-IDs behind the `@`.
    pub domain: String,
    /// The most alerts one mail shows.
    pub limit: usize,
    /// In which times are written.
    pub zone: TimeZone,
    /// Makes the Message-IDs of this run of Proctor its own.
    pub nonce: u64,
}

impl Voice {
    /// Builds what every mail says the same of itself, with times in the host's own zone.
    pub fn new(config: &super::NotifyConfig, site: &str, external_url: Option<String>) -> Self {
        use std::hash::{BuildHasher, Hasher};
        Self {
            site: line(site, 100),
            external_url: external_url.map(|url| line(&url, 300)),
            prefix: config.subject_prefix.0.clone(),
            domain: Mailbox::domain(&config.from).to_owned(),
            limit: config.group_limit,
            zone: TimeZone::system(),
            // The standard library seeds its hasher from the system's randomness.
            nonce: std::collections::hash_map::RandomState::new().build_hasher().finish(),
        }
    }

    /// Makes the Message-ID of one mail: `<episode.sequence.random@domain>` without the brackets.
    pub fn message_id(&self, episode: &str, sequence: u64, now: Timestamp) -> String {
        let hash = crate::model::labels::fnv1a([self.site.as_bytes(), &self.nonce.to_be_bytes(), &now.0.to_be_bytes(), episode.as_bytes()]);
        format!("{episode}.{sequence}.{hash:016x}@{}", self.domain)
    }

    /// Writes a moment: `Tue 24 Nov 2026 03:12:05 +01:00`.
    pub fn moment(&self, at: Timestamp) -> String {
        at.to_jiff().to_zoned_datetime(self.zone.clone()).strftime("%a %d %b %Y %H:%M:%S %:z").to_string()
    }

    /// Writes a moment: the hour alone where it was today, else with its day.
    pub fn hour(&self, at: Timestamp, now: Timestamp) -> String {
        let [at, now] = [at, now].map(|at| at.to_jiff().to_zoned_datetime(self.zone.clone()));
        at.strftime(if at.date() == now.date() { "%H:%M:%S" } else { "%d %b %H:%M:%S" }).to_string()
    }
}

/// Makes one line of at most `max` characters of any text: no control characters, nothing that turns the direction.
pub fn line(text: &str, max: usize) -> String {
    let mut cut: String = clean(text).split_whitespace().collect::<Vec<_>>().join(" ");
    if cut.chars().count() > max {
        cut = cut.chars().take(max.saturating_sub(1)).chain(['…']).collect();
    }
    cut
}

/// Makes clean lines of a text that may have several.
fn lines(text: &str) -> Vec<String> {
    text.lines().map(|part| line(part, MAX_ANNOTATION)).filter(|part| !part.is_empty()).take(40).collect()
}

/// Says whether a character turns the direction of a line, breaks it, or cannot be seen. All are below U+10000.
fn turns(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn clean(text: &str) -> String {
    text.chars().take(MAX_ANNOTATION).map(|c| if c.is_control() || turns(c) { ' ' } else { c }).collect()
}

/// Breaks a text at spaces; a word that is longer than the width stays whole.
fn wrap(text: &str, width: usize, indent: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(last) if last.chars().count() + 1 + word.chars().count() <= width => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(format!("{indent}{word}")),
        }
    }
    lines
}

/// One part of a mail.
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// What it answers.
    pub title: String,
    /// Whether its lines stay as they are: evidence, commands.
    pub fixed: bool,
    /// Its lines.
    pub lines: Vec<String>,
}

impl Section {
    /// Builds a part that is read as prose.
    pub fn prose(title: &str, lines: impl IntoIterator<Item = String>) -> Self {
        Self { title: title.to_owned(), fixed: false, lines: lines.into_iter().collect() }
    }

    /// Builds a part whose lines stay as they are.
    pub fn fixed(title: &str, lines: impl IntoIterator<Item = String>) -> Self {
        Self { fixed: true, ..Self::prose(title, lines) }
    }
}

/// A mail before it is written out.
#[derive(Clone, Debug, Default)]
pub struct Letter {
    /// `FIRING`, `RESOLVED`, `REPAIRED`, `NEEDS HUMAN`, or what else it is.
    pub state: String,
    /// The first line: state, what, since when, value.
    pub headline: String,
    /// The parts; empty ones are left out.
    pub sections: Vec<Section>,
}

#[derive(Template)]
#[template(
    ext = "html",
    source = r#"<!DOCTYPE html>
<html><body style="font-family:sans-serif;font-size:14px;color:#222;max-width:48em">
<p style="font-size:16px;border-left:6px solid {{ color }};padding-left:8px"><b>{{ letter.headline }}</b></p>
{% for section in letter.sections %}<p style="margin:12px 0 2px 0;color:#666">{{ section.title }}</p>
{% if section.fixed %}<pre style="margin:0;padding:6px;background:#f4f4f4;white-space:pre-wrap">{% for line in section.lines %}{{ line }}
{% endfor %}</pre>
{% else %}{% for line in section.lines %}<p style="margin:2px 0">{{ line }}</p>
{% endfor %}{% endif %}{% endfor %}<p style="margin-top:16px;color:#888;font-size:12px">{% for line in footer %}{{ line }}<br>
{% endfor %}</p>
</body></html>
"#
)]
struct Html<'a> {
    letter: &'a Letter,
    footer: &'a [String],
    color: &'static str,
}

impl Letter {
    /// Writes the text part.
    fn text(&self, footer: &[String]) -> String {
        let mut text = wrap(&self.headline, WIDTH, "").join("\n") + "\n";
        for section in &self.sections {
            text.push_str(&format!("\n{}\n", section.title));
            for line in &section.lines {
                if section.fixed {
                    text.push_str(&format!("  {line}\n"));
                } else {
                    wrap(line, WIDTH, "  ").iter().for_each(|line| text.push_str(&format!("{line}\n")));
                }
            }
        }
        // What stands behind this line is a signature to mail programs.
        text.push_str("\n-- \n");
        footer.iter().for_each(|line| text.push_str(&format!("{line}\n")));
        text
    }

    /// Writes the HTML part.
    fn html(&self, footer: &[String]) -> String {
        let color = match self.state.as_str() {
            "FIRING" | "NEEDS HUMAN" => "#c0392b",
            "RESOLVED" | "REPAIRED" => "#27ae60",
            _ => "#2c6fbb",
        };
        Html { letter: self, footer, color }.render().unwrap_or_else(|error| {
            // Writing to a String cannot fail; if it did, the text part still says all.
            tracing::error!(%error, "the HTML part of a mail cannot be written");
            String::new()
        })
    }

    /// Makes the message. An empty thread begins one; the message is then its root.
    pub fn message(mut self, voice: &Voice, head: Head<'_>) -> Message {
        self.sections.retain(|section| !section.lines.is_empty());
        let signature = format!("Proctor {} watches {}", env!("CARGO_PKG_VERSION"), voice.site);
        let footer: Vec<String> = [Some(signature), voice.external_url.clone()].into_iter().flatten().collect();
        let thread = head.thread;
        let mut references = Vec::new();
        for id in [&thread.root, &thread.last] {
            if !id.is_empty() && !references.contains(id) {
                references.push(id.clone());
            }
        }
        let headers = [
            ("X-Alert-State", self.state.as_str()),
            ("X-Alert-Name", head.name),
            ("X-Alert-Severity", head.severity),
            ("X-Alert-Group", head.group),
            ("X-Alert-Episode", head.episode),
            ("X-Alert-Reason", head.reason),
        ];
        let headers = headers.iter().filter(|(_, value)| !value.is_empty());
        Message {
            message_id: head.message_id,
            in_reply_to: references.first().cloned(),
            references,
            subject: head.subject,
            text: self.text(&footer),
            html: self.html(&footer),
            headers: headers.map(|(name, value)| ((*name).to_owned(), line(value, 200))).collect(),
            important: head.severity == "critical" && ["FIRING", "NEEDS HUMAN"].contains(&self.state.as_str()),
            payload: head.payload,
        }
    }
}

/// What stands around a letter.
#[derive(Debug)]
pub struct Head<'a> {
    /// Unique.
    pub message_id: String,
    /// What it replies to.
    pub thread: &'a Thread,
    /// One line.
    pub subject: String,
    /// The alert's name; empty where it is about none.
    pub name: &'a str,
    /// Its severity.
    pub severity: &'a str,
    /// The group's key.
    pub group: &'a str,
    /// The episode.
    pub episode: &'a str,
    /// Why it is written.
    pub reason: &'a str,
    /// The same for machines.
    pub payload: serde_json::Value,
}

/// What is told of one group.
#[derive(Clone, Debug)]
pub struct Story<'a> {
    /// Why it is told.
    pub reason: Reason,
    /// The group's key.
    pub group: &'a str,
    /// What its alerts have in common.
    pub labels: &'a Labels,
    /// To whom.
    pub receiver: &'a str,
    /// What fires, worst first.
    pub firing: Vec<&'a Alert>,
    /// What of that was not told before.
    pub fresh: BTreeSet<Fingerprint>,
    /// What is over.
    pub ended: Vec<&'a Alert>,
    /// Probes that fail because they need this one.
    pub affected: Vec<String>,
    /// Probes that this one needs and that fail too.
    pub because: Vec<String>,
    /// What the probes of the alerts found last, then those of what they break: failures, and what else an alert is about.
    pub found: Vec<&'a ProbeResult>,
    /// What Proctor will do if it goes on.
    pub planned: Vec<String>,
    /// What changed on the host.
    pub changes: Section,
    /// Whatever else is to be said: damping, held back until now.
    pub notes: Vec<String>,
    /// When it is said again.
    pub next: Option<Timestamp>,
    /// Why the state is not written, while it is not.
    pub degraded: Option<String>,
    /// This moment.
    pub now: Timestamp,
}

/// Says whether an alert is not mailed by itself, but stands in the day's digest.
pub fn is_only_worth_knowing(alert: &Alert) -> bool {
    rank(alert) == WORTH_KNOWING
}

const WORTH_KNOWING: u8 = 4;

/// How bad an alert is, worst first; what is not named stands between.
pub fn rank(alert: &Alert) -> u8 {
    match alert.labels.get("severity") {
        Some("critical" | "page" | "emergency") => 0,
        Some("error") => 1,
        Some("info" | "none" | "notice") => WORTH_KNOWING,
        Some("warning") => 3,
        _ => 2,
    }
}

/// Returns the attempt after which nothing more is tried for now, if it came to that: the guard refuses once per episode.
pub fn gave_up(alert: &Alert) -> Option<&Attempt> {
    alert.attempts.last().filter(|attempt| attempt.outcome == Outcome::Refused)
}

/// Names the probe, and the target where the probe has several.
fn place(alert: &Alert) -> String {
    let get = |name| line(alert.labels.get(name).unwrap_or(""), 80);
    match (get("probe"), get("target")) {
        (probe, _) if probe.is_empty() => get("instance"),
        (probe, target) if target.is_empty() => probe,
        (probe, target) => format!("{probe}/{target}"),
    }
}

fn name(alert: &Alert) -> String {
    line(alert.name(), 80)
}

/// `MemcachedDown on cache`.
fn named(alert: &Alert) -> String {
    match place(alert) {
        place if place.is_empty() => name(alert),
        place => format!("{} on {place}", name(alert)),
    }
}

/// Writes a value without the noise of floats.
fn value(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    let text = if value.abs() < 0.001 || value.abs() >= 1e15 { format!("{value:.3e}") } else { format!("{value:.3}") };
    if text.contains(['e', 'N', 'i']) { text } else { text.trim_end_matches('0').to_owned() }
}

/// Writes how long something lasted, in whole seconds and at least one.
fn span(lasted: Duration) -> String {
    let whole = Duration::from_secs(lasted.as_secs().max(1));
    if whole.as_secs() < 60 { duration::print(whole) } else { duration::print_measured(whole) }
}

/// How long an alert lasted, or has lasted.
fn lasted(alert: &Alert, now: Timestamp) -> String {
    span(alert.resolved_at.unwrap_or(now).since(alert.active_at))
}

/// Writes the subject of an episode: `[CourSys] [critical] MemcachedDown cache (coursys)`.
pub fn subject(voice: &Voice, alerts: &[&Alert]) -> String {
    let Some(worst) = alerts.first() else { return line(&format!("{}({})", voice.prefix, voice.site), MAX_SUBJECT) };
    let severity = worst.labels.get("severity").map(|severity| format!("[{}] ", line(severity, 30))).unwrap_or_default();
    let place = place(worst);
    let space = if place.is_empty() { "" } else { " " };
    let more = if alerts.len() > 1 { format!(" +{}", alerts.len() - 1) } else { String::new() };
    // The prefix is the configuration's own and keeps its spaces.
    let rest = line(&format!("{severity}{}{space}{place}{more} ({})", name(worst), voice.site), MAX_SUBJECT);
    format!("{}{rest}", voice.prefix)
}

/// Quotes a matcher for a shell where it must be.
fn quoted(name: &str, value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-/:".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return format!("{name}={value}");
    }
    // JSON's escapes are what the matcher reads, also for what would turn the line around; a shell's single quotes keep
    // all but the single quote.
    let json: String = serde_json::Value::from(value).to_string().chars().map(escaped).collect();
    format!("'{name}={json}'")
}

fn escaped(c: char) -> String {
    match c {
        '\'' => r"'\''".to_owned(),
        c if c.is_control() || turns(c) => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    }
}

impl Story<'_> {
    /// Says in one word how it stands.
    pub fn state(&self) -> &'static str {
        let repaired = |alert: &&Alert| alert.attempts.iter().any(|attempt| attempt.outcome == Outcome::Repaired);
        match () {
            () if self.firing.iter().any(|alert| gave_up(alert).is_some()) => "NEEDS HUMAN",
            () if !self.firing.is_empty() => "FIRING",
            () if self.ended.iter().any(repaired) => "REPAIRED",
            () => "RESOLVED",
        }
    }

    /// Says the whole in one line: state, what, since when, value.
    pub fn headline(&self, voice: &Voice) -> String {
        let alerts = if self.firing.is_empty() { &self.ended } else { &self.firing };
        let Some(first) = alerts.first() else { return self.state().to_owned() };
        let what = match alerts.len() {
            1 => named(first),
            count => {
                let mut names: Vec<String> = alerts.iter().map(|alert| name(alert)).collect();
                names.dedup();
                let place = place(first);
                let same = alerts.iter().all(|alert| alert.probe() == first.probe());
                let place =
                    if same && !place.is_empty() { format!(" on {}", line(first.probe().unwrap_or(""), 80)) } else { String::new() };
                let more = if names.len() > 3 { format!(" and {} more", names.len() - 3) } else { String::new() };
                names.truncate(3);
                format!("{count} alerts{place} ({}{more})", names.join(", "))
            }
        };
        let since = alerts.iter().map(|alert| alert.active_at).min().unwrap_or(self.now);
        let hour = voice.hour(since, self.now);
        let ago = span(self.now.since(since));
        // That something is down is value 0, which says nothing; the reason does.
        let reason = self.found.iter().filter(|_| first.value == 0.0 || first.value == 1.0).find_map(|result| reason(result, first));
        let worth = match (alerts.len(), reason) {
            (1, Some(reason)) => format!(": {reason}"),
            (1, None) => format!(", value {}", value(first.value)),
            _ => String::new(),
        };
        let repaired = alerts.iter().flat_map(|alert| &alert.attempts).find(|attempt| attempt.outcome == Outcome::Repaired);
        match (self.state(), repaired) {
            ("REPAIRED", Some(attempt)) => {
                format!("REPAIRED and RESOLVED: {what}, after {}, by {}", lasted(first, self.now), line(&attempt.action, 80))
            }
            (state @ ("RESOLVED" | "REPAIRED"), _) => format!("{state}: {what}, after {}", lasted(first, self.now)),
            (state, _) if self.reason == Reason::Reminder => format!("{state}, still: {what}, since {hour} ({ago} ago){worth}"),
            (state, _) => {
                let mut over: Vec<String> = self.ended.iter().map(|alert| name(alert)).collect();
                over.dedup();
                over.truncate(3);
                let over = if over.is_empty() { String::new() } else { format!("; over: {}", over.join(", ")) };
                format!("{state}: {what}, since {hour} ({ago} ago){worth}{over}")
            }
        }
    }

    /// Writes the mail but for what stands around it.
    pub fn letter(&self, voice: &Voice) -> Letter {
        let over = self.firing.is_empty();
        let mut sections = Vec::new();
        if let Some(why) = &self.degraded {
            sections.push(degraded(why));
        }
        let wrong = self.firing.iter().take(voice.limit).flat_map(|alert| self.about(alert, voice));
        let mut wrong: Vec<String> = wrong.collect();
        wrong.extend(more(self.firing.len(), voice.limit));
        sections.push(Section::prose("What is wrong", wrong));
        let ended = self.ended.iter().take(voice.limit).flat_map(|alert| self.about(alert, voice));
        let mut ended: Vec<String> = ended.collect();
        ended.extend(more(self.ended.len(), voice.limit));
        sections.push(Section::prose(if over { "What was wrong" } else { "What is over" }, ended));
        sections.push(Section::prose("What the probes found", self.found.iter().filter_map(|result| found(result))));
        sections.push(Section::prose("Since", self.since(voice)));

        let mut breaks = Vec::new();
        if !self.affected.is_empty() {
            let names: Vec<String> = self.affected.iter().map(|probe| line(probe, 80)).collect();
            let names = names.join(", ");
            breaks.push(match over {
                false => format!("Also affected, since they need it: {names}."),
                true => format!("It also affected {names}. What of that stays broken is mailed by itself."),
            });
        }
        sections.push(Section::prose(if over { "What it broke" } else { "What it breaks" }, breaks));
        if !self.because.is_empty() && !over {
            let names = self.because.iter().map(|probe| line(probe, 80)).collect::<Vec<_>>().join(", ");
            let text = format!("It needs {names}, which fails too but has no alert of its own: look there first.");
            sections.push(Section::prose("What may be behind it", [text]));
        }
        sections.push(self.changes.clone());
        sections.push(Section::prose("What was done", self.done(voice)));
        sections.push(Section::prose("What Proctor will do", self.planned.iter().filter(|_| !over).map(|text| line(text, 400))));
        let evidence = self.firing.iter().chain(&self.ended).take(voice.limit).flat_map(|alert| {
            let kept = alert.evidence.iter().map(String::as_str);
            // What a failed act printed says why; its end says most.
            let failed = alert.attempts.iter().filter(|attempt| attempt.outcome == Outcome::Failed);
            let printed = failed.flat_map(|attempt| attempt.output.lines().rev().take(5).collect::<Vec<_>>().into_iter().rev());
            kept.chain(printed).take(MAX_EVIDENCE).map(|text| line(text, 200))
        });
        let seen = self.found.iter().flat_map(|result| result.evidence.iter().map(|text| line(text, 200)));
        sections.push(Section::fixed("Evidence", evidence.take(3 * MAX_EVIDENCE).chain(seen.take(MAX_SEEN))));
        if !over {
            sections.push(Section::prose("What to do now", self.advice()));
            sections.push(Section::prose(
                "To look closer",
                ["`proctor alert list` on the host shows what fires, `proctor check` asks every service once.".to_owned()],
            ));
            sections.push(Section::fixed("To be told nothing about it for 2 hours", [self.silence()]));
        }
        sections.push(Section::prose("Please note", self.notes.iter().map(|note| line(note, 500))));
        let next = self.next.filter(|_| !over).map(|next| format!("A reminder on {} if it still fires then.", voice.moment(next)));
        sections.push(Section::prose("Next mail", next));
        Letter { state: self.state().to_owned(), headline: self.headline(voice), sections }
    }

    /// What an alert says of itself.
    fn about(&self, alert: &Alert, voice: &Voice) -> Vec<String> {
        let mut about = Vec::new();
        if self.firing.len() + self.ended.len() > 1 {
            let severity = alert.labels.get("severity").map(|severity| format!(" ({})", line(severity, 30))).unwrap_or_default();
            let time = match alert.resolved_at {
                None => format!("since {}, value {}", voice.hour(alert.active_at, self.now), value(alert.value)),
                Some(_) => format!("lasted {}", lasted(alert, self.now)),
            };
            let new = self.reason != Reason::First && self.fresh.contains(&alert.fingerprint());
            about.push(format!("* {}{severity}, {}{time}", named(alert), if new { "new, " } else { "" }));
        }
        for annotation in ["summary", "description", "message"] {
            about.extend(alert.annotations.get(annotation).map(lines).unwrap_or_default());
        }
        if about.is_empty() {
            about.push(format!("{}: the rule has no summary.", named(alert)));
        }
        about
    }

    fn since(&self, voice: &Voice) -> Vec<String> {
        let alerts = if self.firing.is_empty() { &self.ended } else { &self.firing };
        let [alert] = alerts.as_slice() else { return Vec::new() };
        let began = voice.moment(alert.active_at);
        vec![match (alert.resolved_at, self.firing.is_empty()) {
            (Some(end), _) => format!("From {began} to {}, {} in all.", voice.hour(end, self.now), lasted(alert, self.now)),
            (None, true) => format!(
                "From {began}. Its end was not seen: its rule is gone, has more alerts than its `limit`, or it ended while Proctor was not running."
            ),
            (None, false) => format!("{began}, that is for {}.", lasted(alert, self.now)),
        }]
    }

    /// What was done about it, and whether it helped.
    fn done(&self, voice: &Voice) -> Vec<String> {
        let mut attempts: Vec<&Attempt> = self.firing.iter().chain(&self.ended).flat_map(|alert| &alert.attempts).collect();
        attempts.sort_by(|a, b| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)));
        attempts.dedup_by(|a, b| a.id == b.id);
        let skipped = attempts.len().saturating_sub(10);
        let done = attempts.iter().skip(skipped).map(|attempt| {
            let at = voice.hour(attempt.started_at, self.now);
            let what = format!("{at} {} ({})", line(&attempt.action, 80), line(&attempt.target, 120));
            let detail = match line(&attempt.detail, 400) {
                detail if detail.is_empty() => ".".to_owned(),
                detail => format!(": {detail}{}", if detail.ends_with(['.', '!', '…']) { "" } else { "." }),
            };
            let said = match attempt.outcome {
                Outcome::Running => return format!("{what} has begun. A reply to this mail says whether it helped."),
                Outcome::Repaired => "repaired",
                Outcome::Failed => "failed",
                Outcome::Refused => "not done",
                Outcome::Observed => "only observed, not done",
                Outcome::InDoubt => "in doubt, since Proctor ended meanwhile; not repeated",
            };
            format!("{what} {said}{detail}")
        });
        let before = (skipped > 0).then(|| format!("{skipped} attempts before these are not shown."));
        before.into_iter().chain(done).collect()
    }

    fn advice(&self) -> Vec<String> {
        let mut advice: Vec<String> = Vec::new();
        for alert in self.firing.iter().take(3) {
            for annotation in ["action", "runbook", "runbook_url"] {
                for text in alert.annotations.get(annotation).map(lines).unwrap_or_default() {
                    if !advice.contains(&text) {
                        advice.push(text);
                    }
                }
            }
        }
        if self.firing.iter().any(|alert| gave_up(alert).is_some()) {
            advice.push("Proctor tries no more for now: somebody must look.".to_owned());
        }
        advice
    }

    /// The command that silences just this.
    fn silence(&self) -> String {
        let one = match self.firing.as_slice() {
            [first, others @ ..] if others.iter().all(|alert| alert.name() == first.name()) => Some(first.name()),
            _ => None,
        };
        let labels = self.labels.iter().filter(|(name, _)| *name != "alertname");
        let matchers: Vec<String> =
            one.map(|name| ("alertname", name)).into_iter().chain(labels).map(|(name, value)| quoted(name, value)).collect();
        format!("proctor silence add {} --for 2h", matchers.join(" "))
    }

    /// The same in Alertmanager's webhook format, version 4.
    pub fn payload(&self, voice: &Voice) -> serde_json::Value {
        let all: Vec<&Alert> = self.firing.iter().chain(&self.ended).copied().collect();
        let common = |of: fn(&Alert) -> &Labels| {
            let first = all.first().map(|alert| of(alert).clone()).unwrap_or_default();
            first.without(|name| all.iter().any(|alert| of(alert).get(name) != of(all[0]).get(name)))
        };
        let alerts = all.iter().take(MAX_PAYLOAD).map(|alert| {
            let over = !self.firing.iter().any(|firing| firing.fingerprint() == alert.fingerprint());
            let ends = if over { alert.resolved_at.unwrap_or(self.now).to_string() } else { "0001-01-01T00:00:00Z".to_owned() };
            json!({
                "status": if over { "resolved" } else { "firing" },
                "labels": alert.labels, "annotations": alert.annotations,
                "startsAt": alert.fired_at.unwrap_or(alert.active_at).to_string(), "endsAt": ends,
                "generatorURL": voice.external_url.clone().unwrap_or_default(),
                "fingerprint": alert.fingerprint().to_string(),
            })
        });
        json!({
            "version": "4", "groupKey": self.group, "truncatedAlerts": all.len().saturating_sub(MAX_PAYLOAD),
            "status": if self.firing.is_empty() { "resolved" } else { "firing" },
            "receiver": self.receiver, "groupLabels": self.labels,
            "commonLabels": common(|alert| &alert.labels), "commonAnnotations": common(|alert| &alert.annotations),
            "externalURL": voice.external_url.clone().unwrap_or_default(), "notificationReason": self.reason.as_str(),
            "alerts": alerts.collect::<Vec<_>>(),
        })
    }
}

/// Returns why the target of an alert fails.
fn reason(result: &ProbeResult, alert: &Alert) -> Option<crate::model::Reason> {
    result.outcome.as_ref().err().filter(|_| is_about(alert, result)).map(|failure| failure.reason)
}

/// Says whether an alert is about the target of a result.
pub fn is_about(alert: &Alert, result: &ProbeResult) -> bool {
    alert.probe() == Some(&*result.target.probe) && alert.labels.get("target") == result.target.target.as_deref()
}

/// Says what a probe found: `csrpt: remote_silent: no answer …`.
fn found(result: &ProbeResult) -> Option<String> {
    let failure = result.outcome.as_ref().err()?;
    Some(format!("{}: {}: {}", line(&result.target.to_string(), 120), failure.reason, line(&failure.detail, 500)))
}

/// Says that the state is not written.
pub fn degraded(why: &str) -> Section {
    let text =
        format!("Its state cannot be written ({}): it goes on from memory, and runs no action until that is mended.", line(why, 300));
    Section::prose("Proctor itself", [text])
}

/// Says how many are not shown.
pub fn more(count: usize, limit: usize) -> Option<String> {
    (count > limit).then(|| format!("… and {} more.", count - limit))
}
