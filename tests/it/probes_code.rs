//! The probe code against real git repositories and real processes.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use proctor::model::{ProbeResult, Reason, Sight};

use super::support::gunicorn::{Gunicorn, Listen};
use super::support::process::{Process, program};
use super::support::watched::{Watched, failed, value, well};

/// Commits `ahead` seconds from now; git writes that time into its log.
fn commit(git: &Path, folder: &Path, what: &str, ahead: u64) {
    let when = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_secs() + ahead;
    let user = ["-c", "user.name=Ada Lovelace", "-c", "user.email=ada@example.org"];
    let mut command = Command::new(git);
    command.current_dir(folder).args(user).args(["commit", "-q", "--allow-empty", "-m", what]);
    command.env("GIT_COMMITTER_DATE", format!("@{when} +0000")).env("HOME", folder);
    assert!(command.status().expect("git runs").success());
}

fn init(git: &Path, folder: &Path) {
    assert!(Command::new(git).current_dir(folder).args(["init", "-q"]).env("HOME", folder).status().expect("git runs").success());
}

fn probe(folder: &Path, pattern: &str) -> String {
    format!("  site: {{code: {{repository: {}, processes: ['{pattern}'], within: 1s}}}}\n", folder.display())
}

#[tokio::test]
async fn code_that_came_in_without_a_restart_is_said_until_the_processes_are_restarted() {
    let Some(git) = program("git") else { return };
    let folder = tempfile::tempdir().expect("a folder can be made");
    let sleeper = format!("sleep 98765.{}", std::process::id());
    let watched = Watched::new(&probe(folder.path(), &sleeper.replace('.', r"\.")));
    failed(&watched.run("site").await, Reason::Missing, "expected a git repository with a log of HEAD");
    init(&git, folder.path());
    failed(&watched.run("site").await, Reason::Missing, "expected a git repository");
    commit(&git, folder.path(), "first", 0);
    let result = watched.run("site").await;
    assert!(matches!(&result.sight, Sight::Blind { missing, .. } if missing.contains("sleep 98765")), "{:?}", result.sight);

    let start = || Process::start(Command::new("sleep").arg(sleeper.trim_start_matches("sleep ")), &folder.path().join("log"));
    let mut old = start();
    let result = watched.run("site").await;
    well(&result, true);
    assert_eq!(value(&result, "site_code_processes", ""), Some(1.0));
    commit(&git, folder.path(), "second", 4);
    let result = watched.until_failed("site", "the change is overdue", 60, Reason::Overdue, "commit: second by Ada Lovelace").await;
    assert_eq!(value(&result, "site_code_restart_overdue", ""), Some(1.0));
    assert!(result.evidence.iter().any(|line| line.contains(&sleeper)), "{:?}", result.evidence);
    old.kill();
    let _new = start();
    watched.until("site", "a restart ends it", 60, |result| result.is_success() && result.sight == Sight::Full).await;
    let told: Vec<String> = watched
        .changes
        .between(proctor::model::Timestamp(0), proctor::model::Timestamp(i64::MAX))
        .iter()
        .map(|change| format!("{} {}: {}", change.kind.as_str(), change.subject, change.detail))
        .collect();
    assert!(told.iter().any(|line| line.contains("deployed code of") && line.ends_with("by Ada Lovelace: commit: second")), "{told:?}");
}

#[tokio::test]
async fn a_reload_of_gunicorn_brings_the_new_code_although_its_master_stays() {
    let Some(git) = program("git") else { return };
    let Some(gunicorn) = Gunicorn::tcp().await else { return };
    let Listen::Tcp(port) = gunicorn.listen else { unreachable!("it listens on a port") };
    let folder = tempfile::tempdir().expect("a folder can be made");
    init(&git, folder.path());
    commit(&git, folder.path(), "pull", 4);
    let watched = Watched::new(&probe(folder.path(), &format!("127.0.0.1:{port}")));
    let result = watched.until_failed("site", "the change is overdue", 60, Reason::Overdue, "commit (initial): pull").await;
    assert_eq!(value(&result, "site_code_processes", ""), Some(3.0), "the master is not counted");
    let hup = Command::new("kill").args(["-HUP", &gunicorn.process.pid().to_string()]).status().expect("kill runs");
    assert!(hup.success());
    watched.until("site", "the reload ends it", 60, ProbeResult::is_success).await;
}

#[tokio::test]
async fn a_log_that_is_no_log_is_said_and_a_linked_work_tree_is_followed() {
    let Some(git) = program("git") else { return };
    let folder = tempfile::tempdir().expect("a folder can be made");
    let (main, linked) = (folder.path().join("main"), folder.path().join("linked"));
    std::fs::create_dir(&main).expect("is made");
    init(&git, &main);
    commit(&git, &main, "first", 0);
    let add =
        Command::new(&git).current_dir(&main).args(["worktree", "add", "-q"]).arg(&linked).env("HOME", &main).status().expect("git runs");
    assert!(add.success());
    let of = |folder: &Path| Watched::new(&probe(folder, &format!("it-.*|{}", std::process::id())));
    let result = of(&linked).run("site").await;
    assert!(value(&result, "site_code_timestamp_seconds", "").is_some(), "{:?}", result.outcome);
    std::fs::write(main.join(".git/logs/HEAD"), [0xff, b'\n', 0].repeat(100_000)).expect("is written");
    failed(&of(&main).run("site").await, Reason::Missing, "git's log of HEAD holds no change");
    std::fs::write(linked.join(".git"), "gitdir: /nowhere\n".repeat(1000)).expect("is written");
    assert!(of(&linked).run("site").await.outcome.is_err());
}

#[test]
fn a_repository_that_may_not_be_read_is_neither_red_nor_green() {
    use std::os::unix::fs::PermissionsExt;
    let (Some(git), Some(setpriv)) = (program("git"), program("setpriv")) else { return };
    let folder = tempfile::tempdir().expect("a folder can be made");
    let shut = folder.path().join("site");
    std::fs::create_dir(&shut).expect("is made");
    init(&git, &shut);
    commit(&git, &shut, "first", 0);
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("is set");
    mode(folder.path(), 0o755);
    mode(&shut.join(".git"), 0o700);
    let file = folder.path().join("proctor.yml");
    std::fs::write(&file, format!("probes:\n{}", probe(&shut, "x"))).expect("is written");
    let mut command = Command::new(setpriv);
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", env!("CARGO_BIN_EXE_proctor"), "check", "--config"]);
    let output = command.arg(&file).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(told.contains("blind site code") && told.contains("setfacl -R -m u:proctor:rX"), "{told}");
}
