//! `proctor init`: writes a configuration from what the host and a Django project show.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::fold::fold;
use super::{Exit, complain, counted, duration, say};
use crate::app::DEFAULT_CONFIG;
use crate::config::Config;
use crate::discover::{self, Ask, Facts, Found, compare, write};
use crate::model::one_line;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo proctor init                               writes /etc/proctor/proctor.yml
  proctor init --output ./proctor.yml             sees what this user may see
  sudo proctor init --diff                        what is new on the host, and what is gone; changes nothing

manage.py runs once, as its owner and never as root, and only its settings are read; no password is.
Exit codes: 0 written, or with --diff no difference; 1 with --diff differences; 2 could not run, or the file exists.")]
pub(super) struct Init {
    /// Where to write; a file that exists is never touched
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Says what the host has and the file does not, and what the host no longer has; writes nothing
    #[arg(long)]
    diff: bool,
    /// manage.py of the site, or its folder; default: where gunicorn and Celery run
    #[arg(long, value_name = "PATH")]
    django: Option<PathBuf>,
    /// Asks no Django
    #[arg(long, conflicts_with_all = ["django", "python", "django_user"])]
    no_django: bool,
    /// The Python that the site runs with; default: that of gunicorn and Celery, else a venv beside manage.py
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Runs manage.py as this user instead of its owner
    #[arg(long, value_name = "USER")]
    django_user: Option<String>,
    /// How long manage.py may take
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s")]
    django_timeout: Duration,
}

pub(super) fn run(named: Option<&Path>, init: &Init) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    if let Some(output) = init.output.as_deref().filter(|_| init.diff) {
        return Err(format!(
            "--diff writes nothing, so it takes no --output: the file to compare with is named by --config: proctor init --diff --config {}",
            output.display()
        )
        .into());
    }
    let file = init.output.as_deref().or(named).unwrap_or(Path::new(DEFAULT_CONFIG));
    let file = std::path::absolute(file)?;
    if init.diff {
        return diff(&file, init);
    }
    // Said before the host is looked at, and seen to once more when it is written.
    if file.symlink_metadata().is_ok() {
        return Err(exists(&file));
    }
    let (found, _) = look(&file, init);
    let text = write::text(&found);
    if let Err(problems) = Config::from_text(&file, &text) {
        problems.iter().for_each(|problem| complain(&problem.to_string()));
        return Err(format!(
            "what was found makes no right configuration, so {} is not written: that is a mistake of Proctor",
            file.display()
        )
        .into());
    }
    create(&file, &text)?;
    let mut said = format!("Written: {}\n", file.display());
    if let Some(asked) = &found.asked {
        said += &fold("", &format!("Asked for its settings: {}", one_line(asked, usize::MAX)));
    }
    lists(&found, &mut said);
    said += &next(&file, found.notify.is_empty());
    say(&said)?;
    Ok(Exit::Well)
}

fn exists(file: &Path) -> Box<dyn Error + Send + Sync> {
    format!(
        "{0} exists and stays as it is: `proctor init --diff --config {0}` says what is new on the host, --output names another file",
        file.display()
    )
    .into()
}

/// Looks at everything.
fn look(file: &Path, init: &Init) -> (Found, Facts) {
    let ask = Ask { manage: init.django.clone(), python: init.python.clone(), user: init.django_user.clone(), limit: init.django_timeout };
    let facts = discover::facts(file.parent().unwrap_or(Path::new("/")), (!init.no_django).then_some(&ask));
    (discover::found(&facts), facts)
}

/// Writes a file that was not there.
fn create(file: &Path, text: &str) -> Result<(), Box<dyn Error + Send + Sync>> {
    let cannot = |what: &Path, error: std::io::Error| format!("cannot write {}: {error}", what.display());
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(|error| cannot(folder, error))?;
    }
    // There is no secret in it, and Proctor's user has to read it.
    let mut open = match OpenOptions::new().write(true).create_new(true).mode(0o644).open(file) {
        Ok(open) => open,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(exists(file)),
        Err(error) => return Err(cannot(file, error).into()),
    };
    let written = open.write_all(text.as_bytes()).and_then(|()| open.sync_all());
    if let Err(error) = written {
        // Half a file would be taken for a whole one.
        let removed = std::fs::remove_file(file);
        return Err(format!("{}{}", cannot(file, error), if removed.is_err() { "; half of it is left" } else { "" }).into());
    }
    Ok(())
}

fn lists(found: &Found, said: &mut String) {
    let mut part = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            *said += &format!("\n{title}\n");
            said.extend(lines);
        }
    };
    part("Watched:", found.watched.iter().map(|line| fold("  ", line)).collect());
    // A command stays one line: it is to be copied.
    let halves = |all: &[discover::Half]| {
        all.iter().map(|half| format!("{}      {}\n", fold("  ", &half.what), one_line(&half.command, usize::MAX))).collect()
    };
    part("Half watched; each with what opens the rest:", halves(&found.half));
    part("Not watched; each with how it would be:", halves(&found.unwatched));
    part("Could not be seen:", found.unseen.iter().map(|line| fold("  ", &one_line(line, usize::MAX))).collect());
}

fn next(file: &Path, nobody: bool) -> String {
    let usual = file == Path::new(DEFAULT_CONFIG);
    let config = if usual { String::new() } else { format!(" --config {}", file.display()) };
    let mail = if nobody { String::new() } else { format!("  proctor{config} mail test       each admin gets one mail\n") };
    format!(
        "\nNext:\n  proctor{config} config check    what happens when\n  proctor{config} check           asks everything once\n{mail}  proctor{config} serve           watches\n"
    )
}

fn diff(file: &Path, init: &Init) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(problems) => {
            problems.iter().for_each(|problem| complain(&problem.to_string()));
            return Err(format!("{} cannot be compared: {}", file.display(), counted(problems.len(), "mistake")).into());
        }
    };
    let (found, facts) = look(file, init);
    let differences = compare::differences(&config, &found, &facts);
    let mut said = String::new();
    if !differences.new.is_empty() {
        said += &format!("New on this host, not in {}; under probes:\n", file.display());
        said.extend(differences.new.iter().map(|(line, what)| format!("  # {}\n  {line}\n", one_line(what, usize::MAX))));
    }
    if !differences.gone.is_empty() {
        said += &format!("In {}, no longer on this host:\n", file.display());
        said.extend(differences.gone.iter().map(|(name, why)| fold("  ", &format!("{name}: {why}"))));
    }
    if !found.unseen.is_empty() {
        said += "Could not be seen:\n";
        said.extend(found.unseen.iter().map(|line| fold("  ", &one_line(line, usize::MAX))));
    }
    let differ = !differences.new.is_empty() || !differences.gone.is_empty();
    if !differ {
        said = format!("Nothing is new on this host, and nothing of {} is gone.\n{said}", file.display());
    }
    say(&said)?;
    Ok(if differ { Exit::Failed } else { Exit::Well })
}
