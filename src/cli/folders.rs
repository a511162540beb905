//! `proctor try-folders FOLDER…`: really creates a file in each, as the user who runs it, and prints what came of it as the
//! checks that `proctor run --checks` reports. Rights, quotas, full and read-only file systems, mounts that are gone: whether an
//! upload works is known only by trying.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use super::{Exit, say};
use crate::probe::heartbeat::{Check, MAX_CHECKS};

/// The file; the same in every run, so that one at most is ever left behind.
const NAME: &str = ".proctor-upload-check";
/// What is written: a block, so that a full disk and a quota are seen.
const BYTES: [u8; 4096] = [b'p'; 4096];
/// How long all of it may take: a dead network mount blocks for ever.
const WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
#[command(after_help = "Example: proctor run uploads --checks -- proctor try-folders /data/submissions")]
pub(super) struct TryFolders {
    /// Folders that uploads go to
    #[arg(required = true, value_name = "FOLDER", num_args = 1..=MAX_CHECKS)]
    folders: Vec<PathBuf>,
}

/// Tries all at the same time. What fails stands in the list, and is no failure of this command.
pub(super) fn run(wanted: TryFolders) -> Result<Exit, Box<dyn Error + Send + Sync>> {
    let (tell, told) = mpsc::channel();
    let count = wanted.folders.len();
    let mut tried: Vec<Option<Result<(), String>>> = vec![None; count];
    for (nth, folder) in wanted.folders.iter().cloned().enumerate() {
        let tell = tell.clone();
        // One that hangs is left behind: it cannot be ended.
        std::thread::Builder::new().name("try".to_owned()).spawn(move || tell.send((nth, try_folder(&folder))))?;
    }
    let until = Instant::now() + WITHIN;
    while tried.iter().any(Option::is_none) {
        match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((nth, outcome)) => tried[nth] = Some(outcome),
            Err(_) => break,
        }
    }
    let checks: Vec<Check> = wanted
        .folders
        .iter()
        .zip(tried)
        .map(|(folder, tried)| {
            let hangs = || Err(format!("no answer within {} s: its file system hangs", WITHIN.as_secs()));
            let outcome = tried.unwrap_or_else(hangs);
            let text = outcome.as_ref().err().cloned().unwrap_or_default();
            Check { name: folder.display().to_string(), ok: outcome.is_ok(), text }
        })
        .collect();
    say(&(serde_json::to_string_pretty(&checks)? + "\n"))?;
    Ok(Exit::Well)
}

/// Creates a file, writes it to the disk, reads it back and removes it.
fn try_folder(folder: &Path) -> Result<(), String> {
    let path = folder.join(NAME);
    let step = |what: &str, error: &io::Error| format!("{what} {}: {error}", path.display());
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(step("cannot remove what an earlier run left:", &error)),
        _ => {}
    }
    // Only if it is not there: what somebody put in its place is not followed.
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(|error| step("cannot create", &error))?;
    let written = fill(&mut file, &path);
    let removed = fs::remove_file(&path).map_err(|error| step("cannot remove", &error));
    written.map_err(|error| step("cannot write", &error))?;
    removed
}

fn fill(file: &mut File, path: &Path) -> io::Result<()> {
    file.write_all(&BYTES)?;
    file.sync_all()?;
    let mut back = Vec::with_capacity(BYTES.len());
    File::open(path)?.take(BYTES.len() as u64 + 1).read_to_end(&mut back)?;
    if back == BYTES { Ok(()) } else { Err(io::Error::other("another content came back")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_tried_and_left_as_it_was_and_what_is_wrong_names_the_step() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(try_folder(folder.path()), Ok(()));
        // What a killed run left behind, or somebody's link: neither is followed, nor stays.
        let (elsewhere, left) = (folder.path().join("elsewhere"), folder.path().join(NAME));
        fs::write(&elsewhere, "theirs").expect("is written");
        std::os::unix::fs::symlink(&elsewhere, &left).expect("is linked");
        assert_eq!(try_folder(folder.path()), Ok(()));
        assert_eq!(fs::read_to_string(&elsewhere).expect("stays"), "theirs");
        assert_eq!(fs::read_dir(folder.path()).expect("is there").count(), 1);
        for (wrong, words) in [(folder.path().join("gone"), "cannot create"), (elsewhere, "Not a directory"), ("/proc".into(), "/proc/")] {
            let why = try_folder(&wrong).expect_err("nothing can be created there");
            assert!(why.contains(words), "{why}");
        }
    }
}
