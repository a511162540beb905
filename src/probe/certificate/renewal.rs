//! When the client that renews a certificate should have done so, by the client's own configuration; and what is seen of
//! the client where it has not.
//!
//! certbot: `DIR/live/NAME/fullchain.pem` belongs to `DIR/renewal/NAME.conf`, which every user may read. acme.sh:
//! `NAME.conf` beside the certificate. Nothing is said of others.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::days;
use super::facts::Facts;
use crate::client::net;
use crate::client::process;
use crate::client::secret::{self, SecretError};
use crate::model::{Timestamp, one_line};

const DAY: i64 = 86_400;
/// The largest configuration of a client, and how much is read of the end of its log, in bytes.
const MAX_BYTES: u64 = 64 * 1024;
/// From then on it is said what is seen of the client: its timer comes round twice a day, with up to half a day of delay.
const LATE: Duration = Duration::from_secs(24 * 3600);

/// What is known of a certificate's renewal.
#[derive(Debug)]
pub(super) struct Renewal {
    /// When it is due; nothing where the client's configuration does not say it.
    pub(super) due: Option<Timestamp>,
    /// For the mail: why it is not known, or what is seen of a client that is late.
    pub(super) evidence: Vec<String>,
}

/// Where certbot keeps what belongs to a certificate.
struct Certbot<'a> {
    /// `/etc/letsencrypt`.
    folder: &'a Path,
    name: &'a str,
    conf: PathBuf,
}

impl<'a> Certbot<'a> {
    /// Returns its place if a certificate lies where certbot puts it.
    fn of(certificate: &'a Path) -> Option<Self> {
        let lineage = certificate.parent()?;
        let live = lineage.parent().filter(|live| live.file_name().is_some_and(|name| name == "live"))?;
        let (folder, name) = (live.parent()?, lineage.file_name()?.to_str()?);
        let renewal = folder.join("renewal");
        renewal.is_dir().then(|| Self { folder, name, conf: renewal.join(format!("{name}.conf")) })
    }

    /// Returns what its configuration says, and whether the file tells of each run.
    fn read(&self, leaf: &Facts) -> Result<(Timestamp, bool), String> {
        let bytes = secret::regular(&self.conf, MAX_BYTES).map_err(|error| match &error {
            SecretError::Io { source, .. } if source.kind() == ErrorKind::NotFound => format!("there is no {}, so certbot does not renew it", self.conf.display()),
            error => net::chain(error),
        })?;
        self.understand(&String::from_utf8_lossy(&bytes), leaf)
    }

    fn understand(&self, text: &str, leaf: &Facts) -> Result<(Timestamp, bool), String> {
        let wrong = |what: &str| format!("{} {what}", self.conf.display());
        let (mut section, mut before, mut whole, mut notes_runs) = ("", None, false, false);
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']').trim();
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.split('#').next().unwrap_or("").trim().trim_matches(['"', '\'']);
            match (section, key.trim()) {
                ("", "fullchain") => whole = true,
                ("", "renew_before_expiry") => before = Some(interval(value).ok_or_else(|| wrong(&format!("has a renew_before_expiry that is not understood: {value:?}")))?),
                ("renewalparams", "autorenew") if value.eq_ignore_ascii_case("false") => return Err(wrong("tells certbot not to renew it (autorenew)")),
                ("acme_renewal_info", "ari_retry_after") => notes_runs = true,
                _ => {}
            }
        }
        if !whole {
            return Err(wrong("is no configuration of a renewal"));
        }
        let lifetime = leaf.not_after - leaf.not_before;
        // certbot renewed 30 days before the end until version 4; since then with a third of the lifetime left, or half of
        // it below 10 days. The later of both, since another version may renew than the one that wrote the file.
        let customary = (lifetime / if lifetime < 10 * DAY { 2 } else { 3 }).min(30 * DAY);
        Ok((Timestamp::from_secs(leaf.not_after - before.unwrap_or(customary).min(lifetime)), notes_runs))
    }

    /// Says what is seen of certbot itself: whether it runs, and what it says.
    fn seen(&self, notes_runs: bool, now: Timestamp) -> Vec<String> {
        let ago = |at: i64| format!("{} ago", days(now.since(Timestamp::from_secs(at))));
        let mut seen = Vec::new();
        if notes_runs && let Ok(conf) = std::fs::metadata(&self.conf) {
            seen.push(format!("certbot noted in {} {} that it asked whether renewal is due", self.conf.display(), ago(conf.mtime())));
        }
        // The host that the folder belongs to: this one, or what is mounted of a container.
        let Some(root) = self.folder.ends_with("etc/letsencrypt").then(|| self.folder.ancestors().nth(2)).flatten() else { return seen };
        let log = root.join("var/log/letsencrypt/letsencrypt.log");
        let path = log.display();
        seen.push(match end_of(&log) {
            Ok((written, text)) => {
                let failed = format!("Failed to renew certificate {} ", self.name);
                let line = text.lines().rfind(|line| line.contains(&failed)).or_else(|| text.lines().next_back()).unwrap_or("(nothing)");
                format!("{path} was last written {}: {}", ago(written), one_line(line, 120))
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => format!("{path} may not be read: run: {}", process::remedy(&log)),
            Err(error) if error.kind() == ErrorKind::NotFound => format!("there is no {path}: certbot does not run, or logs elsewhere"),
            Err(error) => format!("{path} cannot be read: {error}"),
        });
        let timers = ["certbot.timer", "snap.certbot.renew.timer", "certbot-renew.timer"].map(|timer| format!("etc/systemd/system/timers.target.wants/{timer}"));
        // The link of a timer leads to where it is no link any more in what is mounted elsewhere.
        let there: Vec<String> = timers.into_iter().chain(["etc/cron.d/certbot".to_owned()]).map(|path| root.join(path)).filter(|path| path.symlink_metadata().is_ok()).map(|path| path.display().to_string()).collect();
        seen.push(if there.is_empty() {
            "no timer of certbot is enabled and there is no /etc/cron.d/certbot: does another cron line start it?".to_owned()
        } else {
            format!("its job: {}", there.join(", "))
        });
        seen
    }
}

/// Returns when a certificate's renewal is due by its client, or why that is not known; nothing where no client is seen.
pub(super) fn of(certificate: &Path, leaf: &Facts, now: Timestamp) -> Option<Renewal> {
    let Some(certbot) = Certbot::of(certificate) else {
        return acme_sh(certificate).map(|(due, conf)| Renewal { due: Some(due), evidence: late(certificate, due, &conf, now).into_iter().collect() });
    };
    Some(match certbot.read(leaf) {
        Ok((due, notes_runs)) => {
            let mut evidence: Vec<String> = late(certificate, due, &certbot.conf, now).into_iter().collect();
            if !evidence.is_empty() {
                evidence.extend(certbot.seen(notes_runs, now));
            }
            Renewal { due: Some(due), evidence }
        }
        Err(why) => Renewal { due: None, evidence: vec![format!("{}: when it is renewed is not known: {why}", certificate.display())] },
    })
}

fn late(certificate: &Path, due: Timestamp, conf: &Path, now: Timestamp) -> Option<String> {
    let late = now.since(due);
    (late > LATE).then(|| format!("{}: by {} its renewal was due {} ago, at {due}", certificate.display(), conf.display(), days(late)))
}

/// Returns when acme.sh renews what lies in one of its own folders, `NAME` or `NAME_ecc`, and by which file.
fn acme_sh(certificate: &Path) -> Option<(Timestamp, PathBuf)> {
    let folder = certificate.parent()?;
    let name = folder.file_name()?.to_str()?;
    let conf = folder.join(format!("{}.conf", name.strip_suffix("_ecc").unwrap_or(name)));
    let text = String::from_utf8(secret::regular(&conf, MAX_BYTES).ok()?).ok()?;
    Some((due_of_acme_sh(&text)?, conf))
}

fn due_of_acme_sh(text: &str) -> Option<Timestamp> {
    let due = text.lines().find_map(|line| line.strip_prefix("Le_NextRenewTime="))?.trim_matches(['\'', '"']).parse().ok()?;
    Some(Timestamp::from_secs(due))
}

/// Returns an interval in seconds, as certbot takes it: `30 days`, `3 days 12 hours`, `2 weeks`, or days alone. A month
/// counts as its shortest.
fn interval(text: &str) -> Option<i64> {
    let text = text.trim().to_ascii_lowercase();
    if let Ok(days) = text.parse::<u16>() {
        return Some(i64::from(days) * DAY);
    }
    let (mut rest, mut total) = (text.as_str(), 0);
    while !rest.is_empty() {
        let unit = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let number: u16 = rest[..rest.len() - unit.len()].parse().ok()?;
        let unit = unit.trim_start();
        rest = unit.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        let seconds = match unit[..unit.len() - rest.len()].trim_end_matches('s') {
            "minute" => 60,
            "h" | "hour" => 3600,
            "d" | "day" => DAY,
            "w" | "week" => 7 * DAY,
            "month" => 28 * DAY,
            "y" | "year" => 365 * DAY,
            _ => return None,
        };
        total += i64::from(number) * seconds;
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    (!text.is_empty()).then_some(total)
}

/// Returns when a file was last written, in seconds since the epoch, and its last text.
fn end_of(path: &Path) -> std::io::Result<(i64, String)> {
    // Only a regular file: opening a FIFO would wait for whoever writes to it.
    let found = std::fs::metadata(path)?;
    if !found.is_file() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(found.len().saturating_sub(MAX_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok((found.mtime(), String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(fuzzing)]
impl crate::fuzzing::Parsers {
    /// The configuration of a client that renews certificates.
    pub fn renewal(bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let certbot = Certbot { folder: Path::new("/etc/letsencrypt"), name: "site", conf: PathBuf::new() };
        drop(certbot.understand(&text, &Facts::lasting(0, 90 * DAY)));
        due_of_acme_sh(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_understood_as_certbot_does_or_not_at_all() {
        for (text, days) in [("30 days", 30.0), ("30", 30.0), ("2 weeks", 14.0), ("3 days 12 hours", 3.5), ("10d", 10.0), ("1 day, 6 hours", 1.25), ("4 WEEKS", 28.0), ("1 month", 28.0), ("0 days", 0.0)] {
            assert_eq!(interval(text), Some((days * DAY as f64) as i64), "{text}");
        }
        for text in ["", "garbage", "-5 days", "a week", "days", "5 lightyears", "99999999999999999999 days", "1 1 1", "30 days é"] {
            assert_eq!(interval(text), None, "{text}");
        }
    }
}
