//! `proctor config check`: every mistake of a file, in one run; then what its user may look at, and what happens when, once
//! something fails.

use super::fold::fold;
use super::{Exit, complain, counted, rights, say};
use crate::app::{self, AppError, Loaded, Source};
use crate::changes::Changes;
use crate::config::{
    self,
    timeline::{self, Repair, Subject},
};
use crate::model::{Problems, yaml};
use crate::probe::scheduler::Scheduled;
use crate::remediate::{Mode, Tools};
use crate::tasks::Tasks;

pub(super) fn check(source: &Source) -> std::io::Result<Exit> {
    let Source::File(file) = source else {
        say("There is no configuration: Proctor would watch what it finds on this host, by looking only.\n")?;
        return Ok(Exit::Well);
    };
    let planned = app::load(source).and_then(|loaded| {
        let (scheduled, _) = app::plan_all(&loaded, &Tasks::new(), &Changes::default(), &Tools::of_this_host(None))?;
        Ok((scheduled, loaded))
    });
    match planned {
        Ok((scheduled, loaded)) => {
            if scheduled.is_empty() {
                complain(&format!("{}: warning: it names no probes, so nothing is watched; `proctor init` finds some", file.display()));
            }
            let mut text = format!("{} is right: {}.\n", file.display(), counted(scheduled.len(), "target"));
            let tree = config::read(file).ok().and_then(|text| yaml::parse(&text, &mut Problems::default()));
            let seen = tree.map(|tree| rights::describe(&loaded.config, &tree)).unwrap_or_default();
            text.extend(seen.iter().enumerate().map(|(index, line)| fold(if index == 0 { "" } else { "  " }, line)));
            let lines = describe(&scheduled, &loaded);
            if !lines.is_empty() {
                text += "\nWhen one fails, at the latest (minutes:seconds):\n";
            }
            text.extend(lines.iter().map(|line| fold("  ", line)));
            say(&text)?;
            Ok(Exit::Well)
        }
        Err(AppError::Config(problems)) => {
            problems.iter().for_each(|problem| complain(&problem.to_string()));
            complain(&format!("{} in {}", counted(problems.len(), "mistake"), file.display()));
            Ok(Exit::Failed)
        }
        Err(error) => {
            complain(&format!("{}: {}", file.display(), crate::client::net::chain(&error)));
            Ok(Exit::Failed)
        }
    }
}

/// Works out what happens when.
fn describe(scheduled: &[Scheduled], loaded: &Loaded) -> Vec<String> {
    let subjects = scheduled.iter().map(|one| Subject {
        probe: one.target.probe.to_string(),
        target: one.target.target.as_deref().map(str::to_owned),
        interval: one.target.interval,
        timeout: one.target.timeout,
        up: one.probe.up().map(|family| family.name),
    });
    let config = &loaded.config;
    let repairs: Vec<Repair<'_>> = config
        .actions
        .0
        .iter()
        .map(|(name, action)| Repair {
            name: name.as_str(),
            firing_for: action.firing_for,
            acts: action.mode == Mode::Act,
            matchers: &action.matchers.value,
        })
        .collect();
    timeline::describe(subjects, &loaded.rules, &config.site.labels, config.notify.as_ref().map(|notify| &notify.value), &repairs)
}
