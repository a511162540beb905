//! What fills a disk: a bounded look, and only while space is short.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use tokio::time::Instant;

use super::disk::bytes;
use crate::model::duration::print_measured;
use crate::tasks;

/// The most entries of one look, its time, and how often one is taken.
const MAX_ENTRIES: usize = 100_000;
const WITHIN: Duration = Duration::from_secs(2);
const EVERY: Duration = Duration::from_secs(300);
/// What was written to within this time may be what grows.
const LATELY: Duration = Duration::from_secs(3600);
/// How many are told, and how many are remembered for the next look.
const TOLD: usize = 5;
const REMEMBERED: usize = 500;
/// Nothing smaller fills a disk.
const SMALLEST: u64 = 64 * 1024;

/// The last looks, by mount.
#[derive(Default)]
pub(super) struct Growers(Mutex<BTreeMap<PathBuf, Last>>);

struct Last {
    at: Instant,
    sizes: BTreeMap<PathBuf, u64>,
    told: Vec<String>,
}

/// A file that was written to lately.
#[derive(Clone, Debug)]
struct Fresh {
    path: PathBuf,
    size: u64,
    age: Duration,
}

impl Growers {
    /// Names what grew most on a mount since the last look, and before there is one the largest of what was written to
    /// lately.
    pub(super) fn of(&self, point: &Path) -> Vec<String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = all.get(point).filter(|last| last.at.elapsed() < EVERY) {
            return last.told.clone();
        }
        let (fresh, whole) = walk(point);
        let before = all.get(point);
        let grown = |file: &Fresh| {
            let was = before.map(|last| last.sizes.get(&file.path).copied().unwrap_or(0));
            file.size.saturating_sub(was.unwrap_or(0))
        };
        let mut files: Vec<(u64, &Fresh)> = fresh.iter().map(|file| (grown(file), file)).filter(|(grown, _)| *grown >= SMALLEST).collect();
        files.sort_by_key(|(grown, file)| std::cmp::Reverse((*grown, file.size)));
        let since = before.map(|last| print_measured(last.at.elapsed()));
        let line = |(grown, file): &(u64, &Fresh)| {
            let (path, size, ago) = (file.path.display(), bytes(file.size as f64), print_measured(file.age));
            match &since {
                Some(since) => format!("grew by {} in {since}: {path} ({size})", bytes(*grown as f64)),
                None => format!("written to {ago} ago: {path} ({size})"),
            }
        };
        let mut told: Vec<String> = files.iter().take(TOLD).map(line).collect();
        told.extend(folders(point, &files).into_iter().map(|(folder, sum, count)| {
            format!("{count} files written to lately in {}: {} in all", folder.display(), bytes(sum as f64))
        }));
        if told.is_empty() {
            told.push(format!("{}: no large file was written to in the last hour: what is deleted and still open takes space too (lsof +L1)", point.display()));
        }
        if !whole {
            told.push(format!("{}: not all was looked at: du -xh --max-depth 2 {} shows the rest", point.display(), point.display()));
        }
        let sizes = files.iter().take(REMEMBERED).map(|(_, file)| (file.path.clone(), file.size)).collect();
        all.insert(point.to_owned(), Last { at: Instant::now(), sizes, told: told.clone() });
        told
    }
}

/// Returns the two folders with the most bytes in many files.
fn folders<'a>(point: &Path, files: &[(u64, &'a Fresh)]) -> Vec<(&'a Path, u64, usize)> {
    let mut sums: BTreeMap<&Path, (u64, usize)> = BTreeMap::new();
    for (grown, file) in files {
        if let Some(folder) = file.path.parent().filter(|folder| folder.starts_with(point)) {
            let sum = sums.entry(folder).or_default();
            *sum = (sum.0 + grown, sum.1 + 1);
        }
    }
    let mut sums: Vec<_> = sums.into_iter().filter(|(_, (_, count))| *count > TOLD).map(|(folder, (sum, count))| (folder, sum, count)).collect();
    sums.sort_by_key(|(_, sum, _)| std::cmp::Reverse(*sum));
    sums.truncate(2);
    sums
}

/// Walks one file system, folders nearest the top first; says whether it saw all that it may see.
fn walk(point: &Path) -> (Vec<Fresh>, bool) {
    let (begin, now) = (Instant::now(), tasks::wall_now());
    let (mut fresh, mut seen, mut whole) = (Vec::new(), 0, true);
    let Ok(root) = rustix::fs::stat(point) else { return (fresh, false) };
    let mut waiting = std::collections::VecDeque::from([point.to_owned()]);
    while let Some(folder) = waiting.pop_front() {
        if seen >= MAX_ENTRIES || begin.elapsed() > WITHIN {
            return (fresh, false);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let Ok(entries) = rustix::fs::open(&folder, flags, Mode::empty()).and_then(Dir::new) else {
            whole = false;
            continue;
        };
        for entry in entries.flatten().take(MAX_ENTRIES) {
            seen += 1;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            use std::os::unix::ffi::OsStrExt;
            let path = folder.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            let Ok(stat) = rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) else { continue };
            // Not into what is mounted within it.
            if stat.st_dev != root.st_dev {
                continue;
            }
            let age = now.since(crate::model::Timestamp::from_secs(stat.st_mtime));
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => waiting.push_back(path),
                // What it takes, and not how long a sparse file says that it is.
                FileType::RegularFile if age < LATELY => {
                    fresh.push(Fresh { path, size: u64::try_from(stat.st_blocks).unwrap_or(0) * 512, age });
                }
                _ => {}
            }
        }
    }
    (fresh, whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_grew_most_is_named_first_and_a_look_is_taken_now_and_then() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, size: usize| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("has one")).expect("is made");
            std::fs::write(path, vec![1u8; size]).expect("is written");
        };
        write("log/large", 3_000_000);
        write("log/grows", 1_000_000);
        (0..10).for_each(|n| write(&format!("uploads/{n}"), 100_000));
        std::os::unix::fs::symlink("/", folder.path().join("away")).expect("is linked");
        let growers = Growers::default();
        let first = growers.of(folder.path());
        assert!(first[0].starts_with("written to ") && first[0].contains("log/large"), "{first:?}");
        assert!(first.iter().any(|line| line.contains("10 files written to lately in") && line.contains("uploads")), "{first:?}");
        write("log/grows", 9_000_000);
        assert_eq!(growers.of(folder.path()), first, "it is not looked again at once");
        tokio::time::advance(EVERY).await;
        let second = growers.of(folder.path());
        assert!(second[0].starts_with("grew by 7.6 MiB in 5m") && second[0].contains("log/grows"), "{second:?}");
        assert!(!second.iter().any(|line| line.contains("log/large")), "{second:?}");
    }
}
