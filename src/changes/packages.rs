//! What the log of dpkg says: packages that were installed, upgraded or removed.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;

use super::{Change, Kind};
use crate::model::Timestamp;

/// How much is read at once: of a log that grew by more, the end.
pub const MAX_READ: u64 = 256 * 1024;

/// A log that is followed through rotation.
#[derive(Debug)]
pub struct PackageLog {
    path: PathBuf,
    /// The file that was read last, and up to where.
    read: Option<(u64, u64)>,
}

impl PackageLog {
    /// Follows this file; nothing is read yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: None }
    }

    /// Returns what came since the last call; the first reads the end of the log. A log that is not there says nothing.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn news(&mut self) -> io::Result<Vec<Change>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let of = file.metadata()?;
        if !of.is_file() {
            return Err(io::Error::other("expected a file"));
        }
        let known = self.read.filter(|(inode, end)| *inode == of.ino() && *end <= of.len()).map_or(0, |(_, end)| end);
        let begin = known.max(of.len().saturating_sub(MAX_READ));
        file.seek(SeekFrom::Start(begin))?;
        let mut bytes = Vec::new();
        file.take(MAX_READ).read_to_end(&mut bytes)?;
        // A line that is still being written is read next time.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.read = Some((of.ino(), begin + whole as u64));
        let text = String::from_utf8_lossy(&bytes[..whole]);
        // Where it was begun in the middle, the first line may be half of one; it does not parse then.
        Ok(text.lines().filter_map(|line| change(line, &TimeZone::system())).collect())
    }
}

/// Reads `2026-11-25 20:51:00 upgrade nginx:amd64 1.22.1-9 1.22.2-1` (dpkg(1), `--log`; local time).
fn change(line: &str, zone: &TimeZone) -> Option<Change> {
    let words: Vec<&str> = line.split(' ').collect();
    let &[date, time, action @ ("install" | "upgrade" | "remove"), package, old, new] = words.as_slice() else { return None };
    let moment = format!("{date}T{time}").parse::<jiff::civil::DateTime>().ok()?;
    let at = zone.to_timestamp(moment).ok()?;
    let package = package.split_once(':').map_or(package, |(name, _)| name);
    let detail = match action {
        "install" => format!("{new}, was not installed"),
        "remove" => format!("{old}, removed"),
        _ => format!("{old} → {new}"),
    };
    Some(Change { at: Timestamp(at.as_millisecond()), kind: Kind::Upgraded, subject: format!("package {package}"), detail })
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// A line of `dpkg.log`.
    pub fn package(line: &str) {
        change(line, &TimeZone::UTC);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_is_followed_through_rotation_and_what_is_no_change_is_passed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("dpkg.log");
        let mut log = PackageLog::new(&path);
        assert_eq!(log.news().expect("is read"), [], "there is none");
        let append = |text: &str| {
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).expect("opens");
            file.write_all(text.as_bytes()).expect("is written");
        };
        append(
            "gar\u{1b}bage\n2026-11-25 20:50:58 startup archives unpack\n2026-11-25 20:51:00 upgrade nginx:amd64 1.22.1-9 1.22.2-1\n\
             2026-11-25 20:51:00 status half-configured nginx:amd64 1.22.1-9\n2026-13-45 99:99:99 upgrade a:amd64 1 2\n2026-11-25 20:52:00 insta",
        );
        let told =
            |changes: Vec<Change>| changes.into_iter().map(|change| format!("{} {}", change.subject, change.detail)).collect::<Vec<_>>();
        assert_eq!(told(log.news().expect("is read")), ["package nginx 1.22.1-9 → 1.22.2-1"]);
        append("ll vim:all <none> 2:9\n");
        assert_eq!(told(log.news().expect("is read")), ["package vim 2:9, was not installed"]);
        assert_eq!(log.news().expect("is read"), []);
        std::fs::rename(&path, folder.path().join("dpkg.log.1")).expect("is rotated");
        append("2026-11-25 20:53:00 remove vim:all 2:9 <none>\n");
        assert_eq!(told(log.news().expect("is read")), ["package vim 2:9, removed"]);
        // Of a log that is huge the end is read, and no more.
        append(&"2026-11-25 20:54:00 upgrade a:all 1 2\n".repeat(100_000));
        let many = log.news().expect("is read").len();
        assert!((1..=8000).contains(&many), "{many}");
        let utc = change("2026-11-25 20:51:00 upgrade nginx:amd64 1 2", &TimeZone::UTC).expect("is one");
        assert_eq!(utc.at.to_string(), "2026-11-25T20:51:00Z");
    }

    proptest::proptest! {
        #[test]
        fn whatever_stands_in_the_log_is_a_change_or_passed_over(
            line in proptest::prop_oneof![
                "[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} (upgrade|install|remove) [a-z:]{0,8} [^ ]{0,6} [^ ]{0,6}",
                ".{0,120}",
            ],
        ) {
            if let Some(change) = change(&line, &TimeZone::UTC) {
                proptest::prop_assert!(change.subject.starts_with("package ") && !change.detail.is_empty(), "{line:?}");
            }
        }
    }
}
