//! Looks at files: whether they are there, how old and how large they are. A backup, a Kerberos ticket, a lock that
//! somebody forgot, a spool that fills.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Looking, Planned, Probe, Recorder};
use crate::model::decode::{Decode, mismatch};
use crate::model::duration::{print, print_measured};
use crate::model::yaml::Node;
use crate::model::{Failure, Family, Problems, Reason, Sight, Timestamp};
use crate::tasks;

static UP: Family = Family::gauge("file_up", "Whether the files are as they should be");
static MODIFIED: Family =
    Family::gauge("file_stat_modif_time_seconds", "When the newest file of a pattern was last written, in seconds since the epoch");
static SIZE: Family = Family::gauge("file_stat_size_bytes", "How large the newest file of a pattern is");
static MATCHES: Family = Family::gauge("file_glob_match_number", "How many files fit a pattern");

/// The most patterns, and the most files of one that are looked at.
const MAX_PATTERNS: usize = 20;
const MAX_FILES: usize = 10_000;
/// A clock that differs by less is no finding.
const CLOCKS: Duration = Duration::from_secs(60);

/// Whether there should be a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// At least one of each pattern; the newest is judged.
    Present,
    /// None.
    Absent,
    /// As may be; each that is there is judged.
    Any,
}

impl Decode for Presence {
    const EXPECTED: &'static str = "present, absent or any";
    fn decode(node: &Node, problems: &mut Problems) -> Option<Self> {
        match String::decode(node, &mut Problems::default()).as_deref() {
            Some("present") => Some(Self::Present),
            Some("absent") => Some(Self::Absent),
            Some("any") => Some(Self::Any),
            _ => {
                mismatch(node, Self::EXPECTED, problems);
                None
            }
        }
    }
}

crate::config_struct! {
    /// Looks at files: whether they are there, how old and how large they are. Only their names, times and sizes are read.
    pub struct FileConfig {
        /// Paths, with `*`, `?` and `[…]`; at most 20.
        paths: Vec<String>,
        /// `present`: one of each must be there, and the newest is judged; `absent`: none may be; `any`: each that is
        /// there is judged.
        expect: Presence = "present",
        /// The greatest age that is right.
        max_age: Option<Duration>,
        /// The smallest size that is right, in bytes.
        min_size: Option<u64>,
        /// The greatest size that is right, in bytes.
        max_size: Option<u64>,
        /// The most files of one pattern that are right.
        max_files: Option<usize>,
    }
}

/// Builds the one target.
///
/// # Errors
/// No path, more than 20, one that is not absolute or no pattern, limits for what must be absent.
pub fn plan(config: &FileConfig) -> Result<Vec<Planned>, String> {
    let FileConfig { paths, expect, max_age, min_size, max_size, max_files } = config;
    if paths.is_empty() || paths.len() > MAX_PATTERNS {
        return Err(format!("paths: expected 1 to {MAX_PATTERNS}, found {}", paths.len()));
    }
    for path in paths {
        if !path.starts_with('/') {
            return Err(format!("paths: expected an absolute path, found {path:?}"));
        }
        glob::Pattern::new(path).map_err(|error| format!("paths: {path:?}: {error}"))?;
    }
    if *expect == Presence::Absent && (max_age.is_some() || min_size.is_some() || max_size.is_some() || max_files.is_some()) {
        return Err("expect: absent: expected no limits for what must not be there".to_owned());
    }
    if min_size.zip(*max_size).is_some_and(|(min, max)| min > max) {
        return Err("min_size: expected at most max_size".to_owned());
    }
    Ok(Planned::only(File { config: config.clone(), looking: Looking::default() }))
}

struct File {
    config: FileConfig,
    looking: Looking,
}

impl Probe for File {
    fn run<'a>(&'a self, rec: &'a mut Recorder) -> BoxFuture<'a, Result<(), Failure>> {
        self.ask(rec).boxed()
    }

    fn up(&self) -> Option<&'static Family> {
        Some(&UP)
    }
}

/// A file that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    path: PathBuf,
    at: Timestamp,
    size: u64,
}

/// What is there of one pattern.
#[derive(Debug, Default)]
struct Look {
    found: Vec<Found>,
    /// What may not be looked at.
    hidden: Option<PathBuf>,
    broken: Option<String>,
}

impl File {
    async fn ask(&self, rec: &mut Recorder) -> Result<(), Failure> {
        let now = tasks::wall_now();
        rec.waiting(Reason::AnswerTimeout, format!("waiting for the file system of {}", self.config.paths.join(", ")));
        let paths = self.config.paths.clone();
        let looks = self.looking.at(move || paths.into_iter().map(|path| (look(&path), path)).collect::<Vec<_>>()).await?;
        let (mut wrong, mut hidden, many) = (Vec::new(), Vec::new(), looks.len());
        for (look, pattern) in looks {
            let label = [("pattern", pattern.as_str())];
            rec.set_with(&MATCHES, &label, look.found.len() as f64);
            if let Some(newest) = look.found.iter().max_by_key(|found| found.at) {
                rec.set_with(&MODIFIED, &label, newest.at.as_secs_f64());
                rec.set_with(&SIZE, &label, newest.size as f64);
            }
            hidden.extend(look.hidden.clone());
            wrong.extend(self.judge(&pattern, &look, now));
        }
        if let Some(path) = hidden.first() {
            let folder = path.parent().unwrap_or(path).display();
            let missing = hidden.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
            let remedy = format!("let Proctor's user into the folder: setfacl -m u:proctor:rx {folder}");
            rec.sight(if hidden.len() == many { Sight::Blind { missing, remedy } } else { Sight::Partial { missing, remedy } });
        }
        let Some((reason, _)) = wrong.first() else { return Ok(()) };
        let reason = *reason;
        wrong.iter().skip(1).for_each(|(_, what)| rec.evidence(what));
        Err(Failure::new(reason, wrong.into_iter().map(|(_, what)| what).take(3).collect::<Vec<_>>().join("; ")))
    }

    fn judge(&self, pattern: &str, look: &Look, now: Timestamp) -> Vec<(Reason, String)> {
        let FileConfig { expect, max_files, .. } = &self.config;
        if let Some(why) = &look.broken {
            return vec![(Reason::Unavailable, format!("{pattern}: {why}"))];
        }
        let newest = look.found.iter().max_by_key(|found| found.at);
        let mut wrong = match (expect, newest) {
            (Presence::Present, None) if look.hidden.is_none() => vec![(Reason::Missing, format!("{pattern}: no such file"))],
            (Presence::Absent, Some(newest)) => {
                let age = print_measured(now.since(newest.at));
                vec![(Reason::Mismatch, format!("{}: expected no such file, found one written {age} ago", newest.path.display()))]
            }
            (Presence::Present, Some(newest)) => self.wrong_with(newest, now).into_iter().collect(),
            (Presence::Any, _) => look.found.iter().filter_map(|found| self.wrong_with(found, now)).take(super::MAX_EVIDENCE.0).collect(),
            (Presence::Present | Presence::Absent, None) => Vec::new(),
        };
        if let Some(most) = max_files.filter(|most| look.found.len() > *most) {
            wrong.push((Reason::Backlog, format!("{pattern}: expected at most {most} files, found {}", look.found.len())));
        }
        wrong
    }

    fn wrong_with(&self, found: &Found, now: Timestamp) -> Option<(Reason, String)> {
        let FileConfig { max_age, min_size, max_size, .. } = &self.config;
        let (path, age) = (found.path.display(), now.since(found.at));
        if found.at.since(now) > CLOCKS && max_age.is_some() {
            let by = print_measured(found.at.since(now));
            return Some((Reason::Mismatch, format!("{path}: was written {by} in the future: a clock is wrong")));
        }
        if let Some(most) = max_age.filter(|most| age > *most) {
            return Some((Reason::Overdue, format!("{path}: expected it at most {} old, found it {} old", print(most), print_measured(age))));
        }
        let size = found.size;
        if let Some(least) = min_size.filter(|least| size < *least) {
            return Some((Reason::Mismatch, format!("{path}: expected at least {least} bytes, found {size}")));
        }
        let most = max_size.filter(|most| size > *most)?;
        Some((Reason::Mismatch, format!("{path}: expected at most {most} bytes, found {size}")))
    }
}

/// Looks at the files of a pattern; folders are none.
fn look(pattern: &str) -> Look {
    let mut look = Look::default();
    let add = |path: &Path, look: &mut Look| match std::fs::metadata(path) {
        Ok(of) if of.is_dir() => {}
        Ok(of) => {
            let at = of.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
            look.found.push(Found { path: path.to_owned(), at: Timestamp(0) + at, size: of.len() });
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => look.hidden = Some(path.to_owned()),
        Err(error) => look.broken = Some(error.to_string()),
    };
    // A path without a pattern is asked itself: in a folder that may be searched and not listed it is found all the same.
    if !pattern.contains(['*', '?', '[']) {
        add(Path::new(pattern), &mut look);
        return look;
    }
    for entry in glob::glob(pattern).into_iter().flatten().take(MAX_FILES) {
        match entry {
            Ok(path) => add(&path, &mut look),
            Err(error) if error.error().kind() == io::ErrorKind::PermissionDenied => look.hidden = Some(error.path().join("*")),
            Err(error) => look.broken = Some(error.to_string()),
        }
    }
    look
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn a_configuration_says_what_is_expected_and_what_is_wrong_with_it() {
        let many = format!("{{paths: [{}]}}", vec!["/a"; MAX_PATTERNS + 1].join(", "));
        for (text, wrong) in [
            ("{paths: []}", "paths: expected 1 to 20, found 0"),
            (&many, "found 21"),
            ("{paths: [a/b]}", "expected an absolute path, found \"a/b\""),
            ("{paths: ['/a/[']}", "paths: \"/a/[\""),
            ("{paths: [/a], expect: absent, max_age: 1h}", "expected no limits for what must not be there"),
            ("{paths: [/a], min_size: 2, max_size: 1}", "min_size: expected at most max_size"),
        ] {
            let config: FileConfig = from_text("f", text).expect(text);
            let why = plan(&config).err().unwrap_or_else(|| panic!("{text} is wrong"));
            assert!(why.contains(wrong), "{text}: {why}");
        }
        assert!(from_text::<FileConfig>("f", "{paths: [/a], expect: gone}").is_err());
    }
}
