//! The file in which beat keeps its schedule, in every form that Python's `shelve` gives it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::model::{Failure, Reason, Timestamp};
use crate::probe::Looking;

/// A clock that differs by less is no finding.
const CLOCKS: Duration = Duration::from_secs(60);

/// What Python's storages add to the name: nothing (`dbm.gnu`, `dbm.sqlite3`), the write-ahead log of `dbm.sqlite3`,
/// which alone is written between two checkpoints, the three files of `dbm.dumb`, the two of a `dbm.ndbm` over GDBM,
/// and the one over Berkeley DB. `-shm` is mapped memory: its time says nothing.
const FORMS: [&str; 7] = ["", "-wal", ".dat", ".dir", ".bak", ".pag", BERKELEY];

/// `dbm.ndbm` of Debian: `shelve` cannot sync it, so it is written when beat ends (measured with Celery 5.7 on Python
/// 3.11 of Debian 12, which uses it where `python3-gdbm` is not installed).
const BERKELEY: &str = ".db";

/// What the files say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Schedule {
    /// None exists.
    Missing,
    /// This one may not be looked at.
    Hidden { path: PathBuf, why: String },
    /// The newest is from the future.
    Ahead { path: PathBuf, by: Duration },
    /// The newest, and whether it is one that is written only when beat ends.
    Written { path: PathBuf, age: Duration, at_end: bool },
}

/// Looks at all forms of all files.
pub(super) async fn look(files: &[PathBuf], looking: &Looking, now: Timestamp) -> Result<Schedule, Failure> {
    let files = files.to_vec();
    looking.at(move || newest(&files, now)).await?
}

fn newest(files: &[PathBuf], now: Timestamp) -> Result<Schedule, Failure> {
    let mut newest: Option<(Timestamp, PathBuf, bool)> = None;
    let mut hidden = None;
    for file in files {
        for form in FORMS {
            let path = with_ending(file, form);
            match std::fs::metadata(&path).and_then(|of| of.modified()) {
                Ok(time) => {
                    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
                    let at = Timestamp(0) + since;
                    if newest.as_ref().is_none_or(|(newest, ..)| at > *newest) {
                        newest = Some((at, path, form == BERKELEY));
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => hidden = Some(Schedule::Hidden { path, why: error.to_string() }),
                Err(error) => return Err(Failure::new(Reason::Unavailable, format!("{}: {error}", path.display()))),
            }
        }
    }
    Ok(match newest {
        Some((at, path, _)) if at.since(now) > CLOCKS => Schedule::Ahead { path, by: at.since(now) },
        Some((at, path, at_end)) => Schedule::Written { path, age: now.since(at), at_end },
        None => hidden.unwrap_or(Schedule::Missing),
    })
}

fn with_ending(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_all_forms_the_newest_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let base = folder.path().join("celerybeat-schedule");
        let now = Timestamp::from_secs(1_000_000);
        let touch = |form: &str, seconds_ago: u64| {
            let file = std::fs::File::create(with_ending(&base, form)).expect("is made");
            file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000 - seconds_ago)).expect("is set");
        };
        let look = || newest(std::slice::from_ref(&base), now).expect("can be looked at");
        let written = |form: &str, age: u64| Schedule::Written {
            path: with_ending(&base, form),
            age: Duration::from_secs(age),
            at_end: form == BERKELEY,
        };
        assert_eq!(look(), Schedule::Missing);
        touch("-shm", 1);
        assert_eq!(look(), Schedule::Missing, "mapped memory is no schedule");
        for (ago, form) in [(900, ".db"), (800, ""), (700, ".dat"), (600, ".dir"), (500, ".bak"), (400, ".pag"), (300, "-wal")] {
            touch(form, ago);
            assert_eq!(look(), written(form, ago));
        }
        touch(".db", 200);
        assert_eq!(look(), written(".db", 200));
        let file = std::fs::File::create(&base).expect("is made");
        file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_059)).expect("is set");
        assert_eq!(look(), written("", 0), "clocks differ a little");
        file.set_modified(UNIX_EPOCH + Duration::from_secs(1_003_600)).expect("is set");
        assert_eq!(look(), Schedule::Ahead { path: base.clone(), by: Duration::from_secs(3600) });
    }
}
