//! Looks at the host itself: disks, memory and load, ports that are open to others, the clock, the way of the mail.
//!
//! Each is a target of its own, so that a mail and a line of `proctor check` say precisely what is wrong. Names are
//! those of node_exporter where the meaning is the same.

mod clock;
mod disk;
mod grower;
mod mail;
mod memory;
mod ports;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Looking, Planned, Recorder};
use crate::model::decode::Spanned;
use crate::model::{Failure, Sample};

pub use clock::ClockSource;
pub use mail::MailConfig;

/// What matters on most sites, each only where it is there: the mounts under these are watched, each once.
const USUAL: [&str; 9] =
    ["/", "/var", "/var/log", "/var/lib/docker", "/var/lib/mysql", "/var/lib/postgresql", "/var/lib/rabbitmq", "/srv", "/home"];
/// The most paths.
const MAX_DISKS: usize = 50;
/// The most ports that may be opened without a word.
const MAX_PORTS: usize = 200;

crate::config_struct! {
    /// Looks at the host itself: disks, memory and load, new ports, the clock, the way of the mail.
    pub struct HostConfig {
        /// Folders whose file systems are watched, each file system once, besides `/`, `/var` and others that are usual
        /// and there: docker's root, the database, uploads.
        disks: Vec<PathBuf> = "[]",
        /// Whether memory, load and the processor are watched.
        memory: bool = "true",
        /// Whether a port that somebody opens to other hosts is news.
        ports: bool = "true",
        /// Ports that may be opened without a word.
        open_ports: Vec<u16> = "[]",
        /// What the clock is compared with: `ntp://HOST`, or the URL of a page whose `Date` is right; default: nothing.
        clock: Option<Spanned<ClockSource>>,
        /// The way of the mail, up to the recipient and with nothing sent; default: not asked.
        mail: Option<MailConfig>,
    }
}

/// Builds a target for each of what is watched.
///
/// # Errors
/// Too many disks or ports, a disk that is no absolute path, what is wrong with the mail.
pub fn plan(config: &HostConfig) -> Result<Vec<Planned>, String> {
    let HostConfig { disks, memory, ports, open_ports, clock, mail } = config;
    if let Some(wrong) = disks.iter().find(|path| !path.is_absolute()) {
        return Err(format!("disks: expected an absolute path, found {:?}", wrong.display().to_string()));
    }
    if disks.len() > MAX_DISKS {
        return Err(format!("disks: expected at most {MAX_DISKS}, found {}", disks.len()));
    }
    if open_ports.len() > MAX_PORTS {
        return Err(format!("open_ports: expected at most {MAX_PORTS}, found {}", open_ports.len()));
    }
    let named = disks.iter().cloned();
    let mut all = vec![Planned::one("disk", disk::Disks::new(USUAL.map(PathBuf::from).into_iter().chain(named), disks.clone()))];
    if *memory {
        all.push(Planned::one("memory", memory::Memory(Looking::default())));
    }
    if *ports {
        all.push(Planned::one("ports", ports::Ports::new(open_ports.clone())));
    }
    if let Some(source) = clock {
        all.push(Planned::one("clock", clock::Clock::new(source.value.clone())));
    }
    if let Some(config) = mail {
        all.push(Planned::one("mail", mail::Mail::new(config)?));
    }
    Ok(all)
}

/// An answer that stands for a while: others are asked no more often than they like.
struct Standing {
    /// How long it stands where it is well, and where it is not.
    for_: [Duration; 2],
    last: Mutex<Option<(Instant, Answer)>>,
}

/// What was measured, and the outcome.
type Answer = (Vec<Sample>, Result<(), Failure>);

impl Standing {
    fn new(well: Duration, failed: Duration) -> Self {
        Self { for_: [well, failed], last: Mutex::new(None) }
    }

    /// Gives the last answer again while it stands.
    fn again(&self, rec: &mut Recorder) -> Option<Result<(), Failure>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, (samples, outcome)) = last.as_ref()?;
        if at.elapsed() >= self.for_[usize::from(outcome.is_err())] {
            return None;
        }
        for Sample { family, labels, value } in samples {
            let labels: Vec<(&'static str, &str)> = labels.iter().map(|(name, value)| (*name, &**value)).collect();
            rec.set_with(family, &labels, *value);
        }
        Some(outcome.clone())
    }

    /// Keeps an answer with what was measured.
    fn keep(&self, samples: Vec<Sample>, outcome: &Result<(), Failure>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), (samples, outcome.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decode::from_text;

    #[test]
    fn a_configuration_makes_a_target_for_each_of_what_is_watched() {
        let targets = |text: &str| -> Vec<String> {
            let config: HostConfig = from_text("f", text).expect(text);
            plan(&config).unwrap_or_else(|why| panic!("{text}: {why}")).into_iter().filter_map(|planned| planned.target).collect()
        };
        assert_eq!(targets("{}"), ["disk", "memory", "ports"]);
        assert_eq!(targets("{memory: false, ports: false, clock: 'ntp://127.0.0.1'}"), ["disk", "clock"]);
        assert_eq!(targets("{mail: {host: localhost, from: a@b.c, to: d@e.f}}"), ["disk", "memory", "ports", "mail"]);
        let many = format!("{{open_ports: [{}]}}", vec!["1"; MAX_PORTS + 1].join(", "));
        for (text, wrong) in [
            ("{disks: [a/b]}", "expected an absolute path, found \"a/b\""),
            (&many, "open_ports: expected at most 200, found 201"),
            ("{mail: {host: localhost, from: a, to: d@e.f}}", "mail:"),
        ] {
            let config: HostConfig = from_text("f", text).expect(text);
            let why = plan(&config).err().unwrap_or_else(|| panic!("{text} is wrong"));
            assert!(why.contains(wrong), "{text}: {why}");
        }
        for text in ["{clock: 'ftp://a'}", "{clock: 'ntp://'}", "{clock: 5}"] {
            let problems = from_text::<HostConfig>("f", text).expect_err(text);
            assert!(problems[0].to_string().contains("ntp://"), "{problems:?}");
        }
    }
}
