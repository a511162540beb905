//! `proctor rules check` and `proctor rules test`: promtool's formats, verdicts and exit codes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;

use super::fold::fold;
use super::{Exit, counted, quiet_end};
use crate::config;
use crate::model::{Position, Problem, Problems};
use crate::rules::{load, unit};

#[derive(Debug, Subcommand)]
pub(super) enum Rules {
    /// Says every mistake of rule files, each with its place, as `promtool check rules` does
    #[command(after_help = "Example: proctor rules check /etc/proctor/alerts/*.yml")]
    Check {
        /// Rule files in Prometheus' format
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Runs unit tests of rules, as `promtool test rules` does
    #[command(after_help = "Example: proctor rules test alerts/tests/*.yml")]
    Test {
        /// Test files in promtool's format
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

pub(super) fn run(command: &Rules) -> std::io::Result<Exit> {
    let mut well = true;
    quiet_end(answer(command, &mut well))?;
    Ok(if well { Exit::Well } else { Exit::Failed })
}

fn answer(command: &Rules, well: &mut bool) -> std::io::Result<()> {
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
    let mut say = |file: &Path, passed: String, warnings: &[String], problems: &[Problem]| -> std::io::Result<()> {
        if problems.is_empty() {
            writeln!(out, "{}: {passed}", file.display())?;
        }
        for warning in warnings {
            write!(err, "{}", fold("", &format!("{}: warning: {warning}", file.display())))?;
        }
        for problem in problems {
            for (index, line) in problem.to_string().lines().enumerate() {
                write!(err, "{}", fold(if index == 0 { "" } else { "  " }, line))?;
            }
        }
        if !problems.is_empty() {
            *well = false;
            writeln!(err, "{}: FAILED, {}", file.display(), counted(problems.len(), "mistake"))?;
        }
        Ok(())
    };
    match command {
        Rules::Check { files } => {
            for file in files {
                let (rules, problems) = check(file);
                say(file, counted(rules, "rule"), &[], &problems)?;
            }
        }
        Rules::Test { files } => {
            for file in files {
                let verdict = unit::test(file, config::read);
                say(file, format!("passed, {}", counted(verdict.tests, "test")), &verdict.warnings, &verdict.problems)?;
            }
        }
    }
    Ok(())
}

fn check(file: &Path) -> (usize, Vec<Problem>) {
    let mut problems = Problems::new(file);
    let rules = match config::read(file) {
        // The interval of a group that names none does not matter here.
        Ok(text) => load::from_text(file, &text, Duration::from_secs(60), &mut problems).iter().map(|group| group.rules.len()).sum(),
        Err(message) => {
            problems.push(Position { line: 1, col: 1 }, message);
            0
        }
    };
    (rules, problems.into_sorted())
}
