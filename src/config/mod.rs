//! Puts the components' own config structs together, loads them, and checks them against one another.
//!
//! All mistakes of a file come in one run, each as `file:line:col: what was expected, what was found`. Loading reads
//! one regular file of at most 1 MiB: it binds and connects to nothing.

mod check;
mod heartbeat_out;
pub mod timeline;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::changes::ChangesConfig;
use crate::model::decode::{Decode, KeyDoc, Named, Spanned};
use crate::model::{Labels, Position, Problem, Problems, yaml};
use crate::mute::maintenance::MaintenanceConfig;
use crate::mute::startup::StartupConfig;
use crate::notify::NotifyConfig;
use crate::notify::email::SmtpConfig;
use crate::probe::ProbeConfig;
use crate::remediate::ActionConfig;
use crate::rules::RulesConfig;
use crate::web::WebConfig;
use crate::web::control::ControlConfig;

pub use heartbeat_out::HeartbeatOutConfig;

crate::config_struct! {
    /// The site that is watched.
    pub struct SiteConfig {
        /// Its name, for mails and pages.
        name: String = "site",
        /// Labels that every sample and alert carries, as a scrape would add them.
        labels: Labels = "{}",
        /// Where this Proctor's pages can be seen, for links in mails.
        external_url: Option<String>,
    }
}

crate::config_struct! {
    /// What must survive a crash.
    pub struct StateConfig {
        /// The SQLite file; the default is `state.db` in `$STATE_DIRECTORY`, else in `$XDG_STATE_HOME/proctor`.
        path: Option<PathBuf>,
    }
}

crate::config_struct! {
    /// What holds for every probe that does not say otherwise.
    pub struct Defaults {
        /// Time between two runs of a probe.
        interval: Duration = "15s",
        /// The one limit of a run.
        timeout: Duration = "5s",
    }
}

crate::config_struct! {
    /// The whole configuration.
    pub struct Config {
        /// The site that is watched.
        site: SiteConfig = "{}",
        /// What is read over HTTP.
        web: WebConfig = "{}",
        /// The socket for what changes something.
        control: ControlConfig = "{}",
        /// What must survive a crash.
        state: StateConfig = "{}",
        /// What holds for every probe that does not say otherwise.
        defaults: Defaults = "{}",
        /// Which rules decide what is wrong.
        rules: RulesConfig = "{}",
        /// What changed on the host, for mails.
        changes: ChangesConfig = "{}",
        /// The site is down on purpose while a file exists.
        maintenance: MaintenanceConfig = "{}",
        /// Quiet until Proctor knows the site, and until the host has come up.
        startup: StartupConfig = "{}",
        /// Somebody outside is told that all is well here, and notices when that ends; without it nobody does.
        heartbeat_out: Option<Spanned<HeartbeatOutConfig>>,
        /// Who is told, and how often; without it nobody is.
        notify: Option<Spanned<NotifyConfig>>,
        /// What is asked, by name.
        probes: Named<ProbeConfig> = "{}",
        /// What may be done about alerts, by name; nothing is done where nothing is named.
        actions: Named<ActionConfig> = "{}",
    }
}

impl Config {
    /// Decodes and cross-checks a text.
    ///
    /// # Errors
    /// Every mistake, in the order of the text.
    pub fn from_text(file: &Path, text: &str) -> Result<Self, Vec<Problem>> {
        let mut problems = Problems::new(file);
        let node = yaml::parse(text, &mut problems);
        let config = node.as_ref().and_then(|node| Self::decode(node, &mut problems));
        if let Some(config) = &config {
            check::cross(config, &mut problems);
        } else if let Some(node) = &node {
            // What did decode is checked all the same, so that one run names every mistake.
            check::cross_undecoded(node, &mut problems);
        }
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(problems.into_sorted()),
        }
    }

    /// Loads a file.
    ///
    /// # Errors
    /// Every mistake; a file that cannot be read is one mistake at its beginning.
    pub fn load(file: &Path) -> Result<Self, Vec<Problem>> {
        let text = read(file).map_err(|message| vec![Problem { file: file.to_owned(), at: Position { line: 1, col: 1 }, message }])?;
        Self::from_text(file, &text)
    }
}

/// Reads a regular file of at most [`yaml::MAX_BYTES`]. A FIFO would block, a device or 1 GiB would not end: refused at
/// once, before a byte is read.
///
/// # Errors
/// What was expected and what was found, as the message of a problem.
pub fn read(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot read this file: {error}");
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = File::options().read(true).custom_flags(nonblocking).open(path).map_err(cannot)?;
    let found = file.metadata().map_err(cannot)?;
    if !found.is_file() {
        return Err("expected a regular file, found a folder, FIFO or device".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(yaml::MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() > yaml::MAX_BYTES {
        return Err(format!("expected at most {} bytes, found {}", yaml::MAX_BYTES, found.len()));
    }
    String::from_utf8(bytes).map_err(|error| format!("expected UTF-8, found another byte at offset {}", error.utf8_error().valid_up_to()))
}

/// Lists the sections, the probes and the actions with their keys, each by its place in the file: the reference is written
/// from this, and the example held against it.
pub fn sections() -> Vec<(String, &'static [KeyDoc])> {
    use crate::model::decode::Documented;
    use crate::probe::{self, celery};
    use crate::{notify, remediate};
    let top = [
        ("", Config::KEYS),
        ("site", SiteConfig::KEYS),
        ("web", WebConfig::KEYS),
        ("control", ControlConfig::KEYS),
        ("state", StateConfig::KEYS),
        ("defaults", Defaults::KEYS),
        ("rules", RulesConfig::KEYS),
        ("changes", ChangesConfig::KEYS),
        ("maintenance", MaintenanceConfig::KEYS),
        ("startup", StartupConfig::KEYS),
        ("heartbeat_out", HeartbeatOutConfig::KEYS),
        ("notify", NotifyConfig::KEYS),
        ("notify.smtp", SmtpConfig::KEYS),
        ("notify.webhooks.NAME", notify::webhook::WebhookConfig::KEYS),
        ("actions.NAME", ActionConfig::KEYS),
        ("actions.NAME.systemd", remediate::systemd::SystemdConfig::KEYS),
        ("actions.NAME.docker", remediate::docker::DockerConfig::KEYS),
        ("actions.NAME.command", remediate::command::CommandConfig::KEYS),
        ("actions.NAME.webhook", remediate::webhook::WebhookConfig::KEYS),
        ("actions.NAME.verify", remediate::VerifyConfig::KEYS),
        ("actions.NAME.limit", remediate::LimitConfig::KEYS),
        ("probes.NAME", ProbeConfig::KEYS),
    ];
    let kinds = probe::KINDS.iter().zip(probe::KEYS).map(|(kind, keys)| (format!("probes.NAME.{kind}"), *keys));
    let within = [
        ("probes.NAME.celery.canary", celery::CanaryConfig::KEYS),
        ("probes.NAME.celery.expect.QUEUE", celery::ExpectConfig::KEYS),
        ("probes.NAME.host.mail", probe::host::MailConfig::KEYS),
    ];
    let named = |of: (&str, &'static [KeyDoc])| (of.0.to_owned(), of.1);
    top.into_iter().map(named).chain(kinds).chain(within.into_iter().map(named)).collect()
}
