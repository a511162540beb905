//! The files of nginx's configuration: which there are, and when each was last written.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::client::process;
use crate::model::Timestamp;

/// The most files, and how deep they may include each other or lie in folders.
const MAX_FILES: usize = 1000;
const MAX_DEPTH: usize = 10;

/// The most bytes of one file that are looked through for `include`.
const MAX_FILE: u64 = 4 << 20;

/// What tells one state of a file from another: length, time of its last writing in nanoseconds.
pub type State = (u64, i128);

/// What is on disk.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// Every file.
    pub files: BTreeMap<PathBuf, State>,
    /// What may not be read, and what would open it.
    pub denied: Vec<(PathBuf, String)>,
    /// What is not there although it is named without a pattern.
    pub absent: Vec<PathBuf>,
}

impl Configuration {
    /// Looks at these files with all that they include, and at all files of these folders. It blocks as files do.
    pub fn look(roots: &[PathBuf]) -> Self {
        let mut found = Self::default();
        for root in roots {
            // Names in `include` are relative to the folder of nginx.conf, wherever the including file is.
            let base = root.parent().unwrap_or(Path::new("/"));
            found.add(root, base, 0);
        }
        found
    }

    /// Returns the file that was written last, and when.
    pub(super) fn newest(&self) -> Option<(&Path, Timestamp)> {
        let (path, (_, written)) = self.files.iter().max_by_key(|(_, (_, written))| *written)?;
        Some((path, Timestamp(i64::try_from(written / 1_000_000).unwrap_or(i64::MAX))))
    }

    fn add(&mut self, path: &Path, base: &Path, depth: usize) {
        if depth > MAX_DEPTH || self.files.len() >= MAX_FILES || self.files.contains_key(path) {
            return;
        }
        if let Err(error) = self.try_add(path, base, depth) {
            match error.kind() {
                io::ErrorKind::NotFound => self.absent.push(path.to_owned()),
                _ => self.denied.push((path.to_owned(), process::remedy(path))),
            }
        }
    }

    fn try_add(&mut self, path: &Path, base: &Path, depth: usize) -> io::Result<()> {
        let of = std::fs::metadata(path)?;
        if of.is_dir() {
            let mut entries: Vec<_> = std::fs::read_dir(path)?.filter_map(|entry| Some(entry.ok()?.path())).take(MAX_FILES).collect();
            entries.sort();
            for entry in entries {
                self.add(&entry, path, depth + 1);
            }
            return Ok(());
        }
        // A link that was set anew is a change too: sites-enabled consists of them.
        let written = |of: &std::fs::Metadata| i128::from(of.mtime()) * 1_000_000_000 + i128::from(of.mtime_nsec());
        let link = std::fs::symlink_metadata(path)?;
        self.files.insert(path.to_owned(), (of.len(), written(&of).max(written(&link))));
        if !of.is_file() || of.len() > MAX_FILE {
            return Ok(());
        }
        for name in includes(&String::from_utf8_lossy(&std::fs::read(path)?)) {
            let pattern = base.join(&name);
            if name.contains(['*', '?', '[']) {
                for found in glob::glob(&pattern.to_string_lossy()).into_iter().flatten() {
                    match found {
                        Ok(path) => self.add(&path, base, depth + 1),
                        Err(error) => self.denied.push((error.path().to_owned(), process::remedy(error.path()))),
                    }
                }
                self.closed_folder(&pattern);
            } else {
                self.add(&pattern, base, depth + 1);
            }
        }
        Ok(())
    }

    /// A folder that may not be listed gives no names and no error.
    fn closed_folder(&mut self, pattern: &Path) {
        let plain = |path: &&Path| !path.to_string_lossy().contains(['*', '?', '[']);
        if let Some(folder) = pattern.ancestors().find(plain)
            && folder.is_dir()
            && std::fs::read_dir(folder).is_err()
        {
            self.denied.push((folder.to_owned(), process::remedy(folder)));
        }
    }
}

/// Returns what a configuration includes.
fn includes(text: &str) -> Vec<String> {
    let named = |(words, _): (Vec<String>, char)| match <[String; 2]>::try_from(words) {
        Ok([name, what]) if name == "include" => Some(what),
        _ => None,
    };
    directives(text).into_iter().filter_map(named).collect()
}

/// Returns the directives of a configuration, each with what ends it: `;`, `{` or `}`, the last without words. Words, quotes
/// and comments as `ngx_conf_read_token` reads them.
pub fn directives(text: &str) -> Vec<(Vec<String>, char)> {
    let mut all = Vec::new();
    let mut directive: Vec<String> = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => {}
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            ';' | '{' | '}' => all.push((std::mem::take(&mut directive), c)),
            quote @ ('"' | '\'') => {
                let mut word = String::new();
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => word.extend(chars.next()),
                        c if c == quote => break,
                        c => word.push(c),
                    }
                }
                directive.push(word);
            }
            c => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !matches!(c, ';' | '{')) {
                    word.push(c);
                    // ${name} is no block.
                    if c == '$' && chars.next_if_eq(&'{').is_some() {
                        word.push('{');
                    }
                }
                directive.push(word);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn includes_are_found_between_comments_quotes_and_blocks() {
        let text = r#"
# include none.conf;
include mime.types; events { worker_connections 9; } # include none;
http { log_format a '$x include none;' "; include none;"; include "quoted name.conf"; set $a ${b}; include
    /etc/nginx/sites-enabled/*; include too many;
    location ~ \.(php|x)$ { include snippets/a.conf; return 200 "a\"; include none; "; } }
include unended"#;
        assert_eq!(includes(text), ["mime.types", "quoted name.conf", "/etc/nginx/sites-enabled/*", "snippets/a.conf"]);
        for length in 0..text.len() {
            includes(&text[..length]);
        }
    }

    #[test]
    fn every_file_is_looked_at_once_through_patterns_links_folders_and_circles() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["sites", "enabled", "conf.d"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        for (name, text) in [
            ("nginx.conf", "include conf.d/*.conf; include enabled/*; include nginx.conf; include none.conf; include none/*;"),
            ("conf.d/a.conf", "include nginx.conf; include mime.types;"),
            ("conf.d/a.conf.bak", ""),
            ("mime.types", ""),
            ("sites/site", ""),
        ] {
            std::fs::write(path(name), text).unwrap();
        }
        std::os::unix::fs::symlink("../sites/site", path("enabled/site")).unwrap();
        let names = |found: &Configuration| -> Vec<String> {
            found.files.keys().map(|file| file.strip_prefix(folder.path()).unwrap().display().to_string()).collect()
        };
        let found = Configuration::look(&[path("nginx.conf")]);
        assert_eq!(names(&found), ["conf.d/a.conf", "enabled/site", "mime.types", "nginx.conf"]);
        assert_eq!((found.absent, found.denied), (vec![path("none.conf")], vec![]));
        let found = Configuration::look(&[folder.path().to_owned()]);
        assert_eq!(names(&found).len(), 6);
        let newest = std::fs::File::options().write(true).open(path("mime.types")).unwrap();
        newest.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(4_000_000_000)).unwrap();
        let found = Configuration::look(&[path("nginx.conf")]);
        assert_eq!(found.newest(), Some((&*path("mime.types"), Timestamp::from_secs(4_000_000_000))));
    }
}
