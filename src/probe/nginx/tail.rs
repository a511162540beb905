//! A log file, followed through rotation: by rename and create, by copy and truncate, by deletion.
//!
//! What was in the file before is never read. A line is taken once it ends; one that is still being written waits.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How much is read at once, and so the longest line: nginx's own are limited by `large_client_header_buffers`, four of
/// 8 KiB, each byte of which may be written as four. A longer one is passed over and counted.
const CHUNK: usize = 256 * 1024;

/// The most that one look reads, of the end: at 15 seconds' interval 1 MiB a second. The rest is passed over and counted.
pub const MAX_READ: u64 = 16 << 20;

/// How many of the last bytes that were read are kept, to see whether it is still the same text.
const MARK: usize = 64;

/// A file that has no name any more is still read so many times: whoever writes to it may be slow to take the new one.
const LOOKS_AT_OLD: u8 = 2;

/// What one look found beside the lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Bytes that came, those that were passed over among them.
    pub grown: u64,
    /// Bytes that were passed over: there were too many since the last look.
    pub skipped: u64,
    /// Lines that were passed over: they were too long.
    pub long: u64,
    /// Whether there was no file of that name.
    pub missing: bool,
}

/// A log that is followed.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    open: Option<Open>,
    /// What had the name before, and how often it is still read.
    old: Option<(Open, u8)>,
    begun: bool,
}

impl Tail {
    /// Follows this file; the first look begins at its end.
    pub fn new(path: PathBuf) -> Self {
        Self { path, open: None, old: None, begun: false }
    }

    /// Returns the name that is followed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes every line that has ended since the last look, without its end. It blocks as reading a file does.
    ///
    /// # Errors
    /// The file cannot be opened or read, or is no file.
    pub fn look(&mut self, line: &mut dyn FnMut(&[u8])) -> io::Result<News> {
        let there = match std::fs::metadata(&self.path) {
            Ok(of) if !of.is_file() => return Err(io::Error::new(io::ErrorKind::InvalidInput, "expected a file")),
            Ok(of) => Some((of.dev(), of.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(is) = there
            && self.open.as_ref().is_none_or(|open| open.is != is)
        {
            let new = Open::new(&self.path, !self.begun)?;
            self.old = self.open.replace(new).map(|old| (old, LOOKS_AT_OLD)).or(self.old.take());
        }
        self.begun = true;
        let mut news = News { missing: there.is_none(), ..News::default() };
        if let Some((old, looks)) = &mut self.old {
            old.read(&mut news, line)?;
            *looks -= 1;
            if *looks == 0 {
                self.old = None;
            }
        }
        if let Some(open) = &mut self.open {
            open.read(&mut news, line)?;
        }
        if news.missing && news.grown == 0 {
            // Nobody writes to it any more: its space is not held back.
            self.open = None;
        }
        Ok(news)
    }
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Device and inode.
    is: (u64, u64),
    /// Up to where it was read.
    at: u64,
    /// What stands before that.
    mark: Vec<u8>,
    /// The line at `at` is passed over.
    passing: bool,
}

impl Open {
    fn new(path: &Path, at_end: bool) -> io::Result<Self> {
        // A pipe in its place must not hold us up.
        let file = File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
        let of = file.metadata()?;
        let mut open = Self { file, is: (of.dev(), of.ino()), at: 0, mark: Vec::new(), passing: false };
        if at_end {
            open.at = of.len();
            open.remember()?;
            open.passing = open.mark.last().is_some_and(|byte| *byte != b'\n');
        }
        Ok(open)
    }

    fn before(&self, wanted: usize) -> io::Result<Vec<u8>> {
        let begin = self.at.saturating_sub(wanted as u64);
        let mut bytes = vec![0; (self.at - begin) as usize];
        self.file.read_exact_at(&mut bytes, begin)?;
        Ok(bytes)
    }

    fn remember(&mut self) -> io::Result<()> {
        self.mark = self.before(MARK)?;
        Ok(())
    }

    fn read(&mut self, news: &mut News, line: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut end = self.file.metadata()?.len();
        if end < self.at || self.before(self.mark.len()).ok().is_none_or(|found| found != self.mark) {
            // Emptied, and perhaps grown again since.
            (self.at, self.passing) = (0, false);
            end = self.file.metadata()?.len();
        }
        news.grown += end - self.at;
        if end - self.at > MAX_READ {
            news.skipped += end - self.at - MAX_READ;
            (self.at, self.passing) = (end - MAX_READ, true);
        }
        let mut chunk = vec![0; CHUNK.min((end - self.at) as usize)];
        while self.at < end {
            let room = chunk.len().min((end - self.at) as usize);
            let count = self.file.read_at(&mut chunk[..room], self.at)?;
            let bytes = &chunk[..count];
            let Some(last) = memchr::memrchr(b'\n', bytes) else {
                if count == CHUNK {
                    news.long += u64::from(!self.passing);
                    self.passing = true;
                    self.at += count as u64;
                    continue;
                }
                // It has not ended.
                break;
            };
            let mut begin = 0;
            for stop in memchr::memchr_iter(b'\n', &bytes[..=last]) {
                if !std::mem::take(&mut self.passing) {
                    line(&bytes[begin..stop]);
                }
                begin = stop + 1;
            }
            self.at += begin as u64;
        }
        // What has not ended came, and comes again.
        news.grown -= end.saturating_sub(self.at);
        self.remember()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn append(path: &Path, text: impl AsRef<[u8]>) {
        File::options().append(true).create(true).open(path).unwrap().write_all(text.as_ref()).unwrap();
    }

    fn look(tail: &mut Tail) -> (Vec<String>, News) {
        let mut lines = Vec::new();
        let news = tail.look(&mut |line| lines.push(String::from_utf8_lossy(line).into_owned())).unwrap();
        (lines, news)
    }

    fn followed() -> (tempfile::TempDir, PathBuf, Tail) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        append(&path, "before\n");
        let mut tail = Tail::new(path.clone());
        assert_eq!(look(&mut tail).0, [""; 0], "what was there before is not read");
        (folder, path, tail)
    }

    #[test]
    fn each_line_is_taken_once_and_only_when_it_has_ended() {
        let (_folder, path, mut tail) = followed();
        append(&path, "one\ntwo\nthr");
        assert_eq!(look(&mut tail), (vec!["one".into(), "two".into()], News { grown: 8, ..News::default() }));
        assert_eq!(look(&mut tail).0, [""; 0]);
        append(&path, "ee\n\n");
        assert_eq!(look(&mut tail).0, ["three", ""]);
    }

    #[test]
    fn a_first_look_into_the_middle_of_a_line_passes_over_the_rest_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        append(&path, "begun, ");
        let mut tail = Tail::new(path.clone());
        look(&mut tail);
        append(&path, "ended\nnext\n");
        assert_eq!(look(&mut tail).0, ["next"]);
    }

    #[test]
    fn a_renamed_file_is_read_to_its_end_and_the_new_one_from_its_beginning() {
        let (folder, path, mut tail) = followed();
        append(&path, "one\n");
        let old = folder.path().join("access.log.1");
        std::fs::rename(&path, &old).unwrap();
        append(&old, "two\n");
        assert_eq!(look(&mut tail), (vec!["one".into(), "two".into()], News { grown: 8, missing: true, ..News::default() }));
        append(&old, "three\n");
        append(&path, "four\n");
        assert_eq!(look(&mut tail).0, ["three", "four"]);
        // Before nginx has reopened its log, its workers still write to the old one.
        append(&old, "five\n");
        append(&path, "six\n");
        assert_eq!(look(&mut tail).0, ["five", "six"]);
        append(&old, "nobody writes here any more\n");
        append(&path, "seven\n");
        assert_eq!(look(&mut tail).0, ["seven"]);
    }

    #[test]
    fn an_emptied_file_is_read_from_its_beginning_even_if_it_has_outgrown_its_old_length() {
        let (_folder, path, mut tail) = followed();
        append(&path, "one\n");
        look(&mut tail);
        for grown in ["two\n".to_owned(), "three\n".repeat(10)] {
            File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
            append(&path, &grown);
            assert_eq!(look(&mut tail).0.concat(), grown.replace('\n', ""));
        }
    }

    #[test]
    fn a_deleted_file_is_missing_and_the_next_is_read_from_its_beginning() {
        let (_folder, path, mut tail) = followed();
        std::fs::remove_file(&path).unwrap();
        assert!(look(&mut tail).1.missing);
        assert!(look(&mut tail).1.missing && tail.open.is_none(), "its space is given back");
        append(&path, "one\n");
        assert_eq!(look(&mut tail), (vec!["one".into()], News { grown: 4, ..News::default() }));
        // A pipe, a folder: never read.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(tail.look(&mut |_| ()).is_err());
    }

    #[test]
    fn a_long_line_and_what_is_too_much_are_passed_over_and_counted() {
        let (_folder, path, mut tail) = followed();
        append(&path, [b"x".repeat(CHUNK * 2 + 5), b"\nafter\n".to_vec()].concat());
        let (lines, news) = look(&mut tail);
        assert_eq!((lines, news.long), (vec!["after".to_owned()], 1));
        let sparse = File::options().write(true).open(&path).unwrap();
        sparse.set_len(1 << 40).unwrap();
        append(&path, "\nlast\n");
        let (lines, news) = look(&mut tail);
        assert_eq!(lines, ["last"]);
        assert!(news.skipped > (1 << 40) - (17 << 20) && news.grown > 1 << 39, "{news:?}");
    }
}
