//! `proctor config check`: every mistake of a file, in one run.

use super::Exit;
use crate::app::{self, AppError, Source};
use crate::tasks::Tasks;

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the command's answer")]
pub(super) fn check(source: &Source) -> Exit {
    let Source::File(file) = source else {
        println!("There is no configuration: Proctor would watch what it finds on this host, by looking only.");
        return Exit::Well;
    };
    let planned = app::load(source).and_then(|loaded| Ok((app::plan(&loaded.config, &Tasks::new())?, loaded)));
    match planned {
        Ok((scheduled, _)) => {
            println!("{} is right: {} targets.", file.display(), scheduled.len());
            Exit::Well
        }
        Err(AppError::Config(problems)) => {
            for problem in &problems {
                eprintln!("{problem}");
            }
            eprintln!("{} mistakes in {}", problems.len(), file.display());
            Exit::Failed
        }
        Err(error) => {
            eprintln!("{}: {}", file.display(), crate::client::net::chain(&error));
            Exit::Failed
        }
    }
}
