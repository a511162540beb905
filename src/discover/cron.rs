//! What cron runs, from its tables: jobs whose end nobody follows. Their commands may hold passwords, and those are not
//! said on.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::probe::heartbeat::cron::Cron;

/// The most tables, the most bytes of one, and the most jobs.
const MAX: (usize, u64, usize) = (200, 256 * 1024, 100);
/// Tables that Debian's packages bring: their jobs are the distribution's.
const PACKAGES: [&str; 9] =
    ["e2scrub_all", "anacron", "certbot", "php", "sysstat", "popularity-contest", "mdadm", "zfsutils-linux", ".placeholder"];
/// The folders of scripts that `/etc/crontab` itself runs.
const RUN_PARTS: &str = "run-parts";

/// A line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// When it runs, as it is written.
    pub schedule: String,
    /// What it runs.
    pub command: String,
    /// Where it stands: `/etc/cron.d/site:3`.
    pub place: String,
    /// Whether it already reports to Proctor.
    pub followed: bool,
}

/// Reads all tables that may be read; beside the jobs, what may not.
pub fn look(etc: &Path, spool: &Path) -> (Vec<Job>, Vec<PathBuf>) {
    let (mut jobs, mut denied) = (Vec::new(), Vec::new());
    let mut tables = vec![(etc.join("crontab"), true)];
    for (folder, system) in [(etc.join("cron.d"), true), (spool.to_owned(), false)] {
        match std::fs::read_dir(&folder) {
            Ok(entries) => {
                let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).take(MAX.0).collect();
                paths.sort();
                tables.extend(paths.into_iter().map(|path| (path, system)));
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => denied.push(folder),
            Err(_) => {}
        }
    }
    for (path, system) in tables {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if PACKAGES.contains(&name.as_ref()) || !path.is_file() {
            continue;
        }
        let mut text = String::new();
        match std::fs::File::open(&path).and_then(|file| file.take(MAX.1).read_to_string(&mut text)) {
            Ok(_) => jobs.extend(parse(&text, system, &path.display().to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => denied.push(path),
            // No text, or gone: no table.
            Err(_) => {}
        }
    }
    jobs.truncate(MAX.2);
    (jobs, denied)
}

/// Reads one table; those of the system name a user before the command.
pub fn parse(text: &str, system: bool, place: &str) -> Vec<Job> {
    let jobs = text.lines().enumerate().filter_map(|(at, line)| {
        let line = line.trim();
        let fields = if line.starts_with('@') { 1 } else { 5 };
        let mut rest = line;
        let mut words = Vec::new();
        for _ in 0..fields + usize::from(system) {
            let (word, after) = rest.split_once(|c: char| c.is_ascii_whitespace())?;
            words.push(word);
            rest = after.trim_start();
        }
        let schedule = words.get(..fields)?.join(" ");
        // Comments, NAME=value and @reboot are no schedules.
        let job = !line.starts_with('#') && Cron::parse(&schedule).is_ok() && !rest.is_empty() && !rest.contains(RUN_PARTS);
        job.then(|| Job {
            schedule,
            command: rest.to_owned(),
            place: format!("{place}:{}", at + 1),
            followed: rest.contains("proctor run "),
        })
    });
    jobs.collect()
}

impl Job {
    /// Returns a name for it: that of the program, or of the last script that it names.
    pub fn name(&self) -> String {
        let interpreters = [
            "sh", "bash", "python", "python3", "perl", "php", "nice", "ionice", "flock", "env", "cd", "test", "timeout", "chronic", "sudo",
        ];
        let stem = |word: &str| Path::new(word).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let plain = |word: &&str| !word.contains('=') && word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '.');
        let words: Vec<&str> = self.command.split(|c: char| c.is_whitespace() || matches!(c, ';' | '&' | '|' | '(' | ')')).collect();
        // What manage.py does is the job; where the job goes first is not.
        let of_django = words.iter().position(|word| word.ends_with("manage.py")).and_then(|at| words.get(at + 1));
        let goes = |at: usize| at.checked_sub(1).is_some_and(|before| words[before] == "cd");
        let programs = words.iter().enumerate().filter(|(at, word)| plain(word) && !goes(*at)).map(|(_, word)| stem(word));
        let named = of_django.map(|word| stem(word)).or_else(|| {
            let mut programs = programs;
            programs.find(|name| !name.is_empty() && !interpreters.contains(&name.as_str()))
        });
        let name = named.unwrap_or_default();
        let kept: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '-' }).take(30).collect();
        if kept.is_empty() { "job".to_owned() } else { kept }
    }

    /// Returns what to write instead of the command, so that the job is followed.
    pub fn reported(&self, name: &str) -> String {
        if is_secret(&self.command) {
            return format!("proctor run {name} -- … (put \"proctor run {name} --\" before the command in {})", self.place);
        }
        let shell = self.command.contains(['|', '&', ';', '>', '<', '$', '`', '*', '(', '"', '\'', '\\', '%', '~', '=']);
        if shell {
            format!("proctor run {name} -- /bin/sh -c '{}'", self.command.replace('\'', "'\\''"))
        } else {
            format!("proctor run {name} -- {}", self.command)
        }
    }
}

/// Says whether a command may hold a password: it is not repeated then.
fn is_secret(command: &str) -> bool {
    let lower = command.to_lowercase();
    let word =
        |word: &str| (word.starts_with("-p") && word.len() > 2 && !word.starts_with("--")) || (word.contains("://") && word.contains('@'));
    ["pass", "pwd", "secret", "token", "key=", "-u ", "--user", "auth"].iter().any(|sign| lower.contains(sign))
        || command.split_whitespace().any(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r#"
SHELL=/bin/sh
MAILTO=root
# m h dom mon dow user  command
17 *	* * *	root    cd / && run-parts --report /etc/cron.hourly
*/5 * * * * www-data  cd /coursys && venv/bin/python manage.py send_mails >/dev/null
@daily      coursys   /usr/local/bin/backup --quick
30 2 * * *  root      mysqldump -phunter2 coursys | gzip > /var/backups/x.gz
@reboot     root      /usr/local/bin/up
0 3 * * 0   root      proctor run weekly -- /usr/local/bin/weekly
99 * * * *  root      /bin/never
"#;

    #[test]
    fn the_jobs_of_a_table_are_read_each_with_its_line() {
        let jobs = parse(TABLE, true, "/etc/cron.d/site");
        let shown: Vec<(String, String, bool)> = jobs.iter().map(|job| (job.name(), job.place.clone(), job.followed)).collect();
        let place = |line: u32| format!("/etc/cron.d/site:{line}");
        let expected = [("send_mails", 6, false), ("backup", 7, false), ("mysqldump", 8, false), ("proctor", 10, true)];
        assert_eq!(shown, expected.map(|(name, line, followed)| (name.to_owned(), place(line), followed)));
        assert_eq!(jobs[1].reported("backup"), "proctor run backup -- /usr/local/bin/backup --quick");
        assert_eq!(
            jobs[0].reported("mails"),
            "proctor run mails -- /bin/sh -c 'cd /coursys && venv/bin/python manage.py send_mails >/dev/null'"
        );
        assert!(!jobs[2].reported("dump").contains("hunter2"));
        let own = parse("5 4 * * * /home/a/b.sh\n", false, "t");
        assert_eq!((own[0].command.as_str(), own[0].name().as_str()), ("/home/a/b.sh", "b"));
    }

    #[test]
    fn tables_are_looked_for_where_cron_keeps_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let (etc, spool) = (folder.path().join("etc"), folder.path().join("crontabs"));
        std::fs::create_dir_all(etc.join("cron.d")).expect("a folder");
        std::fs::create_dir(&spool).expect("a folder");
        for (path, text) in [(etc.join("crontab"), TABLE), (etc.join("cron.d/certbot"), TABLE), (spool.join("ann"), "1 1 * * * /bin/own\n")]
        {
            std::fs::write(path, text).expect("is written");
        }
        let (jobs, denied) = look(&etc, &spool);
        assert_eq!((jobs.len(), denied), (5, vec![]));
        assert!(jobs[4].place.ends_with("crontabs/ann:1"));
    }
}
