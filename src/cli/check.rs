//! `proctor check`: asks every probe once, in parallel, and says what is wrong now.

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::Exit;
use crate::app::{self, Source};
use crate::metrics::Metrics;
use crate::model::duration::print_measured;
use crate::model::{ProbeResult, Sight};
use crate::probe::scheduler;
use crate::tasks::Tasks;

/// How long connections that stand may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// The width that a line is folded to.
const COLUMNS: usize = 80;

pub(super) fn run(source: &Source) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    let loaded = app::load(source)?;
    let tasks = Tasks::new();
    let scheduled = app::plan(&loaded.config, &tasks)?;
    let metrics = Arc::new(Metrics::new());
    let results = super::runtime()?.block_on(async {
        let results = join_all(scheduled.iter().map(|one| scheduler::run(one, &metrics))).await;
        tasks.stop(GOODBYE).await;
        results
    });
    let results: Vec<ProbeResult> = results.into_iter().flatten().collect();
    let mut out = std::io::stdout().lock();
    if let Some(found) = &loaded.found {
        writeln!(out, "No configuration: this is what was found on this host.")?;
        for line in &found.left_out {
            writeln!(out, "Not asked: {line}")?;
        }
        writeln!(out)?;
    }
    if results.is_empty() {
        writeln!(out, "Nothing to ask. Write /etc/proctor/proctor.yml and name what to ask under probes:")?;
        return Ok(Exit::CouldNotRun);
    }
    write!(out, "{}", table(&results))?;
    let failed = results.iter().filter(|result| !result.is_success()).count();
    Ok(if failed == 0 && results.len() == scheduled.len() { Exit::Well } else { Exit::Failed })
}

/// Writes one line per target, then what is wrong now.
fn table(results: &[ProbeResult]) -> String {
    let width = results.iter().map(|result| result.target.to_string().chars().count()).max().unwrap_or(0).min(36);
    let mut text = String::new();
    for result in results {
        let state = match (&result.outcome, &result.sight) {
            (Err(_), _) => "FAILED",
            (Ok(()), Sight::Full) => "ok",
            (Ok(()), Sight::Partial { .. }) => "partly",
            (Ok(()), Sight::Blind { .. }) => "blind",
        };
        let reason = result.outcome.as_ref().err().map(|failure| format!("  {}", failure.reason)).unwrap_or_default();
        let name: String = result.target.to_string().chars().take(36).collect();
        text += &format!("{state:6}  {name:width$}  {:11}  {:>6}{reason}\n", result.target.kind, print_measured(result.duration));
    }
    let failed: Vec<_> = results.iter().filter_map(|result| Some((result, result.outcome.as_ref().err()?))).collect();
    if failed.is_empty() {
        text += &format!("\nAll {} targets are well.\n", results.len());
    } else {
        text += &format!("\nWrong now: {} of {} targets.\n", failed.len(), results.len());
    }
    for (result, failure) in failed {
        text += &fold(&format!("{}: {}", result.target, failure.detail));
    }
    for result in results {
        if let Sight::Partial { missing, remedy } | Sight::Blind { missing, remedy } = &result.sight {
            text += &fold(&format!("{}: cannot see {missing}; {remedy}", result.target));
        }
    }
    text
}

/// Folds a line at blanks; what follows is indented.
fn fold(line: &str) -> String {
    let mut text = String::from("  ");
    let mut column = 2;
    for word in line.split(' ') {
        let long = word.chars().count();
        if column + long + 1 > COLUMNS && column > 4 {
            text += "\n    ";
            column = 4;
        } else if column > 4 || (column > 2 && !text.ends_with("    ")) {
            text.push(' ');
            column += 1;
        }
        text += word;
        column += long;
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Failure, Reason, Target, Timestamp};

    #[test]
    fn a_tired_person_sees_what_is_wrong_at_the_end_of_80_columns() {
        let result = |name: &str, kind, outcome| ProbeResult {
            target: Arc::new(Target {
                probe: name.into(),
                target: None,
                kind,
                interval: Duration::from_secs(15),
                timeout: Duration::from_secs(5),
                depends_on: Arc::new([]),
            }),
            at: Timestamp(0),
            duration: Duration::from_micros(300),
            outcome,
            samples: Vec::new(),
            sight: Sight::Full,
            evidence: Vec::new(),
        };
        let silent = "no answer within 5s: 127.0.0.1:50000: connected after 0.3ms, waiting for the server's first bytes: the tunnel is up but the far end is silent";
        let text =
            table(&[result("cache", "memcached", Ok(())), result("csrpt", "tunnel", Err(Failure::new(Reason::RemoteSilent, silent)))]);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        insta::assert_snapshot!(text);
    }
}
