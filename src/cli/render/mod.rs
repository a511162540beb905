//! `proctor render`: writes what the host must have and allow, from the configuration.

mod systemd;
mod uploads;

pub(super) use systemd::{SEE_PROCESSES, walk};

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::PathBuf;

use clap::{CommandFactory, Subcommand};

use super::{Cli, Exit, say};
use crate::app::{self, Source};
use crate::config::Config;

#[derive(Debug, Subcommand)]
pub(super) enum Render {
    /// Prints the rule that lets Proctor's user do what the configured actions do to units of systemd, and nothing else
    #[command(after_help = "Example: proctor render polkit > /etc/polkit-1/rules.d/50-proctor.rules")]
    Polkit {
        /// The user that Proctor runs as
        #[arg(long, default_value = "proctor", value_parser = user)]
        user: String,
    },
    /// Prints what completes the command line in a shell
    #[command(after_help = "Examples:
  proctor render completions bash > /usr/share/bash-completion/completions/proctor
  proctor render completions zsh > /usr/share/zsh/vendor-completions/_proctor
The Debian package brings them.")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Prints the manual page, or writes a page for each command into a folder
    #[command(after_help = "Examples: proctor render man | man -l -; proctor render man /usr/local/share/man/man1")]
    Man {
        /// The folder
        folder: Option<PathBuf>,
    },
    /// Prints the unit that runs Proctor as a user of its own and lets it do what the configuration needs, and nothing else
    #[command(after_help = "Example: proctor render systemd > /etc/systemd/system/proctor.service && systemctl daemon-reload")]
    Systemd {
        /// The user and group that Proctor runs as
        #[arg(long, default_value = "proctor", value_parser = user)]
        user: String,
        /// Where Proctor is installed
        #[arg(long, default_value = "/usr/bin/proctor")]
        program: String,
    },
    /// Prints the unit that tries the upload folders as the site's user, for a heartbeat of the configuration
    #[command(
        after_help = "Example: proctor render uploads --user coursys uploads /data/submissions > /etc/systemd/system/proctor-uploads.service\n\
                      and with --timer > /etc/systemd/system/proctor-uploads.timer; then systemctl enable --now proctor-uploads.timer"
    )]
    Uploads {
        /// The user that the site runs as
        #[arg(long, value_parser = user)]
        user: String,
        /// Where Proctor is installed
        #[arg(long, default_value = "/usr/bin/proctor")]
        program: String,
        /// Prints the timer instead
        #[arg(long)]
        timer: bool,
        /// The heartbeat, with `every` and `token_file`
        name: String,
        /// Folders that uploads go to
        #[arg(required = true, value_name = "FOLDER")]
        folders: Vec<PathBuf>,
    },
}

fn user(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 32 || !text.chars().all(fine) {
        return Err("expected the name of a user".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn run(source: &Source, command: &Render) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    match command {
        Render::Polkit { user } => {
            let config = app::load(source)?.config;
            let allowed = allowed(&config);
            if allowed.is_empty() {
                return Err(
                    "no action of the configuration acts on a unit of systemd (actions: NAME: {systemd: …}): no rule is needed".into()
                );
            }
            say(&polkit(user, &allowed)?)?;
        }
        Render::Uploads { user, program, timer, name, folders } => {
            say(&uploads::render(&app::load(source)?.config, name, user, program, folders, *timer)?)?;
        }
        Render::Systemd { user, program } => say(&systemd::render(source, &app::load(source)?.config, user, program)?)?,
        Render::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "proctor", &mut text);
            say(&String::from_utf8(text)?)?;
        }
        Render::Man { folder: Some(folder) } => {
            clap_mangen::generate_to(Cli::command(), folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        Render::Man { folder: None } => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut text)?;
            say(&String::from_utf8(text)?)?;
        }
    }
    Ok(Exit::Well)
}

/// Returns which verbs the actions use on which units.
fn allowed(config: &Config) -> BTreeMap<&str, BTreeSet<&'static str>> {
    let mut allowed: BTreeMap<&str, BTreeSet<&'static str>> = BTreeMap::new();
    for systemd in config.actions.0.iter().filter_map(|(_, action)| action.systemd.as_ref()) {
        allowed.entry(&systemd.unit.0).or_default().insert(systemd.verb.as_str());
    }
    allowed
}

fn polkit(user: &str, allowed: &BTreeMap<&str, BTreeSet<&'static str>>) -> Result<String, serde_json::Error> {
    let table = serde_json::to_string_pretty(allowed)?.replace('\n', "\n    ");
    Ok(format!(
        r#"// Lets the user {user} do exactly this, and nothing else. Written by `proctor render polkit`; needs polkit 0.106 or newer.
polkit.addRule(function(action, subject) {{
    if (action.id != "org.freedesktop.systemd1.manage-units" || subject.user != "{user}")
        return polkit.Result.NOT_HANDLED;
    var allowed = {table};
    var verbs = allowed[action.lookup("unit")];
    if (verbs && verbs.indexOf(action.lookup("verb")) >= 0)
        return polkit.Result.YES;
    return polkit.Result.NO;
}});
"#
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_configured_units_and_verbs_are_allowed() {
        let action = |name: &str, unit: &str, verb: &str| {
            format!("  {name}: {{systemd: {{unit: {unit}, verb: {verb}}}, matchers: [alertname=X]}}\n")
        };
        let text = format!(
            "actions:\n{}{}{}  d: {{command: {{argv: [/bin/true]}}, matchers: [alertname=X]}}\n",
            action("a", "gunicorn.service", "restart"),
            action("b", "gunicorn.service", "reload"),
            action("c", r#""tunnel\\x2d1.service""#, "start")
        );
        let config = Config::from_text("f".as_ref(), &text).expect("is right");
        insta::assert_snapshot!(polkit("proctor", &allowed(&config)).expect("is text"));
        assert!(user("proctor\"); //").is_err());
    }
}
